"""A process that has imported the training libraries, and forks one child for each stage that a test runs.

    python -m tests.warm_process        requests on stdin, one JSON object a line; exit codes on stdout

Importing them takes six seconds of CPU, most of the time of a stage at a test's size. The stage still is a process of its own,
with the caller's environment and arguments, run as `python -m` runs it; the whole road (`test_road.py`) starts real ones.
"""

import atexit
import gc
import json
import os
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path

PROGRAMS = {"train.sft", "train.reward", "train.dpo", "train.reference", "train.generate", "train.annotate", "evals.answer"}
"""What imports the libraries anyway."""
ROOT = Path(__file__).resolve().parent.parent


def run(program: str, arguments: list[str], output: Path) -> int:
    """Exit code of `python -m program *arguments` (negative: the signal that ended it); all it prints goes to `output`."""
    server = _server()
    request = {"program": program, "arguments": arguments, "output": str(output), "environment": dict(os.environ)}
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    if not answer:
        raise AssertionError(f"the warm process ended with {server.wait()}")
    return int(answer)


@cache
def _server() -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.warm_process"]
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.stdin.close)
    return server


def main() -> None:
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Trainer  # noqa: F401
    from trl import SFTTrainer  # noqa: F401

    names = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    if len(names) > 1 + names.count("jemalloc_bg_thd"):  # pyarrow's allocator starts its own anew
        raise SystemExit(f"threads {names}: a fork would lose all but one")
    gc.collect()
    gc.freeze()  # else each child's collections write to, and so copy, all of it
    while line := sys.stdin.readline():
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            return _become(**request)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def _become(program: str, arguments: list[str], output: str, environment: dict[str, str]) -> None:
    """The child: from here on the program."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
