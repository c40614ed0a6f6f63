"""A headless Chromium for tests, driven over its DevTools protocol."""

import base64
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-port=0",
)
_KEYS = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowRight": 39}


def program() -> str | None:
    """The browser that is installed, None = none."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Browser:
    """One page; what it logs as an error and throws is kept in `errors`, what it asks for in `requests`."""

    def __init__(self, path: str, folder: Path) -> None:
        """`folder`: empty, for its profile."""
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._number = 0
        self._process = subprocess.Popen(
            [path, *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        told = folder / "DevToolsActivePort"
        self._until(lambda: told.is_file() and len(told.read_text().splitlines()) == 2)
        port, place = told.read_text().splitlines()
        self._socket = connect(f"ws://127.0.0.1:{port}{place}", max_size=None)
        self._session = ""
        target = next(one for one in self("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self._session = self("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **values: Any) -> dict[str, Any]:
        """Send a command; returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            value = json.loads(self._socket.recv(timeout=60))
            if value.get("id") == self._number:
                if "error" in value:
                    raise RuntimeError(f"{method}: {value['error']['message']}")
                return value["result"]
            self._note(value)

    def _note(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"])[:500])
        elif event.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif event.get("method") == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])

    def size(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        """Of the window; a phone has a touch screen of twice the density."""
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            mobile=phone,
            deviceScaleFactor=2 if phone else 1,
        )
        media = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self("Emulation.setEmulatedMedia", features=media)

    def open(self, url: str) -> None:
        """Go to a page and wait until it has been loaded."""
        self("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited."""
        found = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:500])
        return found["result"].get("value")

    def wait(self, script: str) -> None:
        """Until an expression is true."""
        self._until(lambda: self.run(f"Boolean({script})"), script)

    def text(self, selector: str) -> str:
        """What a person reads there."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def press(self, key: str) -> None:
        """A key of _KEYS, or text to type."""
        if key not in _KEYS:
            self("Input.insertText", text=key)
            return
        event = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {"text": " "} if key == " " else {}
        self("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self("Input.dispatchKeyEvent", type="keyUp", **event)

    def choose(self, selector: str, files: list[Path]) -> None:
        """Put files into a file input."""
        root = self("DOM.getDocument")["root"]["nodeId"]
        node = self("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in files])

    def screenshot(self, path: Path) -> None:
        """The whole page, as PNG."""
        found = self("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        """End the browser."""
        self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=30)

    def _until(self, holds: Any, what: str = "the browser's start") -> None:
        last = time.monotonic() + 60
        while not holds():
            if time.monotonic() > last:
                raise TimeoutError(f"not within 60 s: {what}")
            time.sleep(0.05)
