"""The history file alone, without sockets: what is found in it, what damage does to it, what goes.

test_history.py is about the server with its file; here HistoryFile is asked directly.
"""

import contextlib
import os
import random
import shutil
import sqlite3

import pytest

import chat_server
import chatproto
from chat_server import Entry, HistoryError, HistoryFile, KeepClock, entry_row, removed_frame

HOUR, DAY = 3600.0, 86_400.0

# The schema of version 1, as its program wrote it.
VERSION_1 = (
    """CREATE TABLE state (
        epoch TEXT NOT NULL,            -- which run of ids this is
        last INTEGER NOT NULL,          -- the newest id that was given
        forgotten INTEGER NOT NULL,     -- the newest id that --keep or --keep-messages deleted
        unsynced INTEGER NOT NULL
    )""",
    """CREATE TABLE entries (
        id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, sender TEXT, recipient TEXT,
        body TEXT NOT NULL, one INTEGER, other INTEGER, about INTEGER
    )""",
    "CREATE INDEX refusals ON entries (about) WHERE about IS NOT NULL",
    """CREATE TABLE sessions (
        number INTEGER PRIMARY KEY, secret_hash BLOB NOT NULL UNIQUE, name TEXT NOT NULL,
        begin INTEGER NOT NULL, history_from INTEGER NOT NULL, got INTEGER NOT NULL,
        acked INTEGER NOT NULL, left_at REAL, booted TEXT
    )""",
)


@pytest.fixture
def path(tmp_path):
    """Where a history file may be made."""
    return str(tmp_path / "chat.db")


def chat(id, text="x", numbers=(), at=1000.0):
    """The row of something that was said."""
    message = chatproto.Chat(id, "ann", text, at, id, "bob" if numbers else None)
    return entry_row(message, message.encode(), numbers, at)


def rename(id, numbers=(), at=1000.0):
    """The row of a rename."""
    message = chatproto.Renamed(id, "ann", "bob", at)
    return entry_row(message, message.encode(), numbers, at)


def refusal(id, number, about):
    """The row of an error that refuses frame `about` of session `number`."""
    message = chatproto.Error(id, "bad-text", "no", about)
    return entry_row(message, message.encode(), (number,), float(id))


def session(number, acked=0, left_at=None, booted=None, name="ann"):
    """A row of sessions as the room gives it."""
    return (number, b"hash %d" % number, name, 1, 1, 5, acked, left_at, booted)


def crash(file):
    """The server is killed: its connection is closed, and nothing is written on purpose."""
    file._connection.close()


@contextlib.contextmanager
def raw(path):
    """The file as another program sees it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        yield connection
        connection.commit()


def ids(found):
    """The ids of a list of entries."""
    return [entry[0] for entry in found]


def recent(file, count):
    """The last public messages, oldest first."""
    return file.before(file.last + 1, count, None)[0][::-1]


# --- What is in it ---

def test_what_is_saved_comes_back(path):
    """Entries, sessions, refusals, the newest id and the epoch are there after a crash."""
    file = HistoryFile(path)
    rows = [chat(1, "é"), chat(2, "private", (7, 8)), rename(3), refusal(4, 7, 11),
            refusal(5, 8, 3)]
    sessions = [session(7, acked=3), session(8, acked=5, left_at=9.5, booted="no"), session(9)]
    file.save(5, rows, sessions, [])
    file.save(6, [], [], [9])
    epoch = file.epoch
    crash(file)
    file = HistoryFile(path)
    assert (file.epoch, file.last, file.forgotten) == (epoch, 6, 0)
    # Who had not left comes last.
    assert file.sessions() == sessions[1::-1]
    assert file.refusals() == [Entry(4, rows[3][5].encode() + b"\n", frozenset([7]))]
    assert [entry[:2] for entry in recent(file, 5)] == [(1, rows[0][5].encode() + b"\n")]
    entries, before = file.newest(3, 10_000)
    assert before == 2 and ids(entries) == [3, 4, 5]
    assert file.newest(10, 10_000)[0][:3] == [
        Entry(1, rows[0][5].encode() + b"\n", is_chat=True),
        Entry(2, rows[1][5].encode() + b"\n", frozenset([7, 8]), is_chat=True),
        Entry(3, rows[2][5].encode() + b"\n")]
    assert not file.damaged
    file.close()


def walk(file, what, upto, number):
    """All that session `number` may hear, by after() in pieces or before() in pages of 7."""
    found, place = [], 0 if what == "after" else upto + 1
    while place is not None and (what == "before" or place < upto):
        piece, place = (file.after(place, upto, number) if what == "after"
                        else file.before(place, 7, number))
        found += [entry for entry in piece if entry.frame]
        assert len(found) <= upto
    return ids(found)


@pytest.mark.parametrize("seed", range(5))
def test_everybody_finds_what_it_may_hear(path, seed, monkeypatch):
    """after() and before() find the same as looking at every entry does, whatever their bounds."""
    rng = random.Random(seed)
    audiences = [(), (), (5,), (5, 6), (6, 5), (6, 7), (5, 5), (7,)]
    rows = [rng.choice([chat, rename])(id, numbers=rng.choice(audiences))
            for id in sorted(rng.sample(range(1, 2000), 400))]
    file = HistoryFile(path)
    file.save(2000, rows, [], [])
    monkeypatch.setattr(chat_server, "WINDOW", rng.choice([1, 9, 500]))
    monkeypatch.setattr(chat_server, "WINDOW_BYTES", rng.choice([200, 900, 100_000]))
    monkeypatch.setattr(chat_server, "LOOK_ROWS", rng.choice([1, 9, 500]))
    monkeypatch.setattr(chat_server, "LOOK_BYTES", rng.choice([1, 900, 100_000]))
    for number in 5, 6, 7, 8:
        heard = [row for row in rows if row[6] is None or number in row[6:8]]
        assert walk(file, "after", 2000, number) == ids(heard)
        chats = [row for row in heard if row[2] == "chat"]
        assert walk(file, "before", 2000, number) == ids(chats)[::-1]
    file.close()


def work(file, ask):
    """How many hundreds of SQLite's instructions a question takes."""
    steps = []
    file._connection.set_progress_handler(lambda: steps.append(1), 100)
    ask()
    file._connection.set_progress_handler(None, 0)
    return len(steps)


@pytest.mark.parametrize("ask", [
    lambda file: file.before(30_000, 20, 5),
    lambda file: file.before(15_000, 1, 5),
    lambda file: file.before(30_000, 20, 5, ["nowhere"]),
    lambda file: file.after(10, 29_000, 5),
    lambda file: recent(file, 20),
])
@pytest.mark.parametrize("foreign", [rename, chat])
def test_question_costs_what_it_returns(path, ask, foreign):
    """Ten thousand entries that one may not hear, or that nobody said, are not looked at."""
    file = HistoryFile(path)
    own = [chat(1), chat(2, numbers=(5, 6)), chat(3, numbers=(6, 5)), chat(29_999)]
    file.save(29_999, own, [], [])
    before = work(file, lambda: ask(file))
    file.save(29_999, [foreign(id, numbers=(8, 9)) for id in range(100, 10_100)], [], [])
    assert work(file, lambda: ask(file)) <= before + 2
    file.close()


def test_renames_do_not_cost_a_request_for_chats(path):
    """Thirty thousand renames that all heard are not looked at for the few chats among them."""
    file = HistoryFile(path)
    file.save(30_001, [rename(id) for id in range(2, 30_001)] + [chat(1), chat(30_001)], [], [])
    asked = []
    assert work(file, lambda: asked.append(file.before(30_002, 20, 5))) <= 3
    assert ids(asked[0][0]) == [30_001, 1] and asked[0][1] is None
    file.close()


def test_older_is_said_only_where_there_is_more(path):
    """Where to go on is named when a message is left that one may hear, and only then."""
    file = HistoryFile(path)
    file.save(9, [chat(1, numbers=(6,)), chat(2), rename(3), chat(4), chat(5)], [], [])
    assert file.before(9, 2, 5) == (file.before(9, 3, 5)[0][:2], 3)
    assert ids(file.before(3, 2, 5)[0]) == [2] and file.before(3, 2, 5)[1] is None
    assert file.before(9, 0, 5) == ([], 6)
    assert file.before(2, 5, 5) == ([], None)
    file.close()


# --- Searching ---

@pytest.mark.parametrize("words, hits", [
    (["hello"], [4, 2, 1]),
    (["HELLO", "world"], [2, 1]),
    (["lo wor"], [1]),
    (["straße"], [5]),
    (["STRASSE"], [5]),
    (["ｈｅｌｌｏ"], [4, 2, 1]),
    (["世界"], [6]),
    (['say "hi"'], [7]),
    (["nowhere"], []),
    (["from"], []),
    ([], [7, 6, 5, 4, 2, 1]),
])
def test_find(path, words, hits):
    """All words have to be in the text, compared as names are; the frame around does not count."""
    file = HistoryFile(path)
    texts = {1: "Hello world", 2: "world, hello", 4: "hello", 5: "Straße", 6: "你好世界",
             7: 'I say "hi"'}
    file.save(7, [chat(id, text) for id, text in texts.items()]
              + [chat(3, "hello", (6, 7))], [], [])
    found, older = file.before(8, 100, 5, words)
    assert ids(found) == hits and older is None
    file.close()


def test_find_takes_a_long_text_in_pieces(path):
    """A text of many pieces is compared as if it were one, and marks without end cost no more."""
    file = HistoryFile(path)
    texts = ["ab e\u0301cole STRASSE ｈｉ " * 300, "a" + "\u0301\u0327\u0302\u0323" * 2000,
             "\ufdfa" * 8000]
    file.save(3, [chat(id, text[:8192]) for id, text in enumerate(texts, 1)], [], [])
    word = "hi AB É" + "cole straße hi ab é" * 10
    assert ids(file.before(2, 9, 5, [word])[0]) == [1]
    assert chat_server.search_key(texts[0]) == chatproto.name_key(texts[0])
    # Of the texts that grow a step looks at one.
    assert file.before(4, 9, 5, [word]) == ([], 3)
    file.close()


def test_find_looks_at_so_much_in_one_step(path, monkeypatch):
    """A search is in steps that are bounded in messages and bytes; each says where to go on."""
    file = HistoryFile(path)
    file.save(300, [chat(id, f"number {id} " + "y" * 100) for id in range(1, 301)], [], [])
    for name, value, most in ("LOOK_ROWS", 50, 7), ("LOOK_BYTES", 5000, 20):
        with monkeypatch.context() as patch:
            patch.setattr(chat_server, name, value)
            found, place, steps = [], 301, 0
            while place is not None:
                some, place = file.before(place, 20, 5, ["number 7 "])
                found += some
                steps += 1
            assert ids(found) == [7] and 5 < steps <= most
    file.close()


# --- Damage ---

def spoil(path, old, new):
    """Change bytes in the file, all the places where they are."""
    with open(path, "r+b") as file:
        content = file.read()
        assert old in content and len(old) == len(new)
        file.seek(0)
        file.write(content.replace(old, new))


@pytest.fixture
def filled(path):
    """A file with ten chats, some private, a rename, a refusal and two sessions."""
    file = HistoryFile(path)
    file.save(12, [chat(id, f"text {id:04d}") for id in range(1, 10)]
              + [chat(10, "secret", (7, 8)), rename(11), refusal(12, 7, 3)],
              [session(7, name="ann"), session(8, name="bob")], [])
    file.close()
    return path


@pytest.mark.parametrize("new", [b"text 0O05", b'text "005', b"text \xff005", b"text \x00005"])
def test_changed_byte_of_a_message(filled, new, tmp_path):
    """It is left out and noted, wherever one asks; all others are there; so in the export."""
    spoil(filled, b"text 0005", new)
    file = HistoryFile(filled)
    assert ids(file.newest(100, 10_000)[0]) == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12]
    assert file.damaged == {5}
    assert ids(recent(file, 6)) == [3, 4, 6, 7, 8, 9]
    assert walk(file, "after", 12, 9) == [1, 2, 3, 4, 6, 7, 8, 9, 11]
    assert ids(file.before(12, 100, 9)[0]) == [9, 8, 7, 6, 4, 3, 2, 1]
    assert file.before(12, 100, 9, ["005"]) == ([], None)
    assert file.damaged == {5}
    file.close()
    assert chat_server.export_history(filled, str(tmp_path / "out.txt")) == 9
    assert "005" not in (tmp_path / "out.txt").read_text()


@pytest.mark.parametrize("change", [
    "UPDATE entries SET one = NULL, other = NULL WHERE id = 10",
    "UPDATE entries SET one = 6 WHERE id = 10",
    "UPDATE entries SET id = 13 WHERE id = 10",
    "UPDATE entries SET kind = 'joined' WHERE id = 10",
    "UPDATE entries SET body = replace(body, 'secret', 'sEcret') WHERE id = 10",
    "UPDATE entries SET checksum = checksum + 1 WHERE id = 10",
    "UPDATE entries SET body = x'ff' WHERE id = 10",
    "UPDATE entries SET body = 5 WHERE id = 10",
    "UPDATE entries SET about = 'x', speaker = 1.5 WHERE id = 10",
])
def test_checksum_stands_for_who_may_hear_it(filled, change):
    """An entry whose audience, place, kind, text or checksum is another one is heard by nobody."""
    with raw(filled) as connection:
        connection.execute(change)
    file = HistoryFile(filled)
    for number in 6, 7, 8, 9:
        heard = file.after(0, 20, number)[0] + file.before(20, 100, number)[0] + recent(file, 99)
        assert not any(b"ecret" in entry[1] for entry in heard)
    assert not any(b"ecret" in entry[1] for entry in file.newest(99, 10_000)[0])
    assert len(file.damaged) == 1
    file.close()


def test_damaged_session_is_forgotten(filled, caplog):
    """A session whose row is damaged is gone, with its refusals, and that is said; others stay."""
    with raw(filled) as connection:
        connection.execute("UPDATE sessions SET got = got + 1 WHERE number = 7")
    file = HistoryFile(filled)
    assert file.sessions() == [session(8, name="bob")] and file.refusals() == []
    assert "1 sessions are forgotten" in caplog.text
    file.close()


def test_damage_to_what_is_kept_besides_is_told_once(filled, caplog):
    """What held in the room, and each file: what is damaged is forgotten and told, and the rest is
    there."""
    file = HistoryFile(filled)
    file.save(12, [], [], [], kept={"house": "{}", "file:a": "1", "file:b": "2"})
    file.close()
    with raw(filled) as connection:
        connection.execute("UPDATE kept SET value = value || ' ' WHERE key IN ('house', 'file:a')")
    file = HistoryFile(filled)
    assert (file.kept("house"), file.kept("file:*")) == ({}, {"file:b": "2"})
    assert caplog.text.count("what held in the room") == 1
    assert caplog.text.count("a file is forgotten") == 1
    file.close()


@pytest.mark.parametrize("change", [
    "UPDATE state SET last = last - 1", "UPDATE state SET epoch = 'x'", "DELETE FROM state",
    "UPDATE state SET last = 'x'", "INSERT INTO state SELECT * FROM state",
    "DROP INDEX chats", "ALTER TABLE entries RENAME COLUMN sender TO speeder",
])
def test_damaged_state_or_schema_is_refused(filled, change):
    """Ids that came again would be taken for duplicates: so nothing goes on with a wrong one."""
    with raw(filled) as connection:
        connection.execute(change)
    with pytest.raises(HistoryError, match="it is damaged"):
        HistoryFile(filled)


def test_damaged_index_is_made_again(filled):
    """An index is a copy: where it alone is damaged nothing is missing."""
    with raw(filled) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'chats'")
        page = root.fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    with open(filled, "r+b") as file:
        file.seek(page * size - 3)
        last = file.read(3)
        file.seek(page * size - 3)
        file.write(bytes([last[0], last[1], last[2] ^ 4]))
    file = HistoryFile(filled)
    assert ids(file.before(12, 100, 9)[0]) == [9, 8, 7, 6, 5, 4, 3, 2, 1] and not file.damaged
    file.close()


def ask_everything(path):
    """All lines that a file serves in any way, by id; and what it counts as damaged."""
    file = HistoryFile(path)
    try:
        served = [entry[:2] for entry in file.newest(10_000, 10**7)[0] + recent(file, 20)]
        for number in 7, 8:
            place, upto = 0, file.last
            while place < upto:
                piece, place = file.after(place, upto, number)
                served += [entry[:2] for entry in piece if entry.frame]
            place = file.last + 1
            while place is not None:
                piece, place = file.before(place, 100, number)
                served += [entry[:2] for entry in piece]
        served += [entry[:2] for entry in file.refusals()]
        sessions = file.sessions()
        file.trim(2000.0, 0.0)
        return served, sessions, file.damaged
    finally:
        file.close()


def test_500_changed_bytes(path, tmp_path):
    """Each is refused when the file is opened, or nothing wrong is served and what is missing is
    counted; never is there another exception."""
    rng = random.Random(12)
    rows = [rng.choice([chat, chat, rename])(id, numbers=rng.choice([(), (), (), (7, 8), (8,)]))
            for id in range(1, 200)] + [refusal(200, 7, 3), chat(201, "long " * 2000)]
    file = HistoryFile(path)
    file.save(201, rows, [session(7), session(8, left_at=5.0, booted="no")], [])
    file.close()
    content = open(path, "rb").read()
    true = {row[0]: row[5].encode() + b"\n" for row in rows}
    sessions = [session(7), session(8, left_at=5.0, booted="no")]
    copy, refused, left_out = str(tmp_path / "copy.db"), 0, 0
    for _ in range(500):
        place = rng.randrange(len(content))
        changed = bytes([content[place] ^ rng.randrange(1, 256)])
        with open(copy, "wb") as out:
            out.write(content[:place] + changed + content[place + 1:])
        try:
            served, file_sessions, damaged = ask_everything(copy)
        except HistoryError as error:
            refused += 1
            assert "text" not in str(error)
            continue
        finally:
            for end in "-wal", "-shm", "-journal":
                with contextlib.suppress(OSError):
                    os.remove(copy + end)
        assert all(true[id] == frame for id, frame in served)
        assert set(true) - {id for id, _ in served} <= damaged
        assert all(row in sessions for row in file_sessions)
        left_out += bool(damaged)
    assert 20 < refused < 400 and left_out > 20


# --- --keep and the clock ---

def test_clock_that_is_right():
    """What the wall clock says counts while it keeps pace with the steady one."""
    clock = KeepClock(DAY, None)
    for seconds in 0.0, 30.0, 5 * DAY:
        assert clock.now(1e9 + seconds, seconds) == 1e9 + seconds
    # It may be corrected a little.
    assert clock.now(1e9 + 5 * DAY + 40, 5 * DAY) == 1e9 + 5 * DAY + 40


def test_clock_that_is_wrong_for_ten_seconds():
    """Time goes on at the steady clock's pace meanwhile."""
    clock = KeepClock(DAY, 1e9)
    assert clock.now(1e9, 0.0) == 1e9
    assert clock.now(1e9 + 400 * DAY, 5.0) == 1e9 + 5
    assert clock.now(1e9 + 400 * DAY + 10, 15.0) == 1e9 + 15
    assert clock.now(1e9 + 20, 20.0) == 1e9 + 20


def test_clock_that_jumped_is_believed_after_an_hour():
    """It has to go on evenly for an hour; another jump begins it anew."""
    clock = KeepClock(DAY, 1e9)
    clock.now(1e9, 0.0)
    assert clock.now(2e9, 0.0) == 1e9
    assert clock.now(2e9 + HOUR - 1, HOUR - 1) == 1e9 + HOUR - 1
    assert clock.now(3e9, HOUR) == 1e9 + HOUR
    assert clock.now(3e9 + HOUR - 1, 2 * HOUR - 1) == 1e9 + 2 * HOUR - 1
    assert clock.now(3e9 + HOUR, 2 * HOUR) == 3e9 + HOUR
    assert clock.now(3e9 + HOUR + 5, 2 * HOUR + 5) == 3e9 + HOUR + 5


def test_clock_that_is_behind():
    """The earlier time counts at once, and the later one again after an hour."""
    clock = KeepClock(DAY, 1e9)
    clock.now(1e9, 0.0)
    assert clock.now(5.0, 0.0) == 5.0
    assert clock.now(5.0 + HOUR, HOUR) == 5.0 + HOUR
    assert clock.now(1e9 + HOUR, HOUR) == 5.0 + HOUR
    assert clock.now(1e9 + 2 * HOUR, 2 * HOUR) == 1e9 + 2 * HOUR


@pytest.mark.parametrize("gap, begins", [(0.9 * DAY, 0.9 * DAY), (1.1 * DAY, 0.0), (-50.0, -50.0)])
def test_clock_at_a_start(gap, begins):
    """Where everything would be too old at once, time goes on from the newest entry for an hour."""
    clock = KeepClock(DAY, 1e9)
    assert clock.now(1e9 + gap, 7.0) == 1e9 + begins
    assert clock.now(1e9 + gap + HOUR, HOUR + 7) == 1e9 + begins + HOUR or gap > DAY
    assert clock.now(1e9 + gap + 2 * HOUR, 2 * HOUR + 7) == 1e9 + gap + 2 * HOUR


def test_wrong_clock_deletes_nothing(path):
    """A clock that is a year ahead for ten seconds leaves everything; the right one deletes."""
    file = HistoryFile(path, keep_seconds=100.0)
    file.save(50, [chat(id, at=1000.0 + id) for id in range(1, 51)], [], [])
    assert not file.trim(1050.0, 0.0)
    assert not file.trim(1060.0 + 365 * DAY, 10.0)
    assert not file.trim(1070.0, 20.0)
    assert file.trim(1110.5, 60.5) and file.forgotten == 10
    file.close()


def test_entries_of_a_wrong_clock_do_not_stay_for_ever(path):
    """What was said while the clock was ahead goes with what was said after it."""
    file = HistoryFile(path, keep_seconds=100.0)
    file.save(30, [chat(id, at=1e9 + id if 10 < id <= 20 else 1000.0 + id) for id in range(1, 31)],
              [], [])
    assert file.trim(1115.5, 0.0) and file.forgotten == 10
    assert file.trim(1125.5, 10.0) and file.forgotten == 25
    file.close()


def test_keep_messages_counts_what_is_left(path):
    """Only so many chats stay, whatever the clock says and whatever is among them."""
    file = HistoryFile(path, keep_messages=10)
    kinds = rename, rename, chat
    file.save(90, [kinds[id % 3 - 1](id, at=9e9) for id in range(1, 91)], [], [])
    assert file.trim(5.0, 0.0) and not file.trim(6.0, 1.0)
    assert ids(file.before(91, 100, 5)[0]) == list(range(90, 60, -3)) and file.forgotten == 60
    file.close()


# --- What the host takes back ---

def holding(path, text):
    """Which of the file and what belongs to it hold a text."""
    return [end for end in ("", "-wal", "-shm", "-journal")
            if os.path.exists(path + end) and text in open(path + end, "rb").read()]


class Careless(HistoryFile):
    """A history file where SQLite was built to leave what is deleted in free pages."""

    def _connect(self, path):
        connection = super()._connect(path)
        connection.execute("PRAGMA secure_delete = OFF")
        return connection


def test_removed_text_is_gone(path):
    """The place and the rest of the frame stay; the text is nowhere in the file nor in its WAL."""
    file = Careless(path)
    texts = {id: f"SECRET{id:04d}" * (1 if id % 7 else 500) for id in range(1, 200)}
    file.save(199, [chat(id, text, (7, 8) if id % 5 == 0 else ()) for id, text in texts.items()],
              [], [])
    assert holding(path, b"SECRET0014")
    gone = [3, 14, 25, 35, 49]
    file.save(201, [chat(201, "SECRET0201")], [], [], [*gone, 201])
    file.save(202, [], [], [], gone)
    for id in [*gone, 201]:
        assert holding(path, b"SECRET%04d" % id) == []
        heard = {entry.id: entry.frame for entry in file.before(id + 1, 1, 7)[0]}
        there = chat(id, "(removed)", (7, 8) if id % 5 == 0 else ())
        assert heard[id] == there[5].encode() + b"\n"
    assert holding(path, b"SECRET0015") and not file.damaged
    file.close()
    assert not any(holding(path, b"SECRET%04d" % id) for id in gone)


def test_removal_survives_a_kill_before_its_checkpoint(path, monkeypatch):
    """The text that a WAL still holds after a kill is gone once the next server has opened it."""
    file = HistoryFile(path)
    file.save(1, [chat(1, "SECRET")], [], [])
    monkeypatch.setattr(file, "_checkpoint", lambda: None)
    file.save(2, [], [], [], [1])
    for end in "", "-wal":
        shutil.copy(path + end, path + ".killed" + end)
    file.close()
    killed = path + ".killed"
    assert holding(killed, b"SECRET") == ["-wal"]
    file = HistoryFile(killed)
    assert holding(killed, b"SECRET") == [] and b"(removed)" in recent(file, 1)[0].frame
    file.close()


def test_removal_of_what_is_no_chat(path):
    """An id that nobody has, or that is no chat's, changes nothing; a damaged chat goes."""
    file = HistoryFile(path)
    file.save(3, [chat(1, "SECRET"), rename(2), chat(3)], [], [])
    before = file.newest(9, 9999)
    file.save(3, [], [], [], [2, 77])
    assert file.newest(9, 9999) == before
    file.close()
    spoil(path, b"SECRET", b"SEKRET")
    file = HistoryFile(path)
    file.save(3, [], [], [], [1])
    assert holding(path, b"SEKRET") == [] and ids(file.newest(9, 9999)[0]) == [2, 3]
    file.close()


def test_removed_frame_keeps_the_rest():
    """Who said it, when, to whom and under which cid stays; a file goes with the text."""
    frame = ('{"type":"chat","id":7,"from":"é","text":"hi","at":5.25,"cid":3,"to":"bob",'
             '"file":{"name":"a","size":1,"url":"/f/1"}}\n').encode()
    assert removed_frame(frame).decode() == (
        '{"type":"chat","id":7,"from":"é","text":"(removed)","at":5.25,"cid":3,"to":"bob"}\n')


def test_removal_has_no_time_in_the_export(path, tmp_path):
    """A frame that does not say when it was is exported without a time, not with one of 1970."""
    file, removed = HistoryFile(path), chatproto.Removed(2, 1)
    file.save(2, [chat(1), entry_row(removed, removed.encode(), (), 5.0)], [], [])
    file.close()
    out = tmp_path / "out.txt"
    assert chat_server.export_history(path, str(out)) == 2
    assert out.read_text().splitlines()[1] == "* the host removed a message"


def test_deleted_text_is_gone(path):
    """What --keep deletes does not stay in free pages."""
    file = Careless(path, keep_seconds=10.0)
    file.save(400, [chat(id, f"SECRET{id:04d}" * 20, at=float(id)) for id in range(1, 401)], [], [])
    while file.trim(400.0, 0.0):
        pass
    file.close()
    with open(path, "rb") as content:
        left = content.read()
    assert b"SECRET0390" in left and b"SECRET0389" not in left and b"SECRET0100" not in left


# --- A file of version 1 ---

def make_version_1(path, bodies=()):
    """A file as version 1 made it, with 300 entries and two sessions; `bodies` replace some."""
    rows = [row[:9] for row in (
        *(chat(id, f"text {id}", (7, 8) if id % 5 == 0 else ()) for id in range(1, 300)),
        refusal(300, 7, 3))]
    with raw(path) as file:
        file.execute("PRAGMA auto_vacuum = INCREMENTAL")
        for statement in VERSION_1:
            file.execute(statement)
        file.execute("INSERT INTO state VALUES ('e1', 310, 0, 0)")
        file.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        file.executemany("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                         [session(7), session(8, left_at=4.5, booted="spam", name="bøb")])
        for id, body in bodies:
            file.execute("UPDATE entries SET body = CAST(? AS TEXT) WHERE id = ?", (body, id))
        file.execute(f"PRAGMA application_id = {chat_server.APPLICATION_ID}")
        file.execute("PRAGMA user_version = 1")
        file.commit()
        file.execute("PRAGMA journal_mode = WAL")
    return rows


def version(path):
    """The format's number in the file."""
    with raw(path) as file:
        return file.execute("PRAGMA user_version").fetchone()[0]


def test_version_1_goes_on(path, tmp_path):
    """Everything that it held is there, is checked from now on, and it is a file like a new one."""
    rows = make_version_1(path)
    out = str(tmp_path / "out")
    assert chat_server.export_history(path, out) == 240 and version(path) == 1
    for _ in range(2):
        file = HistoryFile(path)
        assert (file.epoch, file.last) == ("e1", 310) and not file.damaged
        assert [(id, frame) for id, frame, *_ in file.newest(999, 10**6)[0]] == [
            (row[0], row[5].encode() + b"\n") for row in rows]
        assert file.sessions() == [session(8, left_at=4.5, booted="spam", name="bøb"), session(7)]
        assert ids(file.refusals()) == [300] and len(file.before(311, 300, 7)[0]) == 299
        assert len(file.before(311, 300, 9)[0]) == 240
        file.close()
    assert version(path) == chat_server.SCHEMA_VERSION
    assert chat_server.export_history(path, out + "2") == 240
    assert open(out).read() == open(out + "2").read()
    HistoryFile(path + "new").close()
    with raw(path) as old, raw(path + "new") as new:
        schema = "SELECT name, sql FROM sqlite_master ORDER BY name"
        assert old.execute(schema).fetchall() == new.execute(schema).fetchall()


def test_version_1_leaves_behind_what_is_no_frame(path, tmp_path):
    """A checksum does not make true what was damaged before there were any."""
    make_version_1(path, [(3, b'{"type":"chat","id":3'), (4, b'{"type":"chat","id":5,"text":"x"}'),
                          (6, b'{"type":"chat","id":6,"text":"\xff"}'), (8, b"[8]")])
    assert chat_server.export_history(path, str(tmp_path / "out")) == 236
    file = HistoryFile(path)
    assert file.damaged == {3, 4, 6, 8}
    assert ids(file.before(12, 9, 7)[0]) == [11, 10, 9, 7, 5, 2, 1]
    file.close()


@pytest.mark.parametrize("at", [
    "CREATE TABLE sessions", "INSERT INTO state", "INSERT INTO entries", 1, 150, 300,
    "DROP TABLE old_state", "DROP TABLE old_sessions", "COMMIT"])
def test_version_1_killed_in_the_middle(path, at):
    """What a kill leaves of a migration is a whole version 1; the next start migrates it."""
    rows = make_version_1(path)
    seen = []

    def look(what):
        if "migrated" not in seen and (what == at or f"{what} ".startswith(f"{at} ")):
            for end in "", "-wal":
                shutil.copy(path + end, path + ".killed" + end)

    class Kill(HistoryFile):
        def _migrate(self):
            self._connection.set_trace_callback(look)
            super()._migrate()
            seen.append("migrated")

        def _keep_sound(self, id, is_sound):
            seen.append(id)
            look(len(seen))
            return super()._keep_sound(id, is_sound)

    file = Kill(path)
    crash(file)
    assert version(path + ".killed") == 1
    with raw(path + ".killed") as killed:
        assert killed.execute("SELECT count(*) FROM entries").fetchone()[0] == len(rows)
    file = HistoryFile(path + ".killed")
    assert len(file.newest(999, 10**6)[0]) == len(rows) and not file.damaged
    file.close()


def test_newer_version_is_refused(path):
    """A file of a newer Roger is left alone."""
    HistoryFile(path).close()
    with raw(path) as file:
        file.execute(f"PRAGMA user_version = {chat_server.SCHEMA_VERSION + 1}")
    with pytest.raises(HistoryError, match="a newer Roger wrote it"):
        HistoryFile(path)
    with pytest.raises(HistoryError, match="a newer Roger wrote it"):
        chat_server.export_history(path, path + ".txt")
