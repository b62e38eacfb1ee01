"""The client in a terminal as its user sees it: a real process on a pseudo-terminal, what it prints read back by a model.

The tests share one server, so a window is cleared before a test looks at it. The peers are RawClients, and where a server has
to misbehave it is a listening socket. Whatever a test is about, at its end the terminal has to be as it was. Nothing sleeps;
TIMEOUT is only reached on failure.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from harness import CLIENT, ROOT, TIMEOUT, RawClient, serving, start_server
from terminal import Program, take_terminal

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and pseudo-terminals")

LEFT, RIGHT, UP, HOME, END, DELETE, PAGE_UP, PAGE_DOWN = (
    "\x1b[D", "\x1b[C", "\x1b[A", "\x1b[H", "\x1b[F", "\x1b[3~", "\x1b[5~", "\x1b[6~")
ALT_ENTER, BACKSPACE, CTRL_C, CTRL_D, CTRL_U, CTRL_W, CTRL_Z = "\x1b\r", "\x7f", "\x03", "\x04", "\x15", "\x17", "\x1a"
INDENT = "      "
EVIL = "\x1b[2J\x1b]0;title\x07\r\u202e\x07\x9b5A\n\x08"       # erases, sets the title, returns, turns around, rings, moves up
WELCOME = {"type": "welcome", "name": "ann", "session": "s", "epoch": "e", "users": ["ann"], "last": 0}


# --- Helpers ---

def status_row(terminal):
    """The row of the status line: the only one that begins reversed."""
    return next((row for row in range(terminal.rows) if "reverse" in terminal.cell(row, 0).style), terminal.rows)


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
    return "".join(terminal.cell(row, column).text for column in range(column, terminal.columns)).rstrip()


def wait(program, predicate, what):
    """Like wait_until(), but never in the middle of a frame."""
    return program.wait_until(lambda terminal: 2026 not in terminal.modes and status_row(terminal) < terminal.rows
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
    frames = [{"type": "chat", "id": peer.next_id + n - first, "text": f"m{n}"} for n in range(first, last + 1)]
    peer.next_id += len(frames)
    peer.send(b"".join(json.dumps(frame).encode() + b"\n" for frame in frames))


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
    """What the model does not know; but it has no place to save a mode, so it need not know that."""
    return [sequence for sequence in terminal.unknown if sequence not in ("\x1b[?1007s", "\x1b[?1007r")]


def assert_restored(program):
    """The terminal is as it was before the client ran, and was never sent what it does not know."""
    terminal = program.terminal
    assert program.settings() == program.first_settings
    assert not terminal.alternate and terminal.cursor_visible and terminal.autowrap and not terminal.bracketed_paste
    assert (unknown(terminal), terminal.titles) == ([], [])
    assert b"Traceback" not in program.raw_output


def patched(source):
    """A command like the client's, with `source` run before; boom() raises."""
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import chat_client, threading\n"
            f"def boom(*_): raise RuntimeError('boom')\n{source}\nsys.exit(chat_client.main(sys.argv[1:]))"]


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
        self._sock.sendall(b"".join(json.dumps(frame).encode() + b"\n" for frame in frames))

    def hang_up(self):
        """End the connection."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


@pytest.fixture(scope="module")
def server():
    """The server that the tests share."""
    with serving("--rate", "0", "--bind", "127.0.0.1", "--grace", "0.1") as server:
        yield server


@pytest.fixture(autouse=True)
def empty_room(server):
    """Nobody of the test before is in the room any more."""
    with RawClient(server.port, auto_ack=True) as first:
        others = set(first.join("first")["users"]) - {"first"}
        while others:
            others.discard(first.recv_until("left")["name"])
        first.send({"type": "leave", "id": first.next_id})
        assert first.eof()


@pytest.fixture
def serve():
    """Start servers of one's own."""
    servers = []

    def start(**options):
        servers.append(start_server("--rate", "0", "--bind", "127.0.0.1", **options))
        return servers[-1]
    yield start
    for server in servers:
        server.kill()
        server.stop()


@pytest.fixture
def paused(server):
    """Stop the shared server; what it returns lets it go on."""
    def pause():
        server.process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(server.process.pid, os.WUNTRACED)        # its threads run on for a moment
        assert os.WIFSTOPPED(status)
        return resume

    def resume():
        server.process.send_signal(signal.SIGCONT)
    yield pause
    resume()


@pytest.fixture
def peer(server):
    """Join with raw clients; at the end they leave, and are gone before the next test."""
    peers = []

    def join(name, port=None):
        peers.append(RawClient(port or server.port, auto_ack=True))
        peers[-1].join(name)
        return peers[-1]
    yield join
    for one in peers:
        try:
            one.send({"type": "leave", "id": one.next_id})
            assert one.eof()
        except OSError:
            pass                            # its server is gone
        one.close()


def sweep(port):
    """Short messages, that the history of those before is out of the way: with them a newcomer's screen is just full."""
    with RawClient(port) as sweeper:
        sweeper.join("sweeper")
        for _ in range(19):
            sweeper.say("sweeps")
        sweeper.say("swept")
        sweeper.send({"type": "leave", "id": sweeper.next_id})
        assert sweeper.eof()


@pytest.fixture
def launch(server):
    """Start clients; at the end each has left the terminal as it was."""
    programs = []

    def start(*arguments, port=None, command=None, env=None, **options):
        if port is None:
            sweep(server.port)
        programs.append(Program([*(command or CLIENT), "127.0.0.1", str(port or server.port), "-n", "ann", *arguments],
                                cwd=ROOT, env={"COLORTERM": None, **(env or {})}, **options))
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
        wait(program, lambda terminal: newest(terminal) == "sweeper: swept" and "you are ann" in terminal.text(), "the history")
        program.type("/clear\r")
        wait_messages(program)
        return program
    return start


# --- What is typed stays ---

EMOJI = "\U0001f469\u200d\U0001f680\u2764\ufe0f\U0001f1eb\U0001f1f7\U0001f44d\U0001f3fd\U0001f600 end"
HALF_LINES = {
    "plain": "half a line, and its end",
    "CJK": "\u4f60\u597d\uff0c\u4e16\u754c\u3002\ud55c\uad6d\uc5b4 end",
    "combining marks": "e\u0301a\u0308\u0323 nin\u0303o \u0915\u094d\u0937 end",
    "emoji": EMOJI,
    "wider than the screen": "word " * 40 + "end",
    "CJK wider than the screen": "x" + "\u4f60\u597d" * 50 + "end",
    "higher than its part of the screen": "word " * 200 + "end",
    "several lines": "one\n\n\u4e8c\nend",
}


def test_half_line_stays_while_messages_arrive(window, peer):
    """50 messages arrive: whatever was typed and its cursor stay where they are, and Enter says it."""
    bob = peer("bob")
    ann = window()
    for number, (what, text) in enumerate(HALF_LINES.items()):
        ann.type(text.replace("\n", ALT_ENTER) + LEFT * 3)
        before = wait(ann, lambda terminal: after_cursor(terminal) == "end" and typed(terminal), f"the cursor: {what}")
        last = 50 * number + 50
        burst(bob, last - 49, last)
        wait(ann, lambda terminal: newest(terminal) == f"bob: m{last}" and typed(terminal) == before, f"all unmoved: {what}")
        height = status_row(ann.terminal)
        assert messages(ann.terminal) == [f"bob: m{n}" for n in range(last - height + 1, last + 1)]
        ann.type("\r")
        wait_typed(ann, ">", column=2)
        assert heard(bob) == text
    assert ann.terminal.bells == 0


@pytest.mark.parametrize("options", [{"joins_emoji": False}, {"joins_emoji": False, "widens": False}])
def test_half_line_on_terminals_that_measure_otherwise(window, peer, options):
    """Emoji of several parts are as wide as this terminal shows them, in the line and in the messages."""
    bob = peer("bob")
    ann = window(**options)
    ann.type(EMOJI + LEFT * 3)
    before = wait(ann, lambda terminal: after_cursor(terminal) == "end" and typed(terminal), "the cursor")
    bob.say(EMOJI)
    burst(bob, 1, 10)
    bob.say(EMOJI * 20 + "last")
    wait(ann, lambda terminal: newest(terminal).endswith("last") and typed(terminal) == before, "all unmoved")
    rows = messages(ann.terminal)
    assert rows[0] == "bob: " + EMOJI and "".join(row.replace(INDENT, "") for row in rows[11:]).replace(" ", "") == (
        "bob:" + EMOJI * 20 + "last").replace(" ", "")
    assert all(row.startswith(INDENT) for row in rows[12:])


def test_half_line_survives_resizing(window, peer):
    """Messages and resizes in between: the line is wrapped anew, the messages from their original lines, and back."""
    bob = peer("bob")
    ann = window()
    ann.type("\u4f60\u597d " * 12 + "end" + LEFT * 3)
    before = wait(ann, lambda terminal: after_cursor(terminal) == "end" and typed(terminal), "the cursor")
    burst(bob, 1, 25)
    bob.say("a message of two rows a message of two rows")
    wait(ann, lambda terminal: newest(terminal).startswith("bob: a message"), "the message")
    ann.resize(10, 40)
    wait(ann, lambda terminal: messages(terminal)[-2:] == ["bob: a message of two rows a", INDENT + "message of two rows"]
         and len(typed(terminal)[0]) == 2 and after_cursor(terminal) == "end", "another wrapping")
    burst(bob, 26, 50)
    wait(ann, lambda terminal: messages(terminal) == [f"bob: m{n}" for n in range(44, 51)]
         and typed(terminal)[0][1].endswith("end") and after_cursor(terminal) == "end", "40 columns")
    assert len(status(ann.terminal)) > 1
    ann.resize(24, 80)
    wait(ann, lambda terminal: typed(terminal) == before and newest(terminal) == "bob: m50", "80 columns again")
    ann.resize(40, 80)
    wait(ann, lambda terminal: terminal.cursor[0] == 39 and "bob: a message of two rows a message of two rows"
         in messages(terminal), "more rows")


def test_resized_and_back_at_once(window, peer):
    """A size that has changed and changed back before we looked has still cost what was shown."""
    bob = peer("bob")
    ann = window()
    bob.say("hello")
    ann.type("half a line")
    wait_messages(ann, "bob: hello")
    for _ in range(5):
        wait_typed(ann, "> half a line", column=13)
        ann.resize(4, 12)
        ann.resize(24, 80)
    wait_typed(ann, "> half a line", column=13)
    wait_messages(ann, "bob: hello")


def test_absurd_sizes(window, peer):
    """A window of a single cell shows nothing of use, and harms nothing."""
    bob = peer("bob")
    ann = window()
    ann.type("half a \u4f60\u597d line")
    for number, size in enumerate([(1, 1), (2, 1), (1, 80), (2, 2), (3, 5), (24, 1), (4, 12)]):
        ann.resize(*size)
        bob.say(f"{number} \u4f60\u597d {EMOJI}")
    ann.resize(24, 80)
    wait_typed(ann, "> half a \u4f60\u597d line", column=18)
    wait(ann, lambda terminal: newest(terminal) == f"bob: 6 \u4f60\u597d {EMOJI}", "the last message")


KEYS = ("abc" + LEFT + LEFT + "\u00e9\u4f60" + "\x1b[1;5C" + "\U0001f469\u200d\U0001f680" + HOME + DELETE + END + " two three"
        + CTRL_W + "\x1b[200~pasted\rmore\x1b[201~" + "\x1bOD" + BACKSPACE + "\x1b[F" + " \x1bb\x1bf" + "\x01\x05" + ALT_ENTER
        + "x\x02\x06 end")


def test_keys_in_any_pieces(window, peer):
    """Keys that arrive one byte at a time, also those of several, and all at once make the same line."""
    import fcntl
    import struct
    import termios
    bob = peer("bob")
    ann = window()
    expected = "\u00e9\u4f60bc\U0001f469\u200d\U0001f680 two pasted\nmoe \nx end"
    ann.type(KEYS + "\r")
    assert heard(bob) == expected
    ann.type(UP)                            # what was said comes back; it is emptied again
    wait(ann, lambda terminal: terminal.line(23) == "  x end", "the line from before")
    ann.type(CTRL_C)
    wait_typed(ann, ">", column=2)
    tick = threading.Event()
    for byte in (KEYS + "\r").encode():
        ann.type(bytes([byte]))
        deadline = time.monotonic() + TIMEOUT
        while struct.unpack("i", fcntl.ioctl(ann._slave, termios.FIONREAD, b"\0" * 4))[0]:     # until the client has read it
            assert time.monotonic() < deadline, "the client does not read"
            tick.wait(0.0005)
    assert heard(bob) == expected


# --- Pastes ---

def paste(*lines):
    """What a terminal sends for a paste of these lines."""
    return "\x1b[200~" + "\r".join(lines) + "\x1b[201~"


def test_paste_of_30_lines(window, peer):
    """A paste of 30 lines asks, sends nothing by itself, and is one message; declined, it leaves what was typed."""
    bob = peer("bob")
    ann = window()
    lines = [f"line {n}" for n in range(1, 31)]
    ann.type("see: ")
    for last, answer in ((3, "n"), (6, CTRL_C)):
        ann.type(paste(*lines))
        ann.wait_for("paste 30 lines as one message?")
        burst(bob, last - 2, last)
        wait(ann, lambda terminal: newest(terminal) == f"bob: m{last}", "the messages meanwhile")
        wait_typed(ann, "> see:", column=7)
        ann.type(answer)
        wait(ann, lambda terminal: "paste" not in terminal.text(), "no question any more")
        wait_typed(ann, "> see:", column=7)
    ann.type(paste(*lines) + "y")
    wait(ann, lambda terminal: typed(terminal)[0][-1] == "  line 30" and terminal.cursor == (23, 9)
         and len(typed(terminal)[0]) == 8, "the pasted lines")
    ann.type("!\rnext\r")
    assert heard(bob) == "see: " + "\n".join(lines) + "!"
    assert heard(bob) == "next"
    wait(ann, lambda terminal: messages(terminal)[-2:] == [INDENT + "line 30! (there)", "ann: next (there)"], "both messages")


def test_paste_is_answered_whatever_is_typed_with_it(window, peer):
    """The question about a paste takes the answer also when other keys come in the same read."""
    bob = peer("bob")
    ann = window()
    ann.type(paste(*"123456"))
    ann.wait_for("paste 6 lines")
    ann.type("?y")
    wait(ann, lambda terminal: typed(terminal)[0][-1] == "  6" and "paste" not in terminal.text(), "the paste")
    ann.type("\r")
    assert heard(bob) == "1\n2\n3\n4\n5\n6"


def test_paste_of_3_lines(window, peer):
    """Three lines are inserted without a question and are one message; an end of line at the end sends nothing."""
    bob = peer("bob")
    ann = window()
    ann.type(paste("one", "", "three", "") + "\r")
    assert heard(bob) == "one\n\nthree"
    wait_messages(ann, "ann: one", INDENT + "three (there)")


def test_paste_is_text(window, peer):
    """Control characters and sequences in a paste press no keys; more than a message holds is not pasted."""
    bob = peer("bob")
    ann = window()
    ann.type(paste("a\x03b\x1b[31mred\x04\x1b]0;title\x07"))
    wait_typed(ann, "> abred", column=7)
    ann.type(paste("x" * 9_000))
    ann.wait_for("! not pasted: 9000 characters")
    ann.type("\r")
    assert heard(bob) == "abred"


# --- Hostile peers and servers ---

FORGED = "hi\n12:00 eve: forged\n* eve left (gone away)\n! refused\n-- now --\n > "
HOSTILE = ["\u202egnp.exe \u2066x\u2069", "\u200bzero\u200c\u2060\ufeff", "\u2028\u2029line", "\u0301Z" + "\u0335" * 400,
           FORGED, "\t\t\ttabs", "w" * 1_000, "\u4f60" * 700, "\U0001f600" * 500, "\u200d\ufe0f\u20e3", "\u115f\u3164\u1160",
           "\u00ad soft", "\n" * 30 + "far below",
           "\U000e0041\U000f0000\ufff9\uffff", "a " * 4_096, "x" * 8_192, "\u0e33\u0e33 \u0bcd \U0001f3fd\U0001f1eb"]


def test_hostile_peer(window, peer):
    """Whatever a peer says is one message of that peer: its first row begins with the name, all others are indented."""
    bob = peer("bob")
    ann = window()
    ann.type("half a line" + LEFT * 4)
    wait_typed(ann, "> half a line", column=9)
    before, seen = "nothing", ""
    for number, text in enumerate(HOSTILE):
        bob.say(text)
        after = f"bob: after {number}"
        bob.say(after[5:])
        wait(ann, lambda terminal: newest(terminal) == after and typed(terminal) == (["> half a line"], (23, 9)),
             f"{text[:20]!a}")
        *rows, last = messages(ann.terminal)
        seen += "".join(rows)
        if before in rows:
            rows = rows[rows.index(before) + 1:]
            assert rows and rows[0].startswith("bob:"), (text[:20], rows)
        assert all(row.startswith(INDENT) for row in rows[1:]), (text[:20], rows)
        assert status(ann.terminal)[:2] == ["ann", "connected"]
        before = after
    assert (ann.terminal.titles, ann.terminal.bells, unknown(ann.terminal)) == ([], 0, [])
    printed = ann.raw_output.decode("utf-8")
    assert not re.search("[\u200b\u200c\u2028\u2029\u202a-\u202e\u2060-\u206f\ufeff\ufff9\u115f\u1160\u3164\u00ad]", printed)
    assert "\\u202egnp.exe \\u2066x\\u2069" in seen and "\\u200bzero" in seen


def test_hostile_peer_forges_no_line(window, peer):
    """Lines that imitate other speakers are indented, and so is what is wrapped."""
    bob = peer("bob")
    ann = window()
    bob.say(FORGED)
    wait_messages(ann, "bob: hi", *(INDENT + line for line in FORGED.rstrip().split("\n")[1:]))
    ann.type("/clear\r")
    wait_messages(ann)
    bob.say("x" * 66 + " 12:00 eve: forged")
    wait_messages(ann, "bob: " + "x" * 66, INDENT + "12:00 eve: forged")


ODD_WIDTHS = ["a\U0001f3fdend", "\u00d7\ufe0fend", "1\ufe0f\u20e3end", "\U0001f1eb\U0001f1f7\U0001f1ebend", "\u200bend",
              "\U0001f3fdend"]


def test_odd_clusters_keep_the_cursor(window):
    """Where the cursor is does not suffer from characters that should join others and do not."""
    ann = window()
    for text in ODD_WIDTHS:
        ann.type(text + LEFT * 3)
        wait(ann, lambda terminal: after_cursor(terminal) == "end", f"the cursor before the end: {text!a}")
        ann.type(CTRL_C)
        wait_typed(ann, ">", column=2)


def test_hostile_server(launch):
    """Control characters in every field that a server can send are shown escaped, and move nothing."""
    frames = [{"type": "joined", "id": 1, "name": EVIL, "at": 2**53 - 1},
              {"type": "renamed", "id": 2, "name": EVIL, "to": EVIL, "at": 1 - 2**53},
              {"type": "chat", "id": 3, "from": EVIL, "text": "hi \u202e", "at": 0, "to": EVIL},
              {"type": "chat", "id": 4, "from": EVIL, "text": "me", "at": 0},
              {"type": "chat", "id": 5, "from": "bob", "text": EVIL, "at": 0},       # no text: not shown
              {"type": "error", "id": 6, "code": EVIL, "text": EVIL},
              {"type": "left", "id": 7, "name": EVIL, "at": 0, "reason": EVIL},
              {"type": "heard", "about": 3, "count": 5, "of": 2}, {"type": EVIL, "id": 8},
              {"type": "error", "id": 9, "code": EVIL},
              {"type": "left", "id": 10, "name": EVIL, "at": 0, "reason": "booted: " + EVIL},
              {"type": "chat", "id": 11, "from": "bob", "text": "marker", "at": 0}]
    with FakeServer() as server:
        ann = launch("--bell", "off", port=server.port, columns=200)
        server.accept({**WELCOME, "name": EVIL[:20], "users": [EVIL, "ann"], "motd": "motd \u202e\n12:00 eve: forged"})
        ann.wait_for("* you are \\x1b[2J")
        ann.type("/names\r/motd\rhalf")
        wait_typed(ann, "> half", column=6)
        server.send(*frames)
        wait(ann, lambda terminal: newest(terminal) == "bob: marker" and typed(terminal) == (["> half"], (23, 6)), "the marker")
        shown = escaped(EVIL)
        rows = messages(ann.terminal)
        assert [row for row in rows if row.startswith("* motd")] == ["* motd \\u202e"] * 2
        assert "* 2 here: " + shown + ", ann" in rows and f"* {shown} is now {shown}" in rows and f"! {shown}" in rows
        assert f"{shown} -> {shown}: hi \\u202e" in rows and f"{shown}: me" in rows
        assert not any(row.startswith(("bob: \\x1b", "12:00 eve")) for row in rows)
        server.send({"type": "booted", "id": 12, "reason": EVIL})
        assert ann.wait_exit() == 1 and ann.terminal.bells == 0
        assert "".join(left_behind(ann)) == "chat_client: you were booted: " + shown


@pytest.mark.parametrize("frame", [{"type": "error", "code": "banned", "text": EVIL}, {"type": "error", "code": EVIL},
                                   {**WELCOME, "motd": EVIL}, {"type": EVIL}], ids=["error", "code", "motd", "type"])
def test_hostile_server_refuses(launch, frame):
    """Before we are in, control characters are escaped or the frame is refused: one line, exit code 1."""
    with FakeServer() as server:
        ann = launch(port=server.port, columns=300)
        server.accept(frame)
        server.hang_up()
        assert ann.wait_exit() == 1 and ann.terminal.bells == 0
        line, = left_behind(ann)
        assert line.startswith("chat_client: ") and re.fullmatch("[^\u202e\x9b]*", line)


def escaped(text):
    """As the client shows it."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


# --- One's own messages ---

def test_states_of_own_messages(window, peer, paused):
    """A message shows in its place what becomes of it: sending, there, heard by some, heard by all."""
    bob, cat = peer("bob"), peer("cat")
    ann = window()
    resume = paused()
    ann.type("one\rtwo\rhalf")
    wait_messages(ann, "ann: one (sending)", "ann: two (sending)")
    wait(ann, lambda terminal: "2 unsent" in status(terminal), "what is unsent")
    resume()
    wait_messages(ann, "ann: one (there)", "ann: two (there)")
    wait(ann, lambda terminal: status(terminal)[:3] == ["ann", "connected", "3 here"], "nothing unsent")
    bob.say("three")
    wait_messages(ann, "ann: one (there)", "ann: two (there)", "bob: three")
    assert [heard(bob), heard(bob)] == ["one", "two"]
    wait_messages(ann, "ann: one (heard by 1 of 2)", "ann: two (heard by 1 of 2)", "bob: three")
    assert heard(cat) == "one"
    wait_messages(ann, "ann: one (heard by all)", "ann: two (heard by 1 of 2)", "bob: three")
    wait_typed(ann, "> half", column=6)


def test_failed_message(window):
    """A message to nobody shows that it failed, and why; at the end it is named, and the exit code is 1."""
    ann = window()
    ann.type("/msg nobody hello\r")
    wait(ann, lambda terminal: re.fullmatch(r"ann -> nobody: hello \(failed: .+\)", newest(terminal)), "the failure")
    assert len(messages(ann.terminal)) == 1
    ann.type(CTRL_D)
    assert ann.wait_exit() == 1
    line, = left_behind(ann)
    assert line.startswith("chat_client: not delivered: hello (")


def test_server_restarts(launch, serve):
    """Without the server one types and sends on; it counts down, and when the server is back all goes out by itself."""
    first = serve()
    ann = launch(port=first.port, command=patched("chat_client.random.uniform = lambda low, high: 1.2"))
    ann.wait_for("you are ann")
    ann.type("half")
    wait_typed(ann, "> half", column=6)
    first.kill()
    wait(ann, lambda terminal: "reconnecting in 2 s" in status(terminal), "the countdown")
    ann.type(" a line\rmore")
    wait(ann, lambda terminal: newest(terminal) == "ann: half a line (sending)" and "1 unsent" in status(terminal),
         "the unsent one")
    serve(port=first.port)
    wait(ann, lambda terminal: "reconnecting in 1 s" in status(terminal), "the countdown")
    ann.wait_for("connected again")
    wait(ann, lambda terminal: "ann: half a line (there)" in messages(terminal)
         and status(terminal)[1:3] == ["connected", "1 here"], "what was sent")
    wait_typed(ann, "> more", column=6)
    assert sum("half a line" in row for row in messages(ann.terminal)) == 1
    with RawClient(first.port) as bob:
        bob.join("bob")
        assert bob.recv_until("chat")["text"] == "half a line"
        ann.type("\r")
        assert bob.recv_until("chat")["text"] == "more"


def test_banned_when_it_comes_back(launch):
    """Refused for good when it reconnects, the client ends with one line and exit code 1."""
    with FakeServer() as server:
        ann = launch(port=server.port, command=patched("chat_client.random.uniform = lambda low, high: 0.01"))
        server.accept(WELCOME)
        ann.wait_for("you are ann")
        server.hang_up()
        server.accept({"type": "error", "code": "banned", "text": "you are banned"})
        assert ann.wait_exit() == 1
        assert left_behind(ann) == ["chat_client: you are banned"]


# --- Many messages, scrolling ---

def test_burst_of_5000(window, peer):
    """5,000 messages at once are drawn in far fewer frames, what is typed is shown meanwhile, none of the last is missing."""
    bob = peer("bob")
    ann = window()
    frames = ann.raw_output.count(b"\x1b[?2026h")
    burst(bob, 1, 5_000)
    ann.wait_for("bob: m")
    ann.type("typed meanwhile")
    meanwhile = wait(ann, lambda terminal: typed(terminal)[0] == ["> typed meanwhile"] and newest(terminal), "what was typed")
    wait_messages(ann, *(f"bob: m{n}" for n in range(4_979, 5_001)))
    wait_typed(ann, "> typed meanwhile", column=17)
    assert meanwhile != "bob: m5000"
    assert ann.raw_output.count(b"\x1b[?2026h") - frames < 500
    ann.type(PAGE_UP * 3)
    wait_messages(ann, *(f"bob: m{n}" for n in range(4_916, 4_938)))


def test_scrolling_back(window, peer):
    """Scrolled back, the place stays whatever arrives, and what is new is counted; Page Down and Enter return."""
    bob = peer("bob")
    ann = window()
    burst(bob, 1, 100)
    ann.wait_for("bob: m100")
    ann.type("half" + PAGE_UP)
    place = [f"bob: m{n}" for n in range(58, 80)]
    wait_messages(ann, *place)
    wait(ann, lambda terminal: status(terminal)[0] == "scrolled back", "the mark")
    burst(bob, 101, 110)
    wait(ann, lambda terminal: status(terminal)[0] == "10 new below, PgDn" and messages(terminal) == place, "what is new")
    ann.resize(12, 40)
    wait_messages(ann, *place[-10:])
    wait(ann, lambda terminal: terminal.line(11) == "> half" and status(terminal)[0] == "10 new below, PgDn", "the mark")
    ann.resize(24, 80)
    wait_messages(ann, *place)
    ann.type(PAGE_DOWN * 2)
    wait_messages(ann, *(f"bob: m{n}" for n in range(89, 111)))
    wait(ann, lambda terminal: status(terminal)[0] == "ann", "no mark")
    burst(bob, 111, 111)
    wait_messages(ann, *(f"bob: m{n}" for n in range(90, 112)))
    ann.type(PAGE_UP * 20)
    wait(ann, lambda terminal: messages(terminal)[:1] == ["bob: m1"], "the top")
    ann.type("\r")
    wait(ann, lambda terminal: newest(terminal) == "ann: half (there)" and status(terminal)[0] == "ann", "the bottom")


# --- Completion, commands, bell ---

def test_completion(window, peer):
    """Tab completes the most recent speaker first, then the next; commands at the start of a line."""
    bob, bea, cat = peer("bob"), peer("bea"), peer("cat")
    ann = window()
    for speaker, text in ((bea, "1"), (bob, "2"), (cat, "3"), (bea, "4")):
        speaker.say(text)
        ann.wait_for(f": {text}")
    for keys, line in [("b\t", "bea: "), ("b\t\t", "bob: "), ("b\t\t\t", "b"), ("\t", "bea: "), ("\t\t", "cat: "),
                       ("hi b\t", "hi bea "), ("x" + LEFT + "c\t", "cat: x"), ("/na\t", "/names "), ("z\t", "z"),
                       ("/x\t", "/x"), ("\u4f60 c\tend", "\u4f60 cat end")]:
        ann.type(keys + END + "|")
        wait(ann, lambda terminal: terminal.line(23) == f"> {line}|", f"{line} after {keys!a}")
        ann.type(CTRL_U)
        wait_typed(ann, ">", column=2)


def test_commands(window, peer):
    """Each command does what /help says, and nobody else hears of it but of what is said."""
    bob, cat = peer("bob"), peer("cat")
    ann = window()

    def run(line, *shown):
        ann.type(f"/clear\r{line}\r")
        wait_messages(ann, *shown)

    def say(line, shown, text, to=None):
        ann.type(f"/clear\r{line}\r")
        assert bob.recv_until("chat", text=text).get("to") == to
        wait(ann, lambda terminal: messages(terminal) in ([f"{shown} (there)"], [f"{shown} (heard by 0 of 2)"],
                                                          [f"{shown} (heard by 1 of 2)"], [f"{shown} (heard by all)"]), shown)
    run("/names", "* 3 here: bob, cat, ann")
    run("/wrong way", "! /wrong is not a command, /help lists them (to say it, begin with //)")
    run("/reply hi", "! nobody has written to you privately")
    run("/msg bob", "! /msg NAME TEXT")
    run("/nick server", "! the name server is the server's own")
    say("//text", "ann: /text", "/text")
    say(" /quit", "ann:  /quit", " /quit")
    say("/me waves", "* ann waves", "/me waves")
    say("/msg bob psst", "ann -> bob: psst", "psst", "bob")
    ann.type("/clear\r")
    wait_messages(ann)
    bob.say("psst yourself", to="ann")
    wait_messages(ann, "bob -> ann: psst yourself")
    say("/r what", "ann -> bob: what", "what", "bob")
    assert [frame["text"] for frame in bob.frames if frame.get("from") == "ann" and frame["id"] > bob.welcome["last"]] == [
        "/text", " /quit", "/me waves", "psst", "what"]
    run("/ignore Bob", "* ignored: bob")
    bob.say("not shown")
    bob.recv_until("ack")
    cat.say("shown")
    wait_messages(ann, "* ignored: bob", "cat: shown")
    run("/unignore bob", "* ignored: nobody")
    bob.say("shown")
    wait_messages(ann, "* ignored: nobody", "bob: shown")
    run("/quiet", "* joins and leaves are hidden")
    bob.send({"type": "leave", "id": bob.next_id})
    wait(ann, lambda terminal: "2 here" in status(terminal), "bob gone")
    assert messages(ann.terminal) == ["* joins and leaves are hidden"]
    run("/quiet", "* joins and leaves are shown")
    run("/nick anna", "* ann is now anna")
    wait(ann, lambda terminal: status(terminal)[0] == "anna", "the new name")
    ann.type("/clear\r/help\r")
    wait(ann, lambda terminal: newest(terminal) == "//TEXT: say /TEXT", "the help")
    assert "/ignore NAME: do not show what NAME says; without a name, who is ignored" in messages(ann.terminal)


@pytest.mark.parametrize("bell, rings", [
    ("off", []), ("mentions", ["named", "private"]), ("all", ["plain", "named", "private"])])
def test_bell(window, peer, bell, rings):
    """The bell rings for what was asked for, never for what we say or for joins; a mention is highlighted."""
    bob = peer("bob")
    ann = window("--bell", bell)
    ann.type("I am ann\r")
    wait(ann, lambda terminal: newest(terminal) == "ann: I am ann (there)", "our own")
    peer("cat")
    ann.wait_for("cat joined")
    rung = []
    for what, text, fields in [("plain", "annie", {}), ("named", "hi Ann!", {}), ("private", "you", {"to": "ann"})]:
        before = ann.terminal.bells
        bob.say(text, **fields)
        wait(ann, lambda terminal: newest(terminal).endswith(text) and (what not in rings or terminal.bells > before), what)
        rung += [what] * (ann.terminal.bells - before)
    assert rung == rings
    row, column = ann.terminal.find("Ann!")
    assert ["reverse" in ann.terminal.cell(row, column + n).style for n in range(4)] == [True, True, True, False]
    assert not any("reverse" in cell.style for cell in ann.terminal._grid[ann.terminal.find("annie")[0]])


# --- How it ends ---

@pytest.mark.parametrize("keys, number, code", [
    (CTRL_D, 0, 0), ("/quit\r", 0, 0), (CTRL_C, 0, 130), ("", signal.SIGINT, 130), ("", signal.SIGTERM, -signal.SIGTERM),
    *[("", number, -number) for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGALRM)]],
    ids=["ctrl-d", "quit", "ctrl-c", "INT", "TERM", "HUP", "QUIT", "USR1", "ALRM"])
def test_end(window, peer, keys, number, code):
    """Each way to leave has its exit code, leaves nothing on the terminal, and the others see it at once."""
    bob = peer("bob")
    ann = window(command=patched("import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))"))
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


def test_signal_that_another_thread_gets(window, peer):
    """The kernel may hand a signal to any thread, and does when two come at once: it is obeyed all the same."""
    bob = peer("bob")
    ann = window(command=patched(
        "import signal\ndef end(): signal.pthread_kill(threading.get_ident(), signal.SIGTERM)\n"
        "chat_client.Formatter.is_mention = lambda *_: threading.Timer(0.2, end).start()"))
    bob.say("hi")
    assert ann.wait_exit() == -signal.SIGTERM


def test_hangup_that_is_ignored(window, peer):
    """Started like nohup does, it goes on after SIGHUP, in the window and at its end."""
    bob = peer("bob")
    ann = window(command=["sh", "-c", "trap '' HUP; exec \"$0\" \"$@\"", *CLIENT])
    ann.signal(signal.SIGHUP)
    ann.type("still here\r")
    assert heard(bob) == "still here"
    wait(ann, lambda terminal: "unsent" not in terminal.line(status_row(terminal)), "the ACK")
    ann.signal(signal.SIGHUP)
    ann.type(CTRL_D)
    assert ann.wait_exit() == 0


def test_killed_while_the_terminal_is_not_read():
    """Stuck in a write, as the terminal takes no more, it is ended by the second SIGTERM, and the settings are as before."""
    import fcntl
    import struct
    import termios
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 500, 500, 0, 0))         # one frame is more than it holds
    before = termios.tcgetattr(slave)
    with FakeServer() as server:
        process = subprocess.Popen([*CLIENT, "127.0.0.1", str(server.port), "-n", "ann"], cwd=ROOT,
                                   stdin=slave, stdout=slave, stderr=subprocess.DEVNULL, start_new_session=True,
                                   env={**os.environ, "TERM": "xterm"})
        try:
            server.accept(WELCOME)
            printed = b""
            while b"you are ann" not in printed:
                printed += os.read(master, 65536)
            assert termios.tcgetattr(slave) != before
            server.send(*({"type": "chat", "id": n, "from": "bob", "text": f"flood {n} " * 40, "at": 0} for n in range(1, 501)))
            while b"flood" not in printed:
                printed = printed[-10:] + os.read(master, 1024)
            signals = 0
            while process.poll() is None:
                process.send_signal(signal.SIGTERM)
                signals += 1
                assert signals < 100, "it does not end"
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


def test_end_with_unsent(window, peer, paused):
    """Leaving waits for the ACK of what was said, on the terminal as it was; Ctrl-C gives up and names it."""
    bob = peer("bob")
    ann = window()
    resume = paused()
    ann.type("unsent\r")
    wait_messages(ann, "ann: unsent (sending)")
    ann.type(CTRL_D)
    ann.wait_for("waiting for the ACK of 1 message, Ctrl-C gives up")
    ann.type(CTRL_C)
    assert ann.wait_exit() == 130
    lines = [line.replace("^C", "") for line in left_behind(ann)]         # echoed before or after what is printed
    assert [line for line in lines[1:] if line] == ["chat_client: not confirmed: unsent"]
    resume()
    bob.recv_until("left", name="ann")


def test_terminal_closes(server, peer):
    """When the terminal goes away the client goes too, and the others see it leave."""
    bob = peer("bob")
    master, slave = os.openpty()
    process = subprocess.Popen([*CLIENT, "127.0.0.1", str(server.port), "-n", "ann"], cwd=ROOT, stdin=slave, stdout=slave,
                               stderr=slave, start_new_session=True, preexec_fn=take_terminal,
                               env={**os.environ, "TERM": "xterm"})
    os.close(slave)
    printed = b""
    while b"you are ann" not in printed:
        printed += os.read(master, 65536)
    os.close(master)
    bob.recv_until("left", name="ann")
    assert process.wait(TIMEOUT) in (-signal.SIGHUP, 1)


def test_signal_with_unsent(window, peer, paused):
    """A signal to end does not wait for the ACK of what was said."""
    bob = peer("bob")
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
              "chat_client.Screen.paint = lambda self: boom() if self._editor.text else paint(self)", ""),
    "client": ("chat_client.Formatter.is_mention = boom", "bob says something"),
    "keys": ("read = chat_client.Terminal.read\n"
             "chat_client.Terminal.read = lambda self: (lambda data: boom() if b'x' in data else data)(read(self))", ""),
    "alarm": ("chat_client.Formatter.is_mention = lambda *_: threading.Timer(0, boom).start()", "bob says something"),
}


@pytest.mark.parametrize("thread", CRASHES)
def test_crash(launch, peer, thread):
    """A bug on any thread: the terminal is restored, the bug is named in one line, and the exit code is 1."""
    bob = peer("bob")
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
        ann = launch("--timeout", "2", port=server.port, command=patched("chat_client.Window._on_welcome = boom"))
        server.accept(WELCOME)
        assert ann.wait_exit() == 1
        line, = left_behind(ann)
        assert line.startswith("chat_client: a bug: RuntimeError: boom")


# --- Stopped and continued ---

def test_stop_and_continue(window):
    """After kill -STOP, another program's output and kill -CONT everything is painted anew, and keys are keys again."""
    ann = window()
    ann.type("half a line" + LEFT)
    wait_typed(ann, "> half a line", column=12)
    before, raw = ann.snapshot(), ann.settings()
    ann.signal(signal.SIGSTOP)
    import termios
    termios.tcsetattr(ann._slave, termios.TCSANOW, ann.first_settings)          # as a shell does
    ann._locked(lambda: ann.terminal.feed(b"\x1b[?1049l\x1b[?2004l\x1b[?7h\x1b[2J\x1b[Hready> jobs"))
    ann.signal(signal.SIGCONT)
    wait(ann, lambda terminal: terminal.lines() == before and typed(terminal) == (["> half a line"], (23, 12)),
         "the screen again")
    assert ann.settings() == raw and ann.terminal.alternate and ann.terminal.bracketed_paste and not ann.terminal.autowrap
    ann._locked(lambda: ann.terminal.feed(b"\x1b[?1049l"))
    ann._locked(lambda: ann.terminal.feed(b"\x1b[2J\x1b[H\x1b[?1049h"))
    ann.type("\x0c")                        # Ctrl-L does the same
    wait(ann, lambda terminal: terminal.lines() == before, "the screen again")


def test_ctrl_z_without_a_shell(window):
    """Where no shell could let it go on, Ctrl-Z does not stop it."""
    ann = window()
    ann.type("half" + CTRL_Z + " a line")
    wait_typed(ann, "> half a line", column=13)
    wait(ann, lambda terminal: terminal.alternate and terminal.bracketed_paste, "the window")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash for its job control")
def test_ctrl_z_and_fg(server, peer, tmp_path):
    """Ctrl-Z gives the terminal back to the shell; fg brings all back, what was said meanwhile, too."""
    bob = peer("bob")
    (tmp_path / "inputrc").write_text("set enable-bracketed-paste off\n", encoding="utf-8")
    with Program(["bash", "--norc", "--noprofile", "-i"], env={
            "PS1": "ready> ", "INPUTRC": str(tmp_path / "inputrc"), "COLORTERM": None, "HISTFILE": None}) as shell:
        shell.wait_for("ready>")
        sweep(server.port)
        shell.type(f"'{sys.executable}' '{ROOT / 'chat_client.py'}' 127.0.0.1 {server.port} -n ann\r")
        shell.wait_until(lambda terminal: terminal.alternate and "you are ann" in terminal.text(), "the window")
        for number in range(2):
            shell.type(f"half{number}" + LEFT)
            wait(shell, lambda terminal: terminal.line(23).endswith(f"half{number}"), "what was typed")
            before = typed(shell.terminal)
            shell.type(CTRL_Z)
            shell.wait_until(lambda terminal: not terminal.alternate and terminal.text().count("Stopped") > number
                             and terminal.line(terminal.cursor[0]) == "ready>", "the shell")
            assert shell.terminal.autowrap and not shell.terminal.bracketed_paste and shell.terminal.cursor_visible
            shell.type("stty -a | grep -c ' icanon.* echo '\r")
            bob.say(f"meanwhile {number}")
            shell.wait_until(lambda terminal: terminal.lines().count("1") == number + 1
                             and terminal.line(terminal.cursor[0]) == "ready>", "a cooked terminal")
            shell.type("fg\r")
            shell.wait_until(lambda terminal: terminal.alternate and f"bob: meanwhile {number}" in terminal.text()
                             and typed(terminal) == before, "the window again")
            shell.type(END)
        shell.type(CTRL_C + CTRL_C)
        shell.wait_until(lambda terminal: not terminal.alternate and terminal.line(terminal.cursor[0]) == "ready>", "the shell")
        shell.type("echo \"=$?=\"\r")
        shell.wait_for("=130=")
        assert (unknown(shell.terminal), shell.terminal.titles) == ([], [])
        shell.type("exit\r")
        assert shell.wait_exit() == 0


# --- Terminals that can less ---

@pytest.mark.parametrize("arguments, env", [
    ([], {"TERM": "dumb"}), ([], {"NO_COLOR": "1"}), (["--plain"], {}), ([], {"TERM": ""})])
def test_no_screen_control(launch, peer, arguments, env):
    """A dumb terminal, NO_COLOR and --plain: a line a message, no escape sequence at all."""
    bob = peer("bob")
    ann = launch(*arguments, env=env)
    ann.wait_for("you are ann")
    bob.say("hi ann")
    ann.wait_for("bob: hi ann")
    ann.type("hello\r")
    ann.wait_for("ann: hello")
    ann.type("/quit\r")
    assert ann.wait_exit() == 0
    assert b"\x1b" not in ann.raw_output and ann.terminal.bells == 0


@pytest.mark.parametrize("term, colours", [("xterm-256color", r"38;5;\d+"), ("linux", r"3[0-7]"), ("vt100", None)])
def test_colours(window, peer, term, colours):
    """Names have the colours that the terminal has, and no others."""
    bob = peer("bob")
    ann = window(env={"TERM": term})
    bob.say("hi")
    wait_messages(ann, "bob: hi")
    ann.type("/wrong\r")
    ann.wait_for("! /wrong")
    used = set(re.findall(r"\b((?:38;5;\d+|3[0-79]|4\d|9[0-7]|10[0-7]))(?=[;m])",
                          " ".join(re.findall(r"\x1b\[([\d;]*m)", ann.raw_output.decode()))))
    assert bool(used) == bool(colours) and all(re.fullmatch(f"{colours}|31", colour) for colour in used)
    row, column = ann.terminal.find("bob: hi")
    assert "bold" in ann.terminal.cell(row, column).style
    assert any(name.startswith("fg=") for name in ann.terminal.cell(row, column).style) == bool(colours)


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
    assert lines == ["* you are ann, 2 here; /help lists the commands", "-- said before you came --",
                     "before, ann", "-- now --", "after"]
    assert ann.terminal.bells == 0
