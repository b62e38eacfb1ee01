"""The certificate that a server makes for itself is one to everybody else: OpenSSL, Python's ssl,
and the published numbers of its curve."""

import base64
import calendar
import errno
import hashlib
import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
import time

import pytest

import chat_server
import chatproto
from chat_server import TlsError, certificate_key, keep_certificate, make_certificate

NAMES, ADDRESSES = ["lab3", "lab3.local", "b\u00fcro"], ["192.0.2.7", "2001:db8::7", "fe80::7%eth0"]
NOW = calendar.timegm((2026, 11, 26, 12, 0, 0))
DAY = 86_400
# k, x and y of k * G: SEC 2's generator, and NIST's list of points on P-256.
POINTS = [
    (1, 0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
     0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5),
    (2, 0x7CF27B188D034F7E8A52380304B51AC3C08969E277F21B35A60B48FC47669978,
     0x07775510DB8ED040293D9AC69F7430DBBA7DADE63CE982299E04B79D227873D1),
    (112233445566778899, 0x339150844EC15234807FE862A86BE77977DBFB3AE3D96F4C22795513AEAAB82F,
     0xB1C14DDFDC8EC1B2583F51E85A5EB3A155840F2034730E9B5ADA38B674336A21)]


@pytest.fixture(scope="module")
def made():
    """A certificate and its key, as PEM."""
    return make_certificate(NAMES, ADDRESSES, time.time())


def openssl(*arguments, text="", fails=False):
    """What the openssl command prints, on stdout and stderr."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not on this machine")
    done = subprocess.run(["openssl", *arguments], input=text, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=30)
    assert bool(done.returncode) == fails, done.stdout
    return done.stdout


def der_of(pem):
    return ssl.PEM_cert_to_DER_cert(re.search(r"-+BEGIN CERT.*?END CERTIFICATE-+\n", pem,
                                              re.DOTALL)[0])


def test_points():
    """Multiples of the generator are what the standards say; the order times it is none."""
    for factor, x, y in POINTS:
        assert chat_server._multiply(factor, chat_server._G) == (x, y)
    x, y = chat_server._G
    last = chat_server._multiply(chat_server._N - 1, chat_server._G)
    assert last == (x, chat_server._P - y)
    assert chat_server._add(last, chat_server._G) is None
    assert chat_server._add(None, chat_server._G) == chat_server._G


@pytest.mark.parametrize("size, head", [(0, "0400"), (127, "047f"), (128, "048180"),
                                        (256, "04820100"), (65_536, "0483010000")])
def test_lengths(size, head):
    """Short and long forms (X.690, 8.1.3)."""
    encoded = chat_server._der(0x04, bytes(size))
    assert encoded.hex().startswith(head) and len(encoded) == size + len(head) // 2
    assert chatproto._element(encoded, 0, 0x04) == (len(head) // 2, len(encoded))


@pytest.mark.parametrize("bad", ["30", "3000", "0480", "048000", "04810100", "0484ffffffff", "0481",
                                 "0402ff", pytest.param("04820080" + 128 * "00", id="0482")])
def test_lengths_that_are_none(bad):
    """Another tag, no end, a longer form than is needed, more than is there."""
    with pytest.raises(ValueError):
        chatproto._element(bytes.fromhex(bad), 0, 0x04)


@pytest.mark.parametrize("when, encoded", [
    (0, b"\x17\x0d700101000000Z"), (2524607999, b"\x17\x0d491231235959Z"),
    (2524608000, b"\x18\x0f20500101000000Z")])
def test_times(when, encoded):
    """Two digits of the year until 2049, four from then on."""
    assert chat_server._der_time(when) == encoded


def test_openssl_reads_it(made):
    """Version 3, the machine's names and addresses, a server's and no authority's."""
    text = openssl("x509", "-noout", "-text", text=made[0])
    for line in ("Version: 3", "ecdsa-with-SHA256", "ASN1 OID: prime256v1", "CN = lab3",
                 "DNS:lab3, DNS:lab3.local, IP Address:192.0.2.7, "
                 "IP Address:2001:DB8:0:0:0:0:0:7, IP Address:FE80:0:0:0:0:0:0:7",
                 "CA:FALSE", "Digital Signature", "TLS Web Server Authentication",
                 "Subject Key Identifier"):
        assert line in text or line.replace(" = ", "=") in text, line


def test_openssl_verifies_it(made, tmp_path):
    """The signature is right; with a changed byte it is not. Key and certificate are a pair."""
    (tmp_path / "cert.pem").write_text(made[0])
    path = str(tmp_path / "cert.pem")
    assert "OK" in openssl("verify", "-check_ss_sig", "-CAfile", path, path)
    der = bytearray(der_of(made[0]))
    der[-1] ^= 1
    (tmp_path / "bad.pem").write_text(ssl.DER_cert_to_PEM_cert(bytes(der)))
    openssl("verify", "-check_ss_sig", "-CAfile", str(tmp_path / "bad.pem"),
            str(tmp_path / "bad.pem"), fails=True)
    assert "valid" in openssl("pkey", "-noout", "-check", text=made[1])
    assert openssl("pkey", "-pubout", text=made[1]) == openssl("x509", "-noout", "-pubkey",
                                                               text=made[0])


def test_trust_key(made):
    """The key that people compare is that of the public key as OpenSSL has it."""
    public = openssl("x509", "-noout", "-pubkey", text=made[0])
    der = base64.b64decode("".join(public.split("\n")[1:-2]))
    expected = base64.b32encode(hashlib.sha256(der).digest()[:10]).decode()
    key = chatproto.trust_key(der_of(made[0]))
    assert key.replace("-", "") == expected and re.fullmatch("([A-Z2-7]{4}-){3}[A-Z2-7]{4}", key)


def test_trust_key_of_others(tmp_path):
    """It works for any certificate: with an RSA key, and in version 1, which says no version."""
    key, path = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout", key,
            "-out", path)
    with open(path) as file:
        pem = file.read()
    public = openssl("x509", "-noout", "-pubkey", text=pem)
    der = base64.b64decode("".join(public.split("\n")[1:-2]))
    assert chatproto.trust_key(der_of(pem)).replace("-", "") == base64.b32encode(
        hashlib.sha256(der).digest()[:10]).decode()
    # The version is five bytes, behind the heads of the certificate and of its body.
    old = der_of(pem)
    assert old[8:13] == b"\xa0\x03\x02\x01\x02" and old[1] == old[5] == 0x82
    shorter = [(int.from_bytes(old[at:at + 2], "big") - 5).to_bytes(2, "big") for at in (2, 6)]
    old = old[:2] + shorter[0] + old[4:6] + shorter[1] + old[13:]
    assert chatproto.trust_key(old) == chatproto.trust_key(der_of(pem))


def crafted(victim, version, algorithm):
    """A certificate for a key of one's own, as PEM with that key. The victim's public key stands in
    its signature's algorithm; version(content) and algorithm(content) encode these two."""
    key, make, der = chat_server._new_scalar(), chat_server._der, der_of(victim)
    start = der.index(bytes.fromhex("3059301306072a8648ce3d0201"))
    mine, private = make_certificate(["x"], [], NOW, key)
    mine = der_of(mine)
    begin = mine.index(bytes.fromhex("3059301306072a8648ce3d0201"))
    oid = chat_server._ECDSA_SHA256
    name = make(0x30, make(0x31, make(0x30, chat_server._COMMON_NAME, make(0x0c, b"x"))))
    body = make(0x30, version(b"\x02\x01\x02"), b"\x02\x01\x07",
                algorithm(oid + der[start:start + 91]), name,
                make(0x30, chat_server._der_time(NOW), chat_server._der_time(NOW + DAY)), name,
                mine[begin:begin + 91])
    whole = make(0x30, body, make(0x30, oid), make(0x03, b"\0", chat_server._sign(key, body)))
    return ssl.DER_cert_to_PEM_cert(whole), private, chatproto.trust_key(mine)


def test_trust_key_of_an_impostor(made, tmp_path):
    """A certificate that OpenSSL takes for another key never has the trust key of the victim: not
    where its lengths are in a form in which the way to the key could be read in two ways."""
    def plain(tag):
        return lambda content: chat_server._der(tag, content)

    def endless(tag):
        return lambda content: bytes((tag, 0x80)) + content + b"\0\0"

    victim = chatproto.trust_key(der_of(made[0]))
    certificate, _, own = crafted(made[0], plain(0xa0), plain(0x30))
    assert chatproto.trust_key(der_of(certificate)) == own != victim
    for version, algorithm in ((endless(0xa0), endless(0x30)), (plain(0xa0), endless(0x30)),
                               (endless(0xa0), plain(0x30))):
        certificate, private, _ = crafted(made[0], version, algorithm)
        (tmp_path / "x.pem").write_text(certificate + private)
        # OpenSSL does take it, and finds that it is for the impostor's key.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "x.pem")
        with pytest.raises(ValueError):
            chatproto.trust_key(der_of(certificate))


def test_trust_key_of_garbage(made):
    """What is no certificate is told so, wherever it is cut."""
    der = der_of(made[0])
    for bad in [b"", b"\x30", b"x" * 100, b"\x30\x84\xff\xff\xff\xff", *(
            der[:size] for size in range(0, len(der), 7))]:
        with pytest.raises(ValueError):
            chatproto.trust_key(bad)


def test_trust_key_behind_the_body():
    """A public key that stands where the certificate's body is over already is not its key."""
    sequence = chat_server._der(0x30)
    parts, key = [b"\x02\x01\x07", sequence, sequence, sequence, sequence], b"\x30\x02\x05\0"
    inside = chat_server._der(0x30, chat_server._der(0x30, *parts, key))
    outside = chat_server._der(0x30, chat_server._der(0x30, *parts), key)
    assert chatproto.trust_key(inside)
    with pytest.raises(ValueError):
        chatproto.trust_key(outside)


@pytest.mark.parametrize("typed", ["K3QF-7T2M-5XWB-4HDN", "k3qf7t2m5xwb4hdn",
                                   " K3QF 7T2M 5XWB 4HDN "])
def test_trust_key_as_typed(typed):
    """In any case, with or without what makes it readable."""
    assert chatproto.check_trust_key(typed) == "K3QF-7T2M-5XWB-4HDN"


@pytest.mark.parametrize("typed", ["", "K3QF-7T2M-5XWB", "K3QF-7T2M-5XWB-4HD1", "x" * 10_000,
                                   "K3QF-7T2M-5XWB-4HDN-AAAA", "\u212a3QF-7T2M-5XWB-4HDN"])
def test_trust_key_that_is_none(typed):
    """One sentence that shows what a key looks like."""
    with pytest.raises(ValueError, match="K3QF-7T2M-5XWB-4HDN"):
        chatproto.check_trust_key(typed)


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7", "lab3.local"])
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_handshake(made, tmp_path, host, version):
    """Who has the certificate as an authority verifies the server by each of its names."""
    path = tmp_path / "both.pem"
    path.write_text("".join(made))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    client = ssl.create_default_context(cadata=made[0])
    client.maximum_version = client.minimum_version = ssl.TLSVersion[version]
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server, server_hostname=host),
            server.wrap_bio(to_server, to_client, server_side=True)]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    assert ends[0].version() == version.replace("_", ".")
    assert chatproto.trust_key(ends[0].getpeercert(True)) == chatproto.trust_key(der_of(made[0]))


# --- The kept one ---

def kept(path, now=NOW, names=NAMES, addresses=ADDRESSES):
    """The file's text, and the key to trust."""
    keep_certificate(str(path), names, addresses, now)
    text = path.read_text()
    return text, chatproto.trust_key(der_of(text))


def test_kept(tmp_path):
    """It is made once, in a folder of its own if need be, and only its owner may read it."""
    path = tmp_path / "roger" / "server.pem"
    text, _ = kept(path)
    assert kept(path, NOW + 300 * DAY)[0] == text
    assert os.listdir(path.parent) == ["server.pem"]
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)


@pytest.mark.parametrize("change", [
    {"now": NOW + 750 * DAY}, {"now": NOW + 5_000 * DAY}, {"now": NOW - 30 * DAY},
    {"addresses": ["198.51.100.1"]}, {"names": ["lab4"]}])
def test_renewed_under_the_same_key(tmp_path, change):
    """Before it ends, when the clock was wrong, and for new addresses: whoever trusted it goes
    on."""
    path = tmp_path / "server.pem"
    text, key = kept(path)
    renewed, same = kept(path, **change)
    assert renewed != text and same == key and certificate_key(renewed) == certificate_key(text)
    assert kept(path, **change)[0] == renewed


@pytest.mark.parametrize("damage", [
    lambda text: "no certificate", lambda text: text[:200], lambda text: text[:-200],
    lambda text: text.replace("EC PRIVATE KEY", "PRIVATE KEY"), lambda text: text.upper(),
    lambda text: "\u00fc" + text])
def test_damaged(tmp_path, damage):
    """One clear line that says what removing it costs, and the file stays as it is."""
    path = tmp_path / "server.pem"
    text = damage(kept(path)[0])
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TlsError, match="trust anew"):
        kept(path)
    assert path.read_text(encoding="utf-8") == text


def lines_of(text, label):
    """The base64 in the PEM block of that label, and where it begins."""
    found = re.search(f"BEGIN {label}-----\n(.*?)-----END {label}", text, re.DOTALL)
    return found[1], found.start(1)


def test_key_of_another_certificate(tmp_path):
    """Certificate and key have to be a pair: else nobody would know the server any more."""
    path = tmp_path / "server.pem"
    text = make_certificate(NAMES, ADDRESSES, NOW)[0] + make_certificate(NAMES, ADDRESSES, NOW)[1]
    path.write_text(text)
    for now in (NOW, NOW + 790 * DAY):
        with pytest.raises(TlsError, match="no pair.*trust anew"):
            kept(path, now)
    assert path.read_text() == text


def test_damaged_certificate(tmp_path):
    """Whichever character of the certificate is another one, it is said, or OpenSSL can use it as
    it is (then the character was of the serial number, say)."""
    path = tmp_path / "server.pem"
    text, key = kept(path)
    block, begin = lines_of(text, "CERTIFICATE")
    said = 0
    for at in range(begin, begin + len(block), 13):
        path.write_text(text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1:])
        try:
            assert kept(path)[1] == key
        except TlsError as error:
            said += "trust anew" in str(error)
        else:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)
    # The heads of its parts, and the key, at least.
    assert said > 10


def test_damaged_key(tmp_path):
    """Whichever character of the secret number is another one: it is said, also when it is time for
    a new certificate, which would be for that wrong number."""
    path = tmp_path / "server.pem"
    text, _ = kept(path)
    _, begin = lines_of(text, "EC PRIVATE KEY")
    # Bytes 7 to 38 of the key: characters 10 to 50 have bits of nothing else.
    for at in range(begin + 10, begin + 51, 8):
        path.write_text(text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1:])
        with pytest.raises(TlsError, match="trust anew"):
            kept(path, NOW + 790 * DAY)


def test_folder_that_cannot_be(tmp_path):
    """What cannot be written is said with its reason."""
    (tmp_path / "file").write_text("")
    with pytest.raises(TlsError, match="server.pem cannot be kept: "):
        kept(tmp_path / "file" / "server.pem")


def test_disk_full(tmp_path, monkeypatch):
    """When the new one cannot be written, the old one stays, and nothing with a secret in it is
    left beside it."""
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "server.pem"
    text, _ = kept(path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TlsError, match=os.strerror(errno.ENOSPC)):
        kept(path, NOW + 790 * DAY)
    assert path.read_text() == text and os.listdir(tmp_path) == ["server.pem"]


@pytest.mark.parametrize("names, subject", [
    ([], "Roger"), (["b\u00fcro"], "b\\C3\\BCro"), (["a\udcff"], "a?"),
    (["", "\u00fc"], "\\C3\\BC"), (["x" * 65 + "\u00fc"], "x" * 64)])
def test_machine_without_names(names, subject, tmp_path):
    """Neither names nor addresses, or none that a certificate can have: it has a subject, and says
    nothing of others."""
    certificate, key = make_certificate(names, [], time.time())
    text = openssl("x509", "-noout", "-text", text=certificate)
    assert re.search("Subject: CN ?= ?(.*)", text)[1] == subject
    assert "Alternative" not in text
    path = tmp_path / "cert.pem"
    path.write_text(certificate)
    assert "OK" in openssl("verify", "-check_ss_sig", "-x509_strict", "-CAfile", str(path),
                           str(path)) and certificate_key(key)
