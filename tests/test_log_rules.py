"""One log, two places a peer: the rules of DESIGN.md, section 5, each by itself; and the log under
them. simulation.py has all of them at once."""

import random

import pytest
from fake_time import FakeTime, Line, in_pieces, pings

import chatproto
from chatproto import (NOWHERE, PIECES_BYTES, WINDOW, WINDOW_BYTES, Alarm, Error,
                       MessageQueue, Ping)

OTHERS = frozenset([98, 99])


def log_of(*ids, size=0):
    """A log in which these are published, each frame of `size` bytes."""
    log = MessageQueue()
    for id in ids:
        log.append(id, b"x" * (size - 1) + b"\n" if size else Ping(id).encode())
    log.publish(ids[-1], 0.0)
    return log


def read(log, after, reader=None, upto=10**9, room=WINDOW, room_bytes=WINDOW_BYTES):
    """Ids and place of the next piece."""
    piece = log.piece(after, upto, reader, room, room_bytes)
    return in_pieces(piece.data), piece.place


# --- The log ---

def test_log_is_read_from_any_place():
    """Every reader gets what is behind its place, ids with gaps or not, and the place behind it."""
    log = log_of(3, 5, 9)
    assert read(log, 0) == ([3, 5, 9], 9)
    assert read(log, 3) == read(log, 4) == ([5, 9], 9)
    assert read(log, 9) == ([], 9)
    assert read(log, 0, upto=5) == ([3, 5], 5) and read(log, 0, upto=6) == ([3, 5], 6)


def test_log_is_heard_only_when_it_is_published():
    """What is appended waits for publish(), and then is news once."""
    log = MessageQueue()
    log.append(1, Ping(1).encode())
    assert read(log, 0) == ([], 0)
    news = log.publish(1, 5.0)
    assert (news.after, news.first, news.end, news.count, news.at) == (0, 1, 1, 1, 5.0)
    assert read(log, 0) == ([1], 1)
    assert log.publish(1, 5.0) is None


@pytest.mark.parametrize("room, heard", [(1, [1]), (2, [1, 2]), (64, [1, 2, 3])])
def test_log_piece_has_the_frames_there_is_room_for(room, heard):
    """As many frames as the window takes, and the place behind the last of them."""
    assert read(log_of(1, 2, 3), 0, room=room) == (heard, heard[-1])


@pytest.mark.parametrize("bytes, frames", [(99, 0), (100, 1), (199, 1), (200, 2), (1000, 3)])
def test_log_piece_has_the_bytes_there_is_room_for(bytes, frames):
    """The same where bytes are the limit; nothing overtakes what does not fit."""
    piece = log_of(1, 2, 3, size=100).piece(0, 10, None, WINDOW, bytes)
    assert (piece.frames, piece.size, piece.place) == (frames, 100 * frames, [0, 1, 2, 10][frames]
                                                       if frames < 3 else 3)


def test_log_piece_is_one_object_for_all_at_the_same_place():
    """Joined once: everybody at the same place gets the same bytes, wrapped as well."""
    log = log_of(*range(1, 10))
    assert log.piece(2, 9, 7, 64, 10**6).data is log.piece(2, 9, None, 64, 10**6).data
    calls = []

    def wrap(frame):
        calls.append(frame)
        return b"<" + frame
    first = log.piece(2, 9, None, 64, 10**6, wrap)
    assert log.piece(2, 9, None, 64, 10**6, wrap).data is first.data and len(calls) == 7
    assert first.data.startswith(b'<{"type":"ping","id":3}') and first.size < len(first.data)


def test_log_single_frame_is_not_copied():
    """With one frame the piece is the frame itself."""
    log = log_of(1)
    assert log.piece(0, 1, None, 64, 10**6).data is log._frames[0]


def test_log_forgets_from_its_start():
    """What is forgotten cannot be read, and the bytes that are kept are counted."""
    log = log_of(1, 2, 3, 4, size=100)
    assert (len(log), log.size) == (4, 400)
    log.forget(2)
    assert (len(log), log.size, log.start) == (2, 200, 2)
    assert log.piece(1, 9, None, 64, 10**6) is None and log.count(1, 4, None) is None
    assert log.piece(1, 4, None, 1, WINDOW_BYTES) is None
    assert log.piece(2, 9, None, 64, 10**6).frames == 2
    log.forget(9)
    assert (len(log), log.size, log.start) == (0, 0, 9)


def test_log_against_a_plain_list():
    """Whatever is appended, published, forgotten and replaced, readers hear what a plain list says
    they should: their own frames, in order, each once."""
    for seed in range(200):
        check_against_a_list(random.Random(seed))


def check_against_a_list(chance):
    log, plain, id, start = MessageQueue(), [], 0, 0
    for _ in range(60):
        id += chance.randint(1, 3)
        audience = chance.choice([None, None, OTHERS, frozenset([1]), frozenset([1, 2])])
        frame = b"%d:" % id + b"y" * chance.randint(0, 40) + b"\n"
        log.append(id, frame, audience)
        plain.append([id, frame, audience])
        if chance.random() < 0.1:
            start = max(start, plain[chance.randrange(len(plain))][0])
            log.publish(id, 0.0)
            log.forget(start)
        if chance.random() < 0.1:
            chosen = chance.choice(plain)
            if chosen[0] > start:
                chosen[1] = b"%d:removed\n" % chosen[0]
                log.replace({chosen[0]: chosen[1]})
    log.publish(id, 0.0)
    plain = [entry for entry in plain if entry[0] > start]
    assert log.size == sum(len(frame) for _, frame, _ in plain) and len(log) == len(plain)
    for reader in (1, 2, 3):
        own = [(number, frame) for number, frame, audience in plain
               if audience is None or reader in audience]
        place, heard = start, b""
        while place < id:
            room = chance.randint(1, 5)
            piece = log.piece(place, id, reader, room, 200)
            assert piece.frames <= room and piece.size <= 200 and piece.place > place
            assert log.count(place, piece.place, reader) == (piece.frames, piece.size)
            heard, place = heard + piece.data, piece.place
        assert heard == b"".join(frame for _, frame in own)
        first = log.piece(start, id, reader, 1, WINDOW_BYTES)
        assert first.data == (own[0][1] if own else b"")


# --- Rules 1 and 2: who confirms, and what no ACK may overtake ---

def refuse(line, id, about):
    """The server's error about a frame of the peer, as the room does it."""
    line.add(id, audience=frozenset([7]), frame=Error(id, "bad-text", "no", about).encode())
    line.manager.refuse(about, id)


def test_ack_waits_for_the_error_that_refuses():
    """An error that is not published yet holds the ACK of what it refuses, and of all behind; what
    came before is confirmed."""
    line = Line(reader=7)
    refuse(line, 1, 5)
    line.manager.confirm(6)
    assert line.sent() == [("ack", 4)]
    line.publish()
    assert line.sent() == [("error", 1), ("ack", 6)]
    line.manager.confirm(7)
    assert line.sent() == [("ack", 7)]


def test_ack_waits_for_an_error_behind_a_shut_window():
    """The same where the error waits in the log, a window behind."""
    line = Line(reader=7)
    line.send(*range(1, WINDOW + 1))
    refuse(line, WINDOW + 1, 5)
    line.publish()
    line.manager.confirm(5)
    assert line.sent() == [*pings(*range(1, WINDOW + 1)), ("ack", 4)]
    line.manager.take_ack(1)
    assert line.sent() == [("error", WINDOW + 1), ("ack", 5)]


def test_ack_waits_for_each_error():
    """Two refusals: each releases what lies before the next."""
    line = Line(reader=7)
    line.send(*range(1, WINDOW + 1))
    refuse(line, WINDOW + 1, 3)
    refuse(line, WINDOW + 2, 5)
    line.publish()
    line.manager.confirm(8)
    line.sent()
    line.manager.take_ack(1)
    assert line.sent() == [("error", WINDOW + 1), ("ack", 4)]
    line.manager.take_ack(2)
    assert line.sent() == [("error", WINDOW + 2), ("ack", 8)]


def test_ack_of_a_new_connection_waits_for_an_error_that_was_not_seen():
    """A resume below an error hands the refusal on to the next manager."""
    line = Line(reader=7)
    refuse(line, 1, 5)
    line.publish()
    again = line.again(0, reader=7, seen=6, refused=[(5, 1)])
    assert again.sent() == [("error", 1), ("ack", 6)]
    again = line.again(1, reader=7, seen=6, refused=[(5, 1)])
    again.manager.confirm(6)
    assert again.sent() == [("ack", 6)]


def test_ack_waits_for_an_error_that_was_said_again_behind_later_ones():
    """Its id is newer than those of the errors about later frames, which let no ACK past it."""
    line = Line(opened=False, reader=7)
    line.add(1, 2, audience=frozenset([7]))
    line.manager.open(0, reader=7, seen=14, refused=[(13, 1), (12, 3)])
    line.manager.confirm(14)
    assert line.sent() == [("ack", 11)]
    line.publish()
    assert line.sent() == [("ping", 1), ("ping", 2), ("ack", 11)]
    line.add(3, audience=frozenset([7]))
    line.publish()
    assert line.sent() == [("ping", 3), ("ack", 14)]


def test_refusal_comes_before_open():
    """What is refused between a join and its welcome is held as well, and in order."""
    line = Line(opened=False, reader=7)
    line.manager.refuse(9, 2)
    line.add(1, 2, audience=frozenset([7]))
    line.manager.open(0, reader=7, seen=9, refused=[(4, 1)])
    line.manager.confirm(9)
    assert line.sent() == [("ack", 3)]
    line.publish()
    assert line.sent() == [("ping", 1), ("ping", 2), ("ack", 9)]


# --- Rule 3: what is private to others ---

def test_foreign_frames_are_stepped_over():
    """A reader whose own frame lies behind hundreds of others' hears it at once."""
    line = Line(reader=7)
    line.add(*range(1, 2_000), audience=OTHERS)
    line.add(2_000)
    line.publish()
    assert line.sent() == pings(2_000)


def test_foreign_frames_do_not_fill_the_window():
    """The window counts the reader's own frames and bytes only."""
    line = Line(reader=7)
    for id in range(1, 4 * WINDOW, 4):
        line.add(id, id + 1, id + 2, audience=OTHERS)
        line.add(id + 3)
    line.publish()
    assert line.sent() == pings(*range(4, 4 * WINDOW + 1, 4)) and line.in_flight[0] == WINDOW


def test_last_frame_in_flight_is_not_foreign():
    """An ACK of the reader's last frame leaves nothing in flight, though foreign ones lie behind:
    nobody is retried to death over them."""
    line = Line(reader=7)
    line.add(1)
    line.add(2, 3, audience=OTHERS)
    line.publish()
    line.manager.take_ack(1)
    assert line.manager.acked == line.manager.sent == 3 and line.manager.is_empty
    line.sent()
    line.time.advance(20)
    assert line.sent() == [] and line.deaths == []


def test_only_foreign_frames_leave_nothing_in_flight():
    """A reader that had nothing to hear is not waited for."""
    line = Line(reader=7)
    line.add(1, 2, audience=OTHERS)
    line.publish()
    line.manager.catch_up()
    assert line.writes == [] and line.manager.acked == 2 and line.deaths == []


def test_partial_ack_counts_the_own_frames():
    """After an ACK in the middle the window counts what is still in flight, without what is
    foreign."""
    line = Line(reader=7)
    line.add(1)
    line.add(2, audience=OTHERS)
    line.add(3)
    line.add(4, audience=frozenset([7]))
    line.publish()
    line.manager.take_ack(1)
    assert line.in_flight == (2, len(Ping(3).encode() + Ping(4).encode()))


# --- Rule 4: the fast way, and who never takes it ---

def test_news_are_one_piece_for_all():
    """All readers at the end get the same bytes object; one for whom something in it is private
    reads the log itself."""
    log, time = MessageQueue(), FakeTime()
    ann, bob, cleo = (Line(time=time, log=log, reader=number) for number in (1, 2, 3))
    ann.add(1)
    ann.add(2, audience=frozenset([3]))
    ann.add(3)
    news = log.publish(3, time.now)
    for line in (ann, bob, cleo):
        line.manager.wake(news)
    assert ann.writes[0] is bob.writes[0] is news.data and in_pieces(news.data) == [1, 3]
    assert cleo.sent() == pings(1, 2, 3)
    assert ann.manager.sent == bob.manager.sent == cleo.manager.sent == 3


def test_private_frames_do_not_slow_the_others():
    """Who was not woken for a private frame still takes the next public piece as it is."""
    line = Line(reader=7)
    line.send(1)
    line.add(2, audience=OTHERS)
    line.log.publish(2, line.time.now)
    line.add(3)
    news = line.publish()
    assert line.sent() == pings(1, 3) and news.after == 1 and line.manager.sent == 3


def test_private_frame_that_was_not_woken_for_comes_first():
    """One whose private frame was published and who was not woken yet hears it before the next."""
    line = Line(reader=7)
    line.add(1, audience=frozenset([7]))
    line.log.publish(1, line.time.now)
    line.send(2)
    assert line.sent() == pings(1, 2)


def test_news_do_not_come_twice():
    """A reader that has read past the beginning of the news does not take them as they are."""
    line = Line()
    line.add(1, 2)
    news = line.log.publish(2, line.time.now)
    line.manager.catch_up()
    line.manager.wake(news)
    assert line.sent() == pings(1, 2)


def test_ack_does_not_overtake_a_wake():
    """What is published goes out by its wake(), not by an ACK that comes between; what a shut
    window kept back goes out by the ACK that opens it."""
    line = Line()
    line.add(1)
    line.publish()
    line.add(2)
    news = line.log.publish(2, line.time.now)
    line.manager.take_ack(1)
    assert line.sent() == pings(1)
    line.manager.wake(news)
    line.add(*range(3, WINDOW + 4))
    line.publish()
    assert line.sent() == pings(*range(1, WINDOW + 2))[1:] and line.in_flight[0] == WINDOW
    line.manager.take_ack(3)
    assert line.sent() == pings(WINDOW + 2, WINDOW + 3)


def test_more_than_a_window_is_read_piece_by_piece():
    """News of more frames than a window are nobody's fast way, and in order all the same."""
    line = Line()
    line.add(*range(1, 200))
    news = line.publish()
    assert news.count == 199 and news.data == b""
    got = []
    while line.manager.sent < 199:
        got += line.sent()
        line.manager.take_ack(line.manager.sent)
    assert got + line.sent() == pings(*range(1, 200))


# --- Rules 5 and 7: below the start of the log ---

def test_reader_below_the_start_is_fed():
    """It asks for a piece, gets it, asks again when that is acknowledged, goes on in the log."""
    line = Line(opened=False)
    line.add(*range(1, 11))
    line.publish()
    line.log.forget(8)
    line.manager.open(2)
    assert line.sent() == [] and line.hungry == [False] and line.manager.is_behind
    line.manager.feed([Ping(id).encode() for id in (3, 4, 5)], 5)
    assert line.sent() == pings(3, 4, 5) and not line.manager.is_behind
    line.manager.take_ack(4)
    assert line.hungry == [False]
    line.manager.take_ack(5)
    assert line.hungry == [False, False] and line.manager.is_behind
    line.manager.feed([Ping(7).encode()], 8)
    assert line.sent() == pings(7, 9, 10)
    line.manager.take_ack(10)
    assert line.manager.is_empty


def test_feed_without_frames_moves_on():
    """A piece of the file in which nothing is this reader's leaves nothing in flight."""
    line = Line(opened=False)
    line.add(*range(1, 11))
    line.publish()
    line.log.forget(8)
    line.manager.open(2)
    line.manager.feed([], 8)
    assert line.sent() == pings(9, 10)


def test_ack_of_the_last_frame_that_was_fed():
    """What lies between it and the place of the piece is not this reader's: nothing is in flight
    after it, and nobody is retried to death over it. An ACK below it opens nothing."""
    line = Line(opened=False)
    line.add(*range(1, 101))
    line.publish()
    line.manager.open(0, begin=90)
    line.manager.feed([Ping(id).encode() for id in (3, 7)], 90, 7)
    assert line.sent() == pings(3, 7, *range(91, 101))
    assert line.manager.take_ack(3) and line.in_flight[0] == 12 and line.manager.acked == 3
    assert line.manager.take_ack(7) and line.in_flight[0] == 10 and line.manager.acked == 90
    assert not line.manager.take_ack(7)
    line.manager.take_ack(100)
    line.time.advance(20)
    assert line.sent() == [] and line.manager.is_empty and line.deaths == []


def test_retry_of_what_was_fed_is_an_event():
    """The log has not what is in flight: the owner is asked for it, once each retry, and after
    three of them the reader is dead."""
    line = Line(opened=False)
    line.add(1, 2, 3)
    line.publish()
    line.log.forget(2)
    line.manager.open(0)
    line.manager.feed([Ping(1).encode()], 1)
    line.sent()
    line.time.advance(2.1)
    assert line.hungry == [False, True]
    line.manager.resend(Ping(1).encode())
    assert line.sent() == pings(1)
    line.time.advance(6)
    assert line.hungry == [False, True, True, True] and line.deaths


def test_log_forgotten_under_a_reader():
    """What is in flight may be forgotten: an ACK of all of it opens the window, one in the middle
    does not count wrongly."""
    line = Line()
    line.send(*range(1, 7))
    line.sent()
    line.log.forget(5)
    assert line.manager.take_ack(3) and line.in_flight[0] == 6
    line.send(7)
    assert line.sent() == pings(7)
    assert line.manager.take_ack(7) and line.in_flight == (0, 0)


# --- Rule 6: one manager a connection ---

def test_closed_manager_touches_nothing():
    """A late ACK, or the close, of an old connection does not touch the new one's places."""
    line = Line()
    line.send(1, 2, 3)
    again = line.again(1)
    assert again.sent() == pings(2, 3)
    line.manager.take_ack(3)
    line.manager.close()
    line.send(4)
    assert line.writes == [] and again.manager.acked == 1
    again.manager.catch_up()
    assert again.sent() == pings(4)


# --- Rule 8: where a newcomer begins ---

def test_no_piece_crosses_begin():
    """Before its `begin` a reader is fed; behind it reads the log, its own join not."""
    line = Line(opened=False)
    line.add(1, 2, 3, 4)
    line.publish()
    line.manager.open(0, begin=3)
    assert line.sent() == [] and line.hungry == [False] and line.manager.is_behind
    line.send(5)
    assert line.sent() == []
    line.manager.feed([Ping(1).encode()], 3)
    assert line.sent() == pings(1, 4, 5)


def test_newcomer_whose_join_is_not_published():
    """A place behind the end of the log is no reason to send or to wait for anything."""
    line = Line(place=6, begin=6)
    line.send(1, 5)
    assert line.sent() == [] and line.manager.is_empty
    line.add(6, 7)
    line.publish()
    assert line.sent() == pings(7)


# --- Rule 9: what is kept for others, and removal ---

def test_pieces_are_bounded():
    """However many readers stand at different places, what is joined for them has one bound."""
    log = log_of(*range(1, 400), size=WINDOW_BYTES // 4)
    for after in range(390):
        log.piece(after, 399, None, WINDOW, WINDOW_BYTES)
    assert log._pieces_bytes == sum(map(len, log._pieces.values()))
    assert PIECES_BYTES - WINDOW_BYTES < log._pieces_bytes <= PIECES_BYTES


def test_replaced_frame_is_in_no_piece():
    """A removed text is gone from the log and from every piece that held it."""
    log = MessageQueue()
    for id, text in ((1, b"one\n"), (2, b"a secret\n"), (3, b"three\n")):
        log.append(id, text)
    log.publish(3, 0.0)
    for after in range(3):
        log.piece(after, 3, None, WINDOW, WINDOW_BYTES)
    log.replace({2: b"(gone)\n"})
    assert log.size == len(b"one\n(gone)\nthree\n")
    for after in range(3):
        piece = log.piece(after, 3, None, WINDOW, WINDOW_BYTES)
        assert b"secret" not in piece.data and piece.size == len(piece.data)
    assert b"secret" not in b"".join([*log._frames, *log._pieces.values()])
    log.replace({7: b"nothing\n"})
    assert len(log) == 3


def test_piece_that_was_joined_while_a_frame_was_replaced_is_not_kept():
    """Joining is done without the lock: what was read before a removal may not be kept after it."""
    log = log_of(1, 2)

    def wrap(frame):
        log.replace({1: b"(gone)\n"})
        return frame
    log.piece(0, 2, None, WINDOW, WINDOW_BYTES, wrap)
    assert not log._pieces
    assert log.piece(0, 2, None, WINDOW, WINDOW_BYTES).data.startswith(b"(gone)\n")


# --- Rules 11 and 12: last words, pings, retries ---

def test_last_words_go_past_a_shut_window():
    """What ends a connection is written though the window is shut, behind what had room."""
    line = Line()
    line.send(*range(1, WINDOW + 3))
    line.sent()
    line.manager.close(upto=WINDOW + 2, last_words=Ping(500).encode())
    assert line.sent() == pings(500)
    line = Line()
    line.add(1, 2, 3)
    line.log.publish(3, line.time.now)
    line.manager.close(upto=2, last_words=Ping(500).encode())
    line.manager.write_bare(Ping(501).encode())
    assert line.sent() == pings(1, 2, 500)


def test_ping_is_neither_stored_nor_counted():
    """It takes an id, asks for an ACK, and is in no log: a resume does not bring it."""
    line = Line()
    line.send(1)
    line.manager.take_ack(1)
    line.sent()
    line.ping()
    assert line.sent() == pings(2) and line.in_flight == (0, 0) and not line.manager.is_empty
    line.send(3)
    assert line.sent() == pings(3)
    assert line.manager.take_ack(2) and line.manager.take_ack(3) and line.manager.is_empty
    assert line.again(1).sent() == pings(3)


def test_ping_that_is_not_answered_is_retried_to_death():
    """So a peer that vanished is found; each retry is a ping at the place that was sent."""
    line = Line()
    line.ping()
    assert line.sent() == pings(1)
    line.time.advance(7)
    assert line.sent() == pings(1, 1, 1) and not line.deaths
    line.time.advance(1.2)
    assert line.deaths


def test_ping_while_something_is_in_flight():
    """Nothing is asked twice."""
    line = Line()
    line.send(1)
    line.sent()
    line.ping()
    assert line.sent() == []


def test_retry_sends_the_first_own_frame_alone():
    """Not the whole window, and nothing that is another's."""
    line = Line(reader=7)
    line.add(1, audience=OTHERS)
    line.add(2, 3, 4)
    line.publish()
    line.sent()
    line.time.advance(2.1)
    assert line.sent() == pings(2)
    line.manager.take_ack(2)
    line.time.advance(2.1)
    assert line.sent() == pings(3)


def test_ack_of_what_is_another_s_is_taken():
    """A peer may confirm any id up to what was sent: it is not told which are its own."""
    line = Line(reader=7)
    line.add(1)
    line.add(2, audience=OTHERS)
    line.publish()
    assert line.manager.take_ack(2) and line.manager.is_empty


@pytest.mark.parametrize("place", [NOWHERE, 5])
def test_ack_of_what_was_never_sent(place):
    """It is the peer's fault, before the join as well."""
    line = Line(place=5, opened=place != NOWHERE)
    with pytest.raises(chatproto.FrameError):
        line.manager.take_ack(6)


def test_many_readers_cost_nothing_to_keep():
    """A hundred readers that stop, each at another place: the log keeps its frames, and of pieces
    no more than their bound."""
    log, time = MessageQueue(), FakeTime()
    alarm = Alarm(time.clock, time.timer)
    lines = [Line(time=time, log=log) for _ in range(100)]
    assert alarm.clock() == 1000.0
    for id in range(1, 1001):
        log.append(id, b"x" * 999 + b"\n")
        news = log.publish(id, time.now)
        for number, line in enumerate(lines):
            line.manager.wake(news)
            line.writes.clear()
            if id < number:
                line.manager.take_ack(id)
    assert log.size == 1_000_000 and log._pieces_bytes <= PIECES_BYTES
    assert {line.in_flight[0] for line in lines} == {WINDOW}
