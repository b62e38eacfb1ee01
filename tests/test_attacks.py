"""One peer cannot stop the others: attacks.py in small against a real server, the bounds of all
that peers can make, and that nobody honest is slowed by them.

How long the innocent wait is measured by attacks.py alone: nothing here is timed.
"""

import contextlib
import socket
from types import SimpleNamespace

import pytest

import attacks
import chat_server
import chatproto
from chatproto import ConnectionClosed
from harness import RawClient, frame, needs_proc, posix_only, serving, wait_until
from roombench import ADDRESS, Bench, BenchMember
from webclient import WebClient

# The others want a server of their own, a full log or thousands of connections.
SMALL = [name for name, one in attacks.ATTACKS.items()
         if not (one.server or one.fill or one.prepare) and one.count <= 200]


# --- A real server ---

@pytest.fixture(scope="module")
def attacked():
    """One server for all attacks; it takes 127.0.0.2 and the like for others."""
    source = attacks._AS_OTHERS.format(folder=str(attacks.harness.ROOT))
    with serving(program=("-c", source)) as server:
        yield server


@needs_proc
@posix_only
@pytest.mark.parametrize("name", SMALL)
def test_attack_in_small(attacked, name):
    """After an attack everybody hears everybody, newcomers come in, and memory is bounded."""
    one = attacks.ATTACKS[name]
    with RawClient(attacked.port, auto_ack=True) as ann:
        ann.join(f"ann-{name}")
        attacks.attack(attacked.port, 5, one.script, 0.2, **one.options)
        with RawClient(attacked.port) as bob:
            bob.join(f"bob-{name}")
            bob.say(f"after {name}")
            ann.recv_until("chat", text=f"after {name}")
            bob.leave()
    attacked.assert_healthy()
    assert attacked.memory() < 200e6


@needs_proc
@posix_only
def test_attacks_program_measures():
    """attacks.py itself: a quiet phase, an attack and the time after it, with what was felt."""
    quick = attacks.Attack("nothing", attacks.connecting(), 2)
    outcome = attacks.run_attack(quick, during=0.3, before=0.3, pause=0.0, after=0.3)
    assert outcome.before.heard and outcome.during.heard and outcome.after.heard
    assert 0 < outcome.memory and not outcome.during.doubles
    endless = attacks.Felt([1.0], [1.0], 0)
    assert "p50" in outcome._replace(during=endless).misses()


def test_half_lines_of_all_together_are_bounded(monkeypatch):
    """When too much waits who has begun a long line is cut; who begins a short one is not."""
    monkeypatch.setattr(chat_server, "WAITING_BYTES", 20_000)
    bench = Bench()
    greedy = [bench.visitor() for _ in range(4)]
    half = b'{"type":"join","x":"' + b"a" * 6_000
    for one in greedy[:3]:
        one.receive(half)
        assert not one.connection._waits_too_much()
    greedy[3].receive(half)
    with pytest.raises(ConnectionClosed):
        greedy[3].connection._waits_too_much()
    honest = bench.visitor()
    honest.receive(b'{"type":"join","na')
    assert not honest.connection._waits_too_much()
    honest.send(b'me":"ann"}\n')
    assert honest.read()[0]["type"] == "welcome"


def test_half_lines_are_counted_no_more_at_the_end():
    """What waited of a connection is given back when it ends."""
    bench = Bench()
    bench.visitor().run(b'{"type":"jo' + b" " * 5_000, ConnectionClosed("over"))
    assert bench.room.waiting.change(0) and bench.room.waiting._bytes == 0


# --- Names ---

def test_long_name_with_a_session_is_refused_unread():
    """A name that is too long is refused before it is compared, with a session as well."""
    name = "\u0301\u0316" * 4096
    message = chatproto.decode(frame("join", name=name, session="x")[:-1],
                               chatproto.INSTRUCTIONS["client"])
    assert message.error.code == "bad-name"


@pytest.mark.parametrize("name", ["Server", "\x1b[2J", "a b"])
def test_session_that_left_comes_back_under_no_forbidden_name(name):
    """A session excuses the name that it has, and no other."""
    bench = Bench()
    ann = bench.member("ann")
    session = {"session": ann.welcome["session"], "epoch": ann.welcome["epoch"]}
    ann.send(frame("leave", id=1))
    again = bench.visitor()
    again.send(frame("join", name=name, **session))
    assert [one["code"] for one in again.read()] == ["bad-name"]
    again.send(frame("join", name="ann", **session))
    assert again.read()[0]["resumed"]


# --- Sessions ---

def comes(bench, name, origin=ADDRESS, **fields):
    """A member from an address."""
    member = BenchMember(bench, name)
    member.connection.address = member.connection.origin = origin
    member.send(frame("join", name=name, **fields))
    return member


def gone(bench):
    """The sessions that are remembered after their member left."""
    return [session for session in bench.room.members._by_secret.values() if not session.present]


@pytest.mark.parametrize("talks", [False, True])
def test_sleeper_is_not_pushed_out(monkeypatch, talks):
    """However many sessions another address makes, what a sleeper sends again is not said twice."""
    monkeypatch.setattr(chat_server, "SESSIONS", 100)
    bench = Bench()
    witness = bench.member("witness")
    sleeper = comes(bench, "sleeper", "192.0.2.7")
    sleeper.take()
    sleeper.say("once")
    sleeper.send(frame("leave", id=2))
    for number in range(400):
        other = comes(bench, f"n{number}", "192.0.2.66")
        if talks:
            other.say("hm")
        other.send(frame("leave", id=2))
    assert len(gone(bench)) <= 100
    welcome = sleeper.welcome
    comes(bench, "sleeper", "192.0.2.7", session=welcome["session"], epoch=welcome["epoch"],
          seen=sleeper.seen).send(frame("chat", id=1, text="once"))
    assert witness.texts().count("once") == 1


def test_refusals_of_those_who_left_are_bounded(monkeypatch):
    """A session that left behind what it never confirmed counts for as many."""
    monkeypatch.setattr(chat_server, "SESSIONS", 100)
    bench = Bench()
    for number in range(20):
        one = comes(bench, f"n{number}")
        one.send(*(frame("chat", id=id, text="hm", to="nobody") for id in range(1, 31)))
        one.send(frame("leave", id=31))
    assert sum(1 + len(session.refusals) for session in gone(bench)) <= 100


def test_new_sessions_of_one_address_wait_their_turn(monkeypatch):
    """Beyond NEW_SESSIONS they come in one after the other, those from elsewhere at once; and who
    would wait too long is told so."""
    monkeypatch.setattr(chat_server, "NEW_SESSIONS", 5)
    bench = Bench()
    crowd = [comes(bench, f"n{number}") for number in range(80)]
    welcomed = [member for member in crowd if member.written]
    assert b"welcome" in comes(bench, "ann", "192.0.2.7").written[0]
    refused = [member for member in crowd if member.wire.finished]
    assert [b'"full"' in b"".join(member.written) for member in refused] == [True] * len(refused)
    assert len(welcomed) - len(refused) == 5 and len(refused) < 40
    bench.advance(1)
    in_time = [member for member in crowd if b"welcome" in b"".join(member.written)]
    assert 9 <= len(in_time) <= 11
    bench.advance(chat_server.JOIN_TIMEOUT)
    in_time = [member for member in crowd if b"welcome" in b"".join(member.written)]
    assert len(in_time) == len(crowd) - len(refused)


def test_who_was_lost_often_leaves_one_deadline(monkeypatch):
    """A session that is lost again and again has one grace time to be waited for."""
    bench = Bench(grace=1_000)
    ann = bench.member("ann")
    for _ in range(20):
        ann.lose()
        ann = ann.resume()
    late = [one for one in bench.alarm._deadlines.queue if one.time > bench.now + 900]
    assert len(late) == 1
    ann.lose()
    bench.advance(999)
    assert bench.names() == ["ann"]
    bench.advance(2)
    assert bench.names() == []


# --- Connections ---

def test_oldest_unjoined_of_the_largest_address_is_cut(monkeypatch):
    """When too many have not joined, nobody is kept out, and only who has most of them pays."""
    monkeypatch.setattr(chat_server, "UNJOINED", 10)
    monkeypatch.setattr(chat_server, "CUT_AT_ONCE", 2)
    server = chat_server.ChatServer("127.0.0.1", 0)
    with contextlib.closing(SimpleNamespace(close=server.server_close)):
        cut = []
        for number in range(12):
            origin = "192.0.2.1" if number % 3 else "192.0.2.2"
            member = object() if number == 1 else None
            server._connections[number] = origin, SimpleNamespace(
                session=member, cut=lambda number=number: cut.append(number))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert server.verify_request(ours, ("192.0.2.9", 1))
        server._connections.clear()
    assert cut == [2, 4]


@pytest.mark.parametrize("own, peer, origin", [
    ("192.0.2.1", "192.0.2.7", "192.0.2.7"),
    ("::ffff:192.0.2.1", "::ffff:192.0.2.7", "192.0.2.7"),
    ("2001:db8::1", "2001:db8::7", "2001:db8::7"),
    ("2001:db8::1", "2001:db8:0:1::7", "2001:db8:0:1::/64"),
    ("fe80::1%eth0", "fe80::7%eth0", "fe80::7%eth0")])
def test_origin(own, peer, origin):
    """Addresses of this link are counted each, IPv6 ones from elsewhere by their /64."""
    request = SimpleNamespace(getsockname=lambda: (own, 8087, 0, 0))
    assert chat_server._origin(request, (peer, 1, 0, 0)) == origin


# --- The honest ---

def test_class_that_joins_at_once_is_not_slowed():
    """1,000 who come from one address are all in at once, and so are they the second time."""
    bench = Bench()
    for run in "ab":
        for number in range(1_000):
            one = comes(bench, f"{run}{number}")
            assert b'"welcome"' in one.written[0]
            one.send(frame("leave", id=1))
            bench.members.clear()


def test_paste_of_200_without_a_limit(serve, peer):
    """A bot says 200 messages in one piece to a server with --rate 0: each is confirmed, none is
    complained of."""
    server = serve()
    bob, bot = peer(server.port, "bob"), peer(server.port, "bot")
    bot.send(b"".join(frame("chat", id=id, text=f"line {id}") for id in range(1, 201)))
    assert bob.texts_until("line 200")[-200:] == [f"line {id}" for id in range(1, 201)]
    wait_until(lambda: bot.recv().get("id") == 200 and bot.frames[-1]["type"] == "ack")
    assert not [one for one in bot.frames if one["type"] == "error"]


def test_page_that_comes_back_is_not_slowed(serve):
    """A page that missed 5,000 messages has them all, and its ACKs are not held against it: with
    the limit that users have no complaint comes."""
    server = serve(rate=None)
    away = WebClient(server.port)
    welcome = away.join("away")
    away.close()
    speakers = [RawClient(server.port, auto_ack=True) for _ in range(50)]
    for number, one in enumerate(speakers):
        one.join(f"s{number}")
    for number, one in enumerate(speakers):
        # What a new session may say at once, less its join.
        one.send(b"".join(frame("chat", id=id, text="hm") for id in range(1, 96)))
    for one in speakers:
        one.recv_until("ack", id=95)
        one.close()
    back = WebClient(server.port, auto_ack=True)
    assert back.join("away", session=welcome["session"], epoch=welcome["epoch"],
                     seen=welcome["last"])["missed"] == 0
    while back.texts().count("hm") < 50 * 95:
        back.recv()
    back.say("here")
    back.recv_until("chat", text="here")
    assert not [one for one in back.frames if one["type"] == "error"]
    back.close()
