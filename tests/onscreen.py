"""A client in a terminal as its user sees it: what its window shows, read off the model of
terminal.py; and a listening socket for where a server has to misbehave."""

import re
import socket
import sys

from harness import ROOT, TIMEOUT, RawClient, encode

LEFT, RIGHT, UP, HOME, END, DELETE, PAGE_UP, PAGE_DOWN = (
    "\x1b[D", "\x1b[C", "\x1b[A", "\x1b[H", "\x1b[F", "\x1b[3~", "\x1b[5~", "\x1b[6~")
ALT_ENTER, BACKSPACE = "\x1b\r", "\x7f"
CTRL_C, CTRL_D, CTRL_U, CTRL_W, CTRL_Z = "\x03", "\x04", "\x15", "\x17", "\x1a"
INDENT = "      "
# It erases, sets the title, returns, turns around, rings, moves up.
EVIL = "\x1b[2J\x1b]0;title\x07\r\u202e\x07\x9b5A\n\x08"
WELCOME = {"type": "welcome", "name": "ann", "session": "s", "epoch": "e", "users": ["ann"],
           "last": 0}


# --- What is shown ---

def status_row(terminal):
    """The row of the status line: the only one that begins reversed."""
    return next((row for row in range(terminal.rows) if "reverse" in terminal.cell(row, 0).style),
                terminal.rows)


def status(terminal):
    """The parts of the status line."""
    return [part.strip() for part in terminal.line(status_row(terminal)).split(" | ")]


def messages(terminal):
    """The rows with what was said, without the times."""
    return [re.sub(r"^\d\d:\d\d ", "", line) for line in terminal.lines()[:status_row(terminal)]
            if line not in ("", "-- now --")]


def newest(terminal):
    """The last of these rows."""
    return (messages(terminal) or [""])[-1]


def typed(terminal):
    """The rows of the line that is typed, and the cursor."""
    return terminal.lines()[status_row(terminal) + 1:], terminal.cursor


def after_cursor(terminal):
    """The text from the cursor to the end of its row."""
    row, column = terminal.cursor
    return "".join(terminal.cell(row, column).text
                   for column in range(column, terminal.columns)).rstrip()


def wait(program, predicate, what):
    """Like wait_until(), but never in the middle of a frame."""
    return program.wait_until(lambda terminal: 2026 not in terminal.modes
                              and status_row(terminal) < terminal.rows
                              and predicate(terminal), what)


def wait_messages(program, *lines):
    """Wait until these are the rows with what was said."""
    wait(program, lambda terminal: messages(terminal) == list(lines), f"the messages {lines}")


def wait_typed(program, *lines, row=23, column):
    """Wait until these are the rows of the line that is typed, with the cursor there."""
    wait(program, lambda terminal: typed(terminal) == (list(lines), (row, column)),
         f"the input {lines}, the cursor in {column}")


def burst(peer, first, last):
    """Let `peer` say m<first> to m<last> at once."""
    frames = [{"type": "chat", "id": peer.next_id + n - first, "text": f"m{n}"}
              for n in range(first, last + 1)]
    peer.next_id += len(frames)
    peer.send(b"".join(map(encode, frames)))


def heard(peer, sender="ann"):
    """The text of what `peer` hears next of `sender`."""
    frame = peer.recv_until("chat", **{"from": sender})
    while frame["id"] <= peer.welcome["last"]:          # history
        frame = peer.recv_until("chat", **{"from": sender})
    return frame["text"]


def left_behind(program):
    """The lines on the terminal after the end."""
    return [line for line in program.terminal.lines() if line]


def unknown(terminal):
    """What the model does not know; but it has no place to save a mode, so it need not know
    that."""
    return [sequence for sequence in terminal.unknown
            if sequence not in ("\x1b[?1007s", "\x1b[?1007r")]


def assert_restored(program):
    """The terminal is as it was before the client ran, and was never sent what it does not know."""
    terminal = program.terminal
    assert program.settings() == program.first_settings
    assert not terminal.alternate and terminal.cursor_visible and terminal.autowrap
    assert not terminal.bracketed_paste
    assert (unknown(terminal), terminal.titles) == ([], [])
    assert b"Traceback" not in program.raw_output


def patched(source):
    """A command like the client's, with `source` run before; boom() raises."""
    return [sys.executable, "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); import chat_client, threading\n"
            "def boom(*_): raise RuntimeError('boom')\n"
            f"{source}\nsys.exit(chat_client.main(sys.argv[1:]))"]


class FakeServer:
    """A server that answers each join with what it is told to."""

    def __init__(self, *frames):
        self.frames = list(frames)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TIMEOUT)
        self.port = self._listener.getsockname()[1]
        self._sock = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.hang_up()
        self._listener.close()

    def accept(self, *frames):
        """Let one in, read its join, answer with the frames."""
        self._sock, _ = self._listener.accept()
        self._sock.settimeout(TIMEOUT)
        assert b'"join"' in self._sock.recv(65536)
        self.send(*frames)

    def send(self, *frames):
        """Send the frames in one piece."""
        self._sock.sendall(b"".join(map(encode, frames)))

    def hang_up(self):
        """End the connection."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def sweep(port):
    """Say short things, so that the history of those before is out of the way: with them a
    newcomer's screen is just full."""
    with RawClient(port) as sweeper:
        sweeper.join("sweeper")
        for _ in range(19):
            sweeper.say("sweeps")
        sweeper.say("swept")
        sweeper.leave()
