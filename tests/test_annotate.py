"""Scoring: a reward depends on its conversation alone, truncation keeps the answer, annotations line up with samples."""

import gzip
import json
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.artifacts import read_rows, write_rows
from core.errors import HarnessError, MissingInput, RecipeError
from core.stage import Spec, Stage
from tests.training import timeless
from train.annotate import run
from train.annotation_cache import AnnotationCache, RewardCache, reward_identity
from train.batches import length_batches
from train.chat import load_tokenizer, render
from train.ensemble import combine, disagreement, standardise
from train.reward_forward import can_share, shared_beginnings
from train.rules import RULES, find_rule
from train.scorers import keep_end, make_scorer
from train.shards import shard_files

SETTINGS = {"scorer": "bradley_terry", "max_length": 512, "dtype": "auto"}


def make_reward_model(tiny_llama: Path, folder: Path, labels: int = 1) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(1)
    config = LlamaConfig.from_pretrained(tiny_llama, num_labels=labels)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    load_tokenizer(tiny_llama).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward_model(tiny_llama, tmp_path_factory) -> Path:
    return make_reward_model(tiny_llama, tmp_path_factory.mktemp("reward"))


def conversation(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


CONVERSATIONS = [conversation(f"Question {i}?", "An answer. " * (1 + 7 * i % 23)) for i in range(12)]


@pytest.fixture(scope="module")
def scorer(reward_model):
    return make_scorer("bradley_terry", reward_model, max_length=512, resources={"threads": 1, "batch_tokens": 600})


def test_single_batched_and_reordered_scores_are_equal(scorer):
    together = scorer.score(CONVERSATIONS)
    alone = [scorer.score([one])[0] for one in CONVERSATIONS]
    assert together == pytest.approx(alone, abs=1e-5) and len(set(together)) == 12
    assert scorer.score(CONVERSATIONS[::-1]) == pytest.approx(together[::-1], abs=1e-5)


def test_the_score_is_the_raw_logit_of_the_last_token(scorer, reward_model):
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(reward_model).eval()
    _, ids = render(load_tokenizer(reward_model), CONVERSATIONS[5], add_generation_prompt=False)
    with torch.no_grad():
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        expected = model.score(hidden).item()
    assert scorer.score([CONVERSATIONS[5]])[0] == pytest.approx(expected, abs=1e-5)


def test_cutting_keeps_the_end_and_is_reported(reward_model):
    short = make_scorer("bradley_terry", reward_model, max_length=40, resources={"threads": 1})
    long = [conversation(start + " word" * 60 + "?", "The same answer at the end.") for start in ("One", "Two")]
    rewards = short.score([*long, CONVERSATIONS[0]])
    assert short.truncated == [True, True, False]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-6), "what was cut away cannot matter"


def test_keep_end_keeps_bos_and_the_last_ids():
    assert keep_end([1, 2, 3], 3, 1) == [1, 2, 3]
    assert keep_end([1, 2, 3, 4, 5], 3, 1) == [1, 4, 5]
    assert keep_end([2, 3, 4, 5], 3, 1) == [3, 4, 5]


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 1000))
def test_batches_are_a_partition_within_the_budget(lengths, budget):
    batches = length_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


def test_a_pad_token_equal_to_eos_changes_no_score_between_batches(reward_model, tmp_path):
    """Llama-3 reward models come with no pad token at all: eos then pads, alone and in a batch alike."""
    copy = shutil.copytree(reward_model, tmp_path / "nopad")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    tokenizer = load_tokenizer(copy)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(copy)
    scorer = make_scorer("bradley_terry", copy, resources={"threads": 1})
    alone = [scorer.score([one])[0] for one in CONVERSATIONS]
    assert scorer.score(CONVERSATIONS) == pytest.approx(alone, abs=1e-5)


def test_mistakes_name_the_fix(tiny_llama, reward_model, tmp_path):
    with pytest.raises(RecipeError, match="bradley_terry"):
        make_scorer("bt", reward_model)
    with pytest.raises(RecipeError, match="bfloat16"):
        make_scorer("bradley_terry", reward_model, dtype="bf16")
    with pytest.raises(RecipeError, match="2 outputs"):
        make_scorer("bradley_terry", make_reward_model(tiny_llama, tmp_path / "two", labels=2))
    with pytest.raises(MissingInput, match="score.weight"):  # a policy has no reward head: a random one is no substitute
        make_scorer("bradley_terry", tiny_llama)
    with pytest.raises(MissingInput, match="shard"):
        shard_files(tmp_path)


def test_a_reward_that_is_no_number_is_refused(reward_model):
    import torch

    broken = make_scorer("bradley_terry", reward_model, resources={"threads": 1})
    with torch.no_grad():
        broken.model.score.weight.fill_(float("nan"))
    with pytest.raises(HarnessError, match="finite"):
        broken.score(CONVERSATIONS[:1])


def test_a_scorer_of_another_package(monkeypatch):
    class LengthScorer:
        def __init__(self, checkpoint, **options):
            self.truncated = []

        def score(self, conversations):
            self.truncated = [False] * len(conversations)
            return [float(len(c[-1]["content"])) for c in conversations]

    class Point:
        name = "length"

        def load(self):
            return LengthScorer

    monkeypatch.setattr("train.plugins.entry_points", lambda group: [Point()] if group == "harness.scorers" else [])
    assert make_scorer("length", Path(".")).score([conversation("a", "four")]) == [4.0]


@pytest.fixture
def generations(tmp_path) -> Path:
    """Two shards; the second prompt was too long and has no samples."""
    folder = tmp_path / "generations"
    folder.mkdir()
    rows = []
    for name, count in (("a", 3), ("b", 0), ("c", 2), ("d", 3)):
        messages = [{"role": "user", "content": f"Question {name}?"}]
        rows.append(
            {"prompt_id": name, "messages": messages, "samples": [{"text": f"{name} {i} " * (i + 1)} for i in range(count)]}
        )
    write_rows(folder / "shard-00000.jsonl", rows[:2])
    write_rows(folder / "shard-00001.jsonl", rows[2:])
    return folder


def test_the_stage_scores_every_sample_in_order(run_stage, generations, reward_model, scorer):
    artifact = run_stage("train.annotate", "annotate", SETTINGS, {"generations": generations, "scorer": reward_model})
    shards = [read_rows(artifact.file(f"shard-0000{i}.jsonl")) for i in (0, 1)]
    rows = [row for shard in shards for row in shard]
    assert [(row["prompt_id"], len(row["rewards"])) for row in rows] == [("a", 3), ("b", 0), ("c", 2), ("d", 3)]
    rewards = [reward for row in rows for reward in row["rewards"]]
    expected = scorer.score(
        [conversation(f"Question {n}?", f"{n} {i} " * (i + 1)) for n, k in (("a", 3), ("c", 2), ("d", 3)) for i in range(k)]
    )
    assert rewards == pytest.approx(expected, abs=1e-5)
    assert artifact.metrics["reward_mean"] == pytest.approx(fmean(rewards)) and artifact.metrics["samples"] == 8


def test_finished_shards_are_not_scored_again(make_spec, generations, reward_model, monkeypatch):
    stage = Stage(Spec.load(make_spec("annotate", SETTINGS, {"generations": generations, "scorer": reward_model})))
    stage.work.mkdir()
    first = timeless(run(stage))
    assert first.pop("cache_hits") == 0
    (stage.work / "shard-00001.jsonl").unlink()
    kept = (stage.work / "shard-00000.jsonl").stat().st_ino
    again = timeless(run(stage))
    assert again.pop("cache_hits") == 5 and again == pytest.approx(first), "what was scored once is looked up"
    assert (stage.work / "shard-00000.jsonl").stat().st_ino == kept
    monkeypatch.setattr("train.annotators.make_scorer", lambda *a, **k: pytest.fail("all shards are there: no model is needed"))
    assert run(stage) == pytest.approx(first)


def make_stage(make_spec, store, name, settings, inputs, **resources) -> Stage:
    stage = Stage(Spec.load(make_spec(name, settings, inputs, resources=resources)))
    stage.work = store / name
    stage.work.mkdir()
    return stage


def test_answers_that_share_a_prompt_are_scored_as_if_alone(scorer):
    """Long and short prompts with several answers each, one answer the beginning of another, one prompt with a single one."""
    conversations = [
        conversation(f"Question {q}? " + "Think about it well. " * (5 * q), "An answer. " * n)
        for q in range(4)
        for n in (1, 3, 9, 2)
    ][:-3]
    plain = scorer.forward._plain
    rows = []
    scorer.forward._plain = lambda batch: rows.extend(batch) or plain(batch)
    together = scorer.score(conversations)
    scorer.forward._plain = plain
    assert scorer.forward.shares and len(rows) <= 5, "the last, and those of the self-check: the others share their prompt"
    scorer.forward.shares = False
    assert together == pytest.approx(scorer.score(conversations), abs=1e-5)
    scorer.forward.shares = True


def test_a_model_that_sharing_would_change_is_scored_plainly(reward_model):
    """A layer that looks at positions in a way of its own (a defect made here on purpose): the self-check finds out."""
    scorer = make_scorer("bradley_terry", reward_model, resources={"threads": 1})
    layer = scorer.model.model.layers[0]
    forward = layer.forward
    layer.forward = lambda hidden, *args, **kwargs: forward(hidden * (1 + hidden.shape[1] / 100), *args, **kwargs)
    long = [conversation("Think about it well. " * 10, "word " * n) for n in (1, 20, 40)]
    scorer.score(long)
    assert not scorer.forward.shares
    layer.forward = forward
    scorer.model.config.sliding_window = 8
    assert not can_share(scorer.model)


def test_beginnings_end_before_the_head():
    rows = [(1, 2, 3, 9), (1, 2, 3, 9, 4), (1, 2, 8), (5, 6, 7)]
    last = lambda row: len(row) - 1  # noqa: E731
    assert shared_beginnings(rows, "aaab", 2, last) == [([0, 1, 2], 2)]
    assert shared_beginnings(rows[:2], "aa", 2, last) == [([0, 1], 3)], "the first row's last token is where its reward is read"
    assert shared_beginnings(rows, "aaab", 3, last) == []


def test_the_cache_answers_for_the_same_weights_and_tokens_only(tmp_path):
    path = tmp_path / "cache" / "annotations.db"
    identity = reward_identity("bradley_terry", "f" * 64, "float32", 512)
    cache = RewardCache(AnnotationCache(path))
    cache.add(identity, {(1, 2, 3): 0.1, (1, 2): -7.25})
    again = RewardCache(AnnotationCache(path))
    assert again.find(identity, [(1, 2, 3), (1, 2), (3,)]) == {(1, 2, 3): 0.1, (1, 2): -7.25}
    assert (again.hits, again.misses) == (2, 1)
    for other in (("pairwise", "f" * 64, "float32", 512), ("bradley_terry", "e" * 64, "float32", 512)):
        assert again.find(reward_identity(*other), [(1, 2)]) == {}
    assert again.find(reward_identity("bradley_terry", "f" * 64, "bfloat16", 512), [(1, 2)]) == {}
    again.add(identity, {(1, 2): 5.0})
    assert again.find(identity, [(1, 2)]) == {(1, 2): -7.25}, "the first value stands"


def test_concurrent_writers_lose_nothing(tmp_path):
    def write(writer: int) -> None:
        cache = RewardCache(AnnotationCache(tmp_path / "annotations.db"))
        for i in range(40):
            cache.add("id", {(writer, i): float(i), (i,): 1.0})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    wanted = [(w, i) for w in range(6) for i in range(40)] + [(i,) for i in range(40)]
    assert len(RewardCache(AnnotationCache(tmp_path / "annotations.db")).find("id", wanted)) == 280


def test_a_broken_cache_names_the_file(tmp_path):
    (tmp_path / "annotations.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(HarnessError, match="annotations.db"):
        AnnotationCache(tmp_path / "annotations.db")


def test_members_are_standardised_before_they_are_combined():
    one, other = [1.0, 3.0, None, 5.0], [100.0, -100.0, 0.0, 0.0]
    z = standardise(one)
    assert z[2] is None and z[1] == 0 and z[3] == pytest.approx(1.2247, abs=1e-4)
    assert standardise([2.0, 2.0]) == [0.0, 0.0] and standardise([None]) == [None]
    w = standardise(other)
    assert combine([one, other], "mean") == pytest.approx([(z[0] + w[0]) / 2, (z[1] + w[1]) / 2, None, (z[3] + w[3]) / 2])
    assert combine([one, other], "worst")[0] == z[0] and combine([one, other], "worst")[1] == w[1]
    assert combine([one, other], "lower_confidence")[0] == pytest.approx((z[0] + w[0]) / 2 - pstdev([z[0], w[0]]))
    assert combine([[2 * x for x in other], [x + 9 for x in other]], "mean") == pytest.approx(w), "units do not matter"
    with pytest.raises(RecipeError, match="lower_confidence"):
        combine([one, other], "median")
    assert disagreement([1.0, 5.0, 2.0], [2.0, 0.0, 2.0]) == pytest.approx(1 / 3), "a tie disputes nothing"


@pytest.mark.parametrize(
    ("rule", "answer", "reference", "reward"),
    [
        ("numeric_answer", "So 5 + 1 = 6.\n#### 1,234.0", "It is so.\n#### 1234", 1.0),
        ("numeric_answer", "The answer is $72.50 in all.", "#### 72.5", 1.0),
        ("numeric_answer", "First 12, then 13 apples\nThat is all.", "#### 13", 1.0),
        ("numeric_answer", "The answer is 13. Or is it 14?", "#### 13", 0.0),
        ("numeric_answer", "\\boxed{3/4}, not 9", "0.75", 1.0),
        ("numeric_answer", "I do not know.", "#### 13", 0.0),
        ("numeric_answer", "13", "no number", None),
        ("numeric_answer", "13", None, None),
        ("exact_answer", "Thinking...\nAnswer: **Paris**.", "paris", 1.0),
        ("exact_answer", "Lyon, not Paris\nLyon", "Paris", 0.0),
        ("exact_answer", "", "", 0.0),
        ("exact_answer", "Paris", None, None),
    ],
)
def test_answers_are_matched(rule, answer, reference, reward):
    assert RULES[rule]([], answer, reference) == reward


def test_gsm8k_answers_match_themselves(data):
    with gzip.open(data / "gsm8k" / "test.jsonl.gz", "rt", encoding="utf-8") as handle:
        rows = [json.loads(line) for line in handle]
    assert all(RULES["numeric_answer"]([], row["answer"], row["answer"]) == 1 for row in rows) and len(rows) == 1319
    shifted = [RULES["numeric_answer"]([], a["answer"], b["answer"]) for a, b in zip(rows, rows[1:], strict=False)]
    assert fmean(shifted) < 0.05


def test_rules_with_options_and_their_mistakes():
    assert [RULES["length_bounds"]([], "four", None, most=n) for n in (3, 4)] == [0.0, 1.0]
    assert RULES["format"]([], "<answer>\n1\n</answer>", None, pattern="<answer>.*</answer>") == 1.0
    for name, options, words in (
        ("format", {}, "pattern"),
        ("format", {"pattern": "("}, "regular expression"),
        ("length_bounds", {"max": 3}, "max"),
        ("shortness", {}, "numeric_answer"),
    ):
        with pytest.raises(RecipeError, match=words):
            find_rule(name, options)


def test_an_ensemble_of_models_and_a_rule(make_spec, store, generations, reward_model, tiny_llama, tmp_path):
    """Raw rewards of each member stay; the combined ones are those of `combine` over all shards at once; a resume is the same."""
    import torch
    from transformers import AutoModelForSequenceClassification

    second = shutil.copytree(reward_model, tmp_path / "second")
    model = AutoModelForSequenceClassification.from_pretrained(second)
    with torch.no_grad():
        model.score.weight.mul_(-3).add_(0.01)
    model.save_pretrained(second)
    common = {"max_length": 512, "dtype": "auto"}
    members = [
        {"name": "one", "scorer": "bradley_terry", "input": "scorer/0"} | common,
        {"name": "two", "scorer": "bradley_terry", "input": "scorer/1"} | common,
        {"name": "short", "scorer": "length_bounds", "options": {"most": 6}} | common,
    ]
    inputs = {"generations": generations, "scorer/0": reward_model, "scorer/1": second}
    stage = make_stage(make_spec, store, "ensemble", {"members": members, "combine": "worst"}, inputs, threads=1)
    metrics = run(stage)
    rows = [row for i in (0, 1) for row in read_rows(stage.work / f"shard-0000{i}.jsonl")]
    flat = {name: [r for row in rows for r in row["members"][name]] for name in ("one", "two", "short")}
    assert [r for row in rows for r in row["rewards"]] == pytest.approx(combine(list(flat.values()), "worst"))
    single = make_stage(make_spec, store, "single", SETTINGS, {"generations": generations, "scorer": reward_model}, threads=1)
    assert run(single)["cache_hits"] == 8, "the ensemble's scores are found again by any run"
    alone = [r for i in (0, 1) for row in read_rows(single.work / f"shard-0000{i}.jsonl") for r in row["rewards"]]
    assert flat["one"] == pytest.approx(alone) and flat["short"] == [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    assert metrics["members"]["two"]["reward_mean"] == pytest.approx(fmean(flat["two"]))
    assert metrics["members"]["one"]["rank_correlation"]["two"] < 0 and metrics["failed"] == 0
    assert not (stage.work / "members").exists()
    (stage.work / "shard-00000.jsonl").unlink()
    again = run(stage)
    assert [row for i in (0, 1) for row in read_rows(stage.work / f"shard-0000{i}.jsonl")] == rows
    assert again["members"] == metrics["members"]


def test_a_pairwise_model_leaves_its_comparisons(generations):
    from train.annotators import RankAnnotator
    from train.tournament import Outcome, knockout, play

    class Shorter:
        """Prefers the shorter answer: a scorer of the `rank` kind."""

        def rank(self, prompts, responses, *, tournament, seed):
            assert tournament == "knockout" and len(prompts) == len(responses)
            self.truncated = [False] * sum(map(len, responses))
            made = [knockout(len(texts), seed) for texts in responses]
            shorter = [[-len(text) for text in texts] for texts in responses]
            return play(made, lambda matches: [Outcome(float(shorter[t][i] > shorter[t][j]), True) for t, i, j in matches])

    rows = [row for i in (0, 1) for row in read_rows(generations / f"shard-0000{i}.jsonl")]
    annotated = RankAnnotator(Shorter(), {"tournament": "knockout", "seed": 1}).annotate(rows)
    assert annotated[0]["pair"] == [0, 2] and annotated[0]["consistency"] == 1.0 and annotated[1]["rewards"] == []
    assert annotated[0]["rewards"][0] > annotated[0]["rewards"][1] > annotated[0]["rewards"][2]


def test_a_rule_without_any_verdict_is_an_error(make_spec, store, generations):
    stage = make_stage(make_spec, store, "rule", SETTINGS | {"scorer": "numeric_answer"}, {"generations": generations})
    with pytest.raises(HarnessError, match="answer"):
        run(stage)
    rows = [row | {"reference": "#### 1"} for row in read_rows(generations / "shard-00001.jsonl")]
    write_rows(generations / "shard-00001.jsonl", rows)
    stage = make_stage(make_spec, store, "half", SETTINGS | {"scorer": "numeric_answer"}, {"generations": generations})
    metrics = run(stage)
    assert read_rows(stage.work / "shard-00000.jsonl")[0]["rewards"] == [None] * 3
    assert (metrics["failed"], metrics["samples"], metrics["reward_mean"]) == (3, 8, 0.4)


def test_processes_change_no_reward(make_spec, store, generations, reward_model):
    inputs = {"generations": generations, "scorer": reward_model}
    one = make_stage(make_spec, store, "one", SETTINGS, inputs, threads=1)
    two = make_stage(make_spec, store, "two", SETTINGS, inputs, threads=1, processes=2)
    metrics = run(two)
    shutil.rmtree(store.parent / "cache")
    alone = run(one)
    assert timeless(alone) == pytest.approx(timeless(metrics))
    for measured, devices in ((alone, "CPU, "), (metrics, "2 x CPU, ")):
        assert measured["tokens_per_second"] > 0 and 0 < measured["limit_share"] < 1
        assert measured["limit"].startswith(devices)
    for name in ("shard-00000.jsonl", "shard-00001.jsonl"):
        assert (one.work / name).read_text() == (two.work / name).read_text()
    with sqlite3.connect(store.parent / "cache" / "annotations.db") as connection:
        assert connection.execute("SELECT count(*) FROM reward").fetchone() == (8,)
