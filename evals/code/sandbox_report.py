"""What the host hears from a sandbox: the report of `sandbox_child.serve`, read until its end or the deadline."""

import select
import socket
import time
from dataclasses import dataclass

STARTUP_SECONDS = 30.0
REPORT_BYTES = 64 << 10
OUTPUT_BYTES = 256 << 20


class StartFailed(Exception):
    """The sandbox, not the program, is at fault: what it said."""


@dataclass(frozen=True)
class Outcome:
    """What became of one program."""

    status: str
    """passed | failed (it raised or ended early) | timeout | error (the sandbox, not the program, is at fault)."""
    detail: str
    """Tail of the traceback or of the sandbox's message; written by the program, so not to be believed."""
    seconds: float
    output: bytes = b""
    """What the tests left as `harness.output`, where they passed."""

    @property
    def passed(self) -> bool:
        return self.status == "passed"


def watch(link: socket.socket, message: bytes, token: bytes, timeout: float) -> Outcome:
    """Hand the program over and read the report until the token, the end of the process, or the deadline.

    Raises StartFailed when the sandbox ends, or says nothing for `STARTUP_SECONDS`, before the program starts.
    """
    link.settimeout(STARTUP_SECONDS)
    try:
        link.sendall(message)
        received = link.recv(4096)
    except TimeoutError:
        raise StartFailed(f"the sandbox did not start within {STARTUP_SECONDS:g} s") from None
    except OSError as error:  # the other end is closed: it did not live to read the program
        raise StartFailed(f"the sandbox ended before the program started: {error}") from None
    if received[:1] != b"S":
        raise StartFailed(received[1:].decode(errors="replace") or "the sandbox ended before the program started")
    began = time.monotonic()  # the first byte is the child's own: it is sent before the program is compiled
    deadline = began + timeout
    while True:
        seconds = time.monotonic() - began
        if b"T" + token in received:
            return _passed(link, received.partition(b"T" + token)[2], deadline, seconds)
        chunk = _read(link, 4096, deadline)
        if chunk is None:
            return Outcome("timeout", "", time.monotonic() - began)
        received += chunk
        if not chunk or len(received) > REPORT_BYTES:
            detail = received[1:].removeprefix(b"F").decode(errors="replace")[-2000:]
            return Outcome("failed", detail, time.monotonic() - began)


def _passed(link: socket.socket, received: bytes, deadline: float, seconds: float) -> Outcome:
    """The outcome of a program that passed, its output read to the end; `received` is what followed the token."""
    parts, size = [received], len(received)
    while size < 8 or size < 8 + int.from_bytes(b"".join(parts)[:8], "little"):
        chunk = _read(link, 1 << 20, deadline)
        if not chunk or size > OUTPUT_BYTES:
            return Outcome("timeout" if chunk is None else "failed", "the output was cut off", seconds)
        parts.append(chunk)
        size += len(chunk)
        parts = [b"".join(parts)] if size < 4096 else parts
    received = b"".join(parts)
    return Outcome("passed", "", seconds, received[8 : 8 + int.from_bytes(received[:8], "little")])


def _read(link: socket.socket, size: int, deadline: float) -> bytes | None:
    """What there is; b"" once the other end is closed, None when the deadline comes first."""
    left = deadline - time.monotonic()
    if left <= 0 or not select.select([link], [], [], left)[0]:
        return None
    try:
        return link.recv(size)
    except ConnectionResetError:  # killed with unread data: an end like any other
        return b""
