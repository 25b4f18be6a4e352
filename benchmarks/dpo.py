"""An epoch of DPO: this project's stages beside stock trl's trainer, on the same pairs, weights, steps and precision.

    HARNESS_DATA=... python -m benchmarks.dpo CHECKPOINT [--pairs 64] [--max-length 1024] [--batch-size 8] [--micro-batch-size 4]

CHECKPOINT: a causal language model, trained in float32 on this machine's GPU or CPU. Pairs: human preferences
(`preferences/hh_rlhf_harmless_test`), of real and very different lengths. Stock trl: DPOTrainer as its examples use it, random
order, the reference model in memory and asked in every step. Ours: `train.reference` and `train.dpo`, in groups of similar
length, the reference asked once. Times are of the training loops and of the reference pass, without imports and loading. Claim:
at least 1.5 times as fast, reference pass included; both start at log 2 and end alike.
"""

import argparse
import json
import math
import os
import platform
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from core.errors import MissingInput
from core.fingerprint import checkpoint_fingerprint, file_sha256
from core.stage import Spec, Stage
from train.chat import load_tokenizer, render
from train.readers import hh_rlhf
from train.reference import ReferencePolicy

SETTINGS = {
    "epochs": 1,
    "max_steps": None,
    "learning_rate": 1e-6,
    "warmup_ratio": 0.0,
    "warmup_steps": 0,
    "scheduler": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "optimizer": "adamw_torch",
    "precision": "fp32",
    "gradient_checkpointing": False,
    "zero_stage": None,
    "seed": 0,
    "loss": "sigmoid",
    "beta": 0.1,
    "label_smoothing": 0.0,
}


def read_pairs(mirror: Path, tokenizer: Any, n: int, max_length: int) -> list[dict[str, Any]]:
    """`n` seeded pairs in the form of the pairs stage; those above max_length are left out, so that neither side cuts."""
    pairs = []
    rows = list(hh_rlhf([mirror / "preferences" / "hh_rlhf_harmless_test.jsonl.gz"]))
    random.Random(0).shuffle(rows)
    for number, row in enumerate(rows):
        messages = row["chosen"][:-1]
        prompt = render(tokenizer, messages, add_generation_prompt=True)[1]
        sides = {}
        for side in ("chosen", "rejected"):
            ids = tokenizer(row[side][-1]["content"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            sides[side] = {"text": row[side][-1]["content"], "token_ids": ids, "finish_reason": "stop", "reward": 0.0}
        lengths = [len(prompt) + len(side["token_ids"]) for side in sides.values()]
        if max(lengths) <= max_length and sides["chosen"]["token_ids"] != sides["rejected"]["token_ids"]:
            pairs.append({"prompt_id": f"p{number}", "messages": messages, "prompt_token_ids": prompt, **sides})
        if len(pairs) == n:
            return pairs
    raise MissingInput(f"Only {len(pairs)} pairs have at most {max_length} tokens; lower --pairs or raise --max-length.")


def stage_of(folder: Path, name: str, settings: dict[str, Any], inputs: dict[str, Path], resources: dict[str, Any]) -> Stage:
    described = {}
    for key, path in inputs.items():
        fingerprint = file_sha256(path) if path.is_file() else checkpoint_fingerprint(path)
        described[key] = {"path": str(path), "fingerprint": fingerprint}
    spec = Spec(name, 1, name, settings, described, str(folder / "store"), resources=resources, events=str(folder / "events"))
    stage = Stage(spec)
    stage.work.mkdir(parents=True, exist_ok=True)
    return stage


def ours(folder: Path, checkpoint: Path, pairs: list[dict[str, Any]], settings: dict[str, Any], micro: int) -> dict[str, Any]:
    """Seconds of the reference pass and of the epoch, and the loss at each step."""
    from train.dpo import join_reference, make_trainer
    from train.losses import dpo_losses

    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    resources = {"micro_batch_size": micro, "num_processes": 1, "save_steps": None}
    policy = ReferencePolicy(stage_of(folder, "reference", settings, {"reference": checkpoint, "pairs": file}, resources))
    policy.model.eval()  # loaded before the clock starts
    began = time.perf_counter()
    reference = policy.score(pairs)
    scoring = time.perf_counter() - began
    del policy
    rows, _ = join_reference(pairs, reference, settings["max_length"])
    stage = stage_of(folder, "dpo", settings, {"policy": checkpoint}, resources)
    types, weights = dpo_losses("sigmoid", 0.0)
    trainer = make_trainer(stage, checkpoint, load_tokenizer(checkpoint), rows, None, loss_type=types, loss_weights=weights)
    return {"reference_seconds": scoring} | epoch(trainer)


def stock(folder: Path, checkpoint: Path, pairs: list[dict[str, Any]], settings: dict[str, Any], micro: int) -> dict[str, Any]:
    """The same of trl's DPOTrainer, whose reference is asked in every step."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    rows = [
        {"prompt": p["messages"], **{s: [{"role": "assistant", "content": p[s]["text"]}] for s in ("chosen", "rejected")}}
        for p in pairs
    ]
    arguments = DPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings["batch_size"] // micro,
        num_train_epochs=1,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        beta=settings["beta"],
        max_length=settings["max_length"],
        gradient_checkpointing=False,
        bf16=False,
        seed=0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )

    def policy() -> Any:
        return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)

    tokenizer = load_tokenizer(checkpoint)
    dataset = Dataset.from_list(rows)
    trainer = DPOTrainer(model=policy(), ref_model=policy(), args=arguments, train_dataset=dataset, processing_class=tokenizer)
    return epoch(trainer)


def epoch(trainer: Any) -> dict[str, Any]:
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--micro-batch-size", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="print the figures as one line of JSON")
    arguments = parser.parse_args()
    mirror = os.environ.get("HARNESS_DATA")
    if not mirror:
        raise MissingInput("HARNESS_DATA is not set; name a mirror that holds preferences/.")
    import torch

    settings = SETTINGS | {"max_length": arguments.max_length, "batch_size": arguments.batch_size}
    pairs = read_pairs(Path(mirror), load_tokenizer(arguments.checkpoint), arguments.pairs, arguments.max_length)
    with tempfile.TemporaryDirectory() as name:
        peer = stock(Path(name), arguments.checkpoint, pairs, settings, arguments.micro_batch_size)
        mine = ours(Path(name), arguments.checkpoint, pairs, settings, arguments.micro_batch_size)
    whole = mine["seconds"] + mine["reference_seconds"]
    figures = {
        "machine": torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "pairs": len(pairs),
        "tokens_mean": sum(len(p["prompt_token_ids"]) + len(p[s]["token_ids"]) for p in pairs for s in ("chosen", "rejected"))
        / (2 * len(pairs)),
        "trl_seconds": peer["seconds"],
        "seconds": mine["seconds"],
        "reference_seconds": mine["reference_seconds"],
        "ratio": peer["seconds"] / whole,
        "ratio_cached": peer["seconds"] / mine["seconds"],
        "first_loss": [peer["losses"][0], mine["losses"][0]],
        "mean_loss": [sum(run["losses"]) / len(run["losses"]) for run in (peer, mine)],
    }
    if arguments.json:
        print(json.dumps(figures))
        return
    cores = os.cpu_count()
    print(f"{figures['machine']}, {cores} cores, {figures['threads']} threads, float32; {len(pairs)} pairs, max length", end=" ")
    print(f"{arguments.max_length}, mean {figures['tokens_mean']:.0f} tokens, batches of {arguments.batch_size}")
    print(f"trl, random order, reference in every step {peer['seconds']:>9.1f} s")
    print(f"here, length groups                        {mine['seconds']:>9.1f} s")
    print(f"here, reference pass                       {mine['reference_seconds']:>9.1f} s")
    print(f"{figures['ratio']:.2f} times as fast (target 1.5); {figures['ratio_cached']:.2f} with the reference cached", end="; ")
    print(f"first loss {peer['losses'][0]:.4f} and {mine['losses'][0]:.4f} (log 2 = {math.log(2):.4f}),", end=" ")
    print(f"mean {figures['mean_loss'][0]:.4f} and {figures['mean_loss'][1]:.4f}")


if __name__ == "__main__":
    main()
