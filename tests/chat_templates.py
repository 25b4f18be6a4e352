"""Chat templates with the structure of four model families, and small tokenizers that have their special tokens."""

from dataclasses import dataclass
from typing import Any

_CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
_CHATML_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe of help.<|im_end|>\n{% endif %}"


@dataclass(frozen=True)
class Family:
    """A template, the special tokens beside it, and how an assistant's turn "text" is written."""

    template: str
    bos: str | None
    eos: str
    pad: str
    special: tuple[str, ...]
    turn_end: str


FAMILIES = {
    "llama-3": Family(
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
        "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|begin_of_text|>",
        "<|end_of_text|>",  # as the base checkpoints have it: no turn ends with it
        "<|end_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|reserved_special_token_0|>"),
        "<|eot_id|>",
    ),
    "qwen": Family(
        _DEFAULT_SYSTEM + _CHATML + _CHATML_PROMPT, None, "<|im_end|>", "<|endoftext|>", ("<|im_start|>",), "<|im_end|>"
    ),
    "gemma": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<bos>",
        "<eos>",
        "<pad>",
        ("<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
    ),
    "smollm2": Family(
        _DEFAULT_SYSTEM + _CHATML + _CHATML_PROMPT, "<|im_start|>", "<|im_end|>", "<|im_end|>", ("<|endoftext|>",), "<|im_end|>"
    ),
}


def make_tokenizer(family: Family) -> Any:
    """A byte-level BPE tokenizer of some 400 tokens that trims offsets, as Llama-3's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    named = {"bos_token": family.bos, "eos_token": family.eos, "pad_token": family.pad}
    special = list(dict.fromkeys([*(name for name in named.values() if name), *family.special]))
    text = ["user assistant system model answer question first second\n\n\n\n"] * 9
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in named.items() if v})
    fast.add_special_tokens({"additional_special_tokens": [s for s in special if s not in named.values()]})
    fast.chat_template = family.template
    return fast
