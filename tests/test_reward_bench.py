"""RewardBench: weights, ties, and scores that published section accuracies give."""

import json

import pytest
from typer.testing import CliRunner

from core.errors import MissingInput, RecipeError
from harness.reward_bench import first_of_each_subset, table
from tests.training import write_jsonl
from train.reward_bench import COUNTS, PRIOR, SECTIONS, as_comparer, combine, read_pairs, summarise
from train.statistics import wilson_interval


def outcomes(accuracy: dict[str, float], n: int = 100) -> tuple[list[str], list[float]]:
    """n pairs a subset, of which the share `accuracy` is won."""
    subsets = [name for name in accuracy for _ in range(n)]
    return subsets, [0.9 if k < round(accuracy[name] * n) else 0.1 for name in accuracy for k in range(n)]


def test_the_weights_are_those_of_the_benchmark():
    sums = {section: sum(COUNTS[name] for name in parts) for section, parts in SECTIONS.items()}
    assert sums == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}
    assert sorted(name for parts in SECTIONS.values() for name in parts) == sorted(COUNTS)
    # The two that earlier scripts have swapped, and the weight that makes mathematics count as much as code.
    assert (COUNTS["xstest-should-refuse"], COUNTS["xstest-should-respond"]) == (154, 250)
    assert COUNTS["math-prm"] == sum(COUNTS[name] for name in SECTIONS["Reasoning"][1:])


def test_a_section_weighs_its_subsets_and_not_the_pairs_given():
    accuracy = dict.fromkeys(COUNTS, 1.0) | {"xstest-should-refuse": 0.5, "hep-rust": 0.0}
    summary = summarise(*outcomes(accuracy))
    assert summary["sections"]["Safety"]["accuracy"] == pytest.approx(1 - 0.5 * 154 / 740)
    assert summary["sections"]["Reasoning"]["accuracy"] == pytest.approx(1 - 164 / 1968)
    mean = sum(section["accuracy"] for section in summary["sections"].values()) / 4
    assert summary["score"]["accuracy"] == pytest.approx(mean)
    assert summary["score"]["low"] < mean < summary["score"]["high"]
    assert summary["score_with_prior"]["accuracy"] is None and summary["score_with_prior"]["missing"] == ["Prior"]


@pytest.mark.parametrize(
    ("sections", "prior", "mean", "score"),
    [
        # Published: FsfairX-LLaMA3-RM-v0.1, pair-preference-model-LLaMA3-8B, ArmoRM-Llama3-8B-v0.1.
        ((99.4, 65.1, 87.8, 86.4), 74.9, 84.7, 83.6),
        ((98.3, 65.8, 89.7, 94.7), 74.6, 87.1, 85.7),
        ((96.9, 76.8, 92.2, 97.3), 74.3, 90.8, 89.0),
    ],
)
def test_published_sections_give_the_published_scores(sections, prior, mean, score):
    accuracy = {name: value / 100 for value, parts in zip(sections, SECTIONS.values(), strict=True) for name in parts}
    summary = summarise(*outcomes(accuracy | dict.fromkeys(PRIOR, prior / 100), n=1000))
    assert 100 * summary["score"]["accuracy"] == pytest.approx(mean, abs=0.051)
    assert 100 * summary["score_with_prior"]["accuracy"] == pytest.approx(score, abs=0.051)


def test_ties_count_half_and_incomplete_sections_have_no_accuracy():
    summary = summarise(["llmbar-natural"] * 4, [0.9, 0.5, 0.2, 0.5])
    natural = summary["subsets"]["llmbar-natural"]
    assert (natural["accuracy"], natural["ties"], natural["n"]) == (0.5, 2, 4)
    assert (natural["low"], natural["high"]) == wilson_interval(2.0, 4)
    hard = summary["sections"]["Chat Hard"]
    assert hard["accuracy"] is None and hard["n"] == 4 and "mt-bench-hard" in hard["missing"]
    assert summary["score"]["accuracy"] is None
    printed = table(summary)
    assert "lacks mt-bench-hard" in printed and "2 ties" in printed


def test_intervals_combine_by_variance_recovery():
    assert combine([(0.5, 0.4, 0.7)], [3]) == pytest.approx((0.5, 0.4, 0.7))
    value, low, high = combine([(0.5, 0.4, 0.7), (0.8, 0.6, 0.9)], [1, 3])
    assert value == pytest.approx(0.725)
    assert value - low == pytest.approx(((0.25 * 0.1) ** 2 + (0.75 * 0.2) ** 2) ** 0.5)
    assert high - value == pytest.approx(((0.25 * 0.2) ** 2 + (0.75 * 0.1) ** 2) ** 0.5)


def test_pairs_are_read_in_three_forms(tmp_path):
    asked = [{"role": "user", "content": "Q"}]
    rows = [
        {"prompt": "Q", "chosen": "yes", "rejected": "no", "subset": "hep-go"},
        {"prompt": asked, "chosen": "yes", "rejected": "no"},
        {side: [*asked, {"role": "assistant", "content": text}] for side, text in (("chosen", "yes"), ("rejected", "no"))},
        {"input": "Q", "output_1": "no", "output_2": "yes", "label": 2, "subset": "Adversarial/GPTOut"},
    ]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    pairs = read_pairs(tmp_path / "mine.jsonl")
    assert [pair.subset for pair in pairs] == ["hep-go", "mine", "mine", "llmbar-adver-GPTOut"]
    assert all([m["content"] for m in pair.chosen] == ["Q", "yes"] and pair.rejected[-1]["content"] == "no" for pair in pairs)
    assert len(first_of_each_subset(pairs, 1)) == 3
    write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "Q", "chosen": "yes"}])
    with pytest.raises(MissingInput, match="row without 'rejected'"):
        read_pairs(tmp_path / "bad.jsonl")


def test_the_mirrors_llmbar_has_the_benchmarks_own_counts(data):
    pairs = read_pairs(data / "preferences" / "llmbar.jsonl.gz")
    found = {subset: sum(pair.subset == subset for pair in pairs) for subset in {pair.subset for pair in pairs}}
    assert found == {subset: COUNTS[subset] for subset in COUNTS if subset.startswith("llmbar")}


class Pointwise:
    def score(self, conversations):
        return [float(len(conversation[-1]["content"])) for conversation in conversations]


class Ranking:
    def __init__(self, comparisons):
        self.comparisons = comparisons


class Pairwise:
    """Says the comparison in the other order now and then, as a tournament may."""

    def rank(self, prompts, responses):
        return [Ranking([(0, 1, 0.8)] if len(a) > 1 else [(1, 0, 0.3)]) for a, _ in responses]


def test_any_scorer_compares():
    def one(text):
        return [{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}]

    pairs = [(one("long"), one("a")), (one("a"), one("b")), (one("a"), one("bcd"))]
    assert as_comparer(Pointwise())(pairs) == pytest.approx([1 / (1 + 2.718281828**-3), 0.5, 1 / (1 + 2.718281828**2)])
    assert as_comparer(Pairwise())(pairs) == pytest.approx([0.8, 0.7, 0.7])
    with pytest.raises(RecipeError, match="object cannot compare answers"):
        as_comparer(object())


def test_the_command_scores_a_checkpoint_and_prints_json(tiny_llama, tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from harness.cli import app

    torch.manual_seed(0)
    checkpoint = tmp_path / "reward"
    AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1).save_pretrained(checkpoint)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(checkpoint)
    rows = [{"prompt": f"Q {k}", "chosen": "yes " * k, "rejected": "no", "subset": "llmbar-natural"} for k in range(1, 7)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    written = tmp_path / "rows.jsonl"
    command = ["reward-bench", str(checkpoint), str(tmp_path / "pairs.jsonl"), "--json", "--rows", str(written)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    probabilities = [json.loads(line)["probability"] for line in written.read_text().splitlines()]
    # Killed after four pairs: the others are scored, those that are there are believed.
    kept = [json.loads(line) for line in written.read_text().splitlines()][:4]
    write_jsonl(written, [row | {"probability": 0.5} for row in kept])
    again = json.loads(CliRunner().invoke(app, command).stdout)
    assert again["overall"]["ties"] == 4 and again["overall"]["n"] == 6
    assert [json.loads(line)["probability"] for line in written.read_text().splitlines()][4:] == pytest.approx(probabilities[4:])
    write_jsonl(written, [{"other": 1}])
    assert isinstance(CliRunner().invoke(app, command).exception, RecipeError)
    assert told["overall"]["accuracy"] == sum(p > 0.5 for p in probabilities) / 6 and told["files"] == [
        str(tmp_path / "pairs.jsonl")
    ]
