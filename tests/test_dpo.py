"""DPO: losses by closed forms, the cached reference, and a killed training that goes on as if nothing had happened."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from core.artifacts import read_rows
from core.errors import MissingInput, RecipeError
from core.stage import Spec
from tests.conftest import run_program
from tests.training import (
    RESOURCES,
    dpo_settings,
    kill_at_first_rolling_checkpoint,
    load_weights,
    make_pairs,
    read_events,
    timeless,
    training_settings,
    write_jsonl,
)
from train.dpo import join_reference, of_pair, require_same_prompts
from train.logprobs import response_logprobs, truncated_pair
from train.losses import dpo_losses
from train.optimisation import accumulation_steps, launch_command, warmup
from train.reference import ReferencePolicy
from train.rolling import mark_complete, newest_complete


@pytest.fixture(scope="module")
def pairs(tiny_llama, tmp_path_factory):
    return make_pairs(tiny_llama, tmp_path_factory.mktemp("pairs"), 24)


@pytest.fixture
def reference(tiny_llama, pairs, run_stage):
    return run_stage(
        "train.reference", "reference[1]", {"max_length": 128, "precision": "fp32"}, {"reference": tiny_llama, "pairs": pairs}
    )


def test_response_logprobs_are_the_sum_over_response_tokens_whatever_the_padding(tiny_llama):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    prompts, responses = [[5, 6, 7], [8, 9, 10, 11, 12]], [[20, 21], [30, 31, 32, 2]]
    expected = []
    for prompt, response in zip(prompts, responses, strict=True):
        with torch.no_grad():
            log_p = torch.log_softmax(model(torch.tensor([prompt + response])).logits[0].double(), -1)
        expected.append(sum(log_p[len(prompt) - 1 + k, token].item() for k, token in enumerate(response)))
    assert response_logprobs(model, prompts, responses).tolist() == pytest.approx(expected, abs=1e-4)


def pair(prompt: int, chosen: list[int], rejected: list[int]) -> dict:
    return {
        "prompt_id": "p",
        "prompt_token_ids": [1] * prompt,
        "chosen": {"token_ids": chosen},
        "rejected": {"token_ids": rejected},
    }


def test_pairs_are_cut_at_their_end_or_dropped_with_a_reason():
    assert truncated_pair(pair(3, [4, 5, 6], [7]), 5) == ([1, 1, 1], [4, 5], [7])
    assert truncated_pair(pair(5, [4], [7]), 5) == "prompt_too_long"
    assert truncated_pair(pair(3, [4, 5, 6], [4, 5, 7]), 5) == "equal_after_truncation"
    assert truncated_pair(pair(3, [], [7]), 5) == "empty_response"


def test_dpo_takes_only_the_reference_of_its_own_pairs_cut_alike():
    row, other = pair(3, [4, 5, 6], [7]), pair(9, [4], [7])
    cached = {"prompt_id": "p", "chosen_logp": -1.0, "rejected_logp": -2.0, "chosen_tokens": 2, "rejected_tokens": 1}
    rows, dropped = join_reference([row, other], [cached, cached], 5)
    assert dropped == {"prompt_too_long": 1} and [r["ref_chosen_logps"] for r in rows] == [-1.0]
    with pytest.raises(RecipeError, match="same max_length"):
        join_reference([row], [cached], 6)
    with pytest.raises(RecipeError, match="other pairs"):
        join_reference([row], [cached | {"prompt_id": "q"}], 5)


def test_further_caches_and_rewards_ride_with_the_pairs_that_need_them():
    row = pair(3, [4, 5, 6], [7])
    row["chosen"] |= {"reward": 1.0, "score": 0.5, "win_rate": 0.75}
    row["rejected"] |= {"reward": 2.0, "score": -1.0, "win_rate": 0.25}
    cached = {"prompt_id": "p", "chosen_logp": -1.0, "rejected_logp": -2.0, "chosen_tokens": 2, "rejected_tokens": 1}
    other = cached | {"chosen_logp": -3.0}
    needs = frozenset({"win_rates", "rewards"})
    (joined,), _ = join_reference([row], [cached], 5, {"previous": [other]}, needs)
    assert (joined["ref_chosen_logps"], joined["previous_chosen_logps"]) == (-1.0, -3.0)
    assert (joined["chosen_win_rates"], joined["rejected_rewards"]) == (0.75, -1.0)
    with pytest.raises(RecipeError, match="another length"):
        join_reference([row], [cached], 5, {"previous": [other | {"rejected_tokens": 3}]})
    del row["rejected"]["win_rate"]
    with pytest.raises(RecipeError, match="no win_rate; run the pairs stage again"):
        join_reference([row], [cached], 5, None, needs)


def test_win_rates_that_are_older_than_the_scores_are_refused():
    """They are of raw rewards, whatever penalty chose the pair."""
    row = pair(3, [4, 5, 6], [7])
    for side in ("chosen", "rejected"):
        row[side] |= {"reward": 1.0, "win_rate": 0.5}
    for need in ("win_rates", "rewards"):
        with pytest.raises(RecipeError, match="no score; run the pairs stage again"):
            of_pair(row, frozenset({need}))
    assert of_pair(row, frozenset({"previous", "weights"})) == {}


def test_an_answer_ends_with_its_turn_end_only_where_generation_stopped(tiny_llama, pairs):
    """From the pairs to the collated batch: nothing appends an end to a cut-off answer, nothing loses one."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    from train.chat import load_tokenizer

    end = load_tokenizer(tiny_llama).eos_token_id
    given_rows = read_rows(pairs / "pairs.jsonl")
    ends = [row[side]["finish_reason"] == "stop" for side in ("chosen", "rejected") for row in given_rows]
    assert 0 < sum(ends) < len(ends)
    sides = [(len(row["chosen"]["token_ids"]), len(row["rejected"]["token_ids"])) for row in given_rows]
    cache = [
        {"prompt_id": row["prompt_id"], "chosen_logp": 0.0, "rejected_logp": 0.0, "chosen_tokens": c, "rejected_tokens": r}
        for row, (c, r) in zip(given_rows, sides, strict=True)
    ]
    rows, dropped = join_reference(given_rows, cache, 512)
    assert not dropped
    batch = DataCollatorForPreference(pad_token_id=end)(rows)
    for ids, mask, ended in zip(batch["input_ids"], batch["completion_mask"], ends, strict=True):
        answer = ids[mask.bool()]
        assert (answer[-1] == end) == ended and end not in answer[:-1]


def test_held_out_pairs_become_rows_like_sampled_ones(tiny_llama, make_spec, tmp_path):
    from core.stage import Spec, Stage
    from train.chat import load_tokenizer
    from train.heldout import run

    user, reply = {"role": "user", "content": "Name a colour."}, "assistant"
    good, bad = [user, {"role": reply, "content": "Red."}], [user, {"role": reply, "content": "Seven."}]
    rows = [
        {"id": "a", "source": "s", "chosen": good, "rejected": bad},
        {"id": "b", "source": "s", "chosen": good, "rejected": [{"role": "user", "content": "Other?"}, bad[1]]},
        {"id": "c", "source": "s", "chosen": good, "rejected": [user, {"role": reply, "content": ""}]},
        {"id": "d", "source": "s", "chosen": good, "rejected": bad},
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    write_jsonl(folder / "pairs_heldout.jsonl", rows)
    stage = Stage(Spec.load(make_spec("heldout", {"limit": 3}, {"policy": tiny_llama, "data": folder})))
    stage.work.mkdir(parents=True, exist_ok=True)
    assert run(stage) == {"pairs": 1, "dropped": 2}
    (row,) = read_rows(stage.work / "pairs.jsonl")
    tokenizer = load_tokenizer(tiny_llama)
    require_same_prompts([row], tokenizer)
    # The template writes a newline after the end of the turn: no policy answers with it.
    assert tokenizer.decode(row["chosen"]["token_ids"]) == "Red.<|im_end|>"
    assert row["rejected"]["token_ids"][-1] == tokenizer.eos_token_id


def test_a_loss_that_needs_the_last_iterate_says_which_input_is_missing(tiny_llama, pairs, make_spec):
    from core.stage import Spec, Stage
    from train.dpo import training_rows

    spec = make_spec("dpo", dpo_settings(loss="inpo"), {"policy": tiny_llama, "pairs": pairs})
    with pytest.raises(MissingInput, match="inpo loss needs .* input `previous`"):
        training_rows(Stage(Spec.load(spec)), [], frozenset({"previous"}))


def test_prompts_that_the_policy_would_render_differently_are_refused(tiny_llama, pairs):
    from train.chat import load_tokenizer

    tokenizer, rows = load_tokenizer(tiny_llama), read_rows(pairs / "pairs.jsonl")
    require_same_prompts(rows, tokenizer)
    rows[3]["prompt_token_ids"] = rows[3]["prompt_token_ids"][1:]
    with pytest.raises(RecipeError, match="prompt p3"):
        require_same_prompts(rows, tokenizer)


@given(x=st.floats(-20, 20), smoothing=st.floats(0.001, 0.45))
def test_conservative_dpo_is_the_weighted_sum_of_trls_sigmoid_and_robust_losses(x, smoothing):
    log_sigmoid = torch.nn.functional.logsigmoid
    margin = torch.tensor(x, dtype=torch.float64)
    clean, flipped = -log_sigmoid(margin), -log_sigmoid(-margin)
    by_name = {"sigmoid": clean, "robust": ((1 - smoothing) * clean - smoothing * flipped) / (1 - 2 * smoothing)}
    names, weights = dpo_losses("sigmoid", smoothing)
    total = sum(weight * by_name[name] for name, weight in zip(names, weights, strict=True))
    assert total.item() == pytest.approx(((1 - smoothing) * clean + smoothing * flipped).item(), abs=1e-9)


def test_settings_that_a_loss_would_ignore_are_refused():
    for loss, smoothing, message in [("hinge", 0.1, "has no label smoothing"), ("dop", 0, "not known"), ("exo_pair", 0, "0.001")]:
        with pytest.raises(RecipeError, match=message):
            dpo_losses(loss, smoothing)
    with pytest.raises(RecipeError, match="both set"):
        warmup({"warmup_ratio": 0.1, "warmup_steps": 5})


@given(micro=st.integers(1, 8), ranks=st.integers(1, 8), accumulation=st.integers(1, 16))
def test_the_global_batch_is_exact(micro, ranks, accumulation):
    assert accumulation_steps(micro * ranks * accumulation, micro, ranks) == accumulation


def test_a_batch_that_does_not_divide_names_what_fits():
    with pytest.raises(RecipeError, match=r"micro_batch_size to one of \[1, 2, 4\]"):
        accumulation_steps(8, 3, 2)
    with pytest.raises(RecipeError, match=r"num_processes to one of \[1, 2, 5, 10\]"):
        accumulation_steps(10, 1, 4)


def test_torchrun_starts_the_ranks_of_zero_and_of_several_processes(tmp_path):
    spec = tmp_path / "spec.json"
    plain, _ = launch_command("train.dpo", spec, {"zero_stage": None}, {"num_processes": 1})
    assert "torch.distributed.run" not in plain and plain[-2:] == ["train.dpo", str(spec)]
    for settings, ranks in (({"zero_stage": 2}, 1), ({"zero_stage": None}, 2)):
        command, environment = launch_command("train.dpo", spec, settings, {"num_processes": ranks})
        assert command[command.index("--nproc-per-node") + 1] == str(ranks) and "--standalone" in command
        assert int(environment["OMP_NUM_THREADS"]) >= 1


def test_a_half_written_rolling_checkpoint_is_passed_over(tmp_path):
    for step in (2, 4, 6):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x" * 100)
        if step != 6:
            mark_complete(folder, world_size=1)
    assert newest_complete(tmp_path, 1) == tmp_path / "checkpoint-4"
    (tmp_path / "checkpoint-4" / "model.safetensors").write_bytes(b"x" * 99)
    assert newest_complete(tmp_path, 1) == tmp_path / "checkpoint-2"
    assert newest_complete(tmp_path, world_size=2) is None


def test_reference_rows_follow_the_pairs_and_count_what_is_dropped(tiny_llama, pairs, run_stage):
    settings = {"max_length": 40, "precision": "fp32"}
    artifact = run_stage("train.reference", "reference[1]", settings, {"reference": tiny_llama, "pairs": pairs})
    given_rows, rows = read_rows(pairs / "pairs.jsonl"), read_rows(artifact.file("reference.jsonl"))
    assert [row["prompt_id"] for row in rows] == [row["prompt_id"] for row in given_rows]
    for pair_row, row in zip(given_rows, rows, strict=True):
        assert (row["chosen_logp"] is None) == isinstance(truncated_pair(pair_row, 40), str)
    assert artifact.metrics["pairs"] + artifact.metrics["dropped"] == 24


def test_log_probabilities_are_found_by_content(tiny_llama, pairs, make_spec, tmp_path):
    """What some pairs have paid for, others find; other weights or another precision find nothing."""
    given_rows = read_rows(pairs / "pairs.jsonl")

    def policy(path: Path, **changes: str | int) -> ReferencePolicy:
        settings = {"max_length": 128, "precision": "fp32"} | changes
        return ReferencePolicy(Spec.load(make_spec("reference[1]", settings, {"reference": path, "pairs": pairs})))

    first = policy(tiny_llama)
    rows = first.score(given_rows[:3])
    assert (first.cache.hits, first.cache.misses) == (0, 6)
    every = policy(tiny_llama, max_length=127)
    assert every.score(given_rows)[:3] == rows and every.cache.hits == 6 and every.cache.misses == 2 * len(given_rows) - 6
    again = policy(tiny_llama)
    again.score(given_rows)
    assert "model" not in vars(again), "nothing was missing, and the model was loaded all the same"
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    weights = {name: tensor + 0.01 for name, tensor in load_weights(other).items()}
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    for stranger in (policy(tiny_llama, precision="bf16"), policy(other)):
        stranger.score(given_rows[:3])
        assert stranger.cache.hits == 0


def test_dpo_starts_at_the_reference_and_learns_the_preference(tiny_llama, pairs, reference, run_stage, tmp_path):
    events = tmp_path / "events.ndjson"
    # The pairs themselves stand in for held-out ones, so that what is measured on them is known: they are being learned.
    inputs = {"policy": tiny_llama, "pairs": pairs, "reference": reference.path, "first": reference.path}
    inputs |= {"heldout": pairs, "heldout_reference": reference.path}
    artifact = run_stage("train.dpo", "dpo[1]", dpo_settings(epochs=3), inputs, resources=RESOURCES, events=str(events))
    points = read_events(events, "metric")
    curves = [event["values"] for event in points if "loss" in event["values"]]
    held_out = [(event["step"], event["values"]) for event in points if "held_out/accuracy" in event["values"]]
    assert [step for step, _ in held_out] == [6, 12, 18]  # after each epoch
    assert held_out[-1][1]["held_out/accuracy"] > 0.9 and held_out[-1][1]["held_out/margin"] > 0
    assert artifact.metrics["held_out_accuracy"] == held_out[-1][1]["held_out/accuracy"]
    assert (artifact.metrics["held_out_pairs"], artifact.metrics["held_out_margin"]) == (24, held_out[-1][1]["held_out/margin"])
    for curve in curves:  # the first policy is the reference here, by another road
        assert curve["kl_first"] == pytest.approx(curve["kl"], abs=1e-3)
    assert curves[0]["loss"] == pytest.approx(0.693147, abs=1e-4)  # the policy still is the reference: log 2
    assert curves[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert len(curves) == 18 and curves[-1]["loss"] < 0.5
    for name in (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "grad_norm",
        "learning_rate",
        "kl",
        "tokens/chosen",
        "tokens/rejected",
    ):
        assert name in curves[-1]
    assert artifact.metrics["reward_accuracy"] > 0.9 and artifact.metrics["reward_margin"] > 0
    assert (artifact.metrics["pairs"], artifact.metrics["dropped"], artifact.metrics["steps"]) == (24, 0, 18)


def test_a_killed_training_goes_on_and_ends_as_if_it_had_not_been_killed(tiny_llama, pairs, reference, run_stage, make_spec):
    settings = dpo_settings(epochs=3)
    inputs = {"policy": tiny_llama, "pairs": pairs, "reference": reference.path}
    unbroken = run_stage("train.dpo", "unbroken", settings, inputs, resources=RESOURCES)
    resources = RESOURCES | {"save_steps": 7}  # in the middle of the second of three epochs
    spec = make_spec("dpo[1]", settings, inputs, resources=resources)
    command, environment = launch_command("train.dpo", spec, settings, resources)
    rolling = kill_at_first_rolling_checkpoint(command, environment, spec, world_size=1)
    (rolling / "checkpoint-9000").mkdir()  # as if killed while writing the next one
    resumed = run_program("train.dpo", spec)
    assert "Resuming from step" in spec.with_suffix(".log").read_text()
    assert timeless(resumed.metrics) == timeless(unbroken.metrics)
    for name, weight in load_weights(unbroken.file("checkpoint")).items():
        assert torch.equal(weight, load_weights(resumed.file("checkpoint"))[name]), name
    assert not resumed.file("rolling").exists()


def test_bf16_weights_stay_bf16_on_disk(tiny_llama, tmp_path, run_stage):
    import shutil

    from transformers import AutoModelForCausalLM

    policy = shutil.copytree(tiny_llama, tmp_path / "bf16")
    AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).save_pretrained(policy)
    pairs = make_pairs(policy, tmp_path / "pairs", 8)
    cached = run_stage(
        "train.reference", "reference", {"max_length": 128, "precision": "bf16_autocast"}, {"reference": policy, "pairs": pairs}
    )
    settings = dpo_settings(precision="bf16_autocast", gradient_checkpointing=True, label_smoothing=0.1)
    inputs = {"policy": policy, "pairs": pairs, "reference": cached.path}
    artifact = run_stage("train.dpo", "dpo", settings, inputs, resources=RESOURCES)
    assert {weight.dtype for weight in load_weights(artifact.file("checkpoint")).values()} == {torch.bfloat16}
    assert json.loads(artifact.file("checkpoint/config.json").read_text())["dtype"] == "bfloat16"


def test_zero_without_torchrun_is_a_sentence(tiny_llama, make_spec):
    from core.stage import Spec, Stage
    from train.optimisation import prepare_process

    stage = Stage(Spec.load(make_spec("dpo", training_settings(zero_stage=2), {"policy": tiny_llama})))
    with pytest.raises(RecipeError, match="torchrun"):
        prepare_process(stage.settings)
