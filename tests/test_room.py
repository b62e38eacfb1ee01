"""What is promised about messages, on a room with a fake clock (roombench.py): a short test for
each hole that other chats and brokers fell into, and for those of our own."""

import json
import queue
import threading
from types import SimpleNamespace

import pytest

import chat_client
import chat_server
import chatproto
from chat_client import FAILED, THERE, ClientSession
from chatproto import WINDOW, Chat
from harness import frame
from roombench import Bench, BenchMember, Line


# --- The holes that others fell into ---

def test_lost_member_gets_what_was_in_flight_amqtt_401():
    """amqtt#401 on the server: what a member had not confirmed when its connection broke is
    replayed, whispers too, once."""
    bench = Bench()
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.take()
    for number in range(2 * WINDOW):
        bob.say(f"{number}", **({"to": "ann"} if number % 7 == 0 else {}))
        bob.take()
    ann.lose()
    bob.say("meanwhile")
    assert ann.resume().texts() == [str(number) for number in range(2 * WINDOW)] + ["meanwhile"]


def test_acknowledged_counter_goes_on_conversations_879():
    """Conversations#879, the ACK counter freezes and the last messages come again on every resume:
    each resume brings only news."""
    heard = []
    bench = Bench()
    line, bob = Line(bench, "ann", on_message=heard.append).open(), bench.member("bob")
    for number in range(20):
        bob.say(f"{number}")
        bob.send(frame("rename", id=bob.last_id + 1, name=f"bob-{number}"))
        bob.last_id += 1
        bob.take()
        line.session.say(f"mine {number}")
        line.carry().lose()
        bob.say(f"missed {number}")
        bob.take()
        line.open()
        assert [got["text"] for got in line.delivered
                if got["type"] == "chat"] == [f"missed {number}"]
        assert line.delivered[0]["got"] == number + 1
    texts = [message.text for message in heard if isinstance(message, Chat)]
    assert len(texts) == len(set(texts)) == 60


@pytest.mark.parametrize("line", [
    b'{"type":"chat","id":7,"from":"bob","text":"hi","at":1}', b'{"type":"ping","id":7}',
    b'{"type":"newer","id":7}',
    b'{"type":"chat","id":7}', b'{"type":"error","id":7,"code":"flooding"}',
    b'{"type":"renamed","id":7,"name":"a","to":"b","at":1}',
])
def test_every_kind_of_frame_moves_the_counter_conversations_879(line):
    """Conversations#879: frames that are not shown count as well, a later resume does not ask for
    them again."""
    bench = Bench()
    joins = []
    session = ClientSession("ann", bench.alarm)
    session.opened(joins.append)
    session.received(frame("welcome", name="ann", session="s", epoch="e", users=["ann"], last=6))
    session.received(line + b"\n")
    session.closed()
    session.opened(joins.append)
    assert [json.loads(join).get("seen", 0) for join in joins if b'"join"' in join] == [0, 7]


@pytest.mark.parametrize("leaves", [False, True])
def test_dead_peer_does_not_count_as_reached_ejabberd_417(leaves):
    """ejabberd#417, a dead peer counts as reached: who confirms nothing is not among those who
    heard, also once it is out."""
    bench = Bench(grace=5)
    ann, bob, eve = bench.member("ann", receipts=True), bench.member("bob"), bench.member("eve")
    eve.mute = True
    ann.take(), bob.take()
    ann.say("hello")
    eve.take(), bob.take()
    if leaves:
        eve.lose()
        bench.advance(6)
    receipts = []
    for _ in range(40):
        bench.advance(0.5)
        receipts += [got for got in ann.take() if got["type"] == "heard"]
        bob.take()
    assert {(got["count"], got["of"]) for got in receipts} == {(1, 2)}
    assert eve.is_over or leaves


def test_said_to_a_dead_peer_is_not_lost_ejabberd_3228():
    """ejabberd#3228, what is said to a peer that is dead and not known to be is lost: it gets it
    when it comes back."""
    bench = Bench()
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.take()
    bob.mute = True
    ann.say("into the void"), ann.say("and a whisper", to="bob")
    bob.take(), ann.take()
    for _ in range(20):
        bench.advance(0.5)
        ann.take()
    assert bob.is_over and "lost its" not in str(ann.take())
    ann.say("in the grace time")
    again = bob.resume()
    assert again.welcome["name"] == "bob"
    assert again.texts() == ["into the void", "and a whisper", "in the grace time"]


def test_said_after_the_restart_is_heard_mosquitto_769():
    """mosquitto#769, what is said after a restart and before the client is back is lost: it hears
    all that was said since."""
    before, after = Bench(), Bench()
    ann = before.member("ann")
    bob = after.member("bob")
    for number in range(50):
        bob.say(f"{number}")
        bob.take()
    ann.bench = after
    again = ann.resume()
    frames = again.take()
    assert not frames[0]["resumed"] and frames[0]["epoch"] != before.epoch
    assert frames[0]["missed"] == 0
    assert [got["text"] for got in frames
            if got["type"] == "chat"] == [f"{number}" for number in range(50)]


def test_replay_after_the_restart_is_resumed_mosquitto_769():
    """mosquitto#769 once more: a connection that breaks within that replay goes on where it was."""
    after = Bench()
    bob = after.member("bob")
    for number in range(100):
        bob.say(f"{number}")
        bob.take()
    ann = BenchMember(after, "ann")
    ann.send(frame("join", name="ann", session="of the last run", epoch="the last run", seen=5))
    ann.mute = True
    # It takes a window of them.
    frames = ann.take()
    ann.seen = frames[10]["id"]
    ann.lose()
    bob.say("100")
    heard = [got["text"] for got in frames[:11] if got["type"] == "chat"]
    again = ann.resume()
    rest = again.take()
    heard += [got["text"] for got in rest if got["type"] == "chat"]
    assert heard == [f"{number}" for number in range(101)] and rest[0]["missed"] == 0


def test_slow_reader_is_not_dropped_silently_mosquitto_1793(monkeypatch):
    """mosquitto#1793, a full queue drops silently: a reader whom the log leaves behind is dropped
    as too slow, and its resume counts what is missing, and brings the rest in order."""
    monkeypatch.setattr(chat_server, "LOG_FRAMES", 100)
    bench = Bench()
    ann, bob = bench.member("ann"), bench.member("bob")
    bench.advance(1)
    ann.take()
    ann.mute = True
    for number in range(300):
        bob.say(f"{number}")
        bob.take()
    # What it did not acknowledge would be sent again, and is there no more.
    bench.advance(3)
    assert ann.is_over and "left" not in [got["type"] for got in bob.take()]
    ids = {one["text"]: one["id"] for one in ann.read() if one["type"] == "chat"}
    # It was sent a window of them, and has confirmed none.
    assert list(ids) == [f"{number}" for number in range(WINDOW)]
    again = ann.resume()
    frames = again.take()
    texts = [got["text"] for got in frames if got["type"] == "chat"]
    assert texts == [f"{number}" for number in range(300 - len(texts), 300)] and len(texts) < 101
    # One of what is missing is the error by which it was told, unless that is still in the log.
    told = [got["code"] for got in frames if got["type"] == "error"]
    assert frames[0]["missed"] == 300 - len(texts) + (told == [])


def test_reader_within_the_log_is_not_dropped(monkeypatch):
    """Whoever is slow and still in the log stays, and hears all of it when it reads again."""
    monkeypatch.setattr(chat_server, "LOG_FRAMES", 400)
    bench = Bench()
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.take()
    ann.mute = True
    for number in range(300):
        bob.say(f"{number}")
        bob.take()
    assert not ann.is_over
    ann.mute = False
    assert ann.texts() == [f"{number}" for number in range(300)]


def test_stuck_reader_costs_the_log_and_nothing_else():
    """What was said is kept once, in the log, however many readers stand still at it; a reader
    itself is two places and a window."""
    bench = Bench()
    bob = bench.member("bob")
    stuck = [bench.member(f"m{number}") for number in range(20)]
    bench.advance(1)
    for one in stuck:
        one.take()
        one.mute = True
    bob.take()
    log = bench.room.journal.log
    frames, size = len(log), log.size
    for number in range(500):
        bob.say(f"{number} " + "x" * 1000)
        bob.take()
    assert len(log) == frames + 500 and log.size < size + 500 * 1200
    assert log._pieces_bytes <= chatproto.PIECES_BYTES
    for one in stuck:
        assert one.in_flight == WINDOW and not one.is_over
        manager = one.connection.manager
        assert manager.sent - manager.acked == WINDOW
        assert not one.connection._held


def test_bound_of_the_log_is_kept(monkeypatch):
    """The log keeps to its bounds in frames and in bytes, whatever is said. (It is shortened by a
    tenth of its frames at a time: so by small ones first, when large ones follow.)"""
    monkeypatch.setattr(chat_server, "LOG_FRAMES", 100)
    monkeypatch.setattr(chat_server, "LOG_BYTES", 50_000)
    bench = Bench()
    bob = bench.member("bob")
    log, most = bench.room.journal.log, [0, 0]
    for number in range(300):
        bob.say("x" * (10 if number < 150 else 2_000))
        bob.take()
        most = [max(most[0], len(log)), max(most[1], log.size)]
    assert 90 < most[0] <= 101 and 40_000 < most[1] <= 70_000 and log.size < 53_000


def test_bound_of_the_log_is_kept_after_a_long_batch(monkeypatch):
    """Many frames that come together are one batch; after it the log is at its bound, at once."""
    monkeypatch.setattr(chat_server, "LOG_FRAMES", 100)
    bench = Bench()
    for number in range(500):
        bench.say(f"{number}")
    bench.settle()
    bench.flush()
    assert len(bench.room.journal.log) <= 100


def test_shortened_log_steps_over_what_is_private_to_others(monkeypatch):
    """A member to whom nothing is said stands where it was while the log moves on: it is no slow
    reader."""
    monkeypatch.setattr(chat_server, "LOG_FRAMES", 100)
    bench = Bench()
    ann, bob = bench.member("ann"), bench.member("bob")
    bench.advance(1)
    ann.take()
    for number in range(500):
        bob.say(f"{number}", to="bob")
        bob.take()
    bob.say("for all")
    assert not ann.is_over and ann.texts() == ["for all"]


def test_full_client_raises_mosquitto_1793(monkeypatch):
    """mosquitto#1793: a client that cannot take any more says so, and has not taken it."""
    monkeypatch.setattr(chat_client, "UNSENT", 3)
    session = ClientSession("ann", Bench().alarm)
    said = [session.say("hi") for _ in range(3)]
    with pytest.raises(queue.Full):
        session.say("too much")
    assert session.unsettled == said


def test_client_acknowledges_after_its_work_mosquitto_188(monkeypatch):
    """mosquitto#188, acknowledging before the application has it: no ACK, and no `seen`, before
    on_message is through. What it raises is told, and the next message comes all the same."""
    bench, written, seen, told = Bench(), [], [], []
    monkeypatch.setattr(threading, "excepthook", lambda told_of: told.append(told_of.exc_value))

    def on_message(message):
        # A slow application: the late ACK would be due.
        bench.now += 1
        seen.append((session.manager.seen, b"".join(written).count(b'"ack"')))
        if message.text == "3":
            raise OSError("the application's disk is full")
    session = ClientSession("ann", bench.alarm, on_message=on_message)
    session.opened(written.append)
    session.received(frame("welcome", name="ann", session="s", epoch="e", users=["ann"], last=0))
    session.received(b"".join(frame("chat", id=id, **{"from": "bob"}, text=f"{id}", at=1)
                              for id in (1, 2, 3, 4)))
    assert seen == [(0, 0), (1, 0), (2, 0), (3, 0)] and [str(one) for one in told] == [
        "the application's disk is full"]
    session.closed()
    session.opened(written.append)
    assert json.loads(written[-1])["seen"] == 4


def test_server_acknowledges_after_the_message_has_its_place_mosquitto_188():
    """mosquitto#188 on the server: no ACK before the room has the chat and has sent it; not even
    when the connection took it."""
    bench = Bench()
    ann, _ = bench.member("ann"), bench.member("bob")
    # Joins wait a little for each other.
    bench.advance(1)
    ann.take()
    ann.receive(frame("chat", id=1, text="hi"))
    bench.advance(1)
    assert not ann.written and bench.last == 2
    bench.writes.clear()
    bench.settle()
    order = [(name, json.loads(line)["type"]) for name,
             data in bench.writes for line in data.splitlines()]
    assert order == [("ann", "chat"), ("bob", "chat"), ("ann", "ack")]


def test_ack_of_something_never_sent_is_refused():
    """An ACK of something never sent ends that connection with a bad-frame; the others, and its
    session, go on."""
    bench = Bench()
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.take()
    bob.say("unconfirmed")
    ann.send(frame("ack", id=bench.last + 1))
    assert ann.is_over and not bob.is_over
    assert json.loads(b"".join(ann.written).splitlines()[-1])["code"] == "bad-frame"
    assert ann.resume().texts() == ["unconfirmed"]


# --- Holes of our own ---

def test_refusal_behind_a_long_replay_is_not_taken_for_a_yes():
    """A refused whisper that is sent again while its error still waits behind the window is FAILED,
    and never THERE."""
    bench, states = Bench(), []
    line = Line(bench, "ann", on_state=lambda said: states.append(said.state)).open()
    bob = bench.member("bob")
    line.carry()
    # They are on their way when the connection breaks.
    for number in range(2 * WINDOW):
        bob.say(f"{number}")
        bob.take()
    line.down.clear()
    line.session.say("psst", "nobody")
    line.carry(until=lambda: not line.up)
    line.lose()
    line.open()
    assert states == [FAILED] and not line.session.unsettled


def test_retry_after_a_lost_ack_is_not_heard_twice():
    """A client whose ACKs are all lost sends again under the same id, over the same connection and
    over the next one."""
    bench = Bench()
    line, bob = Line(bench, "ann").open(), bench.member("bob")
    line.carry()
    line.session.say("once")
    line.carry(until=lambda: not line.up)
    line.down.clear()
    assert bob.texts() == ["once"]
    bench.advance(chatproto.RETRY_DELAY + 0.1)
    assert sum(b'"once"' in data for data in line.up) == 1
    line.carry(until=lambda: not line.up)
    line.lose()
    line.open()
    assert bob.texts() == [] and not line.session.unsettled


def test_history_of_a_namesake_is_not_taken_for_our_own():
    """What an earlier bearer of our name said under our id is not our message: its receipts are
    about our own one."""
    bench = Bench()
    earlier = bench.member("ann")
    earlier.say("of old")
    earlier.take()
    earlier.send(frame("leave", id=2))
    bob = bench.member("bob")
    line = Line(bench, "ann")
    # It is said before the history comes.
    said = line.session.say("hi")
    line.open()
    bob.take()
    # First comes its ACK, then the receipt.
    for _ in range(4):
        bench.advance(0.5)
        line.carry()
    assert (said.state, said.heard, said.of) == (THERE, 1, 1)


def test_rename_taken_while_the_connection_broke_is_kept():
    """A rename whose news was lost with the connection is ours for good: the next join asks for the
    new name."""
    written = []
    session = ClientSession("bob", SimpleNamespace(clock=lambda: 0.0, at=lambda when, action: None))
    session.opened(written.append)
    welcome = {"type": "welcome", "name": "bob", "session": "s", "epoch": "e", "users": ["bob"],
               "last": 1}
    session.received(json.dumps(welcome).encode() + b"\n")
    session.rename("rob")
    session.closed()
    session.opened(written.append)
    welcome.update(name="rob", users=["rob"], last=2, resumed=True, got=1)
    session.received(json.dumps(welcome).encode() + b"\n"
                     + chatproto.Renamed(2, "bob", "rob", 1.0).encode())
    session.closed()
    session.opened(written.append)
    assert json.loads(written[-1])["name"] == "rob" == session.name
