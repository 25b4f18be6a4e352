"""The forward passes of a sequence classifier over token ids, with no token computed twice that need not be.

The answers of one prompt begin alike: keys and values of the common beginning are computed once and every answer's own
tokens attend to them. Rows are sorted by length, so that hardly a padding token is computed either. What comes out is
the classifier's own output, up to floating-point differences between batch shapes (below 1e-5 seen in float32).
"""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from train.batches import length_batches

if TYPE_CHECKING:
    import torch

Ids = tuple[int, ...]

MIN_SHARED = 16
"""Tokens that answers must share for the sharing to be worth its copies."""
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3, "float16": 0.05}
"""How far the first shared rewards may lie from plain ones (bfloat16 alone moves a reward by 0.1) before sharing is given up."""


class RewardForward:
    """`rewards(rows, contexts)`: the output of `model` for each row of ids. `batch_tokens`: padded tokens of a forward pass."""

    def __init__(self, model: Any, batch_tokens: int):
        self.model, self.batch_tokens = model, batch_tokens
        # Only `_shared` reads keys and values, and asks for them; encoders know no such argument.
        model.config.get_text_config().use_cache = False
        self.shares = can_share(model)
        self._checked = False

    def rewards(self, rows: Sequence[Ids], contexts: Sequence[Any]) -> list[float]:
        """Raw outputs in the order of the rows (not empty). Rows of equal `contexts` (hashable) are expected to begin alike."""
        found: dict[int, float] = {}
        groups = shared_beginnings(rows, contexts, MIN_SHARED, self._head_position) if self.shares else []
        if groups and not self._checked:
            self._check(rows, groups[0])
        if self.shares:
            for chunk in length_batches([length for _, length in groups], self.batch_tokens):
                found |= self._shared(rows, [groups[i] for i in chunk])
        rest = [i for i in range(len(rows)) if i not in found]
        for batch in length_batches([len(rows[i]) for i in rest], self.batch_tokens):
            numbers = [rest[i] for i in batch]
            found |= dict(zip(numbers, self._plain([rows[i] for i in numbers]), strict=True))
        return [found[i] for i in range(len(rows))]

    def _plain(self, rows: list[Ids]) -> list[float]:
        import torch

        ids, mask = self._padded(rows)
        with torch.inference_mode():
            return self.model(input_ids=ids, attention_mask=mask).logits.float()[:, 0].tolist()

    def _shared(self, rows: Sequence[Ids], groups: list[tuple[list[int], int]]) -> dict[int, float]:
        """Rewards of the rows of some groups: the beginnings in one pass, the rest of the rows in as many as fit."""
        import torch
        from transformers import DynamicCache

        base = getattr(self.model, self.model.base_model_prefix)
        lengths = [length for _, length in groups]
        ids, mask = self._padded([rows[members[0]][:length] for members, length in groups])
        found: dict[int, float] = {}
        with torch.inference_mode():
            cache = base(input_ids=ids, attention_mask=mask, use_cache=True, past_key_values=DynamicCache()).past_key_values
            owner = {row: group for group, (members, _) in enumerate(groups) for row in members}
            order = list(owner)
            tails = [len(rows[row]) - lengths[owner[row]] for row in order]
            width = ids.shape[1]
            for batch in length_batches([tail + width for tail in tails], self.batch_tokens):
                numbers = [order[i] for i in batch]
                of = torch.tensor([owner[row] for row in numbers], device=ids.device)
                starts = torch.tensor([lengths[owner[row]] for row in numbers], device=ids.device)
                tail_ids, tail_mask = self._padded([rows[row][lengths[owner[row]] :] for row in numbers])
                own = DynamicCache()
                for number, layer in enumerate(cache.layers):
                    own.update(layer.keys[of], layer.values[of], number)
                hidden = base(
                    input_ids=tail_ids,
                    attention_mask=torch.cat([mask[of], tail_mask], dim=1),
                    position_ids=starts[:, None] + torch.arange(tail_ids.shape[1], device=ids.device),
                    past_key_values=own,
                    use_cache=True,
                ).last_hidden_state
                last = torch.tensor([self._head_position(rows[row]) for row in numbers], device=ids.device) - starts
                at_end = hidden[torch.arange(len(numbers), device=ids.device), last]
                found |= dict(zip(numbers, self.model.score(at_end).float()[:, 0].tolist(), strict=True))
        return found

    def _check(self, rows: Sequence[Ids], group: tuple[list[int], int]) -> None:
        """Give up sharing for a model whose rewards it changes."""
        shared = self._shared(rows, [group])
        plain = self._plain([rows[i] for i in group[0]])
        limit = TOLERANCE[str(self.model.dtype).removeprefix("torch.")]
        self.shares = all(abs(shared[i] - reward) <= limit for i, reward in zip(group[0], plain, strict=True))
        self._checked = True

    def _head_position(self, row: Ids) -> int:
        """Where transformers reads a classifier: the last token that is not the padding token."""
        pad = self.model.config.pad_token_id
        return next((i for i in range(len(row) - 1, -1, -1) if row[i] != pad), 0)

    def _padded(self, rows: Sequence[Ids]) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Token ids and attention mask, both int64 [rows, longest row], padded at the right."""
        import torch

        width, pad = max(map(len, rows)), self.model.config.pad_token_id
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=self.model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self.model.device)
        return ids, mask


def can_share(model: Any) -> bool:
    """Whether the model is a decoder with a linear head `score` whose every layer attends to all earlier tokens."""
    config = model.config.get_text_config()
    layers = getattr(config, "layer_types", None) or []
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    full = set(layers) <= {"full_attention"} if layers else window is None
    return full and hasattr(model, "score") and hasattr(model, model.base_model_prefix) and not config.is_encoder_decoder


def shared_beginnings(
    rows: Sequence[Ids], contexts: Sequence[Any], least: int, head_position: Callable[[Ids], int]
) -> list[tuple[list[int], int]]:
    """(numbers of rows, length of their common beginning) for each context whose rows share at least `least` tokens.

    The position where the head is read stays outside the beginning.
    """
    of_context: dict[Any, list[int]] = {}
    for number, context in enumerate(contexts):
        of_context.setdefault(context, []).append(number)
    groups = []
    for members in of_context.values():
        # The common beginning of all is that of the least and the greatest in lexicographic order.
        low, high = min(rows[i] for i in members), max(rows[i] for i in members)
        room = min(head_position(rows[i]) for i in members)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(low[:room], high, strict=False)))
        if len(members) > 1 and common >= least:
            groups.append((members, common))
    return groups
