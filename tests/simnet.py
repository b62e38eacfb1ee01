"""The network of simulation.py: pipes that are late, cut, or silent, and TLS over them.

In the clear a Pipe takes what is said as it is. Under TLS it goes through the real
chatproto.SecureSocket on both sides, whose sockets are made here: so a cut falls anywhere within a
record, or within a handshake.

A seed has to make the same story again, and keys and signatures are new each time. So nothing may
hang on how long the messages of a handshake are, which differs by a byte or two: each counts for
HANDSHAKE bytes, and is cut in proportion. What is said has the same length in every run.
"""

import functools
import math
import pathlib
import socket
import ssl
import tempfile

# What each write of a handshake counts for in the life of a connection, in bytes.
HANDSHAKE = 300


class Pipe:
    """One direction of a connection: bytes arrive in order, in pieces, late; and not all of them
    when it is cut."""

    def __init__(self, world, link, deliver, end):
        self.world = world
        self.link = link
        self.deliver = deliver              # gets the bytes
        # Is told the end.
        self.end = end
        # The end of TLS that encrypts what is said.
        self.secure = None
        # Nothing overtakes what is on its way.
        self.busy_until = 0.0
        # The reader does not read before.
        self.stalled_until = 0.0
        # Arrived, while the reader stalls.
        self.unread = b""
        self.shut = False

    @property
    def is_over(self):
        return self.shut or self.link.cut or self.link.dying

    def say(self, data):
        """Send frames, with what may happen to them."""
        if self.is_over:
            return
        if self.world.troubled:
            data = self.meddle(data)
        (self.send if self.secure is None else self.secure.wire.write)(data)

    def send(self, data, count=None):
        """Send bytes, which count for so many."""
        if self.is_over:
            return
        count = len(data) if count is None else count
        stop = count
        if not self.link.spend(count):
            stop = self.world.random.randrange(count + 1)
            # Nothing follows what was cut off.
            self.link.dying = True
            self.world.after(self.world.random.uniform(0, 0.3), self.link.break_off)
        cuts = 0 if self.world.random.random() < 0.7 else self.world.random.randint(1, 3)
        places = sorted(self.world.random.randrange(stop + 1) for _ in range(cuts))
        for start, stop in zip([0, *places], [*places, stop]):
            if start < stop:
                self.pass_on(data[start * len(data) // count:stop * len(data) // count])

    def meddle(self, data):
        """Drop ACKs, double frames: what lost ACKs and retries come to."""
        lines = []
        for line in data.splitlines(keepends=True):
            if line.startswith(b'{"type":"ack"') and self.world.random.random() < 0.1:
                continue
            lines.append(line)
            if b'"id":' in line[:40] and self.world.random.random() < 0.05:
                lines.append(line)
        return b"".join(lines)

    def pass_on(self, data):
        delay = self.world.random.expovariate(50) if not self.world.chance(
            0.02) else self.world.random.uniform(0, 3)
        self.busy_until = max(self.world.now + delay, self.busy_until)
        self.world.at(self.busy_until, lambda: self.arrive(data))

    def arrive(self, data=b""):
        self.unread += data
        if self.stalled_until > self.world.now:
            self.world.at(self.stalled_until, self.arrive)
        elif not self.link.cut and not self.link.silent and self.unread:
            data, self.unread = self.unread, b""
            self.deliver(data)

    def finish(self):
        """The sender's half is over, after what it sent."""
        if not self.shut and not self.link.silent:
            self.shut = True
            self.busy_until = max(self.world.now, self.busy_until, self.stalled_until)
            self.world.at(self.busy_until, self.end)


class Link:
    """A connection between a client and the server, with its fate."""

    def __init__(self, world, client, server):
        self.world = world
        self.client = client
        self.server = server
        self.cut = self.silent = self.dying = False
        # Bytes that it lives for, in both directions together; half of them in trouble live for
        # good.
        self.left = world.random.randrange(4000) if world.chance(0.5) else None
        # The server's Connection; under TLS it is made when that is agreed on.
        self.connection = None
        server.links.append(self)
        self.to_client = Pipe(world, self, self.client_hears, self.client_lost)
        self.to_server = Pipe(world, self, self.server_hears, self.server_lost)
        if world.chance(0.1):
            world.after(world.random.uniform(0, 20), self.fall_silent)
        if world.chance(0.2):
            stall = world.random.choice([0.5, 3.0, 12.0])
            world.after(world.random.uniform(0, 20), lambda: self.stall(stall))

    def open(self):
        """Have both sides begin: the client is opened() when it may speak."""
        if self.world.tls is None:
            self.accept()
            self.client.opened(self)
            return
        End(self, self.to_client, self.to_server, None, self.accept)
        End(self, self.to_server, self.to_client, "server",
            lambda: self.client.opened(self)).read()

    def accept(self):
        self.connection = self.server.accept(self)

    def stall(self, seconds):
        self.to_client.stalled_until = self.world.now + seconds

    def fall_silent(self):
        """Nothing arrives any more, and nobody is told."""
        if not self.cut and self.world.troubled:
            self.world.tell(self.client.name, "silent connection")
            self.silent = True
            self.client.silent_since = self.world.now

    def spend(self, count):
        if self.left is None or not self.world.troubled:
            return True
        self.left -= count
        return self.left >= 0

    def break_off(self):
        """The cable is out; both sides are told."""
        if not self.cut:
            self.cut = True
            self.world.tell(self.client.name, "connection cut")
            self.client.lost(self, "cut")
            self.server_lost()

    def client_hears(self, data):
        self.client.hear(self, data)

    def client_lost(self):
        self.client.lost(self, "end")

    def server_hears(self, data):
        self.connection.received(data)
        self.release()

    def release(self):
        """Hand over what was received; later, where the room is held."""
        if self.connection is not None:
            wait = self.connection.release()
            if wait:
                self.world.after(wait, self.release)
            elif self.connection is not None and self.connection.has_more:
                self.server_hears(b"")

    def server_lost(self):
        if self.connection is not None:
            connection, self.connection = self.connection, None
            self.cut = True
            connection.manager.close()
            connection._room.post(connection._room.entrance.end, connection, "lost")
            self.world.after(0, self.client_lost)


class ServerWire:
    """What the server's Connection writes to, in the place of a MessageSocket."""

    def __init__(self, link, server):
        self.link = link
        self.server = server

    def write(self, data):
        self.server.watch(data)
        self.server.risk(0.001)
        self.link.to_client.say(data)

    def finish(self):
        pipe = self.link.to_client
        (pipe.finish if pipe.secure is None else pipe.secure.wire.finish)()

    def hung_up(self):
        return False

    def cut(self):
        if not self.link.silent:
            self.link.to_client.finish()
        self.link.server_lost()


# --- TLS ---

class NothingYet(BaseException):
    """A read that would block: it is tried again when something has come."""


def wait_for(sock, seconds, writable=False):
    """In the place of chatproto's."""
    return sock.is_ready()


class Socket:
    """What a MessageSocket has for a socket: `came` is what it may read, `send` takes what it
    writes, and may return how much of it."""

    def __init__(self, send, finish=lambda: None):
        self.came = b""
        self.ended = False
        self._send = send
        self._finish = finish

    def send(self, data, flags=0):
        """As of a socket that does not block, and may not take all of it."""
        taken = self._send(data)
        return len(data) if taken is None else taken

    def recv(self, size, flags=0):
        self.is_ready(BlockingIOError if flags else NothingYet)
        data, self.came = self.came[:size], self.came[size:]
        return data

    def is_ready(self, otherwise=NothingYet):
        if not self.came and not self.ended:
            raise otherwise
        return True

    def shutdown(self, how):
        self.ended = self.ended or how != socket.SHUT_WR
        if how != socket.SHUT_RD:
            self._finish()

    def setblocking(self, flag):
        pass

    def setsockopt(self, *arguments):
        pass

    def close(self):
        pass


class _OneTls:
    """A context that makes one TLS and gives it again."""

    def __init__(self, context):
        self.context = context
        self.tls = None

    def wrap_bio(self, *arguments, **options):
        self.tls = self.tls or self.context.wrap_bio(*arguments, **options)
        return self.tls


@functools.lru_cache(maxsize=4)
def _secure_socket(proto):
    class SecureSocket(proto.SecureSocket):
        """begin() blocks. Here NothingYet ends it when nothing more has come, and it is called
        again: then it goes on with the same TLS, and asks no second time how the peer begins."""

        __slots__ = ("context", "name")

        def begin(self, until):
            return super().begin(until, self.context, self.name)

        def peek(self, timeout):
            return super().peek(timeout) if self.context.tls is None else proto.GREETING
    return SecureSocket


def secured(world, sock, name=None):
    """The real SecureSocket over a Socket: a server's, or a client's that knows the server by
    `name`."""
    context = contexts(world.modules.chat_server)[world.tls if name else "server"]
    wire = _secure_socket(world.modules.chatproto)(sock)
    wire.context, wire.name = _OneTls(context), name
    return wire


@functools.lru_cache(maxsize=4)
def contexts(chat_server):
    """The server's, as a real one has it, with a key for all seeds; and those of clients with
    either version of TLS."""
    with tempfile.TemporaryDirectory(prefix="roger-simulation-") as folder:
        path = pathlib.Path(folder) / "server.pem"
        path.write_text("".join(chat_server.make_certificate(["server"], [], 1.7e9)))
        found = {"server": chat_server.Identity.load(str(path)).context}
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = found[version.name] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = version
    return found


class End:
    """One end of an encrypted connection: it reads from a pipe and writes to another. `begun` is
    called when TLS is agreed on."""

    def __init__(self, link, outgoing, incoming, name, begun):
        self.link = link
        self.outgoing = outgoing
        self.begun = begun
        self.sock = Socket(self.send, outgoing.finish)
        self.wire = secured(link.world, self.sock, name)
        outgoing.secure = self
        self.deliver, incoming.deliver = incoming.deliver, self.take
        self.end, incoming.end = incoming.end, self.ended

    def send(self, data):
        """Like a kernel that has not always room for all of it."""
        world = self.link.world
        if not data:
            return 0
        if not self.wire.is_encrypted:
            self.outgoing.send(data, HANDSHAKE)
            return len(data)
        if len(data) > 1 and world.chance(0.01):
            data = data[:world.random.randrange(len(data))]
        self.outgoing.send(data)
        return len(data)

    def take(self, data=b""):
        """What has come; sometimes the reading thread is a little late, and takes several at
        once."""
        self.sock.came += data
        if self.link.world.random.random() < 0.2:
            self.link.world.after(self.link.world.random.expovariate(100), self.read)
        else:
            self.read()

    def read(self):
        """As the reading thread."""
        try:
            if not self.wire.is_encrypted:
                self.wire.begin(math.inf)
                self.begun()
            while not self.link.cut:
                self.deliver(self.wire.read())
        except NothingYet:
            pass
        except self.link.world.modules.chatproto.ConnectionClosed as closed:
            if closed.__cause__ is not None:
                # This network cuts, and changes nothing.
                self.link.client.history.wrong(f"TLS broke: {closed}")
            self.end()

    def ended(self):
        self.sock.ended = True
        self.take()
