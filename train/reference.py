"""Reference log-probabilities of preference pairs, computed once: `python -m train.reference SPEC.json`.

inputs: reference (checkpoint), pairs (`pairs.jsonl`); artifact: `reference.jsonl`, one row a pair in the same order:
{"prompt_id", "chosen_logp", "rejected_logp", "chosen_tokens", "rejected_tokens"}; the log-probabilities (nats) are null
for a pair that `max_length` drops. DPO then needs no second model in memory.

Kept by content too (`train.annotation_cache`): what weights, precision and token ids are the same for, other runs, restarts,
iterations with `data: all` and sweeps over the loss find there. Shards of pairs are shared out over `resources.processes`, each
with the reference on a GPU of its own; a shard that exists is done.
"""

import contextlib
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from core.artifacts import read_rows, write_rows
from core.errors import RecipeError
from core.stage import Spec, Stage, main
from train.annotation_cache import RewardCache, reward_identity
from train.annotators import cache_of
from train.checkpoint import rows_file
from train.logprobs import response_logprobs, truncated_pair
from train.optimisation import PRECISIONS
from train.scorers import length_batches
from train.workers import layout, run_workers

# Pairs a shard: what a crash costs at most.
_SHARD = 256
SHARDS = "shards"
"""Folder of the shards, until they are one file."""


def run(stage: Stage) -> dict[str, Any]:
    """Write `reference.jsonl`; return the pairs with log-probabilities, the dropped ones, and the answers found in the cache."""
    folder, pairs = stage.work / SHARDS, read_pairs(stage.spec)
    folder.mkdir(exist_ok=True)
    starts = range(0, len(pairs), _SHARD)
    jobs = [start for start in starts if not shard_file(folder, start).exists()]
    finished, cached = len(starts) - len(jobs), 0

    def done(hits: int) -> None:
        nonlocal finished, cached
        finished, cached = finished + 1, cached + hits
        stage.progress(min(finished * _SHARD, len(pairs)), len(pairs), "pairs")

    processes = stage.spec.resources.get("processes", 1)
    if jobs and processes > 1:
        run_workers(score_shards, (stage.spec, folder), jobs, layout(processes, 1), done)
    else:
        for hits in score_shards(stage.spec, folder, iter(jobs)):
            done(hits)
    rows = [row for start in starts for row in read_rows(shard_file(folder, start))]
    write_rows(stage.work / "reference.jsonl", rows)
    shutil.rmtree(folder)
    scored = [row for row in rows if row["chosen_logp"] is not None]
    tokens = sum(row["chosen_tokens"] + row["rejected_tokens"] for row in scored)
    return {"pairs": len(scored), "dropped": len(rows) - len(scored), "tokens": tokens, "cached": cached}


def read_pairs(spec: Spec) -> list[dict[str, Any]]:
    return read_rows(rows_file(Path(spec.inputs["pairs"]["path"]), "pairs.jsonl"))


def shard_file(folder: Path, start: int) -> Path:
    """Of the pairs from number `start` on."""
    return folder / f"{start:09d}.jsonl"


def score_shards(spec: Spec, folder: Path, jobs: Iterator[int]) -> Iterator[int]:
    """Write the shards that begin with these pairs; yields how many answers of each the cache held. The model is loaded once."""
    pairs, policy = read_pairs(spec), ReferencePolicy(spec)
    for start in jobs:
        before = policy.cache.hits
        write_rows(shard_file(folder, start), policy.score(pairs[start : start + _SHARD]))
        yield policy.cache.hits - before


class ReferencePolicy:
    """The reference model, loaded (on the GPU if there is one) when the first answer is not in the cache.

    `resources`: batch_tokens (padded tokens of a forward pass). Raises RecipeError on an unknown precision.
    """

    def __init__(self, spec: Spec):
        self.precision = spec.settings["precision"]
        if self.precision not in PRECISIONS:
            raise RecipeError(f"precision {self.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}.")
        given = spec.inputs["reference"]
        self.path = Path(given["path"])
        self.max_length = spec.settings["max_length"]
        self.budget = int(spec.resources.get("batch_tokens", 4096))
        self.cache = RewardCache(cache_of(spec))
        # The length limit is in the token ids already.
        self.identity = reward_identity("response_log_probability", given["fingerprint"], self.precision, 0)

    @cached_property
    def model(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return AutoModelForCausalLM.from_pretrained(self.path, dtype=dtype).to(device).eval()

    def score(self, pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One reference row a pair, in order."""
        cut = [truncated_pair(pair, self.max_length) for pair in pairs]
        known = self.log_probabilities([(c[0], response) for c in cut if not isinstance(c, str) for response in c[1:]])
        rows = []
        for pair, sides in zip(pairs, cut, strict=True):
            row = {"prompt_id": pair["prompt_id"], "chosen_logp": None, "rejected_logp": None}
            row |= {"chosen_tokens": 0, "rejected_tokens": 0}
            if not isinstance(sides, str):
                prompt, chosen, rejected = sides
                row |= {"chosen_logp": known[content(prompt, chosen)], "chosen_tokens": len(chosen)}
                row |= {"rejected_logp": known[content(prompt, rejected)], "rejected_tokens": len(rejected)}
            rows.append(row)
        return rows

    def log_probabilities(self, answers: list[tuple[list[int], list[int]]]) -> dict[tuple[int, ...], float]:
        """`content` of each (prompt, response) -> summed log-probability of the response in nats, cached or computed."""
        import torch

        wanted = {content(prompt, response): (prompt, response) for prompt, response in answers}
        known = self.cache.find(self.identity, wanted)
        missing = [key for key in wanted if key not in known]
        computed = {}
        for batch in length_batches([len(key) for key in missing], self.budget) if missing else ():
            keys = [missing[i] for i in batch]
            autocast = self.precision == "bf16_autocast"
            context = torch.autocast(self.model.device.type, torch.bfloat16) if autocast else contextlib.nullcontext()
            with context:
                sums = response_logprobs(self.model, [wanted[key][0] for key in keys], [wanted[key][1] for key in keys])
            computed |= dict(zip(keys, sums.tolist(), strict=True))
        self.cache.add(self.identity, computed)
        return known | computed


def content(prompt: list[int], response: list[int]) -> tuple[int, ...]:
    """What a log-probability is of: where the response begins, and the token ids."""
    return (len(prompt), *prompt, *response)


if __name__ == "__main__":
    main(run)
