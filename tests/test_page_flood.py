"""A flood on the page: what is drawn, what is kept, and that nothing is lost.

`python tests/test_page_flood.py` prints what 2,000 messages in 2 s cost a full page in Chromium, in
a tab that is looked at and in a hidden one: seconds of CPU of all of its processes.
"""

import argparse
import sys
import threading
import time

import browser as driver
import harness
import page
import pytest
from page import texts

alone, browser, fresh, server = page.alone, page.browser, page.fresh, page.server

TEXTS = ["hello there, everybody", "see http://192.0.2.1/a/b?c=d for it", "ok", "café 日本語 😀",
         "a longer text that goes on for a while so that it takes more than one row on a narrow "
         "page, as people do when they explain something"]
HIDE = """Object.defineProperty(document, "hidden", {value: true, configurable: true});
    document.dispatchEvent(new Event("visibilitychange"));"""
FLOOD = """for (let at = 0; at < %d; at++) fake.say(at %% 3 ? "bob" : "carol", `flood ${at}`);"""


@pytest.mark.parametrize("hidden", [False, True])
def test_flood(alone, hidden):
    """All of a flood is confirmed; the newest 2,000 are on the page, in order, no more."""
    tab = alone("ann")
    if hidden:
        tab.js(HIDE)
    tab.js(FLOOD % 6000)
    tab.wait(page.row("flood 5999"))
    tab.wait("fake.of('ack').at(-1).id === fake.id")
    shown = texts(tab)
    assert shown == [f"flood {number}" for number in range(6000 - len(shown), 6000)]
    assert 2000 <= len(shown) <= 2100
    assert tab.js("document.querySelectorAll('*').length") < 45_000


def test_hidden_tab_makes_no_nodes(alone):
    """What a hidden tab will not keep is never made: only what is kept when it is drawn."""
    tab = alone("ann")
    tab.js(HIDE + "window.made = 0; const kept = view.message; view.message = (...all) => {"
           "made++; return kept.apply(view, all); };")
    tab.js(FLOOD % 9000)
    tab.wait(page.row("flood 8999"))
    assert tab.js("made") <= 2200


def test_formatters_are_made_once(alone):
    """Making a formatter of dates costs more than all of a row: none is made for a message."""
    tab = alone("ann", script="""window.formatters = 0; const Old = Intl.DateTimeFormat;
        Intl.DateTimeFormat = function (...all) { formatters++; return new Old(...all); };
        for (const name of ["toLocaleTimeString", "toLocaleDateString", "toLocaleString"])
            Date.prototype[name] = () => { formatters++; return ""; };""")
    before = tab.js("formatters")
    tab.js(FLOOD % 500)
    tab.wait(page.row("flood 499"))
    assert tab.js("formatters") == before


def test_joins_of_a_class(alone):
    """A class that joins at once is one line and one drawing of the list."""
    tab = alone("ann")
    tab.js("window.drawn = 0; const kept = view.drawPeople; view.drawPeople = () => { drawn++;"
           "kept.call(view); };")
    tab.js("for (let at = 0; at < 150; at++) fake.number({type: 'joined', name: `pupil${at}`})")
    tab.wait("document.querySelectorAll('#people li').length === 153")
    assert len(texts(tab, "#log .event")) == 1 and tab.js("drawn") == 1
    assert "145 others joined" in texts(tab, "#log .event")[0]


# --- The figure ---

def _flood(bots, start, count=2000, seconds=2.0):
    pause, begun = threading.Event(), time.monotonic()
    for number in range(count):
        bots[number % len(bots)].say(f"{start + number} {TEXTS[number % len(TEXTS)]}")
        pause.wait(max(0.0, begun + seconds * number / count - time.monotonic()))


def _cpu(browser):
    return sum(each["cpuTime"] for each in browser.call("SystemInfo.getProcessInfo")["processInfo"])


def measure(hidden):
    """Print what a flood costs a page that is full already."""
    sys.path.insert(0, str(harness.ROOT))
    from chat_client import ChatClient
    browser = driver.Browser()
    with harness.serving("--rate", "0") as server:
        bots = [ChatClient("127.0.0.1", server.port, f"bot{number}") for number in range(5)]
        for bot in bots:
            bot.connect()
        tab = browser.tab()
        tab.open(f"http://127.0.0.1:{server.port}/")
        page.join(tab, "me")
        if hidden:
            tab.js(HIDE)
        for turn in range(3):
            before = _cpu(browser)
            _flood(bots, 2000 * turn)
            tab.wait(f"view.rows.some(row => row.text?.startsWith('{2000 * turn + 1999} '))", 120)
            tab.js("new Promise(done => setTimeout(done, 1500))")
            print(f"{'hidden' if hidden else 'shown'}, {'full' if turn else 'empty'} page: "
                  f"{_cpu(browser) - before:.2f} s of CPU")
        for bot in bots:
            bot.close()
    browser.close()


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    measure(hidden=False)
    measure(hidden=True)
    sys.exit(0)
