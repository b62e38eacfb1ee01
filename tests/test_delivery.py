"""Delivery, end to end: what is promised about messages holds through broken connections, lost ACKs and dead servers.

The first part runs the real server as a process and ChatClients in this one, with a CuttingProxy in between, and lets
HistoryChecker judge what everybody heard. The second part has a short test for each hole that other chats and brokers fell
into (DESIGN.md, section 6), most of them on Room, MessageManager and ClientSession with a fake clock (Bench).

Reconnecting takes a second or more in earnest. The fixture `impatient` makes it a hundredth: it gives chat_client another
`random`, whose uniform() is the factor of the delay, and shortens RETRY_DELAY and PING_AFTER for the clients in this process.
The server is a process of its own and keeps its times. SEED makes the faults the same each time, as far as the network lets them be.
"""

import json
import os
import queue
import random
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
import types
from collections import Counter, deque

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import chat_client  # noqa: E402
import chat_server  # noqa: E402
import chatproto  # noqa: E402
from chat_client import FAILED, SENDING, THERE, UNKNOWN, ChatClient, ClientSession  # noqa: E402
from chatproto import (WINDOW, Alarm, Chat, FrameError, Joined, Left, MessageManager, MessageQueue,  # noqa: E402
                       PendingMessage, Renamed)

SEED = int(os.environ.get("ROGER_SEED", "20090817"))
PATIENCE = 40           # seconds, only reached on failure


# --- Helpers ---

def wait_until(predicate, seconds=PATIENCE, what="what was waited for did not happen"):
    """Return as soon as `predicate()` is true; fail after `seconds`."""
    deadline, tick = time.monotonic() + seconds, threading.Event()
    while not predicate():
        assert time.monotonic() < deadline, what() if callable(what) else what
        tick.wait(0.01)


def frame(type, **fields):
    return json.dumps({"type": type, **fields}, separators=(",", ":")).encode() + b"\n"


class Server:
    """chat_server.py as a process: it can be killed, and started again on its port."""

    def __init__(self, log, *arguments):
        self._log, self._arguments = log, arguments
        self.port = 0
        self.start()

    def start(self):
        with open(self._log, "ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "chat_server", str(self.port), "--bind", "127.0.0.1", *self._arguments], cwd=ROOT,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True)
        first = self._process.stdout.readline()
        assert first.startswith("Listening on 127.0.0.1:"), first + self.log()
        self.port = int(first.rsplit(":", 1)[1])

    def kill(self):
        self._process.kill()
        self._process.wait(PATIENCE)
        self._process.stdout.close()

    def log(self):
        with open(self._log, encoding="utf-8") as file:
            return file.read()


@pytest.fixture
def serve(tmp_path):
    """Start servers; at the end none of them may have logged a bug."""
    servers = []

    def start(*arguments):
        servers.append(Server(str(tmp_path / f"stderr-{len(servers)}"), "--rate", "0", "--grace", "30", *arguments))
        return servers[-1]
    yield start
    for server in servers:
        server.kill()
        assert "bug " not in server.log() and "Traceback" not in server.log(), server.log()


@pytest.fixture
def impatient(monkeypatch):
    """The clients of this process come back after hundredths of a second, and notice a silent connection after one."""
    monkeypatch.setattr(chat_client, "random", types.SimpleNamespace(uniform=lambda low, high: 0.01))
    monkeypatch.setattr(chatproto, "RETRY_DELAY", 0.2)
    monkeypatch.setattr(chatproto, "PING_AFTER", 0.5)


class Peer:
    """A raw client: acknowledges at once, remembers every frame."""

    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._file = self.sock.makefile("rb")
        self.frames = []

    def send(self, type, **fields):
        self.sock.sendall(frame(type, **fields))

    def join(self, name, **resume):
        self.send("join", name=name, **resume)
        return self.expect("welcome")

    def expect(self, type, **fields):
        """Read up to the next frame of that type with those fields; what else comes is remembered."""
        for line in self._file:
            self.frames.append(json.loads(line))
            if "id" in self.frames[-1] and self.frames[-1]["type"] != "ack":
                self.send("ack", id=self.frames[-1]["id"])
            if self.frames[-1]["type"] == type and fields.items() <= self.frames[-1].items():
                return self.frames[-1]
        raise AssertionError(f"no {type} {fields} before the end of the connection: {self.frames}")

    def read_to_the_end(self):
        """Read until the server closes; fail when it does not."""
        self.frames += map(json.loads, self._file)
        return self.frames

    def close(self):
        self._file.close()
        self.sock.close()


@pytest.fixture
def connect():
    """Make Peers, and close them at the end."""
    peers = []

    def peer(port):
        peers.append(Peer(port))
        return peers[-1]
    yield peer
    for peer in peers:
        peer.close()


class Talker:
    """A ChatClient and its History: all that it said and heard, in which run of ids, with which states."""

    def __init__(self, port, name):
        self.history = History(name)
        self.connections = self.lost = 0
        self.ended = ""
        self._states = {}               # the last one of each Said
        self.names = []                 # (what happened, name) of the list of users
        self.client = ChatClient("127.0.0.1", port, name, on_welcome=self._on_welcome, on_message=self._on_message,
                                 on_state=self._on_state, on_lost=self._on_lost, on_end=self._on_end)
        self.client.connect(PATIENCE)

    def _on_welcome(self, welcome):
        self.connections += 1
        self.history.welcomed(welcome)

    def _on_message(self, message):
        if isinstance(message, Chat):
            self.history.heard(message)
        elif isinstance(message, (Joined, Left, Renamed)):
            self.names.append((message.type, message.name))

    def _on_state(self, said):
        if self._states.get(said.id) != said.state:             # else a receipt
            self._states[said.id] = said.state
            self.history.states.append((self.history.epoch, said.text, said.state))

    def _on_lost(self, why, seconds):
        self.lost += 1

    def _on_end(self, why):
        self.ended = why

    def say(self, text, to=None):
        self.history.said.append(self.client.say(text, to))
        return self.history.said[-1]

    def texts(self):
        return [chat.text for _, chat in self.history.chats]


@pytest.fixture
def talk():
    """Make Talkers, and close them at the end."""
    talkers = []

    def talker(port, name):
        talkers.append(Talker(port, name))
        return talkers[-1]
    yield talker
    for one in talkers:
        one.client.close()


# --- The judge ---

class History:
    """What one member said and heard, as its callbacks told it."""

    def __init__(self, name):
        self.name = name
        self.epoch = ""                 # of the run of ids it is in
        self.since = {}                 # epoch -> the newest id when it came: it hears what has a greater one
        self.missed = 0                 # frames that the server could not replay
        self.chats = []                 # (epoch, Chat) as they were heard
        self.said = []                  # Said, in the order of saying
        self.states = []                # (epoch, text, state): the changes, as they were told

    def welcomed(self, welcome):
        # Whoever comes from an earlier run of the server hears everything that was said since it started again.
        self.since.setdefault(welcome.epoch, 0 if self.since else welcome.last)
        self.epoch = welcome.epoch
        self.missed += welcome.missed

    def heard(self, chat):
        self.chats.append((self.epoch, chat))

    def heard_in(self, epoch):
        return [chat for heard_in, chat in self.chats if heard_in == epoch and chat.id > self.since[epoch]]


class HistoryChecker:
    """Judges the histories of members who were in the room all the time, or came back each time within the grace time.

    The texts have to be unique, "SPEAKER NUMBER" with growing numbers, and said to all. violations() names each that it
    finds, in the promises' order; an empty list is an acquittal:

    - lost: said, reported THERE, and not heard by a member that was there. The speaker itself is one of the members.
    - twice: heard more than once by one member.
    - order: the ids that one member hears do not grow, or two members know one id as different messages. Together: there is one order.
    - speaker: a speaker's messages are not heard in the order in which they were said.
    - forged: heard, and never said; or reported FAILED, which means not sent, and heard.
    - state: a message is not reported THERE or FAILED at the end, or went on from one of these, or was told twice.
    - missed: the server said that it could not replay something, though nothing here exceeds its log.

    `epoch` is the run of ids to judge (the only one where there was no restart). Losses are looked for among the messages
    whose ACK came in that run: in a crash without history what was acknowledged before it may be gone.
    """

    def __init__(self, histories, epoch):
        self._histories = histories
        self._epoch = epoch

    def violations(self):
        return [*self._lost_and_twice(), *self._order(), *self._speakers(), *self._forged(), *self._states(), *self._missed()]

    def _there(self):
        return [text for history in self._histories for epoch, text, state in history.states
                if state == THERE and epoch == self._epoch]

    def _lost_and_twice(self):
        for history in self._histories:
            heard = Counter(chat.text for chat in history.heard_in(self._epoch))
            yield from (f"lost: {text!r}, to {history.name}" for text in self._there() if text not in heard)
            yield from (f"twice: {text!r}, {count} times to {history.name}" for text, count in heard.items() if count > 1)

    def _order(self):
        meanings = {}
        for history in self._histories:
            ids = [chat.id for chat in history.heard_in(self._epoch)]
            yield from (f"order: {later} after {earlier} to {history.name}"
                        for earlier, later in zip(ids, ids[1:]) if later <= earlier)
            for chat in history.heard_in(self._epoch):
                if meanings.setdefault(chat.id, chat) != chat:
                    yield f"order: {chat.id} is {chat} to {history.name} and {meanings[chat.id]} to another"

    def _speakers(self):
        for history in self._histories:
            newest = {}
            for chat in history.heard_in(self._epoch):
                speaker, number = chat.text.split()
                if int(number) < newest.get(speaker, 0):
                    yield f"speaker: {chat.text!r} after {newest[speaker]} to {history.name}"
                newest[speaker] = int(number)

    def _forged(self):
        said = {said.text: said for history in self._histories for said in history.said}
        for history in self._histories:
            for chat in history.heard_in(self._epoch):
                if chat.text not in said or said[chat.text].state == FAILED:
                    yield f"forged: {chat.text!r} to {history.name}"

    def _states(self):
        for history in self._histories:
            told = Counter(text for _, text, state in history.states if state in (THERE, FAILED))
            for said in history.said:
                if said.state not in (THERE, FAILED) or told[said.text] != 1:
                    yield f"state: {said.text!r} is {said.state} at the end, and an end was told {told[said.text]} times"

    def _missed(self):
        return [f"missed: {history.missed} frames by {history.name}" for history in self._histories if history.missed]


def a_history(name, numbers, speaker="ann", states=(THERE,)):
    """A small flawless history: `ann` said 1, 2, 3, everybody heard it."""
    history = History(name)
    history.welcomed(types.SimpleNamespace(epoch="e", last=10, missed=0))
    for number in numbers:
        history.heard(Chat(10 + number, speaker, f"{speaker} {number}", 0, number))
    if name == speaker:
        for number in numbers:
            history.said.append(chat_client.Said(number, f"{speaker} {number}", None))
            history.said[-1].state = states[-1]
            history.states += [("e", f"{speaker} {number}", state) for state in states]
    return history


def other_meaning(ann, bob):
    bob.chats[1] = ("e", Chat(12, "ann", "ann 3", 0, 3))
    del bob.chats[2]


@pytest.mark.parametrize("verdict, spoil", [
    (set(), lambda ann, bob: None),
    ({"lost"}, lambda ann, bob: bob.chats.pop()),
    ({"lost"}, lambda ann, bob: ann.chats.pop(0)),
    ({"twice", "order"}, lambda ann, bob: bob.chats.append(bob.chats[-1])),
    ({"order", "speaker"}, lambda ann, bob: bob.chats.reverse()),
    ({"order", "lost"}, other_meaning),
    ({"speaker"}, lambda ann, bob: [setattr(one, "chats", [("e", Chat(10 + place, "ann", f"ann {number}", 0))
                                                           for place, number in enumerate((2, 1, 3), 1)]) for one in (ann, bob)]),
    ({"forged"}, lambda ann, bob: bob.chats.append(("e", Chat(20, "ann", "ann 4", 0, 4)))),
    ({"forged", "state"}, lambda ann, bob: setattr(ann.said[1], "state", FAILED) or ann.states.append(("e", "ann 2", FAILED))),
    ({"state"}, lambda ann, bob: setattr(ann.said[1], "state", SENDING)),
    ({"state"}, lambda ann, bob: setattr(ann.said[1], "state", UNKNOWN)),
    ({"state"}, lambda ann, bob: ann.states.append(("e", "ann 2", THERE))),
    ({"missed"}, lambda ann, bob: setattr(bob, "missed", 1)),
])
def test_checker_finds_what_is_wrong(verdict, spoil):
    """The judge acquits a flawless history and names each fault that is put into it."""
    ann, bob = a_history("ann", [1, 2, 3]), a_history("bob", [1, 2, 3])
    spoil(ann, bob)
    assert {what.partition(":")[0] for what in HistoryChecker([ann, bob], "e").violations()} == verdict


# --- The saboteur ---

class CuttingProxy:
    """Sits between clients and the server, and breaks what passes. Each connection gets its faults by its number and the seed:

    - it is cut after a random number of bytes, counted in a random direction, on both sides with a FIN or with a RST;
      sometimes the server's side is cut a moment later than the client's, so that the client is back before it;
    - or it goes silent after them: nothing passes any more, and nobody is told;
    - ACKs from the server are swallowed, and whole frames come twice, in both directions.

    The first line of each direction (join and welcome) passes whole. calm() ends the mischief; what is silent then is cut.
    One thread accepts ("proxy"), one a connection pumps ("link"); close() ends them all.
    """

    LEAST, MOST = 200, 10_000           # bytes after which a connection is cut
    SILENT = 12                         # every so many-th connection goes silent
    LATE, LATENESS = 3, 0.1             # and of every so many-th the server hears late, by so many seconds
    SWALLOW, DOUBLE = 0.3, 0.05         # of the ACKs, and of the frames

    def __init__(self, port, seed):
        self.target = port
        self.seed = seed
        self.is_calm = threading.Event()
        self.counts = Counter()         # what was done, for a test that wants to know that something was
        self._lock = threading.Lock()   # protects the two below; a leaf
        self._open = set()              # sockets of the links
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def calm(self):
        """From here on everything passes."""
        self.is_calm.set()

    def close(self):
        self.calm()
        shut(self._listener)            # wakes accept()
        with self._lock:
            self._closed = True
            for sock in self._open:
                shut(sock)

    def opened(self, *socks):
        with self._lock:
            self._open |= set(socks)
            if self._closed:
                for sock in socks:
                    shut(sock)

    def closed(self, *socks):
        with self._lock:
            self._open -= set(socks)

    def _accept(self):
        number = 0
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return self._listener.close()
            number += 1
            try:
                link = Link(self, client, number)
            except OSError:             # no server is there now
                client.close()
                continue
            threading.Thread(target=link.run, name="link", daemon=True).start()


class Link:
    """One connection through the proxy, pumped by one thread."""

    def __init__(self, proxy, client, number):
        self._proxy = proxy
        self._client = client
        self._server = socket.create_connection(("127.0.0.1", proxy.target), timeout=PATIENCE)
        self._chance = random.Random(f"{proxy.seed} {number}")
        self._is_silent = number % proxy.SILENT == 0
        self._resets = number % 2 == 1
        self._lateness = proxy.LATENESS if number % proxy.LATE == 0 else 0
        self._left = {client: float("inf"), self._server: float("inf")}     # bytes that still pass, of those that it sends
        self._left[self._server if self._chance.random() < 0.7 else client] = self._chance.randint(proxy.LEAST, proxy.MOST)
        self._partial = {client: b"", self._server: b""}                    # a line without its end
        self._has_begun = set()                                             # whose first line has passed
        proxy.opened(client, self._server)

    def run(self):
        try:
            with selectors.DefaultSelector() as selector:
                for sock in self._left:
                    selector.register(sock, selectors.EVENT_READ)
                while all(self._pass_on(key.fileobj) for key, _ in selector.select()):
                    pass
        except OSError:
            pass                        # one side is gone
        self._proxy.closed(self._client, self._server)
        self._end(self._client)
        if not self._proxy.is_calm.wait(self._lateness):
            self._proxy.counts["late"] += bool(self._lateness)
        self._end(self._server)

    def _pass_on(self, source):
        """Let through what has come from `source`; False at the end of the connection."""
        data = source.recv(65_536)
        if not data:
            return False
        calm = self._proxy.is_calm.is_set()
        if 0 in self._left.values():
            return not calm             # silent: it is swallowed
        *lines, self._partial[source] = (self._partial[source] + data).split(b"\n")
        data = b"".join(self._spoil(line + b"\n", source, calm) for line in lines)
        sink = self._server if source is self._client else self._client
        if calm or len(data) < self._left[source]:
            self._left[source] -= len(data) if not calm else 0
            sink.sendall(data)
            return True
        sink.sendall(data[:int(self._left[source])])            # cut in the middle of a frame, as likely as not
        self._left[source] = 0
        self._proxy.counts["silent" if self._is_silent else "RST" if self._resets else "FIN"] += 1
        return self._is_silent

    def _spoil(self, line, source, calm):
        """`line`, or nothing, or twice."""
        if calm or source not in self._has_begun:
            self._has_begun.add(source)
            return line
        chance = self._chance.random()
        is_ack = line.startswith(b'{"type":"ack"')
        if is_ack and source is self._server and chance < self._proxy.SWALLOW:
            self._proxy.counts["swallowed"] += 1
            return b""
        if not is_ack and chance < self._proxy.DOUBLE:
            self._proxy.counts["doubled"] += 1
            return line * 2
        return line

    def _end(self, sock):
        if self._resets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if os.name == "nt" else "ii", 1, 0))
        else:
            shut(sock)
        sock.close()


def shut(sock):
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


@pytest.fixture
def sabotage():
    """Make CuttingProxies, and close them at the end."""
    proxies = []

    def proxy(server):
        proxies.append(CuttingProxy(server.port, SEED))
        return proxies[-1]
    yield proxy
    for proxy in proxies:
        proxy.close()


# --- Delivery over what breaks ---

def speak(talker, count, begin=1, ahead=40):
    """Say "NAME NUMBER" so many times, with at most `ahead` unacknowledged; stops when the client has ended."""
    for number in range(begin, begin + count):
        wait_until(lambda: len(talker.client.unsettled) < ahead or talker.ended)
        talker.say(f"{talker.history.name} {number}")


def speak_all(talkers, count, begin=1):
    """All of them at once, each on its thread; returns the threads."""
    threads = [threading.Thread(target=speak, args=(talker, count, begin), daemon=True) for talker in talkers]
    for thread in threads:
        thread.start()
    return threads


def wait_until_heard(everybody, speakers, text):
    """Wait until each of `everybody` has heard "SPEAKER text" of each speaker, and all is settled."""
    last_words = {f"{talker.history.name} {text}" for talker in speakers}
    for talker in everybody:
        wait_until(lambda: last_words <= set(talker.texts()[-500:]) and not talker.client.unsettled,
                   what=lambda: f"{talker.history.name} did not hear {last_words - set(talker.texts())}, {talker.ended!r}")


def test_nothing_lost_or_twice_over_a_hostile_network(serve, sabotage, talk, impatient):
    """2,400 messages over connections that break again and again: all arrive, once, in one order, at everybody."""
    proxy = sabotage(serve())
    speakers = [talk(proxy.port, name) for name in ("ann", "bob", "eve", "joe")]
    everybody = speakers + [talk(proxy.port, name) for name in ("l1", "l2", "l3")]
    for thread in speak_all(speakers, 600):
        thread.join(2 * PATIENCE)
    proxy.calm()
    speak_all(speakers, 1, begin=601)           # last words: whoever has heard them would have heard all before them
    wait_until_heard(everybody, speakers, 601)
    assert HistoryChecker([talker.history for talker in everybody], speakers[0].history.epoch).violations() == []
    assert min(proxy.counts[what] for what in ("FIN", "RST", "silent", "swallowed", "doubled", "late")) >= 3, proxy.counts
    assert sum(talker.lost for talker in everybody) > 30


def test_server_killed_and_restarted_clients_go_on(serve, talk, impatient):
    """kill -9 and a start on the same port, twice, without history: everybody comes back alone, and says it all again."""
    server = serve()
    speakers = [talk(server.port, "ann"), talk(server.port, "bob")]
    everybody = speakers + [talk(server.port, "eve")]
    threads = speak_all(speakers, 900)
    for count in 1, 2:
        wait_until(lambda: all(len(talker.history.states) > 250 * count for talker in speakers))
        server.kill()
        server.start()
    for thread in threads:
        thread.join(PATIENCE)
    speak_all(speakers, 1, begin=901)
    wait_until_heard(everybody, speakers, 901)
    histories = [talker.history for talker in everybody]
    epochs = [list(history.since) for history in histories]
    assert epochs[0] == epochs[1] == epochs[2] and len(set(epochs[0])) == 3
    for epoch in epochs[0]:
        violations = HistoryChecker(histories, epoch).violations()
        if epoch != epochs[0][-1]:      # a crash without history may take with it what it had acknowledged
            violations = [what for what in violations if not what.startswith("lost")]
        assert violations == []
    heard = set(everybody[2].texts())
    acknowledged_by_the_dead = {text for history in histories for epoch, text, _ in history.states if epoch != epochs[0][-1]}
    assert {said.text for history in histories for said in history.said} <= heard | acknowledged_by_the_dead
    assert not any(talker.ended for talker in everybody)


# --- Sessions ---

def test_takeover_boots_the_older_connection(serve, connect):
    """A session that joins on three more connections at once has one owner at the end: the others are booted and closed."""
    server = serve()
    watcher, first = connect(server.port), connect(server.port)
    watcher.join("watcher")
    mine = first.join("ann")
    first.send("chat", id=1, text="from the first")
    seen = first.expect("chat")["id"]
    others = [connect(server.port) for _ in range(3)]
    gate = threading.Barrier(3)

    def resume(peer):
        gate.wait(PATIENCE)
        peer.join("ann", session=mine["session"], epoch=mine["epoch"], seen=seen)
    threads = [threading.Thread(target=resume, args=(peer,), daemon=True) for peer in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert [peer.frames[0]["resumed"] for peer in others] == [True] * 3
    for number, peer in enumerate(others):      # who is still in gets an ACK, who is not a closed door
        try:
            peer.send("chat", id=2, text=f"from {number}")
        except ConnectionError:
            pass
    frames = [peer.read_to_the_end() for peer in [first, *others] if not lives(peer)]
    assert len(frames) == 3
    assert all([frame["type"] for frame in mine if "reason" in frame] == ["booted"] for mine in frames)
    watcher.send("chat", id=1, text="end")
    watcher.expect("chat", text="end")
    assert len([frame for frame in watcher.frames if frame.get("cid") == 2 or frame["type"] == "left"]) == 1


def lives(peer):
    """Whether this is the connection of now: its message is acknowledged."""
    try:
        return bool(peer.expect("ack", id=2))
    except (AssertionError, ConnectionError):
        return False


def test_takeover_by_a_client_ends_the_older_client(serve, connect, talk):
    """A ChatClient whose session goes on elsewhere ends, says why, and does not fight for it."""
    server = serve()
    ann = talk(server.port, "ann")
    other = connect(server.port)
    welcome = other.join("ann", session=ann.client._session, epoch=ann.history.epoch, seen=0)
    assert welcome["resumed"] and welcome["name"] == "ann"
    wait_until(lambda: ann.ended.startswith("you were booted: this session"))
    other.send("ping", id=1)
    other.expect("ack", id=1)


@pytest.mark.parametrize("made_up", [{"session": "made-up"}, {"session": ""}, {"session": "made-up", "seen": 1_000_000}])
def test_resume_with_a_made_up_session_gives_a_fresh_one(serve, connect, made_up):
    """Whoever comes with a secret that is none starts anew: another secret, nothing confirmed, no private messages of others."""
    server = serve()
    ann, bob, eve = connect(server.port), connect(server.port), connect(server.port)
    epoch = ann.join("ann")["epoch"]
    bob.join("bob")
    ann.send("chat", id=1, text="private", to="bob")
    bob.expect("chat", text="private")
    welcome = eve.join("eve", epoch=epoch, **made_up)
    assert not welcome["resumed"] and welcome["got"] == 0
    assert len(welcome["session"]) >= 22 and welcome["session"] != made_up["session"]
    eve.send("chat", id=1, text="public")
    eve.expect("chat", text="public")
    assert [frame["text"] for frame in eve.frames if frame["type"] == "chat"] == ["public"]


# --- What members see of each other ---

def test_receipts_reach_all(serve, talk):
    """The speaker hears how many have confirmed its message, until all have; a private one has one recipient."""
    server = serve()
    ann, *_ = [talk(server.port, name) for name in ("ann", "bob", "eve", "joe")]
    public, private, alone = ann.say("ann 1"), ann.say("ann 2", "bob"), ann.say("ann 3", "ann")
    wait_until(lambda: (public.heard, public.of) == (3, 3) and (private.heard, private.of) == (1, 1))
    assert (alone.state, alone.heard, alone.of) == (THERE, 0, 0)


def test_leave_rename_and_whisper(serve, talk):
    """A rename and a leave are heard by all, a whisper by two, and one to nobody fails and is never THERE."""
    server = serve()
    ann, bob, eve = [talk(server.port, name) for name in ("ann", "bob", "eve")]
    bob.client.rename("rob")
    wait_until(lambda: ("renamed", "bob") in ann.names and "rob" in eve.client.users.values() and bob.client.name == "rob")
    ann.say("ann 1", "rob")
    nobody = ann.say("ann 2", "bob")
    ann.say("ann 3")
    wait_until(lambda: all("ann 3" in talker.texts() for talker in (ann, bob, eve)) and not ann.client.unsettled)
    assert ann.texts() == bob.texts() == ["ann 1", "ann 3"] and eve.texts() == ["ann 3"]
    assert (nobody.state, nobody.reason) == (FAILED, "nobody here is called bob")
    assert [state for _, text, state in ann.history.states if text == "ann 2"] == [FAILED]
    bob.client.close()
    wait_until(lambda: ("left", "rob") in ann.names and ("left", "rob") in eve.names)
    assert list(ann.client.users.values()) == list(eve.client.users.values()) == ["ann", "eve"]


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux only")
def test_threads_share_a_core():
    """Who reads a member and who sends run on one core, and the first gives way; where that is forbidden nothing breaks."""
    before, found = os.sched_getaffinity(0), []

    def look(*arguments):
        chat_server.share_core(*arguments)
        found.append((os.sched_getaffinity(0), os.sched_getscheduler(0)))
    for arguments in (), (True,):
        thread = threading.Thread(target=look, args=arguments)
        thread.start()
        thread.join()
    (core, policy), (same, other) = found
    assert core == same <= before and len(core) == 1 and (policy, other) == (os.sched_getscheduler(0), os.SCHED_BATCH)
    assert os.sched_getaffinity(0) == before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_setaffinity", lambda *arguments: os.stat(""))
        chat_server.share_core()


def test_second_process_with_the_same_name_gets_the_suggestion(serve, talk):
    """A second client of a name comes in under the one that the server suggests."""
    server = serve()
    ann = talk(server.port, "ann")
    done = subprocess.run([sys.executable, os.path.join(ROOT, "chat_client.py"), "127.0.0.1", str(server.port), "-n", "ann"],
                          input="ann 1\n", capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    wait_until(lambda: ann.names == [("joined", "ann-2"), ("left", "ann-2")])
    assert [chat.sender for _, chat in ann.history.chats] == ["ann-2"]


# --- The bench: room, connections and sessions with a fake clock, in one thread ---

class Bench:
    """A Room with its inbox, and a clock that only advance() moves."""

    def __init__(self, **settings):
        self.now = 1_000.0
        self.alarm = Alarm(lambda: self.now, self._new_timer)
        self._timers = []
        self._inbox = deque()
        self.room = chat_server.Room(self.alarm, self.post, chat_server.Settings(**settings))

    def post(self, method, *arguments):
        self._inbox.append((method, arguments))

    def settle(self):
        """What the sequencer does: all that waits, then a flush."""
        while self._inbox:
            while self._inbox:
                method, arguments = self._inbox.popleft()
                method(*arguments)
            self.room.flush()

    def advance(self, seconds):
        until = self.now + seconds
        while True:
            timer = min(self._timers, key=lambda timer: timer.when, default=None)
            if timer is None or timer.when > until:
                break
            self._timers.remove(timer)
            self.now = max(self.now, timer.when)
            timer.ring()
            self.settle()
        self.now = until

    def _new_timer(self, delay, ring):
        timer = types.SimpleNamespace(when=self.now + delay + 1e-6, ring=ring)
        timer.start = lambda: self._timers.append(timer)
        timer.cancel = lambda: timer in self._timers and self._timers.remove(timer)
        return timer

    def member(self, name, **resume):
        """A member who has joined."""
        member = BenchMember(self, name)
        member.send("join", name=name, **resume)
        member.take()
        return member


class BenchMember:
    """A Connection of the bench, and what the other end of it gets. It confirms what it takes, unless `mute`."""

    def __init__(self, bench, name):
        self.bench, self.name, self.mute = bench, name, False
        self.written = []               # bytes
        self.is_over = False
        self.welcome = None
        self.seen = self.last_id = 0
        wire = types.SimpleNamespace(write=self.written.append, finish=self._over, cut=self._over, close=lambda: None)
        self.connection = chat_server.Connection(wire, "127.0.0.1", bench.room, bench.post, bench.alarm, 0)

    def _over(self):
        self.is_over = True

    def send(self, type, **fields):
        self.connection.received(frame(type, **fields))
        self.connection.release()
        self.bench.settle()

    def say(self, text, **fields):
        self.last_id += 1
        self.send("chat", id=self.last_id, text=text, **fields)

    def take(self):
        """All frames since the last time; what the ACK brings comes as well."""
        frames = []
        while self.written:
            frames += map(json.loads, b"".join(self.written).splitlines())
            self.written.clear()
            news = [got["id"] for got in frames if got["type"] != "ack" and got.get("id", 0) > self.seen]
            if news and not self.mute:
                self.seen = max(news)
                self.send("ack", id=self.seen)
        self.welcome = next((got for got in frames if got["type"] == "welcome"), self.welcome)
        return frames

    def texts(self):
        return [got["text"] for got in self.take() if got["type"] == "chat"]

    def lose(self):
        """The connection breaks."""
        self.bench.post(self.bench.room.lost, self.connection, "broken")
        self.bench.settle()
        self.connection.manager.detach()

    def resume(self, name="", **changes):
        """The same member on another connection; what it gets at once is not taken yet."""
        again = BenchMember(self.bench, self.name)
        again.seen, again.last_id, again.welcome = self.seen, self.last_id, self.welcome
        again.send("join", **{"name": self.name, "session": self.welcome["session"], "epoch": self.welcome["epoch"],
                              "seen": self.seen, **changes})
        return again


class Line:
    """A ClientSession on a BenchMember's place: carries bytes between it and a Connection of the bench."""

    def __init__(self, bench, name, **callbacks):
        self.bench = bench
        self.session = ClientSession(name, bench.alarm, **callbacks)
        self.joins = []                 # the join of each connection
        self.delivered = []             # frames that the client got over the connection of now

    def open(self):
        self.delivered = []
        self._down = []
        wire = types.SimpleNamespace(write=self._down.append, finish=lambda: None, cut=lambda: None, close=lambda: None)
        self.connection = chat_server.Connection(wire, "127.0.0.1", self.bench.room, self.bench.post, self.bench.alarm, 0)
        self._up = []
        self.session.opened(self._up.append)
        self.joins.append(json.loads(self._up[0]))
        return self.carry()

    def carry(self, until=lambda: False):
        """Carry bytes to and fro until there are none."""
        while (self._up or self._down) and not until():
            if self._up:
                self.connection.received(self._up.pop(0))
                self.connection.release()
                self.bench.settle()
            else:
                data = self._down.pop(0)
                self.delivered += map(json.loads, data.splitlines())
                self.session.received(data)
        return self

    def lose(self):
        self.session.closed()
        self.bench.post(self.bench.room.lost, self.connection, "broken")
        self.bench.settle()
        self.connection.manager.detach()


def pending(*ids):
    return PendingMessage(list(ids), [b"%d\n" % id for id in ids])


def manager(bench):
    return MessageManager(bench.alarm, lambda: None, lambda: None)


def ids_in(written):
    return [int(line) for line in b"".join(written).split() if line.isdigit()]


# --- The holes that others fell into ---

def test_teardown_keeps_what_was_in_flight_amqtt_401():
    """amqtt#401, tearing a connection down deletes what was in flight: it goes out again, in order, before what waited."""
    out = manager(Bench())
    first, second = [], []
    out.attach(first.append)
    for id in range(1, 101):
        out.send(pending(id))
    assert ids_in(first) == list(range(1, WINDOW + 1))
    out.detach()
    out.send(pending(101))
    out.attach(second.append, confirmed=3)
    assert ids_in(second) == list(range(4, 4 + WINDOW))
    out.acknowledged(67)
    assert ids_in(second) == list(range(4, 102))


def test_lost_member_gets_what_was_in_flight_amqtt_401():
    """amqtt#401 on the server: what a member had not confirmed when its connection broke is replayed, whispers too, once."""
    bench = Bench()
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.take()
    for number in range(2 * WINDOW):
        bob.say(f"{number}", **({"to": "ann"} if number % 7 == 0 else {}))
        bob.take()
    ann.lose()
    bob.say("meanwhile")
    assert ann.resume().texts() == [str(number) for number in range(2 * WINDOW)] + ["meanwhile"]


def test_acknowledged_counter_goes_on_conversations_879():
    """Conversations#879, the ACK counter freezes and the last messages come again on every resume: each resume brings only news."""
    heard = []
    bench = Bench()
    line, bob = Line(bench, "ann", on_message=heard.append).open(), bench.member("bob")
    for number in range(20):
        bob.say(f"{number}")
        bob.send("rename", id=bob.last_id + 1, name=f"bob-{number}")
        bob.last_id += 1
        bob.take()
        line.session.say(f"mine {number}")
        line.carry().lose()
        bob.say(f"missed {number}")
        bob.take()
        line.open()
        assert [got["text"] for got in line.delivered if got["type"] == "chat"] == [f"missed {number}"]
        assert line.delivered[0]["got"] == number + 1
    texts = [message.text for message in heard if isinstance(message, Chat)]
    assert len(texts) == len(set(texts)) == 60


@pytest.mark.parametrize("line", [
    b'{"type":"chat","id":7,"from":"bob","text":"hi","at":1}', b'{"type":"ping","id":7}', b'{"type":"newer","id":7}',
    b'{"type":"chat","id":7}', b'{"type":"error","id":7,"code":"flooding"}', b'{"type":"renamed","id":7,"name":"a","to":"b","at":1}',
])
def test_every_kind_of_frame_moves_the_counter_conversations_879(line):
    """Conversations#879: frames that are not shown count as well, a later resume does not ask for them again."""
    bench = Bench()
    joins = []
    session = ClientSession("ann", bench.alarm)
    session.opened(joins.append)
    session.received(frame("welcome", name="ann", session="s", epoch="e", users=["ann"], last=6))
    session.received(line + b"\n")
    session.closed()
    session.opened(joins.append)
    assert [json.loads(join).get("seen", 0) for join in joins if b'"join"' in join] == [0, 7]


def test_window_has_all_its_places_after_many_reconnects_mosquitto_898():
    """mosquitto#898, in-flight places leak until nothing is delivered: after 200 reconnects the window is as large as ever."""
    out, chance = manager(Bench()), random.Random(SEED)
    newest = confirmed = 0
    for _ in range(200):
        written = []
        out.attach(written.append, confirmed)
        assert ids_in(written) == list(range(confirmed + 1, min(newest, confirmed + WINDOW) + 1))
        for newest in range(newest + 1, newest + chance.randint(1, 50)):
            out.send(pending(newest))
        sent = ids_in(written)
        confirmed = chance.randint(confirmed, sent[-1] if sent else confirmed)
        if chance.random() < 0.5:
            out.acknowledged(confirmed)
        out.detach()
    written = []
    out.attach(written.append, newest)
    assert out.empty and not written
    out.send(pending(*range(newest + 1, newest + 2 * WINDOW)))
    assert ids_in(written) == list(range(newest + 1, newest + WINDOW + 1))


def test_window_in_bytes_does_not_leak_mosquitto_898():
    """mosquitto#898 for bytes: frames of every size go round through rewinds and splits, and the byte count is exact after it."""
    window, chance, id = MessageQueue(), random.Random(SEED), 0
    for _ in range(150):
        ids = list(range(id + 1, id + chance.randint(2, 9)))
        window.put(PendingMessage(ids, [b"x" * chance.randint(1, 40_000) for _ in ids]))
        id = ids[-1]
        if chance.random() < 0.3:
            window.rewind()
            window.take()
        window.acknowledge(chance.randint(window.acked, window.newest_sent))
        window.take()
    while not window.empty:
        window.acknowledge(window.newest_sent)
        window.take()
    assert (window.frames_in_flight, window._bytes_in_flight, window.frames_waiting, window._bytes_waiting) == (0, 0, 0, 0)


@pytest.mark.parametrize("leaves", [False, True])
def test_dead_peer_does_not_count_as_reached_ejabberd_417(leaves):
    """ejabberd#417, a dead peer counts as reached: who confirms nothing is not among those who heard, also once it is out."""
    bench = Bench(grace=5)
    ann, bob, eve = bench.member("ann", receipts=True), bench.member("bob"), bench.member("eve")
    eve.mute = True
    ann.take(), bob.take()
    ann.say("hello")
    eve.take(), bob.take()
    if leaves:
        eve.lose()
        bench.advance(6)
    receipts = []
    for _ in range(40):
        bench.advance(0.5)
        receipts += [got for got in ann.take() if got["type"] == "heard"]
        bob.take()
    assert {(got["count"], got["of"]) for got in receipts} == {(1, 2)}
    assert eve.is_over or leaves


def test_said_to_a_dead_peer_is_not_lost_ejabberd_3228():
    """ejabberd#3228, what is said to a peer that is dead and not known to be is lost: it gets it when it comes back."""
    bench = Bench()
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.take()
    bob.mute = True
    ann.say("into the void"), ann.say("and a whisper", to="bob")
    bob.take(), ann.take()
    for _ in range(20):
        bench.advance(0.5)
        ann.take()
    assert bob.is_over and "lost its" not in str(ann.take())
    ann.say("in the grace time")
    again = bob.resume()
    assert again.welcome["name"] == "bob" and again.texts() == ["into the void", "and a whisper", "in the grace time"]


def test_said_after_the_restart_is_heard_mosquitto_769():
    """mosquitto#769, what is said after a restart and before the client is back is lost: it hears all that was said since."""
    before, after = Bench(), Bench()
    ann = before.member("ann")
    bob = after.member("bob")
    for number in range(50):
        bob.say(f"{number}")
        bob.take()
    ann.bench = after
    again = ann.resume()
    frames = again.take()
    assert not frames[0]["resumed"] and frames[0]["epoch"] != before.room.epoch and frames[0]["missed"] == 0
    assert [got["text"] for got in frames if got["type"] == "chat"] == [f"{number}" for number in range(50)]


def test_replay_after_the_restart_is_resumed_mosquitto_769():
    """mosquitto#769 once more: a connection that breaks within that replay goes on where it was."""
    after = Bench()
    bob = after.member("bob")
    for number in range(100):
        bob.say(f"{number}")
        bob.take()
    ann = BenchMember(after, "ann")
    ann.send("join", name="ann", session="of the last run", epoch="the last run", seen=5)
    ann.mute = True
    frames = ann.take()                 # a window of them
    ann.seen = frames[10]["id"]
    ann.lose()
    bob.say("100")
    heard = [got["text"] for got in frames[:11] if got["type"] == "chat"]
    again = ann.resume()
    rest = again.take()
    heard += [got["text"] for got in rest if got["type"] == "chat"]
    assert heard == [f"{number}" for number in range(101)] and rest[0]["missed"] == 0


def test_full_queue_is_not_silent_mosquitto_1793(monkeypatch):
    """mosquitto#1793, a full queue drops silently: the member is dropped as too slow, and its resume brings all, in order."""
    monkeypatch.setattr(chatproto, "QUEUE_FRAMES", 100)
    bench = Bench()
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.take()
    ann.mute = True
    for number in range(300):
        bob.say(f"{number}")
        bob.take()
    assert ann.is_over and "left" not in [got["type"] for got in bob.take()]
    ann.written.clear()
    again = ann.resume()
    frames = again.take()
    assert frames[0]["missed"] == 0
    assert [got["text"] for got in frames if got["type"] == "chat"] == [f"{number}" for number in range(300)]
    assert [got["code"] for got in frames if got["type"] == "error"] == ["too-slow"]


def test_full_queues_raise_mosquitto_1793(monkeypatch):
    """mosquitto#1793: a queue and a client that cannot take any more say so, and have not taken it."""
    monkeypatch.setattr(chatproto, "QUEUE_FRAMES", 3)
    monkeypatch.setattr(chat_client, "UNSENT", 3)
    window = MessageQueue()
    for id in range(1, WINDOW + 4):
        window.put(pending(id))
    with pytest.raises(queue.Full):
        window.put(pending(WINDOW + 4))
    window.acknowledge(WINDOW)
    assert window.take() == b"".join(b"%d\n" % (WINDOW + id) for id in (1, 2, 3))
    session = ClientSession("ann", Bench().alarm)
    said = [session.say("hi") for _ in range(3)]
    with pytest.raises(queue.Full):
        session.say("too much")
    assert list(session.unsettled.values()) == said


def test_client_acknowledges_after_its_work_mosquitto_188():
    """mosquitto#188, acknowledging before the application has it: no ACK, and no `seen`, before on_message is through."""
    bench, written, seen = Bench(), [], []

    def on_message(message):
        bench.now += 1                  # a slow application: the late ACK would be due
        seen.append((session.manager.seen, b"".join(written).count(b'"ack"')))
        if message.text == "3":
            raise OSError("the application's disk is full")
    session = ClientSession("ann", bench.alarm, on_message=on_message)
    session.opened(written.append)
    session.received(frame("welcome", name="ann", session="s", epoch="e", users=["ann"], last=0))
    with pytest.raises(OSError):
        session.received(b"".join(frame("chat", id=id, **{"from": "bob"}, text=f"{id}", at=1) for id in (1, 2, 3, 4)))
    assert seen == [(0, 0), (1, 0), (2, 0)]
    session.closed()
    session.opened(written.append)
    assert json.loads(written[-1])["seen"] == 2


def test_server_acknowledges_after_the_message_has_its_place_mosquitto_188():
    """mosquitto#188 on the server: no ACK before the room has the chat and has sent it; not even when the connection took it."""
    bench = Bench()
    ann, bob = bench.member("ann"), bench.member("bob")
    bench.advance(1)                    # joins wait a little for each other
    ann.take()
    ann.connection.received(frame("chat", id=1, text="hi"))
    ann.connection.release()
    bench.advance(1)
    order = []
    ann.connection._wire.write = ann.connection.manager._write = lambda data: order.append(("ann", json.loads(data)["type"]))
    bob.connection.manager._write = lambda data: order.append(("bob", json.loads(data)["type"]))
    assert not ann.written and bench.room.last == 2
    bench.settle()
    assert order == [("ann", "chat"), ("bob", "chat"), ("ann", "ack")]


def test_ack_of_something_never_sent_is_refused():
    """An ACK of something never sent ends that connection with a bad-frame; the others, and its session, go on."""
    bench = Bench()
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.take()
    bob.say("unconfirmed")
    ann.connection.received(frame("ack", id=bench.room.last + 1))
    ann.connection.release()
    bench.settle()
    assert ann.is_over and not bob.is_over
    assert json.loads(b"".join(ann.written).splitlines()[-1])["code"] == "bad-frame"
    assert ann.resume().texts() == ["unconfirmed"]
    out = manager(bench)
    out.attach(lambda data: None)
    out.send(pending(5))
    with pytest.raises(FrameError):
        out.acknowledged(6)
    assert not out.empty and out.acked == 0


# --- Holes of our own ---

def test_refusal_behind_a_long_replay_is_not_taken_for_a_yes():
    """A refused whisper that is sent again while its error still waits behind the window is FAILED, and never THERE."""
    bench, states = Bench(), []
    line = Line(bench, "ann", on_state=lambda said: states.append(said.state)).open()
    bob = bench.member("bob")
    line.carry()
    for number in range(2 * WINDOW):    # on their way when the connection breaks
        bob.say(f"{number}")
        bob.take()
    line._down.clear()
    line.session.say("psst", "nobody")
    line.carry(until=lambda: not line._up)
    line.lose()
    line.open()
    assert states == [FAILED] and not line.session.unsettled


def test_retry_after_a_lost_ack_is_not_heard_twice():
    """A client whose ACKs are all lost sends again under the same id, over the same connection and over the next one."""
    bench = Bench()
    line, bob = Line(bench, "ann").open(), bench.member("bob")
    line.carry()
    line.session.say("once")
    line.carry(until=lambda: not line._up)
    line._down.clear()
    assert bob.texts() == ["once"]
    bench.advance(chatproto.RETRY_DELAY + 0.1)
    assert sum(b'"once"' in data for data in line._up) == 1
    line.carry(until=lambda: not line._up)
    line.lose()
    line.open()
    assert bob.texts() == [] and not line.session.unsettled


def test_history_of_a_namesake_is_not_taken_for_our_own():
    """What an earlier bearer of our name said under our id is not our message: its receipts are about our own one."""
    bench = Bench()
    earlier = bench.member("ann")
    earlier.say("of old")
    earlier.take()
    earlier.send("leave", id=2)
    bob = bench.member("bob")
    line = Line(bench, "ann")
    said = line.session.say("hi")       # said before the history comes
    line.open()
    bob.take()
    for _ in range(4):                  # its ACK, then the receipt
        bench.advance(0.5)
        line.carry()
    assert (said.state, said.heard, said.of) == (THERE, 1, 1)


def test_rename_taken_while_the_connection_broke_is_kept():
    """A rename whose news was lost with the connection is ours for good: the next join asks for the new name."""
    written = []
    session = ClientSession("bob", types.SimpleNamespace(clock=lambda: 0.0, at=lambda when, action: None))
    session.opened(written.append)
    welcome = {"type": "welcome", "name": "bob", "session": "s", "epoch": "e", "users": ["bob"], "last": 1}
    session.received(json.dumps(welcome).encode() + b"\n")
    session.rename("rob")
    session.closed()
    session.opened(written.append)
    welcome.update(name="rob", users=["rob"], last=2, resumed=True, got=1)
    session.received(json.dumps(welcome).encode() + b"\n" + chatproto.Renamed(2, "bob", "rob", 1.0).encode())
    session.closed()
    session.opened(written.append)
    assert json.loads(written[-1])["name"] == "rob" == session.name


# --- Many members ---

def test_joins_go_out_together():
    """Joins and leaves alone go out at most every 0.1 s, in one write; with something that is said, and in their order, at once."""
    bench = Bench()
    ann = bench.member("ann")
    bench.advance(1)
    others = [bench.member(f"m{number}") for number in range(4)]        # the first finds a quiet room
    assert [got["name"] for got in ann.take()] == ["m0"]
    bench.advance(0.2)
    assert len(ann.written) == 1 and [got["name"] for got in ann.take()] == ["m1", "m2", "m3"]
    bench.advance(1)
    bench.member("late"), bench.member("later")
    others[0].say("hi")
    assert [(got["type"], got.get("name", got.get("text"))) for got in ann.take()] == [("joined", "late"), ("joined", "later"), ("chat", "hi")]
    bench.member("last")
    ann.say("hello")
    assert [got["type"] for got in others[0].take()][-2:] == ["joined", "chat"]
    bench.advance(1)
    assert ann.texts() == ["hello"] and ann.take() == []


def test_room_with_more_members_than_are_listed(monkeypatch):
    """Who comes when the list is full is told to nobody until there is room in it, and is a member like all others."""
    monkeypatch.setattr(chat_server, "LISTED", 2)
    bench = Bench()
    ann, bob, eve, joe = (bench.member(name) for name in ("ann", "bob", "eve", "joe"))
    assert (bob.welcome["users"], bob.welcome.get("here")) == (["ann", "bob"], None)
    assert (eve.welcome["users"], eve.welcome.get("here")) == (["ann", "bob", "eve"], None)
    assert (joe.welcome["users"], joe.welcome["here"]) == (["ann", "bob", "joe"], 4)
    bench.advance(1)
    assert [got["name"] for got in ann.take() if got["type"] == "joined"] == ["bob"]
    assert eve.take() == joe.take() == []
    eve.say("hi")
    joe.say("psst", to="eve")
    assert [one.texts() for one in (ann, bob, eve, joe)] == [["hi"], ["hi"], ["hi", "psst"], ["hi", "psst"]]
    joe.send("rename", id=2, name="jim")
    bench.advance(1)
    assert [got["to"] for got in joe.take() if got["type"] == "renamed"] == ["jim"] and ann.take() == []
    eve.send("leave", id=2)
    bench.advance(1)
    assert ann.take() == []                                             # nobody had been told of her
    bob.send("leave", id=1)
    bench.advance(1)
    assert [(got["type"], got["name"]) for got in ann.take()] == [("left", "bob"), ("joined", "jim")]
    assert bench.member("kim").welcome["users"] == ["ann", "jim", "kim"]
    assert sorted(name for name, _ in bench.room.users()) == ["ann", "jim", "kim"]
