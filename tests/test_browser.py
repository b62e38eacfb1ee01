"""The page in a real Chromium: what a person with a browser sees and does. One browser for all of
it."""

import pytest

import page
from chat_client import ChatClient
from harness import wait_until
from page import join, leaves, row, say, scroll
from proxy import CuttingProxy

HOSTILE = ['<img src=x onerror="window.bitten=1">', "</script><script>window.bitten=1</script>",
           "<b>bold</b> &amp; &lt;",
           "javascript:window.bitten=1 http://x.example/\"onmouseover=\"window.bitten=1",
           "\u202egnp.exe \u2066x\u2069 \u200bhidden\ufeff",
           "Z" + "\u0301\u0328\u0322" * 300, "W" * 8192,
           "\n".join("line %d" % number for number in range(900)), "{{7*7}} ${7*7} `x`",
           "\ufdfd" * 200, "א" * 50 + " ] [ " + "b" * 50]


browser = page.browser


@pytest.fixture
def server(serve):
    return serve()


@pytest.fixture
def enter(browser):
    """enter(port, name) is a tab whose person has come in."""
    tabs = []

    def enter(port, name=None, width=1280, height=800, dark=False):
        tab = browser.spare.pop() if browser.spare else browser.tab()
        tabs.append(tab)
        tab.size(width, height)
        tab.look(dark)
        tab.open(f"http://127.0.0.1:{port}/")
        if name is not None:
            join(tab, name)
        return tab
    yield enter
    for tab in tabs:
        tab.forget()
        browser.spare.append(tab)


@pytest.fixture
def friend():
    """friend(port, name) is a ChatClient; `heard` holds the chats that it heard."""
    clients = []

    def friend(port, name):
        heard = []
        client = ChatClient("127.0.0.1", port, name,
                            on_message=lambda message: heard.append(message))
        client.heard = heard
        client.connect()
        clients.append(client)
        return client
    yield friend
    for client in clients:
        client.close()


_names = iter(range(10**6))


def new_name(stem="p"):
    return f"{stem}{next(_names)}"


def state(text):
    return f"{row(text)}?.querySelector('.state')?.textContent"


def texts_of(client):
    return [message.text for message in client.heard if message.type == "chat"]


@pytest.fixture
def proxy(server):
    proxy = CuttingProxy(server.port)
    yield proxy
    proxy.close()


# --- Joining and speaking ---

def test_join_speak_and_hear(server, enter, friend):
    """Two people, one in a browser: each hears the other, and the page shows who has heard it."""
    me, other = new_name(), new_name()
    bob = friend(server.port, other)
    tab = enter(server.port, me)
    say(tab, "hello from the page")
    tab.wait(f"{state('hello from the page')}?.startsWith('heard by')")
    wait_until(lambda: texts_of(bob) == ["hello from the page"])
    bob.say("and back")
    tab.wait(row("and back"))
    assert tab.js("document.querySelectorAll('#pending .msg').length") == 0
    assert tab.js(f"{row('and back')}.querySelector('.name').textContent") == other
    assert set(tab.js("[...session.users.values()]")) >= {me, other}


def test_name_that_is_taken(server, enter, friend):
    """The page says so and offers a free one; Enter takes that."""
    name = new_name()
    friend(server.port, name)
    tab = enter(server.port)
    tab.type(name, "name")
    tab.key("Enter")
    tab.wait("!document.getElementById('door-error').hidden")
    assert f"{name}-2 is free" in tab.js("document.getElementById('door-error').textContent")
    tab.key("Enter")
    tab.wait("session.joined")
    assert tab.js("session.name") == f"{name}-2"


def test_name_that_cannot_be(server, enter):
    """A name that the rules refuse is refused with the reason, and nothing is lost."""
    tab = enter(server.port)
    tab.type("two words", "name")
    tab.key("Enter")
    tab.wait("/letters, digits/.test(document.getElementById('door-error').textContent)")
    assert tab.js("document.getElementById('name').value") == "two words"


def test_private_message_rename_and_completion(server, enter, friend):
    """/msg by Tab, a private answer, /reply, /nick; an unknown command goes nowhere; // says a
    slash."""
    bob = friend(server.port, new_name("bob-"))
    eve = friend(server.port, new_name("eve"))
    tab = enter(server.port, new_name())
    tab.wait("session.users.size >= 3 && document.querySelectorAll('#people li').length >= 3")
    tab.type(bob.name[:-1].upper(), "input")
    tab.key("Tab")
    tab.wait(f"document.getElementById('input').value.startsWith('{bob.name[:-1]}')")
    tab.js("document.getElementById('input').value = ''")
    say(tab, f"/msg {bob.name} only you")
    tab.wait(f"{row('only you', '.private')} && {state('only you')} === 'heard'")
    bob.say("only you, too", tab.js("session.name"))
    tab.wait(row("only you, too", ".private"))
    say(tab, "/reply good")
    tab.wait(row("good", ".private"))
    new = new_name("new")
    say(tab, f"/nick {new}")
    tab.wait(f"session.name === '{new}'")
    say(tab, "/nonsense x")
    tab.wait("/is not a command/.test(document.querySelector('#log').lastChild.textContent)")
    say(tab, "//slash")
    tab.wait(row("/slash"))
    wait_until(lambda: "/slash" in texts_of(bob) and "/slash" in texts_of(eve))
    assert "only you" in texts_of(bob) and texts_of(eve) == ["/slash"]


def test_message_that_is_refused(server, enter):
    """It stays, marked as failed with the reason, and can be taken up again; what came before and
    after it is there."""
    tab = enter(server.port, new_name())
    say(tab, "before")
    say(tab, "/msg nobody.here hello?")
    say(tab, "after")
    tab.wait(
        f"{row('before')} && {row('after')} && /failed: nobody here/.test("
        "document.querySelector('#pending .state')?.textContent)")
    tab.click("#pending .state button")
    assert tab.js("document.getElementById('input').value") == "/msg nobody.here hello?"
    assert tab.js("document.querySelectorAll('#pending .msg').length") == 0


def test_long_text_and_lines_as_written(server, enter, friend):
    """20,000 characters go out in pieces; code keeps its spaces; Shift+Enter is a new line."""
    bob = friend(server.port, new_name())
    tab = enter(server.port, new_name())
    long = "".join(chr(97 + number % 26) for number in range(8191)) + "🧑" + "x" * 11_807
    say(tab, long)
    wait_until(lambda: "".join(texts_of(bob)) == long)
    assert [len(text) for text in texts_of(bob)] == [8192, 8192, 3615]
    tab.type("if x:", "input")
    tab.key("Enter", shift=True)
    say(tab, "    y()\t# tab")
    tab.wait(row("if x:\n    y()\t# tab"))
    code = row("if x:\n    y()\t# tab")
    assert tab.js(f"getComputedStyle({code}.querySelector('.text')).whiteSpace") in (
        "pre", "preserve nowrap")


# --- What is hostile ---

def test_hostile_names_and_texts(server, enter, friend):
    """Markup, script, bidi, stacks of marks, 8,192 characters: shown as what they are, nothing
    runs, nothing leaves its row."""
    tab = enter(server.port, new_name(), width=360, height=740)
    mallory = friend(server.port, "ممم" + str(next(_names)))
    for text in HOSTILE:
        mallory.say(text)
    mallory.say("the end")
    tab.wait(row("the end"))
    for text in HOSTILE[:4] + HOSTILE[6:9]:
        assert tab.js(f"Boolean({row(text)})"), text[:50]
    assert tab.js("document.querySelectorAll('#log img, #log script, #log b').length") == 0
    assert tab.js("window.bitten") is None
    assert "\\u202egnp.exe \u2066x\u2069 \\u200bhidden\\ufeff" in tab.js(
        "document.getElementById('log').textContent")
    for name in ("document.documentElement", "document.getElementById('scroller')"):
        assert tab.js(f"{name}.scrollWidth <= {name}.clientWidth"), name
    assert tab.js(
        "[...document.querySelectorAll('.msg')].every("
        "row => row.getBoundingClientRect().height < 740)")
    assert tab.js(
        "[...document.querySelectorAll('#log a')].every("
        "link => /^https?:/.test(link.href) && link.rel === 'noopener noreferrer')")


def test_policy_of_the_page(server, enter):
    """What is no part of the page does not run in it, and it may load nothing from elsewhere."""
    tab = enter(server.port, new_name())
    tab.js("""document.body.insertAdjacentHTML('beforeend',
        '<img id=bait src=x onerror="window.bitten=1">' +
        '<a id=lure href="javascript:window.bitten=1">x</a>')""")
    tab.js("""(() => {
        const script = document.createElement('script');
        script.textContent = 'window.bitten=1';
        document.body.append(script);
    })()""")
    tab.js("document.getElementById('lure').click()")
    assert tab.js(
        "fetch('http://127.0.0.1:1/').then(() => 'came', error => 'refused')") == "refused"
    tab.wait("document.getElementById('bait').complete")
    assert tab.js("window.bitten") is None
    assert any("Content Security Policy" in error for error in tab.browser.errors())


# --- Broken connections ---

def test_connection_that_is_cut_in_the_middle(server, enter, friend, proxy):
    """Cut again and again while both speak: everything once, in one order, and it says that it is
    connected again."""
    bob = friend(server.port, new_name())
    tab = enter(proxy.port, new_name())
    for number in range(24):
        say(tab, f"mine {number}")
        bob.say(f"his {number}")
        if number % 8 == 5:
            proxy.cut()
            tab.js("session.wake()")
    expected = [f"mine {number}" for number in range(24)], [f"his {number}" for number in range(24)]
    tab.wait(
        f"{row('mine 23', '.own')} && {row('his 23')}"
        " && !document.querySelector('#pending .msg') && session.queue.length === 0")
    shown = tab.js("[...document.querySelectorAll('#log .text')].map(text => text.textContent)")
    assert [text for text in shown if text[:4] == "mine"] == expected[0]
    assert [text for text in shown if text[:3] == "his"] == expected[1]
    wait_until(lambda: len(texts_of(bob)) >= 48)
    assert [text for text in texts_of(bob)
            if text in shown] == [text for text in shown if text[:4] == "mine" or text[:3] == "his"]
    assert len(texts_of(bob)) == 48


def test_typing_offline(server, enter, friend, proxy):
    """What is written without a connection stays visible as not sent, and goes out once when it is
    back."""
    bob = friend(server.port, new_name())
    tab = enter(proxy.port, new_name())
    proxy.cut(refusing=True)
    tab.wait("!document.getElementById('banner').hidden")
    for number in range(3):
        say(tab, f"offline {number}")
    assert tab.js(
        "[...document.querySelectorAll('#pending .state')].map(state => state.textContent)") == [
            "not sent yet"] * 3
    bob.say("meanwhile")
    wait_until(lambda: texts_of(bob) == ["meanwhile"])
    proxy.allow()
    tab.click("#banner button")
    tab.wait(
        f"{row('offline 2', '.own')} && {row('meanwhile')}"
        " && document.getElementById('banner').hidden")
    wait_until(lambda: len(texts_of(bob)) == 4)
    assert texts_of(bob) == ["meanwhile", "offline 0", "offline 1", "offline 2"]
    assert tab.js("document.querySelectorAll('#pending .msg').length") == 0


def test_page_that_is_reloaded(server, enter, friend):
    """A reload resumes the session: the same name, the conversation, what was said meanwhile;
    nobody is told."""
    bob = friend(server.port, new_name())
    name = new_name()
    tab = enter(server.port, name)
    say(tab, "before the reload")
    wait_until(lambda: texts_of(bob) == ["before the reload"])
    bob.say("answer")
    tab.wait(f"{row('answer')} && {state('before the reload')} === 'heard by all'")
    tab.type("a draft", "input")
    session = tab.js("session.secret")
    tab.reload()
    tab.wait("session.joined")
    assert tab.js("[session.secret, session.name]") == [session, name]
    assert tab.js("document.getElementById('input').value") == "a draft"
    assert tab.js(state("before the reload")) == "heard by all"
    bob.say("still here?")
    tab.wait(row("still here?"))
    assert tab.js("[...document.querySelectorAll('#log .text')].map(text => text.textContent)") == [
        "before the reload", "answer", "still here?"]
    assert not [message for message in bob.heard if message.type == "left"]


def test_reload_with_messages_that_were_not_sent(server, enter, friend, proxy):
    """They go out after the reload, once, under ids that were never given before."""
    bob = friend(server.port, new_name())
    tab = enter(proxy.port, new_name())
    say(tab, "first")
    tab.wait(f"{row('first', '.own')} && session.queue.length === 0")
    tab.js("session.number({type: 'ping'})")
    # From here on it waits for a connection.
    tab.js("WebSocket = class { close() {} }; session.connect()")
    say(tab, "kept")
    tab.wait("document.querySelector('#pending .msg')")
    tab.js("window.beforeReload = true")
    tab.call("Page.reload")
    wait_until(lambda: leaves(tab))
    tab.wait("!window.beforeReload && document.readyState === 'complete'")
    tab.wait(row("kept", ".own"))
    wait_until(lambda: "kept" in texts_of(bob))
    assert texts_of(bob) == ["first", "kept"]
    assert tab.js("document.querySelectorAll('#pending .msg').length") == 0


def test_server_that_is_restarted_under_the_page(serve, enter):
    """Without a history the page starts again by itself, says what was not confirmed, and stays
    usable."""
    server = serve(rate=None)
    tab = enter(server.port, "ann")
    say(tab, "to the first")
    tab.wait(f"{state('to the first')} === 'there'")
    server.kill()
    tab.wait("!document.getElementById('banner').hidden")
    say(tab, "said in between")
    server.start()
    tab.js("session.wake()")
    tab.wait(f"{row('said in between', '.own')} && {state('said in between')} === 'there'")
    assert tab.js("[...document.querySelectorAll('#log .text')].map(text => text.textContent)") == [
        "to the first", "said in between"]


def test_tab_in_the_background(server, enter, friend):
    """A tab that is not looked at counts what comes in its title, confirms at once, and loses
    nothing."""
    bob = friend(server.port, new_name())
    tab = enter(server.port, new_name())
    name = tab.js("session.name")
    tab.js("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    for number in range(40):
        bob.say(f"while away {number}")
    bob.say(f"{name}: look")
    tab.wait(f"document.title === '(41) Roger' && {row(name + ': look', '.mention')}")
    assert tab.js("session.late") == 0
    assert tab.js("document.querySelector('.line.new').nextSibling.textContent").endswith(
        "while away 0")
    tab.js("delete document.hidden; dispatchEvent(new Event('focus'))")
    tab.wait("document.title === 'Roger'")


def test_older_messages(serve, enter, friend, tmp_path):
    """Scrolled up, the page fetches what was said before: once, in order, above what is being read,
    which does not move."""
    server = serve("--history", str(tmp_path / "chat.db"))
    bob = friend(server.port, "bob")
    for number in range(150):
        bob.say(f"said {number}")
    wait_until(lambda: len(texts_of(bob)) == 150)
    tab = enter(server.port, "ann", height=400)
    tab.wait(f"{row('said 149')} && lastTop > 100")
    texts = "[...document.querySelectorAll('#log .text')].map(text => text.textContent)"
    first = int(tab.js(texts)[0][5:])
    assert 0 < first < 150
    place = f"{row(f'said {first}')}.querySelector('.text').getBoundingClientRect().top"
    # What is put in is not read aloud, then; a second later what comes is.
    tab.js("window.live = []; "
           "new MutationObserver(() => live.push(log.ariaLive)).observe(log, {childList: true})")
    # Where it will be after the scrolling: then the answer may be there already.
    before = tab.js(f"{place} + scroller.scrollTop - 30")
    scroll(tab, 30)
    tab.wait(row(f"said {first - 50}"))
    after = tab.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame("
                   f"() => done({place}))))")
    assert abs(after - before) < 2
    assert not tab.js("view.atEnd") and set(tab.js("live")) == {"off"}
    bob.say("said 150")
    tab.wait(row("said 150"))
    tab.js("document.getElementById('older').focus()")
    tab.key("Enter")
    tab.wait(row(f"said {first - 100}"))
    say(tab, "/history 100")
    tab.wait(
        f"{row('said 0')}"
        " && document.getElementById('older').textContent === 'Nothing older is kept'")
    assert tab.js(texts) == [f"said {number}" for number in range(151)]
    assert tab.js("[...document.querySelectorAll('#log .line')].map(line => line.textContent)") == [
        "said before you came", "now"]
    tab.wait("document.getElementById('log').ariaLive === 'polite'")
    tab.reload()
    tab.wait("session.joined")
    assert tab.js(texts) == [f"said {number}" for number in range(151)]


# --- People, keys, and what a screen reader hears ---

def test_quit_and_come_back(server, enter, friend):
    """/quit leaves on purpose and shows the door, with the name of before."""
    bob = friend(server.port, new_name())
    name = new_name()
    tab = enter(server.port, name)
    say(tab, "/quit")
    tab.wait("!document.getElementById('door').hidden")
    wait_until(lambda: [message.reason for message in bob.heard if message.type == "left"
                        and message.name == name] == ["quit"])
    assert tab.js("document.getElementById('name').value") == name
    tab.key("Enter")
    tab.wait("session.joined")


def test_keys_and_labels(server, enter, friend):
    """/ goes to the input, every control has a name, Arrow Up brings back what was said, joins are
    one line."""
    tab = enter(server.port, new_name())
    say(tab, "said once")
    tab.wait(f"{row('said once', '.own')}")
    tab.js("document.activeElement.blur()")
    tab.key("/")
    assert tab.js("document.activeElement.id") == "input"
    tab.key("ArrowUp")
    assert tab.js("document.getElementById('input').value") == "said once"
    first, second = friend(server.port, new_name()), friend(server.port, new_name())
    tab.wait(
        "document.querySelector('#log > .event:last-child')?.textContent"
        f" === '{first.name}, {second.name} joined'")
    assert tab.js("""[...document.querySelectorAll("button, input, textarea")].filter(
        control => control.checkVisibility() && !(control.textContent.trim() || control.ariaLabel
        || control.labels?.length)).map(control => control.outerHTML)""") == []
    # A second after one came in.
    tab.wait("document.getElementById('log').getAttribute('aria-live') === 'polite'")
    assert tab.js("document.getElementById('log').getAttribute('role')") == "log"


CONTRAST = """(() => {
    const channels = color => color.match(/[\\d.]+/g).slice(0, 3).map(value => Number(value) / 255)
        .map(value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const light = color => {
        const [r, g, b] = channels(color);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = at => {
        for (; at; at = at.parentElement) {
            const back = getComputedStyle(at).backgroundColor;
            if (!/rgba\\(.*, 0\\)|transparent/.test(back)) return back;
        }
        return "rgb(255, 255, 255)";
    };
    const bad = [];
    for (const at of document.querySelectorAll("body *")) {
        const texts = [...at.childNodes].filter(node => node.nodeType === 3 && node.data.trim());
        if (!at.checkVisibility() || !texts.length) continue;
        const [a, b] = [light(getComputedStyle(at).color), light(behind(at))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio >= 4.5) continue;
        bad.push([at.className || at.tagName, at.textContent.slice(0, 20), ratio.toFixed(2)]);
    }
    return bad;
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(server, enter, friend, dark):
    """Every text has a contrast of 4.5 or more, in light and in dark, with every colour that a name
    can have."""
    tab = enter(server.port, new_name(), dark=dark)
    bob = friend(server.port, new_name())
    bob.say(f"{tab.js('session.name')}: see http://192.0.2.1/")
    bob.say("secret http://192.0.2.1/ \u202e", tab.js("session.name"))
    say(tab, "/msg nobody x")
    say(tab, "/help")
    tab.wait(
        "document.querySelector('.private') && document.querySelector('.failed')"
        " && document.querySelector('.mention')")
    for hue in range(tab.js("HUES")):
        tab.js(
            "for (const row of document.querySelectorAll('.msg, #people li'))"
            f" row.style.setProperty('--hue', 'var(--n{hue})')")
        assert tab.js(CONTRAST) == []


# --- The host's view ---

def test_host_view(serve, enter, friend):
    """Who is there, since when; a boot with its reason, a word as Server, another message of the
    day; only with the secret."""
    server = serve(rate=None)
    link = server.printed("Host's page: ")
    mallory, bob = friend(server.port, "mallory"), friend(server.port, "bob")
    web = enter(server.port, "webby")
    host = enter(server.port)
    host.open(link)
    host.wait("document.querySelectorAll('#host-people tr').length === 3")
    assert host.js("location.hash") == ""
    assert host.js("[...document.querySelectorAll('#host-people tr')].map("
                   "row => row.cells[0].textContent + ' ' + row.cells[1].textContent)") == [
        "mallory 127.0.0.1", "bob 127.0.0.1", "webby 127.0.0.1"]
    host.click("[aria-label='Boot mallory']")
    host.type("spamming", "boot-reason")
    host.key("Enter")
    host.wait("/mallory is out/.test(document.getElementById('host-note').textContent)")
    wait_until(lambda: mallory.ended == "you were booted: spamming")
    web.wait("/mallory was booted: spamming/.test(document.getElementById('log').textContent)")
    host.type("Lunch at noon", "host-say")
    host.key("Enter")
    web.wait(row("Lunch at noon", ".server"))
    host.type("Be kind.", "host-motd")
    host.js("document.getElementById('host-motd-form').requestSubmit()")
    host.wait("/Saved/.test(document.getElementById('host-note').textContent)")
    late = enter(server.port, "late")
    late.wait("document.querySelector('.motd')?.textContent === 'Be kind.'")
    host.click("[aria-label='Boot webby']")
    host.click("#boot-do")
    web.wait("/You were booted/.test(document.getElementById('banner').textContent)")
    host.js("hosting = 'wrong'; host()")
    host.wait("/does not take this link/.test(document.getElementById('host-note').textContent)")
    assert bob.joined
