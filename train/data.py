"""Stage `data`: one clean, split, decontaminated data set out of many sources.

    python -m train.data SPEC.json

Guarantees: no prompt is in two splits; near-duplicate prompts are one prompt; the order of every file depends on the
seed and the rows' ids alone; every row that was read is either written or counted in card.json under the rule that
dropped it.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from core.artifacts import write_durably, write_rows
from core.errors import RecipeError
from core.fingerprint import file_sha256
from core.seeds import derive_seed
from core.stage import Stage, main
from train.contamination import QuestionIndex, question_texts, report
from train.filters import PromptIndex, context_text, structural_fault
from train.readers import CONTAMINATES, READERS

DEFAULT_MAX_CHARACTERS = 20_000
Row = dict[str, Any]


@dataclass
class Source:
    """What became of one source's rows."""

    name: str
    use: str
    reader: str
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    kept: int = 0

    def card(self) -> dict[str, Any]:
        card = {"use": self.use, "reader": self.reader, "read": self.read, "dropped": dict(self.dropped), "kept": self.kept}
        return card | ({"contaminates": CONTAMINATES[self.reader]} if self.reader in CONTAMINATES else {})


def run(stage: Stage) -> dict[str, Any]:
    """Write the six row files and card.json; return counts per file and drops per rule."""
    settings = stage.settings
    sources, rows = read_sources(stage)
    contamination = decontaminate(stage, sources, rows)
    preferences, prompts = deduplicate(sources, rows)
    files = split(preferences, prompts, settings["splits"], settings["seed"])
    for source in sources:
        source.kept = sum(row["source"] == source.name for row in [*preferences, *prompts])
    described = {}
    for name, content in files.items():
        write_rows(stage.work / name, content)
        by_source = dict(Counter(row["source"] for row in content if "source" in row))
        described[name] = {"rows": len(content), "sha256": file_sha256(stage.work / name), "by_source": by_source}
    card = {"sources": {s.name: s.card() for s in sources}, "files": described, "contamination": contamination}
    write_durably(stage.work / "card.json", json.dumps(card, indent=1, ensure_ascii=False, sort_keys=True))
    drops: Counter[str] = Counter()
    for source in sources:
        drops.update(source.dropped)
    return {name.removesuffix(".jsonl"): len(content) for name, content in files.items()} | {"dropped": dict(drops)}


def read_sources(stage: Stage) -> tuple[list[Source], list[Row]]:
    """All structurally sound rows in the order of the recipe, with "source" and an id that is unique over all."""
    sources, rows = [], []
    for described in stage.settings["sources"]:
        source = Source(described["name"], described["use"], described["reader"])
        if source.reader not in READERS:
            raise RecipeError(f"Reader {source.reader!r} is not known; use one of {', '.join(READERS)}.")
        if source.name in (other.name for other in sources):
            raise RecipeError(f"Two sources are named {source.name!r}; rename one.")
        files = [stage.input(name) for name in described["files"]]
        kept = [
            row for raw in READERS[source.reader](files, **described.get("options", {})) if (row := sound(raw, source, stage))
        ]
        kept = in_seeded_order(kept, stage.settings["seed"], "limit")[: described.get("limit")]
        source.dropped["over_limit"] += source.read - source.dropped.total() - len(kept)
        source.dropped += Counter()  # removes zero counts
        sources.append(source)
        rows += kept
        stage.progress(len(sources), len(stage.settings["sources"]), "sources")
    repeated = [name for name, count in Counter(row["id"] for row in rows).items() if count > 1]
    if repeated:
        raise RecipeError(
            f"{len(repeated)} ids are not unique (first: {repeated[0]}); give every row of that source an id of its own."
        )
    return sources, rows


def sound(raw: Row, source: Source, stage: Stage) -> Row | None:
    """The row in the form its use asks for, or None once its fault is counted."""
    source.read += 1
    if "dropped" in raw:
        source.dropped[raw["dropped"]] += 1
        return None
    if source.use == "preferences" and "chosen" not in raw:
        raise RecipeError(
            f"Source {source.name!r} holds prompts, not preferences; set its use to prompts or choose another reader."
        )
    row = {"id": f"{source.name}/{raw['id']}", "source": source.name}
    if source.use == "preferences":
        row |= {side: clean(raw[side]) for side in ("chosen", "rejected")}
    else:
        row["messages"] = clean(raw["messages"] if "messages" in raw else raw["chosen"][:-1])
        if source.use == "prompts" and raw.get("answer") is not None:
            row["answer"] = raw["answer"]  # what is right, for rules that annotate (train.rules)
    fault = structural_fault(row, stage.settings.get("max_characters", DEFAULT_MAX_CHARACTERS))
    if fault:
        source.dropped[fault] += 1
        return None
    return row


def clean(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def prompt_of(row: Row) -> list[dict[str, str]]:
    return row["messages"] if "messages" in row else row["chosen"][:-1]


def decontaminate(stage: Stage, sources: list[Source], rows: list[Row]) -> dict[str, Any]:
    """Report which rows hold questions of the inputs `questions/<benchmark>`; remove them (in place) if settings say so."""
    remove = stage.settings.get("decontaminate", True)
    counts = {source.name: 0 for source in sources} | Counter(row["source"] for row in rows)
    by_name = {source.name: source for source in sources}
    told: dict[str, Any] = {"removed": remove, "benchmarks": {}}
    contaminated: set[str] = set()
    for name in sorted(name for name in stage.spec.inputs if name.startswith("questions/")):
        index = QuestionIndex(question_texts(stage.input(name)))
        found = [(row, index.hits(prompt_of(row))) for row in rows]
        hits = [{"source": row["source"], "id": row["id"], "questions": questions} for row, questions in found if questions]
        told["benchmarks"][name.removeprefix("questions/")] = report(index, hits, counts)
        contaminated |= {hit["id"] for hit in hits}
    if remove:
        for row in rows:
            if row["id"] in contaminated:
                by_name[row["source"]].dropped["contaminated"] += 1
        rows[:] = [row for row in rows if row["id"] not in contaminated]
    return told


def deduplicate(sources: list[Source], rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Preference rows, with the "group" of their prompt, and prompt rows whose prompt is new.

    Pairs on one prompt (or nearly the same one) all stay, in one group, so that they land in one split; only an equal
    pair is dropped. A prompt of the pool that was seen anywhere before is dropped: answers are never sampled for
    a prompt that a reward model was fitted to, where its rewards would flatter.
    """
    by_name = {source.name: source for source in sources}
    index, taken, seen_pairs = PromptIndex(), set(), set()
    preferences, prompts = [], []
    for row in sorted(rows, key=lambda row: by_name[row["source"]].use != "preferences"):  # stable: preferences first
        group = index.add(context_text(prompt_of(row)))
        if "messages" in row:
            if group in taken:
                by_name[row["source"]].dropped["duplicate_prompt"] += 1
                continue
            prompts.append(row)
        else:
            texts = (group, row["chosen"][-1]["content"].strip(), row["rejected"][-1]["content"].strip())
            if texts in seen_pairs:
                by_name[row["source"]].dropped["duplicate_pair"] += 1
                continue
            seen_pairs.add(texts)
            preferences.append(row | {"group": group})
        taken.add(group)
    return preferences, prompts


def split(preferences: list[Row], prompts: list[Row], splits: dict[str, Any], seed: int) -> dict[str, list[Row]]:
    """File name -> rows. Preference prompts go to held-out, gold or reward training as whole groups.

    Raises RecipeError when a split would be empty or cannot be filled.
    """
    if splits.get("sft_from", "chosen") != "chosen":
        raise RecipeError(f"splits.sft_from is {splits['sft_from']!r}; the only source of demonstrations is chosen.")
    groups: dict[int, list[Row]] = {}
    for row in preferences:
        groups.setdefault(row["group"], []).append({key: value for key, value in row.items() if key != "group"})
    ordered = sorted(groups.values(), key=lambda group: (derive_seed(seed, "pairs", group[0]["id"]), group[0]["id"]))
    heldout: list[Row] = []
    while ordered and len(heldout) < splits["heldout_pairs"]:
        heldout += ordered.pop(0)
    gold_groups = round(splits["gold_fraction"] * len(ordered))
    gold = [row for group in ordered[:gold_groups] for row in group]
    reward = [row for group in ordered[gold_groups:] for row in group]
    pool = in_seeded_order(prompts, seed, "pool")
    cut = splits["heldout_prompts"]
    if len(heldout) < splits["heldout_pairs"] or not reward or (splits["gold_fraction"] > 0 and not gold):
        raise RecipeError(
            f"{len(preferences)} pairs are too few for heldout_pairs {splits['heldout_pairs']} and gold_fraction "
            f"{splits['gold_fraction']}; lower them or add preference sources."
        )
    if len(pool) <= cut:
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
        first.setdefault(context_text(row["chosen"]), {"id": row["id"], "messages": row["chosen"]})
    return list(first.values())


def in_seeded_order(rows: list[Row], seed: int, purpose: str) -> list[Row]:
    """Shuffled by a hash of each id: a row's place relative to another never depends on the rest."""
    return sorted(rows, key=lambda row: (derive_seed(seed, purpose, row["id"]), row["id"]))


if __name__ == "__main__":
    main(run)
