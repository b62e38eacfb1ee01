"""How fast files go up and down, what they cost, and what others feel: `python bench/files.py`.

One file (--megabytes, 1,000) over loopback with curl, three times in one run: up to a bare
http.server of this Python that writes what comes, up to Roger, down from either. Then an innocent
pair's time from say to heard, alone and while ten downloads run. Needs curl and /proc.
"""

import argparse
import http.server
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import harness  # noqa: E402
from uploads import Uploader  # noqa: E402

BARE = """
import http.server, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_PUT(self):
        left = int(self.headers["Content-Length"])
        with open("up", "wb") as file:
            while left:
                piece = self.rfile.read(min(left, 65536))
                file.write(piece)
                left -= len(piece)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


def curl(*arguments):
    """Megabytes a second of a transfer."""
    form = "%{size_download} %{size_upload} %{time_total}"
    done = subprocess.run(["curl", "-sS", "-f", "-o", os.devnull, "-w", form, *arguments],
                          check=True, capture_output=True, text=True)
    down, up, seconds = map(float, done.stdout.split())
    return max(down, up) / seconds / 1e6


def download_again_and_again(url, count):
    """So many at a time, from the first byte on, until what is returned is called."""
    over = threading.Event()

    def load():
        while not over.is_set():
            curl(url)
    threads = [threading.Thread(target=load) for _ in range(count)]
    for thread in threads:
        thread.start()

    def stop():
        over.set()
        for thread in threads:
            thread.join()
    return stop


class Pair:
    """Two who talk: how long a message takes from one to the other."""

    def __init__(self, port):
        self.ann, self.bob = (harness.RawClient(port, auto_ack=True) for _ in range(2))
        self.ann.join("pair-a")
        self.bob.join("pair-b")

    def p50(self, count=300, every=0.01):
        """Milliseconds, of `count` messages."""
        times = []
        for number in range(count):
            text = f"{time.monotonic()}"
            started = time.perf_counter()
            self.ann.say(text)
            self.bob.recv_until("chat", text=text)
            times.append(1000 * (time.perf_counter() - started))
            self.ann.recv_until("chat", text=text)
            time.sleep(every)
        return statistics.median(times)


def measure(folder, megabytes):
    """Print the figures."""
    size = megabytes * 1_000_000
    source = folder / "source"
    with open(source, "wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1_000_000))
    bare = subprocess.Popen([sys.executable, "-c", BARE], cwd=folder, stdout=subprocess.PIPE)
    bare_url = f"http://127.0.0.1:{int(bare.stdout.readline())}"
    server = harness.start_server("--rate", "0", "--bind", "127.0.0.1", "--files", folder / "files",
                                  "--max-file", 2 * megabytes, "--max-files", 20 * megabytes)
    ann = harness.RawClient(server.port, auto_ack=True)
    ann.join("ann")
    up, url = Uploader(server.port, ann), f"http://127.0.0.1:{server.port}"
    before, most = server.memory(), [0]
    done = threading.Event()

    def watch():
        while not done.wait(0.02):
            most[0] = max(most[0], server.memory())
    watcher = threading.Thread(target=watch)
    watcher.start()
    rounds = {"bare down": [], "down": [], "bare up": [], "up": []}
    path = ""
    for _ in range(3):
        rounds["bare up"].append(curl("-T", str(source), bare_url))
        os.unlink(folder / "up")
        path = up.start("source")
        rounds["up"].append(curl(
            "-T", str(source), "-H", f"X-Roger-Session: {ann.welcome['session']}", "-H",
            f"Content-Range: bytes 0-{size - 1}/{size}", url + path))
        up.say(json.loads(up.put(path, b"", 0, size)[1]))
        rounds["bare down"].append(curl(f"{bare_url}/source"))
        rounds["down"].append(curl(url + path))
    for kind in ("down", "up"):
        ours, theirs = (statistics.median(rounds[each]) for each in (kind, f"bare {kind}"))
        print(f"{kind}: {ours:.0f} MB/s, bare http.server {theirs:.0f} MB/s: {ours / theirs:.2f}")
    print(f"memory: {(most[0] - before) / 1e6:+.1f} MB at most, of {before / 1e6:.1f}", flush=True)
    pair = Pair(server.port)
    alone = pair.p50()
    stop_loads = download_again_and_again(url + path, 10)
    busy = pair.p50()
    most_with_ten = max(most[0], server.memory())
    stop_loads()
    done.set()
    watcher.join()
    print(f"p50 of a pair: {alone:.2f} ms alone, {busy:.2f} ms beside ten downloads: "
          f"{busy / alone:.1f} times; memory then {(most_with_ten - before) / 1e6:+.1f} MB")
    server.kill()
    bare.kill()
    bare.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    arguments = parser.parse_args()
    assert http.server and shutil.which("curl"), "needs curl"
    folder = pathlib.Path(tempfile.mkdtemp(prefix="roger-bench-"))
    try:
        measure(folder, arguments.megabytes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
