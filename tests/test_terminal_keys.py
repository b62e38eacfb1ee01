"""Keys as terminals send them: what other programs left on, and what a terminal answers unasked,
presses nothing; keys that come as numbers are the keys that they stand for."""

import pytest

from chat_client import Columns, Key, Keys, clusters
from display import pressed

SWALLOWED = {
    "a click (X10)": b"\x1b[M !!", "a click far right": b"\x1b[M#\xff\xf0",
    "a click (SGR)": b"\x1b[<0;12;7M", "its end": b"\x1b[<0;12;7m", "a drag": b"\x1b[<32;1;1M",
    "a click (urxvt)": b"\x1b[32;12;7M", "device attributes": b"\x1b[?62;22c",
    "secondary ones": b"\x1b[>41;370;0c", "status": b"\x1b[0n", "a mode": b"\x1b[?2026;2$y",
    "the size": b"\x1b[8;24;80t", "a colour": b"\x1b]11;rgb:0000/0000/0000\x1b\\",
    "a colour, ended by BEL": b"\x1b]10;rgb:ffff/ffff/ffff\x07",
    "the clipboard": b"\x1b]52;c;aGVsbG8=\x07", "the version": b"\x1bP>|XTerm(370)\x1b\\",
    "a capability": b"\x1bP1+r436f=323536\x1b\\", "a setting": b"\x1bP1$r0m\x1b\\",
    "a picture": b"\x1b_Gi=1;OK\x1b\\", "a released key": b"\x1b[97;1:3u",
    "a released arrow": b"\x1b[1;1:3A", "a modifier alone": b"\x1b[57441;2u",
    "a key of Windows": b"\x1b[65;30;97;1;0;1_",
}
CODED = [
    (b"\x1b[97u", Key("text", "a")), (b"\x1b[97;2u", Key("text", "A")),
    (b"\x1b[97:65;2u", Key("text", "A")), (b"\x1b[49:33;2u", Key("text", "!")),
    (b"\x1b[27;2;65~", Key("text", "A")), (b"\x1b[97;5u", Key("ctrl-a")),
    (b"\x1b[27;5;99~", Key("ctrl-c")), (b"\x1b[98;3u", Key("alt-b")),
    (b"\x1b[13u", Key("enter")), (b"\x1b[13;3u", Key("newline")), (b"\x1b[9u", Key("tab")),
    (b"\x1b[127u", Key("backspace")), (b"\x1b[127;3u", Key("alt-backspace")),
    (b"\x1b[27u", Key("escape")), (b"\x1b[1;1:1A", Key("up")), (b"\x1b[1;5:2D", Key("word-left")),
    (b"\x1b[228u", Key("text", "\u00e4")), (b"\x1b[1;5F", Key("ctrl-end")),
    (b"\x1b[I", Key("focus-in")), (b"\x1b[O", Key("focus-out")), (b"\x1b>", Key("alt->")),
    (b"\x1b[<64;3;4M", Key("wheel-up")), (b"\x1b[<65;3;4M", Key("wheel-down")),
]


@pytest.mark.parametrize("data", SWALLOWED.values(), ids=SWALLOWED)
def test_keys_swallowed(data):
    """It is no key and no text, wherever it is cut, and takes nothing of what comes after it."""
    after = [Key("text", "ab"), Key("enter")]
    for at in range(len(data)):
        assert pressed(b"a" + data[:at], data[at:] + b"b\r") == after or at == 0
    assert pressed(*(bytes([byte]) for byte in b"a" + data + b"b\r")) == after


@pytest.mark.parametrize("data, key", CODED)
def test_keys_coded(data, key):
    """A key that comes as a number, or with a modifier, is the key that was pressed."""
    for at in range(len(data)):
        assert pressed(data[:at], data[at:]) == [key]


def test_keys_half_a_string_does_not_kill_the_keyboard():
    """An answer that breaks off is given up at the next key that is no text."""
    for half in (b"\x1b]11;rgb:00", b"\x1bP>|XTerm", b"\x1b_Gi=1"):
        assert pressed(half, b"\r")[-1] == Key("enter")
        assert pressed(half, b"\x03")[-1] == Key("ctrl-c")
        assert pressed(half, b"\x1b[A")[-1] == Key("up")


def test_keys_escape_is_a_key_when_nothing_follows():
    """Esc waits for what it may begin; when nothing comes it is the key itself, once."""
    keys = Keys()
    assert list(keys.feed(b"\x1b")) == [] and list(keys.feed(b"", True)) == [Key("escape")]
    assert list(keys.feed(b"", True)) == [] and list(keys.feed(b"b")) == [Key("text", "b")]
    assert list(keys.feed(b"\x1b[")) == [] and list(keys.feed(b"", True)) == []
    assert list(keys.feed(b"A")) == [Key("up")]


@pytest.mark.parametrize("data, several", [
    (b"one\rtwo\r", True), (b"one\ntwo", True), (b"a\tb\rc", True), (b"\x1b[31ma\r\nb\r\n", True),
    (b"one\r", False), (b"one\r\n", False), (b"\r\r", False), (b"one", False), (b"\x1b[A", False),
    (b"\x1b[200~one\rtwo\x1b[201~", False), (b"", False)])
def test_keys_several_lines_in_one_read(data, several):
    """Several lines in one read are a paste that nobody marked; one and its Enter are typed."""
    assert Keys.is_paste(data) == several


@pytest.mark.parametrize("text, columns", [
    ("\u0d28\u0d4d\u200d", [1]), ("\u0d15\u0d4d\u200d\u0d37", [1, 1]),
    ("\u0645\u06cc\u200c\u062e", [1, 1, 1]), ("\u09b0\u200d\u09cd\u09af", [1, 1]),
    ("\u05d0\u200f!", [1, 1]), ("\u845b\U000e0100\u98fe", [2, 2]),
    ("\U0001f469\u200d\U0001f373x", [2, 1])])
def test_columns_of_joined_letters(text, columns):
    """What says how letters are written takes no columns, and makes no emoji of them."""
    found = clusters(text)
    assert [Columns().of(cluster) for cluster in found] == columns and "".join(found) == text
