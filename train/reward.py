"""Bradley-Terry reward model: `python -m train.reward SPEC.json` (or under torchrun).

inputs: policy (the checkpoint to start from), data (`settings.file` and `pairs_heldout.jsonl`); artifact: `checkpoint/`,
a sequence classifier with one output read at the last token that is not padding; `heldout.jsonl`, the rewards of each
held-out pair; `reliability.json`, the bins behind the calibration error. Loss: `train.reward_losses`. Held-out figures
(`train.reward_metrics`) are those of the saved checkpoint, scored in float32 by the scorer that annotation uses, after
checking that padding and batching do not move its scores; no held-out prompt may be among the training pairs.
"""

import json
from pathlib import Path
from typing import Any

from core.artifacts import read_rows, write_durably, write_rows
from core.errors import MissingInput, RecipeError
from core.stage import Stage, main
from train.calibration import reliability, sigmoid
from train.chat import load_tokenizer, render, special_ids
from train.checkpoint import rows_file
from train.filters import context_text
from train.loop import finish, mean_of, train_and_save
from train.lora import lora_config
from train.optimisation import load_dtype, prepare_process, require_training_space, training_arguments
from train.performance import training_speed
from train.reward_metrics import chance_warning, heldout_metrics
from train.reward_parity import require_parity
from train.scorers import BradleyTerryScorer, keep_end

_PARITY_SAMPLE = 8

TOO_LONG = ("drop", "cut_left")
"""What becomes of a pair above max_length: left out, or its prompt cut at the left, which keeps the answers."""


def set_distinct_padding(tokenizer: Any) -> None:
    """Give the tokenizer a padding token that ends no turn: the reward is read at the last token that is not padding.

    Kept if it is distinct already; else the unknown token or a reserved one. No embedding is added.
    Raises RecipeError when the vocabulary has none to spare.
    """
    used = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    _, ids = render(
        tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], add_generation_prompt=False
    )
    used |= set(ids)
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in used:
        return
    names = {i: tokenizer.convert_ids_to_tokens(i) for i in sorted(special_ids(tokenizer) - used)}
    spare = [i for i, name in names.items() if i == tokenizer.unk_token_id or "pad" in name.lower() or "reserved" in name.lower()]
    if not spare:
        raise RecipeError(
            "The tokenizer has no special token to spare for padding; add a pad_token to its tokenizer_config.json."
        )
    tokenizer.pad_token = names[spare[0]]


def tokenise(
    rows: list[dict[str, Any]], tokenizer: Any, max_length: int, margin: bool, too_long: str = "drop"
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows {"chosen_ids", "rejected_ids", "length"[, "margin"]}, and counts of pairs dropped and of pairs cut.

    Too long is a side of more than `max_length` tokens (see `TOO_LONG`); a pair with an answer that is itself too long is
    always dropped. Raises RecipeError where a sequence ends with the padding token: its reward would be read before its end.
    """
    if too_long not in TOO_LONG:
        raise RecipeError(f"too_long {too_long!r} is unknown; choose one of {', '.join(TOO_LONG)}.")
    examples, counts = [], {"dropped": 0, "cut": 0}
    for row in rows:
        if margin and "margin" not in row:
            raise RecipeError(f"Preference {row['id']} has no margin; set the reward model's margin to false.")
        sides = {side: render(tokenizer, row[side], add_generation_prompt=False)[1] for side in ("chosen", "rejected")}
        for ids in sides.values():
            if ids[-1] == tokenizer.pad_token_id:
                raise RecipeError(
                    f"Preference {row['id']} ends with the padding token {tokenizer.pad_token}, before which its reward would be "
                    "read; give the tokenizer a pad_token that its chat template never writes."
                )
        if max(map(len, sides.values())) > max_length:
            prompt = len(render(tokenizer, row["chosen"][:-1], add_generation_prompt=True)[1])
            if too_long == "drop" or max(map(len, sides.values())) - prompt >= max_length:
                counts["dropped"] += 1
                continue
            counts["cut"] += 1
            sides = {side: keep_end(ids, max_length, tokenizer.bos_token_id) for side, ids in sides.items()}
        example = {f"{side}_ids": ids for side, ids in sides.items()} | {"length": max(map(len, sides.values()))}
        examples.append(example | {"margin": float(row["margin"])} if margin else example)
    return examples, counts


def require_apart(training: list[dict[str, Any]], heldout: list[dict[str, Any]]) -> None:
    """Raise RecipeError when a held-out pair's prompt is among the training pairs: its accuracy would flatter."""
    prompts = {context_text(row["chosen"][:-1]) for row in training}
    shared = [row["id"] for row in heldout if context_text(row["chosen"][:-1]) in prompts]
    if shared:
        raise RecipeError(
            f"{len(shared)} of {len(heldout)} held-out pairs (first: {shared[0]}) have a prompt that is trained on; "
            "split the data by prompt, as the data stage does."
        )


def run(stage: Stage) -> dict[str, Any]:
    settings, policy, data = stage.settings, stage.input("policy"), stage.input("data")
    file = rows_file(data, settings["file"])
    require_training_space(stage, policy)
    prepare_process(settings)
    tokenizer = load_tokenizer(policy)
    set_distinct_padding(tokenizer)
    training = read_rows(file)
    examples, counts = tokenise(training, tokenizer, settings["max_length"], settings["margin"], settings.get("too_long", "drop"))
    if not examples:
        raise MissingInput(f"{file} holds no pair of at most {settings['max_length']} tokens; raise max_length.")
    heldout = read_rows(rows_file(data, "pairs_heldout.jsonl"))
    if not heldout:
        raise MissingInput(
            f"{data} has no held-out pairs to measure the reward model on; raise splits.heldout_pairs in the data settings."
        )
    require_apart(training, heldout)
    trainer = make_trainer(stage, policy, tokenizer, examples)
    trained = train_and_save(trainer, stage, policy, tokenizer)
    if not stage.is_main:
        return {}
    del trainer
    metrics = {"train_loss": mean_of(trained.history, "loss"), "pairs": len(examples), **counts}
    lengths = [len(row[side]) for row in examples for side in ("chosen_ids", "rejected_ids")]
    metrics |= training_speed(stage.work / "checkpoint", settings, lengths, len(lengths), trained)
    metrics |= evaluate(stage.work, heldout, settings["max_length"])
    if warning := chance_warning(metrics):
        stage.message(warning)
    finish(stage)
    return metrics


def make_trainer(stage: Stage, policy: Path, tokenizer: Any, examples: list[dict[str, Any]]) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, set_seed
    from trl import RewardConfig

    from train.trainers import StageCallback, StageRewardTrainer

    settings = stage.settings
    arguments = training_arguments(
        RewardConfig,
        stage,
        len(examples),
        max_length=None,  # rows are filtered already
    )
    set_seed(settings["seed"])  # the head is drawn at random
    model = AutoModelForSequenceClassification.from_pretrained(
        policy, num_labels=1, dtype=load_dtype(settings), pad_token_id=tokenizer.pad_token_id
    )
    return StageRewardTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        callbacks=[StageCallback(stage)],
        peft_config=lora_config(settings, "SEQ_CLS"),
        label_smoothing=settings.get("label_smoothing", 0.0),
        center_rewards_coefficient=settings["center_rewards_coefficient"],
    )


def evaluate(folder: Path, heldout: list[dict[str, Any]], max_length: int) -> dict[str, Any]:
    """Held-out figures of the reward model saved in `folder`/checkpoint (see `heldout_metrics`), and heldout_truncated.

    Writes heldout.jsonl and reliability.json there. Raises HarnessError when padding moves its scores.
    """
    scorer = BradleyTerryScorer(folder / "checkpoint", max_length=max_length)
    parity = require_parity(scorer, [row["chosen"] for row in heldout[:_PARITY_SAMPLE]])
    conversations = [row[side] for side in ("chosen", "rejected") for row in heldout]
    rewards = scorer.score(conversations)
    truncated = sum(scorer.truncated)
    tokens = [len(scorer.tokenizer(c[-1]["content"], add_special_tokens=False)["input_ids"]) for c in conversations]
    n = len(heldout)
    scored = [
        {"id": row["id"], "source": row["source"]}
        | {"chosen_reward": rewards[k], "rejected_reward": rewards[n + k]}
        | {"chosen_tokens": tokens[k], "rejected_tokens": tokens[n + k]}
        for k, row in enumerate(heldout)
    ]
    write_rows(folder / "heldout.jsonl", scored)
    table = reliability([sigmoid(row["chosen_reward"] - row["rejected_reward"]) for row in scored])
    write_durably(folder / "reliability.json", json.dumps(table, indent=1))
    moved = max(value for way, value in parity.items() if way != "scale")
    metrics = heldout_metrics(heldout, rewards[:n], rewards[n:], tokens)
    return metrics | {"heldout_truncated": truncated, "parity": moved}


if __name__ == "__main__":
    main(run)
