"""The command that contains a process: every namespace its own, a read-only view of the system, an empty environment.

The file system is a read-only view of the system folders and of this very interpreter, with a small writable /tmp and
/dev/shm. RLIMIT_NPROC does not bind root, so root first becomes nobody.
"""

import atexit
import hashlib
import os
import shutil
import stat
import sys
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

NOBODY = 65534
WRITABLE_BYTES = 64 << 20


def python() -> str:
    """The interpreter inside: this very one."""
    return os.path.realpath(sys.executable)


@cache
def alone() -> tuple[str, ...]:
    """bwrap(1) and its arguments around one program: no capability, and no further user namespaces.

    The program is PID 1: of bubblewrap itself no process stays inside.
    """
    return (*_arguments(), "--disable-userns", "--cap-drop", "ALL", "--as-pid-1", "--chdir", "/tmp")


@cache
def around_many() -> tuple[str, ...]:
    """The same around a process that contains each program anew (`sandbox_zygote.py`).

    It has the capabilities of its own user namespace, which are none outside of it: it must mount and make namespaces.
    What it does not replace for each program is read-only.
    """
    return (*_arguments(), "--uid", "0", "--gid", "0", "--cap-add", "ALL", "--remount-ro", "/dev", "--chdir", "/")


def identity() -> dict:
    """Popen arguments that turn root into nobody."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


@cache
def _arguments() -> tuple[str, ...]:
    arguments = [shutil.which("bwrap") or "bwrap"]
    arguments += ["--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--clearenv"]
    arguments += ["--hostname", "sandbox", "--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        folder = Path("/") / name
        if folder.is_symlink():
            arguments += ["--symlink", os.readlink(folder), str(folder)]
        elif folder.is_dir():
            arguments += ["--ro-bind", str(folder), str(folder)]
    base = Path(os.path.realpath(sys.base_prefix))
    if not base.is_relative_to("/usr"):
        arguments += ["--ro-bind", str(_readable(base)), str(base)]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    for folder in ("/tmp", "/dev/shm"):
        arguments += ["--size", str(WRITABLE_BYTES), "--tmpfs", folder]
    # bubblewrap's root is itself a tmpfs without a size limit
    return (*arguments, "--remount-ro", "/")


def _readable(base: Path) -> Path:
    """`base`, or a copy of the interpreter where nobody can read it (root's home is closed to others).

    The copy is made of hard links and kept for the next process: making and removing it takes longer than running a hundred
    programs. Its name changes with the interpreter; a folder of that name that others could have written to is not used.
    """
    if os.geteuid() != 0 or all(folder.stat().st_mode & 0o001 for folder in [base, *base.parents]):
        return base
    stdlib = Path(sysconfig.get_path("stdlib", vars={"installed_base": str(base)}))
    about = [str(base), sys.version, Path(python()).stat().st_mtime_ns, Path(python()).stat().st_ino, stdlib.stat().st_mtime_ns]
    kept = Path(tempfile.gettempdir()) / f"sandbox-python-{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}"
    if _only_ours(kept):
        return kept
    copy = Path(tempfile.mkdtemp(prefix="sandbox-python-"))
    copy.chmod(0o755)
    unneeded = shutil.ignore_patterns("test", "site-packages", "config-*", "ensurepip", "idlelib", "tkinter", "turtledemo", "*.a")
    for folder in {stdlib, base / "lib", base / "bin"}:
        target = copy / folder.relative_to(base)
        if folder.name.startswith("python"):
            shutil.copytree(folder, target, ignore=unneeded, symlinks=True, copy_function=_link_or_copy)
            continue
        target.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            if file.is_file() and (".so" in file.name or file.name.startswith("python")):
                _link_or_copy(file, target / file.name)
    try:
        copy.rename(kept)
    except OSError:  # another process was faster, or a stranger has the name
        if not _only_ours(kept):
            atexit.register(shutil.rmtree, copy, ignore_errors=True)
            return copy
        shutil.rmtree(copy, ignore_errors=True)
    return kept


def _only_ours(folder: Path) -> bool:
    """Whether it is a folder that this user alone can have written."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system, or links to foreign files are forbidden
        shutil.copy2(source, target, follow_symlinks=False)
