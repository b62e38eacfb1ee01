"""What the end-to-end tests share: a real server process, and a client that sends whatever bytes a test wants.

    server = start_server("--rate", "0")        # python chat_server.py 0 --rate 0
    ann = RawClient(server.port)
    ann.join("ann")
    ann.say("hello")
    ann.recv_until("chat", text="hello")
    server.stop()

Nothing here sleeps. Every wait ends with what it waits for; TIMEOUT is only reached when a test fails. RawClient
acknowledges nothing by itself (`auto_ack=True` changes that): the server sends again after 2 s and gives up after 8 s.
"""

import atexit
import contextlib
import json
import os
import pathlib
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parent.parent
TIMEOUT = 30.0                 # seconds; see above
# The same as the files, but compiled only once (see conftest.py); to be run in ROOT. Some tests run the files themselves.
SERVER = [sys.executable, "-m", "chat_server"]
CLIENT = [sys.executable, "-m", "chat_client"]


# --- The server ---

class ServerProcess:
    """A running chat_server.py: `port`, `process`, and `lines`, what it has printed on stdout so far."""

    def __init__(self, process, errors):
        self.process = process
        self.lines = []
        self.port = 0
        self._errors = errors                           # a file: whole as soon as the server has written
        self._first = queue.Queue()                     # the first line, or "" for the end of stdout
        self._reader = threading.Thread(target=self._read, name="server stdout", daemon=True)  # ends with the process
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if len(self.lines) == 1:
                self._first.put(line)
        self._first.put("")

    def wait_for_port(self):
        """Take the port from the first line; raise AssertionError with what the server says when there is none."""
        line = self._first.get(timeout=TIMEOUT)
        found = re.search(r":(\d+)\s*$", line)
        if found is None:
            self.stop()
            raise AssertionError(f"the server did not start: {line!r} {self.stderr_text()}")
        self.port = int(found[1])

    def stderr_text(self):
        """What the server has written to stderr so far."""
        with open(self._errors.name, encoding="utf-8", errors="replace") as file:
            return file.read()

    def assert_healthy(self):
        """The server runs, and has met no bug of its own."""
        text = self.stderr_text()
        assert self.process.poll() is None, f"the server ended with {self.process.returncode}: {text}"
        assert "Traceback" not in text, text
        assert not re.search(r"\bbug\b", text), text

    def stop(self):
        """End the server as an operator does (kill it when that fails) and return its exit code; may be called twice."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        self.process.stdout.close()
        return self.process.returncode

    def kill(self):
        """End the server as a power cut does; stop() afterwards tidies up."""
        self.process.kill()
        self.process.wait(TIMEOUT)


def start_server(*args, env=None, port=0):
    """Start `chat_server.py PORT *args` with this Python and wait until it listens; `env` is added to the environment."""
    errors = tempfile.NamedTemporaryFile("w", prefix="roger-", suffix=".stderr", delete=False)
    atexit.register(pathlib.Path(errors.name).unlink, missing_ok=True)      # not earlier: stderr_text() is asked after stop(), too
    with errors:
        process = subprocess.Popen(
            [*SERVER, str(port), *map(str, args)], cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=errors, env={**os.environ, "PYTHONIOENCODING": "utf-8", **(env or {})},
            encoding="utf-8", errors="replace")
    server = ServerProcess(process, errors)
    server.wait_for_port()
    return server


@contextlib.contextmanager
def serving(*args, **options):
    """A server for the time of a `with`. At its end it has to be well; it is killed: faster, and stopping is tested elsewhere."""
    server = start_server(*args, **options)
    try:
        yield server
        server.assert_healthy()
    finally:
        server.kill()
        server.stop()


def heed_interrupts():
    """In the new process: a background job of a shell, which pytest may be, has SIGINT ignored, and hands that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# --- The client ---

def encode(fields):
    """A frame in UTF-8; one with lone surrogates, which UTF-8 cannot hold, in ASCII with escapes."""
    try:
        line = json.dumps(fields, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        line = json.dumps(fields).encode("ascii")
    return line + b"\n"


def receive(sock):
    """What comes next, never nothing. Raises EOFError when the server has closed, socket.timeout when nothing comes."""
    try:
        data = sock.recv(65536)
    except ConnectionError as error:
        raise EOFError("the connection was reset") from error
    if not data:
        raise EOFError("the server closed the connection")
    return data


class RawClient:
    """A connection to the server that says exactly what a test tells it to. `frames` holds all that was received."""

    def __init__(self, port, host="127.0.0.1", auto_ack=False):
        self.name = ""
        self.welcome = None
        self.frames = []
        self.next_id = 1
        self.auto_ack = auto_ack
        self._partial = b""
        self._sock = socket.create_connection((host, port), timeout=TIMEOUT)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)       # an ACK and a chat are two small writes

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def send(self, data):
        """Send bytes as they are, or a dict as a frame."""
        if isinstance(data, dict):
            data = encode(data)
        self._sock.sendall(data)

    def recv(self):
        """The next frame as a dict. Raises EOFError when the server has closed, socket.timeout when nothing comes."""
        while b"\n" not in self._partial:
            self._partial += receive(self._sock)
        line, _, self._partial = self._partial.partition(b"\n")
        frame = json.loads(line.decode("utf-8"))
        self.frames.append(frame)
        if self.auto_ack and frame["type"] not in ("ack", "welcome", "heard") and "id" in frame:
            self.ack(frame["id"])
        return frame

    def recv_until(self, type, **fields):
        """The next frame of that type with those fields; what comes before it is skipped (and is in `frames`)."""
        while True:
            frame = self.recv()
            if frame["type"] == type and all(frame.get(key) == value for key, value in fields.items()):
                return frame

    def join(self, name, **fields):
        """Join and return the welcome; raises AssertionError when the server refuses."""
        self.send({"type": "join", "name": name, **fields})
        frame = self.recv()
        while frame["type"] != "welcome":
            assert frame["type"] != "error", frame
            frame = self.recv()
        self.name, self.welcome = frame["name"], frame
        self.next_id = max(self.next_id, frame.get("got", 0) + 1)
        return frame

    def say(self, text, **fields):
        """Send a chat under the next id and return that id."""
        id = self.next_id
        self.next_id += 1
        self.send({"type": "chat", "id": id, "text": text, **fields})
        return id

    def ack(self, id):
        """Confirm the server's frames up to `id`."""
        self.send({"type": "ack", "id": id})

    def eof(self):
        """Read to the end: True when the server closed the connection, False when it did not within TIMEOUT."""
        try:
            while True:
                self.recv()
        except EOFError:
            return True
        except socket.timeout:
            return False

    def close(self):
        """Close the connection without a word; may be called twice."""
        self._sock.close()
