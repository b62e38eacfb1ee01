"""One reader of a log over one connection (MessageManager), on a clock that the tests turn by hand:
its window, the ACKs that go out and come in, retries, death, pings, and what a connection hands on
to the next. (What the rules of the log ask besides is in test_log_rules.py.)"""

import itertools
import random

import pytest
from fake_time import FakeTime, Line, pings

from chatproto import (ACK_BYTES, ACK_FRAMES, MAX_LINE, PING_AFTER, WINDOW, WINDOW_BYTES, Ack,
                       Alarm, FrameError, MessageManager, MessageQueue, Ping)
from witness import SEED


def block(size):
    """A frame of `size` bytes."""
    return b"x" * (size - 1) + b"\n"


def sizes(line):
    """The sizes of the writes since the last call."""
    written = [len(data) for data in line.writes]
    line.writes.clear()
    return written


# --- The window ---

def test_window_frames():
    """What is beyond the window waits in the log, and all of it goes out in one write when the ACK
    comes."""
    line = Line()
    line.send(*range(1, 101))
    assert line.sent() == pings(*range(1, WINDOW + 1)) and line.in_flight[0] == WINDOW
    assert line.manager.take_ack(WINDOW)
    assert len(line.writes) == 1 and line.sent() == pings(*range(WINDOW + 1, 101))
    line.manager.take_ack(100)
    assert line.manager.is_empty and line.manager.acked == 100 and line.in_flight == (0, 0)


def test_window_opens_by_what_was_acknowledged():
    """The frame after the window waits until an ACK makes room, for exactly one."""
    line = Line()
    line.send(*range(1, WINDOW + 3))
    line.sent()
    line.manager.take_ack(1)
    assert line.sent() == pings(WINDOW + 1)


def test_window_bytes():
    """The window is in bytes, too: exactly WINDOW_BYTES fit, and not one more."""
    line = Line()
    for id, size in ((1, WINDOW_BYTES // 2), (2, WINDOW_BYTES // 2), (3, 2)):
        line.add(id, frame=block(size))
        line.publish()
    assert sizes(line) == [WINDOW_BYTES // 2] * 2 and line.in_flight == (2, WINDOW_BYTES)
    line.manager.take_ack(1)
    assert sizes(line) == [2]


def test_window_nothing_overtakes():
    """A small frame does not overtake a big one that waits, even when it alone would fit."""
    line = Line()
    for id, size in ((1, WINDOW_BYTES - 100), (2, 200), (3, 50)):
        line.add(id, frame=block(size))
        line.publish()
    assert sizes(line) == [WINDOW_BYTES - 100]
    line.manager.take_ack(1)
    assert sizes(line) == [250]


def test_window_longest_frame_fits():
    """The longest frame of all fits an empty window: nothing waits for ever."""
    line = Line()
    line.add(1, frame=block(MAX_LINE + 2))
    line.publish()
    assert sizes(line) == [MAX_LINE + 2]


@pytest.mark.parametrize("before", [0, 1, WINDOW - 1])
def test_window_splits_what_is_published_together(before):
    """Of many frames at once as many go out as the window has room for, the others later."""
    line = Line()
    line.send(*range(1, before + 1))
    line.sent()
    ids = list(range(before + 1, before + 201))
    line.add(*ids)
    line.publish()
    got = line.sent()
    assert len(got) == WINDOW - before
    while not line.manager.is_empty:
        line.manager.take_ack(line.manager.sent)
        got += line.sent()
    assert got == pings(*ids)


def test_window_is_written_as_it_is():
    """With room and nobody ahead a frame goes out as it is: the same bytes object, not a copy, for
    all readers."""
    log, time = MessageQueue(), FakeTime()
    lines = [Line(time=time, log=log) for _ in range(3)]
    frame = Ping(1).encode()
    log.append(1, frame)
    news = log.publish(1, time.now)
    for line in lines:
        line.manager.wake(news)
        assert line.writes[0] is frame


def test_window_in_bytes_does_not_leak_mosquitto_898():
    """mosquitto#898 for bytes: frames of every size go round through partial ACKs and reconnects,
    and what the window counts is exact all the time."""
    line, chance, id, frames = Line(), random.Random(SEED), 0, {}
    for _ in range(300):
        for _ in range(chance.randint(1, 8)):
            id += chance.randint(1, 2)
            frames[id] = block(chance.randint(1, 40_000))
            line.add(id, frame=frames[id])
        line.publish()
        manager = line.manager
        manager.take_ack(chance.randint(manager.acked, manager.sent) or 1)
        if chance.random() < 0.3:
            line = line.again(chance.randint(line.manager.acked, line.manager.sent))
        manager = line.manager
        flying = [len(frames[one]) for one in frames if manager.acked < one <= manager.sent]
        assert line.in_flight == (len(flying), sum(flying))
    while not line.manager.is_empty:
        line.manager.take_ack(line.manager.sent)
    assert line.in_flight == (0, 0) and line.manager.sent == id


def test_broadcast_is_encoded_once_for_all_websockets():
    """However many there are, and also when a window splits it."""
    wrapped, log, time = [], MessageQueue(), FakeTime()

    def wrap(frame):
        wrapped.append(frame)
        return b"<%b>" % frame
    lines = [Line(time=time, log=log, wrap=wrap) for _ in range(50)]
    frames = [b"%d\n" % id for id in range(1, 101)]
    for id, frame in enumerate(frames, 1):
        log.append(id, frame)
    news = log.publish(100, time.now)
    for line in lines:
        line.manager.wake(news)
    for line in lines:
        line.manager.take_ack(WINDOW)
    assert len(wrapped) == 100
    for line in lines:
        assert b"".join(line.writes) == b"".join(b"<%b>" % frame for frame in frames)


# --- ACKs that come in ---

def test_ack_never_sent():
    """An ACK of what was never sent is the peer's fault and confirms nothing, also while that frame
    waits in the log."""
    line = Line()
    with pytest.raises(FrameError) as caught:
        line.manager.take_ack(1)
    assert caught.value.code == "bad-frame"
    line.send(*range(1, WINDOW + 2))
    with pytest.raises(FrameError):
        line.manager.take_ack(WINDOW + 1)
    assert line.manager.acked == 0 and line.manager.take_ack(WINDOW)


def test_ack_backwards():
    """An ACK at or below the last one is no news and changes nothing."""
    line = Line()
    line.send(2, 4, 6)
    assert line.manager.take_ack(4) is True
    assert line.manager.take_ack(4) is False and line.manager.take_ack(1) is False
    assert line.manager.acked == 4 and line.in_flight[0] == 1


def test_ack_partial():
    """An ACK may end at an id that was not used: what is above it stays in flight."""
    line = Line()
    line.add(2, 4, 6, 8)
    line.publish()
    line.manager.take_ack(5)
    assert line.in_flight[0] == 2 and not line.manager.is_empty
    line.sent()
    line.time.advance(2.1)
    assert line.sent() == pings(6)
    line.manager.take_ack(8)
    assert line.manager.is_empty and line.in_flight == (0, 0)


def test_ack_of_an_earlier_connection():
    """The peer may confirm again what it confirmed over an earlier connection; ids go on above."""
    line = Line(place=50)
    assert line.manager.take_ack(50) is False
    line.send(51)
    assert line.sent() == pings(51) and line.manager.acked == 50
    with pytest.raises(FrameError):
        line.manager.take_ack(52)


# --- ACKs that go out ---

def test_late_ack_by_frames():
    """The 32nd frame brings the ACK for all of them."""
    line = Line()
    for id in range(1, ACK_FRAMES):
        line.manager.processed(id)
    assert line.sent() == []
    line.manager.processed(ACK_FRAMES)
    assert line.sent() == [("ack", ACK_FRAMES)]
    line.manager.processed(ACK_FRAMES + 1)
    assert line.sent() == []


def test_late_ack_by_bytes():
    """32 KiB bring it, too."""
    line = Line()
    for id in range(1, 4):
        line.manager.processed(id, ACK_BYTES // 4)
    assert line.sent() == []
    line.manager.processed(4, ACK_BYTES // 4)
    assert line.sent() == [("ack", 4)]


@pytest.mark.parametrize("phase", [0.0, 0.01, 0.03, 0.049])
def test_late_ack_by_time(phase):
    """An ACK is written within 0.25 s of the oldest frame, whatever the ticks, and confirms the
    newest; once."""
    line = Line()
    line.time.advance(phase)
    line.manager.processed(1)
    assert line.sent() == []
    line.time.advance(0.1)
    line.manager.processed(2)
    line.time.advance(0.15)
    assert line.sent() == [("ack", 2)]
    line.time.advance(5)
    assert line.sent() == []


def test_duplicate_is_confirmed_at_once():
    """A frame that comes twice means that its ACK was lost: confirmed at once, with the newest
    id."""
    line = Line()
    for id in range(1, 33):
        line.manager.processed(id)
    line.sent()
    line.manager.processed(7)
    assert line.sent() == [("ack", 32)] and line.manager.seen == 32


def test_confirm_at_once():
    """The server's way: an ACK now, for all up to an id; none of id 0."""
    line = Line()
    line.manager.confirm(0)
    line.time.advance(1)
    assert line.sent() == []
    line.manager.confirm(9)
    assert line.sent() == [("ack", 9)] and line.manager.seen == 9
    line.manager.confirm(5)
    assert line.sent() == [("ack", 9)]


def test_late_ack_ends_with_its_connection():
    """A late ACK is not written to the next connection, whose welcome says it anyway."""
    line = Line()
    line.manager.processed(1)
    again = line.again(0, seen=1)
    line.time.advance(1)
    assert line.writes == again.writes == []


# --- Retries and death ---

def test_retry_is_the_oldest_only():
    """After 2 s without an ACK the oldest frame, and no other, is sent again."""
    line = Line()
    line.send(1, 2, 3)
    line.sent()
    line.time.advance(1.99)
    assert line.sent() == []
    line.time.advance(0.07)
    assert line.sent() == pings(1)
    line.manager.take_ack(3)
    line.time.advance(10)
    assert line.sent() == [] and line.deaths == []


def test_progress_restarts_the_retries():
    """An ACK of anything new starts the 2 s and the retries anew."""
    line = Line()
    line.send(1, 2)
    line.time.advance(7)
    assert line.sent() == pings(1, 2, 1, 1, 1)
    line.manager.take_ack(1)
    line.time.advance(1.9)
    assert line.sent() == [] and line.deaths == []
    line.time.advance(0.2)
    assert line.sent() == pings(2)
    line.time.advance(5.8)
    assert line.deaths == []
    line.time.advance(0.2)
    assert line.deaths


def test_old_ack_is_no_progress():
    """An ACK that confirms nothing new does not keep a connection alive."""
    line = Line()
    line.send(1)
    line.manager.take_ack(1)
    line.send(2)
    for _ in range(9):
        line.time.advance(1)
        line.manager.take_ack(1)
    assert line.deaths


def test_more_that_is_sent_is_no_progress():
    """Whoever acknowledges nothing is found, however much is said meanwhile."""
    line = Line()
    for id in range(1, 100):
        line.send(id)
        line.time.advance(0.1)
    assert line.deaths == pytest.approx([1008], abs=0.3)


def test_dead_after_three_retries():
    """Retries at 2, 4 and 6 s, dead at 8; then nothing more is written, and it is told once."""
    line = Line()
    line.send(1)
    times = []
    for _ in range(79):
        before = len(line.writes)
        line.time.advance(0.1)
        times += [round(line.time.now - 1000, 1)] * (len(line.writes) - before)
    assert times == pytest.approx([2, 4, 6], abs=0.11) and line.deaths == []
    line.time.advance(0.3)
    assert line.deaths == pytest.approx([1008], abs=0.3)
    line.sent()
    line.send(2)
    line.manager.write_bare(Ack(1).encode())
    line.time.advance(100)
    assert line.sent() == [] and len(line.deaths) == 1


def test_stale_ring():
    """The ring that was asked for a frame does nothing when that frame has been confirmed, nor for
    a newer one."""
    line = Line()
    line.send(1)
    line.time.advance(1)
    line.manager.take_ack(1)
    line.send(2)
    line.sent()
    line.time.advance(1.1)
    assert line.sent() == []
    line.time.advance(1)
    assert line.sent() == pings(2)


def test_excused():
    """While our side does not read, missing ACKs are no fault of the peer; afterwards the 2 s start
    anew."""
    line = Line()
    line.send(1)
    line.sent()
    for _ in range(60):
        line.manager.excuse()
        line.time.advance(1)
    assert line.sent() == [] and line.deaths == []
    line.time.advance(12)
    assert line.sent()[:3] == pings(1, 1, 1) and line.deaths


def test_one_timer_for_all():
    """Ten managers on one alarm keep one timer, and each does its own retries."""
    fake, log = FakeTime(), MessageQueue()
    alarm, writes, peer = Alarm(fake.clock, fake.timer), [], Line()
    managers = [MessageManager(alarm, log, peer, writes.append) for _ in range(10)]
    for manager in managers:
        manager.open(0)
    log.append(1, Ping(1).encode())
    news = log.publish(1, fake.now)
    for manager in managers:
        manager.wake(news)
    assert len(fake.armed) == 1 and len(writes) == 10
    fake.advance(2.1)
    assert len(fake.armed) == 1 and len(writes) == 20


# --- Pings ---

def test_ping_after_thirty_seconds():
    """Nothing sent for 30 s: time for a ping, and not before."""
    line = Line()
    line.time.advance(29.9)
    assert line.idles == []
    line.time.advance(1.2)
    assert len(line.idles) == 1


def test_ping_only_when_idle():
    """Whatever is written puts the ping off, an ACK too."""
    line = Line()
    line.time.advance(20)
    line.manager.confirm(1)
    line.time.advance(20)
    line.send(1)
    line.manager.take_ack(1)
    line.time.advance(29)
    assert line.idles == []
    line.time.advance(2.1)
    assert len(line.idles) == 1


def test_ping_goes_through_a_wrap():
    """What a WebSocket is pinged and asked again with is in its envelope."""
    line = Line(wrap=lambda frame: b"<%b>" % frame)
    line.ping()
    line.time.advance(2.1)
    assert line.writes == [b"<%b>" % Ping(1).encode()] * 2


def test_silent_peer_is_found():
    """A peer that vanished without a word is found within 40 s: ping after 30, dead 8 later."""
    line = Line()
    line.on_idle = line.ping
    line.time.advance(PING_AFTER + 7.9)
    assert line.deaths == []
    line.time.advance(2.1)
    assert line.deaths


def test_silent_person_is_alive():
    """A peer that answers pings is not dead, however long it says nothing."""
    line, count = Line(), itertools.count()

    def answer():
        next(count)
        line.ping()
        line.manager.take_ack(line.manager.sent)
    line.on_idle = answer
    line.time.advance(3600)
    assert line.deaths == [] and 100 <= next(count) <= 125


def test_ping_that_cannot_be_made_is_asked_for_again():
    """An owner that does nothing about it (the room is held) is asked again, and nobody dies of
    it."""
    line = Line()
    line.time.advance(120)
    assert len(line.idles) > 10 and line.deaths == []


# --- From one connection to the next ---

def test_nothing_before_open():
    """Without a place numbered frames wait, bare ones go out, and nobody is dead or idle."""
    line = Line(opened=False)
    line.send(1, 2)
    line.manager.write_bare(Ack(1).encode())
    line.time.advance(100)
    assert line.sent() == [("ack", 1)] and line.deaths == line.idles == [] == line.time.armed
    line.manager.open(0)
    assert len(line.writes) == 1 and line.sent() == pings(1, 2)


def test_teardown_keeps_what_was_in_flight_amqtt_401():
    """amqtt#401, tearing a connection down deletes what was in flight: it goes out again, in order,
    before what was said meanwhile."""
    line = Line()
    line.send(*range(1, 101))
    assert line.sent() == pings(*range(1, WINDOW + 1))
    line.manager.close()
    line.send(101)
    again = line.again(3)
    assert again.sent() == pings(*range(4, 4 + WINDOW))
    again.manager.take_ack(67)
    assert again.sent() == pings(*range(4 + WINDOW, 102))


def test_open_keeps_what_is_known():
    """What the place covers is not sent again, and what we have of the peer's is not asked for."""
    line = Line()
    line.send(1, 2, 3)
    again = line.again(2, seen=7)
    assert again.sent() == pings(3) and again.manager.acked == 2 and again.manager.seen == 7
    again.manager.processed(7)
    assert again.sent() == [("ack", 7)]
    again.manager.take_ack(3)
    assert again.manager.is_empty


def test_window_has_all_its_places_after_many_reconnects_mosquitto_898():
    """mosquitto#898, in-flight places leak until nothing is delivered: after 200 reconnects the
    window is as large as ever."""
    line, chance, newest, confirmed = Line(), random.Random(SEED), 0, 0
    for _ in range(200):
        line = line.again(confirmed)
        assert line.sent() == pings(*range(confirmed + 1, min(newest, confirmed + WINDOW) + 1))
        for newest in range(newest + 1, newest + chance.randint(1, 50)):
            line.send(newest)
        confirmed = chance.randint(confirmed, line.manager.sent)
        if chance.random() < 0.5:
            line.manager.take_ack(confirmed)
    line = line.again(newest)
    assert line.manager.is_empty and line.sent() == []
    line.send(*range(newest + 1, newest + 2 * WINDOW))
    assert line.sent() == pings(*range(newest + 1, newest + WINDOW + 1))


def test_retries_start_anew():
    """A new connection has its own 2 s and its own three retries."""
    line = Line()
    line.send(1)
    line.time.advance(7)
    line.manager.close()
    line.time.advance(60)
    again = line.again(0)
    again.time.advance(7.9)
    assert again.sent() == pings(1, 1, 1, 1) and again.deaths == line.deaths == []
    again.time.advance(0.3)
    assert again.deaths and line.deaths == []


def test_close():
    """After close() nothing is written, fed or rung, and open() does not bring it back; twice is as
    good as once."""
    line = Line()
    line.send(*range(1, 100))
    line.sent()
    line.manager.close()
    line.manager.close()
    assert line.manager.is_empty
    line.manager.open(0, seen=5)
    line.manager.write_bare(Ack(1).encode())
    line.manager.confirm(5)
    line.manager.processed(9)
    line.manager.feed([Ping(1).encode()], 200)
    line.manager.resend(Ping(1).encode())
    line.ping()
    line.send(100)
    line.time.advance(100)
    assert line.writes == [] and line.deaths == line.idles == []


def test_close_of_one_that_waits_to_be_fed():
    """One whose connection ended is not behind any more: nobody feeds it again and again."""
    line = Line(opened=False)
    line.add(1, 2, 3)
    line.publish()
    line.log.forget(2)
    line.manager.open(0)
    assert line.manager.is_behind
    line.manager.close()
    assert not line.manager.is_behind
