"""What the host does: who may speak, who is kept out, what is taken back, and that all of it
outlives a restart. On benches (roombench.py); test_operator.py has the console, test_web.py the
page."""

import pytest

from chat_server import HistoryFile
from harness import frame
from roombench import Bench


@pytest.fixture
def restart(tmp_path):
    """Start a room on one history file, again and again: each time the one before was killed."""
    files = []

    def start():
        if files:
            files[-1]._connection.close()
        files.append(HistoryFile(str(tmp_path / "chat.db")))
        return Bench(history=files[-1], wall_clock=lambda: 1_700_000_000.0)
    yield start
    files[-1].close()


def moved(member, bench, **fields):
    """The member's next connection, to another server."""
    member.bench = bench
    return member.resume(**fields)


def codes(member):
    return [got["code"] for got in member.take() if got["type"] == "error"]


def comes_from(bench, name, address):
    member = bench.visitor(name)
    member.mute = False
    member.connection.address = member.connection.origin = address
    member.send(frame("join", name=name))
    return member


def test_muted_member_hears_and_says_nothing():
    """It is told so at once, a new name does not help, and another member speaks on."""
    bench = Bench()
    ann, bob = bench.member("ann"), bench.member("bob")
    bench.host("mute", "bob", 600)
    bob.take()
    bob.say("me")
    bob.send(frame("rename", id=2, name="rob"))
    bob.last_id = 2
    bob.say("me again")
    ann.say("hello")
    errors = [got for got in bob.take() if got["type"] == "error"]
    assert [(one["code"], one["about"]) for one in errors] == [("muted", 1), ("muted", 3)]
    assert errors[0]["text"].startswith("the host has muted you until ")
    assert ann.texts() == ["hello"]
    bench.host("unmute", "rob")
    bob.say("thanks")
    assert ann.texts() == ["thanks"]


def test_device_is_held_by_its_address_where_that_is_its_own():
    """A new session of a booted device stays out; where others share the address only name and
    session are held, and the host is told."""
    bench = Bench()
    alone = comes_from(bench, "alone", "192.0.2.7")
    assert "share" not in bench.host("boot", "alone", "enough")
    assert codes(alone) == [] and codes(comes_from(bench, "new", "192.0.2.7")) == ["banned"]
    comes_from(bench, "one", "192.0.2.8")
    comes_from(bench, "two", "192.0.2.8")
    assert "share" in bench.host("boot", "one", "enough")
    assert codes(comes_from(bench, "one", "192.0.2.9")) == ["banned"]
    assert codes(comes_from(bench, "three", "192.0.2.8")) == []
    bench.host("unban", "alone")
    assert codes(comes_from(bench, "alone", "192.0.2.7")) == []


def test_boot_ends_after_its_time():
    """Ten minutes, unless said otherwise; then the same session comes back."""
    now = [1_000.0]
    bench = Bench(wall_clock=lambda: now[0])
    ann = bench.member("ann")
    bench.host("boot", "ann")
    assert codes(ann.resume()) == ["banned"]
    now[0] += 601
    again = ann.resume()
    again.take()
    assert again.welcome["resumed"]


def test_rules_are_told_and_kept_to():
    """Only the host, private messages off, one message in so many seconds: each is refused with its
    code, told to all as `rules`, and to who comes later."""
    bench = Bench()
    ann, bob = bench.member("ann"), bench.member("bob")
    bench.host("only_host")
    told = [got for got in ann.take() if got["type"] in ("rules", "chat")]
    assert [one["type"] for one in told] == ["rules", "chat"] and told[0]["speak"] == "host"
    ann.say("may I?")
    assert codes(ann) == ["muted"]
    bench.host("everyone")
    bench.host("private", False)
    ann.say("psst", to="bob")
    assert codes(ann) == ["private-off"]
    bench.host("slow", 10)
    ann.say("one")
    ann.say("two")
    assert codes(ann) == ["muted"] and bob.texts()[-1] == "one"
    bench.advance(11)
    ann.say("three")
    assert codes(ann) == [] and bob.texts() == ["three"]
    late = bench.visitor("late")
    late.send(frame("join", name="late"))
    bench.advance(1)
    (rules,) = [got for got in late.take() if got["type"] == "rules"]
    assert (rules["speak"], rules["private"], rules["slow"]) == ("all", False, 10)


def test_host_has_its_own_name():
    """Nobody takes it, nor one like it; it cannot be the name of somebody here."""
    bench = Bench()
    bench.member("ann")
    with pytest.raises(ValueError):
        bench.host("call", "Ann")
    bench.host("call", "Teacher")
    other = bench.visitor()
    for name in "teacher", "TEACHER", "t3acher", "tea-cher":
        other.send(frame("join", name=name))
    assert codes(other) == ["name-taken"] * 4


def test_whisper_is_for_the_person_who_had_the_name():
    """A private message typed before the name changed hands goes to nobody."""
    bench = Bench()
    ann, bob, eve = (bench.member(name) for name in ("ann", "bob", "eve"))
    before = bench.last
    ann.say("fine", to="bob", seen=before)
    assert bob.texts() == ["fine"]
    bob.send(frame("rename", id=1, name="bob-afk"))
    eve.send(frame("rename", id=1, name="bob"))
    ann.say("secret", to="bob", seen=before)
    assert codes(ann) == ["no-such-user"] and eve.texts() == []


@pytest.mark.parametrize("restarts", [False, True])
def test_removed_text_is_nowhere(restart, tmp_path, restarts):
    """Public or private, before a restart or after it: who heard it is told, who comes or asks gets
    "(removed)", and the file has the text no more."""
    bench = restart()
    ann, bob = bench.member("ann"), bench.member("bob")
    for text, fields in ("SECRET one", {}), ("kept", {}), ("SECRET two", {"to": "bob"}):
        ann.say(text, **fields)
    chats = {got["text"]: got["id"] for got in bob.take() if got["type"] == "chat"}
    if restarts:
        bench = restart()
        bob = moved(bob, bench)
        bob.take()
    for text in "SECRET one", "SECRET two":
        bench.host("remove", chats[text])
    assert [got["about"] for got in bob.take() if got["type"] == "removed"] == [
        chats["SECRET one"], chats["SECRET two"]]
    with pytest.raises(LookupError):
        bench.host("remove", chats["SECRET one"])
    with pytest.raises(LookupError):
        bench.host("remove", 99_999)
    again = bob.resume(seen=0)
    assert "SECRET" not in str(again.take()) and again.welcome["resumed"]
    late = bench.member("late")
    late.send(frame("history", id=1, count=50))
    assert "SECRET" not in str(late.take())
    assert b"SECRET" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_removing_all_of_a_person(restart):
    """All of that session, also when it has left and the server was restarted; others keep
    theirs."""
    bench = restart()
    ann, bob = bench.member("ann"), bench.member("bob")
    for number in range(3):
        ann.say(f"ann {number}")
        bob.say(f"bob {number}")
    bench = restart()
    assert bench.host("remove_last", "ann") == "the last message of ann is removed"
    assert bench.host("remove_all", "ann").startswith("2 messages of ann are removed")
    with pytest.raises(LookupError):
        bench.host("remove_all", "ann")
    newcomer = bench.visitor("new")
    newcomer.mute = False
    newcomer.send(frame("join", name="new"))
    assert newcomer.texts() == ["(removed)", "bob 0", "(removed)", "bob 1", "(removed)", "bob 2"]


def test_two_that_take_back_at_once(restart):
    """Before the first of them is on the disk the second takes back what was said before it."""
    bench = restart()
    ann = bench.member("ann")
    for text in "one", "two", "three":
        ann.say(text)
    chats = {got["text"]: got["id"] for got in ann.take() if got["type"] == "chat"}
    for _ in range(2):
        bench.room.host.remove_last("ann")
    bench.room.flush()
    assert [got["about"] for got in ann.take() if got["type"] == "removed"] == [
        chats["three"], chats["two"]]


def test_everything_outlives_a_restart(restart):
    """Bans, mutes, rules, the pinned line and the host's name."""
    bench = restart()
    ann = bench.member("ann")
    bench.member("bob")
    bench.host("mute", "ann")
    bench.host("ban", "bob")
    bench.host("pin", "be kind")
    bench.host("call", "Teacher")
    assert [got.get("text") for got in ann.take() if got["type"] == "motd"] == ["be kind"]
    bench = restart()
    bench.set_motd("from the file")
    again = moved(ann, bench)
    again.take()
    again.last_id = 0
    again.say("hello")
    assert again.welcome["motd"] == "be kind" and codes(again) == ["muted"]
    assert codes(comes_from(bench, "bob", "192.0.2.9")) == ["banned"]
    bench.host("say", "morning")
    assert [got["from"] for got in again.take() if got["type"] == "chat"] == ["Teacher"]


def test_who_has_not_come_back_is_not_counted(restart):
    """After a restart it is in no list, in no number of those here and in no `heard by n of m`, and
    its name waits for it."""
    bench = restart()
    ann, bob, eve = (bench.member(name) for name in ("ann", "bob", "eve"))
    ann.say("before")
    for member in bob, eve:
        member.take()
    bench = restart()
    assert bench.names() == []
    ann, bob = moved(ann, bench, receipts=True), moved(bob, bench)
    ann.take()
    bob.take()
    assert bob.welcome["users"] == ["ann", "bob"] and bob.welcome["name"] == "bob"
    assert ann.welcome["name"] == "ann" and "here" not in bob.welcome
    ann.last_id = ann.welcome["got"]
    ann.say("after")
    ann.take()
    bob.take()
    bench.advance(1)
    heard = [got for got in ann.take() if got["type"] == "heard"]
    assert [(one["count"], one["of"]) for one in heard] == [(1, 1)]
    eve = moved(eve, bench)
    assert eve.texts() == ["after"] and eve.welcome["users"] == ["ann", "bob", "eve"]
