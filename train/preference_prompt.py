"""What a pairwise preference model reads: one user turn with the context and two responses, answered by one label token.

The turn has the form that RLHFlow/pair-preference-model-LLaMA3-8B was trained on (github.com/RLHFlow/RLHF-Reward-Modeling,
pair-pm/process_pair_data.py, arXiv 2405.07863 section 2.2), so that model and ours are read alike:

    [CONTEXT] {context} [RESPONSE A] {a} [RESPONSE B] {b} \\n

The turn is rendered with the model's own chat template *and its generation prompt*: the label is read at the last
position. Upstream's code leaves the generation prompt out, which is right only for templates that always end with the
assistant's header; under today's Llama-3 tokenizer its published model scores 64 instead of 98 (RewardBench, chat).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.errors import RecipeError
from train.chat import Message, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LABELS = ("A", "B")
"""What the model answers: the first or the second response is better."""


@dataclass(frozen=True)
class Encoded:
    """The rendered turn up to where the label is read, its token ids, and what had to be cut to fit."""

    text: str
    ids: list[int]
    context_cut: bool = False
    responses_cut: bool = False


def context_text(messages: list[Message]) -> str:
    """The conversation before the responses, as the published model's data have it.

    Upstream's Jinja source has two newlines before a turn and three at the end; its renderer (transformers, trim_blocks)
    drops one of each, and the last one, so that one of each is left: that is what the model saw. A system message, which
    upstream's alternation of roles has no place for, becomes a turn of its own.
    """
    return "\n" + "".join(f"\n<turn> {message['role']}\n {message['content']}" for message in messages) + "\n"


def user_turn(context: str, first: str, second: str) -> str:
    return f"[CONTEXT] {context} [RESPONSE A] {first} [RESPONSE B] {second} \n"


def label_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, int]:
    """Token ids of the labels. Raises RecipeError unless each is a single token of its own."""
    encoded = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in LABELS]
    if any(len(ids) != 1 for ids in encoded) or encoded[0] == encoded[1] or encoded[0][0] == tokenizer.unk_token_id:
        raise RecipeError(
            f"The tokenizer does not give A and B one token each ({encoded[0]}, {encoded[1]}), so the model cannot answer with "
            "one token; start the preference model from a checkpoint whose tokenizer does."
        )
    return encoded[0][0], encoded[1][0]


def encode(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], first: str, second: str, max_length: int
) -> Encoded | None:
    """The turn in at most `max_length` tokens, or None where the template alone leaves no room.

    What is too long loses the beginning of its context; only when that does not suffice, both responses lose what exceeds
    one common number of characters at their ends.
    """

    def rendered(context: str, limit: int | None = None) -> tuple[str, list[int]]:
        turn = user_turn(context, first[:limit], second[:limit])
        return render(tokenizer, [{"role": "user", "content": turn}], add_generation_prompt=True)

    def fits(context: str, limit: int | None = None) -> bool:
        return len(rendered(context, limit)[1]) <= max_length

    context = context_text(messages)
    text, ids = rendered(context)
    if len(ids) <= max_length:
        return Encoded(text, ids)
    if fits(""):
        kept = _most(len(context), lambda n: fits(context[len(context) - n :]))
        return Encoded(*rendered(context[len(context) - kept :]), context_cut=True)
    if not fits("", 0):
        return None
    kept = _most(max(len(first), len(second)), lambda n: fits("", n))
    return Encoded(*rendered("", kept), context_cut=True, responses_cut=True)


def _most(n: int, fits: Callable[[int], bool]) -> int:
    """The most characters of 0 to n that fit, by bisection; 0 is known to fit. Token counts grow with characters but for a
    token or two at a cut, so a neighbour may fit as well: never one that does not."""
    low, high = 0, n
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
