"""MT-Bench's files: read to the stored and published averages, written so that FastChat's arithmetic gives ours."""

import csv
import json
from types import SimpleNamespace

import pytest

from core.errors import MissingInput
from evals.benchmark import read_jsonl
from evals.chat.mt_bench import MTBench
from evals.formats.saved import Stored, get_format

FORMAT = get_format("mt_bench")


@pytest.fixture(scope="module")
def files(data):
    return {"questions": data / "mt_bench" / "question.jsonl"}


@pytest.fixture(scope="module")
def ratings(data, files):
    """model -> evaluation, of both files of stored ratings."""
    names = ("judgments_gpt-4_single.jsonl.gz", "judgments_gpt-4_single_misc_public_forks_slim.jsonl.gz")
    return {e.model: e for e in FORMAT.read([data / "mt_bench" / name for name in names], {}, files)}


def metrics(evaluation):
    return {row.metric: row for row in evaluation.scores}


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_stored_average_is_reached(ratings, data):
    with open(data / "mt_bench" / "expected.csv") as handle:
        expected = list(csv.DictReader(handle))
    assert len(expected) == len(ratings) == 30
    for row in expected:
        found = metrics(ratings[row["model"]])
        for name in ("average", "turn1", "turn2"):
            assert found[name].value == pytest.approx(float(row[name]), abs=1e-6), (row["model"], name)
        for category in ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"):
            assert found[f"category:{category}"].value == pytest.approx(float(row[category]), abs=1e-4), (row["model"], category)
        if row["published"]:
            assert round(found["average"].value, 2) == float(row["published"])
            assert found["average"].low < found["average"].value < found["average"].high
            assert found["average"].stderr > 0 and found["average"].n_failed == 0


def test_repeated_ratings_count_as_upstream_counts_them_and_are_named(ratings):
    repeated = ratings["Meta-Llama-3-8B-Instruct-Normal"]
    assert any("repeat a question and turn" in note for note in repeated.notes)
    assert repeated.statistics["repeated"]["average_of_last"] != metrics(repeated)["average"].value
    keys = [verdict.key for verdict in repeated.verdicts]
    assert len(keys) == len(set(keys)) == 170
    assert max(verdict.sample for verdict in repeated.verdicts) == 1
    assert ratings["mamba_0_5_dpo_ep1"].notes == []
    assert sum(sum(e.statistics["flagged"].values()) for e in ratings.values()) > 0


def test_failures_and_absent_judgments_are_counted_and_bounded(ratings, files, tmp_path):
    row = {"question_id": 81, "model": "m", "judge": ["gpt-4", "single-v1"], "judgment": "Rating: [[8]]", "score": 8, "turn": 1}
    rows = [row, row | {"turn": 2, "score": -1, "judgment": "no"}, row | {"question_id": 82, "score": 6}]
    (found,) = FORMAT.read([lines(tmp_path / "gpt-4_single.jsonl", rows)], {}, files)
    average = metrics(found)["average"]
    assert (average.value, average.n, average.n_failed) == (7.0, 2, 158)
    assert (average.worst, average.best) == pytest.approx(((14 + 158) / 160, (14 + 1580) / 160))
    assert [note.split()[0] for note in found.notes] == ["1", "157", "1"]
    # Other questions than MT-Bench's: nothing is known to be absent.
    (other,) = FORMAT.read([lines(tmp_path / "b.jsonl", [r | {"question_id": 9000} for r in rows[:2]])], {}, files)
    assert (metrics(other)["average"].n, metrics(other)["average"].n_failed) == (1, 1)
    assert "category:writing" not in metrics(other)
    failed = [e for e in ratings.values() if metrics(e)["average"].n_failed]
    assert failed and all(any("score -1" in n or "not in the file" in n for n in e.notes) for e in failed)


def test_pairwise_results_are_upstreams(data, files):
    path = data / "mt_bench" / "judgments_gpt-4_pair_phi3_vs_phi3dpo.jsonl.gz"
    found = {e.model: e for e in FORMAT.read([path], {}, files)}
    assert sorted(found) == ["phi-3", "phi-3-dpo"]
    assert {e.benchmark for e in found.values()} == {"mt_bench_pairwise"}
    # `display_result_pairwise`, written out.
    rows = [r for r in read_jsonl(path) if "error" not in (r["g1_winner"], r["g2_winner"])]
    agreed = [r["g1_winner"] for r in rows if r["g1_winner"] == r["g2_winner"] != "tie"]
    wins, losses = agreed.count("model_1"), agreed.count("model_2")
    one = metrics(found["phi-3"])
    assert one["win_rate"].value == pytest.approx(100 * wins / len(rows))
    assert one["loss_rate"].value == pytest.approx(100 * losses / len(rows))
    assert one["win_rate_adjusted"].value == pytest.approx(100 * (wins + (len(rows) - wins - losses) / 2) / len(rows))
    assert one["win_rate_adjusted"].value + metrics(found["phi-3-dpo"])["win_rate_adjusted"].value == pytest.approx(100)
    # 75 of 160 turns are there, two of them with an error.
    assert (one["win_rate"].n, one["win_rate"].n_failed) == (73, 87)
    assert len({v.key for v in found["phi-3"].verdicts}) == 150
    first = read_jsonl(path)[0]
    (said,) = [v for v in found["phi-3"].verdicts if v.key == (str(first["question_id"]), first["turn"], 0, 2)]
    assert said.shown == [{"role": "user", "content": first["g2_user_prompt"]}]


def test_with_the_default_baseline_only_its_pairs_count(tmp_path):
    def game(one, other, first, second, question=1):
        return {"question_id": question, "model_1": one, "model_2": other, "g1_winner": first, "g2_winner": second, "turn": 1}

    rows = [
        game("a", "gpt-3.5-turbo", "model_1", "model_1"),
        game("a", "gpt-3.5-turbo", "model_1", "model_2", 2),
        game("a", "b", "model_2", "model_2"),
        game("gpt-3.5-turbo", "b", "model_1", "model_1"),
        game("b", "gpt-3.5-turbo", "error", "model_1", 2),
    ]
    a, b = FORMAT.read([lines(tmp_path / "gpt-4_pair.jsonl", rows)], {}, {})
    assert (a.model, b.model, a.statistics["baseline"]) == ("a", "b", "gpt-3.5-turbo")
    assert (metrics(a)["win_rate"].value, metrics(a)["tie_rate"].value, metrics(a)["win_rate_adjusted"].value) == (50, 50, 75)
    assert (metrics(b)["loss_rate"].value, metrics(b)["loss_rate"].n, metrics(b)["loss_rate"].n_failed) == (100, 1, 1)


@pytest.mark.parametrize("name", ["model_answer/m.jsonl", "question.jsonl"])
def test_answers_are_not_judgments(tmp_path, name):
    path = lines(tmp_path / name, [{"question_id": 81, "choices": []}])
    with pytest.raises(MissingInput, match="no judgments"):
        FORMAT.read([path], {}, {})
    with pytest.raises(MissingInput, match="row 1 has no 'model'"):
        FORMAT.read([lines(tmp_path / "x.jsonl", [{"question_id": 81}])], {}, {})


def stored(questions, judge="gpt-4"):
    answers, judgments = {}, {}
    for number, question in enumerate(questions):
        for turn in (1, 2):
            answers[question.id, turn, 0] = SimpleNamespace(text=f"Answer {turn} to {question.id}\u2028.")
            value = None if number == 3 and turn == 2 else float(1 + (number + turn) % 10)
            raw = {"replies": [{"text": f"Rating: [[{value}]]"}]} if value else {}
            judgments[question.id, turn, 0, 1] = SimpleNamespace(value=value, raw=raw, shown=None)
    return Stored(questions, answers, judgments, judge, [], "official@x", {})


def test_what_is_written_is_read_back_and_averages_as_fastchat_averages(data, files, tmp_path):
    pandas = pytest.importorskip("pandas")
    folder = data / "mt_bench"
    questions = MTBench().load(files | {"references": folder / "reference_answer_gpt-4.jsonl"})
    answer, judgment = FORMAT.write("run/iter-1", stored(questions), tmp_path)
    assert answer.relative_to(tmp_path).as_posix() == "model_answer/run__iter-1.jsonl"
    assert judgment.relative_to(tmp_path).as_posix() == "model_judgment/gpt-4_single.jsonl"
    FORMAT.write("other", stored(questions[:4]), tmp_path)
    FORMAT.write("run/iter-1", stored(questions), tmp_path)
    frame = pandas.read_json(judgment, lines=True)
    assert sorted(frame["model"].unique()) == ["other", "run__iter-1"] and len(frame) == 168
    # `display_result_single`
    frame = frame[frame["score"] != -1]
    means = frame[["model", "score"]].groupby("model").mean()["score"]
    found = {e.model: metrics(e) for e in FORMAT.read([judgment], {}, files)}
    for model in ("other", "run__iter-1"):
        assert found[model]["average"].value == pytest.approx(means[model])
    assert found["run__iter-1"]["average"].n_failed == 1
    (outputs,) = FORMAT.read_outputs([answer])
    assert outputs.model == "run__iter-1" and len(outputs.answers) == 160
    assert outputs.answers[1].text == f"Answer 2 to {questions[0].id}\u2028." and outputs.answers[1].turn == 2
    row = json.loads(answer.read_text().split("\n")[0])
    assert row["question_id"] == 81 and list(row["choices"][0]) == ["index", "turns"]
    templates = {r["judge"][1] for r in read_jsonl(judgment)}
    assert templates == {"single-v1", "single-v1-multi-turn", "single-math-v1", "single-math-v1-multi-turn"}


def test_judgments_without_answers_and_nothing_at_all(data, files, tmp_path):
    questions = MTBench().load(files | {"references": data / "mt_bench" / "reference_answer_gpt-4.jsonl"})
    whole = stored(questions)
    bare = Stored(questions, {}, whole.judgments, "gpt-4", [], "official@x", {})
    assert [path.name for path in FORMAT.write("m", bare, tmp_path)] == ["gpt-4_single.jsonl"]
    with pytest.raises(MissingInput, match="published score"):
        FORMAT.write("m", Stored(questions, {}, {}, "gpt-4", [], "official@x", {}), tmp_path)


def test_published_table(data):
    found = FORMAT.read_published([data / "mt_bench" / "lmsys_mt_bench_scores_25models_with_bootstrap_ci.csv"])
    assert len(found) == 25
    assert all(one.score.low < one.score.value < one.score.high and one.judge == "gpt-4" for one in found)
