"""Demonstrations as they are published: conversations, or an instruction and its answer, under the columns in use on the hub."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from core.errors import MissingInput
from train.chat import Message

CONVERSATION = ("messages", "conversations")
QUESTION, ANSWER = ("instruction", "question", "query"), ("output", "response", "answer")
COLUMNS = (*CONVERSATION, *QUESTION, "input", *ANSWER)

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "system": "system"}
"""ShareGPT's names of the speakers."""


def demonstration(row: Mapping[str, Any], number: int, place: str) -> dict[str, Any]:
    """{"id", "messages"} of one row. A conversation in which somebody else speaks (ShareGPT's `bard`, `bing`) is dropped by
    the rule `other_speaker`. Raises MissingInput for a row without any of the columns, naming it."""
    turns = next((row[name] for name in CONVERSATION if row.get(name)), None)
    if turns is not None:
        messages = [_message(turn) for turn in turns]
        known = all(message["role"] in ("system", "user", "assistant") for message in messages)
        return {"id": str(number), "messages": messages} if known else {"dropped": "other_speaker"}
    question = next((row[name] for name in QUESTION if row.get(name)), None)
    answer = next((row[name] for name in ANSWER if row.get(name)), None)
    if question is None or answer is None:
        if any(name in row for name in COLUMNS):
            return {"dropped": "empty"}
        raise MissingInput(
            f"Row {number} of {place} has columns {', '.join(row) or 'none'}; demonstrations have {' or '.join(CONVERSATION)}, "
            f"or one of {', '.join(QUESTION)} with one of {', '.join(ANSWER)}."
        )
    extra = str(row.get("input") or "").strip()
    asked = f"{question}\n\n{extra}" if extra else str(question)
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": str(answer)}]
    return {"id": str(number), "messages": messages}


def demonstrations_of(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """`demonstration` of each (file, row), numbered through."""
    for number, (place, row) in enumerate(rows):
        yield demonstration(row, number, place)


def _message(turn: Mapping[str, Any]) -> Message:
    if "role" in turn:
        return {"role": turn["role"], "content": turn["content"] or ""}
    return {"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"] or ""}
