"""Training programs on several ranks without a launch for each: one process imports the libraries, its forks are the ranks.

    python -m tests.ranks        requests on stdin, one JSON object a line; exit codes on stdout

Importing torch, trl and DeepSpeed takes each rank ten seconds, a training at a test's size two. A rank is a process of its own
with torchrun's variables and a rendezvous port of their own; torchrun itself is started where a test is about the launch.
"""

import atexit
import gc
import json
import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

from tests.warm_process import _become

ROOT = Path(__file__).resolve().parent.parent


def run_ranks(program: str, spec: Path, ranks: int) -> None:
    """`python -m program spec` on this many ranks. Raises AssertionError with the ranks' output where one fails."""
    server = _server()
    outputs = [str(spec.with_suffix(f".rank{rank}.log")) for rank in range(ranks)]
    server.stdin.write(json.dumps({"program": program, "arguments": [str(spec)], "outputs": outputs}) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    codes = json.loads(answer) if answer else [f"the ranks' parent ended with {server.wait()}"]
    logs = "\n".join(Path(output).read_text(errors="replace")[-6000:] for output in outputs if Path(output).exists())
    assert codes == [0] * ranks, f"{program} exited {codes}\n{logs}"


@cache
def _server() -> subprocess.Popen:
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.ranks"]
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.stdin.close)
    return server


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # DeepSpeed prints to stdout when it is imported
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Trainer  # noqa: F401
    from trl import DPOTrainer, RewardTrainer, SFTTrainer  # noqa: F401

    gc.collect()
    gc.freeze()
    while line := sys.stdin.readline():
        request = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank, output in enumerate(request["outputs"]):
            child = os.fork()
            if child == 0:
                ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(request["outputs"]), "MASTER_PORT": port}
                environment = dict(os.environ) | {"MASTER_ADDR": "127.0.0.1"} | {k: str(v) for k, v in ranks.items()}
                return _become(request["program"], request["arguments"], output, environment)
            children.append(child)
        codes: dict[int, int] = {}
        while len(codes) < len(children):
            child, status = os.wait()
            codes[child] = os.waitstatus_to_exitcode(status)
            if codes[child]:  # the others would wait for it
                for other in set(children) - set(codes):
                    os.kill(other, 9)
        answers.write(json.dumps([codes[child] for child in children]) + "\n")
        answers.flush()
    return None


if __name__ == "__main__":
    main()
