"""The rules for names and texts: what may be said, what a terminal may show of it, and which names
are one."""

import pytest

from chatproto import (FROM_CLIENT, MAX_MARKS, MAX_TEXT, FrameDecoder, ProtocolError, Say,
                       check_name, check_text, clean_text, escape, looks_like, name_key)
from test_chatproto import BAD_NAMES, BAD_TEXTS

# --- Names ---

GOOD_NAMES = ["a", "Ann", "a" * 24, "J\u00fcrgen", "Jose\u0301", "\u041e\u043b\u044c\u0433\u0430",
              "\u0395\u03bb\u03ad\u03bd\u03b7", "\u5c71\u7530\u592a\u90ce",
              "\u3072\u3089\u304c\u306a", "\uae40\ucca0\uc218", "\u0639\u0644\u064a",
              "\u05d3\u05d5\u05d3",
              "\u092a\u094d\u0930\u093f\u092f\u093e", "\u0e2a\u0e21\u0e0a\u0e32\u0e22",
              "\u1208\u121d\u120b", "\u0531\u0580\u0561", "\U00020000", "user_1", "a.b-c",
              "a1234", "\u0627\u0661\u0662\u0663",
              "Ann\u5c71", "servers", "server1", "\u592a\u90ce\u30a2\u30d9", "Kim\uae40",
              "\u3106\u5c71", "a\u30fc\u30a2", "serve", "\uff21\uff4e\uff4e"]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_name_good(name):
    """Letters, marks and digits of any script, and _ - . make a name."""
    assert check_name(name) == name


@pytest.mark.parametrize("name", [name for _, name in BAD_NAMES] + [None, 7, ["Ann"], b"Ann", True],
                         ids=ascii)
def test_name_bad(name):
    """Whatever is empty, too long, invisible, reordering, mixed, the server's own, or no string at
    all is refused."""
    with pytest.raises(ProtocolError) as caught:
        check_name(name)
    assert caught.value.code == "bad-name"


@pytest.mark.parametrize("name, alike", [
    ("server", True), ("SERVER", True), ("s-e-r_v.e.r", True), ("5erver", True), ("s3rv3r", True),
    ("\u0455erver", True), ("\ua731\u1d07\u0280\u1d20\u1d07\u0280", True), ("\uff33erver", True),
    ("servers", False), ("serve", False), ("observer", False), ("servant", False)])
def test_name_that_looks_like_the_servers_own(name, alike):
    """Case, width, small capitals, punctuation and a few letters make no difference."""
    assert looks_like(name, "server") is alike


@pytest.mark.parametrize("one, other",
                         [("Ann", "ann"), ("ANN", "ann"), ("Ann", "\uff21\uff4e\uff4e"),
                          ("stra\u00dfe", "STRASSE"),
                          ("Jos\u00e9", "Jose\u0301"),
                          ("\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2",
                           "\u03a3\u038a\u03a3\u03a5\u03a6\u039f\u03a3"),
                          ("\uff76\uff9e", "\u30ac"), ("\ufb01n", "FIN"), ("K", "\u212a"),
                          ("\u041e\u043b\u044f", "\u043e\u043b\u044f")])
def test_name_key_equal(one, other):
    """Names that differ only in case, width or composition are one name."""
    assert name_key(one) == name_key(other)


@pytest.mark.parametrize("one, other",
                         [("Ann", "Anne"), ("a", "\u0430"), ("o", "0"), ("Jose", "Jos\u00e9"),
                          ("a-b", "a_b"),
                          ("a.b", "ab")])
def test_name_key_different(one, other):
    """Names that differ in a letter are two."""
    assert name_key(one) != name_key(other)


@pytest.mark.parametrize("text", ["x", "x" * MAX_TEXT, "\U0001f600" * MAX_TEXT, "a\n\tb", " ",
                                  "\u202e", "\u2028", "\ufffd"], ids=lambda text: ascii(text)[:20])
def test_text_good(text):
    """One to 8,192 characters, tabs and newlines among them; an astral one counts once, and the
    frame fits its line."""
    assert check_text(text) == text
    assert list(FrameDecoder(FROM_CLIENT).feed(Say(1, text).encode())) == [Say(1, text)]


@pytest.mark.parametrize("text", [text for _, text in BAD_TEXTS] + [None, 7, ["x"]],
                         ids=lambda text: ascii(text)[:40])
def test_text_bad(text):
    """Whatever else is refused as bad-text."""
    with pytest.raises(ProtocolError) as caught:
        check_text(text)
    assert caught.value.code == "bad-text"


@pytest.mark.parametrize("raw, clean", [
    ("plain \u00e4 \U0001f600", "plain \u00e4 \U0001f600"), ("\x1b[31mred\x1b[0m", "red"),
    ("\x1b[1;38;5;208mbold\x1b[m", "bold"),
    ("\x1b[2K\x1b[1Gdone", "done"), ("\x1b[?25lx\x1b[?25h", "x"), ("\x1b]0;title\x07text", "text"),
    ("\x1b]0;title\x1b\\text", "text"),
    ("\x1b]8;;http://a/\x1b\\link\x1b]8;;\x1b\\", "link"), ("\x1bPdcs\x1b\\x", "x"),
    ("\x1b(Bx\x1b=y\x1bMz", "xyz"),
    ("a\r\nb\r\n", "a\nb\n"),
    ("10%\r20%", "10%20%"), ("a\x00b\x07c\x08d\x7f", "abcd"), ("tab\tnew\n", "tab\tnew\n"),
    ("a\ud800b", "a\ufffdb"),
    ("\udcff", "\ufffd"),
    ("a\x85b", "ab"), ("\x1b", ""), ("\x1b\x1b[31mx", "x"), ("", ""),
])
def test_clean_text(raw, clean):
    """A coloured build log becomes its plain text."""
    assert clean_text(raw) == clean


@pytest.mark.parametrize("raw", [text for _, text in BAD_TEXTS if text][1:]
                         + ["\x1b[31m\x1b]0;t\x07ok\r\n\ud800\udc00\x9b",
"\x1b[\x1b[31m31mx"], ids=ascii)
def test_clean_text_may_be_said(raw):
    """What was cleaned is accepted, and cleaning it again changes nothing."""
    clean = clean_text("x" + raw)
    assert check_text(clean) == clean_text(clean) == clean


@pytest.mark.parametrize("raw, shown", [
    ("plain ASCII ~", "plain ASCII ~"), ("\u00e4 \u5c71 \u0639", "\u00e4 \u5c71 \u0639"),
    ("\x1b[31mred", "\\x1b[31mred"),
    ("\x1b]0;t\x07", "\\x1b]0;t\\x07"), ("a\rb", "a\\rb"),
    ("a\nb", "a\\nb"), ("a\tb", "a\\tb"), ("\u202egnp", "\\u202egnp"), ("a\u200bb", "a\\u200bb"),
    ("\u2066x\u2069", "\u2066x\u2069"), ("\u2028", "\\u2028"),
    ("\ufeff", "\\ufeff"), ("\x9b31m", "\\x9b31m"), ("\x7f", "\\x7f"), ("\ud800", "\\ud800"),
    ("\U000e0041", "\\U000e0041"),
    ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"), ("\u2764\ufe0f", "\u2764\ufe0f"),
    ("a\u00a0b\u3000c", "a\u00a0b\u3000c"), ("", ""),
    # Marks: as many as any script needs, not so many that they cover other lines.
    ("e\u0301", "e\u0301"), ("o" + "\u0301" * MAX_MARKS + "k", "o" + "\u0301" * MAX_MARKS + "k"),
    ("Z" + "\u0335" * (MAX_MARKS + 2) + "y\u0301",
     "Z" + "\u0335" * MAX_MARKS + "\\u0335" * 2 + "y\u0301"),
    ("x" + "\u0301\u20dd" * MAX_MARKS,
     "x" + "\u0301\u20dd" * (MAX_MARKS // 2) + "\\u0301\\u20dd" * (MAX_MARKS // 2)),
    ("\u0915\u094d\u0937\u093f", "\u0915\u094d\u0937\u093f"),
    ("\u05e9\u05c1\u05bc\u05b8", "\u05e9\u05c1\u05bc\u05b8"),
    # What varies or joins emoji shows only at emoji.
    ("\u2764\ufe0f\ufe0f\ufe0f", "\u2764\ufe0f\\ufe0f\\ufe0f"), ("\ufe0f", "\\ufe0f"),
    ("a\ufe0fb\ufe0e", "a\\ufe0fb\\ufe0e"),
    ("\xb7\u200d\xb7", "\xb7\\u200d\xb7"), ("a\u200db", "a\\u200db"), ("\u200d", "\\u200d"),
    ("\u2764\u200d", "\u2764\\u200d"), ("\u2764\u200d\u200d\u2764", "\u2764\\u200d\\u200d\u2764"),
    *[(emoji, emoji) for emoji in [
        "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308",
        "\U0001f469\U0001f3fd\u200d\U0001f680",
        "\U0001f937\U0001f3fb\u200d\u2642\ufe0f", "\u2764\ufe0f\u200d\U0001f525",
        "\U0001f441\ufe0f\u200d\U0001f5e8\ufe0f",
        "\U0001f3c3\u200d\u27a1\ufe0f", "\U0001f1eb\U0001f1f7",
        "\u2194\ufe0f \u203c\ufe0f \u2049\ufe0f",
        "\u2139\ufe0f \xa9\ufe0f \u2600\ufe0e",
        "1\ufe0f\u20e3", "#\ufe0f\u20e3*\ufe0f\u20e3"]],
    # Hangul: a syllable of jamo is one, a vowel or final of its own is nothing to see.
    ("\u1112\u1161\u11ab\u1100\u1173\u11af", "\u1112\u1161\u11ab\u1100\u1173\u11af"),
    ("\ud55c\uae00", "\ud55c\uae00"),
    ("\u1161", "\\u1161"), ("a\u1161b", "a\\u1161b"), ("\u1160", "\\u1160"),
])
def test_escape(raw, shown):
    """What moves, hides or reorders is shown as an escape; letters of any script and emoji stay."""
    assert escape(raw) == shown


@pytest.mark.parametrize("text", [
    # Persian with ZWNJ, and behind a mark; Malayalam, Bengali and Sinhala with ZWJ.
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0628\u064e\u200c\u0628",
    "\u0d28\u0d4d\u200d\u0d28", "\u09b0\u09cd\u200d\u09af", "\u0dc1\u0dca\u200d\u0dbb",
    # Marks of direction in Hebrew and Arabic, and isolates that end.
    "\u05e9\u05dc\u05d5\u05dd\u200f!", "\u05d0\u200e 1", "\u0628\u061c.",
    "hi \u2068\u05d3\u05d5\u05d3\u2069: ok", "\u2067\u05d0\u2069", "\u2068a\u2069\u2068b\u2069",
    # Ideographs, and letters of Mongolian, with the selector of their form.
    "\u845b\U000e0100", "\u795e\ufe00", "\u1820\u180b"])
def test_escape_leaves_what_readers_need(text):
    """Joiners between letters that join, marks of direction in right-to-left text, isolates that
    end, and variation selectors behind what they vary are text like any other."""
    assert escape(text) == text


@pytest.mark.parametrize("raw, shown", [
    ("a\u200cb", "a\\u200cb"), ("\u0628\u200c", "\u0628\\u200c"),
    ("\u200c\u0628", "\\u200c\u0628"),
    ("\u0628\u200c\u200c\u0628", "\u0628\\u200c\\u200c\u0628"),
    ("\u05d0\u202e\u05d1", "\u05d0\\u202e\u05d1"),
    ("a\u200fb", "a\\u200fb"), ("\u05d0\u200f\u200f", "\u05d0\u200f\\u200f"),
    ("\u2068a", "\\u2068a"), ("a\u2069", "a\\u2069"),
    ("\u2066\u2067x\u2069", "\\u2066\u2067x\u2069"),
    ("\u202aa\u202c", "\\u202aa\\u202c"), ("a\ufe00", "a\\ufe00"),
    ("\U000e0100", "\\U000e0100"), ("\u3164", "\\u3164"), ("\u2060", "\\u2060"),
    ("\u00ad", "\\xad")])
def test_escape_shows_what_hides_or_forges(raw, shown):
    """The same characters where nobody needs them, and overrides and isolates without an end."""
    assert escape(raw) == shown
