"""trl's trainers as the stages use them. Imports torch and trl at module level: import this module inside functions only.

What is changed: examples come in `train.order`'s order; reports go to the stage; rolling checkpoints are exchanged
safely; rows arrive tokenised and are used as they are; nothing is sent to or fetched from the network.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOTrainer, RewardTrainer, SFTTrainer

from core.errors import RecipeError
from core.stage import Stage
from train.curves import values_of
from train.order import EpochOrder
from train.packing import require_isolation
from train.preference_losses import PairBatch, on_policy_weight
from train.reporting import Trackers
from train.reward_losses import reward_loss
from train.rolling import keep_only, mark_complete

PAIR_COLUMNS = tuple(
    f"{kind}_{side}_logps" if kind in ("previous", "first") else f"{side}_{kind}"
    for kind in ("previous", "first", "rewards", "win_rates")
    for side in ("chosen", "rejected")
)
"""What a row of a pair may carry beyond trl's columns: values of `PairBatch`, and log-probabilities of the first policy."""


class StageCallback(TrainerCallback):
    """Reports progress and curves to the stage, and marks rolling checkpoints.

    `derive`: further curve values from the logged ones.
    """

    def __init__(self, stage: Stage, derive: Callable[[dict[str, float]], dict[str, float]] | None = None):
        self.stage, self.derive = stage, derive
        self.trackers = Trackers(stage)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stage.progress(state.global_step, state.max_steps, "steps")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        values = values_of(logs)
        if not values:
            return
        if not math.isfinite(values.get("loss", 0.0)):
            raise RecipeError(f"The loss is {values['loss']} at step {state.global_step}; lower learning_rate or max_grad_norm.")
        if self.derive and "loss" in values:
            values |= self.derive(values)
        state.log_history[-1].update(values)  # kept by rolling checkpoints, and so by `write_curves` after a resume
        self.stage.metric(state.global_step, **values)
        self.trackers.log(state.global_step, values)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trackers.close()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        barrier()
        if self.stage.is_main:
            rolling = Path(args.output_dir)
            newest = rolling / f"checkpoint-{state.global_step}"
            mark_complete(newest, args.world_size)
            keep_only(rolling, newest)
        barrier()


def barrier() -> None:
    """Wait for all ranks."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


class _StageTrainer:
    """Mixed in before a trl trainer. The training set has a `length` column (tokens of the longest sequence of a row)."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochOrder:
        global_batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return EpochOrder(self.lengths(), global_batch, self.args.seed)

    def lengths(self) -> list[int]:
        return list(self.train_dataset["length"])  # the data loader's own copy has lost the column

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The artifact's manifest says where a checkpoint comes from."""

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""


class StageSFTTrainer(_StageTrainer, SFTTrainer):
    """Rows: input_ids, labels, length."""


class PackedSFTTrainer(StageSFTTrainer):
    """Rows of `train.packing.pack`; give it a `train.packing.PackedCollator`. `require_isolation` comes before the first step."""

    _isolated = False

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, "position_ids"]))

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        if not self._isolated:  # here, because under ZeRO-3 the weights are only put together in DeepSpeed's own forward pass
            require_isolation(model, self.data_collator, autocast=self.args.bf16)
            self._isolated = True
        positions = inputs["position_ids"]
        unseen = torch.tensor(positions.numel() - positions.size(1), device=positions.device)  # trl counts the first row only
        self._total_train_tokens += self.accelerator.gather_for_metrics(unseen).sum().item()
        return super().compute_loss(model, inputs, *args, **kwargs)


class StageRewardTrainer(_StageTrainer, RewardTrainer):
    """Rows: chosen_ids, rejected_ids, length, and margin where it is used. The loss is `train.reward_losses.reward_loss`."""

    def __init__(self, *args: Any, label_smoothing: float = 0.0, center_rewards_coefficient: float | None = None, **kwargs: Any):
        self.loss_options = {"label_smoothing": label_smoothing, "center_rewards_coefficient": center_rewards_coefficient}
        super().__init__(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        margin = inputs.pop("margin", None)
        _, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        loss = reward_loss(*outputs.logits.float().squeeze(-1).chunk(2), margin=margin, **self.loss_options)
        return (loss, outputs) if return_outputs else loss


class StageDPOTrainer(_StageTrainer, DPOTrainer):
    """Rows: prompt_ids, chosen_ids, rejected_ids, ref_chosen_logps, ref_rejected_logps (nats), length, and `PAIR_COLUMNS`.

    The cached reference log-probabilities are used as they are; no reference model is loaded. `pair_loss`: a loss that
    trl does not have, with its options bound; it is added to trl's own, whose weights are then 0.
    """

    def __init__(self, *args: Any, pair_loss: Callable[[PairBatch], torch.Tensor] | None = None, **kwargs: Any):
        self.pair_loss = pair_loss
        super().__init__(*args, **kwargs)
        # Wrapped after trl has made its collator, which knows nothing of our columns.
        self.data_collator = _with_columns(self.data_collator)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *PAIR_COLUMNS]))

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool) -> Any:
        columns = {name: inputs.pop(name) for name in PAIR_COLUMNS if name in inputs}
        recorded: list[Any] = []

        def forward(**kwargs: Any) -> Any:
            recorded.append(model(**kwargs))
            return recorded[-1]

        # trl runs the model once and computes its metrics; our loss takes the log-probabilities of that same pass.
        loss = super()._compute_loss(forward, inputs, False)
        mask = inputs["completion_mask"][:, 1:]
        outputs = recorded[0]
        token_logps = outputs.log_probs[:, -mask.size(1) :]
        logps, tokens = token_logps.sum(dim=1).chunk(2), mask.sum(dim=1).chunk(2)
        mode = "train" if self.model.training else "eval"
        self._log(mode, "tokens/chosen", tokens[0])
        self._log(mode, "tokens/rejected", tokens[1])
        if "first_chosen_logps" in columns:
            first = torch.cat([columns.pop("first_chosen_logps"), columns.pop("first_rejected_logps")])
            self._log(mode, "kl_first", torch.cat(logps).detach() - first)
        if self.pair_loss is not None and mode == "train":  # held-out pairs have no rewards and no earlier policy
            weights = (None, None)
            if outputs.log_sum_sq_probs is not None:
                weights = on_policy_weight(token_logps, outputs.log_sum_sq_probs[:, -mask.size(1) :], mask).chunk(2)
            batch = PairBatch(
                *logps,
                inputs["ref_chosen_logps"],
                inputs["ref_rejected_logps"],
                *tokens,
                **columns,
                chosen_weights=weights[0],
                rejected_weights=weights[1],
            )
            loss = loss + self.pair_loss(batch).mean()
        return (loss, outputs) if return_outputs else loss

    def _log(self, mode: str, name: str, values: torch.Tensor) -> None:
        """Add the mean over all ranks to trl's metrics of this step."""
        self._metrics[mode][name].append(self.accelerator.gather(values.float()).mean().item())


def _with_columns(collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """A collator that also carries those `PAIR_COLUMNS` that the rows have, as float32 tensors [n]."""

    def collated(rows: list[dict[str, Any]]) -> dict[str, Any]:
        columns = [name for name in PAIR_COLUMNS if name in rows[0]]
        return collate(rows) | {name: torch.tensor([row[name] for row in rows], dtype=torch.float32) for name in columns}

    return collated
