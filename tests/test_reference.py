"""The reference stage: the same numbers whatever the processes, and a softmax that is never held for all positions at once."""

import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.artifacts import read_rows
from core.errors import RecipeError
from core.stage import Spec, Stage
from harness.plan import build_plan
from harness.recipe_file import load_recipe
from tests.test_plan import _inputs
from tests.training import make_pairs
from train.logprobs import response_logprobs
from train.reference import ReferencePolicy, run, score_shards, shard_file

SETTINGS = {"max_length": 128, "precision": "fp32"}


@pytest.fixture(scope="module")
def pairs(tiny_llama, tmp_path_factory):
    """Of two shards, 256 and 14 pairs."""
    return make_pairs(tiny_llama, tmp_path_factory.mktemp("pairs"), 270)


@pytest.fixture
def make_stage(make_spec, store, tiny_llama, pairs):
    def make(name: str, **resources: int) -> Stage:
        spec = make_spec("reference[1]", SETTINGS, {"reference": tiny_llama, "pairs": pairs}, resources=resources)
        stage = Stage(Spec.load(spec))
        stage.work = store / name
        stage.work.mkdir()
        return stage

    return make


def test_processes_and_batches_change_no_log_probability(make_stage, store, monkeypatch):
    found = {}
    for name, resources in (("one", {}), ("small", {"batch_tokens": 256}), ("two", {"processes": 2})):
        shutil.rmtree(store.parent / "cache", ignore_errors=True)
        stage = make_stage(name, **resources)
        if "processes" in resources:  # of this process only: the workers import their own
            monkeypatch.setattr("train.reference.ReferencePolicy", lambda spec: pytest.fail("the stage's own process"))
        metrics = run(stage)
        found[name] = read_rows(stage.work / "reference.jsonl")
        assert (metrics["pairs"], metrics["dropped"], metrics["cached"]) == (270, 0, 0)
        assert [file.name for file in stage.work.iterdir()] == ["reference.jsonl"]
    assert [row["prompt_id"] for row in found["one"]] == [f"p{k}" for k in range(270)]
    for other in (found["two"], found["small"]):
        for one, row in zip(found["one"], other, strict=True):
            assert row == one | {side: pytest.approx(one[side], abs=1e-3) for side in ("chosen_logp", "rejected_logp")}
    assert run(make_stage("again", processes=2)) == metrics | {"cached": 540}, "what either worker wrote, both find"


def test_a_resumed_stage_makes_what_is_missing_only(make_stage, store):
    whole = make_stage("whole")
    run(whole)
    expected = read_rows(whole.work / "reference.jsonl")
    stage = make_stage("resumed")
    (folder := stage.work / "shards").mkdir()
    assert len(list(score_shards(stage.spec, folder, iter([256])))) == 1
    file = shard_file(folder, 256)
    file.write_text(file.read_text().replace('"p269"', '"before the crash"'))
    metrics = run(stage)
    rows = read_rows(stage.work / "reference.jsonl")
    assert rows[:-1] == expected[:-1] and rows[-1]["prompt_id"] == "before the crash"
    assert metrics["cached"] == 512, "256 pairs, two answers each, of the first shard"


def test_the_batch_is_what_the_resources_say(make_stage, pairs):
    policy = ReferencePolicy(make_stage("batches", batch_tokens=100).spec)
    sizes = []
    policy.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    policy.score(read_rows(pairs / "pairs.jsonl")[:8])
    assert len(sizes) > 1 and max(sizes) <= 100


class LargestSoftmax(TorchDispatchMode):
    """The most numbers that one log-softmax gave."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._log_softmax.default:
            self.numbers = max(self.numbers, result.numel())
        return result


def test_the_softmax_of_a_few_positions_at_a_time_is_that_of_all(tiny_llama):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    prompts, responses = [[5, 6, 7], [8, 9]], [[(7 * k) % 1000 for k in range(700)], [11, 12]]
    with LargestSoftmax() as largest:
        found = response_logprobs(model, prompts, responses)
    assert 0 < largest.numbers <= 256 * model.config.vocab_size
    ids = torch.zeros(2, 703, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for k, row in enumerate([prompts[0] + responses[0], prompts[1] + responses[1]]):
        ids[k, : len(row)], mask[k, : len(row)] = torch.tensor(row), 1
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    for k, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        own = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        every = torch.log_softmax(logits[k, own].float(), dim=-1).gather(1, torch.tensor(response)[:, None])
        assert found[k] == every.sum(), "bit by bit"


def test_its_batch_and_processes_are_resources_of_the_recipe_and_no_part_of_a_key():
    plain = build_plan(load_recipe("quickstart"), _inputs())
    wide = build_plan(load_recipe("quickstart", ["reference.processes=4", "reference.batch_tokens=16384"]), _inputs())
    assert {name: node.key for name, node in wide.nodes.items()} == {name: node.key for name, node in plain.nodes.items()}
    nodes = [name for name, node in wide.nodes.items() if node.program == "train.reference"]
    assert "reference[1]" in nodes and "heldout_reference[2]" in nodes
    for name in nodes:
        assert wide.nodes[name].resources == {"processes": 4, "batch_tokens": 16384} and plain.nodes[name].resources == {}
    assert "processes" not in wide.nodes["annotate[1]"].resources
    with pytest.raises(RecipeError, match=r"reference\.batch_tokens"):
        load_recipe("quickstart", ["reference.batch_tokens=0"])
