"""The first mile: the programs start on any machine, and a mistake is answered by one line."""

import ast
import contextlib
import errno
import glob
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import types

import pytest

import chat_client
import chat_server
import chat_web
import chatproto
from harness import CLIENT, ROOT, SERVER, TIMEOUT, RawClient, start_server, wait_until

if os.name == "posix":
    from program import Program, take_terminal

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and terminals")

MODULES = ("chat_server.py", "chat_client.py")
# A client whose first try does not wait for a server.
IMPATIENT = [sys.executable, "-c", "import sys, chat_client; chat_client.START_PATIENCE = 0; "
             "sys.exit(chat_client.main(sys.argv[1:]))"]


def run(command, input="", cwd=ROOT, env=None):
    """A program from its start to its end."""
    return subprocess.run(command, input=input, capture_output=True, cwd=cwd, timeout=TIMEOUT,
                          encoding="utf-8", env={**os.environ, **(env or {})})


def the_line(done, code, program):
    """The one line that says what is wrong, after the program's name; the exit code is `code`."""
    assert (done.returncode, done.stdout) == (code, ""), done
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"{program}: "), done.stderr
    return done.stderr.partition(": ")[2].strip()


# --- Every system ---

WITHOUT = """import sys
for name in {names}:
    sys.modules[name] = None
import chat_server
sys.exit(chat_server.main(["0", "--no-web", "--no-discovery"]))"""


@posix_only
@pytest.mark.parametrize("names", [["termios", "tty"], ["termios", "tty", "fcntl", "pwd", "grp"]])
def test_server_starts_in_a_terminal_without_termios(names):
    """As in a Windows console: the commands are there, and nothing is painted."""
    command = [sys.executable, "-c", WITHOUT.format(names=names)]
    with Program(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}) as program:
        program.wait_for("Others join with")
        program.type("/users\r")
        program.wait_for("nobody is here")
        assert b"\x1b" not in program.raw_output
        program.type("/quit\r")
        assert program.wait_exit() == 0


@posix_only
def test_server_ends_with_its_terminal():
    """When the terminal's window is closed nobody could end the server any more: it ends."""
    window, slave = os.openpty()
    process = subprocess.Popen([*SERVER, "0", "--no-web", "--no-discovery"], cwd=ROOT, stdin=slave,
                               stdout=slave, stderr=slave, start_new_session=True,
                               preexec_fn=take_terminal)
    os.close(slave)
    shown = b""
    while not shown.endswith(b"> "):
        shown += os.read(window, 4_096)
    os.close(window)
    assert process.wait(TIMEOUT) == 0


@posix_only
def test_server_reloads_by_a_signal_without_a_terminal(tmp_path):
    """HUP ends only a server whose terminal has gone."""
    motd = tmp_path / "motd"
    motd.write_text("one")
    server = start_server("--motd", motd)
    motd.write_text("two")
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "reloaded" in server.stderr_text())
    with RawClient(server.port) as ann:
        assert ann.join("ann")["motd"] == "two"
    assert server.stop() == 0


@pytest.mark.parametrize("limits, taken", [
    ((256, -1, 10_240), 8_748), ((256, 4_096, 1 << 20), 4_096), ((256, -1, 1 << 20), 65_536),
    ((100_000, -1, 1 << 20), None), ((256, -1, 100), None), ((-1, -1, 100), None)])
def test_file_limit(monkeypatch, limits, taken):
    """As many descriptors as the system gives: macOS refuses what is above a limit of its own."""
    soft, hard, most = limits
    given = []

    def setrlimit(what, limit):
        if not soft <= limit[0] <= most:
            raise ValueError("too many")
        given.append(limit)
    fake = types.SimpleNamespace(RLIMIT_NOFILE=7, RLIM_INFINITY=-1, setrlimit=setrlimit,
                                 getrlimit=lambda what: (soft, hard))
    monkeypatch.setitem(sys.modules, "resource", fake)
    monkeypatch.setattr(sys, "platform", "darwin")
    chat_server._raise_file_limit()
    assert given == ([] if taken is None else [(taken, hard)])


# --- UTF-8 in every pipe ---

def test_server_log_in_a_pipe_of_another_encoding():
    """What is said goes to --log - as UTF-8, whatever the system's encoding is."""
    server = start_server("--log", "-", "--bind", "127.0.0.1",
                          env={"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"})
    with RawClient(server.port) as ann:
        ann.join("ann")
        ann.say("\u65e5\u672c \U0001f600")
        ann.recv_until("chat")
        assert server.printed("<ann> ") == "\u65e5\u672c \U0001f600"
    server.stop()


@pytest.fixture(scope="module")
def server():
    """A server on loopback that can be found there."""
    server = start_server("--bind", "127.0.0.1", "--name", "Lab 3", found=True)
    yield server
    server.assert_healthy()
    server.stop()


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_client_in_a_pipe_of_another_encoding(server, options):
    """What is heard goes into a pipe as UTF-8."""
    with RawClient(server.port) as ann:
        ann.join(f"ann{len(options)}")
        command = [*CLIENT, "127.0.0.1", str(server.port), "-n", f"pipe{len(options)}", *options]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, encoding="utf-8",
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env={**os.environ, "PYTHONIOENCODING": "cp1252",
                                        "PYTHONUTF8": "0"})
        ann.recv_until("joined", name=f"pipe{len(options)}")
        ann.say("\u65e5\u672c")
        ann.recv_until("chat", text="\u65e5\u672c")
        line = next(line for line in process.stdout if "\u65e5\u672c" in line)
        assert not options or json.loads(line)["text"] == "\u65e5\u672c"
        process.communicate("", timeout=TIMEOUT)
        assert process.returncode == 0


# --- Old Pythons, missing files, Ctrl-C ---

OLD = sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/[23].*/bin/python")))
OLD = [path for path in OLD if re.search(r"/(2\.7|3\.[5-8])\.", path)]


@pytest.mark.parametrize("module", MODULES)
def test_module_parses_on_old_pythons(module):
    """3.7 reads the whole file, and so comes as far as the sentence that it is too old."""
    source = (ROOT / module).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 7))
    # What 3.6 and 2.7 cannot read, which they show.
    lines = [line for line in source.split("\n")
             if line.endswith("# Roger needs Python 3.9 or newer")]
    assert lines[0].startswith("from __future__ import annotations") and ': "tuple' in lines[1]
    # What stands before it is nothing but texts and comments, so that nothing else stops them.
    assert [type(node) for node in ast.parse(source).body[:2]] == [ast.Expr, ast.ImportFrom]
    assert source.split("\n")[1] == "# -*- coding: utf-8 -*-"


@pytest.mark.skipif(not OLD, reason="there are none on this machine")
@pytest.mark.parametrize("module", MODULES)
def test_module_on_old_pythons(module):
    """Those that are here say it."""
    for python in OLD:
        done = run([python, module])
        assert done.returncode == 1 and "Roger needs Python 3.9 or newer" in done.stderr, python
        if "/3.7." in python or "/3.8." in python:
            assert re.fullmatch(r"Roger needs Python 3\.9 or newer, this is 3\.[78]: .*\n",
                                done.stderr)


@pytest.mark.parametrize("module", MODULES)
def test_module_without_chatproto(module, tmp_path):
    """One sentence says which file is missing."""
    shutil.copy(ROOT / module, tmp_path)
    done = run([sys.executable, "-I", str(tmp_path / module)], cwd=tmp_path)
    assert the_line(done, 1, module[:-3]) == ("chatproto.py is missing: copy it into the same "
                                              f"folder as {module}")


def test_server_without_chat_web_says_why(tmp_path):
    """The server runs, and one line says that browsers are not served."""
    for name in ("chat_server.py", "chatproto.py"):
        shutil.copy(ROOT / name, tmp_path)
    process = subprocess.Popen([sys.executable, "chat_server.py", "0", "--no-discovery"],
                               cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("Listening on")
    process.terminate()
    errors = process.communicate(timeout=TIMEOUT)[1]
    assert "nothing for browsers: chat_web.py is missing, copy it" in errors


SLOW_MODULE = """import signal
print("importing", flush=True)
signal.pause()
"""


@posix_only
@pytest.mark.parametrize("module", MODULES)
def test_interrupt_while_it_starts(module, tmp_path):
    """Ctrl-C in the first moments: no traceback."""
    (tmp_path / "argparse.py").write_text(SLOW_MODULE)
    process = subprocess.Popen([sys.executable, str(ROOT / module), "0"], text=True,
                               env={**os.environ, "PYTHONPATH": str(tmp_path)},
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=TIMEOUT) == ("", "")
    assert process.returncode == -signal.SIGINT


# --- Which server ---

@pytest.mark.parametrize("typed, expected", [
    ("", ("", 8087)), ("8087", ("localhost", 8087)), ("9000", ("localhost", 9000)),
    ("lab", ("lab", 8087)), ("192.168.1.20 9000", ("192.168.1.20", 9000)),
    ("localhost:9000", ("localhost", 9000)), ("[::1]:9000", ("::1", 9000)), ("::1", ("::1", 8087)),
    ("::1 9000", ("::1", 9000)), ("[::1]", ("::1", 8087)),
    ("[fe80::1%eth0]:9", ("fe80::1%eth0", 9)),
    ("http://lab:9000/", ("lab", 9000)), ("http://lab:9000", ("lab", 9000)),
    ("http://lab/", ("lab", 80)), ("https://lab/", ("lab", 443)), ("HTTP://lab:9/x?y", ("lab", 9)),
    ("http://[fd00::1]:9000/", ("fd00::1", 9000)), ("lab:9000/", ("lab", 9000)),
    ("lab:9000 9000", ("lab", 9000))])
def test_where_is_taken_for_what_it_means(typed, expected):
    """Host and port in any of the ways that people type them."""
    assert chat_client.parse_where(typed.split()) == expected


@pytest.mark.parametrize("typed, said", [
    ("8087 192.168.1.20", "HOST comes before PORT: chat_client.py 192.168.1.20 8087"),
    ("lab ann", "ann is no port, that is a number from 1 to 65535; a name for yourself goes with "
                "-n: chat_client.py lab -n ann"),
    ("lab 8087 ann", "ann is one too many; a name for yourself goes with -n: "
                     "chat_client.py lab 8087 -n ann"),
    ("lab 99999", "99999 is no port, that is a number from 1 to 65535"),
    ("0", "0 is no port, that is a number from 1 to 65535"),
    ("lab -1", "-1 is no port, that is a number from 1 to 65535"),
    ("lab:9 10", "port 9 or 10? Say one"),
    ("http://:80/", "http://:80/ names no server: HOST, HOST PORT, HOST:PORT or "
                    "http://HOST:PORT/ does"),
    ("lab -n two\u202ewords", r"-n two\u202ewords: "),
    ("--wrong", "unrecognized arguments: --wrong"),
    ("--timeout 0", "the time-out is a number of seconds, at most a day")])
def test_client_usage_mistakes(typed, said):
    """One line that says what to type instead, exit code 2."""
    assert said in the_line(run([*CLIENT, *typed.split(" ")]), 2, "chat_client")


@contextlib.contextmanager
def other_server(says, first=False):
    """Something that is no chat server: its port."""
    def serve():
        with contextlib.suppress(OSError):
            while True:
                sock = listener.accept()[0]
                with sock:
                    if not first:
                        sock.recv(65_536)
                    sock.sendall(says)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(65_536):
                        pass
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("says, what", [
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", "a web server"), (b"<html>", "a web server"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", "an ssh server"), (b"\x15\x03\x01\0\2\2\n",
                                                    "a server that speaks TLS"),
    (b"220 mail ESMTP\r\n", "a mail or ftp server")])
def test_client_at_another_server(says, what):
    """What answers is named."""
    with other_server(says, first=says.startswith((b"SSH", b"220"))) as port:
        line = the_line(run([*IMPATIENT, "127.0.0.1", str(port)]), 1, "chat_client")
    assert line == f"127.0.0.1:{port} is {what}, not a chat server: is the port right?"


def unused_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_client_where_nothing_listens(server):
    """A server on another port of that machine is named."""
    port = unused_port()
    line = the_line(run([*IMPATIENT, "127.0.0.1", str(port)]), 1, "chat_client")
    assert re.fullmatch(rf"cannot connect to 127\.0\.0\.1:{port}: nothing listens there, but a "
                        r"chat server on port (\d+): chat_client\.py 127\.0\.0\.1 \1", line)


@pytest.mark.parametrize("error, said", [
    (ConnectionRefusedError(),
     "nothing listens there: is the server running, and is that its port?"),
    (socket.gaierror(-2, "Name or service not known"),
     "no machine is called lab here: use the address that the server printed (a name for yourself "
     "goes with -n NAME)"),
    (UnicodeError(), "no machine is called lab here"),
    (socket.timeout("timed out"),
     "no answer: the address may be wrong, or a firewall is in the way (the server's machine has "
     "to allow port 9)"),
    (TimeoutError(errno.ETIMEDOUT, "x"), "no answer: "),
    (OSError(errno.EHOSTUNREACH, "x"),
     "no way leads there: are both machines in the same network?"),
    (OSError(errno.ENETUNREACH, "x"), "no way leads there"),
    (PermissionError(errno.EPERM, "x"), "a firewall on this machine forbids it"),
    (OSError(errno.EIO, "Input/output error"), "Input/output error")])
def test_why_not_connected(monkeypatch, error, said):
    """Each of the system's errors is told with what to do."""
    monkeypatch.setattr(chat_client, "find_servers", lambda *arguments: [])
    assert chat_client.why_not_connected("lab", 9, error).startswith(said)


def test_client_finds_that_a_link_local_address_needs_an_interface():
    """fe80::1 alone leads nowhere."""
    error = OSError(errno.EINVAL, "Invalid argument")
    assert chat_client.why_not_connected("fe80::1", 9, error).endswith(": fe80::1%eth0")


LATE = """import chat_client, socket, sys
connect = socket.create_connection
def trying(*arguments):
    try:
        return connect(*arguments)
    except OSError:
        print("refused", flush=True)
        raise
socket.create_connection = trying
sys.exit(chat_client.main(sys.argv[1:]))"""


def test_client_waits_for_its_server():
    """Both are typed at once, and the client is first: it tries again."""
    port = unused_port()
    client = subprocess.Popen([sys.executable, "-c", LATE, "127.0.0.1", str(port), "-n", "early"],
                              cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)
    assert client.stdout.readline() == "refused\n"
    server = start_server("--bind", "127.0.0.1", port=port)
    errors = client.communicate("hello\n", timeout=TIMEOUT)[1]
    assert (client.returncode, errors) == (0, "")
    server.stop()


def found(*servers):
    """What find_servers would return."""
    return [chat_client.Found(host, port, name, 3) for host, port, name in servers]


TWO = found(("192.168.1.20", 8087, "Lab 3"), ("fe80::1%2", 9000, "a\x1b[2Jb"))


def test_choose_server(monkeypatch, capsys):
    """The one that answers is joined; of several the user chooses, by a number."""
    monkeypatch.setattr(chat_client, "find_servers", lambda: TWO[:1])
    assert chat_client.choose_server() == ("192.168.1.20", 8087)
    typed = iter(["", "3", "ann", "2"])
    monkeypatch.setattr("builtins.input", lambda prompt: print(prompt) or next(typed))
    assert chat_client._ask_which(TWO) == ("fe80::1%2", 9000)
    lines = capsys.readouterr().out.split("\n")
    assert lines[:3] == ["Chat servers on this LAN:", "  1  Lab 3 (192.168.1.20:8087, 3 here)",
                         r"  2  a\x1b[2Jb ([fe80::1%2]:9000, 3 here)"]
    assert lines[3:7] == ["Which one (1 to 2)? "] * 4


def test_choose_server_without_any(monkeypatch):
    """Nobody answers: one sentence, unless something listens on this machine."""
    monkeypatch.setattr(chat_client, "START_PATIENCE", 0)
    monkeypatch.setattr(chat_client, "find_servers", lambda: [])
    monkeypatch.setattr(chat_client, "_listens", lambda host, port: False)
    with pytest.raises(LookupError, match="no chat server answers on this LAN: .*HOST PORT"):
        chat_client.choose_server()
    monkeypatch.setattr(chat_client, "_listens", lambda host, port: True)
    assert chat_client.choose_server() == ("localhost", 8087)


# --- The server's mistakes ---

@pytest.mark.parametrize("arguments, code, said", [
    (["abc"], 2, "argument PORT: abc is no port, that is a number from 1 to 65535, usually 8087"),
    (["70000"], 2, "argument PORT: 70000 is no port"), (["1", "2"], 2, "unrecognized arguments: 2"),
    (["--name", ""], 2, "argument --name: a server's name has 1 to 40 characters"),
    (["--name", "a\x1b[2J"], 2, "argument --name: a server's name"),
    (["0", "--bind", "192.0.2.99"], 1, "cannot listen on port 0 of 192.0.2.99: that is no address "
                                       "of this machine; it has "),
    (["0", "--bind", "no..name"], 1, "--bind no..name: there is no machine of that name; this one "
                                     "has "),
    (["0", "--motd", "{tmp}/none"], 1, "{tmp}/none: there is no such file"),
    (["0", "--motd", "{tmp}"], 1, "{tmp} is a folder; a file is wanted"),
    (["0", "--log", "{tmp}"], 1, "{tmp} is a folder; a file is wanted"),
    (["0", "--log", "{tmp}/no/log"], 1, "{tmp}/no/log: there is no such file (nor its folder)"),
    (["0", "--motd", "{tmp}/long"], 1, "the message of the day, {tmp}/long, is too long: "),
])
def test_server_mistakes(tmp_path, arguments, code, said):
    """One line that says what to do."""
    if not code:
        pytest.skip("a name of several lines is no mistake of the shell's")
    (tmp_path / "long").write_text("x" * 10_000)
    done = run([*SERVER, "--no-discovery", *(each.format(tmp=tmp_path) for each in arguments)])
    assert the_line(done, code, "chat_server").startswith(said.format(tmp=tmp_path))


def test_server_port_in_use(server):
    """Which port would be free is said."""
    line = the_line(run([*SERVER, str(server.port), "--bind", "127.0.0.1"]), 1, "chat_server")
    port = re.fullmatch(rf"cannot listen on port {server.port}: it is in use, perhaps by another "
                        r"chat server; (\d+) is free, so try: python3? chat_server\.py \1", line)[1]
    with socket.create_server(("127.0.0.1", int(port))):
        pass


@pytest.mark.parametrize("error, port, said", [
    (PermissionError(errno.EACCES, "Permission denied"), 80,
     "cannot listen on port 80: ports below 1024 are the administrator's; try: "),
    (PermissionError(errno.EACCES, "Permission denied"), 8087,
     "cannot listen on port 8087: Permission denied"),
    (PermissionError(errno.EACCES, "Permission denied", "motd.txt"), 8087,
     "motd.txt cannot be opened: Permission denied"),
    (PermissionError(errno.EACCES, "Permission denied", "a\x1bb"), 8087,
     r"a\x1bb cannot be opened: Permission denied")])
def test_server_may_not(error, port, said):
    """What the tests, as root, may do."""
    arguments = types.SimpleNamespace(port=port, bind="", motd=None)
    assert chat_server._why_not(error, arguments).startswith(said)


# --- The invitation ---

@pytest.mark.parametrize("called, expected", [
    (["python3", "chat_server.py"], "python3"), (["/usr/bin/python3.11"], "python3"),
    (["C:\\Python\\python.exe"], "python"), (["py"], "py"), (["/opt/pypy/bin/pypy3"], "python3"),
    (["python"], "python"), ([""], "python3")])
def test_python_as_it_is_called_here(monkeypatch, called, expected):
    """The printed line has python3 or python, as the host typed it."""
    monkeypatch.setattr(sys, "orig_argv", called, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert chat_server._python() == expected or "\\" in called[0]


def ask_host(server, method="GET"):
    """What the host's page is told."""
    secret = server.printed("#host=")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
    with contextlib.closing(connection):
        connection.request(method, "/host", headers={"X-Roger-Host": secret})
        return json.loads(connection.getresponse().read())


def test_host_page_has_the_invitation():
    """The server's name, the page's address for others, and its QR code."""
    server = start_server("--bind", "127.0.0.1", "--name", "Lab 3")
    state = ask_host(server)
    url = f"http://127.0.0.1:{server.port}/"
    assert (state["name"], state["url"]) == ("Lab 3", url)
    assert state["qr"] == ["".join(map(str, row)) for row in chat_web.qr_code(url)]
    server.stop()


def test_qr_without_stdout(monkeypatch):
    """Where the program was started with stdout closed, /qr paints with what every encoding has."""
    url = "http://192.168.1.20:8087/"
    console = types.SimpleNamespace(_invitation=types.SimpleNamespace(url=url))
    with monkeypatch.context() as without:
        without.setattr(sys, "stdout", None)
        painted = chat_server.Console._qr(console)
    assert painted.isascii() and painted.endswith(f"\n{url}")


@posix_only
@pytest.mark.parametrize("options, encoding", [
    ("", "utf-8"), (" light", "utf-8"), ("", "ascii"), (" light", "ascii")])
def test_console_shows_the_qr_code(options, encoding):
    """/qr paints the page's address, for a dark terminal and for a light one."""
    with Program([*SERVER, "0", "--bind", "127.0.0.1", "--no-discovery"], cwd=ROOT, rows=60,
                 env={"PYTHONIOENCODING": encoding}) as program:
        program.wait_until(lambda terminal: "> " in terminal.lines() or ">" in terminal.lines(),
                           "the prompt")
        port = re.search(r"Listening on [^:]*:(\d+)", "\n".join(program.snapshot()))[1]
        program.type(f"/qr{options}\r")
        url = f"http://127.0.0.1:{port}/"
        lines = chat_web.qr_lines(chat_web.qr_code(url), bool(options), encoding == "utf-8")
        program.wait_until(lambda terminal: url in terminal.lines(), "the address below it")
        shown = program.snapshot()
        end = shown.index(url)
        assert shown[end - len(lines):end] == [line.rstrip() for line in lines]


@pytest.mark.parametrize("visited, told", [(False, True), (True, False)])
def test_firewall_line(visited, told, caplog, monkeypatch):
    """Only when nobody has come from another machine for a while."""
    monkeypatch.setattr(chat_server, "FIREWALL_AFTER", 0)
    monkeypatch.setattr(chat_server, "_next_order",
                        lambda orders, given=iter(["", chat_server.STOP]): next(given))
    server = chat_server.ChatServer("", 0)
    server.start()
    server.visited = visited
    caplog.set_level("INFO", "roger")
    chat_server._obey(server, None, chat_server.OperatorLine(), chat_server.Orders(),
                      False)
    assert ("a firewall may be in the way" in caplog.text) == told


@pytest.mark.parametrize("platform, said", [
    ("win32", "Windows Firewall"), ("darwin", "System Settings"), ("linux", "ufw allow 9")])
def test_firewall_advice(monkeypatch, platform, said):
    """What to do, by system."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    assert said in chat_server.firewall_advice(9) and "\n" not in chat_server.firewall_advice(9)


@pytest.mark.parametrize("address, visited", [
    ("127.0.0.1", False), ("::ffff:127.0.0.1", False), ("192.168.1.20", False),
    ("192.168.1.21", True), ("fe80::2%eth0", True)])
def test_visitors_come_from_elsewhere(monkeypatch, address, visited):
    """This machine itself is no visitor, by whichever address it comes."""
    own = [chatproto.Address("192.168.1.20", "eth0", 2, chatproto.WIRE)]
    monkeypatch.setattr(chatproto, "own_addresses", lambda: own)
    server = chat_server.ChatServer("127.0.0.1", 0)
    assert server.verify_request(None, (address, 5)) and server.visited == visited
    server.server_close()


# --- The names of this machine ---

@pytest.fixture
def called(monkeypatch):
    """This machine is vm, its router is a FritzBox; what was asked of the resolver."""
    asked = []
    names = {"vm.lan": "192.168.1.20", "vm.fritz.box": "192.168.1.20", "vm.home.arpa": "fd00::1",
             "vm.home": "203.0.113.9"}

    def getaddrinfo(name, port):
        asked.append(name)
        if name not in names:
            raise socket.gaierror(-2, "unknown")
        return [(2, 1, 6, "", (names[name], 0))]
    own = [chatproto.Address(ip, "eth0", 2, 0) for ip in ("192.168.1.20", "fd00::1")]
    monkeypatch.setattr(socket, "gethostname", lambda: "VM")
    monkeypatch.setattr(socket, "getfqdn", lambda: asked.append("getfqdn") or "vm.example.org")
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(chatproto, "own_addresses", lambda: own)
    chatproto._full_name.cache_clear()
    yield asked
    chatproto._full_name.cache_clear()


@pytest.mark.parametrize("name, ours, asks", [
    ("localhost", True, 0), ("vm", True, 0), ("VM.local", True, 0), ("chat.example.org", True, 0),
    ("vm.lan", True, 1), ("vm.fritz.box", True, 1), ("vm.home.arpa", True, 1), ("vm.lan.", True, 1),
    # It leads elsewhere, or nowhere; or anybody could have it lead here.
    ("vm.home", False, 1), ("vm.internal", False, 1), ("other.lan", False, 0),
    ("evil.example.org", False, 0), ("vm.example.org", True, 1), ("vm.evil.org", False, 1),
    ("localhost.evil.org", False, 0), ("", False, 0)])
def test_own_names(called, name, ours, asks):
    """The resolver, which may take seconds, is asked only about what begins as our name."""
    assert chatproto.is_own_name(name, ["Chat.Example.org"]) == ours
    assert len(called) == asks


def test_server_is_visited_by_its_dns_name():
    """--dns-name lets browsers in by a name of one's own, and no other."""
    server = start_server("--bind", "127.0.0.1", "--dns-name", "chat.example.org",
                          "--dns-name", "roger.example.org")
    statuses = []
    for host in ("chat.example.org", f"ROGER.example.org:{server.port}", "evil.example.org"):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
        with contextlib.closing(connection):
            connection.request("GET", "/", headers={"Host": host})
            statuses.append(connection.getresponse().status)
    assert statuses == [200, 200, 403]
    server.stop()
