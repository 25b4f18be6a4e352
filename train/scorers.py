"""Scorers: conversations in, one number each out (`score`), or a tournament of a prompt's responses (`rank`).

Bradley-Terry reward models and pairwise preference models ship; others come by entry point.

    scorer = make_scorer("bradley_terry", checkpoint, max_length=2048)
    rewards = scorer.score([[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]])

The scorer renders with its own tokenizer and template, never the policy's. Its score is the raw logit, unbounded.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from core.errors import HarnessError, RecipeError
from train.batches import length_batches
from train.chat import Message, load_tokenizer, render
from train.loading import load_complete
from train.packed_linear import pack_linear_layers
from train.performance import Work, causal
from train.plugins import find_plugin
from train.reward_forward import MIN_SHARED, RewardForward, shared_beginnings
from train.reward_parity import PROBES, require_parity

if TYPE_CHECKING:
    import torch

    from train.annotation_cache import RewardCache

__all__ = ["SCORERS", "BradleyTerryScorer", "Scorer", "keep_end", "length_batches", "make_scorer"]

DTYPES = {"auto": "float32", "float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
"""`auto` is float32, on a GPU too: bfloat16 moved rewards by about 0.13, more than many margins between answers, and `auto` is
part of what a reward is kept under, so that it may not depend on the machine. The paper's code scores in bfloat16, several times
faster on a GPU: `annotate.dtype: bfloat16`."""

BATCH_TOKENS = {"cpu": 1024, "cuda": 65536}
"""Padded tokens of a forward pass, on a GPU for two bytes a value: keys and values of Llama-3-8B take 8 GiB then, and those of
the beginnings that answers share as much again. A CPU gains nothing from more rows at once: 4,096 tokens took 1.6 times as long
as 1,024 (hidden size 576, AVX-512)."""


def prepare_scoring(dtype: str, resources: dict[str, Any]) -> tuple["torch.device", int]:
    """Where a scorer computes, and the padded tokens of a forward pass; sets the CPU threads of `resources`.

    Raises RecipeError for an unknown dtype.
    """
    import torch

    if dtype not in DTYPES:
        raise RecipeError(f"dtype {dtype!r} is not known; use one of {', '.join(DTYPES)}.")
    if "threads" in resources:
        torch.set_num_threads(resources["threads"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device, resources.get("batch_tokens", default_batch_tokens(device.type, DTYPES[dtype]))


def default_batch_tokens(device: str, dtype: str) -> int:
    """Padded tokens of a forward pass on a `cpu` or `cuda` device: in float32 a quarter on a GPU, where the weights, too, take
    twice the room."""
    tokens = BATCH_TOKENS[device]
    return tokens // 4 if device == "cuda" and dtype == "float32" else tokens


def padding_identity(checkpoint: Path) -> dict[str, int]:
    """{"padding": 0} for a checkpoint whose padding token is token 0 and named by its tokenizer alone, else nothing.

    Part of what its rewards are kept under: they are not those of a reading that takes token 0 for none, at another position.
    """
    from transformers import AutoTokenizer

    config = Path(checkpoint) / "config.json"
    if not config.is_file() or json.loads(config.read_text()).get("pad_token_id") is not None:
        return {}
    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint), trust_remote_code=False, local_files_only=True)
    return {"padding": 0} if tokenizer.pad_token_id == 0 else {}


class Scorer(Protocol):
    """`truncated[i]` says whether conversation i of the last call had to be cut to fit."""

    truncated: list[bool]

    def score(self, conversations: list[list[Message]]) -> list[float]: ...


class BradleyTerryScorer:
    """A sequence classifier with one output, read at the last token that is not padding.

    `cache` (a `train.annotation_cache.RewardCache`, with `identity`, see there) may be set: what it holds is not computed.
    `work` is what was, so far.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        max_length: int = 4096,
        dtype: str = "auto",
        resources: dict[str, Any] | None = None,
    ):
        from transformers import AutoModelForSequenceClassification

        self.device, self.batch_tokens = prepare_scoring(dtype, resources or {})
        self.max_length = max_length
        self.truncated: list[bool] = []
        self.cache: RewardCache | None = None
        self.identity = ""
        self.tokenizer = load_tokenizer(checkpoint)
        model = load_complete(AutoModelForSequenceClassification, checkpoint, DTYPES[dtype])
        if model.config.num_labels != 1:
            raise RecipeError(
                f"{checkpoint} has {model.config.num_labels} outputs; a Bradley-Terry scorer needs a model with one."
            )
        if model.config.pad_token_id is None:
            pad = self.tokenizer.pad_token_id
            model.config.pad_token_id = self.tokenizer.eos_token_id if pad is None else pad
        self.model = model.to(self.device)
        pack_linear_layers(self.model)
        self.forward = RewardForward(self.model, self.batch_tokens)
        self.work = Work()

    def score(self, conversations: list[list[Message]]) -> list[float]:
        """Raw rewards in the order given. The longest are cut at the left, which keeps the answer. Raises HarnessError on NaN.

        Equal conversations are scored once; what answers to one prompt have in common is computed once.
        """
        full = [render(self.tokenizer, conversation, add_generation_prompt=False)[1] for conversation in conversations]
        self.truncated = [len(ids) > self.max_length for ids in full]
        encoded = [tuple(keep_end(ids, self.max_length, self.tokenizer.bos_token_id)) for ids in full]
        known = self.cache.find(self.identity, encoded) if self.cache else {}
        contexts = {
            ids: tuple((message["role"], message["content"]) for message in conversation[:-1])
            for ids, conversation in zip(encoded, conversations, strict=True)
            if ids not in known
        }
        began = time.perf_counter()
        fresh = dict(zip(contexts, self.forward.rewards(list(contexts), list(contexts.values())), strict=True))
        self.work.seconds += time.perf_counter() - began
        self._count(list(contexts), list(contexts.values()))
        if not all(map(math.isfinite, fresh.values())):
            raise HarnessError("The reward model gave a reward that is not a finite number; train or choose another one.")
        if self.cache and fresh:
            self.cache.add(self.identity, fresh)
        known |= fresh
        return [known[ids] for ids in encoded]

    def _count(self, rows: list[tuple[int, ...]], contexts: list[Any]) -> None:
        """Add what these rows needed to `work`: the beginning of a prompt's answers once."""
        begun: dict[int, int] = {}
        if self.forward.shares:
            for members, length in shared_beginnings(rows, contexts, MIN_SHARED, lambda ids: len(ids) - 1):
                begun |= dict.fromkeys(members[1:], length)
        for number, ids in enumerate(rows):
            before = begun.get(number, 0)
            self.work.tokens += len(ids) - before
            self.work.attended += causal([len(ids)]) - causal([before])


def keep_end(ids: list[int], max_length: int, bos: int | None) -> list[int]:
    """The last `max_length` ids, a leading BOS kept: cutting at the left keeps the answer that is scored."""
    if len(ids) <= max_length:
        return ids
    head = ids[:1] if ids[0] == bos else []
    return head + ids[len(ids) - max_length + len(head) :]


def _pairwise(checkpoint: Path, **options: Any) -> Any:
    from train.preference_model import PairwisePreferenceModel

    return PairwisePreferenceModel(checkpoint, **options)


SCORERS: dict[str, Callable[..., Any]] = {"bradley_terry": BradleyTerryScorer, "pairwise": _pairwise}


def make_scorer(
    kind: str, checkpoint: Path, *, max_length: int = 4096, dtype: str = "auto", resources: dict[str, Any] | None = None
) -> Scorer:
    """A scorer by name, from the table above or the entry-point group `harness.scorers` (same signature without `kind`).

    Raises HarnessError for a Bradley-Terry model whose rewards depend on batch or padding (`train.reward_parity`).
    """
    scorer = find_plugin(kind, SCORERS, "harness.scorers")(
        Path(checkpoint), max_length=max_length, dtype=dtype, resources=resources
    )
    if isinstance(scorer, BradleyTerryScorer):
        require_parity(scorer, PROBES, DTYPES[dtype])
    return scorer
