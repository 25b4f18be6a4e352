"""Stage `pairs[t]`: turn scored samples into preference pairs.

    python -m train.pairs SPEC.json

Writes `pairs.jsonl` for the training stages and `statistics.json` (the fields of `db.models.PreferenceSet`). Every
prompt either gives a pair or is counted under the rule that removed it; pairs that were selected and then removed are
counted too. Statistics are of raw rewards; a loss that reads scores gets the penalised ones, by which the pair was chosen.
An input `earlier` (the pairs of the iteration before) puts its pairs in front; the statistics are of the new ones alone.
"""

import json
from collections import Counter
from statistics import fmean, pstdev, quantiles
from typing import Any

from core.artifacts import read_rows, write_durably, write_rows
from core.errors import HarnessError, HashMismatch, RecipeError
from core.seeds import derive_seed
from core.stage import Stage, main
from train.ensemble import disagreement
from train.selection import (
    Candidate,
    Pair,
    Rules,
    penalised_scores,
    select_pairs,
    truncation_fault,
    win_rates,
    zero_gap_penalty,
)
from train.shards import shard_files

UNITS = ("characters", "tokens")
"""What `length_unit` may count."""


def run(stage: Stage) -> dict[str, Any]:
    """Return the statistics. Raises HarnessError when no pair is left, with the counts of what removed them."""
    prompts = read_scored(stage)
    penalty = length_penalty(prompts, stage.settings)
    pairs, dropped, lost = build_pairs(prompts, stage.settings | {"length_penalty": penalty})
    if not pairs:
        counts = ", ".join(f"{rule} {n}" for rule, n in dropped.most_common())
        raise HarnessError(
            f"None of {len(prompts)} prompts gave a preference pair ({counts}); "
            "sample more answers, raise max_tokens or lower min_margin."
        )
    statistics = describe(prompts, pairs, dropped, lost, penalty)
    earlier = read_rows(stage.input("earlier") / "pairs.jsonl") if "earlier" in stage.spec.inputs else []
    write_rows(stage.work / "pairs.jsonl", earlier + pairs)
    write_durably(stage.work / "statistics.json", json.dumps(statistics, indent=1, sort_keys=True))
    return statistics


def read_scored(stage: Stage) -> list[dict[str, Any]]:
    """Generation rows, each sample with its "reward", and with its "members" where several scored it; of a tournament a row has
    its "comparisons" and its "knockout" pair. Raises HashMismatch for annotations of other samples.
    """
    generated = [row for shard in shard_files(stage.input("generations")) for row in read_rows(shard)]
    annotated = [row for shard in shard_files(stage.input("annotations")) for row in read_rows(shard)]
    if [(r["prompt_id"], len(r["samples"])) for r in generated] != [(r["prompt_id"], len(r["rewards"])) for r in annotated]:
        raise HashMismatch("The annotations do not belong to these generations; run the annotate stage on them again.")
    for row, annotation in zip(generated, annotated, strict=True):
        for sample, reward in zip(row["samples"], annotation["rewards"], strict=True):
            sample["reward"] = reward
        for name, rewards in annotation.get("members", {}).items():
            for sample, reward in zip(row["samples"], rewards, strict=True):
                sample.setdefault("members", {})[name] = reward
        if annotation.get("comparisons"):
            row["comparisons"] = annotation["comparisons"]
        if annotation.get("pair"):
            row["knockout"] = tuple(annotation["pair"])
    return generated


def length_penalty(prompts: list[dict[str, Any]], settings: dict[str, Any]) -> float:
    """The recipe's number, or for `auto` the one at which chosen and rejected answers are equally long on average.

    Lengths are in `length_unit`. No pair at all is no gap: the caller reports what removed them.
    """
    if settings["length_penalty"] != "auto":
        return settings["length_penalty"]
    unit = settings.get("length_unit", "characters")

    def gap(penalty: float) -> float:
        selected, _, _ = select(prompts, settings | {"length_penalty": penalty})
        gaps = [
            length_of(prompt["samples"][pair.chosen], unit) - length_of(prompt["samples"][pair.rejected], unit)
            for prompt, pairs in selected
            for pair in pairs
        ]
        return fmean(gaps) if gaps else 0.0

    return zero_gap_penalty(gap)


def rules_of(settings: dict[str, Any]) -> tuple[Rules, str]:
    """How to select, and the unit of lengths. Raises RecipeError."""
    unit = settings.get("length_unit", "characters")
    if unit not in UNITS:
        raise RecipeError(f"length_unit is {unit!r}; use characters or tokens.")
    k = settings.get("k") or 1
    return Rules(settings["rule"], settings["length_penalty"], settings["min_margin"], settings["truncated"], k), unit


Selected = list[tuple[dict[str, Any], list[Pair]]]
"""Prompts with the pairs of their samples, one or more."""


def select(prompts: list[dict[str, Any]], settings: dict[str, Any]) -> tuple[Selected, Counter[str], Counter[str]]:
    """The pairs that can be trained, how many prompts each rule left without one, and how many selected pairs each removed."""
    rules, unit = rules_of(settings)
    selected: Selected = []
    dropped: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for prompt in prompts:
        samples = prompt["samples"]
        pairs, reason = select_pairs(
            [candidate(sample, unit) for sample in samples],
            rules,
            derive_seed(settings["seed"], prompt["prompt_id"]),
            prompt.get("knockout"),
        )
        kept = []
        for pair in pairs:
            chosen, rejected = samples[pair.chosen], samples[pair.rejected]
            fault = truncation_fault(
                prompt["prompt_token_ids"], chosen["token_ids"], rejected["token_ids"], settings["max_length"]
            )
            if not fault and disputed(chosen, rejected) > settings.get("max_disagreement", 1.0):
                fault = "disagreement"
            if fault:
                reason = fault
                lost[fault] += 1
            else:
                kept.append(pair)
        if kept:
            selected.append((prompt, kept))
        else:
            dropped[reason or "tie"] += 1
    return selected, dropped, lost


def build_pairs(
    prompts: list[dict[str, Any]], settings: dict[str, Any]
) -> tuple[list[dict[str, Any]], Counter[str], Counter[str]]:
    """Rows of pairs.jsonl in the order of the prompts, and the counts of `select`."""
    rules, unit = rules_of(settings)
    selected, dropped, lost = select(prompts, settings)
    rows = []
    for prompt, pairs in selected:
        samples = with_scores(prompt, rules, unit)
        for pair in pairs:
            row = {key: prompt[key] for key in ("prompt_id", "messages", "prompt_token_ids")}
            sides = {name: side(samples[index], index) for name, index in (("chosen", pair.chosen), ("rejected", pair.rejected))}
            rows.append(row | sides)
    return rows, dropped, lost


def with_scores(prompt: dict[str, Any], rules: Rules, unit: str) -> list[dict[str, Any]]:
    """The prompt's samples with their "score", by which they were ranked, and the "win_rate" of that score.

    A scorer's own comparisons know of no penalty: they give the win rates only where nothing was taken off any reward.
    """
    samples = prompt["samples"]
    scores = penalised_scores([candidate(sample, unit) for sample in samples], rules)
    raw = scores == [sample["reward"] for sample in samples]
    rates = win_rates(scores, prompt.get("comparisons", ()) if raw else ())
    return [sample | {"score": s, "win_rate": r} for sample, s, r in zip(samples, scores, rates, strict=True)]


def disputed(chosen: dict[str, Any], rejected: dict[str, Any]) -> float:
    """Share of an ensemble's members that put the rejected answer above the chosen one; 0 for a single scorer."""
    names = chosen.get("members", {})
    return disagreement([chosen["members"][n] for n in names], [rejected["members"][n] for n in names]) if names else 0.0


def candidate(sample: dict[str, Any], unit: str) -> Candidate:
    return Candidate(sample["reward"], length_of(sample, unit), sample["text"], sample["finish_reason"] == "length")


def length_of(sample: dict[str, Any], unit: str) -> int:
    return len(sample["text"]) if unit == "characters" else len(sample["token_ids"])


def side(sample: dict[str, Any], index: int) -> dict[str, Any]:
    """One side of a pair: the sample's own ids, what it was given, and which sample it was."""
    keys = ("text", "token_ids", "finish_reason", "reward", "score", "win_rate", "members", "policy")
    return {key: sample[key] for key in keys if key in sample} | {"sample": index}


def describe(
    prompts: list[dict[str, Any]],
    pairs: list[dict[str, Any]],
    dropped: Counter[str],
    lost: Counter[str],
    penalty: float = 0.0,
) -> dict[str, Any]:
    """Fields of `db.models.PreferenceSet`; lengths in tokens, rewards raw (unpenalised). `penalty`: per unit of length.

    `dropped` counts prompts, `lost` pairs: that many were selected and removed again, whether or not others of their prompt
    stayed. `duplicate_texts` counts scored answers that repeat an earlier one of their prompt: no rule pairs the two.
    """
    drawn = [sample for prompt in prompts for sample in prompt["samples"]]
    samples = [sample for sample in drawn if sample["reward"] is not None]
    rewards = [sample["reward"] for sample in samples]
    lengths = [len(sample["token_ids"]) for sample in samples]
    margins = [pair["chosen"]["reward"] - pair["rejected"]["reward"] for pair in pairs]
    gaps = {unit: [length_of(p["chosen"], unit) - length_of(p["rejected"], unit) for p in pairs] for unit in UNITS}
    by_prompt = [[s["reward"] for s in prompt["samples"] if s["reward"] is not None] for prompt in prompts]
    sampled = [of_prompt for of_prompt in by_prompt if of_prompt]
    return {
        "n_prompts": len(prompts),
        "n_pairs": len(pairs),
        "dropped": dict(dropped),
        "reward_mean": fmean(rewards),
        "reward_chosen": fmean(pair["chosen"]["reward"] for pair in pairs),
        "reward_rejected": fmean(pair["rejected"]["reward"] for pair in pairs),
        "margin_mean": fmean(margins),
        "tokens_mean": fmean(lengths),
        "tokens_chosen": fmean(len(pair["chosen"]["token_ids"]) for pair in pairs),
        "tokens_rejected": fmean(len(pair["rejected"]["token_ids"]) for pair in pairs),
        "statistics": {
            "reward_best_of_n": fmean(max(values) for values in sampled),
            "reward_std": pstdev(rewards),
            "reward_std_within_prompt": fmean(pstdev(values) for values in sampled),
            "reward_deciles": quantiles(rewards, n=10),
            "margin_std": pstdev(margins),
            "margin_deciles": quantiles(margins, n=10) if len(margins) > 1 else [],
            "length_penalty": penalty,
            "length_gap_tokens": fmean(gaps["tokens"]),
            "length_gap_characters": fmean(gaps["characters"]),
            "length_reward_correlation": correlation(lengths, rewards),
            "length_reward_correlation_within_prompt": correlation(*within_prompt(prompts)),
            "chosen_longer": fmean(gap > 0 for gap in gaps["tokens"]),
            "chosen_lower_reward": fmean(margin < 0 for margin in margins),
            "truncated": fmean(sample["finish_reason"] == "length" for sample in drawn),
            "unscored": 1 - len(samples) / len(drawn),
            "lost_pairs": dict(lost),
            "duplicate_texts": sum(map(duplicates, prompts)),
        }
        | of_several(drawn, pairs),
    }


def duplicates(prompt: dict[str, Any]) -> int:
    texts = [sample["text"].strip() for sample in prompt["samples"] if sample["reward"] is not None]
    return len(texts) - len(set(texts))


def of_several(samples: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> dict[str, float]:
    """Of several scorers, the mean share that disputes a pair; of several policies, how much of the chosen answers is whose."""
    told = {}
    if any("members" in sample for sample in samples):
        told["disagreement"] = fmean(disputed(pair["chosen"], pair["rejected"]) for pair in pairs)
    if any("policy" in sample for sample in samples):
        by = [pair["chosen"].get("policy", "current") for pair in pairs]
        names = sorted({sample.get("policy", "current") for sample in samples})
        told |= {f"chosen_from_{name}": by.count(name) / len(by) for name in names}
    return told


def within_prompt(prompts: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Lengths and rewards of all samples, each less its prompt's mean."""
    lengths, rewards = [], []
    for samples in ([s for s in prompt["samples"] if s["reward"] is not None] for prompt in prompts):
        if not samples:
            continue
        mean_length = fmean(len(s["token_ids"]) for s in samples)
        mean_reward = fmean(s["reward"] for s in samples)
        lengths += [len(s["token_ids"]) - mean_length for s in samples]
        rewards += [s["reward"] - mean_reward for s in samples]
    return lengths, rewards


def correlation(first: list[float], second: list[float]) -> float | None:
    """Pearson's r, or None where one side does not vary."""
    import numpy as np

    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


if __name__ == "__main__":
    main(run)
