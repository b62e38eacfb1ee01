"""Talking on the page: in private, in answer, by command; rules of the room, removal, search."""

import json

import harness
import page
import pytest
from page import row, say, texts

alone, browser, fresh, server = page.alone, page.browser, page.fresh, page.server

STRIP = "document.getElementById('strip')"
CHIP = "document.getElementById('chip')"
NOTE = "[...document.querySelectorAll('#log .note')].at(-1)?.textContent"


def speak_to(tab, name):
    """Open the chip as a person does: a click on the name in the list, then the first button."""
    tab.wait(f"document.querySelector('#people li[data-name={json.dumps(name)}]')")
    tab.click(f"#people li[data-name={json.dumps(name)}] button")
    tab.wait("document.getElementById('card').open")
    tab.key("Enter")
    tab.wait(f"!{CHIP}.hidden && {CHIP}.textContent.includes({json.dumps(name)})")


# --- In private ---

def test_private_by_click(alone):
    """A click on a name, and what one writes goes to that person alone, until Escape."""
    tab = alone("ann")
    speak_to(tab, "bob")
    assert "bob" in tab.js(f"{CHIP}.textContent") and tab.js("document.activeElement.id") == "input"
    assert "bob" in tab.js("input.placeholder")
    assert tab.js("document.getElementById('send').textContent") == "Send privately"
    say(tab, "a secret")
    tab.wait(row("a secret", ".own.private"))
    say(tab, "/me winks")
    tab.wait(row("winks", ".own.private"))
    assert [(each["to"], each["seen"] >= 100) for each in tab.js("fake.of('chat')")] == [("bob",
        True)] * 2
    tab.key("Escape")
    assert tab.js(f"{CHIP}.hidden")
    say(tab, "to all")
    tab.wait(row("to all", ".own:not(.private)"))
    assert "to" not in tab.js("fake.of('chat').at(-1)") and "seen" not in tab.js(
        "fake.of('chat').at(-1)")


def test_private_draft_is_never_said_in_public(alone):
    """What was typed for one stays with that one: Escape, or another person, brings their own
    draft."""
    tab = alone("ann")
    tab.type("half a public line", "input")
    speak_to(tab, "bob")
    assert tab.js("input.value") == ""
    tab.type("for bob", "input")
    tab.key("Escape")
    assert tab.js("input.value") == "half a public line"
    tab.js("input.value = ''")
    tab.key("Enter")
    assert tab.js("fake.of('chat').length") == 0
    speak_to(tab, "carol")
    assert tab.js("input.value") == ""
    speak_to(tab, "bob")
    assert tab.js("input.value") == "for bob"
    tab.click("#chip button")
    assert tab.js(f"{CHIP}.hidden && input.value") == ""


def test_private_follows_the_person(alone):
    """After bob became rob and another bob came, what is for bob goes to rob; once he has left,
    nowhere."""
    tab = alone("ann")
    speak_to(tab, "bob")
    tab.js("fake.say('bob', 'psst', {to: 'ann'})")
    tab.wait(row("psst", ".private"))
    tab.js("""fake.number({type: 'renamed', name: 'bob', to: 'rob'});
        fake.number({type: 'joined', name: 'bob'})""")
    tab.wait(f"/rob/.test({CHIP}.textContent)")
    say(tab, "one")
    say(tab, "/reply two")
    tab.wait(row("two", ".own"))
    assert [each["to"] for each in tab.js("fake.of('chat')")] == ["rob", "rob"]
    tab.js("fake.number({type: 'left', name: 'rob'}); fake.number({type: 'joined', name: 'rob'})")
    tab.wait(f"/has left/.test({STRIP}.textContent)")
    say(tab, "three")
    assert tab.js("input.value") == "three" and "has left" in tab.js(STRIP + ".textContent")
    tab.js("input.value = ''")
    say(tab, "/reply four")
    tab.wait(f"/has left/.test({NOTE})")
    tab.js("input.value = ''")
    tab.key("Escape")
    say(tab, "/msg rob five")
    tab.wait(row("five", ".own"))
    assert [each["text"] for each in tab.js("fake.of('chat')")] == ["one", "two", "five"]


def test_private_over_another_server(alone):
    """After a server that knows nobody any more, a chip and /reply reach nobody, and what waited
    cannot reach a stranger: `seen` is 0."""
    tab = alone("ann")
    tab.js("fake.say('bob', 'psst', {to: 'ann'})")
    speak_to(tab, "bob")
    tab.js("fake.silent = true")
    say(tab, "waits")
    tab.js("fake.silent = false; fake.epoch = 'e2'; fake.resumes = false; "
           "fake.id = 3; fake.sent = []; "
           "session.connect()")
    tab.wait("session.joined && fake.of('chat').length")
    assert tab.js("fake.of('chat')[0].seen") == 0
    assert tab.js("target.gone") and tab.js("view.lastPrivate") is None
    say(tab, "to nobody")
    assert tab.js("fake.of('chat').length") == 1 and tab.js("input.value") == "to nobody"


def test_chip_over_a_reload(alone, browser):
    """The chip and its draft are there again after a reload."""
    tab = alone("ann")
    speak_to(tab, "bob")
    tab.type("half", "input")
    tab.js("view.keep(); session.keep()")
    tab.reload()
    tab.wait(f"!{CHIP}.hidden && input.value === 'half'")


def test_field_after_a_reload(alone):
    """The field is as high as before: what stands in it, hint or draft, can be read."""
    tab = alone("ann")
    height = tab.js("input.offsetHeight")
    tab.reload()
    tab.wait("session.joined")
    assert tab.js("input.offsetHeight") == height > 20
    tab.type("one\ntwo", "input")
    two = tab.js("input.offsetHeight")
    tab.reload()
    tab.wait("session.joined")
    assert tab.js("[input.value, input.offsetHeight]") == ["one\ntwo", two] and two > height


# --- By command ---

@pytest.mark.parametrize("line", ["  /msg bob secret", "/MSG bob secret", "\n/w bob secret",
    "/W bob  secret"])
def test_command_is_never_said(alone, line):
    """A line whose first word is a known command is that command, after blanks and in any case."""
    tab = alone("ann")
    tab.js(f"input.value = {json.dumps(line)}; send()")
    tab.wait("fake.of('chat').length")
    assert tab.js("fake.of('chat').map(frame => [frame.text, frame.to])") == [["secret", "bob"]]


def test_what_is_no_command(alone):
    """A slash of no command after a blank is text; at the start it is an error; // says a slash."""
    tab = alone("ann")
    for line in (" /nonsense x", "//msg bob x", "a /msg bob x", "/nonsense x"):
        tab.js(f"input.value = {json.dumps(line)}; send()")
    tab.wait(f"/is not a command/.test({NOTE})")
    assert tab.js("fake.of('chat').map(frame => frame.text)") == [" /nonsense x", "/msg bob x",
        "a /msg bob x"]


def test_ignore_follows_a_rename(alone):
    """Who is not shown stays so under another name, and whoever takes the old one is shown."""
    tab = alone("ann")
    say(tab, "/ignore BOB")
    tab.js("""fake.say('bob', 'no'); fake.number({type: 'renamed', name: 'bob', to: 'rob'});
        fake.say('rob', 'no'); fake.number({type: 'joined', name: 'bob'}); fake.say('bob',
            'yes')""")
    tab.wait(row("yes"))
    assert texts(tab) == ["yes"]


# --- In answer ---

def test_reply(alone):
    """One click puts a quote above what one writes; it goes where the message came from."""
    tab = alone("ann")
    tab.js("fake.say('bob', 'first line\\nsecond'); fake.say('bob', 'psst', {to: 'ann'})")
    tab.wait(row("psst"))
    tab.type("my answer", "input")
    tab.js(f"{row(chr(10).join(['first line', 'second']))}.focus()")
    tab.js("document.querySelector('.acts button').click()")
    assert tab.js("input.value") == "> bob: first line\nmy answer" and tab.js(f"{CHIP}.hidden")
    tab.key("Enter")
    tab.wait(row("> bob: first line\nmy answer"))
    assert tab.js("document.querySelector('#log .own blockquote').textContent"
                  ) == "> bob: first line"
    tab.js(f"{row('psst')}.focus()")
    tab.js("document.querySelector('.acts button').click()")
    assert tab.js(f"!{CHIP}.hidden && target.name") == "bob"
    say(tab, "ok")
    tab.wait("fake.of('chat').at(-1).to === 'bob'")


@pytest.mark.parametrize("width", [1280, 320])
def test_what_failed_can_be_taken_up(alone, width):
    """Why it failed and what can be done about it is in view, on a phone as well."""
    tab = alone("ann", width=width)
    tab.js("""fake.answer = frame => { if (frame.type !== "chat") return false;
        fake.number({type: 'error', code: 'no-such-user', text: 'nobody here is called zoe',
            about: frame.id}); return true; }""")
    say(tab, "/msg zoe hello?")
    tab.wait("document.querySelectorAll('#pending .state button').length === 2")
    assert tab.js("""[...document.querySelectorAll("#pending .state, #pending .state button")]
        .every(at => { const box = at.getBoundingClientRect();
            return box.left >= 0 && box.right <= innerWidth && box.width > 20; })""")
    tab.click("#pending .state button")
    assert tab.js("input.value") == "/msg zoe hello?"
    assert not tab.js("document.querySelector('#pending .msg')")


# --- The rules of the room ---

def test_rules(alone):
    """Only the host speaks, nothing private, slowly: each is said,
        and what may not be said now stays
    in the line."""
    tab = alone("ann")
    rules = ("fake.number({type: 'rules', speak: 'all', private: true, slow: 0, "
             "host: 'Teacher', ...%s})")
    tab.js(rules % "{speak: 'host'}")
    tab.wait(f"/Only Teacher speaks/.test({STRIP}.textContent)")
    say(tab, "let me")
    assert tab.js("input.value") == "let me" and tab.js("fake.of('chat').length") == 0
    tab.js(rules % "{private: false}")
    tab.wait(f"{STRIP}.hidden")
    tab.key("Enter")
    tab.wait(row("let me", ".own"))
    tab.js("speakTo(view.person('bob'))")
    tab.wait(f"/switched off/.test({NOTE})")
    assert tab.js(f"{CHIP}.hidden")
    say(tab, "/msg bob x")
    tab.js("input.value = ''")
    assert tab.js("fake.of('chat').length") == 1
    tab.js(rules % "{slow: 30}")
    tab.wait(f"/every 30 s/.test({STRIP}.textContent)")
    say(tab, "one")
    tab.wait(row("one", ".own"))
    say(tab, "two")
    tab.wait(f"/Again in/.test({STRIP}.textContent)")
    assert tab.js("input.value") == "two"
    tab.js(rules % "{}")
    tab.wait(f"{STRIP}.hidden")
    tab.key("Enter")
    tab.wait(row("two", ".own"))
    tab.js("fake.say('Teacher', 'well done')")
    tab.wait(row("well done", ".server"))


def test_rules_that_the_server_says_first(alone):
    """The chip that is open when private talk ends sends nothing; errors by their code are shown.
    The chip that is open when private talk ends sends nothing; errors by their code are shown."""
    tab = alone("ann")
    speak_to(tab, "bob")
    tab.js("fake.number({type: 'rules', speak: 'all', private: false, slow: 0, host: 'Server'})")
    tab.wait(f"/switched off/.test({STRIP}.textContent)")
    say(tab, "secret")
    assert tab.js("fake.of('chat').length") == 0 and tab.js("input.value") == "secret"
    tab.key("Escape")
    tab.js("""fake.answer = frame => { if (frame.type !== "chat") return false;
    fake.number({type: 'error',
        code: 'muted', text: 'you may speak again at 14:05', about: frame.id}); return true; }""")
    say(tab, "public")
    tab.wait("/14:05/.test(document.querySelector('#pending .failed .state').textContent)")
    tab.js("settings.lang = 'de'; speak(); view.redrawAll()")
    assert tab.js("document.querySelector('#pending .state').textContent").startswith(
        "nicht gesendet: Jetzt nicht (you may speak again at 14:05)")


def test_pinned_line(alone):
    """The message of the day stands above the talk, changes at once, and goes; it is text."""
    tab = alone("ann", before="fake.welcome = {motd: 'Be <b>kind</b>.'}")
    pinned = "document.getElementById('pinned')"
    tab.wait(f"{pinned}.textContent === 'Be <b>kind</b>.' && !{pinned}.hidden")
    tab.js("fake.number({type: 'motd', text: 'Lunch http://192.0.2.1/'})")
    tab.wait(f"{pinned}.querySelector('a')")
    tab.js("fake.number({type: 'motd'})")
    tab.wait(f"{pinned}.hidden")


def test_removed(alone):
    """What the host takes back is gone from the page and from what it keeps, and says so in its
    place."""
    tab = alone("ann")
    tab.js("""window.id = fake.say('bob', 'ann: something bad'); fake.say('bob', 'after');
        fake.number({type: 'removed', about: id}); fake.number({type: 'removed', about: 4711})""")
    tab.wait(row("(removed by the host)"))
    assert texts(tab) == ["(removed by the host)", "after"]
    say(tab, "mine")
    tab.wait(row("mine"))
    tab.js("fake.number({type: 'removed', about: fake.id}); view.keep()")
    tab.wait("document.querySelectorAll('#log .removed').length === 2")
    kept = tab.js("sessionStorage.getItem('roger.log')")
    assert "bad" not in kept and "mine" not in kept
    assert not tab.js("document.querySelector('#log .mention')")


# --- Search ---

SEARCHING = """
fake.entries = [];
for (let id = 1; id <= 90; id++) fake.entries.push({type: "chat", id,
    from: id % 2 ? "bob" : "carol",
    text: `said ${id}` + (id % 30 === 10 ? " Pelikan café" : ""), at: 1.7e9 + id});
fake.answer = frame => {
    if (frame.type !== "history") return false;
    const keys = (frame.find || "").split(" ").map(nameKey), below = frame.before ?? Infinity;
    const looked = fake.entries.filter(entry => entry.id < below)
        .slice(-(frame.find ? 35 : frame.count));
    const found = looked.filter(entry => keys.every(key => nameKey(entry.text).includes(key)));
    const older = looked.length && looked[0].id > 1 ? looked[0].id : undefined;
    fake.push({type: "history", about: frame.id, entries: found, older,
        find: fake.knows ? frame.find : undefined});
    fake.got = frame.id;
    fake.push({type: "ack", id: frame.id});
    return true;
};
"""
COUNT = "document.getElementById('search-count').textContent"
HIT = "document.querySelector('#log .msg.hit .text')?.textContent"


@pytest.fixture
def searching(alone):
    def searching(knows):
        tab = alone("ann", before=SEARCHING + f"fake.knows = {json.dumps(knows)}")
        tab.js("fake.id = 90; for (let at = 0; at < 25; at++) fake.say('bob', `now ${at}`)")
        tab.wait(row("now 24"))
        return tab
    return searching


def test_search(searching):
    """All words, in all that the server keeps, in their place in the talk; up and down; Escape goes
    back."""
    tab = searching(True)
    tab.js("scroller.scrollTop = scroller.scrollHeight")
    say(tab, "/search pelikan CAFÉ")
    tab.wait(f"{HIT} === 'said 70 Pelikan café'")
    assert "1 of 1+" in tab.js(COUNT)
    tab.key("ArrowUp")
    tab.wait(f"{HIT} === 'said 40 Pelikan café'")
    tab.key("Enter")
    tab.wait(f"{HIT} === 'said 10 Pelikan café'")
    tab.key("ArrowUp")
    tab.wait(f"{COUNT} === '3 of 3'")
    tab.key("ArrowDown")
    tab.wait(f"{HIT} === 'said 40 Pelikan café'")
    assert "said 40" in tab.js("document.getElementById('found').textContent")
    order = texts(tab)
    assert order[:90] == tab.js("fake.entries.map(entry => entry.text)")[-90:]
    tab.key("Escape")
    tab.wait("document.getElementById('search').hidden && view.atEnd && nearEnd()")
    assert tab.js("document.activeElement.id") == "input" and not tab.js(HIT)


def test_search_in_a_real_history(browser, tmp_path):
    """What was said long before one came is found by the server, and shown in its place."""
    with harness.serving("--rate", "0", "--history", str(tmp_path / "chat.db")) as server:
        bob = harness.RawClient(server.port, auto_ack=True)
        bob.join("bob")
        for number in range(300):
            bob.say(f"said {number}" + (" Käse" if number in (20, 150) else ""))
        bob.recv_until("ack", id=300)
        tab = browser.tab()
        tab.open(f"http://127.0.0.1:{server.port}/")
        page.join(tab, "ann")
        tab.wait(row("said 299"))
        say(tab, "/search KÄSE")
        tab.wait(f"{HIT} === 'said 150 Käse'")
        tab.key("ArrowUp")
        tab.wait(f"{HIT} === 'said 20 Käse'")
        assert tab.js("document.getElementById('found').textContent").endswith("said 20 Käse")
        shown = [int(text.split()[1]) for text in texts(tab)]
        assert shown == list(range(shown[0], 300))
        tab.js("session.active = false; session.said.clear()")
        tab.close()
        bob.close()


@pytest.mark.parametrize("words", ["nothing like it", "[", "x" * 256])
def test_search_without_result(searching, words):
    """It says that there is none, and stays usable."""
    tab = searching(True)
    say(tab, "/search " + words)
    tab.wait(f"{COUNT} === 'nothing found'")
    tab.js("document.getElementById('search-words').value = 'said 7'")
    tab.key("Enter")
    tab.wait(HIT)


def test_search_where_the_server_cannot(searching):
    """A server that does not repeat the words cannot search: it says so, and the page itself is
    searched."""
    tab = searching(False)
    say(tab, "/search now 2")
    tab.wait(f"{HIT} === 'now 24'")
    assert "Only this page" in tab.js("document.getElementById('found').textContent")
    tab.key("ArrowUp")
    tab.wait(f"{HIT} === 'now 23'")
    tab.js("session.lost()")
    tab.js("find('now 11')")
    tab.wait(f"{HIT} === 'now 11'")


def test_search_under_a_flood(searching):
    """What comes meanwhile, and moves the top of the page, does not stop a search."""
    tab = searching(True)
    tab.js("""const answer = fake.answer; window.asked = [];
        fake.answer = frame => frame.type === "history" ? (asked.push(frame), true) : answer(frame);
        openSearch("pelikan"); for (let at = 0; at < 2300; at++) fake.say("bob", `flood ${at}`);
        for (const frame of asked.splice(0)) answer(frame); fake.answer = answer;""")
    tab.wait(f"/^1 of/.test({COUNT})")
    assert "said 70" in tab.js("document.getElementById('found').textContent")


def test_search_for_too_much(searching):
    """A search for 8,192 characters asks for no more than a server takes."""
    tab = searching(True)
    tab.js("run('/search ' + 'x'.repeat(8192))")
    tab.wait(f"{COUNT} === 'nothing found'")
    assert tab.js("Math.max(...fake.of('history').map(frame => frame.find?.length || 0))") == 256


def test_filter_over_the_people(alone):
    """A part of a name, in any case, leaves those who have it."""
    tab = alone("ann", users=["bob", "Bobby", "carol"])
    tab.type("BOB", "filter")
    tab.wait("document.querySelectorAll('#people li').length === 2")


# --- Mentions, older servers ---

def test_jump_to_a_mention(alone):
    """Mentions that came while one read elsewhere are counted, and a click leads to the first."""
    tab = alone("ann", height=500)
    tab.js("for (let at = 0; at < 60; at++) fake.say('bob', `line ${at}`)")
    tab.wait(row("line 59"))
    page.scroll(tab, 0)
    tab.wait("!view.atEnd")
    tab.js("""fake.say('bob', 'ann: look'); for (let at = 60; at < 120; at++) fake.say('bob',
        `line ${at}`);
        fake.say('bob', 'ann: and this')""")
    tab.wait("document.getElementById('mentioned').textContent === '@ 2 ↑'")
    tab.click("#mentioned")
    tab.wait("document.activeElement.matches('.mention') && document.getElementById('mentioned')"
             ".textContent === '@ 1 ↑'")
    assert "ann: look" in tab.js("document.activeElement.textContent")
    tab.click("#mentioned")
    tab.wait("document.getElementById('mentioned').hidden")


def test_no_answer_to_history(alone):
    """A server that only confirms a request for older messages has none."""
    tab = alone("ann")
    tab.js("fake.say('bob', 'x')")
    tab.wait(row("x"))
    tab.js("view.ask()")
    tab.wait("document.getElementById('older').textContent === 'Nothing older is kept'")
