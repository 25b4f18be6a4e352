"""Stage `annotate[t]`: score every sampled answer, with one scorer or with several combined.

    python -m train.annotate SPEC.json

One shard of rewards per shard of generations, under the same name; a shard that exists is done. Several scorers (settings
`members`) run one after the other, each with shards of its own; at the end their rewards are standardised over all
samples and combined (`train.ensemble`), the raw ones kept beside. A sample that a scorer could not judge has the reward
null and is never paired.
"""

import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from core.artifacts import read_rows, write_rows
from core.errors import HarnessError
from core.stage import Spec, Stage, main
from train.annotators import kind_of, make_annotator, release
from train.ensemble import combine
from train.performance import Work, combined_speed, scoring_speed
from train.shards import drop_surplus, finished_shard, shard_files
from train.statistics import spearman
from train.workers import layout, run_workers

MEMBERS = "members"
"""Folder of what each scorer gave, until they are combined."""


def run(stage: Stage) -> dict[str, Any]:
    """Return mean and standard deviation of the rewards, and counts: samples, failed (null), truncated, what the scorers report.

    Raises HarnessError when no sample has a reward.
    """
    settings = stage.settings
    shards = shard_files(stage.input("generations"))
    drop_surplus(stage.work, len(shards))
    ids = [[row["prompt_id"] for row in read_rows(shard)] for shard in shards]
    members = members_of(settings)
    alone = len(members) == 1
    folders = [stage.work if alone else stage.work / MEMBERS / member["name"] for member in members]
    missing = [i for i, shard in enumerate(shards) if finished_shard(stage.work / shard.name, ids[i]) is None]
    if missing and not alone:  # an ensemble is standardised over all samples
        missing = list(range(len(shards)))
    counts: dict[str, int] = {}
    scoring: list[dict[str, Any]] = []
    at_once = 1
    finished = 0

    def done(added: dict[str, int] | None) -> None:
        nonlocal finished
        finished += added is None
        if added and "scoring" in added:
            scoring.append(added.pop("scoring"))
        for name, count in (added or {}).items():
            counts[name] = counts.get(name, 0) + count
        stage.progress(finished, len(shards) * len(members), "shards")

    for member, folder in zip(members, folders, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [i for i in missing if finished_shard(folder / shards[i].name, ids[i]) is None]
        finished += len(shards) - len(jobs)
        processes = stage.spec.resources.get("processes", 1)
        if jobs and processes > 1 and kind_of(member["scorer"]) == "scorer":
            workers, at_once = layout(processes, 1, stage.spec.resources.get("threads")), min(processes, len(jobs))
            run_workers(annotate_shards, (stage.spec, member, folder), jobs, workers, done)
        elif jobs:
            for added in annotate_shards(stage.spec, member, folder, iter(jobs)):
                done(added)
    if missing and not alone:
        write_combined(stage.work, members, folders, [shard.name for shard in shards], settings["combine"])
    shutil.rmtree(stage.work / MEMBERS, ignore_errors=True)
    rows = [row for shard in shards for row in read_rows(stage.work / shard.name)]
    return describe(rows) | counts | combined_speed(scoring, at_once)


def members_of(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The scorers of a stage, see `train.annotators`; one alone has the name of its kind."""
    if "members" in settings:
        return settings["members"]
    return [{"name": settings["scorer"], "input": "scorer"} | settings]


def annotate_shards(spec: Spec, member: dict[str, Any], folder: Path, jobs: Iterator[int]) -> Iterator[dict[str, Any] | None]:
    """Write the shards with these numbers: None after each, what the scorer counted at the end. It is loaded once.

    A scorer that counts its `work` (`train.performance.Work`) is reported on as `scoring`.
    """
    shards = shard_files(Path(spec.inputs["generations"]["path"]))
    annotator = make_annotator(spec, member)
    scorer = getattr(annotator, "scorer", None)
    if hasattr(scorer, "work"):
        scorer.work = Work()  # without the checks at its loading
    for number in jobs:
        write_rows(folder / shards[number].name, annotator.annotate(read_rows(shards[number])))
        yield None
    counts: dict[str, Any] = dict(annotator.counts)
    if hasattr(scorer, "work") and scorer.work.seconds:
        counts["scoring"] = scoring_speed(scorer.work, Path(spec.inputs[member["input"]]["path"]), str(scorer.model.dtype))
    del scorer
    release(annotator)
    yield counts


def write_combined(work: Path, members: list[dict[str, Any]], folders: list[Path], names: list[str], how: str) -> None:
    """The shards of an ensemble: combined rewards, and under `members` each scorer's raw ones."""
    rows = [[[*read_rows(folder / name)] for name in names] for folder in folders]
    flat = [[reward for shard in of_member for row in shard for reward in row["rewards"]] for of_member in rows]
    combined = iter(combine(flat, how))
    for index, name in enumerate(names):
        shard = []
        for of_prompt in zip(*(of_member[index] for of_member in rows), strict=True):
            raw = {member["name"]: row["rewards"] for member, row in zip(members, of_prompt, strict=True)}
            rewards = [next(combined) for _ in of_prompt[0]["rewards"]]
            truncated = sum(row["truncated"] for row in of_prompt)
            shard.append({"prompt_id": of_prompt[0]["prompt_id"], "rewards": rewards, "truncated": truncated, "members": raw})
        write_rows(work / name, shard)


def describe(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Metrics of all annotation rows; of an ensemble also each member's mean and spread and the rank correlation of every two."""
    rewards = [reward for row in rows for reward in row["rewards"]]
    known = [reward for reward in rewards if reward is not None]
    if rewards and not known:
        raise HarnessError(
            "None of the samples has a reward; a rule may need prompts with an `answer`, a judge's replies must hold a verdict."
        )
    metrics: dict[str, Any] = {
        "reward_mean": fmean(known) if known else None,
        "reward_std": pstdev(known) if known else None,
        "samples": len(rewards),
        "failed": len(rewards) - len(known),
        "truncated": sum(row["truncated"] for row in rows),
    }
    consistencies = [row["consistency"] for row in rows if row.get("comparisons")]
    if consistencies:
        metrics["consistency"] = fmean(consistencies)
    if rows and "members" in rows[0]:
        metrics["members"] = of_members(rows)
    return metrics


def of_members(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """name -> reward_mean, reward_std, failed (raw units), and Spearman's correlation with each other member."""
    raw = {name: [reward for row in rows for reward in row["members"][name]] for name in rows[0]["members"]}
    found: dict[str, Any] = {}
    for name, rewards in raw.items():
        known = [reward for reward in rewards if reward is not None]
        spread = {"reward_mean": fmean(known), "reward_std": pstdev(known)} if known else {}
        found[name] = spread | {"failed": len(rewards) - len(known), "rank_correlation": {}}
    for one, other in combinations(raw, 2):
        both = [(a, b) for a, b in zip(raw[one], raw[other], strict=True) if a is not None and b is not None]
        r = spearman([a for a, _ in both], [b for _, b in both]) if both else 0.0
        found[one]["rank_correlation"][other] = found[other]["rank_correlation"][one] = r
    return found


if __name__ == "__main__":
    main(run)
