"""Samples files of the code benchmarks: openai/human-eval's `samples.jsonl`, EvalPlus' `solution` rows, raw chat answers.

A row names its `task_id` and holds one of
- `completion`: follows the problem's prompt, as openai/human-eval runs it (MBPP: the code itself);
- `solution`: a whole program, as EvalPlus runs it;
- `response`: the chat answer as it came; the extraction rule finds the program.

Where a row has several, the first of these is run: it is what the official evaluator of such a file runs. Several rows of
a task are samples of it. A file's own verdicts (`passed`) are never believed: everything is run again, in the sandbox.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from core.errors import MissingInput, RecipeError
from evals.benchmark import Question, ScoreRow
from evals.code import sandbox
from evals.code.code_benchmark import CodeBenchmark
from evals.code.code_verdicts import by_question, judge_config, plus_value, run_codes, verdict
from evals.code.extraction import Extracted
from evals.code.human_eval import HumanEval, packaged_problems
from evals.code.mbpp import MBPP, TEST_TASKS, question_id
from evals.formats.saved import SavedAnswer, SavedEvaluation, SavedOutputs, Stored, read_rows, write_text

KINDS = ("completion", "solution", "response")


@dataclass(frozen=True)
class _Sample:
    """One row of a samples file."""

    task: str
    number: int
    """Sample of the task, from 0, in the order of the rows."""
    found: Extracted
    text: str
    """What the model said, as far as the row has it."""
    passed: bool | None
    """The file's own verdict."""


class ProgramsFormat:
    """See `evals.formats.saved.SavedFormat`."""

    benchmark: str
    options: Mapping[str, tuple[str, ...]] = {"plus": ("no", "yes"), "unsafe-exec": ("no", "yes")}
    assets = ("problems", "plus")
    import_scale = 100.0
    """Scores here are fractions, as the reference tools print them; the registry holds percent."""

    made: CodeBenchmark

    def read(self, paths: Sequence[Path], options: Mapping[str, str], files: Mapping[str, Path]) -> list[SavedEvaluation]:
        """Runs every sample. Raises SandboxUnavailable where code cannot be contained, unless unsafe-exec is yes."""
        mode = sandbox.UNSAFE if options["unsafe-exec"] == "yes" else sandbox.probe()
        files = self._files(files)
        tasks = self._tasks(files)
        if options["plus"] == "yes" and "plus" not in files:
            raise MissingInput(f"The added tests of {self.benchmark} are not here; run `harness data fetch {self.benchmark}`.")
        plus = self.made.plus_tasks(files) if options["plus"] == "yes" else {}
        return [
            self._evaluation(model, samples, tasks, plus, mode) for model, samples in sorted(self._samples(paths, tasks).items())
        ]

    def _evaluation(
        self, model: str, samples: Sequence[_Sample], tasks: Mapping[str, Question], plus: Mapping[str, Any], mode: str
    ) -> SavedEvaluation:
        places = {(sample.task, 1, sample.number): sample for sample in samples}
        codes = {place: sample.found.code for place, sample in places.items()}
        plus = {task: plus[task] for task in {sample.task for sample in samples} if task in plus}
        ran = run_codes(self.made, tasks, codes, self.made.timeout, mode, plus=plus)
        verdicts = [verdict(place, codes[place], places[place].found.rule, *outcomes) for place, outcomes in ran.items()]
        values = {v.key[:3]: v.value for v in verdicts}
        added = {v.key[:3]: plus_value(v.raw) for v in verdicts if v.question_id in plus}
        rows = self.made.scores(by_question(list(values), values), by_question(list(added), added))
        return SavedEvaluation(
            model,
            f"sandbox:{mode}",
            "sandbox",
            judge_config(mode, self.made.timeout, bool(plus)),
            [_fraction(row) for row in rows],
            verdicts,
            [SavedAnswer(s.task, s.text, sample=s.number) for s in samples],
            {"tasks": len({s.task for s in samples}), "samples": len(samples)},
            self._notes(places, values, tasks, plus),
        )

    def _notes(
        self,
        places: Mapping[tuple[str, int, int], _Sample],
        values: Mapping[tuple[str, int, int], float | None],
        tasks: Mapping[str, Question],
        plus: Mapping[str, Any],
    ) -> list[str]:
        counts, notes = Counter(place[0] for place in places), []
        official = self._official(tasks)
        if len(counts) < official:
            notes.append(f"A subset: {len(counts)} of {official} tasks have samples, and the scores are of these alone.")
        if len(set(counts.values())) > 1:
            notes.append(f"Tasks have {min(counts.values())} to {max(counts.values())} samples: pass@k needs k of every task.")
        if plus and len(plus) < len(counts):
            notes.append(f"The added tests exist for {len(plus)} of the {len(counts)} tasks: plus_pass@k is of these.")
        judged = [(sample, values[place]) for place, sample in places.items() if sample.passed is not None]
        differ = sorted({sample.task for sample, value in judged if value is not None and bool(value) != sample.passed})
        if differ:
            notes.append(f"The file's own `passed` differs from what running the code gave for {', '.join(differ[:10])}.")
        return notes

    def read_outputs(self, paths: Sequence[Path]) -> list[SavedOutputs]:
        """Answers to be run later by the stage `execute`: the chat answer where a row has it, else its program in a fence,
        where the extraction rule finds it whole."""
        by_model: dict[str, list[SavedAnswer]] = defaultdict(list)
        counts: Counter[tuple[str, str]] = Counter()
        for path in paths:
            for number, row in enumerate(read_rows(path), 1):
                kind = _kind(row, ("response", "solution", "completion"), f"{path}, row {number}")
                model, task = str(row.get("model") or _model_of(path)), self._name(row["task_id"])
                text = row[kind] if kind == "response" else f"```python\n{self._whole(task, row, kind)}\n```"
                by_model[model].append(SavedAnswer(task, text, sample=counts[model, task]))
                counts[model, task] += 1
        return [SavedOutputs(model, answers) for model, answers in sorted(by_model.items())]

    def write(self, model: str, rows: Stored, folder: Path) -> list[Path]:
        """`samples.jsonl`: what the reference evaluator runs, the chat answer beside it."""
        lines = []
        for question in rows.questions:
            for (of, turn, number), answer in sorted(rows.answers.items()):
                if of != question.id:
                    continue
                judgment = rows.judgments.get((of, turn, number, 1))
                code = (judgment.raw or {}).get("code") if judgment is not None else None
                code = self.made.extract(question, answer.text).code if code is None else code
                lines.append({"task_id": of, **self._row(question, code), "response": answer.text, "model": model})
        return [write_text(folder / "samples.jsonl", "".join(json.dumps(line) + "\n" for line in lines))]

    def read_published(self, paths: Sequence[Path]) -> NoReturn:
        raise RecipeError(
            f"{self.benchmark} publishes no leaderboard file; give the samples themselves without --published, and they are run."
        )

    def _files(self, files: Mapping[str, Path]) -> dict[str, Path]:
        return dict(files)

    def _whole(self, task: str, row: Mapping[str, Any], kind: str) -> str:
        """The whole program of a row without a chat answer."""
        return row[kind]

    def _samples(self, paths: Sequence[Path], tasks: Mapping[str, Question]) -> dict[str, list[_Sample]]:
        """{model: its samples}; raises MissingInput naming file and row of what is no sample of a known task."""
        by_model: dict[str, list[_Sample]] = defaultdict(list)
        counts: Counter[tuple[str, str]] = Counter()
        for path in paths:
            for number, row in enumerate(read_rows(path), 1):
                where = f"{path}, row {number}"
                kind = _kind(row, KINDS, where)
                model, task = str(row.get("model") or _model_of(path)), self._name(row["task_id"])
                if task not in tasks:
                    raise MissingInput(
                        f"{where}: task {row['task_id']!r} is not one of {self.benchmark}; is the file another benchmark's?"
                    )
                found = self._found(tasks[task], row, kind)
                text = row["response"] if isinstance(row.get("response"), str) else row[kind]
                passed = row["passed"] if isinstance(row.get("passed"), bool) else None
                by_model[model].append(_Sample(task, counts[model, task], found, text, passed))
                counts[model, task] += 1
        return by_model

    def _name(self, task: Any) -> str:
        return str(task)

    def _official(self, tasks: Mapping[str, Question]) -> int:
        """Tasks of the official set."""
        return len(tasks)

    def _tasks(self, files: Mapping[str, Path]) -> dict[str, Question]:
        """{task id: question} of every task that a row may name."""
        return {question.id: question for question in self.made.load(files)}

    def _found(self, question: Question, row: Mapping[str, Any], kind: str) -> Extracted:
        """The program of a row, and the name of the rule that found it."""
        if kind == "response":
            return self.made.extract(question, row[kind])
        return Extracted(row[kind], kind)

    def _row(self, question: Question, code: str) -> dict[str, str]:
        return {"solution": code}


class HumanEvalFormat(ProgramsFormat):
    """HumanEval's samples; a row's own `prompt` replaces the official one."""

    benchmark = "human_eval"
    made = HumanEval()

    def _files(self, files: Mapping[str, Path]) -> dict[str, Path]:
        """The problems come from the catalogue's file, or from the installed human-eval package."""
        packaged = packaged_problems()
        return ({"problems": packaged} if packaged else {}) | dict(files)

    def _found(self, question: Question, row: Mapping[str, Any], kind: str) -> Extracted:
        if isinstance(row.get("prompt"), str):
            question = replace(question, data=question.data | {"prompt": row["prompt"]})
        if kind == "completion":
            return Extracted(question.data["prompt"] + row[kind], kind)
        return super()._found(question, row, kind)

    def _whole(self, task: str, row: Mapping[str, Any], kind: str) -> str:
        if kind == "solution" or isinstance(row.get("prompt"), str):
            return row.get("prompt", "") * (kind == "completion") + row[kind]
        questions = self._tasks(self._files({}))
        if task not in questions:
            raise MissingInput(f"Task {task!r} is not one of human_eval; is the file another benchmark's?")
        return questions[task].data["prompt"] + row[kind]

    def _row(self, question: Question, code: str) -> dict[str, str]:
        """The official evaluator puts the prompt before the completion. The prompt ends in a docstring, which is a body: a
        whole program may follow it."""
        prompt = question.data["prompt"]
        return {"completion": code.removeprefix(prompt) if code.startswith(prompt) else f"\n{code}"}


class MBPPFormat(ProgramsFormat):
    """MBPP's samples: any of the 974 tasks; task ids 11, "11" and "Mbpp/11" are the same."""

    benchmark = "mbpp"
    made = MBPP()

    def _tasks(self, files: Mapping[str, Path]) -> dict[str, Question]:
        return self.made.tasks(files)

    def _official(self, tasks: Mapping[str, Question]) -> int:
        return len(TEST_TASKS)

    def _name(self, task: Any) -> str:
        try:
            return question_id(task)
        except ValueError:
            return str(task)


def _model_of(path: Path) -> str:
    """samples/my-model.jsonl.gz and my-model.jsonl_results.jsonl -> my-model."""
    name = Path(path).name
    for suffix in (".gz", "_results.jsonl", ".jsonl", ".json"):
        name = name.removesuffix(suffix)
    return name


def _kind(row: Mapping[str, Any], kinds: Sequence[str], where: str) -> str:
    """The first of `kinds` that a row has as text. Raises MissingInput when it has none, or no task_id."""
    kind = next((kind for kind in kinds if isinstance(row.get(kind), str)), None)
    if "task_id" not in row or kind is None:
        raise MissingInput(f"{where} lacks a task_id, or one of {', '.join(KINDS)}; give a samples file of the benchmark.")
    return kind


def _fraction(row: ScoreRow) -> ScoreRow:
    numbers = {name: getattr(row, name) for name in ("value", "low", "high", "stderr", "worst", "best")}
    return replace(row, **{name: None if value is None else value / 100 for name, value in numbers.items()})
