"""Supervised fine-tuning: `python -m train.sft SPEC.json` (or under torchrun, see `train.optimisation.launch_command`).

inputs: policy (checkpoint), data (`sft.jsonl`: {"id", "messages"}); artifact: `checkpoint/`.
The loss is the mean over all learned tokens of a global batch; `loss_on: assistant` learns the assistant's tokens
and the token that ends each turn. With `packing` a row of the batch holds several conversations that do not see each
other (`train.packing`), and the same gradient comes out as from the same conversations apart.
"""

from pathlib import Path
from typing import Any

from core.artifacts import read_rows
from core.errors import MissingInput
from core.stage import Stage, main
from train.chat import load_tokenizer
from train.checkpoint import rows_file
from train.loop import finish, mean_of, train_and_save
from train.lora import lora_config
from train.optimisation import load_dtype, prepare_process, require_training_space, training_arguments
from train.packing import PackedCollator, fill_ratio, pack, packed_attention
from train.performance import training_speed
from train.spans import IGNORED, labelled


def tokenise(
    rows: list[dict[str, Any]], tokenizer: Any, loss_on: str, max_length: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows as {"input_ids", "labels", "length"}, cut to `max_length` tokens, and counts of what was cut or dropped.

    A conversation with no learned token left after the cut is dropped.
    """
    examples, counts = [], {"truncated": 0, "dropped": 0}
    for row in rows:
        ids, labels = labelled(tokenizer, row["messages"], loss_on)
        counts["truncated"] += len(ids) > max_length
        ids, labels = ids[:max_length], labels[:max_length]
        if all(label == IGNORED for label in labels):
            counts["dropped"] += 1
        else:
            examples.append({"input_ids": ids, "labels": labels, "length": len(ids)})
    return examples, counts


def run(stage: Stage) -> dict[str, Any]:
    settings, policy = stage.settings, stage.input("policy")
    file = rows_file(stage.input("data"), "sft.jsonl")
    require_training_space(stage, policy)
    prepare_process(settings)
    tokenizer = load_tokenizer(policy)
    examples, counts = tokenise(read_rows(file), tokenizer, settings["loss_on"], settings["max_length"])
    if not examples:
        raise MissingInput(
            f"{file} holds no conversation with learned tokens in {settings['max_length']} tokens; raise max_length."
        )
    rows = pack(examples, settings["max_length"], settings["seed"]) if settings["packing"] else examples
    trainer = make_trainer(stage, policy, tokenizer, rows)
    trained = train_and_save(trainer, stage, policy)
    if not stage.is_main:
        return {}
    finish(stage)
    metrics = {
        "train_loss": mean_of(trained.history, "loss"),
        "examples": len(examples),
        "tokens": sum(row["length"] for row in examples),
        "learned_tokens": sum(label != IGNORED for row in examples for label in row["labels"]),
        **counts,
    }
    lengths = [row["length"] for row in examples]
    metrics |= training_speed(stage.work / "checkpoint", settings, lengths, metrics["learned_tokens"], trained)
    if settings["packing"]:
        metrics |= {"packed_rows": len(rows), "fill_ratio": fill_ratio(rows, settings["max_length"])}
    return metrics


def make_trainer(stage: Stage, policy: Path, tokenizer: Any, rows: list[dict[str, Any]]) -> Any:
    """A trainer on tokenised, or packed, rows. Packed, its first step raises RecipeError where samples would see each other."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig

    from train.trainers import PackedSFTTrainer, StageCallback, StageSFTTrainer

    settings = stage.settings
    arguments = training_arguments(
        SFTConfig,
        stage,
        len(rows),
        max_length=None,  # rows are cut already
        # With several GPUs each rank has its own count of learned tokens; the loss divides by the sum of all.
        average_tokens_across_devices=True,
    )
    extra: dict[str, Any] = {}
    if settings["packing"]:
        attention = packed_attention(settings["precision"])
        extra["attn_implementation"] = attention
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        collator = PackedCollator(pad, flatten=attention == "flash_attention_2")
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=load_dtype(settings), **extra)
    return (PackedSFTTrainer if settings["packing"] else StageSFTTrainer)(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[StageCallback(stage)],
        peft_config=lora_config(settings, "CAUSAL_LM"),
        **({"data_collator": collator} if settings["packing"] else {}),
    )


if __name__ == "__main__":
    main(run)
