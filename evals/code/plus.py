"""HumanEval+ and MBPP+: many more inputs for the same tasks, their expected outputs computed from the reference solution.

Data and definitions: evalplus/humanevalplus_release v0.1.10, evalplus/mbppplus_release, evalplus/evalplus @ HEAD
(arXiv 2305.01210). References are run once, in the sandbox, and kept by content under HARNESS_HOME/cache.
"""

import json
import marshal
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from core import paths
from core.errors import MissingInput
from core.fingerprint import digest
from evals.benchmark import read_jsonl
from evals.code import sandbox

MIN_SECONDS = 1.0
FACTOR = 4.0
"""One input has max(MIN_SECONDS, FACTOR x the reference's time)."""
TASK_SECONDS = 60.0
"""Most that all inputs of a task may take together (EVALPLUS_TIMEOUT_PER_TASK's default)."""
REFERENCE_SECONDS = 120.0
_CHECKS = Path(__file__).with_name("plus_checks.py")


@dataclass(frozen=True)
class PlusTask:
    """One task's inputs, EvalPlus' copy of the benchmark's own first."""

    id: str
    entry_point: str
    code: str
    """The reference solution, whole."""
    inputs: Sequence[Sequence[Any]]
    atol: float
    oracle: str
    key: str = field(repr=False)
    """sha256 (hex) of all that decides the expected outputs."""


@dataclass(frozen=True)
class Reference:
    """What the reference solution returned."""

    seconds: Sequence[float]
    outputs: bytes
    """Marshalled list, compressed; never read outside the sandbox."""


def read_plus(path: Path, oracle: str) -> dict[str, PlusTask]:
    """{task id: task} of a file of EvalPlus, plain or .gz; `oracle` is human_eval or mbpp."""
    tasks = {}
    for row in read_jsonl(path):
        raw = [*row["base_input"], *row["plus_input"]]
        code = row["prompt"] + row["canonical_solution"]
        inputs = mbpp_inputs(int(row["task_id"].split("/")[-1]), raw) if oracle == "mbpp" else raw
        key = digest({"code": code, "inputs": json.dumps(raw), "oracle": oracle, "checks": _checks(), "python": sys.version})
        tasks[row["task_id"]] = PlusTask(row["task_id"], row["entry_point"], code, inputs, row["atol"], oracle, key)
    return tasks


def references(
    tasks: Mapping[str, PlusTask], mode: str, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> dict[str, Reference]:
    """{task id: what its reference returned}, computed here where that was not done before; `progress` gets (done, all).

    Raises MissingInput when a reference solution fails.
    """
    folder = paths.home() / "cache" / "plus"
    missing = [task for task in tasks.values() if not (folder / f"{task.key}.marshal").is_file()]
    for start in range(0, len(missing), 32):
        batch = missing[start : start + 32]
        programs = [_program(task, task.code, "reference", {}, _pack(None)) for task in batch]
        outcomes = sandbox.run_many(programs, REFERENCE_SECONDS, mode, workers)
        for task, outcome in zip(batch, outcomes, strict=True):
            if not outcome.passed:
                said = f"{outcome.status}: {outcome.detail.strip()[-300:]}"
                raise MissingInput(
                    f"The reference solution of {task.id} fails in the sandbox ({said}); "
                    "fetch the plus file again, and check that Python is 3.11 or 3.12."
                )
            _keep(folder / f"{task.key}.marshal", outcome.output)
        if progress:
            progress(start + len(batch), len(missing))
    return {name: Reference(*marshal.loads((folder / f"{task.key}.marshal").read_bytes())) for name, task in tasks.items()}


def plus_program(task: PlusTask, reference: Reference, code: str) -> tuple[sandbox.Program, float]:
    """The program that passes when `code` (a whole solution) returns what the reference did, and its seconds in all."""
    limits = [max(MIN_SECONDS, FACTOR * seconds) for seconds in reference.seconds]
    return _program(task, code, "compare", {"limits": limits}, reference.outputs), min(TASK_SECONDS, sum(limits)) + 1.0


def _program(task: PlusTask, code: str, what: str, settings: dict[str, Any], expected: bytes) -> sandbox.Program:
    settings = settings | {"entry_point": task.entry_point, "oracle": task.oracle, "atol": task.atol}
    data = marshal.dumps([_pack(settings), _pack(list(map(list, task.inputs))), expected])
    return sandbox.Program(
        code, f"_solution = {task.entry_point}\n{_checks()}\n{what}(_solution)\n", (task.entry_point,), data=data
    )


def _pack(value: Any) -> bytes:
    return zlib.compress(marshal.dumps(value), 1)


def _keep(path: Path, content: bytes) -> None:
    """Whole or absent, also when two evaluations do the same at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as handle:
        handle.write(content)
    Path(handle.name).replace(path)


@cache
def _checks() -> str:
    return _CHECKS.read_text()


# JSON has neither tuples, sets nor complex numbers. Which inputs of which MBPP task were some before they were written:
# evalplus/evalplus `data/mbpp.py` (`mbpp_deserialize_inputs`).
_TUPLES = {2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809}
_LISTS_OF_TUPLES = {63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780}
_FIRST_LIST_OF_TUPLES = {75, 413, 444, 753}
_SECOND_TUPLE = {106, 750}
_FIRST_TUPLE = {250, 405, 446, 617, 720, 763, 808, 307}
_TUPLES_OF_TUPLES = {259, 401, 445}
_ALL_TUPLES = {580, 615, 791}


def mbpp_inputs(task: int, inputs: Sequence[list[Any]]) -> list[list[Any]]:
    """Inputs of one MBPP+ task with the types that its functions expect, from what JSON made of them."""
    return [_mbpp_arguments(task, arguments) for arguments in inputs]


def _mbpp_arguments(task: int, arguments: list[Any]) -> list[Any]:
    first, *rest = arguments if arguments else [None]
    if task in _TUPLES:
        return [tuple(value) for value in arguments]
    if task in _LISTS_OF_TUPLES:
        return [[tuple(item) for item in value] for value in arguments]
    if task in _FIRST_LIST_OF_TUPLES:
        return [[tuple(item) for item in first], *rest]
    if task in _SECOND_TUPLE:
        return [first, tuple(rest[0])]
    if task in _FIRST_TUPLE:
        return [tuple(first), *rest]
    if task in _TUPLES_OF_TUPLES:
        return [tuple(tuple(item) for item in value) for value in arguments]
    if task == 115:
        return [[set(item) if isinstance(item, list) and item else {} for item in first]]
    if task == 124:
        return [float(first), complex(rest[0])]
    if task == 252:
        return [complex(first)]
    if task == 278:
        return [tuple(tuple(item) if isinstance(item, list) else item for item in first)]
    if task == 722:
        return [{key: tuple(value) for key, value in first.items()}, *rest]
    if task in _ALL_TUPLES:
        return list(_deep_tuple(arguments))
    return arguments


def _deep_tuple(value: Any) -> Any:
    return tuple(map(_deep_tuple, value)) if isinstance(value, list) else value
