"""The server's console on a pseudo-terminal: what is logged does not touch what the operator
types; what ends it, and what asks before; and the record of the talk."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import types

import pytest

import chat_server
from harness import ENVIRONMENT, ROOT, SERVER, TIMEOUT, RawClient, wait_until

if os.name != "posix":
    pytest.skip("pseudo-terminals are POSIX", allow_module_level=True)

import pty

from program import Program, take_terminal


@contextlib.contextmanager
def started():
    with Program([*SERVER, "0", "--no-web", "--bind", "127.0.0.1"], cwd=ROOT) as program:
        program.wait_until(lambda terminal: terminal.lines()[2].startswith(">"), "the prompt")
        program.port = int(re.search(r":(\d+)", program.snapshot()[0])[1])
        yield program
        # An end that is asked for waits for the ACKs of all who are there, who never send one.
        program.process.kill()


@pytest.fixture
def console():
    """A server on a pseudo-terminal, with its port as `console.port`."""
    with started() as program:
        yield program


@pytest.fixture(scope="module")
def one_console():
    """The same, for all the tests that leave its line empty."""
    with started() as program:
        yield program


def typed(program, text):
    """Wait until the line that is typed is shown as `text`, with the cursor behind it."""
    columns = sum(2 if char > "\u2fff" else 1 for char in text)
    program.wait_until(lambda terminal: any(line == f"> {text}".rstrip()
                                            and terminal.cursor == (row, 2 + columns)
                                            for row, line in enumerate(terminal.lines())), text)


def visitors(program, count):
    """So many members come, one after the other."""
    for number in range(count):
        RawClient(program.port).join(f"guest{number}")


def test_console_half_line(console):
    """Half a line stays as it is, at the bottom, while members come."""
    console.type("/boot gue")
    typed(console, "/boot gue")
    visitors(console, 30)
    console.wait_for("guest29 from 127.0.0.1")
    typed(console, "/boot gue")
    # That they are gone comes meanwhile.
    console.wait_until(lambda terminal: [line for line in terminal.lines() if "/boot" in line]
                       == ["> /boot gue"] == terminal.lines()[-1:], "the line, once")


def test_console_command(console):
    """What was typed in pieces is a command, shown with its answer."""
    console.type("/boot gue")
    visitors(console, 1)
    console.wait_for("guest0 from 127.0.0.1")
    console.type("st0 spam\r")
    console.wait_for("guest0 is out")
    typed(console, "")
    assert "> /boot guest0 spam" in console.snapshot()


@pytest.mark.parametrize("keys, left", [
    ("abc\x7f", "ab"), ("abc\x08", "ab"), ("ab cd \x17", "ab "), ("ab\x15x", "x"),
    ("a\x1b[Db", "ab"), ("a\x1bOAb", "ab"),
    ("你好\x7f", "你"), ("e\u0301\x7fa", "a"), ("\x7f\x17\x15a", "a"), ("a\x01\x02b", "ab"),
    ("a\u202eb", "a\\u202eb")])
def test_console_keys(one_console, keys, left):
    """The keys of a terminal's own line, whole and byte by byte."""
    one_console.type(keys)
    typed(one_console, left)
    one_console.type("\x15")
    typed(one_console, "")
    for byte in keys.encode():
        one_console.type(bytes([byte]))
    typed(one_console, left)
    one_console.type("\x15")
    typed(one_console, "")


def test_console_long_line(console):
    """Of a line that is wider than the screen the end is shown, on one row."""
    console.type("/say " + "x" * 200 + "end")
    console.wait_until(lambda terminal: terminal.line(2).endswith("xend"), "the end")
    visitors(console, 2)
    console.wait_for("guest1 from 127.0.0.1")
    console.wait_until(lambda terminal: sum("xxx" in line for line in terminal.lines()) == 1,
                       "the line, on one row")


@pytest.mark.parametrize("end", ["/quit\r", "\x03", "TERM"])
def test_console_end(console, end):
    """However the server ends, the terminal is as it was, and the exit code 0."""
    console.type("half ")
    typed(console, "half ")
    if end == "TERM":
        console.signal(15)
    else:
        console.type("\x15" + end)
    assert console.wait_exit() == 0
    assert console.settings() == console.first_settings


def test_console_end_of_input(console):
    """Ctrl-D on an empty line ends the console, not the server."""
    console.type("\x04")
    # What is logged comes from another thread, and may come before the key is read.
    wait_until(lambda: console.settings() == console.first_settings)
    visitors(console, 1)
    console.wait_for("guest0 from 127.0.0.1")
    assert not any(line.startswith(">") for line in console.snapshot())


def test_console_dumb():
    """On a dumb terminal nothing is painted."""
    with Program([sys.executable, str(ROOT / "chat_server.py"), "0", "--no-discovery"],
                 env={"TERM": "dumb"}) as program:
        program.wait_for("Others join with")
        program.type("/users\r")
        program.wait_for("nobody is here")
        assert b"\x1b" not in program.raw_output


# --- What ends it ---

def test_ctrl_c_asks_once(console):
    """While somebody is connected the first one asks, and the second one ends the server."""
    with RawClient(console.port, auto_ack=True) as ann:
        ann.join("ann")
        console.type("\x03")
        console.wait_for("somebody is connected: Ctrl-C again ends the server")
        ann.say("still here")
        ann.recv_until("chat", text="still here")
        console.type("\x03")
        assert ann.recv_until("chat")["text"] == "the server is closing"
    assert console.wait_exit() == 0


def test_ctrl_c_is_forgotten_after_a_while(monkeypatch):
    """Within 3 s the second one ends the server; later it asks again; and it asks nobody where
    nobody is connected, or stdin is no terminal."""
    now, answers = [100.0], []
    monkeypatch.setattr(chat_server, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    line = chat_server.OperatorLine()
    for after, connected in (0, 2), (3.1, 2), (2.9, 2):
        now[0] += after
        answers.append(line.may_stop(connected))
    assert answers == [False, False, True]
    assert sys.stdout.getvalue().count("2 people are connected: Ctrl-C again") == 2
    assert chat_server.OperatorLine().may_stop(0)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert chat_server.OperatorLine().may_stop(2)


def test_quit_asks_and_quit_now_does_not(console):
    """/quit asks while somebody is connected; /quit now ends the server."""
    with RawClient(console.port, auto_ack=True) as ann:
        ann.join("ann")
        console.type("/quit\r")
        console.wait_for("somebody is connected: /quit now ends the server")
        console.type("/quit now\r")
        assert ann.recv_until("chat")["text"] == "the server is closing"
    assert console.wait_exit() == 0


def test_term_does_not_ask(console):
    """It ends the server at once, whoever is connected."""
    with RawClient(console.port, auto_ack=True) as ann:
        ann.join("ann")
        console.signal(signal.SIGTERM)
        assert ann.recv_until("chat")["text"] == "the server is closing"
    assert console.wait_exit() == 0
    assert not any("ends the server" in line for line in console.snapshot())


def test_int_without_a_terminal_does_not_ask(serve, peer):
    """A service that is interrupted ends."""
    server = serve()
    ann = peer(server.port, "ann")
    server.process.send_signal(signal.SIGINT)
    assert ann.recv_until("chat")["text"] == "the server is closing"
    assert server.process.wait(TIMEOUT) == 0


def in_a_window(prepare):
    """A server whose stdin is a terminal, its first line, and the terminal's other end."""
    master, slave = pty.openpty()
    process = subprocess.Popen([*SERVER, "0", "--no-web", "--bind", "127.0.0.1"], stdin=slave,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
                               env=ENVIRONMENT, start_new_session=True, preexec_fn=prepare)
    os.close(slave)
    return process, process.stdout.readline(), master


def without_hup():
    """What nohup does, where it leaves stdin as it is."""
    take_terminal()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_closed_window_ends_the_server():
    """Its terminal is closed: it does not go on unseen, and whoever is there is told."""
    process, first, window = in_a_window(take_terminal)
    with RawClient(int(first.rpartition(b":")[2]), auto_ack=True) as ann:
        ann.join("ann")
        os.close(window)
        assert ann.recv_until("chat")["text"] == "the server is closing"
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0 and b"Traceback" not in errors


def test_nohup_goes_on():
    """Where HUP was ignored at the start a closed terminal ends nothing."""
    process, first, window = in_a_window(without_hup)
    with RawClient(int(first.rpartition(b":")[2]), auto_ack=True) as ann:
        ann.join("ann")
        os.close(window)
        # It is reloaded: the signal of the closed terminal came before this one.
        process.send_signal(signal.SIGHUP)
        while b"reloaded" not in (line := process.stderr.readline()):
            assert line
        ann.say("still here")
        ann.recv_until("chat", text="still here")
    process.terminate()
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0 and b"Traceback" not in errors


# --- The record ---

@pytest.mark.parametrize("with_history", [False, True])
def test_record(with_history, tmp_path):
    """/record FILE writes what was said in public, while the server runs: as text or as frames,
    without what is private or was taken back, and never over a file."""
    options = ["--history", str(tmp_path / "chat.db")] if with_history else []
    text, frames = tmp_path / "talk.txt", tmp_path / "talk.jsonl"
    command = [*SERVER, "0", "--no-web", "--bind", "127.0.0.1", *options]
    with Program(command, cwd=ROOT, columns=200) as console:
        console.wait_for("Listening on")
        port = int(re.search(r":(\d+)", console.snapshot()[0])[1])
        with RawClient(port, auto_ack=True) as ann, RawClient(port, auto_ack=True) as bob:
            ann.join("ann")
            bob.join("bob")
            for words, more in ("hello", {}), ("psst", {"to": "bob"}), ("RUDE", {}), ("bye", {}):
                ann.say(words, **more)
                bob.recv_until("chat", text=words)
            console.type("/remove\r")
            console.wait_for("ann: RUDE")
            rude = next(one["id"] for one in bob.frames if one.get("text") == "RUDE")
            console.type(f"/remove {rude}\r")
            console.wait_for(f"message {rude} is removed")
            console.type(f"/remove {rude}\r")
            console.wait_for(f"message {rude} is removed already")
            for path in text, frames:
                console.type(f"/record {path}\r")
                console.wait_for(f"lines are in {path}")
            console.type(f"/record {text}\r")
            console.wait_for("is there already: take another name")
            for order, answer in (("/record", "/record FILE"), ("/mute", "/mute NAME"),
                                  ("/mute ann 5y", "5y is no duration"),
                                  ("/mute nobody", "nobody is or was called nobody"),
                                  ("/remove 1", "there is no message 1"),
                                  ("/remove last bob", "there is no message of bob"),
                                  ("/private maybe", "/private on|off"),
                                  ("/slow often", "often is no duration"),
                                  ("/record /no/such/folder/x", "No such file")):
                console.type(f"{order}\r")
                console.wait_for(answer)
    for path in text, frames:
        kept = path.read_text(encoding="utf-8")
        assert "hello" in kept and "bye" in kept and "(removed)" in kept
        assert "psst" not in kept and "RUDE" not in kept
    assert "<ann> hello" in text.read_text() and '"text":"hello"' in frames.read_text()
