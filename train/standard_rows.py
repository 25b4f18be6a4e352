"""Rows of local files: the project's standard form, and the forms that trl reads.

    {"chosen": [messages], "rejected": [messages]}                 pairs that share their context
    {"prompt": P, "chosen": R, "rejected": R}                      trl's pairs with an explicit prompt
    {"messages": [messages]}, {"prompt": P, "completion": R}       demonstrations; prompts where no reply ends them
    {"prompt": P}                                                  prompts

P and R are text or a list of messages {"role", "content"}. Optional: id, answer (what is right, for rules: text or a number),
margin (by how much chosen is better, for reward models), chosen_score and rejected_score (score_chosen and score_rejected are
taken too). Source of trl's forms: its docs, dataset_formats.md.
"""

import math
from typing import Any

from core.errors import MissingInput
from train.filters import scores_of

Row = dict[str, Any]
_SCORES = {
    "chosen_score": "chosen_score",
    "rejected_score": "rejected_score",
    "score_chosen": "chosen_score",
    "score_rejected": "rejected_score",
}


COLUMNS = ("id", "prompt", "chosen", "rejected", "messages", "completion", "answer", "margin", *_SCORES)
"""What is read of a table."""


def standard_row(row: Any, number: int, place: str) -> Row:
    """A row in standard form; `number` is its id where it has none. Raises MissingInput, which names `place` and the row."""
    try:
        made = _conversations(row)
    except (KeyError, TypeError, AttributeError) as error:
        raise MissingInput(f"{place}, row {number + 1}: {_fault(error)}; write messages as {{role, content}}.") from error
    if not made:
        raise MissingInput(
            f"{place}, row {number + 1} has neither messages, prompt nor chosen and rejected; it is no row of ours."
        )
    identity = row.get("id")
    kept = {name: row[key] for key, name in _SCORES.items() if key in row}
    answer = row.get("answer")
    if answer is not None:
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise MissingInput(f"{place}, row {number + 1}: answer is {answer!r}; write it as text or a number.")
        kept["answer"] = str(answer)
    if "chosen" in made and row.get("margin") is not None:
        kept["margin"] = row["margin"]
    return {"id": str(number if identity is None else identity)} | made | kept


def margin_of(row: Row) -> float | None:
    """By how much the chosen answer of a pair is better: its `margin`, else chosen_score - rejected_score; None where neither is
    a number.

    Raises RecipeError for scores that are no numbers.
    """
    margin = row.get("margin")
    if margin is None and (scores := scores_of(row)) is not None:
        margin = scores[0] - scores[1]
    number = isinstance(margin, int | float) and not isinstance(margin, bool) and math.isfinite(margin)
    return float(margin) if number else None


def _conversations(row: Row) -> Row:
    context = messages(row["prompt"], "user") if row.get("prompt") is not None else []
    if row.get("chosen") is not None and row.get("rejected") is not None:
        sides = {side: row[side] for side in ("chosen", "rejected")}
        if not context and any(isinstance(value, str) for value in sides.values()):
            raise TypeError("chosen and rejected are text without a prompt")
        return {side: _after(context, messages(value, "assistant")) for side, value in sides.items()}
    if row.get("messages") is not None:
        return {"messages": messages(row["messages"], "user")}
    if context and row.get("completion") is not None:
        return {"messages": _after(context, messages(row["completion"], "assistant"))}
    return {"messages": context} if context else {}


def messages(value: Any, role: str) -> list[dict[str, Any]]:
    """A list of messages as it is, with role and content alone; a text as one message of `role`."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _after(context: list[Row], reply: list[Row]) -> list[Row]:
    """The reply after its context; some sets repeat the context in front of the reply."""
    return reply if context and reply[: len(context)] == context else context + reply


def _fault(error: Exception) -> str:
    return f"a message has no {error}" if isinstance(error, KeyError) else str(error)
