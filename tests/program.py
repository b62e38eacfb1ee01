"""Processes on a pseudo-terminal, for POSIX. A Program has a screen, which terminal.py shows; a
LineProgram prints lines and has no echo.

    with Program([*CLIENT, "--name", "ann"], rows=24, columns=80) as program:
        program.wait_for("connected")
        program.type("hello\\r")
        program.wait_until(lambda terminal: "hello" in terminal.line(3), "the message")
        program.signal(signal.SIGTERM)
        assert program.wait_exit() == 0 and program.settings() == program.first_settings
        assert not program.terminal.unknown
"""

import os
import re
import select
import selectors
import signal
import struct
import subprocess
import threading
import time

from harness import ENVIRONMENT, ROOT, TIMEOUT, heed_interrupts
from terminal import Terminal

try:
    import fcntl
    import pty
    import termios
except ImportError:
    # This is Windows, and neither of them runs there.
    pty = None


class Program:
    """A running command, and the `terminal` that it runs on. A thread reads what the command
    prints, another awaits its end.

    `env` is added to the environment (a value None removes); `options` go to the Terminal. Look at
    `terminal` in wait_until(), in snapshot(), or after wait_exit(): in between, the reader feeds
    it. `process` is the Popen, `chunks` has (seconds since the start, bytes) for each read,
    `first_settings` what settings() was before the command ran.
    """

    def __init__(self, command, rows=24, columns=80, env=None, cwd=None, **options):
        self.terminal = Terminal(rows, columns, **options)
        self.chunks = []
        self._output = bytearray()
        self._unsent = bytearray()                  # typed, but the command does not read
        self._entered = None                        # when Enter was typed, until something is printed
        self._ended = False                         # all that it printed has been read
        self._closed = False
        # Protects the terminal and all of the above; a leaf.
        self._changed = threading.Condition(threading.Lock())
        self._master, self._slave = pty.openpty()
        # To write to it wakes the reader when there is something unsent.
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._master, False)
        self.first_settings = self._last_settings = termios.tcgetattr(self._slave)
        self._set_size(rows, columns)
        variables = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8",
                     "LINES": None, "COLUMNS": None, "NO_COLOR": None, **(env or {})}
        self._start = time.monotonic()
        self.process = subprocess.Popen(
            command, stdin=self._slave, stdout=self._slave, stderr=self._slave, cwd=cwd,
            start_new_session=True,
            env={name: value for name, value in variables.items() if value is not None},
            preexec_fn=take_terminal)
        # It ends after the waiter.
        self._reader = threading.Thread(target=self._read, name="pty reader", daemon=True)
        # It ends with the process.
        self._waiter = threading.Thread(target=self._await, name="pty waiter", daemon=True)
        self._reader.start()
        self._waiter.start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stop()

    raw_output = property(lambda self: self._locked(lambda: bytes(self._output)),
                          doc="All that the command has printed.")

    def snapshot(self):
        """The screen's lines."""
        return self._locked(self.terminal.lines)

    def settings(self):
        """The pseudo-terminal's termios settings; those at its end when the command has ended."""
        return self._locked(lambda: self._last_settings if self._slave is None
                            else termios.tcgetattr(self._slave))

    def type(self, keys):
        """Send text or bytes, as keys that are pressed; never blocks. As of a person, an Enter
        ends what one read brings: what comes after it waits until that is read."""
        with self._changed:
            self._unsent += keys.encode("utf-8") if isinstance(keys, str) else keys
            self._send()
        os.write(self._wake, b"w")

    def wait_until(self, predicate, what):
        """Return what `predicate(terminal)` returns as soon as that is true; AssertionError when it
        ends or takes too long.

        It is asked now, and when something has arrived: a state that lasts for one chunk only may
        pass between. The lock is held, so it must not call this object.
        """
        deadline = time.monotonic() + TIMEOUT
        with self._changed:
            while not (result := predicate(self.terminal)):
                assert not self._ended, self._describe(f"the command ended before {what}")
                if not self._changed.wait(deadline - time.monotonic()):
                    raise AssertionError(self._describe(f"in vain waited for {what}"))
            return result

    def wait_for(self, text):
        """Return as soon as the text can be read in a row."""
        self.wait_until(lambda terminal: any(text in line for line in terminal.lines()), repr(text))

    def resize(self, rows, columns):
        """Give the window another size; the kernel sends SIGWINCH."""
        with self._changed:
            self.terminal.resize(rows, columns)
            self._set_size(rows, columns)

    def signal(self, number):
        """Send a signal to the process (not to its group)."""
        self.process.send_signal(number)

    def wait_exit(self):
        """Return the exit code, after all that was printed is in the model."""
        self._waiter.join(TIMEOUT)
        self._reader.join(TIMEOUT)
        assert self._ended, self._locked(lambda: self._describe("the command did not end"))
        return self.process.returncode

    def stop(self):
        """End the command, kill it when that fails; return its exit code. May be called twice."""
        for number in (signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(number)
                self._waiter.join(0 if number == signal.SIGCONT else TIMEOUT)
        self._waiter.join(TIMEOUT)
        if not self._closed:
            self._closed = True
            # A child that it left behind may hold the terminal open.
            os.write(self._wake, b"w")
            self._reader.join(TIMEOUT)
            for descriptor in (self._master, self._woken, self._wake):
                os.close(descriptor)
        return self.process.returncode

    def _locked(self, function):
        with self._changed:
            return function()

    def _set_size(self, rows, columns):
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _describe(self, problem):
        """What a failed test shows; needs the lock."""
        terminal = self.terminal
        screen = "\n".join(f"|{line}" for line in terminal.lines())
        return (
            f"{problem}\n{screen}\ncursor {terminal.cursor}, unknown {terminal.unknown}, exit code "
                f"{self.process.returncode}, end of the output: {bytes(self._output[-200:])!r}")

    def _send(self):
        """Write what the command takes; needs the lock, does not block."""
        try:
            while self._unsent and not self._is_unread():
                end = self._unsent.find(b"\r") + 1 or len(self._unsent)
                # A paste that is marked comes whole.
                if b"\x1b[200~" in self._unsent[:end] and b"\x1b[201~" in self._unsent:
                    end = self._unsent.index(b"\x1b[201~") + 6
                if self._unsent[end - 1:end] == b"\r":
                    self._entered = time.monotonic()
                del self._unsent[:os.write(self._master, self._unsent[:end])]
        except BlockingIOError:
            pass
        except OSError:                             # it has ended
            self._unsent.clear()

    def _is_unread(self):
        """The command has not read the Enter that was typed last; needs the lock. What it prints
        tells that it has; a command that prints nothing has half a second."""
        if self._slave is None or self._entered is None:
            return False
        waiting = fcntl.ioctl(self._slave, termios.FIONREAD, bytes(4))
        return struct.unpack("i", waiting)[0] > 0 or time.monotonic() < self._entered + 0.5

    def _read(self):
        while True:
            unsent = self._locked(lambda: len(self._unsent))
            # Nothing tells that the command has read what was typed: it is looked at.
            wait = 0.005 if unsent else None
            readable, _, _ = select.select([self._master, self._woken], [], [],
                                           0 if self._closed else wait)
            if self._woken in readable:
                os.read(self._woken, 65536)
            try:
                data = os.read(self._master, 65536)
            except BlockingIOError:
                data = None
            except OSError:
                # It is EIO, by which Linux says that the other side is closed.
                data = b""
            if data == b"" or data is None and self._closed:
                break
            with self._changed:
                if data:
                    self._take(data)
                self._send()
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _take(self, data):
        """Show what the command has printed; needs the lock."""
        self._entered = None
        self._output += data
        self.chunks.append((time.monotonic() - self._start, len(data)))
        answered = len(self.terminal.replies)
        self.terminal.feed(data)
        self._unsent += self.terminal.replies[answered:]

    def _await(self):
        self.process.wait()
        # It was open until now: some systems forget the settings with the last close.
        with self._changed:
            self._last_settings = termios.tcgetattr(self._slave)
            os.close(self._slave)
            self._slave = None


def take_terminal():
    """In the new process: standard input controls it, and Ctrl-C ends it even if the tests run in
    the background."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # (nohup ignores the last one.)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class LineProgram:
    """A command on a pseudo-terminal without echo: all that is read there was printed, line by
    line."""

    def __init__(self, *arguments):
        self._master, slave = pty.openpty()
        modes = termios.tcgetattr(slave)
        modes[3] &= ~termios.ECHO
        # Lines end as they were printed.
        modes[1] &= ~termios.OPOST
        termios.tcsetattr(slave, termios.TCSANOW, modes)
        self.process = subprocess.Popen(arguments, stdin=slave, stdout=slave, stderr=slave,
                                        cwd=ROOT, env=ENVIRONMENT,
                                        preexec_fn=heed_interrupts)
        os.close(slave)
        self._unread = b""
        self.printed = ""                   # all of it
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._master, selectors.EVENT_READ)

    def type(self, *lines):
        os.write(self._master, "".join(line + "\n" for line in lines).encode())

    def press(self, keys):
        os.write(self._master, keys)

    def line(self):
        """The next line that is printed; None at the end."""
        deadline = time.monotonic() + TIMEOUT
        while b"\n" not in self._unread:
            if not self._selector.select(max(0, deadline - time.monotonic())):
                raise AssertionError(
                    f"nothing more is printed after {self.printed!r}, {self._unread!r}")
            try:
                data = os.read(self._master, 65_536)
            except OSError:
                # Linux says so that the other end is closed.
                data = b""
            if not data:
                return None
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        self.printed += line.decode() + "\n"
        return line.decode()

    def expect(self, pattern):
        """Read up to the next line that the pattern matches whole."""
        while True:
            line = self.line()
            assert line is not None, f"{pattern!r} was not printed before the end: {self.printed!r}"
            if re.fullmatch(pattern, line):
                return line

    def end(self):
        """Read to the end, return the exit code."""
        while self.line() is not None:
            pass
        return self.process.wait(TIMEOUT)

    def close(self):
        self.process.kill()
        self.process.wait(TIMEOUT)
        self._selector.close()
        os.close(self._master)
