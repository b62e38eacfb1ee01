"""The client in a terminal as its user sees it: what is typed stays, what is shown is right, and
nothing that comes in can do harm. A real process on a pseudo-terminal, what it prints read back by
a model.

The tests share one server, so a window is cleared before a test looks at it. The peers are
RawClients, and where a server has to misbehave it is a listening socket. Whatever a test is about,
at its end the terminal has to be as it was.
"""

import re
import threading
import time

import pytest

from harness import TIMEOUT, RawClient, posix_only
from onscreen import (ALT_ENTER, BACKSPACE, CTRL_C, CTRL_D, CTRL_U, CTRL_W, DELETE, END, EVIL, HOME,
                      INDENT, LEFT, PAGE_DOWN, PAGE_UP, UP, WELCOME, FakeServer, after_cursor,
                      burst, heard, left_behind, messages, newest, patched, status, status_row,
                      typed, unknown, wait, wait_messages, wait_typed)

pytestmark = [posix_only, pytest.mark.usefixtures("empty_room")]
SERVER_OPTIONS = "--grace", "0.1"


# --- What is typed stays ---

EMOJI = ("\U0001f469\u200d\U0001f680\u2764\ufe0f\U0001f1eb\U0001f1f7\U0001f44d\U0001f3fd\U0001f600"
         " end")
HALF_LINES = {
    "plain": "half a line, and its end",
    "CJK": "\u4f60\u597d\uff0c\u4e16\u754c\u3002\ud55c\uad6d\uc5b4 end",
    "combining marks": "e\u0301a\u0308\u0323 nin\u0303o \u0915\u094d\u0937 end",
    "emoji": EMOJI,
    "wider than the screen": "word " * 40 + "end",
    "CJK wider than the screen": "x" + "\u4f60\u597d" * 50 + "end",
    "higher than its part of the screen": "word " * 200 + "end",
    "several lines": "one\n\n\u4e8c\nend",
}


def test_half_line_stays_while_messages_arrive(window, join):
    """50 messages arrive: whatever was typed and its cursor stay where they are, and Enter says
    it."""
    bob = join("bob")
    ann = window()
    for number, (what, text) in enumerate(HALF_LINES.items()):
        ann.type(text.replace("\n", ALT_ENTER) + LEFT * 3)
        before = wait(ann, lambda terminal: after_cursor(terminal) == "end" and typed(terminal),
                      f"the cursor: {what}")
        last = 50 * number + 50
        burst(bob, last - 49, last)
        wait(ann, lambda terminal: newest(terminal) == f"bob: m{last}"
             and typed(terminal) == before, f"all unmoved: {what}")
        height = status_row(ann.terminal)
        assert messages(ann.terminal) == [f"bob: m{n}" for n in range(last - height + 1, last + 1)]
        ann.type("\r")
        wait_typed(ann, ">", column=2)
        assert heard(bob) == text
    assert ann.terminal.bells == 0


@pytest.mark.parametrize("options",
                         [{"joins_emoji": False}, {"joins_emoji": False, "widens": False}])
def test_half_line_on_terminals_that_measure_otherwise(window, join, options):
    """Emoji of several parts are as wide as this terminal shows them, in the line and in the
    messages."""
    bob = join("bob")
    ann = window(**options)
    ann.type(EMOJI + LEFT * 3)
    before = wait(ann, lambda terminal: after_cursor(terminal) == "end" and typed(terminal),
                  "the cursor")
    bob.say(EMOJI)
    burst(bob, 1, 10)
    bob.say(EMOJI * 20 + "last")
    wait(ann, lambda terminal: newest(terminal).endswith("last") and typed(terminal) == before,
         "all unmoved")
    rows = messages(ann.terminal)
    assert rows[0] == "bob: " + EMOJI and "".join(row.replace(INDENT, "")
                                                  for row in rows[11:]).replace(" ", "") == (
        "bob:" + EMOJI * 20 + "last").replace(" ", "")
    assert all(row.startswith(INDENT) for row in rows[12:])


def test_half_line_survives_resizing(window, join):
    """Messages and resizes in between: the line is wrapped anew, the messages from their original
    lines, and back."""
    bob = join("bob")
    ann = window()
    ann.type("\u4f60\u597d " * 12 + "end" + LEFT * 3)
    before = wait(ann, lambda terminal: after_cursor(terminal) == "end" and typed(terminal),
                  "the cursor")
    burst(bob, 1, 25)
    bob.say("a message of two rows a message of two rows")
    wait(ann, lambda terminal: newest(terminal).startswith("bob: a message"), "the message")
    ann.resize(10, 40)
    wait(ann,
         lambda terminal: messages(terminal)[-2:] == ["bob: a message of two rows a",
                                                      INDENT + "message of two rows"]
         and len(typed(terminal)[0]) == 2 and after_cursor(terminal) == "end", "another wrapping")
    burst(bob, 26, 50)
    wait(ann, lambda terminal: messages(terminal) == [f"bob: m{n}" for n in range(44, 51)]
         and typed(terminal)[0][1].endswith("end") and after_cursor(terminal) == "end",
         "40 columns")
    assert len(status(ann.terminal)) > 1
    ann.resize(24, 80)
    wait(ann, lambda terminal: typed(terminal) == before and newest(terminal) == "bob: m50",
         "80 columns again")
    ann.resize(40, 80)
    wait(ann, lambda terminal: terminal.cursor[0] == 39
         and "bob: a message of two rows a message of two rows"
         in messages(terminal), "more rows")


def test_resized_and_back_at_once(window, join):
    """A size that has changed and changed back before we looked has still cost what was shown."""
    bob = join("bob")
    ann = window()
    bob.say("hello")
    ann.type("half a line")
    wait_messages(ann, "bob: hello")
    for _ in range(5):
        wait_typed(ann, "> half a line", column=13)
        ann.resize(4, 12)
        ann.resize(24, 80)
    wait_typed(ann, "> half a line", column=13)
    wait_messages(ann, "bob: hello")


def test_absurd_sizes(window, join):
    """A window of a single cell shows nothing of use, and harms nothing."""
    bob = join("bob")
    ann = window()
    ann.type("half a \u4f60\u597d line")
    for number, size in enumerate([(1, 1), (2, 1), (1, 80), (2, 2), (3, 5), (24, 1), (4, 12)]):
        ann.resize(*size)
        bob.say(f"{number} \u4f60\u597d {EMOJI}")
    ann.resize(24, 80)
    wait_typed(ann, "> half a \u4f60\u597d line", column=18)
    wait(ann, lambda terminal: newest(terminal) == f"bob: 6 \u4f60\u597d {EMOJI}",
         "the last message")


KEYS = ("abc" + LEFT + LEFT + "\u00e9\u4f60" + "\x1b[1;5C" + "\U0001f469\u200d\U0001f680" + HOME
        + DELETE + END + " two three"
        + CTRL_W + "\x1b[200~pasted\rmore\x1b[201~" + "\x1bOD" + BACKSPACE + "\x1b[F"
        + " \x1bb\x1bf" + "\x01\x05" + ALT_ENTER
        + "x\x02\x06 end")


def test_keys_in_any_pieces(window, join):
    """Keys that arrive one byte at a time, also those of several, and all at once make the same
    line."""
    import fcntl
    import struct
    import termios
    bob = join("bob")
    ann = window()
    expected = "\u00e9\u4f60bc\U0001f469\u200d\U0001f680 two pasted\nmoe \nx end"
    ann.type(KEYS + "\r")
    assert heard(bob) == expected
    # What was said comes back; it is emptied again.
    ann.type(UP)
    wait(ann, lambda terminal: terminal.line(23) == "  x end", "the line from before")
    ann.type(CTRL_C)
    wait_typed(ann, ">", column=2)
    tick = threading.Event()
    for byte in (KEYS + "\r").encode():
        ann.type(bytes([byte]))
        deadline = time.monotonic() + TIMEOUT
        # Wait until the client has read it.
        while struct.unpack("i", fcntl.ioctl(ann._slave, termios.FIONREAD, b"\0" * 4))[0]:
            assert time.monotonic() < deadline, "the client does not read"
            tick.wait(0.0005)
    assert heard(bob) == expected


# --- Pastes ---

def paste(*lines):
    """What a terminal sends for a paste of these lines."""
    return "\x1b[200~" + "\r".join(lines) + "\x1b[201~"


def test_paste_of_30_lines(window, join):
    """A paste of 30 lines asks, sends nothing by itself, and is one message; declined, it leaves
    what was typed."""
    bob = join("bob")
    ann = window()
    lines = [f"line {n}" for n in range(1, 31)]
    ann.type("see: ")
    for last, answer in ((3, "n"), (6, CTRL_C)):
        ann.type(paste(*lines))
        ann.wait_for("paste 30 lines as one message?")
        burst(bob, last - 2, last)
        wait(ann, lambda terminal: newest(terminal) == f"bob: m{last}", "the messages meanwhile")
        wait_typed(ann, "> see:", column=7)
        ann.type(answer)
        wait(ann, lambda terminal: "paste" not in terminal.text(), "no question any more")
        wait_typed(ann, "> see:", column=7)
    ann.type(paste(*lines) + "y")
    wait(ann, lambda terminal: typed(terminal)[0][-1] == "  line 30" and terminal.cursor == (23, 9)
         and len(typed(terminal)[0]) == 8, "the pasted lines")
    ann.type("!\rnext\r")
    assert heard(bob) == "see: " + "\n".join(lines) + "!"
    assert heard(bob) == "next"
    wait(ann, lambda terminal: messages(terminal)[-2:]
         == [INDENT + "line 30! (there)", "ann: next (there)"], "both messages")


def test_paste_is_answered_whatever_is_typed_with_it(window, join):
    """The question about a paste takes the answer also when other keys come in the same read."""
    bob = join("bob")
    ann = window()
    ann.type(paste(*"123456"))
    ann.wait_for("paste 6 lines")
    ann.type("?y")
    wait(ann, lambda terminal: typed(terminal)[0][-1] == "  6" and "paste" not in terminal.text(),
         "the paste")
    ann.type("\r")
    assert heard(bob) == "1\n2\n3\n4\n5\n6"


def test_paste_of_3_lines(window, join):
    """Three lines are inserted without a question and are one message; an end of line at the end
    sends nothing."""
    bob = join("bob")
    ann = window()
    ann.type(paste("one", "", "three", "") + "\r")
    assert heard(bob) == "one\n\nthree"
    wait_messages(ann, "ann: one", INDENT + "three (there)")


def test_paste_is_text(window, join):
    """Control characters and sequences in a paste press no keys; more than a message holds is not
    pasted."""
    bob = join("bob")
    ann = window()
    ann.type(paste("a\x03b\x1b[31mred\x04\x1b]0;title\x07"))
    wait_typed(ann, "> abred", column=7)
    ann.type(paste("x" * 9_000))
    ann.wait_for("! not pasted: 9000 characters")
    ann.type("\r")
    assert heard(bob) == "abred"


# --- Hostile peers and servers ---

FORGED = "hi\n12:00 eve: forged\n* eve left (gone away)\n! refused\n-- now --\n > "
HOSTILE = ["\u202egnp.exe \u2066x\u2069", "\u200bzero\u200c\u2060\ufeff", "\u2028\u2029line",
           "\u0301Z" + "\u0335" * 400,
           FORGED, "\t\t\ttabs", "w" * 1_000, "\u4f60" * 700, "\U0001f600" * 500,
           "\u200d\ufe0f\u20e3", "\u115f\u3164\u1160",
           "\u00ad soft", "\n" * 30 + "far below",
           "\U000e0041\U000f0000\ufff9\uffff", "a " * 4_096, "x" * 8_192,
           "\u0e33\u0e33 \u0bcd \U0001f3fd\U0001f1eb"]


def test_hostile_peer(window, join):
    """Whatever a peer says is one message of that peer: its first row begins with the name, all
    others are indented."""
    bob = join("bob")
    ann = window()
    ann.type("half a line" + LEFT * 4)
    wait_typed(ann, "> half a line", column=9)
    before, seen = "nothing", ""
    for number, text in enumerate(HOSTILE):
        bob.say(text)
        after = f"bob: after {number}"
        bob.say(after[5:])
        wait(ann, lambda terminal: newest(terminal) == after
             and typed(terminal) == (["> half a line"], (23, 9)),
             f"{text[:20]!a}")
        *rows, last = messages(ann.terminal)
        seen += "".join(rows)
        if before in rows:
            rows = rows[rows.index(before) + 1:]
            assert rows and rows[0].startswith("bob:"), (text[:20], rows)
        assert all(row.startswith(INDENT) for row in rows[1:]), (text[:20], rows)
        assert status(ann.terminal)[:2] == ["ann", "connected"]
        before = after
    assert (ann.terminal.titles, ann.terminal.bells, unknown(ann.terminal)) == ([], 0, [])
    printed = ann.raw_output.decode("utf-8")
    # The isolate has its end: it reorders nothing but what is in it.
    assert not re.search(
        "[\u200b\u200c\u2028\u2029\u202a-\u202e\u2060-\u2065\u2067\u2068\u206a-\u206f\ufeff\ufff9"
        "\u115f\u1160\u3164\u00ad]", printed)
    assert "\\u202egnp.exe \u2066x\u2069" in seen and "\\u200bzero" in seen


def test_hostile_peer_forges_no_line(window, join):
    """Lines that imitate other speakers are indented, and so is what is wrapped."""
    bob = join("bob")
    ann = window()
    bob.say(FORGED)
    wait_messages(ann, "bob: hi", *(INDENT + line for line in FORGED.rstrip().split("\n")[1:]))
    ann.type("/clear\r")
    wait_messages(ann)
    bob.say("x" * 66 + " 12:00 eve: forged")
    wait_messages(ann, "bob: " + "x" * 66, INDENT + "12:00 eve: forged")


ODD_WIDTHS = ["a\U0001f3fdend", "\u00d7\ufe0fend", "1\ufe0f\u20e3end",
              "\U0001f1eb\U0001f1f7\U0001f1ebend", "\u200bend",
              "\U0001f3fdend"]


def test_odd_clusters_keep_the_cursor(window):
    """Where the cursor is does not suffer from characters that should join others and do not."""
    ann = window()
    for text in ODD_WIDTHS:
        ann.type(text + LEFT * 3)
        wait(ann, lambda terminal: after_cursor(terminal) == "end",
             f"the cursor before the end: {text!a}")
        ann.type(CTRL_C)
        wait_typed(ann, ">", column=2)


def test_hostile_server(launch):
    """Control characters in every field that a server can send are shown escaped, and move
    nothing."""
    frames = [{"type": "joined", "id": 1, "name": EVIL, "at": 2**53 - 1},
              {"type": "renamed", "id": 2, "name": EVIL, "to": EVIL, "at": 1 - 2**53},
              {"type": "chat", "id": 3, "from": EVIL, "text": "hi \u202e", "at": 0, "to": EVIL},
              {"type": "chat", "id": 4, "from": EVIL, "text": "me", "at": 0},
              # This is no valid text, and is not shown.
              {"type": "chat", "id": 5, "from": "bob", "text": EVIL, "at": 0},
              {"type": "error", "id": 6, "code": EVIL, "text": EVIL},
              {"type": "left", "id": 7, "name": EVIL, "at": 0, "reason": EVIL},
              {"type": "heard", "about": 3, "count": 5, "of": 2}, {"type": EVIL, "id": 8},
              {"type": "error", "id": 9, "code": EVIL},
              {"type": "left", "id": 10, "name": EVIL, "at": 0, "reason": "booted: " + EVIL},
              {"type": "chat", "id": 11, "from": "bob", "text": "marker", "at": 0}]
    with FakeServer() as server:
        ann = launch("--bell", "off", port=server.port, columns=200)
        server.accept({**WELCOME, "name": EVIL[:20], "users": [EVIL, "ann"],
                       "motd": "motd \u202e\n12:00 eve: forged"})
        ann.wait_for("* you are \\x1b[2J")
        ann.type("/names\r/motd\rhalf")
        wait_typed(ann, "> half", column=6)
        server.send(*frames)
        wait(ann, lambda terminal: newest(terminal) == "bob: marker"
             and typed(terminal) == (["> half"], (23, 6)), "the marker")
        shown = escaped(EVIL)
        rows = messages(ann.terminal)
        assert [row for row in rows if row.startswith("* motd")] == ["* motd \\u202e"] * 2
        assert "* 2 here: " + shown + ", ann" in rows and f"* {shown} is now {shown}" in rows
        assert f"! {shown}" in rows
        assert f"{shown} -> {shown}: hi \\u202e" in rows and f"{shown}: me" in rows
        assert not any(row.startswith(("bob: \\x1b", "12:00 eve")) for row in rows)
        server.send({"type": "booted", "id": 12, "reason": EVIL})
        assert ann.wait_exit() == 1 and ann.terminal.bells == 0
        assert "".join(left_behind(ann)) == "chat_client: you were booted: " + shown


@pytest.mark.parametrize("frame",
                         [{"type": "error", "code": "banned", "text": EVIL},
                          {"type": "error", "code": EVIL},
                          {**WELCOME, "motd": EVIL}, {"type": EVIL}],
                          ids=["error", "code", "motd", "type"])
def test_hostile_server_refuses(launch, frame):
    """Before we are in, control characters are escaped or the frame is refused: one line, exit code
    1."""
    with FakeServer() as server:
        ann = launch(port=server.port, columns=300)
        server.accept(frame)
        server.hang_up()
        assert ann.wait_exit() == 1 and ann.terminal.bells == 0
        line, = left_behind(ann)
        assert line.startswith("chat_client: ") and re.fullmatch("[^\u202e\x9b]*", line)


def escaped(text):
    """As the client shows it."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode()
                   for char in text)


# --- One's own messages ---

def test_states_of_own_messages(window, join, paused):
    """A message shows in its place what becomes of it: sending, there, heard by some, heard by
    all."""
    bob, cat = join("bob"), join("cat")
    ann = window()
    resume = paused()
    ann.type("one\rtwo\rhalf")
    wait_messages(ann, "ann: one (sending)", "ann: two (sending)")
    wait(ann, lambda terminal: "2 unsent" in status(terminal), "what is unsent")
    resume()
    wait_messages(ann, "ann: one (there)", "ann: two (there)")
    wait(ann, lambda terminal: status(terminal)[:3] == ["ann", "connected", "3 here"],
         "nothing unsent")
    bob.say("three")
    wait_messages(ann, "ann: one (there)", "ann: two (there)", "bob: three")
    assert [heard(bob), heard(bob)] == ["one", "two"]
    wait_messages(ann, "ann: one (heard by 1 of 2)", "ann: two (heard by 1 of 2)", "bob: three")
    assert heard(cat) == "one"
    wait_messages(ann, "ann: one (heard by all)", "ann: two (heard by 1 of 2)", "bob: three")
    wait_typed(ann, "> half", column=6)


def test_failed_message(window):
    """A message to nobody shows that it failed, and why; at the end it is named, and the exit code
    is 1."""
    ann = window()
    ann.type("/msg nobody hello\r")
    wait(ann, lambda terminal: re.fullmatch(r"ann -> nobody: hello \(failed: .+\)",
                                            newest(terminal)), "the failure")
    assert len(messages(ann.terminal)) == 1
    ann.type(CTRL_D)
    assert ann.wait_exit() == 1
    line, = left_behind(ann)
    assert line.startswith("chat_client: not delivered: hello (")


def test_server_restarts(launch, serve):
    """Without the server one types and sends on; it counts down, and when the server is back all
    goes out by itself."""
    first = serve()
    ann = launch(port=first.port,
                 command=patched("chat_client.random.uniform = lambda low, high: 1.5"))
    ann.wait_for("you are ann")
    ann.type("half")
    wait_typed(ann, "> half", column=6)
    first.kill()
    wait(ann, lambda terminal: "reconnecting in 2 s" in status(terminal), "the countdown")
    ann.type(" a line\rmore")
    wait(ann, lambda terminal: newest(terminal) == "ann: half a line (sending)"
         and "1 unsent" in status(terminal),
         "the unsent one")
    wait(ann, lambda terminal: "reconnecting in 1 s" in status(terminal), "the countdown")
    serve(port=first.port)
    ann.wait_for("connected again")
    wait(ann, lambda terminal: "ann: half a line (there)" in messages(terminal)
         and status(terminal)[1:3] == ["connected", "1 here"], "what was sent")
    wait_typed(ann, "> more", column=6)
    assert sum("half a line" in row for row in messages(ann.terminal)) == 1
    with RawClient(first.port) as bob:
        bob.join("bob")
        assert bob.recv_until("chat")["text"] == "half a line"
        ann.type("\r")
        assert bob.recv_until("chat")["text"] == "more"


def test_banned_when_it_comes_back(launch):
    """Refused for good when it reconnects, the client ends with one line and exit code 1."""
    with FakeServer() as server:
        ann = launch(port=server.port,
                     command=patched("chat_client.random.uniform = lambda low, high: 0.01"))
        server.accept(WELCOME)
        ann.wait_for("you are ann")
        server.hang_up()
        server.accept({"type": "error", "code": "banned", "text": "you are banned"})
        assert ann.wait_exit() == 1
        assert left_behind(ann) == ["chat_client: you are banned"]


# --- Many messages, scrolling ---

def test_burst_of_5000(window, join):
    """5,000 messages at once are drawn in far fewer frames, what is typed is shown meanwhile, none
    of the last is missing."""
    bob = join("bob")
    ann = window()
    frames = ann.raw_output.count(b"\x1b[?2026h")
    burst(bob, 1, 5_000)
    ann.wait_for("bob: m")
    ann.type("typed meanwhile")
    meanwhile = wait(ann, lambda terminal: typed(terminal)[0] == ["> typed meanwhile"]
                     and newest(terminal), "what was typed")
    wait_messages(ann, *(f"bob: m{n}" for n in range(4_979, 5_001)))
    wait_typed(ann, "> typed meanwhile", column=17)
    assert meanwhile != "bob: m5000"
    assert ann.raw_output.count(b"\x1b[?2026h") - frames < 500
    ann.type(PAGE_UP * 3)
    wait_messages(ann, *(f"bob: m{n}" for n in range(4_916, 4_938)))


def test_scrolling_back(window, join):
    """Scrolled back, the place stays whatever arrives, and what is new is counted; Page Down and
    Enter return."""
    bob = join("bob")
    ann = window()
    burst(bob, 1, 100)
    ann.wait_for("bob: m100")
    ann.type("half" + PAGE_UP)
    place = [f"bob: m{n}" for n in range(58, 80)]
    wait_messages(ann, *place)
    wait(ann, lambda terminal: status(terminal)[0] == "scrolled back", "the mark")
    burst(bob, 101, 110)
    wait(ann, lambda terminal: status(terminal)[0] == "10 new below, PgDn"
         and messages(terminal) == place, "what is new")
    ann.resize(12, 40)
    wait_messages(ann, *place[-10:])
    wait(ann, lambda terminal: terminal.line(11) == "> half"
         and status(terminal)[0] == "10 new below, PgDn", "the mark")
    ann.resize(24, 80)
    wait_messages(ann, *place)
    ann.type(PAGE_DOWN * 2)
    mark = "-- read up to here --"
    wait_messages(ann, *(f"bob: m{n}" for n in range(90, 101)), mark,
                  *(f"bob: m{n}" for n in range(101, 111)))
    wait(ann, lambda terminal: status(terminal)[0] == "ann", "no mark")
    burst(bob, 111, 111)
    wait_messages(ann, *(f"bob: m{n}" for n in range(91, 101)), mark,
                  *(f"bob: m{n}" for n in range(101, 112)))
    # At the top one more would fetch what was said before.
    while not any(row.startswith("* you are ann") for row in messages(ann.terminal)):
        before = messages(ann.terminal)
        ann.type(PAGE_UP)
        wait(ann, lambda terminal: messages(terminal) != before, "a page before")
    ann.type("\r")
    wait(ann, lambda terminal: newest(terminal) == "ann: half (there)"
         and status(terminal)[0] == "ann", "the bottom")


# --- Completion, commands, bell ---

def test_completion(window, join):
    """Tab completes the most recent speaker first, then the next; commands at the start of a
    line."""
    bob, bea, cat = join("bob"), join("bea"), join("cat")
    ann = window()
    for speaker, text in ((bea, "1"), (bob, "2"), (cat, "3"), (bea, "4")):
        speaker.say(text)
        ann.wait_for(f": {text}")
    for keys, line in [("b\t", "bea: "), ("b\t\t", "bob: "), ("b\t\t\t", "b"), ("\t", "bea: "),
                       ("\t\t", "cat: "),
                       ("hi b\t", "hi bea "), ("x" + LEFT + "c\t", "cat: x"), ("/na\t", "/names "),
                       ("z\t", "z"),
                       ("/x\t", "/x"), ("\u4f60 c\tend", "\u4f60 cat end")]:
        ann.type(keys + END + "|")
        wait(ann, lambda terminal: terminal.line(23) == f"> {line}|", f"{line} after {keys!a}")
        ann.type(CTRL_U)
        wait_typed(ann, ">", column=2)


def test_commands(window, join):
    """Each command does what /help says, and nobody else hears of it but of what is said."""
    bob, cat = join("bob"), join("cat")
    ann = window()

    def run(line, *shown):
        ann.type(f"/clear\r{line}\r")
        wait_messages(ann, *shown)

    def say(line, shown, text, to=None):
        ann.type(f"/clear\r{line}\r")
        assert bob.recv_until("chat", text=text).get("to") == to
        states = ("there", "heard by 0 of 2", "heard by 1 of 2", "heard by all", "heard")
        wait(ann, lambda terminal: messages(terminal) in [[f"{shown} ({state})"]
                                                          for state in states], shown)
    run("/names", "* 3 here: bob, cat, ann")
    run("/wrong way", "! /wrong is not a command, /help lists them (to say it, begin with //)")
    run("/reply hi", "! nobody has written to you privately")
    run("/msg bob", "! /msg NAME TEXT (/w): say something to one")
    run("/nick server", "! the name server is the server's own")
    say("//text", "ann: /text", "/text")
    say("/me waves", "* ann waves", "/me waves")
    say("/msg bob psst", "ann -> bob: psst", "psst", "bob")
    ann.type("/clear\r")
    wait_messages(ann)
    bob.say("psst yourself", to="ann")
    wait_messages(ann, "bob -> ann: psst yourself")
    say("/r what", "ann -> bob: what", "what", "bob")
    assert [frame["text"] for frame in bob.frames if frame.get("from") == "ann"
            and frame["id"] > bob.welcome["last"]] == [
        "/text", "/me waves", "psst", "what"]
    run("/ignore Bob", "* ignored: bob")
    bob.recv_until("ack", id=bob.say("not shown"))
    cat.say("shown")
    wait_messages(ann, "* ignored: bob", "cat: shown")
    run("/unignore bob", "* ignored: nobody")
    bob.say("shown")
    wait_messages(ann, "* ignored: nobody", "bob: shown")
    run("/quiet", "* joins and leaves are hidden")
    bob.send({"type": "leave", "id": bob.next_id})
    wait(ann, lambda terminal: "2 here" in status(terminal), "bob gone")
    assert messages(ann.terminal) == ["* joins and leaves are hidden"]
    run("/quiet", "* joins and leaves are shown")
    run("/nick anna", "* ann is now anna")
    wait(ann, lambda terminal: status(terminal)[0] == "anna", "the new name")
    ann.type("/clear\r/help\r")
    wait(ann, lambda terminal: newest(terminal) == "//TEXT: say /TEXT", "the help")
    assert "/ignore NAME: do not show what NAME says; without a name, who is ignored" in messages(
        ann.terminal)


@pytest.mark.parametrize("bell, rings", [
    ("off", []), ("mentions", ["named", "private"]), ("all", ["plain", "named", "private"])])
def test_bell(window, join, bell, rings):
    """The bell rings for what was asked for, never for what we say or for joins; a mention is
    highlighted."""
    bob = join("bob")
    ann = window("--bell", bell)
    ann.type("I am ann\r")
    wait(ann, lambda terminal: newest(terminal) == "ann: I am ann (there)", "our own")
    join("cat")
    ann.wait_for("cat joined")
    rung = []
    for what, text, fields in [("plain", "annie", {}), ("named", "hi Ann!", {}),
                               ("private", "you", {"to": "ann"})]:
        before = ann.terminal.bells
        bob.say(text, **fields)
        wait(ann, lambda terminal: newest(terminal).endswith(text)
             and (what not in rings or terminal.bells > before), what)
        rung += [what] * (ann.terminal.bells - before)
    assert rung == rings
    row, column = ann.terminal.find("Ann!")
    assert ["reverse" in ann.terminal.cell(row, column + n).style
            for n in range(4)] == [True, True, True, False]
    assert not any("reverse" in cell.style
                   for cell in ann.terminal._grid[ann.terminal.find("annie")[0]])
