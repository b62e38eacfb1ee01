"""A MessageSocket on a real connection: reads that block and are woken, writes that never block.
The same holds for a SecureSocket."""

import queue
import socket
import sys
import threading
import time

import pytest
from fake_time import Line

import chatproto
from chat_web import WebSocket
from chatproto import (FROM_SERVER, Chat, ConnectionClosed, FrameDecoder, MessageManager,
                       MessageSocket, SecureSocket)
from harness import TIMEOUT, wait_until
from tls import OpenSSL, context_of_a_client, context_of_a_server


def connected():
    """Two ends of a connection. TCP, as a MessageSocket sets options that others lack."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        ours = socket.create_connection(listener.getsockname(), timeout=TIMEOUT)
        theirs, _ = listener.accept()
    ours.settimeout(None)
    theirs.settimeout(TIMEOUT)
    return ours, theirs


@pytest.fixture(params=["clear", "server", "client"])
def pair(request):
    """A MessageSocket, or a SecureSocket of either role, and the socket at its other end."""
    ours, theirs = connected()
    if request.param == "clear":
        wire = MessageSocket(ours)
    else:
        wire, theirs = secured(ours, theirs, request.param)
    yield wire, theirs
    wire.close()
    theirs.close()


def secured(ours, theirs, role):
    """A SecureSocket of that role, and the SSLSocket that has shaken hands with it."""
    contexts = {"server": context_of_a_server(), "client": context_of_a_client()}
    wire, ours_context = SecureSocket(ours), contexts.pop(role)
    name = "localhost" if role == "client" else None
    (other, context), = contexts.items()
    thread, result = run(lambda: wire.begin(time.monotonic() + TIMEOUT, ours_context, name))
    theirs = context.wrap_socket(theirs, server_side=other == "server")
    thread.join(TIMEOUT)
    assert result.get_nowait() is True
    return wire, theirs


def run(function):
    """Run `function` in a thread and return it with the queue of its result or ConnectionClosed."""
    result = queue.Queue()

    def body():
        try:
            result.put(function())
        except ConnectionClosed as error:
            result.put(error)
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread, result


def read_all(sock):
    data = b""
    while True:
        piece = sock.recv(65536)
        if not piece:
            return data
        data += piece


def read_size(sock, size):
    """So many bytes. (Over TLS a read waits for a whole record, so who writes has to go on.)"""
    data = b""
    while len(data) < size:
        data += sock.recv(65536)
    return data


def read_lines(sock, count):
    """So many lines."""
    data = b""
    while data.count(b"\n") < count:
        data += sock.recv(65536)
    return data


def test_socket_read_and_write(pair):
    """Bytes go both ways; a read with a time-out that nothing ends returns b""."""
    wire, peer = pair
    wire.write(b"there")
    peer.sendall(b"back")
    assert (peer.recv(100), wire.read()) == (b"there", b"back")
    assert wire.read(0) == b""


def test_socket_read_grows(pair):
    """A read that came back full is followed by a bigger one."""
    wire, peer = pair
    peer.sendall(b"x" * 20_000)
    peer.shutdown(socket.SHUT_WR)
    sizes = []
    with pytest.raises(ConnectionClosed):
        while True:
            sizes.append(len(wire.read()))
    assert sum(sizes) == 20_000 and len(sizes) < 20_000 / chatproto.READ_SIZE


def test_socket_write_never_blocks(pair):
    """Against a peer that does not read, writes return, and in the end cut the connection instead
    of growing for ever."""
    wire, peer = pair
    chunk = bytes(range(256)) * 256
    thread, _ = run(lambda: [wire.write(chunk) for _ in range(400)])
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    assert len(wire._unsent) <= wire.UNSENT + 2 * len(chunk)
    with pytest.raises(ConnectionClosed):
        wire.read()
    got = read_all(peer)
    assert got == (chunk * 400)[:len(got)] and len(got) < 400 * len(chunk)


def test_socket_unsent_goes_first(pair):
    """What the kernel did not take at once is sent before anything newer, without a gap or a
    repetition."""
    wire, peer = pair
    expected = bytearray()
    number = 0
    while not wire._unsent:
        chunk = b"%07d\n" % number * 4096
        wire.write(chunk)
        expected += chunk
        number += 1
        assert number < 10_000, "this kernel takes everything"
    wire.write(b"tail")
    expected += b"tail"
    _, got = run(lambda: read_size(peer, len(expected)))
    wait_until(lambda: wire.write(b"") or not wire._unsent)
    assert got.get(timeout=TIMEOUT) == expected


def test_socket_cut_wakes_a_blocked_read(pair):
    """cut() from another thread ends a read that waits."""
    wire, peer = pair
    about_to_read = threading.Event()

    def read():
        about_to_read.set()
        return wire.read()
    thread, result = run(read)
    assert about_to_read.wait(TIMEOUT)
    wire.cut()
    thread.join(TIMEOUT)
    assert not thread.is_alive() and isinstance(result.get_nowait(), ConnectionClosed)
    assert peer.recv(1) == b""


def test_socket_finish(pair):
    """After finish() the peer reads all that was written and then the end, and we still read what
    it says."""
    wire, peer = pair
    wire.write(b"last words")
    wire.finish()
    assert read_all(peer) == b"last words"
    peer.sendall(b"bye")
    assert wire.read() == b"bye"


def test_socket_end_of_the_peer(pair):
    """The peer's end is ConnectionClosed with a reason, not an OSError and not b""."""
    wire, peer = pair
    peer.close()
    with pytest.raises(ConnectionClosed) as caught:
        wire.read()
    assert str(caught.value)


def test_socket_close_then_cut(pair):
    """Late calls on a closed socket do no harm, and reading it is ConnectionClosed, with a time-out
    and without."""
    wire, peer = pair
    wire.close()
    wire.cut()
    wire.finish()
    wire.close()
    wire.write(b"nobody")
    for timeout in (None, 1):
        with pytest.raises(ConnectionClosed):
            wire.read(timeout)
    assert peer.recv(1) == b""


def test_socket_write_after_reset(pair):
    """Writes to a peer that is gone raise nothing; the reader hears of it."""
    wire, peer = pair
    peer.close()
    for _ in range(100):
        wire.write(b"x" * 1000)
    with pytest.raises(ConnectionClosed):
        while True:
            wire.read()


def test_socket_concurrent_writers(pair):
    """Frames of four threads that share a manager are never torn, and each thread's keep their
    order."""
    wire, peer = pair
    # So that the kernel takes some by half.
    wire._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    line = Line(opened=False)
    manager = MessageManager(line.alarm, line.log, line, wire.write)
    names = "abcd"

    def say(name):
        for number in range(1, 101):
            manager.write_bare(Chat(number, name, name * (number * 7 % 500 + 1), 1.0).encode())
    threads = [threading.Thread(target=say, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    _, lines = run(lambda: read_lines(peer, 400))
    wait_until(lambda: wire.write(b"") or not wire._unsent)
    got = list(FrameDecoder(FROM_SERVER).feed(lines.get(timeout=TIMEOUT)))
    for name in names:
        assert [(m.id, m.text) for m in got
                if m.sender == name] == [(n, name * (n * 7 % 500 + 1)) for n in range(1, 101)]


def test_socket_hung_up():
    """A peer has hung up when it has ended the connection, on Linux even while something of what it
    said is left to read."""
    ours, theirs = socket.socketpair()
    wire = MessageSocket(ours)
    assert not wire.hung_up()
    theirs.sendall(b"x")
    assert not wire.hung_up()
    theirs.close()
    assert wire.hung_up() == sys.platform.startswith("linux")
    assert wire.read() == b"x"
    assert wire.hung_up()
    wire.close()
    assert wire.hung_up()


# --- What TLS does besides ---

@pytest.fixture
def server_end():
    """A server's SecureSocket, and the client's SSLSocket."""
    wire, theirs = secured(*connected(), "server")
    yield wire, theirs
    wire.close()
    theirs.close()


def read_bytes(wire, size):
    """What a reader of ours gets, until it is so much."""
    data = b""
    while len(data) < size:
        data += wire.read(TIMEOUT)
    return data


@pytest.mark.parametrize("piece, count, is_fair", [
    (b'{"type":"ack","id":7}\n', 3_000, True), (b"x" * 60_000, 5, True), (b"x", 5_000, False)])
def test_socket_small_records(server_end, piece, count, is_fair):
    """Records of a byte are charged to the flood limit, as they cost more work than they bring;
    ACKs each in a record of its own, and large ones that come in pieces, are not."""
    wire, theirs = server_end
    thread, result = run(lambda: read_bytes(wire, count * len(piece)))
    for _ in range(count):
        theirs.sendall(piece)
    assert result.get(timeout=TIMEOUT) == count * piece
    thread.join(TIMEOUT)
    assert (wire.overhead == 0) == is_fair


def test_socket_small_records_of_a_browser(server_end):
    """A WebSocket hands on what it owes, and once."""
    wire, theirs = server_end
    browser = WebSocket(wire)
    thread, result = run(lambda: read_bytes(browser, 4_001))
    # The head of a long text, with an empty mask, and then its bytes one by one.
    text = b"\x81\xfe" + (4_000).to_bytes(2, "big") + b"\0\0\0\0" + b"x" * 4_000
    for byte in text:
        theirs.sendall(bytes([byte]))
    assert result.get(timeout=TIMEOUT) == b"x" * 4_000 + b"\n"
    thread.join(TIMEOUT)
    assert browser.overhead > 100 and wire.overhead == 0


def test_socket_flood_of_new_keys():
    """Who changes keys all the time is charged for that, and the reader is told, though nothing was
    said."""
    ours, theirs = connected()
    wire, context = SecureSocket(ours), context_of_a_server()
    with OpenSSL(theirs) as peer:
        until = time.monotonic() + TIMEOUT
        thread, result = run(lambda: wire.begin(until, context) and wire.read())
        peer.greet()
        # 22 bytes a record, and its head, of which two records' worth is free.
        for _ in range(3_000):
            peer.change_keys()
        assert result.get(timeout=TIMEOUT) == b"" and wire.overhead > 0
        thread.join(TIMEOUT)
        wire.close()
