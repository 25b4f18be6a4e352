"""Stored answers and judgments as lmarena/arena-hard-auto reads them.

Rows carry the keys of both layouts where they differ only by name (v0.1: `question_id`; later: `uid`), so that either
version of `show_result.py` takes them; answers of v0.1 hold `choices` beside `messages`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import RecipeError
from core.fingerprint import digest
from evals.chat.style_control import Version, markdown_counts, token_counter
from evals.formats.saved import Stored, file_name, write_text


def write_answers(model: str, rows: Stored, folder: Path, version: Version) -> Path:
    """`model_answer/MODEL.jsonl`: the first sample of every question, with style metadata. `token_len` is in gpt-4o's tokens
    where tiktoken has its vocabulary here, else the policy's own count."""
    count, name, found = token_counter(), file_name(model), []
    for question in rows.questions:
        answer = rows.answers[question.id, 1, 0]
        tokens = count(answer.text) if count else answer.output_tokens
        style = (answer.detail or {}).get("style") or {"token_len": tokens, **markdown_counts(answer.text)}
        row: dict[str, Any] = {"uid": question.id, "ans_id": digest([model, question.id])[:22], "model": name}
        row["messages"] = [
            {"role": "user", "content": question.turns[0]},
            {"role": "assistant", "content": {"answer": answer.text}},
        ]
        row |= {"tstamp": 0, "metadata": style}
        if version == "v0.1":
            turns = [{"content": answer.text, "token_len": tokens}]
            row |= {"question_id": question.id, "answer_id": row["ans_id"], "model_id": name, "conv_metadata": style}
            row["choices"] = [{"index": 0, "turns": turns}]
        found.append(row)
    return write_text(folder / "model_answer" / f"{name}.jsonl", _lines(found))


def write_judgments(model: str, rows: Stored, folder: Path, version: Version, baseline: str) -> Path:
    """`model_judgment/JUDGE/MODEL.jsonl`: both games of the first sample of every question; a failed game's score is null.

    Raises RecipeError for verdicts without labels, which the reference has no place for.
    """
    name, judge, found = file_name(model), file_name(rows.judge), []
    for question in rows.questions:
        judgments = [rows.judgments.get((question.id, 1, 0, number)) for number in (1, 2)]
        if any(one is not None and one.value is not None and "label" not in (one.raw or {}) for one in judgments):
            raise RecipeError(
                f"{rows.judge} gave probabilities, and Arena-Hard's files hold labels; export an evaluation by an endpoint."
            )
        row = {"uid": question.id, "question_id": question.id, "category": question.category, "judge": judge, "model": name}
        row["baseline"] = question.data.get("baseline_model") or baseline
        found.append(row | {"games": [_game(one, version, rows) for one in judgments]})
    return write_text(folder / "model_judgment" / judge / f"{name}.jsonl", _lines(found))


def _game(judgment: Any, version: Version, rows: Stored) -> dict[str, Any]:
    raw = (judgment.raw if judgment is not None else None) or {}
    text = "\n".join(reply["text"] for reply in raw.get("replies", ())) or None
    score = raw.get("label") if judgment is not None and judgment.value is not None else None
    if version == "v0.1":
        return {"user_prompt": rows.user_prompt_of(judgment) or None, "judgment": text, "score": score}
    return {"score": score, "judgment": {"answer": text}, "prompt": list(rows.prompt_of(judgment)) or None}


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
