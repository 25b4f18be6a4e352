"""Recipe -> stages with their keys. Pure: nothing is read, run or written here.

A stage's key is the hash of its program, version, settings and the identities of its inputs; the identity of an
input that another stage makes is that stage's key. So the whole plan can be printed before anything exists, and the
same recipe on the same data always names the same artifacts.
"""

from dataclasses import dataclass, field
from typing import Any

from core.fingerprint import digest
from harness.recipe import Evaluate, Recipe, Training

# Raised when a program's result changes for the same settings and inputs.
VERSIONS = {
    "train.convert": 1,
    "train.data": 1,
    "train.sft": 1,
    "train.reward": 1,
    "train.generate": 1,
    "train.annotate": 1,
    "train.pairs": 1,
    "train.reference": 1,
    "train.dpo": 1,
    "evals.answer": 1,
    "evals.likelihood": 1,
    "evals.execute": 1,
    "evals.judged": 1,
}

_RESOURCES = ("micro_batch_size", "num_processes", "save_steps")


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
        _iterate(plan, recipe, t, (starts or {}).get(t, t - 1))
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
    values = section.model_dump(mode="json", exclude={"enabled", "checkpoint", "start", "data"})
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


def _iterate(plan: Plan, recipe: Recipe, t: int, start: int) -> None:
    """One iteration of online DPO, from the policy of iteration `start`."""
    policy = plan.policies[f"iter-{start}"]
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

    reference = plan.policies["iter-0"] if recipe.reference.policy == "initial" else policy
    training, resources = _training(recipe.dpo, recipe.seed + t)
    cached = plan.add(
        f"reference[{t}]",
        "train.reference",
        {"max_length": recipe.dpo.max_length, "precision": recipe.dpo.precision},
        {"reference": reference, "pairs": pairs},
        iteration=t,
        resources={"micro_batch_size": recipe.dpo.micro_batch_size},
    )
    begin = policy if recipe.dpo.start == "previous" else plan.policies["iter-0"]
    plan.add(
        f"dpo[{t}]",
        "train.dpo",
        training,
        {"policy": begin, "pairs": pairs, "reference": cached},
        iteration=t,
        resources=resources,
    )
    plan.policies[f"iter-{t}"] = Ref(stage=f"dpo[{t}]", part="checkpoint")


def add_evaluation(plan: Plan, label: str, iteration: int) -> None:
    """The evaluation of one policy: at most four processes, by what each must hold in memory."""
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

    def stage(program: str, chosen: list[BenchmarkInput], settings: dict[str, Any], inputs: dict[str, Ref]) -> None:
        if not chosen:
            return
        listed = [{"name": b.name, "sample_seed": plan.seed} | b.settings for b in chosen]
        files = {f"data/{b.name}/{asset}": ref for b in chosen for asset, ref in b.files.items()}
        plan.add(
            f"{program.split('.')[-1].replace('judged', 'judge')}[{label}]",
            program,
            common | {"benchmarks": listed} | settings,
            {"policy": policy} | files | inputs,
            iteration=iteration,
            resources=_threads(evaluate.threads),
            registry=True,
        )

    generated = [b for b in benchmarks if b.kind == "generation"]
    # Imported answers are there already: they are only judged.
    stage("evals.answer", [b for b in generated if "answer_set" not in b.settings], {}, {})
    stage("evals.likelihood", [b for b in benchmarks if b.kind == "likelihood"], {}, {})
    stage("evals.execute", [b for b in generated if b.verdict == "sandbox"], {"unsafe_exec": evaluate.unsafe_exec}, {})
    judge = evaluate.judge.model_dump(mode="json")
    inputs = {"judge": rewards[evaluate.judge.role]} if evaluate.judge.kind == "reward_model" else {}
    inputs |= {"reward": rewards["reward"]} if "reward" in rewards else {}
    if evaluate.judge.kind != "reward_model" and "gold_reward" in rewards:
        inputs["gold_reward"] = rewards["gold_reward"]
    stage("evals.judged", [b for b in generated if b.verdict in ("judge", "reward")], {"judge": judge}, inputs)
