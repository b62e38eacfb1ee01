"""HTTP and WebSocket for the tests, by the byte: what a browser does, and what none would.

    status, headers, body = request(port, "GET / HTTP/1.1", "Host: 127.0.0.1")
    web = WebClient(port)               # upgraded at /chat, with the right Origin
    web.join("ann")                     # from here on like harness.RawClient
"""

import json
import os
import socket
import struct

import harness
from harness import TIMEOUT

# RFC 6455, 1.2, and what it is answered with.
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def masked(opcode, payload=b"", fin=True, rsv=0, mask=True, length=None, form=None, key=None):
    """A client's frame. `length` is claimed instead of the real one, `form` (7, 16 or 64 bits) for
    the shortest."""
    size = len(payload) if length is None else length
    form = form or (7 if size < 126 else 16 if size < 65_536 else 64)
    key = os.urandom(4) if key is None else key
    first = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    flag = 0x80 if mask else 0
    head = first + {7: bytes([flag | size & 0x7F]),
                    16: struct.pack(">BH", flag | 126, size & 0xFFFF),
                    64: struct.pack(">BQ", flag | 127, size)}[form]
    if not mask:
        return head + payload
    repeated = (key * (len(payload) // 4 + 1))[:len(payload)]
    return head + key + bytes(a ^ b for a, b in zip(payload, repeated))


def read_answer(sock):
    """Status, headers (lower-case names) and body of an HTTP answer that ends with its
    connection."""
    data = b""
    while True:
        more = sock.recv(65536)
        if not more:
            break
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}
    return int(status.split()[1]) if status else 0, headers, body


def request(port, *lines, body=b"", host="127.0.0.1"):
    """Send a request of these lines, read the answer to its end."""
    with socket.create_connection((host, port), timeout=TIMEOUT) as sock:
        sock.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        return read_answer(sock)


def upgrade_request(port, host="127.0.0.1", path="/chat", origin=None):
    """What a browser sends to open a WebSocket, as bytes."""
    here = f"{host}:{port}"
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {here}", "Upgrade: websocket",
                        "Connection: Upgrade", f"Sec-WebSocket-Key: {KEY}",
                        "Sec-WebSocket-Version: 13", f"Origin: {origin or 'http://' + here}",
                        "", ""]).encode()


class WebClient(harness.RawClient):
    """A RawClient over a WebSocket. `frames` holds what was received, `pongs` the payloads of
    pongs, `closed` the close's."""

    def __init__(self, port, host="127.0.0.1", auto_ack=False, path="/chat", origin=None, more=b"",
                 context=None):
        super().__init__(port, host, auto_ack, context)
        self.pongs = []
        self.closed = None
        self.send_bytes(upgrade_request(port, host, path, origin) + more)
        while b"\r\n\r\n" not in self._partial:
            self._more()
        head, _, self._partial = self._partial.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        assert f"Sec-WebSocket-Accept: {ACCEPT}".encode() in head

    def send_bytes(self, data):
        """Send bytes as they are."""
        self._sock.sendall(data)

    def send(self, data):
        """Send a dict as a text message."""
        self.send_bytes(masked(1, harness.encode(data)[:-1]))

    def _more(self):
        self._partial += harness.receive(self._sock)

    def _need(self, size):
        while len(self._partial) < size:
            self._more()

    def event(self):
        """Opcode and payload of the server's next frame, which must be final and not masked."""
        self._need(2)
        first, size = self._partial[0], self._partial[1]
        assert first & 0xF0 == 0x80 and size < 128, "a fragment, a reserved bit or a mask"
        start = {126: 4, 127: 10}.get(size, 2)
        self._need(start)
        if start > 2:
            size = int.from_bytes(self._partial[2:start], "big")
            assert size > (125 if start == 4 else 65_535), "not the shortest form"
        self._need(start + size)
        payload, self._partial = self._partial[start:start + size], self._partial[start + size:]
        return first & 0x0F, payload

    def recv(self):
        """The next frame of the chat as a dict."""
        while True:
            opcode, payload = self.event()
            if opcode == 1:
                break
            if opcode == 8:
                self.closed = payload
            elif opcode == 10:
                self.pongs.append(payload)
        assert b"\n" not in payload
        return self._received(json.loads(payload.decode("utf-8")))

    def end(self):
        """Read to the end of the connection; return the status of the close, 0 for one without,
        None when there was none."""
        assert self.eof(), "the server did not close the connection"
        return self.closed if self.closed is None else int.from_bytes(self.closed[:2], "big")
