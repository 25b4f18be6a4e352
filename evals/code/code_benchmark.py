"""What HumanEval and MBPP share: programs for the sandbox, pass@k, and the added tests of EvalPlus.

pass@k is the unbiased estimator of the Codex paper (arXiv 2107.03374, equation 1), a mean over tasks.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import ClassVar

from evals.benchmark import Benchmark, Question, ScoreRow
from evals.code.extraction import Extracted
from evals.code.plus import PlusTask, read_plus
from evals.code.sandbox import Program

KS = (1, 10, 100)
"""Values of k that are reported where every task has that many samples, as in openai/human-eval `evaluation.py`."""

Verdicts = Mapping[str, Sequence[float | None]]
"""{task id: verdict of each sample: 1, 0, or None where it could not be judged}."""


class CodeBenchmark(Benchmark):
    """A benchmark whose answers are programs; the sandbox gives the verdict, `n` samples a task."""

    kind = "generation"
    verdict = "sandbox"
    headline = "pass@1"
    optional_assets: ClassVar[dict[str, tuple[str, ...]]] = {"official": ("plus",)}
    timeout: ClassVar[float]
    """Seconds of wall time that one sample has."""
    plus_oracle: ClassVar[str]
    """Which special cases of EvalPlus apply: human_eval | mbpp."""
    plus_needs_own: ClassVar[bool] = True
    """Whether an answer passes + only if it passes the benchmark's own tests as well."""

    @abstractmethod
    def extract(self, question: Question, answer: str) -> Extracted:
        """The whole solution in a chat answer."""

    @abstractmethod
    def tested(self, question: Question, code: str) -> Program:
        """What the sandbox runs to judge a whole solution."""

    def program(self, question: Question, answer: str) -> tuple[Program, Extracted]:
        """What the sandbox runs to judge an answer, and the code that was found in it."""
        extracted = self.extract(question, answer)
        return self.tested(question, extracted.code), extracted

    def plus_tasks(self, files: Mapping[str, Path]) -> dict[str, PlusTask]:
        """{question id: added tests}; empty without the asset `plus`."""
        return read_plus(Path(files["plus"]), self.plus_oracle) if "plus" in files else {}

    def scores(self, verdicts: Verdicts, plus: Verdicts | None = None) -> list[ScoreRow]:
        """pass@k and plus_pass@k, in percent; `plus` holds the verdicts on the added tests, of the tasks that have some."""
        rows = pass_rows(verdicts, "pass@", headline=True)
        return rows + (pass_rows(plus, "plus_pass@") if plus else [])


def pass_rows(verdicts: Verdicts, prefix: str, headline: bool = False) -> list[ScoreRow]:
    """A row (percent) for each k in `KS` that every task has samples for.

    Interval: Wilson where each task has one sample, else bootstrap over tasks. Raises ValueError for no tasks.
    """
    from evals.closed_form import standard_error
    from evals.scoring import percentage  # numpy: not before the programs run, beside an idle core

    counts = [len(samples) for samples in verdicts.values()]
    rows = []
    for k in (k for k in KS if k <= min(counts)):
        values = [_task_value(samples, k) for samples in verdicts.values()]
        row = percentage(f"{prefix}{k}", values, headline=headline and k == 1, proportion=max(counts) == 1)
        error = standard_error([v for v in values if v is not None])
        rows.append(replace(row, stderr=None if error is None or row.value is None else 100 * error))
    return rows


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that one of k of the n samples drawn without replacement is correct (unbiased; needs k <= n)."""
    if n - correct < k:
        return 1.0
    return 1.0 - prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


def _task_value(verdicts: Sequence[float | None], k: int) -> float | None:
    """pass@k of one task; None when a sample of it could not be judged."""
    known = [verdict for verdict in verdicts if verdict is not None]
    return pass_at_k(len(known), int(sum(known)), k) if len(known) == len(verdicts) else None
