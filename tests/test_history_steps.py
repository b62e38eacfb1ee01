"""The history file by itself, on HistoryFile: commits are whole, steps are bounded, and what cannot
be written or takes long is said. (test_history.py has the server with such a file.)"""

import os
import sys
import tempfile
import threading

import pytest

import chat_server
from chat_client import ChatClient
from chat_server import HistoryError, HistoryFile
from harness import TIMEOUT
from test_history_file import chat, refusal, session


@pytest.fixture
def path(tmp_path):
    """Where a history file may be made."""
    return str(tmp_path / "chat.db")


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
    for name, value, most in ("WINDOW", 7, 7), ("WINDOW_BYTES", 3000, 30):
        with monkeypatch.context() as patch:
            patch.setattr(chat_server, name, value)
            heard, place, pieces = [], 0, 0
            while place < 3000:
                piece, place = file.after(place, 3000, 5)
                assert len(piece) <= most
                heard += [entry.id for entry in piece]
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


def test_slow_disk_is_said_once(path, caplog, monkeypatch):
    """Commits that take long: a line in the log, and everything is acknowledged, many messages to a
    commit."""
    monkeypatch.setattr(chat_server, "SLOW_COMMIT", 0.05)

    # The disk is at work until all has been said, however long that takes here.
    is_said = threading.Event()
    commits = []

    class SlowFile(HistoryFile):
        def save(self, *arguments):
            commits.append(1)
            if client.joined:
                assert is_said.wait(TIMEOUT)
            return super().save(*arguments) + 0.06
    file = SlowFile(path)
    server = chat_server.ChatServer("127.0.0.1", 0, chat_server.Settings(rate=0), history=file)
    client = ChatClient("127.0.0.1", server.port, "ann")
    server.start()
    client.connect(TIMEOUT)
    before = len(commits)
    said = [client.say(f"{number}") for number in range(100)]
    is_said.set()
    assert client.wait_settled(0, TIMEOUT) and all(one.state == "there" for one in said)
    assert len(commits) - before < 30
    client.close()
    server.server_close()
    assert len([line for line in caplog.messages if "the disk is slow" in line]) == 1
