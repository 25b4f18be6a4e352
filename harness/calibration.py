"""`harness judge`: calibrate a judge against people, judge canaries, show what is known of it.

A calibration runs pairs that people have compared (`evals.judges.human_agreement`) through the same judge stage as every
evaluation: resumable, nothing paid for twice. What comes out is kept in the table `calibration`. Saved judges are read from
the data and cost nothing: they check the arithmetic and give a yardstick.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.errors import JudgeError, MissingInput
from core.fingerprint import digest
from db import Registry, insert_ignore, upsert
from db.judges import identity
from db.models import AnswerSet, Calibration, Checkpoint, Evaluation, Run, Score, StageRun, now
from db.record import complete_answer_set
from evals import records
from evals.benchmark import Question, get_benchmark, read_jsonl
from evals.chat.alpaca_eval import ANNOTATOR
from evals.judges import canaries
from evals.judges.agreement import Item, rank_agreement
from evals.judges.human_agreement import AgreementSet, by_category, saved_board
from harness.console import Reporter
from harness.data import benchmark_files
from harness.plan import BenchmarkInput, Inputs, Ref
from harness.recipe import Evaluate
from harness.resolve import resolve_benchmarks
from harness.workflow import evaluate_checkpoint

PREFIX = "judge_agreement_"
SETS = ("pandalm", "llmbar")
BOARD = "board"
SAVED = "saved:"


def agreement_sets(limit: int | None, board: int) -> list[dict[str, Any]]:
    """`evaluate.benchmarks` of a calibration: `limit` pairs of each set (None: all), `board` instructions (0: no board)."""
    wanted = [(name, limit) for name in SETS] + ([(BOARD, board)] if board else [])
    return [{"name": PREFIX + name, "variant": "official", "limit": count} for name, count in wanted]


def prepare_calibration(registry: Registry, evaluate: Evaluate, seed: int) -> tuple[Ref, list[BenchmarkInput]]:
    """(who "answered", the sets of `evaluate` with the second answer of each pair stored as the answer)."""
    fingerprint = digest("the second answers of the agreement sets")
    prepared = []
    for one in resolve_benchmarks(evaluate):
        questions = _questions(one, seed)
        limit = one.settings["limit"]
        settings = {"source": "judge agreement", "limit": limit, "sample_seed": seed if limit else 0}
        texts = {(q.id, 1, 0): (q.turns[0], q.data["policy"]) for q in questions}
        with registry.write() as session:
            checkpoint = _subject(session, fingerprint, "judge agreement", "calibration", {"data": "labelled pairs of answers"})
            key = _store_answers(session, checkpoint, one, settings, questions, texts)
        prepared.append(replace(one, settings=one.settings | {"answer_set": key}))
    return Ref(path="", fingerprint=fingerprint), prepared


def calibrate(
    registry: Registry, name: str, evaluate: Evaluate, seed: int, policy: Ref, inputs: Inputs, reporter: Reporter
) -> list[dict[str, Any]]:
    """Ask a judge about the prepared pairs in a run of that name and keep how it did.

    Returns the calibrations, [{"judge", "dataset", "version", "n", "n_failed", "statistics", "kept"}].
    """
    evaluate_checkpoint(evaluate, seed, policy, inputs, registry, reporter, name)
    with registry.write() as session:
        return [_keep(session, evaluation) for evaluation in judged_in(session, name)]


def calibrate_saved(registry: Registry, judge: str, limit: int | None, seed: int) -> list[dict[str, Any]]:
    """Keep how the saved verdicts in the data agree with its labels, for every saved evaluator whose name contains `judge`.

    Raises JudgeError naming the saved evaluators when none matches.
    """
    wanted, found, known = judge.removeprefix(SAVED).lower(), [], []
    for name in SETS:
        benchmark = get_benchmark(PREFIX + name)
        assert isinstance(benchmark, AgreementSet)
        files, version = _located(benchmark.name)
        questions = benchmark.load(files, limit, seed)
        for evaluator, verdicts in benchmark.saved(read_jsonl(files["pairs"])).items():
            known.append(evaluator)
            if wanted not in evaluator.lower():
                continue
            asked = [q for q in questions if q.id in verdicts]
            items = [Item(q.id, q.category, tuple(q.data["people"]), verdicts[q.id]) for q in asked]
            failed = sum(None in item.verdicts for item in items)
            found.append((evaluator, name, version, len(items) - failed, failed, by_category(items)))
    known.append(ANNOTATOR)
    if wanted in ANNOTATOR:
        files, version = _located(PREFIX + BOARD)
        models, values, published = saved_board(files)
        found.append((ANNOTATOR, BOARD, version, len(models), 0, rank_agreement(values, published)))
    if not found:
        raise JudgeError(f"The data hold no saved verdicts of {judge!r}; give saved: and part of one of {', '.join(known)}.")
    kept = []
    with registry.write() as session:
        for evaluator, dataset, version, n, failed, statistics in found:
            suffix = "" if limit is None or dataset == BOARD else f", {limit} items, seed {seed}"
            kept.append(_store(session, SAVED + evaluator, "saved", {}, dataset, version + suffix, n, failed, statistics))
    return kept


def prepare_canaries(registry: Registry, evaluate: Evaluate, seed: int) -> dict[str, tuple[Ref, list[BenchmarkInput]]]:
    """canary -> (its fingerprint, the benchmarks of `evaluate` that it can answer, with its answers stored).

    A canary's answers are stored under the settings of `evaluate`, which change nothing in them, so that they stand in the
    comparability group of the checkpoints evaluated with the same settings.
    """
    benchmarks = resolve_benchmarks(evaluate)
    questions = {b.name: _questions(b, seed) for b in benchmarks}
    common = {"engine": evaluate.engine, "system_prompt": evaluate.system_prompt}
    found = {}
    for canary, description in canaries.DESCRIPTIONS.items():
        texts = {"constant": canaries.CONSTANT, "structured": canaries.STRUCTURED}.get(canary, description)
        fingerprint = digest({"canary": canary, "text": texts})
        prepared = []
        for one in benchmarks:
            asked = questions[one.name]
            if canary not in canaries.canary_names(asked):
                continue
            made = get_benchmark(one.name)
            entry = {"name": one.name, "sample_seed": seed} | one.settings
            answers = {
                (q.id, turn, sample): (q.turns[turn - 1], canaries.canary_answer(canary, q, turn))
                for q in asked
                for turn in range(1, len(q.turns) + 1)
                for sample in range(made.samples(entry.get("decoding")))
            }
            with registry.write() as session:
                provenance = {"canary": canary, "description": description}
                checkpoint = _subject(session, fingerprint, f"canary: {canary}", "canary", provenance)
                key = _store_answers(session, checkpoint, one, made.answer_settings(entry, common), asked, answers)
            prepared.append(replace(one, settings=one.settings | {"answer_set": key}))
        if prepared:
            found[canary] = (Ref(path="", fingerprint=fingerprint), prepared)
    return found


def judged_in(session: Session, run: str) -> list[Evaluation]:
    """The evaluations of a run's judge stages, in the order in which they were judged."""
    query = select(StageRun.metrics).join(Run, StageRun.run_id == Run.id)
    stages = session.scalars(query.where(Run.name == run, StageRun.program == "evals.judged").order_by(StageRun.id))
    keys = [key for metrics in stages for key in (metrics or {}).get("evaluations", [])]
    found = {e.key: e for e in session.scalars(select(Evaluation).where(Evaluation.key.in_(keys)))}
    return [found[key] for key in keys]


def _questions(one: BenchmarkInput, seed: int) -> list[Question]:
    files = {asset: Path(ref.path) for asset, ref in one.files.items()}
    return get_benchmark(one.name).load(files, one.settings["limit"], seed)


def _subject(session: Session, fingerprint: str, name: str, kind: str, provenance: Mapping[str, Any]) -> Checkpoint:
    """The row of answers that no weights gave."""
    row = {"fingerprint": fingerprint, "name": name, "kind": kind, "source": "imported", "provenance": dict(provenance)}
    insert_ignore(session, Checkpoint, [row], ["fingerprint"])
    return session.scalars(select(Checkpoint).where(Checkpoint.fingerprint == fingerprint)).one()


def _store_answers(
    session: Session,
    checkpoint: Checkpoint,
    one: BenchmarkInput,
    settings: Mapping[str, Any],
    questions: Sequence[Question],
    texts: Mapping[tuple[str, int, int], tuple[str, str]],
) -> str:
    """Store (question id, turn, sample) -> (prompt, answer); returns the answer set's key."""
    found = records.add_answer_set(session, checkpoint, one.name, one.settings["version"], settings, len(questions))
    category = {question.id: question.category or None for question in questions}
    rows = [
        {"question_id": q, "turn": turn, "sample": sample, "prompt": prompt, "text": text, "finish_reason": "stop"}
        | {"category": category[q]}
        for (q, turn, sample), (prompt, text) in texts.items()
    ]
    records.store_answers(session, found.id, rows)
    complete_answer_set(session, found.id)
    return found.key


def _located(benchmark: str) -> tuple[dict[str, Path], str]:
    """(files of an agreement set, their version)."""
    evaluate = Evaluate.model_validate({"benchmarks": [{"name": benchmark, "variant": "official"}], "held_out_reward": False})
    files = {asset: located.path for asset, located in benchmark_files(benchmark, "official").items()}
    return files, resolve_benchmarks(evaluate)[0].settings["version"]


def _keep(session: Session, evaluation: Evaluation) -> dict[str, Any]:
    """Store what an evaluation of an agreement set says of its judge."""
    answers: AnswerSet = evaluation.answer_set
    headline = session.scalars(select(Score).where(Score.evaluation_id == evaluation.id, Score.headline)).one()
    limit = answers.settings.get("limit")
    version = answers.version + (f", {limit} items, seed {answers.settings['sample_seed']}" if limit else "")
    statistics = evaluation.statistics.get("agreement")
    if statistics is None:
        raise MissingInput(f"The evaluation {evaluation.key[:12]} holds no agreement; run the same command again.")
    judge = evaluation.judge
    dataset = answers.benchmark.removeprefix(PREFIX)
    return _store(session, judge.name, judge.kind, judge.config, dataset, version, headline.n, headline.n_failed, statistics)


def _store(
    session: Session,
    name: str,
    kind: str,
    config: Mapping[str, Any],
    dataset: str,
    version: str,
    n: int,
    n_failed: int,
    statistics: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a calibration unless one of the same judge on more items is there; returns what was found this time."""
    key = {"judge_key": identity(kind, name, config), "dataset": dataset}
    values = {"judge_name": name, "judge_kind": kind, "version": version, "n": n, "n_failed": n_failed}
    values |= {"statistics": dict(statistics), "created_at": now()}
    where = (Calibration.judge_key == key["judge_key"], Calibration.dataset == dataset)
    larger = session.scalars(select(Calibration).where(*where, Calibration.n > n)).one_or_none()
    if larger is None:
        upsert(session, Calibration, key, values)
    return {"judge": name, "dataset": dataset, "kept": larger is None} | {
        k: values[k] for k in ("version", "n", "n_failed", "statistics")
    }
