"""MBPP: short Python functions from a sentence and three assertions, run in the sandbox.

Rows in the format of google-research/mbpp (task_id, text, code, test_setup_code, test_list). Test split: tasks 11 to 510;
three worked examples, tasks 2 to 4, come first as turns of the conversation (the 3 shots of lm-eval 0.4.13,
tasks/mbpp/mbpp.yaml, in the form of a chat).
"""

import ast
import builtins
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from core.errors import MissingInput
from evals.benchmark import Message, Question, read_jsonl, require_asset, sample
from evals.code.code_benchmark import CodeBenchmark
from evals.code.extraction import Extracted, extract_program
from evals.code.sandbox import Program

TEST_TASKS = range(11, 511)
SHOT_TASKS = (2, 3, 4)
_INSTRUCTION = "Write Python code for this task. Reply with one Python code block."


class MBPP(CodeBenchmark):
    """Answers are one chat turn after three worked examples; `n` samples per task, official 1 (greedy)."""

    name = "mbpp"
    assets = {"official": ("problems",)}
    default_decoding = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 512, "n": 1}
    identity = {"prompt": "chat-3-shot-1"}
    timeout = 10.0
    plus_oracle = "mbpp"
    plus_needs_own = False  # MBPP+ corrected tasks: 56 of its 378 references fail the original assertions

    def load(self, files: Mapping[str, Path], limit: int | None = None, sample_seed: int = 0) -> list[Question]:
        tasks = self.tasks(files)
        questions = [tasks[name] for name in map(question_id, TEST_TASKS) if name in tasks]
        return sample(questions, limit, sample_seed)

    def tasks(self, files: Mapping[str, Path]) -> dict[str, Question]:
        """{question id: question} of all 974 tasks, the test split among them. Raises MissingInput without the examples."""
        rows = {int(row["task_id"]): row for row in read_jsonl(require_asset(files, "problems", self.name))}
        if any(task not in rows for task in SHOT_TASKS):
            raise MissingInput("The problems of mbpp lack tasks 2 to 4, the worked examples; run `harness data fetch mbpp`.")
        shots = [{"user": instruct(rows[task]), "assistant": fenced(rows[task]["code"])} for task in SHOT_TASKS]
        return {
            question_id(task): Question(question_id(task), "code", (instruct(row),), row | {"shots": shots})
            for task, row in rows.items()
        }

    def messages(self, question: Question, earlier_answers: list[str]) -> list[Message]:
        shots = [{"role": role, "content": shot[role]} for shot in question.data["shots"] for role in ("user", "assistant")]
        return [*shots, *super().messages(question, earlier_answers)]

    def extract(self, question: Question, answer: str) -> Extracted:
        return extract_program(answer, defined_names(question.data["code"]) & used_names(_tests(question.data)))

    def tested(self, question: Question, code: str) -> Program:
        """Code and set-up where the code runs, the assertions apart from it. What they use of Python's own names is Python's,
        unless the task is to write a function of that name."""
        row = question.data
        names = used_names(_tests(row)) - (set(dir(builtins)) - defined_names(row["code"]))
        return Program(f"{code}\n{row['test_setup_code']}\n", _tests(row), tuple(sorted(names)))


def question_id(task: int | str) -> str:
    """11, "11" and "Mbpp/11" -> "Mbpp/11", the form that EvalPlus uses. Raises ValueError for what is no number."""
    return f"Mbpp/{int(str(task).rpartition('/')[2])}"


def instruct(row: Mapping[str, Any]) -> str:
    """The user's turn: an instruction, the task and its assertions in a Python fence."""
    return f"{_INSTRUCTION}\n\n{row['text'].strip()}\n\nIt must pass these tests:\n\n{fenced(_tests(row))}"


def fenced(code: str) -> str:
    return f"```python\n{code.replace(chr(13), '').strip()}\n```"


def _tests(row: Mapping[str, Any]) -> str:
    return "\n".join(row["test_list"])


@cache
def used_names(source: str) -> frozenset[str]:
    """Names that a piece of Python reads."""
    return frozenset(n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))


@cache
def defined_names(source: str) -> frozenset[str]:
    """Names of the functions and classes that a piece of Python defines."""
    return frozenset(n.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.ClassDef))
