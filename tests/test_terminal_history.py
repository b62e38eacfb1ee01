"""History in its place, what one had not read, what comes together, what is found."""

import pytest

from chat_client import Scrollback
from chatproto import Ack, Joined, Left, Removed, Welcome
from display import NOON, chat
from paper import WELCOME

DAY = 86_400
PAGE_UP, PAGE_DOWN, CTRL_END, UP, DOWN = "\x1b[5~", "\x1b[6~", "\x1b[1;5F", "\x1b[A", "\x1b[B"


def numbers(desk):
    """What bob said, of the rows that are shown."""
    return [row[5:] for row in desk.rows() if row.startswith("bob: ")]


def chats(first, last, at=NOON):
    return [chat(str(number), id=number, at=at) for number in range(first, last)]


# --- Older messages ---

def test_older_messages_come_above(desk):
    """Page Up at the top asks; what comes is above what is there, in order, the view stays, and
    the status says how many came."""
    ann = desk()
    ann.connect(Welcome("ann", "s", "e", ("ann", "bob"), 40), *chats(38, 41))
    ann.type(PAGE_UP)
    assert '"before":38' in ann.asked() and "fetching" in ann.status
    before = ann.rows()
    ann.answer(chats(20, 38), older=20)
    assert "18 older above" in ann.status
    assert ann.rows()[-len(before):][-3:] == before[-3:]
    ann.type(PAGE_UP)
    assert numbers(ann) == [str(number) for number in range(26, 34)]
    ann.type(*[PAGE_UP] * 4)
    assert '"before":20' in ann.asked()
    ann.answer([])
    assert "nothing older is kept" in ann.status
    ann.type(CTRL_END)
    assert numbers(ann)[-1] == "40"


def test_older_messages_stay_in_view(desk):
    """Scrolled back, the rows that are shown are the same after older ones came above them."""
    ann = desk()
    ann.connect(WELCOME, *chats(101, 140))
    ann.type(PAGE_UP, PAGE_UP)
    before = ann.rows()
    ann.type("/history 30\r")
    ann.type(PAGE_UP, PAGE_UP)
    before = ann.rows()
    ann.answer(chats(50, 101, NOON - DAY), older=50)
    assert ann.rows() == before
    ann.type(PAGE_UP)
    assert numbers(ann)[0] < before[0][5:]


def test_older_messages_of_other_days(desk):
    """A line says where a day begins, once, however the batches cut it."""
    ann = desk(24, 60)
    ann.connect(WELCOME, *chats(9, 11))
    ann.type("/history\r")
    ann.answer([*chats(5, 7, NOON - DAY), *chats(7, 9)], older=5)
    ann.type("/history\r")
    ann.answer([*chats(1, 4, NOON - 2 * DAY), *chats(4, 5, NOON - DAY)])
    shown = [row[5:] if row.startswith("bob") else row[:6] for row in ann.rows()
             if row.startswith(("bob", "-- "))]
    assert shown == ["-- Wed", "1", "2", "3", "-- Thu", "4", "5", "6",
                     "-- Fri", "7", "8", "9", "10"]


def test_older_messages_once(desk):
    """What is there already is not shown twice."""
    ann = desk(24, 60)
    ann.connect(WELCOME, *chats(9, 11))
    for _ in range(2):
        ann.type("/history\r")
        ann.answer(chats(6, 11), older=6)
    assert numbers(ann) == ["6", "7", "8", "9", "10"]
    assert "nothing older is kept" in ann.status


def test_older_messages_of_a_server_without_history(desk):
    """An ACK without an answer: the status says it."""
    ann = desk()
    ann.connect(WELCOME, *chats(9, 11))
    ann.type("/history\r")
    ann.hear(Ack(1))
    assert "the server keeps no older messages" in ann.status


# --- Where one had read ---

@pytest.mark.parametrize("go, come", [("\x1b[O", "\x1b[I"), (PAGE_UP, CTRL_END)])
def test_unread_mark(desk, go, come):
    """What comes while one looks elsewhere, or is scrolled back, is below a line; it goes with
    what one says next."""
    ann = desk(12, 60)
    ann.connect(WELCOME, *chats(1, 16))
    ann.type(go)
    ann.hear(*chats(16, 18))
    ann.type(come)
    assert ann.rows()[-4:] == ["bob: 15", "-- read up to here --", "bob: 16", "bob: 17"]
    ann.hear(*chats(18, 19))
    assert ann.rows().count("-- read up to here --") == 1
    ann.type("hi\r")
    assert "-- read up to here --" not in ann.rows()


def test_unread_mark_is_one(desk):
    """Away again, the line is where one has read by now."""
    ann = desk(12, 60)
    ann.connect()
    for number in (1, 2):
        ann.type("\x1b[O")
        ann.hear(*chats(number, number + 1))
        ann.type("\x1b[I")
    assert ann.rows()[-3:] == ["bob: 1", "-- read up to here --", "bob: 2"]


def test_unread_mark_is_not_counted(desk):
    """Scrolled back, the status counts what is new, and not the line."""
    ann = desk(12, 60)
    ann.connect(WELCOME, *chats(1, 30))
    ann.type(PAGE_UP)
    ann.hear(*chats(30, 35))
    assert "5 new below" in ann.status


@pytest.mark.parametrize("key", [CTRL_END, "\x1b>", "\x1b[F", "\x1b[4;5~", "\x1bOF"])
def test_to_the_newest(desk, key):
    """Ctrl-End and Alt->, and End at the end of the line, go to what is newest; what is typed
    stays."""
    ann = desk()
    ann.connect(WELCOME, *chats(1, 50))
    ann.type("half", *[PAGE_UP] * 3)
    assert "scrolled back" in ann.status
    ann.type(key)
    assert "scrolled back" not in ann.status and numbers(ann)[-1] == "49" and ann.typed == "half"


def test_end_in_the_line(desk):
    """End within a line goes to its end first."""
    ann = desk()
    ann.connect(WELCOME, *chats(1, 50))
    ann.type("half", "\x1b[H", PAGE_UP, "\x1b[F")
    assert "scrolled back" in ann.status and ann.window._editor.cursor == 4
    ann.type("\x1b[F")
    assert "scrolled back" not in ann.status


def test_clear_keeps_the_scrollback(desk):
    """/clear begins an empty page; above it is what was there, below it what comes."""
    ann = desk()
    ann.connect(WELCOME, *chats(1, 30))
    ann.type("/clear\r")
    assert ann.rows() == []
    ann.hear(*chats(30, 32))
    assert numbers(ann) == ["30", "31"]
    ann.type(PAGE_UP)
    above = numbers(ann)
    assert above and above == [str(number) for number in range(30 - len(above), 30)]
    ann.type("\x1b[6~")
    assert numbers(ann) == ["30", "31"]
    ann.type("/clear\r", PAGE_UP)
    assert numbers(ann)[-2:] == ["30", "31"]


# --- Who came and went ---

def came(*names, first=1):
    return [Joined(first + number, name, NOON) for number, name in enumerate(names)]


@pytest.mark.parametrize("events, line", [
    (came("eve"), "* eve joined (4 here)"), (came("eve", "joe"), "* eve and joe joined (5 here)"),
    (came("eve", "joe", "sue", "tom"), "* eve, joe, sue and tom joined (7 here)"),
    (came(*(f"p{number}" for number in range(28))), "* p0, p1, p2 and 25 others joined (31 here)"),
    ([*came("eve"), Left(2, "eve", NOON, "quit")], "* eve came and went"),
    ([Left(1, "bob", NOON, "gone away")], "* bob left (gone away)"),
    ([Left(1, "bob", NOON, "quit"), Left(2, "ben", NOON, "quit")], "* bob and ben left"),
    ([Left(1, "bob", NOON, "quit"), *came("bob", first=2)], "* bob joined (3 here)"),
    ([*came("eve"), Left(2, "bob", NOON, "quit"), *came("joe", first=3)],
     "* eve and joe joined, bob left (4 here)")])
def test_joins_are_one_line(desk, events, line):
    """Those who come and go one after the other are one line that grows."""
    ann = desk()
    ann.connect()
    ann.hear(*events)
    assert ann.rows()[-1] == line and sum(row.startswith("*") for row in ann.rows()) == 2


def test_joins_between_messages(desk):
    """What is said in between ends the line; who was booted has a line of their own."""
    ann = desk()
    ann.connect()
    ann.hear(*came("eve"), *chats(2, 3), Joined(3, "joe", NOON),
             Left(4, "joe", NOON, "booted: spam"), Joined(5, "sue", NOON))
    assert ann.rows()[-5:] == ["* eve joined (4 here)", "bob: 2", "* joe joined (5 here)",
                               "* joe was booted: spam", "* sue joined (5 here)"]


def test_removed(desk):
    """What the host took back is shown as that, wherever it stands."""
    ann = desk()
    ann.connect(WELCOME, *chats(1, 4))
    ann.hear(Removed(4, 2), Removed(5, 77))
    assert ann.rows()[-3:] == ["bob: 1", "bob: (removed by the host)", "bob: 3"]


# --- /search and Ctrl-R ---

def reversed_rows(desk):
    """The messages that are shown reversed."""
    return [desk.shown.line(row) for row in range(desk.shown.rows - 2)
            if "reverse" in desk.shown.cell(row, 7).style]


def test_search_in_what_is_here(desk):
    """The newest that has all words is in the middle, Up and Down go from one to the next, Esc
    goes back where one was."""
    ann = desk(12, 70)
    said = [chat(f"{number} Kaffee \uff2dilch" if number % 10 == 0 else f"{number} tea", id=number)
            for number in range(1, 60)]
    ann.connect(WELCOME, *said)
    ann.type(PAGE_UP)
    before = ann.rows()
    ann.type("/search milch KAFFEE")
    ann.type("\r")
    assert [row.split()[2] for row in reversed_rows(ann)] == ["50"] and "found 1 of 5" in ann.status
    assert "bob: 51 tea" in ann.rows() and "bob: 49 tea" in ann.rows()
    ann.type(UP, UP)
    assert [row.split()[2] for row in reversed_rows(ann)] == ["30"] and "found 3 of 5" in ann.status
    ann.type(DOWN)
    assert [row.split()[2] for row in reversed_rows(ann)] == ["40"]
    ann.escape()
    assert reversed_rows(ann) == [] and "found" not in ann.status
    assert ann.rows() == before and numbers(ann)[-1] != "59 tea"


def test_search_on_the_server(desk):
    """Beyond what is here the server is asked; what it finds is shown with what was said around
    it, without a hole in what is here."""
    ann = desk(12, 70)
    ann.connect(WELCOME, *chats(500, 510))
    ann.type("/search tea\r")
    assert '"before":500' in ann.asked() and '"find":"tea"' in ann.asked()
    ann.answer([chat("tea?", id=100), chat("tea!", id=200)], older=90, find="tea")
    assert "found 1 of 2+" in ann.status and [row[11:] for row in reversed_rows(ann)] == ["tea!"]
    assert '"before":221' in ann.asked() and "find" not in ann.asked()
    ann.answer([*chats(190, 200), chat("tea!", id=200), *chats(201, 210)], older=190)
    assert "bob: 199" in ann.rows() and "bob: 201" in ann.rows()
    assert [row[11:] for row in reversed_rows(ann)] == ["tea!"]
    ann.type(UP)
    ann.answer([*chats(95, 100), chat("tea?", id=100)], older=95)
    assert "bob: 99" in ann.rows() and "found 2 of 2+" in ann.status
    ann.type(UP)
    assert '"before":90' in ann.asked()
    ann.answer([], find="tea")
    assert "found 2 of 2:" in ann.status
    ann.hear(*chats(510, 512))
    ann.escape()
    assert numbers(ann)[-3:] == ["509", "510", "511"] and "bob: 199" not in ann.rows()


def test_search_in_a_narrow_window(desk):
    """In 40 columns, too, one sees that one is in a search, and how to leave it."""
    ann = desk(10, 40)
    ann.connect(WELCOME, *chats(500, 530))
    ann.type("/search 505\r")
    assert ann.status.strip() == "found 1 of 1+: Up, Down, Esc back"


@pytest.mark.parametrize("answer", ["without find", "no answer"])
def test_search_on_a_server_that_cannot(desk, answer):
    """A server that does not know `find`: what is here is found, and that it cannot is said."""
    ann = desk(12, 70)
    ann.connect(WELCOME, *chats(500, 510))
    ann.type("/search 505\r")
    assert "found 1 of 1+" in ann.status
    ann.type(UP)
    if answer == "no answer":
        ann.hear(Ack(1))
    else:
        ann.answer(chats(480, 500), older=480)
    assert "cannot search" in ann.status and len(reversed_rows(ann)) == 1
    ann.escape()
    ann.type("/search nothing\r")
    ann.answer(chats(480, 500), older=480)
    assert ann.rows()[-1].startswith("* nothing was found (this server cannot search): nothing")


def test_search_for_nothing_and_too_much(desk):
    """No words, too many, and characters that mean something elsewhere."""
    ann = desk(12, 80)
    ann.connect(WELCOME, chat("a[b (c", id=1))
    ann.type("/search\r", "/search  \r")
    assert ann.rows()[-1].startswith("! /search WORDS: ")
    ann.window.commands.run("/search " + "x" * 8_180)
    ann.settle()
    assert "at most 256 characters" in ann.rows()[-1]
    ann.type("/search [ (\r")
    assert "found 1 of 1" in ann.status
    ann.escape()
    ann.type("/search zzz\r")
    ann.answer([], find="zzz")
    assert ann.rows()[-1] == "* nothing was found: zzz"


def test_search_while_disconnected(desk):
    """What is here is found at once; the server is asked when it is back."""
    ann = desk(12, 70)
    ann.connect(WELCOME, *chats(500, 510))
    ann.client.closed()
    ann.type("/search 505\r")
    assert "found 1 of 1+" in ann.status
    ann.type(UP)
    assert "asking for older" in ann.status
    ann.connect(Welcome("ann", "s", "e", ("ann", "bob"), 509, resumed=True))
    ann.answer([chat("505 too", id=100)], find="505")
    assert "found 2 of 2:" in ann.status


def test_search_comes_back_to_what_is_gone(desk, monkeypatch):
    """Esc leads to where one was before the search, and to the newest where that was dropped."""
    monkeypatch.setattr(Scrollback, "REMEMBERED", 40)
    ann = desk(10, 70)
    ann.connect(WELCOME, *chats(1, 30))
    ann.type(PAGE_UP, "/search 29\r")
    ann.escape()
    assert numbers(ann)[-1] == "22"
    ann.type("/search 29\r")
    ann.hear(*chats(30, 130))
    ann.escape()
    assert numbers(ann)[-1] == "129"


def test_search_with_ten_thousand_results(desk):
    """All are counted, and each step is one."""
    ann = desk(12, 70)
    ann.connect()
    for number in range(10):
        ann.hear(*chats(1 + number * 1000, 1001 + number * 1000))
    ann.type("/search 1\r", UP)
    assert "of 3440" in ann.status
    assert Scrollback.REMEMBERED == 10_000


def test_ctrl_r(desk):
    """Ctrl-R searches one's own lines, again for older ones; Esc brings back what was typed,
    Enter says what was found."""
    ann = desk()
    ann.connect()
    ann.type("make tea\r", "make cake\r", "eat\r", "draft", "\x12", "m", "a")
    assert ann.shown.line(9) == "(find `ma') make cake"
    ann.type("\x12")
    assert ann.typed == "make tea"
    ann.type("\x12")
    assert ann.typed == "make tea" and ann.shown.bells == 1
    ann.escape()
    assert ann.shown.line(9) == "> draft"
    ann.type("\x12", "CAKE", "\r")
    assert ann.said()[-1] == ("make cake", None) and ann.shown.line(9) == ">"
    ann.type("\x12", "tea", "\x1b[D", "!")
    assert ann.shown.line(9) == "> make te!a"
    ann.type("\x03", "\x12", "x", "\x7f", "eat", "\x03")
    assert ann.shown.line(9) == ">"
