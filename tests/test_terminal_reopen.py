"""Who reopens a terminal goes on with the session that it had: after a crash, a window that was
closed, a lost line; not after leaving, not beside a terminal that has it, not in pipes."""

import json
import os
import pathlib
import signal
import subprocess
import time

import pytest

from chat_client import KeptSession, Ticket
from conftest import SETTINGS
from harness import CLIENT, ENVIRONMENT, ROOT, TIMEOUT, RawClient, client_command, posix_only
from onscreen import CTRL_C, CTRL_D, WELCOME, FakeServer, heard, messages, status, wait
from program import Program

pytestmark = posix_only
FOLDER = pathlib.Path(SETTINGS, "roger")


def kept():
    """The files of kept sessions."""
    return [pathlib.Path(file.path) for file in os.scandir(FOLDER)
            if file.name.endswith(".json")] if FOLDER.exists() else []


@pytest.fixture
def room(serve):
    """A server of the test's own, with the grace time that users have, and bob in it."""
    server = serve()
    with RawClient(server.port, auto_ack=True) as bob:
        bob.join("bob")
        yield server, bob


@pytest.fixture
def sit(launch, room):
    """Start ann's client and wait until it is in: `as_what` it says it is."""
    def sit(as_what):
        ann = launch(port=room[0].port)
        ann.wait_for(f"* you are {as_what}, ")
        return ann
    return sit


@pytest.fixture
def killed(room):
    """Let ann's client be in, say so much, and be killed; nothing puts its terminal back."""
    def killed(keys, sign):
        with Program(client_command(room[0].port, name="ann"), cwd=ROOT) as ann:
            ann.wait_for("* you are ann, ")
            ann.type(keys)
            ann.wait_for(sign)
            ann.signal(signal.SIGKILL)
            ann.wait_exit()
    return killed


def test_reopened_after_kill(killed, sit, room):
    """After kill -9 the next terminal is the same person to all others, has what was said before
    above and what was said meanwhile below, and what it says is no duplicate."""
    _, bob = room
    bob.say("zero")
    killed("one\r", "ann: one (heard by")
    assert heard(bob) == "one"
    bob.say("two")
    ann = sit("ann again")
    wait(ann, lambda terminal: [line for line in messages(terminal) if ": " in line]
         == ["bob: zero", "ann: one", "bob: two"], "what was said")
    ann.type("three\r")
    while (frame := bob.recv())["type"] != "chat" or frame["text"] != "three":
        assert frame["type"] not in ("left", "joined"), frame
    ann.wait_for("ann: three (heard by all)")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_reopened_after_a_signal(sit, room, number):
    """A window that is closed is left at once, and the next terminal has what came meanwhile."""
    _, bob = room
    ann = sit("ann")
    ann.type("/nick rob\r")
    bob.recv_until("renamed", to="rob")
    ann.signal(number)
    ann.wait_exit()
    bob.recv_until("left", name="rob")
    bob.say("meanwhile")
    ann = sit("ann again")
    ann.wait_for("bob: meanwhile")
    assert "ann joined" not in ann.terminal.text()


@pytest.mark.parametrize("keys", [CTRL_D, "/quit\r", CTRL_C * 2])
def test_left_is_forgotten(sit, room, keys):
    """Who leaves on purpose comes as somebody new."""
    ann = sit("ann")
    assert [file.stat().st_mode & 0o777 for file in kept()] == [0o600]
    ann.type(keys)
    ann.wait_exit()
    room[1].recv_until("left", name="ann")
    assert kept() == []
    sit("ann")


def test_booted_is_forgotten(launch):
    """Nothing is kept of a session that the server has ended."""
    with FakeServer() as server:
        ann = launch(port=server.port)
        server.accept(WELCOME, {"type": "booted", "id": 1, "reason": "spam"})
        assert ann.wait_exit() == 1 and kept() == []


def test_two_at_once(sit, room):
    """The second terminal takes nothing from the first, and keeps nothing: who reopens goes on as
    the first."""
    _, bob = room
    first, second = sit("ann"), sit("ann-2")
    first.type("from one\r")
    assert heard(bob) == "from one"
    second.wait_for("from one")
    second.type("from two\r")
    assert heard(bob, "ann-2") == "from two"
    first.wait_for("from two")
    second.signal(signal.SIGTERM)
    second.wait_exit()
    first.wait_for("ann-2 left")
    wait(first, lambda terminal: status(terminal)[1] == "connected", "no change")
    assert len(kept()) == 1
    first.signal(signal.SIGTERM)
    first.wait_exit()
    sit("ann again")


def test_renamed_is_the_same(killed, sit):
    """Whoever had another name while the old connection was only broken has it still."""
    killed("/nick rob\r", "* ann is now rob")
    ann = sit("rob again")
    assert "for now" not in ann.terminal.text()


def test_another_server(launch, serve):
    """A secret is shown only to the server that it is of; and for each name there is one."""
    ports = [serve().port, serve().port]
    for port in ports:
        ann = launch(port=port)
        ann.wait_for("* you are ann, ")
        ann.signal(signal.SIGHUP)
        ann.wait_exit()
    assert len({json.loads(file.read_text())["session"] for file in kept()}) == 2
    ann = launch("-n", "carol", port=ports[0])
    ann.wait_for("* you are carol, ")


def test_server_forgot_it(launch, serve):
    """Restarted without a history the server knows nobody: one comes as somebody new, under the
    name that was asked for, and what is kept is the new session."""
    server = serve()
    ann = launch(port=server.port)
    ann.wait_for("* you are ann, ")
    ann.type("/nick rob\r")
    ann.wait_for("* ann is now rob")
    ann.signal(signal.SIGHUP)
    ann.wait_exit()
    (before,) = [json.loads(file.read_text())["session"] for file in kept()]
    server.kill()
    server.start()
    ann = launch(port=server.port)
    ann.wait_for("* you are ann, ")
    assert [json.loads(file.read_text())["session"] for file in kept()] != [before]


@pytest.mark.parametrize("arguments", [["--no-config"], ["--plain", "--json"]])
def test_not_kept(launch, room, arguments):
    """--no-config keeps nothing, nor does what a program reads."""
    ann = launch(*arguments, port=room[0].port)
    room[1].recv_until("joined", name="ann")
    ann.signal(signal.SIGTERM)
    ann.wait_exit()
    assert kept() == []


def test_pipe_is_somebody_new(sit, room):
    """A pipe beside or after a terminal has a session of its own."""
    ann = sit("ann")
    ann.signal(signal.SIGTERM)
    ann.wait_exit()
    room[1].recv_until("left", name="ann")
    before = [file.read_bytes() for file in kept()]
    subprocess.run(client_command(room[0].port, name="ann"), input=b"hi\n", cwd=ROOT, check=True,
                   env=ENVIRONMENT, timeout=TIMEOUT, capture_output=True)
    assert heard(room[1]) == "hi"
    assert [file.read_bytes() for file in kept()] == before and before


def test_plain_terminal(room, terminal):
    """A terminal without a screen, as one who listens to a screen reader has it, goes on too."""
    command = [*CLIENT, "127.0.0.1", str(room[0].port), "-n", "ann", "--plain"]
    first = terminal(*command)
    first.expect(r"\* you are ann, 2 here.*")
    first.process.kill()
    first.process.wait()
    room[1].say("meanwhile")
    second = terminal(*command)
    second.expect(r"\* you are ann again, 2 here.*")
    second.expect(r"\d\d:\d\d bob: meanwhile")


@pytest.mark.parametrize("text", [
    "", "[" * 5_000, "[]", '{"session":1,"epoch":"e","seen":0}', '{"session":"s","epoch":"e"}',
    '{"session":"s","epoch":"e","seen":-1}', '{"session":"s","epoch":"e","seen":true}',
    '{"session":"s","epoch":"e","seen":1e999}'])
def test_damaged(tmp_path, text):
    """A file that is none counts as none, and the next session takes its place."""
    settings = str(tmp_path / "client.json")
    one = KeptSession(settings, "host:1", "ann")
    assert one.take() is None
    one.keep(Ticket("s", "e", 7))
    assert KeptSession(settings, "host:1", "Ann").take() == Ticket("s", "e", 7)
    (file,) = tmp_path.glob("session-*.json")
    file.write_text(text)
    assert KeptSession(settings, "host:1", "ann").take() is None
    one.keep(Ticket("s", "e", 8))
    assert KeptSession(settings, "host:1", "ann").take() == Ticket("s", "e", 8)


def test_old_ones_are_deleted(tmp_path):
    """What nobody came back to is deleted after a month, and nothing else is."""
    settings = tmp_path / "client.json"
    settings.write_text("{}")
    for host in ("old", "new"):
        one = KeptSession(str(settings), host, "ann")
        one.take()
        one.keep(Ticket(host, "e", 1))
        for file in tmp_path.iterdir() if host == "old" else ():
            os.utime(file, (0, time.time() - KeptSession.LONGEST - 60))
    assert KeptSession(str(settings), "third", "ann").take() is None
    assert settings.exists() and KeptSession(str(settings), "old", "ann").take() is None
    assert KeptSession(str(settings), "new", "ann").take() == Ticket("new", "e", 1)


def test_folder_that_cannot_be(tmp_path):
    """Where nothing can be kept the terminal works as before."""
    (tmp_path / "file").write_text("")
    one = KeptSession(str(tmp_path / "file" / "client.json"), "host", "ann")
    assert one.take() is None
    one.keep(Ticket("s", "e", 1))
    assert os.listdir(tmp_path) == ["file"]
