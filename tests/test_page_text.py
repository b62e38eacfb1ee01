"""What the page makes of a text: links, code, quotes, what hides, and whose name is in it."""

import json

import page
import pytest

browser, server = page.browser, page.server

LINE = "http://192.0.2.1/a"


@pytest.fixture(scope="module")
def tab(browser, server):
    tab = browser.tab()
    tab.open(f"http://127.0.0.1:{server.port}/")
    yield tab
    tab.close()


def made(tab, text):
    """The element that a text becomes: its text, and its links as [shown, address]."""
    return tab.js(f"""(() => {{ const into = make("div"); fill(into, {json.dumps(text)});
        return [into.textContent, [...into.querySelectorAll("a")].map(link =>
            [link.textContent, link.href])]; }})()""")


# --- Links ---

@pytest.mark.parametrize("after", [".", ",", ")", "。", "，", "、", "”", "’", "»", "…", "」", "）",
                                   "！", "؟", "، ثم", " x", "\n", "这里", "を見て", ">", "\"", "'"])
def test_link_ends_before(tab, after):
    """A link ends before what is the sentence's and not the address's."""
    text, links = made(tab, LINE + after)
    assert text == LINE + after and links == [[LINE, LINE]]


@pytest.mark.parametrize("address", [
    "http://192.0.2.1/a_", "http://192.0.2.1/a_(b)", "http://192.0.2.1/?q=a,b;c#d",
    "http://192.0.2.1:8087/", "https://192.0.2.1/~x/%20", "http://192.0.2.1/Prüfung.pdf"])
def test_link_keeps(tab, address):
    """What belongs to an address stays in it, a trailing underscore and a pair of brackets, too."""
    text, links = made(tab, f"see {address} there")
    assert [link[0] for link in links] == [address] and text == f"see {address} there"


@pytest.mark.parametrize("text", [
    "http://bank.example@192.0.2.1/", "http://bank.example%40x:y@192.0.2.1/", "http://", "http://[",
    "javascript:alert(1)", "data:text/html,x", "xhttp://a.example/", "http://a.exa\u200bmple/",
    "http://a.example/\u202e"])
def test_no_link(tab, text):
    """What pretends to be a host, hides or is no address of http is text."""
    links = made(tab, text)[1]
    assert not any("192.0.2.1" in link[1] or "\u200b" in link[1] or "202E" in link[1].upper()
                   for link in links)
    assert all(link[1].startswith("http://a.example/") for link in links)


@pytest.mark.parametrize("text, host", [
    ("http://\u0430pple.example/", "xn--pple-43d.example"), ("http://2130706433/x", "127.0.0.1"),
    ("http://0x7f.1/", "127.0.0.1"), ("http://ex%61mple.example/", "example.example"),
    ("http://good.example\\@evil.example/", "good.example")])
def test_link_shows_its_host(tab, text, host):
    """The host that is shown is the one that it leads to."""
    (words, address), = made(tab, text)[1]
    assert address.split("/")[2] == host and words.split("/")[2].split("\\")[0] == host


# --- Code, quotes, time ---

def test_code_and_quote(tab):
    """Backticks are code, a > at the start is a quote; the text stays what was said."""
    for text, css in (("use `rm -rf` now", "code"), ("> bob: hi\nno", "blockquote"),
                      ("> one\n> two", "blockquote"), ("a > b\n> c", None), ("`open", None)):
        tags = tab.js(f"""(() => {{ const into = make("div"); fill(into, {json.dumps(text)});
            return [into.textContent, ...into.querySelectorAll("code, blockquote")].map(at =>
                at.tagName?.toLowerCase() || at); }})()""")
        assert tags == [text] + ([css] if css else [])
    assert tab.js("""(() => { const into = make("div"); fill(into,
        "a\\n```py\\n  x\\n```\\nb\\n```");
        return [into.querySelector("pre").textContent, into.textContent]; })()""") == [
            "  x", "a\n  xb\n```"]


@pytest.mark.parametrize("text", [
    "http://a" + ")" * 8184, "http://a" + "." * 8100 + "x", "`" * 8192, "```\n" * 2048,
    "```x\n" * 2000, "\u200b" * 8192, "> " * 4096, "> x\n" * 2048, "a\u0301" + "\u0301" * 8000,
    "\u2066" * 8192, " " * 8000 + "x", "http://a " * 900, "ann-" * 2048])
def test_linear(tab, text):
    """A hundred such messages are shown within the driver's time-out: quadratic work takes minutes.
    A hundred such messages are shown within the driver's time-out: quadratic work takes minutes."""
    tab.js(f"""(text => {{ for (let times = 0; times < 100; times++) {{
        fill(make("div"), text); mentions(text, "ann"); clean(text); }} }})({json.dumps(text)})""")


def test_run_of_hidden_characters(tab):
    """A run of what hides is one element, and not as long as it was; a link is bounded."""
    assert tab.js("""(() => { const into = make("div"); fill(into,
        "a" + "\\u200b".repeat(8000) + "b");
        return [into.childNodes.length, into.textContent.length < 400]; })()""") == [3, True]
    assert len(made(tab, "http://a/" + "x" * 8000)[1][0][0]) <= 2060


# --- What hides ---

@pytest.mark.parametrize("text", [
    "می\u200cخواهم", "ക\u0d4d\u200dഷ", "ന\u0d4d\u200d ", "র\u200d\u09cdয", "שלום\u200f!",
    "葛\U000e0100", "❤\ufe0f", "1\ufe0f\u20e3", "👩\u200d🚀", "🏴\U000e0067\U000e0062\U000e0065"
    "\U000e006e\U000e0067\U000e007f", "\u2068ann\u2069 x", "a\u2066b\u2067c\u2069\u2069", "e\u0301",
    "no hidden\ttab\nline", "ᠠ\u180b", "日本語", "Zalgo" + "\u0301" * 8])
def test_shown_as_it_is(tab, text):
    """What readers need is not escaped."""
    assert tab.js(f"shown({json.dumps(text)})") == text


@pytest.mark.parametrize("text, shown", [
    ("a\u200bb", "a\\u200bb"), ("a\u200db", "a\\u200db"), ("a\u200cb", "a\\u200cb"),
    ("\u202egnp", "\\u202egnp"), ("\u2066open", "\\u2066open"), ("\u2066a\n\u2069",
        "\\u2066a\n\\u2069"),
    ("x\u2069", "x\\u2069"), ("\ufeffx", "\\ufeffx"), ("\u200f\u200fx", "\\u200f\\u200fx"),
    ("a\u3164b", "a\\u3164b"), ("\U000e0041", "\\U000e0041"), ("a\U000e0041\U000e0042",
        "a\\U000e0041\\U000e0042"),
    ("a\x1b[2J", "a\\x1b[2J"), ("\x85\u2028", "\\x85\\u2028"), ("a\ufe0f", "a\\ufe0f"),
    ("a\u034fb", "a\\u034fb"), ("\ud800x", "\\ud800x"), ("\u0622\u200b\u0622",
        "\u0622\\u200b\u0622")])
def test_visible(tab, text, shown):
    """What hides, reorders or forges is visible."""
    text = json.dumps(text, ensure_ascii=True)
    assert tab.js(f"shown({text})") == shown
    assert tab.js(f"""(() => {{ const into = make("div"); fill(into, {text});
        return into.textContent; }})()""") == shown


# --- Mentions ---

@pytest.mark.parametrize("text, name", [
    ("ann", "ann"), ("ann: lunch?", "ann"), ("hi Ann.", "ann"), ("@ann", "ann"), ("(ann)", "ann"),
    ("ann, bob", "ann"), ("ann...", "ann"), ("ann's", "ann"), ("你好小明在吗", "小明"),
    ("ann在吗", "ann"),
    ("Jose\u0301!", "José"), ("José", "Jose\u0301"), ("ＡＮＮ", "ann"), ("ann-2: x", "ann-2"),
    ("STRASSE", "straße"), ("สวัสดีสมชายครับ", "สมชาย"), ("-ann-", "ann"), ("ann\nx", "ann")])
def test_mention(tab, text, name):
    """A name as a whole is a mention, in any case and normalisation, and inside scripts without
    blanks."""
    assert tab.js(f"mentions({json.dumps(text)}, {json.dumps(name)})")


@pytest.mark.parametrize("text, name", [
    ("ann-2: lunch?", "ann"), ("ann.smith", "ann"), ("see http://x/ann/y", "ann"), ("/home/ann/x",
        "ann"),
    ("planning", "ann"), ("anna", "ann"), ("joann", "ann"), ("x@ann.example", "ann"), ("ann_2",
        "ann"),
    ("ann2", "ann"), ("mary-ann", "ann"), ("mary.ann", "ann"), ("", "ann"), ("ann@host.example",
        "ann")])
def test_no_mention(tab, text, name):
    """Part of another name, of a word or of an address is none."""
    assert not tab.js(f"mentions({json.dumps(text)}, {json.dumps(name)})")


def test_hues(tab):
    """Of ten people no two have the same colour; who is renamed keeps it."""
    tab.js("hues.clear(); used.fill(0)")
    for stem in ("pc", "user", "ann"):
        tab.js("hues.clear(); used.fill(0)")
        names = [f"{stem}{number}" for number in range(1, 13)]
        assert len(set(tab.js(f"{json.dumps(names)}.map(hueOf)"))) == 12
    assert tab.js("[hueOf('ann1'), hueFree('ann1', 'xyz'), hueOf('xyz')]")[::2] in [
        [f"var(--n{slot})"] * 2 for slot in range(12)]
