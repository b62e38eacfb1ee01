"""The simulated chats of simulation.py, and the proof that its checker sees what is wrong."""

import logging

import pytest

import simulation

# More of them: python tests/simulation.py --seeds 10000.
SEEDS = 100
# Seeds in which a deliberate fault must show.
TRIES = 250

# name -> (file, old, new) ...: each breaks one promise. The number is that of the rule of the log
# (DESIGN.md, section 5) which the fault breaks.
FAULTS = {
    "1: a connection confirms before the sequencer has the frame": [
        ("chat_server",
         "        if batch:\n            self._room.post(self._room.frames, self, batch)\n",
         "        if batch and self.session and batch[-1].id:\n"
         "            self.manager.confirm(batch[-1].id)\n"
         "        if batch:\n            self._room.post(self._room.frames, self, batch)\n")],
    "1: an ACK before the commit": [
        ("chat_server", "        if not self.journal.commit():\n            return\n",
         "        self.journal.commit()\n")],
    "1: duplicates are taken": [
        ("chat_server", "            if message.id > session.got:\n", "            if True:\n")],
    "2: an ACK overtakes a refusal": [
        ("chatproto", "            if error > self.sent:\n", "            if False:\n")],
    "2: an ACK overtakes a refusal that is replayed": [
        ("chat_server", "seen=session.got,\n                          refused=refused)",
         "seen=session.got)")],
    "2: a welcome confirms what was refused": [
        ("chat_server", "        return min([self.got, *unseen])", "        return self.got")],
    "2: an error that has left the log is not said again": [
        ("chat_server", "        for error in [one for one in session.refusals if one.id <=",
         "        for error in [one for one in () if one.id <=")],
    "2: refusals are forgotten by a restart": [
        ("chat_server", "        for entry in history.refusals():\n",
         "        for entry in ():\n")],
    "3: private messages go to everybody": [
        ("chat_server", "            self._delivery.add(chat, both, speaker=session)\n",
         "            self._delivery.add(chat, speaker=session)\n")],
    "3: a reader takes what is private to others for its own": [
        ("chatproto", "            for ids in self._public, self._private.get(reader, []):\n",
         "            for ids in [self._ids]:\n")],
    "3: a reader stops at what is private to others": [
        ("chatproto", "self._own(first, whole, reader,",
         "self._own(first, min(whole, first + 1), reader,")],
    "4: who is concerned takes the fast way": [
        ("chatproto", "\n                    and self._reader not in news.concerned)", ")")],
    "4: a reader that is behind takes the fast way": [
        ("chatproto", "if (news.after <= self.sent < news.first and", "if (")],
    "5: a reader below the start of the log is forgotten": [
        ("chatproto", "            return not self._flying\n",
         "            return False\n")],
    "what the window had no room for is not sent": [
        ("chatproto", "            is_behind = self.sent < self._wanted and self._send()\n",
         "            is_behind = False\n")],
    "5: the next piece of the file is not asked for": [
        ("chatproto", "        if is_behind:\n"
         "            self._owner.behind(False)\n        return True\n", "        return True\n")],
    "5: a piece of the file is off by one": [
        ("chat_server", "    return window, upto if rest is None else window[-1].id\n",
         "    return window, upto if rest is None else window[-1].id + 1\n")],
    "5: the ACK of what was fed is counted in the log": [
        ("chatproto", "None if id < place\n", "None if False\n"),
        ("chatproto", "            if last <= id < place:\n", "            if False:\n")],
    "6: the end of an old connection ends the new one": [
        ("chat_server",
         "        if link.ended:\n            return\n        session = link.session\n"
         "        if session is None:\n",
         "        session = link.session\n        if session is None:\n")],
    "7: the log moves past its readers, and they do not know": [
        ("chatproto", "            if after < self.start:\n                return None\n"
         "            upto =", "            upto =")],
    "7: what waits to be published is forgotten": [
        ("chat_server",
         "        upto = min(self.log.oldest(count), self.log.end)\n",
         "        upto = self.log.oldest(len(self.log))\n")],
    "8: a newcomer hears what happened before it came": [
        ("chatproto", "        if self.sent >= self._begin:\n", "        if True:\n")],
    "8: the place is taken when the welcome is written": [
        ("chat_server", "        self.manager.open(place,",
         "        self.manager.open(max(place, self._room.journal.last),")],
    "9: a piece is taken for another that begins at the same place": [
        ("chatproto", "key = (wrap, ids[first], ids[stop - 1]) if",
         "key = (wrap, ids[first], 0) if")],
    "10: joins that wait are behind the end of the log": [
        ("chat_server",
         "                self._later(self._news_at, self.write_notes)\n            return None\n",
         "                self._later(self._news_at, self.write_notes)\n"
         "            journal.log.end = journal.last\n            return None\n")],
    "11: who is booted is not told": [
        ("chatproto", "            if last_words:\n", "            if False:\n"),
        ("chat_server", "        self.house.check_entry(join.name, owned, link.origin)\n", "")],
    "11: a ping is not in flight": [
        ("chatproto", "                self.sent = id\n                self._since",
         "                self._since")],
    "12: a retry sends what is another's": [
        ("chatproto", "self._log.piece(self.acked, self.sent, self._reader, 1, WINDOW_BYTES)",
         "self._log.piece(self.acked, self.sent, next(iter(self._log._private), 0), 1,"
         " WINDOW_BYTES)")],
    "12: retries go on after the ACK": [
        ("chatproto", "            self.acked = self.sent if rest == (0, 0) else id\n",
         "            pass\n")],
    "12: a silent connection is not noticed": [
        ("chatproto", "        if self._retries >= MAX_RETRIES:\n", "        if False:\n")],
    "duplicates are taken by the client": [
        ("chat_client", "        if message.id > self.manager.seen:\n", "        if True:\n")],
    "a replay is off by one": [
        ("chatproto", "            first = bisect_right(self._ids, after)\n            whole =",
         "            first = bisect_right(self._ids, after) + 1\n            whole =")],
    "the secret of a session is not checked": [
        ("chat_server", "        return self._by_secret.get(_hash_of(secret))\n",
         "        return next(iter(self._by_secret.values()), None)\n")],
    "a client's ids start again with each connection": [
        ("chat_client", "        self.secret, self._epoch = welcome.session, welcome.epoch\n",
         "        self.secret, self._epoch = welcome.session, welcome.epoch\n"
         "        self._sayings.last_id = 0\n")],
    "a broken connection takes what was in flight along": [
        ("chat_client", "        self.manager.open(self._sayings.log.start, seen=seen)\n",
         "        self.manager.open(self._sayings.log.end, seen=seen)\n")],
    "no grace time": [
        ("chat_server", "session.lost_at + self.settings.grace, self", "session.lost_at, self"),
        ("chat_server", "            if self.alarm.clock() < lost_at + self.settings.grace:\n",
         "            if False:\n")],
    "the client does not look at the epoch": [
        ("chat_client", "            if welcome.epoch != self._epoch or welcome.last < seen:",
         "            if False:")],
    "the list of users forgets who left": [
        ("chat_client",
         "            self.here -= 1\n            self.users.pop(name_key(message.name), None)\n",
         "            self.here -= 1\n")],
    "an ACK counts as sent for all that was said": [
        ("chat_client", "settle(message.upto))", "settle(self._sayings.last_id))")],
    "a commit that failed is forgotten": [
        ("chat_server",
         "                self.disk.failed(str(error))\n                return False\n",
         "                self._rows.clear()\n                return True\n")],
    "the newest id of a session is not in the file": [
        ("chat_server", "self.begin, self.history_from, self.got,\n",
         "self.begin, self.history_from, 0,\n")],
    "the newest id of all is not in the file": [
        ("chat_server", "        state = last, forgotten, int(_pragma(",
         "        state = 0, forgotten, int(_pragma(")],
    "an entry and its session in two commits": [
        ("chat_server",
         "                took = history.save(self.last, self._rows,\n",
         "                history.save(self.last, self._rows, [], [])\n"
         "                took = history.save(self.last, [],\n")],
    "a new epoch after a restart with history": [
        ("chat_server", "if history is None else history.epoch\n", "\n")],
    "live before the file is read to its end": [
        ("chat_server", "            manager.feed(*piece)\n",
         "            manager.feed(piece[0], max(piece[1], self.journal.log.start), piece[2])\n")],
    "private messages in the file are everybody's": [
        ("chat_server", "chats WHERE kind = 'chat' AND one = :number",
         "chats WHERE kind = 'chat' AND one IS NOT NULL")],
    "what was taken back stays in the log": [
        ("chat_server", "        self.log.replace(frames)\n", "")],
    "what was taken back stays in what newcomers get": [
        ("chat_server", "(frame=frames[chat.id]) if chat.id in frames else chat",
         "(frame=frames[chat.id]) if False else chat")],
    "what was taken back stays in the file": [
        ("chat_server", "                for id in erased:\n", "                for id in ():\n")],
    "nobody is told what was taken back": [
        ("chat_server", "            self._delivery.add_for(Removed(self.journal.next_id(), "
         "chat.id), chat.audience)\n", "")],
    "bans and mutes are forgotten by a restart": [
        ("chat_server", "            self.house.from_json(text)\n",
         "            pass\n")],
    "a mute is not looked up": [
        ("chat_server", "        if mute is not None:\n            raise ProtocolError(\"muted\"",
         "        if False:\n            raise ProtocolError(\"muted\"")],
    "who is banned comes back by its session": [
        ("chat_server", "        self.house.check_entry(join.name, owned, link.origin)\n", "")],
    "older private messages are everybody's": [
        ("chat_server", "if chat.audience is None or session.number in chat.audience\n",
         "if True\n")],
    "TLS: a record that is not whole is the end": [
        ("chatproto", "            if plain or self.overhead:\n"
         "                return plain or None\n", "            return plain\n")],
    "TLS: of several records that come at once one is taken": [
        ("chatproto", "                    if not self._coming.pending:\n"
         "                        break\n", "                    break\n")],
    "TLS: what came behind the greeting is lost": [
        ("chatproto", "        self._unread = self._decrypt(b\"\")\n",
         "        self._decrypt(b\"\")\n")],
    "TLS: what does not fit goes behind what follows": [
        ("chatproto", "            data = self._unsent + data\n",
         "            data = data + self._unsent\n")],
    "TLS: what does not fit is lost": [
        ("chatproto", "            self._unsent = data[sent:]\n", "            pass\n")],
    "TLS: what a handshake looked at is lost": [
        ("chatproto", "            self._coming.write(self.read(self._left(until)))\n",
         "            self._unread = b\"\"\n"
         "            self._coming.write(self.read(self._left(until)))\n")],
    "files: a piece is written where another is": [
        ("chat_web", "            part.seek(start)\n", "            part.seek(0)\n")],
    "files: what came of a piece that was cut is twice there": [
        ("chat_web", "                file.have = have\n",
         "                file.have = start if have < start + 100 else have - 100\n"),
        ("chat_web", "            part.seek(start)\n", "            part.seek(0, 2)\n")],
    "files: what is confirmed is not synced": [
        ("chat_web", "                if self._synced:\n", "                if False:\n")],
    "files: one is handed out by another": [
        ("chat_web", "file.url != url or file.owner != owner or file.message",
         "file.url != url or file.message")],
    "files: one is handed out twice": [
        ("chat_web", "or file.owner != owner or file.message\n", "or file.owner != owner\n")],
    "files: one is handed out before it is whole": [
        ("chat_web", "                    or not file.is_finished):\n",
         "                    ):\n")],
    "files: what was taken back stays": [
        ("chat_server", "        self.journal.files.drop(lambda file: file.message in gone)\n",
         "")],
    "files: --keep leaves them": [
        ("chat_server", "        self.files.drop(lambda file: 0 < file.message <= upto)\n", "")],
    "files: what was not handed out stays when its session ends": [
        ("chat_server", "        journal.files.drop(lambda file: file.owner == session.secret_hash "
         "and not file.message)\n", "")],
    "files: one that is whole is forgotten by a restart": [
        ("chat_web",
         "            if self._files.get(file.key) is file and file.kept < file.have:\n",
         "            if False:\n")],
    "files: one that was handed out is forgotten by a restart": [
        ("chat_web", " file.kept = message, sender, file.have\n"
         "            self.changes[file.key] = file.to_json()\n",
         " file.kept = message, sender, file.have\n"
         "            self.changes.pop(file.key, None)\n")],
    "files: parts are not swept after a restart": [
        ("chat_web", "and (is_part or kept is not None):\n                self._settle(key)\n",
         "and (is_part or kept is not None):\n                pass\n")],
    "files: a full disk keeps a half": [
        ("chat_web", "                os.truncate(self._part(file.key), 0)\n"
         "            file.have = 0\n", "                pass\n"),
        ("chat_web", "cannot be written: %s\", error)\n            self.clerk.give_up(file)\n",
         "cannot be written: %s\", error)\n")],
    "files: one is deleted before that is committed": [
        ("chat_web", "        self.changes[file.key] = None\n        if",
         "        self.changes[file.key] = None\n"
         "        if os.path.exists(self._whole(file.key)):\n"
         "            os.unlink(self._whole(file.key))\n        if")],
    "files: what nobody came back for stays after a restart": [
        ("chat_server", "        self.journal.files.drop(lambda file: not file.message and "
         "file.owner not in present)\n", "")],
}


# The seeds that are tried first, by how the fault's name begins: with the code as it is each fault
# shows in one of them, and they are short.
SHOWN_IN = {
    "files": [1714, 774, 810, 6, 406, 238, 606],
    "TLS": [32, 92],
    "": [35, 13, 26, 16, 3, 25, 64, 43, 380, 105],
}


@pytest.fixture(autouse=True)
def quiet():
    """The simulated server's log is of no interest."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_simulation_keeps_every_promise():
    """In SEEDS simulated chats full of faults of the network nothing is lost, doubled, reordered or
    wrongly called sent."""
    modules = simulation.load()
    wrong = {seed: faults for seed in range(SEEDS)
             if (faults := simulation.simulate(seed, modules))}
    assert wrong == {}, "replay with: python tests/simulation.py -v --seed N"


def test_simulation_is_replayable():
    """The same number makes the same chat, and another number another one."""
    modules = simulation.load()

    def story(seed):
        heard = []
        original = simulation.History.check

        def check(history):
            heard.extend((client.name, message.id, getattr(message, "text", ""))
                         for client in history.clients
                         for epoch, message in client.heard)
            original(history)
        simulation.History.check = check
        try:
            simulation.simulate(seed, modules)
        finally:
            simulation.History.check = original
        return heard
    assert story(4) == story(4) != story(3)
    # Two over TLS, whose keys are new each time; and two in which it once was chance whether a
    # connection that was over still had its alarm.
    # And three with files, whose addresses are new each time.
    for seed in (12, 22, 39, 44, 6, 42, 78):
        assert story(seed) == story(seed), seed


@pytest.mark.parametrize("fault", FAULTS)
def test_checker_catches(fault):
    """The checker sees a fault that is put into the code on purpose."""
    modules = simulation.load(FAULTS[fault])
    seeds = next(seeds for kind, seeds in SHOWN_IN.items() if fault.startswith(kind))
    for seed in (*seeds, *range(TRIES)):
        if simulation.simulate(seed, modules):
            return
    pytest.fail(f"no seed up to {TRIES} shows it")
