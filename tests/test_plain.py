"""The plain client on a terminal (`--plain`): lines in, lines out, whole and harmless. Nothing is
echoed there, so all that a test reads was printed."""

import json
import re
import signal
import socket

from harness import client_command, posix_only

pytestmark = posix_only

CLOCK = r"\d\d:\d\d "


# --- On a terminal ---

@posix_only
def test_json_on_a_terminal_is_ascii(terminal):
    """A hostile server's control characters and bidi marks reach no terminal as they are, with
    --json either; every frame is whole."""
    text = "\u009b31m \u202e \x7f é"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        window = terminal(*client_command(listening.getsockname()[1], "--json"))
        there, _ = listening.accept()
        with there:
            for fields in ({"type": "welcome", "name": "ann", "session": "s", "epoch": "e",
                            "users": ["ann", text], "last": 0},
                           {"type": "joined", "id": 1, "name": text, "at": 1}):
                there.sendall(json.dumps(fields, ensure_ascii=False).encode() + b"\n")
                line = window.expect(r"\{.*\}")
                assert line.isascii() and "\x7f" not in line
                assert json.loads(line) == fields


@posix_only
def test_terminal_talks_and_leaves(serve, peer, chat):
    """Lines go out, what others say comes in with their name, and Ctrl-D leaves with exit code
    0."""
    server = serve()
    bob = peer(server.port, "bob")
    ann = chat(server.port)
    bob.recv_until("joined", name="ann")
    ann.type("hello", "", "  ")
    assert bob.recv_until("chat")["text"] == "hello"
    bob.say("hi ann")
    ann.expect(CLOCK + "ann: hello")
    ann.expect(CLOCK + "bob: hi ann")
    eve = peer(server.port, "eve")
    # The bell of what was said before it.
    ann.expect("\x07" + r"\* eve joined \(3 here\)")
    eve.send({"type": "leave", "id": 1})
    ann.expect(r"\* eve left \(quit\)")
    ann.press(b"\x04")
    assert ann.end() == 0
    assert bob.recv_until("left", name="ann")["reason"] == "quit"
    assert [frame["text"] for frame in bob.frames if frame["type"] == "chat"] == ["hello", "hi ann"]
    assert "\x1b" not in ann.printed


@posix_only
def test_terminal_commands(serve, peer, chat):
    """Each command does what /help says of it, and an unknown one goes nowhere."""
    server = serve()
    bob = peer(server.port, "bob")
    ann = chat(server.port)
    ann.type("/nick anna")
    ann.expect(r"\* ann is now anna")
    ann.type("/me waves")
    ann.expect(r"\* anna waves")
    ann.type("/msg bob a secret")
    ann.expect(CLOCK + "anna -> bob: a secret")
    assert bob.recv_until("chat", to="bob")["text"] == "a secret"
    ann.type("/reply nobody yet")
    ann.expect("! nobody has written to you privately")
    bob.say("psst", to="anna")
    ann.expect(CLOCK + "bob -> anna: psst")
    ann.type("/r what?")
    ann.expect("\x07" + CLOCK + r"anna -> bob: what\?")
    ann.type("/w nobody hello")
    ann.expect("! refused: nobody here is called nobody")
    for names in "/names", "/users":
        ann.type(names)
        ann.expect(r"\* 2 here: bob, anna")
    ann.type("//names", "///")
    assert bob.recv_until("chat", text="/names") and bob.recv_until("chat", text="//")
    ann.expect(CLOCK + "ann.?: //")
    ann.type("/wrong", "/", "/Nic x", "/msg", "/msg bob", "/nick", "/nick a b", "/motd")
    ann.expect(r"! /wrong is not a command, /help lists them \(to say it, begin with //\)")
    ann.expect("! / is not a command.*")
    ann.expect("! /Nic is not a command.*")
    ann.expect(r"! /msg NAME TEXT \(/w\): say something to one")
    ann.expect(r"! /msg NAME TEXT \(/w\): say something to one")
    ann.expect("! a name has 1 to 24 characters")
    ann.expect("! a name is made of letters, digits and _ - .")
    ann.expect(r"\* there is no message of the day")
    ann.type("/help")
    listed = [ann.line().split()[0].rstrip(":") for _ in range(22)]
    assert listed == ["/nick", "/me", "/msg", "/reply", "/names", "/people", "/history", "/search",
                      "/urls", "/send", "/files", "/get", "/ignore", "/unignore", "/quiet",
                      "/timestamp",
                      "/bell", "/motd",
                      "/clear", "/help", "/quit", "//TEXT"]
    ann.type("  /not a command", "the end")
    bob.recv_until("chat", text="the end")
    ann.type("/quit", "never said")
    # It is 1, as one of the whispers was refused.
    assert ann.end() == 1
    assert ann.printed.endswith(
        "\nchat_client: not delivered: hello (nobody here is called nobody)\n")
    bob.recv_until("left", name="anna")
    assert [frame["text"] for frame in bob.frames if frame["type"] == "chat"] == [
        "/me waves", "a secret", "psst", "what?", "/names", "//", "  /not a command", "the end"]


@posix_only
def test_terminal_ignore_quiet_and_timestamp(serve, peer, chat):
    """/ignore hides what one says, /quiet who comes and goes, /timestamp the times; each can be
    taken back."""
    server = serve()
    bob = peer(server.port, "bob")
    ann = chat(server.port)
    ann.type("/ignore BOB", "/quiet", "/timestamp", "/ignore", "now")
    ann.expect(r"\* ignored: bob")
    ann.expect(r"\* joins and leaves are hidden")
    ann.expect(r"\* times are hidden")
    ann.expect(r"\* ignored: bob")
    ann.expect("ann: now")
    bob.say("hidden")
    bob.say("hidden as well", to="ann")
    bob.recv_until("chat", text="hidden as well")
    peer(server.port, "eve").say("shown")
    assert ann.line() == "eve: shown"
    ann.type("/unignore Bob", "/quiet", "/timestamp")
    ann.expect(r"\* ignored: nobody")
    ann.expect(r"\* joins and leaves are shown")
    ann.expect(r"\* times are shown")
    bob.say("seen")
    ann.expect(CLOCK + "bob: seen")
    peer(server.port, "joe")
    ann.expect(r"\* joe joined \(4 here\)")


@posix_only
def test_terminal_shows_motd_and_marks_history(serve, peer, chat, tmp_path):
    """On joining: the message of the day, who one is, and what was said before, marked as that."""
    (tmp_path / "motd").write_text("welcome\n\x1b[31mall\u202e\n", encoding="utf-8")
    server = serve("--motd", str(tmp_path / "motd"))
    bob = peer(server.port, "bob")
    bob.say("of old")
    bob.recv_until("chat", text="of old")
    ann = chat(server.port)
    assert ann.printed.splitlines() == ["* welcome", "* all\\u202e",
                                        "* you are ann, 2 here; /help lists the commands"]
    assert ann.line() == "-- said before you came --"
    assert re.fullmatch(CLOCK + "bob: of old", ann.line())
    bob.say("new")
    assert ann.line() == "-- now --"
    assert re.fullmatch(CLOCK + "bob: new", ann.line())
    ann.type("/motd")
    assert [ann.line(), ann.line()] == ["* welcome", "* all\\u202e"]


@posix_only
def test_terminal_lines_are_whole(serve, peer, chat):
    """What commands answer and what others say at the same time does not mix within a line."""
    server = serve()
    bob = peer(server.port, "bob")
    ann = chat(server.port)
    for _ in range(20):
        for _ in range(50):
            bob.say("hi")
        ann.type(*["/wrong"] * 50)
        for _ in range(100):
            assert re.fullmatch(CLOCK + "bob: hi|! /wrong is not a command.*\\)", ann.line())


@posix_only
def test_terminal_is_safe_from_what_peers_say(serve, peer, chat):
    """A second line is indented, and what moves, hides or reorders text is shown escaped."""
    server = serve()
    bob = peer(server.port, "bob")
    ann = chat(server.port)
    bob.say("first\n12:00 eve: forged\n* eve left\ttab\n\nlast")
    ann.expect(CLOCK + "bob: first")
    assert [ann.line() for _ in range(4)] == ["      12:00 eve: forged", "      * eve left    tab",
                                              "      ", "      last"]
    bob.say("\u202egnp.exe \u2066 \u200b \ufeff \u2028 \u0301 e\u0301 \U0001f469\u200d\U0001f4bb")
    ann.expect(CLOCK + r"bob: \\u202egnp\.exe \\u2066 \\u200b \\ufeff \\u2028 "
               "\u0301 e\u0301 \U0001f469\u200d\U0001f4bb")


@posix_only
def test_terminal_is_safe_from_a_hostile_server(chat, terminal):
    """Escape sequences, carriage returns and bidi controls in every field that a server can send
    are shown escaped."""
    evil = "\x1b[2J\r\u202e\x07\x9b"
    frames = [{"type": "welcome", "name": evil[:20], "session": "s", "epoch": "e",
               "users": [evil, "ann"], "last": 0},
              {"type": "joined", "id": 1, "name": evil + "x", "at": 2**53 - 1},
              {"type": "renamed", "id": 2, "name": evil, "to": evil, "at": 1 - 2**53},
              {"type": "chat", "id": 3, "from": evil, "text": "hi \u202e", "at": 0, "to": evil},
              # This is no valid text, and is not shown.
              {"type": "chat", "id": 4, "from": evil, "text": evil, "at": 0},
              {"type": "error", "id": 5, "code": evil, "text": evil},
              {"type": "left", "id": 6, "name": evil + "x", "at": 0, "reason": evil},
              {"type": "booted", "id": 7, "reason": evil}]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        window = terminal(*client_command(listener.getsockname()[1], "--plain", name="ann"))
        with listener.accept()[0] as sock:
            sock.sendall(b"".join(json.dumps(frame).encode() + b"\n" for frame in frames))
            window.expect(".* joined.*")
            window.expect(r"\* .* is now .*")
            window.expect(r".*hi \\u202e")
            window.expect("! .*")
            window.expect(".* left .*")
            window.expect(r"\* you were booted: .*")
            assert window.end() == 1
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", window.printed)
    assert "\\x1b[2J\\r\\u202e\\x07\\x9b" in window.printed


@posix_only
def test_terminal_booted_says_why(console, chat):
    """Who is booted hears from whom it was, why, and ends with exit code 1."""
    window, port = console()
    ann = chat(port)
    window.type("/boot ann spamming\u0021")
    ann.expect(r"\* you were booted: spamming!")
    assert ann.end() == 1


@posix_only
def test_terminal_comes_back_when_the_server_does(serve, chat):
    """The server goes and comes back: the client says so, and what was typed in between is said
    then."""
    server = serve()
    ann = chat(server.port)
    server.kill()
    ann.expect(r"! disconnected \(.*\), trying again in \d+ s; what you say is sent then")
    ann.type("typed meanwhile")
    serve(port=server.port)
    ann.expect(r"\* connected again")
    ann.expect(CLOCK + "ann: typed meanwhile")
    ann.type("/quit")
    assert ann.end() == 0


@posix_only
def test_terminal_interrupt_is_130(serve, chat):
    """Ctrl-C on a terminal: exit code 130 and no traceback."""
    ann = chat(serve().port)
    ann.process.send_signal(signal.SIGINT)
    assert ann.end() == 130 and "Traceback" not in ann.printed


