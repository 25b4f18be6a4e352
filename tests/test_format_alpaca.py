"""AlpacaEval's files: read to the published numbers, written so that the alpaca_eval package reads them back."""

import csv
import gzip
import json
import math
import shutil
from types import SimpleNamespace

import pytest

from core.errors import MissingInput
from evals.benchmark import read_jsonl
from evals.chat.alpaca_eval import AlpacaEval
from evals.formats.saved import Stored, get_format

FORMAT = get_format("alpaca_eval")
DEFAULTS = {name: allowed[0] for name, allowed in FORMAT.options.items()}


@pytest.fixture(scope="module")
def files(data):
    folder = data / "alpaca_eval"
    return {
        "questions": folder / "eval_set_and_baseline_outputs.jsonl.gz",
        "gamed": folder / "df_gamed_reconstructed.csv.gz",
        "difficulty": folder / "instruction_difficulty_recovered.csv",
    }


@pytest.fixture(scope="module")
def expected(data):
    with open(data / "alpaca_eval" / "expected.csv") as handle:
        return {row["model"]: row for row in csv.DictReader(handle)}


def annotations(data, model):
    with gzip.open(data / "alpaca_eval" / f"annotations_full_{model}.json.gz", "rt") as handle:
        return json.load(handle)


def read(path, rows, files, **options):
    path.write_text(json.dumps(rows))
    return FORMAT.read([path], DEFAULTS | {name.replace("_", "-"): value for name, value in options.items()}, files)


def metrics(evaluation):
    return {row.metric: row for row in evaluation.scores}


@pytest.mark.parametrize("model", ["FuseChat-Llama-3.1-8B-Instruct", "alpaca-7b", "claude-2"])
def test_an_annotations_file_gives_the_published_row(data, files, expected, model):
    path = data / "alpaca_eval" / f"annotations_full_{model}.json.gz"
    (evaluation,) = FORMAT.read([path], DEFAULTS, files)
    published, rows = expected[model], metrics(evaluation)
    assert (evaluation.model, evaluation.judge, evaluation.notes) == (model, "gpt-4-1106-preview", [])
    for name in ("win_rate", "standard_error", "discrete_win_rate", "n_wins", "n_wins_base", "n_draws", "n_total", "avg_length"):
        assert rows[name].value == pytest.approx(float(published[name]), abs=1e-6), name
    assert rows["length_controlled_winrate"].value == pytest.approx(float(published["length_controlled_winrate"]), abs=1e-4)
    assert rows["length_controlled_winrate"].headline
    assert evaluation.statistics["length_controlled"]["length_controlled_winrate"]["C"] == pytest.approx(
        float(published["C_published"])
    )
    if published["lc_standard_error"]:
        assert rows["lc_standard_error"].value == pytest.approx(float(published["lc_standard_error"]), abs=1e-3)
    assert rows["win_rate"].stderr == pytest.approx(float(published["standard_error"]), abs=1e-6)
    controlled = rows["length_controlled_winrate"]
    assert controlled.low < controlled.value < controlled.high
    assert controlled.high - controlled.low == pytest.approx(2 * 1.96 * controlled.stderr, rel=0.1)
    assert {(v.question_id, v.sample) for v in evaluation.verdicts} == {(str(i), 0) for i in range(805)}


def test_a_row_without_a_preference_is_a_failure_and_difficulty_stays_by_position(data, files, expected, tmp_path):
    """A model of which upstream has 804 rows, rebuilt from its stored lengths and preferences."""
    model = "alpaca-7b_concise"
    stored = next(r for r in read_jsonl(data / "alpaca_eval" / "annotations.jsonl.gz") if r["model"] == model)
    questions = read_jsonl(files["questions"])
    rows = [
        {
            **{"instruction": questions[i]["instruction"], "generator_1": "gpt4_1106_preview", "generator_2": model},
            **{"output_1": "x" * a, "output_2": "y" * b, "annotator": "weighted_alpaca_eval_gpt4_turbo", "preference": p},
        }
        for i, a, b, p in zip(stored["index"], stored["len_1"], stored["len_2"], stored["preference"], strict=True)
    ]
    (evaluation,) = read(tmp_path / "a.json", rows, files, folds="introsort")
    row = metrics(evaluation)["length_controlled_winrate"]
    assert (row.n, row.n_failed) == (804, 1)
    # Published from another fold layout; the neighbouring strength is 0.0125 points away.
    assert row.value == pytest.approx(float(expected[model]["length_controlled_winrate"]), abs=0.02)
    raw = metrics(evaluation)["win_rate"]
    assert raw.value == pytest.approx(float(expected[model]["win_rate"]), abs=1e-6)
    assert raw.worst == pytest.approx(raw.value * 804 / 805)
    assert raw.best == pytest.approx((raw.value * 804 + 100) / 805)
    # The same file with a null, a NaN and a cell that is no preference, in place of three that were.
    for place, value in ((3, None), (40, math.nan), (50, 3.0)):
        rows[place] = rows[place] | {"preference": value}
    (worse,) = read(tmp_path / "b.json", rows, files)
    assert (metrics(worse)["win_rate"].n, metrics(worse)["win_rate"].n_failed) == (801, 4)
    assert sum(v.value is None for v in worse.verdicts) == 3
    assert any("3 rows hold no preference" in note for note in worse.notes)
    (by_instruction,) = read(tmp_path / "c.json", rows, files, difficulty="instruction")
    other = metrics(by_instruction)["length_controlled_winrate"]
    assert other.value != metrics(worse)["length_controlled_winrate"].value
    assert "difficulty by instruction" in other.method


def test_only_the_official_annotator_gets_the_gamed_rows(data, files, tmp_path):
    rows = [row | {"annotator": "some_other_judge"} for row in annotations(data, "claude-2")]
    (evaluation,) = read(tmp_path / "a.json", rows, files)
    found = metrics(evaluation)
    assert evaluation.judge == "some_other_judge"
    assert "length_controlled_winrate" not in found and found["win_rate"].headline
    assert found["length_controlled_noreg"].low < found["length_controlled_noreg"].value
    assert any("length bias" in note for note in evaluation.notes)
    (bare,) = FORMAT.read([data / "alpaca_eval" / "annotations_full_claude-2.json.gz"], DEFAULTS, {})
    assert "length_controlled_winrate" not in metrics(bare)
    assert any("harness data fetch alpaca_eval" in note for note in bare.notes)


def test_models_that_share_a_file_and_a_baseline_against_itself(data, files, tmp_path):
    first = annotations(data, "alpaca-7b")
    itself = [row | {"output_2": row["output_1"], "generator_2": row["generator_1"], "preference": 1.5} for row in first]
    found = {e.model: metrics(e) for e in read(tmp_path / "a.json", itself + first + first[:2], files)}
    assert sorted(found) == ["alpaca-7b", "gpt4_1106_preview"]
    assert found["gpt4_1106_preview"]["length_controlled_winrate"].value == 50
    assert found["gpt4_1106_preview"]["n_draws"].value == 805
    assert found["alpaca-7b"]["n_total"].value == 807


def test_a_preference_that_its_logprobs_deny_is_noted(data, files, tmp_path):
    rows = annotations(data, "alpaca-7b")[:60]
    assert not any("log-probabilities" in note for note in read(tmp_path / "a.json", rows, files)[0].notes)
    rows[7] = rows[7] | {"preference": 3 - rows[7]["preference"]}
    notes = read(tmp_path / "b.json", rows, files)[0].notes
    assert any(note.startswith("1 preferences differ from the log-probabilities") for note in notes)
    assert any("745 of the 805 instructions have no row" in note for note in notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"instruction": "x", "output": "y"}], "row 1 has no 'output_1'.*harness import --outputs"),
        ([{"instruction": "x", "output_1": "a", "output_2": "b", "generator_1": "m", "generator_2": "n"}], "no 'preference'"),
        ([], "holds no rows"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, content, message):
    with pytest.raises(MissingInput, match=message):
        read(tmp_path / "a.json", content, {})


def test_outputs_are_matched_by_instruction(data, tmp_path):
    with gzip.open(data / "alpaca_eval" / "model_outputs_zephyr-7b-beta.json.gz", "rt") as handle:
        rows = json.load(handle)
    shuffled = rows[::-1][:700]
    path = tmp_path / "model_outputs.json"
    path.write_text(json.dumps(shuffled))
    (outputs,) = FORMAT.read_outputs([path])
    assert outputs.model == "zephyr-7b-beta" and outputs.notes == ["105 of the 805 instructions have no output."]
    official = read_jsonl(data / "alpaca_eval" / "eval_set_and_baseline_outputs.jsonl.gz")
    said = {row["instruction"]: row["output"] for row in rows}
    assert all(answer.text == said[official[int(answer.question_id)]["instruction"]] for answer in outputs.answers)
    path.write_text(json.dumps([rows[0] | {"instruction": "Something else."}]))
    with pytest.raises(MissingInput, match="does not ask"):
        FORMAT.read_outputs([path])


def test_published_tables(data):
    path = data / "alpaca_eval" / "leaderboard_weighted_alpaca_eval_gpt4_turbo.csv"
    found = FORMAT.read_published([path])
    null = {one.score.metric: one.score for one in found if one.model == "NullModel"}
    assert null["length_controlled_winrate"].value == pytest.approx(86.457807)
    assert null["length_controlled_winrate"].low is None and null["length_controlled_winrate"].headline
    assert null["win_rate"].high - null["win_rate"].low == pytest.approx(2 * 1.96 * null["win_rate"].stderr)
    assert {one.judge for one in found} == {"gpt-4-1106-preview"}
    assert len({one.model for one in found}) > 200
    folder = pytest.importorskip("alpaca_eval").__path__[0]
    table = f"{folder}/leaderboards/data_AlpacaEval_2/alpaca_eval_gpt4_turbo_fn_leaderboard.csv"
    from pathlib import Path

    other = FORMAT.read_published([Path(table)])
    assert {one.judge for one in other} == {"alpaca_eval_gpt4_turbo_fn"}
    assert all(one.score.headline for one in other if one.score.metric == "win_rate")


def stored_from(data, files, model):
    """What the registry would hold of a model whose annotations are here."""
    questions = AlpacaEval().load(files)
    rows = {row["instruction"]: row for row in annotations(data, model)}
    answers, judgments = {}, {}
    for question in questions:
        row = rows[question.turns[0]]
        answers[question.id, 1, 0] = SimpleNamespace(text=row["output_2"])
        raw = {"replies": [{"text": "M", "finish_reason": "length", "top_logprobs": {"M": -0.5, "m": -1.0}}]}
        value = SimpleNamespace(value=row["preference"] - 1, raw=raw, micro_dollars=8060)
        judgments[question.id, 1, 0, 1] = value
    return Stored(questions, answers, judgments, "gpt-4-1106-preview", [], "official@x", {})


def test_the_package_reads_what_is_written_and_gets_our_numbers(data, files, tmp_path, monkeypatch):
    """alpaca_eval's own metric code on our files; its download of the gamed rows is the only part replaced."""
    pandas, sklearn = pytest.importorskip("pandas"), pytest.importorskip("sklearn")
    glm = pytest.importorskip("alpaca_eval.metrics.glm_winrate")
    stored = stored_from(data, files, "claude-2")
    outputs, written = FORMAT.write("run/iter-1", stored, tmp_path)
    assert written.relative_to(tmp_path).as_posix() == "run__iter-1/weighted_alpaca_eval_gpt4_turbo/annotations.json"
    assert FORMAT.read_outputs([outputs])[0].model == "run/iter-1"
    plain = tmp_path / "df_gamed.csv"
    with gzip.open(files["gamed"]) as source, open(plain, "wb") as target:
        shutil.copyfileobj(source, target)
    monkeypatch.setattr(glm, "hf_hub_download", lambda **_: plain)
    frame = pandas.read_json(written, orient="records")
    try:
        theirs = glm.get_length_controlled_winrate(frame, save_weights_dir=None)
    finally:
        sklearn.set_config(enable_metadata_routing=False)
    ours = metrics(FORMAT.read([written], DEFAULTS, files)[0])
    for name in ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate"):
        assert ours[name].value == pytest.approx(float(theirs[name]), abs=1e-9), name
    assert ours["length_controlled_winrate"].value == pytest.approx(theirs["length_controlled_winrate"], abs=1e-6)
    assert ours["lc_standard_error"].value == pytest.approx(theirs["lc_standard_error"], abs=1e-6)


def test_a_failed_judgment_is_written_as_null(data, files, tmp_path):
    stored = stored_from(data, files, "alpaca-7b")
    with pytest.raises(MissingInput, match="no answers to write"):
        FORMAT.write("m", Stored(stored.questions, {}, {}, "gpt-4", [], "official@x", {}), tmp_path)
    stored.judgments["5", 1, 0, 1].value = None
    del stored.judgments["6", 1, 0, 1]
    _, written = FORMAT.write("m", stored, tmp_path)
    rows = json.loads(written.read_text())
    assert [rows[i]["preference"] for i in (5, 6)] == [None, None]
    assert rows[4]["raw_completion"]["logprobs"]["content"][0]["top_logprobs"][0] == {"token": "M", "logprob": -0.5}
    assert rows[4]["price_per_example"] == pytest.approx(0.00806)
    assert metrics(FORMAT.read([written], DEFAULTS, files)[0])["win_rate"].n_failed == 2
