"""The same in a real process on a pseudo-terminal: pastes that nothing marks, Esc, focus, colours,
and the service that only listens."""

import os
import signal
import subprocess

import pytest

from harness import ENVIRONMENT, ROOT, TIMEOUT, client_command, posix_only
from onscreen import CTRL_C, heard, messages, status, typed, wait, wait_messages, wait_typed

pytestmark = [posix_only, pytest.mark.usefixtures("empty_room")]
SERVER_OPTIONS = ("--grace", "0.1")


def at_once(program, data):
    """What a terminal sends in one piece, in whatever pieces it is read."""
    os.write(program._master, data)


def test_paste_without_brackets(window, join):
    """Ten lines with a Tab and a command, pasted on a terminal that marks no pastes: a question,
    then one message."""
    bob = join("bob")
    ann = window()
    lines = ["one\tb", "/names", *map(str, range(8))]
    at_once(ann, "\r".join(lines).encode() + b"\r")
    ann.wait_for("paste 10 lines as one message?")
    ann.type("y")
    wait(ann, lambda terminal: typed(terminal)[0][-1] == "  7", "the paste")
    ann.type("\r")
    assert heard(bob) == "\n".join(lines)


def test_large_paste_without_brackets(window, join):
    """One that takes several reads is one paste."""
    bob = join("bob")
    ann = window()
    text = "\r".join(f"line {number} " + "x" * 70 for number in range(90))
    at_once(ann, text.encode() + b"\r")
    ann.wait_for("paste 90 lines as one message?")
    ann.type("y")
    wait(ann, lambda terminal: "line 89 " in terminal.text(), "the paste")
    ann.type("\r")
    assert heard(bob) == text.replace("\r", "\n")


def test_escape_ends_a_search(window, join):
    """Esc is a key after a moment, and Esc with a letter is Alt with it."""
    bob = join("bob")
    ann = window()
    for number in range(30):
        bob.say(f"tea {number}")
    ann.wait_for("bob: tea 29")
    ann.type("/search tea 7\r")
    ann.wait_for("found 1 of 3")
    ann.type("\x1b")
    wait(ann, lambda terminal: not any(part.startswith("found") for part in status(terminal))
         and messages(terminal)[-1] == "bob: tea 29", "the newest again")
    ann.type("one two\x1bbx")
    wait_typed(ann, "> one xtwo", column=7)


def test_focus(window, join):
    """Without the focus the title counts; it comes back with the focus, and at the end."""
    bob = join("bob")
    ann = window()
    ann.type("\x1b[Ox")
    wait_typed(ann, "> x", column=3)
    bob.say("hello")
    wait(ann, lambda terminal: terminal.titles == ["(1) Roger, 127.0.0.1"], "the title")
    ann.type("\x1b[I")
    wait(ann, lambda terminal: b"\x1b[23;2t" in bytes(ann._output), "the old title")
    ann.terminal.titles.clear()


def test_no_color(window, join):
    """NO_COLOR takes the colours and nothing else: the window is there, names are bold."""
    bob = join("bob")
    ann = window(env={"NO_COLOR": "1", "COLORTERM": "truecolor"})
    bob.say("hi")
    wait_messages(ann, "bob: hi")
    row, column = ann.terminal.find("bob: hi")
    assert ann.terminal.alternate and ann.terminal.cell(row, column).style == {"bold"}
    assert b"38;5" not in ann.raw_output and b"\x1b[0;1;3" not in ann.raw_output


def test_listen(server, join):
    """--listen with nothing at stdin stays, prints what is said, and leaves when it is ended."""
    bob = join("bob")
    process = subprocess.Popen(client_command(server.port, "--listen", name="log"), cwd=ROOT,
                               env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        bob.recv_until("joined", name="log")
        bob.say("one")
        assert process.stdout.readline().decode().endswith("bob: one\n")
        bob.say("two")
        assert process.stdout.readline().decode().endswith("bob: two\n")
        process.send_signal(signal.SIGTERM)
        assert bob.recv_until("left", name="log")["reason"] == "quit"
        assert process.wait(TIMEOUT) == -signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


def test_settings_over_two_runs(launch, server):
    """What was chosen in one run holds in the next; --no-config neither reads nor keeps."""
    ann = launch()
    ann.wait_for("you are ann")
    ann.type("/quiet\r")
    ann.wait_for("joins and leaves are hidden")
    ann.type("\x04")
    assert ann.wait_exit() == 0
    for arguments, shown in ((["--no-config"], "hidden"), ([], "shown")):
        ann = launch(*arguments)
        ann.wait_for("you are ann")
        ann.type("/quiet\r")
        ann.wait_for(f"joins and leaves are {shown}")
        ann.type(CTRL_C + CTRL_C)
        assert ann.wait_exit() == 130
