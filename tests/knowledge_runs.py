"""GSM8K, MMLU and ARC-Challenge on the tiny model: by our stage in this process, and by lm-eval itself."""

from pathlib import Path
from typing import Any

from sqlalchemy import select

from core.stage import Spec, Stage
from db.registry import Registry
from evals import lm_eval_stage
from evals.benchmark import get_benchmark
from evals.knowledge.lm_tasks import FEWSHOT_SEED, write_tasks

PATHS = {
    "gsm8k": ("gsm8k/test.jsonl.gz", "gsm8k/train.jsonl.gz"),
    "mmlu": ("mmlu/test.jsonl.gz", "mmlu/dev.jsonl.gz"),
    "arc_challenge": ("arc/arc_challenge_test.jsonl.gz", "arc/arc_challenge_train_subset1056.jsonl.gz"),
}
LIMIT, SEED, SHOTS, TOKENS = 6, 3, 1, 12
"""A sample without a question of MMLU that is too long for the tiny model, which reads 1,024 tokens."""


def files(data: Path, name: str) -> dict[str, Path]:
    return dict(zip(("questions", "shots"), (data / path for path in PATHS[name]), strict=True))


def entry(name: str, **more: Any) -> dict[str, Any]:
    """An element of the stage's `benchmarks`."""
    common = {"name": name, "variant": "official", "version": "official@test", "limit": LIMIT, "sample_seed": SEED}
    return common | {"shots": SHOTS, "decoding": {"max_tokens": TOKENS}} | more


def run_here(make_spec: Any, registry: Registry, data: Path, checkpoint: Path, entries: list[dict], **resources: Any) -> dict:
    """Metrics of the stage."""
    inputs = {"policy": checkpoint}
    for one in entries:
        inputs |= {f"data/{one['name']}/{asset}": path for asset, path in files(data, one["name"]).items()}
    settings = {"seed": 0, "engine": "transformers", "max_model_len": 1024, "dtype": "float32", "benchmarks": entries}
    path = make_spec("lm_eval_stage", settings, inputs, registry=str(registry.url), resources=resources)
    stage = Stage(Spec.load(path))
    stage.work.mkdir(parents=True, exist_ok=True)
    return lm_eval_stage.run(stage)


def lm_evals_own(data: Path, name: str, checkpoint: Path, folder: Path, output: Path | None = None) -> dict[str, Any]:
    """What `lm_eval.simple_evaluate` finds on the same weights, questions and tasks; with `output`, saved there by it."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    benchmark: Any = get_benchmark(name)
    samples: dict[str, list[int]] = {}
    for question in benchmark.load(files(data, name), LIMIT, SEED):
        samples.setdefault(question.data["task"], []).append(question.data["doc_id"])
    tasks = benchmark.tasks(files(data, name))
    write_tasks(folder, [tasks[task] for task in samples], SHOTS)
    tracker = EvaluationTracker(output_path=str(output)) if output else None
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(checkpoint), backend="causal", dtype="float32", device="cpu", batch_size=3),
        tasks=list(samples),
        samples=samples,
        gen_kwargs={"max_gen_toks": TOKENS} if name == "gsm8k" else None,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        fewshot_random_seed=FEWSHOT_SEED,
        bootstrap_iters=1000,
        log_samples=True,
        evaluation_tracker=tracker,
    )
    if tracker is not None:
        logged = found.pop("samples")
        tracker.general_config_tracker.model_name_sanitized = "tiny"
        tracker.save_results_aggregated(results=found, samples=logged)
        for task, rows in logged.items():
            tracker.save_results_samples(task_name=task, samples=rows)
    return found


def rows(registry: Registry, kind: type) -> list[Any]:
    with registry.read() as session:
        found = list(session.scalars(select(kind).order_by(kind.id)))
        session.expunge_all()
    return found
