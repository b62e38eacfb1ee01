"""The history file: what it refuses, what it brings back, and what the server does when its disk
fails.

The faults are real ones: a file size limit set on the running server (full disk), a file that is
moved away, pages that are overwritten, a lock that another process holds, a file without write
permission. campaign.py kills the server under load, simulation.py kills it at every write; here are
the single cases. (The file itself, row by row: test_history_file.py.)
"""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

import pytest

import campaign
import chat_server
from chat_client import ChatClient
from chat_server import HistoryError, HistoryFile
from harness import TIMEOUT, RawClient, run_server, start_server
from test_history_file import chat, refusal, session


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
    HistoryFile(path).close()
    not_ours(path, f"PRAGMA user_version = {chat_server.SCHEMA_VERSION + 1}")


def damaged(path):
    file = HistoryFile(path)
    file.save(300, [chat(id, "x" * 200) for id in range(1, 301)], [], [])
    file.close()
    with open(path, "r+b") as raw:
        raw.seek(3 * 4096)
        raw.write(os.urandom(4 * 4096))


@pytest.mark.parametrize("spoil, words", [
    (lambda path: open(path, "w").write("hello"), "it is not a history of Roger"),
    (lambda path: open(path, "w").write("hello\n" * 1000), "it is not a history of Roger"),
    (not_ours, "it is an SQLite file of another program"),
    (newer, "a newer Roger wrote it (its format is 3, this one knows 2)"),
    (damaged, "it is damaged"),
    (os.mkdir, "it cannot be opened or made there"),
])
def test_file_that_is_refused(path, spoil, words):
    """What is not ours, newer or damaged is refused with a reason, and stays as it is; the export
    refuses it, too."""
    spoil(path)
    before = open(path, "rb").read() if os.path.isfile(path) else b""
    with pytest.raises(HistoryError, match="it is|newer|opened") as refused:
        HistoryFile(path)
    assert words in str(refused.value) and path in str(refused.value)
    assert not before or open(path, "rb").read() == before
    if spoil is not damaged:
        with pytest.raises(HistoryError):
            chat_server.export_history(path, path + ".txt")
        assert not os.path.exists(path + ".txt")


def test_server_refuses_a_file_in_one_line(path):
    """The server ends with 1 and one line that names the file."""
    not_ours(path)
    code, said = run_server(0, "--history", path)
    assert code == 1 and said == (f"chat_server: cannot keep the history in {path}: "
                                  "it is an SQLite file of another program\n")


def test_empty_file_is_taken(path):
    """A file of no bytes, as mktemp makes it, becomes a history."""
    open(path, "w").close()
    file = HistoryFile(path)
    epoch = file.epoch
    file.close()
    file = HistoryFile(path)
    assert file.epoch == epoch and file.last == 0
    file.close()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_file_is_for_its_owner_alone(path):
    """Private messages are in it: a new file and what belongs to it cannot be read by others."""
    file = HistoryFile(path)
    assert [os.stat(path + end).st_mode & 0o777 for end in ("", "-wal")] == [0o600, 0o600]
    file.close()


def test_second_server_on_the_same_file(path, serve):
    """A file that a server has is refused to a second one, and to the export, in one line."""
    serve("--history", path)
    impatient = "-c", ("import chat_server, sys\nchat_server.LOCK_WAIT = 0.05\n"
                       "sys.exit(chat_server.main())")
    code, said = run_server(0, "--history", path, program=impatient)
    assert code == 1 and said == (f"chat_server: cannot keep the history in {path}: "
                                  "it is in use by another program (a second server?)\n")
    code, said = run_server("--export", "-", path, program=impatient)
    assert code == 1 and said == (f"chat_server: {path}: "
                                  "it is in use by another program (a second server?)\n")


def test_lock_of_another_process(path, monkeypatch):
    """A file that any other program has locked is refused."""
    HistoryFile(path).close()
    holder = subprocess.Popen([sys.executable, "-c",
                               "import sqlite3, sys; file = sqlite3.connect(sys.argv[1]);"
                               "file.execute('BEGIN EXCLUSIVE'); print('locked', flush=True);"
                               "sys.stdin.read()", path],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    monkeypatch.setattr(chat_server, "LOCK_WAIT", 0.05)
    assert holder.stdout.readline().strip() == b"locked"
    with pytest.raises(HistoryError, match="in use by another program"):
        HistoryFile(path)
    holder.communicate(timeout=TIMEOUT)
    HistoryFile(path).close()


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin",
                    reason="needs fork and permissions of POSIX")
def test_file_without_write_permission():
    """A file that may only be read is refused. (root may write anything: so a child looks, as
    nobody.)"""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "chat.db")
        HistoryFile(path).close()
        os.chmod(path, 0o444)
        os.chmod(folder, 0o755)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                HistoryFile(path)
            except HistoryError as error:
                os.write(writing, str(error).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading, encoding="utf-8") as answer:
            assert answer.read() == f"{path}: it is read-only"
        os.waitpid(child, 0)


def test_unsynced_ids_are_skipped(path):
    """With --history-sync normal ids that a power cut may have taken along do not come again."""
    file = HistoryFile(path, "normal")
    file.save(10, [chat(10)], [], [])
    file._connection.close()            # a crash
    file = HistoryFile(path, "full")
    assert file.last == 10 + chat_server.UNSYNCED_IDS
    file.close()
    file = HistoryFile(path)
    assert file.last == 10 + chat_server.UNSYNCED_IDS
    file.close()


def test_commit_is_all_or_nothing(path):
    """A commit of which a part fails leaves nothing, and may be made again."""
    file = HistoryFile(path)
    with pytest.raises(HistoryError):
        file.save(2, [chat(1), chat(2)], [(None,) * 9], [])
    assert file.newest(10, 10_000) == ([], 0)
    for _ in range(2):
        file.save(2, [chat(1), chat(2)], [], [])
    assert [row[0] for row in file.newest(10, 10_000)[0]] == [1, 2]
    file.close()


def test_pieces_are_bounded(path, monkeypatch):
    """What is read at once is bounded in frames and in bytes, and the pieces make a whole."""
    file = HistoryFile(path)
    file.save(3000, [chat(id, numbers=() if id % 100 == 1 else (77,)) for id in range(1, 2001)] +
              [chat(id, "y" * 500) for id in range(2901, 3001)], [], [])
    for name, value, most in ("FEED_FRAMES", 7, 7), ("FEED_BYTES", 3000, 30):
        with monkeypatch.context() as patch:
            patch.setattr(chat_server, name, value)
            heard, place, pieces = [], 0, 0
            while place < 3000:
                piece, place = file.after(place, 3000, 5)
                assert len(piece) <= most
                heard += [id for id, _, _ in piece]
                pieces += 1
        assert heard == [*range(1, 2001, 100), *range(2901, 3001)] and pieces < 100
    file.close()


@pytest.mark.parametrize("keep", [{"keep_messages": 120}, {"keep_seconds": 119.5}])
def test_trim_deletes_the_oldest_in_small_steps(path, keep):
    """--keep and --keep-messages: at most TRIM_ROWS a step, the file shrinks, a refusal that was
    not confirmed stays."""
    file = HistoryFile(path, **keep)
    file.save(3000, [chat(id, "x" * 500, at=float(id)) for id in range(1, 3001) if id != 5]
              + [refusal(5, 9, 3)], [session(9, acked=4)], [])
    before, steps = file._connection.execute("PRAGMA page_count").fetchone()[0], 0
    while file.trim(3000.0):
        steps += 1
    assert steps >= 2880 / chat_server.TRIM_ROWS and file.forgotten == 2880
    assert file._connection.execute("PRAGMA page_count").fetchone()[0] < before / 4
    assert [row[0] for row in file.newest(10_000, 10**7)[0]] == [5, *range(2881, 3001)]
    file.save(3000, [], [session(9, acked=5)], [])
    file.close()
    # Now it was confirmed.
    file = HistoryFile(path)
    assert file.forgotten == 2880 and file.newest(10_000, 10**7)[0][0][0] == 2881
    file.close()


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
    started = time.monotonic()
    assert server.stop() == 0 and time.monotonic() - started < 5
    assert "never acknowledged" not in str(ann.frames)
    os.rename(path + ".away", path)
    after = serve("--history", path)
    _, welcome = resume(after, ann)
    assert welcome["resumed"] and welcome["got"] == 0


def test_slow_disk_is_said_once(path, caplog, monkeypatch):
    """Commits that take long: a line in the log, and everything is acknowledged, many messages to a
    commit."""
    monkeypatch.setattr(chat_server, "SLOW_COMMIT", 0.05)

    class SlowFile(HistoryFile):
        def save(self, *arguments):
            threading.Event().wait(0.06)
            return super().save(*arguments) + 0.06
    file = SlowFile(path)
    server = chat_server.ChatServer("127.0.0.1", 0, chat_server.Settings(rate=0), history=file)
    server.start()
    client = ChatClient("127.0.0.1", server.port, "ann")
    client.connect(TIMEOUT)
    before = file.commits
    said = [client.say(f"{number}") for number in range(100)]
    assert client.wait_settled(0, TIMEOUT) and all(one.state == "there" for one in said)
    assert file.commits - before < 30
    client.close()
    server.server_close()
    assert len([line for line in caplog.messages if "the disk is slow" in line]) == 1


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


def test_campaign(tmp_path, impatient):
    """A short campaign (campaign.py): four kills under load over connections that break."""
    violations, figures = campaign.run(4, 20090817, tmp_path, speakers=2, listeners=2, most=150)
    assert violations == [] and figures["acknowledged"] > 100, figures


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
