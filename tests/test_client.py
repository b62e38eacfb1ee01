"""The client in a pipe, as scripts use it: what arrives, what is printed, which exit code, and that
mistakes are one line."""

import json
import os
import re
import signal
import socket
import subprocess
import threading

import pytest

from chat_client import UNSENT_BYTES
from chatproto import MAX_TEXT
from harness import (ENVIRONMENT, ROOT, TIMEOUT, RawClient, client_command, heed_interrupts,
                     posix_only, run_client, run_python, start_server)

CLOCK = r"\d\d:\d\d "


@pytest.fixture
def listener(server):
    """A member that hears what a test's clients say, and that they leave; gone before the next
    test."""
    with RawClient(server.port, auto_ack=True) as bob:
        bob.join("bob")
        bob.port = server.port
        yield bob
        bob.send({"type": "leave", "id": bob.next_id})
        assert bob.eof()


def texts_of_visit(listener):
    """All that `listener` hears from when the next one joins until that one has left."""
    listener.recv_until("joined", name="pipe")
    before = len(listener.frames)
    listener.recv_until("left", name="pipe")
    return [frame["text"] for frame in listener.frames[before:] if frame["type"] == "chat"]


# --- In a pipe ---

def test_pipe_of_5000_lines_arrives_whole_in_order_once(serve, peer):
    """Exit code 0 means that all of it is there: 5,000 lines, in their order, each once."""
    server = serve()
    bob = peer(server.port, "bob")
    lines = [f"line {number}" for number in range(5_000)]
    done = []
    thread = threading.Thread(
        target=lambda: done.append(run_client(server.port, input="\n".join(lines).encode())),
        daemon=True)
    thread.start()
    assert bob.texts_until(lines[-1]) == lines
    assert bob.recv_until("left")["reason"] == "quit"
    thread.join(TIMEOUT)
    assert (done[0].returncode, done[0].stdout, done[0].stderr) == (0, b"", b"")
    assert [frame["text"] for frame in bob.frames if frame["type"] == "chat"] == lines


@pytest.mark.parametrize("input, texts", [
    (b"one\n\n   \n\t\ntwo\n", ["one", "two"]),
    (b"no end", ["no end"]),
    (b"windows\r\nlines\r\n", ["windows", "lines"]),
    (b"/quit\n/nick eve\n//x\n/me waves\n", ["/quit", "/nick eve", "//x", " /me waves"]),
    (b"\x1b[1;31merror:\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07 50%\rdone\x00\n", ["done"]),
    (b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n 10%\r 100%\r\n", ["one", "\ufefftwo", " 100%"]),
    (b"\x1b[2J\n\x1b[0m\nseen\n", ["seen"]),
    (b"caf\xe9 \xff\xfe\n\xed\xa0\x80\nna\xc3\xafve\n",
     ["caf\ufffd \ufffd\ufffd", "\ufffd\ufffd\ufffd", "na\u00efve"]),
    ("line\u2028separator\u0085next\n".encode(), ["line\u2028separatornext"]),
    (b"tab\there\n", ["tab\there"]),
])
def test_pipe_lines_become_messages(listener, input, texts):
    """What is in a pipe arrives as plain text: no empty lines, no commands, no colours, nothing
    that is not UTF-8."""
    done = run_client(listener.port, input=input)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert texts_of_visit(listener) == texts


def test_pipe_long_line_arrives_in_pieces(listener):
    """A line of 20,000 characters becomes as many messages as it takes, of which nothing is
    missing."""
    line = "".join(chr(ord("\u00e0") + number % 16) for number in range(20_000))
    assert run_client(listener.port, input=line.encode()).returncode == 0
    texts = texts_of_visit(listener)
    assert [len(text) for text in texts] == [MAX_TEXT, MAX_TEXT, 20_000 - 2 * MAX_TEXT]
    assert "".join(texts) == line


def test_pipe_prints_no_prompt_motd_history_or_echo(serve, peer, popen, tmp_path):
    """What a pipe prints is what others say while it runs, and nothing else."""
    (tmp_path / "motd").write_text("message of the day")
    server = serve("--motd", str(tmp_path / "motd"))
    bob = peer(server.port, "bob")
    bob.say("said before")
    process = popen(server.port)
    bob.recv_until("joined", name="pipe")
    process.stdin.write(b"mine\n")
    process.stdin.flush()
    bob.recv_until("chat", text="mine")
    bob.say("said meanwhile")
    assert re.fullmatch(CLOCK + "bob: said meanwhile\n", process.stdout.readline().decode())
    assert process.communicate(timeout=TIMEOUT) == (b"", b"")
    assert process.returncode == 0


def test_pipe_is_quiet_about_the_name_that_it_got(serve, peer):
    """A pipe whose name is taken speaks under the suggested one."""
    server = serve()
    bob = peer(server.port, "bob")
    assert run_client(server.port, input=b"hi\n", name="bob").returncode == 0
    assert bob.recv_until("chat")["from"] == "bob-2"


def unconfirmed(stderr):
    return [line.partition(": not confirmed: ")[2] for line in stderr.decode().splitlines()
            if ": not confirmed: " in line]


def test_server_killed_in_the_middle_of_a_pipe(serve, peer, popen):
    """What was not confirmed is named, one line each, and nothing that was; exit code 1, no
    traceback."""
    server = serve()
    bob = peer(server.port, "bob")
    process = popen(server.port, "--timeout", "1")
    process.stdin.write(b"".join(b"there %d\n" % number for number in range(20)))
    process.stdin.flush()
    assert len(bob.texts_until("there 19")) == 20
    server.kill()
    process.stdin.write(b"lost 1\n\nlost 2\n" + b"long " * 100 + b"\n")
    output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1 and output == b""
    named = unconfirmed(errors)
    assert len(named) == len(errors.splitlines()) and b"Traceback" not in errors
    assert named[-3:-1] == ["lost 1", "lost 2"] and named[-1].startswith("long long")
    assert len(named[-1]) <= 60
    # The server heard them, their ACK may be lost.
    assert set(named[:-3]) <= {f"there {number}" for number in range(20)}


@pytest.fixture(scope="module")
def killed_in_a_long_pipe():
    """What stderr says when the server dies before 5,000 lines come, more than a pipe sends
    ahead."""
    server = start_server("--rate", "0", "--bind", "127.0.0.1")
    with RawClient(server.port, auto_ack=True) as bob, subprocess.Popen(
            client_command(server.port, "--timeout", "1"), cwd=ROOT, env=ENVIRONMENT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        bob.join("bob")
        process.stdin.write(b"first\n")
        process.stdin.flush()
        bob.texts_until("first")
        server.assert_healthy()
        server.kill()
        server.stop()
        output, errors = process.communicate(b"".join(b"lost %d\n" % number
                                                      for number in range(5_000)), timeout=TIMEOUT)
    assert process.returncode == 1 and output == b"" and b"Traceback" not in errors
    return errors


def test_server_killed_in_a_long_pipe(killed_in_a_long_pipe):
    """What was sent ahead is named, in its order, and at the end that it gave up."""
    errors = killed_in_a_long_pipe
    named = [line for line in unconfirmed(errors) if line != "first"]
    assert len(named) >= 999 and named == [f"lost {number}" for number in range(len(named))]
    assert b"gave up" in errors.splitlines()[-1]


def test_server_killed_in_a_long_pipe_names_the_rest(killed_in_a_long_pipe):
    """The lines that were never sent are named as well, or it is said how many they are."""
    errors = killed_in_a_long_pipe
    unnamed = 5_000 - len([line for line in unconfirmed(errors) if line != "first"])
    assert unnamed == 0 or str(unnamed).encode() in errors.splitlines()[-1]


@posix_only
def test_booted_pipe_says_why(peer, popen, console):
    """Booted out of a pipe: exit code 1, and the reason is on stderr."""
    window, port = console()
    bob = peer(port, "bob")
    process = popen(port)
    bob.recv_until("joined", name="pipe")
    window.type("/boot pipe no bots here")
    window.expect("pipe is out.*")
    assert bob.recv_until("left", name="pipe")["reason"] == "booted: no bots here"
    # Its stdin is still open.
    assert process.wait(TIMEOUT) == 1
    output, errors = process.communicate()
    assert len(errors.splitlines()) == 1 and b"booted" in errors
    assert "no bots here" in (output + errors).decode()


def test_no_server_is_one_line():
    """Nobody listens there: exit code 1 and one line that says where."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = run_client(port, input=b"hi\n")
    assert done.returncode == 1 and done.stdout == b""
    assert done.stderr.startswith(b"chat_client: cannot connect to 127.0.0.1:%d: " % port)
    assert len(done.stderr.splitlines()) == 1


def test_silent_server_is_given_up():
    """Something listens there and says nothing: exit code 1 after the time-out, and one line."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = run_client(listener.getsockname()[1], "--timeout", "0.3", input=b"hi\n")
    assert done.returncode == 1 and done.stderr.endswith(b" does not answer\n")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("answer",
                         [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x16\x03\x01",
                          b'{"type":"welcome"}\n', b"\n",
                          b'{"type":"error","code":"full",'
                          b'"text":"no \\u001b[31m room\\r\\nat all"}\n'])
def test_server_that_is_none_is_one_line(answer):
    """What answers there is no Roger, or refuses: exit code 1, one line, nothing of it raw on the
    terminal."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def talk():
            sock = listener.accept()[0]
            with sock:
                sock.sendall(answer)
                sock.recv(4_096)
                sock.recv(4_096)
        threading.Thread(target=talk, daemon=True).start()
        done = run_client(listener.getsockname()[1], "--timeout", "0.3", input=b"hi\n")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(b"chat_client: ") and b"\x1b" not in done.stderr


@pytest.mark.parametrize("arguments",
                         [["127.0.0.1", "0"], ["127.0.0.1", "65536"], ["127.0.0.1", "http"],
                          ["--wrong"],
                          ["-n", "two words"], ["-n", ""], ["-n", "server"], ["--timeout", "-1"],
                          ["--timeout", "nan"], ["a", "1", "b"]])
def test_wrong_usage(arguments):
    """A wrong port, name or option: exit code 2, and one line that says what."""
    done = run_python("chat_client.py", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("chat_client: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", ["chat_client.py", "chat_server.py"])
def test_version_and_help(script):
    """--version and -h answer on stdout with exit code 0."""
    version, help = (run_python(script, option) for option in ("--version", "-h"))
    assert (version.returncode, version.stderr) == (0, "")
    assert re.fullmatch(r"Roger \d+\.\d+.*\n", version.stdout)
    assert (help.returncode, help.stderr) == (0, "") and help.stdout.startswith("usage: ")


@posix_only
def test_interrupt_is_130(serve, peer, popen):
    """Ctrl-C in a pipe that is not at its end: exit code 130, no traceback."""
    server = serve()
    bob = peer(server.port, "bob")
    process = popen(server.port, preexec_fn=heed_interrupts)
    process.stdin.write(b"hi\n")
    process.stdin.flush()
    bob.texts_until("hi")
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT) == 130
    _, errors = process.communicate(timeout=TIMEOUT)
    assert b"Traceback" not in errors and b"Fatal" not in errors and b"Exception" not in errors


def test_interrupted_as_it_comes_in(serve, peer):
    """Ctrl-C, or the signal that ends a service, in the moment after the join: it leaves all the
    same."""
    server = serve()
    bob = peer(server.port, "bob")
    done = run_python("-c", """if True:
        import sys, chat_client
        class Interrupted(chat_client.Plain):
            def _arrive(self):
                super()._arrive()
                raise KeyboardInterrupt
        chat_client.Plain = Interrupted
        sys.exit(chat_client.main(sys.argv[1:]))
        """, "--listen", "-n", "log", "127.0.0.1", server.port)
    assert (done.returncode, done.stderr) == (130, "")
    assert bob.recv_until("left", name="log")["reason"] == "quit"


@posix_only
def test_stdout_closed_early_is_harmless(serve, peer):
    """`| head -1`: when nobody reads stdout any more the rest still goes out, and stderr stays
    clean."""
    server = serve()
    bob = peer(server.port, "bob")
    ours, theirs = os.pipe()
    process = subprocess.Popen(client_command(server.port), stdin=subprocess.PIPE, stdout=theirs,
                               stderr=subprocess.PIPE, cwd=ROOT, env=ENVIRONMENT)
    os.close(theirs)
    bob.recv_until("joined", name="pipe")
    bob.say("one")
    with open(ours, "rb") as output:
        assert output.readline().endswith(b"bob: one\n")
    for number in range(5):
        bob.say(f"nobody reads {number}")
    bob.recv_until("chat", text="nobody reads 4")
    _, errors = process.communicate(b"still said\n", timeout=TIMEOUT)
    assert (process.returncode, errors) == (0, b"")
    assert bob.texts_until("still said")


@posix_only
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_harmless(listener, closed):
    """A client that is started without stdin, stdout or stderr says what there is to say, and ends
    well."""
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *client_command(listener.port)],
                          input=b"hi\n", capture_output=True, timeout=TIMEOUT, cwd=ROOT,
                          env=ENVIRONMENT)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert texts_of_visit(listener) == ([] if "<&-" in closed else ["hi"])


def test_json_prints_the_frames(serve, peer, popen):
    """--json prints each frame that comes as a line of JSON, as it came: the welcome, history, own
    messages, what is new."""
    server = serve()
    bob = peer(server.port, "bob")
    bob.say("before")
    bob.recv_until("chat", text="before")
    process = popen(server.port, "--json")
    bob.recv_until("joined", name="pipe")
    bob.say("na\u00efve \u202e text\nof two lines")
    bob.recv_until("chat", text="na\u00efve \u202e text\nof two lines")
    output, errors = process.communicate(b"mine\n", timeout=TIMEOUT)
    assert (process.returncode, errors) == (0, b"")
    frames = [json.loads(line) for line in output.decode().splitlines()]
    assert frames[0]["type"] == "welcome" and frames[0]["name"] == "pipe"
    assert "bob" in frames[0]["users"]
    chats = [frame for frame in frames if frame["type"] == "chat"]
    bob.recv_until("left")
    assert chats == [frame for frame in bob.frames if frame["type"] == "chat"] and len(chats) == 3


def test_pipe_of_long_lines_loses_none(serve, tmp_path):
    """More bytes than may wait at once make the pipe wait: every line arrives, and the exit code
    says so."""
    log = tmp_path / "chat.log"
    server = serve("--log", log)
    lines = [f"{number} " + "x" * 8_000 for number in range(1_200)]
    assert sum(map(len, lines)) > UNSENT_BYTES
    done = run_client(server.port, input="\n".join(lines).encode())
    assert done.returncode == 0 and done.stderr == b""
    said = [line.partition("> ")[2] for line in log.read_text(encoding="utf-8").splitlines()
            if "<pipe>" in line]
    assert said == lines
