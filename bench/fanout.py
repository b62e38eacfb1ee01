#!/usr/bin/env python3
"""How fast is Roger, and what would others do with the same load? Needs nothing but Python 3.9 or
newer.

    python bench/fanout.py                      # all workloads; --quick: a look, within a minute
    python bench/fanout.py --curves             # and how cost grows with members, speakers, texts
    python bench/fanout.py --json results.json --markdown RESULTS.md --svg results.svg

Starts each server on a free port of this machine, fills it with members from another process
(driver.py), and lets them speak: at most `window` messages are under way until every member has
heard them. A window of 1 shows latency and what a single message costs, 64 shows throughput.
Compared with a bare send loop and an asyncio chat (peers.py), with ngIRCd and mosquitto where they
are installed, and with a send loop in C (fanout_limit.c, no part of this repository) where --tools
names its folder. report.py makes the table, page and plot.

The exit code is 1 when a message was lost, doubled or out of order, or a server failed: each is in
the table. CPU, memory and wake-ups of a server are known on Linux only; elsewhere they are "-". One
thread here, but for the one that feeds a client.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import pathlib
import platform
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from typing import Callable, NamedTuple

try:
    import fcntl
    import pty
    import termios
except ImportError:             # Windows
    pty = None

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
# This is also for the processes that multiprocessing starts.
sys.path[:0] = [str(HERE), str(ROOT)]

import chat_server                              # noqa: E402
import driver                                   # noqa: E402
import report                                   # noqa: E402

# Seconds that a server may take to start.
START = 20.0
# Messages that a client is sent; a multiple of 32, so that its last ACK is not late.
FEED = 64_000
# Nothing is inherited: a driver's pipe ends with this process.
SPAWN = multiprocessing.get_context("spawn")


def progress(text):
    """What is going on, for who waits."""
    print(text, file=sys.stderr, flush=True)


def proc(file):
    """The text of a file in /proc; "" where there is none."""
    try:
        return pathlib.Path("/proc", file).read_text()
    except OSError:
        return ""


# --- The servers ---

class Server(NamedTuple):
    """One to measure. `command(port, folder)` is its command line; the folder is for what it needs
    on disk."""

    name: str
    command: Callable
    protocol: str = "json"
    acks: bool = True
    # The most members, and the longest texts in bytes, that are tried.
    most: int = 10**6
    longest: int = 10**6


def ngircd(port, folder):
    (folder / "conf").write_text(
        f"[Global]\nName = irc.test\nInfo = bench\nListen = 127.0.0.1\nPorts = {port}\n"
        "[Limits]\nMaxConnections = 0\nMaxConnectionsIP = 0\nMaxPenaltyTime = 0\n"
        "[Options]\nDNS = no\nIdent = no\nPAM = no\n[Channel]\nName = #c\nMaxUsers = 0\n")
    return ["ngircd", "-n", "-f", folder / "conf"]


def mosquitto(port, folder):
    user = "user root\n" if getattr(os, "getuid", lambda: 1)() == 0 else ""
    (folder / "conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n{user}")
    return ["mosquitto", "-c", folder / "conf"]


def with_tls(server, option):
    """The same server with a certificate of its own behind an option."""
    def command(port, folder):
        chat_server.keep_certificate(str(folder / "server.pem"), ["localhost"], ["127.0.0.1"],
                                     time.time())
        return [*server.command(port, folder), *option, folder / "server.pem"]
    return server._replace(name=f"{server.name}, TLS", command=command, protocol="tls")


ROGER = Server("Roger", lambda port, _: [sys.executable, ROOT / "chat_server.py", port, "--rate",
                                         "0", "--bind", "127.0.0.1"])
BARE = Server("bare loop", lambda port, _: [sys.executable, HERE / "peers.py", "bare", port],
              acks=False)
ASYNCIO = Server("asyncio", lambda port, _: [sys.executable, HERE / "peers.py", "asyncio", port],
                 acks=False)
# It admits 14 a second; a line has 512 bytes.
NGIRCD = Server("ngircd", ngircd, "irc", acks=False, most=100, longest=400)
MOSQUITTO = Server("mosquitto", mosquitto, "mqtt")


def c_loop(tools, folder):
    """fanout_limit.c of that folder, compiled, as a server; None where that cannot be."""
    compiler, source = shutil.which("cc"), os.path.join(tools, "fanout_limit.c")
    program = os.path.join(folder, "fanout_limit")
    if not compiler or subprocess.run([compiler, "-O2", "-w", "-o", program, source]).returncode:
        return progress(f"{source}: not compiled, skipped")
    return Server("C loop", lambda port, _: [program, port], acks=False)


class Running:
    """A server's process: its port, and what it uses. nan where that cannot be known."""

    def __init__(self, port, process):
        self.port, self.process = port, process

    def cpu(self):
        """Seconds of CPU so far."""
        try:
            # The clock of that process, see clock_getcpuclockid(3).
            return time.clock_gettime(~self.process.pid << 3 | 2)
        except (AttributeError, OSError):
            return math.nan

    def memory(self):
        """Resident KB."""
        found = re.search(r"VmRSS:\s+(\d+)", proc(f"{self.process.pid}/status"))
        return int(found[1]) if found else math.nan

    def wakeups(self):
        """How often its threads have been woken so far."""
        files = pathlib.Path("/proc").glob(f"{self.process.pid}/task/*/status")
        found = (re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", proc(file)) for file in files)
        return sum(int(one[1]) for one in found if one) or math.nan


@contextlib.contextmanager
def child(command, **more):
    """The process of a command; gone at the end, however it comes."""
    process = subprocess.Popen([str(word) for word in command], **more)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def started(server):
    """A Running server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, null = listener.getsockname()[1], subprocess.DEVNULL
    with tempfile.TemporaryDirectory(prefix="fanout-") as folder, \
            child(server.command(port, pathlib.Path(folder)), stdin=null, stdout=null,
                  stderr=null) as process:
        until = time.monotonic() + START
        while time.monotonic() < until and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        # If it does not answer, the members find no server.
        yield Running(port, process)


# --- One load ---

class Load:
    """Members of one server, in another process: all have joined. begin() lets them speak, end()
    says what was measured."""

    def __init__(self, running, pipe, members, before):
        self.running, self.pipe = running, pipe
        self.usage = {"joined": pipe.recv(), "memory": (running.memory() - before) / members}

    def begin(self):
        """Let them speak."""
        self.cpu, self.machine, self.since = self.running.cpu(), machine_cpu(), time.monotonic()
        self.pipe.send("speak")

    def end(self):
        """Let them hear all; return the figures."""
        self.pipe.send("stop")
        row = self.pipe.recv()
        cpu, took = self.running.cpu() - self.cpu, time.monotonic() - self.since
        others = (machine_cpu() - self.machine - cpu
                  - row["driver_cpu"]) / took / (os.cpu_count() or 1)
        return {**row, **self.usage, "rate": row["deliveries"] / row["seconds"],
                "cpu": cpu / max(1, row["deliveries"]) * 1e6,
                "core": cpu / took, "others": max(0.0, others)}


@contextlib.contextmanager
def loaded(running, **load):
    """A Load; gone at the end."""
    spec, before = driver.Spec(port=running.port, **load), running.memory()
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=driver.drive, args=(spec, theirs), daemon=True)
    try:
        process.start()
        theirs.close()
        yield Load(running, ours, spec.members + spec.deaf, before)
    finally:
        process.kill()
        process.join()


def machine_cpu():
    """Seconds that all cores together have worked so far, nan where it cannot be known."""
    ticks = [int(field) for field in proc("stat").partition("\n")[0].split()[1:8]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK") if ticks else math.nan


# --- The workloads: each is a function of the options that yields rows ---

def measure(options, title, server=None, **load):
    """One server, one load: a row."""
    server, load = server or ROGER, {"speakers": 1, "window": 1, "size": 64, "late": 32, **load}
    row = {"workload": title, "server": server.name, **load,
           "members": load["members"] + load.get("deaf", 0)}
    load["late"] *= server.acks
    try:
        with started(server) as running, loaded(running, protocol=server.protocol,
                                                **load) as members:
            members.begin()
            progress(f"  {server.name}: {load['members']} members, speaking ...")
            time.sleep(options.seconds)
            return {**row, **members.end()}
    except (EOFError, OSError) as error:
        # The driver said more on stderr.
        return {**row, "error": f"failed: {error!r}"}


def fanout(title, small=False, peers=True, **load):
    """Members hear what speakers say, at each of the servers; `small`: also 100 of them."""
    def run(options):
        for members in sorted({min(100, options.members), options.members} if small
                              else {options.members}):
            for server in options.servers if peers else [ROGER]:
                if members <= server.most and load.get("size", 64) <= server.longest:
                    yield measure(options, title, server, members=members, **load)
    return run


def tls(options):
    """What encryption costs Roger and a bare loop: the same without and with it, in turn."""
    encrypted = with_tls(BARE, []), with_tls(ROGER, ["--cert"])
    for window in (1, 64):
        for server in (BARE, ROGER, *encrypted) * 3:
            yield measure(options, f"TLS, window {window}", server, members=options.members,
                          window=window)


def large(options):
    """As many as the server takes: one message at a time."""
    if options.large:
        yield measure(options, "window 1", members=options.large)


def storm(options):
    """Newcomers join while 50 messages a second go round among 100 members."""
    spec = {"protocol": "json", "members": min(100, options.members), "speakers": 1, "rate": 50}
    row = {"server": ROGER.name, "members": spec["members"]}
    with started(ROGER) as running, loaded(running, **spec) as load:
        load.begin()
        time.sleep(2 * options.seconds)
        yield {**row, "workload": "50 messages/s", **load.end()}
    with started(ROGER) as running, loaded(running, **spec) as load:
        load.begin()
        with loaded(running, protocol="json", members=options.members, prefix="s",
                    settle=False) as newcomers:
            # These hold the newcomers' share.
            figures = {**load.end(), **newcomers.usage, "cpu": None, "others": None}
            yield {**row, "workload": f"50 messages/s, {options.members:,} join", **figures}


def deaf(options):
    """Ten never read; what do the others notice?"""
    for window in (1, 64):
        for title, count in (("all read", 0), ("10 never read", 10)):
            yield measure(options, f"window {window}, {title}", members=options.members - count,
                          deaf=count, window=window)


def idle(options):
    """Nobody says anything."""
    with started(ROGER) as running, loaded(running, protocol="json",
                                           members=options.members) as load:
        # Late ACKs and the deadlines of joins are due.
        time.sleep(3)
        cpu, wakeups, since = running.cpu(), running.wakeups(), time.monotonic()
        # That is time for two rounds of pings.
        time.sleep(31 * options.seconds)
        seconds = time.monotonic() - since
        yield {"workload": "idle", "server": ROGER.name, "members": options.members, **load.usage,
               "core": (running.cpu() - cpu) / seconds,
               "wakeups": (running.wakeups() - wakeups) / seconds}


def curve(title, key, values):
    """How cost grows with one thing."""
    def run(options):
        for value in values:
            load = {"members": min(300, options.members), key: value}
            if load["members"] <= max(options.members, options.large):
                for window in (1, 64):
                    row = measure(options, f"{title}: {value:,}, window {window}", window=window,
                                  **load)
                    yield {**row, "curve": title, "at": value}
    return run


# --- The clients ---

TAKER = """
import sys, chat_client
def hear(message):
    heard.append(message.id)
    if message.text == "LASTMESSAGE":
        print(message.text, message.id - len(set(heard)), len(heard) - len(set(heard)),
              sum(map(int.__gt__, heard, heard[1:])))
heard = []
chat_client.ChatClient("127.0.0.1", int(sys.argv[1]), on_message=hear).connect()
sys.stdin.read()
"""


def feed(listener, times):
    """On a thread of its own: be a server that sends FEED messages at once; put into `times` when
    it began."""
    sock = listener.accept()[0]
    sock.recv(65536)                                        # the join
    text = '{"type":"chat","id":%d,"from":"ann","at":1.5,"text":"%s"}\n'
    texts = [f"{i:08}".ljust(64, "x") for i in range(1, FEED)] + ["LASTMESSAGE"]
    sock.sendall(
        b'{"type":"welcome","name":"bench","session":"s","epoch":"e","users":["bench","ann"],'
        b'"last":0,"resumed":false,'
                 b'"got":0,"missed":0}\n')
    data = "".join(text % (i, one) for i, one in enumerate(texts, 1)).encode()
    times.append(time.monotonic())
    # It is a client that gave up.
    with contextlib.suppress(OSError):
        sock.sendall(data)
        while sock.recv(65536):
            pass


def clients(options):
    """Messages a second that a client takes in, and that one draws on a terminal of 24 rows."""
    if pty is None:
        return progress("  this system has no pseudo-terminal, skipped")
    for name, command in ("ChatClient",
                          ["-c", TAKER]), ("chat_client.py",
                                           ["chat_client.py", "-n", "bench", "127.0.0.1"]):
        times, (master, slave) = [], pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            # It ends with the client.
            threading.Thread(target=feed, args=(listener, times), name="feed", daemon=True).start()
            with child([sys.executable, *command, str(listener.getsockname()[1])], stdin=slave,
                       stdout=slave, stderr=slave,
                       cwd=ROOT, env={**os.environ, "TERM": "xterm"}, start_new_session=True):
                os.close(slave)
                drawn = b""
                while (b"LASTMESSAGE" not in drawn
                       and select.select([master], [], [], driver.STALL)[0]):
                    drawn = drawn[-64:] + os.read(master, 65536)
                seconds, found = time.monotonic() - times[0], re.search(
                    rb"LASTMESSAGE(?: (\d+) (\d+) (\d+))?", drawn)
        os.close(master)
        wrong = [int(one or 0) for one in found.groups()] if found else [FEED, 0, 0]
        yield {"workload": "a client hears all", "server": name, "rate": FEED / seconds,
               **dict(zip(("lost", "doubled", "reordered"), wrong))}


WORKLOADS = {
    "window-1": fanout("window 1", small=True, window=1),
    "window-64": fanout("window 64", small=True, window=64),
    "speakers": fanout("8 speakers, window 64", speakers=8, window=64),
    "bytes": fanout("1,000 bytes, window 64", size=1000, window=64),
    "acks": fanout("ACKs at once, window 1", peers=False, window=1, late=1),
    "storm": storm, "deaf": deaf, "idle": idle, "clients": clients, "large": large,
    "tls": tls,
}
CURVES = {
    "curve-members": curve("members", "members", (10, 30, 100, 300, 1000, 3000, 10_000)),
    "curve-speakers": curve("speakers", "speakers", (1, 4, 16, 64)),
    "curve-bytes": curve("bytes", "size", (16, 64, 256, 1024, 8192)),
}


def rows_of(name, options):
    """The rows of a workload; when it fails the last one says so."""
    try:
        yield from {**WORKLOADS, **CURVES}[name](options) or ()
    except (EOFError, OSError) as error:
        # The driver said more on stderr.
        yield {"workload": name, "server": ROGER.name, "error": f"failed: {error!r}"}


# --- The command line ---

def arguments(argv):
    """What was asked for."""
    parser = argparse.ArgumentParser(description="Measure Roger, and others with the same load.")
    add = parser.add_argument
    add("--quick", action="store_true",
        help="0.4 s a measurement, not 2; 50 members; none of 10,000")
    add("--seconds", type=float, help="seconds a measurement")
    add("--members", type=int, help="instead of 1,000; at least 11, as ten of them never read")
    add("--large", type=int, help="instead of 10,000; 0: leave that out")
    add("--curves", action="store_true",
        help="also how cost grows with members, speakers and bytes")
    add("--workload", action="append", choices=[*WORKLOADS, *CURVES],
        help="only this; can be given again")
    add("--no-peers", action="store_true", help="Roger alone")
    add("--tools", metavar="DIR", default=os.environ.get("ROGER_TOOLS"),
        help="where fanout_limit.c is (ROGER_TOOLS)")
    for kind in ("json", "markdown", "svg"):
        add(f"--{kind}", metavar="FILE", type=pathlib.Path, help="write there, too")
    options = parser.parse_args(argv)
    for key, quick, full in (("seconds", 0.4, 2.0), ("members", 50, 1000), ("large", 0, 10_000)):
        if getattr(options, key) is None:
            setattr(options, key, quick if options.quick else full)
    most = driver.raise_limit() - 100
    if max(options.members, options.large) > most:
        progress(
            f"a process may have {most + 100} descriptors here (ulimit -n): only so many members")
        options.members, options.large = min(most, options.members), min(most, options.large)
    options.todo = [*(options.workload or WORKLOADS), *(CURVES if options.curves else [])]
    return options


def peers(options, folder):
    """The servers to compare with."""
    if options.no_peers:
        return []
    loop = c_loop(options.tools, folder) if options.tools else None
    missing = [server for server in (NGIRCD, MOSQUITTO) if not shutil.which(server.name)]
    for server in missing:
        progress(f"{server.name}: not installed, skipped")
    return [server for server in (BARE, ASYNCIO, loop, NGIRCD, MOSQUITTO) if server
            and server not in missing]


def output(*command):
    """The first line of what a command says, "" where that fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True)
        return done.stdout.partition("\n")[0]
    except OSError:
        return ""


def machine(options):
    """Where this was measured, and with what."""
    model = re.search(r"model name\s*:\s*(.+)", proc("cpuinfo"))
    return {"command": " ".join(["python", *sys.argv]), "when": time.strftime("%Y-%m-%d %H:%M"),
            "system": platform.platform(),
            "processor": f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores",
            "load average before": "%.1f, %.1f, %.1f" % os.getloadavg() if hasattr(os, "getloadavg")
            else "unknown",
            "Python": platform.python_version(),
            "Roger": output("git", "describe", "--always", "--dirty") or "of no git clone",
            **{server.name: output(server.name, "--version" if server is NGIRCD else "-h")
               for server in options.servers if server in (NGIRCD, MOSQUITTO)}}


def finish(row, rows):
    """Add what follows from several figures."""
    def load(row):
        return [row.get(key) for key in ("members", "window", "speakers", "size")]
    for key, name in (("of_bare", BARE.name), ("of_c", "C loop")):
        base = next((one for one in rows if one["server"] == name and load(one) == load(row)
                     and one.get("rate")), None)
        if base and "rate" in row:
            row[key], row[f"{key}_driver"] = row["rate"] / base["rate"], max(
                row["driver"], base["driver"])
    wrong = [row.get(key, 0) for key in ("lost", "doubled", "reordered")]
    row["wrong"] = row.get("error") or ("/".join(map(str, wrong)) if "lost" in row else None)
    row["bad"] = "error" in row or any(wrong)


def write(options, about, rows):
    """The files that were asked for."""
    if options.json:
        clean = [{key: None if value != value else value for key, value in row.items()}
                 for row in rows]
        options.json.write_text(json.dumps({"machine": about, "rows": clean}, indent=1) + "\n",
                                encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(report.page(rows, about, options.svg and options.svg.name),
                                    encoding="utf-8")
    if options.svg:
        options.svg.write_text(report.svg(rows), encoding="utf-8")


def main(argv=None):
    """Run, print and write."""
    # So that no process outlives us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = arguments(argv)
    with tempfile.TemporaryDirectory(prefix="fanout-") as folder:
        options.servers = [ROGER, *peers(options, folder)]
        rows, about = [], machine(options)
        for number, name in enumerate(options.todo, 1):
            progress(f"[{number}/{len(options.todo)}] {name}")
            for row in rows_of(name, options):
                rows.append(row)
                # What a row is compared with may come after it.
                for one in rows:
                    finish(one, rows)
                progress("  " + ", ".join(f"{title} {text}" for title, text in report.figures(row)))
    print(report.table(rows))
    write(options, about, rows)
    return int(any(row["bad"] for row in rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
