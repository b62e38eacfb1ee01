#!/usr/bin/env python3
"""chat_server: the server role of Roger, a LAN chat in which every message is acknowledged.

    python chat_server.py 8087

The protocol and its promises are in chatproto's docstring. The way of a message through this file:

    client ──▶ Connection.run (one thread a member)        Sequencer (one thread)                    members
               read, decode, slow down floods ───────────▶ inbox: queue.Queue ──▶ all that waits:
                                                           Room gives ids and places, then flush():
                                                           encoded once, to every member, ─────────▶ MessageManager.send:
                                                           then the ACKs of the speakers             now, or when its
               ACK of the member: opens its window ◀─────────────────────────────────────────────── window opens

Room is the whole state (members, names, sessions, log) and runs on the sequencer's thread alone: so it needs no lock and has
one order by construction. It touches no socket, starts no thread and reads no clock but the ones it is given. Everything that
changes it is one of its methods, put into the inbox with its arguments: a frame, a lost connection, the end of a grace time,
a boot from the console.

Threads: "accept" (serve_forever), "member ADDRESS" (one a connection), "sequencer", "alarm" (chatproto.Alarm's timer),
"console" (when stdin is a terminal) and the main thread, which waits for a signal. Locks: ChatServer has one, for its set of
connections; a leaf. Left out on purpose: rooms, accounts, encryption.
"""

from __future__ import annotations

import argparse
import bisect
import collections
import errno
import hashlib
import hmac
import ipaddress
import logging
import math
import os
import queue
import re
import secrets
import signal
import socket
import socketserver
import sys
import threading
import time
from collections import deque
from typing import Any, Callable, NamedTuple, Optional

import chatproto
from chatproto import (FROM_CLIENT, PORT, WINDOW, Ack, Alarm, Booted, Chat, ConnectionClosed, Error, FrameDecoder, FrameError,
                       Heard, Invalid, Join, Joined, Leave, Left, Message, MessageManager, MessageSocket, PendingMessage,
                       Ping, ProtocolError, Rename, Renamed, Say, Unknown, Welcome, escape, name_key)

JOIN_TIMEOUT = 10.0             # seconds a connection may take to join
LAST_WORDS = 2.0                # seconds a connection that we end has to read why, before it is cut
HISTORY = 20                    # messages that a newcomer gets
LOG_FRAMES = 50_000             # frames kept for those who come back: far more than may wait for one slow member
LOG_BYTES = 64 * 1024 * 1024    # bytes of them; the oldest tenth goes when either is reached, and `missed` counts it
STRANGER_FRAMES = 10_000        # of those, for one who says that it was here before a restart
SESSIONS = 20_000               # sessions remembered after their member left, so that what it sends again is not said twice
RECEIPT_EVERY = 0.5             # seconds between two `heard` about one message
RECEIPT_UNTIL = 60.0            # seconds after which nobody is told any more
RECEIPTS = 1_000                # messages watched at once; the oldest is dropped first
INBOX = 10_000                  # events that may wait for the sequencer; then the threads of the members wait
HELD = 2 * WINDOW               # frames of one member held back by the flood limit; then its socket is not read
USERS_BYTES = 24 * 1024         # bytes of names in a welcome: with a message of the day it still fits on a line.
                                # Beyond, `here` tells how many there are
REASON = 200                    # characters of the reason of a boot
REFUSALS = 1_000                # refused frames that a member may leave unconfirmed; then it is too slow
BOOTED = 1_000                  # sessions whose owners were put out and may not have heard it yet
BATCH_BYTES = 1024 * 1024       # bytes of one flush: a fraction of what may wait for a member
ACCEPT_POLL = 0.1               # seconds until the acceptor sees that it has to end
UNJOINED = 2_000                # connections that have not joined yet
SAY_AGAIN = 60.0                # seconds before a complaint is repeated: to a member that floods, or in the log

STOP, RELOAD = "stop", "reload"     # orders for the main thread

logger = logging.getLogger("roger")


class Settings(NamedTuple):
    """The limits that the command line sets."""

    grace: float = 30.0             # seconds that a lost member stays in the room
    rate: float = 20.0              # messages a second and member; 0 is no limit. The burst is five seconds' worth
    max_members: int = 10_000
    max_per_address: int = 200      # connections; this machine itself is exempt


# --- The room ---

class Entry(NamedTuple):
    """A place in the order: a frame and who it is for."""

    id: int
    frame: bytes
    audience: "Optional[tuple[Session, ...]]" = None    # None is everybody
    is_chat: bool = False


class Log:
    """The newest entries, for those who come back: at most LOG_FRAMES and LOG_BYTES."""

    def __init__(self) -> None:
        self._entries: "list[Entry]" = []
        self._bytes = 0
        self._recent: "deque[Entry]" = deque(maxlen=HISTORY)
        self.forgotten = 0              # the newest id that is no longer here

    def append(self, entry: Entry) -> None:
        """Keep `entry`; forget the oldest tenth when a bound is reached."""
        self._entries.append(entry)
        self._bytes += len(entry.frame)
        if entry.is_chat and entry.audience is None:
            self._recent.append(entry)
        while len(self._entries) > LOG_FRAMES or self._bytes > LOG_BYTES:
            oldest = self._entries[:len(self._entries) // 10 + 1]
            del self._entries[:len(oldest)]
            self._bytes -= sum(len(old.frame) for old in oldest)
            self.forgotten = oldest[-1].id

    def after(self, id: int, session: Session) -> "list[Entry]":
        """What `session` should hear of the entries after `id`."""
        start = bisect.bisect_left(self._entries, (id + 1,))        # an Entry compares by its id first
        return [entry for entry in self._entries[start:] if entry.audience is None or session in entry.audience]

    def recent(self, after: int) -> "list[Entry]":
        """The last HISTORY public messages, of those with an id above `after`."""
        return [entry for entry in self._recent if entry.id > after]


class Session:
    """A member: in the room, in its grace time, or remembered after it left. Only the sequencer changes it."""

    def __init__(self, secret_hash: bytes, begin: int, history_from: int) -> None:
        self.name = ""
        self.secret_hash = secret_hash
        self.begin = begin              # it hears everything after this id,
        self.history_from = history_from    # and what was said in public after this one
        self.here_since = begin         # the newest id when it came into the room, for receipts
        self.got = 0                    # the newest id of its own frames that has its place: what an ACK confirms
        self.present = True             # in the room, connected or in its grace time
        self.link: Optional[Connection] = None
        self.lost_at = math.inf         # when the connection was lost, by the room's clock
        self.receipts = False           # tell it who heard its messages
        self.refusals: "deque[tuple[int, Entry]]" = deque()     # what was refused, and by which error; until it is confirmed
        self.allowance: Optional[Allowance] = None      # its flood limit, which a new connection does not fill again
        self._acked = begin             # the newest id that it confirmed, while there is no connection

    @property
    def acked(self) -> int:
        """The newest id of ours that the member has confirmed."""
        return self.link.manager.acked if self.link else self._acked

    def unlink(self) -> None:
        """Forget the connection, and remember how far it came."""
        self._acked, self.link = self.acked, None

    def confirmed_for(self, seen: int) -> int:
        """The `got` of a welcome: up to the first refusal that the member has not seen, which an ACK would turn into a yes."""
        unseen = [about - 1 for about, error in self.refusals if error.id > seen]
        return min([self.got, *unseen])


class Watch(NamedTuple):
    """A message whose speaker wants to know who heard it."""

    id: int
    speaker: Session
    recipient: Optional[Session]        # of a private message
    of: int
    until: float


class Room:
    """Members, names, sessions and the log: the one place where the order is made. Runs on the sequencer's thread alone.

    Each event's method decides and notes in `_outbox` what is to go out; flush(), after a batch of events, sends it.
    """

    def __init__(self, alarm: Alarm, post: Callable[..., None], settings: Settings = Settings(),
                 wall_clock: Callable[[], float] = time.time, record: Callable[[str], None] = lambda line: None) -> None:
        self._alarm = alarm
        self._post = post                       # puts an event into the inbox: post(method, *arguments)
        self._settings = settings
        self._wall_clock = wall_clock           # for `at`
        self._record = record                   # writes a line of the chat log
        self.epoch = secrets.token_hex(8)
        self._motd: Optional[str] = None        # the message of the day
        self.last = 0                           # the newest id
        self._log = Log()
        self._members: "dict[str, Session]" = {}                # by name_key: those in the room
        self._sessions: "dict[bytes, Session]" = {}             # by hash of the secret: those and the remembered ones
        self._gone: "collections.OrderedDict[bytes, Session]" = collections.OrderedDict()   # the remembered ones
        self._names_bytes = 0                                   # of the members' names, for USERS_BYTES
        self._booted: "collections.OrderedDict[bytes, str]" = collections.OrderedDict()     # hash of a secret -> why
        self._bans: "dict[str, float]" = {}                     # name_key or address -> until when, by the room's clock
        self._watched: "deque[Watch]" = deque()
        self._told: "dict[int, int]" = {}                       # watched id -> the last count that was told
        self._heard_and_left: "collections.Counter[int]" = collections.Counter()   # watched id -> members who heard it and left
        self._receipts_due = False                              # a receipts event is on its way
        # What flush() has to do, in order: an Entry to send, or something to call.
        self._outbox: "list[Any]" = []
        self._to_acknowledge: "dict[Connection, None]" = {}
        self._outbox_bytes = 0
        self._live: "dict[Session, Connection]" = {}            # who gets what is broadcast: flush() alone changes it

    # Events from connections

    def frames(self, link: Connection, batch: "list[Message]") -> None:
        """Frames from a member or from a connection that has not joined, in their order."""
        for message in batch:
            if link.ended:
                return
            try:
                self._frame(link, message)
            except Exception as error:      # noqa: BLE001: a bug may cost this frame, not the others, and no ACK may hide it
                _log_bug(f"in {message}", error)
                self._refuse(link, ProtocolError("bad-frame", "the server cannot take this"), message.id or None)

    def failed(self, link: Connection, error: ProtocolError) -> None:
        """What came is no frame: say so, end the connection."""
        if link.ended:
            return
        logger.info("%s sent what is no frame (%s: %s), connection closed", link.address, error.code, error)
        self._refuse(link, error, None)
        self._end(link, "sent what is no frame")

    def overdue(self, link: Connection) -> None:
        """A connection has had its time to join."""
        if link.session is None and not link.ended:
            logger.info("%s did not join within %g s, connection closed", link.address, JOIN_TIMEOUT)
            self._refuse(link, ProtocolError("not-joined", f"join within {JOIN_TIMEOUT:g} s"), None)
            self._end(link, "did not join")

    def slowed(self, link: Connection) -> None:
        """A member is over the flood limit: its frames wait, none is lost."""
        logger.info("%s is over %g messages a second and is slowed down", link.address, self._settings.rate)
        self._refuse(link, ProtocolError("flooding", f"more than {self._settings.rate:g} messages a second: "
                                         "yours are slowed down, none is lost"), None)

    def dead(self, link: Connection) -> None:
        """A member has confirmed nothing for all its retries."""
        if link.manager.waiting:
            self._too_slow(link)
        else:
            self._end(link, "no answer")
        link.cut()

    def idle(self, link: Connection) -> None:
        """Nothing was sent to a member for PING_AFTER."""
        if link.session is not None and not link.ended:
            self._outbox.append(Entry(self._next_id(), Ping(self.last).encode(), (link.session,)))   # never replayed

    def lost(self, link: Connection, why: str) -> None:
        """The connection is gone."""
        self._end(link, why)

    def grace_over(self, session: Session, lost_at: float) -> None:
        """A member that was lost at `lost_at` has had its time to come back."""
        if session.present and session.link is None and session.lost_at == lost_at:
            self._leave(session, "gone away")

    # Events from the console, the operator's code and the alarm

    def say(self, text: str) -> None:
        """Say something as Server."""
        chatproto.check_text(text)
        self._broadcast(Chat(self._next_id(), "Server", text, self._now()), is_chat=True)
        self._record(f"<Server> {escape(text)}")

    def set_motd(self, text: Optional[str]) -> None:
        """What newcomers are shown; None for nothing. Raises ProtocolError when it is too long."""
        self._motd = None if text is None else chatproto.check_text(text)

    def users(self) -> "list[tuple[str, str]]":
        """Name and address of each member; the address is "away" in the grace time."""
        return [(session.name, session.link.address if session.link else "away") for session in self._members.values()]

    def boot(self, name: str, reason: str = "") -> str:
        """Put a member out; return its name. Raises LookupError when there is none of that name."""
        session = self._members.get(name_key(name))
        if session is None:
            raise LookupError(f"nobody here is called {escape(name)}")
        reason = chatproto.clean_text(reason)[:REASON]
        logger.info("%s was booted%s", session.name, f": {escape(reason)}" if reason else "")
        if session.link is not None:
            self._close(session, session.link, Booted(self._next_id(), reason).encode())
        self._leave(session, f"booted: {reason}" if reason else "booted")
        del self._sessions[session.secret_hash], self._gone[session.secret_hash]
        self._booted[session.secret_hash] = reason
        if len(self._booted) > BOOTED:
            self._booted.popitem(last=False)
        return session.name

    def ban(self, name: str, seconds: float = math.inf) -> str:
        """Boot a member and refuse its name and its address; a name that is not here, or an address, is refused from now on."""
        session = self._members.get(name_key(name))
        keys = [name_key(name)]
        if session is not None:
            if session.link is not None and not _is_loopback(session.link.address):     # else everybody here would be banned
                keys.append(session.link.address)
            self.boot(name, "banned")
        for key in keys:
            self._bans[key] = self._alarm.clock() + seconds
        return ", ".join(keys)

    def unban(self, name: str) -> None:
        """Lift a ban of a name or an address. Raises LookupError when there is none."""
        if self._bans.pop(name_key(name), None) is None:
            raise LookupError(f"{escape(name)} is not banned")

    def banned(self) -> "dict[str, float]":
        """The banned names and addresses, with the seconds that are left (inf: for good)."""
        now = self._alarm.clock()
        self._bans = {key: until for key, until in self._bans.items() if until > now}
        return {key: until - now for key, until in self._bans.items()}

    def receipts(self) -> None:
        """Tell speakers how many have heard them, every RECEIPT_EVERY while there is something to tell."""
        self._receipts_due = False
        now = self._alarm.clock()
        acked = sorted(max(session.acked, session.here_since) for session in self._members.values())
        begun = sorted(session.here_since for session in self._members.values())
        keep: "deque[Watch]" = deque()
        for watch in self._watched:
            count = min(watch.of, self._heard_by(watch, acked, begun))
            # Not before the speaker has its own message: by its place it knows which one is meant.
            if count != self._told.get(watch.id) and watch.speaker.link is not None and watch.speaker.acked >= watch.id:
                self._told[watch.id] = count
                watch.speaker.link.manager.send_bare(Heard(watch.id, count, watch.of).encode())
            if self._told.get(watch.id) != watch.of and now < watch.until:
                keep.append(watch)
            else:
                self._told.pop(watch.id, None)
                self._heard_and_left.pop(watch.id, None)
        self._watched = keep
        self._ask_for_receipts()

    # After a batch of events

    def flush(self) -> None:
        """Send what the events of a batch decided: everything public in one piece to each member, then the ACKs."""
        outbox, self._outbox = self._outbox, []
        self._outbox_bytes = 0
        run = _Run(self._live)
        for step in outbox:
            if not isinstance(step, Entry):
                step(run)
            elif step.audience is None:
                run.add(step)
            else:
                for session in step.audience:
                    run.send_one(session, step)
        run.send_all()
        acknowledge, self._to_acknowledge = self._to_acknowledge, {}
        for link in acknowledge:
            if link.session is not None:
                link.manager.acknowledge(link.session.got)
        for link in run.finished:
            link.finish()
        for session, link in run.too_slow.items():
            if session.link is link:
                self._too_slow(link)
        if self._outbox:                    # what those who are too slow will be told
            self.flush()

    @property
    def batch_is_large(self) -> bool:
        """Whether to flush before the next event."""
        return self._outbox_bytes > BATCH_BYTES

    @property
    def connected(self) -> int:
        """How many members are connected. Any thread may ask."""
        return len(self._live)

    # Joining and leaving

    def _join(self, link: Connection, join: Join) -> None:
        if link.session is not None:
            self._refuse(link, ProtocolError("already-joined", f"you are in, as {link.session.name}"), None)
            return
        session = self._known(join)
        back_in_time = session is not None and session.present
        if not back_in_time:
            try:
                self._check_entry(link, join)
            except ProtocolError as error:
                logger.info("%s may not join as %s: %s", link.address, escape(join.name), error)
                self._refuse(link, error, None)
                if error.code in ("banned", "full"):
                    self._end(link, error.code)
                return
        secret = join.session if session is not None and join.session else secrets.token_urlsafe(24)    # 192 bits
        if session is None:
            session = self._new_session(join, secret)
        replay, missed = self._replay(join, session)
        if back_in_time:
            self._take_over(session)
            logger.info("%s is back from %s", session.name, link.address)
        else:
            self._enter(session, join.name)
            logger.info("%s joined from %s", session.name, link.address)
        resumed = secret == join.session
        self._admit(link, session, join, self._welcome(session, secret, join, resumed, missed), replay)

    def _known(self, join: Join) -> Optional[Session]:
        """The session that `join` proves to own; None without one, and for one that claims to have seen what is not there."""
        if join.session is None or join.epoch != self.epoch or join.seen > self.last:
            return None
        secret_hash = _hash(join.session)
        session = self._sessions.get(secret_hash)
        if session is None or not hmac.compare_digest(session.secret_hash, secret_hash):
            return None
        return session

    def _check_entry(self, link: Connection, join: Join) -> None:
        """Raise ProtocolError if whoever is at `link` may not come in under that name."""
        banned = self.banned()
        if link.address in banned or name_key(join.name) in banned:
            raise ProtocolError("banned", "you are banned here")
        why = self._booted.get(_hash(join.session)) if join.session else None
        if why is not None:                 # it was away when it was put out, and is told now
            raise ProtocolError("banned", f"you were booted: {why}" if why else "you were booted")
        if len(self._members) >= self._settings.max_members:
            self._make_room()
        if len(self._members) >= self._settings.max_members:
            raise ProtocolError("full", f"{self._settings.max_members} members are here: no room for more")
        self._check_free(join.name)

    def _make_room(self) -> None:
        """The room is full: whoever has been away for the longest has had its grace time."""
        away = [session for session in self._members.values() if session.link is None]
        if away:
            self._leave(min(away, key=lambda session: session.lost_at), "gone away")

    def _check_free(self, name: str) -> None:
        """Raise ProtocolError("name-taken"), with a free one like it, if somebody here has that name."""
        if name_key(name) in self._members:
            stem = re.sub(r"-\d+$", "", name)[:chatproto.MAX_NAME - 6]
            tries = (f"{stem}-{number}" for number in range(2, len(self._members) + 3))
            free = next(other for other in tries if name_key(other) not in self._members)
            raise ProtocolError("name-taken", f"the name {name} is taken", free)

    def _seen(self, join: Join) -> int:
        """The newest id that the owner of `join` has, if it can be so in this run of ids."""
        return join.seen if join.epoch == self.epoch and join.seen <= self.last else 0

    def _new_session(self, join: Join, secret: str) -> Session:
        """A session, of whose secret only the hash is kept. Who was here before a restart hears all that was said since,
        anybody else the last messages."""
        if join.session is not None and join.epoch != self.epoch:
            session = Session(_hash(secret), 0, 0)
        else:
            recent = self._log.recent(self._seen(join))
            session = Session(_hash(secret), self.last + 1, recent[0].id - 1 if recent else self.last)  # + 1: its own `joined`
        session.present = False
        self._sessions[session.secret_hash] = session
        return session

    def _replay(self, join: Join, session: Session) -> "tuple[list[Entry], int]":
        """What the owner of `join` has to hear first, and how many frames of what it missed are no longer there (at most)."""
        seen = self._seen(join)
        replay = [entry for entry in self._log.after(max(seen, session.history_from), session)
                  if entry.id > session.begin or entry.is_chat]
        missed = max(0, self._log.forgotten - max(seen, session.begin))
        if not session.name:                                # a new one
            if seen:                                        # of somebody whose session is forgotten
                missed = self.last - seen - len(replay)
            missed += len(replay[:-STRANGER_FRAMES])        # bounded, since anybody may claim to have been here before
            return replay[-STRANGER_FRAMES:], missed
        forgotten = [error for _, error in session.refusals if seen < error.id <= self._log.forgotten]
        return forgotten + replay, missed                   # a refusal is never forgotten: its ACK would be a false yes

    def _enter(self, session: Session, name: str) -> None:
        """A new session, or one that had left, comes into the room."""
        session.name, session.present = name, True
        self._gone.pop(session.secret_hash, None)
        self._members[name_key(name)] = session
        self._names_bytes += len(name.encode()) + 3
        self._broadcast(Joined(self._next_id(), name, self._now()))
        self._record(f"* {name} joined")
        session.here_since = self.last

    def _take_over(self, session: Session) -> None:
        """The owner of a session comes on another connection: the old one ends."""
        if session.link is not None:
            reason = "this session has joined again from elsewhere"
            self._close(session, session.link, Booted(self._next_id(), reason).encode())

    def _welcome(self, session: Session, secret: str, join: Join, resumed: bool, missed: int) -> Welcome:
        names = [member.name for member in self._members.values()]
        here = None
        if self._names_bytes > USERS_BYTES:
            here, room = len(names), USERS_BYTES
            for count, name in enumerate(names):
                room -= len(name.encode()) + 3
                if room < 0:
                    del names[count:]
                    break
        got = session.confirmed_for(join.seen) if resumed else 0
        return Welcome(session.name, secret, self.epoch, tuple(names), self.last, resumed, got, missed, here, self._motd)

    def _admit(self, link: Connection, session: Session, join: Join, welcome: Welcome, replay: "list[Entry]") -> None:
        """From here on `link` is the session's connection."""
        session.receipts = join.receipts
        session.link, link.session = link, session
        session.allowance = link.allowance = session.allowance or link.allowance
        session.lost_at = math.inf
        for watch in self._watched:
            if watch.speaker is session:
                self._told.pop(watch.id, None)          # it may have been lost with the connection
        confirmed = min(join.seen, self.last) if welcome.resumed else 0
        got = session.got
        refusal = session.refusals[-1][1].id if session.refusals else 0
        self._outbox.append(lambda run: run.admit(session, link, welcome, replay, confirmed, got, refusal))

    def _leave(self, session: Session, reason: str) -> None:
        """A member goes out of the room; its session is remembered for what it may send again."""
        for watch in self._watched:
            if session is not watch.speaker and watch.recipient is None and session.here_since < watch.id <= session.acked:
                self._heard_and_left[watch.id] += 1
        del self._members[name_key(session.name)]
        self._names_bytes -= len(session.name.encode()) + 3
        session.present = False
        self._gone[session.secret_hash] = session
        while len(self._gone) > SESSIONS:
            self._sessions.pop(self._gone.popitem(last=False)[0], None)
        self._broadcast(Left(self._next_id(), session.name, self._now(), reason))
        booted = reason.startswith("booted")
        self._record(f"* {session.name} " + (f"was {escape(reason)}" if booted else f"left ({escape(reason)})"))

    def _close(self, session: Session, link: Connection, last_words: bytes = b"") -> None:
        """End a connection whose session goes on elsewhere or nowhere."""
        link.ended = True
        session.unlink()
        self._outbox.append(lambda run: run.remove(session, link, last_words))

    def _end(self, link: Connection, why: str) -> None:
        """A connection is over. Its member, if it has one, gets the grace time to come back."""
        if link.ended:
            return
        session = link.session
        if session is None or session.link is not link:
            link.ended = True
            self._outbox.append(lambda run: run.finished.append(link))
            return
        self._close(session, link)
        session.lost_at = lost_at = self._alarm.clock()
        logger.info("%s lost its connection (%s)", session.name, why)
        self._alarm.at(lost_at + self._settings.grace, lambda: self._post(self.grace_over, session, lost_at))

    def _too_slow(self, link: Connection) -> None:
        """A member does not keep up: it is dropped, and told so when it comes back, in its place in the order."""
        if link.session is not None and not link.ended:
            logger.info("%s is too slow: %d frames wait for it, connection closed", link.session.name, link.manager.waiting)
            self._refuse(link, ProtocolError("too-slow", "you did not keep up and were disconnected"), None)
            self._end(link, "too slow")

    # Frames of members

    def _frame(self, link: Connection, message: Message) -> None:
        if isinstance(message, Join):
            self._join(link, message)
        elif isinstance(message, Invalid) and message.kind == Join.type:
            self._refuse(link, message.error, None)
        elif link.session is None:
            self._refuse(link, ProtocolError("not-joined", "join first"), message.id or None)
        elif len(link.session.refusals) >= REFUSALS and link.session.refusals[0][1].id > link.session.acked:
            self._too_slow(link)
        elif message.id:
            self._numbered(link, link.session, message)

    def _numbered(self, link: Connection, session: Session, message: Message) -> None:
        self._to_acknowledge[link] = None
        if message.id <= session.got:                   # sent again: its ACK was lost
            return
        session.got = message.id
        if isinstance(message, Say):
            self._chat(link, session, message)
        elif isinstance(message, Rename):
            self._rename(link, session, message)
        elif isinstance(message, Leave):
            logger.info("%s left", session.name)
            self._close(session, link)
            self._leave(session, "quit")
        elif isinstance(message, Invalid):
            self._refuse(link, message.error, message.id)
        else:
            assert isinstance(message, (Ping, Unknown)), message    # they ask for nothing but their ACK

    def _chat(self, link: Connection, session: Session, say: Say) -> None:
        recipient = None
        if say.to is not None:
            # What is too long for a name is nobody's, and could cost name_key() a fifth of a second.
            recipient = self._members.get(name_key(say.to)) if len(say.to) <= chatproto.MAX_NAME else None
            if recipient is None:
                self._refuse(link, ProtocolError("no-such-user", f"nobody here is called {say.to[:chatproto.MAX_NAME]}"), say.id)
                return
        chat = Chat(self._next_id(), session.name, say.text, self._now(), say.id, recipient.name if recipient else None)
        if recipient is None:
            self._broadcast(chat, is_chat=True)
            self._record(f"<{session.name}> {escape(say.text)}")
            listeners = len(self._members) - 1
        else:
            self._send_to((session,) if recipient is session else (session, recipient), chat)
            listeners = int(recipient is not session)
        if session.receipts and listeners:
            self._watch(Watch(chat.id, session, recipient, listeners, self._alarm.clock() + RECEIPT_UNTIL))

    def _rename(self, link: Connection, session: Session, rename: Rename) -> None:
        old, new = session.name, rename.name
        if new == old:
            return
        try:
            if name_key(new) in self.banned():
                raise ProtocolError("banned", f"the name {new} is banned")
            if name_key(new) != name_key(old):          # "Ann" may become "ann"
                self._check_free(new)
        except ProtocolError as error:
            self._refuse(link, error, rename.id)
            return
        del self._members[name_key(old)]
        self._members[name_key(new)] = session
        self._names_bytes += len(new.encode()) - len(old.encode())
        session.name = new
        self._broadcast(Renamed(self._next_id(), old, new, self._now()))
        self._record(f"* {old} is now {new}")
        logger.info("%s is now %s", old, new)

    # Receipts

    def _watch(self, watch: Watch) -> None:
        self._watched.append(watch)
        if len(self._watched) > RECEIPTS:
            oldest = self._watched.popleft().id
            self._told.pop(oldest, None)
            self._heard_and_left.pop(oldest, None)
        self._ask_for_receipts()

    def _ask_for_receipts(self) -> None:
        if self._watched and not self._receipts_due:
            self._receipts_due = True
            self._alarm.at(self._alarm.clock() + RECEIPT_EVERY, lambda: self._post(self.receipts))

    def _heard_by(self, watch: Watch, acked: "list[int]", begun: "list[int]") -> int:
        """How many have confirmed a message: of all who have come that far, less those who came only after it."""
        if watch.recipient is not None:
            return int(watch.recipient.acked >= watch.id)
        speaker = watch.speaker
        itself = speaker.present and speaker.here_since < watch.id <= speaker.acked
        return (self._heard_and_left[watch.id] - itself
                + bisect.bisect_left(begun, watch.id) - bisect.bisect_left(acked, watch.id))

    # Sending

    def _next_id(self) -> int:
        self.last += 1
        return self.last

    def _now(self) -> float:
        return round(self._wall_clock(), 3)

    def _broadcast(self, message: Message, is_chat: bool = False) -> None:
        self._put(Entry(message.id, message.encode(), None, is_chat))

    def _send_to(self, audience: "tuple[Session, ...]", message: Message) -> None:
        self._put(Entry(message.id, message.encode(), audience))

    def _put(self, entry: Entry) -> None:
        self._log.append(entry)
        self._outbox.append(entry)
        self._outbox_bytes += len(entry.frame)

    def _refuse(self, link: Connection, error: ProtocolError, about: Optional[int]) -> None:
        """Answer with an error: numbered and replayed to a member, bare to a connection that has not joined."""
        session = link.session
        if session is None or session.link is not link:
            frame = Error(0, error.code, error.text, about, error.suggestion).encode()
            self._outbox.append(lambda run: link.manager.send_bare(frame))
            return
        message = Error(self._next_id(), error.code, error.text, about, error.suggestion)
        if about is None:
            self._send_to((session,), message)
            return
        entry = Entry(message.id, message.encode(), (session,))
        while session.refusals and session.refusals[0][1].id <= session.acked:
            session.refusals.popleft()
        session.refusals.append((about, entry))
        self._log.append(entry)
        self._outbox.append(lambda run: run.send_one(session, entry, refusal=True))


class _Run:
    """What one flush() sends. Public entries are collected, and go to each member in one piece at the end; whoever comes in
    between gets those after its place, and whoever is sent a frame of its own gets those before it first."""

    def __init__(self, live: "dict[Session, Connection]") -> None:
        self._live = live
        self._ids: "list[int]" = []
        self._frames: "list[bytes]" = []
        self._place: "dict[Session, int]" = {}              # how many of them a member has had; 0 for most
        self.finished: "list[Connection]" = []
        self.too_slow: "dict[Session, Connection]" = {}

    def add(self, entry: Entry) -> None:
        """A public entry."""
        self._ids.append(entry.id)
        self._frames.append(entry.frame)

    def admit(self, session: Session, link: Connection, welcome: Welcome, replay: "list[Entry]",
              confirmed: int, got: int, refusal: int) -> None:
        """A member comes in: its welcome, what it missed, and from here on what is public."""
        self._live[session] = link
        self._place[session] = len(self._ids)
        link.attach(welcome.encode(), confirmed, got)
        for start in range(0, len(replay), WINDOW):         # in pieces that a window takes whole
            piece = replay[start:start + WINDOW]
            self._send(session, link, PendingMessage([entry.id for entry in piece], [entry.frame for entry in piece]),
                       replay=True, refusal=min(refusal, replay[-1].id))

    def remove(self, session: Session, link: Connection, last_words: bytes) -> None:
        """A member's connection ends after what came before."""
        if self._live.get(session) is link:
            self._catch_up(session, link)
            del self._live[session]
        if last_words:
            link.manager.send_bare(last_words)          # past a window that may be shut: the session ends here
        self.finished.append(link)

    def send_one(self, session: Session, entry: Entry, refusal: bool = False) -> None:
        """An entry for one member."""
        link = self._live.get(session)
        if link is not None:
            self._catch_up(session, link)
            self._send(session, link, PendingMessage([entry.id], [entry.frame]),
                       refusal=entry.id if refusal else 0)

    def send_all(self) -> None:
        """What is public, to everybody."""
        if self._ids:
            whole = PendingMessage(self._ids, self._frames)
            for session, link in self._live.items():
                if session in self._place:
                    self._catch_up(session, link)
                else:
                    self._send(session, link, whole)

    def _catch_up(self, session: Session, link: Connection) -> None:
        place = self._place.get(session, 0)
        if place < len(self._ids):
            self._send(session, link, PendingMessage(self._ids[place:], self._frames[place:]))
        self._place[session] = len(self._ids)

    def _send(self, session: Session, link: Connection, pending: PendingMessage, replay: bool = False,
              refusal: int = 0) -> None:
        try:
            link.manager.send(pending, replay, refusal)
        except Exception as error:                      # noqa: BLE001: a bug here must not cost the others their frames
            if not isinstance(error, queue.Full):
                _log_bug(f"in sending to {session.name}", error)
            link.manager.detach()                       # nothing may follow what it did not get: it comes back for that
            self.too_slow[session] = link


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


# --- Connections ---

class Allowance:
    """The flood limit of one session: a burst of five seconds' worth, then `rate` frames a second."""

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._clock = clock
        self._burst = max(5.0, 5 * rate)        # room for a join or two at the lowest rates
        self._left = self._burst        # frames that may go now
        self._at = clock()              # when that was so

    def take(self) -> float:
        """Use up one frame and return 0, or return the seconds until there is one."""
        if not self._rate:
            return 0.0
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self._rate
        self._left -= 1
        return 0.0


class Connection:
    """One connection, from its bytes to the inbox. `wire` is its MessageSocket; tests give it something like one.

    run() is its thread; Room uses `address`, `manager`, `session`, `ended` and the methods below `run`.
    """

    def __init__(self, wire: MessageSocket, address: str, room: Room, post: Callable[..., None], alarm: Alarm,
                 rate: float) -> None:
        self.address = address
        self.session: Optional[Session] = None          # the sequencer sets it, once
        self.ended = False                              # the sequencer sets it: nothing more is taken from here
        self._wire = wire
        self._room = room
        self._post = post
        self._alarm = alarm
        self._decoder = FrameDecoder(FROM_CLIENT)
        self.allowance = Allowance(rate, alarm.clock)   # the session's, once there is one
        self._held: "deque[Message]" = deque()          # decoded and not yet handed over: bounded by HELD and one read
        self._slowed_at = -math.inf                     # when it was told that it is slowed down
        self._deaf = False                              # what comes is thrown away: it is no frames any more
        self._failure: Optional[FrameError] = None      # why, until the room was told
        self._over = threading.Event()                  # cut: stops a wait of the flood limit
        self.manager = MessageManager(alarm, on_dead=lambda: post(room.dead, self), on_idle=lambda: post(room.idle, self))
        self.manager.attach(wire.write)
        alarm.at(alarm.clock() + JOIN_TIMEOUT, chatproto.weakly(self._join_timeout))

    def run(self) -> None:
        """Read until the connection ends."""
        why = "a bug"
        try:
            while True:
                wait = self.release() if self._held or self._failure else None
                self.manager.patient = len(self._held) >= HELD
                if self.manager.patient:
                    if self._over.wait(wait):
                        raise ConnectionClosed("cut")
                else:
                    self.received(self._wire.read(wait))
        except ConnectionClosed as end:
            why = str(end)
        finally:
            self._post(self._room.lost, self, why)      # after a bug, too: else its member would stay for ever
            self.manager.close()
            self._wire.close()

    def received(self, data: bytes) -> None:
        """Take bytes of the member: ACKs at once, frames in their order."""
        if self._deaf:
            return
        try:
            for message in self._decoder.feed(data):
                if isinstance(message, Ack) and self.session is not None and self.manager.acknowledged(message.upto):
                    continue
                self._held.append(message)              # with them an ACK that is no news: the flood limit is for it, too
        except FrameError as error:
            self._deaf, self._failure = True, error

    def release(self) -> Optional[float]:
        """Hand over the frames that the flood limit admits; return the seconds until the next, None when none is held."""
        batch: "list[Message]" = []
        wait = None
        while self._held:
            wait = self.allowance.take() or None
            if wait:
                break
            batch.append(self._held.popleft())
        if batch:
            self._post(self._room.frames, self, batch)
        now = self._alarm.clock()
        if wait and now - self._slowed_at >= SAY_AGAIN:
            self._slowed_at = now
            self._post(self._room.slowed, self)
        if self._failure is not None and not self._held:
            self._post(self._room.failed, self, self._failure)
            self._failure = None
        return wait

    # For Room, on the sequencer's thread

    def attach(self, welcome: bytes, confirmed: int, received: int) -> None:
        """The member is in: number what is sent from here on."""
        self.manager.send_bare(welcome)
        self.manager.attach(self._wire.write, confirmed, received)

    def finish(self) -> None:
        """End our half, so that the last words arrive, and cut the connection a little later."""
        self._wire.finish()
        self._alarm.at(self._alarm.clock() + LAST_WORDS, self.cut)

    def cut(self) -> None:
        """End the connection now: its thread wakes and ends."""
        self._over.set()
        self._wire.cut()

    def _join_timeout(self) -> None:
        """On the alarm's thread."""
        if self.session is None:
            self._post(self._room.overdue, self)



# --- The sequencer ---

class Sequencer(threading.Thread):
    """The one thread that owns the room: takes all that waits in the inbox, has the room do it, has it flush."""

    def __init__(self, room_of: Callable[[Callable[..., None]], Room]) -> None:
        super().__init__(name="sequencer", daemon=True)     # daemon: a stuck room must not keep the process alive
        self._inbox: "queue.Queue[tuple[Callable[..., Any], tuple[Any, ...]]]" = queue.Queue(INBOX)
        self._stopped = threading.Event()
        self.room = room_of(self.post)

    def post(self, method: Callable[..., Any], *arguments: Any) -> None:
        """Have the room do something, in its order. Any thread; blocks while the inbox is full."""
        while not self._stopped.is_set():
            try:
                return self._inbox.put((method, arguments), timeout=1)
            except queue.Full:
                continue

    def ask(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Have the room do something and return its result, or raise its error; TimeoutError when it does not answer.
        Not for the sequencer's own thread."""
        answer: "queue.Queue[tuple[Any, Optional[Exception]]]" = queue.Queue(1)

        def event() -> None:
            try:
                answer.put((method(*arguments), None))
            except Exception as error:                  # noqa: BLE001: the asker's to handle
                answer.put((None, error))
        self.post(event)
        try:
            result, error = answer.get(timeout=10)
        except queue.Empty:
            raise TimeoutError("the room does not answer") from None
        if error is not None:
            raise error
        return result

    def stop(self) -> None:
        """End the thread after what is in the inbox now; may be called twice."""
        self.post(self._stopped.set)
        if self.is_alive():
            self.join(5)
        self._stopped.set()

    def run(self) -> None:
        while not self._stopped.is_set():
            events = [self._inbox.get()]
            while len(events) < INBOX:
                try:
                    events.append(self._inbox.get_nowait())
                except queue.Empty:
                    break
            for method, arguments in events:
                self._guard(method, arguments)
                if self.room.batch_is_large:
                    self._guard(self.room.flush, ())
            self._guard(self.room.flush, ())

    @staticmethod
    def _guard(method: Callable[..., Any], arguments: "tuple[Any, ...]") -> None:
        """A bug in one event is logged, and the room goes on."""
        try:
            method(*arguments)
        except Exception as error:                      # noqa: BLE001: this is the last line of defence
            _log_bug(f"in {method.__name__}", error)


def _log_bug(where: str, error: BaseException) -> None:
    """One line for what should not happen; the traceback only with -v."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else "?"
    logger.error("bug %s: %r at %s (please report it)", where, error, place)
    logger.debug("its traceback", exc_info=error)


# --- The server ---

class Handler(socketserver.BaseRequestHandler):
    """One connection's thread, as thin as can be: BaseRequestHandler runs handle() inside its constructor."""

    server: ChatServer

    def handle(self) -> None:
        self.server.attend(self.request, self.client_address)


class ChatServer(socketserver.ThreadingTCPServer):
    """The listening socket, the threads and their end. `port` is the real one; with `host` "" it listens on every address.

    Use: start(), then from code ask(room.boot, name, reason) and the like, at the end server_close().
    """

    allow_reuse_address = os.name == "posix"            # on Windows it would let a second server take the port
    daemon_threads = True                               # they end with their connection, which server_close() ends
    block_on_close = False                              # socketserver would keep a list of dead threads
    request_queue_size = 1024                           # 5, its default, refuses most of a class that joins at once

    def __init__(self, host: str = "", port: int = PORT, settings: Settings = Settings(),
                 record: Callable[[str], None] = lambda line: None) -> None:
        self.settings = settings
        self.alarm = Alarm()
        self._lock = threading.Lock()                   # protects the three below; a leaf
        self._connections: "dict[Connection, threading.Thread]" = {}
        self._addresses: "collections.Counter[str]" = collections.Counter()     # connections of each
        self._closed = False
        self._closing = threading.Event()               # ends the wait of an acceptor that ran out of descriptors
        self._complained: "dict[str, float]" = {}       # complaint -> when it was logged; the acceptor's own
        self._acceptor: Optional[threading.Thread] = None
        address, self.address_family = _bind_address(host, port)
        self.sequencer = Sequencer(lambda post: Room(self.alarm, post, settings, record=record))
        self.room = self.sequencer.room
        self.ask = self.sequencer.ask
        super().__init__(address, Handler)              # binds; where it cannot it calls server_close()
        self.port: int = self.server_address[1]

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if self.server_address[0] == "::" else 1)
        super().server_bind()

    def start(self) -> None:
        """Start the sequencer and the acceptor, which ends with server_close()."""
        self.sequencer.start()
        self._acceptor = threading.Thread(target=self.serve_forever, args=(ACCEPT_POLL,), name="accept", daemon=True)
        self._acceptor.start()

    def say_goodbye(self, text: str, seconds: float = 1.0) -> None:
        """Tell everybody, and wait up to `seconds` until all has been confirmed."""
        try:
            self.ask(self.room.say, text)
        except TimeoutError as error:
            logger.error("%s", error)
        until = self.alarm.clock() + seconds
        while self.alarm.clock() < until and not self._closing.wait(0.02):
            with self._lock:
                links = list(self._connections)
            if all(link.manager.empty for link in links):
                return

    def server_close(self) -> None:
        """End every connection and every thread; may be called twice."""
        with self._lock:
            self._closed = True
        self._closing.set()
        if self._acceptor is not None and self._acceptor.is_alive():
            self.shutdown()
            self._acceptor.join()
        super().server_close()
        with self._lock:
            threads = dict(self._connections)
        self.sequencer.stop()                           # first: that they are all lost now is no news
        for connection in threads:
            connection.cut()                            # what was written still arrives, then the end
        for thread in threads.values():
            thread.join(5)
        self.alarm.close()

    # On the acceptor's thread

    def get_request(self) -> "tuple[socket.socket, Any]":
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._complain(f"cannot accept connections: {error.strerror}; the next ones wait until some end")
                self._closing.wait(0.25)                # else serve_forever would spin
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """The limits that hold before anybody has said a word."""
        address = _plain_address(client_address)
        with self._lock:
            same = -1 if _is_loopback(address) else self._addresses[address]
            unjoined = len(self._connections) - self.room.connected
        if same >= self.settings.max_per_address:
            what = f"{same} connections from {address}"
        elif unjoined >= UNJOINED:
            what = f"{unjoined} connections that have not joined"
        else:
            return True
        self._complain(f"refusing more connections: {what}")
        try:
            request.send(Error(0, "full", f"the limit is reached: {what}").encode())
            request.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        return False

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the connection's thread. It ends with the connection."""
        name = "member " + _plain_address(client_address)
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._complain(f"cannot start a thread for a connection: {error}")
            self.shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A bug in a connection's thread: one line, instead of socketserver's traceback."""
        error = sys.exc_info()[1]
        if error is not None:
            _log_bug(f"in a connection from {_plain_address(client_address)}", error)

    def _complain(self, what: str) -> None:
        """Log a shortage, and not again for a while."""
        kind, now = what[:24], self.alarm.clock()
        if now - self._complained.get(kind, -math.inf) >= SAY_AGAIN:
            self._complained[kind] = now
            logger.warning("%s", what)

    # On a connection's thread

    def attend(self, request: socket.socket, client_address: Any) -> None:
        """Serve one connection to its end."""
        connection = Connection(MessageSocket(request), _plain_address(client_address), self.room, self.sequencer.post,
                                self.alarm, self.settings.rate)
        with self._lock:
            if self._closed:
                return
            self._connections[connection] = threading.current_thread()
            self._addresses[connection.address] += 1
        try:
            connection.run()
        finally:
            with self._lock:
                del self._connections[connection]
                self._addresses[connection.address] -= 1
                self._addresses += collections.Counter()        # forgets those of which there are none


def _bind_address(host: str, port: int) -> "tuple[tuple[Any, ...], int]":
    """Where to listen, and the address family: every address of both kinds for "" where the platform can do that."""
    if not host:
        return (("::", port), socket.AF_INET6) if socket.has_dualstack_ipv6() else (("", port), socket.AF_INET)
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return address, family


def _plain_address(client_address: Any) -> str:
    """The peer's address, an IPv4 one without the prefix that a socket for both kinds gives it."""
    address = str(client_address[0])
    return address[7:] if address.startswith("::ffff:") and "." in address else address


# --- The chat log, the console, main ---

class ChatLog:
    """Appends one line an event to a file, or to stdout for "-"."""

    def __init__(self, path: Optional[str]) -> None:
        self._path = path
        self._file: Any = None
        self.reopen()

    def reopen(self) -> None:
        """Open the file, again after it was rotated. Raises OSError."""
        if self._path and self._path != "-":
            before, self._file = self._file, open(self._path, "a", encoding="utf-8")
            if before is not None:
                before.close()
        elif self._path:
            self._file = sys.stdout

    def write(self, line: str) -> None:
        """On the sequencer's thread."""
        if self._file is None:
            return
        try:
            self._file.write(time.strftime("[%Y-%m-%d %H:%M:%S] ") + line + "\n")
            self._file.flush()
        except (OSError, ValueError) as error:
            logger.error("the chat log cannot be written: %s", error)
            self._file = None


class Console:
    """What the operator can do, from stdin or from code: command() takes a line and returns the answer."""

    def __init__(self, server: ChatServer, motd_path: Optional[str], chat_log: ChatLog, stop: Callable[[], None]) -> None:
        self._server = server
        self._motd_path = motd_path
        self._motd: Optional[str] = None                # what was read last
        self._chat_log = chat_log
        self._stop = stop
        self._commands = {"/users": self.users, "/boot": self.boot, "/ban": self.ban, "/unban": self.unban,
                          "/banned": self.banned, "/say": self.say, "/motd": self.motd, "/help": self.help, "/quit": self.quit}

    def command(self, line: str) -> str:
        """Do what `line` says and return what to tell the operator."""
        word, _, rest = line.strip().partition(" ")
        if not word:
            return ""
        run = self._commands.get(word)
        if run is None:
            return f"{escape(word)} is not a command here, /help lists them; /say TEXT speaks to everybody"
        try:
            return run(rest.strip())
        except (LookupError, ValueError, ProtocolError, OSError) as error:
            return str(error.args[0] if isinstance(error, LookupError) else error)

    def run(self) -> None:
        """On the console's thread: read commands until stdin ends. A daemon: a read of a terminal cannot be interrupted."""
        try:
            for line in chatproto.stdin_lines():
                answer = self.command(chatproto.clean_text(line))
                if answer:
                    sys.stdout.write(answer + "\n")     # in one piece: the log may go to the same terminal
                    sys.stdout.flush()
        except OSError as error:                        # the terminal is gone, or we are in its background
            logger.info("no commands from the terminal any more: %s", error.strerror or error)

    def users(self, rest: str) -> str:
        """/users: who is here"""
        users = self._server.ask(self._server.room.users)
        return "\n".join(f"{name}  {address}" for name, address in users) or "nobody is here"

    def boot(self, rest: str) -> str:
        """/boot NAME [REASON]: put somebody out"""
        name, _, reason = rest.partition(" ")
        return self._server.ask(self._server.room.boot, name, reason.strip()) + " is out"

    def ban(self, rest: str) -> str:
        """/ban NAME [DURATION]: boot, and refuse the name and its address (10m, 2h, 1d; for good without)"""
        name, _, duration = rest.partition(" ")
        if not name:
            raise ValueError("/ban NAME [DURATION]")
        return self._server.ask(self._server.room.ban, name, _seconds(duration.strip())) + " is banned"

    def unban(self, rest: str) -> str:
        """/unban NAME: lift the ban of a name or an address"""
        self._server.ask(self._server.room.unban, rest)
        return f"{escape(rest)} may come back"

    def banned(self, rest: str) -> str:
        """/banned: who is banned, and for how long"""
        banned = self._server.ask(self._server.room.banned)
        return "\n".join(f"{escape(key)}  {'for good' if left == math.inf else f'{left:.0f} s more'}"
                         for key, left in banned.items()) or "nobody is banned"

    def say(self, rest: str) -> str:
        """/say TEXT: speak to everybody, as Server"""
        self._server.ask(self._server.room.say, rest)
        return ""

    def motd(self, rest: str) -> str:
        """/motd: show the message of the day; /motd @ reads its file again"""
        if rest not in ("", "@"):
            raise ValueError("/motd shows it, /motd @ reads its file again")
        if rest:
            self._server.ask(self._server.room.set_motd, self.read_motd())
        return escape_lines(self._motd or "there is no message of the day")

    def help(self, rest: str) -> str:
        """/help: this list"""
        return "\n".join((run.__doc__ or "").strip() for run in self._commands.values())

    def quit(self, rest: str) -> str:
        """/quit: tell everybody, and end the server"""
        self._stop()
        return ""

    def read_motd(self) -> Optional[str]:
        """The message of the day from its file, None when there is none. Raises OSError, ProtocolError when it is too long."""
        if self._motd_path:
            with open(self._motd_path, encoding="utf-8", errors="replace") as file:
                text = chatproto.clean_text(file.read()).strip()
            self._motd = chatproto.check_text(text) if text else None
        return self._motd

    def reload(self) -> None:
        """On HUP: the message of the day and the chat log's file again."""
        try:
            self._server.ask(self._server.room.set_motd, self.read_motd())
            self._server.ask(self._chat_log.reopen)     # the sequencer's, which writes it
            logger.info("reloaded")
        except (OSError, ProtocolError) as error:
            logger.error("cannot reload: %s", error)


def escape_lines(text: str) -> str:
    """`text` of several lines, safe for a terminal."""
    return "\n".join(map(escape, text.split("\n")))


def _seconds(duration: str) -> float:
    """"90", "10m", "2h" or "1d" in seconds; "" is for good."""
    if not duration:
        return math.inf
    found = re.fullmatch(r"(\d{1,9})([smhd]?)", duration)
    if found is None:
        raise ValueError(f"{escape(duration)} is no duration: 90, 10m, 2h or 1d")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def lan_address() -> str:
    """The address by which others on the LAN reach this machine. connect() of a UDP socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))             # a documentation address (RFC 5737): only the route is looked up
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


def _raise_file_limit() -> None:
    """A descriptor a member: ask for all that the system allows."""
    try:
        import resource                                 # not on Windows, which has no such limit
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            logger.warning("no more than %d connections: the limit of open files cannot be raised", soft)


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type: a number of that kind that is not negative (nor infinite nor NaN)."""
    def number(text: str) -> Any:
        value = kind(text)
        if not 0 <= value <= 1e9:
            raise ValueError
        return value
    number.__name__ = "number"
    return number


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"{port} is no port (0 to 65535)")
    return port


def _arguments(argv: "Optional[list[str]]") -> argparse.Namespace:
    default = Settings()
    parser = argparse.ArgumentParser(description="The server of Roger, a LAN chat that is copied, not installed.", epilog=f"""
        Other limits: a connection has {JOIN_TIMEOUT:g} s to join, {UNJOINED} may be about to; a frame has {chatproto.MAX_LINE}
        bytes, a text {chatproto.MAX_TEXT} characters, a name {chatproto.MAX_NAME}; {chatproto.QUEUE_FRAMES} frames or
        {chatproto.QUEUE_BYTES >> 20} MiB may wait for one slow member before it is dropped; the last {LOG_FRAMES} frames or
        {LOG_BYTES >> 20} MiB are kept for those who come back.""")
    parser.add_argument("port", nargs="?", type=_port, default=PORT, metavar="PORT", help=f"default {PORT}; 0 takes a free one")
    parser.add_argument("--bind", default="", metavar="ADDR", help="listen there only (default: every address)")
    parser.add_argument("--motd", metavar="FILE", help="message of the day, shown to whoever joins")
    parser.add_argument("--log", metavar="FILE", help="append what is said to FILE (- is stdout); private messages are not")
    parser.add_argument("--grace", type=_positive(float), default=default.grace, metavar="SECONDS",
                        help="how long a lost member stays in the room (default %(default)g)")
    parser.add_argument("--rate", type=_positive(float), default=default.rate, metavar="N",
                        help="messages a second and member, after a burst of 5 N; what is faster is slowed down and not lost, "
                             "0 is no limit (default %(default)g)")
    parser.add_argument("--max-members", type=_positive(int), default=default.max_members, metavar="N",
                        help="default %(default)d")
    parser.add_argument("--max-per-address", type=_positive(int), default=default.max_per_address, metavar="N",
                        help="connections from one address; this machine is exempt (default %(default)d)")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    parser.add_argument("--version", action="version", version=f"Roger {chatproto.__version__}")
    return parser.parse_args(argv)


def _announce(server: ChatServer, host: str) -> None:
    """The first lines on stdout."""
    shown = host or "0.0.0.0"
    reached = shown if host else lan_address()
    try:
        print(f"Listening on {f'[{shown}]' if ':' in shown else shown}:{server.port}", flush=True)
        print(f"Others join with: python chat_client.py {reached} {server.port}", flush=True)
    except OSError:                                     # nobody reads it: `| head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _next_order(orders: "queue.SimpleQueue[str]") -> str:
    """Wait for an order: a second at a time, since a wait without an end could not be interrupted on Windows."""
    while True:
        try:
            return orders.get(timeout=1)
        except queue.Empty:
            continue


def main(argv: "Optional[list[str]]" = None) -> int:
    """Run the server until it is told to stop; return the exit code."""
    arguments = _arguments(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S",
                        level=logging.DEBUG if arguments.verbose else logging.INFO)
    logging.raiseExceptions = False                     # a closed stderr is no reason for a traceback
    _raise_file_limit()
    settings = Settings(arguments.grace, arguments.rate, arguments.max_members, arguments.max_per_address)
    # What the main thread is told. Signal handlers may interrupt one another and the main thread anywhere: only a
    # SimpleQueue may be put into there, an Event would lock itself up.
    orders: "queue.SimpleQueue[str]" = queue.SimpleQueue()
    try:
        chat_log = ChatLog(arguments.log)
        server = ChatServer(arguments.bind, arguments.port, settings, chat_log.write)
        console = Console(server, arguments.motd, chat_log, lambda: orders.put(STOP))
        server.room.set_motd(console.read_motd())       # the sequencer does not run yet
    except (OSError, UnicodeError, ProtocolError) as error:     # UnicodeError: an address that cannot be one
        what = f"cannot listen on port {arguments.port}: " if getattr(error, "filename", None) is None else ""
        print(f"chat_server: {what}{error}", file=sys.stderr)
        return 1
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, frame: orders.put(STOP))
    if hasattr(signal, "SIGTTIN"):
        signal.signal(signal.SIGTTIN, signal.SIG_IGN)   # started with &: reading the terminal would stop the whole server
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda number, frame: orders.put(RELOAD))
    server.start()
    _announce(server, arguments.bind)
    if sys.stdin is not None and sys.stdin.isatty():
        threading.Thread(target=console.run, name="console", daemon=True).start()
    while _next_order(orders) != STOP:
        console.reload()
    logger.info("closing")
    server.say_goodbye("the server is closing")
    server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
