"""Proxy and gold reward of a run's policies beside their distance from the first one: does optimising still help?"""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.leaderboard import Cell, cells, run_id
from db.models import AnswerSet, Evaluation, RunCheckpoint, Score, StageRun


@dataclass(frozen=True, slots=True)
class Rewarded:
    """One policy of a run."""

    role: str
    """base | sft | iteration."""
    iteration: int
    kl: float | None
    """Estimated KL to the first policy at the end of its training, in nats a response; 0 for the first policy. Of trainings
    that did not log it, to their reference."""
    proxy: Cell | None
    """Mean reward by the model that the loop optimises."""
    gold: Cell | None
    """Mean reward by a model that it never sees."""


def reward_curve(session: Session, run: str) -> list[Rewarded]:
    """The policies of the loop, from the one that it starts from; [] where no held-out prompts were rewarded.

    Raises RegistryError for a run that is not there.
    """
    identity = run_id(session, run)
    played = session.execute(
        select(RunCheckpoint.role, RunCheckpoint.iteration, RunCheckpoint.checkpoint_id)
        .where(RunCheckpoint.run_id == identity, RunCheckpoint.role.in_(("base", "sft", "iteration")))
        .order_by(RunCheckpoint.iteration, RunCheckpoint.id)
    ).all()
    first = {role: checkpoint for role, _, checkpoint in played}
    # The loop starts from SFT where there is one; the base model before it is not on the curve.
    start = "sft" if "sft" in first else "base"
    policies = [row for row in played if row.role in ("iteration", start)]
    kl = {
        stage.iteration: (stage.metrics or {}).get("kl_first", (stage.metrics or {}).get("kl"))
        for stage in session.scalars(select(StageRun).where(StageRun.run_id == identity, StageRun.program == "train.dpo"))
    }
    found: dict[int, dict[str, Cell]] = {}
    wanted = [row.checkpoint_id for row in policies]
    for cell in cells(
        session,
        AnswerSet.benchmark == "held_out_reward",
        AnswerSet.checkpoint_id.in_(wanted),
        Score.metric.in_(("proxy_reward", "gold_reward")),
        Evaluation.status == "complete",
    ):
        found.setdefault(cell.checkpoint_id, {})[cell.metric] = cell
    return [
        Rewarded(
            row.role,
            row.iteration,
            0.0 if row.role == start else kl.get(row.iteration),
            found[row.checkpoint_id].get("proxy_reward"),
            found[row.checkpoint_id].get("gold_reward"),
        )
        for row in policies
        if row.checkpoint_id in found
    ]
