"""HTTP on the chat's port: what is served, to whom, and what happens to requests that are wrong,
slow or hostile."""

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading

import pytest

import chat_web
import chatproto
import harness
from chatproto import ConnectionClosed
from harness import RawClient, TIMEOUT
from test_chatproto import cases
from webclient import KEY, WebClient, read_answer, request

SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
        "x-frame-options": "DENY"}


@pytest.fixture(scope="module")
def server():
    with harness.serving() as server:
        yield server


@pytest.fixture(scope="module")
def secret(server):
    """Of the host's view."""
    return server.printed("#host=")


@pytest.fixture
def get(server):
    def get(path, *headers, method="GET", body=b"", host=None):
        return request(server.port, f"{method} {path} HTTP/1.1",
                       f"Host: {host or f'127.0.0.1:{server.port}'}", *headers, body=body)
    return get


# --- What is served ---

def test_page(get):
    """The page comes as it is but for comments, empty lines and indentation, with a policy that
    lets only its own script and style run."""
    status, headers, body = get("/")
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
    page = (harness.ROOT / "chat_web.html").read_bytes()
    assert body == re.sub(rb"(?m)^\t*// .*\n|^<!-- [^>]*-->\n|^/\* .* \*/\n|^\n|^\t+", b"", page)
    policy = headers["content-security-policy"]
    for tag in (b"script", b"style"):
        content, = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), body, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert f"{tag.decode()}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers.items() >= SAFE.items()


def test_page_asks_nobody_else():
    """No address in the page leads elsewhere, nothing is loaded, and no text of others is ever
    taken for markup."""
    page = (harness.ROOT / "chat_web.html").read_text(encoding="utf-8")
    # That is the name of SVG.
    assert set(re.findall(r"https?://[\w.]+", page)) <= {"http://www.w3.org"}
    assert not re.search(
        r"\bsrc=|@import|url\(|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\son\w+=",
        page)


@pytest.mark.parametrize("name", ["chat_client.py", "chatproto.py"])
def test_files_for_a_newcomer(get, name):
    """The very files, as text that no browser runs."""
    status, headers, body = get(f"/{name}")
    assert status == 200 and body == (harness.ROOT / name).read_bytes()
    assert len(body) == int(headers["content-length"])
    assert headers["content-type"].startswith("text/plain") and headers.items() >= SAFE.items()
    status, headers, body = get(f"/{name}", method="HEAD")
    assert status == 200 and body == b""
    assert int(headers["content-length"]) == (harness.ROOT / name).stat().st_size


def test_newcomer_with_python(server, tmp_path, get):
    """Who fetches the two files from the page's line can chat."""
    for name in ("chat_client.py", "chatproto.py"):
        (tmp_path / name).write_bytes(get(f"/{name}")[2])
    done = subprocess.run([sys.executable, "chat_client.py", "127.0.0.1", str(server.port), "-n",
                           "newcomer"], cwd=tmp_path,
                          input="hello\n", capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", [
    "/x", "/chat_server.py", "/chat_web.py", "/chat_web.html", "/.git/config", "/tests/",
    "/../etc/passwd", "/%2e%2e/x", "/chat/", "/host/",
    "/favicon.ico", "//chat_client.py/", "/chat_client.py/..", "http://127.0.0.1/", "*", "/\xe4"])
def test_nothing_else_is_served(get, path):
    """Any other path is not found: no file, no directory."""
    status, headers, body = get(path)
    assert status == 404 and b"404" in body and headers.items() >= SAFE.items()
    assert headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("method",
                         ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "HEAD",
                          "BREW"])
@pytest.mark.parametrize("path", ["/", "/chat", "/chat_client.py", "/host"])
def test_other_methods(server, get, path, method):
    """A method that is not for this path is answered with those that are."""
    if method == "HEAD" and path in ("/", "/chat_client.py"):
        assert get(path, method=method)[0] == 200
    elif (path, method) == ("/host", "POST"):
        assert get(path, method=method)[0] == 403
    elif method == "BREW":
        # Nothing that begins so is HTTP to us, nor is it a frame.
        with RawClient(server.port) as client:
            client.send(f"BREW {path} HTTP/1.1\r\n\r\n".encode())
            assert client.recv()["code"] == "bad-frame" and client.eof()
    else:
        status, headers, body = get(path, method=method)
        assert status == 405 and "GET" in headers["allow"]


# --- Frames or HTTP ---

@pytest.mark.parametrize("first", [b"{", b" ", b"\t", b"\r"])
def test_frames_that_come_byte_by_byte(server, first):
    """A frame is one by its first byte, however slowly the rest comes."""
    with RawClient(server.port) as client:
        client.send(first)
        client.send(harness.encode({"type": "join", "name": f"slow{first[0]}"})[first == b"{":])
        if first == b"\r":
            assert client.recv()["type"] in ("welcome", "error")
        else:
            assert client.recv()["type"] == "welcome"


@pytest.mark.parametrize("cut", range(1, 6))
def test_request_that_comes_in_pieces(server, cut):
    """A request is one by what has come of its method's name."""
    data = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), cut):
            sock.sendall(data[start:start + cut])
        assert read_answer(sock)[0] == 200


def test_post_of_frames(server):
    """Lines in the body of some page's POST are never frames."""
    with RawClient(server.port, auto_ack=True) as other:
        other.join("listener")
        lines = b'{"type":"join","name":"web"}\n{"type":"chat","id":1,"text":"from a form"}\n'
        for path in ("/", "/chat", "/host", "/x"):
            status, _, body = request(server.port, f"POST {path} HTTP/1.1", "Host: localhost",
                                      "Content-Type: text/plain",
                                      f"Content-Length: {len(lines)}", body=lines)
            assert status in (403, 404, 405) and b"welcome" not in body
        other.say("the end")
        other.recv_until("chat", text="the end")
        assert '"web"' not in json.dumps(other.frames)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")
def test_peer_that_has_sent_one_byte_costs_nothing(server):
    """Nobody spins while the rest of a method's name, or of a frame, is awaited."""
    def ticks():
        with open(f"/proc/{server.process.pid}/stat") as file:
            return sum(map(int, file.read().rpartition(")")[2].split()[11:13]))
    socks = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    for number, sock in enumerate(socks):
        sock.sendall(b"G" if number % 2 else b"{")
    # When it is served, so are they.
    with RawClient(server.port) as client:
        client.join("watcher")
    before = ticks()
    # What is looked at is that nothing happens.
    threading.Event().wait(0.3)
    # Who spins uses 30 or more.
    assert ticks() - before < 15
    for sock in socks:
        sock.close()


# --- Wrong requests ---

@pytest.mark.parametrize("data, status", cases([
    ("no version", b"GET /\r\n\r\n", 400), ("other protocol", b"GET / FTP/1.1\r\n\r\n", 400),
    ("four words", b"GET / x HTTP/1.1\r\n\r\n", 400),
    ("only a method", b"GET \r\n\r\n", 400),
    ("version 2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("no host", b"GET / HTTP/1.1\r\n\r\n", 403),
    ("two hosts", b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
    ("no colon", b"GET / HTTP/1.1\r\nHost: localhost\r\nnonsense\r\n\r\n", 400),
    ("long line", b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
    ("long line without end", b"GET /" + b"x" * 9_000, 414),
    ("long header", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 9_000 + b"\r\n\r\n", 431),
    ("many headers", b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
    ("large headers",
     b"GET / HTTP/1.1\r\nHost: localhost\r\n" + (b"X: " + b"y" * 1000 + b"\r\n") * 50 + b"\r\n",
     431),
    ("old version", b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n", 200),
]))
def test_wrong_request(server, data, status):
    """What is no request, or too long, is answered as far as HTTP can, and closed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as sock:
        sock.sendall(data)
        assert read_answer(sock)[0] == status


@pytest.fixture
def impatient(monkeypatch):
    """A Web that gives requests little time; greet(data, seconds) is what becomes of a peer
    that sends `data`."""
    monkeypatch.setattr(chatproto, "LINGER", 0.1)
    web = chat_web.Web(None)

    def greet(data, seconds=0.1):
        monkeypatch.setattr(chat_web, "HTTP_TIMEOUT", seconds)
        theirs, ours = socket.socketpair()
        with theirs:
            theirs.settimeout(TIMEOUT)
            theirs.sendall(data)
            wire = chatproto.MessageSocket(ours)
            spoken = web.greet(wire, "127.0.0.1", seconds)
            if spoken is wire:
                wire.close()
                return "frames"
            return read_answer(theirs)[0]
    return greet


@pytest.mark.parametrize("data, outcome", [
    (b"G", 408), (b"GET / HTTP/1.1\r\nHost: local", 408), (b"", "frames"), (b"{", "frames"),
    (b"HELLO", "frames"), (b"\x16\x03\x01", "frames"),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 200)])
def test_request_that_is_too_slow(impatient, data, outcome):
    """A request that does not come is answered and closed; who says nothing is left to the time-out
    of the join."""
    assert impatient(data, 0.1 if outcome == 408 or not data else TIMEOUT) == outcome


def test_peer_that_does_not_read():
    """An answer that is not read is given up, and costs a thread no longer than that."""
    ours, theirs = socket.socketpair()
    with theirs:
        wire = chatproto.MessageSocket(ours)
        with pytest.raises(ConnectionClosed):
            wire.write_all(b"x" * 50_000_000, until=0)
        wire.close()


def test_peer_that_vanishes(server):
    """A request that breaks off leaves nothing behind."""
    for data in (b"", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        sock = socket.create_connection(("127.0.0.1", server.port))
        sock.sendall(data)
        sock.close()
    assert request(server.port, "GET / HTTP/1.1", "Host: localhost")[0] == 200


# --- Who may come ---

@pytest.mark.parametrize("host, status", [
    ("127.0.0.1", 200), ("127.0.0.1:{port}", 200), ("192.168.1.20:8087", 200),
    ("[::1]:{port}", 200), ("[fe80::1]", 200), ("localhost", 200),
    ("LOCALHOST:{port}", 200), (socket.gethostname(), 200),
    (socket.gethostname().upper() + ":{port}", 200),
    (socket.gethostname().partition(".")[0] + ".local", 200),
    ("evil.example", 403), ("evil.example:{port}", 403), ("localhost.evil.example", 403),
    ("127.0.0.1.nip.io", 403), ("127.0.0.1@evil.example", 403),
    ("", 403), ("localhost:x", 403), ("[::1", 403), ("127.0.0.1:{port}; x", 403),
    ("2130706433", 403), ("ws://x", 403), ("a'b", 403)])
def test_host(server, get, host, status):
    """A name that anybody can have lead here is refused: of a page at it the browser would think
    that it is ours."""
    for path in ("/", "/chat_client.py"):
        assert get(path, host=host.format(port=server.port) or " ")[0] == status


def upgrade(server, *more, host=None, origin=None, key=KEY, version="13",
            first="GET /chat HTTP/1.1"):
    host = host or f"127.0.0.1:{server.port}"
    lines = [first, f"Host: {host}", "Upgrade: websocket", "Connection: keep-alive, Upgrade",
             f"Sec-WebSocket-Version: {version}"]
    lines += [f"Sec-WebSocket-Key: {key}"] if key is not None else []
    lines += [f"Origin: {origin or 'http://' + host}"] if origin != "" else []
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as sock:
        sock.sendall("\r\n".join([*lines, *more, "", ""]).encode("latin-1"))
        answer = sock.recv(65536).decode("latin-1")
        return int(answer.split()[1]), answer


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1", "http://127.0.0.1:1",
                                    "https://127.0.0.1:{port}", "null", "",
                                    "http://127.0.0.1:{port}.evil.example",
                                    "http://127.0.0.1:{port}/", "http://localhost:{port}",
                                    "file://"])
def test_websocket_from_another_page(server, origin):
    """Origin must be this very host and port, as it was asked for."""
    assert upgrade(server, origin=origin.format(port=server.port))[0] == 403


@pytest.mark.parametrize("path", ["/", "/chat_client.py"])
def test_request_from_another_page(server, get, path):
    """Who says where its page is from gets nothing, unless that is our own."""
    assert get(path, "Origin: http://evil.example")[0] == 403
    assert get(path, f"Origin: http://127.0.0.1:{server.port}")[0] == 200


def test_websocket_of_a_rebound_name(server):
    """A name that was made to lead here is refused, though Origin and Host agree."""
    assert upgrade(server, host=f"evil.example:{server.port}")[0] == 403


@pytest.mark.parametrize("host",
                         ["127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}",
                          "LocalHost:{port}"])
def test_websocket_from_our_page(server, host):
    """The page joins by whatever name of ours it was opened."""
    status, answer = upgrade(server, host=host.format(port=server.port))
    assert status == 101 and "Sec-WebSocket-Extensions" not in answer


@pytest.mark.parametrize("fault, status, has", [
    (dict(version="8"), 426, "Sec-WebSocket-Version: 13"),
    (dict(version=""), 426, "Sec-WebSocket-Version: 13"), (dict(key=None), 400, ""),
    (dict(key="short"), 400, ""), (dict(key="AAAA"), 400, ""), (dict(key="!" * 24), 400, ""),
    (dict(first="GET /chat HTTP/1.0"), 400, ""),
    (dict(first="POST /chat HTTP/1.1"), 405, "Allow: GET")])
def test_handshake_that_is_wrong(server, fault, status, has):
    """A handshake with a fault is answered with what would be right."""
    got, answer = upgrade(server, **fault)
    assert got == status and has in answer


def test_handshake_that_is_none(get):
    """GET /chat without an upgrade is told to upgrade; extensions that are offered are not
    taken."""
    status, headers, _ = get("/chat", "Origin: http://127.0.0.1")
    assert status == 403
    status, headers, _ = get("/chat", "Origin: http://localhost", host="localhost")
    assert status == 426 and headers["upgrade"] == "websocket"


def test_two_keys(server):
    """A header that may come once comes once."""
    assert upgrade(server, f"Sec-WebSocket-Key: {KEY}")[0] == 400


# --- The host's view ---

def test_host_view_shows_people(server, secret, get):
    """With the secret: who is here, from where, for how long; and the message of the day."""
    with WebClient(server.port) as web, RawClient(server.port) as raw:
        web.join("webby")
        raw.join("rawley")
        status, headers, body = get("/host", f"X-Roger-Host: {secret}")
        state = json.loads(body)
        assert status == 200 and headers["content-type"] == "application/json"
        assert headers["cache-control"] == "no-store"
        people = {name: (address, seconds) for name, address, seconds, _ in state["people"]}
        assert people["webby"][0] == people["rawley"][0] == "127.0.0.1"
        assert 0 <= people["webby"][1] < 60
        assert state["motd"] == ""


@pytest.mark.parametrize("header", [(), ("X-Roger-Host: wrong",), ("X-Roger-Host: ",),
                                    ("X-Roger-Host: {secret}x",), ("X-Roger-Host: \xe4",)])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_host_view_without_the_secret(secret, get, method, header):
    """Anything else than the secret is refused, and tells nothing."""
    status, _, body = get("/host", *[line.format(secret=secret) for line in header],
                          "Content-Length: 2", method=method, body=b"{}")
    assert status == 403 and b"people" not in body


def test_host_view_from_elsewhere(secret, server, get):
    """The secret does nothing in a URL, from another page, or from another machine."""
    assert get(f"/host?host={secret}")[0] == 403
    assert get("/host", f"X-Roger-Host: {secret}", "Origin: http://evil.example")[0] == 403
    web = chat_web.Web(None)
    for address in ("192.168.1.7", "fe80::1%eth0", "10.0.0.1"):
        assert asked_from(web, address, "/host", f"X-Roger-Host: {web.secret}")[0] == 403


def asked_from(web, address, path, *headers):
    """What a browser at that address is answered."""
    theirs, ours = socket.socketpair()
    with theirs:
        theirs.sendall("\r\n".join([f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "",
                                    ""]).encode())
        theirs.shutdown(socket.SHUT_WR)
        assert web.greet(chatproto.MessageSocket(ours), address, 1) is None
        return read_answer(theirs)


def test_host_view_is_for_the_own_machine():
    """Elsewhere the page has nothing of it, and weighs less."""
    web = chat_web.Web(None)
    (_, _, here), (_, _, there) = (asked_from(web, address, "/") for address in
                                   ("127.0.0.1", "192.168.1.7"))
    assert b"X-Roger-Host" in here and b"host-people" in here
    assert b"X-Roger-Host" not in there and b"host-people" not in there
    assert b"</html>" in there and b"host's view" not in here + there


def test_host_view_acts(server, secret, get):
    """Boot with a reason, say as Server, set the message of the day."""
    def do(**order):
        body = json.dumps(order).encode()
        status, _, answer = get("/host", f"X-Roger-Host: {secret}", f"Content-Length: {len(body)}",
                                method="POST", body=body)
        return status, json.loads(answer) if answer[:1] == b"{" else answer
    with RawClient(server.port) as victim, RawClient(server.port) as other:
        victim.join("victim")
        other.join("witness")
        assert do(do="/boot VICTIM spam\x1b[31mming")[0] == 200
        assert victim.recv_until("booted")["reason"] == "spamming"
        assert other.recv_until("left", name="victim")["reason"] == "booted: spamming"
        assert do(do="/boot nobody") == (409, {"error": "nobody is or was called nobody"})
        assert do(do="/say lunch")[0] == 200
        assert other.recv_until("chat", text="lunch")["from"] == "Server"
        assert do(do="/say")[0] == do(do="/say " + "x" * 9000)[0] == 409
        assert do(do="/motd be kind")[1]["motd"] == "be kind"
        assert "<Server> lunch" in do(do="record")[1]["answer"]
    with RawClient(server.port) as newcomer:
        assert newcomer.join("newcomer2")["motd"] == "be kind"
    assert do(do="/motd -")[1]["motd"] == ""
    assert [do(do=what)[0] for what in ("dance", "/quit now", "/record x", 7)] == [400] * 4
    assert do()[0] == 400


@pytest.mark.parametrize("headers, body, status", [
    ((), b"", 411), (("Transfer-Encoding: chunked",), b"0\r\n\r\n", 411),
    (("Content-Length: x",), b"", 400), (("Content-Length: -1",), b"", 400),
    (("Content-Length: 1e3",), b"", 400), (("Content-Length: 99999999",), b"", 413),
    (("Content-Length: 5", "Content-Length: 6"), b"", 400),
    (("Content-Length: 2",), b"[]", 400), (("Content-Length: 3",), b"\xff\xff\xff", 400),
    (("Content-Length: 60000",), b"[" * 60_000, 400)])
def test_host_view_with_a_wrong_body(secret, get, headers, body, status):
    """A body that is too long, has no length or is no JSON object is refused."""
    assert get("/host", f"X-Roger-Host: {secret}", *headers, method="POST", body=body)[0] == status


# --- With and without it ---

def test_first_lines_of_the_server(server, secret):
    """The first line is what it was, then how others join, by a terminal and by a browser; last the
    host's page."""
    assert re.fullmatch(r"Listening on 0\.0\.0\.0:\d+", server.lines[0])
    assert re.match(r"Others join with: python3? chat_client\.py ", server.lines[1])
    assert re.fullmatch(rf"or in a browser: http://[\d.a-f:[\]]+:{server.port}/", server.lines[2])
    assert re.fullmatch(rf"Host's page: http://127\.0\.0\.1:{server.port}/#host=[\w-]{{32}}",
                        server.lines[3])


def test_server_without_the_files(tmp_path):
    """Without chat_web.py, or its page, or with --no-web, the server serves every other client as
    ever."""
    for name in ("chat_server.py", "chatproto.py"):
        (tmp_path / name).write_bytes((harness.ROOT / name).read_bytes())
    for step in ("no chat_web.py", "no chat_web.html"):
        process = subprocess.Popen([sys.executable, "chat_server.py", "0", "--bind", "127.0.0.1"],
                                   cwd=tmp_path, text=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL)
        port = int(process.stdout.readline().rpartition(":")[2])
        assert process.stdout.readline().startswith("Others join with")
        with RawClient(port) as client:
            client.join("ann")
        with RawClient(port) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv()["code"] == "bad-frame", step
        process.terminate()
        assert "browser" not in process.stdout.read() and process.wait(TIMEOUT) == 0
        process.stdout.close()
        (tmp_path / "chat_web.py").write_bytes((harness.ROOT / "chat_web.py").read_bytes())


def test_server_on_one_address_only():
    """On loopback the host's page is there; the line is left out where this machine cannot be told
    from others."""
    server = harness.start_server("--bind", "127.0.0.1")
    with RawClient(server.port) as client:
        client.join("ann")
    server.printed("#host=")
    server.stop()
    assert len(server.lines) == 4
