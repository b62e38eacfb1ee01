"""The whole chat in one thread, without sockets and without time: a seeded world that checks every
promise of delivery.

    python tests/simulation.py                  200 seeds
    python tests/simulation.py --seeds 10000    a long run, on all cores
    python tests/simulation.py --seed 4711 -v   one again, with what happens in it

The real Room, Connection, ClientSession, MessageManager and FrameDecoder run here; only the
network, the clock and the threads are replaced. A tenth of the seeds is encrypted: there the real
SecureSocket stands on both sides, and what is cut are its records and handshakes. In a quarter
people upload files over HTTP connections that break (the real PageRequest and FileStore), hand them
out, hand out what they may not, and leave in the middle; the host takes some back, and a history
may keep the last messages only. From its number a seed makes the people, what they say, and the
faults: bytes in pieces and late, connections cut at any byte or gone silent, ACKs dropped, frames
doubled, readers that stall, small windows and queues, clients and servers that restart, people who
are booted, banned or muted, messages that the host takes back, people who come late, or with a
made-up session. Half of the servers have a history file (in memory: what is committed survives):
they are killed at any write and any commit, and go on; commits fail for a while. Then the faults
end, everybody says a last word, and History.check() looks at what was promised. `load(faults)` puts
deliberate faults into the code, to prove the checker. (simworld.py: the world, with the server and
the people in it; simfiles.py: the files; simnet.py: the network.)
"""

import argparse
import concurrent.futures
import functools
import logging
import os
import pathlib
import sys
import time
import types

import simnet
from simworld import GRACE, REMOVED, Client, Server, World

HERE = pathlib.Path(__file__).resolve().parent.parent
# Seconds in which there are faults.
TROUBLE = 40.0
# Seconds after them: more than a silent connection takes to be found, and the grace time.
QUIET = 75.0


MODULES = "chatproto", "chat_server", "chat_client", "chat_web"
# Most faults leave three of the four files as they are, and compiling them takes longer than a seed
# or two.
_compiled = functools.lru_cache(maxsize=5)(functools.partial(compile, mode="exec"))


def load(faults=()):
    """The four modules, with each (file, old, new) of `faults` put into its source, as a
    namespace."""
    modules = {}
    before = {name: sys.modules.get(name) for name in MODULES}
    try:
        for name in before:
            path = HERE / f"{name}.py"
            source = path.read_text(encoding="utf-8")
            for file, old, new in faults:
                if file == name:
                    assert source.count(
                        old) == 1, f"the place of a fault is not there once: {old!r}"
                    source = source.replace(old, new)
            module = types.ModuleType(name)
            module.__file__ = str(path)
            # The roles import their chatproto, dataclasses their module.
            sys.modules[name] = modules[name] = module
            exec(_compiled(source, str(path)), module.__dict__)
    finally:
        for name, module in before.items():
            if module is not None:
                sys.modules[name] = module
            else:
                sys.modules.pop(name, None)
    modules["chatproto"].wait_for = simnet.wait_for
    return types.SimpleNamespace(**modules)


class History:
    """What everybody said and heard, and whether it is what was promised."""

    def __init__(self, world, server):
        self.world = world
        self.server = server
        self.clients = []
        self.faults = []
        self.quiet_from = float("inf")

    def wrong(self, what):
        self.faults.append(what)
        self.world.tell("WRONG:", what)

    def check(self):
        """Note in `faults` every promise that was broken."""
        chat = self.world.modules.chatproto.Chat
        # (epoch, id) -> message; text -> {epoch: id}.
        by_place, places = {}, {}
        for client in self.clients:
            self.check_order(client)
            for epoch, message in client.heard:
                if isinstance(message, self.world.modules.chatproto.Error):
                    # For one member alone.
                    continue
                if by_place.setdefault((epoch, message.id), message) != message:
                    self.wrong(
                        f"{message.id} is {message} for {client.name} and "
                        f"{by_place[epoch, message.id]} for another")
                if isinstance(message, chat):
                    places.setdefault(message.text, {}).setdefault(epoch, message.id)
        self.check_recalls(by_place)
        self.check_host(by_place)
        if self.server.shelf is not None:
            self.server.shelf.check(self, by_place)
        if self.server.disk is not None:
            self.check_file(by_place)
        for client in self.clients:
            for said, epoch in client.said:
                self.check_said(client, said, places.get(said.text, {}))
            self.check_state(client)
        self.check_lefts(by_place)

    def check_order(self, client):
        """One order, nothing twice, each speaker's own order."""
        newest, newest_cid, texts = {}, {}, set()
        for epoch, message in client.heard:
            if message.id <= newest.get(epoch, 0):
                self.wrong(f"{client.name} heard {message.id} after {newest[epoch]}")
            newest[epoch] = max(message.id, newest.get(epoch, 0))
            if message.id <= client.begin[epoch] and getattr(message, "to", "nobody") is not None:
                self.wrong(f"{client.name} heard {message}, which was before it came")
            if getattr(message, "cid", None):
                speaker = (epoch, message.text.split("/")[0])
                if message.cid <= newest_cid.get(speaker, 0):
                    self.wrong(
                        f"{client.name} heard {speaker[1]}'s {message.cid} after "
                        f"{newest_cid[speaker]}")
                newest_cid[speaker] = message.cid
                if (epoch, message.text) in texts:
                    self.wrong(f"{client.name} heard {message.text} twice")
                texts.add((epoch, message.text))

    def check_said(self, client, said, places):
        """What was acknowledged is heard by all who should, what was refused by nobody."""
        chat_client = self.world.modules.chat_client
        states = client.states.get(said.id, [])
        settled = set(states) - {chat_client.SENDING}
        if len(settled) > 1:
            self.wrong(f"{said.text} went through {settled}")
        if said.state == chat_client.SENDING and not client.gone:
            self.wrong(f"{said.text} is still being sent")
        if said.state == chat_client.FAILED and places and len(self.server.epochs) < 2:
            self.wrong(f"{said.text} failed ({said.reason}) and was heard")
        if said.state != chat_client.THERE:
            return
        if len(places) > 1 and len(self.server.epochs) < 2:
            self.wrong(f"{said.text} has several places")
        last = self.server.epochs[-1]
        is_known = not client.gone and not client.gaps
        if not places and len(self.server.epochs) < 2 and (said.to == "nobody" or is_known):
            self.wrong(f"{said.text} was acknowledged and nobody heard it")
        if last not in places:
            # Acknowledged by a server that crashed.
            return
        for other in self.clients:
            heard = any(epoch == last and getattr(message, "text", None) == said.text for epoch,
                        message in other.heard)
            if said.to is None:
                due = not other.gone and other.begin.get(last, float("inf")) < places[last]
                if due and not heard and not other.missed(last, places[last]):
                    self.wrong(f"{other.name} did not hear {said.text} (at {places[last]})")
            elif not heard and not other.gone and not other.missed(last, places[last]):
                names = [name for epoch, name in other.names if epoch == last]
                if names == [said.to] and other.begin.get(last, float("inf")) < places[last]:
                    self.wrong(f"{other.name} did not hear {said.text}, which was for it")
            elif heard and other is not client and (last, said.to) not in other.names:
                self.wrong(f"{other.name} heard {said.text}, which was for {said.to}")

    def check_recalls(self, by_place):
        """Older messages that were asked for are those that were heard, and private ones are one's
        own."""
        for client in self.clients:
            if client.asked != client.answered and not client.gone:
                self.wrong(
                    f"{client.name} asked {client.asked} times for older messages and was answered "
                    f"{client.answered} times")
            for epoch, chat in client.recalls:
                if by_place.get((epoch, chat.id), chat) != chat:
                    self.wrong(
                        f"{client.name} recalled {chat}, which is {by_place[epoch, chat.id]}")
                if chat.to is not None and not {(epoch, chat.to),
                                                (epoch, chat.sender)} & client.names:
                    self.wrong(f"{client.name} recalled {chat}, which is private")

    def check_host(self, by_place):
        """Whoever was muted said nothing meanwhile; whoever heard what was taken back is told."""
        deeds, proto = self.server.deeds, self.world.modules.chatproto
        self.faults += deeds.faults
        # `at` is rounded.
        for name, since, until in deeds.silences:
            for message in by_place.values():
                if (isinstance(message, proto.Chat) and message.text.split("/")[0] == name
                        and since + 0.001 < message.at < (until or self.world.now) - 0.001):
                    self.wrong(f"{message} was said by who was muted")
        for epoch, id in deeds.removed:
            for client in self.clients:
                heard = [message.id for of, message in client.heard if of == epoch]
                told = any(isinstance(message, proto.Removed) and message.about == id
                           for of, message in client.heard if of == epoch)
                if (id in heard and (epoch, id) not in client.blanks and not told
                        and client.epoch == epoch and not client.gone and not client.gaps):
                    self.wrong(f"{client.name} was not told that {id} is taken back")

    def check_file(self, by_place):
        """What was acknowledged is in the file, once, and so is what was heard, as it was heard."""
        proto = self.world.modules.chatproto
        rows = self.server.disk.execute(
            "SELECT id, body FROM entries WHERE kind = 'chat'").fetchall()
        kept = {id: proto.decode(body if isinstance(body, bytes) else body.encode(),
                                 proto.INSTRUCTIONS[proto.FROM_SERVER]) for id, body in rows}
        removed = {id for epoch, id in self.server.deeds.removed}
        for id, chat in kept.items():
            if id in removed and chat.text != REMOVED:
                self.wrong(f"{chat} was taken back, and is in the file")
            if chat.text == REMOVED:
                kept[id] = self.server.deeds.whole(self.server.epochs[-1], chat)
        texts = [chat.text for chat in kept.values()]
        forgotten = self.server.forgotten
        if len(set(texts)) < len(texts):
            self.wrong(
                f"in the file twice: {sorted(text for text in texts if texts.count(text) > 1)}")
        for (epoch, id), message in by_place.items():
            if isinstance(message, proto.Chat) and kept.get(id) != message and id > forgotten:
                self.wrong(f"{message} was heard, and {kept.get(id)} is in the file")
        places = {message.text: id for (epoch, id), message in by_place.items()
                  if isinstance(message, proto.Chat)}
        for client in self.clients:
            for said, epoch in client.said:
                if (said.state == self.world.modules.chat_client.THERE and said.text not in texts
                        and not 0 < places.get(said.text, 1) <= forgotten):
                    self.wrong(f"{said.text} was acknowledged and is not in the file")

    def check_state(self, client):
        """In the end everybody is connected and knows who is there, and the last word was heard by
        all."""
        if client.gone:
            return
        owned = client.session.secret and self.server.room.members.owned(client.session.secret)
        if owned and self.server.room.house.holds.find(("boot", "ban"), [f"#{owned.number}"]):
            self.wrong(f"{client.name} does not know that it was booted")
        if not client.session.joined:
            self.wrong(f"{client.name} is not connected in the end")
            return
        here = sorted(name for name, *_ in self.server.room.host.people())
        if sorted(client.session.users.values()) != here:
            self.wrong(
                f"{client.name} sees {sorted(client.session.users.values())}, there are {here}")
        for said, epoch in client.said:
            if said.text.endswith("/last") and (said.heard,
                                                said.of) != (len(here) - 1, len(here) - 1):
                self.wrong(
                    f"{said.text} was heard by {said.heard} of {said.of}, there are {len(here)}")
            if said.heard > said.of:
                self.wrong(f"{said.text} was heard by {said.heard} of {said.of}")

    def check_lefts(self, by_place):
        """Nobody who came back in time was said to be gone."""
        for (epoch, id), message in by_place.items():
            if isinstance(message, self.world.modules.chatproto.Left):
                for client in self.clients:
                    for came_back_from, came_back in client.absences:
                        # Who had two names may have left one of them to a session that was
                        # never welcomed; after a restart that one's name is free at once.
                        names = {name for of, name in client.names if of == epoch}
                        if (names == {message.name} and not client.gone
                                and came_back_from < message.at < came_back
                                and message.at - came_back_from < GRACE - 3):
                            self.wrong(
                                f"{message.name} was said to be gone after "
                                f"{message.at - came_back_from:.1f} s")


def simulate(seed, modules, verbose=False):
    """Run one seed; return what went wrong."""
    world = World(seed, modules, verbose)
    proto, server = modules.chatproto, modules.chat_server
    saved = proto.WINDOW, server.LOG_FRAMES, server.WINDOW, server.LOOK_ROWS
    proto.WINDOW = world.random.choice([1, 3, 8, 64])
    server = None
    try:
        server = Server(world)
        # Most of the log is in the file alone.
        if server.disk is not None and world.random.random() < 0.7:
            sizes = world.random.choice([(30, 5, 20), (8, 2, 5), (1, 50, 1000)])
            (modules.chat_server.LOG_FRAMES, modules.chat_server.WINDOW,
             modules.chat_server.LOOK_ROWS) = sizes
        elif server.disk is None and proto.WINDOW >= 8 and world.random.random() < 0.5:
            # Slow readers are left behind. (With fewer frames, or a smaller window, the errors that
            # tell them so would fill the log faster than they read it.)
            modules.chat_server.LOG_FRAMES = world.random.choice([25, 50])
            world.may_miss = True
        history = History(world, server)
        play(world, server, history)
        history.check()
    except Exception as error:
        # A fault may break the code itself: that is caught, too.
        if verbose:
            raise
        return [f"{type(error).__name__}: {error}"]
    finally:
        if server is not None:
            server.close()
        (proto.WINDOW, modules.chat_server.LOG_FRAMES, modules.chat_server.WINDOW,
         modules.chat_server.LOOK_ROWS) = saved
    return history.faults


def play(world, server, history):
    """The people of a seed, what they do, and the quiet after it."""
    rng = world.random
    names = ["ann", "bob", "cleo", "dan"][:rng.randint(2, 4)]
    # The part of what is said that is for all.
    public = rng.choice([0.8, 0.8, 0.4])

    def enter(name):
        history.clients.append(Client(world, server, name, history))

    def somebody():
        return rng.choice([client for client in history.clients if not client.gone]
                          or history.clients)

    def say(number):
        speaker = somebody()
        kind = rng.random()
        text = f"{speaker.name}/{number}"
        if kind < public:
            speaker.say(text)
        elif kind < 0.92:
            speaker.say(text, somebody().name)
        else:
            speaker.say(text, "nobody")

    def restart():
        client = somebody()
        client.restart()
        world.after(rng.uniform(0, GRACE + 3),
                    lambda: enter(f"{client.name}{len(history.clients)}"))

    def impostor():
        link = simnet.Link(world, _Impostor(world, history), server)
        link.left = None
        link.open()

    for name in names:
        world.after(rng.uniform(0, 3), lambda name=name: enter(name))
    world.run(world.now + 4)
    start = world.now
    # Somebody talks fast: windows and queues fill.
    if rng.random() < 0.5:
        burst = rng.uniform(1, TROUBLE)
        for number in range(60):
            world.at(start + burst + number * 0.01, lambda number=number: say(1000 + number))
    for number in range(rng.randint(10, 40)):
        world.at(start + rng.uniform(0, TROUBLE), lambda number=number: say(number))
    for number in range(rng.choice([0, 15])):
        world.at(start + rng.uniform(0, TROUBLE), lambda: somebody().recall())
    def put_out():
        client = somebody()
        client.post(server.deeds.put_out, rng.random() < 0.5)
        world.after(rng.uniform(1, 5), lambda: enter(f"{client.name}{len(history.clients)}"))

    def remove():
        """What somebody heard, or what was said just now."""
        ids = [message.id for epoch, message in somebody().heard[-20:]
               if epoch == server.epochs[-1] and isinstance(message, world.modules.chatproto.Chat)]
        server.post(server.deeds.remove, rng.choice([*ids, server.room.journal.last]))

    def mute():
        somebody().post(server.deeds.mute, rng.choice([1e6, float("inf")]))
        world.after(rng.uniform(1, 20), lambda: server.post(server.deeds.unmute))

    for probability, event in ((0.3, restart), (0.2, server.crash), (0.2, impostor), (0.2, put_out),
                               (0.2, mute), (0.1, mute)):
        if rng.random() < probability:
            world.at(start + rng.uniform(0, TROUBLE), event)
    for _ in range(rng.choice([0, 0, 1, 10])):
        world.at(start + rng.uniform(0, TROUBLE), remove)
    if server.shelf is not None:
        play_files(server, history, start, somebody)
    world.run(start + TROUBLE)
    world.troubled = False
    server.post(server.deeds.unmute)
    history.quiet_from = world.now
    # Whoever comes to a quiet room hears the last messages, then what is said, over one connection.
    world.at(world.now + QUIET - 25, lambda: enter("late"))
    world.run(world.now + QUIET)
    for client in history.clients:
        client.say(f"{client.name}/last")
    world.run(world.now + 5)


def play_files(server, history, start, somebody):
    """What people do with files, and what the host does about them."""
    world, rng, shelf = server.world, server.world.random, server.shelf

    def remove():
        ids = [message.id for epoch, message in somebody().heard
               if epoch == server.epochs[-1] and getattr(message, "file", None)]
        if ids:
            server.post(server.deeds.remove, rng.choice(ids))

    def go():
        """In the middle of an upload."""
        busy = [upload.client for upload in shelf.uploads if not upload.client.gone
                and not upload.is_over]
        if busy:
            client = rng.choice(busy)
            client.leave() if rng.random() < 0.5 else client.restart()

    for most, event in ((6, lambda: shelf.upload(somebody())), (6, lambda: shelf.lie(somebody())),
                        (3, remove), (2, go)):
        for _ in range(rng.randint(0, most)):
            world.at(start + rng.uniform(0, TROUBLE), event)
    # When the server sweeps no more: what is held back has to go with its session.
    world.at(start + TROUBLE + 30, go)


class _Impostor:
    """Comes with a session that it made up."""

    name = "mallory"

    def __init__(self, world, history):
        self.world = world
        self.history = history
        self.silent_since = None

    def opened(self, link):
        epoch = self.history.server.room.journal.epoch
        link.to_server.say(self.world.modules.chatproto.Join("mallory", session="made-up", seen=0,
                                                             epoch=epoch).encode())

    def hear(self, link, data):
        if b'"resumed":true' in data:
            self.history.wrong("a made-up session was resumed")
        self.world.after(1, link.break_off)

    def lost(self, link, why):
        pass


def _run(seeds):
    logging.disable(logging.CRITICAL)
    modules = load()
    return [(seed, faults) for seed in seeds for faults in [simulate(seed, modules)] if faults]


def main():
    parser = argparse.ArgumentParser(
        description="Simulate chats and check every promise of delivery.")
    parser.add_argument("--seeds", type=int, default=200, help="how many (default %(default)s)")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("-v", "--verbose", action="store_true",
                        help="with --seed: show what happens")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if arguments.seed is not None:
        faults = simulate(arguments.seed, load(), arguments.verbose)
        print("\n".join(faults) or "nothing wrong")
        return bool(faults)
    started, failed = time.monotonic(), []
    chunks = [range(start, min(start + 50, arguments.seeds))
              for start in range(0, arguments.seeds, 50)]
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(_run, chunks):
            failed += result
    for seed, faults in failed[:20]:
        print(f"seed {seed}: {faults[0]}")
    print(
        f"{arguments.seeds} seeds, {len(failed)} with something wrong, "
        f"{time.monotonic() - started:.1f} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
