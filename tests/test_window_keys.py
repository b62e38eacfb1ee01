"""What the keys mean that are no business of the editor, on a window without a terminal: to say, to
paste, to scroll, to answer; and which messages are one's own."""

import pytest

import chat_client
from chat_client import Columns, Window
from chatproto import MAX_TEXT, Ack, Renamed, Welcome
from display import NOON, chat
from paper import arguments_of
from terminal import Terminal


# --- The window: what the keys mean that are no business of the editor ---

class Paper:
    """In place of the terminal: takes what is written."""

    def __init__(self, rows=10, columns=60):
        self.shown = Terminal(rows, columns)

    def enter(self):
        self.shown.feed(chat_client.Terminal.ENTER.encode())
        self.shown.unknown.clear()

    def leave(self):
        self.shown.feed(chat_client.Terminal.LEAVE.encode())

    def write(self, text):
        self.shown.feed(text.encode())

    def size(self):
        return self.shown.rows, self.shown.columns


@pytest.fixture
def window(monkeypatch):
    """A Window for ann that was never connected, on Paper; its client keeps what is said until
    there is a connection."""
    monkeypatch.setenv("COLORTERM", "truecolor")
    window = Window(arguments_of(bell="mentions"), Paper())
    window._terminal.enter()
    window.client.users = {name: name for name in ("ann", "bob", "ben")}
    window.client.here = 3
    window.press = lambda *pieces: (list(map(window._typing.press, pieces))
                                    and window._paint())
    window.lines = lambda: window._terminal.shown.lines()

    def hear(*messages):
        """All in one piece, before the main thread looks."""
        window.client.received(b"".join(message.encode() for message in messages))
        while not window._events.empty():
            event, values = window._events.get_nowait()
            event(*values)
        window._paint()
    window.hear = hear
    yield window
    # Otherwise close() waits for the ACK of its leave.
    window.client.closed()
    window.client.close()


def test_window_says(window):
    """Enter says the line; it is shown as on its way, and the status line counts it."""
    window.press(b"hello\r")
    assert window.lines()[7].endswith("ann: hello (sending)") and "1 unsent" in window.lines()[8]
    assert window.lines()[9] == ">"
    window.press(b"  \r")
    assert len(window.client.unsettled) == 1
    window.press(b"\x1b[A")
    assert window.lines()[9] == "> hello"


def test_window_paste(window):
    """Up to five lines are inserted; more ask first, and any other key waits for the answer."""
    window.press(b"\x1b[200~1\r2\r3\x1b[201~")
    assert window.lines()[-3:] == ["> 1", "  2", "  3"]
    window.press(b"\x03")
    paste = b"\x1b[200~" + b"line\r" * 30 + b"\x1b[201~"
    window.press(paste, b"n")
    assert window._editor.text == "" and not window.screen.question
    window.press(paste)
    assert "paste 30 lines" in window.lines()[8] and window._editor.text == ""
    window.press(b"x")
    assert window._terminal.shown.bells == 1 and "paste 30 lines" in window.lines()[8]
    window.press(b"y")
    assert window._editor.text == "\n".join(["line"] * 30)
    assert "paste 30 lines" not in window._terminal.shown.text()
    window.press(b"\r")
    assert [said.text for said in window.client.unsettled] == ["\n".join(["line"] * 30)]


@pytest.mark.parametrize("answer, said, typed", [
    (b"no\r", ["o"], ""), (b"No", [], "o"), (b"n", [], ""), (b"y", [], "1\n2\n3\n4\n5\n6"),
    (b"y, all\r", ["1\n2\n3\n4\n5\n6, all"], ""),
    (b"?Yx", [], "1\n2\n3\n4\n5\n6x"), (b"maybe\r\r", ["1\n2\n3\n4\n5\n6be"], ""),
    (b"\r!", [], "1\n2\n3\n4\n5\n6!"),
    (b"hm \x03x", [], "x")])
def test_window_paste_answer_in_any_pieces(window, answer, said, typed):
    """The first letter that answers decides, and what follows is typed, whether it comes in one
    read or in many."""
    for pieces in ([answer], [bytes([byte]) for byte in answer]):
        window.press(b"\x1b[200~1\r2\r3\r4\r5\r6\x1b[201~")
        assert "paste 6 lines" in window.lines()[8]
        before = len(window.client.unsettled)
        window.press(*pieces)
        assert "paste 6 lines" not in window._terminal.shown.text() and window._editor.text == typed
        assert [said.text for said in window.client.unsettled][before:] == said
        window._editor.clear()


@pytest.mark.parametrize("key", [b"]", b"P", b"^", b"_", b"X"])
def test_window_alt_with_a_letter_that_begins_a_string(window, key):
    """After Alt-] and the like what is typed is seen, and Enter says it."""
    for pieces in ([b"\x1b" + key, b"hello"], [b"\x1b" + key + b"hello"]):
        window.press(*pieces)
        assert window.lines()[9] == "> hello"
        window.press(b"\r")
        assert [said.text for said in window.client.unsettled][-1] == "hello"
        assert window.lines()[9] == ">"


def test_window_paste_too_long(window):
    """A paste that makes the line too long is told, and leaves it as it was."""
    window.press(b"ab\x1b[200~" + b"x" * MAX_TEXT + b"\x1b[201~")
    assert window._editor.text == "ab" and "! not pasted" in window._terminal.shown.text()


def test_window_completes(window):
    """Tab: who spoke last comes first, then the others; commands; never ourselves, nor who has
    gone."""
    for sender in ("ben", "bob", "gone"):
        window.talk.add(window.formatter.chat(chat("x", sender)))
    assert window.offers("", True) == ["bob: ", "ben: "] and window.offers("BE", False) == ["ben "]
    window.talk.add(window.formatter.chat(chat("x", "ben")))
    window.press(b"b\t")
    assert window.lines()[9] == "> ben:"
    window.press(b"\t")
    assert window.lines()[9] == "> bob:"
    assert window.offers("/m", True) == ["/me ", "/msg ", "/motd "]
    assert window.offers("/m", False) == []


def test_window_interrupt(window):
    """Ctrl-C clears a line that is not empty, else asks once and leaves; Ctrl-D leaves on an
    empty line."""
    window.press(b"ab\x01\x04")
    assert window._editor.text == "b" and window._over is None
    window.press(b"\x03")
    assert window._editor.text == "" and window._over is None
    window.press(b"\x03")
    assert window._over is None and "again to leave" in window.lines()[8]
    window.press(b"\x03")
    assert window._over == 130
    window._over = None
    window.press(b"\x04")
    assert window._over == 0


def test_window_unknown_command(window):
    """An unknown command is told to who typed it and goes nowhere; two slashes say one."""
    window.press(b"/nonsense x\r")
    assert "! /nonsense is not a command" in window._terminal.shown.text()
    assert not window.client.unsettled
    window.press(b"//me\r")
    assert [said.text for said in window.client.unsettled] == ["/me"]


@pytest.mark.parametrize("line", [b"hi", b"/nick eve", b"/msg bob hi"])
def test_window_says_after_the_end(window, line):
    """What is typed just before the window ends is not said, which is no fault of the terminal."""
    window.client.give_up("you were booted")
    window.press(line + b"\r")
    assert "! you were booted" in window._terminal.shown.text() and window._over is None


def test_window_clear_then_scroll(window):
    """/clear, then PageUp: what was there is there again."""
    window.press(b"/help\r")
    assert "/quit" in window._terminal.shown.text()
    window.press(b"/clear\r")
    assert not any(window.lines()[:8])
    window.press(b"\x1b[5~")
    assert "/quit" in window._terminal.shown.text()


def test_window_learns_widths(window):
    """The answers to the probe come between the keys, and are not typed."""
    window.press(b"a\x1b[1;5R\x1b[1;3R", b"\x1b[1;3Rb\x1b[1;", b"5R")
    assert window.lines()[9] == "> ab"
    assert [window.screen.columns.of(sample) for sample in Columns.SAMPLES] == [4, 2, 2, 4]


def test_window_name_of_the_welcome(window):
    """A server's name for us, and its message of the day, are shown escaped."""
    window.client.name = "a\x1b[2J"
    window._connect(Welcome("a\x1b[2J", "s", "e", ("bob",), 0, motd="hi\x1b]0;t\x07\nthere\u202e"),
                    [])
    window._paint()
    shown = window._terminal.shown
    assert not shown.unknown and not shown.titles
    assert "* hi\\x1b]0;t\\x07" in shown.text() and "* you are a\\x1b[2J" in shown.text()


WELCOME = Welcome("ann", "s", "e", ("ann", "bob"), 0)


def connect(window, welcome=WELCOME, *messages):
    """A connection that begins so; one that there was is gone."""
    if window.client.joined:
        window.client.closed()
    window.client.opened(lambda data: None)
    window.hear(welcome, *messages)


def said_rows(window):
    """The rows of messages, without their times."""
    return [line[6:] for line in window.lines()[:8] if line[:2].isdigit()]


@pytest.mark.parametrize("welcome", [
    Welcome("ann", "s", "e", ("ann", "bob"), 20, resumed=True, got=1, missed=7),
    Welcome("ann", "t", "e", ("ann", "bob"), 20, missed=7),
    Welcome("ann", "t", "e", ("ann", "bob"), 0),
    Welcome("ann", "t", "f", ("ann", "bob"), 20)],
    ids=["resumed", "new session", "nothing said since", "another server"])
def test_window_own_that_is_not_replayed(window, welcome):
    """Acknowledged, but missing in what is sent after the connection broke: it stays where it was,
    above what comes later."""
    connect(window)
    window.press(b"mine\r")
    window.hear(Ack(1))
    assert said_rows(window) == ["ann: mine (there)"]
    connect(window, welcome, *(chat(f"later {id}", id=id) for id in (21, 22)))
    assert said_rows(window) == ["ann: mine (there)", "bob: later 21", "bob: later 22"]
    window.press(b"more\r")
    # The same words of another are another's.
    window.hear(chat("mine", id=23), chat("later 24", id=24))
    assert said_rows(window) == ["ann: mine (there)", "bob: later 21", "bob: later 22", "bob: mine",
                                 "bob: later 24",
                                 "ann: more (sending)"]


@pytest.mark.parametrize("welcome, shown", [
    (Welcome("ann", "s", "e", ("ann", "bob"), 20, resumed=True, got=1, missed=7),
     "ann: mine (there)"),
    (Welcome("ann", "s", "e", ("ann", "bob"), 20, resumed=True, got=1), "ann: mine (there)"),
    (Welcome("ann", "t", "e", ("ann", "bob"), 20), "ann: mine"),
    (Welcome("ann", "t", "f", ("ann", "bob"), 20), "ann: mine")],
    ids=["resumed, missed", "resumed", "new session", "another server"])
def test_window_own_that_is_replayed(window, welcome, shown):
    """Acknowledged, and sent back after the connection broke: it is shown once, at its place in the
    order."""
    connect(window)
    window.press(b"mine\r")
    window.hear(Ack(1))
    connect(window, welcome, chat("before", id=18), chat("mine", "ann", 19, cid=1),
            chat("after", id=20), chat("later", id=21))
    assert said_rows(window) == ["bob: before", shown, "bob: after", "bob: later"]


def test_window_reply_after_a_rename(window):
    """Our own private message, heard together with our rename, is none that /reply answers."""
    connect(window)
    window.press(b"/msg ben hi\r", b"/nick zoe\r")
    window.hear(chat("psst", to="ann", id=1), Ack(2), chat("hi", "ann", 2, cid=1, to="ben"),
                Renamed(3, "ann", "zoe", NOON))
    assert window.client.name == "zoe" and window.last_private == "bob"
    assert window._terminal.shown.bells == 1
    window.press(b"/reply what\r")
    assert [said.to for said in window.client.unsettled] == ["bob"]


@pytest.mark.parametrize("bell", ["mentions", "all"])
def test_window_replay_from_before_a_rename(window, bell):
    """What we said under the name that we had before is ours when it is replayed: no bell, no
    mention, nobody to reply to."""
    window._arguments.bell = bell
    connect(window)
    window.press(b"/msg bob psst\r", b"I shall be zoe\r", b"/nick zoe\r")
    connect(window, Welcome("zoe", "s", "e", ("zoe", "bob"), 3, resumed=True, got=3),
            chat("psst", "ann", 1, cid=1, to="bob"),
            chat("I shall be zoe", "ann", 2, cid=2), Renamed(3, "ann", "zoe", NOON))
    assert said_rows(window) == ["ann -> bob: psst (there)", "ann: I shall be zoe (there)"]
    assert window._terminal.shown.bells == 0 and window.last_private == ""
    row, column = window._terminal.shown.find("zoe (there)")
    assert "reverse" not in window._terminal.shown.cell(row, column).style
    window.hear(chat("hi zoe", id=4))
    assert window._terminal.shown.bells == 1
