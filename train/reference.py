"""Reference log-probabilities of preference pairs, computed once: `python -m train.reference SPEC.json`.

inputs: reference (checkpoint), pairs (`pairs.jsonl`); artifact: `reference.jsonl`, one row a pair in the same order:
{"prompt_id", "chosen_logp", "rejected_logp", "chosen_tokens", "rejected_tokens"}; the log-probabilities (nats) are null
for a pair that `max_length` drops. DPO then needs no second model in memory.

Kept by content too (`train.annotation_cache`): what weights, precision and token ids are the same for, other runs, restarts,
iterations with `data: all` and sweeps over the loss find there.
"""

import contextlib
import shutil
from functools import cached_property
from typing import Any

from core.artifacts import read_rows, write_rows
from core.errors import RecipeError
from core.stage import Stage, main
from train.annotation_cache import RewardCache, reward_identity
from train.annotators import cache_of
from train.checkpoint import rows_file
from train.logprobs import response_logprobs, truncated_pair
from train.optimisation import PRECISIONS
from train.scorers import length_batches

# Pairs a shard: what a crash costs at most.
_SHARD = 256


def run(stage: Stage) -> dict[str, Any]:
    pairs = read_rows(rows_file(stage.input("pairs"), "pairs.jsonl"))
    shards = stage.work / "shards"
    shards.mkdir(exist_ok=True)
    scorer = ReferencePolicy(stage)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(pairs), _SHARD):
        file = shards / f"{start:09d}.jsonl"
        if not file.exists():
            write_rows(file, scorer.score(pairs[start : start + _SHARD]))
        rows += read_rows(file)
        stage.progress(min(start + _SHARD, len(pairs)), len(pairs), "pairs")
    write_rows(stage.work / "reference.jsonl", rows)
    shutil.rmtree(shards)
    scored = [row for row in rows if row["chosen_logp"] is not None]
    tokens = sum(row["chosen_tokens"] + row["rejected_tokens"] for row in scored)
    return {"pairs": len(scored), "dropped": len(rows) - len(scored), "tokens": tokens, "cached": scorer.cache.hits}


class ReferencePolicy:
    """The reference model, loaded (on the GPU if there is one) when the first answer is not in the cache.

    Raises RecipeError on an unknown precision.
    """

    def __init__(self, stage: Stage):
        self.precision = stage.settings["precision"]
        if self.precision not in PRECISIONS:
            raise RecipeError(f"precision {self.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}.")
        self.path = stage.input("reference")
        self.max_length = stage.settings["max_length"]
        self.budget = int(stage.spec.resources.get("batch_tokens", 4096))
        self.cache = RewardCache(cache_of(stage.spec))
        fingerprint = stage.spec.inputs["reference"]["fingerprint"]
        # The length limit is in the token ids already.
        self.identity = reward_identity("response_log_probability", fingerprint, self.precision, 0)

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
