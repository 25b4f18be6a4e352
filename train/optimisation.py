"""From training settings to a trainer's arguments, a DeepSpeed configuration and the command that starts the ranks.

Settings (what is computed) and resources (how) are those of docs/architecture.md. ZeRO is used whenever `zero_stage`
is not null, on GPUs and on CPUs (gloo). DeepSpeed's own optimisers are left out, so nothing is compiled for one: an
offloaded optimiser is torch's, stepping on the CPU.
"""

import os
import sys
from pathlib import Path
from typing import Any

from core.errors import RecipeError
from core.gpus import visible_gpus
from core.stage import Stage, require_free_space
from train.checkpoint import count_parameters
from train.lora import adapter_parameters, require_targets

PRECISIONS = ("fp32", "bf16_autocast", "bf16")

# Curves of very long trainings are thinned to about this many points.
_CURVE_POINTS = 500

# Bytes a parameter in a rolling checkpoint: fp32 weights (4) and Adam's two fp32 moments (8); under ZeRO with bf16 also the
# 16-bit weights, twice: DeepSpeed's own file and the gathered one.
_ROLLING_BYTES, _ROLLING_BYTES_ZERO_BF16 = 12, 16


def accumulation_steps(batch_size: int, micro_batch_size: int, num_processes: int) -> int:
    """Micro-batches a rank adds up for one optimiser step, so that the global batch is exactly `batch_size`.

    Raises RecipeError that names the micro-batch sizes that fit.
    """
    if batch_size % num_processes:
        fitting = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
        raise RecipeError(
            f"batch_size {batch_size} cannot be shared by num_processes {num_processes}; "
            f"set num_processes to one of {fitting} or batch_size to {num_processes * max(1, round(batch_size / num_processes))}."
        )
    per_process = batch_size // num_processes
    if micro_batch_size < 1 or per_process % micro_batch_size:
        fitting = [n for n in range(1, per_process + 1) if per_process % n == 0]
        raise RecipeError(
            f"batch_size {batch_size} over num_processes {num_processes} is not a multiple of micro_batch_size "
            f"{micro_batch_size}; set micro_batch_size to one of {fitting}."
        )
    return per_process // micro_batch_size


def launch_command(
    program: str, spec_path: Path, settings: dict[str, Any], resources: dict[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """Command line and extra environment that start training program `program` (such as `train.dpo`) on a spec.

    torchrun with a rendezvous port of its own choice when there are several ranks or ZeRO is asked for (DeepSpeed wants
    a rendezvous even for one rank); plain Python otherwise.
    """
    ranks = int(resources.get("num_processes", 1))
    environment = {"TOKENIZERS_PARALLELISM": "false"}
    if ranks == 1 and settings.get("zero_stage") is None:
        # The trainer would spread one process over every GPU that it sees (DataParallel), which multiplies the batch.
        if gpus := visible_gpus():
            environment["CUDA_VISIBLE_DEVICES"] = gpus[0]
        return [sys.executable, "-m", program, str(spec_path)], environment
    # Several ranks with a thread pool of all cores each would spin against one another.
    environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // ranks))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*torchrun, "-m", program, str(spec_path)], environment


def prepare_process(settings: dict[str, Any]) -> None:
    """Join the process group before anything of transformers or DeepSpeed looks at the machine. Raises RecipeError."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if settings["precision"] not in PRECISIONS:
        raise RecipeError(f"precision {settings['precision']!r} is unknown; choose one of {', '.join(PRECISIONS)}.")
    zero_stage, on_gpu = settings["zero_stage"], torch.cuda.is_available()
    if zero_stage is not None:
        if settings["precision"] == "bf16":
            raise RecipeError("ZeRO always keeps fp32 master weights; set precision to bf16_autocast with a zero_stage.")
        if settings["precision"] != "fp32" and not on_gpu:
            raise RecipeError("DeepSpeed trains in fp32 on a machine without CUDA; set precision to fp32 or zero_stage to null.")
        if "RANK" not in os.environ:
            raise RecipeError(
                "zero_stage needs the ranks that torchrun starts; run `torchrun --nproc-per-node N -m <program> SPEC`."
            )
        if not on_gpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            from accelerate import PartialState

            # accelerate asks for mpi4py unless the backend is named, and detects DeepSpeed by this variable alone.
            os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
            PartialState(backend="gloo")
            del os.environ["ACCELERATE_USE_DEEPSPEED"]


OFFLOADS = ("optimizer", "optimizer_and_parameters")


def deepspeed_config(
    settings: dict[str, Any], micro_batch_size: int, accumulation: int, offload: str | None = None
) -> dict[str, Any]:
    """DeepSpeed's configuration for ZeRO stage 1, 2 or 3; optimiser and schedule stay with the trainer.

    `offload`: one of `OFFLOADS`, or None. Raises RecipeError for stages and offloads that do not exist together.
    """
    stage = settings["zero_stage"]
    if stage not in (1, 2, 3):
        raise RecipeError(f"zero_stage {stage!r} does not exist; choose null, 1, 2 or 3.")
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        # Without gathering, saving under ZeRO-3 writes a checkpoint without weights.
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if offload is not None:
        if offload not in OFFLOADS or (offload != "optimizer" and stage != 3):
            raise RecipeError(f"zero_offload {offload!r} does not exist under ZeRO stage {stage}; set zero_offload to optimizer.")
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if offload == "optimizer_and_parameters":
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": settings["precision"] != "fp32"},
        "gradient_clipping": settings["max_grad_norm"],
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def training_arguments(config_class: Any, stage: Stage, examples: int, **extra: Any) -> Any:
    """The arguments object of a trl trainer (`SFTConfig`, `RewardConfig`, `DPOConfig`) for a stage's settings.

    `examples`: rows in the training set; they only decide how densely curves are drawn. `extra`: fields of the class.
    """
    import torch

    settings, resources = stage.settings, stage.spec.resources
    micro, ranks = int(resources.get("micro_batch_size", 1)), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks != int(resources.get("num_processes", 1)):
        raise RecipeError(
            f"{ranks} ranks were started but num_processes is {resources.get('num_processes', 1)}; make them equal."
        )
    accumulation = accumulation_steps(settings["batch_size"], micro, ranks)
    steps = settings["max_steps"] or max(1, round(settings["epochs"] * examples / settings["batch_size"]))
    zero, on_gpu = settings["zero_stage"] is not None, torch.cuda.is_available()
    save_steps = resources.get("save_steps")
    arguments: dict[str, Any] = {
        "output_dir": str(stage.work / "rolling"),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": settings["epochs"],
        "max_steps": settings["max_steps"] or -1,
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": settings["scheduler"],
        "warmup_steps": warmup(settings),
        "weight_decay": settings["weight_decay"],
        "max_grad_norm": settings["max_grad_norm"],
        "optim": settings["optimizer"],
        "gradient_checkpointing": settings["gradient_checkpointing"],
        "bf16": settings["precision"] == "bf16_autocast",
        "seed": settings["seed"],
        "data_seed": settings["seed"],
        "logging_steps": max(1, steps // _CURVE_POINTS),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a NaN must be seen, not averaged away
        "save_strategy": "steps" if save_steps else "no",
        "save_steps": save_steps or 500,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": on_gpu,
        # DeepSpeed detects its device itself, and refuses `use_cpu`.
        "use_cpu": not on_gpu and not zero,
        "ddp_backend": "gloo" if ranks > 1 and not on_gpu else None,
    }
    if zero:
        arguments["deepspeed"] = deepspeed_config(settings, micro, accumulation, resources.get("zero_offload"))
        if not on_gpu:
            arguments["accelerator_config"] = {"use_configured_state": True}
    made = config_class(**arguments, **extra)
    if ranks == 1 and made.n_gpu > 1:
        made._n_gpu = 1  # a stage run by hand on a machine with several: one process is one GPU
    return made


def warmup(settings: dict[str, Any]) -> float:
    """Warm-up as the trainer takes it: a number of steps, or (below 1) a share of them. Raises RecipeError when both are set."""
    ratio, steps = settings.get("warmup_ratio") or 0.0, settings.get("warmup_steps") or 0
    if ratio and steps:
        raise RecipeError("warmup_ratio and warmup_steps are both set; keep one and remove the other.")
    if not 0 <= ratio < 1:
        raise RecipeError(f"warmup_ratio {ratio} is not a share of the steps; set it in [0, 1) or use warmup_steps.")
    return steps or ratio


def load_dtype(settings: dict[str, Any]) -> Any:
    """torch.dtype of the trained weights in memory: bf16 only where the recipe asks for pure bf16."""
    import torch

    return torch.bfloat16 if settings["precision"] == "bf16" else torch.float32


def require_training_space(stage: Stage, policy: Path) -> None:
    """Raise DiskFull unless the final checkpoint, and two rolling ones while they are exchanged, fit on the disk.

    Raises RecipeError too, where an adapter is asked for on layers that the policy has not.
    """
    parameters, lora = count_parameters(policy), stage.settings.get("lora")
    trained = parameters
    if lora is not None:
        require_targets(policy, stage.settings)
        trained = adapter_parameters(policy, lora)
    sharded = stage.settings["zero_stage"] is not None and stage.settings["precision"] != "fp32"
    each = _ROLLING_BYTES_ZERO_BF16 if sharded else _ROLLING_BYTES
    rolling = 2 * each * trained if stage.spec.resources.get("save_steps") else 0
    require_free_space(stage.work, 4 * parameters + rolling, f"Training ({stage.spec.stage}) with its rolling checkpoints")
