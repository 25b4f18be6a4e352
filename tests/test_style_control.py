"""Style control against the reference's metadata, its golden scores and an independent solver."""

import csv
import io
import json

import numpy as np
import pytest

from evals.benchmark import read_jsonl, read_text
from evals.chat import style_control
from evals.chat.style_control import CONTROLS, FEATURES, Battles, differences, fit, markdown_counts, text_styles

MODELS = ("gpt-4-0613", "gpt-3.5-turbo-0125")
NAMES = {"style": "all", "length": "length", "markdown": "markdown"}


def styles(data):
    table = csv.DictReader(io.StringIO(read_text(data / "arena_hard" / "style_metadata_v0.1_76models.csv.gz")))
    return {(row["model"], row["question_id"]): [float(row[name]) for name in FEATURES] for row in table}


def official(data, version):
    rows = read_jsonl(data / "arena_hard" / "battles_v0.1_official_gpt-4-1106-preview_judge_2models.jsonl.gz")
    known, place = styles(data), {}
    ours, theirs = (np.array([known[row[side], row["question_id"]] for row in rows]) for side in ("model_b", "model_a"))
    return Battles(
        np.array([MODELS.index(row["model_b"]) for row in rows]),
        np.array([place.setdefault(row["question_id"], len(place)) for row in rows]),
        np.array([{"model_a": 0.0, "model_b": 1.0}.get(row["winner"], 0.5) for row in rows]),
        np.ones(len(rows)),
        differences(ours, theirs, version),
    )


@pytest.mark.parametrize("name", NAMES)
def test_v01_scores_and_coefficients_are_the_golden_ones(data, name):
    golden = json.loads((data / "arena_hard" / "golden_style_v01_2models.json").read_text())[name]
    found = fit(official(data, "v0.1"), "v0.1", NAMES[name], resamples=20)
    assert found.controlled.value == pytest.approx([golden["scores"][model] for model in MODELS], abs=0.01)
    assert list(found.coefficients.values()) == pytest.approx(golden["coefs"], abs=0.001)


def test_v2_fit_is_the_unpenalised_optimum(data):
    from sklearn.linear_model import LogisticRegression

    battles = official(data, "v2")
    found = fit(battles, "v2", "all", resamples=20)
    z = (battles.difference - battles.difference.mean(axis=0)) / battles.difference.std(axis=0, ddof=1)
    design = np.concatenate([np.eye(2)[battles.model], z], axis=1)
    twice, labels = np.concatenate([design, design]), np.repeat([1, 0], len(design))
    weights = np.concatenate([battles.points, 1 - battles.points])
    solved = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000).fit(twice, labels, weights).coef_[0]
    assert found.controlled.value == pytest.approx(100 / (1 + np.exp(-solved[:2])), abs=1e-3)
    assert list(found.coefficients.values()) == pytest.approx(list(solved[2:]), abs=1e-4)


def test_markdown_counts_are_the_references(data):
    known = styles(data)
    for model in (*MODELS, "gpt-4-0314"):
        for row in read_jsonl(data / "arena_hard" / f"model_answer_v0.1_{model}.jsonl.gz"):
            counts = markdown_counts(row["messages"][-1]["content"]["answer"])
            assert [sum(kinds.values()) for kinds in counts.values()] == known[model, row["uid"]][1:]


def test_each_control_takes_its_own_columns():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 4))
    points = (rng.random(400) < 1 / (1 + np.exp(-2 * x[:, 2]))).astype(float)
    battles = Battles(np.zeros(400, int), np.arange(400), points, np.ones(400), x)
    for control, columns in CONTROLS.items():
        found = fit(battles, "v2", control, resamples=10).coefficients
        assert list(found) == [FEATURES[column] for column in columns]
        assert ("list_count" in found) == (control != "length")
        assert all((abs(weight) > 1) == (name == "list_count") for name, weight in found.items())


def test_outcomes_without_a_solution_are_an_error():
    battles = Battles(np.zeros(20, int), np.arange(20), np.ones(20), np.ones(20), np.random.default_rng(0).normal(size=(20, 4)))
    with pytest.raises(ValueError, match="no solution"):
        fit(battles, "v2", resamples=5)


def test_lengths_are_of_one_unit(monkeypatch):
    stored = {"token_len": 3, "header_count": 0, "list_count": {"ordered": 1, "unordered": 2}, "bold_count": 0}
    monkeypatch.setattr(style_control, "token_counter", lambda: None)
    found, unit = text_styles(["twelve chars", "four"], [stored, None])
    assert unit == "characters" and found[:, 0].tolist() == [12, 4] and found[0, 2] == 3
    assert text_styles(["x"], [stored])[1] == "tokens"
