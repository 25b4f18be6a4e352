"""Stage `data`: one clean, split, decontaminated data set out of many sources.

    python -m train.data SPEC.json

Guarantees: no prompt is in two splits, nor is one that was found to be like it; no training prompt is near one that policies
or reward models are tested on; the order of every file depends on the seed and the rows' ids alone; every row that was read
is either written or counted in card.json under the rule that dropped it. README.md is the card for people.

Order: structure and thresholds, pairs per prompt, limit, contamination, duplicates, weights, splits, repeats.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from core.artifacts import write_durably, write_rows
from core.errors import RecipeError
from core.fingerprint import file_sha256
from core.stage import Stage, main
from train.contamination import BenchmarkIndex, question_texts, report
from train.data_card import count_by_characters, describe_file, render, statistics, summary
from train.filters import DEFAULT_MAX_CHARACTERS, LAST_ROLE, scores_of, structural_fault, threshold_fault, token_fault
from train.mixing import at_most_per_prompt, in_seeded_order, repeated, weighted
from train.near_duplicates import PromptIndex
from train.readers import CONTAMINATES, READERS
from train.splits import Files, held_out_groups, prompt_text, remove_like_held_out, split, system_text, verify
from train.standard_rows import margin_of

NEAR_DUPLICATES = 0.8
EXAMPLES = 50
_ORDER = {"preferences": 0, "prompts": 1, "sft": 2}
_DUPLICATE = {"prompts": "duplicate_prompt", "preferences": "duplicate_pair", "sft": "duplicate_conversation"}
Row = dict[str, Any]


@dataclass
class Source:
    """What became of one source's rows."""

    name: str
    use: str
    reader: str
    filters: dict[str, Any] = field(default_factory=dict)
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    statistics: dict[str, float] = field(default_factory=dict)

    def card(self) -> dict[str, Any]:
        card = {"use": self.use, "reader": self.reader, "read": self.read, "dropped": dict(+self.dropped), "kept": self.kept}
        card |= {"filters": self.filters, "statistics": self.statistics}
        return card | ({"contaminates": CONTAMINATES[self.reader]} if self.reader in CONTAMINATES else {})


def run(stage: Stage) -> dict[str, Any]:
    """Write the six row files, card.json and README.md; return counts per file, drops per rule, and the card without ids."""
    settings, seed = stage.settings, stage.settings["seed"]
    count_tokens, unit = token_counter(stage)
    sources, rows = read_sources(stage, count_tokens)
    by_name = {source.name: source for source in sources}
    contamination = decontaminate(stage, by_name, rows)
    rows, alike = deduplicate(stage, by_name, rows)
    rows = weigh(settings["sources"], by_name, rows, seed)
    files = split_uses(rows, by_name, settings["splits"], seed)
    files, leaked = remove_like_held_out(files, alike["threshold"])
    alike["like_held_out"] = len(leaked)
    verify(files)
    close_books(rows, by_name, files, leaked, count_tokens)
    repeats = {described["name"]: described.get("repeat", 1) for described in settings["sources"]}
    described = {}
    for name, content in files.items():
        if name in ("sft.jsonl", "reward_train.jsonl", "gold_train.jsonl"):
            content = repeated(content, repeats, seed)
        write_rows(stage.work / name, [{key: value for key, value in row.items() if key != "group"} for row in content])
        described[name] = describe_file(content, file_sha256(stage.work / name))
    card = {
        "sources": {source.name: source.card() for source in sources},
        "files": described,
        "contamination": contamination,
        "near_duplicates": alike,
        "statistics_in": unit,
    }
    write_durably(stage.work / "card.json", json.dumps(card, indent=1, ensure_ascii=False))
    write_durably(stage.work / "README.md", render(card, "Data card"))
    drops = sum((source.dropped for source in sources), Counter())
    counts = {name.removesuffix(".jsonl"): about["rows"] for name, about in described.items()}
    return counts | {"dropped": dict(drops), "card": summary(card)}


def token_counter(stage: Stage) -> tuple[Callable[[str], int], str]:
    """(tokens of a text, what they are counted by): the input `tokenizer` where there is one, else characters."""
    if "tokenizer" not in stage.spec.inputs:
        return count_by_characters, "estimated as characters / 4"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stage.input("tokenizer"))
    by = f"counted by the tokenizer {stage.spec.inputs['tokenizer']['fingerprint'][:12]}"
    return lambda text: len(tokenizer(text, add_special_tokens=False).input_ids), by


def read_sources(stage: Stage, count_tokens: Callable[[str], int]) -> tuple[list[Source], list[Row]]:
    """All rows that pass their source's rules, in the order of the recipe, with "source" and an id unique over all.

    Raises RecipeError for a source that gives no row at all: it is used as what it is not.
    """
    sources, rows = [], []
    seed = stage.settings["seed"]
    for described in stage.settings["sources"]:
        source = Source(described["name"], described["use"], described["reader"], described.get("filters", {}))
        if source.reader not in READERS:
            raise RecipeError(f"Reader {source.reader!r} is not known; use one of {', '.join(READERS)}.")
        if source.name in (other.name for other in sources):
            raise RecipeError(f"Two sources are named {source.name!r}; rename one.")
        files = [stage.input(name) for name in described["files"]]
        read = READERS[source.reader](files, **described.get("options", {}))
        kept = [row for raw in read if (row := sound(raw, source, count_tokens))]
        if stage.settings.get("margins"):
            require_margins(kept, source)
        if not kept:
            why = ", ".join(f"{rule} {count}" for rule, count in source.dropped.most_common()) or "the files are empty"
            raise RecipeError(
                f"Source {source.name!r} has none left of {source.read} rows as {source.use} ({why}); correct its use or filters."
            )
        if (most := source.filters.get("max_pairs_per_prompt")) and source.use == "preferences":
            capped = at_most_per_prompt(kept, most, seed)
            source.dropped["pairs_per_prompt"] += len(kept) - len(capped)
            kept = capped
        limited = in_seeded_order(kept, seed, "limit")[: described.get("limit")]
        source.dropped["over_limit"] += len(kept) - len(limited)
        sources.append(source)
        rows += limited
        stage.progress(len(sources), len(stage.settings["sources"]), "sources")
    repeats = [name for name, count in Counter(row["id"] for row in rows).items() if count > 1]
    if repeats:
        raise RecipeError(
            f"{len(repeats)} ids are not unique (first: {repeats[0]}); give every row of that source an id of its own."
        )
    return sources, rows


def sound(raw: Row, source: Source, count_tokens: Callable[[str], int] = count_by_characters) -> Row | None:
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
        if (margin := margin_of(raw)) is not None:
            row["margin"] = margin
    else:
        messages = clean(raw["messages"] if "messages" in raw else raw["chosen"])
        if source.use == "prompts" and messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]  # of a pair or a demonstration: what its reply answers
        row["messages"] = messages
        if source.use == "prompts" and raw.get("answer") is not None:
            row["answer"] = raw["answer"]  # what is right, for rules that annotate (train.rules)
    filters = source.filters
    fault = structural_fault(row, filters.get("max_characters", DEFAULT_MAX_CHARACTERS), LAST_ROLE[source.use])
    fault = fault or threshold_fault(row, filters, scores_of(raw)) or token_fault(row, filters, count_tokens)
    if fault:
        source.dropped[fault] += 1
        return None
    return row


def require_margins(rows: list[Row], source: Source) -> None:
    """Raise RecipeError for a pair without margin, where a reward model is to be trained with them."""
    without = [row["id"] for row in rows if "chosen" in row and "margin" not in row]
    if without:
        raise RecipeError(
            f"{len(without)} of {len(rows)} pairs of {source.name} (first: {without[0]}) have neither a margin nor chosen_score "
            "and rejected_score; set reward.margin and gold_reward.margin to false, or leave the source out."
        )


def clean(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def decontaminate(stage: Stage, by_name: dict[str, Source], rows: list[Row]) -> dict[str, Any]:
    """Which rows hold questions of the inputs `questions/<benchmark>`, for the card.

    Setting `decontaminate`: true also removes the rows (in place), "report" keeps them, false does not look.
    """
    action = stage.settings.get("decontaminate", True)
    if action is False:
        return {"action": "off", "removed": False, "benchmarks": {}}
    remove, prefix = action is True, "questions/"
    given = {name.removeprefix(prefix): name for name in sorted(stage.spec.inputs) if name.startswith(prefix)}
    index = BenchmarkIndex({benchmark: question_texts(stage.input(name)) for benchmark, name in given.items()})
    found: dict[str, list[Row]] = {benchmark: [] for benchmark in given}
    for done, row in enumerate(rows, 1):
        for benchmark, questions in index.hits(row.get("messages") or row["chosen"]).items():
            found[benchmark].append({"source": row["source"], "id": row["id"], "questions": questions})
        stage.progress(done, len(rows), "rows checked against benchmarks")
    told = {}
    for benchmark, hits in found.items():
        sha256 = stage.spec.inputs[given[benchmark]]["fingerprint"]
        told[benchmark] = report(index.sizes[benchmark], hits, by_name) | {"removed": remove, "sha256": sha256}
    if remove:
        contaminated = {hit["id"] for hits in found.values() for hit in hits}
        for row in rows:
            if row["id"] in contaminated:
                by_name[row["source"]].dropped["contaminated"] += 1
        rows[:] = [row for row in rows if row["id"] not in contaminated]
    return {"action": "removed" if remove else "reported", "removed": remove, "benchmarks": told}


def deduplicate(stage: Stage, by_name: dict[str, Source], rows: list[Row]) -> tuple[list[Row], dict[str, Any]]:
    """Rows with the "group" of their prompt, repeated ones dropped; and what the card says of it.

    Pairs on one prompt (or nearly the same one) all stay, in one group, so that they land in one split; only an equal
    pair is dropped. A prompt of the pool that was seen anywhere before is dropped: answers are never sampled for
    a prompt that a reward model was fitted to, where its rewards would flatter. Of demonstrations only equal ones are dropped.
    """
    threshold = stage.settings.get("near_duplicates", NEAR_DUPLICATES)
    index = PromptIndex(threshold)
    ordered = sorted(rows, key=lambda row: _ORDER[by_name[row["source"]].use])  # stable
    numbers, first_of = [], {}
    for done, row in enumerate(ordered, 1):
        numbers.append(index.add(prompt_text(row), system_text(row)))
        first_of.setdefault(numbers[-1], row["id"])
        stage.progress(done, len(ordered), "prompts compared with each other")
    seen: set[Any] = set()
    near: Counter[str] = Counter()
    examples, kept = [], []
    for number, row in zip(numbers, ordered, strict=True):
        source, group = by_name[row["source"]], index.group(number)
        if group != number:
            near[source.name] += 1
            if len(examples) < EXAMPLES:
                examples.append({"id": row["id"], "like": first_of[group]})
        identities = [("group", group)] if source.use == "prompts" else [(source.use, group, *_texts(row))]
        if identities[0] in seen:
            source.dropped[_DUPLICATE[source.use]] += 1
            continue
        seen.update(identities + ([("group", group)] if source.use == "preferences" else []))
        kept.append(row | {"group": group})
    told = {"threshold": threshold, "prompts": len(first_of), "groups": index.groups, "rows": near.total()}
    return kept, told | {"by_source": dict(near), "examples": examples}


def _texts(row: Row) -> list[str]:
    """What makes a pair or a demonstration on one prompt the same as another."""
    replies = [row[side][-1] for side in ("chosen", "rejected")] if "chosen" in row else row["messages"]
    return [message["content"].strip() for message in replies]


def weigh(described: list[dict[str, Any]], by_name: dict[str, Source], rows: list[Row], seed: int) -> list[Row]:
    """Draw rows by the weights of the sources, use by use; what is left out counts as over_weight."""
    weights = {source["name"]: source["weight"] for source in described if source.get("weight") is not None}
    repeats = {source["name"]: source.get("repeat", 1) for source in described}
    kept: list[Row] = []
    for use in _ORDER:
        own = [row for row in rows if by_name[row["source"]].use == use]
        chosen = {name: weight for name, weight in weights.items() if by_name[name].use == use}
        drawn = weighted(own, chosen, repeats, seed) if chosen else own
        for name, count in (Counter(row["source"] for row in own) - Counter(row["source"] for row in drawn)).items():
            by_name[name].dropped["over_weight"] += count
        kept += drawn
    return kept


def split_uses(rows: list[Row], by_name: dict[str, Source], splits: dict[str, Any], seed: int) -> Files:
    """`split`, and the demonstrations: those of the sft sources where there are any, on no held-out prompt."""
    of_use = {use: [row for row in rows if by_name[row["source"]].use == use] for use in _ORDER}
    files = split(of_use["preferences"], of_use["prompts"], splits, seed)
    if any(source.use == "sft" for source in by_name.values()):
        groups = held_out_groups(files)
        kept = [row for row in of_use["sft"] if row["group"] not in groups]
        for row in of_use["sft"]:
            by_name[row["source"]].dropped["heldout_prompt"] += row["group"] in groups
        files["sft.jsonl"] = in_seeded_order(kept, seed, "sft")
    return files


def close_books(
    rows: list[Row], by_name: dict[str, Source], files: Files, leaked: set[str], count_tokens: Callable[[str], int]
) -> None:
    """Fill in `kept` and `statistics` of the sources; check that every row read is kept or counted as dropped."""
    for row in rows:
        by_name[row["source"]].dropped["like_held_out"] += row["id"] in leaked
    written = {row["id"] for content in files.values() for row in content}
    for source in by_name.values():
        own = [row for row in rows if row["source"] == source.name and row["id"] in written]
        source.kept, source.statistics = len(own), statistics(own, count_tokens)
        assert source.read == source.kept + source.dropped.total(), f"rows of {source.name} are not accounted for"


if __name__ == "__main__":
    main(run)
