"""Generation: this project's stage loop over vLLM beside bare vLLM's own `LLM.generate`, on the same requests.

    HARNESS_DATA=... python -m benchmarks.generate CHECKPOINT [--prompts 64] [--samples 4] [--max-tokens 64] [--shard-size 8]

Both ways run in one process, on one engine with the same settings, the same prompts, seeds and sampling parameters, one
after the other and then in the other order (so that neither always finds the prefix cache warm; it is emptied between).
Bare vLLM gets all requests in one call, which no stage that must survive a crash can do; here they go in shards, each
written as soon as its last answer is there. Each way counts with its best round; processor seconds, of all rounds, are what
a machine with other work on it changes least. Claim: at least 0.97 of the bare tokens per second, and equal token ids.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from core.artifacts import write_rows
from core.errors import MissingInput
from train.chat import load_tokenizer
from train.engines import make_engine
from train.generate import answer_shards, prompt_row, samplings
from train.readers import alpaca
from train.shards import shard_path


def read_prompts(mirror: Path, n: int) -> list[dict[str, Any]]:
    """The first n instructions of alpaca_en_demo."""
    (file,) = sorted((mirror / "prompts").glob("alpaca_en_demo*"))
    return [row for row, _ in zip(alpaca([file]), range(n), strict=False)]


def ours(engine: Any, tokenizer: Any, prompts: list[dict[str, Any]], settings: dict[str, Any], size: int) -> Any:
    """(token ids of all samples, seconds) of the stage's loop, shards written to disk."""
    shards = [(i // size, prompts[i : i + size]) for i in range(0, len(prompts), size)]
    found: dict[int, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for number, rows in answer_shards(engine, tokenizer, shards, settings):
            write_rows(shard_path(Path(folder), number), rows)
            found[number] = rows
        seconds = time.perf_counter() - began
    return [sample["token_ids"] for _, rows in sorted(found.items()) for row in rows for sample in row["samples"]], seconds


def bare(engine: Any, tokenizer: Any, prompts: list[dict[str, Any]], settings: dict[str, Any]) -> Any:
    """(token ids of all samples, seconds) of LLM.generate with everything at once."""
    from vllm import SamplingParams

    began = time.perf_counter()
    requests, parameters = [], []
    for prompt in prompts:
        row = prompt_row(tokenizer, prompt, settings)
        for s in samplings(settings, prompt["id"]):
            requests.append({"prompt_token_ids": row["prompt_token_ids"]})
            parameters.append(
                SamplingParams(
                    temperature=s.temperature,
                    top_p=s.top_p,
                    max_tokens=s.max_tokens,
                    seed=s.seed,
                    stop_token_ids=engine.stop_ids,
                    detokenize=False,
                )
            )
    outputs = engine.llm.generate(requests, parameters, use_tqdm=False)
    ids = [list(output.outputs[0].token_ids) for output in outputs]
    for token_ids in ids:  # the caller wants text too
        tokenizer.decode(token_ids, skip_special_tokens=True)
    return ids, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4, help="answers to each prompt")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--shard-size", type=int, default=8, help="prompts a shard")
    parser.add_argument("--rounds", type=int, default=2, help="how often both are timed, in alternating order")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="on a CPU")
    parser.add_argument("--json", action="store_true", help="print the figures as one line of JSON")
    arguments = parser.parse_args()
    mirror = os.environ.get("HARNESS_DATA")
    if not mirror:
        raise MissingInput("HARNESS_DATA is not set; name a mirror that holds prompts/alpaca_en_demo.")
    prompts = read_prompts(Path(mirror), arguments.prompts)
    settings = {
        "arms": [{"temperature": 1.0, "top_p": 1.0, "n": arguments.samples}],
        "max_tokens": arguments.max_tokens,
        "max_model_len": 1024,
        "seed": 0,
        "iteration": 1,
    }
    tokenizer = load_tokenizer(arguments.checkpoint)
    resources = {"threads": arguments.threads, "kv_cache_gib": 2}
    engine = make_engine("vllm", arguments.checkpoint, max_model_len=1024, seed=0, resources=resources)
    ways = {
        "here": lambda: ours(engine, tokenizer, prompts, settings, arguments.shard_size),
        "vLLM": lambda: bare(engine, tokenizer, prompts, settings),
    }
    bare(engine, tokenizer, prompts[:8], settings)  # warm
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    processor, ids = dict.fromkeys(ways, 0.0), {}
    for number in range(arguments.rounds):
        for name in ("here", "vLLM") if number % 2 == 0 else ("vLLM", "here"):
            engine.llm.reset_prefix_cache()
            before = time.process_time()
            ids[name], took = ways[name]()
            processor[name] += time.process_time() - before
            seconds[name].append(took)
    engine.close()
    import torch

    tokens = {name: sum(map(len, ids[name])) for name in ways}
    speed = {name: tokens[name] / min(seconds[name]) for name in ways}
    figures = {
        "machine": torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.processor() or platform.machine(),
        "samples": len(ids["here"]),
        "tokens": tokens,
        "seconds": seconds,
        "processor_seconds": processor,
        "ratio": speed["here"] / speed["vLLM"],
        "processor_ratio": processor["vLLM"] / processor["here"],
        "same": sum(a == b for a, b in zip(ids["here"], ids["vLLM"], strict=True)),
    }
    if arguments.json:
        print(json.dumps(figures))
        return
    print(
        f"{figures['machine']}, {os.cpu_count()} cores, {arguments.threads} threads; {figures['samples']} samples a round, ",
        end="",
    )
    print(f"{arguments.rounds} rounds, {arguments.shard_size * arguments.samples} samples a shard\n")
    print(f"{'':<8}{'tokens':>10}{'tokens/s':>10}{'processor s':>13}   seconds of each round")
    for name in ways:
        rounds = " ".join(f"{second:.1f}" for second in seconds[name])
        print(f"{name:<8}{tokens[name]:>10}{speed[name]:>10.1f}{processor[name]:>13.1f}   {rounds}")
    print(f"\n{figures['ratio']:.3f} of bare vLLM's speed ({figures['processor_ratio']:.3f} by processor seconds);", end=" ")
    print(f"{figures['same']} of {figures['samples']} answers have equal token ids")


if __name__ == "__main__":
    main()
