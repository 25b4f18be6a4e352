"""Two checkpoints of the registry, benchmark by benchmark, on the questions that both answered."""

from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from core.errors import MissingInput
from db.leaderboard import Cell, cells
from db.models import AnswerSet, Checkpoint, Evaluation, Score
from db.samples import question_categories
from evals.benchmark import BENCHMARKS
from evals.comparison import Comparison, compare, compare_parts
from evals.headline_values import headline_values


@dataclass(frozen=True)
class Compared:
    """What can be said of a against b."""

    a: str
    b: str
    comparisons: list[Comparison]
    apart: dict[str, str]
    """benchmark -> why its two evaluations cannot be compared."""


def compare_checkpoints(session: Session, first: str, second: str | None = None) -> Compared:
    """Paired tests of a checkpoint against another, by default its parent, in every benchmark that both were evaluated on.

    Only evaluations of one comparability group are compared: same questions, settings and judge. Raises MissingInput for
    a checkpoint that is not there or has no parent.
    """
    a = find_checkpoint(session, first)
    b = find_checkpoint(session, second) if second else _parent(session, a)
    ours, theirs = _evaluations(session, a.id), _evaluations(session, b.id)
    pairs, units, apart = {}, {}, {}
    for benchmark in sorted(ours.keys() & theirs.keys()):
        shared = _shared_group(ours[benchmark], theirs[benchmark])
        if shared is None:
            apart[benchmark] = _difference_of_settings(ours[benchmark][0], theirs[benchmark][0])
            continue
        unit = _unit(benchmark)
        values = [_values(session, cell.evaluation_id, benchmark) for cell in shared]
        if not values[0].keys() & values[1].keys():
            apart[benchmark] = "no verdicts per question are stored"
            continue
        pairs[benchmark], units[benchmark] = (values[0], values[1]), unit
    return Compared(a.name, b.name, compare(pairs, units), apart)


def shared_evaluations(session: Session, first: str, second: str, benchmark: str) -> tuple[int, int]:
    """Ids of the two evaluations that `compare_checkpoints` compares on a benchmark. Raises MissingInput without such a pair."""
    ours, theirs = (_evaluations(session, find_checkpoint(session, name).id).get(benchmark, []) for name in (first, second))
    shared = _shared_group(ours, theirs)
    if shared is None:
        raise MissingInput(f"These two have no evaluation of {benchmark} in one comparability group; see `harness compare`.")
    return shared[0].evaluation_id, shared[1].evaluation_id


def compare_categories(session: Session, evaluations: tuple[int, int], benchmark: str) -> list[Comparison]:
    """Paired tests within each category of a benchmark that its answers were stored with; [] where there are not several."""
    part_of = question_categories(session, evaluations[0])
    if len(set(part_of.values())) < 2:
        return []
    unit = _unit(benchmark)
    first, second = (_values(session, evaluation, benchmark, all_categories=True) for evaluation in evaluations)
    return compare_parts((first, second), part_of, unit)


def parent_fingerprint(session: Session, name: str) -> str | None:
    """Fingerprint of a checkpoint's parent; None where it has none in the registry."""
    parent = find_checkpoint(session, name).parent
    return None if parent is None else parent.fingerprint


def find_checkpoint(session: Session, name: str) -> Checkpoint:
    """A checkpoint by name or start of its fingerprint. Raises MissingInput naming what there is."""
    matches = or_(Checkpoint.name == name, Checkpoint.fingerprint.startswith(name, autoescape=True))
    found = session.scalars(select(Checkpoint).where(matches)).all()
    if len(found) > 1:
        # A published row of the same name has no answers to compare.
        found = [one for one in found if one.source != "published"] or found
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{one.name} ({one.fingerprint[:12]})" for one in found)
        raise MissingInput(f"{name!r} names {len(found)} checkpoints: {listed}; give the start of a fingerprint.")
    known = session.scalars(
        select(Checkpoint.name).join(AnswerSet, AnswerSet.checkpoint_id == Checkpoint.id).distinct().limit(20)
    ).all()
    raise MissingInput(f"There is no checkpoint {name!r} in the registry; evaluated are {', '.join(known) or 'none yet'}.")


def _unit(benchmark: str) -> str:
    return BENCHMARKS[benchmark].unit if benchmark in BENCHMARKS else "unknown"


def _values(session: Session, evaluation_id: int, benchmark: str, all_categories: bool = False) -> dict[str, float]:
    """Verdicts per question in the benchmark's unit."""
    scale = 100.0 if _unit(benchmark) == "percent" else 1.0
    found = headline_values(session, evaluation_id, benchmark, all_categories)
    return {question: scale * value for question, value in found.items()}


def _parent(session: Session, checkpoint: Checkpoint) -> Checkpoint:
    if checkpoint.parent_id is None:
        raise MissingInput(f"{checkpoint.name} has no parent in the registry; name the checkpoint to compare it with.")
    return session.get_one(Checkpoint, checkpoint.parent_id)


def _evaluations(session: Session, checkpoint_id: int) -> dict[str, list[Cell]]:
    """benchmark -> headline cells of the complete evaluations, most questions first."""
    found: dict[str, list[Cell]] = {}
    for cell in cells(session, Score.headline, AnswerSet.checkpoint_id == checkpoint_id, Evaluation.status == "complete"):
        found.setdefault(cell.benchmark, []).append(cell)
    for several in found.values():
        several.sort(key=lambda cell: (cell.n_questions, cell.finished_at), reverse=True)
    return found


def _shared_group(ours: list[Cell], theirs: list[Cell]) -> tuple[Cell, Cell] | None:
    for cell in ours:
        for other in theirs:
            if other.group == cell.group:
                return cell, other
    return None


def _difference_of_settings(a: Cell, b: Cell) -> str:
    differs = [
        f"{what} {x} against {y}"
        for what, x, y in (
            ("judge", a.judge, b.judge),
            ("data", a.version, b.version),
            ("settings", a.settings_hash[:8], b.settings_hash[:8]),
        )
        if x != y
    ]
    return "; ".join(differs) or "the judge's configuration differs"
