"""The line that is typed: what bytes are which keys, and what each key does to it."""

import random

import pytest

from chat_client import Editor, Key, Keys
from chatproto import MAX_TEXT
from display import (ACUTE, CJK, COOK, FRANCE, HEART, KEYCAP, KOREAN, PIECES, THUMB, boundaries,
                     editor_of, enter, marked, press, pressed)


# --- Keys ---

SEQUENCES = [
    (b"\x1b[A", "up"), (b"\x1b[B", "down"), (b"\x1b[C", "right"), (b"\x1b[D", "left"),
    (b"\x1b[H", "home"), (b"\x1b[F", "end"),
    (b"\x1bOA", "up"), (b"\x1bOB", "down"), (b"\x1bOC", "right"), (b"\x1bOD", "left"),
    (b"\x1bOH", "home"), (b"\x1bOF", "end"),
    (b"\x1b[1~", "home"), (b"\x1b[4~", "end"), (b"\x1b[7~", "home"), (b"\x1b[8~", "end"),
    (b"\x1b[3~", "delete"),
    (b"\x1b[5~", "page-up"), (b"\x1b[6~", "page-down"), (b"\x1bOM", "enter"), (b"\r", "enter"),
    (b"\n", "enter"),
    (b"\t", "tab"), (b"\x7f", "backspace"), (b"\x08", "backspace"), (b"\x01", "ctrl-a"),
    (b"\x03", "ctrl-c"),
    (b"\x04", "ctrl-d"), (b"\x05", "ctrl-e"), (b"\x0b", "ctrl-k"), (b"\x0c", "ctrl-l"),
    (b"\x15", "ctrl-u"),
    (b"\x17", "ctrl-w"), (b"\x19", "ctrl-y"), (b"\x1a", "ctrl-z"), (b"\x1bb", "alt-b"),
    (b"\x1bf", "alt-f"),
    (b"\x1bB", "alt-b"), (b"\x1bd", "alt-d"), (b"\x1b\x7f", "alt-backspace"),
    (b"\x1b\x08", "alt-backspace"),
    (b"\x1b[1;5C", "word-right"), (b"\x1b[1;5D", "word-left"), (b"\x1b[1;3C", "word-right"),
    (b"\x1b[1;3D", "word-left"),
    (b"\x1b[1;6D", "word-left"), (b"\x1bOc", "word-right"), (b"\x1bOd", "word-left"),
    (b"\x1b[1;2C", "right"),
    (b"\x1b[1;2A", "up"), (b"\x1b[1;5A", "up"), (b"\x1b[1;5H", "home"), (b"\x1b[5;2~", "page-up"),
    (b"\x1b[6;5~", "page-down"),
    (b"\x1b[3;2~", "delete"), (b"\x1b[3;3~", "alt-d"), (b"\x1b[3;5~", "alt-d"),
    (b"\x1b\x1b[D", "left"),
    (b"\x1b\r", "newline"), (b"\x1b\n", "newline"), (b"\x1b[13;2u", "newline"),
    (b"\x1b[27;2;13~", "newline"),
]
MEANINGLESS = [b"\x1b[2~", b"\x1b[11~", b"\x1bOP", b"\x1b[[A", b"\x1b[[E", b"\x1b[Z",
               b"\x1b[200m", b"\x1b[?6;2n", b"\x1b[<0;1;1m", b"\x1b[201~", b"\x1b[999~",
               b"\x1b[1;5P", b"\x1b[27;5;9~", b"\x1b[1 q"]


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
    """A sequence that means nothing here is no key and no text, and takes nothing of what comes
    after it."""
    for at in range(len(data)):
        assert pressed(b"a" + data[:at],
                       data[at:] + b"b\r") == [Key("text", "ab"), Key("enter")] or at == 0
    assert pressed(data + b"\x1b[A") == [Key("up")]


@pytest.mark.parametrize("answer, column",
                         [(b"\x1b[1;1R", "1"), (b"\x1b[24;80R", "80"), (b"\x1b[3;120R", "120")])
def test_keys_cursor_answer(answer, column):
    """The terminal's answer where the cursor is comes with its column, also amid what is typed."""
    for at in range(len(answer)):
        assert pressed(b"a" + answer[:at],
                       answer[at:] + b"b") == [Key("text", "a"), Key("cursor", column),
                                               Key("text", "b")]


@pytest.mark.parametrize("text",
                         ["\u00e9", CJK, COOK, FRANCE, "a" + ACUTE + "\U0001f600z", "\u0646\u0651"])
def test_keys_utf8_in_pieces(text):
    """Characters may be cut anywhere."""
    data = text.encode()
    for at in range(1, len(data)):
        assert pressed(data[:at], data[at:]) == [Key("text", text)]
    assert pressed(*(bytes([byte]) for byte in data)) == [Key("text", text)]


@pytest.mark.parametrize("data, text", [
    (b"a\xffb", "a\ufffdb"), (b"\xe4\xb8a", "\ufffda"), (b"\xc3(", "\ufffd("),
    (b"\xed\xa0\x80x", "\ufffd\ufffd\ufffdx"),
    (b"\xf8\x88x", "\ufffd\ufffdx"), (b"\x80", "\ufffd"),
])
def test_keys_invalid_utf8(data, text):
    """What is no UTF-8 is U+FFFD, however it is cut."""
    for at in range(len(data)):
        assert pressed(data[:at], data[at:]) == [Key("text", text)]


@pytest.mark.parametrize("after, name",
                         [(b"\r", "enter"), (b"\x1b[D", "left"), (b"\x7f", "backspace")])
def test_keys_unfinished_utf8_before_a_key(after, name):
    """A character that is never finished spoils neither the key nor the text after it."""
    for pieces in ([b"\xe4\xb8" + after + b"ab"], [b"\xe4\xb8", after, b"ab"],
                   [b"\xe4", b"\xb8" + after, b"ab"]):
        keys = pressed(*pieces)
        assert [key for key in keys
                if key != Key("text", "\ufffd")] == [Key(name), Key("text", "ab")]


def test_keys_eight_bit_controls():
    """The controls from U+0080 to U+009F are not typed: their text is without them."""
    assert pressed("a\x85c".encode()) == [Key("text", "ac")]
    editor = editor_of("killed|")
    press(editor, "ctrl-u")
    for key in Keys().feed("\x85".encode()):
        editor.press(key)
    assert editor.text == ""


@pytest.mark.parametrize("pasted, text", [
    (b"hello", "hello"), (b"", ""), (b"a\rb", "a\nb"), (b"a\r\nb\r\n", "a\nb\n"), (b"a\nb", "a\nb"),
    (b"a\r\r\nb", "a\n\nb"),
    (b"\x1b[31mred\x1b[0m", "red"), (b"\x1b]0;title\x07x", "x"), (b"a\x1b[Db", "ab"),
    (b"tab\tbell\x07", "tab\tbell"),
    (b"\x1b[200~twice", "twice"), (b"\x1b[201x", ""), (b"a\x1b[20", "a"), (b"a\x03\x04b", "ab"),
    ("\u4e2d \U0001f469\u200d\U0001f373".encode(), "\u4e2d \U0001f469\u200d\U0001f373"),
    (b"\xff\xe4\xb8", "\ufffd\ufffd"),
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
    ([b"\x1b"], []), ([b"\x1b", b"b"], ["alt-b"]), ([b"\x1b", b"\x1b"], []),
    ([b"\x1b", b"\x1b[A"], ["up"]),
    ([b"\x1b", b"\x1b", b"\x1b[", b"A"], ["up"]), ([b"\x1b", b"\x1b", b"f"], ["alt-f"]),
    ([b"\x1b", b"\r"], ["newline"]),
    ([b"\x1b", b"\x03"], ["ctrl-c"]), ([b"\x1b", b"\x04"], ["ctrl-d"]),
])
def test_keys_escape_alone(pieces, names):
    """Esc waits for what comes next, and never takes an interrupt or a sequence with it."""
    assert [key.name for key in pressed(*pieces)] == names


@pytest.mark.parametrize("char", ["\u00e9", "\u4e2d", "\U0001f600"])
def test_keys_escape_before_a_character(char):
    """Esc before a character of several bytes does not tear it apart."""
    for pieces in ([b"\x1b" + char.encode()], [b"\x1b", char.encode()],
                   [b"\x1b" + char.encode()[:1], char.encode()[1:]]):
        assert "\ufffd" not in "".join(key.text for key in pressed(*pieces, b"x"))
        assert pressed(*pieces, b"x")[-1].text.endswith("x")


@pytest.mark.parametrize("beginning",
                         [b"\x1bP", b"\x1b]", b"\x1bX", b"\x1b^", b"\x1b_", b"\x1b[", b"\x1bO"])
def test_keys_escape_before_a_string(beginning):
    """Esc and then P (or any other letter that begins a sequence) does not make the keyboard dead:
    Enter and Ctrl-C work."""
    names = [key.name for key in pressed(beginning, b"lease\r", b"\x03")]
    assert names[-2:] == ["enter", "ctrl-c"]


def test_keys_endless_sequence():
    """A sequence that does not end is given up."""
    assert pressed(b"\x1b[" + b"1;" * Keys.LONGEST, b"\r")[-1] == Key("enter")
    assert pressed(b"\x1b]" + b"x" * Keys.LONGEST, b"\r")[-1] == Key("enter")


def test_keys_garbage():
    """Random bytes raise nothing, keep little, and are the same keys in whatever pieces they
    come."""
    random_ = random.Random(1)
    bits = [b"\x1b", b"\x1b[", b"\x1bO", b"\x1b]", b"[", b"1", b";", b"5", b"~", b"A", b"u", b"R",
            b"\x1b[20", b"\x1b[201~",
            b"a", "\u4e2d".encode(), b" ", b"\r", b"\x07", b"\x1b\\", b"\x7f", b"\x00", b"\x1f",
            b"$", b"<"]
    for number in range(300):
        data = b"".join(random_.choices(bits, k=random_.randint(1, 30)))
        cuts = sorted(random_.choices(range(len(data) + 1), k=4))
        whole = pressed(data)
        assert pressed(*(data[at:end] for at,
                         end in zip([0, *cuts], [*cuts, len(data)]))) == whole, (number, data)
        assert all("\x1b" not in key.text for key in whole)


# --- The editor ---

@pytest.mark.parametrize("before, name, after", [
    ("ab|c", "left", "a|bc"), ("|abc", "left", "|abc"), ("a|bc", "ctrl-b", "|abc"),
    ("a|bc", "right", "ab|c"),
    ("abc|", "right", "abc|"), ("a|bc", "ctrl-f", "ab|c"), ("a\n|b", "left", "a|\nb"),
    ("a|\nb", "right", "a\n|b"),
    ("ab|c", "home", "|abc"), ("ab|c", "ctrl-a", "|abc"), ("a|bc", "end", "abc|"),
    ("a|bc", "ctrl-e", "abc|"),
    ("ab\ncd|e\nf", "home", "ab\n|cde\nf"), ("ab\nc|de\nf", "end", "ab\ncde|\nf"),
    ("ab|c", "backspace", "a|c"), ("|abc", "backspace", "|abc"), ("a\n|b", "backspace", "a|b"),
    ("a|bc", "delete", "a|c"), ("abc|", "delete", "abc|"), ("a|\nb", "delete", "a|b"),
    ("a|bc", "ctrl-d", "a|c"),
    ("one two|", "word-left", "one |two"), ("one |two", "word-left", "|one two"),
    ("one, tw|o", "alt-b", "one, |two"),
    ("|one two", "word-right", "one| two"), ("one| two", "alt-f", "one two|"),
    ("one two|", "word-right", "one two|"),
    ("one t|wo", "ctrl-u", "|wo"), ("a\nbc|d", "ctrl-u", "a\n|d"), ("|ab", "ctrl-u", "|ab"),
    ("on|e two", "ctrl-k", "on|"), ("a|b\ncd", "ctrl-k", "a|\ncd"), ("ab|", "ctrl-k", "ab|"),
    ("one a.b|", "ctrl-w", "one |"), ("one two  |", "ctrl-w", "one |"),
    ("one t|wo", "ctrl-w", "one |wo"),
    ("one a.b|", "alt-backspace", "one a.|"), ("one| two x", "alt-d", "one| x"),
    ("a|b", "newline", "a\n|b"),
    (f"a{COOK}|b", "left", f"a|{COOK}b"), (f"a|{COOK}b", "right", f"a{COOK}|b"),
    (f"a{COOK}|b", "backspace", "a|b"),
    (f"a|{COOK}b", "delete", "a|b"), (f"{FRANCE}{FRANCE}|", "backspace", f"{FRANCE}|"),
    (f"{ACUTE}|", "left", f"|{ACUTE}"),
    (f"{THUMB}{HEART}|", "left", f"{THUMB}|{HEART}"), (f"|{THUMB}{HEART}", "delete", f"|{HEART}"),
    (f"{CJK}|", "backspace", f"{CJK[0]}|"), (f"|{KOREAN}x", "right", f"{KOREAN}|x"),
    (f"|{KEYCAP}x", "right", f"{KEYCAP}|x"),
])
def test_editor_key(before, name, after):
    """Each key does to the line what its name says, by what a reader takes for characters."""
    editor = editor_of(before)
    assert press(editor, name) == after


def test_editor_text():
    """Text goes in at the cursor; a key that means nothing is told."""
    editor = editor_of("ab|c")
    assert editor.press(Key("text", CJK)) and marked(editor) == f"ab{CJK}|c"
    assert not editor.press(Key("ctrl-q")) and not editor.press(Key("alt-x"))
    assert marked(editor) == f"ab{CJK}|c"


def test_editor_kill_and_yank():
    """Ctrl-Y brings back what was killed last: by U, W, K, word keys, and by clearing the line."""
    for before, name, killed in [("one two|", "ctrl-u", "one two"), ("one two|", "ctrl-w", "two"),
                                 ("|one two", "ctrl-k", "one two"),
                                 ("one two|", "alt-backspace", "two"),
                                 ("|one two", "alt-d", "one")]:
        editor = editor_of(before)
        press(editor, name, "end")
        text = editor.text
        assert press(editor, "ctrl-y", "ctrl-y") == text + 2 * killed + "|"
    editor = editor_of("on|e")
    editor.clear()
    assert marked(editor) == "|" and press(editor, "ctrl-u", "ctrl-k", "ctrl-y") == "one|"
    assert press(Editor(), "ctrl-y") == "|"


def test_editor_lines():
    """Up and Down move in a text of several lines, to the same column where there is one and never
    into a cluster."""
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
    assert editor.take() == "two" and press(editor, "up") == "two|"
    assert press(editor, "up") == "three|"


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
    assert press(editor, *["up"] * 150) == "line 5|"
    assert press(editor, *["down"] * 99) == "line 104|"


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
    ("b|", ["bob: |", "ben: |", "b|", "bob: |"]),
    ("hi b|", ["hi bob |", "hi ben |", "hi b|", "hi bob |"]),
    ("a|", ["Ann: |", "a|", "Ann: |"]), ("x|", ["x|", "x|"]),
    ("|", ["bob: |", "ben: |", "Ann: |", "bob: |"]),
    ("/m|", ["/me |", "/msg |", "/m|", "/me |"]), ("hi /m|", ["hi /m|"]),
    ("b| there", ["bob: | there", "ben: | there"]),
    ("one\nb|\ntwo", ["one\nbob |\ntwo", "one\nben |\ntwo"]), (" b|", [" bob: |", " ben: |"]),
    ("/msg b|", ["/msg bob |"]),
])
def test_editor_completion(before, shown):
    """Tab completes the word before the cursor, the next Tab tries the next one and at the end what
    was typed."""
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
    (f"|caf{ACUTE} x", ["word-right"]), (f"x caf{ACUTE}|", ["word-left"]),
    (f"|{KEYCAP} x", ["word-right"]),
    ("a\n|\u0301b", ["backspace"]), ("a|\n\u0301b", ["delete"]),
    ("|e" + "\u0301" * 100 + "x", ["right"]),
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
    assert press(editor_of(f"|caf{ACUTE} x"), "alt-d") == "| x"
    assert press(editor_of(f"x {ACUTE}a|"), "alt-backspace") == "x |"


def test_editor_cursor_random():
    """Whatever keys are pressed: the cursor is between two clusters, the text within its bound."""
    random_ = random.Random(2)
    names = [*Editor._MOVES, *Editor._DELETES, *Editor._KILLS, *Editor._LINES, "newline", "ctrl-y",
             "tab", "take"]
    for number in range(60):
        editor, done = Editor(), []
        for _ in range(60):
            name = random_.choice(names) if random_.random() < 0.6 else random_.choice(
                [*PIECES, KEYCAP])
            done.append(name)
            if name == "tab":
                editor.complete(offers)
            elif name == "take":
                editor.take()
            elif not editor.press(Key(name)):
                editor.press(Key("text", name))
            assert editor.cursor in boundaries(editor.text), (number, done[-2:], marked(editor))
