"""TruthfulQA's saved work: answers to be measured, and lm-evaluation-harness's samples of `truthfulqa_mc1` and `_mc2`.

Scores are on lm-eval's scale (accuracies as fractions, BLEU and ROUGE 0..100) and under its names; an answer is taken as it
is, as lm-eval takes it, unless `strip-a` asks for the authors' reading. Questions are matched by their text to the official
data (v0), whose references and choices are used, never those of the file.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.errors import MissingInput, RecipeError
from evals.benchmark import Question, ScoreRow
from evals.closed_form import standard_error
from evals.formats.saved import (
    PublishedScore,
    SavedAnswer,
    SavedEvaluation,
    SavedOutputs,
    Stored,
    file_name,
    read_rows,
    write_text,
)
from evals.knowledge.text_overlap import METRICS, SETTINGS, libraries, overlap
from evals.knowledge.truthful_qa import TruthfulQA, mc1, mc2
from evals.knowledge.truthful_qa_generation import TruthfulQAGeneration, score_row, strip_a
from evals.scoring import percentage
from evals.verdict import Verdict

Row = dict[str, Any]
_ANSWER_KEYS = ("answer", "response")
_CHOICE_METRICS = {"mc1": mc1, "mc2": mc2}
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class _File:
    """One file's rows under the benchmark's question ids."""

    path: Path
    model: str
    task: str
    """generation, mc1 or mc2."""
    rows: Mapping[str, Row]
    notes: tuple[str, ...]


class TruthfulQAFormat:
    """Reads {"question", "answer"} rows (one file a model) and lm-eval sample files (one folder a model)."""

    benchmark = "truthful_qa_generation"
    options = {"strip-a": ("no", "yes")}
    assets = ("choices", "answers")
    import_scales = dict.fromkeys([*_CHOICE_METRICS, *(m for m in METRICS if m.endswith("_acc"))], 100.0)
    """Metric -> factor from this file's scale to the registry's percent."""

    def read(self, paths: Sequence[Path], options: Mapping[str, str], files: Mapping[str, Path]) -> list[SavedEvaluation]:
        questions = {"generation": TruthfulQAGeneration().load(files), "choices": TruthfulQA().load(files)}
        groups: dict[tuple[str, str], list[_File]] = {}
        for path in paths:
            found = _open(path, questions)
            group = groups.setdefault((found.model, "generation" if found.task == "generation" else "choices"), [])
            if found.task in [other.task for other in group]:
                raise MissingInput(f"{path} is a second {found.task} file of the model {found.model}; give each its own name.")
            group.append(found)
        measured = [
            _measured(group[0], questions[kind], options["strip-a"] == "yes")
            if kind == "generation"
            else _chosen(group, questions[kind])
            for (_, kind), group in groups.items()
        ]
        return sorted(measured, key=lambda one: (one.model, one.benchmark or ""))

    def read_outputs(self, paths: Sequence[Path]) -> list[SavedOutputs]:
        found = []
        for path in paths:
            rows = [_with_answer(path, number, row) for number, row in enumerate(read_rows(path), 1)]
            answers = [SavedAnswer(str(i), row["answer"], prompt=row["question"]) for i, row in enumerate(rows)]
            found.append(SavedOutputs(_model(path, rows[0]), answers))
        return sorted(found, key=lambda one: one.model)

    def write(self, model: str, rows: Stored, folder: Path) -> list[Path]:
        """{"question", "answer", metrics} rows, or lm-eval's samples of mc1 and mc2; `read` takes both."""
        if not rows.questions or "mc1" not in rows.questions[0].data:
            lines = []
            for question in rows.questions:
                judgment = rows.judgments.get((question.id, 1, 0, 1))
                metrics = {metric: (judgment.raw if judgment else {}).get(metric) for metric in METRICS}
                answer = rows.answers[question.id, 1, 0].text
                lines.append({"question": question.turns[0], "answer": answer} | metrics)
            return [write_text(folder / f"{file_name(model)}.jsonl", _jsonl(lines))]
        written = []
        for task in _CHOICE_METRICS:
            lines = [_sample(task, question, rows.answers[question.id, 1, 0].detail) for question in rows.questions]
            path = folder / file_name(model) / f"samples_truthfulqa_{task}.jsonl"
            written.append(write_text(path, _jsonl([line for line in lines if line])))
        return written

    def read_published(self, paths: Sequence[Path]) -> list[PublishedScore]:
        raise RecipeError("No published leaderboard of TruthfulQA has a format of its own; import answers or samples.")


def _open(path: Path, questions: Mapping[str, list[Question]]) -> _File:
    """A file's task and its rows by question id. Raises MissingInput where most of its questions are not in the data."""
    rows = read_rows(path)
    if "doc" in rows[0]:
        task, cleaned = _samples(path, rows)
    else:
        task, cleaned = "generation", [_with_answer(path, number, row) for number, row in enumerate(rows, 1)]
    ids = {q.turns[0].strip(): q.id for q in questions["generation" if task == "generation" else "choices"]}
    found: dict[str, Row] = {}
    strangers, repeated = [], 0
    for row in cleaned:
        text = row["question"].strip()
        if text not in ids:
            strangers.append(text)
        elif ids[text] in found:
            repeated += 1
        else:
            found[ids[text]] = row
    if len(strangers) > len(cleaned) / 2 or not found:
        raise MissingInput(
            f"{path}: {len(strangers)} of {len(cleaned)} questions are not among the {len(ids)} of TruthfulQA v0 (first: "
            f"{strangers[0][:60]!r}); give answers to the official questions."
        )
    notes = [f"{len(strangers)} rows whose question is not in TruthfulQA v0 are left out."] if strangers else []
    notes += [f"{repeated} further rows on a question that came before are left out."] if repeated else []
    notes += [f"{len(found)} of {len(ids)} questions are there; the scores are over these."] if len(found) < len(ids) else []
    return _File(path, _model(path, rows[0]), task, found, tuple(notes))


def _with_answer(path: Path, number: int, row: Row) -> Row:
    """The row with its text under "question" and "answer"."""
    key = next((key for key in _ANSWER_KEYS if isinstance(row.get(key), str)), None)
    if key is None or not isinstance(row.get("question"), str):
        raise MissingInput(f"{path}, row {number} has no texts under question and answer; write both.")
    return row | {"answer": row[key]}


def _samples(path: Path, rows: list[Row]) -> tuple[str, list[Row]]:
    """(task, rows) of an lm-eval sample file: "logprobs" {choice: nats} of mc1 or mc2, or the "answer" of truthfulqa_gen."""
    cleaned: list[Row] = []
    fitting = set(_CHOICE_METRICS)
    for number, row in enumerate(rows, 1):
        doc, replies = row.get("doc"), row.get("filtered_resps")
        if not isinstance(doc, dict) or not isinstance(doc.get("question"), str) or not isinstance(replies, list) or not replies:
            raise MissingInput(f"{path}, row {number} is no sample of lm-eval's: it needs doc.question and filtered_resps.")
        kept = {"question": doc["question"]} | {key: row[key] for key in ("acc", *METRICS) if key in row}
        if isinstance(replies[0], str):
            cleaned.append(kept | {"answer": replies[0]})
            continue
        fitting &= {t for t in _CHOICE_METRICS if len(doc.get(f"{t}_targets", {}).get("choices", ())) == len(replies)}
        try:
            cleaned.append(kept | {"doc": doc, "sums": [float(reply[0]) for reply in replies]})
        except (TypeError, ValueError, IndexError) as error:
            raise MissingInput(f"{path}, row {number}: filtered_resps are not [log-probability, is_greedy] pairs.") from error
    texts = sum("answer" in row for row in cleaned)
    if texts not in (0, len(cleaned)) or (not texts and not fitting):
        raise MissingInput(f"{path} mixes samples of several tasks; give one file a task, as lm-eval writes them.")
    if texts:
        return "generation", cleaned
    named = [task for task in _CHOICE_METRICS if task in path.name and task in fitting]
    task = named[0] if named else min(fitting)
    for row in cleaned:
        choices = row["doc"][f"{task}_targets"]["choices"]
        row["logprobs"] = dict(zip(choices, row["sums"], strict=True))
    return task, cleaned


def _measured(file: _File, questions: list[Question], strip: bool) -> SavedEvaluation:
    """One model's answers against the references."""
    by_id = {question.id: question for question in questions}
    clean: Callable[[str], str] = strip_a if strip else lambda answer: answer
    ids = [question.id for question in questions if question.id in file.rows]
    values = {i: overlap(clean(file.rows[i]["answer"]), by_id[i].data["true"], by_id[i].data["false"]) for i in ids}
    scores = [_fraction(score_row(m, [values[i][m] for i in ids], headline=m == "bleu_acc")) for m in METRICS]
    notes = [*file.notes, *_differing(file, values, METRICS)] if not strip else [*file.notes]
    begun = sum(file.rows[i]["answer"].lstrip().startswith("A:") for i in ids)
    if begun:
        notes.append(
            f'{begun} of {len(ids)} answers begin with "A:", which was {"stripped" if strip else "kept, as lm-eval does"}.'
        )
    return SavedEvaluation(
        model=file.model,
        judge="metrics",
        judge_kind="none",
        judge_config={"strip_a": strip, **SETTINGS, **libraries()},
        scores=scores,
        verdicts=[Verdict(i, values[i]["bleu_acc"], raw=values[i]) for i in ids],
        answers=[SavedAnswer(i, file.rows[i]["answer"], prompt=by_id[i].turns[0]) for i in ids],
        notes=notes,
        benchmark=TruthfulQAGeneration.name,
    )


def _chosen(files: Sequence[_File], questions: list[Question]) -> SavedEvaluation:
    """One model's log-probabilities of the choices: mc1, mc2 or both, by the files that are there."""
    benchmark, by_id = TruthfulQA(), {question.id: question for question in questions}
    values: dict[str, dict[str, float]] = {}
    sums: dict[str, dict[str, float]] = {}
    scores, notes = [], []
    for file in sorted(files, key=lambda one: one.task, reverse=True):
        task = file.task
        for i, row in file.rows.items():
            if set(row["logprobs"]) != set(by_id[i].data[task]):
                raise MissingInput(f"{file.path}: the choices of {row['question']!r} are not those of v0; use samples of v0.")
            sums[i] = row["logprobs"] | sums.get(i, {})
            values.setdefault(i, {})[task] = _CHOICE_METRICS[task](by_id[i].data[task], row["logprobs"])
        known = [values[i][task] for i in file.rows]
        row = percentage(task, known, headline=task == benchmark.headline, proportion=task == "mc1")
        scores.append(_fraction(replace(row, stderr=_percent(standard_error(known)))))
        notes += [*file.notes, *_differing(file, {i: {"acc": values[i][task]} for i in file.rows}, ("acc",))]
    ids = [question.id for question in questions if question.id in values]
    headline = scores[0].metric
    return SavedEvaluation(
        model=files[0].model,
        judge="log-probability",
        judge_kind="none",
        judge_config={},
        scores=scores,
        verdicts=[Verdict(i, values[i].get(headline), raw=values[i]) for i in ids],
        answers=[
            SavedAnswer(i, "", prompt=by_id[i].turns[0], detail={"choices": list(sums[i]), "logprobs": list(sums[i].values())})
            for i in ids
        ],
        notes=notes,
        benchmark=benchmark.name,
    )


def _differing(file: _File, values: Mapping[str, Mapping[str, float]], metrics: Sequence[str]) -> list[str]:
    """A note where metrics that the file itself holds differ from those computed here."""
    differ = sum(
        any(m in file.rows[i] and abs(float(file.rows[i][m]) - found[m]) > _TOLERANCE for m in metrics)
        for i, found in values.items()
    )
    return [f"{differ} rows of {file.path.name} hold other metrics than are computed here."] if differ else []


def _fraction(row: ScoreRow) -> ScoreRow:
    """An accuracy in percent on lm-eval's scale; other metrics are on it already."""
    if row.metric not in TruthfulQAFormat.import_scales:
        return row
    numbers = {name: getattr(row, name) for name in ("value", "low", "high", "stderr", "worst", "best")}
    return replace(row, **{name: None if number is None else number / 100 for name, number in numbers.items()})


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _sample(task: str, question: Question, detail: Mapping[str, Any]) -> Row | None:
    """lm-eval's sample of one question, as far as it is known; None where it could not be scored."""
    if detail["logprobs"] is None:
        return None
    sums = dict(zip(detail["choices"], detail["logprobs"], strict=True))
    targets = {t: question.data[t] for t in _CHOICE_METRICS}
    doc = {"question": question.turns[0]} | {
        f"{t}_targets": {"choices": list(chosen), "labels": list(chosen.values())} for t, chosen in targets.items()
    }
    replies = [[str(sums[choice]), "False"] for choice in targets[task]]
    metric = _CHOICE_METRICS[task](targets[task], sums)
    return {"doc_id": int(question.id), "doc": doc, "target": 0, "filtered_resps": replies, "acc": metric}


def _model(path: Path, row: Row) -> str:
    """The row's "model", else the folder of an lm-eval sample file, else the file's name without its endings."""
    if isinstance(row.get("model"), str):
        return row["model"]
    if path.name.startswith("samples_"):
        return path.resolve().parent.name
    return path.name.removesuffix(".gz").rpartition(".")[0] or path.name


def _jsonl(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
