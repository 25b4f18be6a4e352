"""What `harness watch` does, behind the command line."""

from pathlib import Path
from typing import Any

import typer

from core.errors import JudgeError, RecipeError
from harness.console import JsonReporter, Reporter, make_reporter, say_notes

DEFAULT = "human_eval,truthful_qa"
Judging = tuple[str | None, str | None, list[str], float | None]


def run_watch(
    folder: Path,
    benchmarks: str | None,
    recipe: str | None,
    run: str | None,
    base: Path | None,
    evaluating: tuple[dict[str, Any], dict[str, Any], Judging, int],
    pace: tuple[bool, float, float],
    as_json: bool,
    db: str | None,
) -> None:
    """`harness watch`. `evaluating`: engine settings, what every benchmark gets, judging as `run_evaluation`, seed; `pace`:
    once, interval and settle in seconds."""
    from db import Registry
    from harness.plan import Inputs, Ref
    from harness.preflight import check_evaluation, check_judges_served
    from harness.resolve import resolve_benchmarks, resolve_judge
    from harness.watching import Watch
    from harness.workflow import evaluate_checkpoint

    registry = Registry.open(db)
    reporter = make_reporter(as_json)
    evaluate = None
    once, interval, settle = pace
    if benchmarks != "none":
        section, rewards, seed = _section(registry, benchmarks, recipe, evaluating)
        check_evaluation(section)
        say_notes(check_judges_served(section))
        inputs = Inputs(base=None, sources=[], benchmarks=resolve_benchmarks(section), judge=resolve_judge(section), **rewards)

        def evaluate(policy: Ref, name: str) -> str:
            return evaluate_checkpoint(section, seed, policy, inputs, registry, reporter)

    name = run or folder.resolve().name
    watch = Watch(folder, registry, name, evaluate, _teller(reporter), base and base.resolve(), settle)
    try:
        watch.run(once, interval)
    finally:
        reporter.close()
    if watch.failed:
        raise typer.Exit(1)


def _section(
    registry: Any, benchmarks: str | None, recipe: str | None, evaluating: tuple[dict[str, Any], dict[str, Any], Judging, int]
) -> tuple[Any, dict[str, Any], int]:
    """(`evaluate` section, reward models, seed) of the options, or of the recipe."""
    from harness.commands import benchmark_entries, evaluation_section, find_judge
    from harness.recipe_file import load_recipe

    evaluate, common, judging, seed = evaluating
    if recipe is None:
        names = [name.strip() for name in (benchmarks or DEFAULT).split(",") if name.strip()]
        entries = {"benchmarks": benchmark_entries(names, common, {}), "held_out_reward": False}
        return *evaluation_section(registry, evaluate | entries, judging), seed
    if benchmarks is not None:
        raise RecipeError("--benchmarks and --recipe exclude each other: the recipe names its benchmarks.")
    loaded = load_recipe(recipe)
    section = loaded.evaluate.model_copy(update={"held_out_reward": False})
    if judging[0] is None and section.judge.kind == "reward_model":
        raise JudgeError(f"The recipe {loaded.name} judges with a reward model of its run; name one: --judge RUN/gold_reward.")
    rewards: dict[str, Any] = {}
    if judging[0] is not None:
        rewards, changes = find_judge(registry, judging[0], judging[1])
        changes |= {} if judging[3] is None else {"max_usd": judging[3]}
        section = type(section).model_validate(section.model_dump() | {"judge": changes})
    return section, rewards, loaded.seed


def _teller(reporter: Reporter) -> Any:
    """What hears of a watch's events: JSON lines, or words on the console."""
    if isinstance(reporter, JsonReporter):
        return reporter.emit

    def tell(event: str, **fields: Any) -> None:
        said = {
            "waiting": lambda: "waits for " + ", ".join(fields["missing"]),
            "registered": lambda: f"registered as {fields['name']} ({fields['fingerprint'][:16]})",
            "evaluated": lambda: "  ".join(_score(name, score) for name, score in fields["scores"].items()) or "evaluated",
            "failed": lambda: f"failed: {fields['error']}",
            "stopped": lambda: "the watch is over; the same command goes on",
        }[event]()
        reporter.console.print(f"{Path(fields['checkpoint']).name}: {said}", markup=False)

    return tell


def _score(name: str, score: dict[str, Any]) -> str:
    return f"{name} {'withheld' if score['value'] is None else format(score['value'], '.2f')}"
