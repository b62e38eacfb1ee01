"""The plain client and the server's console as a user meets them: real processes, in pipes and on pseudo-terminals.

A "Terminal" is a process on a pseudo-terminal of which nothing is echoed: so all that a test reads there was printed. A pipe is
run() or popen(). Peers are RawClients of the harness. Nothing sleeps; TIMEOUT is only reached on failure.
"""

import datetime
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import harness
from harness import ROOT, TIMEOUT, RawClient, heed_interrupts, serving, start_server

sys.path.insert(0, str(ROOT))

from chatproto import MAX_TEXT, QUEUE_BYTES  # noqa: E402

CLIENT, SERVER = str(ROOT / "chat_client.py"), str(ROOT / "chat_server.py")
ENVIRONMENT = {**os.environ, "PYTHONIOENCODING": "utf-8"}
A_STAMP = "[2026-01-02 03:04:05] "

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and terminals")


# --- Helpers ---

def wait_until(predicate, seconds=TIMEOUT):
    """Return as soon as `predicate()` is true; fail after `seconds`."""
    deadline, tick = time.monotonic() + seconds, threading.Event()
    while not predicate():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        tick.wait(0.02)


def client_arguments(port, *arguments):
    return [*harness.CLIENT, "127.0.0.1", str(port), *arguments]


def run(port, *arguments, input=b"", name="pipe"):
    """A client in a pipe, from its start to its end."""
    return subprocess.run(client_arguments(port, "-n", name, *arguments), input=input, capture_output=True, timeout=TIMEOUT,
                          cwd=ROOT, env=ENVIRONMENT)


@pytest.fixture
def popen():
    """Start clients in pipes that are talked to while they run; what is left at the end is killed."""
    processes = []

    def start(port, *arguments, name="pipe", **options):
        processes.append(subprocess.Popen(client_arguments(port, "-n", name, *arguments), cwd=ROOT, env=ENVIRONMENT, **{
            "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}))
        return processes[-1]
    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def serve():
    """Start servers; at the end each has to be well, and is stopped."""
    servers = []

    def start(*arguments, **options):
        servers.append(start_server("--rate", "0", "--bind", "127.0.0.1", *arguments, **options))
        return servers[-1]
    yield start
    for server in servers:
        server.kill()                       # faster than stop(), and who stops well is tested elsewhere
        server.stop()
        said = server.stderr_text()
        os.unlink(server._errors.name)
        assert not re.search(r"Traceback|\bbug\b", said), said


@pytest.fixture(scope="module")
def shared_server():
    """A server that several tests share."""
    with serving("--rate", "0", "--bind", "127.0.0.1") as server:
        yield server


@pytest.fixture
def listener(shared_server):
    """A member that hears what a test's clients say, and that they leave; gone before the next test."""
    with RawClient(shared_server.port, auto_ack=True) as bob:
        bob.join("bob")
        bob.port = shared_server.port
        yield bob
        bob.send({"type": "leave", "id": bob.next_id})
        assert bob.eof()


@pytest.fixture
def peer():
    """Join with raw clients; they are closed at the end."""
    peers = []

    def join(port, name, **fields):
        peers.append(RawClient(port, auto_ack=True))
        peers[-1].join(name, **fields)
        return peers[-1]
    yield join
    for one in peers:
        one.close()


def texts_until(peer, text):
    """What `peer` hears up to `text`."""
    heard = []
    while not heard or heard[-1] != text:
        heard.append(peer.recv_until("chat")["text"])
    return heard


def texts_of_visit(listener):
    """All that `listener` hears from when the next one joins until that one has left."""
    listener.recv_until("joined", name="pipe")
    before = len(listener.frames)
    listener.recv_until("left", name="pipe")
    return [frame["text"] for frame in listener.frames[before:] if frame["type"] == "chat"]


class Terminal:
    """A process on a pseudo-terminal without echo."""

    def __init__(self, *arguments):
        import pty
        import termios
        self._master, slave = pty.openpty()
        modes = termios.tcgetattr(slave)
        modes[3] &= ~termios.ECHO
        modes[1] &= ~termios.OPOST          # lines end as they were printed
        termios.tcsetattr(slave, termios.TCSANOW, modes)
        self.process = subprocess.Popen(arguments, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=ENVIRONMENT,
                                        preexec_fn=heed_interrupts)
        os.close(slave)
        self._unread = b""
        self.printed = ""                   # all of it
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._master, selectors.EVENT_READ)

    def type(self, *lines):
        os.write(self._master, "".join(line + "\n" for line in lines).encode())

    def press(self, keys):
        os.write(self._master, keys)

    def line(self):
        """The next line that is printed; None at the end."""
        deadline = time.monotonic() + TIMEOUT
        while b"\n" not in self._unread:
            if not self._selector.select(max(0, deadline - time.monotonic())):
                raise AssertionError(f"nothing more is printed after {self.printed!r}, {self._unread!r}")
            try:
                data = os.read(self._master, 65_536)
            except OSError:                 # Linux says so that the other end is closed
                data = b""
            if not data:
                return None
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        self.printed += line.decode() + "\n"
        return line.decode()

    def expect(self, pattern):
        """Read up to the next line that the pattern matches whole."""
        while True:
            line = self.line()
            assert line is not None, f"{pattern!r} was not printed before the end: {self.printed!r}"
            if re.fullmatch(pattern, line):
                return line

    def end(self):
        """Read to the end, return the exit code."""
        while self.line() is not None:
            pass
        return self.process.wait(TIMEOUT)

    def close(self):
        self.process.kill()
        self.process.wait(TIMEOUT)
        self._selector.close()
        os.close(self._master)


@pytest.fixture
def terminal():
    """Start processes on terminals; what is left at the end is killed."""
    terminals = []

    def start(*arguments):
        terminals.append(Terminal(*arguments))
        return terminals[-1]
    yield start
    for one in terminals:
        one.close()


@pytest.fixture
def chat(terminal):
    """A plain client on a terminal that is in."""
    def start(port, name="ann", *arguments):
        window = terminal(*harness.CLIENT, "127.0.0.1", str(port), "-n", name, "--plain", *arguments)
        window.expect(r"\* you are .*, \d+ here; /help lists the commands")
        return window
    return start


@pytest.fixture
def console(terminal):
    """A server on a terminal: it, and its port."""
    def start(*arguments):
        window = terminal(*harness.SERVER, "0", "--bind", "127.0.0.1", *arguments)
        port = int(window.expect(r"Listening on 127\.0\.0\.1:\d+").rpartition(":")[2])
        window.expect(r"Others join with: python chat_client\.py 127\.0\.0\.1 \d+")
        return window, port
    return start


CLOCK = r"\d\d:\d\d "


# --- In a pipe ---

def test_pipe_of_5000_lines_arrives_whole_in_order_once(serve, peer):
    """Exit code 0 means that all of it is there: 5,000 lines, in their order, each once."""
    server = serve()
    bob = peer(server.port, "bob")
    lines = [f"line {number}" for number in range(5_000)]
    done = []
    thread = threading.Thread(target=lambda: done.append(run(server.port, input="\n".join(lines).encode())), daemon=True)
    thread.start()
    assert texts_until(bob, lines[-1]) == lines
    assert bob.recv_until("left")["reason"] == "quit"
    thread.join(TIMEOUT)
    assert (done[0].returncode, done[0].stdout, done[0].stderr) == (0, b"", b"")
    assert [frame["text"] for frame in bob.frames if frame["type"] == "chat"] == lines


@pytest.mark.parametrize("input, texts", [
    (b"one\n\n   \n\t\ntwo\n", ["one", "two"]),
    (b"no end", ["no end"]),
    (b"windows\r\nlines\r\n", ["windows", "lines"]),
    (b"/quit\n/nick eve\n//x\n/me waves\n", ["/quit", "/nick eve", "//x", "/me waves"]),
    (b"\x1b[1;31merror:\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07 50%\rdone\x00\n", ["error: link 50%done"]),
    (b"\x1b[2J\n\x1b[0m\nseen\n", ["seen"]),
    (b"caf\xe9 \xff\xfe\n\xed\xa0\x80\nna\xc3\xafve\n", ["caf\ufffd \ufffd\ufffd", "\ufffd\ufffd\ufffd", "na\u00efve"]),
    ("line\u2028separator\u0085next\n".encode(), ["line\u2028separatornext"]),
    (b"tab\there\n", ["tab\there"]),
])
def test_pipe_lines_become_messages(listener, input, texts):
    """What is in a pipe arrives as plain text: no empty lines, no commands, no colours, nothing that is not UTF-8."""
    done = run(listener.port, input=input)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert texts_of_visit(listener) == texts


def test_pipe_long_line_arrives_in_pieces(listener):
    """A line of 20,000 characters becomes as many messages as it takes, of which nothing is missing."""
    line = "".join(chr(ord("\u00e0") + number % 16) for number in range(20_000))
    assert run(listener.port, input=line.encode()).returncode == 0
    texts = texts_of_visit(listener)
    assert [len(text) for text in texts] == [MAX_TEXT, MAX_TEXT, 20_000 - 2 * MAX_TEXT] and "".join(texts) == line


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
    assert run(server.port, input=b"hi\n", name="bob").returncode == 0
    assert bob.recv_until("chat")["from"] == "bob-2"


def unconfirmed(stderr):
    return [line.partition(": not confirmed: ")[2] for line in stderr.decode().splitlines() if ": not confirmed: " in line]


def test_server_killed_in_the_middle_of_a_pipe(serve, peer, popen):
    """What was not confirmed is named, one line each, and nothing that was; exit code 1, no traceback."""
    server = serve()
    bob = peer(server.port, "bob")
    process = popen(server.port, "--timeout", "1")
    process.stdin.write(b"".join(b"there %d\n" % number for number in range(20)))
    process.stdin.flush()
    assert len(texts_until(bob, "there 19")) == 20
    server.kill()
    process.stdin.write(b"lost 1\n\nlost 2\n" + b"long " * 100 + b"\n")
    output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1 and output == b""
    named = unconfirmed(errors)
    assert len(named) == len(errors.splitlines()) and b"Traceback" not in errors
    assert named[-3:-1] == ["lost 1", "lost 2"] and named[-1].startswith("long long") and len(named[-1]) <= 60
    assert set(named[:-3]) <= {f"there {number}" for number in range(20)}      # the server heard them, their ACK may be lost


@pytest.fixture(scope="module")
def killed_in_a_long_pipe():
    """What stderr says when the server dies before 5,000 lines come, more than a pipe sends ahead."""
    server = start_server("--rate", "0", "--bind", "127.0.0.1")
    with RawClient(server.port, auto_ack=True) as bob, subprocess.Popen(
            client_arguments(server.port, "-n", "pipe", "--timeout", "1"), cwd=ROOT, env=ENVIRONMENT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        bob.join("bob")
        process.stdin.write(b"first\n")
        process.stdin.flush()
        texts_until(bob, "first")
        server.assert_healthy()
        server.kill()
        server.stop()
        output, errors = process.communicate(b"".join(b"lost %d\n" % number for number in range(5_000)), timeout=TIMEOUT)
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
    window.expect("pipe is out")
    assert bob.recv_until("left", name="pipe")["reason"] == "booted: no bots here"
    assert process.wait(TIMEOUT) == 1                   # its stdin is still open
    output, errors = process.communicate()
    assert len(errors.splitlines()) == 1 and b"booted" in errors
    assert "no bots here" in (output + errors).decode()


def test_no_server_is_one_line():
    """Nobody listens there: exit code 1 and one line that says where."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = run(port, input=b"hi\n")
    assert done.returncode == 1 and done.stdout == b""
    assert done.stderr.startswith(b"chat_client: cannot connect to 127.0.0.1:%d: " % port) and len(done.stderr.splitlines()) == 1


def test_silent_server_is_given_up():
    """Something listens there and says nothing: exit code 1 after the time-out, and one line."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = run(listener.getsockname()[1], "--timeout", "0.3", input=b"hi\n")
    assert done.returncode == 1 and done.stderr.endswith(b" does not answer\n") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x16\x03\x01", b'{"type":"welcome"}\n', b"\n",
                                    b'{"type":"error","code":"full","text":"no \\u001b[31m room\\r\\nat all"}\n'])
def test_server_that_is_none_is_one_line(answer):
    """What answers there is no Roger, or refuses: exit code 1, one line, nothing of it raw on the terminal."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def talk():
            sock = listener.accept()[0]
            with sock:
                sock.sendall(answer)
                sock.recv(4_096)
                sock.recv(4_096)
        threading.Thread(target=talk, daemon=True).start()
        done = run(listener.getsockname()[1], "--timeout", "0.3", input=b"hi\n")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(b"chat_client: ") and b"\x1b" not in done.stderr


@pytest.mark.parametrize("arguments", [["127.0.0.1", "0"], ["127.0.0.1", "65536"], ["127.0.0.1", "http"], ["--wrong"],
                                       ["-n", "two words"], ["-n", ""], ["-n", "server"], ["--timeout", "-1"],
                                       ["--timeout", "nan"], ["a", "1", "b"]])
def test_wrong_usage(arguments):
    """A wrong port, name or option: exit code 2, the usage and one line that says what."""
    done = subprocess.run([sys.executable, CLIENT, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=TIMEOUT, env=ENVIRONMENT)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("usage: chat_client.py")
    assert "error: " in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


@pytest.mark.parametrize("script", [CLIENT, SERVER])
def test_version_and_help(script):
    """--version and -h answer on stdout with exit code 0."""
    version, help = (subprocess.run([sys.executable, script, option], capture_output=True, text=True, timeout=TIMEOUT,
                                    env=ENVIRONMENT) for option in ("--version", "-h"))
    assert (version.returncode, version.stderr) == (0, "") and re.fullmatch(r"Roger \d+\.\d+.*\n", version.stdout)
    assert (help.returncode, help.stderr) == (0, "") and help.stdout.startswith("usage: ")


@posix_only
def test_interrupt_is_130(serve, peer, popen):
    """Ctrl-C in a pipe that is not at its end: exit code 130, no traceback."""
    server = serve()
    bob = peer(server.port, "bob")
    process = popen(server.port, preexec_fn=heed_interrupts)
    process.stdin.write(b"hi\n")
    process.stdin.flush()
    texts_until(bob, "hi")
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT) == 130
    _, errors = process.communicate(timeout=TIMEOUT)
    assert b"Traceback" not in errors and b"Fatal" not in errors and b"Exception" not in errors


@posix_only
def test_stdout_closed_early_is_harmless(serve, peer):
    """`| head -1`: when nobody reads stdout any more the rest still goes out, and stderr stays clean."""
    server = serve()
    bob = peer(server.port, "bob")
    ours, theirs = os.pipe()
    process = subprocess.Popen(client_arguments(server.port, "-n", "pipe"), stdin=subprocess.PIPE, stdout=theirs,
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
    assert texts_until(bob, "still said")


@posix_only
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_harmless(listener, closed):
    """A client that is started without stdin, stdout or stderr says what there is to say, and ends well."""
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *client_arguments(listener.port, "-n", "pipe")],
                          input=b"hi\n", capture_output=True, timeout=TIMEOUT, cwd=ROOT, env=ENVIRONMENT)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert texts_of_visit(listener) == ([] if "<&-" in closed else ["hi"])


def test_json_prints_the_frames(serve, peer, popen):
    """--json prints each frame that comes as a line of JSON, as it came: the welcome, history, own messages, what is new."""
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
    assert frames[0]["type"] == "welcome" and frames[0]["name"] == "pipe" and "bob" in frames[0]["users"]
    chats = [frame for frame in frames if frame["type"] == "chat"]
    bob.recv_until("left")
    assert chats == [frame for frame in bob.frames if frame["type"] == "chat"] and len(chats) == 3


# --- On a terminal ---

@posix_only
def test_terminal_talks_and_leaves(serve, peer, chat):
    """Lines go out, what others say comes in with their name, and Ctrl-D leaves with exit code 0."""
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
    ann.expect(r"\* eve joined \(3 here\)")
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
    ann.expect(CLOCK + r"anna -> bob: what\?")
    ann.type("/w nobody hello")
    ann.expect("! refused: nobody here is called nobody")
    for names in "/names", "/users":
        ann.type(names)
        ann.expect(r"\* 2 here: bob, anna")
    ann.type("//names", "///")
    assert bob.recv_until("chat", text="/names") and bob.recv_until("chat", text="//")
    ann.expect(CLOCK + "ann.?: //")
    ann.type("/wrong", "/", "/Nick x", "/msg", "/msg bob", "/nick", "/nick a b", "/motd")
    ann.expect(r"! /wrong is not a command, /help lists them \(to say it, begin with //\)")
    ann.expect("! / is not a command.*")
    ann.expect("! /Nick is not a command.*")
    ann.expect("! /msg NAME TEXT")
    ann.expect("! /msg NAME TEXT")
    ann.expect("! a name has 1 to 24 characters")
    ann.expect("! a name is made of letters, digits and _ - .")
    ann.expect(r"\* there is no message of the day")
    ann.type("/help")
    listed = [ann.line().split()[0].rstrip(":") for _ in range(15)]
    assert listed == ["/nick", "/me", "/msg", "/reply", "/names", "/history", "/ignore", "/unignore", "/quiet", "/timestamp",
                      "/motd", "/clear", "/help", "/quit", "//TEXT"]
    ann.type("  /not a command", "the end")
    bob.recv_until("chat", text="the end")
    ann.type("/quit", "never said")
    assert ann.end() == 1                               # one of the whispers was refused
    assert ann.printed.endswith("\nchat_client: not delivered: hello (nobody here is called nobody)\n")
    bob.recv_until("left", name="anna")
    assert [frame["text"] for frame in bob.frames if frame["type"] == "chat"] == [
        "/me waves", "a secret", "psst", "what?", "/names", "//", "  /not a command", "the end"]


@posix_only
def test_terminal_ignore_quiet_and_timestamp(serve, peer, chat):
    """/ignore hides what one says, /quiet who comes and goes, /timestamp the times; each can be taken back."""
    server = serve()
    bob = peer(server.port, "bob")
    ann = chat(server.port)
    ann.type("/ignore BOB", "/quiet", "/timestamp", "/ignore", "now")
    ann.expect(r"\* ignored: bob")
    ann.expect(r"\* joins and leaves are hidden")
    ann.expect(r"\* ignored: bob")
    ann.expect("ann: now")
    bob.say("hidden")
    bob.say("hidden as well", to="ann")
    peer(server.port, "eve").say("shown")
    assert ann.line() == "eve: shown"
    ann.type("/unignore Bob", "/quiet", "/timestamp")
    ann.expect(r"\* ignored: nobody")
    ann.expect(r"\* joins and leaves are shown")
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
    assert ann.printed.splitlines() == ["* welcome", "* all\\u202e", "* you are ann, 2 here; /help lists the commands"]
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
    assert [ann.line() for _ in range(4)] == ["      12:00 eve: forged", "      * eve left    tab", "      ", "      last"]
    bob.say("\u202egnp.exe \u2066 \u200b \ufeff \u2028 \u0301 e\u0301 \U0001f469\u200d\U0001f4bb")
    ann.expect(CLOCK + r"bob: \\u202egnp\.exe \\u2066 \\u200b \\ufeff \\u2028 " "\u0301 e\u0301 \U0001f469\u200d\U0001f4bb")


@posix_only
def test_terminal_is_safe_from_a_hostile_server(chat, terminal):
    """Escape sequences, carriage returns and bidi controls in every field that a server can send are shown escaped."""
    evil = "\x1b[2J\r\u202e\x07\x9b"
    frames = [{"type": "welcome", "name": evil[:20], "session": "s", "epoch": "e", "users": [evil, "ann"], "last": 0},
              {"type": "joined", "id": 1, "name": evil, "at": 2**53 - 1}, {"type": "renamed", "id": 2, "name": evil, "to": evil, "at": 1 - 2**53},
              {"type": "chat", "id": 3, "from": evil, "text": "hi \u202e", "at": 0, "to": evil},
              {"type": "chat", "id": 4, "from": evil, "text": evil, "at": 0},         # no text: not shown
              {"type": "error", "id": 5, "code": evil, "text": evil}, {"type": "left", "id": 6, "name": evil, "at": 0, "reason": evil},
              {"type": "booted", "id": 7, "reason": evil}]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        window = terminal(sys.executable, CLIENT, "127.0.0.1", str(listener.getsockname()[1]), "-n", "ann", "--plain")
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
    """The server goes and comes back: the client says so, and what was typed in between is said then."""
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


# --- The server's console ---

@posix_only
def test_console_commands(console, peer):
    """The operator sees who is here, speaks, boots with a reason, bans for a time and lifts the ban; unknown commands say so."""
    window, port = console("--grace", "0")
    window.type("/users", "/banned")
    window.expect("nobody is here")
    window.expect("nobody is banned")
    ann, bob = peer(port, "ann"), peer(port, "bob")
    window.type("/users")
    window.expect(r"ann  127\.0\.0\.1")
    window.expect(r"bob  127\.0\.0\.1")
    window.type("/say hello all")
    for one in ann, bob:
        assert one.recv_until("chat")["from"] == "Server" and one.frames[-1]["text"] == "hello all"
    window.type("/boot bob spamming and more")
    window.expect("bob is out")
    assert bob.recv_until("booted")["reason"] == "spamming and more" and bob.eof()
    assert ann.recv_until("left", name="bob")["reason"] == "booted: spamming and more"
    bob = peer(port, "bob")                             # booted is not banned
    window.type("/ban bob 10m")
    window.expect("bob is banned")
    assert bob.recv_until("booted")["reason"] == "banned" and bob.eof()
    refused = RawClient(port)
    refused.send({"type": "join", "name": "BOB"})
    assert refused.recv_until("error")["code"] == "banned" and refused.eof()
    refused.close()
    window.type("/banned")
    window.expect(r"bob  (600|59\d) s more")
    window.type("/unban bob", "/banned")
    window.expect("bob may come back")
    window.expect("nobody is banned")
    peer(port, "bob").close()                           # or the end waits for its ACK
    window.expect(r".* (left|lost): bob.*")                     # before the answers below
    window.type("/wrong", "hello", "/boot", "/boot nobody", "/ban", "/ban x 5y", "/unban nobody", "/say", "/motd x", "/motd", "")
    for answer in ("/wrong is not a command here.*", "hello is not a command here.*", "nobody here is called .*",
                   "nobody here is called nobody", r"/ban NAME \[DURATION\]", "5y is no duration.*", "nobody is not banned",
                   "a text has 1 to 8192 characters", "/motd shows it.*", "there is no message of the day"):
        window.expect(answer)
    window.type("/help")
    assert [window.line().split()[0].rstrip(":") for _ in range(10)] == [
        "/users", "/boot", "/ban", "/unban", "/banned", "/say", "/motd", "/reload", "/help", "/quit"]
    window.type("/quit")
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
    window.expect(r"nobody here is called \\u202ebob")
    window.expect(r"/\\u202e is not a command here.*")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", window.printed)


@posix_only
def test_motd_is_read_again(console, peer, tmp_path):
    """`/motd @` and a HUP read the message of the day again; a file that is gone leaves the old one."""
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
    window.expect(".* reloaded")
    assert peer(port, "eve").welcome["motd"] == "wednesday"
    motd.unlink()
    window.process.send_signal(signal.SIGHUP)
    window.expect(".* cannot reload: .*")
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
    assert list(events) == ["* ann joined", "* bob joined", "<bob> hi", r"<bob> two\nlines \u202e", "* bob is now rob",
                            "* rob left (quit)"]
    times = [datetime.datetime.strptime(stamp, "[%Y-%m-%d %H:%M:%S] ") for stamp in stamps]
    assert times == sorted(times) and A_STAMP < stamps[0]


@posix_only
def test_chat_log_is_opened_again_after_it_was_rotated(serve, peer, tmp_path):
    """After a HUP the log is written under its name again."""
    path = tmp_path / "chat.log"
    server = serve("--log", str(path))
    ann = peer(server.port, "ann")
    path.rename(tmp_path / "chat.log.1")
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "reloaded" in server.stderr_text())
    ann.say("after")
    ann.recv_until("chat")
    wait_until(lambda: path.read_text().endswith("<ann> after\n"))
    assert (tmp_path / "chat.log.1").read_text().endswith("* ann joined\n")


def test_log_on_stdout(serve, peer):
    """--log - prints the chat log after the first lines."""
    server = serve("--log", "-")
    ann = peer(server.port, "ann")
    ann.say("hi")
    wait_until(lambda: any(line.endswith("<ann> hi") for line in server.lines))


@pytest.mark.parametrize("arguments, said", [
    ([], "cannot listen on port"), (["--log", "/no/such/folder/log"], "/no/such/folder/log"),
    (["--motd", "/no/such/motd"], "/no/such/motd"), (["--bind", "192.0.2.1"], "cannot listen on port"),
])
def test_server_that_cannot_start_is_one_line(serve, arguments, said):
    """A port in use, an address that is not ours, a file that is not there: exit code 1, one line, no traceback."""
    port = "0" if arguments else str(serve().port)
    done = subprocess.run([sys.executable, SERVER, port, *(arguments or ["--bind", "127.0.0.1"])], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=TIMEOUT, env=ENVIRONMENT)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1 and said in done.stderr, done.stderr


@pytest.mark.parametrize("arguments", [["-1"], ["65536"], ["http"], ["--rate", "-1"], ["--grace", "nan"], ["--wrong"], ["1", "2"],
                                       ["--max-members", "x"]])
def test_server_wrong_usage(arguments):
    """A wrong port or option of the server: exit code 2 and the usage."""
    done = subprocess.run([sys.executable, SERVER, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=TIMEOUT, env=ENVIRONMENT)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("usage: chat_server.py")
    assert "Traceback" not in done.stderr


def test_pipe_of_long_lines_loses_none(serve, tmp_path):
    """More bytes than may wait at once make the pipe wait: every line arrives, and the exit code says so."""
    log = tmp_path / "chat.log"
    server = serve("--log", log)
    lines = [f"{number} " + "x" * 8_000 for number in range(1_200)]
    assert sum(map(len, lines)) > QUEUE_BYTES
    done = run(server.port, input="\n".join(lines).encode())
    assert done.returncode == 0 and done.stderr == b""
    wait_until(lambda: "* pipe left" in log.read_text(encoding="utf-8"))
    said = [line.partition("> ")[2] for line in log.read_text(encoding="utf-8").splitlines() if "<pipe>" in line]
    assert said == lines
