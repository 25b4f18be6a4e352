"""Checkpoint directories: what they hold, and proof that one which was just written can be used.

A trainer that ends well may still have written nothing of use (ZeRO-3 without gathering, a tied head lost, NaN after
a bad step), so every stage that writes weights verifies them from disk before its artifact is sealed.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import MissingInput, RecipeError

if TYPE_CHECKING:
    from train.saving import Probe


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a checkpoint's safetensors files; reads headers only. Raises MissingInput."""
    from safetensors import safe_open

    shapes = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            shapes |= {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
    if not shapes:
        raise MissingInput(f"{folder} holds no safetensors weights; convert the model with save_pretrained first.")
    return shapes


def count_parameters(folder: Path) -> int:
    """Number of stored parameters of a checkpoint, from the headers of its files."""
    total = 0
    for shape in weight_shapes(folder).values():
        size = 1
        for n in shape:
            size *= n
        total += size
    return total


def stored_dtype(folder: Path) -> Any:
    """The torch.dtype that most of a checkpoint's tensors are stored in."""
    from collections import Counter

    import torch
    from safetensors import safe_open

    names = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    found: Counter[str] = Counter()
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            found.update(handle.get_slice(name).get_dtype() for name in handle.keys())  # noqa: SIM118
    most = found.most_common(1)[0][0] if found else "nothing"
    if most not in names:
        raise RecipeError(f"{folder} stores its weights as {most}; convert them to bf16, fp16 or fp32 safetensors first.")
    return names[most]


def model_class(folder: Path) -> Any:
    """The transformers class that `config.json` names, so that a policy and a reward model load by one road."""
    import transformers

    names = json.loads((Path(folder) / "config.json").read_text()).get("architectures") or []
    found = getattr(transformers, names[0], None) if names else None
    if found is None:
        raise RecipeError(
            f"{folder}/config.json names no architecture that transformers {transformers.__version__} knows: {names}."
        )
    return found


def verify_checkpoint(folder: Path, probe: "Probe | None" = None) -> dict[str, int]:
    """Check a checkpoint from disk; returns {"tensors", "parameters"}.

    Every tensor of the architecture is there with its shape and none besides (tied ones may be absent), all values are
    finite, tokenizer and chat template reload, tied tensors are one after loading, and a forward pass gives finite outputs:
    those of the trained model, where `probe` tells them (`train.saving`).
    Raises ValueError: the checkpoint was written by us, so a fault is our defect, not the user's.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoTokenizer

    from train.saving import require_same_outputs

    folder = Path(folder)
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        expected_model = model_class(folder)(config)
    expected = {name: tuple(tensor.shape) for name, tensor in expected_model.state_dict().items()}
    found = weight_shapes(folder)
    missing = expected.keys() - found.keys() - set(expected_model.all_tied_weights_keys)
    wrong = sorted(name for name in found if found[name] != expected.get(name))
    if missing or wrong:
        raise ValueError(f"{folder}: tensors missing {sorted(missing)[:5]}, unexpected or of another shape {wrong[:5]}.")
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118
                if not torch.isfinite(handle.get_tensor(name)).all():
                    raise ValueError(f"{folder}: {name} holds NaN or infinity.")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        raise ValueError(f"{folder}: the chat template was not saved.")
    messages = [{"role": "user", "content": "Hello"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")["input_ids"]
    model = model_class(folder).from_pretrained(folder, dtype="auto").eval()
    for name, source in model.all_tied_weights_keys.items():
        if model.get_parameter(name).data_ptr() != model.get_parameter(source).data_ptr():
            raise ValueError(f"{folder}: {name} and {source} are one tensor by its configuration, but load as two.")
    with torch.no_grad():
        if not torch.isfinite(model(input_ids=ids).logits).all():
            raise ValueError(f"{folder}: a forward pass gives NaN or infinity.")
    if probe is not None:
        require_same_outputs(model, probe, stored_dtype(folder))
    return {"tensors": len(found), "parameters": count_parameters(folder)}


def rows_file(path: Path, name: str) -> Path:
    """A JSONL input given as an artifact directory or as the file itself. Raises MissingInput."""
    file = path if path.is_file() else path / name
    if not file.is_file():
        raise MissingInput(f"{path} holds no {name}; give the artifact of the stage that writes it.")
    return file
