"""Lets the tests import the modules of the repository's root, and the helpers from here, wherever
pytest is started; keeps for the hundreds of processes that they start what Python has compiled; and
has the fixtures that several files use.
"""

import atexit
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import types

import pytest

HERE = pathlib.Path(__file__).resolve().parent
for folder in (HERE, HERE.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

# In a folder of this run: nothing is left in the clone, and it is also done where the user keeps
# Python from writing it. (Where tests/run.py has made one, all its files share that.)
folder_of_run = tempfile.mkdtemp(prefix="roger-tests-")
atexit.register(shutil.rmtree, folder_of_run, ignore_errors=True)
os.environ.setdefault("PYTHONPYCACHEPREFIX", os.path.join(folder_of_run, "compiled"))
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# The clients of the tests keep their settings here, and not where the user keeps theirs.
SETTINGS = os.path.join(folder_of_run, "settings")
# (On Linux, and on Windows.)
os.environ["XDG_CONFIG_HOME"] = os.environ["APPDATA"] = SETTINGS

# Only now: the modules take the environment as it is, and are looked for where it says.
import chat_client  # noqa: E402
import chatproto  # noqa: E402
import paper  # noqa: E402
from harness import CLIENT, ENVIRONMENT, ROOT, SERVER, RawClient, client_command  # noqa: E402
from harness import serving, start_server  # noqa: E402
from onscreen import assert_restored, newest, sweep, wait, wait_messages  # noqa: E402
from program import LineProgram, Program  # noqa: E402


@pytest.fixture(autouse=True)
def no_settings():
    """What a test before has chosen is forgotten."""
    shutil.rmtree(SETTINGS, ignore_errors=True)


@pytest.fixture
def serve():
    """Start servers of the test's own; at the end none may have met a bug. They have no limit of
    messages a second, but with rate=None the one that users have."""
    servers = []

    def start(*arguments, rate=0, **options):
        limit = [] if rate is None else ["--rate", rate]
        servers.append(start_server("--bind", "127.0.0.1", *limit, *arguments, **options))
        return servers[-1]
    yield start
    for server in servers:
        # To kill it is faster than to stop it, and stopping is tested elsewhere.
        server.kill()
    for server in servers:
        server.assert_no_bug()


@pytest.fixture(scope="module")
def server(request):
    """One server for all tests of a file, with what its SERVER_OPTIONS add."""
    options = getattr(request.module, "SERVER_OPTIONS", ())
    with serving("--rate", "0", "--bind", "127.0.0.1", *options) as server:
        yield server


@pytest.fixture
def peer():
    """Connect raw clients that confirm what they get; with a name they join. They are closed at
    the end."""
    with contextlib.ExitStack() as peers:
        def connect(port, name=None, **fields):
            client = peers.enter_context(RawClient(port, auto_ack=True))
            if name is not None:
                client.join(name, **fields)
            return client
        yield connect


@pytest.fixture
def impatient(monkeypatch):
    """The clients of this process come back after hundredths of a second, and notice a silent
    connection after one. (A server is a process of its own, and keeps its times.)"""
    monkeypatch.setattr(chat_client, "random",
                        types.SimpleNamespace(uniform=lambda low, high: 0.01))
    monkeypatch.setattr(chatproto, "RETRY_DELAY", 0.2)
    monkeypatch.setattr(chatproto, "PING_AFTER", 0.5)


@pytest.fixture
def popen():
    """Start clients in pipes that are talked to while they run; what is left at the end is
    killed."""
    processes = []

    def start(port, *arguments, name="pipe", **options):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        processes.append(subprocess.Popen(client_command(port, *arguments, name=name), cwd=ROOT,
                                          env=ENVIRONMENT, **{**pipes, **options}))
        return processes[-1]
    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def terminal():
    """Start processes on terminals; what is left at the end is killed."""
    terminals = []

    def start(*command):
        terminals.append(LineProgram(*command))
        return terminals[-1]
    yield start
    for one in terminals:
        one.close()


@pytest.fixture
def chat(terminal):
    """A plain client on a terminal that is in."""
    def start(port, name="ann", *arguments):
        window = terminal(*client_command(port, "--plain", *arguments, name=name))
        window.expect(r"\* you are .*, \d+ here; /help lists the commands")
        return window
    return start


@pytest.fixture
def console(terminal):
    """A server on a terminal: it, and its port."""
    def start(*arguments):
        window = terminal(*SERVER, "0", "--bind", "127.0.0.1", *arguments)
        port = int(window.expect(r"Listening on 127\.0\.0\.1:\d+").rpartition(":")[2])
        window.expect(r"Others join with: python3? chat_client\.py 127\.0\.0\.1 \d+ -n NAME")
        return window, port
    return start


# --- Clients in a terminal, with the screen; the server has to have --grace 0.1 ---

@pytest.fixture
def empty_room(server):
    """Nobody of the test before is in the room any more."""
    with RawClient(server.port, auto_ack=True) as first:
        others = set(first.join("first")["users"]) - {"first"}
        while others:
            others.discard(first.recv_until("left")["name"])
        first.leave()


@pytest.fixture
def paused(server):
    """Stop the shared server; what it returns lets it go on."""
    def pause():
        server.process.send_signal(signal.SIGSTOP)
        # Its threads run on for a moment.
        _, status = os.waitpid(server.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        return resume

    def resume():
        server.process.send_signal(signal.SIGCONT)
    yield pause
    resume()


@pytest.fixture
def join(server):
    """Let raw clients join, the shared server by default; at the end they leave, and are gone
    before the next test."""
    peers = []

    def join(name, port=None):
        peers.append(RawClient(port or server.port, auto_ack=True))
        peers[-1].join(name)
        return peers[-1]
    yield join
    for one in peers:
        # An OSError: its server is gone.
        with contextlib.suppress(OSError):
            one.leave()
        one.close()


@pytest.fixture
def launch(server):
    """Start clients; at the end each has left the terminal as it was."""
    programs = []

    def start(*arguments, port=None, command=None, env=None, **options):
        if port is None:
            sweep(server.port)
        command = [*(command or CLIENT), "127.0.0.1", str(port or server.port), "-n", "ann"]
        programs.append(Program([*command, *arguments], cwd=ROOT,
                                env={"COLORTERM": None, **(env or {})}, **options))
        return programs[-1]
    yield start
    for program in programs:
        program.stop()
    for program in programs:
        assert_restored(program)


@pytest.fixture
def window(launch):
    """Start clients that are in and show nothing."""
    def start(*arguments, **options):
        program = launch(*arguments, **options)
        wait(program, lambda terminal: newest(terminal) == "sweeper: swept"
             and "you are ann" in terminal.text(), "the history")
        program.type("/clear\r")
        wait_messages(program)
        return program
    return start


@pytest.fixture
def desk(monkeypatch):
    """Make windows without a process; at the end none waits for an ACK."""
    paper.reset(monkeypatch)
    desks = []

    def sit_down(*size, **arguments):
        desks.append(paper.Desk(*size, **arguments))
        return desks[-1]
    yield sit_down
    for one in desks:
        one.close()
