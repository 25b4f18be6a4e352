"""Asking the training hooks after each iteration: gathers what they may look at from the registry, keeps what they say."""

from collections import defaultdict
from dataclasses import asdict
from statistics import fmean
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import Registry, models
from db.costs import by_run
from evals.headline_values import headline_values
from harness import record
from harness.recipe import Recipe
from train.hooks import PROXY, Decision, History, Record, Value, make_hook


class Hooks:
    """The recipe's hooks over one run. Their decisions follow from the registry alone, so a resumed run repeats them."""

    def __init__(self, registry: Registry, run_id: int, recipe: Recipe):
        self.registry, self.run_id = registry, run_id
        self.hooks = [(hook.name, make_hook(hook.name, **hook.options)) for hook in recipe.hooks]
        self.records: list[Record] = []

    def after(self, iteration: int) -> Decision:
        """Ask every hook; the strongest answer wins: stop over roll back over continue."""
        with self.registry.read() as session:
            self.records.append(iteration_record(session, self.run_id, iteration))
        history = History(tuple(self.records))
        said = [(name, hook.after_iteration(history)) for name, hook in self.hooks]
        rows = [{"hook": name} | asdict(decision) for name, decision in said]
        record.decisions(self.registry, self.run_id, iteration, rows)
        for _, decision in said:
            if decision.best is not None:
                record.best(self.registry, self.run_id, decision.best, decision.rule or decision.reason)
        for action in ("stop", "roll_back"):
            for _, decision in said:
                if decision.action == action:
                    return decision
        return Decision("continue", "; ".join(d.reason for _, d in said) or "no hooks")

    def iteration_of(self, checkpoint: str) -> int:
        """The iteration whose policy has this fingerprint."""
        return next(r.iteration for r in self.records if r.checkpoint == checkpoint)


def iteration_record(session: Session, run_id: int, iteration: int) -> Record:
    """What the registry knows of one iteration's policy: scores, per-question values, pair statistics, spending."""
    policy = session.scalars(
        select(models.RunCheckpoint)
        .where(
            models.RunCheckpoint.run_id == run_id,
            models.RunCheckpoint.iteration == iteration,
            models.RunCheckpoint.role.in_(("base", "sft", "iteration")),
        )
        # Iteration 0 has base and, unless skipped, sft: the policy that the loop starts from was registered last.
        .order_by(models.RunCheckpoint.id.desc())
    ).first()
    scores: dict[str, Value] = {}
    values: dict[str, dict[str, float]] = {}
    evaluations = session.execute(
        select(models.Evaluation, models.AnswerSet.benchmark)
        .join(models.AnswerSet)
        .where(models.AnswerSet.checkpoint_id == policy.checkpoint_id, models.Evaluation.status == "complete")
        .order_by(models.Evaluation.id)
    ).all()
    for evaluation, benchmark in evaluations:
        for score in session.scalars(select(models.Score).where(models.Score.evaluation_id == evaluation.id)):
            if score.value is not None:
                scores[f"{benchmark}/{score.metric}"] = (score.value, score.low, score.high, score.n)
                if score.headline:
                    scores[benchmark] = (score.value, score.low, score.high, score.n)
        values[benchmark] = headline_values(session, evaluation.id, benchmark)
        if benchmark == "held_out_reward" and (proxy := proxy_values(session, evaluation.id)):
            values[PROXY] = proxy
    pairs = session.scalar(
        select(models.PreferenceSet).where(models.PreferenceSet.run_id == run_id, models.PreferenceSet.iteration == iteration)
    )
    within = models.StageRun.iteration == iteration
    if iteration == 0:  # what comes before the loop belongs to no iteration
        within = within | models.StageRun.iteration.is_(None)
    stages = session.scalars(select(models.StageRun).where(models.StageRun.run_id == run_id, within)).all()
    trained = [stage.metrics.get("kl_first") for stage in stages if stage.program == "train.dpo"]
    run = session.get_one(models.Run, run_id).name
    spent = next(cost for cost in by_run(session) if cost.run == run).iterations[iteration]
    return Record(
        iteration=iteration,
        checkpoint=policy.checkpoint.fingerprint,
        scores=scores,
        per_question=values,
        preferences=_columns(pairs) if pairs else {},
        kl=trained[0] if trained else 0.0 if iteration == 0 else None,
        seconds=sum(stage.seconds or 0.0 for stage in stages),
        gpu_hours=spent.gpu_seconds / 3600,
        dollars=spent.micro_dollars / 1e6,
    )


def proxy_values(session: Session, evaluation_id: int) -> dict[str, float]:
    """question id -> mean proxy reward of its answers in an evaluation on the held-out prompts."""
    rewards: dict[str, list[float]] = defaultdict(list)
    query = select(models.Judgment.question_id, models.Judgment.raw).where(models.Judgment.evaluation_id == evaluation_id)
    for question, raw in session.execute(query):
        if raw and raw.get("proxy_reward") is not None:
            rewards[question].append(raw["proxy_reward"])
    return {question: fmean(values) for question, values in rewards.items()}


def _columns(row: Any) -> dict[str, Any]:
    return {c.key: getattr(row, c.key) for c in row.__table__.columns if c.key not in ("id", "run_id")}
