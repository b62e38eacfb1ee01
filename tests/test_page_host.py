"""The host's view: what was done stays said, and the address is shown to the whole room."""

import json

import page
import pytest

browser, fresh, server = page.browser, page.fresh, page.server

HOST = """window.state = {people: [["bob", "192.0.2.7", 61]], motd: "", name: "", url: "%s",
        qr: %s};
    window.orders = []; window.fetch = async (path, options) => {
        if (options.body) orders.push(JSON.parse(options.body));
        return {status: 200, json: async () => state}; };"""
URL = "http://192.168.1.20:8087/"


@pytest.fixture
def host(fresh):
    """host(url, rows) is a tab with the host's view, whose server the test plays."""
    def host(url="", rows=()):
        tab = fresh(HOST % (url, json.dumps(list(rows))), path="/#host=secret")
        tab.wait("document.querySelectorAll('#host-people tr').length === 1")
        return tab
    return host


def test_what_was_done_stays_said(host):
    """Said and Saved stay until something else is done, however often the view asks again."""
    tab = host()
    note = "document.getElementById('host-note').textContent"
    tab.type("Lunch", "host-say")
    tab.key("Enter")
    tab.wait(f"{note} === 'Said.'")
    tab.js("host()")
    tab.js("state.people = []; host()")
    tab.wait("!document.querySelector('#host-people tr')")
    assert tab.js(note) == "Said."
    tab.js("document.getElementById('host-motd-form').requestSubmit()")
    tab.wait(f"/Saved/.test({note})")
    assert [order["do"] for order in tab.js("orders")] == ["/say Lunch", "/motd -"]


def test_what_destroys_is_red(host):
    """Boot has another colour than what does no harm, in the list and where it is confirmed."""
    tab = host()
    colour = "getComputedStyle(document.querySelector('%s')).%s"
    calm = tab.js(colour % ("#host-motd-form button", "color"))
    assert tab.js(colour % ("#host-people button", "color")) != calm
    tab.click("#host-people button")
    assert tab.js(colour % ("#boot .main", "backgroundColor")) != tab.js(
        colour % ("#host-say-form .main", "backgroundColor"))
    tab.key("Escape")
    assert tab.js("orders.length") == 0


def test_address_for_the_whole_room(host):
    """The address and its code are shown, and fill the screen on a click."""
    tab = host(URL, ["101", "010", "111"])
    tab.wait("!document.getElementById('host-qr').hidden")
    tab.click("#host-qr")
    tab.wait("document.getElementById('wall').open")
    box = tab.js("document.querySelector('#wall svg').getBoundingClientRect().toJSON()")
    assert box["height"] > 500 and URL in tab.js("document.querySelector('#wall').textContent")
    assert tab.js("document.querySelector('#wall path').getAttribute('d')").count("M") == 6
    assert tab.js("document.querySelector('#wall svg').getAttribute('viewBox')") == "0 0 11 11"
    assert tab.js("document.documentElement.scrollWidth <= innerWidth")
    tab.key("Escape")
    tab.wait("!document.getElementById('wall').open")
    assert host().js("document.getElementById('host-qr').hidden")
