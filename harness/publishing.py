"""Folders that are ready for a hub: a model with its weights, or the preference pairs of a run, each with its card.

Guarantee: a folder appears whole or not at all, and its weights are those that were measured: they are hashed after they
were put there. `--force` replaces an earlier export and nothing else.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import select
from sqlalchemy.orm import Session

from core.artifacts import MANIFEST, read_rows, write_durably
from core.errors import HashMismatch, MissingInput, RecipeError
from core.fingerprint import checkpoint_fingerprint
from db import Registry
from db.card import card
from db.models import Checkpoint, PreferenceSet, Run, StageRun
from harness.dataset_card import DatasetFacts, Turn, dataset_card
from harness.markdown import one_line
from harness.model_card import Facts, evaluation_commands, model_card
from harness.provenance import origins, public
from harness.safety import safe_checkpoint
from train.foreign import copy_checkpoint

RECORD = "harness.json"
"""What every exported folder holds for machines; also what marks it as an export that --force may replace."""
FORMATS = ("jsonl", "parquet")
_SCORE = (
    *("benchmark", "version", "settings_hash", "metric", "value", "low", "high", "n", "n_failed", "worst", "best", "method"),
    *("headline", "complete", "group"),
)


def export_model(registry: Registry, name: str, folder: Path, licence: str | None = None, force: bool = False) -> list[Path]:
    """Write a checkpoint with its card into `folder`; returns the files.

    `name`: as on the leaderboard, or the start of the fingerprint (8 digits). Weights are hard links where the disk allows:
    do not change them in place. Raises MissingInput, UnsafeCheckpoint, HashMismatch for weights that are not the ones that
    were measured, RecipeError for a folder that is taken.
    """
    with registry.read() as session:
        row = find_checkpoint(session, name)
        found = card(session, row.fingerprint)
        run = session.get(Run, row.run_id) if row.run_id else None
        # A run of another kind (an evaluation, a training elsewhere) has no recipe that makes these weights.
        recipe = run.recipe if run and {"base", "data", "dpo"} <= run.recipe.keys() else {}
        facts = Facts(found, recipe, licence, harness_version())
    if not row.path or not Path(row.path).is_dir():
        raise MissingInput(f"The weights of {row.name} are not on this machine (they were at {row.path}); export where they are.")
    source = safe_checkpoint(Path(row.path))
    with new_folder(folder, force) as partial:
        copy_checkpoint(source, partial)
        written = checkpoint_fingerprint(partial)
        # Pickles beside safetensors are measured with them, and left behind here.
        if written != row.fingerprint and checkpoint_fingerprint(source) != row.fingerprint:
            raise HashMismatch(
                f"The weights in {source} are no longer those that {row.name} was measured on; evaluate them anew with "
                f"`harness eval {source}`."
            )
        if facts.recipe:
            (partial / "recipe.yaml").write_text(yaml.safe_dump(public(facts.recipe), sort_keys=False, allow_unicode=True))
        (partial / "README.md").write_text(model_card(facts), encoding="utf-8")
        _write_record(partial, model_record(facts, written))
    return sorted(path for path in folder.rglob("*") if path.is_file())


def model_record(facts: Facts, exported: str) -> dict[str, Any]:
    """harness.json of a model. `exported`: fingerprint of the files in the folder."""
    row = facts.card.checkpoint
    return {
        "name": row.name,
        "kind": row.kind,
        "fingerprint": row.fingerprint,
        "exported_fingerprint": exported,
        "run": facts.card.run,
        "iteration": row.iteration,
        "lineage": [
            {
                "name": one.name,
                "kind": one.kind,
                "iteration": one.iteration,
                "fingerprint": one.fingerprint,
                "reference": one.reference,
            }
            for one in facts.card.ancestors
        ],
        "provenance": public(row.provenance),
        "scores": [
            {key: getattr(cell, key) for key in _SCORE} | {"judge": cell.judge, "flags": list(cell.flags)}
            for one in facts.card.measured
            for cell in one.cells
        ],
        "commands": (["harness train-and-eval recipe.yaml"] if facts.recipe else []) + evaluation_commands(facts.card),
        "harness": facts.version,
    }


def export_dataset(
    registry: Registry,
    run: str,
    iteration: int | None,
    folder: Path,
    form: str = "jsonl",
    licence: str | None = None,
    force: bool = False,
) -> list[Path]:
    """Write the preference pairs of one iteration (None: of all) with their card into `folder`; returns the files.

    Rows: {"id", "prompt_id", "iteration", "chosen": [messages], "rejected": [messages], "chosen_score", "rejected_score",
    "chosen_finish_reason", "rejected_finish_reason"}: what trl and this harness read. Raises MissingInput, RecipeError.
    """
    if form not in FORMATS:
        raise RecipeError(f"There is no form {form!r} of a data set; use one of {', '.join(FORMATS)}.")
    with registry.read() as session:
        row = session.scalar(select(Run).where(Run.name == run))
        if row is None:
            known = ", ".join(session.scalars(select(Run.name).join(PreferenceSet))) or "none yet"
            raise MissingInput(f"There is no run {run!r} in the registry; runs with preference pairs: {known}.")
        stages = {stage.name: stage for stage in session.scalars(select(StageRun).where(StageRun.run_id == row.id))}
        known = sorted(s.iteration for s in stages.values() if s.program == "train.pairs" and s.status in ("done", "reused"))
        chosen = known if iteration is None else [iteration]
        if not known or set(chosen) - set(known):
            has = f"it has those of iterations {', '.join(map(str, known))}" if known else "it has none"
            raise MissingInput(
                f"The run {run} has no finished pairs of {'any iteration' if iteration is None else iteration}; {has}."
            )
        with new_folder(folder, force) as partial:
            (partial / "data").mkdir()
            turns = [_turn(session, stages, row, t, partial, form) for t in chosen]
            facts = DatasetFacts(
                run=row.name,
                recipe=row.recipe_name,
                turns=turns,
                origins=[one for one in origins(row.recipe) if one.use == "prompts"] or origins(row.recipe),
                contamination=_contamination(stages.get("data")),
                licence=licence,
                version=harness_version(),
                pairs=public(_manifest(stages[f"pairs[{chosen[0]}]"])["settings"]),
            )
            (partial / "README.md").write_text(dataset_card(facts), encoding="utf-8")
            files = {t.file: {"iteration": t.iteration, "rows": t.rows, "policy": t.policy, "scorers": t.scorers} for t in turns}
            _write_record(partial, {"run": row.name, "recipe": row.recipe_name, "files": files, "harness": facts.version})
    return sorted(path for path in folder.rglob("*") if path.is_file())


def harness_version() -> str:
    """This package's version, as a card names it."""
    try:
        return version("rlhf-harness")
    except PackageNotFoundError:
        return "from a checkout that is not installed"


def find_checkpoint(session: Session, name: str) -> Checkpoint:
    """The checkpoint with weights of that name, or whose fingerprint starts so (8 digits or more). Raises MissingInput."""
    query = select(Checkpoint).where(Checkpoint.source != "published").order_by(Checkpoint.id.desc())
    rows = session.scalars(query.where(Checkpoint.name == name)).all()
    if not rows and len(name) >= 8:
        rows = session.scalars(query.where(Checkpoint.fingerprint.startswith(name, autoescape=True))).all()
    if not rows:
        known = ", ".join(session.scalars(query.where(Checkpoint.path.is_not(None)).with_only_columns(Checkpoint.name).limit(12)))
        raise MissingInput(f"The registry holds no checkpoint {name!r}; it has {known or 'none yet'}.")
    if len(rows) > 1:
        listed = ", ".join(row.fingerprint[:12] for row in rows[:6])
        raise MissingInput(f"{len(rows)} checkpoints are called {name!r}; give the start of a fingerprint: {listed}.")
    return rows[0]


@contextmanager
def new_folder(folder: Path, force: bool) -> Iterator[Path]:
    """A folder beside `folder` that takes its place once the block ends well. Raises RecipeError for one that is taken."""
    folder = folder.resolve()
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken and not (force and (folder / RECORD).is_file()):
        raise RecipeError(
            f"{folder} is taken; give another --to"
            + (", or --force to replace this export." if (folder / RECORD).is_file() else ".")
        )
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _turn(session: Session, stages: dict[str, StageRun], run: Run, t: int, folder: Path, form: str) -> Turn:
    """Write one iteration's file and say what is in it."""
    stage = stages[f"pairs[{t}]"]
    pairs = read_rows(_artifact(stage) / "pairs.jsonl")
    if "earlier" in _manifest(stage)["inputs"]:  # the pairs of the iterations before stand in front
        pairs = pairs[len(read_rows(_artifact(stages[f"pairs[{t - 1}]"]) / "pairs.jsonl")) :]
    rows = [dataset_row(pair, t) for pair in pairs]
    file = f"data/iteration-{t:02d}.{form}"
    if form == "jsonl":
        write_durably(folder / file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        _write_parquet(rows, folder / file)
    generated, annotated = _manifest(stages[f"generate[{t}]"]), _manifest(stages[f"annotate[{t}]"])
    scorers = [value for name, value in annotated["inputs"].items() if name.startswith("scorer")]
    statistics = session.scalar(select(PreferenceSet).where(PreferenceSet.run_id == run.id, PreferenceSet.iteration == t))
    columns = PreferenceSet.__table__.columns.keys()
    return Turn(
        iteration=t,
        file=file,
        rows=len(rows),
        policy=_known(session, generated["inputs"]["policy"]),
        scorers=[_known(session, fingerprint) for fingerprint in scorers]
        or [
            {"name": _scorer(member), "fingerprint": ""}
            for member in annotated["settings"].get("members", [annotated["settings"]])
        ],
        generation=public(generated["settings"]),
        statistics={key: getattr(statistics, key) for key in columns} if statistics else {},
    )


def _scorer(member: dict[str, Any]) -> str:
    """A scorer that has no weights here: a rule, or the model of an endpoint."""
    return (member.get("judge") or {}).get("model") or member.get("scorer", "not recorded")


def dataset_row(pair: dict[str, Any], iteration: int) -> dict[str, Any]:
    """A row of `pairs.jsonl` in the form that is published: conversations, no token ids."""
    chosen, rejected = pair["chosen"], pair["rejected"]
    row = {
        "id": f"{iteration}/{pair['prompt_id']}/{chosen['sample']}-{rejected['sample']}",
        "prompt_id": pair["prompt_id"],
        "iteration": iteration,
    }
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        row[side] = [*pair["messages"], {"role": "assistant", "content": answer["text"]}]
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        row |= {f"{side}_score": answer["reward"], f"{side}_finish_reason": answer["finish_reason"]}
    return row


def _write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingInput("Parquet needs pyarrow: run `pip install -e '.[train]'`, or leave --form parquet out.") from error
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _known(session: Session, fingerprint: str) -> dict[str, str]:
    name = session.scalar(select(Checkpoint.name).where(Checkpoint.fingerprint == fingerprint))
    return {"name": name or "", "fingerprint": fingerprint}


def _artifact(stage: StageRun) -> Path:
    if not stage.artifact or not Path(stage.artifact).is_dir():
        raise MissingInput(f"What {stage.name} made is not on this machine (it was at {stage.artifact}); export where it is.")
    return Path(stage.artifact)


def _manifest(stage: StageRun) -> dict[str, Any]:
    return json.loads((_artifact(stage) / MANIFEST).read_text(encoding="utf-8"))


def _contamination(stage: StageRun | None) -> dict[str, Any] | None:
    file = Path(stage.artifact) / "card.json" if stage and stage.artifact else None
    return json.loads(file.read_text(encoding="utf-8")).get("contamination") if file and file.is_file() else None


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    write_durably(folder / RECORD, json.dumps(one_line(record), indent=1, ensure_ascii=False))
