"""What the page's tests share: a browser for a module, tabs, and a server that a test plays itself.

    import page
    from page import row, say
    alone = page.alone                      # a fixture, in the module that uses it

    tab = enter("ann")                      # a tab that is in, at the real server
    tab = alone("ann", users=["bob"])       # a tab that is in, at the fake one
    tab.js("fake.say('bob', 'hello')")      # the fake server's word; fake.sent: the page's frames

The fake server takes the place of the page's WebSocket, in the page itself: it answers a join,
acknowledges what is numbered and sends each chat back at its place, as the real one does. A test
changes what it does by `fake.welcome`, `fake.take` and the like before it lets the page join.
"""

import copy
import json

import pytest

import browser as driver
import harness

FAKE = """
window.fake = {sent: [], id: 100, got: 0, epoch: "e1", users: [], welcome: {}, resumes: true,
    silent: false,
    push(frame) { fake.socket?.onmessage?.({data: JSON.stringify(frame)}); },
    number(frame) { fake.push({id: ++fake.id, ...frame}); return fake.id; },
    say(from, text, more) {
        return fake.number({type: "chat", from, text, at: Date.now() / 1000, ...more}); },
    of(type) { return fake.sent.filter(frame => frame.type === type); },
    answer(frame) { return false; },        // true: a test has answered it
    take(frame) {
        if (frame.type === "join") {
            fake.name = frame.name;
            fake.push({type: "welcome", name: frame.name, session: "secret", epoch: fake.epoch,
                users: [frame.name, ...fake.users], last: fake.id, got: fake.got, missed: 0,
                resumed: !!frame.session && fake.resumes, ...fake.welcome});
        } else if (frame.id && frame.type !== "ack" && !fake.silent && !fake.answer(frame)) {
            fake.got = frame.id;
            if (frame.type === "chat") fake.say(fake.name, frame.text, {cid: frame.id,
                to: frame.to});
            fake.push({type: "ack", id: frame.id});
        }
    }};
WebSocket = class {
    constructor() {
        fake.socket = this;
        this.readyState = 0;
        setTimeout(() => { this.readyState = 1; this.onopen?.(); });
    }
    send(text) { const frame = JSON.parse(text); fake.sent.push(frame); fake.take(frame); }
    close() { this.readyState = 3; }
};
"""


@pytest.fixture(scope="module")
def browser():
    """One browser for the module; at its end no page may have complained."""
    browser = driver.Browser()
    # Tabs that another test may use: far cheaper than new ones.
    browser.spare = []
    yield browser
    errors = browser.errors()
    browser.close()
    assert not errors, errors


@pytest.fixture(scope="module")
def server():
    """The real server, which serves the page to the fake one's tests as well."""
    with harness.serving("--rate", "0") as server:
        yield server


@pytest.fixture
def fresh(browser, server):
    """fresh(script) is a tab with the page at its door; `script` runs before the page's own."""
    tabs = []

    def fresh(script=None, width=1280, height=800, dark=False, path="/"):
        usual = script in (None, FAKE)
        tab = browser.spare.pop() if usual and browser.spare else browser.tab()
        tab.size(width, height)
        tab.look(dark)
        added = tab.call("Page.addScriptToEvaluateOnNewDocument", source=script or "")["identifier"]
        tabs.append((tab, added if usual else None))
        tab.open(f"http://127.0.0.1:{server.port}{path}")
        return tab
    yield fresh
    for tab, added in tabs:
        # Where a test went without scripts there is no session.
        tab.js("typeof session === 'object' && (session.active = false, session.said.clear())")
        if added is None:
            tab.close()
            continue
        tab.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added)
        tab.call("Emulation.setTouchEmulationEnabled", enabled=False)
        tab.forget()
        browser.spare.append(tab)


@pytest.fixture
def enter(fresh):
    """enter(name) is a tab whose person has come in to the real server."""
    def enter(name, **options):
        tab = fresh(**options)
        join(tab, name)
        return tab
    return enter


@pytest.fixture
def alone(fresh):
    """alone(name) is a tab whose person has come in to the fake server."""
    def alone(name="ann", before="", script="", users=("bob", "carol"), **options):
        tab = fresh(FAKE + script, **options)
        tab.js(f"fake.users = {json.dumps(list(users))}; {before}")
        join(tab, name)
        return tab
    return alone


def beside(tab):
    """Another tab of the same window, with the same storage but for that of the tab."""
    other = copy.copy(tab)
    other.target = tab.browser.call("Target.createTarget", url="about:blank",
                                    browserContextId=tab.context)["targetId"]
    other._session = tab.browser.call("Target.attachToTarget", targetId=other.target,
                                      flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log"):
        other.call(f"{domain}.enable")
    return other


def join(tab, name):
    """Come in by the door."""
    tab.js("document.getElementById('name').value = ''")
    tab.type(name, "name")
    tab.key("Enter")
    tab.wait("session.joined")


def leaves(tab):
    """Answer the question whether to leave with something unsent, once it is asked."""
    try:
        tab.call("Page.handleJavaScriptDialog", accept=True)
        return True
    except AssertionError:
        return False


def say(tab, text):
    """Type a line and send it."""
    tab.type(text, "input")
    tab.key("Enter")


def scroll(tab, top):
    """Scroll the talk as a person does, after all that the page still has to draw and to scroll by
    itself: in one frame with that it would be undone before the page has heard of it."""
    tab.js(f"""new Promise(done => {{
        const look = () => {{
            if (view.drawing) requestAnimationFrame(look);
            else done(scroller.scrollTop = {top});
        }};
        requestAnimationFrame(() => requestAnimationFrame(look)); }})""")


def row(text, more=""):
    """An expression: the row of the message with that text that the selector `more` fits."""
    return (f"[...document.querySelectorAll('#log .msg{more}')].find(row => "
            f"row.querySelector('.text').textContent === {json.dumps(text)})")


def texts(tab, where="#log .text"):
    """The texts of what a selector finds."""
    return tab.js(f"[...document.querySelectorAll({json.dumps(where)})].map(at => at.textContent)")


def errors_of(tab):
    """What the page has complained about since the last time, taken off the browser's list."""
    return tab.browser.errors()
