"""Which tokens of a conversation the policy learns: those it would have to produce itself.

An assistant turn is found by the template's own `{% generation %}` marks where it has them. Otherwise by rendering: the
text up to the turn with the generation prompt, and the text through it, are both prefixes of the whole conversation's
text. What is learned begins after the generation prompt's tokens and ends with the turn-end token.
"""

import os
import re
from typing import TYPE_CHECKING

from core.errors import RecipeError
from train.chat import Message, render_text, require_one_bos, special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token without loss (torch's cross-entropy default)."""

LOSS_ON = ("assistant", "last", "all")
"""Every assistant turn; the last one only (for templates that rewrite earlier turns); every token."""

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")

Span = tuple[int, int]
"""[begin, end) in tokens."""


def labelled(tokenizer: "PreTrainedTokenizerBase", messages: list[Message], loss_on: str) -> tuple[list[int], list[int]]:
    """Token ids and labels (equal length) of a finished conversation; `loss_on` is one of `LOSS_ON`.

    The first token never has a label: nothing predicts it (and in a packed row the sample before must not).
    Raises RecipeError when the template rewrites earlier turns, or does not end a turn with a token of its own.
    """
    if loss_on not in LOSS_ON:
        raise RecipeError(f"loss_on {loss_on!r} is unknown; choose one of {', '.join(LOSS_ON)}.")
    text = render_text(tokenizer, messages, add_generation_prompt=False)
    if loss_on == "all":
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        spans = [(0, len(ids))]
    elif _GENERATION_MARK.search(template_text(tokenizer)):
        ids, spans = _marked_spans(tokenizer, messages)
    else:
        ids, spans = _rendered_spans(tokenizer, messages, text, last_only=loss_on == "last")
    require_one_bos(tokenizer, ids)
    labels = [IGNORED] * len(ids)
    for begin, end in spans[-1:] if loss_on == "last" else spans:
        labels[begin:end] = ids[begin:end]
    return ids, [IGNORED, *labels[1:]]


def template_text(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The chat template in use (a tokenizer may hold several by name)."""
    return tokenizer.get_chat_template()


def _marked_spans(tokenizer: "PreTrainedTokenizerBase", messages: list[Message]) -> tuple[list[int], list[Span]]:
    """Token ids and the spans between the template's generation marks, each through its turn-end token."""
    marked = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = marked["input_ids"], marked["assistant_masks"]
    special = special_ids(tokenizer)
    begins = [k for k in range(len(ids)) if mask[k] and (k == 0 or not mask[k - 1])]
    spans = []
    for begin in begins:
        end = next((k for k in range(begin, len(ids)) if not mask[k]), len(ids))
        if ids[end - 1] not in special:  # some templates mark the content alone
            if end == len(ids) or ids[end] not in special:
                raise _no_turn_end()
            end += 1
        spans.append((begin, end))
    return ids, spans


def _rendered_spans(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], text: str, last_only: bool
) -> tuple[list[int], list[Span]]:
    """Token ids of `text` and the span of each assistant turn (of the last one if `last_only`)."""
    ids, offsets = _offsets(tokenizer, text)
    special = special_ids(tokenizer)
    turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    spans = []
    for turn in turns[-1:] if last_only else turns:
        before = render_text(tokenizer, messages[:turn], add_generation_prompt=True)
        through = render_text(tokenizer, messages[: turn + 1], add_generation_prompt=False)
        common = len(os.path.commonprefix([text, through]))
        begin = _first_answer_token(tokenizer, ids, tokenizer(before, add_special_tokens=False)["input_ids"])
        ends = [k for k in range(begin, len(ids)) if ids[k] in special and offsets[k][1] <= common]
        appended = through.startswith(before) and text.startswith(before)
        # Templates that close the whole conversation with another token (Phi-3's) differ after the turn's end only.
        rest = through[offsets[ends[-1]][1] :] if ends else through[common:]
        if not appended or not _only_special(tokenizer, rest, special):
            raise RecipeError(
                f"The chat template renders assistant turn {turn} differently once the conversation goes on, so its tokens "
                "cannot be told apart; set loss_on to last, or give a template that only appends."
            )
        if not ends:
            raise _no_turn_end()
        spans.append((begin, ends[-1] + 1))
    return ids, spans


def _first_answer_token(tokenizer: "PreTrainedTokenizerBase", ids: list[int], before: list[int]) -> int:
    """Index in `ids` of the first token after the text that `before` are the tokens of.

    The prompt's last white space may be cut otherwise once an answer follows, or melt with the answer's own; a token that
    holds some of both is not learned. Offsets would not do here: tokenizers trim white space from them.
    """
    same = next((k for k, (a, b) in enumerate(zip(ids, before, strict=False)) if a != b), min(len(ids), len(before)))
    characters, begin = len(tokenizer.decode(before[same:])), same
    while begin < len(ids) and len(tokenizer.decode(ids[same:begin])) < characters:
        begin += 1
    return begin


def _offsets(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[list[int], list[Span]]:
    """Token ids of `text` and the characters [start, end) that each one covers. Raises RecipeError for slow tokenizers."""
    if not tokenizer.is_fast:
        raise RecipeError(
            "The tokenizer has no character offsets, by which an assistant's tokens are found; convert it to a fast one "
            "(tokenizer.json), or set loss_on to all."
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], [tuple(pair) for pair in encoded["offset_mapping"]]


def _only_special(tokenizer: "PreTrainedTokenizerBase", text: str, special: set[int]) -> bool:
    """Whether a text is nothing but special tokens and white space."""
    names = sorted((tokenizer.convert_ids_to_tokens(i) for i in special), key=len, reverse=True)
    for name in names:
        text = text.replace(name, "")
    return not text.strip()


def _no_turn_end() -> RecipeError:
    return RecipeError(
        "The chat template ends an assistant turn without a special token, so a policy cannot learn to stop; "
        "put the tokenizer's eos_token after the assistant's content."
    )
