"""`harness doctor`: does this machine have what a run needs, and if not, what to type."""

import importlib.util
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from core import paths
from core.errors import HarnessError

# One environment holds all of these; other combinations do not fit (trl 1.16 supports vLLM 0.22 to 0.31, and
# vLLM 0.31 pins torch 2.13.0 and transformers below 5.18).
PINNED = {
    "torch": "2.13.0",
    "transformers": "5.17.0",
    "trl": "1.16.0",
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
    "deepspeed": "0.19.8",
    "vllm": "0.31.0",
    "lm-eval": "0.4.13",
    "alpaca-eval": "0.6.6",
    "streamlit": "1.67",
    "sqlalchemy": "2.1",
    "openai": "3.54",
}


@dataclass(frozen=True)
class Finding:
    """One check: state is ok, warn or fail; `fix` is what to type when it is not ok."""

    check: str
    state: str
    found: str
    fix: str = ""


def diagnose(registry_url: str) -> list[Finding]:
    """All checks, in the order in which they are shown."""
    return [_python(), *_versions(), _accelerator(), _sandbox(), _disk(), _data(), _registry(registry_url)]


def as_rows(findings: list[Finding]) -> list[dict[str, str]]:
    return [asdict(finding) for finding in findings]


def _python() -> Finding:
    found = platform.python_version()
    good = (3, 11) <= tuple(map(int, found.split(".")[:2])) < (3, 13)
    return Finding("python", "ok" if good else "fail", found, "" if good else "use Python 3.11 or 3.12")


def _versions() -> list[Finding]:
    findings = []
    for package, wanted in PINNED.items():
        found, name = None, package
        for candidate in (package, f"{package}-cpu") if package == "vllm" else (package,):
            try:
                found, name = version(candidate), candidate
                break
            except PackageNotFoundError:
                continue
        if found is None:
            findings.append(Finding(package, "warn", "not installed", "make setup (CPU), or pip install -e '.[gpu]'"))
        elif found.split("+")[0] == wanted or found.startswith(wanted + "."):
            findings.append(Finding(name, "ok", found))
        else:
            findings.append(Finding(name, "warn", f"{found}, tested with {wanted}", f"pip install '{name}=={wanted}.*'"))
    return findings


def _accelerator() -> Finding:
    """GPUs as the driver lists them; torch is not imported for it."""
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
        if listed.returncode == 0 and listed.stdout.strip():
            return Finding("accelerator", "ok", "; ".join(listed.stdout.strip().splitlines()))
        return Finding("accelerator", "fail", f"nvidia-smi failed: {listed.stderr.strip()[:100]}", "check the NVIDIA driver")
    return Finding("accelerator", "ok", f"none; CPU with {os.cpu_count()} cores (small models only)")


def _sandbox() -> Finding:
    if importlib.util.find_spec("evals.code.sandbox") is None:
        return Finding("sandbox", "warn", "evals is not installed", "pip install -e .")
    from evals.code.sandbox import nests, probe

    try:
        how = "" if nests() else "; namespaces do not nest here, so each program starts a bubblewrap of its own (twice the time)"
        return Finding("sandbox", "ok", f"generated code is contained: {probe()}{how}")
    except HarnessError as error:
        install, allow = "apt-get install bubblewrap (0.8 or newer)", "sysctl -w user.max_user_namespaces=10000"
        return Finding("sandbox", "fail", str(error), f"{allow}, or {install}" if shutil.which("bwrap") else install)


def _disk() -> Finding:
    existing = next(p for p in [paths.home(), *paths.home().parents] if p.exists())
    free = shutil.disk_usage(existing).free / 2**30
    found = f"{free:.0f} GiB free at {paths.home()}"
    good = free >= 10
    return Finding("disk", "ok" if good else "warn", found, "" if good else "the quickstart wants 10 GiB: set HARNESS_HOME")


def _data() -> Finding:
    mirror = paths.data_mirror()
    if mirror is None:
        return Finding("data", "ok", f"downloads go to {paths.data_cache()} (HARNESS_DATA is not set)")
    if not Path(mirror).is_dir():
        return Finding("data", "fail", f"HARNESS_DATA={mirror} is not a directory", "unset HARNESS_DATA or correct it")
    return Finding("data", "ok", f"mirror {mirror}")


def _registry(url: str) -> Finding:
    from sqlalchemy import make_url

    from db import Registry

    shown = make_url(url).render_as_string(hide_password=True)
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return Finding("registry", "ok", f"{shown} (made by the first run)")
    try:
        registry = Registry.open(url, readonly=True)
    except HarnessError as error:
        return Finding("registry", "fail", str(error), "harness db upgrade, or another --db")
    registry.close()
    return Finding("registry", "ok", shown)
