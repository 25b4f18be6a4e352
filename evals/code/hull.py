"""The host's side of a hull: one bubblewrap with a process in it that forks a contained child for each program.

`sandbox_zygote.py` is its inside. One hull serves all threads of this process; it ends with it. Starting an interpreter and
bubblewrap for each program took three quarters of the time of scoring short ones (`benchmarks/human_eval.py`).

Only the process that waits inside serves several programs. No program can see, signal or freeze it: each is in a PID and a
user namespace below its own.
"""

import array
import atexit
import marshal
import os
import select
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Event, Lock, Thread

from evals.code import bubblewrap
from evals.code.sandbox_report import STARTUP_SECONDS, StartFailed

COMMON_MODULES = (
    "typing",
    "re",
    "collections",
    "functools",
    "math",
    "random",
    "copy",
    "string",
    "itertools",
    "heapq",
    "operator",
)
"""What most programs and tests import: a hull imports it once. Each further module makes every fork slower."""
READY_TIMEOUT = 3.0
"""Seconds that a program may run in a child made ahead (`Hull.make_ahead`): HumanEval's and MBPP's."""
_lock = Lock()
_running: "Hull | None" = None


class Hull:
    """A started bubblewrap and the control socket of the process in it. Raises StartFailed."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process: subprocess.Popen | None = None
        self._failure: BaseException | None = None
        started = Event()
        # --die-with-parent means the thread that starts it: this one lives as long as the hull
        Thread(target=self._hold, args=(theirs, started), daemon=True, name="sandbox-hull").start()
        self._ready: deque[socket.socket] = deque()
        started.wait()
        if self._failure is not None:
            raise StartFailed(str(self._failure))

    def ask(self, timeout: float) -> socket.socket:
        """The socket on which a new child for a program of `timeout` seconds will report. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))]
            self.control.sendmsg([_cpu_seconds(timeout)], rights)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return ours

    def make_ahead(self, count: int) -> None:
        """Ask for children for programs that are not known yet. Raises OSError."""
        for _ in range(count):
            self._ready.append(self.ask(READY_TIMEOUT))

    def child(self, timeout: float) -> socket.socket:
        """One made ahead, where it fits, else a new one. Raises OSError."""
        if _cpu_seconds(timeout) == _cpu_seconds(READY_TIMEOUT):
            with suppress(IndexError):
                return self._ready.popleft()
        return self.ask(timeout)

    def _hold(self, theirs: socket.socket, started: Event) -> None:
        try:
            with in_memory(_code()) as source:
                uid = bubblewrap.NOBODY if os.geteuid() == 0 else os.getuid()
                start = (
                    f"import marshal, os; code = os.pread({source}, {len(_code())}, 0); os.close({source}); "
                    f"zygote, child = marshal.loads(code); exec(child); serve_one = serve; exec(zygote); "
                    f"main(serve_one, {theirs.fileno()}, {uid}, {bubblewrap.WRITABLE_BYTES}, {COMMON_MODULES!r})"
                )
                self.process = subprocess.Popen(
                    [*bubblewrap.around_many(), "--", bubblewrap.python(), "-I", "-S", "-c", start],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(source, theirs.fileno()),
                    cwd="/",
                    env={},
                    start_new_session=True,
                    **bubblewrap.identity(),
                )
        except BaseException as error:
            self._failure = error
            return
        finally:
            theirs.close()
            started.set()
        self.process.wait()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def close(self) -> None:
        """Let the inside end, and all that is left in it with it."""
        self.control.close()
        for link in self._ready:
            link.close()
        if self.process is not None:
            self.process.kill()  # unless `_hold` reaped it just now; what is inside dies with it (--die-with-parent)
            self.process.wait()


def current() -> Hull:
    """This process's hull, started anew when there is none or its end came. Raises StartFailed."""
    global _running
    with _lock:
        if _running is None or not _running.alive:
            if _running is not None:
                _running.close()
            _running = Hull()
        return _running


@atexit.register
def close() -> None:
    """End this process's hull, if there is one; the next program starts another."""
    global _running
    with _lock:
        if _running is not None:
            _running.close()
        _running = None


@contextmanager
def child(timeout: float) -> Iterator[socket.socket]:
    """A contained process that waits for its program: the socket to its checker. No process of it is left afterwards.

    Raises StartFailed when the hull is gone or cannot contain a child.
    """
    try:
        ours = current().child(timeout)
    except OSError as error:
        raise StartFailed(f"the hull is gone: {error}") from None
    pidfd = None
    try:
        pidfd, said = _pidfd(ours)
        if said:
            raise StartFailed(said)
        yield ours
    finally:
        ours.close()
        if pidfd is not None:
            with suppress(ProcessLookupError):  # ended and reaped: then all else in its namespace ended before
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], 10.0)  # PID 1 of a namespace ends after all else in it
            os.close(pidfd)


def _cpu_seconds(timeout: float) -> bytes:
    """The limit of processor time, in the form of a request: more than a program can use that ends in time."""
    return str(int(timeout) + 2).encode()


def _pidfd(link: socket.socket) -> tuple[int, str]:
    """(pidfd of the child, what it said instead of starting). Raises StartFailed."""
    link.settimeout(STARTUP_SECONDS)
    said = b""
    while True:
        try:
            data, ancillary, _, _ = link.recvmsg(4096, socket.CMSG_SPACE(4))
        except OSError as error:
            raise StartFailed(f"the hull did not answer: {error}") from None
        if not data:
            raise StartFailed(said[1:].decode(errors="replace") or "the hull could not fork")
        if ancillary:
            return int.from_bytes(ancillary[0][2][:4], "little"), (said + data[:-1])[1:].decode(errors="replace")
        said += data


@contextmanager
def in_memory(content: bytes) -> Iterator[int]:
    """A descriptor of an unnamed file with this content."""
    descriptor = os.memfd_create("sandbox")
    try:
        os.write(descriptor, content)
        yield descriptor
    finally:
        os.close(descriptor)


@cache
def _code() -> bytes:
    """The two programs of the inside, compiled."""
    folder = Path(__file__).parent
    return marshal.dumps(
        tuple(compile((folder / name).read_text(), name, "exec") for name in ("sandbox_zygote.py", "sandbox_child.py"))
    )
