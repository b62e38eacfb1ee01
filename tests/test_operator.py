"""What the one who runs a server meets: its console's commands, the message of the day, the chat
log, and one line where it cannot start. (test_console.py: how the console's own line behaves.)"""

import datetime
import re
import signal

import pytest

from harness import RawClient, posix_only, run_python, wait_until

A_STAMP = "[2026-01-02 03:04:05] "


# --- The server's console ---

@posix_only
def test_console_commands(console, peer):
    """The operator sees who is here, speaks, boots with a reason, bans for a time and lifts the
    ban; unknown commands say so."""
    window, port = console("--grace", "0")
    window.type("/users", "/banned")
    window.expect("nobody is here")
    window.expect("nobody is banned or muted")
    ann, bob = peer(port, "ann"), peer(port, "bob")
    window.type("/users")
    window.expect(r"ann  127\.0\.0\.1")
    window.expect(r"bob  127\.0\.0\.1")
    window.type("/say hello all")
    for one in ann, bob:
        assert one.recv_until("chat")["from"] == "Server" and one.frames[-1]["text"] == "hello all"
    window.type("/boot bob spamming and more")
    window.expect("bob is out until .*; others may share its address, so only this name.*")
    assert bob.recv_until("booted")["reason"] == "spamming and more" and bob.eof()
    assert ann.recv_until("left", name="bob")["reason"] == "booted: spamming and more"
    # It is kept out for a while.
    window.type("/unban bob")
    window.expect("bob may come back")
    bob = peer(port, "bob")
    window.type("/ban bob 10m")
    window.expect("bob is banned until .*")
    assert bob.recv_until("booted")["reason"] == "banned" and bob.eof()
    refused = RawClient(port)
    refused.send({"type": "join", "name": "BOB"})
    assert refused.recv_until("error")["code"] == "banned" and refused.eof()
    refused.close()
    window.type("/banned")
    window.expect(r"bob  banned (600|59\d) s more")
    window.type("/unban bob", "/banned")
    window.expect("bob may come back")
    window.expect("nobody is banned or muted")
    # Otherwise the end waits for its ACK.
    peer(port, "bob").close()
    # This comes before the answers below.
    window.expect(r".* (left|lost): bob.*")
    window.type("/wrong", "hello", "/boot", "/boot nobody", "/ban", "/ban x 5y", "/unban nobody",
                "/say", "/motd", "")
    for answer in ("/wrong is not a command here.*", "hello is not a command here.*",
                   r"/boot NAME \[DURATION\] \[REASON\]: put somebody out .*",
                   "nobody is or was called nobody", r"/ban NAME \[DURATION\]: .*",
                   "5y is no duration.*", "nobody is not banned",
                   "a text has 1 to 8192 characters",
                   "there is no message of the day"):
        window.expect(answer)
    window.type("/private maybe", "/slow", "/slow often", "/boot bob 1", "/boot bob 2H rude",
                "/remove 0", "/remove last")
    for answer in (r"/private on\|off: .*", "/slow SECONDS: .*; 0 is off", "often is no duration.*",
                   "bob is out until .*", "bob is out until .*",
                   "there is no message 0", r"/remove ID\|last NAME\|all NAME: .*"):
        window.expect(answer)
    window.type("/help")
    assert [window.line().split()[0].rstrip(":") for _ in range(22)] == [
        "/users", "/say", "/mute", "/unmute", "/only-host", "/everyone", "/private", "/slow",
        "/files", "/remove", "/boot", "/ban", "/unban", "/banned", "/motd", "/host-name",
        "/password", "/record", "/reload", "/qr", "/help", "/quit"]
    window.type("/quit")
    window.expect("somebody is connected: /quit now ends the server")
    window.type("/quit now")
    assert ann.recv_until("chat")["text"] == "the server is closing" and ann.eof()
    assert window.end() == 0 and "Traceback" not in window.printed and "bug " not in window.printed


@posix_only
def test_console_shows_nothing_hostile(console, peer):
    """What members call themselves and what is typed cannot move the operator's cursor."""
    window, port = console()
    ann = RawClient(port)
    ann.send({"type": "join", "name": "\x1b[2Jann"})
    assert ann.recv_until("error")["code"] == "bad-name"
    ann.send({"type": "join", "name": "ann"})
    ann.recv_until("welcome")
    ann.close()
    window.type("/boot \u202ebob", "/\u202e")
    window.expect(r"nobody is or was called \\u202ebob")
    window.expect(r"/\\u202e is not a command here.*")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", window.printed)


@posix_only
def test_motd_is_read_again(console, peer, tmp_path):
    """`/motd @` and a HUP read the message of the day again; a file that is gone leaves the old
    one."""
    motd = tmp_path / "motd"
    motd.write_text("monday")
    window, port = console("--motd", str(motd))
    assert peer(port, "ann").welcome["motd"] == "monday"
    motd.write_text("tuesday\n\n")
    window.type("/motd", "/motd @")
    window.expect("monday")
    window.expect("tuesday")
    assert peer(port, "bob").welcome["motd"] == "tuesday"
    motd.write_text("wednesday")
    window.process.send_signal(signal.SIGHUP)
    window.expect(".* /reload: reloaded")
    assert peer(port, "eve").welcome["motd"] == "wednesday"
    motd.unlink()
    window.process.send_signal(signal.SIGHUP)
    window.expect(".* /reload: .*No such file.*")
    window.type("/motd @")
    window.expect(".*No such file.*")
    assert peer(port, "joe").welcome["motd"] == "wednesday"


def test_chat_log(serve, peer, tmp_path):
    """--log appends a line an event, escaped, without what is private."""
    path = tmp_path / "chat.log"
    path.write_text("before\n")
    server = serve("--log", str(path))
    ann, bob = peer(server.port, "ann"), peer(server.port, "bob")
    bob.say("hi")
    bob.say("two\nlines \u202e")
    bob.say("private", to="ann")
    bob.send({"type": "rename", "id": 4, "name": "rob"})
    bob.send({"type": "leave", "id": 5})
    ann.recv_until("left")
    wait_until(lambda: path.read_text(encoding="utf-8").endswith("(quit)\n"))
    before, *lines = path.read_text(encoding="utf-8").splitlines()
    assert before == "before"
    stamps, events = zip(*((line[:len(A_STAMP)], line[len(A_STAMP):]) for line in lines))
    assert list(events) == ["* ann joined", "* bob joined", "<bob> hi", r"<bob> two\nlines \u202e",
                            "* bob is now rob",
                            "* rob left (quit)"]
    times = [datetime.datetime.strptime(stamp, "[%Y-%m-%d %H:%M:%S] ") for stamp in stamps]
    assert times == sorted(times) and A_STAMP < stamps[0]


def test_log_on_stdout(serve, peer):
    """--log - prints the chat log after the first lines."""
    server = serve("--log", "-")
    ann = peer(server.port, "ann")
    ann.say("hi")
    assert server.printed("<ann> ") == "hi"


@pytest.mark.parametrize("arguments, said", [
    ([], "cannot listen on port"), (["--log", "/no/such/folder/log"], "/no/such/folder/log"),
    (["--motd", "/no/such/motd"], "/no/such/motd"),
    (["--bind", "192.0.2.1"], "cannot listen on port"),
])
def test_server_that_cannot_start_is_one_line(serve, arguments, said):
    """A port in use, an address that is not ours, a file that is not there: exit code 1, one line,
    no traceback."""
    port = "0" if arguments else str(serve().port)
    done = run_python("chat_server.py", port, *(arguments or ["--bind", "127.0.0.1"]))
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1 and said in done.stderr, done.stderr


@pytest.mark.parametrize("arguments",
                         [["-1"], ["65536"], ["http"], ["--rate", "-1"], ["--grace", "nan"],
                          ["--wrong"], ["1", "2"],
                          ["--max-members", "x"]])
def test_server_wrong_usage(arguments):
    """A wrong port or option of the server: exit code 2, and one line that says what."""
    done = run_python("chat_server.py", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("chat_server: ") and len(done.stderr.splitlines()) == 1
