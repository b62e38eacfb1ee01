"""Files over HTTP for the tests: what a client does, piece by piece, and what none would.

    up = Uploader(port, ann)                    # a RawClient that has joined
    answer = up.upload("plan.pdf", data)        # {"have", "url", "text"}
    up.say(answer)                              # the chat that hands it out
    status, headers, body = fetch(port, answer["url"])
"""

import http.client
import json
import urllib.parse

from harness import TIMEOUT


def ask(port, method, path, body=b"", headers=()):
    """Send a request; return status, headers (lower-case names) and body of its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, body
    finally:
        connection.close()


def fetch(port, url, **headers):
    """GET a file; `Range="bytes=0-9"` and the like are headers, with _ for -."""
    return ask(port, "GET", url,
               headers={key.replace("_", "-"): value for key, value in headers.items()})


def at_the_console(server, line):
    """Do what a line of the console says; return status and JSON of the answer."""
    status, _, body = ask(server.port, "POST", "/host", json.dumps({"do": line}).encode(),
                          {"X-Roger-Host": server.printed("#host=")})
    return status, json.loads(body)


def put_head(up, path, first, last, total):
    """The head of a piece, as bytes."""
    return (f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {last - first + 1}\r\n"
            f"X-Roger-Session: {up.secret['X-Roger-Session']}\r\n"
            f"Content-Range: bytes {first}-{last}/{total}\r\n\r\n").encode()


class Uploader:
    """Uploads for a member, given as the RawClient that joined."""

    def __init__(self, port, member):
        self.port = port
        self.member = member
        self.secret = {"X-Roger-Session": member.welcome["session"]}

    def begin(self, name, **headers):
        """Status and body of the answer to POST /files."""
        path = "/files?name=" + urllib.parse.quote(name, errors="surrogatepass")
        status, _, body = ask(self.port, "POST", path, headers={**self.secret, **headers})
        return status, body

    def start(self, name):
        """Begin an upload; return its path."""
        status, body = self.begin(name)
        assert status == 201, body
        return json.loads(body)["upload"]

    def put(self, path, data, first, total, content_range=None):
        """Status and body of the answer to a piece that begins at `first`."""
        if content_range is None:
            content_range = (f"bytes {first}-{first + len(data) - 1}/{total}" if data
                             else f"bytes */{total}")
        status, _, body = ask(self.port, "PUT", path, data,
                              {**self.secret, "Content-Range": content_range})
        return status, body

    def have(self, path):
        """How far the server has it; None: there is no such upload."""
        status, headers, _ = ask(self.port, "HEAD", path, headers=self.secret)
        return int(headers["upload-offset"]) if status == 200 else None

    def upload(self, name, data):
        """All of it; return what the last piece was answered with."""
        path = self.start(name)
        status, body = self.put(path, data, 0, len(data))
        assert status == 200, body
        return json.loads(body)

    def say(self, answer, **fields):
        """Hand it out; return the chat as it is heard."""
        id = self.member.say(answer["text"], file={"url": answer["url"]}, **fields)
        chat = self.member.recv_until("chat", cid=id)
        while chat["id"] <= self.member.welcome["last"]:
            # What an earlier one said.
            chat = self.member.recv_until("chat", cid=id)
        return chat

    def give_up(self, path):
        """The status of DELETE."""
        return ask(self.port, "DELETE", path, headers=self.secret)[0]
