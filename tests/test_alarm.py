"""One timer for all deadlines of a process, on a clock that the tests turn by hand
(fake_time.py)."""

import gc
import queue
import threading
import weakref

import pytest
from fake_time import FakeTime

import chatproto
from chatproto import TICK, Alarm
from harness import TIMEOUT


def make_alarm(now=1000.0):
    fake = FakeTime(now)
    return fake, Alarm(fake.clock, fake.timer)


def test_alarm_one_timer_for_many_deadlines():
    """Hundred deadlines need one timer, and ring in their order."""
    fake, alarm = make_alarm()
    rung = []
    for number in range(100):
        alarm.at(1001.0 + number, lambda number=number: rung.append(number))
        assert len(fake.armed) == 1
    while fake.armed:
        assert len(fake.armed) == 1
        fake.advance(1)
    assert rung == list(range(100))


def test_alarm_earlier_deadline_arms_again():
    """An earlier deadline takes the timer over, a later one leaves it alone."""
    fake, alarm = make_alarm()
    rung = []
    alarm.at(1010.0, lambda: rung.append("late"))
    alarm.at(1020.0, lambda: rung.append("later"))
    assert len(fake.timers) == 1
    alarm.at(1005.0, lambda: rung.append("early"))
    assert [timer.due for timer in fake.armed] == [1005.0]
    fake.advance(5)
    assert rung == ["early"] and [timer.due for timer in fake.armed] == [1010.0]
    fake.advance(15)
    assert rung == ["early", "late", "later"]


def test_alarm_cancelled_timer_rings_late():
    """A timer that was cancelled too late to stop it does nothing, and the right one still
    rings."""
    fake, alarm = make_alarm()
    rung = []
    alarm.at(1010.0, lambda: rung.append("late"))
    (stale,) = fake.armed
    alarm.at(1005.0, lambda: rung.append("early"))
    stale.ring()
    assert rung == []
    fake.advance(5)
    assert rung == ["early"]
    stale.ring()
    assert "late" not in rung
    fake.advance(5)
    assert rung == ["early", "late"]


def test_alarm_armed_only_while_pending():
    """No timer is armed before the first deadline, between rings without work, or after the
    last."""
    fake, alarm = make_alarm()
    assert fake.armed == []
    alarm.at(1001.0, lambda: None)
    fake.advance(2)
    assert fake.armed == []
    alarm.at(1003.0, lambda: None)
    assert len(fake.armed) == 1


@pytest.mark.parametrize("when", [1001.0, 1001.01, 1001.049, 1001.0500001, 1003.3333])
def test_alarm_rounds_up_to_tick(when):
    """A deadline rings at its time or up to a TICK later, never before."""
    fake, alarm = make_alarm()
    rung = []
    alarm.at(when, lambda: rung.append(fake.now))
    fake.advance(5)
    assert len(rung) == 1 and when <= rung[0] <= when + TICK + 1e-6


def test_alarm_same_tick_one_ring():
    """Deadlines within a TICK share a ring."""
    fake, alarm = make_alarm()
    rung = []
    for number in range(10):
        alarm.at(1001.001 + number / 250, lambda: rung.append(fake.now))
    fake.advance(2)
    assert len(rung) == 10 and len(set(rung)) == 1


def test_alarm_past_deadline_rings_at_once():
    """A deadline that has passed rings without a negative wait."""
    fake, alarm = make_alarm()
    rung = []
    alarm.at(990.0, lambda: rung.append(True))
    assert fake.armed[0].due == fake.now
    fake.advance(0)
    assert rung == [True]


def test_alarm_action_sets_deadline():
    """An action may ask for the next ring."""
    fake, alarm = make_alarm()
    rung = []

    def again():
        rung.append(fake.now)
        if len(rung) < 3:
            alarm.at(fake.now + 1, again)
    alarm.at(1001.0, again)
    fake.advance(10)
    assert rung == pytest.approx([1001, 1002, 1003], abs=2 * TICK)
    assert fake.armed == []


def test_alarm_close():
    """After close() nothing is armed, now or later; it may be called twice."""
    fake, alarm = make_alarm()
    rung = []
    alarm.at(1001.0, lambda: rung.append(True))
    alarm.close()
    alarm.close()
    assert fake.armed == []
    alarm.at(1002.0, lambda: rung.append(True))
    fake.advance(10)
    assert fake.armed == [] and rung == []


def test_alarm_close_before_late_ring():
    """A timer that close() came too late to stop does nothing: never means never."""
    fake, alarm = make_alarm()
    rung = []
    alarm.at(1001.0, lambda: rung.append(True))
    (late,) = fake.armed
    alarm.close()
    fake.now = 1001.0
    late.ring()
    assert rung == []


def test_alarm_without_threads():
    """When no timer can be started the next deadline tries again, and those that are due ring with
    it."""
    fake, alarm = make_alarm()
    rung = []

    def fails(*arguments):
        timer = fake.timer(*arguments)
        timer.start = start
        return timer

    def start():
        raise RuntimeError("can't start new thread")
    alarm._new_timer = fails
    alarm.at(1001.0, lambda: rung.append(1))
    assert fake.armed == []
    alarm._new_timer = fake.timer
    alarm.at(1002.0, lambda: rung.append(2))
    fake.advance(2)
    assert rung == [1, 2]


def test_alarm_far_deadline():
    """A deadline in ten days rings then, though no timer waits that long: systems differ in what
    they can wait."""
    fake, alarm = make_alarm()
    rung = []
    alarm.at(1000.0 + 864_000, lambda: rung.append(fake.now))
    assert fake.armed[0].due <= 1000 + chatproto.LONGEST_WAIT
    fake.advance(863_999)
    assert rung == [] and len(fake.armed) == 1
    fake.advance(1.1)
    assert len(rung) == 1


def test_alarm_weakly():
    """An action made by weakly() does its work, and does not keep its object alive until the
    deadline."""
    fake, alarm = make_alarm()
    rung = []

    class Thing:
        def ring(self, number):
            rung.append(number)
    kept, dropped = Thing(), Thing()
    alarm.at(1001.0, chatproto.weakly(kept.ring, 1))
    alarm.at(1001.0, chatproto.weakly(dropped.ring, 2))
    gone = weakref.ref(dropped)
    del dropped
    gc.collect()
    assert gone() is None
    fake.advance(2)
    assert rung == [1]


def test_alarm_real_timer():
    """The defaults are the real clock and threading.Timer, whose thread is a daemon with a name."""
    alarm = Alarm()
    rung = queue.Queue()
    alarm.at(alarm.clock(), lambda: rung.put(threading.current_thread()))
    thread = rung.get(timeout=TIMEOUT)
    alarm.close()
    assert thread.daemon and thread.name == "alarm"
