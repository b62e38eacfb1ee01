"""Who closes the page and comes again under the same name goes on with the session that it had."""

import itertools

import page
import pytest
from harness import RawClient, wait_until
from page import join, row, say

browser, server = page.browser, page.server
KEPT = "stored('session', 'localStorage')"
# A name of its own for each test, as the server keeps that of a closed page for a while.
NAMES = (f"ann{number}" for number in itertools.count())


@pytest.fixture
def bob(server):
    """Somebody else in the room."""
    with RawClient(server.port, auto_ack=True) as bob:
        bob.join("bob")
        yield bob
        bob.leave()


@pytest.fixture
def window(browser, server):
    """A window of a browser, in whose one tab somebody has come in; all its tabs are closed at
    the end."""
    tab = browser.tab()
    tab.open(f"http://127.0.0.1:{server.port}/")
    tab.name = next(NAMES)
    join(tab, tab.name)
    yield tab
    tab.close()


def reopen(tab, server, name):
    """Close the tab, as a user does; come again in another one."""
    other = page.beside(tab)
    tab.browser.call("Target.closeTarget", targetId=tab.target)
    # Until it has gone it answers that it has the session.
    wait_until(lambda: tab.target not in {
        one["targetId"] for one in tab.browser.call("Target.getTargets")["targetInfos"]})
    come(other, server, name)
    return other


def come(tab, server, name):
    tab.open(f"http://127.0.0.1:{server.port}/")
    tab.wait("!document.getElementById('door').hidden")
    if name is not None:
        join(tab, name)


def test_reopened(window, server, bob):
    """The same person to all others, with what was said before and what was said meanwhile; and
    what it says is no duplicate."""
    say(window, "before")
    assert bob.recv_until("chat", text="before")["from"] == window.name
    window.wait(row("before", ".own"))
    again = reopen(window, server, None)
    bob.say("meanwhile")
    assert again.js("document.getElementById('name').value") == window.name
    join(again, window.name.upper())
    again.wait(f"{row('before')} && {row('meanwhile')}")
    assert [text for text in page.texts(again) if text in ("before", "meanwhile")] == [
        "before", "meanwhile"]
    say(again, "after")
    while (frame := bob.recv())["type"] != "chat" or frame["text"] != "after":
        assert frame["type"] not in ("left", "joined"), frame
    assert frame["from"] == window.name
    again.wait(row("after", ".own"))
    again.js("quit()")


def test_renamed_before(window, server, bob):
    """The name of now stands at the door, and leads back."""
    window.js("run('/nick rob')")
    assert bob.recv_until("renamed")["to"] == "rob"
    window.wait("session.name === 'rob'")
    secret = window.js("session.secret")
    again = reopen(window, server, None)
    assert again.js("document.getElementById('name').value") == "rob"
    join(again, "rob")
    assert again.js("session.secret") == secret
    again.js("quit()")


def test_somebody_else_at_the_same_machine(window, server, bob):
    """Under another name one is somebody new, who has nothing of the one before."""
    bob.say("for one alone", to=window.name)
    window.wait(row("for one alone", ".private"))
    secret = window.js("session.secret")
    again = reopen(window, server, "carol")
    assert again.js("session.secret") != secret and not again.js(row("for one alone"))
    again.js("quit()")


def test_left_is_forgotten(window):
    """Who leaves on purpose comes as somebody new."""
    assert window.js(KEPT + ".secret") == window.js("session.secret")
    window.js("quit()")
    window.wait("!document.getElementById('door').hidden")
    assert window.js(KEPT) is None


@pytest.mark.parametrize("is_first_in", [True, False])
def test_two_tabs_at_once(window, server, is_first_in):
    """A second tab takes nothing from the first, whether it came to the door before or after the
    first one was in."""
    other = page.beside(window)
    if not is_first_in:
        window.js("session.active = false; session.remember = () => {}; session.drop()")
        come(other, server, None)
        window.js(f"session.active = true; session.goOn({KEPT}); session.start('{window.name}')")
        window.wait("session.joined")
    else:
        other.open(f"http://127.0.0.1:{server.port}/")
    other.wait("elsewhere")
    other.js("document.getElementById('join').requestSubmit()")
    other.wait("document.querySelector('#door-error button')")
    other.click("#door-error button")
    other.wait("session.joined")
    assert other.js("session.name") == f"{window.name}-2"
    say(window, "still here")
    window.wait(row("still here", ".own"))
    other.js("quit()")
    window.js("quit()")
