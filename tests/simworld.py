"""The world of simulation.py: the clock, the server and its restarts, the host, people.

The real Room, Connection, ClientSession, MessageManager and FrameDecoder run in it; only sockets,
time, threads and the disk are replaced. (simfiles.py: files; simnet.py: the
network.)
"""

import dataclasses
import heapq
import math
import queue
import random
import re
import sqlite3

from simfiles import Shelf
from simnet import Link, ServerWire

# Seconds, of the simulated server.
GRACE = 10.0
# What a client gets for a message that the host took back.
REMOVED = "(removed)"


class Killed(BaseException):
    """The server is killed here and now: no handler for errors sees it."""


class World:
    """The clock, and what happens when; it is the alarm of everything in it."""

    def __init__(self, seed, modules, verbose=False):
        self.random = random.Random(seed)
        # The version of TLS, in a tenth of the seeds.
        self.tls = self.random.choice(["TLSv1_2", "TLSv1_3"]) if seed % 10 == 2 else None
        self.now = 1000.0
        self.modules = modules
        self.verbose = verbose
        self.troubled = True
        # In a quarter of the seeds.
        self.has_files = seed % 4 == 2
        # What to do when the server is killed.
        self.crash = None
        # The log is short and there is no history file, or that keeps not all.
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
        # An event may have let the world go on for longer than that.
        self.now = max(self.now, until)

    def chance(self, probability):
        """True with that probability, while there is trouble."""
        return self.troubled and self.random.random() < probability

    def tell(self, *what):
        if self.verbose:
            print(f"{self.now - 1000:8.3f}", *what)


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
        # What the host did, and what of it is committed.
        self.deeds = Deeds(self)
        # What is committed to it stays when the server is killed: it stands for the disk.
        self.disk = None
        if world.random.random() < 0.5:
            self.disk = sqlite3.connect(":memory:", isolation_level=None)
            self.kills = world.random.choice([0, 1, 1, 4])
        # Messages that --keep-messages leaves in the history file.
        self.keep = math.inf
        self.shelf = None
        if world.has_files:
            self.shelf = Shelf(self)
            if self.disk is not None and world.random.random() < 0.3:
                self.keep, world.may_miss = world.random.choice([5, 20]), True
        self.start()

    def start(self):
        server = self.world.modules.chat_server
        self.inbox = []
        self.links = []
        # Else it would be chance whether the alarm still finds those that are over.
        self.connections = []
        self.alarm = _AlarmOf(self)
        history = None if self.disk is None else self.file_class()(":memory:",
                                                                   keep_messages=self.keep)
        self.room = server.Room(self.alarm, self.post, server.Settings(grace=GRACE, rate=0),
                                lambda: self.world.now,
                                history=history)
        if self.shelf is not None:
            self.shelf.begin(self.room, history)
        self.deeds.begin(self.room)
        epoch = self.room.journal.epoch
        if epoch not in self.epochs:
            self.epochs.append(epoch)

    @property
    def forgotten(self):
        """The newest id that --keep-messages deleted."""
        return self.room.journal.forgotten if self.disk is not None else 0

    def file_class(self):
        """The history file on our disk, and what can happen to it."""
        server, HistoryError = self, self.world.modules.chat_server.HistoryError

        class File(self.world.modules.chat_server.HistoryFile):
            def _connect(self, path):
                return server.disk

            def _place(self):
                return []

            def save(self, *arguments):
                server.risk(0.02)
                if server.world.chance(0.01):
                    server.full_until = server.world.now + server.world.random.choice([0.3, 3, 15])
                if server.world.now < server.full_until and server.world.troubled:
                    if server.world.random.random() < 0.1:
                        # On disk, and nobody knows.
                        before = self.last, self._messages
                        super().save(*arguments)
                        self.last, self._messages = before
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
        self.addresses += 1
        self.connections.append(self.world.modules.chat_server.Connection(
            ServerWire(link, self), f"192.0.2.{self.addresses}", self.room))
        return self.connections[-1]

    def post(self, method, *arguments):
        if not self.inbox:
            self.world.after(self.world.random.expovariate(200), self.sequence)
        # A crashed server's events are gone with it.
        owner = getattr(method, "__self__", None)
        if owner is self.room or not isinstance(owner, type(self.room)):
            self.inbox.append((method, arguments))

    def ask(self, method, *arguments):
        """Have an event at once, behind those that wait, and return its result; for the thread of a
        request, which waits for that."""
        answer = []

        def event():
            try:
                answer.append((method(*arguments), None))
            except Exception as error:
                answer.append((None, error))
        self.inbox.append((event, ()))
        self.sequence()
        if not answer:
            raise TimeoutError("the room does not answer")
        result, error = answer[0]
        if error is not None:
            raise error
        return result

    def sequence(self):
        self.room.flush()
        if self.room.is_held:
            return self.world.after(0.5, self.sequence)
        events, self.inbox = self.inbox, []
        for method, arguments in events:
            method(*arguments)
        self.room.flush()
        self.deeds.look()
        if self.room.is_held:
            self.world.after(0.5, self.sequence)

    def watch(self, data):
        """Nobody is sent what the host took back."""
        self.deeds.watch(data)

    def crash(self):
        """kill -9: without a history all is forgotten; whoever was connected is told."""
        self.world.tell("the server restarts")
        self.deeds.killed()
        if self.shelf is not None:
            self.shelf.killed()
        self.inbox = []
        old = self.links
        self.start()
        for link in old:
            link.connection = None
            link.break_off()

    def close(self):
        """The seed is over."""
        if self.shelf is not None:
            self.shelf.close()


class Deeds:
    """What the host does, and whether it holds: from its commit on, over every restart that has a
    history file, until the host undoes it."""

    def __init__(self, server):
        self.server = server
        self.world = server.world
        # What went wrong; History takes it over.
        self.faults = []
        # Done, and not committed yet: the lists below get them.
        self._pending = []
        # (epoch, id) -> chat, of all messages that were taken back, committed or not.
        self.was = {}
        # Committed: (epoch, id) of messages, ("ban" or "mute", number of the session).
        self.removed = []
        self.held = []
        # [name of the client, from, until]: it was muted.
        self.silences = []

    def begin(self, room):
        """A server begins. What was committed holds in it."""
        self.room = room
        self._commit, room.journal.commit = room.journal.commit, self.commit
        self.look()

    def commit(self):
        """In the place of the journal's: what is committed counts from now on."""
        done = self._commit()
        if done:
            for where, what in self._pending:
                where.append(what)
            self._pending = []
        return done

    def killed(self):
        """What was not committed may be so or not; without a file nothing is left."""
        self._pending = []
        if self.server.disk is None:
            self.removed, self.held = [], []
            self.end_silences()

    def end_silences(self, name=None):
        for silence in self.silences:
            if silence[2] is None and name in (None, silence[0]):
                silence[2] = self.world.now
        self._pending = [(where, what) for where, what in self._pending
                         if where is not self.silences or name not in (None, what[0])]

    def watch(self, data):
        epoch = self.room.journal.epoch
        for of, id in self.removed:
            text = self.was[of, id].text
            if of == epoch and f'"text":"{text}"'.encode() in data:
                self.faults.append(f"{text} was taken back, and somebody is sent it")

    def whole(self, epoch, chat):
        """A chat with what it said, where the host took that back."""
        was = self.was.get((epoch, chat.id), chat)
        return dataclasses.replace(chat, text=was.text, file=was.file)

    def look(self):
        """Whoever is kept out is not here, and stays so; whoever is muted stays so."""
        holds = self.room.house.holds
        for kinds, number in self.held:
            if not holds.find(kinds, [f"#{number}"]):
                self.faults.append(f"session {number} is free again of {kinds}")
        kept_out = {number for kinds, number in self.held if "ban" in kinds}
        for session in self.room.members if not self.room.is_held else ():
            if session.number in kept_out:
                self.faults.append(f"session {session.number} was put out, and is here")

    # Events on the sequencer

    def remove(self, id):
        """Take a message back, by its id."""
        found = self.room.journal.chat(id)
        if found is None:
            return
        chat = self.world.modules.chatproto.decode(
            found.frame[:-1], self.world.modules.chatproto.INSTRUCTIONS["server"])
        try:
            self.room.host.remove(id)
        except (LookupError, self.world.modules.chat_server.HistoryError):
            return
        if chat.file:
            self.server.risk(0.2)
        place = self.room.journal.epoch, id
        self.was[place] = chat
        self.world.tell("the host takes back", id, chat.text)
        self._pending.append((self.removed, place))

    def mute(self, client, seconds):
        session = self._session(client)
        if session is not None:
            self.room.host.mute(session.name, seconds)
            self.world.tell(client.name, "is muted")
            self._pending.append((self.silences, [client.name, self.world.now, None]))
            self._pending.append((self.held, (("mute",), session.number)))

    def unmute(self):
        """Everybody may speak again."""
        for hold, _ in self.room.host.held():
            if hold.kind == "mute":
                self.room.host.unmute(hold.name)
        self.held = [held for held in self.held if "mute" not in held[0]]
        self._pending = [(where, what) for where, what in self._pending if where is not self.held
                         or "mute" not in what[0]]
        self.end_silences()

    def put_out(self, client, is_ban):
        """Boot somebody, or ban it."""
        session = self._session(client)
        if session is not None:
            host = self.room.host
            (host.ban if is_ban else host.boot)(session.name, reason="spam")
            client.put_out = True
            self.world.tell(client.name, "is put out")
            self._pending.append((self.held, (("ban", "boot"), session.number)))

    def _session(self, client):
        """Its session, while it is here."""
        secret = client.session.secret
        session = self.room.members.owned(secret) if secret else None
        return session if session is not None and session.present else None


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
        # (epoch, id) of what it got without its text.
        self.blanks = set()
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
            name, world, on_welcome=self.welcomed, on_message=self.on_message,
            on_state=self.on_state)
        self.session.dead = lambda: self.drop("dead")
        # (epoch, message) of the answers to requests for older ones.
        self.recalls = []
        self.asked = self.answered = 0
        self.connect()

    def connect(self):
        if not self.gone and self.link is None:
            self.link = link = Link(self.world, self, self.server)
            link.open()
            self.world.after(10, lambda: None if self.session.joined
                             else self.lost(link, "no welcome"))

    def opened(self, link):
        """The connection is there: come in."""
        if link is self.link:
            self.session.opened(link.to_server.say)

    def hear(self, link, data):
        if link is not self.link or self.gone:
            return
        client = self.world.modules.chat_client
        try:
            self.session.received(data)
        except client.JoinRefused as refused:
            if refused.error.suggestion:
                self.session.opened(link.to_server.say, refused.error.suggestion)
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
        self.heard.append((self.epoch, self.whole(message)))
        self.world.tell(self.name, "hears", message)
        if self.server.shelf is not None:
            self.server.shelf.heard(self, self.epoch, message)

    def whole(self, message):
        """With its text, where the host took it back: so it is the same for all."""
        if getattr(message, "text", None) != REMOVED:
            return message
        self.blanks.add((self.epoch, message.id))
        return self.server.deeds.whole(self.epoch, message)

    def on_state(self, said):
        self.states.setdefault(said.id, []).append(said.state)

    def say(self, text, to=None, file=None):
        """Say something; None: it waits for too much already."""
        if self.gone:
            return None
        try:
            said = self.session.say(text, to, file)
        except queue.Full:
            return None
        self.said.append((said, self.epoch))
        self.world.tell(self.name, "says", said.id, text, to, file or "")
        return said

    def recall(self):
        if not self.gone and self.asked == self.answered:
            try:
                self.session.recall(self.recalled, self.world.random.randint(1, 30))
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
        self.recalls += [(self.epoch, self.whole(chat)) for chat in answer.entries]

    def missed(self, epoch, id):
        """Whether it was told that it missed this."""
        return any(of == epoch and after < id <= upto for of, after, upto in self.gaps)

    def post(self, deed, *arguments):
        """The host does something to it."""
        if not self.gone and self.session.joined:
            self.server.post(deed, self, *arguments)

    def leave(self):
        """Go on purpose."""
        if not self.gone and self.session.joined:
            self.world.tell(self.name, "leaves")
            self.session.leave()
            self.gone = True

    def restart(self):
        """kill -9 of the client: somebody else comes in its place."""
        self.gone = True
        link, self.link = self.link, None
        self.session.closed()
        if link is not None:
            link.break_off()
