"""Rules that a row must pass, each with the name under which the data card counts it.

The structural rules are those of RLHFlow's pair data (RLHF-Reward-Modeling, pair-pm/process_pair_data.py), except that
a leading system message is kept unless the source's filters say otherwise. Thresholds are the recipe's `filters` of a source.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import Any

from core.errors import RecipeError
from train.chat import Message

_WORD = re.compile(r"\w+")
DEFAULT_MAX_CHARACTERS = 20_000
LAST_ROLE = {"preferences": "assistant", "sft": "assistant", "prompts": "user"}


def structural_fault(row: dict[str, Any], max_characters: int, last_role: str = "user") -> str | None:
    """The rule that a preference row, or a row of messages that must end with `last_role`, breaks; or None.

    no_messages, empty_content, roles_not_alternating, too_long; for preferences also different_context and
    chosen_equals_rejected (white space does not count).
    """
    if "chosen" not in row:
        return _conversation_fault(row.get("messages", []), last_role, max_characters)
    chosen, rejected = row["chosen"], row["rejected"]
    fault = _conversation_fault(chosen, "assistant", max_characters) or _conversation_fault(rejected, "assistant", max_characters)
    if fault:
        return fault
    if chosen[:-1] != rejected[:-1]:
        return "different_context"
    same = chosen[-1]["content"].split() == rejected[-1]["content"].split()
    return "chosen_equals_rejected" if same else None


def threshold_fault(row: dict[str, Any], filters: dict[str, Any], scores: tuple[float, float] | None) -> str | None:
    """The threshold that a sound row misses, or None.

    has_system_prompt, too_short, no_score, score_margin, score_ratio. `filters` holds the thresholds that the recipe sets:
    system_prompts, min_characters, max_characters (the structural rule's), min_margin, min_ratio. `scores`: (chosen,
    rejected) where the source has them. A ratio is the chosen score over the rejected one; of a rejected score of 0 or less it
    is infinite when the chosen score is above 0 (SHP's scores are votes, at least 1), else 0.
    """
    sides = [row["chosen"], row["rejected"]] if "chosen" in row else [row["messages"]]
    if filters.get("system_prompts") == "drop" and sides[0][0]["role"] == "system":
        return "has_system_prompt"
    if min(sum(len(message["content"]) for message in side) for side in sides) < filters.get("min_characters", 0):
        return "too_short"
    margin, ratio = filters.get("min_margin"), filters.get("min_ratio")
    if margin is None and ratio is None:
        return None
    if scores is None:
        return "no_score"
    chosen, rejected = scores
    if margin is not None and chosen - rejected < margin:
        return "score_margin"
    if ratio is not None and (chosen / rejected if rejected > 0 else float("inf") if chosen > 0 else 0.0) <= ratio:
        return "score_ratio"
    return None


def token_fault(row: dict[str, Any], filters: dict[str, Any], count_tokens: Callable[[str], int]) -> str | None:
    """too_few_tokens or too_many_tokens of the contents of a conversation (of either side of a pair), or None."""
    fewest, most = filters.get("min_tokens"), filters.get("max_tokens")
    if fewest is None and most is None:
        return None
    sides = [row["chosen"], row["rejected"]] if "chosen" in row else [row["messages"]]
    counts = [sum(count_tokens(message["content"]) for message in side) for side in sides]
    if fewest is not None and min(counts) < fewest:
        return "too_few_tokens"
    return "too_many_tokens" if most is not None and max(counts) > most else None


def scores_of(raw: dict[str, Any]) -> tuple[float, float] | None:
    """(chosen_score, rejected_score) of a reader's row, or None where either is missing.

    Raises RecipeError for scores that are no numbers.
    """
    given = raw.get("chosen_score"), raw.get("rejected_score")
    if None in given:
        return None
    try:
        chosen, rejected = float(given[0]), float(given[1])
    except (TypeError, ValueError) as error:
        raise RecipeError(f"Row {raw.get('id')} has scores that are no numbers ({given[0]!r}, {given[1]!r}).") from error
    return None if chosen != chosen or rejected != rejected else (chosen, rejected)


def _conversation_fault(messages: list[Message], last_role: str, max_characters: int) -> str | None:
    if not messages:
        return "no_messages"
    # Tulu 1's human pairs hold NaN where a model gave no completion.
    if any(not isinstance(message["content"], str) or not message["content"].strip() for message in messages):
        return "empty_content"
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
    if [turn["role"] for turn in turns] != expected or not turns or turns[-1]["role"] != last_role:
        return "roles_not_alternating"
    if sum(len(message["content"]) for message in messages) > max_characters:
        return "too_long"
    return None


def words(text: str) -> list[str]:
    """Lower-case words after Unicode compatibility normalisation; punctuation and spacing do not count."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def context_text(messages: list[Message]) -> str:
    """What identifies a prompt: all its messages."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
