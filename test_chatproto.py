"""Tests of chatproto: bytes in, messages out.

NOT_FRAMES, INVALID and INVALID_JOINS are the malformed lines; the end-to-end tests in tests/ throw
the same ones at a real server. Of chatproto's other parts there is a file each: names and texts,
alarm, socket, the log (test_log_rules.py), and ACKs and retries.
"""

import dataclasses
import json
import os
import subprocess
import sys
import threading

import pytest

import chatproto
from chatproto import (FROM_CLIENT, FROM_SERVER, INSTRUCTIONS, LONE_ACK, MAX_DEPTH, MAX_LINE,
                       MAX_TEXT, Ack, Booted, Chat, Error, FrameDecoder, FrameError, Heard,
                       Inbox, Invalid, Join, Joined, Leave, Left, Motd, Ping, Recall, Recalled,
                       Removed, Rename, Renamed, Rules, Say, Unknown, Welcome, decode)

# Seconds until a wait that should have ended fails its test.
PATIENCE = 30


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
    (FROM_CLIENT, Recall(13, 100, 5, "two words")),
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
    (FROM_SERVER,
     Recalled(4, (Chat(3, "Ann", "\"hi\"\n", 1.5, 2), Chat(5, "Bob", "\u00fc", 2, None, "Ann")),
              3)),
    (FROM_SERVER, Recalled(4, (), 7, "\"two\" w\u00f6rds")),
    (FROM_SERVER, Motd(5, "be nice")),
    (FROM_SERVER, Motd(6)),
    (FROM_SERVER, Rules(7)),
    (FROM_SERVER, Rules(8, "host", False, 2.5, "Teacher", 1_000_000)),
    (FROM_SERVER, Removed(9, 3)),
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
    assert Chat(7, "Ann", "hi",
                1.5).encode() == b'{"type":"chat","id":7,"from":"Ann","text":"hi","at":1.5}\n'


def test_message_is_immutable():
    """A message that many threads share cannot be changed."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Say(7, "hi").text = "ho"


def test_message_any_order_and_spacing():
    """Keys come in any order, with any spacing, and unknown fields are ignored."""
    assert feed(b' { "text" : "hi" ,\t"colour":[{"r":1}],"id" :7, "type":"chat"} \n') == [
        Say(7, "hi")]


def test_message_id_of_bare_frame_ignored():
    """An id that is given to a bare frame means nothing, whatever it is."""
    assert feed(b'{"type":"join","id":-3,"name":"Ann"}\n') == [Join("Ann")]
    assert feed(b'{"type":"heard","id":"x","about":1,"count":1,"of":2}\n',
                FROM_SERVER) == [Heard(1, 1, 2)]


@pytest.mark.parametrize("id", [1, 9, 10**14, 10**15 - 1, 10**15, 2**53 - 1])
@pytest.mark.parametrize("form",
                         ['{"type":"ack","id":%d}', '{"type":"ack","id":%d}\r',
                          '{"id": %d, "type": "ack"}'])
def test_message_ack_forms(id, form):
    """An ACK is the same in its compact form, which is read in a faster way, and in any other."""
    line = (form % id).encode() + b"\n"
    assert feed(line) == [Ack(id)]
    found = LONE_ACK.fullmatch(line)
    assert found is None or int(found[1]) == id


@pytest.mark.parametrize("line", [
    b'{"type":"ack","id":0}', b'{"type":"ack","id":01}', b'{"type":"ack","id":1.0}',
    b'{"type":"ack","id":-1}', b'{"type":"ack","id":1}x', b'{"type":"ack","id":1}\r\r',
    b'{"type":"ack","id":1}\n', b'{"type":"ack","id":' + b"9" * 16 + b"}"])
def test_message_ack_that_is_read_slowly(line):
    """What the faster way would take for an ACK is one; whatever else is left to the decoder."""
    assert LONE_ACK.fullmatch(line + b"\n") is None


def test_message_ack_that_is_not_whole():
    """Its line end may still come."""
    assert LONE_ACK.fullmatch(b'{"type":"ack","id":1}') is None


def test_message_null_is_absent():
    """An optional field that is null is as good as left out."""
    assert feed(b'{"type":"chat","id":1,"text":"a","to":null}\n') == [Say(1, "a")]


@pytest.mark.parametrize("line, id",
                         [(b'{"type":"dance","id":4,"text":7}', 4), (b'{"type":"dance"}', 0),
                          (b'{"type":"","id":2}', 2),
                          (b'{"type":"dance","id":-1}', 0), (b'{"type":"welcome","id":3}', 3)])
def test_message_unknown_type(line, id):
    """A type that is not in the list of that direction is not an error; its id is kept for the
    ACK."""
    (message,) = feed(line + b"\n")
    assert type(message) is Unknown and message.id == id


# --- Framing ---

STREAM = [Say(1, "plain"), Say(2, "a } and a { and a \n newline\ttab"),
          Say(3, "\U0001f600 \u00e4 \u2028"),
          Ack(9), Ping(4), Say(5, '"quotes" \\ and \\n'), Join("J\u00fcrgen")]
STREAM_BYTES = b"".join(message.encode()
                        for message in STREAM[:4]) + b'{"type":"ping","id":4}\r\n' + \
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


@pytest.mark.parametrize("text", ["}", "{}}{", "a\nb\n", '{"type":"ack","id":1}\n{"type":"ack"}',
                                  "\U0001f469\u200d\U0001f680",
                                  "\U00020000", "a\u2028b", "\ttab", '"\\', "\u202e", "[" * 8000])
def test_decoder_text_survives(text):
    """Braces, line ends, astral characters and whatever else a text may hold come out as they went
    in."""
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
    """While a message is out, `line` is the line that it came in, put together from its pieces,
    without its LF."""
    decoder = FrameDecoder(FROM_CLIENT)
    list(decoder.feed(b'{"type":"pi'))
    assert [(decoder.line, message)
            for message in decoder.feed(b'ng","id":1}\n{"type":"leave","id":2}\n')] == [
        (b'{"type":"ping","id":1}', Ping(1)), (b'{"type":"leave","id":2}', Leave(2))]


def test_decoder_good_before_bad():
    """The frames before a broken line are delivered; then comes the error."""
    messages = FrameDecoder(FROM_CLIENT).feed(Ping(1).encode() + Ping(2).encode() + b"nonsense\n"
                                              + Ping(3).encode())
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
    assert [message for at in range(0, len(data), piece)
            for message in decoder.feed(data[at:at + piece])] == [Ping(1)]


@pytest.mark.parametrize("data", [padded(MAX_LINE + 1) + b"\n", padded(MAX_LINE + 1) + b"\r\n",
                                  b"{" + b" " * (1 << 20)], ids=["lf", "crlf", "endless"])
@pytest.mark.parametrize("piece", [1_000, 4 << 20])
def test_decoder_line_too_long(data, piece):
    """One byte more is too long, and a peer that never ends its line is refused before it has
    filled the memory."""
    decoder = FrameDecoder(FROM_CLIENT)
    fed = 0
    with pytest.raises(FrameError) as caught:
        for fed in range(0, len(data), piece):
            list(decoder.feed(data[fed:fed + piece]))
    assert caught.value.code == "too-long"
    assert fed <= MAX_LINE + 2


# A ClientHello's first bytes, no line end.
TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(32, 64))
HTTP_GET = b"GET / HTTP/1.1"
GREETINGS = [TLS_HELLO, HTTP_GET, b"POST /x HTTP/1.1\r\nHost: a\r\n\r\n", b"SSH-2.0-x", b"\x00",
             b"[", b'"', b"\xef\xbb\xbf{"]


@pytest.mark.parametrize("greeting", GREETINGS)
def test_decoder_foreign_greeting(greeting):
    """What cannot become a frame is refused at its first bytes: its sender waits for us and will
    end no line."""
    with pytest.raises(FrameError) as caught:
        feed(greeting)
    assert caught.value.code == "bad-frame"


def test_decoder_lines_in_portions():
    """With `most` so many lines come at once, in order, and the others with the next calls."""
    decoder = FrameDecoder(FROM_CLIENT)
    data = b"".join(b"%d\n" % number for number in range(10))
    assert decoder.lines(data + b"ha", 4) == [b"0", b"1", b"2", b"3"] and decoder.has_more
    decoder.check()
    assert decoder.lines(b"lf\n", 4) == [b"4", b"5", b"6", b"7"] and decoder.has_more
    assert decoder.lines(b"", 4) == [b"8", b"9", b"half"] and not decoder.has_more
    assert not decoder.begun and decoder.lines(b"", 4) == []


def test_decoder_lines_that_are_exactly_so_many():
    """has_more may promise a line where there is none; then none comes."""
    decoder = FrameDecoder(FROM_CLIENT)
    assert decoder.lines(b"a\nb\n", 2) == [b"a", b"b"]
    assert decoder.has_more and not decoder.begun
    assert decoder.lines(b"", 2) == [] and not decoder.has_more


@pytest.mark.parametrize("rest, code", [
    (b"x", "bad-frame"), (b'{"type"', None), (b"", None), (b"{" + b" " * MAX_LINE, None),
    (b"{" + b" " * (MAX_LINE + 1), "too-long")], ids=["x", "begun", "empty", "longest", "longer"])
def test_decoder_check(rest, code):
    """What waits for its line end is looked at; but not while whole lines wait before it."""
    decoder = FrameDecoder(FROM_CLIENT)
    decoder.lines(b"{}\n{}\n" + rest, 1)
    decoder.check()
    decoder.lines(b"")
    if code is None:
        decoder.check()
    else:
        with pytest.raises(FrameError) as caught:
            decoder.check()
        assert caught.value.code == code


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
    ("empty", ""), ("25 characters", "a" * 25), ("space", "Ann B"), ("leading space", " Ann"),
    ("no-break space", "Ann\u00a0B"),
    ("ideographic space", "Ann\u3000B"), ("newline", "Ann\n"), ("NUL", "Ann\x00"),
    ("escape", "\x1b[31mAnn"), ("tab", "A\tB"),
    ("right-to-left override", "Ann\u202e"), ("left-to-right mark", "Ann\u200e"),
    ("isolate", "\u2066Ann\u2069"),
    ("Arabic letter mark", "Ann\u061c"), ("zero width space", "An\u200bn"),
    ("zero width joiner", "An\u200dn"),
    ("zero width non-joiner", "An\u200cn"), ("word joiner", "An\u2060n"),
    ("BOM inside", "Ann\ufeff"),
    ("soft hyphen", "An\u00adn"),
    ("variation selector", "Ann\ufe0f"), ("variation selector 256", "Ann\U000e01ef"),
    ("Mongolian selector", "Ann\u180b"),
    ("Hangul filler", "\u3164"), ("halfwidth filler", "Ann\uffa0"),
    ("grapheme joiner", "A\u034fnn"),
    ("Khmer inherent", "A\u17b4"),
    ("tag", "Ann\U000e0041"), ("Braille blank", "\u2800"), ("emoji", "\U0001f600"), ("at", "a@b"),
    ("slash", "a/b"),
    ("comma", "a,b"), ("quote", 'a"b'), ("less than", "<b>"), ("superscript two", "x\u00b2"),
    ("Roman numeral", "\u2167"),
    ("Latin and Cyrillic", "\u0430nn"), ("Latin and Greek", "Ann\u03bf"),
    ("Greek and Cyrillic", "\u0391\u0411"),
    ("micro sign in Latin", "Ann\u00b5"), ("server", "server"), ("Server", "Server"),
    ("SERVER", "SERVER"),
    ("fullwidth SERVER", "\uff33\uff25\uff32\uff36\uff25\uff32"),
    ("bold server", "\U0001d42c\U0001d41e\U0001d42b\U0001d42f\U0001d41e\U0001d42b"),
    ("long s server", "\u017ferver"), ("folds to a space", "\u00b4"),
    ("ligature with spaces", "\ufdfa"),
    ("lone surrogate", "a\ud800"), ("digits", "1234"), ("Arabic digits", "\u0661\u0662\u0663"),
    ("dots", "..."), ("marks alone", "\u0301\u0301"), ("Lisu s", "\ua4e2erver"),
    ("Armenian s", "\u054ferver"),
    ("Canadian r", "SERVE\u1587"), ("small capitals", "\ua731\u1d07\u0280\u1d20\u1d07\u0280"),
    ("Server.", "Server."), ("s-e-r-v-e-r", "s_e-r.ver"), ("5erver", "5erver"),
    ("s3rver", "s3rver"),
    ("Armenian o", "b\u0585b"), ("modifier colon", "bob\u02d0"),
]

BAD_TEXTS = [
    ("empty", ""), ("8,193 characters", "x" * (MAX_TEXT + 1)), ("NUL", "a\x00b"),
    ("escape", "a\x1b[31mb"), ("CR", "a\rb"),
    ("bell", "\x07"), ("backspace", "a\x08"), ("vertical tab", "a\x0bb"), ("form feed", "a\x0c"),
    ("delete", "a\x7f"),
    ("C1", "a\x9bb"),
    ("next line", "a\x85b"), ("lone high surrogate", "a\ud800"), ("lone low surrogate", "\udfffa"),
    ("swapped surrogates", "\udc00\ud800"),
]

# label, fields besides type and id, error code, type: frames with wrong fields; acknowledged, and
# refused by their id
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
    assert str(caught.value)


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
    """A frame with wrong fields keeps its id, so that it can be acknowledged and refused, and harms
    nothing after it."""
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
    b'{"type":"chat","id":1,"from":"a","text":"x","at":"now"}',
    b'{"type":"chat","id":1,"from":"a","text":"x","at":1e999}',
    b'{"type":"chat","id":1,"from":"a","text":"x","at":true}',
    b'{"type":"chat","id":1,"from":"a","text":"x"}',
    b'{"type":"chat","id":1,"text":"x","at":1}', b'{"type":"joined","id":1,"at":1}',
    b'{"type":"left","id":1,"name":[],"at":1}',
    b'{"type":"renamed","id":1,"name":"a","at":1}', b'{"type":"error","id":1}',
    b'{"type":"booted","id":1,"reason":7}',
    b'{"type":"chat","id":1,"from":"a","text":"x","at":1,"cid":"1"}',
])
def test_malformed_from_server(line):
    """A client treats a server's wrong fields as a server treats a client's."""
    (invalid,) = feed(line + b"\n", FROM_SERVER)
    assert isinstance(invalid, Invalid) and invalid.id == 1


@pytest.mark.parametrize("fields", [
    {"name": "a", "session": "s", "epoch": "e", "users": "Ann", "last": 1},
    {"name": "a", "session": "s", "epoch": "e",
"last": 1},
    {"name": "a", "session": "s", "epoch": "e", "users": [1], "last": 1},
    {"name": "a", "session": "s", "epoch": "e",
"users": [], "last": -1},
    {"name": "a", "session": "s", "epoch": 1, "users": [], "last": 1},
    {"name": "a", "session": "s", "epoch": "e",
"users": [], "last": True},
    {"name": "a", "session": "s", "epoch": "e", "users": [], "last": 1, "resumed": 1},
])
def test_malformed_welcome(fields):
    """A welcome with wrong fields is Invalid, not half a welcome."""
    (invalid,) = feed(frame("welcome", fields), FROM_SERVER)
    assert isinstance(invalid, Invalid) and invalid.kind == "welcome"


def test_malformed_time_beyond_floats():
    """A whole number that no float can hold is a wrong field like any other, not a crash."""
    (invalid,) = feed(b'{"type":"joined","id":1,"name":"a","at":1' + b"0" * 400 + b"}\n",
                      FROM_SERVER)
    assert isinstance(invalid, Invalid) and invalid.error.code == "bad-frame"


def test_depth_in_a_small_stack():
    """65,000 brackets do not crash a thread whose stack is 256 KiB, wherever in the line they
    are."""
    caught = []

    def attack():
        for line in (b"[" * 65_000, b'{"a":' * 10_000, chat(more=',"x":' + "[" * 65_000),
                     b'{"x":"\\"",' + b'"a":[' * 10_000):
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


@pytest.mark.parametrize("text",
                         ["[" * MAX_TEXT, "{[" * 4096, '"[' * 4000, "\\[" * 4000,
                          "]" * 100 + "[" * 100])
def test_depth_brackets_in_text(text):
    """Brackets inside a string are text, however many, with quotes and backslashes between them."""
    assert feed(Say(1, text).encode()) == [Say(1, text)]


def test_depth_wide_is_not_deep():
    """Many brackets side by side are fine, and 31 lists deep inside a frame is the limit."""
    assert feed(chat(more=',"x":[' + ",".join(["{}"] * 1000) + "]") + b"\n") == [Say(1, "x")]
    assert feed(nested(31) + b"\n") == [Say(1, "x")]


@pytest.mark.parametrize("depth, deep", [(MAX_DEPTH, False), (MAX_DEPTH + 1, True)])
@pytest.mark.parametrize("left, right", [
    (b"[", b"]"), (b'{"a":', b"}"), (b'[1,"]",', b"]"), (b'["\\\\",', b"]"), (b'["\\"[",', b"]")])
def test_depth_limit(depth, deep, left, right):
    """Exactly MAX_DEPTH brackets within brackets are let through, of both kinds, with strings
    among them that hold brackets, quotes and backslashes."""
    assert chatproto._too_deep(left * depth + b"0" + right * depth) is deep


def test_depth_of_both_kinds():
    """Lists in objects in lists are as deep as lists in lists."""
    half = MAX_DEPTH // 2
    assert not chatproto._too_deep(b'[{"a":' * half + b"0" + b"}]" * half)
    assert chatproto._too_deep(b'[[{"a":' + b'[{"a":' * (half - 1) + b"0" + b"}]" * half + b"]")


def test_depth_of_what_is_unbalanced():
    """Brackets that end nothing are deep, and many side by side are not."""
    for line in (b"]" * 100 + b"[" * 100, b"[" * 40 + b'"' + b"]" * 40):
        assert chatproto._too_deep(line)
    assert not chatproto._too_deep(b"[]" * 30_000) and not chatproto._too_deep(b'"' + b"[" * 100)


def test_work_is_linear():
    """The checks of what anybody may send take seconds for megabytes; were they quadratic, or
    worse, they would take hours."""
    program = r"""if True:
        from chatproto import _too_deep, clean_text, escape
        many = 100_000
        for line in (b"[", b"[]", b'["', b"[[]", b"[[]]", b'"[', b'\\"[', b"[}", b"{[]"):
            _too_deep(line * many)
        _too_deep(b"[" * many + b"]" * many)
        for text in ("\u200b", "\u0301", "\u2066", "\u2069", "\u2066\u2069", "\u200d", "x\u200d",
                     "\u0628\u200c", "\u200f", "\u05d0\u200f", "\ufe0f", "\x1b[", "\x1b]",
                     "\x1b]x\n", "\ud800", "\u1161", "a" + 9 * "\u0301"):
            escape(text * many)
            clean_text(text * many)
    """
    subprocess.run([sys.executable, "-c", program], cwd=os.path.dirname(chatproto.__file__),
                   check=True, timeout=PATIENCE)


# --- Inbox ---

def test_inbox_takes_all_that_waits():
    """Events come in their order, as many as wait; take() waits for the first one only."""
    inbox = Inbox(10)
    for number in range(3):
        inbox.post(print, number)
    assert inbox.backlog == 3
    assert inbox.take() == [(print, (0,)), (print, (1,)), (print, (2,))]
    assert inbox.take(0.001) == [] and inbox.backlog == 0


def test_inbox_of_the_thread_that_takes():
    """What the taking thread posts never waits for room, and comes first with the next take()."""
    inbox = Inbox(2)
    inbox.post(print, "other 1")
    inbox.take()
    inbox._events.put((print, ("other 2",)))
    inbox._events.put((print, ("other 3",)))
    for number in range(100):
        inbox.post(print, number)
    assert [arguments[0] for _, arguments in inbox.take()] == list(range(100))
    assert [arguments[0] for _, arguments in inbox.take()] == ["other 2", "other 3"]


def in_thread(function):
    """Run `function` in a thread; return the thread, and a list for its result or error."""
    result = []

    def body():
        try:
            result.append(function())
        except Exception as error:
            result.append(error)
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread, result


def test_inbox_that_is_full():
    """Whoever posts waits until there is room, and its event is not lost."""
    inbox = Inbox(2)
    inbox.post(print, 1)
    inbox.post(print, 2)
    thread, _ = in_thread(lambda: inbox.post(print, 3))
    assert inbox.take()[:2] == [(print, (1,)), (print, (2,))]
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_inbox_close_wakes():
    """close() ends the wait of the thread that takes and of those that post; afterwards nothing is
    taken in."""
    inbox = Inbox(1)
    thread, result = in_thread(inbox.take)
    inbox.close()
    thread.join(PATIENCE)
    assert not thread.is_alive() and [method() for method, _ in result[0]] in ([0], [])
    inbox.post(print, 1)
    assert inbox.is_closed and inbox.wait_closed(PATIENCE)
    assert inbox.take(0.001) in ([], [(int, ())])
    full = Inbox(1)
    full.post(print, 1)
    thread, _ = in_thread(lambda: full.post(print, 2))
    full.close()
    full.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_inbox_ask():
    """The result of a method comes back to the asker, and so does what it raises."""
    inbox = Inbox(10)

    def fails():
        raise LookupError("nobody")
    for method, wanted in ((lambda: 7, 7), (fails, "nobody")):
        thread, result = in_thread(lambda: inbox.ask(method))
        for event, arguments in inbox.take(PATIENCE):
            event(*arguments)
        thread.join(PATIENCE)
        assert result == [7] if wanted == 7 else str(result[0]) == wanted
