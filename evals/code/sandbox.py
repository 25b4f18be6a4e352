"""Runs generated code in bubblewrap: one sandbox per program, no network, no files of ours, hard limits.

Contained: every namespace is unshared, the file system is a read-only view of the system folders and of this very
interpreter, with a small writable /tmp; no further user namespaces can be made; the environment is empty; a program is
killed with all its descendants when its time is up. Inside, the tests run in a process of their own that calls the
generated code's functions through a pipe (`sandbox_child.py`): it alone holds the expected values and the random token
that means "passed". Memory is limited per process, not per sandbox.

Where the kernel lets namespaces nest, a sandbox is made within an outer one by a process that waits there (`hull.py`), which
spares each program the start of bubblewrap and of an interpreter; elsewhere each has a bubblewrap of its own. Both contain
alike. Uncontained (`unsafe_exec`) none of this is promised but the time limit.
"""

import json
import marshal
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import BoundedSemaphore, Thread

from core.errors import SandboxUnavailable
from evals.code import bubblewrap, hull
from evals.code.sandbox_report import Outcome, StartFailed, watch

BUBBLEWRAP = "bubblewrap"
UNSAFE = "unsafe_exec"
TESTS = "apart-1"
"""How programs are tested: part of the identity of a verdict. 1: tests in a process of their own."""
_INSTALL = "install it with `apt-get install bubblewrap` (0.8 or newer), or set unsafe_exec to run generated code uncontained"


@dataclass(frozen=True)
class Program:
    """Code that nobody trusts, and the tests that it must pass."""

    code: str
    tests: str = ""
    """Python that calls the code's functions; runs apart from them. It may use `harness` (`sandbox_child.Tools`)."""
    names: tuple[str, ...] = ()
    """Names that the tests take from the code: functions, classes and values."""
    given: str = ""
    """Definitions of the problem that the tests use: run before them; `names` replace those of the same name."""
    data: bytes = b""
    """What the tests find as `harness.data`."""


@cache
def probe() -> str:
    """The mode in which code can be contained here ("bubblewrap"), checked by running one program.

    Raises SandboxUnavailable, naming the fix, when bubblewrap is absent, too old, or denied user namespaces.
    """
    if shutil.which("bwrap") is None:
        raise SandboxUnavailable(f"Generated code cannot be contained: bubblewrap is not installed; {_INSTALL}.")
    if nests():
        return BUBBLEWRAP
    if "--disable-userns" not in subprocess.run(["bwrap", "--help"], capture_output=True, text=True).stdout:
        raise SandboxUnavailable(
            f"Generated code cannot be contained: this bubblewrap is too old (no --disable-userns); {_INSTALL}."
        )
    try:
        outcome = run_program("", timeout=10.0, mode=BUBBLEWRAP)
    except PermissionError as error:  # root of a user namespace that maps no other user
        outcome = Outcome("error", f"cannot become user {bubblewrap.NOBODY}: {error}", 0.0)
    if not outcome.passed:
        raise SandboxUnavailable(
            f"Generated code cannot be contained: bubblewrap fails here ({outcome.detail.strip() or outcome.status}); allow user "
            "namespaces (`sysctl -w user.max_user_namespaces=10000 kernel.apparmor_restrict_unprivileged_userns=0`, or run the "
            "container with a seccomp profile that permits them), or set unsafe_exec to run generated code uncontained."
        )
    return BUBBLEWRAP


@cache
def nests() -> bool:
    """Whether sandboxes can be made within one hull here, checked by running one program in one."""
    try:
        return _run(Program(""), hull.READY_TIMEOUT, hull.child(hull.READY_TIMEOUT), nullcontext()).passed
    except (OSError, StartFailed):
        return False


def prepare(ahead: int = 32) -> None:
    """Start, on the side, what the first program would wait for, and make sandboxes for so many.

    A failure is left for `probe` to explain.
    """

    def start() -> None:
        with suppress(StartFailed, OSError):
            hull.current().make_ahead(ahead)

    Thread(target=start, daemon=True).start()


def run_program(
    program: Program | str, timeout: float = 3.0, mode: str = BUBBLEWRAP, slot: AbstractContextManager = nullcontext()
) -> Outcome:
    """Run one program; it passes when code and tests run to their end within `timeout` seconds of wall time.

    A string is code without tests. The clock starts when the program does, not when the sandbox does; `slot` is held while
    it runs. No process of it is left when this returns.
    """
    if isinstance(program, str):
        program = Program(program)
    sandbox = hull.child(timeout) if mode == BUBBLEWRAP and nests() else _alone(mode, timeout, _imports(program))
    try:
        return _run(program, timeout, sandbox, slot)
    except StartFailed as error:
        return Outcome("error", str(error), 0.0)


def run_many(
    programs: Sequence[Program | str],
    timeout: float | Sequence[float] = 3.0,
    mode: str = BUBBLEWRAP,
    workers: int | None = None,
) -> list[Outcome]:
    """Run programs side by side (default: one per core); a timeout or a sandbox error counts only after one more run alone.

    `timeout` is one for all, or one for each. While some run, the sandboxes of the next are made and those of the last
    cleared away: the kernel lets both wait more than work.
    """
    limits = list(timeout) if isinstance(timeout, Sequence) else [timeout] * len(programs)
    running = workers or len(os.sched_getaffinity(0))
    slots = BoundedSemaphore(running)
    with ThreadPoolExecutor(2 * running) as pool:
        outcomes = list(pool.map(lambda program, limit: run_program(program, limit, mode, slots), programs, limits))
    return [
        run_program(program, limit, mode) if outcome.status in ("timeout", "error") else outcome
        for program, limit, outcome in zip(programs, limits, outcomes, strict=True)
    ]


def _run(
    program: Program, timeout: float, sandbox: AbstractContextManager[socket.socket], slot: AbstractContextManager
) -> Outcome:
    token = secrets.token_hex(16).encode()
    parts = (token, program.code, program.given, program.tests, program.names, program.data)
    message = marshal.dumps(parts)
    with sandbox as link, slot:
        return watch(link, len(message).to_bytes(8, "little") + message, token, timeout)


@contextmanager
def _alone(mode: str, timeout: float, imports: tuple[str, ...]) -> Iterator[socket.socket]:
    """A sandbox with a bubblewrap of its own, or none: the socket to its checker. Raises StartFailed."""
    ours, theirs = socket.socketpair()
    info_in, info_out = os.pipe()
    with hull.in_memory(_child_code()) as source:
        start = (
            f"import marshal, os; code = os.pread({source}, {len(_child_code())}, 0); os.close({source}); "
            f"exec(marshal.loads(code)); serve({theirs.fileno()}, {int(timeout) + 2}, {imports!r})"
        )
        command = [bubblewrap.python(), "-I", "-S", "-c", start]
        if mode == BUBBLEWRAP:
            command = [*bubblewrap.alone(), "--info-fd", str(info_out), "--", *command]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(source, theirs.fileno(), info_out),
                cwd="/",
                env={},
                start_new_session=True,
                # uncontained, root stays: nobody may not be able to read the interpreter
                **(bubblewrap.identity() if mode == BUBBLEWRAP else {}),
            )
        except BaseException:
            ours.close()
            os.close(info_in)
            raise
        finally:
            theirs.close()
            os.close(info_out)
    try:
        yield ours
    except StartFailed as error:
        os.set_blocking(process.stderr.fileno(), False)
        said = (process.stderr.read(4096) or b"").decode(errors="replace").strip()
        raise StartFailed(said or str(error)) from None
    finally:
        ours.close()
        _kill(process, info_in)
        os.close(info_in)
        process.stderr.close()


def _kill(process: subprocess.Popen, info: int) -> None:
    """Kill the tree and wait for its end.

    Bubblewrap itself may end while the kernel is still clearing the namespace, so the namespace's init, which ends after
    all else in it, is waited for. It is never signalled by number: --die-with-parent kills it, and a number can be reused.
    """
    init = _namespace_init(info)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # not waited for yet, so the number is its own
    process.wait()
    if init is not None:
        select.select([init], [], [], 10.0)
        os.close(init)
    else:
        _await_group(process.pid)


def _await_group(group: int, seconds: float = 10.0) -> None:
    """Wait until no process of a killed group runs: outside of a namespace nothing else tells of the last one's end.

    Zombies do not count: whoever inherits them may reap them late.
    """
    deadline = time.monotonic() + seconds
    while _running(group) and time.monotonic() < deadline:
        time.sleep(0.005)


def _running(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # ended while we looked
            state, _, member_of = entry.read_text().rpartition(")")[2].split()[:3]
            if int(member_of) == group and state not in "ZX":
                return True
    return False


def _namespace_init(info: int) -> int | None:
    """A pidfd of the process that is PID 1 in the sandbox; None when there is none (any more).

    Bubblewrap writes its report before it lets the program start, so the first object is never the program's.
    """
    os.set_blocking(info, False)
    try:
        report = os.read(info, 4096).decode(errors="replace")
    except BlockingIOError:
        return None
    if not report:
        return None
    try:
        return os.pidfd_open(json.JSONDecoder().raw_decode(report.lstrip())[0]["child-pid"])
    except ProcessLookupError:
        return None


def _imports(program: Program) -> tuple[str, ...]:
    """Slow modules that both code and tests may import: imported once, before the sandbox's two processes part."""
    words = set(re.findall(r"^\s*(?:from|import)\s+(\w+)", f"{program.given}\n{program.tests}\n{program.code}", re.MULTILINE))
    return tuple(name for name in hull.COMMON_MODULES if name in words)


@cache
def _child_code() -> bytes:
    """`sandbox_child.py` as a marshalled code object: compiling it takes as long as all else that it does."""
    path = Path(__file__).with_name("sandbox_child.py")
    return marshal.dumps(compile(path.read_text(), path.name, "exec"))
