"""The whole chat in one thread, without sockets and without time: a seeded world that checks every
promise of delivery.

    python tests/simulation.py                  200 seeds
    python tests/simulation.py --seeds 10000    a long run, on all cores
    python tests/simulation.py --seed 4711 -v   one again, with what happens in it

The real Room, Connection, ClientSession, MessageManager and FrameDecoder run here; only the
network, the clock and the threads are replaced. From its number a seed makes the people, what they
say, and the faults: bytes in pieces and late, connections cut at any byte or gone silent, ACKs
dropped, frames doubled, readers that stall, small windows and queues, clients and servers that
restart, people who are booted, who come late, or with a made-up session. Half of the servers have a
history file (in memory: what is committed survives): they are killed at any write and any commit,
and go on; commits fail for a while. Then the faults end, everybody says a last word, and
History.check() looks at what was promised. `load(faults)` puts deliberate faults into the code, to
prove the checker. """

import argparse
import concurrent.futures
import functools
import heapq
import logging
import os
import pathlib
import queue
import random
import re
import sqlite3
import sys
import time
import types

HERE = pathlib.Path(__file__).resolve().parent.parent
# Seconds, of the simulated server.
GRACE = 10.0
# Seconds in which there are faults.
TROUBLE = 40.0
# Seconds after them: more than a silent connection takes to be found, and the grace time.
QUIET = 75.0


# Most faults leave two of the three files as they are, and compiling them takes longer than a seed
# or two.
_compiled = functools.lru_cache(maxsize=4)(functools.partial(compile, mode="exec"))


def load(faults=()):
    """The three modules, with each (file, old, new) of `faults` put into its source, as a
    namespace."""
    modules = {}
    before = {name: sys.modules.get(name) for name in ("chatproto", "chat_server", "chat_client")}
    try:
        for name in before:
            path = HERE / f"{name}.py"
            source = path.read_text(encoding="utf-8")
            for file, old, new in faults:
                if file == name:
                    assert source.count(
                        old) == 1, f"the place of a fault is not there once: {old!r}"
                    source = source.replace(old, new)
            module = types.ModuleType(name)
            module.__file__ = str(path)
            # The roles import their chatproto, dataclasses their module.
            sys.modules[name] = modules[name] = module
            exec(_compiled(source, str(path)), module.__dict__)
    finally:
        for name, module in before.items():
            if module is not None:
                sys.modules[name] = module
            else:
                sys.modules.pop(name, None)
    return types.SimpleNamespace(**modules)


class Killed(BaseException):
    """The server is killed here and now: no handler for errors sees it."""


class World:
    """The clock, and what happens when; it is the alarm of everything in it."""

    def __init__(self, seed, modules, verbose=False):
        self.random = random.Random(seed)
        self.now = 1000.0
        self.modules = modules
        self.verbose = verbose
        self.troubled = True
        # What to do when the server is killed.
        self.crash = None
        # The log is short, and there is no file.
        self.may_miss = False
        self._todo = []
        self._count = 0

    def clock(self):
        return self.now

    def at(self, when, action):
        self._count += 1
        heapq.heappush(self._todo, (max(when, self.now), self._count, action))

    def after(self, seconds, action):
        self.at(self.now + seconds, action)

    def run(self, until):
        while self._todo and self._todo[0][0] <= until:
            self.now, _, action = heapq.heappop(self._todo)
            try:
                action()
            except Killed:
                self.crash()
        self.now = until

    def chance(self, probability):
        """True with that probability, while there is trouble."""
        return self.troubled and self.random.random() < probability

    def tell(self, *what):
        if self.verbose:
            print(f"{self.now - 1000:8.3f}", *what)


class Pipe:
    """One direction of a connection: bytes arrive in order, in pieces, late; and not all of them
    when it is cut."""

    def __init__(self, world, link, deliver, end):
        self.world = world
        self.link = link
        self.deliver = deliver              # gets the bytes
        # Is told the end.
        self.end = end
        # Nothing overtakes what is on its way.
        self.busy_until = 0.0
        # The reader does not read before.
        self.stalled_until = 0.0
        # Arrived, while the reader stalls.
        self.unread = b""
        self.shut = False

    def send(self, data):
        if self.shut or self.link.cut or self.link.dying:
            return
        if self.world.troubled:
            data = self.meddle(data)
        if not self.link.spend(len(data)):
            data = data[:self.world.random.randrange(len(data) + 1)]
            # Nothing follows what was cut off.
            self.link.dying = True
            self.world.after(self.world.random.uniform(0, 0.3), self.link.break_off)
        cuts = 0 if self.world.random.random() < 0.7 else self.world.random.randint(1, 3)
        places = sorted(self.world.random.randrange(len(data) + 1) for _ in range(cuts))
        for start, stop in zip([0, *places], [*places, len(data)]):
            if start < stop:
                self.pass_on(data[start:stop])

    def meddle(self, data):
        """Drop ACKs, double frames: what lost ACKs and retries come to."""
        lines = []
        for line in data.splitlines(keepends=True):
            if line.startswith(b'{"type":"ack"') and self.world.random.random() < 0.1:
                continue
            lines.append(line)
            if b'"id":' in line[:40] and self.world.random.random() < 0.05:
                lines.append(line)
        return b"".join(lines)

    def pass_on(self, data):
        delay = self.world.random.expovariate(50) if not self.world.chance(
            0.02) else self.world.random.uniform(0, 3)
        self.busy_until = max(self.world.now + delay, self.busy_until)
        self.world.at(self.busy_until, lambda: self.arrive(data))

    def arrive(self, data=b""):
        self.unread += data
        if self.stalled_until > self.world.now:
            self.world.at(self.stalled_until, self.arrive)
        elif not self.link.cut and not self.link.silent and self.unread:
            data, self.unread = self.unread, b""
            self.deliver(data)

    def finish(self):
        """The sender's half is over, after what it sent."""
        if not self.shut and not self.link.silent:
            self.shut = True
            self.busy_until = max(self.world.now, self.busy_until, self.stalled_until)
            self.world.at(self.busy_until, self.end)


class Link:
    """A connection between a client and the server, with its fate."""

    def __init__(self, world, client, server):
        self.world = world
        self.client = client
        self.cut = self.silent = self.dying = False
        # Bytes that it lives for, in both directions together; half of them in trouble live for
        # good.
        self.left = world.random.randrange(4000) if world.chance(0.5) else None
        self.connection = server.accept(self)
        self.to_client = Pipe(world, self, lambda data: client.hear(self, data),
                              lambda: client.lost(self, "end"))
        self.to_server = Pipe(world, self, self.server_hears, self.server_lost)
        if world.chance(0.1):
            world.after(world.random.uniform(0, 20), self.fall_silent)
        if world.chance(0.2):
            stall = world.random.choice([0.5, 3.0, 12.0])
            world.after(world.random.uniform(0, 20), lambda: self.stall(stall))

    def stall(self, seconds):
        self.to_client.stalled_until = self.world.now + seconds

    def fall_silent(self):
        """Nothing arrives any more, and nobody is told."""
        if not self.cut and self.world.troubled:
            self.world.tell(self.client.name, "silent connection")
            self.silent = True
            self.client.silent_since = self.world.now

    def spend(self, count):
        if self.left is None or not self.world.troubled:
            return True
        self.left -= count
        return self.left >= 0

    def break_off(self):
        """The cable is out; both sides are told."""
        if not self.cut:
            self.cut = True
            self.world.tell(self.client.name, "connection cut")
            self.client.lost(self, "cut")
            self.server_lost()

    def server_hears(self, data):
        self.connection.received(data)
        self.release()

    def release(self):
        """Hand over what was received; later, where the room is held."""
        if self.connection is not None:
            wait = self.connection.release()
            if wait:
                self.world.after(wait, self.release)
            elif self.connection is not None and self.connection.has_more:
                self.server_hears(b"")

    def server_lost(self):
        if self.connection is not None:
            connection, self.connection = self.connection, None
            self.cut = True
            connection.manager.close()
            connection._post(connection._room.lost, connection, "lost")
            self.world.after(0, lambda: self.client.lost(self, "end"))


class ServerWire:
    """What the server's Connection writes to, in the place of a MessageSocket."""

    def __init__(self, link, server):
        self.link = link
        self.server = server

    def write(self, data):
        self.server.risk(0.001)
        self.link.to_client.send(data)

    def finish(self):
        self.link.to_client.finish()

    def hung_up(self):
        return False

    def cut(self):
        if not self.link.silent:
            self.link.to_client.finish()
        self.link.server_lost()


class Server:
    """The sequencer's loop over the real Room, and its restarts."""

    def __init__(self, world):
        self.world = world
        world.crash = self.crash
        self.epochs = []
        self.addresses = 0
        # How often it may still be killed.
        self.kills = 0
        # The disk is full.
        self.full_until = 0.0
        # What is committed to it stays when the server is killed: it stands for the disk.
        self.disk = None
        if world.random.random() < 0.5:
            self.disk = sqlite3.connect(":memory:", isolation_level=None)
            self.kills = world.random.choice([0, 1, 1, 4])
        self.start()

    def start(self):
        server = self.world.modules.chat_server
        self.inbox = []
        self.links = []
        self.alarm = _AlarmOf(self)
        history = None if self.disk is None else self.file_class()(":memory:")
        self.room = server.Room(self.alarm, self.post, server.Settings(grace=GRACE, rate=0),
                                lambda: self.world.now,
                                history=history)
        epoch = self.room.journal.epoch
        if epoch not in self.epochs:
            self.epochs.append(epoch)

    def file_class(self):
        """The history file on our disk, and what can happen to it."""
        server, HistoryError = self, self.world.modules.chat_server.HistoryError

        class File(self.world.modules.chat_server.HistoryFile):
            def _connect(self, path):
                return server.disk

            def save(self, *arguments):
                server.risk(0.02)
                if server.world.chance(0.01):
                    server.full_until = server.world.now + server.world.random.choice([0.3, 3, 15])
                if server.world.now < server.full_until and server.world.troubled:
                    if server.world.random.random() < 0.1:
                        # On disk, and nobody knows.
                        super().save(*arguments)
                    raise HistoryError("the disk is full")
                took = super().save(*arguments)
                server.risk(0.02)
                return took
        return File

    def risk(self, probability):
        """kill -9 with that probability, when there is a history."""
        if self.kills and self.world.chance(probability):
            self.kills -= 1
            raise Killed

    def accept(self, link):
        """Nobody shares an address: a boot keeps its address out, and would hit a bystander."""
        self.links.append(link)
        self.addresses += 1
        return self.world.modules.chat_server.Connection(
            ServerWire(link, self), f"192.0.2.{self.addresses}", self.room, self.post, self.alarm,
            0)

    def post(self, method, *arguments):
        if not self.inbox:
            self.world.after(self.world.random.expovariate(200), self.sequence)
        # A crashed server's events are gone with it.
        owner = getattr(method, "__self__", None)
        if owner is self.room or not isinstance(owner, type(self.room)):
            self.inbox.append((method, arguments))

    def sequence(self):
        self.room.flush()
        if self.room.is_held:
            return self.world.after(0.5, self.sequence)
        events, self.inbox = self.inbox, []
        for method, arguments in events:
            method(*arguments)
        self.room.flush()
        if self.room.is_held:
            self.world.after(0.5, self.sequence)

    def crash(self):
        """kill -9: without a history all is forgotten; whoever was connected is told."""
        self.world.tell("the server restarts")
        self.inbox = []
        old = self.links
        self.start()
        for link in old:
            link.connection = None
            link.break_off()


class _AlarmOf:
    """The alarm of one run of the server: it rings no more after a crash."""

    def __init__(self, server):
        self.server = server
        self.clock = server.world.clock

    def at(self, when, action):
        self.server.world.at(when, lambda: action() if self.server.alarm is self else None)


# Speaker and recipient of a whisper, in a frame as it is sent.
_WHISPER = re.compile(rb'"from":"([^"]*)","text":"[^"]*","at":[^"]*"cid":\d+,"to":"([^"]*)"')


class Client:
    """A person: the real ClientSession, with connections that come and go."""

    def __init__(self, world, server, name, history):
        self.world = world
        self.server = server
        self.name = name
        self.history = history
        self.link = None
        # Restarted: this incarnation says and hears no more.
        self.gone = False
        self.epoch = None
        # Epoch -> from which id on it hears everything.
        self.begin = {}
        self.heard = []                 # (epoch, message)
        # (Said, states it went through).
        self.said = []
        self.states = {}
        self.closed_at = None
        # (connection lost, welcomed again).
        self.absences = []
        # (epoch, name) of every welcome.
        self.names = set()
        # (epoch, after, upto): what it was told that it missed.
        self.gaps = []
        # The operator booted it.
        self.put_out = False
        self.silent_since = None
        self.session = world.modules.chat_client.ClientSession(
            name, world, on_dead=lambda: self.drop("dead"), on_welcome=self.welcomed,
            on_message=self.on_message,
            on_state=self.on_state, on_recalled=self.recalled)
        # (epoch, message) of the answers to requests for older ones.
        self.recalls = []
        self.asked = self.answered = 0
        self.connect()

    def connect(self):
        if not self.gone and self.link is None:
            self.link = link = Link(self.world, self, self.server)
            self.session.opened(link.to_server.send)
            self.world.after(10, lambda: None if self.session.joined
                             else self.lost(link, "no welcome"))

    def hear(self, link, data):
        if link is not self.link or self.gone:
            return
        client = self.world.modules.chat_client
        try:
            self.session.received(data)
        except client.JoinRefused as refused:
            if refused.error.suggestion:
                self.session.opened(link.to_server.send, refused.error.suggestion)
            elif self.put_out and refused.error.code == "banned":
                self.restart()
            else:
                self.drop(str(refused))
        except client.ConnectionClosed as closed:
            if not self.put_out:
                self.history.wrong(f"{self.name} was put out: {closed}")
            self.restart()
        except self.world.modules.chatproto.ProtocolError as error:
            self.history.wrong(f"{self.name} got what is no frame: {error}")
        for speaker, to in _WHISPER.findall(data):
            if not {speaker.decode(), to.decode()} & {name for _, name in self.names}:
                self.history.wrong(f"{self.name} was sent a whisper of {speaker} to {to}")

    def drop(self, why):
        """Our side ends the connection."""
        link = self.link
        if link is not None:
            if self.silent_since is not None and self.world.now - self.silent_since > 40:
                self.history.wrong(f"{self.name} noticed a silent connection after "
                                   f"{self.world.now - self.silent_since:.1f} s")
            silent, link.silent = link.silent, False
            self.lost(link, why)
            if silent:
                # The server is not told either.
                link.silent = True
            else:
                link.break_off()

    def lost(self, link, why):
        if link is not self.link:
            return
        self.world.tell(self.name, "lost its connection:", why)
        self.link = self.silent_since = None
        # Else it has been away for longer.
        if self.session.joined:
            self.closed_at = self.world.now
        self.session.closed()
        if not self.world.troubled and self.world.now > self.history.quiet_from + 45:
            self.history.wrong(f"{self.name} lost its connection while all was quiet: {why}")
        self.world.after(self.world.random.uniform(0.1, 2), self.connect)

    def welcomed(self, welcome):
        self.world.tell(self.name, "welcome", welcome)
        if welcome.missed:
            if not self.world.may_miss:
                self.history.wrong(f"{self.name} is told that it missed {welcome.missed}")
            # What it was told before that it missed is not counted again.
            told = [upto for of, _, upto in self.gaps if of == welcome.epoch]
            after = max(self.session.manager.seen, self.begin[welcome.epoch],
                        *told) if welcome.resumed else 0
            self.gaps.append((welcome.epoch, after, after + welcome.missed))
        if not welcome.resumed:
            if self.epoch == welcome.epoch:
                self.history.wrong(f"{self.name} was not resumed")
            # After a restart: all since then.
            self.begin[welcome.epoch] = welcome.last if self.epoch is None else 0
        if self.closed_at is not None:
            self.absences.append((self.closed_at, self.world.now))
        self.names.add((welcome.epoch, welcome.name))
        self.epoch = welcome.epoch

    def on_message(self, message):
        self.heard.append((self.epoch, message))
        self.world.tell(self.name, "hears", message)

    def on_state(self, said):
        self.states.setdefault(said.id, []).append(said.state)

    def say(self, text, to=None):
        if not self.gone:
            try:
                said = self.session.say(text, to)
            except queue.Full:
                return
            self.said.append((said, self.epoch))
            self.world.tell(self.name, "says", said.id, text, to)

    def recall(self):
        if not self.gone and self.asked == self.answered:
            try:
                self.session.recall(self.world.random.randint(1, 30))
            except queue.Full:
                return
            self.asked += 1

    def recalled(self, answer):
        self.answered += 1
        if answer is None:
            return self.history.wrong(f"{self.name} asked for older messages and got an ACK alone")
        ids = [chat.id for chat in answer.entries]
        if ids != sorted(set(ids)) or ids and answer.older is not None and answer.older > ids[0]:
            self.history.wrong(f"{self.name} recalled {ids}, older {answer.older}")
        self.recalls += [(self.epoch, chat) for chat in answer.entries]

    def missed(self, epoch, id):
        """Whether it was told that it missed this."""
        return any(of == epoch and after < id <= upto for of, after, upto in self.gaps)

    def boot(self):
        """The operator puts it out."""
        def event():
            try:
                self.server.room.host.boot(self.session.name, "spam")
            except LookupError:
                return
            self.put_out = True
            self.world.tell(self.name, "is booted")
        if not self.gone and self.session.joined:
            self.server.post(event)

    def restart(self):
        """kill -9 of the client: somebody else comes in its place."""
        self.gone = True
        link, self.link = self.link, None
        self.session.closed()
        if link is not None:
            link.break_off()


class History:
    """What everybody said and heard, and whether it is what was promised."""

    def __init__(self, world, server):
        self.world = world
        self.server = server
        self.clients = []
        self.faults = []
        self.quiet_from = float("inf")

    def wrong(self, what):
        self.faults.append(what)
        self.world.tell("WRONG:", what)

    def check(self):
        """Note in `faults` every promise that was broken."""
        chat = self.world.modules.chatproto.Chat
        # (epoch, id) -> message; text -> {epoch: id}.
        by_place, places = {}, {}
        for client in self.clients:
            self.check_order(client)
            for epoch, message in client.heard:
                if isinstance(message, self.world.modules.chatproto.Error):
                    # For one member alone.
                    continue
                if by_place.setdefault((epoch, message.id), message) != message:
                    self.wrong(
                        f"{message.id} is {message} for {client.name} and "
                        f"{by_place[epoch, message.id]} for another")
                if isinstance(message, chat):
                    places.setdefault(message.text, {}).setdefault(epoch, message.id)
        self.check_recalls(by_place)
        if self.server.disk is not None:
            self.check_file(by_place)
        for client in self.clients:
            for said, epoch in client.said:
                self.check_said(client, said, places.get(said.text, {}))
            self.check_state(client)
        self.check_lefts(by_place)

    def check_order(self, client):
        """One order, nothing twice, each speaker's own order."""
        newest, newest_cid, texts = {}, {}, set()
        for epoch, message in client.heard:
            if message.id <= newest.get(epoch, 0):
                self.wrong(f"{client.name} heard {message.id} after {newest[epoch]}")
            newest[epoch] = max(message.id, newest.get(epoch, 0))
            if message.id <= client.begin[epoch] and getattr(message, "to", "nobody") is not None:
                self.wrong(f"{client.name} heard {message}, which was before it came")
            if getattr(message, "cid", None):
                speaker = (epoch, message.text.split("/")[0])
                if message.cid <= newest_cid.get(speaker, 0):
                    self.wrong(
                        f"{client.name} heard {speaker[1]}'s {message.cid} after "
                        f"{newest_cid[speaker]}")
                newest_cid[speaker] = message.cid
                if (epoch, message.text) in texts:
                    self.wrong(f"{client.name} heard {message.text} twice")
                texts.add((epoch, message.text))

    def check_said(self, client, said, places):
        """What was acknowledged is heard by all who should, what was refused by nobody."""
        chat_client = self.world.modules.chat_client
        states = client.states.get(said.id, [])
        settled = set(states) - {chat_client.SENDING}
        if len(settled) > 1:
            self.wrong(f"{said.text} went through {settled}")
        if said.state == chat_client.SENDING and not client.gone:
            self.wrong(f"{said.text} is still being sent")
        if said.state == chat_client.FAILED and places and len(self.server.epochs) < 2:
            self.wrong(f"{said.text} failed ({said.reason}) and was heard")
        if said.state != chat_client.THERE:
            return
        if len(places) > 1 and len(self.server.epochs) < 2:
            self.wrong(f"{said.text} has several places")
        last = self.server.epochs[-1]
        is_known = not client.gone and not client.gaps
        if not places and len(self.server.epochs) < 2 and (said.to == "nobody" or is_known):
            self.wrong(f"{said.text} was acknowledged and nobody heard it")
        if last not in places:
            # Acknowledged by a server that crashed.
            return
        for other in self.clients:
            heard = any(epoch == last and getattr(message, "text", None) == said.text for epoch,
                        message in other.heard)
            if said.to is None:
                due = not other.gone and other.begin.get(last, float("inf")) < places[last]
                if due and not heard and not other.missed(last, places[last]):
                    self.wrong(f"{other.name} did not hear {said.text} (at {places[last]})")
            elif not heard and not other.gone and not other.missed(last, places[last]):
                names = [name for epoch, name in other.names if epoch == last]
                if names == [said.to] and other.begin.get(last, float("inf")) < places[last]:
                    self.wrong(f"{other.name} did not hear {said.text}, which was for it")
            elif heard and other is not client and (last, said.to) not in other.names:
                self.wrong(f"{other.name} heard {said.text}, which was for {said.to}")

    def check_recalls(self, by_place):
        """Older messages that were asked for are those that were heard, and private ones are one's
        own."""
        for client in self.clients:
            if client.asked != client.answered and not client.gone:
                self.wrong(
                    f"{client.name} asked {client.asked} times for older messages and was answered "
                    f"{client.answered} times")
            for epoch, chat in client.recalls:
                if by_place.get((epoch, chat.id), chat) != chat:
                    self.wrong(
                        f"{client.name} recalled {chat}, which is {by_place[epoch, chat.id]}")
                if chat.to is not None and not {(epoch, chat.to),
                                                (epoch, chat.sender)} & client.names:
                    self.wrong(f"{client.name} recalled {chat}, which is private")

    def check_file(self, by_place):
        """What was acknowledged is in the file, once, and so is what was heard, as it was heard."""
        proto = self.world.modules.chatproto
        rows = self.server.disk.execute(
            "SELECT id, body FROM entries WHERE kind = 'chat'").fetchall()
        kept = {id: proto.decode(body if isinstance(body, bytes) else body.encode(),
                                 proto.INSTRUCTIONS[proto.FROM_SERVER]) for id, body in rows}
        texts = [chat.text for chat in kept.values()]
        if len(set(texts)) < len(texts):
            self.wrong(
                f"in the file twice: {sorted(text for text in texts if texts.count(text) > 1)}")
        for (epoch, id), message in by_place.items():
            if isinstance(message, proto.Chat) and kept.get(id) != message:
                self.wrong(f"{message} was heard, and {kept.get(id)} is in the file")
        for client in self.clients:
            for said, epoch in client.said:
                if said.state == self.world.modules.chat_client.THERE and said.text not in texts:
                    self.wrong(f"{said.text} was acknowledged and is not in the file")

    def check_state(self, client):
        """In the end everybody is connected and knows who is there, and the last word was heard by
        all."""
        if client.gone:
            return
        owned = client.session._session and self.server.room._members.owned(client.session._session)
        if owned and self.server.room._house.holds.find(("boot",), [f"#{owned.number}"]):
            self.wrong(f"{client.name} does not know that it was booted")
        if not client.session.joined:
            self.wrong(f"{client.name} is not connected in the end")
            return
        here = sorted(name for name, address in self.server.room.host.users())
        if sorted(client.session.users.values()) != here:
            self.wrong(
                f"{client.name} sees {sorted(client.session.users.values())}, there are {here}")
        for said, epoch in client.said:
            if said.text.endswith("/last") and (said.heard,
                                                said.of) != (len(here) - 1, len(here) - 1):
                self.wrong(
                    f"{said.text} was heard by {said.heard} of {said.of}, there are {len(here)}")
            if said.heard > said.of:
                self.wrong(f"{said.text} was heard by {said.heard} of {said.of}")

    def check_lefts(self, by_place):
        """Nobody who came back in time was said to be gone."""
        for (epoch, id), message in by_place.items():
            if isinstance(message, self.world.modules.chatproto.Left):
                for client in self.clients:
                    for came_back_from, came_back in client.absences:
                        # Who had two names may have left one of them to a session that was
                        # never welcomed; after a restart that one's name is free at once.
                        names = {name for of, name in client.names if of == epoch}
                        if (names == {message.name} and not client.gone
                                and came_back_from < message.at < came_back
                                and message.at - came_back_from < GRACE - 3):
                            self.wrong(
                                f"{message.name} was said to be gone after "
                                f"{message.at - came_back_from:.1f} s")


def simulate(seed, modules, verbose=False):
    """Run one seed; return what went wrong."""
    world = World(seed, modules, verbose)
    proto, server = modules.chatproto, modules.chat_server
    saved = proto.WINDOW, proto.STRIDE, server.LOG_FRAMES, server.FEED_FRAMES, server.LOOK_ROWS
    proto.WINDOW = world.random.choice([1, 3, 8, 64])
    # Never less than a window, which a client's resume needs in one step.
    proto.STRIDE = world.random.choice([proto.WINDOW, 1024])
    try:
        server = Server(world)
        # Most of the log is in the file alone.
        if server.disk is not None and world.random.random() < 0.7:
            sizes = world.random.choice([(30, 5, 20), (8, 2, 5), (1, 50, 1000)])
            (modules.chat_server.LOG_FRAMES, modules.chat_server.FEED_FRAMES,
             modules.chat_server.LOOK_ROWS) = sizes
        elif server.disk is None and proto.WINDOW >= 8 and world.random.random() < 0.5:
            # Slow readers are left behind. (With fewer frames, or a smaller window, the errors that
            # tell them so would fill the log faster than they read it.)
            modules.chat_server.LOG_FRAMES = world.random.choice([25, 50])
            world.may_miss = True
        history = History(world, server)
        play(world, server, history)
        history.check()
    except Exception as error:
        # A fault may break the code itself: that is caught, too.
        if verbose:
            raise
        return [f"{type(error).__name__}: {error}"]
    finally:
        (proto.WINDOW, proto.STRIDE, modules.chat_server.LOG_FRAMES,
         modules.chat_server.FEED_FRAMES,
         modules.chat_server.LOOK_ROWS) = saved
    return history.faults


def play(world, server, history):
    """The people of a seed, what they do, and the quiet after it."""
    rng = world.random
    names = ["ann", "bob", "cleo", "dan"][:rng.randint(2, 4)]
    # The part of what is said that is for all.
    public = rng.choice([0.8, 0.8, 0.4])

    def enter(name):
        history.clients.append(Client(world, server, name, history))

    def somebody():
        return rng.choice([client for client in history.clients if not client.gone]
                          or history.clients)

    def say(number):
        speaker = somebody()
        kind = rng.random()
        text = f"{speaker.name}/{number}"
        if kind < public:
            speaker.say(text)
        elif kind < 0.92:
            speaker.say(text, somebody().name)
        else:
            speaker.say(text, "nobody")

    def restart():
        client = somebody()
        client.restart()
        world.after(rng.uniform(0, GRACE + 3),
                    lambda: enter(f"{client.name}{len(history.clients)}"))

    def impostor():
        link = Link(world, _Impostor(world, history), server)
        link.left = None
        link.client.link = link
        link.to_server.send(world.modules.chatproto.Join("mallory", session="made-up", seen=0,
                                                         epoch=server.room.journal.epoch).encode())

    for name in names:
        world.after(rng.uniform(0, 3), lambda name=name: enter(name))
    world.run(world.now + 4)
    start = world.now
    # Somebody talks fast: windows and queues fill.
    if rng.random() < 0.5:
        burst = rng.uniform(1, TROUBLE)
        for number in range(60):
            world.at(start + burst + number * 0.01, lambda number=number: say(1000 + number))
    for number in range(rng.randint(10, 40)):
        world.at(start + rng.uniform(0, TROUBLE), lambda number=number: say(number))
    for number in range(rng.choice([0, 15])):
        world.at(start + rng.uniform(0, TROUBLE), lambda: somebody().recall())
    def boot():
        client = somebody()
        client.boot()
        world.after(rng.uniform(1, 5), lambda: enter(f"{client.name}{len(history.clients)}"))

    for probability, event in ((0.3, restart), (0.2, server.crash), (0.2, impostor), (0.2, boot)):
        if rng.random() < probability:
            world.at(start + rng.uniform(0, TROUBLE), event)
    world.run(start + TROUBLE)
    world.troubled = False
    history.quiet_from = world.now
    # Whoever comes to a quiet room hears the last messages, then what is said, over one connection.
    world.at(world.now + QUIET - 25, lambda: enter("late"))
    world.run(world.now + QUIET)
    for client in history.clients:
        client.say(f"{client.name}/last")
    world.run(world.now + 5)


class _Impostor:
    """Comes with a session that it made up."""

    name = "mallory"

    def __init__(self, world, history):
        self.world = world
        self.history = history
        self.silent_since = None

    def hear(self, link, data):
        if b'"resumed":true' in data:
            self.history.wrong("a made-up session was resumed")
        self.world.after(1, link.break_off)

    def lost(self, link, why):
        pass


def _run(seeds):
    logging.disable(logging.CRITICAL)
    modules = load()
    return [(seed, faults) for seed in seeds for faults in [simulate(seed, modules)] if faults]


def main():
    parser = argparse.ArgumentParser(
        description="Simulate chats and check every promise of delivery.")
    parser.add_argument("--seeds", type=int, default=200, help="how many (default %(default)s)")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("-v", "--verbose", action="store_true",
                        help="with --seed: show what happens")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if arguments.seed is not None:
        faults = simulate(arguments.seed, load(), arguments.verbose)
        print("\n".join(faults) or "nothing wrong")
        return bool(faults)
    started, failed = time.monotonic(), []
    chunks = [range(start, min(start + 50, arguments.seeds))
              for start in range(0, arguments.seeds, 50)]
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(_run, chunks):
            failed += result
    for seed, faults in failed[:20]:
        print(f"seed {seed}: {faults[0]}")
    print(
        f"{arguments.seeds} seeds, {len(failed)} with something wrong, "
        f"{time.monotonic() - started:.1f} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
