"""The first mile: the server starts on any machine, and a mistake is answered by one line."""

import os
import sys

import pytest

from harness import ROOT

if os.name == "posix":
    from terminal import Program

posix_only = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")

WITHOUT = """import sys
for name in {names}:
    sys.modules[name] = None
import chat_server
sys.exit(chat_server.main(["0", "--no-web"]))"""


# --- Every system ---

@posix_only
@pytest.mark.parametrize("names", [["termios", "tty"], ["termios", "tty", "fcntl", "pwd", "grp"]])
def test_server_starts_in_a_terminal_without_termios(names):
    """As in a Windows console: the commands are there, and nothing is painted."""
    command = [sys.executable, "-c", WITHOUT.format(names=names)]
    with Program(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}) as program:
        program.wait_for("Others join with")
        program.type("/users\r")
        program.wait_for("nobody is here")
        assert b"\x1b" not in program.raw_output
        program.type("/quit\r")
        assert program.wait_exit() == 0
