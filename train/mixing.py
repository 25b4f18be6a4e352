"""How many rows of each source: limits, pairs per prompt, weights, repeats. Pure; every draw is seeded and by row id."""

import hashlib
from typing import Any

from core.errors import RecipeError
from core.seeds import derive_seed
from train.filters import context_text, words

Row = dict[str, Any]


def in_seeded_order(rows: list[Row], seed: int, purpose: str) -> list[Row]:
    """Shuffled by a hash of each id: a row's place relative to another never depends on the rest."""
    return sorted(rows, key=lambda row: (derive_seed(seed, purpose, row["id"]), row["id"]))


def at_most_per_prompt(rows: list[Row], most: int, seed: int) -> list[Row]:
    """Of the pairs on one prompt (equal after normalisation) a seeded draw of `most`, in the order of `rows`."""
    taken: dict[bytes, int] = {}
    kept = set()
    for row in in_seeded_order(rows, seed, "pairs-per-prompt"):
        prompt = prompt_digest(row)
        taken[prompt] = taken.get(prompt, 0) + 1
        if taken[prompt] <= most:
            kept.add(row["id"])
    return [row for row in rows if row["id"] in kept]


def weighted(rows: list[Row], weights: dict[str, float], repeats: dict[str, int], seed: int) -> list[Row]:
    """A seeded draw without replacement in which each source has its share, as many rows as the scarcest one allows.

    `weights`: source -> any positive number; only their ratios count. A row of a source with `repeats` r is written r times
    (`repeated`), so its source has r times its rows to give. Counts are rounded down, so a share is off by less than
    a row, or by less than r rows of a source repeated r times. Raises RecipeError for a source that has no rows left.
    """
    available = {source: sum(row["source"] == source for row in rows) for source in weights}
    for source, count in available.items():
        if count == 0:
            raise RecipeError(
                f"Source {source!r} has a weight but no rows left after filters, limits and duplicates; relax them or remove it."
            )
    whole = sum(weights.values())
    shares = {source: weight / whole for source, weight in weights.items()}
    size = min(available[source] * repeats.get(source, 1) / share for source, share in shares.items())
    wanted = {source: int(size * share / repeats.get(source, 1) + 1e-6) for source, share in shares.items()}
    kept = set()
    for source, count in wanted.items():
        drawn = in_seeded_order([row for row in rows if row["source"] == source], seed, "weight")[:count]
        kept |= {row["id"] for row in drawn}
    return [row for row in rows if row["id"] in kept]


def repeated(rows: list[Row], repeats: dict[str, int], seed: int) -> list[Row]:
    """Every row of a source as often as `repeats` says, copies with #2, #3, ... after their id, the whole in seeded order.

    Returns `rows` as they are when nothing repeats.
    """
    if not any(repeats.get(row["source"], 1) > 1 for row in rows):
        return rows
    copies = [
        row if copy == 1 else row | {"id": f"{row['id']}#{copy}"}
        for row in rows
        for copy in range(1, repeats.get(row["source"], 1) + 1)
    ]
    return in_seeded_order(copies, seed, "repeats")


def prompt_of(row: Row) -> list[dict[str, str]]:
    """The messages that are answered: all but a final reply."""
    messages = row["messages"] if "messages" in row else row["chosen"]
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def prompt_digest(row: Row) -> bytes:
    """Equal for prompts that are equal after normalisation (case, punctuation, spacing)."""
    text = context_text(prompt_of(row))
    return hashlib.blake2b(" ".join(words(text) or [text.strip()]).encode(), digest_size=16).digest()
