"""Encrypted: what goes in the clear is not acted upon, whoever misuses TLS harms nobody, and a
client talks to no other server than the one that it trusts."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess

import pytest

import chat_server
import chatproto
import harness
from chat_client import ChatClient, Server, Untrusted, known_servers, remember_server
from harness import RawClient, TIMEOUT, client_command, run_client, run_server, wait_until
from proxy import CuttingProxy
from tls import (FOLDER, Middle, certificate, context_of_a_client, key_in)
from webclient import WebClient, read_answer, request
from witness import HistoryChecker, Talker, speak_all, wait_until_heard

KEY = key_in(certificate())
SERVER_OPTIONS = ("--cert", certificate(), "--grace", "0.1")
OTHER_KEY = "AAAA-AAAA-AAAA-AAAA"


@pytest.fixture
def secure(server):
    """Let raw clients join over TLS; at the end they leave, and are gone before the next test."""
    with contextlib.ExitStack() as peers:
        def join(name, context=None):
            client = peers.enter_context(RawClient(server.port, auto_ack=True,
                                                   context=context or context_of_a_client()))
            client.join(name)
            peers.callback(client.leave)
            return client
        yield join


@pytest.fixture
def bot():
    """Make bots; they are closed at the end."""
    with contextlib.ExitStack() as bots:
        def make(port, name="bot", **options):
            client = ChatClient(options.pop("host", "127.0.0.1"), port, name, **options)
            bots.callback(client.close)
            return client
        yield make


def clear(port):
    """A connection in the clear."""
    return socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)


def lines_of(errors):
    return errors.decode().splitlines()


# --- The server ---

def test_chat_over_sockets_and_pages(server, secure):
    """Members over sockets and over WebSockets hear each other, and none knows of TLS."""
    ann = secure("ann")
    origin = f"https://127.0.0.1:{server.port}"
    with WebClient(server.port, auto_ack=True, origin=origin,
                   context=context_of_a_client()) as bob:
        bob.join("bob")
        long = "x" * 8000
        ann.say(long)
        assert bob.recv_until("chat")["text"] == long
        bob.say("there")
        assert ann.recv_until("chat", text="there")["from"] == "bob"


def test_page_over_tls(server):
    """The page comes over https, may open wss alone, and its WebSocket only from its own origin."""
    with context_of_a_client().wrap_socket(clear(server.port)) as sock:
        sock.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
        status, headers, _ = read_answer(sock)
    assert status == 200
    assert f" wss://127.0.0.1:{server.port};" in headers["content-security-policy"]
    with pytest.raises(AssertionError, match="403"):
        WebClient(server.port, context=context_of_a_client())


@pytest.mark.parametrize("data", [
    b'{"type":"join","name":"eve"}\n{"type":"chat","id":1,"text":"in the clear"}\n', b"{", b" ",
    b"\x15\x03\x01", b"\xff" * 1000, b"HELLO"])
def test_what_comes_in_the_clear(server, secure, data):
    """It is answered by the error `tls`, the connection ends, and nothing of it was taken."""
    ann = secure("ann")
    with clear(server.port) as eve:
        eve.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := eve.recv(4096):
                answer += piece
    error = json.loads(answer)
    assert (error["type"], error["code"]) == ("error", "tls") and "id" not in error
    ann.say("last")
    ann.recv_until("chat", text="last")
    assert not [one for one in ann.frames if "eve" in json.dumps(one)]


@pytest.mark.parametrize("line, where", [
    ("GET /a?b=c HTTP/1.1", "/a?b=c"), ("POST /host HTTP/1.1", "/host"),
    ("GET http://evil.example/ HTTP/1.1", "/"), ("GET //evil.example HTTP/1.1", "/evil.example")])
def test_http_in_the_clear(server, line, where):
    """A browser is sent to https on the same port, at the host that it has asked for."""
    status, headers, _ = request(server.port, line, f"Host: localhost:{server.port}",
                                 "Upgrade: websocket")
    assert status == 307
    found = headers["location"]
    assert re.sub("/+", "/", found.partition(f"https://localhost:{server.port}")[2]) == where


def test_http_in_the_clear_for_another_host(server):
    """Nobody is sent to a host that is not this one."""
    assert request(server.port, "GET / HTTP/1.1", "Host: evil.example")[0] == 403


def send_bare(tls, data):
    """Send bytes past an SSLSocket's encryption."""
    socket.socket.sendall(tls, data)


def misuse_greeting(sock):
    """Random bytes in a greeting."""
    sock.sendall(b"\x16\x03\x01\x02\x00" + os.urandom(512))


def misuse_half(sock):
    """The first half of a greeting, and then the end."""
    coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context_of_a_client().wrap_bio(coming, going)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    greeting = going.read()
    sock.sendall(greeting[:len(greeting) // 2])
    sock.shutdown(socket.SHUT_WR)


def misuse_middle(sock):
    """Random bytes in the middle of what is encrypted."""
    tls = context_of_a_client().wrap_socket(sock)
    tls.sendall(harness.frame("join", name="eve"))
    tls.recv(100)
    send_bare(tls, b"\x17\x03\x03\x00\x20" + os.urandom(32))
    return tls


def misuse_giant(sock):
    """A record that is longer than any may be."""
    tls = context_of_a_client().wrap_socket(sock)
    send_bare(tls, b"\x17\x03\x03\xff\xff" + b"x" * 65_535)
    return tls


def misuse_old(sock):
    """TLS 1.0."""
    context = context_of_a_client()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1
    with contextlib.suppress(ssl.SSLError):
        context.wrap_socket(sock)
        raise AssertionError("TLS 1.0 was taken")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("misuse", [misuse_greeting, misuse_half, misuse_middle, misuse_giant,
                                    misuse_old])
def test_misuse(server, secure, misuse):
    """Whoever misuses TLS is cut, and nobody else notices."""
    ann = secure("ann")
    with clear(server.port) as sock:
        tls = misuse(sock) or sock
        with contextlib.suppress(OSError):
            while tls.recv(65536):
                pass
        tls.close()
    ann.say("last")
    assert ann.recv_until("chat", text="last")
    server.assert_healthy()


def test_certificate_of_a_client(secure):
    """A client that has a certificate is not asked for it, and comes in."""
    context = context_of_a_client()
    context.load_cert_chain(certificate("client"))
    assert secure("ann", context).welcome


@contextlib.contextmanager
def server_inside(**settings):
    """A server in this process."""
    server = chat_server.ChatServer("127.0.0.1", 0, chat_server.Settings(**settings),
                                    identity=chat_server.Identity.load(certificate()))
    server.start()
    try:
        yield server
    finally:
        server.server_close()


def test_silence_in_a_greeting(monkeypatch):
    """Who greets and goes silent is cut when its time to join is over, and counts meanwhile as one
    that has not joined."""
    monkeypatch.setattr(chat_server, "JOIN_TIMEOUT", 0.5)
    with server_inside() as server:
        with clear(server.port) as sock:
            sock.sendall(b"\x16\x03")
            wait_until(lambda: server._unjoined == 1)
            assert sock.recv(100) == b""
        wait_until(lambda: server._unjoined == 0)


def test_address_that_is_full(monkeypatch, caplog, bot):
    """Who comes from an address with too many connections is told in a clear sentence, though there
    is no TLS yet to tell it with; and the log says it."""
    monkeypatch.setattr(chat_server, "is_loopback", lambda address: False)
    with server_inside(max_per_address=1) as server:
        bot(server.port, trust=KEY).connect(TIMEOUT)
        with pytest.raises(ConnectionError, match="too many connections from your address"):
            bot(server.port, trust=KEY).connect(TIMEOUT)
    assert "refusing more connections: 1 connections from 127.0.0.1" in caplog.text


def test_flood_of_small_records():
    """Records of TLS that say next to nothing use up the flood limit."""
    with server_inside() as server, RawClient(server.port, context=context_of_a_client()) as eve:
        eve.join("eve")
        ((_, connection),) = server._connections.values()
        assert connection.allowance.wait() == 0
        for _ in range(10_000):
            eve.send(b" ")
        wait_until(lambda: connection.allowance.wait() > 0)


def openssl(port, *arguments, input=""):
    """What openssl's client finds."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    done = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *arguments],
                          input=input, capture_output=True, text=True, timeout=TIMEOUT,
                          errors="replace")
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("options, agreed", [
    (("-tls1_3",), "TLSv1.3"), (("-tls1_2",), "TLSv1.2"),
    (("-tls1_1", "-cipher", "ALL:@SECLEVEL=0"), None),
    (("-tls1", "-cipher", "ALL:@SECLEVEL=0"), None),
    (("-tls1_2", "-cipher", "NULL:EXPORT:RC4:DES:aNULL:@SECLEVEL=0"), None)])
def test_protocols(server, options, agreed):
    """TLS 1.2 and 1.3, without compression; nothing older, and no cipher that is none."""
    _, said = openssl(server.port, *options)
    if agreed:
        assert f"{agreed}, Cipher is" in said and "Compression: NONE" in said, said
        assert "Secure Renegotiation IS NOT supported" not in said or agreed == "TLSv1.3"
    else:
        assert "Cipher is (NONE)" in said or "no cipher" in said or "rror" in said, said
        assert not re.search(r"Cipher is [A-Z]+[-_]", said), said


def test_renegotiation(server):
    """It is refused, in the only version that has it."""
    _, said = openssl(server.port, "-tls1_2", input="R\n")
    assert "RENEGOTIATING" in said and "no renegotiation" in said, said


def test_session_of_tls_that_is_resumed(server):
    """Who comes back with a ticket of TLS 1.2 shakes hands faster, and is in as anybody; in TLS 1.3
    there is none."""
    context = context_of_a_client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    session = None
    for name in ("ann", "bob"):
        with context.wrap_socket(clear(server.port), session=session) as sock:
            sock.sendall(harness.frame("join", name=name))
            assert b'"welcome"' in sock.recv(100) and sock.session_reused == bool(session)
            session = sock.session
    with context_of_a_client().wrap_socket(clear(server.port)) as sock:
        sock.sendall(harness.frame("join", name="cid"))
        assert b'"welcome"' in sock.recv(100) and not sock.session.has_ticket


def test_lines_that_are_printed(server):
    """What others type carries the key, and the page's address is https."""
    server.printed("Host's page: ")
    assert server.lines[1].endswith(f" 127.0.0.1 {server.port} --trust {KEY} -n NAME")
    assert f"or in a browser: https://127.0.0.1:{server.port}/" in server.lines
    assert any(KEY in line for line in server.lines[2:])


def test_discovery(serve):
    """Who asks the LAN is told that it is encrypted, and the key."""
    server = serve("--cert", certificate(), found=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT)
        sock.sendto(chatproto.encode_question("t"), ("127.0.0.1", server.port))
        answer = chatproto.decode_answer(sock.recv(1024), "t")
    assert (answer.tls, answer.key) == (True, KEY)


def test_certificate_that_is_made(serve, tmp_path):
    """It is made once, beside the history file, only its owner reads it, and the key stays."""
    history = tmp_path / "chat.db"
    server = serve("--tls", "--history", history)
    kept = tmp_path / "chat.db.pem"
    assert os.name != "posix" or kept.stat().st_mode & 0o777 == 0o600
    server.printed(f"--trust {key_in(kept)} ")
    before = kept.read_bytes()
    server.kill()
    server.start()
    server.printed(f"--trust {key_in(kept)} ")
    assert kept.read_bytes() == before


def shown_key(port):
    """The key that a server shows newcomers now."""
    return chatproto.trust_key(ssl.PEM_cert_to_DER_cert(
        ssl.get_server_certificate(("127.0.0.1", port))))


@harness.posix_only
def test_certificate_that_is_replaced(serve, tmp_path):
    """On HUP, as after /reload, newcomers see the one that is in the file now, and where that
    cannot be used the one before."""
    path = tmp_path / "own.pem"
    shutil.copy(certificate(), path)
    server = serve("--cert", path)
    shutil.copy(certificate("other"), path)
    assert shown_key(server.port) == KEY
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_error("reloaded")
    assert shown_key(server.port) == key_in(certificate("other"))
    path.write_text("damaged")
    server.process.send_signal(signal.SIGHUP)
    assert "no certificate in it" in server.wait_for_error("no certificate")
    assert shown_key(server.port) == key_in(certificate("other"))


def test_certificate_that_ends_while_the_server_runs(serve, tmp_path):
    """A server that runs for long looks by itself whether there is another, or makes it."""
    path = tmp_path / "own.pem"
    shutil.copy(certificate(), path)
    server = serve("--cert", path, program=("-c", "import sys, chat_server; chat_server.RENEW = 0; "
                                                  "sys.exit(chat_server.main(sys.argv[1:]))"))
    path.write_text("damaged")
    server.wait_for_error("cannot renew the certificate")
    shutil.copy(certificate("other"), path)
    wait_until(lambda: shown_key(server.port) == key_in(certificate("other")))


def damaged_certificates():
    """Options and what the server says of them."""
    good, other = pathlib.Path(certificate()).read_text(), certificate("other")
    alone, key = FOLDER / "alone.pem", FOLDER / "key.pem"
    alone.write_text(good.partition("-----BEGIN EC")[0])
    key.write_text("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n")
    return [(("--cert", alone), "--key FILE says where"), (("--cert", alone, "--key", other),
                                                          "another certificate's"),
            (("--cert", alone, "--key", key), "cannot be read"),
            (("--cert", key), "no certificate in it"), (("--cert", "/nowhere.pem"), "no such file"),
            (("--cert", FOLDER), "folder")]


@pytest.mark.parametrize("number", range(6))
def test_certificate_that_cannot_be_used(number):
    """The server says in one line why, and does not start."""
    options, why = damaged_certificates()[number]
    code, said = run_server("0", *options)
    assert code == 1 and said.count("\n") == 1 and why in said


def test_certificate_without_tls():
    """--key alone is a mistake."""
    assert run_server("0", "--key", certificate())[0] == 2


@pytest.mark.parametrize("days", [-900, 400])
def test_certificate_out_of_time(serve, bot, days):
    """One that has ended, or is of the future (a clock may be wrong by years): the server says so,
    and who trusts its key comes in."""
    server = serve("--cert", certificate("late", days))
    server.wait_for_error("does not hold now")
    bot(server.port, trust=key_in(certificate("late", days))).connect(TIMEOUT)


@pytest.mark.parametrize("role", ["chat_server", "chat_client"])
def test_without_ssl(role):
    """A Python without ssl says so in one line."""
    program = ("-c", f"import sys; sys.modules['ssl'] = None; import {role}; "
                     f"sys.exit({role}.main(['--tls', '1']))")
    code, said = run_server(program=program)
    assert code in (1, 2) and said.count("\n") == 1 and "built without ssl" in said


# --- Whom a client trusts ---

def test_pipe_trusts_nobody_by_itself(server, secure):
    """Without a key it refuses, and says which key it found; with the key it speaks, and knows it
    the next time."""
    ann = secure("ann")
    first = run_client(server.port, input=b"first\n")
    (line,) = lines_of(first.stderr)
    assert first.returncode == 1 and f"its key is {KEY}" in line and f"--trust {KEY}" in line
    for arguments in (("--trust", KEY.lower().replace("-", "")), (), ("--tls",)):
        done = run_client(server.port, *arguments, input=b"hello\n")
        assert (done.returncode, done.stderr) == (0, b"")
        ann.recv_until("chat", text="hello")
    kept = pathlib.Path(known_path()).read_text()
    assert kept == f"127.0.0.1:{server.port} {KEY}\n"


def test_another_key(server):
    """It is refused in one line, which says what it may mean and how to accept it."""
    remember_server(known_path(), f"127.0.0.1:{server.port}", OTHER_KEY)
    for arguments in ((), ("--tls",), ("--trust", OTHER_KEY)):
        done = run_client(server.port, *arguments, input=b"secret\n")
        (line, *rest) = lines_of(done.stderr)
        assert done.returncode == 1 and not rest
        assert "somebody is in between" in line and f"--trust {KEY}" in line
    assert run_client(server.port, "--trust", KEY, input=b"x\n").returncode == 0
    assert run_client(server.port, input=b"x\n").returncode == 0


def known_path():
    return chatproto.config_path("known_servers")


def test_never_in_the_clear_to_who_is_known(serve):
    """A server that is known by its key is talked to over TLS alone: one in the clear hears
    nothing."""
    plain = serve()
    remember_server(known_path(), f"127.0.0.1:{plain.port}", KEY)
    for arguments in ((), ("--tls",), ("--trust", KEY)):
        done = run_client(plain.port, *arguments, input=b"secret\n")
        (line,) = lines_of(done.stderr)
        assert done.returncode == 1 and "does not speak TLS" in line
    assert "joined" not in plain.stderr_text()


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"host:1", b"host:1 SHORT", b"a b c"])
def test_known_servers_that_is_damaged(serve, damage):
    """Whom one trusts is not guessed: nobody is talked to until the file is mended."""
    path = pathlib.Path(known_path())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"localhost:1 " + KEY.encode() + b"\n" + damage + b"\n")
    done = run_client(serve().port, input=b"x\n")
    (line,) = lines_of(done.stderr)
    assert done.returncode == 1 and "damaged" in line and "mend it or remove it" in line


def test_known_servers_that_cannot_be_read(tmp_path):
    """Nor is it guessed there."""
    with pytest.raises(ConnectionError, match="cannot be read"):
        known_servers(str(tmp_path))
    assert known_servers(str(tmp_path / "none")) == {}


@harness.posix_only
def test_terminal_asks_once(server, terminal):
    """A person is shown the key and asked, and not the next time."""
    command = client_command(server.port, "--plain", name="ann")
    window = terminal(*command)
    window.expect(rf"\s+{KEY}")
    window.type("no")
    window.expect(".*chat_client: .*not known yet.*")
    assert window.end() == 1
    window = terminal(*command)
    window.expect(rf"\s+{KEY}")
    window.type("yes")
    window.expect(r".*\* you are ann.*")
    window.type("/quit")
    assert window.end() == 0
    window = terminal(*command)
    window.expect(r".*\* you are ann.*")
    window.type("/quit")
    assert window.end() == 0


def test_bot_that_trusts(server, bot):
    """A bot with the key is in, one with another or without says why not."""
    bot(server.port, trust=KEY).connect(TIMEOUT)
    with pytest.raises(Untrusted) as new:
        bot(server.port, tls=True).connect(TIMEOUT)
    assert new.value.is_new and new.value.key == KEY
    with pytest.raises(Untrusted) as other:
        bot(server.port, trust=OTHER_KEY).connect(TIMEOUT)
    assert not other.value.is_new and other.value.key == KEY
    with pytest.raises(ValueError):
        bot(server.port, trust="K3QF")


def test_bot_that_comes_in_the_clear(server, bot):
    """It comes again encrypted, and trusts nobody by itself; when it is told to, it is in."""
    client = bot(server.port)
    with pytest.raises(Untrusted) as new:
        client.connect(TIMEOUT)
    client.server.trust(new.value.key)
    client.connect(TIMEOUT)
    assert client.joined and client.server.key == KEY


def test_authority(server, bot, monkeypatch):
    """Where an authority vouches for the certificate the usual check is enough, for the host that
    it is about."""
    monkeypatch.setenv("SSL_CERT_FILE", certificate())
    bot(server.port, host="localhost", tls=True).connect(TIMEOUT)
    elsewhere = bot(server.port, host="localhost", tls=True)
    monkeypatch.setattr(Server, "_name", "elsewhere.example")
    with pytest.raises(Untrusted):
        elsewhere.connect(TIMEOUT)


def test_key_that_changes(serve, bot, impatient):
    """A server that comes back with another key is not talked to any more, and the client says
    why."""
    server = serve("--cert", certificate())
    ends = []
    client = bot(server.port, trust=KEY, on_end=ends.append)
    client.connect(TIMEOUT)
    server.kill()
    server._command[server._command.index(certificate())] = certificate("other")
    server.start()
    wait_until(lambda: ends)
    assert "somebody is in between" in ends[0]


# --- Who is in between ---

@pytest.fixture
def middle(server):
    """A man in the middle of the shared server and its clients."""
    man = Middle(server.port)
    yield man
    man.close()


def test_man_in_the_middle_with_trust(middle):
    """Who was given the key is safe from the first time on: he hears nothing of it."""
    done = run_client(middle.port, "--trust", KEY, input=b"secret\n")
    (line,) = lines_of(done.stderr)
    assert done.returncode == 1 and "somebody is in between" in line
    assert middle.heard == b""


def test_man_in_the_middle_without_trust(middle, bot):
    """Who knows the server from before notices him, and he hears nothing of it."""
    middle.honest = True
    assert run_client(middle.port, "--trust", KEY, input=b"first\n").returncode == 0
    assert b"first" not in middle.heard
    middle.honest = False
    done = run_client(middle.port, input=b"secret\n")
    assert done.returncode == 1 and b"somebody is in between" in done.stderr
    assert b'"type"' not in middle.heard and b"secret" not in middle.heard


def test_man_in_the_middle_of_a_session(middle, bot, impatient):
    """He comes later, when the connection breaks: the client ends, and he hears nothing."""
    middle.honest = True
    ends = []
    client = bot(middle.port, trust=KEY, on_end=ends.append)
    client.connect(TIMEOUT)
    middle.honest = False
    middle.cut()
    wait_until(lambda: ends)
    # What he passed on before may come late, and is encrypted.
    assert "somebody is in between" in ends[0] and b'"type"' not in middle.heard


@harness.posix_only
@pytest.mark.parametrize("knows_it", [True, False])
def test_man_in_the_middle_of_a_terminal(middle, terminal, knows_it):
    """A person who was given the key, or who knows the server, is told of him, and is not asked
    whether to trust him."""
    if knows_it:
        remember_server(known_path(), f"127.0.0.1:{middle.port}", KEY)
    trust = () if knows_it else ("--trust", KEY)
    window = terminal(*client_command(middle.port, "--plain", *trust, name="ann"))
    window.expect("chat_client: .*somebody is in between.*")
    assert window.end() == 1 and b'"type"' not in middle.heard


def test_man_in_the_middle_of_a_bot(middle, bot):
    """A bot that was given the key, and one that was not, which trusts nobody by itself."""
    with pytest.raises(Untrusted, match="somebody is in between"):
        bot(middle.port, trust=KEY).connect(TIMEOUT)
    with pytest.raises(Untrusted, match="not known yet") as new:
        bot(middle.port, tls=True).connect(TIMEOUT)
    assert new.value.key != KEY and middle.heard == b""


# --- Connections that break within records ---

def test_storm(serve, impatient):
    """Connections are cut anywhere, within records and greetings, or go silent: nothing is lost,
    doubled or reordered."""
    server = serve("--cert", certificate(), "--grace", "30")
    proxy = CuttingProxy(server.port, 20090817, is_encrypted=True)
    proxy.LEAST, proxy.MOST = 2_000, 20_000
    talkers = [Talker(port, name, trust=KEY) for name, port in (
        ("ann", server.port), ("bob", proxy.port), ("cid", proxy.port))]
    try:
        speak_all(talkers[:2], 200)
        wait_until(lambda: sum(talker.lost for talker in talkers) > 2)
        proxy.calm()
        wait_until_heard(talkers, talkers[:2], 200)
        histories = [talker.history for talker in talkers]
        assert HistoryChecker(histories, histories[0].epoch).violations() == []
    finally:
        for talker in talkers:
            talker.client.close()
        proxy.close()


def test_password_is_never_sent_in_the_clear(serve):
    """A client with a password talks to no server in the clear."""
    plain = serve()
    env = {**harness.ENVIRONMENT, "ROGER_PASSWORD": "open sesame"}
    done = subprocess.run(client_command(plain.port), input=b"x\n", cwd=harness.ROOT, env=env,
                          capture_output=True, timeout=TIMEOUT)
    assert done.returncode == 1 and b"does not speak TLS" in done.stderr
    assert "joined" not in plain.stderr_text()
