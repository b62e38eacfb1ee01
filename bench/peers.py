"""Two chats to compare with: `python bench/peers.py bare PORT [CERTIFICATE]` and
`python bench/peers.py asyncio PORT`.

bare     one selector loop that calls send() once per member: no JSON, no ACK, no order to keep, no
queue; a member that does
         not read stops it. It is the least a server in Python can do without batching. With a file
         that holds a certificate and its key it speaks TLS.
asyncio  what one writes first: asyncio streams and JSON, without ACKs, and without a bound on what
waits for a slow member.

Both speak enough of Roger's frames for bench/driver.py: a join is answered by a welcome, a chat
goes to everybody. One thread, no locks; served until killed.
"""

import asyncio
import json
import selectors
import socket
import ssl
import sys


def bare(port, certificate=None):
    """The bare loop."""
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    # `partial` has for each socket its line without an end.
    selector, members, partial = selectors.DefaultSelector(), [], {}
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            sock = key.fileobj
            if sock is listener:
                sock = listener.accept()[0]
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if certificate:
                    # The first read greets.
                    sock = context.wrap_socket(sock, server_side=True,
                                               do_handshake_on_connect=False)
                selector.register(sock, selectors.EVENT_READ)
                continue
            try:
                data = sock.recv(65536)
                while certificate and sock.pending():
                    data += sock.recv(65536)
            except ssl.SSLError:
                # It went before it had greeted.
                data = b""
            *lines, partial[sock] = (partial.get(sock, b"") + data).split(b"\n")
            for line in lines:
                if b'"type":"join"' in line:
                    sock.sendall(b'{"type":"welcome"}\n')
                    members.append(sock)
                    continue
                frame = line.replace(b"{", b'{"from":"u0",', 1) + b"\n"
                for member in members:
                    member.send(frame)
            if not data:
                selector.unregister(sock)
                members = [member for member in members if member is not sock]


async def asyncio_chat(port):
    """The asyncio chat."""
    writers, last = {}, 0

    async def member(reader, writer):
        nonlocal last
        try:
            async for line in reader:
                frame = json.loads(line)
                if frame["type"] == "join":
                    writers[writer] = frame["name"]
                    writer.write(b'{"type":"welcome"}\n')
                    continue
                last += 1
                chat = {"type": "chat", "id": last, "from": writers[writer], "text": frame["text"]}
                data = json.dumps(chat).encode() + b"\n"
                for other in writers:
                    other.write(data)
        finally:
            writers.pop(writer, None)
            writer.close()

    async with await asyncio.start_server(member, "127.0.0.1", port, backlog=1024) as server:
        await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1:2] == ["asyncio"]:
        asyncio.run(asyncio_chat(int(sys.argv[2])))
    else:
        bare(int(sys.argv[2]), *sys.argv[3:])
