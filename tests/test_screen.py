"""The client's screen without a terminal: keys in, cells out. What Screen.paint() returns is fed to the model in terminal.py.

A Display is a screen with its editor and such a model; Display.agrees() compares what it shows after many small paintings with
what a new terminal shows after one. Random tests have fixed seeds. Nothing sleeps.
"""

import argparse
import random
import re
import time
import types

import pytest
from terminal import Terminal

import chat_client
import chatproto
from chat_client import (FAILED, INDENT, SENDING, THERE, UNKNOWN, Columns, Editor, Entry, Formatter, Key, Keys, Said, Screen,
                         Theme, Window, clusters, wrap)
from chatproto import MAX_TEXT, Ack, Booted, Chat, Error, Joined, Left, Renamed, Welcome

NOON = time.mktime((2026, 1, 2, 12, 30, 0, 0, 0, -1))
CJK, ACUTE = "\u4e2d\u6587", "e\u0301"
COOK, HEART, FRANCE, THUMB = "\U0001f469\u200d\U0001f373", "\u2764\ufe0f", "\U0001f1eb\U0001f1f7", "\U0001f44d\U0001f3fd"
FAMILY, KEYCAP, KOREAN = "\U0001f468\u200d\U0001f469\u200d\U0001f467", "1\ufe0f\u20e3", "\u1112\u1161\u11ab"
PIECES = ["a", "bc", "word", " ", " ", ".", CJK, ACUTE, COOK, HEART, FRANCE, THUMB, FAMILY, KOREAN, "\U0001f600", "x" * 9,
          "\u0646\u0651"]
UNCERTAIN = ["\u0301", " \U0001f3fd", "\u00a7\ufe0f", "\U0001f1e6", "\u2764\u200d"]
RIGHT_TO_LEFT, NO_SPACE, ISOLATE, FILLER = "\u202e", "\u200b", "\u2066", "\u3164"


# --- Helpers ---

def pressed(*pieces):
    """The keys of bytes that come in these pieces; texts that follow one another are one."""
    keys, found = Keys(), []
    for piece in pieces:
        for key in keys.feed(piece):
            if key.name == "text" and found and found[-1].name == "text":
                key = Key("text", found.pop().text + key.text)
            found.append(key)
    return found


def editor_of(marked):
    """An editor with a text in which | marks the cursor."""
    editor = Editor()
    editor.insert(marked.replace("|", ""))
    editor.cursor = marked.index("|")
    return editor


def marked(editor):
    return editor.text[:editor.cursor] + "|" + editor.text[editor.cursor:]


def press(editor, *names):
    for name in names:
        editor.press(Key(name))
    return marked(editor)


def enter(editor, *lines):
    for line in lines:
        editor.set(line)
        assert editor.take() == line


def boundaries(text):
    """Where the cursor may be."""
    places = {0}
    for cluster in clusters(text):
        places.add(max(places) + len(cluster))
    return places


def random_text(random_, pieces=PIECES, most=12):
    return "".join(random_.choice(pieces) for _ in range(random_.randint(1, most)))


def client_of(name="ann", **options):
    """What a Formatter wants to know of a client."""
    client = types.SimpleNamespace(**{"name": name, "history_until": 0, "list_as_of": 0, "here": 3,
                                      "said_of": lambda id: None, **options})
    client.is_own = types.MethodType(chat_client.ClientSession.is_own, client)
    return client


def formatter_of(name="ann", colours=256, **options):
    return Formatter(client_of(name, **options), Theme(colours))


def chat(text, sender="bob", id=7, at=NOON, **options):
    return Chat(id, sender, text, at, **options)


def entry(text):
    return Entry([[("", line)] for line in text.split("\n")])


def lines_of(formatter, message, said=None):
    return [line for one in formatter.entries(message, said) for line in one.plain()]


def spans_of(line, style):
    return [text for how, text in line if how == style]


class Display:
    """A Screen with an editor, and a terminal that shows what it paints."""

    def __init__(self, rows=8, columns=30, typed="", **options):
        self.options = options
        self.editor = Editor()
        self.editor.insert(typed)
        self.screen = Screen(Theme(256), self.editor)
        self.screen.status = ["ann", "connected", "3 here"]
        self.terminal = self.new_terminal(rows, columns)
        self.said = 0
        if options:
            answer = Terminal(1, 20, **options)
            answer.feed(Columns.PROBE.encode())
            self.screen.learn([int(key.text) - 1 for key in Keys().feed(bytes(answer.replies))])
        self.resize(rows, columns)

    def new_terminal(self, rows, columns):
        terminal = Terminal(rows, columns, **self.options)
        terminal.feed(chat_client.Terminal.ENTER.encode())
        terminal.unknown.clear()                    # saving the wheel's mode, which the model does not know
        return terminal

    def paint(self):
        """Show what there is, and count what it costs from here."""
        self.terminal.reset_counters()
        text = self.screen.paint()
        self.terminal.feed(text.encode())
        return text

    def resize(self, rows, columns):
        self.terminal.resize(rows, columns)
        self.screen.resize(rows, columns)
        self.paint()

    def add(self, *texts):
        for text in texts:
            self.screen.add(entry(text))
        self.paint()

    def say(self, text):
        """Something of our own, which is on its way."""
        self.said += 1
        said = Said(self.said, text, None)
        self.screen.add_unplaced(said, Entry([[("1", "ann"), ("", ": " + text)]], said))
        self.paint()
        return said

    def place(self, said):
        """It comes back at its place in the order."""
        self.screen.add(Entry([[("1", "ann"), ("", ": " + said.text)]], said))
        self.paint()

    def change(self, said, **values):
        for name, value in values.items():
            setattr(said, name, value)
        self.screen.changed(said)
        self.paint()

    def press(self, *names):
        for name in names:
            self.editor.press(Key(name))
        self.paint()

    def scroll(self, pages):
        self.screen.scroll(pages)
        self.paint()

    def lines(self):
        return self.terminal.lines()

    def messages(self):
        """The rows above the status line, without the empty ones above them."""
        rows = self.lines()[:self.terminal.rows - 1 - len(self.screen._input()[0])]
        return rows[next((number for number, row in enumerate(rows) if row), len(rows)):]

    def agrees(self):
        """A new terminal, painted at once, shows the same as the one that was painted in pieces."""
        fresh = self.new_terminal(self.terminal.rows, self.terminal.columns)
        self.screen.forget()
        fresh.feed(self.screen.paint().encode())
        for terminal in (self.terminal, fresh):
            assert not terminal.unknown and not terminal.titles and not terminal.scrolls and terminal.cursor_visible
        assert self.terminal.text() == fresh.text()
        assert cells(self.terminal) == cells(fresh) and self.terminal.cursor == fresh.cursor


def cells(terminal):
    return [[terminal.cell(row, column) for column in range(terminal.columns)] for row in range(terminal.rows)]


# --- Keys ---

SEQUENCES = [
    (b"\x1b[A", "up"), (b"\x1b[B", "down"), (b"\x1b[C", "right"), (b"\x1b[D", "left"), (b"\x1b[H", "home"), (b"\x1b[F", "end"),
    (b"\x1bOA", "up"), (b"\x1bOB", "down"), (b"\x1bOC", "right"), (b"\x1bOD", "left"), (b"\x1bOH", "home"), (b"\x1bOF", "end"),
    (b"\x1b[1~", "home"), (b"\x1b[4~", "end"), (b"\x1b[7~", "home"), (b"\x1b[8~", "end"), (b"\x1b[3~", "delete"),
    (b"\x1b[5~", "page-up"), (b"\x1b[6~", "page-down"), (b"\x1bOM", "enter"), (b"\r", "enter"), (b"\n", "enter"),
    (b"\t", "tab"), (b"\x7f", "backspace"), (b"\x08", "backspace"), (b"\x01", "ctrl-a"), (b"\x03", "ctrl-c"),
    (b"\x04", "ctrl-d"), (b"\x05", "ctrl-e"), (b"\x0b", "ctrl-k"), (b"\x0c", "ctrl-l"), (b"\x15", "ctrl-u"),
    (b"\x17", "ctrl-w"), (b"\x19", "ctrl-y"), (b"\x1a", "ctrl-z"), (b"\x1bb", "alt-b"), (b"\x1bf", "alt-f"),
    (b"\x1bB", "alt-b"), (b"\x1bd", "alt-d"), (b"\x1b\x7f", "alt-backspace"), (b"\x1b\x08", "alt-backspace"),
    (b"\x1b[1;5C", "word-right"), (b"\x1b[1;5D", "word-left"), (b"\x1b[1;3C", "word-right"), (b"\x1b[1;3D", "word-left"),
    (b"\x1b[1;6D", "word-left"), (b"\x1bOc", "word-right"), (b"\x1bOd", "word-left"), (b"\x1b[1;2C", "right"),
    (b"\x1b[1;2A", "up"), (b"\x1b[1;5A", "up"), (b"\x1b[1;5H", "home"), (b"\x1b[5;2~", "page-up"), (b"\x1b[6;5~", "page-down"),
    (b"\x1b[3;2~", "delete"), (b"\x1b[3;3~", "alt-d"), (b"\x1b[3;5~", "alt-d"), (b"\x1b\x1b[D", "left"),
    (b"\x1b\r", "newline"), (b"\x1b\n", "newline"), (b"\x1b[13;2u", "newline"), (b"\x1b[27;2;13~", "newline"),
]
MEANINGLESS = [b"\x1b[2~", b"\x1b[11~", b"\x1bOP", b"\x1b[[A", b"\x1b[[E", b"\x1b[Z", b"\x1b[I", b"\x1b[200m", b"\x1b[?6;2n",
               b"\x1b[<0;1;1m", b"\x1b[201~", b"\x1b[999~", b"\x1b[1;5P", b"\x1b[27;5;9~", b"\x1b[1 q"]


@pytest.mark.parametrize("data, name", SEQUENCES)
def test_keys_sequence(data, name):
    """Every sequence is its key: whole, cut at every byte, byte by byte, and between texts."""
    assert pressed(data) == [Key(name)]
    assert pressed(*(bytes([byte]) for byte in data)) == [Key(name)]
    for at in range(1, len(data)):
        assert pressed(data[:at], data[at:]) == [Key(name)], at
    assert pressed(b"ab" + data + b"cd") == [Key("text", "ab"), Key(name), Key("text", "cd")]


def test_keys_several_at_once():
    """All sequences in one piece are all keys, in their order."""
    assert pressed(b"".join(data for data, _ in SEQUENCES)) == [Key(name) for _, name in SEQUENCES]


@pytest.mark.parametrize("data", MEANINGLESS)
def test_keys_meaningless(data):
    """A sequence that means nothing here is no key and no text, and takes nothing of what comes after it."""
    for at in range(len(data)):
        assert pressed(b"a" + data[:at], data[at:] + b"b\r") == [Key("text", "ab"), Key("enter")] or at == 0
    assert pressed(data + b"\x1b[A") == [Key("up")]


@pytest.mark.parametrize("answer, column", [(b"\x1b[1;1R", "1"), (b"\x1b[24;80R", "80"), (b"\x1b[3;120R", "120")])
def test_keys_cursor_answer(answer, column):
    """The terminal's answer where the cursor is comes with its column, also amid what is typed."""
    for at in range(len(answer)):
        assert pressed(b"a" + answer[:at], answer[at:] + b"b") == [Key("text", "a"), Key("cursor", column), Key("text", "b")]


@pytest.mark.parametrize("text", ["\u00e9", CJK, COOK, FRANCE, "a" + ACUTE + "\U0001f600z", "\u0646\u0651"])
def test_keys_utf8_in_pieces(text):
    """Characters may be cut anywhere."""
    data = text.encode()
    for at in range(1, len(data)):
        assert pressed(data[:at], data[at:]) == [Key("text", text)]
    assert pressed(*(bytes([byte]) for byte in data)) == [Key("text", text)]


@pytest.mark.parametrize("data, text", [
    (b"a\xffb", "a\ufffdb"), (b"\xe4\xb8a", "\ufffda"), (b"\xc3(", "\ufffd("), (b"\xed\xa0\x80x", "\ufffd\ufffd\ufffdx"),
    (b"\xf8\x88x", "\ufffd\ufffdx"), (b"\x80", "\ufffd"),
])
def test_keys_invalid_utf8(data, text):
    """What is no UTF-8 is U+FFFD, however it is cut."""
    for at in range(len(data)):
        assert pressed(data[:at], data[at:]) == [Key("text", text)]


@pytest.mark.parametrize("after, name", [(b"\r", "enter"), (b"\x1b[D", "left"), (b"\x7f", "backspace")])
def test_keys_unfinished_utf8_before_a_key(after, name):
    """A character that is never finished spoils neither the key nor the text after it."""
    for pieces in ([b"\xe4\xb8" + after + b"ab"], [b"\xe4\xb8", after, b"ab"], [b"\xe4", b"\xb8" + after, b"ab"]):
        keys = pressed(*pieces)
        assert [key for key in keys if key != Key("text", "\ufffd")] == [Key(name), Key("text", "ab")]


def test_keys_eight_bit_controls():
    """The controls from U+0080 to U+009F are not typed: their text is without them."""
    assert pressed("a\x85c".encode()) == [Key("text", "ac")]
    editor = editor_of("killed|")
    press(editor, "ctrl-u")
    for key in Keys().feed("\x85".encode()):
        editor.press(key)
    assert editor.text == ""


@pytest.mark.parametrize("pasted, text", [
    (b"hello", "hello"), (b"", ""), (b"a\rb", "a\nb"), (b"a\r\nb\r\n", "a\nb\n"), (b"a\nb", "a\nb"), (b"a\r\r\nb", "a\n\nb"),
    (b"\x1b[31mred\x1b[0m", "red"), (b"\x1b]0;title\x07x", "x"), (b"a\x1b[Db", "ab"), (b"tab\tbell\x07", "tab\tbell"),
    (b"\x1b[200~twice", "twice"), (b"\x1b[201x", ""), (b"a\x1b[20", "a"), (b"a\x03\x04b", "ab"),
    ("\u4e2d \U0001f469\u200d\U0001f373".encode(), "\u4e2d \U0001f469\u200d\U0001f373"), (b"\xff\xe4\xb8", "\ufffd\ufffd"),
])
def test_keys_paste(pasted, text):
    """A paste is one key, cleaned, wherever it and its marks are cut; nothing in it is a key."""
    data = b"\x1b[200~" + pasted + b"\x1b[201~"
    found = pressed(data + b"\r")
    assert [key.name for key in found] == ["paste", "enter"]
    assert found[0].text.startswith(text) and (found[0].text == text or b"\x1b[20" in pasted)
    for at in range(1, len(data)):
        assert pressed(data[:at], data[at:] + b"\r") == found
    assert pressed(*(bytes([byte]) for byte in data + b"\r")) == found


def test_keys_paste_several():
    """Two pastes, and text around them."""
    assert pressed(b"a\x1b[200~b\x1b[201~c\x1b[200~d\x1b[201~\x1b[D") == [
        Key("text", "a"), Key("paste", "b"), Key("text", "c"), Key("paste", "d"), Key("left")]


def test_keys_paste_too_long(monkeypatch):
    """Of an over-long paste the beginning is kept, its end is found, and the next key is one."""
    monkeypatch.setattr(Keys, "LONGEST_PASTE", 100)
    data = b"\x1b[200~" + b"0123456789" * 30 + b"\x1b[201~\rx"
    for size in (1, 7, 64, len(data)):
        found = pressed(*(data[at:at + size] for at in range(0, len(data), size)))
        assert found == [Key("paste", "0123456789" * 10), Key("enter"), Key("text", "x")]


@pytest.mark.parametrize("pieces, names", [
    ([b"\x1b"], []), ([b"\x1b", b"b"], ["alt-b"]), ([b"\x1b", b"\x1b"], []), ([b"\x1b", b"\x1b[A"], ["up"]),
    ([b"\x1b", b"\x1b", b"\x1b[", b"A"], ["up"]), ([b"\x1b", b"\x1b", b"f"], ["alt-f"]), ([b"\x1b", b"\r"], ["newline"]),
    ([b"\x1b", b"\x03"], ["ctrl-c"]), ([b"\x1b", b"\x04"], ["ctrl-d"]),
])
def test_keys_escape_alone(pieces, names):
    """Esc waits for what comes next, and never takes an interrupt or a sequence with it."""
    assert [key.name for key in pressed(*pieces)] == names


@pytest.mark.parametrize("char", ["\u00e9", "\u4e2d", "\U0001f600"])
def test_keys_escape_before_a_character(char):
    """Esc before a character of several bytes does not tear it apart."""
    for pieces in ([b"\x1b" + char.encode()], [b"\x1b", char.encode()], [b"\x1b" + char.encode()[:1], char.encode()[1:]]):
        assert "\ufffd" not in "".join(key.text for key in pressed(*pieces, b"x"))
        assert pressed(*pieces, b"x")[-1].text.endswith("x")


@pytest.mark.parametrize("beginning", [b"\x1bP", b"\x1b]", b"\x1bX", b"\x1b^", b"\x1b_", b"\x1b[", b"\x1bO"])
def test_keys_escape_before_a_string(beginning):
    """Esc and then P (or any other letter that begins a sequence) does not make the keyboard dead: Enter and Ctrl-C work."""
    names = [key.name for key in pressed(beginning, b"lease\r", b"\x03")]
    assert names[-2:] == ["enter", "ctrl-c"]


def test_keys_endless_sequence():
    """A sequence that does not end is given up."""
    assert pressed(b"\x1b[" + b"1;" * Keys.LONGEST, b"\r")[-1] == Key("enter")
    assert pressed(b"\x1b]" + b"x" * Keys.LONGEST, b"\r")[-1] == Key("enter")


def test_keys_garbage():
    """Random bytes raise nothing, keep little, and are the same keys in whatever pieces they come."""
    random_ = random.Random(1)
    bits = [b"\x1b", b"\x1b[", b"\x1bO", b"\x1b]", b"[", b"1", b";", b"5", b"~", b"A", b"u", b"R", b"\x1b[20", b"\x1b[201~",
            b"a", "\u4e2d".encode(), b" ", b"\r", b"\x07", b"\x1b\\", b"\x7f", b"\x00", b"\x1f", b"$", b"<"]
    for number in range(300):
        data = b"".join(random_.choices(bits, k=random_.randint(1, 30)))
        cuts = sorted(random_.choices(range(len(data) + 1), k=4))
        whole = pressed(data)
        assert pressed(*(data[at:end] for at, end in zip([0, *cuts], [*cuts, len(data)]))) == whole, (number, data)
        assert all("\x1b" not in key.text for key in whole)


# --- The editor ---

@pytest.mark.parametrize("before, name, after", [
    ("ab|c", "left", "a|bc"), ("|abc", "left", "|abc"), ("a|bc", "ctrl-b", "|abc"), ("a|bc", "right", "ab|c"),
    ("abc|", "right", "abc|"), ("a|bc", "ctrl-f", "ab|c"), ("a\n|b", "left", "a|\nb"), ("a|\nb", "right", "a\n|b"),
    ("ab|c", "home", "|abc"), ("ab|c", "ctrl-a", "|abc"), ("a|bc", "end", "abc|"), ("a|bc", "ctrl-e", "abc|"),
    ("ab\ncd|e\nf", "home", "ab\n|cde\nf"), ("ab\nc|de\nf", "end", "ab\ncde|\nf"),
    ("ab|c", "backspace", "a|c"), ("|abc", "backspace", "|abc"), ("a\n|b", "backspace", "a|b"),
    ("a|bc", "delete", "a|c"), ("abc|", "delete", "abc|"), ("a|\nb", "delete", "a|b"), ("a|bc", "ctrl-d", "a|c"),
    ("one two|", "word-left", "one |two"), ("one |two", "word-left", "|one two"), ("one, tw|o", "alt-b", "one, |two"),
    ("|one two", "word-right", "one| two"), ("one| two", "alt-f", "one two|"), ("one two|", "word-right", "one two|"),
    ("one t|wo", "ctrl-u", "|wo"), ("a\nbc|d", "ctrl-u", "a\n|d"), ("|ab", "ctrl-u", "|ab"),
    ("on|e two", "ctrl-k", "on|"), ("a|b\ncd", "ctrl-k", "a|\ncd"), ("ab|", "ctrl-k", "ab|"),
    ("one a.b|", "ctrl-w", "one |"), ("one two  |", "ctrl-w", "one |"), ("one t|wo", "ctrl-w", "one |wo"),
    ("one a.b|", "alt-backspace", "one a.|"), ("one| two x", "alt-d", "one| x"), ("a|b", "newline", "a\n|b"),
    (f"a{COOK}|b", "left", f"a|{COOK}b"), (f"a|{COOK}b", "right", f"a{COOK}|b"), (f"a{COOK}|b", "backspace", "a|b"),
    (f"a|{COOK}b", "delete", "a|b"), (f"{FRANCE}{FRANCE}|", "backspace", f"{FRANCE}|"), (f"{ACUTE}|", "left", f"|{ACUTE}"),
    (f"{THUMB}{HEART}|", "left", f"{THUMB}|{HEART}"), (f"|{THUMB}{HEART}", "delete", f"|{HEART}"),
    (f"{CJK}|", "backspace", f"{CJK[0]}|"), (f"|{KOREAN}x", "right", f"{KOREAN}|x"), (f"|{KEYCAP}x", "right", f"{KEYCAP}|x"),
])
def test_editor_key(before, name, after):
    """Each key does to the line what CONVENTIONS.md says, by what a reader takes for characters."""
    editor = editor_of(before)
    assert press(editor, name) == after


def test_editor_text():
    """Text goes in at the cursor; a key that means nothing is told."""
    editor = editor_of("ab|c")
    assert editor.press(Key("text", CJK)) and marked(editor) == f"ab{CJK}|c"
    assert not editor.press(Key("ctrl-q")) and not editor.press(Key("alt-x")) and marked(editor) == f"ab{CJK}|c"


def test_editor_kill_and_yank():
    """Ctrl-Y brings back what was killed last: by U, W, K, word keys, and by clearing the line."""
    for before, name, killed in [("one two|", "ctrl-u", "one two"), ("one two|", "ctrl-w", "two"),
                                 ("|one two", "ctrl-k", "one two"),
                                 ("one two|", "alt-backspace", "two"), ("|one two", "alt-d", "one")]:
        editor = editor_of(before)
        press(editor, name, "end")
        text = editor.text
        assert press(editor, "ctrl-y", "ctrl-y") == text + 2 * killed + "|"
    editor = editor_of("on|e")
    editor.clear()
    assert marked(editor) == "|" and press(editor, "ctrl-u", "ctrl-k", "ctrl-y") == "one|"
    assert press(Editor(), "ctrl-y") == "|"


def test_editor_lines():
    """Up and Down move in a text of several lines, to the same column where there is one and never into a cluster."""
    editor = editor_of(f"abcdef\nx\n{FRANCE}{COOK}z|")
    assert press(editor, "left") == f"abcdef\nx\n{FRANCE}{COOK}|z"
    assert press(editor, "up") == f"abcdef\nx|\n{FRANCE}{COOK}z"
    assert press(editor, "up") == f"a|bcdef\nx\n{FRANCE}{COOK}z"
    assert press(editor, "end", "down", "down") == f"abcdef\nx\n|{FRANCE}{COOK}z"
    editor = editor_of(f"abc|def\n{FRANCE}{COOK}z")
    assert press(editor, "down") == f"abcdef\n{FRANCE}|{COOK}z"


def test_editor_history():
    """Up and Down show what was entered, the draft is kept for the way back."""
    editor = Editor()
    enter(editor, "one", "two", "two", "   ", "three")
    editor.insert("draft")
    assert [press(editor, "up") for _ in range(4)] == ["three|", "two|", "one|", "one|"]
    assert [press(editor, "down") for _ in range(4)] == ["two|", "three|", "draft|", "draft|"]
    assert press(editor, "ctrl-p") == "three|" and press(editor, "ctrl-n") == "draft|"
    press(editor, "up", "up", "home")
    assert editor.take() == "two" and press(editor, "up") == "two|" and press(editor, "up") == "three|"


def test_editor_history_of_several_lines():
    """From the first line Up goes back, from the last one Down goes forth."""
    editor = Editor()
    enter(editor, "one", "a\nb")
    assert [press(editor, "up") for _ in range(3)] == ["a\nb|", "a|\nb", "one|"]
    assert [press(editor, "down") for _ in range(2)] == ["a\nb|", "|"]


def test_editor_history_is_bounded():
    """The last 100 lines are remembered."""
    editor = Editor()
    enter(editor, *(f"line {number}" for number in range(105)))
    assert press(editor, *["up"] * 150) == "line 5|" and press(editor, *["down"] * 99) == "line 104|"


def test_editor_clear_goes_to_the_line_of_now():
    """After Ctrl-C on an old line Up shows the newest one again."""
    editor = Editor()
    enter(editor, "one", "two")
    press(editor, "up", "up")
    editor.clear()
    assert press(editor, "up") == "two|"


def test_editor_limit():
    """A line is never longer than a message may be, whatever would make it so."""
    editor = Editor()
    assert editor.insert("x" * (MAX_TEXT - 1)) and not editor.insert("yy") and editor.insert("y")
    assert not editor.press(Key("text", "z")) and not editor.press(Key("newline"))
    press(editor, "ctrl-w", "ctrl-y")
    assert len(editor.text) == MAX_TEXT and not editor.press(Key("ctrl-y"))


def test_editor_limit_of_completion():
    """Tab does not make a line longer than a message may be, either."""
    editor = Editor()
    editor.insert("x" * (MAX_TEXT - 3) + " b")
    editor.complete(lambda word, is_first: ["barbarossa "])
    assert len(editor.text) <= MAX_TEXT


def offers(word, is_first):
    """As a Window has it, for three who are here and two commands."""
    words = ["/me ", "/msg "] if is_first and word.startswith("/") else [
        name + (": " if is_first else " ") for name in ("bob", "ben", "Ann")]
    return [offer for offer in words if offer.lower().startswith(word.lower())]


@pytest.mark.parametrize("before, shown", [
    ("b|", ["bob: |", "ben: |", "b|", "bob: |"]), ("hi b|", ["hi bob |", "hi ben |", "hi b|", "hi bob |"]),
    ("a|", ["Ann: |", "a|", "Ann: |"]), ("x|", ["x|", "x|"]), ("|", ["bob: |", "ben: |", "Ann: |", "bob: |"]),
    ("/m|", ["/me |", "/msg |", "/m|", "/me |"]), ("hi /m|", ["hi /m|"]), ("b| there", ["bob: | there", "ben: | there"]),
    ("one\nb|\ntwo", ["one\nbob |\ntwo", "one\nben |\ntwo"]), (" b|", [" bob: |", " ben: |"]), ("/msg b|", ["/msg bob |"]),
])
def test_editor_completion(before, shown):
    """Tab completes the word before the cursor, the next Tab tries the next one and at the end what was typed."""
    editor = editor_of(before)
    for one in shown:
        editor.complete(offers)
        assert marked(editor) == one


def test_editor_completion_ends_with_another_key():
    """Any other key ends the cycle: the next Tab completes what is there then."""
    editor = editor_of("b|")
    editor.complete(offers)
    press(editor, "backspace", "backspace", "backspace", "backspace")
    editor.press(Key("text", "e"))
    editor.complete(offers)
    assert marked(editor) == "ben: |"


def test_editor_completion_ends_with_the_line():
    """A line that was cleared or entered does not come back with the next Tab."""
    for end in (Editor.clear, Editor.take):
        editor = editor_of("b| there")
        editor.complete(offers)
        end(editor)
        editor.complete(offers)
        assert marked(editor) == "bob: |"


@pytest.mark.parametrize("before, names", [
    (f"|caf{ACUTE} x", ["word-right"]), (f"x caf{ACUTE}|", ["word-left"]), (f"|{KEYCAP} x", ["word-right"]),
    ("a\n|\u0301b", ["backspace"]), ("a|\n\u0301b", ["delete"]), ("|e" + "\u0301" * 100 + "x", ["right"]),
    (f"{FRANCE}|{FRANCE}", ["half a flag"]),
])
def test_editor_cursor_stays_between_clusters(before, names):
    """The places where a cursor could get into a character."""
    editor = editor_of(before)
    for name in names:
        editor.press(Key("text", FRANCE[0]) if name == "half a flag" else Key(name))
    assert editor.cursor in boundaries(editor.text), marked(editor)


def test_editor_words_with_marks():
    """A word's marks go with it."""
    assert press(editor_of(f"|caf{ACUTE} x"), "alt-d") == "| x" and press(editor_of(f"x {ACUTE}a|"), "alt-backspace") == "x |"


def test_editor_cursor_random():
    """Whatever keys are pressed: the cursor is between two clusters, the text within its bound."""
    random_ = random.Random(2)
    names = [*Editor()._moves, *Editor()._actions, "newline", "ctrl-y", "tab", "take"]
    for number in range(60):
        editor, done = Editor(), []
        for _ in range(60):
            name = random_.choice(names) if random_.random() < 0.6 else random_.choice([*PIECES, KEYCAP])
            done.append(name)
            if name == "tab":
                editor.complete(offers)
            elif name == "take":
                editor.take()
            elif not editor.press(Key(name)):
                editor.press(Key("text", name))
            assert editor.cursor in boundaries(editor.text), (number, done[-2:], marked(editor))


# --- Columns and wrapping ---

@pytest.mark.parametrize("text, columns", [
    ("abc", [1, 1, 1]), (CJK, [2, 2]), (ACUTE + "x", [1, 1]), (COOK, [2]), (FAMILY + "!", [2, 1]), (HEART, [2]),
    (FRANCE * 2, [2, 2]), (FRANCE[0], [1]),
    (THUMB, [2]), (KEYCAP, [2]), (KOREAN, [2]), ("\uff21", [2]), ("\u0646\u0651", [1]), ("\u0915\u093f", [2]),
    ("\u2764", [1]), ("\U0001f600", [2]), ("e" + "\u0301" * 9, [1]), ("\U0001f468\u200d" * 2 + "x", [2, 1]),
])
def test_columns_of(text, columns):
    """A cluster takes the columns that it takes on a terminal that joins emoji, and on the model."""
    assert [Columns().of(cluster) for cluster in clusters(text)] == columns and "".join(clusters(text)) == text
    terminal = Terminal(1, 40)
    terminal.feed(text.encode())
    assert terminal.cursor == (0, sum(columns))


@pytest.mark.parametrize("options", [{}, {"joins_emoji": False}, {"widens": False}, {"joins_emoji": False, "widens": False}])
def test_columns_learned_from_a_terminal(options):
    """The terminal's answers to the probe, read by Keys: from then on every cluster has the columns it takes there. The
    probe leaves nothing on the screen."""
    terminal = Terminal(4, 40, **options)
    terminal.feed(Columns.PROBE.encode())
    assert terminal.text().strip() == "" and not terminal.unknown and terminal.cursor == (0, 0)
    keys = list(Keys().feed(bytes(terminal.replies)))
    assert [key.name for key in keys] == ["cursor"] * len(Columns.SAMPLES)
    columns = Columns()
    columns.of(COOK)
    columns.learn([int(key.text) - 1 for key in keys])
    for text in (*Columns.SAMPLES, COOK, FAMILY, HEART, FRANCE, THUMB, CJK, ACUTE, KOREAN, "\u2764\ufe0f\u200d\U0001f525",
                 "\U0001f469\U0001f3fd\u200d\U0001f373"):
        terminal.feed(b"\r" + text.encode())
        assert sum(map(columns.of, clusters(text))) == terminal.cursor[1], text


@pytest.mark.parametrize("number, width", [(0, 4), (0, 2), (1, 1), (1, 2), (2, 2), (2, 4), (3, 4), (3, 2)])
def test_columns_learned(number, width):
    """What was measured of a sample is what the sample takes."""
    columns, widths = Columns(), [2, 2, 2, 2]
    widths[number] = width
    columns.learn(widths)
    assert [columns.of(sample) for sample in Columns.SAMPLES] == widths


@pytest.mark.parametrize("text", [" \U0001f3fd", "a\U0001f3fd", "\u00a7\ufe0f", "\u00b2\ufe0f"])
def test_columns_of_what_is_no_emoji(text):
    """A skin tone, a joiner and a variation selector after what is no emoji: as the terminal shows it."""
    terminal = Terminal(1, 40)
    terminal.feed(chatproto.escape(text).encode())
    assert sum(map(Columns().of, clusters(chatproto.escape(text)))) == terminal.cursor[1]


def row_text(row):
    return "".join(cell[1] for cell in row)


@pytest.mark.parametrize("text, width, first, rest, rows", [
    ("one two three", 20, 0, 2, ["one two three"]), ("one two three", 7, 0, 2, ["one two", "  three"]),
    ("one two three", 9, 0, 2, ["one two ", "  three"]), ("abcdefghij", 4, 0, 1, ["abcd", " efg", " hij"]),
    ("", 4, 0, 1, [""]), ("", 4, 2, 1, ["  "]), ("abcd", 4, 0, 1, ["abcd"]), ("abcd ", 4, 0, 1, ["abcd", " "]),
    ("ab cdefghijkl", 6, 0, 2, ["ab ", "  cdef", "  ghij", "  kl"]), ("one two", 6, 2, 2, ["  one ", "  two"]),
    (CJK * 3, 5, 0, 1, ["\u4e2d\u6587", " \u4e2d\u6587", " \u4e2d\u6587"]),
    (f"a {COOK * 2}b", 5, 0, 1, ["a ", f" {COOK * 2}", " b"]), (ACUTE * 5, 4, 0, 1, [ACUTE * 4, " " + ACUTE]),
])
def test_wrap(text, width, first, rest, rows):
    """Broken at spaces where there are, else at the edge; what follows is indented."""
    assert [row_text(row) for row in wrap([("", text)], width, Columns(), first, rest)] == rows


def test_wrap_random():
    """No row is wider than the width; nothing but a space at the edge is lost; rows but the first begin with blanks."""
    random_, columns = random.Random(3), Columns()
    for _ in range(400):
        width = random_.randint(2, 25)
        rest = min(random_.choice([0, len(INDENT)]), width // 4)
        first = random_.choice([0, rest])
        line = [(str(style), random_text(random_)) for style in range(random_.randint(1, 3))]
        rows = [[cell for cell in row if cell[1]] for row in wrap(line, width, columns, first, rest)]
        for number, row in enumerate(rows):
            assert sum(cell[2] for cell in row) <= width and all(cell[2] == columns.of(cell[1]) for cell in row), (line, width)
            indent = rest if number else first
            assert row[:indent] == [("", " ", 1)] * indent
        text = "".join(row_text(row[rest if number else first:]) for number, row in enumerate(rows))
        assert text.replace(" ", "") == "".join(what for _, what in line).replace(" ", "")
        spaces = sum(what.count(" ") for _, what in line)
        assert spaces - len(rows) < text.count(" ") <= spaces
        styles = [cell[0] for number, row in enumerate(rows) for cell in row[rest if number else first:]]
        assert styles == sorted(styles)


@pytest.mark.parametrize("text", ["x" * 300, "word " * 60, "a\nbob: forged\n\n12:30 bob: forged", "\u3000bob: x" * 20,
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
    """Messages above, the newest at the bottom, one reversed status line over the whole width, the line that is typed."""
    display = Display(6, 30, typed="hi")
    assert display.lines() == ["", "", "", "", " ann | connected | 3 here", "> hi"] and display.terminal.cursor == (5, 4)
    display.add("one", "two")
    assert display.lines() == ["", "", "one", "two", " ann | connected | 3 here", "> hi"] and display.terminal.cursor == (5, 4)
    display.add(*"345678")
    assert display.lines()[:4] == ["5", "6", "7", "8"]
    assert all(display.terminal.cell(4, column).style == {"reverse"} for column in range(30))
    assert "bold" in display.terminal.cell(5, 0).style and not display.terminal.cell(5, 2).style
    display.agrees()


@pytest.mark.parametrize("typed, rows", [
    ("half a line", ["> half a line"]), (CJK * 3, ["> " + CJK * 3]),
    (f"{COOK}{HEART}x{FRANCE}{THUMB}", None), (ACUTE * 4, None),
    ("word " * 12, None), (CJK * 20, None), ("two\nlines", ["> two", "  lines"]), ("", [">"]), ("tab\tbed", ["> tab    bed"]),
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
    assert display.terminal.painted == 0 and display.terminal.rows_touched == {5} and display.lines()[5] == "> ab"
    display.press("left")
    assert display.terminal.painted == 0 and not display.terminal.rows_touched and display.terminal.cursor == (5, 3)
    display.screen.status = ["ann", "connected", "4 here"]
    display.paint()
    assert display.terminal.rows_touched == {4} and display.terminal.painted <= 40 - len(" ann | connected | ")
    said = display.say("hello")
    display.change(said, state=THERE)
    assert display.terminal.rows_touched == {3} and display.terminal.painted == len("there)")
    display.agrees()


def test_screen_flood_is_one_painting():
    """However many messages came: at most a screenful is painted, in one piece, and it is the end."""
    display = Display(8, 30)
    display.add(*(f"message {number}" for number in range(5_000)))
    assert display.terminal.painted <= 6 * 30 and display.lines()[:6] == [f"message {number}" for number in range(4_994, 5_000)]
    assert not display.terminal.rows_touched & {6, 7}


def test_screen_status():
    """Parts that do not fit are left out from the end; a question comes in its place."""
    display = Display(4, 20)
    display.screen.status = ["ann", "connected", "3 here", "somewhere"]
    for columns, line in [(60, " ann | connected | 3 here | somewhere"), (26, " ann | connected | 3 here"),
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
    """A line wider than the screen goes on below, up to a third of the screen; then it scrolls with the cursor."""
    display = Display(9, 10, typed="abcdefghijklm")
    assert display.lines()[-3:] == [" ann", "> abcdefgh", "  ijklm"] and display.terminal.cursor == (8, 7)
    display.press("home")
    assert display.terminal.cursor == (7, 2)
    display.editor.set("x" * 80)
    display.paint()
    assert display.lines()[-4:] == [" ann", "  " + "x" * 8, "  " + "x" * 8, ""] and display.terminal.cursor == (8, 2)
    display.press("home")
    assert display.lines()[-3:] == ["> " + "x" * 8, "  " + "x" * 8, "  " + "x" * 8] and display.terminal.cursor == (6, 2)
    display.editor.set(CJK * 2 + "a")
    display.paint()
    assert display.lines()[-2:] == ["> " + CJK * 2, "  a"]
    display.editor.set("a\u202eb")
    display.paint()
    assert display.lines()[-2:] == ["> a\\u202eb", ""] and display.terminal.cursor == (8, 2)
    display.agrees()


@pytest.mark.parametrize("typed, left, cursor", [
    (CJK, 0, 6), (CJK, 1, 4), (COOK + "x", 1, 4), (COOK + "x", 2, 2), (ACUTE * 2, 1, 3), (FRANCE * 2, 1, 4), ("\u202eb", 1, 8),
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
    for heard, of, shown in [(0, 3, "heard by 0 of 3"), (2, 3, "heard by 2 of 3"), (3, 3, "heard by all")]:
        display.change(said, heard=heard, of=of)
        assert display.messages() == ["bob: hi", f"ann: hello ({shown})", "bob: ho"] and len(display.terminal.rows_touched) <= 1
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
    """What the server may never send back stays in its place above what comes; if it comes after all, only that stays."""
    display = Display(8, 60)
    first, second = display.say("one"), display.say("two")
    display.change(first, state=THERE)
    display.screen.keep([first])
    display.add("bob: hi")
    assert display.messages() == ["ann: one (there)", "bob: hi", "ann: two (sending)"]
    display.screen.came_back("three", None)
    display.screen.came_back("one", "bob")
    display.screen.came_back("one", None)
    display.add("ann: one")
    assert display.messages() == ["bob: hi", "ann: one", "ann: two (sending)"]
    display.place(second)
    assert display.messages() == ["bob: hi", "ann: one", "ann: two (sending)"]


def test_screen_own_long():
    """The state is at the end of the last row, wrapped with it."""
    display = Display(8, 24)
    display.say("word " * 6 + "end")
    assert display.messages() == ["ann: word word word word", INDENT + "word word end", INDENT + "(sending)"]
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
    assert display.lines()[5] == "new" and display.screen.new_below == 0
    display.agrees()


def test_screen_scrolled_back_stays():
    """While one has scrolled back, what comes only counts; PageDown or follow() goes to it."""
    display = Display(8, 40)
    numbered(display, 20)
    display.scroll(-2)
    before, below = display.messages(), display.screen.new_below
    for number in range(30):
        display.add(f"new {number}")
        assert display.messages() == before and display.terminal.rows_touched <= {6}
        assert display.screen.new_below == below + number + 1
        assert f"{below + number + 1} new below" in display.lines()[6]
    display.agrees()
    display.screen.follow()
    display.paint()
    assert display.messages()[-1] == "new 29" and "below" not in display.lines()[6] and display.screen.new_below == 0


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


@pytest.mark.parametrize("what", ["nothing", "cleared", "one", "unsent only"])
def test_screen_scroll_without_much(what):
    """Scrolling where there is nothing or little to see does nothing."""
    display = Display(8, 30)
    if what == "cleared":
        numbered(display, 30)
        display.scroll(-1)
        display.screen.clear()
        display.paint()
    elif what == "one":
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


def test_screen_resize():
    """Rows are wrapped again from the lines, as if they had always had this width."""
    display = Display(10, 40, typed="half a line " * 3)
    display.add("one " * 12, CJK * 30, f"{COOK}{FRANCE} " * 12)
    for rows, columns in [(10, 20), (5, 13), (24, 80), (3, 7), (10, 40), (10, 41)]:
        display.resize(rows, columns)
        display.agrees()
    display.resize(10, 60)
    assert display.messages()[0] == ("one " * 12).rstrip() and display.lines()[-1] == "> half a line half a line half a line"


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
        assert f"message {bottom} " in display.terminal.text() + " " and "scrolled back" in display.lines()[-2]
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
    """Older messages than REMEMBERED are dropped, many at once; who has scrolled back keeps the place while it is there."""
    monkeypatch.setattr(Screen, "REMEMBERED", 50)
    display = Display(8, 40)
    numbered(display, 1_040)
    display.scroll(-1)
    before, below = display.messages(), display.screen.new_below
    display.add(*(f"new {number}" for number in range(15)))
    kept = len(display.screen._entries)
    assert 50 <= kept <= 55 and display.messages() == before and display.screen.new_below == below + 15
    for _ in range(20):
        display.scroll(-1)
    assert display.lines()[0] == f"message {1_055 - kept}"
    display.add(*(f"newer {number}" for number in range(1_000)))
    assert display.screen._entries and display.lines()[0] == display.screen._entries[0].plain()[0]
    display.agrees()
    display.scroll(1)
    display.agrees()
    display.screen.follow()
    display.paint()
    assert display.messages()[-1] == "newer 999"


def test_screen_state_of_what_was_passed():
    """An own message that was scrolled past between two paintings shows its newest state when it is seen."""
    display = Display(8, 40)
    said = Said(1, "hello", None)
    said.state, said.of, said.heard = THERE, 3, 1
    numbered(display, 20)
    display.place(said)
    numbered(display, 12)
    display.scroll(-1)
    display.screen.follow()
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
        display.screen.add(Entry([[("1", head), ("", body)]]))
        display.paint()
        display.screen.clear()
    display.screen.add(Entry([[("1", after[:5]), ("", after[5:])]]))
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
            display.add(*(random_text(random_, [*pieces, "\n"], 20) for _ in range(random_.randint(1, 4))))
        elif step == 2:
            mine.append(display.say(random_text(random_, pieces)))
        elif step == 3 and mine:
            display.change(random_.choice(mine), state=random_.choice([SENDING, THERE]), of=random_.randrange(4), heard=2)
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
            display.press(*random_.choices(["left", "up", "home", "ctrl-w", "backspace", "end", "ctrl-y"], k=3))
        elif step == 7 and (display.screen._entries or display.screen._unplaced):
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


# --- What is shown of a message ---

HOSTILE = ["\x1b[2J\x1b[H", "\r12:30 bob: forged", "\x1b]0;title\x07", "\x1b]52;c;eA==\x1b\\", "\x9b2J\x9d0;t\x9c", "\x08" * 9,
           "\x0e\x0f\x07\x7f\x00", f"{RIGHT_TO_LEFT}dorf", f"{ISOLATE}x\u2069\u2067\u2068", f"a{NO_SPACE}b\ufeff\u2060",
           FILLER * 5,
           "\u2028x\u2029\u0085y", "\U000e0041\U000e007f", "x" * 900, "\u4e2d" * 400, "one\ntwo\n\n12:30 bob: forged",
           "\n" * 40,
           "\v\fx", "a\u0301\u0302" * 300, "\ufe0f\ufe0f\u200dx", "\x1bc", "\u0301" * 50, "* bob left", "! refused",
           "-- now --",
           "x\x1b[1;1Hy\x1b[?1049l", " \U0001f3fd" * 30, "\ud800x", "\u00ad", "\U0001f1e6" * 31]
INVISIBLE = re.compile("[\u202a-\u202e\u2066-\u2069\u200b\u2060\ufeff\u3164\u2028\u2029\u0085\U000e0000-\U000e007f]")
EVENTS = [
    lambda text: chat(text, "mallory"), lambda text: chat("x", "mal" + text), lambda text: chat("/me " + text, "mallory"),
    lambda text: chat(text, "mallory", to="ann"), lambda text: chat("x", "mallory", to="a" + text),
    lambda text: Joined(7, "mal" + text, NOON), lambda text: Left(7, "mallory", NOON, text),
    lambda text: Left(7, "mallory", NOON, "booted: " + text), lambda text: Left(7, "mal" + text, NOON, ""),
    lambda text: Renamed(7, "mallory", "b" + text, NOON), lambda text: Booted(7, "mallory " + text),
    lambda text: Error(7, "code", "mallory " + text, 3), lambda text: Error(7, "mallory " + text),
]


def nothing_happened(terminal):
    """No sequence but ours, no title, no bell, nothing scrolled away."""
    return not (terminal.unknown or terminal.titles or terminal.bells or terminal.scrolls or terminal.scrollback)


@pytest.mark.parametrize("text", HOSTILE)
def test_formatter_hostile(text):
    """Whatever is in a text, a name or a reason: one message is shown, nothing else moves, nothing is hidden."""
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
            for one in formatter.entries(message):
                display.screen.add(one)
        display.paint()
        shown = display.lines()
        assert shown[rows - 2].startswith(" ann | connected") and shown[rows - 1] == "> half a line"
        assert display.terminal.cursor == cursor and display.terminal.modes == display.new_terminal(2, 2).modes
        assert nothing_happened(display.terminal)
        assert shown[rows - 3] == "12:30 bob: after"
        starts = [line for line in shown[:rows - 3] if line and line[0] != " "]
        if text != "\n" * 40:
            assert len(starts) == 2 and starts[0] == "12:30 bob: before" and "mal" in "".join(shown), (number, starts)
        assert not INVISIBLE.search(display.terminal.text())


@pytest.mark.parametrize("text", [text for text in HOSTILE if text.isascii() and "\n" not in text])
def test_formatter_shows_escapes(text):
    """Control characters are shown as what they are."""
    line, = lines_of(formatter_of(), chat(text))
    assert line == "12:30 bob: " + re.sub("[\x00-\x1f\x7f]", lambda found: repr(found[0])[1:-1], text)


@pytest.mark.parametrize("char", [RIGHT_TO_LEFT, NO_SPACE, ISOLATE, FILLER, "\u200e", "\u2028", "\ufeff", "\u00ad", "\u115f",
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
        for one in formatter_of().entries(chat("before")) + formatter_of().entries(chat(text, "mallory")):
            display.screen.add(one)
        display.paint()
        assert all(line.startswith(INDENT) for line in display.lines()[:22]) and display.lines()[23] == "> half"
        for _ in range(40 if text[0] in "xa" else 0):
            display.screen.scroll(-1)
        display.paint()
        assert text[0] not in "xa" or [line for line in display.lines()[:22] if line[0] != " "][1].startswith("12:30 mallory:")


@pytest.mark.parametrize("text", [text for text in HOSTILE if "\ud800" not in text] + ["one\n! two\n\tthree"])
def test_formatter_message_of_the_day(text):
    """The message of the day is shown line by line, each marked as such; nothing in it moves anything."""
    display = Display(60, 40, typed="half")
    window = types.SimpleNamespace(motd=text, show=lambda line: display.screen.add(entry(line)))
    chat_client.Commands(window).motd("")
    display.paint()
    assert all(line[:1] in ("*", " ") for line in display.messages()) and display.lines()[59] == "> half"
    assert nothing_happened(display.terminal)
    assert len([line for line in display.messages() if line[0] == "*"]) == min(58, text.count("\n") + 1)


def test_formatter_lines():
    """What each message is shown as."""
    for message, lines in [
            (chat("hello"), ["12:30 bob: hello"]), (chat("/me waves"), ["* bob waves"]),
            (chat("/merry"), ["12:30 bob: /merry"]),
            (chat("a\nb\n"), ["12:30 bob: a", INDENT + "b", INDENT]), (chat("a\tb"), ["12:30 bob: a    b"]),
            (chat("psst", to="ann"), ["12:30 bob -> ann: psst"]), (Joined(7, "bob", NOON), ["* bob joined (3 here)"]),
            (Left(7, "bob", NOON, "gone away"), ["* bob left (gone away)"]),
            (Left(7, "bob", NOON, "booted: spam"), ["* bob was booted: spam"]),
            (Renamed(7, "bob", "rob", NOON), ["* bob is now rob"]), (Booted(7, "spam"), ["* you were booted: spam"]),
            (Booted(7), ["* you were booted"]), (Error(7, "x", "no", 3), ["! refused: no"]), (Error(7, "rate"), ["! rate"])]:
        assert lines_of(formatter_of(), message) == lines


def test_formatter_options():
    """Without the times; without joins and leaves; without who is ignored, under whatever spelling, but for us."""
    formatter = formatter_of()
    formatter.timestamps, formatter.quiet = False, True
    formatter.ignored.add("bob")
    assert lines_of(formatter, chat("hello", "eve")) == ["eve: hello"]
    assert lines_of(formatter, Joined(7, "bob", NOON)) == lines_of(formatter, Left(7, "bob", NOON, "x")) == []
    assert lines_of(formatter, Renamed(7, "bob", "rob", NOON)) and not lines_of(formatter, chat("hello", "BOB"))
    assert lines_of(formatter, chat("hello", "bob"), Said(1, "hello", None)) == ["bob: hello"]
    formatter.ignored.discard("bob")
    assert lines_of(formatter, chat("hello")) == ["bob: hello"]


def test_formatter_joined_before_us():
    """The count is of now: it is not told of a join that is older than the list."""
    assert lines_of(formatter_of(list_as_of=7), Joined(7, "bob", NOON)) == ["* bob joined"]


@pytest.mark.parametrize("text, found", [
    ("hi ann", ["ann"]), ("Ann: hi ANN!", ["Ann", "ANN"]), ("annabel joann ann2 _ann", []), ("ann", ["ann"]), ("nothing", []),
    ("@ann,", ["ann"]), ("one\nann", ["ann"]),
])
def test_formatter_mentions(text, found):
    """Our name is highlighted where it is a word of its own, in whatever case."""
    formatter = formatter_of()
    message = chat(text)
    lines = formatter.chat(message).lines
    assert [what for line in lines for what in spans_of(line, Theme.mention)] == found
    assert formatter.is_mention(message) == bool(found)
    assert "".join(what for line in lines for _, what in line) == "12:30 bob: " + text.replace("\n", "")


def test_formatter_mentions_of_the_name_of_now():
    """After a rename it is the new name; our own text mentions nobody; a private message always does."""
    formatter = formatter_of()
    assert formatter.chat(chat("ann")).lines
    formatter._client.name = "c.d"
    assert not formatter.is_mention(chat("ann cxd")) and formatter.is_mention(chat("hi C.D"))
    assert formatter._client.is_own(chat("c.d", "C.d"))
    assert not formatter._client.is_own(chat("c.d"))
    assert formatter.is_mention(chat("hello", to="c.d"))
    assert not any(spans_of(line, Theme.mention) for line in formatter.chat(chat("c.d", "c.d"), own=True).lines)


def test_formatter_days():
    """A line when the day changes, none before the first message; hidden messages make none."""
    formatter = formatter_of()
    day = 86_400
    assert lines_of(formatter, chat("one")) == ["12:30 bob: one"]
    formatter.quiet = True
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
    assert lines_of(formatter, chat("one", id=7)) == ["-- said before you came --", "12:30 bob: one"]
    assert lines_of(formatter, chat("two", id=8)) == ["12:30 bob: two"]
    assert lines_of(formatter, chat("three", id=9)) == ["-- now --", "12:30 bob: three"]


# --- Colours ---

@pytest.mark.parametrize("colours, styles", [(-1, {"1"}), (0, {"1"}), (8, {"1;31", "1;32", "1;34", "1;35", "1;36"}), (16, None),
                                             (256, None), (1 << 24, None)])
def test_theme_names(colours, styles):
    """Names differ in colours that the terminal has; without any they are bold."""
    found = {Theme(colours).name(f"name{number}") for number in range(300)}
    assert found == styles or styles is None and len(found) == (14 if colours >= 256 else 5)
    terminal = Terminal(1, 80)
    for style in {*found, Theme(colours).error, Theme.dim, Theme.mention, Theme.status, Theme.bold}:
        terminal.feed(f"\x1b[0;{style}mx\x1b[0m".encode())
    assert not terminal.unknown
    assert colours >= 8 or not any("fg" in name for column in range(80) for name in terminal.cell(0, column).style)


@pytest.mark.parametrize("name, of_256, of_8", [("ann", 97, 34), ("bob", 30, 36), ("\u4e2d\u6587", 97, 32)])
def test_theme_name_is_stable(name, of_256, of_8):
    """A name has the same colour in every run, on every machine, in whatever case it is written."""
    assert Theme(256).name(name) == f"1;38;5;{of_256}" and Theme(8).name(name) == f"1;{of_8}"
    assert Theme(256).name(name.upper()) == Theme(256).name(name)


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
    """A Window for ann that was never connected, on Paper; its client keeps what is said until there is a connection."""
    monkeypatch.setenv("COLORTERM", "truecolor")
    arguments = argparse.Namespace(host="host", port=8087, name="ann", bell="mentions", timeout=1.0)
    window = Window(arguments, Paper())
    window._terminal.enter()
    window.client.users = {name: name for name in ("ann", "bob", "ben")}
    window.client.here = 3
    window.press = lambda *pieces: [window._press(piece) for piece in pieces] and window._paint()
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
    window.client.closed()                      # else it waits for the ACK of its leave
    window.client.close()


def test_window_says(window):
    """Enter says the line; it is shown as on its way, and the status line counts it."""
    window.press(b"hello\r")
    assert window.lines()[7].endswith("ann: hello (sending)") and "1 unsent" in window.lines()[8] and window.lines()[9] == ">"
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
    assert window._editor.text == "\n".join(["line"] * 30) and "paste 30 lines" not in window._terminal.shown.text()
    window.press(b"\r")
    assert [said.text for said in window.client.unsettled.values()] == ["\n".join(["line"] * 30)]


@pytest.mark.parametrize("answer, said, typed", [
    (b"no\r", ["o"], ""), (b"No", [], "o"), (b"n", [], ""), (b"y", [], "1\n2\n3\n4\n5\n6"),
    (b"y, all\r", ["1\n2\n3\n4\n5\n6, all"], ""),
    (b"?Yx", [], "1\n2\n3\n4\n5\n6x"), (b"maybe\r\r", ["1\n2\n3\n4\n5\n6be"], ""), (b"\r!", [], "1\n2\n3\n4\n5\n6!"),
    (b"hm \x03x", [], "x")])
def test_window_paste_answer_in_any_pieces(window, answer, said, typed):
    """The first letter that answers decides, and what follows is typed, whether it comes in one read or in many."""
    for pieces in ([answer], [bytes([byte]) for byte in answer]):
        window.press(b"\x1b[200~1\r2\r3\r4\r5\r6\x1b[201~")
        assert "paste 6 lines" in window.lines()[8]
        before = len(window.client.unsettled)
        window.press(*pieces)
        assert "paste 6 lines" not in window._terminal.shown.text() and window._editor.text == typed
        assert [said.text for said in window.client.unsettled.values()][before:] == said
        window._editor.clear()


@pytest.mark.parametrize("key", [b"]", b"P", b"^", b"_", b"X"])
def test_window_alt_with_a_letter_that_begins_a_string(window, key):
    """After Alt-] and the like what is typed is seen, and Enter says it."""
    for pieces in ([b"\x1b" + key, b"hello"], [b"\x1b" + key + b"hello"]):
        window.press(*pieces)
        assert window.lines()[9] == "> hello"
        window.press(b"\r")
        assert [said.text for said in window.client.unsettled.values()][-1] == "hello" and window.lines()[9] == ">"


def test_window_paste_too_long(window):
    """A paste that makes the line too long is told, and leaves it as it was."""
    window.press(b"ab\x1b[200~" + b"x" * MAX_TEXT + b"\x1b[201~")
    assert window._editor.text == "ab" and "! not pasted" in window._terminal.shown.text()


def test_window_completes(window):
    """Tab: who spoke last comes first, then the others; commands; never ourselves, nor who has gone."""
    for sender in ("ben", "bob", "gone"):
        window._hear(chat("x", sender), [], False, False)
    assert window._offers("", True) == ["bob: ", "ben: "] and window._offers("BE", False) == ["ben "]
    window._hear(chat("x", "ben"), [], False, False)
    window.press(b"b\t")
    assert window.lines()[9] == "> ben:"
    window.press(b"\t")
    assert window.lines()[9] == "> bob:"
    assert window._offers("/m", True) == ["/me ", "/msg ", "/motd "] and window._offers("/m", False) == []


def test_window_interrupt(window):
    """Ctrl-C clears a line that is not empty, else leaves; Ctrl-D leaves on an empty line."""
    window.press(b"ab\x01\x04")
    assert window._editor.text == "b" and window._over is None
    window.press(b"\x03")
    assert window._editor.text == "" and window._over is None
    window.press(b"\x03")
    assert window._over == 130
    window._over = None
    window.press(b"\x04")
    assert window._over == 0


def test_window_unknown_command(window):
    """An unknown command is told to who typed it and goes nowhere; two slashes say one."""
    window.press(b"/nonsense x\r")
    assert "! /nonsense is not a command" in window._terminal.shown.text() and not window.client.unsettled
    window.press(b"//me\r")
    assert [said.text for said in window.client.unsettled.values()] == ["/me"]


def test_window_clear_then_scroll(window):
    """/clear, then PageUp and PageDown: nothing to see, and no harm."""
    window.press(b"/help\r")
    assert "/quit" in window._terminal.shown.text()
    window.press(b"/clear\r")
    assert not any(window.lines()[:8])
    window.press(b"\x1b[5~", b"\x1b[6~")
    assert not any(window.lines()[:8])


def test_window_learns_widths(window):
    """The answers to the probe come between the keys, and are not typed."""
    window.press(b"a\x1b[1;5R\x1b[1;3R", b"\x1b[1;3Rb\x1b[1;", b"5R")
    assert window.lines()[9] == "> ab" and [window.screen.columns.of(sample) for sample in Columns.SAMPLES] == [4, 2, 2, 4]


def test_window_name_of_the_welcome(window):
    """A server's name for us, and its message of the day, are shown escaped."""
    window.client.name = "a\x1b[2J"
    window._connect(Welcome("a\x1b[2J", "s", "e", ("bob",), 0, motd="hi\x1b]0;t\x07\nthere\u202e"), [])
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
    Welcome("ann", "t", "e", ("ann", "bob"), 20, missed=7), Welcome("ann", "t", "e", ("ann", "bob"), 0),
    Welcome("ann", "t", "f", ("ann", "bob"), 20)],
    ids=["resumed", "new session", "nothing said since", "another server"])
def test_window_own_that_is_not_replayed(window, welcome):
    """Acknowledged, but missing in what is sent after the connection broke: it stays where it was, above what comes later."""
    connect(window)
    window.press(b"mine\r")
    window.hear(Ack(1))
    assert said_rows(window) == ["ann: mine (there)"]
    connect(window, welcome, *(chat(f"later {id}", id=id) for id in (21, 22)))
    assert said_rows(window) == ["ann: mine (there)", "bob: later 21", "bob: later 22"]
    window.press(b"more\r")
    window.hear(chat("mine", id=23), chat("later 24", id=24))                     # the same words of another are another's
    assert said_rows(window) == ["ann: mine (there)", "bob: later 21", "bob: later 22", "bob: mine", "bob: later 24",
                                 "ann: more (sending)"]


@pytest.mark.parametrize("welcome, shown", [
    (Welcome("ann", "s", "e", ("ann", "bob"), 20, resumed=True, got=1, missed=7), "ann: mine (there)"),
    (Welcome("ann", "s", "e", ("ann", "bob"), 20, resumed=True, got=1), "ann: mine (there)"),
    (Welcome("ann", "t", "e", ("ann", "bob"), 20), "ann: mine"), (Welcome("ann", "t", "f", ("ann", "bob"), 20), "ann: mine")],
    ids=["resumed, missed", "resumed", "new session", "another server"])
def test_window_own_that_is_replayed(window, welcome, shown):
    """Acknowledged, and sent back after the connection broke: it is shown once, at its place in the order."""
    connect(window)
    window.press(b"mine\r")
    window.hear(Ack(1))
    connect(window, welcome, chat("before", id=18), chat("mine", "ann", 19, cid=1), chat("after", id=20), chat("later", id=21))
    assert said_rows(window) == ["bob: before", shown, "bob: after", "bob: later"]


def test_window_reply_after_a_rename(window):
    """Our own private message, heard together with our rename, is none that /reply answers."""
    connect(window)
    window.press(b"/msg ben hi\r/nick zoe\r")
    window.hear(chat("psst", to="ann", id=1), Ack(2), chat("hi", "ann", 2, cid=1, to="ben"), Renamed(3, "ann", "zoe", NOON))
    assert window.client.name == "zoe" and window.last_private == "bob" and window._terminal.shown.bells == 1
    window.press(b"/reply what\r")
    assert [said.to for said in window.client.unsettled.values()] == ["bob"]


@pytest.mark.parametrize("bell", ["mentions", "all"])
def test_window_replay_from_before_a_rename(window, bell):
    """What we said under the name that we had before is ours when it is replayed: no bell, no mention, nobody to reply to."""
    window._arguments.bell = bell
    connect(window)
    window.press(b"/msg bob psst\rI shall be zoe\r/nick zoe\r")
    connect(window, Welcome("zoe", "s", "e", ("zoe", "bob"), 3, resumed=True, got=3), chat("psst", "ann", 1, cid=1, to="bob"),
            chat("I shall be zoe", "ann", 2, cid=2), Renamed(3, "ann", "zoe", NOON))
    assert said_rows(window) == ["ann -> bob: psst (there)", "ann: I shall be zoe (there)"]
    assert window._terminal.shown.bells == 0 and window.last_private == ""
    row, column = window._terminal.shown.find("zoe (there)")
    assert "reverse" not in window._terminal.shown.cell(row, column).style
    window.hear(chat("hi zoe", id=4))
    assert window._terminal.shown.bells == 1
