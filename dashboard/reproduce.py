"""The options of `harness eval` that ask for an evaluation again: those of its data, its answers and its judge.

Options that are at their defaults everywhere are left out; what a benchmark decides officially is named, since it says what
the number is. What no option sets (the version of a library, a prompt's revision) is in the evaluation's identity beside it.
"""

from collections.abc import Mapping
from typing import Any

from db.card import Measured

SEED = 42
"""Of `harness eval` where none is given."""
_OPENAI = "https://api.openai.com/v1"
_REWARD_MODEL_LENGTH = 4096


def variant(version: str) -> str:
    """The data's variant in an answer set's version (`starter@1a2b`, `official+stand-in@1a2b`)."""
    return version.split("@")[0].removesuffix("+stand-in")


def evaluation_options(one: Measured, seed: int | None = None, addresses: bool = True) -> list[str]:
    """Unquoted options behind `harness eval CHECKPOINT --benchmarks NAME`.

    `seed`: of the run, which counts where answers were sampled; `addresses`: whether a judge's base URL is named.
    """
    head, settings = one.cells[0], one.settings
    options = ["--variant", variant(head.version)] if variant(head.version) != "official" else []
    options += _answers(head.benchmark, settings, seed)
    if head.judge_kind == "sandbox" and one.judge_config.get("mode") == "unsafe_exec":
        options.append("--unsafe-exec")
    return options + _judge(one, addresses)


def _answers(benchmark: str, settings: Mapping[str, Any], seed: int | None) -> list[str]:
    options = ["--limit", str(settings["limit"])] if settings.get("limit") else []
    drawn = settings.get("sample_seed") if settings.get("limit") else seed if _sampled(settings) else None
    options += ["--seed", str(drawn)] if drawn not in (None, SEED) else []
    likelihood = "delimiter" in settings
    default = "transformers" if likelihood else "vllm"
    if settings.get("engine") not in (None, default):
        options += ["--likelihood-engine" if likelihood else "--engine", str(settings["engine"])]
    decoding = settings.get("decoding") or {}
    limits = {"--max-tokens": decoding.get("max_tokens", settings.get("max_gen_toks")), "--shots": settings.get("shots")}
    limits |= {"--max-model-len": settings.get("max_model_len"), "--dtype": _set(settings.get("dtype"))}
    limits |= {"--samples": decoding["n"] if decoding.get("n", 1) > 1 else None, "--system-prompt": settings.get("system_prompt")}
    if not isinstance(decoding.get("temperature"), Mapping):  # one by category is official: no option sets it
        limits["--temperature"] = decoding.get("temperature")
    for option, value in limits.items():
        options += [option, str(value)] if value is not None else []
    plain = likelihood or "lm_eval" in settings or benchmark.startswith("truthful_qa")
    return [*options, "--chat-template"] if plain and settings.get("chat_template") else options


def _judge(one: Measured, addresses: bool) -> list[str]:
    name, kind, config = one.cells[0].judge, one.cells[0].judge_kind, one.judge_config
    told = {key: config.get(key) for key in ("temperature", "max_tokens")}
    if kind == "openai":
        options = ["--judge", f"openai:{name}"]
        if addresses and config.get("endpoint") not in (None, _OPENAI):
            options += ["--base-url", str(config["endpoint"])]
    elif kind == "serve":
        options = ["--judge", f"serve:{name.removeprefix('serve:').rpartition('-')[0]}"]
        told |= {"max_model_len": config.get("max_model_len"), "dtype": _set(config.get("dtype"))}
    elif kind == "reward_model":
        options = ["--judge", one.judge_checkpoint or name.partition(":")[2]]
        length = config.get("max_length")
        told = {"max_length": length if length != _REWARD_MODEL_LENGTH else None, "dtype": _set(config.get("dtype"))}
    else:
        return []
    for key, value in told.items():
        options += ["--judge-option", f"{key}={value}"] if value is not None else []
    return options


def _sampled(settings: Mapping[str, Any]) -> bool:
    temperature = (settings.get("decoding") or {}).get("temperature", 0.0)
    return any(temperature.values()) if isinstance(temperature, Mapping) else bool(temperature)


def _set(dtype: Any) -> Any:
    return None if dtype == "auto" else dtype
