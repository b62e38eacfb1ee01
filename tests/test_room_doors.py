"""Who comes into a room and who goes, on a bench (roombench.py): time-outs, refusals, who was cut
off, and rooms with more members than are listed. Nobody else notices."""

import pytest

import chat_server
from chat_server import JOIN_TIMEOUT, LAST_WORDS
from chatproto import (FROM_SERVER, MAX_NAME, MAX_TEXT, WINDOW, ConnectionClosed,
                       FrameDecoder, name_key)
from harness import frame
from roombench import Bench


@pytest.fixture
def bench():
    return Bench(wall_clock=lambda: 1e9)


def chat_texts(frames):
    return [one["text"] for one in frames if one["type"] == "chat"]


# --- Silence ---

@pytest.mark.parametrize("said", [
    [], [b'{"type":"joi'], [b'{"type":"dance"}\n'], [b'{"type":"join","name":""}\n'], [b" "] * 20])
def test_silence_before_join(bench, said):
    """Who has not joined 10 s after it came is told so and put out, whatever else it said, then cut
    if it does not go."""
    visitor = bench.visitor()
    for data in said:
        visitor.send(data)
        bench.advance(0.25)
    bench.advance(JOIN_TIMEOUT - 0.5 - 0.25 * len(said))
    visitor.read()
    assert not visitor.wire.finished
    bench.advance(1)
    assert [(one["type"], one["code"]) for one in visitor.read()] == [("error", "not-joined")]
    assert visitor.wire.finished and not visitor.wire.was_cut
    bench.advance(LAST_WORDS + 0.5)
    assert visitor.wire.was_cut


def test_silence_before_join_not_for_members(bench):
    """Who has joined is not put out after 10 s."""
    visitor = bench.visitor()
    visitor.join("ann")
    visitor.auto_ack = True
    bench.advance(JOIN_TIMEOUT + 5)
    assert not visitor.wire.finished and visitor.read() == []


def test_silence_after_half_a_frame(bench):
    """A member that stops in the middle of a frame is found by its missing ACKs within 40 s and is
    gone after the grace time."""
    bob, ann = bench.visitor(), bench.visitor()
    bob.auto_ack = True
    bob.join("bob")
    ann.join("ann")
    ann.send(b'{"type":"chat","id":1,"te')
    bench.advance(40)
    assert ann.wire.was_cut and not bob.wire.was_cut
    bench.advance(31)
    left = [(one["name"], one["reason"]) for one in bob.read() if one["type"] == "left"]
    assert left == [("ann", "gone away")]


# --- Refusals ---

def test_refusal_behind_a_closed_window(bench):
    """The ACK of a private message to nobody waits until its error has gone out, however many
    frames are before that."""
    ann = bench.visitor()
    ann.join("ann")
    for number in range(WINDOW + 10):
        bench.say(f"number {number}")
    bench.settle()
    ann.send(frame("chat", id=1, text="psst", to="nobody"), frame("ping", id=2))
    before = ann.read()
    assert len(chat_texts(before)) < WINDOW + 10 and "ack" not in [one["type"] for one in before]
    ann.send(frame("ack", id=before[-1]["id"]))
    last = [(one["type"], one["id"]) for one in ann.read()][-2:]
    assert last == [("error", WINDOW + 12), ("ack", 2)]


def test_refusal_behind_a_replay(bench):
    """The same when the connection broke before the error went out, and the frame is sent again
    over the next one."""
    ann = bench.visitor()
    ann.join("ann")
    for number in range(WINDOW + 10):
        bench.say(f"number {number}")
    bench.settle()
    psst = frame("chat", id=1, text="psst", to="nobody")
    ann.send(psst)
    ann.lose()
    again = ann.again()
    again.send(ann.rejoin(seen=1))
    back = next(one for one in again.read() if one["type"] == "welcome")
    assert back["resumed"] and back["got"] == 0
    again.send(psst)
    assert "ack" not in [one["type"] for one in again.read()]
    again.send(frame("ack", id=WINDOW))
    types = [one["type"] for one in again.read()]
    assert types.count("error") == 1 and types.index("error") < types.index("ack")


def test_private_message_to_a_lone_surrogate(bench):
    """A recipient that no text may hold is nobody, too: an error and then an ACK, and the rest of
    the read is not lost."""
    ann = bench.visitor()
    ann.join("ann")
    ann.send(frame("chat", id=1, text="psst", to="a\ud800"), frame("chat", id=2, text="to all"))
    frames = ann.read()
    assert [(one["type"], one.get("about"), one.get("cid")) for one in frames] == [
        ("error", 1, None), ("chat", None, 2), ("ack", None, None)]
    assert frames[0]["code"] in ("no-such-user", "bad-frame", "bad-text")


def test_recipient_too_long_for_a_name_is_not_compared(bench, monkeypatch):
    """A recipient that can be nobody's name costs the room no normalising, which takes it long on
    purpose-made texts."""
    ann = bench.visitor()
    ann.join("ann")
    compared = []
    monkeypatch.setattr(chat_server, "name_key",
                        lambda name: compared.append(name) or name_key(name))
    ann.send(frame("chat", id=1, text="x", to="\u0344" * 4096 + "\u0323" * 4096))
    assert [one["code"] for one in ann.read() if one["type"] == "error"] == ["no-such-user"]
    assert not [name for name in compared if len(name) > MAX_NAME]


# --- Gone at the wrong moment ---

@pytest.mark.parametrize("together", [True, False])
def test_gone_before_the_welcome(bench, together):
    """Who joins and is gone before the room looks leaves nothing behind: after the grace time no
    deadline is pending."""
    visitor = bench.visitor()
    visitor.run(frame("join", name="ann"), ConnectionClosed("gone"))
    if not together:
        bench.settle_one()
    bench.settle()
    bench.advance(120)
    assert bench.timers == []


def test_gone_before_a_long_replay(bench):
    """Who comes back for a replay of many windows, and is gone between welcome and replay,
    costs nobody a frame."""
    bob, ann = bench.visitor(), bench.visitor()
    bob.auto_ack = True
    bob.join("bob")
    ann.join("ann")
    ann.lose()
    for start in range(0, 10 * WINDOW, 50):
        for number in range(start, start + 50):
            bench.say(f"number {number}")
        bench.settle()
        bob.read()
    ann.again(gone_at_once=True).receive(ann.rejoin(seen=0))
    bench.say("after")
    bench.settle()
    assert chat_texts(bob.read()) == ["after"]


# --- Newcomers ---

@pytest.mark.parametrize("between", [1, WINDOW + 10])
def test_newcomer_behind_many_that_came_and_went(between):
    """What lies between the last chat and its own join is not a newcomer's: it confirms the chat
    and hears on, and is not given up for dead."""
    bench = Bench(grace=0)
    bob = bench.member("bob")
    bob.say("hello")
    bob.take()
    for number in range(between):
        bench.member(f"m{number}").send(frame("leave", id=1))
        bench.advance(0.3)
        bob.take()
    ann = bench.visitor("ann")
    ann.mute = False
    ann.send(frame("join", name="ann"))
    assert ann.texts() == ["hello"] and ann.in_flight == 0
    bob.say("bye")
    assert ann.texts() == ["bye"]
    for _ in range(20):
        bench.advance(1)
        ann.take(), bob.take()
    assert not ann.is_over


def test_newcomer_that_comes_back_when_the_log_is_past_its_begin(monkeypatch):
    """Its connection broke before it had the last chats, and the log moved on: it is told what it
    missed and hears on, and is not sent away again and again."""
    monkeypatch.setattr(chat_server, "LOG_FRAMES", 50)
    bench = Bench()
    bob = bench.member("bob")
    bob.say("hello")
    bob.take()
    ann = bench.visitor("ann")
    ann.send(frame("join", name="ann"))
    ann.read()
    ann.lose()
    for number in range(200):
        bob.say(f"{number}")
        bob.take()
    again = ann.again()
    again.mute = False
    again.send(ann.rejoin())
    frames = again.take()
    bob.say("bye")
    frames += again.take()
    assert not again.is_over and frames[0]["missed"] > 100
    heard = chat_texts(frames)
    assert heard == [*map(str, range(200 - len(heard) + 1, 200)), "bye"] and len(heard) > 40


# --- Many ---

def test_welcome_fits_its_line(bench):
    """A welcome with the longest message of the day and many long names is still a frame."""
    motd = "\U0001f600" * MAX_TEXT
    bench.set_motd(motd)
    for number in range(340):
        bench.visitor().receive(frame("join", name=chr(0x20000 + number) * MAX_NAME))
    bench.settle()
    welcome = next(FrameDecoder(FROM_SERVER).feed(b"".join(bench.members[-1].written)))
    assert welcome.here == 340 and welcome.motd == motd


def test_full_room_lets_the_longest_absent_go():
    """Who is away does not keep out who is there: in a full room the one that has been away for the
    longest goes first."""
    bench = Bench(max_members=2)
    ann, bob = bench.visitor(), bench.visitor()
    ann.join("ann")
    bob.join("bob")
    ann.lose()
    assert bench.visitor().join("cleo")["users"] == ["bob", "cleo"]
    refused = bench.visitor()
    refused.send(frame("join", name="dan"))
    assert [one["code"] for one in refused.read()] == ["full"]


def test_joins_go_out_together():
    """Joins and leaves alone go out at most every 0.1 s, in one write; with something that is said,
    and in their order, at once."""
    bench = Bench()
    ann = bench.member("ann")
    bench.advance(1)
    # The first finds a quiet room.
    others = [bench.member(f"m{number}") for number in range(4)]
    assert [got["name"] for got in ann.take()] == ["m0"]
    bench.advance(0.2)
    assert len(ann.written) == 1 and [got["name"] for got in ann.take()] == ["m1", "m2", "m3"]
    bench.advance(1)
    bench.member("late"), bench.member("later")
    others[0].say("hi")
    assert [(got["type"], got.get("name", got.get("text")))
            for got in ann.take()] == [("joined", "late"), ("joined", "later"), ("chat", "hi")]
    bench.member("last")
    ann.say("hello")
    assert [got["type"] for got in others[0].take()][-2:] == ["joined", "chat"]
    bench.advance(1)
    assert ann.texts() == ["hello"] and ann.take() == []


def test_rules_go_out_with_the_joins():
    """Those who come at once are told what holds here in one frame, which waits with the joins: it
    wakes nobody else."""
    bench = Bench()
    bench.host("slow", 10)
    ann = bench.member("ann")
    bench.advance(1)
    ann.take()
    # The first finds a quiet room, and has them already.
    bench.member("m0")
    others = [bench.member(f"m{number}") for number in (1, 2, 3)]
    bench.advance(0.2)
    assert len(ann.written) == 2
    assert [got["name"] for got in ann.take()] == ["m0", "m1", "m2", "m3"]
    told = [[got["id"] for got in one.take() if got["type"] == "rules"] for one in others]
    assert len(told[0]) == 1 and told == [told[0]] * 3
    bench.member("late")
    ann.say("hi")
    assert [got["type"] for got in others[0].take()] == ["joined", "chat"]


def test_rules_do_not_wait_for_ever():
    """Who comes back takes no place in the log: it is told the rules also where the line of the
    program's log that says so was written before its time."""
    bench = Bench()
    bench.host("slow", 10)
    ann, bob = bench.member("ann"), bench.member("bob")
    bob.lose()
    bench.advance(1)
    # The first is news at once, and the second is to be 0.1 s later; but then ann speaks.
    bench.member("m0"), bench.member("m1")
    bench.advance(0.05)
    ann.say("hi")
    bench.advance(0.03)
    again = bob.resume()
    bench.advance(1)
    assert [got["type"] for got in again.take()][-1] == "rules"


def test_room_with_more_members_than_are_listed(monkeypatch):
    """Who comes when the list is full is told to nobody until there is room in it, and is a member
    like all others."""
    monkeypatch.setattr(chat_server, "LISTED", 2)
    bench = Bench()
    ann, bob, eve, joe = (bench.member(name) for name in ("ann", "bob", "eve", "joe"))
    assert (bob.welcome["users"], bob.welcome.get("here")) == (["ann", "bob"], None)
    assert (eve.welcome["users"], eve.welcome.get("here")) == (["ann", "bob", "eve"], None)
    assert (joe.welcome["users"], joe.welcome["here"]) == (["ann", "bob", "joe"], 4)
    bench.advance(1)
    assert [got["name"] for got in ann.take() if got["type"] == "joined"] == ["bob"]
    assert eve.take() == joe.take() == []
    eve.say("hi")
    joe.say("psst", to="eve")
    assert [one.texts()
            for one in (ann, bob, eve, joe)] == [["hi"], ["hi"], ["hi", "psst"], ["hi", "psst"]]
    joe.send(frame("rename", id=2, name="jim"))
    bench.advance(1)
    assert [got["to"] for got in joe.take() if got["type"] == "renamed"] == ["jim"]
    assert ann.take() == []
    eve.send(frame("leave", id=2))
    bench.advance(1)
    # Nobody had been told of eve.
    assert ann.take() == []
    bob.send(frame("leave", id=1))
    bench.advance(1)
    assert [(got["type"], got["name"])
            for got in ann.take()] == [("left", "bob"), ("joined", "jim")]
    assert bench.member("kim").welcome["users"] == ["ann", "jim", "kim"]
    assert sorted(bench.names()) == ["ann", "jim", "kim"]


def test_bug_tells_its_place_and_no_secret(monkeypatch, caplog):
    """A frame that meets a bug of ours is refused, the others go on, and the log has one line with
    nothing of what the frame said."""
    bench = Bench()
    ann, bob = bench.member("ann"), bench.member("bob")

    def broken(*arguments):
        raise RuntimeError("broken")
    with monkeypatch.context() as patch:
        patch.setattr(bench.room, "_recipient", broken)
        ann.say("between us", to="bob")
    ann.say("to all")
    assert bob.texts() == ["to all"]
    errors = [one for one in ann.take() if one["type"] == "error"]
    assert [(error["code"], error["about"]) for error in errors] == [("bad-frame", 1)]
    (line,) = [record.getMessage() for record in caplog.records if "bug" in record.getMessage()]
    assert line.startswith("bug in a chat from 192.0.2.1: RuntimeError: broken (")
    assert "between us" not in caplog.text
