"""Saved work of other tools through the command line: scored, recorded, judged, exported and read back."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import func, select
from typer.testing import CliRunner

from core.errors import HarnessError, MissingInput, RecipeError, RegistryError
from db.models import Answer, AnswerSet, Checkpoint, Evaluation, Judgment
from db.registry import Registry
from evals.benchmark import Question, ScoreRow
from evals.formats.saved import SavedAnswer, SavedEvaluation
from harness import saved_work
from harness.cli import app
from harness.exporting import export
from harness.importing import align
from tests.scripted_judge import ScriptedJudgeServer, says

pytest_plugins = ["tests.postgres"]


def run(*arguments: str) -> str:
    """Standard output of a command that must succeed."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def claude(data: Path) -> Path:
    return data / "alpaca_eval" / "annotations_full_claude-2.json.gz"


def test_rescore_prints_the_published_numbers_as_json(data: Path, claude: Path):
    printed = json.loads(run("rescore", "alpaca_eval", str(claude), "--json"))
    assert printed["benchmark"] == "alpaca_eval" and printed["results"][0]["model"] == "claude-2"
    metrics = printed["results"][0]["metrics"]
    expected = {row["model"]: row for row in csv.DictReader((data / "alpaca_eval" / "expected.csv").open())}["claude-2"]
    assert metrics["win_rate"]["value"] == pytest.approx(float(expected["win_rate"]), abs=1e-6)
    assert metrics["discrete_win_rate"]["value"] == pytest.approx(float(expected["discrete_win_rate"]), abs=1e-6)
    published = float(expected["length_controlled_winrate"])
    assert metrics["length_controlled_winrate"]["value"] == pytest.approx(published, abs=0.15)
    for metric in metrics.values():
        assert {"value", "ci_low", "ci_high", "stderr", "n", "n_failed"} <= set(metric)
    assert metrics["win_rate"]["ci_low"] < metrics["win_rate"]["value"] < metrics["win_rate"]["ci_high"]
    assert metrics["win_rate"]["n"] == 805


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["alpaca", "x.json"], RecipeError, "no saved-work format 'alpaca'; use one of alpaca_eval"),
        (["alpaca_eval", "nothing.json"], MissingInput, "There is no file nothing.json"),
        (
            ["alpaca_eval", "FILE", "--folds", "random"],
            RecipeError,
            "--folds random is not known; use stable",
        ),
        (["alpaca_eval", "FILE", "--strip-a", "yes"], RecipeError, "--strip-a does not apply to alpaca_eval"),
        (["alpaca_eval", "CUT"], MissingInput, "cut.json.gz cannot be read"),
        (["alpaca_eval", "EMPTY"], MissingInput, "holds no .json"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_the_fix(tmp_path: Path, arguments, error: type[HarnessError], message: str):
    files = {"FILE": tmp_path / "a.json", "CUT": tmp_path / "cut.json.gz", "EMPTY": tmp_path / "empty"}
    files["FILE"].write_text("[{}]")
    files["CUT"].write_bytes(gzip.compress(b"[" + b'{"instruction": "x"},' * 9000)[:-20])
    files["EMPTY"].mkdir()
    with pytest.raises(error, match=message):
        CliRunner().invoke(app, ["rescore", *(str(files.get(a, a)) for a in arguments)], catch_exceptions=False)


def test_an_imported_evaluation_is_recorded_once_with_its_source(registry: Registry, claude: Path):
    for _ in range(2):
        run("import", "alpaca_eval", str(claude), "--source", "alpaca_eval results", "--db", registry.url)
    with registry.read() as session:
        assert [session.scalar(select(func.count(m.id))) for m in (Checkpoint, AnswerSet, Evaluation)] == [1, 1, 1]
        assert session.scalar(select(func.count(Judgment.id))) == session.scalar(select(func.count(Answer.id))) == 805
        evaluation = session.scalars(select(Evaluation)).one()
        assert evaluation.provenance["source"] == "alpaca_eval results" and evaluation.status == "complete"
        assert evaluation.provenance["files"][0]["name"] == claude.name and len(evaluation.provenance["files"][0]["sha256"]) == 64
    rows = json.loads(run("leaderboard", "--json", "--db", registry.url))
    assert "28." in json.dumps(rows) and "claude-2" in json.dumps(rows)


def games(folder: Path, question: str, model: str) -> Path:
    """FastChat's file of one question's two games in two turns, between `a` and a model."""
    row = {"question_id": question, "model_1": "a", "model_2": model, "g1_winner": "model_1", "g2_winner": "model_1"}
    path = folder / "model_judgment" / "gpt-4_pair.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row | {"judge": ["gpt-4", "pair-v2"], "turn": turn}) + "\n" for turn in (1, 2)))
    return path


def test_an_imported_name_cannot_break_the_leaderboard(database_url: str, tmp_path: Path):
    run("import", "mt_bench", str(games(tmp_path, "81\x00", "b\x00 \ud800")), "--db", database_url)
    opened = Registry.open(database_url)
    with opened.read() as session:
        names = session.scalars(select(Checkpoint.name).order_by(Checkpoint.id)).all()
        opponents = [set(statistics.get("opponents", ())) for statistics in session.scalars(select(Evaluation.statistics))]
        questions = set(session.scalars(select(Judgment.question_id)))
    opened.close()
    assert names == ["a", "b\ufffd \ufffd"] and {"b\ufffd \ufffd"} in opponents and questions == {"81\ufffd"}
    shown = json.loads(run("leaderboard", "--json", "--db", database_url))
    assert [row["checkpoint"] for row in shown] == names


def test_an_imported_id_that_is_too_long_is_refused_with_the_fix(database_url: str, tmp_path: Path):
    path = games(tmp_path, "q" * 201, "b")
    with pytest.raises(RegistryError, match=r"begins with 'q{40}' has 201 characters and the registry holds 200; shorten it"):
        CliRunner().invoke(app, ["import", "mt_bench", str(path), "--db", database_url], catch_exceptions=False)
    assert json.loads(run("leaderboard", "--json", "--db", database_url)) == []


def test_exported_files_are_read_back_to_the_same_scores(registry: Registry, claude: Path, tmp_path: Path):
    before = json.loads(run("rescore", "alpaca_eval", str(claude), "--json"))["results"][0]["metrics"]
    run("import", "alpaca_eval", str(claude), "--db", registry.url)
    written = json.loads(
        run("export", "claude-2", "--benchmark", "alpaca_eval", "--to", str(tmp_path), "--json", "--db", registry.url)
    )["files"]
    annotations = next(path for path in written if Path(path).name == "annotations.json")
    after = json.loads(run("rescore", "alpaca_eval", annotations, "--json"))["results"][0]["metrics"]
    assert after == before


def test_two_checkpoints_of_one_name_are_not_mistaken(registry: Registry, claude: Path, tmp_path: Path):
    run("import", "alpaca_eval", str(claude), "--db", registry.url)
    with registry.write() as session:
        row = session.scalars(select(Checkpoint).where(Checkpoint.name == "claude-2")).one()
        held = session.scalars(select(AnswerSet).where(AnswerSet.checkpoint_id == row.id)).one()
        twin = Checkpoint(fingerprint="c" * 64, name="claude-2", kind="third_party", source="imported")
        session.add(twin)
        session.flush()
        copied = {c: getattr(held, c) for c in ("benchmark", "version", "settings", "settings_hash", "status", "n_questions")}
        session.add(other := AnswerSet(key="twin", checkpoint_id=twin.id, **copied))
        session.flush()
        judge = session.scalars(select(Evaluation)).one().judge_id
        session.add(Evaluation(key="twin", answer_set_id=other.id, judge_id=judge, status="complete"))
    with pytest.raises(MissingInput, match="2 checkpoints are called 'claude-2'; give the start of a fingerprint: .*c{16}"):
        export(registry, "alpaca_eval", "alpaca_eval", "claude-2", None, tmp_path)


def test_a_published_leaderboard_is_marked_and_kept_apart(registry: Registry, data: Path):
    table = data / "alpaca_eval" / "leaderboard_weighted_alpaca_eval_gpt4_turbo.csv"
    run("import", "alpaca_eval", str(table), "--published", "--db", registry.url)
    with registry.read() as session:
        kinds = set(session.execute(select(Checkpoint.kind, Checkpoint.source)).tuples())
        count = session.scalar(select(func.count(Checkpoint.id)))
    assert kinds == {("published", "published")} and count > 200
    assert json.loads(run("leaderboard", "--json", "--db", registry.url)) == []
    assert len(json.loads(run("leaderboard", "--json", "--published", "--db", registry.url))) == count


def test_the_papers_own_table_becomes_published_rows_of_each_benchmark(registry: Registry, data: Path):
    run("import", "online_rlhf", str(data / "online_rlhf_published.json"), "--published", "--db", registry.url)
    rows = {row["checkpoint"]: row for row in json.loads(run("leaderboard", "--json", "--published", "--db", registry.url))}
    final = {name: cell["value"] for name, cell in rows["RLHFlow/Llama3-v2-iterative-DPO-iter3"]["scores"].items()}
    expected = {
        "alpaca_eval": 31.31,
        "human_eval": 68.3,
        "truthful_qa": 64.73,
        "mmlu": 64.66,
        "arc_challenge": 65.96,
        "gsm8k": 85.3,
    }
    assert final == pytest.approx(expected)
    assert len(rows) == 8 and {row["kind"] for row in rows.values()} == {"published"}
    with pytest.raises(RecipeError, match="harness import online_rlhf FILE --published"):
        run("rescore", "online_rlhf", str(data / "online_rlhf_published.json"))


@pytest.mark.slow
def test_imported_answers_are_judged_without_their_model(registry: Registry, data: Path, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    outputs = data / "alpaca_eval" / "model_outputs_zephyr-7b-beta.json.gz"
    run("import", "alpaca_eval", str(outputs), "--outputs", "--db", registry.url)
    with ScriptedJudgeServer(lambda request, number: says("m", {"m": -0.1, "M": -2.3})) as server:
        command = ["eval", "imported:zephyr-7b-beta", "--benchmarks", "alpaca_eval", "--limit", "12", "--json"]
        command += ["--judge", "openai:scripted", "--base-url", server.url, "--db", registry.url]
        run(*command)
        asked = len(server.requests)
        run(*command)
        assert len(server.requests) == asked >= 12
    with registry.read() as session:
        assert session.scalar(select(func.count(Judgment.id))) == 12
        evaluation = session.scalars(select(Evaluation)).one()
        assert evaluation.answer_set.settings["limit"] == 12 and evaluation.answer_set.n_questions == 12
    with pytest.raises(MissingInput, match="no imported answers to alpaca_eval by 'nobody'; it has zephyr-7b-beta"):
        command[1] = "imported:nobody"
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_answers_are_found_by_the_text_of_their_question():
    questions = [Question("0", "", ("How?",)), Question("1", "", ("Why?",))]
    found = align([SavedAnswer("7", "because", prompt=" Why? "), SavedAnswer("0", "so")], questions, "b", "m")
    assert [answer.question_id for answer in found] == ["1", "0"]
    with pytest.raises(MissingInput, match="2 of 2 answers of m belong to no question of b"):
        align([SavedAnswer("0", "x", prompt="Who?"), SavedAnswer("9", "y")], questions, "b", "m")


def test_no_name_of_a_stranger_acts_on_the_terminal(tmp_path: Path):
    name = "m\x1b]0;owned\x07[bold]x"
    saved = [SavedEvaluation(name, "j", "openai", {}, [ScoreRow("a\x1b[2J", 1.0, None, None, "m", 1, 0)])]
    console = Console(width=100, file=io.StringIO())
    console.print(saved_work.as_table("alpaca_eval", saved))
    assert "m\ufffd]0;owned\ufffd[bold]x" in console.file.getvalue() and "\x1b" not in console.file.getvalue()
    path = str(games(tmp_path, "81", name))
    for command in (["rescore", "mt_bench", path], ["import", "mt_bench", path, "--db", f"sqlite:///{tmp_path / 'r.db'}"]):
        printed = run(*command)
        assert "\ufffd]0;owned\ufffd[bold]x" in printed.replace("\n", "") and not {"\x1b", "\x07"} & set(printed)
