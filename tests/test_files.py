"""Files on the wire: up in pieces, down in ranges, who may, what there is room for, and when they
go. test_files_client.py has the terminal and the pipe, test_page_files.py the page."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest

import chat_web
import chatproto
import harness
from chatproto import FROM_CLIENT, INSTRUCTIONS, decode, file_name, size_in_words
from harness import TIMEOUT, frame, posix_only, wait_until
from uploads import Uploader, ask, at_the_console, fetch, put_head

KEY = re.compile(r"[0-9a-f]{32}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def server(folder):
    """A file has at most 1 MB, all have 3 MB together."""
    (folder / "mine.txt").write_text("not the server's")
    (folder / ("0" * 32 + ".bak")).write_text("neither")
    with harness.serving("--rate", "0", "--bind", "127.0.0.1", "--grace", "0.1", "--files", folder,
                         "--max-file", "1", "--max-files", "3") as server:
        yield server


@pytest.fixture
def host(server):
    return lambda line: at_the_console(server, line)


@pytest.fixture
def emptied(server, host, folder):
    """No file is there before, and none is left behind."""
    def remove_all():
        for file in host("/files")[1]["files"]:
            host(f"/remove {file['id']}")
        wait_until(lambda: own_files(folder) == [], what=lambda: own_files(folder))
    remove_all()
    yield
    remove_all()


@pytest.fixture
def up(server, emptied, join):
    """Members who upload; at the end they leave."""
    return lambda name="ann": Uploader(server.port, join(name))


def own_files(folder):
    """What the server has in its folder; the rest is as it was."""
    names = sorted(os.listdir(folder))
    assert "mine.txt" in names and "0" * 32 + ".bak" in names
    return [name for name in names if KEY.match(name) and not name.endswith(".bak")]


# --- Up and down ---

def test_file_goes_up_in_pieces_and_down(up, server, folder):
    """Each piece is confirmed, the last one with the address; who hears the message fetches it."""
    ann, bob = up("ann"), up("bob")
    data = os.urandom(300_000)
    path = ann.start("a plan.pdf")
    assert ann.put(path, b"", 0, len(data)) == (200, b'{"have": 0}')
    assert ann.put(path, data[:100_000], 0, len(data)) == (200, b'{"have": 100000}')
    assert ann.have(path) == 100_000
    status, body = ann.put(path, data[100_000:], 100_000, len(data))
    answer = json.loads(body)
    assert status == 200 and answer["have"] == len(data)
    url = f"http://127.0.0.1:{server.port}{answer['url']}"
    assert answer["text"] == f"a plan.pdf (300 kB) {url}"
    # Asked again, as its answer may be lost.
    assert json.loads(ann.put(path, b"", 0, len(data))[1]) == answer
    assert fetch(server.port, answer["url"])[0] == 404
    said = ann.say(answer)
    heard = bob.member.recv_until("chat", cid=said["cid"])
    assert heard["file"] == {"name": "a plan.pdf", "size": len(data), "url": answer["url"]}
    status, headers, body = fetch(server.port, heard["file"]["url"])
    assert (status, body) == (200, data)
    assert headers["content-disposition"] == (
        "attachment; filename=\"a plan.pdf\"; filename*=UTF-8''a%20plan.pdf")
    assert headers["content-type"] == "application/octet-stream"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "default-src 'none'; sandbox"
    key = answer["url"].rpartition("/")[2]
    assert KEY.fullmatch(key)
    wait_until(lambda: own_files(folder) == [key], what=lambda: own_files(folder))
    if os.name == "posix":
        assert (folder / key).stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(sys.platform != "linux", reason="turns Linux into PyPy's")
def test_python_that_cannot_choose_its_core(serve, peer):
    """Where Python lacks what moves files off the core of the messages, they go all the same."""
    server = serve(sockets="pypy")
    ann = Uploader(server.port, peer(server.port, "ann"))
    answer = ann.upload("plan.pdf", b"plan")
    ann.say(answer)
    assert fetch(server.port, answer["url"])[::2] == (200, b"plan")


@pytest.mark.parametrize("asked, status, first, behind", [
    ("bytes=0-9", 206, 0, 10), ("bytes=10-", 206, 10, 1000), ("bytes=-10", 206, 990, 1000),
    ("bytes=990-5000", 206, 990, 1000), ("bytes=0-", 200, 0, 1000), ("bytes=-5000", 200, 0, 1000),
    ("bytes=999-999", 206, 999, 1000), ("bytes=1000-", 416, 0, 0), ("bytes=-0", 416, 0, 0),
    ("bytes=5-4", 200, 0, 1000), ("bytes=0-1,3-4", 200, 0, 1000), ("bytes=-", 200, 0, 1000),
    ("lines=1-2", 200, 0, 1000), ("bytes=" + "9" * 30 + "-", 200, 0, 1000)])
def test_ranges(shared, server, asked, status, first, behind):
    """One range is answered with it, none that is there with 416, what is none with the whole."""
    data, url = shared
    got, headers, body = fetch(server.port, url, Range=asked)
    assert got == status
    if status == 416:
        assert headers["content-range"] == "bytes */1000"
    else:
        assert body == data[first:behind]
        assert headers.get("content-range") == (
            None if status == 200 else f"bytes {first}-{behind - 1}/1000")


@pytest.fixture(scope="module")
def shared(server):
    """The data and the address of a picture that is there."""
    with harness.RawClient(server.port, auto_ack=True) as member:
        member.join("shared")
        up, data = Uploader(server.port, member), os.urandom(1000)
        answer = up.upload("photo.JPG", data)
        up.say(answer)
        member.leave()
    return data, answer["url"]


def test_same_file_again(shared, server):
    """The ETag tells that nothing has changed; a range of another file is the whole of this one;
    and a HEAD has all but the body."""
    data, url = shared
    etag = fetch(server.port, url)[1]["etag"]
    status, headers, body = fetch(server.port, url, If_None_Match=etag)
    assert (status, body) == (304, b"")
    assert fetch(server.port, url, Range="bytes=1-2", If_Range=etag)[0] == 206
    assert fetch(server.port, url, Range="bytes=1-2", If_Range='"x"')[::2] == (200, data)
    status, headers, body = ask(server.port, "HEAD", url)
    assert (status, headers["content-length"], body) == (200, "1000", b"")
    assert headers["content-type"] == "image/jpeg" and headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("name, kind", [
    ("a.png", "image/png"), ("a.gif", "image/gif"), ("a.webp", "image/webp"),
    ("a.svg", "application/octet-stream"), ("a.html", "application/octet-stream"),
    ("png", "application/octet-stream"), ("a.png.exe", "application/octet-stream")])
def test_kinds(up, server, name, kind):
    """Only what browsers decode safely is called a picture; nothing is ever shown as a page."""
    ann = up()
    answer = ann.upload(name, b"<script>")
    ann.say(answer)
    _, headers, _ = fetch(server.port, answer["url"])
    assert headers["content-type"] == kind
    assert headers["content-disposition"].startswith("attachment;")


def test_empty_file(up, server, folder):
    """It goes up with one request, and comes down."""
    ann = up()
    path = ann.start("empty")
    status, body = ann.put(path, b"", 0, 0)
    ann.say(json.loads(body))
    assert fetch(server.port, path)[::2] == (200, b"")
    # Asked once more it makes no other file.
    assert ann.put(path, b"", 0, 0)[0] == 200
    wait_until(lambda: own_files(folder) == [path[7:]], what=lambda: own_files(folder))


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(up, server, tmp_path):
    """curl sends it up, asking first whether it may, and saves it under its name."""
    ann = up()
    data = os.urandom(1_000_000)
    (tmp_path / "data").write_bytes(data)
    path = ann.start("from curl.bin")

    def curl(*arguments):
        return subprocess.run(["curl", "-sS", "-f", *arguments], cwd=tmp_path, timeout=TIMEOUT,
                              check=True, capture_output=True).stdout
    answer = json.loads(curl(
        "-T", "data", "-H", "Expect: 100-continue",
        "-H", f"X-Roger-Session: {ann.member.welcome['session']}",
        "-H", f"Content-Range: bytes 0-{len(data) - 1}/{len(data)}",
        f"http://127.0.0.1:{server.port}{path}"))
    ann.say(answer)
    curl("-OJ", answer["text"].split()[-1])
    assert (tmp_path / "from curl.bin").read_bytes() == data


def test_old_client_sees_what_it_is(up):
    """The text that is proposed has name, size and address; one's own words are as good."""
    ann = up()
    answer = ann.upload("x.txt", b"hello")
    chat = ann.say({**answer, "text": "the notes"})
    assert chat["text"] == "the notes" and chat["file"]["name"] == "x.txt"


# --- Who may, and how much ---

def test_only_who_is_in_the_room_uploads(up, server, host):
    """Without a session, with another's or as one who may not speak: no."""
    ann, bob = up("ann"), up("bob")
    path = ann.start("x")
    for headers in ({}, {"X-Roger-Session": "wrong"}):
        assert ask(server.port, "POST", "/files?name=x", headers=headers)[0] == 401
    assert bob.put(path, b"x", 0, 1)[0] == 404 and bob.have(path) is None
    assert bob.give_up(path) == 404
    host("/mute ann")
    assert ann.begin("x")[0] == 403
    host("/unmute ann")
    status, body = ann.put(path, b"x", 0, 1)
    bob.member.say("mine", file={"url": path})
    assert bob.member.recv_until("error")["code"] == "bad-file"
    assert ann.say(json.loads(body))["file"]["url"] == path


def test_page_elsewhere_uploads_nothing(up, server):
    """An Origin that is not this server's, and a name that leads here, are refused."""
    ann = up()
    assert ann.begin("x", Origin="http://evil.example")[0] == 403
    assert ann.begin("x", Origin=f"http://127.0.0.1:{server.port}")[0] == 201
    assert ann.begin("x", Host="evil.example")[0] == 403


@pytest.mark.parametrize("url", ["/files/" + "0" * 32, "/files", "/etc/passwd", "/files/../x"])
def test_file_of_nobody(up, url):
    """A message hands out only what its own session has uploaded."""
    ann = up()
    ann.member.say("look", file={"url": url})
    error = ann.member.recv_until("error")
    assert (error["code"], error["about"]) == ("bad-file", ann.member.next_id - 1)


@pytest.mark.parametrize("file", [
    {}, [], "x", 1, {"url": 1}, {"url": "http://evil/x"}, {"url": "//evil/x"}, {"url": "x"},
    {"url": "/a b"}, {"url": "/\n"}, {"url": "/" + "x" * 300}])
def test_file_that_is_none(up, file):
    """It is refused as every field that is wrong."""
    ann = up()
    ann.member.say("look", file=file)
    assert ann.member.recv_until("error")["code"] == "bad-file"


def test_handed_out_once(up):
    """And only when all of it is there."""
    ann = up()
    path = ann.start("x")
    ann.put(path, b"x", 0, 2)
    ann.member.say("early", file={"url": path})
    assert ann.member.recv_until("error")["code"] == "bad-file"
    answer = json.loads(ann.put(path, b"y", 1, 2)[1])
    ann.say(answer)
    ann.member.say("twice", file={"url": path})
    assert ann.member.recv_until("error")["code"] == "bad-file"


def test_too_large(up, server):
    """A file over the limit is refused before a byte of it comes, and so is one beside which there
    is no room; what is removed makes room."""
    ann = up()
    assert ann.put(ann.start("large"), b"", 0, 1_000_001)[0] == 413
    data = bytes(999_000)
    for number in range(3):
        ann.say(ann.upload(str(number), data))
    path = ann.start("one more")
    status, body = ann.put(path, b"", 0, 100_000)
    assert status == 507 and b"no room" in body


def test_uploads_at_once(up):
    """A session has four; one that is finished or given up makes room for another, and so does one
    of which nothing has come, as the answer that named it may be lost."""
    ann = up()

    def begun():
        path = ann.start("x")
        ann.put(path, b"x", 0, 2)
        return path
    paths = [begun() for _ in range(4)]
    assert ann.begin("five")[0] == 429
    assert ann.give_up(paths[0]) == 200 and ann.give_up(paths[0]) == 404
    ann.put(paths[1], b"y", 1, 2)
    idle = [ann.start("idle"), ann.start("idle")]
    assert ann.have(begun()) == 1 and ann.have(idle[0]) is None and ann.have(idle[1]) == 0
    begun()
    assert ann.have(idle[1]) is None and ann.begin("seven")[0] == 429


def test_starting_is_charged_and_bytes_are_not(serve):
    """1,000 files of a byte run into the flood limit, which slows no message."""
    server = serve(rate=2)
    with harness.RawClient(server.port, auto_ack=True) as member:
        member.join("ann")
        up = Uploader(server.port, member)
        for number in range(1000):
            status, body = up.begin(str(number))
            if status != 201:
                break
            path = json.loads(body)["upload"]
            assert up.put(path, b"x", 0, 1)[0] == 200
        assert status == 429 and number < 64
        member.recv_until("rules")
        assert not any(frame["type"] == "error" for frame in member.frames)


def test_no_files(serve, peer):
    """Then there are none: no rule speaks of them, and no path leads to them."""
    server = serve("--no-files")
    ann = peer(server.port, "ann")
    assert Uploader(server.port, ann).begin("x")[0] == 404
    ann.say("look", file={"url": "/files/" + "0" * 32})
    assert ann.recv_until("error")["code"] == "bad-file"
    assert not any(frame["type"] == "rules" for frame in ann.frames)


# --- How the host keeps them ---

def test_host_sees_removes_and_switches_off(up, server, host, folder):
    """What there is, how large and from whom; a message takes its file along; and no more are taken
    when files are off, which everybody is told."""
    ann, bob = up("ann"), up("bob")
    chat = ann.say(ann.upload("x.pdf", b"12345"))
    status, state = host("/files")
    assert state["files"] == [{"id": chat["id"], "name": "x.pdf", "size": 5, "from": "ann"}]
    assert state["answer"] == f"{chat['id']}  5 B  ann: x.pdf"
    host(f"/remove {chat['id']}")
    assert bob.member.recv_until("removed")["about"] == chat["id"]
    assert fetch(server.port, chat["file"]["url"])[0] == 404
    assert host("/files")[1]["files"] == []
    waits = bob.upload("y", b"1")
    assert host("/files off")[1]["rules"]["files"] is None
    assert "files" not in bob.member.recv_until("rules", speak="all")
    assert bob.begin("z")[0] == 403
    bob.member.say("late", file={"url": waits["url"]})
    assert bob.member.recv_until("error")["code"] == "bad-file"
    assert host("/files on")[1]["rules"]["files"] == 1_000_000
    assert bob.member.recv_until("rules")["files"] == 1_000_000
    bob.say(waits)


def test_unsaid_goes_with_its_session(up, folder):
    """A part and a whole file that nobody handed out are deleted when their session ends."""
    ann = up()
    ann.upload("whole", b"12345")
    path = ann.start("part")
    ann.put(path, b"123", 0, 5)
    assert len(own_files(folder)) == 2
    ann.member.leave()
    wait_until(lambda: own_files(folder) == [], what=lambda: own_files(folder))
    assert ann.have(path) is None


@posix_only
def test_temporary_folder_goes_at_the_end(serve, peer, tmp_path):
    """It is made for the first file, and is gone with the server."""
    server = serve(env={"TMPDIR": str(tmp_path), "TEMP": str(tmp_path), "TMP": str(tmp_path)})
    ann = peer(server.port, "ann")
    assert os.listdir(tmp_path) == []
    up = Uploader(server.port, ann)
    up.say(up.upload("x", b"12345"))
    assert len(os.listdir(tmp_path)) == 1
    server.stop()
    assert os.listdir(tmp_path) == []


def test_folder_that_is_none(tmp_path):
    """A server that cannot keep files there does not start, and says why."""
    (tmp_path / "file").write_text("")
    code, error = harness.run_server("0", "--files", tmp_path / "file")
    assert code == 1 and "file" in error and len(error.splitlines()) == 1


# --- Over a restart ---

@pytest.fixture
def kept(serve, tmp_path):
    """A server with a history, whose files are beside it."""
    server = serve("--history", tmp_path / "chat.db", "--grace", "600")
    return server, tmp_path / "chat.db.files"


def test_said_and_finished_survive_a_kill(kept, peer):
    """What was handed out is there again and under its name; what was finished can be handed out by
    its session; a part is swept."""
    server, folder = kept
    ann = peer(server.port, "ann")
    up = Uploader(server.port, ann)
    said, finished = up.upload("said.png", b"12345"), up.upload("finished", b"678")
    up.say(said)
    part = up.start("part")
    up.put(part, b"9", 0, 2)
    server.kill()
    (folder / ("a" * 32)).write_text("nobody knows this one any more")
    server.start()
    again = peer(server.port, "ann", session=ann.welcome["session"], epoch=ann.welcome["epoch"],
                 seen=ann.welcome["last"])
    up = Uploader(server.port, again)
    assert sorted(os.listdir(folder)) == sorted([said["url"][7:], finished["url"][7:] + ".part"])
    status, headers, body = fetch(server.port, said["url"])
    assert (status, body) == (200, b"12345") and headers["content-type"] == "image/png"
    assert up.have(part) is None
    assert json.loads(up.put(finished["url"], b"", 0, 3)[1]) == finished
    up.say(finished)
    assert fetch(server.port, finished["url"])[::2] == (200, b"678")


def test_removed_before_a_kill_stays_removed(kept, peer):
    """The file that a removed message had is not there after a restart."""
    server, folder = kept
    up = Uploader(server.port, peer(server.port, "ann"))
    chat = up.say(up.upload("x", b"12345"))
    at_the_console(server, f"/remove {chat['id']}")
    server.kill()
    server.start()
    wait_until(lambda: os.listdir(folder) == [])
    assert fetch(server.port, chat["file"]["url"])[0] == 404


def test_keep_deletes_files_with_their_messages(serve, peer, tmp_path):
    """All but the newest message go, and so do their files."""
    server = serve("--history", tmp_path / "chat.db", "--keep-messages", "1")
    ann = peer(server.port, "ann")
    up = Uploader(server.port, ann)
    old = up.say(up.upload("old", b"12345"))
    new = up.say(up.upload("new", b"67890"))
    wait_until(lambda: os.listdir(tmp_path / "chat.db.files") == [new["file"]["url"][7:]])
    assert fetch(server.port, old["file"]["url"])[0] == 404
    assert fetch(server.port, new["file"]["url"])[2] == b"67890"


def test_whole_files_of_an_earlier_server_are_left_alone(serve, peer, tmp_path):
    """Without a history a folder keeps what was handed out there; parts are swept."""
    server = serve("--files", tmp_path)
    up = Uploader(server.port, peer(server.port, "ann"))
    chat = up.say(up.upload("x", b"12345"))
    up.put(up.start("part"), b"9", 0, 2)
    key = chat["file"]["url"][7:]
    wait_until(lambda: key in os.listdir(tmp_path))
    server.kill()
    server.start()
    assert os.listdir(tmp_path) == [key] and (tmp_path / key).read_bytes() == b"12345"


# --- Bad input ---

@pytest.mark.parametrize("name, kept_as", [
    ("../../etc/passwd", "passwd"), ("a\\b.txt", "b.txt"), ("/", "file"), ("", "file"),
    ("..", "file"), ("a\0b", "ab"), ("con", "_con"), ("NUL.txt", "_NUL.txt"),
    ("COM\u00b9", "_COM\u00b9"), ("aux.x", "_aux.x"), ("aux .x", "_aux.x"),
    ("x" * 300 + ".pdf", "x" * 180 + ".pdf"), ("\u202egpj.exe", "gpj.exe"),
    ('a:b"c', "a_b_c"), ("a\nb", "a b"), (" .x. ", "x"), ("\ud800x", "x"), ("e\u0301", "\u00e9"),
    ("\u00e9" * 300, "\u00e9" * 90), ("\u200b.\u200b", "file"), ("\u05d0.txt", "\u05d0.txt")])
def test_names(name, kept_as):
    """Whatever it is called, it is kept under a name that any system takes, and that shows what it
    is."""
    assert file_name(name) == kept_as and file_name(kept_as) == kept_as


def test_name_on_the_wire(up, server):
    """A name that would leave a folder is cleaned before anybody sees it, and quoted for curl."""
    ann = up()
    chat = ann.say(ann.upload('..\\a"%\u202e\u20ac.png', b"x"))
    assert chat["file"]["name"] == "a_%\u20ac.png"
    _, headers, _ = fetch(server.port, chat["file"]["url"])
    assert headers["content-disposition"] == (
        "attachment; filename=\"a___.png\"; filename*=UTF-8''a_%25%E2%82%AC.png")


@pytest.mark.parametrize("size, words", [
    (0, "0 B"), (999, "999 B"), (1_000, "1 kB"), (1_234_567, "1.2 MB"), (99_600, "100 kB"),
    (999_600, "1 MB"), (123_456_789, "123 MB"), (1_500_000_000, "1.5 GB")])
def test_sizes_in_words(size, words):
    """Two digits are enough, and no unit has a thousand of one before it."""
    assert size_in_words(size) == words


@pytest.mark.parametrize("content_range, status", [
    ("bytes 1-3/10", 409), ("bytes 7-9/10", 409), ("bytes 0-2/11", 409), ("bytes 0-2/10", 409),
    ("bytes 3-2/10", 400), ("bytes 8-10/10", 400), ("bytes 3-5/4", 400), ("bytes */11", 409),
    ("bytes */9999999", 409), ("bytes 3-5", 400), ("lines 3-5/10", 400), ("", 400),
    ("bytes 3-9/10", 400), ("bytes -3/10", 400), ("bytes 3-5/*", 400),
    ("bytes " + "9" * 30 + "-5/10", 400)])
def test_content_range_that_lies(up, content_range, status):
    """One that jumps, overlaps, or lies about the whole is refused, and what is there stays as it
    was: the upload goes on."""
    ann = up()
    path = ann.start("x")
    ann.put(path, b"012", 0, 10)
    data = b"" if "*/" in content_range and content_range != "bytes 3-5/*" else b"345"
    assert ann.put(path, data, 0, 10, content_range)[0] == status
    assert ann.have(path) == 3
    answer = json.loads(ann.put(path, b"3456789", 3, 10)[1])
    assert fetch(ann.port, ann.say(answer)["file"]["url"])[2] == b"0123456789"


def test_cut_upload_goes_on(up):
    """A piece that breaks off stays as far as it came; the next one begins there."""
    ann = up()
    path, data = ann.start("x"), os.urandom(300_000)
    with socket.create_connection(("127.0.0.1", ann.port), TIMEOUT) as sock:
        sock.sendall(put_head(ann, path, 0, len(data) - 1, len(data)) + data[:200_000])
        wait_until(lambda: ann.have(path) is not None)
    have = wait_until(lambda: ann.have(path))
    assert have <= 200_000
    # Until the server has noticed it is told that another connection brings it.

    def rest():
        status, body = ann.put(path, data[ann.have(path):], ann.have(path), len(data))
        return status == 200 and body
    answer = json.loads(wait_until(rest))
    assert fetch(ann.port, ann.say(answer)["file"]["url"])[2] == data


def test_two_uploads_under_one_address(up):
    """The second one is told to ask again, and the first one is cut: perhaps it has gone long
    ago."""
    ann = up()
    path = ann.start("x")
    with socket.create_connection(("127.0.0.1", ann.port), TIMEOUT) as first:
        first.sendall(put_head(ann, path, 0, 9, 10) + b"012")
        status = wait_until(lambda: ann.put(path, b"0123456789", ann.have(path) or 0, 10)[0])
        # The first one had not begun, or is in the way.
        assert status in (200, 409)
        with pytest.raises(EOFError):
            while True:
                harness.receive(first)

    def goes_on():
        have = ann.have(path)
        return have == 10 or ann.put(path, b"0123456789"[have:], have, 10)[0] == 200
    # The first one may take a moment to end.
    assert wait_until(goes_on)
    assert fetch(ann.port, ann.say(json.loads(ann.put(path, b"", 0, 10)[1]))["file"]["url"])[2] == (
        b"0123456789")


def test_session_that_leaves_in_the_middle(up, folder):
    """Its upload ends, and nothing of it is left."""
    ann = up()
    path = ann.start("x")
    with socket.create_connection(("127.0.0.1", ann.port), TIMEOUT) as sock:
        sock.sendall(put_head(ann, path, 0, 999_999, 1_000_000) + bytes(1000))
        wait_until(lambda: own_files(folder))
        ann.member.leave()
        with pytest.raises(EOFError):
            while True:
                harness.receive(sock)
    wait_until(lambda: own_files(folder) == [], what=lambda: own_files(folder))


@pytest.mark.parametrize("path", [
    "/files/../chat.db", "/files/..%2fchat.db", "/files/mine.txt", "/files/", "/files/x/y",
    "/files/" + "0" * 32 + ".bak", "/files/" + "0" * 32 + ".part", "/files/" + "A" * 32,
    "/files/" + "0" * 33, "/files//" + "0" * 32, "/filesx"])
def test_path_that_is_no_file(server, path):
    """Only what was handed out is served, whatever else is in the folder or beside it."""
    for method in ("GET", "HEAD", "PUT", "DELETE", "POST"):
        assert ask(server.port, method, path)[0] == 404


def test_methods(server):
    """POST begins an upload, and that is all of /files; a file knows four."""
    assert ask(server.port, "GET", "/files")[0] == 405
    status, headers, _ = ask(server.port, "POST", "/files/" + "0" * 32)
    assert (status, headers["allow"]) == (405, "GET, HEAD, PUT, DELETE")


def test_body_without_a_length(up):
    """One in chunks, or of another length than it says, is refused."""
    ann = up()
    path = ann.start("x")
    headers = {**ann.secret, "Content-Range": "bytes 0-2/3", "Transfer-Encoding": "chunked"}
    assert ask(ann.port, "PUT", path, b"3\r\nabc\r\n0\r\n\r\n", headers)[0] in (400, 411)
    assert ann.put(path, b"abcd", 0, 0, "bytes 0-2/3")[0] in (400, 413)
    assert ann.have(path) == 0


@posix_only
def test_full_disk(serve, peer):
    """A file that finds no room is refused, and nothing is left of it; the next one is taken."""
    limit = ("import resource, sys, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
             "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
             "sys.argv[0] = 'chat_server.py'; import chat_server;"
             "sys.exit(chat_server.main(sys.argv[1:]))")
    server = serve(program=("-c", limit))
    up = Uploader(server.port, peer(server.port, "ann"))
    path = up.start("large")
    status, body = up.put(path, bytes(300_000), 0, 300_000)
    assert status == 507 and b"cannot keep it" in body
    assert up.have(path) is None
    chat = up.say(up.upload("small", b"12345"))
    assert fetch(server.port, chat["file"]["url"])[2] == b"12345"


def test_slow_ones_are_cut_off(monkeypatch):
    """Who sends or reads a byte a second is cut off, and goes on where it was."""
    monkeypatch.setattr(chat_web, "PIECE_TIMEOUT", 0.3)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = chatproto.MessageSocket(ours)
        theirs.sendall(b"ab")
        request = chat_web.Request(wire, "192.0.2.1")
        taken = []
        with pytest.raises(chat_web.Refusal) as refused:
            for piece in request.pieces(10):
                taken.append(piece)
        assert b"".join(taken) == b"ab" and refused.value.status == 408
        request.more_time(chat_web.PIECE_TIMEOUT)
        with pytest.raises(chat_web.ConnectionClosed):
            request.write(bytes(10_000_000))


def test_frames_with_a_file():
    """A chat keeps its file through its frame, and a hostile name in one is cleaned."""
    chat = decode(frame("chat", id=1, text="x", file={"name": "../a", "size": 2, "url": "/f"})[:-1],
                  INSTRUCTIONS[FROM_CLIENT])
    assert chat.file == {"name": "a", "size": 2, "url": "/f"}
    assert decode(chat.encode()[:-1], INSTRUCTIONS[FROM_CLIENT]) == chat


def test_many_are_whole(serve, peer, tmp_path):
    """What goes up in random pieces by several at once comes down as it was."""
    server = serve("--files", tmp_path)
    hashes = {}
    for name in ("ann", "bob"):
        up = Uploader(server.port, peer(server.port, name))
        for number in range(5):
            data = os.urandom(50_000 * number + number)
            answer = up.upload(f"{name}{number}", data)
            hashes[up.say(answer)["file"]["url"]] = hashlib.sha256(data).hexdigest()
    for url, digest in hashes.items():
        assert hashlib.sha256(fetch(server.port, url)[2]).hexdigest() == digest
