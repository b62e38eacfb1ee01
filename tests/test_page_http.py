"""How the page comes: its weight, compressed, once a version; and a request without a version."""

import gzip
import re

import chat_web
import harness
import pytest
from webclient import request

# Bytes that the page may weigh; and with the host's view, which goes to the server's own machine.
PLAIN, COMPRESSED = 100 * 1024, 34 * 1024
HOSTS_PLAIN, HOSTS_COMPRESSED = 120 * 1024, 40 * 1024


@pytest.fixture(scope="module")
def server():
    with harness.serving() as server:
        yield server


@pytest.fixture
def get(server):
    def get(*headers, method="GET", path="/"):
        return request(server.port, f"{method} {path} HTTP/1.1", "Host: localhost", *headers)
    return get


def test_weight(get):
    """The page is at most 100 KB, 34 KB compressed, and 120 and 40 with the host's view; and as it
    is or compressed it is the same page."""
    _, headers, plain = get()
    assert "content-encoding" not in headers and int(headers["content-length"]) == len(plain)
    status, headers, packed = get("Accept-Encoding: gzip, deflate, br")
    assert status == 200 and headers["content-encoding"] == "gzip"
    assert int(headers["content-length"]) == len(packed)
    assert gzip.decompress(packed) == plain
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert len(plain) <= HOSTS_PLAIN and len(packed) <= HOSTS_COMPRESSED, (len(plain), len(packed))
    page = chat_web.Page.load(str(harness.ROOT / "chat_web.html"), is_hosts=False)
    weight = len(page.body), len(page.packed)
    assert weight[0] <= PLAIN and weight[1] <= COMPRESSED, weight


@pytest.mark.parametrize("is_hosts", [False, True])
def test_every_phrase_and_place_is_there(is_hosts):
    """What the page asks for by a key or an id is in it, with the host's view and without."""
    page = chat_web.Page.load(str(harness.ROOT / "chat_web.html"), is_hosts=is_hosts).body.decode()
    before, _, behind = page.partition("Object.fromEntries(`")
    words, _, behind = behind.partition("`.trim()")
    keys = set(re.findall(r"^([\w -]+)(?=\||$)", words, re.MULTILINE))
    rest = before + behind
    asked = re.findall(r'\btn?\("([\w -]+)"', rest)
    asked += re.findall(r'data-(?:t|label|placeholder)="([^"]+)"', rest)
    assert len(asked) > 100 and set(asked) <= keys
    ids = set(re.findall(r'\bid="([\w-]+)"', before))
    assert set(re.findall(r'\$\("([\w-]+)"\)', behind)) <= ids


@pytest.mark.parametrize("accepts, packed", [
    ("gzip", True), ("GZIP", True), ("br, gzip", True), ("gzip;q=0", False),
    ("gzip;q=0.000", False), ("deflate, br", False), ("", False),
    ("gzipped", False), ("identity", False), ("gzip;q=;", False), (",,;", False)])
def test_who_takes_gzip(get, accepts, packed):
    """Only who says that it takes gzip gets it."""
    status, headers, _ = get(f"Accept-Encoding: {accepts}")
    assert status == 200 and ("content-encoding" in headers) == packed
    assert headers["vary"] == "Accept-Encoding"


def test_same_page_again(get):
    """The browser asks each time, and is told that it has the page already: no body, the same
    policy."""
    _, first, _ = get("Accept-Encoding: gzip")
    assert first["cache-control"] == "no-cache"
    for tag in (first["etag"], first["etag"][2:], f'"x", {first["etag"]}', "*"):
        status, headers, body = get(f"If-None-Match: {tag}", "Accept-Encoding: gzip")
        assert (status, body) == (304, b"") and "content-length" not in headers
        assert headers["etag"] == first["etag"]
        assert headers["content-security-policy"] == first["content-security-policy"]
    for tag in ('"other"', 'W/"other"', first["etag"][3:-1], ""):
        status, _, body = get(f"If-None-Match: {tag}")
        assert status == 200 and body
    status, headers, body = get(f"If-None-Match: {first['etag']}", method="HEAD")
    assert (status, body) == (304, b"")


def test_tag_of_another_page(tmp_path):
    """Another page has another tag, and is compressed alike each time."""
    page = (harness.ROOT / "chat_web.html").read_bytes()
    (tmp_path / "one").write_bytes(page)
    (tmp_path / "two").write_bytes(page.replace(b"Roger", b"Regor"))
    (tmp_path / "dos").write_bytes(page.replace(b"\n", b"\r\n"))
    one, two, dos = (chat_web.Page.load(str(tmp_path / name)) for name in ("one", "two", "dos"))
    assert one.etag == dos.etag != two.etag and one.body == dos.body
    assert re.fullmatch(r'W/"[0-9a-f]{32}"', one.etag)


@pytest.mark.parametrize("line", ["GET /", "GET / ", "GET  /"])
def test_request_without_a_version(server, line):
    """It is answered with an error, and is no bug of ours."""
    status, _, body = request(server.port, line, "Host: localhost")
    assert status == 400 and b"no request" in body or status == 400
    server.assert_healthy()
