"""Makes the sockets of a Python process on Linux behave as those of another system do. Python
imports this file at its start when its folder is on PYTHONPATH (harness.sockets_of() is that
environment).

ROGER_SOCKETS names the system:

    windows   There is no MSG_DONTWAIT, no poll() and no epoll(). shutdown() does not wake a recv()
              that waits on another thread: it waits until the peer sends or ends. A recv() after
              the shutdown fails. A listening socket cannot be shut down.
    macos     MSG_DONTWAIT means nothing to send(), which waits for room. poll() does not know
              POLLRDHUP, and there is no epoll(). A listening socket cannot be shut down.

    pypy      Linux as it is, but for what PyPy's standard library lacks of it.

With the first two, sys.platform is "other" (or what ROGER_PLATFORM says), so that a program takes
the way that it takes wherever it is not on Linux, and none that needs more of Windows than its
sockets. All else stays as it is on Linux: os.name, errno, files, signals.
"""

import errno
import gc
import os
import select
import socket
import sys
import weakref

SYSTEM = os.environ.get("ROGER_SOCKETS", "")
# Sockets that were shut down for reading. (A socket has no room for an attribute.)
SHUT = weakref.WeakSet()


def fail(number):
    raise OSError(number, os.strerror(number))


def without(module, *names):
    """Take these names away where they are."""
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


def shutdown(sock, how):
    """Only the kernel's part that no reader notices, where the system is Windows."""
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        fail(errno.ENOTCONN)
    if SYSTEM == "macos":
        return REAL["shutdown"](sock, how)
    # Raises OSError where there is no connection, as the real one does.
    sock.getpeername()
    if how != socket.SHUT_WR:
        SHUT.add(sock)
    if how != socket.SHUT_RD:
        REAL["shutdown"](sock, socket.SHUT_WR)


def reader(name):
    """A method that reads, and fails after a shutdown."""
    def read(sock, *arguments, **options):
        if sock in SHUT:
            fail(errno.ESHUTDOWN)
        return REAL[name](sock, *arguments, **options)
    return read


def sender(name):
    """A method that sends, to which MSG_DONTWAIT means nothing."""
    def send(sock, data, flags=0):
        return REAL[name](sock, data, flags & ~socket.MSG_DONTWAIT)
    return send


REAL = {name: getattr(socket.socket, name)
        for name in ("shutdown", "recv", "recv_into", "send", "sendall")}
if SYSTEM == "pypy":
    without(os, "sched_getaffinity", "sched_setaffinity")
    without(gc, "set_threshold")
    without(select, "POLLRDHUP")
elif SYSTEM:
    sys.platform = os.environ.get("ROGER_PLATFORM", "other")
    # Linux alone has it; subprocess would poll() what it gives.
    without(os, "pidfd_open")
    without(select, "epoll", "POLLRDHUP", *(name for name in dir(select) if name[:5] == "EPOLL"))
    socket.socket.shutdown = shutdown
    if "selectors" in sys.modules:
        # Something in this environment has imported it before.
        sys.modules["selectors"].DefaultSelector = sys.modules["selectors"].SelectSelector
if SYSTEM == "windows":
    without(select, "poll", *(name for name in dir(select) if name.startswith("POLL")))
    without(socket, "MSG_DONTWAIT")
    for name in "recv", "recv_into":
        setattr(socket.socket, name, reader(name))
elif SYSTEM == "macos":
    for name in "send", "sendall":
        setattr(socket.socket, name, sender(name))
