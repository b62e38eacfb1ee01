"""A bare WebSocket echo with chat_web's code, for conformance suites such as Autobahn's.

    python tests/echo.py PORT           0 takes a free one; it listens on this machine alone
"""

import argparse
import pathlib
import socketserver
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from chat_web import Request, frame  # noqa: E402
from chatproto import ConnectionClosed, MessageSocket  # noqa: E402

# Bytes of a message that it takes.
LONGEST = 16 * 1024 * 1024


class EchoSocket(MessageSocket):
    """Keeps what the kernel does not take at once, until all is written: there is only one thread,
    and nobody else to keep waiting."""

    UNSENT = 4 * LONGEST


class EchoRequest(Request):
    """Every path is the echo, for everybody."""

    def answer(self):
        return self.upgrade()


class EchoHandler(socketserver.BaseRequestHandler):
    """One connection's thread."""

    def handle(self):
        wire = EchoSocket(self.request)
        websocket = EchoRequest(wire, str(self.client_address)).serve()
        try:
            if websocket is not None:
                # What the chat refuses (long, binary, in many fragments) is to be echoed here.
                decoder = websocket.decoder
                decoder.max_message, decoder.binary, decoder.max_fragments = LONGEST, True, 0
            while websocket is not None:
                for opcode, payload in websocket.messages():
                    websocket.write(frame(opcode, payload))
                    wire.write_all(b"", time.monotonic() + 60)
        except ConnectionClosed:
            pass
        wire.linger()
        wire.close()


class EchoServer(socketserver.ThreadingTCPServer):
    """The echo's listening socket."""

    allow_reuse_address = sys.platform != "win32"
    daemon_threads = True
    request_queue_size = 128


def main():
    """Run the echo until it is interrupted; return the exit code."""
    parser = argparse.ArgumentParser(description="A WebSocket echo, for conformance suites.")
    parser.add_argument("port", type=int, metavar="PORT", help="0 takes a free one")
    server = EchoServer(("127.0.0.1", parser.parse_args().port), EchoHandler)
    print(f"Listening on 127.0.0.1:{server.server_address[1]}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
