"""The history file: what it refuses, what it brings back, and what the server does when its disk
fails.

The faults are real ones: a file size limit set on the running server (full disk), a file that is
moved away, pages that are overwritten, a lock that another process holds, a file without write
permission. campaign.py kills the server under load, simulation.py kills it at every write; here are
the single cases.
"""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys

import pytest

import campaign
import chat_server
from chat_server import UNSYNCED_IDS
from harness import TIMEOUT, RawClient, run_server, start_server

# A server that does not wait long for a file that another program has locked.
HASTY = "-c", ("import chat_server, sys\nchat_server.LOCK_WAIT = 0.05\n"
               "sys.exit(chat_server.main())")


@pytest.fixture
def path(tmp_path):
    """Where a history file may be made."""
    return str(tmp_path / "chat.db")


def resume(server, client, **changes):
    """The same member on another connection."""
    again = RawClient(server.port, auto_ack=True)
    again.next_id = client.next_id
    seen = max([frame.get("id", 0) for frame in client.frames
                if frame["type"] not in ("ack", "heard")])
    welcome = again.join(client.name, session=client.welcome["session"],
                         epoch=client.welcome["epoch"],
                         **{"seen": seen, **changes})
    return again, welcome


# --- The file ---

def not_ours(path, statement="CREATE TABLE recipes (cake)"):
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute(statement)
        file.commit()


def newer(path):
    a_history(path)
    not_ours(path, "PRAGMA user_version = 99")


def damaged(path):
    a_history(path, *(f"{number} " + "x" * 200 for number in range(300)))
    with open(path, "r+b") as raw:
        raw.seek(3 * 4096)
        raw.write(os.urandom(4 * 4096))


def a_history(path, *texts):
    """Let a server make the file, with these messages, and end; return the newest id."""
    server = start_server("--bind", "127.0.0.1", "--rate", "0", "--history", path)
    with RawClient(server.port, auto_ack=True) as writer:
        writer.join("writer")
        for text in texts:
            writer.say(text)
        newest = writer.welcome["last"]
        if texts:
            newest = writer.recv_until("chat", text=texts[-1])["id"]
        writer.leave()
    assert server.stop() == 0
    return newest


@pytest.mark.parametrize("spoil, words", [
    (lambda path: open(path, "w").write("hello"), "it is not a history of Roger"),
    (lambda path: open(path, "w").write("hello\n" * 1000), "it is not a history of Roger"),
    (not_ours, "it is an SQLite file of another program"),
    (newer, "a newer Roger wrote it (its format is 99, this one knows "),
    (damaged, "it is damaged"),
    (os.mkdir, "it cannot be opened or made there"),
])
def test_file_that_is_refused(path, spoil, words):
    """What is not ours, newer or damaged is refused with exit code 1 and one line that says why,
    and stays as it is; the export refuses it, too."""
    spoil(path)
    before = open(path, "rb").read() if os.path.isfile(path) else b""
    code, said = run_server(0, "--bind", "127.0.0.1", "--history", path)
    assert code == 1 and len(said.splitlines()) == 1
    assert said.startswith(f"chat_server: cannot keep the history in {path}: ") and words in said
    assert not before or open(path, "rb").read() == before
    if spoil is not damaged:
        code, said = run_server("--export", path + ".txt", path)
        assert code == 1 and len(said.splitlines()) == 1 and not os.path.exists(path + ".txt")


def test_empty_file_is_taken(path, serve):
    """A file of no bytes, as mktemp makes it, becomes a history."""
    open(path, "w").close()
    newest = a_history(path, "hello")
    server = serve("--history", path)
    with RawClient(server.port) as bob:
        assert bob.join("bob")["last"] >= newest
        assert bob.recv_until("chat")["text"] == "hello"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_file_is_for_its_owner_alone(path, serve):
    """Private messages are in it: a new file and what belongs to it cannot be read by others."""
    serve("--history", path)
    assert [os.stat(path + end).st_mode & 0o777 for end in ("", "-wal")] == [0o600, 0o600]


def test_second_server_on_the_same_file(path, serve):
    """A file that a server has is refused to a second one, and to the export, in one line."""
    serve("--history", path)
    code, said = run_server(0, "--history", path, program=HASTY)
    assert code == 1 and said == (f"chat_server: cannot keep the history in {path}: "
                                  "it is in use by another program (a second server?)\n")
    code, said = run_server("--export", "-", path, program=HASTY)
    assert code == 1 and said == (f"chat_server: {path}: "
                                  "it is in use by another program (a second server?)\n")


def test_lock_of_another_process(path, serve):
    """A file that any other program has locked is refused, and taken when it is free again."""
    a_history(path)
    holder = subprocess.Popen([sys.executable, "-c",
                               "import sqlite3, sys; file = sqlite3.connect(sys.argv[1]);"
                               "file.execute('BEGIN EXCLUSIVE'); print('locked', flush=True);"
                               "sys.stdin.read()", path],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline().strip() == b"locked"
    code, said = run_server(0, "--history", path, program=HASTY)
    assert code == 1 and "in use by another program" in said
    holder.communicate(timeout=TIMEOUT)
    serve("--history", path)


def test_unsynced_ids_are_skipped(path, serve, peer):
    """With --history-sync normal ids that a power cut may have taken along do not come again; once
    it has been closed well no more of them are skipped."""
    server = serve("--history", path, "--history-sync", "normal")
    ann = peer(server.port, "ann")
    ann.say("hello")
    newest = ann.recv_until("chat", text="hello")["id"]
    server.kill()
    after = a_history(path, "after the crash")
    assert newest + UNSYNCED_IDS < after < newest + UNSYNCED_IDS + 10
    assert a_history(path, "after a good end") < after + 10


# --- The disk ---

def held_and_mended(server, break_it, words, mend_it):
    """The disk fails under two members: what was said then is not acknowledged; it is, once, when
    the disk is mended."""
    ann, bob = RawClient(server.port, auto_ack=True), RawClient(server.port, auto_ack=True)
    ann.join("ann"), bob.join("bob")
    ann.recv_until("joined", name="bob")
    break_it()
    ids = [ann.say("x" * 2000 + str(number)) for number in range(20)]
    server.wait_for_error(words)
    mend_it()
    ann.recv_until("ack", id=ids[-1])
    acked = [frame["id"] for frame in ann.frames if frame["type"] == "ack"]
    assert acked == sorted(acked)
    texts = [bob.recv_until("chat")["text"] for _ in ids]
    assert texts == ["x" * 2000 + str(number) for number in range(20)]
    server.wait_for_error("can be written again")
    said = server.stderr_text().splitlines()
    assert len([line for line in said if "nothing is acknowledged" in line]) == 1, said
    ann.close(), bob.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"),
                    reason="the limit of another process can be set on Linux only")
def test_disk_full(path, serve):
    """A file that may not grow any more (RLIMIT_FSIZE): held, and mended by more room."""
    import resource
    server = serve("--history", path)
    pid, limit = server.process.pid, resource.getrlimit(resource.RLIMIT_FSIZE)
    size = os.path.getsize(path + "-wal")
    held_and_mended(server,
                    lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + 10_000, limit[1])),
                    "disk",
                    lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, limit))


@pytest.mark.skipif(os.name == "nt", reason="Windows does not let go of an open file")
@pytest.mark.parametrize("which", ["", "-wal"])
def test_file_moved_away(path, serve, which):
    """A file that is no longer where it was: held, and mended by putting it back."""
    server = serve("--history", path)
    held_and_mended(server, lambda: os.rename(path + which, path + ".away"),
                    "was deleted, moved or replaced",
                    lambda: os.rename(path + ".away", path + which))


@pytest.mark.skipif(os.name == "nt", reason="Windows does not let go of an open file")
def test_held_server_still_ends(path, serve):
    """A server that cannot write its file ends when it is told to, and what it did not acknowledge
    is not in the file."""
    server = serve("--history", path)
    ann = RawClient(server.port)
    ann.join("ann")
    os.rename(path, path + ".away")
    ann.say("never acknowledged")
    server.wait_for_error("was deleted, moved or replaced")
    assert server.stop() == 0
    assert "never acknowledged" not in str(ann.frames)
    os.rename(path + ".away", path)
    after = serve("--history", path)
    _, welcome = resume(after, ann)
    assert welcome["resumed"] and welcome["got"] == 0


# --- kill -9 ---

def test_server_killed_goes_on(path, serve):
    """kill -9 of the real server with a member connected: it resumes, nothing is lost, nothing
    comes twice."""
    server = serve("--history", path)
    ann = RawClient(server.port, auto_ack=True)
    ann.join("ann")
    ids = [ann.say(f"{number}") for number in range(10)]
    ann.recv_until("ack", id=ids[-1])
    server.kill()
    after = serve("--history", path)
    again, welcome = resume(after, ann, seen=0)
    assert welcome["resumed"] and welcome["got"] == ids[-1] and welcome["name"] == "ann"
    assert welcome["missed"] == 0
    again.send({"type": "chat", "id": ids[-1], "text": "9"})
    again.next_id = ids[-1] + 1
    again.say("last")
    assert [again.recv_until("chat")["text"] for _ in range(11)] == [*map(str, range(10)), "last"]


@pytest.mark.parametrize("kills, tls", [(4, False), (1, True)])
def test_campaign(tmp_path, impatient, kills, tls):
    """A short campaign (campaign.py): a few kills under load over connections that break, in the
    clear and encrypted."""
    violations, figures = campaign.run(kills, 20090817, tmp_path, speakers=2, listeners=2, most=150,
                                       tls=tls)
    assert violations == [] and figures["acknowledged"] > 20 * kills, figures


# --- Older messages, and the export ---

@pytest.mark.parametrize("history", [True, False])
def test_older_messages(path, serve, history):
    """`history` brings older messages in pieces, newest first asked, oldest first sent; private
    ones only to their two."""
    server = serve(*(["--history", path] if history else []))
    ann, bob, eve = (RawClient(server.port, auto_ack=True) for _ in range(3))
    for one, name in (ann, "ann"), (bob, "bob"), (eve, "eve"):
        one.join(name)
    for number in range(60):
        ann.say(f"{number}")
    ann.say("psst", to="bob")
    ann.recv_until("ack", id=61)
    texts = {}
    for client in bob, eve:
        answer, texts[client] = {"older": None}, []
        while "older" in answer:
            fields = {"before": answer["older"]} if answer["older"] else {}
            client.send({"type": "history", "id": client.next_id, "count": 25, **fields})
            client.next_id += 1
            answer = client.recv_until("history")
            assert answer["about"] == client.next_id - 1 and "id" not in answer
            assert len(answer["entries"]) <= 25
            texts[client] = [chat["text"] for chat in answer["entries"]] + texts[client]
            assert client.recv_until("ack")["id"] >= answer["about"]
    assert texts[bob] == [*map(str, range(60)), "psst"] and texts[eve] == [*map(str, range(60))]


def test_older_messages_fit_on_a_line(serve):
    """However long the messages are, the answer is a frame, and the next one goes on where it
    ends."""
    server = serve()
    ann = RawClient(server.port, auto_ack=True)
    ann.join("ann")
    for number in range(5):
        ann.say(str(number) + "\U0001f600" * 8000)
    ann.recv_until("ack", id=5)
    ann.send({"type": "history", "id": 6, "count": 5})
    answer = ann.recv_until("history")
    assert [chat["text"][0] for chat in answer["entries"]] == ["4"]
    ann.send({"type": "history", "id": 7, "count": 5, "before": answer["older"]})
    assert [chat["text"][0] for chat in ann.recv_until("history")["entries"]] == ["3"]


def test_export(path, tmp_path, capsys):
    """--export writes what was said in public, as JSON lines or as text; also of a server that was
    killed."""
    server = start_server("--history", path)
    ann, bob = RawClient(server.port), RawClient(server.port)
    ann.join("ann"), bob.join("bob")
    ann.say("hello\n\x9b2J".replace("\x9b", ""))
    ann.say("psst", to="bob")
    ann.send({"type": "rename", "id": 3, "name": "anna"})
    bob.recv_until("renamed")
    server.kill()
    server.stop()
    text, lines = str(tmp_path / "out.txt"), str(tmp_path / "out.json")
    assert chat_server.main(["--export", text, path]) == 0
    with open(text, encoding="utf-8") as file:
        assert [line.split("] ", 1)[1] for line in file.read().splitlines()] == [
            "* ann joined", "* bob joined", r"<ann> hello\n2J", "* ann is now anna"]
    assert run_server("--export", lines, path) == (0, "4 lines written\n")
    with open(lines, encoding="utf-8") as file:
        assert [json.loads(line)["type"]
                for line in file] == ["joined", "joined", "chat", "renamed"]
    assert chat_server.main(["--export", "-", path]) == 0
    assert capsys.readouterr().out.count("\n") == 4
    assert chat_server.main(["--export", path,
                             path]) == chat_server.main(["--export", "-", path + "x"]) == 1
    assert "cannot be exported into itself" in (said := capsys.readouterr().err)
    assert "there is no such file" in said
