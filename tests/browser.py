"""Drives a real Chromium with the standard library alone, over --remote-debugging-pipe: JSON
messages that end with NUL, on file descriptors 3 (to the browser) and 4 (from it). The protocol is
Chrome's DevTools Protocol.

    browser = Browser()                         # one process for all the tests of a module
    tab = browser.tab()                         # with cookies and storage of its own
    tab.open("http://127.0.0.1:8087/")
    tab.js("document.title")                    # the value of an expression; promises are awaited
    tab.wait("document.title === 'Roger'")      # until it is true
    tab.type("hello"); tab.key("Enter")
    browser.close()

Nothing sleeps: wait() is a promise in the page, which looks whenever the page changes, and every 20
ms for what is no element.
"""

import base64
import itertools
import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

import pytest

from harness import TIMEOUT

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking",
         "--disable-dev-shm-usage", "--disable-extensions", "--disable-sync", "--mute-audio",
         "--hide-scrollbars",
         "--disable-component-update", "--no-default-browser-check", "--remote-debugging-pipe"]
# The first one is the same without windows, for a third of the work.
NAMES = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome"]
KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), "ArrowUp": (38, ""),
        "ArrowDown": (40, "")}
SHIFT = 8
MOVE = """import os, sys
taken = [os.dup(int(end)) for end in sys.argv[1:3]]
while min(taken) < 5:
    taken = [os.dup(end) for end in taken]
for place, end in enumerate(taken, 3):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_browser():
    """The path of a Chromium; where there is none the test is skipped, or fails where the tests
    have to be whole."""
    path = os.environ.get("ROGER_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None or os.name != "posix":
        reason = "no Chromium on this machine (or no file descriptors to give it)"
        if os.environ.get("CI") or os.environ.get("ROGER_CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


class Browser:
    """A headless Chromium process."""

    def __init__(self, *flags):
        path = find_browser()
        self._profile = tempfile.mkdtemp(prefix="roger-browser-")
        command_read, self._to = os.pipe()
        self._from, answer_write = os.pipe()
        # A process of ours moves the pipes to 3 and 4 and becomes the browser: preexec_fn may hang
        # a process with threads.
        self._process = subprocess.Popen([sys.executable, "-ISc", MOVE, str(command_read),
                                          str(answer_write), path, *FLAGS, *flags,
                                          f"--user-data-dir={self._profile}"],
                                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                         stderr=subprocess.DEVNULL,
                                         pass_fds=(command_read, answer_write),
                                         start_new_session=True)
        os.close(command_read)
        os.close(answer_write)
        self._ids = itertools.count(1)
        # Protects the table below.
        self._lock = threading.Lock()
        # For each id of a call, a queue for its one answer.
        self._answers = {}
        # Exceptions and console errors of all pages, as text.
        self.events = queue.Queue()
        # It ends with the process.
        self._reader = threading.Thread(target=self._read, name="browser", daemon=True)
        self._reader.start()

    def _read(self):
        partial = b""
        while True:
            try:
                data = os.read(self._from, 1 << 16)
            except OSError:
                data = b""
            if not data:
                break
            *messages, partial = (partial + data).split(b"\0")
            for message in map(json.loads, messages):
                self._take(message)
        with self._lock:
            for answer in self._answers.values():
                answer.put({"error": {"message": "the browser ended"}})

    def _take(self, message):
        if "id" in message:
            with self._lock:
                answer = self._answers.pop(message["id"], None)
            if answer is not None:
                answer.put(message)
        elif message["method"] == "Runtime.exceptionThrown":
            details = message["params"]["exceptionDetails"]
            self.events.put(
                f"{details['text']} {details.get('exception', {}).get('description', '')}")
        elif message["method"] == "Log.entryAdded" and message["params"]["entry"][
            "source"] == "security":
            self.events.put(message["params"]["entry"]["text"])

    def call(self, method, session=None, **params):
        """Send a command, return its result."""
        id, answer = next(self._ids), queue.Queue(1)
        with self._lock:
            self._answers[id] = answer
        message = {"id": id, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        result = answer.get(timeout=TIMEOUT)
        assert "error" not in result, f"{method}: {result['error']['message']}"
        return result["result"]

    def tab(self, width=1280, height=800, dark=False, reduced_motion=True):
        """A tab of a browser that knows nothing: no cookies, no storage."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        return Tab(self, context, width, height, dark, reduced_motion)

    def errors(self):
        """What pages have complained about since the last time."""
        errors = []
        while not self.events.empty():
            errors.append(self.events.get())
        return errors

    def close(self):
        """End the browser; may be called twice."""
        if self._process.poll() is None:
            # Its helpers end, too: they would write to the profile once more.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        for end in (self._to, self._from):
            try:
                os.close(end)
            except OSError:
                pass
        shutil.rmtree(self._profile, ignore_errors=True)


class Tab:
    """One page."""

    def __init__(self, browser, context, width, height, dark, reduced_motion):
        self.browser, self.context = browser, context
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=context,
                              width=width, height=height)
        self.target = target["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=self.target,
                                     flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Log.enable")
        self.size(width, height)
        self.look(dark, reduced_motion)
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method, **params):
        return self.browser.call(method, self._session, **params)

    def size(self, width=1280, height=800):
        """The window's; a narrow one is a phone's."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 500)

    def look(self, dark=False, reduced_motion=True):
        """Light or dark, with motion or without."""
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if reduced_motion
             else "no-preference"}])

    def open(self, url):
        """Load a page and wait until its script has run."""
        self.call("Page.navigate", url=url)
        self.wait(f"location.href.startsWith({json.dumps(url.partition('#')[0])})"
                  " && document.readyState === 'complete'")

    def reload(self):
        """Load it again, as the reload button does."""
        self.js("window.beforeReload = true")
        self.call("Page.reload")
        self.wait("!window.beforeReload && document.readyState === 'complete'")

    def js(self, expression):
        """The value of an expression; a promise is awaited. Raises AssertionError with what the
        page throws."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True,
                           returnByValue=True, userGesture=True)
        if "exceptionDetails" in result:
            raise AssertionError(
                result["exceptionDetails"].get("exception", {}).get("description", "it threw"))
        return result["result"].get("value")

    def wait(self, condition, seconds=20):
        """Wait until an expression is true, over a reload of the page, too."""
        promise = """new Promise((done, fail) => {
            const until = Date.now() + %d;
            const look = () => {
                let value = false;
                try { value = (() => %s)(); } catch (error) { value = false; }
                if (value) done(value);
                else if (Date.now() > until) fail(new Error("not within %d s: " + %s));
                else setTimeout(look, 20);
            };
            look();
        })""" % (seconds * 1000, condition, seconds, json.dumps(condition))
        for _ in range(3):
            try:
                return self.js(promise)
            except AssertionError as error:
                # The page went while it looked.
                if not any(text in str(error)
                           for text in ("navigated", "destroyed", "context", "Context",
                                        "collected")):
                    raise
        raise AssertionError(f"the page keeps going away: {condition}")

    def type(self, text, into=None):
        """Type into what has the focus, or into the element of that id, as an input method does
        it."""
        if into:
            self.js(f"document.getElementById({json.dumps(into)}).focus()")
        self.call("Input.insertText", text=text)

    def key(self, key, shift=False):
        """Press a key."""
        code, text = KEYS[key] if key in KEYS else (ord(key.upper()), key)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                      code=key if len(key) > 1 else "",
                      modifiers=SHIFT if shift else 0,
                      **({"text": text} if text and kind == "keyDown" else {}))

    def click(self, selector):
        """Click the middle of the first element of that selector, with the mouse."""
        x, y = self.js(f"""(() => {{ const box = document.querySelector({json.dumps(selector)});
            box.scrollIntoView({{block: "nearest"}}); const at = box.getBoundingClientRect();
            return [at.x + at.width / 2, at.y + at.height / 2]; }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def offline(self, is_offline):
        """Cut the page off from the network: new connections only, as in Chromium."""
        self.call("Network.enable")
        self.call("Network.emulateNetworkConditions", offline=is_offline, latency=0,
                  downloadThroughput=-1, uploadThroughput=-1)

    def screenshot(self, path):
        """Write what is seen as a PNG."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        pathlib.Path(path).write_bytes(base64.b64decode(data))

    def forget(self):
        """Leave the page, and nothing of it in the storage: for the next test. Far cheaper than
        another tab."""
        # Otherwise the page would keep all of it when it goes.
        self.js("store = () => true; sessionStorage.clear(); localStorage.clear()")
        self.call("Page.navigate", url="about:blank")
        self.size()
        self.look()

    def close(self):
        """Close the tab and forget its storage."""
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)
