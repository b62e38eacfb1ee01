"""A name that was given for now becomes the wanted one when its holder was the same person's lost
session, and no other's: in a terminal and on a page."""

import os

import pytest

import chat_client
import page
from chatproto import Left, Welcome
from display import NOON, chat

browser, server, fresh = page.browser, page.server, page.fresh


@pytest.mark.skipif(os.name != "posix", reason="one process has all locks of a file, elsewhere")
@pytest.mark.parametrize("is_own, reason, name, asks", [
    (True, "gone away", "ann", True), (True, "quit", "ann", False),
    (True, "gone away", "bob", False), (False, "gone away", "ann", False)])
def test_terminal(desk, monkeypatch, tmp_path, is_own, reason, name, asks):
    """Another terminal of the user had the name, and was lost."""
    def taken(lock, byte):
        raise BlockingIOError
    if is_own:
        monkeypatch.setattr(chat_client, "_lock_byte", taken)
    ann = desk(config=str(tmp_path / "client.json"))
    ann.window._kept.take()
    ann.connect(Welcome("ann-2", "s", "e", ("ann", "bob", "ann-2"), 1))
    ann.hear(chat("hello", id=2), Left(3, name, NOON, reason))
    assert b"".join(ann.sent).count(b'"type":"rename","id":1,"name":"ann"') == asks
    # Whoever has it is nobody's ghost any more.
    ann.hear(Left(4, "bob", NOON, "gone away"))
    assert b"".join(ann.sent).count(b'"type":"rename"') == asks


@pytest.mark.parametrize("is_own", [True, False])
def test_page(fresh, is_own):
    """Another tab of the browser had the name, and was lost."""
    tab = fresh(page.FAKE)
    tab.js(f"elsewhere = {str(is_own).lower()};"
           "store('session', {secret: 'old', epoch: 'e1', wanted: 'ann', seen: 0},"
           " 'localStorage'); fake.users = ['ann', 'bob']; fake.resumes = false;"
           "fake.welcome = {name: 'ann-2'}")
    page.join(tab, "ann")
    for name, reason in ("bob", "gone away"), ("ann", "quit"), ("ann", "gone away"):
        tab.js(f"fake.number({{type: 'left', name: '{name}', at: 1, reason: '{reason}'}})")
    assert tab.js("fake.of('rename').map(frame => frame.name)") == ["ann"] * is_own
