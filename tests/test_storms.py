"""Storms against the real server: crowds, vanishing connections, a lack of descriptors, slow
members, signals, and a room of sockets and WebSockets whose connections are cut.

The clients are raw sockets, all served by the test's own thread (crowd.py). Nothing waits a fixed
time for something to happen. ROGER_LONG=1 lets the storm of vanishing connections go on for ten
seconds instead of one and a half.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import chat_server
from chatproto import WINDOW
from crowd import Crowd, WebMember
from harness import TIMEOUT, allow_files, frame, needs_proc, posix_only, reset, wait_until

STORM_SECONDS = 10 if os.environ.get("ROGER_LONG") else 1.5
MIB = 1024 * 1024


@pytest.fixture
def crowd():
    crowd = Crowd()
    yield crowd
    crowd.close()


# --- Crowds ---

@needs_proc
def test_thousand_members_join_talk_and_leave(serve, crowd):
    """1,000 members join at once, hear a message exactly once each, and leave nothing behind when
    they are gone; nor do those who come after them."""
    allow_files(2_500)
    server = serve("--grace", "0.1", rate=None)
    descriptors = server.descriptors()
    memory = []
    for round, count in enumerate([1_000, 300, 300]):
        members = crowd.connect(server.port, *(f"m{round}-{number}" for number in range(count)))
        for member in members:
            member.join()
        crowd.run(lambda: all(member.joined for member in members), seconds=60)
        members[0].say(f"hello {round}")
        crowd.run(lambda: members[0].acked == 1, seconds=60)
        # Whoever has heard this would have heard the first one twice.
        members[-1].say(f"bye {round}")
        crowd.run(lambda: all(member.chats[-1:] == [f"bye {round}"] for member in members),
                  seconds=60)
        for member in members:
            assert member.chats[-2:] == [f"hello {round}", f"bye {round}"]
            assert len(set(member.chats)) == len(member.chats)
        crowd.hang_up(*members)
        wait_until(lambda: server.at_rest(descriptors), seconds=60)
        memory.append(server.memory())
    assert memory[2] < memory[1] * 1.25 + 16 * MIB


def vanish(port, number):
    """Connect and be gone at once, in the way that `number` says."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=20)
    join = frame("join", name=f"v{number}")
    sock.sendall([b"", join[:10], join, join, join + b'{"type":"chat","id":1,',
                  b"GET / HTTP/1.1\r\n\r\n"][number % 6])
    if number % 4 == 0 or number % 6 == 3:
        reset(sock)
    else:
        sock.close()


@needs_proc
def test_storm_of_vanishing_connections_harms_nobody(serve, crowd):
    """200 connections a second come and vanish, in every way: two members chat on, and nothing
    stays behind."""
    server = serve("--grace", "0.1")
    descriptors = server.descriptors()
    ann, bob = crowd.join(server.port, "ann", "bob")
    begin, said = time.monotonic(), []
    for number in range(int(200 * STORM_SECONDS)):
        vanish(server.port, number)
        if number % 10 == 0:
            said.append(f"{number} from {'ann' if number % 20 else 'bob'}")
            (ann if number % 20 else bob).say(said[-1])
        crowd.serve_until(begin + (number + 1) / 200)
    crowd.run(lambda: server.threads() <= 4 + 2 and server.descriptors() == descriptors + 2)
    said.append("after the storm")
    ann.say(said[-1])
    for talker in ann, bob:
        # By then they have heard of all who joined before, too.
        crowd.run(lambda: said[-1] in talker.chats)
        visitors = [name for name in talker.names("joined") if name.startswith("v")]
        assert visitors, "the storm did not get in"
        crowd.run(lambda: len(talker.names("left")) >= len(visitors)
                  and len(talker.chats) >= len(said))
        assert sorted(talker.names("left")) == sorted(visitors)
        assert sorted(talker.chats) == sorted(said)
        for name in "ann", "bob":
            assert ([text for text in talker.chats if text.endswith(name)]
                    == [text for text in said if text.endswith(name)])
    assert ann.chats == bob.chats
    crowd.hang_up(ann, bob)
    wait_until(lambda: server.at_rest(descriptors))


@needs_proc
def test_no_descriptors_left_is_said_once_and_recovers(serve, crowd):
    """Out of descriptors the server says so once, does not spin, and serves those who wait when
    others leave."""
    server = serve("--grace", "0", files=64, rate=None)
    members = crowd.connect(server.port, *(f"m{number}" for number in range(100)))
    for member in members:
        member.join()
    crowd.run(lambda: "cannot accept" in server.stderr_text())
    crowd.run(lambda: server.descriptors() == 64 and sum(member.joined for member in members) > 40)
    begin, cpu = time.monotonic(), server.cpu()
    crowd.serve_until(begin + 0.5)
    assert server.cpu() - cpu < (time.monotonic() - begin) / 2
    inside = [member for member in members if member.joined]
    outside = [member for member in members if not member.joined]
    assert len(inside) < 64 and outside
    inside[0].say("those inside do not notice")
    crowd.run(lambda: all("those inside do not notice" in member.chats for member in inside))
    # As many come in as have left.
    while outside:
        crowd.hang_up(*inside[:10])
        del inside[:10]
        crowd.run(lambda: sum(member.joined for member in outside) >= min(10, len(outside)))
        inside += [member for member in outside if member.joined]
        outside = [member for member in outside if not member.joined]
    assert server.stderr_text().count("cannot accept") == 1


# --- Slow members ---

# A log that a test can fill in a second, in frames as in bytes.
SHORT_LOG = ("-c", "import chat_server, sys\nchat_server.LOG_FRAMES = 2_000\n"
                   "chat_server.LOG_BYTES = 4_000_000\nsys.exit(chat_server.main())")


@needs_proc
@pytest.mark.parametrize("length, count", [(10, 2_000 + 5 * WINDOW), (8_000, 500 + 5 * WINDOW)])
def test_member_that_stops_reading_is_dropped_and_resumes(serve, crowd, length, count):
    """Nobody waits for a member that stops reading; when the log moves past its place it is dropped
    as too slow, and a resume tells how much it missed and brings the rest, once."""
    server = serve(program=SHORT_LOG)
    talker, listener, slow = crowd.join(server.port, "talker", "listener", "slow")
    talker.say("before")
    crowd.run(lambda: slow.chats == ["before"])
    crowd.stop_reading(slow)
    memory = server.memory()
    texts = [f"{number}".ljust(length, ".") for number in range(count)]
    for start in range(0, count, 100):
        # On a busy machine the others would be too slow as well.
        talker.say(*texts[start:start + 100])
        crowd.run(lambda: len(talker.chats) == len(listener.chats) == min(start + 100, count) + 1,
                  seconds=60)
    crowd.run(lambda: "too slow: slow" in server.stderr_text())
    assert server.memory() - memory < 64 * MIB
    crowd.wake(slow)
    # It reads what was on its way.
    crowd.run(lambda: slow.ended)
    on_its_way = len(slow.chats)
    assert on_its_way < count
    slow.may_miss = True
    crowd.resume(slow)
    talker.say("after")
    crowd.run(lambda: slow.chats[-1] == listener.chats[-1] == "after", seconds=60)
    assert listener.chats == ["before", *texts, "after"]
    heard = [frame for frame in slow.heard if frame["type"] == "chat"]
    missing = len(listener.chats) - len(heard)
    assert 0 < slow.welcome["missed"] == missing
    all_of_them = [frame for frame in listener.heard if frame["type"] == "chat"]
    assert heard == all_of_them[:on_its_way] + all_of_them[on_its_way + missing:]
    errors = [frame for frame in slow.heard if frame["type"] == "error"]
    assert [error["code"] for error in errors] == ["too-slow"]
    assert heard[0]["id"] < errors[0]["id"] < heard[-1]["id"]
    assert errors[0]["id"] not in [frame["id"] for frame in listener.heard]


@needs_proc
@pytest.mark.parametrize("length, count", [(10, 4_000), (8_000, 1_000)])
def test_member_that_stops_reading_is_fed_from_the_file(serve, crowd, tmp_path, length, count):
    """With --history the log may move past its place: when it reads again it gets all of it, a
    window at a time, from the file."""
    server = serve("--history", tmp_path / "chat.db", program=SHORT_LOG)
    talker, listener, slow = crowd.join(server.port, "talker", "listener", "slow")
    talker.say("before")
    crowd.run(lambda: slow.chats == ["before"])
    crowd.stop_reading(slow)
    texts = [f"{number}".ljust(length, ".") for number in range(count)]
    talker.say(*texts)
    crowd.run(lambda: len(listener.chats) == count + 1, seconds=60)
    memory = server.memory()
    crowd.wake(slow)

    def has_heard_all():
        # On a busy machine it may have been given up for dead meanwhile.
        if slow.ended:
            crowd.resume(slow)
        return slow.chats[-1] == texts[-1]
    crowd.run(has_heard_all, seconds=60)
    assert server.memory() - memory < 16 * MIB
    assert "too slow" not in server.stderr_text()
    assert slow.chats == listener.chats and not slow.errors


def test_member_that_never_acknowledges_is_dropped_and_resumes(serve, crowd):
    """After all retries a member that confirms nothing is dropped, whether more waits or not,
    and a resume brings it all."""
    # 8 s are long for a test.
    server = serve(program=("-c", "import chatproto, chat_server, sys\n"
                                  "chatproto.RETRY_DELAY = 0.3\n"
                                  "sys.exit(chat_server.main())"))
    talker, slow, mute = crowd.join(server.port, "talker", "slow", "mute")
    slow.acks = mute.acks = False
    talker.say(*(f"to slow {number}" for number in range(2 * WINDOW)), to="slow")
    talker.say("to all")
    crowd.run(lambda: slow.ended and mute.ended and "to all" in talker.chats)
    # The news of who joined counts as well.
    assert WINDOW - 2 <= len(slow.chats) <= WINDOW and mute.chats == ["to all"]
    crowd.run(lambda: server.stderr_text().count("(no answer)") == 2)
    for member in slow, mute:
        member.acks = True
        crowd.resume(member)
    talker.say("after")
    crowd.run(lambda: slow.chats[-1] == mute.chats[-1] == talker.chats[-1] == "after")
    assert slow.chats == talker.chats == [f"to slow {number}"
                                          for number in range(2 * WINDOW)] + ["to all", "after"]
    assert mute.chats == ["to all", "after"]
    assert not slow.errors and not mute.errors
    assert slow.welcome["missed"] == mute.welcome["missed"] == 0


# --- Limits ---

def test_max_members_refuses_and_closes(serve, crowd):
    """Whoever comes when the room is full gets `full` and the end, and may come in once there is
    room."""
    server = serve("--max-members", "3", "--grace", "0", rate=None)
    members = crowd.join(server.port, "a", "b", "c")
    late, = crowd.connect(server.port, "late")
    late.join()
    crowd.run(lambda: late.ended)
    assert late.errors == ["full"] and not late.welcome
    crowd.hang_up(members[0])
    crowd.run(lambda: members[1].names("left") == ["a"])
    crowd.join(server.port, "late")


def test_max_per_address_exempts_loopback(serve, crowd):
    """Any number may come from this machine itself."""
    crowd.join(serve("--max-per-address", "1", rate=None).port, *"abcde")


# --- The end of the server ---

def test_server_close_ends_every_thread(crowd):
    """server_close() with 50 people connected returns soon, leaves no thread, and may be called
    again."""
    before = set(threading.enumerate())
    server = chat_server.ChatServer("127.0.0.1", 0)
    server.start()
    members = crowd.join(server.port, *(f"m{number}" for number in range(50)))
    unjoined = crowd.connect(server.port, "silent", "half")
    unjoined[1].sock.sendall(b'{"type":"jo')
    members[0].say("hello")
    crowd.run(lambda: all(member.chats for member in members))
    closer = threading.Thread(target=server.server_close, daemon=True)
    closer.start()
    closer.join(TIMEOUT)
    assert not closer.is_alive()
    server.server_close()
    wait_until(lambda: set(threading.enumerate()) <= before)
    crowd.run(lambda: all(member.ended for member in members + unjoined))


@posix_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_tells_everybody_and_frees_the_port(serve, crowd, number):
    """On a signal everybody hears of it, what was on its way is acknowledged, and the port can be
    used again at once."""
    server = serve(rate=None)
    members = crowd.join(server.port, "ann", "bob", "eve")
    for member in members:
        member.say(*(f"{member.name} {count}" for count in range(10)))
    server.process.send_signal(number)
    crowd.run(lambda: all(member.ended for member in members))
    assert server.process.wait(TIMEOUT) == 0
    for member in members:
        assert member.acked == 10
        assert len(member.chats) == len(set(member.chats)) == 31
        assert [frame["text"] for frame in member.heard
                if frame.get("from") == "Server"] == ["the server is closing"]
    again = serve(port=server.port, rate=None)
    assert again.port == server.port
    crowd.join(again.port, "ann")


@posix_only
def test_signal_within_a_signal_still_ends_the_server(serve):
    """A second signal that comes while the first is being handled (Ctrl-C twice, TERM and INT) does
    not hang the server."""
    server = serve(rate=None, program=("-c", """if True:
        import os, signal, sys, threading
        import chat_server
        real, seen = threading.Condition.notify_all, []

        def notify_all(condition):
            if threading.get_ident() == threading.main_thread().ident and not seen:
                seen.append(os.kill(os.getpid(), signal.SIGINT))
            real(condition)
        threading.Condition.notify_all = notify_all
        sys.exit(chat_server.main())"""))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(TIMEOUT) == 0


# --- Deaths ---

@posix_only
def test_killed_client_harms_nobody(serve, crowd):
    """kill -9 of a client in the middle of a frame: the others hear that it left, and nothing else
    happens."""
    server = serve("--grace", "0", rate=None)
    ann, bob = crowd.join(server.port, "ann", "bob")
    client = subprocess.Popen([sys.executable, "-c", f"""if True:
        import socket
        sock = socket.create_connection(("127.0.0.1", {server.port}))
        sock.sendall({frame("join", name="eve")!r} + b'{{"type":"chat","id":1,"te')
        sock.recv(1)
        print("in", flush=True)
        input()"""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with client:
        assert client.stdout.readline() == "in\n"
        client.kill()
    crowd.run(lambda: bob.names("left") == ["eve"])
    ann.say("one", "two")
    crowd.run(lambda: ann.chats == bob.chats == ["one", "two"])


def test_reset_in_the_middle_of_a_frame_harms_nobody(serve, crowd):
    """A RST after half a frame: the half is never heard, and the member comes back to what it
    missed."""
    server = serve(rate=None)
    ann, bob, eve = crowd.join(server.port, "ann", "bob", "eve")
    eve.say("whole")
    crowd.run(lambda: all(member.chats == ["whole"] for member in (ann, bob, eve)))
    eve.sock.sendall(frame("chat", id=2, text="half")[:-5])
    crowd.stop_reading(eve)
    reset(eve.sock)
    ann.say("missed")
    crowd.run(lambda: ann.chats == bob.chats == ["whole", "missed"])
    crowd.resume(eve)
    assert eve.welcome["got"] == 1
    eve.say("again")
    crowd.run(lambda: all(member.chats == ["whole", "missed", "again"]
                          for member in (ann, bob, eve)))


# --- Sockets and WebSockets ---

# Members of each kind, messages of each member, and connections that are cut on the way.
EACH, SAYS, CUTS = 100, 3, 120


def test_mixed_room_while_connections_are_cut(serve, crowd):
    """600 messages of 200 members, half of them over WebSockets, 120 connections cut in the middle:
    everybody hears every one once, in one order."""
    port, chance = serve().port, random.Random(20261123)
    members = crowd.join(port, *(f"m{number}" for number in range(EACH)))
    members += crowd.join(port, *(f"m{number}" for number in range(EACH, 2 * EACH)), kind=WebMember)
    to_say = [(member, f"{member.name} says {number}") for number in range(SAYS)
              for member in chance.sample(members, len(members))]
    cuts = set(chance.sample(range(len(to_say)), CUTS))

    crowd.comes_back = True
    for place, (member, text) in enumerate(to_say):
        member.say(text)
        if place in cuts:
            crowd.come_back(chance.choice(members), resets=chance.random() < 0.5)
        crowd.serve(0)
    crowd.run(lambda: all(len(member.chats) >= len(to_say) and not member.open
                          for member in members), seconds=60)
    hears = {member: [(one["id"], one["from"], one["text"]) for one in member.heard
                      if one["type"] == "chat"] for member in members}
    order = hears[members[0]]
    assert sorted(text for _, _, text in order) == sorted(text for _, text in to_say)
    assert all(text.startswith(speaker + " ") for _, speaker, text in order)
    assert [member.name for member in members if hears[member] != order] == []
    assert [id for id, _, _ in order] == sorted({id for id, _, _ in order})
    for member in members:
        own = [text for _, speaker, text in order if speaker == member.name]
        assert own == [f"{member.name} says {number}" for number in range(SAYS)]
        assert not member.errors and "booted" not in [one["type"] for one in member.heard]
