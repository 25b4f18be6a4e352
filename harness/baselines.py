"""Baselines of an online recipe: the same recipe, but offline, or on best answers instead of pairs.

    harness train-and-eval quickstart --baseline offline_dpo

What they share with the online run and where they differ: `harness.plan.baseline`. A finished baseline is a line on the
online run's Iterations page, as long as both started from the same first policy.
"""

from core.errors import RecipeError
from harness.catalogue import nearest
from harness.recipe import BASELINES, Recipe


def derive(recipe: Recipe, baseline: str) -> Recipe:
    """The recipe of a baseline, named after both. Raises RecipeError for an unknown one, or a recipe that cannot have it."""
    if baseline not in BASELINES:
        raise RecipeError(f"There is no baseline {baseline!r}{nearest(baseline, BASELINES)}; use one of {', '.join(BASELINES)}.")
    if recipe.baseline:
        raise RecipeError(f"The recipe {recipe.name} is the baseline {recipe.baseline} already; leave --baseline out.")
    fields = recipe.model_dump(mode="json", exclude_unset=True) | {"name": f"{recipe.name}-{baseline}", "baseline": baseline}
    try:
        return Recipe.model_validate(fields)
    except ValueError as error:  # pydantic's: what the baseline cannot do
        reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ") if hasattr(error, "errors") else str(error)
        raise RecipeError(f"The recipe {recipe.name} has no baseline {baseline}: {reason}.") from error
