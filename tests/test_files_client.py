"""Files from the terminal, from a pipe and from code: what is sent and saved, over breaks too, and
what is refused. test_files.py has the wire."""

import http.client
import io
import os
import threading
import types

import pytest

import campaign
import chat_client
import harness
from chat_client import FAILED, THERE, ChatClient, FileError, HandedOut
from chatproto import Chat, size_in_words
from harness import TIMEOUT, posix_only, run_client, wait_until
from onscreen import newest, status, wait
from proxy import CuttingProxy
from tls import certificate, key_in
from uploads import Uploader, fetch

SERVER_OPTIONS = ("--grace", "0.1", "--max-file", "3")


@pytest.fixture
def bot(server):
    """Make clients that are in; they are closed at the end."""
    made = []

    def connect(port=None, name="bot", **options):
        heard = []
        client = ChatClient("localhost", port or server.port, name, on_message=heard.append,
                            **options)
        client.connect(TIMEOUT)
        client.files = lambda: [one.file for one in heard
                                if isinstance(one, Chat) and one.file is not None
                                and one.id > client.history_until]
        made.append(client)
        return client
    yield connect
    for client in made:
        client.close()


@pytest.fixture
def hasty(monkeypatch):
    """Pauses between two tries are short, pieces are small, and silence is soon noticed."""
    monkeypatch.setattr(chat_client.Courier, "PAUSE", 0.05)
    monkeypatch.setattr(chat_client.Courier, "PIECE", 20_000)
    monkeypatch.setattr(chat_client.Courier, "BLOCK", 5_000)
    monkeypatch.setattr(chat_client.Courier, "TIMEOUT", 2.0)
    monkeypatch.setattr(chat_client.Courier, "TRIES", 500)


def a_file(folder, name="a plan.bin", size=100_000):
    path = folder / name
    path.write_bytes(os.urandom(size))
    return path


def heard(member):
    """The next file that a RawClient hears of which was handed out after it came."""
    chat = member.recv_until("chat")
    while chat["id"] <= member.welcome["last"] or "file" not in chat:
        chat = member.recv_until("chat")
    return chat


# --- From code ---

def test_send_and_fetch(bot, tmp_path):
    """A file goes from one to the other, with its progress; a second copy gets another name."""
    ann, bob = bot(name="ann"), bot(name="bob")
    path, told = a_file(tmp_path), []
    said = ann.send_file(str(path), progress=lambda done, size: told.append((done, size)))
    assert ann.wait_settled(0, TIMEOUT) and said.state == THERE
    assert told[0] == (0, 100_000) and told[-1] == (100_000, 100_000) and told == sorted(told)
    file = wait_until(bob.files)[-1]
    (tmp_path / "to").mkdir()
    told.clear()
    for name in ("a plan.bin", "a plan-2.bin", "a plan-3.bin"):
        saved = bob.fetch(file, str(tmp_path / "to"), lambda done, size: told.append(done))
        assert saved == str(tmp_path / "to" / name)
        assert (tmp_path / "to" / name).read_bytes() == path.read_bytes()
    assert told[-1] == 100_000 and len(os.listdir(tmp_path / "to")) == 3


def test_over_tls(serve, bot, tmp_path):
    """A file goes up and down encrypted as all else, and nowhere when the server's key is another
    one all of a sudden: the secret of the session is not sent."""
    server = serve("--cert", certificate())
    ann, bob = (bot(server.port, name, trust=key_in(certificate())) for name in ("ann", "bob"))
    path = a_file(tmp_path)
    said = ann.send_file(str(path))
    assert ann.wait_settled(0, TIMEOUT) and said.state == THERE
    assert f"https://127.0.0.1:{server.port}/files/" in said.text
    (tmp_path / "to").mkdir()
    saved = bob.fetch(wait_until(bob.files)[-1], str(tmp_path / "to"))
    assert (tmp_path / "to" / "a plan.bin").read_bytes() == path.read_bytes() and saved
    ann.server.trust(key_in(certificate("other")))
    with pytest.raises(ConnectionError, match="another key"):
        ann.server.http(TIMEOUT)


def test_private_file(bot, tmp_path):
    """One is handed out to one alone."""
    ann, bob, eve = bot(name="ann"), bot(name="bob"), bot(name="eve")
    wait_until(lambda: "bob" in ann.users)
    ann.send_file(str(a_file(tmp_path)), "bob")
    wait_until(bob.files)
    ann.say("to all")
    ann.wait_settled(0, TIMEOUT)
    assert eve.files() == []


def test_hostile_name_stays_in_the_folder(bot, tmp_path):
    """Whatever a server says that a file is called."""
    ann = bot()
    ann.send_file(str(a_file(tmp_path, size=10)))
    url = wait_until(ann.files)[-1]["url"]
    (tmp_path / "to").mkdir()
    for name in ("../../evil", "/etc/passwd", "..\\evil", "", "\0", "con"):
        saved = ann.fetch({"name": name, "size": 10, "url": url}, str(tmp_path / "to"))
        assert os.path.dirname(saved) == str(tmp_path / "to")
    assert len(os.listdir(tmp_path / "to")) == 6


@pytest.mark.parametrize("name, why", [
    ("folder", "folder is a folder"), ("missing", r"missing: \w"),
    ("\0", "null"), ("", "folder")])
def test_what_cannot_be_sent(bot, tmp_path, name, why):
    """A folder, a file that is not there, no name: one line says why, and nothing is sent."""
    (tmp_path / "folder").mkdir()
    ann = bot()
    with pytest.raises(FileError, match=why):
        ann.send_file(str(tmp_path / name))
    assert ann.unsettled == []


@posix_only
def test_pipe_and_locked_file(bot, tmp_path):
    """A FIFO is not waited for, and a file that may not be read is refused."""
    ann = bot()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FileError, match="no ordinary file"):
        ann.send_file(str(tmp_path / "fifo"))
    a_file(tmp_path, "locked").chmod(0)
    if os.geteuid():
        with pytest.raises(FileError, match="Permission denied"):
            ann.send_file(str(tmp_path / "locked"))


def test_file_that_changes(bot, tmp_path, hasty):
    """One that shrinks is given up, one that grows is sent as long as it was."""
    ann, path = bot(), a_file(tmp_path)

    def cut(done, size):
        os.truncate(path, 50_000)
    with pytest.raises(FileError, match="shorter"):
        ann.upload(str(path), cut)

    def grow(done, size):
        with open(path, "ab") as file:
            file.write(b"more")
    answer = ann.upload(str(path), grow)
    assert size_in_words(50_000) in answer["text"]


def test_too_large(bot, tmp_path):
    """The server says so before anything is sent, and the client hands it on."""
    with pytest.raises(FileError, match="at most 3 MB"):
        bot().send_file(str(a_file(tmp_path, size=3_000_001)))


def test_cancelled(bot, tmp_path, hasty):
    """What the progress raises ends an upload, of which nothing stays: five in turn are fine."""
    ann, path = bot(), a_file(tmp_path)

    def stop(done, size):
        if done > 30_000:
            raise KeyError("enough")
    for _ in range(5):
        with pytest.raises(KeyError):
            ann.upload(str(path), stop)
    ann.send_file(str(path))


def test_file_that_is_gone(bot, tmp_path):
    """It is told, and leaves nothing."""
    with pytest.raises(FileError, match="no more"):
        bot().fetch({"name": "x", "size": 3, "url": "/files/" + "0" * 32}, str(tmp_path))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("option", ["--no-files", "--no-web"])
def test_server_without_files(serve, bot, tmp_path, option):
    """It says so at once, also one that answers a request as a frame that is none."""
    ann = bot(serve(option).port)
    with pytest.raises(FileError, match="takes no files"):
        ann.send_file(str(a_file(tmp_path)))


def test_closed_in_the_middle(bot, tmp_path, hasty):
    """The end of the client ends a transfer that waits."""
    ann, path, ended = bot(), a_file(tmp_path), []

    def run():
        try:
            ann.upload(str(path), lambda done, size: ann.close())
            ann.pause(0)
        except ConnectionError as error:
            ended.append(str(error))
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(TIMEOUT)
    assert ended == ["the client was closed"]


# --- Over breaks ---

def test_goes_on_after_breaks(server, bot, tmp_path, hasty, impatient):
    """Through a network that cuts every connection after a few thousand bytes, or goes silent, a
    file comes up and down whole."""
    proxy = CuttingProxy(server.port, seed=7)
    proxy.is_of_lines = False
    try:
        ann = bot(proxy.port)
        path = a_file(tmp_path, size=60_000)
        ann.send_file(str(path))
        file = wait_until(ann.files)[-1]
        (tmp_path / "to").mkdir()
        saved = ann.fetch(file, str(tmp_path / "to"))
        with open(saved, "rb") as content:
            assert content.read() == path.read_bytes()
        assert os.listdir(tmp_path / "to") == ["a plan.bin"] and proxy.counts
    finally:
        proxy.close()


def test_answers_that_are_cut_in_their_head(monkeypatch, bot, tmp_path, hasty):
    """An answer whose head is not whole says nothing, though Python's reader takes it for one of
    unknown length."""
    cuts, made = [16, 17, 20, 40, 60, 80, 16, 17, 20, 40, 60, 80], []

    class Cut(http.client.HTTPResponse):
        def begin(self):
            made.append(self)
            if len(made) % 2 and cuts:
                whole, self.fp = self.fp, io.BytesIO(self.fp.read(cuts.pop(0)))
                whole.close()
            super().begin()
    ann, path = bot(), a_file(tmp_path)
    monkeypatch.setattr(http.client.HTTPConnection, "response_class", Cut)
    said = ann.send_file(str(path))
    assert ann.wait_settled(0, TIMEOUT) and said.state == THERE and len(cuts) <= 6
    (tmp_path / "to").mkdir()
    while cuts:
        saved = ann.fetch(wait_until(ann.files)[-1], str(tmp_path / "to"))
        with open(saved, "rb") as content:
            assert content.read() == path.read_bytes()


def test_goes_on_after_a_restart(serve, bot, tmp_path, hasty, impatient):
    """A server that is killed in the middle gets the file again; a download goes on."""
    server = serve("--history", tmp_path / "chat.db")
    ann, path, killed = bot(server.port), a_file(tmp_path), []

    def kill(done, size):
        if done > 50_000 and not killed:
            killed.append(done)
            server.kill()
            server.start()
    said = ann.send_file(str(path), progress=kill)
    assert ann.wait_settled(0, TIMEOUT) and said.state == THERE and killed
    killed.clear()
    (tmp_path / "to").mkdir()
    file = wait_until(ann.files)[-1]
    saved = ann.fetch(file, str(tmp_path / "to"), kill)
    with open(saved, "rb") as content:
        assert content.read() == path.read_bytes()
    kept = file["url"].rpartition("/")[2]
    wait_until(lambda: os.listdir(tmp_path / "chat.db.files") == [kept])
    assert (tmp_path / "chat.db.files" / kept).read_bytes() == path.read_bytes()


def test_handed_out_to_a_new_server(serve, bot, tmp_path, hasty, impatient):
    """A server without history forgets what was uploaded: the message is refused, and not called
    there."""
    server = serve()
    ann = bot(server.port)
    answer = ann.upload(str(a_file(tmp_path)))
    server.kill()
    server.start()
    said = ann.say(answer["text"], file={"url": answer["url"]})
    wait_until(lambda: said.state == FAILED)
    assert "handed out" in said.reason


def test_server_that_loses_uploads(monkeypatch, bot, tmp_path, hasty):
    """One that answers each piece with 404, whatever was begun, is not tried for ever."""
    monkeypatch.setattr(chat_client.Courier, "TRIES", 3)
    begun = []

    class Loses(chat_client.Courier):
        def _begin(self, name):
            begun.append(name)
            return super()._begin(name)[:-4] + "0000"
    with pytest.raises(FileError, match="again and again"):
        Loses(bot(), lambda done, size: None).send(str(a_file(tmp_path)))
    assert len(begun) == 4


def test_campaign(tmp_path, hasty, impatient):
    """A short campaign (campaign.py): uploads cut at random bytes, and a server killed twice."""
    violations, figures = campaign.run_files(9, 2, 20090817, tmp_path)
    assert violations == [] and figures["files"] == 9


# --- From a pipe ---

def test_pipe_sends(server, join, tmp_path):
    """--send hands out files and leaves; the exit code is 0 when they are there."""
    bob = join("bob")
    one, two = a_file(tmp_path, "one.bin"), a_file(tmp_path, "two.bin", 0)
    done = run_client(server.port, "--send", str(one), "--send", str(two), name="ci",
                      input=b"this is not read")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    for path in (one, two):
        file = heard(bob)["file"]
        assert (file["name"], file["size"]) == (path.name, path.stat().st_size)
        assert fetch(server.port, file["url"])[2] == path.read_bytes()
    assert b"this" not in str(bob.frames).encode()


@pytest.mark.parametrize("size, why", [(None, b"x.bin: "), (3_000_001, b"at most 3 MB")])
def test_pipe_that_cannot_send(server, tmp_path, size, why):
    """The exit code is 1, and one line says which file and why."""
    path = tmp_path / "x.bin" if size is None else a_file(tmp_path, "x.bin", size)
    done = run_client(server.port, "--send", str(path), name="ci")
    assert done.returncode == 1 and why in done.stderr and b"x.bin" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_pipe_over_a_kill(serve, popen, peer, tmp_path):
    """A server that is killed while a file goes up, and comes back, gets the rest of it, and its
    message once; the exit code is 0."""
    server = serve("--history", tmp_path / "chat.db")
    path, files = a_file(tmp_path, size=60_000_000), tmp_path / "chat.db.files"
    ci = popen(server.port, "--send", str(path), name="ci")
    wait_until(lambda: os.listdir(files))
    server.kill()
    server.start()
    assert ci.wait(TIMEOUT) == 0
    bob = peer(server.port, "bob")
    bob.say("last")
    bob.recv_until("chat", text="last")
    (chat,) = [frame for frame in bob.frames if "file" in frame]
    assert chat["from"] == "ci"
    wait_until(lambda: os.listdir(files) == [chat["file"]["url"][7:]])
    assert (files / chat["file"]["url"][7:]).read_bytes() == path.read_bytes()


def test_pipe_gives_up(serve, popen, tmp_path):
    """A server that is killed and does not come back is waited for as long as --timeout says."""
    server = serve("--files", tmp_path / "files")
    ci = popen(server.port, "--timeout", "1", "--send", str(a_file(tmp_path, size=90_000_000)),
               name="ci")
    wait_until(lambda: os.listdir(tmp_path / "files"))
    server.kill()
    assert ci.wait(TIMEOUT) == 1
    assert b"gave up" in ci.stderr.read()


@posix_only
def test_pipe_that_is_muted(serve, console, tmp_path):
    """A message that is refused is no file that is there."""
    window, port = console()
    window.type("/only-host")
    window.expect("only the host speaks now.*")
    done = run_client(port, "--send", str(a_file(tmp_path)), name="ci")
    assert done.returncode == 1 and b"only the host speaks" in done.stderr


def test_pipe_shows_the_whole_address(server, join):
    """Who listens in a pipe sees name, size and address."""
    up = Uploader(server.port, join("ann"))
    listener = harness.subprocess.Popen(
        harness.client_command(server.port, "--listen", name="ear"), cwd=harness.ROOT,
        stdout=harness.subprocess.PIPE, env=harness.ENVIRONMENT)
    try:
        up.member.recv_until("joined", name="ear")
        answer = up.upload("x.pdf", b"12345")
        up.say(answer)
        assert listener.stdout.readline().decode().rstrip().endswith(f"ann: {answer['text']}")
        assert answer["text"].startswith("x.pdf (5 B) http://")
    finally:
        listener.kill()
        listener.communicate()
    up.member.recv_until("left", name="ear")


# --- In a terminal ---

def test_numbers_of_files(monkeypatch):
    """Each file has one number, also where it comes again; that of one that was removed, or is too
    old to be kept, is no other's."""
    monkeypatch.setattr(HandedOut, "MOST", 2)
    files = HandedOut()
    one, two, three, four = (
        Chat(id, "bob", "look", 0, file={"name": f"{id}.txt", "size": id, "url": f"/files/{id}"})
        for id in (1, 2, 3, 4))
    assert [files.add(chat) for chat in (one, two, one, three)] == [1, 2, 1, 3]
    assert [files.file(number) for number in (1, 2, 3)] == [None, two.file, three.file]
    files.removed(3)
    assert files.file(3) is None and files.add(four) == 4
    assert files.lines() == ["* 2  2.txt (2 B), bob", "* 4  4.txt (4 B), bob"]


@posix_only
def test_terminal(server, join, window, tmp_path):
    """/send with a path that Tab completes, blanks and all; what was handed out has a number, by
    which /get saves it; /files lists it."""
    bob, ann = join("bob"), window()
    path = a_file(tmp_path, "a long plan.bin", 2_000)
    ann.type(f"/send {tmp_path}/a lo\t\r")
    assert heard(bob)["file"]["name"] == path.name
    wait(ann, lambda terminal: newest(terminal).startswith(
        "ann: a long plan.bin (2 kB) [/get 1]"), "the file")
    up = Uploader(server.port, bob)
    up.say({**up.upload("x.pdf", b"12345"), "text": "read this"})
    wait(ann, lambda terminal: newest(terminal) == "bob: read this [x.pdf (5 B), /get 2]",
         "the other file")
    ann.type(f"/get 2 {tmp_path}\r")
    wait(ann, lambda terminal: "* saved as" in terminal.text(), "the saved one")
    assert (tmp_path / "x.pdf").read_bytes() == b"12345"
    ann.type("/files\r")
    wait(ann, lambda terminal: "* 1  a long plan.bin (2 kB), ann" in terminal.text()
         and newest(terminal) == "* 2  x.pdf (5 B), bob", "the list")
    ann.type("/get 3\r")
    wait(ann, lambda terminal: newest(terminal).startswith("! /get N"), "the number that is none")
    ann.type("/send /nowhere/x\r")
    wait(ann, lambda terminal: newest(terminal).startswith("! sending x: /nowhere/x: No such file"),
         "the file that is none")


@posix_only
def test_status_line_shows_progress(server, window, paused, tmp_path):
    """While a file is on its way the status line says which one."""
    ann = window()
    path = a_file(tmp_path, "slow.bin", 2_000_000)
    go_on = paused()
    ann.type(f"/send {path}\r")
    wait(ann, lambda terminal: any(part.startswith("sending slow.bin")
                                   for part in status(terminal)), "the progress")
    go_on()
    wait(ann, lambda terminal: "slow.bin (2 MB) [/get 1]" in terminal.text()
         and not status(terminal)[0].startswith("sending"), "the file")


def test_progress_in_words():
    """Percent and speed, and nothing when it is over."""
    shown, posted, errands = [], threading.Event(), {}
    ui = types.SimpleNamespace(
        errands=errands, post=lambda *event: posted.set(), show=shown.append)
    gate = threading.Event()

    def work(progress):
        progress(1_000, 4_000)
        shown.append(list(errands.values()))
        gate.wait(TIMEOUT)
        raise FileError("no")
    chat_client._errand(ui, "sending x", work)
    (status_line,) = wait_until(lambda: shown and shown[0])
    assert status_line.startswith("sending x: 25 %, ") and status_line.endswith("/s")
    gate.set()
    assert posted.wait(TIMEOUT)
    wait_until(lambda: not errands)


@posix_only
def test_plain_on_a_terminal(server, chat, join, tmp_path):
    """Without a screen the same, line by line."""
    ann, bob = chat(server.port), join("bob")
    up = Uploader(server.port, bob)
    up.say(up.upload("x.pdf", b"12345"))
    line = ann.expect(r".*bob: x\.pdf \(5 B\) \[/get \d+\]")
    number = line.rpartition("/get ")[2].rstrip("]")
    ann.type(f"/get {number} {tmp_path}")
    ann.expect(r"\* saved as .*x\.pdf")
    assert (tmp_path / "x.pdf").read_bytes() == b"12345"
