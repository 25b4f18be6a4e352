"""Training hooks: what a run does after an iteration. Pure functions of the run's history.

    hook = make_hook("keep_best", metric="held_out_reward")
    decision = hook.after_iteration(history)    # continue | stop | roll_back to decision.checkpoint

A hook of your own is any object with `after_iteration`; declare its maker under the entry-point group `harness.hooks`.
"""

from collections.abc import Callable
from typing import Any

from core.errors import RecipeError
from train.hook_history import PROXY, Decision, History, Hook, Record, Value
from train.hook_rules import Budget, EarlyStop, KeepBest, OverOptimisation, paired_bootstrap
from train.plugins import find_plugin

__all__ = [
    "HOOKS",
    "PROXY",
    "Budget",
    "Decision",
    "EarlyStop",
    "History",
    "Hook",
    "KeepBest",
    "OverOptimisation",
    "Record",
    "Value",
    "make_hook",
    "paired_bootstrap",
]

HOOKS: dict[str, Callable[..., Hook]] = {
    "keep_best": KeepBest,
    "early_stop": EarlyStop,
    "over_optimisation": OverOptimisation,
    "budget": Budget,
}


def make_hook(name: str, **options: Any) -> Hook:
    """A hook by name, from the table above or the entry points `harness.hooks`. Raises RecipeError for what is unknown."""
    maker = find_plugin(name, HOOKS, "harness.hooks")
    try:
        return maker(**options)
    except TypeError as error:
        raise RecipeError(f"Hook {name!r} was given options it does not take ({error}); correct them in the recipe.") from error
