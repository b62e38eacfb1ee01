"""The password: who does not know it stays out, who guesses is slowed down, and it stands
nowhere."""

import contextlib
import os
import pathlib
import re
import subprocess

import pytest

import chat_server
import chatproto
import harness
from chat_client import ChatClient, PasswordWanted
from chatproto import ProtocolError, check_password
from fake_time import FakeTime
from harness import RawClient, TIMEOUT, client_command, run_server, wait_until
from program import Program
from roombench import Bench
from tls import certificate, context_of_a_client, key_in

WORD = "caf\u00e9 \U0001f511 au lait"
DECOMPOSED = "cafe\u0301 \U0001f511 au lait"
KEY = key_in(certificate())


@pytest.fixture(scope="module")
def word(tmp_path_factory):
    """A file with the password and a line end, as an editor leaves it."""
    path = tmp_path_factory.mktemp("password") / "word"
    path.write_bytes(DECOMPOSED.encode() + b"\r\n")
    return str(path)


@pytest.fixture(scope="module")
def server(word):
    """A server that asks for it."""
    with harness.serving("--bind", "127.0.0.1", "--cert", certificate(), "--password-file", word,
                         "--grace", "0.1") as one:
        yield one


@pytest.fixture
def bench():
    """A room that asks for it."""
    bench = Bench(wall_clock=lambda: 1e9)
    bench.room.host.lock(WORD)
    return bench


def answer(visitor, **fields):
    """What a visitor's join is answered with: "welcome", or an error's code and text."""
    visitor.send(harness.frame("join", name=fields.pop("name", "ann"), **fields))
    first = visitor.read()[0]
    return first if first["type"] == "welcome" else f"{first['code']}: {first['text']}"


# --- What a password is ---

@pytest.mark.parametrize("text", ["", "x" * 1_001, "x" * 10_000, "two\nlines", "end\n",
                                  "\x00", "\r", "\ud800", None, 7, ["x"]])
def test_password_that_is_none(text):
    """It has 1 to 1,000 characters, and no line ends."""
    with pytest.raises(ProtocolError) as caught:
        check_password(text)
    assert caught.value.code == "password"


def test_password_in_another_form():
    """Whichever way a keyboard makes a letter, it is the same password."""
    assert check_password(DECOMPOSED) == check_password(WORD)
    assert check_password("x" * 1_000) and check_password(" ") == " "


def test_password_is_in_no_representation():
    """What is logged of a join, in a bug's line for instance, does not have it."""
    assert "sesame" not in repr(chatproto.Join("ann", password="sesame"))


# --- The room ---

@pytest.mark.parametrize("fields, why", [
    ({}, "asks for a password"), ({"password": ""}, "1 to 1000 characters"),
    ({"password": "wrong"}, "not the password"), ({"password": "x" * 10_000}, "1 to 1000"),
    ({"password": WORD + "\n"}, "no line ends"), ({"password": 7}, "1 to 1000"),
    ({"session": "+" + "x" * 32}, "asks for a password")])
def test_wrong_password(bench, fields, why):
    """A wrong one or none is the error `password`; on the same connection another may be tried."""
    visitor = bench.visitor()
    said = answer(visitor, **fields)
    assert said.startswith("password: ") and why in said
    assert answer(visitor, password=DECOMPOSED)["name"] == "ann"


def test_password_is_needed_once(bench):
    """A session that was in with it comes back without, also when it was changed meanwhile; others
    need the new one."""
    ann = bench.visitor()
    welcome = answer(ann, password=WORD)
    bench.room.host.lock("another")
    back = answer(bench.visitor(), session=welcome["session"], epoch=welcome["epoch"])
    assert back["resumed"]
    assert "not the password" in answer(bench.visitor(), name="bob", password=WORD)
    assert answer(bench.visitor(), name="bob", password="another")["name"] == "bob"


def test_session_from_before_the_password():
    """One from a time without a password, when it may have gone over an open wire, needs it; and
    keeps needing it."""
    bench = Bench(wall_clock=lambda: 1e9)
    welcome = answer(bench.visitor())
    bench.room.host.lock(WORD)
    claim = {"session": welcome["session"], "epoch": welcome["epoch"]}
    assert "asks for a password" in answer(bench.visitor(), **claim)
    assert answer(bench.visitor(), password=WORD, **claim)["resumed"]
    assert "asks for a password" in answer(bench.visitor(), **claim)


def test_guesses():
    """Ten from an address, then one in 6 s; right ones cost nothing, other addresses notice
    nothing, and who is only asked for it has guessed nothing."""
    time = FakeTime()
    password = chat_server.Password(time.clock)
    password.change(WORD)

    def guess(word, origin="10.0.0.1"):
        try:
            password.check(chatproto.Join("eve", password=word and check_password(word)), None,
                           origin)
            return "in"
        except ProtocolError as error:
            return str(error)
    for _ in range(50):
        assert guess(WORD) == "in" and "asks for" in guess(None)
    for _ in range(10):
        assert "not the password" in guess("x")
    assert "again in 6 s" in guess("x") and "again in 6 s" in guess(WORD)
    assert guess(WORD, "10.0.0.2") == "in"
    time.advance(6.1)
    assert "not the password" in guess("x") and "too many" in guess(WORD)
    time.advance(6.1)
    assert guess(WORD) == "in"


# --- Programs ---

def pipe(port, *arguments, env=None):
    """A pipe that says something, to a server that it trusts."""
    return subprocess.run(client_command(port, "--trust", KEY, *arguments), input=b"hello\n",
                          cwd=harness.ROOT, capture_output=True, timeout=TIMEOUT,
                          env={**harness.ENVIRONMENT, **(env or {})})


def test_pipe(server, word, tmp_path):
    """A pipe takes it from a file or from the environment; without, or with a wrong one, it says in
    one line what to do."""
    for arguments, env in (([], {"ROGER_PASSWORD": WORD}), (["--password-file", word], {})):
        done = pipe(server.port, *arguments, env=env)
        assert (done.returncode, done.stderr) == (0, b"")
    for env, why in (({}, "asks for a password"), ({"ROGER_PASSWORD": "x"}, "not the password")):
        done = pipe(server.port, env=env)
        (line,) = done.stderr.decode().splitlines()
        assert done.returncode == 1 and why in line and "--password-file FILE" in line
    for arguments, env in ((["--password-file", str(tmp_path / "none")], {}),
                           ([], {"ROGER_PASSWORD": ""})):
        assert pipe(server.port, *arguments, env=env).returncode == 2


def test_it_stands_nowhere(server):
    """Neither what the server prints nor what it logs has it."""
    pipe(server.port, env={"ROGER_PASSWORD": WORD})
    pipe(server.port, env={"ROGER_PASSWORD": "another guess"})
    server.wait_for_error("refused")
    said = server.stderr_text() + "\n".join(server.lines)
    assert "lait" not in said and "guess" not in said


@pytest.fixture
def on_terminal():
    """Run programs on terminals."""
    with contextlib.ExitStack() as programs:
        yield lambda *command: programs.enter_context(Program(
            command, cwd=harness.ROOT, columns=120))


def type_at(program, prompt, text):
    """Type a line when so many prompts are there as `prompt` says."""
    program.wait_until(lambda terminal: terminal.text().count("Password:") == prompt, "a prompt")
    program.type(text + "\r")


@harness.posix_only
def test_terminal(server, on_terminal):
    """A person is asked for it, again after a mistake, and nobody reads it on the screen."""
    program = on_terminal(*client_command(server.port, "--trust", KEY, name="ann"))
    program.wait_for("asks for a password")
    type_at(program, 1, "a mistake")
    program.wait_for("not the password")
    type_at(program, 2, WORD)
    program.wait_for("you are ann")
    assert b"mistake" not in program.raw_output and b"lait" not in program.raw_output
    program.type("/quit\r")
    assert program.wait_exit() == 0


def test_bot(server):
    """A bot has it, or is told; it may try again."""
    client = ChatClient("127.0.0.1", server.port, "bot", trust=KEY)
    with contextlib.closing(client):
        with pytest.raises(PasswordWanted):
            client.connect(TIMEOUT)
        client.password = WORD
        client.connect(TIMEOUT)
        assert client.joined


def test_server_that_is_killed(serve, word, tmp_path, impatient):
    """With a history file who was in comes back without the password, which is in no file."""
    server = serve("--cert", certificate(), "--password-file", word, "--history",
                   tmp_path / "chat.db")
    client = ChatClient("127.0.0.1", server.port, "bot", trust=KEY, password=WORD)
    with contextlib.closing(client):
        client.connect(TIMEOUT)
        client.password = None
        server.kill()
        server.start()
        said = client.say("after")
        wait_until(lambda: said.state == "there")
    for path in filter(pathlib.Path.is_file, tmp_path.rglob("*")):
        assert b"lait" not in path.read_bytes()


@pytest.mark.parametrize("content, why", [
    (b"", "1 to 1000"), (b"\n", "1 to 1000"), (b"a\nb", "no line ends"),
    (b"x" * 10_000, "1 to 1000"), (b"\xff", "control characters"), (None, "no such file")])
def test_server_with_a_wrong_file(tmp_path, content, why):
    """It does not start, and says why."""
    path = tmp_path / "word"
    if content is not None:
        path.write_bytes(content)
    code, said = run_server("0", "--cert", certificate(), "--password-file", path)
    assert code == 1 and said.count("\n") == 1 and why in said


@harness.posix_only
def test_server_asks(on_terminal):
    """--password asks on the terminal, which does not show it; /password changes it, and what is
    typed there is not shown either."""
    program = on_terminal(*harness.SERVER, "0", "--bind", "127.0.0.1", "--no-discovery",
                          "--password", "--cert", certificate())
    type_at(program, 1, WORD)
    program.wait_for("Host's page")
    port = int(re.search(rb"Listening on 127\.0\.0\.1:(\d+)", program.raw_output)[1])
    assert pipe(port, env={"ROGER_PASSWORD": WORD}).returncode == 0
    program.type("/password open sesame\r")
    program.wait_for("newcomers need that password from now on")
    assert pipe(port, env={"ROGER_PASSWORD": WORD}).returncode == 1
    assert pipe(port, env={"ROGER_PASSWORD": "open sesame"}).returncode == 0
    assert b"sesame" not in program.raw_output and b"lait" not in program.raw_output


def test_server_without_a_terminal():
    """Where nobody can be asked it does not start."""
    if os.name != "posix":
        pytest.skip("sessions without a terminal are POSIX's")
    code, said = run_server("-c", "import os, sys, chat_server; os.setsid(); "
                                  "sys.exit(chat_server.main(['0', '--password']))", program=())
    assert code == 1 and "there is no terminal" in said and said.count("\n") == 1


@harness.posix_only
def test_command_without_tls(console):
    """/password needs --tls."""
    window, _ = console()
    window.type("/password x")
    window.expect("a password needs --tls.*")


def test_member_that_is_in(server):
    """Over the wire the password of a join is looked at, and nothing of it comes back."""
    with RawClient(server.port, context=context_of_a_client()) as ann:
        ann.send({"type": "join", "name": "ann"})
        assert ann.recv()["code"] == "password"
        assert WORD not in str(ann.join("ann", password=WORD))
        ann.leave()
