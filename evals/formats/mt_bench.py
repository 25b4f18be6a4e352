"""MT-Bench's own files (FastChat `llm_judge`): `gpt-4_single.jsonl`, `gpt-4_pair.jsonl`, `model_answer/MODEL.jsonl`.

The numbers are those of `show_result.py`: every rated row counts, a row of score -1 or with a game "error" is a failure that
upstream leaves out and that is counted here. Several models may share a file.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.errors import MissingInput
from core.fingerprint import digest
from evals.benchmark import ScoreRow, read_jsonl, read_text
from evals.chat.mt_bench import NEEDS_REFERENCE, count_flags, find_rating, rating_row
from evals.chat.mt_bench_pairwise import LOSS, TIE, WIN, pair_rows, turn_result
from evals.formats.saved import (
    PublishedScore,
    SavedAnswer,
    SavedEvaluation,
    SavedOutputs,
    Stored,
    file_name,
    read_rows,
    shown,
    write_text,
)
from evals.verdict import Verdict

FAILED_SCORE = -1
DEFAULT_BASELINE = "gpt-3.5-turbo"
"""Of `show_result.py --mode pairwise-baseline`."""
_SINGLE = ("question_id", "model", "score", "turn")
_PAIR = ("question_id", "model_1", "model_2", "g1_winner", "g2_winner", "turn")
_TURNS = (1, 2)


@dataclass(frozen=True)
class PairEvaluation(SavedEvaluation):
    """Pairwise verdicts: another benchmark than the ratings."""

    benchmark: str = "mt_bench_pairwise"


class MTBenchFormat:
    """See `evals.formats.saved.SavedFormat`."""

    benchmark = "mt_bench"
    options: Mapping[str, tuple[str, ...]] = {}
    assets = ("questions",)

    def read(self, paths: Sequence[Path], options: Mapping[str, str], files: Mapping[str, Path]) -> list[SavedEvaluation]:
        """Ratings by model and judge, and pairwise results by model and judge; both kinds may be given at once."""
        single: dict[tuple[str, str], list[dict[str, Any]]] = {}
        pairs: dict[str, list[dict[str, Any]]] = {}
        for path in _judgment_files(paths):
            for number, row in enumerate(read_rows(path), 1):
                needed = _PAIR if "g1_winner" in row else _SINGLE
                missing = [name for name in needed if name not in row]
                if missing:
                    raise MissingInput(f"{path}, row {number} has no {missing[0]!r}; give a file of model_judgment/.")
                if needed is _PAIR:
                    pairs.setdefault(_judge(row), []).append(row)
                else:
                    single.setdefault((row["model"], _judge(row)), []).append(row)
        categories = _categories(files)
        found = [_single_evaluation(*key, rows, categories) for key, rows in single.items()]
        for judge, rows in pairs.items():
            found += _pair_evaluations(judge, rows, categories)
        return sorted(found, key=lambda evaluation: evaluation.model)

    def read_outputs(self, paths: Sequence[Path]) -> list[SavedOutputs]:
        """Answers of `model_answer/MODEL.jsonl` files, one choice with its turns a question."""
        by_model: dict[str, list[dict[str, Any]]] = {}
        for path in paths:
            for number, row in enumerate(read_rows(path), 1):
                if not {"question_id", "choices"} <= row.keys() or not row["choices"]:
                    raise MissingInput(f"{path}, row {number} has no `question_id` and `choices`; give a model_answer file.")
                by_model.setdefault(row.get("model_id") or path.name.split(".jsonl")[0], []).append(row)
        return [
            SavedOutputs(
                model,
                [
                    SavedAnswer(str(row["question_id"]), text, turn, sample)
                    for row in rows
                    for sample, choice in enumerate(row["choices"])
                    for turn, text in enumerate(choice["turns"], 1)
                ],
            )
            for model, rows in sorted(by_model.items())
        ]

    def write(self, model: str, rows: Stored, folder: Path) -> list[Path]:
        """`model_answer/MODEL.jsonl`, where answers are held; `model_judgment/JUDGE_single.jsonl`, in which other models stay."""
        if not rows.answers and not rows.judgments:
            raise MissingInput(
                f"What is recorded of {model} holds no answers and no judgments to write: it is a published score."
            )
        name, answers = file_name(model), []
        for question in rows.questions:
            samples = sorted({sample for of, _, sample in rows.answers if of == question.id})
            choices = [
                {
                    "index": sample,
                    "turns": [rows.answers[question.id, turn, sample].text for turn in range(1, len(question.turns) + 1)],
                }
                for sample in samples
            ]
            if not choices:
                continue
            identity = {"question_id": _id(question.id), "answer_id": digest([model, question.id])[:22], "model_id": name}
            answers.append(identity | {"choices": choices, "tstamp": 0})
        judged = []
        for question in rows.questions:
            for (of, turn, _, _), judgment in sorted(rows.judgments.items()):
                if of == question.id:
                    judged.append(_judgment_row(name, rows.judge, question, turn, judgment, rows.user_prompt_of(judgment)))
        target = folder / "model_judgment" / f"{rows.judge.replace('/', '__')}_single.jsonl"
        others = [row for row in read_jsonl(target) if row["model"] != name] if target.is_file() else []
        written = [write_text(folder / "model_answer" / f"{name}.jsonl", _lines(answers))] if answers else []
        return [*written, write_text(target, _lines(others + judged))]

    def read_published(self, paths: Sequence[Path]) -> list[PublishedScore]:
        """A CSV with the columns model and score, and lower and upper where it has an interval; judged by gpt-4."""
        found = []
        for path in paths:
            table = csv.DictReader(io.StringIO(read_text(path)))
            if not {"model", "score"} <= set(table.fieldnames or ()):
                raise MissingInput(f"{path} has no columns model and score; give a CSV with these (and lower, upper).")
            for row in table:
                low, high = (float(row[end]) if row.get(end) else None for end in ("lower", "upper"))
                method = "published" if low is None else "published, bootstrap"
                score = ScoreRow("average", float(row["score"]), low, high, method, 0, 0, headline=True)
                found.append(PublishedScore(row["model"], score, "gpt-4"))
        return found


def _single_evaluation(model: str, judge: str, rows: Sequence[dict[str, Any]], categories: Mapping[str, str]) -> SavedEvaluation:
    """average, turn1, turn2 and the categories of one model's ratings."""
    items = [(str(row["question_id"]), int(row["turn"])) for row in rows]
    ratings = [None if row["score"] == FAILED_SCORE else float(row["score"]) for row in rows]
    kept = [(item, rating) for item, rating in zip(items, ratings, strict=True) if rating is not None]
    done = {item for item, _ in kept}
    known = bool(categories) and {question for question, _ in items} <= categories.keys()
    wanted = {(question, turn) for question in categories for turn in _TURNS} if known else set(items)
    unrated = wanted - done
    readings = [find_rating(row["judgment"]) if row.get("judgment") else None for row in rows]
    differing = sum(found is not None and found[0] != rating for found, rating in zip(readings, ratings, strict=True))

    def mean(metric: str, part: set[tuple[str, int]], headline: bool = False) -> ScoreRow:
        inside = [(item, rating) for item, rating in kept if item in part]
        return rating_row(
            metric,
            *([rating for _, rating in inside], [question for (question, _), _ in inside]),
            n_failed=len(unrated & part),
            kind="mean of all ratings",
            headline=headline,
        )

    everything = wanted | done
    scores = [mean("average", everything, headline=True)]
    scores += [mean(f"turn{turn}", {item for item in everything if item[1] == turn}) for turn in _TURNS]
    for category in dict.fromkeys(categories.values()) if known else ():
        scores.append(mean(f"category:{category}", {item for item in everything if categories[item[0]] == category}))
    statistics: dict[str, Any] = {"flagged": count_flags(found[1] for found in readings if found)}
    notes = _notes(items, ratings, unrated, differing, known)
    if len(kept) > len(done):
        last = dict(kept)
        statistics["repeated"] = {"rows": len(kept) - len(done), "average_of_last": sum(last.values()) / len(last)}
        notes.append(
            f"{len(kept) - len(done)} ratings repeat a question and turn; every one counts, as in FastChat's show_result. "
            f"The last of each alone average {statistics['repeated']['average_of_last']:.4f}."
        )
    sample = _samples(items)
    verdicts = [
        Verdict(
            *(question, rating, turn, sample[place]),
            error=None if rating is not None else "no rating",
            raw={"rating": rating, "judgment": row.get("judgment"), "template": _template(row)},
            shown=shown(row.get("user_prompt")),
        )
        for place, ((question, turn), rating, row) in enumerate(zip(items, ratings, rows, strict=True))
    ]
    return SavedEvaluation(model, judge, "openai", {"mode": "single"}, scores, verdicts, (), statistics, notes)


def _notes(
    items: Sequence[tuple[str, int]],
    ratings: Sequence[float | None],
    unrated: set[tuple[str, int]],
    differing: int,
    known: bool,
) -> list[str]:
    notes = []
    failed = sum(rating is None for rating in ratings)
    if failed:
        notes.append(f"{failed} rows hold no rating (score -1), which upstream leaves out in silence.")
    absent = len(unrated - set(items))
    if absent:
        notes.append(f"{absent} of the {len(unrated | set(items))} judgments are not in the file; they count as failed.")
    if differing:
        notes.append(f"{differing} scores differ from the rating in their judgment's text; the scores count.")
    if not known:
        notes.append("Categories, and judgments that are not in the file, need MT-Bench's questions; these are other questions.")
    return notes


def _pair_evaluations(judge: str, rows: list[dict[str, Any]], categories: Mapping[str, str]) -> list[SavedEvaluation]:
    """One evaluation a model: against the default baseline where it plays, else over all its pairs."""
    models = {row[side] for row in rows for side in ("model_1", "model_2")}
    baseline = DEFAULT_BASELINE if DEFAULT_BASELINE in models and len(models) > 1 else None
    found: list[SavedEvaluation] = []
    for model in sorted(models - {baseline}):
        games = [row for row in rows if model in _sides(row) and (baseline is None or baseline in _sides(row))]
        if not games:
            continue
        items = [(str(row["question_id"]), int(row["turn"])) for row in games]
        sample = _samples(items)
        results, verdicts = [], []
        for place, ((question, turn), row) in enumerate(zip(items, games, strict=True)):
            points = [_points(row, game, model) for game in (1, 2)]
            first, second = points
            results.append(None if first is None or second is None else turn_result(first, second))
            for game, value in enumerate(points, 1):
                raw = {"winner": row[f"g{game}_winner"], "judgment": row.get(f"g{game}_judgment"), "template": _template(row)}
                error = None if value is not None else "no verdict"
                said = shown(row.get(f"g{game}_user_prompt"))
                verdicts.append(Verdict(question, value, turn, sample[place], game, error, raw, shown=said))
        opponents = sorted({side for row in games for side in _sides(row)} - {model})
        absent = _absent_turns(items, [row[_other_side(row, model)] for row in games], opponents, categories)
        failed = results.count(None)
        items, results = [*items, *absent], [*results, *[None] * len(absent)]
        questions = [question for question, _ in items]
        kind = "both orders agree, else a tie"
        scores = pair_rows(results, questions, kind)
        for turn in sorted({turn for _, turn in items}):
            part = [place for place, item in enumerate(items) if item[1] == turn]
            scores.append(_named(f"turn{turn}", [results[i] for i in part], [questions[i] for i in part], kind))
        for category in dict.fromkeys(categories[q] for q in questions if q in categories):
            part = [place for place, q in enumerate(questions) if categories.get(q) == category]
            scores.append(_named(f"category:{category}", [results[i] for i in part], [questions[i] for i in part], kind))
        notes = [f"{failed} turns have a game without a verdict, which upstream leaves out in silence."] if failed else []
        if absent:
            notes.append(f"{len(absent)} of the {len(items)} turns are not in the file; they count as failed.")
        config = {"mode": "pairwise", "opponents": opponents}
        statistics = {"opponents": opponents, "baseline": baseline}
        found.append(PairEvaluation(model, judge, "openai", config, scores, verdicts, (), statistics, notes))
    return found


def _named(metric: str, results: Sequence[float | None], questions: Sequence[str], kind: str) -> ScoreRow:
    """win_rate_adjusted of a part of the turns, under another name."""
    return replace(pair_rows(results, questions, kind, counted=False)[0], metric=metric, headline=False)


def _points(row: Mapping[str, Any], game: int, model: str) -> float | None:
    """The model's points in a game; None where the judge gave no verdict."""
    winner = row[f"g{game}_winner"]
    if winner == "tie":
        return TIE
    return None if winner not in ("model_1", "model_2") else WIN if row[winner] == model else LOSS


def _other_side(row: Mapping[str, Any], model: str) -> str:
    return "model_2" if row["model_1"] == model else "model_1"


def _absent_turns(
    items: Sequence[tuple[str, int]], against: Sequence[str], opponents: Sequence[str], categories: Mapping[str, str]
) -> list[tuple[str, int]]:
    """(question, turn) of each opponent's that has no row; [] where these are not MT-Bench's questions."""
    if not {question for question, _ in items} <= categories.keys():
        return []
    played = set(zip(items, against, strict=True))
    wanted = [((question, turn), name) for name in opponents for question in categories for turn in _TURNS]
    return [item for item, name in wanted if (item, name) not in played]


def _sides(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["model_1"], row["model_2"]


def _samples(items: Sequence[tuple[str, int]]) -> list[int]:
    """How often each (question, turn) came before."""
    seen: dict[tuple[str, int], int] = {}
    found = []
    for item in items:
        found.append(seen.get(item, 0))
        seen[item] = found[-1] + 1
    return found


def _categories(files: Mapping[str, Path]) -> dict[str, str]:
    """question id -> category, in the benchmark's order; {} where its questions were not given."""
    if "questions" not in files:
        return {}
    return {str(row["question_id"]): row["category"] for row in read_jsonl(files["questions"])}


def _judgment_files(paths: Sequence[Path]) -> list[Path]:
    """The files that are not answers or questions. Raises MissingInput when none is left."""
    answers = ("model_answer", "reference_answer")
    kept = [
        path
        for path in paths
        if path.parent.name not in answers and not path.name.startswith(("question.", *answers)) and ".csv" not in path.name
    ]
    if not kept:
        raise MissingInput(
            f"{', '.join(path.name for path in paths)}: no judgments; give a file of model_judgment/, or "
            "`harness import --outputs` the answers."
        )
    return kept


def _judge(row: Mapping[str, Any]) -> str:
    """The judge's model; files before the field existed are GPT-4's."""
    judge = row.get("judge") or "gpt-4"
    return str(judge[0]) if isinstance(judge, list) else str(judge)


def _template(row: Mapping[str, Any]) -> str | None:
    judge = row.get("judge")
    return str(judge[1]) if isinstance(judge, list) and len(judge) > 1 else None


def _judgment_row(model: str, judge: str, question: Any, turn: int, judgment: Any, prompt: str) -> dict[str, Any]:
    """One line of `JUDGE_single.jsonl`. `prompt` is "" for judgments of before prompts were kept."""
    raw = judgment.raw or {}
    replies = raw.get("replies") or []
    template = "single-math-v1" if question.category in NEEDS_REFERENCE else "single-v1"
    return {
        "question_id": _id(question.id),
        "model": model,
        "judge": [judge, template + ("-multi-turn" if turn == 2 else "")],
        "user_prompt": prompt,
        "judgment": replies[-1]["text"] if replies else raw.get("judgment") or "",
        "score": FAILED_SCORE if judgment.value is None else judgment.value,
        "turn": turn,
        "tstamp": 0,
    }


def _id(question: str) -> int | str:
    return int(question) if question.isdigit() else question


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
