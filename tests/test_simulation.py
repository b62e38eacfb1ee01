"""The simulated chats of simulation.py, and the proof that its checker sees what is wrong."""

import logging

import pytest

import simulation

SEEDS = 100         # more of them: python tests/simulation.py --seeds 10000
TRIES = 250         # seeds in which a deliberate fault must show

# name -> (file, old, new) ...: each breaks one promise.
FAULTS = {
    "an ACK before the sequencer has the frame": [
        ("chat_server", "        for message in batch:\n            if link.ended:\n                return\n",
         "        if link.session and batch[-1].id:\n            link.manager.acknowledge(batch[-1].id)\n"
         "        for message in batch:\n            if link.ended:\n                return\n")],
    "duplicate removal off in the server": [
        ("chat_server", "        if message.id <= session.got:  ", "        if False:  ")],
    "duplicate removal off in the client": [
        ("chat_client", "if self.manager.is_duplicate(message.id):", "if False:")],
    "a replay that is off by one": [
        ("chat_server", "bisect.bisect_left(self._entries, (id + 1,))", "bisect.bisect_left(self._entries, (id + 2,))")],
    "live before the replay": [
        ("chat_server", "        for start in range(0, len(replay), WINDOW):  ",
         "        self.late = lambda: [link.manager.send(PendingMessage([entry.id], [entry.frame]), True) for entry in replay]\n"
         "        for start in ():  "),
        ("chat_server", "        self._send_public(run)\n",
         "        self._send_public(run)\n        getattr(run, 'late', int)()\n        run.late = int\n")],
    "a full queue drops silently": [
        ("chatproto", "+ self._spare[1]):\n            raise queue.Full\n", "+ self._spare[1]):\n            return\n")],
    "a slow member is dropped and the next frame sent all the same": [
        ("chat_server", "        link.manager.detach()                           # nothing may follow", "        pass  # "),
        ("chat_server", "            if link.session is not None and link.session.link is link:\n", "            if False:\n")],
    "retries go on after the ACK": [
        ("chatproto", "        if upto == self.newest_sent: ", "        if False: "),
        ("chatproto", "while self._in_flight and self._in_flight[0].ids[0] <= upto:",
         "while len(self._in_flight) > 1 and self._in_flight[0].ids[0] <= upto:")],
    "the secret of a session is not checked": [
        ("chat_server", "        session = self._sessions.get(secret_hash)\n        if session is None or not hmac.compare_digest(session.secret_hash, secret_hash):\n            return None\n",
         "        session = next(iter(self._sessions.values()), None)\n")],
    "a client's ids start again with each connection": [
        ("chat_client", "        self._session, self._epoch = welcome.session, welcome.epoch\n",
         "        self._session, self._epoch = welcome.session, welcome.epoch\n        self._last_id = 0\n")],
    "a broken connection takes what was in flight along": [
        ("chatproto", "            self._queue.rewind()\n", "            self._queue._in_flight.clear()\n")],
    "places in the window leak with each connection": [
        ("chatproto", "        self.frames_in_flight = self._bytes_in_flight = 0\n\n    def clear", "\n    def clear")],
    "a welcome confirms what was refused": [
        ("chat_server", "        return min([self.got, *unseen])", "        return self.got")],
    "an ACK overtakes a refusal": [
        ("chatproto", "            if self._queue.newest_sent < self._refusal:\n", "            if False:\n")],
    "an ACK overtakes a refusal that is replayed": [
        ("chat_server", "refusal=min(refusal, replay[-1].id))", "refusal=0)")],
    "private messages go to everybody": [
        ("chat_server", "            self._send_to((session,) if recipient is session else (session, recipient), chat)",
         "            self._broadcast(chat)")],
    "no grace time": [
        ("chat_server", "        self._alarm.at(lost_at + self._settings.grace,", "        self._alarm.at(lost_at,")],
    "the client does not look at the epoch": [
        ("chat_client", "            if welcome.epoch != self._epoch or welcome.last < seen:", "            if False:")],
    "the list of users forgets who left": [
        ("chat_client", "            self.users.pop(name_key(message.name), None)\n        elif isinstance(message, Renamed)",
         "            pass\n        elif isinstance(message, Renamed)")],
    "the ACK counter freezes": [
        ("chatproto", "            return False\n        self.acked = upto\n", "            return False\n")],
    "a silent connection is not noticed": [
        ("chatproto", "                dead = self._retries >= MAX_RETRIES\n", "                dead = False\n")],
    "an ACK counts as sent before it is in the order": [
        ("chat_client", "                self.manager.acknowledged(message.upto)\n                self._settle(message.upto)\n",
         "                self.manager.acknowledged(message.upto)\n                self._settle(self._last_id)\n")],
    "an ACK before the commit": [
        ("chat_server", "        if not self._commit():\n            return\n", "        self._commit()\n")],
    "a commit that failed is forgotten": [
        ("chat_server", "            self._held = str(error)\n            return False\n",
         "            self._rows.clear()\n            return True\n")],
    "the newest id of a session is not in the file": [
        ("chat_server", "self.begin, self.history_from, self.got, self.acked,", "self.begin, self.history_from, 0, self.acked,")],
    "the newest id of all is not in the file": [
        ("chat_server", "            self._connection.execute(\"UPDATE state SET last = ?\", (last,))\n", "")],
    "an entry and its session in two commits": [
        ("chat_server", "self._rows, [session.row() for session in self._changed], self._removed)",
         "self._rows, [], [])\n"
         "            history.save(self.last, [], [session.row() for session in self._changed], self._removed)")],
    "a new epoch after a restart with history": [
        ("chat_server", "        self.epoch, self.last = history.epoch, history.last\n", "        self.last = history.last\n")],
    "refusals are forgotten by a restart": [
        ("chat_server", "        for number, about, id, body in history.refusals():\n", "        for number, about, id, body in ():\n")],
    "live before the file is read to its end": [
        ("chat_server", "        if session.fed >= self._log.forgotten or self._history is None:", "        if True:")],
    "a piece of the file is off by one": [
        ("chat_server", "                    return piece, row[0]\n", "                    return piece, row[0] + 1\n")],
    "an ACK overtakes a refusal that waits behind the file": [
        ("chat_server", "lambda run: link.manager.refuses(entry.id))", "lambda run: None)")],
    "a member that catches up is forgotten": [
        ("chat_server", "        link.hungry = not live   ", "        link.hungry = False   ")],
    "private messages in the file are everybody's": [
        ("chat_server", "\" AND (one IS NULL OR one = ? OR other = ?) ORDER BY id LIMIT ?\"", "\" AND ?+? ORDER BY id LIMIT ?\"")],
    "older private messages are everybody's": [
        ("chat_server", "\" AND (one IS NULL OR one = ? OR other = ?) ORDER BY id DESC LIMIT ?\"", "\" AND ?+? ORDER BY id DESC LIMIT ?\"")],
    "no grace time after a restart": [
        ("chat_server", "                session.here_since = self.last\n                self._await(session)\n",
         "                session.here_since = self.last\n"
         "                self._alarm.at(0, lambda session=session: self._post(self.grace_over, session, session.lost_at))\n")],
}


# Where a fault shows late: a seed in which the code as it is shows it, which is tried first.
SHOWN_IN = {
    "an ACK before the commit": [52], "older private messages are everybody's": [49],
    "a slow member is dropped and the next frame sent all the same": [20], "a silent connection is not noticed": [10],
    "live before the file is read to its end": [21], "a piece of the file is off by one": [21],
    "an ACK overtakes a refusal that waits behind the file": [21], "a member that catches up is forgotten": [21],
    "a full queue drops silently": [8], "refusals are forgotten by a restart": [8], "private messages in the file are everybody's": [8],
    "the list of users forgets who left": [6], "the newest id of a session is not in the file": [6], "a new epoch after a restart with history": [6],
}


@pytest.fixture(autouse=True)
def quiet():
    """The simulated server's log is of no interest."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_simulation_keeps_every_promise():
    """In SEEDS simulated chats full of faults of the network nothing is lost, doubled, reordered or wrongly called sent."""
    modules = simulation.load()
    wrong = {seed: faults for seed in range(SEEDS) if (faults := simulation.simulate(seed, modules))}
    assert wrong == {}, "replay with: python tests/simulation.py -v --seed N"


def test_simulation_is_replayable():
    """The same number makes the same chat, and another number another one."""
    modules = simulation.load()

    def story(seed):
        heard = []
        original = simulation.History.check

        def check(history):
            heard.extend((client.name, message.id, getattr(message, "text", "")) for client in history.clients
                         for epoch, message in client.heard)
            original(history)
        simulation.History.check = check
        try:
            simulation.simulate(seed, modules)
        finally:
            simulation.History.check = original
        return heard
    assert story(3) == story(3) != story(4)


@pytest.mark.parametrize("fault", FAULTS)
def test_checker_catches(fault):
    """The checker sees a fault that is put into the code on purpose."""
    modules = simulation.load(FAULTS[fault])
    for seed in (*SHOWN_IN.get(fault, ()), *range(TRIES)):
        if simulation.simulate(seed, modules):
            return
    pytest.fail(f"no seed up to {TRIES} shows it")
