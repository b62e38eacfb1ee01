"""A clock that tests turn by hand, and a peer of a log on it: nothing waits or sleeps.

FakeTime is clock and timer of a real Alarm; Line is a MessageManager that reads a log of its own or
a shared one, with its peer's end of the wire.
"""

import json

from chatproto import NOWHERE, Alarm, MessageManager, MessageQueue, Ping


class FakeTimer:
    """A threading.Timer that rings when FakeTime says so, or when a test calls ring(), however
    late."""

    def __init__(self, fake, interval, function):
        self.due = fake.now + interval
        self.ring = function
        self.armed = False

    def start(self):
        assert self.daemon, "a deadline must not keep the process alive"
        self.armed = True

    def cancel(self):
        self.armed = False


class FakeTime:
    """The clock and the timer factory of an Alarm."""

    def __init__(self, now=1000.0):
        self.now = now
        self.timers = []

    def clock(self):
        return self.now

    def timer(self, interval, function):
        self.timers.append(FakeTimer(self, interval, function))
        return self.timers[-1]

    @property
    def armed(self):
        return [timer for timer in self.timers if timer.armed]

    def advance(self, seconds):
        """Turn the clock forward, and ring what is due on the way, in its order."""
        end = self.now + seconds
        while True:
            self.timers = due = self.armed
            due = [timer for timer in due if timer.due <= end]
            if not due:
                break
            first = min(due, key=lambda timer: timer.due)
            self.now = max(self.now, first.due)
            first.armed = False
            first.ring()
        self.now = end


class Line:
    """A MessageManager, the log that it reads, and what it has written: `sent()` gives the frames
    since the last call. It is its own chatproto.Peer and notes what it is told."""

    def __init__(self, place=0, time=None, log=None, opened=True, reader=None, begin=0, wrap=None):
        self.time = time or FakeTime()
        self.alarm = Alarm(self.time.clock, self.time.timer)
        self.log = MessageQueue() if log is None else log
        self.reader = reader
        self.writes = []
        self.deaths = []
        self.idles = []
        self.hungry = []
        self.on_idle = lambda: None
        self.manager = MessageManager(self.alarm, self.log, self, self.writes.append, wrap)
        if opened:
            self.manager.open(place, reader=reader, begin=begin)

    # chatproto.Peer

    def dead(self):
        self.deaths.append(self.time.now)

    def idle(self):
        self.idles.append(self.time.now)
        self.on_idle()

    def behind(self, retry):
        self.hungry.append(retry)

    # The room's part

    def add(self, *ids, audience=None, frame=None):
        """Put frames into the log, which nobody hears yet."""
        for id in ids:
            self.log.append(id, frame or Ping(id).encode(), audience)

    def publish(self, end=None):
        """Let them be heard, and wake this reader."""
        news = self.log.publish(end or self.log._ids[-1], self.time.now)
        if news is not None:
            self.manager.wake(news)
        return news

    def send(self, *ids, audience=None):
        """Put frames into the log and let each be heard at once."""
        for id in ids:
            self.add(id, audience=audience)
            self.publish(id)

    def ping(self):
        """What the room does about an idle member."""
        id = max(self.log.end, self.manager.sent) + 1
        self.manager.ping(id, Ping(id).encode())

    # The peer's part

    def sent(self):
        """Type and id of the frames that were written since the last call."""
        data, self.writes[:] = b"".join(self.writes), []
        return [(frame["type"], frame["id"]) for frame in map(json.loads, data.splitlines())]

    def again(self, place, **options):
        """The peer's next connection: it has everything up to `place`."""
        self.manager.close()
        self.writes.clear()
        other = Line(time=self.time, log=self.log, opened=False)
        other.manager.open(place, **options)
        return other

    @property
    def in_flight(self):
        """How many frames and bytes the window counts."""
        return self.manager._flying, self.manager._flying_bytes


def pings(*ids):
    """What Line.sent() says of these."""
    return [("ping", id) for id in ids]


def in_pieces(data):
    """The ids of the frames in some bytes."""
    return [json.loads(line)["id"] for line in data.splitlines()]


__all__ = ["FakeTime", "FakeTimer", "Line", "NOWHERE", "in_pieces", "pings"]
