"""The log, its window and its ACKs without a room: what is in flight, what waits, what is
confirmed.

Everything here is about MessageQueue, MessageManager and PendingMessage themselves.
"""

import queue
import random

import pytest

import chatproto
from chatproto import WINDOW, FrameError, MessageManager, MessageQueue, PendingMessage
from roombench import Bench
from witness import SEED


def pending(*ids):
    return PendingMessage(list(ids), [b"%d\n" % id for id in ids])


def manager(bench):
    return MessageManager(bench.alarm, lambda: None, lambda: None)


def ids_in(written):
    return [int(line) for line in b"".join(written).split() if line.isdigit()]


def test_teardown_keeps_what_was_in_flight_amqtt_401():
    """amqtt#401, tearing a connection down deletes what was in flight: it goes out again, in order,
    before what waited."""
    out = manager(Bench())
    first, second = [], []
    out.attach(first.append)
    for id in range(1, 101):
        out.send(pending(id))
    assert ids_in(first) == list(range(1, WINDOW + 1))
    out.detach()
    out.send(pending(101))
    out.attach(second.append, confirmed=3)
    assert ids_in(second) == list(range(4, 4 + WINDOW))
    out.acknowledged(67)
    assert ids_in(second) == list(range(4, 102))


def test_window_has_all_its_places_after_many_reconnects_mosquitto_898():
    """mosquitto#898, in-flight places leak until nothing is delivered: after 200 reconnects the
    window is as large as ever."""
    out, chance = manager(Bench()), random.Random(SEED)
    newest = confirmed = 0
    for _ in range(200):
        written = []
        out.attach(written.append, confirmed)
        assert ids_in(written) == list(range(confirmed + 1, min(newest, confirmed + WINDOW) + 1))
        for newest in range(newest + 1, newest + chance.randint(1, 50)):
            out.send(pending(newest))
        sent = ids_in(written)
        confirmed = chance.randint(confirmed, sent[-1] if sent else confirmed)
        if chance.random() < 0.5:
            out.acknowledged(confirmed)
        out.detach()
    written = []
    out.attach(written.append, newest)
    assert out.empty and not written
    out.send(pending(*range(newest + 1, newest + 2 * WINDOW)))
    assert ids_in(written) == list(range(newest + 1, newest + WINDOW + 1))


def test_window_in_bytes_does_not_leak_mosquitto_898():
    """mosquitto#898 for bytes: frames of every size go round through rewinds and splits, and the
    byte count is exact after it."""
    window, chance, id = MessageQueue(), random.Random(SEED), 0
    for _ in range(150):
        ids = list(range(id + 1, id + chance.randint(2, 9)))
        window.put(PendingMessage(ids, [b"x" * chance.randint(1, 40_000) for _ in ids]))
        id = ids[-1]
        if chance.random() < 0.3:
            window.rewind()
            window.take()
        window.acknowledge(chance.randint(window.acked, window.newest_sent))
        window.take()
    while not window.empty:
        window.acknowledge(window.newest_sent)
        window.take()
    assert (window.frames_in_flight, window._bytes_in_flight, window.frames_waiting,
            window._bytes_waiting) == (0, 0, 0, 0)


def test_full_queue_raises_mosquitto_1793(monkeypatch):
    """mosquitto#1793: a queue that cannot take any more says so, and has not taken it."""
    monkeypatch.setattr(chatproto, "QUEUE_FRAMES", 3)
    window = MessageQueue()
    for id in range(1, WINDOW + 4):
        window.put(pending(id))
    with pytest.raises(queue.Full):
        window.put(pending(WINDOW + 4))
    window.acknowledge(WINDOW)
    assert window.take() == b"".join(b"%d\n" % (WINDOW + id) for id in (1, 2, 3))


def test_ack_of_something_never_sent():
    """An ACK of something never sent is an error, and confirms nothing."""
    out = manager(Bench())
    out.attach(lambda data: None)
    out.send(pending(5))
    with pytest.raises(FrameError):
        out.acknowledged(6)
    assert not out.empty and out.acked == 0


def test_broadcast_is_encoded_once_for_all_websockets():
    """However many there are, and also when a window splits it or it is sent again."""
    wrapped, written = [], []
    alarm = Bench().alarm
    managers = [MessageManager(alarm, lambda: None, lambda: None,
                               wrap=lambda line: wrapped.append(line) or b"<%b>" % line)
                for _ in range(50)]
    for one in managers:
        one.attach(written.append)
    # These are more than a window.
    frames = [b"%d\n" % id for id in range(1, 101)]
    all_of_them = PendingMessage(list(range(1, 101)), frames)
    for one in managers:
        one.send(all_of_them)
    for one in managers:
        one.acknowledged(64)
    assert len(wrapped) == 100
    assert b"".join(written) == b"".join([b"<%b>" % line for line in frames[:64]]) * 50 + b"".join(
        [b"<%b>" % line for line in frames[64:]]) * 50
