"""Recipe -> stages with their keys. Pure: nothing is read, run or written here.

A stage's key is the hash of its program, version, settings and the identities of its inputs; the identity of an
input that another stage makes is that stage's key. So the whole plan can be printed before anything exists, and the
same recipe on the same data always names the same artifacts.
"""

from dataclasses import dataclass, field
from typing import Any

from core.errors import RecipeError
from core.fingerprint import digest
from harness.recipe import LOSS_KEYS, Evaluate, Recipe, Training
from train.losses import find_loss

# Raised when a program's result changes for the same settings and inputs.
VERSIONS = {
    "train.convert": 1,
    "train.data": 1,
    "train.sft": 1,
    "train.reward": 1,
    "train.generate": 1,
    "train.annotate": 1,
    "train.pairs": 2,  # win rates, length gaps
    "train.heldout": 1,
    "train.reference": 1,
    "train.dpo": 2,  # kl_first, held-out accuracy
    "evals.answer": 1,
    "evals.likelihood": 2,
    "evals.lm_eval_stage": 1,
    "evals.execute": 2,  # tests apart from the code, added tests
    "evals.metrics": 1,
    "evals.judged": 2,  # intervals, metric names, statistics, replies by content
}

_STAGE_NAMES = {"evals.judged": "judge", "evals.lm_eval_stage": "knowledge"}
"""Evaluation programs whose stages are not called after them."""

_RESOURCES = ("micro_batch_size", "num_processes", "save_steps")
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


@dataclass(frozen=True)
class Ref:
    """An input: either a path with a known fingerprint, or (a part of) another stage's artifact."""

    stage: str | None = None
    part: str = ""
    path: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class Node:
    """One stage to run."""

    name: str
    """Unique in the run: `dpo[2]`, `answer[iter-2]`."""
    program: str
    settings: dict[str, Any]
    inputs: dict[str, Ref]
    key: str
    iteration: int | None = None
    resources: dict[str, Any] = field(default_factory=dict)
    registry: bool = False
    """Whether the stage writes to the registry (evaluation stages)."""

    @property
    def stage(self) -> str:
        """Prefix of the artifact's directory: the program's own name."""
        return self.program.split(".")[-1]


@dataclass(frozen=True)
class BenchmarkInput:
    """A benchmark with its located files."""

    name: str
    kind: str
    verdict: str
    settings: dict[str, Any]
    files: dict[str, Ref]


@dataclass(frozen=True)
class Inputs:
    """What the recipe's names stand for on this machine, resolved and hashed beforehand."""

    base: Ref | None
    """None: the base comes out of a package through the convert stage."""
    sources: list[tuple[dict[str, Any], list[Ref]]]
    """Settings of each data source (name, reader, use, limit) and its files."""
    benchmarks: list[BenchmarkInput]
    reward: Ref | None = None
    gold_reward: Ref | None = None
    """Reward models that the recipe names as checkpoints."""
    judge: Ref | None = None
    """The checkpoint that the recipe has served as its judge."""


class Plan:
    """Stages in the order in which they run; later ones refer to earlier ones by name."""

    def __init__(self, title: str, evaluate: Evaluate, seed: int, inputs: Inputs):
        self.title = title
        self.evaluate = evaluate
        self.seed = seed
        self.inputs = inputs
        self.nodes: dict[str, Node] = {}
        self.policies: dict[str, Ref] = {}
        """label (`base`, `sft`, `iter-1`, ...) -> checkpoint."""

    def add(self, name: str, program: str, settings: dict[str, Any], inputs: dict[str, Ref], **fields: Any) -> Ref:
        identities = {
            n: r.fingerprint if r.stage is None else digest([self.nodes[r.stage].key, r.part]) for n, r in inputs.items()
        }
        key = digest({"program": program, "version": VERSIONS[program], "settings": settings, "inputs": identities})
        self.nodes[name] = Node(name, program, settings, inputs, key, **fields)
        return Ref(stage=name)


def build_plan(recipe: Recipe, inputs: Inputs, starts: dict[int, int] | None = None) -> Plan:
    """The stages of a run. `starts[t]` is the iteration whose policy iteration t starts from (default t - 1): the
    hooks' roll-backs. Iteration 0 is the first policy, pi_0."""
    plan = Plan(recipe.name, recipe.evaluate, recipe.seed, inputs)
    _prepare(plan, recipe)
    first = ["base"] + (["sft"] if recipe.sft.enabled else [])
    for label in first:
        add_evaluation(plan, label, 0)
    for t in range(1, recipe.iterations + 1):
        _iterate(plan, recipe, t, starts or {})
        add_evaluation(plan, f"iter-{t}", t)
    return plan


def build_evaluation(evaluate: Evaluate, seed: int, policy: Ref, inputs: Inputs) -> Plan:
    """The stages that evaluate one checkpoint that no recipe of ours made. Its label is `policy`."""
    plan = Plan("evaluation", evaluate, seed, inputs)
    plan.policies["policy"] = policy
    plan.policies |= {name: ref for name, ref in (("reward", inputs.reward), ("gold_reward", inputs.gold_reward)) if ref}
    add_evaluation(plan, "policy", 0)
    return plan


def _training(section: Training, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings, resources) of a training section."""
    values = section.model_dump(mode="json", exclude={"enabled", "checkpoint", "start", "data", "held_out_pairs", *LOSS_KEYS})
    resources = {k: values.pop(k) for k in _RESOURCES}
    return values | {"seed": seed}, resources


def _threads(threads: int | None) -> dict[str, Any]:
    """CPU threads of an engine; left out, the engine takes what it finds."""
    return {} if threads is None else {"threads": threads}


def _prepare(plan: Plan, recipe: Recipe) -> None:
    """Base checkpoint, data, SFT and the reward models."""
    inputs = plan.inputs
    if inputs.base is None:
        package = recipe.base.source.removeprefix("package:")
        settings = {"package": package, "file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
        plan.policies["base"] = Ref(stage=plan.add("convert", "train.convert", settings, {}).stage, part="checkpoint")
    else:
        plan.policies["base"] = inputs.base

    files = {f"source/{s['name']}/{i}": ref for s, refs in inputs.sources for i, ref in enumerate(refs)}
    sources = [s | {"files": [f"source/{s['name']}/{i}" for i in range(len(refs))]} for s, refs in inputs.sources]
    questions = {f"questions/{b.name}": b.files[next(iter(b.files))] for b in inputs.benchmarks}
    data = recipe.data
    splits = {
        "gold_fraction": data.gold_fraction if recipe.gold_reward else 0.0,
        "heldout_pairs": data.heldout_pairs,
        "heldout_prompts": data.heldout_prompts,
        "sft_from": "chosen",
    }
    settings = {"sources": sources, "splits": splits, "seed": recipe.seed, "decontaminate": data.decontaminate}
    data_ref = plan.add("data", "train.data", settings, files | questions)

    if recipe.sft.enabled:
        settings, resources = _training(recipe.sft, recipe.seed)
        plan.add("sft", "train.sft", settings, {"policy": plan.policies["base"], "data": data_ref}, resources=resources)
        plan.policies["sft"] = Ref(stage="sft", part="checkpoint")
    plan.policies["iter-0"] = plan.policies.get("sft", plan.policies["base"])
    if recipe.dpo.held_out_pairs:
        settings = {"limit": recipe.dpo.held_out_pairs}
        plan.add("heldout", "train.heldout", settings, {"policy": plan.policies["iter-0"], "data": data_ref})

    for name, section, given in (
        ("reward", recipe.reward, inputs.reward),
        ("gold_reward", recipe.gold_reward, inputs.gold_reward),
    ):
        if section is None:
            continue
        if given is not None:
            plan.policies[name] = given
            continue
        settings, resources = _training(section, recipe.seed)
        settings["file"] = "reward_train.jsonl" if name == "reward" else "gold_train.jsonl"
        start = plan.policies["base"] if section.start == "base" else plan.policies["iter-0"]
        plan.add(name, "train.reward", settings, {"policy": start, "data": data_ref}, resources=resources)
        plan.policies[name] = Ref(stage=name, part="checkpoint")


def _reference(recipe: Recipe, t: int, starts: dict[int, int]) -> int:
    """The iteration whose policy is the reference of iteration t."""
    if recipe.reference.policy == "initial":
        return 0
    refreshed = t if recipe.reference.policy == "previous" else t - (t - 1) % recipe.reference.k
    return starts.get(refreshed, refreshed - 1)


def _iterate(plan: Plan, recipe: Recipe, t: int, starts: dict[int, int]) -> None:
    """One iteration of online DPO, from the policy of iteration `starts[t]` or the last one."""
    policy = plan.policies[f"iter-{starts.get(t, t - 1)}"]
    generate, annotate = recipe.generate, recipe.annotate
    size = generate.prompts_per_iteration
    settings = {
        "engine": generate.engine,
        "file": "prompts_pool.jsonl",
        "start": (t - 1) * size,
        "stop": t * size,
        "arms": [arm.model_dump() for arm in generate.arms],
        "max_tokens": generate.max_tokens,
        "max_model_len": generate.max_model_len,
        "dtype": generate.dtype,
        "seed": recipe.seed,
        "iteration": t,
        "system_prompt": generate.system_prompt,
    }
    resources = {"shard_size": generate.shard_size} | _threads(generate.threads)
    generations = plan.add(
        f"generate[{t}]",
        "train.generate",
        settings,
        {"policy": policy, "data": Ref(stage="data")},
        iteration=t,
        resources=resources,
    )
    settings = {"scorer": annotate.scorer, "max_length": annotate.max_length, "dtype": annotate.dtype}
    annotations = plan.add(
        f"annotate[{t}]",
        "train.annotate",
        settings,
        {"generations": generations, "scorer": plan.policies["reward"]},
        iteration=t,
        resources={"batch_tokens": annotate.batch_tokens},
    )
    settings = recipe.pairs.model_dump() | {"max_length": recipe.dpo.max_length, "seed": recipe.seed}
    inputs = {"generations": generations, "annotations": annotations}
    if recipe.dpo.data == "all" and t > 1:
        inputs["earlier"] = Ref(stage=f"pairs[{t - 1}]")
    pairs = plan.add(f"pairs[{t}]", "train.pairs", settings, inputs, iteration=t)

    def cached(name: str, of: Ref, pairs: Ref) -> Ref:
        """Log-probabilities of pairs under a policy that DPO then need not hold in memory."""
        settings = {"max_length": recipe.dpo.max_length, "precision": recipe.dpo.precision}
        resources = {"micro_batch_size": recipe.dpo.micro_batch_size}
        inputs = {"reference": of, "pairs": pairs}
        return plan.add(f"{name}[{t}]", "train.reference", settings, inputs, iteration=t, resources=resources)

    first, reference = plan.policies["iter-0"], plan.policies[f"iter-{_reference(recipe, t, starts)}"]
    begin = policy if recipe.dpo.start == "previous" else first
    inputs = {"policy": begin, "pairs": pairs, "reference": cached("reference", reference, pairs)}
    loss = find_loss(recipe.dpo.loss)
    if loss is not None and "previous" in loss.needs:
        inputs["previous"] = cached("previous", policy, pairs)
    if reference != first:
        inputs["first"] = cached("first", first, pairs)
    if "heldout" in plan.nodes:
        inputs["heldout"] = Ref(stage="heldout")
        inputs["heldout_reference"] = cached("heldout_reference", reference, inputs["heldout"])
    training, resources = _training(recipe.dpo, recipe.seed + t)
    training |= {"loss_options": recipe.dpo.resolved_options()}
    plan.add(f"dpo[{t}]", "train.dpo", training, inputs, iteration=t, resources=resources)
    plan.policies[f"iter-{t}"] = Ref(stage=f"dpo[{t}]", part="checkpoint")


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
            resources=_threads(evaluate.threads) | resources,
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
