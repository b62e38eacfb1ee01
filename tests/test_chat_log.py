"""The chat log: no disk and no text keeps the room waiting, and what is missing is said."""

import errno
import io
import threading

import pytest

import chat_server
from harness import TIMEOUT, wait_until

ALL = 1_000_000         # bytes: more than any line has


class Disk(io.FileIO):
    """A file of which each write takes so many bytes as `script` says next; ALL when it ends."""

    script = iter(())
    asked = threading.Event()
    answer = threading.Event()

    def write(self, data):
        Disk.asked.set()
        assert Disk.answer.wait(TIMEOUT)
        room = next(Disk.script, ALL)
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(bytes(data)[:room])


@pytest.fixture
def disk(monkeypatch):
    """The disk that logs are written to; its writes wait until `disk.answer` is set."""
    for name, value in (("script", iter(())), ("asked", threading.Event()),
                        ("answer", threading.Event())):
        monkeypatch.setattr(Disk, name, value)
    monkeypatch.setattr(chat_server.io, "FileIO", Disk)
    yield Disk
    Disk.answer.set()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "chat.log"


@pytest.fixture
def make(path):
    """Make chat logs; each is closed at the end."""
    logs = []

    def make():
        logs.append(chat_server.ChatLog(str(path), chat_server.OperatorLine()))
        return logs[-1]
    yield make
    for log in logs:
        log.close()


def events(path):
    """The lines without their times."""
    return [line.partition("] ")[2] if line.startswith("[") and "] " in line else line
            for line in path.read_text(encoding="utf-8").split("\n")]


def test_chat_log_writes_what_waits_before_it_ends(make, path):
    """close() returns when all is in the file; what comes later is not."""
    path.write_text("before\n")
    log = make()
    for number in range(1_000):
        log.write(f"line {number}\n\x1b[2J\u65e5")
    log.close()
    log.close()
    log.write("too late")
    lines = [f"line {number}\\n\\x1b[2J\u65e5" for number in range(1_000)]
    assert events(path) == ["before", *lines, ""]


@pytest.mark.parametrize("script, torn, missing", [
    ([ALL, 0, 0, ALL], None, 2), ([ALL, 10, 0, 0, ALL], "[", 2),
    ([ALL, 24, 0, 0, 0, ALL], "lo", 3), ([ALL, 0], None, 1)])
def test_chat_log_goes_on_after_a_full_disk(make, path, disk, script, torn, missing, caplog):
    """Whatever came of a line, the next begins a line, and says how many are missing."""
    disk.script = iter(script)
    log = make()
    log.write("first")
    for number in range(missing):
        log.write(f"lost {number}")
    log.write("last")
    disk.answer.set()
    log.close()
    lines = events(path)
    if torn is not None:
        assert lines.pop(1).startswith(torn)
    assert lines == ["first", f"* lines missing here: {missing}", "last", ""]
    assert caplog.text.count("cannot be written") == caplog.text.count("goes on") == 1


def test_chat_log_full_disk_to_the_end(make, path, disk, caplog):
    """What is missing when the log ends is said on stderr."""
    disk.script = iter([0] * 10)
    disk.answer.set()
    log = make()
    log.write("lost")
    log.write("lost")
    log.close()
    assert path.read_text() == "" and "the chat log ends; lines missing: 2" in caplog.text


def test_chat_log_slow_disk_drops_lines_and_counts_them(make, path, disk, monkeypatch):
    """A disk that hangs keeps nobody waiting; the file says where lines are missing."""
    monkeypatch.setattr(chat_server.ChatLog, "WAITING", 1_000)
    log = make()
    log.write("first")
    assert disk.asked.wait(TIMEOUT)
    for number in range(100):
        log.write("waits or not" if number < 99 else "x" * 8_000)
    took = 100 - log._dropped
    assert 5 < took < 20
    disk.answer.set()
    log.close()
    assert events(path) == ["first", *["waits or not"] * took, ""]

    log = make()
    log._dropped = 7
    log.write("after")
    log.close()
    assert events(path)[-3:] == ["* lines missing here: 7", "after", ""]


def test_chat_log_rotated(make, path, tmp_path):
    """What comes after the file was renamed goes to a new one of its name, nothing is lost."""
    log = make()
    log.write("old")
    wait_until(lambda: "old" in path.read_text())
    path.rename(tmp_path / "chat.log.1")
    said = []

    def is_there():
        said.append(f"new {len(said)}")
        log.write(said[-1])
        return path.exists()
    wait_until(is_there)
    log.close()
    assert events(tmp_path / "chat.log.1")[:-1] + events(path) == ["old", *said, ""]
    assert events(path)[-2] == said[-1]
