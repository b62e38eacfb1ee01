"""Tests of chatproto: bytes in, messages out, and every deadline on a clock that the tests turn by hand.

Nothing here waits or sleeps. FakeTime is clock and timer of a real Alarm; Line is a MessageManager with its peer's end of the
wire. NOT_FRAMES, INVALID and INVALID_JOINS are the malformed lines; the end-to-end tests throw the same ones at a real server.
"""

import dataclasses
import gc
import json
import queue
import socket
import sys
import threading
import weakref

import pytest

import chatproto
from chatproto import (FROM_CLIENT, FROM_SERVER, INSTRUCTIONS, MAX_LINE, MAX_MARKS, MAX_TEXT, QUEUE_BYTES, QUEUE_FRAMES, TICK,
                       WINDOW, WINDOW_BYTES, Ack, Alarm, Booted, Chat, ConnectionClosed, Error, FrameDecoder, FrameError, Heard,
                       Invalid, Join, Joined, Leave, Left, MessageManager, MessageQueue, MessageSocket, PendingMessage, Ping,
                       ProtocolError, Recall, Recalled, Rename, Renamed, Say, Unknown, Welcome, check_name, check_text, clean_text, decode,
                       escape, name_key)

PATIENCE = 30                   # seconds until a wait that should have ended fails its test


# --- Helpers ---

class FakeTimer:
    """A threading.Timer that rings when FakeTime says so, or when a test calls ring(), however late."""

    def __init__(self, fake, interval, function):
        self.due = fake.now + interval
        self.ring = function
        self.armed = False

    def start(self):
        assert self.daemon, "a deadline must not keep the process alive"
        self.armed = True

    def cancel(self):
        self.armed = False


class FakeTime:
    """The clock and the timer factory of an Alarm."""

    def __init__(self, now=1000.0):
        self.now = now
        self.timers = []

    def clock(self):
        return self.now

    def timer(self, interval, function):
        self.timers.append(FakeTimer(self, interval, function))
        return self.timers[-1]

    @property
    def armed(self):
        return [timer for timer in self.timers if timer.armed]

    def advance(self, seconds):
        """Turn the clock forward, and ring what is due on the way, in its order."""
        end = self.now + seconds
        while True:
            self.timers = due = self.armed
            due = [timer for timer in due if timer.due <= end]
            if not due:
                break
            first = min(due, key=lambda timer: timer.due)
            self.now = max(self.now, first.due)
            first.armed = False
            first.ring()
        self.now = end


class Line:
    """A MessageManager, and what it has written: `sent()` gives the frames since the last call."""

    def __init__(self, attach=True):
        self.time = FakeTime()
        self.writes = []
        self.dead = []
        self.idle = []
        self.manager = MessageManager(Alarm(self.time.clock, self.time.timer), lambda: self.dead.append(self.time.now),
                                      lambda: self.idle.append(self.time.now))
        if attach:
            self.manager.attach(self.writes.append)

    def send(self, *ids):
        for id in ids:
            self.manager.send(ping(id))

    def sent(self):
        data, self.writes[:] = b"".join(self.writes), []
        return [(frame["type"], frame["id"]) for frame in map(json.loads, data.splitlines())]


def ping(*ids):
    """A PendingMessage of pings."""
    return PendingMessage(list(ids), [Ping(id).encode() for id in ids])


def block(id, size):
    """A PendingMessage of one frame of `size` bytes."""
    return PendingMessage([id], [b"x" * (size - 1) + b"\n"])


def pings(*ids):
    return [("ping", id) for id in ids]


def ids_in(data):
    return [json.loads(line)["id"] for line in data.splitlines()]


def feed(data, direction=FROM_CLIENT):
    """All messages in `data`; raises FrameError like a decoder."""
    return list(FrameDecoder(direction).feed(data))


# --- Messages ---

EVERYTHING = [
    (FROM_CLIENT, Ack(5)),
    (FROM_CLIENT, Join("Ann")),
    (FROM_CLIENT, Join("Ann", 1, "secret", 17, "e1", True)),
    (FROM_CLIENT, Say(7, "hi")),
    (FROM_CLIENT, Say(2**53 - 1, "psst", "Bob")),
    (FROM_CLIENT, Rename(8, "Anna")),
    (FROM_CLIENT, Leave(9)),
    (FROM_CLIENT, Ping(10)),
    (FROM_CLIENT, Recall(11)),
    (FROM_CLIENT, Recall(12, 100, 5)),
    (FROM_SERVER, Ack(5)),
    (FROM_SERVER, Welcome("Ann", "secret", "e1", ("Ann", "Bob"), 12)),
    (FROM_SERVER, Welcome("Ann", "secret", "e1", (), 12, True, 3, 4, 1000, "be nice")),
    (FROM_SERVER, Chat(7, "Ann", "hi", 1700000000.125)),
    (FROM_SERVER, Chat(7, "Ann", "hi", 1700000000, 3, "Bob")),
    (FROM_SERVER, Joined(1, "Ann", 1.5)),
    (FROM_SERVER, Left(2, "Ann", 1.5, "quit")),
    (FROM_SERVER, Renamed(3, "Ann", "Anna", 1.5)),
    (FROM_SERVER, Heard(7, 2, 3)),
    (FROM_SERVER, Recalled(4, ())),
    (FROM_SERVER, Recalled(4, (Chat(3, "Ann", "\"hi\"\n", 1.5, 2), Chat(5, "Bob", "\u00fc", 2, None, "Ann")), 3)),
    (FROM_SERVER, Booted(9, "spam")),
    (FROM_SERVER, Error(0, "not-joined", "join first")),
    (FROM_SERVER, Error(9, "name-taken", "taken", 3, "Ann-2")),
    (FROM_SERVER, Ping(11)),
]


@pytest.mark.parametrize("direction, cls", [(direction, cls) for direction in INSTRUCTIONS
                                            for cls in INSTRUCTIONS[direction].values()])
def test_message_every_class_has_a_sample(direction, cls):
    """The round trips below leave out no instruction of either direction."""
    assert any(way == direction and type(message) is cls for way, message in EVERYTHING)


@pytest.mark.parametrize("direction, message", EVERYTHING)
def test_message_round_trip(direction, message):
    """What is encoded is decoded as the same value."""
    assert feed(message.encode(), direction) == [message]


@pytest.mark.parametrize("direction, message", EVERYTHING)
def test_message_key_order_and_compact(direction, message):
    """A frame is one compact line with `type` first and the id, where there is one, second."""
    frame = message.encode()
    fields = json.loads(frame)
    keys = list(fields)
    assert keys[0] == "type" and ("id" not in keys or keys[1] == "id")
    assert frame == json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    assert frame.count(b"\n") == 1


def test_message_wire_form():
    """The line of the contract, byte by byte; a field that is None is not there."""
    assert Say(7, "hi").encode() == b'{"type":"chat","id":7,"text":"hi"}\n'
    assert Ack(3).encode() == b'{"type":"ack","id":3}\n'
    assert Chat(7, "Ann", "hi", 1.5).encode() == b'{"type":"chat","id":7,"from":"Ann","text":"hi","at":1.5}\n'


def test_message_is_immutable():
    """A message that many threads share cannot be changed."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Say(7, "hi").text = "ho"


def test_message_any_order_and_spacing():
    """Keys come in any order, with any spacing, and unknown fields are ignored."""
    assert feed(b' { "text" : "hi" ,\t"colour":[{"r":1}],"id" :7, "type":"chat"} \n') == [Say(7, "hi")]


def test_message_id_of_bare_frame_ignored():
    """An id that is given to a bare frame means nothing, whatever it is."""
    assert feed(b'{"type":"join","id":-3,"name":"Ann"}\n') == [Join("Ann")]
    assert feed(b'{"type":"heard","id":"x","about":1,"count":1,"of":2}\n', FROM_SERVER) == [Heard(1, 1, 2)]


@pytest.mark.parametrize("id", [1, 9, 10**14, 10**15 - 1, 10**15, 2**53 - 1])
@pytest.mark.parametrize("form", ['{"type":"ack","id":%d}', '{"type":"ack","id":%d}\r', '{"id": %d, "type": "ack"}'])
def test_message_ack_forms(id, form):
    """An ACK is the same in its compact form, which is read in a faster way, and in any other."""
    assert feed((form % id).encode() + b"\n") == [Ack(id)]


def test_message_null_is_absent():
    """An optional field that is null is as good as left out."""
    assert feed(b'{"type":"chat","id":1,"text":"a","to":null}\n') == [Say(1, "a")]


@pytest.mark.parametrize("line, id", [(b'{"type":"dance","id":4,"text":7}', 4), (b'{"type":"dance"}', 0),
                                      (b'{"type":"","id":2}', 2),
                                      (b'{"type":"dance","id":-1}', 0), (b'{"type":"welcome","id":3}', 3)])
def test_message_unknown_type(line, id):
    """A type that is not in the list of that direction is not an error; its id is kept for the ACK."""
    (message,) = feed(line + b"\n")
    assert type(message) is Unknown and message.id == id


# --- Framing ---

STREAM = [Say(1, "plain"), Say(2, "a } and a { and a \n newline\ttab"), Say(3, "\U0001f600 \u00e4 \u2028"),
          Ack(9), Ping(4), Say(5, '"quotes" \\ and \\n'), Join("J\u00fcrgen")]
STREAM_BYTES = b"".join(message.encode() for message in STREAM[:4]) + b'{"type":"ping","id":4}\r\n' + \
    b"".join(message.encode() for message in STREAM[5:])


def test_decoder_every_split_position():
    """Frames are found wherever the bytes are cut in two, inside a character too."""
    for cut in range(len(STREAM_BYTES) + 1):
        decoder = FrameDecoder(FROM_CLIENT)
        got = list(decoder.feed(STREAM_BYTES[:cut])) + list(decoder.feed(STREAM_BYTES[cut:]))
        assert got == STREAM, cut


def test_decoder_byte_by_byte():
    """Frames are found when each byte comes alone, and each as soon as its line ends."""
    decoder = FrameDecoder(FROM_CLIENT)
    got = []
    for at in range(len(STREAM_BYTES)):
        new = list(decoder.feed(STREAM_BYTES[at:at + 1]))
        assert len(new) == (STREAM_BYTES[at:at + 1] == b"\n")
        got += new
    assert got == STREAM


def test_decoder_hundred_frames_in_one_read():
    """One read may hold many frames: all come out, in their order."""
    messages = [Say(id, f"number {id}") for id in range(1, 101)]
    assert feed(b"".join(message.encode() for message in messages)) == messages


@pytest.mark.parametrize("text", ["}", "{}}{", "a\nb\n", '{"type":"ack","id":1}\n{"type":"ack"}', "\U0001f469\u200d\U0001f680",
                                  "\U00020000", "a\u2028b", "\ttab", '"\\', "\u202e", "[" * 8000])
def test_decoder_text_survives(text):
    """Braces, line ends, astral characters and whatever else a text may hold come out as they went in."""
    assert feed(Say(1, text).encode() * 2) == [Say(1, text)] * 2


def test_decoder_astral_as_escapes():
    """A sender that writes ASCII only says the same thing with a pair of escapes."""
    assert feed(b'{"type":"chat","id":1,"text":"\\ud83d\\ude00"}\n') == [Say(1, "\U0001f600")]


def test_decoder_carriage_return():
    """CR LF ends a line as LF does, also when the two come apart; a text holds no CR."""
    decoder = FrameDecoder(FROM_CLIENT)
    assert list(decoder.feed(b'{"type":"ping","id":1}\r')) == []
    assert list(decoder.feed(b'\n{"type":"ping","id":2}\r\n')) == [Ping(1), Ping(2)]


def test_decoder_line():
    """While a message is out, `line` is the line that it came in, put together from its pieces, without its LF."""
    decoder = FrameDecoder(FROM_CLIENT)
    list(decoder.feed(b'{"type":"pi'))
    assert [(decoder.line, message) for message in decoder.feed(b'ng","id":1}\n{"type":"leave","id":2}\n')] == [
        (b'{"type":"ping","id":1}', Ping(1)), (b'{"type":"leave","id":2}', Leave(2))]


def test_decoder_good_before_bad():
    """The frames before a broken line are delivered; then comes the error."""
    messages = FrameDecoder(FROM_CLIENT).feed(Ping(1).encode() + Ping(2).encode() + b"nonsense\n" + Ping(3).encode())
    assert [next(messages), next(messages)] == [Ping(1), Ping(2)]
    with pytest.raises(FrameError):
        next(messages)


def padded(size):
    """A ping in a line of exactly `size` bytes."""
    head, tail = b'{"type":"ping","id":1,"x":"', b'"}'
    return head + b"x" * (size - len(head) - len(tail)) + tail


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("piece", [1_000, 1 << 20])
def test_decoder_longest_line(end, piece):
    """A line of exactly MAX_LINE bytes is a frame, with either line end, in one piece or many."""
    data = padded(MAX_LINE) + end
    decoder = FrameDecoder(FROM_CLIENT)
    assert [message for at in range(0, len(data), piece) for message in decoder.feed(data[at:at + piece])] == [Ping(1)]


@pytest.mark.parametrize("data", [padded(MAX_LINE + 1) + b"\n", padded(MAX_LINE + 1) + b"\r\n", b"{" + b" " * (1 << 20)])
@pytest.mark.parametrize("piece", [1_000, 4 << 20])
def test_decoder_line_too_long(data, piece):
    """One byte more is too long, and a peer that never ends its line is refused before it has filled the memory."""
    decoder = FrameDecoder(FROM_CLIENT)
    fed = 0
    with pytest.raises(FrameError) as caught:
        for fed in range(0, len(data), piece):
            list(decoder.feed(data[fed:fed + piece]))
    assert caught.value.code == "too-long"
    assert fed <= MAX_LINE + 2


TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(32, 64))      # a ClientHello's first bytes, no line end
HTTP_GET = b"GET / HTTP/1.1"
GREETINGS = [TLS_HELLO, HTTP_GET, b"POST /x HTTP/1.1\r\nHost: a\r\n\r\n", b"SSH-2.0-x", b"\x00", b"[", b'"', b"\xef\xbb\xbf{"]


@pytest.mark.parametrize("greeting", GREETINGS)
def test_decoder_foreign_greeting(greeting):
    """What cannot become a frame is refused at its first bytes: its sender waits for us and will end no line."""
    with pytest.raises(FrameError) as caught:
        feed(greeting)
    assert caught.value.code == "bad-frame"


# --- Malformed lines ---

def chat(id="1", text='"x"', more=""):
    """The line of a chat with those pieces of JSON."""
    return f'{{"type":"chat","id":{id},"text":{text}{more}}}'.encode("utf-8", "surrogatepass")


def nested(depth):
    """A chat with a value that is `depth` lists deep; the frame itself is one bracket more."""
    return chat(more=',"x":' + "[" * depth + "]" * depth)


# label, line, error code: these are no frames, the connection ends
NOT_FRAMES = [
    ("not UTF-8", b'{"type":"chat","id":1,"text":"\xff"}', "bad-frame"),
    ("half a character", b'{"type":"chat","id":1,"text":"\xf0\x9f\x98"}', "bad-frame"),
    ("overlong UTF-8", b'{"type":"chat","id":1,"text":"\xc0\xaf"}', "bad-frame"),
    ("surrogate in UTF-8", chat(text='"\ud800"'), "bad-frame"),
    ("UTF-16", chat().decode().encode("utf-16"), "bad-frame"),
    ("UTF-16 little endian", chat().decode().encode("utf-16-le"), "bad-frame"),
    ("not JSON", b'{"type":chat}', "bad-frame"),
    ("single quotes", b"{'type':'ping','id':1}", "bad-frame"),
    ("prose", b"hello", "bad-frame"),
    ("half a frame", b'{"type":"chat","id":1,"te', "bad-frame"),
    ("two on a line", b'{"type":"ping","id":1}{"type":"ping","id":2}', "bad-frame"),
    ("array", b'["chat",1]', "bad-frame"),
    ("number", b"7", "bad-frame"),
    ("string", b'"chat"', "bad-frame"),
    ("null", b"null", "bad-frame"),
    ("true", b"true", "bad-frame"),
    ("empty line", b"", "bad-frame"),
    ("blank line", b"  \t", "bad-frame"),
    ("empty object", b"{}", "bad-frame"),
    ("no type", b'{"id":1,"text":"x"}', "bad-frame"),
    ("type a number", b'{"type":1,"id":1}', "bad-frame"),
    ("type null", b'{"type":null,"id":1}', "bad-frame"),
    ("type a list", b'{"type":["chat"],"id":1}', "bad-frame"),
    ("type an object", b'{"type":{},"id":1}', "bad-frame"),
    ("id missing", b'{"type":"chat","text":"x"}', "bad-frame"),
    ("id 0", chat("0"), "bad-frame"),
    ("id negative", chat("-1"), "bad-frame"),
    ("id fractional", chat("1.5"), "bad-frame"),
    ("id 1.0", chat("1.0"), "bad-frame"),
    ("id 1e0", chat("1e0"), "bad-frame"),
    ("id 1e999", chat("1e999"), "bad-frame"),
    ("id true", chat("true"), "bad-frame"),
    ("id false", chat("false"), "bad-frame"),
    ("id null", chat("null"), "bad-frame"),
    ("id a string", chat('"1"'), "bad-frame"),
    ("id a list", chat("[1]"), "bad-frame"),
    ("id 2^53", chat(str(2**53)), "bad-frame"),
    ("id 10^400", chat("1" + "0" * 400), "bad-frame"),
    ("id 10^5000", chat("1" + "0" * 5000), "bad-frame"),
    ("id with wrong fields", b'{"type":"chat","id":0,"text":7}', "bad-frame"),
    ("rename without id", b'{"type":"rename","name":"Ann"}', "bad-frame"),
    ("leave without id", b'{"type":"leave"}', "bad-frame"),
    ("ping without id", b'{"type":"ping"}', "bad-frame"),
    ("ack without id", b'{"type":"ack"}', "bad-frame"),
    ("ack of 0", b'{"type":"ack","id":0}', "bad-frame"),
    ("ack of 01", b'{"type":"ack","id":01}', "bad-frame"),
    ("ack of 2^53", b'{"type":"ack","id":9007199254740992}', "bad-frame"),
    ("ack of true", b'{"type":"ack","id":true}', "bad-frame"),
    ("ack of a string", b'{"type":"ack","id":"1"}', "bad-frame"),
    ("NaN", chat(more=',"x":NaN'), "bad-frame"),
    ("Infinity", chat(more=',"x":Infinity'), "bad-frame"),
    ("-Infinity", chat(more=',"x":-Infinity'), "bad-frame"),
    ("raw NUL", chat(text='"a\x00b"'), "bad-frame"),
    ("raw escape", chat(text='"a\x1b[31mb"'), "bad-frame"),
    ("BOM", b"\xef\xbb\xbf" + chat(), "bad-frame"),
    ("duplicate keys", b'{"type":"chat","id":1,"text":"x","text":"y"}', "bad-frame"),
    ("duplicate type", b'{"type":"chat","type":"ping","id":1,"text":"x"}', "bad-frame"),
    ("duplicate keys inside", chat(more=',"x":{"a":1,"a":2}'), "bad-frame"),
    ("65,000 brackets", b"[" * 65_000, "bad-frame"),
    ("65,000 brackets in a frame", chat(more=',"x":' + "[" * 65_000), "bad-frame"),
    ("10,000 objects deep", b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "bad-frame"),
    ("32 lists deep", nested(32), "bad-frame"),
    ("brackets after an escaped quote", chat(text='"\\""', more=',"x":' + "[" * 40), "bad-frame"),
    ("one byte too long", padded(MAX_LINE + 1), "too-long"),
    ("TLS", TLS_HELLO, "bad-frame"),
    ("HTTP", HTTP_GET + b"\r", "bad-frame"),
]

BAD_NAMES = [
    ("empty", ""), ("25 characters", "a" * 25), ("space", "Ann B"), ("leading space", " Ann"), ("no-break space", "Ann\u00a0B"),
    ("ideographic space", "Ann\u3000B"), ("newline", "Ann\n"), ("NUL", "Ann\x00"), ("escape", "\x1b[31mAnn"), ("tab", "A\tB"),
    ("right-to-left override", "Ann\u202e"), ("left-to-right mark", "Ann\u200e"), ("isolate", "\u2066Ann\u2069"),
    ("Arabic letter mark", "Ann\u061c"), ("zero width space", "An\u200bn"), ("zero width joiner", "An\u200dn"),
    ("zero width non-joiner", "An\u200cn"), ("word joiner", "An\u2060n"), ("BOM inside", "Ann\ufeff"),
    ("soft hyphen", "An\u00adn"),
    ("variation selector", "Ann\ufe0f"), ("variation selector 256", "Ann\U000e01ef"), ("Mongolian selector", "Ann\u180b"),
    ("Hangul filler", "\u3164"), ("halfwidth filler", "Ann\uffa0"), ("grapheme joiner", "A\u034fnn"),
    ("Khmer inherent", "A\u17b4"),
    ("tag", "Ann\U000e0041"), ("Braille blank", "\u2800"), ("emoji", "\U0001f600"), ("at", "a@b"), ("slash", "a/b"),
    ("comma", "a,b"), ("quote", 'a"b'), ("less than", "<b>"), ("superscript two", "x\u00b2"), ("Roman numeral", "\u2167"),
    ("Latin and Cyrillic", "\u0430nn"), ("Latin and Greek", "Ann\u03bf"), ("Greek and Cyrillic", "\u0391\u0411"),
    ("micro sign in Latin", "Ann\u00b5"), ("server", "server"), ("Server", "Server"), ("SERVER", "SERVER"),
    ("fullwidth SERVER", "\uff33\uff25\uff32\uff36\uff25\uff32"),
    ("bold server", "\U0001d42c\U0001d41e\U0001d42b\U0001d42f\U0001d41e\U0001d42b"),
    ("long s server", "\u017ferver"), ("folds to a space", "\u00b4"), ("ligature with spaces", "\ufdfa"),
    ("lone surrogate", "a\ud800"),
]

BAD_TEXTS = [
    ("empty", ""), ("8,193 characters", "x" * (MAX_TEXT + 1)), ("NUL", "a\x00b"), ("escape", "a\x1b[31mb"), ("CR", "a\rb"),
    ("bell", "\x07"), ("backspace", "a\x08"), ("vertical tab", "a\x0bb"), ("form feed", "a\x0c"), ("delete", "a\x7f"),
    ("C1", "a\x9bb"),
    ("next line", "a\x85b"), ("lone high surrogate", "a\ud800"), ("lone low surrogate", "\udfffa"),
    ("swapped surrogates", "\udc00\ud800"),
]

# label, fields besides type and id, error code, type: frames with wrong fields; acknowledged, and refused by their id
INVALID = [
    *[(f"text: {label}", {"text": text}, "bad-text", "chat") for label, text in BAD_TEXTS],
    ("text missing", {}, "bad-text", "chat"),
    ("text null", {"text": None}, "bad-text", "chat"),
    ("text a number", {"text": 7}, "bad-text", "chat"),
    ("text a list", {"text": ["x"]}, "bad-text", "chat"),
    ("text an object", {"text": {"a": 1}}, "bad-text", "chat"),
    ("text true", {"text": True}, "bad-text", "chat"),
    ("to a number", {"text": "x", "to": 7}, "bad-frame", "chat"),
    ("to a list", {"text": "x", "to": ["Ann"]}, "bad-frame", "chat"),
    ("to an object", {"text": "x", "to": {}}, "bad-frame", "chat"),
    ("to false", {"text": "x", "to": False}, "bad-frame", "chat"),
    ("to a lone surrogate", {"text": "x", "to": "a\ud800"}, "bad-frame", "chat"),
    ("to too long", {"text": "x", "to": "a" * (MAX_TEXT + 1)}, "bad-frame", "chat"),
    ("name missing", {}, "bad-name", "rename"),
    ("name null", {"name": None}, "bad-name", "rename"),
    ("name a number", {"name": 7}, "bad-name", "rename"),
    ("name a list", {"name": ["Ann"]}, "bad-name", "rename"),
    *[(f"name: {label}", {"name": name}, "bad-name", "rename") for label, name in BAD_NAMES],
]

# label, fields besides type, error code: a join is bare
INVALID_JOINS = [
    *[(f"name: {label}", {"name": name}, "bad-name") for label, name in BAD_NAMES],
    ("name missing", {}, "bad-name"),
    ("name null", {"name": None}, "bad-name"),
    ("name a number", {"name": 7}, "bad-name"),
    ("name a list", {"name": ["Ann"]}, "bad-name"),
    ("v 2", {"name": "Zoe", "v": 2}, "bad-version"),
    ("v 0", {"name": "Zoe", "v": 0}, "bad-version"),
    ("v 1.0", {"name": "Zoe", "v": 1.0}, "bad-version"),
    ("v true", {"name": "Zoe", "v": True}, "bad-version"),
    ("v a string", {"name": "Zoe", "v": "1"}, "bad-version"),
    ("session a number", {"name": "Zoe", "session": 7}, "bad-frame"),
    ("session a list", {"name": "Zoe", "session": []}, "bad-frame"),
    ("session a lone surrogate", {"name": "Zoe", "session": "\ud800"}, "bad-frame"),
    ("epoch a lone surrogate", {"name": "Zoe", "session": "x", "epoch": "\udfff"}, "bad-frame"),
    ("epoch a number", {"name": "Zoe", "epoch": 7}, "bad-frame"),
    ("seen negative", {"name": "Zoe", "seen": -1}, "bad-frame"),
    ("seen fractional", {"name": "Zoe", "seen": 0.0}, "bad-frame"),
    ("seen false", {"name": "Zoe", "seen": False}, "bad-frame"),
    ("seen 2^53", {"name": "Zoe", "seen": 2**53}, "bad-frame"),
    ("seen a string", {"name": "Zoe", "seen": "0"}, "bad-frame"),
    ("receipts a string", {"name": "Zoe", "receipts": "yes"}, "bad-frame"),
    ("receipts 1", {"name": "Zoe", "receipts": 1}, "bad-frame"),
]


def frame(type, fields, **more):
    """A frame in ASCII, so that it may hold lone surrogates as escapes."""
    return json.dumps({"type": type, **more, **fields}).encode("ascii") + b"\n"


def cases(table):
    return [pytest.param(*row[1:], id=row[0]) for row in table]


@pytest.mark.parametrize("line, code", cases(NOT_FRAMES))
def test_malformed_no_frame(line, code):
    """A line that is no frame raises FrameError with its code, at once or at its end."""
    with pytest.raises(FrameError) as caught:
        feed(line + b"\n")
    assert caught.value.code == code
    assert caught.value.text


@pytest.mark.parametrize("line, code", cases(NOT_FRAMES))
def test_malformed_no_frame_byte_by_byte(line, code):
    """The same code however the bytes come; 65,000 of them are tried in pieces of 4,096."""
    decoder = FrameDecoder(FROM_CLIENT)
    piece = 1 if len(line) < 1000 else 4096
    data = line + b"\n"
    with pytest.raises(FrameError) as caught:
        for at in range(0, len(data), piece):
            list(decoder.feed(data[at:at + piece]))
    assert caught.value.code == code


@pytest.mark.parametrize("fields, code, type", cases(INVALID))
def test_malformed_fields(fields, code, type):
    """A frame with wrong fields keeps its id, so that it can be acknowledged and refused, and harms nothing after it."""
    invalid, after = feed(frame(type, fields, id=3) + Ping(4).encode())
    assert (invalid.id, invalid.kind, invalid.error.code) == (3, type, code)
    assert isinstance(invalid, Invalid) and not isinstance(invalid.error, FrameError)
    assert after == Ping(4)


@pytest.mark.parametrize("fields, code", cases(INVALID_JOINS))
def test_malformed_join(fields, code):
    """A join with wrong fields is refused without an id."""
    (invalid,) = feed(frame("join", fields))
    assert isinstance(invalid, Invalid)
    assert (invalid.id, invalid.kind, invalid.error.code) == (0, "join", code)


@pytest.mark.parametrize("line", [
    b'{"type":"chat","id":1,"from":"a","text":"x","at":"now"}', b'{"type":"chat","id":1,"from":"a","text":"x","at":1e999}',
    b'{"type":"chat","id":1,"from":"a","text":"x","at":true}', b'{"type":"chat","id":1,"from":"a","text":"x"}',
    b'{"type":"chat","id":1,"text":"x","at":1}', b'{"type":"joined","id":1,"at":1}', b'{"type":"left","id":1,"name":[],"at":1}',
    b'{"type":"renamed","id":1,"name":"a","at":1}', b'{"type":"error","id":1}', b'{"type":"booted","id":1,"reason":7}',
    b'{"type":"chat","id":1,"from":"a","text":"x","at":1,"cid":"1"}',
])
def test_malformed_from_server(line):
    """A client treats a server's wrong fields as a server treats a client's."""
    (invalid,) = feed(line + b"\n", FROM_SERVER)
    assert isinstance(invalid, Invalid) and invalid.id == 1


@pytest.mark.parametrize("fields", [
    {"name": "a", "session": "s", "epoch": "e", "users": "Ann", "last": 1}, {"name": "a", "session": "s", "epoch": "e",
    "last": 1},
    {"name": "a", "session": "s", "epoch": "e", "users": [1], "last": 1}, {"name": "a", "session": "s", "epoch": "e",
    "users": [], "last": -1},
    {"name": "a", "session": "s", "epoch": 1, "users": [], "last": 1}, {"name": "a", "session": "s", "epoch": "e",
    "users": [], "last": True},
    {"name": "a", "session": "s", "epoch": "e", "users": [], "last": 1, "resumed": 1},
])
def test_malformed_welcome(fields):
    """A welcome with wrong fields is Invalid, not half a welcome."""
    (invalid,) = feed(frame("welcome", fields), FROM_SERVER)
    assert isinstance(invalid, Invalid) and invalid.kind == "welcome"


def test_malformed_time_beyond_floats():
    """A whole number that no float can hold is a wrong field like any other, not a crash."""
    (invalid,) = feed(b'{"type":"joined","id":1,"name":"a","at":1' + b"0" * 400 + b"}\n", FROM_SERVER)
    assert isinstance(invalid, Invalid) and invalid.error.code == "bad-frame"


def test_depth_in_a_small_stack():
    """65,000 brackets do not crash a thread whose stack is 256 KiB, wherever in the line they are."""
    caught = []

    def attack():
        for line in (b"[" * 65_000, b'{"a":' * 10_000, chat(more=',"x":' + "[" * 65_000), b'{"x":"\\"",' + b'"a":[' * 10_000):
            try:
                decode(line, INSTRUCTIONS[FROM_CLIENT])
            except FrameError as error:
                caught.append(error.code)

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=attack, daemon=True)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join(PATIENCE)
    assert caught == ["bad-frame"] * 4


@pytest.mark.parametrize("text", ["[" * MAX_TEXT, "{[" * 4096, '"[' * 4000, "\\[" * 4000, "]" * 100 + "[" * 100])
def test_depth_brackets_in_text(text):
    """Brackets inside a string are text, however many, with quotes and backslashes between them."""
    assert feed(Say(1, text).encode()) == [Say(1, text)]


def test_depth_wide_is_not_deep():
    """Many brackets side by side are fine, and 31 lists deep inside a frame is the limit."""
    assert feed(chat(more=',"x":[' + ",".join(["{}"] * 1000) + "]") + b"\n") == [Say(1, "x")]
    assert feed(nested(31) + b"\n") == [Say(1, "x")]


# --- Names and texts ---

GOOD_NAMES = ["a", "Ann", "a" * 24, "J\u00fcrgen", "Jose\u0301", "\u041e\u043b\u044c\u0433\u0430",
              "\u0395\u03bb\u03ad\u03bd\u03b7", "\u5c71\u7530\u592a\u90ce",
              "\u3072\u3089\u304c\u306a", "\uae40\ucca0\uc218", "\u0639\u0644\u064a", "\u05d3\u05d5\u05d3",
              "\u092a\u094d\u0930\u093f\u092f\u093e", "\u0e2a\u0e21\u0e0a\u0e32\u0e22",
              "\u1208\u121d\u120b", "\u0531\u0580\u0561", "\U00020000", "user_1", "a.b-c", "1234", "\u0661\u0662\u0663",
              "Ann\u5c71", "servers", "server1", "\uff21\uff4e\uff4e"]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_name_good(name):
    """Letters, marks and digits of any script, and _ - . make a name."""
    assert check_name(name) == name


@pytest.mark.parametrize("name", [name for _, name in BAD_NAMES] + [None, 7, ["Ann"], b"Ann", True], ids=ascii)
def test_name_bad(name):
    """Whatever is empty, too long, invisible, reordering, mixed, the server's own, or no string at all is refused."""
    with pytest.raises(ProtocolError) as caught:
        check_name(name)
    assert caught.value.code == "bad-name"


@pytest.mark.parametrize("one, other", [("Ann", "ann"), ("ANN", "ann"), ("Ann", "\uff21\uff4e\uff4e"),
                                        ("stra\u00dfe", "STRASSE"),
                                        ("Jos\u00e9", "Jose\u0301"),
                                        ("\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2", "\u03a3\u038a\u03a3\u03a5\u03a6\u039f\u03a3"),
                                        ("\uff76\uff9e", "\u30ac"), ("\ufb01n", "FIN"), ("K", "\u212a"),
                                        ("\u041e\u043b\u044f", "\u043e\u043b\u044f")])
def test_name_key_equal(one, other):
    """Names that differ only in case, width or composition are one name."""
    assert name_key(one) == name_key(other)


@pytest.mark.parametrize("one, other", [("Ann", "Anne"), ("a", "\u0430"), ("o", "0"), ("Jose", "Jos\u00e9"), ("a-b", "a_b"),
                                        ("a.b", "ab")])
def test_name_key_different(one, other):
    """Names that differ in a letter are two."""
    assert name_key(one) != name_key(other)


@pytest.mark.parametrize("text", ["x", "x" * MAX_TEXT, "\U0001f600" * MAX_TEXT, "a\n\tb", " ", "\u202e", "\u2028", "\ufffd"])
def test_text_good(text):
    """One to 8,192 characters, tabs and newlines among them; an astral one counts once, and the frame fits its line."""
    assert check_text(text) == text
    assert feed(Say(1, text).encode()) == [Say(1, text)]


@pytest.mark.parametrize("text", [text for _, text in BAD_TEXTS] + [None, 7, ["x"]], ids=ascii)
def test_text_bad(text):
    """Whatever else is refused as bad-text."""
    with pytest.raises(ProtocolError) as caught:
        check_text(text)
    assert caught.value.code == "bad-text"


@pytest.mark.parametrize("raw, clean", [
    ("plain \u00e4 \U0001f600", "plain \u00e4 \U0001f600"), ("\x1b[31mred\x1b[0m", "red"),
    ("\x1b[1;38;5;208mbold\x1b[m", "bold"),
    ("\x1b[2K\x1b[1Gdone", "done"), ("\x1b[?25lx\x1b[?25h", "x"), ("\x1b]0;title\x07text", "text"),
    ("\x1b]0;title\x1b\\text", "text"),
    ("\x1b]8;;http://a/\x1b\\link\x1b]8;;\x1b\\", "link"), ("\x1bPdcs\x1b\\x", "x"), ("\x1b(Bx\x1b=y\x1bMz", "xyz"),
    ("a\r\nb\r\n", "a\nb\n"),
    ("10%\r20%", "10%20%"), ("a\x00b\x07c\x08d\x7f", "abcd"), ("tab\tnew\n", "tab\tnew\n"), ("a\ud800b", "a\ufffdb"),
    ("\udcff", "\ufffd"),
    ("a\x85b", "ab"), ("\x1b", ""), ("\x1b\x1b[31mx", "x"), ("", ""),
])
def test_clean_text(raw, clean):
    """A coloured build log becomes its plain text."""
    assert clean_text(raw) == clean


@pytest.mark.parametrize("raw", [text for _, text in BAD_TEXTS if text][1:] + ["\x1b[31m\x1b]0;t\x07ok\r\n\ud800\udc00\x9b",
                         "\x1b[\x1b[31m31mx"], ids=ascii)
def test_clean_text_may_be_said(raw):
    """What was cleaned is accepted, and cleaning it again changes nothing."""
    clean = clean_text("x" + raw)
    assert check_text(clean) == clean_text(clean) == clean


@pytest.mark.parametrize("raw, shown", [
    ("plain ASCII ~", "plain ASCII ~"), ("\u00e4 \u5c71 \u0639", "\u00e4 \u5c71 \u0639"), ("\x1b[31mred", "\\x1b[31mred"),
    ("\x1b]0;t\x07", "\\x1b]0;t\\x07"), ("a\rb", "a\\rb"),
    ("a\nb", "a\\nb"), ("a\tb", "a\\tb"), ("\u202egnp", "\\u202egnp"), ("a\u200bb", "a\\u200bb"),
    ("\u2066x\u2069", "\\u2066x\\u2069"), ("\u2028", "\\u2028"),
    ("\ufeff", "\\ufeff"), ("\x9b31m", "\\x9b31m"), ("\x7f", "\\x7f"), ("\ud800", "\\ud800"), ("\U000e0041", "\\U000e0041"),
    ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"), ("\u2764\ufe0f", "\u2764\ufe0f"),
    ("a\u00a0b\u3000c", "a\u00a0b\u3000c"), ("", ""),
    # Marks: as many as any script needs, not so many that they cover other lines.
    ("e\u0301", "e\u0301"), ("o" + "\u0301" * MAX_MARKS + "k", "o" + "\u0301" * MAX_MARKS + "k"),
    ("Z" + "\u0335" * (MAX_MARKS + 2) + "y\u0301", "Z" + "\u0335" * MAX_MARKS + "\\u0335" * 2 + "y\u0301"),
    ("x" + "\u0301\u20dd" * MAX_MARKS, "x" + "\u0301\u20dd" * (MAX_MARKS // 2) + "\\u0301\\u20dd" * (MAX_MARKS // 2)),
    ("\u0915\u094d\u0937\u093f", "\u0915\u094d\u0937\u093f"), ("\u05e9\u05c1\u05bc\u05b8", "\u05e9\u05c1\u05bc\u05b8"),
    # What varies or joins emoji shows only at emoji.
    ("\u2764\ufe0f\ufe0f\ufe0f", "\u2764\ufe0f\\ufe0f\\ufe0f"), ("\ufe0f", "\\ufe0f"), ("a\ufe0fb\ufe0e", "a\\ufe0fb\\ufe0e"),
    ("\xb7\u200d\xb7", "\xb7\\u200d\xb7"), ("a\u200db", "a\\u200db"), ("\u200d", "\\u200d"),
    ("\u2764\u200d", "\u2764\\u200d"), ("\u2764\u200d\u200d\u2764", "\u2764\\u200d\\u200d\u2764"),
    *[(emoji, emoji) for emoji in [
        "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308",
        "\U0001f469\U0001f3fd\u200d\U0001f680",
        "\U0001f937\U0001f3fb\u200d\u2642\ufe0f", "\u2764\ufe0f\u200d\U0001f525", "\U0001f441\ufe0f\u200d\U0001f5e8\ufe0f",
        "\U0001f3c3\u200d\u27a1\ufe0f", "\U0001f1eb\U0001f1f7", "\u2194\ufe0f \u203c\ufe0f \u2049\ufe0f",
        "\u2139\ufe0f \xa9\ufe0f \u2600\ufe0e",
        "1\ufe0f\u20e3", "#\ufe0f\u20e3*\ufe0f\u20e3"]],
    # Hangul: a syllable of jamo is one, a vowel or final of its own is nothing to see.
    ("\u1112\u1161\u11ab\u1100\u1173\u11af", "\u1112\u1161\u11ab\u1100\u1173\u11af"), ("\ud55c\uae00", "\ud55c\uae00"),
    ("\u1161", "\\u1161"), ("a\u1161b", "a\\u1161b"), ("\u1160", "\\u1160"),
])
def test_escape(raw, shown):
    """What moves, hides or reorders is shown as an escape; letters of any script and emoji stay."""
    assert escape(raw) == shown


# --- Alarm ---

def make_alarm(now=1000.0):
    fake = FakeTime(now)
    return fake, Alarm(fake.clock, fake.timer)


def test_alarm_one_timer_for_many_deadlines():
    """Hundred deadlines need one timer, and ring in their order."""
    fake, alarm = make_alarm()
    rung = []
    for number in range(100):
        alarm.at(1001.0 + number, lambda number=number: rung.append(number))
        assert len(fake.armed) == 1
    while fake.armed:
        assert len(fake.armed) == 1
        fake.advance(1)
    assert rung == list(range(100))


def test_alarm_earlier_deadline_arms_again():
    """An earlier deadline takes the timer over, a later one leaves it alone."""
    fake, alarm = make_alarm()
    rung = []
    alarm.at(1010.0, lambda: rung.append("late"))
    alarm.at(1020.0, lambda: rung.append("later"))
    assert len(fake.timers) == 1
    alarm.at(1005.0, lambda: rung.append("early"))
    assert [timer.due for timer in fake.armed] == [1005.0]
    fake.advance(5)
    assert rung == ["early"] and [timer.due for timer in fake.armed] == [1010.0]
    fake.advance(15)
    assert rung == ["early", "late", "later"]


def test_alarm_cancelled_timer_rings_late():
    """A timer that was cancelled too late to stop it does nothing, and the right one still rings."""
    fake, alarm = make_alarm()
    rung = []
    alarm.at(1010.0, lambda: rung.append("late"))
    (stale,) = fake.armed
    alarm.at(1005.0, lambda: rung.append("early"))
    stale.ring()
    assert rung == []
    fake.advance(5)
    assert rung == ["early"]
    stale.ring()
    assert "late" not in rung
    fake.advance(5)
    assert rung == ["early", "late"]


def test_alarm_armed_only_while_pending():
    """No timer is armed before the first deadline, between rings without work, or after the last."""
    fake, alarm = make_alarm()
    assert fake.armed == []
    alarm.at(1001.0, lambda: None)
    fake.advance(2)
    assert fake.armed == []
    alarm.at(1003.0, lambda: None)
    assert len(fake.armed) == 1


@pytest.mark.parametrize("when", [1001.0, 1001.01, 1001.049, 1001.0500001, 1003.3333])
def test_alarm_rounds_up_to_tick(when):
    """A deadline rings at its time or up to a TICK later, never before."""
    fake, alarm = make_alarm()
    rung = []
    alarm.at(when, lambda: rung.append(fake.now))
    fake.advance(5)
    assert len(rung) == 1 and when <= rung[0] <= when + TICK + 1e-6


def test_alarm_same_tick_one_ring():
    """Deadlines within a TICK share a ring."""
    fake, alarm = make_alarm()
    rung = []
    for number in range(10):
        alarm.at(1001.001 + number / 250, lambda: rung.append(fake.now))
    fake.advance(2)
    assert len(rung) == 10 and len(set(rung)) == 1


def test_alarm_past_deadline_rings_at_once():
    """A deadline that has passed rings without a negative wait."""
    fake, alarm = make_alarm()
    rung = []
    alarm.at(990.0, lambda: rung.append(True))
    assert fake.armed[0].due == fake.now
    fake.advance(0)
    assert rung == [True]


def test_alarm_action_sets_deadline():
    """An action may ask for the next ring."""
    fake, alarm = make_alarm()
    rung = []

    def again():
        rung.append(fake.now)
        if len(rung) < 3:
            alarm.at(fake.now + 1, again)
    alarm.at(1001.0, again)
    fake.advance(10)
    assert rung == pytest.approx([1001, 1002, 1003], abs=2 * TICK)
    assert fake.armed == []


def test_alarm_close():
    """After close() nothing is armed, now or later; it may be called twice."""
    fake, alarm = make_alarm()
    rung = []
    alarm.at(1001.0, lambda: rung.append(True))
    alarm.close()
    alarm.close()
    assert fake.armed == []
    alarm.at(1002.0, lambda: rung.append(True))
    fake.advance(10)
    assert fake.armed == [] and rung == []


def test_alarm_close_before_late_ring():
    """A timer that close() came too late to stop does nothing: never means never."""
    fake, alarm = make_alarm()
    rung = []
    alarm.at(1001.0, lambda: rung.append(True))
    (late,) = fake.armed
    alarm.close()
    fake.now = 1001.0
    late.ring()
    assert rung == []


def test_alarm_without_threads():
    """When no timer can be started the next deadline tries again, and those that are due ring with it."""
    fake, alarm = make_alarm()
    rung = []

    def fails(*arguments):
        timer = fake.timer(*arguments)
        timer.start = start
        return timer

    def start():
        raise RuntimeError("can't start new thread")
    alarm._new_timer = fails
    alarm.at(1001.0, lambda: rung.append(1))
    assert fake.armed == []
    alarm._new_timer = fake.timer
    alarm.at(1002.0, lambda: rung.append(2))
    fake.advance(2)
    assert rung == [1, 2]


def test_alarm_far_deadline():
    """A deadline in ten days rings then, though no timer waits that long: systems differ in what they can wait."""
    fake, alarm = make_alarm()
    rung = []
    alarm.at(1000.0 + 864_000, lambda: rung.append(fake.now))
    assert fake.armed[0].due <= 1000 + chatproto.LONGEST_WAIT
    fake.advance(863_999)
    assert rung == [] and len(fake.armed) == 1
    fake.advance(1.1)
    assert len(rung) == 1


def test_alarm_weakly():
    """An action made by weakly() does its work, and does not keep its object alive until the deadline."""
    fake, alarm = make_alarm()
    rung = []

    class Thing:
        def ring(self, number):
            rung.append(number)
    kept, dropped = Thing(), Thing()
    alarm.at(1001.0, chatproto.weakly(kept.ring, 1))
    alarm.at(1001.0, chatproto.weakly(dropped.ring, 2))
    gone = weakref.ref(dropped)
    del dropped
    gc.collect()
    assert gone() is None
    fake.advance(2)
    assert rung == [1]


def test_alarm_real_timer():
    """The defaults are the real clock and threading.Timer, whose thread is a daemon with a name."""
    alarm = Alarm()
    rung = queue.Queue()
    alarm.at(alarm.clock(), lambda: rung.put(threading.current_thread()))
    thread = rung.get(timeout=PATIENCE)
    alarm.close()
    assert thread.daemon and thread.name == "alarm"


# --- PendingMessage and MessageQueue ---

def test_pending_split():
    """The two halves hold the frames, ids and bytes of the whole, which itself stays as it was."""
    whole = PendingMessage([3, 5, 9], [b"a\n", b"bb\n", b"ccc\n"])
    first, rest = whole.split(1)
    assert (first.ids, first.frames, first.size, first.data) == ([3], [b"a\n"], 2, b"a\n")
    assert (rest.ids, rest.frames, rest.size, rest.data) == ([5, 9], [b"bb\n", b"ccc\n"], 7, b"bb\nccc\n")
    assert (whole.ids, whole.size, whole.data) == ([3, 5, 9], 9, b"a\nbb\nccc\n")


def fill(messages):
    """Fill the window; return the next id."""
    for id in range(1, WINDOW + 1):
        assert ids_in(messages.put(ping(id))) == [id]
    return WINDOW + 1


def test_queue_direct_send():
    """With room and nobody waiting, a frame goes out as it is: the same bytes object, not a copy."""
    messages = MessageQueue()
    pending = ping(1)
    assert messages.empty
    assert messages.put(pending) is pending.data
    assert messages.oldest == pending.data and not messages.empty


def test_queue_window_frames():
    """The frame after the window waits until an ACK makes room."""
    messages = MessageQueue()
    fill(messages)
    assert messages.put(ping(65)) == b"" and messages.frames_waiting == 1
    assert messages.take() == b""
    assert messages.acknowledge(1)
    assert ids_in(messages.take()) == [65] and messages.frames_waiting == 0


def test_queue_window_bytes():
    """The window is in bytes, too: exactly WINDOW_BYTES fit, and not one more."""
    messages = MessageQueue()
    assert messages.put(block(1, WINDOW_BYTES // 2)) and messages.put(block(2, WINDOW_BYTES // 2))
    assert messages.put(block(3, 1)) == b""
    messages.acknowledge(1)
    assert len(messages.take()) == 1


def test_queue_all_that_waits_in_one_write():
    """When the window opens, all that waits and fits is one piece, in its order."""
    messages = MessageQueue()
    fill(messages)
    for id in range(65, 200):
        assert messages.put(ping(id)) == b""
    messages.acknowledge(WINDOW)
    assert ids_in(messages.take()) == list(range(65, 65 + WINDOW))
    messages.acknowledge(100)
    assert ids_in(messages.take()) == list(range(129, 165))


def test_queue_nothing_overtakes():
    """A small frame does not overtake a big one that waits, even when it alone would fit."""
    messages = MessageQueue()
    messages.put(block(1, WINDOW_BYTES - 100))
    assert messages.put(block(2, 200)) == b""
    assert messages.put(block(3, 50)) == b""
    messages.acknowledge(1)
    assert len(messages.take()) == 250


@pytest.mark.parametrize("before", [0, 1, 63])
def test_queue_splits_at_window_frames(before):
    """Of many frames in one piece as many go out as the window has room for, the others later."""
    messages = MessageQueue()
    for id in range(1, before + 1):
        messages.put(ping(id))
    ids = list(range(before + 1, before + 201))
    got = ids_in(messages.put(ping(*ids)))
    assert len(got) == WINDOW - before
    while messages.frames_waiting:
        messages.acknowledge(messages.newest_sent)
        got += ids_in(messages.take())
    assert got == ids


def test_queue_splits_at_window_bytes():
    """The same where bytes are the limit."""
    messages = MessageQueue()
    frames = [b"x" * 39_999 + b"\n"] * 5
    assert len(messages.put(PendingMessage([1, 2, 3, 4, 5], frames))) == 3 * 40_000
    assert messages.newest_sent == 3 and messages.frames_waiting == 2
    messages.acknowledge(2)
    assert len(messages.take()) == 2 * 40_000 and messages.newest_sent == 5


def test_queue_longest_frame_fits():
    """The longest frame of all fits an empty window: nothing waits for ever."""
    messages = MessageQueue()
    assert len(messages.put(block(1, MAX_LINE + 2))) == MAX_LINE + 2


def test_queue_full_frames():
    """QUEUE_FRAMES may wait behind the window; the next raises and changes nothing."""
    messages = MessageQueue()
    id = fill(messages)
    messages.put_later(ping(*range(id, id + QUEUE_FRAMES)))
    for _ in range(2):
        with pytest.raises(queue.Full):
            messages.put(ping(99_999))
    assert messages.frames_waiting == QUEUE_FRAMES
    messages.acknowledge(1)
    messages.take()
    assert messages.put(ping(99_999)) == b""


def test_queue_full_bytes():
    """QUEUE_BYTES may wait behind the window."""
    messages = MessageQueue()
    messages.put(block(1, WINDOW_BYTES))
    frame = b"x" * 65_535 + b"\n"
    for id in range(2, 2 + QUEUE_BYTES // len(frame)):
        messages.put(PendingMessage([id], [frame]))
    with pytest.raises(queue.Full):
        messages.put(block(999, 1))


def test_queue_replay_is_exempt():
    """A replay may be longer than the bound, and what follows it has the whole bound to itself."""
    messages = MessageQueue()
    long = 2 * QUEUE_FRAMES
    assert len(ids_in(messages.put(ping(*range(1, long + 1)), replay=True))) == WINDOW
    messages.put_later(ping(*range(long + 1, long + 1 + QUEUE_FRAMES)))
    with pytest.raises(queue.Full):
        messages.put_later(ping(*range(100_001, 100_001 + WINDOW + 1)))


def test_queue_replay_over():
    """When a replay has drained, the bound is what it was."""
    messages = MessageQueue()
    messages.put(ping(*range(1, 3 * WINDOW)), replay=True)
    while messages.frames_waiting:
        messages.acknowledge(messages.newest_sent)
        messages.take()
    messages.acknowledge(messages.newest_sent)
    messages.put(ping(*range(1001, 1001 + WINDOW)))
    messages.put_later(ping(*range(2001, 2001 + QUEUE_FRAMES)))
    with pytest.raises(queue.Full):
        messages.put_later(ping(99_999))


def test_queue_one_large_piece():
    """A piece larger than the bound may wait alone: a large batch is no fault of the peer. Nothing may wait behind it."""
    messages = MessageQueue()
    messages.put_later(ping(*range(1, QUEUE_FRAMES + 2)))
    assert messages.frames_waiting == QUEUE_FRAMES + 1
    with pytest.raises(queue.Full):
        messages.put(ping(99_999))


def test_queue_ack_never_sent():
    """An ACK of what was never sent is the peer's fault, also while that frame waits in the queue."""
    messages = MessageQueue()
    with pytest.raises(FrameError) as caught:
        messages.acknowledge(1)
    assert caught.value.code == "bad-frame"
    fill(messages)
    messages.put(ping(65))
    with pytest.raises(FrameError):
        messages.acknowledge(65)
    assert messages.acknowledge(64)


def test_queue_ack_backwards():
    """An ACK at or below the last one is no news and changes nothing."""
    messages = MessageQueue()
    for id in (2, 4, 6):
        messages.put(ping(id))
    assert messages.acknowledge(4) is True
    assert messages.acknowledge(4) is False and messages.acknowledge(1) is False
    assert messages.acked == 4 and ids_in(messages.oldest) == [6]


def test_queue_ack_partial():
    """An ACK may end within a piece, or at an id that was not used: what is above it stays in flight."""
    messages = MessageQueue()
    messages.put(ping(2, 4, 6, 8))
    messages.acknowledge(5)
    assert ids_in(messages.oldest) == [6] and not messages.empty
    messages.acknowledge(6)
    assert ids_in(messages.oldest) == [8]
    messages.acknowledge(8)
    assert messages.empty and messages.oldest == b""
    assert len(ids_in(messages.put(ping(*range(9, 9 + WINDOW))))) == WINDOW


def test_queue_rewind():
    """After a broken connection what was in flight goes out again: same order, same ids, before all that waits."""
    messages = MessageQueue()
    messages.put(ping(1, 2, 3))
    messages.put(ping(4))
    messages.acknowledge(2)
    messages.rewind()
    assert messages.frames_waiting == 2 and messages.newest_sent == 4
    messages.put_later(ping(5))
    assert ids_in(messages.take()) == [3, 4, 5]


def test_queue_rewind_ten_times():
    """Ten reconnects in a row lose no place in the window and no frame (mosquitto#898)."""
    messages = MessageQueue()
    messages.put(ping(*range(1, 101)))
    messages.put(ping(*range(101, 201)))
    for done in range(10):
        messages.rewind()
        assert messages.frames_waiting == 200 - messages.acked
        assert ids_in(messages.take()) == list(range(done + 1, done + 1 + WINDOW))
        messages.acknowledge(done + 1)
        assert ids_in(messages.take()) == [done + 1 + WINDOW]
    got = []
    while not messages.empty:
        messages.acknowledge(messages.newest_sent)
        got += ids_in(messages.take())
    assert got == list(range(11 + WINDOW, 201))
    assert len(ids_in(messages.put(ping(*range(201, 201 + WINDOW + 9))))) == WINDOW


# --- MessageManager: ACKs that go out ---

def test_manager_late_ack_by_frames():
    """The 32nd frame brings the ACK for all of them."""
    line = Line()
    for id in range(1, 32):
        line.manager.received(id)
    assert line.sent() == []
    line.manager.received(32)
    assert line.sent() == [("ack", 32)]
    line.manager.received(33)
    assert line.sent() == []


def test_manager_late_ack_by_bytes():
    """32 KiB bring it, too."""
    line = Line()
    for id in range(1, 4):
        line.manager.received(id, 8 * 1024)
    assert line.sent() == []
    line.manager.received(4, 8 * 1024)
    assert line.sent() == [("ack", 4)]


@pytest.mark.parametrize("phase", [0.0, 0.01, 0.03, 0.049])
def test_manager_late_ack_by_time(phase):
    """An ACK is written within 0.25 s of the oldest frame, whatever the ticks, and confirms the newest; once."""
    line = Line()
    line.time.advance(phase)
    line.manager.received(1)
    assert line.sent() == []
    line.time.advance(0.1)
    line.manager.received(2)
    line.time.advance(0.15)
    assert line.sent() == [("ack", 2)]
    line.time.advance(5)
    assert line.sent() == []


def test_manager_duplicate_confirmed_at_once():
    """A frame that comes twice means that its ACK was lost: confirmed at once, with the newest id."""
    line = Line()
    for id in range(1, 33):
        line.manager.received(id)
    line.sent()
    assert line.manager.is_duplicate(7) and line.manager.is_duplicate(32) and not line.manager.is_duplicate(33)
    line.manager.received(7)
    assert line.sent() == [("ack", 32)] and line.manager.seen == 32


def test_manager_acknowledge_at_once():
    """The server's way: an ACK now, for all up to an id."""
    line = Line()
    line.manager.acknowledge(9)
    assert line.sent() == [("ack", 9)]


def test_manager_no_ack_of_nothing():
    """There is no ACK of id 0."""
    line = Line()
    line.manager.acknowledge(0)
    line.time.advance(1)
    assert line.sent() == []


# --- MessageManager: retries, death and pings ---

def test_manager_window():
    """What is beyond the window waits, and all of it goes out in one write when the ACK comes."""
    line = Line()
    line.send(*range(1, 101))
    assert line.sent() == pings(*range(1, 65)) and line.manager.waiting == 36
    line.manager.acknowledged(64)
    assert len(line.writes) == 1 and line.sent() == pings(*range(65, 101))
    line.manager.acknowledged(100)
    assert line.manager.empty and line.manager.acked == 100


def test_manager_retry_oldest_only():
    """After 2 s without an ACK the oldest frame, and no other, is sent again."""
    line = Line()
    line.send(1, 2, 3)
    line.sent()
    line.time.advance(1.99)
    assert line.sent() == []
    line.time.advance(0.07)
    assert line.sent() == pings(1)
    line.manager.acknowledged(3)
    line.time.advance(10)
    assert line.sent() == [] and line.dead == []


def test_manager_progress_restarts():
    """An ACK of anything starts the 2 s and the retries anew."""
    line = Line()
    line.send(1, 2)
    line.time.advance(7)
    assert line.sent() == pings(1, 2, 1, 1, 1)
    line.manager.acknowledged(1)
    line.time.advance(1.9)
    assert line.sent() == [] and line.dead == []
    line.time.advance(0.2)
    assert line.sent() == pings(2)
    line.time.advance(5.8)
    assert line.dead == []
    line.time.advance(0.2)
    assert line.dead


def test_manager_old_ack_is_no_progress():
    """An ACK that confirms nothing new does not keep a connection alive."""
    line = Line()
    line.send(1)
    line.manager.acknowledged(1)
    line.send(2)
    for _ in range(9):
        line.time.advance(1)
        line.manager.acknowledged(1)
    assert line.dead


def test_manager_dead_after_three_retries():
    """Retries at 2, 4 and 6 s, dead at 8."""
    line = Line()
    line.send(1)
    times = []
    for _ in range(79):
        before = len(line.writes)
        line.time.advance(0.1)
        times += [round(line.time.now - 1000, 1)] * (len(line.writes) - before)
    assert times == pytest.approx([2, 4, 6], abs=0.11) and line.dead == []
    line.time.advance(0.3)
    assert line.dead == pytest.approx([1008], abs=0.3)


def test_manager_ping_after_thirty_seconds():
    """Nothing sent for 30 s: time for a ping, and not before."""
    line = Line()
    line.time.advance(29.9)
    assert line.idle == []
    line.time.advance(1.2)
    assert len(line.idle) == 1


def test_manager_ping_only_when_idle():
    """Whatever is written puts the ping off, an ACK too."""
    line = Line()
    line.time.advance(20)
    line.manager.acknowledge(1)
    line.time.advance(20)
    line.send(1)
    line.manager.acknowledged(1)
    line.time.advance(29)
    assert line.idle == []
    line.time.advance(2.1)
    assert len(line.idle) == 1


def test_manager_silent_peer_found():
    """A peer that vanished without a word is found within 40 s: ping after 30, dead 8 later."""
    line = Line()
    line.manager._on_idle = lambda: line.send(1)
    line.time.advance(37.9)
    assert line.dead == []
    line.time.advance(2.1)
    assert line.dead


def test_manager_silent_person_is_alive():
    """A peer that answers pings is not dead, however long it says nothing."""
    line = Line()
    ids = iter(range(1, 1000))

    def answer():
        id = next(ids)
        line.send(id)
        line.manager.acknowledged(id)
    line.manager._on_idle = answer
    line.time.advance(3600)
    assert line.dead == [] and 100 <= next(ids) <= 125


def test_manager_stale_ring():
    """The ring that was asked for a frame does nothing when that frame has been confirmed, for a newer one either."""
    line = Line()
    line.send(1)
    line.time.advance(1)
    line.manager.acknowledged(1)
    line.send(2)
    line.sent()
    line.time.advance(1.1)
    assert line.sent() == []
    line.time.advance(1)
    assert line.sent() == pings(2)


def test_manager_ack_of_never_sent():
    """An ACK of what was never sent is the peer's fault."""
    line = Line()
    line.send(1)
    with pytest.raises(FrameError):
        line.manager.acknowledged(2)


def test_manager_patient():
    """While our side does not read, missing ACKs are no fault of the peer; afterwards the 2 s start anew."""
    line = Line()
    line.send(1)
    line.sent()
    line.manager.patient = True
    line.time.advance(60)
    assert line.sent() == [] and line.dead == []
    line.manager.patient = False
    line.time.advance(12)
    assert line.sent()[:3] == pings(1, 1, 1) and line.dead


def test_manager_one_timer_for_all():
    """Ten managers on one alarm keep one timer, and each does its own retries."""
    fake = FakeTime()
    alarm = Alarm(fake.clock, fake.timer)
    writes = []
    managers = [MessageManager(alarm, lambda: None, lambda: None) for _ in range(10)]
    for id, manager in enumerate(managers, 1):
        manager.attach(writes.append)
        manager.send(ping(id))
    assert len(fake.armed) == 1 and len(writes) == 10
    fake.advance(2.1)
    assert len(fake.armed) == 1 and len(writes) == 20


# --- MessageManager: refusals ---

def refusal(id, about):
    return PendingMessage([id], [Error(id, "bad-text", "no", about).encode()])


def test_manager_refuse_in_an_open_window():
    """The error goes out at once, and the ACK after it."""
    line = Line()
    line.manager.send(refusal(1, 5), refusal=1)
    line.manager.acknowledge(5)
    assert line.sent() == [("error", 1), ("ack", 5)]


def test_manager_refuse_behind_a_closed_window():
    """An ACK never overtakes the error that refuses one of its frames: the peer would take it for a yes."""
    line = Line()
    line.send(*range(1, WINDOW + 1))
    line.sent()
    line.manager.send(refusal(65, 5), refusal=65)
    line.manager.acknowledge(5)
    line.manager.acknowledge(6)
    assert line.sent() == []
    line.time.advance(1)
    line.manager.acknowledged(1)
    assert line.sent() == [("error", 65), ("ack", 6)]
    line.manager.acknowledge(7)
    assert line.sent() == [("ack", 7)]


def test_manager_refuse_deep_in_the_queue():
    """The same when the error waits a full window behind: the ACK follows it, not the first write that opens."""
    line = Line()
    line.send(*range(1, 2 * WINDOW + 1))
    line.sent()
    line.manager.send(refusal(129, 5), refusal=129)
    line.manager.acknowledge(5)
    line.manager.acknowledged(WINDOW)
    assert line.sent() == pings(*range(65, 129))
    line.manager.acknowledged(100)
    assert line.sent() == [("error", 129), ("ack", 5)]


# --- MessageManager: from one connection to the next ---

def test_manager_nothing_before_attach():
    """Without a connection numbered frames wait, bare ones are dropped, and nobody is dead or idle."""
    line = Line(attach=False)
    line.send(1, 2)
    line.manager.send_bare(Ack(1).encode())
    line.time.advance(100)
    assert line.writes == [] and line.dead == line.idle == [] and line.time.armed == []
    line.manager.attach(line.writes.append)
    assert len(line.writes) == 1 and line.sent() == pings(1, 2)


def test_manager_reattach():
    """What `confirmed` does not cover goes out again under the same ids, with all that was added meanwhile, in order."""
    line = Line()
    line.send(1, 2, 3)
    line.manager.acknowledged(1)
    line.manager.received(7)
    line.manager.detach()
    line.sent()
    line.send(4)
    line.time.advance(100)
    assert line.writes == [] and line.dead == []
    line.manager.attach(line.writes.append, confirmed=2, received=7)
    assert line.sent() == pings(3, 4) and line.manager.acked == 2 and line.manager.seen == 7
    line.manager.acknowledged(4)
    assert line.manager.empty


def test_manager_reattach_keeps_the_order_at_the_window():
    """With more than a window of frames each comes out exactly once in order, over ten connections (mosquitto#898)."""
    line = Line()
    line.send(*range(1, 201))
    for done in range(10):
        line.sent()
        line.manager.detach()
        line.manager.attach(line.writes.append, confirmed=done)
        assert line.sent() == pings(*range(done + 1, done + 1 + WINDOW))
    got = []
    for upto in (73, 137, 200):
        line.manager.acknowledged(upto)
        got += line.sent()
    assert got == pings(*range(74, 201)) and line.manager.empty


def test_manager_reattach_retries_start_anew():
    """A new connection has its own 2 s and its own three retries."""
    line = Line()
    line.send(1)
    line.time.advance(7)
    line.manager.detach()
    line.time.advance(60)
    line.sent()
    line.manager.attach(line.writes.append)
    line.time.advance(7.9)
    assert line.sent() == pings(1, 1, 1, 1) and line.dead == []
    line.time.advance(0.3)
    assert line.dead


def test_manager_attach_confirmed_by_an_earlier_one():
    """The peer may confirm ids of an earlier manager of the session; ids go on above them."""
    line = Line(attach=False)
    line.manager.attach(line.writes.append, confirmed=50)
    line.manager.acknowledged(50)
    line.send(51)
    assert line.sent() == pings(51) and line.manager.acked == 50
    with pytest.raises(FrameError):
        line.manager.acknowledged(52)


def test_manager_detach_drops_the_late_ack():
    """A late ACK belongs to its connection: it is not written to the next, whose welcome says it anyway."""
    line = Line()
    line.manager.received(1)
    line.manager.detach()
    line.manager.attach(line.writes.append, received=1)
    line.time.advance(1)
    assert line.sent() == []


def test_manager_full_without_connection():
    """A client that writes on without a connection is told when its queue is full."""
    line = Line(attach=False)
    line.manager.send(ping(*range(1, QUEUE_FRAMES + 1)))
    with pytest.raises(queue.Full):
        line.send(QUEUE_FRAMES + 1)
    assert line.manager.waiting == QUEUE_FRAMES


def test_manager_close():
    """After close() nothing is kept, written or rung, and attach() does not bring it back; twice is as good as once."""
    line = Line()
    line.send(*range(1, 100))
    line.sent()
    line.manager.close()
    line.manager.close()
    assert line.manager.empty
    line.manager.attach(line.writes.append, received=5)
    line.manager.send_bare(Ack(1).encode())
    line.manager.acknowledge(5)
    line.send(100)
    line.time.advance(100)
    assert line.writes == [] and line.dead == line.idle == [] and line.time.armed == []


def test_manager_close_while_it_is_attached(monkeypatch):
    """The sequencer may attach while the connection's thread closes: whichever comes first, nobody writes afterwards."""
    line = Line()
    detach = line.manager.detach

    def slow_detach(manager):
        detach()
        manager.attach(line.writes.append)
    monkeypatch.setattr(MessageManager, "detach", slow_detach)
    line.manager.close()
    line.writes.clear()
    line.send(1)
    line.manager.send_bare(Ack(1).encode())
    assert line.writes == []


# --- MessageSocket ---

@pytest.fixture
def pair():
    """A MessageSocket and the plain socket at its other end. TCP, as a MessageSocket sets options that others lack."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        ours = socket.create_connection(listener.getsockname(), timeout=PATIENCE)
        theirs, _ = listener.accept()
    ours.settimeout(None)
    theirs.settimeout(PATIENCE)
    wire = MessageSocket(ours)
    yield wire, theirs
    wire.close()
    theirs.close()


def run(function):
    """Run `function` in a thread and return it with the queue of its result or ConnectionClosed."""
    result = queue.Queue()

    def body():
        try:
            result.put(function())
        except ConnectionClosed as error:
            result.put(error)
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread, result


def read_all(sock):
    data = b""
    while True:
        piece = sock.recv(65536)
        if not piece:
            return data
        data += piece


def test_socket_read_and_write(pair):
    """Bytes go both ways; a read with a time-out that nothing ends returns b""."""
    wire, peer = pair
    wire.write(b"there")
    peer.sendall(b"back")
    assert (peer.recv(100), wire.read()) == (b"there", b"back")
    assert wire.read(0) == b""


def test_socket_read_grows(pair):
    """A read that came back full is followed by a bigger one."""
    wire, peer = pair
    peer.sendall(b"x" * 20_000)
    peer.shutdown(socket.SHUT_WR)
    sizes = []
    with pytest.raises(ConnectionClosed):
        while True:
            sizes.append(len(wire.read()))
    assert sum(sizes) == 20_000 and len(sizes) < 20_000 / chatproto.READ_SIZE


def test_socket_write_never_blocks(pair):
    """Against a peer that does not read, writes return, and in the end cut the connection instead of growing for ever."""
    wire, peer = pair
    chunk = bytes(range(256)) * 256
    thread, _ = run(lambda: [wire.write(chunk) for _ in range(400)])
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert len(wire._unsent) <= wire.UNSENT + 2 * len(chunk)
    with pytest.raises(ConnectionClosed):
        wire.read()
    got = read_all(peer)
    assert got == (chunk * 400)[:len(got)] and len(got) < 400 * len(chunk)


def test_socket_unsent_goes_first(pair):
    """What the kernel did not take at once is sent before anything newer, without a gap or a repetition."""
    wire, peer = pair
    expected = bytearray()
    number = 0
    while not wire._unsent:
        chunk = b"%07d\n" % number * 4096
        wire.write(chunk)
        expected += chunk
        number += 1
        assert number < 10_000, "this kernel takes everything"
    wire.write(b"tail")
    expected += b"tail"
    got = bytearray()
    while len(got) < len(expected):
        wire.write(b"")
        got += peer.recv(65536)
    assert got == expected and wire._unsent == b""


def test_socket_cut_wakes_a_blocked_read(pair):
    """cut() from another thread ends a read that waits."""
    wire, peer = pair
    about_to_read = threading.Event()

    def read():
        about_to_read.set()
        return wire.read()
    thread, result = run(read)
    assert about_to_read.wait(PATIENCE)
    wire.cut()
    thread.join(PATIENCE)
    assert not thread.is_alive() and isinstance(result.get_nowait(), ConnectionClosed)
    assert peer.recv(1) == b""


def test_socket_finish(pair):
    """After finish() the peer reads all that was written and then the end, and we still read what it says."""
    wire, peer = pair
    wire.write(b"last words")
    wire.finish()
    assert read_all(peer) == b"last words"
    peer.sendall(b"bye")
    assert wire.read() == b"bye"


def test_socket_end_of_the_peer(pair):
    """The peer's end is ConnectionClosed with a reason, not an OSError and not b""."""
    wire, peer = pair
    peer.close()
    with pytest.raises(ConnectionClosed) as caught:
        wire.read()
    assert str(caught.value)


def test_socket_close_then_cut(pair):
    """Late calls on a closed socket do no harm, and reading it is ConnectionClosed, with a time-out and without."""
    wire, peer = pair
    wire.close()
    wire.cut()
    wire.finish()
    wire.close()
    wire.write(b"nobody")
    for timeout in (None, 1):
        with pytest.raises(ConnectionClosed):
            wire.read(timeout)
    assert peer.recv(1) == b""


def test_socket_write_after_reset(pair):
    """Writes to a peer that is gone raise nothing; the reader hears of it."""
    wire, peer = pair
    peer.close()
    for _ in range(100):
        wire.write(b"x" * 1000)
    with pytest.raises(ConnectionClosed):
        while True:
            wire.read()


def test_socket_concurrent_writers(pair):
    """Frames of four threads that share a manager are never torn, and each thread's keep their order."""
    wire, peer = pair
    wire._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)       # so that the kernel takes some by half
    manager = MessageManager(make_alarm()[1], lambda: None, lambda: None)
    manager.attach(wire.write)
    names = "abcd"

    def say(name):
        for number in range(1, 101):
            manager.send_bare(Chat(number, name, name * (number * 7 % 500 + 1), 1.0).encode())
    threads = [threading.Thread(target=say, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    decoder = FrameDecoder(FROM_SERVER)
    got = []
    while len(got) < 400:
        wire.write(b"")
        got += decoder.feed(peer.recv(65536))
    for name in names:
        assert [(m.id, m.text) for m in got if m.sender == name] == [(n, name * (n * 7 % 500 + 1)) for n in range(1, 101)]


def test_socket_hung_up():
    """A peer has hung up when it has ended the connection, on Linux even while something of what it said is left to read."""
    ours, theirs = socket.socketpair()
    wire = MessageSocket(ours)
    assert not wire.hung_up()
    theirs.sendall(b"x")
    assert not wire.hung_up()
    theirs.close()
    assert wire.hung_up() == sys.platform.startswith("linux")
    assert wire.read() == b"x"
    assert wire.hung_up()
    wire.close()
    assert wire.hung_up()
