"""An epoch of DPO: this project's stages beside stock trl's trainer, on the same pairs, weights, steps and precision.

    HARNESS_DATA=... python -m benchmarks.dpo CHECKPOINT [--pairs 64] [--max-length 1024] [--batch-size 8] [--micro-batch-size 4]

CHECKPOINT: a causal language model, trained in float32 on this machine's GPU or CPU. Pairs: human preferences
(`preferences/hh_rlhf_harmless_test`), of real and very different lengths. Stock trl: DPOTrainer as its examples use it, random
order, the reference model in memory and asked in every step. Ours: `train.reference` and `train.dpo`, in groups of similar
length, the reference asked once. Times are of the training loops and of the reference pass, without imports and loading. Claim:
at least 1.5 times as fast, reference pass included; both start at log 2 and have like mean losses, or nothing is printed.
Tokens differ a little: ChatML's template writes a newline after the turn-end token, which trl learns and no model generates.
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
from harness.plan.training import training_settings
from harness.recipe import DPO
from train.chat import load_tokenizer, render
from train.readers import hh_rlhf
from train.reference import ReferencePolicy

FIRST = math.log(2)
"""Sigmoid loss of a policy that is its reference."""
_FIRST_TOLERANCE = 1e-3  # float32 log-probabilities of some hundred tokens in batches of another shape
_MEAN_TOLERANCE = 0.02  # the same pairs in another order


def recipe_of(max_length: int, batch_size: int, micro_batch_size: int) -> DPO:
    """The `dpo` section of a recipe: one epoch of the sigmoid loss in float32, at a constant rate."""
    return DPO(
        learning_rate=1e-6,
        warmup_ratio=0.0,
        scheduler="constant",
        precision="fp32",
        max_length=max_length,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
    )


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


def ours(folder: Path, checkpoint: Path, pairs: list[dict[str, Any]], recipe: DPO) -> dict[str, Any]:
    """Seconds of the reference pass and of the epoch, its tokens, and the loss at each step."""
    from train.dpo import join_reference, make_trainer
    from train.losses import dpo_losses

    settings, resources = training_settings(recipe, seed=0)
    settings |= {"loss_options": recipe.resolved_options()}
    resources["save_steps"] = None

    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    policy = ReferencePolicy(stage_of(folder, "reference", settings, {"reference": checkpoint, "pairs": file}, resources))
    policy.model.eval()  # loaded before the clock starts
    began = time.perf_counter()
    reference = policy.score(pairs)
    scoring = time.perf_counter() - began
    del policy
    rows, _ = join_reference(pairs, reference, settings["max_length"])
    stage = stage_of(folder, "dpo", settings, {"policy": checkpoint}, resources)
    types, weights = dpo_losses(recipe.loss, recipe.label_smoothing)
    trainer = make_trainer(stage, checkpoint, load_tokenizer(checkpoint), rows, None, loss_type=types, loss_weights=weights)
    return {"reference_seconds": scoring} | epoch(trainer)


def stock(folder: Path, checkpoint: Path, pairs: list[dict[str, Any]], recipe: DPO) -> dict[str, Any]:
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
        per_device_train_batch_size=recipe.micro_batch_size,
        gradient_accumulation_steps=recipe.batch_size // recipe.micro_batch_size,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.scheduler,
        warmup_steps=0,
        beta=recipe.beta,
        max_length=recipe.max_length,
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
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)  # a line of figures on every step
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": seconds, "losses": [entry["loss"] for entry in logged], "tokens": int(logged[-1]["num_tokens"])}


def require_alike(runs: dict[str, dict[str, Any]]) -> None:
    """Exit unless both start at log 2 and have about the same mean loss: else they did not train on the same thing."""
    means = [sum(run["losses"]) / len(run["losses"]) for run in runs.values()]
    if max(means) - min(means) > _MEAN_TOLERANCE:
        raise SystemExit(f"The mean losses differ by more than {_MEAN_TOLERANCE}: {dict(zip(runs, means, strict=True))}.")
    for name, run in runs.items():
        if abs(run["losses"][0] - FIRST) > _FIRST_TOLERANCE:
            raise SystemExit(f"The first loss of {name} is {run['losses'][0]}, not log 2 = {FIRST:.6f}.")


def quiet() -> None:
    """Warnings and progress bars of trl, transformers and datasets off: they would come between the figures."""
    import logging

    import datasets
    import torch
    from transformers.utils import logging as of_transformers

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed says that it found none
    datasets.disable_progress_bars()
    of_transformers.disable_progress_bar()
    of_transformers.set_verbosity_error()
    for name in ("trl", "accelerate", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)


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

    quiet()
    recipe = recipe_of(arguments.max_length, arguments.batch_size, arguments.micro_batch_size)
    pairs = read_pairs(Path(mirror), load_tokenizer(arguments.checkpoint), arguments.pairs, arguments.max_length)
    with tempfile.TemporaryDirectory() as name:
        peer = stock(Path(name), arguments.checkpoint, pairs, recipe)
        mine = ours(Path(name), arguments.checkpoint, pairs, recipe)
    require_alike({"trl": peer, "this project": mine})
    whole = mine["seconds"] + mine["reference_seconds"]
    figures = {
        "machine": torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "pairs": len(pairs),
        "tokens_mean": sum(len(p["prompt_token_ids"]) + len(p[s]["token_ids"]) for p in pairs for s in ("chosen", "rejected"))
        / (2 * len(pairs)),
        "trl_tokens": peer["tokens"],
        "tokens": mine["tokens"],
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
    print(f"tokens trained on, prompts in both answers counted: trl {peer['tokens']}, here {mine['tokens']}", end="; ")
    print("trl lets the chat template end an answer, here it ends where generation stopped")
    print(f"trl, random order, reference in every step {peer['seconds']:>9.1f} s")
    print(f"here, length groups                        {mine['seconds']:>9.1f} s")
    print(f"here, reference pass                       {mine['reference_seconds']:>9.1f} s")
    print(f"{figures['ratio']:.2f} times as fast (target 1.5); {figures['ratio_cached']:.2f} with the reference cached", end="; ")
    print(f"first loss {peer['losses'][0]:.4f} and {mine['losses'][0]:.4f} (log 2 = {math.log(2):.4f}),", end=" ")
    print(f"mean {figures['mean_loss'][0]:.4f} and {figures['mean_loss'][1]:.4f}")


if __name__ == "__main__":
    main()
