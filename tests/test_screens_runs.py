"""The run monitor: the log's end from the runs folder alone, signs of life, the judge's share of its limit, how to go on."""

import re
from datetime import timedelta
from pathlib import Path

import pytest

from dashboard import format as f
from dashboard.log_tail import BYTES, tail
from db import views
from db.models import JudgeResponse, Run, StageRun, now
from db.registry import Registry
from tests.sample_registry import Sample, fill
from tests.test_dashboard import app, shown, words  # noqa: F401  (app is a fixture)
from tests.test_screens_leaderboard import again

SHARE = {"limit_share": 0.4567, "limit": "8 x NVIDIA H100 80GB HBM3, bfloat16 (data sheet)"}


@pytest.fixture
def runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "runs" / "second" / "logs"
    folder.mkdir(parents=True)
    return folder


def test_the_end_of_a_long_log_with_a_progress_bar(runs_folder: Path) -> None:
    log = runs_folder / "dpo.log"
    bar = "\r".join(f"{i} %" for i in range(100))
    log.write_text("\n".join(["x" * 80] * 1000 + ["epoch 1", bar, "\x1b[31mdone\x1b[0m"]) + "\n")
    assert log.stat().st_size > BYTES
    read = tail(str(log), lines=3)
    assert read.split("\n") == ["epoch 1", "99 %", "\x1b[31mdone\x1b[0m"]


def test_no_file_but_a_log_is_read(runs_folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a key")
    (runs_folder / "link.log").symlink_to(secret)
    for log in (
        str(secret),
        str(runs_folder / "link.log"),
        f"{runs_folder}/../../../../secret",
        str(runs_folder),
        "gone.log",
        None,
    ):
        assert tail(log) is None


def test_the_page_shows_the_log_of_what_runs_and_refreshes(app, registry: Registry, runs_folder: Path) -> None:  # noqa: F811
    sample = Sample(registry)
    run = sample.run("second", "running")
    log = runs_folder / "generate.log"
    log.write_text("loading\n40 tokens a second \x1b[2J\n")
    sample.stage(run, "sft", log=str(runs_folder / "sft.log"), metrics={"tokens_per_second": 2345.6} | SHARE)
    begun = now() - timedelta(seconds=20)
    fields = {"done": 10, "total": 40, "unit": "prompts", "started_at": begun, "heartbeat_at": begun, "log": str(log)}
    sample.stage(run, "generate[1]", "running", 1, **fields)
    test = app("runs", registry)
    assert any("40 tokens a second ⟨U+001B⟩[2J" in code.value for code in test.code), "as text, and nothing that moves the cursor"
    said = words(shown(test))
    assert re.search(r"heard [23]\d s ago", said) and "2 346 45.7 % of 8 x NVIDIA H100" in " ".join(said.split())
    log.write_text("loading\nhalf way\n")
    assert any("half way" in code.value for code in test.run().code)
    test.selectbox(key="log").set_value("sft").run()
    assert "not in this machine's runs folder" in words(shown(test))


def test_a_failed_run_says_how_it_goes_on(app, registry: Registry) -> None:  # noqa: F811
    sample = Sample(registry)
    sample.stage(sample.run("my run", "failed", recipe="a recipe.yaml"), "sft", "failed", error="CUDA out of memory")
    typed = [code.value for code in app("runs", registry).code]
    assert "harness train-and-eval 'a recipe.yaml' --run 'my run'" in typed
    with registry.write() as session:
        session.query(Run).one().environment = {"command": "harness train-and-eval a.yaml --set iterations=2"}
    assert "harness train-and-eval a.yaml --set iterations=2" in [code.value for code in app("runs", registry).code]
    with registry.write() as session:
        session.query(Run).one().environment, session.query(Run).one().recipe_name = {}, "evaluation"
    test = app("runs", registry)
    assert "the command that began it" in words(shown(test)) and not [c for c in test.code if "harness" in c.value]


@pytest.mark.parametrize(
    ("rate", "said"), [(40.0, "40.0 steps/s"), (0.02, "1.2 steps/min"), (0.001, "3.6 steps/h"), (1e-5, "0.0 steps/h")]
)
def test_a_slow_stage_has_a_rate_too(rate, said):
    assert f.rate(rate, "steps") == said


def test_the_judge_s_rate_is_that_of_the_last_minute_beside_its_limit(app, registry: Registry) -> None:  # noqa: F811
    fill(registry)
    recipe = {"evaluate": {"judge": {"kind": "openai", "model": "gpt-4.1", "tokens_per_minute": 60_000}}}
    with registry.write() as session:
        run = session.get_one(Run, 1)
        run.recipe, run.status = recipe, "running"
        session.add(StageRun(run_id=1, name="judge[x]", program="evals.judged", key="j", status="running", started_at=now()))
        for age, model, tokens in (
            (5, "gpt-4.1", 20_000),
            (50, "gpt-4.1", 10_000),
            (90, "gpt-4.1", 99_999),
            (5, "other", 99_999),
        ):
            reply = {
                "key": f"{age}{model}",
                "model": model,
                "endpoint": "e",
                "response": {},
                "tokens_in": tokens - 1,
                "tokens_out": 1,
            }
            session.add(JudgeResponse(**reply, created_at=now() - timedelta(seconds=age)))
    with registry.read() as session:
        found = views.run_status(session, "quickstart").judging
    assert (found.tokens_per_minute, found.requests_per_minute) == (30_000, 2)
    said = words(shown(app("runs", registry)))
    assert "500 tokens/s" in said and "50 % of 60\u2009000 tokens a minute" in said
    with registry.write() as session:
        session.query(StageRun).filter_by(name="judge[x]").one().status = "done"
    with registry.read() as session:
        assert views.run_status(session, "quickstart").judging is None


@pytest.mark.parametrize("page", ["runs", "iterations"])
def test_the_address_to_copy_names_the_run(app, registry: Registry, page: str) -> None:  # noqa: F811
    fill(registry)
    Sample.run(again(registry), "later", "failed")
    newest = app(page, registry)
    assert any(code.value.endswith("?run=later") for code in newest.code), "a bare address would show another run one day"
    older = newest.selectbox(key="run").set_value("quickstart").run()
    assert any(code.value.endswith("?run=quickstart") for code in older.code) and "No such run" not in words(shown(older))
