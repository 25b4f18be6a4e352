"""One scorer of whatever kind, as what the annotate stage needs: generation rows in, annotation rows out.

A member is the settings of one scorer: {"name", "scorer", "input" (of its checkpoint; None without one), "max_length",
"dtype", and of some kinds "options" (rules), "tournament", "seed" (pairwise), "judge" (an LLM judge)}.
"""

import gc
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from core.stage import Spec
from train.annotation_cache import AnnotationCache, RewardCache, reward_identity
from train.plugins import find_plugin
from train.rules import RULES, find_rule
from train.scorers import DTYPES, SCORERS, BradleyTerryScorer, Scorer, make_scorer, padding_identity

JUDGE = "judge"
"""Name of the scorer that is an LLM judge."""

Rows = list[dict[str, Any]]


class Annotator(Protocol):
    """`counts` adds up what the stage reports beside the rewards, e.g. cache_hits."""

    counts: dict[str, int]

    def annotate(self, generations: Rows) -> Rows:
        """One row a prompt: prompt_id, rewards (float or None a sample, in order), truncated (samples cut to fit)."""


def kind_of(name: str) -> str:
    """`judge`, `rule` or `scorer`. Raises RecipeError for a name that nothing is known by."""
    if name == JUDGE:
        return "judge"
    if name in RULES:
        return "rule"
    if name in SCORERS:
        return "scorer"
    from importlib.metadata import entry_points

    if name in {point.name for point in entry_points(group="harness.rules")}:
        return "rule"
    find_plugin(name, SCORERS | RULES | {JUDGE: JudgeAnnotator}, "harness.scorers")
    return "scorer"


def cache_of(spec: Spec) -> AnnotationCache:
    """The cache of the installation whose artifact store the stage writes to."""
    return AnnotationCache(Path(spec.store).parent / "cache" / "annotations.db")


def make_annotator(spec: Spec, member: dict[str, Any]) -> Annotator:
    """Load what a member scores with."""
    kind = kind_of(member["scorer"])
    if kind == "rule":
        return RuleAnnotator(member)
    if kind == "judge":
        return JudgeAnnotator(member, spec.resources.get("judge", {}), cache_of(spec), spec.run, f"{spec.key}/{member['name']}")
    given = spec.inputs.get(member.get("input") or "")
    scorer = make_scorer(
        member["scorer"],
        Path(given["path"]) if given else Path(),
        max_length=member["max_length"],
        dtype=member.get("dtype", "auto"),
        resources=spec.resources,
    )
    annotator: ScoreAnnotator | RankAnnotator = ScoreAnnotator(scorer)
    if hasattr(scorer, "rank"):
        annotator = RankAnnotator(scorer, {key: member[key] for key in ("tournament", "seed") if key in member})
    if given and hasattr(scorer, "identity"):
        dtype = DTYPES[member.get("dtype", "auto")]
        padding = padding_identity(Path(given["path"])) if isinstance(scorer, BradleyTerryScorer) else {}
        scorer.identity = reward_identity(member["scorer"], given["fingerprint"], dtype, member["max_length"], **padding)
        scorer.cache = annotator.cache = RewardCache(cache_of(spec))
    return annotator


class ScoreAnnotator:
    """A scorer that gives each conversation a number."""

    def __init__(self, scorer: Scorer):
        self.scorer = scorer
        self.cache: RewardCache | None = None

    @property
    def counts(self) -> dict[str, int]:
        return {"cache_hits": self.cache.hits} if self.cache else {}

    def annotate(self, generations: Rows) -> Rows:
        conversations = [
            [*row["messages"], {"role": "assistant", "content": sample["text"]}]
            for row in generations
            for sample in row["samples"]
        ]
        rewards = self.scorer.score(conversations) if conversations else []
        scored = iter(zip(rewards, self.scorer.truncated, strict=True) if conversations else ())
        rows = []
        for row in generations:
            of_prompt = list(islice(scored, len(row["samples"])))
            rows.append(annotation(row, [reward for reward, _ in of_prompt], sum(cut for _, cut in of_prompt)))
        return rows


class RankAnnotator:
    """A scorer that compares a prompt's answers: `rank`, see `train.preference_model`. Rows also hold what it compared."""

    def __init__(self, scorer: Any, options: dict[str, Any]):
        self.scorer, self.options = scorer, options
        self.cache: RewardCache | None = None
        self.comparisons = 0

    @property
    def counts(self) -> dict[str, int]:
        """A comparison is two probabilities, one an order: `cache_hits` counts those."""
        return {"comparisons": self.comparisons} | ({"cache_hits": self.cache.hits} if self.cache else {})

    def annotate(self, generations: Rows) -> Rows:
        answered = [row for row in generations if row["samples"]]
        texts = [[sample["text"] for sample in row["samples"]] for row in answered]
        rankings = self.scorer.rank([row["messages"] for row in answered], texts, **self.options) if answered else []
        cut = iter(self.scorer.truncated)
        of_prompt = {}
        for row, ranking in zip(answered, rankings, strict=True):
            self.comparisons += len(ranking.comparisons)
            truncated = sum(islice(cut, len(row["samples"])))
            of_prompt[row["prompt_id"]] = annotation(row, ranking.scores, truncated) | compared(ranking)
        return [of_prompt.get(row["prompt_id"], annotation(row, [])) for row in generations]


class RuleAnnotator:
    """A rule function, see `train.rules`."""

    def __init__(self, member: dict[str, Any]):
        self.options = member.get("options", {})
        self.rule: Callable[..., float | None] = find_rule(member["scorer"], self.options)
        self.counts: dict[str, int] = {}

    def annotate(self, generations: Rows) -> Rows:
        return [
            annotation(
                row,
                [self.rule(row["messages"], sample["text"], row.get("reference"), **self.options) for sample in row["samples"]],
            )
            for row in generations
        ]


class JudgeAnnotator:
    """An LLM judge behind an endpoint, see `train.judge_scorer`."""

    def __init__(self, member: dict[str, Any], resources: dict[str, Any], cache: AnnotationCache, run: str, scorer: str):
        from train.judge_scorer import JudgeScorer

        settings = member["judge"] | {key: member[key] for key in ("tournament", "seed") if key in member}
        self.judge = JudgeScorer(settings, resources, cache, run, scorer)

    @property
    def counts(self) -> dict[str, int]:
        """Of all attempts of the stage: what a killed one paid for is not lost from the bill."""
        return dict(zip(("judge_calls", "judge_tokens", "judge_micro_dollars"), self.judge.replies.spent(), strict=True))

    def annotate(self, generations: Rows) -> Rows:
        texts = [[sample["text"] for sample in row["samples"]] for row in generations]
        judged = self.judge.annotate([row["messages"] for row in generations], texts)
        return [
            annotation(row, of_prompt.rewards) | (compared(of_prompt.ranking) if of_prompt.ranking else {})
            for row, of_prompt in zip(generations, judged, strict=True)
        ]


def annotation(row: dict[str, Any], rewards: list[Any], truncated: int = 0) -> dict[str, Any]:
    return {"prompt_id": row["prompt_id"], "rewards": rewards, "truncated": truncated}


def compared(ranking: Any) -> dict[str, Any]:
    """What a tournament adds to its row: (i, j, P(i beats j)), their consistency, and the knockout's (winner, loser)."""
    return {
        "comparisons": [list(comparison) for comparison in ranking.comparisons],
        "consistency": ranking.consistency,
        "pair": list(ranking.pair) if ranking.pair else None,
    }


def release(annotator: Annotator) -> None:
    """Give an annotator's memory back, as far as this process can."""
    import sys

    for name in ("scorer", "judge"):
        if hasattr(annotator, name):
            delattr(annotator, name)
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
