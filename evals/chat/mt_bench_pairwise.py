"""MT-Bench's pairwise mode: the policy against a baseline, each turn judged in both orders.

Reference: FastChat's `llm_judge` (`gen_judgment.py --mode pairwise-baseline`, `show_result.py`). In game 1 the policy is
assistant A, in game 2 assistant B; a turn is won or lost only if both games say so, all else is a tie. Verdict scale: the
policy's points in a game, 0, 0.5 or 1. A reward model judges one game a turn, with its probability.

The official baseline, the answers of gpt-3.5-turbo, is published only in a space of the hub, and no hash of it is known
here: `HARNESS_HOME/catalogue.yaml` names the file that you trust, as asset `baseline` beside the entry's other three.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import MissingInput
from core.judged import Judged
from evals.benchmark import Question, ScoreRow, read_jsonl, require_asset, sample
from evals.chat.mt_bench import NEEDS_REFERENCE, PARAMETERS, MTBench, judge_templates
from evals.closed_form import failure_bounds
from evals.judges.judge import Judge, Key, Prompt, Reading, Reply, Task, fill
from evals.statistics import mean_interval
from evals.verdict import Verdict

WIN, TIE, LOSS = 1.0, 0.5, 0.0
_LABELS = ("[[A]]", "[[B]]", "[[C]]")


def find_winner(text: str) -> tuple[str | None, bool]:
    """("A" | "B" | "tie" | None, whether several labels stand in the text): upstream takes A before B before C."""
    found = [label for label in _LABELS if label in text]
    winner = {"[[A]]": "A", "[[B]]": "B", "[[C]]": "tie"}[found[0]] if found else None
    return winner, len(found) > 1


def game_points(winner: str, game: int) -> float:
    """The policy's points; it is assistant A in game 1 and B in game 2."""
    return TIE if winner == "tie" else WIN if (winner == "A") == (game == 1) else LOSS


def turn_result(first: float, second: float) -> float:
    """WIN or LOSS where both games say so, else TIE (`show_result.py`)."""
    return first if first == second else TIE


class MTBenchPairwise(MTBench):
    """The questions of MT-Bench with a baseline's answers, in the form of FastChat's `model_answer` files."""

    name = "mt_bench_pairwise"
    assets = {
        "starter": ("questions", "references", "baseline"),
        "official": ("questions", "references", "judge_prompts"),
    }
    optional_assets = {"starter": ("judge_prompts",), "official": ("baseline",)}
    headline = "win_rate_adjusted"
    unit = "percent"
    reward_rule = "sigmoid of reward difference to the baseline's answer"
    other = "baseline"

    def load(self, files: Mapping[str, Path], limit: int | None = None, sample_seed: int = 0) -> list[Question]:
        if "baseline" not in files:
            raise MissingInput(
                f"{self.name} needs the baseline's answers, of which no download can be verified: copy the catalogue's entry "
                "mt_bench_pairwise into HARNESS_HOME/catalogue.yaml under another name and add your model_answer file to it as "
                "asset `baseline`."
            )
        baseline = {row["question_id"]: row for row in read_jsonl(Path(files["baseline"]))}
        questions = []
        for question in super().load(files):
            row = baseline.get(int(question.id)) if question.id.isdigit() else baseline.get(question.id)
            turns = row["choices"][0]["turns"] if row else []
            if row is None or len(turns) < len(question.turns):
                raise MissingInput(
                    f"The baseline of {self.name} does not answer every turn of question {question.id}; give its whole "
                    "model_answer file."
                )
            data = question.data | {"baseline": turns, "generator": row.get("model_id", "")}
            questions.append(Question(question.id, question.category, question.turns, data))
        return sample(questions, limit, sample_seed)

    def judged_turns(self, question: Question, kind: str) -> Sequence[int]:
        return range(1, len(question.turns) + 1)

    def games(self, kind: str) -> int:
        # A reward model scores each answer alone, so positions do not exist.
        return 1 if kind == "reward_model" else 2

    def policy_first(self, task: Task, verdict: Verdict) -> bool | None:
        return task.game == 1

    def judge_config(self, files: Mapping[str, Path]) -> dict[str, Any]:
        templates = judge_templates(require_asset(files, "judge_prompts", self.name))
        used = {
            name: [templates[name]["system_prompt"], templates[name]["prompt_template"]]
            for name in ("pair-v2", "pair-math-v1", "pair-v2-multi-turn", "pair-math-v1-multi-turn")
        }
        prompts = hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()
        return {"prompt_sha256": prompts, "parameters": PARAMETERS, "parser": "first of " + " ".join(_LABELS)}

    def prompt(self, task: Task, files: Mapping[str, Path]) -> Prompt:
        with_reference = task.question.category in NEEDS_REFERENCE
        name = ("pair-math-v1" if with_reference else "pair-v2") + ("-multi-turn" if task.turn == 2 else "")
        template = judge_templates(require_asset(files, "judge_prompts", self.name))[name]
        sides = [task.answers, task.question.data["baseline"][: task.turn]]
        values = {"question": task.question.turns[0]}
        for label, side in zip("ab", sides if task.game == 1 else sides[::-1], strict=True):
            values[f"answer_{label}"] = side[0]
            values |= {f"answer_{label}_{number}": text for number, text in enumerate(side, 1)}
        values |= {f"question_{number}": text for number, text in enumerate(task.question.turns, 1)}
        if with_reference:
            values |= {f"ref_answer_{number}": text for number, text in enumerate(task.question.data["reference"], 1)}
        messages = [
            {"role": "system", "content": template["system_prompt"]},
            {"role": "user", "content": fill(template["prompt_template"], values)},
        ]
        return Prompt(messages, PARAMETERS, pattern="|".join(re.escape(label) for label in _LABELS))

    def read(self, task: Task, replies: Sequence[Reply], prompt: Prompt) -> Reading:
        winner, several = find_winner(replies[-1].text)
        if winner is None:
            return Reading(None, "the judge gave none of [[A]], [[B]], [[C]]")
        detail = {"winner": winner} | ({"flag": "several labels"} if several else {})
        return Reading(game_points(winner, task.game), detail=detail)

    def value_of(self, probability: float) -> float:
        return probability

    def question_value(self, judged: Sequence[Judged]) -> float | None:
        """The mean over its turns of what the two orders say together: a point where both agree, half of one otherwise."""
        turns: dict[tuple[int, int], list[float | None]] = {}
        for one in judged:
            turns.setdefault((one.turn, one.sample), []).append(one.value)
        results = [result for games in turns.values() if (result := _result(games)) is not None]
        return sum(results) / len(results) if results else None

    def scores(
        self,
        questions: Sequence[Question],
        answers: Mapping[tuple[str, int, int], Any],
        verdicts: Mapping[Key, Verdict],
        judge: Judge,
        files: Mapping[str, Path],
    ) -> list[ScoreRow]:
        turns: dict[tuple[str, int, int], list[float | None]] = {}
        categories = {question.id: question.category for question in questions}
        for task in self.tasks(questions, answers, judge.kind):
            verdict = verdicts.get(task.key)
            turns.setdefault(task.key[:3], []).append(None if verdict is None else verdict.value)
        results = {key: _result(games) for key, games in turns.items()}
        kind = self.reward_rule if judge.kind == "reward_model" else "both orders agree, else a tie"
        rows = pair_rows(list(results.values()), [key[0] for key in results], kind, counted=judge.kind != "reward_model")
        for turn in sorted({key[1] for key in results}):
            rows.append(_part(f"turn{turn}", {k: r for k, r in results.items() if k[1] == turn}, kind))
        for category in dict.fromkeys(categories.values()):
            rows.append(_part(f"category:{category}", {k: r for k, r in results.items() if categories[k[0]] == category}, kind))
        return rows

    def statistics(
        self,
        questions: Sequence[Question],
        answers: Mapping[tuple[str, int, int], Any],
        verdicts: Mapping[Key, Verdict],
        judge: Judge,
        files: Mapping[str, Path],
    ) -> dict[str, Any]:
        """{"flagged": {"several labels": judgments}}, and the baseline's name."""
        flags = Counter((verdict.raw or {}).get("flag") for verdict in verdicts.values())
        names = {question.data["generator"] for question in questions}
        return {"flagged": {"several labels": flags["several labels"]}, "baseline": ", ".join(sorted(names))}


def _result(games: Sequence[float | None]) -> float | None:
    """Of one turn: what its games say together; None where one failed, as upstream drops such a turn."""
    points = [value for value in games if value is not None]
    if len(points) < len(games):
        return None
    return points[0] if len(points) == 1 else turn_result(*points)


def pair_rows(results: Sequence[float | None], questions: Sequence[str], kind: str, counted: bool = True) -> list[ScoreRow]:
    """win_rate_adjusted (ties half), win_rate, loss_rate, tie_rate in per cent; one result per turn, None where it failed.

    The interval resamples `questions`. `counted=False`: probabilities, of which there are no wins to count.
    """
    rows = [_rate("win_rate_adjusted", results, questions, f"(wins + ties/2) / turns; {kind}", headline=True)]
    if not counted:
        return rows
    for metric, value, better in (("win_rate", WIN, True), ("loss_rate", LOSS, False), ("tie_rate", TIE, None)):
        hits = [None if result is None else float(result == value) for result in results]
        rows.append(_rate(metric, hits, questions, kind, better=better))
    return rows


def _part(metric: str, results: Mapping[tuple[str, int, int], float | None], kind: str) -> ScoreRow:
    return _rate(metric, list(results.values()), [key[0] for key in results], kind)


def _rate(
    metric: str,
    values: Sequence[float | None],
    questions: Sequence[str],
    kind: str,
    headline: bool = False,
    better: bool | None = True,
) -> ScoreRow:
    kept = [(value, question) for value, question in zip(values, questions, strict=True) if value is not None]
    failed = len(values) - len(kept)
    if not kept:
        return ScoreRow(metric, None, None, None, "no verdicts", 0, failed, 0.0, 100.0, headline, better)
    known = 100 * np.array([value for value, _ in kept])
    interval = mean_interval(known, [question for _, question in kept], support=(0, 100))
    worst, best = failure_bounds(float(known.sum()), len(kept), failed, 0, 100)
    method = f"{kind}; {interval.method}"
    whole = (interval.low, interval.high, method, len(kept), failed, worst, best, headline, better, interval.stderr)
    return ScoreRow(metric, interval.value, *whole)
