"""The host's view: what was done stays said, the address is shown to the whole room; everything
that the host does there, with the real server and its members; and who gets the view at all."""

import http.server
import json
import threading

import chat_web
import harness
import page
import pytest
from harness import RawClient

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
    assert tab.js(colour % ("#host-people .bad", "color")) != calm
    tab.click("#host-people .bad")
    assert tab.js(colour % ("#boot .main", "backgroundColor")) != tab.js(
        colour % ("#host-say-form .main", "backgroundColor"))
    tab.key("Escape")
    assert tab.js("orders.length") == 0


def test_click_outlives_another_list(host):
    """A button that is pressed while the view asks again is still the one that is let go."""
    tab = host()
    x, y = tab.js("""(() => { const box = document.querySelector("#host-people .bad")
        .getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()""")
    press = {"x": x, "y": y, "button": "left", "clickCount": 1}
    tab.call("Input.dispatchMouseEvent", type="mousePressed", **press)
    tab.js("state.people = [['bob', '192.0.2.7', 125]]; host().then(() => {})")
    tab.call("Input.dispatchMouseEvent", type="mouseReleased", **press)
    tab.wait("document.getElementById('boot').open")
    tab.key("Escape")
    tab.js("host().then(() => {})")
    assert "2 min" in tab.js("document.getElementById('host-people').textContent")


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


# --- With the real server ---

NOTE = "document.getElementById('host-note').textContent"
TALK = "[...document.querySelectorAll('#host-talk button')]"


@pytest.fixture
def class_room(browser):
    """A server whose host is called Teacher, with ann and bob; its host's tab."""
    with harness.serving("--rate", "0", "--host-name", "Teacher") as server, \
            RawClient(server.port, auto_ack=True) as ann, \
            RawClient(server.port, auto_ack=True) as bob:
        ann.join("ann")
        bob.join("bob")
        tab = browser.tab()
        server.link = server.printed("Host's page: ")
        tab.open(server.link)
        tab.wait("document.querySelectorAll('#host-people tr').length === 2")
        yield tab, ann, bob, server
        tab.close()


def press(tab, label):
    """Press the button of that label, whose row of the list is shown already."""
    find = f"document.querySelector('#host [aria-label=\"{label}\"]')"
    tab.wait(find)
    tab.js(f"{find}.click()")


def choose(tab, id, value):
    """What a person does who chooses in a field and leaves it."""
    kind = "checked" if isinstance(value, bool) else "value"
    tab.js(f"(field => {{ field.{kind} = {json.dumps(value)};"
           " field.dispatchEvent(new Event('change', {bubbles: true})); })"
           f"(document.getElementById('{id}'))")


def test_mute_and_let_speak(class_room):
    """Mute asks for how long, and the row then lets speak again; the list of who is muted as
    well."""
    tab, ann, bob, _ = class_room
    press(tab, "Mute bob")
    tab.js("document.getElementById('boot-time').value = '1h'")
    tab.click("#boot-do")
    tab.wait("/bob is muted.*Others may share/.test(%s)" % NOTE)
    tab.wait("/muted(1 h|60 min|59 min)/.test("
             "document.getElementById('host-held').textContent)")
    bob.say("me")
    assert bob.recv_until("error")["code"] == "muted"
    press(tab, "Let speak bob")
    tab.wait("document.getElementById('host-out').hidden")
    bob.say("thanks")
    assert ann.recv_until("chat")["text"] == "thanks"


def test_boot_for_an_hour_and_for_good(class_room):
    """Both are in the list of who is out, with the reason and the time, and come in again from
    there."""
    tab, ann, bob, server = class_room
    press(tab, "Boot bob")
    tab.js("document.getElementById('boot-time').value = '1d'")
    tab.type("spamming", "boot-reason")
    tab.key("Enter")
    assert bob.recv_until("booted")["reason"] == "spamming" and bob.eof()
    tab.wait("/out: spamming/.test(document.getElementById('host-held').textContent)")
    press(tab, "Boot ann")
    choose(tab, "boot-time", "")
    assert tab.js("document.getElementById('boot-why').hidden")
    tab.click("#boot-do")
    assert ann.recv_until("booted")["reason"] == "banned"
    tab.wait("/for good/.test(document.getElementById('host-held').textContent)")
    with RawClient(server.port) as again:
        again.send({"type": "join", "name": "ann"})
        assert again.recv_until("error")["code"] == "banned"
    press(tab, "Let in again ann")
    tab.wait("!/ann/.test(document.getElementById('host-held').textContent)")
    with RawClient(server.port) as again:
        again.join("ann")


def test_a_click_removes(class_room):
    """A message, after a question that shows it; and all that its speaker said."""
    tab, ann, bob, _ = class_room
    for text in "one", "two", "three":
        ann.say(text)
        bob.recv_until("chat", text=text)
    ann.say("psst", to="bob")
    whisper = bob.recv_until("chat", text="psst")
    tab.wait(f"{TALK}.length === 3")
    tab.js(f"{TALK}[1].click()")
    assert tab.js("document.getElementById('remove-text').textContent") == "ann: two"
    tab.click("#remove .main")
    gone = bob.recv_until("removed")["about"]
    assert [one["text"] for one in bob.frames if one.get("id") == gone] == ["two"]
    tab.wait(f"/removed by the host/.test({TALK}[1].textContent) && {TALK}[1].disabled")
    tab.js(f"{TALK}[0].click()")
    tab.click("#remove-all")
    assert bob.recv_until("removed", about=whisper["id"])
    tab.wait(f"{TALK}.every(each => each.disabled)")
    # Nothing private was ever in it: it may hang on a wall.
    assert "psst" not in tab.js("document.body.textContent")


def test_rules_are_switches(class_room):
    """Only the host, private messages, one message in so many seconds, and the host's name; one
    that cannot be taken is told, and what holds is shown."""
    tab, ann, bob, _ = class_room
    choose(tab, "host-only", True)
    ann.recv_until("rules", speak="host")
    assert ann.recv_until("chat")["from"] == "Teacher"
    choose(tab, "host-only", False)
    ann.recv_until("rules", speak="all", private=True)
    choose(tab, "host-private", False)
    ann.recv_until("rules", private=False)
    choose(tab, "host-slow", "30")
    ann.recv_until("rules", slow=30)
    choose(tab, "host-name", "BOB")
    tab.wait(f"/bob is here/.test({NOTE})")
    tab.wait("document.getElementById('host-name').value === 'Teacher'")
    choose(tab, "host-name", "Guide")
    ann.recv_until("rules", host="Guide")
    tab.wait("/Say as Guide/.test(document.getElementById('host-say-as').textContent)")
    tab.type("Lunch", "host-say")
    tab.key("Enter")
    assert bob.recv_until("chat", text="Lunch")["from"] == "Guide"


def test_record_is_a_file(class_room, tmp_path):
    """The button gives what was said in public, as lines of text."""
    tab, ann, bob, _ = class_room
    ann.say("hello")
    ann.say("psst", to="bob")
    bob.recv_until("chat", text="psst")
    tab.browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path),
                     browserContextId=tab.context)
    tab.click("#host-record")

    def text():
        return "".join(path.read_text() for path in tmp_path.glob("roger-*.txt"))
    harness.wait_until(lambda: "hello" in text())
    assert "<ann> hello" in text() and "psst" not in text()


def test_two_hosts(class_room, browser):
    """What one of two open pages does is shown by the other, and what is typed there stays."""
    tab, ann, bob, server = class_room
    other = browser.tab()
    other.open(server.link)
    other.wait("document.querySelectorAll('#host-people tr').length === 2")
    other.type("half a thou", "host-motd")
    press(tab, "Mute bob")
    tab.click("#boot-do")
    tab.js("host('/motd set here'); host('/only-host')")
    other.wait("document.getElementById('host-only').checked")
    other.wait("!document.getElementById('host-out').hidden")
    assert other.js("document.getElementById('host-motd').value") == "half a thou"
    # Its list is drawn without the button as soon as it hears what the other one did.
    tab.wait("window.late = document.querySelector('#host [aria-label=\"Let speak bob\"]')")
    press(other, "Let speak bob")
    tab.js("late.click()")
    tab.wait(f"{NOTE} === 'bob is not muted' || {NOTE} === 'Done.'")
    tab.wait("document.getElementById('host-out').hidden")
    other.close()


def test_page_left_open_over_a_restart(browser):
    """The old link's secret is none of the new server: the page says so, and does nothing."""
    with harness.serving() as server:
        port = server.port
        tab = browser.tab()
        tab.open(server.printed("Host's page: "))
        tab.wait("!document.getElementById('host-empty').hidden")
    with harness.serving(port=port) as server, RawClient(port) as ann:
        ann.join("ann")
        assert tab.js("host('/boot ann')") is None
        assert "does not take this link" in tab.js(NOTE)
        ann.say("still here")
        ann.recv_until("chat", text="still here")
    tab.close()


# --- Elsewhere ---

@pytest.fixture
def elsewhere():
    """The address of the page as another machine's browser gets it."""
    body = chat_web.Page.load(str(harness.ROOT / "chat_web.html"), is_hosts=False).body

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, name="elsewhere")
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_page_of_another_machine(browser, elsewhere):
    """It has no host's view, and a member misses nothing: comes in, chats, changes the language."""
    tab = browser.tab()
    tab.call("Page.addScriptToEvaluateOnNewDocument", source=page.FAKE)
    tab.open(elsewhere + "#host=secret")
    page.join(tab, "ann")
    page.say(tab, "hello")
    tab.wait(page.row("hello"))
    tab.js("document.getElementById('lang').value = 'de';"
           " document.getElementById('lang').dispatchEvent(new Event('change', {bubbles: true}))")
    tab.wait("document.documentElement.lang === 'de'")
    assert tab.js("document.getElementById('host') === null")
    assert tab.js("document.getElementById('views') === null")
    assert page.errors_of(tab) == []
    tab.close()
