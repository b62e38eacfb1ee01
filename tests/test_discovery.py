"""The right address is printed, and a server is found without one: on every kind of network.

The networks are Linux's network namespaces, each with a server's machine and a client's, and no way
out of them. Where they cannot be made those tests are skipped.
"""

import collections
import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest

import chat_client
import chat_server
import chatproto
from chatproto import MACHINES, TUNNEL, WIRE, Address, Answer
from harness import CLIENT, ROOT, SERVER, TIMEOUT


# --- Which address is the likely one ---

def addresses(*pairs):
    """Addresses from pairs of interface and ip, in the system's order."""
    return [Address(ip, name, number, chatproto._kind_of(name))
            for number, (name, ip) in enumerate(pairs, 1)]


@pytest.mark.parametrize("pairs, routed, expected", [
    ([("lo", "127.0.0.1")], "", []),
    ([("lo", "::1"), ("eth0", "192.168.1.20")], "", ["192.168.1.20"]),
    # A VPN has the default route.
    ([("tun0", "10.8.0.2"), ("wlan0", "192.168.1.20")], "10.8.0.2", ["192.168.1.20", "10.8.0.2"]),
    ([("utun3", "100.64.0.7"), ("en0", "10.0.0.5")], "100.64.0.7", ["10.0.0.5", "100.64.0.7"]),
    # Containers and virtual machines.
    ([("docker0", "172.17.0.1"), ("br-0123456789ab", "172.18.0.1"), ("enp3s0", "192.168.1.20")],
     "192.168.1.20", ["192.168.1.20", "172.17.0.1", "172.18.0.1"]),
    ([("vEthernet (WSL)", "172.20.0.1"), ("Wi-Fi", "192.168.1.20")], "", ["192.168.1.20",
                                                                           "172.20.0.1"]),
    # A bridge that somebody made for the LAN is none of a container's.
    ([("br0", "192.168.1.20"), ("virbr0", "192.168.122.1")], "", ["192.168.1.20",
                                                                  "192.168.122.1"]),
    # Private before others, of two alike the default route's.
    ([("eth0", "203.0.114.9"), ("eth1", "10.1.2.3")], "203.0.114.9", ["10.1.2.3", "203.0.114.9"]),
    ([("eth0", "10.1.2.3"), ("wlan0", "192.168.1.20")], "192.168.1.20", ["192.168.1.20",
                                                                         "10.1.2.3"]),
    ([("eth0", "10.1.2.3"), ("wlan0", "192.168.1.20")], "", ["10.1.2.3", "192.168.1.20"]),
    # IPv6 after IPv4, link-local IPv6 last of all.
    ([("eth0", "fe80::1"), ("eth0", "fd00::1"), ("eth0", "169.254.3.4"), ("tun0", "10.8.0.2")], "",
     ["169.254.3.4", "fd00::1", "10.8.0.2", "fe80::1%eth0"]),
    ([("eth0", "fe80::1")], "", ["fe80::1%eth0"]),
])
def test_lan_addresses_likely_one_first(monkeypatch, pairs, routed, expected):
    """Real interfaces, private ranges and the default route come first, in this order."""
    monkeypatch.setattr(chatproto, "own_addresses", lambda: addresses(*pairs))
    monkeypatch.setattr(chatproto, "_routed_address", lambda: routed)
    assert [each.host for each in chatproto.lan_addresses()] == expected


@pytest.mark.parametrize("kind, names", [
    (WIRE, "eth0 enp0s31f6 wlan0 wlp2s0 en0 en5 br0 bond0 usb0 Ethernet Wi-Fi team0 vlan7 wwan0"),
    (MACHINES, "docker0 br-1a2b veth12ab virbr0 vmnet8 vboxnet0 lxcbr0 lxdbr0 cni0 awdl0 "
               "bridge100 vEthernet"),
    (TUNNEL, "tun0 tap0 utun2 wg0 ppp0 tailscale0 zt7nnig26 ipsec0 nordlynx OpenVPN ProtonVPN")])
def test_kind_of_interfaces(kind, names):
    """Interfaces are told apart by how the systems name them."""
    assert {name: chatproto._kind_of(name) for name in names.split()} == dict.fromkeys(
        names.split(), kind)


def test_own_addresses_of_this_machine():
    """The system's list has the loopback, and each interface by its number."""
    found = chatproto.own_addresses()
    assert "127.0.0.1" in {each.ip for each in found}
    numbers = {number for number, _ in socket.if_nameindex()}
    assert {each.number for each in found} <= numbers | {0}
    if os.name == "posix":
        assert all(socket.if_nametoindex(each.interface) == each.number for each in found)


@pytest.mark.parametrize("fails", [ImportError, OSError, AttributeError])
def test_own_addresses_without_ctypes(monkeypatch, fails):
    """Where the system does not tell, there is still what the routes say."""
    def fail():
        raise fails
    monkeypatch.setattr(chatproto, "_posix_addresses", fail)
    monkeypatch.setattr(chatproto, "_windows_addresses", fail)
    monkeypatch.setattr(chatproto, "_routed_address", lambda: "192.168.1.20")
    assert [each.ip for each in chatproto.own_addresses()] == ["192.168.1.20", "127.0.0.1"]


# --- Question and answer ---

LAB = Answer("Lab 3", 9000, 12, "1.0", True, "ab12", "K3QF-7T2M-5XWB-4HDN")


def test_question_and_answer():
    """As DESIGN.md has them: an answer is never longer than its question."""
    question = chatproto.encode_question("t0k")
    assert len(question) == 512 and json.loads(question) == {"roger": 1, "ask": "t0k"}
    assert chatproto.decode_question(question) == "t0k"
    answer = chatproto.encode_answer("t0k", LAB)
    assert json.loads(answer) == {"roger": 1, "answer": "t0k", **LAB._asdict()}
    in_clear = chatproto.encode_answer("t0k", LAB._replace(tls=False, key=""))
    assert "key" not in json.loads(in_clear)
    assert chatproto.decode_answer(answer, "t0k") == LAB
    longest = Answer("\U0001f600" * chatproto.MAX_TITLE, 65_535, chatproto.MAX_ID, "1.0", True,
                     "f" * 16, LAB.key)
    assert len(chatproto.encode_answer('"' * 64, longest)) <= 512


@pytest.mark.parametrize("data", [
    b"", b"x" * 512, b"{}" + b" " * 510, b'{"roger":1,"ask":"short"}', b"[" * 512, b"\xff" * 512,
    b'{"roger":2,"ask":"t"}'.ljust(512), b'{"roger":1,"ask":7}'.ljust(512),
    b'{"roger":1,"ask":null}'.ljust(512), b'{"roger":1}'.ljust(512), b"[1]".ljust(512),
    json.dumps({"roger": 1, "ask": "t" * 65}).encode().ljust(512),
    json.dumps({"roger": 1, "ask": "\x01"}).encode().ljust(512),
    json.dumps({"roger": 1, "ask": "\u65e5"}).encode().ljust(512)])
def test_question_that_is_none(data):
    """What is no question is not answered; one that is shorter than an answer is none."""
    assert chatproto.decode_question(data) is None


@pytest.mark.parametrize("fields", [
    {"answer": "other"}, {"answer": None}, {"port": 0}, {"port": 65_536}, {"port": "80"},
    {"port": True}, {"here": -1}, {"here": 1.5}, {"name": 7}, {"name": ["x"]}, {"tls": 0},
    {"roger": 2}, {"id": {}}, {"version": None}, {"key": 1}])
def test_answer_that_is_none(fields):
    """Anybody may send anything to one who asks."""
    data = json.dumps({"roger": 1, "answer": "t0k", **LAB._asdict(), **fields}).encode()
    assert chatproto.decode_answer(data, "t0k") is None


def test_answer_of_another_version():
    """Unknown fields are ignored, those for the eye may be missing, and names are tamed."""
    data = json.dumps({"roger": 1, "answer": "t", "port": 80, "new": [1], "name": "\x1b[2Ja" * 99})
    answer = chatproto.decode_answer(data.encode(), "t")
    assert answer == Answer("a" * 40, 80, 0, "", False, "")


@pytest.fixture
def responder():
    """A server on loopback that answers, and how to close it."""
    server = chat_server.ChatServer("127.0.0.1", 0)
    server.start()
    responders = [chat_server.Responder(server, "Lab 3")]
    yield server
    responders[0].close()
    responders[0].close()
    server.server_close()
    assert not responders[0]._thread.is_alive()


def ask(port, count):
    """Ask so often; the answers, up to the one to a last question from another address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first, socket.socket(
            socket.AF_INET, socket.SOCK_DGRAM) as last:
        first.bind(("127.0.0.1", 0))
        last.bind(("127.0.0.2" if sys.platform == "linux" else "127.0.0.1", 0))
        for sock in (first, last):
            sock.settimeout(TIMEOUT)
        for number in range(count):
            first.sendto(chatproto.encode_question(f"t{number}"), ("127.0.0.1", port))
        if sys.platform == "linux":
            last.sendto(chatproto.encode_question("last"), ("127.0.0.1", port))
            assert chatproto.decode_answer(last.recv(1024), "last") is not None
            first.settimeout(0)
        answers = []
        with contextlib.suppress(BlockingIOError, socket.timeout):
            while len(answers) < count:
                answers.append(first.recv(1024))
        return answers


def test_responder_answers_the_asker(responder):
    """Name, port, people, version; the one answer to one question."""
    (data,) = ask(responder.port, 1)
    answer = chatproto.decode_answer(data, "t0")
    assert answer[:5] == ("Lab 3", responder.port, 0, chatproto.__version__, False)
    assert re.fullmatch("[0-9a-f]{16}", answer.id)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second address")
def test_responder_is_no_amplifier(responder):
    """One address gets 10 answers at once, then 10 a second; whoever asks more does not keep others
    from theirs."""
    begun = time.monotonic()
    answers = ask(responder.port, 100)
    assert 10 <= len(answers) <= 10 + 10 * (time.monotonic() - begun)


class Forged:
    """A socket to which a question comes from any address; it counts the answers by address."""

    family = socket.AF_INET

    def __init__(self):
        self.asker = ""
        self.answers = collections.Counter()

    def recvfrom(self, _):
        return chatproto.encode_question("token"), (self.asker, 5000)

    def sendto(self, _, asker):
        self.answers[asker[0]] += 1


def test_made_up_addresses_do_not_reset_the_limit(responder):
    """Thousands that nobody has, and then the first one again: it still gets no more."""
    forged, begun = Forged(), time.monotonic()
    answering = chat_server.Responder(responder, "Lab 3")
    many = [f"10.1.{number // 250}.{number % 250}" for number in range(chat_server.ADDRESSES * 2)]
    for forged.asker in ["10.0.0.1"] * 100 + many + ["10.0.0.1"] * 100:
        answering._attend(forged)
    answering.close()
    assert 10 <= forged.answers["10.0.0.1"] <= 10 + 10 * (time.monotonic() - begun)
    assert len(forged.answers) > 1_000


def test_responder_survives_nonsense(responder):
    """What is no question is not answered, and the next one is."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for data in (b"", b"[" * 2000, b"\xff" * 512, os.urandom(512)):
            sock.sendto(data, ("127.0.0.1", responder.port))
    assert len(ask(responder.port, 1)) == 1


def test_find_servers_on_a_host(responder):
    """A machine can be asked alone; a server is found once, however often it answers."""
    found = chat_client.find_servers(responder.port, ["127.0.0.1", "localhost"])
    assert [server for server in found if server.port == responder.port] == [
        ("127.0.0.1", responder.port, "Lab 3", 0)]


# --- Networks ---

# Networks: each line is a command.
IPV6_ONLY = ["ip addr add fd00:7::{n}/64 dev eth0 nodad"]
PRIVATE = ["ip addr add 192.168.7.{n}/24 dev eth0"]


def more(interface, address):
    """Another interface, which leads nowhere."""
    return [f"ip link add {interface} type veth peer name other", "ip link set other up",
            f"ip addr add {address} dev {interface}", f"ip link set {interface} up"]


TUN = [*more("tun0", "10.8.0.2/24"), "ip route add default dev tun0"]
CONTAINERS = more("docker0", "172.17.0.1/16")
SECOND = [*more("eth1", "10.1.2.3/24"), "ip route add default via 192.168.7.1"]
# What is done on both machines, what on the server's alone, and the addresses that are printed.
NETWORKS = {
    "no default route": (PRIVATE, [], r"192\.168\.7\.20"),
    "two interfaces": (PRIVATE, SECOND, r"192\.168\.7\.20"),
    "a VPN as default": (PRIVATE, TUN, r"192\.168\.7\.20"),
    "containers": (PRIVATE, CONTAINERS, r"192\.168\.7\.20"),
    "IPv6 only": (IPV6_ONLY, [], r"fd00:7::20"),
    "link-local IPv4": (["ip addr add 169.254.3.{n}/16 dev eth0"], [], r"169\.254\.3\.20"),
    "link-local only": ([], [], r"fe80::[0-9a-f:]+%eth0"),
}
ROOTLESS = [] if hasattr(os, "getuid") and os.getuid() == 0 else ["-U", "--preserve-credentials"]


class Machine:
    """A network namespace, held by a process that does nothing; in `within`'s user namespace."""

    def __init__(self, within=None):
        if within is not None and ROOTLESS:
            command = ["nsenter", "-t", str(within.pid), *ROOTLESS, "unshare", "-n", "cat"]
        else:
            command = ["unshare", "-n", *(["-r"] if ROOTLESS else []), "cat"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL)
        self.pid = self.process.pid
        with contextlib.suppress(OSError):
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()
        if not self.process.stdout.readline():
            self.close()
            raise OSError("no namespaces here")

    def within(self, command):
        """The command that runs `command` on this machine."""
        return ["nsenter", "-t", str(self.pid), "-n", *ROOTLESS, *command]

    def run(self, command, **options):
        return subprocess.run(self.within(command), capture_output=True, text=True, cwd=ROOT,
                              timeout=TIMEOUT, **options)

    def do(self, lines):
        """Configure it."""
        for line in lines:
            subprocess.run(self.within(line.split()), check=True, capture_output=True)

    def close(self):
        self.process.stdin.close()
        self.process.wait(TIMEOUT)
        self.process.stdout.close()


@contextlib.contextmanager
def network(both, alone):
    """Two machines on one wire, the server's and the client's."""
    with contextlib.ExitStack() as stack:
        server = Machine()
        stack.callback(server.close)
        client = Machine(server)
        stack.callback(client.close)
        server.do([f"ip link add eth0 type veth peer name eth0 netns {client.pid}"])
        for machine, number in ((server, "20"), (client, "21")):
            machine.do([line.format(n=number) for line in both])
            # A new address of IPv6 may not be used before a second has passed.
            machine.run(["sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad"])
            machine.do(["ip link set lo up", "ip link set eth0 up"])
        server.do(alone)
        for machine in (server, client):
            # The kernel takes its time to say that both ends are up.
            for _ in range(300):
                if "state UP" in machine.run(["ip", "link", "show", "eth0"]).stdout:
                    break
        yield server, client


@contextlib.contextmanager
def serving_on(machine, *arguments):
    """A server there: its first three lines; after its end all of them."""
    process = subprocess.Popen(machine.within([*SERVER, *arguments]), cwd=ROOT, text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)
    try:
        lines = [process.stdout.readline().strip() for _ in range(3)]
        yield lines
    finally:
        process.terminate()
        process.wait(TIMEOUT)
        lines.extend(process.stdout.read().splitlines())
        process.stdout.close()


def try_network(name):
    """A network's printed lines, and what came of three clients: (exit code, stderr) each."""
    both, alone, _ = NETWORKS[name]
    with network(both, alone) as (server, client):
        with serving_on(server, "8087", "--name", name) as lines:
            printed = lines[1].partition(" chat_client.py ")[2].replace("NAME", "bob").split()
            # As printed, without an address, and on the server's own machine without one.
            tries = [(client, printed), (client, ["-n", "ann"]), (server, ["-n", "joe"])]
            with concurrent.futures.ThreadPoolExecutor() as pool:
                done = list(pool.map(lambda each: each[0].run([*CLIENT, *each[1]], input="hi"),
                                     tries))
        return lines, [(each.returncode, each.stderr) for each in done]


FIND = [sys.executable, "-c",
        "import chat_client; print([tuple(each) for each in chat_client.find_servers()])"]


@pytest.fixture(scope="module")
def networks():
    """All of them, tried at once."""
    if sys.platform != "linux" or not (shutil.which("nsenter") and shutil.which("ip")):
        pytest.skip("needs Linux's network namespaces")
    try:
        with network([], []):
            pass
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    with concurrent.futures.ThreadPoolExecutor(len(NETWORKS)) as pool:
        tries = {name: pool.submit(try_network, name) for name in NETWORKS}
    return {name: each.result() for name, each in tries.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_network(networks, name):
    """The printed address is the right one, and leads there; without one the server is found."""
    lines, clients = networks[name]
    address = NETWORKS[name][2]
    assert re.fullmatch(rf"Others join with: python3? chat_client\.py {address} 8087 -n NAME",
                        lines[1]), lines
    in_url = rf"\[{address}\]" if "::" in address else address
    if "%" not in address:
        assert re.fullmatch(rf"or in a browser: http://{in_url}:8087/", lines[2]), lines
    assert not any("%" in line for line in lines) or "%" in address
    assert clients == [(0, "")] * 3


def test_network_with_several_servers(networks):
    """All are found and named, also those on other ports, or on one address; not those that keep
    quiet, or are for their own machine."""
    with network(PRIVATE, []) as (server, client):
        with serving_on(server, "9000", "--name", "nine"), \
                serving_on(server, "8087", "--name", "eight"), \
                serving_on(server, "8001", "--name", "bound", "--bind", "192.168.7.20"), \
                serving_on(server, "8002", "--name", "here", "--bind", "127.0.0.1"), \
                serving_on(server, "8000", "--no-discovery"):
            found = client.run(FIND)
            several = client.run([*CLIENT, "-n", "ann"], input="hi")
    assert found.stdout == ("[('192.168.7.20', 8001, 'bound', 0), "
                            "('192.168.7.20', 8087, 'eight', 0), "
                            "('192.168.7.20', 9000, 'nine', 0)]\n"), found
    assert several.returncode == 1 and several.stderr == (
        "chat_client: 3 chat servers answer, say which one: bound (192.168.7.20:8001, 0 here), "
        "eight (192.168.7.20:8087, 0 here), "
        "nine (192.168.7.20:9000, 0 here)\n")


def test_network_with_several_addresses(networks):
    """All addresses are named, the likely one first."""
    assert any("10.1.2.3" in line for line in networks["two interfaces"][0][3:])
    assert any("10.8.0.2" in line for line in networks["a VPN as default"][0][3:])
