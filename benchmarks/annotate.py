"""Reward annotation: this project's scorer beside the way of Online-RLHF (annotate_data/get_rewards.py), on the same weights.

    HARNESS_DATA=... python -m benchmarks.annotate CHECKPOINT [--texts hh_rlhf|alpaca_eval] [--prompts 256] [--peer-samples 128]

CHECKPOINT: a causal language model; it gets a random head with one output (a reward's value costs what it costs whatever
it is) and is run on this machine's GPU or CPU, both sides in float32, or in bfloat16 as Online-RLHF does. 8 answers to each
prompt. `hh_rlhf`: dialogues of the human harmless set, each with its own two responses and six of other dialogues, so that
prompts and answers have real lengths; `alpaca_eval`: single instructions, each with the answers of eight published models.
The peer is transformers' text-classification pipeline with function_to_apply "none", batch size 1 and truncation; on a slow
machine it scores an evenly spread subset, and speeds are compared per sample. Claim: at least 5 times as fast, rewards equal
to 1e-4 in float32.
"""

import argparse
import gzip
import json
import multiprocessing
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import MissingInput
from train.chat import Message, load_tokenizer, render
from train.readers import hh_rlhf
from train.scorers import BradleyTerryScorer

ANSWERS = 8
Conversations = list[list[Message]]


def hh_conversations(mirror: Path, prompts: int) -> Conversations:
    """`prompts` dialogues with 8 answers each, those of one dialogue together."""
    rows = list(hh_rlhf([mirror / "preferences" / "hh_rlhf_harmless_test.jsonl.gz"]))
    generator = random.Random(0)
    chosen = generator.sample(rows, prompts)
    responses = [row[side][-1]["content"] for row in rows for side in ("chosen", "rejected")]
    conversations = []
    for row in chosen:
        answers = [row["chosen"][-1]["content"], row["rejected"][-1]["content"], *generator.sample(responses, ANSWERS - 2)]
        conversations += [[*row["chosen"][:-1], {"role": "assistant", "content": answer}] for answer in answers]
    return conversations


def alpaca_eval_conversations(mirror: Path, prompts: int) -> Conversations:
    """`prompts` instructions with the answers of 8 published models each."""
    folder = mirror / "preferences" / "alpaca_eval"
    asked = {row["p"]: row["instruction"] for row in read(folder / "prompts.jsonl.gz")}
    said: dict[int, list[str]] = {}
    for row in read(folder / "outputs.jsonl.gz"):
        said.setdefault(row["p"], []).append(row["output"])
    generator = random.Random(0)
    conversations = []
    for number in generator.sample(sorted(said), prompts):
        for answer in generator.sample(said[number], ANSWERS):
            conversations.append([{"role": "user", "content": asked[number]}, {"role": "assistant", "content": answer}])
    return conversations


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


TEXTS: dict[str, Callable[[Path, int], Conversations]] = {
    "hh_rlhf": hh_conversations,
    "alpaca_eval": alpaca_eval_conversations,
}


def make_reward_model(checkpoint: Path, folder: Path, dtype: str) -> Path:
    """`checkpoint` with a seeded random head."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1, dtype=getattr(torch, dtype))
    tokenizer = load_tokenizer(checkpoint)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def theirs(checkpoint: Path, conversations: Conversations, max_length: int, dtype: str) -> tuple[list[float], float]:
    """(rewards, seconds) of the pipeline, loading excluded."""
    import torch
    from transformers import pipeline

    tokenizer = load_tokenizer(checkpoint)
    tokenizer.truncation_side, tokenizer.model_max_length = "left", max_length
    scorer = pipeline(
        "text-classification",
        model=str(checkpoint),
        tokenizer=tokenizer,
        device=0 if torch.cuda.is_available() else -1,
        dtype=getattr(torch, dtype),
        truncation=True,
    )
    texts = [tokenizer.apply_chat_template(c, tokenize=False) for c in conversations]
    scorer(texts[0], function_to_apply="none", batch_size=1)
    began = time.perf_counter()
    rewards = [scorer(text, function_to_apply="none", batch_size=1)[0]["score"] for text in texts]
    return rewards, time.perf_counter() - began


def ours(
    checkpoint: Path, conversations: Conversations, max_length: int, dtype: str, batch_tokens: int | None
) -> tuple[list[float], float]:
    """(rewards, seconds) of `BradleyTerryScorer` without its cache, all as one shard (a recipe's shards hold 512 prompts);
    loading excluded."""
    resources = {} if batch_tokens is None else {"batch_tokens": batch_tokens}
    scorer = BradleyTerryScorer(checkpoint, max_length=max_length, dtype=dtype, resources=resources)
    scorer.score(conversations[:ANSWERS])
    began = time.perf_counter()
    return scorer.score(conversations), time.perf_counter() - began


def side_by_side(
    processes: int, checkpoint: Path, conversations: Conversations, max_length: int, dtype: str, batch_tokens: int | None
) -> tuple[list[float], float]:
    """`ours` by so many processes with a share of the threads each (`annotate.processes`), every prompt whole in one of them;
    from the moment when all have loaded to the end of the last."""
    import torch

    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(processes + 1), context.SimpleQueue()
    parts: list[list[int]] = [[] for _ in range(processes)]
    for first in range(0, len(conversations), ANSWERS):
        parts[(first // ANSWERS) % processes] += range(first, first + ANSWERS)
    resources = {"threads": max(1, torch.get_num_threads() // processes)}
    resources |= {} if batch_tokens is None else {"batch_tokens": batch_tokens}
    for numbers in parts:
        mine = [conversations[i] for i in numbers]
        arguments = (checkpoint, mine, numbers, max_length, dtype, resources, ready, results)
        context.Process(target=_score_part, args=arguments, daemon=True).start()
    ready.wait()
    began = time.perf_counter()
    rewards = dict(pair for _ in parts for pair in results.get())
    return [rewards[i] for i in range(len(conversations))], time.perf_counter() - began


def _score_part(
    checkpoint: Path,
    conversations: Conversations,
    numbers: list[int],
    max_length: int,
    dtype: str,
    resources: dict[str, Any],
    ready: Any,
    results: Any,
) -> None:
    scorer = BradleyTerryScorer(checkpoint, max_length=max_length, dtype=dtype, resources=resources)
    scorer.score(conversations[:ANSWERS])
    ready.wait()
    results.put(list(zip(numbers, scorer.score(conversations), strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--texts", choices=sorted(TEXTS), default="hh_rlhf")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--peer-samples", type=int, default=128, help="how many samples the peer scores")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of both sides")
    parser.add_argument("--batch-tokens", type=int, help="padded tokens of one forward pass here (default: the scorer's own)")
    parser.add_argument("--processes", type=int, default=1, help="of ours, side by side (annotate.processes)")
    parser.add_argument("--json", action="store_true", help="print the figures as one line of JSON")
    arguments = parser.parse_args()
    mirror = os.environ.get("HARNESS_DATA")
    if not mirror:
        raise MissingInput("HARNESS_DATA is not set; name a mirror that holds preferences/.")
    conversations = TEXTS[arguments.texts](Path(mirror), arguments.prompts)
    step = max(1, len(conversations) // arguments.peer_samples)
    # Every step-th sample, at a stride that meets every place among a prompt's answers.
    subset = [i for i in range(0, len(conversations), step + (step % 2 == 0))][: arguments.peer_samples]
    with tempfile.TemporaryDirectory() as name:
        checkpoint = make_reward_model(arguments.checkpoint, Path(name), arguments.dtype)
        tokenizer = load_tokenizer(checkpoint)
        lengths = [len(render(tokenizer, c, add_generation_prompt=False)[1]) for c in conversations]
        prompts = [len(render(tokenizer, c[:-1])[1]) for c in conversations]
        given = (checkpoint, conversations, arguments.max_length, arguments.dtype, arguments.batch_tokens)
        mine, my_seconds = ours(*given) if arguments.processes == 1 else side_by_side(arguments.processes, *given)
        other, other_seconds = theirs(checkpoint, [conversations[i] for i in subset], arguments.max_length, arguments.dtype)
    import torch

    figures = {
        "texts": arguments.texts,
        "dtype": arguments.dtype,
        "processes": arguments.processes,
        "samples": len(conversations),
        "tokens": sum(lengths),
        "prompt_tokens_mean": sum(prompts) / len(prompts),
        "answer_tokens_mean": (sum(lengths) - sum(prompts)) / len(prompts),
        "seconds": my_seconds,
        "peer_samples": len(subset),
        "peer_tokens": sum(lengths[i] for i in subset),
        "peer_seconds": other_seconds,
        "per_sample": other_seconds / len(subset) * len(conversations) / my_seconds,
        "per_token": other_seconds / sum(lengths[i] for i in subset) * sum(lengths) / my_seconds,
        "largest_difference": max(abs(mine[i] - reward) for i, reward in zip(subset, other, strict=True)),
        "machine": torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    if arguments.json:
        print(json.dumps(figures))
        return
    print(
        f"{figures['machine']}, {os.cpu_count()} cores, {figures['threads']} threads, {arguments.dtype}, {arguments.texts}; "
        f"processes here: {arguments.processes}"
    )
    print(f"prompts of {figures['prompt_tokens_mean']:.0f} tokens, answers of {figures['answer_tokens_mean']:.0f}\n")
    print(f"{'':<22}{'samples':>9}{'tokens':>10}{'seconds':>10}{'samples/s':>11}")
    for label, prefix in (("here", ""), ("pipeline, batch 1", "peer_")):
        n, tokens, seconds = (figures[prefix + key] for key in ("samples", "tokens", "seconds"))
        print(f"{label:<22}{n:>9}{tokens:>10}{seconds:>10.1f}{n / seconds:>11.2f}")
    print(f"\n{figures['per_sample']:.1f} times as fast per sample ({figures['per_token']:.1f} per token);", end=" ")
    print(f"rewards differ by at most {figures['largest_difference']:.1e}")


if __name__ == "__main__":
    main()
