"""Proof that weights on disk are the weights that were trained.

    probe = take_probe(trainer)                  # outputs of the trained model, on all ranks, before anything is saved
    require_same_tensors(folder, state)          # what was written is what was gathered, bit for bit
    require_same_outputs(model, probe, dtype)    # what loads from disk computes what the trained model computed

The first comparison finds a save that lost, flipped or mixed up tensors; the second one a gathering, merging, tying or
configuration that makes another model out of the right tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_ROWS, _TOKENS = 2, 16

# Growth of the rounding error over that of independent errors in every matrix product. On SmolLM2-135M (30 layers) the logits of
# bfloat16 weights and arithmetic are 0.035 away from those in float32, where 1 would allow 0.061.
_GROWTH = 4

# Matrix products on a token's way through a decoder layer: query, key, value, scores, values, output, and two of the MLP.
_PRODUCTS = 8


@dataclass(frozen=True)
class Probe:
    """A fixed batch and the trained model's outputs on it."""

    ids: "torch.Tensor"
    """[2, 16], int64."""
    logits: "torch.Tensor"
    """float32 on the CPU: [2, 16, vocabulary] of a language model, [2, 1] of a reward model."""
    dtype: "torch.dtype"
    """In which the trained model computes."""


def probe_ids(vocabulary: int, padding: int | None) -> "torch.Tensor":
    """Token ids [2, 16] spread over the vocabulary, the same in every process; the padding token is not among them."""
    import torch

    spread = torch.arange(_ROWS * _TOKENS + 1) * vocabulary // (_ROWS * _TOKENS + 1)
    return spread[spread != (-1 if padding is None else padding)][: _ROWS * _TOKENS].view(_ROWS, _TOKENS)


def take_probe(trainer: Any) -> Probe:
    """Outputs of the trained model, by the engine that trained it (ZeRO's ranks gather the weights): all ranks call it."""
    import torch

    model, config = trainer.model_wrapped, trainer.accelerator.unwrap_model(trainer.model_wrapped).config
    ids = probe_ids(config.vocab_size, config.pad_token_id)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=ids.to(trainer.args.device), use_cache=False).logits
    model.train(was_training)
    # Of the inputs of a matrix product: autocast and DeepSpeed compute in bfloat16 where trainer.args.bf16 is set.
    dtype = torch.bfloat16 if trainer.args.bf16 else next(model.parameters()).dtype
    return Probe(ids, logits.float().cpu(), dtype)


def tolerance(dtypes: "tuple[torch.dtype, ...]", layers: int, on_gpu: bool) -> float:
    """Largest relative error of a model's logits, ||a - b|| / ||b||, that rounding in these dtypes explains.

    Rounding errors of n steps behave as independent ones and grow as u sqrt(n), u the unit roundoff of the coarsest dtype
    (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis"). float32 counts as TF32 (11 bits) on a
    GPU, which may multiply in it, and as 16 bits on a CPU: sums there are as long as the hidden size.
    """
    import torch

    bits = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 11 if on_gpu else 16}
    return _GROWTH * 2.0 ** -min(bits[dtype] for dtype in dtypes) * (_PRODUCTS * layers) ** 0.5


def require_same_outputs(model: Any, probe: Probe, dtype: "torch.dtype") -> float:
    """Relative error of a loaded model's logits on the probe. Raises ValueError where rounding does not explain it.

    `dtype`: of the stored weights, in which the loaded model computes.
    """
    import torch

    with torch.no_grad():
        logits = model(input_ids=probe.ids.to(model.device), use_cache=False).logits.float().cpu()
    if logits.shape != probe.logits.shape:
        raise ValueError(f"The saved model's logits are {tuple(logits.shape)}, the trained model's {tuple(probe.logits.shape)}.")
    # NaN compares as False, and so is refused.
    error = ((logits - probe.logits).norm() / probe.logits.norm().clamp(min=1e-9)).item()
    allowed = tolerance((probe.dtype, dtype), model.config.num_hidden_layers, torch.cuda.is_available())
    if not error <= allowed:
        raise ValueError(
            f"The saved model computes other logits than the trained one: relative error {error:.2g}, of which rounding explains "
            f"{allowed:.2g}; it must not be used."
        )
    return error


def require_same_tensors(folder: Path, state: "Mapping[str, torch.Tensor]") -> None:
    """Raise ValueError unless a folder's safetensors files hold these tensors and no other, equal in dtype and every value."""
    import torch
    from safetensors import safe_open

    unread = set(state)
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118
                if name not in unread:
                    raise ValueError(f"{file} holds {name}, which the trained model lacks.")
                unread.remove(name)
                saved, trained = handle.get_tensor(name), state[name]
                if saved.dtype != trained.dtype or not torch.equal(saved, trained):
                    raise ValueError(f"{file}: {name} is not what was trained.")
    if unread:
        raise ValueError(f"{folder} lacks {len(unread)} tensors of the trained model (first: {min(unread)}).")


def require_tied(state: "Mapping[str, torch.Tensor]", tied: Mapping[str, str]) -> None:
    """Raise ValueError where tensors that are one by the architecture (name -> the one it is tied to) have come to differ."""
    import torch

    for name, source in tied.items():
        if name in state and source in state and not torch.equal(state[name], state[source]):
            raise ValueError(f"{name} and {source} are one tensor by the model's configuration, but training made two of them.")
