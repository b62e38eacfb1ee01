"""The history file: what it refuses, what it brings back, and what the server does when its disk fails.

The faults are real ones: a file size limit set on the running server (full disk), a file that is moved away, pages that are
overwritten, a lock that another process holds, a file without write permission. campaign.py kills the server under load,
simulation.py kills it at every write; here are the single cases.
"""

import contextlib
import json
import logging
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
import chatproto
from chat_server import HistoryError, HistoryFile
from harness import ROOT, RawClient, start_server
from test_delivery import Bench, BenchMember, Line, impatient  # noqa: F401
from chat_client import ChatClient, ClientSession, Formatter, Theme

TIMEOUT = 30            # seconds, only reached on failure


@pytest.fixture
def path(tmp_path):
    """Where a history file may be made."""
    return str(tmp_path / "chat.db")


@pytest.fixture
def serve():
    """Start servers, and stop them at the end; none may have met a bug."""
    servers = []

    def start(*args, port=0):
        servers.append(start_server("--bind", "127.0.0.1", *args, port=port))
        return servers[-1]
    yield start
    for server in servers:
        server.stop()
        assert "bug " not in server.stderr_text() and "Traceback" not in server.stderr_text(), server.stderr_text()


def run_server(*args, program=("chat_server.py",)):
    """Run a server that is to end by itself; return its exit code and what it says."""
    done = subprocess.run([sys.executable, *program, *map(str, args)], cwd=ROOT, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=TIMEOUT)
    return done.returncode, done.stderr


def resume(server, client, **changes):
    """The same member on another connection."""
    again = RawClient(server.port, auto_ack=True)
    again.next_id = client.next_id
    seen = max([frame.get("id", 0) for frame in client.frames if frame["type"] not in ("ack", "heard")])
    welcome = again.join(client.name, session=client.welcome["session"], epoch=client.welcome["epoch"],
                         **{"seen": seen, **changes})
    return again, welcome


# --- The file ---

def entry(id, text="x", kind="chat", one=None, at=1000.0, about=None):
    body = chatproto.Chat(id, "ann", text, at, id).encode()[:-1].decode()
    return (id, at, kind, "ann", None, body, one, None, about)


def not_ours(path, statement="CREATE TABLE recipes (cake)"):
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute(statement)
        file.commit()


def newer(path):
    HistoryFile(path).close()
    not_ours(path, "PRAGMA user_version = 2")


def damaged(path):
    file = HistoryFile(path)
    file.save(300, [entry(id, "x" * 200) for id in range(1, 301)], [], [])
    file.close()
    with open(path, "r+b") as raw:
        raw.seek(3 * 4096)
        raw.write(os.urandom(4 * 4096))


@pytest.mark.parametrize("spoil, words", [
    (lambda path: open(path, "w").write("hello"), "it is not a history of Roger"),
    (lambda path: open(path, "w").write("hello\n" * 1000), "it is not a history of Roger"),
    (not_ours, "it is an SQLite file of another program"),
    (newer, "a newer Roger wrote it (its format is 2, this one knows 1)"),
    (damaged, "it is damaged"),
    (os.mkdir, "it cannot be opened or made there"),
])
def test_file_that_is_refused(path, spoil, words):
    """What is not ours, newer or damaged is refused with a reason, and stays as it is; the export refuses it, too."""
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
    assert (code, said) == (1, f"chat_server: cannot keep the history in {path}: it is an SQLite file of another program\n")


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
    impatient = "-c", "import chat_server, sys\nchat_server.LOCK_WAIT = 0.05\nsys.exit(chat_server.main())"
    code, said = run_server(0, "--history", path, program=impatient)
    assert code == 1 and said == (f"chat_server: cannot keep the history in {path}: "
                                  "it is in use by another program (a second server?)\n")
    code, said = run_server("--export", "-", path, program=impatient)
    assert (code, said) == (1, f"chat_server: {path}: it is in use by another program (a second server?)\n")


def test_lock_of_another_process(path, monkeypatch):
    """A file that any other program has locked is refused."""
    HistoryFile(path).close()
    holder = subprocess.Popen([sys.executable, "-c", "import sqlite3, sys; file = sqlite3.connect(sys.argv[1]);"
                               "file.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); sys.stdin.read()", path],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    monkeypatch.setattr(chat_server, "LOCK_WAIT", 0.05)
    assert holder.stdout.readline().strip() == b"locked"
    with pytest.raises(HistoryError, match="in use by another program"):
        HistoryFile(path)
    holder.communicate(timeout=TIMEOUT)
    HistoryFile(path).close()


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs fork and permissions of POSIX")
def test_file_without_write_permission():
    """A file that may only be read is refused. (root may write anything: so a child looks, as nobody.)"""
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
    file.save(10, [entry(10)], [], [])
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
        file.save(2, [entry(1), entry(2)], [(None,) * 9], [])
    assert file.newest(10, 10_000) == ([], 0)
    for _ in range(2):
        file.save(2, [entry(1), entry(2)], [], [])
    assert [row[0] for row in file.newest(10, 10_000)[0]] == [1, 2]
    file.close()


def test_pieces_are_bounded(path, monkeypatch):
    """What is read at once is bounded in frames, in bytes and in ids that are looked at, and the pieces make a whole."""
    file = HistoryFile(path)
    file.save(3000, [entry(id, one=None if id % 100 == 1 else 77) for id in range(1, 2001)] +
              [entry(id, "y" * 500) for id in range(2901, 3001)], [], [])
    for name, value, most in ("FEED_FRAMES", 7, 7), ("FEED_BYTES", 3000, 30), ("SCAN", 50, 50):
        with monkeypatch.context() as patch:
            patch.setattr(chat_server, name, value)
            heard, place, pieces = [], 0, 0
            while place < 3000:
                piece, place = file.after(place, 3000, 5)
                assert len(piece) <= most
                heard += [one.id for one in piece]
                pieces += 1
        assert heard == [*range(1, 2001, 100), *range(2901, 3001)] and pieces < 100
    file.close()


@pytest.mark.parametrize("keep", [{"keep_messages": 120}, {"keep_seconds": 119.5}])
def test_trim_deletes_the_oldest_in_small_steps(path, keep):
    """--keep and --keep-messages: at most TRIM_ROWS a step, the file shrinks, a refusal that was not confirmed stays."""
    file = HistoryFile(path, **keep)
    error = (5, 5.0, "error", None, None, '{"type":"error","id":5,"code":"x"}', 9, None, 3)
    file.save(3000, [entry(id, "x" * 500, at=float(id)) for id in range(1, 3001) if id != 5] + [error],
              [(9, b"9", "bob", 1, 1, 3, 4, None, None)], [])
    before, steps = file._connection.execute("PRAGMA page_count").fetchone()[0], 0
    while file.trim(3000.0):
        steps += 1
    assert steps >= 2880 / chat_server.TRIM_ROWS and file.forgotten == 2880
    assert file._connection.execute("PRAGMA page_count").fetchone()[0] < before / 4
    assert [row[0] for row in file.newest(10_000, 10**7)[0]] == [5, *range(2881, 3001)]
    file.save(3000, [], [(9, b"9", "bob", 1, 1, 3, 5, None, None)], [])
    file.close()
    file = HistoryFile(path)            # now it was confirmed
    assert file.forgotten == 2880 and file.newest(10_000, 10**7)[0][0][0] == 2881
    file.close()


# --- The room ---

class Rooms:
    """Benches one after the other on one history file: a server and its restarts."""

    def __init__(self, path):
        self.path = path
        self.file = None

    def start(self, now=1_000.0, **options):
        """The server is killed, if there is one, and another starts."""
        if self.file is not None:
            self.file._connection.close()
        self.file = HistoryFile(self.path, **options)
        bench = Bench()
        bench.now = now
        bench.room = chat_server.Room(bench.alarm, bench.post, chat_server.Settings(), lambda: bench.now, history=self.file)
        return bench

    def close(self):
        self.file.close()


@pytest.fixture
def rooms(path):
    rooms = Rooms(path)
    yield rooms
    rooms.close()


def move(member, bench):
    """A member's next connection is to another server."""
    member.bench = bench
    return member


def test_restart_goes_on(rooms):
    """Names, ids, the order, what was not heard, what was accepted and private messages: as if nothing had happened."""
    before = rooms.start()
    ann, bob, eve = (before.member(name) for name in ("ann", "bob", "eve"))
    for one in ann, bob, eve:
        one.take()
    bob.say("one")
    bob.say("for ann", to="ann")
    newest = before.room.last
    after = rooms.start()
    assert after.room.last == newest and after.room.epoch == before.room.epoch
    assert [name for name, _ in after.room.users()] == ["ann", "bob", "eve"]
    again, eves = move(ann, after).resume(), move(eve, after).resume()
    assert again.texts() == ["one", "for ann"] and again.welcome["resumed"] and again.welcome["missed"] == 0
    assert eves.texts() == ["one"]
    bobs = move(bob, after).resume()
    bobs.take()
    assert bobs.welcome["got"] == 2
    bobs.send("chat", id=2, text="for ann", to="ann")       # its ACK may have been lost
    bobs.send("chat", id=3, text="two")
    assert [(chat["id"], chat["text"]) for chat in again.take()] == [(newest + 1, "two")]
    assert after.member("newcomer").welcome["users"] == ["ann", "bob", "eve", "newcomer"]


def test_restart_grace_time(rooms):
    """Who does not come back within the grace time after a restart has left; and may come back all the same, later."""
    before = rooms.start()
    ann, bob = before.member("ann"), before.member("bob")
    before.advance(1)                   # joins wait a little for each other
    ann.take(), bob.take()
    after = rooms.start()
    again = move(bob, after).resume()
    again.take()
    after.advance(29)
    assert again.take() == []
    after.advance(2)
    assert [(got["type"], got.get("name")) for got in again.take() if got["type"] != "ping"] == [("left", "ann")]
    again.say("while you were away")
    hours = rooms.start(now=20_000.0)
    anns = move(ann, hours).resume()
    frames = anns.take()
    assert frames[0]["resumed"] and [got["type"] for got in frames[1:]] == ["left", "chat"]


def test_restart_newcomers_get_the_last_messages(rooms):
    """A newcomer gets the last 20 public messages, from the file, and no private one."""
    before = rooms.start()
    ann = before.member("ann")
    for number in range(30):
        ann.say(f"{number}")
        ann.say("psst", to="ann")
        ann.take()
    after = rooms.start()
    bob = after.member("bob")
    frames = BenchMember(after, "eve")
    frames.send("join", name="eve")
    assert frames.texts() == [f"{number}" for number in range(10, 30)]
    assert bob.welcome["missed"] == 0


def test_restart_keeps_refusals(rooms):
    """A refusal that was not confirmed before the restart is heard after it, and no welcome confirms what it refuses."""
    before = rooms.start()
    ann = before.member("ann")
    ann.mute = True
    ann.say("hello", to="nobody")
    again = move(ann, rooms.start()).resume()
    frames = again.take()
    assert frames[0]["got"] == 0 and [got["about"] for got in frames if got["type"] == "error"] == [1]


def test_restart_keeps_who_was_booted(rooms):
    """Whoever was put out while it was away is told so by the next server, too."""
    before = rooms.start()
    ann = before.member("ann")
    ann.lose()
    before.room.boot("ann", "spam")
    before.room.flush()
    again = move(ann, rooms.start()).resume()
    assert [(got["code"], got["text"]) for got in again.take()] == [("banned", "you were booted: spam")]


def test_restart_forgets_whom_the_room_forgot(rooms, monkeypatch):
    """Sessions are kept up to a bound; a private message of one that is gone is never another's."""
    monkeypatch.setattr(chat_server, "SESSIONS", 2)
    before = rooms.start()
    for number in range(5):
        member = before.member(f"m{number}")
        member.say("my secret", to=f"m{number}")
        member.send("leave", id=2)
    after = rooms.start()
    assert [row[2] for row in rooms.file.sessions()] == ["m3", "m4"]
    newcomer = after.member("m0")
    newcomer.send("history", id=1, count=100)
    assert "my secret" not in str(newcomer.take())


def test_long_absence_is_fed_in_pieces(rooms, monkeypatch):
    """Who comes back after 2,000 messages has all of them and what is said meanwhile, in order, in bounded memory."""
    monkeypatch.setattr(chat_server, "LOG_FRAMES", 100)
    bench = rooms.start()
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.take()
    ann.lose()
    for number in range(2000):
        bob.say(f"{number}")
        bob.take()
    again = ann.resume()
    heard, most, live = [], 0, 2000
    while again.written:
        bob.say(f"{live}")
        bob.take()
        live += 1
        most = max(most, again.connection.manager.waiting)
        frames = list(map(json.loads, b"".join(again.written).splitlines()))
        again.written.clear()
        heard += [got["text"] for got in frames if got["type"] == "chat"]
        seen = max([got["id"] for got in frames if got["type"] == "chat"], default=0)
        if seen:
            again.send("ack", id=seen)
        bench.advance(0.05)
    assert heard == [f"{number}" for number in range(live)]
    assert most <= 2 * chat_server.FEED_FRAMES + 100


def test_refusal_of_one_that_catches_up_is_not_overtaken(rooms, monkeypatch):
    """What is refused while a member still reads the file: no ACK of it before the refusal, far behind in the order."""
    monkeypatch.setattr(chat_server, "LOG_FRAMES", 100)
    bench = rooms.start()
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.take()
    ann.lose()
    for number in range(1500):
        bob.say(f"{number}")
        bob.take()
    again = ann.resume()
    again.say("hello", to="nobody")
    frames = again.take()
    order = [got["type"] for got in frames if got["type"] in ("ack", "error")]
    assert order == ["error", "ack"]


def test_long_absence_overtaken_by_keep(rooms, monkeypatch):
    """What is deleted while a member reads it: the member is put off, comes back, and is told how much it missed."""
    monkeypatch.setattr(chat_server, "LOG_FRAMES", 100)
    monkeypatch.setattr(chat_server, "FEED_FRAMES", 64)
    bench = rooms.start(keep_messages=150)
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.take()
    ann.lose()
    for number in range(1200):
        bob.say(f"{number}")
        bob.take()
    again = ann.resume()
    again.mute = True
    missing = again.take()
    bench.advance(6)                    # --keep-messages works
    newest = max(got["id"] for got in missing if "id" in got)
    again.send("ack", id=newest)
    assert again.is_over
    third = again.resume(seen=newest)
    frames = third.take()
    assert frames[0]["missed"] > 0 and [got["text"] for got in frames if got["type"] == "chat"][-1] == "1199"
    assert 150 <= len([got for got in frames if got["type"] == "chat"]) < 800


def test_unreadable_file_is_said(rooms, monkeypatch, caplog):
    """Pages that cannot be read are in `missed`, in one line of the log, and the room goes on."""
    monkeypatch.setattr(chat_server, "LOG_FRAMES", 100)
    bench = rooms.start()
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.take()
    ann.lose()
    for number in range(1000):
        bob.say(f"{number} " + "x" * 300)
        bob.take()
    rooms.file._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with open(rooms.path, "r+b") as raw:
        raw.seek(5 * 4096)
        raw.write(os.urandom(20 * 4096))
    rooms.file._connection.execute("PRAGMA shrink_memory")
    rooms.file._connection.execute("PRAGMA cache_size = 0")
    again = ann.resume()
    frames = again.take()
    while again.is_over:
        again = again.resume()
        frames = again.take()
    assert frames[0]["missed"] > 0 and [got for got in frames if got["type"] == "chat"][-1]["text"].startswith("999 ")
    assert len([line for line in caplog.messages if "cannot be read" in line]) == 1


# --- The disk ---

class BrokenFile(HistoryFile):
    """A history file on a disk that can be told to fail."""

    broken = ""

    def save(self, *arguments):
        if self.broken:
            raise HistoryError(self.broken)
        return super().save(*arguments)


def test_held_room_acknowledges_nothing(broken_file, caplog):
    """A commit that fails: no ACK and no fan-out, one line in the log; a member that comes meanwhile waits; then all goes on."""
    caplog.set_level(logging.INFO)
    bench, ann, bob, file = broken_file
    file.broken = "the disk is full"
    ann.say("one")
    assert bench.room.is_held and ann.take() == [] == bob.take()
    ann.connection.received(b'{"type":"chat","id":2,"text":"two"}\n')
    assert ann.connection.release() == chat_server.HOLD_PAUSE
    ann.written.clear()
    ann.connection.manager.detach()     # ann's client gave up, and is back
    again = BenchMember(bench, "ann")
    again.connection.received(json.dumps({"type": "join", "name": "ann", "session": ann.welcome["session"], "seen": ann.seen,
                                          "epoch": ann.welcome["epoch"]}).encode() + b"\n" + b'{"type":"chat","id":1,"text":"one"}\n')
    again.connection.release()
    for _ in range(3):
        bench.room.flush()
    assert bench.room.is_held and not again.written
    file.broken = ""
    bench.room.flush()
    bench.settle()
    again.connection.release()
    bench.settle()
    frames = again.take()
    assert frames[0]["type"] == "welcome" and frames[0]["got"] == 1
    assert [got["text"] for got in frames if got["type"] == "chat"] == ["one"] == bob.texts()
    assert len([line for line in caplog.messages if "nothing is acknowledged" in line]) == 1
    assert len([line for line in caplog.messages if "can be written again" in line]) == 1


@pytest.fixture
def broken_file(path):
    """A bench with two members on a history file that can be told to fail."""
    bench = Rooms(path).start()
    bench.room._history.close()
    bench.room._history = BrokenFile(path)
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.take(), bob.take()
    yield bench, ann, bob, bench.room._history
    bench.room.close()


def test_held_room_does_not_let_members_go(broken_file):
    """Nobody can come back while the room is held: the grace time begins anew when it goes on."""
    bench, ann, bob, file = broken_file
    ann.lose()
    file.broken = "the disk is full"
    bob.say("one")
    bench.now += 60
    file.broken = ""
    bench.room.flush()
    assert bob.texts() == ["one"]
    bench.advance(29)
    assert "left" not in [got["type"] for got in bob.take()]
    bench.advance(2)
    assert "left" in [got["type"] for got in bob.take()]


def test_held_room_lets_the_later_connection_take_over(broken_file):
    """Two connections of one member wait with their joins: the later one wins, whichever thread looks first afterwards."""
    bench, ann, bob, file = broken_file
    file.broken = "the disk is full"
    bob.say("one")
    first, second = BenchMember(bench, "ann"), BenchMember(bench, "ann")
    for one in first, second:
        one.connection.received(json.dumps({"type": "join", "name": "ann", "session": ann.welcome["session"], "seen": ann.seen,
                                            "epoch": ann.welcome["epoch"]}).encode() + b"\n")
        one.connection.release()
    file.broken = ""
    bench.room.flush()
    for one in second, first:
        one.connection.release()
    bench.settle()
    assert first.is_over and not second.is_over and second.texts() == ["one"]


def wait_for_line(server, words):
    """Wait until the server has said that on stderr; return the line."""
    deadline, tick = time.monotonic() + TIMEOUT, threading.Event()
    while True:
        lines = [line for line in server.stderr_text().splitlines() if words in line]
        if lines:
            return lines[0]
        assert time.monotonic() < deadline, f"no {words!r} in {server.stderr_text()}"
        tick.wait(0.02)


def held_and_mended(server, break_it, words, mend_it):
    """The disk fails under two members: what was said then is not acknowledged; it is, once, when the disk is mended."""
    ann, bob = RawClient(server.port, auto_ack=True), RawClient(server.port, auto_ack=True)
    ann.join("ann"), bob.join("bob")
    ann.recv_until("joined", name="bob")
    break_it()
    ids = [ann.say("x" * 2000 + str(number)) for number in range(20)]
    wait_for_line(server, words)
    mend_it()
    ann.recv_until("ack", id=ids[-1])
    acked = [frame["id"] for frame in ann.frames if frame["type"] == "ack"]
    assert acked == sorted(acked)
    texts = [bob.recv_until("chat")["text"] for _ in ids]
    assert texts == ["x" * 2000 + str(number) for number in range(20)]
    wait_for_line(server, "can be written again")
    said = server.stderr_text().splitlines()
    assert len([line for line in said if "nothing is acknowledged" in line]) == 1, said
    ann.close(), bob.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit of another process can be set on Linux only")
def test_disk_full(path, serve):
    """A file that may not grow any more (RLIMIT_FSIZE): held, and mended by more room."""
    import resource
    server = serve("--history", path)
    pid, limit = server.process.pid, resource.getrlimit(resource.RLIMIT_FSIZE)
    size = os.path.getsize(path + "-wal")
    held_and_mended(server, lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + 10_000, limit[1])), "disk",
                    lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, limit))


@pytest.mark.skipif(os.name == "nt", reason="Windows does not let go of an open file")
@pytest.mark.parametrize("which", ["", "-wal"])
def test_file_moved_away(path, serve, which):
    """A file that is no longer where it was: held, and mended by putting it back."""
    server = serve("--history", path)
    held_and_mended(server, lambda: os.rename(path + which, path + ".away"), "was deleted, moved or replaced",
                    lambda: os.rename(path + ".away", path + which))


@pytest.mark.skipif(os.name == "nt", reason="Windows does not let go of an open file")
def test_held_server_still_ends(path, serve):
    """A server that cannot write its file ends when it is told to, and what it did not acknowledge is not in the file."""
    server = serve("--history", path)
    ann = RawClient(server.port)
    ann.join("ann")
    os.rename(path, path + ".away")
    ann.say("never acknowledged")
    wait_for_line(server, "was deleted, moved or replaced")
    started = time.monotonic()
    assert server.stop() == 0 and time.monotonic() - started < 5
    assert "never acknowledged" not in str(ann.frames)
    os.rename(path + ".away", path)
    after = serve("--history", path)
    _, welcome = resume(after, ann)
    assert welcome["resumed"] and welcome["got"] == 0


def test_slow_disk_is_said_once(path, caplog, monkeypatch):
    """Commits that take long: a line in the log, and everything is acknowledged, many messages to a commit."""
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
    """kill -9 of the real server with a member connected: it resumes, nothing is lost, nothing comes twice."""
    server = serve("--history", path)
    ann = RawClient(server.port, auto_ack=True)
    ann.join("ann")
    ids = [ann.say(f"{number}") for number in range(10)]
    ann.recv_until("ack", id=ids[-1])
    server.kill()
    after = serve("--history", path)
    again, welcome = resume(after, ann, seen=0)
    assert welcome["resumed"] and welcome["got"] == ids[-1] and welcome["name"] == "ann" and welcome["missed"] == 0
    again.send({"type": "chat", "id": ids[-1], "text": "9"})
    again.next_id = ids[-1] + 1
    again.say("last")
    assert [again.recv_until("chat")["text"] for _ in range(11)] == [*map(str, range(10)), "last"]


def test_campaign(tmp_path, impatient):  # noqa: F811
    """A short campaign (campaign.py): four kills under load over connections that break."""
    violations, figures = campaign.run(4, 20090817, tmp_path, speakers=2, listeners=2, most=150)
    assert violations == [] and figures["acknowledged"] > 100, figures


# --- Older messages, and the export ---

@pytest.mark.parametrize("history", [True, False])
def test_older_messages(path, serve, history):
    """`history` brings older messages in pieces, newest first asked, oldest first sent; private ones only to their two."""
    server = serve("--rate", "0", *(["--history", path] if history else []))
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
            assert answer["about"] == client.next_id - 1 and "id" not in answer and len(answer["entries"]) <= 25
            texts[client] = [chat["text"] for chat in answer["entries"]] + texts[client]
            assert client.recv_until("ack")["id"] >= answer["about"]
    assert texts[bob] == [*map(str, range(60)), "psst"] and texts[eve] == [*map(str, range(60))]


def test_older_messages_fit_on_a_line(serve):
    """However long the messages are, the answer is a frame, and the next one goes on where it ends."""
    server = serve("--rate", "0")
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


def test_older_messages_in_the_client():
    """recall() asks before the oldest it knows, on to the end; a server that knows no `history` is found out by its ACK."""
    bench = Bench()
    ann = bench.member("ann")
    for number in range(50):
        ann.say(f"{number}")
        ann.take()
    answers = []
    line = Line(bench, "bob", on_recalled=answers.append)
    line.open()
    for count in 20, 20, 5:
        line.session.recall(count)
        line.carry()
    assert [[chat.text for chat in answer.entries] for answer in answers] == [
        [str(number) for number in range(10, 30)], [str(number) for number in range(10)], []]
    lines = [text for entry in Formatter(line.session, Theme(0)).older(answers[1]) for text in entry.plain()]
    assert lines[0] == "-- older --" and lines[-1] == "-- now --" and lines[2].endswith(" ann: 0")


@pytest.mark.parametrize("got", [1, 2])
def test_older_messages_of_an_old_server(got):
    """An ACK without an answer: the server keeps nothing. A connection that breaks in between: asked again, under a new id,
    and the ACK of the old one proves nothing (simulation.py, seed 7321)."""
    bench, answers = Bench(), []
    written = []
    session = ClientSession("ann", bench.alarm, on_recalled=answers.append)
    session.opened(written.append)
    welcome = b'{"type":"welcome","name":"ann","session":"s","epoch":"e","users":["ann"],"last":1,"resumed":%s,"got":%d}\n'
    session.received(welcome % (b"false", 0))
    session.recall(5)
    session.received(b'{"type":"ack","id":1}\n')
    assert answers == [None]
    session.recall(6)
    session.closed()
    session.opened(written.append)
    del written[:]
    session.received(welcome % (b"true", got))
    session.received(b'{"type":"ack","id":2}\n')
    assert json.loads(written[-1]) == {"type": "history", "id": 3, "count": 6} and answers == [None]


def test_export(path, tmp_path, capsys):
    """--export writes what was said in public, as JSON lines or as text; also of a server that was killed."""
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
        assert [json.loads(line)["type"] for line in file] == ["joined", "joined", "chat", "renamed"]
    assert chat_server.main(["--export", "-", path]) == 0
    assert capsys.readouterr().out.count("\n") == 4
    assert chat_server.main(["--export", path, path]) == chat_server.main(["--export", "-", path + "x"]) == 1
    assert "cannot be exported into itself" in (said := capsys.readouterr().err) and "there is no such file" in said
