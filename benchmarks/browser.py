"""A headless Chromium, driven over the WebDriver protocol (W3C) with the standard library alone.

Debian: apt-get install chromium chromium-driver. Elsewhere CHROMIUM and CHROMEDRIVER name the two programs.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
)
KEYS = {"Escape": "\ue00c", "Tab": "\ue004", "Enter": "\ue007", "ArrowUp": "\ue013", "ArrowDown": "\ue015"}


def missing_programs() -> str:
    """Which of the two programs is missing; "" if none is."""
    return " and ".join(name for name, path in _programs().items() if path is None)


def _programs() -> dict[str, str | None]:
    names = {"chromium": "CHROMIUM", "chromedriver": "CHROMEDRIVER"}
    return {name: os.environ.get(variable) or shutil.which(name) for name, variable in names.items()}


class Browser:
    """One window."""

    def __init__(self, port: int, size: tuple[int, int]) -> None:
        self._base = f"http://127.0.0.1:{port}"
        options = {"args": [*ARGUMENTS, f"--window-size={size[0]},{size[1]}"], "binary": _programs()["chromium"]}
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self._send("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._base += f"/session/{answer['sessionId']}"

    def _send(self, method: str, path: str, content: Any = None) -> Any:
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._base + path, body, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None

    def go(self, address: str) -> None:
        self._send("POST", "/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """The result of a function body of JavaScript; it may return a promise."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def press(self, *keys: str) -> None:
        """Press keys one after another, in whatever has the focus."""
        actions = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        self._send("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def wait_for(self, script: str, *arguments: Any, seconds: float = 60) -> Any:
        """The first true result of a script."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if result := self.run(script, *arguments):
                return result
            time.sleep(0.05)
        raise TimeoutError(f"not within {seconds} s: {script}")

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page itself, without the window's frame."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": size}
        self._send("POST", "/goog/cdp/execute", command)

    def screenshot(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self._send("GET", "/screenshot"))

    def messages(self) -> list[str]:
        """What the page has written into its console since the last call; errors and refusals are among it."""
        return [f"{entry['level']} {entry['message']}" for entry in self._send("POST", "/se/log", {"type": "browser"})]

    def close(self) -> None:
        self._send("DELETE", "")


@contextmanager
def chromium(size: tuple[int, int] = (1440, 900)) -> Iterator[Browser]:
    """A headless browser, ended with the block."""
    program = _programs()["chromedriver"]
    assert program is not None
    with subprocess.Popen([program, "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        try:
            browser = Browser(_port_of(driver), size)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()


def _port_of(driver: subprocess.Popen[str]) -> int:
    assert driver.stdout is not None
    for line in driver.stdout:
        if "started successfully on port" in line:
            return int(line.split("port")[1].strip(" .\n"))
    raise RuntimeError("chromedriver ended without a port.")
