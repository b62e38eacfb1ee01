"""What goes wrong around the page: no storage, a view that throws, two tabs, something unsent."""

import harness
import page
import pytest
from page import errors_of, join, row, say, texts

alone, browser, fresh, server = page.alone, page.browser, page.fresh, page.server

NO_STORAGE = {
    "absent": """for (const name of ["sessionStorage", "localStorage"])
        Object.defineProperty(window, name, {get() { throw new DOMException("no",
            "SecurityError"); }});""",
    "null": """for (const name of ["sessionStorage", "localStorage"])
        Object.defineProperty(window, name, {get: () => null});""",
    "full": """Storage.prototype.setItem = () => {
        throw new DOMException("full", "QuotaExceededError"); };""",
    "unreadable": """Storage.prototype.getItem = () => {
        throw new DOMException("no", "SecurityError"); };""",
    "damaged": """for (const key of ["core", "log", "settings", "draft", "name"]) {
        sessionStorage.setItem("roger." + key, "{"); localStorage.setItem("roger." + key, "[1");
        }""",
    "no channel": """window.BroadcastChannel = class {
        constructor() { throw new Error("no"); } };""",
    "no extras": """for (const name of ["ResizeObserver", "Notification", "visualViewport",
        "AudioContext",
        "BroadcastChannel"]) { delete window[name]; Object.defineProperty(window, name,
            {value: undefined}); }""",
}


# The page gives other tabs 100 ms to answer, which a busy machine does not keep to.
UNTIL_ANSWERED = """const later = setTimeout; setTimeout = (act, wait, ...rest) => wait !== 100
    ? later(act, wait, ...rest)
    : later(function look() { if (elsewhere) act(); else later(look, 20); });"""


@pytest.mark.parametrize("kind", NO_STORAGE)
def test_blocked(alone, kind):
    """Without storage, or with one that throws anywhere, the page works as far as a reload."""
    tab = alone("ann", script=NO_STORAGE[kind])
    say(tab, "hello")
    tab.wait(row("hello", ".own"))
    tab.js("fake.say('bob', 'hello ann')")
    tab.wait(row("hello ann", ".mention"))
    say(tab, "/quiet")
    tab.js("view.keep(); session.keep()")
    assert tab.js("session.queue.length") == 0


def test_without_javascript(fresh):
    """It says what to do, in words, where scripts are off."""
    tab = fresh()
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    tab.call("Page.reload")
    tab.call("Emulation.setScriptExecutionDisabled", value=False)
    tab.wait("document.querySelector('noscript')?.textContent.includes('needs JavaScript')"
             " || document.body.innerText.includes('needs JavaScript')")


def test_notification_that_throws(alone):
    """As on Android: the message is seen and confirmed, comes once, and the talk goes on."""
    tab = alone("ann", script="""window.Notification = class { constructor() {
        throw new TypeError("Illegal constructor"); } static permission = "granted"; };""")
    tab.js("settings.notify = true; document.hasFocus = () => false")
    tab.js("for (let times = 0; times < 5; times++) fake.say('bob', `ann ${times}`)")
    tab.wait("document.querySelectorAll('#log .mention').length === 5 && session.late === 0")
    tab.js("for (let id = 101; id <= 105; id++) "
           "fake.push({type: 'chat', id, from: 'bob', text: 'x'})")
    tab.js("fake.say('bob', 'last')")
    tab.wait(row("last"))
    assert len(texts(tab)) == 6
    assert tab.js("fake.of('ack').at(-1).id") >= 105


@pytest.mark.parametrize("what", ["chat", "announce", "row", "message", "event", "heard", "add",
    "pin",
                                  "spoke", "drawPeople", "noteOf"])
def test_view_that_throws(alone, what):
    """Whatever throws in the view: what came is confirmed all the same, and one word says so once.
    Whatever throws in the view: what came is confirmed all the same, and one word says so once."""
    tab = alone("ann")
    tab.js(f"window.kept = view.{what}; view.{what} = () => {{ throw new Error('a bug') }}")
    tab.js("""const id = fake.say('bob', 'one'); fake.number({type: 'joined', name: 'dora'});
        fake.number({type: 'motd', text: 'x'}); fake.push({type: 'heard', about: id, count: 1,
            of: 1});
        fake.say('bob', 'two')""")
    tab.wait("fake.of('ack').at(-1)?.id === fake.id")
    tab.js(f"view.{what} = kept; fake.say('bob', 'three')")
    tab.wait(row("three"))
    assert sum("a bug" in text for text in texts(tab, "#log .note")) <= 1
    assert tab.js("session.joined")
    if what == "drawPeople":
        assert "a bug" in errors_of(tab)[0]


def test_unsent_asks(alone):
    """Who closes the page or leaves with something unsent is asked; without, is not."""
    tab = alone("ann")
    asked = """(() => { const event = new Event("beforeunload", {cancelable: true});
        dispatchEvent(event); return event.defaultPrevented; })()"""
    assert not tab.js(asked)
    tab.js("fake.silent = true")
    say(tab, "not yet")
    assert tab.js(asked)
    tab.js("window.confirm = text => { window.question = text; return false; }")
    say(tab, "/quit")
    assert "1" in tab.js("question") and tab.js("session.joined")
    tab.js("window.confirm = () => true; quit()")
    tab.wait("!document.getElementById('door').hidden")
    assert not tab.js(asked) and not tab.js("document.querySelector('#pending .msg')")


def test_two_tabs(browser, server):
    """A tab that was duplicated does not take the talk away; it offers to, and the other takes it
    back."""
    first = browser.tab()
    address = f"http://127.0.0.1:{server.port}/"
    first.open(address)
    join(first, "twin")
    say(first, "from the first")
    first.wait(row("from the first", ".own"))
    core, log = (first.js(f"view.keep(); sessionStorage.getItem('roger.{key}')") or first.js(
        f"sessionStorage.getItem('roger.{key}')") for key in ("core", "log"))
    second = page.beside(first)
    second.open(address)
    second.wait("!document.getElementById('elsewhere').hidden")
    assert "twin" in second.js("document.getElementById('elsewhere').textContent")
    second.js(f"sessionStorage.setItem('roger.core', {core!r}); "
              f"sessionStorage.setItem('roger.log', {log!r})")
    second.js("window.keepNothing = store; store = () => true")
    second.call("Page.addScriptToEvaluateOnNewDocument", source=UNTIL_ANSWERED)
    second.reload()
    second.wait("!document.getElementById('banner').hidden && "
                "!document.getElementById('door').hidden")
    assert first.js("session.joined") and "another tab" in second.js(
        "document.getElementById('banner').textContent")
    second.js("document.querySelector('#banner button').click()")
    second.wait(f"session.joined && {row('from the first')}")
    first.wait("!session.active && !document.getElementById('banner').hidden")
    words = first.js("document.getElementById('banner').textContent")
    assert "booted" not in words and "another tab" in words
    say(second, "from the second")
    second.wait(row("from the second", ".own"))
    first.js("document.querySelector('#banner button').click()")
    first.wait(f"session.joined && {row('from the second')}")
    say(first, "back again")
    first.wait(f"{row('back again', '.own')} && session.queue.length === 0")
    assert texts(first) == ["from the first", "from the second", "back again"]
    second.wait("!session.active")
    second.js("session.active = false")
    second.close()


def test_taken_over_with_something_unsent(alone):
    """It is not confirmed, and never takes another message's confirmation for its own."""
    tab = alone("ann")
    tab.js("fake.silent = true")
    say(tab, "mine")
    tab.js("fake.number({type: 'booted', reason: 'this session has joined again from elsewhere'})")
    tab.wait("/not confirmed/.test(document.querySelector('#pending .state').textContent)")
    tab.js("fake.silent = false; fake.got = 1; "
           "fake.number({type: 'chat', from: 'ann', text: 'other', cid: 1})")
    tab.js("document.querySelector('#banner button').click()")
    tab.wait("session.joined")
    tab.js("fake.say('ann', 'other', {cid: 1})")
    tab.wait(row("other", ".own"))
    assert texts(tab, "#pending .text") == ["mine"]
    say(tab, "next")
    tab.wait(row("next", ".own"))
    assert tab.js("fake.of('chat').at(-1).id") == 2


@pytest.mark.parametrize("name, other", [("ann lee", "ann_lee"), ("o'hara", "o_hara"), (" <ann>! ",
    "ann"),
                                         ("two  words here", "two_words_here")])
def test_name_that_works(fresh, name, other):
    """A name that cannot be is answered with one that can, one click away."""
    tab = fresh()
    tab.type(name, "name")
    tab.key("Enter")
    tab.wait("document.querySelector('#door-error button')")
    assert tab.js("document.querySelector('#door-error button').textContent") == f"Join as {other}"
    tab.click("#door-error button")
    tab.wait(f"session.joined && session.name.startsWith('{other}')")


def test_end_stays_in_view(alone):
    """Rotated, or with a keyboard that opens, the end of the talk stays where it can be seen."""
    tab = alone("ann", width=360, height=740)
    tab.js("for (let at = 0; at < 60; at++) "
           "fake.say('bob', `line ${at} ` + 'word '.repeat(at % 9))")
    tab.wait(row("line 59 " + "word " * 5))
    for width, height in ((740, 360), (360, 740), (360, 400), (320, 568)):
        tab.size(width, height)
        last = row("line 59 " + "word " * 5)
        tab.wait(f"innerWidth === {width} && innerHeight === {height} && view.atEnd && nearEnd()"
                 f" && {last}.getBoundingClientRect().bottom <= innerHeight")
    page.scroll(tab, 0)
    tab.wait("!view.atEnd")
    tab.size(740, 360)
    tab.wait("innerWidth === 740")
    assert not tab.js("view.atEnd")


def test_long_text_is_told(alone):
    """A text that is too long for one message says how many it becomes."""
    tab = alone("ann")
    tab.type("x" * 20_000, "input")
    tab.wait("!document.getElementById('strip').hidden")
    assert "3 messages" in tab.js("document.getElementById('strip').textContent")
    tab.key("Enter")
    tab.wait("fake.of('chat').length === 3 && document.getElementById('strip').hidden")


def test_door_says_which_room(browser):
    """What the server is called is in the title and on the door, whatever it is called."""
    name = "Lab <3> & \"co\""
    with harness.serving("--rate", "0", "--name", name) as named:
        tab = browser.tab()
        tab.open(f"http://127.0.0.1:{named.port}/")
        tab.wait("!document.getElementById('door').hidden")
        assert tab.js("document.title") == name
        assert f"{name} (127.0.0.1:{named.port})" in tab.js(
            "document.getElementById('where').textContent")
        tab.close()
