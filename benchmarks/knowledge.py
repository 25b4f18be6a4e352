"""GSM8K, MMLU or ARC-Challenge: this project's stage against lm-evaluation-harness's own command, on the same weights.

    HARNESS_DATA=... python -m benchmarks.knowledge CHECKPOINT [--benchmark gsm8k] [--limit 50] [--batch-size 8]

The first `--limit` questions (of MMLU: of its first subject) with the paper's shots, on transformers; both as whole
processes, imports and loading included, one after the other in one run. Claim: equal values from equal responses, one by
one; as fast where answers are generated, faster where choices are scored (what contexts share is computed once).
"""

import argparse
import gzip
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from core.fingerprint import checkpoint_fingerprint, file_sha256
from core.stage import Spec
from db.models import Answer
from db.registry import Registry
from evals.benchmark import get_benchmark, read_jsonl
from evals.knowledge.lm_tasks import lm_eval_version, write_tasks

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "gsm8k": ("gsm8k/test.jsonl.gz", "gsm8k/train.jsonl.gz"),
    "mmlu": ("mmlu/test.jsonl.gz", "mmlu/dev.jsonl.gz"),
    "arc_challenge": ("arc/arc_challenge_test.jsonl.gz", "arc/arc_challenge_train_subset1056.jsonl.gz"),
}


def ours(
    folder: Path, checkpoint: Path, name: str, files: dict[str, Path], dtype: str, batch_size: int
) -> tuple[dict[str, float], dict[int, list], float]:
    """({metric: fraction}, {question's number: responses}, wall-clock seconds) of `python -m evals.lm_eval_stage`."""
    entry = {"name": name, "variant": "official", "version": "benchmark", "limit": None}
    inputs = {"policy": {"path": str(checkpoint), "fingerprint": checkpoint_fingerprint(checkpoint)}}
    inputs |= {f"data/{name}/{asset}": {"path": str(p), "fingerprint": file_sha256(p)} for asset, p in files.items()}
    settings = {"benchmarks": [entry], "seed": 0, "dtype": dtype, "engine": "transformers", "max_model_len": 8192}
    # one chunk: the same sequences share a batch as in lm-eval, so that rounding is the same too
    resources = {"batch": batch_size, "chunk": 10**6}
    spec = Spec("knowledge", 1, "benchmark", settings, inputs, str(folder / "store"), resources=resources)
    spec.registry = f"sqlite:///{folder}/registry.db"
    spec.save(folder / "spec.json")
    seconds = timed([sys.executable, "-m", "evals.lm_eval_stage", str(folder / "spec.json")])
    (summary,) = (folder / "store").glob("*/summary.json")
    scores = {row["metric"]: row["value"] for row in json.loads(summary.read_text())["benchmarks"][0]["scores"]}
    numbers = {question.id: question.data["doc_id"] for question in get_benchmark(name).load(files)}
    registry = Registry.open(spec.registry)
    with registry.read() as session:
        rows = session.query(Answer).all()
        responses = {numbers[a.question_id]: [a.text] if a.text else a.detail.get("logprobs") for a in rows}
    registry.close()
    return {metric: scores[metric] / 100 for metric in get_benchmark(name).metrics}, responses, seconds


def theirs(
    folder: Path, checkpoint: Path, name: str, files: dict[str, Path], dtype: str, batch_size: int
) -> tuple[dict[str, float], dict[int, list], float]:
    """The same of lm-eval's command on the same task."""
    benchmark = get_benchmark(name)
    (task,) = benchmark.tasks(files).values()
    write_tasks(folder / "tasks", [task], benchmark.shots)
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--include_path", str(folder / "tasks")]
    command += ["--tasks", task.name, "--model_args", f"pretrained={checkpoint},dtype={dtype}", "--device", "cpu"]
    command += ["--batch_size", str(batch_size), "--output_path", str(folder / "theirs"), "--log_samples"]
    seconds = timed(command)
    (found,) = (folder / "theirs").rglob("results_*.json")
    results = json.loads(found.read_text())["results"][task.name]
    (logged,) = (folder / "theirs").rglob("samples_*.jsonl")
    responses = {row["doc_id"]: [given[0] for given in row["resps"]] for row in map(json.loads, logged.open())}
    return {metric: results[key] for metric, key in benchmark.metrics.items()}, responses, seconds


def gap(first: list, second: list) -> float:
    """0 for equal texts and infinity for others; of log-probabilities (value, greedy) the largest difference, in nats."""
    if isinstance(first[0], str):
        return 0.0 if first == second else float("inf")
    return max(abs(a[0] - float(b[0])) for a, b in zip(first, second, strict=True))


def timed(command: list[str]) -> float:
    """Wall-clock seconds of a command; its output is shown only when it fails."""
    began = time.perf_counter()
    finished = subprocess.run(command, cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(f"{' '.join(command)}\n{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}")
    return time.perf_counter() - began


def first(name: str, limit: int, folder: Path) -> dict[str, Path]:
    """{asset: file} of the first questions, of one task."""
    paths = dict(zip(("questions", "shots"), (Path(os.environ["HARNESS_DATA"]) / path for path in FILES[name]), strict=True))
    rows = read_jsonl(paths["questions"])
    chosen = [row for row in rows if row.get("subject") == rows[0].get("subject")][:limit]
    questions = folder / "questions.jsonl.gz"
    with gzip.open(questions, "wt", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in chosen)
    return paths | {"questions": questions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--benchmark", choices=FILES, default="gsm8k")
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=8)
    chosen = parser.parse_args()
    checkpoint = chosen.checkpoint.resolve()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, lm-eval {lm_eval_version()}")
    print(f"{chosen.benchmark}, {chosen.limit} questions, {chosen.dtype}, batch size {chosen.batch_size}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = first(chosen.benchmark, chosen.limit, folder)
        found = {}
        for who, run in (("ours", ours), ("lm-eval", theirs)):
            found[who] = run(folder, checkpoint, chosen.benchmark, files, chosen.dtype, chosen.batch_size)
            print(f"{who:8} {found[who][2]:7.1f} s  {found[who][0]}", flush=True)
    (mine, ours_said, ours_s), (values, theirs_said, theirs_s) = found["ours"], found["lm-eval"]
    equal = all(abs(value - values[metric]) < 1e-9 for metric, value in mine.items())
    gaps = [gap(said, theirs_said[number]) for number, said in ours_said.items()]
    agree = sum(found < 1e-3 for found in gaps)
    print(f"ratio {theirs_s / ours_s:.2f}, equal values: {equal}")
    print(
        f"equal responses (texts; log-probabilities to 1e-3): {agree} of {len(theirs_said)}, largest difference {max(gaps):.2g}"
    )


if __name__ == "__main__":
    main()
