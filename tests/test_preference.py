"""The pairwise preference model: figures by closed forms; a training that learns a plain preference in either order and is
used, tested and refused as it should be afterwards."""

import json
import random
import shutil
from pathlib import Path

import pytest

from core.artifacts import Artifact, read_rows
from core.errors import HarnessError, RecipeError
from core.stage import Spec, Stage
from tests.training import RESOURCES, training_settings, words, write_jsonl
from train.annotate import run as annotate
from train.chat import load_tokenizer
from train.pairs import run as pairs
from train.preference import tokenise
from train.preference_metrics import heldout_metrics, position_warning
from train.preference_model import Comparison, PairwisePreferenceModel
from train.preference_prompt import label_ids
from train.preference_self_test import KNOWN
from train.statistics import wilson_interval


def preference(k: int, chosen: str = "yes", rejected: str = "no", source: str = "a", question: str = "Question") -> dict:
    asked = {"role": "user", "content": f"{question} {k}"}
    sides = {name: [asked, {"role": "assistant", "content": text}] for name, text in (("chosen", chosen), ("rejected", rejected))}
    return {"id": str(k), "source": source} | sides


def test_heldout_figures_average_both_orders_and_count_ties_half():
    compared = [Comparison(0.9, 0.76), Comparison(0.66, 0.2), Comparison(0.5, 0.5), Comparison(0.8, 0.34)]
    metrics = heldout_metrics(["x", "x", "y", "y"], compared)
    assert metrics["heldout_accuracy"] == 2.5 / 4 and metrics["heldout_n"] == 4
    assert (metrics["heldout_low"], metrics["heldout_high"]) == wilson_interval(2.5, 4)
    assert metrics["position_consistency"] == 2 / 4  # right in both orders; undecided in both
    assert metrics["heldout_accuracy_one_order"] == (2 + 1 + 1 + 1) / 8
    # Shown first: 0.9, 0.24 | 0.66, 0.8 | 0.5, 0.5 | 0.8, 0.66.
    assert metrics["first_position_preference"] == pytest.approx(5.06 / 8)
    assert metrics["heldout_by_source"]["x"]["accuracy"] == 0.5 and metrics["heldout_by_source"]["y"]["n"] == 2
    assert metrics["heldout_by_source"]["y"]["position_consistency"] == 0.5
    # Confidence 0.83 (right), 0.57 (wrong), 0.5 (half right), 0.57 (right).
    assert metrics["heldout_ece"] == pytest.approx((0.17 + 0 + 2 * 0.07) / 4)
    assert position_warning(metrics) is None
    assert "only 25.0 % get the same verdict" in (position_warning(metrics | {"position_consistency": 0.25}) or "")


def test_examples_learn_the_label_alone_in_an_order_that_the_seed_and_the_id_decide(tiny_llama):
    tokenizer = load_tokenizer(tiny_llama)
    rows = [preference(k) for k in range(64)]
    examples, counts = tokenise(rows, tokenizer, 256, "random", 0)
    assert len(examples) == 64 and counts == {"context_cut": 0, "dropped_length": 0, "dropped_context": 0}
    labels = label_ids(tokenizer)
    for example in examples:
        text = tokenizer.decode(example["input_ids"])
        yes_first = "[RESPONSE A] yes [RESPONSE B] no" in text
        assert example["labels"][-1] == example["input_ids"][-1] == labels[0 if yes_first else 1]
        assert set(example["labels"][:-1]) == {-100} and text.endswith("assistant\n" + ("A" if yes_first else "B"))
    shown_first = sum(example["labels"][-1] == labels[0] for example in examples)
    assert 20 < shown_first < 44
    assert tokenise(rows[::-1], tokenizer, 256, "random", 0)[0] == examples[::-1]
    assert tokenise(rows, tokenizer, 256, "random", 1)[0] != examples
    both, _ = tokenise(rows, tokenizer, 256, "both", 0)
    assert len(both) == 128 and [e["labels"][-1] for e in both[:2]] == list(labels)
    with pytest.raises(RecipeError, match="orders"):
        tokenise(rows, tokenizer, 256, "either", 0)


def test_pairs_that_cannot_be_shown_whole_are_dropped_and_counted_by_cause(tiny_llama):
    rows = [preference(0), preference(1, "word " * 200), preference(2, "same", "same"), preference(3, question="long " * 200)]
    rows.append(preference(4))
    rows[4]["rejected"] = preference(5)["rejected"]
    examples, counts = tokenise(rows, load_tokenizer(tiny_llama), 100, "both", 0)
    assert counts == {"context_cut": 2, "dropped_length": 1, "dropped_context": 2} and len(examples) == 4
    assert max(example["length"] for example in examples) <= 100


@pytest.fixture(scope="module")
def trained(tiny_llama, tmp_path_factory) -> Artifact:
    """A preference model taught that responses which end with "good" are better, trained as a stage."""
    import os
    import subprocess
    import sys

    from core.artifacts import Store
    from tests.conftest import ROOT, fingerprint_of

    folder = tmp_path_factory.mktemp("preference")
    data, generator = folder / "data", random.Random(0)
    data.mkdir()
    pairs = [preference(k, words(generator, 2) + " good", words(generator, 2) + " bad", "ab"[k % 2]) for k in range(200)]
    write_jsonl(data / "reward_train.jsonl", pairs[:160])
    write_jsonl(data / "pairs_heldout.jsonl", pairs[160:])
    settings = training_settings(epochs=3, batch_size=8, max_length=160, file="reward_train.jsonl", orders="both")
    inputs = {
        name: {"path": str(path), "fingerprint": fingerprint_of(path)} for name, path in (("policy", tiny_llama), ("data", data))
    }
    spec = Spec("preference", 1, "a" * 64, settings, inputs, str(folder), resources=RESOURCES | {"micro_batch_size": 8})
    spec.save(folder / "spec.json")
    command = [sys.executable, "-m", "train.preference", str(folder / "spec.json")]
    finished = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-4000:]
    artifact = Store(folder).find("preference", "a" * 64)
    assert artifact is not None
    return artifact


def test_it_learns_a_plain_preference_whatever_the_order(trained):
    metrics = trained.metrics
    assert metrics["heldout_n"] == 40 and metrics["heldout_accuracy"] > 0.9 and metrics["heldout_low"] > 0.7
    assert metrics["position_consistency"] > 0.8 and 0.4 < metrics["first_position_preference"] < 0.6
    assert metrics["pairs"] == 160 and metrics["examples"] == 320 and metrics["dropped"] == 0
    assert set(metrics["heldout_by_source"]) == {"a", "b"} and 0 <= metrics["heldout_ece"] <= 0.5
    weights = [file.relative_to(trained.path).as_posix() for file in trained.path.rglob("*.safetensors")]
    assert weights == ["checkpoint/model.safetensors"] and not (trained.path / "rolling").exists()
    rows = [json.loads(line) for line in trained.file("heldout.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [str(k) for k in range(160, 200)]
    assert sum(row["shown_first"] + row["shown_second"] > 1 for row in rows) == 40 * metrics["heldout_accuracy"]
    assert sum(b["n"] for b in json.loads(trained.file("reliability.json").read_text())) == 40


def test_it_compares_alone_as_in_a_batch_and_ranks_what_it_was_taught(trained):
    model = PairwisePreferenceModel(trained.file("checkpoint"), max_length=160)
    asked = [{"role": "user", "content": "Question 7"}]
    questions = [(asked, "some text good", "other bad"), (asked, "x bad", "longer words here good"), (asked, "same", "same")]
    together = model.compare_responses(questions)
    assert together[0].probability > 0.5 > together[1].probability and together[2] == Comparison(0.5, 0.5)
    for question, found in zip(questions, together, strict=True):
        assert model.compare_responses([question])[0].probability == pytest.approx(found.probability, abs=1e-5)
    swapped = model.compare_responses([(m, b, a) for m, a, b in questions])
    assert [s.probability for s in swapped] == pytest.approx([1 - c.probability for c in together], abs=1e-6)
    assert model.truncated == [False] * 6
    conversations = [[*asked, {"role": "assistant", "content": text}] for text in questions[0][1:]]
    assert model.compare([tuple(conversations)]) == pytest.approx([together[0].probability], abs=1e-6)
    with pytest.raises(RecipeError, match="different"):
        model.compare([(conversations[0], [{"role": "user", "content": "Else?"}, conversations[1][1]])])

    texts = ["one bad", "two good", "three bad", "four good", "two good"]
    ranking, single = model.rank([asked, asked], [texts, ["alone"]])
    assert min(ranking.scores[1], ranking.scores[3]) > max(ranking.scores[0], ranking.scores[2]) and single.scores == [0.0]
    assert len(ranking.comparisons) == 10 and (1, 4, 0.5) in ranking.comparisons
    knocked = model.rank([asked], [texts[:4]], tournament="knockout", seed=3)[0]
    assert knocked.pair is not None and knocked.pair[0] in (1, 3) and knocked.pair[1] in (0, 2)
    assert len(model.truncated) == 4 and not any(model.truncated)
    assert model.rank([asked], [["word " * 400, "good"]])[0].scores and model.truncated == [True, True]
    with pytest.raises(RecipeError, match="knockout"):
        model.rank([asked], [texts], tournament="swiss")


@pytest.mark.parametrize(("tournament", "rule"), [("round_robin", "max_min"), ("knockout", "tournament")])
def test_the_annotate_and_pairs_stages_run_on_it(trained, make_spec, tmp_path, tournament, rule):
    generations = tmp_path / "generations"
    generations.mkdir()
    endings = ["bad", "good", "bad", "good"]
    rows = [
        {"prompt_id": str(p), "messages": [{"role": "user", "content": f"Question {p}"}], "prompt_token_ids": [1]}
        | {"samples": [answer(f"{word} text {end}") for word, end in zip(("one", "two", "three", "four"), endings, strict=True)]}
        for p in range(4)
    ]
    write_jsonl(generations / "shard-00000.jsonl", rows[:3])
    write_jsonl(generations / "shard-00001.jsonl", rows[3:])
    settings = {"scorer": "pairwise", "max_length": 160, "dtype": "auto", "tournament": tournament, "seed": 0}
    spec = make_spec("annotate", settings, {"generations": generations, "scorer": trained.file("checkpoint")})
    stage = opened(spec)
    metrics = annotate(stage)
    assert (metrics["samples"], metrics["failed"], metrics["truncated"]) == (16, 0, 0) and metrics["consistency"] > 0.5
    annotated = [row for name in ("shard-00000", "shard-00001") for row in read_rows(stage.work / f"{name}.jsonl")]
    compared = [len(row["comparisons"]) for row in annotated]
    assert metrics["comparisons"] == sum(compared) and (compared == [6] * 4 if rule == "max_min" else max(compared) <= 5)

    settings = {"rule": rule, "length_penalty": 0.0, "min_margin": 0.0, "truncated": "keep", "max_length": 512, "seed": 0}
    paired = opened(make_spec("pairs", settings, {"generations": generations, "annotations": stage.work}))
    made = pairs(paired)
    assert made["n_pairs"] + sum(made["dropped"].values()) == 4 and made["n_pairs"] >= 3
    for row in read_rows(paired.work / "pairs.jsonl"):
        assert row["chosen"]["text"].endswith("good") and row["rejected"]["text"].endswith("bad")


def test_a_comparison_is_computed_once_for_all_runs(trained, make_spec, tmp_path):
    """Either order by itself, whoever asks; other weights, another limit or another answer find nothing."""
    generations = tmp_path / "generations"
    generations.mkdir()
    texts = ["one bad", "two good", "three bad", "four good"]
    row = {"prompt_id": "p", "messages": [{"role": "user", "content": "Question 7"}], "prompt_token_ids": [1]}
    write_jsonl(generations / "shard-00000.jsonl", [row | {"samples": [answer(text) for text in texts]}])
    settings = {"scorer": "pairwise", "max_length": 160, "dtype": "auto", "tournament": "round_robin", "seed": 0}

    def annotated(name: str, checkpoint: Path = trained.file("checkpoint"), **changes: str | int) -> tuple[dict, list]:
        stage = opened(make_spec(name, settings | changes, {"generations": generations, "scorer": checkpoint}))
        return annotate(stage), read_rows(stage.work / "shard-00000.jsonl")

    metrics, rows = annotated("first")
    assert (metrics["comparisons"], metrics["cache_hits"]) == (6, 0) and metrics["tokens_per_second"] > 0
    again, same = annotated("second")
    assert (again["comparisons"], again["cache_hits"]) == (6, 12) and same == rows
    assert "tokens_per_second" not in again, "a forward pass was run"
    knocked, _ = annotated("third", tournament="knockout")
    assert knocked["cache_hits"] == 2 * knocked["comparisons"] and "tokens_per_second" not in knocked
    other = copy_of(trained, tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + " ")  # another fingerprint
    assert annotated("fourth", other)[0]["cache_hits"] == annotated("fifth", max_length=159)[0]["cache_hits"] == 0
    write_jsonl(generations / "shard-00000.jsonl", [row | {"samples": [answer(text) for text in [*texts[:3], "new good"]]}])
    assert annotated("sixth")[0]["cache_hits"] == 6, "the three comparisons without the new answer, in both orders"


def answer(text: str) -> dict:
    return {"text": text, "token_ids": list(text.encode()), "finish_reason": "stop", "temperature": 1.0, "seed": 0}


def opened(spec: Path) -> Stage:
    stage = Stage(Spec.load(spec))
    stage.work.mkdir(parents=True, exist_ok=True)
    return stage


def copy_of(trained: Artifact, folder: Path) -> Path:
    return Path(shutil.copytree(trained.file("checkpoint"), folder / "checkpoint"))


def test_a_changed_template_or_weights_are_refused_at_load_and_said_apart(trained, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    changed = copy_of(trained, tmp_path / "template")
    template = changed / "chat_template.jinja"
    template.write_text(template.read_text().replace("add_generation_prompt", "false"))  # upstream's trap
    with pytest.raises(HarnessError, match=r"chat template or tokenizer was changed.*preference\.self_test"):
        PairwisePreferenceModel(changed, max_length=160)
    assert PairwisePreferenceModel(changed, max_length=160, resources={"self_test": False}).labels

    changed = copy_of(trained, tmp_path / "weights")
    weights = load_file(changed / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    save_file(
        {n: w + 0.2 * torch.randn(w.shape, generator=generator) for n, w in weights.items()},
        changed / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(HarnessError, match="reads the same tokens, so its weights"):
        PairwisePreferenceModel(changed, max_length=160)


def test_the_self_test_holds_pairs_that_were_held_out_and_stays_true_where_less_fits(trained):
    kept = json.loads((trained.file("checkpoint") / "self_test.json").read_text())
    assert kept["n"] == 40 and kept["accuracy"] > 0.9 and len(kept["pairs"]) == 20
    assert all(pair["first"].endswith("good") and 0 < pair["probability"] < 1 for pair in kept["pairs"])
    assert PairwisePreferenceModel(trained.file("checkpoint"), max_length=60)  # too short for most of them: no false alarm


def test_a_model_of_others_must_get_obvious_pairs_right(tiny_llama):
    with pytest.raises(HarnessError, match=r"obvious pairs.*chat template"):
        _untrained(tiny_llama)
    assert len(KNOWN) == 8 and len({question for question, _, _ in KNOWN}) == 8


def _untrained(checkpoint: Path) -> PairwisePreferenceModel:
    """A random model is right about each pair by chance; one whose answers do not depend on the text never is."""
    import torch

    model = PairwisePreferenceModel(checkpoint, resources={"self_test": False})
    with torch.no_grad():
        model.model.get_output_embeddings().weight.zero_()
    from train.preference_self_test import require_known_pairs

    require_known_pairs(model, checkpoint, "float32")
    return model
