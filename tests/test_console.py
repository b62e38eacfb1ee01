"""The server's console on a pseudo-terminal: what is logged does not touch what the operator
types."""

import contextlib
import os
import re
import sys

import pytest

from harness import ROOT, SERVER, RawClient

if os.name != "posix":
    pytest.skip("pseudo-terminals are POSIX", allow_module_level=True)

from program import Program


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
    assert sum("/boot" in line for line in console.snapshot()) == 1
    assert console.snapshot()[-1] == "> /boot gue"


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
    assert sum("xxx" in line for line in console.snapshot()) == 1


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
    visitors(console, 1)
    console.wait_for("guest0 from 127.0.0.1")
    assert console.settings() == console.first_settings
    assert not any(line.startswith(">") for line in console.snapshot())


def test_console_dumb():
    """On a dumb terminal nothing is painted."""
    with Program([sys.executable, str(ROOT / "chat_server.py"), "0"],
                 env={"TERM": "dumb"}) as program:
        program.wait_for("Others join with")
        program.type("/users\r")
        program.wait_for("nobody is here")
        assert b"\x1b" not in program.raw_output
