"""The dashboard as a process and a real Chromium to see it, with what a page did wrong collected on the way."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SERVE = "import sys; from dashboard.serve import main; main(sys.argv[1], int(sys.argv[2]))"
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update"]


@dataclass
class Faults:
    """What must stay empty."""

    foreign: list[str] = field(default_factory=list)
    """Requests to any other host."""
    errors: list[str] = field(default_factory=list)
    """Uncaught exceptions, dialogs, and console errors."""


@contextmanager
def open_page(folder: Path, origin: str, **options: Any) -> Iterator[tuple[Any, Faults]]:
    """A page with a profile of its own under `folder`. Needs playwright, and chromium on the PATH."""
    from playwright.sync_api import sync_playwright

    faults = Faults()
    with sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            folder / "profile", executable_path=shutil.which("chromium"), args=ARGUMENTS, downloads_path=folder, **options
        )
        page = context.pages[0]
        page.on("request", lambda request: _foreign(request.url, origin, faults))
        page.on("pageerror", lambda error: faults.errors.append(str(error)))
        page.on("console", lambda message: _console(message, faults))
        page.on("dialog", lambda dialog: (faults.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        yield page, faults
        context.close()


def _foreign(url: str, origin: str, faults: Faults) -> None:
    if not url.startswith((f"{origin}/", f"{origin.replace('http', 'ws', 1)}/", "data:", "blob:")):
        faults.foreign.append(url)


def _console(message: Any, faults: Faults) -> None:
    # Streamlit finds its base path by asking below the page's own path first: that 404 is its way, not a fault.
    if message.type == "error" and "/_stcore/" not in (message.location or {}).get("url", ""):
        faults.errors.append(message.text)


@contextmanager
def serving(url: str) -> Iterator[str]:
    """The dashboard of the registry at `url` as its own process; gives its origin."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, url, str(port)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    origin = f"http://127.0.0.1:{port}"
    try:
        _wait_until_healthy(origin, process)
        yield origin
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_healthy(origin: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, "the dashboard ended at once"
        try:
            with urllib.request.urlopen(f"{origin}/_stcore/health", timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError("the dashboard did not answer within 90 s")
