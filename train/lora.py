"""LoRA (Hu et al. 2021, arXiv 2106.09685): adapters trained by peft, merged into a full checkpoint when they are saved.

A merged checkpoint is like any other, so generation, evaluation and lineage need not know of adapters; the adapter itself
is kept beside it. `settings.lora`: {"r", "alpha", "dropout", "target_modules": names, or "all-linear"}.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import RecipeError
from train.checkpoint import weight_shapes

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor

ALL_LINEAR = "all-linear"
"""Every linear layer but the head (peft's name): as QLoRA (arXiv 2305.14314, section 4) found needed to match full training."""

_PREFIX = "base_model.model."
_ADAPTER = "default"  # peft's name of the one adapter


def lora_config(settings: Mapping[str, Any], task: str) -> "LoraConfig | None":
    """peft's configuration for a stage's settings; None where they have no `lora`. `task`: CAUSAL_LM or SEQ_CLS.

    A reward model's new head (SEQ_CLS) is trained whole.
    """
    lora = settings.get("lora")
    if lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=lora["target_modules"],
        bias="none",
        task_type=task,
    )


def require_targets(policy: Path, settings: Mapping[str, Any]) -> None:
    """Raise RecipeError where a target module is no matrix of the checkpoint; reads headers only, so nothing is loaded yet."""
    targets = (settings.get("lora") or {}).get("target_modules", ALL_LINEAR)
    if targets == ALL_LINEAR:
        return
    modules = {name.removesuffix(".weight") for name, shape in weight_shapes(policy).items() if len(shape) == 2}
    unknown = [target for target in targets if not any(f".{module}".endswith(f".{target}") for module in modules)]
    if unknown:
        known = sorted({module.rpartition(".")[2] for module in modules if ".layers." in module})
        raise RecipeError(f"lora.target_modules names no layer of {policy}: {unknown}; choose among {known} or {ALL_LINEAR}.")


def adapter_parameters(policy: Path, lora: Mapping[str, Any]) -> int:
    """At most so many parameters are trained: r (rows + columns) for every matrix of the checkpoint."""
    return sum(lora["r"] * sum(shape) for shape in weight_shapes(policy).values() if len(shape) == 2)


def merged(state: "Mapping[str, Tensor]", scaling: float) -> "dict[str, Tensor]":
    """The full model's tensors from those of a model with an adapter: W + scaling B A (arXiv 2106.09685, Eq. 3), in float32.

    `state`: names as peft gives them. A module that was trained whole takes the place of the original one.
    """
    full = {}
    for name, tensor in state.items():
        plain = name.removeprefix(_PREFIX)
        if ".lora_" in plain or ".original_module." in plain:
            continue
        if ".base_layer." in plain:
            down, up = (name.replace(".base_layer.", f".lora_{side}.{_ADAPTER}.") for side in "AB")
            if down in state:  # not a bias
                tensor = tensor.float() + scaling * (state[up].float() @ state[down].float())
        full[plain.replace(".base_layer.", ".").replace(f".modules_to_save.{_ADAPTER}.", ".")] = tensor
    return full


def save_adapter(model: Any, state: "Mapping[str, Tensor]", folder: Path) -> None:
    """Write a peft model's adapter in peft's own format, verified, from the gathered tensors of the model."""
    from peft import get_peft_model_state_dict

    from train.saving import require_same_tensors

    # "auto" would ask the model hub whether the vocabulary has changed.
    model.save_pretrained(folder, state_dict=dict(state), save_embedding_layers=False)
    adapter = get_peft_model_state_dict(model, state_dict=dict(state), save_embedding_layers=False)
    require_same_tensors(folder, {name: tensor.cpu().contiguous() for name, tensor in adapter.items()})
