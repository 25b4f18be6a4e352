"""Chat templates: the one place where messages become token ids.

Every engine and trainer takes the ids made here, so that a rendered string is never tokenised a second time with
special tokens added (two BOS on Llama-3).
"""

from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import MissingInput, RecipeError
from core.fingerprint import eos_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
"""{"role": "system"|"user"|"assistant", "content": str}."""


def load_tokenizer(checkpoint: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a checkpoint directory. Raises MissingInput when it has no chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint), trust_remote_code=False, local_files_only=True)
    if not tokenizer.chat_template:
        raise MissingInput(
            f"{checkpoint} has no chat template; put the model's chat_template.jinja beside its tokenizer.json, or set "
            "chat_template of that model in the recipe, e.g. base.chat_template."
        )
    return tokenizer


def render(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], add_generation_prompt: bool = True
) -> tuple[str, list[int]]:
    """The template's text of a conversation and its token ids, with at most one BOS at the start.

    `add_generation_prompt` must be true when the assistant is to speak next, false for a finished conversation.
    """
    text = render_text(tokenizer, messages, add_generation_prompt)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    require_one_bos(tokenizer, ids)
    return text, ids


def render_text(tokenizer: "PreTrainedTokenizerBase", messages: list[Message], add_generation_prompt: bool) -> str:
    """The template's text of a conversation. Raises RecipeError when the template refuses it.

    A template without a system role (Gemma's) gets the system text at the head of the first user turn, a blank line
    between them: what Gemma 3's own template does with a system message.
    """
    from jinja2.exceptions import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as refusal:
        folded = fold_system(messages)
        if folded == messages:
            raise RecipeError(
                f"The chat template refuses a conversation of roles {', '.join(m['role'] for m in messages)} ({refusal}); "
                "drop such rows, or give a template that takes them."
            ) from refusal
    return render_text(tokenizer, folded, add_generation_prompt)


def fold_system(messages: list[Message]) -> list[Message]:
    """The conversation with a leading system message put at the head of the user turn that follows it."""
    if [message["role"] for message in messages[:2]] != ["system", "user"]:
        return messages
    return [{"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}, *messages[2:]]


def require_one_bos(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> None:
    """Raise RecipeError when the ids of a rendered conversation begin with two BOS tokens.

    None at all is right for families without BOS (Qwen); in ChatML ones `<|im_start|>` may be BOS and begins every turn.
    """
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise RecipeError("The chat template begins with two BOS tokens; remove one from the template of this checkpoint.")


def turn_end_ids(tokenizer: "PreTrainedTokenizerBase", checkpoint: Path | None = None) -> list[int]:
    """Ids that end an assistant turn, sorted: EOS of tokenizer, config and generation config, and the template's own.

    Llama-3 checkpoints are why all are asked: their EOS may be <|end_of_text|> while a turn ends with <|eot_id|>.
    """
    found: set[int] = set()
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    for name in ("config.json", "generation_config.json") if checkpoint else ():
        found.update(eos_token_ids(Path(checkpoint) / name))
    template_end = template_turn_end(tokenizer)
    if template_end is not None:
        found.add(template_end)
    return sorted(found)


def template_turn_end(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The special token that the template writes right after an assistant's text, if any."""
    answer = "The answer ends here"
    messages = [{"role": "user", "content": "A question"}, {"role": "assistant", "content": answer}]
    text, _ = render(tokenizer, messages, add_generation_prompt=False)
    tail = text.rpartition(answer)[2].lstrip()
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
    return ids[0] if ids and ids[0] in special_ids(tokenizer) else None


def special_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Ids of all special tokens, those that only the tokenizer's file marks as special included."""
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)
