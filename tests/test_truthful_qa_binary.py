"""TruthfulQA's binary form: both orders are asked, and a preference for a letter earns nothing."""

import json
from pathlib import Path

import pytest

from core.errors import MissingInput
from core.stage import Spec, Stage
from db.models import Answer, AnswerSet, Evaluation, Judgment, Score
from evals import likelihood
from evals.knowledge.truthful_qa_binary import TruthfulQABinary

ROWS = [
    {
        "question": f"Is {number} a number?",
        "mc0_targets": {f"Yes, {number} is one of the numbers": 1, "No": 0},
        "mc1_targets": {f"Yes, {number} is one of the numbers": 1, "No": 0},
        "mc2_targets": {f"Yes, {number} is one of the numbers": 1, "No": 0},
    }
    for number in range(5)
]


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    path = tmp_path / "mc_task.json"
    path.write_text(json.dumps(ROWS))
    return path


@pytest.fixture
def questions(choices: Path):
    return TruthfulQABinary().load({"choices": choices})


def test_each_question_is_asked_with_either_answer_first(questions):
    first, second = TruthfulQABinary().contexts(questions[3])
    assert first == "Is 3 a number?\nA. Yes, 3 is one of the numbers\nB. No\nAnswer:"
    assert second == "Is 3 a number?\nA. No\nB. Yes, 3 is one of the numbers\nAnswer:"


@pytest.mark.parametrize(
    ("sums", "expected"),
    [
        # right both times; always A; always B; wrong both times; no preference at all
        ([(-1, -2), (-2, -1)], (1.0, 1.0, 0.5)),
        ([(-1, -2), (-1, -2)], (0.5, 0.0, 1.0)),
        ([(-2, -1), (-2, -1)], (0.5, 0.0, 0.0)),
        ([(-2, -1), (-1, -2)], (0.0, 0.0, 0.5)),
        ([(-1, -1), (-1, -1)], (0.5, 0.0, 0.5)),
    ],
)
def test_only_telling_the_answers_apart_earns_more_than_chance(questions, sums, expected):
    found = TruthfulQABinary().values(questions[0], [dict(zip("AB", pair, strict=True)) for pair in sums])
    assert (found["accuracy"], found["consistent"], found["first_letter"]) == expected


def test_scores_stand_beside_their_baselines(questions):
    benchmark = TruthfulQABinary()
    values = {q.id: {"accuracy": 0.5, "consistent": 0.0, "first_letter": 1.0} for q in questions}
    rows = {row.metric: row for row in benchmark.scores(questions, values)}
    assert rows["accuracy"].value == 50.0 and rows["accuracy"].headline and rows["consistent"].value == 0.0
    assert rows["first_letter"].value == 100.0 and rows["first_letter"].higher_is_better is None
    assert rows["accuracy_chance"].value == 50.0 and rows["accuracy_longest"].value == 100.0
    values[questions[0].id] = None
    assert benchmark.scores(questions, values)[0].n_failed == 1


def test_data_without_a_pair_are_refused(tmp_path: Path):
    path = tmp_path / "v0.json"
    path.write_text(json.dumps([{k: v for k, v in row.items() if k != "mc0_targets"} for row in ROWS]))
    with pytest.raises(MissingInput, match="row 1 has no mc0_targets"):
        TruthfulQABinary().load({"choices": path})


def test_the_public_pairs(data: Path):
    questions = TruthfulQABinary().load({"choices": data / "truthful_qa" / "mc_task.json.gz"})
    assert len(questions) == 790
    found = {metric: one["value"] for metric, one in TruthfulQABinary().statistics(questions)["baselines"].items()}
    # a model that only prefers the longer answer beats chance by far: the reason why this stands beside the score
    assert found == {"accuracy_chance": 50.0, "accuracy_longest": pytest.approx(67.34, abs=0.01)}


def test_the_stage_stores_both_orders(registry, choices: Path, tiny_llama: Path, make_spec):
    entry = {"name": "truthful_qa_binary", "variant": "official", "version": "official@test", "limit": 3, "decoding": {}}
    inputs = {"policy": tiny_llama, "data/truthful_qa_binary/choices": choices}
    spec = make_spec("likelihood", {"benchmarks": [entry], "seed": 0}, inputs, registry=registry.url, resources={"threads": 1})
    for asked in (3, 0):
        stage = Stage(Spec.load(spec))
        stage.work.mkdir(parents=True, exist_ok=True)
        assert likelihood.run(stage)["questions"] == asked
    with registry.read() as session:
        answers = session.query(Answer).all()
        assert len(answers) == 6 and {a.turn for a in answers} == {1, 2}
        assert all(a.detail["choices"] == ["A", "B"] and len(a.detail["logprobs"]) == 2 for a in answers)
        assert session.query(AnswerSet).one().settings["prompt"] == "letters-v1"
        scores = {s.metric: s.value for s in session.query(Score)}
        assert scores["accuracy"] == pytest.approx(100 * sum(j.value for j in session.query(Judgment)) / 3)
        assert "accuracy_longest" in session.query(Evaluation).one().statistics["baselines"]
