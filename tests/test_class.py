"""A host and its class of thirty: a day with everything that the host does, a restart, the next
day; and what a host gets wrong."""

import json

import pytest

from chat_server import HistoryFile
from harness import frame
from roombench import Bench

DAY = 86_400.0


class School:
    """A room on one history file, over restarts, with the wall clock that the test sets."""

    def __init__(self, path):
        self.path = path
        self.now = 1_700_000_000.0
        self.file = None
        self.pupils = {}
        self.open()

    def open(self):
        """The server starts; the one before was killed."""
        if self.file is not None:
            self.file._connection.close()
        self.file = HistoryFile(str(self.path))
        self.bench = Bench(history=self.file, wall_clock=lambda: self.now)

    def come(self, name, address):
        """A pupil comes, with a new session; return the codes of what refuses it."""
        member = self.bench.visitor(name)
        member.mute = False
        member.connection.address = member.connection.origin = address
        member.send(frame("join", name=name))
        codes = self.codes(member)
        if not codes:
            self.pupils[name] = member
        return codes

    def come_back(self, name):
        """The same pupil, with its session; return the codes of what refuses it."""
        old = self.pupils[name]
        old.bench = self.bench
        member = old.again()
        member.mute = False
        # Its ids go on.
        member.connection.address = member.connection.origin = old.connection.origin
        member.send(member.rejoin())
        codes = self.codes(member)
        if not codes:
            self.pupils[name] = member
        return codes

    @staticmethod
    def codes(member):
        return [got["code"] for got in member.take() if got["type"] == "error"]

    def say(self, name, text, **fields):
        """Return the codes of what refuses it."""
        pupil = self.pupils[name]
        pupil.say(text, **fields)
        return self.codes(pupil)

    def texts(self):
        """What everybody has heard since this was asked last, one list for all who heard the
        same."""
        heard = {name: tuple(pupil.texts()) for name, pupil in self.pupils.items()
                 if not pupil.is_over}
        return set(heard.values())

    def host(self, *order):
        return self.bench.host(*order)


@pytest.fixture
def school(tmp_path):
    school = School(tmp_path / "class.db")
    yield school
    school.file._connection.close()


def test_class_of_thirty(school, tmp_path):
    """Mute, only the host, private off, slow, remove, boot, ban; the server is killed, and all that
    holds; the next day what had a time is over, and what had none is not."""
    names = [f"pupil{number}" for number in range(1, 31)]
    for number, name in enumerate(names, 1):
        assert school.come(name, f"192.0.2.{number}") == []
    assert len(school.host("people")) == 30
    school.host("call", "Teacher")
    school.host("pin", "page 34")
    # One is muted for the lesson, and a new session of its device, under another name, as well.
    school.host("mute", "pupil3", 2_700)
    assert school.say("pupil3", "haha") == ["muted"]
    school.pupils["pupil3"].lose()
    assert school.come("somebody", "192.0.2.3") == []
    assert school.say("somebody", "haha") == ["muted"]
    # Only the host speaks.
    school.host("only_host")
    assert {code for name in names[3:] for code in school.say(name, "me!")} == {"muted"}
    school.texts()
    school.host("say", "Open your books.")
    assert school.texts() == {("Open your books.",)}
    school.host("everyone")
    # No whispers, and one message in ten seconds.
    school.host("private", False)
    assert school.say("pupil1", "psst", to="pupil2") == ["private-off"]
    school.host("slow", 10)
    school.texts()
    assert school.say("pupil4", "RUDE word") == []
    assert school.say("pupil4", "and another") == ["muted"]
    assert school.say("pupil5", "what is that?") == []
    # That is taken back: whoever heard it is told.
    said = {json.loads(one)["text"]: json.loads(one)["id"] for one in school.host("talk", 20)}
    told = school.pupils["pupil30"]
    told.take()
    school.host("remove", said["RUDE word"])
    assert [got["about"] for got in told.take() if got["type"] == "removed"] == [said["RUDE word"]]
    school.host("boot", "pupil4", "words", 3_600)
    school.host("ban", "pupil5")
    assert len(school.host("people")) == 29
    # The server is killed. Nobody is here until they have come back, and all of it holds.
    school.open()
    assert school.host("people") == []
    back = {name: school.come_back(name) for name in names}
    assert {name: codes for name, codes in back.items() if codes} == {
        "pupil4": ["banned"], "pupil5": ["banned"]}
    assert len(school.host("people")) == 28
    assert school.come("nice", "192.0.2.4") == ["banned"] and school.come(
        "pupil5", "192.0.2.77") == ["banned"]
    assert school.pupils["pupil1"].welcome["motd"] == "page 34"
    assert school.say("pupil3", "haha") == ["muted"]
    assert school.say("pupil1", "psst", to="pupil2") == ["private-off"]
    assert school.say("pupil6", "one") == [] and school.say("pupil6", "two") == ["muted"]
    # The next day: the mute and the boot are over, the ban is not, and nobody reads what was
    # taken back.
    school.now += DAY
    school.open()
    school.bench.advance(60)
    assert school.come_back("pupil3") == [] and school.say("pupil3", "good morning") == []
    assert school.come_back("pupil4") == [] and school.come_back("pupil5") == ["banned"]
    newcomer = school.bench.visitor("new")
    newcomer.mute = False
    newcomer.send(frame("join", name="new"))
    newcomer.send(frame("history", id=1, count=50))
    seen = str(newcomer.take())
    assert "good morning" in seen and "(removed)" in seen and "RUDE" not in seen
    assert b"RUDE" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    school.host("unban", "pupil5")
    assert school.come_back("pupil5") == []


# --- Bad input ---

@pytest.mark.parametrize("order, error, words", [
    (("mute", "nobody"), LookupError, "nobody is or was called nobody"),
    (("boot", "nobody"), LookupError, "nobody is or was called nobody"),
    (("boot", ""), LookupError, "nobody is or was called"),
    (("ban", "nobody"), LookupError, "nobody is or was called nobody"),
    (("unmute", "ann"), LookupError, "ann is not muted"),
    (("unban", "ann"), LookupError, "ann is not banned"),
    (("remove", 1), LookupError, "there is no message 1"),
    (("remove", 99_999), LookupError, "there is no message 99999"),
    (("remove_last", "bob"), LookupError, "there is no message of bob"),
    (("remove_all", "nobody"), LookupError, "nobody is or was called nobody"),
    (("slow", -1), ValueError, "0 to"), (("slow", 1e9), ValueError, "0 to"),
    (("call", "bob"), ValueError, "bob is here"), (("say", ""), ValueError, "1 to 8192"),
    (("pin", "x" * 9_000), ValueError, "1 to 8192")])
def test_what_cannot_be(order, error, words):
    """A clear word, and nothing changes. (The id 1 is that of a join.)"""
    bench = Bench()
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.say("hello")
    bob.take()
    before = bench.room.house.to_json(), bench.last, bench.host("people")
    with pytest.raises(Exception) as raised:
        bench.host(*order)
    assert words in str(raised.value)
    assert isinstance(raised.value, error) or type(raised.value).__name__ == "ProtocolError"
    assert (bench.room.house.to_json(), bench.last, bench.host("people")) == before
    assert bob.take() == []


def test_removed_twice():
    """The second time there is a clear word, and nobody is told again."""
    bench = Bench()
    ann, bob = bench.member("ann"), bench.member("bob")
    ann.say("hello")
    (chat,) = [got for got in bob.take() if got["type"] == "chat"]
    bench.host("remove", chat["id"])
    bob.take()
    with pytest.raises(LookupError, match=f"message {chat['id']} is removed already"):
        bench.host("remove", chat["id"])
    with pytest.raises(LookupError, match="there is no message of ann"):
        bench.host("remove_last", "ann")
    assert bob.take() == []


def test_who_has_left_is_still_meant():
    """Its messages are taken back, and its device is muted and kept out when it comes again."""
    bench = Bench()
    bob = bench.member("bob")

    def comes(name):
        one = bench.visitor(name)
        one.mute = False
        one.connection.address = one.connection.origin = "192.0.2.9"
        one.send(frame("join", name=name))
        return one
    eve = comes("eve")
    eve.take()
    eve.say("spam")
    eve.send(frame("leave", id=2))
    assert bench.host("remove_all", "eve") == "1 message of eve is removed"
    assert [got["type"] for got in bob.take()].count("removed") == 1
    bench.host("mute", "eve")
    again = comes("other")
    again.take()
    again.say("more spam")
    assert School.codes(again) == ["muted"]
    # While it is here the address is not eve's alone.
    again.send(frame("leave", id=2))
    bench.host("ban", "eve")
    for name in "eve", "third":
        assert School.codes(comes(name)) == ["banned"]
