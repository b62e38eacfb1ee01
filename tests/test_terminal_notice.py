"""How a user who looks elsewhere is called, what is kept from one run to the next, and what is
asked before leaving."""

import json
import os
import sys

import pytest

import chat_client
from chat_client import Settings, settings_path
from chatproto import Ack, Joined, Welcome
from display import NOON, chat
from paper import WELCOME

AWAY, BACK = "\x1b[O", "\x1b[I"


def test_title_counts_what_is_unread(desk):
    """While the terminal has no focus the title says how many messages came; with the focus it is
    the title of before."""
    ann = desk()
    ann.connect(WELCOME, chat("1", id=1))
    assert ann.shown.titles == []
    ann.type(AWAY)
    ann.hear(chat("2", id=2), Joined(3, "eve", NOON), chat("mine", "ann", 4))
    ann.hear(chat("5", id=5))
    assert ann.shown.titles == ["(1) Roger, host", "(2) Roger, host"]
    ann.type(BACK)
    ann.hear(chat("6", id=6))
    assert len(ann.shown.titles) == 2 and not ann.shown.unknown


@pytest.mark.parametrize("bell, rings, notices", [
    (None, 2, ["bob: hi ann", "bob: psst"]), ("all", 3, ["bob: hi ann", "bob: psst"]),
    ("off", 0, [])])
def test_notice(desk, bell, rings, notices):
    """A mention rings, and while the terminal has no focus it is a notification as well."""
    ann = desk(bell=bell)
    ann.connect()
    for focus, count in ((AWAY, 1), (BACK, 0)):
        ann.shown.reset_counters()
        ann.shown.notices.clear()
        ann.type(focus)
        for number, fields in enumerate([{}, {}, {"to": "ann"}]):
            ann.hear(chat(("x", "hi ann", "psst")[number], id=10 * count + number + 1, **fields)
                     if count else chat(("x", "hi ann", "psst")[number], id=20 + number, **fields))
        assert ann.shown.bells == rings and ann.shown.notices == notices * count


def test_chosen_last(desk):
    """/bell holds also where the command line said something else."""
    ann = desk(bell="off")
    ann.connect()
    ann.type("/bell all\r")
    ann.hear(chat("x", id=1))
    assert ann.shown.bells == 1


def test_notice_is_safe(desk):
    """Nothing that a peer says ends the sequence that carries it."""
    ann = desk()
    ann.connect()
    ann.type(AWAY)
    ann.hear(chat("ann\x07".replace("\x07", "") + "\n\u202e" + "x" * 500, "e\x1b\\\x07", 1))
    assert len(ann.shown.notices) == 1 and "\\x1b" in ann.shown.notices[0]
    assert not ann.shown.unknown and len(ann.shown.notices[0]) < 200


# --- Kept settings ---

def test_settings_are_kept(desk, tmp_path):
    """What was chosen holds in the next run."""
    path = str(tmp_path / "roger" / "client.json")
    ann = desk(config=path)
    ann.connect()
    ann.type("/quiet\r", "/timestamp\r", "/ignore B\u00d6B\r", "/bell all\r")
    kept = Settings(path)
    assert (kept.quiet, kept.timestamps, kept.bell, kept.ignored, kept.trouble) == (
        True, False, "all", {"b\u00f6b"}, "")
    assert os.listdir(tmp_path / "roger") == ["client.json"]
    again = desk(config=path)
    again.connect()
    again.hear(Joined(1, "eve", NOON), chat("hi", "b\u00f6b", 2), chat("ho", "ben", 3))
    assert again.shown.line(7) == "ben: ho" and again.shown.bells == 1
    assert not any("eve" in row for row in again.rows())


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", "[" * 100_000, '{"version":"1"}', "{}", "\x00" * 99, '{"version":true}'])
def test_settings_damaged(desk, tmp_path, text):
    """A damaged file is told in one line, in the status as well until a key is pressed, and
    replaced by the next choice."""
    path = tmp_path / "client.json"
    path.write_text(text, encoding="utf-8")
    ann = desk(10, 200, config=str(path))
    ann.connect()
    assert f"! the settings in {path} are damaged: not used" in ann.rows()
    ann.hear(*[chat(f"{number}", id=number) for number in range(1, 21)])
    assert "are damaged: not used | ann" in ann.status
    ann.type("/quiet\r")
    assert "damaged" not in ann.status
    assert Settings(str(path)).quiet and Settings(str(path)).trouble == ""


def test_settings_of_wrong_kinds(tmp_path):
    """Each value that is none is left out, the others hold."""
    path = tmp_path / "client.json"
    path.write_text('{"version":1,"quiet":1,"timestamps":false,"bell":"loud","ignored":[1,"Bob"],'
                    '"more":{}}', encoding="utf-8")
    kept = Settings(str(path))
    assert (kept.quiet, kept.timestamps) == (False, False)
    assert (kept.bell, kept.ignored) == ("mentions", {"bob"})


def test_settings_of_a_newer_version(desk, tmp_path):
    """What is understood holds, and the file stays as it is."""
    path = tmp_path / "client.json"
    path.write_text('{"version":2,"quiet":true,"new":[1]}', encoding="utf-8")
    ann = desk(config=str(path))
    ann.connect()
    ann.type("/timestamp\r")
    assert "! the settings are of a newer version: not changed" in ann.rows()
    assert ann.window.settings.quiet and json.loads(path.read_text(encoding="utf-8"))["new"] == [1]


def test_settings_that_cannot_be_written(desk, tmp_path):
    """It is told once, and the choice holds for this run."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    ann = desk(config=str(tmp_path / "file" / "client.json"))
    ann.connect()
    ann.type("/quiet\r", "/quiet\r", "/quiet\r")
    assert sum("settings" in row for row in ann.rows()) <= 2 and ann.window.settings.quiet


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="its folder is another")
def test_settings_path(monkeypatch, tmp_path):
    """The folder is the platform's; --no-config names none."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert settings_path() == str(tmp_path / "roger" / "client.json")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/ann")
    assert settings_path() == "/home/ann/.config/roger/client.json"
    assert chat_client._arguments(["--no-config"]).config is None
    assert chat_client._arguments([]).config == settings_path()


# --- Leaving ---

def test_ctrl_c_asks_once(desk):
    """On an empty line Ctrl-C asks; again, it leaves. Who types on does not leave."""
    ann = desk()
    ann.connect()
    ann.type("\x03")
    assert "Ctrl-C, again to leave" in ann.status and ann.window._over is None
    ann.type("x")
    assert "again" not in ann.status
    ann.type("\x03", "\x03")
    assert "again" in ann.status and ann.window._over is None
    ann.escape()
    ann.type("\x03")
    assert ann.window._over is None
    ann.type("\x03")
    assert ann.window._over == 130


@pytest.mark.parametrize("leave, code", [("\x04", 0), ("/quit\r", 0), ("\x03", 130)])
def test_leaving_with_something_unsent(desk, leave, code):
    """Whatever leaves says once how much is unsent; another line is no leave."""
    ann = desk()
    ann.connect()
    ann.type("one\r", "two\r", leave)
    assert "2 messages are not sent yet, again to leave" in ann.status and ann.window._over is None
    ann.type("three\r")
    assert "again" not in ann.status
    ann.type(leave)
    assert "3 messages are not sent yet" in ann.status and ann.window._over is None
    ann.type(leave)
    assert ann.window._over == code


def test_leaving_with_nothing_unsent(desk):
    """Ctrl-D and /quit leave at once where all was sent."""
    for leave in ("\x04", "/quit\r"):
        ann = desk()
        ann.connect()
        ann.type("one\r")
        ann.hear(Ack(1))
        ann.type(leave)
        assert ann.window._over == 0


# --- Pastes that nothing marks ---

def test_paste_without_brackets(desk):
    """Several lines in one read are a paste: nothing is sent, no command runs, a Tab is a Tab."""
    ann = desk()
    ann.connect()
    ann.type("one\tb\r/names\rthree\r")
    assert ann.said() == [] and ann.typed == "one\tb\n/names\nthree"
    ann.type("\r")
    assert ann.said() == [("one\tb\n/names\nthree", None)]


def test_paste_without_brackets_asks(desk):
    """More than five lines ask, as a paste does."""
    ann = desk()
    ann.connect()
    ann.type("\r".join("1234567") + "\r")
    assert "paste 7 lines as one message?" in ann.status and ann.said() == []
    ann.type("y", "\r")
    assert ann.said() == [("1\n2\n3\n4\n5\n6\n7", None)]


def test_what_was_left_on_does_not_send(desk):
    """A click of the mouse, a colour that is told, device attributes: the line stays."""
    ann = desk()
    ann.connect()
    ann.type("half")
    for data in (b"\x1b[M !!", b"\x1b[<0;1;1M", b"\x1b[?62;22c", b"\x1b]11;rgb:0/0/0\x07",
                 b"\x1b[32;1;1M", b"\x1bP>|x\x1b\\"):
        ann.type(data)
        assert ann.typed == "half" and ann.window._editor.cursor == 4 and ann.said() == []


def test_modes_are_reset_on_entry(desk):
    """Whatever was on before, mouse and keypad are off in the window, and all is off after it."""
    ann = desk()
    ann.shown.feed(b"\x1b[?1000;1002;1003;1006;1h")
    ann.window._resume()
    assert not ann.shown.modes & {1, 1000, 1002, 1003, 1006}
    ann.paper.leave()
    assert not ann.shown.modes & {1000, 1004, 1006, 2004}
    wheel = desk(mouse=True)
    wheel.window._resume()
    assert {1000, 1006} <= wheel.shown.modes


def test_mouse_wheel(desk):
    """The wheel scrolls three rows."""
    ann = desk()
    ann.connect(WELCOME, *(chat(str(number), id=number) for number in range(1, 30)))
    ann.type("\x1b[<64;1;1M", "\x1b[<64;1;1M")
    assert ann.rows()[-1] == "bob: 23"
    ann.type("\x1b[<65;1;1M")
    assert ann.rows()[-1] == "bob: 26"


def test_help_keys(desk):
    """The keys are in /help keys."""
    ann = desk(24, 100)
    ann.connect()
    ann.type("/help keys\r")
    assert any("Ctrl-R" in row for row in ann.rows()) and not any(
        row.startswith("/nick") for row in ann.rows())


def test_older_server_name(desk):
    """A welcome without a message of the day pins nothing."""
    ann = desk()
    ann.connect(Welcome("ann", "s", "e", ("ann",), 0))
    assert ann.screen.pinned == ""
