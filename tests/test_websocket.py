"""The WebSocket by frame: RFC 6455 as the server has to keep it, over the decoder alone, over the
echo, and in the chat."""

import socket
import subprocess
import sys

import pytest

import chatproto
import chat_web
import harness
from chat_web import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, MessageDecoder, WebSocketError
from test_chatproto import cases
from webclient import WebClient, masked

LIMIT = 1000


def feed(data, piece=None, limit=LIMIT, binary=True):
    """What a decoder makes of `data`, in pieces of that size: events, and the close code of what
    was wrong (None: nothing)."""
    decoder, events = MessageDecoder(), []
    decoder.max_message, decoder.binary, decoder.max_fragments = limit, binary, 0
    try:
        for start in range(0, len(data), piece or len(data)):
            came = decoder.feed(data[start:start + (piece or len(data))])
            events += [event for event in came if event[0] != CONTINUATION]
    except WebSocketError as error:
        return events, error.status
    return events, None


# --- The decoder ---

@pytest.mark.parametrize("piece", [None, 1, 2, 3, 7])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 124, 125, 126, 127, 128, 255, 256, 1000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_message_of_every_length(opcode, size, piece):
    """A message of any length comes out as it went in, however it is torn."""
    payload = bytes(97 + place % 26 for place in range(size))
    assert feed(masked(opcode, payload), piece) == ([(opcode, payload)], None)


@pytest.mark.parametrize("size, form",
                         [(65_535, 16), (65_536, 64), (70_000, 64), (5, 16), (5, 64), (300, 64)])
def test_message_of_every_length_form(size, form):
    """Each of the three forms of the length is read, a longer one than needed, too."""
    assert feed(masked(TEXT, b"x" * size, form=form), limit=70_000) == ([(TEXT, b"x" * size)], None)


def test_length_of_64_bits():
    """The highest bit of a long length is 0, and one of 63 bits is refused by its header alone."""
    head = b"\x82\xff" + (1 << 63).to_bytes(8, "big") + b"mask"
    assert feed(head) == ([], 1002)
    assert feed(masked(BINARY, length=(1 << 63) - 1)) == ([], 1009)


@pytest.mark.parametrize("fin", [True, False])
@pytest.mark.parametrize("opcode", range(16))
def test_opcode(opcode, fin):
    """Every opcode: data, control, and the reserved ones; control frames are not fragmented."""
    events, status = feed(masked(opcode, b"ab", fin=fin))
    if opcode in (TEXT, BINARY):
        assert (events, status) == ([(opcode, b"ab")] if fin else [], None)
    elif opcode in (CLOSE, PING, PONG) and fin:
        assert (events, status) == ([(opcode, b"ab")], None)
    else:
        assert (events, status) == ([], 1002)


@pytest.mark.parametrize("rsv", range(1, 8))
@pytest.mark.parametrize("opcode", [CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG])
def test_reserved_bits(opcode, rsv):
    """No extension is spoken: a reserved bit is an error, known by the header's first two bytes."""
    assert feed(masked(opcode, b"ab", rsv=rsv)[:2]) == ([], 1002)


@pytest.mark.parametrize("opcode", [TEXT, BINARY, CLOSE, PING, PONG])
def test_frame_without_mask(opcode):
    """A client's frame that is not masked is an error."""
    assert feed(masked(opcode, b"ab", mask=False)) == ([], 1002)


@pytest.mark.parametrize("key", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\1\2\3\4", b"\x80\0\0\0"])
@pytest.mark.parametrize("piece", [None, 1, 3, 5])
def test_mask(key, piece):
    """Any mask is taken off, also when the frame comes in pieces that do not fit it."""
    payload = bytes(range(256)) * 2
    assert feed(masked(BINARY, payload, key=key), piece) == ([(BINARY, payload)], None)


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127])
def test_control_frame_of_125_and_126_bytes(opcode, size):
    """A control frame has at most 125 bytes: more is known by its header."""
    data = masked(opcode, b"x" * size)
    expected = ([(opcode, b"x" * size)], None) if size <= 125 else ([], 1002)
    assert feed(data) == expected and feed(data, 1) == expected
    if size > 125:
        assert feed(data[:2]) == expected


@pytest.mark.parametrize("piece", [None, 1, 4])
def test_fragments_with_control_frames_between(piece):
    """Pings, pongs and a close between the fragments come out at once, the message whole at its
    end."""
    data = (masked(TEXT, b"Hal", fin=False) + masked(PING, b"1")
            + masked(CONTINUATION, b"", fin=False) + masked(PONG, b"2")
            + masked(CONTINUATION, b"lo", fin=True) + masked(TEXT, b"x", fin=False) + masked(CLOSE))
    assert feed(data, piece) == ([(PING, b"1"), (PONG, b"2"), (TEXT, b"Hallo"), (CLOSE, b"")], None)


@pytest.mark.parametrize("data, status", cases([
    ("nothing to continue", masked(CONTINUATION, b"x"), 1002),
    ("nothing to continue, not final", masked(CONTINUATION, b"x", fin=False), 1002),
    ("continued after the end", masked(TEXT, b"x") + masked(CONTINUATION, b"x"), 1002),
    ("text within a text", masked(TEXT, b"x", fin=False) + masked(TEXT, b"y"), 1002),
    ("binary within a text", masked(TEXT, b"x", fin=False) + masked(BINARY, b"y"), 1002),
    ("fragments that are too many",
     masked(TEXT, b"x" * 600, fin=False) + masked(CONTINUATION, b"x" * 401), 1009),
    ("too long by one", masked(TEXT, b"x" * (LIMIT + 1)), 1009),
]))
def test_broken_fragments(data, status):
    """What cannot be a fragment here is an error, and so are fragments that are too long
    together."""
    assert feed(data)[1] == status and feed(data, 1)[1] == status


def test_oversize_is_known_by_the_header():
    """Nobody waits for, or keeps, what is too long."""
    assert feed(masked(BINARY, length=LIMIT + 1)) == ([], 1009)


def test_any_number_of_fragments():
    """20,000 fragments of a byte, empty ones among them, are one message."""
    data = masked(BINARY, b"", fin=False) + masked(CONTINUATION, b"x",
                                                   fin=False) * 20_000 + masked(CONTINUATION)
    assert feed(data, 65_536, limit=20_000) == ([(BINARY, b"x" * 20_000)], None)


def test_binary_is_refused_in_the_chat():
    """Where only text is spoken a binary message is refused by its header."""
    assert feed(masked(BINARY, b"x")[:2], binary=False) == ([], 1003)


# --- UTF-8 ---

VALID = ["κόσμε", "\0", "\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff",
         "\ud7ff\ue000\ufdd0\ufffe", "a\u0301\u200d\U0001f9d1"]
INVALID = [b"\x80", b"\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xc3(", b"\xe0\x80\x80", b"\xe0\x9f\xbf",
           b"\xed\xa0\x80", b"\xed\xbf\xbf",
           b"\xf0\x80\x80\x80", b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80",
           b"\xf8\x88\x80\x80\x80", b"\xfe", b"\xff",
           b"\xce\xba\xe1\xbd\xb9\xcf\x83\xed\xa0\x80edited", b"a\xe2\x82", b"\xf0\x9f\x98"]


@pytest.mark.parametrize("text", VALID)
def test_utf8_split_anywhere(text):
    """A valid text may be split within its characters, in two fragments and in pieces of each."""
    payload = text.encode()
    for cut in range(len(payload) + 1):
        data = masked(TEXT, payload[:cut], fin=False) + masked(CONTINUATION, payload[cut:])
        assert feed(data) == feed(data, 1) == ([(TEXT, payload)], None)


@pytest.mark.parametrize("payload", INVALID)
def test_invalid_utf8_split_anywhere(payload):
    """An invalid text ends with 1007, wherever it is split; the same bytes are fine as binary."""
    for cut in range(len(payload) + 1):
        data = masked(TEXT, payload[:cut], fin=False) + masked(CONTINUATION, payload[cut:])
        assert feed(data) == feed(data, 1) == ([], 1007)
    assert feed(masked(BINARY, payload)) == ([(BINARY, payload)], None)


def beginnings():
    """Every valid UTF-8 character (of more than two bytes: some) and what one can begin with."""
    codes = [*range(0x80, 0x800), *range(0x800, 0xD800, 0x40), *range(0xE000, 0x110000, 0x40)]
    chars = [chr(code).encode() for code in codes]
    return {char[:end] for char in chars for end in range(1, len(char) + 1)}


def test_invalid_utf8_is_refused_as_soon_as_it_is_certain():
    """Of all pairs of bytes, those that can begin no character are refused by the byte that makes
    it certain, in the middle of a frame; the others are waited for."""
    possible = beginnings()
    for first in range(0x80, 0x100):
        for second in range(0x80, 0xC0):
            pair = bytes([first, second])
            data = masked(TEXT, pair, length=100, key=b"\0\0\0\0")
            assert feed(data[:-1])[1] == (None if pair[:1] in possible else 1007), pair
            assert feed(data)[1] == (None if pair in possible else 1007), pair


# --- The close ---

@pytest.mark.parametrize("payload, expected", [
    (b"", 0), *[(status.to_bytes(2, "big") + b"why", status) for status in
                (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)],
    (b"\x03\xe8" + "κόσμε".encode(), 1000)])
def test_close_codes_that_may_be_sent(payload, expected):
    """A close has nothing in it, or a code from the list or of an application's own, and a reason
    in UTF-8."""
    assert chat_web.close_status(payload) == expected


@pytest.mark.parametrize("payload, expected", [
    (b"\x03", 1002), *[(status.to_bytes(2, "big"), 1002) for status in
                       (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)],
    (b"\x03\xe8\xff", 1007), (b"\x03\xe8\xce", 1007)])
def test_close_codes_that_may_not_be_sent(payload, expected):
    """Anything else in a close is an error."""
    with pytest.raises(WebSocketError) as caught:
        chat_web.close_status(payload)
    assert caught.value.status == expected


# --- The echo, as a process ---

@pytest.fixture(scope="module")
def echo():
    process = subprocess.Popen([sys.executable, str(harness.ROOT / "tests/echo.py"), "0"],
                               stdout=subprocess.PIPE, text=True)
    yield int(process.stdout.readline().rpartition(":")[2])
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def connect(echo):
    with WebClient(echo, path="/any") as client:
        yield client


def test_echo_of_text_and_binary(connect):
    """Messages come back under their opcode, pings between fragments are answered before the
    message."""
    connect.send_bytes(masked(TEXT, b"a") + masked(BINARY, b"\xff") + masked(TEXT, b"b", fin=False)
                       + masked(PING, b"p")
                       + masked(CONTINUATION, b"c") + masked(PING) + masked(PONG, b"not asked for"))
    assert [connect.event() for _ in range(5)] == [(TEXT, b"a"), (BINARY, b"\xff"), (PONG, b"p"),
                                                   (TEXT, b"bc"), (PONG, b"")]


def test_echo_of_16_mebibytes(connect):
    """The largest message comes back whole, and one byte more is too big."""
    payload = b"Roger that. 16!!" * (1 << 20)
    connect.send_bytes(masked(BINARY, payload[:1 << 20], length=1 << 24, key=b"\0\0\0\0")
                       + payload[1 << 20:])
    assert connect.event() == (BINARY, payload)
    connect.send_bytes(masked(BINARY, length=(1 << 24) + 1))
    assert connect.end() == 1009


@pytest.mark.parametrize("payload, status", [(b"", 0), (b"\x03\xe8bye", 1000), (b"\x0f\xa0", 4000),
                                             (b"\x03\xec", 1002), (b"\x03", 1002),
                                             (b"\x03\xe8\xff", 1007)])
def test_echo_of_a_close(connect, payload, status):
    """A close is answered with its code, or with what is wrong about it, and the connection ends;
    nothing comes after it."""
    connect.send_bytes(masked(TEXT, b"first") + masked(CLOSE, payload) + masked(TEXT, b"after")
                       + masked(PING))
    assert connect.event() == (TEXT, b"first")
    opcode, answer = connect.event()
    assert opcode == CLOSE and int.from_bytes(answer[:2], "big") == status
    with pytest.raises(EOFError):
        connect.event()


def test_echo_after_an_error(connect):
    """What came before the error is echoed, then comes the close, and no reset hides it while the
    peer still sends."""
    connect.send_bytes(masked(TEXT, b"first") + masked(TEXT, b"x", rsv=1)
                       + masked(BINARY, b"x" * 300_000))
    assert connect.event() == (TEXT, b"first")
    opcode, answer = connect.event()
    assert opcode == CLOSE and answer[:2] == b"\x03\xea" and answer[2:].decode()
    assert connect.end() is None


# --- In the chat ---

@pytest.fixture
def member(server):
    with WebClient(server.port) as client:
        yield client


_count = iter(range(10**6))


def new_name():
    return f"web{next(_count)}"


def test_chat_over_a_websocket(server, member):
    """A member over a WebSocket and one over a socket hear the same, under the same ids."""
    name = new_name()
    member.join(name)
    with harness.RawClient(server.port) as other:
        other.join(new_name())
        id = member.say("höre, 日本 🧑‍🚀")
        heard = other.recv_until("chat", cid=id)
        assert member.recv_until("chat", cid=id) == heard and heard["from"] == name
        assert member.recv_until("ack")["id"] == id
        other.say("and back\nin two lines")
        assert member.recv_until("chat", text="and back\nin two lines")["id"] == other.recv_until(
            "chat", text="and back\nin two lines")["id"]


def test_frames_behind_the_request(server):
    """What comes in one piece with the request is not lost."""
    with WebClient(server.port,
                   more=masked(TEXT,
                               b'{"type":"join","name":"%s"}' % new_name().encode())) as client:
        assert client.recv()["type"] == "welcome"


def test_line_of_the_limit(server, member):
    """A message may have as many bytes as a line, and not one more; a fragmented one no more
    together."""
    member.join(new_name())
    frame = b'{"type":"ping","id":1,"x":"%s"}'
    member.send_bytes(masked(TEXT, frame % (b"x" * (chatproto.MAX_LINE - len(frame) + 2))))
    assert member.recv_until("ack")["id"] == 1
    member.send_bytes(masked(TEXT, b'{"type":"ping",', fin=False)
                      + masked(CONTINUATION, length=chatproto.MAX_LINE))
    assert member.end() == 1009


@pytest.mark.parametrize("payload",
                         [b"", b"\n", b"hello", b"[]",
                          b'{"type":"ping","id":1}\n{"type":"ping","id":2}',
                          b'{"type":"ping","id":1}\n', b'{"type":"chat","id":1,"text":"a\nb"}'])
def test_message_that_is_no_frame(member, payload):
    """One message is one frame: what is none, or two, is answered with an error and the connection
    ends. (A line end that is only white space is no harm.)"""
    member.join(new_name())
    member.send_bytes(masked(TEXT, payload))
    if payload == b'{"type":"ping","id":1}\n':
        assert member.recv_until("ack")["id"] == 1
    else:
        assert member.recv_until("error")["code"] == "bad-frame"
        assert member.end() == 1000


@pytest.mark.parametrize("data, status", cases([
    ("binary", masked(BINARY, b"{}"), 1003), ("no mask", masked(TEXT, b"{}", mask=False), 1002),
    ("reserved bit", masked(TEXT, b"{}", rsv=4), 1002), ("reserved opcode", masked(3, b"{}"), 1002),
    ("bad UTF-8", masked(TEXT, b'{"type":"\xff'), 1007),
    ("too big", masked(TEXT, length=chatproto.MAX_LINE + 1), 1009),
    ("close", masked(CLOSE, b"\x03\xe9"), 1001),
    ("lines, not frames", b'{"type":"ping","id":1}\n', 1002)]))
def test_end_of_a_member(server, member, data, status):
    """Whatever ends a WebSocket, what it said before is heard, and it can come back for what it
    missed."""
    welcome = member.join(new_name())
    id = member.say("before")
    member.send_bytes(data)
    assert member.end() == status
    with WebClient(server.port) as again:
        back = again.join(member.name, session=welcome["session"], epoch=welcome["epoch"],
                          seen=welcome["last"])
        assert back["resumed"] and back["got"] == id
        assert again.recv_until("chat", cid=id)["text"] == "before"


def test_boot_of_a_websocket(server, member):
    """Last words come as a message, the close after them."""
    welcome = member.join(new_name())
    with WebClient(server.port) as again:
        again.join(member.name, session=welcome["session"], epoch=welcome["epoch"],
                   seen=welcome["last"])
        assert member.recv_until("booted")["reason"]
        assert member.end() == 1000


def test_join_timeout_begins_with_the_websocket(server):
    """A WebSocket that goes without a word leaves nothing behind, and its ping is answered before
    it has joined."""
    with WebClient(server.port) as client:
        client.send_bytes(masked(PING, b"here"))
        assert client.event() == (PONG, b"here")
        client.send_bytes(masked(CLOSE))
        assert client.end() == 0


# --- Parts ---

class SlowWire:
    """A wire with a script of reads; keeps what is written."""

    overhead = 0

    def __init__(self, *script):
        self.script, self.written, self.calls = list(script), [], []

    def read(self, timeout=None):
        if not self.script:
            raise chatproto.ConnectionClosed("over")
        return self.script.pop(0)

    def write(self, data):
        self.written.append(data)

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append(name)


def test_nothing_follows_a_close():
    """Once a close is written nothing else is (RFC 6455, 5.5.1), whoever wants to write."""
    wire = SlowWire(masked(PING, b"x") + masked(CLOSE))
    websocket = chat_web.WebSocket(wire)
    websocket.finish()
    websocket.write(b"data")
    websocket.cut()
    with pytest.raises(chatproto.ConnectionClosed):
        websocket.read()
    assert wire.written == [chat_web.frame(CLOSE, b"\x03\xe8")] and wire.calls == ["finish", "cut"]


def test_messages_before_the_end_are_read():
    """What came in one piece with the close is read first."""
    websocket = chat_web.WebSocket(SlowWire(masked(TEXT, b"{}") + masked(CLOSE)))
    assert websocket.read() == b"{}\n"
    with pytest.raises(chatproto.ConnectionClosed):
        websocket.read()


def test_half_a_socket():
    """A peer that only ends its half gets the answer to what it said before."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(masked(TEXT, b"{}"))
        theirs.shutdown(socket.SHUT_WR)
        websocket = chat_web.WebSocket(chatproto.MessageSocket(ours))
        assert websocket.read() == b"{}\n"
        websocket.write(websocket.wrap(b"[]\n"))
        with pytest.raises(chatproto.ConnectionClosed):
            websocket.read()
        websocket.close()
        assert theirs.recv(100) == b"\x81\x02[]"
