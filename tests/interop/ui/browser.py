"""A headless Chromium that tests drive, by nothing but the standard library.

Chromium speaks its DevTools protocol over two pipes (`--remote-debugging-pipe`): JSON messages that end in NUL, read
from file descriptor 3 and written to 4. That is all a test needs, so there is no driver to install, no browser to
download and no port that anybody else could speak to. Clicks and keys are real ones: they go through the browser's
input, hit what lies under the pointer, and fail where that is something else.

One thread only: events are taken in while an answer is waited for. A browser that dies closes its pipe, which is a
`BrowserError` with the end of its log; so is an answer that does not come.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 20.0
"""How long anything may take before a test gives up; nothing is expected to take anywhere near as long."""
ANSWER_SECONDS = 30.0
"""How long Chromium may take to answer; longer, because a page that waits in vain answers when its patience ends."""

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WINDOW = {"width": 1400, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--lang=en-US",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
"""The last one: a page that wants anything from elsewhere does not get it, and says so in its errors."""

LAUNCH = """
import os, sys
from fcntl import F_DUPFD, fcntl
reads, writes = (fcntl(int(each), F_DUPFD, 10) for each in sys.argv[1:3])
os.dup2(reads, 3)
os.dup2(writes, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Chromium wants its pipes as 3 and 4. A Python of its own puts them there: code between a fork and its exec may hang
where other threads run, and the shell of Debian knows one-digit descriptors only."""


class BrowserError(Exception):
    """Chromium refused, died, or did not come to what was waited for."""


def find_chromium() -> str | None:
    """Chromium, of the PATH, or the one that RIVERQ_CHROMIUM names."""
    named = os.environ.get("RIVERQ_CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A running Chromium. `folder` holds its profile and its log."""

    def __init__(self, command: str, folder: Path) -> None:
        self._log = folder / "chromium.log"
        self._ids = count(1)
        self._unread = b""
        self._handlers: dict[str, Callable[[str, dict[str, Any]], None]] = {}
        its_input, self._write_end = os.pipe()
        self._read_end, its_output = os.pipe()
        options = [*OPTIONS, f"--user-data-dir={folder / 'profile'}"]
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # which root cannot have; what it shows here is our own
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-ISc", LAUNCH, str(its_input), str(its_output), command, *options],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(its_input, its_output),
                    start_new_session=True,
                )
        finally:
            os.close(its_input)
            os.close(its_output)
        try:
            self.call("Browser.getVersion")
        except BrowserError:
            self.close()
            raise

    def page(self) -> Page:
        """A new page without cookies or storage; the caller closes it."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, context, session)
        self._handlers[session] = page.take
        page.prepare()
        return page

    def forget(self, context: str, session: str) -> None:
        """Close a page's context."""
        self._handlers.pop(session, None)
        self.call("Target.disposeBrowserContext", browserContextId=context)

    def send(self, method: str, session: str | None = None, **params: Any) -> int:
        """Send without waiting."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        unsent = memoryview(json.dumps(message).encode() + b"\0")
        try:
            while unsent:
                unsent = unsent[os.write(self._write_end, unsent) :]
        except OSError as error:
            raise self._failure(f"could not be told {method}") from error
        return number

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send, and wait for the answer. Raises BrowserError."""
        number = self.send(method, session, **params)
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            message = self._receive(deadline, method)
            if message.get("id") == number:
                if "error" in message:
                    raise BrowserError(f"{method}: {message['error']['message']}")
                result: dict[str, Any] = message["result"]
                return result
            if handler := self._handlers.get(message.get("sessionId", "")):
                handler(message.get("method", ""), message.get("params", {}))

    def _receive(self, deadline: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._read_end], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._failure(f"did not answer {method}")
            read = os.read(self._read_end, 1 << 20)
            if not read:
                raise self._failure(f"ended before it answered {method}")
            self._unread += read
        head, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(head)
        return message

    def _failure(self, what: str) -> BrowserError:
        return BrowserError(f"Chromium {what}; its log ends: {self._log.read_text(errors='replace')[-1500:]}")

    def close(self) -> None:
        """End it, and all its processes."""
        try:
            self.send("Browser.close")
            self._process.wait(timeout=10)
        except (BrowserError, subprocess.TimeoutExpired):
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._write_end)
        os.close(self._read_end)


HELPERS = """
window.riverqFind = (selector, text) => [...document.querySelectorAll(selector)].filter((element) => {
  const box = element.getBoundingClientRect();
  if (!box.width || !box.height || getComputedStyle(element).visibility === "hidden") return false;
  const names = [element.innerText, element.getAttribute("aria-label"), element.title, element.placeholder];
  return text === null || names.some((name) => name && name.trim() === text);
});
window.riverqUntil = (holds, milliseconds) => new Promise((resolve, reject) => {
  let timer, observer;
  const end = (finish, value) => { clearInterval(timer); clearTimeout(limit); observer.disconnect(); finish(value); };
  const look = () => {
    let value;
    try { value = holds(); } catch (error) { end(reject, error); return; }
    if (value) end(resolve, value);
  };
  const limit = setTimeout(() => end(resolve, null), milliseconds);
  timer = setInterval(look, 100);
  observer = new MutationObserver(look);
  observer.observe(document, {subtree: true, childList: true, characterData: true, attributes: true});
  look();
});
window.riverqPoint = (selector, text, number) => {
  const element = riverqFind(selector, text)[number];
  if (!element || element.disabled) return null;
  element.scrollIntoView({block: "center"});
  const box = element.getBoundingClientRect();
  const at = [box.x + box.width / 2, box.y + box.height / 2];
  const hit = document.elementFromPoint(...at);
  return element.contains(hit) || (hit && hit.tagName === "LABEL" && hit.contains(element)) ? at : null;
};
"""


class Page:
    """One page. `complaints` holds what went wrong in it: exceptions, console errors, failed requests, any dialog."""

    def __init__(self, browser: Browser, context: str, session: str) -> None:
        self._browser = browser
        self._context = context
        self._session = session
        self.complaints: list[str] = []

    def prepare(self) -> None:
        """Once, before it is used."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self._call("Emulation.setDeviceMetricsOverride", **WINDOW)
        self._call("Emulation.setTimezoneOverride", timezoneId="UTC")
        motion = {"name": "prefers-reduced-motion", "value": "reduce"}
        self._call("Emulation.setEmulatedMedia", features=[motion])
        self._call("Page.addScriptToEvaluateOnNewDocument", source=HELPERS)

    def take(self, event: str, params: dict[str, Any]) -> None:
        """An event of this page's."""
        match event:
            case "Page.javascriptDialogOpening":
                self.complaints.append(f"dialog: {params['message']}")
                self._browser.send("Page.handleJavaScriptDialog", self._session, accept=False)
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.complaints.append(f"exception: {details.get('exception', {}).get('description', details['text'])}")
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
                self.complaints.append(f"console: {[each.get('value') for each in params['args']]}")
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.complaints.append(f"log: {params['entry']['text']} {params['entry'].get('url', '')}")

    def goto(self, url: str) -> None:
        """Open an address and wait until it is loaded; what scripts then fetch is waited for by what it shows."""
        result = self._call("Page.navigate", url=url)
        if "errorText" in result:
            raise BrowserError(f"could not open {url}: {result['errorText']}")
        self.until("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        result = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise BrowserError(f"{expression}: {result['result'].get('description')}")
        return result["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until an expression is true, and return its value. The page may be reloaded meanwhile."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        failure = ""
        while (left := deadline - time.monotonic()) > 0:
            try:
                if value := self.evaluate(f"riverqUntil(() => ({expression}), {left * 1000:.0f})"):
                    return value
            except BrowserError as error:
                if not any(each in str(error) for each in ("context", "navigated", "collected", "riverqUntil")):
                    raise
                failure = str(error)
                time.sleep(0.02)  # the old document is gone and the new one has no context yet
        raise BrowserError(f"waited in vain for {expression} {failure}; {self.complaints}; it shows: {self.text()}")

    def see(self, text: str) -> None:
        """Wait until the page shows a text, spaces and line breaks as one reads them."""
        self.until(f"document.body && document.body.innerText.includes({json.dumps(text)})")

    def see_no(self, text: str) -> None:
        """Wait until the page does not show a text any more."""
        self.until(f"!document.body.innerText.includes({json.dumps(text)})")

    def text(self) -> str:
        """What one can read on it."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def texts(self, selector: str) -> list[str]:
        """The text of every visible element that a CSS selector finds."""
        found = self.evaluate(f"riverqFind({json.dumps(selector)}, null).map((each) => each.innerText.trim())")
        return [str(each) for each in found]

    def click(self, selector: str, text: str | None = None, *, number: int = 0) -> None:
        """Click the element that a selector and its exact text or label find, once it can be clicked."""
        arguments = f"{json.dumps(selector)}, {json.dumps(text)}, {number}"
        x, y = self.until(f"riverqPoint({arguments})")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            pressed = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **pressed)

    def type(self, text: str) -> None:
        """Type into what has the focus, no faster than the page draws: scripts may rewrite the field after each key."""
        for letter in text:
            self._call("Input.dispatchKeyEvent", type="keyDown", text=letter, key=letter)
            self._call("Input.dispatchKeyEvent", type="keyUp", key=letter)
            self.evaluate("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")

    def press(self, key: str, code: int) -> None:
        """Press a key that is no letter: `press("Enter", 13)`."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def settle(self) -> None:
        """Take in what the page has complained about up to now."""
        self._call("Runtime.evaluate", expression="1")

    def screenshot(self, path: Path) -> None:
        """Write what it shows, all of it, as PNG."""
        self.evaluate("scrollTo(0, 0)")
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": WINDOW["width"], "height": min(size["height"], 4000), "scale": 1}
        shot = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """Close it."""
        self._browser.forget(self._context, self._session)

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)
