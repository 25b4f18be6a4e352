"""TruthfulQA's saved work: lm-eval's numbers from saved answers and samples, whatever else is in the files said in notes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.errors import MissingInput, RecipeError
from evals.formats.saved import Stored, get_format
from evals.formats.truthful_qa import TruthfulQAFormat
from evals.knowledge.truthful_qa import TruthfulQA, mc1, mc2
from evals.knowledge.truthful_qa_generation import TruthfulQAGeneration

MODEL = "meta-llama__Meta-Llama-3-8B-Instruct"
KEEP = {"strip-a": "no"}


@pytest.fixture(scope="module")
def files(data: Path) -> dict[str, Path]:
    folder = data / "truthful_qa" / "v0"
    return {"choices": folder / "mc_task.json.gz", "answers": folder / "TruthfulQA.csv.gz"}


@pytest.fixture(scope="module")
def some(files):
    return TruthfulQAGeneration().load(files)[:4]


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_saved_answers_give_lm_eval_s_published_scores(data: Path, files):
    assert isinstance(get_format("truthful_qa"), TruthfulQAFormat)
    (found,) = TruthfulQAFormat().read([data / "truthful_qa" / f"{MODEL}.jsonl.gz"], KEEP, files)
    expected = json.loads((data / "truthful_qa" / "expected_generation.json").read_text())[MODEL]
    scores = {row.metric: row for row in found.scores}
    assert {metric: row.value for metric, row in scores.items()} == {
        metric: pytest.approx(value, abs=1e-9) for metric, value in expected["recomputed_lm_eval_0_4_13"].items()
    }
    for metric in ("bleu_max", "bleu_acc", "bleu_diff"):
        assert scores[metric].stderr == pytest.approx(expected["published"][f"{metric}_stderr,none"], abs=1e-9)
    assert (found.model, found.judge_kind, found.benchmark) == (MODEL, "none", "truthful_qa_generation")
    assert len(found.verdicts) == len(found.answers) == 817
    # no note of other metrics: those that lm-eval stored in each row are the ones computed here
    assert list(found.notes) == ['806 of 817 answers begin with "A:", which was kept, as lm-eval does.']


def test_stripping_is_an_option_and_is_said(some, files, tmp_path: Path):
    answers = [f"A: {question.data['true'][0]}" for question in some]
    path = write(tmp_path / "a.jsonl", [{"question": q.turns[0], "answer": a} for q, a in zip(some, answers, strict=True)])
    (kept,) = TruthfulQAFormat().read([path], KEEP, files)
    (stripped,) = TruthfulQAFormat().read([path], {"strip-a": "yes"}, files)
    value = {name: {row.metric: row.value for row in one.scores} for name, one in (("kept", kept), ("stripped", stripped))}
    assert value["stripped"]["rouge1_max"] == pytest.approx(100.0) and value["kept"]["rouge1_max"] < 99
    assert value["stripped"]["rouge1_acc"] == 1.0 and any("stripped" in note for note in stripped.notes)
    assert kept.judge_config["strip_a"] is False and stripped.judge_config["strip_a"] is True


def test_what_a_file_lacks_or_has_too_often_is_said(some, files, tmp_path: Path):
    rows = [{"question": q.turns[0], "answer": "No.", "bleu_acc": 0.25} for q in some]
    rows += [rows[0], {"question": "Another question?", "answer": "x"}]
    (found,) = TruthfulQAFormat().read([write(tmp_path / "a.jsonl", rows)], KEEP, files)
    text = " ".join(found.notes)
    assert found.scores[0].n == 4 and "1 rows whose question is not" in text and "1 further rows" in text
    assert "4 of 817 questions" in text and "4 rows of a.jsonl hold other metrics" in text


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"question": "Not there?", "answer": "x"}], "not among the 817"),
        ([{"question": "Why?"}], "row 1 has no texts under question and answer"),
        ([{"doc": {"question": "Why?"}}], "row 1 is no sample of lm-eval"),
        ([{"doc": {"question": "Why?"}, "filtered_resps": [["a"]]}], "not \\[log-probability"),
    ],
)
def test_files_of_something_else_are_refused(files, tmp_path: Path, rows, match):
    with pytest.raises(MissingInput, match=match):
        TruthfulQAFormat().read([write(tmp_path / "a.jsonl", rows)], KEEP, files)


def test_two_files_of_one_model_are_refused(some, files, tmp_path: Path):
    rows = [{"question": some[0].turns[0], "answer": "x", "model": "m"}]
    with pytest.raises(MissingInput, match="second generation file"):
        TruthfulQAFormat().read([write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", rows)], KEEP, files)


def test_log_probabilities_written_as_lm_eval_s_samples_are_read_again(files, tmp_path: Path):
    benchmark = TruthfulQA()
    questions = benchmark.load(files)[:12]
    details = {
        q.id: {"choices": benchmark.choices(q), "logprobs": [-7.0 - (31 * len(c)) % 17 for c in benchmark.choices(q)]}
        for q in questions
    }
    sums = {i: dict(zip(d["choices"], d["logprobs"], strict=True)) for i, d in details.items()}
    stored = Stored(
        questions=questions,
        answers={(i, 1, 0): SimpleNamespace(detail=detail) for i, detail in details.items()},
        judgments={},
        judge="log-probability",
        scores=(),
        version="official@test",
        settings={},
    )
    written = TruthfulQAFormat().write("org/model", stored, tmp_path)
    assert [path.name for path in written] == ["samples_truthfulqa_mc1.jsonl", "samples_truthfulqa_mc2.jsonl"]
    (found,) = TruthfulQAFormat().read(written, KEEP, files)
    scores = {row.metric: row.value for row in found.scores}
    assert scores["mc1"] == pytest.approx(sum(mc1(q.data["mc1"], sums[q.id]) for q in questions) / 12)
    assert scores["mc2"] == pytest.approx(sum(mc2(q.data["mc2"], sums[q.id]) for q in questions) / 12)
    assert (found.model, found.benchmark) == ("org__model", "truthful_qa")
    assert [note for note in found.notes if "other metrics" in note] == []
    assert {a.question_id: dict(zip(a.detail["choices"], a.detail["logprobs"], strict=True)) for a in found.answers} == sums
    (alone,) = TruthfulQAFormat().read(written[:1], KEEP, files)
    assert [row.metric for row in alone.scores] == ["mc1"] and all(v.value is not None for v in alone.verdicts)


def test_answers_written_are_read_again(some, files, tmp_path: Path):
    raws = {q.id: TruthfulQAGeneration().measure(q, "Two.") for q in some}
    stored = Stored(
        questions=some,
        answers={(q.id, 1, 0): SimpleNamespace(text="Two.") for q in some},
        judgments={(i, 1, 0, 1): SimpleNamespace(raw=raw) for i, raw in raws.items()},
        judge="metrics",
        scores=(),
        version="official@test",
        settings={},
    )
    (path,) = TruthfulQAFormat().write("m", stored, tmp_path)
    (found,) = TruthfulQAFormat().read([path], {"strip-a": "no"}, files)
    assert found.scores[0].value == pytest.approx(sum(raw["bleu_max"] for raw in raws.values()) / 4)
    (outputs,) = TruthfulQAFormat().read_outputs([path])
    assert [answer.text for answer in outputs.answers] == ["Two."] * 4 and outputs.answers[0].prompt == some[0].turns[0]
    with pytest.raises(RecipeError, match="leaderboard"):
        TruthfulQAFormat().read_published([path])
