"""Debian's Chromium, driven headless by chromedriver in the words of W3C WebDriver.

https://www.w3.org/TR/webdriver2/
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
IS_THERE = CHROMIUM is not None and DRIVER is not None
PATIENCE_S = 30.0
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key of an element's id, by the standard."""
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--no-first-run",
)


class Chromedriver:
    """The process by which browsers are driven."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/status", timeout=5):
                    return
            except OSError:
                assert time.monotonic() < deadline, "chromedriver does not start"
                time.sleep(0.1)

    def stop(self) -> None:
        """End it; browsers were closed before."""
        self._process.terminate()
        self._process.wait(10)


class Browser:
    """One user's browser, with a profile of its own.

    Args:
        driver: which drives it.
        profile: an empty directory.
        size: of the window, in CSS pixels.
    """

    def __init__(
        self, driver: Chromedriver, profile: Path, size: tuple[int, int] = (1280, 900)
    ) -> None:
        chrome = {
            "binary": CHROMIUM,
            "args": [*OPTIONS, f"--user-data-dir={profile}", "--window-size={},{}".format(*size)],
        }
        wanted = {"browserName": "chrome", "goog:chromeOptions": chrome}
        self._base = f"{driver.url}/session"
        self._base += (
            "/" + self._ask("POST", "", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        )

    def open(self, url: str) -> None:
        """Go to an address."""
        self._ask("POST", "/url", {"url": url})

    def reload(self) -> None:
        """As F5."""
        self._ask("POST", "/refresh", {})

    def text(self, css: str = "body") -> str:
        """What is to be read in the first element that is so."""
        return str(self._ask("GET", f"/element/{self._find(css)}/text"))

    def count(self, css: str) -> int:
        """How many elements are so."""
        return len(self._ask("POST", "/elements", {"using": "css selector", "value": css}))

    def click(self, css: str) -> None:
        """Click it."""
        self._ask("POST", f"/element/{self._find(css)}/click", {})

    def type(self, css: str, text: str) -> None:
        """Type into it."""
        self._ask("POST", f"/element/{self._find(css)}/value", {"text": text})

    def accept(self) -> str:
        """Say yes to the dialog, and return what it asked."""
        asked = str(self._ask("GET", "/alert/text"))
        self._ask("POST", "/alert/accept", {})
        return asked

    def run(self, script: str) -> Any:
        """What a function of this body returns."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def tell(self, command: str, **words: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": words})

    def wait_for(self, words: str, css: str = "body") -> None:
        """Wait until the words are to be read."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                shown = self.text(css)
            except RuntimeError as error:
                # It is replaced by a newer one just now, or is not there yet.
                shown = str(error)
            if words in shown:
                return
            assert time.monotonic() < deadline, f"{words!r} is not to be read in {shown!r}"
            time.sleep(0.05)

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self.tell("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """Close it."""
        self._ask("DELETE", "")

    def _find(self, css: str) -> str:
        return str(self._ask("POST", "/element", {"using": "css selector", "value": css})[ELEMENT])

    def _ask(self, verb: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data=data, method=verb)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from error
