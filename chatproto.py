"""chatproto: what Roger's server and its clients share: frames, messages, ACKs, retries, the windowed queue.

The protocol (TCP, port 8087)
    A frame is one JSON object in UTF-8 on one line, ended by LF (CR LF is accepted), at most 65,536 bytes:
        {"type":"chat","id":7,"text":"hi"}
    Numbered frames belong to the session. Their `id` (1 to 2**53 - 1) grows from one to the next in its direction, gaps are
    normal; each is acknowledged, retried, sent again over a new connection, and dropped when it comes twice.
    {"type":"ack","id":n} confirms every numbered frame up to and including n.
    (Text goes as UTF-8: 8,192 emoji written as \\ud83d\\ude00 escapes would be too long.)
    Bare frames (ack, join, welcome, heard, the server's history, an error before the join) belong to the connection and have
    no id.

    from a client                                     from the server
    join    name v [session seen epoch] receipts      welcome name session epoch users last resumed got missed [here] [motd]
    chat    text [to]                                 chat    from text at [cid] [to]
    rename  name                                      joined  name at      left name at reason      renamed name to at
    leave                                             heard   about count of       booted reason
    ping                                              error   code text [about] [suggestion]       ping
    history [before] [count]                          history about entries [older]

    `welcome` may carry two fields that an older peer ignores: `motd`, the message of the day, and `here`, the number of
    users when not all of them are in the list: at most 1,000 are, and what fits on the line. Whoever is not in it is announced
    (`joined`) when there is room in it; `left` and `renamed` are told of those who were announced. A text that begins with "/me " tells what its speaker does.
    A type that is not in this list is acknowledged and otherwise ignored. A frame whose fields are wrong is acknowledged
    and answered with an `error` about it. A line that is no frame at all ends the connection: FrameDecoder says which.
    A client's `history` (numbered, so an older server acknowledges and ignores it) asks for the newest `count` (20; at most
    100) messages with an id below `before` (absent: the newest of all). The answer `history` is bare, so that it neither
    takes an id nor disturbs the order: `entries` are the `chat` frames as they were sent, oldest first, as many as fit on a
    line; `older`, when there may be more, is the `before` to ask for them (`entries` may even be empty then); `about` is the
    id of the request. It is written before the ACK of the request, on the connection that the request came by: an ACK
    without it comes from a server that does not know `history`; after a new `welcome` one asks again, under a new id. Private
    messages are in it for those two who were in them, while their sessions last. One asks for the next when the last is there.

The promises (who keeps them)
    An ACK to a chat means that it has its place in the order, and with --history that it is on disk (the server's
    sequencer; ids, sessions and log then go on after a restart, too, under the same `epoch`).     Nothing twice: a receiver
    drops what is at or below the newest id it has (MessageManager).     Nothing lost over a broken connection: both sides
    keep what is not acknowledged (MessageQueue here, the server's log there).     Never a false "sent": the ACK of a
    refused frame is not written before the error that refuses it (MessageManager.send).

The parts, bottom up
    names and texts    the rules for both, and their escapes for a terminal
    Message            value objects, one class an instruction; INSTRUCTIONS is the list of them
    FrameDecoder       bytes in any pieces -> messages
    MessageSocket      the only one that touches a socket: a read that blocks, a write that never does
    Alarm              one threading.Timer for every deadline of the process
    PendingMessage     frames that wait for their ACK, encoded once however many members they go to
    MessageQueue       the window: what is in flight, and behind it a queue.Queue of what waits
    MessageManager     the facade that both roles use: sending, acknowledging, retrying, dropping duplicates

Threads and locks: nothing here starts a thread but Alarm's timer. MessageManager has one lock per connection; under it
only the MessageSocket's is taken, which is a leaf, and so is Alarm's. Only MessageSocket touches a socket and only Alarm a
clock.
Left out on purpose: rooms, users, history and screens (the roles have them), encryption, compression.
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import json
import math
import os
import queue
import re
import sched
import select
import socket
import struct
import sys
import threading
import time
import unicodedata
import weakref
from typing import Any, Callable, ClassVar, Collection, Iterator, NamedTuple, Optional, Union

__version__ = "1.0"

PORT = 8087
VERSION = 1                     # of the protocol: `v` in join
MAX_LINE = 65_536               # bytes of a frame without its line end: bounds what one peer can make the other hold
MAX_DEPTH = 32                  # brackets within brackets; ours have 2. Depth is what crashes a JSON parser (see _too_deep)
MAX_ID = 2**53 - 1              # the largest whole number that every JSON reader keeps exact
MAX_TEXT = 8_192                # characters: at 4 bytes each still half a line
MAX_NAME = 24                   # characters
MAX_MARKS = 8                   # combining marks that are shown on one letter; more would cover the lines around it

WINDOW = 64                     # frames that may be unacknowledged; 1 would be the 2009 rule: message, ACK, message
WINDOW_BYTES = 128 * 1024       # bytes of them: must stay below SEND_BUFFER, so that a write always finds room
SEND_BUFFER = 256 * 1024        # bytes asked of the kernel for each socket: the window and what retries add to it
QUEUE_FRAMES = 10_000           # frames that may wait behind the window; then put() raises queue.Full: the peer is too slow
QUEUE_BYTES = 8 * 1024 * 1024   # bytes of them
READ_SIZE = 448                 # bytes of an ordinary read: recv() takes this much memory while it waits, in every thread
READ_MORE = 65_536              # bytes that are read at once on top when there are more

RETRY_DELAY = 2.0               # seconds without progress before the oldest unacknowledged frame is sent again
MAX_RETRIES = 3                 # and after so many the connection is dead
ACK_FRAMES = 32                 # a late ACK is written by this many frames,
ACK_BYTES = 32 * 1024           # or this many bytes of them,
ACK_DELAY = 0.25                # or this many seconds after the oldest
PING_AFTER = 30.0               # seconds without sending before a ping: a dead peer is found 8 s later
LONGEST_WAIT = 3600.0           # seconds of one timer: the systems' limits are days and differ
TICK = 0.05                     # seconds: deadlines are rounded up to this, so that one ring serves many


# --- Errors ---

class ProtocolError(Exception):
    """The peer's fault. `code` is an error code of the protocol, the text says what was wrong."""

    def __init__(self, code: str, text: str, suggestion: Optional[str] = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.suggestion = suggestion


class FrameError(ProtocolError):
    """What came is no frame at all: an error answers it and the connection ends."""


class ConnectionClosed(Exception):
    """The connection ended, for the reason in the text. Nobody's fault."""


# --- Names and texts ---

_NAME_PUNCTUATION = frozenset("_-.")
_PLAIN_NAME = re.compile("[A-Za-z0-9_.-]+")             # most names: no need to look at their characters one by one
# Letters and marks by their category that show nothing: two names that differ only in them look the same.
_INVISIBLE = frozenset([0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, *range(0x180B, 0x1810),
                        *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)])
_LOOKALIKE_SCRIPTS = frozenset(["LATIN", "GREEK", "CYRILLIC"])
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# What a coloured build log holds: CSI sequences, OSC/DCS strings with their ends, and two-character escapes.
_TERMINAL_ESCAPE = re.compile("(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b[\\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\\\)?|\x1b[ -/]*[0-~]")


def name_key(name: str) -> str:
    """What two names are compared by: equal keys are the same name to a reader (NFKC, case folded)."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def check_name(name: Any) -> str:
    """Return `name` if a member may have it; else raise ProtocolError("bad-name")."""
    if type(name) is not str or not 1 <= len(name) <= MAX_NAME:
        raise ProtocolError("bad-name", f"a name has 1 to {MAX_NAME} characters")
    if not _PLAIN_NAME.fullmatch(name):
        _check_characters(name)
    if name_key(name) == "server":
        raise ProtocolError("bad-name", f"the name {name} is the server's own")
    return name


def _check_characters(name: str) -> None:
    folded = unicodedata.normalize("NFKC", name)
    for char in name + folded:
        if char not in _NAME_PUNCTUATION and (unicodedata.category(char)[0] not in "LM" and
                                              unicodedata.category(char) != "Nd" or ord(char) in _INVISIBLE):
            raise ProtocolError("bad-name", "a name is made of letters, digits and _ - .")
    scripts = {unicodedata.name(char, "").split(" ")[0] for char in folded}
    if len(scripts & _LOOKALIKE_SCRIPTS) > 1:
        raise ProtocolError("bad-name", "a name may not mix Latin, Greek and Cyrillic letters")


def check_text(text: Any) -> str:
    """Return `text` if it may be said; else raise ProtocolError("bad-text")."""
    if type(text) is not str or not 1 <= len(text) <= MAX_TEXT:
        raise ProtocolError("bad-text", f"a text has 1 to {MAX_TEXT} characters")
    if not text.isprintable() and _CONTROL.search(text):
        raise ProtocolError("bad-text", "a text has no control characters but newline and tab")
    return text


def clean_text(text: str) -> str:
    """What may be said of `text`: without terminal escapes and control characters, lone surrogates as U+FFFD."""
    text = _TERMINAL_ESCAPE.sub("", text.replace("\r\n", "\n"))
    return _CONTROL.sub(lambda found: "\ufffd" if found[0] >= "\ud800" else "", text)


def escape(text: str) -> str:
    """`text` as a terminal may show it: whatever moves, hides or reorders text becomes a visible escape; no line breaks."""
    if text.isascii() and text.isprintable():
        return text
    shown = []
    marks = 0                           # one on top of the other
    for place, char in enumerate(text):
        marks = marks + 1 if unicodedata.category(char) in ("Mn", "Me") or "\u1160" <= char <= "\u11ff" else 0
        if marks <= MAX_MARKS and _is_shown(char, text[place - 1:place], text[place + 1:place + 2]):
            shown.append(char)
        else:
            shown.append(char.encode("unicode_escape").decode("ascii"))
    return "".join(shown)


def _is_shown(char: str, before: str, after: str) -> bool:
    """True for what a reader sees as it is: printable, a space, or what joins and varies the emoji around it."""
    if char == "\u200d":
        return (before == "\ufe0f" or _is_symbol(before)) and _is_symbol(after)
    if char in "\ufe0e\ufe0f":
        return _is_symbol(before) or before != "" and before in "0123456789#*\u203c\u2049\u2139"
    if ord(char) in _INVISIBLE:
        return False
    if "\u1160" <= char <= "\u11ff":                     # vowels and finals of Hangul show only after an initial
        return "\u1100" <= before <= "\u11ff"
    return char.isprintable() or unicodedata.category(char) == "Zs"


def _is_symbol(char: str) -> bool:
    """What an emoji may be: a symbol; an arrow is Sm, a skin tone Sk."""
    return char > "\x7f" and unicodedata.category(char) in ("So", "Sm", "Sk")


def stdin_lines() -> Iterator[str]:
    """The lines of stdin without their ends. Unbuffered: a daemon thread that waits in sys.stdin would hold its lock when
    the process ends, and Python aborts over that."""
    if sys.stdin is None:                               # started without one
        return
    rest = b""
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as raw:
        while True:
            data = raw.read(READ_MORE)
            *lines, rest = (rest + (data or b"")).split(b"\n")
            for line in lines:
                yield line.decode("utf-8", "replace").rstrip("\r")
            if not data:
                break
    if rest:
        yield rest.decode("utf-8", "replace")


# --- Checks of single fields: each returns the value or raises ProtocolError ---

def _is_id(value: Any) -> bool:
    """True for a whole number that may number a frame. bool is an int to Python, and 1.0 equals 1: neither counts."""
    return type(value) is int and 1 <= value <= MAX_ID


def _count(value: Any) -> int:
    if value != 0 and not _is_id(value) or type(value) is not int:
        raise ProtocolError("bad-frame", "a number from 0 to 2**53 - 1 was expected")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not -MAX_ID <= value <= MAX_ID:       # NaN is not, either
        raise ProtocolError("bad-frame", "a number of at most 2**53 - 1 was expected")
    return value


def _string(value: Any) -> str:
    if type(value) is not str or len(value) > MAX_TEXT or not value.isascii() and _SURROGATE.search(value):
        raise ProtocolError("bad-frame", f"a string of at most {MAX_TEXT} characters was expected")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ProtocolError("bad-frame", "true or false was expected")
    return value


def _strings(value: Any) -> "tuple[str, ...]":
    if type(value) is not list:
        raise ProtocolError("bad-frame", "a list of strings was expected")
    return tuple(_string(item) for item in value)


def _chats(value: Any) -> "tuple[Chat, ...]":
    if type(value) is not list or not all(type(item) is dict and item.get("type") == Chat.type for item in value):
        raise ProtocolError("bad-frame", "a list of chat frames was expected")
    return tuple(Chat.from_fields(item) for item in value)     # type: ignore[misc]


def _version(value: Any) -> int:
    if type(value) is not int or value != VERSION:
        raise ProtocolError("bad-version", f"this side speaks version {VERSION} of the protocol")
    return value


def _acked_id(value: Any) -> int:
    if not _is_id(value):
        raise FrameError("bad-frame", "an ack needs the id that it confirms")
    return value


# --- Messages: the instruction list ---

_encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_quoted = json.encoder.encode_basestring                # what it makes of a string


def _json(value: Any) -> str:
    """A field's value as JSON: for what most fields are without an encoder, which json makes anew for each value."""
    if type(value) is str:
        return _quoted(value)
    if type(value) is int or type(value) is float and math.isfinite(value):
        return repr(value)
    if type(value) is bool:
        return "true" if value else "false"
    return _encode_json(value)


def encode_strings(texts: "list[str]") -> bytes:
    """The strings as they are in a list in a frame, joined by commas."""
    return _encode_json(texts)[1:-1].encode("utf-8")


def _field(check: Callable[[Any], Any], key: str = "", **default: Any) -> Any:
    """A field of a message: how it is checked, and its key on the wire where that is not the attribute's name."""
    return dataclasses.field(metadata={"check": check, "key": key}, **default)


@dataclasses.dataclass(frozen=True)
class Message:
    """A value object that turns itself into a frame and back. A field that is None is left out. This one is bare."""

    type: ClassVar[str] = ""
    id: ClassVar[int] = 0

    @classmethod
    def from_fields(cls, fields: "dict[str, Any]") -> Message:
        """The message of a decoded frame; raises ProtocolError when a field is missing or wrong."""
        message = cls.__new__(cls)
        values = message.__dict__           # past __init__, which takes as long as all of this where nothing may be assigned
        for name, key, _, check, required in _wire_fields(cls):
            value = fields.get(key)
            if value is not None or required:       # a required one that is missing fails its check, as None
                values[name] = check(value)
        return message

    def encode(self) -> bytes:
        """The frame, with its line end."""
        frame = f'{{"type":"{self.type}"' + (f',"id":{self.id}' if self.id else "")
        for name, _, prefix, _, _ in _wire_fields(type(self)):
            value = getattr(self, name)
            if value is not None:
                frame += prefix + _json(value)
        return (frame + "}\n").encode("utf-8")


@dataclasses.dataclass(frozen=True)
class Numbered(Message):
    """A message with an id: it belongs to the session and is acknowledged."""

    id: int = dataclasses.field()                   # type: ignore[misc]  # a class attribute in what is bare

    @classmethod
    def from_fields(cls, fields: "dict[str, Any]") -> Message:
        id = cls._id_of(fields)
        message = super().from_fields(fields)
        message.__dict__["id"] = id
        return message

    @staticmethod
    def _id_of(fields: "dict[str, Any]") -> int:
        return _frame_id(fields)


@functools.lru_cache(maxsize=None)
def _wire_fields(cls: Any) -> "tuple[tuple[str, str, str, Callable[[Any], Any], bool], ...]":
    """Of each field of a message class: attribute, key on the wire, what comes before it in a frame, check, whether it is
    required."""
    keys = [(f, f.metadata["key"] or f.name) for f in dataclasses.fields(cls) if f.metadata]
    return tuple((f.name, key, f',"{key}":', f.metadata["check"], f.default is dataclasses.MISSING) for f, key in keys)


def _frame_id(fields: "dict[str, Any]") -> int:
    """The id of a numbered frame; without one it is no frame at all."""
    if not _is_id(fields.get("id")):
        raise FrameError("bad-frame", "a numbered frame needs an id from 1 to 2**53 - 1")
    return fields["id"]


@dataclasses.dataclass(frozen=True)
class Ack(Message):
    """Confirms every numbered frame up to and including `upto`."""
    type = "ack"
    upto: int = _field(_acked_id, key="id")


@dataclasses.dataclass(frozen=True)
class Join(Message):
    """A client's first frame: who it is, and with `session`, `seen` and `epoch` where it wants to go on."""
    type = "join"
    name: str = _field(check_name)
    v: int = _field(_version, default=VERSION)
    session: Optional[str] = _field(_string, default=None)
    seen: int = _field(_count, default=0)
    epoch: Optional[str] = _field(_string, default=None)
    receipts: bool = _field(_flag, default=False)


@dataclasses.dataclass(frozen=True)
class Say(Numbered):
    """A client says something, to all or to one."""
    type = "chat"
    text: str = _field(check_text)
    to: Optional[str] = _field(_string, default=None)


@dataclasses.dataclass(frozen=True)
class Rename(Numbered):
    """A client takes another name."""
    type = "rename"
    name: str = _field(check_name)


@dataclasses.dataclass(frozen=True)
class Leave(Numbered):
    """A client goes on purpose."""
    type = "leave"


@dataclasses.dataclass(frozen=True)
class Ping(Numbered):
    """Asks for nothing but its ACK; both sides send it."""
    type = "ping"


@dataclasses.dataclass(frozen=True)
class Recall(Numbered):
    """A client asks for the newest `count` messages before the id `before`; `Recalled` answers."""
    type = "history"
    before: Optional[int] = _field(_count, default=None)
    count: int = _field(_count, default=20)


@dataclasses.dataclass(frozen=True)
class Welcome(Message):
    """The client is in; what it missed follows, then what is new."""
    type = "welcome"
    name: str = _field(_string)
    session: str = _field(_string)
    epoch: str = _field(_string)
    users: "tuple[str, ...]" = _field(_strings)
    last: int = _field(_count)
    resumed: bool = _field(_flag, default=False)
    got: int = _field(_count, default=0)
    missed: int = _field(_count, default=0)
    here: Optional[int] = _field(_count, default=None)
    motd: Optional[str] = _field(check_text, default=None)

    def encode(self, listed: bytes = b"") -> bytes:
        """The frame. `listed` are names that come before `users`, encoded already and joined by commas: a thousand names
        take 2 us then, else 90."""
        frame = super().encode()
        if listed:
            frame = frame.replace(b'"users":[', b'"users":[' + listed + (b"," if self.users else b""), 1)
        return frame


@dataclasses.dataclass(frozen=True)
class Chat(Numbered):
    """Somebody said something; its speaker knows it by `cid`, the id under which it sent it."""
    type = "chat"
    sender: str = _field(_string, key="from")
    text: str = _field(check_text)
    at: float = _field(_number)
    cid: Optional[int] = _field(_count, default=None)
    to: Optional[str] = _field(_string, default=None)


@dataclasses.dataclass(frozen=True)
class Joined(Numbered):
    """Somebody is in."""
    type = "joined"
    name: str = _field(_string)
    at: float = _field(_number)


@dataclasses.dataclass(frozen=True)
class Left(Numbered):
    """Somebody is out."""
    type = "left"
    name: str = _field(_string)
    at: float = _field(_number)
    reason: str = _field(_string, default="")


@dataclasses.dataclass(frozen=True)
class Renamed(Numbered):
    """Somebody has another name."""
    type = "renamed"
    name: str = _field(_string)
    to: str = _field(_string)
    at: float = _field(_number)


@dataclasses.dataclass(frozen=True)
class Heard(Message):
    """So many (`count`) of the members who should hear the chat `about` (`of`) have acknowledged it."""
    type = "heard"
    about: int = _field(_count)
    count: int = _field(_count)
    of: int = _field(_count)


@dataclasses.dataclass(frozen=True)
class Recalled(Message):
    """Older messages, oldest first, as the request `about` asked; before `older` there may be more."""
    type = "history"
    about: int = _field(_count)
    entries: "tuple[Chat, ...]" = _field(_chats)
    older: Optional[int] = _field(_count, default=None)

    def encode(self) -> bytes:
        return self.encode_frames(self.about, [chat.encode() for chat in self.entries], self.older)

    @staticmethod
    def encode_frames(about: int, frames: "list[bytes]", older: Optional[int]) -> bytes:
        """The same from chats that are encoded already."""
        end = b"]}\n" if older is None else b'],"older":%d}\n' % older
        return b'{"type":"history","about":%d,"entries":[' % about + b",".join(frame.rstrip() for frame in frames) + end


@dataclasses.dataclass(frozen=True)
class Booted(Numbered):
    """The client is out; the connection closes."""
    type = "booted"
    reason: str = _field(_string, default="")


@dataclasses.dataclass(frozen=True)
class Error(Numbered):
    """What was wrong with the frame `about`, or with the connection. Bare (id 0) before the join."""
    type = "error"
    code: str = _field(_string)
    text: str = _field(_string, default="")
    about: Optional[int] = _field(_count, default=None)
    suggestion: Optional[str] = _field(_string, default=None)

    @staticmethod
    def _id_of(fields: "dict[str, Any]") -> int:
        return _frame_id(fields) if "id" in fields else 0


@dataclasses.dataclass(frozen=True)
class Unknown(Numbered):
    """A frame of a type that is not in the list: acknowledged where it has an id, and otherwise ignored."""
    kind: str


@dataclasses.dataclass(frozen=True)
class Invalid(Numbered):
    """A frame whose fields are wrong: acknowledged where it has an id, and refused with `error`."""
    kind: str
    error: ProtocolError


FROM_CLIENT, FROM_SERVER = "client", "server"
INSTRUCTIONS: "dict[str, dict[str, type[Message]]]" = {
    FROM_CLIENT: {cls.type: cls for cls in (Ack, Join, Say, Rename, Leave, Ping, Recall)},
    FROM_SERVER: {cls.type: cls for cls in (Ack, Welcome, Chat, Joined, Left, Renamed, Heard, Recalled, Booted, Error, Ping)},
}


# --- Framing ---

# One ACK and nothing else: most of what a server reads. Its threads look for it before they decode, as each holds up all
# others until it is back in its recv(): 20 us less for each ACK, where many come at once.
LONE_ACK = re.compile(rb'\{"type":"ack","id":([1-9][0-9]{0,14})\}\n')
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?')


class FrameDecoder:
    """Turns the bytes of one connection, in any pieces, into messages. After a FrameError it is of no more use."""

    __slots__ = ("_instructions", "partial", "line")

    def __init__(self, direction: str) -> None:
        self._instructions = INSTRUCTIONS[direction]    # the types that may come from that side
        self.partial = bytearray()                     # a line without its end: at most MAX_LINE bytes
        self.line = b""                                 # the line of the message that was yielded last

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that `data` completes; raise FrameError at the first line that is no frame."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            if self.partial:
                line = bytes(self.partial) + line
                self.partial.clear()
            self.line = line
            yield decode(line, self._instructions)
        # What cannot become a frame is refused now: a TLS greeting has no line end, and its sender waits for us.
        if not self.partial and rest.lstrip(b" \t\r")[:1] not in (b"", b"{"):
            raise FrameError("bad-frame", "a frame is a JSON object")
        self.partial += rest
        if len(self.partial) > MAX_LINE + 1:           # one more for the CR of a CR LF
            raise FrameError("too-long", f"a line has at most {MAX_LINE} bytes")


def decode(line: bytes, instructions: "dict[str, type[Message]]") -> Message:
    """The message in one line. Raises FrameError if it is no frame; wrong fields make an Invalid."""
    if line.endswith(b"\r"):
        line = line[:-1]
    if len(line) > MAX_LINE:
        raise FrameError("too-long", f"a line has at most {MAX_LINE} bytes")
    if _too_deep(line):
        raise FrameError("bad-frame", f"a frame has at most {MAX_DEPTH} brackets within brackets")
    try:
        text = line.decode("utf-8").strip(" \t\r")
        fields, end = _parse_json(text)
        if end < len(text):
            raise ValueError("more than one value")
    except (ValueError, RecursionError) as error:       # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise FrameError("bad-frame", "a frame is one JSON object in UTF-8 on one line") from error
    if type(fields) is not dict or type(fields.get("type")) is not str:
        raise FrameError("bad-frame", "a frame is a JSON object with a type")
    cls = instructions.get(fields["type"])
    if cls is None:
        return Unknown(fields["id"] if _is_id(fields.get("id")) else 0, fields["type"])
    try:
        return cls.from_fields(fields)
    except FrameError:
        raise
    except ProtocolError as error:
        return Invalid(_frame_id(fields) if issubclass(cls, Numbered) else 0, cls.type, error)


def _too_deep(line: bytes) -> bool:
    """Whether brackets nest deeper than MAX_DEPTH. json.loads recurses: 65,000 of them overflow a thread's small stack."""
    if line.count(b"[") + line.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for char in _STRING.sub(b"", line):
        depth += (char in b"[{") - (char in b"]}")
        if depth > MAX_DEPTH:
            return True
    return False


def _no_duplicates(pairs: "list[tuple[str, Any]]") -> "dict[str, Any]":
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key comes twice")
    return fields


def _no_constants(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# raw_decode is decode() without two searches for white space, which strip() does in a tenth of the time.
_parse_json = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constants).raw_decode


# --- MessageSocket ---

DONT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)         # Windows has none: select() is asked instead


def wait_readable(sock: socket.socket, seconds: float) -> bool:
    """Whether `sock` can be read within `seconds`. Not settimeout(): that would change the other thread's send, too."""
    seconds = min(seconds, LONGEST_WAIT)
    if hasattr(select, "poll"):                         # select() refuses descriptors from 1,024 up
        poller = select.poll()
        poller.register(sock, select.POLLIN)
        return bool(poller.poll(seconds * 1000))
    return bool(select.select([sock], [], [], seconds)[0])


class MessageSocket:
    """A connected socket with one reading thread, and writes from any thread that never block.

    The writer holds its MessageManager's lock, so that frames are never torn and keep their order. What the kernel does
    not take at once (rare: the window is smaller than its buffer) stays in `_unsent` and goes first next time.
    """

    __slots__ = ("_sock", "_closing", "_closed", "_unsent")     # the server has one for each member

    UNSENT = 256 * 1024         # bytes the kernel would not take; beyond, the peer is cut off: it has not read for long

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._closing = threading.Lock()    # no shutdown() of a descriptor that close() has given away; a leaf
        self._closed = False                # under _closing
        self._unsent = b""                  # see above
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        except OSError:                     # macOS, when the peer has reset it already: the reader will see
            pass

    def read(self, timeout: Optional[float] = None) -> bytes:
        """Block for bytes, at most `timeout` seconds: then b"". Raises ConnectionClosed at the end of the connection."""
        try:
            if timeout is not None and not wait_readable(self._sock, timeout):
                return b""
            data = self._sock.recv(READ_SIZE)
        except (OSError, ValueError) as error:          # ValueError: closed under a poll()
            raise ConnectionClosed(getattr(error, "strerror", None) or str(error)) from error
        if not data:
            raise ConnectionClosed("the other side closed the connection")
        if len(data) == READ_SIZE and DONT_WAIT:       # a window of frames is to be taken in one piece
            try:
                data += self._sock.recv(READ_MORE, DONT_WAIT)
            except OSError:                             # there is no more, or the next read() will tell
                pass
        return data

    def write(self, data: bytes) -> None:
        """Send `data` after what is still unsent. MUST NOT block. An end of the connection is left to the reader."""
        if self._unsent:
            data = self._unsent + data
            self._unsent = b""
        try:
            if DONT_WAIT or select.select([], [self._sock], [], 0)[1]:
                sent = self._sock.send(data, DONT_WAIT)
            else:
                sent = 0
        except BlockingIOError:
            sent = 0
        except (OSError, ValueError):
            self.cut()
            return
        if sent < len(data):
            self._unsent = data[sent:]
            if len(self._unsent) > self.UNSENT:
                self.cut()

    def finish(self) -> None:
        """End our half: the peer reads what was written, then the end. Keeps reading, else the rest could be lost."""
        self._shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """End both halves at once: wakes the reader, which close() would not."""
        self._shutdown(socket.SHUT_RDWR)

    def hung_up(self) -> bool:
        """True when the peer has ended the connection; other systems than Linux say so when all that it said is read.
        Any thread; does not wait."""
        with self._closing:
            try:
                if self._closed:
                    return True
                if hasattr(select, "POLLRDHUP"):
                    poller = select.poll()
                    poller.register(self._sock, select.POLLRDHUP)
                    return bool(poller.poll(0))
                return wait_readable(self._sock, 0) and not self._sock.recv(1, socket.MSG_PEEK | DONT_WAIT)
            except BlockingIOError:                     # the reader was faster
                return False
            except OSError:
                return True

    def close(self) -> None:
        """Give the descriptor back. Only the reader calls it, after its manager's detach(): nobody writes any more."""
        with self._closing:
            self._closed = True
            self._sock.close()

    def _shutdown(self, how: int) -> None:
        with self._closing:
            try:
                if not self._closed:
                    self._sock.shutdown(how)
            except OSError:                             # it ended before
                pass


# --- Alarm ---

def weakly(method: Callable[..., None], *arguments: Any) -> Callable[[], None]:
    """An action for the alarm that does not keep the method's object alive: it may be gone long before the deadline."""
    owner, function = method.__self__, method.__func__          # type: ignore[attr-defined]
    return functools.partial(_if_alive, weakref.ref(owner), function, *arguments)


def _if_alive(reference: "weakref.ref[Any]", function: Callable[..., None], *arguments: Any) -> None:
    owner = reference()
    if owner is not None:
        function(owner, *arguments)


class Alarm:
    """One threading.Timer for every deadline of the process, armed for the earliest and only while there is one.

    at() may be called from any thread. Actions run on the timer's thread, one after the other, so a long one delays the
    others. There is no cancel: it could not stop an action that is already running, so each looks again whether it is
    still wanted.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, timer: Callable[..., Any] = threading.Timer) -> None:
        self.clock = clock
        self._new_timer = timer
        self._deadlines = sched.scheduler(clock, lambda seconds: None)
        self._lock = threading.Lock()       # protects the three below; a leaf
        self._timer: Any = None             # the armed one
        self._rings_at = math.inf           # when it rings
        self._closed = False

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Run `action` at `when` by the clock, up to TICK later."""
        when = math.ceil(when / TICK) * TICK
        self._deadlines.enterabs(when, 0, action)
        self._arm(when)

    def close(self) -> None:
        """Never ring again."""
        with self._lock:
            self._closed = True
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _arm(self, when: float) -> None:
        with self._lock:
            if self._closed or self._rings_at <= when:
                return
            earlier = self._timer
            self._rings_at = when
            seconds = min(max(0.0, when - self.clock()), LONGEST_WAIT)
            self._timer = timer = self._new_timer(seconds, functools.partial(self._ring, when))
        timer.daemon = True                 # a deadline is no reason to keep a process alive
        timer.name = "alarm"
        try:
            timer.start()                   # ends by itself after one ring
        except RuntimeError:                # no thread to be had: the next at() tries again, and `earlier` still rings
            with self._lock:
                if self._timer is timer:
                    self._rings_at, self._timer = math.inf, None
            return
        if earlier is not None:
            earlier.cancel()

    def _ring(self, when: float) -> None:
        with self._lock:
            if self._rings_at == when:      # else it was cancelled too late, which does no harm
                self._rings_at, self._timer = math.inf, None
            if self._closed:
                return
        delay = self._deadlines.run(blocking=False)
        if delay is not None:
            self._arm(self.clock() + delay)


# --- PendingMessage and MessageQueue ---

class PendingMessage:
    """One or more frames that wait for their ACK, in the order of their ids. Shared by all they go to, so never changed."""

    __slots__ = ("ids", "frames", "count", "newest", "size", "_data", "_wrapped", "_halves")

    def __init__(self, ids: "list[int]", frames: "list[bytes]") -> None:
        self.ids = ids
        self.frames = frames
        self.count = len(ids)
        self.newest = ids[-1]
        self.size = sum(map(len, frames))           # bytes
        self._data = b""                            # the frames in one piece, once somebody has asked
        self._wrapped: Optional[PendingMessage] = None      # the same frames in their envelopes, once somebody has asked
        self._halves: "Optional[dict[int, tuple[PendingMessage, PendingMessage]]]" = None       # what split() returned

    @property
    def data(self) -> bytes:
        """All frames in one piece. (Two threads may join them at once: both get the same bytes.) Not made before it is asked
        for: most pieces that split() returns are cut again, and never sent as they are."""
        if not self._data:
            self._data = self.frames[0] if len(self.frames) == 1 else b"".join(self.frames)
        return self._data

    def wrapped(self, wrap: Callable[[bytes], bytes]) -> PendingMessage:
        """The same with each frame in the envelope that `wrap` puts it into: made once for all connections that need it."""
        if self._wrapped is None:
            self._wrapped = PendingMessage(self.ids, [wrap(frame) for frame in self.frames])
        return self._wrapped

    def split(self, count: int) -> "tuple[PendingMessage, PendingMessage]":
        """The first `count` frames and the rest: cut once for all who need it cut there."""
        if self._halves is None:
            self._halves = {}
        if count not in self._halves:
            self._halves[count] = (PendingMessage(self.ids[:count], self.frames[:count]),
                                   PendingMessage(self.ids[count:], self.frames[count:]))
        return self._halves[count]


class MessageQueue:
    """What is to be sent on one connection: at most WINDOW frames in flight, the others wait in a queue.Queue.

    At most QUEUE_FRAMES frames and QUEUE_BYTES bytes wait, but for a replay, and for one piece that comes when nothing waits
    (the server's pieces are bounded by its BATCH_BYTES). Pure bookkeeping: put(), take() and acknowledge() say what is to be
    written, their caller writes it. Not locked: its MessageManager's lock is held around every call.
    """

    __slots__ = ("_in_flight", "_waiting", "_front", "frames_in_flight", "_bytes_in_flight", "frames_waiting",
                 "_bytes_waiting", "_spare", "newest_sent", "acked")

    def __init__(self, newest: int = 0) -> None:
        self._in_flight: "list[PendingMessage]" = []    # lists and no deques: they are short, and an empty deque has 760 bytes
        self._waiting: "Optional[queue.Queue[PendingMessage]]" = None   # made (4 KB) when something has to wait
        self._front: "list[PendingMessage]" = []        # what goes out before the others that wait: rests and resends
        self.frames_in_flight = 0
        self._bytes_in_flight = 0
        self.frames_waiting = 0
        self._bytes_waiting = 0
        self._spare = (0, 0)            # frames and bytes of a replay: they may wait besides the bound
        self.newest_sent = newest       # the highest id that was written
        self.acked = newest             # the highest id that the peer confirmed

    @property
    def oldest(self) -> bytes:
        """The oldest frame in flight; b"" when there is none."""
        return self._in_flight[0].frames[0] if self._in_flight else b""

    @property
    def empty(self) -> bool:
        """Whether everything that was put in has been acknowledged."""
        return not self._in_flight and not self.frames_waiting

    def put(self, pending: PendingMessage, replay: bool = False) -> bytes:
        """Add frames; return what is to be written now: they themselves when nothing waits and the window has room.

        Raises queue.Full when too much waits already. A replay is exempt, and does not count against what follows it.
        """
        if (not self.frames_waiting and self.frames_in_flight + pending.count <= WINDOW
                and self._bytes_in_flight + pending.size <= WINDOW_BYTES):
            self._in_flight.append(pending)             # as _fly(): its call costs 1 % of a delivery
            self.frames_in_flight += pending.count
            self._bytes_in_flight += pending.size
            if pending.newest > self.newest_sent:
                self.newest_sent = pending.newest
            return pending.data
        self.put_later(pending, replay)
        return self.take()

    def put_later(self, pending: PendingMessage, replay: bool = False) -> None:
        """Add frames behind all that waits, without taking any. Raises queue.Full like put()."""
        count = pending.count
        if replay:
            self._spare = (self._spare[0] + count, self._spare[1] + pending.size)
        if self.frames_waiting and (self.frames_waiting + count > QUEUE_FRAMES + self._spare[0]
                                    or self._bytes_waiting + pending.size > QUEUE_BYTES + self._spare[1]):
            raise queue.Full
        if self._waiting is None:
            self._waiting = queue.Queue()
        self._waiting.put_nowait(pending)
        self.frames_waiting += count
        self._bytes_waiting += pending.size

    def take(self) -> bytes:
        """All that waits and that the window has room for, in one piece; from now on it is in flight."""
        parts = []
        while self.frames_waiting:
            pending = self._front.pop(0) if self._front or self._waiting is None else self._waiting.get_nowait()
            fit = self._fit(pending)
            if fit < pending.count:
                if not fit:
                    self._front.insert(0, pending)
                    break
                pending, rest = pending.split(fit)
                self._front.insert(0, rest)
            self.frames_waiting -= pending.count
            self._bytes_waiting -= pending.size
            self._fly(pending)
            parts.append(pending.data)
        if not self.frames_waiting:
            self._spare = (0, 0)
        return b"".join(parts)

    def acknowledge(self, upto: int) -> bool:
        """Forget what the peer has; return whether that was news. Raises FrameError for an id that was never sent."""
        if upto > self.newest_sent:
            raise FrameError("bad-frame", f"an ack of {upto}, which was never sent")
        if upto <= self.acked:
            return False
        self.acked = upto
        if upto == self.newest_sent:                            # the usual case
            self._in_flight.clear()
            self.frames_in_flight = self._bytes_in_flight = 0
        while self._in_flight and self._in_flight[0].ids[0] <= upto:
            pending = self._in_flight.pop(0)
            if pending.newest > upto:
                pending, rest = pending.split(sum(id <= upto for id in pending.ids))
                self._in_flight.insert(0, rest)
            self.frames_in_flight -= pending.count
            self._bytes_in_flight -= pending.size
        return True

    def rewind(self) -> None:
        """The connection is gone: what was in flight waits again, in front, to be sent under the same ids."""
        for pending in self._in_flight:
            self.frames_waiting += pending.count
            self._bytes_waiting += pending.size
        self._front[:0] = self._in_flight
        self._in_flight.clear()
        self.frames_in_flight = self._bytes_in_flight = 0

    def clear(self) -> None:
        """Forget every frame; `acked` stays."""
        self._in_flight.clear()
        self._front.clear()
        self._waiting = None
        self.frames_in_flight = self._bytes_in_flight = self.frames_waiting = self._bytes_waiting = 0

    def _fly(self, pending: PendingMessage) -> None:
        self._in_flight.append(pending)
        self.frames_in_flight += pending.count
        self._bytes_in_flight += pending.size
        if pending.newest > self.newest_sent:
            self.newest_sent = pending.newest

    def _fit(self, pending: PendingMessage) -> int:
        """How many frames of `pending` the window has room for."""
        room = min(WINDOW - self.frames_in_flight, pending.count)
        room_bytes = WINDOW_BYTES - self._bytes_in_flight
        if pending.size <= room_bytes:
            return room
        for fit in range(room):
            room_bytes -= len(pending.frames[fit])
            if room_bytes < 0:
                return fit
        return room


# --- MessageManager ---

class MessageManager:
    """The facade over one peer's messages and ACKs: sends, acknowledges, retries, drops duplicates.

    The server makes one for each connection; a client keeps one for its session, and detach() and attach() carry what is
    not acknowledged over to the next connection. Every method may be called from any thread and none blocks. `on_dead`
    (the peer confirms nothing any more) and `on_idle` (time for a ping) are called on the alarm's thread, without the lock.
    `wrap` is for a connection that is no plain socket: what it writes for a frame (one function for all of them, see
    PendingMessage.wrapped). `write` is for one over which nothing but bare frames goes until attach().
    """

    __slots__ = ("_alarm", "_wrap", "_on_dead", "_on_idle", "_lock", "_write", "_closed", "_queue", "_received", "_refusal",
                 "_ack_held", "_late", "_late_bytes", "_ack_by", "_since", "_retries", "_last_bare", "_ring_at", "patient",
                 "__weakref__")

    def __init__(self, alarm: Alarm, on_dead: Callable[[], None], on_idle: Callable[[], None],
                 wrap: Optional[Callable[[bytes], bytes]] = None, write: Optional[Callable[[bytes], None]] = None) -> None:
        self._alarm = alarm
        self._wrap = wrap
        self._on_dead = on_dead
        self._on_idle = on_idle
        # Protects everything below and keeps writes in the order of ids: the writes, which never block, are made under
        # it, and so MessageSocket's lock may be taken inside. Neither a callback nor the alarm is called while it is held.
        self._lock = threading.Lock()
        self._write = write             # None while there is no connection
        self._closed = False            # and there will be none again
        self._queue = MessageQueue()
        self._received = 0              # newest id of the peer's numbered frames
        self._refusal = 0               # id of our newest error that refuses a frame of the peer
        self._ack_held = False          # an ACK waits until that error has been written
        self._late = 0                  # frames that a late ACK will confirm
        self._late_bytes = 0            # and their bytes
        self._ack_by = math.inf         # when it has to be written
        self._since = 0.0               # when the oldest frame in flight was sent, or anything was confirmed after that
        self._retries = 0               # of it
        self._last_bare = 0.0           # when anything was written that is not in flight now
        self._ring_at = math.inf        # when the alarm calls us; earlier requests that it still holds are stale
        self.patient = False            # our side delays reading, ACKs included: so they are not missed

    # What goes out

    def attach(self, write: Callable[[bytes], None], confirmed: int = 0, received: int = 0) -> None:
        """A connection is there: `confirmed` is what the peer has of ours, `received` what we have of its. Sends the rest."""
        with self._lock:
            if self._closed:
                return
            self._write = write
            if self._queue.newest_sent < confirmed:         # the peer knows of an earlier manager's frames
                self._queue.newest_sent = confirmed
            self._queue.acknowledge(confirmed)
            self._queue.rewind()
            self._received = received
            self._retries = 0
            self._since = self._last_bare = self._alarm.clock()
            self._put_out(self._queue.take())
            ring_at = self._next_ring()
        self._ring(ring_at)

    def detach(self) -> None:
        """The connection is gone: keep everything that is not confirmed for the next one."""
        with self._lock:
            self._write = None
            self._late = self._late_bytes = 0
            self._ack_by = self._ring_at = math.inf
            self._ack_held = False
            self.patient = False

    def close(self) -> None:
        """detach() for good: when this returns nobody writes any more."""
        with self._lock:
            self._closed = True                 # first: an attach() of another thread comes before detach() or does nothing
        self.detach()
        with self._lock:
            self._queue.clear()

    def send(self, pending: PendingMessage, replay: bool = False, refusal: int = 0) -> None:
        """Send numbered frames, at once or when the window opens. Raises queue.Full when too many wait already.

        `refusal` is the id of the newest error among them that refuses a frame of the peer: no ACK overtakes it, the peer
        would take that for a yes. `replay` is for MessageQueue.put().
        """
        if self._wrap is not None:
            pending = pending.wrapped(self._wrap)
        with self._lock:
            if refusal > self._refusal:
                self._refusal = refusal
            if self._write is None:
                self._queue.put_later(pending, replay)
                return
            was_empty = not self._queue.frames_in_flight
            data = self._queue.put(pending, replay)
            if data:
                self._write(data)
                if self._ack_held:
                    self._put_held_ack()
            if not was_empty:                                   # the alarm knows already
                return
            self._since = self._alarm.clock()
            if self._ring_at <= self._since + RETRY_DELAY:      # it rings early enough: the usual case
                return
            ring_at = self._next_ring()
        self._ring(ring_at)

    def refuses(self, refusal: int) -> None:
        """Our error `refusal` refuses a frame of the peer and will be sent later: no ACK may overtake it."""
        with self._lock:
            self._refusal = max(self._refusal, refusal)

    def send_bare(self, frame: bytes) -> None:
        """Write a bare frame now, past window and queue; nothing happens when there is no connection."""
        with self._lock:
            self._put_bare(frame)

    # What comes in

    def acknowledged(self, upto: int) -> bool:
        """The peer confirms our frames up to `upto`; what waited goes out in one write. Returns whether that was news;
        raises FrameError for an id that was never sent."""
        with self._lock:
            if not self._queue.acknowledge(upto):
                return False
            self._since = self._alarm.clock()
            self._retries = 0
            if self._queue.frames_waiting and self._write is not None:
                self._put_out(self._queue.take())
        return True

    def is_duplicate(self, id: int) -> bool:
        """Whether the peer's frame `id` was received before. (Only the thread that calls received() may rely on it.)"""
        return id <= self._received

    def received(self, id: int, size: int = 0) -> None:
        """The peer's frame `id` of `size` bytes has done its work: confirm it late. A duplicate is confirmed at once."""
        with self._lock:
            duplicate = id <= self._received
            if not duplicate:
                self._received = id
            self._late += 1
            self._late_bytes += size
            if duplicate or self._late >= ACK_FRAMES or self._late_bytes >= ACK_BYTES:
                self._put_ack()
            elif self._late == 1:
                self._ack_by = self._alarm.clock() + ACK_DELAY - TICK
            else:                               # the alarm knows already
                return
            ring_at = self._next_ring()
        self._ring(ring_at)

    def acknowledge(self, upto: int) -> None:
        """Confirm the peer's frames up to `upto` at once, but not before a refusal among them is written."""
        with self._lock:
            self._received = upto
            if self._queue.newest_sent < self._refusal:
                self._ack_held = True
            else:
                self._put_ack()

    # What is known

    @property
    def seen(self) -> int:
        """The newest id received of the peer's numbered frames."""
        return self._received

    @property
    def acked(self) -> int:
        """The newest id that the peer has confirmed."""
        return self._queue.acked

    @property
    def waiting(self) -> int:
        """How many frames wait for the window to open."""
        return self._queue.frames_waiting

    @property
    def empty(self) -> bool:
        """Whether the peer has confirmed everything."""
        with self._lock:
            return self._queue.empty

    # Under the lock

    def _put_out(self, data: bytes) -> None:
        """Write `data`, and the ACK that waited for an error in it. Needs the lock."""
        if not data or self._write is None:
            return
        self._write(data)
        if self._ack_held:
            self._put_held_ack()

    def _put_held_ack(self) -> None:
        """Write the ACK that waits, if the error that it waits for is written. Needs the lock."""
        if self._queue.newest_sent >= self._refusal:
            self._put_ack()

    def _put_bare(self, frame: bytes) -> None:
        """Write a bare frame. Needs the lock."""
        assert self._lock.locked()
        self._put_out(frame if self._wrap is None else self._wrap(frame))
        self._last_bare = self._alarm.clock()

    def _put_ack(self) -> None:
        """Confirm what was received. Needs the lock."""
        assert self._lock.locked()
        self._late = self._late_bytes = 0
        self._ack_by = math.inf
        self._ack_held = False
        if self._received:
            self._put_bare(Ack(self._received).encode())

    def _deadline(self) -> float:
        """When something has to be done. Needs the lock."""
        # Whole seconds for pings, so that a thousand idle members wake the process once a second, not a thousand times.
        todo = self._since + RETRY_DELAY if self._queue.oldest else math.ceil(self._quiet_since() + PING_AFTER)
        return min(todo, self._ack_by)

    def _quiet_since(self) -> float:
        """When anything was written, or what was written was confirmed. Needs the lock."""
        return max(self._last_bare, self._since)

    def _next_ring(self) -> float:
        """When the alarm has to be asked for a ring; inf when it will ring early enough anyway. Needs the lock."""
        when = math.inf if self._write is None else self._deadline()
        if when >= self._ring_at:
            return math.inf
        self._ring_at = when
        return when

    # Time

    def _ring(self, when: float) -> None:
        if when < math.inf:
            self._alarm.at(when, weakly(self._rung, when))

    def _rung(self, when: float) -> None:
        """On the alarm's thread: do what is due, and ask for the next ring."""
        dead = idle = False
        with self._lock:
            if when != self._ring_at or self._write is None:
                return                      # stale: the connection went, or an earlier ring did the work
            self._ring_at = math.inf
            now = self._alarm.clock()
            if now >= self._ack_by:
                self._put_ack()
            if not self._queue.oldest:
                idle = now >= self._quiet_since() + PING_AFTER
            elif self.patient:
                self._since = now
            elif now >= self._since + RETRY_DELAY:
                dead = self._retries >= MAX_RETRIES
                self._retries += 1
                self._since = now
                if dead:
                    self._write = None
                self._put_out(self._queue.oldest)
            if idle:
                self._last_bare = now
                self._ring_at = ring_at = now + RETRY_DELAY         # for the ping's ACK; send() need not ask again
            else:
                ring_at = self._next_ring()
        if dead:
            self._on_dead()
        elif idle:
            self._on_idle()
        self._ring(ring_at)


# --- Addresses and discovery ---

# Discovery is a question by UDP to everybody on the LAN, and each server's answer to the asker:
#     {"roger":1,"ask":TOKEN}    padded with blanks to QUESTION_SIZE, so that no answer is longer
#     {"roger":1,"answer":TOKEN,"name":...,"port":...,"here":...,"version":...,"tls":...,"id":...}
# A server speaks when it is asked, and never by itself. `id` tells servers of the same name apart,
# and is one for all the answers of a server that is asked over several interfaces.
QUESTION_SIZE = 512
# The groups that are asked, besides the broadcast address. Routers pass on neither.
GROUP4, GROUP6 = "239.255.80.87", "ff02::8087"
BROADCAST = "255.255.255.255"
# Characters of a server's name.
MAX_TITLE = 40

# What an interface is, the likelier one to be the LAN first.
WIRE, MACHINES, TUNNEL = range(3)
# How the systems name the interfaces that lead to containers and virtual machines, ...
_MACHINES = re.compile(r"^(?:docker|br-[0-9a-f]|veth|virbr|vmnet|vboxnet|vnet|lxc|lxd|podman|cni|"
                       r"flannel|cali|kube|bridge1\d\d|awdl|llw|anpi|ap\d)|"
                       r"vethernet|virtualbox|vmware|hyper-v|wsl", re.IGNORECASE)
# ... and to a VPN's other end.
_TUNNEL = re.compile(r"^(?:u?tun|tap|wg|ppp|ipsec|tailscale|zt|nordlynx|gif|stf|sit|gre|he-|ham)|"
                     r"vpn|wireguard|wintun|tap-windows|teredo|isatap|anyconnect|fortinet|"
                     r"zerotier|tailscale|tunnel", re.IGNORECASE)
_IFF_UP, _IFF_LOOPBACK, _IFF_POINTOPOINT, _IFF_RUNNING = 0x1, 0x8, 0x10, 0x40


class Address(NamedTuple):
    """An address of this machine, on an interface that is up."""

    # IPv4 or IPv6, without a zone.
    ip: str
    # The interface, as the system names it, and the system's number for it (0: unknown).
    interface: str
    number: int
    # WIRE, MACHINES or TUNNEL.
    kind: int

    @property
    def parsed(self) -> "Union[ipaddress.IPv4Address, ipaddress.IPv6Address]":
        """What ipaddress knows of it."""
        return ipaddress.ip_address(self.ip)

    @property
    def host(self) -> str:
        """As a client on this machine would name it: a link-local one of IPv6 needs its zone."""
        zoned = self.parsed.version == 6 and self.parsed.is_link_local
        return f"{self.ip}%{self.interface}" if zoned else self.ip


def own_addresses() -> "list[Address]":
    """The addresses of this machine, 127.0.0.1 among them.

    The standard library cannot list them, so the system is asked through ctypes; where that fails,
    an address is known from the way that the system would take to the outside.
    """
    try:
        found = _windows_addresses() if sys.platform == "win32" else _posix_addresses()
    except (ImportError, OSError, AttributeError, ValueError):
        found = []
    if not found:
        found = [Address(ip, "", 0, WIRE) for ip in (_routed_address(), "127.0.0.1") if ip]
    return found


def lan_addresses() -> "list[Address]":
    """The addresses by which others reach this machine, the likeliest one first.

    Real interfaces come before containers and tunnels, private IPv4 before other IPv4, IPv6 after
    both; link-local IPv6 last, as browsers cannot use it. Of what is alike, the one comes first by
    which this machine would leave the LAN.
    """
    routed = _routed_address()

    def unlikely(address: Address) -> "tuple[Any, ...]":
        ip = address.parsed
        if ip.version == 6:
            width = 3
        else:
            width = 2 if ip.is_link_local else 0 if ip.is_private else 1
        return (ip.version == 6 and ip.is_link_local, address.kind, width, address.ip != routed,
                address.number)
    return sorted((each for each in own_addresses() if not each.parsed.is_loopback), key=unlikely)


def in_url(host: str) -> str:
    """`host` as it stands in a URL, or before a colon and a port."""
    return f"[{host}]" if ":" in host else host


def _routed_address() -> str:
    """Our address on the way to the outside, "" where there is no way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # A documentation address (RFC 5737). connect() of a UDP socket sends nothing: it only
            # looks the route up.
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return ""


def _posix_addresses() -> "list[Address]":
    """By getifaddrs(3). Its nodes begin with the same five words on Linux and the BSDs.

    They are: the next node, the interface's name, flags, the address, its mask.
    """
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    first, word = ctypes.c_void_p(), ctypes.sizeof(ctypes.c_void_p)
    if libc.getifaddrs(ctypes.byref(first)) != 0:
        raise OSError(ctypes.get_errno(), "getifaddrs")
    try:
        found, node = [], first.value
        while node:
            following, name, _, address = (ctypes.c_void_p * 4).from_address(node)
            flags = ctypes.c_uint.from_address(node + 2 * word).value
            ip = _ip_of(ctypes.string_at, address) if address else ""
            if ip and flags & _IFF_UP and flags & _IFF_RUNNING:
                interface = os.fsdecode(ctypes.string_at(name or 0))
                tunnel = flags & _IFF_POINTOPOINT and not flags & _IFF_LOOPBACK
                kind = TUNNEL if tunnel else _kind_of(interface)
                found.append(Address(ip, interface, socket.if_nametoindex(interface), kind))
            node = following
        return found
    finally:
        libc.freeifaddrs(first)


def _windows_addresses() -> "list[Address]":
    """By GetAdaptersAddresses. The offsets are those of IP_ADAPTER_ADDRESSES in iptypes.h."""
    if sys.platform != "win32":
        return []
    import ctypes
    word, size = ctypes.sizeof(ctypes.c_void_p), ctypes.c_ulong(32_768)
    for _ in range(3):
        memory = ctypes.create_string_buffer(size.value)
        # All families; neither anycast nor multicast addresses, nor name servers.
        status = ctypes.windll.iphlpapi.GetAdaptersAddresses(0, 0xE, None, memory,
                                                             ctypes.byref(size))
        if status == 0:
            break
    else:
        raise OSError(status, "GetAdaptersAddresses")

    def pointer(at: int) -> int:
        return ctypes.c_void_p.from_address(at).value or 0

    def number(at: int) -> int:
        return ctypes.c_ulong.from_address(at).value
    found, adapter = [], ctypes.addressof(memory)
    while adapter:
        name = ctypes.wstring_at(pointer(adapter + 8 + 8 * word))
        description = ctypes.wstring_at(pointer(adapter + 8 + 7 * word))
        if_type, status = (number(adapter + at + 9 * word) for at in (28, 32))
        index = number(adapter + 4) or number(adapter + 36 + 9 * word)
        # PPP and tunnels by their type; "up" is 1.
        kind = TUNNEL if if_type in (23, 131) else _kind_of(f"{name} {description}")
        unicast = pointer(adapter + 8 + 2 * word) if status == 1 else 0
        while unicast:
            ip = _ip_of(ctypes.string_at, pointer(unicast + 8 + word))
            if ip:
                found.append(Address(ip, name, index, kind))
            unicast = pointer(unicast + 8)
        adapter = pointer(adapter + 8)
    return found


def _ip_of(string_at: Callable[[int, int], bytes], sockaddr: int) -> str:
    """The IP address in the system's `sockaddr` at that place; "" for another family's."""
    start = string_at(sockaddr, 2)
    # The BSDs, macOS among them, have the length in the first byte.
    bsd = sys.platform not in ("linux", "win32")
    family = start[1] if bsd else int.from_bytes(start, sys.byteorder)
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(string_at(sockaddr + 4, 4)))
    if family != socket.AF_INET6:
        return ""
    raw = string_at(sockaddr + 8, 16)
    if raw.startswith(b"\xfe\x80"):
        # The BSDs' kernels keep the interface's number in here.
        raw = raw[:2] + b"\0\0" + raw[4:]
    return str(ipaddress.IPv6Address(raw))


def _kind_of(interface: str) -> int:
    """What an interface of that name leads to."""
    if _TUNNEL.search(interface):
        return TUNNEL
    return MACHINES if _MACHINES.search(interface) else WIRE


class Answer(NamedTuple):
    """What a server says of itself to one who asks the LAN."""

    name: str
    port: int
    here: int
    version: str
    tls: bool
    id: str


def encode_question(token: str) -> bytes:
    """The datagram that asks who is there."""
    return json.dumps({"roger": 1, "ask": token}, separators=(",", ":")).encode().ljust(
        QUESTION_SIZE)


def decode_question(data: bytes) -> Optional[str]:
    """The token of a question; None when `data` is none, or shorter than an answer may be."""
    token = _datagram(data).get("ask") if len(data) >= QUESTION_SIZE else None
    # 64 printable characters are at most 128 in JSON.
    fits = type(token) is str and len(token) <= 64 and token.isascii() and token.isprintable()
    return token if fits else None


def encode_answer(token: str, answer: Answer) -> bytes:
    """The answer to the question with that token."""
    fields = {"roger": 1, "answer": token, **answer._asdict()}
    data = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    assert len(data) <= QUESTION_SIZE, "the parts' bounds are too large"
    return data


def decode_answer(data: bytes, token: str) -> Optional[Answer]:
    """The answer to our question, None for anything else: anybody may send us anything."""
    fields = _datagram(data)
    try:
        answer = Answer(*(fields.get(name, default) for name, default in _DEFAULTS.items()))
        fits = all(type(value) is type(default)
                   for value, default in zip(answer, _DEFAULTS.values()))
    except TypeError:
        fits = False
    if not fits or fields.get("answer") != token:
        return None
    if not 1 <= answer.port <= 65_535 or not 0 <= answer.here <= MAX_ID:
        return None
    return answer._replace(name=clean_text(answer.name)[:MAX_TITLE])


# What a field of an Answer is when an older or another server leaves it out.
_DEFAULTS: "dict[str, Any]" = {"name": "", "port": 0, "here": 0, "version": "", "tls": False,
                               "id": ""}


def _datagram(data: bytes) -> "dict[str, Any]":
    """The object in a datagram of discovery's; {} for anything else."""
    try:
        fields = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return fields if type(fields) is dict and fields.get("roger") == 1 else {}


def aim(sock: socket.socket, index: int) -> None:
    """Have what `sock` sends to a group or to everybody leave by the interface of that number.

    Without a default route it would be unreachable else. Raises OSError.
    """
    number = struct.pack("=I", index)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, number)
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    # A group stands before it, and is not looked at, but on Windows.
    group = b"" if sys.platform == "win32" else b"\0\0\0\0"
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, group + _interface(index))
    # IP_UNICAST_IF, which takes a number in the order of the network, and macOS's IP_BOUND_IF,
    # which does not; no module has names for them.
    if sys.platform == "darwin":
        sock.setsockopt(socket.IPPROTO_IP, 25, number)
    else:
        option = 31 if sys.platform == "win32" else 50
        sock.setsockopt(socket.IPPROTO_IP, option, struct.pack("!I", index))


def listen_to_group(sock: socket.socket, index: int) -> None:
    """Have `sock` hear what is sent to its group on the interface of that number.

    Raises OSError, also when it does already.
    """
    if sock.family == socket.AF_INET6:
        group = socket.inet_pton(socket.AF_INET6, GROUP6)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP,
                        group + struct.pack("=I", index))
    else:
        group = socket.inet_aton(GROUP4)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + _interface(index))


def _interface(index: int) -> bytes:
    """An interface of IPv4 by its number: Windows takes it for an address, others beside one."""
    if sys.platform == "win32":
        return struct.pack("!I", index)
    return struct.pack("=4sI", b"\0\0\0\0", index)


# --- The names of this machine ---

# What routers put behind a machine's name in their LAN: nobody can have such a name lead here from
# outside, but by the router itself.
ROUTER_DOMAINS = frozenset(["lan", "home", "home.arpa", "fritz.box", "internal", "intranet",
                            "localdomain", "private", "speedport.ip", "easy.box"])


def is_own_name(name: str, others: Collection[str] = ()) -> bool:
    """Whether this machine is called so: by itself, by its router, or by one of `others`.

    What takes no time is looked at first: a resolver that does not answer takes 10 s, and is asked
    only about names that begin as ours.
    """
    name, own = name.lower().rstrip("."), socket.gethostname().lower()
    short, _, domain = own.partition(".")
    # .local is how a LAN without a name server calls a machine (mDNS).
    if name in ("localhost", own, short, f"{short}.local") or name in map(str.lower, others):
        return True
    first, _, domain = name.partition(".")
    if first != short or not domain:
        return False
    return _leads_here(name) if domain in ROUTER_DOMAINS else name == _full_name()


def _leads_here(name: str) -> bool:
    """Whether all addresses of that name are this machine's."""
    try:
        found = {str(each[4][0]).partition("%")[0] for each in socket.getaddrinfo(name, None)}
    except (OSError, UnicodeError):
        return False
    return found <= {each.ip for each in own_addresses()}


@functools.lru_cache(maxsize=1)
def _full_name() -> str:
    return socket.getfqdn().lower()
