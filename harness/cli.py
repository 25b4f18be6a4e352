"""The command line. Thin: each command checks its input, opens what it needs and calls one function."""

from typing import Annotated

import typer

from harness.cli_data import add_data_commands
from harness.cli_judge import app as judge_app
from harness.cli_publish import app as export_app
from harness.cli_reward import add_reward_command
from harness.cli_saved import add_commands
from harness.cli_watch import add_watch_command

app = typer.Typer(
    name="harness",
    help="Evaluation-centric leaderboard harness with training hooks for online iterative RLHF.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Start here: harness doctor; harness train-and-eval quickstart; harness leaderboard; harness dashboard",
)
data_app = typer.Typer(
    help="Public data: what there is, where it was found, downloads and checks.",
    epilog="Examples: harness data list   |   harness data fetch alpaca_eval   |   harness data build public",
    no_args_is_help=True,
)
db_app = typer.Typer(help="The registry's schema.", epilog="Example: harness db upgrade", no_args_is_help=True)
ALL_BENCHMARKS = "alpaca_eval,arena_hard,mt_bench,human_eval,truthful_qa"
add_commands(app)
add_data_commands(data_app)
add_reward_command(app)
add_watch_command(app)
app.add_typer(export_app, name="export")
app.add_typer(judge_app, name="judge")
app.add_typer(data_app, name="data")
app.add_typer(db_app, name="db")

Database = Annotated[
    str | None, typer.Option("--db", help="Registry URL (default: HARNESS_DB, else SQLite in HARNESS_HOME).", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
MaxUsd = Annotated[
    float | None, typer.Option("--max-usd", help="Dollars that the run may spend on its judge; it stops before more is due.")
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the stages and what the judge will cost; run nothing. A model of the hub is fetched."),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set dpo.beta=0.05 (repeatable).")]


@app.command(
    "train-and-eval",
    epilog="Examples: harness train-and-eval quickstart   |   harness train-and-eval smollm2-135m --run small "
    "--set iterations=2 --dry-run   |   harness train-and-eval quickstart --baseline offline_dpo",
)
def train_and_eval(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or the path of a YAML file.")],
    run: Annotated[str | None, typer.Option(help="Name of the run (default: the recipe's). The same name resumes.")] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Run a baseline of the recipe instead: offline_dpo | raft | best_of_n_sft.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    max_usd: MaxUsd = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    db: Database = None,
) -> None:
    """Run a recipe from base model to leaderboard: SFT, reward models, T iterations of online DPO, evaluations.

    Run the same command again after any interruption: what is verified done is kept, the rest resumes.
    """
    from harness.commands import run_recipe

    run_recipe(recipe, run, baseline, overrides or [], max_usd, dry_run, as_json, db)


@app.command(
    "eval",
    epilog="Examples: harness eval ./my-checkpoint --benchmarks human_eval,truthful_qa   |   "
    "harness eval org/model --benchmarks alpaca_eval --judge openai:gpt-4.1   |   "
    "harness eval ./ckpt --benchmarks mt_bench --variant starter --judge quickstart/gold_reward",
)
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="Directory or hub id; or imported:NAME, answers that were imported.")],
    benchmarks: Annotated[str, typer.Option(help="Comma-separated names.")] = ALL_BENCHMARKS,
    variant: Annotated[str, typer.Option(help="official, or starter (the small set shipped with the harness).")] = "official",
    limit: Annotated[int | None, typer.Option(help="Seeded sample of so many questions; never ranked with full runs.")] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="openai:MODEL, serve:PATH (a checkpoint served by vLLM here), or a reward model (RUN/gold_reward)."),
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="Endpoint of an OpenAI-compatible judge.")] = None,
    engine: Annotated[str, typer.Option(help="vllm or transformers.")] = "vllm",
    max_tokens: Annotated[int | None, typer.Option(help="Overrides the official answer length; recorded.")] = None,
    max_model_len: Annotated[int, typer.Option(help="Context of the engine, in tokens.")] = 8192,
    samples: Annotated[
        int | None, typer.Option(help="Answers per question, for pass@k; with --temperature above 0.", show_default=False)
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Overrides the official one; recorded.", show_default=False)] = None,
    shots: Annotated[
        int | None, typer.Option(help="Worked examples (gsm8k, mmlu, arc_challenge); recorded.", show_default=False)
    ] = None,
    chat_template: Annotated[
        bool | None,
        typer.Option("--chat-template/--plain", help="Of truthful_qa, gsm8k, mmlu, arc_challenge: plain officially."),
    ] = None,
    system_prompt: Annotated[str | None, typer.Option(help="Before every conversation; recorded.", show_default=False)] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: auto (as stored), bfloat16 or float32; recorded.")] = "auto",
    likelihood_engine: Annotated[
        str, typer.Option(help="transformers or vllm, for log-probabilities of given answers; recorded.")
    ] = "transformers",
    unsafe_exec: Annotated[bool, typer.Option("--unsafe-exec", help="Run code without the sandbox; recorded.")] = False,
    revision: Annotated[str | None, typer.Option(help="Hub commit.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of samples and sampling.")] = 42,
    judge_options: Annotated[
        list[str] | None,
        typer.Option("--judge-option", help="A key of evaluate.judge: --judge-option concurrency=4 (repeatable)."),
    ] = None,
    max_usd: MaxUsd = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    db: Database = None,
) -> None:
    """Evaluate any checkpoint. Weights never seen before are fingerprinted and registered as third-party."""
    from harness.commands import benchmark_entries, run_evaluation

    names = [name.strip() for name in benchmarks.split(",") if name.strip()]
    common = {"variant": variant, "limit": limit, "max_tokens": max_tokens}
    special = {"samples": samples, "temperature": temperature, "shots": shots, "chat_template": chat_template}
    evaluate = {"engine": engine, "max_model_len": max_model_len, "unsafe_exec": unsafe_exec, "held_out_reward": False}
    evaluate |= {"system_prompt": system_prompt, "dtype": dtype, "likelihood_engine": likelihood_engine}
    evaluate["benchmarks"] = benchmark_entries(names, common, special)
    given = (judge, base_url, judge_options or [], max_usd)
    run_evaluation(checkpoint, revision, evaluate, given, seed, dry_run, as_json, db)


@app.command(epilog="Examples: harness rejudge --failed   |   harness rejudge quickstart --failed --json")
def rejudge(
    target: Annotated[
        str | None, typer.Argument(help="A run, or a checkpoint by name or fingerprint (default: all).", show_default=False)
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Ask again for failed judgments only.")] = False,
    as_json: AsJson = False,
    db: Database = None,
) -> None:
    """Ask an endpoint judge again for what failed or was left open, without running any other stage."""
    from harness.judging import print_rejudge

    print_rejudge(target, failed, as_json, db)


@app.command(epilog="Examples: harness leaderboard   |   harness leaderboard --run quickstart --csv > scores.csv")
def leaderboard(
    run: Annotated[str | None, typer.Option(help="Only the checkpoints of this run.")] = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table.")] = False,
    published: Annotated[bool, typer.Option("--published", help="Also imported rows of published leaderboards.")] = False,
    db: Database = None,
) -> None:
    """Print the leaderboard: one row per checkpoint, each score with its 95 % interval."""
    from harness.commands import print_leaderboard

    form = "json" if as_json else "csv" if as_csv else "markdown" if as_markdown else "table"
    print_leaderboard(db, run, form, published)


@app.command(epilog="Examples: harness compare quickstart/iter-2   |   harness compare my-model zephyr-7b --json")
def compare(
    checkpoint: Annotated[str, typer.Argument(help="Name or start of the fingerprint.")],
    other: Annotated[str | None, typer.Argument(help="What it is compared with (default: its parent).")] = None,
    as_json: AsJson = False,
    db: Database = None,
) -> None:
    """Compare two checkpoints: paired tests per benchmark, adjusted, with the smallest difference that could be seen."""
    from harness.commands_saved import print_comparison

    print_comparison(checkpoint, other, as_json, db)


@app.command(epilog="Example: harness status quickstart")
def status(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    as_json: AsJson = False,
    db: Database = None,
) -> None:
    """Show every stage of a run: state, progress, attempts, time, memory, error."""
    from harness.commands import print_status

    print_status(db, run, as_json)


@app.command(epilog="Examples: harness dashboard --port 8600   |   harness dashboard --demo")
def dashboard(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 8501,
    host: Annotated[
        str, typer.Option(help="Address to bind; whoever reaches it can read all, unless docs/dashboard.md's sign-in is set up.")
    ] = "127.0.0.1",
    demo: Annotated[bool, typer.Option("--demo", help="Show a bundled registry: a quickstart of this project.")] = False,
    db: Database = None,
) -> None:
    """Open the leaderboard page (Streamlit). It reads the registry and writes nothing."""
    from core.paths import default_registry_url
    from dashboard.serve import main as serve
    from harness.preflight import require_modules

    require_modules({"streamlit"}, "the dashboard")
    if demo:
        from dashboard.demo import unpack

        db = unpack()
    serve(db or default_registry_url(), port, host)


@app.command(epilog="Example: harness doctor --json")
def doctor(as_json: AsJson = False, db: Database = None) -> None:
    """Check this machine: versions that fit, accelerator, sandbox, disk, data, registry. Exit code 1 if something fails."""
    from harness.commands import print_doctor

    print_doctor(db, as_json)


@data_app.command("list", epilog="Example: harness data list")
def data_list(as_json: AsJson = False) -> None:
    """List every data set the harness knows, its licence, and where it was found."""
    from harness.commands import print_data

    print_data(as_json)


@data_app.command("fetch", epilog="Example: harness data fetch hh_rlhf_harmless_test human_eval")
def data_fetch(
    names: Annotated[list[str], typer.Argument(help="Names from `harness data list`.")], as_json: AsJson = False
) -> None:
    """Download data sets, checked against their sha256, into HARNESS_HOME/data. Sets of the hub are pinned by the first fetch."""
    from harness.commands import fetch_data

    fetch_data(names, as_json)


@data_app.command("verify", epilog="Example: harness data verify")
def data_verify(
    names: Annotated[list[str] | None, typer.Argument(help="Names (default: all that are here).")] = None,
    as_json: AsJson = False,
) -> None:
    """Check the bytes of data sets on this machine against the catalogue. Exit code 1 on a difference."""
    from harness.commands import verify_data

    verify_data(names or [], as_json)


@db_app.command("upgrade", epilog="Example: harness db upgrade --db postgresql://user@host/harness")
def db_upgrade(db: Database = None, as_json: AsJson = False) -> None:
    """Bring the registry's schema to this version."""
    from db import Registry
    from harness.console import emit_json

    registry = Registry(db)
    before, after = registry.upgrade()
    if as_json:
        emit_json({"registry": registry.place, "before": before, "after": after})
    else:
        typer.echo(f"{registry.place}: {before or 'empty'} -> {after}")


def version_callback(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(version("rlhf-harness"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=version_callback, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Shared options."""
