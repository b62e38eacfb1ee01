"""People, not names: whom a reply goes to, who is ignored, when our name is said; and nothing is
said to all that was a command."""

import pytest

from chat_client import mentions
from chatproto import Ack, Heard, Joined, Left, Renamed, Welcome
from display import NOON, chat
from paper import WELCOME


def test_reply_follows_the_person(desk):
    """Who wrote has another name, and somebody else has theirs: the answer goes to who wrote."""
    ann = desk()
    ann.connect()
    ann.hear(chat("your number?", "bob", 1, to="ann"), Renamed(2, "bob", "bob-afk", NOON),
             Joined(3, "bob", NOON))
    ann.type("/reply my number is 7\r")
    assert ann.said() == [("my number is 7", "bob-afk")]


def test_reply_to_who_has_left(desk):
    """Who wrote has left, and somebody else came under that name: nothing is sent, as is said."""
    ann = desk()
    ann.connect()
    ann.hear(chat("psst", "bob", 1, to="ann"), Left(2, "bob", NOON, "quit"), Joined(3, "bob", NOON))
    ann.type("/r my number is 7\r")
    assert ann.said() == [] and ann.rows()[-1] == "! bob has left: not sent"


@pytest.mark.parametrize("welcome, goes", [
    (Welcome("ann", "s", "e", ("ann", "bob"), 1, resumed=True), True),
    (Welcome("ann", "s", "e", ("ann", "bob"), 9, resumed=True, missed=3), False),
    (Welcome("ann", "t", "e", ("ann", "bob"), 1), False)])
def test_reply_after_a_break(desk, welcome, goes):
    """Where something was missed nobody knows who has that name: nothing is sent."""
    ann = desk()
    ann.connect()
    ann.hear(chat("psst", "bob", 1, to="ann"))
    ann.connect(welcome)
    ann.type("/r hi\r")
    assert ann.said() == [("hi", "bob")] * goes
    assert goes or "! not sent, bob may be" in " ".join(ann.rows())


def test_reply_to_what_was_not_shown(desk):
    """Neither who is ignored nor history is who wrote last."""
    ann = desk()
    ann.connect(Welcome("ann", "s", "e", ("ann", "bob", "ben"), 5),
                chat("old", "ben", 3, to="ann"))
    ann.type("/ignore bob\r")
    ann.hear(chat("psst", "bob", 7, to="ann"))
    ann.type("/r hi\r")
    assert ann.said() == [] and ann.rows()[-1] == "! nobody has written to you privately"


def test_ignore_follows_the_person(desk):
    """Under another name it is the same person; whoever takes the old one is not; when that
    session ends, the name that was given holds again."""
    ann = desk()
    ann.connect()
    ann.type("/ignore bob\r")
    ann.hear(chat("1", "bob", 1), Renamed(2, "bob", "rob", NOON), chat("2", "rob", 3),
             Joined(4, "bob", NOON), chat("3", "bob", 5))
    assert [row for row in ann.rows() if ":" in row] == ["* ignored: bob", "bob: 3"]
    ann.type("/ignore\r")
    assert ann.rows()[-1] == "* ignored: bob (now rob)"
    ann.hear(Left(6, "rob", NOON, "quit"), Joined(7, "rob", NOON), chat("4", "rob", 8),
             chat("5", "bob", 9))
    assert ann.rows()[-1] == "rob: 4"
    ann.hear(Renamed(10, "bob", "rob-2", NOON))
    ann.type("/unignore rob-2\r")
    ann.hear(chat("6", "rob-2", 11))
    assert ann.rows()[-2:] == ["* ignored: nobody", "rob-2: 6"]


@pytest.mark.parametrize("line, said", [
    (" /msg bob secret", [("secret", "bob")]), ("\t/MSG bob secret", [("secret", "bob")]),
    ("/Msg @bob secret", [("secret", "bob")]), ("\u3000/msg bob secret", [("secret", "bob")]),
    ("\uff0fmsg bob secret", [("secret", "bob")]), ("/W  bob  two  words", [("two  words", "bob")]),
    ("/Me waves", [("/me waves", None)]), (" /me  waves", [("/me waves", None)]),
    (" /usr/bin is full", [(" /usr/bin is full", None)]), ("//msg bob x", [("/msg bob x", None)]),
    ("see /msg bob x", [("see /msg bob x", None)]), ("/mgs bob secret", [])])
def test_command_is_not_said(desk, line, said):
    """A line whose first word is a command is that command, in whatever case, after blanks, in
    the width of an East Asian keyboard; an unknown one at the start goes nowhere."""
    ann = desk()
    ann.connect()
    ann.window.commands.run(line)
    assert ann.said() == said


def test_command_with_lines(desk):
    """A message of several lines to one is to one, wherever its lines begin."""
    ann = desk()
    ann.connect()
    for line in ("/msg bob\none\ntwo", "\n/msg bob one\ntwo"):
        ann.window.commands.run(line)
    assert ann.said() == [("one\ntwo", "bob")] * 2


@pytest.mark.parametrize("text, name, found", [
    ("hi ann", "ann", ["ann"]), ("ANN: lunch?", "ann", ["ANN"]), ("@ann,", "ann", ["ann"]),
    ("(ann)", "ann", ["ann"]), ("ann's", "ann", ["ann"]), ("hi ann.", "ann", ["ann"]),
    ("bob/ann: lunch?", "ann", ["ann"]), ("ann/bob", "ann", ["ann"]), ("ann--ben", "ann", ["ann"]),
    ("ann-2: lunch?", "ann", []), ("ann.smith", "ann", []), ("x.ann", "ann", []),
    ("joann annie _ann ann_", "ann", []), ("ann@host", "ann", []), ("joe@ann", "ann", []),
    ("http://host/ann/x", "ann", []), ("see www.x.org/ann", "ann", []), ("/home/ann", "ann", []),
    ("src/ann/x", "ann", []), ("http://x/ann ann", "ann", ["ann"]),
    ("ann-2 here", "ann-2", ["ann-2"]), ("ann", "ann-2", []),
    ("\u4f60\u597d\u5c0f\u660e\u5728\u5417", "\u5c0f\u660e", ["\u5c0f\u660e"]),
    ("\u4f60\u597dann\u5728\u5417", "ann", ["ann"]),
    ("\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e2a\u0e21\u0e0a\u0e32\u0e22\u0e04\u0e23\u0e31\u0e1a",
     "\u0e2a\u0e21\u0e0a\u0e32\u0e22", ["\u0e2a\u0e21\u0e0a\u0e32\u0e22"]),
    ("hi Rene\u0301!", "ren\u00e9", ["Rene\u0301"]), ("hi Ren\u00e9!", "rene\u0301", ["Ren\u00e9"]),
    ("rene\u0301", "rene", []), ("\uff41\uff4e\uff4e", "ann", ["\uff41\uff4e\uff4e"]),
    ("STRASSE", "stra\u00dfe", ["STRASSE"]), ("", "ann", [])])
def test_mentions(text, name, found):
    """A mention is the whole name, in any case, width and normal form, and not in an address; in
    scripts without spaces it is found within a text."""
    assert [text[start:end] for start, end in mentions(text, name)] == found


def test_mentions_take_linear_time():
    """Nothing that a peer can say is looked at again and again: all of the worst in one go."""
    for text in ("ann " * 2048, "a.b-" * 2048, "ann-" * 2048, "/" * 8192, "www." * 2048 + "ann",
                 "a\u0301" * 4096 + "ann", "http://" * 1170 + " ann"):
        mentions(text, "ann")


def test_private_message_is_heard_not_by_all(desk):
    """A private message of one's own never reads as if all had heard it."""
    ann = desk()
    ann.connect()
    ann.type("/msg bob psst\r", "to all\r")
    ann.hear(Ack(2), chat("psst", "ann", 1, cid=1, to="bob"), chat("to all", "ann", 2, cid=2),
             Heard(1, 1, 1), Heard(2, 2, 2))
    assert ann.rows()[-2:] == ["ann -> bob: psst (heard)", "ann: to all (heard by all)"]


def test_at_completes(desk):
    """A name completes after an @ as well, which stays."""
    ann = desk()
    ann.connect(WELCOME, chat("hi", "bob", 1))
    ann.type("see @b", "\t")
    assert ann.typed == "see @bob "
    ann.type("\x03", "@be", "\t")
    assert ann.typed == "@ben: "
