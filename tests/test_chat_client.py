"""A ChatClient as a bot uses it: its ends, its callbacks and their faults, and what it says when
the network is silent. The server runs in this process."""

import queue
import socket
import threading

import pytest

import chat_client
import chat_server
from chat_client import THERE, UNKNOWN, ChatClient
from chatproto import Chat
from harness import TIMEOUT, encode, wait_until


@pytest.fixture
def port():
    """The port of a server without a limit of messages a second."""
    server = chat_server.ChatServer("127.0.0.1", 0, chat_server.Settings(rate=0))
    server.start()
    yield server.port
    server.server_close()


@pytest.fixture
def clients(port):
    """Make clients that are connected; at the end they are closed, and their threads gone."""
    made = []

    def connect(name, **callbacks):
        made.append(ChatClient("127.0.0.1", port, name, **callbacks))
        made[-1].connect(TIMEOUT)
        return made[-1]
    yield connect
    for client in made:
        client.close()
        client._thread.join(TIMEOUT)
        assert not client._thread.is_alive()


@pytest.fixture
def told(monkeypatch):
    """The exceptions that threading.excepthook was told."""
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda what: told.append(what.exc_value))
    return told


# --- After the end ---

def test_say_after_close_raises(clients):
    """Nothing stays "sending" for ever: who says something after the end is told."""
    client = clients("ann")
    client.close()
    for speak in (lambda: client.say("hi"), lambda: client.say("hi", "bob"),
                  lambda: client.rename("eve"), lambda: client.recall(print)):
        with pytest.raises(ConnectionError, match="closed"):
            speak()
    assert client.unsettled == []


def test_say_after_a_boot_raises(clients, port):
    """The same where the server ended it; on_end says why."""
    ends = queue.Queue()
    client = clients("ann", on_end=ends.put)
    # The same session from elsewhere.
    other = ChatClient("127.0.0.1", port, "ann")
    other.secret, other._epoch = client.secret, client._epoch
    other.connect(TIMEOUT)
    why = ends.get(timeout=TIMEOUT)
    assert "joined again from elsewhere" in why == client.ended
    with pytest.raises(ConnectionError):
        client.say("hi")
    other.close()


def test_connect_after_close_raises(port):
    """A client that was closed is not connected by accident, whether it was connected before or
    not."""
    client = ChatClient("127.0.0.1", port, "ann")
    client.close()
    client.close()
    with pytest.raises(ConnectionError):
        client.connect(TIMEOUT)
    assert not client.joined
    client = ChatClient("127.0.0.1", port, "ann")
    client.connect(TIMEOUT)
    client.close()
    with pytest.raises(ConnectionError):
        client.connect(TIMEOUT)


def test_connect_again(port, clients):
    """Who was in cannot connect a second time, not in on_lost or on_end either: the session stays
    on its one connection."""
    raised, ended = [], threading.Event()

    def again(*arguments):
        with pytest.raises(RuntimeError, match="heals by itself"):
            ann.connect(TIMEOUT)
        raised.append(arguments)
    ann = clients("ann", on_lost=again, on_end=lambda why: (again(why), ended.set()))
    again()
    ann._cut("a test")
    wait_until(lambda: len(raised) == 2 and ann.joined)
    other = ChatClient("127.0.0.1", port, "ann")
    other.go_on(ann.ticket)
    other.connect(TIMEOUT)
    assert ended.wait(TIMEOUT) and len(raised) == 3 and list(other.users) == ["ann"]
    other.close()


def test_connect_without_a_server(monkeypatch):
    """Nobody listens: connect() says so, and nothing can be said."""
    monkeypatch.setattr(chat_client, "START_PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = ChatClient("127.0.0.1", port, "ann")
    with pytest.raises(ConnectionError, match="cannot connect"):
        client.connect(TIMEOUT)
    with pytest.raises(ConnectionError, match="cannot connect"):
        client.connect(TIMEOUT)
    client.close()
    with pytest.raises(ConnectionError):
        client.say("hi")


# --- Callbacks ---

def test_exception_in_a_callback_ends_nothing(clients, told):
    """It is told to threading.excepthook, the next message comes, and what was said is there."""
    heard, states = queue.Queue(), queue.Queue()

    def on_message(message):
        if isinstance(message, Chat):
            heard.put(message.text)
            if message.text == "boom":
                raise LookupError("a bug of the bot")

    def on_state(said):
        states.put(said.state)
        raise KeyError("another")
    client = clients("ann", on_message=on_message, on_state=on_state)
    said = [client.say(text) for text in ("boom", "on")]
    assert [heard.get(timeout=TIMEOUT) for _ in said] == ["boom", "on"]
    assert client.wait_settled(0, TIMEOUT) and [one.state for one in said] == [THERE, THERE]
    assert [states.get(timeout=TIMEOUT) for _ in said] == [THERE, THERE]
    wait_until(lambda: len(told) == 3)
    assert sorted(type(one).__name__ for one in told) == ["KeyError", "KeyError", "LookupError"]
    assert client.joined and client.ended == ""


@pytest.mark.parametrize("callback", ["on_welcome", "on_lost", "on_end"])
def test_exception_in_the_other_callbacks(clients, port, told, callback):
    """None of them ends the client's thread before its time."""
    def fails(*arguments):
        raise LookupError("a bug of the bot")
    client = clients("ann", **{callback: fails})
    if callback == "on_lost":
        client._cut("a test")
        wait_until(lambda: told and client.joined)
    elif callback == "on_end":
        other = ChatClient("127.0.0.1", port, "ann")
        other.secret, other._epoch = client.secret, client._epoch
        other.connect(TIMEOUT)
        other.close()
    else:
        client.say("hi")
        assert client.wait_settled(0, TIMEOUT)
    wait_until(lambda: told)
    assert [type(one).__name__ for one in told] == ["LookupError"]


def test_close_in_a_callback(clients):
    """It returns at once and finishes after the callback: what was said before is there, and the
    others hear that it left."""
    returned, left = threading.Event(), threading.Event()
    clients("bob", on_message=lambda message: message.type == "left" and left.set())

    def on_message(message):
        if isinstance(message, Chat) and message.text == "go":
            said.append(client.say("last words"))
            client.close(TIMEOUT)
            with pytest.raises(ConnectionError):
                client.say("too late")
            returned.set()
    said = []
    client = clients("ann", on_message=on_message)
    client.say("go")
    assert returned.wait(TIMEOUT) and left.wait(TIMEOUT)
    client._thread.join(TIMEOUT)
    assert said[0].state == THERE and not client._thread.is_alive()


def test_close_while_threads_say(clients):
    """close() ends, and those who go on saying something are told; what was said before is there or
    unknown, and nothing is still being sent."""
    client, ends, said = clients("ann"), queue.Queue(), []
    started = threading.Barrier(5)

    def talk():
        started.wait(TIMEOUT)
        try:
            while True:
                try:
                    said.append(client.say("again"))
                except queue.Full:
                    pass
        except ConnectionError as error:
            ends.put(str(error))
    threads = [threading.Thread(target=talk, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait(TIMEOUT)
    closer = threading.Thread(target=client.close, args=(1,), daemon=True)
    closer.start()
    assert [ends.get(timeout=TIMEOUT) for _ in threads] == ["the client was closed"] * 4
    closer.join(TIMEOUT)
    assert not closer.is_alive()
    assert {one.state for one in said} <= {THERE, UNKNOWN}


# --- A silent network ---

@pytest.fixture
def silent_server():
    """A server that lets everybody in, and then never answers again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        socks, ends = [], threading.Event()

        def serve():
            while True:
                sock = listener.accept()[0]
                socks.append(sock)
                if ends.is_set():
                    return
                sock.recv(4096)
                sock.sendall(encode({"type": "welcome", "name": "ann", "session": "s", "epoch": "e",
                                     "users": ["ann"], "last": 0}))
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        ends.set()
        # On other systems than Linux nothing else wakes accept().
        socket.create_connection(listener.getsockname()).close()
        thread.join(TIMEOUT)
        for sock in socks:
            sock.close()


@pytest.mark.parametrize("speaks", [False, True])
def test_silence_is_called_no_answer(silent_server, impatient, speaks):
    """Where the network is silent, on_lost gives that as the reason: with something said, and by a
    ping without."""
    lost = queue.Queue()
    client = ChatClient("127.0.0.1", silent_server, "ann",
                        on_lost=lambda why, seconds: lost.put(why))
    client.connect(TIMEOUT)
    if speaks:
        said = client.say("hello?")
    assert lost.get(timeout=TIMEOUT) == "no answer"
    client.close(0)
    assert not speaks or said.state == UNKNOWN
