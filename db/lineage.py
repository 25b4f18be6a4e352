"""Where a run's checkpoints come from, and the offline baselines that started from the same first policy."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.leaderboard import run_id
from db.models import Checkpoint, Run, RunCheckpoint


@dataclass(frozen=True, slots=True)
class Node:
    """A checkpoint in the lineage of a run."""

    checkpoint_id: int
    name: str
    role: str
    """base | sft | reward | gold_reward | preference | iteration | policy; `baseline` for one of another run."""
    iteration: int
    fingerprint: str
    depth: int
    """Steps from the first checkpoint of its line that the run knows."""
    parent: int | None
    """Checkpoint id of what its training started from, where it is in the lineage."""
    reference: int | None
    """Checkpoint id of the policy that its DPO training was held to."""
    best: bool
    """Whether it is the run's best checkpoint."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The result of an offline baseline: another run with a recipe that names itself one, from the same first policy."""

    label: str
    """The recipe's `baseline`, e.g. offline_dpo."""
    run: str
    checkpoint_id: int


def lineage(session: Session, run: str) -> list[Node]:
    """The run's checkpoints and its baselines', by depth, then in the order of their parts.

    Raises RegistryError for a run that is not there.
    """
    identity = run_id(session, run)
    played = select(RunCheckpoint.checkpoint_id, RunCheckpoint.role, RunCheckpoint.iteration)
    parts = {
        checkpoint: (role, turn)
        for checkpoint, role, turn in session.execute(
            played.where(RunCheckpoint.run_id == identity).order_by(RunCheckpoint.iteration.desc(), RunCheckpoint.id.desc())
        )
    }
    for one in baselines(session, run):
        parts.setdefault(one.checkpoint_id, ("baseline", 0))
    rows = {row.id: row for row in session.scalars(select(Checkpoint).where(Checkpoint.id.in_(parts)))}
    best = session.get_one(Run, identity).best_checkpoint_id

    def depth(at: int, seen: frozenset[int] = frozenset()) -> int:
        above = rows[at].parent_id
        return 0 if above not in rows or above in seen else 1 + depth(above, seen | {at})

    nodes = []
    for key, row in rows.items():
        role, turn = parts[key]
        above, held = (other if other in rows else None for other in (row.parent_id, row.reference_id))
        nodes.append(Node(key, row.name, role, turn, row.fingerprint, depth(key), above, held, key == best))
    return sorted(nodes, key=lambda node: (node.depth, node.role == "baseline", node.iteration, node.checkpoint_id))


def baselines(session: Session, run: str) -> list[Baseline]:
    """The final policies of offline baselines that started where this run did, oldest first.

    A baseline is a run whose recipe has `baseline` set; it counts where its first policy (SFT, or the base model without
    one) is this run's. Raises RegistryError for a run that is not there.
    """
    identity = run_id(session, run)
    label = Run.recipe["baseline"].as_string()
    marked = session.execute(
        select(Run.id, Run.name, label, Run.best_checkpoint_id).where(label.is_not(None), Run.id != identity)
    )
    others = {row[0]: row[1:] for row in marked if row[2]}
    if not others:
        return []
    parts: dict[int, dict[tuple[str, int], int]] = {}
    query = select(RunCheckpoint.run_id, RunCheckpoint.role, RunCheckpoint.iteration, RunCheckpoint.checkpoint_id)
    for owner, role, turn, checkpoint in session.execute(query.where(RunCheckpoint.run_id.in_([identity, *others]))):
        parts.setdefault(owner, {})[role, turn] = checkpoint
    start = _first(parts.get(identity, {}))
    found = []
    for owner, (name, kind, best) in others.items():
        mine = parts.get(owner, {})
        turns = {turn: checkpoint for (role, turn), checkpoint in mine.items() if role == "iteration"}
        final = best if best in turns.values() else turns[max(turns)] if turns else None
        if start is not None and _first(mine) == start and final is not None:
            found.append(Baseline(kind, name, final))
    return found


def _first(parts: dict[tuple[str, int], int]) -> int | None:
    """The policy that a run's loop starts from."""
    by_role = {role: checkpoint for (role, _), checkpoint in parts.items()}
    return by_role.get("sft", by_role.get("base"))
