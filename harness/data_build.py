"""Building data without a run: a mixture, or the data stage of a recipe under the very key that its run will look for."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from core import paths
from core.artifacts import Artifact, Store, write_durably
from core.errors import RecipeError, RunInUse, StageFailed
from core.stage import Spec
from harness import executor
from harness.catalogue import nearest
from harness.console import Reporter
from harness.lock import run_lock
from harness.markdown import front_matter, inline
from harness.mixture_file import load_mixture, shipped_mixtures
from harness.plan import VERSIONS, Inputs, Node, Plan
from harness.plan.training import add_data, wants_margins
from harness.provenance import origins
from harness.recipe import Data, Evaluate
from harness.recipe_file import load_recipe, shipped
from harness.resolve import resolve_benchmarks, resolve_model, resolve_questions, resolve_sources, resolve_tokenizer

MIXTURE_SEED = 42
"""The default of a recipe's."""


@dataclass(frozen=True)
class DataPlan:
    """One data stage and what its card says beside the counts."""

    name: str
    description: str
    data: Data
    plan: Plan

    @property
    def node(self) -> Node:
        return self.plan.nodes["data"]


def plan_data(name: str, overrides: list[str] | None = None) -> DataPlan:
    """The data stage of a mixture or recipe, by name or path. Raises RecipeError, MissingInput, HashMismatch."""
    known = {**shipped_mixtures(), **shipped()}
    if name not in known and not Path(name).expanduser().is_file():
        raise RecipeError(
            f"No mixture or recipe {name!r}{nearest(name, known)}; use one of {', '.join(known)}, or the path of a YAML file."
        )
    if not _is_recipe(name):
        if overrides:
            raise RecipeError("--set is for recipes; copy the mixture's file, change it and give its path.")
        mixture = load_mixture(name)
        if mixture.tokenizer == "base":
            raise RecipeError("A mixture has no base model; give the directory of a tokenizer, or build the data of a recipe.")
        plan = _plan(mixture.name, mixture, None, MIXTURE_SEED)
        add_data(plan, mixture, mixture.gold_fraction > 0, MIXTURE_SEED)
        return DataPlan(mixture.name, mixture.description, mixture, plan)
    recipe = load_recipe(name, overrides)
    plan = _plan(recipe.name, recipe.data, recipe.evaluate, recipe.seed)
    if recipe.data.tokenizer == "base":
        plan.policies["base"] = resolve_model(recipe.base, "base")
    add_data(plan, recipe.data, recipe.gold_reward is not None, recipe.seed, wants_margins(recipe))
    return DataPlan(recipe.name, f"Data of the recipe {recipe.name}.", recipe.data, plan)


def build_data(planned: DataPlan, reporter: Reporter) -> tuple[Artifact, bool]:
    """(the sealed data, whether it was there already). Killed and run again it starts its only stage anew.

    Raises RunInUse when another process builds the same, StageFailed.
    """
    node, store = planned.node, Store(paths.artifacts())
    store.root.mkdir(parents=True, exist_ok=True)
    reporter.plan(planned.plan)
    folder = paths.home() / "data_builds" / node.key
    with _lock(folder, planned.name):
        artifact = store.find(node.stage, node.key)
        reused = artifact is not None
        if artifact is None:
            artifact = _execute(node, planned, store, folder, reporter)
    reporter.done(node, artifact, reused)
    return artifact, reused


def card_page(planned: DataPlan, card: dict[str, Any]) -> str:
    """The artifact's README.md with title, description and what the catalogue knows of licences."""
    from train.data_card import render

    known = origins({"data": planned.data.model_dump(mode="json")})
    rows = [[inline(one.name), inline(one.licence), inline(one.source), inline(one.note)] for one in known]
    return render(card, inline(planned.name), inline(planned.description), rows)


def export(planned: DataPlan, artifact: Artifact, card: dict[str, Any], folder: Path) -> None:
    """Copy rows and card to a folder that `datasets.load_dataset(folder, NAME)` reads.

    Raises RecipeError for a folder that holds something else.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "card.json").is_file():
        raise RecipeError(f"{folder} is not empty and holds no data of ours; give --to an empty folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*card["files"], "card.json"):
        shutil.copyfile(artifact.file(name), folder / name)
    configs = [
        {"config_name": name.removesuffix(".jsonl"), "data_files": name} for name, told in card["files"].items() if told["rows"]
    ]
    write_durably(folder / "README.md", front_matter({"configs": configs}) + "\n" + card_page(planned, card))


def _is_recipe(name: str) -> bool:
    """Whether a name or the content of a file is a recipe's rather than a mixture's."""
    if name in shipped_mixtures():
        return False
    path = shipped().get(name, Path(name).expanduser())
    if not path.is_file():
        return False
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return False  # the reader of mixtures says what is wrong with it
    return isinstance(content, dict) and "data" in content


def _plan(title: str, data: Data, evaluate: Evaluate | None, seed: int) -> Plan:
    inputs = Inputs(
        base=None,
        sources=resolve_sources(data.sources),
        benchmarks=resolve_benchmarks(evaluate) if evaluate else [],
        questions=resolve_questions(data),
        tokenizer=resolve_tokenizer(data.tokenizer),
    )
    return Plan(title, evaluate, seed, inputs)


@contextlib.contextmanager
def _lock(folder: Path, name: str) -> Iterator[None]:
    try:
        with run_lock(folder, name):
            yield
    except RunInUse as error:
        raise RunInUse(f"Another process is building {name}; wait for it, its result will be found.") from error


def _execute(node: Node, planned: DataPlan, store: Store, folder: Path, reporter: Reporter) -> Artifact:
    spec = Spec(
        stage=node.stage,
        version=VERSIONS[node.program],
        key=node.key,
        settings=node.settings,
        inputs={name: {"path": ref.path, "fingerprint": ref.fingerprint} for name, ref in node.inputs.items()},
        store=str(store.root),
        run=f"data build {planned.name}",
        seed=planned.plan.seed,
        events=str(folder / "events.ndjson"),
        resources=node.resources,
    )
    path, log = folder / "spec.json", folder / f"{int(time.time())}.log"
    spec.save(path)
    command, environment = executor.python_command(node.program, path)
    try:
        executor.run_process(spec, node.program, command, environment, log, _follow(node, reporter))
    except StageFailed as error:
        reporter.failed(node, str(error))
        raise
    artifact = store.find(node.stage, node.key)
    if artifact is None:
        raise StageFailed(f"{node.name} ended without sealing its artifact; its log: {log}.")
    return artifact


def _follow(node: Node, reporter: Reporter) -> Callable[[dict[str, Any]], None]:
    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "started":
            reporter.started(node)
        elif event["event"] == "progress":
            reporter.progress(node, event["done"], event["total"], event["unit"])
        elif event["event"] == "message":
            reporter.message(node, event["text"])

    return on_event
