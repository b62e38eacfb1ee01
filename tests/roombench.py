"""A Room, its Connections and ClientSessions with a fake clock, in one thread and without a socket:
for what real processes would take seconds or luck to show (time-outs, a full window, an unlucky
order of threads).

    bench = Bench(grace=5)
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.say("hello")
    assert bob.texts() == ["hello"]
    bench.advance(6)

This is the one file of the tests that knows how a room is put together: what it takes, what its
inbox is, what a connection offers. All else is said in frames.
"""

import json
from collections import deque
from types import SimpleNamespace

import chat_server
from chat_client import ClientSession
from chatproto import Alarm
from harness import encode, frame

ADDRESS = "192.0.2.1"


class Bench:
    """A Room with its inbox, and a clock that only advance() moves.

    `history` is a HistoryFile, `wall_clock` what the room takes for the time of day (None: the real
    one), `settings` are the server's.
    """

    def __init__(self, history=None, now=1_000.0, wall_clock=None, **settings):
        self.now = now
        self.alarm = Alarm(lambda: self.now, self._new_timer)
        # Timers that are armed.
        self.timers = []
        # Events for the sequencer: a method of the room and its arguments.
        self.inbox = deque()
        self.members = []
        # (name, bytes) of all that was written, in this order.
        self.writes = []
        self.history = history
        clock = {"wall_clock": wall_clock} if wall_clock else {}
        limits = chat_server.Settings(**{"rate": 0, **settings})
        self.room = chat_server.Room(self.alarm, self.post, limits, history=history, **clock)

    last = property(lambda self: self.room.journal.last, doc="The newest id.")
    epoch = property(lambda self: self.room.journal.epoch)
    is_held = property(lambda self: self.room.is_held)

    def names(self):
        """Who is here."""
        return [name for name, *_ in self.room.host.people()]

    def post(self, method, *arguments):
        self.inbox.append((method, arguments))

    def settle(self):
        """What the sequencer does: all that waits, then a flush; until nothing waits."""
        while self.inbox:
            while self.inbox:
                method, arguments = self.inbox.popleft()
                method(*arguments)
                if self.room.batch_is_large:
                    self.room.flush()
            self.room.flush()
            for member in self.members:
                if member.auto_ack:
                    member.confirm()

    def settle_one(self):
        """Only the first event."""
        method, arguments = self.inbox.popleft()
        rest, self.inbox = self.inbox, deque()
        method(*arguments)
        self.room.flush()
        self.settle()
        self.inbox.extend(rest)

    def flush(self):
        """The sequencer looks again, though no event came; while the room is held it takes none."""
        self.room.flush()
        if not self.is_held:
            self.settle()

    def advance(self, seconds):
        """Let time pass: each deadline is met when it is due, with the sequencer after it."""
        until = self.now + seconds
        while True:
            timer = min(self.timers, key=lambda timer: timer.when, default=None)
            if timer is None or timer.when > until:
                break
            self.timers.remove(timer)
            self.now = max(self.now, timer.when)
            timer.ring()
            self.settle()
        self.now = until

    def _new_timer(self, delay, ring):
        timer = SimpleNamespace(when=self.now + delay + 1e-6, ring=ring)
        timer.start = lambda: self.timers.append(timer)
        timer.cancel = lambda: timer in self.timers and self.timers.remove(timer)
        return timer

    def member(self, name, **resume):
        """A member who has joined, and taken its welcome."""
        member = BenchMember(self, name)
        member.send(frame("join", name=name, **resume))
        member.take()
        return member

    def visitor(self, name="", kind=None):
        """A connection that has not joined, and confirms nothing by itself."""
        visitor = BenchMember(self, name, kind)
        visitor.mute = True
        return visitor

    def say(self, text):
        """The operator says something to all; it waits for settle()."""
        self.post(self.room.host.say, text)

    def boot(self, name, reason):
        """The operator puts somebody out."""
        self.room.host.boot(name, reason)
        self.room.flush()

    def host(self, what, *arguments):
        """The host does something; return the answer."""
        answer = getattr(self.room.host, what)(*arguments)
        self.room.flush()
        self.settle()
        return answer

    def set_motd(self, text):
        self.room.host.begin(text, None)


class Wire:
    """A socket to nowhere. `script` is what the connection's run() reads: bytes, or an
    exception."""

    overhead = begun = 0

    def __init__(self, member):
        self._member = member
        self.finished = self.was_cut = self.closed = False
        self.script = []

    def read(self, timeout=None):
        step = self.script.pop(0)
        if isinstance(step, bytes):
            return step
        raise step

    def write(self, data):
        if not self.closed and not self.finished:
            self._member.written.append(data)
            self._member.bench.writes.append((self._member.name, data))

    def finish(self):
        self.finished = True

    def hung_up(self):
        return False

    def cut(self):
        self.was_cut = True

    def close(self):
        self.closed = True


class BenchMember:
    """A Connection of the bench, and what the other end of it gets. It confirms what it takes,
    unless `mute`; with `auto_ack` it confirms at once what it was sent, taken or not."""

    def __init__(self, bench, name, kind=None):
        self.bench, self.name = bench, name
        self.mute = self.auto_ack = False
        # Bytes that were not taken yet.
        self.written = []
        self.welcome = None
        self.seen = self.last_id = 0
        self.wire = Wire(self)
        self.connection = (kind or chat_server.Connection)(self.wire, ADDRESS, bench.room)
        bench.members.append(self)

    is_over = property(lambda self: self.wire.finished or self.wire.was_cut)
    in_flight = property(lambda self: self.connection.manager._flying,
                         doc="How many frames it was sent and has not acknowledged.")

    def receive(self, *frames):
        """The server reads these, bytes or dicts, in one piece; return for how long it will not
        read again. The sequencer does nothing yet."""
        self.connection.received(b"".join(one if isinstance(one, bytes) else encode(one)
                                          for one in frames))
        wait = self.connection.release()
        while self.connection.has_more and not self.connection.is_full:
            self.connection.received(b"")
            wait = self.connection.release()
        return wait

    def send(self, *frames):
        """The server reads these, and deals with them."""
        self.receive(*frames)
        self.bench.settle()

    def say(self, text, **fields):
        self.last_id += 1
        self.send(frame("chat", id=self.last_id, text=text, **fields))

    def say_all(self, texts):
        """Say all of these, many in one read and one commit, and take what comes of it."""
        said = enumerate(texts, self.last_id + 1)
        frames = [frame("chat", id=id, text=text) for id, text in said]
        self.last_id += len(frames)
        for start in range(0, len(frames), 50):
            self.send(*frames[start:start + 50])
            self.take()

    def join(self, name, **fields):
        """Join; return the welcome. What came with it is taken, too."""
        self.name = name
        self.send(frame("join", name=name, **fields))
        self.take()
        return self.welcome

    def run(self, *script):
        """What the connection's own thread does, with these reads."""
        self.wire.script = list(script)
        self.connection.run()

    def read(self):
        """The frames since the last time; nothing is confirmed."""
        frames = [json.loads(line) for line in b"".join(self.written).splitlines()]
        self.written.clear()
        self.welcome = next((one for one in frames if one["type"] == "welcome"), self.welcome)
        return frames

    def take(self):
        """All frames since the last time; what the ACK brings comes as well."""
        frames = []
        while self.written:
            frames += self.read()
            news = [one["id"] for one in frames
                    if one["type"] != "ack" and one.get("id", 0) > self.seen]
            if news and not self.mute:
                self.seen = max(news)
                self.send(frame("ack", id=self.seen))
        return frames

    def confirm(self):
        """Acknowledge all that was written so far."""
        ids = [one["id"] for one in map(json.loads, b"".join(self.written).splitlines())
               if "id" in one and one["type"] != "ack"]
        if max(ids, default=0) > self.seen:
            self.seen = max(ids)
            self.receive(frame("ack", id=self.seen))

    def texts(self):
        return [one["text"] for one in self.take() if one["type"] == "chat"]

    def gone(self):
        """The thread that reads this connection has met its end; the room does not know yet."""
        self.connection.manager.close()

    def lose(self):
        """The connection breaks."""
        self.bench.post(self.bench.room.entrance.end, self.connection, "broken")
        self.bench.settle()
        self.gone()

    def rejoin(self, **changes):
        """The join with which this member comes back."""
        return frame("join", **{"name": self.name, "session": self.welcome["session"],
                                "epoch": self.welcome["epoch"], "seen": self.seen, **changes})

    def again(self, gone_at_once=False):
        """Another connection of this member, that has not joined yet. With `gone_at_once` its end
        is met as soon as it has been welcomed."""
        again = BenchMember(self.bench, self.name, Gone if gone_at_once else None)
        again.mute = self.mute
        again.seen, again.last_id, again.welcome = self.seen, self.last_id, self.welcome
        return again

    def resume(self, **changes):
        """The same member on another connection; what it gets at once is not taken yet."""
        again = self.again()
        again.mute = False
        again.send(self.rejoin(**changes))
        return again


class Gone(chat_server.Connection):
    """A connection whose thread meets its end while the sequencer welcomes it."""

    def open(self, journal):
        super().open(journal)
        self.manager.close()


class Line:
    """A ClientSession, and the bytes between it and a Connection of the bench."""

    def __init__(self, bench, name, **callbacks):
        self.bench = bench
        self.session = ClientSession(name, bench.alarm, **callbacks)
        # The join of each connection.
        self.joins = []
        # Frames that the client got over the connection of now.
        self.delivered = []

    def open(self):
        """Connect, and carry what there is to carry."""
        self.delivered = []
        self.there = BenchMember(self.bench, self.session.name)
        # What waits to be carried, to the client and to the server.
        self.down, self.up = self.there.written, []
        self.session.opened(self.up.append)
        self.joins.append(json.loads(self.up[0]))
        return self.carry()

    def carry(self, until=lambda: False):
        """Carry bytes to and fro until there are none."""
        while (self.up or self.down) and not until():
            if self.up:
                self.there.send(self.up.pop(0))
            else:
                data = self.down.pop(0)
                self.delivered += map(json.loads, data.splitlines())
                self.session.received(data)
        return self

    def lose(self):
        """The connection breaks, with what is on its way."""
        self.session.closed()
        self.there.lose()
