"""Who is in a chat and tells afterwards what it was: ChatClients in this process, and the judge of
what they said and heard.

    ann = Talker(server.port, "ann")
    speak_all([ann], 600)
    wait_until_heard([ann, bob], [ann], 600)
    violations = HistoryChecker([ann.history, bob.history], ann.history.epoch).violations()
"""

import os
import threading
from collections import Counter

from chat_client import FAILED, THERE, ChatClient
from chatproto import Chat, Joined, Left, Renamed
from harness import TIMEOUT, wait_until

# What random faults are made from: the same each time, as far as the network lets them be.
SEED = int(os.environ.get("ROGER_SEED", "20090817"))


class Talker:
    """A ChatClient and its History: all that it said and heard, in which run of ids, with which
    states."""

    def __init__(self, port, name, **options):
        self.history = History(name)
        self.connections = self.lost = 0
        # How many welcomes were no resumes.
        self.fresh = 0
        self.welcome = None             # the newest
        self.ended = ""
        # The last state of each Said.
        self._states = {}
        # What happened to the list of users: a type and a name each.
        self.names = []
        self.client = ChatClient("127.0.0.1", port, name, on_welcome=self._on_welcome,
                                 on_message=self._on_message,
                                 on_state=self._on_state, on_lost=self._on_lost,
                                 on_end=self._on_end, **options)
        self.client.connect(TIMEOUT)

    def _on_welcome(self, welcome):
        self.connections += 1
        self.fresh += not welcome.resumed
        self.welcome = welcome
        self.history.welcomed(welcome)

    def _on_message(self, message):
        if isinstance(message, Chat):
            self.history.heard(message)
        elif isinstance(message, (Joined, Left, Renamed)):
            self.names.append((message.type, message.name))

    def _on_state(self, said):
        if self._states.get(said.id) != said.state:             # else a receipt
            self._states[said.id] = said.state
            self.history.states.append((self.history.epoch, said.text, said.state))

    def _on_lost(self, why, seconds):
        self.lost += 1

    def _on_end(self, why):
        self.ended = why

    def say(self, text, to=None):
        self.history.said.append(self.client.say(text, to))
        return self.history.said[-1]

    def texts(self):
        return [chat.text for _, chat in self.history.chats]


class History:
    """What one member said and heard, as its callbacks told it."""

    def __init__(self, name):
        self.name = name
        # The epoch of the run of ids that this member is in.
        self.epoch = ""
        # For each epoch the newest id when this member came: it hears what has a greater one.
        self.since = {}
        # Frames that the server could not replay.
        self.missed = 0
        # Pairs of an epoch and a Chat, as they were heard.
        self.chats = []
        # Said, in the order of saying.
        self.said = []
        # Each change as it was told: epoch, text and state.
        self.states = []

    def welcomed(self, welcome):
        # Whoever comes from an earlier run of the server hears everything that was said since it
        # started again.
        self.since.setdefault(welcome.epoch, 0 if self.since else welcome.last)
        self.epoch = welcome.epoch
        self.missed += welcome.missed

    def heard(self, chat):
        self.chats.append((self.epoch, chat))

    def heard_in(self, epoch):
        return [chat for heard_in, chat in self.chats if heard_in == epoch
                and chat.id > self.since[epoch]]


class HistoryChecker:
    """Judges the histories of members who were in the room all the time, or came back each time
    within the grace time.

    The texts have to be unique, "SPEAKER NUMBER" with growing numbers, and said to all.
    violations() names each that it finds, in the promises' order; an empty list is an acquittal:

    - lost: said, reported THERE, and not heard by a member that was there. The speaker itself is
      one of the members.
    - twice: heard more than once by one member.
    - order: the ids that one member hears do not grow, or two members know one id as different
      messages. Together: there is one order.
    - speaker: a speaker's messages are not heard in the order in which they were said.
    - forged: heard, and never said; or reported FAILED, which means not sent, and heard.
    - state: a message is not reported THERE or FAILED at the end, or went on from one of these, or
      was told twice.
    - missed: the server said that it could not replay something, though nothing here exceeds its
      log.

    `epoch` is the run of ids to judge (the only one where there was no restart). Losses are looked
    for among the messages whose ACK came in that run: in a crash without history what was
    acknowledged before it may be gone.
    """

    def __init__(self, histories, epoch):
        self._histories = histories
        self._epoch = epoch

    def violations(self):
        return [*self._lost_and_twice(), *self._order(), *self._speakers(), *self._forged(),
                *self._states(), *self._missed()]

    def _there(self):
        return [text for history in self._histories for epoch, text, state in history.states
                if state == THERE and epoch == self._epoch]

    def _lost_and_twice(self):
        for history in self._histories:
            heard = Counter(chat.text for chat in history.heard_in(self._epoch))
            yield from (f"lost: {text!r}, to {history.name}" for text in self._there()
                        if text not in heard)
            yield from (f"twice: {text!r}, {count} times to {history.name}" for text,
                        count in heard.items() if count > 1)

    def _order(self):
        meanings = {}
        for history in self._histories:
            ids = [chat.id for chat in history.heard_in(self._epoch)]
            yield from (f"order: {later} after {earlier} to {history.name}"
                        for earlier, later in zip(ids, ids[1:]) if later <= earlier)
            for chat in history.heard_in(self._epoch):
                if meanings.setdefault(chat.id, chat) != chat:
                    yield (f"order: {chat.id} is {chat} to {history.name} and "
                           f"{meanings[chat.id]} to another")

    def _speakers(self):
        for history in self._histories:
            newest = {}
            for chat in history.heard_in(self._epoch):
                speaker, number = chat.text.split()
                if int(number) < newest.get(speaker, 0):
                    yield f"speaker: {chat.text!r} after {newest[speaker]} to {history.name}"
                newest[speaker] = int(number)

    def _forged(self):
        said = {said.text: said for history in self._histories for said in history.said}
        for history in self._histories:
            for chat in history.heard_in(self._epoch):
                if chat.text not in said or said[chat.text].state == FAILED:
                    yield f"forged: {chat.text!r} to {history.name}"

    def _states(self):
        for history in self._histories:
            told = Counter(text for _, text, state in history.states if state in (THERE, FAILED))
            for said in history.said:
                if said.state not in (THERE, FAILED) or told[said.text] != 1:
                    yield (f"state: {said.text!r} is {said.state} at the end, and an end was told "
                           f"{told[said.text]} times")

    def _missed(self):
        return [f"missed: {history.missed} frames by {history.name}" for history in self._histories
                if history.missed]


# --- Speaking ---

def speak(talker, count, begin=1, ahead=40):
    """Say "NAME NUMBER" so many times, with at most `ahead` unacknowledged; stops when the client
    has ended."""
    for number in range(begin, begin + count):
        wait_until(lambda: len(talker.client.unsettled) < ahead or talker.ended)
        talker.say(f"{talker.history.name} {number}")


def speak_all(talkers, count, begin=1):
    """All of them at once, each on its thread; returns the threads."""
    threads = [threading.Thread(target=speak, args=(talker, count, begin), daemon=True)
               for talker in talkers]
    for thread in threads:
        thread.start()
    return threads


def wait_until_heard(everybody, speakers, text):
    """Wait until each of `everybody` has heard "SPEAKER text" of each speaker, and all is
    settled."""
    last_words = {f"{talker.history.name} {text}" for talker in speakers}
    for talker in everybody:
        wait_until(lambda: last_words <= set(talker.texts()[-500:]) and not talker.client.unsettled,
                   what=lambda: f"{talker.history.name} did not hear "
                                f"{last_words - set(talker.texts())}, {talker.ended!r}")
