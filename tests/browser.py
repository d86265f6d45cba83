"""Headless Chromium, controlled with the DevTools protocol over a pipe; needs no driver and no network port."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = "Chromium is missing; run apt-get install chromium"
SECONDS = 60  # for a page to be drawn
KEY_CODES = {"Enter": 13, "Escape": 27, "ArrowLeft": 37}
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-extensions",
    "--remote-debugging-pipe",
)


class Browser:
    """One page of a running Chromium; `events` has the messages of the enabled domains."""

    def __init__(self, read_from: int, write_to: int) -> None:
        self._from, self._to = os.fdopen(read_from, "rb"), os.fdopen(write_to, "wb")
        self._id, self._buffer, self._session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._receive()
            if answer.get("id") != self._id:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            else:
                return dict(answer["result"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._from.fileno(), 1 << 20)
            if not chunk:
                raise RuntimeError("Chromium has ended")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; promises are awaited."""
        found = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait_until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + SECONDS
        while not self.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"not true after {SECONDS} s: {expression}")
            time.sleep(0.05)

    def emulate(
        self,
        *,
        width: int,
        height: int = 900,
        scheme: Literal["light", "dark"] = "light",
        medium: Literal["screen", "print"] = "screen",
    ) -> None:
        """Set the viewport in CSS pixels, the colour scheme and the medium."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", media=medium, features=[feature])

    def open(self, place: Path | str) -> None:
        """Open a page, a file or an address, and wait until its charts are drawn."""
        url = place if isinstance(place, str) else place.resolve().as_uri()
        self.send(
            "Page.navigate", url="about:blank"
        )  # an address with another fragment would not load anew
        self.send("Page.navigate", url=url)
        self.wait_until(
            "document.readyState === 'complete' && document.documentElement.dataset.drawn === 'true'"
        )

    def press(self, key: str) -> None:
        """Press and release a key, such as Escape."""
        for kind in ("keyDown", "keyUp"):
            code = KEY_CODES[key]
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def problems(self, allowed: str) -> list[Any]:
        """Return console errors, exceptions and requests to addresses that do not match `allowed`."""
        found: list[Any] = []
        for event in self.events:
            details = event["params"]
            is_error = {
                "Runtime.exceptionThrown": lambda one: True,
                "Runtime.consoleAPICalled": lambda one: one["type"] in ("error", "assert"),
                "Log.entryAdded": lambda one: one["entry"]["level"] == "error",
            }.get(event["method"])
            if is_error is not None and is_error(details):
                found.append(details)
            if event["method"] == "Network.requestWillBeSent":
                url = details["request"]["url"]
                if not re.match(allowed, url):
                    found.append(url)
        return found

    def screenshot(self, *, height: int | None = None) -> bytes:
        """Return a PNG of the top of the page, `height` CSS pixels high or the whole page."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        height = int(min(height or size["height"], size["height"]))
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height, "scale": 1}
        shot = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def pdf(self) -> bytes:
        """Return the page as it is printed on A4."""
        self.send(
            "Emulation.setEmulatedMedia", media=""
        )  # an emulated medium also applies to a print
        printed = self.send(
            "Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True
        )
        return base64.b64decode(printed["data"])

    def close(self) -> None:
        for end in (self._from, self._to):
            end.close()


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium and end it afterwards."""
    if CHROMIUM is None:
        raise FileNotFoundError(MISSING)
    to_child, from_parent = os.pipe()
    to_parent, from_child = os.pipe()
    # Chromium reads commands from file descriptor 3 and writes answers to 4.
    place_pipes = f'exec "$0" "$@" 3<&{to_child} 4>&{from_child}'
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            ["bash", "-c", place_pipes, CHROMIUM, *OPTIONS, f"--user-data-dir={profile}"],
            pass_fds=(to_child, from_child),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        try:
            browser = Browser(to_parent, from_parent)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            process.terminate()
            process.wait(30)
