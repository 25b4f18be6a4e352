"""What the runner writes to the registry: runs, iterations, stages, checkpoints, statistics, curves, costs."""

import math
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from core.artifacts import Artifact, read_rows
from core.fingerprint import digest
from core.stage import environment
from db import Registry, add_to, insert_ignore, models, upsert
from db.models import now
from harness.plan import Node
from train.curves import FILE as CURVES
from train.foreign import templated

# label of a policy in the plan -> kind of checkpoint
KINDS = {
    "base": "base",
    "sft": "sft",
    "reward": "reward",
    "gold_reward": "gold_reward",
    "preference": "preference",
    "policy": "third_party",
    "reward_start": "third_party",
    "gold_reward_start": "third_party",
    "preference_start": "third_party",
}


def start_run(registry: Registry, name: str, recipe_name: str, recipe: dict[str, Any]) -> int:
    """Create or reopen the run's row; returns its id."""
    with registry.write() as session:
        run = upsert(
            session,
            models.Run,
            {"name": name},
            {
                "recipe_name": recipe_name,
                "recipe": recipe,
                "recipe_hash": digest(recipe),
                "status": "running",
                "pid": os.getpid(),
                "host": platform.node(),
                "heartbeat_at": now(),
                "error": None,
                "finished_at": None,
                "environment": environment() | typed(),
            },
        )
        return run.id


def typed(argv: Sequence[str] | None = None) -> dict[str, str]:
    """{"command": what to type to do the same again} of this process; {} where it is none of the harness's.

    The registry's URL is left out: it may hold a password.
    """
    program, *given = sys.argv if argv is None else argv
    if Path(program).name != "harness" and Path(program).parts[-2:] != ("harness", "__main__.py"):
        return {}
    kept, words = [], iter(given)
    for word in words:
        if word == "--db":
            next(words, None)
        elif not word.startswith("--db="):
            kept.append(word)
    return {"command": shlex.join(["harness", *kept])}


def finish_run(registry: Registry, run_id: int, status: str, error: str | None = None) -> None:
    with registry.write() as session:
        run = session.get_one(models.Run, run_id)
        run.status, run.error, run.finished_at, run.pid = status, error, now(), None


def stage_row(registry: Registry, run_id: int, node: Node, **values: Any) -> int:
    """Write fields of a stage's row; returns its id. Curves of the stage under another key, of other settings, are dropped."""
    where = {"run_id": run_id, "name": node.name}
    with registry.write() as session:
        known = session.scalar(select(models.StageRun).filter_by(**where))
        if known is not None and known.key != node.key:
            session.execute(delete(models.Curve).where(models.Curve.stage_id == known.id))
        common = {"program": node.program, "key": node.key, "iteration": node.iteration}
        return upsert(session, models.StageRun, where, common | values).id


def stage_started(registry: Registry, run_id: int, node: Node, pid: int, log: str) -> int:
    """Count an attempt and mark the stage as running."""
    with registry.write() as session:
        row = session.scalar(select(models.StageRun).where(models.StageRun.run_id == run_id, models.StageRun.name == node.name))
        row.attempts += 1
        row.status, row.pid, row.host, row.log, row.error = "running", pid, platform.node(), log, None
        row.started_at = row.heartbeat_at = now()
        row.finished_at = row.done = row.total = None
        return row.id


def heartbeat(registry: Registry, run_id: int, stage_id: int | None, progress: dict[str, Any] | None) -> None:
    """The run is alive, and so is its stage, where one has begun."""
    with registry.write() as session:
        session.get_one(models.Run, run_id).heartbeat_at = now()
        if stage_id is None:
            return
        row = session.get_one(models.StageRun, stage_id)
        row.heartbeat_at = now()
        if progress:
            row.done, row.total, row.unit = progress["done"], progress["total"], progress["unit"]


def lost_attempt(registry: Registry, run_id: int, node: Node, gpus: int) -> None:
    """Bill the time of an attempt that has ended without an artifact, from its start to its last heartbeat. Once: what is
    running still is what has not been billed, and the caller gives the stage another status next."""
    with registry.write() as session:
        row = session.scalar(select(models.StageRun).where(models.StageRun.run_id == run_id, models.StageRun.name == node.name))
        if row is None or row.status != "running" or row.key != node.key or not row.started_at or not row.heartbeat_at:
            return
        seconds = (row.heartbeat_at - row.started_at).total_seconds()
        _bill(session, node.key, gpus, seconds)


def _bill(session: Session, key: str, gpus: int, seconds: float) -> None:
    """Add the time of one attempt to what its stage has cost."""
    kind, amount = ("gpu_seconds", gpus * seconds) if gpus else ("cpu_seconds", seconds)
    add_to(session, models.Cost, {"scope": "stage", "scope_key": key, "kind": kind}, {"amount": amount})


def stage_done(
    registry: Registry, run_id: int, node: Node, artifact: Artifact, reused: bool, made_elsewhere: bool = False
) -> int:
    """`reused`: it was there already; `made_elsewhere`: by a run that this one waited for, and that bills it."""
    manifest = artifact.manifest
    values: dict[str, Any] = {
        "status": "reused" if reused or made_elsewhere else "done",
        "artifact": str(artifact.path),
        "fingerprint": artifact.fingerprint,
        "metrics": artifact.metrics,
        "seconds": manifest["seconds"],
        "peak_rss_bytes": manifest["peak_rss_bytes"],
        "error": None,
        "pid": None,
    }
    if values["status"] == "done":
        values["finished_at"] = now()
    billed = made_elsewhere or (reused and _is_billed(registry, run_id, node))
    stage_id = stage_row(registry, run_id, node, **values)
    sealed_curves(registry, stage_id, artifact)
    with registry.write() as session:
        if not billed:
            _bill(session, node.key, manifest.get("gpus", 0), manifest["seconds"])
        of_stage, costs = {"scope": "stage", "scope_key": node.key}, []
        if tokens := artifact.metrics.get("judge_tokens"):  # a judge that annotates: no evaluation counts what it was paid
            paid = artifact.metrics.get("judge_micro_dollars", 0)
            costs.append(of_stage | {"kind": "judge_tokens", "amount": tokens, "micro_dollars": paid})
        insert_ignore(session, models.Cost, costs, ["scope", "scope_key", "kind"])
    if artifact.metrics.get("evaluations"):
        from evals.changes import store_changes  # brings numpy, which the commands that only read do without

        store_changes(registry, artifact.metrics["evaluations"])
    return stage_id


def _is_billed(registry: Registry, run_id: int, node: Node) -> bool:
    """Whether a sealed stage has been paid for: by the run that made it, unless this run was killed between seal and record."""
    with registry.read() as session:
        row = session.scalar(select(models.StageRun).where(models.StageRun.run_id == run_id, models.StageRun.name == node.name))
        if row is not None and row.key == node.key and row.status == "running":
            return False
        paid = select(models.Cost.id).where(models.Cost.scope == "stage", models.Cost.scope_key == node.key)
        return session.scalar(paid.where(models.Cost.kind.in_(("gpu_seconds", "cpu_seconds"))).limit(1)) is not None


def curve_points(registry: Registry, stage_id: int, points: list[tuple[int, dict[str, float]]]) -> None:
    """Store training-curve points; a step logged again after a resume keeps its first value."""
    rows = [
        {"stage_id": stage_id, "metric": m, "step": s, "value": _finite(v)} for s, values in points for m, v in values.items()
    ]
    if rows:
        with registry.write() as session:
            insert_ignore(session, models.Curve, rows, ["stage_id", "metric", "step"])


def _finite(value: float) -> float | None:
    """None in place of NaN and infinity, which PostgreSQL and JSON keep and SQLite does not."""
    return float(value) if math.isfinite(value) else None


def sealed_curves(registry: Registry, stage_id: int, artifact: Artifact) -> None:
    """Put the curves that a training sealed in place of those that came as events.

    Events are lost while no runner listens, repeated by a resume, and absent from a run that reuses another's training.
    """
    path = artifact.file(CURVES)
    if not path.exists():
        return
    rows = [
        {"stage_id": stage_id, "metric": metric, "step": point["step"], "value": _finite(value)}
        for point in read_rows(path)
        for metric, value in point.items()
        if metric != "step"
    ]
    of_stage = models.Curve.stage_id == stage_id
    with registry.write() as session:
        known = session.execute(select(models.Curve.metric, models.Curve.step, models.Curve.value).where(of_stage)).tuples()
        if set(known) == {(row["metric"], row["step"], row["value"]) for row in rows}:
            return
        session.execute(delete(models.Curve).where(of_stage))
        insert_ignore(session, models.Curve, rows, ["stage_id", "metric", "step"])


def checkpoint(
    registry: Registry,
    run_id: int,
    label: str,
    iteration: int,
    fingerprint: str,
    path: str,
    parent: str | None,
    reference: str | None,
    trained_by: Node | None,
    provenance: dict[str, Any],
) -> int:
    """Register weights under their fingerprint and the part they play in this run. `parent` and `reference` are fingerprints."""
    kind = KINDS.get(label, "iteration")
    provenance = provenance | (templated(Path(path)) if path else {})
    with registry.write() as session:
        known = select(models.Checkpoint.fingerprint, models.Checkpoint.id).where(
            models.Checkpoint.fingerprint.in_([parent, reference])
        )
        rows = dict(session.execute(known).tuples().all())
        values = {
            "name": provenance["name"],
            "kind": kind,
            "source": "trained" if trained_by and trained_by.program != "train.convert" else "imported",
            "path": path,
            "run_id": run_id,
            "iteration": iteration if kind == "iteration" else None,
            "parent_id": rows.get(parent),
            "reference_id": rows.get(reference),
            "stage_key": trained_by.key if trained_by else None,
            "provenance": provenance,
        }
        # The first registration of these weights stands: a second run that arrives at them only refers to them.
        insert_ignore(session, models.Checkpoint, [values | {"fingerprint": fingerprint}], ["fingerprint"])
        row = session.scalar(select(models.Checkpoint).where(models.Checkpoint.fingerprint == fingerprint))
        if not row.path or not Path(row.path).exists():  # these weights have moved
            row.path = path or None
        role = "iteration" if kind == "iteration" else label
        upsert(session, models.RunCheckpoint, {"run_id": run_id, "role": role, "iteration": iteration}, {"checkpoint_id": row.id})
        return row.id


def preference_set(registry: Registry, run_id: int, iteration: int, metrics: dict[str, Any]) -> None:
    """Store an iteration's pair statistics (metrics of `train.pairs`)."""
    columns = {c.key for c in models.PreferenceSet.__table__.columns} - {"id", "run_id", "iteration"}
    values = {k: v for k, v in metrics.items() if k in columns}
    with registry.write() as session:
        upsert(session, models.PreferenceSet, {"run_id": run_id, "iteration": iteration}, values)


def decisions(registry: Registry, run_id: int, iteration: int, said: list[dict[str, Any]]) -> None:
    with registry.write() as session:
        upsert(session, models.Iteration, {"run_id": run_id, "index": iteration}, {"decisions": said})


def best(registry: Registry, run_id: int, fingerprint: str, rule: str) -> None:
    with registry.write() as session:
        row = session.scalar(select(models.Checkpoint).where(models.Checkpoint.fingerprint == fingerprint))
        run = session.get_one(models.Run, run_id)
        run.best_checkpoint_id, run.best_rule = row.id, rule
