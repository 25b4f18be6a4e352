"""What to type so that a run goes on."""

import shlex
from collections.abc import Mapping
from typing import Any

NO_RECIPE = ("evaluation", "registered")
"""`recipe_name` of runs that no `train-and-eval` began: evaluations, and trainings elsewhere."""


def resume_command(name: str, recipe_name: str, recipe: Mapping[str, Any] | None, environment: Mapping[str, Any] | None) -> str:
    """The command that began a run, as it was typed; "" where it is not known.

    Runs of before commands were kept: `train-and-eval` of their recipe, without what `--set` had changed.
    """
    if command := (environment or {}).get("command"):
        return str(command)
    if recipe_name in NO_RECIPE:
        return ""
    baseline = (recipe or {}).get("baseline")
    words = ["harness", "train-and-eval", recipe_name.removesuffix(f"-{baseline}"), "--run", name]
    return shlex.join([*words, "--baseline", str(baseline)] if baseline else words)
