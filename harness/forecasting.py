"""What a plan's judge will cost, for --dry-run: the plan's judge stages against what the registry holds."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from sqlalchemy import select

from core import paths
from core.artifacts import Store
from core.errors import RegistryError
from db import Registry, models
from evals import records
from evals.benchmark import files_of, get_benchmark
from harness.judging import BOUGHT, PROGRAM
from harness.plan import Node, Plan, Ref


def forecasts(plan: Plan, db: str | None) -> list[dict[str, Any]]:
    """Per judge stage and benchmark of a plan, what its endpoint judge will cost; [] for reward models.

    Answers, judgments and replies that the registry holds are taken into account; without a registry there are none.
    Raises what the stage would raise for its judge: a missing key, a budget without a price, absent prompts.
    """
    from evals.judges.forecast import forecast
    from evals.judges.judge import JudgedBenchmark

    nodes = [node for node in plan.nodes.values() if node.program == PROGRAM and node.settings["judge"]["kind"] in BOUGHT]
    registry: Registry | None = None
    with suppress(RegistryError):
        registry = Registry.open(db, readonly=True)
    rows, kept = [], _kept(registry)
    for node in nodes:
        judge = _judge(node)
        policy = node.inputs["policy"].fingerprint or _fingerprint(plan, node.inputs["policy"])
        inputs = {name: Path(ref.path) for name, ref in node.inputs.items() if ref.path is not None}
        for entry in node.settings["benchmarks"]:
            benchmark = get_benchmark(entry["name"])
            if not isinstance(benchmark, JudgedBenchmark):
                continue
            files = files_of(benchmark, entry["variant"], inputs)
            questions = benchmark.load(files, entry.get("limit"), entry.get("sample_seed", 0))
            answers, judged = _stored(registry, policy, benchmark, entry, node, judge, files)
            samples = benchmark.samples(entry.get("decoding"))
            # A stage whose answers are to come asks nothing that is kept.
            found = forecast(benchmark, files, questions, answers, samples, judge, kept.__contains__, judged.__contains__)
            rows.append({"stage": node.name, "benchmark": benchmark.name, "judge": judge.name} | asdict(found))
    return rows


def print_forecasts(rows: list[dict[str, Any]], max_usd: float | None) -> None:
    """The table of --dry-run."""
    from rich.console import Console
    from rich.table import Table

    if not rows:
        return
    table = Table(box=None, pad_edge=False)
    columns = ("stage", "benchmark", "calls", "kept", "tokens in", "out", "dollars", "at most")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < 2 else "right", no_wrap=True)
    for row in rows:
        numbers = [f"{row['calls']}", f"{row['cached']}", *(f"{row[k] / 1000:.1f}k" for k in ("tokens_in", "tokens_out"))]
        table.add_row(row["stage"].replace("[", r"\["), row["benchmark"], *numbers, *map(_dollars, _money(row)))
    Console().print(table)
    totals = [_total(rows, name) for name in ("micro_dollars", "worst_micro_dollars")]
    assumed = sum(row["assumed_answers"] for row in rows)
    typer.echo(
        f"Judge {rows[0]['judge']}: about {_dollars(totals[0])} dollars, at most {_dollars(totals[1])} without retries"
        + (f"; {assumed:,} answers do not exist yet and are assumed to be of typical length" if assumed else "")
        + "."
    )
    if totals[0] is None:
        typer.echo("No price is known for this judge: set evaluate.judge.price, or add a line to HARNESS_HOME/prices.yaml.")
    elif max_usd is not None and totals[0] > 1e6 * max_usd:
        typer.echo(f"The budget of {max_usd:.2f} dollars will most likely be reached; the run then stops and can be resumed.")


def _judge(node: Node) -> Any:
    from evals.judges.openai_judge import OpenAIJudge, ServedJudge

    settings = node.settings["judge"] | node.resources.get("judge", {})
    if settings["kind"] == "serve":
        ref = node.inputs["judge"]
        return ServedJudge(Path(ref.path), ref.fingerprint, settings, {}, Path("unused"))
    return OpenAIJudge(settings, Path("unused"))


def _kept(registry: Registry | None) -> set[str]:
    """Keys of all replies that are kept."""
    if registry is None:
        return set()
    with registry.read() as session:
        return set(session.scalars(select(models.JudgeResponse.key)))


def _fingerprint(plan: Plan, ref: Ref) -> str | None:
    """Of a checkpoint that an earlier run of this plan made; None where it is still to be trained."""
    from core.fingerprint import checkpoint_fingerprint

    node = plan.nodes[ref.stage]
    folder = Store(paths.artifacts()).path(node.stage, node.key) / ref.part
    return checkpoint_fingerprint(folder) if folder.is_dir() else None


def _stored(
    registry: Registry | None, policy: str | None, benchmark: Any, entry: dict[str, Any], node: Node, judge: Any, files: Any
) -> tuple[dict[Any, Any], set[Any]]:
    """(stored answers, keys of the judgments made by this judge) of one policy and benchmark."""
    if registry is None or policy is None:
        return {}, set()
    key = entry.get("answer_set") or records.answers_key(policy, benchmark, entry, node.settings)
    judge_key = records.judge_key(judge.name, judge.kind, judge.config(benchmark, files), judge.fingerprint)
    with registry.read() as session:
        found = session.scalar(select(models.AnswerSet).where(models.AnswerSet.key == key))
        if found is None:
            return {}, set()
        answers = records.stored_answers(session, found.id)
        evaluation = session.scalar(
            select(models.Evaluation.id)
            .join(models.Judge)
            .where(models.Evaluation.answer_set_id == found.id, models.Judge.key == judge_key)
        )
        made = records.stored_judgments(session, evaluation) if evaluation is not None else {}
        return answers, {place for place, judgment in made.items() if judgment.value is not None}


def _total(rows: list[dict[str, Any]], name: str) -> int | None:
    values = [row[name] for row in rows]
    return None if None in values else sum(values)


def _money(row: dict[str, Any]) -> tuple[int | None, int | None]:
    return row["micro_dollars"], row["worst_micro_dollars"]


def _dollars(micro: int | None) -> str:
    return "?" if micro is None else f"{micro / 1e6:.2f}"
