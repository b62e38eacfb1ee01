"""What a room with a history file brings back after a restart, feeds from it, and does when its
disk fails: on benches (roombench.py), one after the other on one file."""

import json
import logging
import os
import re

import pytest

import chat_server
from chat_client import ClientSession, Formatter, Theme
from chat_server import HistoryError, HistoryFile
from chatproto import WINDOW
from harness import frame
from roombench import Bench, Line


@pytest.fixture
def path(tmp_path):
    """Where a history file may be made."""
    return str(tmp_path / "chat.db")


# --- Restarts ---

class Rooms:
    """Benches one after the other on one history file: a server and its restarts."""

    def __init__(self, path, kind=HistoryFile):
        self.path = path
        self.kind = kind
        self.file = None

    def start(self, now=1_000.0, **options):
        """The server is killed, if there is one, and another starts."""
        if self.file is not None:
            self.file._connection.close()
        self.file = self.kind(self.path, **options)
        bench = Bench(history=self.file, now=now, wall_clock=lambda: bench.now)
        return bench

    def close(self):
        self.file.close()


@pytest.fixture
def rooms(path):
    rooms = Rooms(path)
    yield rooms
    rooms.close()


def move(member, bench):
    """A member's next connection is to another server."""
    member.bench = bench
    return member


def test_restart_goes_on(rooms):
    """Names, ids, the order, what was not heard, what was accepted and private messages: as if
    nothing had happened."""
    before = rooms.start()
    ann, bob, eve = (before.member(name) for name in ("ann", "bob", "eve"))
    for one in ann, bob, eve:
        one.take()
    bob.say("one")
    bob.say("for ann", to="ann")
    newest = before.last
    after = rooms.start()
    assert after.last == newest and after.epoch == before.epoch
    again, eves = move(ann, after).resume(), move(eve, after).resume()
    assert again.texts() == ["one", "for ann"] and again.welcome["resumed"]
    assert again.welcome["missed"] == 0
    assert eves.texts() == ["one"]
    bobs = move(bob, after).resume()
    after.advance(1)
    bobs.take(), again.take()
    assert bobs.welcome["got"] == 2
    # Its ACK may have been lost.
    bobs.send(frame("chat", id=2, text="for ann", to="ann"))
    bobs.send(frame("chat", id=3, text="two"))
    assert [(chat["type"], chat.get("text")) for chat in again.take()] == [("chat", "two")]
    # Three of them came back, in this order.
    assert after.last == newest + 4
    assert after.member("newcomer").welcome["users"] == ["ann", "eve", "bob", "newcomer"]


def test_restart_waits_for_nobody(rooms):
    """After a restart whoever has not come back is not here: it is not counted nor listed, and its
    name is free. It comes back all the same, later, with everything that it missed."""
    before = rooms.start()
    ann, bob = before.member("ann"), before.member("bob")
    # Joins wait a little for each other.
    before.advance(1)
    ann.take(), bob.take()
    after = rooms.start()
    assert after.names() == []
    again = move(bob, after).resume()
    assert [got["type"] for got in again.take()] == ["welcome", "joined"]
    assert again.welcome["users"] == ["bob"]
    after.advance(25)
    assert again.take() == []
    again.say("while you were away")
    hours = rooms.start(now=20_000.0)
    anns = move(ann, hours).resume()
    frames = anns.take()
    # And that it came, itself.
    assert frames[0]["resumed"]
    assert [got["type"] for got in frames[1:]] == ["joined", "chat", "joined"]


def test_restart_newcomers_get_the_last_messages(rooms):
    """A newcomer gets the last 20 public messages, from the file, and no private one."""
    before = rooms.start()
    ann = before.member("ann")
    for number in range(30):
        ann.say(f"{number}")
        ann.say("psst", to="ann")
        ann.take()
    after = rooms.start()
    bob = after.member("bob")
    eve = after.visitor("eve")
    eve.send(frame("join", name="eve"))
    eve.mute = False
    assert eve.texts() == [f"{number}" for number in range(10, 30)]
    assert bob.welcome["missed"] == 0


def test_newcomers_wait_for_nothing_private(monkeypatch):
    """However much was private since, the last public messages are one piece of the log."""
    bench = Bench()
    ann, eve = bench.member("ann"), bench.visitor("eve")
    for number in range(3):
        ann.say(f"public {number}")
    for _ in range(5 * WINDOW):
        ann.say("psst", to="ann")
        ann.take()
    pieces, piece = [], bench.room.journal.piece
    monkeypatch.setattr(bench.room.journal, "piece",
                        lambda *place: pieces.append(place) or piece(*place))
    eve.send(frame("join", name="eve"))
    eve.mute = False
    assert eve.texts() == ["public 0", "public 1", "public 2"]
    assert len(pieces) == 1


def test_restart_keeps_refusals(rooms):
    """A refusal that was not confirmed before the restart is heard after it, and no welcome
    confirms what it refuses."""
    before = rooms.start()
    ann = before.member("ann")
    ann.mute = True
    ann.say("hello", to="nobody")
    again = move(ann, rooms.start()).resume()
    frames = again.take()
    assert frames[0]["got"] == 0
    assert [got["about"] for got in frames if got["type"] == "error"] == [1]


def test_restart_keeps_who_was_booted(rooms):
    """Whoever was put out while it was away is told so by the next server, too, until its time is
    over."""
    before = rooms.start()
    ann = before.member("ann")
    ann.lose()
    before.boot("ann", "spam")
    again = move(ann, rooms.start()).resume()
    (error,) = again.take()
    assert error["code"] == "banned"
    assert re.fullmatch(r"you were booted until \d\d:\d\d: spam", error["text"])


def test_restart_forgets_whom_the_room_forgot(rooms, monkeypatch):
    """Sessions are kept up to a bound; a private message of one that is gone is never another's."""
    monkeypatch.setattr(chat_server, "SESSIONS", 2)
    before = rooms.start()
    for number in range(5):
        member = before.member(f"m{number}")
        member.say("my secret", to=f"m{number}")
        member.send(frame("leave", id=2))
    after = rooms.start()
    assert [row[2] for row in rooms.file.sessions()] == ["m3", "m4"]
    newcomer = after.member("m0")
    newcomer.send(frame("history", id=1, count=100))
    assert "my secret" not in str(newcomer.take())


def test_long_absence_is_fed_in_pieces(rooms, monkeypatch):
    """Who comes back after 2,000 messages has all of them and what is said meanwhile, in order, in
    bounded memory."""
    monkeypatch.setattr(chat_server, "LOG_FRAMES", 100)
    bench = rooms.start()
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.take()
    ann.lose()
    bob.say_all([f"{number}" for number in range(2000)])
    again = ann.resume()
    heard, most, live = [], 0, 2000
    pieces, piece_of = [], bench.room.journal.piece
    monkeypatch.setattr(bench.room.journal, "piece",
                        lambda *place: pieces.append(piece_of(*place)) or pieces[-1])
    while again.written:
        bob.say(f"{live}")
        bob.take()
        live += 1
        most = max(most, again.in_flight)
        frames = list(map(json.loads, b"".join(again.written).splitlines()))
        again.written.clear()
        heard += [got["text"] for got in frames if got["type"] == "chat"]
        seen = max([got["id"] for got in frames if got["type"] == "chat"], default=0)
        if seen:
            again.send(frame("ack", id=seen))
        bench.advance(0.05)
    assert heard == [f"{number}" for number in range(live)]
    # A piece each time the window opens, and none is kept.
    assert most <= WINDOW >= max(len(piece[0]) for piece in pieces) and len(pieces) > 25


def test_refusal_of_one_that_catches_up_is_not_overtaken(rooms, monkeypatch):
    """What is refused while a member still reads the file: no ACK of it before the refusal, far
    behind in the order."""
    monkeypatch.setattr(chat_server, "LOG_FRAMES", 100)
    bench = rooms.start()
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.take()
    ann.lose()
    bob.say_all([f"{number}" for number in range(1500)])
    again = ann.resume()
    again.say("hello", to="nobody")
    frames = again.take()
    order = [got["type"] for got in frames if got["type"] in ("ack", "error")]
    assert order == ["error", "ack"]


def test_long_absence_overtaken_by_keep(rooms, monkeypatch):
    """What is deleted while a member reads it: the member is put off, comes back, and is told how
    much it missed."""
    monkeypatch.setattr(chat_server, "LOG_FRAMES", 100)
    bench = rooms.start(keep_messages=150)
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.take()
    ann.lose()
    bob.say_all([f"{number}" for number in range(1200)])
    again = ann.resume()
    again.mute = True
    missing = again.take()
    bench.advance(6)                    # --keep-messages works
    newest = max(got["id"] for got in missing if "id" in got)
    again.send(frame("ack", id=newest))
    assert again.is_over
    third = again.resume(seen=newest)
    frames = third.take()
    assert frames[0]["missed"] > 0
    assert [got["text"] for got in frames if got["type"] == "chat"][-1] == "1199"
    assert 150 <= len([got for got in frames if got["type"] == "chat"]) < 800


def test_keep_puts_nobody_off_for_what_was_private_to_others(rooms):
    """Who is whispered to, and then sits quietly while others whisper more than --keep-messages
    leaves, is not put off and told that something is missing: what was deleted was not for it."""
    bench = rooms.start(keep_messages=3)
    ann, bob, cleo = (bench.member(name) for name in ("ann", "bob", "cleo"))
    for member in ann, bob, cleo:
        member.auto_ack = True
    bench.advance(0.5)
    bob.say("for ann", to="ann")
    for number in range(20):
        bob.say(f"{number}", to="cleo")
    bench.advance(6)                    # --keep-messages works
    assert rooms.file.forgotten > 15
    bob.say("for all")
    assert ann.texts() == ["for ann", "for all"] and not ann.is_over


def test_unreadable_file_is_said(rooms, monkeypatch, caplog):
    """Pages that cannot be read are in `missed`, in one line of the log, and the room goes on."""
    monkeypatch.setattr(chat_server, "LOG_FRAMES", 100)
    bench = rooms.start()
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.take()
    ann.lose()
    bob.say_all([f"{number} " + "x" * 300 for number in range(1000)])
    rooms.file._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with open(rooms.path, "r+b") as raw:
        raw.seek(5 * 4096)
        raw.write(os.urandom(20 * 4096))
    rooms.file._connection.execute("PRAGMA shrink_memory")
    rooms.file._connection.execute("PRAGMA cache_size = 0")
    again = ann.resume()
    frames = again.take()
    while again.is_over:
        again = again.resume()
        frames = again.take()
    assert frames[0]["missed"] > 0
    assert [got for got in frames if got["type"] == "chat"][-1]["text"].startswith("999 ")
    assert len([line for line in caplog.messages if "cannot be read" in line]) == 1


# --- The disk ---

class BrokenFile(HistoryFile):
    """A history file on a disk that can be told to fail."""

    broken = ""

    def save(self, *arguments):
        if self.broken:
            raise HistoryError(self.broken)
        return super().save(*arguments)


def test_held_room_acknowledges_nothing(broken_file, caplog):
    """A commit that fails: no ACK and no fan-out, one line in the log; a member that comes
    meanwhile waits; then all goes on."""
    caplog.set_level(logging.INFO)
    bench, ann, bob, file = broken_file
    file.broken = "the disk is full"
    ann.say("one")
    assert bench.is_held and ann.take() == [] == bob.take()
    assert ann.receive(frame("chat", id=2, text="two")) == chat_server.HOLD_PAUSE
    ann.written.clear()
    # ann's client gave up, and is back.
    ann.gone()
    again = ann.again()
    again.receive(ann.rejoin(), frame("chat", id=1, text="one"))
    for _ in range(3):
        bench.flush()
    assert bench.is_held and not again.written
    file.broken = ""
    bench.flush()
    bench.settle()
    again.send()
    frames = again.take()
    assert frames[0]["type"] == "welcome" and frames[0]["got"] == 1
    assert [got["text"] for got in frames if got["type"] == "chat"] == ["one"] == bob.texts()
    assert len([line for line in caplog.messages if "nothing is acknowledged" in line]) == 1
    assert len([line for line in caplog.messages if "can be written again" in line]) == 1


@pytest.fixture
def broken_file(path):
    """A bench with two members on a history file that can be told to fail."""
    rooms = Rooms(path, BrokenFile)
    bench = rooms.start()
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.take(), bob.take()
    yield bench, ann, bob, rooms.file
    rooms.close()


def test_held_room_does_not_let_members_go(broken_file):
    """Nobody can come back while the room is held: the grace time begins anew when it goes on."""
    bench, ann, bob, file = broken_file
    ann.lose()
    file.broken = "the disk is full"
    bob.say("one")
    bench.now += 60
    file.broken = ""
    bench.flush()
    assert bob.texts() == ["one"]
    bench.advance(29)
    assert "left" not in [got["type"] for got in bob.take()]
    bench.advance(2)
    assert "left" in [got["type"] for got in bob.take()]


def test_held_room_lets_the_later_connection_take_over(broken_file):
    """Two connections of one member wait with their joins: the later one wins, whichever thread
    looks first afterwards."""
    bench, ann, bob, file = broken_file
    file.broken = "the disk is full"
    bob.say("one")
    first, second = ann.again(), ann.again()
    for one in first, second:
        one.receive(ann.rejoin())
    file.broken = ""
    bench.flush()
    for one in second, first:
        one.receive()
    bench.settle()
    assert first.is_over and not second.is_over and second.texts() == ["one"]


# --- Older messages ---

def test_older_messages_in_the_client():
    """recall() asks before the oldest it knows, on to the end; a server that knows no `history` is
    found out by its ACK."""
    bench = Bench()
    ann = bench.member("ann")
    for number in range(50):
        ann.say(f"{number}")
        ann.take()
    answers = []
    line = Line(bench, "bob")
    line.open()
    for count in 20, 20, 5:
        line.session.recall(answers.append, count)
        line.carry()
    assert [[chat.text for chat in answer.entries] for answer in answers] == [
        [str(number) for number in range(10, 30)], [str(number) for number in range(10)], []]
    formatter = Formatter(line.session, Theme(0))
    lines = [text for entry in formatter.with_days(formatter.older(answers[1]))
             for text in entry.plain()]
    assert lines[0].startswith("-- ") and lines[1].endswith(" ann: 0") and len(lines) == 11


@pytest.mark.parametrize("got", [1, 2])
def test_older_messages_of_an_old_server(got):
    """An ACK without an answer: the server keeps nothing. A connection that breaks in between:
    asked again, under a new id, and the ACK of the old one proves nothing (simulation.py, seed
    7321)."""
    bench, answers = Bench(), []
    written = []
    session = ClientSession("ann", bench.alarm)
    session.opened(written.append)
    welcome = (b'{"type":"welcome","name":"ann","session":"s","epoch":"e","users":["ann"],'
               b'"last":1,"resumed":%s,"got":%d}\n')
    session.received(welcome % (b"false", 0))
    session.recall(answers.append, 5)
    session.received(b'{"type":"ack","id":1}\n')
    assert answers == [None]
    session.recall(answers.append, 6)
    session.closed()
    session.opened(written.append)
    del written[:]
    session.received(welcome % (b"true", got))
    session.received(b'{"type":"ack","id":2}\n')
    assert json.loads(written[-1]) == {"type": "history", "id": 3, "count": 6} and answers == [None]


def test_whisper_that_waits_over_another_run_of_ids():
    """What was typed to bob before a server without a history was started anew may not reach who
    is called bob there; what was said to all is sent again."""
    bench, written = Bench(), []
    session = ClientSession("ann", bench.alarm)
    welcome = (b'{"type":"welcome","name":"ann","session":"s","epoch":"%s","users":["ann","bob"],'
               b'"last":7,"resumed":false}\n')
    session.opened(written.append)
    session.received(welcome % b"one")
    session.closed()
    session.say("psst", "bob")
    session.say("to all")
    session.opened(written.append)
    del written[:]
    session.received(welcome % b"two")
    sent = [json.loads(line) for data in written for line in data.splitlines()]
    assert sent == [{"type": "chat", "id": 1, "text": "psst", "to": "bob", "seen": 0},
                    {"type": "chat", "id": 2, "text": "to all"}]
