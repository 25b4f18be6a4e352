"""The typed recipe: everything that decides what a run does.

Unknown keys and bad values are refused all at once, each with its file and line. `Recipe.hash` identifies the
content: the same whatever the file is called or how its keys are ordered.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from core.fingerprint import digest
from harness.recipe.data import Data, DataSource
from harness.recipe.dpo import DPO, LOSS_KEYS, Reference
from harness.recipe.evaluation import Benchmark, Endpoint, Evaluate, Judge, Price
from harness.recipe.online import Annotate, Arm, Generate, Pairs
from harness.recipe.sections import Model, Positive, Section
from harness.recipe.training import SFT, Preference, Reward, Training
from train.hooks import make_hook
from train.losses import find_loss, learns_from_the_current_policy, refers_to_the_answering_policy
from train.rules import RULES

__all__ = [
    "BASELINES",
    "DPO",
    "LOSS_KEYS",
    "SFT",
    "Annotate",
    "Arm",
    "Benchmark",
    "Data",
    "DataSource",
    "Endpoint",
    "Evaluate",
    "Generate",
    "Hook",
    "Judge",
    "Model",
    "Pairs",
    "Preference",
    "Price",
    "Recipe",
    "Reference",
    "Reward",
    "Section",
    "Training",
]


class Hook(Section):
    name: str
    """keep_best, early_stop, over_optimisation, budget, or one that a package declares (`harness.hooks`)."""
    options: dict[str, Any] = {}
    """keep_best: metric; early_stop: metric, patience; over_optimisation: watch, action; budget: gpu_hours, dollars,
    dollars_per_gpu_hour."""

    @model_validator(mode="after")
    def _makes_a_hook(self) -> "Hook":
        make_hook(self.name, **self.options)
        return self


BASELINES = ("offline_dpo", "raft", "best_of_n_sft")


class Recipe(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str = ""
    seed: int = Field(42, ge=0)
    iterations: Positive
    base: Model
    data: Data
    sft: SFT
    reward: Reward | None = None
    """The reward model that annotates, unless annotate.scorer says otherwise; null leaves it out."""
    gold_reward: Reward | None = None
    """A second reward model on pairs the first never saw: the judge of over-optimisation."""
    preference: Preference | None = None
    """A model that compares two answers, for annotate.scorer pairwise. `reward: null` then leaves the reward model out, and with
    it the proxy curve of held_out_reward: probabilities of one prompt's answers do not rank policies. The gold reward stays."""
    generate: Generate
    annotate: Annotate = Annotate()
    pairs: Pairs = Pairs()
    reference: Reference = Reference()
    dpo: DPO
    evaluate: Evaluate
    hooks: list[Hook] = [Hook(name="keep_best")]
    report_to: list[str] = []
    """Trackers that get the training curves too: tensorboard, wandb (offline without a key), trackio, or one that a package
    declares (`harness.trackers`). The registry has the curves in any case."""
    baseline: Literal["offline_dpo", "raft", "best_of_n_sft"] | None = None
    """What the online recipe is compared with, on the same prompts, reward models, seeds and number of rounds. offline_dpo: all
    pairs from the first policy's answers. raft: SFT on each prompt's best answer instead of DPO. best_of_n_sft: both.
    `harness train-and-eval RECIPE --baseline NAME` sets it."""

    @model_validator(mode="after")
    def _loss_fits_reference(self) -> "Recipe":
        """In a single iteration the reference is the policy that answers, whatever it is called."""
        if self.iterations > 1 and self.reference.policy != "previous" and refers_to_the_answering_policy(self.dpo.loss):
            raise ValueError(
                f"dpo.loss {self.dpo.loss} takes the log-ratio to the policy that answered; set reference.policy: previous"
            )
        return self

    @model_validator(mode="after")
    def _loss_fits_answers(self) -> "Recipe":
        if self.iterations == 1 or not learns_from_the_current_policy(self.dpo.loss):
            return self
        if self.dpo.data == "all":
            raise ValueError(
                f"dpo.loss {self.dpo.loss} learns from answers of the policy that it improves, and dpo.data: all brings those of "
                "earlier ones; set dpo.data: current"
            )
        others = [
            f"generate.arms.{i}.policy: {arm.policy}" for i, arm in enumerate(self.generate.arms) if arm.policy != "current"
        ]
        if others:
            raise ValueError(
                f"dpo.loss {self.dpo.loss} learns from answers of the policy that it improves, and not of {', '.join(others)}; "
                "set current there"
            )
        return self

    @model_validator(mode="after")
    def _loss_fits_rule(self) -> "Recipe":
        loss = find_loss(self.dpo.loss)
        if self.pairs.rule == "tournament" and loss is not None and {"rewards", "win_rates"} & loss.needs:
            raise ValueError(
                f"dpo.loss {self.dpo.loss} learns from scores, and pairs.rule tournament chooses by a knockout's final, which "
                "they may contradict; set pairs.rule: max_min"
            )
        return self

    @model_validator(mode="after")
    def _baseline_is_possible(self) -> "Recipe":
        if self.baseline == "offline_dpo" and refers_to_the_answering_policy(self.dpo.loss):
            raise ValueError(f"dpo.loss {self.dpo.loss} learns from the current policy's answers, which offline_dpo has none of")
        return self

    @model_validator(mode="after")
    def _coherent(self) -> "Recipe":
        judge = self.evaluate.judge
        if judge.kind == "reward_model" and judge.role == "gold_reward" and self.gold_reward is None:
            raise ValueError(
                "evaluate.judge.role is gold_reward but the recipe has no gold_reward section; add one or set role: reward"
            )
        if judge.kind == "reward_model" and judge.role == "reward" and self.reward is None:
            raise ValueError("evaluate.judge.role is reward but the recipe has no reward section; set role: gold_reward")
        if self.evaluate.held_out_reward and self.reward is None and self.gold_reward is None:
            raise ValueError("held-out rewards need a reward model; add gold_reward or set evaluate.held_out_reward: false")
        return self

    @model_validator(mode="after")
    def _data_fit_the_run(self) -> "Recipe":
        trained = [section for section in (self.reward, self.gold_reward, self.preference) if section and not section.checkpoint]
        if not self.data.uses("prompts"):
            raise ValueError("data has no source of prompts for the iterations; add one with use: prompts")
        if trained and not self.data.uses("preferences"):
            raise ValueError("data has no preferences to train a reward model on; add a source, or give reward.checkpoint")
        if self.sft.enabled and not (self.data.uses("preferences") or self.data.uses("sft")):
            raise ValueError("data has nothing for sft to learn from; add a source with use: sft, or set sft.enabled: false")
        if self.dpo.held_out_pairs and not self.data.uses("preferences"):
            raise ValueError("dpo.held_out_pairs needs preferences; add a source, or set it to 0")
        return self

    @model_validator(mode="after")
    def _scorer_is_there(self) -> "Recipe":
        for section in sorted(self.annotate.sections):
            if getattr(self, section) is None:
                scorer = {"reward": "bradley_terry", "preference": "pairwise"}[section]
                raise ValueError(f"the scorer {scorer} of annotate needs a {section} section; add one or set another scorer")
        if self.preference is not None and "preference" not in self.annotate.sections:
            raise ValueError("only the scorer pairwise uses the preference section; set annotate.scorer or leave the section out")
        return self

    @model_validator(mode="after")
    def _knockout_gives_the_pairs(self) -> "Recipe":
        annotate = self.annotate
        grades = annotate.judge is not None and annotate.judge.mode == "grade"
        pointwise = annotate.ensemble is not None or annotate.scorer in {"bradley_terry", *RULES} or grades
        if self.pairs.rule == "tournament" and (pointwise or annotate.tournament != "knockout"):
            raise ValueError(
                "pairs.rule tournament takes a knockout's pair; set annotate.tournament: knockout and a scorer that compares "
                "(pairwise, or judge with mode: compare), or use another rule"
            )
        return self

    @property
    def hash(self) -> str:
        """sha256 (hex) of the validated content."""
        return digest(self.model_dump(mode="json"))
