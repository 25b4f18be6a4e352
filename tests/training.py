"""What the training tests share: small settings, small data, and reading weights back."""

import json
import os
import random
import signal
import string
import subprocess
import time
from pathlib import Path
from typing import Any

from core.artifacts import Artifact, Store
from core.stage import Spec
from tests.conftest import ROOT
from train.rolling import newest_complete

RESOURCES = {"micro_batch_size": 2, "num_processes": 1, "save_steps": None}


def training_settings(**changes: Any) -> dict[str, Any]:
    """The settings that sft, reward and dpo share, small."""
    return {
        "epochs": 1,
        "max_steps": None,
        "learning_rate": 1e-3,
        "batch_size": 4,
        "warmup_ratio": 0.0,
        "warmup_steps": 0,
        "scheduler": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optimizer": "adamw_torch",
        "max_length": 128,
        "precision": "fp32",
        "gradient_checkpointing": False,
        "zero_stage": None,
        "seed": 0,
    } | changes


def dpo_settings(**changes: Any) -> dict[str, Any]:
    return training_settings(loss="sigmoid", beta=0.1, label_smoothing=0.0) | changes


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def words(generator: random.Random, n: int) -> str:
    return " ".join("".join(generator.choices(string.ascii_lowercase, k=4)) for _ in range(n))


def make_pairs(checkpoint: Path, folder: Path, n: int) -> Path:
    """A `pairs` artifact of n pairs as the pairs stage writes it: token ids of this checkpoint's tokenizer."""
    from train.chat import load_tokenizer, render

    tokenizer, generator = load_tokenizer(checkpoint), random.Random(0)

    def side(text: str, stopped: bool, sample: int) -> dict[str, Any]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + ([tokenizer.eos_token_id] if stopped else [])
        reason = "stop" if stopped else "length"
        return {"text": text, "token_ids": ids, "finish_reason": reason, "reward": 0.0, "sample": sample}

    rows = []
    for k in range(n):
        messages = [{"role": "user", "content": words(generator, generator.randint(1, 4))}]
        rows.append(
            {
                "prompt_id": f"p{k}",
                "messages": messages,
                "prompt_token_ids": render(tokenizer, messages, add_generation_prompt=True)[1],
                "chosen": side(words(generator, generator.randint(2, 8)), k % 3 != 0, 0),
                "rejected": side(words(generator, generator.randint(2, 8)), k % 4 != 0, 1),
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "pairs.jsonl", rows)
    return folder


def load_weights(checkpoint: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    weights: dict[str, Any] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        weights |= load_file(file)
    return weights


def read_events(path: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in map(json.loads, path.read_text().splitlines()) if event["event"] == kind]


def kill_at_first_rolling_checkpoint(command: list[str], environment: dict[str, str], spec: Path, world_size: int) -> Path:
    """Start a training and kill -9 its whole process group once it can be resumed; returns its rolling folder."""
    described = Spec.load(spec)
    rolling = Store(Path(described.store)).partial(described.stage, described.key) / "rolling"
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 200
        while newest_complete(rolling, world_size) is None:
            assert process.poll() is None and time.monotonic() < deadline, "no rolling checkpoint appeared"
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert rolling.exists(), "the training ended before it was killed"
    return rolling


def timeless(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics without those of speed, which no two runs have alike."""
    return {name: value for name, value in metrics.items() if name not in ("tokens_per_second", "limit_share", "limit")}


def find_artifact(spec: Path) -> Artifact:
    """The artifact that a spec's stage sealed."""
    described = Spec.load(spec)
    artifact = Store(Path(described.store)).find(described.stage, described.key)
    assert artifact is not None, "nothing was sealed"
    return artifact


def loss_rows(checkpoint: Path, folder: Path, needs: frozenset[str]) -> list[dict[str, Any]]:
    """Four training rows with everything that a loss may need; the checkpoint is the reference and every earlier policy."""
    from transformers import AutoModelForCausalLM

    from core.artifacts import read_rows
    from train.dpo import join_reference
    from train.logprobs import response_logprobs

    pairs = read_rows(make_pairs(checkpoint, folder, 4) / "pairs.jsonl")
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    prompts = [pair["prompt_token_ids"] for pair in pairs]
    sums = {
        side: response_logprobs(model, prompts, [p[side]["token_ids"] for p in pairs]).tolist() for side in ("chosen", "rejected")
    }
    cache: list[dict[str, Any]] = []
    for k, pair in enumerate(pairs):
        pair["chosen"] |= {"score": 1.0, "win_rate": 0.8}
        pair["rejected"] |= {"score": -0.5, "win_rate": 0.3}
        cache.append({"prompt_id": pair["prompt_id"]})
        for side in ("chosen", "rejected"):
            cache[k] |= {f"{side}_logp": sums[side][k], f"{side}_tokens": len(pair[side]["token_ids"])}
    joined, dropped = join_reference(pairs, cache, 128, {"previous": cache, "first": cache}, needs)
    assert not dropped
    return joined
