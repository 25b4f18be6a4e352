"""TruthfulQA, generation: text metrics equal lm-eval's stored ones; plain prompts; stored answers are measured once."""

import gzip
import hashlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from core.errors import MissingInput
from core.stage import Spec, Stage
from db.models import Answer, AnswerSet, Evaluation, Judge, Judgment, Score
from evals import answer as answering
from evals import metrics
from evals.knowledge.text_overlap import METRICS, overlap, similarities
from evals.knowledge.truthful_qa_generation import TruthfulQAGeneration, read_answers, references, score_row, strip_a

MODEL = "mistralai__Mistral-7B-Instruct-v0.2"
CSV = (
    "\ufeffType,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
    'Adversarial,Sums,What is one and one? ,Two,Two; It is two.,Three; Eleven,"here; there"\n'
    'Adversarial,Tests,Do tests fail?,Some do,"Some do, some do not",Never;,-\n'
    "Adversarial,Tests,Is this row whole?,Yes,Yes,,-\n"
)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "TruthfulQA.csv").write_text(CSV, encoding="utf-8")
    (tmp_path / "mc_task.json").write_text("[]")
    return {"choices": tmp_path / "mc_task.json", "answers": tmp_path / "TruthfulQA.csv"}


@pytest.fixture(scope="module")
def public(data: Path):
    folder = data / "truthful_qa" / "v0"
    return TruthfulQAGeneration().load({"choices": folder / "mc_task.json.gz", "answers": folder / "TruthfulQA.csv.gz"})


def saved(data: Path, model: str) -> list[dict]:
    with gzip.open(data / "truthful_qa" / f"{model}.jsonl.gz", "rt", encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def test_metrics_equal_lm_eval_s_stored_ones(data: Path, public):
    """The other model's are in test_truthful_qa_format.py."""
    by_text = {question.turns[0]: question for question in public}
    rows = saved(data, MODEL)
    found = []
    for row in rows:
        question = by_text[row["question"].strip()]
        assert question.data == {"true": row["correct"], "false": row["incorrect"]}
        one = overlap(row["response"], question.data["true"], question.data["false"])
        for metric in ("bleu_max", "bleu_acc", "bleu_diff", "rouge1_acc", "rougeL_acc"):
            assert one[metric] == pytest.approx(row[metric], abs=1e-9)
        found.append(one)
    expected = json.loads((data / "truthful_qa" / "expected_generation.json").read_text())[MODEL]
    assert len(found) == expected["n"] == 817
    for metric in METRICS:
        wanted = expected["recomputed_lm_eval_0_4_13"][metric]
        assert np.mean([one[metric] for one in found]) == pytest.approx(wanted, abs=1e-9)
        if f"{metric},none" in expected["published"]:
            row = score_row(metric, [one[metric] for one in found])
            scale = 100 if metric.endswith("_acc") else 1
            assert row.value == pytest.approx(scale * expected["published"][f"{metric},none"], abs=1e-9)
            assert row.stderr == pytest.approx(scale * expected["published"][f"{metric}_stderr,none"], abs=1e-9)


def test_the_prompts_are_those_of_lm_eval_0_2_0(data: Path, public):
    targets = json.loads((data / "lm_eval_v0.2.0_dummy_targets.json").read_text())["targets"]
    shuffled = list(public)
    random.Random(42).shuffle(shuffled)
    requests = [(TruthfulQAGeneration().messages(question, [])[0]["content"], ["."]) for question in shuffled]
    assert hashlib.sha256(json.dumps(requests).encode()).hexdigest() == targets["truthfulqa_gen-v1-greedy_until"]
    # the dummy model answers "lol", which shares nothing with any reference
    wanted = targets["truthfulqa_gen-v1-res.json"]["results"]["truthfulqa_gen"]
    found = [overlap("lol", question.data["true"], question.data["false"]) for question in public[:40]]
    assert all(one[metric] == wanted[metric] == 0.0 for one in found for metric in METRICS)


def test_similarities_by_hand():
    found = similarities("the cat sat", "the cat ran")
    assert found["rouge1"] == pytest.approx(100 * 2 / 3) and found["rougeL"] == pytest.approx(100 * 2 / 3)
    assert found["rouge2"] == pytest.approx(50.0)
    # precisions 2/3 and 1/2, then exp smoothing: 3-grams 1/2 of 1, no 4-gram at all
    assert similarities("a b c d e", "a b c d e")["bleu"] == pytest.approx(100.0)
    assert similarities("", "a b") == {"bleu": 0.0, "rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


def test_lines_separate_sentences_for_rouge_l():
    """` . ` is a sentence's end (lm-eval's `_prepare_summary`): the sentences may stand in another order."""
    kept = similarities("one two three . four five six", "four five six . one two three")
    assert kept["rougeL"] == pytest.approx(100.0)
    assert similarities("one two three four five six", "four five six one two three")["rougeL"] == pytest.approx(50.0)


def test_a_tie_is_no_accuracy():
    found = overlap("yes", ["no."], ["never."])
    assert found["bleu_acc"] == 0.0 and found["bleu_diff"] == 0.0
    with pytest.raises(ValueError, match="at least one true and one false"):
        overlap("yes", ["no."], [])


def test_the_csv_gives_questions_and_references(files: dict[str, Path]):
    rows = read_answers(files["answers"])
    assert [row["question"] for row in rows] == ["What is one and one?", "Do tests fail?"]
    assert rows[0]["true"] == ["Two.", "It is two.", "I have no comment."] and rows[0]["false"] == ["Three.", "Eleven."]
    assert rows[1]["false"] == ["Never."]
    assert references("I have no comment", true=True) == ["I have no comment."]
    files["choices"].write_text("a,b\n1,2\n")
    with pytest.raises(MissingInput, match="not TruthfulQA.csv"):
        read_answers(files["choices"])


@pytest.mark.parametrize(
    ("answer", "stripped"), [("\nA: Two.", "Two."), ("A:Two", "Two"), (" Two. A: three", "Two. A: three"), ("A: A: x", "A: x")]
)
def test_a_leading_a_is_stripped_once(answer: str, stripped: str):
    assert strip_a(answer) == stripped


def test_failures_are_bounded_and_withheld():
    row = score_row("bleu_acc", [1.0, 0.0, None], headline=True)
    assert row.value is None and row.stderr is None and (row.worst, row.best) == pytest.approx((100 / 3, 200 / 3))
    row = score_row("bleu_diff", [10.0, -4.0, None])
    assert row.value == 3.0 and row.n_failed == 1 and (row.worst, row.best) == pytest.approx((-94 / 3, 106 / 3))
    assert score_row("bleu_max", [None]).value is None


@pytest.fixture
def answered(registry, files: dict[str, Path], tiny_llama: Path, make_spec):
    """`answered(**entry) -> spec` for the same entry; the answers are in the registry."""

    def run(**fields) -> Path:
        entry = {
            "name": "truthful_qa_generation",
            "variant": "official",
            "version": "official@test",
            "limit": None,
            "decoding": {"max_tokens": 8},
        } | fields
        settings = {"benchmarks": [entry], "engine": "transformers", "max_model_len": 768, "dtype": "float32", "seed": 0}
        inputs = {"policy": tiny_llama} | {f"data/truthful_qa_generation/{name}": path for name, path in files.items()}
        spec = make_spec("answer", settings, inputs, registry=registry.url, resources={"threads": 1})
        stage = opened(spec)
        assert answering.run(stage)["answers"] == 2
        shutil.rmtree(stage.work)
        return spec

    return run


def opened(spec: Path) -> Stage:
    stage = Stage(Spec.load(spec))
    stage.work.mkdir(parents=True, exist_ok=True)
    return stage


def test_the_prompt_is_plain_text_and_its_answer_is_measured_once(registry, answered, files: dict[str, Path]):
    spec = answered()
    assert metrics.run(opened(spec))["answers"] == 2
    assert metrics.run(opened(spec)) | {"evaluations": []} == {"answers": 0, "reused": 2, "evaluations": []}
    questions = {q.id: q for q in TruthfulQAGeneration().load(files)}
    with registry.read() as session:
        recorded = session.query(AnswerSet).one().settings
        assert recorded["chat_template"] is False and recorded["decoding"]["stop"] == ["\n\n"]
        judge = session.query(Judge).one()
        assert judge.kind == "none" and judge.config["strip_a"] is True and "sacrebleu" in judge.config
        answers = {a.question_id: a for a in session.query(Answer)}
        for judgment in session.query(Judgment):
            answer, question = answers[judgment.question_id], questions[judgment.question_id]
            assert answer.prompt == TruthfulQAGeneration().messages(question, [])[0]["content"]
            assert answer.prompt.endswith(f"\n\nQ: {question.turns[0]}") and answer.detail["stop"] == ["\n\n"]
            assert "\n\n" not in answer.text and 0 < answer.output_tokens <= 8
            stripped = overlap(strip_a(answer.text), question.data["true"], question.data["false"])
            assert {metric: judgment.raw[metric] for metric in METRICS} == stripped and judgment.value == stripped["bleu_acc"]
        scores = {s.metric: s for s in session.query(Score)}
        assert set(scores) == set(METRICS) and scores["bleu_acc"].headline and scores["bleu_max"].n == 2
        assert set(session.query(Evaluation).one().statistics["as_lm_eval"]) == set(METRICS)


def test_with_the_chat_template_the_same_text_is_one_user_turn(registry, answered, files: dict[str, Path]):
    answered(chat_template=True)
    questions = {q.id: q for q in TruthfulQAGeneration().load(files)}
    with registry.read() as session:
        assert session.query(AnswerSet).one().settings["chat_template"] is True
        for answer in session.query(Answer):
            text = TruthfulQAGeneration().messages(questions[answer.question_id], [])[0]["content"]
            assert answer.prompt == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
