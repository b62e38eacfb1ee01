#!/usr/bin/env python3
"""chat_web: the browser's way into Roger, a LAN chat: HTTP and WebSocket on the server's own port.

chat_server loads this file when it lies beside it (with chat_web.html, the page) and hands it what
it needs. (tests/echo.py is a bare echo with it, for conformance suites.)

    bytes of a connection ──▶ MessageSocket.peek: a method's name? ── no ──▶ frames, as ever
                                        │ yes                             (a Connection's)
                                        ▼
                              PageRequest: the page, two files, /host, or ...
                                        │ GET /chat, Upgrade: websocket
                                        ▼
                              WebSocket: to a Connection a MessageSocket like any other

The parts, bottom up
    MessageDecoder     bytes in any pieces -> messages, pings and the close (RFC 6455, the server's
                       side); no socket
    WebSocket          read() gives lines and write() takes what wrap() made of them: those who use
                       it do not know the difference. wrap() is called once a broadcast
    Request            an HTTP request, its bytes within limits and deadlines: answered, and the
                       connection closed; or upgraded
    FileStore          what members uploaded: what there is of it, and the folder that has it
    FileRequest        a file up, in pieces that are confirmed, or down: /files
    PageRequest        what is served besides: / /chat /chat_client.py /chatproto.py /host
    Web                all of it for chat_server, whose Console does what the host's view asks for.
                       Clerk is what a request about a file may ask of the room

Who may come: a page on any site can have its visitor's browser connect to an address of the LAN. So
an Origin, which every WebSocket of a browser has, has to be this very host and port, and Host an
address, localhost or this machine's name: a name of another's that leads here (DNS rebinding) is
refused. The page itself may load nothing, and run only its own script (Content-Security-Policy).
The host's view needs a secret that is printed on the server's terminal, and a connection from this
machine. The secret comes in a header, never in a URL, and a page elsewhere cannot send that header
(CORS: nobody answers its preflight request).

Files (HTTP only; every answer but a file's is JSON or a line of text)
    POST /files?name=NAME    begins an upload: 201, Location and {"upload": PATH}
    PUT PATH                 a piece: Content-Range: bytes A-B/TOTAL, where A is what the server
                             has; {"have": N} is what it has on disk then. "bytes */TOTAL" without a
                             body says how large it will be, or asks again. With the last byte the
                             answer has "url" and "text" for the chat that hands the file out
    HEAD PATH                asks how far it has come: Upload-Offset
    DELETE PATH              gives it up
    GET URL                  a file that was handed out, whole or a range of it
The first four need X-Roger-Session, the secret of a member in the room. A piece that is cut stays
as far as it came; one that begins elsewhere is answered with 409 and what the server has. A file
has 128 random bits in its address and the same 32 hexadecimal digits for a name on disk, with
".part" until it is handed out: nothing else in the folder is ever touched. What was not handed out
goes with its session, what was with its message, and who is fetching it then gets no more of it.
With a history file an upload goes on over a restart, from the last KEPT bytes that were confirmed.

The page is one file without a build. When it is loaded, comments, empty lines and indentation are
left out, so that they cost nobody anything, and it is compressed once; a browser asks each time
whether it is still the same (ETag). What stands between the marks of the host's view goes to
browsers on this machine alone: nobody else could use it. It stays readable by its comments and its
order: one section a part, bottom up, each headed by a line of dashes: the words (one table, one
column a language), text, storage, Session (no page in it), View (no protocol in it), and around
these what a person touches. A row is a piece of the talk as data; its elements are made when it is
drawn, together with all others that came (View.drawNow). A person is {name, gone}: it follows a
rename and ends with its session.

Threads: everything of a connection runs on its own thread; WebSocket says what others may call.
One is made here: "files", which deletes and renames, as the room must not wait for a disk. Locks:
one in each WebSocket and one in FileStore, described there. Under TLS (chatproto.SecureSocket)
nothing differs but the scheme of addresses. Left out on purpose: keep-alive.
"""

from __future__ import annotations

import base64
import codecs
import contextlib
import dataclasses
import email.utils
import functools
import hashlib
import hmac
import html
import http.client
import itertools
import json
import logging
import os
import queue
import re
import secrets
import shutil
import struct
import sys
import tempfile
import threading
import time
import urllib.parse
import zlib
from http import HTTPStatus
from typing import (IO, Any, Callable, Collection, Generator, Iterable, Iterator, Mapping,
                    NamedTuple, Optional, Tuple, Union)

import chatproto
from chatproto import MAX_LINE, ConnectionClosed, MessageSocket, ProtocolError, escape

# Seconds for a whole request, and again for its answer.
HTTP_TIMEOUT = 10.0
# Bytes of a request line or a header (a browser's are below 1 KiB), of all of them, and of a body
# (/host takes a text of 8,192 characters).
MAX_HTTP_LINE = 8 * 1024
MAX_HEAD = 32 * 1024
MAX_BODY = 64 * 1024
# Frames of a WebSocket that one message may be cut into: browsers use one.
FRAGMENTS = 128
# Frames of a WebSocket that are decoded at once: nobody holds the interpreter with a read full of
# empty ones.
READ_FRAMES = 64
METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"TRACE ",
           b"CONNECT ", b"PRI ")
PLAIN_TEXT = "text/plain; charset=utf-8"
PAGE, CHAT, HOST, UPLOADS = "/", "/chat", "/host", "/files"
# All that a newcomer with Python needs.
FILES = ("/chat_client.py", "/chatproto.py")
HERE = os.path.dirname(os.path.abspath(__file__))

# Bytes of a file that are read and sent at once, and seconds that they may take: who is slower is
# cut off, and goes on where it was.
PIECE = 256 * 1024
PIECE_TIMEOUT = 30.0
# Of the threads that move files.
NICE = 10
# Uploads that one session may have under way, seconds without a byte after which one of them makes
# room for another (a page that was loaded anew knows nothing of its own), and finished ones that it
# has not handed out.
UNDER_WAY = 4
STALLED = 60.0
UNSAID = 64
# Bytes of an upload from one note of it in the history file to the next: a peer that sends it byte
# by byte must not make a commit of each.
KEPT = 1024 * 1024
# Files there may be at once.
MOST_FILES = 5_000
# Hexadecimal digits of a file's key, the end of its name until it is handed out, and both.
KEY = 32
PART = ".part"
_ON_DISK = re.compile(r"[0-9a-f]{32}(\.part)?")
# Pictures that browsers decode safely, by the ending of the name. Everything else is bytes.
PICTURES = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "gif": "image/gif",
            "webp": "image/webp"}

# Opcodes (RFC 6455, 5.2).
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
# 7.4.1
NORMAL, GOING_AWAY, PROTOCOL_ERROR, UNSUPPORTED = 1000, 1001, 1002, 1003
BAD_DATA, POLICY, TOO_BIG = 1007, 1008, 1009
# Close codes that may be sent; IANA's list.
_STATUSES = frozenset([1000, 1001, 1002, 1003, *range(1007, 1015)])
_ACCEPT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"       # RFC 6455, 1.3

logger = logging.getLogger("roger.web")


class WebSocketError(Exception):
    """The peer broke RFC 6455 or our limits: `status` is the close code that tells it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


# --- Messages ---

def frame(opcode: int, payload: bytes) -> bytes:
    """A message in one frame of the server's: final and not masked."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65_536:
        return struct.pack(">BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack(">BBQ", 0x80 | opcode, 127, size) + payload


def text_message(line: bytes) -> bytes:
    """The message for a frame of the chat, which comes with its line end: this is
    WebSocket.wrap."""
    return frame(TEXT, line[:-1])


def unmask(data: bytes, key: bytes) -> bytes:
    """`data` with every byte XORed with its byte of the key. As one long number: 16 MiB take 50 ms,
    a loop would take 2 s."""
    size = len(data)
    repeated = (key * (size // 4 + 1))[:size]
    number = int.from_bytes(data, "little") ^ int.from_bytes(repeated, "little")
    return number.to_bytes(size, "little")


# Opcode and payload of a frame, or of a message.
Event = Tuple[int, bytes]


class MessageDecoder:
    """Turns the bytes of one client, in any pieces, into messages. After a WebSocketError it is of
    no more use.

    Whatever is wrong is said as soon as it is certain: a frame by its header, a text in the middle
    of a frame.
    """

    # The chat's limits, which an echo for conformance suites lifts: bytes of a message, of all its
    # fragments; whether binary messages are taken; and how many frames a message may have, of which
    # none but the last may be empty (0: as many as one likes, empty or not).
    max_message = MAX_LINE
    binary = False
    max_fragments = FRAGMENTS

    def __init__(self) -> None:
        # Not looked at yet, of what came.
        self._buffer = bytearray()
        # The message under way, unmasked.
        self._message = bytearray()
        # It stands where it needs another byte.
        self._steps = self._frames()

    @property
    def begun(self) -> int:
        """Bytes that came and are no whole message yet."""
        return len(self._buffer) + len(self._message)

    def feed(self, data: bytes) -> "Iterator[Event]":
        """Take bytes, and yield for each frame that is whole now what it completes: a message,
        ping, pong or close; CONTINUATION for a fragment that others follow. What nobody asks for is
        left to the next feed(). Raises WebSocketError."""
        self._buffer += data
        return iter(functools.partial(next, self._steps), None)

    def close(self) -> None:
        """Forget what came and is no whole message."""
        self._steps.close()
        self._buffer.clear()
        self._message.clear()

    def _frames(self) -> "Generator[Optional[Event], None, None]":
        """What each frame completes, for ever; None whenever another byte is needed."""
        # The message under way: its opcode (0 when there is none), and how many frames it has.
        opcode = fragments = 0
        utf8 = codecs.getincrementaldecoder("utf-8")()
        while True:
            first, left, key = yield from self._header(opcode)
            kind, is_final = first & 0x0F, bool(first & 0x80)
            if kind >= CLOSE:
                payload = yield from self._take(left)
                yield kind, unmask(payload, key)
                continue
            opcode, fragments = opcode or kind, fragments + 1
            self._check_message(left, fragments, is_final)
            while True:
                # As it comes, where the mask is turned to begin with the next byte's.
                masked = yield from self._take(min(left, len(self._buffer) or 1))
                left -= len(masked)
                piece, turn = unmask(masked, key), len(masked) % 4
                key = key[turn:] + key[:turn]
                self._message += piece
                if opcode == TEXT:
                    _check_utf8(utf8, piece, is_final and not left)
                if not left:
                    break
            if not is_final:
                yield CONTINUATION, b""
                continue
            message, self._message = bytes(self._message), bytearray()
            yield opcode, message
            opcode = fragments = 0

    def _header(self, opcode: int) -> "Generator[None, None, tuple[int, int, bytes]]":
        """Take a frame's header: its first byte, the length of the payload, and the mask."""
        first, second = yield from self._take(2)
        length = second & 0x7F
        self._check_header(first, second, length, opcode)
        if length >= 126:
            long_one = yield from self._take(2 if length == 126 else 8)
            length = int.from_bytes(long_one, "big")
            if length >> 63:
                raise WebSocketError(PROTOCOL_ERROR, "a length has 63 bits")
        key = yield from self._take(4)
        return first, length, key

    def _take(self, size: int) -> "Generator[None, None, bytes]":
        """Take so many bytes, when they have come."""
        while len(self._buffer) < size:
            yield None
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _check_header(self, first: int, second: int, length: int, under_way: int) -> None:
        opcode = first & 0x0F
        if first & 0x70:
            raise WebSocketError(PROTOCOL_ERROR, "a reserved bit is set")
        if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            raise WebSocketError(PROTOCOL_ERROR, f"opcode {opcode} is reserved")
        if not second & 0x80:
            raise WebSocketError(PROTOCOL_ERROR, "a client's frame is masked")
        if opcode >= CLOSE:
            if not first & 0x80 or length > 125:
                raise WebSocketError(PROTOCOL_ERROR,
                                     "a control frame has no fragments and at most 125 bytes")
        elif (opcode == CONTINUATION) != bool(under_way):
            raise WebSocketError(PROTOCOL_ERROR, "nothing to continue" if not under_way
                                 else "the message before has no end")
        elif opcode == BINARY and not self.binary:
            raise WebSocketError(UNSUPPORTED, "only text is spoken here")

    def _check_message(self, length: int, fragments: int, is_final: bool) -> None:
        """Whether the message may have another fragment of that length."""
        if len(self._message) + length > self.max_message:
            raise WebSocketError(TOO_BIG, f"a message has at most {self.max_message} bytes")
        if self.max_fragments and (fragments > self.max_fragments or not length and not is_final):
            raise WebSocketError(POLICY, f"a message has at most {self.max_fragments} fragments, "
                                 "none of them empty")


def _check_utf8(utf8: codecs.IncrementalDecoder, piece: bytes, is_end: bool) -> None:
    """Whether a text may go on so. Raises WebSocketError."""
    try:
        utf8.decode(piece, is_end)
    except UnicodeDecodeError as error:
        raise WebSocketError(BAD_DATA, "a text is UTF-8") from error
    begun = utf8.getstate()[0]
    # A surrogate: Python's decoder waits for its third byte.
    if begun[:1] == b"\xed" and begun[1:] >= b"\xa0":
        raise WebSocketError(BAD_DATA, "a text is UTF-8")


def close_status(payload: bytes) -> int:
    """The status in a peer's close, 0 without one. Raises WebSocketError for what must not be in
    there (RFC 6455, 7.4)."""
    if not payload:
        return 0
    status = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or status not in _STATUSES and not 3000 <= status <= 4999:
        raise WebSocketError(PROTOCOL_ERROR, "no such close code")
    # The reason behind it is a text as well.
    _check_utf8(codecs.getincrementaldecoder("utf-8")(), payload[2:], True)
    return status


# --- WebSockets ---

class WebSocket:
    """A WebSocket that a Connection takes for a MessageSocket: one reading thread, and writes from
    any that never block.

    `rest` is what came behind the request. Data may be written by the holder of a MessageManager's
    lock, as ever; what answers pings and closes comes from the reading thread, and cut() from any.
    """

    wrap = staticmethod(text_message)

    def __init__(self, wire: MessageSocket, rest: bytes = b"") -> None:
        self._wire = wire
        self.decoder = MessageDecoder()
        self.decoder.feed(rest)
        # Whether the decoder may have frames that were not asked for.
        self._has_more = bool(rest)
        # Frames that were no messages, for the flood limit, which takes them from here.
        self.overhead = 0
        # For the next read(): the messages before the end come first.
        self._end: Optional[ConnectionClosed] = None
        # Protects the flag, and keeps the frames of several threads whole and none behind a close.
        # Taken inside the MessageManager's lock; inside it only MessageSocket's, for a write that
        # does not block (but in an echo).
        self._lock = threading.Lock()
        self._close_sent = False

    def read(self, timeout: Optional[float] = None) -> bytes:
        """The frames of the chat that one read of the socket completes, each with a line end: maybe
        none, b"". Of a long read only READ_FRAMES at a time: the others wait for the next call,
        and perhaps for the flood limit before it. Raises ConnectionClosed."""
        if self._end is not None:
            raise self._end
        lines = []
        try:
            for _, payload in self.messages(timeout):
                # A line end is white space to JSON, and so is this one; inside a string neither may
                # be. Two frames in one message stay no frame.
                lines.append(payload.replace(b"\n", b"\r") + b"\n")
        except ConnectionClosed as end:
            if not lines:
                raise
            self._end = end
        self.overhead += self._wire.overhead
        self._wire.overhead = 0
        return b"".join(lines)

    def messages(self, timeout: Optional[float] = None) -> "Iterator[Event]":
        """Yield the messages that one read of the socket completes, or of the next READ_FRAMES
        frames of it; pings and the close are answered in their order. Raises ConnectionClosed."""
        data = b"" if self._has_more else self._wire.read(timeout)
        self._has_more = False
        frames = itertools.islice(self.decoder.feed(data), READ_FRAMES)
        try:
            for number, (opcode, payload) in enumerate(frames, 1):
                self._has_more = number == READ_FRAMES
                if opcode in (TEXT, BINARY):
                    yield opcode, payload
                    continue
                self.overhead += 1
                if opcode == PING:
                    self.write(frame(PONG, payload))
                elif opcode == CLOSE:
                    status = close_status(payload)
                    self._close(payload[:2])
                    raise ConnectionClosed(f"the browser closed the connection ({status})")
        except WebSocketError as error:
            self._close(struct.pack(">H", error.status) + str(error).encode())
            raise ConnectionClosed(f"no WebSocket any more: {error}") from error

    @property
    def begun(self) -> int:
        """Bytes that came and are no whole message yet."""
        return self.decoder.begun

    def write(self, data: bytes) -> None:
        """Send messages, as wrap() makes them, unless the close is written. MUST NOT block. An end
        of the connection is left to the reader."""
        with self._lock:
            if not self._close_sent:
                self._wire.write(data)

    def finish(self) -> None:
        """Say that this is the end, and end our half. Keeps reading."""
        self._close(struct.pack(">H", NORMAL))
        self._wire.finish()

    def hung_up(self) -> bool:
        """As MessageSocket's."""
        return self._wire.hung_up()

    def cut(self) -> None:
        """End both halves at once, and wake the reader; where the close can be written before, it
        is."""
        self._close(struct.pack(">H", GOING_AWAY))
        self._wire.cut()

    def close(self) -> None:
        """Give the descriptor back, a little later so that the peer can read the close. Only the
        reader calls it."""
        # What came and is not whole is not kept for that time.
        self.decoder.close()
        self._wire.linger()
        self._wire.close()

    def _close(self, payload: bytes) -> None:
        with self._lock:
            if not self._close_sent:
                self._close_sent = True
                self._wire.write(frame(CLOSE, payload))


# --- Requests ---

class Refusal(Exception):
    """A request that is answered with an error: `status` is HTTP's, `headers` go with it."""

    def __init__(self, status: HTTPStatus, text: str, headers: Mapping[str, str] = {}) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


# Method, path and the first number of the version. Slashes that come before one are left out.
_REQUEST_LINE = re.compile(r"(\S+)\s+(?:/*(?=/))?(\S+)\s+HTTP/([0-9])(\.[0-9]+)\s*")


class Request:
    """One request, from its first line to its answer, or to the WebSocket that it became: the bytes
    of both within their limits and until a deadline. http.client reads the headers from it as from
    a file.
    """

    # These go with every answer.
    safe_headers: Mapping[str, str] = {}

    def __init__(self, wire: MessageSocket, peer: str) -> None:
        """`peer` is the address that it comes from."""
        self.wire = wire
        self.peer = peer
        # What was asked for, by which version of HTTP ("1.1"): nothing, until the head was read.
        self.method = self.path = self.version = ""
        self.headers = http.client.HTTPMessage()
        # Read and not taken: bounded by MAX_HTTP_LINE, and one read.
        self._buffer = bytearray()
        # Bytes of lines so far.
        self._taken = 0
        self.more_time(HTTP_TIMEOUT)

    def serve(self) -> "Optional[WebSocket]":
        """Read it and answer it; return what it became. The caller closes the connection."""
        try:
            try:
                self._read_head()
                return self.answer()
            except Refusal as refusal:
                text = f"{refusal.status:d} {refusal.status.phrase}: {refusal}\n"
                self.reply(text.encode(), PLAIN_TEXT, refusal.status, refusal.headers)
        except ConnectionClosed as end:
            logger.debug("%s went during its request (%s)", self.peer, end)
        return None

    def answer(self) -> "Optional[WebSocket]":
        """Answer a request whose head is well-formed. Raises Refusal."""
        raise NotImplementedError

    def reply(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK,
              headers: Mapping[str, str] = {}) -> None:
        """Answer with `body`."""
        self.write_head(status, {"Content-Type": kind, "Content-Length": str(len(body)),
                                 **headers})
        if self.method != "HEAD":
            self.write(body)

    def reply_json(self, content: "dict[str, Any]", status: HTTPStatus = HTTPStatus.OK,
                   headers: Mapping[str, str] = {}) -> None:
        """Answer with JSON."""
        self.reply(json.dumps(content).encode(), "application/json", status, headers)

    def write_head(self, status: HTTPStatus, headers: "Mapping[str, str]") -> None:
        """The head of any answer. A request is no event of the chat: it is logged with -v only."""
        logger.debug("%s %s %s: %d", self.peer, escape(self.method), escape(self.path), status)
        fields = {"Server": f"Roger/{chatproto.__version__}",
                  "Date": email.utils.formatdate(usegmt=True), "Connection": "close",
                  **self.safe_headers, **headers}
        lines = [f"HTTP/1.1 {status:d} {status.phrase}",
                 *(f"{key}: {value}" for key, value in fields.items()), "", ""]
        # A body may have taken longer than a request does.
        self.more_time(HTTP_TIMEOUT)
        self.write("\r\n".join(lines).encode("latin-1"))

    def is_unchanged(self, headers: "Mapping[str, str]") -> bool:
        """Whether the other side has already what `headers` have the ETag of: then it was told so,
        without a body (RFC 9110, 13.1.2)."""
        known = {tag.removeprefix("w/") for tag in self.tokens("If-None-Match")}
        if not known & {"*", headers["ETag"].removeprefix("W/")}:
            return False
        self.write_head(HTTPStatus.NOT_MODIFIED, headers)
        return True

    def go_on(self) -> None:
        """The body may come. Who asks before it sends one hears of it here, and not earlier: what
        is refused stays where it is."""
        if self.headers.get("Expect"):
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def body_length(self, most: int) -> int:
        """How many bytes the body has. Raises Refusal."""
        size = self.one_header("Content-Length")
        if self.headers.get("Transfer-Encoding") is not None or not size:
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "a body has a Content-Length")
        if not re.fullmatch("[0-9]{1,18}", size):
            raise Refusal(HTTPStatus.BAD_REQUEST, "that is no length")
        if int(size) > most:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                          f"this body has at most {most} bytes")
        return int(size)

    def one_header(self, name: str) -> str:
        """The value of a header that may come once at most; "" without it. Raises Refusal."""
        values = self.headers.get_all(name, [""])
        if len(values) > 1:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"{name} comes twice")
        return str(values[0]).strip()

    def tokens(self, name: str) -> "set[str]":
        """What a header that is a list has, in lower case."""
        return {token.strip().lower() for value in self.headers.get_all(name, [])
                for token in value.split(",")}

    @property
    def origin(self) -> str:
        """Where a page is that was asked for as this request was: its scheme, host and port."""
        scheme = "https" if self.wire.is_encrypted else "http"
        return f"{scheme}://{self.one_header('Host')}".lower()

    def check_origin(self) -> None:
        """Browsers always say where a WebSocket's page, or what changes something, came from: it
        has to be our own page. Raises Refusal."""
        if self.one_header("Origin").lower() != self.origin:
            logger.info("%s was refused: it came from a page of %s", self.peer,
                        escape(self.one_header("Origin")[:100] or "nowhere"))
            raise Refusal(HTTPStatus.FORBIDDEN, "only this server's own page may do that")

    def upgrade(self) -> WebSocket:
        """The handshake (RFC 6455, 4.2). Raises Refusal."""
        if ("websocket" not in self.tokens("Upgrade")
                or "upgrade" not in self.tokens("Connection")
                or self.one_header("Sec-WebSocket-Version") != "13"):
            raise Refusal(HTTPStatus.UPGRADE_REQUIRED, "this is a WebSocket of version 13",
                          {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"})
        key = self.one_header("Sec-WebSocket-Key")
        # 16 bytes in base64.
        if not re.fullmatch("[0-9A-Za-z+/]{22}==", key) or self.version == "1.0":
            raise Refusal(HTTPStatus.BAD_REQUEST, "no handshake of a WebSocket")
        accept = base64.b64encode(hashlib.sha1(key.encode() + _ACCEPT).digest()).decode("ascii")
        self.write_head(HTTPStatus.SWITCHING_PROTOCOLS,
                         {"Upgrade": "websocket", "Connection": "Upgrade",
                          "Sec-WebSocket-Accept": accept})
        return WebSocket(self.wire, self.rest())

    # Its bytes

    def more_time(self, seconds: float) -> None:
        """What is read or written next has so long from now on."""
        # By time.monotonic().
        self._until = time.monotonic() + seconds

    def readline(self, limit: int = -1) -> bytes:
        """A line with its end; `limit` is http.client's and larger than ours.

        Raises Refusal, ConnectionClosed.
        """
        while (end := self._buffer.find(b"\n")) < 0 and len(self._buffer) <= MAX_HTTP_LINE:
            self._buffer += self._read()
        size = end + 1 or len(self._buffer)
        self._taken += size
        if size > MAX_HTTP_LINE or self._taken > MAX_HEAD:
            status = (HTTPStatus.REQUEST_URI_TOO_LONG if self._taken == size
                      else HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            raise Refusal(status, f"a line has at most {MAX_HTTP_LINE} bytes, all of them "
                                  f"{MAX_HEAD}")
        return self._take(size)

    def pieces(self, size: int) -> Iterator[bytes]:
        """So many bytes of the body as they come, where PIECE_TIMEOUT is for each PIECE of them.

        Raises Refusal, ConnectionClosed."""
        taken = timed = 0
        while taken < size:
            if taken >= timed:
                self.more_time(PIECE_TIMEOUT)
                timed = taken + PIECE
            # Past the buffer: to copy it twice would cost a third of the speed.
            # What comes behind the body is nobody's: no other request is taken.
            piece = (self.rest() or self._read())[:size - taken]
            taken += len(piece)
            yield piece

    def rest(self) -> bytes:
        """What was read behind the request."""
        return self._take(len(self._buffer))

    def write(self, data: bytes) -> None:
        """Send it all. Raises ConnectionClosed."""
        self.wire.write_all(data, self._until)

    def _read_head(self) -> None:
        found = _REQUEST_LINE.fullmatch(self.readline().decode("latin-1"))
        if found is None:
            raise Refusal(HTTPStatus.BAD_REQUEST, "no request of HTTP")
        if found[3] > "1":
            raise Refusal(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "version 1.1 is spoken here")
        self.method, self.path, self.version = found[1], found[2], found[3] + found[4]
        try:
            self.headers = http.client.parse_headers(self)
        except http.client.HTTPException as error:
            raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, str(error)) from error
        if self.headers.defects:
            raise Refusal(HTTPStatus.BAD_REQUEST, "no request of HTTP")

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _read(self) -> bytes:
        left = self._until - time.monotonic()
        data = self.wire.read(left) if left > 0 else b""
        if not data:
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, f"a request has {HTTP_TIMEOUT:g} seconds, "
                                                      f"and so much of a file {PIECE_TIMEOUT:g}")
        return data


# --- Files ---

@dataclasses.dataclass
class Stored:
    """A file: under way, then finished, then handed out."""

    key: str
    name: str
    # The hash of its session's secret, and under which name it was handed out.
    owner: bytes
    sender: str = ""
    # Bytes it will have (None: not told yet), has on disk, and has for certain after a restart (-1:
    # it is forgotten then).
    size: Optional[int] = None
    have: int = 0
    kept: int = -1
    # The id of the message that handed it out; 0 before that.
    message: int = 0
    # The connection that a piece of it comes by; when the last one ended, by time.monotonic().
    wire: Optional[MessageSocket] = None
    touched: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def url(self) -> str:
        """Where it goes up, and later down."""
        return f"{UPLOADS}/{self.key}"

    @property
    def is_finished(self) -> bool:
        """Whether all of it is on disk."""
        return self.have == self.size

    def is_stalled(self, now: float) -> bool:
        """Whether nobody brings it any more: then it may make room for another. Of one of which
        nothing has come the answer may be lost that named it."""
        return not self.is_finished and self.wire is None and (
            self.size is None or now - self.touched >= STALLED)

    def to_json(self) -> str:
        """What from_json() takes."""
        return json.dumps({"name": self.name, "owner": self.owner.hex(), "sender": self.sender,
                           "size": self.size, "have": self.kept, "message": self.message})

    @classmethod
    def from_json(cls, key: str, text: str) -> Stored:
        """As it was. Raises ValueError, KeyError, TypeError for what to_json() did not make."""
        kept = json.loads(text)
        size, message = int(kept["size"]), int(kept["message"])
        # One of an older server was finished.
        have = int(kept.get("have", size))
        return cls(key, chatproto.file_name(kept["name"]), bytes.fromhex(kept["owner"]),
                   str(kept["sender"]), size, have, have, message=message)


class FileStore:
    """The files that members uploaded: what there is, and the folder that has them.

    The sequencer decides: load() to committed(). `changes` is for its next commit, and committed()
    is called behind that; only then is anything renamed or deleted, on the thread "files", and what
    a crash left undone is done at the next start. The connections' threads have the rest.
    """

    def __init__(self, folder: Optional[str], most: int, most_together: int,
                 synced: bool = False) -> None:
        """`folder` None is a temporary one; `most` bytes has one file, `most_together` all of them;
        `synced` means that a piece is on the disk itself before it is confirmed.

        Raises OSError when the folder cannot be used.
        """
        self.most = most
        self._most_together = most_together
        self._synced = synced
        self._is_temporary = folder is None
        # It is made for the first file where it is temporary: its name is nobody's to know before.
        self._folder = os.path.abspath(folder or os.path.join(
            tempfile.gettempdir(), f"roger-files-{secrets.token_hex(16)}"))
        # Protects the files and what they are; a leaf.
        self._lock = threading.Lock()
        self._files: "dict[str, Stored]" = {}
        # For the sequencer's next commit: what to keep of a file, None to forget it.
        self.changes: "dict[str, Optional[str]]" = {}
        # Keys for the thread, which is started for the first; None ends it.
        self._jobs: "queue.SimpleQueue[Optional[str]]" = queue.SimpleQueue()
        self._worker: Optional[threading.Thread] = None
        if folder is not None:
            os.makedirs(self._folder, 0o700, exist_ok=True)
            tempfile.TemporaryFile(dir=self._folder).close()

    # On the sequencer's thread: nothing here waits for a disk

    def load(self, kept: "Optional[dict[str, str]]", forgotten: int = 0) -> None:
        """Before the server runs: go on with what an earlier one kept, but for what messages up to
        the id `forgotten` handed out; and sweep the folder. None: nothing was kept, and whole files
        are left alone."""
        for key, text in (kept or {}).items():
            # What is damaged, or is not on disk any more, is forgotten.
            with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
                file = Stored.from_json(key, text)
                with self._open(key) as content:
                    size = content.seek(0, os.SEEK_END)
                if not 0 < file.message <= forgotten and size >= file.have:
                    self._files[key] = file
        self.changes.update(dict.fromkeys(set(kept or ()) - set(self._files)))
        for name in () if self._is_temporary else os.listdir(self._folder):
            key, is_part = name[:KEY], name.endswith(PART)
            if _ON_DISK.fullmatch(name) and (is_part or kept is not None):
                self._settle(key)

    def start(self, owner: bytes, name: str) -> Stored:
        """An upload begins. Raises ProtocolError when there are too many."""
        with self._lock:
            own = [file for file in self._files.values()
                   if file.owner == owner and not file.message]
            finished = sum(file.is_finished for file in own)
            if len(own) - finished >= UNDER_WAY:
                stalled = [file for file in own if file.is_stalled(time.monotonic())]
                if not stalled:
                    raise ProtocolError("flooding", f"{UNDER_WAY} uploads at once are all there "
                                                    "are")
                self._forget(stalled[0])
            if finished >= UNSAID:
                raise ProtocolError("flooding", f"{UNSAID} files wait to be handed out")
            if len(self._files) >= MOST_FILES:
                raise ProtocolError("full", f"there are {MOST_FILES} files already")
            key = secrets.token_hex(KEY // 2)
            self._files[key] = file = Stored(key, chatproto.file_name(name), owner)
            return file

    def keep(self, file: Stored) -> None:
        """What has come of a file is kept, until its session hands it out or ends."""
        with self._lock:
            # Who asks again makes no other commit.
            if self._files.get(file.key) is file and file.kept < file.have:
                file.kept = file.have
                self.changes[file.key] = file.to_json()

    def say(self, owner: bytes, url: str, message: int, sender: str) -> "dict[str, Any]":
        """A message hands a file out; return what it says of it. Raises ProtocolError."""
        with self._lock:
            file = self._files.get(url[len(UPLOADS) + 1:])
            if (file is None or file.url != url or file.owner != owner or file.message
                    or not file.is_finished):
                raise ProtocolError("bad-file", "a file is handed out once, by who uploaded it, "
                                                "when all of it is there")
            file.message, file.sender, file.kept = message, sender, file.have
            self.changes[file.key] = file.to_json()
            return {"name": file.name, "size": file.size, "url": url}

    def drop(self, is_over: "Callable[[Stored], bool]") -> int:
        """Forget files, and return how many: they are deleted after the commit."""
        with self._lock:
            over = [file for file in self._files.values() if is_over(file)]
            for file in over:
                self._forget(file)
        return len(over)

    def committed(self) -> None:
        """What `changes` said is kept now: the disk may follow."""
        with self._lock:
            keys = [key for key, text in self.changes.items()
                    if text is None or self._files[key].message]
            self.changes.clear()
            if keys and self._worker is None:
                # A daemon: a disk that hangs must not keep the process alive. close() ends it.
                self._worker = threading.Thread(target=self._work, name="files", daemon=True)
                self._worker.start()
        for key in keys:
            self._jobs.put(key)

    # Any thread

    def listed(self) -> "list[Stored]":
        """What was handed out, the oldest first."""
        with self._lock:
            return sorted((file for file in self._files.values() if file.message),
                          key=lambda file: file.message)

    def get(self, key: str) -> Optional[Stored]:
        """The file of that key, in whatever state it is."""
        with self._lock:
            return self._files.get(key)

    def reserve(self, file: Stored, size: int) -> None:
        """Keep room for a file of so many bytes. Raises Refusal."""
        with self._lock:
            if file.size not in (None, size):
                raise _conflict(file, f"the upload was to have {file.size} bytes")
            if size > self.most:
                raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                              f"a file has at most {chatproto.size_in_words(self.most)} here")
            taken = sum(other.size or 0 for other in self._files.values() if other is not file)
            if taken + size > self._most_together:
                raise Refusal(HTTPStatus.INSUFFICIENT_STORAGE,
                              "there is no room for it beside the other files: the host can "
                              "remove some")
            file.size = size

    def write(self, file: Stored, start: int, pieces: "Iterable[bytes]",
              wire: MessageSocket) -> None:
        """Add what comes by `wire` to a file, which has `start` bytes so far. What has come when
        that ends with an error stays, but for a disk's error: then nothing does. Raises Refusal,
        OSError, and what `pieces` raises."""
        with self._lock:
            if file.wire is not None:
                # Perhaps it has gone long ago, and nobody noticed: whoever comes again may go on.
                file.wire.cut()
                raise _conflict(file, "another connection brings it: try again")
            if file.have != start or self._files.get(file.key) is not file:
                raise _conflict(file, f"the next byte is number {file.have}")
            file.wire = wire
        try:
            self._append(file, pieces)
        except OSError:
            # The disk is full, and the history may need room on it at once.
            with contextlib.suppress(OSError):
                os.truncate(self._part(file.key), 0)
            file.have = 0
            raise
        finally:
            with self._lock:
                file.wire, file.touched = None, time.monotonic()
                is_over = self._files.get(file.key) is not file
            if is_over:
                self._settle(file.key)

    @contextlib.contextmanager
    def opened(self, key: str) -> "Iterator[IO[bytes]]":
        """A file that was handed out, to be read. Raises OSError."""
        try:
            with self._open(key) as content:
                yield content
        finally:
            # While it was read Windows neither renamed nor deleted it.
            self._settle(key)

    def close(self) -> None:
        """At the end, when all connections and the sequencer have ended; may be called twice."""
        if self._worker is not None:
            self._jobs.put(None)
            self._worker.join(5)
        if self._is_temporary:
            shutil.rmtree(self._folder, ignore_errors=True)

    # Inside

    def _forget(self, file: Stored) -> None:
        """Under the lock. It is deleted after the commit."""
        assert self._lock.locked()
        del self._files[file.key]
        self.changes[file.key] = None
        if file.wire is not None:
            file.wire.cut()

    def _append(self, file: Stored, pieces: "Iterable[bytes]") -> None:
        have = start = file.have
        if self._is_temporary:
            os.makedirs(self._folder, 0o700, exist_ok=True)
        with open(self._part(file.key), "r+b" if start else "wb", opener=_privately) as part:
            part.seek(start)
            try:
                for piece in pieces:
                    part.write(piece)
                    have += len(piece)
            finally:
                part.flush()
                if self._synced:
                    os.fsync(part.fileno())
                file.have = have

    def _whole(self, key: str) -> str:
        return os.path.join(self._folder, key)

    def _part(self, key: str) -> str:
        return self._whole(key) + PART

    def _open(self, key: str) -> "IO[bytes]":
        # In this order, as it may be renamed in between.
        with contextlib.suppress(FileNotFoundError):
            return open(self._part(key), "rb")
        return open(self._whole(key), "rb")

    def _work(self) -> None:
        """The thread's: until close()."""
        for key in iter(self._jobs.get, None):
            self._settle(key)

    def _settle(self, key: str) -> None:
        """Have the disk follow: what was handed out loses its ".part", what is over is deleted.

        What a system refuses while the file is read (Windows) is done when it is not any more.
        """
        with self._lock:
            file = self._files.get(key)
        with contextlib.suppress(OSError):
            if file is None:
                for path in (self._whole(key), self._part(key)):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
            elif file.message and not os.path.exists(self._whole(key)):
                os.rename(self._part(key), self._whole(key))


def _privately(path: str, flags: int) -> int:
    """open()'s, for files that only we may read."""
    return os.open(path, flags, 0o600)


def _conflict(file: Stored, text: str) -> Refusal:
    return Refusal(HTTPStatus.CONFLICT, text, {"Upload-Offset": str(file.have)})


_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_PIECE = re.compile(r"bytes (?:\*|([0-9]{1,18})-([0-9]{1,18}))/([0-9]{1,18})")


def range_of(header: str, size: int) -> "Optional[tuple[int, int]]":
    """First byte and the one behind the last of a Range header (RFC 9110, 14.2): all for none, and
    for one that is not understood or has several; None when no byte of it is there."""
    found = _RANGE.fullmatch(header.replace(" ", ""))
    first, last = found.groups() if found else ("", "")
    if not first and not last or first and last and int(last) < int(first):
        return 0, size
    if not first:
        return (max(0, size - int(last)), size) if int(last) and size else None
    return (int(first), min(size, int(last) + 1 if last else size)) if int(first) < size else None


class Clerk(NamedTuple):
    """What a request about a file may ask of the room. Any thread; may raise ProtocolError, and
    TimeoutError while nothing can be kept."""

    # Where the files are.
    store: FileStore
    # Begins an upload for a session's secret, under a name.
    start: Callable[[str, str], Stored]
    # When this returns, what has come of a file is kept, and its session may hand a whole one out.
    keep: Callable[[Stored], None]
    # It is given up.
    give_up: Callable[[Stored], None]
    # The page's address, with a slash at its end; "" where there is none.
    address: Callable[[], str]


# Of a Clerk's refusals: every other is a 403.
_REFUSED = {"flooding": HTTPStatus.TOO_MANY_REQUESTS, "not-joined": HTTPStatus.UNAUTHORIZED,
            "full": HTTPStatus.INSUFFICIENT_STORAGE}
# Answers a request of one kind; returns what it became.
Way = Callable[[Any], "Optional[WebSocket]"]


class FileRequest(Request):
    """A request for /files, for a server that has a Clerk."""

    clerk: Clerk

    def answer_file(self, way: "Way") -> None:
        """Answer it in one of the ways below. Raises Refusal."""
        step_aside()
        try:
            way(self)
        except ProtocolError as error:
            raise Refusal(_REFUSED.get(error.code, HTTPStatus.FORBIDDEN), str(error),
                          {"Retry-After": "1"}) from error
        except TimeoutError as error:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error),
                          {"Retry-After": "5"}) from error

    # Up

    def begin(self) -> None:
        """An upload begins."""
        query = urllib.parse.parse_qs(self.path.partition("?")[2], errors="replace")
        file = self.clerk.start(self.one_header("X-Roger-Session"), query.get("name", [""])[0])
        self.reply_json({"upload": file.url}, HTTPStatus.CREATED, {"Location": file.url})

    def _uploaded(self) -> Stored:
        """The file that the path names, if the session that is named uploads it."""
        secret = self.one_header("X-Roger-Session").encode("utf-8", "replace")
        file = self.clerk.store.get(self._key)
        if file is None or not hmac.compare_digest(file.owner, hashlib.sha256(secret).digest()):
            raise Refusal(HTTPStatus.NOT_FOUND, "there is no such upload of yours")
        return file

    def tell(self) -> None:
        """How far an upload has come; who says no secret asks for a file that was handed out."""
        if not self.headers.get("X-Roger-Session"):
            return self.download()
        self.reply(b"", "application/json", headers={"Upload-Offset": str(self._uploaded().have)})

    def give_up(self) -> None:
        """An upload is given up."""
        file = self._uploaded()
        if file.message:
            raise Refusal(HTTPStatus.CONFLICT, "it is handed out already")
        self.clerk.give_up(file)
        self.reply_json({})

    def put(self) -> None:
        """A piece of an upload."""
        file = self._uploaded()
        first, last, size = self._piece()
        length = self.body_length(size)
        if length != last - first:
            raise Refusal(HTTPStatus.BAD_REQUEST, "Content-Length and Content-Range differ")
        self.clerk.store.reserve(file, size)
        if length or not size and not file.message:
            self._add(file, first, length)
        answer: "dict[str, Any]" = {"have": file.have}
        if file.is_finished or file.have - file.kept >= KEPT:
            # Else a restart would lose too much of it.
            self.clerk.keep(file)
        if file.is_finished:
            base = self.clerk.address() or self.origin
            answer["url"] = file.url
            answer["text"] = (f"{file.name} ({chatproto.size_in_words(file.size or 0)}) "
                              f"{base.rstrip('/')}{file.url}")
        self.reply_json(answer)

    def _piece(self) -> "tuple[int, int, int]":
        """First byte of the piece, the one behind its last, and the size of the whole."""
        found = _PIECE.fullmatch(self.one_header("Content-Range"))
        if found is None:
            raise Refusal(HTTPStatus.BAD_REQUEST, "a piece has a Content-Range: bytes "
                                                        "A-B/TOTAL")
        first, last, size = (int(number or 0) for number in found.groups())
        behind = last + 1 if found[2] else 0
        if not first <= behind <= size:
            raise Refusal(HTTPStatus.BAD_REQUEST, "no such piece can be")
        return first, behind, size

    def _add(self, file: Stored, first: int, length: int) -> None:
        self.go_on()
        pieces = self.pieces(length)
        try:
            self.clerk.store.write(file, first, pieces, self.wire)
        except OSError as error:
            # The disk is full: a part that nobody can finish is of no use.
            logger.error("a file cannot be written: %s", error)
            self.clerk.give_up(file)
            # Who is told before the whole piece has come may never read it: the connection would be
            # reset.
            for _ in pieces:
                pass
            raise Refusal(HTTPStatus.INSUFFICIENT_STORAGE,
                          f"the server cannot keep it: {error.strerror or error}") from error

    # Down

    def download(self) -> None:
        """A file that was handed out."""
        store, key = self.clerk.store, self._key
        file = store.get(key)
        if file is None or not file.message:
            raise Refusal(HTTPStatus.NOT_FOUND, "there is no such file, or not any more")
        etag, size = f'"{key}"', file.size or 0
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache",
                   "Content-Disposition": disposition(file.name),
                   "Content-Security-Policy": "default-src 'none'; sandbox"}
        if self.is_unchanged(headers):
            return
        asked = self.one_header("Range") if self.one_header("If-Range") in ("", etag) else ""
        found = range_of(asked, size)
        if found is None:
            raise Refusal(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"it has {size} bytes",
                          {"Content-Range": f"bytes */{size}"})
        headers["Content-Type"] = PICTURES.get(os.path.splitext(file.name)[1][1:].lower(),
                                               "application/octet-stream")
        headers["Content-Length"] = str(found[1] - found[0])
        status = HTTPStatus.OK
        if found != (0, size):
            status = HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {found[0]}-{found[1] - 1}/{size}"
        try:
            with store.opened(key) as content:
                self.write_head(status, headers)
                if self.method == "GET":
                    self._send(content, *found)
        except OSError as error:
            logger.error("a file cannot be opened: %s", error)
            raise Refusal(HTTPStatus.NOT_FOUND, "the file cannot be read") from error

    def _send(self, content: "IO[bytes]", first: int, behind: int) -> None:
        """Send so many bytes, or less when the file is removed meanwhile or cannot be read: who
        asked has fewer than it was told, and asks again."""
        content.seek(first)
        while first < behind and self.clerk.store.get(self._key) is not None:
            try:
                piece = content.read(min(PIECE, behind - first))
            except OSError as error:
                logger.error("a file cannot be read: %s", error)
                return
            if not piece:
                logger.error("a file has become shorter")
                return
            self.more_time(PIECE_TIMEOUT)
            self.write(piece)
            first += len(piece)

    @property
    def _key(self) -> str:
        """The key of the file that the path names."""
        return self.path[len(UPLOADS) + 1:][:KEY]


def disposition(name: str) -> str:
    """The Content-Disposition of a file that is saved under a name (RFC 6266)."""
    plain = "".join(char if " " <= char <= "~" and char not in '"\\%' else "_" for char in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{urllib.parse.quote(name, safe='')}"


def step_aside() -> None:
    """Have this thread, which moves a file, wait for those that move messages (Linux).

    It may run on any core, as those share one, and comes after them: with ten downloads a pair's
    p50 was 5 times its own, so it is 1.4 times, and the downloads are no slower.
    """
    # PyPy has no such choice.
    if sys.platform == "linux" and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, os.sched_getaffinity(os.getpid()))
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


# --- What is served ---

# What the view may do, in the console's words.
HOST_WORDS = frozenset("/mute /unmute /only-host /everyone /private /slow /remove /boot /ban "
                       "/unban /host-name /motd /say /files".split())


# What only a reader of the file needs: a line that is a comment alone or empty, and indentation.
_LAYOUT = re.compile(rb"^\t*// .*\n|^<!-- [^>]*-->\n|^/\* .* \*/\n|^\n|^\t+", re.MULTILINE)
# What only the host's view needs, with the comments that mark it.
_HOSTS = re.compile(rb"^\S* \[the host's view\b.*?\bthe host's view\][^\n]*\n",
                    re.MULTILINE | re.DOTALL)


class Page(NamedTuple):
    """The page, as it is and compressed, and what hashes its Content-Security-Policy lets run."""

    body: bytes
    packed: bytes
    # Names this very content, however it is encoded: so it is a weak one (RFC 9110, 8.8.3).
    etag: str
    # What of it may run.
    runs: str

    @classmethod
    def load(cls, path: str, title: str = "", is_hosts: bool = True) -> Page:
        """Read the page, and give it a title, which its door shows as well; the host's view is in
        it where it `is_hosts`.

        Raises OSError; ValueError when it has not exactly one script and one style.
        """
        with open(path, "rb") as file:
            body = file.read().replace(b"\r\n", b"\n")
        # The hashes are of what a browser sees.
        body = _LAYOUT.sub(b"", body if is_hosts else _HOSTS.sub(b"", body))
        if title:
            body = body.replace(b"<title>Roger<", b"<title>%b<" % html.escape(title).encode(), 1)
        etag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
        runs = " ".join(f"{tag}-src {_hash_of(body, tag.encode())};" for tag in ("script", "style"))
        return cls(body, _packed(body), etag, runs)

    def policy(self, origin: str) -> str:
        """The Content-Security-Policy, for a page that was asked for at `origin`."""
        # Not every browser takes 'self' to hold for ws: and wss: as well.
        return (f"default-src 'none'; {self.runs} "
                f"img-src data: 'self'; connect-src 'self' ws{origin[4:]}; base-uri 'none'; "
                "form-action 'none'; frame-ancestors 'none'")


def _packed(body: bytes) -> bytes:
    """The body in gzip. It has three languages in two scripts: a smaller memory (6 of 9) begins a
    new table of letters more often, which saves a part in 150."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS, 6)
    return packer.compress(body) + packer.flush()


def _hash_of(body: bytes, tag: bytes) -> str:
    (content,) = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), body, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode('ascii')}'"


_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")


def is_our_host(host: str, names: Collection[str] = ()) -> bool:
    """Whether a Host header names an address, or this machine: by its own names or one of `names`.

    A name that anybody can have lead here does not.
    """
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = found[1].strip("[]")
    return chatproto.is_address(name) or chatproto.is_own_name(name, names)


class PageRequest(FileRequest):
    """A request to the chat's server."""

    safe_headers = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
                    "X-Frame-Options": "DENY", "Cross-Origin-Resource-Policy": "same-origin",
                    "Cache-Control": "no-store",
                    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}

    def __init__(self, wire: MessageSocket, peer: str, web: Web) -> None:
        super().__init__(wire, peer)
        self.web = web

    def answer(self) -> "Optional[WebSocket]":
        path, host = self.path.partition("?")[0], self.one_header("Host")
        if not is_our_host(host, self.web.names):
            raise Refusal(HTTPStatus.FORBIDDEN,
                          "come by an address, localhost or this machine's name")
        wire = self.wire
        if isinstance(wire, chatproto.SecureSocket) and not wire.is_encrypted:
            # It could speak TLS, and came without.
            where = self.path if self.path.startswith("/") else PAGE
            raise Refusal(HTTPStatus.TEMPORARY_REDIRECT, "this server speaks TLS only",
                          {"Location": f"https://{host}{where}"})
        is_file, clerk = path.startswith(UPLOADS), self.web.clerk
        ways = next((ways for pattern, ways in self.WAYS if re.fullmatch(pattern, path)), {})
        if not ways or is_file and clerk is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "there is nothing of that name")
        if self.method not in ways:
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"{', '.join(ways)} is all there is",
                          {"Allow": ", ".join(ways)})
        # Who is no browser, and says no Origin, can use the port without HTTP.
        if self.one_header("Origin") or path == CHAT:
            self.check_origin()
        if clerk is None or not is_file:
            return ways[self.method](self)
        self.clerk = clerk
        self.answer_file(ways[self.method])
        return None

    def _page(self) -> None:
        """The page: kept by the browser, which asks each time whether it is still the same."""
        page = self.web.pages[chatproto.is_loopback(self.peer)]
        headers = {"Content-Security-Policy": page.policy(self.origin),
                   "ETag": page.etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if self.is_unchanged(headers):
            return
        body = page.body
        # As all browsers say it. Who says it with a weight ("gzip;q=1") has it as it is.
        if "gzip" in self.tokens("Accept-Encoding"):
            body, headers["Content-Encoding"] = page.packed, "gzip"
        self.reply(body, "text/html; charset=utf-8", headers=headers)

    def _newcomers_file(self) -> None:
        name = self.path.partition("?")[0][1:]
        try:
            with open(os.path.join(self.web.folder, name), "rb") as file:
                content = file.read()
        except OSError as error:
            raise Refusal(HTTPStatus.NOT_FOUND, "it does not lie beside the server") from error
        self.reply(content, PLAIN_TEXT)

    # The host's view

    def _host(self) -> None:
        given = self.one_header("X-Roger-Host").encode("utf-8", "replace")
        if not (chatproto.is_loopback(self.peer)
                and hmac.compare_digest(given, self.web.secret.encode())):
            raise Refusal(HTTPStatus.FORBIDDEN, "the host's view needs the secret that the "
                                                     "server printed, on its machine")
        try:
            answer = self._host_does() if self.method == "POST" else ""
            state = self.web.console.state()
            self.reply_json({**state, "qr": qr_rows(state["url"]), "answer": answer})
        except (LookupError, ValueError, ProtocolError, OSError) as error:
            # TimeoutError is an OSError.
            text = str(error.args[0] if error.args else error)
            self.reply_json({"error": text}, HTTPStatus.CONFLICT)

    def _host_does(self) -> str:
        """Do what was posted, a JSON object; return what to tell the host. Raises Refusal."""
        size = self.body_length(MAX_BODY)
        self.go_on()
        try:
            line = json.loads(b"".join(self.pieces(size)))["do"]
        except (ValueError, LookupError, TypeError, RecursionError):
            line = None
        if line == "record":
            return "".join(self.web.console.recorded(as_text=True))
        if type(line) is not str or line.partition(" ")[0] not in HOST_WORDS:
            raise Refusal(HTTPStatus.BAD_REQUEST, "the body is a JSON object whose do is record, "
                          f"or begins with one of {' '.join(sorted(HOST_WORDS))}")
        return str(self.web.console.do(chatproto.clean_text(line)))

    # The pattern of a path, and what each method that it may be asked for with does.
    WAYS: "list[tuple[str, dict[str, Way]]]" = [
        (PAGE, {"GET": _page, "HEAD": _page}),
        ("|".join(map(re.escape, FILES)), {"GET": _newcomers_file, "HEAD": _newcomers_file}),
        (CHAT, {"GET": Request.upgrade}),
        (HOST, {"GET": _host, "POST": _host}),
        (UPLOADS, {"POST": FileRequest.begin}),
        (UPLOADS + f"/[0-9a-f]{{{KEY}}}", {"GET": FileRequest.download, "HEAD": FileRequest.tell,
                                    "PUT": FileRequest.put, "DELETE": FileRequest.give_up})]


class Web:
    """The web for chat_server: greet() finds out what a connection is."""

    def __init__(self, console: Any, folder: str = HERE, names: Collection[str] = (),
                 title: str = "") -> None:
        """Read the files; `console` is chat_server's, `names` are those by which browsers may come,
        besides the machine's own, and `title` is what the server is called.

        Raises OSError when the page is not there, ValueError when it is none of ours.
        """
        self.console = console
        # Where the page lies, and the files for newcomers.
        self.folder = folder
        self.names = names
        self.secret = secrets.token_urlsafe(24)             # of the host's view: 192 bits
        # Who is asked about members' files, where there are any: to be set before connections come.
        self.clerk: Optional[Clerk] = None
        path = os.path.join(folder, "chat_web.html")
        # Without the host's view, and with it.
        self.pages = [Page.load(path, title, is_hosts) for is_hosts in (False, True)]

    def close(self) -> None:
        """When the server has ended; may be called twice."""
        if self.clerk is not None:
            self.clerk.store.close()

    def greet(self, wire: MessageSocket, address: str,
              seconds: float) -> "Union[MessageSocket, WebSocket, None]":
        """On the connection's thread: find out what `wire` speaks.

        Waits up to `seconds` for the first byte. Returns it as it is for frames (and for a peer
        that says nothing), a WebSocket, or None: it was a request, or has gone, and is over.
        """
        try:
            if not speaks_http(wire.peek(seconds)):
                return wire
        except ConnectionClosed:
            wire.close()
            return None
        websocket = PageRequest(wire, address, self).serve()
        if websocket is None:
            wire.linger()
            wire.close()
        return websocket


def speaks_http(first: bytes) -> bool:
    """Whether a connection that begins so is HTTP.

    One byte decides: a frame begins with { or white space, so what has come of a method's name is
    enough, and nobody waits for the rest of it here.
    """
    return first[:1].isalpha() and any(first.startswith(method) or method.startswith(first)
                                       for method in METHODS)


# --- QR codes ---

# ISO/IEC 18004:2015, bytes, error correction M (15 % may be unreadable), versions 1 to 10. For each
# version: codewords in all, those of them for error correction in a block, blocks (table 9), and
# the middles of the alignment patterns (annex E).
_QR = [(26, 10, 1, ()), (44, 16, 1, (6, 18)), (70, 26, 1, (6, 22)), (100, 18, 2, (6, 26)),
       (134, 24, 2, (6, 30)), (172, 16, 4, (6, 34)), (196, 18, 4, (6, 22, 38)),
       (242, 22, 4, (6, 24, 42)), (292, 22, 5, (6, 26, 46)), (346, 26, 5, (6, 28, 50))]
# The conditions of the eight masks, for row and column (table 10).
_QR_MASKS: "list[Callable[[int, int], int]]" = [
    lambda y, x: (y + x) % 2, lambda y, x: y % 2, lambda y, x: x % 3, lambda y, x: (y + x) % 3,
    lambda y, x: (y // 2 + x // 3) % 2, lambda y, x: y * x % 2 + y * x % 3,
    lambda y, x: (y * x % 2 + y * x % 3) % 2, lambda y, x: ((y + x) % 2 + y * x % 3) % 2]
QR_QUIET = 4                    # modules of light around the code


def qr_code(text: str, mask: Optional[int] = None) -> "list[bytes]":
    """`text` as a QR code: its rows, a byte a module, 1 for dark; the quiet zone is left out.

    The mask is for tests: without it the best one is chosen. Raises ValueError when the text takes
    more than 213 bytes.
    """
    data = text.encode("utf-8")
    version = next((each for each in range(1, len(_QR) + 1) if len(data) <= _qr_room(each)), 0)
    if not version:
        raise ValueError("too long for a QR code")
    codewords = _qr_codewords(data, version)
    masks = range(len(_QR_MASKS)) if mask is None else [mask]
    return min((_QrGrid(version).drawn(codewords, each) for each in masks), key=_qr_penalty)


@functools.lru_cache(maxsize=1)
def qr_rows(url: str) -> "list[str]":
    """The QR code of an address for the host's page: a row a string, "1" for dark; [] for none."""
    return ["".join(map(str, row)) for row in qr_code(url)] if url else []


def qr_lines(code: "list[bytes]", dark_on_light: bool = False, blocks: bool = True) -> "list[str]":
    """A QR code for a terminal: what is painted is its light, or its dark with `dark_on_light`.

    With half blocks a line has two rows; without, where they cannot be shown, a module is ##.
    """
    width = len(code) + 2 * QR_QUIET
    light = [bytes(width)] * QR_QUIET
    rows = [*light, *(bytes(QR_QUIET) + row + bytes(QR_QUIET) for row in code), *light]
    painted = [[bool(module) == dark_on_light for module in row] for row in rows]
    if not blocks:
        return ["".join("##" if module else "  " for module in row) for row in painted]
    painted.append([False] * width)
    return ["".join(" \u2580\u2584\u2588"[upper + 2 * lower] for upper, lower in zip(*pair))
            for pair in zip(painted[::2], painted[1::2])]


def _qr_room(version: int) -> int:
    """Bytes of a text that a symbol has room for: its length and kind take 12 or 20 bits."""
    total, correction, blocks, _ = _QR[version - 1]
    return total - correction * blocks - (2 if version < 10 else 3)


def _qr_codewords(data: bytes, version: int) -> bytes:
    """The codewords of a symbol in their order (7.4 to 7.6)."""
    total, correction, blocks, _ = _QR[version - 1]
    room = total - correction * blocks
    length = 8 if version < 10 else 16
    # The kind, 4 bits, and four of nothing at the end, for which there is always room.
    bits = (0b0100 << length | len(data)) << 8 * len(data) | int.from_bytes(data, "big")
    words = (bits << 4).to_bytes(len(data) + 1 + length // 8, "big")
    words += (b"\xec\x11" * room)[:room - len(words)]
    # The later blocks have one codeword more where it does not come out even.
    ends = [room // blocks * number + max(0, number - blocks + room % blocks)
            for number in range(blocks + 1)]
    parts = [words[start:end] for start, end in zip(ends, ends[1:])]
    checks = [_qr_correction(part, correction) for part in parts]
    return bytes(column[at] for columns in (parts, checks) for at in range(len(columns[-1]))
                 for column in columns if at < len(column))


def _qr_multiply(left: int, right: int) -> int:
    """In the field of 256 elements that x^8 + x^4 + x^3 + x^2 + 1 makes."""
    product = 0
    for bit in range(7, -1, -1):
        product = (product << 1) ^ (product >> 7) * 0x11D
        product ^= (right >> bit & 1) * left
    return product


@functools.lru_cache(maxsize=None)
def _qr_divisor(degree: int) -> bytes:
    """The generator polynomial (annex A), without its leading 1: (x - 2^0) ... (x - 2^(n-1))."""
    divisor, root = [1], 1
    for _ in range(degree):
        divisor = [left ^ _qr_multiply(right, root)
                   for left, right in zip([*divisor, 0], [0, *divisor])]
        root = _qr_multiply(root, 2)
    return bytes(divisor[1:])


def _qr_correction(data: bytes, degree: int) -> bytes:
    """The Reed-Solomon code of a block: the remainder of a division."""
    divisor, rest = _qr_divisor(degree), bytes(degree)
    for byte in data:
        factor = byte ^ rest[0]
        rest = bytes(left ^ _qr_multiply(right, factor)
                     for left, right in zip(rest[1:] + b"\0", divisor))
    return rest


def _qr_checked(value: int, polynomial: int, degree: int) -> int:
    """`value` with the remainder of its division (BCH, annexes C and D) behind it."""
    rest = value
    for _ in range(degree):
        rest = (rest << 1) ^ (rest >> degree - 1) * polynomial
    return value << degree | rest


def _qr_penalty(rows: "list[bytes]") -> int:
    """How hard it is to read (7.8.3.1): runs, squares, what looks like a finder, imbalance."""
    lines = rows + [bytes(column) for column in zip(*rows)]
    runs = sum(len(run[0]) - 2 for line in lines
               for run in re.finditer(rb"\x00{5,}|\x01{5,}", line))
    squares = sum(upper[x] == upper[x + 1] == lower[x] == lower[x + 1]
                  for upper, lower in zip(rows, rows[1:]) for x in range(len(rows) - 1))
    finder, light = b"\1\0\1\1\1\0\1", b"\0\0\0\0"
    finders = sum(line.startswith(pattern, at) for line in lines
                  for pattern in (finder + light, light + finder) for at in range(len(rows)))
    percent = 100 * sum(map(sum, rows)) / len(rows) ** 2
    return runs + 3 * squares + 40 * finders + 10 * int(abs(percent - 50) / 5)


# A module that is neither light nor dark yet.
_FREE = 2


class _QrGrid:
    """The modules of a symbol: rows of 0 (light), 1 (dark), and _FREE for what is to be data."""

    def __init__(self, version: int) -> None:
        """Draw all that does not depend on data and mask."""
        size = 17 + 4 * version
        self.rows = [bytearray([_FREE]) * size for _ in range(size)]
        for at in range(size):
            self.rows[6][at] = self.rows[at][6] = at % 2 == 0
        end = size - 4
        for y, x in ((3, 3), (3, end), (end, 3)):
            self._draw_square(y, x, 4, (0, 1, 3))
        middles = _QR[version - 1][3]
        for y, x in itertools.product(middles, middles):
            # In three corners a finder is there already.
            if not ((y, x) == (6, 6) or 6 in (y, x) and size - 7 in (y, x)):
                self._draw_square(y, x, 2, (0, 2))
        if version >= 7:
            word = _qr_checked(version, 0x1F25, 12)
            for bit in range(18):
                near, far = bit // 3, size - 11 + bit % 3
                self.rows[near][far] = self.rows[far][near] = word >> bit & 1

    def drawn(self, codewords: bytes, mask: int) -> "list[bytes]":
        """The whole symbol with that mask."""
        self._draw_format(mask)
        self._draw_codewords(codewords, _QR_MASKS[mask])
        return [bytes(row) for row in self.rows]

    def _draw_format(self, mask: int) -> None:
        """Level M is 00; both copies of the word, and the module that is always dark (7.9)."""
        word = _qr_checked(mask, 0x537, 10) ^ 0x5412
        first = [*((8, x) for x in (0, 1, 2, 3, 4, 5, 7, 8)),
                 *((y, 8) for y in (7, 5, 4, 3, 2, 1, 0))]
        end = len(self.rows)
        second = [*((end - 1 - at, 8) for at in range(7)), *((8, end - 8 + at) for at in range(8))]
        for bit, places in enumerate(zip(first, second)):
            for y, x in places:
                self.rows[y][x] = word >> (14 - bit) & 1
        self.rows[end - 8][8] = 1

    def _draw_codewords(self, codewords: bytes, masked: Callable[[int, int], int]) -> None:
        """From the right to the left, two columns at a time, up and down (7.7.3), masked (7.8)."""
        bits = (byte >> bit & 1 for byte in codewords for bit in range(7, -1, -1))
        upwards = True
        for right in (*range(len(self.rows) - 1, 6, -2), 5, 3, 1):
            rows = range(len(self.rows))
            for y, x in itertools.product(reversed(rows) if upwards else rows, (right, right - 1)):
                if self.rows[y][x] == _FREE:
                    self.rows[y][x] = next(bits, 0) ^ (masked(y, x) == 0)
            upwards = not upwards

    def _draw_square(self, y: int, x: int, radius: int, dark: "tuple[int, ...]") -> None:
        """Squares around a middle, dark at these distances; what lies outside is left out."""
        size = len(self.rows)
        for dy, dx in itertools.product(range(-radius, radius + 1), repeat=2):
            if 0 <= y + dy < size and 0 <= x + dx < size:
                self.rows[y + dy][x + dx] = max(abs(dy), abs(dx)) in dark
