"""Does a training prompt hold a benchmark question? The rule of Tulu 3 (arXiv 2411.15124, section 3.2).

A question counts as seen when more than half of its tokens lie in 8-grams that it shares with one training prompt; a
source is flagged when it has seen more than 2 % of a benchmark. Questions shorter than 8 tokens have no 8-gram: they
count as seen when one message is that question and nothing else. Only the words of users count: what a model is asked.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

from core.errors import MissingInput
from train.chat import Message
from train.filters import words
from train.readers import read_objects

NGRAM = 8
MAX_OVERLAP = 0.5
FLAG_SHARE = 0.02

_QUESTION_KEYS = ("instruction", "turns", "question", "prompt", "text", "messages", "input")
"""Where the official files hold their question: AlpacaEval; MT-Bench; TruthfulQA, GSM8K, MMLU, ARC; Arena-Hard and
HumanEval; MBPP; our own held-out prompts; LLMBar."""


def question_texts(path: Path) -> list[str]:
    """The questions of an official question file (.jsonl or .json, gzipped or not); both turns of a two-turn question."""
    texts: list[str] = []
    for row in read_objects(path):
        key = next((key for key in _QUESTION_KEYS if key in row), None)
        if key is None:
            raise MissingInput(
                f"{path} has a row without a question (none of {', '.join(_QUESTION_KEYS)}); give a question file."
            )
        if key == "messages":
            texts += [message["content"] for message in row[key] if message["role"] == "user"]
        else:
            texts += row[key] if isinstance(row[key], list) else [row[key]]
    return texts


class QuestionIndex:
    """8-grams of one benchmark's questions."""

    def __init__(self, texts: list[str]):
        self.questions = [words(text) for text in texts]
        self._grams: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
        self._short: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, tokens in enumerate(self.questions):
            if len(tokens) < NGRAM:
                self._short[tuple(tokens)].append(number)
            for start in range(len(tokens) - NGRAM + 1):
                self._grams[tuple(tokens[start : start + NGRAM])].append((number, start))

    def hits(self, messages: list[Message]) -> dict[int, float]:
        """question number -> share of its tokens found in the user's messages, for those above the limit."""
        covered: dict[int, set[int]] = defaultdict(set)
        found: dict[int, float] = {}
        for message in messages:
            if message["role"] != "user":
                continue
            tokens = words(message["content"])
            found |= dict.fromkeys(self._short.get(tuple(tokens), ()), 1.0) if tokens else {}
            for start in range(len(tokens) - NGRAM + 1):
                for number, position in self._grams.get(tuple(tokens[start : start + NGRAM]), ()):
                    covered[number].update(range(position, position + NGRAM))
        shares = {number: len(positions) / len(self.questions[number]) for number, positions in covered.items()}
        return found | {number: share for number, share in shares.items() if share > MAX_OVERLAP}


class BenchmarkIndex:
    """The questions of several benchmarks, looked up in one pass over a prompt."""

    def __init__(self, texts: dict[str, list[str]]):
        self.sizes = {name: len(questions) for name, questions in texts.items()}
        self._names = list(texts)
        self._starts = list(accumulate(self.sizes.values(), initial=0))[:-1]
        self._questions = QuestionIndex([text for questions in texts.values() for text in questions])

    def hits(self, messages: list[Message]) -> dict[str, dict[int, float]]:
        """benchmark -> {question number: share of its tokens found}, benchmarks without a hit left out."""
        found: dict[str, dict[int, float]] = {}
        for number, share in self._questions.hits(messages).items():
            # Starts of benchmarks without questions repeat: the last of equal ones is the benchmark that has some.
            place = bisect_right(self._starts, number) - 1
            found.setdefault(self._names[place], {})[number - self._starts[place]] = share
        return found


def report(size: int, hits: list[dict[str, Any]], sources: Iterable[str]) -> dict[str, Any]:
    """What the card says of one benchmark of `size` questions. `hits`: [{"source", "id", "questions": {number: share}}]."""
    by_source: dict[str, Any] = {}
    for source in sources:
        of_source = [hit for hit in hits if hit["source"] == source]
        seen = {number for hit in of_source for number in hit["questions"]}
        share = len(seen) / max(1, size)
        by_source[source] = {"rows": len(of_source), "questions": len(seen), "share": share, "flagged": share > FLAG_SHARE}
    listed = [
        {"source": hit["source"], "id": hit["id"], "question": max(hit["questions"], key=hit["questions"].get)}
        | {"overlap": round(max(hit["questions"].values()), 4)}
        for hit in hits
    ]
    return {"questions": size, "by_source": by_source, "hits": listed}
