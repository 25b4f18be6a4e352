"""Generation engines: token ids in, sampled token ids out. One protocol, two engines.

    engine = make_engine("vllm", checkpoint, max_model_len=2048)
    completions = engine.generate([(prompt_ids, Sampling(temperature=1.0, max_tokens=256, seed=7))])
    engine.close()

Guarantee: a model's own sampling defaults never apply; each request carries its seed; generation stops at the
turn-end ids of the checkpoint. The same request and seed gives the same sample whatever else is in the batch, up to
floating-point differences between batch shapes (none seen in float32, rare in bfloat16).
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from core.errors import MissingInput, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENGINES = ("vllm", "transformers")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Sampling:
    """How one answer is sampled. `temperature` 0 is greedy; `stop` strings end the answer and are cut from its text."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_tokens < 1:
            raise RecipeError(f"{self} cannot be sampled; set temperature >= 0, top_p in (0, 1] and max_tokens >= 1.")


@dataclass(frozen=True)
class Completion:
    """What the model produced: `token_ids` with the stop token when `finish_reason` is stop, `text` without special tokens."""

    token_ids: list[int]
    text: str
    finish_reason: Literal["stop", "length"]


Request = tuple[list[int], Sampling]


class Engine(Protocol):
    """What generates. `close` gives the memory back as far as the process can; only its end surely does."""

    def generate(self, requests: list[Request]) -> list[Completion]: ...

    def stream(self, batches: Iterable[tuple[int, list[Request]]]) -> Iterator[tuple[int, list[Completion]]]:
        """(number, answers) of each numbered batch as it is complete, in any order; batches are taken as there is room."""

    def close(self) -> None: ...


def make_engine(
    kind: str,
    checkpoint: Path,
    *,
    max_model_len: int,
    dtype: str = "auto",
    seed: int = 0,
    resources: dict[str, Any] | None = None,
) -> Engine:
    """Load `checkpoint` (a directory) into an engine of the given kind.

    `resources`: threads (CPU); batch_size (transformers); gpu_memory_utilization, tensor_parallel, max_num_seqs,
    kv_cache_gib (vLLM).
    Raises RecipeError for an unknown kind or dtype, MissingInput when vLLM is not installed, HarnessError when it cannot start.
    """
    if dtype not in DTYPES:
        raise RecipeError(f"dtype {dtype!r} is not known; use one of {', '.join(DTYPES)}.")
    if not (Path(checkpoint) / "config.json").is_file():
        raise MissingInput(f"{checkpoint} is not a checkpoint: it has no config.json; give a directory saved by save_pretrained.")
    if kind == "vllm":
        from train.vllm_engine import VllmEngine

        return VllmEngine(Path(checkpoint), max_model_len, dtype, seed, resources or {})
    if kind == "transformers":
        from train.transformers_engine import TransformersEngine

        return TransformersEngine(Path(checkpoint), max_model_len, dtype, resources or {})
    raise RecipeError(f"Engine {kind!r} is not known; use one of {', '.join(ENGINES)}.")


def resolve_dtype(dtype: str, checkpoint: Path, on_gpu: bool) -> str:
    """`auto` is bfloat16 on a GPU and the dtype of the saved weights on a CPU; anything else is itself."""
    if dtype != "auto":
        return dtype
    if on_gpu:
        return "bfloat16"
    config = json.loads((checkpoint / "config.json").read_text())
    saved = config.get("dtype") or config.get("torch_dtype") or "float32"
    return saved if saved in DTYPES else "float32"


def complete(tokenizer: "PreTrainedTokenizerBase", token_ids: list[int], sampling: Sampling, stopped: bool) -> Completion:
    """Decode what an engine produced, the same way for every engine."""
    text = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    cut = [at for at in (text.find(stop) for stop in sampling.stop) if at >= 0]
    if cut:
        text = text[: min(cut)]
    return Completion(list(token_ids), text, "stop" if stopped else "length")


def check_fits(requests: list[Request], max_model_len: int) -> None:
    """Raise RecipeError when a prompt and its answer cannot fit the engine's context."""
    for prompt_ids, sampling in requests:
        if len(prompt_ids) + sampling.max_tokens > max_model_len:
            raise RecipeError(
                f"A prompt of {len(prompt_ids)} tokens with max_tokens {sampling.max_tokens} exceeds max_model_len "
                f"{max_model_len}; raise max_model_len or lower max_tokens."
            )
