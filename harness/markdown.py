"""Markdown of the cards that travel with what is published. Names come from strangers: nothing in them may become markup."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from dashboard.format import plain

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#&!])")


def inline(text: object) -> str:
    """One line of text in which no character starts CommonMark or HTML."""
    return _SPECIAL.sub(r"\\\1", plain(str(text)))


def code(text: object) -> str:
    """A code span; of text that holds backticks or a cell's border, escaped text."""
    shown = plain(str(text))
    return inline(shown) if "`" in shown or "|" in shown or not shown.strip() else f"`{shown}`"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the cells are Markdown already (`inline`, `code`)."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def front_matter(fields: Mapping[str, Any]) -> str:
    """The YAML block that a hub reads from the top of a card; empty fields are left out."""
    kept = {key: value for key, value in fields.items() if value not in (None, [], {}, "")}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=1000)}---\n"


def one_line(value: Any) -> Any:
    """Every text of a JSON value on one line without control or bidirectional characters."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, Mapping):
        return {plain(str(key)): one_line(item) for key, item in value.items()}
    return [one_line(item) for item in value] if isinstance(value, list | tuple) else value
