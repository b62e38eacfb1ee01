"""What is shown of a message, and in which colours: all of it, and nothing that moves or hides."""

import re
import time
import unittest.mock

import pytest

import chat_client
from chat_client import INDENT, Said, Theme
from chatproto import MAX_TEXT, Booted, Error, Joined, Left, Renamed
from display import (COOK, FILLER, ISOLATE, NOON, NO_SPACE, RIGHT_TO_LEFT, Display, chat,
                     formatter_of, lines_of, spans_of)
from terminal import Terminal


# --- What is shown of a message ---

HOSTILE = ["\x1b[2J\x1b[H", "\r12:30 bob: forged", "\x1b]0;title\x07", "\x1b]52;c;eA==\x1b\\",
           "\x9b2J\x9d0;t\x9c", "\x08" * 9,
           "\x0e\x0f\x07\x7f\x00", f"{RIGHT_TO_LEFT}dorf", f"{ISOLATE}x\u2069\u2067\u2068",
           f"a{NO_SPACE}b\ufeff\u2060",
           FILLER * 5,
           "\u2028x\u2029\u0085y", "\U000e0041\U000e007f", "x" * 900, "\u4e2d" * 400,
           "one\ntwo\n\n12:30 bob: forged",
           "\n" * 40,
           "\v\fx", "a\u0301\u0302" * 300, "\ufe0f\ufe0f\u200dx", "\x1bc", "\u0301" * 50,
           "* bob left", "! refused",
           "-- now --",
           "x\x1b[1;1Hy\x1b[?1049l", " \U0001f3fd" * 30, "\ud800x", "\u00ad", "\U0001f1e6" * 31]
INVISIBLE = re.compile(
    "[\u202a-\u202e\u2066-\u2069\u200b\u2060\ufeff\u3164\u2028\u2029\u0085\U000e0000-\U000e007f]")
EVENTS = [
    lambda text: chat(text, "mallory"), lambda text: chat("x", "mal" + text),
    lambda text: chat("/me " + text, "mallory"),
    lambda text: chat(text, "mallory", to="ann"), lambda text: chat("x", "mallory", to="a" + text),
    lambda text: Joined(7, "mal" + text, NOON), lambda text: Left(7, "mallory", NOON, text),
    lambda text: Left(7, "mallory", NOON, "booted: " + text),
    lambda text: Left(7, "mal" + text, NOON, ""),
    lambda text: Renamed(7, "mallory", "b" + text, NOON), lambda text: Booted(7, "mallory " + text),
    lambda text: Error(7, "code", "mallory " + text, 3), lambda text: Error(7, "mallory " + text),
]


def nothing_happened(terminal):
    """No sequence but ours, no title, no bell, nothing scrolled away."""
    return not (terminal.unknown or terminal.titles or terminal.bells or terminal.scrolls
                or terminal.scrollback)


@pytest.mark.parametrize("text", HOSTILE)
def test_formatter_hostile(text):
    """Whatever is in a text, a name or a reason: one message is shown, nothing else moves, nothing
    is hidden."""
    if "\ud800" in text:
        events = EVENTS[:1]
    else:
        events = EVENTS if len(text) < 100 else EVENTS[::5]
    for number, event in enumerate(events):
        display = Display(30 if len(text) < 500 else 60, 40, typed="half a line")
        display.press("left", "left")
        rows, cursor = display.terminal.rows, display.terminal.cursor
        formatter = formatter_of()
        for message in (chat("before"), event(text), chat("after")):
            for one in formatter.entries(message, formatter._client.is_own(message)):
                display.talk.add(one)
        display.paint()
        shown = display.lines()
        assert shown[rows - 2].startswith(" ann | connected") and shown[rows - 1] == "> half a line"
        assert display.terminal.cursor == cursor
        assert display.terminal.modes == display.new_terminal(2, 2).modes
        assert nothing_happened(display.terminal)
        assert shown[rows - 3] == "12:30 bob: after"
        starts = [line for line in shown[:rows - 3] if line and line[0] != " "]
        if text != "\n" * 40:
            assert len(starts) == 2 and starts[0] == "12:30 bob: before" and "mal" in "".join(
                shown), (number, starts)
        # An isolate with its end reorders nothing but what is in it.
        assert not INVISIBLE.search(display.terminal.text().replace("\u2066x\u2069", ""))


@pytest.mark.parametrize("text", [text for text in HOSTILE if text.isascii() and "\n" not in text])
def test_formatter_shows_escapes(text):
    """Control characters are shown as what they are."""
    line, = lines_of(formatter_of(), chat(text))
    assert line == "12:30 bob: " + re.sub("[\x00-\x1f\x7f]", lambda found: repr(found[0])[1:-1],
                                          text)


@pytest.mark.parametrize("char", [RIGHT_TO_LEFT, NO_SPACE, ISOLATE, FILLER, "\u200e", "\u2028",
                                  "\ufeff", "\u00ad", "\u115f",
                                  "\u2060"])
def test_formatter_shows_invisible(char):
    """What hides or reorders is shown as an escape, also the joiner where it joins nothing."""
    code = f"\\u{ord(char):04x}" if ord(char) > 255 else f"\\x{ord(char):02x}"
    assert lines_of(formatter_of(), chat(f"a{char}b", f"c{char}d")) == [f"12:30 c{code}d: a{code}b"]
    assert lines_of(formatter_of(), chat("a\u200db" + COOK)) == ["12:30 bob: a\\u200db" + COOK]


def test_formatter_longest():
    """A message of 8,192 characters is one message: only its first row begins in column 0."""
    for text in ("x" * MAX_TEXT, "\u4e2d" * MAX_TEXT, "ab " * (MAX_TEXT // 3), "\u202e" * MAX_TEXT):
        display = Display(24, 80, typed="half")
        for one in formatter_of().entries(chat("before"), False) + formatter_of().entries(
            chat(text, "mallory"), False):
            display.talk.add(one)
        display.paint()
        assert all(line.startswith(INDENT) for line in display.lines()[:22])
        assert display.lines()[23] == "> half"
        for _ in range(40 if text[0] in "xa" else 0):
            display.screen.scroll(-1)
        display.paint()
        assert text[0] not in "xa" or [line for line in display.lines()[:22]
                                       if line[0] != " "][1].startswith("12:30 mallory:")


@pytest.mark.parametrize("text",
                         [text for text in HOSTILE if "\ud800" not in text]
                         + ["one\n! two\n\tthree"])
def test_formatter_message_of_the_day(text):
    """The message of the day is shown line by line, each marked as such; nothing in it moves
    anything."""
    display = Display(60, 40, typed="half")
    window = unittest.mock.Mock(motd=text, show=display.add)
    chat_client.Commands(window).motd("")
    display.paint()
    assert all(line[:1] in ("*", " ") for line in display.messages())
    assert display.lines()[59] == "> half"
    assert nothing_happened(display.terminal)
    assert len([line for line in display.messages()
                if line[0] == "*"]) == min(58, text.count("\n") + 1)


def test_formatter_lines():
    """What each message is shown as."""
    for message, lines in [
            (chat("hello"), ["12:30 bob: hello"]), (chat("/me waves"), ["* bob waves"]),
            (chat("/merry"), ["12:30 bob: /merry"]),
            (chat("a\nb\n"), ["12:30 bob: a", INDENT + "b", INDENT]),
            (chat("a\tb"), ["12:30 bob: a    b"]),
            (chat("psst", to="ann"), ["12:30 bob -> ann: psst"]),
            (Joined(7, "bob", NOON), ["* bob joined (3 here)"]),
            (Left(7, "bob", NOON, "gone away"), ["* bob left (gone away)"]),
            (Left(7, "bob", NOON, "booted: spam"), ["* bob was booted: spam"]),
            (Renamed(7, "bob", "rob", NOON), ["* bob is now rob"]),
            (Booted(7, "spam"), ["* you were booted: spam"]),
            (Booted(7), ["* you were booted"]), (Error(7, "x", "no", 3), ["! refused: no"]),
            (Error(7, "rate"), ["! rate"])]:
        assert lines_of(formatter_of(), message) == lines


def test_formatter_options():
    """Without the times; without joins and leaves; without who is ignored, under whatever spelling,
    but for us."""
    formatter = formatter_of()
    formatter.settings.timestamps, formatter.settings.quiet = False, True
    formatter.settings.ignored.add("bob")
    assert lines_of(formatter, chat("hello", "eve")) == ["eve: hello"]
    assert lines_of(formatter, Joined(7, "bob", NOON)) == []
    assert lines_of(formatter, Left(7, "bob", NOON, "x")) == []
    assert not lines_of(formatter, chat("hello", "BOB"))
    assert lines_of(formatter, chat("hello", "bob"), Said(1, "hello", None)) == ["bob: hello"]
    formatter.unignore("bob")
    assert lines_of(formatter, chat("hello")) == ["bob: hello"]


def test_formatter_joined_before_us():
    """The count is of now: it is not told of a join that is older than the list."""
    assert lines_of(formatter_of(list_as_of=7), Joined(7, "bob", NOON)) == ["* bob joined"]


@pytest.mark.parametrize("text, found", [
    ("hi ann", ["ann"]), ("Ann: hi ANN!", ["Ann", "ANN"]), ("annabel joann ann2 _ann", []),
    ("ann", ["ann"]), ("nothing", []),
    ("@ann,", ["ann"]), ("one\nann", ["ann"]),
])
def test_formatter_mentions(text, found):
    """Our name is highlighted where it is a word of its own, in whatever case."""
    formatter = formatter_of()
    message = chat(text)
    lines = formatter.chat(message).lines
    assert [what for line in lines for what in spans_of(line, Theme.mention)] == found
    assert formatter.is_mention(message) == bool(found)
    assert "".join(what for line in lines for _,
                   what in line) == "12:30 bob: " + text.replace("\n", "")


def test_formatter_mentions_of_the_name_of_now():
    """After a rename it is the new name; our own text mentions nobody; a private message always
    does."""
    formatter = formatter_of()
    assert formatter.chat(chat("ann")).lines
    formatter._client.name = "c.d"
    assert not formatter.is_mention(chat("ann cxd")) and formatter.is_mention(chat("hi C.D"))
    assert formatter._client.is_own(chat("c.d", "C.d"))
    assert not formatter._client.is_own(chat("c.d"))
    assert formatter.is_mention(chat("hello", to="c.d"))
    assert not any(spans_of(line, Theme.mention)
                   for line in formatter.chat(chat("c.d", "c.d"), own=True).lines)


def test_formatter_days():
    """A line when the day changes, none before the first message; hidden messages make none."""
    formatter = formatter_of()
    day = 86_400
    assert lines_of(formatter, chat("one")) == ["12:30 bob: one"]
    formatter.settings.quiet = True
    assert lines_of(formatter, Joined(8, "bob", NOON + day)) == []
    tomorrow = time.strftime("-- %A, %d %B %Y --", time.localtime(NOON + day))
    assert lines_of(formatter, chat("two", at=NOON + day)) == [tomorrow, "12:30 bob: two"]
    assert lines_of(formatter, chat("three", at=NOON + day)) == ["12:30 bob: three"]
    assert lines_of(formatter, Error(9, "x")) == ["! x"]
    for at in (1e300, -1e300, float("inf"), float("nan"), -1.0):
        assert lines_of(formatter, chat("odd", at=at))[-1].endswith("bob: odd")


def test_formatter_history():
    """History is marked where it begins and where it ends."""
    formatter = formatter_of(history_until=8)
    assert lines_of(formatter, chat("one", id=7)) == ["-- said before you came --",
                                                      "12:30 bob: one"]
    assert lines_of(formatter, chat("two", id=8)) == ["12:30 bob: two"]
    assert lines_of(formatter, chat("three", id=9)) == ["-- now --", "12:30 bob: three"]


# --- Colours ---

@pytest.mark.parametrize("colours, styles",
                         [(-1, {"1"}), (0, {"1"}), (8, {"1;31", "1;32", "1;34", "1;35", "1;36"}),
                          (16, None),
                          (256, None), (1 << 24, None)])
def test_theme_names(colours, styles):
    """Names differ in colours that the terminal has; without any they are bold."""
    found = {Theme(colours).name(f"name{number}") for number in range(300)}
    assert found == styles or styles is None and len(found) == (14 if colours >= 256 else 5)
    terminal = Terminal(1, 80)
    for style in {*found, Theme(colours).error, Theme.dim, Theme.mention, Theme.status, Theme.bold}:
        terminal.feed(f"\x1b[0;{style}mx\x1b[0m".encode())
    assert not terminal.unknown
    assert colours >= 8 or not any("fg" in name for column in range(80)
                                   for name in terminal.cell(0, column).style)


@pytest.mark.parametrize("name, of_256, of_8",
                         [("ann", 97, 34), ("bob", 30, 36), ("\u4e2d\u6587", 97, 32)])
def test_theme_name_is_stable(name, of_256, of_8):
    """A name has the same colour in every run, on every machine, in whatever case it is written."""
    assert Theme(256).name(name) == f"1;38;5;{of_256}" and Theme(8).name(name) == f"1;{of_8}"
    assert Theme(256).name(name.upper()) == Theme(256).name(name)
