"""Held-out preference pairs as token ids: `python -m train.heldout SPEC.json`.

inputs: policy (for its tokenizer and template), data (`pairs_heldout.jsonl`); artifact: `pairs.jsonl` as the pairs stage
writes it, so that the reference stage and DPO read it like any other. No training sees these pairs: the implicit reward's
accuracy on them says whether what DPO learned from the reward model holds for people's preferences too.
"""

from typing import Any

from core.artifacts import read_rows, write_rows
from core.errors import MissingInput
from core.stage import Stage, main
from train.chat import load_tokenizer, render, turn_end_ids
from train.checkpoint import rows_file


def run(stage: Stage) -> dict[str, Any]:
    """Return counts. `settings.limit`: the first so many pairs, which are in random order already."""
    policy = stage.input("policy")
    tokenizer = load_tokenizer(policy)
    ends = set(turn_end_ids(tokenizer, policy))
    source = read_rows(rows_file(stage.input("data"), "pairs_heldout.jsonl"))[: stage.settings["limit"]]
    rows = [row for given in source if (row := tokenised(given, tokenizer, ends))]
    if not rows:
        raise MissingInput(
            f"None of {len(source)} held-out pairs differ in their last answer alone; set dpo.held_out_pairs to 0 to go without."
        )
    write_rows(stage.work / "pairs.jsonl", rows)
    return {"pairs": len(rows), "dropped": len(source) - len(rows)}


def tokenised(row: dict[str, Any], tokenizer: Any, ends: set[int]) -> dict[str, Any] | None:
    """A row of pairs.jsonl, or None where the conversations differ before their last answer, or an answer is empty."""
    messages = row["chosen"][:-1]
    if messages != row["rejected"][:-1]:
        return None
    prompt = render(tokenizer, messages, add_generation_prompt=True)[1]
    sides = {}
    for side in ("chosen", "rejected"):
        full = render(tokenizer, row[side], add_generation_prompt=False)[1]
        answer = full[len(prompt) :]
        # Up to the token that ends the turn: what the template writes after it, a newline often, is nobody's answer.
        end = next((k for k in range(len(answer) - 1, -1, -1) if answer[k] in ends), len(answer) - 1)
        if full[: len(prompt)] != prompt or end < 1:
            return None
        text = row[side][-1]["content"]
        sides[side] = {"text": text, "token_ids": answer[: end + 1], "finish_reason": "stop"}
    return {"prompt_id": row["id"], "messages": messages, "prompt_token_ids": prompt, **sides}


if __name__ == "__main__":
    main(run)
