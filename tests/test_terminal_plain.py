"""The interface that paints nothing, without a process: what it makes of the same events."""

import re
import sys
import types

import pytest

from chat_client import Plain
from chatproto import Ack, Left, Recalled, Removed, Renamed
from display import NOON, chat
from paper import WELCOME, arguments_of


@pytest.fixture
def plain(monkeypatch, capsys):
    """A Plain for ann on a terminal; its client writes into `sent`."""
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    ann = Plain(arguments_of(bell="off"))
    ann.sent = []
    ann.client.opened(ann.sent.append)

    def hear(*messages):
        ann.client.received(b"".join(message.encode() for message in messages))
        printed = capsys.readouterr().out.split("\n")[:-1]
        return [re.sub(r"^\d\d:\d\d ", "", line) for line in printed]
    ann.hear = hear
    hear(WELCOME)
    yield ann
    ann.client.closed()
    ann.client.close()


def test_plain_says_after_the_end(plain):
    """A line of a pipe that comes just before the end ends it for the reason of the end."""
    plain.client.give_up("you were booted")
    plain._say_line("hi")
    assert (plain._over, plain._ended, plain._unread) == (1, "you were booted", 1)


def test_plain_history(plain):
    """Older messages are marked as such, with their days."""
    plain.commands.run("/history 3")
    lines = plain.hear(Recalled(1, (chat("1", id=1), chat("2", id=2)), 1))
    assert lines[0] == "-- older --" and lines[1].startswith("-- Friday")
    assert lines[2:] == ["bob: 1", "bob: 2", "-- now --"]
    plain.commands.run("/history")
    assert plain.hear(Recalled(2, ())) == ["* nothing older is kept"]
    plain.commands.run("/history")
    assert plain.hear(Ack(3)) == ["! the server keeps no older messages"]


def test_plain_search(plain):
    """What the server finds is listed; a server that cannot search is told."""
    plain.commands.run("/search tea")
    assert b'"before":9007199254740991' in plain.sent[-1] and b'"find":"tea"' in plain.sent[-1]
    lines = plain.hear(Recalled(1, (chat("tea!", id=1),), None, "tea"))
    assert lines[0] == "-- found --" and lines[2:] == ["bob: tea!", "-- now --"]
    plain.commands.run("/search tea")
    assert plain.hear(Recalled(2, (), None, "tea")) == ["* nothing was found"]
    plain.commands.run("/search tea")
    assert plain.hear(Recalled(3, (chat("x", id=1),), 1)) == ["! this server cannot search"]


def test_plain_reply_follows_the_person(plain):
    """As in the window: to who wrote, or to nobody."""
    plain.hear(chat("psst", "bob", 1, to="ann"), Renamed(2, "bob", "rob", NOON))
    plain.commands.run("/r hi")
    assert [said.to for said in plain.client.unsettled] == ["rob"]
    plain.hear(Left(3, "rob", NOON, "quit"))
    plain.commands.run("/r hi")
    assert plain.hear() == ["! rob has left: not sent"] and len(plain.client.unsettled) == 1


def test_plain_others(plain):
    """Joins stand alone, as nothing can grow; what was removed is told; names are listed."""
    assert plain.hear(Removed(4, 1)) == ["* the host has removed a message"]
    plain.commands.run("/people")
    assert plain.hear() == ["* 3 here: ann, bob, ben"]
