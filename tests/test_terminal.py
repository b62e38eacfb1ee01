"""The terminal model by tables, and the pseudo-terminal by programs of a few lines."""

import signal
import sys

import pytest

from harness import posix_only
from program import Program
from terminal import Terminal

WOMAN_TECHNOLOGIST, THUMB = "\U0001f469\u200d\U0001f4bb", "\U0001f44d\U0001f3fd"
SWEDEN, HEART = "\U0001f1f8\U0001f1ea", "\u2764\ufe0f"


def fed(text, rows=4, columns=8, **options):
    """A terminal that was fed the text."""
    terminal = Terminal(rows, columns, **options)
    terminal.feed(text.encode("utf-8"))
    return terminal


FILLED = "aaa\r\nbbb\r\nccc\r\nddd"

# name, what is fed to 4 rows of 8 columns, the lines without the empty ones at the end, the cursor
SCREENS = [
    ("text", "hello", ["hello"], (0, 5)),
    ("controls", "ab\rX\b\bY\r\n\tZ", ["Yb", "       Z"], (1, 7)),
    ("tab", "a\tb", ["a      b"], (0, 7)),
    ("line feed keeps the column", "ab\nc", ["ab", "  c"], (1, 3)),
    ("last column: the wrap waits", "12345678", ["12345678"], (0, 7)),
    ("last column: the next one wraps", "123456789", ["12345678", "9"], (1, 1)),
    ("last column: a line end adds no row", "12345678\r\n9", ["12345678", "9"], (1, 1)),
    ("last column: erasing takes it", "12345678\x1b[K", ["1234567"], (0, 7)),
    ("last column: a move forgets the wrap", "12345678\x1b[CX", ["1234567X"], (0, 7)),
    ("last column: kept over save and restore", "12345678\x1b7\x1b[H\x1b8X", ["12345678", "X"],
     (1, 1)),
    ("no wrap", "\x1b[?7l123456789", ["12345679"], (0, 7)),
    ("no wrap, wide", "\x1b[?7l1234567\u4e2d", ["123456\u4e2d"], (0, 7)),
    ("wide", "\u4e2d\u6587a", ["\u4e2d\u6587a"], (0, 5)),
    ("wide does not fit", "1234567\u4e2d", ["1234567", "\u4e2d"], (1, 2)),
    ("wide fits just", "123456\u4e2dx", ["123456\u4e2d", "x"], (1, 1)),
    ("over the left half", "\u4e2d\u6587\rx", ["x \u6587"], (0, 1)),
    ("over the right half", "\u4e2d\u6587\x1b[2Gx", [" x\u6587"], (0, 2)),
    ("wide over two halves", "\u4e2d\u6587\x1b[2G\u5b57", [" \u5b57"], (0, 3)),
    ("erasing half", "\u4e2d\u6587\x1b[2G\x1b[2X.", [" ."], (0, 2)),
    ("combining", "e\u0301x", ["e\u0301x"], (0, 2)),
    ("combining in the last column", "1234567e\u0301x", ["1234567e\u0301", "x"], (1, 1)),
    ("combining after wide", "\u4e2d\u0301x", ["\u4e2d\u0301x"], (0, 3)),
    ("combining with nothing before", "\u0301x", ["x"], (0, 1)),
    ("Korean by letters", "\u1112\u1161\u11ab.", ["\u1112\u1161\u11ab."], (0, 3)),
    ("moves", "\x1b[2;3Ha\x1b[Ab\x1b[2Bc\x1b[3Dd\x1b[Ce", ["   b", "  a", "  d e"], (2, 5)),
    ("moves stop at the edges", "\x1b[99;99Ha\x1b[99A\x1b[99Db\x1b[99Cc\x1b[99Bd",
     ["b      c", "", "", "       d"], (3, 7)),
    ("columns, rows, lines", "\x1b[5Ga\x1b[3db\x1b[Fc\x1b[2Ed", ["    a", "c", "     b", "d"],
     (3, 1)),
    ("f is H", "\x1b[2fa\x1b[;3fb", ["  b", "a"], (0, 3)),
    ("erase below", FILLED + "\x1b[2;2H\x1b[J", ["aaa", "b"], (1, 1)),
    ("erase above", FILLED + "\x1b[2;2H\x1b[1J", ["", "  b", "ccc", "ddd"], (1, 1)),
    ("erase all", FILLED + "\x1b[2J", [], (3, 3)),
    ("erase the line", FILLED + "\x1b[2K\x1b[A\x1b[2D\x1b[1K", ["aaa", "bbb", "  c"], (2, 1)),
    ("insert and delete characters", "abcdefgh\x1b[3G\x1b[2@\x1b[2;1Habcd\x1b[2G\x1b[2P",
     ["ab  cdef", "ad"], (1, 1)),
    ("insert cuts a wide one", "abcdef\u4e2d\r\x1b[@", [" abcdef"], (0, 0)),
    ("delete half a wide one", "\u4e2dab\r\x1b[P", [" ab"], (0, 0)),
    ("insert lines", FILLED + "\x1b[2H\x1b[L", ["aaa", "", "bbb", "ccc"], (1, 0)),
    ("delete lines", FILLED + "\x1b[2;2H\x1b[2M", ["aaa", "ddd"], (1, 0)),
    ("the screen scrolls", FILLED + "\r\neee", ["bbb", "ccc", "ddd", "eee"], (3, 3)),
    ("a region scrolls", FILLED + "\x1b[2;3r\x1b[3H\r\neee", ["aaa", "ccc", "eee", "ddd"], (2, 3)),
    ("a region scrolls back", FILLED + "\x1b[2;3r\x1b[2H\x1bMeee", ["aaa", "eee", "bbb", "ddd"],
     (1, 3)),
    ("lines in a region", FILLED + "\x1b[2;3r\x1b[2H\x1b[M\x1b[4H\x1b[L", ["aaa", "ccc", "", "ddd"],
     (3, 0)),
    ("below a region nothing scrolls", FILLED + "\x1b[1;2r\x1b[4H\r\n\nX",
     ["aaa", "bbb", "ccc", "Xdd"], (3, 1)),
    ("moves stop at the region", FILLED + "\x1b[2;3r\x1b[2H\x1b[9AX\x1b[9BY",
     ["aaa", "Xbb", "cYc", "ddd"], (2, 2)),
    ("S and T", FILLED + "\x1b[2S\x1b[T", ["", "ccc", "ddd"], (3, 3)),
    ("S in a region", FILLED + "\x1b[1;3r\x1b[S", ["bbb", "ccc", "", "ddd"], (0, 0)),
    ("a region that is none", FILLED + "\x1b[3;3r", ["aaa", "bbb", "ccc", "ddd"], (3, 3)),
    ("D, E", "ab\x1bDc\x1bEd", ["ab", "  c", "d"], (2, 1)),
    ("save and restore", "ab\x1b[sc\x1b[2Hd\x1b[ue", ["abe", "d"], (0, 3)),
    ("alternate screen", "ab\x1b[?1049hcd\x1b[?1049le", ["abe"], (0, 3)),
    ("alternate screen, shown", "ab\x1b[?1049hcd", ["  cd"], (0, 4)),
    ("full reset", "\x1b[2;3r\x1b[1m\x1b[?25lab\x1bcx", ["x"], (0, 1)),
]


@pytest.mark.parametrize("fed_text, lines, cursor", [case[1:] for case in SCREENS],
                         ids=[case[0] for case in SCREENS])
def test_screen(fed_text, lines, cursor):
    """The screen and the cursor are right whether the bytes come at once or one by one."""
    whole, pieces = fed(fed_text), Terminal(4, 8)
    for byte in fed_text.encode("utf-8"):
        pieces.feed(bytes([byte]))
    for terminal in (whole, pieces):
        assert terminal.lines() == lines + [""] * (4 - len(lines))
        assert terminal.cursor == cursor
        assert terminal.unknown == []
        for row in range(4):
            assert [terminal.cell(row, column + 1).width == 0 for column in range(7)] == [
                terminal.cell(row, column).width == 2 for column in range(7)]


# text, cells (text, width) with joins_emoji, without
EMOJI = [
    (WOMAN_TECHNOLOGIST, [(WOMAN_TECHNOLOGIST, 2)], [("\U0001f469\u200d", 2), ("\U0001f4bb", 2)]),
    (THUMB, [(THUMB, 2)], [("\U0001f44d", 2), ("\U0001f3fd", 2)]),
    (SWEDEN, [(SWEDEN, 2)], [("\U0001f1f8", 1), ("\U0001f1ea", 1)]),
    (SWEDEN * 2, [(SWEDEN, 2)] * 2, [("\U0001f1f8", 1), ("\U0001f1ea", 1)] * 2),
    (HEART, [(HEART, 2)], [(HEART, 2)]),
    ("1\ufe0f\u20e3", [("1\ufe0f\u20e3", 2)], [("1\ufe0f\u20e3", 2)]),
    ("a\ufe0f", [("a\ufe0f", 1)], [("a\ufe0f", 1)]),
    ("a\u200d\U0001f4bb", [("a\u200d", 1), ("\U0001f4bb", 2)], [("a\u200d", 1), ("\U0001f4bb", 2)]),
    ("\u261d\U0001f3fd", [("\u261d\U0001f3fd", 2)], [("\u261d", 1), ("\U0001f3fd", 2)]),
    ("\U0001f3c3\u200d\u2642\ufe0f", [("\U0001f3c3\u200d\u2642\ufe0f", 2)],
     [("\U0001f3c3\u200d", 2), ("\u2642\ufe0f", 2)]),
]


@pytest.mark.parametrize("text, joined, apart", EMOJI, ids=[ascii(case[0]) for case in EMOJI])
def test_emoji(text, joined, apart):
    """Both schools of terminals give emoji the cells that they are known for."""
    for joins_emoji, cells in ((True, joined), (False, apart)):
        terminal = fed(text + "x", columns=12, joins_emoji=joins_emoji)
        width = sum(cell[1] for cell in cells)
        shown = [terminal.cell(0, column)[:2] for column in range(width)]
        assert [cell for cell in shown if cell[1]] == cells
        assert terminal.cell(0, width).text == "x" and terminal.cursor == (0, width + 1)
        assert terminal.painted == len(cells) + 1


def test_emoji_without_widening():
    """A terminal that does not widen leaves an emoji variation in one column."""
    assert fed(HEART + "x", widens=False).cell(0, 1).text == "x"


@pytest.mark.parametrize("text", [HEART, SWEDEN])
def test_emoji_widened_in_the_last_column(text):
    """A cell that becomes wide where there is no room moves to the next line."""
    terminal = fed("1234567" + text)
    assert terminal.lines()[:2] == ["1234567", text] and terminal.cursor == (1, 2)


@pytest.mark.parametrize("codes, style", [
    ("", set()), ("1", {"bold"}), ("1;2;22", set()), ("1;0;7", {"reverse"}), ("31", {"fg=1"}),
    ("31;39", set()),
    ("1;;4", {"underline"}),
    ("91;44", {"fg=9", "bg=4"}), ("107", {"bg=15"}), ("38;5;208;1", {"fg=208", "bold"}),
    ("48;2;255;128;0", {"bg=#ff8000"}),
    ("38:5:208", {"fg=208"}), ("38:2::255:128:0;3", {"fg=#ff8000", "italic"}), ("4;4:0", set()),
    ("31;32;49", {"fg=2"}),
])
def test_style(codes, style):
    """A cell has the attributes and colours in force when it was printed, and joins keep them."""
    terminal = fed(f"\x1b[{codes}me\x1b[m\u0301x")
    assert terminal.cell(0, 0) == ("e\u0301", 1, style) and terminal.cell(0, 1).style == set()
    assert not terminal.unknown


def test_style_of_erased_cells():
    """What is erased has the background and nothing else."""
    assert fed("\x1b[1;7;31;44m\x1b[K").cell(0, 5).style == {"bg=4"}


@pytest.mark.parametrize("sequence, unknown", [
    ("\x1b[5y", "\x1b[5y"), ("\x1b[?9999h", "\x1b[?9999h"), ("\x1b[4h", "\x1b[4h"),
    ("\x1b[99m", "\x1b[99m"),
    ("\x1b[38;7m", "\x1b[38;7m"),
    ("\x1b[1;2;3;4;5T", "\x1b[1;2;3;4;5T"), ("\x1b]52;c;eA==\a", "\x1b]52;c;eA==\a"),
    ("\x1bPq#\x1b\\", "\x1bPq#\x1b\\"),
    ("\x1b(0", "\x1b(0"), ("\x1bZ", "\x1bZ"), ("\x9b", "\x9b"), ("\x0e", "\x0e"),
    ("\x1b[1\x1b[m", "\x1b[1"),
    ("\x1b]0;a\x1b[m", "\x1b]0;a"),
    ("\x1b[9J", "\x1b[9J"), ("\x1b[2:3H", "\x1b[2:3H"),
])
def test_unknown(sequence, unknown):
    """What the model does not know is kept for the test, and shows nothing."""
    text = "a" + sequence + "b"
    terminal = Terminal(4, 8)
    for byte in text.encode("utf-8"):
        terminal.feed(bytes([byte]))
    assert terminal.unknown == fed(text).unknown == [unknown]
    assert terminal.lines()[0] == "ab" and terminal.titles == []


def test_invalid_utf8():
    """Bytes that are not UTF-8 show as the replacement character."""
    terminal = Terminal(4, 8)
    terminal.feed(b"a\xffb\xc3")
    terminal.feed(b"\xa9")
    assert terminal.line(0) == "a\ufffdb\u00e9"


@pytest.mark.parametrize("question, answer", [
    ("ab\x1b[6n", b"\x1b[1;3R"), ("\x1b[5n", b"\x1b[0n"), ("\x1b[c", b"\x1b[?62;22c"),
    ("\x1b[18t", b"\x1b[8;4;8t"),
    ("\x1b[?2004h\x1b[?2004$p", b"\x1b[?2004;1$y"), ("\x1b[?2026$p", b"\x1b[?2026;2$y"),
    ("\x1b[?2027$p", b"\x1b[?2027;0$y"),
])
def test_replies(question, answer):
    """Questions are answered, into `replies` and to the callback."""
    answers = []
    terminal = fed(question, on_reply=answers.append)
    assert terminal.replies == answer and answers == [answer] and not terminal.unknown


def test_modes_titles_and_bells():
    """What does not show as a cell is there as an attribute."""
    terminal = fed(
        "\x1b]0;Roger \u00e9\a\x1b]2;two\x1b\\\a\a\x1b[?25l\x1b[?2004h\x1b[?1049;1004h\x1b[?2026h")
    assert terminal.titles == ["Roger \u00e9", "two"] and terminal.bells == 2
    assert terminal.bracketed_paste and terminal.alternate and not terminal.cursor_visible
    assert terminal.autowrap
    terminal.feed(b"\x1b[?25h\x1b[?2004l\x1b[?1049;1004;2026l")
    assert terminal.modes == {7, 25} and not terminal.alternate


def test_counters():
    """The counters tell what a redraw has cost."""
    terminal = fed("ab\r\ncd")
    assert (terminal.painted, terminal.rows_touched) == (4, {0, 1})
    terminal.reset_counters()
    terminal.feed("\x1b[3H\u4e2d\x1b[m\x1b[H\x1b[2C\x1b[K".encode("utf-8"))
    assert (terminal.painted, terminal.rows_touched, terminal.scrolls) == (1, {0, 2}, 0)
    terminal.reset_counters()
    terminal.feed(b"\x1b[2;3r\x1b[3H\n")
    assert (terminal.painted, terminal.rows_touched, terminal.scrolls) == (0, {2}, 1)


def test_scrollback():
    """Lines that leave the main screen at the top are kept, those of the alternate screen and of a
    region below are not."""
    terminal = fed("1\r\n2\r\n3\r\n4\r\n5\x1b[?1049h" + "\r\n" * 9 + "\x1b[?1049l\x1b[2r"
                   + "\x1b[4H\n\n")
    assert list(terminal.scrollback) == ["1"]
    terminal.feed(b"\x1b[3J")
    assert not terminal.scrollback


def test_find():
    """A text is found by its cell's column, whatever is before it."""
    terminal = fed("\r\n\u4e2de\u0301ab")
    assert terminal.find("ab") == (1, 3) and terminal.find("\u4e2d") == (1, 0)
    assert terminal.find("x") is None


def test_resize():
    """A resize crops and extends; the row of the cursor stays, and the scroll region is gone."""
    terminal = fed(FILLED + "\x1b[1;2r\x1b[4;4H\u4e2d")
    terminal.resize(2, 4)
    assert terminal.lines() == ["ccc", "ddd"] and terminal.cursor == (1, 3)
    assert list(terminal.scrollback) == ["aaa", "bbb"]
    terminal.resize(3, 6)
    assert terminal.lines() == ["ccc", "ddd", ""] and terminal.cell(2, 5).text == " "
    terminal.feed(b"\r\n\r\nzzzzzz")
    assert terminal.lines() == ["ddd", "", "zzzzzz"]


def test_resize_of_the_alternate_screen():
    """The alternate screen is cropped below, the main screen behind it keeps its cursor's row."""
    terminal = fed(FILLED + "\x1b[?1049h\x1b[H" + FILLED)
    terminal.resize(2, 8)
    assert terminal.lines() == ["aaa", "bbb"]
    terminal.feed(b"\x1b[?1049lx")
    assert terminal.lines() == ["ccc", "dddx"]


# --- The pseudo-terminal ---

def python(source, **options):
    """A Program that runs the source."""
    return Program([sys.executable, "-S", "-c", source], **options)


@posix_only
def test_program():
    """A program prints on the terminal, and its end is noticed."""
    with python("print('h\u00e9llo')", rows=5, columns=20) as program:
        program.wait_for("h\u00e9llo")
        assert program.wait_exit() == 0
        assert program.terminal.cursor == (1, 0) and program.snapshot()[0] == "h\u00e9llo"
        assert program.raw_output == b"h\xc3\xa9llo\r\n"
        assert program.settings() == program.first_settings
        assert sum(size for _, size in program.chunks) == len(program.raw_output)
    assert program.stop() == 0


INTERACTIVE = """
import os, signal, sys, termios
size = lambda *_: os.write(1, b"[%d x %d]" % tuple(os.get_terminal_size())[::-1])
signal.signal(signal.SIGWINCH, size)
modes = termios.tcgetattr(0)
modes[3] &= ~(termios.ICANON | termios.ECHO)
termios.tcsetattr(0, termios.TCSANOW, modes)
size()
os.write(1, b"\\x1b[6n" + os.ttyname(os.open("/dev/tty", os.O_RDWR)).encode()[:5])
while True:
    os.write(1, b"<%s>" % os.read(0, 100).replace(b"\\x1b", b"^"))
"""


@posix_only
def test_program_interactive():
    """Keys, answers, sizes and Ctrl-C get through; settings that were not restored are seen."""
    with python(INTERACTIVE, rows=5, columns=70) as program:
        program.wait_for("[5 x 70]/dev/<^[1;9R>")
        program.type("\u00e9")
        program.wait_for("<\u00e9>")
        program.resize(6, 60)
        program.wait_for("[6 x 60]")
        program.type(b"\x03")
        assert program.wait_exit() == -signal.SIGINT
        assert program.settings() != program.first_settings


@posix_only
def test_program_that_does_not_read():
    """Typing more than is read does not block, and neither does the end."""
    with python("import signal; print('ready', flush=True); signal.pause()") as program:
        program.wait_for("ready")
        program.type("x" * 100_000)
        program.signal(signal.SIGSTOP)
        assert program.stop() == -signal.SIGTERM


@posix_only
def test_program_that_ends_early():
    """To wait for what never comes is reported with the screen as soon as the program has ended."""
    with python("print('last words')") as program:
        with pytest.raises(AssertionError, match="(?s)ended before 'more'.*last words"):
            program.wait_for("more")
