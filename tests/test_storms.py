"""Storms against the real server: crowds, vanishing connections, a lack of descriptors, slow members, signals.

The clients are raw sockets, all served by the test's own thread (Crowd). Nothing waits a fixed time for something to happen:
wait_until and Crowd.run look again until it has, and give up after `seconds`, which only a failure reaches.
ROGER_LONG=1 lets the storm of vanishing connections go on for ten seconds instead of one and a half.
"""

import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import chat_server  # noqa: E402
from chatproto import QUEUE_BYTES, QUEUE_FRAMES, WINDOW  # noqa: E402

STORM_SECONDS = 10 if os.environ.get("ROGER_LONG") else 1.5
MIB = 1024 * 1024

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks into /proc")
posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and limits")


# --- Helpers ---

def wait_until(predicate, seconds=20):
    """Return as soon as `predicate()` is true; fail after `seconds`."""
    deadline, tick = time.monotonic() + seconds, threading.Event()
    while not predicate():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        tick.wait(0.02)


def frame(type, **fields):
    return json.dumps({"type": type, **fields}, separators=(",", ":")).encode() + b"\n"


def reset(sock):
    """Close `sock` with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if os.name == "nt" else "ii", 1, 0))
    sock.close()


class Member:
    """A raw client: drops duplicates, acknowledges at once, keeps to the window, remembers what it heard."""

    def __init__(self, port, name):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)     # an ACK and a chat are two small writes
        self.port, self.name = port, name
        self.welcome = None
        self.errors = []                # bare ones: codes
        self.heard = []                 # numbered frames, each once
        self.chats = []                 # the texts among them
        self.seen = 0
        self.acks = True
        self.sent = self.acked = 0      # ids of its own frames
        self.ended = False
        self._todo = deque()
        self._partial = b""

    def join(self, **resume):
        self.sock.sendall(frame("join", name=self.name, **resume))

    def say(self, *texts, to=None):
        self._todo.extend((text, to) for text in texts)
        self._send()

    def names(self, type):
        return [message["name"] for message in self.heard if message["type"] == type]

    def readable(self):
        """Take what has come."""
        try:
            data = self.sock.recv(1 << 18)
        except ConnectionError:
            data = b""
        self.ended = not data
        *lines, self._partial = (self._partial + data).split(b"\n")
        before = self.seen
        for message in json.loads(b"[" + b",".join(lines) + b"]"):  # far faster than one by one
            self._take(message)
        try:
            if self.seen > before and self.acks:
                self.sock.sendall(frame("ack", id=self.seen))
            self._send()
        except ConnectionError:
            pass                        # the next recv() says so

    def _take(self, message):
        if message["type"] == "welcome":
            self.welcome = message
            self.sent = self.acked = message["got"]
        elif message["type"] == "ack":
            assert self.acked <= message["id"] <= self.sent
            self.acked = message["id"]
        elif "id" not in message:
            self.errors.append(message["code"])
        elif message["id"] > self.seen:
            self.seen = message["id"]
            self.heard.append(message)
            if message["type"] == "chat":
                self.chats.append(message["text"])

    def _send(self):
        out = []
        while self._todo and self.sent - self.acked < WINDOW:
            text, to = self._todo.popleft()
            self.sent += 1
            out.append(frame("chat", id=self.sent, text=text, **({"to": to} if to else {})))
        if out:
            self.sock.sendall(b"".join(out))


class Crowd:
    """Members and the one loop that serves them."""

    def __init__(self):
        self._selector = selectors.DefaultSelector()
        self._members = []

    def connect(self, port, *names):
        members = [Member(port, name) for name in names]
        for member in members:
            self.wake(member)
        self._members += members
        return members

    def join(self, port, *names):
        members = self.connect(port, *names)
        for member in members:
            member.join()
        self.run(lambda: all(member.welcome for member in members))
        return members

    def resume(self, member):
        """The same member on a new connection: it has what it had, and asks for what came after."""
        again, = self.connect(member.port, member.name)
        again.heard, again.chats, again.seen = list(member.heard), list(member.chats), member.seen
        again.join(session=member.welcome["session"], epoch=member.welcome["epoch"], seen=member.seen)
        self.run(lambda: again.welcome)
        assert again.welcome["resumed"] and again.welcome["missed"] == 0
        return again

    def run(self, until, seconds=20):
        """Serve everybody until `until()` is true; fail after `seconds`."""
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, "what was waited for did not happen"
            self.serve(0.02)

    def serve(self, seconds):
        """Serve those of whom something comes within `seconds`."""
        for key, _ in self._selector.select(max(0, seconds)):
            key.data.readable()
            if key.data.ended:
                self.stop_reading(key.data)

    def serve_until(self, when):
        """Serve everybody until the clock shows `when`: the pace of a storm, not a wait for anything."""
        while time.monotonic() < when:
            self.serve(when - time.monotonic())

    def wake(self, member):
        self._selector.register(member.sock, selectors.EVENT_READ, member)

    def stop_reading(self, member):
        self._selector.unregister(member.sock)

    def hang_up(self, *members):
        for member in members:
            if not member.ended:
                self.stop_reading(member)
            member.sock.close()

    def close(self):
        for member in self._members:
            member.sock.close()
        self._selector.close()


class Server:
    """chat_server.py as a process, and what /proc knows of it."""

    def __init__(self, log, *arguments, port=0, files=None, program=("-m", "chat_server")):
        def limit():
            import resource
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        self._log = log
        with open(log, "ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *program, str(port), "--bind", "127.0.0.1", *arguments], cwd=ROOT,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True,
                preexec_fn=limit if files else None)
        watchdog = threading.Timer(20, self.process.kill)
        watchdog.start()
        first = self.process.stdout.readline()
        watchdog.cancel()
        assert first.startswith("Listening on 127.0.0.1:"), first + self.log()
        self.port = int(first.rsplit(":", 1)[1])

    def log(self):
        with open(self._log, encoding="utf-8") as file:
            return file.read()

    def stop(self):
        self.process.kill()
        self.process.wait(20)
        self.process.stdout.close()

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
        """Whether nothing is left of connections: main, accept, sequencer, maybe the alarm, and as many descriptors."""
        return self.threads() <= 4 and self.descriptors() == descriptors

    def _status(self, key):
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(key + ":"))


@pytest.fixture
def crowd():
    crowd = Crowd()
    yield crowd
    crowd.close()


@pytest.fixture
def serve(tmp_path):
    """Start servers; at the end none of them may have logged a bug."""
    servers = []

    def start(*arguments, **options):
        servers.append(Server(str(tmp_path / f"stderr-{len(servers)}"), *arguments, **options))
        return servers[-1]
    yield start
    for server in servers:
        server.stop()
        assert "bug " not in server.log() and "Traceback" not in server.log()


def allow_files(count):
    """Let this process, and what it starts, open `count` files."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"needs {count} descriptors")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


# --- Crowds ---

@needs_proc
def test_thousand_members_join_talk_and_leave(serve, crowd):
    """1,000 members join at once, hear a message exactly once each, and leave nothing behind when they are gone; nor do
    those who come after them."""
    allow_files(2_500)
    server = serve("--grace", "0.1")
    descriptors = server.descriptors()
    memory = []
    for round, count in enumerate([1_000, 300, 300]):
        members = crowd.connect(server.port, *(f"m{round}-{number}" for number in range(count)))
        for member in members:
            member.join()
        crowd.run(lambda: all(member.welcome for member in members), seconds=60)
        members[0].say(f"hello {round}")
        crowd.run(lambda: members[0].acked == 1, seconds=60)
        members[-1].say(f"bye {round}")                 # whoever has heard this would have heard the first one twice
        crowd.run(lambda: all(member.chats[-1:] == [f"bye {round}"] for member in members), seconds=60)
        for member in members:
            assert member.chats[-2:] == [f"hello {round}", f"bye {round}"]
            assert len(set(member.chats)) == len(member.chats)
        crowd.hang_up(*members)
        wait_until(lambda: server.at_rest(descriptors), seconds=60)
        memory.append(server.memory())
    assert memory[2] < memory[1] * 1.25 + 16 * MIB


def vanish(port, number):
    """Connect and be gone at once, in the way that `number` says."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=20)
    join = frame("join", name=f"v{number}")
    sock.sendall([b"", join[:10], join, join, join + b'{"type":"chat","id":1,', b"GET / HTTP/1.1\r\n\r\n"][number % 6])
    if number % 4 == 0 or number % 6 == 3:
        reset(sock)
    else:
        sock.close()


@needs_proc
def test_storm_of_vanishing_connections_harms_nobody(serve, crowd):
    """200 connections a second come and vanish, in every way: two members chat on, and nothing stays behind."""
    server = serve("--grace", "0.1", "--rate", "0")
    descriptors = server.descriptors()
    ann, bob = crowd.join(server.port, "ann", "bob")
    begin, said = time.monotonic(), []
    for number in range(int(200 * STORM_SECONDS)):
        vanish(server.port, number)
        if number % 10 == 0:
            said.append(f"{number} from {'ann' if number % 20 else 'bob'}")
            (ann if number % 20 else bob).say(said[-1])
        crowd.serve_until(begin + (number + 1) / 200)
    wait_until(lambda: crowd.serve(0) or server.threads() <= 4 + 2 and server.descriptors() == descriptors + 2)
    said.append("after the storm")
    ann.say(said[-1])
    for talker in ann, bob:
        crowd.run(lambda: said[-1] in talker.chats)                     # and all who joined before that
        visitors = [name for name in talker.names("joined") if name.startswith("v")]
        assert visitors, "the storm did not get in"
        crowd.run(lambda: len(talker.names("left")) >= len(visitors) and len(talker.chats) >= len(said))
        assert sorted(talker.names("left")) == sorted(visitors)
        assert sorted(talker.chats) == sorted(said)
        for name in "ann", "bob":
            assert ([text for text in talker.chats if text.endswith(name)]
                    == [text for text in said if text.endswith(name)])
    assert ann.chats == bob.chats
    crowd.hang_up(ann, bob)
    wait_until(lambda: server.at_rest(descriptors))


@needs_proc
def test_no_descriptors_left_is_said_once_and_recovers(serve, crowd):
    """Out of descriptors the server says so once, does not spin, and serves those who wait when others leave."""
    server = serve("--grace", "0", files=64)
    members = crowd.connect(server.port, *(f"m{number}" for number in range(100)))
    for member in members:
        member.join()
    crowd.run(lambda: "cannot accept" in server.log())
    crowd.run(lambda: server.descriptors() == 64 and sum(bool(member.welcome) for member in members) > 40)
    begin, cpu = time.monotonic(), server.cpu()
    crowd.serve_until(begin + 0.5)
    assert server.cpu() - cpu < (time.monotonic() - begin) / 2
    inside = [member for member in members if member.welcome]
    outside = [member for member in members if not member.welcome]
    assert len(inside) < 64 and outside
    inside[0].say("those inside do not notice")
    crowd.run(lambda: all("those inside do not notice" in member.chats for member in inside))
    while outside:                                      # as many come in as have left
        crowd.hang_up(*inside[:10])
        del inside[:10]
        crowd.run(lambda: sum(bool(member.welcome) for member in outside) >= min(10, len(outside)))
        inside += [member for member in outside if member.welcome]
        outside = [member for member in outside if not member.welcome]
    assert server.log().count("cannot accept") == 1


# --- Slow members ---

@needs_proc
@pytest.mark.parametrize("length, count", [(10, QUEUE_FRAMES + 5 * WINDOW), (8_000, QUEUE_BYTES // 8_000 + 5 * WINDOW)])
def test_member_that_stops_reading_is_dropped_and_resumes(serve, crowd, length, count):
    """Nobody waits for a member that stops reading; too much queued, it is dropped, and a resume brings it all once."""
    server = serve("--rate", "0")
    talker, listener, slow = crowd.join(server.port, "talker", "listener", "slow")
    talker.say("before")
    crowd.run(lambda: slow.chats == ["before"])
    crowd.stop_reading(slow)
    memory = server.memory()
    texts = [f"{number}".ljust(length, ".") for number in range(count)]
    talker.say(*texts)
    crowd.run(lambda: "too slow: slow " in server.log() and len(listener.chats) == count + 1, seconds=60)
    assert server.memory() - memory < 64 * MIB
    crowd.wake(slow)
    crowd.run(lambda: slow.ended)                       # it reads what was on its way
    assert len(slow.chats) < count
    slow = crowd.resume(slow)
    talker.say("after")
    crowd.run(lambda: slow.chats[-1] == listener.chats[-1] == "after", seconds=60)
    assert listener.chats == ["before", *texts, "after"]
    errors = [frame for frame in slow.heard if frame["type"] == "error"]
    assert [error["code"] for error in errors] == ["too-slow"]
    others = [frame for frame in slow.heard if frame["type"] == "chat"]
    assert others == [frame for frame in listener.heard if frame["type"] == "chat"]
    assert others[0]["id"] < errors[0]["id"] < others[-1]["id"]
    assert errors[0]["id"] not in [frame["id"] for frame in listener.heard]


def test_member_that_never_acknowledges_is_dropped_and_resumes(serve, crowd):
    """After all retries a member that confirms nothing is dropped: as too slow when more waited for it, and only then."""
    server = serve("--rate", "0", program=("-c", "import chatproto, chat_server, sys\n"     # 8 s are long for a test
                                           "chatproto.RETRY_DELAY = 0.3\nsys.exit(chat_server.main())"))
    talker, slow, mute = crowd.join(server.port, "talker", "slow", "mute")
    slow.acks = mute.acks = False
    talker.say(*(f"to slow {number}" for number in range(2 * WINDOW)), to="slow")
    talker.say("to all")
    crowd.run(lambda: slow.ended and mute.ended and "to all" in talker.chats)
    assert WINDOW - 2 <= len(slow.chats) <= WINDOW and mute.chats == ["to all"]     # the news of who joined counts as well
    slow, mute = crowd.resume(slow), crowd.resume(mute)
    talker.say("after")
    crowd.run(lambda: slow.chats[-1] == mute.chats[-1] == talker.chats[-1] == "after")
    assert slow.chats == talker.chats == [f"to slow {number}" for number in range(2 * WINDOW)] + ["to all", "after"]
    assert mute.chats == ["to all", "after"]
    assert [frame["code"] for frame in slow.heard if frame["type"] == "error"] == ["too-slow"]
    assert not [frame for frame in mute.heard if frame["type"] == "error"]


# --- Limits ---

def test_max_members_refuses_and_closes(serve, crowd):
    """Whoever comes when the room is full gets `full` and the end, and may come in once there is room."""
    server = serve("--max-members", "3", "--grace", "0")
    members = crowd.join(server.port, "a", "b", "c")
    late, = crowd.connect(server.port, "late")
    late.join()
    crowd.run(lambda: late.ended)
    assert late.errors == ["full"] and not late.welcome
    crowd.hang_up(members[0])
    crowd.run(lambda: members[1].names("left") == ["a"])
    crowd.join(server.port, "late")


def test_max_per_address_exempts_loopback(serve, crowd):
    """Any number may come from this machine itself."""
    crowd.join(serve("--max-per-address", "1").port, *"abcde")


# --- The end of the server ---

def test_server_close_ends_every_thread(crowd):
    """server_close() with 50 people connected returns soon, leaves no thread, and may be called again."""
    before = set(threading.enumerate())
    server = chat_server.ChatServer("127.0.0.1", 0)
    server.start()
    members = crowd.join(server.port, *(f"m{number}" for number in range(50)))
    unjoined = crowd.connect(server.port, "silent", "half")
    unjoined[1].sock.sendall(b'{"type":"jo')
    members[0].say("hello")
    crowd.run(lambda: all(member.chats for member in members))
    closer = threading.Thread(target=server.server_close, daemon=True)
    closer.start()
    closer.join(5)
    assert not closer.is_alive()
    server.server_close()
    wait_until(lambda: set(threading.enumerate()) <= before)
    crowd.run(lambda: all(member.ended for member in members + unjoined))


@posix_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_tells_everybody_and_frees_the_port(serve, crowd, number):
    """On a signal everybody hears of it, what was on its way is acknowledged, and the port can be used again at once."""
    server = serve()
    members = crowd.join(server.port, "ann", "bob", "eve")
    for member in members:
        member.say(*(f"{member.name} {count}" for count in range(10)))
    server.process.send_signal(number)
    crowd.run(lambda: all(member.ended for member in members))
    assert server.process.wait(20) == 0
    for member in members:
        assert member.acked == 10
        assert len(member.chats) == len(set(member.chats)) == 31
        assert [frame["text"] for frame in member.heard if frame.get("from") == "Server"] == ["the server is closing"]
    again = serve(port=server.port)
    assert again.port == server.port
    crowd.join(again.port, "ann")


@posix_only
def test_signal_within_a_signal_still_ends_the_server(serve):
    """A second signal that comes while the first is being handled (Ctrl-C twice, TERM and INT) does not hang the server."""
    server = serve(program=("-c", """if True:
        import os, signal, sys, threading
        import chat_server
        real, seen = threading.Condition.notify_all, []

        def notify_all(condition):
            if threading.get_ident() == threading.main_thread().ident and not seen:
                seen.append(os.kill(os.getpid(), signal.SIGINT))
            real(condition)
        threading.Condition.notify_all = notify_all
        sys.exit(chat_server.main())"""))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0


# --- Deaths ---

@posix_only
def test_killed_client_harms_nobody(serve, crowd):
    """kill -9 of a client in the middle of a frame: the others hear that it left, and nothing else happens."""
    server = serve("--grace", "0")
    ann, bob = crowd.join(server.port, "ann", "bob")
    client = subprocess.Popen([sys.executable, "-c", f"""if True:
        import socket
        sock = socket.create_connection(("127.0.0.1", {server.port}))
        sock.sendall({frame("join", name="eve")!r} + b'{{"type":"chat","id":1,"te')
        sock.recv(1)
        print("in", flush=True)
        input()"""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with client:
        assert client.stdout.readline() == "in\n"
        client.kill()
    crowd.run(lambda: bob.names("left") == ["eve"])
    ann.say("one", "two")
    crowd.run(lambda: ann.chats == bob.chats == ["one", "two"])


def test_reset_in_the_middle_of_a_frame_harms_nobody(serve, crowd):
    """A RST after half a frame: the half is never heard, and the member comes back to what it missed."""
    server = serve()
    ann, bob, eve = crowd.join(server.port, "ann", "bob", "eve")
    eve.say("whole")
    crowd.run(lambda: all(member.chats == ["whole"] for member in (ann, bob, eve)))
    eve.sock.sendall(frame("chat", id=2, text="half")[:-5])
    crowd.stop_reading(eve)
    reset(eve.sock)
    ann.say("missed")
    crowd.run(lambda: ann.chats == bob.chats == ["whole", "missed"])
    eve = crowd.resume(eve)
    assert eve.welcome["got"] == 1
    eve.say("again")
    crowd.run(lambda: all(member.chats == ["whole", "missed", "again"] for member in (ann, bob, eve)))
