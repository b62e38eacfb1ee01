"""The simulated chats of simulation.py, and the proof that its checker sees what is wrong."""

import logging

import pytest

import simulation

SEEDS = 200
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
        ("chat_client", "elif self.manager.is_duplicate(message.id):", "elif False:")],
    "a replay that is off by one": [
        ("chat_server", "bisect.bisect_left(self._entries, (id + 1,))", "bisect.bisect_left(self._entries, (id + 2,))")],
    "live before the replay": [
        ("chat_server", "        for start in range(0, len(replay), WINDOW):  ",
         "        self.late = lambda: [link.manager.send(PendingMessage([entry.id], [entry.frame]), True) for entry in replay]\n"
         "        for start in ():  "),
        ("chat_server", "        run.send_all()\n", "        run.send_all()\n        getattr(run, 'late', int)()\n")],
    "a full queue drops silently": [
        ("chatproto", "+ self._spare[1]):\n            raise queue.Full\n", "+ self._spare[1]):\n            return\n")],
    "a slow member is dropped and the next frame sent all the same": [
        ("chat_server", "            link.manager.detach()                       # nothing may follow", "            pass  # "),
        ("chat_server", "        for session, link in run.too_slow.items():\n            if session.link is link:\n",
         "        for session, link in run.too_slow.items():\n            if False:\n")],
    "retries go on after the ACK": [
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
        ("chatproto", "            return False\n        self._acked = upto\n", "            return False\n")],
    "a silent connection is not noticed": [
        ("chatproto", "                dead = self._retries >= MAX_RETRIES\n", "                dead = False\n")],
    "an ACK counts as sent before it is in the order": [
        ("chat_client", "                self.manager.acknowledged(message.upto)\n                self._settle(message.upto)\n",
         "                self.manager.acknowledged(message.upto)\n                self._settle(self._last_id)\n")],
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
    for seed in range(TRIES):
        if simulation.simulate(seed, modules):
            return
    pytest.fail(f"no seed up to {TRIES} shows it")
