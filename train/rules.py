r"""Rewards that need no model: rule functions `f(messages, answer, reference, **options) -> float | None`.

`messages`: the conversation so far; `answer`: the sampled text; `reference`: what the prompt's row gives as its `answer`,
or None. None as the reward says that the rule has no verdict: such a sample is neither chosen nor rejected. Other
packages declare rules of theirs as entry points of the group `harness.rules`.

    annotate: {scorer: numeric_answer}
    annotate: {scorer: length_bounds, options: {most: 1200}}
    annotate: {scorer: format, options: {pattern: '<answer>.*</answer>\s*$'}}
"""

import re
import unicodedata
from collections.abc import Callable
from inspect import signature
from typing import Any

from core.errors import RecipeError
from train.chat import Message
from train.plugins import find_plugin

Rule = Callable[..., float | None]

_BOXED = re.compile(r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_MARKED = re.compile(r"(?:####|(?:final\s+)?answer\s*(?:is|:))\s*(.+)", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?")


def exact_answer(messages: list[Message], answer: str, reference: str | None) -> float | None:
    r"""1 when the final answer equals the reference's, letter case, spaces and closing punctuation aside; else 0.

    The final answer is the last \boxed{...}, else what follows the last `####` (GSM8K's mark), `answer is` or `answer:`,
    else the last line that is not empty. None without a reference.
    """
    if reference is None:
        return None
    return float(_plain(final_answer(answer)) == _plain(final_answer(reference)) != "")


def numeric_answer(messages: list[Message], answer: str, reference: str | None, tolerance: float = 1e-6) -> float | None:
    """1 when the last number of the final answer equals the reference's within a relative `tolerance`; else 0.

    Thousands separators and simple fractions are read. Where the final answer (see `exact_answer`) holds no number, the last
    number of the whole answer counts, as in lm-eval's flexible match for GSM8K. None without a number in the reference.
    """
    wanted = None if reference is None else last_number(final_answer(reference))
    if wanted is None:
        return None
    found = last_number(final_answer(answer))
    found = last_number(answer) if found is None else found
    return float(found is not None and abs(found - wanted) <= tolerance * max(1.0, abs(wanted)))


def length_bounds(messages: list[Message], answer: str, reference: str | None, least: int = 1, most: int | None = None) -> float:
    """1 for an answer of `least` to `most` characters (spaces around it aside), else 0."""
    n = len(answer.strip())
    return float(n >= least and (most is None or n <= most))


def has_format(messages: list[Message], answer: str, reference: str | None, pattern: str) -> float:
    """1 when the regular expression `pattern` is found in the answer (`.` matches newlines), else 0."""
    return float(re.search(pattern, answer, re.DOTALL) is not None)


def final_answer(text: str) -> str:
    """See `exact_answer`."""
    if boxed := _BOXED.findall(text):
        return boxed[-1].strip()
    if marked := _MARKED.findall(text):
        return marked[-1].strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def last_number(text: str) -> float | None:
    """The last number of a text, or None."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    over, _, under = found[-1].replace(",", "").partition("/")
    if under and float(under) == 0:
        return None
    return float(over) / float(under or 1)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().strip(" \t\n.!?;:,\"'*$").split())


RULES: dict[str, Rule] = {
    "exact_answer": exact_answer,
    "numeric_answer": numeric_answer,
    "length_bounds": length_bounds,
    "format": has_format,
}


def find_rule(name: str, options: dict[str, Any]) -> Rule:
    """The rule called `name`, checked to take these options. Raises RecipeError with what is known."""
    rule = find_plugin(name, RULES, "harness.rules")
    try:
        signature(rule).bind([], "", None, **options)
    except TypeError as error:
        raise RecipeError(f"The rule {name} does not take its options as given ({error}); mend annotate.options.") from error
    if name == "format":
        try:
            re.compile(options["pattern"])
        except re.error as error:
            raise RecipeError(
                f"The pattern {options['pattern']!r} is no regular expression ({error}); mend annotate.options."
            ) from error
    return rule
