#!/usr/bin/env python3
"""chat_client: the client role of Roger, a LAN chat in which every message is acknowledged.

    python chat_client.py host 8087                         in a terminal
    make 2>&1 | python chat_client.py host 8087 -n ci       in a pipe: each line is a message, exits 0 when all were acknowledged

The protocol and its promises are in chatproto's docstring. The parts, bottom up:

    Said            something this client said, and what became of it: sending, there, heard by n of m, failed, unknown
    ClientSession   one person's side of the chat: no socket, no thread, no printing
    ChatClient      the same with a connection that heals by itself; bots and tests import this one
    Plain           lines in, lines out: the interface in a pipe and in any terminal

A bot:
    client = ChatClient("host", 8087, "bot", on_message=lambda message: ...)
    client.connect()
    client.say("hello")
    client.close()

Threads: "client" (connects, reads, reconnects; it runs every callback), "alarm" (chatproto.Alarm's timer), "stdin" (reads
lines for main) and the main thread. Locks: ClientSession has one, described there; a leaf but for MessageManager's lock.
"""

from __future__ import annotations

import argparse
import getpass
import os
import queue
import random
import socket
import sys
import threading
import time
from typing import Any, Callable, Optional

import chatproto
from chatproto import (FROM_SERVER, MAX_NAME, MAX_TEXT, PORT, Ack, Alarm, Booted, Chat, ConnectionClosed, Error, FrameDecoder,
                       Heard, Invalid, Join, Joined, Leave, Left, Message, MessageManager, MessageSocket, PendingMessage, Ping,
                       ProtocolError, Rename, Renamed, Say, Unknown, Welcome, clean_text, escape, name_key)

SENDING, THERE, FAILED, UNKNOWN = "sending", "there", "failed", "not confirmed"     # the states of what was said

CONNECT_TIMEOUT = 10.0          # seconds for a connection, and then for its welcome
LONGEST_DELAY = 30.0            # seconds between two tries to connect
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
    on_state(said).
    """

    def __init__(self, name: str, alarm: Alarm, *, receipts: bool = True,
                 on_dead: Callable[[], None] = lambda: None,
                 on_welcome: Callable[[Welcome], None] = lambda welcome: None,
                 on_message: Callable[[Message], None] = lambda message: None,
                 on_state: Callable[[Said], None] = lambda said: None) -> None:
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
        self._session: Optional[str] = None
        self._epoch: Optional[str] = None
        self.wanted = name                     # what we ask for: another one may be all that is free for now
        self._names = {name}                    # those we have had in this session: our own messages come from one of them
        self._decoder = FrameDecoder(FROM_SERVER)
        self._write: Callable[[bytes], None] = lambda data: None
        self.list_as_of = 0                    # the newest id that the list of users in the welcome takes into account
        self._places: "dict[int, Said]" = {}    # id of a chat of ours -> what was said
        # Protects the three below, and keeps frames in the order of their ids: so the manager's lock is taken
        # inside it. Waiters for fewer unsettled ones are notified through it.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._last_id = 0                       # the newest id that we gave
        self.unsettled: "dict[int, Said]" = {}  # what was said and is neither there nor failed, in order
        self._unplaced: "dict[int, Said]" = {}  # what was said and has not come back in its place, by our id
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

    def leave(self) -> None:
        """Say that we go on purpose."""
        with self._lock:
            self._number(Leave(self._last_id + 1))

    def _ping(self) -> None:
        """On the alarm's thread."""
        with self._lock:
            self._number(Ping(self._last_id + 1))

    def _number(self, message: Message) -> None:
        """Send a numbered message. Needs the lock."""
        assert self._lock.locked()
        self.manager.send(PendingMessage([message.id], [message.encode()]))
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
            if isinstance(message, Ack):
                self.manager.acknowledged(message.upto)
                self._settle(message.upto)
            elif isinstance(message, Welcome):
                self._welcomed(message)
            elif not self.joined:
                if isinstance(message, Error) and message.code != "flooding":
                    raise JoinRefused(message)
            elif not message.id:
                self._bare(message)
            elif self.manager.is_duplicate(message.id):
                self.manager.received(message.id)
            else:
                self._numbered(message)
                self.manager.received(message.id, len(self.last_frame))     # after its work is done: then it is confirmed
                if isinstance(message, Booted):
                    raise ConnectionClosed(f"you were booted: {message.reason}" if message.reason else "you were booted")

    def closed(self) -> None:
        """The connection is gone; what is not confirmed is kept for the next one."""
        self.joined = False
        self.manager.detach()

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

    def _bare(self, message: Message) -> None:
        if isinstance(message, Heard) and message.about in self._places:
            said = self._places[message.about]
            said.heard, said.of = message.count, message.of
            self._on_state(said)

    def _numbered(self, message: Message) -> None:
        if isinstance(message, Chat) and message.cid and message.sender in self._names and message.id > self.history_until:
            self._own(message, message.cid)
        elif isinstance(message, Error) and message.about:
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
            self.ended = f"{self._where} does not answer"
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
    def _where(self) -> str:
        return f"{self._host}:{self._port}"

    def _cut(self) -> None:
        """Any thread: end the connection of now."""
        wire = self._wire
        if wire is not None:
            wire.cut()

    # On the client's thread

    def _run(self) -> None:
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
        self._first.set()

    def _converse(self) -> str:
        """One connection from its start to its end; return why it ended. Raises JoinRefused."""
        self._was_joined = False
        try:
            sock = socket.create_connection((self._host, self._port), CONNECT_TIMEOUT)
        except (OSError, UnicodeError) as error:        # UnicodeError: a host name that cannot be one
            return f"cannot connect to {self._where}: {getattr(error, 'strerror', None) or error}"
        sock.settimeout(None)
        wire = self._wire = MessageSocket(sock)
        try:
            if self._closing.is_set():
                return "closing"
            self.opened(wire.write)
            until = time.monotonic() + CONNECT_TIMEOUT
            while True:
                data = wire.read(None if self.joined else max(0.0, until - time.monotonic()))
                if not data:
                    return f"{self._where} does not answer"
                self._receive(data, wire)
                if self.joined:
                    self._was_joined = True
                    self._first.set()
        except (ConnectionClosed, ProtocolError) as end:
            return str(end)
        finally:
            self.closed()
            self._wire = None
            wire.close()

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


# --- Lines out ---

class Formatter:
    """Turns what a client hears into lines for a terminal or a pipe, everything from peers escaped."""

    def __init__(self, client: ClientSession) -> None:
        self._client = client
        self._day = ""                  # of the last line
        self._in_history = False
        self.ignored: "set[str]" = set()            # name_keys
        self.quiet = False                          # hide joins and leaves
        self.timestamps = True

    def lines(self, message: Message) -> "list[str]":
        """The lines for a message; none for one that is hidden."""
        if isinstance(message, Chat):
            lines = [] if name_key(message.sender) in self.ignored else self._chat(message)
        else:
            lines = self._event(message)
        if not lines:
            return []
        at = getattr(message, "at", None)
        return self._marks(message.id <= self._client.history_until, at) + lines

    def _marks(self, is_history: bool, at: Optional[float]) -> "list[str]":
        marks = []
        if is_history != self._in_history:
            self._in_history = is_history
            marks.append("-- said before you came --" if is_history else "-- now --")
        day = time.strftime("%A, %d %B %Y", _local(at)) if at is not None else self._day
        if day != self._day:
            if self._day:
                marks.append(f"-- {day} --")
            self._day = day
        return marks

    def _chat(self, chat: Chat) -> "list[str]":
        sender = escape(chat.sender)
        if chat.to is not None:
            sender += f" -> {escape(chat.to)}"
        text, head = chat.text, f"{sender}: "
        if text.startswith("/me "):
            text, head = text[4:], f"* {sender} "
        if self.timestamps and not head.startswith("*"):
            head = time.strftime("%H:%M ", _local(chat.at)) + head
        first, *more = text.split("\n")
        # What follows is indented: a second line cannot pass for another speaker's.
        return [head + _show(first)] + ["      " + _show(line) for line in more]

    def _event(self, message: Message) -> "list[str]":
        if isinstance(message, Joined):
            return [] if self.quiet else [f"* {escape(message.name)} joined{self._here(message)}"]
        if isinstance(message, Left):
            how = f"was {escape(message.reason)}" if message.reason.startswith("booted") else f"left ({escape(message.reason)})"
            return [] if self.quiet else [f"* {escape(message.name)} {how}"]
        if isinstance(message, Renamed):
            return [f"* {escape(message.name)} is now {escape(message.to)}"]
        if isinstance(message, Booted):
            return [f"* you were booted: {escape(message.reason)}" if message.reason else "* you were booted"]
        if isinstance(message, Error) and not message.about:
            return [f"! {escape(message.text or message.code)}"]
        if isinstance(message, Error):
            return [f"! refused: {escape(message.text or message.code)}"]
        return []

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


# --- The plain interface ---

class Plain:
    """Lines in, lines out, nothing repainted: for pipes, dumb terminals and screen readers."""

    END = None                          # in the queue of lines: there are no more

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._is_pipe = sys.stdin is None or not sys.stdin.isatty()
        self._lines: "queue.Queue[Optional[str]]" = queue.Queue(100)    # from stdin; its reader waits when it is full
        self._not_delivered: "list[Said]" = []
        self.motd: Optional[str] = None
        self.last_private = ""         # who wrote to us privately last, for /reply
        self._broken = False            # stdout is gone: say what there is to say, show nothing
        self._welcomed = False
        self._no_more = False           # /quit was typed
        self._unread = 0                # lines of a pipe that were not sent because one gave up
        self._ended = ""                # why the client ended by itself
        self.client = ChatClient(arguments.host, arguments.port, arguments.name, receipts=False, on_welcome=self._on_welcome,
                                 on_message=self._on_message, on_state=self._on_state, on_lost=self._on_lost, on_end=self._on_end)
        self.formatter = Formatter(self.client)
        self.commands = Commands(self)

    def run(self) -> int:
        """Chat until the lines end or the server does not want us; return the exit code."""
        try:
            self.client.connect(self._arguments.timeout)
        except ConnectionError as error:
            complain(str(error))
            return 1
        threading.Thread(target=self._read_stdin, name="stdin", daemon=True).start()
        code = 0
        try:
            self._take_lines()
        except KeyboardInterrupt:
            code = 130
        try:
            self.client.close(0 if code else self._arguments.timeout)
        except KeyboardInterrupt:
            code = 130
            self.client.close()
        for said in self._not_delivered:
            complain(f"{said.state if said.state == UNKNOWN else 'not delivered'}: {_short(said)}"
                     + (f" ({said.reason})" if said.reason else ""))
        if self._ended:
            complain(self._ended + self._rest())
        return code or (1 if self._not_delivered or self._ended else 0)

    def show(self, line: str) -> None:
        """Print a line that is safe to print. Any thread."""
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

    def _take_lines(self) -> None:
        while not self._no_more and not self._ended:
            try:
                line = self._lines.get(timeout=1)       # without a time-out Ctrl-C would not be heard on Windows
            except queue.Empty:
                continue
            if line is self.END:
                return
            if self._is_pipe:
                self.say(line)                          # a build log has lines that begin with a slash
            else:
                self.commands.run(line)

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

    def say(self, line: str, to: Optional[str] = None) -> None:
        """Say a line, cleaned, in several messages where it is too long for one; a line without text is none."""
        text = clean_text(line)
        for start in range(0, len(text) if text.strip() else 0, MAX_TEXT):
            if not self._say_piece(text[start:start + MAX_TEXT], to):
                return

    def _say_piece(self, text: str, to: Optional[str]) -> bool:
        """Say a piece of a line; in a pipe wait while too much is unsettled. False when it cannot be said."""
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
        if self._is_pipe:
            return
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

    def _on_message(self, message: Message) -> None:
        if self._arguments.json:
            self.show(self.client.last_frame.decode("utf-8", "replace"))
            return
        if isinstance(message, Chat):
            own = name_key(message.sender) == name_key(self.client.name)
            if message.to is not None and not own:
                self.last_private = message.sender
            if self._is_pipe and (own or message.id <= self.client.history_until):
                return
        if isinstance(message, Error) and message.about and self._is_pipe:
            return                                      # named at the end
        for line in self.formatter.lines(message):
            self.show(line)

    def _on_state(self, said: Said) -> None:
        if said.state in (FAILED, UNKNOWN):
            self._not_delivered.append(said)

    def _on_lost(self, why: str, seconds: float) -> None:
        if not self._is_pipe:
            self.show(f"! disconnected ({escape(why)}), trying again in {seconds:.0f} s; what you say is sent then")

    def _on_end(self, why: str) -> None:
        self._ended = why
        try:
            self._lines.put_nowait(self.END)            # wakes the main thread
        except queue.Full:
            pass                                        # it is awake


class Commands:
    """What a line that begins with a slash does. /help is written from the docstrings."""

    def __init__(self, ui: Plain) -> None:
        self._ui = ui
        self._table = {"/nick": self.nick, "/me": self.me, "/msg": self.msg, "/w": self.msg,
                       "/reply": self.reply, "/r": self.reply, "/names": self.names, "/users": self.names, "/ignore": self.ignore, "/unignore": self.unignore,
                       "/quiet": self.quiet, "/timestamp": self.timestamp, "/motd": self.motd, "/clear": self.clear,
                       "/help": self.help, "/quit": self.quit, "/exit": self.quit}

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

    def help(self, rest: str) -> None:
        """/help: this list"""
        for command in dict.fromkeys(self._table.values()):
            self._ui.show((command.__doc__ or "").strip())
        self._ui.show("//TEXT: say /TEXT")

    def quit(self, rest: str) -> None:
        """/quit (/exit): leave"""
        self._ui.quit()


# --- main ---

def complain(what: str) -> None:
    """One line on stderr, whatever a peer put into it."""
    try:
        sys.stderr.write(f"chat_client: {escape(what)}\n")
        sys.stderr.flush()
    except (OSError, AttributeError):                   # stderr is gone, or never was
        pass


def login_name() -> str:
    """The login name as far as it can be a name here."""
    try:
        login = getpass.getuser()
    except (OSError, KeyError, ImportError):            # no such user in the system
        login = ""
    login = "".join(char for char in login if char.isalnum() or char in "_-.")[:MAX_NAME]
    try:
        return chatproto.check_name(login)
    except ProtocolError:
        return "guest"


def _arguments(argv: "Optional[list[str]]") -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A client of Roger, a LAN chat that is copied, not installed.", epilog="""
        When stdin is a pipe each line is a message, and the exit code is 0 only when all were acknowledged. Exit codes:
        0 all well, 1 cannot connect or deliver, 2 usage, 130 interrupted.""")
    parser.add_argument("host", nargs="?", default="localhost", metavar="HOST", help="default localhost")
    parser.add_argument("port", nargs="?", type=int, default=PORT, metavar="PORT", help=f"default {PORT}")
    parser.add_argument("-n", "--name", default=login_name(), metavar="NAME", help="default: the login name (%(default)s)")
    parser.add_argument("--plain", action="store_true", help="no screen control: a line a message")
    parser.add_argument("--json", action="store_true", help="print the frames as they come, for scripts")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS",
                        help="wait so long for the connection, and at the end for an ACK (default %(default)g)")
    parser.add_argument("--version", action="version", version=f"Roger {chatproto.__version__}")
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.port <= 65_535:
        parser.error(f"{arguments.port} is no port (1 to 65535)")
    if not 0 < arguments.timeout <= 86_400:
        parser.error("the time-out is a number of seconds, at most a day")
    try:
        chatproto.check_name(arguments.name)
    except ProtocolError as error:
        parser.error(f"{escape(arguments.name)}: {error}")
    return arguments


def main(argv: "Optional[list[str]]" = None) -> int:
    """Run the client; return the exit code."""
    arguments = _arguments(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")       # a terminal that cannot show a letter shows its code
    try:
        code = Plain(arguments).run()
    except KeyboardInterrupt:
        code = 130
    try:
        sys.stdout.flush()
    except (OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)            # else Python complains when it flushes at the end
    return code


if __name__ == "__main__":
    sys.exit(main())
