"""Generation: every prompt gets a row, samples do not depend on shards, and a kill costs at most the shard in hand."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.artifacts import Store, read_rows, write_rows
from core.errors import HarnessError, RecipeError
from core.seeds import derive_seed
from core.stage import Spec, Stage
from train.generate import (
    Part,
    check_complete,
    generate_shards,
    measured_speed,
    merge,
    parts_of,
    prompt_slice,
    run,
    samplings,
    with_system,
)

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "engine": "transformers",
    "file": "prompts_pool.jsonl",
    "start": 0,
    "stop": 10,
    "arms": [{"temperature": 1.0, "top_p": 1.0, "n": 2}, {"temperature": 0.7, "top_p": 0.9, "n": 1}],
    "max_tokens": 24,
    "max_model_len": 128,
    "dtype": "float32",
    "seed": 5,
    "iteration": 1,
    "system_prompt": None,
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    """A data artifact with 40 short prompts and, at index 3, one that is too long for the context."""
    folder = tmp_path_factory.mktemp("data")
    texts = [f"Say something about the number {i}." + " It is large." * (i % 4) for i in range(40)]
    texts[3] = "word " * 300
    write_rows(
        folder / "prompts_pool.jsonl",
        [{"id": f"p{i}", "messages": [{"role": "user", "content": t}]} for i, t in enumerate(texts)],
    )
    return folder


def rows_of(folder: Path) -> list[dict]:
    return [row for file in sorted(folder.glob("shard-*.jsonl")) for row in read_rows(file)]


def test_the_stage_covers_its_slice(run_stage, tiny_llama, pool):
    artifact = run_stage(
        "train.generate",
        "generate",
        SETTINGS | {"start": 2, "stop": 9},
        {"policy": tiny_llama, "data": pool},
        resources={"shard_size": 3},
    )
    rows = rows_of(artifact.path)
    assert [row["prompt_id"] for row in rows] == [f"p{i}" for i in range(2, 9)]
    assert [len(row["samples"]) for row in rows] == [3, 0, 3, 3, 3, 3, 3], "the prompt that is too long keeps its row"
    for row in rows:
        assert row["prompt_text"].endswith("<|im_start|>assistant\n") and row["messages"][0]["role"] == "user"
        for sample in row["samples"]:
            assert sample["finish_reason"] == "length" if len(sample["token_ids"]) == 24 else "stop"
            assert "<|im_end|>" not in sample["text"]
    assert [sample["temperature"] for sample in rows[0]["samples"]] == [1.0, 1.0, 0.7]
    metrics = artifact.metrics
    samples = [sample for row in rows for sample in row["samples"]]
    assert (metrics["prompts"], metrics["samples"], metrics["too_long"]) == (7, 18, 1)
    assert metrics["tokens"] == sum(len(sample["token_ids"]) for sample in samples)
    assert metrics["truncated"] == sum(sample["finish_reason"] == "length" for sample in samples)
    assert metrics["tokens_per_second"] > 0 and 0 < metrics["limit_share"] < 1 and metrics["limit"].startswith("CPU, ")
    assert len({sample["seed"] for sample in samples}) == 18, "each sample has a seed of its own"


def test_shard_size_changes_no_sample(make_spec, tiny_llama, pool):
    made = []
    for name, size in (("a", 1), ("b", 4), ("c", 100)):
        spec = Spec.load(
            make_spec(f"x-{name}", SETTINGS, {"policy": tiny_llama, "data": pool}, resources={"shard_size": size, "threads": 1})
        )
        stage = Stage(spec)
        stage.work = Path(spec.store) / name
        stage.work.mkdir()
        run(stage)
        made.append(rows_of(stage.work))
        assert len(list(stage.work.glob("shard-*.jsonl"))) == -(-10 // size)
    assert made[0] == made[1] == made[2]


def test_another_shard_size_after_a_crash_starts_its_shards_anew(make_spec, tiny_llama, pool):
    inputs = {"policy": tiny_llama, "data": pool}
    spec = Spec.load(make_spec("generate", SETTINGS, inputs, resources={"shard_size": 3, "threads": 1}))
    stage = Stage(spec)
    stage.work.mkdir()
    run(stage)
    whole = rows_of(stage.work)
    stage.spec.resources["shard_size"] = 5
    metrics = run(stage)
    assert rows_of(stage.work) == whole and len(list(stage.work.glob("shard-*.jsonl"))) == 2
    assert metrics["prompts"] == 10
    assert run(stage)["tokens_per_second"] is None, "nothing left to generate: the model is not even loaded"


def test_a_killed_stage_resumes_and_equals_an_unbroken_one(make_spec, run_stage, tiny_llama, pool, store):
    settings, inputs = SETTINGS | {"stop": 40, "max_tokens": 40}, {"policy": tiny_llama, "data": pool}
    path = make_spec("generate", settings, inputs, resources={"shard_size": 2, "threads": 1})
    spec = Spec.load(path)
    work = Store(store).partial(spec.stage, spec.key)
    process = subprocess.Popen([sys.executable, "-m", "train.generate", str(path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (work / "shard-00000.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    survived = {file.name: file.stat().st_ino for file in work.glob("shard-*.jsonl")}
    assert 0 < len(survived) < 20, "the kill must hit the middle of the stage"

    resumed = run_stage("train.generate", "generate", settings, inputs, resources={"shard_size": 2, "threads": 1})
    assert {name: (resumed.path / name).stat().st_ino for name in survived} == survived, "finished shards are not made again"
    unbroken = Stage(spec)
    unbroken.work = store.parent / "unbroken"
    unbroken.work.mkdir()
    run(unbroken)
    names = sorted(file.name for file in unbroken.work.iterdir())
    assert len(names) == 20 and names == sorted(resumed.manifest["files"])
    assert all((unbroken.work / name).read_bytes() == (resumed.path / name).read_bytes() for name in names)


def test_a_slice_beyond_the_pool_is_refused():
    prompts = [{"id": str(i)} for i in range(5)]
    assert prompt_slice(prompts, 1, 3) == prompts[1:3]
    for start, stop in ((0, 6), (3, 3), (-1, 2)):
        with pytest.raises(RecipeError, match="pool holds 5"):
            prompt_slice(prompts, start, stop)


def test_seeds_differ_by_iteration_prompt_and_sample_and_repeat():
    def seeds(iteration, prompt):
        return [s.seed for s in samplings(SETTINGS | {"iteration": iteration}, prompt)]

    many = [seed for iteration in (1, 2) for prompt in "abc" for seed in seeds(iteration, prompt)]
    assert len(set(many)) == 18 and seeds(1, "a") == many[:3]
    assert all(0 <= seed < 2**31 for seed in many)
    assert derive_seed("a", 1) != derive_seed("a1") and derive_seed(1, "a") == derive_seed("1", "a")


def test_system_prompt_goes_first_unless_there_is_one():
    user = [{"role": "user", "content": "Hi"}]
    assert with_system(user, None) == user
    assert with_system(user, "Be brief.") == [{"role": "system", "content": "Be brief."}, *user]
    assert with_system(with_system(user, "Mine."), "Theirs.")[0]["content"] == "Mine."


@pytest.mark.slow
def test_vllm_makes_the_same_kind_of_rows(run_stage, tiny_llama, pool):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    settings, inputs = SETTINGS | {"engine": "vllm"}, {"policy": tiny_llama, "data": pool}
    ours = run_stage("train.generate", "generate", SETTINGS, inputs)
    theirs = run_stage("train.generate", "generate", settings, inputs, resources={"threads": 1})
    for one, other in zip(rows_of(ours.path), rows_of(theirs.path), strict=True):
        assert {k: v for k, v in one.items() if k != "samples"} == {k: v for k, v in other.items() if k != "samples"}
        assert [s["seed"] for s in one["samples"]] == [s["seed"] for s in other["samples"]]


def make_stage(make_spec, store, name, settings, inputs, **resources) -> Stage:
    """A stage in a folder of its own, to be run in this process."""
    stage = Stage(Spec.load(make_spec(name, settings, inputs, resources={"threads": 1} | resources)))
    stage.work = store / name
    stage.work.mkdir()
    return stage


@pytest.fixture(scope="module")
def other_llama(tiny_llama, tmp_path_factory) -> Path:
    """Other weights under the same tokenizer and template."""
    import torch
    from transformers import LlamaForCausalLM

    folder = shutil.copytree(tiny_llama, tmp_path_factory.mktemp("other") / "checkpoint")
    model = LlamaForCausalLM.from_pretrained(tiny_llama)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


ARMS = [{"temperature": 1.0, "top_p": 1.0, "n": 1, "policy": name} for name in ("current", "initial", "previous", "current")]


def test_arms_of_several_policies_in_two_processes(make_spec, store, tiny_llama, other_llama, pool):
    """Each arm's samples are those of its policy alone, whatever the number of processes; weights that are the same are one.

    What the first policy had answered before a crash stays as it is: only the second one is loaded.
    """
    inputs = {"policy": tiny_llama, "previous": other_llama, "initial": other_llama, "data": pool}
    stage = make_stage(make_spec, store, "arms", SETTINGS | {"arms": ARMS}, inputs, shard_size=4, processes=2)
    mine, theirs = parts_of(stage)
    assert (mine.policy, mine.samples, theirs.policy, theirs.samples) == ("policy", (0, 3), "initial", (1, 2))
    mine.folder.mkdir(parents=True)
    assert len(list(generate_shards(stage.spec, mine, iter([0, 1, 2])))) == 3
    before_the_crash = read_rows(mine.folder / "shard-00000.jsonl")
    before_the_crash[0]["samples"][1]["text"] = "answered before the crash"
    write_rows(mine.folder / "shard-00000.jsonl", before_the_crash)
    metrics = run(stage)
    rows = rows_of(stage.work)
    assert not (stage.work / "parts").exists() and metrics["samples"] == 36 and metrics["tokens_per_second"] > 0
    assert rows[0]["samples"][3]["text"] == "answered before the crash"
    plain = SETTINGS | {"arms": [{"temperature": 1.0, "top_p": 1.0, "n": 4}]}
    alone = []
    for name, checkpoint in (("mine", tiny_llama), ("theirs", other_llama)):
        single = make_stage(make_spec, store, name, plain, {"policy": checkpoint, "data": pool}, shard_size=4)
        run(single)
        alone.append(rows_of(single.work))
    assert [row["prompt_id"] for row in rows] == [f"p{i}" for i in range(10)]
    for row, one, other in zip(rows, *alone, strict=True):
        expected = [*one["samples"][0:1], *other["samples"][1:3], *one["samples"][3:4]]
        assert [s["token_ids"] for s in row["samples"]] == [s["token_ids"] for s in expected]
        assert [s["seed"] for s in row["samples"]] == [s["seed"] for s in expected]
        assert [s["policy"] for s in row["samples"]] == (["current", "initial", "previous", "current"] if row["samples"] else [])


def test_on_gpus_made_up_here_only_those_of_engines_with_shards_count(make_spec, store, tiny_llama, pool, monkeypatch):
    """Eight processes, two shards: six engines are never started, and the hardware's limit is not theirs."""
    settings, inputs = SETTINGS | {"dtype": "bfloat16"}, {"policy": tiny_llama, "data": pool}
    stage = make_stage(make_spec, store, "fast", settings, inputs, shard_size=5, processes=8)
    told = []
    monkeypatch.setattr("train.generate.measured_speed", lambda stage, rows, speed: told.append((rows, speed)) or {})
    run(stage)
    monkeypatch.undo()
    ((rows, speed),) = told
    assert speed.workers == 2 and speed.seconds > 0
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("train.performance.device_name", lambda: "NVIDIA H200")
    stage.spec.resources["tensor_parallel"] = 2
    assert measured_speed(stage, rows, speed)["limit"] == "4 x NVIDIA H200, bfloat16 (data sheet)"


def test_policies_that_read_a_prompt_differently_are_refused(tmp_path):
    """A pair of their answers could not be trained: its prompt would be other tokens on either side."""
    parts = [Part("policy", (0,), tmp_path), Part("initial", (1,), tmp_path)]
    rows = [[{"prompt_id": "a", "prompt_token_ids": ids, "samples": [{"text": name}]}] for name, ids in (("x", [1]), ("y", [1]))]
    assert merge(rows, parts)[0]["samples"] == [{"text": "x"}, {"text": "y"}]
    rows[1][0]["prompt_token_ids"] = [1, 2]
    with pytest.raises(RecipeError, match="tokenizer and chat template"):
        merge(rows, parts)


def test_missing_rows_are_noticed(tmp_path):
    write_rows(tmp_path / "shard-00000.jsonl", [{"prompt_id": "a", "samples": [{}, {}, {}]}, {"prompt_id": "b", "samples": []}])
    check_complete(tmp_path, [["a", "b"]], SETTINGS)
    with pytest.raises(HarnessError, match="lacks rows"):
        check_complete(tmp_path, [["a", "b", "c"]], SETTINGS)
    write_rows(tmp_path / "shard-00000.jsonl", [{"prompt_id": "a", "samples": [{}]}, {"prompt_id": "b", "samples": []}])
    with pytest.raises(HarnessError, match="lacks rows"):
        check_complete(tmp_path, [["a", "b"]], SETTINGS)
