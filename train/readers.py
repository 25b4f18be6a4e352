"""Readers: one small function per source format, all giving the same rows.

preference rows {"id", "chosen": [messages], "rejected": [messages]}, with "chosen_score" and "rejected_score", or "margin",
where the source has them; prompt and demonstration rows {"id", "messages"}, a prompt with its "answer" where the source knows
what is right. A source row that holds no preference (a tie, one reply only) becomes {"dropped": rule}, so that it is counted and
not lost. A reader is called with the source's files and options; adding one is a function here and a line in READERS.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from core.errors import MissingInput
from train.chat import Message
from train.demonstrations import COLUMNS as DEMONSTRATION
from train.demonstrations import demonstrations_of
from train.standard_rows import COLUMNS, standard_row

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
    """Rows of local files, in standard form or one of trl's (`train.standard_rows`)."""
    for number, (place, row) in enumerate((str(file), row) for file in files for row in read_objects(file)):
        yield standard_row(row, number, place)


def standard_parquet(files: list[Path]) -> Iterator[Row]:
    """The same as a Parquet table; columns that a row lacks are null."""
    for number, row in enumerate(_parquet_rows(files, [], COLUMNS)):
        yield standard_row({key: value for key, value in row.items() if value is not None}, number, str(files[0]))


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


_SHAREGPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "system": "system"}


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


def ultrafeedback(files: list[Path]) -> Iterator[Row]:
    """UltraFeedback as published (openbmb): every two completions, by the mean of their aspect ratings (paper, App. B.1).

    The mean of the fine-grained ratings, not `overall_score`; equal means are dropped, unrated completions too.
    """
    for number, row in enumerate(row for file in files for row in read_objects(file)):
        rated = []
        for completion in row["completions"]:
            ratings = [_rating(aspect.get("Rating")) for aspect in completion["annotations"].values() if isinstance(aspect, dict)]
            if ratings and None not in ratings:
                rated.append((sum(ratings) / len(ratings), completion["response"]))
        yield from ranked_pairs(str(row.get("id", number)), [user(row["instruction"])], rated)


def _rating(value: Any) -> float | None:
    """UltraFeedback writes ratings as text, and `N/A` where GPT-4 gave none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def helpsteer(files: list[Path], keys: tuple[str, ...] = ("helpfulness", "correctness")) -> Iterator[Row]:
    """HelpSteer as published: every two responses to one prompt, by the mean of `keys`; equal means are dropped.

    The two keys are those of the authors' first description (RLHFlow.github.io, 2024-03-23).
    """
    responses: dict[str, list[tuple[float, str]]] = {}
    for row in (row for file in files for row in read_objects(file)):
        score = sum(float(row[key]) for key in keys) / len(keys)
        responses.setdefault(row["prompt"], []).append((score, row["response"]))
    for number, (prompt, rated) in enumerate(responses.items()):
        yield from ranked_pairs(str(number), [user(prompt)], rated)


def shp(files: list[Path]) -> Iterator[Row]:
    """Stanford Human Preferences as published: two comments on one post; `labels` 1 is for A; scores are votes.

    The paper keeps ratios above 2 and at most 5 pairs per prompt: the filters min_ratio and max_pairs_per_prompt.
    """
    for number, row in enumerate(row for file in files for row in read_objects(file)):
        better, worse = ("A", "B") if row["labels"] == 1 else ("B", "A")
        texts = row[f"human_ref_{better}"], row[f"human_ref_{worse}"]
        scores = {"chosen_score": row[f"score_{better}"], "rejected_score": row[f"score_{worse}"]}
        yield pair(f"{row['post_id']}-{number}", [user(row["history"])], *texts) | scores


def llmbar(files: list[Path]) -> Iterator[Row]:
    """LLMBar (princeton-nlp): one instruction, two outputs, `label` 1 or 2 for the better one. Gold pairs for testing judges
    and reward models (see CONTAMINATES)."""
    for number, row in enumerate(row for file in files for row in read_objects(file)):
        better, worse = (1, 2) if row["label"] == 1 else (2, 1)
        yield pair(str(number), [user(row["input"])], row[f"output_{better}"], row[f"output_{worse}"])


_TRUTH = re.compile(r"Q: (.*?)\nA: (.*)\nTrue:", re.DOTALL)


def truthfulqa_truth(files: list[Path]) -> Iterator[Row]:
    """TruthfulQA's labels of answers (`finetune_truth`): each true answer of a question with one false one, in file order.

    Answers that have no counterpart are dropped as unpaired. All of it is TruthfulQA's own questions (see CONTAMINATES).
    """
    answers: dict[str, dict[bool, list[str]]] = {}
    for row in (row for file in files for row in read_objects(file)):
        matched = _TRUTH.fullmatch(row["prompt"].strip())
        if matched is None:
            raise MissingInput(f"{files[0]} has a prompt without Q, A, True; give TruthfulQA's finetune_truth file.")
        answers.setdefault(matched[1], {True: [], False: []})[row["completion"].strip() == "yes"].append(matched[2])
    for number, (question, rated) in enumerate(answers.items()):
        # Two labels make one pair; what is left over on either side has none.
        paired = list(zip(rated[True], rated[False], strict=False))
        yield from ({"dropped": "unpaired"} for _ in range(abs(len(rated[True]) - len(rated[False]))))
        yield from (pair(f"{number}-{i}", [user(question)], *texts) for i, texts in enumerate(paired))


def ranked_pairs(identity: str, context: list[Message], rated: list[tuple[float, str]]) -> Iterator[Row]:
    """Every two of (score, reply), the higher score chosen; equal scores as dropped ties."""
    if len(rated) < 2:
        yield {"dropped": "fewer_than_two_rated_replies"}
    for (i, one), (j, other) in combinations(enumerate(rated), 2):
        if one[0] == other[0]:
            yield {"dropped": "tie"}
            continue
        better, worse = (one, other) if one[0] > other[0] else (other, one)
        yield pair(f"{identity}-{i}-{j}", context, better[1], worse[1]) | {"chosen_score": better[0], "rejected_score": worse[0]}


def alpaca_answers(files: list[Path]) -> Iterator[Row]:
    """Demonstrations of Alpaca-like files: instruction, optional input, output."""
    for number, row in enumerate(row for file in files for row in read_objects(file)):
        answer = {"role": "assistant", "content": row["output"]}
        yield {"id": str(number), "messages": [user(with_input(row["instruction"], row.get("input", ""))), answer]}


def preference_parquet(files: list[Path]) -> Iterator[Row]:
    """Parquet tables of the RLHFlow standard: columns chosen and rejected, each a list of {role, content}; scores and
    margin if there."""
    rows = _parquet_rows(files, ["chosen", "rejected"], ["chosen_score", "rejected_score", "margin"])
    for number, row in enumerate(rows):
        sides = {side: plain_messages(row.pop(side)) for side in ("chosen", "rejected")}
        yield {"id": str(number)} | sides | row


def prompt_parquet(files: list[Path]) -> Iterator[Row]:
    """Parquet tables of RLHFlow's prompt collections: column context_messages, a list of {role, content}."""
    for number, row in enumerate(_parquet_rows(files, ["context_messages"])):
        yield {"id": str(number), "messages": plain_messages(row["context_messages"])}


def messages_parquet(files: list[Path]) -> Iterator[Row]:
    """Parquet tables of demonstrations: the column messages or conversations, a list of {role, content} or of ShareGPT's
    {from, value}."""
    for number, row in enumerate(_parquet_rows(files, [], ["messages", "conversations"])):
        found = row.get("messages") or row.get("conversations") or []
        yield {"id": str(number), "messages": [_chat_message(message) for message in found]}


def demonstrations(files: list[Path]) -> Iterator[Row]:
    """Demonstrations in Parquet or JSON files, in any of the forms of `train.demonstrations`."""
    yield from demonstrations_of(
        (str(file), row)
        for file in files
        for row in (_parquet_rows([file], [], DEMONSTRATION) if file.suffix == ".parquet" else read_objects(file))
    )


def _chat_message(message: dict[str, Any]) -> Message:
    if "role" in message:
        return {"role": message["role"], "content": message["content"]}
    return {"role": _SHAREGPT.get(message["from"], message["from"]), "content": message["value"]}


def _parquet_rows(files: list[Path], columns: list[str], optional: Sequence[str] = ()) -> Iterator[Row]:
    """Rows in file order, a batch in memory at a time. Raises MissingInput when a column is not there."""
    import pyarrow.parquet as parquet

    for file in files:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        absent = set(columns) - set(names)
        taken = [*columns, *(name for name in optional if name in names)]
        if absent or not taken:
            wanted = ", ".join(sorted(absent)) or " or ".join(optional)
            raise MissingInput(f"{file} has no column {wanted}; give a file of the data set's own form.")
        for batch in table.iter_batches(columns=taken):
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
    "parquet": standard_parquet,
    "starter_preferences": standard,
    "starter_prompts": standard,
    "hh_rlhf": hh_rlhf,
    "tulu_human_pairs": tulu_human_pairs,
    "oasst_tree": oasst_tree,
    "dpo_en_demo": dpo_en_demo,
    "alpaca": alpaca,
    "alpaca_answers": alpaca_answers,
    "code_alpaca": alpaca,
    "self_instruct_seed": self_instruct,
    "self_instruct_user": self_instruct,
    "alpaca_eval_pairs": alpaca_eval_pairs,
    "preference_parquet": preference_parquet,
    "prompt_parquet": prompt_parquet,
    "messages_parquet": messages_parquet,
    "demonstrations": demonstrations,
    "ultrafeedback": ultrafeedback,
    "helpsteer": helpsteer,
    "shp": shp,
    "llmbar": llmbar,
    "truthfulqa_truth": truthfulqa_truth,
}

CONTAMINATES = {
    "alpaca_eval_pairs": "alpaca_eval",
    "llmbar": "reward-bench (LLMBar)",
    "truthfulqa_truth": "truthful_qa",
}
"""reader -> the benchmark whose own questions it trains on."""
