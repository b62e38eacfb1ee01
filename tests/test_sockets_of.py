"""That the environment for other systems' sockets (harness.sockets_of) does what it says: each of
its differences in a process that has it, and none of them in one that has not."""

import sys

import pytest

from harness import run_python, sockets_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="turns Linux into other systems")

LOOK = """
import select, socket, sys, threading

def outcome(function, *arguments):
    try:
        return repr(function(*arguments))
    except OSError as error:
        return type(error).__name__ + " " + str(error.errno)

print("platform:", sys.platform)
print("names:", *(name for module, name in ((socket, "MSG_DONTWAIT"), (select, "poll"),
                  (select, "POLLRDHUP"), (select, "epoll")) if hasattr(module, name)))

# A reader that waits, and a shutdown on another thread. What the peer sends then ends the wait.
# (Where that is expected to end nothing, what is looked at is that nothing happens.)
expected = sys.argv[1:]
ours, theirs = socket.socketpair()
reading = threading.Event()

def read():
    reading.set()
    outcome(ours.recv, 10)
reader = threading.Thread(target=read)
reader.start()
reading.wait()
ours.shutdown(socket.SHUT_RDWR)
reader.join(30 if "woken" in expected else 0.3)
print("woken:", not reader.is_alive())
print("its peer reads:", theirs.recv(10))
theirs.close()
reader.join()
print("read again:", outcome(ours.recv, 10))

with socket.create_server(("127.0.0.1", 0)) as listener:
    print("listener:", outcome(listener.shutdown, socket.SHUT_RDWR))

# More than fits, to a peer that does not read, without waiting.
ours, theirs = socket.socketpair()
flags = getattr(socket, "MSG_DONTWAIT", 0)

def fill():
    while True:
        ours.send(b"x" * 100_000, flags)
filler = threading.Thread(target=lambda: print("full:", outcome(fill)), daemon=True)
filler.start()
filler.join(30 if "full" in expected else 0.3)
if filler.is_alive():
    print("full: waits")
"""
PLAIN = {"platform": "linux", "names": "MSG_DONTWAIT poll POLLRDHUP epoll", "woken": "True",
         "its peer reads": "b''", "read again": "b''", "listener": "None",
         "full": "BlockingIOError 11"}


@pytest.mark.parametrize("system, differences", [
    (None, {}),
    ("windows", {"platform": "other", "names": "", "woken": "False",
                 "read again": "BrokenPipeError 108",
                 "listener": "OSError 107", "full": "waits"}),
    ("macos", {"platform": "other", "names": "MSG_DONTWAIT poll", "listener": "OSError 107",
               "full": "waits"})])
def test_sockets_of_another_system(system, differences):
    """No MSG_DONTWAIT, no poll, a shutdown that wakes nobody: in the process that was asked for,
    and not elsewhere."""
    done = run_python("-c", LOOK, *(PLAIN.keys() - differences.keys()), env=sockets_of(system))
    assert done.stderr == ""
    found = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert {what: said.strip() for what, said in found.items()} == {**PLAIN, **differences}


@pytest.mark.parametrize("system", ["windows", "macos"])
def test_server_has_the_sockets_of_another_system(serve, system):
    """start_server(sockets=...) is a server that has them."""
    server = serve(sockets=system, program=("-c", """if True:
        import select, socket, sys
        import chat_server
        poll, shutdown = hasattr(select, "poll"), socket.socket.shutdown.__module__
        print("poll:", poll, "shutdown:", shutdown, file=sys.stderr)
        sys.exit(chat_server.main())"""))
    assert f"poll: {system == 'macos'} shutdown: sitecustomize" in server.stderr_text()
