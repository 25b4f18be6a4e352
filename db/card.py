"""A checkpoint's card: where its weights come from, and everything that was measured on them."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.errors import RegistryError
from db.judges import judging_checkpoint
from db.leaderboard import Cell, cells
from db.models import AnswerSet, Checkpoint, Evaluation, PreferenceSet, Run, StageRun


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One step back from a checkpoint to the base model."""

    name: str
    kind: str
    iteration: int | None
    fingerprint: str
    reference: str | None
    """Name of the policy that its DPO training was held to."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One evaluation with all its metrics and what identifies it."""

    evaluation_id: int
    settings: dict[str, Any]
    judge_config: dict[str, Any]
    provenance: dict[str, Any]
    cells: list[Cell]
    judge_checkpoint: str | None = None
    """Name of the checkpoint that a judging reward model is."""


@dataclass(frozen=True, slots=True)
class Card:
    checkpoint: Checkpoint
    run: str | None
    recipe: str | None
    recipe_keys: dict[str, Any]
    """The whole recipe, where a run made it."""
    counts: dict[str, Any]
    """What the run's data stage kept and dropped."""
    pairs: PreferenceSet | None
    """Of an iteration: the preference pairs that it was trained on."""
    called: str
    """What commands call it by: its name, or the start of its fingerprint where another checkpoint has that name too."""
    ancestors: list[Ancestor]
    """From its parent to the first of its line."""
    measured: list[Measured]


def card(session: Session, fingerprint: str) -> Card:
    """Everything the registry knows of one checkpoint. Raises RegistryError when there is no such fingerprint."""
    row = session.scalar(select(Checkpoint).where(Checkpoint.fingerprint == fingerprint))
    if row is None:
        raise RegistryError(f"There is no checkpoint {fingerprint[:16]} in this registry; open it from the leaderboard.")
    run = session.get(Run, row.run_id) if row.run_id is not None else None
    ancestors, seen, at = [_ancestor(session, row)], {row.id}, row.parent
    while at is not None and at.id not in seen:
        seen.add(at.id)
        ancestors.append(_ancestor(session, at))
        at = at.parent
    of = select(Evaluation, AnswerSet).join(AnswerSet).where(AnswerSet.checkpoint_id == row.id).order_by(Evaluation.id)
    evaluated = session.execute(of).tuples().all()
    judges = {name: judging_checkpoint(session, name) for name in {evaluation.judge.name for evaluation, _ in evaluated}}
    measured = {
        one.id: Measured(one.id, answers.settings, one.judge.config, one.provenance, [], judges[one.judge.name])
        for one, answers in evaluated
    }
    for cell in cells(session, AnswerSet.checkpoint_id == row.id):
        measured[cell.evaluation_id].cells.append(cell)
    counts = pairs = None
    if run is not None:
        counts = session.scalar(select(StageRun.metrics).where(StageRun.run_id == run.id, StageRun.program == "train.data"))
        of = select(PreferenceSet).where(PreferenceSet.run_id == run.id, PreferenceSet.iteration == row.iteration)
        pairs = session.scalar(of) if row.iteration is not None else None
    about = (run.name, run.recipe_name, run.recipe or {}) if run else (None, None, {})
    alike = session.scalar(select(func.count(Checkpoint.id)).where(Checkpoint.name == row.name)) or 1
    called = row.name if alike == 1 else row.fingerprint[:16]
    return Card(row, *about, counts or {}, pairs, called, ancestors, list(measured.values()))


def _ancestor(session: Session, row: Checkpoint) -> Ancestor:
    reference = session.get(Checkpoint, row.reference_id) if row.reference_id is not None else None
    return Ancestor(row.name, row.kind, row.iteration, row.fingerprint, reference and reference.name)
