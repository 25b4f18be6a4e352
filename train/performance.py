"""How fast a stage computed, beside what its hardware can do at most (the roofline of Williams et al. 2009, CACM 52(4)).

    shape = model_shape(checkpoint)
    speed(tokens, seconds, 3 * forward_flops(shape, tokens, attended), 0, "bfloat16", devices=8)
    # {"tokens_per_second": ..., "limit_share": ..., "limit": "8 x NVIDIA H100 80GB HBM3, bfloat16 (data sheet)"}

`limit_share` is the least time that the needed arithmetic and memory traffic can take, over the time taken. Needed are the
model's own operations only (model FLOPs utilisation, PaLM, arXiv 2204.02311, Appendix B): recomputed activations, padding and
optimiser steps lower the share. Of a GPU the limits are its data sheet's, of a CPU measured; of any other device nothing is
known: None.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train import packed_linear
from train.checkpoint import weight_shapes

if TYPE_CHECKING:
    from train.loop import Trained


@dataclass(frozen=True)
class Limits:
    """Peak rates of one device."""

    flops: Mapping[str, float]
    """Operations a second of dense matrix products, by dtype; a multiplication and an addition are two."""
    bytes_per_second: float
    """Of its main memory."""


_H100 = {"bfloat16": 989.4e12, "float16": 989.4e12, "tf32": 494.7e12, "float32": 66.9e12}
_A100 = {"bfloat16": 312e12, "float16": 312e12, "tf32": 156e12, "float32": 19.5e12}

DATA_SHEETS: dict[str, Limits] = {
    # NVIDIA H100 Tensor Core GPU architecture whitepaper, table 2 (SXM5; dense, half of the "with sparsity" figures); 80 GB HBM3.
    "NVIDIA H100 80GB HBM3": Limits(_H100, 3.35e12),
    # NVIDIA H200 data sheet: the same chip with 141 GB HBM3e.
    "NVIDIA H200": Limits(_H100, 4.8e12),
    # NVIDIA A100 data sheet (2021): SXM and PCIe, 40 and 80 GB.
    "NVIDIA A100-SXM4-80GB": Limits(_A100, 2.039e12),
    "NVIDIA A100 80GB PCIe": Limits(_A100, 1.935e12),
    "NVIDIA A100-SXM4-40GB": Limits(_A100, 1.555e12),
}
"""By the name that torch.cuda.get_device_name gives."""

# transformers' names of the number of experts: a token then passes a part of the weights only.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class ModelShape:
    """What decides how much a decoder computes."""

    body: int
    """Parameters in the matrices of all layers."""
    head: int
    """Those of the language model's head, whether or not they are the embeddings too; 0 for a classifier."""
    layers: int
    attention_width: int
    """Query heads times their size."""
    key_value_width: int
    """Key and value heads times their size: numbers that a token leaves in each layer's cache, twice."""


def model_shape(checkpoint: Path) -> ModelShape | None:
    """The shape of a checkpoint, from its headers and configuration; None for a mixture of experts."""
    config = json.loads((Path(checkpoint) / "config.json").read_text())
    if any(config.get(name) for name in _EXPERTS) or "num_attention_heads" not in config:
        return None
    shapes = weight_shapes(checkpoint)
    matrices = {name: shape[0] * shape[1] for name, shape in shapes.items() if len(shape) == 2}
    body = sum(size for name, size in matrices.items() if ".layers." in name)
    head = matrices.get("lm_head.weight", 0)
    if not head and config.get("tie_word_embeddings") and "CausalLM" in "".join(config.get("architectures") or []):
        head = next(size for name, size in matrices.items() if name.endswith("embed_tokens.weight"))
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    pairs = config.get("num_key_value_heads") or heads
    return ModelShape(body, head, config["num_hidden_layers"], heads * size, pairs * size)


def forward_flops(shape: ModelShape, tokens: float, attended: float, head_tokens: float | None = None) -> float:
    """Operations of a forward pass: 2 N a token (Kaplan et al. 2020, arXiv 2001.08361, table 1), and attention.

    `attended`: pairs of a token and one it attends to, of which each costs 4 L H Q (PaLM, Appendix B, a third of its 12 for
    training); masked pairs are not needed, so by `causal` this term is half of PaLM's. `head_tokens`: those of which the
    vocabulary's logits are needed; all unless given.
    """
    head = tokens if head_tokens is None else head_tokens
    return 2 * shape.body * tokens + 2 * shape.head * head + 4 * shape.layers * shape.attention_width * attended


def training_flops(shape: ModelShape, tokens: float, attended: float, learned: float, adapter: bool = False) -> float:
    """Operations of training: a backward pass is two forward passes, hence 6 N a token (Kaplan et al. 2020, section 2.1).

    `learned`: tokens in the loss, of which logits are needed. Of an adapter's frozen weights no gradient is needed: one
    forward pass less. The adapter's own are left out.
    """
    return (2 if adapter else 3) * forward_flops(shape, tokens, attended, learned)


def causal(lengths: Iterable[int]) -> int:
    """Pairs of a token and itself or an earlier one, over sequences of these lengths: sum of n (n + 1) / 2."""
    return sum(n * (n + 1) // 2 for n in lengths)


def generation_work(shape: ModelShape, generations: Iterable[tuple[int, Sequence[int]]], itemsize: int) -> tuple[float, float]:
    """(operations, bytes) that sampling needs at least. `generations`: (tokens of a prompt, tokens of each answer to it).

    A prompt is computed once for its answers. Every decoding step reads all matrices once, for all answers together, and
    there are as many steps as the longest answer has tokens; each new token reads the keys and values before it.
    `itemsize`: bytes of a weight.
    """
    tokens = attended = decoded = read = longest = 0
    for prompt, answers in generations:
        tokens += prompt + sum(answers)
        decoded += sum(answers)
        own = sum(causal([prompt + answer]) - causal([prompt]) for answer in answers)
        attended += causal([prompt]) + own
        read += own
        longest = max(longest, *answers, 0)
    cache = 2 * shape.layers * shape.key_value_width * itemsize
    weights = (shape.body + shape.head) * itemsize
    return forward_flops(shape, tokens, attended, decoded), longest * weights + read * cache


def speed(
    tokens: float, seconds: float, flops: float | None, moved: float, dtype: str, devices: int, limits: Limits | None = None
) -> dict[str, Any]:
    """Metrics of a stage: tokens_per_second, limit_share and limit (which limit, in words).

    `flops`: operations needed, None where the model's are not known; `moved`: bytes needed; `limits`: those of this
    process's device unless given. Share and limit are None where the device or its rate for the dtype is unknown.
    """
    name, known = device_name(), limits or device_limits(dtype)
    if not seconds:
        return {"tokens_per_second": None, "limit_share": None, "limit": None}
    measured: dict[str, Any] = {"tokens_per_second": round(tokens / seconds, 2), "limit_share": None, "limit": None}
    if flops is None or known is None or dtype not in known.flops:
        return measured
    least = max(flops / known.flops[dtype], moved / known.bytes_per_second) / devices
    source = "data sheet" if name in DATA_SHEETS else "measured matrix product and copy"
    many = f"{devices} x " if devices > 1 else ""
    return measured | {"limit_share": round(least / seconds, 4), "limit": f"{many}{name}, {dtype} ({source})"}


def device_name() -> str:
    """The GPU's name as torch gives it, or the CPU with its threads."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def device_limits(dtype: str) -> Limits | None:
    """Of this process's GPU by its data sheet, None for an unknown one; of a CPU as `measured_limits` finds them."""
    import torch

    return DATA_SHEETS.get(device_name()) if torch.cuda.is_available() else measured_limits(dtype, torch.get_num_threads())


@cache
def measured_limits(dtype: str, threads: int) -> Limits:
    """The best of a few products of matrices [1024, 1024] and of copies of 64 MiB on this CPU; about 0.2 seconds.

    `threads`: of torch now; only tells one measurement from another.
    """
    import torch

    matrix = torch.ones(1024, 1024, dtype=getattr(torch, dtype))
    block = torch.ones(2**26, dtype=torch.uint8)
    products = [lambda: matrix @ matrix]
    if dtype == "float32" and packed_linear.available():  # what scorers use there
        weight = packed_linear.packed(matrix)
        products.append(lambda: packed_linear.product(matrix, weight))
    rate = 2 * 1024**3 / min(_seconds(one) for one in products for _ in range(4))
    # A copy reads and writes.
    return Limits({dtype: rate}, 2 * block.numel() / min(_seconds(block.clone) for _ in range(4)))


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def generation_speed(
    checkpoint: Path, lengths: Sequence[tuple[int, Sequence[int]]], share: float, seconds: float, dtype: str, devices: int
) -> dict[str, Any]:
    """`speed` of sampling, in generated tokens. `lengths`: see `generation_work`; `share` of them took the `seconds`."""
    tokens, shape = share * sum(sum(answers) for _, answers in lengths), model_shape(checkpoint)
    flops, moved = generation_work(shape, lengths, 4 if dtype == "float32" else 2) if shape else (None, 0)
    return speed(tokens, seconds, flops and share * flops, share * moved, dtype, devices)


@dataclass
class Work:
    """What a scorer computed so far."""

    tokens: int = 0
    attended: int = 0
    """Pairs of a token and one it attends to."""
    seconds: float = 0.0


def scoring_speed(work: Work, checkpoint: Path, dtype: str) -> dict[str, Any]:
    """`speed` of a scorer in this process, with tokens and seconds: what `combined_speed` takes. `dtype`: as torch prints it."""
    name = dtype.removeprefix("torch.")
    shape = model_shape(checkpoint)
    flops = shape and forward_flops(shape, work.tokens, work.attended, 0)
    measured = speed(work.tokens, work.seconds, flops, 0, matmul_dtype("fp32") if name == "float32" else name, 1)
    return measured | {"tokens": work.tokens, "seconds": work.seconds}


def combined_speed(parts: Sequence[Mapping[str, Any]], at_once: int) -> dict[str, Any]:
    """Metrics of several `scoring_speed`s, of which `at_once` ran side by side, each on a device of its own; {} of none."""
    if not parts:
        return {}
    seconds = sum(part["seconds"] for part in parts)
    shares = [part["limit_share"] for part in parts]
    share = None if None in shares else sum(part["limit_share"] * part["seconds"] for part in parts) / seconds
    many = f"{at_once} x " if at_once > 1 else ""
    return {
        "tokens_per_second": round(sum(part["tokens"] for part in parts) * at_once / seconds, 2),
        "limit_share": None if share is None else round(share, 4),
        "limit": None if share is None else many + parts[0]["limit"],
    }


def matmul_dtype(precision: str) -> str:
    """In which dtype a training of this precision multiplies; fp32 is TF32 where torch is told to use it."""
    if precision != "fp32":
        return "bfloat16"
    import torch

    return "tf32" if torch.cuda.is_available() and torch.backends.cuda.matmul.allow_tf32 else "float32"


def training_speed(
    checkpoint: Path, settings: Mapping[str, Any], lengths: Sequence[int], learned: int, trained: "Trained"
) -> dict[str, Any]:
    """`speed` of a training that gave `checkpoint`. Of an epoch: `lengths` of all sequences, `learned` tokens (in the loss)."""
    shape, tokens = model_shape(checkpoint), trained.epochs * sum(lengths)
    attended = trained.epochs * causal(lengths)
    flops = shape and training_flops(shape, tokens, attended, trained.epochs * learned, adapter="lora" in settings)
    return speed(tokens, trained.seconds, flops, 0, matmul_dtype(settings["precision"]), trained.ranks)
