"""Log-probabilities from transformers, with everything that texts have in common computed once.

The key-value cache of the last context is kept: the next context pays only for the tokens after their common prefix (for
TruthfulQA the whole primer), and the continuations of one context share it and go through the model as one batch. What is
shared is found by comparing ids, never texts, so that no token boundary is moved.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.knowledge.logprobs import Likelihood, Pair
from train.loading import load_complete

if TYPE_CHECKING:
    import torch


class TransformersLikelihood(Likelihood):
    """`resources["choices"]`, the continuations per forward pass (32), does not change results beyond rounding."""

    def __init__(self, checkpoint: Path, *, dtype: str = "auto", resources: dict[str, Any] | None = None):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        resources = resources or {}
        if "threads" in resources:
            torch.set_num_threads(resources["threads"])
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        self.tokenizer = AutoTokenizer.from_pretrained(str(checkpoint), trust_remote_code=False, local_files_only=True)
        self.model = load_complete(AutoModelForCausalLM, checkpoint, dtype).to(self.device)
        self.max_length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.batch = resources.get("choices", 32)
        self._ids: list[int] = []
        self._cache: Any = None

    def score_ids(self, pairs: Sequence[Pair]) -> list[list[float]]:
        return [self._score(context, choices) for context, choices in pairs]

    def _score(self, context: list[int], choices: list[list[int]]) -> list[float]:
        self._advance(context[:-1])
        # Neighbours of like length waste the least padding.
        order = sorted(range(len(choices)), key=lambda i: len(choices[i]))
        scores: dict[int, float] = {}
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            scores.update(zip(chosen, self._score_batch(context[-1], [choices[i] for i in chosen]), strict=True))
        return [scores[i] for i in range(len(choices))]

    def _advance(self, ids: list[int]) -> None:
        """Make the cache hold exactly `ids`, reusing what it shares with the last context."""
        import torch
        from transformers import DynamicCache

        shared = next((i for i, (a, b) in enumerate(zip(self._ids, ids, strict=False)) if a != b), min(len(self._ids), len(ids)))
        if shared == 0:
            # without the model's config every layer keeps all positions, so that any prefix can be cut out again;
            # sliding windows are applied by the attention mask
            self._cache = DynamicCache()
        elif shared < len(self._ids):
            self._cache.crop(shared - len(self._ids))
        self._ids = list(ids)
        if shared < len(ids):
            with torch.inference_mode():
                new = torch.tensor([ids[shared:]], device=self.device)
                self.model(new, past_key_values=self._cache, use_cache=True, logits_to_keep=1)

    def _score_batch(self, last: int, choices: list[list[int]]) -> list[float]:
        """Rows are `last` context token + choice without its last token: their logits predict the choice. Shape (B, T)."""
        import torch
        from transformers import DynamicCache

        width = max(map(len, choices))
        inputs = torch.zeros(len(choices), width, dtype=torch.long)
        targets = torch.full((len(choices), width), -100)
        for row, choice in enumerate(choices):
            inputs[row, : len(choice)] = torch.tensor([last, *choice[:-1]])
            targets[row, : len(choice)] = torch.tensor(choice)
        inputs, targets = inputs.to(self.device), targets.to(self.device)
        # padding is on the right, where causal attention never looks; expand() shares the context's memory
        cache = DynamicCache(
            [(la.keys.expand(len(choices), -1, -1, -1), la.values.expand(len(choices), -1, -1, -1)) for la in self._layers()]
        )
        with torch.inference_mode():
            logits = self.model(inputs, past_key_values=cache, use_cache=True).logits
            return _summed_logprobs(logits, targets).tolist()

    def _layers(self) -> list[Any]:
        return [layer for layer in self._cache.layers if layer.keys is not None]


def _summed_logprobs(logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """(B, T, V) logits and (B, T) ids, -100 where there is none -> (B,) float64 sums."""
    logits = logits.float()
    chosen = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    # not cross_entropy over (B, V, T): its float32 sum over a vocabulary lost 1e-4 nats here
    logprobs = chosen - logits.logsumexp(dim=-1)
    return logprobs.masked_fill(targets == -100, 0.0).double().sum(dim=1)
