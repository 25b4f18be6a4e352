"""What a benchmark is: questions with settings of their own, answers, verdicts, scores.

A benchmark is one module with one subclass of `Benchmark` and one line in `_BUILT_IN` (or, from another package, an entry
point in the group `harness.benchmarks`). Nothing heavy is imported here: the plan, the command line and the dashboard
read this table.
"""

import gzip
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal

from core.errors import MissingInput, RecipeError
from core.fingerprint import digest
from core.judged import Judged, weighted_mean

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}."""

Place = tuple[str, int, int]
"""(question id, turn from 1, sample from 0)."""

PROMPT_TOO_LONG = "prompt_too_long"
"""Finish reason of an answer that was never begun: its prompt leaves no room in the context."""

DEFAULT_CONTEXT, DEFAULT_SEED = 8192, 42
"""`evaluate.max_model_len` in tokens, and a recipe's seed, unless set."""

MAX_FAILED = 0.01
"""Share of failed items above which a headline is withheld."""


@dataclass(frozen=True)
class Question:
    """One item of a benchmark."""

    id: str
    category: str
    turns: tuple[str, ...]
    """The user's messages, one a turn; one turn for most benchmarks."""
    data: dict[str, Any] = field(default_factory=dict)
    """What the verdict needs beside the answer: baseline, reference, tests, choices."""


@dataclass(frozen=True)
class ScoreRow:
    """One metric with its interval: the fields of `db.models.Score`, in the benchmark's own unit."""

    metric: str
    value: float | None
    low: float | None
    high: float | None
    method: str
    """How value and interval were computed."""
    n: int
    """Items that entered `value`."""
    n_failed: int
    """Items that should have and could not."""
    worst: float | None = None
    best: float | None = None
    """`value` if every failed item had gone as badly, or as well, as it could; None where nothing bounds it."""
    headline: bool = False
    higher_is_better: bool | None = True
    stderr: float | None = None
    """Standard error of `value` over what `method` resamples; the metric's own where the reference defines one."""

    def fields(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def withheld(self) -> "ScoreRow":
        """The row as it may be shown: a headline of which more than 1 % of the items failed loses value and interval."""
        if not self.headline or self.n_failed <= MAX_FAILED * (self.n + self.n_failed):
            return self
        return replace(self, value=None, low=None, high=None, stderr=None)


class Benchmark(ABC):
    """Base of all benchmarks.

    A subclass sets the class attributes, implements `load`, and the scoring its verdict needs: judged ones subclass
    `evals.judges.judge.JudgedBenchmark`; the sandbox and likelihood ones are called by `evals.execute` and `evals.likelihood`.
    """

    name: ClassVar[str]
    kind: ClassVar[Literal["generation", "likelihood", "lm_eval"]] = "generation"
    """What the policy does: writes answers, gives log-probabilities of given ones, or what lm-evaluation-harness asks of it."""
    verdict: ClassVar[Literal["judge", "sandbox", "likelihood", "reward", "lm_eval", "metrics"]]
    """Who says how good an answer is."""
    assets: ClassVar[dict[str, tuple[str, ...]]]
    """variant -> names of the files that it needs; the first holds the question texts. A stage finds file X of benchmark
    B as its input `data/B/X`."""
    optional_assets: ClassVar[dict[str, tuple[str, ...]]] = {}
    """variant -> files that are used when they are there."""
    headline: ClassVar[str]
    """Metric shown on the leaderboard. A benchmark may mark another metric where this one cannot be computed."""
    headline_category: ClassVar[str | None] = None
    """The only category of questions that the headline is of; None: of all. Paired tests keep to it; metrics of the others
    end in their category's name."""
    unit: ClassVar[str] = "percent"
    """percent: verdicts in [0, 1], shown times 100; rating: verdicts and scores 1..10; reward: raw."""
    default_decoding: ClassVar[dict[str, Any]] = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 2048}
    """Official decoding: temperature (a float, or a dict by category with "default"), top_p, max_tokens, n (samples, 1)."""
    identity: ClassVar[dict[str, Any]] = {}
    """Further settings that change the answers and so belong to the answer set's identity, e.g. {"prompt": "fence-v1"}."""

    @abstractmethod
    def load(self, files: Mapping[str, Path], limit: int | None = None, sample_seed: int = 0) -> list[Question]:
        """Read the questions from `{asset: path}`, plain or .gz.

        `limit` keeps a seeded sample of so many, in their order (`sample`). Raises MissingInput for an absent asset.
        """

    def messages(self, question: Question, earlier_answers: list[str]) -> list[Message]:
        """The conversation that the policy continues at turn `len(earlier_answers) + 1`, without a system prompt."""
        conversation: list[Message] = []
        for user, answer in zip(question.turns, earlier_answers, strict=False):
            conversation += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        return [*conversation, {"role": "user", "content": question.turns[len(earlier_answers)]}]

    def decoding(self, question: Question, turn: int, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Sampling of one turn (1-based): {"temperature", "top_p", "max_tokens"}, official unless overridden."""
        chosen = self.default_decoding | dict(overrides or {})
        temperature = chosen["temperature"]
        if isinstance(temperature, Mapping):
            temperature = temperature.get(question.category, temperature["default"])
        return {"temperature": float(temperature), "top_p": float(chosen["top_p"]), "max_tokens": int(chosen["max_tokens"])}

    def question_value(self, judged: Sequence[Judged]) -> float | None:
        """What the verdicts on one question say together, as the headline counts them: their weighted mean, unless overridden."""
        return weighted_mean(judged)

    def samples(self, overrides: Mapping[str, Any] | None = None) -> int:
        """Answers drawn per question and turn."""
        return int((self.default_decoding | dict(overrides or {})).get("n", 1))

    def answer_settings(self, entry: Mapping[str, Any], stage_settings: Mapping[str, Any]) -> dict[str, Any]:
        """`answer_set.settings`: what decides the answers beside the checkpoint and the data, and whether two rows may rank
        together, since their hash is part of the comparability group.

        `entry` is this benchmark's element of the stage's `benchmarks` list. In: sample, decoding, engine, template, system
        prompt, and, where they are not the defaults ("auto", `DEFAULT_CONTEXT` tokens), dtype and the context that prompt and
        answer have to fit. Out: batch sizes and the like, which change speed alone, and the run's seed
        (`answer_conditions`). The sample's seed counts only where a sample is drawn, so that full runs of recipes with
        different seeds rank together.
        """
        limit = entry.get("limit")
        settings: dict[str, Any] = {"limit": limit, "sample_seed": entry.get("sample_seed", 0) if limit else 0}
        if self.kind == "generation":
            settings |= {
                "decoding": self.default_decoding | dict(entry.get("decoding") or {}),
                "engine": stage_settings["engine"],
                "system_prompt": stage_settings.get("system_prompt"),
                "chat_template": True,
            }
            if stage_settings.get("dtype", "auto") != "auto":
                settings["dtype"] = stage_settings["dtype"]
            settings |= context_setting(stage_settings)
        else:
            settings |= {"chat_template": False}
        return settings | self.identity

    def answer_conditions(self, entry: Mapping[str, Any], stage_settings: Mapping[str, Any]) -> dict[str, Any]:
        """What else is in the answer set's key, and in no comparability group: where answers are sampled at a temperature,
        the run's seed, unless it is `DEFAULT_SEED`. Another seed draws other answers, which rank with the first."""
        temperature = (self.default_decoding | dict(entry.get("decoding") or {})).get("temperature", 0.0)
        sampled = any(temperature.values()) if isinstance(temperature, Mapping) else bool(temperature)
        seed = stage_settings.get("seed", DEFAULT_SEED)
        return {"seed": seed} if self.kind == "generation" and sampled and seed != DEFAULT_SEED else {}


def context_setting(stage_settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"max_model_len": tokens} for `answer_settings`, where it is not `DEFAULT_CONTEXT`: which answers fit, and how long they
    may grow."""
    context = stage_settings.get("max_model_len", DEFAULT_CONTEXT)
    return {} if context == DEFAULT_CONTEXT else {"max_model_len": context}


def answer_set_key(
    checkpoint: str, benchmark: str, version: str, settings: Mapping[str, Any], conditions: Mapping[str, Any] | None = None
) -> str:
    """Identity (sha256, hex) of what the checkpoint with this fingerprint answered under these settings and conditions."""
    identity = {"checkpoint": checkpoint, "benchmark": benchmark, "version": version, "settings": dict(settings)}
    return digest(identity | ({"conditions": dict(conditions)} if conditions else {}))


def files_of(benchmark: Benchmark, variant: str, inputs: Mapping[str, Path]) -> dict[str, Path]:
    """The files of a benchmark among a stage's inputs, `{asset: path}`; what exists of the optional ones included.

    A variant that the benchmark does not know is one of the user's own catalogue, e.g. with another baseline: it needs what
    the official one does. Raises MissingInput for an absent file.
    """
    prefix = f"data/{benchmark.name}/"
    files = {name.removeprefix(prefix): Path(path) for name, path in inputs.items() if name.startswith(prefix)}
    for asset in benchmark.assets.get(variant) or benchmark.assets["official"]:
        require_asset(files, asset, benchmark.name)
    return files


def require_asset(files: Mapping[str, Path], asset: str, benchmark: str) -> Path:
    """The path of an asset; raises MissingInput naming the command that fetches it."""
    path = files.get(asset)
    if path is None or not Path(path).is_file():
        raise MissingInput(f"The file {asset!r} of {benchmark} is not here; run `harness data fetch {benchmark}`.")
    return Path(path)


def sample(questions: list[Question], limit: int | None, seed: int) -> list[Question]:
    """A seeded sample of `limit` questions in their original order; all of them when limit is None or not smaller."""
    if limit is None or limit >= len(questions):
        return questions
    kept = random.Random(f"questions:{seed}").sample(range(len(questions)), limit)
    return [questions[i] for i in sorted(kept)]


def read_text(path: Path) -> str:
    """Text of a plain or gzipped UTF-8 file."""
    with gzip.open(path, "rt", encoding="utf-8") if Path(path).suffix == ".gz" else open(path, encoding="utf-8") as handle:
        return handle.read()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a plain or gzipped JSON-lines file; a file that holds one JSON list is read too.

    Splits at newlines only: benchmark texts hold U+2028, which `str.splitlines` would take for a line end.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line.strip()]


_BUILT_IN = {
    "alpaca_eval": "evals.chat.alpaca_eval:AlpacaEval",
    "arena_hard": "evals.chat.arena_hard:ArenaHard",
    "arena_hard_v2": "evals.chat.arena_hard_v2:ArenaHardV2",
    "mt_bench": "evals.chat.mt_bench:MTBench",
    "mt_bench_pairwise": "evals.chat.mt_bench_pairwise:MTBenchPairwise",
    "human_eval": "evals.code.human_eval:HumanEval",
    "human_eval_prefill": "evals.code.human_eval:HumanEvalPrefill",
    "mbpp": "evals.code.mbpp:MBPP",
    "truthful_qa": "evals.knowledge.truthful_qa:TruthfulQA",
    "truthful_qa_binary": "evals.knowledge.truthful_qa_binary:TruthfulQABinary",
    "truthful_qa_generation": "evals.knowledge.truthful_qa_generation:TruthfulQAGeneration",
    "gsm8k": "evals.knowledge.tasks:GSM8K",
    "mmlu": "evals.knowledge.tasks:MMLU",
    "arc_challenge": "evals.knowledge.tasks:ARCChallenge",
    "held_out_reward": "evals.held_out_reward:HeldOutReward",
    # Their subject is the judge: `harness judge calibrate` runs them, and no checkpoint has a row of them.
    "judge_agreement_pandalm": "evals.judges.human_agreement:PandaLM",
    "judge_agreement_llmbar": "evals.judges.human_agreement:LLMBar",
    "judge_agreement_board": "evals.judges.human_agreement:Board",
}


class _Table(Mapping[str, Benchmark]):
    """name -> benchmark, imported at first use; entry points of the group `harness.benchmarks` add to the built-in ones."""

    def __init__(self) -> None:
        self._made: dict[str, Benchmark] = {}

    def _names(self) -> dict[str, Any]:
        return {point.name: point for point in entry_points(group="harness.benchmarks")} | _BUILT_IN

    def __getitem__(self, name: str) -> Benchmark:
        if name not in self._made:
            source = self._names()[name]
            if isinstance(source, str):
                module, attribute = source.split(":")
                self._made[name] = getattr(import_module(module), attribute)()
            else:
                self._made[name] = source.load()()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())


BENCHMARKS: Mapping[str, Benchmark] = _Table()


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of that name; raises RecipeError naming the known ones."""
    if name not in BENCHMARKS:
        raise RecipeError(f"Benchmark {name!r} is not known; use one of {', '.join(sorted(BENCHMARKS))}.")
    return BENCHMARKS[name]
