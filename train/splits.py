"""Who trains on which prompt: the splits, the demonstrations, and the check that nothing held out is in training. Pure.

Rows carry "group", the number of their prompt and of those like it (`train.near_duplicates`), until they are written.
"""

from typing import Any

from core.errors import RecipeError
from core.seeds import derive_seed
from train.filters import context_text
from train.mixing import in_seeded_order, prompt_digest, prompt_of
from train.near_duplicates import near_any

Row = dict[str, Any]
Files = dict[str, list[Row]]
HELD_OUT = ("pairs_heldout.jsonl", "prompts_heldout.jsonl")
TRAINED_ON = ("sft.jsonl", "reward_train.jsonl", "gold_train.jsonl", "prompts_pool.jsonl")
MAX_HELD_OUT_GROUP = 16
"""Prompts from one template may form a large group. Held out, it would make accuracy a matter of that template."""


def split(preferences: list[Row], prompts: list[Row], splits: dict[str, Any], seed: int) -> Files:
    """File name -> rows. Preference prompts go to held-out, gold or reward training as whole groups; groups of more than
    MAX_HELD_OUT_GROUP pairs (or of more than are held out) are never held out.

    No pairs at all are no error (a mixture of prompts), nor are no prompts. Raises RecipeError when a split would otherwise
    be empty or cannot be filled.
    """
    if splits.get("sft_from", "chosen") != "chosen":
        raise RecipeError(
            f"splits.sft_from is {splits['sft_from']!r}; set chosen, and give other demonstrations as sources with use: sft."
        )
    groups: dict[int, list[Row]] = {}
    for row in preferences:
        groups.setdefault(row["group"], []).append(row)
    ordered = sorted(groups.values(), key=lambda group: (derive_seed(seed, "pairs", group[0]["id"]), group[0]["id"]))
    wanted = splits["heldout_pairs"]
    heldout, rest = [], []
    for group in ordered:
        taken = len(heldout) < wanted and len(group) <= max(wanted, MAX_HELD_OUT_GROUP)
        (heldout.extend if taken else rest.append)(group)
    gold_groups = round(splits["gold_fraction"] * len(rest))
    gold = [row for group in rest[:gold_groups] for row in group]
    reward = [row for group in rest[gold_groups:] for row in group]
    if preferences and (len(heldout) < wanted or not reward or (splits["gold_fraction"] > 0 and not gold)):
        raise RecipeError(
            f"{len(preferences)} pairs are too few for heldout_pairs {wanted} and gold_fraction "
            f"{splits['gold_fraction']}; lower them or add preference sources."
        )
    pool = in_seeded_order(prompts, seed, "pool")
    cut = splits["heldout_prompts"] if pool else 0
    if pool and len(pool) <= cut:
        raise RecipeError(f"{len(pool)} prompts are too few for heldout_prompts {cut}; lower it or add prompt sources.")
    return {
        "sft.jsonl": demonstrations(reward),
        "reward_train.jsonl": reward,
        "gold_train.jsonl": gold,
        "pairs_heldout.jsonl": heldout,
        "prompts_pool.jsonl": pool[cut:],
        "prompts_heldout.jsonl": pool[:cut],
    }


def demonstrations(pairs: list[Row]) -> list[Row]:
    """The chosen conversations, each once."""
    first: dict[str, Row] = {}
    for row in pairs:
        made = {"id": row["id"], "source": row["source"], "messages": row["chosen"]}
        first.setdefault(context_text(row["chosen"]), made | ({"group": row["group"]} if "group" in row else {}))
    return list(first.values())


def held_out_groups(files: Files) -> set[int]:
    return {row["group"] for name in HELD_OUT for row in files[name]}


def remove_like_held_out(files: Files, threshold: float | None) -> tuple[Files, set[str]]:
    """The files without training rows whose prompt is near a held-out one, and the ids of the rows that went.

    The groups are found by sampling (MinHash), this comparison is exact: what the sampling misses never leaks into what a
    policy or reward model is tested on.
    """
    if threshold is None:
        return files, set()
    held = list({prompt_text(row) for name in HELD_OUT for row in files[name]})
    rows = [row for name in TRAINED_ON for row in files[name]]
    texts = list(dict.fromkeys(prompt_text(row) for row in rows))
    near = {text for text, found in zip(texts, near_any(held, texts, threshold), strict=True) if found}
    kept = {name: [row for row in files[name] if prompt_text(row) not in near] for name in TRAINED_ON}
    emptied = [name for name in TRAINED_ON if files[name] and not kept[name]]
    if emptied:
        raise RecipeError(
            f"Every prompt of {emptied[0]} is like a held-out one; add sources whose prompts differ, or raise near_duplicates."
        )
    return files | kept, {row["id"] for row in rows if prompt_text(row) in near}


def verify(files: Files) -> None:
    """No prompt (normalised) and no group is in two splits: pairs and prompts among each other, demonstrations against what is
    held out. A failure is a defect of ours: the splits were made by other means."""
    unsplit = [name for name in files if name != "sft.jsonl"]
    compared = [(one, other) for i, one in enumerate(unsplit) for other in unsplit[i + 1 :]]
    compared += [("sft.jsonl", name) for name in HELD_OUT]
    for what, identity in (("prompts", prompt_digest), ("groups of like prompts", lambda row: row["group"])):
        found = {name: {identity(row) for row in rows} for name, rows in files.items()}
        for one, other in compared:
            shared = found[one] & found[other]
            assert not shared, f"{len(shared)} {what} are both in {one} and in {other}"


def prompt_text(row: Row) -> str:
    """What near-duplicates are told by: all messages that are answered but a system prompt, which many prompts may share."""
    return context_text([message for message in prompt_of(row) if message["role"] != "system"])


def system_text(row: Row) -> str:
    return context_text([message for message in prompt_of(row) if message["role"] == "system"])
