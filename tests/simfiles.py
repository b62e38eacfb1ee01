"""The files of simulation.py: members bring them up over HTTP connections that break, and hand them
out.

The real PageRequest, FileStore and Handouts run, over the real MessageSocket (or SecureSocket), and
the real HistoryFile keeps what there is. A request is bytes in pieces: between two of them the
world may go on for a while, the connection may end, and the server may be killed. What FileStore
does on a thread of its own is done a little later. The folder is a real one, but what was not
synced is lost with a server that has a history, as in a power cut.
"""

import contextlib
import errno
import json
import math
import os
import pathlib
import shutil
import tempfile
import types
import urllib.parse

import simnet

# As in chat_client.
SENDING, THERE, FAILED = "sending", "there", "failed"
# What becomes of an upload: a chat hands it out; it is given up in the middle; it is finished and
# never handed out.
HANDED_OUT, GIVEN_UP, HELD_BACK = "handed out", "given up", "held back"
# Bytes that go up at once, at most.
PIECE = 2000
# Somebody's file, which is in the folder as well.
NOTES = "notes.txt"


class Disk:
    """What chat_web has for the module os: it notes what is synced, and may be full."""

    def __init__(self, shelf):
        self.shelf = shelf
        # inode -> bytes that a power cut leaves.
        self.synced = {}

    def __getattr__(self, name):
        return getattr(os, name)

    def open(self, path, flags, mode=0o777):
        if self.shelf.world.chance(0.02):
            raise OSError(errno.ENOSPC, "No space left on device")
        file = os.open(path, flags, mode)
        if flags & os.O_TRUNC:
            self.synced[os.fstat(file).st_ino] = 0
        return file

    def fsync(self, file):
        self.shelf.server.risk(0.02)
        about = os.fstat(file)
        self.synced[about.st_ino] = about.st_size

    def cut_power(self, folder):
        for path in folder.iterdir():
            about = path.stat()
            if path.name != NOTES and self.synced.get(about.st_ino, 0) < about.st_size:
                os.truncate(path, self.synced.get(about.st_ino, 0))


class Shelf:
    """The server's files, over all its runs, and the requests about them."""

    def __init__(self, server):
        self.server = server
        self.world = server.world
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="roger-simulation-"))
        self.runs = 0
        self.folder = self.root / "0"
        self.folder.mkdir()
        (self.folder / NOTES).write_text("not ours")
        self.disk = Disk(self)
        web = self.world.modules.chat_web
        web.os, web.time = self.disk, types.SimpleNamespace(monotonic=self.world.clock)
        web.step_aside = lambda: None
        self.uploads = []
        # What was said with a url that may not be.
        self.lies = []
        # (when, name): somebody left, and what it had not handed out is gone.
        self.lefts = []
        # Keys of uploads that the server gave up.
        self.given_up = set()
        # (epoch, id) of chats whose file was not there when somebody asked for it.
        self.missing = []

    def begin(self, room, history):
        """A server begins."""
        web, ask = self.world.modules.chat_web, self.server.ask
        self.store = self.store_class()(str(self.folder), 10_000, 1_000_000, history is not None)
        room.handouts.open(self.store, history)

        def leave(session, reason, leave=room.entrance.leave):
            self.lefts.append((self.world.now, session.name))
            leave(session, reason)

        def keep(file):
            ask(self.store.keep, file)
            ask(int)

        def give_up(file):
            self.given_up.add(file.key)
            ask(room.handouts.give_up, file)
        room.entrance.leave = leave
        clerk = web.Clerk(self.store, lambda *arguments: ask(room.handouts.start, *arguments), keep,
                          give_up, lambda: "http://192.0.2.1:8087/")
        self.web = types.SimpleNamespace(names=(), clerk=clerk)

    def store_class(self):
        world = self.world

        class Store(world.modules.chat_web.FileStore):
            """Its thread is the world."""

            def committed(self):
                self._worker = world
                super().committed()
                world.after(world.random.expovariate(5), self.work)

            def work(self):
                while not self._jobs.empty():
                    self._settle(self._jobs.get())
        return Store

    def killed(self):
        """The server is killed. What is left of it, which would go on in another program, finds no
        folder any more."""
        self.runs += 1
        folder, self.folder = self.folder, self.root / str(self.runs)
        folder.rename(self.folder)
        if self.server.disk is not None:
            self.disk.cut_power(self.folder)

    def close(self):
        shutil.rmtree(self.root, ignore_errors=True)

    # Requests

    def ask(self, method, path, secret="", body=b"", is_certain=False, **headers):
        """Status, headers and body of the answer to a request; None where the connection broke."""
        if secret:
            headers["X-Roger-Session"] = secret
        if method == "PUT":
            headers["Content-Length"] = len(body)
        lines = [f"{method} {path} HTTP/1.1", "Host: 192.0.2.1",
                 *(f"{key.replace('_', '-')}: {value}" for key, value in headers.items())]
        answer = self._exchange("\r\n".join([*lines, "", ""]).encode() + body, is_certain)
        head, end, body = answer.partition(b"\r\n\r\n")
        if not end:
            return None
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if ": " in line)
        length = 0 if method == "HEAD" else int(headers.get("Content-Length", -1))
        return (int(status.split()[1]), headers, body) if len(body) == length else None

    def _exchange(self, request, is_certain):
        """What arrives of the answer to a request."""
        world, answers = self.world, []
        sock = _Served(answers.append)
        wire, client = world.modules.chatproto.MessageSocket(sock), None
        if world.tls is not None:
            wire = simnet.secured(world, sock)
            client = self._greet(wire, sock, answers)
            client.write(request)
            request, sock.came = sock.came, b""
        stop = len(request)
        if not is_certain and world.chance(0.3):
            stop = world.random.randrange(stop)
        sock.came, sock.ended = request[:stop], True
        if not is_certain:
            sock.meanwhile = lambda store=self.store: self._meanwhile(store)
        world.modules.chat_web.PageRequest(wire, "192.0.2.1", self.web).serve()
        wire.finish()
        answer = b"".join(answers)
        if not is_certain and world.chance(0.1):
            answer = answer[:world.random.randrange(len(answer) + 1)]
        return answer if client is None else self._decrypt(client, answer)

    def _greet(self, wire, sock, answers):
        """The client's end, when both have agreed on TLS."""
        def deliver(data):
            sock.came += data
        theirs = simnet.Socket(deliver)
        client = simnet.secured(self.world, theirs, "server")
        while not (client.is_encrypted and wire.is_encrypted):
            for end in (client, wire):
                theirs.came += b"".join(answers)
                answers.clear()
                with contextlib.suppress(simnet.NothingYet):
                    if not end.is_encrypted:
                        end.begin(math.inf)
        return client

    def _decrypt(self, client, answer):
        plain = b""
        client._sock.came, client._sock.ended = answer, True
        with contextlib.suppress(self.world.modules.chatproto.ConnectionClosed):
            while True:
                plain += client.read()
        return plain

    def _meanwhile(self, store):
        """Between two pieces of a request."""
        self.server.risk(0.01)
        if self.world.chance(0.1):
            self.world.run(self.world.now + self.world.random.uniform(0, 1))
        if store is not self.store:
            raise ConnectionResetError("the server was killed")

    # What people do

    def upload(self, client):
        """Somebody hands out a file."""
        if not client.gone and client.session.secret:
            self.uploads.append(Upload(self, client, len(self.uploads)))
            self.uploads[-1].step()

    def lie(self, client):
        """Somebody hands out what it may not: another's, its own again or before it is whole, what
        never was."""
        chance, begun = self.world.random, [upload for upload in self.uploads if upload.path]
        kinds = [["/files/%032x" % chance.getrandbits(128)],
                 [upload.path for upload in begun if upload.client is not client],
                 [upload.path for upload in begun if upload.client is client and upload.is_over],
                 [upload.path for upload in begun if upload.client is client
                  and upload.fate == GIVEN_UP and len(upload.data) > PIECE]]
        url = chance.choice(chance.choice([*filter(None, kinds)]))
        said = client.say(f"{client.name}/lie{len(self.lies)}", file={"url": url})
        if said is not None:
            self.lies.append(said)

    def heard(self, client, epoch, message):
        """Somebody hears a chat; perhaps it fetches its file."""
        if getattr(message, "file", None) and self.world.chance(0.3):
            self.world.after(self.world.random.uniform(0, 5),
                             lambda: self.fetch(client, epoch, message))

    def fetch(self, client, epoch, message):
        """Get a file, or what is missing of it."""
        upload, first = self.upload_of(message), self.world.random.choice([0, 0, 1, 300])
        if upload is None or client.gone or epoch != self.server.epochs[-1]:
            return
        answer = self.ask("GET", message.file["url"], Range=f"bytes={first}-")
        if answer is None or epoch != self.server.epochs[-1]:
            return
        status, _, body = answer
        if status == 404:
            self.missing.append((epoch, message.id))
        elif status in (200, 206) and body != upload.data[first if status == 206 else 0:]:
            client.history.wrong(f"{client.name} got another file than {upload.name}")

    # In the end

    def check(self, history, by_place):
        """Every file that was handed out and not taken back is whole, under its name, and handed
        out once; nothing else is in the folder."""
        self.history, there = history, set()
        for (epoch, id), message in by_place.items():
            if getattr(message, "file", None):
                self.check_told(epoch, message)
                if epoch == self.server.epochs[-1] and self.is_there(message):
                    there.add(message.file["url"])
            elif "/file" in getattr(message, "text", ""):
                history.wrong(f"{message} was heard without its file")
        urls = [(epoch, message.file["url"]) for (epoch, _), message in by_place.items()
                if getattr(message, "file", None)]
        if len(set(urls)) < len(urls):
            history.wrong(f"handed out twice: {sorted(url for url in urls if urls.count(url) > 1)}")
        # What nobody heard before it left a short log is still its message's: others see to that.
        heard = {url for _, url in urls}
        unheard = {upload.path for upload in self.uploads if upload.said is not None
                   and upload.said.state == THERE and upload.path not in heard}
        self.check_folder(there | unheard)
        for place in self.missing:
            if self.is_kept(*place):
                history.wrong(f"the file of {by_place[place]} was not there")
        for said in self.lies:
            if said.state not in (SENDING, FAILED) or said.code not in ("", "bad-file", "muted"):
                history.wrong(f"{said.text} is {said.state} {said.code}")
        for upload in self.uploads:
            if not upload.client.gone:
                self.check_end(upload)

    def check_end(self, upload):
        """What was to be handed out was, and what was not is kept for it."""
        if not upload.is_over and not (upload.fate == HELD_BACK and upload.is_finished):
            self.history.wrong(f"{upload.name} has come to no end")
        elif not upload.is_over:
            status, headers, _ = self.ask("HEAD", upload.path, upload.client.session.secret,
                                          is_certain=True)
            told = status, headers.get("Upload-Offset")
            if told != (200, str(len(upload.data))) and not upload.may_be_gone():
                self.history.wrong(f"{upload.name} waits to be handed out, and is gone: {told}")

    def check_told(self, epoch, message):
        """Who heard of a file knows its name and its size."""
        upload = self.upload_of(message)
        told = message.file["name"], message.file["size"]
        if upload is None or told != (upload.name, len(upload.data)):
            self.history.wrong(f"{message} does not say what was uploaded")

    def is_kept(self, epoch, id):
        """Whether the server has to have the file of a message."""
        return (epoch == self.server.epochs[-1] and (epoch, id) not in self.server.deeds.was
                and id > self.server.forgotten)

    def is_there(self, message):
        """Whether the file of a message can be fetched and is whole; what was taken back cannot."""
        place, url = (self.server.epochs[-1], message.id), message.file["url"]
        upload, on_disk = self.upload_of(message), self.folder / url[len("/files/"):]
        status, _, body = self.ask("GET", url, is_certain=True) or (200, {}, None)
        if status == 404:
            if self.is_kept(*place):
                self.history.wrong(f"the file of {message} is lost")
            if on_disk.exists():
                self.history.wrong(f"the file of {message} is gone, but on disk")
            return False
        if upload and not (on_disk.exists() and body == on_disk.read_bytes() == upload.data):
            self.history.wrong(f"the file of {message} is not whole")
        if place in self.server.deeds.removed or message.id <= self.server.forgotten:
            self.history.wrong(f"the file of {message} was taken back and is there")
        return True

    def check_folder(self, urls):
        """In it are the files at these addresses, and what somebody may still hand out."""
        known = {url[len("/files/"):] for url in urls}
        waiting = {upload.path[len("/files/"):] + ".part" for upload in self.uploads
                   if upload.path and not upload.client.gone and not upload.is_over}
        # Without a history a server knows nothing of what an earlier one had.
        earlier = {path[len("/files/"):] for upload in self.uploads for path in upload.paths
                   } if len(self.server.epochs) > 1 else set()
        names = set(os.listdir(self.folder))
        if NOTES not in names:
            self.history.wrong("what is not the server's was deleted")
        if names - known - waiting - earlier - {NOTES}:
            self.history.wrong(
                f"left in the folder: {sorted(names - known - waiting - earlier - {NOTES})}")

    def upload_of(self, message):
        """Of the file that a chat hands out; None: there is none."""
        return next((upload for upload in self.uploads
                     if message.file["url"] in upload.paths), None)


class _Served(simnet.Socket):
    """The socket of a request at the server: between two pieces there is a `meanwhile`."""

    def meanwhile(self):
        pass

    def recv(self, size, flags=0):
        self.meanwhile()
        return super().recv(min(size, 700), flags)


class Upload:
    """A file that a client brings up, over connections that break, and then hands out."""

    def __init__(self, shelf, client, number):
        self.shelf = shelf
        self.world = shelf.world
        self.client = client
        self.name = f"{client.name} {number}.txt"
        self.text = f"{client.name}/file{number}"
        self.data = self.world.random.randbytes(self.world.random.choice([0, 1, 700, 2 * PIECE]))
        self.fate = self.world.random.choice([HANDED_OUT] * 4 + [GIVEN_UP, HELD_BACK])
        # Handed out, or given up.
        self.is_over = False
        # Where it went up, all the times.
        self.paths = []
        # How often it was said, and the last time.
        self.times = 0
        self.said = None
        # How many requests it made: an answer to an earlier one than the last finds nobody.
        self.requests = 0
        self.begin_again()

    def begin_again(self):
        """Nothing is there of it."""
        # Where it goes up, since when, and in which run of the server it began.
        self.path, self.since, self.run = None, self.world.now, self.shelf.runs
        # What the server has (None: unknown), what it has confirmed, and what it may have.
        self.have, self.confirmed, self.sent = None, 0, 0
        self.is_finished = False

    def wrong(self, what):
        self.client.history.wrong(f"{self.name}: {what}")

    def step(self):
        """The next request, and what is said in the end; a little later one more, whatever comes of
        this one."""
        self.is_over = self.is_over or bool(self.said and self.said.state == THERE)
        if self.client.gone or self.is_over:
            return
        self.world.after(self.world.random.uniform(0.05, 1.5), self.step)
        if self.said is None and not self.is_finished:
            self.go_up()
        elif self.fate == HELD_BACK:
            pass
        elif self.said is None or self.said.state == FAILED:
            self.say()

    def say(self):
        """Hand it out; once more, where that was refused for another reason than the file."""
        if self.said is not None and self.said.code == "bad-file":
            if not self.may_be_gone():
                self.wrong("it was finished, and may not be handed out")
            self.said = None
            return self.begin_again()
        self.times += 1
        self.said = self.client.say(f"{self.text}-{self.times}", file={"url": self.path})

    def may_be_gone(self):
        """Whether the server may have forgotten it: it went with its session, or with a run of the
        server that kept nothing, or nothing of this one yet."""
        has_left = any(when >= self.since and (epoch, name) in self.client.names
                       for when, name in self.shelf.lefts for epoch in self.shelf.server.epochs)
        is_swept = any(back - lost > 45 and back > self.since
                       for lost, back in self.client.absences)
        restarted = self.run != self.shelf.runs and not (
            self.is_finished and self.shelf.server.disk is not None)
        return has_left or is_swept or restarted or self.path[7:] in self.shelf.given_up

    def go_up(self):
        """One request, and its answer."""
        self.requests += 1
        number, path = self.requests, self.path
        method, body, headers = self.next_request()
        answer = self.shelf.ask(method, path or "/files?name=" + urllib.parse.quote(self.name),
                                self.client.session.secret, body, **headers)
        if number != self.requests or self.client.gone:
            # It gave this connection up meanwhile.
            return
        if answer is None:
            self.have = None
        elif answer[0] == 201:
            self.path, self.since = json.loads(answer[2])["upload"], self.world.now
            self.run = self.shelf.runs
            self.paths.append(self.path)
        elif method == "DELETE" and answer[0] in (200, 404):
            self.is_over = True
        elif answer[0] == 200:
            self.answered(answer)
        else:
            self.refused(answer[0])

    def next_request(self):
        """Method, body and headers."""
        size, chance = len(self.data), self.world.random
        if self.path is None:
            return "POST", b"", {}
        if self.fate == GIVEN_UP and self.confirmed:
            return "DELETE", b"", {}
        if self.have is None and chance.random() < 0.5:
            return "HEAD", b"", {}
        if self.have in (None, size):
            # It says how large it is, and asks.
            return "PUT", b"", {"Content_Range": f"bytes */{size}"}
        stop = min(size, self.have + chance.choice([1, 500, PIECE]))
        self.sent = max(stop, self.sent)
        return "PUT", self.data[self.have:stop], {
            "Content_Range": f"bytes {self.have}-{stop - 1}/{size}"}

    def answered(self, answer):
        _, headers, body = answer
        content = json.loads(body) if body else {"have": int(headers["Upload-Offset"])}
        self.have = content["have"]
        if self.path[7:] in self.shelf.given_up or (
                self.run != self.shelf.runs and not self.is_finished):
            # Its disk was full while the room was held, or it was killed and goes on from what its
            # history has.
            self.confirmed, self.run = 0, self.shelf.runs
        if not self.confirmed <= self.have <= self.sent:
            self.wrong(f"{self.sent} bytes were sent, {self.confirmed} confirmed, and the server "
                       f"has {self.have}")
        self.confirmed = max(self.have, self.confirmed)
        if "url" in content:
            if content["url"] != self.path or not (self.name in content["text"]
                                                   and self.path in content["text"]):
                self.wrong(f"it is told to say {content}")
            if self.have != len(self.data):
                self.wrong(f"{self.have} bytes of it are called all")
            self.is_finished, self.since = True, self.world.now
            self.run = self.shelf.runs

    def refused(self, status):
        """By the server; most of it is no more than a reason to come again."""
        self.have = None
        if status in (404, 507):
            # One of which nothing has come makes room for another of its session.
            if status == 404 and self.confirmed and not self.may_be_gone():
                self.wrong("the server has forgotten it")
            self.begin_again()
        elif status not in (401, 403, 408, 409, 429, 503):
            # (403: its client is muted.)
            self.wrong(f"it is refused with {status}")
