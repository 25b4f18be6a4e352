"""AlpacaEval's own files: `annotations.json`, `model_outputs.json`, and the leaderboard CSVs.

In an annotations file output_1 is the baseline's and output_2 the model's answer, whatever order the judge saw; preference
is 1 for the baseline, 2 for the model, 0 or 1.5 for a draw, null for a failed judgment (alpaca_eval 0.6.6, `annotators`).
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import MissingInput
from core.paths import data_cache, data_mirror
from evals.benchmark import ScoreRow, read_jsonl, read_text
from evals.chat.alpaca_eval import ANNOTATOR, OFFICIAL_JUDGE, is_switched, preference_from_logprobs
from evals.chat.alpaca_eval_metrics import LC, LC_NOREG, Judged, coefficients, controllable, fit_rows, length_row, raw_rows
from evals.chat.length_control import read_difficulty, read_gamed
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
from evals.verdict import Verdict

OFFICIAL_SET = "alpaca_eval/eval_set_and_baseline_outputs.jsonl.gz"
OFFICIAL_BASELINE = "gpt4_1106_preview"
_NEEDED = ("instruction", "output_1", "output_2", "generator_1", "generator_2", "preference")
_COUNTS = ("n_wins", "n_wins_base", "n_draws", "n_total", "avg_length")


class AlpacaEvalFormat:
    """See `evals.formats.saved.SavedFormat`."""

    benchmark = "alpaca_eval"
    options: Mapping[str, tuple[str, ...]] = {
        "folds": ("stable", "introsort", "avx512"),
        "length-control": ("official", "noreg"),
        "difficulty": ("position", "instruction"),
    }
    assets = ("questions", "gamed", "difficulty")

    def read(self, paths: Sequence[Path], options: Mapping[str, str], files: Mapping[str, Path]) -> list[SavedEvaluation]:
        """Evaluations by model, annotator and baseline; several may share one file."""
        official = _official_positions(files)
        groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for path in _annotation_files(paths):
            for number, row in enumerate(read_rows(path), 1):
                _check(row, path, number)
                groups.setdefault((row["generator_2"], row.get("annotator") or ANNOTATOR, row["generator_1"]), []).append(row)
        return [_Group(*key, rows, official).evaluation(options, files) for key, rows in sorted(groups.items())]

    def read_outputs(self, paths: Sequence[Path]) -> list[SavedOutputs]:
        """Answers of `model_outputs.json` files. Raises MissingInput without the official set, whose places are the ids."""
        by_model: dict[str, list[dict[str, Any]]] = {}
        for path in (p for p in paths if not p.name.endswith((".csv", ".csv.gz"))):
            for number, row in enumerate(read_rows(path), 1):
                if not {"instruction", "output"} <= row.keys():
                    raise MissingInput(f"{path}, row {number} has no `instruction` and `output`; give a model_outputs.json.")
                by_model.setdefault(row.get("generator") or path.parent.name, []).append(row)
        official = _official_positions({"questions": _official_set()})
        found = []
        for model, rows in sorted(by_model.items()):
            instructions = [row["instruction"] for row in rows]
            outside = next((text for text in instructions if text not in official), None)
            if outside is not None:
                raise MissingInput(f"{model} answers {outside[:60]!r}, which AlpacaEval does not ask; give outputs of its 805.")
            ids = _question_ids(instructions, official)
            answers = [SavedAnswer(i, row["output"] or "", sample=k) for (i, k), row in zip(ids, rows, strict=True)]
            absent = len(official.keys() - set(instructions))
            found.append(SavedOutputs(model, answers, [f"{absent} of the 805 instructions have no output."] if absent else []))
        return found

    def write(self, model: str, rows: Stored, folder: Path) -> list[Path]:
        """`MODEL/model_outputs.json` and `MODEL/ANNOTATOR/annotations.json`, as alpaca_eval lays out its results folder."""
        if not rows.answers:
            raise MissingInput(
                f"What is recorded of {model} holds no answers to write: it is a published score, or its import had none."
            )
        annotator = ANNOTATOR if rows.judge == OFFICIAL_JUDGE else rows.judge
        outputs, annotations = [], []
        for question in rows.questions:
            common = {"dataset": question.category, "instruction": question.turns[0]}
            for key in (key for key in sorted(rows.answers) if key[0] == question.id):
                answer = rows.answers[key]
                outputs.append(common | {"output": answer.text, "generator": model})
                judgment = rows.judgments.get((*key, 1))
                value = judgment.value if judgment else None
                annotation = common | {"output_1": question.data["baseline"], "generator_1": question.data["generator"]}
                annotation |= {"output_2": answer.text, "generator_2": model, "annotator": annotator}
                annotation |= {"preference": None if value is None else 1 + value}
                annotation |= {"price_per_example": judgment.micro_dollars / 1e6 if judgment else None, "time_per_example": None}
                annotations.append(annotation | {"raw_completion": _completion(judgment)})
        place = folder / file_name(model)
        texts = {"model_outputs.json": outputs, f"{file_name(annotator)}/annotations.json": annotations}
        return [write_text(place / name, json.dumps(found, indent=2, ensure_ascii=False)) for name, found in texts.items()]

    def read_published(self, paths: Sequence[Path]) -> list[PublishedScore]:
        """A leaderboard CSV; the judge is the annotator that its name says (`ANNOTATOR_leaderboard.csv`)."""
        found = []
        for path in paths:
            stem = path.name.split(".")[0].replace("_leaderboard", "").replace("leaderboard_", "")
            table = csv.DictReader(io.StringIO(read_text(path)))
            if "win_rate" not in (table.fieldnames or ()):
                raise MissingInput(f"{path} has no column win_rate; give a leaderboard CSV of alpaca_eval.")
            names = [column for column in ("", "model", "name") if column in (table.fieldnames or ())]
            for row in table:
                model = next((row[name] for name in names if row[name]), "")
                found += [PublishedScore(model, score, _judge_of(stem)) for score in _published(row)]
        return found


@dataclass(frozen=True)
class _Group:
    """The rows of one model under one annotator against one baseline, in the order of the file."""

    model: str
    annotator: str
    baseline: str
    rows: list[dict[str, Any]]
    official: Mapping[str, int]

    def evaluation(self, options: Mapping[str, str], files: Mapping[str, Path]) -> SavedEvaluation:
        instructions = [row["instruction"] for row in self.rows]
        ids = _question_ids(instructions, self.official)
        preferences = [_preference(row["preference"]) for row in self.rows]
        verdicts = [
            Verdict(i, None if p is None else p - 1, sample=k, error=None if p is not None else "no preference", raw=_raw(row))
            for (i, k), p, row in zip(ids, preferences, self.rows, strict=True)
        ]
        answers = [SavedAnswer(i, row["output_2"] or "", sample=k) for (i, k), row in zip(ids, self.rows, strict=True)]
        kept = [place for place, p in enumerate(preferences) if p is not None]
        absent = self._absent(instructions)
        columns = (
            [preferences[place] - 1 for place in kept],
            [len(self.rows[place]["output_1"] or "") for place in kept],
            [len(self.rows[place]["output_2"] or "") for place in kept],
        )
        n_failed = len(self.rows) - len(kept) + absent
        judged = Judged(*(np.array(column, dtype=float) for column in columns), n_failed)
        notes = [*_set_notes(instructions, self.official), *self._row_notes(len(self.rows) - len(kept), absent, ids)]
        lengths = length_row([len(row["output_2"] or "") for row in self.rows])
        statistics: dict[str, Any] = {"baseline": self.baseline}
        if kept:
            controlled, found, more = self._length_controlled(judged, [ids[place][0] for place in kept], options, files)
            headline = not any(row.headline for row in controlled)
            scores = [*raw_rows(judged, "weighted preference", headline), lengths, *controlled]
            statistics, notes = statistics | found, [*notes, *more]
        else:
            scores = [ScoreRow("win_rate", None, None, None, "no verdicts", 0, n_failed, 0.0, 100.0, True), lengths]
        return SavedEvaluation(
            model=self.model,
            judge=_judge_of(self.annotator),
            judge_kind="openai",
            judge_config={"annotator": self.annotator, "baseline": self.baseline, "metrics": dict(options)},
            scores=scores,
            verdicts=verdicts,
            answers=answers,
            statistics=statistics,
            notes=notes,
        )

    def _absent(self, instructions: Sequence[str]) -> int:
        """Official instructions that the file has no row for (0 for another set)."""
        return len(self.official.keys() - set(instructions)) if self._is_official(instructions) else 0

    def _is_official(self, instructions: Sequence[str]) -> bool:
        return bool(self.official) and self.official.keys() >= set(instructions)

    def _row_notes(self, failed: int, absent: int, ids: Sequence[tuple[str, int]]) -> list[str]:
        notes = []
        if failed:
            notes.append(f"{failed} rows hold no preference in 1..2; they count as failed, where upstream leaves them out.")
        if absent:
            notes.append(f"{absent} of the {len(self.official)} instructions have no row; they count as failed.")
        repeated = sum(sample > 0 for _, sample in ids)
        if repeated:
            notes.append(f"{repeated} rows repeat an instruction; every row counts, as upstream counts them.")
        compared = [(row, _from_logprobs(row)) for row in self.rows]
        differing = sum(p is not None and abs(p - (_preference(row["preference"]) or 0)) > 1e-4 for row, p in compared)
        if differing:
            notes.append(f"{differing} preferences differ from the log-probabilities stored beside them; the preferences count.")
        return notes

    def _length_controlled(
        self, judged: Judged, ids: Sequence[str], options: Mapping[str, str], files: Mapping[str, Path]
    ) -> tuple[list[ScoreRow], dict[str, Any], list[str]]:
        """(rows, statistics, notes); no rows where length control cannot be had, with a note that says why."""
        n, failed = len(judged.probability), judged.n_failed
        if self.model == self.baseline:
            row = ScoreRow(LC, 50.0, None, None, "the baseline against itself: 50 by construction", n, failed, headline=True)
            return [row], {}, []
        source = files.get("difficulty") or files.get("gamed")
        notes = []
        official = options["length-control"] == "official"
        if official and (self.annotator, self.baseline) != (ANNOTATOR, OFFICIAL_BASELINE):
            official = False
            notes.append(
                f"The gamed rows carry the length bias of {ANNOTATOR} against {OFFICIAL_BASELINE}; "
                f"{self.annotator} against {self.baseline} is controlled for length without them ({LC_NOREG})."
            )
        wanted = "gamed" if official and "gamed" not in files else "difficulty" if source is None else None
        if wanted:
            return [], {}, [*notes, f"No length control: the file {wanted!r} is not here; run `harness data fetch alpaca_eval`."]
        assert source is not None
        if not self._is_official([row["instruction"] for row in self.rows]):
            return [], {}, [*notes, "No length control: difficulties are known for the official 805 instructions alone."]
        if not controllable(judged):
            return [], {}, [*notes, "No length control: fewer than 50 judged rows, or lengths that differ by a constant."]
        known = read_difficulty(source)
        if n > len(known) and options["difficulty"] == "position":
            return [], {}, [*notes, f"No length control by position: {n} judged rows for {len(known)} difficulties."]
        # Upstream looks difficulty up by row position after failed rows are dropped.
        difficulty = known[:n] if options["difficulty"] == "position" else known[[int(i) for i in ids]]
        gamed = read_gamed(files["gamed"]) if official else None
        metric = LC if official else LC_NOREG
        note = f"difficulty by {options['difficulty']}, "
        rows, fit = fit_rows(metric, judged, difficulty, gamed, options["folds"], note, headline=official)
        return rows, {"length_controlled": {metric: coefficients(fit)}}, notes


def _official_set() -> Path:
    for root in (data_mirror(), data_cache()):
        if root is not None and (root / OFFICIAL_SET).is_file():
            return root / OFFICIAL_SET
    raise MissingInput(
        "Outputs are matched to AlpacaEval's questions by their instructions, and these are not here; "
        "run `harness data fetch alpaca_eval`."
    )


def _official_positions(files: Mapping[str, Path]) -> dict[str, int]:
    """instruction -> place in the official set; {} where its file was not given."""
    if "questions" not in files:
        return {}
    return {row["instruction"]: place for place, row in enumerate(read_jsonl(files["questions"]))}


def _question_ids(instructions: Sequence[str], official: Mapping[str, int]) -> list[tuple[str, int]]:
    """(question id, how often it came before) of each row: its place in the official set if all are of it, else in the file."""
    places = dict(official) if official.keys() >= set(instructions) else {}
    seen: dict[str, int] = {}
    found = []
    for place, instruction in enumerate(instructions):
        identity = str(places.setdefault(instruction, place))
        found.append((identity, seen.get(identity, 0)))
        seen[identity] = seen.get(identity, 0) + 1
    return found


def _set_notes(instructions: Sequence[str], official: Mapping[str, int]) -> list[str]:
    outside = len(set(instructions) - official.keys()) if official else 0
    return [f"{outside} instructions are not of the official set; question ids are places in the file."] if outside else []


def _annotation_files(paths: Sequence[Path]) -> list[Path]:
    """The files among a results folder's that hold annotations. Raises MissingInput when none does."""
    kept = [p for p in paths if not p.name.startswith(("model_outputs", "reference_outputs")) and ".csv" not in p.name]
    if not kept:
        raise MissingInput(
            f"{', '.join(p.name for p in paths)}: no annotations; give an annotations.json, or `harness import --outputs` them."
        )
    return kept


def _check(row: Mapping[str, Any], path: Path, number: int) -> None:
    missing = [name for name in _NEEDED if name not in row]
    if missing:
        hint = " (these are outputs: `harness import --outputs` takes them)" if "output" in row else ""
        raise MissingInput(f"{path}, row {number} has no {missing[0]!r}; give an annotations.json of alpaca_eval{hint}.")


def _preference(value: Any) -> float | None:
    """A preference in [1, 2]; 0 is a draw; None for null, NaN and what upstream drops as no preference."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return 1.5 if value == 0 else float(value) if 1 <= value <= 2 else None


def _from_logprobs(row: Mapping[str, Any]) -> float | None:
    """The preference that the row's stored log-probabilities give; None where it holds none."""
    completion = row.get("raw_completion")
    content = ((completion.get("logprobs") or {}).get("content") or []) if isinstance(completion, Mapping) else []
    if not content:
        return None
    top = {token["token"]: token["logprob"] for token in content[0].get("top_logprobs") or []}
    return preference_from_logprobs(top, is_switched(row["instruction"]))


def _raw(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"preference": _preference(row["preference"]), "raw_completion": row.get("raw_completion")}


def _completion(judgment: Any) -> Any:
    """What the judge said, in the shape in which alpaca_eval keeps a chat completion with log-probabilities."""
    raw = (judgment.raw if judgment else None) or {}
    if "raw_completion" in raw:
        return raw["raw_completion"]
    replies = raw.get("replies") or []
    if not replies:
        return None
    last = replies[-1]
    top = [{"token": token, "logprob": value} for token, value in (last.get("top_logprobs") or {}).items()]
    content = [{"token": last["text"], "top_logprobs": top}] if top else None
    return {"text": last["text"], "finish_reason": last.get("finish_reason"), "logprobs": {"content": content}}


def _judge_of(annotator: str) -> str:
    """The judge's model for the official annotator; another annotator is named by itself."""
    return OFFICIAL_JUDGE if annotator == ANNOTATOR else annotator


def _published(row: Mapping[str, str]) -> list[ScoreRow]:
    """The cells of one row that hold a number."""

    def number(name: str) -> float | None:
        text = (row.get(name) or "").strip()
        value = float(text) if text else math.nan
        return None if math.isnan(value) else value

    n = int(number("n_total") or 0)
    win, error, controlled = number("win_rate"), number("standard_error"), number(LC)
    found = []
    if controlled is not None:
        # The published error of this one is a spread over instructions, which makes no interval.
        found.append(ScoreRow(LC, controlled, None, None, "published", n, 0, headline=True))
    if win is not None:
        ends = (None, None) if error is None else (max(0.0, win - 1.96 * error), min(100.0, win + 1.96 * error))
        method = "published" if error is None else "published; 1.96 published standard errors"
        found.append(ScoreRow("win_rate", win, *ends, method, n, 0, headline=controlled is None, stderr=error))
    discrete = number("discrete_win_rate")
    if discrete is not None:
        found.append(ScoreRow("discrete_win_rate", discrete, None, None, "published", n, 0))
    for name in ("standard_error", "lc_standard_error", *_COUNTS):
        value = number(name)
        if value is not None:
            found.append(ScoreRow(name, value, None, None, "published", n, 0, higher_is_better=None))
    return found
