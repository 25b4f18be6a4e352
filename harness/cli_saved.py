"""Commands for saved work: rescore, import. Thin, like `harness.cli`, of which they are a part."""

from pathlib import Path
from typing import Annotated

import typer

FORMAT_NAMES = (
    "alpaca_eval, arena_hard, arena_hard_v2, mt_bench, mt_bench_pairwise, human_eval, mbpp, truthful_qa, "
    "truthful_qa_generation, lm_eval, online_rlhf"
)

Name = Annotated[str, typer.Argument(metavar="BENCHMARK", help=f"One of {FORMAT_NAMES}.")]
Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files, plain or .gz, or folders of them.")]
Folds = Annotated[str | None, typer.Option(help="alpaca_eval: stable | introsort | avx512.", show_default=False)]
LengthControl = Annotated[str | None, typer.Option(help="alpaca_eval: official | noreg.", show_default=False)]
Difficulty = Annotated[str | None, typer.Option(help="alpaca_eval: position | instruction.", show_default=False)]
StyleControl = Annotated[
    str | None, typer.Option(help="arena_hard, arena_hard_v2: none | all | length | markdown.", show_default=False)
]
Plus = Annotated[bool, typer.Option("--plus", help="human_eval, mbpp: the added tests of EvalPlus too.")]
UnsafeExec = Annotated[bool, typer.Option("--unsafe-exec", help="human_eval, mbpp: run code without the sandbox; recorded.")]
StripA = Annotated[str | None, typer.Option(help='truthful_qa: yes | no, strip a leading "A:" from answers.', show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Database = Annotated[
    str | None, typer.Option("--db", help="Registry URL (default: HARNESS_DB, else SQLite in HARNESS_HOME).", show_default=False)
]


def _given(
    folds: str | None,
    length_control: str | None,
    difficulty: str | None,
    style_control: str | None,
    plus: bool,
    unsafe_exec: bool,
    strip_a: str | None,
) -> dict[str, str | None]:
    return {
        "folds": folds,
        "length-control": length_control,
        "difficulty": difficulty,
        "style-control": style_control,
        "plus": "yes" if plus else None,
        "unsafe-exec": "yes" if unsafe_exec else None,
        "strip-a": strip_a,
    }


def _prepare(benchmark: str, unsafe_exec: bool) -> None:
    """Let the sandbox start while the rest is imported."""
    if benchmark in ("human_eval", "mbpp") and not unsafe_exec:
        from evals.code import sandbox

        sandbox.prepare()


def rescore(
    benchmark: Name,
    files: Files,
    folds: Folds = None,
    length_control: LengthControl = None,
    difficulty: Difficulty = None,
    style_control: StyleControl = None,
    plus: Plus = False,
    unsafe_exec: UnsafeExec = False,
    strip_a: StripA = None,
    as_json: AsJson = False,
) -> None:
    """Compute scores from saved judgments or samples in the reference tools' formats. Needs no model and records nothing."""
    from harness.commands_saved import print_rescored

    _prepare(benchmark, unsafe_exec)
    given = _given(folds, length_control, difficulty, style_control, plus, unsafe_exec, strip_a)
    print_rescored(benchmark, files, given, as_json)


def import_(
    benchmark: Name,
    files: Files,
    source: Annotated[
        str | None, typer.Option(help="Where the files come from (default: their names).", show_default=False)
    ] = None,
    outputs: Annotated[bool, typer.Option("--outputs", help="Answers without judgments, to be judged here.")] = False,
    published: Annotated[bool, typer.Option("--published", help="A published leaderboard: reference rows, marked.")] = False,
    folds: Folds = None,
    length_control: LengthControl = None,
    difficulty: Difficulty = None,
    style_control: StyleControl = None,
    plus: Plus = False,
    unsafe_exec: UnsafeExec = False,
    strip_a: StripA = None,
    as_json: AsJson = False,
    db: Database = None,
) -> None:
    """Record saved judgments, answers or published leaderboards, with their source and the hashes of their files."""
    from harness.commands_saved import run_import

    _prepare(benchmark, unsafe_exec)
    given = _given(folds, length_control, difficulty, style_control, plus, unsafe_exec, strip_a)
    run_import(benchmark, files, source, outputs, published, given, as_json, db)


def add_commands(app: typer.Typer) -> None:
    """Add the two commands to the harness's."""
    app.command(
        epilog="Examples: harness rescore alpaca_eval annotations.json --json   |   harness rescore arena_hard "
        "model_judgment/gpt-4-1106-preview --style-control all   |   harness rescore human_eval samples.jsonl.gz --plus",
    )(rescore)
    app.command(
        "import",
        epilog="Examples: harness import alpaca_eval annotations.json --source https://...   |   harness import mt_bench "
        "model_answer/my-model.jsonl --outputs   |   harness import alpaca_eval leaderboard.csv --published",
    )(import_)
