"""Bad input against a real server: the right error, closed or not, and nobody else notices.

Every test with `connect` has a bystander pair of members: they chat before the bad input and after
it, and then the server has to be alive, with no bug of its own on its stderr. The malformed lines
are those of test_chatproto. (test_room_doors.py has what a real server would take seconds or luck
to show.)
"""

import itertools

import pytest

import harness
from chatproto import MAX_NAME, MAX_TEXT, name_key
from test_chatproto import GREETINGS, INVALID, INVALID_JOINS, NOT_FRAMES, cases, frame

_numbers = itertools.count(1)


def new_name(prefix="m"):
    """A name that nobody in this module has had."""
    return f"{prefix}{next(_numbers)}"


# --- Fixtures ---

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
        first, second = ({f["id"]: f["text"] for f in client.frames if f["type"] == "chat"
                          and f["from"] == name}
                         for client in self.pair)
        assert first == second
        return list(first.values())

    def told_about(self, name):
        """The frames about `name` being in, out or renamed."""
        self.chat()
        return [f for f in self.pair[0].frames if f["type"] in ("joined", "left",
        "renamed") and name in (f["name"], f.get("to"))]


@pytest.fixture(scope="module")
def bystanders(server):
    """The same two for all tests: who is not disturbed by any of them is disturbed by none."""
    others = Others(server.port)
    yield others
    for client in others.pair:
        client.close()


@pytest.fixture
def others(server, bystanders):
    """The bystander pair; they chat before and after."""
    bystanders.chat()
    yield bystanders
    bystanders.chat()
    server.assert_healthy()


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
    """A connection to a server to which HTTP is as foreign as TLS is. (What it is to the others:
    test_web.py.)"""
    with harness.RawClient(server_without_web.port) as client:
        yield client


def assert_works(client):
    """The member can still speak: its next message comes back and is acknowledged."""
    text = f"still here {next(_numbers)}"
    id = client.say(text)
    heard = acknowledged = None
    # They come in either order: the message may wait behind a replay.
    while heard is None or acknowledged is None:
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
    """A member's line that is no frame is answered with a numbered error, never acknowledged, and
    ends the connection."""
    client = connect(new_name())
    client.send(line + b"\n")
    error = client.recv_until("error")
    assert error["code"] == code and error["text"] and error["id"] > client.welcome["last"]
    assert "about" not in error
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
    """TLS, HTTP and their like are refused at their first bytes, without waiting for the end of a
    line."""
    client = connect_without_web
    client.send(greeting)
    assert client.recv()["code"] == "bad-frame"
    assert client.eof()


def test_greeting_of_a_web_page(connect_without_web):
    """A page's POST does not get its body's lines into the chat: the first line ends it."""
    client = connect_without_web
    client.send(
        b'POST / HTTP/1.1\r\nHost: a\r\n\r\n{"type":"join","name":"web"}\n'
        b'{"type":"chat","id":1,"text":"x"}\n')
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
    """What came before the broken line is heard and acknowledged, what comes after it is not even
    read."""
    client = connect(new_name())
    client.send(frame("chat", {"text": "before"}, id=1) + b"nonsense\n"
                + frame("chat", {"text": "after"}, id=2))
    assert client.eof()
    assert [f["id"] for f in client.frames if f["type"] == "ack"] == [1]
    assert [f["code"] for f in client.frames if f["type"] == "error"] == ["bad-frame"]
    assert others.heard_from(client.name) == ["before"]


def test_no_frame_keeps_the_session(connect, others):
    """Nothing else is touched: the session goes on over the next connection, and nobody was told
    that anybody left."""
    client = connect(new_name())
    client.send(b"nonsense\n")
    assert client.eof()
    again = connect()
    welcome = again.join(client.name, session=client.welcome["session"],
                         epoch=client.welcome["epoch"], seen=0)
    assert welcome["resumed"] and welcome["name"] == client.name
    assert again.recv_until("error")["code"] == "bad-frame"
    assert_works(again)
    assert [f["type"] for f in others.told_about(client.name)] == ["joined"]


# --- Wrong fields are refused, and nothing is closed ---

@pytest.mark.parametrize("fields, code, type", cases(INVALID))
def test_wrong_fields(connect, others, fields, code, type):
    """A frame with wrong fields gets its error, then its ACK, in this order; the connection goes on
    and nobody hears of it."""
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
    """A join with wrong fields is refused with a bare error; a better one on the same connection is
    welcome."""
    client = connect()
    client.send(frame("join", fields))
    error = client.recv()
    assert (error["type"], error["code"]) == ("error", code) and "id" not in error
    assert "about" not in error
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


@pytest.mark.parametrize("to",
                         ["nobody", "", "x" * MAX_TEXT, "server", "Server", "a b", "\x1b[31m",
                          "\u202e"])
def test_private_message_to_nobody(connect, others, to):
    """It is refused with no-such-user before it is acknowledged, and heard by nobody, its speaker
    included."""
    client = connect(new_name())
    id = client.say("psst", to=to)
    assert client.recv_until("ack")["id"] == id
    (error,) = [f for f in client.frames if f["type"] == "error"]
    assert (error["code"], error["about"]) == ("no-such-user", id)
    assert_works(client)
    assert "psst" not in [f.get("text") for f in client.frames] + others.heard_from(client.name)


# --- Ids ---

def test_id_repeated(connect, others):
    """A frame that comes again under its id is acknowledged again and not heard twice, in one piece
    or later."""
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
    ("chat", {"id": 1, "text": "x"}, 1), ("rename", {"id": 2, "name": "x"}, 2),
    ("leave", {"id": 3}, 3), ("ping", {"id": 4}, 4),
    ("dance", {"id": 5}, 5), ("dance", {}, None), ("ack", {"id": 1}, None),
    ("chat", {"id": 6, "text": 7}, 6),
])
def test_before_join(connect, others, type, fields, about):
    """Whatever comes before the join gets not-joined and no ACK; its id is still free after the
    join."""
    client = connect()
    client.send({"type": type, **fields})
    error = client.recv()
    assert (error["type"], error["code"], error.get("about")) == ("error", "not-joined", about)
    assert "id" not in error
    client.join(new_name())
    assert_works(client)
    assert [f["id"] for f in client.frames if f["type"] == "ack"] == [1]
    assert len(others.heard_from(client.name)) == 1


@pytest.mark.parametrize("name", ["same", "another", "bad name"])
def test_join_twice(connect, others, name):
    """A second join is refused and changes nothing: not the name, not the session."""
    client = connect(new_name())
    client.send({"type": "join", "name": client.name if name == "same" else name
                 if name == "bad name" else new_name()})
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
    """A name that is taken, or that differs from one only in case or width, is refused; the
    suggestion is accepted."""
    taken = others.pair[0].name
    client = connect()
    client.send({"type": "join", "name": change(taken)})
    error = client.recv()
    assert error["code"] == "name-taken" and "id" not in error
    assert name_key(error["suggestion"]) != name_key(taken)
    assert client.join(error["suggestion"])["name"] == error["suggestion"]
    assert_works(client)


def test_name_taken_longest(connect):
    """The suggestion for a name of 24 characters has no more than 24, and the next suggestion is
    another one."""
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
    """A session that nobody was given opens no door: its bearer is a newcomer, with a secret of its
    own."""
    epoch = others.pair[0].welcome["epoch"] if right_epoch else "made up"
    client = connect()
    # With another epoch it hears all that was said since that time.
    client.auto_ack = True
    welcome = client.join(new_name(), session=session, epoch=epoch, seen=1)
    assert not welcome["resumed"] and welcome["got"] == 0 and welcome["session"] != session
    assert len(welcome["session"]) >= 22
    assert_works(client)


@pytest.mark.parametrize("change",
                         [str.swapcase, lambda secret: secret[:-1], lambda secret: secret + "x",
                          lambda secret: ""])
def test_session_almost_right(connect, others, change):
    """Almost the secret of a member is not its secret: the name is taken, and the member stays
    connected."""
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
    client.send({"type": "join", "name": victim.name, "session": victim.welcome["session"],
                 "epoch": victim.welcome["epoch"],
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

@pytest.mark.parametrize("type", ["dance", "", "CHAT", "welcome", "joined", "heard", "booted",
                                  "error", "\ud800", "x" * 60_000])
def test_unknown_type(connect, others, type):
    """A type that no client sends is acknowledged and otherwise ignored."""
    client = connect(new_name())
    client.send({"type": type, "id": 1, "text": "x", "name": "y", "code": 7})
    assert client.recv_until("ack")["id"] == 1
    client.next_id = 2
    assert_works(client)
    assert "error" not in types_of(client) and len(others.heard_from(client.name)) == 1


@pytest.mark.parametrize("id",
                         [{}, {"id": 0}, {"id": "x"}, {"id": 2**53}, {"id": None}, {"id": []}])
def test_unknown_type_without_an_id(connect, id):
    """Without an id that could be acknowledged it is ignored altogether."""
    client = connect(new_name())
    client.send({"type": "dance", **id})
    assert_works(client)
    assert "error" not in types_of(client) and types_of(client).count("ack") == 1
