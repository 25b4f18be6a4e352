"""Log-probabilities from vLLM's `prompt_logprobs`: the choice for models that one GPU's transformers cannot hold or feed.

Every continuation is one prompt of context and continuation. vLLM does not read its prefix cache for requests that ask for
prompt log-probabilities (the skipped positions would have none), so the shared context is computed again for each.
"""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.knowledge.logprobs import Likelihood, Pair


class VllmLikelihood(Likelihood):
    """`max_length` is the smaller of the model's and `max_model_len`, less the one token that vLLM must generate."""

    def __init__(
        self, checkpoint: Path, *, dtype: str = "auto", max_model_len: int = 8192, resources: dict[str, Any] | None = None
    ):
        import torch
        from transformers import AutoConfig

        from train.vllm_engine import VllmEngine

        if dtype == "auto":
            dtype = "bfloat16" if torch.cuda.is_available() else "float32"
        config = AutoConfig.from_pretrained(str(checkpoint), trust_remote_code=False, local_files_only=True).get_text_config()
        limit = min(max_model_len, getattr(config, "max_position_embeddings", max_model_len))
        self._engine = VllmEngine(Path(checkpoint), limit, dtype, 0, resources or {})
        self.tokenizer = self._engine.tokenizer
        # `Likelihood` does not count a choice's last token, which vLLM reads.
        self.max_length = limit - 2

    def score_ids(self, pairs: Sequence[Pair]) -> list[list[float]]:
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        places = [(context, choice) for context, choices in pairs for choice in choices]
        prompts = [{"prompt_token_ids": [*context, *choice]} for context, choice in places]
        outputs = iter(self._engine.llm.generate(prompts, parameters, use_tqdm=False) if prompts else [])
        return [[_sum_from(next(outputs).prompt_logprobs, context, choice) for choice in choices] for context, choices in pairs]

    def close(self) -> None:
        self._engine.close()
        gc.collect()


def _sum_from(logprobs: Any, context: list[int], choice: list[int]) -> float:
    """Sum over the choice's positions; vLLM gives per position {token id: Logprob}, the prompt's own token among them."""
    return float(sum(logprobs[len(context) + i][token].logprob for i, token in enumerate(choice)))
