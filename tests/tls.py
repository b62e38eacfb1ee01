"""Certificates, contexts and a man in the middle for the tests of TLS."""

import atexit
import ctypes
import ctypes.util
import pathlib
import shutil
import socket
import ssl
import tempfile
import threading
import time

import pytest

import chat_server
import chatproto
from harness import shut

FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="roger-certificates-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
DAY = 86_400


def certificate(name="server", days=0):
    """The file of a certificate for localhost, and its key, as a server makes them after so many
    days; another one for each name."""
    path = FOLDER / f"{name}-{days}.pem"
    if not path.exists():
        now = time.time() + DAY * days
        path.write_text("".join(chat_server.make_certificate(["localhost"], ["127.0.0.1"], now)))
    return str(path)


def key_in(path):
    """By which others know a server with that certificate."""
    return chatproto.trust_key(ssl.PEM_cert_to_DER_cert(
        pathlib.Path(path).read_text().partition("-----BEGIN EC")[0]))


def context_of_a_server(name="server"):
    """As a server with that certificate has it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(name))
    # As ours: what nobody reads would reset the connection in the end.
    context.num_tickets = 0
    return context


def context_of_a_client():
    """As a client has it that takes every certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class OpenSSL:
    """A client that does with a connected socket what Python's ssl cannot; the test is skipped
    where OpenSSL is no library of the system's."""

    def __init__(self, sock):
        self._sock = sock
        name = ctypes.util.find_library("ssl")
        if name is None:
            sock.close()
            pytest.skip("needs OpenSSL as a library")
        self._library = ctypes.CDLL(name)
        self._context = self._call("SSL_CTX_new", self._call("TLS_client_method"))
        self._ssl = self._call("SSL_new", self._context)
        # It waits in the socket itself.
        sock.settimeout(None)
        self._call("SSL_set_fd", self._ssl, sock.fileno())

    def _call(self, name, *arguments):
        function = getattr(self._library, name)
        function.restype = ctypes.c_void_p
        result = function(*map(ctypes.c_void_p, arguments))
        assert result, name
        return result

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._library.SSL_free(ctypes.c_void_p(self._ssl))
        self._library.SSL_CTX_free(ctypes.c_void_p(self._context))
        self._sock.close()

    def greet(self):
        """Shake hands."""
        self._call("SSL_connect", self._ssl)

    def change_keys(self):
        """Use another key from now on (RFC 8446, 4.6.3)."""
        # 0: the other side keeps its own.
        self._call("SSL_key_update", self._ssl, 0)
        self._call("SSL_do_handshake", self._ssl)


class Middle:
    """A man in the middle of clients and the server on the port `target`: on `port` he shows a
    certificate of his own, talks to the server himself, and reads all that passes, in `heard`.
    While he is `honest` he passes on what he gets, which is encrypted."""

    def __init__(self, target):
        self.honest = False
        self.heard = b""
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._socks = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            try:
                if not self.honest:
                    client = context_of_a_server("middle").wrap_socket(client, server_side=True)
                    server = context_of_a_client().wrap_socket(server)
            except OSError:
                # He was found out.
                client.close()
                server.close()
                continue
            self._socks += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source, sink):
        try:
            while data := source.recv(65536):
                self.heard += data
                sink.sendall(data)
        except OSError:
            pass
        shut(source)
        shut(sink)

    def cut(self):
        """End what passes now."""
        for sock in self._socks:
            shut(sock)

    def close(self):
        """End all of it."""
        self.cut()
        shut(self._listener)
        self._listener.close()
