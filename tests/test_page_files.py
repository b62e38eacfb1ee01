"""Files on the page: dropped, pasted and chosen; the bar, previews, the row with Save, and the
host's list. With the real server."""

import itertools
import json
import os
import types

import harness
import page
import pytest
from chatproto import size_in_words
from uploads import Uploader, at_the_console, fetch

browser, fresh, enter = page.browser, page.fresh, page.enter

# A picture of one pixel.
PNG = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944"
                    "4154789c63f8cfc000000301010018dd8db00000000049454e44ae426082")
# Of files given as [name, bytes, ...]: as a drop, a paste or a choice brings them.
FILES = """(files => { const all = new DataTransfer();
    for (const [name, bytes] of files) all.items.add(new File([new Uint8Array(bytes)], name));
    return all; })(%s)"""
DROP = """(all => { const drop = new DragEvent("drop", {bubbles: true, cancelable: true,
    dataTransfer: all}); document.body.dispatchEvent(drop); })(%s)"""
PASTE = """(all => { const paste = new ClipboardEvent("paste", {bubbles: true, cancelable: true,
    clipboardData: all}); input.dispatchEvent(paste); })(%s)"""
CHOOSE = """(all => { $("choose").files = all.files;
    $("choose").dispatchEvent(new Event("change")); })(%s)"""

# Uploads stop at their first piece.
HOLD = """Upload.prototype.real = Upload.prototype.ask;
Upload.prototype.ask = function (method, path, range, ...rest) {
    return method === "PUT" && range !== "*" ? (this.held = true, new Promise(() => {}))
        : this.real(method, path, range, ...rest); }"""


@pytest.fixture(scope="module")
def server():
    with harness.serving("--rate", "0", "--max-file", "9", "--grace", "1") as server:
        yield server


def files(*named):
    return FILES % json.dumps([[name, list(data)] for name, data in named])


def comes_in(enter, name, count=itertools.count(), **options):
    """A tab that is in, under a name that no test before had, and knows that files are taken."""
    tab = enter(f"{name}{next(count)}", **options)
    tab.wait("view.rules.files")
    return tab


def uploader(server, tab):
    """What asks about a tab's uploads, as it does."""
    member = types.SimpleNamespace(welcome={"session": tab.js("session.secret")})
    return Uploader(server.port, member)


@pytest.mark.parametrize("way", [DROP, PASTE, CHOOSE], ids=["drop", "paste", "choose"])
def test_file_is_handed_out(enter, server, way):
    """However it comes, it goes up and is a row with name, size and Save for all."""
    ann, bob = comes_in(enter, "ann"), comes_in(enter, "bob")
    name = f"plan {way[1]}{len(way)}.pdf"
    ann.js(way % files((name, b"12345")))
    found = ("[...document.querySelectorAll('#log .file')].find(at => "
             f"at.textContent.includes({name!r}))")
    for tab in (ann, bob):
        tab.wait(found)
        assert tab.js(f"{found}.textContent").replace("\u2068", "").endswith("5 BSave")
    # Its message has no words besides.
    assert bob.js(f"{found}.parentNode.querySelector('.text').textContent") == ""
    url = bob.js(f"{found}.querySelector('a').getAttribute('href')")
    assert fetch(server.port, url)[2] == b"12345"
    assert bob.js(f"{found}.querySelector('a').download") == name
    ann.wait("!uploads.length && !document.querySelector('.upload')")


def test_picture_is_shown_in_a_box_that_does_not_move(enter, server):
    """It loads by itself, in a box of the same height before and after; a click opens the whole."""
    ann = comes_in(enter, "ann")
    ann.js(DROP % files(("one.png", PNG)))
    ann.wait("document.querySelector('#log .preview img')?.naturalWidth === 1")
    height = "document.querySelector('#log .preview').getBoundingClientRect().height"
    assert ann.js(height) == 192
    ann.js("document.querySelector('#log .preview img').remove()")
    assert ann.js(height) == 192
    ann.js("view.redraw(view.rows.find(row => row.file?.name === 'one.png'))")
    ann.js("document.querySelector('#log .preview').click()")
    ann.wait("$('picture').open && $('picture').querySelector('img').naturalWidth === 1")
    ann.key("Escape")
    ann.wait("!$('picture').open")


def test_large_picture_waits_for_a_click(enter, server):
    """One of more than 4 MB is not loaded before somebody wants it."""
    ann, bob = comes_in(enter, "ann"), harness.RawClient(server.port, auto_ack=True)
    with bob:
        bob.join("bob")
        up = Uploader(server.port, bob)
        up.say(up.upload("large.png", PNG + bytes(4_000_001)))
        box = "[...document.querySelectorAll('#log .preview')].at(-1)"
        ann.wait(f"{box}?.textContent === 'Show (4 MB)'")
        assert not ann.js(f"{box}.querySelector('img')")
        ann.js(f"{box}.click()")
        ann.wait(f"{box}.querySelector('img')?.naturalWidth === 1")
        bob.leave()


def test_several_at_once_with_bars(enter, server):
    """Each has a bar; two go at a time, and all arrive."""
    ann = comes_in(enter, "ann")
    drop = DROP % files(*((f"several{number}.bin", os.urandom(2000)) for number in range(5)))
    # At once: they are soon over.
    assert ann.js(f"{drop}; [document.querySelectorAll('.upload progress').length,"
                  "uploads.filter(upload => upload.running).length]") == [5, 2]
    ann.wait("[...document.querySelectorAll('#log .file')].filter(at => "
             "at.textContent.includes('several')).length === 5")


def test_cancel(enter, server):
    """A file that is cancelled leaves nothing; one that is too large says so, and can be
    removed."""
    ann = comes_in(enter, "ann")
    ann.js(HOLD)
    ann.js(DROP % files(("held.bin", bytes(5000))))
    ann.wait("uploads[0]?.held")
    path = ann.js("uploads[0].path")
    ann.js("document.querySelector('.upload button').click()")
    ann.wait("!uploads.length && !document.querySelector('.upload')")
    ann.js("Upload.prototype.ask = Upload.prototype.real")
    harness.wait_until(lambda: uploader(server, ann).have(path) is None)
    ann.js("handOut([new File([new Uint8Array(9000001)], 'huge.bin')])")
    ann.wait("document.querySelector('.upload.failed')?.textContent.includes('larger than 9 MB')")
    ann.js("document.querySelector('.upload button').click()")
    ann.wait("!document.querySelector('.upload')")


def test_many_leave_room(enter):
    """However many wait, the line that is typed stays in view, and some of the talk."""
    ann = comes_in(enter, "ann", width=360, height=740)
    ann.js("Upload.prototype.real = Upload.prototype.run;"
           "Upload.prototype.run = function () { this.running = true; };"
           "handOut(Array.from({length: 20}, (_, n) => new File(['x'], `${n}`)))")
    assert ann.js("uploads.length") == 20
    assert ann.js("input.getBoundingClientRect().bottom <= innerHeight"
                  " && $('scroller').clientHeight > 200")
    ann.js("[...uploads].forEach(upload => upload.cancel());"
           "Upload.prototype.run = Upload.prototype.real")


def test_folder(enter, server, tmp_path):
    """A folder that is dropped says that it cannot be read, and holds no place at the server: after
    four of them a file goes up."""
    ann = comes_in(enter, "ann")
    for number in range(4):
        (tmp_path / f"folder{number}").mkdir()
    drag(ann, *sorted(tmp_path.glob("folder*")))
    ann.wait("document.querySelectorAll('.upload.failed').length === 4")
    assert "cannot be read" in ann.js("document.querySelector('.upload').textContent")
    ann.js(DROP % files(("after.txt", b"12345")))
    ann.wait("document.querySelector('#log').textContent.includes('after.txt')")
    ann.js("[...uploads].forEach(upload => upload.cancel())")


def drag(tab, *paths):
    """Drop files and folders of this machine, as the mouse does: over the page until it shows that
    it takes them, and once more where the browser took what was let go for a drag that left."""
    data = {"items": [], "files": list(map(str, paths)), "dragOperationsMask": 1}

    def do(kind):
        tab.call("Input.dispatchDragEvent", type=kind, x=600, y=400, data=data)

    def over():
        do("dragOver")
        return tab.js("last === 'dragover'")

    def dropped():
        do("dragEnter")
        harness.wait_until(over)
        do("drop")
        tab.wait("last !== 'dragover'")
        return tab.js("last === 'drop'")
    tab.js("var last; for (const type of ['dragover', 'dragleave', 'drop'])"
           " document.addEventListener(type, () => { last = type; })")
    harness.wait_until(dropped)


def test_page_that_goes_gives_its_uploads_up(enter, server):
    """Before it goes the browser asks; and what went up holds no place when the page is back."""
    ann = comes_in(enter, "ann")
    asks = """(() => { const event = new Event("beforeunload", {cancelable: true});
        dispatchEvent(event); return event.defaultPrevented; })()"""
    assert not ann.js(asks)
    ann.js(HOLD)
    ann.js(DROP % files(("one.bin", bytes(5000)), ("two.bin", bytes(5000))))
    ann.wait("uploads.filter(upload => upload.held).length === 2")
    assert ann.js(asks)
    paths, secret = ann.js("uploads.map(upload => upload.path)"), ann.js("session.secret")
    ann.js("window.beforeReload = true")
    ann.call("Page.reload")
    harness.wait_until(lambda: page.leaves(ann))
    ann.wait("!window.beforeReload && session.joined")
    assert ann.js("session.secret") == secret
    for path in paths:
        harness.wait_until(lambda path=path: uploader(server, ann).have(path) is None)


def test_goes_on_over_a_kill(serve, fresh, tmp_path):
    """A server with a history that is killed between two pieces gets the rest, under the same
    address, and the message once."""
    server = serve("--history", tmp_path / "chat.db")
    ann = fresh()
    ann.open(f"http://127.0.0.1:{server.port}/")
    page.join(ann, "ann")
    ann.wait("view.rules.files")
    ann.js("const gate = new Promise(done => { window.go = done; }), asked = [];"
           "Upload.prototype.real = Upload.prototype.ask; Upload.prototype.ask = async function ("
           "method, path, range, ...rest) { asked.push(`${method} ${range || ''}`);"
           "if (range?.startsWith('4194304-')) await gate;"
           "return this.real(method, path, range, ...rest); }")
    ann.js("handOut([new File([new Uint8Array(9e6).map((_, n) => n % 251)], 'large.bin')])")
    ann.wait("asked.at(-1).startsWith('PUT 4194304-')")
    server.kill()
    ann.js("go()")
    ann.wait("!session.joined")
    server.start()
    ann.wait("document.querySelector('#log .file')?.textContent.includes('large.bin')")
    asked = ann.js("asked")
    assert asked.count("POST ") == 1 and sum(one.startswith("PUT 0-") for one in asked) == 1
    (url,) = ann.js("[...document.querySelectorAll('#log .file a')].map(at => at.pathname)")
    assert fetch(server.port, url)[2] == (bytes(range(251)) * 40_000)[:9_000_000]


def test_answers_that_are_cut_in_their_head(enter):
    """What the browser takes for an empty answer, as its length was cut off, is a broken
    connection."""
    ann = comes_in(enter, "ann")
    ann.js("const cuts = [1, 0, 1, 0, 1, 0]; window.XMLHttpRequest = class extends XMLHttpRequest {"
           "get responseText() { this.cut ??= cuts.shift();"
           "return this.cut ? '' : super.responseText; } }")
    ann.js(DROP % files(("cut.txt", b"12345")))
    ann.wait("document.querySelector('#log').textContent.includes('cut.txt')")
    assert ann.js("cuts.length") == 0


def test_message_that_hands_nothing_out(enter, server):
    """A file that the server knows no more when its message comes: the message says which file it
    was, and why not."""
    ann = comes_in(enter, "ann")
    ann.js("session.say('lost.pdf (5 B) http://127.0.0.1/files/' + '0'.repeat(32), null,"
           "{name: 'lost.pdf', size: 5, url: '/files/' + '0'.repeat(32)})")
    ann.wait("document.querySelector('#pending .failed')?.textContent.includes('lost.pdf (5 B)')")
    assert "uploaded" in ann.js("document.querySelector('#pending .failed').textContent")


def test_who_may_not_speak(enter, server):
    """A muted member's file is refused with the reason."""
    ann = comes_in(enter, "ann")
    name = ann.js("session.name")
    at_the_console(server, f"/mute {name}")
    ann.js(DROP % files(("muted.txt", b"x")))
    ann.wait("document.querySelector('.upload.failed')?.textContent.includes('has muted you')")
    at_the_console(server, f"/unmute {name}")
    ann.js("[...uploads].forEach(upload => upload.cancel())")


def test_waits_for_the_connection(enter, server):
    """What is dropped while the connection is broken goes up when it is back."""
    ann = comes_in(enter, "ann")
    ann.js("session.lost('test'); clearTimeout(session.again)")
    ann.js(DROP % files(("patient.txt", b"12345")))
    ann.wait("document.querySelector('.upload')?.textContent.includes('waits')")
    ann.js("session.connect()")
    ann.wait("document.querySelector('#log').textContent.includes('patient.txt')")


def test_own_words_and_hostile_files(enter, server):
    """Words beside a file stay; one whose address leads elsewhere is no file, and a removed one is
    gone."""
    ann = comes_in(enter, "ann")
    with harness.RawClient(server.port, auto_ack=True) as bob:
        bob.join("bob")
        up = Uploader(server.port, bob)
        up.say({**up.upload("notes.txt", b"x"), "text": "read this"})
        ann.wait(page.row("read this"))
        assert ann.js(f"{page.row('read this')}.querySelector('.file bdi').textContent") == (
            "notes.txt")
        bob.leave()
    for url in ("//evil/x", "http://evil/x", "/files/x", "javascript:alert(1)"):
        assert ann.js(f"fileIn({{name: 'x', size: 1, url: {url!r}}})") is None
    ann.js("view.removed(view.rows.find(row => row.text === 'read this').id)")
    ann.wait("[...document.querySelectorAll('#log .removed')].at(-1)"
             " && !document.querySelector('#log .removed .file')")


def test_says_sizes_as_the_server_does(enter):
    """Else a message would tell name and size twice."""
    ann = comes_in(enter, "ann")
    sizes = [0, 1, 999, 1000, 1049, 9949, 9951, 99499, 99501, 999499, 999501, 123456789, 15 * 10**8]
    assert ann.js(f"{sizes}.map(sizeOf)") == [size_in_words(size) for size in sizes]


def test_host_sees_removes_and_switches_off(enter, fresh, server):
    """The host's page lists what there is, removes one with its message, and takes no more."""
    ann = comes_in(enter, "ann")
    ann.js(DROP % files(("for the host.pdf", b"12345")))
    ann.wait("document.querySelector('#log').textContent.includes('for the host')")
    link = server.printed("Host's page: ")
    host = fresh(path="/" + link.partition("/")[2].partition("/")[2].partition("/")[2])
    line = ("[...document.querySelectorAll('#host-files li')].find(at => "
            "at.textContent.includes('for the host'))")
    host.wait(line)
    host.js(f"{line}.querySelector('button').click()")
    host.wait(f"!({line})")
    ann.wait("!document.querySelector('#log').textContent.includes('for the host')")
    host.js("$('host-takes').click()")
    ann.wait("!view.rules.files && $('attach').hidden")
    # Until this order is answered, the answer to an earlier question may have ticked it again.
    host.js("hostTurn.then(() => {})")
    assert not host.js("$('host-takes').checked")
    host.js("$('host-takes').click()")
    ann.wait("view.rules.files && !$('attach').hidden")
