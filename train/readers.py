"""Readers: one small function per source format, all giving the same rows.

preference rows {"id", "chosen": [messages], "rejected": [messages]}; prompt rows {"id", "messages"}. A source row that
holds no preference (a tie, one reply only) becomes {"dropped": rule}, so that it is counted and not lost. A reader is
called with the source's files and options; adding one is a function here and a line in READERS.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from core.errors import MissingInput
from train.chat import Message

Row = dict[str, Any]


def read_objects(path: Path) -> list[Any]:
    """Objects of a .jsonl or .json (list) file, gzipped or not. Raises MissingInput when it is neither."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = raw.decode("utf-8")
    try:
        if text.lstrip().startswith("["):
            return json.loads(text)
        # Not splitlines(): it also splits at U+2028, which JSON strings may hold.
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except json.JSONDecodeError as error:
        raise MissingInput(
            f"{path} is neither JSON Lines nor a JSON list ({error}); give a file in one of these formats."
        ) from error


def standard(files: list[Path]) -> Iterator[Row]:
    """Rows that are in the standard form already; a missing id becomes the row number. A prompt may have its `answer`."""
    kept = ("messages", "chosen", "rejected", "answer")
    for number, row in enumerate(row for file in files for row in read_objects(file)):
        yield {"id": str(row.get("id", number))} | {key: row[key] for key in kept if key in row}


_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def hh_rlhf(files: list[Path]) -> Iterator[Row]:
    """Anthropic HH-RLHF: whole dialogues as text with `Human:` and `Assistant:` turns."""
    for number, row in enumerate(row for file in files for row in read_objects(file)):
        yield {"id": str(number), "chosen": hh_messages(row["chosen"]), "rejected": hh_messages(row["rejected"])}


def hh_messages(dialogue: str) -> list[Message]:
    parts = _HH_TURN.split(dialogue)
    names = {"Human": "user", "Assistant": "assistant"}
    return [{"role": names[name], "content": text.strip()} for name, text in zip(parts[1::2], parts[2::2], strict=True)]


def tulu_human_pairs(files: list[Path]) -> Iterator[Row]:
    """Human judgments of two models' completions (Tulu 1): `preference` is a-is-better, b-is-slightly-better, tie, ..."""
    for row in (row for file in files for row in read_objects(file)):
        if row["preference"] == "tie":
            yield {"dropped": "tie"}
            continue
        chosen, rejected = ("a", "b") if row["preference"].startswith("a-") else ("b", "a")
        context = [user(row["prompt"].strip())]
        yield pair(str(row["id"]), context, row[f"completion_{chosen}"], row[f"completion_{rejected}"])


def oasst_tree(files: list[Path]) -> Iterator[Row]:
    """OpenAssistant trees: every two ranked replies to one message, lower rank chosen."""
    for tree in (row for file in files for row in read_objects(file)):
        yield from _walk_tree(tree["prompt"], [])


def _walk_tree(node: dict[str, Any], context: list[Message]) -> Iterator[Row]:
    context = [*context, {"role": "user" if node["role"] == "prompter" else "assistant", "content": node["text"]}]
    replies = [reply for reply in node["replies"] if not reply.get("deleted")]
    if node["role"] == "prompter":
        ranked = sorted((reply for reply in replies if reply.get("rank") is not None), key=lambda reply: reply["rank"])
        if replies and len(ranked) < 2:
            yield {"dropped": "fewer_than_two_ranked_replies"}
        for better, worse in combinations(ranked, 2):
            if better["rank"] == worse["rank"]:
                yield {"dropped": "tie"}
                continue
            yield pair(f"{better['message_id']}-{worse['message_id']}", context, better["text"], worse["text"])
    for reply in replies:
        yield from _walk_tree(reply, context)


_SHAREGPT = {"human": "user", "gpt": "assistant", "system": "system"}


def dpo_en_demo(files: list[Path]) -> Iterator[Row]:
    """ShareGPT-like conversations with one chosen and one rejected reply (LLaMA-Factory's dpo_en_demo)."""
    for number, row in enumerate(row for file in files for row in read_objects(file)):
        context = [{"role": _SHAREGPT[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
        yield pair(str(number), context, row["chosen"]["value"], row["rejected"]["value"])


def alpaca(files: list[Path]) -> Iterator[Row]:
    """Prompts of Alpaca-like files: instruction and optional input (alpaca_en_demo, CodeAlpaca)."""
    for number, row in enumerate(row for file in files for row in read_objects(file)):
        yield {"id": str(number), "messages": [user(with_input(row["instruction"], row.get("input", "")))]}


def self_instruct(files: list[Path]) -> Iterator[Row]:
    """Prompts of self-instruct files: instruction and the input of the first instance (seed tasks, user-oriented tasks)."""
    for row in (row for file in files for row in read_objects(file)):
        yield {"id": row["id"], "messages": [user(with_input(row["instruction"], row["instances"][0]["input"]))]}


def alpaca_eval_pairs(files: list[Path], annotator: str = "weighted_alpaca_eval_gpt4_turbo") -> Iterator[Row]:
    """GPT-4 judgments on AlpacaEval's own prompts: training on them contaminates AlpacaEval (see CONTAMINATES).

    `files`: prompts, outputs, annotations, in this order. A preference above 1.5 is for the second model.
    """
    prompts = {row["p"]: row["instruction"] for row in read_objects(files[0])}
    outputs = {(row["p"], row["generator"]): row["output"] for row in read_objects(files[1])}
    for row in read_objects(files[2]):
        if row["annotator"] != annotator:
            continue
        if row["preference"] == 1.5:
            yield {"dropped": "tie"}
            continue
        chosen, rejected = ("g2", "g1") if row["preference"] > 1.5 else ("g1", "g2")
        texts = [outputs.get((row["p"], row[side])) for side in (chosen, rejected)]
        if None in texts:
            yield {"dropped": "output_not_given"}
            continue
        yield pair(f"{row['p']}-{row['g1']}-{row['g2']}", [user(prompts[row["p"]])], *texts)


def preference_parquet(files: list[Path]) -> Iterator[Row]:
    """Parquet tables of the RLHFlow standard: columns chosen and rejected, each a list of {role, content}."""
    for number, row in enumerate(_parquet_rows(files, ["chosen", "rejected"])):
        yield {"id": str(number), "chosen": plain_messages(row["chosen"]), "rejected": plain_messages(row["rejected"])}


def prompt_parquet(files: list[Path]) -> Iterator[Row]:
    """Parquet tables of RLHFlow's prompt collections: column context_messages, a list of {role, content}."""
    for number, row in enumerate(_parquet_rows(files, ["context_messages"])):
        yield {"id": str(number), "messages": plain_messages(row["context_messages"])}


def _parquet_rows(files: list[Path], columns: list[str]) -> Iterator[Row]:
    """Rows in file order, a batch in memory at a time. Raises MissingInput when a column is not there."""
    import pyarrow.parquet as parquet

    for file in files:
        table = parquet.ParquetFile(file)
        absent = set(columns) - set(table.schema_arrow.names)
        if absent:
            raise MissingInput(f"{file} has no column {', '.join(sorted(absent))}; give a file of the data set's own form.")
        for batch in table.iter_batches(columns=columns):
            yield from batch.to_pylist()


def plain_messages(messages: list[dict[str, Any]]) -> list[Message]:
    """Role and content alone: the tables carry further fields in places."""
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def with_input(instruction: str, extra: str) -> str:
    return f"{instruction}\n\n{extra}" if extra.strip() else instruction


def pair(identity: str, context: list[Message], chosen: str, rejected: str) -> Row:
    """A preference row with a shared context."""
    sides = {"chosen": chosen, "rejected": rejected}
    return {"id": identity} | {side: [*context, {"role": "assistant", "content": text}] for side, text in sides.items()}


READERS: dict[str, Callable[..., Iterator[Row]]] = {
    "jsonl": standard,
    "starter_preferences": standard,
    "starter_prompts": standard,
    "hh_rlhf": hh_rlhf,
    "tulu_human_pairs": tulu_human_pairs,
    "oasst_tree": oasst_tree,
    "dpo_en_demo": dpo_en_demo,
    "alpaca": alpaca,
    "code_alpaca": alpaca,
    "self_instruct_seed": self_instruct,
    "self_instruct_user": self_instruct,
    "alpaca_eval_pairs": alpaca_eval_pairs,
    "preference_parquet": preference_parquet,
    "prompt_parquet": prompt_parquet,
}

CONTAMINATES = {"alpaca_eval_pairs": "alpaca_eval"}
"""reader -> the benchmark whose own questions it trains on."""
