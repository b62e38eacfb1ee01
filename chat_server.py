#!/usr/bin/env python3
# -*- coding: utf-8 -*-
"""chat_server: the server role of Roger, a LAN chat in which every message is acknowledged.

    python chat_server.py 8087

The protocol and its promises are in chatproto's docstring. The way of a message through this file:

    Connection (a thread for each)    Sequencer (one thread)
      bytes arrive                      Room       events become messages
      charge the flood limit            Journal    a message gets its id and its place in the log
      decode                            Delivery   commit to the HistoryFile
      post ──▶ Inbox ──▶ all that waits            publish: the end of the log moves
                                                   wake every MessageManager ─┐  then the ACKs
    MessageManager (one a member)                                             │
      reads the log from `sent` as far as the window allows, writes  ◀────────┘
      ACK of the member: moves `acked`, and what the window has room for goes out

There is one log (chatproto.MessageQueue), and a member is two places in it. Nothing is queued for a
member and nothing copied: a slow reader costs nothing, and a resume begins at the member's place.

On the sequencer's thread alone, so that they need no lock and have one order by construction:
    Journal     ids, the log in memory, the history file: what is said and where
    Members     names, sessions, the list of users: who is here
    House       bans and mutes, who may speak, the pinned line: what holds in the room
    Receipts    who is told who has heard what
    Handouts    which files there are
    Entrance    joins, resumes, take-overs, the grace time, ends of connections
    Delivery    what goes out after a batch of events, and in which order
    Host        what the host does: at the console, on the host's page, from code
    Room        the events themselves
The last six are Parts: each has what they share (Shared) as its own.
They touch no socket, start no thread and read no clock but the ones they are given. Everything that
changes them is an event, a method with its arguments, posted to the inbox.

With --history FILE the log, the sessions and the newest id are in an SQLite file as well. What a
batch of events decided is committed in one transaction before anything of it goes out, so whatever
anybody was told, ACKs included, is on disk; after kill -9 all goes on where the file ends, and
everybody resumes. Until somebody does, it is not here: what is remembered are sessions. A commit
that fails ("disk full") holds the room: nothing more is decided, sent or acknowledged, what members
send waits with them, and the same commit is tried again. Whoever reads below the log in memory is
fed from the file, a piece each time its window opens. One thing does not go on after a restart:
receipts for what was said before it.

Where chat_web.py lies beside this file, browsers are served on the same port: it looks at a
connection's first bytes, and what a browser upgrades to a WebSocket is a Connection like any other.
Members' files are there as well (its FileStore). What the room has of them is who may upload, which
message hands out which file, and that a file goes with its message; with --history the file
commits that together with the message.

With --tls everything is encrypted (chatproto.SecureSocket), and who comes in the clear is sent back
before anything of it is taken. The server is known by the key of its certificate.

Threads: "accept" (serve_forever), "member ADDRESS" (one a connection), "sequencer", "alarm"
(chatproto.Alarm's timer), "chat log", "discovery" (answers who looks for servers), "console" (when
stdin is a terminal) and the main thread, which waits for a signal. Locks: ChatServer has one, for
its set of connections; a leaf. Left out on purpose: rooms, accounts.
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
import base64
import bisect
import calendar
import codecs
import collections
import contextlib
import dataclasses
import errno
import functools
import gc
import hashlib
import hmac
import io
import ipaddress
import itertools
import json
import logging
import math
import os
import pathlib
import queue
import re
import secrets
import select
import socket
import socketserver
import threading
import time
import zlib
from collections import deque
from typing import (Any, Callable, Collection, FrozenSet, Iterable, Iterator, Mapping, NamedTuple,
                    Optional, Sequence, Tuple)

try:
    import sqlite3
except ImportError:
    # A Python that was built without it: everything but --history works.
    sqlite3 = None  # type: ignore[assignment]
try:
    import ssl
except ImportError:
    # Likewise --tls.
    ssl = None  # type: ignore[assignment]

try:
    import chatproto
except ModuleNotFoundError as error:
    if error.name != "chatproto":
        raise
    sys.exit("chat_server: chatproto.py is missing: copy it into the same folder as chat_server.py")
from chatproto import (FROM_CLIENT, LONE_ACK, MAX_FIND, NOWHERE, PORT, WINDOW, WINDOW_BYTES, Ack,
                       Alarm, Booted, Chat, ConnectionClosed, Error, FrameDecoder, FrameError,
                       Heard, Inbox, Invalid, Join, Joined, Leave, Left, Message, MessageManager,
                       MessageQueue, MessageSocket, Motd, News, Ping, ProtocolError, Recall,
                       Recalled, Removed, Rename, Renamed, Rules, Say, SecureSocket, Unknown,
                       Welcome, escape, is_loopback, name_key)

# Seconds a connection may take to join, and one that we end has to read why, before it is cut.
JOIN_TIMEOUT = 10.0
LAST_WORDS = 2.0
# Messages that a newcomer gets.
HISTORY = 20
# Frames, and bytes of them, that the log in memory keeps for those who come back. When either is
# reached the oldest tenth goes, and whoever reads there is fed from the history file or dropped.
LOG_FRAMES = 50_000
LOG_BYTES = 64 * 1024 * 1024
# Sessions remembered after their member left, so that what it sends again is not said twice, with
# the refusals that each did not confirm. Then those are forgotten of whose address there are most:
# first who has said nothing, then who left first.
SESSIONS = 20_000
# New sessions that one address may have at once, and then a second: a class that comes in behind
# one NAT, twice, is not slowed. What comes on top waits, and for JOIN_TIMEOUT at most. This machine
# itself is exempt.
NEW_SESSIONS = 2_000
NEW_SESSION_RATE = 5.0
# Addresses of which is known what they used up of such a limit.
ADDRESSES = 2_000
# Wrong passwords that may come from one address at once, and then a second.
GUESSES = 10
GUESS_RATE = 1 / 6
# What a connection may say of the flood limit's burst before it has joined.
JOIN_BURST = 10.0
# Seconds between two `heard` about one message, seconds after which nobody is told any more, and
# messages watched at once: the oldest is dropped first.
RECEIPT_EVERY = 0.5
RECEIPT_UNTIL = 60.0
RECEIPTS = 1_000
# Events that may wait for the sequencer; then the threads of the members wait.
INBOX = 10_000
# Lines of one member held back by the flood limit, or bytes of them: a window, which is all that a
# client sends without an ACK. Then its socket is not read.
HELD = WINDOW
HELD_BYTES = WINDOW_BYTES
# Bytes that came from all peers together and wait to be whole lines, or for the flood limit. Then
# who has whole lines is not read for a while, and who has more than so many bytes of a line that is
# not whole is cut: it sends it again when it comes back.
WAITING_BYTES = 48 * 1024 * 1024
WAITING_LINE = 4 * 1024
# Bytes of a line that cost as much of the flood limit as the line itself, and what a request for
# older messages costs besides.
COST_BYTES = 2_048
RECALL_COST = 4
# Members in the list of users. 10,000 who come and are told of each other would be 50 million
# frames, minutes of work: so whoever comes later is in the list when there is room in it.
LISTED = 1_000
# Bytes of names in a welcome: with a message of the day it still fits on a line. Where either is
# exceeded `here` tells how many there are.
USERS_BYTES = 24 * 1024
# Characters of the reason of a boot, and seconds that it keeps out where none are said.
REASON = 200
BOOT_SECONDS = 600.0
# Bans, boots and mutes that hold at once; then the oldest of them ends.
HOLDS = 1_000
# Messages that are removed at once: 0.1 s with a history file, in which the room waits.
REMOVE_MOST = 1_000
# Seconds after a restart until files are forgotten that nobody came back to hand out.
FORGET_FILES = 60.0
# Seconds between two messages of one member that the host may ask for, at most.
SLOWEST = 3_600.0
# Refused frames that a member may leave unacknowledged; then it is too slow.
REFUSALS = 1_000
# Seconds between two pieces of joins and leaves alone: a class that comes in is a few pieces.
NEWS_EVERY = 0.1
# Bytes of one flush.
BATCH_BYTES = 1024 * 1024
# Seconds until an acceptor that nothing wakes sees that it has to end.
ACCEPT_POLL = 60.0 if sys.platform == "linux" else 0.5
# Seconds between two newcomers, while everybody is told of each: so those who talk do not wait for
# a thousand who join at once (their p99 doubles at most; without, it is 10 times as long).
PACE = 0.0007
# Events in the inbox that keep newcomers waiting in the listening socket's queue, for how many
# seconds each at most, and how often that is looked at.
BUSY = 8
ADMIT_WAIT = 0.005
ADMIT_POLL = 0.0002
# Connections that have not joined yet and with which newcomers are not kept waiting: these are no
# class that comes in.
CROWD = 200
# Connections that have not joined yet, at most. Then the oldest of these are cut, so many at once,
# of the address that has most.
UNJOINED = 2_000
CUT_AT_ONCE = 50
# Seconds before a complaint is repeated: to a member that floods, or in the log.
SAY_AGAIN = 60.0

# "Rogr": marks a history file as ours.
APPLICATION_ID = 0x526F6772
# Seconds to wait for a history file that another process has locked.
LOCK_WAIT = 0.5
# Seconds until a commit that failed is tried again.
HOLD_PAUSE = 0.5
# Seconds of a commit that are worth a line in the log.
SLOW_COMMIT = 0.25
# Messages in the answer to one request for older ones, and bytes of them: the answer is one line.
RECALL_MOST = 100
RECALL_BYTES = 60_000
# Seconds from one step to the next while there is something to delete, and while there is not.
TRIM_EVERY = 1.0
TRIM_LATER = 30.0
# More ids than a power cut can take along with --history-sync normal: they are skipped.
UNSYNCED_IDS = 1 << 20

# Options of glibc's mallopt(3).
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8

# Orders for the main thread.
STOP, RELOAD, RESUME, INTERRUPT = "stop", "reload", "resume", "interrupt"
# Seconds within which a second Ctrl-C ends the server.
CTRL_C_AGAIN = 3.0
# Bytes of one, on the command line.
MEGABYTE = 1_000_000
# Messages on the host's page, and characters of each.
HOST_TALK = 60
HOST_TEXT = 500

logger = logging.getLogger("roger")


class Settings(NamedTuple):
    """The limits that the command line sets."""

    # Seconds that a lost member stays in the room.
    grace: float = 30.0
    # Messages a second and member; 0 is no limit. The burst is five seconds' worth.
    rate: float = 20.0
    max_members: int = 10_000
    # Connections; this machine itself is exempt.
    max_per_address: int = 200


DEFAULT = Settings()


# --- The history file ---

# Of the history file's format. Version 1 had no checksums, and no `speaker`.
SCHEMA_VERSION = 2
# Messages, or bytes of them, that one step of before() looks at: 5 ms of searching, 10 with the
# worst of texts, in which the room waits. It goes on where the step ended.
LOOK_ROWS = 500
LOOK_BYTES = 64 * 1024
# Entries deleted in one step by --keep and --keep-messages: a few milliseconds.
TRIM_ROWS = 500
# Ids of damaged entries that are remembered, for the log and for `missed`; further ones are left
# out as well, but not counted.
DAMAGED = 10_000
# Seconds between the wall clock and the steady one that are a jump and not a correction,
CLOCK_JUMP = 60.0
# and seconds for which a clock that jumped has to go on evenly until --keep believes it.
CLOCK_CONFIRMED = 3600.0
# The text of a message that the host took back.
REMOVED = "(removed)"


NOTHING: "Mapping[str, Optional[str]]" = {}


class HistoryError(ValueError):
    """The history file cannot be used: the text says which and why."""


# Each row of a table carries its checksum: see _checksum() and _entry_checksum().
_SCHEMA = (
    """CREATE TABLE state (
        epoch TEXT NOT NULL,            -- which run of ids this is
        last INTEGER NOT NULL,          -- the newest id that was given
        forgotten INTEGER NOT NULL,     -- the newest id that --keep or --keep-messages deleted
        unsynced INTEGER NOT NULL,      -- 1: --history-sync normal has it open, or was not closed
        checksum INTEGER NOT NULL
    )""",
    """CREATE TABLE entries (
        id INTEGER PRIMARY KEY,         -- its place in the order
        at REAL NOT NULL,               -- Unix seconds, UTC
        kind TEXT NOT NULL,             -- the frame's type: chat, joined, left, renamed, error
        sender TEXT,
        recipient TEXT,                 -- of a private message
        body TEXT NOT NULL,             -- the frame as it is sent, without its line end
        one INTEGER,                    -- sessions.number of the one or the two it is for,
        other INTEGER,                  -- NULL is everybody
        about INTEGER,                  -- of an error: the frame that it refuses
        speaker INTEGER,                -- sessions.number of who said it, where that is known
        checksum INTEGER NOT NULL
    )""",
    """CREATE TABLE sessions (
        number INTEGER PRIMARY KEY,     -- never given again
        secret_hash BLOB NOT NULL,
        name TEXT NOT NULL,
        begin INTEGER NOT NULL,         -- it hears everything after this id,
        history_from INTEGER NOT NULL,  -- and what was said in public after this one
        got INTEGER NOT NULL,           -- the newest id of its own frames
        acked INTEGER NOT NULL,         -- the newest id of ours that it confirmed, when written
        left_at REAL,                   -- when it left. NULL: it is in the room, or was at the end
        booted TEXT,                    -- no longer used
        checksum INTEGER NOT NULL
    )""",
    # In an index the ids of equal keys are in order. So what a member may hear is found by merging
    # a few of these runs, and nothing of what it may not hear is looked at.
    "CREATE INDEX chats ON entries (one) WHERE kind = 'chat'",
    "CREATE INDEX news ON entries (one) WHERE kind <> 'chat'",
    "CREATE INDEX others ON entries (other) WHERE other IS NOT NULL",
    "CREATE INDEX spoken ON entries (speaker) WHERE speaker IS NOT NULL",
    """CREATE TABLE kept (
        key TEXT PRIMARY KEY,           -- "house": what holds in the room, see House;
                                        -- "file:" and its key: see chat_web's Stored
        value TEXT NOT NULL,            -- JSON
        checksum INTEGER NOT NULL
    )""",
)

_COLUMNS = "entries.id, kind, body, one, other, about, speaker, entries.checksum"
_RUN = f"SELECT {_COLUMNS} FROM entries INDEXED BY %s AND id > :after AND id < :before"
_CHATS = _RUN % "chats WHERE kind = 'chat' AND one IS NULL"
_HEARD_CHATS = " UNION ALL ".join((
    _CHATS,
    _RUN % "chats WHERE kind = 'chat' AND one = :number",
    _RUN % "others WHERE kind = 'chat' AND other = :number AND one IS NOT :number"))
_HEARD = " UNION ALL ".join((
    _HEARD_CHATS,
    _RUN % "others WHERE kind <> 'chat' AND other = :number AND one IS NOT :number",
    _RUN % "news WHERE kind <> 'chat' AND one IS NULL",
    _RUN % "news WHERE kind <> 'chat' AND one = :number"))

_DAMAGED = "keep a copy of it, and put back an older one or start a new one"
# What SQLite says, and what that means here.
_WORDS = (
    ("locked", "it is in use by another program (a second server?)"),
    ("not a database", "it is not a history of Roger"),
    ("malformed", f"it is damaged: {_DAMAGED}"),
    # A damaged schema, which sqlite3 cannot even quote.
    ("can't decode", f"it is damaged: {_DAMAGED}"),
    ("is full", "the disk is full"),
    ("readonly", "it is read-only"),
    ("disk I/O", "the disk fails or is full (disk I/O error)"),
    ("unable to open", "it cannot be opened or made there"),
)


class Entry(NamedTuple):
    """An entry of the log. The frame of one that is damaged is empty."""

    id: int
    # As it is sent, with its line end.
    frame: bytes
    # The sessions that it is for, by their numbers; None is everybody.
    audience: Optional[FrozenSet[int]] = None
    # The number of the session that said it; None: the host, or nobody knows.
    speaker: Optional[int] = None
    is_chat: bool = False


def _is_sound(row: "tuple[Any, ...]") -> bool:
    """Whether a row of _COLUMNS is as it was written. Its texts are bytes, see HistoryFile."""
    return isinstance(row[2], bytes) and bool(row[-1] == _entry_checksum(*row[:-1]))


def _entry_checksum(id: int, kind: bytes, body: bytes, one: Optional[int], other: Optional[int],
                    about: Optional[int], speaker: Optional[int]) -> int:
    """The checksum of an entry.

    A CRC-32 finds every change of up to 32 bits that stand together, so every changed byte; and of
    changes that move other bytes, as that of a length, all but one in four billion. It is against
    disks and not against persons: who can write the file can write a checksum. What no one is ever
    sent is left out (`at`, which only tells --keep the age, and the names).
    """
    return zlib.crc32(body, zlib.crc32(
        b"%d %a %a %a %a %a" % (id, kind, one, other, about, speaker)))


def _in_our_words(path: str, error: Exception) -> str:
    """What SQLite says of a file."""
    text = str(error)
    return f"{path}: {next((words for fragment, words in _WORDS if fragment in text), text)}"


def _checksum(row: "tuple[Any, ...]") -> int:
    """The checksum of a row of state or sessions without the one that it has."""
    return zlib.crc32(b"\0".join(
        value if isinstance(value, bytes) else str(value).encode() for value in row))


def _is_frame(id: int, kind: bytes, body: bytes) -> bool:
    """Whether a body is a frame of this id and kind: what can be known without a checksum."""
    try:
        fields = json.loads(body.decode())
        has_text = kind != b"chat" or isinstance(fields["text"], str)
        return has_text and [fields["id"], fields["type"]] == [id, kind.decode()]
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def _pragma(connection: Any, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _check_ours(connection: Any, path: str) -> int:
    """Return the version of a file's format; raise HistoryError if the file is another program's,
    or a newer Roger's."""
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise HistoryError(f"{path}: it is an SQLite file of another program")
    version: int = _pragma(connection, "user_version")
    if not 1 <= version <= SCHEMA_VERSION:
        raise HistoryError(f"{path}: a newer Roger wrote it (its format is {version}, "
                           f"this one knows {SCHEMA_VERSION})")
    return version


class _Database:
    """The SQLite file under a HistoryFile: how it is locked, made, migrated, checked and written.

    A damaged file is refused when it is opened, or loses what is damaged and nothing else: each row
    carries a checksum, and who reads takes the rows that are sound.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        # Ids of the entries that are left out, as far as they were come upon; DAMAGED at most.
        self.damaged: "set[int]" = set()
        # Device and inode of the file and of its -wal, once it is open.
        self._identity: "list[tuple[int, int]]" = []
        self._connection = self._connect(path)

    def _connect(self, path: str) -> Any:
        if sqlite3 is None:
            raise HistoryError(f"{path}: this Python was built without sqlite3")
        # SQLite takes a very short file for an empty one.
        if os.path.isfile(path) and 0 < os.path.getsize(path) < 512:
            raise HistoryError(f"{path}: it is not a history of Roger")
        # SQLite would say "disk I/O error".
        if os.path.exists(path) and not os.access(path, os.W_OK):
            raise HistoryError(f"{path}: it is read-only")
        # Private messages are in it: it is for its owner only. SQLite says what is wrong.
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        try:
            # Another thread opens it than the one that uses it.
            return sqlite3.connect(path, timeout=LOCK_WAIT, isolation_level=None,
                                   check_same_thread=False)
        except sqlite3.Error as error:
            raise HistoryError(_in_our_words(self.path, error)) from error

    def _open(self) -> None:
        """Lock the file, refuse what is not ours or damaged, make what is new."""
        execute = self._connection.execute
        # A text may be damaged: sqlite3 would raise an error that quotes it.
        self._connection.text_factory = bytes
        for setting in (
                # Before the first look: so no second process shares the WAL.
                "locking_mode = EXCLUSIVE",
                # macOS: fsync() alone leaves it in the disk's cache.
                "fullfsync = ON", "checkpoint_fullfsync = ON",
                "synchronous = FULL", "secure_delete = ON"):
            execute("PRAGMA " + setting)
        is_new = execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
        if is_new and _pragma(self._connection, "application_id") == 0:
            self._create()
        version = _check_ours(self._connection, self.path)
        self._check_whole()
        if _pragma(self._connection, "journal_mode = WAL") not in (b"wal", b"memory"):
            raise HistoryError(f"{self.path}: its disk cannot hold a WAL")
        execute("PRAGMA journal_size_limit = 16777216")
        if version == 1:
            self._migrate()
        # A changed letter in it would be an index or a table that cannot be used.
        found = {row[0] for row in execute("SELECT sql FROM sqlite_master")}
        if not found.issuperset(statement.encode() for statement in _SCHEMA):
            raise HistoryError(f"{self.path}: it is damaged (its schema is not ours): {_DAMAGED}")

    def _check_whole(self) -> None:
        """Raise HistoryError if the file's structure is damaged; mend indexes, which are copies."""
        if _pragma(self._connection, "integrity_check(1)") == b"ok":
            return
        broken = _pragma(self._connection, "quick_check(1)")
        if broken == b"ok":
            self._connection.execute("REINDEX")
            broken = _pragma(self._connection, "integrity_check(1)")
        if broken != b"ok":
            words = escape(broken.decode(errors="replace").splitlines()[-1])
            raise HistoryError(f"{self.path}: it is damaged ({words}): {_DAMAGED}")

    def _create(self) -> None:
        """All in one transaction and before there is a WAL: the file is ours, or still empty."""
        self._connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        with self._transaction():
            self._make_tables()
            state = secrets.token_hex(8), 0, 0, 0
            self._connection.execute("INSERT INTO state VALUES (?, ?, ?, ?, ?)",
                                     (*state, _checksum(state)))
            self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def _make_tables(self) -> None:
        for statement in _SCHEMA:
            self._connection.execute(statement)
        self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _migrate(self) -> None:
        """Make a file of version 1 one of today, in one transaction: killed in it, it is as before.

        Entries that are no frames are left behind: a checksum would make them true.
        """
        execute, define = self._connection.execute, self._connection.create_function
        define("checksum", -1, lambda *row: _checksum(row))
        define("row_checksum", 7, _entry_checksum)
        define("is_frame", 3, lambda id, *row: self._keep_sound(id, _is_frame(id, *row)))
        with self._transaction():
            for table in "state", "entries", "sessions":
                execute(f"ALTER TABLE {table} RENAME TO old_{table}")
            self._make_tables()
            execute("INSERT INTO state SELECT *, checksum(CAST(epoch AS BLOB), last, forgotten,"
                    " unsynced) FROM old_state")
            execute("INSERT INTO sessions SELECT *, checksum(number, secret_hash,"
                    " CAST(name AS BLOB), begin, history_from, got, acked, left_at,"
                    " CAST(booted AS BLOB)) FROM old_sessions")
            execute("INSERT INTO entries SELECT *, NULL, row_checksum(id, CAST(kind AS BLOB),"
                    " CAST(body AS BLOB), one, other, about, NULL) FROM old_entries"
                    " WHERE is_frame(id, CAST(kind AS BLOB), CAST(body AS BLOB))")
            for table in "state", "entries", "sessions":
                execute(f"DROP TABLE old_{table}")
        self._connection.executescript("PRAGMA incremental_vacuum")

    @contextlib.contextmanager
    def _entries(self, query: str, after: int = 0, before: int = 0,
                 number: Optional[int] = None) -> "Iterator[Iterator[Entry]]":
        """What a query finds. The cursor is closed after use: one that is left half-read stops a
        checkpoint."""
        with self._in_words(), contextlib.closing(self._connection.execute(query, {
                "after": after, "before": before, "number": number})) as rows:
            yield map(self._entry, rows)

    def _entry(self, values: "tuple[Any, ...]") -> Entry:
        """The entry of a row of _COLUMNS."""
        id, kind, body, one, other, _, speaker, _ = values
        if not self._keep_sound(id, _is_sound(values)):
            return Entry(id, b"")
        numbers = frozenset(number for number in (one, other) if number is not None)
        return Entry(id, body + b"\n", numbers or None, speaker, kind == b"chat")

    def _keep_sound(self, id: int, is_sound: bool) -> bool:
        """Note the id of an entry that is not sound; return whether it is."""
        if not is_sound and len(self.damaged) < DAMAGED:
            self.damaged.add(id)
        return is_sound

    def _checkpoint(self) -> None:
        """Bring everything from the WAL into the file, and empty the WAL."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> "Iterator[None]":
        """All that is executed inside, or nothing of it."""
        self._check_place()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # Some errors have rolled it back already.
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise

    def _place(self) -> "list[tuple[int, int]]":
        found = os.stat(self.path), os.stat(self.path + "-wal")
        return [(one.st_dev, one.st_ino) for one in found]

    def _check_place(self) -> None:
        """Raise HistoryError if the file was deleted or replaced: what is written to it now would
        be gone with our process."""
        with contextlib.suppress(OSError):
            if not self._identity or self._place() == self._identity:
                return
        raise HistoryError(f"{self.path}: it (or its -wal) was deleted, moved or replaced: "
                           "put it back, or restart the server")

    @contextlib.contextmanager
    def _in_words(self) -> "Iterator[None]":
        """Turn what sqlite3 raises (disk full, damaged) into a HistoryError; say once of each
        damaged entry that it is left out."""
        known = len(self.damaged)
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise HistoryError(_in_our_words(self.path, error)) from error
        if len(self.damaged) > known:
            logger.error("damaged: %d more entries of the history are left out",
                         len(self.damaged) - known)


class KeepClock:
    """Says what time it is to --keep, which deletes for good: by time that has really passed.

    A wall clock may be wrong for a while. So it is compared with a steady one (both are arguments,
    in seconds): where it jumps, time goes on as before, at the steady clock's pace, until the wall
    clock has gone on evenly for CLOCK_CONFIRMED seconds. What a machine slept is a jump, too. After
    a start time goes on from the newest entry, when by the wall clock everything that there is
    would be too old. Of two times the earlier one counts: it deletes less.
    """

    def __init__(self, keep: float, newest: Optional[float]) -> None:
        # Seconds for which entries are kept.
        self.keep = keep
        # When the newest entry was made; None: there is none.
        self._newest = newest
        # What the time is ahead of the steady clock; None: now() was not called yet.
        self._offset: Optional[float] = None
        # After a jump: what the wall clock is ahead now, and since when by the steady clock.
        self._doubted: "Optional[tuple[float, float]]" = None

    def now(self, wall: float, steady: float) -> float:
        """The time to count by, in Unix seconds."""
        offset = wall - steady
        if self._offset is None:
            is_plausible = self._newest is None or 0 <= wall - self._newest <= self.keep
            self._offset = offset if is_plausible else (self._newest or 0.0) - steady
        if abs(offset - self._offset) <= CLOCK_JUMP:
            self._offset, self._doubted = offset, None
        elif self._doubted is None or abs(offset - self._doubted[0]) > CLOCK_JUMP:
            self._doubted = offset, steady
        elif steady - self._doubted[1] >= CLOCK_CONFIRMED:
            self._offset, self._doubted = offset, None
        return min(wall, steady + self._offset)


class HistoryFile(_Database):
    """The log, the sessions and the newest id in an SQLite file: what an ACK means with --history.

    save() is one transaction and durable when it returns (with `sync` "normal": after a crash of
    the server, but not of the machine). There is one connection, which the sequencer alone uses and
    which locks the file for as long as it is open: SQLite up to 3.51.2 can damage a file in WAL
    mode that has two connections. So a second server and --export are refused meanwhile.

    An entry with a wrong checksum is never served, and its id is in `damaged`; a session with a
    wrong one is forgotten. What is deleted or removed is overwritten (secure_delete).

    Every method raises HistoryError, in words for the operator, when the file cannot be read or
    written ("the disk is full").
    """

    def __init__(self, path: str, sync: str = "full", keep_seconds: float = math.inf,
                 keep_messages: float = math.inf) -> None:
        super().__init__(path)
        self._keep_messages = keep_messages
        try:
            with self._in_words():
                self._open()
                # Which run of ids this is, the newest id that was given, and the newest one that
                # --keep or --keep-messages deleted.
                self.epoch, self.last, self.forgotten = self._read_state()
                self._begin(sync)
                # How many chats there are.
                newest, self._messages = self._connection.execute(
                    "SELECT (SELECT CAST(at AS REAL) FROM entries ORDER BY id DESC LIMIT 1),"
                    " (SELECT count(*) FROM entries WHERE kind = 'chat')").fetchone()
                self._clock = KeepClock(keep_seconds, newest)
        except HistoryError:
            self._connection.close()
            raise

    def save(self, last: int, rows: "list[tuple[Any, ...]]", sessions: "list[tuple[Any, ...]]",
             removed: "list[int]", erased: "Collection[int]" = (),
             kept: "Mapping[str, Optional[str]]" = NOTHING) -> float:
        """Commit what a batch of events changed; return the seconds that it took.

        `last` is the newest id, `rows` are entries as entry_row() makes them, `sessions` rows of
        sessions without their checksums, `removed` numbers of sessions to forget, `erased` ids of
        chats that the host took back: removed_frame() takes their place, and their text is in no
        part of the file any more; `kept` is what else has changed (see the table of that name),
        None to forget it. May be repeated with the same after it failed: nobody knows whether a
        commit that failed is on the disk.
        """
        started = time.perf_counter()
        with self._in_words():
            with self._transaction():
                self._connection.executemany(
                    "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
                self._connection.executemany(
                    "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    ((*row, _checksum(row)) for row in sessions))
                self._connection.executemany("DELETE FROM sessions WHERE number = ?",
                                             [(number,) for number in removed])
                for id in erased:
                    self._erase(id)
                self._keep(kept)
                self._set_state(last, self.forgotten)
            if erased:
                self._checkpoint()
        self.last = last
        self._messages += sum(row[2] == Chat.type for row in rows)
        return time.perf_counter() - started

    def kept(self, keys: str) -> "dict[str, str]":
        """What save() kept besides entries and sessions, of the keys like that (GLOB); what is
        damaged is left out."""
        found = {}
        with self._in_words():
            for row in self._connection.execute("SELECT * FROM kept WHERE key GLOB ?", (keys,)):
                key = str(row[0], "utf-8", "replace")
                if row[-1] == _checksum(row[:-1]):
                    found[key] = str(row[1], "utf-8")
                else:
                    logger.warning("%s: damaged: %s is forgotten", self.path,
                                   "what held in the room (bans, mutes, the pinned line)"
                                   if key == "house" else "a file")
        return found

    def sessions(self) -> "list[tuple[Any, ...]]":
        """Every row of sessions without its checksum, in the order of leaving; those who had not
        left come last."""
        with self._in_words():
            rows = self._connection.execute(
                "SELECT * FROM sessions ORDER BY left_at IS NULL, left_at, number")
            return [(number, secret_hash, name.decode(errors="replace"), *numbers,
                     None if booted is None else booted.decode(errors="replace"))
                    for number, secret_hash, name, *numbers, booted, _ in rows]

    def refusals(self) -> "list[Entry]":
        """The errors that refuse a frame and that their member may not have confirmed yet."""
        with self._entries(
                f"SELECT {_COLUMNS} FROM sessions CROSS JOIN entries INDEXED BY news"
                " ON one = number AND kind <> 'chat' AND about IS NOT NULL AND id > acked"
                " ORDER BY id") as entries:
            return [entry for entry in entries if entry.frame]

    def newest(self, count: int, size: int) -> "tuple[list[Entry], int]":
        """The newest entries, at most so many or of so many bytes, oldest first, and the id before
        them."""
        with self._entries(f"SELECT {_COLUMNS} FROM entries ORDER BY id DESC") as entries:
            newest, rest = _first_of(entries, count, size)
        return ([entry for entry in reversed(newest) if entry.frame],
                self.forgotten if rest is None else rest.id)

    def after(self, id: int, upto: int, number: int) -> "tuple[list[Entry], int]":
        """A window of what session `number` may hear of the entries after `id` up to `upto`; and
        up to which id it is whole."""
        with self._entries(_HEARD + " ORDER BY id", id, upto + 1, number) as entries:
            return window_of(entries, upto)

    def before(self, id: int, count: int, number: Optional[int],
               find: "Collection[str]" = ()) -> "tuple[list[Entry], Optional[int]]":
        """The newest messages before `id` that session `number` may hear (None: everybody), newest
        first.

        With `find` only those whose text holds all these words. Second the id before which to go
        on; None: there is nothing older. One call looks at LOOK_ROWS messages or LOOK_BYTES of
        them at most: so it may find fewer than `count`, or none, and still say where to go on.
        """
        with self._entries(_HEARD_CHATS + " ORDER BY id DESC", self.forgotten, id,
                           number) as entries:
            return look_through(entries, count, find)

    def chat(self, id: int) -> Optional[Entry]:
        """The chat of that id; None when there is none."""
        query = f"SELECT {_COLUMNS} FROM entries WHERE id = :after AND kind = 'chat'"
        with self._entries(query, id) as entries:
            return next((entry for entry in entries if entry.frame), None)

    def said_by(self, number: int, count: int) -> "list[int]":
        """The ids of the last chats of a session, newest first; removed ones are left out."""
        query = ("SELECT id FROM entries WHERE speaker = :number AND kind = 'chat'"
                 " AND instr(body, :text) = 0 ORDER BY id DESC LIMIT :count")
        with self._in_words():
            return [row[0] for row in self._connection.execute(query, {
                "number": number, "count": count, "text": _REMOVED_FIELD.decode()})]

    def public(self, after: int) -> "tuple[list[bytes], int]":
        """A piece of what is for everybody behind an id, and the id up to which it is whole."""
        query = f"SELECT {_COLUMNS} FROM entries WHERE id > :after ORDER BY id LIMIT {TRIM_ROWS}"
        with self._entries(query, after) as entries:
            found = list(entries)
        frames = [entry.frame for entry in found if entry.audience is None and entry.frame]
        return frames, found[-1].id if found else after

    def trim(self, now: float, steady: Optional[float] = None) -> bool:
        """Delete a few of the entries that are too old or too many; return whether there were any.

        `now` is the wall clock and `steady` one that never jumps (time.monotonic(), when it is not
        given). Entries go in their order. One that was made later than now, while the clock was
        wrong, says nothing about its age: it goes with the next one that is too old.
        """
        now = self._clock.now(now, time.monotonic() if steady is None else steady)
        cut, messages, left = self.forgotten, self._messages, self._messages
        with self._in_words():
            for id, is_chat, is_old, is_young in self._connection.execute(
                    "SELECT id, kind = 'chat', at < :old, at BETWEEN :old AND :now FROM entries"
                    " WHERE id > :cut ORDER BY id LIMIT :count", {
                        "old": now - self._clock.keep, "now": now, "cut": cut,
                        "count": TRIM_ROWS}).fetchall():
                is_too_many = messages > self._keep_messages
                if is_young and not is_too_many:
                    break
                messages -= is_chat
                if is_old or is_too_many:
                    cut, left = id, messages
            if cut == self.forgotten:
                return False
            with self._transaction():
                self._delete(self.forgotten, cut)
                self._set_state(self.last, cut)
            self.forgotten, self._messages = cut, left
            # execute() would free one page only.
            self._connection.executescript("PRAGMA incremental_vacuum(256)")
        return True

    def close(self) -> None:
        """Give the file back. Not while another thread uses it; may be called twice."""
        with contextlib.suppress(sqlite3.Error, HistoryError):
            # Now everything is written through, and no id can be lost.
            self._connection.execute("PRAGMA synchronous = FULL")
            with self._transaction():
                self._set_state(self.last, self.forgotten)
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    # Inside

    def _read_state(self) -> "tuple[str, int, int]":
        """The epoch, the newest id and the newest one that was deleted."""
        states = self._connection.execute("SELECT * FROM state").fetchall()
        if len(states) != 1 or states[0][-1] != _checksum(states[0][:-1]):
            raise HistoryError(f"{self.path}: it is damaged (its state): {_DAMAGED}")
        epoch, last, forgotten, unsynced, _ = states[0]
        # What a power cut took had ids: they do not come again.
        return epoch.decode(errors="replace"), last + UNSYNCED_IDS * unsynced, forgotten

    def _begin(self, sync: str) -> None:
        """Forget sessions that are damaged, and finish what a killed server began."""
        execute = self._connection.execute
        execute("PRAGMA synchronous = " + sync)
        damaged = [(row[0],) for row in execute("SELECT * FROM sessions")
                   if row[-1] != _checksum(row[:-1])]
        if damaged:
            logger.warning("%s: damaged: %d sessions are forgotten, whose members come as new ones",
                           self.path, len(damaged))
        with self._transaction():
            self._set_state(self.last, self.forgotten)
            self._connection.executemany("DELETE FROM sessions WHERE number = ?", damaged)
            # Refusals that outlived what was deleted around them.
            self._delete(0, self.forgotten)
        # What was erased may be in the WAL still.
        self._checkpoint()
        self._identity = self._place()

    def _keep(self, values: "Mapping[str, Optional[str]]") -> None:
        """Inside a transaction."""
        for key, text in values.items():
            if text is None:
                self._connection.execute("DELETE FROM kept WHERE key = ?", (key,))
            else:
                self._connection.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)",
                                         (key, text, _checksum((key, text))))

    def _set_state(self, last: int, forgotten: int) -> None:
        """Write the state. Inside a transaction, with which alone it becomes true."""
        state = last, forgotten, int(_pragma(self._connection, "synchronous") == 1)
        self._connection.execute(
            "UPDATE state SET last = ?, forgotten = ?, unsynced = ?, checksum = ?",
            (*state, _checksum((self.epoch, *state))))

    def _delete(self, after: int, upto: int) -> None:
        """Delete entries, but no refusal that its member may not have seen: its ACK would become a
        false yes."""
        self._connection.execute(
            "DELETE FROM entries WHERE id > ? AND id <= ? AND (about IS NULL OR NOT EXISTS"
            " (SELECT 1 FROM sessions WHERE number = one AND acked < entries.id))", (after, upto))

    def _erase(self, id: int) -> None:
        """Take the text out of a chat; one that is damaged goes as a whole."""
        execute = self._connection.execute
        query = f"SELECT {_COLUMNS} FROM entries WHERE id = ? AND kind = 'chat'"
        for row in execute(query, (id,)).fetchall():
            if self._keep_sound(id, _is_sound(row)):
                row = *row[:2], removed_frame(row[2])[:-1], *row[3:-1]
                execute("UPDATE entries SET body = CAST(? AS TEXT), checksum = ? WHERE id = ?",
                        (row[2], _entry_checksum(*row), id))
            else:
                execute("DELETE FROM entries WHERE id = ?", (id,))


def entry_row(message: Message, frame: bytes, numbers: "tuple[int, ...]", now: float,
              speaker: Optional[int] = None) -> "tuple[Any, ...]":
    """The row of entries for a message, as save() takes it.

    `frame` is the message as it is sent, `numbers` are those of the sessions that it is for (none
    is everybody), `speaker` is that of the session that said it, `now` the time for a message that
    has none.
    """
    sender = getattr(message, "sender", None) or getattr(message, "name", None)
    one, other = (*numbers, None, None)[:2]
    row = (message.id, message.type.encode(), frame[:-1], one, other,
           message.about if isinstance(message, Error) else None, speaker)
    return (message.id, getattr(message, "at", now), message.type, sender,
            getattr(message, "to", None), frame[:-1].decode(), *row[3:], _entry_checksum(*row))


# As it stands in the frame of a chat that was removed; in a text the quotes would be escaped.
_REMOVED_FIELD = b'"text":"%s"' % REMOVED.encode()


def removed_frame(frame: bytes) -> bytes:
    """The frame that takes the place of a chat that the host took back."""
    fields = {**json.loads(frame), "text": REMOVED}
    fields.pop("file", None)
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def search_key(text: str) -> str:
    """What texts are searched by: name_key(), in time that is linear.

    NFKC sorts marks on one letter, which takes 85 ms for 8,192 of them. So a longer text is taken
    in pieces, each of which begins with an ASCII character, to which no mark before it belongs; or
    after 128 characters where there is none, as in Chinese: a letter there that is written in
    parts and cut is not found.
    """
    if text.isascii():
        return text.lower()
    return "".join(map(chatproto.name_key, _SEARCH_PIECE.findall(text)))


_SEARCH_PIECE = re.compile(r"[\s\S]{64,128}?(?=[\x00-\x7f])|[\s\S]{1,128}")


def look_through(entries: "Iterable[Entry]", count: int, find: "Collection[str]") -> (
        "tuple[list[Entry], Optional[int]]"):
    """The first `count` of these chats whose text holds all words, and the id before which to go
    on; None: there are no more. At most LOOK_ROWS are looked at, or LOOK_BYTES."""
    found: "list[Entry]" = []
    size, words = 0, [search_key(word) for word in find]
    for looked, entry in enumerate(entries):
        if len(found) == count or looked == LOOK_ROWS or size >= LOOK_BYTES:
            return found, entry.id + 1
        text = search_key(json.loads(entry.frame)["text"]) if words and entry.frame else ""
        # NFKC makes 18 characters of one.
        size += len(entry.frame) + len(text)
        if entry.frame and all(word in text for word in words):
            found.append(entry)
    return found, None


def window_of(entries: "Iterable[Entry]", upto: int) -> "tuple[list[Entry], int]":
    """As many entries as a window takes, and the place behind them: `upto` with the last one."""
    window, rest = _first_of(entries, WINDOW, WINDOW_BYTES)
    return window, upto if rest is None else window[-1].id


def _first_of(entries: "Iterable[Entry]", count: int,
              size: float) -> "tuple[list[Entry], Optional[Entry]]":
    """So many entries, or so many bytes of them, at most; and the first that is left out."""
    found: "list[Entry]" = []
    for entry in entries:
        size -= len(entry.frame)
        if len(found) == count or size < 0:
            return found, entry
        found.append(entry)
    return found, None


def export_history(path: str, output: str) -> int:
    """Write what was said in public, who came and who went to `output`.

    These are lines of text when it ends in .txt, else JSON, a frame a line; "-" is stdout. Only
    reads `path`. Returns the number of lines; damaged ones are left out, which is logged. Raises
    HistoryError and OSError.
    """
    if sqlite3 is None:
        raise HistoryError(f"{path}: this Python was built without sqlite3")
    if not os.path.isfile(path):
        raise HistoryError(f"{path}: there is no such file")
    if os.path.exists(output) and os.path.samefile(path, output):
        raise HistoryError(f"{path}: it cannot be exported into itself")
    try:
        uri = pathlib.Path(path).absolute().as_uri() + "?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, timeout=LOCK_WAIT, uri=True)) as file:
            file.text_factory = bytes
            # What is refused makes no output.
            _check_ours(file, path)
            with (contextlib.nullcontext(sys.stdout) if output == "-"
                  else open(output, "w", encoding="utf-8")) as lines:
                count, damaged = _export_lines(file, lines, output.endswith(".txt"))
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise HistoryError(_in_our_words(path, error)) from error
    if damaged:
        logger.warning("%s: damaged: %d lines are left out", path, damaged)
    return count


def _export_lines(file: Any, lines: Any, as_text: bool) -> "tuple[int, int]":
    """Write a line for each public entry; return how many there are, and how many are damaged."""
    count = damaged = 0
    is_unchecked = _pragma(file, "user_version") == 1
    columns = "id, kind, body" if is_unchecked else _COLUMNS
    for row in file.execute(f"SELECT {columns} FROM entries WHERE one IS NULL ORDER BY id"):
        if not (_is_frame(*row) if is_unchecked else _is_sound(row)):
            damaged += 1
            continue
        body = row[2].decode()
        lines.write((_exported(body) if as_text else body) + "\n")
        count += 1
    return count, damaged


def _exported(body: str) -> str:
    """The line of the chat log for a frame."""
    message: Any = chatproto.decode(body.encode(), chatproto.INSTRUCTIONS[chatproto.FROM_SERVER])
    line = (f"<{message.sender}> {escape(message.text)}" if isinstance(message, Chat)
            else f"* {message.name} joined" if isinstance(message, Joined)
            else _left_line(message) if isinstance(message, Left)
            else f"* {message.name} is now {message.to}" if isinstance(message, Renamed)
            else "* the host removed a message" if isinstance(message, Removed)
            else f"* pinned: {escape(message.text or '(nothing)')}" if isinstance(message, Motd)
            else escape(body))
    at = getattr(message, "at", None)
    moment = "" if at is None else time.strftime("[%Y-%m-%d %H:%M:%S] ", time.localtime(at))
    return moment + line


def _left_line(left: Left) -> str:
    booted = left.reason.startswith("booted")
    how = f"was {escape(left.reason)}" if booted else f"left ({escape(left.reason)})"
    return f"* {left.name} {how}"


# --- The journal ---

class NoFiles:
    """What a room has in place of chat_web's FileStore while there is none."""

    # Bytes of the largest file that is taken; what the next commit is to keep.
    most: Optional[int] = None
    changes = NOTHING

    def drop(self, is_over: Callable[[Any], bool]) -> int:
        """There is nothing to forget."""
        return 0

    def listed(self) -> "list[Any]":
        """What was handed out."""
        return []


class Disk:
    """Whether the history file can be written, and what the log says of it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # Why the last commit failed ("disk full"), and when one worked again. Any thread may read
        # the first.
        self.failure: Optional[str] = None
        self.recovered_at = -math.inf
        # When a slow commit was logged.
        self._slow_at = -math.inf

    def failed(self, why: str) -> None:
        """A commit could not be made."""
        if self.failure != why:
            logger.error("nothing is acknowledged until this is mended: %s", why)
        self.failure = why

    def worked(self, path: str, took: float) -> None:
        """A commit was made, in so many seconds."""
        now = self._clock()
        if self.failure is not None:
            logger.info("%s can be written again; nothing was lost", path)
            self.failure, self.recovered_at = None, now
        if took >= SLOW_COMMIT and now - self._slow_at >= SAY_AGAIN:
            self._slow_at = now
            logger.warning("the disk is slow: a commit to %s took %.0f ms, which everybody waits "
                           "for", path, 1000 * took)


class Journal:
    """The order: ids, the log in memory, and with --history the file. On the sequencer's thread
    alone.

    add() gives a message its place in the log; commit() puts what was added into the file;
    log.publish() lets the readers have it. A commit that fails holds the room ("disk full"):
    nothing of it is published, and the same commit is tried again. Of the log only LOG_FRAMES and
    LOG_BYTES stay in memory; who reads below is fed from the file, a piece() each time its window
    opens, and without a file it is too slow.
    """

    def __init__(self, clock: Callable[[], float], wall_clock: Callable[[], float],
                 history: Optional[HistoryFile]) -> None:
        self.log = MessageQueue()
        self._wall_clock = wall_clock
        # From where whoever reads below the start of the log is fed.
        self.history = history
        # Which run of ids this is, the newest id, and the newest when this process started.
        self.epoch = secrets.token_hex(8) if history is None else history.epoch
        self.last = self.begun = 0 if history is None else history.last
        # The chats in memory: those of the log, and the last public ones, which newcomers get,
        # whatever the bound of the log.
        self._chats: "list[Entry]" = []
        # What the next commit puts into the file: rows of entries, sessions that changed, and the
        # numbers of those that are forgotten.
        self._rows: "list[tuple[Any, ...]]" = []
        self.changed: "dict[Session, None]" = {}
        self.removed: "list[int]" = []
        # The ids of chats that the host took back; and what else it is to keep, but what is kept of
        # files (see NoFiles).
        self._erased: "list[int]" = []
        self.kept: "dict[str, Optional[str]]" = {}
        self.files: Any = NoFiles()
        # Bytes that were added since the last commit.
        self.added = 0
        # The file could not be read up to this id.
        self._unreadable = 0
        self.disk = Disk(clock)
        if history is not None:
            self._load(history)

    def _load(self, history: HistoryFile) -> None:
        entries, self.log.start = history.newest(LOG_FRAMES, LOG_BYTES)
        for entry in entries:
            self.log.append(entry.id, entry.frame, entry.audience)
        older, _ = history.before(self.log.start + 1, HISTORY, None)
        self._chats = older[::-1] + [entry for entry in entries if entry.is_chat]
        # Nobody reads yet: when that is makes no difference.
        self.log.publish(self.last, 0.0)

    # The order

    def next_id(self) -> int:
        """A new id."""
        self.last += 1
        return self.last

    def now(self) -> float:
        """The wall clock, for `at`."""
        return round(self._wall_clock(), 3)

    def add(self, message: Message, audience: "Optional[FrozenSet[int]]" = None,
            speaker: Optional[int] = None) -> None:
        """Give a message its place in the log: for everybody, or for sessions by their numbers.
        `speaker` is that of the session which said it."""
        frame = message.encode()
        self.log.append(message.id, frame, audience)
        self.added += len(frame)
        if isinstance(message, Chat):
            self._chats.append(Entry(message.id, frame, audience, speaker, True))
        if self.history is not None:
            numbers = tuple(sorted(audience or ()))
            self._rows.append(entry_row(message, frame, numbers, self.now(), speaker))

    def commit(self) -> bool:
        """Put what was added and changed into the file. False when the file does not take it: then
        everything is held."""
        history, files = self.history, self.files.changes
        self.added = 0
        if history is not None and (
                self._rows or self.changed or self.removed or self._erased or self.kept or files
                or self.last != history.last):
            try:
                kept = {**self.kept, **{f"file:{key}": text for key, text in files.items()}}
                took = history.save(self.last, self._rows,
                                    [session.row() for session in self.changed], self.removed,
                                    self._erased, kept)
            except HistoryError as error:
                self.disk.failed(str(error))
                return False
            self.disk.worked(history.path, took)
        for done in (self._rows, self.changed, self.removed, self._erased, self.kept):
            done.clear()
        if files:
            self.files.committed()
        return True

    # Bounds

    @property
    def is_too_long(self) -> bool:
        """Whether the log in memory has reached a bound: then shorten() it."""
        return len(self.log) > LOG_FRAMES or self.log.size > LOG_BYTES

    def shorten(self) -> None:
        """The oldest tenth of the log in memory goes, or more where one batch was long, of what is
        published."""
        count = max(len(self.log) // 10 + 1, len(self.log) - LOG_FRAMES)
        upto = min(self.log.oldest(count), self.log.end)
        self.log.forget(upto)
        last = [chat for chat in self.public_chats(HISTORY) if chat.id <= upto]
        self._chats[:self._index_behind(upto)] = last

    def _index_behind(self, place: int) -> int:
        """Which of the chats in memory is the first behind a place."""
        return bisect.bisect_left(self._chats, Entry(place + 1, b""))

    def delete_old(self, steady: float) -> bool:
        """Delete a few of the oldest entries from the file, as --keep and --keep-messages ask;
        return whether there were any. `steady` is a clock that never jumps."""
        assert self.history is not None
        try:
            more = self.history.trim(self.now(), steady)
        except HistoryError as error:
            logger.error("old messages cannot be deleted: %s", error)
            return False
        upto = self.history.forgotten
        if upto > self.log.start:
            self.log.forget(upto)
        del self._chats[:self._index_behind(upto)]
        self.files.drop(lambda file: 0 < file.message <= upto)
        return more

    @property
    def forgotten(self) -> int:
        """The newest id that can no longer be replayed."""
        if self.history is None:
            return self.log.start
        return max(self.history.forgotten, self._unreadable)

    # What is not read from the log

    def public_chats(self, count: int) -> "list[Entry]":
        """The last public chats in memory, oldest first."""
        public = (chat for chat in reversed(self._chats) if chat.audience is None)
        return list(itertools.islice(public, count))[::-1]

    def piece(self, session: Session, after: int) -> "Optional[tuple[list[bytes], int, int]]":
        """What `session` hears next behind a place before its `begin` or below the start of the
        log: at most a window of frames, the place behind them, and the id of the last one. None
        when it is there no more: the reader is too slow, or comes back and is told what it
        missed."""
        upto = session.begin if after < session.begin else self.log.start
        if self.history is not None and after < self.log.start:
            if after < self.forgotten:
                return None
            try:
                entries, place = self.history.after(after, min(upto, self.log.start),
                                                     session.number)
            except HistoryError as error:
                logger.error("messages before %d cannot be read: %s", self.log.start, error)
                self._unreadable = self.log.start
                return None
        elif after < session.begin:
            chats = self._chats[self._index_behind(after):self._index_behind(upto)]
            # In one step, however much was private in between: nobody who joins hears of that.
            entries, place = window_of([chat for chat in chats if chat.audience is None], upto)
        else:
            return None
        heard = [entry for entry in entries if session.hears(entry)]
        return [entry.frame for entry in heard], place, heard[-1].id if heard else 0

    def older(self, session: Session, recall: Recall) -> "tuple[list[bytes], Optional[int]]":
        """The frames that `recall` asks for, oldest first, and before which id there may be more.

        It is a step of a search (LOOK_ROWS, LOOK_BYTES), which may have found nothing.
        """
        before = self.last + 1 if recall.before is None else min(recall.before, self.last + 1)
        count = max(1, min(recall.count, RECALL_MOST))
        words = (recall.find or "")[:MAX_FIND].split()
        end = self._index_behind(before - 1)
        first = max(self._index_behind(self.log.start), end - LOOK_ROWS - 1)
        found, older = look_through(
            (chat if chat.audience is None or session.number in chat.audience
             else Entry(chat.id, b"") for chat in reversed(self._chats[first:end])), count, words)
        if older is None and self.history is not None:
            try:
                more, older = self.history.before(min(before, self.log.start + 1),
                                                   count - len(found), session.number, words)
                found += more
            except HistoryError as error:
                logger.error("older messages cannot be read: %s", error)
        found, rest = _first_of(found, count, RECALL_BYTES)
        return ([chat.frame for chat in reversed(found)],
                older if rest is None else rest.id + 1)

    # What the host takes back

    def chat(self, id: int) -> Optional[Entry]:
        """The chat of that id; None when there is none. Raises HistoryError."""
        at = self._index_behind(id - 1)
        if at < len(self._chats) and self._chats[at].id == id:
            return self._chats[at]
        return self.history.chat(id) if self.history is not None else None

    def said_by(self, speaker: Optional[int], count: int) -> "list[int]":
        """The ids of the last chats of a session that were not removed, newest first. Of the host
        (None) only what it said since this process started. Raises HistoryError."""
        here = [chat.id for chat in self._chats
                if chat.speaker == speaker and _REMOVED_FIELD not in chat.frame
                and (speaker is not None or chat.id > self.begun)]
        kept = (self.history.said_by(speaker, count)
                if self.history is not None and speaker is not None else [])
        # The file has those still whose removal is not committed yet.
        return sorted({*here, *kept}.difference(self._erased), reverse=True)[:count]

    def erase(self, chats: "Iterable[Entry]") -> None:
        """Take the text out of chats: here now, and in the file with the next commit."""
        frames = {chat.id: removed_frame(chat.frame) for chat in chats}
        self.log.replace(frames)
        self._chats = [chat._replace(frame=frames[chat.id]) if chat.id in frames else chat
                       for chat in self._chats]
        self._erased += frames

    def public(self, after: int) -> "tuple[list[bytes], int]":
        """A piece of what is for everybody behind a place, from the file where there is one, and
        the place behind it. Raises HistoryError."""
        if self.history is not None:
            return self.history.public(after)
        piece = self.log.piece(max(after, self.log.start), self.log.end, NOWHERE, WINDOW,
                               WINDOW_BYTES)
        return (piece.data.splitlines(keepends=True), piece.place) if piece else ([], after)

    def missing(self, after: int) -> int:
        """How many of the entries behind a place are known to be lost to damage."""
        damaged = self.history.damaged if self.history is not None else ()
        return sum(id > after for id in damaged)

    def close(self) -> None:
        """Give the history file back. Not on the sequencer's thread, but after it."""
        if self.history is not None:
            self.history.close()


# --- Who is here ---

def _hash_of(secret: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


class Session:
    """A member: in the room, in its grace time, or remembered after it left, so that what it sends
    again is not said twice. Only the sequencer changes it."""

    __slots__ = ("number", "name", "secret_hash", "begin", "history_from", "here_since", "got",
                 "link", "lost_at", "left_at", "named_at", "said_at",
                 "receipts", "refusals", "allowance", "origin", "_acked")

    def __init__(self, number: int, secret_hash: bytes, begin: int, history_from: int) -> None:
        # Its own for good, in the history file: who private frames are for.
        self.number = number
        self.name = ""
        self.secret_hash = secret_hash
        # It hears everything after `begin`, and what was said in public after `history_from`.
        self.begin = begin
        self.history_from = history_from
        # The newest id when it came into the room, for receipts.
        self.here_since = begin
        # The newest id of its own frames that has its place: what is not above it is a duplicate.
        self.got = 0
        self.link: Optional[Connection] = None
        # When the connection was lost, by the room's clock; when it left, by the wall clock: None
        # while it is in the room, 0 before it comes.
        self.lost_at = math.inf
        self.left_at: Optional[float] = 0.0
        # The newest id when it took its name, and when it spoke last, by the room's clock.
        self.named_at = begin
        self.said_at = -math.inf
        # Tell it who heard its messages.
        self.receipts = False
        # The errors that refuse a frame of its, until they are acknowledged.
        self.refusals: "list[Error]" = []
        # Its flood limit, which a new connection does not fill again.
        self.allowance: Optional[Allowance] = None
        # The address that it counts for; "" when it came before a restart.
        self.origin = ""
        # The newest id that it acknowledged on connections before this one.
        self._acked = begin

    @property
    def present(self) -> bool:
        """Whether it is in the room, connected or in its grace time."""
        return self.left_at is None

    @property
    def weight(self) -> int:
        """What it counts for among those that are remembered."""
        return 1 + len(self.refusals)

    @property
    def acked(self) -> int:
        """The newest id of ours that the member has acknowledged."""
        return max(self._acked, self.link.manager.acked) if self.link else self._acked

    def hears(self, entry: Entry) -> bool:
        """Whether an entry that may be for it is: of what was before it came only public chats."""
        floor = self.history_from if entry.is_chat and entry.audience is None else self.begin
        return bool(entry.frame) and entry.id > floor

    def unlink(self) -> None:
        """Forget the connection, and remember how far it came."""
        self._acked, self.link = self.acked, None

    def row(self) -> "tuple[Any, ...]":
        """What the history file keeps of it."""
        return (self.number, self.secret_hash, self.name, self.begin, self.history_from, self.got,
                self.acked, self.left_at, None)

    @classmethod
    def from_row(cls, row: "tuple[Any, ...]") -> Session:
        """The session of a row: out of the room, until it comes back."""
        session = cls(*row[:2], *row[3:5])
        session.name, session.got, session._acked = row[2], *row[5:7]
        session.left_at = row[7] or 0.0
        return session

    def confirmed_for(self, seen: int) -> int:
        """The `got` of a welcome: up to the first refusal that the member has not seen, which an
        ACK would turn into a yes."""
        unseen = [(error.about or 0) - 1 for error in self.refusals if error.id > seen]
        return min([self.got, *unseen])


class Members:
    """Who is here, who was, and the list of users that a welcome brings.

    In the list are at most LISTED members; the others wait for a place, in the order of coming.
    """

    def __init__(self) -> None:
        # Those in the room by name_key, in the order of coming.
        self._by_name: "dict[str, Session]" = {}
        # By the hash of their secret these and all who left or were booted, in that order.
        self._by_secret: "dict[bytes, Session]" = {}
        # What those who are gone count for together; at most that: some came back.
        self._gone_weight = 0
        # Those in the list, each with its name as it is in a frame, and a comma.
        self.listed: "dict[Session, bytes]" = {}
        # These names, as many as fit, and how many these are; None: to be made anew.
        self._encoded: "Optional[tuple[bytes, int]]" = None

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._by_name.values())

    def called(self, name: str) -> Optional[Session]:
        """The member of that name."""
        # What is too long for a name is nobody's, and could cost name_key() a fifth of a second.
        return self._by_name.get(name_key(name)) if len(name) <= chatproto.MAX_NAME else None

    def known(self, name: str) -> Optional[Session]:
        """The member of that name, or else who left last under it."""
        key = name_key(name[:chatproto.MAX_NAME])
        return self.called(name) or next(
            (session for session in reversed(list(self._by_secret.values()))
             if name_key(session.name) == key), None)

    def owned(self, secret: str) -> Optional[Session]:
        """The session, present or gone, whose secret that is."""
        # What is compared is a hash: how long that takes tells nothing of the secret.
        return self._by_secret.get(_hash_of(secret))

    @property
    def is_list_full(self) -> bool:
        """Whether who comes next has to wait for a place in the list."""
        return len(self.listed) >= LISTED

    def enter(self, session: Session, name: str) -> None:
        """A session comes into the room."""
        session.name, session.left_at = name, None
        self._by_name[name_key(name)] = self._by_secret[session.secret_hash] = session
        if not self.is_list_full:
            self._list(session)

    def remember(self, session: Session) -> None:
        """A session that is not in the room, and left after all others that are not."""
        self._by_secret.pop(session.secret_hash, None)
        self._by_secret[session.secret_hash] = session
        self._gone_weight += session.weight

    def leave(self, session: Session, at: float) -> "tuple[Optional[Session], list[Session]]":
        """A member goes, at a time; return who has its place in the list now, and which sessions
        are remembered no more."""
        del self._by_name[name_key(session.name)]
        session.left_at = at
        self.remember(session)
        forgotten = self._forget_some() if self._gone_weight > SESSIONS else []
        successor = None
        if self.listed.pop(session, None) is not None:
            self._encoded = None
            # Mostly all are listed, and nobody has to be looked for.
            if len(self) > len(self.listed):
                successor = next(other for other in self if other not in self.listed)
                self._list(successor)
        return successor, forgotten

    def _forget_some(self) -> "list[Session]":
        """Forget a hundredth of those who are gone, and return them. Nobody can push out those of
        another address before as many of its own are left."""
        gone = [session for session in self._by_secret.values() if not session.present]
        # Of each address who has said something comes first, and then who left last. A rank is how
        # much of its address stays when a session goes, and all that are worth more.
        kept: "collections.Counter[str]" = collections.Counter()
        ranks: "list[tuple[int, Session]]" = []
        for session in sorted(reversed(gone), key=lambda session: session.got == 0):
            kept[session.origin] += session.weight
            ranks.append((kept[session.origin], session))
        ranks.sort(key=lambda rank: rank[0])
        forgotten = []
        self._gone_weight = sum(session.weight for session in gone)
        while self._gone_weight > SESSIONS - SESSIONS // 100:
            session = ranks.pop()[1]
            self._gone_weight -= session.weight
            forgotten.append(self._by_secret.pop(session.secret_hash))
        return forgotten

    def rename(self, session: Session, name: str) -> None:
        """A member takes another name."""
        del self._by_name[name_key(session.name)]
        session.name = name
        self._by_name[name_key(name)] = session
        if session in self.listed:
            self._list(session)

    def free_name_like(self, name: str) -> str:
        """A name like this one that nobody here has."""
        stem = re.sub(r"-\d+$", "", name)[:chatproto.MAX_NAME - 6]
        tries = (f"{stem}-{number}" for number in range(2, len(self) + 3))
        return next(other for other in tries if name_key(other) not in self._by_name)

    def encoded(self) -> "tuple[bytes, int]":
        """The listed names as they are in a frame, joined by commas, and how many there are: as
        many as USERS_BYTES hold."""
        if self._encoded is None:
            names = b"".join(self.listed.values())
            # Up to a comma: in a name there is none.
            names = names[:names.rfind(b",", 0, USERS_BYTES + 1) + 1]
            self._encoded = names[:-1], names.count(b",")
        return self._encoded

    def _list(self, session: Session) -> None:
        """A member comes into the list."""
        self.listed[session] = chatproto.encode_strings([session.name]) + b","
        self._encoded = None


# --- What holds in the room ---

class Hold(NamedTuple):
    """Somebody is kept out, or silent."""

    # "ban", "boot" or "mute".
    kind: str
    # As the host called who it is.
    name: str
    # What it is known by: a name_key, "#" and the number of a session, an address.
    keys: "tuple[str, ...]"
    # Unix seconds; None: for good.
    until: Optional[float]
    reason: str


class Holds:
    """Who is kept out or silent, by what each is known by. At most HOLDS; then the oldest ends."""

    def __init__(self, clock: Callable[[], float]) -> None:
        # The wall clock: so they outlive a restart.
        self._clock = clock
        # By kind and key, the oldest first.
        self._by_key: "dict[tuple[str, str], Hold]" = {}

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def __iter__(self) -> Iterator[Hold]:
        """Those that hold now."""
        return (hold for hold in dict.fromkeys(self._by_key.values()) if self.left(hold) > 0)

    def add(self, hold: Hold) -> None:
        """In the place of what held of that kind for these keys."""
        others = [old for old in self
                  if old.kind != hold.kind or not set(old.keys) & set(hold.keys)]
        self.replace(others[1 - HOLDS:] + [hold])

    def find(self, kinds: "tuple[str, ...]", keys: "Iterable[str]") -> Optional[Hold]:
        """What holds of these kinds for one of the keys."""
        found = map(self._by_key.get, itertools.product(kinds, keys))
        return next((hold for hold in found if hold is not None and self.left(hold) > 0), None)

    def lift(self, kinds: "tuple[str, ...]", keys: "Iterable[str]") -> "list[Hold]":
        """End what holds of these kinds for one of the keys, and return it."""
        wanted = set(keys)
        ended = [hold for hold in self if hold.kind in kinds and wanted & set(hold.keys)]
        self.replace([hold for hold in self if hold not in ended])
        return ended

    def replace(self, holds: "list[Hold]") -> None:
        """These hold now, and no others."""
        self._by_key = {(hold.kind, key): hold for hold in holds for key in hold.keys}

    def left(self, hold: Hold) -> float:
        """The seconds that are left; inf: for good."""
        return math.inf if hold.until is None else hold.until - self._clock()

    def until(self, hold: Hold) -> str:
        """When it ends, as words at the end of a sentence; "" for good."""
        left = self.left(hold)
        if left == math.inf:
            return ""
        if left < 90:
            return f" for {max(1, math.ceil(left))} s more"
        form = " until %H:%M" if left < 43_200 else " until %Y-%m-%d %H:%M"
        return time.strftime(form, time.localtime(math.ceil(hold.until or 0)))


class House:
    """What holds in the room: rules, holds, the pinned line. On the sequencer's thread alone.

    It is one JSON text, which the journal commits together with what it caused.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.holds = Holds(clock)
        # With the id 0: each time it is told it gets one.
        self.rules = Rules(0)
        # The message of the day; and whether the host set it, else it is from its file.
        self.motd: Optional[str] = None
        self.is_motd_set = False
        # Whether the host lets members upload files, where that can be.
        self.takes_files = True

    def to_json(self) -> str:
        """What from_json() takes."""
        rules = self.rules
        kept: "dict[str, Any]" = {
            "speak": rules.speak, "private": rules.private, "slow": rules.slow, "host": rules.host,
            "holds": list(self.holds), "takes_files": self.takes_files}
        if self.is_motd_set:
            kept["motd"] = self.motd
        return json.dumps(kept, ensure_ascii=False)

    def from_json(self, text: str) -> None:
        """Go on with what was kept; of what cannot be read nothing is taken over."""
        try:
            kept = json.loads(text)
            rules = Rules.from_fields({**kept, "id": 1})
            assert isinstance(rules, Rules)
            holds = [Hold(kind, name, tuple(keys), until, reason)
                     for kind, name, keys, until, reason in kept["holds"]]
            motd = None if kept.get("motd") is None else chatproto.check_text(kept["motd"])
        except (KeyError, TypeError, ValueError, ProtocolError, RecursionError) as error:
            logger.warning("what held in the room cannot be read: %s", error)
            return
        self.rules = dataclasses.replace(rules, id=0)
        self.takes_files = kept.get("takes_files") is not False
        self.holds.replace(holds)
        self.motd, self.is_motd_set = motd, "motd" in kept

    def check_entry(self, name: str, session: Optional[Session], address: str) -> None:
        """Raise ProtocolError("banned") if whoever comes in so is kept out."""
        hold = self.holds.find(("ban", "boot"), _keys_of(name, session, address))
        if hold is not None:
            what = "you were booted" if hold.kind == "boot" else "you are banned here"
            why = f": {hold.reason}" if hold.reason else ""
            raise ProtocolError("banned", what + self.holds.until(hold) + why)

    def check_say(self, session: Session, say: Say, now: float) -> None:
        """Raise ProtocolError if that may not be said; `now` is the room's clock."""
        self.check_voice(session)
        rules = self.rules
        if say.to is not None and not rules.private:
            raise ProtocolError("private-off", "private messages are off here")
        wait = session.said_at + rules.slow - now
        if wait > 0:
            raise ProtocolError(
                "muted", f"one message in {rules.slow:g} s: {math.ceil(wait)} s are left")

    def check_voice(self, session: Session) -> None:
        """Raise ProtocolError if a member may say nothing at all."""
        mute = self.mute_of(session)
        if mute is not None:
            raise ProtocolError("muted", "the host has muted you" + self.holds.until(mute))
        if self.rules.speak == "host":
            raise ProtocolError("muted", "only the host speaks now, until everybody may again")

    def mute_of(self, session: Session) -> Optional[Hold]:
        """What keeps somebody silent."""
        # Mostly nobody is held, and then no name is looked up.
        return (self.holds.find(("mute",), _keys_of(session.name, session, session.origin))
                if self.holds else None)


def _keys_of(name: str, session: Optional[Session], address: str) -> "list[str]":
    """What somebody is known by, for a Hold; the address may be ""."""
    keys = [name_key(name[:chatproto.MAX_NAME]), f"#{session.number}" if session else "", address]
    return list(filter(None, keys))


# --- Who knows the password ---

class Password:
    """What newcomers have to know, where anything is asked of them.

    A session that began with it does not need it again. Its secret tells, which nobody can make
    up: it begins with MARK. One that was given without a password, perhaps over a wire that anybody
    reads, does not.
    """

    MARK = "+"

    def __init__(self, clock: Callable[[], float]) -> None:
        # Of the password; b"" when there is none.
        self._digest = b""
        # What an address may still get wrong, so that nobody locks others out.
        self._guesses = allowances(GUESS_RATE, GUESSES, clock)

    def change(self, text: str) -> None:
        """Ask newcomers for another one from now on. Raises ProtocolError for what is none."""
        self._digest = _hash_of(chatproto.check_password(text))

    def new_secret(self) -> str:
        """The secret of a new session: 192 random bits."""
        return (self.MARK if self._digest else "") + secrets.token_urlsafe(24)

    def check(self, join: Join, session: Optional[Session], origin: str) -> None:
        """Raise ProtocolError("password") unless who joins, or owns that session, may come in."""
        is_marked = join.session is not None and join.session.startswith(self.MARK)
        if not self._digest or session is not None and is_marked:
            return
        if join.password is None:
            raise ProtocolError("password", "this server asks for a password")
        guesses = self._guesses(origin)
        wait = guesses.wait()
        if wait:
            raise ProtocolError("password", "too many wrong passwords came from your address: try "
                                            f"again in {math.ceil(wait)} s")
        if not hmac.compare_digest(self._digest, _hash_of(join.password)):
            guesses.change(1)
            raise ProtocolError("password", "that is not the password")


# --- The room ---

def _guarded(method: Callable[..., Any], *arguments: Any) -> None:
    """A bug in one event, or for one member, is logged, and the room goes on."""
    try:
        method(*arguments)
    except Exception as error:
        _log_bug(f"in {method.__name__}", error)


def _log_bug(where: str, error: BaseException) -> None:
    """One line for what should not happen; the traceback only with -v."""
    logger.error("bug %s: %s (please report it)", where, chatproto.bug(error))
    logger.debug("its traceback", exc_info=error)


class Shared(NamedTuple):
    """What the parts of the room have in common."""

    alarm: Alarm
    # Puts an event into the inbox: post(method, *arguments).
    post: Callable[..., None]
    settings: Settings
    journal: Journal
    members: Members
    house: House


class Part:
    """A part of the room. On the sequencer's thread alone."""

    def __init__(self, shared: Shared) -> None:
        (self.alarm, self.post, self.settings, self.journal, self.members, self.house) = shared
        # Events that the alarm will post.
        self._asked: "set[tuple[Any, ...]]" = set()

    def _later(self, when: float, event: Callable[..., None], *arguments: Any) -> None:
        """Have the alarm post an event: once, however often that is asked for meanwhile. Who comes
        and is lost a thousand times an hour is to leave no more behind with it than others."""
        def rung() -> None:
            self._asked.discard((event, arguments))
            self.post(event, *arguments)
        if (event, arguments) not in self._asked:
            self._asked.add((event, arguments))
            self.alarm.at(when, rung)


@dataclasses.dataclass
class Watch:
    """A message whose speaker wants to know who heard it."""

    id: int
    speaker: Session
    # Of a private message.
    recipient: Optional[Session]
    # How many should hear it, and when nobody asks any more.
    of: int
    until: float
    # The last count that was told, and over which connection.
    told: "tuple[Optional[Connection], int]" = (None, -1)
    # Members who heard it and left.
    left: int = 0


class Receipts(Part):
    """Tells speakers who heard them: a `heard` each RECEIPT_EVERY while there is something new."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self._watched: "deque[Watch]" = deque(maxlen=RECEIPTS)

    def watch(self, id: int, speaker: Session, recipient: Optional[Session]) -> None:
        """The speaker of the chat `id` wants to know who hears it. At most RECEIPTS are watched;
        then the oldest is dropped."""
        of = int(recipient is not speaker) if recipient else len(self.members) - 1
        if of:
            now = self.alarm.clock()
            self._watched.append(Watch(id, speaker, recipient, of, now + RECEIPT_UNTIL))
            self._later(now + RECEIPT_EVERY, self.tell)

    def leave(self, session: Session) -> None:
        """A member leaves the room: it counts with those who heard what it has acknowledged."""
        for watch in self._watched:
            if (session is not watch.speaker and watch.recipient is None
                    and session.here_since < watch.id <= session.acked):
                watch.left += 1

    def tell(self) -> None:
        """An event: write what has changed."""
        now = self.alarm.clock()
        acked = sorted(max(member.acked, member.here_since) for member in self.members)
        begun = sorted(member.here_since for member in self.members)
        keep = []
        for watch in self._watched:
            count = min(watch.of, self._heard_by(watch, acked, begun))
            link = watch.speaker.link
            # Not before the speaker has its own message: by its place it knows which one is meant.
            if (link is not None and watch.told != (link, count)
                    and watch.speaker.acked >= watch.id):
                watch.told = link, count
                link.manager.write_bare(Heard(watch.id, count, watch.of).encode())
            if watch.told[1] != watch.of and now < watch.until:
                keep.append(watch)
        self._watched = deque(keep, RECEIPTS)
        if keep:
            self._later(now + RECEIPT_EVERY, self.tell)

    @staticmethod
    def _heard_by(watch: Watch, acked: "list[int]", begun: "list[int]") -> int:
        """How many have acknowledged a message: of all who have come that far, less those who came
        only after it."""
        if watch.recipient is not None:
            return int(watch.recipient.acked >= watch.id)
        speaker = watch.speaker
        itself = speaker.present and speaker.here_since < watch.id <= speaker.acked
        return (watch.left - itself
                + bisect.bisect_left(begun, watch.id) - bisect.bisect_left(acked, watch.id))


class Delivery(Part):
    """What goes out after a batch of events: what is added to the journal is committed and
    published, readers are woken, and then frames are confirmed."""

    def __init__(self, shared: Shared, record: Callable[[str], None]) -> None:
        super().__init__(shared)
        # Takes a line for the chat log, which is not escaped yet.
        self._record = record
        self.records: "list[str]" = []
        # Lines for the log of the program: what happens, and to whom.
        self.notes: "list[tuple[str, str]]" = []
        # Connections that end, or come in, with the welcome and the place in the log for open();
        # bare frames for some, which come before their ACKs; those whose frames are to be confirmed
        # when what they did is committed; and those to be pinged.
        self.touched: "dict[Connection, Optional[tuple[bytes, int]]]" = {}
        self.bare: "list[tuple[Connection, bytes]]" = []
        self.to_confirm: "dict[Connection, None]" = {}
        self.idle: "list[Connection]" = []
        # Who came in, or back, since the last news.
        self.came: "list[Session]" = []
        # When what waits to be published may go out: joins and leaves alone wait a little.
        self._news_at = -math.inf
        # Who has frames of its own among what waits.
        self._concerned: "dict[Session, None]" = {}

    def add(self, message: Message, audience: "tuple[Session, ...]" = (),
            speaker: Optional[Session] = None) -> None:
        """Add what is not only a join or a leave: for everybody, or for a few. It is published at
        once."""
        self._news_at = -math.inf
        numbers = None
        if audience:
            numbers = frozenset(session.number for session in audience)
            self._concerned.update(dict.fromkeys(audience))
        self.journal.add(message, numbers, speaker.number if speaker else None)

    def add_for(self, message: Message, numbers: "Optional[FrozenSet[int]]") -> None:
        """The same by the numbers of sessions, of which some may have left; None is everybody."""
        self._news_at = -math.inf
        self.journal.add(message, numbers)
        self._concerned.update((session, None) for session in self.members
                               if numbers and session.number in numbers)

    def refuse(self, link: Connection, error: ProtocolError, about: Optional[int] = None) -> None:
        """Answer with an error: numbered and replayed to a member, bare to a connection that has
        not joined."""
        session, answer = link.session, Error(0, error.code, str(error), about, error.suggestion)
        if session is None or session.link is not link:
            self.bare.append((link, answer.encode()))
        else:
            self.tell_error(session, answer)

    def tell_error(self, session: Session, error: Error) -> None:
        """Add an error for one member; one about a frame of its holds the ACK of that frame."""
        error = dataclasses.replace(error, id=self.journal.next_id())
        self.add(error, (session,))
        if error.about is None:
            return
        acked = session.acked
        session.refusals = [old for old in session.refusals if old.id > acked] + [error]
        if session.link is not None:
            session.link.manager.refuse(error.about, error.id)

    def note(self, what: str, who: str) -> None:
        """Note what happens to whom, for the log of the program."""
        self.notes.append((what, who))

    def write_notes(self) -> None:
        """Also an event: what waits to be published, too, has waited long enough, and the flush()
        behind it sees to it. (Several in a row to whom the same happens are one line: a line is
        60 us, a tenth of what a join takes.)"""
        for what, notes in itertools.groupby(self.notes, lambda note: note[0]):
            logger.info("%s: %s", what, ", ".join(who for _, who in notes))
        self.notes.clear()

    def flush(self) -> None:
        """Commit, publish, wake, confirm. Where it cannot be committed nothing goes out, and the
        same is tried again with the next flush()."""
        is_time = bool(self.idle) or self.alarm.clock() >= self._news_at
        if is_time:
            self._tell_rules()
        ping = self.journal.next_id() if self.idle else 0
        if not self.journal.commit():
            return
        for line in self.records:
            self._record(line)
        self.records.clear()
        news = self._publish(is_time, ping)
        touched, self.touched = self.touched, {}
        for link, opening in touched.items():
            if opening is not None:
                _guarded(link.open, *opening, self.journal)
        if news is not None:
            self._wake(news)
        self._write_bare_frames()
        for link in touched:
            if link.ended:
                _guarded(link.finish)
        if ping:
            self._ping(ping)

    def _tell_rules(self) -> None:
        """Tell those who came what is not as a client takes it for granted: all in one frame, as
        each frame wakes everybody who is here."""
        came, self.came = self.came, []
        rules = self.house.rules
        if came and rules != Rules(0):
            self.add(dataclasses.replace(rules, id=self.journal.next_id()), tuple(came))

    def _publish(self, is_time: bool, ping: int) -> Optional[News]:
        """What was committed is news, and so is the log: at once, but joins and leaves alone at
        most every NEWS_EVERY. A ping comes behind it."""
        journal = self.journal
        if not is_time:
            if journal.last > journal.log.end or self.notes or self.came:
                self._later(self._news_at, self.write_notes)
            return None
        now = self.alarm.clock()
        self._news_at = now + NEWS_EVERY
        if self.notes:
            self.write_notes()
        return journal.log.publish(ping - 1 if ping else journal.last, now)

    def _wake(self, news: News) -> None:
        """Tell the readers. Where nothing is public only those look whom it concerns."""
        concerned, self._concerned = self._concerned, {}
        for session in self.members if news.count else concerned:
            if session.link is not None:
                try:
                    session.link.manager.wake(news)
                except Exception as error:
                    # A bug must not cost the others their frames.
                    _log_bug(f"in sending to {session.link.address}", error)

    def _write_bare_frames(self) -> None:
        """Answers first: the ACK of a `history` comes behind its answer."""
        bare, self.bare = self.bare, []
        for link, frame in bare:
            link.manager.write_bare(frame)
        to_confirm, self.to_confirm = self.to_confirm, {}
        for link in to_confirm:
            if link.session is not None:
                link.manager.confirm(link.session.got)

    def _ping(self, id: int) -> None:
        """One ping for all who are idle; it is never replayed."""
        frame = Ping(id).encode()
        idle, self.idle = self.idle, []
        for link in idle:
            link.manager.ping(id, frame)

    def catch_up(self) -> None:
        """Have all readers step over what was private to others before some of that is deleted or
        leaves the log: else who heard nothing since would count as one who missed it."""
        for session in self.members:
            if session.link is not None and session.link.manager.sent < self.journal.log.end:
                session.link.manager.catch_up()


class Entrance(Part):
    """Who comes and who goes: joins, resumes, take-overs, the grace time, ends of connections."""

    def __init__(self, shared: Shared, delivery: Delivery) -> None:
        super().__init__(shared)
        self._delivery = delivery
        self.receipts = Receipts(shared)
        # How many members are connected. Any thread may ask.
        self.connected = 0
        # Of each address the new sessions that it may have now.
        self._newcomers = allowances(NEW_SESSION_RATE, NEW_SESSIONS, shared.alarm.clock)
        self.password = Password(shared.alarm.clock)

    def restore(self, history: HistoryFile) -> None:
        """Go on where the file ends. Whoever was here is so again when it resumes: until then it
        counts for nobody, and its name is free."""
        numbers: "dict[int, Session]" = {}
        for row in history.sessions():
            session = numbers[row[0]] = Session.from_row(row)
            self.members.remember(session)
        for text in history.kept("house").values():
            self.house.from_json(text)
        for entry in history.refusals():
            error: Any = chatproto.decode(entry.frame[:-1],
                                          chatproto.INSTRUCTIONS[chatproto.FROM_SERVER])
            for number in entry.audience or ():
                numbers[number].refusals.append(error)

    # Coming in

    def join(self, link: Connection, join: Join, may_be_new: bool = False) -> None:
        """A connection wants in, or back; with `may_be_new` it has waited for its turn."""
        if link.ended:
            return
        if link.session is not None:
            raise ProtocolError("already-joined", f"you are in, as {link.session.name}")
        owned = self.members.owned(join.session) if join.session is not None else None
        # Else it claims to have seen what is not there.
        is_known = join.epoch == self.journal.epoch and join.seen <= self.journal.last
        session = owned if is_known else None
        if (session is not None and session.link is not None
                and session.link.since > link.since and link.hung_up()):
            # Threads may bring two joins in the wrong order.
            self.end(link, "it was given up for a newer one")
            return
        try:
            self.password.check(join, session, link.origin)
            if session is None or not session.present:
                self._check_entry(link, join, session, owned)
            if session is None and not may_be_new and self._has_to_wait(link, join):
                return
        except ProtocolError as error:
            self._delivery.note(
                "refused", f"{link.address} as {escape(join.name)} ({error})")
            if error.code in ("banned", "full"):
                self.end(link, error.code)
            raise
        self._admit(link, join, session)

    def join_later(self, link: Connection, join: Join) -> None:
        """An event: a newcomer has waited for its turn."""
        try:
            self.join(link, join, may_be_new=True)
        except ProtocolError as error:
            self._delivery.refuse(link, error)

    def _has_to_wait(self, link: Connection, join: Join) -> bool:
        """Whether the address has had so many new sessions that this one has to wait: it joins
        later, in its turn, or is refused where that would be too late."""
        if is_loopback(link.address):
            return False
        now = self.alarm.clock()
        allowance = self._newcomers(link.origin)
        wait = allowance.wait()
        if now + wait >= link.since + JOIN_TIMEOUT:
            raise ProtocolError(
                "full", "too many new ones come from your address: try again later")
        allowance.change(1)
        if wait:
            self._later(now + wait, self.join_later, link, join)
        return bool(wait)

    def _check_entry(self, link: Connection, join: Join, session: Optional[Session],
                     owned: Optional[Session]) -> None:
        """Raise ProtocolError if whoever is at `link` and owns a session may not come in under that
        name, as that session or as a new one."""
        self.house.check_entry(join.name, owned, link.origin)
        if session is None or join.name != session.name:
            chatproto.check_name(join.name)
        if len(self.members) >= self.settings.max_members:
            self._make_room()
        self.check_free(join.name)

    def _make_room(self) -> None:
        """The room is full: whoever has been away for the longest has had its grace time. Raises
        ProtocolError where nobody is away."""
        away = [session for session in self.members if session.link is None]
        if not away:
            raise ProtocolError("full", f"{self.settings.max_members} members are here: no room "
                                "for more")
        self.leave(min(away, key=lambda session: session.lost_at), "gone away")

    def check_free(self, name: str) -> None:
        """Raise ProtocolError("name-taken"), with a free one like it, if somebody here has that
        name."""
        host = self.house.rules.host
        # What looks like "Server" is nobody's name anyway.
        is_hosts = host != Rules(0).host and chatproto.looks_like(name, host)
        if is_hosts or self.members.called(name) is not None:
            whose = "the host's" if is_hosts else "taken"
            raise ProtocolError("name-taken", f"the name {name} is {whose}",
                                self.members.free_name_like(name))

    def _admit(self, link: Connection, join: Join, session: Optional[Session]) -> None:
        """A connection comes in: with a new session, or back into its own. Its place in the log is
        taken now; flush() opens it there."""
        journal = self.journal
        resumed = session is not None
        secret = join.session if resumed and join.session else self.password.new_secret()
        seen = join.seen if join.epoch == journal.epoch and join.seen <= journal.last else 0
        if session is None:
            session, missed = self._new_session(join, secret, seen)
            place = session.history_from
        else:
            place = max(seen, session.history_from)
            # In memory the last chats, which are before its begin, outlive the start of the log;
            # but where that is past its begin nobody could feed it what comes between.
            if journal.history is not None or max(seen, journal.forgotten) >= session.begin:
                place = max(place, journal.forgotten)
            missed = max(0, journal.forgotten - max(seen, session.begin))
            missed += journal.missing(place)
        if session.present:
            self.close(session, booted="this session has joined again from elsewhere")
            self._delivery.note("back", f"{session.name} from {link.address}")
        else:
            self._enter(session, join.name)
            self._delivery.note("joined", f"{session.name} from {link.address}")
        self._refuse_again(session, seen)
        got = session.confirmed_for(seen) if resumed else 0
        welcome = self._welcome(session, secret, resumed, got, missed)
        session.receipts = join.receipts
        session.link, link.session = link, session
        self.connected += 1
        if session.allowance is None:
            session.allowance = Allowance(self.settings.rate, self.alarm.clock)
        link.allowance = session.allowance
        session.origin = link.origin
        session.lost_at = math.inf
        self._delivery.came.append(session)
        self._delivery.touched[link] = welcome, place

    def _new_session(self, join: Join, secret: str, seen: int) -> "tuple[Session, int]":
        """A session, of whose secret only the hash is kept, and how many frames it misses. Who was
        here before a restart hears all that was said since, anybody else the last messages."""
        journal = self.journal
        # The id of its own `joined`: so nobody else ever has it.
        number = journal.last + 1
        secret_hash = _hash_of(secret)
        if join.session is not None and join.epoch != journal.epoch:
            begun = max(journal.begun, journal.forgotten)
            return Session(number, secret_hash, begun, begun), begun - journal.begun
        recent = [chat for chat in journal.public_chats(HISTORY) if chat.id > seen]
        history_from = recent[0].id - 1 if recent else journal.last
        missed = max(0, journal.last - seen - len(recent)) if seen else 0
        return Session(number, secret_hash, number, history_from), missed

    def _refuse_again(self, session: Session, seen: int) -> None:
        """What refused a frame and cannot be replayed any more is said anew: without it an ACK
        would be a false yes."""
        session.refusals = [error for error in session.refusals if error.id > seen]
        for error in [one for one in session.refusals if one.id <= self.journal.forgotten]:
            session.refusals.remove(error)
            self._delivery.tell_error(session, error)

    def _enter(self, session: Session, name: str) -> None:
        """A new session, or one that had left, comes into the room."""
        self.members.enter(session, name)
        self.journal.changed[session] = None
        # For a new one the id is the session's number, and so is always taken.
        joined = Joined(self.journal.next_id(), name, self.journal.now())
        if session in self.members.listed:
            self.journal.add(joined)
        self._delivery.records.append(f"* {name} joined")
        session.here_since = session.named_at = self.journal.last

    def _welcome(self, session: Session, secret: str, resumed: bool, got: int,
                 missed: int) -> bytes:
        listed, count = self.members.encoded()
        users = () if session in self.members.listed else (session.name,)
        here = len(self.members) if len(self.members) > count + len(users) else None
        journal = self.journal
        return Welcome(session.name, secret, journal.epoch, users, journal.last, resumed, got,
                       missed, here, self.house.motd).encode(listed)

    def leave(self, session: Session, reason: str) -> None:
        """A member goes out of the room; its session is remembered for what it may send again."""
        journal = self.journal
        self.receipts.leave(session)
        was_listed, at = session in self.members.listed, journal.now()
        successor, forgotten = self.members.leave(session, at)
        # What it uploaded and did not hand out.
        journal.files.drop(lambda file: file.owner == session.secret_hash and not file.message)
        journal.changed[session] = None
        journal.removed += [old.number for old in forgotten]
        left = Left(journal.next_id(), session.name, at, reason)
        self._delivery.records.append(_left_line(left))
        if was_listed:
            journal.add(left)
        if successor is not None:
            journal.add(Joined(journal.next_id(), successor.name, journal.now()))

    def close(self, session: Session, booted: Optional[str] = None) -> None:
        """End a session's connection, where it has one: after what came before, and when it is
        `booted` with the reason of that, which is not in the log."""
        link = session.link
        if link is None:
            return
        last_words = b"" if booted is None else Booted(self.journal.next_id(), booted).encode()
        link.end(self.journal.last, last_words)
        self._delivery.touched.setdefault(link, None)
        session.unlink()
        self.connected -= 1
        # How far it came.
        self.journal.changed[session] = None

    def end(self, link: Connection, why: str) -> None:
        """A connection is over. Its member, if it has one, gets the grace time to come back."""
        if link.ended:
            return
        session = link.session
        if session is None:
            link.end(NOWHERE)
            self._delivery.touched[link] = None
            return
        self.close(session)
        self._delivery.note("lost", f"{session.name} ({why})")
        session.lost_at = self.alarm.clock()
        self._later(session.lost_at + self.settings.grace, self.grace_over, session)

    def turn_away(self, link: Connection, what: str, error: ProtocolError) -> None:
        """Say why, and end the connection. A member is told when it comes back, in its place in the
        order."""
        if not link.ended:
            who = link.session.name if link.session else link.address
            self._delivery.note(what, f"{who} ({error}), connection closed")
            self._delivery.refuse(link, error)
            self.end(link, what)

    def too_slow(self, link: Connection) -> None:
        """A slow reader does not keep up."""
        self.turn_away(link, "too slow", ProtocolError(
            "too-slow", "you did not keep up and were disconnected"))

    def grace_over(self, session: Session) -> None:
        """A member may have had its time to come back, since it was lost for the last time."""
        if session.present and session.link is None:
            # Nobody could come back while nothing could be kept.
            lost_at = max(session.lost_at, self.journal.disk.recovered_at)
            if self.alarm.clock() < lost_at + self.settings.grace:
                self._later(lost_at + self.settings.grace, self.grace_over, session)
            else:
                self.leave(session, "gone away")


class Handouts(Part):
    """Which files there are, and who may upload one.

    What there is of them has chat_web's FileStore, in `journal.files`.
    """

    def open(self, store: Any, history: Optional[HistoryFile]) -> None:
        """Before the sequencer runs: from now on members may upload files, and those that messages
        of the history handed out are there again."""
        kept = None if history is None else {
            key[5:]: text for key, text in history.kept("file:*").items()}
        store.load(kept, self.journal.forgotten)
        self.journal.files = store
        self.house.rules = dataclasses.replace(
            self.house.rules, files=store.most if self.house.takes_files else None)
        self._later(self.alarm.clock() + max(self.settings.grace, FORGET_FILES), self.sweep)

    def take(self, session: Session, url: str) -> "dict[str, Any]":
        """The file that the next message hands out. Raises ProtocolError."""
        self._check(session)
        return dict(self.journal.files.say(session.secret_hash, url, self.journal.last + 1,
                                            session.name))

    def _check(self, session: Session) -> None:
        if self.house.rules.files is None:
            raise ProtocolError("bad-file", "the host has switched files off")
        self.house.check_voice(session)

    # Events

    def start(self, secret: str, name: str) -> Any:
        """A session begins to upload a file. Raises ProtocolError."""
        session = self.members.owned(secret)
        if session is None or not session.present or session.allowance is None:
            raise ProtocolError("not-joined", "only who is in the room hands out files")
        self._check(session)
        if session.allowance.take():
            raise ProtocolError("flooding", "too many at once: a little later")
        return self.journal.files.start(session.secret_hash, name)

    def give_up(self, file: Any) -> None:
        """Nothing comes of it."""
        self.journal.files.drop(lambda other: other is file and not file.message)

    def sweep(self) -> None:
        """Some time after a restart: forget what those uploaded and did not hand out who have not
        come back."""
        present = {session.secret_hash for session in self.members}
        self.journal.files.drop(lambda file: not file.message and file.owner not in present)


class Host(Part):
    """What the host does: with the same words at the console, on its page and from code. Runs on
    the sequencer's thread alone (use ChatServer.ask).

    Whoever is meant is a person: a name leads to the session that has it, or had it last. Methods
    that change something return what to tell the host. They raise LookupError for what is not
    there, ValueError for what makes no sense, ProtocolError for a text or a name that is none,
    HistoryError.
    """

    def __init__(self, shared: Shared, delivery: Delivery, entrance: Entrance) -> None:
        super().__init__(shared)
        self._delivery = delivery
        self._entrance = entrance

    def begin(self, motd: Optional[str], name: Optional[str]) -> None:
        """Before the sequencer runs: the message of the day's file, unless the history file has one
        that the host set, and the host's name, None for the one that it had."""
        if not self.house.is_motd_set:
            self.house.motd = motd
        if name is not None:
            self.house.rules = dataclasses.replace(self.house.rules, host=_host_name(name))

    # What is known

    def people(self) -> "list[tuple[str, str, Optional[float], bool]]":
        """Name and address of each member, the seconds it is connected (None in the grace time),
        and whether it is muted."""
        now = self.alarm.clock()
        return [(session.name, session.link.address if session.link else "",
                 now - session.link.since if session.link else None,
                 self.house.mute_of(session) is not None) for session in self.members]

    def held(self) -> "list[tuple[Hold, float]]":
        """Who is kept out or silent, and for how many seconds more (inf: for good)."""
        return [(hold, self.house.holds.left(hold)) for hold in self.house.holds]

    def talk(self, count: int) -> "list[bytes]":
        """The frames of the last public messages, oldest first. What was private is never shown
        here."""
        return [chat.frame for chat in self.journal.public_chats(count)]

    # What is said, and what holds

    def say(self, text: str) -> None:
        """Say something to all, under the host's name."""
        chatproto.check_text(text)
        name = self.house.rules.host
        self._delivery.add(Chat(self.journal.next_id(), name, text, self.journal.now()))
        self._delivery.records.append(f"<{name}> {text}")

    def pin(self, text: Optional[str], is_set: bool = True) -> str:
        """Change the message of the day, None for none; without `is_set` it is its file's again."""
        changes = text != self.house.motd
        self.house.motd = None if text is None else chatproto.check_text(text)
        self.house.is_motd_set = is_set
        if changes:
            self._delivery.add(Motd(self.journal.next_id(), text))
        self._keep()
        return "it is pinned" if text else "nothing is pinned"

    def lock(self, password: str) -> str:
        """Who has not been here before has to know this password. Raises ProtocolError."""
        self._entrance.password.change(password)
        return "newcomers need that password from now on"

    def only_host(self) -> str:
        """Nobody but the host may speak."""
        if self._change(speak="host"):
            self.say("Now only the host speaks.")
        return "only the host speaks now; /everyone ends it"

    def everyone(self) -> str:
        """Everybody may speak again."""
        if self._change(speak="all"):
            self.say("Everybody may speak again.")
        return "everybody may speak"

    def private(self, is_on: bool) -> str:
        """Allow private messages, or not."""
        self._change(private=is_on)
        return f"private messages are {'on' if is_on else 'off'}"

    def slow(self, seconds: float) -> str:
        """Let everybody speak once in so many seconds; 0 is as often as they like."""
        if not 0 <= seconds <= SLOWEST:
            raise ValueError(f"0 to {SLOWEST:g} seconds, 0 is off")
        self._change(slow=seconds)
        return f"one message in {seconds:g} s for each" if seconds else "nobody is slowed"

    def files(self, is_on: bool) -> str:
        """Let members upload files, or not; what was handed out stays."""
        if self.journal.files.most is None:
            raise ValueError("there are no files here")
        self.house.takes_files = is_on
        self._change(files=self.journal.files.most if is_on else None)
        return f"files are {'on' if is_on else 'off'}"

    def call(self, name: str) -> str:
        """Speak under another name from now on."""
        name = _host_name(name)
        taken = [member.name for member in self.members if chatproto.looks_like(member.name, name)]
        if taken:
            raise ValueError(f"{taken[0]} is here, and has that name or one like it")
        self._change(host=name)
        return f"you speak as {name}"

    def _change(self, **changes: Any) -> bool:
        """Change rules and tell everybody; return whether anything is different."""
        rules = dataclasses.replace(self.house.rules, **changes)
        if rules == self.house.rules:
            return False
        self.house.rules = rules
        self._delivery.add(dataclasses.replace(rules, id=self.journal.next_id()))
        self._keep()
        return True

    def _keep(self) -> None:
        """What holds now is kept with the next commit."""
        self.journal.kept["house"] = self.house.to_json()

    # Who is kept out or silent

    def mute(self, name: str, seconds: float = math.inf) -> str:
        """Let somebody hear everything and say nothing."""
        return self._hold("mute", name, seconds, "", "is muted")

    def unmute(self, name: str) -> str:
        """Let somebody speak again."""
        return self._lift(("mute",), name, "muted", "may speak again")

    def boot(self, name: str, reason: str = "", seconds: float = BOOT_SECONDS) -> str:
        """Put somebody out, and keep it out for a while."""
        return self._hold("boot", name, seconds, reason, "is out")

    def ban(self, name: str, seconds: float = math.inf, reason: str = "") -> str:
        """The same for good, or for a time; for an address, too."""
        return self._hold("ban", name, seconds, reason, "is banned")

    def unban(self, name: str) -> str:
        """Let somebody in again who was booted or banned, by name or address."""
        return self._lift(("ban", "boot"), name, "banned", "may come back")

    def _known(self, name: str) -> Session:
        session = self.members.known(name) if name else None
        if session is None:
            raise LookupError(f"nobody is or was called {escape(name)}")
        return session

    def _hold(self, kind: str, name: str, seconds: float, reason: str, how: str) -> str:
        """Keep somebody out or silent, or with a ban an address; return what to tell the host."""
        reason = chatproto.clean_text(reason)[:REASON]
        words = ""
        if kind == "ban" and chatproto.is_address(name):
            held, keys = self._at(name), [name]
        else:
            known = self._known(name)
            held, name, address = [known], known.name, self._own_address(known)
            keys = _keys_of(name, known, address)
            if not address:
                words = "; others may share its address, so only this name and session are held"
        until = None if seconds == math.inf else self.journal.now() + seconds
        hold = Hold(kind, name, tuple(keys), until, reason)
        self.house.holds.add(hold)
        self._keep()
        for session in held:
            if session.present and kind != "mute":
                self._send_off(session, reason or ("banned" if kind == "ban" else ""))
        return f"{escape(name)} {how}{self.house.holds.until(hold)}{words}"

    def _send_off(self, session: Session, reason: str) -> None:
        why = f" ({escape(reason)})" if reason else ""
        self._delivery.note("booted", session.name + why)
        self._entrance.close(session, booted=reason)
        self._entrance.leave(session, f"booted: {reason}" if reason else "booted")

    def _at(self, address: str) -> "list[Session]":
        """Who is here from an address."""
        return [member for member in self.members if member.origin == address]

    def _own_address(self, session: Session) -> str:
        """The address that is this person's alone; "" for this machine's, and for one that somebody
        else here has."""
        address = session.origin
        is_shared = is_loopback(address) or any(
            other is not session for other in self._at(address))
        return "" if is_shared else address

    def _lift(self, kinds: "tuple[str, ...]", name: str, what: str, now: str) -> str:
        session = self.members.known(name)
        keys = _keys_of(name, session, session.origin if session else "")
        if not self.house.holds.lift(kinds, keys):
            raise LookupError(f"{escape(name)} is not {what}")
        self._keep()
        return f"{escape(name)} {now}"

    # What is taken back

    def remove(self, id: int) -> str:
        """Take a message back, public or private. Its text is nowhere any more but where it was
        shown, and in the chat log."""
        chat = self.journal.chat(id)
        if chat is None and self.journal.files.drop(lambda file: file.message == id):
            return f"the file of message {id}, which is kept no more, is removed"
        if chat is None:
            raise LookupError(f"there is no message {id}")
        if _REMOVED_FIELD in chat.frame:
            raise LookupError(f"message {id} is removed already")
        self._remove([id])
        return f"message {id} is removed"

    def remove_last(self, name: str) -> str:
        """Take back what somebody said last."""
        self._remove_said(name, 1)
        return f"the last message of {escape(name)} is removed"

    def remove_all(self, name: str) -> str:
        """Take back all that somebody said, at most REMOVE_MOST messages at once."""
        count = self._remove_said(name, REMOVE_MOST)
        more = "; once more for those before them" if count == REMOVE_MOST else ""
        what = f"{count} messages" if count > 1 else "1 message"
        return f"{what} of {escape(name)} {'are' if count > 1 else 'is'} removed{more}"

    def _remove_said(self, name: str, most: int) -> int:
        """Take back what somebody said last; return how many messages these are."""
        number = (None if name_key(name) == name_key(self.house.rules.host)
                  else self._known(name).number)
        ids = self.journal.said_by(number, most)
        if not ids:
            raise LookupError(f"there is no message of {escape(name)}")
        self._remove(ids)
        return len(ids)

    def _remove(self, ids: "list[int]") -> None:
        gone = set(ids)
        self.journal.files.drop(lambda file: file.message in gone)
        # One that is damaged nobody gets.
        chats = [chat for chat in map(self.journal.chat, sorted(ids)) if chat is not None]
        self.journal.erase(chats)
        for chat in chats:
            self._delivery.add_for(Removed(self.journal.next_id(), chat.id), chat.audience)
            if chat.audience is None:
                sender = json.loads(chat.frame)["from"]
                self._delivery.records.append(f"* the host removed a message of {sender}")


def _host_name(name: str) -> str:
    """Return a name if the host may speak under it; else raise ProtocolError."""
    return name if name == Rules(0).host else chatproto.check_name(name)


class Room(Part):
    """Turns events into entries of the journal, and tells connections what to do. Runs on the
    sequencer's thread alone.

    Each event's method decides at once and writes nothing; flush(), after a batch of events, has
    all of it delivered.
    """

    def __init__(self, alarm: Alarm, post: Callable[..., None], settings: Settings = DEFAULT,
                 wall_clock: Callable[[], float] = time.time,
                 record: Callable[[str], None] = lambda line: None,
                 history: Optional[HistoryFile] = None) -> None:
        journal = Journal(alarm.clock, wall_clock, history)
        shared = Shared(alarm, post, settings, journal, Members(), House(wall_clock))
        super().__init__(shared)
        self._delivery = Delivery(shared, record)
        self.entrance = Entrance(shared, self._delivery)
        self.handouts = Handouts(shared)
        self.host = Host(shared, self._delivery, self.entrance)
        # For all connections.
        self.waiting = Waiting()
        # Somebody has searched since the last flush().
        self._has_searched = False
        if history is not None:
            self.entrance.restore(history)
            self._later(alarm.clock() + TRIM_EVERY, self.trim)

    # Events from connections

    def frames(self, link: Connection, batch: "list[Message]") -> None:
        """Frames from a member or from a connection that has not joined, in their order."""
        for message in batch:
            if link.ended:
                return
            try:
                self._frame(link, message)
            except ProtocolError as error:
                self._delivery.refuse(link, error, message.id or None)
            except Exception as error:
                # A bug may cost this frame, not the others, and no ACK may hide it.
                # Of what it says nothing is logged: it may be private, or a credential.
                _log_bug(f"in a {message.type or 'frame'} from {link.address}", error)
                self._delivery.refuse(link, ProtocolError(
                    "bad-frame", "the server cannot take this"), message.id or None)

    def overdue(self, link: Connection) -> None:
        """A connection has had its time to join."""
        if link.session is None:
            self.entrance.turn_away(link, "not joined", ProtocolError(
                "not-joined", f"join within {JOIN_TIMEOUT:g} s"))

    def slowed(self, link: Connection) -> None:
        """A member is over the flood limit: its frames wait, none is lost."""
        limit = f"{self.settings.rate:g} messages a second"
        self._delivery.note("slowed down", f"{link.address}, over {limit}")
        self._delivery.refuse(link, ProtocolError(
            "flooding", f"more than {limit}: yours are slowed down, none is lost"))

    def dead(self, link: Connection) -> None:
        """A member has acknowledged nothing for all its retries."""
        self.entrance.end(link, "no answer")
        link.cut()

    def idle(self, link: Connection) -> None:
        """Nothing was sent to a member for PING_AFTER."""
        if link.session is not None and not link.ended:
            self._delivery.idle.append(link)

    def feed(self, link: Connection, retry: bool) -> None:
        """A member reads below the start of the log, or before its begin, and has room for more;
        with `retry` it has not acknowledged what it was fed."""
        session = link.session
        if session is None or link.ended or not (retry or link.manager.is_behind):
            return
        manager = link.manager
        piece = self.journal.piece(session, manager.acked if retry else manager.sent)
        if piece is None and self.journal.history is not None:
            # --keep overtook it, or the file cannot be read: it comes back, and is told what is
            # missing.
            self.entrance.end(link, "what it missed is there no more")
        elif piece is None:
            self.entrance.too_slow(link)
        elif retry:
            if piece[0]:
                manager.resend(piece[0][0])
        else:
            manager.feed(*piece)
            if manager.is_behind:
                self.post(self.feed, link, False)

    # Events from the alarm

    def trim(self) -> None:
        """Delete a few of the oldest entries, as --keep and --keep-messages ask; and again
        later."""
        self._delivery.catch_up()
        now = self.alarm.clock()
        later = TRIM_EVERY if self.journal.delete_old(now) else TRIM_LATER
        self._later(now + later, self.trim)

    # After a batch of events

    def flush(self) -> None:
        """Commit what the events of a batch decided, and deliver it.

        Where it cannot be committed nothing of it goes out, and `is_held` is true: no event may be
        run before a flush() works.
        """
        self._has_searched = False
        if self.journal.is_too_long:
            # Then who reads below the start of the log asks to be fed.
            self._delivery.catch_up()
            self.journal.shorten()
        self._delivery.flush()

    @property
    def batch_is_large(self) -> bool:
        """Whether to flush before the next event."""
        return self.journal.added > BATCH_BYTES

    @property
    def is_held(self) -> bool:
        """Whether everything waits for the history file. Any thread may ask."""
        return self.journal.disk.failure is not None

    def close(self) -> None:
        """Write the rest of the log, and give the history file back. Not on the sequencer's thread,
        but after it."""
        self._delivery.write_notes()
        self.journal.close()

    # Frames of members

    def _frame(self, link: Connection, message: Message) -> None:
        """Raises ProtocolError for what is refused."""
        session = link.session
        if isinstance(message, Join):
            self.entrance.join(link, message)
        elif isinstance(message, Invalid) and message.kind == Join.type:
            raise message.error
        elif session is None:
            raise ProtocolError("not-joined", "join first")
        elif len(session.refusals) >= REFUSALS and session.refusals[0].id > session.acked:
            self.entrance.too_slow(link)
        elif message.id:
            self._delivery.to_confirm[link] = None
            # Else it is a duplicate: it was sent again, as its ACK was lost or is still held.
            if message.id > session.got:
                session.got = message.id
                self.journal.changed[session] = None
                self._ACTIONS[type(message)](self, link, session, message)

    def _acknowledged(self, link: Connection, session: Session, message: Message) -> None:
        """It asks for nothing but its ACK."""

    def _invalid(self, link: Connection, session: Session, invalid: Invalid) -> None:
        raise invalid.error

    def _leave(self, link: Connection, session: Session, leave: Leave) -> None:
        self._delivery.note("left", session.name)
        self.entrance.close(session)
        self.entrance.leave(session, "quit")

    def _recall(self, link: Connection, session: Session, recall: Recall) -> None:
        """Answer with older messages. Of searches only one step is made in a batch, so that many
        who search slow down one another and nobody else: the others are told to ask again."""
        frames: "list[bytes]" = []
        older: Optional[int] = recall.before or self.journal.last + 1
        if recall.find is None or not self._has_searched:
            self._has_searched = self._has_searched or recall.find is not None
            frames, older = self.journal.older(session, recall)
        answer = Recalled.encode_frames(recall.id, frames, older, recall.find)
        self._delivery.bare.append((link, answer))

    def _chat(self, link: Connection, session: Session, say: Say) -> None:
        """Raises ProtocolError for what may not be said."""
        journal, now = self.journal, self.alarm.clock()
        self.house.check_say(session, say, now)
        recipient = self._recipient(say.to, say.seen) if say.to is not None else None
        file = self.handouts.take(session, say.file["url"]) if say.file is not None else None
        session.said_at = now
        to = recipient.name if recipient else None
        chat = Chat(journal.next_id(), session.name, say.text, journal.now(), say.id, to, file)
        if recipient is None:
            self._delivery.add(chat, speaker=session)
            self._delivery.records.append(f"<{session.name}> {say.text}")
        else:
            both = (session,) if recipient is session else (session, recipient)
            self._delivery.add(chat, both, speaker=session)
        if session.receipts:
            self.entrance.receipts.watch(chat.id, session, recipient)

    def _recipient(self, to: str, seen: Optional[int]) -> Session:
        """Whom a private message is for. Raises ProtocolError when there is none of that name, or
        one who took it only after the message was typed."""
        recipient, name = self.members.called(to), to[:chatproto.MAX_NAME]
        if recipient is None:
            raise ProtocolError("no-such-user", f"nobody here is called {name}")
        if seen is not None and recipient.named_at > seen:
            raise ProtocolError("no-such-user", f"{name} may be another one than you meant: the "
                                "name was taken only now")
        return recipient

    def _rename(self, link: Connection, session: Session, rename: Rename) -> None:
        """Raises ProtocolError for a name that it cannot have."""
        old, new = session.name, rename.name
        if new == old:
            return
        self.house.check_entry(new, None, "")
        # "Ann" may become "ann".
        if name_key(new) != name_key(old):
            self.entrance.check_free(new)
        self.members.rename(session, new)
        session.named_at = self.journal.next_id()
        renamed = Renamed(session.named_at, old, new, self.journal.now())
        self._delivery.add(renamed, () if session in self.members.listed else (session,))
        self._delivery.records.append(f"* {old} is now {new}")
        self._delivery.note("renamed", f"{old} to {new}")

    # What is done with the numbered frames of a member.
    _ACTIONS: "dict[type[Message], Callable[..., None]]" = {
        Say: _chat, Rename: _rename, Leave: _leave, Recall: _recall, Invalid: _invalid,
        Ping: _acknowledged, Unknown: _acknowledged}


# --- Connections ---

# Picked, so that several servers do not share it. None without a global interpreter lock, where all
# cores are of use, and where Python cannot choose (PyPy).
_CORE: Optional[int] = None
if (sys.platform == "linux" and hasattr(os, "sched_setaffinity")
        and getattr(sys, "_is_gil_enabled", lambda: True)()):
    _CORE = secrets.choice(sorted(os.sched_getaffinity(0)))


def share_core(give_way: bool = False) -> None:
    """Keep the calling thread on the core of those that need the interpreter most, where the system
    can (Linux).

    Only one of them runs at a time, and to hand the interpreter to another core takes longer than
    that core would save: 1.2 times the deliveries, 1.7 times when each is acknowledged at once.
    With `give_way` a thread that an ACK wakes waits for the end of the sequencer's turn instead of
    interrupting it: another 1.05 to 1.5 times, and a third off the slowest.
    """
    if sys.platform == "linux" and _CORE is not None:
        # Where that is forbidden it works as well, only slower.
        with contextlib.suppress(OSError):
            # 0 is the calling thread.
            os.sched_setaffinity(0, {_CORE})
            if give_way:
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def cost_of(line: bytes) -> float:
    """What a line costs of a flood limit, in frames: one, and more for a long one."""
    return 1 + len(line) / COST_BYTES


class Allowance:
    """The flood limit of one session: a burst of five seconds' worth, then `rate` frames a second.
    What costs more than is left is let through while anything is left, and owed."""

    __slots__ = ("_rate", "_clock", "burst", "_left", "_at")

    def __init__(self, rate: float, clock: Callable[[], float], burst: float = 0.0,
                 left: float = math.inf) -> None:
        self._rate = rate
        self._clock = clock
        # Room for a join or two at the lowest rates.
        self.burst = burst or max(JOIN_BURST, 5 * rate)
        # What may go now, and when that was so.
        self._left = min(self.burst, left)
        self._at = clock()

    def take(self, cost: float = 1.0) -> float:
        """Use up a cost and return 0, or return the seconds until that may be."""
        wait = self.wait()
        if not wait:
            self._left -= cost
        return wait

    def wait(self) -> float:
        """The seconds until anything is left."""
        if not self._rate:
            return 0.0
        now = self._clock()
        self._left = min(self.burst, self._left + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (1 - self._left) / self._rate)

    def change(self, cost: float) -> None:
        """It cost more, or less, than was taken."""
        self._left -= cost


def allowances(rate: float, burst: float,
               clock: Callable[[], float]) -> "Callable[[str], Allowance]":
    """What gives the Allowance of an address. Of many the one that was asked for longest ago is
    forgotten: it is full again, most likely."""
    return functools.lru_cache(ADDRESSES)(lambda origin: Allowance(rate, clock, burst))


class Waiting:
    """How many bytes came from all peers together and wait. Any thread."""

    def __init__(self) -> None:
        # Protects the number; a leaf.
        self._lock = threading.Lock()
        self._bytes = 0

    def change(self, more: int) -> bool:
        """So many more wait, or less; return whether that is within WAITING_BYTES."""
        with self._lock:
            self._bytes += more
            return self._bytes <= WAITING_BYTES


class Connection:
    """One connection, from its bytes to the inbox. `wire` is its MessageSocket, or chat_web's
    WebSocket, which has the same methods and a `wrap` besides; tests give it something like one.
    `came` is when it came, by the alarm's clock; else it comes now. Soon it must have joined.

    run() is its thread; the room uses `address`, `since`, `manager`, `session`, `ended` and the
    methods below `release`. What a peer sends is charged to its flood limit before it is
    decoded, so that nobody holds the interpreter with what is thrown away.
    """

    __slots__ = ("address", "origin", "since", "session", "allowance", "manager",
                 "_wire", "_room", "_decoder", "_held", "_slowed_at",
                 "_has_asked", "_failure", "_last_words", "_uncut", "_waiting",
                 "__weakref__")

    def __init__(self, wire: Any, address: str, room: Room, came: Optional[float] = None,
                 origin: str = "") -> None:
        alarm = room.alarm
        # Where it comes from, and what that counts for: see _origin().
        self.address = address
        self.origin = origin or address
        self.since = alarm.clock() if came is None else came
        # The sequencer sets these: the session, once; and when nothing more is taken from here, up
        # to which place it hears the log, and then what else.
        self.session: Optional[Session] = None
        self._last_words: "Optional[tuple[int, bytes]]" = None
        # The session's, once there is one.
        self.allowance = Allowance(room.settings.rate, alarm.clock, left=JOIN_BURST)
        self._wire = wire
        self._room = room
        # None: what comes is thrown away, it is no frames any more.
        self._decoder: Optional[FrameDecoder] = FrameDecoder(FROM_CLIENT)
        # Lines that wait for the flood limit; bounded by HELD, HELD_BYTES and one read.
        self._held: "list[bytes]" = []
        # Bytes that wait here, as the room's Waiting was told.
        self._waiting = 0
        # When it was told that it is slowed down.
        self._slowed_at = -math.inf
        # Its join waits in the inbox until the room is no longer held.
        self._has_asked = False
        # Why what came is no frame, until the room was told.
        self._failure: Optional[ProtocolError] = None
        # Held until cut(), which so ends a wait of the flood limit. (An Event would take 1 KB.)
        self._uncut = threading.Lock()
        self._uncut.acquire()
        self.manager = MessageManager(alarm, room.journal.log, self, wire.write,
                                      getattr(wire, "wrap", None))
        alarm.at(self.since + JOIN_TIMEOUT, chatproto.weakly(self._join_timeout))

    def run(self) -> None:
        """Read until the connection ends."""
        share_core(give_way=True)
        why = "a bug"
        try:
            while True:
                self._hear(self._next_bytes())
        except ConnectionClosed as end:
            why = str(end)
        finally:
            # After a bug, too: else its member would stay for ever.
            self._room.post(self._room.entrance.end, self, why)
            self.manager.close()
            # Some who are over are kept for a while.
            self._decoder = None
            self._held.clear()
            self._room.waiting.change(-self._waiting)
            self._wire.close()

    def _next_bytes(self) -> bytes:
        """What is to be taken next, when there is room for it: b"" to look again. Raises
        ConnectionClosed."""
        wait = self.release() if self._held or self._failure else None
        owed = 0.0
        if self._wire.overhead:
            # What a WebSocket had to do besides messages is charged as well.
            self.allowance.take(self._wire.overhead)
            owed, self._wire.overhead = self.allowance.wait(), 0
        if self.is_full or owed or self._waits_too_much():
            self.manager.excuse()
            if self._uncut.acquire(timeout=min(owed or wait or 1.0, 1.0)):
                raise ConnectionClosed("cut")
            return b""
        if self.has_more:
            return b""
        data: bytes = self._wire.read(wait)
        return data

    def _waits_too_much(self) -> bool:
        """Whether so much waits from all peers that this one is not read. Raises ConnectionClosed
        where only its reading could change that."""
        begun = (self._decoder.begun if self._decoder is not None else 0) + self._wire.begun
        waiting = begun + sum(map(len, self._held))
        if waiting == self._waiting:
            return False
        fits = self._room.waiting.change(waiting - self._waiting)
        self._waiting = waiting
        if not fits and not self._held and begun > WAITING_LINE:
            raise ConnectionClosed("too much waits from all together")
        return not fits and bool(self._held)

    @property
    def has_more(self) -> bool:
        """Whether received(b"") may take some more of what was read."""
        return self._decoder is not None and self._decoder.has_more

    @property
    def is_full(self) -> bool:
        """Whether nothing more is read until the flood limit has let something go. Who has not
        joined has nothing to say before that."""
        held = self._held
        return bool(held) and (len(held) >= HELD or self.session is None
                               or sum(map(len, held)) >= HELD_BYTES)

    def _hear(self, data: bytes) -> None:
        """Take what was read, and where nothing else waits, as long as that is ACKs what comes
        next. (Not in run(), which would keep the bytes while it waits for more: 25 KB a connection
        with half a line.)"""
        if not (self._held or self._waiting or self.session is None or self._decoder is None
                or self._decoder.begun):
            while self._took_ack(data):
                data = self._wire.read()
        self.received(data)

    def _took_ack(self, data: bytes) -> bool:
        """Take what is one ACK and nothing else, which is most of what comes, and news. Whatever
        is less simple is left to received(), with all its limits."""
        ack = LONE_ACK.fullmatch(data)
        if ack is None or self._wire.overhead or self._wire.begun:
            return False
        id = int(ack[1])
        return id <= self.manager.sent and self.manager.take_ack(id)

    def received(self, data: bytes) -> None:
        """Take bytes of the member: ACKs at once, the other lines wait for the flood limit."""
        if self._decoder is None:
            return
        try:
            for line in self._decoder.lines(data, HELD):
                ack = LONE_ACK.fullmatch(line + b"\n")
                # An ACK that is no news waits like any other line: the flood limit is for it, too.
                if (ack is None or self.session is None
                        or not self.manager.take_ack(int(ack[1]))):
                    self._held.append(line)
            self._decoder.check()
        except FrameError as error:
            self._decoder, self._failure = None, error

    def release(self) -> Optional[float]:
        """Decode and hand over what the flood limit admits; return the seconds until the next, None
        when nothing is held."""
        wait, batch = None, []
        if self._room.is_held and self._held:
            # The disk is full, nothing can be kept: what was sent waits here, then in the socket. A
            # join waits in the inbox, so that of two connections the later one takes over.
            if self.session is not None or self._has_asked:
                return HOLD_PAUSE
            self._has_asked = True
        while self._held and wait is None:
            wait = self.allowance.take(cost_of(self._held[0])) or None
            if wait is None:
                batch += self._decode(self._held.pop(0))
        if batch:
            self._room.post(self._room.frames, self, batch)
        now = self._room.alarm.clock()
        if wait and now - self._slowed_at >= SAY_AGAIN:
            self._slowed_at = now
            self._room.post(self._room.slowed, self)
        if self._failure is not None and not self._held:
            self._room.post(self._room.entrance.turn_away, self, "no frame", self._failure)
            self._failure = None
        return wait

    def _decode(self, line: bytes) -> "list[Message]":
        """The message in a line; none when it was an ACK, or no frame."""
        try:
            message = chatproto.decode(line, chatproto.INSTRUCTIONS[FROM_CLIENT])
            if isinstance(message, Recall):
                # What it makes the room do; this may be owed.
                self.allowance.change(RECALL_COST)
            if isinstance(message, Ack) and self.session is not None:
                if self.manager.take_ack(message.upto):
                    # So that listeners in a fast room are not slowed.
                    self.allowance.change(-cost_of(line))
                return []
            return [message]
        except FrameError as error:
            self._decoder, self._failure = None, error
            self._held.clear()
            return []

    # For the room, on the sequencer's thread

    @property
    def ended(self) -> bool:
        """Whether nothing more is taken from here."""
        return self._last_words is not None

    def open(self, welcome: bytes, place: int, journal: Journal) -> None:
        """Let a member in that has just joined: behind its welcome it reads the log from a place.
        The first piece of what it is fed comes at once, so that an error behind its join finds its
        place."""
        session = self.session
        assert session is not None
        refused = [(error.about or 0, error.id) for error in session.refusals]
        self.manager.write_bare(welcome)
        self.manager.open(place, reader=session.number, begin=session.begin, seen=session.got,
                          refused=refused)
        piece = journal.piece(session, place) if self.manager.is_behind else None
        if piece is not None:
            self.manager.feed(*piece)

    def end(self, place: int, last_words: bytes = b"") -> None:
        """Nothing more is taken from here. It hears the log up to a place, then `last_words`: with
        finish()."""
        self._last_words = (place, last_words)

    def finish(self) -> None:
        """End our half, so that the last words arrive, and cut the connection a little later."""
        self.manager.close(*(self._last_words or ()))
        self._wire.finish()
        # Its thread keeps it until it is over.
        self._room.alarm.at(self._room.alarm.clock() + LAST_WORDS, chatproto.weakly(self.cut))

    def hung_up(self) -> bool:
        """True when the member has given the connection up already."""
        return bool(self._wire.hung_up())

    def cut(self) -> None:
        """End the connection now: its thread wakes and ends."""
        with contextlib.suppress(RuntimeError):
            # It was cut before.
            self._uncut.release()
        self._wire.cut()

    # For its MessageManager: chatproto.Peer

    def dead(self) -> None:
        """It acknowledges nothing any more."""
        self._room.post(self._room.dead, self)

    def idle(self) -> None:
        """It is time for a ping."""
        self._room.post(self._room.idle, self)

    def behind(self, retry: bool) -> None:
        """It reads what is not in the log."""
        self._room.post(self._room.feed, self, retry)

    def _join_timeout(self) -> None:
        """On the alarm's thread."""
        if self.session is None and self._room.is_held:
            # Its join may wait.
            self._room.alarm.at(self._room.alarm.clock() + JOIN_TIMEOUT,
                           chatproto.weakly(self._join_timeout))
        elif self.session is None:
            self._room.post(self._room.overdue, self)


# --- TLS ---

class TlsError(ValueError):
    """Nothing can be encrypted: the text says why, and what to do."""


class Identity(NamedTuple):
    """What this server shows under TLS to prove that it is itself."""

    context: ssl.SSLContext
    # By which others know it: chatproto.trust_key().
    key: str

    @classmethod
    def load(cls, cert: str, key: Optional[str] = None) -> Identity:
        """From files in PEM: of the certificate, with those that lead to its authority behind it,
        and of its key (None: in the same file). Raises TlsError."""
        try:
            with open(cert, encoding="ascii", errors="replace") as file:
                # Of several in a file the first is the server's own.
                own = _from_pem("CERTIFICATE", file.read())
            since, until = certificate_times(own)
            if not since <= time.time() < until:
                logger.warning("%s does not hold now, or this machine's clock is wrong: clients "
                               "that know its key take it, others and browsers do not", cert)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
            # None of ours resumes a session of TLS: tickets would be written for nothing. (Those of
            # TLS 1.2 go on; who resumes with one has it faster, and is let in as anybody.)
            context.num_tickets = 0
            # A question for a key's password would come on nobody's terminal.
            context.load_cert_chain(cert, key, password=lambda: b"")
            return cls(context, chatproto.trust_key(own))
        except ssl.SSLError as error:
            raise TlsError(f"{cert}: {_why_no_identity(error, cert, key)}") from error
        except OSError as error:
            raise TlsError(_why_no_file(error)) from error
        except ValueError as error:
            raise TlsError(f"{cert} has no certificate in it (PEM is wanted)") from error


def _why_no_identity(error: ssl.SSLError, cert: str, key: Optional[str]) -> str:
    """What is wrong with a certificate and its key, and what to do."""
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the key in {key or cert} is another certificate's"
    if key is None:
        return "there is no key in it: --key FILE says where it is"
    return f"the key in {key} cannot be read: it has to be PEM, without a password"


# --- The sequencer ---

class Sequencer(threading.Thread):
    """The one thread that owns the room: takes all that waits in the inbox, has the room do it, has
    it flush. A daemon: a stuck room must not keep the process alive."""

    def __init__(self, room: Room, inbox: Inbox) -> None:
        super().__init__(name="sequencer", daemon=True)
        self.room = room
        self.inbox = inbox

    def stop(self) -> None:
        """End the thread after what is in the inbox now, but not after a commit that cannot be
        made; may be called twice."""
        if self.room.is_held:
            self.inbox.close()
        self.inbox.post(self.inbox.close)
        if self.is_alive():
            self.join(5)
        self.inbox.close()

    def run(self) -> None:
        """Until stop()."""
        share_core()
        while not self.inbox.is_closed:
            for method, arguments in self.inbox.take():
                _guarded(method, *arguments)
                if self.room.batch_is_large:
                    self._flush()
            self._flush()

    def _flush(self) -> None:
        """Have the room flush, again and again while its history file does not take it: the inbox
        waits, and its posters."""
        _guarded(self.room.flush)
        while self.room.is_held and not self.inbox.wait_closed(HOLD_PAUSE):
            _guarded(self.room.flush)


# --- The server ---

class Handler(socketserver.BaseRequestHandler):
    """One connection's thread, as thin as can be: BaseRequestHandler runs handle() inside its
    constructor."""

    server: ChatServer

    def handle(self) -> None:
        """Serve the connection to its end."""
        self.server.attend(self.request, self.client_address)


class ChatServer(socketserver.ThreadingTCPServer):
    """The listening socket, the threads and their end. `port` is the real one; with `host` "" it
    listens on every address.

    Use: start(), then from code ask(room.host.boot, name) and the like, at the end
    server_close().
    """

    # On Windows it would let a second server take the port, unless nobody else may have it at all.
    allow_reuse_address = sys.platform != "win32"
    # They end with their connection, which server_close() ends.
    daemon_threads = True
    # Else socketserver keeps a list of dead threads.
    block_on_close = False
    # 5, its default, refuses most of a class that joins at once.
    request_queue_size = 1024
    # Whether anybody has come from another machine; only the acceptor sets it. Where nobody has for
    # a while, a firewall may be in the way.
    visited = False

    def __init__(self, host: str = "", port: int = PORT, settings: Settings = DEFAULT,
                 record: Callable[[str], None] = lambda line: None,
                 history: Optional[HistoryFile] = None,
                 identity: Optional[Identity] = None) -> None:
        # Shown to newcomers; None: nothing is encrypted.
        self.identity = identity
        # chat_web's Web; to be set before start(), where browsers may come.
        self.web: Any = None
        # Protects the two below, and that no connection comes in after server_close(); a leaf.
        self._lock = threading.Lock()
        # Of each connection's thread: its origin, and what cut() ends it by: a Connection, or the
        # bare socket while its first bytes are awaited. The oldest first.
        self._connections: "dict[threading.Thread, tuple[str, Any]]" = {}
        # Connections of each origin.
        self._addresses: "collections.Counter[str]" = collections.Counter()
        # Set by server_close(); ends the acceptor's waits.
        self._closing = threading.Event()
        # By kind of complaint, how often that may be logged; the acceptor's own.
        self._complaints = allowances(1 / SAY_AGAIN, 1, time.monotonic)
        self._acceptor = threading.Thread(target=self._accept, name="accept", daemon=True)
        address, self.address_family = _bind_address(host, port)
        inbox = Inbox(INBOX)
        self.ask = inbox.ask
        self.room = Room(Alarm(), inbox.post, settings, record=record, history=history)
        self.sequencer = Sequencer(self.room, inbox)
        # This binds; where it cannot it calls server_close().
        super().__init__(address, Handler)
        self.port: int = self.server_address[1]

    def server_bind(self) -> None:
        """As ThreadingTCPServer's, for both kinds of addresses."""
        if self.address_family == socket.AF_INET6:
            only = 0 if self.server_address[0] == "::" else 1
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        if sys.platform == "win32":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        super().server_bind()

    @property
    def bound(self) -> str:
        """The address where it listens; "::" and "0.0.0.0" are every address."""
        return str(self.server_address[0])

    def start(self) -> None:
        """Start the sequencer and the acceptor, which ends with server_close()."""
        self.sequencer.start()
        self._acceptor.start()

    def say_goodbye(self, text: str, seconds: float = 1.0) -> None:
        """Tell everybody, and wait up to `seconds` until all has been acknowledged."""
        if self.room.is_held:
            return
        try:
            self.ask(self.room.host.say, text)
        except TimeoutError as error:
            logger.error("%s", error)
        until = self.room.alarm.clock() + seconds
        while self.room.alarm.clock() < until and not self._closing.wait(0.02):
            with self._lock:
                links = list(self._connections.values())
            if all(link.manager.is_empty for _, link in links
                   if isinstance(link, Connection) and link.session is not None):
                return

    def server_close(self) -> None:
        """End every connection and every thread; may be called twice."""
        with self._lock:
            self._closing.set()
        if self._acceptor.is_alive():
            with contextlib.suppress(OSError):
                # Wakes the acceptor on Linux, but not elsewhere: see ACCEPT_POLL.
                self.socket.shutdown(socket.SHUT_RDWR)
            self.shutdown()
            self._acceptor.join()
        super().server_close()
        with self._lock:
            threads = dict(self._connections)
        # First: that they are all lost now is no news.
        self.sequencer.stop()
        for _, connection in threads.values():
            # What was written still arrives, then the end.
            connection.cut()
        for thread in threads:
            thread.join(5)
        self.room.alarm.close()
        # Else it is in the middle of a commit: the file is whole all the same.
        if not self.sequencer.is_alive():
            self.room.close()
        if self.web is not None:
            self.web.close()

    # On the acceptor's thread

    def _accept(self) -> None:
        share_core()
        self.serve_forever(ACCEPT_POLL)

    def get_request(self) -> "tuple[socket.socket, Any]":
        """As ThreadingTCPServer's; without descriptors it waits a little."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._complain(f"cannot accept connections: {error.strerror}; the next ones wait "
                               "until some end")
                # Else serve_forever would spin.
                self._closing.wait(0.25)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """The limits that hold before anybody has said a word."""
        origin, address = _origin(request, client_address), _plain_address(client_address)
        is_local = is_loopback(address)
        if not self.visited and not is_local:
            own = {each.ip for each in chatproto.own_addresses()}
            self.visited = address.partition("%")[0] not in own
        with self._lock:
            same = self._addresses[origin]
        if is_local or same < self.room.settings.max_per_address:
            if self._unjoined >= UNJOINED:
                self._cut_unjoined()
            return True
        what = f"{same} connections from {origin}"
        self._complain(f"refusing more connections: {what}")
        with contextlib.suppress(OSError):
            request.send(Error(0, "full", f"the limit is reached: {what}").encode()
                         if self.identity is None else chatproto.NO_ROOM)
            request.shutdown(socket.SHUT_WR)
        return False

    def _cut_unjoined(self) -> None:
        """Make room for who comes next: a few of those that have not joined are cut, the oldest of
        the address that has most of them. So nobody else is kept out."""
        origins: "dict[str, list[tuple[threading.Thread, Any]]]" = {}
        with self._lock:
            for thread, (origin, connection) in self._connections.items():
                if getattr(connection, "session", None) is None:
                    origins.setdefault(origin, []).append((thread, connection))
            origin, oldest = max(origins.items(), key=lambda item: len(item[1]), default=("", []))
            if sum(map(len, origins.values())) < UNJOINED:
                # The others are members whose connections are ending.
                return
            del oldest[CUT_AT_ONCE:]
            for thread, _ in oldest:
                del self._connections[thread]
        self._complain(f"too many connections have not joined: the oldest from {origin} are cut")
        for _, connection in oldest:
            connection.cut()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the connection's thread, when the room is not behind. It ends with the
        connection."""
        if self._unjoined < CROWD:
            self._pace()
        try:
            super().process_request(request, client_address)
        except RuntimeError as error:
            self._complain(f"cannot start a thread for a connection: {error}")
            self.shutdown_request(request)

    def _pace(self) -> None:
        """Have a newcomer wait a little, so that those who talk do not wait for a class that comes
        in."""
        if not self.room.members.is_list_full:
            self._closing.wait(PACE)
        until = self.room.alarm.clock() + ADMIT_WAIT
        while (self.sequencer.inbox.backlog > BUSY and self.room.alarm.clock() < until
               and not self._closing.wait(ADMIT_POLL)):
            pass

    @property
    def _unjoined(self) -> int:
        """How many connections have not joined, about."""
        with self._lock:
            return len(self._connections) - self.room.entrance.connected

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A bug in a connection's thread: one line, instead of socketserver's traceback."""
        error = sys.exc_info()[1]
        if error is not None:
            _log_bug(f"in a connection from {_plain_address(client_address)}", error)

    def _complain(self, what: str) -> None:
        """Log a shortage, and not again for a while."""
        if not self._complaints(what[:24]).take():
            logger.warning("%s", what)

    # On a connection's thread

    def attend(self, request: socket.socket, client_address: Any) -> None:
        """Serve one connection to its end: frames, a request of a browser, or frames over the
        WebSocket that it asked for."""
        origin = _origin(request, client_address)
        wire = MessageSocket(request) if self.identity is None else SecureSocket(request)
        thread = threading.current_thread()
        thread.name = f"member {_plain_address(client_address)}"
        with self._lock:
            if self._closing.is_set():
                return
            self._connections[thread] = origin, wire
            self._addresses[origin] += 1
        try:
            self._serve(thread, wire, _plain_address(client_address), origin)
        finally:
            with self._lock:
                self._connections.pop(thread, None)
                self._addresses[origin] -= 1
                if not self._addresses[origin]:
                    del self._addresses[origin]

    def _serve(self, thread: threading.Thread, wire: Any, address: str, origin: str) -> None:
        came = self.room.alarm.clock()
        spoken: Any = wire
        # The alarm's clock is time.monotonic().
        until = came + JOIN_TIMEOUT
        try:
            is_clear = (self.identity is not None
                        and not wire.begin(until, self.identity.context))
        except ConnectionClosed as why:
            logger.debug("%s went during its greeting (%s)", address, why)
            wire.close()
            return
        if self.web is not None:
            # In the clear it is sent to https, when it speaks HTTP.
            spoken = self.web.greet(wire, address, max(0.0, until - self.room.alarm.clock()))
        if spoken is None:
            # It was a request, and it has its answer.
            return
        if is_clear:
            wire.write(Error(0, "tls", "this server speaks TLS only").encode())
            wire.linger()
            wire.close()
            return
        # The wait for the first byte counts; a request's does not.
        connection = Connection(spoken, address, self.room, came if spoken is wire else None,
                                origin)
        with self._lock:
            # Else it was cut meanwhile.
            if thread in self._connections:
                self._connections[thread] = origin, connection
        connection.run()


def _bind_address(host: str, port: int) -> "tuple[tuple[Any, ...], int]":
    """Where to listen, and the address family: every address of both kinds for "" where the
    platform can do that."""
    if not host and socket.has_dualstack_ipv6():
        return ("::", port), socket.AF_INET6
    if not host:
        return ("", port), socket.AF_INET
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                  flags=socket.AI_PASSIVE)[0]
    return address, family


def _plain_address(client_address: Any) -> str:
    """The peer's address, an IPv4 one without the prefix that a socket for both kinds gives it."""
    address = str(client_address[0])
    return address[7:] if address.startswith("::ffff:") and "." in address else address


def _origin(request: socket.socket, client_address: Any) -> str:
    """What a connection counts for in the limits of an address: its address; but the network of an
    IPv6 one from elsewhere (its /64), in which anybody may have as many as they like. On this link
    they are counted each: there a /64 is everybody."""
    address = _plain_address(client_address)
    if ":" not in address or "%" in address:
        return address
    network = ipaddress.ip_network((address, 64), strict=False)
    try:
        is_here = ipaddress.ip_address(request.getsockname()[0].partition("%")[0]) in network
    except (OSError, ValueError):
        # It has gone already.
        is_here = False
    return address if is_here or network.is_link_local else str(network)


# --- The operator's line ---

def _in_foreground() -> bool:
    """Whether the terminal is ours at this moment. Raises OSError when there is none."""
    return sys.platform == "win32" or os.tcgetpgrp(0) == os.getpgrp()


class OperatorLine:
    """The line that the operator types in a terminal; whatever else is shown comes above it.

    It knows the keys that the terminal's own line has (Backspace, Ctrl-U, Ctrl-W, Ctrl-D) and no
    more: to share the client's editor one more file would have to be copied. On Windows, and where
    nothing may be painted, the terminal's own line stays.
    """

    PROMPT = "> "
    # Arrow keys and the like mean nothing here.
    _ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|[^[O])")
    # The last letter with the marks on it, and the last word with the blanks after it.
    _LETTER = re.compile(r".[\u0300-\u036f\u200d\ufe0f]*\Z", re.DOTALL)
    _WORD = re.compile(r"\S*\s*\Z")
    _ALL = re.compile(r".*\Z", re.DOTALL)
    # What stands behind /password is nobody's to read.
    _SECRET = re.compile(r"(?<=/password ).+", re.IGNORECASE)
    _ERASE = {"\x7f": _LETTER, "\x08": _LETTER, "\x17": _WORD, "\x15": _ALL}

    def __init__(self) -> None:
        # The lock protects the text, and keeps what is written in one piece; a leaf.
        self._lock = threading.Lock()
        self._text = ""
        # The terminal's, from before open(); None again after close().
        self._settings: "Optional[list[Any]]" = None
        # Whether the terminal is ours now: it is the shell's while we are in the background.
        self.is_open = False
        # When Ctrl-C came last; only the main thread asks.
        self._interrupted_at = -math.inf

    def open(self) -> bool:
        """Take the terminal over, also after it was away: it hands over each key at once, but
        Ctrl-C and Ctrl-Z stay signals. False where that cannot be.

        Windows has no `termios`, and a Python that was built without it is treated alike.
        """
        self.is_open = False
        if (sys.platform == "win32" or os.environ.get("NO_COLOR")
                or os.environ.get("TERM", "dumb") in ("", "dumb")):
            return False
        try:
            import termios
            import tty
        except ImportError:
            return False
        with contextlib.suppress(AttributeError, OSError, ValueError, termios.error):
            # In the background the terminal is the shell's.
            if sys.stdin.isatty() and sys.stdout.isatty() and _in_foreground():
                self._settings = self._settings or termios.tcgetattr(0)
                # What was typed already is not thrown away.
                tty.setcbreak(0, termios.TCSADRAIN)
                self.is_open = True
                self.write("")
        return self.is_open

    def reopen(self) -> None:
        """We were stopped, and go on: perhaps in the background, perhaps with other settings."""
        if self._settings is not None:
            self.open()

    def close(self) -> None:
        """Give the terminal back, unless it is the shell's again, or gone. May be called twice."""
        settings, self._settings = self._settings, None
        was_open, self.is_open = self.is_open, False
        if sys.platform == "win32" or settings is None or not was_open:
            return
        import termios
        with contextlib.suppress(OSError, termios.error):
            if _in_foreground():
                os.write(1, b"\r\x1b[K")
                termios.tcsetattr(0, termios.TCSADRAIN, settings)

    def may_stop(self, connected: int) -> bool:
        """On Ctrl-C: whether it ends the server. Where people are connected, and an operator sits
        at a terminal, it asks once."""
        now = time.monotonic()
        is_sure = now - self._interrupted_at <= CTRL_C_AGAIN
        self._interrupted_at = now
        if is_sure or not connected or sys.stdin is None or not sys.stdin.isatty():
            return True
        self.write(f"{_how_many(connected)}: Ctrl-C again ends the server\n")
        return False

    def write(self, text: str) -> None:
        """Show whole lines, above the line that is typed. Any thread.

        It is the stream of Python's log as well. Raises OSError when stdout is gone.
        """
        with self._lock:
            if self.is_open:
                line = f"\r\x1b[K{text}{self.PROMPT}{self._visible_end()}"
                os.write(1, line.encode(sys.stdout.encoding, "backslashreplace"))
            elif sys.stdout is not None:
                sys.stdout.write(text)
                sys.stdout.flush()

    def lines(self) -> Iterator[str]:
        """On the console's thread: what is entered, until Ctrl-D.

        Raises OSError when the terminal is gone.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        begun = ""
        while True:
            data = self._read()
            text = self._ESCAPES.sub("", begun + decoder.decode(data))
            # An escape sequence that is not whole yet waits for its rest; a longer one is none.
            typed, escape_begun, rest = text.partition("\x1b")
            begun = (escape_begun + rest)[:32]
            for char in typed:
                if char == "\x04" and not self._text:
                    return
                if char in "\r\n":
                    yield self._enter()
                else:
                    self._edit(char)
            if not data:
                return
            self.write("")

    def _enter(self) -> str:
        """The line is finished: it stays on the screen, and a new one begins."""
        with self._lock:
            line, self._text = self._text, ""
        self.write(f"{self.PROMPT}{self._shown(line)}\n")
        return line

    def _shown(self, text: str) -> str:
        return escape(self._SECRET.sub(lambda found: "*" * len(found[0]), text))

    def _read(self) -> bytes:
        """Wait for keys; while we are in the background, for the foreground."""
        while True:
            try:
                return os.read(0, 4096)
            except OSError:
                if self._settings is None or _in_foreground():
                    raise
                # `fg` sends no signal to a job that runs: look once a second.
                while not _in_foreground():
                    time.sleep(1)
                self.open()

    def _edit(self, char: str) -> None:
        with self._lock:
            if char in self._ERASE:
                self._text = self._ERASE[char].sub("", self._text, count=1)
            elif char >= " " and len(self._text) < chatproto.MAX_TEXT:
                self._text += char

    def _visible_end(self) -> str:
        """As much of the end of the text as fits into a row. Needs the lock.

        What is not ASCII may take two columns, and is counted so.
        """
        assert self._lock.locked()
        room = max(1, os.get_terminal_size(1).columns - len(self.PROMPT) - 1)
        shown = self._shown(self._text)[-room:]
        while sum(1 + (not char.isascii()) for char in shown) > room:
            shown = shown[1:]
        return shown


# --- The chat log ---

class ChatLog:
    """Appends one line an event to a file, or to stdout for "-", where the operator may be typing.

    Lines are escaped and written on the thread "chat log", so that no disk and no long text keeps
    the sequencer. It is a daemon, as a disk may hang, and ends with close(). At most WAITING
    characters wait for it; a line beyond that is dropped. A line that the disk does not take (disk
    full) is dropped as well, and the next one is tried again. Either way the file says, where it
    goes on, how many lines are missing. It is open only while there is something to write: so
    after it was rotated the next lines come into another one of its name, on Windows as well.
    """

    # A slow disk may lag behind by so much: a minute of a busy room, at most 32 MB of memory.
    WAITING = 8 * 1024 * 1024
    # Characters that a line counts for on top of its own: about what its objects take.
    OVERHEAD = 64
    # Seconds that close() waits for what was not written yet.
    PATIENCE = 5.0

    def __init__(self, path: Optional[str], line: OperatorLine) -> None:
        """Raises OSError when the file cannot be opened."""
        # For each line when it came, the line, and how many were dropped before it; None is the
        # end.
        self._waiting: "queue.SimpleQueue[Optional[tuple[float, str, int]]]" = queue.SimpleQueue()
        # Characters that the sequencer has put there, and that the log's thread has taken: each
        # counts its own, and what is between them waits.
        self._put = self._taken = 0
        # How many lines found no room since the last one that did; the sequencer's own.
        self._dropped = 0
        self._thread: Optional[threading.Thread] = None
        if path:
            if path != "-":
                open(path, "ab").close()
            self._thread = threading.Thread(target=self._run, args=(_Output(path, line),),
                                            name="chat log", daemon=True)
            self._thread.start()

    def write(self, line: str) -> None:
        """On the sequencer's thread: never waits."""
        if self._thread is not None and self._put - self._taken < self.WAITING:
            self._put += self.OVERHEAD + len(line)
            self._waiting.put((time.time(), line, self._dropped))
            self._dropped = 0
        else:
            self._dropped += 1

    def close(self) -> None:
        """Write what waits, and end the thread. May be called twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._waiting.put(None)
            thread.join(self.PATIENCE)

    # On the log's thread

    def _run(self, out: _Output) -> None:
        missing = 0
        for at, line, dropped in iter(self._waiting.get, None):
            self._taken += self.OVERHEAD + len(line)
            missing += dropped
            stamp = time.strftime("[%Y-%m-%d %H:%M:%S] ", time.localtime(at))
            try:
                if missing:
                    out.put(f"{stamp}* lines missing here: {missing}\n")
                    logger.warning("the chat log goes on; lines missing: %d", missing)
                    missing = 0
                out.put(f"{stamp}{escape(line)}\n")
            except (OSError, ValueError) as error:
                if not missing:
                    logger.error("the chat log cannot be written, but tries again: %s", error)
                missing += 1
            if self._waiting.empty():
                out.close()
        out.close()
        if missing:
            logger.error("the chat log ends; lines missing: %d", missing)


class _Output:
    """Where the chat log's lines go; on its thread alone."""

    def __init__(self, path: str, line: OperatorLine) -> None:
        self._path = path
        self._line = line
        # None on stdout, and while nothing is written.
        self._file: "Optional[io.FileIO]" = None
        # The file ends in the middle of a line, as the disk was full: the next begins a new one.
        self._torn = False

    def put(self, text: str) -> None:
        """Write whole lines. Raises OSError, or ValueError when stdout is closed."""
        if self._path == "-":
            self._line.write(text)
            return
        if self._file is None:
            self._file = io.FileIO(self._path, "a")
        data = ("\n" * self._torn + text).encode("utf-8", "backslashreplace")
        while data:
            data = data[self._file.write(data):]
            self._torn = bool(data)

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


# --- Discovery ---

class Responder:
    """Answers whoever asks the LAN for servers; it never speaks by itself.

    Its thread, "discovery", owns the sockets: one for each port and family. It is a daemon, as
    nothing is lost with it, and ends with close(). Besides the server's own port it listens on
    8087, which every client asks; the servers of a machine share that.
    """

    # Seconds from one look for new interfaces to the next.
    LOOK_EVERY = 30.0
    # Answers to one address at once, and then a second: a client asks a few times over each of its
    # interfaces.
    ANSWERS = 10

    def __init__(self, server: ChatServer, name: str) -> None:
        """`name` is what the server is called."""
        self._server = server
        # What is answered, but how many are here. The id tells the answers of this run from those
        # of another server of the same name.
        self._answer = chatproto.Answer(
            name, server.port, 0, chatproto.__version__, server.identity is not None,
            secrets.token_hex(8), server.identity.key if server.identity else "")
        self._allowances = allowances(self.ANSWERS, self.ANSWERS, time.monotonic)
        # close() closes the one, which ends the thread's wait at the other.
        self._waking, woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, args=(woken, list(self._open())),
                                        name="discovery", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more. May be called twice."""
        self._waking.close()
        self._thread.join(5)

    def _open(self) -> "Iterator[socket.socket]":
        """The sockets that can be had: another program may have the port."""
        server, own = self._server, self._server.bound
        families = {socket.AF_INET, socket.AF_INET6} if own == "::" else {server.address_family}
        # What is sent to everybody is heard only by a socket that is bound to every address.
        at = own if is_loopback(own) else ""
        for family, port in itertools.product(families, {server.port, PORT}):
            try:
                yield _udp(family, at, port)
            except OSError as error:
                logger.info("who asks on port %d does not find us: %s", port, error.strerror)

    # On the thread

    def _run(self, woken: socket.socket, sockets: "list[socket.socket]") -> None:
        look_at = 0.0
        while True:
            if time.monotonic() >= look_at:
                self._listen(sockets)
                look_at = time.monotonic() + self.LOOK_EVERY
            # They were made at the start: none has a number that select() cannot take.
            ready, _, _ = select.select([woken, *sockets], [], [], self.LOOK_EVERY)
            if woken in ready:
                break
            for sock in ready:
                self._attend(sock)
        for sock in (woken, *sockets):
            sock.close()

    @staticmethod
    def _listen(sockets: "list[socket.socket]") -> None:
        """Have the sockets listen to their groups on every interface, also on new ones."""
        interfaces = {each.number for each in chatproto.own_addresses()}
        for sock, number in itertools.product(sockets, interfaces):
            # It does already, the interface has gone, or has no address of that family.
            with contextlib.suppress(OSError):
                chatproto.listen_to_group(sock, number)

    def _attend(self, sock: socket.socket) -> None:
        """Read a question and answer it."""
        # On Windows also that nobody was there any more to hear the last answer.
        with contextlib.suppress(OSError):
            data, asker = sock.recvfrom(2048)
            token = chatproto.decode_question(data)
            # Who asks may have made its address up: so each has its place, and no number of others
            # can have it forgotten.
            place = str(hash(asker[0]) % ADDRESSES)
            if token is not None and not self._allowances(place).take():
                answer = self._answer._replace(here=self._server.room.entrance.connected)
                self._send(sock, chatproto.encode_answer(token, answer), asker)

    def _send(self, sock: socket.socket, data: bytes, asker: Any) -> None:
        """Answer from the address where the server listens, as the asker goes there."""
        own = self._server.bound
        if own in ("0.0.0.0", "::") or is_loopback(own):
            sock.sendto(data, asker)
            return
        with _udp(sock.family, own, self._server.port) as speaker:
            speaker.sendto(data, asker)


def _udp(family: int, ip: str, port: int) -> socket.socket:
    """A datagram socket on a port that other servers of this machine may listen on as well.

    Raises OSError.
    """
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "darwin":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((ip, port))
    except OSError:
        sock.close()
        raise
    return sock


# --- The invitation: how others come here ---

# Seconds without anybody from another machine until it is told that a firewall may be in the way.
FIREWALL_AFTER = 60.0
# How the firewall of a platform lets others in.
_FIREWALLS = {
    "win32": 'in "Allow an app through Windows Firewall" tick Python for private networks, and '
             "make this network a private one",
    "darwin": "in System Settings, Network, Firewall, Options allow Python to receive connections"}


class Invitation:
    """What others type or open to come here; asked anew each time, as addresses come and go."""

    def __init__(self, server: ChatServer, name: str) -> None:
        """`name` is what the server is called."""
        self.name = name
        self._server = server

    def hosts(self) -> "list[str]":
        """Where others reach this server, the likeliest first; at least one."""
        if self._server.bound not in ("0.0.0.0", "::"):
            return [self._server.bound]
        only_4 = self._server.address_family == socket.AF_INET
        found = [each.host for each in chatproto.lan_addresses()
                 if not (only_4 and each.parsed.version == 6)]
        # A link-local address of IPv6 is for those who have no other.
        return [host for host in found if "%" not in host] or found or ["127.0.0.1"]

    @property
    def command(self) -> str:
        """The line that others type, with Python as it is called here."""
        trust = f" --trust {self.key}" if self.key else ""
        return f"{_python()} chat_client.py {self.hosts()[0]} {self._server.port}{trust} -n NAME"

    @property
    def key(self) -> str:
        """By which others know this server under TLS; "" without."""
        return self._server.identity.key if self._server.identity is not None else ""

    @property
    def digits(self) -> str:
        """The same as browsers show it: the beginning of the SHA-256 of the public key."""
        return base64.b32decode(self.key.replace("-", "")).hex(" ")

    def _page_at(self, host: str) -> str:
        scheme = "https" if self.key else "http"
        return f"{scheme}://{chatproto.in_url(host)}:{self._server.port}/"

    @property
    def url(self) -> str:
        """The page's address; "" when browsers are not served, or have no way to come."""
        hosts = self.hosts() if self._server.web is not None else []
        return next((self._page_at(host) for host in hosts if "%" not in host), "")

    @property
    def host_page(self) -> str:
        """The address of the host's page, which only this machine may open; "" if it cannot."""
        own = "127.0.0.1" if self._server.bound in ("0.0.0.0", "::") else self._server.bound
        # Only a connection from loopback is known to come from this machine.
        if self._server.web is None or not is_loopback(own):
            return ""
        return f"{self._page_at(own)}#host={self._server.web.secret}"

    def lines(self) -> "list[str]":
        """What is printed when the server has started."""
        listening = "0.0.0.0" if self._server.bound == "::" else self._server.bound
        first, *others = self.hosts()
        lines = [f"Listening on {chatproto.in_url(listening)}:{self._server.port}",
                 f"Others join with: {self.command}"]
        if self.url:
            lines.append(f"or in a browser: {self.url}")
        if self.url and self.key:
            lines.append("The browser warns: nobody but you vouches for this server. Its key is "
                         f"{self.key}")
        if self.host_page:
            lines.append(f"Host's page: {self.host_page}")
        if others:
            lines.append(f"Should {first} lead nowhere: {', '.join(others[:5])}")
        elif self._server.bound in ("0.0.0.0", "::") and first == "127.0.0.1":
            lines.append("This machine is in no network yet: nobody else can come")
        return lines


def _python() -> str:
    """Python as it was called here: python3, python or py."""
    # From 3.10 on sys.orig_argv has what was typed.
    called: "list[str]" = getattr(sys, "orig_argv", None) or [sys.executable or ""]
    name = os.path.splitext(os.path.basename(called[0]))[0].lower()
    if name in ("python", "python3", "py"):
        return name
    return "python" if sys.platform == "win32" else "python3"


def firewall_advice(port: int) -> str:
    """What to do where a firewall keeps others out."""
    elsewhere = (f"with ufw it is: sudo ufw allow {port}; with firewalld: "
                 f"sudo firewall-cmd --add-port={port}/tcp --add-port={port}/udp")
    return ("nobody has come from another machine yet; if somebody tries, a firewall may be in "
            f"the way: {_FIREWALLS.get(sys.platform, elsewhere)}")


# --- The console ---

# What stands behind a command, as patterns: a group is called as the parameter that it is for.
_NAME = r"(?P<name>\S+)"
_TIME = r"(?:\s+(?P<seconds>\S+))?"
_SWITCH = "(?P<is_on>on|off)"
_ANY_TEXT = "(?P<text>.*)"


class Command(NamedTuple):
    """A command of the console's."""

    # How it is typed, and what it does.
    usage: str
    what: str
    # The pattern of what stands behind it; "" is nothing.
    takes: str
    # Gets the console, and the pattern's groups; returns what to tell the operator.
    run: Callable[..., Optional[str]]

    @property
    def help(self) -> str:
        """Its line of /help, which also answers a mistake."""
        return f"{self.usage}: {self.what}"


def _of_host(method: Callable[..., Optional[str]]) -> Callable[..., Optional[str]]:
    """What a command runs that is a method of Host's."""
    def run(console: Console, **arguments: Any) -> Any:
        return console.ask(functools.partial(method, console.host, **arguments))
    return run


class Console:
    """What the operator can do, from stdin, from the host's page or from code: do() takes a line.

    COMMANDS has each command, and /help is written from it.
    """

    def __init__(self, server: ChatServer, line: OperatorLine, motd_path: Optional[str],
                 invitation: Invitation, stop: Callable[[], None],
                 load_identity: "Callable[[], Optional[Identity]]") -> None:
        """`load_identity` reads the certificate anew, or makes another one before it ends."""
        self._load_identity = load_identity
        self._server = server
        self._invitation = invitation
        self._line = line
        self._motd_path = motd_path
        self._stop = stop

    def command(self, line: str) -> str:
        """Do what `line` says and return what to tell the operator, mistakes as well."""
        try:
            return self.do(line)
        except (LookupError, ValueError, ProtocolError, OSError) as error:
            return str(error)

    def do(self, line: str) -> str:
        """Do what `line` says and return what to tell the operator.

        Raises LookupError, ValueError, ProtocolError or OSError when it cannot be.
        """
        word, _, rest = line.strip().partition(" ")
        if not word:
            return ""
        command = self.COMMANDS.get(word.lower())
        if command is None:
            raise ValueError(f"{escape(word)} is not a command here, /help lists them; "
                             "/say TEXT speaks to everybody")
        found = re.fullmatch(command.takes, rest.strip(), re.IGNORECASE | re.DOTALL)
        if found is None:
            raise ValueError(command.help)
        given = {name: _READ.get(name, str)(text) for name, text in found.groupdict().items()
                 if text is not None}
        return command.run(self, **given) or ""

    def run(self) -> None:
        """On the console's thread: read commands until stdin ends.

        The thread is a daemon, as a read of a terminal cannot be interrupted.
        """
        try:
            for line in self._line.lines() if self._line.is_open else chatproto.stdin_lines():
                answer = self.command(chatproto.clean_text(line))
                if answer:
                    self._line.write(answer + "\n")
        except OSError as error:
            # The terminal is gone, or it is another program's.
            logger.info("no commands from the terminal any more: %s", error.strerror or error)
        self._line.close()

    @property
    def host(self) -> Host:
        """What the host may do; with ask()."""
        return self._server.room.host

    def ask(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Have the sequencer call a method, and return its result."""
        return self._server.ask(method, *arguments)

    def read_motd(self) -> Optional[str]:
        """The message of the day from its file, None when there is none.

        Raises OSError, and ProtocolError when it is too long.
        """
        if not self._motd_path:
            return None
        with open(self._motd_path, encoding="utf-8", errors="replace") as file:
            text = chatproto.clean_text(file.read()).strip()
        return chatproto.check_text(text) if text else None

    def recorded(self, as_text: bool) -> Iterator[str]:
        """The lines of /record, asked for piece by piece: the room goes on meanwhile."""
        place, after = 0, -1
        while place > after:
            after = place
            frames, place = self.ask(self.host.journal.public, after)
            for frame in frames:
                body = frame.decode().rstrip("\n")
                yield (_exported(body) if as_text else body) + "\n"

    def state(self) -> "dict[str, Any]":
        """What the host's page shows, as JSON. It is asked for every few seconds by each open page,
        so the sequencer only hands over what there is."""
        host, invitation = self.host, self._invitation
        people, held, talk, files = self.ask(lambda: (
            host.people(), host.held(), host.talk(HOST_TALK), host.journal.files.listed()))
        rules, said = host.house.rules, map(json.loads, talk)
        return {
            "people": people, "motd": host.house.motd or "", "name": invitation.name,
            "url": invitation.url, "key": invitation.key, "digits": invitation.digits,
            "rules": {"speak": rules.speak, "private": rules.private, "slow": rules.slow,
                      "host": rules.host, "files": rules.files},
            "files": [{"id": file.message, "name": file.name, "size": file.size,
                       "from": file.sender} for file in files],
            "held": [{"kind": hold.kind, "name": hold.name, "reason": hold.reason,
                      "left": None if left == math.inf else left} for hold, left in held],
            "talk": [{"id": one["id"], "from": one["from"], "at": one["at"],
                      "text": one["text"][:HOST_TEXT]} for one in said]}

    def renew(self) -> None:
        """Once a day: have a certificate that holds."""
        try:
            self._server.identity = self._load_identity()
        except TlsError as error:
            logger.error("cannot renew the certificate: %s", error)

    # The commands that are not the host's alone

    def _users(self) -> str:
        return "\n".join(f"{name}  {address or 'away'}" for name, address, *_ in
                         self.ask(self.host.people)) or "nobody is here"

    def _files(self, is_on: Optional[bool] = None) -> str:
        if is_on is not None:
            return str(self.ask(self.host.files, is_on))
        return "\n".join(f"{file.message}  {chatproto.size_in_words(file.size)}  {file.sender}: "
                         f"{escape(file.name)}"
                         for file in self.ask(self.host.journal.files.listed)
                         ) or "there are no files"

    def _remove(self, id: Optional[int] = None, which: str = "", name: str = "") -> str:
        if id is not None:
            return str(self.ask(self.host.remove, id))
        if which:
            is_last = which.lower() == "last"
            return str(self.ask(self.host.remove_last if is_last else self.host.remove_all, name))
        said = map(json.loads, self.ask(self.host.talk, HISTORY))
        return "\n".join(f"{one['id']}  {one['from']}: {escape(one['text'][:200])}"
                         for one in said) or "nothing was said"

    def _banned(self) -> str:
        kinds = {"ban": "banned", "boot": "booted", "mute": "muted"}
        return "\n".join(
            f"{escape(hold.name)}  {kinds.get(hold.kind, hold.kind)} "
            f"{'for good' if left == math.inf else f'{left:.0f} s more'}"
            f"{': ' + escape(hold.reason) if hold.reason else ''}"
            for hold, left in self.ask(self.host.held)) or "nobody is banned or muted"

    def _motd(self, text: str) -> str:
        if text == "@":
            self.ask(self.host.pin, self.read_motd(), False)
        elif text:
            self.ask(self.host.pin, None if text == "-" else text)
        shown = self.host.house.motd or "there is no message of the day"
        return "\n".join(map(escape, shown.split("\n")))

    def _password(self, text: str) -> str:
        if not self._server.identity:
            raise ValueError("a password needs --tls: else everybody could read it on the way")
        if not text and self._line.is_open:
            raise ValueError("/password TEXT; it is not shown")
        return str(self.ask(self.host.lock, text or chatproto.ask_password("New password: ")))

    def _record(self, path: str) -> str:
        try:
            # Never over anything: the history file could be meant by mistake.
            with open(path, "x", encoding="utf-8") as file:
                count = 0
                for line in self.recorded(path.endswith(".txt")):
                    file.write(line)
                    count += 1
        except FileExistsError:
            raise ValueError(f"{escape(path)} is there already: take another name") from None
        return f"{count} lines are in {escape(path)}"

    def _reload(self) -> str:
        self.ask(self.host.pin, self.read_motd(), False)
        self._server.identity = self._load_identity()
        return "reloaded"

    def _qr(self, look: str = "") -> str:
        url = self._invitation.url
        if not url:
            return "there is no page to go to: browsers are not served"
        import chat_web
        # Without a stdout as well: else the console would end here.
        shows_blocks = "utf" in str(getattr(sys.stdout, "encoding", None)).lower()
        lines = chat_web.qr_lines(chat_web.qr_code(url), bool(look), shows_blocks)
        return "\n".join([*lines, url])

    def _help(self) -> str:
        return "\n".join(each.help for each in self.COMMANDS.values())

    def _quit(self, now: str = "") -> str:
        here = self._server.room.entrance.connected
        if here and not now:
            return f"{_how_many(here)}: /quit now ends the server"
        self._stop()
        return ""

    # By its word; /help has this order.
    COMMANDS = {command.usage.split()[0]: command for command in (
        Command("/users", "who is here", "", _users),
        Command("/say TEXT", "speak to everybody, as the host", _ANY_TEXT,
                _of_host(Host.say)),
        Command("/mute NAME [DURATION]",
                "let somebody hear, and say nothing (10m, 2h, 1d; else for good)",
                _NAME + _TIME, _of_host(Host.mute)),
        Command("/unmute NAME", "let somebody speak again", _NAME, _of_host(Host.unmute)),
        Command("/only-host", "nobody but the host may speak", "", _of_host(Host.only_host)),
        Command("/everyone", "everybody may speak again", "", _of_host(Host.everyone)),
        Command("/private on|off", "allow private messages, or not", _SWITCH,
                _of_host(Host.private)),
        Command("/slow SECONDS", "one message in so many seconds for each; 0 is off",
                r"(?P<seconds>\S+)", _of_host(Host.slow)),
        Command("/files [on|off]",
                "what was handed out (/remove ID takes one back); allow files, or not",
                _SWITCH + "?", _files),
        Command("/remove ID|last NAME|all NAME",
                "take messages back; alone it lists the last ones with their ids",
                rf"((?P<id>[0-9]{{1,16}})|(?P<which>last|all)\s+{_NAME})?", _remove),
        # Without a unit a number begins the reason: "3 warnings are enough".
        Command("/boot NAME [DURATION] [REASON]", "put somebody out for a while (else 10m)",
                _NAME + r"(?:\s+(?P<seconds>\d{1,9}[smhd])(?!\S))?(?:\s+(?P<reason>.*))?",
                _of_host(Host.boot)),
        Command("/ban NAME [DURATION]", "the same for good, or for a time; an address, too",
                _NAME + _TIME, _of_host(Host.ban)),
        Command("/unban NAME", "let in again who was booted or banned; an address, too", _NAME,
                _of_host(Host.unban)),
        Command("/banned", "who is banned, booted or muted, and for how long", "", _banned),
        Command("/motd [TEXT]",
                "show the pinned line, or change it; /motd @ reads its file, /motd - none",
                _ANY_TEXT, _motd),
        Command("/host-name NAME", "speak under that name from now on", _NAME,
                _of_host(Host.call)),
        Command("/password TEXT",
                "ask newcomers for another password; alone it asks you, and shows none",
                _ANY_TEXT, _password),
        Command("/record FILE",
                "write what was said in public to FILE, lines of text where it is a .txt",
                "(?P<path>.+)", _record),
        Command("/reload", "read message of the day and certificate again", "", _reload),
        Command("/qr [light]", "the page's address as a QR code; light where the terminal is",
                "(?P<look>light)?", _qr),
        Command("/help", "this list", "", _help),
        Command("/quit", "tell everybody, and end the server; /quit now does not ask",
                "(?P<now>now)?", _quit))}


def _how_many(count: int) -> str:
    return f"{count} people are connected" if count > 1 else "somebody is connected"


def _seconds(duration: str) -> float:
    """"90", "1.5", "10m", "2h" or "1d" in seconds. Raises ValueError."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smhd]?)", duration.lower())
    if found is None:
        raise ValueError(f"{escape(duration)} is no duration: 90, 10m, 2h or 1d")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


# How the parameters of commands are read that are no texts.
_READ: "dict[str, Callable[[str], Any]]" = {
    "seconds": _seconds, "id": int, "is_on": lambda text: text.lower() == "on"}


# --- Certificate ---

# The standard library can use a certificate and cannot make one. What is ours here: the encoding
# (DER: ITU-T X.690), the certificate (RFC 5280), the file of the key (RFC 5915), and one signature
# (ECDSA: FIPS 186-5, 6.4) on the curve P-256 (SP 800-186, 3.2.1.3; SEC 2). It signs its own
# certificate and nothing else, at most once a start, on nobody's demand: so that it is not done in
# constant time tells nobody anything.
_P = 2**256 - 2**224 + 2**192 + 2**96 - 1
_N = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551
_G = (0x6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296,
      0x4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5)
_Point = Optional[Tuple[int, int]]

_SEQUENCE, _SET, _INTEGER, _BITS, _OCTETS, _TEXT = 0x30, 0x31, 0x02, 0x03, 0x04, 0x0c
# Object identifiers, encoded (X.690, 8.19): ecPublicKey, prime256v1, ecdsa-with-SHA256 (RFC 5480),
# commonName, and those of extensions (RFC 5280, 4.2.1).
_EC_KEY, _P256 = bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06082a8648ce3d030107")
_ECDSA_SHA256 = bytes.fromhex("06082a8648ce3d040302")
_COMMON_NAME, _SERVER_AUTH = bytes.fromhex("0603550403"), bytes.fromhex("06082b06010505070301")
_SUBJECT_KEY, _KEY_USAGE, _ALT_NAME, _BASIC, _EXTENDED = (
    bytes((0x06, 3, 0x55, 0x1d, number)) for number in (14, 15, 17, 19, 37))
# The two times of a certificate, as they are encoded.
_TIMES = re.compile(rb"(?:\x17\x0d|\x18\x0f)(\d{12,14})Z(?:\x17\x0d|\x18\x0f)(\d{12,14})Z")
# Seconds: how long a certificate holds, and how long before its end another is made. It begins a
# little in the past, for clocks that are late.
CERTIFICATE_FOR, CERTIFICATE_LEFT, CERTIFICATE_SINCE = 800 * 86_400, 60 * 86_400, 2 * 86_400
# Seconds until a server that runs on looks whether it is time.
RENEW = 86_400


def _add(one: _Point, other: _Point) -> _Point:
    """The sum of two points of P-256; None is the point at infinity (SEC 1, 2.2.1)."""
    if one is None or other is None:
        return one or other
    (x, y), (u, v) = one, other
    if x == u and (y + v) % _P == 0:
        return None
    slope = (3 * x * x - 3) * pow(2 * y, -1, _P) if x == u else (v - y) * pow(u - x, -1, _P)
    sum_x = (slope * slope - x - u) % _P
    return sum_x, (slope * (x - sum_x) - y) % _P


def _multiply(factor: int, point: _Point) -> "tuple[int, int]":
    """`factor` times a point, for a factor below the curve's order."""
    product: _Point = None
    for bit in f"{factor:b}":
        product = _add(product, product)
        if bit == "1":
            product = _add(product, point)
    assert product is not None
    return product


def _new_scalar() -> int:
    """A secret number from 1 to the curve's order, which is not reached."""
    return secrets.randbelow(_N - 1) + 1


def _sign(key: int, data: bytes) -> bytes:
    """The signature of data, in DER."""
    digest = int.from_bytes(hashlib.sha256(data).digest(), "big")
    # Two signatures with one of these would give the key away. It is drawn as the key is, of which
    # nothing is left where that is weak; RFC 6979 would be more code for the same. That r or s is 0
    # and another has to be drawn nobody will ever see: OpenSSL would not take the certificate.
    once = _new_scalar()
    r = _multiply(once, _G)[0] % _N
    s = pow(once, -1, _N) * (digest + r * key) % _N
    return _der(_SEQUENCE, _der_number(r), _der_number(s))


def _der(tag: int, *parts: bytes) -> bytes:
    """An element of DER: tag, length, content (X.690, 8.1)."""
    content = b"".join(parts)
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    if len(content) < 128:
        return bytes((tag, len(content))) + content
    return bytes((tag, 0x80 | len(length))) + length + content


def _der_number(number: int) -> bytes:
    return _der(_INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _der_time(when: float) -> bytes:
    """UTCTime until 2049, GeneralizedTime from then on (RFC 5280, 4.1.2.5)."""
    moment = time.gmtime(when)
    if moment.tm_year < 2050:
        return _der(0x17, time.strftime("%y%m%d%H%M%SZ", moment).encode())
    return _der(0x18, time.strftime("%Y%m%d%H%M%SZ", moment).encode())


def _alternatives(names: "Iterable[str]", addresses: "Iterable[str]") -> "list[bytes]":
    """The names and addresses of a machine as a certificate has them (RFC 5280, 4.2.1.6)."""
    dns = [name.encode() for name in dict.fromkeys(names) if name and name.isascii()]
    ip = [ipaddress.ip_address(address.partition("%")[0]).packed for address in addresses]
    return [_der(0x82, name) for name in dns] + [_der(0x87, each) for each in dict.fromkeys(ip)]


def _extension(id: bytes, value: bytes, critical: bool = False) -> bytes:
    mark = _der(0x01, b"\xff") if critical else b""
    return _der(_SEQUENCE, id, mark, _der(_OCTETS, value))


def _point(key: int) -> bytes:
    """The public key that belongs to a secret number, uncompressed (SEC 1, 2.3.3)."""
    x, y = _multiply(key, _G)
    return b"\x04" + x.to_bytes(32, "big") + y.to_bytes(32, "big")


def make_certificate(names: "Sequence[str]", addresses: "Sequence[str]", now: float,
                     key: Optional[int] = None) -> "tuple[str, str]":
    """A certificate that this machine gives itself, and its key, both as PEM. `key` is the secret
    number of the one before, where there was one: who trusts it trusts this one as well."""
    key = key or _new_scalar()
    point = _point(key)
    # In a string of bits none of which is unused (RFC 5480, 2.2).
    bits = _der(_BITS, b"\0", point)
    # Of at most 64 characters (RFC 5280, A.1); what is no Unicode in it is ?.
    common = next(filter(None, names), "Roger")[:64].encode("utf-8", "replace")
    name = _der(_SEQUENCE, _der(_SET, _der(_SEQUENCE, _COMMON_NAME, _der(_TEXT, common))))
    since = now - CERTIFICATE_SINCE
    algorithm = _der(_SEQUENCE, _ECDSA_SHA256)
    extensions = [
        # It may sign itself and nothing else: no authority, in nobody's list of them.
        _extension(_BASIC, _der(_SEQUENCE), critical=True),
        # Bit 0: digitalSignature; seven bits are unused.
        _extension(_KEY_USAGE, _der(_BITS, b"\x07\x80"), critical=True),
        _extension(_EXTENDED, _der(_SEQUENCE, _SERVER_AUTH)),
        # RFC 7093, 2 (1): not every Python has SHA-1.
        _extension(_SUBJECT_KEY, _der(_OCTETS, hashlib.sha256(point).digest()[:20]))]
    alternatives = _alternatives(names, addresses)
    # There is none without content.
    if alternatives:
        extensions.append(_extension(_ALT_NAME, _der(_SEQUENCE, *alternatives)))
    body = _der(
        _SEQUENCE, _der(0xa0, _der_number(2)), _der_number(secrets.randbits(120) | 1), algorithm,
        name, _der(_SEQUENCE, _der_time(since), _der_time(since + CERTIFICATE_FOR)), name,
        _der(_SEQUENCE, _der(_SEQUENCE, _EC_KEY, _P256), bits),
        _der(0xa3, _der(_SEQUENCE, *extensions)))
    certificate = _der(_SEQUENCE, body, algorithm, _der(_BITS, b"\0", _sign(key, body)))
    private = _der(_SEQUENCE, _der_number(1), _der(_OCTETS, key.to_bytes(32, "big")),
                   _der(0xa0, _P256), _der(0xa1, bits))
    return _pem("CERTIFICATE", certificate), _pem("EC PRIVATE KEY", private)


def _pem(label: str, der: bytes) -> str:
    """RFC 7468. What is in it makes no difference to ssl's function."""
    return ssl.DER_cert_to_PEM_cert(der).replace("CERTIFICATE", label)


def _from_pem(label: str, text: str) -> bytes:
    """The DER in the first of these. Raises ValueError."""
    found = re.search(f"-----BEGIN {label}-----([A-Za-z0-9+/=\\s]+)-----END {label}-----", text)
    if found is None:
        raise ValueError(f"there is no {label.lower()} in it")
    return base64.b64decode("".join(found[1].split()), validate=True)


def certificate_key(text: str) -> int:
    """The secret number of a key that make_certificate() made. Raises ValueError."""
    der = _from_pem("EC PRIVATE KEY", text)
    # A SEQUENCE of the number 1 and 32 bytes: see make_certificate().
    if der[2:7] != b"\x02\x01\x01\x04\x20" or not 0 < int.from_bytes(der[7:39], "big") < _N:
        raise ValueError("its key is none of ours")
    return int.from_bytes(der[7:39], "big")


def _still_good(text: str, names: "Sequence[str]", addresses: "Sequence[str]", now: float) -> bool:
    """Whether a kept certificate holds for a while, and for all that this machine is called. Raises
    ValueError where it is damaged, or its key is."""
    der = _from_pem("CERTIFICATE", text)
    # Else a damaged key would become everybody's new one.
    if _point(certificate_key(text)) not in der:
        raise ValueError("its certificate and its key are no pair")
    since, until = certificate_times(der)
    return (since <= now < until - CERTIFICATE_LEFT
            and all(each in der for each in _alternatives(names, addresses)))


def certificate_times(der: bytes) -> "tuple[int, int]":
    """Since when a certificate holds, and until when (Unix seconds). Raises ValueError."""
    times = _TIMES.search(der)
    if times is None:
        raise ValueError("its certificate is none of ours")
    since, until = (calendar.timegm(time.strptime(
        each.decode(), "%y%m%d%H%M%S" if len(each) == 12 else "%Y%m%d%H%M%S"))
        for each in times.groups())
    return since, until


def keep_certificate(path: str, names: "Sequence[str]", addresses: "Sequence[str]",
                     now: float) -> None:
    """Have a file with certificate and key that hold now, for this machine: make it where there is
    none, and another with the same key where it ends soon or is for other addresses.

    Needs ssl. Raises TlsError.
    """
    key: Optional[int] = None
    try:
        with contextlib.suppress(FileNotFoundError), open(path, encoding="ascii") as file:
            kept = file.read(65_536)
            key = certificate_key(kept)
            if _still_good(kept, names, addresses, now):
                # Damage to the rest of it is OpenSSL's to find. No password: it would ask for one.
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(path, password=lambda: b"")
                return
        pems = make_certificate(names, addresses, now, key)
        chatproto.write_private(path, "".join(pems), synced=True)
    except (ssl.SSLError, ValueError) as error:
        reason = "OpenSSL cannot read it" if isinstance(error, ssl.SSLError) else error
        raise TlsError(f"{path} is damaged: {reason}; without it another key is made, "
                               "which everybody has to trust anew") from error
    except OSError as error:
        raise TlsError(f"the certificate in {path} cannot be kept: "
                               f"{error.strerror or error}") from error


# --- The command line ---

def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type: a number of that kind, not negative, nor infinite, nor NaN."""
    def number(text: str) -> Any:
        value = kind(text)
        if not 0 <= value <= 1e9:
            raise ValueError
        return value
    # argparse names it when it complains.
    number.__name__ = "number"
    return number


def _port(text: str) -> int:
    """An argparse type: a port."""
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{escape(text)} is no port, that is a number from 1 to "
                                         f"65535, usually {PORT}; 0 takes a free one")
    return int(text)


def _title(text: str) -> str:
    """An argparse type: what a server is called."""
    if not text.strip() or chatproto.clean_text(text) != text or len(text) > chatproto.MAX_TITLE:
        raise argparse.ArgumentTypeError(
            f"a server's name has 1 to {chatproto.MAX_TITLE} characters")
    return text.strip()


def _host_title(text: str) -> str:
    """An argparse type: the host's name."""
    try:
        return _host_name(text)
    except ProtocolError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _options() -> "dict[str, dict[str, Any]]":
    """The options of the command line but the groups below: their names, and what argparse takes
    for each."""
    return {
        "--bind": dict(default="", metavar="ADDR",
                       help="listen there only (default: every address)"),
        "--name": dict(
            type=_title, default=_machine_name(), metavar="TITLE",
            help="what the server is called, for those who look for one (default: %(default)s)"),
        "--no-discovery": dict(
            action="store_true",
            help="do not answer those who look for a server without knowing its address"),
        "--dns-name": dict(
            action="append", default=[], metavar="NAME",
            help="a name by which browsers may come, besides the machine's own; more than once for "
                 "several"),
        "--host-name": dict(
            type=_host_title, metavar="NAME",
            help="the name under which the host speaks; nobody else may have it or one like it "
                 "(default: Server)"),
        "--motd": dict(metavar="FILE",
                       help="message of the day, pinned above the talk of everybody"),
        "--log": dict(metavar="FILE",
                      help="append what is said to FILE (- is stdout); private messages are not"),
        **_HISTORY_OPTIONS,
        **_LIMIT_OPTIONS,
        **_FILE_OPTIONS,
        "--no-web": dict(
            action="store_true",
            help="nothing for browsers, and no files, even where chat_web.py is there"),
        **_ENCRYPTION_OPTIONS,
        "-v --verbose": dict(action="store_true", help="log more"),
        "--version": dict(action="version", version=f"Roger {chatproto.__version__}")}


# Of what is kept.
_HISTORY_OPTIONS: "dict[str, dict[str, Any]]" = {
    "--history": dict(
        metavar="FILE",
        help="keep everything in this SQLite file, private messages too: an ACK then means that "
             "a message is on disk, and all goes on after a restart or a crash"),
    "--history-sync": dict(
        choices=("full", "normal"), default="full",
        help="normal: faster on a slow disk, but a power cut may take the last acknowledged "
             "messages (a crash of the server alone does not); default full"),
    "--keep": dict(type=_positive(float), default=math.inf, metavar="DAYS",
                   help="delete from the history what is older"),
    "--keep-messages": dict(type=_positive(int), default=math.inf, metavar="N",
                            help="and all but the newest N messages"),
    "--export": dict(
        nargs=2, metavar=("OUT", "FILE"),
        help="write what was said in public, from the history FILE of a server that does not run, "
             "to OUT: text when it ends in .txt, else JSON lines; - is stdout")}
# Of the limits.
_LIMIT_OPTIONS: "dict[str, dict[str, Any]]" = {
    "--grace": dict(
        type=_positive(float), default=DEFAULT.grace, metavar="SECONDS",
        help="how long a lost member stays in the room (default %(default)g)"),
    "--rate": dict(
        type=_positive(float), default=DEFAULT.rate, metavar="N",
        help="messages a second and member, after a burst of 5 N; what is faster is slowed "
             "down and not lost, 0 is no limit (default %(default)g)"),
    "--max-members": dict(type=_positive(int), default=DEFAULT.max_members, metavar="N",
                          help="default %(default)d"),
    "--max-per-address": dict(
        type=_positive(int), default=DEFAULT.max_per_address, metavar="N",
        help="connections from one address; this machine is exempt (default %(default)d)")}
# Of the files that members hand out.
_FILE_OPTIONS: "dict[str, dict[str, Any]]" = {
    "--files": dict(
        metavar="FOLDER",
        help="keep the files that members hand out in FOLDER, where only what the server made "
             "itself is touched (default: with --history the folder FILE.files, else one that is "
             "deleted at the end)"),
    "--max-file": dict(type=_positive(float), default=100, metavar="MB",
                       help="the largest file (default %(default)g)"),
    "--max-files": dict(type=_positive(float), default=1000, metavar="MB",
                        help="all of them together (default %(default)g)"),
    "--no-files": dict(action="store_true", help="no files")}
# Of TLS and the password.
_ENCRYPTION_OPTIONS: "dict[str, dict[str, Any]]" = {
    "--tls": dict(
        action="store_true",
        help="encrypt everything, for browsers as well, and take nothing in the clear; the "
             "certificate is made here where none is given, and kept"),
    "--cert": dict(metavar="FILE", help="use this certificate (PEM); switches --tls on"),
    "--key": dict(metavar="FILE", help="and its key, where that is not in the same file"),
    "--password": dict(
        action="store_true",
        help="let in only who knows the password that is asked for now; switches --tls on"),
    "--password-file": dict(
        metavar="FILE",
        help="the same, but it stands in FILE (or else in the environment's ROGER_PASSWORD)")}


def _parser() -> argparse.ArgumentParser:
    parser = chatproto.Parser(
        prog="chat_server.py",
        description="The server of Roger, a LAN chat that is copied, not installed.",
        epilog=f"""Other limits: a connection has {JOIN_TIMEOUT:g} s to join, {UNJOINED} may be
        about to; a frame has {chatproto.MAX_LINE} bytes, a text {chatproto.MAX_TEXT} characters,
        a name {chatproto.MAX_NAME}; the last {LOG_FRAMES} frames or {LOG_BYTES >> 20} MiB are kept
        for those who come back: who reads so slowly that it falls behind them is dropped.""")
    parser.add_argument("port", nargs="?", type=_port, default=PORT, metavar="PORT",
                        help=f"default {PORT}; 0 takes a free one")
    for names, option in _options().items():
        parser.add_argument(*names.split(), **option)
    return parser


def _machine_name() -> str:
    """What this machine is called, without its domain."""
    name = chatproto.clean_text(socket.gethostname()).partition(".")[0]
    return name[:chatproto.MAX_TITLE] or "Roger"


def _arguments(argv: "Optional[list[str]]") -> argparse.Namespace:
    parser = _parser()
    arguments = parser.parse_args(argv)
    keeps_all = arguments.keep == arguments.keep_messages == math.inf
    if arguments.history is None and not keeps_all:
        parser.error("--keep and --keep-messages need --history FILE")
    if arguments.key and not arguments.cert:
        parser.error("--key needs --cert FILE")
    return arguments


# --- main ---

def _open_history(arguments: argparse.Namespace) -> Optional[HistoryFile]:
    """The history file that the command line asks for. Raises HistoryError."""
    if arguments.history is None:
        return None
    return HistoryFile(os.path.abspath(arguments.history), arguments.history_sync,
                       arguments.keep * 86_400, arguments.keep_messages)


def _identity(arguments: argparse.Namespace, password: Optional[str]) -> Optional[Identity]:
    """What the server shows under TLS, where the command line asks for that. Raises TlsError."""
    if not arguments.tls and not arguments.cert and password is None:
        return None
    if ssl is None:
        raise TlsError("this Python was built without ssl, so there is no --tls (and no password)")
    if arguments.cert:
        return Identity.load(arguments.cert, arguments.key)
    path = f"{arguments.history}.pem" if arguments.history else chatproto.config_path("server.pem")
    addresses = [each.ip for each in chatproto.own_addresses()]
    keep_certificate(path, [socket.gethostname(), "localhost"], addresses, time.time())
    return Identity.load(path)


def _export(output: str, path: str) -> int:
    """--export: return the exit code."""
    try:
        count = export_history(path, output)
        sys.stdout.flush()
    except (HistoryError, OSError) as error:
        if not _nobody_reads(error):
            complain(str(error))
        return 1
    print(f"{count} lines written", file=sys.stderr)
    return 0


def _nobody_reads(error: Exception) -> bool:
    """Whether a write failed as nobody reads our stdout (`| head`).

    Then nothing goes there any more. Windows says EINVAL of a closed pipe.
    """
    closed = (errno.EPIPE, errno.EINVAL) if sys.platform == "win32" else (errno.EPIPE,)
    if not isinstance(error, OSError) or error.errno not in closed:
        return False
    # Python flushes stdout at its end, and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return True


complain = functools.partial(chatproto.complain, "chat_server")


def _load_web(console: Console, invitation: Invitation, names: "list[str]") -> Any:
    """What serves browsers, where chat_web.py and chat_web.html lie beside this file; else None."""
    try:
        import chat_web
    except ModuleNotFoundError as error:
        if error.name != "chat_web":
            raise
        logger.warning("nothing for browsers: chat_web.py is missing, copy it and chat_web.html "
                       "beside chat_server.py")
        return None
    # A name that nobody chose says less than the address.
    title = invitation.name if invitation.name != _machine_name() else ""
    try:
        return chat_web.Web(console, names=names, title=title)
    except (OSError, ValueError) as error:
        # There is no page, or one that is none of ours.
        logger.warning("nothing for browsers: %s", error)
        return None


def _open_files(arguments: argparse.Namespace, server: ChatServer, invitation: Invitation,
                history: Optional[HistoryFile]) -> None:
    """Have members' files kept, where the command line lets them and there is chat_web. Raises
    OSError for a folder that cannot be used."""
    if server.web is None or arguments.no_files:
        return
    import chat_web
    beside = arguments.history and os.path.abspath(arguments.history) + ".files"
    store = chat_web.FileStore(arguments.files or beside, int(arguments.max_file * MEGABYTE),
                               int(arguments.max_files * MEGABYTE), history is not None)
    ask, room = server.ask, server.room
    room.handouts.open(store, history)

    def keep(file: Any) -> None:
        ask(store.keep, file)
        # What is asked now comes with the next batch: the one before is committed then.
        ask(int)
    server.web.clerk = chat_web.Clerk(
        store, start=functools.partial(ask, room.handouts.start), keep=keep,
        give_up=functools.partial(ask, room.handouts.give_up), address=lambda: invitation.url)


def _announce(invitation: Invitation) -> None:
    """The first lines on stdout."""
    try:
        for line in invitation.lines():
            print(line, flush=True)
    except OSError as error:
        if not _nobody_reads(error):
            raise


# What the main thread is told. Signal handlers may interrupt one another and the main thread
# anywhere: only a SimpleQueue may be put into there, an Event would lock itself up.
Orders = queue.SimpleQueue


def _catch_signals(orders: "Orders[str]") -> None:
    meanings = {"SIGINT": INTERRUPT, "SIGTERM": STOP, "SIGBREAK": STOP, "SIGHUP": RELOAD,
                "SIGCONT": RESUME}
    for name, order in meanings.items():
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_, order=order: orders.put(order))
    if sys.platform != "win32":
        # Started with &, a read of the terminal would stop the whole server.
        signal.signal(signal.SIGTTIN, signal.SIG_IGN)


def _heed_closed_window(orders: "Orders[str]", ended: threading.Event) -> Any:
    """On Windows, stop when the console's window is closed, or the user logs off; keep the result.

    The system calls the handler on a thread of its own, and ends the process when it returns, or
    after 5 s.
    """
    if sys.platform != "win32":
        return None
    import ctypes
    ends = {2: "close", 5: "log off", 6: "shut down"}

    def handle(event: int) -> bool:
        if event in ends:
            orders.put(STOP)
            ended.wait(4.5)
        return event in ends
    handler = ctypes.WINFUNCTYPE(ctypes.c_int, ctypes.c_uint)(handle)
    ctypes.windll.kernel32.SetConsoleCtrlHandler(handler, True)
    return handler


def _obey(server: ChatServer, console: Console, line: OperatorLine, orders: "Orders[str]",
          hangs_up: bool) -> None:
    """Until the order to stop, or where it `hangs_up` until its terminal is closed; tell meanwhile
    when nobody comes."""
    advise_at = math.inf if is_loopback(server.bound) else time.monotonic() + FIREWALL_AFTER
    order, renew_at = "", time.monotonic() + RENEW
    try:
        while order != STOP:
            order = _next_order(orders)
            if order == RESUME:
                line.reopen()
            elif order == RELOAD and hangs_up and not sys.stdin.isatty():
                # The terminal was closed, and nobody could end this server any more.
                order = STOP
            elif order == RELOAD:
                logger.info("/reload: %s", console.command("/reload"))
            elif order == INTERRUPT:
                order = STOP if line.may_stop(server.room.entrance.connected) else ""
            if time.monotonic() >= renew_at:
                renew_at += RENEW
                console.renew()
            if time.monotonic() >= advise_at:
                advise_at = math.inf
                if not server.visited:
                    logger.info("%s", firewall_advice(server.port))
        logger.info("closing")
        server.say_goodbye("the server is closing")
        server.server_close()
    finally:
        line.close()


def _next_order(orders: "Orders[str]") -> str:
    """Wait a second for an order; "" when there is none.

    On Windows no signal ends a wait; elsewhere one may come just before it begins.
    """
    try:
        return orders.get(timeout=1)
    except queue.Empty:
        return ""


def _raise_file_limit() -> None:
    """A member takes a descriptor: ask for all that the system allows."""
    if sys.platform == "win32":
        # It has no such limit.
        return
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    # macOS allows "infinity" and refuses what is above its kern.maxfilesperproc, which only a try
    # tells.
    while soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return
        except (OSError, ValueError):
            wanted = wanted * 3 // 4
    if soft < 1024:
        logger.warning("no more than about %d connections: the limit of open files", soft)


def _set_up_logging(verbose: bool) -> "logging.StreamHandler[Any]":
    """The log goes to stderr. Whoever joins is a line, so a line has to be cheap."""
    handler: "logging.StreamHandler[Any]" = logging.StreamHandler()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S",
                        handlers=[handler], level=logging.DEBUG if verbose else logging.INFO)
    # As the logging HOWTO says, under "Optimization": a third of the time of a line.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # A closed stderr is no reason for a traceback.
    logging.raiseExceptions = False
    return handler


def _tune_interpreter() -> None:
    """Settings of Python's and of its C library's, and what they bought."""
    # With 700, the default, a third of the time of a thousand who join is spent on looking for
    # garbage. (PyPy collects in another way.)
    if hasattr(gc, "set_threshold"):
        gc.set_threshold(50_000, 20)
    # A thread that waits for the interpreter asks for it once in each interval, and while 10,000
    # ACKs come at once all these threads search among all that wait (futex_wake): with the default
    # of 5 ms that took both cores for seconds each time, with 1 s it still did sometimes. Instead
    # each thread has to let go by itself: none computes for long without waiting for a socket or a
    # lock. What a peer sends is charged before it is decoded, a line or READ_FRAMES of a WebSocket
    # at a time, and the worst of lines takes 4 ms.
    sys.setswitchinterval(10)
    # glibc gives threads up to eight pools of memory for each core, and what was freed in one is of
    # no use to another: a tenth more memory with many members, and twice as much under some
    # attacks. Two are enough, as who allocates holds the interpreter.
    if sys.platform == "linux":
        # Another C library has no such thing, and some Pythons are built without ctypes.
        with contextlib.suppress(ImportError, OSError, AttributeError):
            import ctypes
            libc = ctypes.CDLL(None)
            libc.mallopt(M_ARENA_MAX, 2)
            # A text of 8,192 emoji has pages of its own, and leaves no hole among what is small.
            libc.mallopt(M_MMAP_THRESHOLD, 32 * 1024)


def _build(arguments: argparse.Namespace, line: OperatorLine,
           stop: Callable[[], None]) -> "tuple[ChatServer, Console, ChatLog, Invitation]":
    """Everything but the threads of the server.

    Raises OSError, UnicodeError for an address that cannot be one, ProtocolError for a message of
    the day that is too long and for what is no password, HistoryError, TlsError.
    """
    password = chatproto.given_password(arguments.password, arguments.password_file)
    load_identity = functools.partial(_identity, arguments, password)
    settings = Settings(arguments.grace, arguments.rate, arguments.max_members,
                        arguments.max_per_address)
    chat_log = ChatLog(arguments.log, line)
    history = _open_history(arguments)
    try:
        server = ChatServer(arguments.bind, arguments.port, settings, chat_log.write, history,
                            load_identity())
        invitation = Invitation(server, arguments.name)
        console = Console(server, line, arguments.motd, invitation, stop, load_identity)
        # Directly: the sequencer does not run yet.
        server.room.host.begin(console.read_motd(), arguments.host_name)
        if password is not None:
            server.room.host.lock(password)
        if not arguments.no_web:
            server.web = _load_web(console, invitation, arguments.dns_name)
        _open_files(arguments, server, invitation, history)
    except BaseException:
        if history is not None:
            history.close()
        raise
    return server, console, chat_log, invitation


def _why_not(error: Exception, arguments: argparse.Namespace) -> str:
    """Why the server cannot start, and what to do."""
    if isinstance(error, HistoryError):
        return f"cannot keep the history in {error}"
    if isinstance(error, TlsError) or getattr(error, "code", "") == "password":
        return str(error)
    if isinstance(error, ProtocolError):
        return f"the message of the day, {arguments.motd}, is too long: {error}"
    if not isinstance(error, OSError) or isinstance(error, socket.gaierror):
        return (f"--bind {arguments.bind}: there is no machine of that name; this one has "
                + _own_hosts())
    if error.filename is not None:
        return _why_no_file(error)
    port, where = arguments.port, f"cannot listen on port {arguments.port}"
    if error.errno == errno.EADDRINUSE:
        return (f"{where}: it is in use, perhaps by another chat server; {_free_port(arguments)} "
                f"is free, so try: {_python()} chat_server.py {_free_port(arguments)}")
    if error.errno == errno.EADDRNOTAVAIL:
        return (f"{where} of {arguments.bind}: that is no address of this machine; it has "
                + _own_hosts())
    if error.errno == errno.EACCES and port < 1024:
        return (f"{where}: ports below 1024 are the administrator's; "
                f"try: {_python()} chat_server.py {PORT}")
    return f"{where}: {error.strerror or error}"


def _why_no_file(error: OSError) -> str:
    """Why a file cannot be used."""
    name = escape(str(error.filename))
    if os.path.isdir(error.filename):
        return f"{name} is a folder; a file is wanted"
    if error.errno == errno.ENOENT:
        folder = os.path.dirname(os.path.abspath(error.filename))
        missing = "" if os.path.isdir(folder) else " (nor its folder)"
        return f"{name}: there is no such file{missing}"
    return f"{name} cannot be opened: {error.strerror or error}"


def _own_hosts() -> str:
    return ", ".join([each.host for each in chatproto.lan_addresses()] + ["127.0.0.1"])


def _free_port(arguments: argparse.Namespace) -> int:
    """A port near the one that is in use; 0, which takes any, where none is free."""
    for port in range(arguments.port + 1, min(arguments.port + 20, 65_536)):
        address, family = _bind_address(arguments.bind, port)
        with socket.socket(family) as probe, contextlib.suppress(OSError):
            probe.bind(address)
            return port
    return 0


def main(argv: "Optional[list[str]]" = None) -> int:
    """Run the server until it is told to stop; return the exit code."""
    chatproto.print_utf8()
    arguments = _arguments(argv)
    if arguments.export is not None:
        return _export(*arguments.export)
    log = _set_up_logging(arguments.verbose)
    _raise_file_limit()
    _tune_interpreter()
    orders: "Orders[str]" = Orders()
    line = OperatorLine()
    try:
        server, console, chat_log, invitation = _build(arguments, line, lambda: orders.put(STOP))
    except (OSError, UnicodeError, ProtocolError, HistoryError, TlsError) as error:
        complain(_why_not(error, arguments))
        return 1
    has_terminal = sys.stdin is not None and sys.stdin.isatty()
    # Where HUP was ignored when we were started, as nohup has it, it shall go on unseen.
    hangs_up = has_terminal and (sys.platform == "win32"
                                 or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN)
    _catch_signals(orders)
    ended = threading.Event()
    handler = _heed_closed_window(orders, ended)
    with contextlib.ExitStack() as at_the_end:
        at_the_end.callback(ended.set)
        at_the_end.callback(chat_log.close)
        server.start()
        if not arguments.no_discovery:
            at_the_end.callback(Responder(server, arguments.name).close)
        _announce(invitation)
        if has_terminal:
            if line.open() and sys.stderr.isatty():
                log.setStream(line)
            threading.Thread(target=console.run, name="console", daemon=True).start()
        _obey(server, console, line, orders, hangs_up)
    # So long the system may have called it.
    del handler
    return 0


if __name__ == "__main__":
    sys.exit(main())
