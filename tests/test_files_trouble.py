"""Files while somebody dawdles, leaves, is killed or takes them away: the others go on, and nothing
is left behind. With real servers, whose limits of time are short. test_files.py has the rules."""

import contextlib
import errno
import json
import os
import select
import socket
import threading

import pytest

import harness
from harness import TIMEOUT, needs_proc, posix_only, wait_until
from uploads import Uploader, ask, at_the_console, fetch, put_head

# A server as it is, after a few lines that change it.
PROGRAM = """import sys; sys.argv[0] = "chat_server.py"
import chat_server, chat_web, chatproto
chatproto.LINGER = 0.05
%s
sys.exit(chat_server.main(sys.argv[1:]))"""
# It waits half a second for so much of a file.
brisk = pytest.mark.parametrize("server", ["chat_web.PIECE_TIMEOUT = 0.5"], indirect=True,
                                ids=["brisk"])
DATA = os.urandom(1 << 20) * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def server(request, folder):
    """For those who dawdle one that is brisk; others may be slow on a busy machine."""
    change = getattr(request, "param", "")
    with harness.serving("--rate", "0", "--bind", "127.0.0.1", "--grace", "0.1", "--files", folder,
                         program=("-c", PROGRAM % change)) as server:
        yield server


@pytest.fixture
def changed(serve):
    """Start servers that Python changes; they keep a history, where one is given."""
    return lambda change, *options: serve(*options, program=("-c", PROGRAM % change))


@pytest.fixture
def nothing_left(server, folder):
    """When the test is over: no file, no thread and no descriptor more than before."""
    # (Wine shows the /proc of Linux, with other numbers.)
    has_proc = os.name == "posix" and os.path.isdir("/proc/self/fd")
    before = has_proc and server.descriptors()
    yield
    for file in at_the_console(server, "/files")[1]["files"]:
        at_the_console(server, f"/remove {file['id']}")
    wait_until(lambda: not os.listdir(folder), what=lambda: os.listdir(folder))
    # Main, accept, sequencer, files and maybe the alarm.
    wait_until(lambda: not has_proc or server.descriptors() <= before and server.threads() <= 5,
               what=lambda: f"{before} {server.descriptors()} {server.threads()}")


class Pair:
    """Two members who talk, and feel nothing of what others do."""

    def __init__(self, join):
        self.one, self.other = join("one"), join("other")

    def talk(self):
        """A word and its answer."""
        for speaker, hearer in ((self.one, self.other), (self.other, self.one)):
            hearer.recv_until("chat", cid=speaker.say("hello"), **{"from": speaker.name})


def put_slowly(path, up, total, folder):
    """A connection that brings a piece, of which a byte is there."""
    sock = socket.create_connection(("127.0.0.1", up.port), TIMEOUT)
    sock.sendall(put_head(up, path, 0, total - 1, total) + b"x")
    wait_until(lambda: f"{path[7:]}.part" in os.listdir(folder))
    return sock


def get(port, url, buffer=None):
    """A connection that has asked for a file, and has read nothing."""
    sock = socket.socket()
    sock.settimeout(TIMEOUT)
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.connect(("127.0.0.1", port))
    sock.sendall(f"GET {url} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return sock


def read_all(sock):
    """All that comes until the end."""
    data = bytearray()
    with contextlib.suppress(EOFError):
        while True:
            data += harness.receive(sock)
    return bytes(data)


def body_of(answer):
    return answer.partition(b"\r\n\r\n")[2]


# --- Who dawdles ---

@brisk
def test_uploads_of_a_byte_now_and_then(server, folder, nothing_left, join):
    """Four that dawdle are cut off, a fifth is refused meanwhile, a pair talks all the time; and
    what came stays, so that each goes on."""
    ann, pair = Uploader(server.port, join("ann")), Pair(join)
    paths = [ann.start(str(number)) for number in range(4)]
    socks = {put_slowly(path, ann, 1_000_000, folder): path for path in paths}
    sent, open_ones = dict.fromkeys(paths, 1), dict(socks)
    while open_ones:
        for sock in select.select(list(open_ones), (), (), 0.05)[0]:
            assert read_all(sock).startswith(b"HTTP/1.1 408 ")
            del open_ones[sock]
        for sock, path in open_ones.items():
            with contextlib.suppress(ConnectionError):
                sent[path] += sock.send(b"x")
        pair.talk()
        assert ann.begin("five")[0] == 429
    for sock, path in socks.items():
        sock.close()
        have = wait_until(lambda path=path: ann.have(path))
        assert 0 < have <= sent[path]
        assert ann.put(path, bytes(1_000_000 - have), have, 1_000_000)[0] == 200
    assert ann.begin("five")[0] == 201


@brisk
@posix_only
@needs_proc
def test_downloads_of_a_byte_now_and_then(server, nothing_left, join):
    """Who hardly reads is cut off while a pair talks, and goes on with the rest by a range."""
    ann, pair = Uploader(server.port, join("ann")), Pair(join)
    before = server.descriptors()
    url = ann.say(ann.upload("large", DATA))["file"]["url"]
    wait_until(lambda: server.descriptors() == before)
    slow = [get(server.port, url, buffer=65536) for _ in range(2)]
    taken = {sock: bytearray(sock.recv(1)) for sock in slow}

    def over():
        pair.talk()
        for sock in slow:
            taken[sock] += sock.recv(1)
        return server.descriptors() == before
    wait_until(over)
    for sock in slow:
        with sock:
            got = body_of(bytes(taken[sock]) + read_all(sock))
        assert 0 < len(got) < len(DATA)
        rest = fetch(server.port, url, Range=f"bytes={len(got)}-")
        assert rest[0] == 206 and got + rest[2] == DATA


# --- Many at once, and those who go ---

def test_many_fetch_the_same(server, nothing_left, join):
    """Ten fetch a large file at once, each has it whole; one goes in the middle; a pair talks."""
    ann, pair = Uploader(server.port, join("ann")), Pair(join)
    url = ann.say(ann.upload("large", DATA))["file"]["url"]
    whole = []
    threads = [threading.Thread(target=lambda: whole.append(fetch(server.port, url)[2] == DATA))
               for _ in range(10)]
    for thread in threads:
        thread.start()
    with get(server.port, url, buffer=65536) as leaver:
        leaver.recv(1000)
        harness.reset(leaver)
    while any(thread.is_alive() for thread in threads):
        pair.talk()
    assert whole == [True] * 10


def test_member_that_leaves_while_it_fetches(server, folder, nothing_left, join):
    """A download is nobody's: it goes on to its end. An upload ends with its session."""
    ann, bob = Uploader(server.port, join("ann")), Uploader(server.port, join("bob"))
    url = ann.say(ann.upload("large", DATA))["file"]["url"]
    part = bob.start("part")
    with get(server.port, url) as sock, put_slowly(part, bob, 1000, folder) as other:
        first = harness.receive(sock)
        ann.member.leave()
        bob.member.leave()
        assert body_of(first + read_all(sock)) == DATA
        assert read_all(other) == b""


def test_removed_while_it_is_fetched(server, nothing_left, join):
    """The host takes a file away: who is fetching it gets no more, and is told when it asks
    again."""
    ann = Uploader(server.port, join("ann"))
    chat = ann.say(ann.upload("large", DATA))
    before = server.stderr_text()
    with get(server.port, chat["file"]["url"], buffer=65536) as sock:
        first = harness.receive(sock)
        assert at_the_console(server, f"/remove {chat['id']}")[0] == 200
        got = body_of(first + read_all(sock))
    assert len(got) < len(DATA) and DATA.startswith(got)
    assert fetch(server.port, chat["file"]["url"])[0] == 404
    # To take one back is no trouble.
    assert server.stderr_text() == before


def test_files_switched_off_while_one_goes_up(server, nothing_left, join):
    """It is not handed out any more, and its speaker is told."""
    ann = Uploader(server.port, join("ann"))
    path = ann.start("x")
    ann.put(path, b"x", 0, 2)
    at_the_console(server, "/files off")
    answer = json.loads(ann.put(path, b"y", 1, 2)[1])
    about = ann.member.say(answer["text"], file={"url": path})
    assert ann.member.recv_until("error", about=about)["code"] == "bad-file"
    at_the_console(server, "/files on")
    assert ann.say(answer)["file"]["size"] == 2


def test_booted_while_one_goes_up(server, folder, nothing_left, join):
    """The upload ends with its session, at once."""
    ann = Uploader(server.port, join("booted"))
    with put_slowly(ann.start("x"), ann, 1000, folder) as sock:
        at_the_console(server, "/boot booted")
        assert read_all(sock) == b""
    at_the_console(server, "/unban booted")


def test_kept_messages_end_while_their_file_is_fetched(serve, peer, tmp_path):
    """--keep takes a file away under a reader, who gets no more of it."""
    server = serve("--history", tmp_path / "chat.db", "--keep-messages", "1")
    up = Uploader(server.port, peer(server.port, "ann"))
    old = up.say(up.upload("old", DATA))
    with get(server.port, old["file"]["url"], buffer=65536) as sock:
        first = harness.receive(sock)
        new = up.say(up.upload("new", b"new"))
        wait_until(lambda: ask(server.port, "HEAD", old["file"]["url"])[0] == 404)
        got = body_of(first + read_all(sock))
    assert len(got) < len(DATA) and DATA.startswith(got)
    wait_until(lambda: os.listdir(tmp_path / "chat.db.files") == [new["file"]["url"][7:]])


def test_uploads_that_nobody_brings_make_room(changed, peer, tmp_path):
    """Four that a page has forgotten do not shut out a fifth: the oldest of them goes."""
    server = changed("chat_web.STALLED = 0.0", "--files", tmp_path)
    up = Uploader(server.port, peer(server.port, "ann"))
    paths = [up.start(str(number)) for number in range(4)]
    for path in paths:
        up.put(path, b"x", 0, 2)
    fifth = up.start("five")
    assert up.have(paths[0]) is None and up.have(paths[1]) == 1
    up.put(fifth, b"x", 0, 2)
    names = sorted(f"{path[7:]}.part" for path in [*paths[1:], fifth])
    wait_until(lambda: sorted(os.listdir(tmp_path)) == names, what=lambda: os.listdir(tmp_path))


# --- Restarts ---

def test_upload_goes_on_after_a_kill(serve, peer, tmp_path):
    """With a history what was confirmed is there again, but for the last MB; it is handed out, and
    a second kill finds nothing more to do."""
    server = serve("--history", tmp_path / "chat.db", "--grace", "600")
    ann = peer(server.port, "ann")
    up = Uploader(server.port, ann)
    path = up.start("large")
    up.put(path, DATA[:5_000_000], 0, len(DATA))
    up.put(path, DATA[5_000_000:5_900_000], 5_000_000, len(DATA))
    with put_slowly(up.start("small"), up, 1000, tmp_path / "chat.db.files"):
        server.kill()
    server.start()
    again = peer(server.port, "ann", session=ann.welcome["session"], epoch=ann.welcome["epoch"],
                 seen=ann.welcome["last"])
    up = Uploader(server.port, again)
    assert up.have(path) == 5_000_000
    assert os.listdir(tmp_path / "chat.db.files") == [f"{path[7:]}.part"]
    # It takes its place among four, and its size is what it was.
    assert up.put(path, b"", 0, len(DATA) + 1)[0] == 409
    answer = json.loads(up.put(path, DATA[5_000_000:], 5_000_000, len(DATA))[1])
    chat = up.say(answer)
    server.kill()
    server.start()
    assert fetch(server.port, chat["file"]["url"])[2] == DATA
    assert os.listdir(tmp_path / "chat.db.files") == [path[7:]]


def test_part_that_lost_bytes_is_forgotten(serve, peer, tmp_path):
    """A part that has less than was confirmed, as after a power cut on a bad disk, begins anew."""
    server = serve("--history", tmp_path / "chat.db", "--grace", "600")
    ann = peer(server.port, "ann")
    up = Uploader(server.port, ann)
    path = up.start("large")
    up.put(path, DATA[:5_000_000], 0, len(DATA))
    server.kill()
    os.truncate(tmp_path / "chat.db.files" / f"{path[7:]}.part", 4_999_999)
    server.start()
    up = Uploader(server.port, peer(server.port, "ann", session=ann.welcome["session"],
                                    epoch=ann.welcome["epoch"], seen=ann.welcome["last"]))
    assert up.have(path) is None and os.listdir(tmp_path / "chat.db.files") == []


# --- Disks ---

@posix_only
def test_full_disk_has_room_at_once(changed, peer, tmp_path):
    """A file that finds no room is refused in words, however late the rest of its piece comes, and
    the room it took is free before anything else happens."""
    limit = ("import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
             "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))")
    server = changed(limit, "--files", tmp_path)
    up = Uploader(server.port, peer(server.port, "ann"))
    path = up.start("large")
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as sock:
        sock.sendall(put_head(up, path, 0, 599_999, 600_000) + bytes(300_000))
        wait_until(lambda: up.have(path) is None)
        wait_until(lambda: os.listdir(tmp_path) == [])
        # An answer that comes earlier is lost with a connection that is reset.
        assert not select.select([sock], (), (), 0.2)[0]
        sock.sendall(bytes(300_000))
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 507 ") and b"cannot keep it" in answer
    server.wait_for_error("a file cannot be written: ")


def test_disk_that_cannot_be_read(changed, peer, tmp_path):
    """What came so far is the file's own, and no word about the error is among it."""
    server = changed(f"""class Bad:
    def __init__(self, file): self.file, self.reads = file, 0
    def __enter__(self): return self
    def __exit__(self, *error): self.file.close()
    def seek(self, place): self.file.seek(place)
    def read(self, size):
        self.reads += 1
        if self.reads > 2: raise OSError({errno.EIO}, "the disk is bad")
        return self.file.read(size)
real = chat_web.FileStore._open
chat_web.FileStore._open = lambda store, key: Bad(real(store, key))""", "--files", tmp_path)
    up = Uploader(server.port, peer(server.port, "ann"))
    url = up.say(up.upload("large", DATA))["file"]["url"]
    with get(server.port, url) as sock:
        got = body_of(read_all(sock))
    assert got == DATA[:512 * 1024]
    server.wait_for_error("a file cannot be read: ")
    assert ask(server.port, "HEAD", url)[0] == 200
