"""A Window without a process: keys in, cells out; a server that the test plays.

    desk = Desk()
    desk.connect()
    desk.type("hello\\r")
    desk.hear(chat("hi ann"))
    assert desk.rows()[-1] == "bob: hi ann"
"""

import argparse
import re

from chat_client import Terminal as RealTerminal
from chat_client import Window, _arguments
from chatproto import Recalled, Welcome
from terminal import Terminal

WELCOME = Welcome("ann", "s", "e", ("ann", "bob", "ben"), 0)


class Screen(Terminal):
    """The model; and the links (OSC 8), the notifications (OSC 9), and which rows it has wrapped
    by itself, which it copies as one line with the next."""

    def __init__(self, rows, columns):
        self.links, self.notices, self.wrapped = [], [], set()
        super().__init__(rows, columns)

    def _sequence(self, found):
        osc = found["osc"]
        if osc is not None and osc.startswith("8;"):
            self.links.append(osc.split(";", 2)[2])
        elif osc is not None and osc.startswith("9;"):
            self.notices.append(osc[2:])
        else:
            super()._sequence(found)

    def _put(self, text, width, style):
        if self._pending and self.autowrap:
            self.wrapped.add(self._row)
        super()._put(text, width, style)

    def _erase(self, row, first, end):
        if end >= self.columns:
            self.wrapped.discard(row)
        super()._erase(row, first, end)

    def copied(self):
        """The rows as they are copied."""
        text = ""
        for row in range(self.rows):
            text += self.line(row) + "\n" * (row not in self.wrapped)
        return text.split("\n")


class Paper:
    """In place of the terminal: takes what is written."""

    def __init__(self, rows, columns):
        self.shown = Screen(rows, columns)

    def enter(self):
        self.shown.feed(RealTerminal.ENTER.encode())
        self.shown.unknown.clear()

    def leave(self):
        self.shown.feed(RealTerminal.LEAVE.encode())

    def write(self, text):
        self.shown.feed(text.encode())

    def size(self):
        return self.shown.rows, self.shown.columns


def arguments_of(**options):
    """What ann typed, and these options."""
    typed = _arguments(["host", "8087", "-n", "ann", "--no-config", "--timeout", "1"])
    return argparse.Namespace(**{**vars(typed), **options})


class Desk:
    """A Window for ann on Paper; what it sends is in `sent`."""

    def __init__(self, rows=10, columns=60, **arguments):
        self.paper = Paper(rows, columns)
        self.window = Window(arguments_of(**arguments), self.paper)
        self.client, self.screen = self.window.client, self.window.screen
        self.sent = []
        self.paper.enter()

    shown = property(lambda self: self.paper.shown)
    typed = property(lambda self: self.window._editor.text)
    status = property(lambda self: next(
        self.shown.line(row) for row in range(self.shown.rows)
        if "reverse" in self.shown.cell(row, 0).style and self.shown.line(row).startswith(" ")))

    def close(self):
        self.client.closed()
        self.client.close()

    def connect(self, welcome=WELCOME, *messages):
        """A connection that begins so; one that there was is gone."""
        if self.client.joined:
            self.client.closed()
        self.client.opened(self.sent.append)
        self.hear(welcome, *messages)

    def hear(self, *messages):
        """All in one piece, before the main thread looks."""
        self.client.received(b"".join(message.encode() for message in messages))
        self.settle()

    def settle(self):
        while not self.window._events.empty():
            event, values = self.window._events.get_nowait()
            event(*values)
        self.window._paint()

    def type(self, *reads):
        """Each is what one read brings."""
        for read in reads:
            self.window._typing.press(read.encode() if isinstance(read, str) else read)
        self.settle()

    def escape(self):
        self.window._typing.press(b"\x1b")
        self.window._typing.press(b"", True)
        self.settle()

    def answer(self, entries, older=None, find=None):
        """The server's answer to the request that was sent last."""
        about = int(re.findall(rb'"type":"history","id":(\d+)', b"".join(self.sent))[-1])
        self.hear(Recalled(about, tuple(entries), older, find))

    def asked(self):
        """The request that was sent last."""
        return re.findall(rb'\{"type":"history".*?\}', b"".join(self.sent))[-1].decode()

    def said(self):
        """What was said and to whom."""
        return [(said.text, said.to) for said in self.client.unsettled]

    def rows(self):
        """The rows of messages that are not empty, without the times."""
        status = next(row for row in range(self.shown.rows)
                      if self.shown.line(row) == self.status.rstrip())
        return [re.sub(r"^\d\d:\d\d ", "", line) for line in self.shown.lines()[:status] if line]


def reset(monkeypatch):
    """The same terminal for every test."""
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
