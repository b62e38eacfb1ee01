"""Many raw clients that one loop serves, in the test's own thread: over sockets (Member) and over
WebSockets (WebMember).

    crowd = Crowd()
    ann, bob = crowd.join(server.port, "ann", "bob")
    ann.say("hello")
    crowd.run(lambda: bob.chats == ["hello"])
    crowd.close()
"""

import json
import selectors
import socket
import time

from harness import TIMEOUT, frame, reset
from webclient import masked, upgrade_request


class Member:
    """A raw client: drops duplicates, acknowledges at once, keeps to the window, remembers what it
    heard. It can connect again, and goes on with its session: it sends again what was not
    confirmed.
    """

    # As of chatproto, and no more: so many of its frames may be unconfirmed.
    WINDOW = 64

    def __init__(self, port, name):
        self.port, self.name = port, name
        self.welcome = None
        # The codes of bare errors.
        self.errors = []
        # Numbered frames, each once, and the texts of the chats among them.
        self.heard = []
        self.chats = []
        # Whether the server may tell it that something is missing.
        self.may_miss = False
        # How many came again, and were dropped.
        self.doubles = 0
        self.seen = 0
        # Whether it acknowledges.
        self.acks = True
        # Ids of its own frames.
        self.said = self.sent = self.acked = 0
        # Its own frames that are not confirmed, by their ids.
        self.open = {}
        self.connect()

    def connect(self):
        """Connect, again or for the first time. A join is the next thing to say."""
        self.sock = socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT)
        # An ACK and a chat are two small writes.
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.joined = self.ended = False
        self._partial = b""

    def join(self, **fields):
        """Join, or come back with the session that there is."""
        if self.welcome:
            fields = {"session": self.welcome["session"], "epoch": self.welcome["epoch"],
                      "seen": self.seen, **fields}
        self.write(frame("join", name=self.name, **fields))

    def say(self, *texts, to=None):
        for text in texts:
            self.said += 1
            private = {"to": to} if to else {}
            self.open[self.said] = frame("chat", id=self.said, text=text, **private)
        self._send()

    def names(self, type):
        return [message["name"] for message in self.heard if message["type"] == type]

    def write(self, *frames):
        """Send frames in one piece. When the connection has broken, the next read says so."""
        try:
            self.sock.sendall(b"".join(self.encode(one) for one in frames))
        except OSError:
            pass

    def encode(self, frame):
        return frame

    def decode(self, data):
        """The frames in `data`, and what is left of it."""
        *lines, rest = data.split(b"\n")
        # This is far faster than to decode them one by one.
        return json.loads(b"[" + b",".join(lines) + b"]"), rest

    def readable(self):
        """Take what has come."""
        try:
            data = self.sock.recv(1 << 18)
        except OSError:
            data = b""
        self.ended = not data
        frames, self._partial = self.decode(self._partial + data)
        before = self.seen
        for message in frames:
            self._take(message)
        if self.seen > before and self.acks:
            self.write(frame("ack", id=self.seen))
        self._send()

    def _take(self, message):
        if message["type"] == "welcome":
            assert self.welcome is None or message["resumed"]
            assert message["missed"] == 0 or self.may_miss
            self.welcome, self.joined = message, True
            self.sent = message["got"]
            self._confirmed(message["got"])
        elif message["type"] == "ack":
            assert self.acked <= message["id"] <= self.sent
            self._confirmed(message["id"])
        elif "id" not in message:
            self.errors.append(message["code"])
        elif message["id"] <= self.seen:
            self.doubles += 1
        else:
            self.seen = message["id"]
            self.heard.append(message)
            if message["type"] == "chat":
                self.chats.append(message["text"])

    def _confirmed(self, upto):
        for id in range(self.acked + 1, upto + 1):
            del self.open[id]
        self.acked = upto

    def _send(self):
        """Say what the window has room for."""
        until = min(self.said, self.acked + self.WINDOW)
        if self.joined and self.sent < until:
            self.write(*(self.open[id] for id in range(self.sent + 1, until + 1)))
            self.sent = until

    def close(self, resets=False):
        """End the connection, with what is on its way in it."""
        if resets:
            reset(self.sock)
        else:
            self.sock.close()


class WebMember(Member):
    """The same over a WebSocket."""

    def connect(self):
        super().connect()
        self.sock.sendall(upgrade_request(self.port))
        self._upgraded = False

    def encode(self, frame):
        return masked(1, frame[:-1])

    def decode(self, data):
        if not self._upgraded:
            head, found, rest = data.partition(b"\r\n\r\n")
            if not found:
                return [], data
            assert head.startswith(b"HTTP/1.1 101 "), head
            self._upgraded, data = True, rest
        frames = []
        while len(data) >= 4:
            first, size, start = data[0], data[1], 2
            if size == 126:
                size, start = int.from_bytes(data[2:4], "big"), 4
            assert first in (0x81, 0x88) and size < 65_536
            if len(data) < start + size:
                break
            if first == 0x81:
                frames.append(json.loads(data[start:start + size]))
            data = data[start + size:]
        return frames, data


class Crowd:
    """Members and the one loop that serves them."""

    def __init__(self):
        self._selector = selectors.DefaultSelector()
        self._members = []
        # Whether those whose connection has ended come back at once.
        self.comes_back = False

    def connect(self, port, *names, kind=Member):
        """Members that have not joined."""
        members = [kind(port, name) for name in names]
        for member in members:
            self.wake(member)
        self._members += members
        return members

    def join(self, port, *names, kind=Member):
        """Members that have."""
        members = self.connect(port, *names, kind=kind)
        for member in members:
            member.join()
        self.run(lambda: all(member.joined for member in members))
        return members

    def come_back(self, member, resets=False):
        """End this member's connection, if it has not ended, and let it join over another."""
        self.hang_up(member, resets=resets)
        member.connect()
        self.wake(member)
        member.join()

    def resume(self, member):
        """Let it come back, and wait for its welcome."""
        self.come_back(member)
        self.run(lambda: member.joined)

    def run(self, until, seconds=TIMEOUT):
        """Serve everybody until `until()` is true; fail after `seconds`."""
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, "what was waited for did not happen"
            self.serve(0.02)

    def serve(self, seconds):
        """Serve those of whom something comes within `seconds`."""
        for key, _ in self._selector.select(max(0, seconds)):
            member = key.data
            member.readable()
            if member.ended and self.comes_back:
                self.come_back(member)
            elif member.ended:
                self.stop_reading(member)

    def serve_until(self, when):
        """Serve everybody until the clock shows `when`: the pace of a storm, not a wait for
        anything."""
        while time.monotonic() < when:
            self.serve(when - time.monotonic())

    def wake(self, member):
        """Read this member again."""
        self._selector.register(member.sock, selectors.EVENT_READ, member)

    def stop_reading(self, member):
        """What comes for it stays where it is."""
        self._selector.unregister(member.sock)

    def hang_up(self, *members, resets=False):
        """End their connections."""
        for member in members:
            if member.sock.fileno() >= 0 and member.sock in self._selector.get_map():
                self.stop_reading(member)
            member.close(resets)

    def close(self):
        for member in self._members:
            member.sock.close()
        self._selector.close()
