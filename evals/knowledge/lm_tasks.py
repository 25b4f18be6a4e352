"""lm-evaluation-harness tasks on local files: its own definitions, read from the installed package, with our data under them.

A task is a YAML file that includes the package's and replaces only where the data come from and how many shots are shown.
So prompts, shots, filters and metrics are lm-eval's, nothing of it is copied, and a folder written here can also be given
to lm-eval's own command: `lm_eval run --include_path FOLDER --tasks gsm8k`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.errors import MissingInput, RecipeError

FEWSHOT_SEED = 1234
"""Seed of the shots that lm-eval draws at random (lm_eval/defaults.py, DEFAULT_OTHER_SEED)."""
MMLU_FOLDER = "mmlu/default"
CATEGORIES = ("stem", "humanities", "social_sciences", "other")
"""MMLU's four groups, as lm-eval tags its subjects."""


@dataclass(frozen=True)
class LocalTask:
    """One task of the package, with the rows that take the place of its data set."""

    name: str
    definition: str
    """Path of its YAML file inside lm-eval's folder of tasks."""
    splits: Mapping[str, Sequence[Mapping[str, Any]]]
    """Split -> rows, under the names that the definition uses."""


def package_tasks() -> Path:
    """lm-eval's folder of tasks. Raises MissingInput when lm-eval is not installed."""
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise MissingInput("This benchmark takes its task from lm-eval; install it with `pip install lm-eval==0.4.13`.")
    return Path(spec.submodule_search_locations[0]) / "tasks"


def lm_eval_version() -> str:
    """Version of the installed lm-eval. Raises MissingInput when it is not installed."""
    package_tasks()
    return version("lm-eval")


@cache
def mmlu_categories() -> dict[str, str]:
    """Subject -> stem | humanities | social_sciences | other, from the tags of the package's 57 subject files."""
    import yaml

    found = {}
    for path in sorted((package_tasks() / MMLU_FOLDER).glob("mmlu_*.yaml")):
        tag = yaml.safe_load(path.read_text(encoding="utf-8"))["tag"]
        found[path.stem.removeprefix("mmlu_")] = tag.removeprefix("mmlu_").removesuffix("_tasks")
    return found


def write_tasks(folder: Path, tasks: Sequence[LocalTask], shots: int) -> None:
    """Write the tasks' YAML files and their rows into `folder`; with MMLU's subjects also its groups.

    `datasets` keeps its converted copy inside the folder too, so that no cache outlives the data. Raises RecipeError for more
    shots than there are rows to take them from.
    """
    for task in tasks:
        files = {}
        available = min((len(rows) for split, rows in task.splits.items() if split != "test"), default=0)
        if shots > available:
            raise RecipeError(f"{task.name} has {available} rows to take shots from; set shots to at most that, not to {shots}.")
        for split, rows in task.splits.items():
            path = folder / "rows" / f"{task.name}-{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            files[split] = str(path.resolve())
        _write_yaml(
            folder / f"{task.name}.yaml",
            {
                "include": str(package_tasks() / task.definition),
                "task": task.name,
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": files, "cache_dir": str((folder / "cache").resolve())},
                "num_fewshot": shots,
            },
        )
    if any(task.definition.startswith(MMLU_FOLDER) for task in tasks):
        for path in sorted((package_tasks() / MMLU_FOLDER).glob("_mmlu*.yaml")):
            _write_yaml(folder / path.name, {"include": str(path)})


def load_tasks(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Name -> `lm_eval.api.task.Task` of the tasks written to `folder`, ready to draw their shots. Nothing else is read."""
    from datasets.utils import disable_progress_bars
    from lm_eval.tasks import TaskManager

    disable_progress_bars()
    loaded = TaskManager(include_path=str(folder), include_defaults=False).load(list(names))["tasks"]
    for task in loaded.values():
        task.set_fewshot_seed(FEWSHOT_SEED)
    return loaded


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    # JSON is YAML, and quotes every path the same way
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
