"""Direct preference optimisation on online pairs: `python -m train.dpo SPEC.json` (or under torchrun).

inputs: policy (the last iterate, trained on), pairs (`pairs.jsonl`), reference (`reference.jsonl`: cached log-probabilities);
optional, more of the same caches: previous (the policy that answered, for losses that need it), first (the first policy,
where it is not the reference), heldout and heldout_reference (pairs that no training saw); artifact: `checkpoint/`.
The token ids of the pairs are used as they are: an answer ends with its turn-end token only if generation stopped there.

Curves: loss, rewards/{chosen,rejected,accuracies,margins}, tokens/{chosen,rejected}, grad_norm, learning_rate, kl and
kl_first, all over the training batches; held_out/{accuracy,margin} of the implicit reward after each epoch. `kl` is the
mean of log pi - log pi_ref over chosen and rejected answers (nats a response): an estimate of KL(pi || pi_ref) as long as
pi is near the policy that produced the answers. `kl_first` is the same to the first policy.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from core.artifacts import read_rows
from core.errors import MissingInput, RecipeError
from core.stage import Stage, main
from train.chat import load_tokenizer, render
from train.checkpoint import rows_file
from train.logprobs import truncated_pair
from train.loop import finish, mean_of, train_and_save
from train.lora import lora_config
from train.losses import dpo_losses, find_loss
from train.optimisation import load_dtype, prepare_process, require_training_space, training_arguments
from train.performance import training_speed
from train.standstill import standstill

# Final accuracy, margin and KL are means over this last share of the steps: the whole run would mix in its beginning.
_LAST_SHARE = 0.25


Rows = list[dict[str, Any]]


def join_reference(
    pairs: Rows,
    reference: Rows,
    max_length: int,
    caches: Mapping[str, Rows] | None = None,
    needs: frozenset[str] = frozenset(),
) -> tuple[Rows, dict[str, int]]:
    """Training rows (prompt_ids, chosen_ids, rejected_ids, ref_*_logps, length) and how many pairs each rule dropped.

    `caches`: further log-probabilities of the same pairs by the name of their policy (`previous`, `first`), kept as
    `<name>_*_logps`; `needs`: what the loss takes from the pairs (see `train.losses.NEEDS`). Raises RecipeError when the
    files are not about the same pairs cut at the same length, or the pairs lack what the loss needs.
    """
    caches = {"ref": reference} | dict(caches or {})
    for cache in caches.values():
        if [row["prompt_id"] for row in pairs] != [row["prompt_id"] for row in cache]:
            raise RecipeError(
                "The reference log-probabilities are of other pairs; run the reference stage again on this pairs artifact."
            )
    rows, dropped = [], {}
    for k, pair in enumerate(pairs):
        cut = truncated_pair(pair, max_length)
        if isinstance(cut, str):
            dropped[cut] = dropped.get(cut, 0) + 1
            continue
        prompt, chosen, rejected = cut
        row = {
            "prompt_ids": prompt,
            "chosen_ids": chosen,
            "rejected_ids": rejected,
            "length": len(prompt) + max(len(chosen), len(rejected)),
        }
        for name, cache in caches.items():
            cached = cache[k]
            if (cached["chosen_tokens"], cached["rejected_tokens"]) != (len(chosen), len(rejected)):
                raise RecipeError(
                    f"The reference of prompt {pair['prompt_id']} was computed on answers cut to another length; "
                    "give the reference stage the same max_length as dpo."
                )
            row |= {f"{name}_chosen_logps": cached["chosen_logp"], f"{name}_rejected_logps": cached["rejected_logp"]}
        rows.append(row | of_pair(pair, needs))
    return rows, dropped


def of_pair(pair: dict[str, Any], needs: frozenset[str]) -> dict[str, float]:
    """The columns chosen_rewards, rejected_rewards, chosen_win_rates, rejected_win_rates, as far as the loss needs them.

    Rewards are the penalised scores by which the pair was chosen; raw ones would turn it round in a loss that is symmetric in
    its answers. Pairs written before there were scores have the win rates of raw rewards: they are refused too.
    """
    columns = {}
    for need, key in (("rewards", "score"), ("win_rates", "win_rate")):
        if need not in needs:
            continue
        for side in ("chosen", "rejected"):
            lacking = [name for name in ("score", key) if pair[side].get(name) is None]
            if lacking:
                raise RecipeError(f"Prompt {pair['prompt_id']}'s pair has no {lacking[0]}; run the pairs stage again to have it.")
            columns[f"{side}_{need}"] = pair[side][key]
    return columns


def require_same_prompts(pairs: list[dict[str, Any]], tokenizer: Any) -> None:
    """Raise RecipeError unless this policy's tokenizer and template give the prompt ids that the answers were sampled from."""
    for pair in pairs:
        _, ids = render(tokenizer, pair["messages"], add_generation_prompt=True)
        if ids != pair["prompt_token_ids"]:
            raise RecipeError(
                f"The policy's chat template renders prompt {pair['prompt_id']} differently from the policy that answered it; "
                "generate the answers again with this policy."
            )


def training_rows(stage: Stage, pairs: Rows, needs: frozenset[str]) -> tuple[Rows, dict[str, int]]:
    """Rows to train on. Raises MissingInput when no pair is left, or the loss needs a policy that is not among the inputs."""
    inputs = stage.spec.inputs
    if "previous" in needs and "previous" not in inputs:
        raise MissingInput(
            f"The {stage.settings['loss']} loss needs the log-probabilities of the policy that answered; give their reference "
            "artifact as the input `previous`."
        )
    caches = {name: read_cache(stage, name) for name in ("previous", "first") if name in inputs}
    rows, dropped = join_reference(pairs, read_cache(stage, "reference"), stage.settings["max_length"], caches, needs)
    if not rows:
        raise MissingInput(
            f"None of {len(pairs)} pairs can be trained on ({dropped}); raise max_length or generate more answers."
        )
    return rows, dropped


def read_cache(stage: Stage, name: str) -> Rows:
    return read_rows(rows_file(stage.input(name), "reference.jsonl"))


def run(stage: Stage) -> dict[str, Any]:
    settings, policy = stage.settings, stage.input("policy")
    loss_types, loss_weights = dpo_losses(settings["loss"], settings["label_smoothing"], settings.get("added_losses"))
    loss = find_loss(settings["loss"])
    require_training_space(stage, policy)
    prepare_process(settings)
    tokenizer = load_tokenizer(policy)
    pairs = read_rows(rows_file(stage.input("pairs"), "pairs.jsonl"))
    require_same_prompts(pairs, tokenizer)
    rows, dropped = training_rows(stage, pairs, loss.needs if loss else frozenset())
    if dropped:
        stage.message(f"Dropped pairs: {dropped}.")
    heldout: Rows = []
    if "heldout" in stage.spec.inputs:
        unseen = read_rows(rows_file(stage.input("heldout"), "pairs.jsonl"))
        heldout, _ = join_reference(unseen, read_cache(stage, "heldout_reference"), settings["max_length"])
    trainer = make_trainer(stage, policy, tokenizer, rows, heldout, loss_type=loss_types, loss_weights=loss_weights)
    trained = train_and_save(trainer, stage, policy)
    if not stage.is_main:
        return {}
    finish(stage)
    if warning := standstill(trained.history, settings):
        stage.message(warning)
    metrics = {
        "train_loss": mean_of(trained.history, "loss"),
        "reward_accuracy": mean_of(trained.history, "rewards/accuracies", _LAST_SHARE),
        "reward_margin": mean_of(trained.history, "rewards/margins", _LAST_SHARE),
        "kl": mean_of(trained.history, "kl", _LAST_SHARE),
        "kl_first": mean_of(trained.history, "kl_first", _LAST_SHARE),
        "pairs": len(rows),
        "dropped": sum(dropped.values()),
        "dropped_by_rule": dropped,
        "steps": trained.history[-1]["step"],
    }
    answers = sum(len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids"))
    lengths = [len(row["prompt_ids"]) + len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")]
    metrics |= training_speed(stage.work / "checkpoint", settings, lengths, answers, trained)
    evaluated = [entry for entry in trainer.state.log_history if "held_out/accuracy" in entry]
    if evaluated:
        metrics |= {
            "held_out_accuracy": evaluated[-1]["held_out/accuracy"],
            "held_out_margin": evaluated[-1]["held_out/margin"],
            "held_out_pairs": len(heldout),
        }
    return metrics


def make_trainer(stage: Stage, policy: Path, tokenizer: Any, rows: Rows, heldout: Rows | None = None, **extra: Any) -> Any:
    """The trainer of a stage's settings. `heldout`: rows of pairs to measure the implicit reward on after each epoch."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig

    from train.trainers import StageCallback, StageDPOTrainer

    settings = stage.settings
    beta, loss = settings["beta"], find_loss(settings["loss"])
    if heldout:
        extra |= {"eval_strategy": "epoch", "per_device_eval_batch_size": int(stage.spec.resources.get("micro_batch_size", 1))}
    arguments = training_arguments(
        DPOConfig,
        stage,
        len(rows),
        beta=beta,
        label_smoothing=settings["label_smoothing"],
        max_length=None,  # rows are cut already
        precompute_ref_log_probs=True,
        f_divergence_type=settings.get("f_divergence", "reverse_kl"),
        f_alpha_divergence_coef=settings.get("f_alpha", 0.5),
        discopop_tau=settings.get("discopop_tau", 0.05),
        use_weighting=loss is not None and "weights" in loss.needs,  # trl then computes what the weights need
        **extra,
    )
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=load_dtype(settings))

    def kl(values: dict[str, float]) -> dict[str, float]:
        # trl's rewards are beta times the log-ratio to the reference; without the input `first` that is the first policy.
        to_reference = (values["rewards/chosen"] + values["rewards/rejected"]) / (2 * beta)
        return {"kl": to_reference, "kl_first": values.get("kl_first", to_reference)}

    return StageDPOTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(heldout) if heldout else None,
        processing_class=tokenizer,
        callbacks=[StageCallback(stage, kl)],
        peft_config=lora_config(settings, "CAUSAL_LM"),
        pair_loss=partial(loss.function, beta=beta, **settings.get("loss_options", {})) if loss else None,
    )


if __name__ == "__main__":
    main(run)
