"""The client's screen without a terminal: keys in, cells out. What Screen.paint() returns is fed to
the model in terminal.py.

A Display is a screen with its editor and such a model; Display.agrees() compares what it shows
after many small paintings with what a new terminal shows after one. Random tests have fixed seeds.
"""

import time
import types

import chat_client
from chat_client import ClientSession, Columns, Editor, Entry, Formatter, Key, Keys, Said, Screen
from chat_client import Theme, clusters
from chatproto import Chat
from terminal import Terminal

NOON = time.mktime((2026, 1, 2, 12, 30, 0, 0, 0, -1))
CJK, ACUTE = "\u4e2d\u6587", "e\u0301"
COOK, HEART = "\U0001f469\u200d\U0001f373", "\u2764\ufe0f"
FRANCE, THUMB = "\U0001f1eb\U0001f1f7", "\U0001f44d\U0001f3fd"
FAMILY, KEYCAP = "\U0001f468\u200d\U0001f469\u200d\U0001f467", "1\ufe0f\u20e3"
KOREAN = "\u1112\u1161\u11ab"
PIECES = ["a", "bc", "word", " ", " ", ".", CJK, ACUTE, COOK, HEART, FRANCE, THUMB, FAMILY, KOREAN,
          "\U0001f600", "x" * 9,
          "\u0646\u0651"]
UNCERTAIN = ["\u0301", " \U0001f3fd", "\u00a7\ufe0f", "\U0001f1e6", "\u2764\u200d"]
RIGHT_TO_LEFT, NO_SPACE, ISOLATE, FILLER = "\u202e", "\u200b", "\u2066", "\u3164"


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
    client = types.SimpleNamespace(**{"name": name, "history_until": 0, "list_as_of": 0,
                                      "here": 3, "said_of": lambda id: None, **options})
    client.is_own = types.MethodType(ClientSession.is_own, client)
    return client


def formatter_of(name="ann", colours=256, **options):
    return Formatter(client_of(name, **options), Theme(colours))


def chat(text, sender="bob", id=7, at=NOON, **options):
    return Chat(id, sender, text, at, **options)


def entry(text):
    return Entry([[("", line)] for line in text.split("\n")])


def lines_of(formatter, message, said=None):
    own = said is not None or formatter._client.is_own(message)
    return [line for one in formatter.entries(message, own, said) for line in one.plain()]


def spans_of(line, style):
    return [text for how, text in line if how == style]


class Display:
    """A Screen with an editor, and a terminal that shows what it paints."""

    def __init__(self, rows=8, columns=30, typed="", **options):
        self.options = options
        self.editor = Editor()
        self.editor.insert(typed)
        self.screen = Screen(Theme(256), self.editor)
        self.talk = self.screen.talk
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
        # It saves the wheel's mode, which the model does not know.
        terminal.unknown.clear()
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
            self.talk.add(entry(text))
        self.paint()

    def say(self, text):
        """Something of our own, which is on its way."""
        self.said += 1
        said = Said(self.said, text, None)
        self.talk.add_unplaced(said, Entry([[("1", "ann"), ("", ": " + text)]], said))
        self.paint()
        return said

    def place(self, said):
        """It comes back at its place in the order."""
        heard = chat(said.text, "ann")
        self.talk.add(Entry([[("1", "ann"), ("", ": " + said.text)]], said, heard))
        self.paint()

    def change(self, said, **values):
        for name, value in values.items():
            setattr(said, name, value)
        if said.state in (chat_client.FAILED, chat_client.UNKNOWN):
            self.talk.settle(said)
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
            assert not terminal.unknown and not terminal.titles and not terminal.scrolls
            assert terminal.cursor_visible
        assert self.terminal.text() == fresh.text()
        assert cells(self.terminal) == cells(fresh) and self.terminal.cursor == fresh.cursor


def cells(terminal):
    return [[terminal.cell(row, column) for column in range(terminal.columns)]
            for row in range(terminal.rows)]
