"""Delivery, end to end: what is promised about messages holds through broken connections, lost ACKs
and dead servers. The real server runs as a process and ChatClients in this one, with a CuttingProxy
in between; HistoryChecker judges what everybody heard.

test_room.py has the same promises by single cases, with a fake clock.
"""

import os
import sys
import threading
import types

import pytest

import chat_client
import chat_server
from chat_client import FAILED, SENDING, THERE, UNKNOWN
from chatproto import Chat
from harness import TIMEOUT, run_client, wait_until
from proxy import CuttingProxy
from witness import SEED, History, HistoryChecker, Talker, speak_all, wait_until_heard


@pytest.fixture
def talk():
    """Make Talkers, and close them at the end."""
    talkers = []

    def talker(port, name):
        talkers.append(Talker(port, name))
        return talkers[-1]
    yield talker
    for one in talkers:
        one.client.close()


@pytest.fixture
def sabotage():
    """Make CuttingProxies, and close them at the end."""
    proxies = []

    def proxy(server):
        proxies.append(CuttingProxy(server.port, SEED))
        return proxies[-1]
    yield proxy
    for proxy in proxies:
        proxy.close()


# --- The judge ---

def a_history(name, numbers, speaker="ann", states=(THERE,)):
    """A small flawless history: `ann` said 1, 2, 3, everybody heard it."""
    history = History(name)
    history.welcomed(types.SimpleNamespace(epoch="e", last=10, missed=0))
    for number in numbers:
        history.heard(Chat(10 + number, speaker, f"{speaker} {number}", 0, number))
    if name == speaker:
        for number in numbers:
            history.said.append(chat_client.Said(number, f"{speaker} {number}", None))
            history.said[-1].state = states[-1]
            history.states += [("e", f"{speaker} {number}", state) for state in states]
    return history


def other_meaning(ann, bob):
    bob.chats[1] = ("e", Chat(12, "ann", "ann 3", 0, 3))
    del bob.chats[2]


@pytest.mark.parametrize("verdict, spoil", [
    (set(), lambda ann, bob: None),
    ({"lost"}, lambda ann, bob: bob.chats.pop()),
    ({"lost"}, lambda ann, bob: ann.chats.pop(0)),
    ({"twice", "order"}, lambda ann, bob: bob.chats.append(bob.chats[-1])),
    ({"order", "speaker"}, lambda ann, bob: bob.chats.reverse()),
    ({"order", "lost"}, other_meaning),
    ({"speaker"},
     lambda ann, bob: [setattr(one, "chats", [("e", Chat(10 + place, "ann", f"ann {number}", 0))
                                              for place, number in enumerate((2, 1, 3), 1)])
                                              for one in (ann, bob)]),
    ({"forged"}, lambda ann, bob: bob.chats.append(("e", Chat(20, "ann", "ann 4", 0, 4)))),
    ({"forged", "state"}, lambda ann, bob: setattr(ann.said[1], "state", FAILED)
     or ann.states.append(("e", "ann 2", FAILED))),
    ({"state"}, lambda ann, bob: setattr(ann.said[1], "state", SENDING)),
    ({"state"}, lambda ann, bob: setattr(ann.said[1], "state", UNKNOWN)),
    ({"state"}, lambda ann, bob: ann.states.append(("e", "ann 2", THERE))),
    ({"missed"}, lambda ann, bob: setattr(bob, "missed", 1)),
])
def test_checker_finds_what_is_wrong(verdict, spoil):
    """The judge acquits a flawless history and names each fault that is put into it."""
    ann, bob = a_history("ann", [1, 2, 3]), a_history("bob", [1, 2, 3])
    spoil(ann, bob)
    assert {what.partition(":")[0]
            for what in HistoryChecker([ann, bob], "e").violations()} == verdict


# --- Delivery over what breaks ---

def test_nothing_lost_or_twice_over_a_hostile_network(serve, sabotage, talk, impatient):
    """2,400 messages over connections that break again and again: all arrive, once, in one order,
    at everybody."""
    proxy = sabotage(serve())
    speakers = [talk(proxy.port, name) for name in ("ann", "bob", "eve", "joe")]
    everybody = speakers + [talk(proxy.port, name) for name in ("l1", "l2", "l3")]
    for thread in speak_all(speakers, 600):
        thread.join(2 * TIMEOUT)
    proxy.calm()
    # Last words: whoever has heard them would have heard all before them.
    speak_all(speakers, 1, begin=601)
    wait_until_heard(everybody, speakers, 601)
    assert HistoryChecker([talker.history for talker in everybody],
                          speakers[0].history.epoch).violations() == []
    assert min(proxy.counts[what] for what in ("FIN", "RST", "silent", "swallowed", "doubled",
                                               "late")) >= 3, proxy.counts
    assert sum(talker.lost for talker in everybody) > 30


def test_server_killed_and_restarted_clients_go_on(serve, talk, impatient):
    """kill -9 and a start on the same port, twice, without history: everybody comes back alone, and
    says it all again."""
    server = serve()
    speakers = [talk(server.port, "ann"), talk(server.port, "bob")]
    everybody = speakers + [talk(server.port, "eve")]
    threads = speak_all(speakers, 900)
    for runs in 1, 2:
        # Everybody has to have been in this run: on a busy machine one may still be on its way back
        # when the others have said enough, and would never hear of the run at all.
        wait_until(lambda: all(len(talker.history.since) == runs for talker in everybody)
                   and all(len(talker.history.states) > 250 * runs for talker in speakers))
        server.kill()
        server.start()
    for thread in threads:
        thread.join(TIMEOUT)
    speak_all(speakers, 1, begin=901)
    wait_until_heard(everybody, speakers, 901)
    histories = [talker.history for talker in everybody]
    epochs = [list(history.since) for history in histories]
    assert epochs[0] == epochs[1] == epochs[2] and len(set(epochs[0])) == 3
    for epoch in epochs[0]:
        violations = HistoryChecker(histories, epoch).violations()
        # A crash without history may take with it what it had acknowledged.
        if epoch != epochs[0][-1]:
            violations = [what for what in violations if not what.startswith("lost")]
        assert violations == []
    heard = set(everybody[2].texts())
    acknowledged_by_the_dead = {text for history in histories for epoch, text, _ in history.states
                                if epoch != epochs[0][-1]}
    said = {one.text for history in histories for one in history.said}
    assert said <= heard | acknowledged_by_the_dead
    assert not any(talker.ended for talker in everybody)


# --- Sessions ---

@pytest.mark.parametrize("system", [None, pytest.param("pypy", marks=pytest.mark.skipif(
    sys.platform != "linux", reason="turns Linux into other systems"))])
def test_takeover_boots_the_older_connection(serve, peer, system):
    """A session that joins on three more connections at once has one owner at the end: the others
    are booted and closed."""
    server = serve(sockets=system)
    watcher, first = peer(server.port), peer(server.port)
    watcher.join("watcher")
    mine = first.join("ann")
    first.say("from the first")
    seen = first.recv_until("chat")["id"]
    others = [peer(server.port) for _ in range(3)]
    gate = threading.Barrier(3)

    def resume(one):
        gate.wait(TIMEOUT)
        one.join("ann", session=mine["session"], epoch=mine["epoch"], seen=seen)
    threads = [threading.Thread(target=resume, args=(one,), daemon=True) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert [one.frames[0]["resumed"] for one in others] == [True] * 3
    # Who is still in gets an ACK, who is not a closed door.
    for number, one in enumerate(others):
        try:
            one.say(f"from {number}")
        except ConnectionError:
            pass
    dead = [one for one in [first, *others] if not lives(one)]
    assert len(dead) == 3 and all(one.eof() for one in dead)
    assert all([frame["type"] for frame in one.frames if "reason" in frame] == ["booted"]
               for one in dead)
    watcher.say("end")
    watcher.recv_until("chat", text="end")
    assert len([frame for frame in watcher.frames if frame.get("cid") == 2
                or frame["type"] == "left"]) == 1


def lives(client):
    """Whether this is the connection of now: its message is acknowledged."""
    try:
        return bool(client.recv_until("ack", id=2))
    except (EOFError, ConnectionError):
        return False


def test_takeover_by_a_client_ends_the_older_client(serve, peer, talk):
    """A ChatClient whose session goes on elsewhere ends, says why, and does not fight for it."""
    server = serve()
    ann = talk(server.port, "ann")
    other = peer(server.port)
    welcome = other.join("ann", session=ann.welcome.session, epoch=ann.history.epoch, seen=0)
    assert welcome["resumed"] and welcome["name"] == "ann"
    wait_until(lambda: ann.ended.startswith("you were booted: this session"))
    other.tell("ping")
    other.recv_until("ack", id=1)


@pytest.mark.parametrize("made_up",
                         [{"session": "made-up"}, {"session": ""},
                          {"session": "made-up", "seen": 1_000_000}])
def test_resume_with_a_made_up_session_gives_a_fresh_one(serve, peer, made_up):
    """Whoever comes with a secret that is none starts anew: another secret, nothing confirmed, no
    private messages of others."""
    server = serve()
    ann, bob, eve = peer(server.port), peer(server.port), peer(server.port)
    epoch = ann.join("ann")["epoch"]
    bob.join("bob")
    ann.say("private", to="bob")
    bob.recv_until("chat", text="private")
    welcome = eve.join("eve", epoch=epoch, **made_up)
    assert not welcome["resumed"] and welcome["got"] == 0
    assert len(welcome["session"]) >= 22 and welcome["session"] != made_up["session"]
    eve.say("public")
    eve.recv_until("chat", text="public")
    assert [frame["text"] for frame in eve.frames if frame["type"] == "chat"] == ["public"]


# --- What members see of each other ---

def test_receipts_reach_all(serve, talk):
    """The speaker hears how many have confirmed its message, until all have; a private one has one
    recipient."""
    server = serve()
    ann, *_ = [talk(server.port, name) for name in ("ann", "bob", "eve", "joe")]
    # Else bob would be one who took that name after ann had written to him.
    wait_until(lambda: "bob" in ann.client.users)
    public, private, alone = ann.say("ann 1"), ann.say("ann 2", "bob"), ann.say("ann 3", "ann")
    wait_until(lambda: (public.heard, public.of) == (3, 3)
               and (private.heard, private.of) == (1, 1))
    assert (alone.state, alone.heard, alone.of) == (THERE, 0, 0)


def test_leave_rename_and_whisper(serve, talk):
    """A rename and a leave are heard by all, a whisper by two, and one to nobody fails and is never
    THERE."""
    server = serve()
    ann, bob, eve = [talk(server.port, name) for name in ("ann", "bob", "eve")]
    bob.client.rename("rob")
    wait_until(lambda: ("renamed", "bob") in ann.names and "rob" in eve.client.users.values()
               and bob.client.name == "rob")
    ann.say("ann 1", "rob")
    nobody = ann.say("ann 2", "bob")
    ann.say("ann 3")
    wait_until(lambda: all("ann 3" in talker.texts() for talker in (ann, bob, eve))
               and not ann.client.unsettled)
    assert ann.texts() == bob.texts() == ["ann 1", "ann 3"] and eve.texts() == ["ann 3"]
    assert (nobody.state, nobody.reason) == (FAILED, "nobody here is called bob")
    assert [state for _, text, state in ann.history.states if text == "ann 2"] == [FAILED]
    bob.client.close()
    wait_until(lambda: ("left", "rob") in ann.names and ("left", "rob") in eve.names)
    assert list(ann.client.users.values()) == list(eve.client.users.values()) == ["ann", "eve"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only, and not PyPy")
def test_threads_share_a_core():
    """Who reads a member and who sends run on one core, and the first gives way; where that is
    forbidden nothing breaks."""
    before, found = os.sched_getaffinity(0), []

    def look(*arguments):
        chat_server.share_core(*arguments)
        found.append((os.sched_getaffinity(0), os.sched_getscheduler(0)))
    for arguments in (), (True,):
        thread = threading.Thread(target=look, args=arguments)
        thread.start()
        thread.join()
    (core, policy), (same, other) = found
    assert core == same <= before and len(core) == 1
    assert (policy, other) == (os.sched_getscheduler(0), os.SCHED_BATCH)
    assert os.sched_getaffinity(0) == before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_setaffinity", lambda *arguments: os.stat(""))
        chat_server.share_core()


def test_second_process_with_the_same_name_gets_the_suggestion(serve, talk):
    """A second client of a name comes in under the one that the server suggests."""
    server = serve()
    ann = talk(server.port, "ann")
    done = run_client(server.port, name="ann", input=b"ann 1\n")
    assert (done.returncode, done.stderr) == (0, b"")
    wait_until(lambda: ann.names == [("joined", "ann-2"), ("left", "ann-2")])
    assert [chat.sender for _, chat in ann.history.chats] == ["ann-2"]


