"""Base checkpoint, data, SFT and the reward models of a run."""

from typing import Any

from harness.plan.nodes import Plan, Ref
from harness.recipe import LOSS_KEYS, Data, Recipe, Reward, Training

# Options that came later: left out where they have their default, so that models trained before them keep their keys.
_LATER_OPTIONS = {"label_smoothing": 0.0, "too_long": "drop"}
_LATER_SETTINGS: dict[str, Any] = {
    "lora": None,
    "added_losses": {},
    "f_divergence": "reverse_kl",
    "f_alpha": None,
    "discopop_tau": None,
}
_RESOURCES = ("micro_batch_size", "num_processes", "save_steps")


def training_settings(section: Training, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings, resources) of a training section."""
    elsewhere = {"enabled", "checkpoint", "start", "data", "held_out_pairs", "self_test"}
    values = section.model_dump(mode="json", exclude=elsewhere | set(LOSS_KEYS))
    resources = {k: values.pop(k) for k in _RESOURCES}
    if (offload := values.pop("zero_offload")) is not None:
        resources["zero_offload"] = offload
    for key, default in _LATER_SETTINGS.items():
        if key in values and values[key] == default:
            del values[key]
    if values["warmup_steps"]:
        values["warmup_ratio"] = 0.0
    return values | {"seed": seed}, resources


def wants_margins(recipe: Recipe) -> bool:
    """Whether a reward model is trained with margins, which every pair must then have."""
    return any(section.margin and not section.checkpoint for section in (recipe.reward, recipe.gold_reward) if section)


def add_data(plan: Plan, data: Data, gold: bool, seed: int, margins: bool = False) -> Ref:
    """The data stage. `gold`: whether a gold reward model will need its share of the pairs; `margins`: whether every pair must
    have one. Keys that came later are left out where they have their default."""
    inputs = {f"source/{s['name']}/{i}": ref for s, refs in plan.inputs.sources for i, ref in enumerate(refs)}
    sources = [s | {"files": [f"source/{s['name']}/{i}" for i in range(len(refs))]} for s, refs in plan.inputs.sources]
    splits = {
        "gold_fraction": data.gold_fraction if gold else 0.0,
        "heldout_pairs": data.heldout_pairs,
        "heldout_prompts": data.heldout_prompts,
        "sft_from": "chosen",
    }
    seed = seed if data.seed is None else data.seed
    settings = {"sources": sources, "splits": splits, "seed": seed, "decontaminate": data.decontaminate}
    if data.near_duplicates != Data.model_fields["near_duplicates"].default:
        settings["near_duplicates"] = data.near_duplicates
    if margins:
        settings["margins"] = True
    if data.decontaminate is not False:
        own = {b.name: b.files[next(iter(b.files))] for b in plan.inputs.benchmarks}
        inputs |= {f"questions/{name}": ref for name, ref in (plan.inputs.questions | own).items()}
    tokenizer = plan.policies.get("base") if data.tokenizer == "base" else plan.inputs.tokenizer
    if tokenizer is not None:
        inputs["tokenizer"] = tokenizer
    return plan.add("data", "train.data", settings, inputs)


def add_preparation(plan: Plan, recipe: Recipe) -> None:
    """Base checkpoint, data, SFT, the reward models and the preference model."""
    inputs = plan.inputs
    if inputs.base is None:
        package = recipe.base.source.removeprefix("package:")
        settings = {"package": package, "file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
        plan.policies["base"] = Ref(stage=plan.add("convert", "train.convert", settings, {}).stage, part="checkpoint")
    else:
        plan.policies["base"] = inputs.base

    data_ref = add_data(plan, recipe.data, recipe.gold_reward is not None, recipe.seed, wants_margins(recipe))

    if recipe.sft.enabled:
        settings, resources = training_settings(recipe.sft, recipe.seed)
        plan.add("sft", "train.sft", settings, {"policy": plan.policies["base"], "data": data_ref}, resources=resources)
        plan.policies["sft"] = Ref(stage="sft", part="checkpoint")
    plan.policies["iter-0"] = plan.policies.get("sft", plan.policies["base"])
    if recipe.dpo.held_out_pairs:
        settings = {"limit": recipe.dpo.held_out_pairs}
        plan.add("heldout", "train.heldout", settings, {"policy": plan.policies["iter-0"], "data": data_ref})

    for name, section, given in (
        ("reward", recipe.reward, inputs.reward),
        ("gold_reward", recipe.gold_reward, inputs.gold_reward),
        ("preference", recipe.preference, inputs.preference),
    ):
        if section is None:
            continue
        if given is not None:
            plan.policies[name] = given
            continue
        settings, resources = training_settings(section, recipe.seed)
        if isinstance(section, Reward):
            settings = {key: value for key, value in settings.items() if _LATER_OPTIONS.get(key, ...) != value}
        settings["file"] = "gold_train.jsonl" if name == "gold_reward" else "reward_train.jsonl"
        start = inputs.backbones.get(name) or plan.policies["base" if section.start == "base" else "iter-0"]
        program = "train.preference" if name == "preference" else "train.reward"
        plan.add(name, program, settings, {"policy": start, "data": data_ref}, resources=resources)
        plan.policies[name] = Ref(stage=name, part="checkpoint")
