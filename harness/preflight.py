"""Everything that can be refused before a stage starts: engines, judge, sandbox, disk. Costs a second, saves a night."""

import importlib.util
import os
import shutil
from pathlib import Path

from core import paths
from core.errors import JudgeError, MissingInput, RecipeError
from core.gpus import visible_gpus
from core.stage import require_free_space
from evals.benchmark import BENCHMARKS
from harness.plan import Inputs
from harness.recipe import Evaluate, Judge, Recipe
from harness.recipe.online import AnnotationJudge

# A training checkpoint with optimizer state is about 7 times the bf16 weights (fp32 master weights and two moments).
ROLLING_FACTOR = 7
_INSTALL = "install the extras: pip install -e '.[gpu]' on a GPU node, or run `make setup` on a CPU machine"


def check_recipe(recipe: Recipe, inputs: Inputs) -> None:
    """Raise the HarnessError of the first thing that would stop this recipe later."""
    require_modules({"torch", "transformers", "trl", "datasets", "accelerate"}, "training")
    check_gpus(recipe)
    judges = [part for part in (recipe.reward, recipe.gold_reward, recipe.preference) if part]
    if any(part.optimizer == "paged_adamw_32bit" for part in (recipe.sft, *judges, recipe.dpo)):
        require_modules({"bitsandbytes"}, "optimizer paged_adamw_32bit (or set it to adamw_torch)")
    sharded = [part for part in (recipe.sft, *judges, recipe.dpo) if part.zero_stage]
    if sharded:
        require_modules({"deepspeed"}, "a recipe with zero_stage")
        if any(part.precision != "fp32" for part in sharded) and not shutil.which("nvidia-smi"):
            raise RecipeError(
                "DeepSpeed trains in fp32 on a machine without CUDA: set precision=fp32 where zero_stage is set, e.g. "
                "--set dpo.precision=fp32, or zero_stage=null."
            )
    if recipe.annotate.judge:
        check_judges_access(recipe.annotate.judge, "annotate.judge")
    if recipe.generate.engine == "vllm":
        require_modules({"vllm"}, "generate.engine vllm (or set generate.engine=transformers)")
    weights = base_bytes(inputs)
    rewards = sum(1 for part in judges if not part.checkpoint)
    checkpoints = recipe.iterations + recipe.sft.enabled + rewards + (inputs.base is None)
    what = f"A run of {recipe.name} ({checkpoints} checkpoints)"
    require_free_space(paths.home(), weights * (checkpoints + ROLLING_FACTOR), what)
    check_evaluation(recipe.evaluate)


def check_gpus(recipe: Recipe) -> None:
    """Raise RecipeError for sections that want more GPUs than this machine shows. A machine without any is none of it: there the
    same processes share the cores."""
    gpus = len(visible_gpus())
    trained = {"sft": recipe.sft, "reward": recipe.reward, "gold_reward": recipe.gold_reward}
    trained |= {"preference": recipe.preference, "dpo": recipe.dpo}
    wanted = {f"{name}.num_processes": part.num_processes for name, part in trained.items() if part}
    wanted |= {"annotate.processes": recipe.annotate.processes, "reference.processes": recipe.reference.processes}
    above = {key: (number, gpus) for key, number in wanted.items() if number > gpus > 0}
    each = recipe.generate.tensor_parallel
    if recipe.generate.processes * each > gpus > 0:
        above["generate.processes"] = (recipe.generate.processes, gpus // each)
        if each > gpus:
            above |= {"generate.processes": (recipe.generate.processes, 1), "generate.tensor_parallel": (each, gpus)}
    if above:
        asked = ", ".join(f"{key} {number}" for key, (number, _) in above.items())
        fixes = " ".join(f"--set {key}={fitting}" for key, (_, fitting) in above.items())
        raise RecipeError(
            f"{gpus} GPUs are visible and the recipe wants more ({asked}): widen CUDA_VISIBLE_DEVICES, or use {fixes} "
            "(global batches stay as they are; accumulation follows)."
        )


def check_evaluation(evaluate: Evaluate) -> None:
    """Raise for a missing engine, a judge without its key, or code that could not be contained."""
    require_modules({"torch", "transformers"}, "evaluation")
    if evaluate.engine == "vllm":
        require_modules({"vllm"}, "evaluate.engine vllm (or set evaluate.engine=transformers)")
    judge = evaluate.judge
    verdicts = {BENCHMARKS[b.name].verdict for b in evaluate.benchmarks if b.name in BENCHMARKS}
    judged = "judge" in verdicts
    if judged and judge.kind == "openai":
        check_judges_access(judge, "evaluate.judge")
    if judged and judge.kind == "serve":
        require_modules({"openai", "vllm"}, "a judge of kind serve")
    if not evaluate.unsafe_exec and "sandbox" in verdicts:
        from evals.code.sandbox import probe

        probe()


def check_judges_access(judge: Judge | AnnotationJudge, section: str) -> None:
    """Raise for a judge behind an endpoint whose key is not set, or with a budget and no price."""
    require_modules({"openai"}, "a judge behind an endpoint")
    variables = {judge.api_key_env if e.api_key_env is None else e.api_key_env for e in judge.endpoints}
    for variable in sorted(variables or {judge.api_key_env}):
        if variable and not os.environ.get(variable):
            local = f", or judge locally with --set {section}.kind=reward_model" if section == "evaluate.judge" else ""
            raise JudgeError(
                f"The judge {judge.model} needs an API key: export {variable}=..., or name another variable with "
                f"--set {section}.api_key_env=NAME{local}."
            )
    from evals.judges.openai_judge import check_budget

    check_budget(judge.model_dump(mode="json"))


def check_judges_served(evaluate: Evaluate, annotation: AnnotationJudge | None = None) -> list[str]:
    """Ask the endpoints of a run's judges for their models; returns what could not be found out. Raises JudgeError.

    Not part of `check_recipe`, so that a dry run needs no network.
    """
    from evals.judges.reachable import require_served

    asked = {"annotate.judge": annotation} if annotation else {}
    if evaluate.judge.kind == "openai" and any(
        b.name in BENCHMARKS and BENCHMARKS[b.name].verdict == "judge" for b in evaluate.benchmarks
    ):
        asked["evaluate.judge"] = evaluate.judge
    return [note for section, judge in asked.items() for note in require_served(judge.model_dump(mode="json"), section)]


def require_modules(names: set[str], what: str) -> None:
    """Raise MissingInput naming the extras that are not installed."""
    missing = sorted(name for name in names if importlib.util.find_spec(name) is None)
    if missing:
        raise MissingInput(f"{what} needs {', '.join(missing)}: {_INSTALL}.")


def base_bytes(inputs: Inputs) -> int:
    """Size of the base model's weights as bf16 safetensors, in bytes."""
    if inputs.base is not None:
        return sum(p.stat().st_size for p in Path(inputs.base.path).glob("*.safetensors"))
    return 270 * 2**20  # SmolLM2-135M, the one model that comes in a package
