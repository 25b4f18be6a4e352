"""Does a reward model score a conversation alike alone, in a batch, behind other padding, and in vLLM?

    python -m train.reward_parity CHECKPOINT PAIRS.jsonl [--limit 8] [--dtype float32] [--vllm]

One that does not reads its score at a padding token (padding equal to the turn end, RLHF-Reward-Modeling issue 49), or
attends to padding: its rewards depend on what else is in the batch, and must not be used.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

from core.errors import HarnessError
from train.chat import Message, load_tokenizer, render

TOLERANCES = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.02}
"""Largest difference of a reward that another order of summation explains, per unit of the rewards' scale (at least 1).

bfloat16 has 8 bits: rewards moved by 0.13 against float32 (measured, 135M parameters). A reward that is read at another
token moves by about the scale itself.
"""

_PADDINGS = (16, 128)
"""Words of the filler that a batch is padded to, short and long."""

PROBES: list[list[Message]] = [
    [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Green."}],
    [
        {"role": "user", "content": "How many legs has a spider?"},
        {"role": "assistant", "content": "A spider has eight legs, two more than an insect, in four pairs."},
    ],
    [
        {"role": "user", "content": "Say hello."},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "And now goodbye."},
        {"role": "assistant", "content": "Goodbye, and come back soon."},
    ],
]
"""Conversations of several lengths, for a check without data."""


class Pointwise(Protocol):
    """What is checked: a scorer, with the longest input that it takes (tokens)."""

    max_length: int

    def score(self, conversations: list[list[Message]]) -> list[float]: ...


def parity_report(
    scorer: Pointwise,
    conversations: list[list[Message]],
    others: dict[str, Callable[[list[list[Message]]], Sequence[float]]] | None = None,
) -> dict[str, float]:
    """Way of scoring -> largest absolute difference from each conversation scored alone.

    batched: all together; padded_16, padded_128: together with a filler of so many words; `others`: further ways by name.
    """
    alone = [scorer.score([conversation])[0] for conversation in conversations]
    ways = {"batched": scorer.score(conversations)}
    for words in _PADDINGS:
        filler = [{"role": "user", "content": "word " * min(words, scorer.max_length)}, {"role": "assistant", "content": "end"}]
        ways[f"padded_{words}"] = scorer.score([*conversations, filler])[:-1]
    ways |= {name: list(score(conversations)) for name, score in (others or {}).items()}
    report = {name: max(abs(a - b) for a, b in zip(alone, rewards, strict=True)) for name, rewards in ways.items()}
    return report | {"scale": max(abs(reward) for reward in alone)}


def require_parity(
    scorer: Pointwise,
    conversations: list[list[Message]],
    dtype: str = "float32",
    others: dict[str, Callable[[list[list[Message]]], Sequence[float]]] | None = None,
) -> dict[str, float]:
    """`parity_report`, raising HarnessError when a difference is more than rounding in `dtype`, or not a number."""
    report = parity_report(scorer, conversations, others)
    allowed = TOLERANCES[dtype] * max(1.0, report["scale"])
    for way, moved in report.items():
        if way != "scale" and not moved <= allowed:
            cause = (
                "vLLM and transformers read it at another token or render it otherwise; give the checkpoint a pad_token that "
                "its chat template never writes"
                if way == "vllm"
                else "its padding token ends a turn, or its attention sees padding; give its tokenizer_config.json and "
                "config.json a pad_token that its chat template never writes"
            )
            raise HarnessError(
                f"The reward model scores a conversation otherwise {way.replace('_', ' to ')} than alone (by {moved:.3g}, "
                f"allowed {allowed:.2g}): {cause}."
            )
    return report


def vllm_scores(checkpoint: Path, conversations: list[list[Message]], *, max_length: int, dtype: str = "float32") -> list[float]:
    """Raw rewards of vLLM's pooling engine for the same token ids; only the end of the process surely frees what it takes."""
    import os

    import torch

    tokenizer = load_tokenizer(checkpoint)
    prompts = [{"prompt_token_ids": render(tokenizer, one, add_generation_prompt=False)[1]} for one in conversations]
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if not torch.cuda.is_available():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm import LLM, PoolingParams

    engine = LLM(model=str(checkpoint), runner="pooling", dtype=dtype, max_model_len=max_length, enforce_eager=True)
    # vLLM's default gives the sigmoid.
    outputs = engine.classify(prompts, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    return [float(output.outputs.probs[0]) for output in outputs]


def main() -> None:
    from core.artifacts import read_rows
    from train.scorers import DTYPES, BradleyTerryScorer

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("pairs", type=Path, help="JSON Lines with `chosen`: a list of messages")
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="auto")
    parser.add_argument("--vllm", action="store_true", help="also through vLLM's pooling engine")
    given = parser.parse_args()
    conversations: list[Any] = [row["chosen"] for row in read_rows(given.pairs)[: given.limit]]
    dtype, others = DTYPES[given.dtype], {}
    if given.vllm:
        # First and in a process of its own: vLLM starts only where its share of the GPU is free, and has freed it at the end.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            asked = alone.submit(vllm_scores, given.checkpoint, conversations, max_length=given.max_length, dtype=dtype)
            rewards = asked.result()
        others["vllm"] = lambda rows: rewards
    scorer = BradleyTerryScorer(given.checkpoint, max_length=given.max_length, dtype=given.dtype)
    print(json.dumps(require_parity(scorer, conversations, dtype, others), indent=1))


if __name__ == "__main__":
    main()
