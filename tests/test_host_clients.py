"""What the host does, as a terminal, a page and a client that knows nothing of it show it, end to
end: each is told, and goes on."""

import json
import os
import re

import pytest

import harness
import page
from harness import ROOT, RawClient, client_command
from onscreen import typed
from program import Program
from webclient import request

if os.name != "posix":
    pytest.skip("the terminal client runs on a pseudo-terminal", allow_module_level=True)

browser, fresh = page.browser, page.fresh
LOG = "document.getElementById('log').textContent"
STRIP = "document.getElementById('strip')"


@pytest.fixture(scope="module")
def server():
    with harness.serving("--rate", "0", "--host-name", "Teacher") as server:
        yield server


@pytest.fixture
def room(server, fresh):
    """do(order) of the host; ann in a terminal, webby on a page, eve who knows nothing."""
    link = server.printed("#host=")

    def do(line):
        body = json.dumps({"do": line}).encode()
        status, _, answer = request(
            server.port, "POST /host HTTP/1.1", "Host: localhost", f"X-Roger-Host: {link}",
            f"Content-Length: {len(body)}", body=body)
        assert status == 200, answer
        return json.loads(answer)
    tab = fresh()
    with RawClient(server.port, auto_ack=True) as eve:
        eve.join("eve")
        with Program(client_command(server.port, name="ann"), cwd=ROOT, columns=100) as ann:
            ann.wait_for("you are ann")
            page.join(tab, "webby")
            eve.recv_until("joined", name="webby")
            yield do, ann, tab, eve
            for order in "/everyone", "/private on", "/slow 0", "/motd -":
                do(order)
            tab.js("quit()")
            tab.wait("!document.getElementById('door').hidden")
            eve.leave()


def heard_by_all(room, text):
    """Somebody who knows nothing says it, and all hear it."""
    _, ann, tab, eve = room
    eve.say(text)
    eve.recv_until("chat", text=text)
    ann.wait_for(f"eve: {text}")
    tab.wait(page.row(text))


def test_pinned_line_and_the_hosts_word(room):
    """Both are shown at once, the word as the host's."""
    do, ann, tab, eve = room
    do("/motd Page 34")
    ann.wait_for("Page 34")
    tab.wait("document.getElementById('pinned').textContent === 'Page 34'")
    assert eve.recv_until("motd")["text"] == "Page 34"
    do("/say Good morning")
    ann.wait_for("Teacher: Good morning")
    tab.wait(page.row("Good morning", ".server"))
    assert eve.recv_until("chat", text="Good morning")["from"] == "Teacher"
    shown = sum("Page 34" in line for line in ann.snapshot())
    ann.type("/motd\r")
    ann.wait_until(lambda terminal: sum("Page 34" in line for line in terminal.lines()) > shown,
                   "the line of now")
    heard_by_all(room, "morning!")


def test_muted(room):
    """Whoever is muted is told until when, and hears everything."""
    do, ann, tab, eve = room
    for name in "ann", "webby", "eve":
        do(f"/mute {name} 10m")
    ann.type("let me\r")
    ann.wait_for("the host has muted you until")
    # It is back in the line.
    ann.wait_until(lambda terminal: typed(terminal)[0][:1] == ["> let me"], "the line")
    page.say(tab, "let me too")
    tab.wait("/muted you until/.test(document.querySelector('#pending .failed').textContent)")
    eve.say("and me")
    assert eve.recv_until("error")["code"] == "muted"
    do("/say You are muted")
    ann.wait_for("Teacher: You are muted")
    tab.wait(page.row("You are muted"))
    for name in "ann", "webby", "eve":
        do(f"/unmute {name}")
    ann.type("\r")
    assert eve.recv_until("chat", text="let me")["from"] == "ann"
    heard_by_all(room, "thanks")


def test_only_the_host(room):
    """Both changes are said by the host, and what others send is refused at once."""
    do, ann, tab, eve = room
    do("/only-host")
    ann.wait_for("Teacher: Now only the host speaks.")
    tab.wait(f"/Only Teacher speaks/.test({STRIP}.textContent)")
    assert eve.recv_until("chat")["text"] == "Now only the host speaks."
    ann.type("may I?\r")
    ann.wait_for("only the host speaks now")
    eve.say("may I?")
    assert eve.recv_until("error")["code"] == "muted"
    do("/everyone")
    ann.wait_for("Teacher: Everybody may speak again.")
    tab.wait(f"{STRIP}.hidden")
    ann.type("\r")
    assert eve.recv_until("chat", text="may I?")["from"] == "ann"
    heard_by_all(room, "at last")


def test_private_off(room):
    """A whisper is refused, and said to nobody."""
    do, ann, tab, eve = room
    do("/private off")
    ann.wait_for("private messages are off")
    tab.wait("view.rules.private === false")
    ann.type("/msg eve psst\r")
    ann.wait_for("private messages are off here")
    eve.say("psst", to="ann")
    assert eve.recv_until("error")["code"] == "private-off"
    tab.js("speakTo(view.person('eve'))")
    tab.wait(f"/switched off/.test({LOG})")
    do("/private on")
    tab.wait("view.rules.private === true")
    ann.type("/msg eve hello\r")
    assert eve.recv_until("chat", text="hello")["to"] == "eve"


def test_slow(room):
    """What comes too early is refused with the seconds that are left, and stays in the line."""
    do, ann, tab, eve = room
    do("/slow 600")
    ann.wait_for("one message every 600 s")
    tab.wait(f"/every 600 s/.test({STRIP}.textContent)")
    ann.type("one\r")
    eve.recv_until("chat", text="one")
    ann.type("two\r")
    ann.wait_until(lambda terminal: any(re.search(r"one message in 600 s: \d+ s are left", line)
                                        for line in terminal.lines()), "why it is refused")
    ann.wait_until(lambda terminal: typed(terminal)[0][:1] == ["> two"], "the line")
    page.say(tab, "one of webby")
    eve.recv_until("chat", text="one of webby")
    page.say(tab, "two of webby")
    tab.wait(f"/Again in/.test({STRIP}.textContent)")
    assert tab.js("input.value") == "two of webby"
    eve.say("one of eve")
    eve.say("two of eve")
    assert "s are left" in eve.recv_until("error", code="muted")["text"]


def test_removed(room):
    """Its text is gone where it stood; who does not know that goes on undisturbed."""
    do, ann, tab, eve = room
    heard_by_all(room, "RUDE")
    heard_by_all(room, "polite")
    id = next(one["id"] for one in eve.frames if one.get("text") == "RUDE")
    state = do(f"/remove {id}")
    assert {one["id"]: one["text"] for one in state["talk"]}[id] == "(removed)"
    ann.wait_for("eve: (removed by the host)")
    tab.wait("document.querySelector('#log .removed')")
    assert "RUDE" not in tab.js(LOG) and not any("RUDE" in line for line in ann.snapshot())
    assert eve.recv_until("removed")["about"] == id
    heard_by_all(room, "I am sorry")


def test_boot_and_ban(room, server):
    """Each is told why, is out, and is refused when it comes again, until it is let in."""
    do, ann, tab, eve = room
    do("/boot webby 1h spamming")
    tab.wait("/You were booted.*spamming/.test(document.getElementById('banner').textContent)")
    ann.wait_for("webby was booted: spamming")
    eve.recv_until("left", name="webby")
    with RawClient(server.port) as again:
        again.send({"type": "join", "name": "webby"})
        assert again.recv_until("error")["code"] == "banned"
    do("/ban ann")
    assert ann.wait_exit() == 1
    assert any("you were booted: banned" in line for line in ann.terminal.lines())
    with Program(client_command(server.port, name="ann"), cwd=ROOT, columns=100) as again:
        again.wait_until(lambda terminal: "you are banned here" in terminal.text(), "the reason")
        assert again.wait_exit() == 1
    for name in "webby", "ann":
        do(f"/unban {name}")
    tab.click("#banner button")
    page.join(tab, "webby")
    eve.recv_until("joined", name="webby")
