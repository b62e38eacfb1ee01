"""Bad input against a real server: the right error, closed or not, and nobody else notices.

Every test with `connect` has a bystander pair of members: they chat before the bad input and after it, and then the server has to
be alive, with no bug of its own on its stderr. The malformed lines are those of test_chatproto. What a real server would take
seconds or luck to show (time-outs, a full window, an unlucky order of threads) runs on a Room and its Connections with a fake
clock, in the test's own thread: see Desk.
"""

import itertools
import json

import pytest

import harness
import chat_server
from chat_server import JOIN_TIMEOUT, LAST_WORDS
from chatproto import FROM_SERVER, MAX_NAME, MAX_TEXT, QUEUE_FRAMES, WINDOW, Alarm, ConnectionClosed, FrameDecoder, name_key
from test_chatproto import GREETINGS, INVALID, INVALID_JOINS, NOT_FRAMES, FakeTime, cases, frame

_numbers = itertools.count(1)


def new_name(prefix="m"):
    """A name that nobody in this module has had."""
    return f"{prefix}{next(_numbers)}"


# --- Fixtures ---

@pytest.fixture(scope="module")
def server():
    """One server for all: bad input must not have to be cleaned up after."""
    server = harness.start_server("--rate", "0")
    yield server
    server.assert_healthy()
    server.stop()
    text = server.stderr_text()
    assert "Traceback" not in text and "bug" not in text, text


class Others:
    """Two members who have nothing to do with it."""

    def __init__(self, port):
        self.pair = [harness.RawClient(port, auto_ack=True) for _ in range(2)]
        for client in self.pair:
            client.join(new_name("other"))

    def chat(self):
        """Each says something, both hear it, and it is acknowledged."""
        for speaker, listener in (self.pair, self.pair[::-1]):
            text = f"from {speaker.name}, {next(_numbers)}"
            id = speaker.say(text)
            heard = listener.recv_until("chat", text=text)
            assert (heard["from"], heard["cid"]) == (speaker.name, id)
            assert speaker.recv_until("chat", text=text) == heard
            assert speaker.recv_until("ack")["id"] == id

    def heard_from(self, name):
        """The texts that both heard from `name`, each once."""
        self.chat()
        first, second = ({f["id"]: f["text"] for f in client.frames if f["type"] == "chat" and f["from"] == name}
                         for client in self.pair)
        assert first == second
        return list(first.values())

    def told_about(self, name):
        """The frames about `name` being in, out or renamed."""
        self.chat()
        return [f for f in self.pair[0].frames if f["type"] in ("joined", "left",
        "renamed") and name in (f["name"], f.get("to"))]


@pytest.fixture
def others(server):
    """The bystander pair; they chat before and after."""
    others = Others(server.port)
    others.chat()
    yield others
    others.chat()
    server.assert_healthy()
    for client in others.pair:
        client.close()


@pytest.fixture
def connect(server, others):
    """connect() is a connection that has not joined, connect(name) one that has."""
    clients = []

    def connect(name=None, **fields):
        client = harness.RawClient(server.port)
        clients.append(client)
        if name is not None:
            client.join(name, **fields)
        return client
    yield connect
    for client in clients:
        client.close()


@pytest.fixture(scope="module")
def server_without_web():
    with harness.serving("--no-web") as server:
        yield server


@pytest.fixture
def connect_without_web(server_without_web):
    """A connection to a server to which HTTP is as foreign as TLS is. (What it is to the others: test_web.py.)"""
    with harness.RawClient(server_without_web.port) as client:
        yield client


def assert_works(client):
    """The member can still speak: its next message comes back and is acknowledged."""
    text = f"still here {next(_numbers)}"
    id = client.say(text)
    heard = acknowledged = None
    while heard is None or acknowledged is None:        # in either order: the message may wait behind a replay
        frame = client.recv()
        if frame["type"] == "ack" and frame["id"] >= id:
            acknowledged = frame["id"]
        elif frame["type"] == "chat" and frame["text"] == text:
            heard = frame["cid"]
    assert heard == acknowledged == id


def types_of(client):
    return [frame["type"] for frame in client.frames]


# --- What is no frame ends the connection ---

@pytest.mark.parametrize("line, code", cases(NOT_FRAMES))
def test_no_frame_from_a_member(connect, line, code):
    """A member's line that is no frame is answered with a numbered error, never acknowledged, and ends the connection."""
    client = connect(new_name())
    client.send(line + b"\n")
    error = client.recv_until("error")
    assert error["code"] == code and error["text"] and error["id"] > client.welcome["last"] and "about" not in error
    assert client.eof()
    assert "ack" not in types_of(client)


@pytest.mark.parametrize("line, code", [case for case in cases(NOT_FRAMES) if case.id != "HTTP"])
def test_no_frame_from_a_stranger(connect, line, code):
    """The same before the join, with a bare error."""
    client = connect()
    client.send(line + b"\n")
    error = client.recv()
    assert (error["type"], error["code"]) == ("error", code) and "id" not in error
    assert client.eof()
    assert types_of(client) == ["error"]


@pytest.mark.parametrize("greeting", GREETINGS)
def test_greeting_of_another_protocol(connect_without_web, greeting):
    """TLS, HTTP and their like are refused at their first bytes, without waiting for the end of a line."""
    client = connect_without_web
    client.send(greeting)
    assert client.recv()["code"] == "bad-frame"
    assert client.eof()


def test_greeting_of_a_web_page(connect_without_web):
    """A page's POST does not get its body's lines into the chat: the first line ends it."""
    client = connect_without_web
    client.send(b'POST / HTTP/1.1\r\nHost: a\r\n\r\n{"type":"join","name":"web"}\n{"type":"chat","id":1,"text":"x"}\n')
    assert client.recv()["code"] == "bad-frame"
    assert client.eof() and types_of(client) == ["error"]


@pytest.mark.parametrize("joined", [False, True])
def test_endless_line(connect, joined):
    """A mebibyte without a line end is too long before it ends."""
    client = connect(new_name() if joined else None)
    client.send(b"{" + b" " * (1 << 20))
    assert client.recv_until("error")["code"] == "too-long"
    assert client.eof()


def test_no_frame_after_good_ones(connect, others):
    """What came before the broken line is heard and acknowledged, what comes after it is not even read."""
    client = connect(new_name())
    client.send(frame("chat", {"text": "before"}, id=1) + b"nonsense\n" + frame("chat", {"text": "after"}, id=2))
    assert client.eof()
    assert [f["id"] for f in client.frames if f["type"] == "ack"] == [1]
    assert [f["code"] for f in client.frames if f["type"] == "error"] == ["bad-frame"]
    assert others.heard_from(client.name) == ["before"]


def test_no_frame_keeps_the_session(connect, others):
    """Nothing else is touched: the session goes on over the next connection, and nobody was told that anybody left."""
    client = connect(new_name())
    client.send(b"nonsense\n")
    assert client.eof()
    again = connect()
    welcome = again.join(client.name, session=client.welcome["session"], epoch=client.welcome["epoch"], seen=0)
    assert welcome["resumed"] and welcome["name"] == client.name
    assert again.recv_until("error")["code"] == "bad-frame"
    assert_works(again)
    assert [f["type"] for f in others.told_about(client.name)] == ["joined"]


# --- Wrong fields are refused, and nothing is closed ---

@pytest.mark.parametrize("fields, code, type", cases(INVALID))
def test_wrong_fields(connect, others, fields, code, type):
    """A frame with wrong fields gets its error, then its ACK, in this order; the connection goes on and nobody hears of it."""
    client = connect(new_name())
    client.next_id = 4
    client.send(frame(type, fields, id=3))
    assert client.recv_until("ack")["id"] == 3
    (error,) = [f for f in client.frames if f["type"] == "error"]
    assert (error["code"], error["about"]) == (code, 3)
    assert_works(client)
    assert len(others.heard_from(client.name)) == 1
    assert [f["type"] for f in others.told_about(client.name)] == ["joined"]


@pytest.mark.parametrize("fields, code", cases(INVALID_JOINS))
def test_wrong_join(connect, fields, code):
    """A join with wrong fields is refused with a bare error; a better one on the same connection is welcome."""
    client = connect()
    client.send(frame("join", fields))
    error = client.recv()
    assert (error["type"], error["code"]) == ("error", code) and "id" not in error and "about" not in error
    client.join(new_name())
    assert_works(client)


def test_longest_text(connect, others):
    """8,192 characters are heard, astral ones too."""
    client = connect(new_name())
    texts = ["x" * MAX_TEXT, "\U0001f600" * MAX_TEXT, "\n" * MAX_TEXT]
    for text in texts:
        client.say(text)
    assert client.recv_until("chat", text=texts[-1])["cid"] == 3
    assert others.heard_from(client.name) == texts


@pytest.mark.parametrize("to", ["nobody", "", "x" * MAX_TEXT, "server", "Server", "a b", "\x1b[31m", "\u202e"])
def test_private_message_to_nobody(connect, others, to):
    """It is refused with no-such-user before it is acknowledged, and heard by nobody, its speaker included."""
    client = connect(new_name())
    id = client.say("psst", to=to)
    assert client.recv_until("ack")["id"] == id
    (error,) = [f for f in client.frames if f["type"] == "error"]
    assert (error["code"], error["about"]) == ("no-such-user", id)
    assert_works(client)
    assert "psst" not in [f.get("text") for f in client.frames] + others.heard_from(client.name)


# --- Ids ---

def test_id_repeated(connect, others):
    """A frame that comes again under its id is acknowledged again and not heard twice, in one piece or later."""
    client = connect(new_name())
    line = frame("chat", {"text": "once"}, id=1)
    client.send(line + line)
    assert client.recv_until("ack")["id"] == 1
    client.send(line)
    assert client.recv_until("ack")["id"] == 1
    client.next_id = 2
    assert_works(client)
    assert others.heard_from(client.name)[0] == "once" and len(others.heard_from(client.name)) == 2


def test_id_backwards(connect, others):
    """An id below the newest is an old frame: confirmed up to the newest, and not heard."""
    client = connect(new_name())
    client.send(frame("chat", {"text": "ten"}, id=10))
    assert client.recv_until("ack")["id"] == 10
    client.send(frame("chat", {"text": "nine"}, id=9))
    assert client.recv_until("ack")["id"] == 10
    client.send(frame("chat", {"text": "two thousand"}, id=2000))
    assert client.recv_until("ack")["id"] == 2000
    assert others.heard_from(client.name) == ["ten", "two thousand"]


def test_id_repeated_with_wrong_fields(connect):
    """What was refused is refused once: the second copy is only acknowledged."""
    client = connect(new_name())
    for _ in range(2):
        client.send(frame("chat", {"text": ""}, id=1))
        assert client.recv_until("ack")["id"] == 1
    assert types_of(client).count("error") == 1


def test_id_largest(connect, others):
    """2**53 - 1 is an id; after it there are no more, and a repetition is one."""
    client = connect(new_name())
    client.next_id = 2**53 - 1
    assert_works(client)
    client.send(frame("chat", {"text": "again"}, id=2**53 - 1))
    assert client.recv_until("ack")["id"] == 2**53 - 1
    assert len(others.heard_from(client.name)) == 1


# --- ACKs ---

def test_ack_of_what_was_never_sent(connect):
    """It ends the connection: this peer's ACKs mean nothing."""
    client = connect(new_name())
    client.ack(2**53 - 1)
    assert client.recv_until("error")["code"] == "bad-frame"
    assert client.eof()


def test_ack_backwards(connect):
    """An ACK below an earlier one is no news."""
    client = connect(new_name())
    client.say("one")
    newest = client.recv_until("chat", text="one")["id"]
    for id in (newest, newest, newest - 1, 1):
        client.ack(id)
    assert_works(client)
    assert "error" not in types_of(client)


# --- Joining ---

@pytest.mark.parametrize("type, fields, about", [
    ("chat", {"id": 1, "text": "x"}, 1), ("rename", {"id": 2, "name": "x"}, 2), ("leave", {"id": 3}, 3), ("ping", {"id": 4}, 4),
    ("dance", {"id": 5}, 5), ("dance", {}, None), ("ack", {"id": 1}, None), ("chat", {"id": 6, "text": 7}, 6),
])
def test_before_join(connect, others, type, fields, about):
    """Whatever comes before the join gets not-joined and no ACK; its id is still free after the join."""
    client = connect()
    client.send({"type": type, **fields})
    error = client.recv()
    assert (error["type"], error["code"], error.get("about")) == ("error", "not-joined", about) and "id" not in error
    client.join(new_name())
    assert_works(client)
    assert [f["id"] for f in client.frames if f["type"] == "ack"] == [1]
    assert len(others.heard_from(client.name)) == 1


@pytest.mark.parametrize("name", ["same", "another", "bad name"])
def test_join_twice(connect, others, name):
    """A second join is refused and changes nothing: not the name, not the session."""
    client = connect(new_name())
    client.send({"type": "join", "name": client.name if name == "same" else name if name == "bad name" else new_name()})
    error = client.recv_until("error")
    assert error["code"] == ("bad-name" if name == "bad name" else "already-joined") and error["id"]
    assert_works(client)
    assert types_of(client).count("welcome") == 1
    assert [f["type"] for f in others.told_about(client.name)] == ["joined"]


def test_join_twice_in_one_piece(connect):
    """The same when both joins come in one read."""
    client = connect()
    name = new_name()
    client.send(frame("join", {"name": name}) + frame("join", {"name": new_name()}))
    assert client.recv()["name"] == name
    assert client.recv_until("error")["code"] == "already-joined"
    assert_works(client)


def wide(name):
    return "".join(chr(ord(char) + 0xFEE0) for char in name)


@pytest.mark.parametrize("change", [str, str.upper, str.title, wide])
def test_name_taken(connect, others, change):
    """A name that is taken, or that differs from one only in case or width, is refused; the suggestion is accepted."""
    taken = others.pair[0].name
    client = connect()
    client.send({"type": "join", "name": change(taken)})
    error = client.recv()
    assert error["code"] == "name-taken" and "id" not in error
    assert name_key(error["suggestion"]) != name_key(taken)
    assert client.join(error["suggestion"])["name"] == error["suggestion"]
    assert_works(client)


def test_name_taken_longest(connect):
    """The suggestion for a name of 24 characters has no more than 24, and the next suggestion is another one."""
    name = new_name("x" * (MAX_NAME - 4)).ljust(MAX_NAME, "y")[:MAX_NAME]
    connect(name)
    for _ in range(3):
        client = connect()
        client.send({"type": "join", "name": name})
        suggestion = client.recv()["suggestion"]
        assert len(suggestion) <= MAX_NAME
        assert client.join(suggestion)["name"] == suggestion


def test_rename_to_a_taken_name(connect, others):
    """The same for a rename, by its id; the old name stays."""
    client = connect(new_name())
    client.send({"type": "rename", "id": 1, "name": others.pair[1].name.upper()})
    error = client.recv_until("error")
    assert (error["code"], error["about"]) == ("name-taken", 1)
    assert client.recv_until("ack")["id"] == 1
    client.send({"type": "rename", "id": 2, "name": error["suggestion"]})
    assert client.recv_until("renamed")["to"] == error["suggestion"]
    assert [f["type"] for f in others.told_about(client.name)] == ["joined", "renamed"]


@pytest.mark.parametrize("session", ["made up", "", "\x00", "A" * 32, "x" * MAX_TEXT])
@pytest.mark.parametrize("right_epoch", [True, False])
def test_session_made_up(connect, others, session, right_epoch):
    """A session that nobody was given opens no door: its bearer is a newcomer, with a secret of its own."""
    epoch = others.pair[0].welcome["epoch"] if right_epoch else "made up"
    client = connect()
    client.auto_ack = True              # with another epoch it hears all that was said since that time
    welcome = client.join(new_name(), session=session, epoch=epoch, seen=1)
    assert not welcome["resumed"] and welcome["got"] == 0 and welcome["session"] != session and len(welcome["session"]) >= 22
    assert_works(client)


@pytest.mark.parametrize("change", [str.swapcase, lambda secret: secret[:-1], lambda secret: secret + "x", lambda secret: ""])
def test_session_almost_right(connect, others, change):
    """Almost the secret of a member is not its secret: the name is taken, and the member stays connected."""
    victim = others.pair[0]
    client = connect()
    client.send({"type": "join", "name": victim.name, "session": change(victim.welcome["session"]),
                 "epoch": victim.welcome["epoch"], "seen": 0})
    assert client.recv()["code"] == "name-taken"
    others.chat()
    assert "booted" not in types_of(victim)


def test_session_seen_too_much(connect, others):
    """Who claims to have seen what was never said cannot resume with that."""
    victim = others.pair[0]
    client = connect()
    client.send({"type": "join", "name": victim.name, "session": victim.welcome["session"], "epoch": victim.welcome["epoch"],
                 "seen": 2**53 - 1})
    assert client.recv()["code"] == "name-taken"
    others.chat()


def test_sender_is_not_believed(connect, others):
    """`from`, `at` and `cid` of a client's chat are the server's to say."""
    client = connect(new_name())
    client.say("it is me", **{"from": "server", "at": 1, "cid": 99, "name": "root"})
    heard = client.recv_until("chat", text="it is me")
    assert (heard["from"], heard["cid"]) == (client.name, 1) and heard["at"] > 1
    assert others.heard_from(client.name) == ["it is me"] and others.heard_from("server") == []


# --- Unknown types and fields ---

@pytest.mark.parametrize("type", ["dance", "", "CHAT", "welcome", "joined", "heard", "booted", "error", "\ud800", "x" * 60_000])
def test_unknown_type(connect, others, type):
    """A type that no client sends is acknowledged and otherwise ignored."""
    client = connect(new_name())
    client.send({"type": type, "id": 1, "text": "x", "name": "y", "code": 7})
    assert client.recv_until("ack")["id"] == 1
    client.next_id = 2
    assert_works(client)
    assert "error" not in types_of(client) and len(others.heard_from(client.name)) == 1


@pytest.mark.parametrize("id", [{}, {"id": 0}, {"id": "x"}, {"id": 2**53}, {"id": None}, {"id": []}])
def test_unknown_type_without_an_id(connect, id):
    """Without an id that could be acknowledged it is ignored altogether."""
    client = connect(new_name())
    client.send({"type": "dance", **id})
    assert_works(client)
    assert "error" not in types_of(client) and types_of(client).count("ack") == 1


# --- The same without a server: a Room, its Connections, and a clock that is turned by hand ---

class FakeWire:
    """A MessageSocket to nowhere. `script` is what run() will read: bytes, or an exception."""

    def __init__(self):
        self.data = b""
        self.finished = self.was_cut = self.closed = False
        self.script = []

    def read(self, timeout=None):
        step = self.script.pop(0)
        if isinstance(step, bytes):
            return step
        raise step

    def write(self, data):
        if not self.closed and not self.finished:
            self.data += data

    def finish(self):
        self.finished = True

    def hung_up(self):
        return False

    def cut(self):
        self.was_cut = True

    def close(self):
        self.closed = True


class Visitor:
    """A Connection and what was written to it."""

    def __init__(self, desk, kind=chat_server.Connection):
        self.wire = FakeWire()
        self.desk = desk
        self.auto_ack = False
        self._answered = 0
        self.connection = kind(self.wire, "192.0.2.1", desk.room, desk.post, desk.alarm, 0)

    def send(self, *frames, run=True):
        """Bytes or dicts, in one read."""
        self.connection.received(b"".join(f if isinstance(f, bytes) else frame(f["type"], f) for f in frames))
        self.connection.release()
        if run:
            self.desk.run()

    def join(self, name, **fields):
        self.send({"type": "join", "name": name, **fields})
        (welcome,) = [f for f in self.read() if f["type"] == "welcome"]
        return welcome

    def read(self):
        """The frames that were written since the last call."""
        data, self.wire.data = self.wire.data, b""
        return [json.loads(line) for line in data.splitlines()]

    def answer(self):
        """Confirm everything that was written so far."""
        ids = [f["id"] for f in map(json.loads, self.wire.data.splitlines()) if "id" in f and f["type"] != "ack"]
        if max(ids, default=0) > self._answered:
            self._answered = max(ids)
            self.send({"type": "ack", "id": self._answered}, run=False)

    def lose(self):
        """The connection is gone."""
        self.connection.manager.detach()
        self.desk.post(self.desk.room.lost, self.connection, "gone")
        self.desk.run()


class Desk:
    """A Room with its inbox, run by hand."""

    def __init__(self):
        self.time = FakeTime()
        self.alarm = Alarm(self.time.clock, self.time.timer)
        self.events = []
        self.room = chat_server.Room(self.alarm, self.post, wall_clock=lambda: 1e9)
        self.visitors = []

    def post(self, method, *arguments):
        self.events.append((method, arguments))

    def visit(self, kind=chat_server.Connection):
        self.visitors.append(Visitor(self, kind))
        return self.visitors[-1]

    def run(self):
        """What the sequencer does, until there is nothing left."""
        while self.events:
            events, self.events = self.events, []
            for method, arguments in events:
                method(*arguments)
            self.room.flush()
            for visitor in self.visitors:
                if visitor.auto_ack:
                    visitor.answer()

    def advance(self, seconds):
        for _ in range(round(seconds * 4)):
            self.time.advance(0.25)
            self.run()


@pytest.fixture
def desk():
    return Desk()


def chat_texts(frames):
    return [f["text"] for f in frames if f["type"] == "chat"]


@pytest.mark.parametrize("said", [[], [b'{"type":"joi'], [b'{"type":"dance"}\n'], [b'{"type":"join","name":""}\n'], [b" "] * 20])
def test_silence_before_join(desk, said):
    """Who has not joined 10 s after it came is told so and put out, whatever else it said, then cut if it does not go."""
    visitor = desk.visit()
    for data in said:
        visitor.send(data)
        desk.advance(0.25)
    desk.advance(JOIN_TIMEOUT - 0.5 - 0.25 * len(said))
    visitor.read()
    assert not visitor.wire.finished
    desk.advance(1)
    assert [(f["type"], f["code"]) for f in visitor.read()] == [("error", "not-joined")]
    assert visitor.wire.finished and not visitor.wire.was_cut
    desk.advance(LAST_WORDS + 0.5)
    assert visitor.wire.was_cut


def test_silence_before_join_not_for_members(desk):
    """Who has joined is not put out after 10 s."""
    visitor = desk.visit()
    visitor.join("ann")
    visitor.auto_ack = True
    desk.advance(JOIN_TIMEOUT + 5)
    assert not visitor.wire.finished and visitor.read() == []


def test_silence_after_half_a_frame(desk):
    """A member that stops in the middle of a frame is found by its missing ACKs within 40 s and is gone after the grace time."""
    bob, ann = desk.visit(), desk.visit()
    bob.auto_ack = True
    bob.join("bob")
    ann.join("ann")
    ann.send(b'{"type":"chat","id":1,"te')
    desk.advance(40)
    assert ann.wire.was_cut and not bob.wire.was_cut
    desk.advance(31)
    assert [(f["name"], f["reason"]) for f in bob.read() if f["type"] == "left"] == [("ann", "gone away")]


def test_refusal_behind_a_closed_window(desk):
    """The ACK of a private message to nobody waits until its error has gone out, however many frames are before that."""
    ann = desk.visit()
    ann.join("ann")
    for number in range(WINDOW + 10):
        desk.post(desk.room.say, f"number {number}")
    desk.run()
    ann.send({"type": "chat", "id": 1, "text": "psst", "to": "nobody"}, {"type": "ping", "id": 2})
    before = ann.read()
    assert len(chat_texts(before)) < WINDOW + 10 and "ack" not in [f["type"] for f in before]
    ann.send({"type": "ack", "id": before[-1]["id"]})
    assert [(f["type"], f["id"]) for f in ann.read()][-2:] == [("error", WINDOW + 12), ("ack", 2)]


def test_refusal_behind_a_replay(desk):
    """The same when the connection broke before the error went out, and the frame is sent again over the next one."""
    ann = desk.visit()
    welcome = ann.join("ann")
    for number in range(WINDOW + 10):
        desk.post(desk.room.say, f"number {number}")
    desk.run()
    psst = {"type": "chat", "id": 1, "text": "psst", "to": "nobody"}
    ann.send(psst)
    ann.lose()
    again = desk.visit()
    back = again.join("ann", session=welcome["session"], epoch=welcome["epoch"], seen=1)
    assert back["resumed"] and back["got"] == 0
    again.send(psst)
    assert "ack" not in [f["type"] for f in again.read()]
    again.send({"type": "ack", "id": WINDOW})
    types = [f["type"] for f in again.read()]
    assert types.count("error") == 1 and types.index("error") < types.index("ack")


def test_private_message_to_a_lone_surrogate(desk):
    """A recipient that no text may hold is nobody, too: an error and then an ACK, and the rest of the read is not lost."""
    ann = desk.visit()
    ann.join("ann")
    ann.send({"type": "chat", "id": 1, "text": "psst", "to": "a\ud800"}, {"type": "chat", "id": 2, "text": "to all"})
    frames = ann.read()
    assert [(f["type"], f.get("about"), f.get("cid")) for f in frames] == [("error", 1, None), ("chat", None, 2),
    ("ack", None, None)]
    assert frames[0]["code"] in ("no-such-user", "bad-frame", "bad-text")


@pytest.mark.parametrize("together", [True, False])
def test_gone_before_the_welcome(desk, together):
    """Who joins and is gone before the room looks leaves nothing behind: after the grace time no deadline is pending."""
    visitor = desk.visit()
    visitor.wire.script = [frame("join", {"name": "ann"}), ConnectionClosed("gone")]
    visitor.connection.run()
    if not together:
        (join, lost), desk.events = desk.events, []
        for event in (join, lost):
            desk.events = [event]
            desk.run()
    desk.run()
    desk.advance(120)
    assert desk.time.armed == []


def test_gone_before_a_long_replay(desk):
    """Who comes back for a replay longer than a queue, and is gone between welcome and replay, costs nobody a frame."""
    bob, ann = desk.visit(), desk.visit()
    bob.auto_ack = True
    bob.join("bob")
    welcome = ann.join("ann")
    ann.lose()
    for start in range(0, QUEUE_FRAMES + 100, 50):
        for number in range(start, start + 50):
            desk.post(desk.room.say, f"number {number}")
        desk.run()
        bob.read()

    class Gone(chat_server.Connection):
        def attach(self, *arguments):
            super().attach(*arguments)
            self.manager.detach()           # its thread has met the end of the connection

    desk.visit(Gone).send({"type": "join", "name": "ann",
               "session": welcome["session"], "epoch": welcome["epoch"], "seen": 0}, run=False)
    desk.post(desk.room.say, "after")
    desk.run()
    assert chat_texts(bob.read()) == ["after"]


def test_welcome_fits_its_line(desk):
    """A welcome with the longest message of the day and many long names is still a frame."""
    motd = "\U0001f600" * MAX_TEXT
    desk.room.set_motd(motd)
    for number in range(340):
        desk.visit().send({"type": "join", "name": chr(0x20000 + number) * MAX_NAME}, run=False)
    desk.run()
    welcome = next(FrameDecoder(FROM_SERVER).feed(desk.visitors[-1].wire.data))
    assert welcome.here == 340 and welcome.motd == motd


def test_recipient_too_long_for_a_name_is_not_compared(desk, monkeypatch):
    """A recipient that can be nobody's name costs the room no normalising, which takes it long on purpose-made texts."""
    ann = desk.visit()
    ann.join("ann")
    compared = []
    monkeypatch.setattr(chat_server, "name_key", lambda name: compared.append(name) or name_key(name))
    ann.send({"type": "chat", "id": 1, "text": "x", "to": "\u0344" * 4096 + "\u0323" * 4096})
    assert [f["code"] for f in ann.read() if f["type"] == "error"] == ["no-such-user"]
    assert not [name for name in compared if len(name) > MAX_NAME]


def test_full_room_lets_the_longest_absent_go(desk):
    """Who is away does not keep out who is there: in a full room the one that has been away for the longest goes first."""
    desk.room._settings = desk.room._settings._replace(max_members=2)
    ann, bob = desk.visit(), desk.visit()
    ann.join("ann")
    bob.join("bob")
    desk.room.lost(ann.connection, "gone")
    desk.run()
    assert desk.visit().join("cleo")["users"] == ["bob", "cleo"]
    refused = desk.visit()
    refused.send({"type": "join", "name": "dan"})
    assert [f["code"] for f in refused.read()] == ["full"]
