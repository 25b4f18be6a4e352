"""Two training steps of each preference loss, one after the other in one process a rank: a stage program for tests.

settings: those of `train.dpo` with `losses`: {name: [beta, options]} for `loss`, and `rows` to train on; inputs: policy.
metrics: {loss's name: its value at each step}.
"""

from typing import Any

from core.stage import Stage, main
from train.chat import load_tokenizer
from train.dpo import make_trainer
from train.losses import LOSSES, dpo_losses
from train.optimisation import prepare_process

UNNEEDED = ("rewards", "win_rates", "previous")


def run(stage: Stage) -> dict[str, Any]:
    from accelerate.state import AcceleratorState

    prepare_process(stage.settings)
    policy = stage.input("policy")
    losses, rows = stage.settings.pop("losses"), stage.settings.pop("rows")
    found = {}
    for name, (beta, options) in losses.items():
        stage.settings |= {"loss": name, "beta": beta, "loss_options": options}
        unneeded = tuple(part for part in UNNEEDED if part not in LOSSES[name].needs)
        own = [{key: value for key, value in row.items() if not any(part in key for part in unneeded)} for row in rows]
        types, weights = dpo_losses(name, 0.0)
        trainer = make_trainer(stage, policy, load_tokenizer(policy), own, loss_type=types, loss_weights=weights)
        trainer.train()
        found[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        trainer.accelerator.free_memory()
        AcceleratorState._reset_state()  # the process group stays; a second DeepSpeed trainer is refused otherwise
    return found


if __name__ == "__main__":
    main(run)
