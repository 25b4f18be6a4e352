"""What a judge will cost before it is asked: calls, tokens and dollars, less what the cache holds.

Prompts are built as they will be sent where the answers are stored; else from the questions and an assumed answer. Tokens are
estimated from characters (`judges.limits`), replies from TYPICAL_REPLY, so `micro_dollars` is a guess and `worst` a ceiling.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from evals.benchmark import Question
from evals.judges.cache import request_key
from evals.judges.judge import JudgedBenchmark
from evals.judges.limits import estimated_tokens, output_limit
from evals.judges.openai_judge import OpenAIJudge
from evals.judges.session import adjusted

TYPICAL_ANSWER = 2000
"""Characters of an answer that does not exist yet: about the mean length of the 2023 to 2024 models on AlpacaEval's leaderboard
(column avg_length of the CSV that alpaca_eval 0.6.6 ships)."""
TYPICAL_CHARACTERS_PER_TOKEN = 4.0
"""Of English text (help.openai.com, "What are tokens and how to count them")."""
TYPICAL_REPLY = 300
"""Tokens of a judge's reply that explains itself (MT-Bench, Arena-Hard), where its limit is not lower."""


@dataclass(frozen=True)
class Forecast:
    """Of one benchmark and one checkpoint's answers; sums with `+`. Dollars are None where no price is known."""

    judgments: int = 0
    calls: int = 0
    """Requests that will be paid for, one a judgment: follow-ups are rare."""
    cached: int = 0
    """Requests whose reply is kept already."""
    assumed_answers: int = 0
    """Answers that do not exist yet."""
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_out_limit: int = 0
    micro_dollars: int | None = 0
    worst_micro_dollars: int | None = 0
    """If every reply is as long as it may be, and prompts take as many tokens as a budget sets aside for them."""

    def __add__(self, other: "Forecast") -> "Forecast":
        mine, theirs = asdict(self), asdict(other)
        return Forecast(**{k: None if None in (mine[k], theirs[k]) else mine[k] + theirs[k] for k in mine})


def forecast(
    benchmark: JudgedBenchmark,
    files: Mapping[str, Path],
    questions: Sequence[Question],
    answers: Mapping[tuple[str, int, int], Any],
    samples: int,
    judge: OpenAIJudge,
    is_kept: Callable[[str], bool],
    is_judged: Callable[[tuple[str, int, int, int]], bool] = lambda key: False,
) -> Forecast:
    """`answers`: those that are stored, (question id, turn, sample) -> row with `text` and `finish_reason`; others are assumed.

    `is_kept` says of a request's key whether its reply is there, `is_judged` of a judgment whether it is made.
    """
    places = [(q.id, turn, sample) for q in questions for turn in range(1, len(q.turns) + 1) for sample in range(samples)]
    assumed = SimpleNamespace(text="x" * TYPICAL_ANSWER, finish_reason="stop")
    tasks = benchmark.tasks(questions, {place: answers.get(place, assumed) for place in places}, judge.kind)
    found = {"judgments": len(tasks), "assumed_answers": sum(place not in answers for place in places)}
    calls = cached = tokens_in = most_in = tokens_out = limit = 0
    for task in tasks:
        if is_judged(task.key) or task.unanswered or benchmark.decided(task) is not None:
            continue
        prompt = benchmark.prompt(task, files)
        parameters = adjusted(prompt.parameters, judge.settings)
        key = request_key(judge.asked, judge.fingerprint or judge.name, prompt.messages, parameters, 0)
        if is_kept(key):
            cached += 1
            continue
        calls += 1
        tokens_in += estimated_tokens(prompt.messages, TYPICAL_CHARACTERS_PER_TOKEN)
        most_in += estimated_tokens(prompt.messages)
        tokens_out += min(TYPICAL_REPLY, output_limit(parameters))
        limit += output_limit(parameters)
    price = judge.price
    return Forecast(
        **found,
        calls=calls,
        cached=cached,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        tokens_out_limit=limit,
        micro_dollars=None if price is None else price.micro_dollars(tokens_in, tokens_out),
        worst_micro_dollars=None if price is None else price.micro_dollars(most_in, limit),
    )
