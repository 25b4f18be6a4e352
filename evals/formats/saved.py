"""What every file format of a reference tool is read into and written from, and the table of the formats.

A format knows one benchmark's files. Reading gives scores computed by this project's own statistics, and the answers and
verdicts that they came from, so that the same reader serves `harness rescore` (print) and `harness import` (record).
Nothing here needs a model, a network or a registry.
"""

import hashlib
import importlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from core.errors import MissingInput, RecipeError
from evals.benchmark import ScoreRow, read_text
from evals.verdict import Verdict


@dataclass(frozen=True)
class SavedAnswer:
    """One answer as another tool saved it; fields as in `db.models.Answer`."""

    question_id: str
    text: str
    turn: int = 1
    sample: int = 0
    prompt: str = ""
    output_tokens: int = 0
    category: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedOutputs:
    """What one model answered to one benchmark."""

    model: str
    answers: Sequence[SavedAnswer]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class SavedEvaluation:
    """One model's judged or executed answers, and the scores derived from them."""

    model: str
    judge: str
    """Model name of the judge; "sandbox:<mode>" where code was run; "metrics" where nobody judged."""
    judge_kind: str
    """openai | sandbox | none."""
    judge_config: Mapping[str, Any]
    """What else distinguishes the verdicts: annotator, prompt, parser, options of the metrics."""
    scores: Sequence[ScoreRow]
    verdicts: Sequence[Verdict] = ()
    answers: Sequence[SavedAnswer] = ()
    statistics: Mapping[str, Any] = field(default_factory=dict)
    """For `evaluation.statistics`: categories, coefficients, biases."""
    notes: Sequence[str] = ()
    """What a reader must know, in sentences: stand-in data, rows left out, duplicates."""
    benchmark: str | None = None
    """The benchmark, where a format serves several; None: the format's own."""


@dataclass(frozen=True)
class PublishedScore:
    """One cell of a published leaderboard; always marked as published."""

    model: str
    score: ScoreRow
    judge: str
    benchmark: str | None = None
    """The benchmark, where a format serves several; None: the format's own."""


class SavedFormat(Protocol):
    """One benchmark's files. A method that a format cannot serve raises RecipeError saying what can be done instead."""

    benchmark: str
    options: Mapping[str, tuple[str, ...]]
    """Option -> its allowed values, the default first; `harness rescore --help` shows them."""
    assets: Sequence[str]
    """Files of the benchmark (`Benchmark.assets` and `optional_assets`) that the scores need; [] for none."""

    def read(self, paths: Sequence[Path], options: Mapping[str, str], files: Mapping[str, Path]) -> list[SavedEvaluation]:
        """Judgments or samples -> evaluations, one a model, sorted by model name.

        `options` holds every key of `self.options`; `files` what was found of `self.assets`. Raises MissingInput naming
        the file and row of what cannot be read, and the fix.
        """

    def read_outputs(self, paths: Sequence[Path]) -> list[SavedOutputs]:
        """Answers without judgments, for judging here."""

    def write(self, model: str, rows: "Stored", folder: Path) -> list[Path]:
        """Files of the reference tool's layout under `folder`; returns their paths."""

    def read_published(self, paths: Sequence[Path]) -> list[PublishedScore]:
        """A published leaderboard."""


@dataclass(frozen=True)
class Stored:
    """What the registry holds of one evaluation, as a format's `write` gets it."""

    questions: Sequence[Any]
    """`evals.benchmark.Question`s, in the benchmark's order."""
    answers: Mapping[tuple[str, int, int], Any]
    """(question id, turn, sample) -> `db.models.Answer`."""
    judgments: Mapping[tuple[str, int, int, int], Any]
    """(question id, turn, sample, game) -> `db.models.Judgment`."""
    judge: str
    scores: Sequence[Any]
    """`db.models.Score`s."""
    version: str
    settings: Mapping[str, Any]
    shown: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """`Judgment.shown` -> the messages that the judge was shown; {} for judgments of before they were kept."""

    def prompt_of(self, judgment: Any) -> Sequence[Mapping[str, Any]]:
        """The messages that a judgment's judge was shown; none where they are not known."""
        return self.shown.get(judgment.shown, ()) if judgment is not None else ()

    def user_prompt_of(self, judgment: Any) -> str:
        """The judge's first user message, which the reference tools keep as the prompt; "" where it is not known."""
        return next((str(message["content"]) for message in self.prompt_of(judgment) if message["role"] == "user"), "")


def shown(prompt: Any) -> list[dict[str, Any]] | None:
    """What a judge was asked, as the reference tools keep it (a user message, or messages), for `Verdict.shown`."""
    if isinstance(prompt, str) and prompt:
        return [{"role": "user", "content": prompt}]
    messages = [one for one in prompt if isinstance(one, dict)] if isinstance(prompt, list) else []
    return [{"role": str(one.get("role", "")), "content": str(one.get("content", ""))} for one in messages] or None


_FORMATS = {
    "alpaca_eval": "evals.formats.alpaca_eval:AlpacaEvalFormat",
    "arena_hard": "evals.formats.arena_hard:ArenaHardFormat",
    "arena_hard_v2": "evals.formats.arena_hard:ArenaHardV2Format",
    "mt_bench": "evals.formats.mt_bench:MTBenchFormat",
    "human_eval": "evals.formats.programs:HumanEvalFormat",
    "mbpp": "evals.formats.programs:MBPPFormat",
    "truthful_qa": "evals.formats.truthful_qa:TruthfulQAFormat",
    "truthful_qa_generation": "evals.formats.truthful_qa:TruthfulQAFormat",
    "mt_bench_pairwise": "evals.formats.mt_bench:MTBenchFormat",
    "lm_eval": "evals.formats.lm_eval:LMEvalFormat",
    "online_rlhf": "evals.formats.online_rlhf:OnlineRLHFFormat",
}

FORMATS = tuple(_FORMATS)


def get_format(name: str) -> SavedFormat:
    """The format of that benchmark. Raises RecipeError naming the known ones."""
    if name not in _FORMATS:
        raise RecipeError(f"There is no saved-work format {name!r}; use one of {', '.join(FORMATS)}.")
    module, attribute = _FORMATS[name].split(":")
    return getattr(importlib.import_module(module), attribute)()


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes as they lie there."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON list or JSON-lines file, plain or gzipped.

    Raises MissingInput for a file that is absent, empty or neither, naming the line.
    """
    try:
        text = read_text(Path(path))
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise MissingInput(f"{path} cannot be read ({error}); give a plain or gzipped JSON or JSON-lines file.") from error
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise MissingInput(f"{path} is not valid JSON ({error}); is the file cut off?") from error
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise MissingInput(f"{path}, line {number} is not valid JSON ({error}); is the file cut off?") from error
    bad = next((i for i, row in enumerate(rows, 1) if not isinstance(row, dict)), None)
    if not rows or bad is not None:
        found = "holds no rows" if not rows else f"row {bad} is not an object"
        raise MissingInput(f"{path}: {found}; expected a JSON list of objects, or one object a line.")
    return rows


def file_name(name: str) -> str:
    """A model's or judge's name as that of a file or folder: of `run/iter-2` and `org/model`, `__` for the slash.

    Raises RecipeError for a name that would lead elsewhere.
    """
    made = name.replace("/", "__")
    if made in ("", ".", "..") or "\x00" in made:
        raise RecipeError(f"{name!r} cannot be the name of a folder; register the checkpoint under another name to export it.")
    return made


def write_text(path: Path, text: str) -> Path:
    """Write a whole file or none; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
        handle.write(text)
    Path(handle.name).replace(path)
    return path
