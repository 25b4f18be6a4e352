"""Supervised fine-tuning on the best answer of each prompt: `python -m train.best_of_n SPEC.json` (or under torchrun).

What the baselines RAFT (arXiv 2304.06767) and best-of-n SFT train on instead of pairs.
inputs: policy (trained on), pairs (`pairs.jsonl`, of which the chosen answers are learned); artifact: `checkpoint/`.
The token ids of the pairs are used as they are, as in `train.dpo`: an answer ends with its turn-end token only if
generation stopped there, and nothing of the prompt is learned.
"""

from typing import Any

from core.artifacts import read_rows
from core.errors import MissingInput
from core.stage import Stage, main
from train.chat import load_tokenizer
from train.checkpoint import rows_file
from train.loop import finish, mean_of, train_and_save
from train.optimisation import prepare_process, require_training_space
from train.performance import training_speed
from train.sft import make_trainer
from train.spans import IGNORED

Rows = list[dict[str, Any]]


def chosen_rows(pairs: Rows, max_length: int) -> tuple[Rows, dict[str, int]]:
    """Rows {"input_ids", "labels", "length"} of the chosen answers, each answer of a prompt once, and counts.

    An answer is cut at `max_length` tokens with its prompt; one of which nothing is left is dropped.
    """
    examples: Rows = []
    counts = {"truncated": 0, "dropped": 0, "repeated": 0}
    seen: set[tuple[str, int]] = set()
    for pair in pairs:
        prompt, answer = pair["prompt_token_ids"], pair["chosen"]
        key = pair["prompt_id"], answer["sample"]
        if key in seen:
            counts["repeated"] += 1
            continue
        seen.add(key)
        ids = [*prompt, *answer["token_ids"]]
        labels = [IGNORED] * len(prompt) + answer["token_ids"]
        if len(prompt) >= max_length or not answer["token_ids"]:
            counts["dropped"] += 1
            continue
        counts["truncated"] += len(ids) > max_length
        examples.append({"input_ids": ids[:max_length], "labels": labels[:max_length], "length": min(len(ids), max_length)})
    return examples, counts


def run(stage: Stage) -> dict[str, Any]:
    """Return the training's metrics. Raises MissingInput where no answer fits."""
    settings, policy = stage.settings, stage.input("policy")
    require_training_space(stage, policy)
    prepare_process(settings)
    pairs = read_rows(rows_file(stage.input("pairs"), "pairs.jsonl"))
    examples, counts = chosen_rows(pairs, settings["max_length"])
    if not examples:
        raise MissingInput(f"None of {len(pairs)} chosen answers fits in {settings['max_length']} tokens; raise max_length.")
    trainer = make_trainer(stage, policy, load_tokenizer(policy), examples)
    trained = train_and_save(trainer, stage, policy)
    if not stage.is_main:
        return {}
    finish(stage)
    lengths = [row["length"] for row in examples]
    learned = sum(label != IGNORED for row in examples for label in row["labels"])
    return {
        "train_loss": mean_of(trained.history, "loss"),
        "examples": len(examples),
        "tokens": sum(lengths),
        "learned_tokens": learned,
        "steps": trained.history[-1]["step"],
        **counts,
        **training_speed(stage.work / "checkpoint", settings, lengths, learned, trained),
    }


if __name__ == "__main__":
    main(run)
