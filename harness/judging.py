"""Asking a judge again for what failed, without running anything else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from sqlalchemy import func, select

from core import paths
from core.artifacts import Store
from core.errors import HarnessError, JudgeError, MissingInput, StageFailed
from core.stage import Spec
from db import Registry, models
from harness import record
from harness.console import JsonReporter, make_reporter
from harness.lock import run_lock
from harness.plan import VERSIONS, Node, Ref
from harness.runner import Runner

PROGRAM = "evals.judged"
BOUGHT = ("openai", "serve")
"""Kinds of judge that are asked request by request."""
_FINAL = ("no answer", "empty answer")
"""Rules of failures that no judge can mend."""


def print_rejudge(target: str | None, failed: bool, as_json: bool, db: str | None) -> None:
    """`harness rejudge`."""
    if not failed:
        raise JudgeError(
            "Say what to ask again: `harness rejudge --failed` asks for failed judgments only; others are never bought twice."
        )
    registry = Registry.open(db)
    specs = list(judge_specs(registry, target))
    rows, errors = [], []
    reporter = make_reporter(as_json)
    try:
        for spec in specs:
            before = failed_judgments(registry, spec)
            sealed = Store(Path(spec.store)).find(spec.stage, spec.key)
            if before == 0 and sealed is not None:
                continue
            try:
                rejudge(registry, spec, reporter)
            except StageFailed as error:
                errors.append(str(error))
            rows.append({"run": spec.run, "key": spec.key, "failed_before": before, "failed": failed_judgments(registry, spec)})
    finally:
        reporter.close()
    if isinstance(reporter, JsonReporter):
        reporter.emit("rejudged", stages=rows, errors=errors)
    elif not rows:
        typer.echo(f"No failed judgments among {len(specs)} judge stages: nothing was asked.")
    else:
        for row in rows:
            typer.echo(f"{row['run']}  {row['key'][:12]}: {row['failed_before']} failed before, {row['failed']} now")
    if errors:
        raise JudgeError(errors[-1])


def judge_specs(registry: Registry, target: str | None = None) -> Iterator[Spec]:
    """Specs of the judge stages by endpoint judges that were run here, newest first; of one run or checkpoint if named.

    `target`: a run's name, a checkpoint's name, or the start of its fingerprint. Raises MissingInput for an unknown one.
    """
    wanted = _of_target(registry, target) if target else None
    seen = set()
    found = sorted(paths.runs().glob("*/specs/judge-*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        spec = Spec.load(path)
        policy = spec.inputs["policy"]["fingerprint"]
        if spec.key in seen or spec.settings["judge"]["kind"] not in BOUGHT:
            continue
        if wanted is not None and spec.key not in wanted and policy not in wanted:
            continue
        seen.add(spec.key)
        yield spec


def failed_judgments(registry: Registry, spec: Spec) -> int:
    """Judgments of a judge stage's evaluations that failed and that asking again may mend."""
    with registry.read() as session:
        ids = _evaluations(session, spec.inputs["policy"]["fingerprint"], spec)
        query = select(models.Judgment.raw).where(models.Judgment.evaluation_id.in_(ids), models.Judgment.value.is_(None))
        return sum((raw or {}).get("rule") not in _FINAL for raw in session.scalars(query))


def rejudge(registry: Registry, spec: Spec, reporter: Any) -> None:
    """Run a judge stage again: it asks for what is missing or failed and renews the scores. Raises StageFailed."""
    if spec.version != VERSIONS[PROGRAM]:
        raise StageFailed(
            f"The judge stage {spec.key[:12]} of run {spec.run} was made by another version; run its first command again."
        )
    with run_lock(paths.runs() / spec.run, spec.run):
        with registry.read() as session:
            run = session.scalar(select(models.Run).where(models.Run.name == spec.run))
            name = session.scalar(
                select(models.StageRun.name).where(models.StageRun.key == spec.key, models.StageRun.run_id == run.id)
            )
        inputs = {n: Ref(path=value["path"], fingerprint=value["fingerprint"]) for n, value in spec.inputs.items()}
        node = Node(name, PROGRAM, spec.settings, inputs, spec.key, spec.iteration, spec.resources, registry=True)
        runner = Runner(spec.run, run.id, registry, reporter, spec.seed, run.recipe_hash)
        runner.renew(node)
        _finish(registry, run.id)


def _finish(registry: Registry, run_id: int) -> None:
    """A run that had failed for its judge alone is done once no stage of it has failed."""
    with registry.read() as session:
        failed = session.scalar(
            select(func.count())
            .select_from(models.StageRun)
            .where(models.StageRun.run_id == run_id, models.StageRun.status.in_(("failed", "waiting", "running")))
        )
        run = session.get_one(models.Run, run_id)
        ended = run.status == "failed" and (run.error or "").startswith(UNJUDGED)
    if ended and not failed:
        record.finish_run(registry, run_id, "done")


UNJUDGED = "All other stages are done, but not everything is judged"
"""How the error of a run begins that went on without its judge."""


def unjudged_error(name: str, errors: dict[str, str]) -> HarnessError:
    """What a run ends with that went on without its judge; `errors` by stage."""
    last = list(errors.values())[-1].rstrip(".")
    return JudgeError(f"{UNJUDGED}: {', '.join(errors)} (last: {last}); run `harness rejudge {name} --failed` to finish them.")


def _of_target(registry: Registry, target: str) -> set[str]:
    """Keys of a run's stages, or a checkpoint's fingerprint."""
    with registry.read() as session:
        run = session.scalar(select(models.Run.id).where(models.Run.name == target))
        if run is not None:
            query = select(models.StageRun.key).where(models.StageRun.run_id == run, models.StageRun.program == PROGRAM)
            return set(session.scalars(query))
        named = (models.Checkpoint.name == target) | models.Checkpoint.fingerprint.startswith(target, autoescape=True)
        found = set(session.scalars(select(models.Checkpoint.fingerprint).where(named)))
    if not found:
        raise MissingInput(f"{target!r} is neither a run nor a checkpoint of the registry; see `harness leaderboard`.")
    return found


def _evaluations(session: Any, policy: str, spec: Spec) -> list[int]:
    """Ids of a judge stage's evaluations by its endpoint judge."""
    names = [entry["name"] for entry in spec.settings["benchmarks"]]
    query = (
        select(models.Evaluation.id, models.Judge)
        .join(models.AnswerSet, models.Evaluation.answer_set_id == models.AnswerSet.id)
        .join(models.Checkpoint, models.AnswerSet.checkpoint_id == models.Checkpoint.id)
        .join(models.Judge, models.Evaluation.judge_id == models.Judge.id)
        .where(models.Checkpoint.fingerprint == policy, models.AnswerSet.benchmark.in_(names), models.Judge.kind.in_(BOUGHT))
    )
    settings = spec.settings["judge"]
    fingerprint = spec.inputs.get("judge", {}).get("fingerprint", "")
    return [
        evaluation
        for evaluation, judge in session.execute(query)
        if (judge.name.endswith(fingerprint[:8]) if settings["kind"] == "serve" else judge.name == settings["model"])
    ]
