"""The campaign against the history file: a real server under load, killed with `kill -9` again and
again.

    python tests/campaign.py                    100 kills
    python tests/campaign.py --kills 1000 --seed 7
    python tests/campaign.py --kills 10 --tls   encrypted, and cut within records

Speakers and listeners are ChatClients in this process, over a CuttingProxy that breaks their
connections meanwhile. The server has a history file, is killed at random instants (counted in
messages that were acknowledged, then a random moment more), and is started again on its port and
its file. In the end everybody says a last word, and HistoryChecker judges what each has said and
heard; check_file() judges the file: nothing that was acknowledged is lost, nothing is there twice,
one order, for everybody and in the file. And nobody's session is forgotten: every welcome but the
first is a resume.

    python tests/campaign.py --files 200 --kills 20

does the same with files: each goes up over connections that are cut at random bytes, some are given
up in the middle, and the server is killed meanwhile. In the end every file that was handed out is
whole (SHA-256), over HTTP and on disk, and nothing else is in the folder.
"""

import argparse
import contextlib
import hashlib
import logging
import os
import pathlib
import random
import sqlite3
import sys
import tempfile
import threading
import time
import types

HERE = pathlib.Path(__file__).resolve().parent
for folder in (HERE, HERE.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import chat_client  # noqa: E402
import chatproto  # noqa: E402
from chat_client import THERE, ChatClient  # noqa: E402
from harness import TIMEOUT, start_server, wait_until  # noqa: E402
from proxy import CuttingProxy  # noqa: E402
from uploads import fetch  # noqa: E402
from tls import key_in  # noqa: E402
from witness import HistoryChecker, Talker  # noqa: E402

# Messages that a speaker leaves unacknowledged.
AHEAD = 20


def acknowledged(talkers):
    """How many of their messages have come to an end."""
    return sum(len(talker.history.states) for talker in talkers)


def speak_until(stop, talker):
    """Say "NAME 1", "NAME 2" and so on; return how many."""
    number = 0
    while not stop.is_set() and not talker.ended:
        if len(talker.client.unsettled) < AHEAD:
            number += 1
            talker.say(f"{talker.history.name} {number}")
        else:
            # Its ACKs come on another thread.
            stop.wait(0.001)
    return number


def check_file(path, histories):
    """What is wrong with the file, as HistoryChecker names it."""
    with sqlite3.connect(path) as file:
        rows = file.execute(
            "SELECT id, body FROM entries WHERE kind = 'chat' ORDER BY id").fetchall()
        sound = file.execute("PRAGMA integrity_check").fetchone()[0]
    file.close()
    kept = {id: chatproto.decode(body.encode(), chatproto.INSTRUCTIONS[chatproto.FROM_SERVER])
            for id, body in rows}
    texts = [chat.text for chat in kept.values()]
    violations = [] if sound == "ok" else [f"file: {sound}"]
    if len(set(texts)) < len(texts):
        violations.append(f"twice: {len(texts) - len(set(texts))} messages in the file")
    for history in histories:
        violations += [f"order: {chat} was heard, {kept.get(chat.id)} is in the file" for _,
                       chat in history.chats
                       if kept.get(chat.id) != chat]
    there = {text for history in histories for _, text, state in history.states if state == THERE}
    return violations + [f"lost: {text!r} in the file" for text in there - set(texts)]


def run(kills, seed, folder, speakers=3, listeners=3, least=5, most=400, cut=True,
        tls=False):
    """Run a campaign in `folder`; return (violations, figures)."""
    chance = random.Random(seed)
    path = str(pathlib.Path(folder) / "chat.db")
    started = time.monotonic()
    server = start_server("--bind", "127.0.0.1", "--rate", "0", "--grace", "30", "--history", path,
                          *["--tls"] * tls)
    proxy = CuttingProxy(server.port, seed, is_encrypted=tls)
    trust = {"trust": key_in(path + ".pem")} if tls else {}
    # Every second speaker, and all listeners, have bad connections.
    ports = server.port, proxy.port if cut else server.port
    talkers = [Talker(ports[number % 2], f"s{number}", **trust) for number in range(speakers)]
    talkers += [Talker(ports[1], f"l{number}", **trust) for number in range(listeners)]
    stop, downtimes = threading.Event(), []
    threads = [threading.Thread(target=speak_until, args=(stop, talker), daemon=True)
               for talker in talkers[:speakers]]
    for thread in threads:
        thread.start()
    try:
        for _ in range(kills):
            target = acknowledged(talkers) + chance.randint(least, most)
            wait_until(lambda: acknowledged(talkers) >= target or any(t.ended for t in talkers),
                       what=lambda: f"no progress: {server.stderr_text()[-2000:]}")
            # It dies anywhere between two commits, or within one.
            stop.wait(chance.uniform(0, 0.01))
            server.kill()
            down = time.monotonic()
            server.start()
            downtimes.append(time.monotonic() - down)
        proxy.calm()
        stop.set()
        for thread in threads:
            thread.join(TIMEOUT)
        last = [talker.say(f"{talker.history.name} 1000000000") for talker in talkers]
        wait_until(lambda: all({said.text for said in last}
                               <= {chat.text for _, chat in talker.history.chats[-100:]}
                               and not talker.client.unsettled for talker in talkers),
                   what=lambda: f"last words were not heard: {server.stderr_text()[-2000:]} "
                                f"{[(talker.history.name, talker.ended) for talker in talkers]}")
    finally:
        stop.set()
        for talker in talkers:
            talker.client.close()
        proxy.close()
        log = server.stderr_text()
        server.kill()
    histories = [talker.history for talker in talkers]
    violations = HistoryChecker(histories,
                                histories[0].epoch).violations() + check_file(path, histories)
    violations += [f"{talker.history.name}: {talker.fresh} welcomes that were no resumes"
                   for talker in talkers if talker.fresh > 1]
    violations += [f"{talker.history.name} gave up: {talker.ended}" for talker in talkers
                   if talker.ended]
    violations += [line for line in log.splitlines() if "bug " in line or "Traceback" in line]
    figures = {"kills": kills, "acknowledged": acknowledged(talkers),
               "heard": sum(len(history.chats) for history in histories),
               "connections": sum(t.connections for t in talkers),
               **{f"proxy {what}": count for what, count in sorted(proxy.counts.items())},
               "start s, median": round(sorted(downtimes)[len(downtimes) // 2], 2),
               "start s, longest": round(max(downtimes), 2),
               "seconds": round(time.monotonic() - started, 1)}
    return violations, figures


def send_files(client, paths, chance, sent):
    """Send each of these files, but give some up; note in `sent` what was said and its hash."""
    def give_up(done, size):
        if done > size * share:
            raise InterruptedError
    for path in paths:
        data = chance.randbytes(chance.randint(0, 100_000))
        path.write_bytes(data)
        share = chance.choice((0.3, 2, 2, 2))
        try:
            sent.append((client.send_file(str(path), progress=give_up),
                         hashlib.sha256(data).hexdigest()))
        except InterruptedError:
            sent.append(None)


def check_files(port, folder, sent):
    """What is wrong with what is there of the files that were said."""
    violations, keys = [], set()
    for said, digest in filter(None, sent):
        if said.state != THERE:
            violations.append(f"{said.text} is {said.state}: {said.reason}")
            continue
        key = said.file["url"].rpartition("/")[2]
        keys.add(key)
        status, _, body = fetch(port, said.file["url"])
        if status != 200 or hashlib.sha256(body).hexdigest() != digest:
            violations.append(f"{said.text} is not whole: {status}, {len(body)} bytes")
        elif (folder / key).read_bytes() != body:
            violations.append(f"{said.text} is another one on disk")
    other = set(os.listdir(folder)) - keys
    return violations + [f"left in the folder: {name}" for name in sorted(other)]


def run_files(count, kills, seed, folder, speakers=3):
    """A campaign with files in `folder`; return (violations, figures)."""
    chance, started = random.Random(seed), time.monotonic()
    folder = pathlib.Path(folder)
    server = start_server("--bind", "127.0.0.1", "--rate", "0", "--grace", "600", "--history",
                          folder / "chat.db")
    proxy = CuttingProxy(server.port, seed)
    proxy.is_of_lines, proxy.MOST = False, 60_000
    clients = [ChatClient("127.0.0.1", proxy.port, f"s{number}") for number in range(speakers)]
    sent, threads = [], []
    for number, client in enumerate(clients):
        client.connect(TIMEOUT)
        paths = [folder / f"{number}-{index}" for index in range(count // speakers)]
        threads.append(threading.Thread(target=send_files, daemon=True, args=(
            client, paths, random.Random(f"{seed} {number}"), sent)))
        threads[-1].start()
    try:
        for kill in range(kills):
            target = (kill + 1) * count // (kills + 1)
            wait_until(lambda: len(sent) >= target, 10 * TIMEOUT, lambda: f"{len(sent)} are there")
            threads[0].join(chance.uniform(0, 0.1))
            server.kill()
            server.start()
        for thread in threads:
            thread.join(10 * TIMEOUT)
        proxy.calm()
        for client in clients:
            client.close(TIMEOUT)
        files = folder / "chat.db.files"
        with contextlib.suppress(AssertionError):
            # What they gave up goes with their sessions.
            wait_until(lambda: not any(name.endswith(".part") for name in os.listdir(files)))
        violations = check_files(server.port, files, sent)
    finally:
        proxy.close()
        log = server.stderr_text()
        server.kill()
    violations += [line for line in log.splitlines() if "bug " in line or "Traceback" in line]
    if len(sent) != count // speakers * speakers:
        violations.append(f"only {len(sent)} came to an end")
    return violations, {"files": len(sent), "given up": sent.count(None), "kills": kills,
                        **{f"proxy {what}": n for what, n in sorted(proxy.counts.items())},
                        "seconds": round(time.monotonic() - started, 1)}


def impatient():
    """Clients of this process come back after hundredths of a second, and notice a silent
    connection after one."""
    chat_client.random = types.SimpleNamespace(uniform=lambda low, high: 0.01)
    chatproto.RETRY_DELAY, chatproto.PING_AFTER = 0.2, 0.5
    for name, value in (("PAUSE", 0.05), ("TIMEOUT", 2.0), ("PIECE", 20_000), ("TRIES", 1_000)):
        setattr(chat_client.Courier, name, value)


def main():
    parser = argparse.ArgumentParser(
        description="Kill a server with a history file again and again, and judge what is left.")
    parser.add_argument("--kills", type=int, default=100, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default %(default)s")
    parser.add_argument("--tls", action="store_true", help="encrypted")
    parser.add_argument("--files", type=int, metavar="N", help="files instead of messages")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    impatient()
    with tempfile.TemporaryDirectory(prefix="roger-campaign-") as folder:
        if arguments.files:
            violations, figures = run_files(arguments.files, arguments.kills, arguments.seed,
                                            folder)
        else:
            violations, figures = run(arguments.kills, arguments.seed, folder, tls=arguments.tls)
    print("\n".join(violations[:20]))
    print(", ".join(f"{what}: {value}" for what, value in figures.items()))
    print(f"{len(violations)} violations")
    return bool(violations)


if __name__ == "__main__":
    sys.exit(main())
