"""Recipe -> stages with their keys. Pure: nothing is read, run or written here.

A stage's key is the hash of its program, version, settings and the identities of its inputs; the identity of an
input that another stage makes is that stage's key. So the whole plan can be printed before anything exists, and the
same recipe on the same data always names the same artifacts.
"""

from harness.plan.evaluation import add_evaluation
from harness.plan.iteration import add_iteration
from harness.plan.nodes import VERSIONS, BenchmarkInput, Inputs, Node, Plan, Ref
from harness.plan.training import add_preparation
from harness.recipe import Evaluate, Recipe

__all__ = ["VERSIONS", "BenchmarkInput", "Inputs", "Node", "Plan", "Ref", "add_evaluation", "build_evaluation", "build_plan"]


def build_plan(recipe: Recipe, inputs: Inputs, starts: dict[int, int] | None = None) -> Plan:
    """The stages of a run. `starts[t]` is the iteration whose policy iteration t starts from (default t - 1): the
    hooks' roll-backs. Iteration 0 is the first policy, pi_0."""
    plan = Plan(recipe.name, recipe.evaluate, recipe.seed, inputs)
    add_preparation(plan, recipe)
    first = ["base"] + (["sft"] if recipe.sft.enabled else [])
    for label in first:
        add_evaluation(plan, label, 0)
    for t in range(1, recipe.iterations + 1):
        add_iteration(plan, recipe, t, starts or {})
        add_evaluation(plan, f"iter-{t}", t)
    return plan


def build_evaluation(evaluate: Evaluate, seed: int, policy: Ref, inputs: Inputs) -> Plan:
    """The stages that evaluate one checkpoint that no recipe of ours made. Its label is `policy`."""
    plan = Plan("evaluation", evaluate, seed, inputs)
    plan.policies["policy"] = policy
    plan.policies |= {name: ref for name, ref in (("reward", inputs.reward), ("gold_reward", inputs.gold_reward)) if ref}
    add_evaluation(plan, "policy", 0)
    return plan
