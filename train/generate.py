"""Stage `generate[t]`: sample answers of one policy, or of several, to a slice of the prompt pool.

    python -m train.generate SPEC.json

Every prompt of [start, stop) gets a row. A prompt too long for the context keeps its row with no samples. Seeds derive
from (seed, iteration, prompt, sample), so the same answers come from any shard size, any order and any number of processes.

An arm may name the policy that answers: `current` (input `policy`), `previous` or `initial` (inputs of those names).
Policies run in turn, one loaded at a time, each in processes of its own; their shards are merged at the end.
"""

import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.artifacts import read_rows, write_rows
from core.errors import HarnessError, RecipeError
from core.seeds import derive_seed
from core.stage import Spec, Stage, main
from train.chat import load_tokenizer, render
from train.engines import Completion, Engine, Request, Sampling, make_engine, resolve_dtype
from train.performance import generation_speed
from train.shards import drop_surplus, finished_shard, shard_path
from train.workers import layout, run_workers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POLICIES = {"current": "policy", "previous": "previous", "initial": "initial"}
"""What an arm may name -> input."""
PARTS = "parts"
"""Folder of what each policy has answered, until the shards are merged."""


@dataclass(frozen=True)
class Part:
    """The samples of one policy: input `policy`, numbers of the samples of a prompt, folder of its shards."""

    policy: str
    samples: tuple[int, ...]
    folder: Path


@dataclass(frozen=True)
class Sampled:
    """One shard done: what a worker reports."""

    samples: int
    tokens: int
    seconds: float
    """Wall-clock time in which this worker generated, since its last report."""


def run(stage: Stage) -> dict[str, Any]:
    """Write one shard file per `resources.shard_size` prompts; return counts and the speed of what was sampled now.

    Raises HarnessError when a row or a sample is missing at the end: nothing is ever dropped.
    """
    settings, resources = stage.settings, stage.spec.resources
    shards = prompt_shards(stage.spec)
    drop_surplus(stage.work, len(shards))
    parts = parts_of(stage)
    processes = resources.get("processes", 1)
    ids = [[prompt["id"] for prompt in shard] for shard in shards]
    missing = [i for i in range(len(shards)) if finished_shard(shard_path(stage.work, i), ids[i]) is None]
    total = sum(map(len, ids)) * sum(arm["n"] for arm in settings["arms"])
    speed = Speed()
    counts = Counts()
    for i in set(range(len(shards))) - set(missing):
        counts.add(read_rows(shard_path(stage.work, i)))
    begun = counts.samples

    def done(sampled: Sampled) -> None:
        speed.add(sampled)
        stage.progress(begun + speed.samples, total, "samples")

    for part in parts:
        part.folder.mkdir(parents=True, exist_ok=True)
        drop_surplus(part.folder, len(shards))
        jobs = []
        for i in missing:
            rows = finished_shard(shard_path(part.folder, i), ids[i])
            begun += sum(len(row["samples"]) for row in rows or [])
            jobs += [] if rows is not None else [i]
        if not jobs:
            continue
        speed.workers = min(processes, len(jobs))
        if processes == len(parts) == 1:
            for sampled in generate_shards(stage.spec, part, iter(jobs)):
                done(sampled)
        else:  # only the end of a process surely gives an engine's memory back
            workers = layout(processes, resources.get("tensor_parallel", 1), resources.get("threads"))
            run_workers(generate_shards, (stage.spec, part), jobs, workers, done)
    for i in missing:
        rows = merge([read_rows(shard_path(part.folder, i)) for part in parts], parts)
        if len(parts) > 1:
            write_rows(shard_path(stage.work, i), rows)
        counts.add(rows)
    shutil.rmtree(stage.work / PARTS, ignore_errors=True)
    check_complete(stage.work, ids, settings)
    stage.progress(total, total, "samples")
    generated = [row for i in missing for row in read_rows(shard_path(stage.work, i))] if speed.seconds else []
    return counts.metrics() | measured_speed(stage, generated, speed)


def prompt_shards(spec: Spec) -> list[list[dict[str, Any]]]:
    settings, size = spec.settings, spec.resources.get("shard_size", 64)
    pool = read_rows(Path(spec.inputs["data"]["path"]) / settings["file"])
    prompts = prompt_slice(pool, settings["start"], settings["stop"])
    return [prompts[i : i + size] for i in range(0, len(prompts), size)]


def parts_of(stage: Stage) -> list[Part]:
    """The samples of a prompt by the policy that draws them; inputs with the same weights are one policy."""
    names = [name for arm in stage.settings["arms"] for name in [arm.get("policy", "current")] * arm["n"]]
    inputs = stage.spec.inputs
    first: dict[str, str] = {}
    samples: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        policy = first.setdefault(inputs[POLICIES[name]]["fingerprint"], POLICIES[name])
        samples.setdefault(policy, []).append(number)
    alone = len(samples) == 1
    return [Part(policy, tuple(of), stage.work if alone else stage.work / PARTS / policy) for policy, of in samples.items()]


def generate_shards(spec: Spec, part: Part, jobs: Iterator[int]) -> Iterator[Sampled]:
    """Write the shards with these numbers, yielding a report after each. The engine is loaded once and kept full."""
    settings = spec.settings
    checkpoint = Path(spec.inputs[part.policy]["path"])
    tokenizer = load_tokenizer(checkpoint)
    shards = prompt_shards(spec)
    engine = make_engine(
        settings["engine"],
        checkpoint,
        max_model_len=settings["max_model_len"],
        dtype=settings.get("dtype", "auto"),
        seed=settings["seed"],
        resources=spec.resources,
    )
    try:
        began = time.perf_counter()
        for number, rows in answer_shards(engine, tokenizer, ((i, shards[i]) for i in jobs), settings, part.samples):
            seconds = time.perf_counter() - began
            write_rows(shard_path(part.folder, number), rows)
            samples = [sample for row in rows for sample in row["samples"]]
            yield Sampled(len(samples), sum(len(sample["token_ids"]) for sample in samples), seconds)
            began = time.perf_counter()
    finally:
        engine.close()


def answer_shards(
    engine: Engine,
    tokenizer: "PreTrainedTokenizerBase",
    shards: Iterable[tuple[int, list[dict[str, Any]]]],
    settings: dict[str, Any],
    samples: tuple[int, ...] | None = None,
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(number, rows) of each numbered shard of prompts, in the order in which they are complete; `samples`: see `Part`."""
    rows_of: dict[int, list[dict[str, Any]]] = {}
    owners: dict[int, list[tuple[dict[str, Any], int, Sampling]]] = {}

    def requests() -> Iterator[tuple[int, list[Request]]]:
        for number, prompts in shards:
            rows_of[number] = [prompt_row(tokenizer, prompt, settings) for prompt in prompts]
            owners[number] = [
                (row, index, sampling)
                for row in rows_of[number]
                if len(row["prompt_token_ids"]) + settings["max_tokens"] <= settings["max_model_len"]
                for index, sampling in enumerate(samplings(settings, row["prompt_id"]))
                if samples is None or index in samples
            ]
            yield number, [(row["prompt_token_ids"], sampling) for row, _, sampling in owners[number]]

    policies = [arm.get("policy") for arm in settings["arms"] for _ in range(arm["n"])]
    for number, completions in engine.stream(requests()):
        for (row, index, sampling), completion in zip(owners.pop(number), completions, strict=True):
            row["samples"].append(sample_row(completion, sampling, policies[index]))
        yield number, rows_of.pop(number)


def prompt_row(tokenizer: "PreTrainedTokenizerBase", prompt: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The row of a prompt that is not answered yet; `reference` is what the pool gives as its right answer, for rules."""
    messages = with_system(prompt["messages"], settings.get("system_prompt"))
    text, ids = render(tokenizer, messages)
    row = {"prompt_id": prompt["id"], "messages": messages, "prompt_text": text, "prompt_token_ids": ids, "samples": []}
    return row | ({"reference": prompt["answer"]} if "answer" in prompt else {})


def sample_row(completion: Completion, sampling: Sampling, policy: str | None) -> dict[str, Any]:
    """A sample as it travels; `policy` is there when its arm names one."""
    row = {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
    }
    return row if policy is None else row | {"policy": policy}


def merge(parts: list[list[dict[str, Any]]], of: list[Part]) -> list[dict[str, Any]]:
    """Rows of one shard with the samples of all policies in the order of the arms.

    Raises RecipeError when the policies do not read a prompt as the same token ids: no pair could be trained on both.
    """
    merged = []
    for rows in zip(*parts, strict=True):
        if any(row["prompt_token_ids"] != rows[0]["prompt_token_ids"] for row in rows):
            raise RecipeError(
                f"The policies of generate.arms render prompt {rows[0]['prompt_id']} as different tokens; use arms of policies "
                "that share tokenizer and chat template."
            )
        numbers = [number for part, row in zip(of, rows, strict=True) for number in part.samples[: len(row["samples"])]]
        samples = [sample for row in rows for sample in row["samples"]]
        ordered = [sample for _, sample in sorted(zip(numbers, samples, strict=True), key=lambda pair: pair[0])]
        merged.append(rows[0] | {"samples": ordered})
    return merged


def check_complete(folder: Path, ids: list[list[str]], settings: dict[str, Any]) -> None:
    """Raise HarnessError unless every prompt has its row, and all its samples or none."""
    per_prompt = sum(arm["n"] for arm in settings["arms"])
    for number, expected in enumerate(ids):
        rows = read_rows(shard_path(folder, number))
        if [row["prompt_id"] for row in rows] != expected or any(len(row["samples"]) not in (0, per_prompt) for row in rows):
            raise HarnessError(f"Shard {number} of {folder} lacks rows or samples; remove its file and run the command again.")


def prompt_slice(prompts: list[dict[str, Any]], start: int, stop: int) -> list[dict[str, Any]]:
    """Prompts [start, stop). Raises RecipeError when the pool is shorter: no short iteration is passed off as a whole one."""
    if not 0 <= start < stop <= len(prompts):
        raise RecipeError(
            f"Prompts {start} to {stop} were asked for but the pool holds {len(prompts)}; lower the prompts per iteration, "
            "the number of iterations, or add prompt sources."
        )
    return prompts[start:stop]


def samplings(settings: dict[str, Any], prompt_id: str) -> list[Sampling]:
    """One per sample of a prompt, over all arms."""
    arms = [arm for arm in settings["arms"] for _ in range(arm["n"])]
    return [
        Sampling(
            arm["temperature"],
            arm["top_p"],
            settings["max_tokens"],
            derive_seed(settings["seed"], settings["iteration"], prompt_id, index),
        )
        for index, arm in enumerate(arms)
    ]


def with_system(messages: list[dict[str, str]], system_prompt: str | None) -> list[dict[str, str]]:
    """The recipe's system prompt in front, unless the conversation brings its own."""
    if system_prompt is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system_prompt}, *messages]


class Counts:
    """What the shards hold, resumed ones included."""

    def __init__(self) -> None:
        self.prompts = self.samples = self.tokens = self.truncated = self.too_long = 0

    def add(self, rows: list[dict[str, Any]]) -> None:
        self.prompts += len(rows)
        self.too_long += sum(not row["samples"] for row in rows)
        for sample in (sample for row in rows for sample in row["samples"]):
            self.samples += 1
            self.tokens += len(sample["token_ids"])
            self.truncated += sample["finish_reason"] == "length"

    def metrics(self) -> dict[str, int]:
        return dict(vars(self))


def measured_speed(stage: Stage, rows: list[dict[str, Any]], speed: "Speed") -> dict[str, Any]:
    """tokens_per_second (generated), limit_share and limit; None each where nothing was generated. `rows`: what was."""
    if not speed.seconds:
        return {"tokens_per_second": None, "limit_share": None, "limit": None}
    import torch

    checkpoint, on_gpu = stage.input("policy"), torch.cuda.is_available()
    dtype = resolve_dtype(stage.settings.get("dtype", "auto"), checkpoint, on_gpu)
    lengths = [(len(row["prompt_token_ids"]), [len(sample["token_ids"]) for sample in row["samples"]]) for row in rows]
    devices = speed.workers * stage.spec.resources.get("tensor_parallel", 1) if on_gpu else 1
    # Of the samples of these rows some may be from before a resume.
    share = speed.tokens / max(1, sum(sum(answers) for _, answers in lengths))
    return generation_speed(checkpoint, lengths, share, speed.seconds, dtype, devices)


class Speed:
    """Generated tokens over the seconds in which engines generated, model loading excluded; of parallel workers, the sum."""

    def __init__(self) -> None:
        self.samples, self.tokens, self.seconds = 0, 0, 0.0
        self.workers = 1
        """Engines at work: never more than there are shards."""

    def add(self, sampled: Sampled) -> None:
        self.samples += sampled.samples
        self.tokens += sampled.tokens
        self.seconds += sampled.seconds / self.workers


if __name__ == "__main__":
    main(run)
