"""vLLM's own OpenAI server as a judge's endpoint: started, health-checked, ended with everything that it started.

    with JudgeServer(checkpoint, name, log) as base_url: ...

Between the stage and vLLM stands a guard process (`python -m evals.judges.server LOG -- COMMAND`), which the kernel tells when
the stage dies, however it dies, and which then kills the whole process group: vLLM's engine runs in a child of its own.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.errors import JudgeError, MissingInput
from core.stage import die_with_parent

START_SECONDS = 900.0
"""A large model takes minutes to load; the server's own end is noticed at once."""
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


class JudgeServer:
    """One server on a free port of 127.0.0.1; a context manager that gives its base URL.

    `settings`: dtype, max_model_len (None: the model's own). `resources`: tensor_parallel, gpu_memory_utilization, threads,
    max_num_seqs, kv_cache_gib. Raises MissingInput without vLLM, JudgeError when the server does not come up.
    """

    def __init__(self, model: Path, name: str, log: Path, settings: Mapping[str, Any], resources: Mapping[str, Any]):
        self.model, self.name, self.log = Path(model), name, Path(log)
        self.settings, self.resources = settings, resources
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> str:
        if find_spec("vllm") is None:
            raise MissingInput("A judge of kind serve needs vLLM; install it (extras gpu or cpu), or use openai:MODEL.")
        port = _free_port()
        command = server_command(self.model, self.name, port, self.settings, self.resources)
        guard = [sys.executable, "-m", "evals.judges.server", str(self.log), "--", *command]
        environment = os.environ | server_environment(self.resources)
        root = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{environment['PYTHONPATH']}" if environment.get("PYTHONPATH") else root
        # A session of its own: Ctrl-C in the terminal reaches the stage first, which ends the server in order.
        self._process = subprocess.Popen(
            guard, stdin=subprocess.DEVNULL, env=environment, start_new_session=True, preexec_fn=die_with_parent
        )
        try:
            self._wait_until_healthy(port)
        except BaseException:
            self.stop()
            raise
        return f"http://127.0.0.1:{port}/v1"

    def __exit__(self, *arguments: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server and everything that it started."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(timeout=2 * _GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def _wait_until_healthy(self, port: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise JudgeError(
                    f"vLLM's server for {self.model.name} ended as it started: {self._last_words()}; its log: {self.log}."
                )
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
                    if reply.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(_POLL_SECONDS)
        raise JudgeError(f"vLLM's server for {self.model.name} was not healthy after {START_SECONDS:.0f} s; its log: {self.log}.")

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if "Error" in line]
        return lines[-1][-300:] if lines else "no error in its log"


def server_command(model: Path, name: str, port: int, settings: Mapping[str, Any], resources: Mapping[str, Any]) -> list[str]:
    """argv of vLLM's server. `--generation-config vllm`: the model's own sampling defaults must not judge."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", name]
    command += ["--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm", "--seed", "0"]
    command += ["--dtype", settings.get("dtype") or "auto"]
    if settings.get("max_model_len"):
        command += ["--max-model-len", str(settings["max_model_len"])]
    for option in ("tensor_parallel", "gpu_memory_utilization", "max_num_seqs"):
        if resources.get(option):
            flag = "tensor-parallel-size" if option == "tensor_parallel" else option.replace("_", "-")
            command += [f"--{flag}", str(resources[option])]
    if not _on_gpu():
        command.append("--enforce-eager")
    return command


def server_environment(resources: Mapping[str, Any]) -> dict[str, str]:
    """Environment of vLLM's server; on a CPU the threads and the cache of `train.vllm_engine`."""
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if not _on_gpu():
        environment |= {
            "OMP_NUM_THREADS": str(resources.get("threads") or os.environ.get("OMP_NUM_THREADS") or os.cpu_count()),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": str(resources.get("kv_cache_gib") or 2),
        }
    return environment


def _on_gpu() -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return True
    return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _guard(log: Path, command: list[str]) -> int:
    """Run `command` in this process group until it ends, or until this process is told to stop or loses its parent."""
    parent = os.getppid()
    process: subprocess.Popen | None = None

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        while process is not None and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    # SIGKILL, set by the stage before exec, would leave vLLM's children behind: SIGTERM can be answered.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent
        )
        while process.poll() is None:
            if os.getppid() != parent:
                end()
            time.sleep(_POLL_SECONDS)
    return process.returncode


if __name__ == "__main__":
    sys.exit(_guard(Path(sys.argv[1]), sys.argv[3:]))
