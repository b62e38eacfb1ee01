"""The page by keyboard, by finger and to a screen reader; themes and languages."""

import json
import re

import harness
import page
import pytest
from page import row, say

alone, browser, fresh, server = page.alone, page.browser, page.fresh, page.server

FOCUS = "document.activeElement"
AT = f"({FOCUS}.id || {FOCUS}.className)"


def press(tab, *keys):
    for key in keys:
        tab.key(*key) if isinstance(key, tuple) else tab.key(key)


@pytest.fixture
def talk(alone):
    """A talk of five messages, three of them with something to press in them."""
    tab = alone("ann")
    tab.js("""fake.say('bob', 'one http://192.0.2.1/'); fake.say('bob', 'two http://192.0.2.2/');
        fake.say('carol', 'three'); fake.number({type: 'joined', name: 'dora'}); fake.say('bob',
            'four');
        fake.say('carol', '\\n'.repeat(30) + 'x')""")
    tab.wait("document.querySelectorAll('#log .msg').length === 5 && "
             "document.querySelector('.more')")
    return tab


# --- Keys ---

def test_tab_goes_on_after_a_completion(alone):
    """Tab completes, again for the next, and after the last one leads on; Escape lets it lead on at
    once."""
    tab = alone("ann", users=["bob", "bobby", "carol"])
    tab.type("bob", "input")
    tab.key("Tab")
    first = tab.js("input.value")
    tab.key("Tab")
    assert {first, tab.js("input.value")} == {"bob: ", "bobby: "}
    tab.key("Tab")
    assert tab.js(FOCUS + ".id") == "send"
    tab.js("input.value = ''")
    tab.type("car", "input")
    press(tab, "Tab", "Tab")
    assert tab.js("input.value") == "carol: " and tab.js(FOCUS + ".id") == "send"
    tab.js("input.value = ''")
    tab.type("/se", "input")
    tab.key("Tab")
    assert tab.js("input.value") == "/search "
    tab.js("input.value = ''")
    tab.type("@bo", "input")
    tab.key("Tab")
    assert tab.js("input.value") in ("@bob: ", "@bobby: ")
    press(tab, "Escape", "Tab")
    assert tab.js(FOCUS + ".id") == "send"


def test_one_stop_for_the_talk(talk):
    """The list of messages is one stop; arrows move in it, Tab visits what a message has, Escape
    leaves."""
    assert talk.js("document.querySelectorAll('#log [tabindex=\"0\"]').length") == 1
    talk.js("document.querySelector('#log [tabindex=\"0\"]').focus()")
    press(talk, "ArrowUp", "ArrowUp")
    assert "dora joined" in talk.js(FOCUS + ".textContent")
    press(talk, "ArrowUp", "ArrowUp")
    assert "two" in talk.js(FOCUS + ".textContent")
    talk.key("Tab")
    assert talk.js(FOCUS + ".href") == "http://192.0.2.2/"
    talk.key("Tab")
    assert talk.js(FOCUS + ".textContent") == "Reply"
    talk.js(f"{row('three')}.focus()")
    talk.key("ArrowDown")
    assert talk.js("[...document.querySelectorAll('#log a')].every(link => link.tabIndex === -1)")
    talk.key("Enter")
    talk.js(f"{row('three')}.focus()")
    talk.key("Enter")
    assert talk.js(FOCUS + ".id") == "input" and talk.js("input.value") == "> carol: three\n"
    talk.js(f"{row('three')}.focus()")
    talk.key("Escape")
    assert talk.js(FOCUS + ".id") == "input"


def test_stop_survives_what_comes_and_goes(talk):
    """What comes does not take the focus out of the talk; a row that is trimmed gives the stop on.
    What comes does not take the focus out of the talk; a row that is trimmed gives the stop on."""
    talk.js(f"{row('three')}.focus()")
    talk.js("fake.say('bob', 'five')")
    talk.wait(row("five"))
    assert "three" in talk.js(FOCUS + ".textContent")
    talk.js("for (let at = 0; at < 2400; at++) fake.say('bob', `more ${at}`)")
    talk.wait(row("more 2399"))
    assert talk.js("document.querySelectorAll('#log [tabindex=\"0\"]').length") == 1


def test_people_by_keys(alone):
    """The list of people is one stop as well; Enter opens what can be done with a person."""
    tab = alone("ann", users=["bob", "carol"])
    tab.wait("document.querySelectorAll('#people li').length === 3")
    assert tab.js("document.querySelectorAll('#people [tabindex=\"0\"]').length") == 1
    tab.js("document.querySelector('#people [tabindex=\"0\"]').focus()")
    press(tab, "ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp", "Enter")
    tab.wait("document.getElementById('card').open")
    assert tab.js("document.getElementById('card-title').textContent") == "bob"
    tab.key("Escape")
    tab.wait("!document.getElementById('card').open")
    assert "bob" in tab.js(FOCUS + ".textContent")


def test_walk_by_tab(talk):
    """From the top of the page to the field by Tab alone takes few stops, whatever is in the talk.
    From the top of the page to the field by Tab alone takes few stops, whatever is in the talk."""
    talk.js("document.body.tabIndex = -1; document.body.focus()")
    stops = []
    for _ in range(14):
        talk.key("Tab")
        stops.append(talk.js(AT))
        if stops[-1] == "input":
            break
    assert stops[0] == "skip" and stops[-1] == "input", stops
    talk.js("document.getElementById('skip').focus()")
    talk.key("Enter")
    assert talk.js(FOCUS + ".id") == "input"


def test_drawer(alone):
    """On a phone the people's drawer dims the talk and closes by its button, Escape and a tap
    outside."""
    tab = alone("ann", width=360, height=740)
    for close in ("tab.click('#side-close')", "tab.key('Escape')",
                  "tab.js('document.elementFromPoint(20, 400).click()')"):
        tab.click("#people-button")
        assert tab.js("getComputedStyle(document.getElementById('shade')).display") == "block"
        assert tab.js("document.getElementById('people-button').ariaExpanded") == "true"
        eval(close)
        tab.wait("getComputedStyle(document.getElementById('side')).display === 'none'")
        assert tab.js(FOCUS + ".id") == "people-button"


def test_drawer_closes_behind_the_focus(alone):
    """The focus never lies behind the drawer: where Tab leads out of it, it closes."""
    tab = alone("ann", width=360, height=740)
    tab.click("#people-button")
    tab.wait("document.querySelector('#people [tabindex=\"0\"]')?.offsetWidth > 0")
    press(tab, "Tab", "Tab")
    assert tab.js("$('side').contains(document.activeElement) && $('side').className") == "open"
    # Between the last stop and the first a browser may have one of its own.
    tab.key("Tab")
    if tab.js(FOCUS + " === document.body"):
        tab.key("Tab")
    assert tab.js("[$('side').className, $('people-button').ariaExpanded, "
                  f"{FOCUS}.id]") == ["", "false", "skip"]


def test_help_begins_at_its_top(alone):
    """On a small phone the help is longer than the window: one reads it from its beginning."""
    tab = alone("ann", width=320, height=568)
    tab.js("help()")
    assert tab.js("[$('help').scrollTop, $('help').scrollHeight > innerHeight]") == [0, True]
    assert tab.js(FOCUS + ".id") == "help-title"
    tab.key("Tab")
    assert tab.js(FOCUS + ".form.method") == "dialog"


def test_dialogs_close_by_escape_and_outside(alone):
    """Settings and help are dialogs: Escape and a click beside them end them, and the talk is not
    touched."""
    tab = alone("ann")
    for opened in ("document.getElementById('settings-button').click()", "help()"):
        for close in ("tab.key('Escape')", "tab.js('document.elementFromPoint(5, 400).click()')"):
            tab.js(opened)
            tab.wait("document.querySelector('dialog[open]')")
            eval(close)
            tab.wait("!document.querySelector('dialog[open]')")
    assert not tab.js("document.querySelector('#log .note')")


# --- Fingers ---

def test_enter_on_a_phone(alone):
    """Where fingers type, Enter is a new line and Send sends; the field is 16 px, what is tapped
    44."""
    tab = alone("ann", width=360, height=740)
    tab.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=1)
    tab.wait("coarse.matches")
    tab.type("one", "input")
    tab.key("Enter")
    tab.type("two")
    assert tab.js("input.value") == "one\ntwo"
    tab.click("#send")
    tab.wait(row("one\ntwo", ".own"))
    assert tab.js("parseFloat(getComputedStyle(input).fontSize)") >= 16
    small = tab.js("""[...document.querySelectorAll(
        "header button, #composer button, #composer textarea")]
        .filter(at => at.checkVisibility()).map(at => [at.id, at.getBoundingClientRect()]).filter(
        ([id, box]) => box.height < 43.9 || box.width < 43.9).map(([id]) => id)""")
    assert small == []


SMALL = """[...document.querySelectorAll("button, input, select, summary, .check, a")].filter(at =>
    at.checkVisibility() && !at.matches(".skip, [type=checkbox]")).filter(at => {
    const {width, height} = at.getBoundingClientRect(), least = at.closest("#log") ? 23.5 : 43.5;
    return Math.min(width, height) < least; }).map(at => at.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("width", [320, 360])
def test_what_a_finger_meets(alone, width):
    """On a touch screen what is pressed is 44 pixels wide and high, and 24 inside a text."""
    tab = alone("ann", width=width, height=740)
    tab.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=1)
    tab.js("fake.say('bob', 'see http://192.0.2.1/ and https://192.0.2.2/long/' + 'x'.repeat(60))")
    tab.wait("document.querySelector('#log a')")
    for opened in ("", "speakTo(view.person('bob'))", "openSearch('x')", "side(true)",
                   "side(false); card('bob')", "$('card').close(''); opened('settings')",
                   "$('settings').close(''); help()"):
        tab.js(opened)
        assert tab.js(SMALL) == [], opened
    assert tab.js("document.documentElement.scrollWidth") == width


def test_font_size_of_the_browser(alone):
    """Whoever has set a larger size in the browser has it on the page: nothing is in pixels."""
    tab = alone("ann")
    before = tab.js("parseFloat(getComputedStyle(input).fontSize)")
    tab.js("document.documentElement.style.fontSize = '32px'")
    assert tab.js("parseFloat(getComputedStyle(input).fontSize)") == pytest.approx(2 * before)


# --- A screen reader ---

def test_what_a_screen_reader_hears(talk):
    """Every message has its speaker, grouped ones too; the state of one's own and of oneself is in
    words."""
    say(talk, "mine")
    talk.wait(row("mine"))
    talk.js("fake.push({type: 'heard', about: fake.id, count: 1, of: 2})")
    talk.wait("document.querySelector('.own .state').textContent === 'heard by 1 of 2'")
    assert talk.js("[...document.querySelectorAll('#log .msg')].every(at => /bob|carol|ann/.test("
                   "at.textContent))")
    assert talk.js("document.getElementById('status').textContent") == "connected as ann"
    assert talk.js("document.getElementById('log').getAttribute('role')") == "log"
    talk.size(360, 740)
    talk.wait("innerWidth === 360")
    tree = talk.call("Accessibility.getFullAXTree")["nodes"]
    names = [node["name"]["value"] for node in tree if node.get("role", {}).get("value") in (
        "button", "heading", "textbox", "searchbox", "checkbox", "combobox") and not node.get(
            "ignored")]
    assert "Roger" in names and "" not in [name.strip() for name in names]


def test_states_are_marks_but_for_the_newest(alone):
    """Of one's own messages the newest has its state in words; the others have a mark of a few
    pixels."""
    tab = alone("ann")
    for text in ("one", "two"):
        say(tab, text)
        tab.wait(row(text))
    wide = "%s.querySelector('.state').getBoundingClientRect().width"
    assert tab.js(wide % row("one")) < 24 < tab.js(wide % row("two"))
    assert tab.js(f"{row('one')}.querySelector('.state').title") == "there"
    tab.js(f"{row('one')}.focus()")
    assert tab.js(wide % row("one")) > 24


FORCED = """[...document.querySelectorAll(".msg.mention, .msg.private")].map(at =>
    getComputedStyle(at, "::before").backgroundColor)"""


def test_forced_colours(alone):
    """With forced colours the bands of mentions and private messages are there."""
    tab = alone("ann")
    tab.js("fake.say('bob', 'ann'); fake.say('bob', 'psst', {to: 'ann'})")
    tab.wait("document.querySelector('.private')")
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "forced-colors", "value": "active"}])
    assert "rgba(0, 0, 0, 0)" not in tab.js(FORCED)


def test_borders_of_fields(alone):
    """The border of a field has a contrast of 3 to what is around it, in light and in dark."""
    script = """(() => { const light = color => { const [r, g,
        b] = color.match(/[\\d.]+/g).map(Number)
        .map(value => value / 255).map(value => value <= 0.04045 ? value / 12.92
            : ((value + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const paper = light(getComputedStyle(document.body).backgroundColor);
        return [...document.querySelectorAll("#name, #filter, #theme, #composer form")].map(at => {
            const line = light(getComputedStyle(at).borderTopColor);
            return (Math.max(line, paper) + 0.05) / (Math.min(line, paper) + 0.05); }); })()"""
    tab = alone("ann")
    tab.js("input.blur()")
    assert min(tab.js(script)) >= 3
    tab.look(dark=True)
    assert min(tab.js(script)) >= 3


# --- Themes and languages ---

def test_theme_is_remembered(alone):
    """As the system, light or dark; what was chosen holds over a reload."""
    tab = alone("ann")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = tab.js(paper)
    tab.look(dark=True)
    tab.wait(f"{paper} !== '{light}'")
    tab.js("document.getElementById('theme').value = 'light'; document.getElementById('theme')"
           ".dispatchEvent(new Event('change', {bubbles: true}))")
    assert tab.js(paper) == light
    tab.reload()
    assert tab.js(paper) == light


def test_languages(alone):
    """Chosen by the browser, switched in the settings; the whole page, rows and states, too;
    Arabic runs
    from right to left."""
    script = "Object.defineProperty(navigator, 'languages', {get: () => ['fr', 'de-CH']});"
    tab = alone("ann", script=script)
    assert tab.js("document.documentElement.lang") == "de"
    say(tab, "hallo")
    tab.js("fake.number({type: 'joined', name: 'dora'})")
    tab.wait("/dora gekommen/.test(document.getElementById('log').textContent)")
    tab.js("document.getElementById('lang').value = 'ar'; document.getElementById('lang')"
           ".dispatchEvent(new Event('change', {bubbles: true}))")
    assert tab.js("[document.documentElement.lang, document.documentElement.dir]") == ["ar", "rtl"]
    assert tab.js("document.querySelector('.own .state').textContent") == "وصلت"
    side = tab.js("document.getElementById('side').getBoundingClientRect().left")
    assert side == 0
    tab.size(320, 568)
    tab.wait("innerWidth === 320")
    assert tab.js("document.documentElement.scrollWidth <= 320")
    tab.reload()
    assert tab.js("document.documentElement.lang") == "ar"


RTL = 'localStorage.setItem("roger.settings", JSON.stringify({lang: "ar"}));'


@pytest.mark.parametrize("script, side, text", [
    (RTL, "right", "waves, and goes on"), (RTL, "right", "مرحبًا"), ("", "left", "مرحبًا")])
def test_text_stands_below_its_name(alone, script, side, text):
    """Whatever way a text runs it stands where its speaker's name does, not across the page."""
    tab = alone("ann", script=script)
    tab.js(f"fake.say('bob', {json.dumps(text)})")
    tab.wait(row(text))
    assert tab.js(f"""(row => {{ const letters = document.createRange();
        letters.selectNodeContents(row.querySelector('.text'));
        return Math.abs(letters.getBoundingClientRect().{side}
            - row.querySelector('.head').getBoundingClientRect().{side}); }})({row(text)})""") < 2


def test_field_follows_what_is_written(alone):
    """In a page from right to left, too, a question in English ends with its mark: the field takes
    the direction of its text, and what search found has one of its own."""
    tab = alone("ann", script=RTL)
    direction = "getComputedStyle(input).direction"
    assert tab.js(direction) == "rtl"
    tab.type("where?", "input")
    assert tab.js(direction) == "ltr"
    tab.js("setDraft('\u0623\u064a\u0646\u061f')")
    assert tab.js(direction) == "rtl"
    tab.js("fake.say('bob', '> carol: where?')")
    tab.wait(row("> carol: where?"))
    tab.js("fake.answer = frame => frame.type === 'history' && "
           "(fake.push({type: 'ack', id: frame.id}), true); openSearch('where')")
    tab.wait("$('found').lastChild?.textContent === '> carol: where?'")
    assert tab.js("[$('found').lastChild.tagName, "
                  "getComputedStyle($('found').lastChild).direction]") == ["BDI", "ltr"]


def test_every_word_has_every_language(alone):
    """Each row of the table has a column for each language, with the same fields in it;
    no other words are
    in the page's code."""
    tab = alone("ann")
    words = tab.js("WORDS")
    count = tab.js("LANGS.length")
    for key, columns in words.items():
        assert len(columns) == count, key
        assert all(columns[key.startswith("e-"):]), key
        fields = {tuple(sorted(set(re.findall(r"\{\w+\}",
            column)))) for column in columns if column}
        assert len(fields) == 1, (key, fields)
    page = (harness.ROOT / "chat_web.html").read_text(encoding="utf-8")
    used = set(re.findall(r'\bt[n]?\("([a-z -]+)"', page)) | set(re.findall(
        r'data-(?:t|label|placeholder)="([a-z-]+)"', page))
    assert not used - set(words)
    body = page[page.index("<header>"):page.index("<script>")]
    assert set(re.findall(r">\s*([A-Za-z][^<]*?)\s*<", body)) <= {"Roger"}


@pytest.mark.parametrize("width, height", [(1280, 800), (820, 1180), (360, 740), (320, 568)])
@pytest.mark.parametrize("lang", ["en", "de", "ar"])
def test_nothing_sticks_out(alone, width, height, lang):
    """In every language and size nothing is wider than the window."""
    settings = json.dumps({"lang": lang})
    tab = alone("ann", width=width, height=height,
                script=f"localStorage.setItem('roger.settings', {json.dumps(settings)});")
    tab.js("""fake.say('bob', 'W'.repeat(500) + ' http://192.0.2.1/' + 'x'.repeat(300),
        {to: 'ann'});
        fake.number({type: 'rules', speak: 'host', host: 'W'.repeat(24)}); openSearch('x');
        fake.number({type: 'motd', text: 'W'.repeat(500)}); session.lost('why')""")
    for opened in ("", "help()", "document.getElementById('help').close(); card('W'.repeat(24))",
                   "document.getElementById('card').close(); opened('settings')"):
        tab.js(opened)
        assert tab.js("""[...document.querySelectorAll(
            "body, #scroller, header, #banner, #composer, dialog")]
            .filter(at => at.scrollWidth > at.clientWidth + 1).map(at => at.id
            || at.tagName)""") == []
