"""A hundred members over sockets and a hundred over WebSockets in one room, while connections are cut: the promises hold alike.

All are served by the test's own thread. Nothing waits a fixed time; `seconds` is only reached on failure.
"""

import json
import random
import selectors
import socket
import struct
import time

import pytest

import harness
from webclient import KEY, masked

EACH = 100                     # members of each kind
SAYS = 3                        # messages of each
CUTS = 120                      # connections that are cut on the way


class Peer:
    """A member that comes back: acknowledges, resumes, sends again what was not confirmed, and remembers what it heard."""

    def __init__(self, port, name):
        self.port, self.name = port, name
        self.welcome = None
        self.seen = self.said = 0
        self.open = {}                  # id -> frame of ours that is not confirmed
        self.heard = []                 # id, speaker, text of each chat
        self.doubles = 0                # came again: dropped, as a receiver must
        self.connect()

    def connect(self):
        self.sock = socket.create_connection(("127.0.0.1", self.port), timeout=harness.TIMEOUT)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.joined, self.partial = False, b""
        resume = {key: self.welcome[key] for key in ("session", "epoch")} if self.welcome else {}
        self.greet({"type": "join", "name": self.name, "seen": self.seen, **resume})

    def greet(self, join):
        self.write([join])

    def say(self, text):
        self.said += 1
        self.open[self.said] = {"type": "chat", "id": self.said, "text": text}
        if self.joined:
            self.write([self.open[self.said]])

    def write(self, frames):
        try:
            self.sock.sendall(b"".join(self.encode(frame) for frame in frames))
        except OSError:
            pass                        # the next read says so

    def encode(self, frame):
        return json.dumps(frame).encode() + b"\n"

    def decode(self):
        """Take the whole frames off `partial`."""
        *lines, self.partial = self.partial.split(b"\n")
        return json.loads(b"[" + b",".join(lines) + b"]")

    def readable(self):
        """Take what has come; False at the end of the connection."""
        try:
            data = self.sock.recv(1 << 18)
        except OSError:
            data = b""
        self.partial += data
        before = self.seen
        for frame in self.decode():
            self.take(frame)
        if self.seen > before:
            self.write([{"type": "ack", "id": self.seen}])
        return bool(data)

    def take(self, frame):
        if frame["type"] == "welcome":
            assert frame["missed"] == 0 and (self.welcome is None or frame["resumed"])
            self.welcome, self.joined = frame, True
            self.confirmed(frame["got"])
            self.write(self.open.values())
        elif frame["type"] == "ack":
            self.confirmed(frame["id"])
        elif "id" not in frame or frame["type"] == "booted":       # an older connection must not take the newer one's place
            raise AssertionError(frame)
        elif frame["id"] <= self.seen:
            self.doubles += 1
        else:
            self.seen = frame["id"]
            if frame["type"] == "chat":
                self.heard.append((frame["id"], frame["from"], frame["text"]))

    def confirmed(self, upto):
        for id in [id for id in self.open if id <= upto]:
            del self.open[id]

    def cut(self, reset):
        """End the connection, with what is on its way in it."""
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class WebPeer(Peer):
    """The same over a WebSocket."""

    def greet(self, join):
        head = (f"GET /chat HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nOrigin: http://127.0.0.1:{self.port}\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n")
        self.upgraded = False
        self.sock.sendall(head.encode() + self.encode(join))

    def encode(self, frame):
        return masked(1, json.dumps(frame).encode())

    def decode(self):
        if not self.upgraded:
            head, found, rest = self.partial.partition(b"\r\n\r\n")
            if not found:
                return []
            assert head.startswith(b"HTTP/1.1 101 "), head
            self.upgraded, self.partial = True, rest
        frames, at = [], 0
        while len(self.partial) >= at + 4:
            first, size, start = self.partial[at], self.partial[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(self.partial[at + 2:at + 4], "big"), at + 4
            assert first in (0x81, 0x88) and size < 65_536
            if len(self.partial) < start + size:
                break
            if first == 0x81:
                frames.append(json.loads(self.partial[start:start + size]))
            at = start + size
        self.partial = self.partial[at:]
        return frames


@pytest.fixture
def server():
    with harness.serving("--rate", "0") as server:
        yield server


def test_mixed_room_while_connections_are_cut(server):
    """600 messages of 200 members, 120 connections cut in the middle: everybody hears every one once, in one order."""
    chance = random.Random(20261123)
    peers = [(Peer if number % 2 else WebPeer)(server.port, f"m{number}") for number in range(2 * EACH)]
    selector = selectors.DefaultSelector()
    for peer in peers:
        selector.register(peer.sock, selectors.EVENT_READ, peer)
    deadline = time.monotonic() + 60

    def serve(until):
        while not until():
            assert time.monotonic() < deadline, "what was waited for did not happen"
            for key, _ in selector.select(0.05):
                if not key.data.readable():
                    come_back(key.data)

    def come_back(peer, reset=False):
        selector.unregister(peer.sock)
        peer.cut(reset)
        peer.connect()
        selector.register(peer.sock, selectors.EVENT_READ, peer)

    serve(lambda: all(peer.joined for peer in peers))
    to_say = [(peer, f"{peer.name} says {number}") for number in range(SAYS) for peer in chance.sample(peers, len(peers))]
    cuts = set(chance.sample(range(len(to_say)), CUTS))
    for place, (peer, text) in enumerate(to_say):
        peer.say(text)
        if place in cuts:
            come_back(chance.choice(peers), reset=chance.random() < 0.5)
        for key, _ in selector.select(0):
            if not key.data.readable():
                come_back(key.data)
    serve(lambda: all(len(peer.heard) >= len(to_say) and not peer.open for peer in peers))
    order = peers[0].heard
    assert sorted(text for _, _, text in order) == sorted(text for _, text in to_say)
    assert all(text.startswith(speaker + " ") for _, speaker, text in order)
    assert [peer.name for peer in peers if peer.heard != order] == []
    assert [id for id, _, _ in order] == sorted({id for id, _, _ in order})
    for peer in peers:
        own = [text for _, speaker, text in order if speaker == peer.name]
        assert own == [f"{peer.name} says {number}" for number in range(SAYS)]
        peer.cut(False)
    selector.close()
