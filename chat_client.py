#!/usr/bin/env python3
# -*- coding: utf-8 -*-
"""chat_client: the client role of Roger, a LAN chat in which every message is acknowledged.

    python chat_client.py host 8087                         in a terminal
    make 2>&1 | python chat_client.py host 8087 -n ci       in a pipe: each line is a message, exits 0 when all were acknowledged

The protocol and its promises are in chatproto's docstring. The parts, bottom up:

    Said            something this client said, and what became of it: sending, there, heard by n of m, failed, unknown
    ClientSession   one person's side of the chat: no socket, no thread, no printing
    ChatClient      the same with a connection that heals by itself; bots and tests import this one
    Formatter       what is heard -> Entries, lines of spans that are safe to show
    Columns         how wide a text is on this terminal
    Keys, Editor    bytes from a terminal -> keys -> the line that is typed
    Screen          what is on the terminal, row by row: what was said, one status line, the line that is typed
    Terminal        the only one that touches the terminal: raw mode and back, whatever happens
    Plain           lines in, lines out: the interface in a pipe, on a dumb terminal, for a screen reader
    Window          the interface in a terminal: nothing that comes in touches the line that is typed
    Commands        what both do on a line that begins with a slash

A bot:
    client = ChatClient("host", 8087, "bot", on_message=lambda message: ...)
    client.connect()
    client.say("hello")
    client.close()

Threads: "client" (connects, reads, reconnects; it runs every callback), "alarm" (chatproto.Alarm's timer), "stdin" or "keys"
(reads for main) and the main thread, which alone writes to the terminal while there is a Window.
Locks: ClientSession has one, described there; a leaf but for MessageManager's lock.
"""

from __future__ import annotations  # Roger needs Python 3.9 or newer

import signal
import sys

# An older Python ends here. One that cannot even read this file stops at one of the two lines that
# say so, and shows it: 3.6 and older 3s above, 2.7 below.
__oldest__: "tuple[int, int]" = (3, 9)  # Roger needs Python 3.9 or newer
if sys.version_info < __oldest__:
    sys.exit("Roger needs Python %d.%d or newer, this is %d.%d: %s"
             % (__oldest__ + sys.version_info[:2] + (sys.executable,)))
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until main() takes over, Ctrl-C ends the program without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import codecs
import contextlib
import errno
import functools
import getpass
import io
import itertools
import math
import os
import queue
import random
import re
import secrets
import select
import selectors
import socket
import threading
import time
import traceback
import unicodedata
import zlib
from typing import (Any, Callable, Iterable, Iterator, List, NamedTuple, NoReturn, Optional,
                    Sequence, Tuple, Union)

try:
    import chatproto
except ModuleNotFoundError as error:
    if error.name != "chatproto":
        raise
    sys.exit("chat_client: chatproto.py is missing: copy it into the same folder as chat_client.py")
from chatproto import (FROM_SERVER, MAX_NAME, MAX_TEXT, PORT, Ack, Alarm, Booted, Chat, ConnectionClosed, Error, FrameDecoder,
                       Heard, Invalid, Join, Joined, Leave, Left, Message, MessageManager, MessageSocket, PendingMessage, Ping,
                       ProtocolError, Recall, Recalled, Rename, Renamed, Say, Unknown, Welcome, clean_text, escape, name_key)

SENDING, THERE, FAILED, UNKNOWN = "sending", "there", "failed", "not confirmed"     # the states of what was said

CONNECT_TIMEOUT = 10.0          # seconds for a connection, and then for its welcome
LONGEST_DELAY = 30.0            # seconds between two tries to connect
START_PATIENCE = 5.0            # seconds that the first try waits for a server that is about to start
LEAVE_TIMEOUT = 1.0             # seconds for the ACK of `leave`
HOPELESS = ("banned", "bad-version", "bad-name")    # answers to a join that will not change by trying again
UNSENT = 10_000                 # messages that may wait for their ACK; then say() raises queue.Full
UNSENT_PIPE = 1_000             # in a pipe reading stops at so many, until some are acknowledged
PLACES = 1_000                  # own messages whose `heard` is still looked at


class JoinRefused(Exception):
    """The server does not let us in: `error` says why."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.text or error.code)
        self.error = error


def bug(error: Optional[BaseException]) -> str:
    """What a user is told of a bug of ours; who mends it needs the place."""
    *_, place = [""] + [f" ({os.path.basename(at.filename)}:{at.lineno})"
                        for at in traceback.extract_tb(error.__traceback__ if error else None)]
    return f"a bug: {type(error).__name__}: {error}{place}"


# --- One person's side of the chat ---

class Said:
    """Something this client said. Its state only goes forward: from sending to there or failed; unknown when one gave up."""

    __slots__ = ("id", "text", "to", "state", "reason", "heard", "of")

    def __init__(self, id: int, text: str, to: Optional[str]) -> None:
        self.id = id                    # ours: the `cid` of its chat
        self.text = text
        self.to = to                    # the recipient of a private message
        self.state = SENDING
        self.reason = ""                # why it failed
        self.heard = 0                  # how many members have confirmed it,
        self.of = 0                     # of so many


class ClientSession:
    """Name, users, what was said and what became of it, over any number of connections.

    say() and the like may be called from any thread and do not block. opened(), received() and closed() are for the one
    thread that reads; it runs the callbacks: on_welcome(welcome), on_message(message) for what the server sends,
    on_state(said), on_recalled(answer) for older messages that recall() asked for, None where the server keeps none.
    """

    def __init__(self, name: str, alarm: Alarm, *, receipts: bool = True,
                 on_dead: Callable[[], None] = lambda: None,
                 on_welcome: Callable[[Welcome], None] = lambda welcome: None,
                 on_message: Callable[[Message], None] = lambda message: None,
                 on_state: Callable[[Said], None] = lambda said: None,
                 on_recalled: Callable[[Optional[Recalled]], None] = lambda answer: None) -> None:
        self.name = name
        self.users: "dict[str, str]" = {}       # name_key -> name, in the order of coming
        self.here = 0                           # how many there are: more than `users` in a very large room
        self.joined = False                     # welcomed on the connection of now
        self.history_until = 0                  # a message with an id up to this was said before we came
        self.last_frame = b""                   # the line of the message that a callback is called for
        self._receipts = receipts
        self._on_welcome = on_welcome
        self._on_message = on_message
        self._on_state = on_state
        self._on_recalled = on_recalled
        self.oldest: Optional[int] = None       # the oldest message that was heard or recalled is not before this id
        self._session: Optional[str] = None
        self._epoch: Optional[str] = None
        self.wanted = name                     # what we ask for: another one may be all that is free for now
        self._names = {name}                    # those we have had in this session: our own messages come from one of them
        self._decoder = FrameDecoder(FROM_SERVER)
        self._write: Callable[[bytes], None] = lambda data: None
        self.list_as_of = 0                    # the newest id that the list of users in the welcome takes into account
        self._places: "dict[int, Said]" = {}    # id of a chat of ours -> what was said
        # Protects the four below, and keeps frames in the order of their ids: so the manager's lock is taken
        # inside it. Waiters for fewer unsettled ones are notified through it.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._last_id = 0                       # the newest id that we gave
        self.unsettled: "dict[int, Said]" = {}  # what was said and is neither there nor failed, in order
        self._unplaced: "dict[int, Said]" = {}  # what was said and has not come back in its place, by our id
        self._recalls: "dict[int, Recall]" = {}     # requests for older messages without an answer
        self.manager = MessageManager(alarm, on_dead=on_dead, on_idle=self._ping)

    # Speaking

    def say(self, text: str, to: Optional[str] = None) -> Said:
        """Say something, to all or to one. Raises ProtocolError for a bad text, queue.Full when UNSENT wait already."""
        chatproto.check_text(text)
        with self._lock:
            if len(self.unsettled) >= UNSENT:
                raise queue.Full
            said = Said(self._last_id + 1, text, to)
            self._number(Say(said.id, text, to))
            self.unsettled[said.id] = self._unplaced[said.id] = said
        return said

    def whisper(self, name: str, text: str) -> Said:
        """Say something to one."""
        return self.say(text, name)

    def rename(self, name: str) -> None:
        """Ask for another name; a `renamed` or an `error` answers. Raises ProtocolError for a bad name."""
        with self._lock:
            self._number(Rename(self._last_id + 1, chatproto.check_name(name)))

    def recall(self, count: int = 20, before: Optional[int] = None) -> None:
        """Ask for `count` messages before the id `before`, or before the oldest that is known. One request at a time."""
        self._recall(count, self.oldest if before is None else before)

    def leave(self) -> None:
        """Say that we go on purpose."""
        with self._lock:
            self._number(Leave(self._last_id + 1))

    def _ping(self) -> None:
        """On the alarm's thread."""
        with self._lock:
            self._number(Ping(self._last_id + 1))

    def _recall(self, count: int, before: Optional[int], again: bool = False) -> None:
        with self._lock:
            request = Recall(self._last_id + 1, before, count)
            self._number(request, again)        # one that is asked again may not fail because the queue is full
            self._recalls[request.id] = request

    def _number(self, message: Message, exempt: bool = False) -> None:
        """Send a numbered message. Needs the lock."""
        assert self._lock.locked()
        self.manager.send(PendingMessage([message.id], [message.encode()]), exempt)
        self._last_id = message.id

    # One connection after the other

    def opened(self, write: Callable[[bytes], None], name: str = "") -> None:
        """There is a connection: ask to come in, or back; under `name` where the server suggested one."""
        self._decoder = FrameDecoder(FROM_SERVER)
        self._write = write
        write(Join(name or self.wanted, session=self._session, seen=self.manager.seen, epoch=self._epoch,
                   receipts=self._receipts).encode())

    def received(self, data: bytes) -> None:
        """Take bytes of the server. Raises FrameError when it sends what is no frame, JoinRefused, and ConnectionClosed
        when we were booted."""
        for message in self._decoder.feed(data):
            self.last_frame = self._decoder.line
            if message.id and self.joined:
                if self.manager.is_duplicate(message.id):
                    self.manager.received(message.id)
                    continue
                self._numbered(message)
                self.manager.received(message.id, len(self.last_frame))     # after its work is done: then it is confirmed
                if isinstance(message, Booted):
                    raise ConnectionClosed(f"you were booted: {message.reason}" if message.reason else "you were booted")
            elif isinstance(message, Ack):
                self.manager.acknowledged(message.upto)
                self._settle(message.upto)
                for request in self._answered(message.upto):        # the answer comes before the ACK, if one comes
                    self._on_recalled(None)
            elif isinstance(message, Welcome):
                self._welcomed(message)
            elif self.joined:
                self._bare(message)
            elif isinstance(message, Error) and message.code != "flooding":
                raise JoinRefused(message)

    def closed(self) -> None:
        """The connection is gone; what is not confirmed is kept for the next one."""
        self.joined = False
        self.manager.detach()

    def forgotten(self, welcome: Welcome) -> "list[Said]":
        """For on_welcome: what the server has said to have, and may not send back at its place after this welcome."""
        if welcome.resumed and not welcome.missed:
            return []
        with self._lock:
            there = [said for said in self._unplaced.values() if said.state == THERE]
            if not welcome.resumed:                     # if it comes, then as anybody's
                for said in there:
                    del self._unplaced[said.id]
        return there

    def said_of(self, id: int) -> Optional[Said]:
        """What we said that has the place `id` in the order; None where it is another's, or long ago."""
        return self._places.get(id)

    def give_up(self) -> None:
        """Nothing is waited for any more: what is not confirmed stays unknown."""
        with self._lock:
            unknown = [said for said in self.unsettled.values() if said.state == SENDING]
            for said in unknown:
                said.state = UNKNOWN
            self._changed.notify_all()
        for said in unknown:
            self._on_state(said)

    def wait_settled(self, at_most: int, seconds: float) -> bool:
        """Wait until at most so many are unsettled; False when nothing changed for `seconds`, or one gave up."""
        with self._lock:
            while len(self.unsettled) > at_most:
                before = len(self.unsettled)
                if not self._changed.wait_for(lambda: len(self.unsettled) != before or self._gave_up(), seconds):
                    return False
                if self._gave_up():
                    return False
        return True

    def _gave_up(self) -> bool:
        """Needs the lock."""
        return any(said.state == UNKNOWN for said in self.unsettled.values())

    # What the server sends, on the reading thread

    def _welcomed(self, welcome: Welcome) -> None:
        seen = self.manager.seen
        if not welcome.resumed:
            self._names.clear()
            if welcome.epoch != self._epoch or welcome.last < seen:
                seen = 0                        # another run of ids
                self._places.clear()
                self.oldest = None
        self._session, self._epoch = welcome.session, welcome.epoch
        self.name = welcome.name
        self._names.add(welcome.name)
        self.users = {name_key(name): name for name in welcome.users}
        self.here = len(welcome.users) if welcome.here is None else welcome.here
        self.history_until = 0 if welcome.resumed else welcome.last
        self.list_as_of = welcome.last
        self.joined = True
        got = min(welcome.got, self._last_id)
        self._settle(got)
        self._on_welcome(welcome)
        self.manager.attach(self._write, got, seen)
        # Asked again under a new id: the answer may be lost, and an ACK that comes first is no proof for the old one.
        for request in self._answered(self._last_id):
            self._recall(request.count, request.before, again=True)

    def _bare(self, message: Message) -> None:
        if isinstance(message, Recalled):
            self._recalled(message)
        elif isinstance(message, Heard) and message.about in self._places:
            said = self._places[message.about]
            said.heard, said.of = message.count, message.of
            self._on_state(said)

    def _recalled(self, answer: Recalled) -> None:
        with self._lock:
            request = self._recalls.pop(answer.about, None)
        if request is None:
            return                              # it came before, or is nobody's
        self.oldest = answer.older or 1
        if answer.older is not None and not answer.entries:
            self._recall(request.count, answer.older, again=True)
        else:
            self._on_recalled(answer)

    def _answered(self, upto: int) -> "list[Recall]":
        """Take the requests up to `upto` away."""
        with self._lock:
            return [self._recalls.pop(id) for id in list(self._recalls) if id <= upto]

    def _numbered(self, message: Message) -> None:
        if isinstance(message, Chat):           # first: most are
            if self.oldest is None:
                self.oldest = message.id
            if message.cid and message.sender in self._names and message.id > self.history_until:
                self._own(message, message.cid)
            self._on_message(message)
            return
        if isinstance(message, Error) and message.about:
            self._fail(message.about, message.text or message.code)
        elif isinstance(message, Renamed) and message.name == self.name and message.id > self.list_as_of:
            self.name = self.wanted = message.to
            self._names.add(message.to)
        elif isinstance(message, Renamed) and message.name in self._names and message.to == self.name:
            self.wanted = message.to            # ours, replayed: the welcome was under the new name already
        if message.id > self.list_as_of:       # the welcome's list has the others already
            self._update_users(message)
        if not isinstance(message, (Ping, Unknown, Invalid)):
            self._on_message(message)

    def _update_users(self, message: Message) -> None:
        if isinstance(message, Joined):
            self.here += name_key(message.name) not in self.users
            self.users[name_key(message.name)] = message.name
        elif isinstance(message, Left):
            self.here -= 1
            self.users.pop(name_key(message.name), None)
        elif isinstance(message, Renamed):
            self.users.pop(name_key(message.name), None)
            self.users[name_key(message.to)] = message.to

    def _own(self, chat: Chat, cid: int) -> None:
        """Our own message has come at its place in the order."""
        with self._lock:
            said = self._unplaced.pop(cid, None)
        if said is not None:
            self._places[chat.id] = said
            if len(self._places) > PLACES:
                del self._places[next(iter(self._places))]

    def _settle(self, upto: int) -> None:
        """Everything up to `upto` is there, but what was refused."""
        with self._lock:
            there = []
            while self.unsettled:
                id, said = next(iter(self.unsettled.items()))
                if id > upto:
                    break
                del self.unsettled[id]
                said.state = THERE
                there.append(said)
            if there:
                self._changed.notify_all()
        for said in there:
            self._on_state(said)

    def _fail(self, id: int, reason: str) -> None:
        """The server refuses what we sent under `id`."""
        with self._lock:
            said = self.unsettled.pop(id, None)
            self._unplaced.pop(id, None)
            if said is not None:
                said.state, said.reason = FAILED, reason
                self._changed.notify_all()
        if said is not None:
            self._on_state(said)


# --- The client ---

class ChatClient(ClientSession):
    """A ClientSession with a connection that heals by itself.

    Callbacks, all on the thread "client": those of ClientSession, and on_lost(why, seconds): the connection ended, the
    next try is in so many seconds; on_end(why): it will not be tried again (booted, banned, or the first try failed).
    """

    def __init__(self, host: str, port: int = PORT, name: str = "bot", *,
                 on_lost: Callable[[str, float], None] = lambda why, seconds: None,
                 on_end: Callable[[str], None] = lambda why: None, **callbacks: Any) -> None:
        self._alarm = Alarm()
        super().__init__(name, self._alarm, on_dead=self._cut, **callbacks)
        self._host, self._port = host, port
        self._on_lost = on_lost
        self._on_end = on_end
        self._wire: Optional[MessageSocket] = None      # of now; only the client thread changes it
        self._leaving = False                           # the server ends the connection because we asked it to
        self._closing = threading.Event()               # no further try; ends the wait before one
        self._first = threading.Event()                 # the first welcome came, or will not come
        self._was_joined = False                        # the connection of now, or the last one, came as far as a welcome
        self.ended = ""                                 # why there will be no further try
        self._thread = threading.Thread(target=self._run, name="client", daemon=True)   # waits in a socket: close() ends it

    def connect(self, seconds: float = 2 * CONNECT_TIMEOUT) -> None:
        """Connect and join; from then on the connection heals by itself. Raises ConnectionError when the first try fails."""
        self._thread.start()
        if not self._first.wait(seconds):
            self.ended = f"{self.where} does not answer"
            self.close(0)
        if self.ended:
            raise ConnectionError(self.ended)

    def close(self, seconds: float = 0) -> None:
        """Wait up to `seconds` without progress for what was said, leave, and end. What is not confirmed then is unknown."""
        if not self._closing.is_set() and self.wait_settled(0, seconds) and self.joined:
            self._leaving = True
            self.leave()
            until = time.monotonic() + LEAVE_TIMEOUT
            while not self.manager.empty and self.joined and time.monotonic() < until:
                self._closing.wait(0.01)
        self._closing.set()
        self._cut()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            # A thread that is about to connect cannot be woken; it looks at _closing afterwards.
            self._thread.join(CONNECT_TIMEOUT if self._wire is not None else 0.2)
        self._alarm.close()
        self.give_up()

    @property
    def where(self) -> str:
        """The server, for a reader."""
        return f"{self._host}:{self._port}"

    def _cut(self) -> None:
        """Any thread: end the connection of now."""
        wire = self._wire
        if wire is not None:
            wire.cut()

    # On the client's thread

    def _run(self) -> None:
        try:
            self._stay_connected()
        except Exception as error:
            self.ended = bug(error)
            raise
        finally:
            self._first.set()

    def _stay_connected(self) -> None:
        """Connect again and again, until close() or until the server does not want us."""
        delay = 1.0
        while not self._closing.is_set():
            try:
                why = self._converse()
            except JoinRefused as refused:
                why = str(refused)
                if not self._first.is_set() or refused.error.code in HOPELESS:
                    self.ended = why
            if self._first.is_set() and self._was_joined:
                delay = 1.0
            elif not self._first.is_set():
                self.ended = self.ended or why
            if self.ended or self._leaving or self._closing.is_set():
                break
            wait = delay * random.uniform(0.75, 1.0)    # jitter: a whole class does not come back in the same instant
            self._on_lost(why, wait)
            self._closing.wait(wait)
            delay = min(2 * delay, LONGEST_DELAY)
        if self._first.is_set() and not self._leaving and not self._closing.is_set():
            self.give_up()
            self._on_end(self.ended)

    def _converse(self) -> str:
        """One connection from its start to its end; return why it ended. Raises JoinRefused."""
        self._was_joined = False
        try:
            sock = self._dial()
        except (OSError, UnicodeError) as error:        # UnicodeError: a host name that cannot be one
            why = getattr(error, "strerror", None) or str(error)
            if not self._first.is_set():
                why = why_not_connected(self._host, self._port, error)
            return f"cannot connect to {self.where}: {why}"
        sock.settimeout(None)
        wire = self._wire = MessageSocket(sock)
        first = b""
        try:
            if self._closing.is_set():
                return "closing"
            self.opened(wire.write)
            until = time.monotonic() + CONNECT_TIMEOUT
            while True:
                data = wire.read(None if self.joined else max(0.0, until - time.monotonic()))
                first = first or data
                if not data:
                    return f"{self.where} does not answer"
                self._receive(data, wire)
                if self.joined:
                    self._was_joined = True
                    self._first.set()
        except (ConnectionClosed, ProtocolError) as end:
            other = "" if self._was_joined else what_answers(first)
            return f"{self.where} is {other}, not a chat server: is the port right?" if other else str(end)
        finally:
            self.closed()
            self._wire = None
            wire.close()

    def _dial(self) -> socket.socket:
        """Connect; the first try waits for a server that was started at the same time as we were. Raises OSError."""
        until = time.monotonic() + (0 if self._first.is_set() else START_PATIENCE)
        while True:
            try:
                return socket.create_connection((self._host, self._port), CONNECT_TIMEOUT)
            except ConnectionRefusedError:
                if time.monotonic() >= until or self._closing.wait(0.2):
                    raise

    def _receive(self, data: bytes, wire: MessageSocket) -> None:
        """received(), but for a name that is taken: the server suggests another."""
        try:
            self.received(data)
        except JoinRefused as refused:
            if refused.error.code != "name-taken" or not refused.error.suggestion:
                raise
            self.opened(wire.write, refused.error.suggestion)
        except ConnectionClosed as booted:
            self.ended = self.ended or str(booted)
            raise


# --- What is shown ---

Span = Tuple[str, str]          # how (SGR parameters, "" is plain), and what: safe to show
Line = List[Span]

INDENT = "      "               # before every line of a message but its first: it cannot pass for another speaker's
# Of the 256 colours those with a contrast of 3.9 or more on white and on black, far apart from one another; of the 8 those
# that most people read on both.
NAMES_256 = (27, 28, 30, 31, 64, 97, 98, 129, 130, 131, 133, 161, 164, 196)
NAMES_8 = (31, 32, 34, 35, 36)


class Theme:
    """How things look, as SGR parameters. Without colours: bold, dim and reverse."""

    dim, bold, mention, status = "2", "1", "1;7", "7"

    def __init__(self, colours: int) -> None:
        self.error = "1;31" if colours >= 8 else "1"
        self._names = [f"1;38;5;{n}" for n in NAMES_256] if colours >= 256 else [f"1;{n}" for n in NAMES_8] if colours >= 8 \
            else ["1"]

    def name(self, name: str) -> str:
        """The same for a name in every session, on every machine."""
        return self._names[zlib.crc32(name_key(name).encode()) % len(self._names)]


class Entry:
    """What is shown of one message: its lines, made when they are looked at. Of one's own message also its state, which
    changes."""

    __slots__ = ("_lines", "said", "size", "rows", "width")

    def __init__(self, lines: "Union[list[Line], Callable[[], list[Line]]]", said: Optional[Said] = None, size: int = 100) -> None:
        self._lines = lines
        self.said = said
        self.size = size                # about so many characters
        self.rows: "list[Row]" = []     # the Screen's: as wrapped for `width` columns; 0 when they have to be made again
        self.width = 0

    @property
    def lines(self) -> "list[Line]":
        """The lines; of a flood only those that come to be seen are ever made."""
        if callable(self._lines):
            self._lines = self._lines()
        return self._lines

    def plain(self) -> "list[str]":
        """The lines as text."""
        return [INDENT * (number > 0) + "".join(text for _, text in line) for number, line in enumerate(self.lines)]


class Formatter:
    """Turns what a client hears into entries, everything from peers escaped. Used on the client's thread; what is
    ignored, quiet and so on may be changed on another."""

    def __init__(self, client: ClientSession, theme: Theme) -> None:
        self._client = client
        self._theme = theme
        self._day = ""                  # of the last entry
        self._in_history = False
        self._mention = re.compile("")  # finds the name of now,
        self._mention_of = ""           # which is this
        self.ignored: "set[str]" = set()            # name_keys
        self.quiet = False                          # hide joins and leaves
        self.timestamps = True

    def entries(self, message: Message, said: Optional[Said] = None) -> "list[Entry]":
        """What to show for a message, with `said` where we know it as our own; nothing for one that is hidden."""
        if isinstance(message, Chat):
            own = said is not None or self.is_own(message)
            if not own and name_key(message.sender) in self.ignored:
                return []
            entry = self.chat(message, own, said)
        else:
            lines = self._event(message)
            if not lines:
                return []
            entry = Entry(lines)
        return self._marks(message.id <= self._client.history_until, getattr(message, "at", None)) + [entry]

    def chat(self, chat: Chat, own: bool = False, said: Optional[Said] = None) -> Entry:
        """Something that was or will be said."""
        return Entry(functools.partial(self._chat, chat, own), said, len(chat.text))

    def is_own(self, message: Message) -> bool:
        """True for what we said, even under a name that we had before."""
        return isinstance(message, Chat) and (self._client.said_of(message.id) is not None
                                              or name_key(message.sender) == name_key(self._client.name))

    def is_mention(self, chat: Chat) -> bool:
        """True for what somebody else says to us alone, or with our name in it."""
        return chat.to is not None or self._names_us(chat.text) is not None

    def _chat(self, chat: Chat, own: bool) -> "list[Line]":
        head = [(self._theme.name(chat.sender), escape(chat.sender))]
        if chat.to is not None:
            head += [(self._theme.dim, " -> "), (self._theme.name(chat.to), escape(chat.to))]
        text = chat.text
        if text.startswith("/me "):
            text, head = text[4:], [("", "* "), *head, ("", " ")]
        else:
            head.append(("", ": "))
            if self.timestamps:
                head.insert(0, (self._theme.dim, time.strftime("%H:%M ", _local(chat.at))))
        lines = [[("", _show(line))] if own else self._highlighted(_show(line)) for line in text.split("\n")]
        lines[0] = head + lines[0]
        return lines

    def _names_us(self, text: str, start: int = 0) -> "Optional[re.Match[str]]":
        if self._mention_of != self._client.name:
            self._mention_of = self._client.name
            self._mention = re.compile(rf"(?<!\w){re.escape(escape(self._mention_of))}(?!\w)", re.IGNORECASE)
        return self._mention.search(text, start)

    def _highlighted(self, text: str) -> Line:
        """`text` with every mention of us marked."""
        line: Line = []
        start = 0
        found = self._names_us(text)
        while found is not None:
            line += [("", text[start:found.start()]), (self._theme.mention, found[0])]
            start = found.end()
            found = self._names_us(text, start)
        return line + [("", text[start:])]

    def older(self, answer: Optional[Recalled]) -> "list[Entry]":
        """The answer to a request for older messages; None where the server keeps none."""
        if answer is None or not answer.entries:
            return [self.note("! the server keeps no older messages" if answer is None else "* nothing older is kept")]
        entries, day = [self.note("-- older --")], ""
        for chat in answer.entries:
            if name_key(chat.sender) not in self.ignored:
                before, day = day, time.strftime("-- %A, %d %B %Y --", _local(chat.at))
                entries += [self.note(day)] * (day != before) + [self.chat(chat, self.is_own(chat))]
        return entries + [self.note("-- now --")]

    def note(self, text: str) -> Entry:
        """A line of our own, which is safe to show; one that begins with ! is an error."""
        return Entry([[(self._theme.error if text.startswith("!") else self._theme.dim, text)]])

    def _marks(self, is_history: bool, at: Optional[float]) -> "list[Entry]":
        marks = []
        if is_history != self._in_history:
            self._in_history = is_history
            marks.append("-- said before you came --" if is_history else "-- now --")
        day = time.strftime("%A, %d %B %Y", _local(at)) if at is not None else self._day
        if day != self._day:
            if self._day:
                marks.append(f"-- {day} --")
            self._day = day
        return [self.note(mark) for mark in marks]

    def _event(self, message: Message) -> "list[Line]":
        style, text = self._theme.dim, ""
        if isinstance(message, Joined) and not self.quiet:
            text = f"* {escape(message.name)} joined{self._here(message)}"
        elif isinstance(message, Left) and not self.quiet:
            text = f"* {escape(message.name)} " + (f"was {escape(message.reason)}" if message.reason.startswith("booted")
                                                   else f"left ({escape(message.reason)})")
        elif isinstance(message, Renamed):
            text = f"* {escape(message.name)} is now {escape(message.to)}"
        elif isinstance(message, Booted):
            style, text = self._theme.error, "* you were booted" + (f": {escape(message.reason)}" if message.reason else "")
        elif isinstance(message, Error):
            style, text = self._theme.error, f"! {'refused: ' if message.about else ''}{escape(message.text or message.code)}"
        return [[(style, text)]] if text else []

    def _here(self, joined: Joined) -> str:
        """The count, where it is known: a replayed join is older than the list of users."""
        return f" ({self._client.here} here)" if joined.id > self._client.list_as_of else ""


def _local(at: float) -> time.struct_time:
    """The reader's local time; a time that this platform cannot show becomes the epoch."""
    try:
        return time.localtime(at)
    except (OverflowError, OSError, ValueError):
        return time.localtime(0)


def _show(line: str) -> str:
    return escape(line.replace("\t", "    "))


def _short(said: Said) -> str:
    text = escape(said.text.partition("\n")[0])
    return text if len(text) <= 60 and "\n" not in said.text else text[:57] + "..."


# --- Columns: how wide a text is on the terminal ---

ZWJ = "\u200d"                  # joins emoji into one


@functools.lru_cache(maxsize=4096)
def _char_columns(char: str) -> int:
    category = unicodedata.category(char)
    if category in ("Mn", "Me", "Cf") or "\u1160" <= char <= "\u11ff":         # Hangul vowels and finals join their initial
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _is_flag(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"                                 # two regional indicators are a flag


def _is_pictograph(char: str) -> bool:
    category = unicodedata.category(char)
    return category == "So" or char in "\u203c\u2049\u2139" or category == "Sm" and "\u2190" <= char <= "\u2bff"


def _is_tone(char: str) -> bool:
    return "\U0001f3fb" <= char <= "\U0001f3ff"


def clusters(text: str) -> "list[str]":
    """What a reader takes for single characters: a letter with its marks, an emoji of several parts (UAX 29, simplified)."""
    if text.isascii():
        return list(text)
    found: "list[str]" = []
    for char in text:
        if found and _joins(found[-1], char):
            found[-1] += char
        else:
            found.append(char)
    return found


def _joins(before: str, char: str) -> bool:
    """True when `char` goes on with the cluster `before`."""
    if before == "\n" or char.isascii():
        return False
    return (_char_columns(char) == 0 or unicodedata.category(char) == "Mc" or before[-1] == ZWJ
            or _is_tone(char) and _is_pictograph(before[0])
            or len(before) == 1 and _is_flag(char) and _is_flag(before))


class Columns:
    """How many columns a cluster takes. Terminals differ over emoji of several parts: what one is shown as is measured,
    by writing SAMPLES and asking where the cursor is; until it answers, each is taken for one wide character."""

    SAMPLES = ("\U0001f469\u200d\U0001f680", "\u2764\ufe0f", "\U0001f1eb\U0001f1f7", "\U0001f44d\U0001f3fd")
    PROBE = "\x1b[8m" + "".join(f"\r{sample}\x1b[6n" for sample in SAMPLES) + "\r\x1b[m\x1b[2K"

    def __init__(self) -> None:
        self._joins = self._varies = self._tones = True
        self._flags = 2
        self._known: "dict[str, int]" = {}

    def learn(self, widths: "list[int]") -> None:
        """What the terminal made of each of SAMPLES, in columns."""
        self._joins, self._varies, self._tones = (widths[sample] == 2 for sample in (0, 1, 3))
        self._flags = widths[2]
        self._known.clear()

    def of(self, cluster: str) -> int:
        """The columns of one cluster."""
        if len(cluster) == 1:
            return _char_columns(cluster)
        if len(cluster) > 16:
            return self._measure(cluster)
        if cluster not in self._known:
            if len(self._known) > 4096:
                self._known.clear()
            self._known[cluster] = self._measure(cluster)
        return self._known[cluster]

    def _measure(self, cluster: str) -> int:
        if ZWJ in cluster and not self._joins:
            return sum(map(self._measure, filter(None, cluster.split(ZWJ))))
        first, more = cluster[0], cluster[1:]
        if _is_flag(first):
            return self._flags
        columns = _char_columns(first)
        if "\ufe0f" in more and self._varies and (_is_pictograph(first) or first in "0123456789#*") or ZWJ in more:
            columns = 2
        if not self._tones:
            columns += 2 * sum(map(_is_tone, more))
        return columns + sum(unicodedata.category(char) == "Mc" for char in more)


# --- Keys and the line that is typed ---

class Key(NamedTuple):
    """A key that was pressed: "left", "enter", "ctrl-a", "alt-b" …; "text" and "paste" come with their text, and
    "cursor" is the terminal's answer to the question where the cursor is: its column."""
    name: str
    text: str = ""


class Keys:
    """Bytes from a terminal, in any pieces -> keys."""

    _CSI = re.compile(rb"\x1b\[(\[|[0-?]*)[ -/]*([@-~])")
    _SS3 = re.compile(rb"\x1bO(.)", re.DOTALL)
    _INCOMPLETE = re.compile(rb"\x1b+(\[(\[|[0-?]*[ -/]*)|O)?\Z")         # Answers in OSC or DCS we never ask for.
    _LETTERS = {"A": "up", "B": "down", "C": "right", "D": "left", "H": "home", "F": "end", "M": "enter",
                "c": "word-right", "d": "word-left"}
    _NUMBERS = {"1": "home", "3": "delete", "4": "end", "5": "page-up", "6": "page-down", "7": "home", "8": "end"}
    _CONTROLS = {"\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace", "\x08": "backspace"}
    _PASTE_END = b"\x1b[201~"
    LONGEST = 256               # bytes of an escape sequence; a longer one is given up
    LONGEST_PASTE = 1 << 20     # bytes of a paste; what comes on top is dropped (it would be refused as too long anyway)

    def __init__(self) -> None:
        self._rest = b""                        # what is not whole yet
        self._paste: Optional[bytearray] = None     # what was pasted so far
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> "Iterator[Key]":
        """The keys that are whole by now."""
        self._rest += data
        while self._rest:
            if self._paste is not None:
                if not self._in_paste():
                    return
                yield self._pasted()
            elif self._rest[0] == 0x1B:
                self._decoder.reset()
                if self._INCOMPLETE.match(self._rest) and len(self._rest) <= self.LONGEST:
                    return
                key = self._escape()
                if key is not None:
                    yield key
            else:
                yield from self._plain()

    def _in_paste(self) -> bool:
        """Move bytes into the paste; True when it is whole."""
        assert self._paste is not None
        end = self._rest.find(self._PASTE_END)
        keep = len(self._rest) - len(self._PASTE_END) + 1 if end < 0 else end      # its end may come in pieces, too
        self._paste += self._rest[:max(0, min(keep, self.LONGEST_PASTE - len(self._paste)))]
        self._rest = self._rest[max(0, keep):] if end < 0 else self._rest[end + len(self._PASTE_END):]
        return end >= 0

    def _pasted(self) -> Key:
        text = (self._paste or b"").decode("utf-8", "replace")
        self._paste = None
        return Key("paste", clean_text(text.replace("\r\n", "\n").replace("\r", "\n")))

    def _escape(self) -> Optional[Key]:
        """The key of the escape sequence at the start; None for one that means nothing here."""
        while self._rest[1:2] == b"\x1b":                               # Esc itself, before another sequence
            self._rest = self._rest[1:]
        found = self._CSI.match(self._rest)
        if found is not None:
            self._rest = self._rest[found.end():]
            return self._csi(found[1].decode("ascii"), found[2].decode("ascii"))
        found = self._SS3.match(self._rest)
        if found is not None:
            self._rest = self._rest[found.end():]
            name = self._LETTERS.get(found[1].decode("latin-1"))
            return Key(name) if name else None
        if self._rest[1] >= 0x80 or self._rest[1] < 0x20 and self._rest[1] not in b"\r\n\b":
            self._rest = self._rest[1:]                                 # Esc itself, before another key
            return None
        self._rest, char = self._rest[2:], self._rest[1:2].decode("latin-1")
        name = "newline" if char in ("\r", "\n") else self._CONTROLS.get(char, char)
        return Key(name if name == "newline" else "alt-" + name.lower())

    def _csi(self, parameters: str, final: str) -> Optional[Key]:
        first, _, more = parameters.partition(";")
        if final == "R" and more.isdigit():
            return Key("cursor", more)
        if final == "~" and first == "200":
            self._paste = bytearray()
            return None
        if final == "u" and first == "13" or final == "~" and parameters.startswith("27;") and parameters.endswith(";13"):
            return Key("newline")                                       # Enter with Shift, where the terminal tells
        if parameters.startswith("["):                                  # the Linux console's function keys
            return None
        name = self._NUMBERS.get(first) if final == "~" else self._LETTERS.get(final)
        if more.isdigit() and (int(more) - 1) & 6:                      # with Alt (2) or Ctrl (4)
            name = {"left": "word-left", "right": "word-right", "delete": "alt-d"}.get(name or "", name)
        return Key(name) if name else None

    def _plain(self) -> "Iterator[Key]":
        """Text up to the next control character, or that character."""
        found = re.match(rb"[^\x00-\x1f\x7f]+", self._rest)
        if found is not None:
            self._rest = self._rest[found.end():]
            text = clean_text(self._decoder.decode(found[0], final=bool(self._rest)))
            if text:
                yield Key("text", text)
            return
        char, self._rest = chr(self._rest[0]), self._rest[1:]
        if self._decoder.getstate()[0]:                                 # a character that was never finished
            self._decoder.reset()
        yield Key(self._CONTROLS.get(char) or "ctrl-" + chr(ord(char) + 0x60))


class Editor:
    """The line that is typed: its text, the cursor in it, what was entered before. Keys in; it knows no screen."""

    REMEMBERED = 100            # lines

    def __init__(self) -> None:
        self.text = ""
        self.cursor = 0                         # an index into the text, always between two clusters
        self._before: "list[str]" = []          # what was entered, oldest first
        self._at = 0                            # the place in it that is shown; its length is the line of now
        self._draft = ""                        # the line of now, while an older one is shown
        self._killed = ""                       # what Ctrl-Y brings back
        self._completing: "Optional[tuple[list[str], int, str]]" = None     # what Tab offers, which is shown, the text after
        self._moves: "dict[str, Callable[[], int]]" = {
            "left": self._left, "ctrl-b": self._left, "right": self._right, "ctrl-f": self._right,
            "home": self._line_start, "ctrl-a": self._line_start, "end": self._line_end, "ctrl-e": self._line_end,
            "word-left": self._word_left, "alt-b": self._word_left, "word-right": self._word_right, "alt-f": self._word_right}
        self._actions: "dict[str, Callable[[], None]]" = {
            "backspace": lambda: self._delete(self._left(), self.cursor),
            "delete": lambda: self._delete(self.cursor, self._right()),
            "ctrl-d": lambda: self._delete(self.cursor, self._right()),
            "ctrl-u": lambda: self._kill(self._line_start(), self.cursor),
            "ctrl-k": lambda: self._kill(self.cursor, self._line_end()),
            "ctrl-w": lambda: self._kill(self._word_left(spaces=True), self.cursor),
            "alt-backspace": lambda: self._kill(self._word_left(), self.cursor),
            "alt-d": lambda: self._kill(self.cursor, self._word_right()),
            "up": self._up, "ctrl-p": lambda: self._remember(-1), "down": self._down, "ctrl-n": lambda: self._remember(1)}

    def press(self, key: Key) -> bool:
        """Do what a key does to the line; False when it means nothing here, or the line is too long for it."""
        if key.name in ("text", "newline", "ctrl-y"):
            return self.insert({"newline": "\n", "ctrl-y": self._killed}.get(key.name, key.text))
        self._completing = None
        if key.name in self._moves:
            self.cursor = self._moves[key.name]()
        elif key.name in self._actions:
            self._actions[key.name]()
        else:
            return False
        self._settle()
        return True

    def insert(self, text: str) -> bool:
        """Insert at the cursor; False when it would be longer than a message may be."""
        self._completing = None
        if len(self.text) + len(text) > MAX_TEXT:
            return False
        self.text = self.text[:self.cursor] + text + self.text[self.cursor:]
        self.cursor += len(text)
        self._settle()
        return True

    def take(self) -> str:
        """The line was entered: return it, remember it, start anew."""
        text = self.text
        if text.strip() and self._before[-1:] != [text]:
            self._before = (self._before + [text])[-self.REMEMBERED:]
        self.set("")
        self._at = len(self._before)
        return text

    def clear(self) -> None:
        """Empty the line; Ctrl-Y brings it back."""
        self._completing = None
        self._kill(0, len(self.text))
        self._at = len(self._before)

    def set(self, text: str) -> None:
        """Another text, the cursor at its end."""
        self.text, self.cursor = text, len(text)
        self._completing = None

    def complete(self, offers: "Callable[[str, bool], list[str]]") -> None:
        """Tab: complete the word before the cursor with the first of offers(word, whether it is the line's first);
        the next Tab tries the next."""
        if self._completing is None:
            start = len(self.text[:self.cursor].rstrip()) if self.text[:self.cursor].isspace() else self._word_start()
            word = self.text[start:self.cursor]
            found = [offer for offer in offers(word, not self.text[:start].strip())
                     if len(self.text) - len(word) + len(offer) <= MAX_TEXT]
            if not found:
                return
            self._completing = ([*found, word] if word else found, 0, self.text[self.cursor:])
            self.text = self.text[:start]
        else:
            found, shown, after = self._completing
            self.text = self.text[:self.cursor - len(found[shown])]
            self._completing = (found, (shown + 1) % len(found), after)
        found, shown, after = self._completing
        self.text += found[shown]
        self.cursor = len(self.text)
        self.text += after

    def _settle(self) -> None:
        """The cursor to the end of the cluster that it is in."""
        start, end = self._line_start(), self._line_end()
        for cluster in clusters(self.text[start:end]):
            if start >= self.cursor:
                break
            start += len(cluster)
        self.cursor = max(self.cursor, start)

    # Places in the text

    def _word_start(self) -> int:
        return max(self.text.rfind(space, 0, self.cursor) for space in " \n\t") + 1

    def _left(self) -> int:
        start = self._line_start()
        if start == self.cursor:
            return max(0, start - 1)
        return self.cursor - len(clusters(self.text[start:self.cursor])[-1])

    def _right(self) -> int:
        return self.cursor + len((clusters(self.text[self.cursor:max(self.cursor + 1, self._line_end())]) or [""])[0])

    def _line_start(self) -> int:
        return self.text.rfind("\n", 0, self.cursor) + 1

    def _line_end(self) -> int:
        end = self.text.find("\n", self.cursor)
        return len(self.text) if end < 0 else end

    def _word_left(self, spaces: bool = False) -> int:
        """The start of the word before the cursor; a word ends at a space, or at whatever is no letter or digit."""
        return self.cursor - self._word(reversed(clusters(self.text[:self.cursor])), spaces)

    def _word_right(self) -> int:
        return self.cursor + self._word(clusters(self.text[self.cursor:]))

    @staticmethod
    def _word(found: "Iterable[str]", spaces: bool = False) -> int:
        """How many characters there are up to the end of the next word in this direction."""
        length, in_word = 0, False
        for cluster in found:
            is_word = not cluster.isspace() if spaces else cluster[0].isalnum() or cluster[0] == "_"
            if in_word and not is_word:
                break
            in_word = in_word or is_word
            length += len(cluster)
        return length

    # What the keys do

    def _delete(self, start: int, end: int) -> None:
        self.text, self.cursor = self.text[:start] + self.text[end:], start

    def _kill(self, start: int, end: int) -> None:
        if start < end:
            self._killed = self.text[start:end]
        self._delete(start, end)

    def _up(self) -> None:
        """The line above in a text of several lines; from the first one, what was entered before."""
        start = self._line_start()
        if start == 0:
            self._remember(-1)
        else:
            column = self.cursor - start
            start = self.text.rfind("\n", 0, start - 1) + 1
            self._to_column(start, column)

    def _down(self) -> None:
        end = self._line_end()
        if end == len(self.text):
            self._remember(1)
        else:
            self._to_column(end + 1, self.cursor - self._line_start())

    def _to_column(self, start: int, column: int) -> None:
        """Into the line from `start`, so many characters right, but never into a cluster."""
        self.cursor = start
        for cluster in clusters(self.text[start:self._line_end()]):
            if self.cursor + len(cluster) > start + column:
                break
            self.cursor += len(cluster)

    def _remember(self, step: int) -> None:
        """Show what was entered before (-1) or after (1) what is shown; what was typed is kept for the way back."""
        place = self._at + step
        if not 0 <= place <= len(self._before):
            return
        if self._at == len(self._before):
            self._draft = self.text
        self._at = place
        self.set(self._draft if place == len(self._before) else self._before[place])


# --- The screen: rows of cells ---

Cell = Tuple[str, str, int]     # how, what, and how many columns
Row = List[Cell]
BLANK: Cell = ("", " ", 1)


def wrap(line: Line, width: int, columns: Columns, first: int = 0, rest: int = 0) -> "list[Row]":
    """The rows of a line: the first one after `first` blanks, the others after `rest`; broken at spaces where there are."""
    rows: "list[Row]" = []
    row: Row = [BLANK] * first
    used, space = first, 0              # columns; where the word begins that may go to the next row, 0 for nowhere
    for style, text in line:
        for cluster in clusters(text):
            cell = (style, cluster, columns.of(cluster))
            if used + cell[2] > width:
                if cluster == " ":                              # a space at the edge is the break
                    cell = ("", "", 0)
                word = row[space:] if space else []
                if sum(part[2] for part in word) + rest + cell[2] > width:
                    word = []                                   # longer than a row: it is broken at the edge
                rows.append(row[:len(row) - len(word)] if cell[2] else row + [(style, "", 0)])
                row = [BLANK] * rest + (word if cell[2] else [])
                used, space = sum(part[2] for part in row), 0
            if cell[2] or cell[1]:
                row.append(cell)
                used += cell[2]
            if cluster == " " and len(row) > rest:
                space = len(row)
    return rows + [row]


class Screen:
    """What is on the terminal: messages above, one status line, the line that is typed. It knows no terminal: paint()
    returns what to write to one so that it shows what has changed."""

    REMEMBERED = 10_000             # entries that one can scroll back to; older ones are dropped,
    REMEMBERED_SIZE = 8_000_000     # and so they are beyond so many characters
    PROMPT = "> "

    def __init__(self, theme: Theme, editor: Editor) -> None:
        self.columns = Columns()
        self.status: "list[str]" = []           # parts, the most dispensable last
        self.question = ""                      # shown in place of the status
        self._theme = theme
        self._editor = editor
        self._height, self._width = 24, 80
        self._entries: "list[Entry]" = []
        self._dropped = 0                       # entries before the first one of now
        self._size = 0                          # characters in them
        self._unplaced: "dict[int, Entry]" = {}     # ours, without a place in the order yet: always at the end, by their id
        self._kept: "dict[int, Entry]" = {}     # ours, which may have got no place, by their id
        # Scrolled back: the entry at the bottom (counted from the very first one) and how many of its cells come before
        # its row at the bottom, so that the place survives another width. None follows what is new.
        self._bottom: "Optional[tuple[int, int]]" = None
        self._read = 0                          # entries there were, counted alike, when one scrolled back
        self._painted: "list[Optional[Row]]" = []       # what the terminal shows; None is unknown
        self._cursor = (-1, -1)
        self._typed = ("", 0, 0, 0)             # what the rows of the line that is typed were made for
        self._typed_rows: "tuple[list[Row], tuple[int, int]]" = ([], (0, 0))
        self._shown: "list[Entry]" = []         # those that keep their rows

    # What there is to show

    def add(self, entry: Entry) -> None:
        """At the end. Our own leaves its place among the unplaced."""
        if entry.said is not None:
            self._unplaced.pop(entry.said.id, None)
        if entry.said is None and self._bottom is not None and self._bottom[0] >= self._dropped + len(self._entries):
            self._bottom = (self._bottom[0] + 1, self._bottom[1])       # it is among the unplaced, which move on
        self._entries.append(entry)
        self._size += entry.size
        if len(self._entries) > self.REMEMBERED * 11 // 10 or self._size > self.REMEMBERED_SIZE:
            old = self._entries[:max(1, len(self._entries) // 11)]      # many at once: moving the rest costs
            self._size -= sum(entry.size for entry in old)
            self._dropped += len(old)
            del self._entries[:len(old)]

    def add_unplaced(self, said: Said, entry: Entry) -> None:
        """What we said a moment ago: after everything else, until it comes back at its place."""
        self._unplaced[said.id] = entry

    def keep(self, forgotten: "list[Said]") -> None:
        """The server has these, but may never send them back: they stay where they are, unless they come after all."""
        for said in forgotten:
            if said.id in self._unplaced:
                self.add(self._unplaced[said.id])
                self._kept[said.id] = self._entries[-1]

    def came_back(self, text: str, to: Optional[str]) -> None:
        """Something of ours has come at its place: if it was kept elsewhere, that is not needed any more."""
        for id, entry in self._kept.items():
            if entry.said is not None and (entry.said.text, entry.said.to) == (text, to):
                if entry in self._entries:
                    place = self._entries.index(entry)
                    del self._entries[place]
                    if self._bottom is not None and place + self._dropped < self._bottom[0]:
                        self._bottom = (self._bottom[0] - 1, self._bottom[1])
                del self._kept[id]
                break

    def follow(self) -> None:
        """Back to the bottom, if one had scrolled away from it."""
        self._bottom = None

    def changed(self, said: Optional[Said] = None) -> None:
        """The state of what we said, or of all that is under way, is another."""
        unplaced = list(self._unplaced.values()) if said is None else [self._unplaced.get(said.id)]
        for entry in [*unplaced, *self._shown]:
            if entry is not None and (said is None or entry.said is said):
                entry.width = 0
        if said is not None and said.state in (FAILED, UNKNOWN) and said.id in self._unplaced:
            self.add(self._unplaced[said.id])

    def clear(self) -> None:
        """Forget what was said."""
        self._dropped += len(self._entries)
        self._size = 0
        self._entries.clear()
        self._bottom = None

    def resize(self, height: int, width: int) -> None:
        """The terminal has another size."""
        if (height, width) != (self._height, self._width):
            self._height, self._width = max(1, height), max(1, width)
            self.forget()

    def learn(self, widths: "list[int]") -> None:
        """What Columns.PROBE found."""
        self.columns.learn(widths)
        self._shown = []
        for entry in self._all():
            entry.width = 0
        self.forget()

    def forget(self) -> None:
        """Somebody else may have written on the terminal: the next paint() is of everything."""
        self._painted = []

    @property
    def new_below(self) -> int:
        """Entries that came since one scrolled back, and are below what is shown."""
        count = len(self._all()) + self._dropped
        return 0 if self._bottom is None else min(count - self._read, count - 1 - self._bottom[0])

    # Scrolling

    def scroll(self, pages: int) -> None:
        """Back (-1) or forth (1) by a page, less one row."""
        if not self._all():
            return
        height = max(1, self._message_height() - 1)
        place, row = self._place()
        row += pages * height
        while row < 0 and place > 0:
            place -= 1
            row += len(self._rows(self._all()[place]))
        while place < len(self._all()) and row >= len(self._rows(self._all()[place])):
            row -= len(self._rows(self._all()[place]))
            place += 1
        place, row = self._not_above_the_top(place, max(0, row))
        if place >= len(self._all()) or (place, row) == self._last():
            self._bottom = None
        else:
            if self._bottom is None:
                self._read = len(self._all()) + self._dropped
            self._bottom = (place + self._dropped, sum(map(self._content, self._rows(self._all()[place])[:row])))

    @property
    def _indent(self) -> int:
        return min(len(INDENT), self._width // 4)

    def _content(self, row: Row) -> int:
        """The cells of a row without its indent: so many at any width."""
        indent = self._indent
        return len(row) - (indent if row[:indent] == [BLANK] * indent else 0)

    def _all(self) -> "list[Entry]":
        return self._entries + list(self._unplaced.values()) if self._unplaced else self._entries

    def _last(self) -> "tuple[int, int]":
        entries = self._all()
        return len(entries) - 1, len(self._rows(entries[-1])) - 1 if entries else 0

    def _place(self) -> "tuple[int, int]":
        """The entry and the row in it that are at the bottom now."""
        if self._bottom is None:
            return self._last()
        place, cells = self._bottom[0] - self._dropped, self._bottom[1]
        if not 0 <= place < len(self._all()):
            return self._not_above_the_top(0, 0)
        row = 0
        for row, part in enumerate(self._rows(self._all()[place])):
            cells -= self._content(part)
            if cells < 0:
                break
        return self._not_above_the_top(place, row)

    def _not_above_the_top(self, place: int, row: int) -> "tuple[int, int]":
        """So far down that the rows above fill the screen, where there are so many."""
        entries, missing = self._all(), self._message_height() - 1 - row
        for entry in reversed(entries[max(0, place - missing):place] if missing > 0 else []):
            missing -= len(self._rows(entry))
        row += max(0, missing)
        while place < len(entries) - 1 and row >= len(self._rows(entries[place])):
            row -= len(self._rows(entries[place]))
            place += 1
        return place, min(row, len(self._rows(entries[place])) - 1) if 0 <= place < len(entries) else 0

    # Rows

    def _rows(self, entry: Entry) -> "list[Row]":
        """An entry as wrapped for the width of now."""
        if entry.width != self._width:
            entry.width = self._width
            self._shown.append(entry)
            indent = self._indent
            lines = list(entry.lines)
            if entry.said is not None:
                lines[-1] = lines[-1] + [self._state(entry.said)]
            entry.rows = [row for number, line in enumerate(lines)
                          for row in wrap(line, self._width, self.columns, indent if number else 0, indent)]
        return entry.rows

    def _state(self, said: Said) -> Span:
        if said.state == FAILED:
            return self._theme.error, f" (failed: {escape(said.reason)})"
        if said.state == THERE and said.of:
            heard = "by all" if said.heard >= said.of else f"by {said.heard} of {said.of}"
            return self._theme.dim, f" (heard {heard})"
        return self._theme.dim, f" ({said.state})"

    def _message_height(self) -> int:
        return max(0, self._height - 1 - len(self._input()[0]))

    def _messages(self, height: int) -> "list[Row]":
        """The rows of what was said, the newest at the bottom."""
        entries = self._all()
        rows: "list[Row]" = []
        shown: "list[Entry]" = []
        if entries and height:
            place, row = self._place()
            rows = self._rows(entries[place])[:row + 1]
            shown = [entries[place]]
            while place > 0 and len(rows) < height:
                place -= 1
                shown.append(entries[place])
                rows = self._rows(entries[place]) + rows
        for entry in self._shown:
            if entry not in shown:
                entry.rows, entry.width = [], 0         # thousands of entries would keep theirs
        self._shown = shown
        rows = rows[-height:] if height else []
        return [[] for _ in range(height - len(rows))] + rows

    def _status(self) -> Row:
        """One reversed line over the whole width, without the parts that do not fit."""
        parts = [self.question] if self.question else list(self.status)
        if self._bottom is not None and not self.question:
            parts.insert(0, f"{self.new_below} new below, PgDn" if self.new_below else "scrolled back")
        while len(parts) > 1 and sum(map(len, parts)) + 3 * len(parts) - 1 > self._width:
            parts.pop()
        row, used = [], 0
        for cluster in clusters(" " + " | ".join(parts)):
            if used + self.columns.of(cluster) > self._width:
                break
            row.append((self._theme.status, cluster, self.columns.of(cluster)))
            used += row[-1][2]
        return row + [(self._theme.status, " ", 1)] * (self._width - used)

    def _input(self) -> "tuple[list[Row], tuple[int, int]]":
        """The rows of the line that is typed, at most a third of the screen, and where in them the cursor is."""
        typed = (self._editor.text, self._editor.cursor, self._width, self._height)
        if self._typed != typed or not self._painted:           # else as it was: a draft may be long
            self._typed, self._typed_rows = typed, self._wrap_input()
        return self._typed_rows

    def _wrap_input(self) -> "tuple[list[Row], tuple[int, int]]":
        rows: "list[Row]" = [[(self._theme.bold, self.PROMPT[:self._width - 1], min(len(self.PROMPT), self._width - 1))]]
        start, used, place = rows[0][0][2], rows[0][0][2], 0
        cursor = (0, start)
        for cluster in [*clusters(self._editor.text), ""]:      # the last one is where the cursor may be at the end
            text = "    " if cluster == "\t" else "" if cluster == "\n" else escape(cluster)
            cells = [("", part, self.columns.of(part)) for part in ([text] if text and text == cluster else clusters(text))]
            width = sum(cell[2] for cell in cells)
            if used + max(1, width) > self._width and used > start:
                rows.append([("", " " * start, start)])
                used = start
            if place <= self._editor.cursor < place + max(1, len(cluster)):
                cursor = (len(rows) - 1, used)
            rows[-1] += cells
            used += width
            place += len(cluster)
            if cluster == "\n":
                rows.append([("", " " * start, start)])
                used = start
        height = max(1, self._height // 3)
        first = min(max(0, cursor[0] - height + 1), max(0, len(rows) - height))
        return rows[first:first + height], (cursor[0] - first, cursor[1])

    # Painting

    def paint(self) -> str:
        """What to write to the terminal so that it shows what there is to show; "" where it does already."""
        typed, cursor = self._input()
        rows = self._messages(max(0, self._height - 1 - len(typed)))
        rows = (rows + ([self._status()] if self._height > 1 else []) + typed)[-self._height:]
        if len(self._painted) != len(rows):
            self._painted = [None] * len(rows)
        changes = [_repaint(number, old, new, self._width)
                   for number, (old, new) in enumerate(zip(self._painted, rows)) if old != new]
        self._painted = list(rows)
        place = (self._height - len(typed) + cursor[0], min(cursor[1], self._width - 1))
        if not changes and place == self._cursor:
            return ""
        self._cursor = place
        moved = f"\x1b[{place[0] + 1};{place[1] + 1}H"
        if len(changes) < 2:
            return "".join(changes) + moved
        # Shown at once where the terminal can hold it back (mode 2026), and without a cursor that runs around elsewhere.
        return "\x1b[?2026h\x1b[?25l" + "".join(changes) + moved + "\x1b[?25h\x1b[?2026l"


def _repaint(number: int, old: Optional[Row], new: Row, width: int) -> str:
    """What turns row `number` from `old` into `new`, from the first cell that differs."""
    same = 0
    if old is not None:
        while same < len(old) and same < len(new) and old[same] == new[same]:
            same += 1
    while same and any(row[same][2] == 0 for row in (old or [], new) if same < len(row)):
        same -= 1                       # what has no columns is in the cell before it
    if any(len(cell[1]) > 1 and not cell[1].isascii() for cell in [*(old or []), *new]):
        old, same = None, 0             # clusters: how many columns they have taken on the terminal is not certain
    column = sum(cell[2] for cell in new[:same])
    text = [f"\x1b[{number + 1};{column + 1}H"]
    if old is None:
        text.append("\x1b[K")
    style = ""
    for how, what, columns in new[same:]:
        if how != style:
            text.append(f"\x1b[0;{how}m" if how else "\x1b[0m")
            style = how
        text.append(what)
        column += columns
        if len(what) > 1 and not what.isascii() and column < width:
            text.append(f"\x1b[{number + 1};{column + 1}H")
    if style:
        text.append("\x1b[0m")
    if column < width and old is not None and column < sum(cell[2] for cell in old):
        text.append("\x1b[K")
    return "".join(text)


# --- The terminal ---

class Terminal:
    """The terminal of a POSIX system, in raw mode from enter() to leave(). The only one that touches it."""

    # The alternate screen; no wrapping at the edge, whatever the terminal thinks of a character's width; pastes marked as
    # such; and the mouse wheel does not press Up and Down (its setting is saved first, and restored).
    SAVE = "\x1b[?1007s"
    ENTER = "\x1b[?1049h\x1b[?7l\x1b[?2004h\x1b[?1007l\x1b[0m\x1b[2J"
    LEAVE = "\x1b[0m\x1b[?25h\x1b[?1007r\x1b[?2004l\x1b[?7h\x1b[?1049l"

    def __init__(self) -> None:
        self._settings: Any = None              # as they were, while they are changed

    def enter(self) -> None:
        """Take the terminal over; again after it was away. Raises OSError."""
        is_first = self._settings is None
        self._change()
        self.write(self.SAVE * is_first + self.ENTER)

    def leave(self) -> None:
        """Give it back as it was. May be called twice, and when it is gone."""
        if self._settings is not None:
            try:
                self.write(self.LEAVE)
            except (OSError, ValueError):
                pass
            self.reset()

    def reset(self) -> None:
        """The part of leave() that never blocks, for when the terminal takes no more output."""
        settings, self._settings = self._settings, None
        if settings is not None:
            self._restore(settings)

    def read(self) -> bytes:
        """What was typed, as soon as there is something; b"" at the end."""
        return os.read(0, 4096)

    def write(self, text: str) -> None:
        """All of it, past Python's buffers, so in one piece where the system takes it. Raises OSError when it is gone."""
        data = text.encode(sys.stdout.encoding, "backslashreplace")
        while data:
            try:
                data = data[os.write(1, data):]
            except BlockingIOError:             # another program has made the terminal non-blocking
                select.select([], [1], [], 1)

    def size(self) -> "tuple[int, int]":
        """Rows and columns."""
        try:
            columns, rows = os.get_terminal_size(1)
        except OSError:
            columns = rows = 0
        return rows or 24, columns or 80

    def _change(self) -> None:
        import termios                          # not on Windows
        try:
            raw = termios.tcgetattr(0)
            if self._settings is None:
                self._settings = termios.tcgetattr(0)
            raw[0] &= ~(termios.ICRNL | termios.INLCR | termios.IGNCR | termios.ISTRIP | termios.IXON | termios.BRKINT)
            raw[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
            raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
            termios.tcsetattr(0, termios.TCSADRAIN, raw)
        except termios.error as error:          # it is no OSError
            raise OSError(*error.args) from error

    def _restore(self, settings: Any) -> None:
        import termios
        try:
            termios.tcsetattr(0, termios.TCSANOW, settings)
        except termios.error:
            pass                                # it is gone


class WindowsTerminal(Terminal):
    """The console of Windows 10 or newer, told to understand escape sequences and to send keys as such."""

    # Standard handle: what is switched on (ENABLE_VIRTUAL_TERMINAL_INPUT, _PROCESSING) and off (Ctrl-C, lines, echo).
    _MODES = {-10: (0x0200, 0x0007), -11: (0x0004, 0)}

    def __init__(self) -> None:
        super().__init__()
        import ctypes
        self._ctypes: Any = ctypes
        self._kernel: Any = ctypes.WinDLL("kernel32")       # type: ignore[attr-defined]
        self._kernel.GetStdHandle.restype = ctypes.c_void_p
        self._decoder = codecs.getincrementaldecoder("utf-16-le")("replace")    # an emoji may come in halves

    def _handle(self, number: int) -> Any:
        return self._ctypes.c_void_p(self._kernel.GetStdHandle(number))

    def _change(self) -> None:
        before = []
        for number, (on, off) in self._MODES.items():
            mode = self._ctypes.c_ulong()
            known = self._kernel.GetConsoleMode(self._handle(number), self._ctypes.byref(mode))
            before.append((number, mode.value))
            if not known or not self._kernel.SetConsoleMode(self._handle(number), mode.value & ~off | on):
                self._restore(before)
                raise OSError("this console cannot be controlled, try --plain")
        self._settings = self._settings or before

    def _restore(self, settings: Any) -> None:
        for number, mode in settings:
            self._kernel.SetConsoleMode(self._handle(number), mode)

    def write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def read(self) -> bytes:
        buffer, count = self._ctypes.create_unicode_buffer(4096), self._ctypes.c_ulong()
        if not self._kernel.ReadConsoleW(self._handle(-10), buffer, 4096, self._ctypes.byref(count), None):
            raise OSError("the console is gone")
        return self._decoder.decode(bytes(buffer)[:2 * count.value]).encode()


def colours() -> int:
    """How many colours the terminal has."""
    if os.environ.get("COLORTERM") in ("truecolor", "24bit"):
        return 256
    try:
        import curses                                       # not on Windows, whose console has them
        curses.setupterm()
        return curses.tigetnum("colors")
    except ImportError:
        return 256
    except curses.error:                                    # a terminal that is in no list
        return 8


def takes_screen(arguments: argparse.Namespace) -> bool:
    """True when stdin and stdout are a terminal that may be painted on."""
    if arguments.plain or arguments.json or os.environ.get("NO_COLOR"):
        return False
    if any(stream is None or not stream.isatty() for stream in (sys.stdin, sys.stdout)):
        return False
    return os.name == "nt" or os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


# --- The two interfaces ---

class Interface:
    """What the two have in common: a client, its commands, and how it ends."""

    def __init__(self, arguments: argparse.Namespace, theme: Theme, receipts: bool) -> None:
        self._arguments = arguments
        self._not_delivered: "list[Said]" = []
        self._ended = ""                # why the client ended by itself
        self._welcomed = False          # we have been in
        self.killed_by = 0              # the signal that ended us; the process has to end by it as well
        self.motd: Optional[str] = None
        self.last_private = ""          # who wrote to us privately last, for /reply
        self.client = ChatClient(arguments.host, arguments.port, arguments.name, receipts=receipts,
                                 on_welcome=self._on_welcome, on_message=self._on_message, on_state=self._on_state,
                                 on_lost=self._on_lost, on_end=self._on_end, on_recalled=self._on_recalled)
        self.formatter = Formatter(self.client, theme)
        self.commands = Commands(self)

    def run(self) -> int:
        """Chat until the user or the server ends it; return the exit code."""
        threading.excepthook = self._on_crash
        try:
            self.client.connect(self._arguments.timeout)
        except ConnectionError as error:
            complain(str(error))
            return 1
        try:
            code = self._chat()
        except KeyboardInterrupt:
            code = 130
        except Exception as error:
            code, self._ended = 1, bug(error)
        code = self._close(code)
        for said in self._not_delivered:
            complain(f"{said.state if said.state == UNKNOWN else 'not delivered'}: {_short(said)}"
                     + (f" ({said.reason})" if said.reason else ""))
        if self._ended:
            complain(self._ended + self._rest())
        return code or (1 if self._not_delivered or self._ended else 0)

    def _chat(self) -> int:
        """Until it ends; return the exit code."""
        raise NotImplementedError

    def _close(self, code: int) -> int:
        """Wait for what was said, if one was not interrupted already."""
        try:
            if not code:
                self._say_that_it_waits()
            self.client.close(0 if code else self._arguments.timeout)
        except KeyboardInterrupt:
            code = 130
            self.client.close()
        return code

    def _say_that_it_waits(self) -> None:
        """Where somebody looks."""

    def _rest(self) -> str:
        """More to say of the end."""
        return ""

    def show(self, line: str) -> None:
        """Show a line of our own, which is safe to show; one that begins with ! is an error."""
        raise NotImplementedError

    def say(self, line: str, to: Optional[str] = None) -> None:
        """Say a line, cleaned, in several messages where it is too long for one; a line without text is none."""
        text = clean_text(line)
        for start in range(0, len(text) if text.strip() else 0, MAX_TEXT):
            if not self._say_piece(text[start:start + MAX_TEXT], to):
                return

    def _say_piece(self, text: str, to: Optional[str]) -> bool:
        """Say one message; False when it cannot be said."""
        raise NotImplementedError

    def clear(self) -> None:
        """Forget what was shown, where that can be."""

    def quit(self) -> None:
        """Take no more lines."""
        raise NotImplementedError

    def _greet(self, welcome: Welcome) -> None:
        """Say that we are connected, and as whom."""
        self.motd = welcome.motd
        if self._welcomed:
            self.show("* connected again")
        else:
            self._welcomed = True
            if welcome.motd:
                self.commands.motd("")
            self.show(f"* you are {escape(welcome.name)}, {self.client.here} here; /help lists the commands")
        if name_key(welcome.name) != name_key(self.client.wanted):
            self.show(f"* your name is {escape(welcome.name)} for now: {escape(self.client.wanted)} is taken")

    def _on_crash(self, crash: Any) -> None:
        """On a thread of ours that ends by a bug: end all of it, in order."""
        if not issubclass(crash.exc_type, SystemExit):
            self._on_end(bug(crash.exc_value))

    # On the client's thread

    def _on_welcome(self, welcome: Welcome) -> None:
        raise NotImplementedError

    def _on_message(self, message: Message) -> None:
        raise NotImplementedError

    def _on_state(self, said: Said) -> None:
        if said.state in (FAILED, UNKNOWN):
            self._not_delivered.append(said)

    def _on_recalled(self, answer: Optional[Recalled]) -> None:
        raise NotImplementedError

    def _on_lost(self, why: str, seconds: float) -> None:
        raise NotImplementedError

    def _on_end(self, why: str) -> None:
        self._ended = why


class Plain(Interface):
    """Lines in, lines out, nothing repainted: for pipes, dumb terminals and screen readers."""

    END = None                          # in the queue of lines: there are no more

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._is_pipe = sys.stdin is None or not sys.stdin.isatty()
        self._lines: "queue.Queue[Optional[str]]" = queue.Queue(100)    # from stdin; its reader waits when it is full
        self._broken = False            # stdout is gone: say what there is to say, show nothing
        self._no_more = False           # /quit was typed
        self._unread = 0                # lines of a pipe that were not sent because one gave up
        super().__init__(arguments, Theme(0), receipts=False)

    def _chat(self) -> int:
        threading.Thread(target=self._read_stdin, name="stdin", daemon=True).start()
        while not self._no_more and not self._ended:
            try:
                line = self._lines.get(timeout=1)       # without a time-out Ctrl-C would not be heard on Windows
            except queue.Empty:
                continue
            if line is self.END:
                break
            if self._is_pipe:
                self.say(line)                          # a build log has lines that begin with a slash
            else:
                self.commands.run(line)
        return 0

    def show(self, line: str) -> None:
        """Print a line. Any thread."""
        if self._broken:
            return
        try:
            sys.stdout.write(line + "\n")               # in one piece: two threads show lines
            sys.stdout.flush()
        except (OSError, AttributeError):               # AttributeError: there is no stdout
            self._broken = True

    def quit(self) -> None:
        """From a command: take no more lines."""
        self._no_more = True

    # On the thread "stdin" and on the main thread

    def _read_stdin(self) -> None:
        try:
            for line in chatproto.stdin_lines():
                self._lines.put(line)
        except OSError as error:
            complain(f"cannot read stdin: {error.strerror or error}")
        self._lines.put(self.END)

    def _rest(self) -> str:
        """What to say of the lines of a pipe that were not sent because one gave up before."""
        while self._is_pipe and self._unread < UNSENT:  # `yes | chat_client` does not end
            try:
                if self._lines.get(timeout=0.5) is self.END:
                    break
            except queue.Empty:
                break
            self._unread += 1
        return f"; {self._unread} more lines were not sent" if self._unread else ""

    def _say_piece(self, text: str, to: Optional[str]) -> bool:
        """In a pipe wait while too much is unsettled."""
        at_most = UNSENT_PIPE
        while not self._is_pipe or self.client.wait_settled(at_most, self._arguments.timeout):
            try:
                self.client.say(text, to)
                return True
            except queue.Full:                          # too many bytes: wait for one ACK more
                if not self._is_pipe:
                    self.show("! too much waits to be sent: not sent, try again later")
                    return False
                at_most = max(0, len(self.client.unsettled) - 1)
        self._ended = self._ended or "nothing was acknowledged any more, gave up"
        self._unread += 1
        return False

    # On the client's thread

    def _on_welcome(self, welcome: Welcome) -> None:
        if self._arguments.json:
            self.show(self.client.last_frame.decode("utf-8", "replace"))
            return
        if welcome.missed:
            complain(f"{welcome.missed} messages were missed: the server has them no longer")
        if not self._is_pipe:
            self._greet(welcome)

    def _on_message(self, message: Message) -> None:
        if self._arguments.json:
            self.show(self.client.last_frame.decode("utf-8", "replace"))
            return
        own = self.formatter.is_own(message)
        if isinstance(message, Chat):
            if message.to is not None and not own:
                self.last_private = message.sender
            if self._is_pipe and (own or message.id <= self.client.history_until):
                return
        if isinstance(message, Error) and message.about and self._is_pipe:
            return                                      # named at the end
        self._print(self.formatter.entries(message))

    def _on_recalled(self, answer: Optional[Recalled]) -> None:
        if self._arguments.json and answer is not None:
            self.show(self.client.last_frame.decode("utf-8", "replace"))
        else:
            self._print(self.formatter.older(answer))

    def _print(self, entries: "list[Entry]") -> None:
        for entry in entries:
            for line in entry.plain():
                self.show(line)

    def _on_lost(self, why: str, seconds: float) -> None:
        if not self._is_pipe:
            self.show(f"! disconnected ({escape(why)}), trying again in {seconds:.0f} s; what you say is sent then")

    def _on_end(self, why: str) -> None:
        super()._on_end(why)
        try:
            self._lines.put_nowait(self.END)            # wakes the main thread
        except queue.Full:
            pass                                        # it is awake


# What ends a program that does not look: the terminal has to be restored first. SIGINT is Ctrl-C's.
KILLS = ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGXCPU", "SIGABRT", "SIGBREAK")


def end_by(number: int) -> None:
    """End the process by this signal, so that who waits for us sees what ended us."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


class Window(Interface):
    """The whole terminal: a Screen, an Editor, and the main thread that moves between them and the client.

    Whatever happens on another thread (a key, a message, a signal) is posted as an event, a method and its arguments; the
    main thread takes all that wait and then paints once. So a flood of messages costs few frames, and what is typed
    waits for a frame at most.
    """

    FRAME = 1 / 30                  # seconds between two paintings, where nothing was typed
    EVENTS = 4_096                  # messages that may wait; then the client's thread waits, and so does its ACK. More than
                                    # one read can bring: connect() returns only after a whole one
    SPEAKERS = 1_000                # whose order of speaking is known for Tab
    PASTE_LINES = 5                 # lines of a paste that need no question

    def __init__(self, arguments: argparse.Namespace, terminal: Terminal) -> None:
        theme = Theme(colours())
        self._terminal = terminal
        self._editor = Editor()
        self.screen = Screen(theme, self._editor)
        self._keys = Keys()
        # Signal handlers put into it as well: they may interrupt the main thread anywhere, only a SimpleQueue bears that.
        self._events: "queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]]" = queue.SimpleQueue()
        self._over: Optional[int] = None        # the exit code, when it is over
        self._left = False                      # it was the user who ended it
        self._urgent = False                    # a key was pressed: paint at once
        self._bell = False                      # ring with the next painting
        self._lost_until: Optional[float] = None        # disconnected; the next try is at that time (monotonic)
        self._pasted: Optional[str] = None      # a paste that waits for a yes
        self._speakers: "dict[str, str]" = {}   # name_key -> name, who spoke last at the end
        self._widths: "list[int]" = []          # the terminal's answers to Columns.PROBE so far
        self._special: "dict[str, Callable[[Key], None]]" = {       # what is no business of the Editor
            "enter": self._enter, "tab": self._complete, "paste": self._paste,
            "page-up": lambda key: self.screen.scroll(-1), "page-down": lambda key: self.screen.scroll(1),
            "ctrl-c": self._interrupt, "ctrl-d": lambda key: self.quit(), "ctrl-l": lambda key: self.screen.forget(),
            "ctrl-z": lambda key: self._suspend()}
        super().__init__(arguments, theme, receipts=True)

    def _chat(self) -> int:
        self._catch_signals()
        try:
            self._terminal.enter()
            self._terminal.write(Columns.PROBE)
            threading.Thread(target=self._read_keys, name="keys", daemon=True).start()     # a read cannot be interrupted
            self._loop()
        except OSError as error:                        # the terminal is gone, or is none
            self._over = 128 + self.killed_by if self.killed_by else 1
            complain(f"the terminal: {error.strerror or error}")
        finally:
            self._over = 1 if self._over is None else self._over
            self._terminal.leave()
            self._release_signals()
        return self._over

    def _close(self, code: int) -> int:
        if self._left:                                  # with Ctrl-C as well: what was said a moment ago may be under way
            code = 0
        return super()._close(code) or self._over or 0

    def _say_that_it_waits(self) -> None:
        waiting = len(self.client.unsettled)
        if waiting:
            complain(f"waiting for the ACK of {waiting} message{'s' * (waiting > 1)}, Ctrl-C gives up")

    # The main thread: the loop

    def _loop(self) -> None:
        painted = 0.0
        while self._over is None:
            wait = painted + self.FRAME - time.monotonic()
            if self._urgent or wait <= 0:
                self._paint()
                painted, wait = time.monotonic(), self._idle()
            try:
                event, arguments = self._events.get(timeout=wait)
                for _ in range(self.EVENTS):            # and no more, that what is typed may be seen
                    event(*arguments)
                    event, arguments = self._events.get_nowait()
                event(*arguments)
            except queue.Empty:
                pass

    def _idle(self) -> float:
        """Seconds to wait for an event. Not longer: a signal that the system gives to another thread does not end the wait,
        nor does any on Windows."""
        if self._lost_until is not None:
            return min(0.5, max(0.05, (self._lost_until - time.monotonic()) % 1.0))
        return 0.5

    def _paint(self) -> None:
        self._urgent = False
        self.screen.status = self._status()
        self.screen.resize(*self._terminal.size())      # Windows has no signal for it
        text = self.screen.paint() + ("\a" if self._bell else "")
        self._bell = False
        if text:
            self._terminal.write(text)

    def _status(self) -> "list[str]":
        connection, unsent = "connected", len(self.client.unsettled)
        if self._lost_until is not None:
            seconds = math.ceil(self._lost_until - time.monotonic())
            connection = f"reconnecting in {seconds} s" if seconds > 0 else "reconnecting"
        return [escape(self.client.name), connection, *([f"{unsent} unsent"] if unsent else []), f"{self.client.here} here",
                escape(self.client.where)]

    # The main thread: signals

    def _catch_signals(self) -> None:
        actions = {**dict.fromkeys(KILLS, self._kill), "SIGINT": self._kill, "SIGWINCH": self._resize,
                   "SIGTSTP": self._suspend, "SIGCONT": self._resume}
        for name, action in actions.items():
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:       # Windows knows few; nohup ignores one
                signal.signal(number, functools.partial(self._on_signal, action))

    def _release_signals(self) -> None:
        """The terminal is given back: from now on Ctrl-C and the like end the wait for what was said."""
        for name in (*KILLS, "SIGINT"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_late_signal)
        if hasattr(signal, "SIGTSTP"):
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)

    def _on_signal(self, action: "Callable[[int], None]", number: int, frame: Any) -> None:
        """Wherever the main thread is: only post. But the second one that is to end us finds it stuck in a write."""
        if action == self._kill and self.killed_by:
            self._terminal.reset()
            end_by(number)
        if action == self._kill:
            self.killed_by = number
        self._events.put((action, (number,)))

    def _on_late_signal(self, number: int, frame: Any) -> None:
        if self.killed_by:
            end_by(number)
        self.killed_by = number
        raise KeyboardInterrupt

    def _kill(self, number: int) -> None:
        self._over = 128 + number

    def _resize(self, number: int) -> None:
        self.screen.forget()                            # it may have been small for a moment, and lost what was cut off
        self._urgent = True

    def _suspend(self, number: int = 0) -> None:
        """Ctrl-Z: the terminal back to the shell, and stop, with all that runs in our job."""
        if not hasattr(signal, "SIGTSTP"):
            return                                      # Windows has no jobs
        self._terminal.leave()
        ours = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(0, signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, ours)             # `fg` goes on here
        self._resume()

    def _resume(self, number: int = 0) -> None:
        self._terminal.enter()
        self.screen.forget()
        self._urgent = True

    # The main thread: keys

    def _press(self, data: bytes) -> None:
        for key in self._keys.feed(data):
            self._urgent = True
            if key.name == "cursor":
                self._answered(int(key.text))
            elif self._pasted is not None:
                self._decide(key)
            elif key.name == "ctrl-d" and self._editor.text:
                self._editor.press(key)
            elif key.name in self._special:
                self._special[key.name](key)
            elif not self._editor.press(key) and key.name in ("text", "newline", "ctrl-y"):
                self._bell = True                       # it does not fit any more

    def _answered(self, column: int) -> None:
        """The terminal said where the cursor was after a sample of Columns.PROBE."""
        self._widths.append(column - 1)
        if len(self._widths) == len(Columns.SAMPLES):
            self.screen.learn(self._widths)

    def _enter(self, key: Key) -> None:
        line = self._editor.take()
        self.screen.follow()
        if line.strip():
            self.commands.run(line)

    def _complete(self, key: Key) -> None:
        self._editor.complete(self._offers)

    def _offers(self, word: str, is_first: bool) -> "list[str]":
        """What Tab offers for a word: commands, names; who spoke last comes first."""
        if is_first and word.startswith("/"):
            return [command + " " for command in self.commands.words if command.startswith(word)]
        users = dict(self.client.users)
        users.pop(name_key(self.client.name), None)
        recent = [key for key in reversed(self._speakers) if key in users]
        names = [users[key] for key in [*recent, *(key for key in users if key not in self._speakers)]
                 if key.startswith(name_key(word))]
        return [name + (": " if is_first else " ") for name in names]

    def _paste(self, key: Key) -> None:
        text = key.text.rstrip("\n")
        lines = text.count("\n") + 1
        if len(self._editor.text) + len(text) > MAX_TEXT:
            self.show(f"! not pasted: {len(text)} characters, a message has at most {MAX_TEXT}; a pipe takes more")
        elif lines > self.PASTE_LINES:
            self._pasted = text
            self.screen.question = f"paste {lines} lines as one message? y or Enter: yes, n or Ctrl-C: no"
        else:
            self._editor.insert(text)

    def _decide(self, key: Key) -> None:
        """The answer to the question about a paste; any other key waits for it."""
        letter, more = (key.text[:1].lower(), key.text[1:]) if key.name == "text" else ("", "")
        if key.name == "enter" or letter == "y":
            self._editor.insert(self._pasted or "")
        elif key.name not in ("ctrl-c", "ctrl-d") and letter != "n":
            self._bell = True
            if more:
                self._decide(Key("text", more))
            return
        self._pasted, self.screen.question = None, ""
        self._editor.insert(more)

    def _interrupt(self, key: Key) -> None:
        if self._editor.text:
            self._editor.clear()
        else:
            self._over, self._left = 130, True

    # From a command, on the main thread

    def show(self, line: str) -> None:
        self.screen.add(self.formatter.note(line))

    def clear(self) -> None:
        self.screen.clear()

    def quit(self) -> None:
        self._over, self._left = 0, True

    def _say_piece(self, text: str, to: Optional[str]) -> bool:
        try:
            said = self.client.say(text, to)
        except queue.Full:
            self.show("! too much waits to be sent: not sent, Up brings it back")
            return False
        chat = Chat(said.id, self.client.name, text, time.time(), to=to)
        self.screen.add_unplaced(said, self.formatter.chat(chat, own=True, said=said))
        return True

    # What the client tells, on the main thread

    def _hear(self, message: Message, entries: "list[Entry]", own: bool, rings: bool) -> None:
        self._bell = self._bell or rings
        if own and isinstance(message, Chat):
            self.screen.came_back(message.text, message.to)
        for entry in entries:
            self.screen.add(entry)
        if isinstance(message, Chat):
            self._speakers.pop(name_key(message.sender), None)
            self._speakers[name_key(message.sender)] = message.sender
            if len(self._speakers) > self.SPEAKERS:
                del self._speakers[next(iter(self._speakers))]
            if message.to is not None and not own:
                self.last_private = message.sender

    def _connect(self, welcome: Welcome, forgotten: "list[Said]") -> None:
        self._lost_until = None
        self.screen.keep(forgotten)
        if welcome.missed:
            self.show(f"! {welcome.missed} messages were missed: the server has them no longer")
        self._greet(welcome)
        self.screen.changed()

    def _lose(self, why: str, until: float) -> None:
        if self._lost_until is None:
            self.show(f"! disconnected ({escape(why)}); what you say is sent when the connection is back")
        self._lost_until = until
        self.screen.changed()

    def _finish(self, code: int) -> None:
        self._over = code

    # On the client's thread and on "keys"

    def _post(self, event: Callable[..., None], *arguments: Any) -> None:
        self._events.put((event, arguments))

    def _on_welcome(self, welcome: Welcome) -> None:
        self._post(self._connect, welcome, self.client.forgotten(welcome))

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Error) and any(said.id == message.about for said in self._not_delivered):
            return                                      # shown with what was said
        own = self.formatter.is_own(message)
        entries = self.formatter.entries(message, self.client.said_of(message.id))
        rings = (isinstance(message, Chat) and not own and bool(entries) and message.id > self.client.history_until
                 and (self._arguments.bell == "all" or self._arguments.bell == "mentions" and self.formatter.is_mention(message)))
        while self._over is None and self._events.qsize() > self.EVENTS:
            time.sleep(0.01)                            # the terminal is slower than the server
        if self._over is None:
            self._post(self._hear, message, entries, own, rings)

    def _on_state(self, said: Said) -> None:
        super()._on_state(said)
        self._post(self.screen.changed, said)

    def _on_recalled(self, answer: Optional[Recalled]) -> None:
        for entry in self.formatter.older(answer):
            self._post(self.screen.add, entry)

    def _on_lost(self, why: str, seconds: float) -> None:
        self._post(self._lose, why, time.monotonic() + seconds)

    def _on_end(self, why: str) -> None:
        super()._on_end(why)
        self._post(self._finish, 1)

    def _read_keys(self) -> None:
        data = b" "
        while data:
            try:
                data = self._terminal.read()
            except OSError:                             # the terminal is gone
                data = b""
            self._post(self._press, data)
        self._post(self._finish, 1)


class Commands:
    """What a line that begins with a slash does. /help is written from the docstrings."""

    def __init__(self, ui: Interface) -> None:
        self._ui = ui
        self._table = {"/nick": self.nick, "/me": self.me, "/msg": self.msg, "/w": self.msg,
                       "/reply": self.reply, "/r": self.reply, "/names": self.names, "/users": self.names,
                       "/history": self.history, "/ignore": self.ignore, "/unignore": self.unignore,
                       "/quiet": self.quiet, "/timestamp": self.timestamp, "/motd": self.motd, "/clear": self.clear,
                       "/help": self.help, "/quit": self.quit, "/exit": self.quit}
        self.words = tuple(self._table)

    def run(self, line: str) -> None:
        """Do what a typed line says: a command, or something to say."""
        if line.startswith("//"):
            self._ui.say(line[1:])
        elif line.startswith("/"):
            word, _, rest = line.partition(" ")
            command = self._table.get(word)
            if command is None:
                self._ui.show(f"! {escape(word)} is not a command, /help lists them (to say it, begin with //)")
            else:
                self._try(command, rest.strip())
        else:
            self._ui.say(line)

    def _try(self, command: Callable[[str], None], rest: str) -> None:
        try:
            command(rest)
        except ProtocolError as error:
            self._ui.show(f"! {error}")
        except queue.Full:
            self._ui.show("! too much waits to be sent, try again later")

    def nick(self, rest: str) -> None:
        """/nick NAME: take another name"""
        self._ui.client.rename(rest)

    def me(self, rest: str) -> None:
        """/me DOES: say what you do"""
        if rest:
            self._ui.say("/me " + rest)                 # the convention of XMPP (XEP-0245)

    def msg(self, rest: str) -> None:
        """/msg NAME TEXT (/w): say something to one"""
        name, _, text = rest.partition(" ")
        if text.strip():
            self._ui.say(text, chatproto.check_name(name))
        else:
            self._ui.show("! /msg NAME TEXT")

    def reply(self, rest: str) -> None:
        """/reply TEXT (/r): answer who wrote to you privately last"""
        if self._ui.last_private:
            self._ui.say(rest, self._ui.last_private)
        else:
            self._ui.show("! nobody has written to you privately")

    def names(self, rest: str) -> None:
        """/names (/users): who is here"""
        names = list(self._ui.client.users.values())
        self._ui.show(f"* {self._ui.client.here} here: " + ", ".join(map(escape, names)))

    def ignore(self, rest: str) -> None:
        """/ignore NAME: do not show what NAME says; without a name, who is ignored"""
        ignored = self._ui.formatter.ignored
        if rest:
            ignored.add(name_key(rest))
        self._ui.show("* ignored: " + (", ".join(map(escape, sorted(ignored))) or "nobody"))

    def unignore(self, rest: str) -> None:
        """/unignore NAME: show it again"""
        self._ui.formatter.ignored.discard(name_key(rest))
        self.ignore("")

    def history(self, rest: str) -> None:
        """/history [N]: N older messages (20, at most 100)"""
        if not rest or len(rest) <= 3 and rest.isdecimal() and 1 <= int(rest) <= 100:
            self._ui.client.recall(int(rest or 20))
        else:
            self._ui.show("! /history [N]: at most 100 at once")

    def quiet(self, rest: str) -> None:
        """/quiet: hide joins and leaves, or show them again"""
        self._ui.formatter.quiet = not self._ui.formatter.quiet
        self._ui.show("* joins and leaves are " + ("hidden" if self._ui.formatter.quiet else "shown"))

    def timestamp(self, rest: str) -> None:
        """/timestamp: hide the times, or show them again"""
        self._ui.formatter.timestamps = not self._ui.formatter.timestamps

    def motd(self, rest: str) -> None:
        """/motd: the message of the day"""
        for line in (self._ui.motd or "there is no message of the day").split("\n"):
            self._ui.show("* " + _show(line))

    def clear(self, rest: str) -> None:
        """/clear: empty the screen (where there is one)"""
        self._ui.clear()

    def help(self, rest: str) -> None:
        """/help: this list"""
        for command in dict.fromkeys(self._table.values()):
            self._ui.show((command.__doc__ or "").strip())
        self._ui.show("//TEXT: say /TEXT")

    def quit(self, rest: str) -> None:
        """/quit (/exit): leave"""
        self._ui.quit()


# --- Mistakes that explain themselves ---

# What other servers say first, to us or to a `join`.
_OTHER_SERVERS = ((b"HTTP/", "a web server"), (b"<", "a web server"), (b"SSH-", "an ssh server"),
                  (b"\x15\x03", "a server that speaks TLS"), (b"220", "a mail or ftp server"),
                  (b"+OK", "a mail server"), (b"* OK", "a mail server"),
                  (b"RFB ", "a screen that is shared (VNC)"))


def what_answers(first: bytes) -> str:
    """What a server is that begins so: "" when it may be one of ours."""
    return next((what for start, what in _OTHER_SERVERS if first.startswith(start)), "")


def why_not_connected(host: str, port: int, error: Exception) -> str:
    """Why there is no connection, and what to do; for the first try, where a mistake is likely.

    It may take a second: where nothing listens, the machine is asked whether another port is right.
    """
    code = getattr(error, "errno", None)
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return (f"no machine is called {host} here: use the address that the server printed "
                "(a name for yourself goes with -n NAME)")
    if isinstance(error, ConnectionRefusedError):
        for server in find_servers(port, [host], 0.5):
            return (f"nothing listens there, but a chat server on port {server.port}: "
                    f"chat_client.py {host} {server.port}")
        return "nothing listens there: is the server running, and is that its port?"
    if isinstance(error, (socket.timeout, TimeoutError)):
        return ("no answer: the address may be wrong, or a firewall is in the way (the server's "
                f"machine has to allow port {port})")
    if code in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN):
        return "no way leads there: are both machines in the same network?"
    if code in (errno.EACCES, errno.EPERM):
        return "a firewall on this machine forbids it"
    if code == errno.EINVAL and host.startswith("fe80:") and "%" not in host:
        return f"such an address needs the interface that leads there: {host}%eth0"
    return getattr(error, "strerror", None) or str(error)


# --- Which server ---

class Found(NamedTuple):
    """A server that has answered: where it is, and what it says of itself."""

    host: str
    port: int
    name: str
    here: int

    def __str__(self) -> str:
        return f"{self.name} ({chatproto.in_url(self.host)}:{self.port}, {self.here} here)"


def find_servers(port: int = PORT, hosts: "Sequence[str]" = (),
                 seconds: float = 1.0) -> "list[Found]":
    """Ask the LAN, or these hosts alone, for servers; wait `seconds` for their answers.

    They are asked on that port and on 8087, twice, as a datagram may be lost.
    """
    token, best = secrets.token_hex(8), {}
    with contextlib.ExitStack() as stack:
        ways = [(stack.enter_context(sock), place) for sock, place in _ways(hosts)]
        selector = stack.enter_context(selectors.DefaultSelector())
        for sock in {sock for sock, _ in ways}:
            selector.register(sock, selectors.EVENT_READ, sock)
        start = time.monotonic()
        for until in (start + seconds / 3, start + seconds):
            for (sock, place), to in itertools.product(ways, {port, PORT}):
                with contextlib.suppress(OSError):
                    sock.sendto(chatproto.encode_question(token), (place[0], to, *place[1:]))
            for data, sender in _datagrams(selector, until):
                answer = chatproto.decode_answer(data, token)
                if answer is None or answer.tls:
                    continue
                found = Found(_host_of(sender), answer.port, answer.name, answer.here)
                # A server is heard over each of its addresses.
                key = answer.id or (answer.name, answer.port)
                best[key] = min(best.get(key, found), found, key=_unhandiness)
    return sorted(best.values(), key=lambda found: (found.name.casefold(), found.host))


def _ways(hosts: "Sequence[str]") -> "Iterator[tuple[socket.socket, tuple[Any, ...]]]":
    """Sockets, and where to ask with them: host, and for IPv6 what follows the port."""
    if hosts:
        for host in hosts:
            with contextlib.suppress(OSError, UnicodeError):
                for family, _, _, _, to in socket.getaddrinfo(host, PORT, type=socket.SOCK_DGRAM):
                    yield socket.socket(family, socket.SOCK_DGRAM), (to[0], *to[2:])
        return
    yield socket.socket(socket.AF_INET, socket.SOCK_DGRAM), ("127.0.0.1",)
    interfaces = {(each.number, each.parsed.version) for each in chatproto.own_addresses()}
    for number, version in sorted(interfaces):
        with contextlib.suppress(OSError):
            sock = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6,
                                 socket.SOCK_DGRAM)
            try:
                chatproto.aim(sock, number)
            except OSError:
                sock.close()
                continue
            places: "list[tuple[Any, ...]]" = [(chatproto.BROADCAST,), (chatproto.GROUP4,)]
            for place in places if version == 4 else [(chatproto.GROUP6, 0, number)]:
                yield sock, place


def _datagrams(selector: selectors.BaseSelector, until: float) -> "Iterator[tuple[bytes, Any]]":
    """What comes until then, and from whom."""
    while True:
        left = until - time.monotonic()
        if left <= 0:
            return
        for key, _ in selector.select(left):
            # On Windows an error may say that an earlier question found no port.
            with contextlib.suppress(OSError):
                yield key.data.recvfrom(2 * chatproto.QUESTION_SIZE)


def _host_of(sender: Any) -> str:
    """The host of a sender: a link-local address of IPv6 needs the interface's number."""
    return f"{sender[0]}%{sender[3]}" if len(sender) == 4 and sender[3] else str(sender[0])


def _unhandiness(found: Found) -> "tuple[bool, bool, bool]":
    """Of several addresses of one server the loopback comes first, then IPv4."""
    return "%" in found.host, ":" in found.host, not found.host.startswith("127.")


def choose_server() -> "tuple[str, int]":
    """The server of this LAN: the only one that answers, else the one that the user chooses.

    Raises LookupError, whose text says what to do.
    """
    until = time.monotonic() + START_PATIENCE
    while True:
        servers = find_servers()
        # One that keeps quiet may run on this machine.
        if not servers and _listens("localhost", PORT):
            return "localhost", PORT
        if servers or time.monotonic() >= until:
            break
    if len(servers) == 1:
        return servers[0].host, servers[0].port
    if not servers:
        raise LookupError("no chat server answers on this LAN: is one running? If it is, say "
                          "where: chat_client.py HOST PORT, as the server printed it")
    if sys.stdin is None or not sys.stdin.isatty() or not sys.stdout.isatty():
        raise LookupError(f"{len(servers)} chat servers answer, say which one: "
                          + ", ".join(map(str, servers)))
    return _ask_which(servers)


def _listens(host: str, port: int) -> bool:
    """Whether anything accepts connections there."""
    try:
        socket.create_connection((host, port), 1).close()
        return True
    except OSError:
        return False


def _ask_which(servers: "list[Found]") -> "tuple[str, int]":
    print("Chat servers on this LAN:")
    for number, server in enumerate(servers, 1):
        print(f"  {number}  {escape(str(server))}")
    while True:
        try:
            line = input(f"Which one (1 to {len(servers)})? ").strip()
        except EOFError:
            raise LookupError("none was chosen") from None
        if re.fullmatch("[0-9]{1,4}", line) and 1 <= int(line) <= len(servers):
            server = servers[int(line) - 1]
            return server.host, server.port


def parse_where(words: "Sequence[str]") -> "tuple[str, int]":
    """Host and port from what was typed; host "" asks the LAN. Raises ValueError: what to do."""
    if not words:
        return "", PORT
    first, second, third = (*words, "", "")[:3]
    if third:
        raise ValueError(f"{third} is one too many; a name for yourself goes with -n: "
                         f"chat_client.py {first} {second} -n {third}")
    if first.isascii() and first.isdecimal():
        if second:
            raise ValueError(f"HOST comes before PORT: chat_client.py {second} {first}")
        return "localhost", _port_of(first)
    host, port = _split(first)
    if second and not (second.isascii() and second.isdecimal()):
        raise ValueError(f"{second} is no port, that is a number from 1 to 65535; a name for "
                         f"yourself goes with -n: chat_client.py {first} -n {second}")
    if second and port and int(port) != int(second):
        raise ValueError(f"port {port} or {second}? Say one")
    return host, _port_of(port or second or str(PORT))


def _port_of(text: str) -> int:
    if not 1 <= int(text[:6]) <= 65_535:
        raise ValueError(f"{text} is no port, that is a number from 1 to 65535")
    return int(text)


def _split(where: str) -> "tuple[str, str]":
    """Host and port ("" for none) from host, host:port, [IPv6]:port, IPv6 or a URL."""
    scheme, _, rest = where.rpartition("://")
    rest = rest.partition("/")[0]
    if rest.count(":") > 1 and not rest.startswith("["):
        return rest, ""
    found = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\[\]:]+))(?::([0-9]{1,6}))?", rest)
    if found is None:
        raise ValueError(f"{where} names no server: HOST, HOST PORT, HOST:PORT or "
                         "http://HOST:PORT/ does")
    ports = {"http": "80", "https": "443"}
    return found[1] or found[2], found[3] or ports.get(scheme.lower(), "")


# --- main ---

def complain(what: str) -> None:
    """One line on stderr, whatever a peer put into it."""
    try:
        sys.stderr.write(f"chat_client: {escape(what)}\n")
        sys.stderr.flush()
    except (OSError, AttributeError):
        # stderr is gone, or never was.
        pass


def login_name() -> str:
    """The login name as far as it can be a name here."""
    try:
        login = getpass.getuser()
    except (OSError, KeyError, ImportError):
        # The system knows no such user.
        login = ""
    login = "".join(char for char in login if char.isalnum() or char in "_-.")[:MAX_NAME]
    try:
        return chatproto.check_name(login)
    except ProtocolError:
        return "guest"


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that answers a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """End the program."""
        complain(f"{message} (--help says what there is)")
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        usage="%(prog)s [HOST] [PORT] [-n NAME] [--plain] [--json] [--bell WHEN]\n"
              "                      [--timeout SECONDS] [--version] [-h]",
        description="A client of Roger, a LAN chat that is copied, not installed.",
        epilog="""When stdin is a pipe each line is a message, and the exit code is 0 only when
        all were acknowledged. Exit codes: 0 all well, 1 cannot connect or deliver, 2 usage, 130
        interrupted.""")
    add = parser.add_argument
    # What was typed is taken for what it means: see parse_where().
    add("where", nargs="*", metavar="HOST PORT",
        help=f"the server: HOST, HOST PORT ({PORT} without), HOST:PORT, http://HOST:PORT/; a "
             "number alone is a port of this machine, and nothing asks the LAN who is there")
    add("-n", "--name", default=login_name(), metavar="NAME",
        help="default: the login name (%(default)s)")
    add("--plain", action="store_true", help="no screen control: a line a message")
    add("--json", action="store_true", help="print the frames as they come, for scripts")
    add("--bell", choices=["off", "mentions", "all"], default="mentions",
        help="ring for nothing, for your name and private messages, or for all "
             "(default %(default)s)")
    add("--timeout", type=float, default=30.0, metavar="SECONDS",
        help="wait so long for the connection, and at the end for an ACK (default %(default)g)")
    add("--version", action="version", version=f"Roger {chatproto.__version__}")
    return parser


def _arguments(argv: "Optional[list[str]]") -> argparse.Namespace:
    """The options, with `host` ("" asks the LAN) and `port`."""
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)
    try:
        arguments.host, arguments.port = parse_where(arguments.where)
    except ValueError as error:
        parser.error(str(error))
    if not 0 < arguments.timeout <= 86_400:
        parser.error("the time-out is a number of seconds, at most a day")
    try:
        chatproto.check_name(arguments.name)
    except ProtocolError as error:
        parser.error(f"-n {arguments.name}: {error}")
    return arguments


def _use_utf8() -> None:
    """What we print is UTF-8: also into a pipe on Windows, where Python would take cp1252.

    A terminal keeps its encoding, and shows a letter that it does not have as its code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = None if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def main(argv: "Optional[list[str]]" = None) -> int:
    """Run the client; return the exit code."""
    _use_utf8()
    arguments = _arguments(argv)
    interface = None
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if not arguments.host:
            arguments.host, arguments.port = choose_server()
        terminal = WindowsTerminal() if os.name == "nt" else Terminal()
        screen = takes_screen(arguments)
        interface = Window(arguments, terminal) if screen else Plain(arguments)
        code = interface.run()
    except LookupError as error:
        complain(str(error))
        code = 1
    except KeyboardInterrupt:
        code = 130
    if interface is not None and interface.killed_by not in (0, signal.SIGINT):
        end_by(interface.killed_by)
    try:
        sys.stdout.flush()
    except (OSError, AttributeError):
        # Else Python complains when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


if __name__ == "__main__":
    sys.exit(main())
