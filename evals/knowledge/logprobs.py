"""Summed log-probabilities of given continuations: one interface, two engines.

    model = make_likelihood("transformers", checkpoint)
    model.loglikelihood("The capital of France is", [" Paris", " Rome"])  # nats

What the engines share is here, so that they score the same ids: the token rule of lm-evaluation-harness, the check that a
text begins with exactly one BOS where the tokenizer writes one, and the refusal of what does not fit the model.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import HarnessError, RecipeError

ENGINES = ("transformers", "vllm")

Pair = tuple[list[int], list[list[int]]]
"""Ids of a context, and of each continuation after it; none of them empty."""


class Likelihood(ABC):
    """A causal language model that scores continuations. A subclass loads it and implements `score_ids`."""

    tokenizer: Any
    max_length: int | None
    """Tokens of context and continuation together; None where the model's config sets no limit."""

    @abstractmethod
    def score_ids(self, pairs: Sequence[Pair]) -> list[list[float]]:
        """Summed log-probability (nats) of each continuation of each pair."""

    def close(self) -> None:
        """Give the memory back as far as the process can."""
        return None

    def loglikelihood(self, context: str, continuations: Sequence[str]) -> list[float] | None:
        """Summed log-probability (nats) of each continuation after `context`; None when one of them does not fit the model."""
        return self.loglikelihoods([(context, continuations)])[0]

    def loglikelihoods(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[float] | None]:
        """`loglikelihood` of many (context, continuations) in one call, which an engine may batch.

        Raises ValueError for an empty context or continuation, HarnessError for a wrong number of BOS tokens.
        """
        encoded = [self.encode(context, continuations) for context, continuations in requests]
        fitting = [i for i, pair in enumerate(encoded) if self._fits(pair)]
        found: list[list[float] | None] = [None] * len(requests)
        for index, scores in zip(fitting, self.score_ids([encoded[i] for i in fitting]), strict=True):
            found[index] = scores
        return found

    def encode(self, context: str, continuations: Sequence[str]) -> Pair:
        """Ids of a context and its continuations, checked. Raises as `loglikelihoods`."""
        pairs = [encode_pair(self.tokenizer, context, continuation) for continuation in continuations]
        if not pairs or not pairs[0][0] or not all(choice for _, choice in pairs):
            raise ValueError("a context and its continuations must each be at least one token long")
        leading_bos(self.tokenizer, pairs[0][0])
        return pairs[0][0], [choice for _, choice in pairs]

    def _fits(self, pair: Pair) -> bool:
        context, choices = pair
        # The last token of a choice is predicted and never read.
        return self.max_length is None or len(context) + max(map(len, choices)) - 1 <= self.max_length


def make_likelihood(
    engine: str,
    checkpoint: Path,
    *,
    dtype: str = "auto",
    max_model_len: int = 8192,
    resources: dict[str, Any] | None = None,
) -> Likelihood:
    """Load `checkpoint` (a directory) to score continuations.

    dtype "auto": bfloat16 on CUDA, float32 on a CPU (bf16 sums differ by tenths of a nat). `max_model_len` bounds vLLM's
    memory. `resources`: threads; choices (continuations per forward pass, transformers); those of `train.engines` (vLLM).
    Raises RecipeError for an unknown engine.
    """
    if engine == "transformers":
        from evals.knowledge.transformers_logprobs import TransformersLikelihood

        return TransformersLikelihood(checkpoint, dtype=dtype, resources=resources or {})
    if engine == "vllm":
        from evals.knowledge.vllm_logprobs import VllmLikelihood

        return VllmLikelihood(checkpoint, dtype=dtype, max_model_len=max_model_len, resources=resources or {})
    raise RecipeError(f"Likelihood engine {engine!r} is not known; set likelihood_engine to {' or '.join(ENGINES)}.")


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids with the tokenizer's own special tokens, but never a second BOS before a text that begins with one.

    lm-evaluation-harness 0.4.13, `HFLM.tok_encode`: chat templates write the BOS into the text.
    """
    if tokenizer.bos_token and text.startswith(tokenizer.bos_token):
        return tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.encode(text)


def leading_bos(tokenizer: Any, ids: Sequence[int]) -> int:
    """How many BOS tokens `ids` begin with: one where the tokenizer writes one, else at most one.

    Raises HarnessError for any other number: two, or none where the model has always seen one, move every score.
    """
    bos = tokenizer.bos_token_id
    count = 0
    while bos is not None and count < len(ids) and ids[count] == bos:
        count += 1
    wanted = bos is not None and tokenizer.encode("a")[:1] == [bos]
    if count > 1 or (wanted and count == 0):
        raise HarnessError(
            f"A text begins with {count} BOS tokens where there must be one; mend bos_token, add_bos_token or the chat "
            "template of this checkpoint."
        )
    return count


def encode_pair(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of a context and of the continuation after it (lm-evaluation-harness 0.4.13, `TemplateLM._encode_pair`).

    Trailing white space of the context moves to the continuation; the continuation's ids are what the whole text's ids
    have beyond the length of the context's.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    context_ids = encode_text(tokenizer, stripped)
    return context_ids, encode_text(tokenizer, stripped + continuation)[len(context_ids) :]
