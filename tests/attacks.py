#!/usr/bin/env python3
"""Attacks: what one peer can do to the others, inside all default limits, and what they feel of it.

    python tests/attacks.py                     # all of them: about two minutes
    python tests/attacks.py brackets names      # only these
    python tests/attacks.py --server /tmp/old   # against another checkout

Each attack has a fresh server and a process of its own, which is bounded in time and in
connections. An innocent pair talks all the while, in a process of its own, and a newcomer joins
four times a second. For each attack a line says what they felt before, during and a second after
it, and how much memory the server took. The exit code is 1 when one of the goals is missed.
Everything stays on the loopback interface. Where the system has all of 127.0.0.0/8 (Linux) the
attackers come from 127.0.0.2 and so on, which the server then takes for other machines; else from
127.0.0.1, which is exempt from the limits of an address. Needs pytest (harness.py does) and /proc
for the memory.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import selectors
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from typing import NamedTuple

import harness
from harness import frame
from webclient import masked, upgrade_request

# Seconds of the pair alone, of the attack, from its end to "after it", and of that.
BEFORE, DURING, PAUSE, AFTER = 1.0, 3.0, 1.0, 1.0
# Seconds between two messages of one of the pair, and between two newcomers.
EVERY, NEWCOMER_EVERY = 0.08, 0.25
# Seconds that a message or a newcomer is waited for.
PATIENCE = 15.0
# Addresses that attackers come from.
ADDRESSES = [f"127.0.0.{number}" for number in range(2, 14)]
BARE = ("ack", "welcome", "heard", "history")
EMOJI = "\U0001f600" * 8192

# The goals of the issue: p50 at most so many times what it is without the attack and never above,
# p99, a newcomer's time (seconds); memory (bytes). An idle p50 is below a millisecond, so a little
# is granted before times are counted.
TIMES, P50_GRANTED, P50, P99, NEWCOMER, MEMORY = 20, 0.020, 0.1, 0.5, 1.0, 200e6
# "As before": so many times as long, or so long.
AGAIN_TIMES, AGAIN = 5, 0.02


# --- The innocent ---

class Felt(NamedTuple):
    """What the innocent felt in one phase: seconds from saying to hearing, and from connecting to
    the welcome (inf: never), and texts that were heard twice."""

    heard: "list[float]"
    came: "list[float]"
    doubles: int

    @property
    def p50(self):
        return statistics.median(self.heard)

    @property
    def p99(self):
        return sorted(self.heard)[int(0.99 * (len(self.heard) - 1))]

    @property
    def newcomer(self):
        return max(self.came, default=0.0)


class Innocents:
    """Two who talk to each other, on a schedule that no delay moves, and newcomers. In a process of
    its own: felt() is the only method for others."""

    def __init__(self, port):
        self._port = port
        self._peers = [harness.RawClient(port, auto_ack=True) for _ in range(2)]
        for number, peer in enumerate(self._peers):
            peer.join(f"innocent{number}")
            peer._sock.settimeout(0.005)
        # When each was said that was not heard yet, and how many were heard twice.
        self._said = {}
        self._doubles = 0
        self._serial = itertools.count()

    def felt(self, until):
        """Talk until `until()`; return a Felt."""
        came, stop = [], threading.Event()
        newcomers = threading.Thread(target=self._come, args=(came, stop))
        newcomers.start()
        heard, seen = [], set()
        due = time.monotonic()
        end = None
        while end is None or self._said and time.monotonic() < end + PATIENCE:
            now = time.monotonic()
            if end is None and until():
                end = now
            elif end is None and now >= due:
                due += EVERY / 2
                number = next(self._serial)
                self._said[f"n{number}"] = time.monotonic()
                self._peers[number % 2].say(f"n{number}")
            for peer in self._peers:
                self._hear(peer, heard, seen)
        heard += [float("inf")] * len(self._said)
        self._said.clear()
        stop.set()
        newcomers.join()
        return Felt(heard, came, self._doubles)

    def _hear(self, peer, heard, seen):
        """Take what came, in one piece: with a thousand frames a second it must not be us who are
        slow."""
        try:
            data = peer._partial + harness.receive(peer._sock)
        except socket.timeout:
            return
        *whole, peer._partial = data.split(b"\n")
        frames = [json.loads(line) for line in whole]
        chats = [one for one in frames if one["type"] == "chat" and one["from"] != peer.name]
        for text in (one["text"] for one in chats):
            self._doubles += text in seen
            seen.add(text)
            if text in self._said:
                heard.append(time.monotonic() - self._said.pop(text))
        newest = max((one.get("id", 0) for one in frames if one["type"] not in BARE), default=0)
        if newest:
            peer.ack(newest)

    def _come(self, came, stop):
        """On a thread: newcomers, one after the other."""
        while not stop.wait(NEWCOMER_EVERY):
            began = time.monotonic()
            try:
                with harness.RawClient(self._port) as peer:
                    peer._sock.settimeout(PATIENCE)
                    peer.join(f"new{next(self._serial)}")
                    came.append(time.monotonic() - began)
                    peer.tell("leave")
            except (OSError, EOFError, AssertionError):
                came.append(float("inf"))


def _be_innocent(port, pipe):
    """The process of the innocent: a phase for each order."""
    innocents = Innocents(port)
    pipe.send("ready")
    while pipe.recv():
        try:
            felt = innocents.felt(pipe.poll)
        except (OSError, EOFError) as error:
            print(f"the pair was put out: {error}", file=sys.stderr)
            felt = Felt([float("inf")], [float("inf")], 0)
        pipe.send(felt)
        pipe.recv()
    os._exit(0)


# --- The attackers ---

class Attacker:
    """One connection that does as a script says: a generator that yields bytes to be written. What
    comes is thrown away, but `heard` holds the last piece. With `reads` false nothing is read."""

    def __init__(self, port, number, script, reads=True):
        self.number, self.script, self.reads = number, script, reads
        self.port = port
        self.heard = b""
        self._rest = memoryview(b"")
        self.sock = None
        self.connect()

    def connect(self):
        sock = socket.socket()
        if self.number >= 0:
            with contextlib.suppress(OSError):
                sock.bind((ADDRESSES[self.number % len(ADDRESSES)], 0))
        if not self.reads:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", self.port))
        self.sock = sock
        self.wants = True
        self.heard = b""
        self._rest = memoryview(b"")
        self._steps = self.script(self)

    def turn(self, events):
        """Read and write what can be; False when the connection is over."""
        try:
            if events & selectors.EVENT_READ:
                self.heard = self.sock.recv(262_144)
                if not self.heard:
                    return False
            if events & selectors.EVENT_WRITE:
                if not self._rest:
                    data = next(self._steps, None)
                    if data is None:
                        return False
                    self._rest = memoryview(data)
                if self._rest:
                    self._rest = self._rest[self.sock.send(self._rest):]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True


def attack(port, count, script, seconds, reads=True, returns=True, one_address=False):
    """Have `count` attackers do as a script says for so many seconds. Who is put out, or whose
    script ends, comes again when `returns`, up to 1,000 a second in all."""
    selector = selectors.DefaultSelector()
    both = selectors.EVENT_WRITE | (selectors.EVENT_READ if reads else 0)
    attackers = deque()
    gone = deque((None, 0 if one_address else number) for number in range(count))
    end = time.monotonic() + seconds
    opened = 0
    began = time.monotonic()
    while time.monotonic() < end:
        while gone and opened < 200 + 1_000 * (time.monotonic() - began):
            old, number = gone.popleft()
            try:
                one = Attacker(port, number, script, reads)
            except OSError:
                gone.append((old, number))
                break
            opened += 1
            attackers.append(one)
            selector.register(one.sock, both, one)
        for key, events in selector.select(0.02):
            if not key.data.turn(events):
                selector.unregister(key.fileobj)
                key.fileobj.close()
                if returns:
                    gone.append((None, key.data.number))
        time.sleep(0.0005)


_names = (f"a{os.getpid()}-{number}" for number in itertools.count())


def joined(web=False, **fields):
    """The bytes that join under a new name."""
    name = fields.pop("name", None) or next(_names)
    return frame("join", name=name, **fields)


def web(attacker):
    return upgrade_request(attacker.port)


def waiting(attacker, words, most=2000):
    """Yield nothing until `words` came; for so many turns."""
    for _ in range(most):
        if words in attacker.heard:
            return
        yield b""


def forever(data):
    while True:
        yield data


def web_frames(opcode, payload=b"", fin=True, join=True, first=b""):
    """A script: 10,000 frames of a WebSocket in one piece, again and again."""
    piece = first + masked(opcode, payload, fin=fin, key=b"abcd") * 10_000

    def script(attacker):
        yield web(attacker)
        yield from waiting(attacker, b"101 Switching")
        if join:
            yield masked(1, joined()[:-1])
        yield from forever(piece)
    return script


def lines(line, join=True):
    """A script: a line as fast as it can be, after a join. `line` has %d for its id."""
    def script(attacker):
        if join:
            yield joined()
        for id in itertools.count(1):
            yield line.replace(b"%d", b"%d" % id, 1)
    return script


def joining_with(data):
    """A script: a connection that says only this, again and again."""
    def script(attacker):
        yield from forever(data)
    return script


def connecting(data=b""):
    """A script: connects, says so much, and then no more."""
    def script(attacker):
        yield data
        yield from forever(b"")
    return script


def once(*data):
    """A script: says this and goes (and comes again)."""
    def script(attacker):
        yield from (one() if callable(one) else one for one in data)
        yield from waiting(attacker, b"left", 20)
    return script


def requesting(head, turns=200):
    """A script: a request of HTTP, its answer, and the next one."""
    def script(attacker):
        yield head.replace(b"HOST", b"127.0.0.1:%d" % attacker.port)
        yield from itertools.repeat(b"", turns)
    return script


BRACKETS = [b'{"type":"chat","id":%d,"text":"hi","x":[' + b",".join(piece) + b"]}\n" for piece in (
    [b"[]"] * 21_000, [b"{}"] * 21_000, [b"[" * 12 + b"]" * 12] * 2_500, [b'{"a":1}'] * 8_000)]
HIDDEN = frame("chat", id=0, text="\u200b\u0301\u200ba" * 2048).replace(b'"id":0', b'"id":%d')
MARKS = "\u0301\u0316" * 4096


def _brackets(attacker):
    yield joined()
    for id in itertools.count(1):
        yield BRACKETS[id % 4].replace(b"%d", b"%d" % id, 1)


def _recalls(attacker):
    yield joined()
    for id in itertools.count(1):
        words = {"find": "zebra needle"} if id % 2 else {"before": 30_000 - id}
        yield frame("history", id=id, count=100, **words)


def _churn(attacker):
    """Joins and leaves, as fast as it goes."""
    for _ in range(50):
        yield joined()
        yield frame("leave", id=1)
        yield from waiting(attacker, b"left", 5)
        return


def _private_writers(attacker):
    """Ten times in eleven one that reads nothing, else one who writes to it."""
    yield joined(name=f"mute{id(attacker) % 100}")
    for number in itertools.count(1):
        yield frame("chat", id=number, text=EMOJI[:2000], to=f"mute{number % 100}")


def _resumes(attacker):
    """A join that claims an older session and has seen nothing of it."""
    yield web(attacker)
    yield from waiting(attacker, b"101 Switching")
    with open(_session_path(attacker.port)) as file:
        sessions = json.load(file)
    one = sessions[attacker.number % len(sessions)]
    yield masked(1, frame("join", name=one["name"], session=one["session"], seen=one["seen"],
                          epoch=one["epoch"])[:-1])
    yield from forever(b"")


def _joining(attacker):
    """Joins, and listens."""
    yield joined()
    yield from forever(b"")


def _renames(attacker):
    yield joined()
    for id in itertools.count(1):
        yield frame("rename", id=id, name=next(_names))


# --- The server for an attack ---

def _session_path(port):
    return os.path.join(tempfile.gettempdir(), f"roger-attacks-{port}.json")


def _fill_log(port, sessions=30, texts=500):
    """Fill the log in memory, and leave sessions behind that have heard nothing of it."""
    kept = []
    peers = [harness.RawClient(port) for _ in range(sessions)]
    for number, peer in enumerate(peers):
        welcome = peer.join(f"old{number}")
        kept.append({"name": welcome["name"], "session": welcome["session"],
                     "epoch": welcome["epoch"], "seen": welcome["last"]})
    with open(_session_path(port), "w") as file:
        json.dump(kept, file)
    # Six are what a new session may say at once.
    for number in range(texts // 6):
        with harness.RawClient(port, auto_ack=True) as speaker:
            speaker.join(f"speaker{number}")
            for _ in range(6):
                speaker.say(EMOJI)
            while speaker.texts().count(EMOJI) < 6:
                speaker.recv()
            speaker.tell("leave")
    for peer in peers:
        peer.close()


def _renamed_file(path, count=30_000):
    """A history file of so many renames with a few texts before them."""
    import chat_server
    import chatproto
    history = chat_server.HistoryFile(path)
    rows = []
    for id in range(1, count + 1):
        message = (chatproto.Chat(id, "ann", "hello " * 200, 1e9) if id <= 3_000
                   else chatproto.Renamed(id, f"a{id}", f"a{id + 1}", 1e9))
        body = message.encode()
        try:
            rows.append(chat_server.entry_row(message, body, (), 1e9))
        except TypeError:
            # The columns of an older server.
            rows.append((id, 1e9, message.type, None, None, body[:-1].decode(), None, None, None))
    history.save(count, rows, [], [])
    history.close()


def _long_file(path, count=110_000):
    """A history file of more than is kept in memory, and sessions that have heard nothing of it."""
    import chat_server
    import chatproto
    history = chat_server.HistoryFile(path)
    rows = []
    for id in range(1, count + 1):
        message = chatproto.Chat(id, "ann", f"hello {id}", 1e9)
        rows.append(chat_server.entry_row(message, message.encode(), (), 1e9))
    # Number, secret's hash, name, begin, history_from, got, acked, left_at, booted.
    sessions = [(number, hashlib.sha256(b"secret%d" % number).digest(), f"fed{number}", 0, 0, 0, 0,
                 1e9, None) for number in range(20)]
    history.save(count, rows, sessions, [])
    with open(_session_path(0), "w") as file:
        json.dump(history.epoch, file)
    history.close()


def _feeds(attacker):
    """Comes back from long ago, acknowledges what it hears at once, and begins again."""
    with open(_session_path(0)) as file:
        epoch = json.load(file)
    number = attacker.number
    yield frame("join", name=f"fed{number}", session=f"secret{number}", epoch=epoch, seen=0)
    newest = 0
    for _ in range(2_000):
        ids = [int(id) for id in re.findall(rb'"id":(\d+)', attacker.heard[-2_000:])]
        if max(ids, default=0) > newest:
            newest = max(ids)
            yield frame("ack", id=newest)
        else:
            yield b""


class Attack(NamedTuple):
    """`what` is said in the line, `count` attackers do as `script` says."""

    what: str
    script: object
    count: int = 20
    options: dict = {}
    # Arguments of the server ({dir} is a folder), and what is done before it starts and after.
    server: "tuple[str, ...]" = ()
    prepare: object = None
    fill: object = None


HTTP_HEAD = (b"GET / HTTP/1.1\r\nHost: HOST\r\n" + b"".join(
    b"X-%d: %s\r\n" % (number, b"a" * 40) for number in range(90)) + b"\r\n")

ATTACKS = {
    "pings": Attack("1: pings of WebSockets", web_frames(9)),
    "pongs": Attack("1: pongs, not joined", web_frames(10, join=False)),
    "fragments": Attack("1: empty fragments", web_frames(0, fin=False,
                                                         first=masked(1, b"", fin=False))),
    "crumbs": Attack("1: fragments of a byte", web_frames(0, b" ", fin=False,
                                                          first=masked(1, b" ", fin=False))),
    "brackets": Attack("2: frames of brackets", _brackets, 20),
    "brackets50": Attack("2: the same from 50", _brackets, 50),
    "unbalanced": Attack("2: brackets that stay open, not joined",
                         joining_with(b'{"type":"join","x":' + b"[" * 65_000 + b"\n"), 50),
    "hidden": Attack("3: hidden characters, --log", lines(HIDDEN), 5,
                     server=("--log", "{dir}/log")),
    "resumes": Attack("5: WebSockets that claim older sessions", _resumes, 30,
                      {"reads": False, "returns": True}, fill=_fill_log),
    "private": Attack("6: slow readers and private writers", _private_writers, 150,
                      {"reads": False}),
    "recalls": Attack("7: history of 30,000 renames", _recalls, 50,
                      server=("--history", "{dir}/history"), prepare=_renamed_file),
    "feeds": Attack("7: come back from long ago, with a file", _feeds, 20,
                    server=("--history", "{dir}/history"), prepare=_long_file),
    "churn": Attack("8: joins and leaves from one address", _churn, 50, {"one_address": True}),
    "class": Attack("8: a class of 1,000 that comes in", _joining, 1_000,
                    {"one_address": True, "returns": False}, server=("--max-per-address", "1000")),
    "silent": Attack("9: 2,000 that never join, from 12 addresses", connecting(), 2_000),
    "silence1": Attack("9: 2,000 from one address", connecting(), 2_000, {"one_address": True}),
    "halves": Attack("9: 2,000 with half a line", connecting(
        b'{"type":"join","x":"' + b"a" * 65_000), 2_000),
    "names": Attack("names of 8,192 marks in a join", joining_with(
        frame("join", name=MARKS, session="s", epoch="e")), 20),
    "lines": Attack("empty objects, not joined", joining_with(b"{}\n" * 20_000), 50),
    "errors": Attack("frames that are refused", lines(
        b'{"type":"chat","id":%d,"text":"hi","to":"nobody"}\n'), 50),
    "acks": Attack("ACKs that are no news", lines(b'{"type":"ack","id":1}\n' * 3_000), 50),
    "renames": Attack("renames", _renames, 50),
    "pages": Attack("GET / as fast as it goes", requesting(
        b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n"), 50),
    "heads": Attack("heads of 90 lines", requesting(HTTP_HEAD), 50),
    "upgrades": Attack("WebSockets that are left", once(
        b"GET /chat HTTP/1.1\r\nHost: x\r\n\r\n"), 50),
    "posts": Attack("POST without end", connecting(
        b"POST /host HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 65536\r\n\r\n"), 500),
}

# 127.0.0.1 is this machine, and the rest of 127.0.0.0/8 are others.
_AS_OTHERS = """
import sys
sys.path.insert(0, {folder!r})
import chat_server
chat_server.is_loopback = lambda address: address == "127.0.0.1"
sys.exit(chat_server.main())
"""


class Outcome(NamedTuple):
    """What an attack did: three Felt, and the most resident bytes."""

    before: Felt
    during: Felt
    after: Felt
    memory: int

    def misses(self):
        """The goals that are missed, in words."""
        most = min(P50, max(TIMES * self.before.p50, P50_GRANTED))
        again = max(AGAIN, AGAIN_TIMES * self.before.p50)
        missed = {"p50": self.during.p50 > most, "p99": self.during.p99 > P99,
                  "newcomer": self.during.newcomer > NEWCOMER, "memory": self.memory > MEMORY,
                  "not as before": self.after.p50 > again or self.after.newcomer > NEWCOMER}
        return [what for what, is_missed in missed.items() if is_missed]


def run_attack(one, folder=str(harness.ROOT), during=DURING, before=BEFORE,
               pause=PAUSE, after=AFTER):
    """Run one attack against a fresh server; return its Outcome."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    # Else what is buffered is written by each process that is forked.
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as files:
        if one.prepare:
            one.prepare(os.path.join(files, "history"))
        arguments = [argument.replace("{dir}", files) for argument in one.server]
        harness.allow_files(8_192)
        with harness.serving(*arguments,
                             program=("-c", _AS_OTHERS.format(folder=folder))) as server:
            if one.fill:
                one.fill(server.port)
            ours, theirs = context.Pipe()
            innocents = context.Process(target=_be_innocent, args=(server.port, theirs),
                                        daemon=True)
            innocents.start()
            theirs.close()
            assert ours.recv() == "ready"
            try:
                return _phases(context, server, ours, one, (before, during, pause, after))
            finally:
                innocents.kill()
                innocents.join()


def _phases(context, server, ours, one, seconds):
    before, during, pause, after = seconds
    most = [server.memory()]

    def phase(seconds, process=None):
        ours.send(True)
        if process:
            process.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.05)
            most[0] = max(most[0], server.memory())
        if process:
            process.kill()
            process.join()
        ours.send(False)
        return ours.recv()
    quiet = phase(before)
    attackers = context.Process(target=attack, daemon=True, kwargs={
        **one.options, "port": server.port, "count": one.count, "script": one.script,
        "seconds": during + 1})
    felt = phase(during, attackers)
    time.sleep(pause)
    return Outcome(quiet, felt, phase(after), most[0])


def main():
    """Run the attacks that are named; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="which: " + ", ".join(ATTACKS))
    parser.add_argument("--server", default=str(harness.ROOT), help="the checkout to attack")
    parser.add_argument("--seconds", type=float, default=DURING)
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.server)
    print(f"{'':44}p50 ms: before, during, after    p99 newcomer      MB")
    failed = False
    for name in arguments.names or ATTACKS:
        one = ATTACKS[name]
        outcome = run_attack(one, arguments.server, arguments.seconds)
        missed = outcome.misses()
        failed = failed or bool(missed)
        before, felt, after = outcome.before, outcome.during, outcome.after
        print(f"{name:11}{one.what[:32]:33}{before.p50 * 1e3:8.1f} {felt.p50 * 1e3:8.1f} "
              f"{after.p50 * 1e3:8.1f} {felt.p99 * 1e3:12.0f} {felt.newcomer * 1e3:8.0f} "
              f"{outcome.memory / 1e6:7.0f}  {', '.join(missed)}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
