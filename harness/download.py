"""Downloads that arrive whole and right, or not at all.

A file is written to a temporary sibling, hashed as it comes, transformed where the catalogue says so, hashed again, and
only then gets its name.
"""

import errno
import gzip
import hashlib
import os
from pathlib import Path

from core.errors import DiskFull, HashMismatch, MissingInput
from core.stage import require_free_space
from harness.transforms import TRANSFORMS

TIMEOUT_SECONDS = 60
_CHUNK = 1 << 20


def download(
    url: str, target: Path, expected: str | None, transform: str | None = None, content_sha256: str | None = None
) -> str:
    """Fetch `url` to `target`; return the sha256 (hex) of the bytes as they arrived.

    `expected` is their sha256 (None: not known yet); with a `transform` the file's content must have `content_sha256`.
    Raises MissingInput when the file cannot be had, HashMismatch when it is another (nothing is kept), DiskFull.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        arrived = _stream(url, part, target)
        if expected and arrived != expected:
            raise HashMismatch(_refused(url, expected, arrived))
        if transform:
            content = TRANSFORMS[transform](part.read_bytes())
            found = hashlib.sha256(gzip.decompress(content) if target.suffix == ".gz" else content).hexdigest()
            if found != content_sha256:
                raise HashMismatch(_refused(f"{url} after {transform}", content_sha256, found))
            part.write_bytes(content)
        with open(part, "rb") as handle:
            os.fsync(handle.fileno())
        part.replace(target)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DiskFull(f"The disk of {target.parent} is full; free space there or set HARNESS_HOME to another disk.") from error
    finally:
        part.unlink(missing_ok=True)
    return arrived


def _stream(url: str, part: Path, target: Path) -> str:
    """Write the body of `url` to `part`; return its sha256 (hex)."""
    import urllib.error  # slow to import, and most runs find their files here
    import urllib.request

    request = urllib.request.Request(url, headers={"User-Agent": "rlhf-harness"})
    token = hub_token() if url.startswith(hub_endpoint() + "/") else None
    if token:
        # Unredirected: the hub sends large files from another host, which must never see the token.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    digest, received = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response, open(part, "wb") as handle:
            announced = int(response.headers.get("Content-Length") or 0)
            require_free_space(target.parent, announced, f"The download of {target.name}")
            while chunk := response.read(_CHUNK):
                handle.write(chunk)
                digest.update(chunk)
                received += len(chunk)
    except urllib.error.HTTPError as error:
        raise MissingInput(_unavailable(url, f"HTTP {error.code} {error.reason}", target)) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise MissingInput(_unavailable(url, str(getattr(error, "reason", error)) or type(error).__name__, target)) from error
    if received < announced:
        raise MissingInput(_unavailable(url, f"it ended after {received} of {announced} bytes", target))
    return digest.hexdigest()


def hub_endpoint() -> str:
    """Address of the Hugging Face hub, or of the mirror of it that HF_ENDPOINT names."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def hub_token() -> str | None:
    """The user's hub token, if there is one."""
    try:
        from huggingface_hub import get_token
    except ImportError:
        return os.environ.get("HF_TOKEN")
    return get_token()


def _refused(source: str, expected: str, found: str) -> str:
    return (
        f"{source} is not what the catalogue says: its sha256 is {found}, expected {expected}; the download was deleted. "
        "Upstream changed or a proxy interfered: compare by hand, or set HARNESS_DATA to a mirror that holds the right file."
    )


def _unavailable(url: str, reason: str, target: Path) -> str:
    return (
        f"{url} could not be downloaded ({reason}): check the network and run the same command again, or set HARNESS_DATA to "
        f"a mirror, or copy {target} from a machine that has it."
    )
