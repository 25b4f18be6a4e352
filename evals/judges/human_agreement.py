"""Pairs of answers that people have compared, as benchmarks whose subject is the judge.

Answer 1 stands for the baseline and answer 2 for the policy; game 1 shows 1 first, game 2 shows 2 first. Endpoints are asked
with AlpacaEval's own prompt (`evals.chat.alpaca_eval.judge_template`), reward models by their probabilities. No checkpoint's row
comes from here: `harness judge calibrate` runs these through the judge stage and keeps the statistics as a calibration.

Data: PandaLM's test set (WeOpenML/PandaLM, three annotators; arXiv 2306.05087) and LLMBar with its processed sets
(princeton-nlp/LLMBar, gold labels; arXiv 2310.07641).
"""

import csv
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.benchmark import Message, Question, ScoreRow, read_jsonl, read_text, require_asset, sample
from evals.chat.alpaca_eval import ANNOTATOR, AlpacaEval, judge_template, preference_from_logprobs
from evals.judges.agreement import Item, agreement, rank_agreement
from evals.judges.judge import Judge, JudgedBenchmark, Key, Prompt, Reading, Reply, Task, fill
from evals.verdict import Verdict

BOARD_MODELS = 12
"""Models of the AlpacaEval board whose outputs a live judge is asked about, spread evenly over its ranks."""
BOARD_METRIC = "length_controlled_winrate"


class AgreementSet(JudgedBenchmark):
    """Labelled pairs. `Question.data`: `baseline` and `policy` (answers 1 and 2), `people` (choices 0, 1, 2)."""

    assets = {"official": ("pairs",)}
    headline = "agreement"
    reward_rule = "sigmoid of reward difference of the two answers"

    @abstractmethod
    def rows(self, pairs: Iterable[Mapping[str, Any]]) -> list[Question]:
        """The questions of the file's rows."""

    @abstractmethod
    def saved(self, pairs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, tuple[float | None, ...]]]:
        """evaluator -> question id -> its verdicts as the file has them, in the sense of `Item.verdicts`."""

    def load(self, files: Mapping[str, Path], limit: int | None = None, sample_seed: int = 0) -> list[Question]:
        return sample(self.rows(read_jsonl(require_asset(files, "pairs", self.name))), limit, sample_seed)

    def games(self, kind: str) -> int:
        return 1 if kind == "reward_model" else 2

    def decided(self, task: Task) -> Verdict | None:
        """Two equal answers are a tie, and no call."""
        if task.answer == task.question.data["baseline"]:
            return Verdict(task.question.id, 0.5, raw={"rule": "equal answers"})
        return None

    def judge_config(self, files: Mapping[str, Path]) -> dict[str, Any]:
        _, parameters, prompt_sha256 = judge_template()
        return {"prompt_sha256": prompt_sha256, "parameters": parameters, "parser": "logprobs of m, M", "orders": 2}

    def prompt(self, task: Task, files: Mapping[str, Path]) -> Prompt:
        messages, parameters, _ = judge_template()
        one, two = task.question.data["baseline"], task.answer
        first, second = (one, two) if task.game == 1 else (two, one)
        values = {"instruction": task.question.turns[0], "output_1": first, "output_2": second}
        return Prompt([m | {"content": fill(m["content"], values)} for m in messages], parameters)

    def read(self, task: Task, replies: Sequence[Reply], prompt: Prompt) -> Reading:
        top = replies[-1].top_logprobs
        if top is None:
            return Reading(None, "the judge gave no log-probabilities; use a model and endpoint that return them")
        preference = preference_from_logprobs(top, task.game == 2)
        if preference is None:
            return Reading(None, "neither m nor M is among the judge's most likely tokens")
        return Reading(preference - 1, detail={"preference": preference})

    def compared(self, task: Task) -> tuple[list[Message], list[Message]]:
        user = {"role": "user", "content": task.question.turns[0]}
        answers = (task.answer, task.question.data["baseline"])
        ours, theirs = ([user, {"role": "assistant", "content": answer}] for answer in answers)
        return ours, theirs

    def value_of(self, probability: float) -> float:
        return probability

    def items(self, questions: Sequence[Question], verdicts: Mapping[Key, Verdict], games: int) -> list[Item]:
        """The questions with a judge's verdicts in each order."""
        found = []
        for q in questions:
            given = [verdicts.get((q.id, 1, 0, game)) for game in range(1, games + 1)]
            values = tuple(None if verdict is None else verdict.value for verdict in given)
            found.append(Item(q.id, q.category, tuple(q.data["people"]), values))
        return found

    def scores(
        self,
        questions: Sequence[Question],
        answers: Mapping[tuple[str, int, int], Any],
        verdicts: Mapping[Key, Verdict],
        judge: Judge,
        files: Mapping[str, Path],
    ) -> list[ScoreRow]:
        items = self.items(questions, verdicts, self.games(judge.kind))
        found = agreement(items).get("agreement")
        failed = sum(None in item.verdicts for item in items)
        value, low, high = (100 * found[k] for k in ("value", "low", "high")) if found else (None, None, None)
        method = "games in which the judge chooses what most people did; question bootstrap"
        return [ScoreRow("agreement", value, low, high, method, len(items) - failed, failed, headline=True)]

    def statistics(
        self,
        questions: Sequence[Question],
        answers: Mapping[tuple[str, int, int], Any],
        verdicts: Mapping[Key, Verdict],
        judge: Judge,
        files: Mapping[str, Path],
    ) -> dict[str, Any]:
        return {"agreement": by_category(self.items(questions, verdicts, self.games(judge.kind)))}


class PandaLM(AgreementSet):
    """999 pairs, three annotators each."""

    name = "judge_agreement_pandalm"

    def rows(self, pairs: Iterable[Mapping[str, Any]]) -> list[Question]:
        found = []
        for row in pairs:
            instruction = row["instruction"] + (f"\n\n{row['input']}" if row["input"] else "")
            people = [row["annotator1"], row["annotator2"], row["annotator3"]]
            data = {"baseline": row["response1"], "policy": row["response2"], "people": people}
            found.append(Question(str(row["idx"]), "pandalm", (instruction,), data))
        return found

    def saved(self, pairs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, tuple[float | None, ...]]]:
        """One order only. An unreadable verdict of the file is a failure."""
        shares = {"1": 0.0, "2": 1.0, "0": 0.5, "Tie": 0.5}
        found: dict[str, dict[str, tuple[float | None, ...]]] = {"gpt-3.5-turbo": {}, "pandalm-7b": {}}
        for row in pairs:
            for name, verdicts in found.items():
                verdicts[str(row["idx"])] = (shares.get(str(row[name])),)
        return found


class LLMBar(AgreementSet):
    """419 pairs with an objectively better answer (100 natural, 319 adversarial) and 466 of the processed sets."""

    name = "judge_agreement_llmbar"

    def rows(self, pairs: Iterable[Mapping[str, Any]]) -> list[Question]:
        found = []
        for row in pairs:
            data = {"baseline": row["output_1"], "policy": row["output_2"], "people": [row["label"]]}
            found.append(Question(f"{row['subset']}/{row['i']}", row["subset"], (row["input"],), data))
        return found

    def saved(self, pairs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, tuple[float | None, ...]]]:
        shares = {"1": 0.0, "2": 1.0}
        found: dict[str, dict[str, tuple[float | None, ...]]] = {}
        for row in pairs:
            for name, given in row["judges"].items():
                orders = (shares.get(given.get("swap = False")), shares.get(given.get("swap = True")))
                found.setdefault(name, {})[f"{row['subset']}/{row['i']}"] = orders
        return found


class Board(AlpacaEval):
    """AlpacaEval itself, on outputs of models whose published score is known: does the judge rank them as the board does?

    A question is one instruction and one model; `limit` counts instructions.
    """

    name = "judge_agreement_board"
    assets = {"official": ("questions", "outputs", "prompts", "board", "annotations")}
    optional_assets = {}
    headline = "spearman"

    def load(self, files: Mapping[str, Path], limit: int | None = None, sample_seed: int = 0) -> list[Question]:
        instructions = sample(super().load(files), limit, sample_seed)
        known = {q.turns[0]: q for q in instructions}
        prompts = _prompts(files)
        outputs: dict[str, dict[str, str]] = {}
        for row in read_jsonl(require_asset(files, "outputs", self.name)):
            outputs.setdefault(row["generator"], {})[prompts[row["p"]]] = row["output"]
        published = read_board(require_asset(files, "board", self.name))
        found = []
        for model in spread(sorted(set(outputs) & set(published), key=lambda name: published[name])):
            for text, q in known.items():
                if outputs[model].get(text):
                    data = q.data | {"policy": outputs[model][text], "model": model, "published": published[model]}
                    found.append(Question(f"{model}/{q.id}", q.category, q.turns, data))
        return found

    def scores(
        self,
        questions: Sequence[Question],
        answers: Mapping[tuple[str, int, int], Any],
        verdicts: Mapping[Key, Verdict],
        judge: Judge,
        files: Mapping[str, Path],
    ) -> list[ScoreRow]:
        found = rank_agreement(*_by_model(questions, verdicts)).get("spearman", {})
        failed = sum(verdicts.get((q.id, 1, 0, 1)) is None or verdicts[q.id, 1, 0, 1].value is None for q in questions)
        ends = [found.get(key) for key in ("value", "low", "high")]
        method = f"rank correlation with the published {BOARD_METRIC}; questions resampled"
        return [ScoreRow("spearman", *ends, method, len(questions) - failed, failed, headline=True)]

    def statistics(
        self,
        questions: Sequence[Question],
        answers: Mapping[tuple[str, int, int], Any],
        verdicts: Mapping[Key, Verdict],
        judge: Judge,
        files: Mapping[str, Path],
    ) -> dict[str, Any]:
        values, published = _by_model(questions, verdicts)
        models = list(dict.fromkeys(q.data["model"] for q in questions))
        with np.errstate(invalid="ignore"):
            rates = [100 * float(np.nanmean(row)) if np.isfinite(row).any() else None for row in values]
        rates_by_model = {m: {"published": p, "ours": r} for m, p, r in zip(models, published, rates, strict=True)}
        return {"agreement": rank_agreement(values, published), "models": rates_by_model}


def saved_board(files: Mapping[str, Path], annotator: str = ANNOTATOR) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(models, their saved verdicts [models, instructions] with NaN for absent ones, published scores [models]).

    All models of the board whose verdicts by `annotator` against gpt4_1106_preview are at hand.
    """
    published = read_board(require_asset(files, "board", Board.name))
    rows = [
        row
        for row in read_jsonl(require_asset(files, "annotations", Board.name))
        if (row["annotator"], row["g1"]) == (annotator, "gpt4_1106_preview") and row["g2"] in published
    ]
    models = sorted({row["g2"] for row in rows})
    places = {model: i for i, model in enumerate(models)}
    values = np.full((len(models), len(_prompts(files))), np.nan)
    for row in rows:
        if row["preference"] is not None:
            # 0 stands for a draw there, see `evals.chat.alpaca_eval_metrics.summarise`.
            values[places[row["g2"]], row["p"]] = (row["preference"] or 1.5) - 1
    return models, values, np.array([published[model] for model in models])


def by_category(items: Sequence[Item]) -> dict[str, Any]:
    """`agreement` of all items and, where there are several, of each category as `category:metric`."""
    found: dict[str, Any] = agreement(items)
    categories = list(dict.fromkeys(item.category for item in items))
    for category in categories if len(categories) > 1 else ():
        part = agreement([item for item in items if item.category == category])
        found |= {f"{category}:{metric}": value for metric, value in part.items()}
    return found


def read_board(path: Path) -> dict[str, float]:
    """model -> published length-controlled win rate, of alpaca_eval's leaderboard CSV."""
    rows = csv.DictReader(read_text(path).splitlines())
    return {row[""]: float(row[BOARD_METRIC]) for row in rows if row[BOARD_METRIC]}


def spread(models: Sequence[str], count: int = BOARD_MODELS) -> list[str]:
    """`count` of the models, evenly over their order, both ends included."""
    if len(models) <= count:
        return list(models)
    return [models[round(i * (len(models) - 1) / (count - 1))] for i in range(count)]


def _prompts(files: Mapping[str, Path]) -> dict[int, str]:
    return {row["p"]: row["instruction"] for row in read_jsonl(require_asset(files, "prompts", Board.name))}


def _by_model(questions: Sequence[Question], verdicts: Mapping[Key, Verdict]) -> tuple[np.ndarray, np.ndarray]:
    """(verdicts [models, instructions] with NaN where one is absent or failed, published scores [models])."""
    models = list(dict.fromkeys(q.data["model"] for q in questions))
    places = {text: i for i, text in enumerate(dict.fromkeys(q.turns[0] for q in questions))}
    values = np.full((len(models), len(places)), np.nan)
    for q in questions:
        verdict = verdicts.get((q.id, 1, 0, 1))
        if verdict is not None and verdict.value is not None:
            values[models.index(q.data["model"]), places[q.turns[0]]] = verdict.value
    return values, np.array([next(q.data["published"] for q in questions if q.data["model"] == m) for m in models])
