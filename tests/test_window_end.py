"""How the client in a terminal ends, however it ends, and that the terminal is as it was; that it
can be stopped and continued; and what it does on terminals that can less. (test_window.py: what is
shown while it runs.)
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from harness import CLIENT, ROOT, TIMEOUT, RawClient, posix_only
from onscreen import (CTRL_C, CTRL_D, CTRL_Z, END, LEFT, WELCOME, FakeServer, assert_restored,
                      heard, left_behind, newest, patched, sweep, typed, unknown, wait,
                      wait_messages, wait_typed)
from program import Program, take_terminal

pytestmark = [posix_only, pytest.mark.usefixtures("empty_room")]
SERVER_OPTIONS = "--grace", "0.1"


# --- How it ends ---

@pytest.mark.parametrize("keys, number, code", [
    (CTRL_D, 0, 0), ("/quit\r", 0, 0), (CTRL_C * 2, 0, 130), ("", signal.SIGINT, 130),
    ("", signal.SIGTERM, -signal.SIGTERM),
    *[("", number, -number) for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1,
                                           signal.SIGALRM)]],
    ids=["ctrl-d", "quit", "ctrl-c", "INT", "TERM", "HUP", "QUIT", "USR1", "ALRM"])
def test_end(window, join, keys, number, code):
    """Each way to leave has its exit code, leaves nothing on the terminal, and the others see it at
    once."""
    bob = join("bob")
    ann = window(
        command=patched("import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))"))
    ann.type("half" + LEFT + CTRL_D)
    wait_typed(ann, "> hal", column=5)
    ann.type(CTRL_C)
    wait_typed(ann, ">", column=2)
    ann.type(keys)
    if number:
        ann.type("half")
        wait_typed(ann, "> half", column=6)
        ann.signal(number)
    assert ann.wait_exit() == code
    assert left_behind(ann) == []
    bob.recv_until("left", name="ann")
    assert_restored(ann)


def test_signal_that_another_thread_gets(window, join):
    """The kernel may hand a signal to any thread, and does when two come at once: it is obeyed all
    the same."""
    bob = join("bob")
    ann = window(command=patched(
        "import signal\ndef end(): signal.pthread_kill(threading.get_ident(), signal.SIGTERM)\n"
        "chat_client.Formatter.is_mention = lambda *_: threading.Timer(0.2, end).start()"))
    bob.say("hi")
    assert ann.wait_exit() == -signal.SIGTERM


def test_hangup_that_is_ignored(window, join):
    """Started like nohup does, it goes on after SIGHUP, in the window and at its end."""
    bob = join("bob")
    ann = window(command=["sh", "-c", "trap '' HUP; exec \"$0\" \"$@\"", *CLIENT])
    ann.signal(signal.SIGHUP)
    ann.type("still here\r")
    assert heard(bob) == "still here"
    wait_messages(ann, "ann: still here (heard by all)")
    ann.signal(signal.SIGHUP)
    ann.type(CTRL_D)
    assert ann.wait_exit() == 0


def test_killed_while_the_terminal_is_not_read():
    """Stuck in a write, as the terminal takes no more, it is ended by the second SIGTERM, and the
    settings are as before."""
    import fcntl
    import struct
    import termios
    master, slave = os.openpty()
    # One frame is more than it holds.
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 500, 500, 0, 0))
    before = termios.tcgetattr(slave)
    with FakeServer() as server:
        process = subprocess.Popen([*CLIENT, "127.0.0.1", str(server.port), "-n", "ann"], cwd=ROOT,
                                   stdin=slave, stdout=slave, stderr=subprocess.DEVNULL,
                                   start_new_session=True,
                                   env={**os.environ, "TERM": "xterm"})
        try:
            server.accept(WELCOME)
            printed = b""
            while b"you are ann" not in printed:
                printed += os.read(master, 65536)
            assert termios.tcgetattr(slave) != before
            server.send(*({"type": "chat", "id": n, "from": "bob", "text": f"flood {n} " * 40,
                           "at": 0} for n in range(1, 501)))
            while b"flood" not in printed:
                printed = printed[-10:] + os.read(master, 1024)
            signals, deadline = 0, time.monotonic() + TIMEOUT
            while process.poll() is None:
                process.send_signal(signal.SIGTERM)
                signals += 1
                assert time.monotonic() < deadline, "it does not end"
                try:
                    process.wait(0.05)
                except subprocess.TimeoutExpired:
                    pass
            assert process.returncode == -signal.SIGTERM and signals > 1
            assert termios.tcgetattr(slave) == before
        finally:
            process.kill()
            process.wait()
            os.close(master)
            os.close(slave)


def test_booted(launch):
    """Who is booted hears why in one line; the exit code is 1."""
    with FakeServer() as server:
        ann = launch(port=server.port)
        server.accept(WELCOME)
        ann.wait_for("you are ann")
        server.send({"type": "booted", "id": 1, "reason": "spamming"})
        assert ann.wait_exit() == 1
        assert left_behind(ann) == ["chat_client: you were booted: spamming"]


def test_end_with_unsent(window, join, paused):
    """Leaving waits for the ACK of what was said, on the terminal as it was; Ctrl-C gives up and
    names it."""
    bob = join("bob")
    ann = window()
    resume = paused()
    ann.type("unsent\r")
    wait_messages(ann, "ann: unsent (sending)")
    ann.type(CTRL_D)
    ann.wait_for("1 message is not sent yet, again to leave")
    ann.type(CTRL_D)
    ann.wait_for("waiting for the ACK of 1 message, Ctrl-C gives up")
    ann.type(CTRL_C)
    assert ann.wait_exit() == 130
    # The ^C is echoed before or after what is printed.
    lines = [line.replace("^C", "") for line in left_behind(ann)]
    assert [line for line in lines[1:] if line] == ["chat_client: not confirmed: unsent"]
    resume()
    bob.recv_until("left", name="ann")


def test_terminal_closes(server, join):
    """When the terminal goes away the client goes too, and the others see it leave."""
    bob = join("bob")
    master, slave = os.openpty()
    process = subprocess.Popen([*CLIENT, "127.0.0.1", str(server.port), "-n", "ann"], cwd=ROOT,
                               stdin=slave, stdout=slave,
                               stderr=slave, start_new_session=True, preexec_fn=take_terminal,
                               env={**os.environ, "TERM": "xterm"})
    os.close(slave)
    printed = b""
    while b"you are ann" not in printed:
        printed += os.read(master, 65536)
    os.close(master)
    bob.recv_until("left", name="ann")
    assert process.wait(TIMEOUT) in (-signal.SIGHUP, 1)


def test_signal_with_unsent(window, join, paused):
    """A signal to end does not wait for the ACK of what was said."""
    bob = join("bob")
    ann = window()
    resume = paused()
    ann.type("unsent\r")
    wait_messages(ann, "ann: unsent (sending)")
    ann.signal(signal.SIGTERM)
    assert ann.wait_exit() == -signal.SIGTERM
    assert left_behind(ann) in ([], ["chat_client: not confirmed: unsent"])
    resume()
    bob.recv_until("left", name="ann")


CRASHES = {
    "main": ("chat_client.Editor.take = boom", ""),
    "paint": ("paint = chat_client.Screen.paint\n"
              "chat_client.Screen.paint = lambda self: "
               "boom() if self._editor.text else paint(self)", ""),
    "client": ("chat_client.Formatter.is_mention = boom", "bob says something"),
    "keys": ("read = chat_client.Terminal.read\n"
             "chat_client.Terminal.read = lambda self: "
              "(lambda data: boom() if b'x' in data else data)(read(self))", ""),
    "alarm": ("chat_client.Formatter.is_mention = lambda *_: threading.Timer(0, boom).start()",
              "bob says something"),
}


@pytest.mark.parametrize("thread", CRASHES)
def test_crash(launch, join, thread):
    """A bug on any thread: the terminal is restored, the bug is named in one line, and the exit
    code is 1."""
    bob = join("bob")
    source, said = CRASHES[thread]
    ann = launch(command=patched(source))
    ann.wait_for("you are ann")
    if said:
        bob.say(said)
    else:
        ann.type("x\r" if thread == "main" else "x")
    assert ann.wait_exit() == 1
    bob.recv_until("left", name="ann")
    line, = left_behind(ann)
    assert re.fullmatch(r"chat_client: a bug: RuntimeError: boom \(.+:\d+\)", line)


def test_crash_before_it_is_in(launch):
    """A bug on the client's thread while it connects is named at once, too."""
    with FakeServer() as server:
        ann = launch("--timeout", "2", port=server.port,
                     command=patched("chat_client.Window._on_welcome = boom"))
        server.accept(WELCOME)
        assert ann.wait_exit() == 1
        line, = left_behind(ann)
        # What the terminal answers to what the client has asked may be echoed before it.
        assert "chat_client: a bug: RuntimeError: boom" in line


# --- Stopped and continued ---

def test_stop_and_continue(window):
    """After kill -STOP, another program's output and kill -CONT everything is painted anew, and
    keys are keys again."""
    ann = window()
    ann.type("half a line" + LEFT)
    wait_typed(ann, "> half a line", column=12)
    before, raw = ann.snapshot(), ann.settings()
    ann.signal(signal.SIGSTOP)
    import termios
    # A shell does this.
    termios.tcsetattr(ann._slave, termios.TCSANOW, ann.first_settings)
    ann._locked(
        lambda: ann.terminal.feed(b"\x1b[?1049l\x1b[?2004l\x1b[?7h\x1b[2J\x1b[Hready> jobs"))
    ann.signal(signal.SIGCONT)
    wait(ann, lambda terminal: terminal.lines() == before
         and typed(terminal) == (["> half a line"], (23, 12)),
         "the screen again")
    assert ann.settings() == raw and ann.terminal.alternate and ann.terminal.bracketed_paste
    assert not ann.terminal.autowrap
    ann._locked(lambda: ann.terminal.feed(b"\x1b[?1049l"))
    ann._locked(lambda: ann.terminal.feed(b"\x1b[2J\x1b[H\x1b[?1049h"))
    # Ctrl-L does the same.
    ann.type("\x0c")
    wait(ann, lambda terminal: terminal.lines() == before, "the screen again")


def test_ctrl_z_without_a_shell(window):
    """Where no shell could let it go on, Ctrl-Z does not stop it."""
    ann = window()
    ann.type("half" + CTRL_Z + " a line")
    wait_typed(ann, "> half a line", column=13)
    wait(ann, lambda terminal: terminal.alternate and terminal.bracketed_paste, "the window")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash for its job control")
def test_ctrl_z_and_fg(server, join, tmp_path):
    """Ctrl-Z gives the terminal back to the shell; fg brings all back, what was said meanwhile,
    too."""
    bob = join("bob")
    (tmp_path / "inputrc").write_text("set enable-bracketed-paste off\n", encoding="utf-8")
    with Program(["bash", "--norc", "--noprofile", "-i"], env={
            "PS1": "ready> ", "INPUTRC": str(tmp_path / "inputrc"), "COLORTERM": None,
            "HISTFILE": None}) as shell:
        shell.wait_for("ready>")
        sweep(server.port)
        shell.type(
            f"'{sys.executable}' '{ROOT / 'chat_client.py'}' 127.0.0.1 {server.port} -n ann\r")
        shell.wait_until(lambda terminal: terminal.alternate and "you are ann" in terminal.text(),
                         "the window")
        for number in range(2):
            shell.type(f"half{number}" + LEFT)
            wait(shell, lambda terminal: terminal.line(23).endswith(f"half{number}"),
                 "what was typed")
            before = typed(shell.terminal)
            shell.type(CTRL_Z)
            shell.wait_until(lambda terminal: not terminal.alternate
                             and terminal.text().count("Stopped") > number
                             and terminal.line(terminal.cursor[0]) == "ready>", "the shell")
            assert shell.terminal.autowrap and not shell.terminal.bracketed_paste
            assert shell.terminal.cursor_visible
            shell.type("stty -a | grep -c ' icanon.* echo '\r")
            bob.say(f"meanwhile {number}")
            shell.wait_until(lambda terminal: terminal.lines().count("1") == number + 1
                             and terminal.line(terminal.cursor[0]) == "ready>", "a cooked terminal")
            shell.type("fg\r")
            shell.wait_until(lambda terminal: terminal.alternate
                             and f"bob: meanwhile {number}" in terminal.text()
                             and typed(terminal) == before, "the window again")
            shell.type(END)
        shell.type(CTRL_C * 3)
        shell.wait_until(lambda terminal: not terminal.alternate
                         and terminal.line(terminal.cursor[0]) == "ready>", "the shell")
        shell.type("echo \"=$?=\"\r")
        shell.wait_for("=130=")
        assert (unknown(shell.terminal), shell.terminal.titles) == ([], [])
        shell.type("exit\r")
        assert shell.wait_exit() == 0


# --- Terminals that can less ---

@pytest.mark.parametrize("arguments, env", [
    ([], {"TERM": "dumb"}), (["--plain"], {}), ([], {"TERM": ""})])
def test_no_screen_control(launch, join, arguments, env):
    """A dumb terminal and --plain: a line a message, no escape sequence at all; the bell rings."""
    bob = join("bob")
    ann = launch(*arguments, env=env)
    ann.wait_for("you are ann")
    bob.say("hi ann")
    ann.wait_for("bob: hi ann")
    ann.type("hello\r")
    ann.wait_for("ann: hello")
    ann.type("/quit\r")
    assert ann.wait_exit() == 0
    assert b"\x1b" not in ann.raw_output and ann.terminal.bells == 1


@pytest.mark.parametrize("term, colours",
                         [("xterm-256color", r"38;5;\d+"), ("linux", r"3[0-7]"), ("vt100", None)])
def test_colours(window, join, term, colours):
    """Names have the colours that the terminal has, and no others."""
    bob = join("bob")
    ann = window(env={"TERM": term})
    bob.say("hi")
    wait_messages(ann, "bob: hi")
    ann.type("/wrong\r")
    ann.wait_for("! /wrong")
    used = set(re.findall(r"\b((?:38;5;\d+|3[0-79]|4\d|9[0-7]|10[0-7]))(?=[;m])",
                          " ".join(re.findall(r"\x1b\[([\d;]*m)", ann.raw_output.decode()))))
    assert bool(used) == bool(colours)
    assert all(re.fullmatch(f"{colours}|31", colour) for colour in used)
    row, column = ann.terminal.find("bob: hi")
    assert "bold" in ann.terminal.cell(row, column).style
    assert any(name.startswith("fg=")
               for name in ann.terminal.cell(row, column).style) == bool(colours)


def test_history_is_marked(launch, serve):
    """What was said before we came is marked as such, and what is new, too."""
    server = serve()
    with RawClient(server.port) as bob:
        bob.join("bob")
        bob.say("before, ann")
        bob.recv_until("ack")
        ann = launch(port=server.port)
        ann.wait_for("you are ann")
        wait(ann, lambda terminal: newest(terminal) == "bob: before, ann", "the history")
        bob.say("after")
        ann.wait_for("bob: after")
    lines = [line.partition(" bob: ")[2] or line for line in ann.snapshot() if line][:-2]
    assert lines == ["* you are ann, 2 here; /help lists the commands",
                     "-- said before you came --",
                     "before, ann", "-- now --", "after"]
    assert ann.terminal.bells == 0
