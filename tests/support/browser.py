"""Chromium without a window, spoken to through its pipe: screens, media, what a page measures."""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.tools import require_tool

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"),
    "--remote-debugging-pipe",
)


class Browser:
    """One page. `open` waits until its script is done."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = os.fdopen(to, "wb"), os.fdopen(back, "rb")
        self._numbers = itertools.count(1)
        self._pending = b""
        self._session = ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self._call("Page.enable")

    def open(self, page: Path, *, width: int = 1300, height: int = 1000) -> None:
        """Show a file on a screen of so many pixels."""
        self.resize(width, height)
        self._call("Page.navigate", url=page.as_uri())
        while self._message().get("method") != "Page.loadEventFired":
            pass

    def resize(self, width: int, height: int = 1000) -> None:
        """Give the page another screen."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **metrics)

    def media(self, name: str = "", *, dark: bool = False) -> None:
        """Show the page as on `print`, or to whoever likes it dark."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media=name, features=[scheme])

    def evaluate(self, script: str) -> Any:
        """The value of a script, as JSON has it."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def dom(self) -> str:
        """The document as it is now."""
        return str(self.evaluate("document.documentElement.outerHTML"))

    def picture(self) -> bytes:
        """The whole page, as PNG."""
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    def printed(self) -> bytes:
        """The page as printed, as PDF."""
        answer = self._call("Page.printToPDF", printBackground=False)
        return base64.b64decode(answer["data"])

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._message()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            data = self._back.read1(1 << 16)
            assert data, "Chromium has ended"
            self._pending += data
        text, _, self._pending = self._pending.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def close(self) -> None:
        """Let go of the pipe, at which Chromium ends."""
        self._to.close()
        self._back.close()


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser whose profile lies in `folder`, with no network to ask."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # It reads descriptor 3 and writes to 4, which a shell can give it.
    shell = 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null'
    profile = f"--user-data-dir={folder / 'profile'}"
    process = subprocess.Popen(
        ["sh", "-c", shell, "sh", str(require_tool("chromium")), *_FLAGS, profile],
        stdin=theirs_in,
        stdout=theirs_out,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        browser = Browser(ours_out, ours_in)
        try:
            yield browser
        finally:
            browser.close()
        process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()
