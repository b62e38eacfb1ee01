"""A proxy between clients and the server that breaks what passes: at once when a test says so
(cut()), or, given a seed, each connection with faults of its own."""

import random
import selectors
import socket
import threading
from collections import Counter

from harness import TIMEOUT, reset, shut


class CuttingProxy:
    """Sits on `port` between clients and the server on the port `target`.

    Without a seed everything passes, until cut(). With one each connection gets its faults by its
    number and the seed:

    - it is cut after a random number of bytes, counted in a random direction, on both sides with a
      FIN or with a RST; sometimes the server's side is cut a moment later than the client's, so
      that the client is back before it;
    - or it goes silent after them: nothing passes any more, and nobody is told;
    - ACKs from the server are swallowed, and whole frames come twice, in both directions.

    The first line of each direction (join and welcome) passes whole. What `is_encrypted` has no
    lines: there nothing is swallowed or doubled, and it is cut anywhere. calm() ends the mischief;
    what is silent then is cut.

    One thread accepts ("proxy"), one a connection pumps ("link"); close() ends them all.
    """

    # Bytes after which a connection is cut.
    LEAST, MOST = 200, 10_000
    # Every so many-th connection goes silent.
    SILENT = 12
    # Of every so many-th the server hears late that it was cut, by so many seconds.
    LATE, LATENESS = 3, 0.1
    # The parts of the server's ACKs that are swallowed, and of the frames that come twice.
    SWALLOW, DOUBLE = 0.3, 0.05
    # Else what passes is bytes, and is only cut: HTTP.
    is_of_lines = True

    def __init__(self, target, seed=None, is_encrypted=False):
        self.target = target
        self.seed = seed
        self.is_encrypted = is_encrypted
        self.is_calm = threading.Event()
        if seed is None:
            self.calm()
        # What was done, for a test that wants to know that something was.
        self.counts = Counter()
        # Protects the two below; a leaf.
        self._lock = threading.Lock()
        self._socks = set()
        self._refuses = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def calm(self):
        """From here on everything passes."""
        self.is_calm.set()

    def cut(self, refusing=False):
        """End every connection; refuse others from here on while `refusing`."""
        with self._lock:
            self._refuses = refusing
            for sock in self._socks:
                shut(sock)

    def allow(self):
        """Let others in again."""
        with self._lock:
            self._refuses = False

    def close(self):
        """End all of it; may be called twice."""
        self.calm()
        self.cut(refusing=True)
        # This wakes accept().
        shut(self._listener)
        self._listener.close()

    def opened(self, *socks):
        """From a link: these are its sockets."""
        with self._lock:
            self._socks |= set(socks)
            if self._refuses:
                for sock in socks:
                    shut(sock)

    def ended(self, *socks):
        """From a link: these are about to be closed."""
        with self._lock:
            self._socks -= set(socks)

    def _accept(self):
        number = 0
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            number += 1
            try:
                link = Link(self, client, number)
            except OSError:
                # No server is there now.
                client.close()
                continue
            threading.Thread(target=link.run, name="link", daemon=True).start()


class Link:
    """One connection through the proxy, pumped by one thread."""

    def __init__(self, proxy, client, number):
        self._proxy = proxy
        self._client = client
        self._server = socket.create_connection(("127.0.0.1", proxy.target), timeout=TIMEOUT)
        self._chance = random.Random(f"{proxy.seed} {number}")
        self._is_silent = number % proxy.SILENT == 0
        self._resets = number % 2 == 1 and proxy.seed is not None
        self._lateness = proxy.LATENESS if number % proxy.LATE == 0 else 0
        # Bytes that still pass, of those that each side sends.
        self._left = {client: float("inf"), self._server: float("inf")}
        cut = self._server if self._chance.random() < 0.7 else client
        self._left[cut] = self._chance.randint(proxy.LEAST, proxy.MOST)
        # A line of each side without its end.
        self._partial = {client: b"", self._server: b""}
        # Whose first line has passed.
        self._has_begun = set()
        proxy.opened(client, self._server)

    def run(self):
        """Pump until one side ends, or the connection is cut."""
        try:
            with selectors.DefaultSelector() as selector:
                for sock in self._left:
                    selector.register(sock, selectors.EVENT_READ)
                while all(self._pass_on(key.fileobj) for key, _ in selector.select()):
                    pass
        except OSError:
            # One side is gone.
            pass
        self._proxy.ended(self._client, self._server)
        self._end(self._client)
        if not self._proxy.is_calm.wait(self._lateness):
            self._proxy.counts["late"] += bool(self._lateness)
        self._end(self._server)

    def _pass_on(self, source):
        """Let through what has come from `source`; False at the end of the connection."""
        data = source.recv(65_536)
        if not data:
            return False
        calm = self._proxy.is_calm.is_set()
        if 0 in self._left.values():
            # The connection is silent: what comes is swallowed.
            return not calm
        data = self._partial[source] + data
        sink = self._server if source is self._client else self._client
        if calm:
            self._partial[source] = b""
            sink.sendall(data)
            return True
        if self._proxy.is_of_lines and not self._proxy.is_encrypted:
            *lines, self._partial[source] = data.split(b"\n")
            data = b"".join(self._spoil(line + b"\n", source) for line in lines)
        if len(data) < self._left[source]:
            self._left[source] -= len(data)
            sink.sendall(data)
            return True
        # This cuts in the middle of a frame, as likely as not.
        sink.sendall(data[:int(self._left[source])])
        self._left[source] = 0
        what = "silent" if self._is_silent else "RST" if self._resets else "FIN"
        self._proxy.counts[what] += 1
        return self._is_silent

    def _spoil(self, line, source):
        """`line`, or nothing, or twice."""
        if source not in self._has_begun:
            self._has_begun.add(source)
            return line
        chance = self._chance.random()
        is_ack = line.startswith(b'{"type":"ack"')
        if is_ack and source is self._server and chance < self._proxy.SWALLOW:
            self._proxy.counts["swallowed"] += 1
            return b""
        if not is_ack and chance < self._proxy.DOUBLE:
            self._proxy.counts["doubled"] += 1
            return line * 2
        return line

    def _end(self, sock):
        if self._resets:
            reset(sock)
        else:
            shut(sock)
            sock.close()
