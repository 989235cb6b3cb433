"""Drives a headless Chromium through its DevTools protocol: a WebSocket, JSON both ways, nothing between."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from launch import end_session, start

LIMIT = 60.0  # seconds; for what hangs
NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-proxy-server", "--remote-debugging-port=0", "--window-size=1000,900",
)  # fmt: skip


class Page:
    """One tab. `requests` are the addresses that it asked for, `errors` what its scripts threw or logged."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._loaded = 0
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """The result; what happens meanwhile is noted."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=LIMIT))
            if message.get("id") == self._number:
                assert "error" not in message, (method, message)
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(json.dumps(params["entry"]))
        elif method == "Page.loadEventFired":
            self._loaded += 1

    def open(self, address: str) -> None:
        """Returns when the page is loaded."""
        before, deadline = self._loaded, time.monotonic() + LIMIT
        self.call("Page.navigate", url=address)
        while self._loaded == before:
            assert time.monotonic() < deadline, f"{address} does not load"
            self._note(json.loads(self._socket.recv(timeout=LIMIT)))

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript, awaited."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in result, (script, result)
        return result["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """Its value, once that is true."""
        deadline = time.monotonic() + LIMIT
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.05)
        return value

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the element."""
        where = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{where}.scrollIntoView({{block: 'center'}})")
        box = self.run(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({where}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            place = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, **place)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)


@contextmanager
def chromium_page() -> Iterator[Page]:
    """A tab of a browser of its own; the test is skipped where there is none."""
    connect = pytest.importorskip("websockets.sync.client", reason="websockets is not installed").connect
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as log:
        process = start([program, *OPTIONS, f"--user-data-dir={home}", "about:blank"], None, log, log)
        try:
            address = _tab(Path(home, "DevToolsActivePort"), process)
            with connect(address, max_size=None, compression=None, proxy=None) as socket:
                yield Page(socket)
        finally:
            end_session(process)


def _tab(file: Path, process: Any) -> str:
    """The WebSocket of a new tab, as soon as the browser listens."""
    deadline = time.monotonic() + LIMIT
    while not (file.exists() and file.read_text().count("\n")):
        assert process.poll() is None, f"Chromium ended with {process.returncode}"
        assert time.monotonic() < deadline, "Chromium does not listen"
        time.sleep(0.02)
    port = file.read_text().split()[0]
    request = Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
    with urlopen(request, timeout=LIMIT) as answer:
        address: str = json.load(answer)["webSocketDebuggerUrl"]
    return address
