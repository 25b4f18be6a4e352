"""What a baseline changes in an iteration: who answers, and what is learned from the answers.

                    answers of the current policy    answers of the first policy
    preference pairs  (online DPO, no baseline)        offline_dpo
    best answers      raft                             best_of_n_sft

Everything else is the online recipe's: prompts of each iteration, samples a prompt, reward models, seeds, rule of pairs
(the best answer is the chosen one of its pair), number of rounds, epochs and global batch of each. So stages that do not
differ are the same artifacts, and a baseline runs only what it changes: offline_dpo shares the whole first iteration.
"""

from harness.plan.nodes import Plan, Ref
from harness.plan.training import training_settings
from harness.recipe import Recipe

OFF_POLICY = ("offline_dpo", "best_of_n_sft")
"""Baselines whose answers all come from the first policy."""
ON_BEST = ("raft", "best_of_n_sft")
"""Baselines that learn the best answers instead of the pairs."""


def add_best_of_n(plan: Plan, recipe: Recipe, t: int, policy: Ref, pairs: Ref) -> None:
    """SFT on the chosen answers: learning rate, schedule and optimiser of `sft`; amount and length of training of `dpo`."""
    training, resources = training_settings(recipe.sft, recipe.seed + t)
    for key in ("loss_on", "packing"):
        training.pop(key)
    _, of_dpo = training_settings(recipe.dpo, recipe.seed + t)
    same = ("epochs", "max_steps", "batch_size", "max_length")
    training |= {key: getattr(recipe.dpo, key) for key in same} | {"packing": False}
    inputs = {"policy": policy, "pairs": pairs}
    plan.add(f"best_of_n[{t}]", "train.best_of_n", training, inputs, iteration=t, resources=resources | of_dpo)
    plan.policies[f"iter-{t}"] = Ref(stage=f"best_of_n[{t}]", part="checkpoint")
