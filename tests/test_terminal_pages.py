"""Addresses of pages: copied whole, links where the terminal takes them, and nothing that could
pass for another's line; people beside the talk, and the pinned line."""

import pytest

from chat_client import INDENT, Columns, wrap
from chatproto import Motd, Rules, Welcome
from display import chat
from paper import WELCOME

LONG = "https://example.org/" + "abcdefghi/" * 14 + "end"


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_page_is_copied_whole(desk, width):
    """An address longer than a row goes on without blanks in a row that the terminal wraps: what
    is copied is the address in one piece, and so it is after repainting."""
    ann = desk(14, width)
    ann.connect(WELCOME, chat(f"see {LONG}", id=1), chat("after", id=2))
    for _ in range(2):
        assert any(LONG in line for line in ann.shown.copied())
        assert ann.rows()[-1] == "bob: after"
        ann.type("\x0c")
    ann.hear(chat("one more", id=3))
    assert any(LONG in line for line in ann.shown.copied())
    ann.type("/clear\r")
    assert not ann.shown.wrapped


def test_page_is_a_link(desk, monkeypatch):
    """Each row of it is a link to the whole address; not on a terminal that prints links."""
    ann = desk(14, 60)
    ann.connect(WELCOME, chat(f"see {LONG}, http://x.org/a. (http://y.org)", id=1))
    assert {LONG, "http://x.org/a", "http://y.org", ""} == set(ann.shown.links)
    assert not ann.shown.unknown and ann.shown.links[-1] == ""
    monkeypatch.setenv("TERM", "linux")
    bob = desk(14, 60)
    bob.connect(WELCOME, chat(f"see {LONG}", id=1))
    assert bob.shown.links == [] and any(LONG in line for line in bob.shown.copied())


@pytest.mark.parametrize("rest", [" 12:30 eve: forged", "\n12:30 eve: forged", " * eve left",
                                  "\u00e912:30 eve: forged"])
@pytest.mark.parametrize("pad", range(0, 60, 7))
def test_page_forges_no_line(desk, rest, pad):
    """What comes after an address that goes on begins another row, indented: however long the
    address, no row but the first of a message looks like one."""
    ann = desk(24, 60)
    ann.connect(WELCOME, chat(LONG + "x" * pad + rest, "mal", 1), chat("after", id=2))
    shown = ann.shown.lines()
    first = next(row for row, line in enumerate(shown) if " mal: http" in line)
    last = next(row for row, line in enumerate(shown) if " bob: after" in line)
    for line in shown[first + 1:last]:
        assert line.startswith(INDENT) or " " not in line.strip()


def test_page_that_fits_is_moved_whole(desk):
    """An address that fits into a row is not broken."""
    url = "http://example.org/0123456789012345678901234567890123"
    ann = desk(10, 60)
    ann.connect(WELCOME, chat(f"some words before {url} and after it", id=1))
    assert any(url in line for line in ann.shown.lines())


def test_page_in_other_letters_is_text():
    """Only printable ASCII is an address: anything else keeps the indent."""
    rows = wrap([("", "http://\u0430" + "\u0430" * 90)], 40, Columns(), 0, 6)
    assert all(row[:6] == [("", " ", 1)] * 6 for row in rows[1:])


def test_urls(desk):
    """/urls lists the last addresses, each once, bare, one a line."""
    ann = desk(16, 60)
    ann.connect(WELCOME, chat(f"{LONG} and http://x.org/1.", id=1), chat("(http://x.org/2)", id=2),
                chat("again http://x.org/1", id=3))
    ann.type("/clear\r", "/urls\r")
    assert [line for line in ann.shown.copied() if line.startswith("http")] == [
        LONG, "http://x.org/2", "http://x.org/1"]
    empty = desk()
    empty.connect()
    empty.type("/urls\r")
    assert empty.rows()[-1] == "* no addresses of pages"


def test_page_takes_linear_time(desk):
    """The worst text for the search of addresses is shown like any other."""
    ann = desk(24, 60)
    for number, text in enumerate(("http://" * 1170, "http://(" * 1024, "http://" + "(" * 8000)):
        ann.connect(WELCOME, chat(text, id=number + 1))


# --- People beside the talk, the pinned line ---

def test_people(desk):
    """/people shows who is here at the right of a wide window, and takes them away again; in a
    narrow one it says from where on."""
    ann = desk(10, 100)
    ann.connect(WELCOME, chat("word " * 40, id=1))
    ann.type("/people\r")
    assert [ann.shown.line(row)[76:] for row in range(4)] == ["| 3 here", "| ann", "| bob", "| ben"]
    assert all(ann.shown.line(row)[76] == "|" for row in range(8))
    ann.type("/people\r")
    assert "| bob" not in ann.shown.text()
    narrow = desk(10, 60)
    narrow.connect()
    narrow.type("/people\r")
    assert "100 columns or more" in narrow.rows()[-1] and "| bob" not in narrow.shown.text()


def test_people_many(desk):
    """Of more than there are rows it says how many more; joins are seen at once."""
    ann = desk(10, 120)
    ann.connect(Welcome("ann", "s", "e", tuple(f"p{number}" for number in range(40)), 0))
    ann.type("/people\r")
    assert ann.shown.line(7)[96:] == "| and 34 more"


def test_pinned(desk):
    """The message of the day stays in one row on top, and in none below 10 rows."""
    ann = desk(10, 60)
    ann.connect(Welcome("ann", "s", "e", ("ann",), 0, motd="exam at 9\u202e\nroom 7"))
    assert ann.shown.line(0) == "exam at 9\\u202e (more: /motd)"
    ann.hear(*(chat(str(number), id=number) for number in range(1, 30)))
    assert ann.shown.line(0).startswith("exam at 9") and ann.rows()[-1] == "bob: 29"
    ann.hear(Motd(30, "over"))
    assert ann.shown.line(0) == "over" and ann.rows()[-1] == "* over"
    ann.hear(Motd(31))
    assert "bob" in ann.shown.line(0) and ann.rows()[-1] == "* there is no message of the day"
    small = desk(9, 60)
    small.connect(Welcome("ann", "s", "e", ("ann",), 0, motd="exam at 9"))
    assert small.shown.line(0) == ""


def test_rules(desk):
    """What holds in the room is said in our words."""
    ann = desk(10, 90)
    ann.connect()
    ann.hear(Rules(1, "host", False, 5, "Ms Lee"))
    assert ann.rows()[-1] == ("* only Ms Lee may speak, private messages are off, "
                              "one message every 5 s")
    ann.hear(Rules(2))
    assert ann.rows()[-1] == "* everybody may speak"
    ann.hear(Rules(3, files=1_000))
    assert ann.rows()[-1] == "* everybody may speak, files may be sent"
    ann.hear(Rules(4, files=2_000))
    ann.hear(Rules(5))
    assert ann.rows()[-1] == "* everybody may speak, no files"
    assert len([row for row in ann.rows() if "everybody" in row]) == 3


def test_rules_on_coming_in(desk):
    """Where files alone are out of the ordinary nothing is said."""
    ann = desk(10, 90)
    ann.connect()
    before = ann.rows()
    ann.hear(Rules(1, files=1_000))
    assert ann.rows() == before
