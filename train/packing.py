"""Packing: several samples in one row, none of which sees another.

    rows = pack(examples, max_length=8192, seed=42)      # {"input_ids", "labels", "position_ids", "samples", "length"}
    PackedCollator(pad_id, flatten=False)(rows[:2])      # tensors for a model, without an attention mask

Isolation rests on position ids that begin again at 0 with each sample and on the absence of an attention mask: from
these transformers 5 builds a block-diagonal causal mask for sdpa and eager attention (masking_utils.py,
`find_packed_sequence_indices`; sliding windows included) and flash attention's variable-length kernel takes the sample
boundaries (modeling_flash_attention_utils.py, `_is_packed_sequence`: one row only, hence `flatten`). A model that does
neither is found out by `require_isolation` before it is trained.
"""

import random
from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any

from core.errors import RecipeError
from train.spans import IGNORED

# Of a logit, relative to the largest: other kernels sum in another order; a sample that sees another moves by 1e-1.
_ISOLATION_TOLERANCE = {"float32": 1e-3, "bfloat16": 6e-2, "float16": 1e-2}
_PROBE_TOKENS = 24


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """Indices grouped into bins of at most `capacity`: longest first, each into the fullest bin it fits in.

    At most 11/9 of the optimal number of bins, plus one (Johnson et al. 1974). O(n log capacity) but for moving at most
    `capacity` list entries. Equal lengths keep their order. Raises ValueError for a length outside 1..capacity.
    """
    if lengths and not 1 <= min(lengths) <= max(lengths) <= capacity:
        raise ValueError(f"lengths must be in 1..{capacity}, found {min(lengths)}..{max(lengths)}.")
    bins: list[list[int]] = []
    open_bins: dict[int, list[int]] = {}  # room left -> bins that have it
    rooms: list[int] = []  # the keys of open_bins, sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(rooms, lengths[index])
        if at == len(rooms):
            chosen, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[at]
            chosen = open_bins[room].pop()
            if not open_bins[room]:
                del open_bins[room], rooms[at]
        bins[chosen].append(index)
        left = room - lengths[index]
        if left:
            if left not in open_bins:
                insort(rooms, left)
            open_bins.setdefault(left, []).append(chosen)
    return bins


def pack(examples: list[dict[str, Any]], max_length: int, seed: int) -> list[dict[str, Any]]:
    """Rows of at most `max_length` tokens out of tokenised examples {"input_ids", "labels"}, each example in one row.

    Examples of one length are shuffled first, so that neighbours in the data are not neighbours in a row.
    """
    order = list(range(len(examples)))
    random.Random(f"packing/{seed}").shuffle(order)
    shuffled = [examples[i] for i in order]
    return [
        join([shuffled[i] for i in chosen])
        for chosen in best_fit_decreasing([len(row["input_ids"]) for row in shuffled], max_length)
    ]


def join(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of several samples. The first token of each has no label: the sample before would predict it."""
    row: dict[str, Any] = {"input_ids": [], "labels": [], "position_ids": []}
    for sample in samples:
        row["input_ids"] += sample["input_ids"]
        row["labels"] += [IGNORED, *sample["labels"][1:]]
        row["position_ids"] += range(len(sample["input_ids"]))
    return row | {"samples": len(samples), "length": len(row["input_ids"])}


def fill_ratio(rows: list[dict[str, Any]], max_length: int) -> float:
    """Share of the rows' room that holds tokens."""
    return sum(row["length"] for row in rows) / (len(rows) * max_length)


@dataclass(frozen=True)
class PackedCollator:
    """Rows of `pack` as int64 tensors {"input_ids", "labels", "position_ids"}, each [rows, longest].

    If `flatten`, each [1, sum of the rows], with `boundaries`. Otherwise padding is a sample of its own (positions from 0, no
    labels), so that no attention mask is needed.
    """

    pad_id: int
    flatten: bool
    """For flash attention, whose variable-length kernel takes one row."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        if self.flatten:
            names = ("input_ids", "labels", "position_ids")
            batch = {name: torch.tensor([[value for row in rows for value in row[name]]]) for name in names}
            return batch | boundaries(batch["position_ids"][0])
        width = max(len(row["input_ids"]) for row in rows)
        gaps = [width - len(row["input_ids"]) for row in rows]
        fills = {
            "input_ids": [[self.pad_id] * gap for gap in gaps],
            "labels": [[IGNORED] * gap for gap in gaps],
            "position_ids": [list(range(gap)) for gap in gaps],
        }
        return {
            name: torch.tensor([row[name] + fill for row, fill in zip(rows, fill_rows, strict=True)])
            for name, fill_rows in fills.items()
        }


def boundaries(position_ids: Any) -> dict[str, Any]:
    """Where the samples of one row lie, as flash attention's kernel wants it: cu_seq_lens_{q,k} int32 [samples + 1],
    max_length_{q,k} int.

    A model derives the same from `position_ids` [tokens], but in every layer and with a stop of the GPU each time.
    """
    import torch

    starts = (position_ids == 0).nonzero().flatten()
    edges = torch.cat([starts, torch.tensor([len(position_ids)])]).to(torch.int32)
    longest = int(edges.diff().max())
    return {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": longest, "max_length_k": longest}


def packed_attention(precision: str) -> str:
    """The attention implementation for packed rows: flash attention where it is installed and the precision allows it."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    half = precision in ("bf16", "bf16_autocast")
    return "flash_attention_2" if half and torch.cuda.is_available() and is_flash_attn_2_available() else "sdpa"


def require_isolation(model: Any, collator: PackedCollator, autocast: bool = False) -> float:
    """Largest relative change of a sample's logits when it is packed behind another; raises RecipeError if it is no rounding.

    Two short made-up samples are run apart and packed. A backbone with a state that runs along the row (Mamba), or with
    an attention of its own that reads no position ids, fails. `model` may be wrapped by DDP or DeepSpeed; all ranks call it.
    `autocast`: run in bfloat16, as the training will.
    """
    import torch

    inner = getattr(model, "module", model)
    device = next(inner.parameters()).device
    # Under ZeRO-3 a weight outside a forward pass has no elements.
    vocabulary = inner.get_input_embeddings().weight.shape[0] or inner.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (2, _PROBE_TOKENS), generator=generator).tolist()
    samples = [{"input_ids": one, "labels": one} for one in ids]

    def logits(rows: list[dict[str, Any]]) -> torch.Tensor:
        batch = {name: values.to(device) if hasattr(values, "to") else values for name, values in collator(rows).items()}
        del batch["labels"]
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return model(**batch, use_cache=False).logits.float()[0]

    training = model.training
    model.eval()
    alone, packed = logits([join(samples[1:])]), logits([join(samples)])[_PROBE_TOKENS:]
    model.train(training)
    moved = ((packed - alone).abs().max() / alone.abs().max()).item()
    dtype = "bfloat16" if autocast else str(inner.dtype).removeprefix("torch.")
    if not moved <= _ISOLATION_TOLERANCE[dtype]:
        raise RecipeError(
            f"A packed sample sees the one before it in {type(inner).__name__} (its logits move by {moved:.2g} of the largest); "
            "set packing to false."
        )
    return moved
