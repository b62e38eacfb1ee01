#!/usr/bin/env python3
# -*- coding: utf-8 -*-
"""chat_server: the server role of Roger, a LAN chat in which every message is acknowledged.

    python chat_server.py 8087

The protocol and its promises are in chatproto's docstring. The way of a message through this file:

    client ──▶ Connection.run (one thread a member)        Sequencer (one thread)                    members
               read, decode, slow down floods ───────────▶ inbox: queue.Queue ──▶ all that waits:
                                                           Room gives ids and places, then flush():
                                                           one commit to the HistoryFile, then
                                                           encoded once, to every member, ─────────▶ MessageManager.send:
                                                           then the ACKs of the speakers             now, or when its
               ACK of the member: opens its window ◀─────────────────────────────────────────────── window opens

Room is the whole state (members, names, sessions, log) and runs on the sequencer's thread alone: so it needs no lock and has
one order by construction. It touches no socket, starts no thread and reads no clock but the ones it is given. Everything that
changes it is one of its methods, put into the inbox with its arguments: a frame, a lost connection, the end of a grace time,
a boot from the console.

With --history FILE the log, the sessions and the newest id are in an SQLite file as well. What a batch of events decided is
committed in one transaction before anything of it goes out, so whatever anybody was told, ACKs included, is on disk; after
kill -9 the Room goes on where the file ends, and everybody resumes. A commit that fails holds the room: nothing more is
decided, sent or acknowledged, what members send waits with them, in their sockets and in at most HELD frames here, and the
same commit is tried again. Members who were away for long are fed from the file, a piece each time their window opens; the
log in memory is the newest part of it. One thing does not go on after a restart: receipts for what was said before it.

Where chat_web.py lies beside this file, browsers are served on the same port: it looks at a connection's first bytes, and what a
browser upgrades to a WebSocket is a Connection like any other.

Threads: "accept" (serve_forever), "member ADDRESS" (one a connection), "sequencer", "alarm" (chatproto.Alarm's timer),
"console" (when stdin is a terminal) and the main thread, which waits for a signal. Locks: ChatServer has one, for its set of
connections; a leaf. Left out on purpose: rooms, accounts, encryption.
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
import bisect
import codecs
import collections
import contextlib
import errno
import functools
import gc
import hashlib
import hmac
import io
import ipaddress
import itertools
import logging
import math
import os
import pathlib
import queue
import re
import secrets
import selectors
import socket
import socketserver
import threading
import time
from collections import deque
from typing import Any, Callable, Collection, Iterator, NamedTuple, NoReturn, Optional

try:
    import sqlite3
except ImportError:             # a Python that was built without it: everything but --history works
    sqlite3 = None              # type: ignore[assignment]

try:
    import chatproto
except ModuleNotFoundError as error:
    if error.name != "chatproto":
        raise
    sys.exit("chat_server: chatproto.py is missing: copy it into the same folder as chat_server.py")
from chatproto import (FROM_CLIENT, LONE_ACK, PORT, WINDOW, Ack, Alarm, Booted, Chat, ConnectionClosed, Error, FrameDecoder,
                       FrameError, Heard, Invalid, Join, Joined, Leave, Left, Message, MessageManager, MessageSocket,
                       PendingMessage, Ping, ProtocolError, Recall, Recalled, Rename, Renamed, Say, Unknown, Welcome, escape,
                       name_key)

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
LISTED = 1_000                  # members in the list of users. 10,000 who come and are told of each other would be 50 million
                                # frames, minutes of work: so whoever comes later is in the list when there is room in it
USERS_BYTES = 24 * 1024         # bytes of names in a welcome: with a message of the day it still fits on a line.
                                # Where either is exceeded `here` tells how many there are
REASON = 200                    # characters of the reason of a boot
REFUSALS = 1_000                # refused frames that a member may leave unconfirmed; then it is too slow
BOOTED = 1_000                  # sessions whose owners were put out and may not have heard it yet
NEWS_EVERY = 0.1                # seconds between two pieces of joins and leaves alone: a class that comes in is a few pieces
BATCH_BYTES = 1024 * 1024       # bytes of one flush: a fraction of what may wait for a member
ACCEPT_POLL = 60.0 if sys.platform == "linux" else 0.5      # seconds until an acceptor that nothing wakes sees that it has to end
PACE = 0.0007                   # seconds between two newcomers, while everybody is told of each: so those who talk do not wait
                                # for a thousand who join at once (their p99 doubles at most; without, it is 10 times as long)
BUSY = 8                        # events in the inbox that keep newcomers waiting in the listening socket's queue,
ADMIT_WAIT = 0.02               # seconds at most, each,
ADMIT_POLL = 0.0002             # looked at so often
UNJOINED = 2_000                # connections that have not joined yet
SAY_AGAIN = 60.0                # seconds before a complaint is repeated: to a member that floods, or in the log

APPLICATION_ID = 0x526F6772     # "Rogr": marks a history file as ours
SCHEMA_VERSION = 1              # of the history file
LOCK_WAIT = 0.5                 # seconds to wait for a history file that another process has locked
HOLD_PAUSE = 0.5                # seconds until a commit that failed is tried again
SLOW_COMMIT = 0.25              # seconds of a commit that are worth a line in the log
FEED_FRAMES = 500               # entries read from the file at once for a member that catches up,
FEED_BYTES = 256 * 1024         # or so many bytes of them: what such a member costs in memory, twice
SCAN = 10_000                   # ids looked at in one step: the room waits for it, a few milliseconds
RECALL_MOST = 100               # messages in the answer to one request for older ones
RECALL_BYTES = 60_000           # bytes of them: the answer is one line
TRIM_ROWS = 500                 # entries deleted in one step by --keep and --keep-messages, a few milliseconds
TRIM_EVERY = 1.0                # seconds from one step to the next while there is something to delete,
TRIM_LATER = 30.0               # and while there is not
UNSYNCED_IDS = 1 << 20          # more ids than a power cut can take along with --history-sync normal: they are skipped

STOP, RELOAD, RESUME = "stop", "reload", "resume"       # orders for the main thread

logger = logging.getLogger("roger")


class Settings(NamedTuple):
    """The limits that the command line sets."""

    grace: float = 30.0             # seconds that a lost member stays in the room
    rate: float = 20.0              # messages a second and member; 0 is no limit. The burst is five seconds' worth
    max_members: int = 10_000
    max_per_address: int = 200      # connections; this machine itself is exempt


# --- The history file ---

class HistoryError(Exception):
    """The history file cannot be used: the text says which and why."""


_SCHEMA = (
    """CREATE TABLE state (
        epoch TEXT NOT NULL,            -- which run of ids this is
        last INTEGER NOT NULL,          -- the newest id that was given
        forgotten INTEGER NOT NULL,     -- the newest id that --keep or --keep-messages deleted
        unsynced INTEGER NOT NULL       -- 1: a server with --history-sync normal has it open, or had and was not closed
    )""",
    """CREATE TABLE entries (
        id INTEGER PRIMARY KEY,         -- its place in the order
        at REAL NOT NULL,               -- Unix seconds, UTC
        kind TEXT NOT NULL,             -- chat, joined, left, renamed, error
        sender TEXT,
        recipient TEXT,                 -- of a private message
        body TEXT NOT NULL,             -- the frame as it is sent, without its line end
        one INTEGER,                    -- sessions.number of the one or the two it is for; NULL is everybody
        other INTEGER,
        about INTEGER                   -- of an error: the frame that it refuses
    )""",
    "CREATE INDEX refusals ON entries (about) WHERE about IS NOT NULL",
    """CREATE TABLE sessions (
        number INTEGER PRIMARY KEY,     -- never given again
        secret_hash BLOB NOT NULL UNIQUE,
        name TEXT NOT NULL,
        begin INTEGER NOT NULL,         -- it hears everything after this id,
        history_from INTEGER NOT NULL,  -- and what was said in public after this one
        got INTEGER NOT NULL,           -- the newest id of its own frames
        acked INTEGER NOT NULL,         -- the newest id of ours that it confirmed, when this was written
        left_at REAL,                   -- when it left; the SESSIONS that left last are kept. NULL: it is in the room
        booted TEXT                     -- why it was put out
    )""",
)

_WORDS = (                      # what SQLite says -> what that means here
    ("locked", "it is in use by another program (a second server?)"),
    ("not a database", "it is not a history of Roger"),
    ("malformed", "it is damaged: keep a copy of it, and put back an older one or start a new one"),
    ("is full", "the disk is full"),
    ("readonly", "it is read-only"),
    ("disk I/O", "the disk fails or is full (disk I/O error)"),
    ("unable to open", "it cannot be opened or made there"),
)


class HistoryFile:
    """The log, the sessions and the newest id in an SQLite file: what an acknowledgement means with --history.

    save() is one transaction and durable when it returns (with `sync` "normal": after a crash of the server, but not of the
    machine). One connection, which the sequencer alone uses, and which locks the file for as long as it is open: SQLite up
    to 3.51.2 can damage a file in WAL mode that has two. So a second server and --export are refused meanwhile.
    Every method raises HistoryError, in words for the operator, when the file cannot be read or written.
    """

    def __init__(self, path: str, sync: str = "full", keep_seconds: float = math.inf,
                 keep_messages: float = math.inf) -> None:
        self.path = path
        self._keep_seconds = keep_seconds
        self._keep_messages = keep_messages
        self._identity: "list[tuple[int, int]]" = []    # device and inode of the file and of its -wal
        self.commits = 0
        self.seconds = 0.0                      # of all commits together
        self.slowest = 0.0                      # seconds of one
        self._connection = self._connect(path)
        try:
            with self._in_words():
                self._prepare(sync)
        except HistoryError:
            self._connection.close()
            raise

    def save(self, last: int, entries: "list[tuple[Any, ...]]", sessions: "list[tuple[Any, ...]]",
             removed: "list[int]") -> float:
        """Commit the newest id, entries (rows as entry_row() makes them) and sessions (rows of Session.row()), and forget
        sessions by number; return the seconds that it took. May be repeated with the same after it failed: nobody knows
        whether a commit that failed is on the disk."""
        started = time.perf_counter()
        with self._in_words(), self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", entries)
            self._connection.executemany("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", sessions)
            self._connection.executemany("DELETE FROM sessions WHERE number = ?", [(number,) for number in removed])
            self._connection.execute("UPDATE state SET last = ?", (last,))
        self.last = last
        self._messages += sum(row[2] == Chat.type for row in entries)
        took = time.perf_counter() - started
        self.commits += 1
        self.seconds += took
        self.slowest = max(self.slowest, took)
        return took

    def sessions(self) -> "list[tuple[Any, ...]]":
        """Every row of sessions, those who left in the order of leaving."""
        with self._in_words():
            return self._connection.execute("SELECT * FROM sessions ORDER BY left_at, number").fetchall()

    def refusals(self) -> "list[tuple[int, int, int, str]]":
        """The errors that refuse a frame and that may not be confirmed yet: number of the session, frame, id, body."""
        with self._in_words():
            return self._connection.execute(
                "SELECT one, about, id, body FROM entries JOIN sessions ON number = one WHERE about IS NOT NULL AND id > acked"
                " ORDER BY id").fetchall()

    def recent(self, count: int) -> "list[Entry]":
        """The last public messages."""
        with self._in_words():
            rows = self._connection.execute("SELECT id, body FROM entries WHERE kind = 'chat' AND one IS NULL"
                                            " ORDER BY id DESC LIMIT ?", (count,)).fetchall()
        return [Entry(id, _frame(body), None, True) for id, body in reversed(rows)]

    def newest(self, count: int, size: int) -> "tuple[list[tuple[Any, ...]], int]":
        """The newest rows (id, kind, body, one, other), at most so many or of so many bytes, and the id before them."""
        rows: "list[tuple[Any, ...]]" = []
        with self._in_words():
            for row in self._connection.execute("SELECT id, kind, body, one, other FROM entries ORDER BY id DESC"):
                size -= len(row[2])
                if len(rows) == count or size < 0:
                    return rows[::-1], row[0]
                rows.append(row)
        return rows[::-1], self.forgotten

    def after(self, id: int, upto: int, number: int) -> "tuple[list[Entry], int]":
        """A piece of what session `number` may hear of the entries after `id` up to `upto`, and up to which id it is whole."""
        end, size = min(upto, id + SCAN), 0
        piece: "list[Entry]" = []
        with self._in_words():
            for row in self._connection.execute(
                    "SELECT id, body, kind = 'chat' AND one IS NULL FROM entries WHERE id > ? AND id <= ?"
                    " AND (one IS NULL OR one = ? OR other = ?) ORDER BY id LIMIT ?", (id, end, number, number, FEED_FRAMES)):
                piece.append(Entry(row[0], _frame(row[1]), None, bool(row[2])))
                size += len(row[1])
                if len(piece) == FEED_FRAMES or size >= FEED_BYTES:
                    return piece, row[0]
            if not piece and end < upto:                # past a gap in one step
                following = self._connection.execute("SELECT min(id) FROM entries WHERE id > ?", (end,)).fetchone()[0]
                end = upto if following is None else min(upto, following - 1)
        return piece, end

    def before(self, id: int, count: int, number: int) -> "tuple[list[tuple[int, bytes]], Optional[int]]":
        """The newest messages before `id` that session `number` may hear, newest first, and where to go on; None: nowhere."""
        end = max(0, id - SCAN)
        with self._in_words():
            rows = self._connection.execute(
                "SELECT id, body FROM entries WHERE id < ? AND id >= ? AND id > ? AND kind = 'chat'"
                " AND (one IS NULL OR one = ? OR other = ?) ORDER BY id DESC LIMIT ?",
                (id, end, self.forgotten, number, number, count)).fetchall()
            if len(rows) == count:
                end = rows[-1][0]
            older = self._connection.execute("SELECT max(id) FROM entries WHERE id < ? AND id > ?",
                                             (end, self.forgotten)).fetchone()[0]
        return [(row[0], _frame(row[1])) for row in rows], None if older is None else older + 1

    def trim(self, now: float) -> bool:
        """Delete a few of the entries that are older than `keep_seconds` or too many; return whether there were any."""
        cut, messages = self.forgotten, self._messages
        with self._in_words():
            for id, at, kind in self._connection.execute("SELECT id, at, kind FROM entries WHERE id > ? ORDER BY id LIMIT ?",
                                                         (cut, TRIM_ROWS)).fetchall():
                if at >= now - self._keep_seconds and messages <= self._keep_messages:
                    break
                cut = id
                messages -= kind == Chat.type
            if cut == self.forgotten:
                return False
            with self._transaction():
                self._delete(self.forgotten, cut)
                self._connection.execute("UPDATE state SET forgotten = ?", (cut,))
            self.forgotten, self._messages = cut, messages
            self._connection.executescript("PRAGMA incremental_vacuum(256)")       # execute() would free one page only
        return True

    def close(self) -> None:
        """Give the file back. Not while another thread uses it; may be called twice."""
        with contextlib.suppress(sqlite3.Error, HistoryError):
            self._check_place()
            self._connection.execute("UPDATE state SET unsynced = 0")       # the close writes everything through
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    # Inside

    def _connect(self, path: str) -> Any:
        if sqlite3 is None:
            raise HistoryError(f"{path}: this Python was built without sqlite3")
        if os.path.isfile(path) and 0 < os.path.getsize(path) < 512:    # SQLite takes a very short file for an empty one
            raise HistoryError(f"{path}: it is not a history of Roger")
        if os.path.exists(path) and not os.access(path, os.W_OK):       # SQLite would say "disk I/O error"
            raise HistoryError(f"{path}: it is read-only")
        if path != ":memory:":
            with contextlib.suppress(OSError):          # private messages are in it: only for its owner; SQLite says what is wrong
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        try:                                            # another thread opens it than the one that uses it
            return sqlite3.connect(path, timeout=LOCK_WAIT, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise HistoryError(self._explain(error)) from error

    def _prepare(self, sync: str) -> None:
        """Lock the file, refuse what is not ours, make what is new."""
        execute = self._connection.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")      # before the first look: so no second process shares the WAL
        execute("PRAGMA fullfsync = ON")                # macOS: fsync() alone leaves it in the disk's cache
        execute("PRAGMA checkpoint_fullfsync = ON")
        execute("PRAGMA synchronous = FULL")
        tables = execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not tables and _pragma(self._connection, "application_id") == 0:
            self._create()
        _check_ours(self._connection, self.path)
        broken = execute("PRAGMA quick_check(1)").fetchone()[0]
        if broken != "ok":
            raise HistoryError(f"{self.path}: it is damaged ({escape(broken.splitlines()[-1])}): keep a copy of it, and put "
                               "back an older one or start a new one")
        if _pragma(self._connection, "journal_mode = WAL") not in ("wal", "memory"):
            raise HistoryError(f"{self.path}: its disk cannot hold a WAL")
        execute("PRAGMA journal_size_limit = 16777216")
        execute("PRAGMA synchronous = " + sync)
        self.epoch, self.last, self.forgotten, unsynced = execute("SELECT * FROM state").fetchone()
        if unsynced:
            self.last += UNSYNCED_IDS                   # what the power cut took had ids: they do not come again
        with self._transaction():
            execute("UPDATE state SET last = ?, unsynced = ?", (self.last, sync == "normal"))
            self._delete(0, self.forgotten)             # refusals that outlived what was deleted around them
        self._messages = 0
        if self._keep_messages < math.inf:
            self._messages = execute("SELECT count(*) FROM entries WHERE kind = 'chat'").fetchone()[0]
        if self.path != ":memory:":
            self._identity = self._place()

    def _create(self) -> None:
        """All in one transaction and before the file has a WAL: what is there of a file is ours, or nothing is."""
        self._connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        with self._transaction():
            for statement in _SCHEMA:
                self._connection.execute(statement)
            self._connection.execute("INSERT INTO state VALUES (?, 0, 0, 0)", (secrets.token_hex(8),))
            self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _delete(self, after: int, upto: int) -> None:
        """Delete entries, but no refusal that its member may not have seen: its ACK would become a false yes."""
        self._connection.execute("DELETE FROM entries WHERE id > ? AND id <= ? AND (about IS NULL OR NOT EXISTS "
                                 "(SELECT 1 FROM sessions WHERE number = one AND acked < entries.id))", (after, upto))

    @contextlib.contextmanager
    def _transaction(self) -> "Iterator[None]":
        """All that is executed inside, or nothing of it."""
        self._check_place()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):    # some errors have rolled it back already
                self._connection.execute("ROLLBACK")
            raise

    def _place(self) -> "list[tuple[int, int]]":
        return [(found.st_dev, found.st_ino) for found in (os.stat(self.path), os.stat(self.path + "-wal"))]

    def _check_place(self) -> None:
        """Raise HistoryError if the file was deleted or replaced: what is written to it now would be gone with our process."""
        try:
            if not self._identity or self._place() == self._identity:
                return
        except OSError:
            pass
        raise HistoryError(f"{self.path}: it (or its -wal) was deleted, moved or replaced: put it back, or restart the server")

    @contextlib.contextmanager
    def _in_words(self) -> "Iterator[None]":
        """Turn what sqlite3 raises into a HistoryError."""
        try:
            yield
        except sqlite3.Error as error:
            raise HistoryError(self._explain(error)) from error

    def _explain(self, error: Exception) -> str:
        text = str(error)
        return f"{self.path}: " + next((words for fragment, words in _WORDS if fragment in text), text)


def entry_row(message: Message, entry: Entry, now: float) -> "tuple[Any, ...]":
    """The row of entries for a message and its place."""
    audience = entry.audience or ()
    sender = getattr(message, "sender", None) or getattr(message, "name", None)
    return (entry.id, getattr(message, "at", now), message.type, sender, getattr(message, "to", None),
            entry.frame[:-1].decode(), audience[0].number if audience else None,
            audience[1].number if len(audience) > 1 else None, getattr(message, "about", None))


def _frame(body: str) -> bytes:
    return body.encode() + b"\n"


def _pragma(connection: Any, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _check_ours(connection: Any, path: str) -> None:
    """Raise HistoryError if the file is another program's, or a newer Roger's."""
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise HistoryError(f"{path}: it is an SQLite file of another program")
    version = _pragma(connection, "user_version")
    if version != SCHEMA_VERSION:
        raise HistoryError(f"{path}: a newer Roger wrote it (its format is {version}, this one knows {SCHEMA_VERSION})")


def export_history(path: str, output: str) -> int:
    """Write what was said in public, who came and who went to `output`: lines of text when it ends in .txt, else JSON, a
    frame a line; "-" is stdout. Only reads `path`. Return the number of lines; raises HistoryError and OSError."""
    if sqlite3 is None:
        raise HistoryError(f"{path}: this Python was built without sqlite3")
    if not os.path.isfile(path):
        raise HistoryError(f"{path}: there is no such file")
    if os.path.exists(output) and os.path.samefile(path, output):
        raise HistoryError(f"{path}: it cannot be exported into itself")
    count, uri = 0, pathlib.Path(path).absolute().as_uri() + "?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, timeout=LOCK_WAIT, uri=True)) as file:
            _check_ours(file, path)
            rows = file.execute("SELECT body FROM entries WHERE one IS NULL ORDER BY id")
            with (contextlib.nullcontext(sys.stdout) if output == "-" else open(output, "w", encoding="utf-8")) as lines:
                for body, in rows:
                    lines.write((_exported(body) if output.endswith(".txt") else body) + "\n")
                    count += 1
    except sqlite3.Error as error:
        words = next((words for fragment, words in _WORDS if fragment in str(error)), str(error))
        raise HistoryError(f"{path}: {words}") from error
    return count


def _exported(body: str) -> str:
    """The line of the chat log for a frame."""
    message: Any = chatproto.decode(body.encode(), chatproto.INSTRUCTIONS[chatproto.FROM_SERVER])
    line = (f"<{message.sender}> {escape(message.text)}" if isinstance(message, Chat)
            else f"* {message.name} joined" if isinstance(message, Joined)
            else _left_line(message) if isinstance(message, Left)
            else f"* {message.name} is now {message.to}" if isinstance(message, Renamed) else escape(body))
    return time.strftime("[%Y-%m-%d %H:%M:%S] ", time.localtime(getattr(message, "at", 0))) + line


def _left_line(left: Left) -> str:
    booted = left.reason.startswith("booted")
    return f"* {left.name} " + (f"was {escape(left.reason)}" if booted else f"left ({escape(left.reason)})")


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
        """Keep `entry`."""
        self._entries.append(entry)
        self._bytes += len(entry.frame)
        if entry.is_chat and entry.audience is None:
            self._recent.append(entry)

    def load(self, entries: "list[Entry]", recent: "list[Entry]", forgotten: int) -> None:
        """Begin with what the history file has."""
        for entry in entries:
            self.append(entry)
        self._recent.clear()
        self._recent.extend(recent)
        self.forgotten = forgotten

    def trim(self) -> None:
        """Forget the oldest tenth when a bound is reached. Not before the file has what a batch appended."""
        while len(self._entries) > LOG_FRAMES or self._bytes > LOG_BYTES:
            self._forget(len(self._entries) // 10 + 1)

    def forget(self, upto: int) -> None:
        """Forget everything up to an id."""
        self._forget(bisect.bisect_left(self._entries, (upto + 1,)))
        self.forgotten = max(upto, self.forgotten)
        while self._recent and self._recent[0].id <= upto:
            self._recent.popleft()

    def _forget(self, count: int) -> None:
        if count:
            self.forgotten = self._entries[count - 1].id
            self._bytes -= sum(len(old.frame) for old in self._entries[:count])
            del self._entries[:count]

    def after(self, id: int, session: Session) -> "list[Entry]":
        """What `session` should hear of the entries after `id`."""
        start = bisect.bisect_left(self._entries, (id + 1,))        # an Entry compares by its id first
        return [entry for entry in self._entries[start:] if entry.audience is None or session in entry.audience]

    def before(self, id: int, count: int, session: Session) -> "tuple[list[tuple[int, bytes]], Optional[int]]":
        """The newest messages before `id` that `session` may hear, newest first, and where to go on; None: nowhere here."""
        found: "list[tuple[int, bytes]]" = []
        start = bisect.bisect_left(self._entries, (id,))
        for entry in reversed(self._entries[max(0, start - SCAN):start]):
            if len(found) == count:
                return found, entry.id + 1
            if entry.is_chat or entry.audience and session in entry.audience and entry.frame.startswith(b'{"type":"chat"'):
                found.append((entry.id, entry.frame))
        return found, self._entries[start - SCAN].id if start > SCAN else None

    def recent(self, after: int) -> "list[Entry]":
        """The last HISTORY public messages, of those with an id above `after`."""
        return [entry for entry in self._recent if entry.id > after]


class Session:
    """A member: in the room, in its grace time, or remembered after it left. Only the sequencer changes it."""

    __slots__ = ("number", "name", "secret_hash", "begin", "history_from", "here_since", "got", "present", "link", "lost_at",
                 "left_at", "booted", "fed", "receipts", "refusals", "allowance", "_acked")

    def __init__(self, number: int, secret_hash: bytes, begin: int, history_from: int) -> None:
        self.number = number            # its own for good, in the history file: who private entries are for
        self.name = ""
        self.secret_hash = secret_hash
        self.begin = begin              # it hears everything after this id,
        self.history_from = history_from    # and what was said in public after this one
        self.here_since = begin         # the newest id when it came into the room, for receipts
        self.got = 0                    # the newest id of its own frames that has its place: what an ACK confirms
        self.present = True             # in the room, connected or in its grace time
        self.link: Optional[Connection] = None
        self.lost_at = math.inf         # when the connection was lost, by the room's clock
        self.left_at: Optional[float] = None            # when it left, by the wall clock; only the history file asks
        self.booted: Optional[str] = None               # why it was put out
        self.fed: Optional[int] = None  # while it catches up: the newest id that it was sent. None: it is live, or away
        self.receipts = False           # tell it who heard its messages
        self.refusals: "list[tuple[int, Entry]]" = []   # what was refused, and by which error; until it is confirmed
        self.allowance: Optional[Allowance] = None      # its flood limit, which a new connection does not fill again
        self._acked = begin             # the newest id that it confirmed, while there is no connection

    @property
    def acked(self) -> int:
        """The newest id of ours that the member has confirmed."""
        return self.link.manager.acked if self.link else self._acked

    def unlink(self) -> None:
        """Forget the connection, and remember how far it came."""
        self._acked, self.link = self.acked, None

    def row(self) -> "tuple[Any, ...]":
        """What the history file keeps of it."""
        return (self.number, self.secret_hash, self.name, self.begin, self.history_from, self.got, self.acked, self.left_at,
                self.booted)

    @classmethod
    def from_row(cls, row: "tuple[Any, ...]") -> Session:
        """The session of a row: away, and out of the room if it has left."""
        session = cls(*row[:2], *row[3:5])
        session.name, session.got, session._acked, session.left_at, session.booted = row[2], *row[5:]
        session.present = session.left_at is None
        return session

    def confirmed_for(self, seen: int) -> int:
        """The `got` of a welcome: up to the first refusal that the member has not seen, which an ACK would turn into a yes."""
        unseen = [about - 1 for about, error in self.refusals if error.id > seen]
        return min([self.got, *unseen])


class UserList:
    """The list of users that a welcome brings: at most LISTED members; the others wait for a place, in their order."""

    def __init__(self) -> None:
        self._listed: "dict[Session, None]" = {}
        self._waiting: "dict[Session, None]" = {}
        self._encoded: Optional[bytes] = b""            # the names, as many as fit; None: to be made anew
        self._count = 0                                 # how many these are

    def __contains__(self, session: Session) -> bool:
        return session in self._listed

    @property
    def is_full(self) -> bool:
        """Whether who comes next has to wait for a place."""
        return len(self._listed) >= LISTED

    def add(self, session: Session) -> bool:
        """A member has come; return whether it is in the list."""
        if self.is_full:
            self._waiting[session] = None
            return False
        self._listed[session] = None
        if self._encoded is not None:                   # a hundredth of what all names would take
            encoded = b",".join(filter(None, (self._encoded, chatproto.encode_strings([session.name]))))
            if len(encoded) <= USERS_BYTES:
                self._encoded = encoded
                self._count += 1
        return True

    def remove(self, session: Session) -> Optional[Session]:
        """A member has gone; return who has its place now."""
        self._waiting.pop(session, None)
        if session not in self._listed:
            return None
        del self._listed[session]
        self.renamed()
        successor = next(iter(self._waiting), None)
        if successor is not None:
            del self._waiting[successor]
            self._listed[successor] = None
        return successor

    def renamed(self) -> None:
        """A member has another name."""
        self._encoded = None

    def encoded(self) -> "tuple[bytes, int]":
        """The names as they are in a frame, joined by commas, and how many there are: as many as USERS_BYTES hold."""
        if self._encoded is None:
            names = [member.name for member in self._listed]
            self._encoded = chatproto.encode_strings(names)
            while len(self._encoded) > USERS_BYTES:
                del names[-1 - len(names) // 20:]
                self._encoded = chatproto.encode_strings(names)
            self._count = len(names)
        return self._encoded, self._count


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
                 wall_clock: Callable[[], float] = time.time, record: Callable[[str], None] = lambda line: None,
                 history: Optional[HistoryFile] = None) -> None:
        self._alarm = alarm
        self._post = post                       # puts an event into the inbox: post(method, *arguments)
        self._settings = settings
        self._wall_clock = wall_clock           # for `at`
        self._write_record = record             # takes a line for the chat log, which is not escaped yet
        self._history = history
        self.epoch = secrets.token_hex(8)
        self._motd: Optional[str] = None        # the message of the day
        self.last = 0                           # the newest id
        self._log = Log()
        self._members: "dict[str, Session]" = {}                # by name_key: those in the room
        self._sessions: "dict[bytes, Session]" = {}             # by hash of the secret: those and the remembered ones
        self._gone: "collections.OrderedDict[bytes, Session]" = collections.OrderedDict()   # the remembered ones
        self._users = UserList()                                # of the members
        self._booted: "collections.OrderedDict[bytes, Session]" = collections.OrderedDict()     # by hash of the secret
        self._bans: "dict[str, float]" = {}                     # name_key or address -> until when, by the room's clock
        self._watched: "deque[Watch]" = deque()
        self._told: "dict[int, int]" = {}                       # watched id -> the last count that was told
        self._heard_and_left: "collections.Counter[int]" = collections.Counter()   # watched id -> members who heard it and left
        self._receipts_due = False                              # a receipts event is on its way
        # What flush() has to do, in order: an Entry to send, or something to call.
        self._outbox: "list[Any]" = []
        self._run = _Run()                                      # what of it has not gone out to everybody yet
        self._news_at = -math.inf                               # when joins and leaves may go out next, by the room's clock
        self._news_asked = False                                # a news_due event is on its way
        self._to_acknowledge: "dict[Connection, None]" = {}
        self._outbox_bytes = 0
        self._idle: "list[Session]" = []                        # members that the next flush pings
        self._catching_up: "set[Session]" = set()               # who is connected and not live yet
        self._records: "list[str]" = []                         # lines of the chat log
        self._noted: "list[str]" = []                           # who the next line of the log is about,
        self._noted_what = ""                                   # and what happened to all of them
        # What flush() has to commit before that.
        self._rows: "list[tuple[Any, ...]]" = []                # entries
        self._changed: "dict[Session, None]" = {}
        self._removed: "list[int]" = []                         # sessions that are forgotten, by number
        self._unreadable = 0                                    # the file cannot be read up to this id
        self._held: Optional[str] = None                        # why the last commit failed
        self._held_since = -math.inf                            # when the first one did that failed,
        self._recovered_at = -math.inf                          # and when one worked again, by the room's clock
        self._slow_at = -math.inf                               # when a slow commit was logged
        self._begun = 0                                         # the newest id when this process started
        if history is not None:
            self._restore(history)

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
        self._note("no frame", f"{link.address} ({error.code}: {error}), connection closed")
        self._refuse(link, error, None)
        self._end(link, "sent what is no frame")

    def overdue(self, link: Connection) -> None:
        """A connection has had its time to join."""
        if link.session is None and not link.ended:
            self._note("not joined", f"{link.address}, connection closed after {JOIN_TIMEOUT:g} s")
            self._refuse(link, ProtocolError("not-joined", f"join within {JOIN_TIMEOUT:g} s"), None)
            self._end(link, "did not join")

    def slowed(self, link: Connection) -> None:
        """A member is over the flood limit: its frames wait, none is lost."""
        self._note("slowed down", f"{link.address}, over {self._settings.rate:g} messages a second")
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
            self._idle.append(link.session)

    def lost(self, link: Connection, why: str) -> None:
        """The connection is gone."""
        self._end(link, why)

    def grace_over(self, session: Session, lost_at: float) -> None:
        """A member that was lost at `lost_at` has had its time to come back."""
        if session.present and session.link is None and session.lost_at == lost_at:
            until = self._recovered_at + self._settings.grace       # nobody could come back while nothing could be kept
            if self._alarm.clock() < until:
                self._alarm.at(until, lambda: self._post(self.grace_over, session, lost_at))
            else:
                self._leave(session, "gone away")

    def feed(self, link: Connection) -> None:
        """A member that catches up has room for more."""
        session = link.session
        if link.ended or session is None or session.fed is None:
            return
        if session.fed < self._forgotten:                           # it comes back, and is told what is missing
            self._end(link, "what it missed is there no more")
            return
        piece = self._next_piece(session)
        live = session.fed is None
        self._outbox.append(lambda run: run.feed(session, link, piece, live))
        self._keep_feeding(link, session, piece)

    def trim(self) -> None:
        """Delete a few of the oldest entries, as --keep and --keep-messages ask; and again later."""
        assert self._history is not None
        more = False
        try:
            more = self._history.trim(self._now())
            self._log.forget(self._history.forgotten)
        except HistoryError as error:
            logger.error("old messages cannot be deleted: %s", error)
        self._alarm.at(self._alarm.clock() + (TRIM_EVERY if more else TRIM_LATER), lambda: self._post(self.trim))

    # Events from the console, the operator's code and the alarm

    def say(self, text: str) -> None:
        """Say something as Server."""
        chatproto.check_text(text)
        self._broadcast(Chat(self._next_id(), "Server", text, self._now()), is_chat=True)
        self._record(f"<Server> {text}")

    def set_motd(self, text: Optional[str]) -> None:
        """What newcomers are shown; None for nothing. Raises ProtocolError when it is too long."""
        self._motd = None if text is None else chatproto.check_text(text)

    def users(self) -> "list[tuple[str, str]]":
        """Name and address of each member; the address is "away" in the grace time."""
        return [(session.name, session.link.address if session.link else "away") for session in self._members.values()]

    def people(self) -> "list[tuple[str, str, Optional[float]]]":
        """Name and address of each member and the seconds it is connected: None in the grace time."""
        now = self._alarm.clock()
        return [(session.name, session.link.address, now - session.link.since) if session.link else (session.name, "", None)
                for session in self._members.values()]

    def boot(self, name: str, reason: str = "") -> str:
        """Put a member out; return its name. Raises LookupError when there is none of that name."""
        session = self._members.get(name_key(name))
        if session is None:
            raise LookupError(f"nobody here is called {escape(name)}")
        reason = chatproto.clean_text(reason)[:REASON]
        self._note("booted", session.name + (f" ({escape(reason)})" if reason else ""))
        session.booted = reason
        if session.link is not None:
            self._close(session, session.link, Booted(self._next_id(), reason).encode())
        self._leave(session, f"booted: {reason}" if reason else "booted")
        del self._sessions[session.secret_hash], self._gone[session.secret_hash]
        self._booted[session.secret_hash] = session
        if len(self._booted) > BOOTED:
            self._removed.append(self._booted.popitem(last=False)[1].number)
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

    def news_due(self) -> None:
        """Joins and leaves have waited long enough; flush() sees to it."""
        self._news_asked = False

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
        """Commit what the events of a batch decided, then send it: what is public in one piece to each member, then the ACKs.

        Where it cannot be committed nothing of it goes out, and `is_held` is true: no event may be run before a flush() works.
        """
        if self._idle:                                          # one ping for all of them, never replayed
            self._outbox.append(Entry(self._next_id(), Ping(self.last).encode(), tuple(self._idle)))
            self._idle.clear()
        if not self._commit():
            return
        for line in self._records:
            self._write_record(line)
        self._records.clear()
        self._log.trim()
        outbox, self._outbox = self._outbox, []
        self._outbox_bytes = 0
        run = self._run
        for step in outbox:
            if not isinstance(step, Entry):
                step(run)
            elif step.audience is None:
                run.add(step)
            else:
                pending = PendingMessage([step.id], [step.frame])
                for session in step.audience:
                    run.send_one(session, pending)
        self._send_public(run)
        acknowledge, self._to_acknowledge = self._to_acknowledge, {}
        for link in acknowledge:
            if link.session is not None:
                link.manager.acknowledge(link.session.got)
        finished, run.finished = run.finished, []
        for link in finished:
            link.finish()
        too_slow, run.too_slow = run.too_slow, []
        for link in too_slow:
            if link.session is not None and link.session.link is link:
                self._too_slow(link)
        if self._outbox:                    # what those who are too slow will be told
            self.flush()

    def _send_public(self, run: _Run) -> None:
        """What is public goes to everybody: at once, but joins and leaves alone at most every NEWS_EVERY; so does the log."""
        now = self._alarm.clock()
        if run.has_chat or now >= self._news_at:
            self._news_at = now + NEWS_EVERY
            run.send_all()
            self._log_notes()
        elif (run.waits or self._noted) and not self._news_asked:
            self._news_asked = True
            self._alarm.at(self._news_at, lambda: self._post(self.news_due))

    @property
    def batch_is_large(self) -> bool:
        """Whether to flush before the next event."""
        return self._outbox_bytes > BATCH_BYTES

    @property
    def is_held(self) -> bool:
        """Whether everything waits for the history file. Any thread may ask."""
        return self._held is not None

    @property
    def announces(self) -> bool:
        """Whether everybody is told of who comes next. Any thread may ask."""
        return not self._users.is_full

    @property
    def connected(self) -> int:
        """How many members are connected. Any thread may ask."""
        return len(self._run.live) + len(self._catching_up)

    def close(self) -> None:
        """Write the rest of the log, and give the history file back. Not on the sequencer's thread, but after it."""
        self._log_notes()
        if self._history is not None:
            logger.debug("%d commits, %.2f ms each, the slowest %.0f ms", self._history.commits,
                         1000 * self._history.seconds / max(1, self._history.commits), 1000 * self._history.slowest)
            self._history.close()

    # The history file

    def _restore(self, history: HistoryFile) -> None:
        """Go on where the file ends: everybody who was here has just lost its connection."""
        self.epoch, self.last = history.epoch, history.last
        self._begun = self.last
        numbers: "dict[Optional[int], Session]" = {}
        for row in history.sessions():
            session = numbers[row[0]] = Session.from_row(row)
            if session.booted is not None:
                self._booted[session.secret_hash] = session
                continue
            self._sessions[session.secret_hash] = session
            if session.present:
                self._members[name_key(session.name)] = session
                self._users.add(session)
                session.here_since = self.last
                self._await(session)
            else:
                self._gone[session.secret_hash] = session
        for number, about, id, body in history.refusals():
            numbers[number].refusals.append((about, Entry(id, _frame(body), (numbers[number],))))
        rows, forgotten = history.newest(LOG_FRAMES, LOG_BYTES)
        entries = [Entry(id, _frame(body), None if one is None else tuple(
            numbers[number] for number in (one, other) if number in numbers), kind == Chat.type and one is None)
            for id, kind, body, one, other in rows]
        self._log.load(entries, history.recent(HISTORY), forgotten)
        self._alarm.at(self._alarm.clock() + TRIM_EVERY, lambda: self._post(self.trim))

    def _commit(self) -> bool:
        """Put what the batch changed into the file. False when the file does not take it."""
        history = self._history
        if history is None or not self._rows and not self._changed and not self._removed and self.last == history.last:
            return True
        now = self._alarm.clock()
        try:
            took = history.save(self.last, self._rows, [session.row() for session in self._changed], self._removed)
        except HistoryError as error:
            if self._held is None:
                self._held_since = now
            if self._held != str(error):
                logger.error("nothing is acknowledged until this is mended: %s", error)
            self._held = str(error)
            return False
        self._rows.clear()
        self._changed.clear()
        self._removed.clear()
        if self._held is not None:
            logger.info("%s can be written again, after %.1f s; nothing was lost", history.path, now - self._held_since)
            self._held, self._recovered_at = None, now
        if took >= SLOW_COMMIT and now - self._slow_at >= SAY_AGAIN:
            self._slow_at = now
            logger.warning("the disk is slow: a commit to %s took %.0f ms, which everybody waits for", history.path, 1000 * took)
        return True

    @property
    def _forgotten(self) -> int:
        """The newest id that can no longer be replayed."""
        return self._log.forgotten if self._history is None else max(self._history.forgotten, self._unreadable)

    def _next_piece(self, session: Session) -> "list[Entry]":
        """What a member that catches up hears next: a piece of the file, or with its end all the rest, and it is live."""
        assert session.fed is not None
        piece: "list[Entry]" = []
        if session.fed < self._log.forgotten and self._history is not None:
            try:
                piece, session.fed = self._history.after(session.fed, self._log.forgotten, session.number)
            except HistoryError as error:
                logger.error("messages before %d cannot be read: %s", self._log.forgotten, error)
                self._unreadable = self._log.forgotten
                return []
        if session.fed >= self._log.forgotten or self._history is None:
            piece += self._log.after(session.fed, session)
            session.fed = None
        return [entry for entry in piece if entry.id > session.begin or entry.is_chat]

    def _keep_feeding(self, link: Connection, session: Session, piece: "list[Entry]") -> None:
        """Its ACKs ask for the next piece; where there is nothing to acknowledge in this one the alarm does."""
        if session.fed is None:
            self._catching_up.discard(session)
        else:
            self._catching_up.add(session)
            if not piece:
                self._alarm.at(self._alarm.clock(), lambda: self._post(self.feed, link))

    def _older(self, session: Session, recall: Recall) -> "tuple[list[bytes], Optional[int]]":
        """The frames that `recall` asks for, oldest first, and before which id there may be more."""
        before = self.last + 1 if recall.before is None else min(recall.before, self.last + 1)
        count = max(1, min(recall.count, RECALL_MOST))
        found, older = self._log.before(before, count, session)
        if older is None and self._history is not None and len(found) == count:
            older = self._log.forgotten + 1 if self._log.forgotten > self._forgotten else None
        elif older is None and self._history is not None:
            try:
                before = min(before, self._log.forgotten + 1)
                more, older = self._history.before(before, count - len(found), session.number)
                found += more
            except HistoryError as error:
                logger.error("older messages cannot be read: %s", error)
        frames: "list[bytes]" = []
        room = RECALL_BYTES
        for id, frame in found:
            room -= len(frame)
            if room < 0:
                return frames[::-1], id + 1
            frames.append(frame)
        return frames[::-1], older

    # Joining and leaving

    def _join(self, link: Connection, join: Join) -> None:
        if link.session is not None:
            self._refuse(link, ProtocolError("already-joined", f"you are in, as {link.session.name}"), None)
            return
        session = self._known(join)
        back_in_time = session is not None and session.present
        if session is not None and session.link is not None and session.link.since > link.since and link.hung_up():
            self._end(link, "it was given up for a newer one")          # threads may bring two joins in the wrong order
            return
        if not back_in_time:
            try:
                self._check_entry(link, join)
            except ProtocolError as error:
                self._note("refused", f"{link.address} as {escape(join.name)} ({error})")
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
            self._note("back", f"{session.name} from {link.address}")
        else:
            self._enter(session, join.name)
            self._note("joined", f"{session.name} from {link.address}")
        resumed = secret == join.session
        self._admit(link, session, join, resumed, self._welcome(session, secret, join, resumed, missed), replay)

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
        booted = self._booted.get(_hash(join.session)) if join.session else None
        if booted is not None:              # it was away when it was put out, and is told now
            raise ProtocolError("banned", f"you were booted: {booted.booted}" if booted.booted else "you were booted")
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
        number = self.last + 1              # the id of its own `joined`: so nobody else ever has it
        if join.session is not None and join.epoch != self.epoch:
            session = Session(number, _hash(secret), self._begun, self._begun)
        else:
            recent = self._log.recent(self._seen(join))
            session = Session(number, _hash(secret), number, recent[0].id - 1 if recent else self.last)
        session.present = False
        self._sessions[session.secret_hash] = session
        return session

    def _replay(self, join: Join, session: Session) -> "tuple[list[Entry], int]":
        """What the owner of `join` has to hear first, and how many frames of what it missed are no longer there (at most)."""
        seen = self._seen(join)
        if session.begin == session.number and not session.name:    # a newcomer, or somebody whose session is forgotten
            replay = self._log.recent(seen)
            return replay, max(0, self.last - seen - len(replay)) if seen else 0
        session.fed = max(seen, session.history_from, self._forgotten if session.name else self._log.forgotten)
        replay = self._next_piece(session)
        if session.fed is not None and session.fed < self._forgotten:       # the file turned out to be unreadable
            session.fed = self._forgotten
            replay = self._next_piece(session)
        missed = max(0, self._forgotten - max(seen, session.begin))
        if not session.name:                                # bounded, since anybody may claim to have been here before
            missed = max(0, self._log.forgotten - session.begin) + len(replay[:-STRANGER_FRAMES])
            return replay[-STRANGER_FRAMES:], missed
        forgotten = [error for _, error in session.refusals if seen < error.id <= self._forgotten]
        return forgotten + replay, missed                   # a refusal is never forgotten: its ACK would be a false yes

    def _enter(self, session: Session, name: str) -> None:
        """A new session, or one that had left, comes into the room."""
        session.name, session.present = name, True
        session.left_at = None
        self._changed[session] = None
        self._gone.pop(session.secret_hash, None)
        self._members[name_key(name)] = session
        joined = Joined(self._next_id(), name, self._now())     # the id is the session's number, and so is always taken
        if self._users.add(session):
            self._broadcast(joined)
        self._record(f"* {name} joined")
        session.here_since = self.last

    def _take_over(self, session: Session) -> None:
        """The owner of a session comes on another connection: the old one ends."""
        if session.link is not None:
            reason = "this session has joined again from elsewhere"
            self._close(session, session.link, Booted(self._next_id(), reason).encode())

    def _welcome(self, session: Session, secret: str, join: Join, resumed: bool, missed: int) -> bytes:
        listed, count = self._users.encoded()
        users = () if session in self._users else (session.name,)
        here = len(self._members) if len(self._members) > count + len(users) else None
        got = session.confirmed_for(join.seen) if resumed else 0
        return Welcome(session.name, secret, self.epoch, users, self.last, resumed, got, missed, here,
                       self._motd).encode(listed)

    def _admit(self, link: Connection, session: Session, join: Join, resumed: bool, welcome: bytes,
               replay: "list[Entry]") -> None:
        """From here on `link` is the session's connection."""
        session.receipts = join.receipts
        session.link, link.session = link, session
        session.allowance = link.allowance = session.allowance or link.allowance
        session.lost_at = math.inf
        for watch in self._watched:
            if watch.speaker is session:
                self._told.pop(watch.id, None)          # it may have been lost with the connection
        confirmed = min(join.seen, self.last) if resumed else 0
        got = session.got
        refusal = session.refusals[-1][1].id if session.refusals else 0
        live = session.fed is None
        self._outbox.append(lambda run: run.admit(session, link, welcome, replay, confirmed, got, refusal, live))
        self._keep_feeding(link, session, replay)

    def _leave(self, session: Session, reason: str) -> None:
        """A member goes out of the room; its session is remembered for what it may send again."""
        for watch in self._watched:
            if session is not watch.speaker and watch.recipient is None and session.here_since < watch.id <= session.acked:
                self._heard_and_left[watch.id] += 1
        del self._members[name_key(session.name)]
        session.present, session.left_at = False, self._now()
        self._changed[session] = None
        self._gone[session.secret_hash] = session
        while len(self._gone) > SESSIONS:
            secret_hash, forgotten = self._gone.popitem(last=False)
            self._sessions.pop(secret_hash, None)
            self._removed.append(forgotten.number)
        left = Left(self._next_id(), session.name, self._now(), reason)
        self._record(_left_line(left))
        if session in self._users:
            self._broadcast(left)
        successor = self._users.remove(session)
        if successor is not None:
            self._broadcast(Joined(self._next_id(), successor.name, self._now()))

    def _close(self, session: Session, link: Connection, last_words: bytes = b"") -> None:
        """End a connection whose session goes on elsewhere or nowhere."""
        link.ended = True
        session.unlink()
        self._changed[session] = None                   # how far it came
        self._catching_up.discard(session)
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
        self._note("lost", f"{session.name} ({why})")
        self._await(session)

    def _await(self, session: Session) -> None:
        """A member has its grace time from now on."""
        session.lost_at = lost_at = self._alarm.clock()
        self._alarm.at(lost_at + self._settings.grace, lambda: self._post(self.grace_over, session, lost_at))

    def _too_slow(self, link: Connection) -> None:
        """A member does not keep up: it is dropped, and told so when it comes back, in its place in the order."""
        if link.session is not None and not link.ended:
            self._note("too slow", f"{link.session.name} ({link.manager.waiting} frames wait), connection closed")
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
        self._changed[session] = None
        if isinstance(message, Say):
            self._chat(link, session, message)
        elif isinstance(message, Rename):
            self._rename(link, session, message)
        elif isinstance(message, Leave):
            self._note("left", session.name)
            self._close(session, link)
            self._leave(session, "quit")
        elif isinstance(message, Recall):
            answer = Recalled.encode_frames(message.id, *self._older(session, message))
            self._outbox.append(lambda run: link.manager.send_bare(answer))
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
            self._record(f"<{session.name}> {say.text}")
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
        session.name = new
        self._users.renamed()
        renamed = Renamed(self._next_id(), old, new, self._now())
        if session in self._users:
            self._broadcast(renamed)
        else:
            self._send_to((session,), renamed)
        self._record(f"* {old} is now {new}")
        self._note("renamed", f"{old} to {new}")

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

    def _record(self, line: str) -> None:
        self._records.append(line)

    def _note(self, what: str, who: str) -> None:
        """For the log. Several in a row to whom the same happens are one line: a line is 60 us, a tenth of what a join takes."""
        if what != self._noted_what:
            self._log_notes()
            self._noted_what = what
        self._noted.append(who)

    def _log_notes(self) -> None:
        if self._noted:
            logger.info("%s: %s", self._noted_what, ", ".join(self._noted))
            self._noted.clear()

    def _broadcast(self, message: Message, is_chat: bool = False) -> None:
        self._put(message, Entry(message.id, message.encode(), None, is_chat))

    def _send_to(self, audience: "tuple[Session, ...]", message: Message) -> None:
        self._put(message, Entry(message.id, message.encode(), audience))

    def _put(self, message: Message, entry: Entry) -> None:
        self._keep(message, entry)
        self._outbox.append(entry)

    def _keep(self, message: Message, entry: Entry) -> None:
        """Give an entry its place in the log, and with the next commit in the file."""
        self._log.append(entry)
        self._outbox_bytes += len(entry.frame)
        if self._history is not None:
            self._rows.append(entry_row(message, entry, self._now()))

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
            del session.refusals[0]
        session.refusals.append((about, entry))
        self._keep(message, entry)
        if session.fed is not None:
            self._outbox.append(lambda run: link.manager.refuses(entry.id))     # it comes behind what the member missed
        else:
            pending = PendingMessage([entry.id], [entry.frame])
            self._outbox.append(lambda run: run.send_one(session, pending, refusal=entry.id))


class _Run:
    """What is on its way to the members. Public entries are collected, and go to each member in one piece with send_all();
    whoever comes in between gets those after its place, and whoever is sent a frame of its own gets those before it first."""

    def __init__(self) -> None:
        self.live: "dict[Session, Connection]" = {}         # who gets what is public
        self.finished: "list[Connection]" = []              # connections to end
        self.too_slow: "list[Connection]" = []
        self.has_chat = False                               # something that was said is among what is collected
        self._ids: "list[int]" = []
        self._frames: "list[bytes]" = []
        self._place: "dict[Session, int]" = {}              # how many of them a member has had; 0 for most

    @property
    def waits(self) -> bool:
        """Whether anything is collected."""
        return bool(self._ids)

    def add(self, entry: Entry) -> None:
        """A public entry."""
        self._ids.append(entry.id)
        self._frames.append(entry.frame)
        self.has_chat = self.has_chat or entry.is_chat

    def admit(self, session: Session, link: Connection, welcome: bytes, replay: "list[Entry]",
              confirmed: int, got: int, refusal: int, live: bool) -> None:
        """A member comes in: its welcome, and what it missed."""
        link.attach(welcome, confirmed, got)
        if not live and refusal > confirmed:
            link.manager.refuses(refusal)               # an error that is not in this piece
        self.feed(session, link, replay, live, refusal)

    def feed(self, session: Session, link: Connection, replay: "list[Entry]", live: bool, refusal: int = 0) -> None:
        """A piece of what a member missed; with the last one it is live, and gets from here on what is public."""
        if live:
            self.live[session] = link
            self._place[session] = len(self._ids)
        link.hungry = not live                          # before the piece goes out: its ACK must find it set
        for start in range(0, len(replay), WINDOW):         # in pieces that a window takes whole
            piece = replay[start:start + WINDOW]
            self._send(link, PendingMessage([entry.id for entry in piece], [entry.frame for entry in piece]),
                       replay=True, refusal=min(refusal, replay[-1].id))

    def remove(self, session: Session, link: Connection, last_words: bytes) -> None:
        """A member's connection ends after what came before."""
        if self.live.get(session) is link:
            self._catch_up(session, link)
            del self.live[session]
        if last_words:
            link.manager.send_bare(last_words)          # past a window that may be shut: the session ends here
        self.finished.append(link)

    def send_one(self, session: Session, pending: PendingMessage, refusal: int = 0) -> None:
        """What is for one member."""
        link = self.live.get(session)
        if link is not None:
            self._catch_up(session, link)
            self._send(link, pending, refusal=refusal)

    def send_all(self) -> None:
        """What is public, to everybody."""
        if self._ids:
            whole = PendingMessage(self._ids, self._frames)
            for session in self._place:
                if session in self.live:
                    self._catch_up(session, self.live[session])
            links: "Collection[Connection]" = self.live.values()
            if self._place:
                links = [link for session, link in self.live.items() if session not in self._place]
            for link in links:                          # as _send(): its call costs 1 % of a delivery
                try:
                    link.manager.send(whole)
                except Exception as error:              # noqa: BLE001: see _not_sent()
                    self._not_sent(link, error)
            self._ids, self._frames, self.has_chat = [], [], False
        self._place.clear()

    def _catch_up(self, session: Session, link: Connection) -> None:
        place = self._place.get(session, 0)
        if place < len(self._ids):
            self._send(link, PendingMessage(self._ids[place:], self._frames[place:]))
        self._place[session] = len(self._ids)

    def _send(self, link: Connection, pending: PendingMessage, replay: bool = False, refusal: int = 0) -> None:
        try:
            link.manager.send(pending, replay, refusal)
        except Exception as error:                      # noqa: BLE001: see _not_sent()
            self._not_sent(link, error)

    def _not_sent(self, link: Connection, error: Exception) -> None:
        """Too much waits for this member; or a bug, which must not cost the others their frames."""
        if not isinstance(error, queue.Full):
            _log_bug(f"in sending to {link.address}", error)
        link.manager.detach()                           # nothing may follow what it did not get: it comes back for that
        self.too_slow.append(link)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


@functools.lru_cache(maxsize=1_000)
def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


# --- Connections ---

# Picked, so that several servers do not share it. None without a global interpreter lock: there all cores are of use.
_CORE = (secrets.choice(sorted(os.sched_getaffinity(0)))
         if hasattr(os, "SCHED_BATCH") and getattr(sys, "_is_gil_enabled", lambda: True)() else None)


def share_core(give_way: bool = False) -> None:
    """Keep the calling thread on the core of those that need the interpreter most, where the system can (Linux).

    Only one of them runs at a time, and to hand the interpreter to another core takes longer than that core would save: 1.2
    times the deliveries, 1.7 times when each is acknowledged at once. With `give_way` a thread that an ACK wakes waits for
    the end of the sequencer's turn instead of interrupting it: another 1.05 to 1.5 times, and a third off the slowest.
    """
    if _CORE is not None:
        try:
            os.sched_setaffinity(0, {_CORE})            # 0 is the calling thread
            if give_way:
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        except OSError:                                 # forbidden here: it works as well, only slower
            pass


class Allowance:
    """The flood limit of one session: a burst of five seconds' worth, then `rate` frames a second."""

    __slots__ = ("_rate", "_clock", "_burst", "_left", "_at")

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
    """One connection, from its bytes to the inbox. `wire` is its MessageSocket, or chat_web's WebSocket, which has the same
    methods and a `wrap` besides; tests give it something like one. `join_by` is when it must have joined, by the alarm's clock.

    run() is its thread; Room uses `address`, `since`, `manager`, `session`, `ended` and the methods below `run`.
    """

    __slots__ = ("address", "since", "session", "ended", "hungry", "_wire", "_room", "_post", "_alarm", "_decoder", "allowance",
                 "_held", "_slowed_at", "_has_asked", "_deaf", "_failure", "_is_cut", "_over", "manager", "__weakref__")

    def __init__(self, wire: Any, address: str, room: Room, post: Callable[..., None], alarm: Alarm,
                 rate: float, join_by: Optional[float] = None) -> None:
        self.address = address
        self.since = alarm.clock()                      # when it came
        self.session: Optional[Session] = None          # the sequencer sets it, once
        self.ended = False                              # the sequencer sets it: nothing more is taken from here
        self.hungry = False                             # the sequencer sets it: more is to be asked for when the window opens
        self._wire = wire
        self._room = room
        self._post = post
        self._alarm = alarm
        self._decoder = FrameDecoder(FROM_CLIENT)
        self.allowance = Allowance(rate, alarm.clock)   # the session's, once there is one
        self._held: "list[Message]" = []                # decoded and not yet handed over: bounded by HELD and one read
        self._slowed_at = -math.inf                     # when it was told that it is slowed down
        self._has_asked = False                         # its join waits in the inbox until the room is no longer held
        self._deaf = False                              # what comes is thrown away: it is no frames any more
        self._failure: Optional[FrameError] = None      # why, until the room was told
        self._is_cut = False
        self._over: Optional[threading.Event] = None    # ends a wait of the flood limit; made (1 KB) for the first one
        self.manager = MessageManager(alarm, self._dead, self._idle, getattr(wire, "wrap", None), wire.write)
        alarm.at(self.since + JOIN_TIMEOUT if join_by is None else join_by, chatproto.weakly(self._join_timeout))

    def run(self) -> None:
        """Read until the connection ends."""
        share_core(give_way=True)
        why = "a bug"
        try:
            while True:
                wait = None
                if self._held or self._failure:
                    wait = self.release()
                    self.manager.patient = len(self._held) >= HELD
                    if self.manager.patient:
                        self._over = self._over or threading.Event()
                        if self._is_cut or self._over.wait(wait):
                            raise ConnectionClosed("cut")
                        continue
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
            ack = LONE_ACK.fullmatch(data)              # most of what comes
            if (ack is not None and not self._decoder.partial and self.session is not None
                    and self.manager.acknowledged(int(ack[1]))):
                if self.hungry:
                    self._ask_for_more()
                return
            for message in self._decoder.feed(data):
                if isinstance(message, Ack) and self.session is not None and self.manager.acknowledged(message.upto):
                    if self.hungry:
                        self._ask_for_more()
                    continue
                self._held.append(message)              # with them an ACK that is no news: the flood limit is for it, too
        except FrameError as error:
            self._deaf, self._failure = True, error

    def _ask_for_more(self) -> None:
        if self.manager.waiting < WINDOW:
            self.hungry = False
            self._post(self._room.feed, self)

    def release(self) -> Optional[float]:
        """Hand over the frames that the flood limit admits; return the seconds until the next, None when none is held."""
        wait = None
        if self._room.is_held and self._held:           # nothing can be kept: a window of frames waits here, then the socket
            if isinstance(self._held[0], Join) and not self._has_asked:
                self._has_asked = True                  # in the inbox, so that of two connections the later one takes over
                self._post(self._room.frames, self, [self._held.pop(0)])
            return HOLD_PAUSE
        admitted = 0
        while admitted < len(self._held):
            wait = self.allowance.take() or None
            if wait:
                break
            admitted += 1
        if admitted:
            batch, self._held = self._held[:admitted], self._held[admitted:]
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

    def hung_up(self) -> bool:
        """True when the member has given the connection up already."""
        return self._wire.hung_up()

    def cut(self) -> None:
        """End the connection now: its thread wakes and ends."""
        self._is_cut = True
        if self._over is not None:
            self._over.set()
        self._wire.cut()

    # On the alarm's thread

    def _dead(self) -> None:
        self._post(self._room.dead, self)

    def _idle(self) -> None:
        self._post(self._room.idle, self)

    def _join_timeout(self) -> None:
        if self.session is None and self._room.is_held:             # its join may wait
            self._alarm.at(self._alarm.clock() + JOIN_TIMEOUT, chatproto.weakly(self._join_timeout))
        elif self.session is None:
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

    @property
    def backlog(self) -> int:
        """How many events wait, about."""
        return self._inbox.qsize()

    def stop(self) -> None:
        """End the thread after what is in the inbox now, but not after a commit that cannot be made; may be called twice."""
        if self.room.is_held:
            self._stopped.set()
        self.post(self._stopped.set)
        if self.is_alive():
            self.join(5)
        self._stopped.set()

    def run(self) -> None:
        share_core()
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
                    self._flush()
            self._flush()

    def _flush(self) -> None:
        """Have the room flush, again and again while its history file does not take it: the inbox waits, and its posters."""
        self._guard(self.room.flush, ())
        while self.room.is_held and not self._stopped.wait(HOLD_PAUSE):
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
                 record: Callable[[str], None] = lambda line: None, history: Optional[HistoryFile] = None) -> None:
        self.settings = settings
        self.alarm = Alarm()
        self.web: Any = None                            # chat_web's Web; to be set before start(), where browsers may come
        self._lock = threading.Lock()                   # protects the three below; a leaf
        # Each connection's thread, and what cut() ends it by: a Connection, or the bare socket while its first bytes are awaited
        self._connections: "dict[threading.Thread, Any]" = {}
        self._addresses: "collections.Counter[str]" = collections.Counter()     # connections of each
        self._closed = False
        self._closing = threading.Event()               # ends the wait of an acceptor that ran out of descriptors
        self._complained: "dict[str, float]" = {}       # complaint -> when it was logged; the acceptor's own
        self._acceptor: Optional[threading.Thread] = None
        address, self.address_family = _bind_address(host, port)
        self.sequencer = Sequencer(lambda post: Room(self.alarm, post, settings, record=record, history=history))
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
        self._acceptor = threading.Thread(target=self._accept, name="accept", daemon=True)
        self._acceptor.start()

    def say_goodbye(self, text: str, seconds: float = 1.0) -> None:
        """Tell everybody, and wait up to `seconds` until all has been confirmed."""
        if self.room.is_held:
            return
        try:
            self.ask(self.room.say, text)
        except TimeoutError as error:
            logger.error("%s", error)
        until = self.alarm.clock() + seconds
        while self.alarm.clock() < until and not self._closing.wait(0.02):
            with self._lock:
                links = list(self._connections.values())
            if all(link.manager.empty for link in links if isinstance(link, Connection)):
                return

    def server_close(self) -> None:
        """End every connection and every thread; may be called twice."""
        with self._lock:
            self._closed = True
        self._closing.set()
        if self._acceptor is not None and self._acceptor.is_alive():
            try:
                self.socket.shutdown(socket.SHUT_RDWR)  # wakes the acceptor on Linux, but not elsewhere: see ACCEPT_POLL
            except OSError:
                pass
            self.shutdown()
            self._acceptor.join()
        super().server_close()
        with self._lock:
            threads = dict(self._connections)
        self.sequencer.stop()                           # first: that they are all lost now is no news
        for connection in threads.values():
            connection.cut()                            # what was written still arrives, then the end
        for thread in threads:
            thread.join(5)
        self.alarm.close()
        if not self.sequencer.is_alive():               # else it is in the middle of a commit: the file is whole all the same
            self.room.close()

    # On the acceptor's thread

    def _accept(self) -> None:
        share_core()
        self.serve_forever(ACCEPT_POLL)

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
        """Start the connection's thread, when the room is not behind. It ends with the connection."""
        if self.room.announces:
            self._closing.wait(PACE)
        until = self.alarm.clock() + ADMIT_WAIT
        while self.sequencer.backlog > BUSY and self.alarm.clock() < until and not self._closing.wait(ADMIT_POLL):
            pass
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
        """Serve one connection to its end: frames, a request of a browser, or frames over the WebSocket that it asked for."""
        address = _plain_address(client_address)
        wire = MessageSocket(request) if self.web is None else self.web.socket(request)
        thread = threading.current_thread()
        with self._lock:
            if self._closed:
                return
            self._connections[thread] = wire
            self._addresses[address] += 1
        try:
            self._serve(thread, wire, address)
        finally:
            with self._lock:
                del self._connections[thread]
                self._addresses[address] -= 1
                self._addresses += collections.Counter()        # forgets those of which there are none

    def _serve(self, thread: threading.Thread, wire: Any, address: str) -> None:
        came = self.alarm.clock()
        spoken: Any = wire if self.web is None else self.web.greet(wire, address, JOIN_TIMEOUT)
        if spoken is None:                              # a request, and it has its answer
            return
        join_by = came + JOIN_TIMEOUT if spoken is wire else None       # the first byte's wait counts; a request's does not
        connection = Connection(spoken, address, self.room, self.sequencer.post, self.alarm, self.settings.rate, join_by)
        connection.since = came
        with self._lock:
            self._connections[thread] = connection
        connection.run()


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


# --- The operator's line ---

def _in_foreground() -> bool:
    """Whether the terminal is ours at this moment. Raises OSError when there is none."""
    return sys.platform == "win32" or os.tcgetpgrp(0) == os.getpgrp()


def _take_terminal() -> "Optional[list[Any]]":
    """Have the terminal hand over each key at once; return its settings as they were before.

    None where that cannot be. Ctrl-C and Ctrl-Z stay signals. Windows has no `termios`, and a
    Python that was built without it is treated alike.
    """
    if sys.platform == "win32" or os.environ.get("NO_COLOR"):
        return None
    if os.environ.get("TERM", "dumb") in ("", "dumb"):
        return None
    try:
        import termios
        import tty
    except ImportError:
        return None
    try:
        # In the background the terminal is the shell's.
        if not (sys.stdin.isatty() and sys.stdout.isatty() and _in_foreground()):
            return None
        settings = termios.tcgetattr(0)
        # What was typed already is not thrown away.
        tty.setcbreak(0, termios.TCSADRAIN)
    except (AttributeError, OSError, ValueError, termios.error):
        return None
    return settings


def _give_terminal_back(settings: "list[Any]") -> None:
    """Undo _take_terminal(), unless the terminal is the shell's again, or gone."""
    if sys.platform == "win32":
        return
    import termios
    try:
        if _in_foreground():
            os.write(1, b"\r\x1b[K")
            termios.tcsetattr(0, termios.TCSADRAIN, settings)
    except (OSError, termios.error):
        pass


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
    _ERASE = {"\x7f": _LETTER, "\x08": _LETTER, "\x17": _WORD, "\x15": _ALL}

    def __init__(self) -> None:
        # The lock protects the text, and keeps what is written in one piece; a leaf.
        self._lock = threading.Lock()
        self._text = ""
        # The terminal's, from before open(); None again after close().
        self._settings: "Optional[list[Any]]" = None
        # Whether the terminal is ours now: it is the shell's while we are in the background.
        self.is_open = False

    def open(self) -> bool:
        """Take the terminal over, also after it was away; False where that cannot be."""
        before = _take_terminal()
        self.is_open = before is not None
        if before is None:
            return False
        self._settings = self._settings or before
        self.write("")
        return True

    def reopen(self) -> None:
        """We were stopped, and go on: perhaps in the background, perhaps with other settings."""
        if self._settings is not None:
            self.open()

    def close(self) -> None:
        """Give the terminal back. May be called twice."""
        settings, self._settings = self._settings, None
        was_open, self.is_open = self.is_open, False
        if was_open and settings is not None:
            _give_terminal_back(settings)

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

    def flush(self) -> None:
        """Nothing waits here."""

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
        self.write(f"{self.PROMPT}{escape(line)}\n")
        return line

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
        shown = escape(self._text)[-room:]
        while sum(1 + (not char.isascii()) for char in shown) > room:
            shown = shown[1:]
        return shown


# --- The chat log ---

class _Waiting(queue.Queue[Any]):
    """A queue whose bound is in characters: its size is theirs, by the hooks of queue.Queue."""

    # Characters that an entry counts for on top of its own: about what its objects take.
    OVERHEAD = 64

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._characters = 0

    def _qsize(self) -> int:
        return self._characters

    def _put(self, item: Any) -> None:
        super()._put(item)
        self._characters += self._size(item)

    def _get(self) -> Any:
        item = super()._get()
        self._characters -= self._size(item)
        return item

    def _size(self, item: Any) -> int:
        return self.OVERHEAD + (len(item[1]) if item else 0)


class ChatLog:
    """Appends one line an event to a file, or to stdout for "-", where the operator may be typing.

    Lines are escaped and written on the thread "chat log", so that no disk and no long text keeps
    the sequencer. It is a daemon, as a disk may hang, and ends with close(). At most WAITING
    characters wait for it; a line beyond that is dropped. A line that the disk does not take (disk
    full) is dropped as well, and the next one is tried again. Either way the file says, where it
    goes on, how many lines are missing.
    """

    # A slow disk may lag behind by so much: a minute of a busy room, at most 32 MB of memory.
    WAITING = 8 * 1024 * 1024
    # Seconds that close() waits for what was not written yet.
    PATIENCE = 5.0

    def __init__(self, path: Optional[str], line: OperatorLine) -> None:
        """Raises OSError when the file cannot be opened."""
        self._path = path
        self._line = line
        self._waiting = _Waiting(self.WAITING)
        # How many lines found no room since the last one that did; the sequencer's own.
        self._dropped = 0
        # The file has another name now: the log's thread opens it again before the next line.
        self._moved = threading.Event()
        self._thread: Optional[threading.Thread] = None
        self.reopen()
        if path:
            self._thread = threading.Thread(target=self._run, name="chat log", daemon=True)
            self._thread.start()

    def reopen(self) -> None:
        """Write to the file's name again, after the file was rotated. Raises OSError."""
        if self._path and self._path != "-":
            open(self._path, "ab").close()
            self._moved.set()

    def write(self, line: str) -> None:
        """On the sequencer's thread: never waits."""
        if self._thread is None:
            return
        try:
            self._waiting.put_nowait((time.time(), line, self._dropped))
            self._dropped = 0
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write what waits, and end the thread. May be called twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            try:
                self._waiting.put(None, timeout=self.PATIENCE)
            except queue.Full:
                return
            thread.join(self.PATIENCE)

    # On the log's thread

    def _run(self) -> None:
        out = _Output(self._path or "", self._line)
        missing = 0
        for at, line, dropped in iter(self._waiting.get, None):
            missing += dropped
            if self._moved.is_set():
                self._moved.clear()
                out.close()
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
            if sys.platform == "win32" and self._waiting.empty():
                # There an open file cannot be renamed, and no HUP says that it was.
                out.close()
        out.close()
        if missing:
            logger.error("the chat log ends; lines missing: %d", missing)


class _Output:
    """Where the chat log's lines go; on its thread alone. A file is opened when it is needed."""

    def __init__(self, path: str, line: OperatorLine) -> None:
        self._path = path
        self._line = line
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
    # Answers to one address in a second, and addresses in a second: a client asks a few times over
    # each of its interfaces. Whoever asks more, or is the 1,001st, gets no answer.
    ANSWERS = 10
    ADDRESSES = 1_000

    def __init__(self, server: ChatServer, name: str) -> None:
        """`name` is what the server is called."""
        self._server = server
        self._name = name
        # Tells the answers of this run from those of another server of the same name.
        self._id = secrets.token_hex(8)
        # Answers in that second (of time.monotonic()), by address.
        self._second = 0
        self._answered: "collections.Counter[str]" = collections.Counter()
        # close() closes the one, which ends the thread's wait at the other.
        self._waking, self._woken = socket.socketpair()
        self._sockets = list(self._open())
        self._thread = threading.Thread(target=self._run, name="discovery", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more. May be called twice."""
        self._waking.close()
        self._thread.join(5)

    def _open(self) -> "Iterator[socket.socket]":
        """The sockets that can be had: another program may have the port."""
        server, own = self._server, str(self._server.server_address[0])
        families = {server.address_family}
        if own == "::":
            families.add(socket.AF_INET)
        # What is sent to everybody is heard only by a socket that is bound to every address.
        at = own if _is_loopback(own) else ""
        for family, port in itertools.product(families, {server.port, PORT}):
            try:
                yield _udp(family, at, port)
            except OSError as error:
                logger.info("who asks on port %d does not find us: %s", port, error.strerror)

    # On the thread

    def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            for sock in (self._woken, *self._sockets):
                selector.register(stack.enter_context(sock), selectors.EVENT_READ, sock)
            look_at = 0.0
            while True:
                if time.monotonic() >= look_at:
                    self._listen()
                    look_at = time.monotonic() + self.LOOK_EVERY
                for key, _ in selector.select(self.LOOK_EVERY):
                    if key.data is self._woken:
                        return
                    self._attend(key.data)

    def _listen(self) -> None:
        """Have the sockets listen to their groups on every interface, also on new ones."""
        versions = {socket.AF_INET: 4, socket.AF_INET6: 6}
        interfaces = {(each.number, each.parsed.version) for each in chatproto.own_addresses()}
        for sock, (number, version) in itertools.product(self._sockets, interfaces):
            if versions[sock.family] == version:
                # It does already, or the interface has gone.
                with contextlib.suppress(OSError):
                    chatproto.listen_to_group(sock, number)

    def _attend(self, sock: socket.socket) -> None:
        """Read a question and answer it."""
        # On Windows also that nobody was there any more to hear the last answer.
        with contextlib.suppress(OSError):
            data, asker = sock.recvfrom(2048)
            token = chatproto.decode_question(data)
            if token is not None and self._may_answer(str(asker[0])):
                here = self._server.room.connected
                answer = chatproto.Answer(self._name, self._server.port, here,
                                          chatproto.__version__, False, self._id)
                self._send(sock, chatproto.encode_answer(token, answer), asker)

    def _may_answer(self, asker: str) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._answered.clear()
        if asker not in self._answered and len(self._answered) >= self.ADDRESSES:
            return False
        self._answered[asker] += 1
        return self._answered[asker] <= self.ANSWERS

    def _send(self, sock: socket.socket, data: bytes, asker: Any) -> None:
        """Answer from the address where the server listens, as the asker goes there."""
        own = str(self._server.server_address[0])
        if own in ("0.0.0.0", "::") or _is_loopback(own):
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

FIREWALL_AFTER = 60.0           # seconds


class Door(ChatServer):
    """A ChatServer that knows whether anybody has come from another machine yet.

    Where nobody has for a while, a firewall may be in the way.
    """

    # Whether anybody has; only the acceptor sets it.
    visited = False

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """On the acceptor's thread."""
        address = _plain_address(client_address).partition("%")[0]
        if not self.visited and not _is_loopback(address):
            self.visited = address not in {each.ip for each in chatproto.own_addresses()}
        return super().verify_request(request, client_address)


class Invitation:
    """What others type or open to come here; asked anew each time, as addresses come and go."""

    def __init__(self, server: ChatServer, name: str) -> None:
        """`name` is what the server is called."""
        self.name = name
        self._server = server
        self._bound = str(server.server_address[0])

    def hosts(self) -> "list[str]":
        """Where others reach this server, the likeliest first; at least one."""
        if self._bound not in ("0.0.0.0", "::"):
            return [self._bound]
        only_4 = self._server.address_family == socket.AF_INET
        found = [each.host for each in chatproto.lan_addresses()
                 if not (only_4 and each.parsed.version == 6)]
        # A link-local address of IPv6 is for those who have no other.
        return [host for host in found if "%" not in host] or found or ["127.0.0.1"]

    @property
    def command(self) -> str:
        """The line that others type, with Python as it is called here."""
        return f"{_python()} chat_client.py {self.hosts()[0]} {self._server.port} -n NAME"

    @property
    def url(self) -> str:
        """The page's address; "" when browsers are not served, or have no way to come."""
        hosts = self.hosts() if self._server.web is not None else []
        return next((f"http://{chatproto.in_url(host)}:{self._server.port}/" for host in hosts
                     if "%" not in host), "")

    @property
    def host_page(self) -> str:
        """The address of the host's page, which only this machine may open; "" if it cannot."""
        own = "127.0.0.1" if self._bound in ("0.0.0.0", "::") else self._bound
        # Only a connection from loopback is known to come from this machine.
        if self._server.web is None or not _is_loopback(own):
            return ""
        url = f"http://{chatproto.in_url(own)}:{self._server.port}/"
        return f"{url}#host={self._server.web.secret}"

    def lines(self) -> "list[str]":
        """What is printed when the server has started."""
        listening = "0.0.0.0" if self._bound == "::" else self._bound
        first, *others = self.hosts()
        lines = [f"Listening on {chatproto.in_url(listening)}:{self._server.port}",
                 f"Others join with: {self.command}"]
        if self.url:
            lines.append(f"or in a browser: {self.url}")
        if others:
            lines.append("Should that not lead here: " + ", ".join(others[:5]))
        elif self._bound in ("0.0.0.0", "::") and first == "127.0.0.1":
            lines.append("This machine is in no network yet: nobody else can come")
        if self.host_page:
            lines.append(f"Host's page: {self.host_page}")
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
    if sys.platform == "win32":
        how = ('in "Allow an app through Windows Firewall" tick Python for private networks, '
               "and make this network a private one")
    elif sys.platform == "darwin":
        how = ("in System Settings, Network, Firewall, Options allow Python to receive "
               "connections")
    elif os.path.exists("/etc/ufw/ufw.conf"):
        how = f"sudo ufw allow {port}"
    elif os.path.exists("/etc/firewalld"):
        how = f"sudo firewall-cmd --add-port={port}/tcp --add-port={port}/udp"
    else:
        how = (f"with ufw it is: sudo ufw allow {port}; with firewalld: "
               f"sudo firewall-cmd --add-port={port}/tcp --add-port={port}/udp")
    return ("nobody has come from another machine yet; if somebody tries, a firewall may be in "
            f"the way: {how}")


# --- The console ---

class Console:
    """What the operator can do: command() takes a line and returns the answer.

    Each command is a method, and /help is written from their docstrings.
    """

    def __init__(self, server: ChatServer, line: OperatorLine, motd_path: Optional[str],
                 chat_log: ChatLog, invitation: Invitation, stop: Callable[[], None]) -> None:
        self._server = server
        self._invitation = invitation
        self._line = line
        self._motd_path = motd_path
        # The message of the day as it was read or set last.
        self._motd: Optional[str] = None
        self._chat_log = chat_log
        self._stop = stop
        self._commands = {
            "/users": self.users, "/boot": self.boot, "/ban": self.ban, "/unban": self.unban,
            "/banned": self.banned, "/say": self.say, "/motd": self.motd, "/reload": self.reload,
            "/qr": self.qr, "/help": self.help, "/quit": self.quit}

    def command(self, line: str) -> str:
        """Do what `line` says and return what to tell the operator."""
        word, _, rest = line.strip().partition(" ")
        if not word:
            return ""
        run = self._commands.get(word.lower())
        if run is None:
            return (f"{escape(word)} is not a command here, /help lists them; "
                    "/say TEXT speaks to everybody")
        try:
            return run(rest.strip())
        except (LookupError, ValueError, ProtocolError, OSError) as error:
            return str(error.args[0] if isinstance(error, LookupError) else error)

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

    def users(self, rest: str) -> str:
        """/users: who is here"""
        users = self._server.ask(self._server.room.users)
        return "\n".join(f"{name}  {address}" for name, address in users) or "nobody is here"

    def boot(self, rest: str) -> str:
        """/boot NAME [REASON]: put somebody out"""
        name, _, reason = rest.partition(" ")
        return f"{self._server.ask(self._server.room.boot, name, reason.strip())} is out"

    def ban(self, rest: str) -> str:
        """/ban NAME [DURATION]: boot, and refuse name and address (10m, 2h, 1d; else for good)"""
        name, _, duration = rest.partition(" ")
        if not name:
            raise ValueError("/ban NAME [DURATION]")
        seconds = _seconds(duration.strip())
        return f"{self._server.ask(self._server.room.ban, name, seconds)} is banned"

    def unban(self, rest: str) -> str:
        """/unban NAME: lift the ban of a name or an address"""
        self._server.ask(self._server.room.unban, rest)
        return f"{escape(rest)} may come back"

    def banned(self, rest: str) -> str:
        """/banned: who is banned, and for how long"""
        return "\n".join(
            f"{escape(key)}  {'for good' if left == math.inf else f'{left:.0f} s more'}"
            for key, left in self._server.ask(self._server.room.banned).items()
        ) or "nobody is banned"

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

    def change_motd(self, text: Optional[str]) -> None:
        """Set another message of the day, until its file is read again; None for none.

        Raises ProtocolError when it is too long.
        """
        self._server.ask(self._server.room.set_motd, text)
        self._motd = text

    @property
    def current_motd(self) -> str:
        """The message of the day, "" when there is none."""
        return self._motd or ""

    def read_motd(self) -> Optional[str]:
        """The message of the day from its file, None when there is none.

        Raises OSError, and ProtocolError when it is too long.
        """
        if self._motd_path:
            with open(self._motd_path, encoding="utf-8", errors="replace") as file:
                text = chatproto.clean_text(file.read()).strip()
            self._motd = chatproto.check_text(text) if text else None
        return self._motd

    def reload(self, rest: str) -> str:
        """/reload: read the message of the day again, and reopen the chat log after a rotation"""
        self._server.ask(self._server.room.set_motd, self.read_motd())
        self._chat_log.reopen()
        return "reloaded"

    def reload_by_signal(self) -> None:
        """On HUP: /reload, with its answer in the log."""
        try:
            logger.info("%s", self.reload(""))
        except (OSError, ProtocolError) as error:
            logger.error("cannot reload: %s", error)

    def qr(self, rest: str) -> str:
        """/qr: the page's address as a QR code; /qr light where the terminal is light"""
        if rest not in ("", "light"):
            raise ValueError("/qr for a dark terminal, /qr light for a light one")
        url = self._invitation.url
        if not url:
            return "there is no page to go to: browsers are not served"
        import chat_web
        code = chat_web.qr_code(url)
        lines = chat_web.qr_lines(code, rest == "light", _can_show("\u2580\u2584\u2588"))
        return "\n".join([*lines, url])

    def help(self, rest: str) -> str:
        """/help: this list"""
        return "\n".join((run.__doc__ or "").strip() for run in self._commands.values())

    def quit(self, rest: str) -> str:
        """/quit: tell everybody, and end the server"""
        self._stop()
        return ""


def _can_show(text: str) -> bool:
    """Whether stdout's encoding has these characters."""
    try:
        return bool(text.encode(sys.stdout.encoding))
    except (UnicodeError, AttributeError):
        return False


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


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that answers a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """End the program."""
        complain(f"{message} (--help says what there is)")
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    default = Settings()
    parser = _Parser(
        description="The server of Roger, a LAN chat that is copied, not installed.",
        epilog=f"""Other limits: a connection has {JOIN_TIMEOUT:g} s to join, {UNJOINED} may be
        about to; a frame has {chatproto.MAX_LINE} bytes, a text {chatproto.MAX_TEXT} characters,
        a name {chatproto.MAX_NAME}; {chatproto.QUEUE_FRAMES} frames or
        {chatproto.QUEUE_BYTES >> 20} MiB may wait for one slow member before it is dropped; the
        last {LOG_FRAMES} frames or {LOG_BYTES >> 20} MiB are kept for those who come back.""")
    add = parser.add_argument
    add("port", nargs="?", type=_port, default=PORT, metavar="PORT",
        help=f"default {PORT}; 0 takes a free one")
    add("--bind", default="", metavar="ADDR", help="listen there only (default: every address)")
    add("--name", type=_title, default=_machine_name(), metavar="TITLE",
        help="what the server is called, for those who look for one (default: %(default)s)")
    add("--no-discovery", action="store_true",
        help="do not answer those who look for a server without knowing its address")
    add("--dns-name", action="append", default=[], metavar="NAME",
        help="a name by which browsers may come, besides the machine's own; more than once for "
             "several")
    add("--motd", metavar="FILE", help="message of the day, shown to whoever joins")
    add("--log", metavar="FILE",
        help="append what is said to FILE (- is stdout); private messages are not")
    add("--history", metavar="FILE",
        help="keep everything in this SQLite file, private messages too: an ACK then means that "
             "a message is on disk, and all goes on after a restart or a crash")
    add("--history-sync", choices=("full", "normal"), default="full",
        help="normal: faster on a slow disk, but a power cut may take the last acknowledged "
             "messages (a crash of the server alone does not); default full")
    add("--keep", type=_positive(float), metavar="DAYS",
        help="delete from the history what is older")
    add("--keep-messages", type=_positive(int), metavar="N",
        help="and all but the newest N messages")
    add("--export", nargs=2, metavar=("OUT", "FILE"),
        help="write what was said in public, from the history FILE of a server that does not run, "
             "to OUT: text when it ends in .txt, else JSON lines; - is stdout")
    add("--grace", type=_positive(float), default=default.grace, metavar="SECONDS",
        help="how long a lost member stays in the room (default %(default)g)")
    add("--rate", type=_positive(float), default=default.rate, metavar="N",
        help="messages a second and member, after a burst of 5 N; what is faster is slowed down "
             "and not lost, 0 is no limit (default %(default)g)")
    add("--max-members", type=_positive(int), default=default.max_members, metavar="N",
        help="default %(default)d")
    add("--max-per-address", type=_positive(int), default=default.max_per_address, metavar="N",
        help="connections from one address; this machine is exempt (default %(default)d)")
    add("--no-web", action="store_true",
        help="nothing for browsers, even where chat_web.py is there")
    add("-v", "--verbose", action="store_true", help="log more")
    add("--version", action="version", version=f"Roger {chatproto.__version__}")
    return parser


def _machine_name() -> str:
    """What this machine is called, without its domain."""
    name = chatproto.clean_text(socket.gethostname()).partition(".")[0]
    return name[:chatproto.MAX_TITLE] or "Roger"


def _arguments(argv: "Optional[list[str]]") -> argparse.Namespace:
    parser = _parser()
    arguments = parser.parse_args(argv)
    keeps = (arguments.keep, arguments.keep_messages) != (None, None)
    if keeps and arguments.history is None:
        parser.error("--keep and --keep-messages need --history FILE")
    return arguments


# --- main ---

def _open_history(arguments: argparse.Namespace) -> Optional[HistoryFile]:
    """The history file that the command line asks for. Raises HistoryError."""
    if arguments.history is None:
        return None
    seconds = math.inf if arguments.keep is None else arguments.keep * 86_400
    messages = math.inf if arguments.keep_messages is None else arguments.keep_messages
    path = os.path.abspath(arguments.history)
    return HistoryFile(path, arguments.history_sync, seconds, messages)


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


def complain(what: str) -> None:
    """One line on stderr, where there is one."""
    try:
        print(f"chat_server: {what}", file=sys.stderr, flush=True)
    except OSError:
        pass


def _load_web(console: Console, server: ChatServer, invitation: Invitation,
              names: "list[str]") -> Any:
    """What serves browsers, where chat_web.py and chat_web.html lie beside this file; else None."""
    try:
        import chat_web
    except ModuleNotFoundError as error:
        if error.name != "chat_web":
            raise
        logger.warning("nothing for browsers: chat_web.py is missing, copy it and chat_web.html "
                       "beside chat_server.py")
        return None
    ask, room = server.ask, server.room
    desk = chat_web.Desk(
        people=lambda: ask(room.people), boot=lambda name, reason: ask(room.boot, name, reason),
        say=lambda text: ask(room.say, text), motd=lambda: console.current_motd,
        set_motd=console.change_motd, invitation=lambda: (invitation.name, invitation.url))
    try:
        return chat_web.Web(desk, names=names)
    except (OSError, ValueError) as error:
        # There is no page, or one that is none of ours.
        logger.warning("nothing for browsers: %s", error)
        return None


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
    meanings = {"SIGINT": STOP, "SIGTERM": STOP, "SIGBREAK": STOP, "SIGHUP": RELOAD,
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


def _obey(server: Door, console: Console, line: OperatorLine, orders: "Orders[str]",
          had_terminal: bool) -> None:
    """Until the order to stop; tell meanwhile when nobody comes."""
    advise_at = time.monotonic() + FIREWALL_AFTER
    if _is_loopback(str(server.server_address[0])):
        advise_at = math.inf
    order = ""
    try:
        while order != STOP:
            order = _next_order(orders)
            if order == RESUME:
                line.reopen()
            elif order == RELOAD and had_terminal and not sys.stdin.isatty():
                # The terminal was closed, and nobody could end this server any more.
                order = STOP
            elif order == RELOAD:
                console.reload_by_signal()
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
    """Two settings of Python's, and what they bought."""
    # With 700, the default, a third of the time of a thousand who join is spent on looking for
    # garbage.
    gc.set_threshold(50_000, 20)
    # A thread that waits for the interpreter asks for it once in each interval, and while 10,000
    # ACKs come at once all these threads search among all that wait (futex_wake): with the default
    # of 5 ms that took both cores for seconds each time, with 1 s it still did sometimes. Instead
    # each thread has to let go by itself: none computes for long without waiting for a socket or a
    # lock.
    sys.setswitchinterval(10)


def _build(arguments: argparse.Namespace, line: OperatorLine,
           stop: Callable[[], None]) -> "tuple[Door, Console, ChatLog, Invitation]":
    """Everything but the threads of the server.

    Raises OSError, UnicodeError for an address that cannot be one, ProtocolError for a message of
    the day that is too long, HistoryError.
    """
    settings = Settings(arguments.grace, arguments.rate, arguments.max_members,
                        arguments.max_per_address)
    chat_log = ChatLog(arguments.log, line)
    history = _open_history(arguments)
    try:
        server = Door(arguments.bind, arguments.port, settings, chat_log.write, history)
        invitation = Invitation(server, arguments.name)
        console = Console(server, line, arguments.motd, chat_log, invitation, stop)
        # Directly: the sequencer does not run yet.
        server.room.set_motd(console.read_motd())
        if not arguments.no_web:
            server.web = _load_web(console, server, invitation, arguments.dns_name)
    except BaseException:
        if history is not None:
            history.close()
        raise
    return server, console, chat_log, invitation


def _why_not(error: Exception, arguments: argparse.Namespace) -> str:
    """Why the server cannot start, and what to do."""
    if isinstance(error, HistoryError):
        return f"cannot keep the history in {error}"
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
    _use_utf8()
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
    except (OSError, UnicodeError, ProtocolError, HistoryError) as error:
        complain(_why_not(error, arguments))
        return 1
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
        has_terminal = sys.stdin is not None and sys.stdin.isatty()
        if has_terminal:
            if line.open() and sys.stderr.isatty():
                log.setStream(line)
            threading.Thread(target=console.run, name="console", daemon=True).start()
        _obey(server, console, line, orders, has_terminal)
    # So long the system may have called it.
    del handler
    return 0


def _use_utf8() -> None:
    """What we print is UTF-8: also into a pipe on Windows, where Python would take cp1252.

    A terminal keeps its encoding, and shows a letter that it does not have as its code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = None if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
