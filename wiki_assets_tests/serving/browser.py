"""A real browser for tests: Chromium without a window, driven through its own DevTools protocol."""

import base64
import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from wiki_assets_tests.processes import running, wait_until

CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
)
_KEYS = {"Enter": 13, "Escape": 27, "ArrowUp": 38, "ArrowDown": 40, "Tab": 9, "/": 191}


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.problems: list[str] = []  # errors, and what the content security policy refused
        self.requested: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol; return its result."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=30))
            self._note(message)
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])

    def show(self, *, width: int, height: int = 800, dark: bool = False, phone: bool = False) -> None:
        """Look like a screen of this size, in CSS pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone,
        )  # fmt: skip
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Go to an address, and wait until it is there."""
        self.send("Page.navigate", url=url)
        self.until(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url)})")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, script: str, within_s: float = 30) -> None:
        """Wait until an expression is true in the page."""

        def asked() -> bool:
            try:
                return self.run(f"Boolean({script})")
            except AssertionError:  # between two pages there is nothing to ask
                return False

        wait_until(asked, within_s=within_s, what=script)

    def type(self, text: str) -> None:
        """Type where the focus is, letter by letter; a page just opened may still be giving it."""
        self.until("document.activeElement?.matches('input')")
        for letter in text:
            self.send("Input.dispatchKeyEvent", type="keyDown", text=letter, key=letter)
            self.send("Input.dispatchKeyEvent", type="keyUp", key=letter)

    def press(self, key: str) -> None:
        """Press a key that writes nothing."""
        code = _KEYS[key]
        text = {"text": "\r"} if key == "Enter" else {}
        both: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **both, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **both)

    def picture(self, path: Path) -> Path:
        """What is to be seen, as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))
        return path


@contextmanager
def browsing(folder: Path) -> Iterator[Page]:
    """A browser with one tab, which keeps what it must in `folder`."""
    assert CHROMIUM, "no Chromium on this machine"
    profile = folder / "profile"
    profile.mkdir(parents=True)
    port_file = profile / "DevToolsActivePort"
    command = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with running(command, env={"HOME": str(folder)}, log=folder / "chromium.log") as process:

        def port() -> str | None:
            assert process.poll() is None, (folder / "chromium.log").read_text()
            lines = port_file.read_text().splitlines() if port_file.exists() else []
            return lines[0] if len(lines) > 1 else None

        address = f"http://127.0.0.1:{wait_until(port, within_s=60, what='the browser')}"
        tabs = httpx.get(f"{address}/json/list", timeout=30).json()
        tab = next(t for t in tabs if t["type"] == "page")
        with connect(tab["webSocketDebuggerUrl"], max_size=64 << 20, proxy=None) as socket:
            yield Page(socket)
