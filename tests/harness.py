"""What the end-to-end tests share: a real server process, a client that sends whatever bytes a test
wants, and waiting.

    server = start_server("--rate", "0")        # python chat_server.py 0 --rate 0
    ann = RawClient(server.port)
    ann.join("ann")
    ann.say("hello")
    ann.recv_until("chat", text="hello")
    server.stop()

conftest.py has the fixtures `serve`, `peer`, `popen` and `impatient` that make these and tidy up.
Beside this file: webclient.py (a RawClient over a WebSocket), crowd.py (many clients that one loop
serves), witness.py (ChatClients, and the judge of what they heard), proxy.py (what breaks
connections), program.py (processes on a pseudo-terminal).

Nothing here sleeps. Every wait ends with what it waits for; TIMEOUT is only reached when a test
fails. RawClient acknowledges nothing by itself (`auto_ack=True` changes that): the server sends
again after 2 s and gives up after 8 s.
"""

import atexit
import contextlib
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Seconds; see above.
TIMEOUT = 30.0
# The same as the files, but compiled only once (see conftest.py); to be run in ROOT. Some tests
# run the files themselves.
SERVER = [sys.executable, "-m", "chat_server"]
CLIENT = [sys.executable, "-m", "chat_client"]
# For every process that is started: its pipes are read as UTF-8.
ENVIRONMENT = {**os.environ, "PYTHONIOENCODING": "utf-8"}
# A server that is killed leaves its temporary folder behind: they are all in here.
SERVERS_TEMP = tempfile.mkdtemp(prefix="roger-servers-")
atexit.register(shutil.rmtree, SERVERS_TEMP, ignore_errors=True)

posix_only = pytest.mark.skipif(os.name != "posix",
                                reason="needs POSIX signals, limits and terminals")
needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks into /proc")


# --- Waiting ---

def wait_until(predicate, seconds=TIMEOUT, what="what was waited for did not happen"):
    """Return what `predicate()` returns as soon as that is true; AssertionError after `seconds`.

    For what happens on other threads and in other processes. `what` may be a function.
    """
    deadline, tick = time.monotonic() + seconds, threading.Event()
    while not (result := predicate()):
        assert time.monotonic() < deadline, what() if callable(what) else what
        tick.wait(0.01)
    return result


# --- The server ---

class ServerProcess:
    """A running chat_server.py: `port`, `process`, and `lines`, what it has printed on stdout so
    far. It can be killed and started again on its port, and says what /proc knows of it."""

    def __init__(self, command, env=None, files=None):
        errors = tempfile.NamedTemporaryFile(prefix="roger-", suffix=".stderr", delete=False)
        errors.close()
        # Not removed earlier: stderr_text() is asked after stop(), too.
        atexit.register(pathlib.Path(errors.name).unlink, missing_ok=True)
        self._errors = errors.name
        self._command = command
        self._env = {**ENVIRONMENT, **(env or {})}
        self._files = files
        self.port = 0
        self.start()

    def start(self):
        """Start it (again: on the port that it had) and wait until it listens."""
        program, _, *arguments = self._command
        with open(self._errors, "ab") as errors:
            self.process = subprocess.Popen(
                [*program, str(self.port or self._command[1]), *arguments], cwd=ROOT,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=self._env,
                encoding="utf-8", errors="replace",
                preexec_fn=self._limit_files if self._files else None)
        self.lines = []
        # The first line, or "" for the end of stdout.
        self._first = queue.Queue()
        # It ends with the process.
        self._reader = threading.Thread(target=self._read, args=(self.process, self.lines),
                                        name="server stdout", daemon=True)
        self._reader.start()
        self._wait_for_port()

    def _limit_files(self):
        """In the new process."""
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._files, self._files))

    def _read(self, process, lines):
        first = self._first
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if len(lines) == 1:
                first.put(line)
        first.put("")

    def _wait_for_port(self):
        """Take the port from the first line; AssertionError with what it says when there is
        none."""
        line = self._first.get(timeout=TIMEOUT)
        found = re.search(r":(\d+)\s*$", line)
        if found is None:
            self.stop()
            raise AssertionError(f"the server did not start: {line!r} {self.stderr_text()}")
        self.port = int(found[1])

    def printed(self, words):
        """Wait for a line on stdout with these words; return what follows them."""
        return wait_until(lambda: next((line for line in list(self.lines) if words in line), None),
                          what=lambda: f"no {words!r} in {self.lines}").partition(words)[2]

    def stderr_text(self):
        """What the server has written to stderr so far, in all its runs."""
        return pathlib.Path(self._errors).read_text(encoding="utf-8", errors="replace")

    def wait_for_error(self, words):
        """Wait for a line on stderr with these words; return it."""
        return wait_until(lambda: next((line for line in self.stderr_text().splitlines()
                                        if words in line), None),
                          what=lambda: f"no {words!r} in {self.stderr_text()}")

    def assert_no_bug(self):
        """The server has met no bug of its own."""
        text = self.stderr_text()
        assert not re.search(r"Traceback|\bbug\b", text), text

    def assert_healthy(self):
        """The server runs, and has met no bug of its own."""
        code = self.process.poll()
        assert code is None, f"the server ended with {code}: {self.stderr_text()}"
        self.assert_no_bug()

    def stop(self):
        """End the server as an operator does (kill it when that fails) and return its exit code;
        may be called twice."""
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
        """End the server as a power cut does; start() brings it back. May be called twice."""
        self.process.kill()
        self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        self.process.stdout.close()

    # What /proc knows.

    def threads(self):
        return self._status("Threads")

    def memory(self):
        """Resident bytes."""
        return self._status("VmRSS") * 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu(self):
        """Seconds of CPU used so far."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def at_rest(self, descriptors):
        """Whether nothing is left of connections: main, accept, sequencer, maybe the alarm, and
        as many descriptors."""
        return self.threads() <= 4 and self.descriptors() == descriptors

    def _status(self, key):
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(key + ":"))


def sockets_of(system):
    """The environment in which a Python process on Linux has sockets like those of "windows",
    "macos" or "pypy": othersystems/sitecustomize.py says which differences that makes. None: as
    they are."""
    if system is None:
        return ENVIRONMENT
    return {**ENVIRONMENT, "ROGER_SOCKETS": system,
            "PYTHONPATH": str(ROOT / "tests" / "othersystems")}


def start_server(*args, env=None, port=0, files=None, program=None, sockets=None, found=False):
    """Start `chat_server.py PORT *args` with this Python and wait until it listens.

    `env` is added to the environment, `files` limits the descriptors, `program` is what Python is
    to run in place of the server's module: arguments such as ("-c", SOURCE). `sockets` is the
    system whose sockets it is to have, as in sockets_of(). Tests leave the LAN alone, so it does
    not answer those who look for servers unless it is to be `found`.
    """
    if not found:
        args = ("--no-discovery", *args)
    env = {**sockets_of(sockets), **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), SERVERS_TEMP),
           **(env or {})}
    command = SERVER if program is None else [sys.executable, *program]
    return ServerProcess([command, port, *map(str, args)], env, files)


@contextlib.contextmanager
def serving(*args, **options):
    """A server for the time of a `with`. At its end it has to be well; it is killed, which is
    faster than to stop it, and stopping is tested elsewhere."""
    server = start_server(*args, **options)
    try:
        yield server
        server.assert_healthy()
    finally:
        server.kill()


def run_server(*args, program=("chat_server.py",)):
    """Run a server that is to end by itself; return its exit code and what it says on stderr."""
    done = run_python(*program, *args)
    return done.returncode, done.stderr


def run_python(*args, **options):
    """Run this Python with these arguments in ROOT, from its start to its end, on texts."""
    return subprocess.run([sys.executable, *map(str, args)], **{
        "cwd": ROOT, "stdin": None if "input" in options else subprocess.DEVNULL,
        "env": ENVIRONMENT,
        "capture_output": True, "encoding": "utf-8", "timeout": TIMEOUT, **options})


def heed_interrupts():
    """In the new process: a background job of a shell, which pytest may be, has SIGINT ignored,
    and hands that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def allow_files(count):
    """Let this process, and what it starts, open `count` files; skip the test where it may not."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"needs {count} descriptors")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


# --- The client, as a process in a pipe ---

def client_command(port, *arguments, name="pipe"):
    """The command of a client that joins the server on that port."""
    return [*CLIENT, "127.0.0.1", str(port), "-n", name, *arguments]


def run_client(port, *arguments, input=b"", name="pipe"):
    """A client in a pipe, from its start to its end, on bytes."""
    return subprocess.run(client_command(port, *arguments, name=name), input=input, cwd=ROOT,
                          capture_output=True, timeout=TIMEOUT, env=ENVIRONMENT)


# --- The client, by the byte ---

def encode(fields):
    """A frame in UTF-8; one with lone surrogates, which UTF-8 cannot hold, in ASCII with
    escapes."""
    try:
        line = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        line = json.dumps(fields).encode("ascii")
    return line + b"\n"


def frame(type, **fields):
    """A frame of that type."""
    return encode({"type": type, **fields})


def receive(sock):
    """What comes next, never nothing. Raises EOFError when the server has closed, socket.timeout
    when nothing comes."""
    try:
        data = sock.recv(65536)
    except ConnectionError as error:
        raise EOFError("the connection was reset") from error
    if not data:
        raise EOFError("the server closed the connection")
    return data


def shut(sock):
    """End both directions: the other end notices, and so does a thread that waits here."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def reset(sock):
    """Close `sock` with a RST."""
    form = "hh" if os.name == "nt" else "ii"
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(form, 1, 0))
    sock.close()


class RawClient:
    """A connection to the server that says exactly what a test tells it to. `frames` holds all
    that was received. With a `context` it is encrypted."""

    def __init__(self, port, host="127.0.0.1", auto_ack=False, context=None):
        self.name = ""
        self.welcome = None
        self.frames = []
        self.next_id = 1
        self.auto_ack = auto_ack
        self._partial = b""
        self._sock = socket.create_connection((host, port), timeout=TIMEOUT)
        # An ACK and a chat are two small writes.
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            self._sock = context.wrap_socket(self._sock)

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
        """The next frame as a dict. Raises EOFError when the server has closed, socket.timeout
        when nothing comes."""
        while b"\n" not in self._partial:
            self._partial += receive(self._sock)
        line, _, self._partial = self._partial.partition(b"\n")
        return self._received(json.loads(line.decode("utf-8")))

    def _received(self, frame):
        """Remember a frame, confirm it where that is asked for, and return it."""
        self.frames.append(frame)
        if self.auto_ack and "id" in frame and frame["type"] not in ("ack", "welcome", "heard"):
            self.ack(frame["id"])
        return frame

    def recv_until(self, type, **fields):
        """The next frame of that type with those fields; what comes before it is skipped (and is
        in `frames`)."""
        while True:
            frame = self.recv()
            if frame["type"] == type and fields.items() <= frame.items():
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
        return self.tell("chat", text=text, **fields)

    def tell(self, type, **fields):
        """Send a frame of that type under the next id and return that id."""
        id = self.next_id
        self.next_id += 1
        self.send({"type": type, "id": id, **fields})
        return id

    def ack(self, id):
        """Confirm the server's frames up to `id`."""
        self.send({"type": "ack", "id": id})

    def leave(self):
        """Leave on purpose, and be gone when this returns."""
        self.tell("leave")
        assert self.eof(), "the server did not close the connection"

    def texts(self, sender=None):
        """What was heard so far (of `sender`)."""
        return [frame["text"] for frame in self.frames
                if frame["type"] == "chat" and sender in (None, frame["from"])]

    def texts_until(self, text):
        """What is heard from now up to `text`."""
        heard = []
        while heard[-1:] != [text]:
            heard.append(self.recv_until("chat")["text"])
        return heard

    def eof(self):
        """Read to the end: True when the server closed the connection, False when it did not
        within TIMEOUT."""
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
