"""chatproto: what both sides of Roger share: frames, messages, ACKs, retries, and the log.

The protocol (TCP, port 8087)
    A frame is one JSON object in UTF-8 on one line, ended by LF (CR LF is accepted), at most 65,536
    bytes:
        {"type":"chat","id":7,"text":"hi"}
    Numbered frames belong to the session. Their `id` (1 to 2**53 - 1) grows from one to the next in
    its direction, and gaps are normal. Each is acknowledged, retried, sent again over a new
    connection, and dropped when it comes twice. {"type":"ack","id":n} confirms every numbered frame
    up to and including n. (Text goes as UTF-8: 8,192 emoji as \\ud83d\\ude00 would be too long.)
    Bare frames (ack, join, welcome, heard, the server's history, an error before the join) belong
    to the connection and have no id.

    from a client                               from the server
    join    name v [session seen epoch]         welcome name session epoch users last resumed got
            receipts [password]                         missed [here] [motd]
    chat    text [to] [seen] [file]             chat    from text at [cid] [to] [file]
    rename  name                                joined  name at         left    name at reason
    leave                                       renamed name to at      heard   about count of
    ping                                        ping                    booted  reason
    history [before] [count] [find]             history about entries [older] [find]
                                                error   code text [about] [suggestion]
                                                motd [text]   rules ...   removed about

    `welcome` may carry two fields that an older peer ignores: `motd`, the message of the day, and
    `here`, the number of users when not all of them are in the list: at most 1,000 are, and what
    fits on the line. Whoever is not in it is announced (`joined`) when there is room in it; `left`
    and `renamed` are told of those who were announced. A text that begins with "/me " tells what
    its speaker does.
    A type that is not in this list is acknowledged and otherwise ignored. A frame whose fields are
    wrong is acknowledged and answered with an `error` about it. A line that is no frame at all ends
    the connection: decode() says which lines are none.
    A client's `history` (numbered, so an older server acknowledges and ignores it) asks for the
    newest `count` (20; at most 100) messages with an id below `before` (absent: the newest of all),
    with `find` only for those that hold all its words, compared as names are. The answer `history`
    is bare, so that it neither takes an id nor disturbs the order: `entries` are the `chat` frames
    as they were sent, oldest first, as many as fit on a line; `older`, when there may be more, is
    the `before` to ask for them (`entries` may even be empty then); `about` is the id of the
    request. It is written before the ACK of the request, on the connection that the request came
    by: an ACK without it comes from a server that does not know `history`, and an answer that does
    not repeat `find` from one that cannot search. After a new `welcome` one asks again, under a new
    id. Private messages are in it for those two who were in them, while their sessions last. One
    asks for the next when the last is there.
    `motd` (no text: none any more), `rules` (who may speak, and so on) and `removed` (the host took
    the chat `about` back) tell what changed; who does not know them goes on undisturbed.
    A chat may hand out a `file`: {"name","size","url"}, url a path on the server's own port. It
    goes up and down there over HTTP (chat_web's docstring says how); its speaker gives the url
    alone, and name and size are those of the upload. Who does not know the field has them in the
    text.

The promises (who keeps them)
    An ACK to a chat means that it has its place in the order, and with --history that it is on disk
    (the server's sequencer; ids, sessions and log then go on after a restart, too, under the same
    `epoch`). Nothing twice: the server drops a duplicate by the session's newest id, a client what
    is at or below `MessageManager.seen`. Nothing lost over a broken connection: each side keeps a
    log (MessageQueue) and reads again from what the peer has. Never a false "sent": the ACK of a
    refused frame is not written before the error that refuses it (MessageManager.confirm).

The parts, bottom up
    names and texts    the rules for both, and their escapes for a terminal
    Message            value objects, one class an instruction; INSTRUCTIONS is the list of them
    FrameDecoder       bytes in any pieces -> lines -> messages
    MessageSocket      the only one that touches a socket: reads that block, writes that never do
    SecureSocket       the same over TLS; nobody above it knows
    Alarm              one threading.Timer for every deadline of the process
    MessageQueue       one ordered log of frames, read from any place by any number of readers
    Confirmations      which of the peer's frames are confirmed, and when
    MessageManager     one reader of a log, over one connection: what is sent and what is
                       acknowledged are two places in the log; ACKs, retries, pings
    Inbox              queue.Queue sequencing: many threads post events, one takes all that wait
    Address, Answer    this machine's addresses and names; the question who is there, its answer

A place in a log is an id: everything up to and including it lies behind the place.

Threads and locks: nothing here starts a thread but Alarm's timer. MessageManager has one lock for
each connection; inside it the log's and the socket's are taken, which are leaves (but that a
SecureSocket's has a MessageSocket's inside), and so is the Alarm's. Only MessageSocket touches a
socket and only Alarm a clock.
Left out on purpose: rooms, users, history files and screens (the roles have them), compression.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import functools
import getpass
import hashlib
import io
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
import textwrap
import threading
import time
import traceback
import unicodedata
import warnings
import weakref
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from itertools import accumulate, repeat
from typing import (Any, Callable, ClassVar, Collection, Dict, FrozenSet, Iterator, List,
                    NamedTuple, NoReturn, Optional, Protocol, Tuple, Union)

try:
    import ssl
except ImportError:
    # A Python that was built without it: everything but --tls works.
    ssl = None  # type: ignore[assignment]

__version__ = "1.0"

PORT = 8087
# Of the protocol: `v` in join.
VERSION = 1
# Bytes of a frame without its line end: bounds what one peer can make the other hold.
MAX_LINE = 65_536
# Brackets within brackets; ours have 3. Depth is what crashes a JSON parser (see _too_deep).
MAX_DEPTH = 32
# The largest whole number that every JSON reader keeps exact.
MAX_ID = 2**53 - 1
# Characters of a text: at 4 bytes each still half a line.
MAX_TEXT = 8_192
# Characters of a name.
MAX_NAME = 24
# Characters of all the words of a search.
MAX_FIND = 256
# Bytes of the name of a file before its ending, and characters of that: with both, and a number
# between them, it is below the 255 bytes that systems allow.
MAX_STEM, MAX_ENDING = 180, 16
# Characters of a password.
MAX_PASSWORD = 1_000
# Combining marks that are shown on one letter; more would cover the lines around it.
MAX_MARKS = 8

# Frames that may be unacknowledged; 1 would be the 2009 rule: message, ACK, message.
WINDOW = 64
# Bytes of them: must stay below SEND_BUFFER, so that a write always finds room.
WINDOW_BYTES = 128 * 1024
# Bytes asked of the kernel for each socket: the window and what retries add to it.
SEND_BUFFER = 256 * 1024
# Bytes of joined frames and envelopes that a log keeps for other readers at the same place; when
# they are more, the oldest go.
PIECES_BYTES = 4 * 1024 * 1024
# Bytes of an ordinary read: recv() takes this much memory while it waits, in every thread.
READ_SIZE = 448
# Bytes that are read at once on top when there are more.
READ_MORE = 65_536

# Seconds without progress before the oldest unacknowledged frame is sent again (a retry, or
# retransmit), and after so many retries the connection is dead.
RETRY_DELAY = 2.0
MAX_RETRIES = 3
# A late ACK is written by this many frames, or this many bytes of them, or this many seconds after
# the oldest.
ACK_FRAMES = 32
ACK_BYTES = 32 * 1024
ACK_DELAY = 0.25
# Seconds without sending before a ping: a dead peer is found 8 s later.
PING_AFTER = 30.0
# Seconds of one timer: the systems' limits are days and differ.
LONGEST_WAIT = 3600.0
# Seconds: deadlines are rounded up to this, so that one ring serves many.
TICK = 0.05
# Seconds of one wait for a socket where cutting the connection does not end the wait.
CUT_POLL = 0.25
# Seconds for the peer to read our last bytes and to close, before its own bytes reset it.
LINGER = 2.0
# Bytes that are encrypted or decrypted at once: the memory between a socket and TLS keeps the size
# of the largest piece for as long as the connection lasts.
PIECE = 4 * 1024
# Bytes that a record of TLS holds at most (RFC 8446, 5.1), and its first byte when it greets.
RECORD = 16 * 1024
GREETING = b"\x16"
# What a server says that does not even greet: a fatal alert, internal_error (RFC 8446, 6). Of those
# that there are none is meant for this; browsers would take others for the client's fault.
NO_ROOM = b"\x15\x03\x03\x00\x02\x02\x50"
# Bytes of TLS's own that cost as much of the flood limit as a frame.
OVERHEAD_BYTES = 256


# --- Errors ---

class ProtocolError(Exception):
    """The peer's fault. `code` is an error code of the protocol, the text says what was wrong."""

    def __init__(self, code: str, text: str, suggestion: Optional[str] = None) -> None:
        super().__init__(text)
        self.code = code
        self.suggestion = suggestion


class FrameError(ProtocolError):
    """What came is no frame at all: an error answers it and the connection ends."""


class ConnectionClosed(Exception):
    """The connection ended, for the reason in the text. Nobody's fault."""


# --- Names and texts ---

_NAME_PUNCTUATION = frozenset("_-.")
# Most names: no need to look at their characters one by one.
_PLAIN_NAME = re.compile("[A-Za-z0-9_.-]*[A-Za-z][A-Za-z0-9_.-]*")
# Letters and marks by their category that show nothing: two names that differ only in them look
# the same.
_INVISIBLE = frozenset([0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0,
                        *range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)])
# Scripts that are written together (UTS 39, "highly restrictive"), as Unicode's names call them.
_TOGETHER = tuple(frozenset(scripts.split()) for scripts in (
    "LATIN CJK IDEOGRAPHIC HIRAGANA KATAKANA KATAKANA-HIRAGANA",
    "LATIN CJK IDEOGRAPHIC BOPOMOFO",
    "LATIN CJK IDEOGRAPHIC HANGUL"))
# What a name that is to look like "server", or like the host's, may be written with: digits, and
# Cyrillic and Greek letters.
_LOOKS_LIKE = str.maketrans("5301\u0455\u0435\u0433\u0475\u0430\u043e\u0440\u0441\u0443\u0445"
                            "\u0456\u0458\u03bf\u03b1\u03c1\u03bd\u03b9",
                            "seolserv" "aopcyx" "ij" "oapvi")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# What a coloured build log holds: CSI sequences, OSC and DCS strings with their ends, and
# two-character escapes.
_TERMINAL_ESCAPE = re.compile("(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"
                              "|\x1b[\\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\\\)?|\x1b[ -/]*[0-~]")


def name_key(name: str) -> str:
    """What two names are compared by: equal keys are the same name to a reader (NFKC, folded)."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def check_name(name: Any) -> str:
    """Return `name` if a member may have it; else raise ProtocolError("bad-name")."""
    if type(name) is not str or not 1 <= len(name) <= MAX_NAME:
        raise ProtocolError("bad-name", f"a name has 1 to {MAX_NAME} characters")
    if not _PLAIN_NAME.fullmatch(name):
        _check_characters(name)
    if looks_like(name, "server"):
        raise ProtocolError("bad-name", f"the name {name} is the server's own")
    return name


def looks_like(name: str, other: str) -> bool:
    """Whether a reader may take one name for the other: case, small capitals, punctuation and a
    few letters make no difference."""
    return _look_of(name) == _look_of(other)


# A newcomer's name is compared with several.
@functools.lru_cache(maxsize=64)
def _look_of(name: str) -> str:
    letters = [_small_capital(char) for char in name_key(name) if char not in _NAME_PUNCTUATION]
    return "".join(letters).translate(_LOOKS_LIKE)


def _small_capital(char: str) -> str:
    """The plain letter for a Latin small capital, which NFKC leaves as it is."""
    *words, letter = unicodedata.name(char, "").split(" ") if char > "\x7f" else [char]
    return letter.lower() if words == ["LATIN", "LETTER", "SMALL", "CAPITAL"] else char


def _check_characters(name: str) -> None:
    folded = unicodedata.normalize("NFKC", name)
    if not all(_may_be_in_a_name(char) for char in name + folded):
        raise ProtocolError("bad-name", "a name is made of letters, digits and _ - .")
    letters = [char for char in folded if unicodedata.category(char)[0] == "L"]
    if not letters:
        raise ProtocolError("bad-name", "a name has a letter at least")
    # A combining mark is of the script it stands in.
    named = (unicodedata.name(char, "").split(" ")[0] for char in folded
             if unicodedata.category(char)[0] in "LM")
    scripts = set(named) - {"COMBINING", "VARIATION"}
    if len(scripts) > 1 and not any(scripts <= together for together in _TOGETHER):
        raise ProtocolError("bad-name", "a name is written in one script")


def _may_be_in_a_name(char: str) -> bool:
    category = unicodedata.category(char)
    if ord(char) in _INVISIBLE or unicodedata.name(char, "").startswith("MODIFIER LETTER"):
        # A modifier letter looks like punctuation.
        return False
    return char in _NAME_PUNCTUATION or category[0] in "LM" or category == "Nd"


def check_text(text: Any) -> str:
    """Return `text` if it may be said; else raise ProtocolError("bad-text")."""
    if type(text) is not str or not 1 <= len(text) <= MAX_TEXT:
        raise ProtocolError("bad-text", f"a text has 1 to {MAX_TEXT} characters")
    if not text.isprintable() and _CONTROL.search(text):
        raise ProtocolError("bad-text", "a text has no control characters but newline and tab")
    return text


def check_password(text: Any) -> str:
    """Return a password as it is compared, however it was typed (NFKC); else raise
    ProtocolError("password")."""
    if type(text) is not str or not 1 <= len(text) <= MAX_PASSWORD:
        raise ProtocolError("password", f"a password has 1 to {MAX_PASSWORD} characters")
    if _CONTROL.search(text) or "\n" in text:
        raise ProtocolError("password", "a password has no line ends or control characters")
    return unicodedata.normalize("NFKC", text)


def given_password(asks: bool, path: Optional[str]) -> Optional[str]:
    """The password that a program was given: typed on the terminal, in a file, or in the
    environment's ROGER_PASSWORD. None for none. Raises ProtocolError, whose text says what to do,
    and OSError."""
    if asks:
        return check_password(ask_password("Password: "))
    if path is None:
        found = os.environ.get("ROGER_PASSWORD")
        return None if found is None else check_password(found)
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        # One that is longer is refused by its length.
        return check_password(file.read(2 * MAX_PASSWORD).rstrip("\n"))


def ask_password(prompt: str) -> str:
    """Ask for a password on the terminal, which does not show it. Raises ProtocolError without a
    terminal."""
    try:
        with warnings.catch_warnings():
            # It would be shown.
            warnings.simplefilter("error", getpass.GetPassWarning)
            return getpass.getpass(prompt)
    except (getpass.GetPassWarning, EOFError, OSError) as error:
        raise ProtocolError("password", "there is no terminal to ask for the password: "
                            "--password-file FILE or ROGER_PASSWORD say it") from error


def clean_text(text: str) -> str:
    """What may be said of `text`: without terminal escapes and control characters, lone surrogates
    as U+FFFD."""
    text = _TERMINAL_ESCAPE.sub("", text.replace("\r\n", "\n"))
    return _CONTROL.sub(lambda found: "\ufffd" if found[0] >= "\ud800" else "", text)


# What a system does not take in the name of a file, or takes for more than a name.
_NOT_IN_FILES = re.compile(r'[<>:"|?*]')
# Devices of Windows, with whatever ending.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])"
                      r"\s*(\.|$)", re.IGNORECASE)


def file_name(name: str) -> str:
    """A name like `name` under which any system may keep a file, and which shows as what it is: it
    cannot leave a folder, is no device, hides nothing and turns no text around. Never empty."""
    name = re.split(r"[/\\]", name)[-1]
    # Of a long one beginning and end are enough.
    name = name if len(name) <= 2 * MAX_STEM else name[:MAX_STEM] + name[-MAX_STEM:]
    name = "".join(" " if char.isspace() else char for char in unicodedata.normalize("NFC", name)
                   if char.isspace() or unicodedata.category(char) not in ("Cc", "Cf", "Cs"))
    name = _NOT_IN_FILES.sub("_", name).strip(" .")
    stem, _, ending = name.rpartition(".")
    if not stem or len(ending) > MAX_ENDING:
        stem, ending = name, ""
    stem = stem.encode()[:MAX_STEM].decode(errors="ignore").strip(" .")
    name = ".".join(filter(None, (stem, ending.strip()))) or "file"
    return f"_{name}" if _DEVICES.match(name) else name


def size_in_words(size: float) -> str:
    """The size of a file for people: 1.2 MB."""
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.2g} {unit}"
        size /= 1_000
    return f"{size:.3g} GB"


class _Classes(Dict[int, str]):
    """For str.translate(): what kind of character each is to a reader, as one letter.

    .  is seen as it is                         x  moves, hides, reorders or forges
    m  combining mark                           s  symbol, maybe an emoji
    i  Hangul initial                           d  what a keycap can be made of
    j  Hangul vowel or final                    h  ideograph
    l  letter of a script that joins            r  the same, from right to left
    z  zero width joiner                        n  zero width non-joiner
    v  variation selector 15 or 16              V  another variation selector
    b  mark of direction                        o c  begin and end of an isolate
    """

    _RANGES = (("j", 0x1161, 0x11FF), ("i", 0x1100, 0x115E), ("n", 0x200C, 0x200C),
               ("z", 0x200D, 0x200D), ("b", 0x200E, 0x200F), ("b", 0x061C, 0x061C),
               ("o", 0x2066, 0x2068), ("c", 0x2069, 0x2069), ("v", 0xFE0E, 0xFE0F),
               ("V", 0xFE00, 0xFE0D), ("V", 0xE0100, 0xE01EF), ("V", 0x180B, 0x180D),
               ("h", 0x3400, 0x9FFF), ("h", 0xF900, 0xFAFF), ("h", 0x20000, 0x3FFFF))

    def __missing__(self, code: int) -> str:
        found = self[code] = self._class_of(code, chr(code))
        return found

    def _class_of(self, code: int, char: str) -> str:
        category = unicodedata.category(char)
        if category == "Cn":
            return "x"
        for kind, first, last in self._RANGES:
            if first <= code <= last:
                return kind
        if code in _INVISIBLE or not (char.isprintable() or category == "Zs"):
            return "x"
        if category in ("Mn", "Me"):
            return "m"
        if char in "0123456789#*\u203c\u2049\u2139":
            return "d"
        if category in ("So", "Sm", "Sk") and code > 0x7F:
            return "s"
        if unicodedata.bidirectional(char) in ("R", "AL"):
            return "r"
        return "l" if 0x0590 <= code <= 0x1CFF or 0xA800 <= code <= 0xABFF else "."


_CLASSES = _Classes()
# An isolate with its end, which is what right-to-left names in a sentence need.
_ISOLATE = re.compile("o([^oc]*)c")
# What is not shown as it is, in classes: everything that the class has no place for here.
_HIDDEN = re.compile("x+|(?<=" + MAX_MARKS * "m" + ")m+|(?<![ij])j|[oc]+|(?<=b)b+|(?<![sdh])v"
                     "|(?<![hl])V|n(?!(?<=[lrm]n)[lr])|z(?!(?<=[sv]z)s|(?<=[lrm]z)[lr])")


def escape(text: str) -> str:
    """`text` as a terminal may show it: whatever moves, hides or reorders text becomes a visible
    escape; no line breaks. What readers need is left as it is: joiners between letters that join,
    marks of direction in right-to-left text, variation selectors after what they vary."""
    if text.isascii() and text.isprintable():
        return text
    classes = _ISOLATE.sub(r".\1.", text.translate(_CLASSES))
    if "r" not in classes:
        classes = classes.replace("b", "x")
    shown, end = [], 0
    for found in _HIDDEN.finditer(classes):
        hidden = text[found.start():found.end()].encode("unicode_escape", "surrogatepass")
        shown += [text[end:found.start()], hidden.decode("ascii")]
        end = found.end()
    return "".join(shown) + text[end:]


def stdin_lines() -> Iterator[str]:
    """The lines of stdin without their ends. Unbuffered: a daemon thread that waits in sys.stdin
    would hold its lock when the process ends, and Python aborts over that."""
    if sys.stdin is None:
        return
    rest = b""
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as raw:
        for data in iter(lambda: raw.read(READ_MORE) or b"", b""):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield line.decode("utf-8", "replace").rstrip("\r")
    if rest:
        yield rest.decode("utf-8", "replace")


def print_utf8() -> None:
    """What we print is UTF-8: also into a pipe on Windows, where Python would take cp1252.

    A terminal keeps its encoding, and shows a letter that it does not have as its code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = None if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def complain(program: str, what: str) -> None:
    """One line on stderr, whatever a peer put into it. It may be gone, or never have been there."""
    with contextlib.suppress(OSError, AttributeError):
        sys.stderr.write(f"{program}: {escape(what)}\n")
        sys.stderr.flush()


def bug(error: Optional[BaseException]) -> str:
    """What is told of a bug of ours; who mends it needs the place."""
    *_, place = [""] + [f" ({os.path.basename(at.filename)}:{at.lineno})"
                        for at in traceback.extract_tb(error.__traceback__ if error else None)]
    return escape(f"{type(error).__name__}: {error}{place}")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that answers a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """End the program."""
        complain(self.prog.partition(".")[0], f"{message} (--help says what there is)")
        sys.exit(2)


def config_path(name: str) -> str:
    """A file of ours in this platform's folder for settings."""
    home = os.path.expanduser("~")
    if sys.platform == "win32":
        folder = os.environ.get("APPDATA") or os.path.join(home, "AppData", "Roaming")
    elif sys.platform == "darwin":
        folder = os.path.join(home, "Library", "Application Support")
    else:
        folder = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    return os.path.join(folder, "roger", name)


def write_private(path: str, text: str, synced: bool = False) -> None:
    """Write a small file whole, which only its owner may read; `synced` means that it is on the
    disk itself. Raises OSError, and then nothing of it is left."""
    os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
    # A file of its own, as another process may write at the same time.
    part = f"{path}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.remove(part)
    try:
        new = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(new, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if synced:
                os.fsync(new)
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise


# --- Checks of single fields: each returns the value or raises ProtocolError ---

def _is_id(value: Any) -> bool:
    """True for a whole number that may number a frame. bool is an int to Python, and 1.0 equals 1:
    neither counts."""
    return type(value) is int and 1 <= value <= MAX_ID


def _expecting(what: str, is_right: Callable[[Any], bool], code: str = "bad-frame",
               fault: "type[ProtocolError]" = ProtocolError) -> Callable[[Any], Any]:
    """The check of a field that says `what` of a value that is not right."""
    def check(value: Any) -> Any:
        if not is_right(value):
            raise fault(code, what)
        return value
    return check


_count = _expecting("a number from 0 to 2**53 - 1 was expected",
                    lambda value: type(value) is int and 0 <= value <= MAX_ID)
# NaN is not in the range, either.
_number = _expecting("a number of at most 2**53 - 1 was expected", lambda value:
                     type(value) in (int, float) and -MAX_ID <= value <= MAX_ID)
_flag = _expecting("true or false was expected", lambda value: type(value) is bool)
_version = _expecting(f"this side speaks version {VERSION} of the protocol", lambda value:
                      type(value) is int and value == VERSION, "bad-version")
# Without these it is no frame at all.
_frame_id = _expecting("a numbered frame needs an id from 1 to 2**53 - 1", _is_id,
                       fault=FrameError)
_acked_id = _expecting("an ack needs the id that it confirms", _is_id, fault=FrameError)


def _string(value: Any) -> str:
    if (type(value) is not str or len(value) > MAX_TEXT
            or not value.isascii() and _SURROGATE.search(value)):
        raise ProtocolError("bad-frame", f"a string of at most {MAX_TEXT} characters was expected")
    return value


def _strings(value: Any) -> "tuple[str, ...]":
    if type(value) is not list:
        raise ProtocolError("bad-frame", "a list of strings was expected")
    return tuple(_string(item) for item in value)


def _chats(value: Any) -> "tuple[Chat, ...]":
    if type(value) is not list or not all(
            type(item) is dict and item.get("type") == Chat.type for item in value):
        raise ProtocolError("bad-frame", "a list of chat frames was expected")
    return tuple(Chat.from_fields(item) for item in value)  # type: ignore[misc]


_FILE_URL = re.compile(r"/(?!/)[!-\[\]-~]{1,256}")


def _file(value: Any) -> "dict[str, Any]":
    """The three fields of a file; from a client name and size may be missing."""
    url = value.get("url") if type(value) is dict else None
    if type(url) is not str or not _FILE_URL.fullmatch(url):
        raise ProtocolError("bad-file", "a file has the url that its upload was answered with")
    return {"name": file_name(_string(value.get("name", ""))),
            "size": _count(value.get("size", 0)), "url": url}


# --- Messages: the instruction list ---

_encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def encode_strings(texts: "list[str]") -> bytes:
    """The strings as they are in a list in a frame, joined by commas."""
    return _encode_json(texts)[1:-1].encode("utf-8")


def _field(check: Callable[[Any], Any], key: str = "", **options: Any) -> Any:
    """A field of a message: how it is checked, and its key on the wire where that is not the
    attribute's name; and dataclasses' own options."""
    return dataclasses.field(metadata={"check": check, "key": key}, **options)


@dataclasses.dataclass(frozen=True)
class Message:
    """A value object that turns itself into a frame and back. A field that is None is left out.
    This one is bare."""

    type: ClassVar[str] = ""
    id: ClassVar[int] = 0

    @classmethod
    def from_fields(cls, fields: "dict[str, Any]") -> Message:
        """The message of a decoded frame; raises ProtocolError when a field is missing or wrong."""
        # One that is required and missing fails its check, as None.
        return cls(**{name: check(fields.get(key))
                      for name, key, check, required in _wire_fields(cls)  # type: ignore[arg-type]
                      if required or fields.get(key) is not None})

    def encode(self) -> bytes:
        """The frame, with its line end."""
        fields: "dict[str, Any]" = {"type": self.type}
        for name, key, _, _ in _wire_fields(type(self)):  # type: ignore[arg-type]
            value = getattr(self, name)
            if value is not None:
                fields[key] = value
        if not self.id:
            # An error before the join.
            fields.pop("id", None)
        return (_encode_json(fields) + "\n").encode("utf-8")


@dataclasses.dataclass(frozen=True)
class Numbered(Message):
    """A message with an id: it belongs to the session and is acknowledged."""

    # A class attribute in what is bare.
    id: int = dataclasses.field(  # type: ignore[misc]
        metadata={"check": _frame_id, "key": ""})


@functools.lru_cache(maxsize=None)
def _wire_fields(cls: Any) -> "tuple[tuple[str, str, Callable[[Any], Any], bool], ...]":
    """Of each field of a message class: attribute, key on the wire, check, whether it is
    required."""
    return tuple((f.name, f.metadata["key"] or f.name, f.metadata["check"],
                  f.default is dataclasses.MISSING) for f in dataclasses.fields(cls) if f.metadata)


@dataclasses.dataclass(frozen=True)
class Ack(Message):
    """Confirms every numbered frame up to and including `upto`."""
    type = "ack"
    upto: int = _field(_acked_id, key="id")

    def encode(self) -> bytes:
        """The frame, with its line end: by far the most common one."""
        return b'{"type":"ack","id":%d}\n' % self.upto


@dataclasses.dataclass(frozen=True)
class Join(Message):
    """A client's first frame: who it is, and with `session`, `seen` and `epoch` where it wants to
    go on. The name of a session that goes on is not checked: it may come from an older rule. A
    `password` goes over TLS alone, and is shown nowhere."""
    type = "join"
    name: str = _field(_string)
    v: int = _field(_version, default=VERSION)
    session: Optional[str] = _field(_string, default=None)
    seen: int = _field(_count, default=0)
    epoch: Optional[str] = _field(_string, default=None)
    receipts: bool = _field(_flag, default=False)
    password: Optional[str] = _field(check_password, default=None, repr=False)

    @classmethod
    def from_fields(cls, fields: "dict[str, Any]") -> Message:
        """As Message's."""
        name = fields.get("name")
        # Of a long one no more is to be made: to compare it takes a fifth of a second.
        if fields.get("session") is None or type(name) is str and len(name) > MAX_NAME:
            check_name(name)
        return super().from_fields(fields)


@dataclasses.dataclass(frozen=True)
class Say(Numbered):
    """A client says something, to all or to one, perhaps with a `file`. `seen` is the newest id
    that it had processed when a private message was typed: the name may be another's since."""
    type = "chat"
    text: str = _field(check_text)
    to: Optional[str] = _field(_string, default=None)
    seen: Optional[int] = _field(_count, default=None)
    file: "Optional[dict[str, Any]]" = _field(_file, default=None)


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
    """A client asks for the newest `count` messages before the id `before`, with `find` for those
    that hold all its words; `Recalled` answers."""
    type = "history"
    before: Optional[int] = _field(_count, default=None)
    count: int = _field(_count, default=20)
    find: Optional[str] = _field(_string, default=None)


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
        """The frame. `listed` are names that come before `users`, encoded already and joined by
        commas: a thousand names take 2 us then, else 90."""
        frame = super().encode()
        if listed:
            more = b'"users":[' + listed + (b"," if self.users else b"")
            frame = frame.replace(b'"users":[', more, 1)
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
    file: "Optional[dict[str, Any]]" = _field(_file, default=None)


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
    """So many (`count`) of the members who should hear the chat `about` (`of`) have acknowledged
    it."""
    type = "heard"
    about: int = _field(_count)
    count: int = _field(_count)
    of: int = _field(_count)


@dataclasses.dataclass(frozen=True)
class Recalled(Message):
    """Older messages, oldest first, as the request `about` asked; before `older` there may be more.
    It repeats the words that it searched for."""
    type = "history"
    about: int = _field(_count)
    entries: "tuple[Chat, ...]" = _field(_chats)
    older: Optional[int] = _field(_count, default=None)
    find: Optional[str] = _field(_string, default=None)

    def encode(self) -> bytes:
        """The frame, with its line end."""
        frames = [chat.encode() for chat in self.entries]
        return self.encode_frames(self.about, frames, self.older, self.find)

    @staticmethod
    def encode_frames(about: int, frames: "list[bytes]", older: Optional[int],
                      find: Optional[str] = None) -> bytes:
        """The same from chats that are encoded already."""
        end = "]" if older is None else f'],"older":{older}'
        if find is not None:
            end += ',"find":' + _encode_json(find)
        return (b'{"type":"history","about":%d,"entries":[' % about
                + b",".join(frame.rstrip() for frame in frames) + end.encode("utf-8") + b"}\n")


@dataclasses.dataclass(frozen=True)
class Motd(Numbered):
    """The message of the day has changed; without a text there is none any more."""
    type = "motd"
    text: Optional[str] = _field(check_text, default=None)


@dataclasses.dataclass(frozen=True)
class Rules(Numbered):
    """What holds in the room: who may `speak` ("all" or "host"), whether `private` messages are
    on, how many seconds apart one speaks (`slow`), the `host`'s name, the largest of `files`."""
    type = "rules"
    speak: str = _field(_string, default="all")
    private: bool = _field(_flag, default=True)
    slow: float = _field(_number, default=0)
    host: str = _field(_string, default="Server")
    files: Optional[int] = _field(_count, default=None)


@dataclasses.dataclass(frozen=True)
class Removed(Numbered):
    """The host took the chat `about` back."""
    type = "removed"
    about: int = _field(_count)


@dataclasses.dataclass(frozen=True)
class Booted(Numbered):
    """The client is out; the connection closes."""
    type = "booted"
    reason: str = _field(_string, default="")


@dataclasses.dataclass(frozen=True)
class Error(Numbered):
    """What was wrong with the frame `about`, or with the connection. Bare (id 0) before the
    join."""
    type = "error"
    id: int = _field(lambda value: 0 if value is None else _frame_id(value))  # type: ignore[misc]
    code: str = _field(_string)
    text: str = _field(_string, default="")
    about: Optional[int] = _field(_count, default=None)
    suggestion: Optional[str] = _field(_string, default=None)


@dataclasses.dataclass(frozen=True)
class Unknown(Numbered):
    """A frame of a type that is not in the list: acknowledged where it has an id, and otherwise
    ignored."""
    kind: str


@dataclasses.dataclass(frozen=True)
class Invalid(Numbered):
    """A frame whose fields are wrong: acknowledged where it has an id, and refused with `error`."""
    kind: str
    error: ProtocolError


FROM_CLIENT, FROM_SERVER = "client", "server"
INSTRUCTIONS: "dict[str, dict[str, type[Message]]]" = {
    FROM_CLIENT: {cls.type: cls for cls in (Ack, Join, Say, Rename, Leave, Ping, Recall)},
    FROM_SERVER: {cls.type: cls for cls in (
        Ack, Welcome, Chat, Joined, Left, Renamed, Heard, Recalled, Motd, Rules, Removed, Booted,
        Error, Ping)},
}


# --- Framing ---

# The line of an ACK as most write it: most of what a server reads. Its threads look for it before
# they decode, as each holds up all others until it is back in its recv(): 20 us less for each ACK,
# where many come at once.
LONE_ACK = re.compile(rb'\{"type":"ack","id":([1-9][0-9]{0,14})\}\r?\n')
_HOPELESS = re.compile(rb"[ \t\r]*[^ \t\r{]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SQUARE = bytes.maketrans(b"{}", b"[]")


class FrameDecoder:
    """Turns the bytes of one connection, in any pieces, into lines and messages. After a FrameError
    it is of no more use."""

    __slots__ = ("_instructions", "_rest", "has_more", "line")

    def __init__(self, direction: str) -> None:
        # The types that may come from that side.
        self._instructions = INSTRUCTIONS[direction]
        # What was not taken yet: less than a line, or with `has_more` whole lines as well.
        self._rest = bytearray()
        # Whether lines(b"") may return some.
        self.has_more = False
        # The line of the message that feed() yielded last.
        self.line = b""

    @property
    def begun(self) -> int:
        """Bytes that came and were not taken: of a line that is not whole, for the most part."""
        return len(self._rest)

    def lines(self, data: bytes, most: int = -1) -> "list[bytes]":
        """Take bytes; return the lines that are whole, without their ends. With `most` the others
        wait for the next call."""
        if not self.has_more and b"\n" not in data:
            self._rest += data
            return []
        *lines, rest = (bytes(self._rest) + data).split(b"\n", most)
        self._rest = bytearray(rest)
        self.has_more = len(lines) == most
        return lines

    def check(self) -> None:
        """Raise FrameError when what came behind the last line cannot become a frame: the greeting
        of TLS has no line end, and its sender waits for us."""
        if self.has_more:
            return
        if _HOPELESS.match(self._rest, 0, 64):
            raise FrameError("bad-frame", "a frame is a JSON object")
        # One more for the CR of a CR LF.
        if len(self._rest) > MAX_LINE + 1:
            raise FrameError("too-long", f"a line has at most {MAX_LINE} bytes")

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that `data` completes; raise FrameError at the first line that is no
        frame."""
        for line in self.lines(data):
            self.line = line
            yield decode(line, self._instructions)
        self.check()


def decode(line: bytes, instructions: "dict[str, type[Message]]") -> Message:
    """The message in one line. Raises FrameError if it is no frame; wrong fields make an
    Invalid."""
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
    except (ValueError, RecursionError) as error:
        # UnicodeDecodeError and JSONDecodeError are ValueErrors.
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
        return Invalid(_frame_id(fields.get("id")) if issubclass(cls, Numbered) else 0, cls.type,
                       error)


def _too_deep(line: bytes) -> bool:
    """Whether brackets nest deeper than MAX_DEPTH. json.loads recurses: 65,000 of them overflow a
    thread's small stack. Each step is one pass in C, as anybody may send what needs this."""
    if line.count(b"[") + line.count(b"{") <= MAX_DEPTH:
        return False
    quoted = line.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    # Of both kinds alike: where they do not match the parser stops.
    brackets, before = b"".join(quoted[::2]).translate(_SQUARE, _NO_BRACKETS), -1
    for _ in range(MAX_DEPTH):
        # Where nothing closes any more the other steps would change nothing.
        if len(brackets) in (0, before):
            break
        before = len(brackets)
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def _no_duplicates(pairs: "list[tuple[str, Any]]") -> "dict[str, Any]":
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key comes twice")
    return fields


def _no_constants(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# raw_decode is decode() without two searches for white space, which strip() does in a tenth of the
# time.
_parse_json = json.JSONDecoder(object_pairs_hook=_no_duplicates,
                               parse_constant=_no_constants).raw_decode


# --- MessageSocket ---

# On Linux a socket blocks, and this asks a single call not to. Elsewhere the flag is missing
# (Windows) or means nothing to send() (macOS): there sockets do not block, and readers wait with
# select().
DONT_WAIT: int = getattr(socket, "MSG_DONTWAIT", 0) if sys.platform == "linux" else 0


def wait_for(sock: socket.socket, seconds: float, writable: bool = False) -> bool:
    """Whether `sock` can be read, or written, within `seconds`. Not settimeout(): that would change
    the other thread's calls, too."""
    seconds = max(0.0, min(seconds, LONGEST_WAIT))
    # select() refuses descriptors from 1,024 up, and Windows has no poll().
    if sys.platform != "win32" and hasattr(select, "poll"):
        poller = select.poll()
        poller.register(sock, select.POLLOUT if writable else select.POLLIN)
        return bool(poller.poll(seconds * 1000))
    # Windows tells of a connection that failed in the third list only.
    wanted = [sock]
    ready = select.select([] if writable else wanted, wanted if writable else [], wanted, seconds)
    return any(ready)


class MessageSocket:
    """A connected socket with one reading thread, and writes from any thread that never block.

    The writer holds its MessageManager's lock, so that frames are never torn and keep their order.
    What the kernel does not take at once (rare: the window is smaller than its buffer) stays in
    `_unsent` and goes first next time.
    """

    # The server has one for each member.
    __slots__ = ("overhead", "_sock", "_closing", "_is_cut", "_unsent", "_unread")

    # Bytes of messages that are not whole: a WebSocket has some.
    begun = 0
    is_encrypted = False

    # Bytes the kernel would not take; beyond, the peer is cut off: it has not read for long.
    UNSENT = 256 * 1024

    def __init__(self, sock: socket.socket) -> None:
        # Frames' worth of work besides messages, for the flood limit, which takes them from here: a
        # WebSocket has some, and TLS.
        self.overhead = 0
        self._sock = sock
        # No shutdown() of a descriptor that close() is giving away: it may be another's at once.
        # Afterwards the socket itself refuses. A leaf.
        self._closing = threading.Lock()
        # The reader looks at this where shutdown() does not wake it: Windows.
        self._is_cut = False
        self._unsent = b""
        # What was looked at, for the next read().
        self._unread = b""
        try:
            sock.setblocking(bool(DONT_WAIT))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        except OSError:
            # macOS, when the peer has reset it already: the reader will see.
            pass

    def read(self, timeout: Optional[float] = None) -> bytes:
        """Block for bytes, at most `timeout` seconds: then b"". Raises ConnectionClosed at the end
        of the connection."""
        if self._unread:
            data, self._unread = self._unread, b""
            return data
        try:
            received = self._read(timeout)
        except (OSError, ValueError) as error:
            # ValueError: closed under a poll().
            raise ConnectionClosed(getattr(error, "strerror", None) or str(error)) from error
        if received == b"":
            raise ConnectionClosed("the other side closed the connection")
        return received or b""

    def peek(self, timeout: float) -> bytes:
        """As read(), but the next read() returns it again."""
        self._unread = self.read(timeout)
        return self._unread

    def _read(self, timeout: Optional[float]) -> Optional[bytes]:
        """What has come, b"" for the end, None for nothing in that time."""
        if not DONT_WAIT:
            return self._poll(math.inf if timeout is None else timeout)
        if timeout is not None and not wait_for(self._sock, timeout):
            return None
        data = self._sock.recv(READ_SIZE)
        if len(data) == READ_SIZE:
            # A window of frames is to be taken in one piece.
            try:
                data += self._sock.recv(READ_MORE, DONT_WAIT)
            except OSError:
                # There is no more, or the next read() will tell.
                pass
        return data

    def _poll(self, seconds: float) -> Optional[bytes]:
        """_read() where nothing wakes a reader: it looks up a few times a second."""
        until = time.monotonic() + seconds
        while not self._is_cut:
            left = until - time.monotonic()
            if wait_for(self._sock, min(left, CUT_POLL)):
                try:
                    return self._sock.recv(READ_MORE)
                except BlockingIOError:
                    continue
            if left <= CUT_POLL:
                return None
        return b""

    def write(self, data: bytes) -> None:
        """Send `data` after what is still unsent. MUST NOT block. An end of the connection is left
        to the reader."""
        if self._unsent:
            data = self._unsent + data
            self._unsent = b""
        try:
            sent = self._sock.send(data, DONT_WAIT)
        except BlockingIOError:
            sent = 0
        except (OSError, ValueError):
            self.cut()
            return
        if sent < len(data):
            self._unsent = data[sent:]
            if len(self._unsent) > self.UNSENT:
                self.cut()

    def write_all(self, data: bytes, until: float) -> None:
        """Send all of `data`, and what is still unsent, waiting for room, until then by
        time.monotonic(). For the reading thread, while no other writes. Raises ConnectionClosed."""
        step = RECORD if self.is_encrypted else self.UNSENT // 2
        for start in range(0, max(1, len(data)), step):
            self.write(data[start:start + step])
            while self._unsent:
                try:
                    is_ready = wait_for(self._sock, until - time.monotonic(), writable=True)
                except (OSError, ValueError):
                    # Closed under a poll().
                    is_ready = False
                if not is_ready:
                    raise ConnectionClosed("the other side does not read")
                self.write(b"")
            if self._is_cut:
                raise ConnectionClosed("the connection is cut")

    def finish(self) -> None:
        """End our half: the peer reads what was written, then the end. Keeps reading, else the rest
        could be lost."""
        self._shutdown(socket.SHUT_WR)

    def linger(self) -> None:
        """End our half, and wait for the peer's: to close with its bytes unread would reset the
        connection, and our last words with it. For the reading thread."""
        self.finish()
        until = time.monotonic() + LINGER
        try:
            while time.monotonic() < until:
                self.read(max(0.0, until - time.monotonic()))
        except ConnectionClosed:
            pass

    def cut(self) -> None:
        """End both halves at once: wakes the reader, which close() would not."""
        self._is_cut = True
        self._shutdown(socket.SHUT_RDWR)

    def hung_up(self) -> bool:
        """True when the peer has ended the connection; other systems than Linux say so when all
        that it said is read. Any thread; does not wait."""
        with self._closing:
            try:
                if sys.platform == "linux" and hasattr(select, "POLLRDHUP"):
                    poller = select.poll()
                    poller.register(self._sock, select.POLLRDHUP)
                    return bool(poller.poll(0))
                # (PyPy on Linux, whose sockets block, comes here as well.)
                return not self._sock.recv(1, socket.MSG_PEEK | DONT_WAIT)
            except BlockingIOError:
                return False
            except (OSError, ValueError):
                # ValueError: it is closed, and poll() takes no such descriptor.
                return True

    def close(self) -> None:
        """Give the descriptor back. Only the reader calls it, after its manager's close(): nobody
        writes any more."""
        with self._closing:
            self._sock.close()

    def _shutdown(self, how: int) -> None:
        with self._closing:
            try:
                self._sock.shutdown(how)
            except OSError:
                # It ended before, or it is closed.
                pass


# --- TLS ---

class SecureSocket(MessageSocket):
    """A MessageSocket that speaks TLS, from begin() on. To all who use it there is no difference.

    An SSLSocket may not be read and written by two threads at once, and knows no send() that does
    not block. So TLS works between memory and memory here (ssl.SSLObject): the reading thread
    blocks in recv() as ever, without a lock, and has decrypted what came; a writer has encrypted
    what goes, and sends as ever. What does not fit waits in `_unsent`, encrypted, in its order.
    (Of a record that is not whole OpenSSL keeps 17 KB at most, which `begun` leaves out.)
    """

    __slots__ = ("_lock", "_tls", "_coming", "_going", "_extra")

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        # Protects the three below, and keeps what was encrypted in its order until it is sent.
        # Inside it only MessageSocket's own lock is taken: a leaf.
        self._lock = threading.Lock()
        # None: nothing is encrypted yet, or the peer speaks in the clear.
        self._tls: Optional[ssl.SSLObject] = None
        # What comes from the socket, and what goes to it.
        self._coming, self._going = ssl.MemoryBIO(), ssl.MemoryBIO()
        # Bytes that came and said nothing, beyond those that are fair.
        self._extra = -2 * RECORD

    def begin(self, until: float, context: ssl.SSLContext, name: Optional[str] = None) -> bool:
        """Greet the peer, until then by time.monotonic(); `name` is what a client calls the server,
        a server has none. Only the reading thread may write until this is over. False for a client
        that speaks in the clear: nothing is encrypted then. Raises ConnectionClosed, with ssl's
        error as its cause where there is one."""
        if name is None and self.peek(self._left(until))[:1] != GREETING:
            return False
        try:
            tls = context.wrap_bio(self._coming, self._going, server_side=name is None,
                                   server_hostname=name)
        except ValueError as error:
            raise ConnectionClosed(f"TLS knows no such name: {error}") from error
        while not self._greets(tls):
            self._coming.write(self.read(self._left(until)))
        self._tls = tls
        # What came behind the greeting.
        self._unread = self._decrypt(b"")
        return True

    @staticmethod
    def _left(until: float) -> float:
        """The seconds until then. Raises ConnectionClosed when there are none."""
        left = until - time.monotonic()
        if left <= 0:
            raise ConnectionClosed("TLS was not agreed on in time")
        return left

    def _greets(self, tls: ssl.SSLObject) -> bool:
        """Go on with the handshake; return whether it is over. Raises ConnectionClosed."""
        try:
            tls.do_handshake()
            return True
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise ConnectionClosed(f"TLS was not agreed on: {_ssl_reason(error)}") from error
        finally:
            # Whatever came of it, the peer is told.
            super().write(self._going.read())

    @property
    def is_encrypted(self) -> bool:     # type: ignore[override]
        """Whether TLS is agreed on."""
        return self._tls is not None

    @property
    def certificate(self) -> bytes:
        """The peer's certificate in DER; b"" without one."""
        return (self._tls.getpeercert(True) if self._tls is not None else None) or b""

    def _read(self, timeout: Optional[float]) -> Optional[bytes]:
        if self._tls is None:
            return super()._read(timeout)
        until = math.inf if timeout is None else time.monotonic() + timeout
        left = timeout
        while True:
            data = super()._read(left)
            # Nothing, or the end.
            if not data:
                return data
            plain = b""
            for start in range(0, len(data), PIECE):
                plain += self._decrypt(data[start:start + PIECE])
            self._weigh(len(data), len(plain))
            # A record that is not whole yet, or one of TLS's own, is nothing to wait less for; but
            # whoever has to pay for them is told.
            if plain or self.overhead:
                return plain or None
            if timeout is not None:
                left = max(0.0, until - time.monotonic())

    def _weigh(self, came: int, said: int) -> None:
        """Have the flood limit charged where next to nothing is said with much: TLS has messages of
        its own (its keys may be changed at any time) and records of a byte, which all cost work. An
        ACK alone in its record is fair, and so are two records that are not whole yet."""
        self._extra = max(-2 * RECORD, self._extra + came - 3 * said)
        if self._extra > 0:
            self.overhead += 1 + self._extra // OVERHEAD_BYTES
            self._extra = 0

    def _decrypt(self, data: bytes) -> bytes:
        """The plain bytes that `data` completes. Raises ConnectionClosed when it is no TLS."""
        assert self._tls is not None
        plain = b""
        with self._lock:
            self._coming.write(data)
            try:
                # Each time a record, all of it: OpenSSL takes no more than one from `_coming`.
                while True:
                    piece = self._tls.read(RECORD)
                    plain += piece
                    if not piece:
                        raise ssl.SSLZeroReturnError
                    if not self._coming.pending:
                        break
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                # The peer has said its last: the next recv() sees the end.
                self._shutdown(socket.SHUT_RD)
            except ssl.SSLError as error:
                self._put_encrypted()
                self.cut()
                if not plain:
                    raise ConnectionClosed(f"what came is no TLS: {_ssl_reason(error)}") from error
            self._put_encrypted()
        return plain

    def write(self, data: bytes) -> None:
        """As MessageSocket's. Once for every delivery, so it is kept short."""
        if self._tls is None:
            MessageSocket.write(self, data)
            return
        with self._lock:
            try:
                if 0 < len(data) <= PIECE:
                    self._tls.write(data)
                    data = self._going.read()
                else:
                    data = self._encrypt(data)
            except ssl.SSLError:
                # Our half has ended, or the peer broke TLS.
                self.cut()
                return
            MessageSocket.write(self, data)

    def _encrypt(self, data: bytes) -> bytes:
        """More than a piece, or nothing. Needs the lock."""
        assert self._lock.locked() and self._tls is not None
        encrypted = []
        for start in range(0, len(data), PIECE):
            self._tls.write(data[start:start + PIECE])
            encrypted.append(self._going.read())
        return b"".join(encrypted)

    def _put_encrypted(self) -> None:
        """Send what TLS has to say by itself. Needs the lock."""
        assert self._lock.locked()
        if self._going.pending:
            MessageSocket.write(self, self._going.read())

    def finish(self) -> None:
        """As MessageSocket's; TLS says so as well, else a peer might think that it was cut."""
        with self._lock:
            if self._tls is not None:
                # It would wait for the peer's answer, which the reader takes.
                with contextlib.suppress(ssl.SSLError):
                    self._tls.unwrap()
                self._put_encrypted()
        super().finish()


def _ssl_reason(error: Exception) -> str:
    """What OpenSSL says of an error, for a reader."""
    reason: str = (getattr(error, "verify_message", "") or getattr(error, "reason", "")
                   or str(error))
    return reason.replace("_", " ").lower()


def trust_key(certificate: bytes) -> str:
    """What people compare to know whose certificate (in DER) it is: 80 bits of the SHA-256 of its
    public key, as K3QF-7T2M-5XWB-4HDN. Raises ValueError."""
    sequence, integer, version = 0x30, 0x02, 0xa0
    body, _ = _element(certificate, 0, sequence)
    at, end = _element(certificate, body, sequence)
    if certificate[at:at + 1] == bytes([version]):
        _, at = _element(certificate, at, version)
    # RFC 5280, 4.1: serial number, algorithm, issuer, times and subject come before the key.
    for tag in (integer, sequence, sequence, sequence, sequence):
        _, at = _element(certificate, at, tag)
    _, behind = _element(certificate, at, sequence)
    if behind > end:
        raise ValueError("no certificate")
    digest = hashlib.sha256(certificate[at:behind]).digest()[:10]
    return "-".join(textwrap.wrap(base64.b32encode(digest).decode(), 4))


def check_trust_key(text: str) -> str:
    """A key as somebody typed it, in any case and with what lies between. Raises ValueError."""
    key = re.sub("[ -]", "", text.upper())
    if not re.fullmatch("[A-Z2-7]{16}", key):
        raise ValueError("a key has 16 letters and digits, such as K3QF-7T2M-5XWB-4HDN")
    return "-".join(textwrap.wrap(key, 4))


def _element(data: bytes, at: int, tag: int) -> "tuple[int, int]":
    """Where the content of an element of DER with that tag begins, and where it ends (X.690, 8.1
    and 10.1). Raises ValueError.

    A length has to be there in its one short form. OpenSSL takes others as well, and who reads one
    of them in another way than OpenSSL finds another public key than the one that OpenSSL checks:
    an impostor would put the key of the server that he plays there.
    """
    head = data[at:at + 2]
    if len(head) < 2 or head[0] != tag:
        raise ValueError("no certificate")
    length, begin = head[1], at + 2
    if length >= 0x80:
        encoded = data[begin:begin + length - 0x80]
        length, begin = int.from_bytes(encoded, "big"), begin + len(encoded)
        # It is indefinite, or longer than it needs to be.
        if length < 0x80 or encoded[0] == 0:
            raise ValueError("no certificate")
    if begin + length > len(data):
        raise ValueError("no certificate")
    return begin, begin + length


# --- Alarm ---

def weakly(method: Callable[..., None], *arguments: Any) -> Callable[[], None]:
    """An action for the alarm that does not keep the method's object alive: it may be gone long
    before the deadline."""
    # Not a WeakMethod, which takes twice as long: a busy server makes thousands a second.
    reference = weakref.ref(method.__self__)        # type: ignore[attr-defined]
    function = method.__func__                      # type: ignore[attr-defined]

    def action() -> None:
        owner = reference()
        if owner is not None:
            function(owner, *arguments)
    return action


class Alarm:
    """One threading.Timer for every deadline of the process, armed for the earliest and only while
    there is one.

    at() may be called from any thread. Actions run on the timer's thread, one after the other, so a
    long one delays the others. There is no cancel: it could not stop an action that is already
    running, so each looks again whether it is still wanted.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic,
                 timer: Callable[..., Any] = threading.Timer) -> None:
        self.clock = clock
        self._new_timer = timer
        self._deadlines = sched.scheduler(clock, lambda seconds: None)
        # Protects the two below; a leaf.
        self._lock = threading.Lock()
        # The armed timer, and when it rings: -inf once closed, which nothing is earlier than.
        self._timer: Any = None
        self._rings_at = math.inf

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Run `action` at `when` by the clock, up to TICK later."""
        when = math.ceil(when / TICK) * TICK
        self._deadlines.enterabs(when, 0, action)
        self._arm(when)

    def close(self) -> None:
        """Never ring again."""
        with self._lock:
            self._rings_at = -math.inf
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _arm(self, when: float) -> None:
        with self._lock:
            if self._rings_at <= when:
                return
            earlier = self._timer
            self._rings_at = when
            seconds = min(max(0.0, when - self.clock()), LONGEST_WAIT)
            self._timer = timer = self._new_timer(seconds, functools.partial(self._ring, when))
        # A deadline is no reason to keep a process alive. The thread ends after one ring.
        timer.daemon = True
        timer.name = "alarm"
        try:
            timer.start()
        except RuntimeError:
            # No thread to be had: the next at() tries again, and `earlier` still rings.
            with self._lock:
                if self._timer is timer:
                    self._rings_at, self._timer = math.inf, None
            return
        if earlier is not None:
            earlier.cancel()

    def _ring(self, when: float) -> None:
        with self._lock:
            # Else it was cancelled too late, which does no harm.
            if self._rings_at == when:
                self._rings_at, self._timer = math.inf, None
            if self._rings_at == -math.inf:
                return
        delay = self._deadlines.run(blocking=False)
        if delay is not None:
            self._arm(self.clock() + delay)


# --- The log and its readers ---

Wrap = Callable[[bytes], bytes]

# The place of who does not read the log.
NOWHERE = -1


class News:
    """Frames that were published together, for whoever has read up to `after` and not past
    `first`: to all of them goes one and the same bytes object. Those in `concerned` have frames of
    their own since `after`, and read the log. So do all where nothing is public, or more than a
    window takes."""

    __slots__ = ("after", "first", "end", "at", "concerned", "count", "size", "data", "_frames",
                 "_envelopes")

    def __init__(self, after: int, first: int, end: int, at: float, concerned: "FrozenSet[int]",
                 frames: "list[bytes]") -> None:
        self.after = after
        self.first = first
        self.end = end
        # When, by the alarm's clock.
        self.at = at
        self.concerned = concerned
        self.count = len(frames)
        self.size = sum(map(len, frames))
        self.data = b""
        if 0 < self.count <= WINDOW and self.size <= WINDOW_BYTES:
            self.data = frames[0] if self.count == 1 else b"".join(frames)
        else:
            # Nobody stands there.
            self.first = NOWHERE
        self._frames = frames
        self._envelopes: "dict[Wrap, bytes]" = {}

    def wrapped(self, wrap: Wrap) -> bytes:
        """The frames in their envelopes: made once for all who need them."""
        data = self._envelopes.get(wrap)
        if data is None:
            data = self._envelopes[wrap] = b"".join(map(wrap, self._frames))
        return data


class Piece(NamedTuple):
    """What a reader hears next: the bytes, how many frames they are and of which size together,
    and the place behind them."""

    data: bytes
    frames: int
    size: int
    place: int


class MessageQueue:
    """One log: frames in the order of their ids, read from any place by any number of readers. The
    server has one for the room, a client one for what it says.

    append() and publish() are for the one thread that makes the order; a frame may be read once it
    is published. Any thread may read. Nothing that is kept here grows with the number of readers.
    """

    def __init__(self) -> None:
        # Protects everything below while it is read or changed; a leaf. Joining bytes is done
        # without it. (The thread that makes the order reads without it what it alone changes.)
        self._lock = threading.Lock()
        self._ids: "list[int]" = []
        self._frames: "list[bytes]" = []
        # Of each frame the readers that it is for; None is everybody.
        self._audiences: "list[Optional[FrozenSet[int]]]" = []
        # Of each frame the bytes up to its end, counted from the very first frame.
        self._ends: "list[int]" = []
        self._bytes = 0
        # Where a reader finds its own among many that are not: the ids of the frames for everybody,
        # and of each reader those of the frames for an audience that it belongs to.
        self._public: "list[int]" = []
        self._private: "dict[Optional[int], list[int]]" = {}
        # What is up to here is no longer kept, and what is behind `end` may not go out yet.
        self.start = 0
        self.end = 0
        # Where the last public frames ended that were published, and who was concerned since then.
        self._public_end = 0
        self._concerned: "set[int]" = set()
        # Joined frames and envelopes, by wrap, first id and last id; the oldest first.
        self._pieces: "OrderedDict[tuple[Optional[Wrap], int, int], bytes]" = OrderedDict()
        self._pieces_bytes = 0
        # How often a frame was replaced: a piece that was joined meanwhile is not kept.
        self._replaced = 0

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def size(self) -> int:
        """Bytes of all frames that are kept."""
        return self._bytes - self._bytes_before(0)

    # For the thread that makes the order

    def append(self, id: int, frame: bytes, audience: "Optional[FrozenSet[int]]" = None) -> None:
        """Add a frame behind all others; for everybody, or for an audience of readers."""
        with self._lock:
            self._ids.append(id)
            self._frames.append(frame)
            self._audiences.append(audience)
            self._bytes += len(frame)
            self._ends.append(self._bytes)
            if audience is None:
                self._public.append(id)
            for reader in audience or ():
                self._private.setdefault(reader, []).append(id)

    def publish(self, end: int, now: float) -> Optional[News]:
        """Readers may have everything up to the id `end`. Returns what is new for wake(): without
        public frames (`count` is 0) for those in `concerned` alone; None where there is nothing."""
        with self._lock:
            first = bisect_right(self._ids, self.end)
            stop = bisect_right(self._ids, end, first)
            self.end = max(end, self.end)
            if first == stop:
                return None
            for audience in self._audiences[first:stop]:
                self._concerned.update(audience or ())
            frames = [frame for frame, audience in zip(self._frames[first:stop],
                                                       self._audiences[first:stop])
                      if audience is None]
            news = News(self._public_end, self._ids[first], self.end, now,
                        frozenset(self._concerned), frames)
            if frames:
                self._public_end = self.end
                self._concerned.clear()
            return news

    def forget(self, upto: int) -> None:
        """Keep only what comes behind the id `upto`."""
        with self._lock:
            count = bisect_right(self._ids, upto)
            concerned: "set[int]" = set().union(*filter(None, self._audiences[:count]))
            for reader in concerned:
                own = self._private[reader]
                del own[:bisect_right(own, upto)]
                if not own:
                    del self._private[reader]
            del self._public[:bisect_right(self._public, upto)]
            for kept in (self._ids, self._frames, self._audiences, self._ends):
                del kept[:count]
            self.start = max(self.start, upto)

    def replace(self, frames: "dict[int, bytes]") -> None:
        """Put other frames in the places of their ids, in every piece as well."""
        with self._lock:
            begin, first = self._bytes_before(0), len(self._ids)
            for id, frame in frames.items():
                at = bisect_right(self._ids, id) - 1
                if at >= 0 and self._ids[at] == id:
                    self._frames[at] = frame
                    first = min(first, at)
            if first == len(self._ids):
                return
            before = self._ends[first - 1] if first else begin
            sizes = accumulate(map(len, self._frames[first:]), initial=before)
            self._ends[first:] = list(sizes)[1:]
            self._bytes = self._ends[-1]
            self._pieces.clear()
            self._pieces_bytes = 0
            self._replaced += 1

    def oldest(self, count: int) -> int:
        """The id up to which the oldest `count` frames are."""
        return self._ids[min(count, len(self._ids)) - 1] if self._ids and count else self.start

    def frame(self, id: int) -> bytes:
        """The frame of that id; b"" when it is not here."""
        at = bisect_right(self._ids, id) - 1
        return self._frames[at] if at >= 0 and self._ids[at] == id else b""

    # For readers, on any thread

    def piece(self, after: int, upto: int, reader: Optional[int], room: int, room_bytes: int,
              wrap: Optional[Wrap] = None) -> Optional[Piece]:
        """What `reader` hears behind the place `after`: as much up to `upto` as there is room for.
        None when `after` is below the start of the log."""
        with self._lock:
            if after < self.start:
                return None
            upto = min(upto, self.end)
            first = bisect_right(self._ids, after)
            whole = bisect_right(self._ids, upto, first)
            if self._is_public(first, whole):
                stop = self._fitting(first, min(whole, first + room), room_bytes)
                frames = self._frames[first:stop]
            else:
                frames, stop = self._own(first, whole, reader, room, room_bytes)
            ids = self._ids
            place = upto if stop == whole else ids[stop - 1] if stop > first else after
            size = sum(map(len, frames))
            # Only a run without gaps is everybody's; a single frame needs no joining.
            is_kept = len(frames) == stop - first and (len(frames) > 1 or frames and wrap)
            key = (wrap, ids[first], ids[stop - 1]) if is_kept else None
            data = self._pieces.get(key) if key else None
            replaced = self._replaced
        if data is None:
            data = b"".join(frames if wrap is None else map(wrap, frames))
            if key:
                self._keep(key, data, replaced)
        return Piece(data, len(frames), size, place)

    def count(self, after: int, upto: int, reader: Optional[int]) -> "Optional[tuple[int, int]]":
        """How many frames of `reader` lie between two places, and their bytes; None when the first
        place is below the start of the log."""
        with self._lock:
            if after < self.start:
                return None
            first = bisect_right(self._ids, after)
            stop = bisect_right(self._ids, upto, first)
            if self._is_public(first, stop):
                return stop - first, self._bytes_before(stop) - self._bytes_before(first)
            own = self._own(first, stop, reader, stop - first, self._bytes)[0]
        return len(own), sum(map(len, own))

    # Under the lock

    def _is_public(self, first: int, stop: int) -> bool:
        """Whether the entries from number `first` to `stop` are everybody's. Needs the lock."""
        assert self._lock.locked()
        if first == stop or not self._private:
            return True
        after = bisect_left(self._public, self._ids[first])
        upto = bisect_right(self._public, self._ids[stop - 1], after)
        return upto - after == stop - first

    def _bytes_before(self, at: int) -> int:
        """Bytes up to the entry number `at`, as `_ends` counts them. Needs the lock."""
        if at:
            return self._ends[at - 1]
        return self._ends[0] - len(self._frames[0]) if self._ends else self._bytes

    def _fitting(self, first: int, stop: int, room_bytes: int) -> int:
        """The last `stop` with which the frames from `first` fit. Needs the lock."""
        assert self._lock.locked()
        most = self._bytes_before(first) + room_bytes
        if stop > first and self._ends[stop - 1] > most:
            stop = bisect_right(self._ends, most, first, stop)
        return stop

    def _own(self, first: int, stop: int, reader: Optional[int], room: int,
             room_bytes: int) -> "tuple[list[bytes], int]":
        """The frames of `reader` that fit, and behind which entry they end: what is private to
        others is stepped over. Needs the lock."""
        numbers = self._numbers(first, stop, reader, room + 1)
        own = [self._frames[at] for at in numbers[:room]]
        fitting = bisect_right(list(accumulate(map(len, own))), room_bytes)
        return own[:fitting], numbers[fitting] if fitting < len(numbers) else stop

    def _numbers(self, first: int, stop: int, reader: Optional[int], most: int) -> "list[int]":
        """Which of the entries from number `first` to `stop` are for `reader`, the first so many.
        However many there are of others, it takes no longer. Needs the lock."""
        assert self._lock.locked()
        own: "list[int]" = []
        if first < stop:
            after, upto = self._ids[first], self._ids[stop - 1]
            for ids in self._public, self._private.get(reader, []):
                at = bisect_left(ids, after)
                own += ids[at:min(bisect_right(ids, upto, at), at + most)]
        return list(map(bisect_left, repeat(self._ids), sorted(own)[:most]))

    def _keep(self, key: "tuple[Optional[Wrap], int, int]", data: bytes, replaced: int) -> None:
        """Keep a piece for other readers at the same place; the oldest go when the bound is
        reached."""
        with self._lock:
            if replaced != self._replaced or key in self._pieces:
                return
            self._pieces[key] = data
            self._pieces_bytes += len(data)
            while self._pieces_bytes > PIECES_BYTES:
                self._pieces_bytes -= len(self._pieces.popitem(last=False)[1])


class Peer(Protocol):
    """Whom a MessageManager works for. Called without its lock; behind() on the thread of an ACK
    or of a wake(), the others on the alarm's."""

    def dead(self) -> None:
        """The peer has acknowledged nothing for all its retries."""

    def idle(self) -> None:
        """Nothing was sent for PING_AFTER: it is time for a ping()."""

    def behind(self, retry: bool) -> None:
        """The peer's place is below the start of the log, or before its `begin`: it wants a feed(),
        or with `retry` a resend() of the first frame that it has not acknowledged."""


def _nowhere(data: bytes) -> None:
    """What a closed MessageManager writes with."""


class Confirmations:
    """Which of the peer's frames our ACKs confirm, and when: a MessageManager's, under its lock."""

    __slots__ = ("seen", "refused", "late", "due")

    def __init__(self, seen: int) -> None:
        # The newest id of the peer's frames that has done its work here.
        self.seen = seen
        # Of the peer's frames that we refuse: their id, and that of the error, not sent yet.
        self.refused: "list[tuple[int, int]]" = []
        # Bytes that a late ACK will confirm, where a frame counts its part of ACK_BYTES at least;
        # and when that ACK has to be written.
        self.late = 0
        self.due = math.inf

    def processed(self, id: int, size: int, now: float) -> bool:
        """A frame has done its work; return whether to confirm at once: for a duplicate, whose ACK
        was lost, or when enough is late."""
        is_duplicate = id <= self.seen
        self.seen = max(id, self.seen)
        if not self.late:
            self.due = now + ACK_DELAY - TICK
        self.late += max(size, ACK_BYTES // ACK_FRAMES)
        return is_duplicate or self.late >= ACK_BYTES

    def passed(self, sent: int) -> bool:
        """Our frames up to `sent` are written; return whether an ACK waited for an error there."""
        said = [id for id, error in self.refused if error <= sent]
        self.refused = [pair for pair in self.refused if pair[1] > sent]
        return bool(said) and min(said) <= self.seen

    def confirm(self) -> int:
        """An ACK is written now: of everything before the first refusal that waits. An error that
        was said again has a newer id than those after it, so the errors' order tells nothing."""
        self.late, self.due = 0, math.inf
        return min(self.seen, min(self.refused)[0] - 1) if self.refused else self.seen


class MessageManager:
    """One peer, over one connection: a reader of a log whose two places are what was sent and what
    was acknowledged, and who confirms what the peer sends. Here all correctness meets.

    A resume is a new manager that begins at the peer's place. A reader that stops costs nothing,
    and after all its retries it is dead. Any thread may call, and nothing blocks. `wrap` is what a
    connection writes for a frame that is no plain socket. Until open() only bare frames go out.
    """

    __slots__ = ("_alarm", "_log", "_owner", "_wrap", "_lock", "_write", "_reader", "_begin",
                 "sent", "acked", "_wanted", "_fed", "_flying", "_flying_bytes", "_since",
                 "_retries", "_incoming", "_ring_at", "__weakref__")

    def __init__(self, alarm: Alarm, log: MessageQueue, owner: Peer,
                 write: Callable[[bytes], None], wrap: Optional[Wrap] = None,
                 seen: int = 0) -> None:
        self._alarm = alarm
        self._log = log
        self._owner = owner
        self._wrap = wrap
        # Protects everything below and keeps writes in the order of ids: the writes, which never
        # block, are made under it. The log's lock may be taken inside, and the socket's. Neither
        # the owner nor the alarm is called while it is held.
        self._lock = threading.Lock()
        # Does nothing once closed; `_ring_at` is -inf then.
        self._write = write
        # Which of the log's readers this is, and from where on: what comes before is fed to it.
        self._reader: Optional[int] = None
        self._begin = 0
        # Two places in the log: what lies between is in flight. So many frames of it are this
        # reader's, and bytes. (A ping is in flight with none.)
        self.sent = self.acked = NOWHERE
        self._flying = self._flying_bytes = 0
        # How far a wake() wanted to go: what the window had no room for goes out with an ACK. What
        # is newer has its own wake(), which no ACK overtakes: with 10,000 readers that costs half.
        self._wanted = NOWHERE
        # Of what was fed last the id of its last frame, and the place behind: between these nothing
        # is this reader's, whatever the log has there.
        self._fed = (NOWHERE, NOWHERE)
        # When the oldest frame in flight was sent, or the last ACK moved `acked`; with nothing in
        # flight when anything was written.
        self._since = alarm.clock()
        self._retries = 0
        self._incoming = Confirmations(seen)
        # When the alarm calls us; earlier requests that it still holds are stale.
        self._ring_at = math.inf

    # What goes out

    def open(self, place: int, *, reader: Optional[int] = None, begin: int = 0, seen: int = 0,
             refused: "Collection[tuple[int, int]]" = ()) -> None:
        """The peer has everything up to `place`, and hears what comes next. `seen` is the newest id
        that we have of its frames, `refused` as in refuse()."""
        with self._lock:
            self._reader, self._begin = reader, begin
            self.sent = self.acked = place
            self._incoming.seen = seen
            self._incoming.refused += [pair for pair in refused if pair[1] > place]
            self._since = self._alarm.clock()
            calls = self._go_on()
        self._call(*calls)

    def wake(self, news: News) -> None:
        """Frames were published: what of them is this reader's goes out, now or when the window
        opens. This runs once for every delivery, so the usual case comes first."""
        with self._lock:
            if (news.after <= self.sent < news.first and self._begin <= self.sent
                    and self._flying + news.count <= WINDOW
                    and self._flying_bytes + news.size <= WINDOW_BYTES
                    and self._reader not in news.concerned):
                if self.acked == self.sent:
                    self._since = news.at
                self.sent = news.end
                self._flying += news.count
                self._flying_bytes += news.size
                self._write(news.data if self._wrap is None else news.wrapped(self._wrap))
                if self._incoming.refused and self._incoming.passed(self.sent):
                    self._put_ack()
                # The alarm rings early enough, mostly.
                if self._ring_at <= news.at + RETRY_DELAY:
                    return
            calls = self._go_on()
        self._call(*calls)

    def feed(self, frames: "list[bytes]", place: int, last: int = 0) -> None:
        """Send what this reader hears up to `place`, which is not read from the log: at most a
        window of frames, `last` the id of the last (0: it is the place). Only while nothing is in
        flight (see behind())."""
        with self._lock:
            if self._flying or place < self.sent:
                return
            was_idle = self.acked == self.sent
            self.sent = place
            self._fed = (last or place, place)
            self._put_flying(frames, len(frames), sum(map(len, frames)), was_idle)
            calls = self._go_on()
        self._call(*calls)

    def resend(self, frame: bytes) -> None:
        """Send a frame in flight again, which is not read from the log."""
        with self._lock:
            self._put(frame)

    def ping(self, id: int, frame: bytes) -> None:
        """Send a ping, unless something is in flight, which asks for an ACK as well."""
        with self._lock:
            is_behind = self._send()
            if self.sent == self.acked and not is_behind and id > self.sent:
                self.sent = id
                self._since = self._alarm.clock()
                self._put(frame)
            ring_at = self._next_ring()
        self._call(is_behind, ring_at)

    def catch_up(self) -> None:
        """Look whether there is anything to hear, and room for it."""
        with self._lock:
            calls = self._go_on()
        self._call(*calls)

    def write_bare(self, frame: bytes) -> None:
        """Write a bare frame now, past the window; nothing happens after close()."""
        with self._lock:
            self._put_bare(frame)

    def close(self, upto: int = NOWHERE, last_words: bytes = b"") -> None:
        """Write no more; before that what the window has room for up to a place, and then
        `last_words`, which go past a shut window. May be called twice."""
        with self._lock:
            if upto > self.sent > NOWHERE:
                self._send(upto)
            if last_words:
                self._put(last_words)
            self._end()

    # What comes in

    def take_ack(self, id: int) -> bool:
        """The peer acknowledges our frames up to `id`; what waited goes out in one write. Returns
        whether that was news; raises FrameError for an id that was never sent."""
        with self._lock:
            if id > self.sent:
                raise FrameError("bad-frame", f"an ack of {id}, which was never sent")
            if id <= self.acked:
                return False
            last, place = self._fed
            if last <= id < place:
                id = place
            rest = ((0, 0) if id == self.sent else None if id < place
                    else self._log.count(id, self.sent, self._reader))
            # In what was fed, and below the start of the log, nobody can count: then only an ACK of
            # all opens the window.
            if rest is not None:
                self._flying, self._flying_bytes = rest
            # Over what was not this reader's as well.
            self.acked = self.sent if rest == (0, 0) else id
            self._since = self._alarm.clock()
            self._retries = 0
            # Mostly there is nothing more to send.
            is_behind = self.sent < self._wanted and self._send()
        if is_behind:
            self._owner.behind(False)
        return True

    def processed(self, id: int, size: int = 0) -> None:
        """The peer's frame `id` of `size` bytes has done its work: confirm it late. A duplicate is
        confirmed at once."""
        with self._lock:
            if self._incoming.processed(id, size, self._alarm.clock()):
                self._put_ack()
            ring_at = self._next_ring()
        self._call(False, ring_at)

    def excuse(self) -> None:
        """Our side does not read at the moment: ACKs that do not come are no fault of the peer."""
        with self._lock:
            self._since = self._alarm.clock()

    def refuse(self, id: int, error: int) -> None:
        """The peer's frame `id` is refused by our frame `error`: no ACK may overtake that, the peer
        would take it for a yes."""
        with self._lock:
            if error > self.sent:
                self._incoming.refused.append((id, error))

    def confirm(self, upto: int) -> None:
        """Confirm the peer's frames up to `upto` at once, as far as no refusal among them waits to
        be sent: the ACK of what comes behind it is written when it was."""
        with self._lock:
            self._incoming.seen = max(upto, self._incoming.seen)
            self._put_ack()

    # What is known

    @property
    def seen(self) -> int:
        """The newest id of the peer's frames that has done its work here."""
        return self._incoming.seen

    @property
    def is_behind(self) -> bool:
        """Whether this reader waits to be fed; one that was closed does not."""
        floor = max(self._begin, self._log.start)
        return self._ring_at > -math.inf and not self._flying and NOWHERE < self.sent < floor

    @property
    def is_empty(self) -> bool:
        """Whether the peer has acknowledged everything that was published."""
        with self._lock:
            return (self._ring_at == -math.inf
                    or self.sent == self.acked and self.sent >= self._log.end)

    # Under the lock

    def _go_on(self) -> "tuple[bool, float]":
        """Write what there is to hear, and room for. Returns what _call() is for. Needs the
        lock."""
        return self._send(), self._next_ring()

    def _send(self, upto: Optional[int] = None) -> bool:
        """Write what comes behind `sent`, up to a place (None: the log's end). Needs the lock.

        1. MUST NOT block, call the owner or the alarm; what it could not send it leaves to the
           next ACK or wake().
        2. `sent` only grows, and everything of this reader up to it was written once, in order.
        3. At most WINDOW frames of this reader and WINDOW_BYTES of them are in flight; what is
           private to others does not count and is stepped over.
        4. With nothing in flight `acked` follows `sent`: else what is not to be acknowledged would
           look like a frame in flight, and be retried to death.
        5. Afterwards it has written something, the window is shut, or it stands at the end.
        6. Returns True for a reader that has to be fed: then nothing of it is in flight.
        7. When `sent` passes an error that refuses a frame, the ACK that waited for it is written.
        """
        assert self._lock.locked()
        log = self._log
        self._wanted = end = log.end if upto is None else min(upto, log.end)
        if not NOWHERE < self.sent < end or self._flying >= WINDOW:
            return False
        piece = None
        if self.sent >= self._begin:
            piece = log.piece(self.sent, end, self._reader, WINDOW - self._flying,
                              WINDOW_BYTES - self._flying_bytes, self._wrap)
        if piece is None:
            return not self._flying
        was_idle = self.acked == self.sent
        self.sent = piece.place
        self._put_flying([piece.data], piece.frames, piece.size, was_idle, is_wrapped=True)
        return False

    def _put_flying(self, frames: "list[bytes]", count: int, size: int, was_idle: bool,
                    is_wrapped: bool = False) -> None:
        """Write frames of this reader, which lie before `sent` now. Needs the lock."""
        assert self._lock.locked()
        if not count and was_idle:
            self.acked = self.sent
        if count:
            self._flying += count
            self._flying_bytes += size
            if was_idle:
                self._since = self._alarm.clock()
            wrap = None if is_wrapped else self._wrap
            self._write(b"".join(frames if wrap is None else map(wrap, frames)))
        if self._incoming.refused and self._incoming.passed(self.sent):
            self._put_ack()

    def _end(self) -> None:
        """Write and ring no more. Needs the lock."""
        assert self._lock.locked()
        self._write = _nowhere
        self._ring_at = -math.inf

    def _put(self, frame: bytes) -> None:
        """Write a frame. Needs the lock."""
        assert self._lock.locked()
        self._write(frame if self._wrap is None else self._wrap(frame))

    def _put_bare(self, frame: bytes) -> None:
        """Write a bare frame: the peer hears from us, so no ping is due. Needs the lock."""
        self._put(frame)
        if self.sent == self.acked:
            self._since = self._alarm.clock()

    def _put_ack(self) -> None:
        """Confirm what the peer sent. Needs the lock."""
        assert self._lock.locked()
        upto = self._incoming.confirm()
        if upto > 0:
            self._put_bare(Ack(upto).encode())

    def _next_ring(self) -> float:
        """When the alarm has to be asked for a ring; inf when it rings early enough anyway. Needs
        the lock."""
        assert self._lock.locked()
        if self.sent == NOWHERE:
            return math.inf
        # Whole seconds for pings, so that a thousand idle members wake the process once a second,
        # not a thousand times.
        when = (self._since + RETRY_DELAY if self.sent > self.acked
                else math.ceil(self._since + PING_AFTER))
        when = min(when, self._incoming.due)
        if when >= self._ring_at:
            return math.inf
        self._ring_at = when
        return when

    # Without the lock

    def _call(self, is_behind: bool, ring_at: float) -> None:
        if is_behind:
            self._owner.behind(False)
        if ring_at < math.inf:
            self._alarm.at(ring_at, weakly(self._rung, ring_at))

    def _rung(self, when: float) -> None:
        """On the alarm's thread: do what is due, and ask for the next ring."""
        call: Optional[Callable[[], None]] = None
        with self._lock:
            # Else it is stale: the connection went, or an earlier ring did the work.
            if when != self._ring_at:
                return
            self._ring_at = math.inf
            now = self._alarm.clock()
            if now >= self._incoming.due:
                self._put_ack()
            if self.sent == self.acked:
                if now >= self._since + PING_AFTER:
                    call = self._owner.idle
                    # The ping's ACK is due then: ping() need not ask for a ring again.
                    self._since = now + RETRY_DELAY - PING_AFTER
            elif now >= self._since + RETRY_DELAY:
                call = self._retry(now)
            ring_at = self._next_ring()
        if call is not None:
            call()
        self._call(False, ring_at)

    def _retry(self, now: float) -> Optional[Callable[[], None]]:
        """Send the first frame in flight again, alone; return whom else to call. Needs the lock."""
        assert self._lock.locked()
        if self._retries >= MAX_RETRIES:
            self._end()
            return self._owner.dead
        self._retries += 1
        self._since = now
        first = self._log.piece(self.acked, self.sent, self._reader, 1, WINDOW_BYTES)
        if first is None or self.acked < self._begin:
            return functools.partial(self._owner.behind, True)
        # A ping, where nothing but one is in flight.
        self._put(first.data or Ping(self.sent).encode())
        return None


# --- Sequencing ---

Event = Tuple[Callable[..., Any], Tuple[Any, ...]]


class Inbox:
    """Sequencing: many threads post events, which are methods with their arguments, and one thread
    takes all that wait, in their order.

    At most `most` events wait; then whoever posts waits, but for the thread that takes: what it
    posts comes with its next take(). After close() nothing is posted any more.
    """

    def __init__(self, most: int) -> None:
        self._events: "queue.Queue[Event]" = queue.Queue(most)
        # The thread that takes, and what it posted: no other thread touches that list.
        self._taker = 0
        self._own: "list[Event]" = []
        self._closed = threading.Event()

    def post(self, method: Callable[..., Any], *arguments: Any) -> None:
        """Have a method called in its turn. Any thread; blocks while the inbox is full."""
        if threading.get_ident() == self._taker:
            self._own.append((method, arguments))
            return
        while not self._closed.is_set():
            try:
                return self._events.put((method, arguments), timeout=1)
            except queue.Full:
                continue

    def ask(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Have a method called and return its result, or raise its error; TimeoutError when nobody
        takes it. Not for the thread that takes."""
        answer: "queue.Queue[tuple[Any, Optional[Exception]]]" = queue.Queue(1)

        def event() -> None:
            try:
                answer.put((method(*arguments), None))
            except Exception as error:
                # The asker's to handle.
                answer.put((None, error))
        self.post(event)
        try:
            result, error = answer.get(timeout=10)
        except queue.Empty:
            raise TimeoutError("the room does not answer") from None
        if error is not None:
            raise error
        return result

    def take(self, timeout: Optional[float] = None) -> "List[Event]":
        """Wait for an event, at most so many seconds; return it and all others that wait."""
        self._taker = threading.get_ident()
        events, self._own = self._own, []
        try:
            if not events:
                events.append(self._events.get(timeout=timeout))
            while len(events) < self._events.maxsize:
                events.append(self._events.get_nowait())
        except queue.Empty:
            pass
        return events

    @property
    def backlog(self) -> int:
        """How many events wait, about."""
        return self._events.qsize()

    @property
    def is_closed(self) -> bool:
        """Whether nothing is posted any more."""
        return self._closed.is_set()

    def wait_closed(self, seconds: float) -> bool:
        """Wait until close(), at most so many seconds; return whether it was called."""
        return self._closed.wait(seconds)

    def close(self) -> None:
        """Nothing more is posted. Wakes the thread that takes. May be called twice."""
        self._closed.set()
        try:
            self._events.put_nowait((int, ()))
        except queue.Full:
            pass


# --- Addresses and discovery ---

# Discovery is a question by UDP to everybody on the LAN, and each server's answer to the asker:
#     {"roger":1,"ask":TOKEN}    padded with blanks to QUESTION_SIZE, so that no answer is longer
#     {"roger":1,"answer":TOKEN,"name":...,"port":...,"here":...,"version":...,"tls":...,"id":...,
#      "key":...}
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


def is_address(text: str) -> bool:
    """Whether a text is an address, and no name."""
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


@functools.lru_cache(maxsize=1_000)
def is_loopback(address: str) -> bool:
    """Whether an address leads to this very machine; "" leads nowhere."""
    return bool(address) and ipaddress.ip_address(address.partition("%")[0]).is_loopback


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
        is_6, is_public = ip.version == 6, ip.version == 4 and not ip.is_private
        return (is_6 and ip.is_link_local, address.kind, is_6, ip.is_link_local, is_public,
                address.ip != routed, address.number)
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
            ip = _ip_of(address) if address else ""
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
    word, size, status = ctypes.sizeof(ctypes.c_void_p), ctypes.c_ulong(32_768), 0
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
            ip = _ip_of(pointer(unicast + 8 + word))
            if ip:
                found.append(Address(ip, name, index, kind))
            unicast = pointer(unicast + 8)
        adapter = pointer(adapter + 8)
    return found


def _ip_of(sockaddr: int) -> str:
    """The IP address in the system's `sockaddr` at that place; "" for another family's."""
    from ctypes import string_at
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

    # Each is so where an older or another server leaves it out.
    name: str = ""
    port: int = 0
    here: int = 0
    version: str = ""
    tls: bool = False
    id: str = ""
    # Under TLS the key by which it is known: to show it, not to trust it.
    key: str = ""


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
    if not answer.tls:
        del fields["key"]
    data = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    assert len(data) <= QUESTION_SIZE, "the parts' bounds are too large"
    return data


def decode_answer(data: bytes, token: str) -> Optional[Answer]:
    """The answer to our question, None for anything else: anybody may send us anything."""
    fields = _datagram(data)
    answer = Answer(**{name: fields[name] for name in Answer._fields if name in fields})
    if fields.get("answer") != token or any(type(value) is not type(usual)
                                            for value, usual in zip(answer, Answer())):
        return None
    if not 1 <= answer.port <= 65_535 or not 0 <= answer.here <= MAX_ID:
        return None
    return answer._replace(name=clean_text(answer.name)[:MAX_TITLE],
                           key=clean_text(answer.key)[:MAX_TITLE])


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
    short = own.partition(".")[0]
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
