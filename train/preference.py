"""Pairwise preference model: `python -m train.preference SPEC.json` (or under torchrun).

inputs: policy (the checkpoint to start from), data (`settings.file` and `pairs_heldout.jsonl`); artifact: `checkpoint/`,
a causal language model that answers A or B to the turn of `train.preference_prompt`, with `self_test.json` beside its
weights; `heldout.jsonl`, the probabilities of each held-out pair; `reliability.json`, the bins behind the calibration
error. The loss is the cross-entropy of the one label token (RLHF Workflow, arXiv 2405.07863, section 2.2), mean over
the global batch. Held-out figures are those of the saved checkpoint, run in float32 by `train.preference_model`, both
orders averaged.

`settings.orders`: `random` shows each pair once, in an order drawn from the seed and the pair's id; `both` shows it in
either, twice the work. Pairs whose responses do not fit into max_length with the template are dropped and counted; a
context that does not fit loses its beginning.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from core.artifacts import read_rows, write_durably, write_rows
from core.errors import MissingInput, RecipeError
from core.seeds import derive_seed
from core.stage import Stage, main
from train.calibration import reliability
from train.chat import load_tokenizer
from train.checkpoint import rows_file
from train.loop import finish, mean_of, train_and_save
from train.lora import lora_config
from train.optimisation import load_dtype, prepare_process, require_training_space, training_arguments
from train.performance import training_speed
from train.preference_metrics import heldout_metrics, position_warning
from train.preference_model import PairwisePreferenceModel, Question
from train.preference_prompt import encode, label_ids
from train.preference_self_test import write_self_test
from train.reward import require_apart
from train.reward_metrics import chance_warning
from train.spans import IGNORED

ORDERS = ("random", "both")

# Largest difference of a probability between batch shapes that float32 arithmetic explains.
_PARITY_TOLERANCE = 1e-3
_PARITY_SAMPLE = 8


def question_of(row: dict[str, Any]) -> Question | None:
    """(context, chosen response, rejected response); None where the two follow different conversations or are the same."""
    chosen, rejected = row["chosen"], row["rejected"]
    if chosen[:-1] != rejected[:-1] or chosen[-1]["content"] == rejected[-1]["content"]:
        return None
    return chosen[:-1], chosen[-1]["content"], rejected[-1]["content"]


def tokenise(
    rows: list[dict[str, Any]], tokenizer: Any, max_length: int, orders: str, seed: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Examples {"input_ids", "labels", "length"} with loss on the last token, the label; and counts.

    Counts: context_cut (of examples), dropped_length, dropped_context (different conversations or equal responses, of
    pairs). Raises RecipeError for unknown orders or a tokenizer without single label tokens.
    """
    if orders not in ORDERS:
        raise RecipeError(f"orders {orders!r} is unknown; choose one of {', '.join(ORDERS)}.")
    labels = label_ids(tokenizer)
    examples, counts = [], Counter({"context_cut": 0, "dropped_length": 0, "dropped_context": 0})
    for row in rows:
        question = question_of(row)
        if question is None:
            counts["dropped_context"] += 1
            continue
        messages, chosen, rejected = question
        shown = (False, True) if orders == "both" else (bool(derive_seed(seed, "order", row["id"]) & 1),)
        turns = []
        for swapped in shown:
            first, second = (rejected, chosen) if swapped else (chosen, rejected)
            turns.append((swapped, encode(tokenizer, messages, first, second, max_length - 1)))  # the label is one more
        if any(turn is None or turn.responses_cut for _, turn in turns):
            counts["dropped_length"] += 1
            continue
        for swapped, turn in turns:
            counts["context_cut"] += turn.context_cut
            ids = [*turn.ids, labels[swapped]]
            examples.append({"input_ids": ids, "labels": [IGNORED] * len(turn.ids) + ids[-1:], "length": len(ids)})
    return examples, dict(counts)


def require_parity(model: PairwisePreferenceModel, questions: list[Question]) -> None:
    """Raise ValueError unless each turn is judged the same alone and padded in a batch with a longer one."""
    encoded = [encode(model.tokenizer, *question, model.max_length) for question in questions]
    rows = [turn.ids for turn in encoded if turn is not None]
    alone = [model.first_label_probabilities([ids])[0] for ids in rows]
    longest = max(rows, key=len, default=[])
    together = model.first_label_probabilities([*rows, longest + longest[: model.max_length - len(longest)]])[:-1]
    worst = max((abs(a - b) for a, b in zip(alone, together, strict=True)), default=0.0)
    if worst > _PARITY_TOLERANCE:
        raise ValueError(f"Padding moves the preference model's probabilities by up to {worst:.2g}; it must not be used.")


def run(stage: Stage) -> dict[str, Any]:
    settings, policy, data = stage.settings, stage.input("policy"), stage.input("data")
    file = rows_file(data, settings["file"])
    require_training_space(stage, policy)
    prepare_process(settings)
    tokenizer = load_tokenizer(policy)
    rows = read_rows(file)
    examples, counts = tokenise(rows, tokenizer, settings["max_length"], settings["orders"], settings["seed"])
    if not examples:
        raise MissingInput(f"{file} holds no pair that fits into {settings['max_length']} tokens; raise max_length.")
    heldout = read_rows(rows_file(data, "pairs_heldout.jsonl"))
    if not any(question_of(row) for row in heldout):
        raise MissingInput(
            f"{data} has no held-out pairs to measure the preference model on; raise splits.heldout_pairs in the data settings."
        )
    require_apart(rows, heldout)
    trained = train_and_save(make_trainer(stage, policy, tokenizer, examples), stage, policy)
    if not stage.is_main:
        return {}
    pairs = len(rows) - counts["dropped_length"] - counts["dropped_context"]
    metrics = {"train_loss": mean_of(trained.history, "loss"), "pairs": pairs, "dropped": len(rows) - pairs}
    metrics["examples"] = len(examples)
    metrics |= training_speed(stage.work / "checkpoint", settings, [row["length"] for row in examples], len(examples), trained)
    metrics |= counts | evaluate(stage.work, heldout, settings["max_length"])
    for warning in (chance_warning(metrics), position_warning(metrics)):
        if warning:
            stage.message(warning)
    finish(stage)
    return metrics


def make_trainer(stage: Stage, policy: Path, tokenizer: Any, examples: list[dict[str, Any]]) -> Any:
    """Trains on each example by itself: upstream packs to 3072 tokens to save padding, which batches of like length save too."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig

    from train.trainers import StageCallback, StageSFTTrainer

    return StageSFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(policy, dtype=load_dtype(stage.settings)),
        args=training_arguments(SFTConfig, stage, len(examples), max_length=None, average_tokens_across_devices=True),
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        callbacks=[StageCallback(stage)],
        peft_config=lora_config(stage.settings, "CAUSAL_LM"),
    )


def evaluate(folder: Path, heldout: list[dict[str, Any]], max_length: int) -> dict[str, Any]:
    """Held-out figures of the preference model saved in `folder`/checkpoint (see `heldout_metrics`), and heldout_truncated.

    Writes its self-test, heldout.jsonl and reliability.json. Raises ValueError when padding moves its probabilities.
    """
    checkpoint = folder / "checkpoint"
    model = PairwisePreferenceModel(checkpoint, max_length=max_length, resources={"self_test": False})
    asked = [(row, question) for row in heldout if (question := question_of(row))]
    questions = [question for _, question in asked]
    require_parity(model, questions[:_PARITY_SAMPLE])
    compared = model.compare_responses(questions)
    write_self_test(model, checkpoint, questions, compared)
    table = [
        {"id": row["id"], "source": row["source"], "shown_first": c.shown_first, "shown_second": c.shown_second}
        for (row, _), c in zip(asked, compared, strict=True)
    ]
    write_rows(folder / "heldout.jsonl", table)
    write_durably(folder / "reliability.json", json.dumps(reliability([c.probability for c in compared]), indent=1))
    metrics = heldout_metrics([row["source"] for row, _ in asked], compared)
    return metrics | {"heldout_truncated": sum(model.truncated[::2])}


if __name__ == "__main__":
    main(run)
