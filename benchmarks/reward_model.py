"""A Bradley-Terry reward model on real preferences, on a CPU: held-out accuracy by source, calibration, length bias.

    HARNESS_DATA=... python -m benchmarks.reward_model CHECKPOINT FOLDER [--steps 100] [--heldout 160]

Runs the stages `train.data` (HH-RLHF harmless, OpenAssistant trees, dpo_en_demo; split by prompt) and `train.reward` as a
recipe would, under FOLDER, and prints the metrics. Started again on the same FOLDER it goes on where it was.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from core.artifacts import Artifact, Store
from core.errors import MissingInput
from core.fingerprint import checkpoint_fingerprint, digest, file_sha256, tree_sha256
from core.stage import Spec

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    "hh_rlhf_harmless": ("hh_rlhf", "hh_rlhf_harmless_test.jsonl.gz", None),
    "oasst": ("oasst_tree", "oasst_en_100_tree.jsonl.gz", None),
    "dpo_en_demo": ("dpo_en_demo", "dpo_en_demo.json.gz", None),
}
# Short conversations, so that a few hundred pairs are a matter of minutes on two cores.
_MAX_CHARACTERS = 800
PROMPTS = ("alpaca_en_demo.json.gz", 40)


def run_stage(folder: Path, stage: str, program: str, settings: dict[str, Any], inputs: dict[str, dict[str, str]]) -> Artifact:
    """Run one stage as a process, or find it done."""
    key = digest({"stage": stage, "settings": settings, "inputs": {name: one["fingerprint"] for name, one in inputs.items()}})
    resources = {"micro_batch_size": 4, "num_processes": 1, "save_steps": 20}
    spec = Spec(stage, 1, key, settings, inputs, str(folder / "store"), resources=resources)
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(folder / f"{stage}.json")
    if (found := Store(folder / "store").find(stage, key)) is None:
        subprocess.run([sys.executable, "-m", program, str(folder / f"{stage}.json")], cwd=ROOT, check=True)
        found = Store(folder / "store").find(stage, key)
    if found is None:
        raise MissingInput(f"{program} ended without an artifact; see its output above.")
    return found


def data_settings(data: Path, heldout: int, seed: int) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """(settings, inputs) of the data stage."""
    sources, inputs = [], {}
    chosen = [(name, *SOURCES[name], "preferences") for name in SOURCES] + [("prompts", "alpaca", *PROMPTS, "prompts")]
    for name, reader, file, limit, use in chosen:
        path = data / use / file
        inputs[f"source/{name}/0"] = {"path": str(path), "fingerprint": file_sha256(path)}
        sources.append({"name": name, "reader": reader, "use": use, "files": [f"source/{name}/0"], "limit": limit})
    splits = {"gold_fraction": 0.0, "heldout_pairs": heldout, "heldout_prompts": 8, "sft_from": "chosen"}
    settings = {"sources": sources, "splits": splits, "seed": seed, "decontaminate": True}
    return settings | {"max_characters": _MAX_CHARACTERS}, inputs


def reward_settings(steps: int, seed: int) -> dict[str, Any]:
    return {
        "epochs": 1,
        "max_steps": steps,
        "learning_rate": 4e-5,
        "batch_size": 4,
        "warmup_ratio": 0.1,
        "warmup_steps": 0,
        "scheduler": "cosine",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optimizer": "adamw_torch",
        "max_length": 256,
        "precision": "bf16_autocast",
        "gradient_checkpointing": False,
        "zero_stage": None,
        "seed": seed,
        "file": "reward_train.jsonl",
        "center_rewards_coefficient": 0.01,
        "margin": False,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=100, help="of 4 pairs")
    parser.add_argument("--heldout", type=int, default=160, help="held-out pairs")
    parser.add_argument("--seed", type=int, default=42)
    given = parser.parse_args()
    if "HARNESS_DATA" not in os.environ:
        raise MissingInput("HARNESS_DATA is not set; set it to the mirror of the public data.")
    settings, inputs = data_settings(Path(os.environ["HARNESS_DATA"]).resolve(), given.heldout, given.seed)
    data = run_stage(given.folder, "data", "train.data", settings, inputs)
    files = {file.name: file_sha256(file) for file in sorted(data.path.glob("*.jsonl"))}
    inputs = {
        "policy": {"path": str(given.checkpoint.resolve()), "fingerprint": checkpoint_fingerprint(given.checkpoint)},
        "data": {"path": str(data.path), "fingerprint": tree_sha256(files)},
    }
    reward = run_stage(given.folder, "reward", "train.reward", reward_settings(given.steps, given.seed), inputs)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    rows = {name: data.metrics[name] for name in ("reward_train", "pairs_heldout")}
    print(json.dumps({"machine": machine, "rows": rows, "checkpoint": str(reward.file("checkpoint"))} | reward.metrics, indent=1))


if __name__ == "__main__":
    main()
