"""The page over https in a Chromium that accepts the warning, with a password at its door."""

import contextlib

import pytest

import harness
from browser import Browser
from harness import RawClient
from page import row, say
from test_password import WORD
from tls import certificate, context_of_a_client, key_in


@pytest.fixture(scope="module")
def browser():
    """One browser for all of it."""
    with contextlib.closing(Browser("--ignore-certificate-errors")) as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with a password."""
    word = tmp_path_factory.mktemp("password") / "word"
    word.write_text(WORD, encoding="utf-8")
    with harness.serving("--bind", "127.0.0.1", "--cert", certificate(), "--password-file", word,
                         "--grace", "0.1") as server:
        yield server


@pytest.fixture
def tab(browser):
    """A tab of its own."""
    tab = browser.tab()
    yield tab
    tab.close()


@pytest.fixture
def bob(server):
    """Somebody else in the room."""
    with RawClient(server.port, auto_ack=True, context=context_of_a_client()) as bob:
        bob.join("bob", password=WORD)
        yield bob
        bob.leave()


ASKS = "!document.getElementById('door').hidden && !document.getElementById('ask').hidden"
IN = "!document.getElementById('chat').hidden"


def enter(tab, name, password=None):
    """Fill the door in, and press its button."""
    tab.js(f"document.getElementById('name').value = {name!r}")
    if password is not None:
        tab.js(f"document.getElementById('password').value = {password!r}")
    tab.js("document.getElementById('door-error').hidden = true")
    tab.js("document.getElementById('join').requestSubmit()")


def test_page_in_the_clear_leads_to_https(server, tab):
    """Who opens the address with http comes to https, on the same port."""
    tab.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
    tab.wait("location.protocol === 'https:' && document.readyState === 'complete'")
    assert tab.js("isSecureContext && 'Notification' in window && !!navigator.clipboard")
    assert not tab.js("document.getElementById('encrypted').hidden")


def test_door_asks_for_the_password(server, bob, tab):
    """It asks when the server does, again after a mistake; who is in talks, comes back after a
    reload without being asked, and the password is kept nowhere."""
    tab.open(f"https://127.0.0.1:{server.port}/")
    tab.wait("!document.getElementById('door').hidden")
    assert tab.js("document.getElementById('ask').hidden")
    enter(tab, "ann")
    tab.wait(ASKS)
    enter(tab, "ann", "a mistake")
    tab.wait("document.getElementById('door-error').textContent.includes('not the password')")
    enter(tab, "ann", WORD)
    tab.wait(IN)
    say(tab, "hello")
    assert bob.recv_until("chat", text="hello")["from"] == "ann"
    # Else the page asks before it goes.
    tab.wait(row('hello', '.own'))
    tab.reload()
    bob.say("meanwhile")
    tab.wait(f"{IN} && {row('meanwhile')}")
    kept = tab.js("JSON.stringify([{...localStorage}, {...sessionStorage}]) + location.href")
    assert "hello" in kept and "lait" not in kept
    tab.js("quit()")
    bob.recv_until("left")


def test_session_that_is_gone(serve, tmp_path, tab):
    """After a restart without a history file the page asks for the password again, and what was
    said meanwhile goes out then."""
    word = tmp_path / "word"
    word.write_text(WORD, encoding="utf-8")
    server = serve("--cert", certificate(), "--password-file", word)
    tab.open(f"https://127.0.0.1:{server.port}/")
    enter(tab, "ann", WORD)
    tab.wait(IN)
    tab.js("session.password = ''")
    server.kill()
    tab.wait("!session.joined")
    say(tab, "meanwhile")
    server.start()
    tab.js("session.connect()")
    tab.wait(ASKS)
    enter(tab, "ann", WORD)
    tab.wait(f"{IN} && {row('meanwhile', '.own')}")
    with RawClient(server.port, auto_ack=True, context=context_of_a_client()) as bob:
        bob.join("bob", password=WORD)
        bob.recv_until("chat", text="meanwhile")


def test_host_page_shows_the_key(server, tab):
    """And the digits by which a browser shows it."""
    tab.open(server.printed("Host's page: "))
    tab.wait("!document.getElementById('host-key').hidden")
    shown = tab.js("document.getElementById('host-key').textContent")
    assert key_in(certificate()) in shown and len(shown.split()) > 10
