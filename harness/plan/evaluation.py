"""The evaluation of one policy."""

from typing import Any

from core.errors import RecipeError
from harness.plan.nodes import BenchmarkInput, Plan, Ref, threads_of
from harness.recipe import Evaluate

_STAGE_NAMES = {"evals.judged": "judge", "evals.lm_eval_stage": "knowledge"}
"""Evaluation programs whose stages are not called after them."""

_JUDGE_RESOURCES = (
    "endpoints",
    "api_key_env",
    "transport",
    "concurrency",
    "requests_per_minute",
    "tokens_per_minute",
    "max_tokens_name",
    "price",
    "max_usd",
)
"""How a judge is reached and paid: nothing of it changes a verdict."""
_JUDGE_ELSEWHERE = ("serve", "revision", "on_failure")
"""What resolves to an input, or concerns the run."""


def add_evaluation(plan: Plan, label: str, iteration: int) -> None:
    """The evaluation of one policy: at most five processes, by what each must hold in memory."""
    policy, evaluate = plan.policies[label], plan.evaluate
    benchmarks = list(plan.inputs.benchmarks)
    if evaluate.held_out_reward and "data" in plan.nodes:
        version = f"run@{plan.nodes['data'].key[:12]}"
        settings = {"variant": "run", "version": version, "limit": None, "decoding": {"max_tokens": evaluate.held_out_max_tokens}}
        files = {"questions": Ref(stage="data", part="prompts_heldout.jsonl")}
        benchmarks.append(BenchmarkInput("held_out_reward", "generation", "reward", settings, files))

    common = {
        "seed": plan.seed,
        "engine": evaluate.engine,
        "max_model_len": evaluate.max_model_len,
        "dtype": evaluate.dtype,
        "system_prompt": evaluate.system_prompt,
    }
    rewards = {name: plan.policies[name] for name in ("reward", "gold_reward") if name in plan.policies}
    templates = _templates(evaluate, benchmarks)

    def stage(
        program: str, chosen: list[BenchmarkInput], settings: dict[str, Any], inputs: dict[str, Ref], **resources: Any
    ) -> None:
        if not chosen:
            return
        listed = [{"name": b.name, "sample_seed": plan.seed} | b.settings | templates.get(b.name, {}) for b in chosen]
        files = {f"data/{b.name}/{asset}": ref for b in chosen for asset, ref in b.files.items()}
        plan.add(
            f"{_STAGE_NAMES.get(program, program.split('.')[-1])}[{label}]",
            program,
            common | {"benchmarks": listed} | settings,
            {"policy": policy} | files | inputs,
            iteration=iteration,
            resources=threads_of(evaluate.threads) | resources,
            registry=True,
        )

    generated = [b for b in benchmarks if b.kind == "generation"]
    # Imported answers are there already: they are only judged.
    stage("evals.answer", [b for b in generated if "answer_set" not in b.settings], {}, {})
    likelihood = {"likelihood_engine": evaluate.likelihood_engine}
    stage("evals.likelihood", [b for b in benchmarks if b.kind == "likelihood"], likelihood, {})
    stage("evals.lm_eval_stage", [b for b in benchmarks if b.kind == "lm_eval"], {}, {})
    stage("evals.execute", [b for b in generated if b.verdict == "sandbox"], {"unsafe_exec": evaluate.unsafe_exec}, {})
    stage("evals.metrics", [b for b in generated if b.verdict == "metrics"], {}, {})
    judge, transport = _judge(evaluate)
    judges = evaluate.judge.kind == "reward_model" and evaluate.judge.role in rewards
    inputs = {"judge": rewards[evaluate.judge.role]} if judges else {}
    inputs |= {"judge": plan.inputs.judge} if evaluate.judge.kind == "serve" else {}
    inputs |= {"reward": rewards["reward"]} if "reward" in rewards else {}
    if evaluate.judge.kind != "reward_model" and "gold_reward" in rewards:
        inputs["gold_reward"] = rewards["gold_reward"]
    stage("evals.judged", [b for b in generated if b.verdict in ("judge", "reward")], {"judge": judge}, inputs, **transport)


def _judge(evaluate: Evaluate) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings, resources) of the judge: what decides its verdicts, and how it is reached and paid."""
    values = evaluate.judge.model_dump(mode="json", exclude=set(_JUDGE_ELSEWHERE))
    transport = {name: values.pop(name) for name in _JUDGE_RESOURCES}
    if transport["endpoints"] and values["base_url"] is None:
        values["base_url"] = transport["endpoints"][0]["base_url"]
    return values, {} if evaluate.judge.kind == "reward_model" else {"judge": transport}


def _templates(evaluate: Evaluate, benchmarks: list[BenchmarkInput]) -> dict[str, dict[str, bool]]:
    """name -> {"chat_template"} where the recipe says so. Raises RecipeError for a benchmark whose prompt is a conversation."""
    chosen = {b.name: b.chat_template for b in evaluate.benchmarks if b.chat_template is not None}
    for b in benchmarks:
        if b.name in chosen and not (b.kind in ("likelihood", "lm_eval") or b.verdict == "metrics"):
            raise RecipeError(f"{b.name} is always asked through the chat template; remove `chat_template` from it.")
    return {name: {"chat_template": value} for name, value in chosen.items()}
