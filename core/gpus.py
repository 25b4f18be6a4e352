"""The GPUs of this machine, without a CUDA context: what a plan may ask for, and what a stage held."""

import os
import shutil
import subprocess
import sys
from typing import Any


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, else the indices that nvidia-smi lists; no CUDA context is made for it."""
    if not shutil.which("nvidia-smi"):
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name.strip() for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True)
    return listed.stdout.split() if listed.returncode == 0 else []


def gpus_used(resources: dict[str, Any]) -> int:
    """GPUs that this stage's processes compute on: one a rank, or as many as its engines are split over.

    `resources`: of the stage; `processes` worker processes with `tensor_parallel` GPUs each. 0 without GPUs, and for a
    program that neither imported torch nor has workers that do: it held none.
    """
    gpus = len(visible_gpus())
    each = int(resources.get("tensor_parallel") or 1)
    if gpus and int(resources.get("processes") or 1) > 1:  # the workers hold them; this process may not have imported torch
        return min(gpus, int(resources["processes"]) * each)
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0
    return max(int(os.environ.get("WORLD_SIZE", "1")), each)
