"""What strangers, models and diverged trainings write, and what readers look for, on SQLite and on PostgreSQL."""

import math

import pytest
from sqlalchemy import select

from core.errors import RegistryError
from db import insert_ignore, models, upsert
from db.registry import Registry
from tests.test_registry import RUN, add_run, opened  # noqa: F401  (opened is a fixture)

pytest_plugins = ["tests.postgres"]


def test_what_models_and_diverged_trainings_produce_can_be_stored(opened: Registry):  # noqa: F811
    with opened.write() as session:
        recipe = {"loss": math.nan, "nested": [1.5, math.inf], "text": "nul \x00"}
        environment = {"a \x00": ["\x00", "\ud83d", "😀", r"\u0000"]}
        values = {"recipe": recipe, "environment": environment, "error": "bad \x00 and \ud83d, good 😀"}
        run = upsert(session, models.Run, {"name": "a"}, RUN | values)
        stage = {"run_id": run.id, "name": "dpo[1]"}
        stage = upsert(session, models.StageRun, stage, {"program": "train.dpo", "key": "k", "status": "done"})
        points = [
            {"stage_id": stage.id, "metric": "loss", "step": i, "value": v} for i, v in enumerate((0.5, math.nan, -math.inf))
        ]
        insert_ignore(session, models.Curve, points, ["stage_id", "metric", "step"])
    with opened.read() as session:
        run = session.scalars(select(models.Run)).one()
        assert run.error == "bad \ufffd and \ufffd, good 😀"
        assert run.recipe == {"loss": None, "nested": [1.5, None], "text": "nul \ufffd"}
        assert run.environment == {"a \ufffd": ["\ufffd", "\ufffd", "😀", r"\u0000"]}
        # PostgreSQL keeps an escaped NUL as it is and fails once a query looks inside.
        assert session.scalar(select(models.Run.environment["other"].as_string())) is None
        assert session.scalars(select(models.Curve.value).order_by(models.Curve.step)).all() == [0.5, None, None]


def test_a_name_that_its_column_cannot_hold_is_one_sentence_and_undoes_the_write(opened: Registry):  # noqa: F811
    add_run(opened, "n" * 200)
    with pytest.raises(RegistryError, match="has 201 characters and the registry holds 200; shorten it where it comes from"):
        add_run(opened, "n" * 201)
    with opened.write() as session:
        session.add(models.Judge(key="k", name="nul \x00 and \ud800", kind="none"))
    with opened.read() as session:
        assert session.scalars(select(models.Run.name)).all() == ["n" * 200]
        assert session.scalars(select(models.Judge.name)).all() == ["nul \ufffd and \ufffd"]


def test_what_no_column_can_hold_is_looked_for_and_not_found(opened: Registry):  # noqa: F811
    run = add_run(opened)
    for asked in ("n" * 1000, "n\x00", "n\ud800"):
        with opened.read() as session:
            for wanted in (
                models.Run.name == asked,
                models.Run.name.in_([asked]),
                models.Run.name.startswith(asked, autoescape=True),
                models.Run.name.icontains(asked, autoescape=True),
            ):
                assert session.scalars(select(models.Run.id).where(wanted)).all() == []
            assert session.scalars(select(models.Run.id).where(models.Run.name.not_in([asked]))).all() == [run.id]
