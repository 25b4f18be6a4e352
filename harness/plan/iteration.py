"""One iteration of online DPO: generate, annotate, pairs, references, training."""

from harness.plan.nodes import Plan, Ref, threads_of
from harness.plan.training import training_settings
from harness.recipe import Recipe
from train.losses import find_loss


def _reference(recipe: Recipe, t: int, starts: dict[int, int]) -> int:
    """The iteration whose policy is the reference of iteration t."""
    if recipe.reference.policy == "initial":
        return 0
    refreshed = t if recipe.reference.policy == "previous" else t - (t - 1) % recipe.reference.k
    return starts.get(refreshed, refreshed - 1)


def add_iteration(plan: Plan, recipe: Recipe, t: int, starts: dict[int, int]) -> None:
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
    resources = {"shard_size": generate.shard_size} | threads_of(generate.threads)
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
    training, resources = training_settings(recipe.dpo, recipe.seed + t)
    training |= {"loss_options": recipe.dpo.resolved_options()}
    plan.add(f"dpo[{t}]", "train.dpo", training, inputs, iteration=t, resources=resources)
    plan.policies[f"iter-{t}"] = Ref(stage=f"dpo[{t}]", part="checkpoint")
