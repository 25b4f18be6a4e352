"""One iteration of online DPO: generate, annotate, pairs, references, training."""

from typing import Any

from harness.plan.baseline import OFF_POLICY, ON_BEST, add_best_of_n
from harness.plan.nodes import Plan, Ref, threads_of
from harness.plan.training import training_settings
from harness.recipe import Annotate, Generate, Recipe, Reference
from train.annotators import JUDGE
from train.losses import find_loss


def _reference(recipe: Recipe, t: int, starts: dict[int, int]) -> int:
    """The iteration whose policy is the reference of iteration t."""
    if recipe.reference.policy == "initial":
        return 0
    refreshed = t if recipe.reference.policy == "previous" else t - (t - 1) % recipe.reference.k
    return starts.get(refreshed, refreshed - 1)


def _other_policies(plan: Plan, recipe: Recipe, t: int, starts: dict[int, int]) -> dict[str, Ref]:
    """Inputs of the policies that the arms name beside the current one."""
    named = {arm.policy for arm in recipe.generate.arms}
    current = starts.get(t, t - 1)
    previous = starts.get(current, current - 1) if current else 0
    iterates = {"previous": 0 if recipe.baseline in OFF_POLICY else previous, "initial": 0}
    return {name: plan.policies[f"iter-{i}"] for name, i in iterates.items() if name in named}


def _engine_resources(generate: Generate) -> dict[str, Any]:
    """Of a generation engine: what is not at its default."""
    resources = {"shard_size": generate.shard_size} | threads_of(generate.threads)
    given = generate.model_dump(include={"processes", "tensor_parallel", "gpu_memory_utilization", "max_num_seqs"})
    return resources | {key: value for key, value in given.items() if value != Generate.model_fields[key].default}


_JUDGES_TRANSPORT = {
    "endpoints",
    "api_key_env",
    "concurrency",
    "requests_per_minute",
    "tokens_per_minute",
    "max_tokens_name",
    "price",
    "max_usd",
}


def _scoring_resources(section: Annotate | Reference) -> dict[str, Any]:
    """Of a stage that reads given texts: what is not at its default."""
    given = section.model_dump(include={"batch_tokens", "processes"})
    return {key: value for key, value in given.items() if value != type(section).model_fields[key].default}


def _annotation(plan: Plan, recipe: Recipe) -> tuple[dict[str, Any], dict[str, Ref], dict[str, Any]]:
    """(settings, inputs beside the generations, resources) of the annotate stage."""
    annotate = recipe.annotate
    common = {"max_length": annotate.max_length, "dtype": annotate.dtype}
    inputs: dict[str, Ref] = {}
    resources = _scoring_resources(annotate)
    own = {"bradley_terry": "reward", "pairwise": "preference"}
    members = []
    for number, member in enumerate(annotate.members):
        settings: dict[str, Any] = {"scorer": member.scorer} | common
        if member.options:
            settings["options"] = member.options
        if member.scorer == "pairwise" or (annotate.judge and annotate.judge.mode == "compare" and member.scorer == JUDGE):
            settings |= {"tournament": annotate.tournament, "seed": recipe.seed}
        if member.scorer == JUDGE:
            judge = annotate.judge.model_dump(mode="json", exclude_none=True)
            settings["judge"] = {key: value for key, value in judge.items() if key not in _JUDGES_TRANSPORT}
            if "base_url" not in judge and judge["endpoints"]:
                settings["judge"]["base_url"] = judge["endpoints"][0]["base_url"]
            resources["judge"] = {key: value for key, value in judge.items() if key in _JUDGES_TRANSPORT}
        if member.scorer == "pairwise" and recipe.preference is not None:
            resources["self_test"] = recipe.preference.self_test
        given = plan.inputs.scorers[member.name] if member.checkpoint else plan.policies.get(own.get(member.scorer, ""))
        if given is not None:
            settings["input"] = "scorer" if annotate.ensemble is None else f"scorer/{number}"
            inputs[settings["input"]] = given
        members.append(settings | {"name": member.name})
    if annotate.ensemble is None:
        only = {key: value for key, value in members[0].items() if key not in ("name", "input")}
        return only, inputs, resources
    return {"members": members, "combine": annotate.ensemble.combine}, inputs, resources


def add_iteration(plan: Plan, recipe: Recipe, t: int, starts: dict[int, int]) -> None:
    """One iteration of online DPO, from the policy of iteration `starts[t]` or the last one."""
    policy = plan.policies[f"iter-{starts.get(t, t - 1)}"]
    answering = plan.policies["iter-0"] if recipe.baseline in OFF_POLICY else policy
    generate, annotate = recipe.generate, recipe.annotate
    size = generate.prompts_per_iteration
    settings = {
        "engine": generate.engine,
        "file": "prompts_pool.jsonl",
        "start": (t - 1) * size,
        "stop": t * size,
        "arms": [arm.model_dump(exclude={"policy"} if arm.policy == "current" else None) for arm in generate.arms],
        "max_tokens": generate.max_tokens,
        "max_model_len": generate.max_model_len,
        "dtype": generate.dtype,
        "seed": recipe.seed,
        "iteration": t,
        "system_prompt": generate.system_prompt,
    }
    inputs = {"policy": answering, "data": Ref(stage="data")} | _other_policies(plan, recipe, t, starts)
    resources = _engine_resources(generate)
    generations = plan.add(f"generate[{t}]", "train.generate", settings, inputs, iteration=t, resources=resources)
    settings, inputs, resources = _annotation(plan, recipe)
    inputs = {"generations": generations} | inputs
    annotations = plan.add(f"annotate[{t}]", "train.annotate", settings, inputs, iteration=t, resources=resources)
    settings = recipe.pairs.model_dump() | {"max_length": recipe.dpo.max_length, "seed": recipe.seed}
    if annotate.ensemble is not None and annotate.ensemble.max_disagreement is not None:
        settings["max_disagreement"] = annotate.ensemble.max_disagreement
    inputs = {"generations": generations, "annotations": annotations}
    if recipe.dpo.data == "all" and t > 1:
        inputs["earlier"] = Ref(stage=f"pairs[{t - 1}]")
    pairs = plan.add(f"pairs[{t}]", "train.pairs", settings, inputs, iteration=t)

    def cached(name: str, of: Ref, pairs: Ref) -> Ref:
        """Log-probabilities of pairs under a policy that DPO then need not hold in memory."""
        settings = {"max_length": recipe.dpo.max_length, "precision": recipe.dpo.precision}
        inputs = {"reference": of, "pairs": pairs}
        resources = _scoring_resources(recipe.reference)
        return plan.add(f"{name}[{t}]", "train.reference", settings, inputs, iteration=t, resources=resources)

    first, reference = plan.policies["iter-0"], plan.policies[f"iter-{_reference(recipe, t, starts)}"]
    begin = policy if recipe.dpo.start == "previous" else first
    if recipe.baseline in ON_BEST:
        add_best_of_n(plan, recipe, t, begin, pairs)
        return
    inputs = {"policy": begin, "pairs": pairs, "reference": cached("reference", reference, pairs)}
    loss = find_loss(recipe.dpo.loss)
    if loss is not None and "previous" in loss.needs:
        inputs["previous"] = cached("previous", answering, pairs)
    if reference != first:
        inputs["first"] = cached("first", first, pairs)
    if "heldout" in plan.nodes:
        inputs["heldout"] = Ref(stage="heldout")
        inputs["heldout_reference"] = cached("heldout_reference", reference, inputs["heldout"])
    training, resources = training_settings(recipe.dpo, recipe.seed + t)
    training |= {"loss_options": recipe.dpo.resolved_options()}
    plan.add(f"dpo[{t}]", "train.dpo", training, inputs, iteration=t, resources=resources)
    plan.policies[f"iter-{t}"] = Ref(stage=f"dpo[{t}]", part="checkpoint")
