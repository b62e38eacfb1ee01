#!/usr/bin/env python3
# -*- coding: utf-8 -*-
"""chat_client: the client role of Roger, a LAN chat in which every message is acknowledged.

    python chat_client.py host 8087                         in a terminal
    make 2>&1 | python chat_client.py host 8087 -n ci       in a pipe: each line is a message, and
                                                            it exits 0 when all were acknowledged

The protocol and its promises are in chatproto's docstring. The parts, bottom up:

    Said            something this client said, and what became of it: sending, there, heard by n of
                    m, failed, unknown
    Sayings         all of that, and the log that the server reads it from
    ClientSession   one person's side of the chat: no socket, no thread, no printing
    Server          where it is, how connections to it are encrypted, and which key is trusted
    ChatClient      the same with a connection that heals by itself; bots and tests import this one
    Courier         a file on its way up or down, over breaks, by HTTP connections of its own
    Settings, KeptSession           what outlives a run: choices, and the session of a terminal
    Formatter       what is heard -> Entries, lines of spans that are safe to show
    Columns         how wide a text is on this terminal
    Keys, Editor    bytes from a terminal -> keys -> the line that is typed
    Screen          what is on the terminal, row by row: what was said, one status line, the line
                    that is typed
    Terminal        the only one that touches the terminal: raw mode and back, whatever happens
    Plain           lines in, lines out: in a pipe, on a dumb terminal, for a screen reader
    Window          in a terminal: nothing that comes in touches the line that is typed
    Commands        what both do on a line that begins with a slash
    parse_where, find_servers       which server was meant, and which ones answer on this LAN

A bot:
    client = ChatClient("host", 8087, "bot", on_message=lambda message: ...)
    client.connect()
    client.say("hello")
    client.send_file("plan.pdf")                        # and fetch(message.file, "folder")
    client.close()

Threads: "client" (connects, reads, reconnects; it runs every callback), "alarm" (chatproto.Alarm's
timer), "close" (a close() that a callback asked for), "file" (one for each /send and /get), "stdin"
or "keys" (reads for main) and the main thread, which alone writes to the terminal while there is a
Window.
Locks: Sayings has one, described there.
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

import abc
import argparse
import codecs
import contextlib
import dataclasses
import errno
import functools
import getpass
import hashlib
import inspect
import itertools
import json
import math
import os
import queue
import random
import re
import secrets
import select
import socket
import stat
import threading
import time
import unicodedata
import urllib.parse
import zlib
from typing import (IO, Any, Callable, Iterable, Iterator, List, NamedTuple, Optional,
                    Sequence, Tuple, TypeVar, Union)

try:
    import ssl
except ImportError:
    # A Python that was built without it: everything but --tls works.
    ssl = None  # type: ignore[assignment]

try:
    import chatproto
except ModuleNotFoundError as error:
    if error.name != "chatproto":
        raise
    sys.exit("chat_client: chatproto.py is missing: copy it into the same folder as chat_client.py")
from chatproto import (FROM_SERVER, MAX_FIND, MAX_ID, MAX_NAME, MAX_TEXT, PORT, Ack, Alarm, Booted,
                       Chat, ConnectionClosed, Error, FrameDecoder, Heard, Invalid, Join, Joined,
                       Leave, Left, Message, MessageManager, MessageQueue, MessageSocket, Motd,
                       News, Ping, ProtocolError, Recall, Recalled, Removed, Rename, Renamed, Rules,
                       Say, SecureSocket, Unknown, Welcome, clean_text, escape, name_key)

# The states of what was said.
SENDING, THERE, FAILED, UNKNOWN = "sending", "there", "failed", "not confirmed"

# Seconds for a connection, and then for its welcome.
CONNECT_TIMEOUT = 10.0
# Seconds that the first try waits for a server that is about to start.
START_PATIENCE = 5.0
# Seconds between two tries to connect, at most.
LONGEST_DELAY = 30.0
# Seconds for the server to end the connection after `leave`.
LEAVE_TIMEOUT = 1.0
# Answers to a join that will not change by trying again.
HOPELESS = ("banned", "bad-version", "bad-name", "password")
# Messages, or bytes of them, that may wait for their ACK; then say() raises queue.Full.
UNSENT = 10_000
UNSENT_BYTES = 8 * 1024 * 1024
# In a pipe reading stops at so many, until some are acknowledged.
UNSENT_PIPE = 1_000
# Own messages whose `heard` is still looked at; then the oldest is forgotten.
PLACES = 1_000
# So many ids after the newest that the server confirms may be taken in a session that another
# process of ours had: more than the frames that it can have had under way.
UNKNOWN_IDS = 1_000


class Ticket(NamedTuple):
    """What the next process needs to go on with a session: its secret, which run of ids it is of,
    the newest id that was seen, and whether the secret went over TLS, and so may not go
    otherwise."""

    session: str
    epoch: str
    seen: int
    tls: bool = False


class JoinRefused(ConnectionError):
    """The server does not let us in: `error` says why."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.text or error.code)
        self.error = error


class PasswordWanted(JoinRefused):
    """The server asks for a password, or ours is not the one."""


class Untrusted(ConnectionError):
    """The server's key is not the one that is trusted; or none is yet, where it `is_new`."""

    def __init__(self, where: str, key: str, trusted: str) -> None:
        self.key = key
        self.is_new = not trusted
        super().__init__(
            f"{where} is not known yet: its key is {key}. If the server printed the same, come "
            f"with --trust {key}" if self.is_new else
            f"{where} has another key than before: {key}, not {trusted}. It was set up anew, or "
            f"somebody is in between: ask the host, and if it is right, come with --trust {key}")


class ComeAgain(Exception):
    """The same server is to be connected to once more, in another way."""


def _put_newest(table: "dict[Any, Any]", key: Any, value: Any, most: int) -> None:
    """Put something into a table that forgets its oldest where there are more than so many."""
    table[key] = value
    if len(table) > most:
        del table[next(iter(table))]


# --- One person's side of the chat ---

@dataclasses.dataclass(eq=False)
class Said:
    """Something this client said. Its state only goes forward: from sending to there or failed;
    unknown when one gave up."""

    # Ours: the `cid` of its chat.
    id: int
    text: str
    # The recipient of a private message.
    to: Optional[str]
    # What it hands out.
    file: "Optional[dict[str, Any]]" = None
    state: str = SENDING
    # Why it failed, and as which error.
    reason: str = ""
    code: str = ""
    # The server's id, once its chat has come back in its place in the order.
    place: int = 0
    # How many members have acknowledged it, of so many.
    heard: int = 0
    of: int = 0


# A request for older messages, and what takes the answer: None where the server keeps none, or
# cannot search.
Answered = Callable[[Optional[Recalled]], None]
Request = Tuple[Recall, Answered]


class Callbacks(NamedTuple):
    """What a ClientSession calls on the thread that reads. on_lost(why, seconds) and on_end(why)
    are a ChatClient's."""

    on_welcome: Callable[[Welcome], None] = lambda welcome: None
    on_message: Callable[[Message], None] = lambda message: None
    on_state: Callable[[Said], None] = lambda said: None
    on_lost: Callable[[str, float], None] = lambda why, seconds: None
    on_end: Callable[[str], None] = lambda why: None


class Sayings:
    """What this client says and what became of it: the log that the connection of now reads, and
    beside it each message by its id. Any thread may call, and but for wait_settled() none blocks.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # Protects all below; inside it the log's lock is taken. Who waits for fewer unsettled
        # messages is notified through it whenever there are, and only then.
        self._changed = threading.Condition(threading.Lock())
        # What the server has not acknowledged, and the newest id that was given.
        self.log = MessageQueue()
        self.last_id = 0
        # What was said by its id, in order, while it is unsettled or has not come back in its
        # place; and then, of the newest PLACES, by that place.
        self._said: "dict[int, Said]" = {}
        self._places: "dict[int, Said]" = {}
        # Why nothing can be said any more.
        self._over = ""

    def add(self, make: Callable[[int], Message], said: Optional[Said] = None,
            exempt: bool = False) -> Optional[News]:
        """Put a message into the log, made with the next id, and remember what was `said` in it.
        Raises queue.Full, and ConnectionError after the end, unless it is exempt."""
        with self._changed:
            if self._over and not exempt:
                raise ConnectionError(self._over)
            if not exempt and (len(self.log) >= UNSENT or self.log.size >= UNSENT_BYTES):
                raise queue.Full
            self.last_id += 1
            message = make(self.last_id)
            if said is not None:
                said.id = message.id
                self._said[message.id] = said
            self.log.append(message.id, message.encode())
            return self.log.publish(message.id, self._clock())

    def next_id(self) -> int:
        """An id for what is not in the log: a ping."""
        with self._changed:
            self.last_id += 1
            return self.last_id

    @property
    def unsettled(self) -> "list[Said]":
        """What is neither there nor failed, in order."""
        with self._changed:
            return [said for said in self._said.values() if said.state in (SENDING, UNKNOWN)]

    def at(self, place: int) -> Optional[Said]:
        """What has that place in the order; None where it is another's, or long ago."""
        return self._places.get(place)

    def skip_ids(self, upto: int) -> None:
        """Another process of ours may have said something under any id up to this."""
        with self._changed:
            self.last_id = upto
            self.log.forget(upto)

    def settle(self, upto: int) -> "list[Said]":
        """The server acknowledges up to an id: return what is there now."""
        there = []
        with self._changed:
            for id in range(self.log.start + 1, upto + 1):
                said = self._said.get(id)
                if said is not None and said.state == SENDING:
                    said.state = THERE
                    there.append(said)
                    if said.place:
                        del self._said[id]
            self.log.forget(upto)
            if there:
                self._changed.notify_all()
        return there

    def fail(self, id: int, reason: str, code: str) -> "list[Said]":
        """The server refuses what was sent under `id`: return what it was."""
        with self._changed:
            said = self._said.get(id)
            if said is None or said.state != SENDING:
                return []
            del self._said[id]
            said.state, said.reason, said.code = FAILED, reason, code
            self._changed.notify_all()
        return [said]

    def came_back(self, place: int, id: int) -> None:
        """Our own message has come at its place in the order."""
        with self._changed:
            said = self._said.get(id)
            if said is None or said.place:
                return
            said.place = place
            _put_newest(self._places, place, said, PLACES)
            if said.state == THERE:
                del self._said[id]

    def forget_places(self) -> None:
        """The ids of the server begin anew: they say no more who had a name when a private message
        was typed, so those that wait are to be refused where they could reach another person."""
        with self._changed:
            self._places.clear()
            for said in self._said.values():
                said.place = 0
            self.log.replace({
                said.id: Say(said.id, said.text, said.to, 0, said.file).encode()
                for said in self._said.values() if said.to is not None and said.state == SENDING})

    def without_place(self, forget: bool) -> "list[Said]":
        """What is there and has not come back; with `forget` it may come back as anybody's."""
        with self._changed:
            there = [said for said in self._said.values()
                     if said.state == THERE and not said.place]
            for said in there if forget else ():
                del self._said[said.id]
        return there

    def end(self, why: str) -> None:
        """Nothing more can be said."""
        with self._changed:
            self._over = self._over or why

    def give_up(self) -> "list[Said]":
        """Nothing is waited for any more: return what stays unknown."""
        with self._changed:
            unknown = [said for said in self._said.values() if said.state == SENDING]
            for said in unknown:
                said.state = UNKNOWN
            self._changed.notify_all()
        return unknown

    def wait_settled(self, at_most: int, seconds: float) -> bool:
        """Wait until at most so many are unsettled; False when nothing changed for `seconds`, or
        one gave up."""
        with self._changed:
            while True:
                states = [said.state for said in self._said.values()]
                if UNKNOWN in states:
                    return False
                if states.count(SENDING) <= at_most:
                    return True
                if not self._changed.wait(seconds):
                    return False


class ClientSession:
    """One person's side of the chat, over any number of connections.

    say() and the like may be called from any thread and do not block. opened(), received() and
    closed() are for the one thread that reads; it runs the callbacks: on_welcome(welcome),
    on_message(message) for what the server sends, on_state(said), and what recall() was given for
    its answer. An exception in one is told to threading.excepthook, and the next message comes all
    the same.
    """

    def __init__(self, name: str, alarm: Alarm, *, receipts: bool = True,
                 **callbacks: Callable[..., None]) -> None:
        self.name = name
        # What we ask for: another one may be all that is free for now.
        self.wanted = name
        # Those we have had in this session: our own messages come from one of them.
        self._names = {name}
        # Those in the room by name_key, in the order of coming; and how many there are: more in a
        # very large room.
        self.users: "dict[str, str]" = {}
        self.here = 0
        # The newest id that the list of users in the welcome takes into account.
        self.list_as_of = 0
        self._sayings = Sayings(alarm.clock)
        # Welcomed on the connection of now.
        self.joined = False
        # A message with an id up to this was said before we came.
        self.history_until = 0
        # The oldest message that was heard or recalled is not before this id.
        self.oldest: Optional[int] = None
        self._alarm = alarm
        self._receipts = receipts
        self._callbacks = Callbacks(**callbacks)
        # Our credential, and which run of ids it is of: "" before the first welcome.
        self.secret = self._epoch = ""
        self._decoder = FrameDecoder(FROM_SERVER)
        # Requests for older messages without an answer, and what takes it. A dict's own methods
        # are atomic.
        self._recalls: "dict[int, Request]" = {}
        self.manager = MessageManager(alarm, self._sayings.log, self, lambda data: None)

    # Speaking

    def say(self, text: str, to: Optional[str] = None,
            file: "Optional[dict[str, Any]]" = None) -> Said:
        """Say something, to all or to one, perhaps with a file that was uploaded (its "url").

        Raises ProtocolError for a bad text, queue.Full when UNSENT or UNSENT_BYTES wait already,
        ConnectionError after the end.
        """
        chatproto.check_text(text)
        said = Said(0, text, to, file)
        # Up to here we know who has that name: from the list of users, or from what came since.
        seen = max(self.manager.seen, self.list_as_of) if to else None
        self._send(lambda id: Say(id, text, to, seen, file), said)
        return said

    def rename(self, name: str) -> None:
        """Ask for another name; a `renamed` or an `error` answers. Raises ProtocolError for a bad
        name."""
        chatproto.check_name(name)
        self._send(lambda id: Rename(id, name))

    def recall(self, answered: Answered, count: int = 20, before: Optional[int] = None,
               find: Optional[str] = None) -> None:
        """Ask for `count` messages before the id `before`, or before the oldest that is known, with
        `find` for those that hold all its words; answered(answer) is called when it has come."""
        self._recall(Recall(0, self.oldest if before is None and find is None else before, count,
                            find), answered)

    @property
    def is_recalling(self) -> bool:
        """True while an answer to recall() is awaited."""
        return bool(self._recalls)

    def leave(self) -> None:
        """Say that we go on purpose."""
        self._send(Leave, exempt=True)

    def _recall(self, recall: Recall, answered: Answered, again: bool = False) -> None:
        def request(id: int) -> Recall:
            self._recalls[id] = dataclasses.replace(recall, id=id), answered
            return self._recalls[id][0]
        # One that is asked again may not fail because too much waits.
        self._send(request, exempt=again)

    def _send(self, make: Callable[[int], Message], said: Optional[Said] = None,
              exempt: bool = False) -> None:
        news = self._sayings.add(make, said, exempt)
        if news is not None:
            self.manager.wake(news)

    # For the MessageManager: chatproto.Peer

    def dead(self) -> None:
        """On the alarm's thread: the server acknowledges nothing any more. It is for who has the
        connection to end it."""

    def idle(self) -> None:
        """On the alarm's thread: it is time for a ping."""
        id = self._sayings.next_id()
        self.manager.ping(id, Ping(id).encode())

    def behind(self, retry: bool) -> None:
        """Never: the log begins with what the server has not acknowledged."""
        raise AssertionError("the server is behind the start of the log")

    # One connection after the other

    def opened(self, write: Callable[[bytes], None], name: str = "",
               password: Optional[str] = None) -> None:
        """There is a connection: ask to come in, or back ("reconnect"); under `name` where the
        server suggested one. A `password` is for what is encrypted alone."""
        seen = self.manager.seen
        self._decoder = FrameDecoder(FROM_SERVER)
        self.manager = MessageManager(self._alarm, self._sayings.log, self, write, seen=seen)
        write(Join(name or self.wanted or self.name, session=self.secret or None, seen=seen,
                   epoch=self._epoch or None, receipts=self._receipts,
                   password=password).encode())

    def received(self, data: bytes) -> None:
        """Take bytes of the server. Raises FrameError when it sends what is no frame, JoinRefused,
        and ConnectionClosed when we were booted."""
        for message in self._decoder.feed(data):
            if message.id and self.joined:
                self._take(message)
            elif isinstance(message, Welcome):
                self._welcomed(message)
            elif self.joined:
                self._take_bare(message)
            elif isinstance(message, Error) and message.code != "flooding":
                kind = PasswordWanted if message.code == "password" else JoinRefused
                raise kind(message)

    def closed(self) -> None:
        """The connection is gone; what is not acknowledged is kept for the next one."""
        self.joined = False
        self.manager.close()

    # What is known

    @property
    def last_frame(self) -> bytes:
        """The line of the message that a callback is called for."""
        return self._decoder.line

    @property
    def unsettled(self) -> "list[Said]":
        """What was said and is neither there nor failed, in order."""
        return self._sayings.unsettled

    def said_of(self, id: int) -> Optional[Said]:
        """What we said that has the place `id` in the order; None where it is another's, or long
        ago."""
        return self._sayings.at(id)

    def is_own(self, message: Message) -> bool:
        """True for what we said, even under a name that we had before."""
        return isinstance(message, Chat) and (name_key(message.sender) == name_key(self.name)
                                              or self.said_of(message.id) is not None)

    def forgotten(self, welcome: Welcome) -> "list[Said]":
        """For on_welcome: what the server has said to have, and may not send back at its place
        after this welcome."""
        if welcome.resumed and not welcome.missed:
            return []
        return self._sayings.without_place(forget=not welcome.resumed)

    def give_up(self, why: str = "the client was closed") -> None:
        """Nothing is waited for any more, and nothing can be said: what is not acknowledged stays
        unknown."""
        self._sayings.end(why)
        self._tell_states(self._sayings.give_up())

    def wait_settled(self, at_most: int, seconds: float) -> bool:
        """Wait until at most so many are unsettled; False when nothing changed for `seconds`, or
        one gave up."""
        return self._sayings.wait_settled(at_most, seconds)

    # What the server sends, on the reading thread

    def _call(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Run a callback. What it raises is told, and costs no other message."""
        try:
            callback(*arguments)
        except Exception as error:
            threading.excepthook(threading.ExceptHookArgs(
                (type(error), error, error.__traceback__, threading.current_thread())))

    def _tell_states(self, changed: "list[Said]") -> None:
        for said in changed:
            self._call(self._callbacks.on_state, said)

    def _welcomed(self, welcome: Welcome) -> None:
        seen = self.manager.seen
        if not welcome.resumed:
            self._names.clear()
            if welcome.epoch != self._epoch or welcome.last < seen:
                # Another run of ids.
                seen = 0
                self.oldest = None
                self._sayings.forget_places()
        elif not self._sayings.last_id:
            self._sayings.skip_ids(welcome.got + UNKNOWN_IDS)
        self.secret, self._epoch = welcome.session, welcome.epoch
        self.wanted = self.wanted or (welcome.name if welcome.resumed else self.name)
        self.name = welcome.name
        self._names.add(welcome.name)
        self.users = {name_key(name): name for name in welcome.users}
        self.here = len(welcome.users) if welcome.here is None else welcome.here
        self.list_as_of = welcome.last
        self.history_until = 0 if welcome.resumed else welcome.last
        self.joined = True
        self._tell_states(self._sayings.settle(min(welcome.got, self._sayings.last_id)))
        self._call(self._callbacks.on_welcome, welcome)
        self.manager.open(self._sayings.log.start, seen=seen)
        # Asked again under a new id: the answer may be lost, and an ACK that comes first is no
        # proof for the old one.
        for request, answered in self._answered(self._sayings.last_id):
            self._recall(request, answered, again=True)

    def _take(self, message: Message) -> None:
        """A numbered message: drop a duplicate, else do its work, and then confirm it."""
        if message.id > self.manager.seen:
            self._numbered(message)
            self.manager.processed(message.id, len(self.last_frame))
        else:
            self.manager.processed(message.id)
        if isinstance(message, Booted):
            self.secret = ""
            raise ConnectionClosed(f"you were booted: {message.reason}" if message.reason
                                   else "you were booted")

    def _take_bare(self, message: Message) -> None:
        if isinstance(message, Ack):
            self.manager.take_ack(message.upto)
            self._tell_states(self._sayings.settle(message.upto))
            # The answer comes before the ACK, if one comes.
            for _, answered in self._answered(message.upto):
                self._call(answered, None)
        elif isinstance(message, Recalled):
            self._recalled(message)
        elif isinstance(message, Heard):
            said = self.said_of(message.about)
            if said is not None:
                said.heard, said.of = message.count, message.of
                self._tell_states([said])

    def _recalled(self, answer: Recalled) -> None:
        if answer.about not in self._recalls:
            # It came before, or is nobody's.
            return
        request, answered = self._recalls.pop(answer.about)
        if request.find is None and request.before == self.oldest:
            self.oldest = answer.older or 1
        if request.find is not None and answer.find is None:
            # A server that can search repeats the words.
            self._call(answered, None)
        elif answer.older is not None and not answer.entries:
            self._recall(dataclasses.replace(request, before=answer.older), answered, again=True)
        else:
            self._call(answered, answer)

    def _answered(self, upto: int) -> "list[Request]":
        """Take the requests up to `upto` away."""
        return [self._recalls.pop(id) for id in list(self._recalls) if id <= upto]

    def _numbered(self, message: Message) -> None:
        # First: most are chats.
        if isinstance(message, Chat):
            if self.oldest is None:
                self.oldest = message.id
            if message.cid and message.sender in self._names and message.id > self.history_until:
                self._sayings.came_back(message.id, message.cid)
            self._call(self._callbacks.on_message, message)
            return
        if isinstance(message, Error) and message.about:
            self._tell_states(self._sayings.fail(message.about, message.text or message.code,
                                                 message.code))
        elif isinstance(message, Renamed):
            self._renamed(message)
        self._follow(message)
        if not isinstance(message, (Ping, Unknown, Invalid)):
            self._call(self._callbacks.on_message, message)

    def _follow(self, message: Message) -> None:
        """Who is in the room after a join, leave or rename. The welcome's list has older ones
        already."""
        if message.id <= self.list_as_of:
            return
        if isinstance(message, Joined):
            self.here += name_key(message.name) not in self.users
            self.users[name_key(message.name)] = message.name
        elif isinstance(message, Left):
            self.here -= 1
            self.users.pop(name_key(message.name), None)
        elif isinstance(message, Renamed):
            self.users.pop(name_key(message.name), None)
            self.users[name_key(message.to)] = message.to

    def _renamed(self, renamed: Renamed) -> None:
        if renamed.name == self.name and renamed.id > self.list_as_of:
            self.name = self.wanted = renamed.to
            self._names.add(renamed.to)
        elif renamed.name in self._names and renamed.to == self.name:
            # Ours, replayed: the welcome was under the new name already.
            self.wanted = renamed.to


# --- Files ---

_Done = TypeVar("_Done")


class FileError(Exception):
    """A file cannot be sent or fetched: the text says why."""


class _Again(Exception):
    """It did not work this time; the argument is the seconds to wait."""


class _Busy(_Again):
    """The server has no time for it now, which is no failure."""


class _Gone(Exception):
    """The server does not know that address, or not any more."""


class Courier:
    """Brings one file up, or down, for a ChatClient: over HTTP connections of its own, on the
    thread that asks for it, and over any number of breaks.

    `progress(done, size)` is called there, with bytes; what it raises ends the transfer. Without a
    byte more for `patience` seconds one gives up: a script must not wait for a server for ever.
    """

    # Bytes that go up before the server confirms them, and that are read or sent at once.
    PIECE, BLOCK = 8 * 1024 * 1024, 256 * 1024
    # Seconds for the server to take or bring a block, or to answer, and between two tries.
    TIMEOUT, PAUSE = 60.0, 1.0
    # Tries without a byte more, until one gives up.
    TRIES = 20

    def __init__(self, client: ChatClient, progress: Callable[[int, int], None],
                 patience: float = math.inf) -> None:
        self._client = client
        self._progress = progress
        self._patience = patience
        # Where the server takes it.
        self._upload = ""
        # The most bytes that ever were there; the tries since they became more, and when that was.
        self._most = self._tries = 0
        self._moved = time.monotonic()

    def send(self, path: str) -> "dict[str, Any]":
        """Bring a file up; return its "url", and the "text" to say with it. Raises FileError, and
        ConnectionError after the client's end."""
        name = os.path.basename(os.path.abspath(path))
        with _ordinary_file(path) as content:
            size = content.seek(0, os.SEEK_END)
            try:
                return self._persist(lambda: self._send(content, size, name))
            except BaseException:
                self._give_up()
                raise

    def fetch(self, file: "dict[str, Any]", folder: str) -> str:
        """Bring a chat's `file` down into a folder, under a name that is free there; return its
        path. Raises FileError, and ConnectionError after the client's end."""
        return self._persist(lambda: self._fetch(file, folder))

    def _persist(self, transfer: "Callable[[], _Done]") -> _Done:
        """Try until it is done. Raises FileError when there were too many tries."""
        while True:
            self._wait(0)
            while not self._client.joined:
                self._wait(0.1)
            try:
                return transfer()
            except _Again as again:
                self._tries += not isinstance(again, _Busy)
                if self._tries > self.TRIES:
                    raise FileError("it breaks off again and again") from again
                self._wait(again.args[0])

    def _wait(self, seconds: float) -> None:
        """Raises FileError when one has to give up, ConnectionError after the client's end."""
        if time.monotonic() - self._moved > self._patience:
            raise FileError(f"nothing went on for {self._patience:g} s, gave up")
        self._client.pause(seconds)

    def _tell(self, done: int, size: int) -> None:
        if done > self._most:
            self._most, self._tries, self._moved = done, 0, time.monotonic()
        self._progress(done, size)

    # Up

    def _send(self, content: "IO[bytes]", size: int, name: str) -> "dict[str, Any]":
        """From where the server has it."""
        try:
            self._upload = self._upload or self._begin(name)
            answer = self._put(content, 0, 0, size)
            while "url" not in answer:
                first = int(answer["have"])
                self._tell(first, size)
                answer = self._put(content, first, min(size, first + self.PIECE), size)
        except _Gone:
            # The server was restarted without it.
            self._upload = ""
            raise _Again(self.PAUSE) from None
        self._tell(size, size)
        return answer

    def _begin(self, name: str) -> str:
        query = urllib.parse.urlencode({"name": name}, errors="replace")
        try:
            return str(self._told("POST", f"/files?{query}", {})["upload"])
        except _Gone:
            raise FileError("this server takes no files") from None

    def _put(self, content: "IO[bytes]", first: int, behind: int, size: int) -> "dict[str, Any]":
        """Send the bytes from `first` up to `behind`; without any the server says what it has."""
        span = f"{first}-{behind - 1}" if first < behind else "*"
        headers = {"Content-Range": f"bytes {span}/{size}", "Content-Length": str(behind - first)}
        return self._told("PUT", self._upload, headers,
                          self._blocks(content, first, behind, size))

    def _blocks(self, content: "IO[bytes]", first: int, behind: int, size: int) -> Iterator[bytes]:
        content.seek(first)
        while first < behind:
            try:
                block = content.read(min(self.BLOCK, behind - first))
            except OSError as error:
                raise FileError(f"it cannot be read: {error.strerror}") from error
            if not block:
                raise FileError("it has become shorter while it was sent")
            yield block
            first += len(block)
            self._tell(first, size)

    def _give_up(self) -> None:
        """So that it does not count among those under way."""
        with contextlib.suppress(_Again, _Gone, FileError):
            # Without a server it would be waited for.
            if self._upload and self._client.joined:
                self._ask("DELETE", self._upload, {}).close()

    # Down

    def _fetch(self, file: "dict[str, Any]", folder: str) -> str:
        name = chatproto.file_name(file["name"])
        # What is there of it is told by the end of the address, which is never given again.
        part = os.path.join(folder, f"{name}.{re.sub('[^0-9a-z]', '', file['url'])[-8:]}.part")
        try:
            with _opened_part(part) as content:
                self._fetch_rest(file["url"], content, file["size"])
            return _keep(part, folder, name)
        except _Gone:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise FileError(f"{name}: the server has it no more") from None
        except OSError as error:
            raise FileError(f"{error.filename or part}: {error.strerror or error}") from error

    def _fetch_rest(self, url: str, content: "IO[bytes]", size: int) -> None:
        have = content.seek(0, os.SEEK_END)
        if have > size:
            have = content.truncate(0)
        if have == size:
            self._tell(size, size)
            return
        with self._ask("GET", url, {"Range": f"bytes={have}-"}) as answer:
            if answer.status != 206:
                have = content.truncate(0)
            content.seek(have)
            while have < size:
                with _breaks():
                    block = answer.read(min(self.BLOCK, size - have))
                if not block:
                    raise _Again(self.PAUSE)
                content.write(block)
                have += len(block)
                self._tell(have, size)

    # HTTP

    def _told(self, method: str, path: str, headers: "dict[str, str]",
              body: "Optional[Iterable[bytes]]" = None) -> "dict[str, Any]":
        """What the server says of an upload. Raises as _ask()."""
        with self._ask(method, path, headers, body) as answer, _breaks():
            text = answer.read()
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(text)
            if type(content) is dict and {"upload", "have", "url"} & content.keys():
                return content
        raise FileError("the server's answer is none")

    def _ask(self, method: str, path: str, headers: "dict[str, str]",
             body: "Optional[Iterable[bytes]]" = None) -> Any:
        """The answer to a request, to be closed. Raises _Again, _Gone, FileError."""
        with _breaks():
            connection = self._client.server.http(self.TIMEOUT)
        try:
            with _breaks():
                # An address, whatever name it was found by: the server takes no name but its own.
                host, port = connection.sock.getpeername()[:2]
                headers["Host"] = f"{chatproto.in_url(host.partition('%')[0])}:{port}"
                if method != "GET":
                    headers["X-Roger-Session"] = self._client.secret
                # Where it takes no more it has perhaps said why.
                with contextlib.suppress(OSError):
                    connection.request(method, path, body, headers)
                answer = connection.getresponse()
                if answer.length is None:
                    # All answers say how long they are.
                    raise ConnectionError("broken in the head of an answer")
        except BaseException:
            connection.close()
            raise
        if answer.status in (200, 201, 206):
            return answer
        with answer:
            raise self._refusal(answer)

    def _refusal(self, answer: Any) -> Exception:
        if answer.status in (401, 408, 409, 429, 503):
            given = answer.headers.get("Retry-After", "")
            kind = _Busy if answer.status in (429, 503) else _Again
            return kind(min(30.0, float(given)) if given.isdecimal() else self.PAUSE)
        if answer.status == 404:
            return _Gone()
        with _breaks():
            text = answer.read(1000).decode("utf-8", "replace")
        return FileError(escape(text.partition(": ")[2].strip() or f"refused ({answer.status})"))


@contextlib.contextmanager
def _breaks() -> Iterator[None]:
    """What breaks a connection is a reason to try again."""
    import http.client
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        # A server without a page answers with a frame.
        if isinstance(error, http.client.BadStatusLine) and str(error.args[0]).startswith("{"):
            raise _Gone() from error
        raise _Again(Courier.PAUSE) from error


def _ordinary_file(path: str) -> "IO[bytes]":
    """Open what is to be sent. Raises FileError: a folder, a pipe or a device would never end."""
    shown = escape(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            what = "a folder" if os.path.isdir(path) else "no ordinary file"
            raise FileError(f"{shown} is {what}")
        return open(path, "rb")
    except (OSError, ValueError) as error:
        # ValueError: a NUL in it.
        raise FileError(f"{shown}: {getattr(error, 'strerror', None) or error}") from error


def _opened_part(path: str) -> "IO[bytes]":
    """What is there of a file that is fetched, to be read and written; never behind a link."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return open(os.open(path, flags, 0o666), "r+b")


def _keep(part: str, folder: str, name: str) -> str:
    """Give a file that is whole its name: plan.pdf, or plan-2.pdf where that is taken."""
    stem, ending = os.path.splitext(name)
    number, path = 1, os.path.join(folder, name)
    while True:
        try:
            # Nobody else gets the name in between.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            os.replace(part, path)
            return path
        except FileExistsError:
            number += 1
            path = os.path.join(folder, f"{stem}-{number}{ending}")


# --- The client ---

class Server:
    """Where a server is, how the connections to it are encrypted, and which key it has to show. The
    client's thread uses it; while that does not run, trust() may change it."""

    # What it means where OpenSSL gives up for these reasons.
    _NO_TLS = "does not speak TLS"
    _TROUBLE = {"WRONG_VERSION_NUMBER": _NO_TLS, "HTTP_REQUEST": _NO_TLS,
                "TLSV1_ALERT_INTERNAL_ERROR": "takes nobody now: it has too many connections from "
                                              "your address, or trouble"}

    def __init__(self, host: str, port: int, is_encrypted: bool) -> None:
        self.host, self.port = host, port
        # Else we come in the clear, until the server refuses that.
        self.is_encrypted = is_encrypted
        # The key that the server has to show: "" for none that is trusted yet; None while an
        # authority may vouch for the server instead.
        self.key: Optional[str] = None

    @property
    def where(self) -> str:
        """The server, for a reader."""
        return f"{self.host}:{self.port}"

    def trust(self, key: str) -> None:
        """Talk only to a server with that key, and only over TLS; between two tries of connect().
        Raises ValueError for what is no key."""
        self.key, self.is_encrypted = chatproto.check_trust_key(key), True

    def wire(self, sock: socket.socket) -> MessageSocket:
        """What to talk with over a connection."""
        return SecureSocket(sock) if self.is_encrypted else MessageSocket(sock)

    def begin(self, wire: MessageSocket, until: float) -> None:
        """Before a word is said, have the server show that it is the right one. Raises
        ConnectionClosed, Untrusted, and ComeAgain where no authority vouches for it."""
        if not isinstance(wire, SecureSocket):
            return
        try:
            wire.begin(until, self._context(), self._name)
        except ConnectionClosed as end:
            if isinstance(end.__cause__, ssl.SSLCertVerificationError):
                self.key = ""
                raise ComeAgain from end
            trouble = self._TROUBLE.get(getattr(end.__cause__, "reason", ""))
            if trouble is None:
                raise
            known = (": somebody is in between, or it was switched off (then take its line out of "
                     "known_servers)") if self.key and trouble == self._NO_TLS else ""
            raise ConnectionClosed(f"{self.where} {trouble}{known}") from end
        try:
            self._check(wire.certificate)
        except ValueError as error:
            # An impostor's: OpenSSL takes more forms of one than can be read with certainty.
            raise ConnectionClosed(f"{self.where} shows a strange certificate") from error

    def http(self, seconds: float) -> Any:
        """An http.client connection, of one thread alone, so without a MessageSocket, encrypted
        like all others. Raises OSError, ConnectionError among them."""
        import http.client
        connection = http.client.HTTPConnection(self.host, self.port, timeout=seconds)
        connection.connect()
        if self.is_encrypted:
            connection.sock = self._context().wrap_socket(connection.sock,
                                                          server_hostname=self._name)
            try:
                self._check(connection.sock.getpeercert(True) or b"")
            except (ValueError, Untrusted) as error:
                connection.close()
                raise ConnectionError(f"{self.where} has another key now") from error
        return connection

    @property
    def _name(self) -> str:
        """What the certificate of an authority has to be about."""
        return self.host.partition("%")[0]

    def _check(self, certificate: bytes) -> None:
        """Raises Untrusted, and ValueError for what is no certificate."""
        key = chatproto.trust_key(certificate)
        if self.key is not None and key != self.key:
            raise Untrusted(self.where, key, self.key)

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.key is not None:
            # begin() compares the key, which is worth more than names and dates.
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


class ChatClient(ClientSession):
    """A ClientSession with a connection that heals by itself.

    With `tls` it is encrypted, and an authority has to vouch for the server, or it has the key that
    is to be trusted (`trust`). Without it comes in the clear, and again with TLS where the server
    asks for that. A `password` goes over TLS alone, and asks for it as `trust` does.

    Callbacks, all on the thread "client": those of ClientSession, and on_lost(why, seconds): the
    connection ended, the next try is in so many seconds; on_end(why): it will not be tried again
    (booted, banned, or the first try failed).
    """

    def __init__(self, host: str, port: int = PORT, name: str = "bot", *, tls: bool = False,
                 trust: Optional[str] = None, password: Optional[str] = None,
                 **callbacks: Any) -> None:
        super().__init__(name, Alarm(), **callbacks)
        self.server = Server(host, port, tls or password is not None)
        if trust is not None:
            self.server.trust(trust)
        # It may be set between two tries of connect().
        self.password = password
        # Of now; only the client's thread changes it.
        self._wire: Optional[MessageSocket] = None
        # Why the connection of now was cut by ourselves.
        self._cut_because = ""
        # No further try; ends the wait before one.
        self._closing = threading.Event()
        # The first welcome came, or will not come.
        self._first = threading.Event()
        # Seconds until the next try: more with each one that brings no welcome.
        self._delay = 1.0
        # Why there will be no further try.
        self._end: Optional[ConnectionError] = None
        self._thread: Optional[threading.Thread] = None

    def connect(self, seconds: float = 2 * CONNECT_TIMEOUT) -> None:
        """Connect and join; from then on the connection heals by itself. Raises ConnectionError
        when the first try fails, and may then be called again; and after close(). Raises
        RuntimeError once we were in: a second connection would fight the first."""
        if self._closing.is_set():
            raise ConnectionError("the client was closed")
        if self._thread is not None:
            raise RuntimeError("connect() was called before: the connection heals by itself, and "
                               "after its end there is a new ChatClient")
        self._end = None
        self._first.clear()
        # A daemon, as it waits in a socket: close() ends it.
        self._thread = threading.Thread(target=self._run, name="client", daemon=True)
        self._thread.start()
        if not self._first.wait(seconds):
            self._end = ConnectionError(f"{self.server.where} does not answer")
            self.close(0)
        if self._end is not None:
            self._thread = None
            raise self._end

    def upload(self, path: str, progress: Callable[[int, int], None] = lambda done, size: None,
               patience: float = math.inf) -> "dict[str, Any]":
        """Bring a file to the server and return its "url" and the "text" to say with it. Blocks,
        over breaks, until nothing went on for `patience` seconds; not in a callback. Raises
        FileError, ConnectionError, and what progress(bytes done, of so many) raises."""
        return Courier(self, progress, patience).send(path)

    def send_file(self, path: str, to: Optional[str] = None,
                  progress: Callable[[int, int], None] = lambda done, size: None,
                  patience: float = math.inf) -> Said:
        """upload() a file, and hand it out to all or to one."""
        answer = self.upload(path, progress, patience)
        return self.say(answer["text"], to, {"url": answer["url"]})

    def fetch(self, file: "dict[str, Any]", folder: str = ".",
              progress: Callable[[int, int], None] = lambda done, size: None,
              patience: float = math.inf) -> str:
        """Bring the `file` of a chat into a folder and return its path there, which was free.

        Blocks and raises as upload() does; what came of one that broke off is gone on with.
        """
        return Courier(self, progress, patience).fetch(file, folder)

    def pause(self, seconds: float) -> None:
        """Wait so long. Raises ConnectionError after the end."""
        if self._closing.wait(seconds) or self._end is not None:
            raise ConnectionError(self.ended or "the client was closed")

    def close(self, seconds: float = 0) -> None:
        """Wait up to `seconds` without progress for what was said, leave, and end. What is not
        acknowledged then is unknown. In a callback it returns at once, and does so afterwards."""
        self._sayings.end("the client was closed")
        if threading.current_thread() is self._thread:
            # A daemon, as all it does is to wait for this thread.
            threading.Thread(target=self.close, args=(seconds,), name="close", daemon=True).start()
            return
        leaves = not self._closing.is_set() and self.wait_settled(0, seconds) and self.joined
        self._closing.set()
        if leaves:
            # The server ends the connection because we ask it to, and with it our thread.
            self.leave()
            self._join(LEAVE_TIMEOUT)
        self._cut("closing")
        # A thread that is about to connect cannot be woken; it looks at _closing afterwards.
        self._join(CONNECT_TIMEOUT if self._wire is not None else 0.2)
        self._alarm.close()
        self.give_up()

    def _join(self, seconds: float) -> None:
        if self._thread is not None:
            self._thread.join(seconds)

    @property
    def ticket(self) -> Optional[Ticket]:
        """What the next process needs to go on with this session; None before it begins, and when
        we were booted."""
        if not self.secret:
            return None
        return Ticket(self.secret, self._epoch, self.manager.seen, self.server.is_encrypted)

    def go_on(self, ticket: Ticket) -> None:
        """Before the first connection: be the session that another process of ours had."""
        self.secret, self._epoch, seen, is_encrypted = ticket
        self.server.is_encrypted |= is_encrypted
        self.manager = MessageManager(self._alarm, self._sayings.log, self, lambda data: None,
                                      seen=seen)
        # It keeps the name that it has.
        self.wanted = ""

    @property
    def ended(self) -> str:
        """Why there will be no further try; "" while there will be one."""
        return str(self._end or "")

    def dead(self) -> None:
        self._cut("no answer")

    def _cut(self, why: str) -> None:
        """Any thread: end the connection of now."""
        wire = self._wire
        if wire is not None:
            self._cut_because = why
            wire.cut()

    # On the client's thread

    def _run(self) -> None:
        try:
            self._stay_connected()
        except Exception as error:
            self._end = ConnectionError(f"a bug: {chatproto.bug(error)}")
            self.give_up(self.ended)
            raise
        finally:
            self._first.set()

    def _stay_connected(self) -> None:
        """Connect again and again, until close() or until the server does not want us."""
        while not self._closing.is_set():
            try:
                lost = self._converse()
            except ComeAgain:
                continue
            except (Untrusted, JoinRefused) as error:
                lost = error
            is_final = isinstance(lost, Untrusted) or (
                isinstance(lost, JoinRefused) and lost.error.code in HOPELESS)
            if is_final or not self._first.is_set():
                self._end = self._end or lost
            if self._end is not None or self._closing.is_set():
                break
            # Jitter: a whole class does not come back in the same instant.
            wait = self._delay * random.uniform(0.75, 1.0)
            self._call(self._callbacks.on_lost, str(lost), wait)
            self._closing.wait(wait)
            self._delay = min(2 * self._delay, LONGEST_DELAY)
        if self._first.is_set() and not self._closing.is_set():
            self.give_up(self.ended)
            self._call(self._callbacks.on_end, self.ended)

    def _converse(self) -> ConnectionError:
        """One connection from its start to its end; return why it ended. Raises JoinRefused,
        Untrusted and ComeAgain."""
        try:
            sock = self._dial()
        except (OSError, UnicodeError) as error:
            # UnicodeError: a host name that cannot be one.
            why = getattr(error, "strerror", None) or str(error)
            if not self._first.is_set():
                why = why_not_connected(self.server.host, self.server.port, error)
            return ConnectionError(f"cannot connect to {self.server.where}: {why}")
        sock.settimeout(None)
        self._cut_because = ""
        wire = self._wire = self.server.wire(sock)
        first = b""
        try:
            if self._closing.is_set():
                return ConnectionError("closing")
            until = time.monotonic() + CONNECT_TIMEOUT
            self.server.begin(wire, until)
            self._open(wire)
            while True:
                data = wire.read(None if self.joined else max(0.0, until - time.monotonic()))
                first = first or data
                if not data:
                    return ConnectionError(f"{self.server.where} does not answer")
                self._receive(data, wire)
                if self.joined:
                    self._delay = 1.0
                    self._first.set()
        except (ConnectionClosed, ProtocolError) as end:
            other = "" if self.joined else what_answers(first)
            if other:
                return ConnectionError(f"{self.server.where} is {other}, not a chat server: is the "
                                       "port right?")
            return ConnectionError(self._cut_because or str(end))
        finally:
            self.closed()
            self._wire = None
            wire.close()

    def _dial(self) -> socket.socket:
        """Connect; the first try waits for a server that was started at the same time as we were.
        Raises OSError."""
        until = time.monotonic() + (0 if self._first.is_set() else START_PATIENCE)
        while True:
            try:
                return socket.create_connection((self.server.host, self.server.port),
                                                CONNECT_TIMEOUT)
            except ConnectionRefusedError:
                if time.monotonic() >= until or self._closing.wait(0.2):
                    raise

    def _open(self, wire: MessageSocket, name: str = "") -> None:
        self.opened(wire.write, name, self.password if wire.is_encrypted else None)

    def _receive(self, data: bytes, wire: MessageSocket) -> None:
        """received(), but for a name that is taken: the server suggests another; and where it
        speaks TLS only."""
        try:
            self.received(data)
        except JoinRefused as refused:
            if refused.error.code == "tls" and not wire.is_encrypted and ssl is not None:
                self.server.is_encrypted = True
                raise ComeAgain from refused
            if refused.error.code != "name-taken" or not refused.error.suggestion:
                raise
            self._open(wire, refused.error.suggestion)
        except ConnectionClosed as booted:
            self._end = ConnectionError(str(booted))
            raise


# --- Kept settings ---

def settings_path() -> str:
    """The file of the settings."""
    return chatproto.config_path("client.json")


def known_servers(path: Optional[str]) -> "dict[str, str]":
    """The keys of servers that were trusted before, as ssh keeps them: a line for each, HOST:PORT
    and its key; None: nothing is kept. Raises ConnectionError where the file cannot be read: who is
    trusted is not guessed."""
    known: "dict[str, str]" = {}
    try:
        if path is not None:
            with open(path, encoding="utf-8") as file:
                for line in filter(str.strip, file):
                    where, key = line.split()
                    known[where] = chatproto.check_trust_key(key)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConnectionError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConnectionError(f"{path} is damaged, so no server can be known: each line is "
                              "HOST:PORT and a key; mend it or remove it") from error
    return known


def remember_server(path: Optional[str], where: str, key: str) -> None:
    """From now on it is trusted. Raises ConnectionError as known_servers(), and OSError."""
    known = known_servers(path)
    if path is not None and known.get(where.lower()) != key:
        known[where.lower()] = key
        lines = (f"{each} {known[each]}\n" for each in sorted(known))
        chatproto.write_private(path, "".join(lines))


class Settings:
    """What the user has chosen, kept from one run to the next in a small file.

    The file is written whole, and the last writer wins. One that is damaged is told and then
    replaced by the next choice; one of a newer version is read as far as it is understood,
    and never written. Any thread.
    """

    VERSION = 1
    # Bytes of the file that are read: thousands of ignored names.
    LONGEST = 1 << 20
    BELLS = ("off", "mentions", "all")

    def __init__(self, path: Optional[str] = None) -> None:
        # Hide joins and leaves; show the times; ring for what.
        self.quiet = False
        self.timestamps = True
        self.bell = "mentions"
        # Whose messages are not shown, by name_key.
        self.ignored: "set[str]" = set()
        # What is to be told of the file; whoever tells it empties it.
        self.trouble = ""
        # None: nothing is kept.
        self._path = path
        if path is not None:
            self._read(path)

    def _read(self, path: str) -> None:
        try:
            with open(path, "rb") as file:
                self._take(json.loads(file.read(self.LONGEST)))
        except FileNotFoundError:
            pass
        except OSError as error:
            self.trouble = f"the settings cannot be read: {error.strerror or error}"
        except (ValueError, RecursionError):
            self.trouble = f"the settings in {path} are damaged: not used"

    def _take(self, kept: Any) -> None:
        """Take what is understood. Raises ValueError when it is not ours."""
        if type(kept) is not dict or type(kept.get("version")) is not int:
            raise ValueError("no settings")
        if kept["version"] > self.VERSION:
            self._path, self.trouble = None, "the settings are of a newer version: not changed"
        for name in ("quiet", "timestamps"):
            if type(kept.get(name)) is bool:
                setattr(self, name, kept[name])
        if kept.get("bell") in self.BELLS:
            self.bell = kept["bell"]
        names = kept.get("ignored")
        if type(names) is list:
            self.ignored = {name_key(name) for name in names if type(name) is str}

    def keep(self) -> None:
        """Write what is chosen now."""
        if self._path is None:
            return
        kept = {"version": self.VERSION, "quiet": self.quiet, "timestamps": self.timestamps,
                "bell": self.bell, "ignored": sorted(self.ignored)}
        try:
            chatproto.write_private(self._path, json.dumps(kept))
        except (OSError, ValueError) as error:
            # Told once: a choice holds for this run at least.
            self._path = None
            self.trouble = f"the settings are not kept: {getattr(error, 'strerror', error)}"


# --- The kept session ---

class KeptSession:
    """The session that a terminal of this user had, kept until it is left, so that one who reopens
    the terminal goes on with it: a file for each server and name, beside the settings.

    Who has the secret has the session: only its owner may read the file. The terminal that uses it
    holds a lock as long as its process lives, and another one beside it has a session of its own,
    which is not kept. A file that is damaged counts as none. Not for two threads at once.
    """

    # Seconds between two writes: who was killed hears again what came since the last.
    EVERY = 30.0
    # Seconds after which a file that nobody came back to is deleted.
    LONGEST = 30 * 86_400

    def __init__(self, settings: Optional[str], where: str, name: str) -> None:
        digest = hashlib.sha256(f"{where} {name_key(name)}".encode()).hexdigest()
        # "" where nothing is kept.
        self._path = os.path.join(os.path.dirname(settings), f"session-{digest[:16]}.json") if (
            settings is not None) else ""
        # The open file of the lock, which is never closed; None: nothing is kept.
        self._lock: Optional[int] = None
        self._written_at = -math.inf
        # Another terminal of this user has it, at our start.
        self.is_elsewhere = False

    def take(self) -> Optional[Ticket]:
        """The session to go on with, if there is one that no other terminal uses."""
        folder, name = os.path.split(self._path)
        if not name:
            return None
        try:
            os.makedirs(folder, exist_ok=True)
            lock = os.open(os.path.join(folder, "session.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            # Nothing can be kept here.
            return None
        try:
            # The byte of the lock's file that stands for this session.
            _lock_byte(lock, zlib.crc32(name.encode()) >> 1)
        except OSError:
            self.is_elsewhere = True
            return None
        self._lock = lock
        self._delete_old(folder)
        try:
            with open(self._path, "rb") as file:
                ticket = Ticket(**json.loads(file.read(4096)))
        except (OSError, ValueError, RecursionError, TypeError):
            return None
        is_ours = list(map(type, ticket)) == [str, str, int, bool] and 0 <= ticket.seen <= MAX_ID
        return ticket if is_ours else None

    def _delete_old(self, folder: str) -> None:
        for file in os.scandir(folder):
            with contextlib.suppress(OSError):
                if (re.fullmatch(r"session-[0-9a-f]{16}\.json.*", file.name)
                        and file.stat().st_mtime < time.time() - self.LONGEST):
                    os.unlink(file.path)

    def keep(self, ticket: Optional[Ticket]) -> None:
        """Write it; None deletes it."""
        if self._lock is None:
            return
        self._written_at = time.monotonic()
        # Where that fails the next terminal has a session of its own.
        with contextlib.suppress(OSError, ValueError):
            if ticket is not None:
                chatproto.write_private(self._path, json.dumps(ticket._asdict()))
            else:
                os.unlink(self._path)

    def follow(self, client: ChatClient) -> None:
        """Write it now and then."""
        if time.monotonic() >= self._written_at + self.EVERY:
            self.keep(client.ticket)


def _lock_byte(file: int, at: int) -> None:
    """Lock a byte of an open file for this process. Raises OSError when another one has it."""
    if sys.platform == "win32":
        import msvcrt
        os.lseek(file, at, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, at)


# --- What is shown ---

# A span is how (SGR parameters, "" for plain) and what: a text that is safe to show. In an
# address of a page LINK and the address follow the parameters.
Span = Tuple[str, str]
Line = List[Span]
LINK = "|"

# Stands before every line of a message but its first, so that no line of a message can pass
# for the beginning of another one.
INDENT = "      "

# How names look, by how many colours there are at least: of 256 those that have a contrast of 3.9
# or more on white and on black and are far apart from one another; of 8 those that most people read
# on both.
NAMES = ((256, [f"1;38;5;{colour}" for colour in
                (27, 28, 30, 31, 64, 97, 98, 129, 130, 131, 133, 161, 164, 196)]),
         (8, [f"1;{colour}" for colour in (31, 32, 34, 35, 36)]))

# The address of a page: printable ASCII only, as nothing else may begin a row. What ends a
# sentence does not end an address. The length bounds the work.
_PAGE = re.compile(r"https?://[!-~]{0,2000}[\w/#&=~%+-]", re.IGNORECASE | re.ASCII)
# What no name in it is a mention: an address, a path.
_ADDRESS = re.compile(r"(?:\b[a-z][a-z0-9+.-]{0,20}://|\bwww\.|(?<!\S)~?/)[!-~]*", re.IGNORECASE)
# Letters of scripts that put no spaces between words: of Southeast Asia, China and Japan.
_SPACELESS = re.compile("[\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\u31bf"
                        "\u31f0-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]")
# Of these, those with which a row may begin: no marks, no small or prolonged kana.
_MAY_BEGIN = re.compile("[\u2e80-\u2fdf\u3006\u3007\u3042-\u3062\u3064-\u3082\u3084-\u308d"
                        "\u308f-\u3093\u30a2-\u30c2\u30c4-\u30e2\u30e4-\u30ed\u30ef-\u30f3"
                        "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


class Theme:
    """How things look, as SGR parameters. Without colours: bold, dim and reverse."""

    dim, bold, mention, status, page, pinned = "2", "1", "1;7", "7", "4", "1;4"

    def __init__(self, colours: int, links: bool = False) -> None:
        self.error = "1;31" if colours >= 8 else "1"
        # The terminal takes links (OSC 8).
        self.links = links
        self._names = next((looks for least, looks in NAMES if colours >= least), ["1"])

    def name(self, name: str) -> str:
        """The look of a name: the same in every session and on every machine."""
        return self._names[zlib.crc32(name_key(name).encode()) % len(self._names)]


class Entry:
    """What is shown of one message: its lines, and of one's own message its state.

    The lines are made when they are first looked at, so that of a flood only those are made
    that are seen. `message` is None for what is ours alone or has no place in the order yet.
    """

    __slots__ = ("_lines", "said", "message", "day")

    def __init__(self, lines: "Union[list[Line], Callable[[], list[Line]]]",
                 said: Optional[Said] = None, message: Optional[Message] = None) -> None:
        self._lines = lines
        self.said = said
        self.message = message
        # For a line that says which day begins: that day.
        self.day = ""

    @property
    def lines(self) -> "list[Line]":
        """The lines of the message."""
        if callable(self._lines):
            self._lines = self._lines()
        return self._lines

    @property
    def id(self) -> int:
        """The server's id of the message; 0 where there is none."""
        return self.message.id if self.message is not None else 0

    @property
    def chat(self) -> Optional[Chat]:
        """The message, where somebody said it."""
        return self.message if isinstance(self.message, Chat) else None

    @property
    def size(self) -> int:
        """About so many characters."""
        return 100 if self.chat is None else len(self.chat.text)

    def replace(self, line: Line) -> None:
        """Show this in place of what was there."""
        self._lines = [line]

    def holds(self, words: "list[str]") -> bool:
        """True for something said that has all these words, which are name_keys."""
        text = name_key(self.chat.text) if self.chat is not None else ""
        return self.chat is not None and all(word in text for word in words)

    def plain(self) -> "list[str]":
        """The lines as text."""
        return [INDENT * (number > 0) + "".join(text for _, text in line)
                for number, line in enumerate(self.lines)]


class Presence(Entry):
    """Who came and who went: those that follow one another are one line that grows."""

    __slots__ = ("_style", "_fates", "_tail")

    def __init__(self, style: str, message: "Union[Joined, Left]", tail: str) -> None:
        super().__init__(self._told, message=message)
        self._style = style
        # What became of each name, in the order in which it happened.
        self._fates = {message.name: "joined" if isinstance(message, Joined) else "left"}
        # What ends the line: the number of those here, or why the one who left has left.
        self._tail = tail

    def take(self, other: Presence) -> None:
        """Let another, later one of a single name go on with this one."""
        (name, fate), = other._fates.items()
        had_come = self._fates.pop(name, "") == "joined"
        self._fates[name] = "came and went" if had_come and fate == "left" else fate
        self._tail = other._tail if fate == "joined" else ""
        self.message = other.message
        self._lines = self._told

    def _told(self) -> "list[Line]":
        parts = []
        for fate in ("joined", "left", "came and went"):
            names = [name for name, what in self._fates.items() if what == fate]
            if names:
                parts.append(f"{_listed(names)} {fate}")
        return [[(self._style, "* " + ", ".join(parts) + self._tail)]]


def _listed(names: "list[str]") -> str:
    """Names for a reader; of many the first three, and how many more."""
    shown = list(map(escape, names))
    if len(shown) > 4:
        shown[3:] = [f"{len(shown) - 3} others"]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


class HandedOut:
    """The files that were handed out, each with the number by which /get takes it."""

    # Then the oldest is forgotten.
    MOST = 1_000

    def __init__(self) -> None:
        # By the file's address: its number, and what handed it out.
        self._chats: "dict[str, tuple[int, Chat]]" = {}
        self._numbers = itertools.count(1)

    def add(self, chat: Chat) -> int:
        """Return the number of a message's file, the same where it comes again; 0 for none."""
        if chat.file is None:
            return 0
        url = chat.file["url"]
        if url not in self._chats:
            _put_newest(self._chats, url, (next(self._numbers), chat), self.MOST)
        return self._chats[url][0]

    def removed(self, id: int) -> None:
        """A message was taken back, and so is its file."""
        for url, (_, chat) in list(self._chats.items()):
            if chat.id == id:
                del self._chats[url]

    def file(self, wanted: int) -> "Optional[dict[str, Any]]":
        """The file of that number."""
        return next((chat.file for number, chat in list(self._chats.values())
                     if number == wanted), None)

    def lines(self) -> "list[str]":
        """What there is, for a reader."""
        return [f"* {number}  {_in_words(chat.file)}, {escape(chat.sender)}"
                for number, chat in list(self._chats.values()) if chat.file is not None]


def _in_words(file: "dict[str, Any]") -> str:
    return f"{escape(file['name'])} ({chatproto.size_in_words(file['size'])})"


class Formatter:
    """Turns what a client hears into entries, with everything that peers sent escaped.

    entries() and older() are called on the client's thread. The settings may be changed on
    any thread.
    """

    # Addresses of pages that /urls lists.
    URLS = 20

    def __init__(self, client: ClientSession, theme: Theme,
                 settings: Optional[Settings] = None) -> None:
        self.settings = settings or Settings()
        # The last addresses of pages, each once, the newest at the end.
        self.urls: "dict[str, None]" = {}
        # What /get takes; and whether a line says so, in place of the file's address.
        self.files = HandedOut()
        self.numbers_files = True
        self._client = client
        self._theme = theme
        # The day of the last entry, and whether that entry was history.
        self._day = ""
        self._in_history = False
        # What held in the room, as we were told last; at first what one takes for granted.
        self._rules: Optional[Rules] = None
        # Who has another name since we ignored them: name_key of now -> of then.
        self._moved: "dict[str, str]" = {}

    def entries(self, message: Message, own: bool, said: Optional[Said] = None) -> "list[Entry]":
        """What to show for a message, which may be our `own`, with what we know of it; nothing for
        one that is hidden."""
        entry: Optional[Entry] = None
        if not isinstance(message, Chat):
            self._follow(message)
            entry = self._event(message)
        elif own:
            entry = self.chat(message, True, said)
        elif not self.is_ignored(message.sender):
            entry = self.chat(message)
        return [] if entry is None else self._marked(entry, message)

    def chat(self, chat: Chat, own: bool = False, said: Optional[Said] = None,
             is_placed: bool = True) -> Entry:
        """Something that was said, or that is on its way: then its id is not the server's."""
        for url in _PAGE.findall(chat.text):
            self.urls.pop(url, None)
            _put_newest(self.urls, url, None, self.URLS)
        lines = functools.partial(self._chat, chat, own, self.files.add(chat))
        return Entry(lines, said, chat if is_placed else None)

    def is_mention(self, chat: Chat) -> bool:
        """True for what somebody else says to us alone, or with our name in it."""
        return chat.to is not None or bool(mentions(chat.text, self._client.name))

    def older(self, answer: Optional[Recalled]) -> "list[Entry]":
        """The messages of an answer, if one came, without those of whom we ignore."""
        return [self.chat(chat, self._client.is_own(chat))
                for chat in (answer.entries if answer is not None else ())
                if not self.is_ignored(chat.sender)]

    def with_days(self, entries: "list[Entry]", day: str = "") -> "list[Entry]":
        """The same with a line where a day begins; `day` is that of what comes before."""
        found: "list[Entry]" = []
        for entry in entries:
            today = _day(entry.message) or day
            if today != day:
                found.append(self.note(f"-- {today} --"))
                found[-1].day = day = today
            found.append(entry)
        return found

    def note(self, text: str) -> Entry:
        """A line of our own, which is safe to show; one that begins with ! is an error."""
        return Entry([[(self._theme.error if text.startswith("!") else self._theme.dim, text)]])

    def page(self, url: str) -> Entry:
        """A line with nothing but the address of a page."""
        return Entry([[(self._theme.page + LINK + url, url)]])

    def removed(self, entry: Entry) -> None:
        """The host took the message of this entry back."""
        head = f"{escape(entry.chat.sender)}: " if entry.chat is not None else ""
        entry.replace([(self._theme.dim, f"{head}(removed by the host)")])
        entry.message = Removed(entry.id, entry.id)

    # Who is ignored: a person, under whatever name, until that session ends

    def is_ignored(self, name: str) -> bool:
        """True for whose messages are not shown."""
        key = name_key(name)
        return key in self._moved or (key in self.settings.ignored
                                      and key not in self._moved.values())

    def unignore(self, name: str) -> None:
        """Show again what this person says."""
        key = name_key(name)
        self.settings.ignored.discard(self._moved.pop(key, key))

    def ignored(self) -> "list[str]":
        """Whom we ignore, for a reader."""
        now = {then: f" (now {key})" for key, then in self._moved.items()}
        return [escape(key + now.get(key, "")) for key in sorted(self.settings.ignored)]

    def forget_people(self) -> None:
        """The connection is a new one: what became of whom is not known."""
        self._moved.clear()

    def _follow(self, message: Message) -> None:
        if isinstance(message, Left):
            self._moved.pop(name_key(message.name), None)
        elif isinstance(message, Renamed) and self.is_ignored(message.name):
            key = name_key(message.name)
            then = self._moved.pop(key, key)
            if name_key(message.to) != then:
                self._moved[name_key(message.to)] = then

    # Lines

    def _chat(self, chat: Chat, own: bool, number: int) -> "list[Line]":
        head = [(self._theme.name(chat.sender), escape(chat.sender))]
        if chat.to is not None:
            head += [(self._theme.dim, " -> "), (self._theme.name(chat.to), escape(chat.to))]
        text = chat.text
        if text.startswith("/me "):
            text, head = text[4:], [("", "* "), *head, ("", " ")]
        else:
            head.append(("", ": "))
            if self.settings.timestamps:
                clock = time.strftime("%H:%M ", _local(chat.at))
                head.insert(0, (self._theme.dim, clock))
        file = chat.file if self.numbers_files else None
        if file is not None:
            text = _without_address(text, file)
        first, *others = [self._spans(line, own) for line in text.split("\n")]
        if file is not None:
            what = f"/get {number}"
            if text != f"{file['name']} ({chatproto.size_in_words(file['size'])})":
                what = f"{_in_words(file)}, {what}"
            (others or [first])[-1].append((self._theme.dim, f" [{what}]"))
        return [head + first, *others]

    def _spans(self, text: str, own: bool) -> Line:
        """A line of a text, with mentions of us and addresses of pages marked."""
        marks = [(found.start(), found.end(), self._theme.page + LINK + found[0])
                 for found in _PAGE.finditer(text)]
        if not own:
            marks += [(start, end, self._theme.mention)
                      for start, end in mentions(text, self._client.name)]
        line: Line = []
        done = 0
        for start, end, style in sorted(marks):
            line += [("", _show(text[done:start])), (style, _show(text[start:end]))]
            done = end
        return [*line, ("", _show(text[done:]))]

    def _marked(self, entry: Entry, message: Message) -> "list[Entry]":
        """An entry after the lines that come before it: history begins or ends, the day changes."""
        marks, is_history = [], message.id <= self._client.history_until
        if is_history != self._in_history:
            self._in_history = is_history
            marks.append(self.note("-- said before you came --" if is_history else "-- now --"))
        today = _day(message) or self._day
        before, self._day = self._day or today, today
        return marks + self.with_days([entry], before)

    def _event(self, message: Message) -> Optional[Entry]:
        """What is shown of a message that nobody said; None for one that is hidden."""
        style, text = self._theme.dim, ""
        if isinstance(message, (Joined, Left)):
            return self._presence(message)
        if isinstance(message, Renamed):
            text = f"* {escape(message.name)} is now {escape(message.to)}"
        elif isinstance(message, Booted):
            reason = f": {escape(message.reason)}" if message.reason else ""
            style, text = self._theme.error, f"* you were booted{reason}"
        elif isinstance(message, Error):
            refused = "refused: " if message.about else ""
            style, text = self._theme.error, f"! {refused}{escape(message.text or message.code)}"
        elif isinstance(message, Rules):
            # How it is with files when we come in is nothing new.
            before = self._rules or Rules(0, files=message.files)
            self._rules = message
            told = _ruled(message, before)
            text = f"* {told}" if told != _ruled(before, before) else ""
        return Entry([[(style, text)]], message=message) if text else None

    def _presence(self, message: "Union[Joined, Left]") -> Optional[Entry]:
        """Who has come or gone; who was booted has a line of their own."""
        # What is replayed is older than the list of users: the count is of now, and one's own is
        # of a session that had left, and goes on.
        is_known = message.id > self._client.list_as_of
        is_own = name_key(message.name) == name_key(self._client.name)
        if self.settings.quiet or is_own and not is_known:
            return None
        if isinstance(message, Joined):
            tail = f" ({self._client.here} here)" * is_known
        elif message.reason.startswith("booted"):
            text = f"* {escape(message.name)} was {escape(message.reason)}"
            return Entry([[(self._theme.dim, text)]], message=message)
        else:
            tail = f" ({escape(message.reason)})" if message.reason else ""
        return Presence(self._theme.dim, message, tail)


def _without_address(text: str, file: "dict[str, Any]") -> str:
    """What was said with a file, without the address for those who know no files."""
    words, _, last = text.rpartition(" ")
    is_address = last.startswith(("http://", "https://")) and last.endswith(file["url"])
    return words if is_address and words else text


def _ruled(rules: Rules, before: Rules) -> str:
    """What holds in the room, for a reader; of files only whether they are off now, or on again."""
    parts = [f"only {escape(rules.host)} may speak" if rules.speak == "host" else
             "everybody may speak"]
    parts += ["private messages are off"] * (not rules.private)
    parts += [f"one message every {rules.slow:g} s"] * (rules.slow > 0)
    if (before.files is None) != (rules.files is None):
        parts.append("no files" if rules.files is None else "files may be sent")
    return ", ".join(parts)


def mentions(text: str, name: str) -> "list[tuple[int, int]]":
    """Where `text` has `name`, compared as names are, as a whole name: not part of a longer
    one nor of an address; but in scripts that put no spaces between words, inside a text."""
    key = name_key(name)
    if key not in name_key(text):
        return []
    # The text as it is compared, and for each of its characters the place in `text`.
    folded, places, place = [], [], 0
    for cluster in clusters(text):
        folded.append(name_key(cluster))
        places += [place] * len(folded[-1])
        place += len(cluster)
    places.append(place)
    whole, found = "".join(folded), []
    pages = [page.span() for page in _ADDRESS.finditer(text)]
    at = whole.find(key)
    while at >= 0:
        start, end = places[at], places[at + len(key)]
        # A cluster is not taken apart.
        is_cut = at and places[at - 1] == start or places[at + len(key) - 1] == end
        if not is_cut and _is_whole(text, start, end) and not any(
                first <= start < last for first, last in pages):
            found.append((start, end))
        at = whole.find(key, at + 1)
    return found


def _is_whole(text: str, start: int, end: int) -> bool:
    """True when no part of a name or an address goes on before or after the place."""
    for inside, beside, beyond in (
            (text[start], text[max(0, start - 1):start], text[max(0, start - 2):max(0, start - 1)]),
            (text[end - 1], text[end:end + 1], text[end + 1:end + 2])):
        if _SPACELESS.match(inside) or _SPACELESS.match(beside):
            continue
        if _is_of_name(beside) or beside in ("-", ".", "@") and _is_of_name(beyond):
            return False
    # A slash on both sides is a path.
    return text[max(0, start - 1):start] + text[end:end + 1] != "//"


def _is_of_name(char: str) -> bool:
    return char.isalnum() or char == "_" or unicodedata.category(char or " ")[0] == "M"


def _local(at: float) -> time.struct_time:
    """The reader's local time; a time that this platform cannot show becomes the epoch."""
    try:
        return time.localtime(at)
    except (OverflowError, OSError, ValueError):
        return time.localtime(0)


def _day(message: Optional[Message]) -> str:
    """The day of a message; "" where it has no time."""
    at = getattr(message, "at", None)
    return "" if at is None else time.strftime("%A, %d %B %Y", _local(at))


def _show(line: str) -> str:
    return escape(line.replace("\t", "    "))


def _short(said: Said) -> str:
    text = escape(said.text.partition("\n")[0])
    return text if len(text) <= 60 and "\n" not in said.text else text[:57] + "..."


# --- Columns: how wide a text is on the terminal ---

# Joins emoji into one; between letters it says how they are written.
ZWJ = "\u200d"


@functools.lru_cache(maxsize=4096)
def _char_columns(char: str) -> int:
    # The vowels and finals of Hangul (U+1160 to U+11FF) join their initial.
    if unicodedata.category(char) in ("Mn", "Me", "Cf") or "\u1160" <= char <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _is_flag(char: str) -> bool:
    """True for a regional indicator: two of them are a flag."""
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _is_pictograph(char: str) -> bool:
    category = unicodedata.category(char)
    return (category == "So" or char in "\u203c\u2049\u2139"
            or category == "Sm" and "\u2190" <= char <= "\u2bff")


def _is_tone(char: str) -> bool:
    """True for a skin tone."""
    return "\U0001f3fb" <= char <= "\U0001f3ff"


def clusters(text: str) -> "list[str]":
    """What a reader takes for single characters: a letter with its marks, an emoji of several
    parts (UAX 29, simplified)."""
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
    return (_char_columns(char) == 0 or unicodedata.category(char) == "Mc"
            or _is_pictograph(before[0]) and (before[-1] == ZWJ or _is_tone(char))
            or len(before) == 1 and _is_flag(char) and _is_flag(before))


@dataclasses.dataclass(frozen=True, eq=False)
class Columns:
    """How many columns a cluster takes.

    Terminals differ over emoji of several parts. What a terminal makes of them is measured by
    writing SAMPLES and asking where the cursor is; until the terminal answers, each emoji is
    taken for one wide character.
    """

    # What the terminal makes of each of SAMPLES.
    joined: int = 2
    varied: int = 2
    flag: int = 2
    toned: int = 2

    SAMPLES = ("\U0001f469\u200d\U0001f680", "\u2764\ufe0f", "\U0001f1eb\U0001f1f7",
               "\U0001f44d\U0001f3fd")
    PROBE = "\x1b[8m" + "".join(f"\r{sample}\x1b[6n" for sample in SAMPLES) + "\r\x1b[m\x1b[2K"

    def of(self, cluster: str) -> int:
        """The columns of one cluster."""
        if len(cluster) == 1:
            return _char_columns(cluster)
        # A long cluster is some peer's joke, and is not kept.
        measure = _measure if len(cluster) <= 16 else _measure.__wrapped__
        return measure(self, cluster)


@functools.lru_cache(maxsize=4096)
def _measure(terminal: Columns, cluster: str) -> int:
    if ZWJ in cluster and terminal.joined != 2:
        return sum(map(terminal.of, filter(None, cluster.split(ZWJ))))
    first, more = cluster[0], cluster[1:]
    if _is_flag(first):
        return terminal.flag
    columns = _char_columns(first)
    widens = terminal.varied == 2 and (_is_pictograph(first) or first in "0123456789#*")
    if ZWJ in more and _is_pictograph(first) or "\ufe0f" in more and widens:
        columns = 2
    if terminal.toned != 2:
        columns += 2 * sum(map(_is_tone, more))
    return columns + sum(unicodedata.category(char) == "Mc" for char in more)


# --- Keys and the line that is typed ---

class Key(NamedTuple):
    """A key that was pressed: "left", "enter", "ctrl-a", "alt-b" and so on.

    "text" and "paste" come with their text. "cursor" is the terminal's answer to the question
    where the cursor is, and comes with its column. "focus-in" and "focus-out" tell whether
    the user looks at this terminal.
    """

    name: str
    text: str = ""


class Keys:
    """Bytes from a terminal, in any pieces -> keys.

    Another program may have left modes of the keyboard and the mouse on, and a terminal may
    answer what nobody asked: whatever comes so is understood as the key that it stands for,
    or is swallowed whole.
    """

    # How the string of an answer begins, and what is in it: a colour or a title (OSC), a capability
    # or a version (DCS), the state of a picture (APC).
    _ANSWER = rb"(?:\]\d+;|P[\d;]*[!$+>|]|_G)[^\x00-\x1f\x7f]*"
    # An answer, a click in the oldest of the mouse's protocols, a key with its last character.
    _SEQUENCE = re.compile(
        rb"\x1b(?:" + _ANSWER + rb"(?:\x07|\x1b\\)|\[M[\x20-\xff]{3}"
        rb"|(\[(?:\[|[0-?]*)[ -/]*(?=[@-~])|O)(.))", re.DOTALL)
    # The beginning of any of these.
    _INCOMPLETE = re.compile(
        rb"\x1b+(?:\[(?:\[|M[\x20-\xff]{0,2}|[0-?]*[ -/]*)|O|\]\d*|P[\d;]*|_"
        rb"|" + _ANSWER + rb"\x1b?)?\Z")
    # Keys by the last character of their sequence, whatever else is in it; and by their sequence
    # up to a semicolon. Of the mouse only the wheel is of use; the Enter of the keypad is an M.
    _LETTERS = {"A": "up", "B": "down", "C": "right", "D": "left", "H": "home", "F": "end",
                "c": "word-right", "d": "word-left"}
    _NAMES = {"[1~": "home", "[3~": "delete", "[4~": "end", "[5~": "page-up", "[6~": "page-down",
              "[7~": "home", "[8~": "end", "[<64M": "wheel-up", "[<65M": "wheel-down",
              "[I": "focus-in", "[O": "focus-out", "OM": "enter"}
    _WITH_CTRL = {"left": "word-left", "right": "word-right", "delete": "alt-d",
                  "end": "ctrl-end"}
    _CONTROLS = {"\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace",
                 "\x08": "backspace", "\x1b": "escape"}
    _PASTE_START, _PASTE_END = b"\x1b[200~", b"\x1b[201~"
    # Bytes of an escape sequence; a longer one is given up.
    LONGEST = 256
    # Bytes of a paste. What comes on top is dropped: it would be refused as too long anyway.
    LONGEST_PASTE = 1 << 20

    def __init__(self) -> None:
        # Bytes that are not a whole key yet.
        self._rest = b""
        # What was pasted so far; None outside of a paste.
        self._paste: Optional[bytearray] = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def is_busy(self) -> bool:
        """True amid a paste, or a sequence."""
        return self._paste is not None or self._rest != b""

    @classmethod
    def is_paste(cls, data: bytes) -> bool:
        """True for several lines in one read: nobody types so fast. The terminal, or what is
        between it and us, does not mark what is pasted."""
        return cls._PASTE_START not in data and re.search(rb"[\r\n]", data.rstrip()) is not None

    def feed(self, data: bytes, is_all: bool = False) -> "Iterator[Key]":
        """The keys that are whole by now. With `is_all` nothing came for a moment: an Esc
        that waits for more is the key of that name."""
        self._rest += data
        while self._rest:
            key = None
            if self._paste is not None:
                if not self._in_paste(self._paste):
                    return
                key = self.pasted(bytes(self._paste))
                self._paste = None
            elif self._rest[0] == 0x1B:
                self._decoder.reset()
                if is_all and not self._rest.strip(b"\x1b"):
                    self._rest, key = b"", Key("escape")
                elif self._INCOMPLETE.match(self._rest) and len(self._rest) <= self.LONGEST:
                    return
                else:
                    key = self._escape()
            else:
                key = self._plain()
            if key is not None:
                yield key

    @staticmethod
    def pasted(data: bytes) -> Key:
        """The key of what was pasted."""
        text = data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
        return Key("paste", clean_text(text))

    def _in_paste(self, paste: bytearray) -> bool:
        """Move bytes into the paste; True when it is whole. Its end may come in pieces."""
        end = self._rest.find(self._PASTE_END)
        upto = end if end >= 0 else max(0, len(self._rest) - len(self._PASTE_END) + 1)
        paste += self._rest[:min(upto, self.LONGEST_PASTE - len(paste))]
        self._rest = self._rest[upto + len(self._PASTE_END) * (end >= 0):]
        return end >= 0

    def _escape(self) -> Optional[Key]:
        """The key of the escape sequence at the start; None for one that means nothing."""
        # Esc itself, before another sequence.
        self._rest = b"\x1b" + self._rest.lstrip(b"\x1b")
        found = self._SEQUENCE.match(self._rest)
        if found is not None:
            self._rest = self._rest[found.end():]
            return self._named(*(part.decode("latin-1") for part in found.groups(b"")))
        char, code = self._rest[1:2].decode("latin-1"), self._rest[1]
        if code >= 0x80 or code < 0x20 and char not in "\r\n\b":
            # Esc itself, before another key.
            self._rest = self._rest[1:]
            return None
        self._rest = self._rest[2:]
        return Key("newline" if char in "\r\n" else
                   "alt-" + self._CONTROLS.get(char, char).lower())

    def _named(self, before: str, last: str) -> Optional[Key]:
        """The key of a sequence: what is before its last character, and that. Modifiers are counted
        from 1, as a sum: Shift is 1, Alt is 2, Ctrl is 4."""
        first, second, third = (before.split(";") + ["", ""])[:3]
        modifiers, _, event = second.partition(":")
        held = int(modifiers) - 1 if modifiers.isdecimal() else 0
        # In what the mouse or the Linux console sends, and in answers, letters mean something else.
        letter = "" if before[1:2] in tuple("<=>?[") else last
        if letter == "R" and second.isdecimal():
            return Key("cursor", second)
        if first + last == "[200~":
            self._paste = bytearray()
            return None
        if event.startswith("3"):
            # A key that was let go.
            return None
        if letter == "u" or first + last == "[27~":
            return self._coded(first[1:] if letter == "u" else third, held)
        name = self._NAMES.get(first + last) or self._LETTERS.get(letter)
        if name and held & 6:
            name = self._WITH_CTRL.get(name, name)
        return Key(name) if name else None

    def _coded(self, codes: str, held: int) -> Optional[Key]:
        """A key that comes as the number of its character (modifyOtherKeys, kitty)."""
        code, _, shifted = codes.partition(":")
        if held & 1 and shifted.partition(":")[0].isdecimal():
            code = shifted.partition(":")[0]
        if not code.isdecimal() or int(code) > sys.maxunicode:
            return None
        char = chr(int(code))
        if char in self._CONTROLS:
            name = self._CONTROLS[char]
            if name == "tab" and held & 6:
                return None
            if name == "enter" and held & 3:
                return Key("newline")
            return Key("alt-" * (held >> 1 & 1) + name)
        if held & 4 and char.isascii() and char.isalpha():
            return Key("ctrl-" + char.lower())
        if held & 6 or not char.isprintable():
            return Key("alt-" + char.lower()) if held & 2 and char.isprintable() else None
        return Key("text", char.upper() if held & 1 and not shifted else char)

    def _plain(self) -> Optional[Key]:
        """Text up to the next control character, or that character."""
        found = re.match(rb"[^\x00-\x1f\x7f]+", self._rest)
        if found is not None:
            self._rest = self._rest[found.end():]
            text = clean_text(self._decoder.decode(found[0], final=bool(self._rest)))
            return Key("text", text) if text else None
        # A character that was never finished is given up.
        self._decoder.reset()
        char, self._rest = chr(self._rest[0]), self._rest[1:]
        return Key(self._CONTROLS.get(char) or "ctrl-" + chr(ord(char) + 0x60))


# A line that ends with the path of a file, blanks and all.
_TAKES_PATH = re.compile(r"\s*/send\s+", re.IGNORECASE)


class Editor:
    """The line that is typed: its text, the cursor in it, what was entered before.

    Keys in; it knows no screen. The cursor is an index into the text, always between two
    clusters.
    """

    # Lines that Up brings back.
    REMEMBERED = 100
    PROMPT = "> "

    def __init__(self) -> None:
        self.text = ""
        self.cursor = 0
        # What was entered, oldest first, and at the end what was typed when one left the line of
        # now; and how many lines back is the one that is shown.
        self._lines = [""]
        self._back = 0
        # What Ctrl-Y brings back.
        self._killed = ""
        # Ctrl-R: what is looked for in the lines from before; None while nothing is.
        self._sought: Optional[str] = None
        # The text before what Tab offers, that in its turn, and the text after it.
        self._completing: "Optional[tuple[str, Iterator[str], str]]" = None

    @property
    def prompt(self) -> str:
        """What stands before the line."""
        return self.PROMPT if self._sought is None else f"(find `{escape(self._sought)}') "

    def press(self, key: Key) -> bool:
        """Do what a key does to the line; False when it means nothing here, or when the line
        would be too long."""
        if self._sought is not None and key.name not in ("ctrl-r", "text", "backspace"):
            self._sought = None
            if key.name in ("escape", "ctrl-g"):
                self._show(0)
        if key.name == "ctrl-r" or self._sought is not None:
            return self._find_before(key)
        if key.name in ("text", "newline", "ctrl-y"):
            return self.insert({"newline": "\n", "ctrl-y": self._killed}.get(key.name, key.text))
        self._completing = None
        if key.name in self._MOVES:
            self.cursor = self._MOVES[key.name](self)
        elif key.name in self._DELETES:
            self._delete(self._DELETES[key.name](self))
        elif key.name in self._KILLS:
            self._killed = self._delete(self._KILLS[key.name](self)) or self._killed
        elif key.name in self._LINES:
            self._LINES[key.name](self)
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
        if text.strip() and self._lines[-2:-1] != [text]:
            self._lines = [*self._lines[:-1], text][-self.REMEMBERED:] + [""]
        self._begin_anew()
        return text

    def clear(self) -> None:
        """Empty the line; Ctrl-Y brings it back."""
        self._killed = self.text or self._killed
        self._begin_anew()

    def set(self, text: str) -> None:
        """Another text, the cursor at its end."""
        self.text, self.cursor = text, len(text)
        self._completing = None

    def complete(self, offers: "Callable[[str, bool], list[str]]") -> None:
        """Tab: complete the word before the cursor with the first of offers(word, whether it
        is the first of the line); the next Tab tries the next."""
        completing = self._completing or self._offered(offers)
        if completing is not None:
            before, words, after = completing
            self.set(before + next(words))
            self.text += after
            self._completing = completing

    def _offered(self, offers: "Callable[[str, bool], list[str]]"
                 ) -> "Optional[tuple[str, Iterator[str], str]]":
        before, after = self.text[:self.cursor], self.text[self.cursor:]
        path = _TAKES_PATH.match(before)
        start = (path.end() if path else len(before.rstrip()) if before.isspace()
                 else max(before.rfind(space) for space in " \n\t") + 1)
        before, word = before[:start], before[start:]
        found = [offer for offer in offers(word, not before.strip())
                 if len(before + offer + after) <= MAX_TEXT]
        # At last what was typed is there again.
        return (before, itertools.cycle(found + [word] * bool(word)), after) if found else None

    # What was entered before

    def _begin_anew(self) -> None:
        """An empty line of now."""
        self._sought, self._back = None, 0
        self.set("")

    def _show(self, back: int) -> None:
        """Show what was entered so many lines ago; 0 is the line of now, which is kept for the way
        back."""
        if self._back == 0:
            self._lines[-1] = self.text
        self._back = back
        self.set(self._lines[-1 - back])

    def _older(self, by: int = 1) -> None:
        """Show what was entered before what is shown, or with -1 after it."""
        if 0 <= self._back + by < len(self._lines):
            self._show(self._back + by)

    def _newer(self) -> None:
        self._older(-1)

    def _find_before(self, key: Key) -> bool:
        """Show the newest line from before that has what is looked for; with Ctrl-R again the
        next one. False when there is none: the line stays."""
        if self._sought is None:
            self._sought = ""
            return True
        if key.name == "backspace":
            self._sought = self._sought[:-1]
        self._sought += key.text
        # Another word is looked for from the newest line on, that which is shown included.
        first = self._back + 1 if key.name == "ctrl-r" else 1
        found = [back for back in range(first, len(self._lines))
                 if name_key(self._sought) in name_key(self._lines[-1 - back])]
        if self._sought and found:
            self._show(found[0])
        return bool(found)

    # Places in the text

    def _settle(self) -> None:
        """Move the cursor to the end of the cluster that it is in."""
        self.cursor = next(place for place in _places(self.text) if place >= self.cursor)

    def _left(self) -> int:
        return self.cursor - len((clusters(self.text[:self.cursor]) or [""])[-1])

    def _right(self) -> int:
        return self.cursor + len((clusters(self.text[self.cursor:]) or [""])[0])

    def _line_start(self) -> int:
        return self.text.rfind("\n", 0, self.cursor) + 1

    def _line_end(self) -> int:
        return self.cursor + len(self.text[self.cursor:].partition("\n")[0])

    def _space_left(self) -> int:
        """The start of the word before the cursor, where a word ends at a space alone."""
        return self.cursor - _to_word_end(reversed(clusters(self.text[:self.cursor])),
                                          lambda cluster: not cluster.isspace())

    def _word_left(self) -> int:
        """The same, where a word ends at whatever is no letter or digit."""
        return self.cursor - _to_word_end(reversed(clusters(self.text[:self.cursor])), _is_word)

    def _word_right(self) -> int:
        return self.cursor + _to_word_end(clusters(self.text[self.cursor:]), _is_word)

    # What the keys do

    def _delete(self, place: int) -> str:
        """Delete from the cursor to a place on either side, and return what that was."""
        start, end = sorted((self.cursor, place))
        deleted = self.text[start:end]
        self.text, self.cursor = self.text[:start] + self.text[end:], start
        return deleted

    def _up(self) -> None:
        """The line above in a text of several lines; from the first one, what was entered
        before."""
        start = self._line_start()
        if start == 0:
            self._older()
        else:
            self._to_column(self.text.rfind("\n", 0, start - 1) + 1, self.cursor - start)

    def _down(self) -> None:
        end = self._line_end()
        if end == len(self.text):
            self._newer()
        else:
            self._to_column(end + 1, self.cursor - self._line_start())

    def _to_column(self, start: int, column: int) -> None:
        """Into the line from `start`, so many characters right, but never into a cluster."""
        line = self.text[start:].partition("\n")[0]
        self.cursor = start + max(place for place in _places(line) if place <= column)

    _MOVES = {"left": _left, "ctrl-b": _left, "right": _right, "ctrl-f": _right,
              "home": _line_start, "ctrl-a": _line_start, "end": _line_end, "ctrl-e": _line_end,
              "word-left": _word_left, "alt-b": _word_left, "word-right": _word_right,
              "alt-f": _word_right}
    # From the cursor to where; what a kill deletes comes back with Ctrl-Y.
    _DELETES = {"backspace": _left, "delete": _right, "ctrl-d": _right}
    _KILLS = {"ctrl-u": _line_start, "ctrl-k": _line_end, "ctrl-w": _space_left,
              "alt-backspace": _word_left, "alt-d": _word_right}
    _LINES = {"up": _up, "ctrl-p": _older, "down": _down, "ctrl-n": _newer}


def _places(text: str) -> "Iterator[int]":
    """The places between the clusters of a text, from its start to its end."""
    return itertools.accumulate(map(len, clusters(text)), initial=0)


def _is_word(cluster: str) -> bool:
    return cluster[0].isalnum() or cluster[0] == "_"


def _to_word_end(found: "Iterable[str]", is_word: "Callable[[str], bool]") -> int:
    """How many characters there are up to the end of the next word in this direction."""
    length = 0
    for in_word, group in itertools.groupby(found, is_word):
        length += sum(map(len, group))
        if in_word:
            break
    return length


# --- The screen: rows of cells ---

# How, what, and how many columns.
Cell = Tuple[str, str, int]
Row = List[Cell]
BLANK: Cell = ("", " ", 1)


def _width(cells: "Iterable[Cell]") -> int:
    """The columns of these cells."""
    return sum(columns for _, _, columns in cells)


def wrap(line: Line, width: int, columns: Columns, first: int = 0, rest: int = 0) -> "list[Row]":
    """The rows of a line: the first one after `first` blanks, the others after `rest`; broken
    at spaces where there are any, and before the letters of Chinese and Japanese.

    The address of a page that is longer than a row goes on without blanks, so that it can be
    copied whole; what comes after it begins another row, as it could pass for a message.
    """
    rows: "list[Row]" = []
    row: Row = [BLANK] * first
    # The columns that are used; where the word begins that may go to the next row, 0 for
    # nowhere; whether the row begins with the rest of an address.
    used, space, goes_on = first, 0, False
    for style, text in line:
        is_page = LINK in style
        for cluster in clusters(text):
            cell = (style, cluster, columns.of(cluster))
            may_begin = cell[2] == 2 and _MAY_BEGIN.match(cluster)
            if used + cell[2] > width or goes_on and not is_page:
                # A space at the edge is the break itself.
                if cluster == " ":
                    cell = ("", "", 0)
                word = row[space:] if space and not may_begin else []
                # A word that is longer than a row is broken at the edge.
                is_longer = is_page and len(text) + rest > width
                if is_longer or _width(word) + rest + cell[2] > width:
                    word = []
                rows.append(row[:len(row) - len(word)] if cell[2] else [*row, (style, "", 0)])
                goes_on = is_page and not word
                row = [BLANK] * (0 if goes_on else rest) + (word if cell[2] else [])
                used, space = _width(row), 0
            if may_begin and used > rest:
                space = len(row)
            if cell[1]:
                row.append(cell)
                used += cell[2]
            if cluster == " " and len(row) > rest:
                space = len(row)
    return [*rows, row]


class Place(NamedTuple):
    """Where one has scrolled to: the entry at the bottom of the screen (None: above all of them),
    how many of its cells come before the bottom row, so that it is found again at another width,
    and the entry that was the newest then."""

    entry: Optional[Entry]
    cells: int
    newest: Optional[Entry]


class Scrollback:
    """What there is to show, in order, and how far back one has scrolled."""

    # Entries that one can scroll back to, and characters in them; older ones are dropped.
    REMEMBERED = 10_000
    REMEMBERED_SIZE = 8_000_000

    def __init__(self) -> None:
        # Oldest first, and at the end the unplaced.
        self.entries: "list[Entry]" = []
        # The characters in the entries.
        self._size = 0
        # What we said and has no place in the order yet, by our id.
        self._unplaced: "dict[int, Entry]" = {}
        # None follows what is new.
        self.place: Optional[Place] = None
        # The empty page that /clear puts after what was said; nowhere before the first one.
        self._page = Entry([])
        # Says up to where one had read, and has its place with what is new after that.
        self._unread: Optional[Entry] = None

    def add(self, entry: Entry) -> None:
        """Append an entry. One of our own leaves the unplaced; who came and went goes on with
        the entry before."""
        end, last = self._placed, self._last_placed
        if isinstance(entry, Presence) and isinstance(last, Presence):
            last.take(entry)
            return
        if entry.said is not None and entry.said.id in self._unplaced:
            at = self.entries.index(self._unplaced.pop(entry.said.id), end)
            self._replace(at, at + 1, [entry])
            self.entries.insert(end, self.entries.pop(at))
        else:
            self.entries.insert(end, entry)
            self._size += entry.size
        if end > self.REMEMBERED * 11 // 10 or self._size > self.REMEMBERED_SIZE:
            # Many are dropped at once, as moving the rest costs.
            self._replace(0, max(1, self._placed // 11), [])

    def add_unplaced(self, said: Said, entry: Entry) -> None:
        """What we said a moment ago: after everything else, until it comes back at its place."""
        self._unplaced[said.id] = entry
        self._replace(len(self.entries), len(self.entries), [entry])

    def settle(self, said: Said) -> None:
        """This may never come back: it stays where it is, unless it comes after all."""
        if said.id in self._unplaced:
            self.add(self._unplaced[said.id])

    def insert(self, older: "list[Entry]",
               with_days: "Callable[[list[Entry]], list[Entry]]") -> int:
        """Put older messages in their places, with the lines that say which day begins; what
        is shown stays. Return how many are new."""
        known = {entry.id for entry in self.entries}
        older = [entry for entry in older if entry.id not in known]
        if not older:
            return 0
        place = next((place for place, entry in enumerate(self.entries)
                      if entry.id > older[-1].id), self._placed)
        end = place + 1
        while place and self.entries[place - 1].day:
            place -= 1
        self._replace(place, end, with_days(older + self.entries[place:end][-1:]))
        return len(older)

    def remove(self, entry: Entry) -> None:
        """Take an entry out, if it is there."""
        place = self.index(entry)
        if place >= 0:
            self._replace(place, place + 1, [])

    def came_back(self, text: str, to: Optional[str]) -> None:
        """Something of ours has come at its place: if it was kept elsewhere, that goes."""
        kept = next((entry for entry in self.entries[:self._placed]
                     if entry.message is None and entry.said is not None
                     and (entry.said.state, entry.said.text, entry.said.to) == (THERE, text, to)),
                    None)
        if kept is not None:
            self.remove(kept)

    def entry_of(self, id: int) -> Optional[Entry]:
        """The entry of what was said under this id of the server."""
        return next((entry for entry in reversed(self.entries)
                     if entry.id == id and entry.chat is not None), None)

    def index(self, entry: Optional[Entry]) -> int:
        """Where an entry is; -1, above all of them, for None and for one that is gone."""
        if entry is not None:
            with contextlib.suppress(ValueError):
                return self.entries.index(entry)
        return -1

    @property
    def oldest(self) -> Optional[int]:
        """The lowest id of a message that is here."""
        return min((entry.id for entry in self.entries if entry.id), default=None)

    def go_to(self, entry: Entry, cells: int) -> None:
        """Have the row after so many cells of this entry at the bottom."""
        newest = self._last_placed if self.place is None else self.place.newest
        self.place = Place(entry, cells, newest)

    def follow(self) -> None:
        """Back to the bottom, if one had scrolled away from it."""
        self.place = None

    def come_back(self, place: Optional[Place]) -> None:
        """Back to where one was, or to the bottom where that is gone."""
        is_there = place is not None and self.index(place.entry) >= 0
        self.place = place if is_there else None

    def mark(self, note: Callable[[str], Entry], is_away: bool) -> None:
        """Append the line that says up to where one has read, where the next entry is the first one
        that the user, who may look elsewhere, does not read at once."""
        if self._unread is None and (is_away or self.place is not None):
            self._unread = note("-- read up to here --")
            self.add(self._unread)

    def unmark(self) -> None:
        """All that is here has been read."""
        if self._unread is not None:
            self.remove(self._unread)
            self._unread = None

    def clear(self) -> None:
        """Show nothing of what was said up to now, until one scrolls back."""
        self.remove(self._page)
        self.add(self._page)
        self.place = None

    @property
    def new_below(self) -> int:
        """Entries that came since one scrolled back, and are below what is shown. What we said is
        not news."""
        if self.place is None:
            return 0
        first = 1 + max(self.index(self.place.entry), self.index(self.place.newest))
        return sum(entry is not self._unread and entry.said is None
                   for entry in self.entries[first:])

    @property
    def _placed(self) -> int:
        """How many entries have their place: all but the unplaced."""
        return len(self.entries) - len(self._unplaced)

    @property
    def _last_placed(self) -> Optional[Entry]:
        return self.entries[self._placed - 1] if self._placed else None

    def _replace(self, first: int, end: int, new: "list[Entry]") -> None:
        """Have others in place of these entries. What was at one that goes is at the last of the
        others, or at the one before them."""
        gone = set(self.entries[first:end]).difference(new)
        self._size += sum(entry.size for entry in new)
        self._size -= sum(entry.size for entry in self.entries[first:end])
        self.entries[first:end] = new
        at = first + len(new) - 1
        instead = self.entries[at] if at >= 0 else None
        if self.place is not None:
            entry, cells, newest = self.place
            self.place = Place(instead if entry in gone else entry, cells,
                               instead if newest in gone else newest)


class Screen:
    """What is on the terminal: messages above, one status line, the line that is typed.

    It knows no terminal: paint() returns what to write to one so that it shows what has
    changed.
    """

    # The pinned line is shown from so many rows on, people beside the talk from so many
    # columns on, in a column of this width.
    PINNED_ROWS = 10
    PEOPLE_COLUMNS, PEOPLE_WIDTH = 100, 24

    def __init__(self, theme: Theme, editor: Editor) -> None:
        self.columns = Columns()
        # What is shown above.
        self.talk = Scrollback()
        # The parts of the status line, the most dispensable last, and what is shown in their
        # place while there is a question.
        self.status: "list[str]" = []
        self.question = ""
        # The line that stays on top, the names beside the talk (None: not shown), and the
        # entry that is shown reversed.
        self.pinned = ""
        self.people: "Optional[list[str]]" = None
        self.found: Optional[Entry] = None
        self._theme = theme
        self._editor = editor
        self._height, self._width = 24, 80
        # What the terminal shows, None for a row that is not known; where its cursor is.
        self._painted: "list[Optional[Row]]" = []
        self._cursor = (-1, -1)
        # The rows of the entries that are shown, after what they were made of.
        self._wrapped: "dict[Entry, tuple[Any, list[Row]]]" = {}

    def resize(self, height: int, width: int) -> None:
        """The terminal has another size."""
        if (height, width) != (self._height, self._width):
            self._height, self._width = max(1, height), max(1, width)
            self.forget()

    def learn(self, widths: "list[int]") -> None:
        """What Columns.PROBE found."""
        self.columns = Columns(*widths)
        self.forget()

    def forget(self) -> None:
        """Something else may have written on the terminal: the next paint() is of all."""
        self._painted = []

    # Scrolling

    def scroll(self, pages: int) -> None:
        """Back (-1) or forth (1) by a page, less one row."""
        self.scroll_rows(pages * max(1, self._message_height() - 1))

    def scroll_rows(self, rows: int) -> None:
        """Back (-1) or forth (1) by a row."""
        entries = self.talk.entries
        place, row = self._place()
        row += rows
        while row < 0 and place > 0:
            place -= 1
            row += len(self._rows(entries[place]))
        self._go_to(*self._below_the_top(place, max(0, row)))

    def show(self, talk: Scrollback, entry: Entry) -> None:
        """Show an entry of this talk as found, in the middle."""
        self.talk, self.found = talk, entry
        self._go_to(*self._below_the_top(talk.index(entry), self._message_height() // 2))

    @property
    def is_at_top(self) -> bool:
        """There is nothing above what is shown."""
        return not self.talk.entries or self._place() == self._below_the_top(0, 0)

    def _go_to(self, place: int, row: int) -> None:
        """Have this row at the bottom."""
        if (place, row) == self._last():
            self.talk.follow()
            return
        entry = self.talk.entries[place]
        self.talk.go_to(entry, sum(map(self._content, self._rows(entry)[:row])))

    def _has_people(self) -> bool:
        return self.people is not None and self._width >= self.PEOPLE_COLUMNS

    @property
    def _room(self) -> int:
        """The columns of messages."""
        return self._width - (self.PEOPLE_WIDTH if self._has_people() else 0)

    @property
    def _indent(self) -> int:
        return min(len(INDENT), self._room // 4)

    def _content(self, row: Row) -> int:
        """The cells of a row without its indent, so many at any width; one where it is empty."""
        indent = self._indent
        return max(1, len(row) - (indent if row[:indent] == [BLANK] * indent else 0))

    def _last(self) -> "tuple[int, int]":
        entries = self.talk.entries
        return len(entries) - 1, len(self._rows(entries[-1])) - 1 if entries else 0

    def _place(self) -> "tuple[int, int]":
        """The entry, and the row in it, that are at the bottom now."""
        if self.talk.place is None:
            return self._last()
        entry, cells, _ = self.talk.place
        if entry is None:
            return self._below_the_top(0, 0)
        rows, row = self._rows(entry), 0
        while row < len(rows) - 1 and cells >= self._content(rows[row]):
            cells -= self._content(rows[row])
            row += 1
        return self._below_the_top(self.talk.index(entry), row)

    def _below_the_top(self, place: int, row: int) -> "tuple[int, int]":
        """This row or a lower one: the rows above it fill the screen, where there are as
        many; and it is at most the last one."""
        entries, missing = self.talk.entries, self._message_height() - 1 - row
        for entry in reversed(entries[max(0, place - missing):place] if missing > 0 else []):
            missing -= len(self._rows(entry))
        row += max(0, missing)
        while place < len(entries) - 1 and row >= len(self._rows(entries[place])):
            row -= len(self._rows(entries[place]))
            place += 1
        return place, min(row, len(self._rows(entries[place])) - 1) if entries else 0

    # Rows

    def _rows(self, entry: Entry) -> "list[Row]":
        """An entry as wrapped for the width of now; one without lines is an empty page."""
        *others, last = entry.lines or [[]] * max(1, self._message_height())
        if entry.said is not None:
            last = [*last, self._state(entry.said)]
        made_of = self.columns, self._room, others, last
        known = self._wrapped.get(entry)
        if known is not None and known[0] == made_of:
            return known[1]
        indent = self._indent
        rows = [row for number, line in enumerate([*others, last])
                for row in wrap(line, self._room, self.columns, indent if number else 0, indent)]
        self._wrapped[entry] = made_of, rows
        return rows

    def _state(self, said: Said) -> Span:
        if said.state == FAILED:
            return self._theme.error, f" (failed: {escape(said.reason)})"
        state: str = said.state
        if said.state == THERE and said.of:
            heard = "by all" if said.heard >= said.of else f"by {said.heard} of {said.of}"
            state = "heard" if said.to is not None and said.heard else f"heard {heard}"
        return self._theme.dim, f" ({state})"

    def _message_height(self) -> int:
        pinned = self.pinned != "" and self._height >= self.PINNED_ROWS
        return max(0, self._height - 1 - pinned - len(self._input()[0]))

    def _messages(self, height: int) -> "list[Row]":
        """The rows of what was said, the newest at the bottom."""
        rows: "list[Row]" = []
        shown: "list[Entry]" = []
        if self.talk.entries and height:
            last, row = self._place()
            for place in range(last, -1, -1):
                entry = self.talk.entries[place]
                shown.append(entry)
                more = self._rows(entry)[:row + 1 if place == last else None]
                if entry is self.found:
                    more = list(map(_reversed, more))
                rows = more + rows
                if len(rows) >= height:
                    break
        # The others forget their rows: thousands of entries would keep theirs.
        self._wrapped = {entry: self._wrapped[entry] for entry in shown}
        return [[] for _ in range(height - len(rows))] + rows[max(0, len(rows) - height):]

    def _beside(self, rows: "list[Row]") -> "list[Row]":
        """The rows of messages, with the names of people beside them."""
        if self.people is None or not self._has_people():
            return rows
        names = [f"{len(self.people)} here", *self.people]
        if len(names) > len(rows):
            names[len(rows) - 1:] = [f"and {len(names) - len(rows) + 1} more"]
        names += [""] * (len(rows) - len(names))
        return [self._padded(row, self._room) + self._fitting(
            f"| {name}", self._theme.dim if number == 0 else "", self.PEOPLE_WIDTH)
                for number, (row, name) in enumerate(zip(rows, names))]

    def _fitting(self, text: str, style: str, width: int) -> Row:
        """As much of a text as fits."""
        # No more than so many can fit, and a pinned line may be long.
        found = clusters(text)[:width]
        cells = [(style, cluster, self.columns.of(cluster)) for cluster in found]
        ends = itertools.accumulate(columns for _, _, columns in cells)
        return [cell for cell, end in zip(cells, ends) if end <= width]

    @staticmethod
    def _padded(row: Row, width: int, style: str = "") -> Row:
        """A row with blanks up to a width."""
        return row + [(style, " ", 1)] * (width - _width(row))

    def _status(self) -> Row:
        """One reversed line over the whole width, without the parts that do not fit."""
        parts = [self.question] if self.question else list(self.status)
        if self.talk.place is not None and not self.question:
            below = self.talk.new_below
            # In a search what was found comes first.
            parts.insert(int(self.found is not None),
                         f"{below} new below, PgDn" if below else "scrolled back")
        while len(parts) > 1 and sum(map(len, parts)) + 3 * len(parts) - 1 > self._width:
            parts.pop()
        row = self._fitting(" " + " | ".join(parts), self._theme.status, self._width)
        return self._padded(row, self._width, self._theme.status)

    def _input(self) -> "tuple[list[Row], tuple[int, int]]":
        """The rows of the line that is typed, at most a third of the screen, and where in
        them the cursor is."""
        prompt = self._fitting(self._editor.prompt, self._theme.bold, self._width - 1)
        rows, (row, column) = _typed_rows(tuple(prompt), self._editor.text, self._editor.cursor,
                                          self._width, self.columns)
        height = max(1, self._height // 3)
        first = min(max(0, row - height + 1), max(0, len(rows) - height))
        return rows[first:first + height], (row - first, column)

    # Painting

    def paint(self) -> str:
        """What to write to the terminal so that it shows what there is to show; "" where it
        does already."""
        typed, cursor = self._input()
        height = self._message_height()
        rows = self._beside(self._messages(height))
        if height + 1 + len(typed) < self._height:
            rows.insert(0, self._padded(self._fitting(
                self.pinned, self._theme.pinned, self._width), self._width, self._theme.pinned))
        rows = [*rows, self._status(), *typed][-self._height:]
        if len(self._painted) != len(rows):
            self._painted = [None] * len(rows)
        changed = [old != new for old, new in zip(self._painted, rows)]
        changes = [_repaint(number, self._painted[number], row, self._width, self._theme.links)
                   for number, row in enumerate(rows) if changed[number]]
        changes += [_join(number, *rows[number:number + 2]) for number in range(len(rows) - 1)
                    if any(changed[number:number + 2]) and self._go_on(*rows[number:number + 2])]
        self._painted = list(rows)
        place = (self._height - len(typed) + cursor[0], min(cursor[1], self._width - 1))
        if not changes and place == self._cursor:
            return ""
        self._cursor = place
        text = "".join(changes) + f"\x1b[{place[0] + 1};{place[1] + 1}H"
        if len(changes) < 2:
            return text
        # Shown at once where the terminal can hold it back (mode 2026), and without a cursor
        # that runs around elsewhere.
        return f"\x1b[?2026h\x1b[?25l{text}\x1b[?25h\x1b[?2026l"

    def _go_on(self, row: Row, other: Row) -> bool:
        """True when an address goes on from the edge of a row to the next row."""
        return (bool(row and other) and LINK in row[-1][0] and row[-1][0] == other[0][0]
                and _width(row) == self._width)


def _reversed(row: Row) -> Row:
    """A row of what was found."""
    return [(f"{style.partition(LINK)[0] or 0};7", what, columns) for style, what, columns in row]


@functools.lru_cache(maxsize=1)
def _typed_rows(prompt: "tuple[Cell, ...]", text: str, cursor: int, width: int,
                columns: Columns) -> "tuple[list[Row], tuple[int, int]]":
    """The rows of the line that is typed after a prompt, and where in them the cursor is. They are
    kept: a draft may be long."""
    start = _width(prompt)
    rows: "list[Row]" = [list(prompt)]
    used, place, found, before = start, 0, (0, start), ""
    # The last, empty one is where the cursor may be at the end.
    for cluster in [*clusters(text), ""]:
        shown = "" if cluster == "\n" else _show(cluster)
        cells = [("", part, columns.of(part)) for part in clusters(shown)]
        if before == "\n" or used + max(1, _width(cells)) > width and used > start:
            rows.append([("", " " * start, start)])
            used = start
        if place <= cursor < place + max(1, len(cluster)):
            found = (len(rows) - 1, used)
        rows[-1] += cells
        used += _width(cells)
        place += len(cluster)
        before = cluster
    return rows, found


def _join(number: int, row: Row, other: Row) -> str:
    """What has the terminal itself wrap row `number` into the next one: then both are copied
    as one line."""
    column = _width(row[:-1]) + 1
    style = row[-1][0].partition(LINK)[0]
    return (f"\x1b[{number + 1};{column}H\x1b[?7h\x1b[0;{style}m{row[-1][1]}{other[0][1]}"
            "\x1b[0m\x1b[?7l")


def _is_uncertain(cell: Cell) -> bool:
    """True for a cluster of several: how many columns a terminal gives it is not certain."""
    return len(cell[1]) > 1 and not cell[1].isascii()


def _repaint(number: int, old: Optional[Row], new: Row, width: int, links: bool) -> str:
    """What turns row `number` from `old` into `new`, from the first cell that differs. With
    `links` an address of a page is a link (OSC 8)."""
    before, same = old or [], 0
    # A row that went on in the next one is erased, that the terminal forgets it.
    if any(_is_uncertain(cell) or LINK in cell[0] for cell in [*before, *new]):
        old = None
    else:
        pairs = zip(before, new)
        same = next((place for place, (one, other) in enumerate(pairs) if one != other),
                    min(len(before), len(new)))
    # What has no columns is in the cell before it.
    while same and any(row[same][2] == 0 for row in (before, new) if same < len(row)):
        same -= 1
    column = _width(new[:same])
    text = [f"\x1b[{number + 1};{column + 1}H", "\x1b[K" * (old is None)]
    style = page = ""
    for how, what, columns in new[same:]:
        if how != style:
            look, _, link = how.partition(LINK)
            if links and link != page:
                # The number is the same in each row, that the terminal takes them for one.
                text.append(f"\x1b]8;id={zlib.crc32(link.encode())};{link}\x1b\\" if link
                            else "\x1b]8;;\x1b\\")
                page = link
            text.append(f"\x1b[0;{look}m" if look else "\x1b[0m")
            style = how
        text.append(what)
        column += columns
        if _is_uncertain((how, what, columns)) and column < width:
            text.append(f"\x1b[{number + 1};{column + 1}H")
    text.append("\x1b]8;;\x1b\\" * (page != ""))
    text.append("\x1b[0m" * (style != ""))
    text.append("\x1b[K" * (old is not None and column < min(width, _width(before))))
    return "".join(text)


# --- The terminal ---

class Terminal:
    """The terminal of a POSIX system, in raw mode from enter() to leave(). The only one that
    touches it."""

    # Saves the setting by which the mouse wheel presses Up and Down, for LEAVE to restore.
    # And the title, which OLD_TITLE brings back.
    KEEP_TITLE, OLD_TITLE = "\x1b[22;2t", "\x1b[23;2t"
    SAVE = "\x1b[?1007s" + KEEP_TITLE
    # With --mouse: the wheel, and what can be told of it.
    MOUSE = "\x1b[?1000;1006h"
    # The alternate screen; no wrapping at the edge, whatever the terminal thinks of a
    # character's width; pastes marked as such; whether the user looks at us is told; the mouse
    # wheel does not press Up and Down.
    # What another program left on is reset: the keys of the cursor and of the keypad, the
    # reports of the mouse, keys as numbers (modifyOtherKeys; kitty has its own for this screen).
    ENTER = ("\x1b[?1049h\x1b[?7l\x1b[?1;1000;1002;1003;1006l\x1b>\x1b[>4m"
             "\x1b[?2004h\x1b[?1004h\x1b[?1007l\x1b[0m\x1b[2J")
    LEAVE = ("\x1b[0m\x1b[?25h\x1b[?1007r\x1b[?1000;1004;1006l\x1b[?2004l\x1b[?7h\x1b[?1049l"
             + OLD_TITLE)

    def __init__(self) -> None:
        # How the terminal was set, while that is changed.
        self._settings: Any = None

    def enter(self) -> None:
        """Take the terminal over; again after it was away. Raises OSError."""
        is_first = self._settings is None
        self._change()
        self.write(self.SAVE * is_first + self.ENTER)

    def leave(self) -> None:
        """Give it back as it was. May be called twice, and when it is gone."""
        if self._settings is not None:
            with contextlib.suppress(OSError, ValueError):
                self.write(self.LEAVE)
            self.reset()

    def reset(self) -> None:
        """The part of leave() that never blocks, for a terminal that takes no more output."""
        settings, self._settings = self._settings, None
        if settings is not None:
            self._restore(settings)

    def read(self) -> bytes:
        """What was typed, as soon as there is something; b"" at the end."""
        return os.read(0, 4096)

    def has_more(self, seconds: float) -> bool:
        """True when there is more to read within so many seconds."""
        return bool(select.select([0], [], [], seconds)[0])

    def write(self, text: str) -> None:
        """All of it, past Python's buffers, so in one piece where the system takes it. Raises
        OSError when the terminal is gone."""
        data = text.encode(sys.stdout.encoding, "backslashreplace")
        while data:
            try:
                data = data[os.write(1, data):]
            except BlockingIOError:
                # Another program has made the terminal non-blocking.
                select.select([], [1], [], 1)

    def size(self) -> "tuple[int, int]":
        """Rows and columns."""
        try:
            columns, rows = os.get_terminal_size(1)
        except OSError:
            columns = rows = 0
        return rows or 24, columns or 80

    def _change(self) -> None:
        if sys.platform != "win32":
            import termios
            import tty
            try:
                self._settings = self._settings or termios.tcgetattr(0)
                tty.setraw(0, termios.TCSADRAIN)
            except termios.error as error:
                # It is no OSError.
                raise OSError(*error.args) from error

    def _restore(self, settings: Any) -> None:
        if sys.platform != "win32":
            import termios
            # Unless the terminal is gone.
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSANOW, settings)


class WindowsTerminal(Terminal):
    """The console of Windows 10 or newer, told to understand escape sequences and to send
    keys as such."""

    # Standard handle: what is switched on (ENABLE_VIRTUAL_TERMINAL_INPUT, _PROCESSING) and
    # off (Ctrl-C, lines, echo).
    _MODES = {-10: (0x0200, 0x0007), -11: (0x0004, 0)}

    def __init__(self) -> None:
        super().__init__()
        import ctypes
        self._ctypes: Any = ctypes
        # WinDLL is looked up by its name, as mypy does not know it elsewhere.
        self._kernel = self._ctypes.WinDLL("kernel32")
        self._kernel.GetStdHandle.restype = ctypes.c_void_p
        # An emoji may come in halves.
        self._decoder = codecs.getincrementaldecoder("utf-16-le")("replace")

    def _handle(self, number: int) -> Any:
        return self._ctypes.c_void_p(self._kernel.GetStdHandle(number))

    def _change(self) -> None:
        before = []
        for number, (on, off) in self._MODES.items():
            handle, mode = self._handle(number), self._ctypes.c_ulong()
            known = self._kernel.GetConsoleMode(handle, self._ctypes.byref(mode))
            before.append((number, mode.value))
            if not known or not self._kernel.SetConsoleMode(handle, mode.value & ~off | on):
                self._restore(before)
                raise OSError("this console cannot be controlled, try --plain")
        self._settings = self._settings or before

    def _restore(self, settings: Any) -> None:
        for number, mode in settings:
            self._kernel.SetConsoleMode(self._handle(number), mode)

    def has_more(self, seconds: float) -> bool:
        """Not known: a wait for input also ends for what is no key, and then a read blocks."""
        return False

    def write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def read(self) -> bytes:
        buffer, count = self._ctypes.create_unicode_buffer(4096), self._ctypes.c_ulong()
        if not self._kernel.ReadConsoleW(self._handle(-10), buffer, 4096,
                                         self._ctypes.byref(count), None):
            raise OSError("the console is gone")
        return self._decoder.decode(bytes(buffer)[:2 * count.value]).encode()


def takes_links() -> bool:
    """True for a terminal that takes links (OSC 8), or is not known to print them."""
    return not os.environ.get("TERM", "").startswith(("linux", "vt", "ansi", "cons"))


def colours() -> int:
    """How many colours the terminal has, and the user wants."""
    if os.environ.get("NO_COLOR"):
        return 0
    if os.environ.get("COLORTERM") in ("truecolor", "24bit"):
        return 256
    try:
        import curses
    except ImportError:
        # The console of Windows, where there is no curses, has them.
        return 256
    try:
        curses.setupterm()
        return curses.tigetnum("colors")
    except curses.error:
        # A terminal that is in no list.
        return 8


def is_attended() -> bool:
    """Whether stdin and stdout are a terminal, at which somebody may be asked."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def takes_screen(arguments: argparse.Namespace) -> bool:
    """True when stdin and stdout are a terminal that may be painted on."""
    unattended = arguments.listen or arguments.send or not is_attended()
    is_dumb = os.environ.get("TERM", "dumb") in ("", "dumb", "unknown")
    return not (arguments.plain or arguments.json or unattended
                or is_dumb and sys.platform != "win32")


# --- The two interfaces ---

class Interface(abc.ABC):
    """What both interfaces make of the same events; they differ in how they show them.

    The client's thread makes an event, a method and its arguments, of each callback and hands
    it to post(). Plain runs it there and then, Window's main thread runs it when it comes to
    it.
    """

    # Messages from before that are shown to one who reopens the terminal.
    CONTEXT = 20

    def __init__(self, arguments: argparse.Namespace, theme: Theme, receipts: bool,
                 config: Optional[str]) -> None:
        self._arguments = arguments
        self._not_delivered: "list[Said]" = []
        # The exit code, once it is over; and why, where the user did not end it.
        self._over: Optional[int] = None
        self._ended = ""
        # We have been in.
        self._welcomed = False
        # The signal that ended us; the process has to end by it as well.
        self.killed_by = 0
        self.motd: Optional[str] = None
        # Who wrote to us privately last, for /reply, under the name of now; "" where there is
        # nobody to reply to, for this reason.
        self.last_private = ""
        self.no_reply = "nobody has written to you privately"
        self.client = ChatClient(
            arguments.host, arguments.port, arguments.name, receipts=receipts,
            on_welcome=self._callback(self._on_welcome),
            on_message=self._callback(self._on_message), on_state=self._on_state,
            on_lost=functools.partial(self.post, self._lose), on_end=self._on_end,
            tls=arguments.tls, trust=arguments.trust, password=arguments.secret)
        self.settings = Settings(config)
        # For which news it rings, as chosen last.
        self.bell: str = arguments.bell or self.settings.bell
        # With --json the one who reads is a program, with a session for each run.
        self._kept = KeptSession(None if arguments.json else config,
                                 self.client.server.where, arguments.name)
        # Of the session that we go on with.
        self._ticket: Optional[Ticket] = None
        self.formatter = Formatter(self.client, theme, self.settings)
        self.commands = Commands(self)
        # For each /send and /get that is under way what the status line says. A dict's own methods
        # are atomic.
        self.errands: "dict[str, str]" = {}

    def run(self) -> int:
        """Chat until the user or the server ends it; return the exit code."""
        threading.excepthook = self._on_crash
        self._ticket = self._kept.take()
        if self._ticket is not None:
            self.client.go_on(self._ticket)
        try:
            self._arrive()
        except (ConnectionError, ProtocolError) as error:
            self._kept.keep(self.client.ticket)
            complain(str(error))
            return 1
        except KeyboardInterrupt:
            # Perhaps we are in already.
            self.client.close()
            raise
        patience = self._arguments.timeout
        try:
            self._chat()
        except KeyboardInterrupt:
            self._over, patience = 130, 0.0
        except Exception as error:
            self._over, self._ended, patience = 1, f"a bug: {chatproto.bug(error)}", 0.0
        # A signal in between only ends the wait.
        was_left = self._was_left
        try:
            self._close(patience)
        except KeyboardInterrupt:
            self._over = 130
            self.client.close()
        self._kept.keep(None if was_left else self.client.ticket)
        for said in self._not_delivered:
            what = said.state if said.state == UNKNOWN else "not delivered"
            complain(f"{what}: {_short(said)}" + (f" ({said.reason})" if said.reason else ""))
        if self._ended:
            complain(self._ended + self._rest())
        return self._over or int(bool(self._not_delivered or self._ended))

    def _arrive(self) -> None:
        """Connect and join; where the server wants to be trusted, or a password, ask the user, and
        come again. Raises ConnectionError, ProtocolError."""
        client, server, config = self.client, self.client.server, self._arguments.config
        known = config and os.path.join(os.path.dirname(config), "known_servers")
        key = server.key or known_servers(known).get(server.where.lower())
        if key:
            server.trust(key)
        while True:
            try:
                client.connect(self._arguments.timeout)
                break
            except Untrusted as untrusted:
                if not (untrusted.is_new and is_attended()
                        and ask_trust(server.where, untrusted.key)):
                    raise
                server.trust(untrusted.key)
            except PasswordWanted as refused:
                if not is_attended():
                    raise ConnectionError(f"{refused}: --password asks for it, --password-file "
                                          "FILE or ROGER_PASSWORD say it") from refused
                complain(str(refused))
                client.password = chatproto.check_password(chatproto.ask_password("Password: "))
        if server.key:
            try:
                remember_server(known, server.where, server.key)
            except OSError as error:
                complain(f"the server's key is not remembered: {error.strerror or error}")

    @abc.abstractmethod
    def _chat(self) -> None:
        """Until it is over."""

    def end(self, code: int) -> None:
        """It is over. What ended it first says the exit code."""
        self._over = code if self._over is None else self._over

    @property
    def _was_left(self) -> bool:
        """The user has ended it on purpose: who comes again is a new session."""
        return self._over in (0, 130) and not self.killed_by

    def _close(self, patience: float) -> None:
        """Leave; before that wait for what was said, until nothing went on for so many seconds."""
        self.client.close(patience)

    def _rest(self) -> str:
        """More to say of why it ended."""
        return ""

    # What commands use

    def show(self, *lines: str) -> None:
        """Show lines of our own, which are safe to show; one that begins with ! is an error."""
        for line in lines:
            self.add(self.formatter.note(line))

    def say(self, line: str, to: Optional[str] = None) -> None:
        """Say a line, cleaned, in several messages where it is too long for one; a line
        without text is none. Raises as _say_piece()."""
        text = clean_text(line)
        for start in range(0, len(text) if text.strip() else 0, MAX_TEXT):
            self._say_piece(text[start:start + MAX_TEXT], to)

    def say_file(self, answer: "dict[str, Any]") -> None:
        """Hand out what was uploaded. Raises as _say_piece()."""
        self._say_piece(answer["text"], None, {"url": answer["url"]})

    def attempt(self, action: Callable[..., None], *arguments: Any) -> None:
        """Do what the user asked for, or show why it cannot be done."""
        try:
            action(*arguments)
        except (ProtocolError, ConnectionError) as error:
            self.show(f"! {error}")
        except queue.Full:
            self.show("! too much waits to be sent: not sent, try again later")

    def chosen(self, line: str) -> None:
        """A setting was changed: keep it, and show what it is now."""
        self.settings.keep()
        self._tell_trouble()
        self.show(line)

    def ask(self, answered: Answered, count: int, before: Optional[int] = None,
            find: Optional[str] = None) -> None:
        """Ask for older messages; answered(answer) is called as an event, with None where the
        server cannot tell."""
        self.client.recall(self._callback(functools.partial(self.post, answered)), count, before,
                           find)

    def history(self, count: int) -> None:
        """Ask for so many older messages, and show them."""
        self.ask(self._show_older, count)

    # Commands that each does in its own way

    @abc.abstractmethod
    def search(self, rest: str) -> None:
        """/search WORDS: what was said with all these words (at most 256 characters)"""

    @abc.abstractmethod
    def clear(self, rest: str) -> None:
        """/clear: empty the screen (where there is one)"""

    def people(self, rest: str) -> None:
        """/people: who is here beside the talk, in a wide window; again: no more"""
        self.commands.names("")

    @abc.abstractmethod
    def quit(self, rest: str) -> None:
        """/quit (/exit): leave"""

    # How events are shown

    @abc.abstractmethod
    def _say_piece(self, text: str, to: Optional[str],
                   file: "Optional[dict[str, Any]]" = None) -> None:
        """Say one message. Raises queue.Full, and ConnectionError after the end."""

    @abc.abstractmethod
    def add(self, entry: Entry) -> None:
        """Show an entry after all others."""

    @abc.abstractmethod
    def _show_older(self, answer: Optional[Recalled]) -> None:
        """The answer to history(): None where the server keeps none."""

    @abc.abstractmethod
    def _lose(self, why: str, seconds: float) -> None:
        """The connection is lost; the next try is in so many seconds."""

    @abc.abstractmethod
    def _changed(self, said: Said) -> None:
        """What we said has another state: show it, where it is shown with what was said."""

    def _tell_trouble(self) -> None:
        """Tell, once, what is wrong with the file of the settings."""
        if self.settings.trouble:
            self.show("! " + escape(self.settings.trouble))
            self.settings.trouble = ""

    def _connect(self, welcome: Welcome, forgotten: "list[Said]") -> None:
        """We are in: say so, and as whom."""
        self._tell_trouble()
        self.motd = welcome.motd
        if self.last_private and (welcome.missed or not welcome.resumed):
            self.no_reply = (f"not sent, {self.last_private} may be somebody else since the break: "
                             "/msg NAME TEXT")
            self.last_private = ""
        if self._welcomed:
            self.show("* connected again")
        else:
            self._welcomed = True
            if welcome.motd:
                self.commands.motd("")
            again = " again" * welcome.resumed
            self.show(f"* you are {escape(welcome.name)}{again}, {self.client.here} here; "
                      "/help lists the commands")
            if self._ticket is not None and self._ticket.epoch == welcome.epoch:
                self.ask(self._show_older, self.CONTEXT, self._ticket.seen + 1)
        if name_key(welcome.name) != name_key(self.client.wanted):
            self.show(f"* your name is {escape(welcome.name)} for now: "
                      f"{escape(self.client.wanted)} is taken")

    def _hear(self, message: Message, entries: "list[Entry]", own: bool, is_news: bool) -> None:
        """A message has come. It `is_news` where somebody else has said it since we came, and it is
        shown."""
        # First: whoever sees a message may answer it at once.
        if isinstance(message, Chat):
            # What is history may be of somebody who had that name then.
            if is_news and message.to is not None:
                self.last_private = message.sender
        elif (isinstance(message, (Renamed, Left))
              and name_key(message.name) == name_key(self.last_private)):
            self.last_private = message.to if isinstance(message, Renamed) else ""
            self.no_reply = f"{message.name} has left: not sent"
        for entry in entries:
            self.add(entry)
        if isinstance(message, Motd):
            self.motd = message.text
            self.commands.motd("")
        elif isinstance(message, Removed):
            self.formatter.files.removed(message.about)
        elif isinstance(message, Left):
            self._take_name(message)

    def _take_name(self, left: Left) -> None:
        """Somebody has left: where it was our own lost session in another terminal, and has had the
        name that we want, that is ours again."""
        wanted = name_key(self.client.wanted)
        if (self._kept.is_elsewhere and left.reason == "gone away"
                and name_key(left.name) == wanted != name_key(self.client.name)):
            self.client.rename(self.client.wanted)

    # On the client's thread

    def _callback(self, callback: Callable[..., None]) -> Callable[..., None]:
        """What is called in place of it for each frame."""
        return callback

    def post(self, event: Callable[..., None], *arguments: Any) -> None:
        """Have an event run; on the thread "file" as well."""
        event(*arguments)

    def _on_welcome(self, welcome: Welcome) -> None:
        if welcome.missed or not welcome.resumed:
            self.formatter.forget_people()
        ticket = self.client.ticket
        if ticket is not None and not welcome.resumed:
            # What was seen was in another session, perhaps of another run of ids.
            ticket = ticket._replace(seen=0)
        self._kept.keep(ticket)
        self.post(self._connect, welcome, self.client.forgotten(welcome))

    def _on_message(self, message: Message) -> None:
        self._kept.follow(self.client)
        own = self.client.is_own(message)
        if self._is_wanted(message, own):
            entries = self.formatter.entries(message, own, self.client.said_of(message.id))
            is_new = message.id > self.client.history_until
            self.post(self._hear, message, entries, own,
                      isinstance(message, Chat) and bool(entries) and is_new and not own)

    def _rings(self, chat: Chat) -> bool:
        """The user wants to be called to this news."""
        return (self.bell == "all"
                or self.bell == "mentions" and self.formatter.is_mention(chat))

    @abc.abstractmethod
    def _is_wanted(self, message: Message, own: bool) -> bool:
        """True for what is to be shown."""

    def _on_state(self, said: Said) -> None:
        if said.state in (FAILED, UNKNOWN):
            self._not_delivered.append(said)
        self.post(self._changed, said)

    def _on_end(self, why: str) -> None:
        self._ended = why
        self.post(self.end, 1)

    def _on_late_signal(self, number: int, frame: Any) -> None:
        """A signal that is to end us, while the terminal is as it was: leave; the second one
        ends us at once."""
        if self.killed_by:
            end_by(number)
        self.killed_by = number
        raise KeyboardInterrupt

    def _on_crash(self, crash: Any) -> None:
        """On a thread of ours that ends by a bug: end all of it, in order."""
        if not issubclass(crash.exc_type, SystemExit):
            self._on_end(f"a bug: {chatproto.bug(crash.exc_value)}")


def _errand(ui: Interface, what: str,
            work: "Callable[[Callable[[int, int], None]], None]") -> None:
    """Do what /send and /get ask for, on a thread "file" of its own; work(progress) posts what
    comes of it."""
    if what in ui.errands:
        ui.show(f"! {what} already")
        return
    ui.errands[what] = what
    started = time.monotonic()

    def progress(done: int, size: int) -> None:
        speed = done / max(0.1, time.monotonic() - started)
        percent = 100 * done // size if size else 100
        ui.errands[what] = f"{what}: {percent} %, {chatproto.size_in_words(speed)}/s"

    def run() -> None:
        try:
            work(progress)
        except (FileError, ConnectionError) as error:
            ui.post(ui.show, f"! {what}: {error}")
        finally:
            del ui.errands[what]
    # A daemon: the end of the client ends it.
    threading.Thread(target=run, name="file", daemon=True).start()


class Plain(Interface):
    """Lines in, lines out, nothing repainted: for pipes, dumb terminals, screen readers.

    The thread "stdin" reads lines into a queue, the main thread says them, and the client's
    thread prints what comes.
    """

    # Lines that may wait in it; then the reader waits.
    LINES = 100
    # What is said where there are no messages to show, and where the server cannot tell.
    _NOTHING = {
        "older": ("* nothing older is kept", "! the server keeps no older messages"),
        "found": ("* nothing was found", "! this server cannot search")}

    def __init__(self, arguments: argparse.Namespace) -> None:
        # With --listen or --send nothing is read, so what there is at stdin does not matter.
        self._is_pipe = bool(arguments.listen or arguments.send or sys.stdin is None
                             or not sys.stdin.isatty())
        # At the end None: there are no more.
        self._lines: "queue.Queue[Optional[str]]" = queue.Queue(self.LINES)
        # Lines of a pipe that were not sent because one gave up.
        self._unread = 0
        if arguments.listen:
            # A service is ended so.
            _catch(("SIGTERM", "SIGHUP"), self._on_late_signal)
        super().__init__(arguments, Theme(0), receipts=False,
                         config=None if self._is_pipe else arguments.config)
        self.formatter.numbers_files = not self._is_pipe

    def _chat(self) -> None:
        if self._arguments.send:
            self._send_files()
            return
        if not self._arguments.listen:
            # A daemon, as nothing can end its wait for a line.
            threading.Thread(target=self._read_stdin, name="stdin", daemon=True).start()
        while self._over is None:
            with contextlib.suppress(queue.Empty):
                # The end is noticed within that time, and on Windows Ctrl-C.
                line = self._lines.get(timeout=0.2)
                if line is None:
                    self.quit("")
                elif self._is_pipe:
                    self._say_line(line)
                else:
                    self.attempt(self.commands.run, line)

    def _say_line(self, line: str) -> None:
        """What one line of a pipe says."""
        try:
            self.say(_as_text(line))
        except (ConnectionError, queue.Full) as error:
            self._ended = self._ended or str(error)
            self.end(1)
            self._unread += 1

    def _send_files(self) -> None:
        """What --send asks for, one after the other."""
        for path in self._arguments.send:
            try:
                self.client.send_file(path, patience=self._arguments.timeout)
            except (FileError, ConnectionError, queue.Full) as error:
                self._ended = f"not sent: {escape(path)} ({error})"
                return

    def quit(self, rest: str) -> None:
        self.end(0)

    def clear(self, rest: str) -> None:
        # What was printed stays.
        pass

    def search(self, rest: str) -> None:
        self.ask(functools.partial(self._show_block, "found"), 20, MAX_ID, rest)

    def _show_older(self, answer: Optional[Recalled]) -> None:
        self._show_block("older", answer)

    def _show_block(self, what: str, answer: Optional[Recalled]) -> None:
        """Messages that are no new ones, marked as such."""
        entries = self.formatter.with_days(self.formatter.older(answer))
        if entries:
            self.show(f"-- {what} --")
            for entry in entries:
                self.add(entry)
            self.show("-- now --")
        else:
            self.show(self._NOTHING[what][answer is None])

    def _read_stdin(self) -> None:
        """On the thread "stdin"."""
        try:
            for number, line in enumerate(chatproto.stdin_lines()):
                # Some programs begin a text with a byte order mark.
                self._lines.put(line.lstrip("\ufeff") if number == 0 else line)
        except OSError as error:
            complain(f"cannot read stdin: {error.strerror or error}")
        self._lines.put(None)

    def _rest(self) -> str:
        """What to say of the lines of a pipe that were not sent because one gave up before.
        Only so many are looked for, as `yes | chat_client` does not end."""
        while self._is_pipe and self._unread < UNSENT:
            try:
                if self._lines.get(timeout=0.5) is None:
                    break
            except queue.Empty:
                break
            self._unread += 1
        return f"; {self._unread} more lines were not sent" if self._unread else ""

    def _say_piece(self, text: str, to: Optional[str],
                   file: "Optional[dict[str, Any]]" = None) -> None:
        """In a pipe wait while too much is unsettled."""
        at_most = UNSENT_PIPE
        while not self._is_pipe or self.client.wait_settled(at_most, self._arguments.timeout):
            try:
                self.client.say(text, to, file)
                return
            except queue.Full:
                if not self._is_pipe:
                    raise
                # Too many bytes: wait for one ACK more.
                at_most = max(0, len(self.client.unsettled) - 1)
        raise queue.Full("nothing was acknowledged any more, gave up")

    # On any thread

    def add(self, entry: Entry) -> None:
        self._print("\n".join(entry.plain()))

    def _hear(self, message: Message, entries: "list[Entry]", own: bool, is_news: bool) -> None:
        super()._hear(message, entries, own, is_news)
        if isinstance(message, Removed) and not self._is_pipe:
            self.show("* the host has removed a message")
        if (isinstance(message, Chat) and is_news and not self._is_pipe and self._rings(message)
                and sys.stdout is not None and sys.stdout.isatty()):
            self._print("\a", end="")

    def _print(self, line: str, end: str = "\n") -> None:
        # Where stdout is gone nothing is shown, and what there is to say is said.
        with contextlib.suppress(OSError):
            # In one piece, as two threads print lines.
            print(line + end, end="", flush=True)

    # On the client's thread

    def _callback(self, callback: Callable[..., None]) -> Callable[..., None]:
        return self._print_frame if self._arguments.json else callback

    def _print_frame(self, message: Optional[Message]) -> None:
        """With --json: print the frame that is called for."""
        line = self.client.last_frame.decode("utf-8", "replace")
        if sys.stdout is not None and sys.stdout.isatty():
            # In ASCII: else the terminal would obey a peer's C1 controls and bidi marks.
            line = json.dumps(json.loads(line), separators=(",", ":"))
            line = line.replace("\x7f", "\\u007f")
        self._print(line)

    def _connect(self, welcome: Welcome, forgotten: "list[Said]") -> None:
        if welcome.missed:
            complain(f"{welcome.missed} messages were missed: the server has them no longer")
        if not self._is_pipe:
            super()._connect(welcome, forgotten)

    def _is_wanted(self, message: Message, own: bool) -> bool:
        """In a pipe neither our own nor history, nor what is refused: that is named at the
        end."""
        if not self._is_pipe:
            return True
        if isinstance(message, Chat):
            return not own and message.id > self.client.history_until
        return not (isinstance(message, Error) and message.about)

    def _changed(self, said: Said) -> None:
        """What was printed stays; what was not delivered is named at the end."""

    def _lose(self, why: str, seconds: float) -> None:
        if not self._is_pipe:
            self.show(f"! disconnected ({escape(why)}), trying again in {seconds:.0f} s; "
                      "what you say is sent then")


def _as_text(line: str) -> str:
    """A line of a pipe as what is said: without what a progress bar overwrote; and a build log
    has lines that begin with a slash, which are neither a command nor what somebody does."""
    text = clean_text(line.rstrip("\r").rpartition("\r")[2])
    return " " + text if text.startswith("/me ") else text


# The signals that end a program that does not handle them: the terminal has to be restored
# first. SIGINT is what Ctrl-C sends elsewhere.
KILLS = ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM",
         "SIGXCPU", "SIGABRT", "SIGBREAK", "SIGINT")


def end_by(number: int) -> None:
    """End the process by this signal, so that whoever waits for us sees what ended us."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _catch(names: "Iterable[str]", handler: "Callable[[int, Any], None]") -> None:
    """Have the handler called for these signals: for those that this platform has (Windows
    has few) and that are not ignored (nohup has SIGHUP ignored)."""
    for name in names:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


class Notice:
    """How a user who looks elsewhere is called: the bell, the title, a notification of the
    terminal. On the main thread."""

    def __init__(self, where: str) -> None:
        # The user looks elsewhere; and how many messages came since then.
        self.is_away = False
        self._unread = 0
        self._where = where
        # What to write to the terminal with the next painting, one of a kind.
        self._calls: "dict[str, str]" = {}

    def ring(self) -> None:
        """Ring with the next painting."""
        self._calls["bell"] = "\a"

    def focus(self, is_here: bool) -> None:
        """The terminal has the focus, or has lost it."""
        self.is_away = not is_here
        if self._unread:
            self._unread = 0
            self._calls["title"] = Terminal.OLD_TITLE + Terminal.KEEP_TITLE

    def heard(self, chat: Chat, rings: bool, is_mention: "Callable[[Chat], bool]") -> None:
        """Somebody else said something."""
        if rings:
            self.ring()
        if self.is_away:
            self._unread += 1
            title = f"({self._unread}) Roger, {escape(self._where)}"
            self._calls["title"] = f"\x1b]2;{title}\x07"
            if rings and is_mention(chat):
                said = escape(f"{chat.sender}: {chat.text[:100]}")
                self._calls["notification"] = f"\x1b]9;{said}\x07"

    def take(self) -> str:
        """What to write to the terminal now."""
        text = "".join(self._calls.values())
        self._calls.clear()
        return text


def _paths(begun: str) -> "list[str]":
    """What a path may go on to; a folder ends with a slash."""
    folder, name = os.path.split(begun)
    where = os.path.expanduser(folder) or "."
    try:
        names = sorted(each for each in os.listdir(where) if each.startswith(name)
                       and (name or not each.startswith(".")) and clean_text(each) == each)
    except (OSError, ValueError):
        names = []
    return [os.path.join(folder, each) + os.sep * os.path.isdir(os.path.join(where, each))
            for each in names]


class Search:
    """What /search has found: in what is here, then, step by step, in what the server keeps.

    What is here is shown in its place. What is only on the server is shown with what was said
    around it, in place of the talk. On the main thread.
    """

    # Messages that are asked for: that have the words; around one of them, and of these after
    # it, as ids.
    FOUND, AROUND, AFTER = 20, 40, 20

    def __init__(self, window: Window, words: str) -> None:
        self._window = window
        self._words = words
        # Where one was before, to come back to.
        self.came_from = window.talk.place
        # What was found, and which of it is shown. As on the page the newest is the first, so that
        # what is fetched renumbers nothing.
        self._found: "list[Entry]" = []
        self._at = 0
        # Before this id the server was not asked; None when it has nothing more.
        self._before: Optional[int] = window.talk.oldest or chatproto.MAX_ID
        # For a reader: what is waited for, or why the server is asked no more.
        self._note = ""

    @property
    def status(self) -> str:
        """For the status line."""
        if not self._found:
            return f"searching {escape(self._words)}"
        more = "" if self._before is None else "+"
        number = f"{self._at + 1} of {len(self._found)}{more}"
        return f"found {number}{self._note}: Up, Down, Esc back"

    def begin(self) -> None:
        """Look in what is here, and go to the newest; else ask the server."""
        words = name_key(self._words).split()
        self._found = [entry for entry in reversed(self._window.talk.entries)
                       if entry.holds(words)]
        if self._found:
            self._show()
        else:
            self._ask()

    def step(self, by: int) -> None:
        """To an older one (1) or a newer one (-1); beyond the oldest the server is asked."""
        if 0 <= self._at + by < len(self._found):
            self._at += by
            self._show()
        elif by > 0 and self._before is not None and not self._note:
            self._ask()
        else:
            self._window.notice.ring()

    def _ask(self) -> None:
        self._note = ", asking for older ones"
        self._window.ask(self._answered, self.FOUND, self._before, self._words)

    def _answered(self, answer: Optional[Recalled]) -> None:
        """The server has looked."""
        if self._window.found is not self:
            return
        window = self._window
        older = window.formatter.older(answer)
        self._before = answer.older if answer is not None else None
        self._note = "" if answer is not None else " (this server cannot search)"
        if older:
            self._at = len(self._found)
        self._found += reversed(older)
        if not self._found:
            window.end_search()
            window.show(f"* nothing was found{self._note}: {escape(self._words)}")
        elif older:
            self._show()
        else:
            window.notice.ring()

    def _show(self) -> None:
        """Go to what is chosen."""
        window, entry = self._window, self._found[self._at]
        if entry in window.talk.entries:
            window.screen.show(window.talk, entry)
        else:
            self._show_among([], entry)
            window.ask(functools.partial(self._around, entry), self.AROUND,
                       entry.id + self.AFTER + 1)

    def _around(self, entry: Entry, answer: Optional[Recalled]) -> None:
        """What was said around an entry has come; it may be another one that is shown now."""
        if self._window.screen.found is entry:
            self._show_among(self._window.formatter.older(answer), entry)

    def _show_among(self, others: "list[Entry]", entry: Entry) -> None:
        among = [entry, *(other for other in others if other.id != entry.id)]
        talk = Scrollback()
        talk.insert(sorted(among, key=lambda one: one.id), self._window.formatter.with_days)
        self._window.screen.show(talk, entry)


class Typing:
    """What keys do in a Window: they make the line, scroll, complete, answer questions. On
    the main thread."""

    # Lines of a paste that need no question.
    PASTE_LINES = 5
    # Rows that a notch of the mouse wheel scrolls.
    NOTCH = 3
    # Seconds after which Esc was that key, and no beginning of another; and within which a
    # paste that nothing marks goes on.
    ESCAPE_ALONE, PASTE_GOES_ON = 0.1, 0.05
    # What the terminal tells, and no user presses.
    _TOLD = ("cursor", "focus-in", "focus-out")

    def __init__(self, window: Window, editor: Editor) -> None:
        self._window = window
        self._editor = editor
        self._keys = Keys()
        # A paste that waits for a yes.
        self._pasted: Optional[str] = None
        # The terminal's answers to Columns.PROBE so far.
        self._widths: "list[int]" = []
        # What is no business of the Editor.
        self._special: "dict[str, Callable[[Key], None]]" = {
            "enter": self._enter, "tab": lambda key: editor.complete(window.offers),
            "paste": self._paste, "ctrl-c": self._interrupt, "ctrl-d": lambda key: window.leave(0),
            "page-up": lambda key: window.page_up(),
            "page-down": lambda key: window.screen.scroll(1), "end": self._end,
            "ctrl-end": lambda key: window.screen.talk.follow(),
            "alt->": lambda key: window.screen.talk.follow(), "escape": self._escape,
            "wheel-up": lambda key: window.screen.scroll_rows(-self.NOTCH),
            "wheel-down": lambda key: window.screen.scroll_rows(self.NOTCH),
            "cursor": self._answer, "focus-in": lambda key: window.focus(True),
            "focus-out": lambda key: window.focus(False),
            "ctrl-l": lambda key: window.screen.forget(), "ctrl-z": lambda key: window.suspend()}

    def read(self, terminal: Terminal) -> None:
        """On the thread "keys": post what each read brings, until the terminal is gone."""
        data, post = b" ", self._window.post
        while data:
            try:
                data = terminal.read()
                while Keys.is_paste(data) and len(data) < Keys.LONGEST_PASTE and (
                        terminal.has_more(self.PASTE_GOES_ON)):
                    data += terminal.read()
                post(self.press, data)
                if data.endswith(b"\x1b") and not terminal.has_more(self.ESCAPE_ALONE):
                    post(self.press, b"", True)
            except OSError:
                break
        post(self._window.end, 1)

    def press(self, data: bytes, is_all: bool = False) -> None:
        """Take what one read has brought; with `is_all` nothing more came for a moment."""
        keys = self._keys.feed(data, is_all)
        if self._pasted is None and not self._keys.is_busy and Keys.is_paste(data):
            keys = iter([Keys.pasted(data)])
        for key in keys:
            self._window.painted_at = -math.inf
            self._press(key)

    def _press(self, key: Key) -> None:
        window, editor = self._window, self._editor
        name, question = key.name, window.screen.question
        if name in self._TOLD:
            self._special[name](key)
            return
        if self._pasted is not None:
            self._decide(key, self._pasted)
            return
        window.news = ""
        if window.found is not None and name in ("up", "down"):
            window.found.step(1 if name == "up" else -1)
        elif name in self._special and not (name == "ctrl-d" and editor.text):
            self._special[name](key)
        elif not editor.press(key) and name in ("text", "newline", "ctrl-y", "ctrl-r"):
            # It does not fit any more, or is not found.
            window.notice.ring()
        if window.screen.question == question and not editor.text.startswith("/"):
            # Whoever does anything else, but to type a command, does not leave.
            window.screen.question = ""

    def _answer(self, key: Key) -> None:
        """The terminal said where the cursor was after a sample of Columns.PROBE."""
        self._widths.append(int(key.text) - 1)
        if len(self._widths) == len(Columns.SAMPLES):
            self._window.screen.learn(self._widths)

    def _enter(self, key: Key) -> None:
        line = self._editor.take()
        self._window.end_search()
        if line.strip():
            self._window.attempt(self._window.commands.run, line)
        if self._window.found is None:
            self._window.talk.follow()
            self._window.talk.unmark()

    def _end(self, key: Key) -> None:
        """To the end of the line; from there to what is newest."""
        if self._editor.cursor == len(self._editor.text):
            self._window.screen.talk.follow()
        self._editor.press(key)

    def _escape(self, key: Key) -> None:
        self._window.end_search()
        self._editor.press(key)

    def _interrupt(self, key: Key) -> None:
        if self._window.found is not None:
            self._window.end_search()
        elif self._editor.text or self._editor.prompt != Editor.PROMPT:
            self._editor.clear()
        else:
            self._window.leave(130, "Ctrl-C")

    def _paste(self, key: Key) -> None:
        text = key.text.rstrip("\n")
        lines = text.count("\n") + 1
        if len(self._editor.text) + len(text) > MAX_TEXT:
            self._window.show(f"! not pasted: {len(text)} characters, a message has at most "
                              f"{MAX_TEXT}; a pipe takes more")
        elif lines > self.PASTE_LINES:
            self._pasted = text
            self._window.screen.question = (f"paste {lines} lines as one message? "
                                            "y or Enter: yes, n or Ctrl-C: no")
        else:
            self._editor.insert(text)

    def _decide(self, key: Key, paste: str) -> None:
        """The answer to the question about a paste, the first key that is one. What is typed with
        it goes into the line."""
        text = key.text if key.name == "text" else ""
        found = re.search("[yn]", text, re.IGNORECASE)
        if key.name == "enter" or found and found[0] in "yY":
            self._editor.insert(paste)
        elif key.name not in ("ctrl-c", "ctrl-d", "escape") and not found:
            self._window.notice.ring()
            return
        if found and found.start():
            self._window.notice.ring()
        self._pasted, self._window.screen.question = None, ""
        self._editor.insert(text[found.end():] if found else "")


class Window(Interface):
    """The whole terminal: a Screen, an Editor, and the main thread that moves between them
    and the client.

    Whatever happens on another thread (a key, a message, a signal) is posted as an event. The
    main thread takes all events that wait and then paints once. So a flood of messages costs
    few frames, and what is typed waits for a frame at most.
    """

    # Seconds between two paintings, where nothing was typed.
    FRAME = 1 / 30
    # Events that may wait; then the client's thread waits, and with it the ACK. It is more
    # than one read can bring: connect() returns only after a whole read.
    EVENTS = 4_096
    # Messages that Page Up at the top asks for.
    OLDER = 50

    def __init__(self, arguments: argparse.Namespace, terminal: Terminal) -> None:
        theme = Theme(colours(), takes_links())
        self._terminal = terminal
        self._editor = Editor()
        self.screen = Screen(theme, self._editor)
        # What was said; /search may show another talk.
        self.talk = self.screen.talk
        # What /search has found.
        self.found: Optional[Search] = None
        self._typing = Typing(self, self._editor)
        self.notice = Notice(arguments.host)
        # A SimpleQueue, as signal handlers put into it as well, wherever they interrupt the
        # main thread.
        self._events: "queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]]" = (
            queue.SimpleQueue())
        # When it was painted last (monotonic); a key sets it back, as that is shown at once.
        self.painted_at = -math.inf
        # While disconnected: when the next try is (monotonic).
        self._lost_until: Optional[float] = None
        # What the status line says until the next key: of older messages that came.
        self.news = ""
        super().__init__(arguments, theme, receipts=True, config=arguments.config)

    def _chat(self) -> None:
        _catch(KILLS, self._on_kill)
        _catch(["SIGWINCH"], lambda *signalled: self.post(self.screen.forget))
        _catch(["SIGTSTP"], lambda *signalled: self.post(self.suspend))
        _catch(["SIGCONT"], lambda *signalled: self.post(self._resume))
        try:
            self._resume()
            self._terminal.write(Columns.PROBE)
            # A daemon, as its read cannot be interrupted.
            threading.Thread(target=self._typing.read, name="keys", daemon=True,
                             args=(self._terminal,)).start()
            self._loop()
        except OSError as error:
            # The terminal is gone, or is none.
            self.end(128 + self.killed_by if self.killed_by else 1)
            complain(f"the terminal: {error.strerror or error}")
        finally:
            self._terminal.leave()
            # From now on Ctrl-C and the like end the wait for what was said.
            _catch(KILLS, self._on_late_signal)
            if sys.platform != "win32":
                signal.signal(signal.SIGTSTP, signal.SIG_DFL)

    def _close(self, patience: float) -> None:
        """Where the user left, with Ctrl-C as well, what was said a moment ago is waited for."""
        patience, waiting = patience if self._was_left else 0.0, len(self.client.unsettled)
        if patience and waiting:
            complain(f"waiting for the ACK of {waiting} message{'s' * (waiting > 1)}, "
                     "Ctrl-C gives up")
        super()._close(patience)

    # The main thread: the loop

    def _loop(self) -> None:
        while self._over is None:
            wait = self.painted_at + self.FRAME - time.monotonic()
            if wait <= 0:
                self._paint()
                # Not longer: a signal that the system gives to another thread does not end the
                # wait, nor does any signal on Windows; and the seconds to the next try count down.
                self.painted_at, wait = time.monotonic(), 0.5
            with contextlib.suppress(queue.Empty):
                # Only those that are there, that what is typed may be seen.
                for _ in range(max(1, self._events.qsize())):
                    event, arguments = self._events.get(timeout=wait)
                    event(*arguments)

    def _paint(self) -> None:
        self.screen.status = self._status()
        if self.screen.people is not None:
            self.screen.people = list(self.client.users.values())
        first, _, more = (self.motd or "").partition("\n")
        self.screen.pinned = _show(first) + (" (more: /motd)" if more else "")
        # Looked at each time, as Windows has no signal for another size.
        self.screen.resize(*self._terminal.size())
        text = self.screen.paint() + self.notice.take()
        if text:
            self._terminal.write(text)

    def _status(self) -> "list[str]":
        connection, unsent = "connected", len(self.client.unsettled)
        if self._lost_until is not None:
            seconds = math.ceil(self._lost_until - time.monotonic())
            connection = "reconnecting" + (f" in {seconds} s" if seconds > 0 else "")
        found = [self.found.status] if self.found is not None else []
        return [*filter(None, [*found, self.news]), *list(self.errands.values()),
                escape(self.client.name), connection,
                *[f"{unsent} unsent"] * (unsent > 0), f"{self.client.here} here",
                escape(self.client.server.where)]

    # The main thread: signals

    def _on_kill(self, number: int, frame: Any) -> None:
        """Wherever the main thread is: only post. But the second signal that is to end us finds it
        stuck in a write."""
        if self.killed_by:
            self._terminal.reset()
            end_by(number)
        self.killed_by = number
        self.post(self.end, 128 + number)

    def suspend(self) -> None:
        """Ctrl-Z: the terminal back to the shell, and stop, with all that runs in our job.
        Windows has no jobs."""
        if sys.platform != "win32":
            self._terminal.leave()
            ours = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            os.kill(0, signal.SIGTSTP)
            # `fg` goes on here.
            signal.signal(signal.SIGTSTP, ours)
            self._resume()

    def _resume(self) -> None:
        self._terminal.enter()
        if self._arguments.mouse:
            self._terminal.write(Terminal.MOUSE)
        self.screen.forget()

    # The main thread: keys

    def offers(self, word: str, is_first: bool) -> "list[str]":
        """What Tab offers for a word: paths, commands, or names, who spoke last first."""
        if _TAKES_PATH.match(self._editor.text):
            return _paths(word)
        if is_first and word.startswith("/"):
            return [command + " " for command in self.commands.table
                    if command.startswith(word.lower())]
        users = dict(self.client.users)
        users.pop(name_key(self.client.name), None)
        spoke = [name_key(entry.chat.sender) for entry in reversed(self.talk.entries)
                 if entry.chat is not None]
        # An @ before the word stays.
        sign, begun = word[:word.startswith("@")], name_key(word[word.startswith("@"):])
        return [sign + users[key] + (": " if is_first else " ")
                for key in dict.fromkeys([*spoke, *users])
                if key in users and key.startswith(begun)]

    def page_up(self) -> None:
        """Scroll back; from the top ask for what is older."""
        if self.found is not None or not self.screen.is_at_top:
            self.screen.scroll(-1)
        elif not self.client.is_recalling:
            self.history(self.OLDER)

    def focus(self, is_here: bool) -> None:
        """The terminal has the focus, or has lost it."""
        if not is_here and not self.notice.is_away:
            # What is here by now is read.
            self.talk.unmark()
        self.notice.focus(is_here)

    def leave(self, code: int, why: str = "") -> None:
        """Leave. Where there is a reason against it, ask once before."""
        unsent, errands = len(self.client.unsettled), list(self.errands.values())
        if unsent:
            why = f"{unsent} message{'s are' if unsent > 1 else ' is'} not sent yet"
        elif errands:
            why = errands[0]
        if why and not self.screen.question:
            self.screen.question = f"{why}, again to leave"
        else:
            self.end(code)

    # From commands, on the main thread

    def history(self, count: int) -> None:
        self.news = "fetching older messages"
        self.ask(self._show_older, count, self.talk.oldest)

    def search(self, rest: str) -> None:
        self.end_search()
        self.found = Search(self, rest)
        self.found.begin()

    def end_search(self) -> None:
        """Back where one was before /search."""
        if self.found is not None:
            self.screen.talk, self.screen.found = self.talk, None
            self.talk.come_back(self.found.came_from)
            self.found = None

    def clear(self, rest: str) -> None:
        self.talk.clear()

    def people(self, rest: str) -> None:
        self.screen.people = [] if self.screen.people is None else None
        if self.screen.people is not None and self._terminal.size()[1] < Screen.PEOPLE_COLUMNS:
            self.show(f"* people are shown in a window of {Screen.PEOPLE_COLUMNS} columns or more")

    def quit(self, rest: str) -> None:
        self.leave(0)

    # The main thread: what is shown

    def add(self, entry: Entry) -> None:
        self.talk.add(entry)

    def _show_older(self, answer: Optional[Recalled]) -> None:
        count = self.talk.insert(self.formatter.older(answer), self.formatter.with_days)
        if count:
            self.news = f"{count} older above"
        else:
            self.news = "nothing older is kept" if answer else "the server keeps no older messages"

    def _say_piece(self, text: str, to: Optional[str],
                   file: "Optional[dict[str, Any]]" = None) -> None:
        said = self.client.say(text, to, file)
        shown = text if file is None else _without_address(text, file)
        chat = Chat(said.id, self.client.name, shown, time.time(), to=to)
        entry = self.formatter.chat(chat, own=True, said=said, is_placed=False)
        self.talk.add_unplaced(said, entry)

    def _hear(self, message: Message, entries: "list[Entry]", own: bool, is_news: bool) -> None:
        if isinstance(message, Chat):
            if own:
                self.talk.came_back(message.text, message.to)
            elif entries:
                self.talk.mark(self.formatter.note, self.notice.is_away)
                self.notice.heard(message, is_news and self._rings(message),
                                  self.formatter.is_mention)
        elif isinstance(message, Removed):
            entry = self.talk.entry_of(message.about)
            if entry is not None:
                self.formatter.removed(entry)
        super()._hear(message, entries, own, is_news)

    def _tell_trouble(self) -> None:
        # What was said before pushes the line off the screen.
        self.news = escape(self.settings.trouble) or self.news
        super()._tell_trouble()

    def _connect(self, welcome: Welcome, forgotten: "list[Said]") -> None:
        self._lost_until = None
        for said in forgotten:
            self.talk.settle(said)
        if not welcome.resumed:
            self.end_search()
        if welcome.missed:
            self.show(f"! {welcome.missed} messages were missed: the server has them no longer")
        super()._connect(welcome, forgotten)

    def _lose(self, why: str, seconds: float) -> None:
        if self._lost_until is None:
            self.show(f"! disconnected ({escape(why)}); what you say is sent when the connection "
                      "is back")
        self._lost_until = time.monotonic() + seconds

    # On the client's thread; post() on the thread "keys" as well

    def post(self, event: Callable[..., None], *arguments: Any) -> None:
        self._events.put((event, arguments))

    def _is_wanted(self, message: Message, own: bool) -> bool:
        """An error about what was said is shown with that."""
        return not (isinstance(message, Error)
                    and any(said.id == message.about for said in self._not_delivered))

    def _on_message(self, message: Message) -> None:
        # Wait while the terminal is slower than the server.
        while self._over is None and self._events.qsize() > self.EVENTS:
            time.sleep(0.01)
        if self._over is None:
            super()._on_message(message)

    def _changed(self, said: Said) -> None:
        """A message of ours has another state. What may not be said yet comes back into the line,
        where nothing else is typed."""
        if said.state in (FAILED, UNKNOWN):
            self.talk.settle(said)
        if said.code == "muted" and not self._editor.text:
            self._editor.set(said.text if said.to is None else f"/msg {said.to} {said.text}")


class Commands:
    """What a line that begins with a slash does. /help is written from the docstrings, which those
    of Window and Plain have from Interface."""

    KEYS = (
        "Enter says the line, Alt-Enter begins another one in it; a paste is one message",
        "Left, Right, Home, End, Ctrl-A E B F: in the line; Ctrl-Left, Ctrl-Right, Alt-B F: words",
        "Backspace, Delete, Ctrl-U K W, Alt-Backspace, Alt-D: delete; Ctrl-Y brings it back",
        "Up, Down: what was said before; Ctrl-R: search in it, again for older ones",
        "Tab: names (who spoke last comes first), commands; again for the next",
        "Page Up, Page Down: scroll, from the top it fetches what is older",
        "Ctrl-End, Alt->, End on an empty line: to what is newest",
        "in a search Up, Down: from one to the next; Esc: back",
        "Ctrl-C: clear the line, on an empty one leave; Ctrl-D: leave; Ctrl-L: paint anew")
    _HIDDEN = {True: "hidden", False: "shown"}
    # What has to follow a command; where something else does, its line of /help is shown.
    _TAKES = {"/me": ".+", "/msg": r"\S+\s+\S.*", "/w": r"\S+\s+\S.*",
              "/history": "([1-9][0-9]?|100)?",
              "/search": f".{{1,{MAX_FIND}}}", "/send": ".+", "/get": "[0-9]{1,6}( .*)?",
              "/bell": "|".join(Settings.BELLS)}

    def __init__(self, ui: Interface) -> None:
        self._ui = ui
        # What each command does.
        self.table = {
            "/nick": self.nick, "/me": self.me, "/msg": self.msg, "/w": self.msg,
            "/reply": self.reply, "/r": self.reply, "/names": self.names, "/users": self.names,
            "/people": ui.people, "/history": self.history, "/search": ui.search,
            "/urls": self.urls, "/send": self.send, "/files": self.files, "/get": self.get,
            "/ignore": self.ignore, "/unignore": self.unignore,
            "/quiet": self.quiet, "/timestamp": self.timestamp, "/bell": self.bell,
            "/motd": self.motd, "/clear": ui.clear, "/help": self.help,
            "/quit": ui.quit, "/exit": ui.quit}

    def run(self, line: str) -> None:
        """Do what a typed line says: a command, or something to say. The first word after
        blanks is a command in any case and width, that none is said to all by mistake. Raises
        ProtocolError, ConnectionError, queue.Full: where it cannot be done."""
        word = (line.split(None, 1) or [""])[0]
        key = name_key(word)
        command = self.table.get(key)
        if command is not None:
            rest = line.strip()[len(word):].strip()
            if re.fullmatch(self._TAKES.get(key, ".*"), rest, re.DOTALL):
                command(rest)
            else:
                self._ui.show("! " + _help(command))
        elif line.startswith("/") and not line.startswith("//"):
            self._ui.show(f"! {escape(word)} is not a command, /help lists them "
                          "(to say it, begin with //)")
        else:
            self._ui.say(line[line.startswith("//"):])

    def nick(self, rest: str) -> None:
        """/nick NAME: take another name"""
        self._ui.client.rename(rest)

    def me(self, rest: str) -> None:
        """/me DOES: say what you do"""
        # The convention of XMPP (XEP-0245).
        self._ui.say("/me " + rest)

    def msg(self, rest: str) -> None:
        """/msg NAME TEXT (/w): say something to one"""
        name, text = rest.split(None, 1)
        self._ui.say(text, chatproto.check_name(name.lstrip("@")))

    def reply(self, rest: str) -> None:
        """/reply TEXT (/r): answer who wrote to you privately last"""
        if self._ui.last_private:
            self._ui.say(rest, self._ui.last_private)
        else:
            self._ui.show("! " + escape(self._ui.no_reply))

    def names(self, rest: str) -> None:
        """/names (/users): who is here"""
        names = ", ".join(map(escape, list(self._ui.client.users.values())))
        self._ui.show(f"* {self._ui.client.here} here: {names}")

    def history(self, rest: str) -> None:
        """/history [N]: N older messages (20, at most 100)"""
        self._ui.history(int(rest or 20))

    def urls(self, rest: str) -> None:
        """/urls: the last addresses of pages"""
        for url in list(self._ui.formatter.urls):
            self._ui.add(self._ui.formatter.page(url))
        if not self._ui.formatter.urls:
            self._ui.show("* no addresses of pages")

    def send(self, rest: str) -> None:
        """/send PATH: hand out a file to all (Tab completes the path)"""
        quoted = len(rest) > 1 and rest[0] == rest[-1] and rest[0] in "\"'"
        path = os.path.expanduser(rest[1:-1] if quoted else rest)
        _errand(self._ui, f"sending {escape(os.path.basename(path))}", lambda progress: (
            self._ui.post(self._ui.attempt, self._ui.say_file,
                          self._ui.client.upload(path, progress))))

    def files(self, rest: str) -> None:
        """/files: what was handed out, with its numbers"""
        self._ui.show(*self._ui.formatter.files.lines() or ["* no files"])

    def get(self, rest: str) -> None:
        """/get N [FOLDER]: save a file, here or in a folder"""
        number, _, folder = rest.partition(" ")
        folder = os.path.expanduser(folder.strip()) or "."
        file = self._ui.formatter.files.file(int(number))
        if file is None:
            self._ui.show("! /get N [FOLDER]: /files lists the numbers")
        elif not os.path.isdir(folder):
            self._ui.show(f"! {escape(folder)} is no folder")
        else:
            _errand(self._ui, f"fetching {escape(file['name'])}", lambda progress: self._ui.post(
                self._ui.show,
                f"* saved as {escape(self._ui.client.fetch(file, folder, progress))}"))

    def ignore(self, rest: str) -> None:
        """/ignore NAME: do not show what NAME says; without a name, who is ignored"""
        if rest:
            self._ui.settings.ignored.add(name_key(rest))
            self._ui.chosen(self._ignored())
        else:
            self._ui.show(self._ignored())

    def unignore(self, rest: str) -> None:
        """/unignore NAME: show it again"""
        self._ui.formatter.unignore(rest)
        self._ui.chosen(self._ignored())

    def _ignored(self) -> str:
        return "* ignored: " + (", ".join(self._ui.formatter.ignored()) or "nobody")

    def quiet(self, rest: str) -> None:
        """/quiet: hide joins and leaves, or show them again"""
        self._ui.settings.quiet = not self._ui.settings.quiet
        self._ui.chosen(f"* joins and leaves are {self._HIDDEN[self._ui.settings.quiet]}")

    def timestamp(self, rest: str) -> None:
        """/timestamp: hide the times, or show them again"""
        self._ui.settings.timestamps = not self._ui.settings.timestamps
        self._ui.chosen(f"* times are {self._HIDDEN[not self._ui.settings.timestamps]}")

    def bell(self, rest: str) -> None:
        """/bell off, mentions or all: ring for nothing, for your name, for everything"""
        self._ui.bell = self._ui.settings.bell = rest
        self._ui.chosen(f"* the bell rings for: {rest}")

    def motd(self, rest: str) -> None:
        """/motd: the message of the day"""
        lines = (self._ui.motd or "there is no message of the day").split("\n")
        self._ui.show(*("* " + _show(line) for line in lines))

    def help(self, rest: str) -> None:
        """/help [keys]: this list, or the keys"""
        commands = map(_help, dict.fromkeys(self.table.values()))
        self._ui.show(*(self.KEYS if rest == "keys" else [*commands, "//TEXT: say /TEXT"]))


def _help(command: Callable[[str], None]) -> str:
    return inspect.getdoc(command) or ""


# --- Mistakes that explain themselves ---

# What other servers say first, to us or to a `join`.
_OTHER_SERVERS = ((b"HTTP/", "a web server"), (b"<", "a web server"), (b"SSH-", "an ssh server"),
                  (b"\x15\x03", "a server that speaks TLS"), (b"220", "a mail or ftp server"),
                  (b"+OK", "a mail server"), (b"* OK", "a mail server"),
                  (b"RFB ", "a screen that is shared (VNC)"))


def what_answers(first: bytes) -> str:
    """What a server is that begins so: "" when it may be one of ours."""
    return next((what for start, what in _OTHER_SERVERS if first.startswith(start)), "")


# What some errors of the system mean here.
_NO_WAY: "dict[Any, str]" = {
    **dict.fromkeys((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN),
                    "no way leads there: are both machines in the same network?"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "a firewall on this machine forbids it")}


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
    if code == errno.EINVAL and host.startswith("fe80:") and "%" not in host:
        return f"such an address needs the interface that leads there: {host}%eth0"
    return _NO_WAY.get(code) or getattr(error, "strerror", None) or str(error)


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
    token = secrets.token_hex(8)
    best: "dict[Any, Found]" = {}
    with contextlib.ExitStack() as stack:
        ways = list(_ways(hosts, stack))
        start = time.monotonic()
        for until in (start + seconds / 3, start + seconds):
            for (sock, place), to in itertools.product(ways, {port, PORT}):
                with contextlib.suppress(OSError):
                    sock.sendto(chatproto.encode_question(token), (place[0], to, *place[1:]))
            for data, sender in _datagrams({sock for sock, _ in ways}, until):
                answer = chatproto.decode_answer(data, token)
                if answer is None:
                    continue
                found = Found(_host_of(sender), answer.port, answer.name, answer.here)
                # A server is heard over each of its addresses.
                key = answer.id or (answer.name, answer.port)
                best[key] = min(best.get(key, found), found, key=_unhandiness)
    return sorted(best.values(), key=lambda found: (found.name.casefold(), found.host))


def _ways(hosts: "Sequence[str]", stack: contextlib.ExitStack
          ) -> "Iterator[tuple[socket.socket, tuple[Any, ...]]]":
    """Sockets, which the stack will close, and where to ask with them: host, and for IPv6 what
    follows the port."""
    def new(family: int) -> socket.socket:
        return stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))

    if hosts:
        for host in hosts:
            with contextlib.suppress(OSError, UnicodeError):
                for family, _, _, _, to in socket.getaddrinfo(host, PORT, type=socket.SOCK_DGRAM):
                    yield new(family), (to[0], *to[2:])
        return
    yield new(socket.AF_INET), ("127.0.0.1",)
    interfaces = {(each.number, each.parsed.version) for each in chatproto.own_addresses()}
    for number, version in sorted(interfaces):
        with contextlib.suppress(OSError):
            sock = new(socket.AF_INET if version == 4 else socket.AF_INET6)
            chatproto.aim(sock, number)
            places: "list[tuple[Any, ...]]" = [(chatproto.BROADCAST,), (chatproto.GROUP4,)]
            for place in places if version == 4 else [(chatproto.GROUP6, 0, number)]:
                yield sock, place


def _datagrams(socks: "set[socket.socket]", until: float) -> "Iterator[tuple[bytes, Any]]":
    """What comes until then, and from whom."""
    while time.monotonic() < until:
        left = max(0.0, until - time.monotonic())
        for sock in select.select(socks, [], [], left)[0]:
            # On Windows an error may say that an earlier question found no port.
            with contextlib.suppress(OSError):
                yield sock.recvfrom(2 * chatproto.QUESTION_SIZE)


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
    until, servers = time.monotonic() + START_PATIENCE, find_servers()
    while not servers:
        # One that keeps quiet may run on this machine.
        if _listens("localhost", PORT):
            return "localhost", PORT
        if time.monotonic() >= until:
            raise LookupError("no chat server answers on this LAN: is one running? If it is, say "
                              "where: chat_client.py HOST PORT, as the server printed it")
        servers = find_servers()
    if len(servers) == 1:
        return servers[0].host, servers[0].port
    if not is_attended():
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


def ask_trust(where: str, key: str) -> bool:
    """Whether the user knows a server by its key."""
    print(f"{where} is encrypted, and not known here yet. Its key is\n    {key}\n"
          "The server's host has printed it. Where it is the same nobody is in between.")
    try:
        return input("Trust it from now on (yes or no)? ").strip().lower() in ("yes", "y")
    except EOFError:
        return False


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
        first, second = "localhost", first
    host, port = _split(first)
    for text in filter(None, (second, port)):
        if not re.fullmatch("0*[1-9][0-9]{0,4}", text) or int(text) > 65_535:
            hint = "" if text.lstrip("-").isdecimal() else (
                f"; a name for yourself goes with -n: chat_client.py {first} -n {text}")
            raise ValueError(f"{text} is no port, that is a number from 1 to 65535{hint}")
    if second and port and int(port) != int(second):
        raise ValueError(f"port {port} or {second}? Say one")
    return host, int(port or second or PORT)


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

complain = functools.partial(chatproto.complain, "chat_client")


def login_name() -> str:
    """The login name as far as it can be a name here."""
    try:
        login = "".join(char for char in getpass.getuser() if char.isalnum() or char in "_-.")
        return chatproto.check_name(login[:MAX_NAME])
    except (OSError, KeyError, ImportError, ProtocolError):
        # The system knows no such user, or it can be no name.
        return "guest"


def _add_encryption(add: Callable[..., Any]) -> None:
    """The options of TLS and the password."""
    add("--tls", action="store_true",
        help="only encrypted, to a server that an authority vouches for, or that is known; without "
             "it comes in the clear where the server takes that")
    add("--trust", metavar="KEY",
        help="only encrypted, and only to the server with this key, as it printed it")
    add("--password", action="store_true",
        help="ask for the server's password now, for a pipe as well; only encrypted")
    add("--password-file", metavar="FILE",
        help="the same, but it stands in FILE (or else in the environment's ROGER_PASSWORD)")


def _parser() -> argparse.ArgumentParser:
    parser = chatproto.Parser(
        prog="chat_client.py",
        usage="%(prog)s [HOST] [PORT] [-n NAME] [--plain] [--json] [--bell WHEN]\n"
              "                      [--listen] [--send FILE] [--mouse] [--no-config]\n"
              "                      [--timeout SECONDS] [--tls] [--trust KEY] [--password]\n"
              "                      [--password-file FILE] [--version] [-h]",
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
    add("--bell", choices=Settings.BELLS,
        help="ring for nothing, for your name and private messages (mentions, the default), or "
             "for all")
    add("--listen", action="store_true", help="only listen: nothing is read, as for a service")
    add("--send", action="append", metavar="FILE",
        help="hand out a file and leave; nothing is read, and the exit code is 0 only when file "
             "and message are there; more than once for several")
    add("--mouse", action="store_true",
        help="the mouse wheel scrolls (and the mouse no longer selects)")
    add("--no-config", dest="config", action="store_const", const=None, default=settings_path(),
        help="neither read nor keep the settings (quiet, times, ignored names, bell) and the "
             "session, with which one who reopens the terminal goes on, and "
             "the servers that are known")
    _add_encryption(add)
    add("--timeout", type=float, default=30.0, metavar="SECONDS",
        help="wait so long for the connection, with --send for a byte more to go up, and at the "
             "end for an ACK (default %(default)g)")
    add("--version", action="version", version=f"Roger {chatproto.__version__}")
    return parser


def _arguments(argv: "Optional[list[str]]") -> argparse.Namespace:
    """The options, with `host` ("" asks the LAN) and `port`."""
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)
    try:
        arguments.host, arguments.port = parse_where(arguments.where)
        arguments.tls |= any(word.lower().startswith("https:") for word in arguments.where)
        arguments.trust = arguments.trust and chatproto.check_trust_key(arguments.trust)
        arguments.secret = chatproto.given_password(arguments.password, arguments.password_file)
    except (ValueError, ProtocolError) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{arguments.password_file}: {error.strerror or error}")
    if ssl is None and (arguments.tls or arguments.trust or arguments.secret):
        parser.error("this Python was built without ssl, so there is no --tls")
    if not 0 < arguments.timeout <= 86_400:
        parser.error("the time-out is a number of seconds, at most a day")
    try:
        chatproto.check_name(arguments.name)
    except ProtocolError as error:
        parser.error(f"-n {arguments.name}: {error}")
    return arguments


def main(argv: "Optional[list[str]]" = None) -> int:
    """Run the client; return the exit code."""
    chatproto.print_utf8()
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
