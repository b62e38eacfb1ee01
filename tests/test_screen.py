"""The screen: what is painted is what is there, wherever it is wrapped, scrolled or resized."""

import random
import re
import time

import pytest

import chatproto
from chat_client import (FAILED, INDENT, SENDING, THERE, UNKNOWN, Columns, Editor, Entry, Key, Keys,
                         Said, Screen, Scrollback, Theme, clusters, wrap)
from display import (ACUTE, CJK, COOK, FAMILY, FRANCE, HEART, KEYCAP, KOREAN, NOON, PIECES, THUMB,
                     UNCERTAIN, Display, cells, chat, formatter_of, random_text)
from terminal import Terminal


# --- Columns and wrapping ---

@pytest.mark.parametrize("text, columns", [
    ("abc", [1, 1, 1]), (CJK, [2, 2]), (ACUTE + "x", [1, 1]), (COOK, [2]), (FAMILY + "!", [2, 1]),
    (HEART, [2]),
    (FRANCE * 2, [2, 2]), (FRANCE[0], [1]),
    (THUMB, [2]), (KEYCAP, [2]), (KOREAN, [2]), ("\uff21", [2]), ("\u0646\u0651", [1]),
    ("\u0915\u093f", [2]),
    ("\u2764", [1]), ("\U0001f600", [2]), ("e" + "\u0301" * 9, [1]),
    ("\U0001f468\u200d" * 2 + "x", [2, 1]),
])
def test_columns_of(text, columns):
    """A cluster takes the columns that it takes on a terminal that joins emoji, and on the
    model."""
    assert [Columns().of(cluster) for cluster in clusters(text)] == columns
    assert "".join(clusters(text)) == text
    terminal = Terminal(1, 40)
    terminal.feed(text.encode())
    assert terminal.cursor == (0, sum(columns))


@pytest.mark.parametrize("options",
                         [{}, {"joins_emoji": False}, {"widens": False},
                          {"joins_emoji": False, "widens": False}])
def test_columns_learned_from_a_terminal(options):
    """The terminal's answers to the probe, read by Keys: from then on every cluster has the columns
    it takes there. The probe leaves nothing on the screen."""
    terminal = Terminal(4, 40, **options)
    terminal.feed(Columns.PROBE.encode())
    assert terminal.text().strip() == "" and not terminal.unknown and terminal.cursor == (0, 0)
    keys = list(Keys().feed(bytes(terminal.replies)))
    assert [key.name for key in keys] == ["cursor"] * len(Columns.SAMPLES)
    columns = Columns(*(int(key.text) - 1 for key in keys))
    for text in (*Columns.SAMPLES, COOK, FAMILY, HEART, FRANCE, THUMB, CJK, ACUTE, KOREAN,
                 "\u2764\ufe0f\u200d\U0001f525",
                 "\U0001f469\U0001f3fd\u200d\U0001f373"):
        terminal.feed(b"\r" + text.encode())
        assert sum(map(columns.of, clusters(text))) == terminal.cursor[1], text


@pytest.mark.parametrize("number, width",
                         [(0, 4), (0, 2), (1, 1), (1, 2), (2, 2), (2, 4), (3, 4), (3, 2)])
def test_columns_learned(number, width):
    """What was measured of a sample is what the sample takes."""
    widths = [2, 2, 2, 2]
    widths[number] = width
    columns = Columns(*widths)
    assert [columns.of(sample) for sample in Columns.SAMPLES] == widths


@pytest.mark.parametrize("text", [" \U0001f3fd", "a\U0001f3fd", "\u00a7\ufe0f", "\u00b2\ufe0f"])
def test_columns_of_what_is_no_emoji(text):
    """A skin tone, a joiner and a variation selector after what is no emoji: as the terminal shows
    it."""
    terminal = Terminal(1, 40)
    terminal.feed(chatproto.escape(text).encode())
    assert sum(map(Columns().of, clusters(chatproto.escape(text)))) == terminal.cursor[1]


def row_text(row):
    return "".join(cell[1] for cell in row)


@pytest.mark.parametrize("text, width, first, rest, rows", [
    ("one two three", 20, 0, 2, ["one two three"]),
    ("one two three", 7, 0, 2, ["one two", "  three"]),
    ("one two three", 9, 0, 2, ["one two ", "  three"]),
    ("abcdefghij", 4, 0, 1, ["abcd", " efg", " hij"]),
    ("", 4, 0, 1, [""]), ("", 4, 2, 1, ["  "]), ("abcd", 4, 0, 1, ["abcd"]),
    ("abcd ", 4, 0, 1, ["abcd", " "]),
    ("ab cdefghijkl", 6, 0, 2, ["ab ", "  cdef", "  ghij", "  kl"]),
    ("one two", 6, 2, 2, ["  one ", "  two"]),
    (CJK * 3, 5, 0, 1, ["\u4e2d\u6587", " \u4e2d\u6587", " \u4e2d\u6587"]),
    ("ann: " + CJK * 3, 11, 0, 1, ["ann: \u4e2d\u6587\u4e2d", " \u6587\u4e2d\u6587"]),
    ("a" + CJK + "\u3002", 5, 0, 1, ["a\u4e2d", " \u6587\u3002"]),
    (CJK + "abc", 6, 0, 1, ["\u4e2d", " \u6587abc"]),
    (f"a {COOK * 2}b", 5, 0, 1, ["a ", f" {COOK * 2}", " b"]),
    (ACUTE * 5, 4, 0, 1, [ACUTE * 4, " " + ACUTE]),
])
def test_wrap(text, width, first, rest, rows):
    """Broken at spaces where there are, else at the edge; what follows is indented."""
    assert [row_text(row) for row in wrap([("", text)], width, Columns(), first, rest)] == rows


def test_wrap_random():
    """No row is wider than the width; nothing but a space at the edge is lost; rows but the first
    begin with blanks."""
    random_, columns = random.Random(3), Columns()
    for _ in range(400):
        width = random_.randint(2, 25)
        rest = min(random_.choice([0, len(INDENT)]), width // 4)
        first = random_.choice([0, rest])
        line = [(str(style), random_text(random_)) for style in range(random_.randint(1, 3))]
        rows = [[cell for cell in row if cell[1]]
                for row in wrap(line, width, columns, first, rest)]
        for number, row in enumerate(rows):
            assert sum(cell[2] for cell in row) <= width, (line, width)
            assert all(cell[2] == columns.of(cell[1]) for cell in row), (line, width)
            indent = rest if number else first
            assert row[:indent] == [("", " ", 1)] * indent
        text = "".join(row_text(row[rest if number else first:]) for number, row in enumerate(rows))
        assert text.replace(" ", "") == "".join(what for _, what in line).replace(" ", "")
        spaces = sum(what.count(" ") for _, what in line)
        assert spaces - len(rows) < text.count(" ") <= spaces
        styles = [cell[0] for number, row in enumerate(rows)
                  for cell in row[rest if number else first:]]
        assert styles == sorted(styles)


@pytest.mark.parametrize("text", ["x" * 300, "word " * 60, "a\nbob: forged\n\n12:30 bob: forged",
                                  "\u3000bob: x" * 20,
                                  " " * 100 + "bob: x"])
@pytest.mark.parametrize("width", [4, 10, 30, 80])
def test_wrap_peer_starts_one_row(text, width):
    """Of a peer's message only the first row begins in column 0."""
    rows = Screen(Theme(0), Editor())
    rows.resize(50, width)
    first, *others = rows._rows(formatter_of().chat(chat(text)))
    assert row_text(first).startswith(time.strftime("%H:%M", time.localtime(NOON))[:width])
    assert others and all(row[0] == ("", " ", 1) for row in others)


# --- The screen ---

def test_screen_layout():
    """Messages above, the newest at the bottom, one reversed status line over the whole width, the
    line that is typed."""
    display = Display(6, 30, typed="hi")
    assert display.lines() == ["", "", "", "", " ann | connected | 3 here", "> hi"]
    assert display.terminal.cursor == (5, 4)
    display.add("one", "two")
    assert display.lines() == ["", "", "one", "two", " ann | connected | 3 here", "> hi"]
    assert display.terminal.cursor == (5, 4)
    display.add(*"345678")
    assert display.lines()[:4] == ["5", "6", "7", "8"]
    assert all(display.terminal.cell(4, column).style == {"reverse"} for column in range(30))
    assert "bold" in display.terminal.cell(5, 0).style and not display.terminal.cell(5, 2).style
    display.agrees()


@pytest.mark.parametrize("typed, rows", [
    ("half a line", ["> half a line"]), (CJK * 3, ["> " + CJK * 3]),
    (f"{COOK}{HEART}x{FRANCE}{THUMB}", None), (ACUTE * 4, None),
    ("word " * 12, None), (CJK * 20, None), ("two\nlines", ["> two", "  lines"]), ("", [">"]),
    ("tab\tbed", ["> tab    bed"]),
])
def test_screen_half_a_line_while_messages_come(typed, rows):
    """What is typed, the cursor in it, and the status line are not touched by 50 messages."""
    display = Display(8, 30, typed=typed)
    display.press("left", "left", "left")
    before, cursor = display.lines(), display.terminal.cursor
    top = 8 - len(display.screen._input()[0])
    assert rows is None or before[top:] == rows
    for number in range(50):
        display.add(f"{number} {COOK} says something")
        assert display.terminal.cursor == cursor and display.lines()[top - 1:] == before[top - 1:]
        assert not {*range(top - 1, 8)} & display.terminal.rows_touched
    assert display.lines()[top - 2] == f"49 {COOK} says something"
    display.agrees()


def test_screen_repaints_what_changed():
    """A key costs its cell, a state its words, and what changes nothing costs nothing."""
    display = Display(6, 40, typed="ab")
    display.add("one", "two")
    assert display.paint() == ""
    display.editor.press(Key("text", "c"))
    display.paint()
    assert display.terminal.painted == 1 and display.terminal.rows_touched == {5}
    display.press("backspace")
    assert display.terminal.painted == 0 and display.terminal.rows_touched == {5}
    assert display.lines()[5] == "> ab"
    display.press("left")
    assert display.terminal.painted == 0 and not display.terminal.rows_touched
    assert display.terminal.cursor == (5, 3)
    display.screen.status = ["ann", "connected", "4 here"]
    display.paint()
    assert display.terminal.rows_touched == {4}
    assert display.terminal.painted <= 40 - len(" ann | connected | ")
    said = display.say("hello")
    display.change(said, state=THERE)
    assert display.terminal.rows_touched == {3} and display.terminal.painted == len("there)")
    display.agrees()


def test_screen_flood_is_one_painting():
    """However many messages came: at most a screenful is painted, in one piece, and it is the
    end."""
    display = Display(8, 30)
    display.add(*(f"message {number}" for number in range(5_000)))
    assert display.terminal.painted <= 6 * 30
    assert display.lines()[:6] == [f"message {number}" for number in range(4_994, 5_000)]
    assert not display.terminal.rows_touched & {6, 7}


def test_screen_status():
    """Parts that do not fit are left out from the end; a question comes in its place."""
    display = Display(4, 20)
    display.screen.status = ["ann", "connected", "3 here", "somewhere"]
    for columns, line in [(60, " ann | connected | 3 here | somewhere"),
                          (26, " ann | connected | 3 here"),
                          (18, " ann | connected"), (8, " ann"), (3, " an")]:
        display.resize(4, columns)
        assert display.lines()[2] == line
    display.resize(4, 20)
    display.screen.question = "paste 7 lines?"
    display.paint()
    assert display.lines()[2] == " paste 7 lines?"
    display.screen.status, display.screen.question = [CJK * 9], ""
    display.paint()
    assert display.lines()[2] == " " + CJK * 4 + CJK[0]
    display.agrees()


def test_screen_input_wraps():
    """A line wider than the screen goes on below, up to a third of the screen; then it scrolls with
    the cursor."""
    display = Display(9, 10, typed="abcdefghijklm")
    assert display.lines()[-3:] == [" ann", "> abcdefgh", "  ijklm"]
    assert display.terminal.cursor == (8, 7)
    display.press("home")
    assert display.terminal.cursor == (7, 2)
    display.editor.set("x" * 80)
    display.paint()
    assert display.lines()[-4:] == [" ann", "  " + "x" * 8, "  " + "x" * 8, ""]
    assert display.terminal.cursor == (8, 2)
    display.press("home")
    assert display.lines()[-3:] == ["> " + "x" * 8, "  " + "x" * 8, "  " + "x" * 8]
    assert display.terminal.cursor == (6, 2)
    display.editor.set(CJK * 2 + "a")
    display.paint()
    assert display.lines()[-2:] == ["> " + CJK * 2, "  a"]
    display.editor.set("a\u202eb")
    display.paint()
    assert display.lines()[-2:] == ["> a\\u202eb", ""] and display.terminal.cursor == (8, 2)
    display.agrees()


@pytest.mark.parametrize("typed, left, cursor", [
    (CJK, 0, 6), (CJK, 1, 4), (COOK + "x", 1, 4), (COOK + "x", 2, 2), (ACUTE * 2, 1, 3),
    (FRANCE * 2, 1, 4), ("\u202eb", 1, 8),
    ("a\tb", 1, 7), ("a\tb", 2, 3), (KEYCAP + THUMB, 1, 4),
])
def test_screen_cursor(typed, left, cursor):
    """The cursor is where the terminal shows what it is before."""
    display = Display(4, 40, typed=typed)
    display.press(*["left"] * left)
    assert display.terminal.cursor == (3, cursor)
    display.editor.press(Key("text", "!"))
    display.paint()
    display.agrees()


# --- The screen: own messages ---

def test_screen_own_states():
    """Each own message has its state in place."""
    display = Display(8, 60)
    said = display.say("hello")
    assert display.messages() == ["ann: hello (sending)"]
    display.change(said, state=THERE)
    assert display.messages() == ["ann: hello (there)"]
    display.add("bob: hi")
    assert display.messages() == ["bob: hi", "ann: hello (there)"]
    display.place(said)
    display.add("bob: ho")
    assert display.messages() == ["bob: hi", "ann: hello (there)", "bob: ho"]
    for heard, of, shown in [(0, 3, "heard by 0 of 3"), (2, 3, "heard by 2 of 3"),
                             (3, 3, "heard by all")]:
        display.change(said, heard=heard, of=of)
        assert display.messages() == ["bob: hi", f"ann: hello ({shown})", "bob: ho"]
        assert len(display.terminal.rows_touched) <= 1
    display.agrees()


@pytest.mark.parametrize("state, reason, shown", [
    (FAILED, "no such user", "failed: no such user"), (UNKNOWN, "", "not confirmed"),
    (FAILED, "x\x1b[2J\n", "failed: x\\x1b[2J\\n")])
def test_screen_own_failed(state, reason, shown):
    """What failed stays where it is, and what comes then comes after it."""
    display = Display(8, 60)
    first, second = display.say("one"), display.say("two")
    display.change(first, state=state, reason=reason)
    display.add("bob: hi")
    assert display.messages() == [f"ann: one ({shown})", "bob: hi", "ann: two (sending)"]
    display.place(second)
    assert display.messages()[1:] == ["bob: hi", "ann: two (sending)"]
    display.agrees()


def test_screen_own_kept():
    """What the server may never send back stays in its place above what comes; if it comes after
    all, only that stays."""
    display = Display(8, 60)
    first, second = display.say("one"), display.say("two")
    display.change(first, state=THERE)
    display.talk.settle(first)
    display.add("bob: hi")
    assert display.messages() == ["ann: one (there)", "bob: hi", "ann: two (sending)"]
    display.talk.came_back("three", None)
    display.talk.came_back("one", "bob")
    display.talk.came_back("one", None)
    display.add("ann: one")
    assert display.messages() == ["bob: hi", "ann: one", "ann: two (sending)"]
    display.place(second)
    assert display.messages() == ["bob: hi", "ann: one", "ann: two (sending)"]


def test_screen_own_long():
    """The state is at the end of the last row, wrapped with it."""
    display = Display(8, 24)
    display.say("word " * 6 + "end")
    assert display.messages() == ["ann: word word word word", INDENT + "word word end",
                                  INDENT + "(sending)"]
    display.agrees()


# --- The screen: scrolling and resizing ---

def numbered(display, count):
    display.add(*(f"message {number}" for number in range(count)))


def test_screen_scroll():
    """A page is the screen less one row; at the top it stops, at the bottom it follows again."""
    display = Display(8, 30)
    numbered(display, 20)
    shown = []
    for pages in (-1, -1, -1, -1, 1, 1, 1, 1):
        display.scroll(pages)
        shown.append(int(display.lines()[0].split()[1]))
    assert shown == [9, 4, 0, 0, 5, 10, 14, 14]
    display.add("new")
    assert display.lines()[5] == "new" and display.talk.new_below == 0
    display.agrees()


def test_screen_scrolled_back_stays():
    """While one has scrolled back, what comes only counts; PageDown or follow() goes to it."""
    display = Display(8, 40)
    numbered(display, 20)
    display.scroll(-2)
    before, below = display.messages(), display.talk.new_below
    for number in range(30):
        display.add(f"new {number}")
        assert display.messages() == before and display.terminal.rows_touched <= {6}
        assert display.talk.new_below == below + number + 1
        assert f"{below + number + 1} new below" in display.lines()[6]
    display.agrees()
    display.talk.follow()
    display.paint()
    assert display.messages()[-1] == "new 29" and "below" not in display.lines()[6]
    assert display.talk.new_below == 0


def test_screen_scroll_in_a_long_message():
    """A message longer than the screen is scrolled through row by row: nothing is skipped."""
    display = Display(8, 20)
    display.add("first", " ".join(f"w{number:03}" for number in range(60)), "last")
    seen = set()
    for _ in range(20):
        seen.update(re.findall(r"w\d+", display.terminal.text()))
        display.scroll(-1)
    assert display.lines()[0] == "first" and len(seen) == 60
    for _ in range(20):
        display.scroll(1)
    assert display.messages()[-1] == "last"
    display.agrees()


@pytest.mark.parametrize("what", ["nothing", "one", "unsent only"])
def test_screen_scroll_without_much(what):
    """Scrolling where there is nothing or little to see does nothing."""
    display = Display(8, 30)
    if what == "one":
        display.add("one")
    elif what == "unsent only":
        display.say("one")
    before = display.lines()
    for pages in (-1, 1, 1, -1):
        display.scroll(pages)
        assert display.lines() == before


def test_screen_scroll_through_what_is_unsent():
    """What waits for a connection may be more than a screenful: PageUp goes through it."""
    display = Display(8, 30)
    numbered(display, 3)
    for number in range(20):
        display.say(f"say {number}")
    for _ in range(8):
        display.scroll(-1)
    assert display.lines()[0] == "message 0"


def test_screen_what_is_unsent_is_not_new():
    """Scrolled back, what others say counts as new below, and what one said oneself does not: not
    while it waits for a connection, and not when it has come back at its place."""
    display = Display(8, 60)
    numbered(display, 20)
    unsent = [display.say("one"), display.say("two")]
    display.scroll(-1)
    assert display.talk.new_below == 0 and "scrolled back" in display.lines()[6]
    display.add("while away")
    display.place(unsent[0])
    assert display.talk.new_below == 1 and "1 new below" in display.lines()[6]


def test_screen_long_pinned_line():
    """Of a pinned line as much is shown as fits, in wide characters as well; what is beyond costs
    no frame anything."""
    looked_at = []

    class Counting(Columns):
        def of(self, cluster):
            looked_at.append(cluster)
            return super().of(cluster)

    display = Display(12, 9)
    display.screen.columns = Counting()
    for line, shown in ((CJK * 4_000, CJK * 2), ("word " * 1_600, "word word"), (ACUTE, ACUTE)):
        display.screen.pinned = line
        display.paint()
        assert display.lines()[0] == shown and len(looked_at) < 200


def test_screen_resize():
    """Rows are wrapped again from the lines, as if they had always had this width."""
    display = Display(10, 40, typed="half a line " * 3)
    display.add("one " * 12, CJK * 30, f"{COOK}{FRANCE} " * 12)
    for rows, columns in [(10, 20), (5, 13), (24, 80), (3, 7), (10, 40), (10, 41)]:
        display.resize(rows, columns)
        display.agrees()
    display.resize(10, 60)
    assert display.messages()[0] == ("one " * 12).rstrip()
    assert display.lines()[-1] == "> half a line half a line half a line"


def test_screen_resize_keeps_the_place():
    """Scrolled back to a message, it is there after a resize, and again after the way back."""
    display = Display(10, 40)
    for number in range(60):
        display.add(f"message {number} " + "words " * 12)
    display.scroll(-3)
    bottom = re.findall(r"message (\d+)", display.terminal.text())[-1]
    before = display.lines()
    for rows, columns in [(10, 20), (10, 80), (6, 30), (20, 60), (10, 40)]:
        display.resize(rows, columns)
        assert f"message {bottom} " in display.terminal.text() + " "
        assert "scrolled back" in display.lines()[-2]
        display.agrees()
    assert display.lines() == before


def test_screen_resize_keeps_the_place_in_a_long_message():
    """In a message of many screens, too: what the row at the bottom began with is still there."""
    display = Display(10, 80)
    display.add(" ".join(f"w{number:04}" for number in range(1_300)), "last")
    for _ in range(4):
        display.scroll(-1)
    word = re.findall(r"w\d+", display.terminal.line(7))[0]
    for columns in (40, 25, 120, 80):
        display.resize(10, columns)
        assert word in display.terminal.text(), columns


def test_screen_trims(monkeypatch):
    """Older messages than REMEMBERED are dropped, many at once; who has scrolled back keeps the
    place while it is there."""
    monkeypatch.setattr(Scrollback, "REMEMBERED", 50)
    display = Display(8, 40)
    numbered(display, 1_040)
    display.scroll(-1)
    before, below = display.messages(), display.talk.new_below
    display.add(*(f"new {number}" for number in range(15)))
    kept = len(display.talk.entries)
    assert 50 <= kept <= 55 and display.messages() == before
    assert display.talk.new_below == below + 15
    for _ in range(20):
        display.scroll(-1)
    assert display.lines()[0] == f"message {1_055 - kept}"
    display.add(*(f"newer {number}" for number in range(1_000)))
    assert display.talk.entries and display.lines()[0] == display.talk.entries[0].plain()[0]
    display.agrees()
    display.scroll(1)
    display.agrees()
    display.talk.follow()
    display.paint()
    assert display.messages()[-1] == "newer 999"


def test_screen_state_of_what_was_passed():
    """An own message that was scrolled past between two paintings shows its newest state when it is
    seen."""
    display = Display(8, 40)
    said = Said(1, "hello", None)
    said.state, said.of, said.heard = THERE, 3, 1
    numbered(display, 20)
    display.place(said)
    numbered(display, 12)
    display.scroll(-1)
    display.talk.follow()
    display.paint()
    display.screen.scroll(-1)
    display.screen.scroll(-1)
    display.screen.scroll(-1)
    display.paint()
    display.change(said, heard=3)
    for _ in range(6):
        display.scroll(1)
        assert "1 of 3" not in display.terminal.text()


def test_screen_forget():
    """After something else has written on the terminal everything is painted again."""
    display = Display(8, 30, typed="ab")
    display.add("one")
    before = cells(display.terminal)
    display.terminal.feed(b"\x1b[H\x1b[31mrubbish\x1b[m\x1b[8;1Hmore rubbish\x1b[J")
    assert display.paint() == ""
    display.screen.forget()
    display.paint()
    assert cells(display.terminal) == before and display.terminal.cursor == (7, 4)


@pytest.mark.parametrize("before, after", [("ann: \u0301x", "ann: yz"), ("ann: x", "ann: \u0301x")])
def test_screen_repaints_marks(before, after):
    """A mark that joined the cell before it goes with its row."""
    display = Display(4, 30)
    for text in (before, after):
        head, body = text[:5], text[5:]
        display.talk.add(Entry([[("1", head), ("", body)]]))
        display.paint()
        display.talk.clear()
    display.talk.add(Entry([[("1", after[:5]), ("", after[5:])]]))
    display.paint()
    display.agrees()


def test_screen_tiny():
    """From 1x1 to 3x10 nothing crashes, whatever there is to show."""
    for rows in range(1, 4):
        for columns in range(1, 11):
            display = Display(rows, columns, typed=f"half {CJK} line\nand {COOK}")
            display.add("one two three", CJK * 5)
            said = display.say(FRANCE * 3)
            for pages in (-1, -1, 1, 1):
                display.scroll(pages)
            display.change(said, state=FAILED, reason="because")
            display.screen.question = "paste?"
            display.press("left", "home", "end", "ctrl-u")
            assert not display.terminal.unknown and not display.terminal.scrolls


SCHOOLS = [{}, {"joins_emoji": False}, {"joins_emoji": False, "widens": False}]


def paint_randomly(seed, pieces):
    """Random sizes, messages, states, keys and scrolling; after each the display is compared."""
    random_ = random.Random(seed)
    display = Display(random_.randint(1, 10), random_.randint(2, 32), **SCHOOLS[seed % 3])
    mine = []
    for _ in range(14):
        step = random_.randrange(9)
        if step < 2:
            display.add(*(random_text(random_, [*pieces, "\n"], 20)
                          for _ in range(random_.randint(1, 4))))
        elif step == 2:
            mine.append(display.say(random_text(random_, pieces)))
        elif step == 3 and mine:
            display.change(random_.choice(mine), state=random_.choice([SENDING, THERE]),
                           of=random_.randrange(4), heard=2)
        elif step == 4 and mine:
            said = mine.pop()
            if random_.random() < 0.5:
                display.place(said)
            else:
                display.change(said, state=FAILED, reason=random_text(random_, pieces))
        elif step == 5:
            display.editor.insert(random_text(random_, [*pieces, "\n", "\t", "\u202e"]))
            display.paint()
        elif step == 6:
            display.press(*random_.choices(["left", "up", "home", "ctrl-w", "backspace", "end",
                                            "ctrl-y"], k=3))
        elif step == 7 and display.talk.entries:
            display.scroll(random_.choice([-2, -1, -1, 1]))
        elif step == 8:
            display.resize(random_.randint(1, 10), random_.randint(2, 32))
        display.agrees()


@pytest.mark.parametrize("seed", range(24))
def test_screen_random(seed):
    """Painted in pieces it is what it is painted at once."""
    paint_randomly(seed, PIECES)


@pytest.mark.parametrize("seed", range(1_000, 1_008))
def test_screen_random_of_uncertain_width(seed):
    """Also with what terminals disagree about: no cell of what was there before is left."""
    paint_randomly(seed, PIECES + UNCERTAIN)
