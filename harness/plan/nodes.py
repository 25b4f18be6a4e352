"""Nodes of a plan and how they get their keys."""

from dataclasses import dataclass, field
from typing import Any

from core.fingerprint import digest
from harness.recipe import Evaluate

# Raised when a program's result changes for the same settings and inputs.
VERSIONS = {
    "train.convert": 1,
    "train.data": 3,  # groups of like prompts, exact check of what is held out; margins, answers as text
    "train.sft": 2,  # spans by text, isolated packing
    "train.reward": 2,  # calibration, length bias, files of held-out scores
    "train.preference": 1,
    "train.generate": 1,
    "train.annotate": 2,  # a padding token 0 is one
    "train.pairs": 3,  # win rates, length gaps; penalised scores, counts of lost pairs
    "train.heldout": 1,
    "train.best_of_n": 1,
    "train.reference": 1,
    "train.dpo": 2,  # kl_first, held-out accuracy
    "evals.answer": 2,  # another context, dtype or seed is answered anew
    "evals.likelihood": 3,  # as evals.answer
    "evals.lm_eval_stage": 2,  # as evals.answer
    "evals.execute": 3,  # tests apart from the code, added tests; as evals.answer
    "evals.metrics": 2,  # as evals.answer
    "evals.judged": 3,  # intervals, metric names, statistics, replies by content; a reward model's padding token 0 is one
}


@dataclass(frozen=True)
class Ref:
    """An input: either a path with a known fingerprint, or (a part of) another stage's artifact."""

    stage: str | None = None
    part: str = ""
    path: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class Node:
    """One stage to run."""

    name: str
    """Unique in the run: `dpo[2]`, `answer[iter-2]`."""
    program: str
    settings: dict[str, Any]
    inputs: dict[str, Ref]
    key: str
    iteration: int | None = None
    resources: dict[str, Any] = field(default_factory=dict)
    registry: bool = False
    """Whether the stage writes to the registry (evaluation stages)."""

    @property
    def stage(self) -> str:
        """Prefix of the artifact's directory: the program's own name."""
        return self.program.split(".")[-1]


@dataclass(frozen=True)
class BenchmarkInput:
    """A benchmark with its located files."""

    name: str
    kind: str
    verdict: str
    settings: dict[str, Any]
    files: dict[str, Ref]


@dataclass(frozen=True)
class Inputs:
    """What the recipe's names stand for on this machine, resolved and hashed beforehand."""

    base: Ref | None
    """None: the base comes out of a package through the convert stage."""
    sources: list[tuple[dict[str, Any], list[Ref]]]
    """Settings of each data source (name, reader, use, limit, filters, ...) and its files."""
    benchmarks: list[BenchmarkInput]
    questions: dict[str, Ref] = field(default_factory=dict)
    """benchmark -> questions that the data are compared with besides those of `benchmarks`."""
    tokenizer: Ref | None = None
    """Directory of the tokenizer by which the data stage counts."""
    reward: Ref | None = None
    gold_reward: Ref | None = None
    """Reward models that the recipe names as checkpoints."""
    preference: Ref | None = None
    """The preference model that the recipe names as a checkpoint."""
    backbones: dict[str, Ref] = field(default_factory=dict)
    """Other models that a reward or preference model is trained from: `reward`, `gold_reward`, `preference` -> checkpoint."""
    scorers: dict[str, Ref] = field(default_factory=dict)
    """Members of an ensemble that the recipe names as checkpoints, by the member's name."""
    judge: Ref | None = None
    """The checkpoint that the recipe has served as its judge."""


class Plan:
    """Stages in the order in which they run; later ones refer to earlier ones by name."""

    def __init__(self, title: str, evaluate: Evaluate | None, seed: int, inputs: Inputs):
        """`evaluate` is None where nothing is evaluated: data by themselves."""
        self.title = title
        self.evaluate = evaluate
        self.seed = seed
        self.inputs = inputs
        self.nodes: dict[str, Node] = {}
        self.policies: dict[str, Ref] = {}
        """label (`base`, `sft`, `iter-1`, ...) -> checkpoint."""

    def add(self, name: str, program: str, settings: dict[str, Any], inputs: dict[str, Ref], **fields: Any) -> Ref:
        identities = {
            n: r.fingerprint if r.stage is None else digest([self.nodes[r.stage].key, r.part]) for n, r in inputs.items()
        }
        key = digest({"program": program, "version": VERSIONS[program], "settings": settings, "inputs": identities})
        self.nodes[name] = Node(name, program, settings, inputs, key, **fields)
        return Ref(stage=name)


def threads_of(threads: int | None) -> dict[str, Any]:
    """CPU threads of an engine; left out, the engine takes what it finds."""
    return {} if threads is None else {"threads": threads}
