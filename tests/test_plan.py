"""The plan is a pure function of recipe and inputs; keys change exactly where the work changes."""

from dataclasses import replace

import pytest

from core.errors import RecipeError
from harness.plan import BenchmarkInput, Inputs, Plan, Ref, build_evaluation, build_plan
from harness.recipe_file import load_recipe


def _benchmark(name: str, kind: str, verdict: str) -> BenchmarkInput:
    settings = {"variant": "starter", "version": "starter@1", "limit": None, "decoding": {}}
    return BenchmarkInput(name, kind, verdict, settings, {"questions": Ref(path=f"/q/{name}", fingerprint=name * 3)})


def _inputs(prompts: str = "p") -> Inputs:
    benchmarks = [
        _benchmark("alpaca_eval", "generation", "judge"),
        _benchmark("human_eval", "generation", "sandbox"),
        _benchmark("truthful_qa", "likelihood", "likelihood"),
    ]
    sources = [
        ({"name": "pairs", "reader": "jsonl", "use": "preferences", "limit": None}, [Ref(path="/pairs", fingerprint="a")]),
        ({"name": "prompts", "reader": "jsonl", "use": "prompts", "limit": None}, [Ref(path="/prompts", fingerprint=prompts)]),
    ]
    return Inputs(base=Ref(path="/base", fingerprint="base"), sources=sources, benchmarks=benchmarks)


def _plan(*overrides: str, starts: dict[int, int] | None = None, prompts: str = "p") -> Plan:
    return build_plan(load_recipe("quickstart", list(overrides)), _inputs(prompts), starts)


def _changed(a: Plan, b: Plan) -> set[str]:
    return {name for name in a.nodes if name in b.nodes and a.nodes[name].key != b.nodes[name].key}


def test_stages_and_order() -> None:
    names = list(_plan().nodes)
    evaluation = ["answer", "likelihood", "execute", "judge"]
    loop = ["generate", "annotate", "pairs", "reference", "heldout_reference", "dpo"]
    expected = ["data", "sft", "heldout", "reward", "gold_reward"]
    expected += [f"{s}[{label}]" for label in ("base", "sft") for s in evaluation]
    for t in (1, 2):
        expected += [f"{s}[{t}]" for s in loop] + [f"{s}[iter-{t}]" for s in evaluation]
    assert names == expected


def test_inputs_only_refer_to_earlier_stages() -> None:
    plan, seen = _plan(), set()
    for node in plan.nodes.values():
        assert {r.stage for r in node.inputs.values() if r.stage} <= seen, node.name
        seen.add(node.name)


def test_same_recipe_same_keys() -> None:
    assert not _changed(_plan(), _plan())


def test_a_key_changes_with_what_the_stage_depends_on_and_nothing_else() -> None:
    everything = set(_plan().nodes)
    before_dpo = {n for n in everything if n.split("[")[0] in ("data", "sft", "heldout", "reward", "gold_reward")}
    untouched = before_dpo | {n for n in everything if n.endswith(("[base]", "[sft]"))}
    untouched |= {"generate[1]", "annotate[1]", "pairs[1]", "reference[1]", "heldout_reference[1]", "heldout_reference[2]"}
    assert _changed(_plan(), _plan("dpo.beta=0.2")) == everything - untouched
    assert _changed(_plan(), _plan(prompts="other")) == everything - {"likelihood[base]", "execute[base]"}


def test_how_fast_is_not_part_of_the_key() -> None:
    assert not _changed(
        _plan(), _plan("dpo.micro_batch_size=2", "dpo.save_steps=7", "generate.shard_size=4", "evaluate.threads=1")
    )


def test_reference_policy() -> None:
    initial, previous = _plan(), _plan("reference.policy=previous")
    assert initial.nodes["reference[2]"].inputs["reference"] == Ref(stage="sft", part="checkpoint")
    assert previous.nodes["reference[2]"].inputs["reference"] == Ref(stage="dpo[1]", part="checkpoint")
    assert _changed(initial, previous) == {"reference[2]", "heldout_reference[2]", "dpo[2]"} | {
        f"{s}[iter-2]" for s in ("answer", "likelihood", "execute", "judge")
    }
    # Where the reference moves, the KL to the first policy needs log-probabilities of its own.
    assert "first" not in initial.nodes["dpo[2]"].inputs and "first" not in previous.nodes["dpo[1]"].inputs
    first = previous.nodes[previous.nodes["dpo[2]"].inputs["first"].stage]
    assert first.inputs == initial.nodes["reference[2]"].inputs and first.key == initial.nodes["reference[2]"].key


def _references(*overrides: str, starts: dict[int, int] | None = None) -> list[str]:
    """The reference's stage in each of five iterations."""
    plan = _plan("iterations=5", *overrides, starts=starts)
    return [plan.nodes[f"reference[{t}]"].inputs["reference"].stage for t in range(1, 6)]


def test_a_reference_refreshed_every_k_iterations() -> None:
    every_2 = ("reference.policy=every_k", "reference.k=2")
    assert _references(*every_2) == ["sft", "sft", "dpo[2]", "dpo[2]", "dpo[4]"]
    assert _references("reference.policy=every_k", "reference.k=9") == _references() == ["sft"] * 5
    assert _references("reference.policy=every_k", "reference.k=1") == _references("reference.policy=previous")
    # Iteration 3 was rolled back to the first iterate: that, not the second, is what iterations 3 and 4 start near.
    assert _references(*every_2, starts={3: 1}) == ["sft", "sft", "dpo[1]", "dpo[1]", "dpo[4]"]
    for faulty in (["reference.policy=every_k"], ["reference.k=2"]):
        with pytest.raises(RecipeError, match="every_k needs k"):
            _plan(*faulty)


def test_inpo_reads_the_last_iterate_beside_the_reference() -> None:
    plan = _plan("dpo.loss=inpo", "dpo.beta=0.005")
    inputs = plan.nodes["dpo[2]"].inputs
    assert plan.nodes[inputs["previous"].stage].inputs["reference"] == Ref(stage="dpo[1]", part="checkpoint")
    assert plan.nodes[inputs["reference"].stage].inputs["reference"] == Ref(stage="sft", part="checkpoint")
    assert plan.nodes["dpo[2]"].settings["loss_options"] == {"inpo_ratio": 1 / 3}
    assert plan.nodes["previous[1]"].key == plan.nodes["reference[1]"].key  # the same work is done once
    assert "previous" not in _plan().nodes["dpo[2]"].inputs


def test_the_plan_has_the_number_that_stands_for_a_beta_left_open() -> None:
    left_open, given = _plan("dpo.loss=simpo", "dpo.beta=null"), _plan("dpo.loss=simpo", "dpo.beta=2.5")
    assert left_open.nodes["dpo[1]"].settings["beta"] == 2.5 and not _changed(left_open, given)
    assert not _changed(_plan(), _plan("dpo.beta=null"))


def test_held_out_pairs_can_be_left_out() -> None:
    plan = _plan("dpo.held_out_pairs=0")
    assert not any(name.startswith("heldout") for name in plan.nodes)
    assert set(plan.nodes["dpo[1]"].inputs) == {"policy", "pairs", "reference"}


def test_data_of_all_iterations_chains_the_pairs() -> None:
    assert "earlier" not in _plan().nodes["pairs[2]"].inputs
    chained = _plan("dpo.data=all")
    assert chained.nodes["pairs[2]"].inputs["earlier"] == Ref(stage="pairs[1]")
    assert "earlier" not in chained.nodes["pairs[1]"].inputs


def test_roll_back_starts_the_next_iteration_elsewhere() -> None:
    rolled = _plan(starts={2: 0})
    assert rolled.nodes["generate[2]"].inputs["policy"] == Ref(stage="sft", part="checkpoint")
    assert rolled.nodes["dpo[2]"].inputs["policy"] == Ref(stage="sft", part="checkpoint")
    assert _plan().nodes["dpo[2]"].inputs["policy"] == Ref(stage="dpo[1]", part="checkpoint")


def test_prompts_are_fresh_in_every_iteration() -> None:
    first, second = (_plan().nodes[f"generate[{t}]"].settings for t in (1, 2))
    assert (first["start"], first["stop"]) == (0, 32)
    assert (second["start"], second["stop"]) == (32, 64)


def test_the_offline_baselines_are_recipes() -> None:
    """Data-matched to the online run: one iteration over the prompts of all, answered by the first policy alone; RAFT and
    best-of-n SFT are the loss on the chosen answer only."""
    online, offline = _plan(), _plan("iterations=1", "generate.prompts_per_iteration=64")
    settings = offline.nodes["generate[1]"].settings
    assert (settings["start"], settings["stop"]) == (0, online.nodes["generate[2]"].settings["stop"])
    assert offline.nodes["generate[1]"].inputs["policy"] == Ref(stage="sft", part="checkpoint")
    raft = _plan("dpo.loss=sft")
    assert raft.nodes["dpo[1]"].settings["loss"] == "sft"
    assert _changed(online, raft) >= {"dpo[1]", "generate[2]"} and "pairs[1]" not in _changed(online, raft)


def test_without_sft_the_base_is_the_first_policy() -> None:
    plan = _plan("sft.enabled=false")
    assert "sft" not in plan.nodes and "answer[sft]" not in plan.nodes
    assert plan.nodes["generate[1]"].inputs["policy"].fingerprint == "base"


def test_evaluation_of_a_checkpoint_alone() -> None:
    recipe = load_recipe("quickstart")
    inputs = Inputs(base=None, sources=[], benchmarks=_inputs().benchmarks, gold_reward=Ref(path="/gold", fingerprint="gold"))
    plan = build_evaluation(recipe.evaluate, 1, Ref(path="/theirs", fingerprint="theirs"), inputs)
    assert list(plan.nodes) == ["answer[policy]", "likelihood[policy]", "execute[policy]", "judge[policy]"]
    assert plan.nodes["judge[policy]"].inputs["judge"].fingerprint == "gold"


def test_a_reward_model_may_start_from_a_model_that_is_not_the_recipe_s() -> None:
    other = Ref(path="/other", fingerprint="other")
    recipe = load_recipe("quickstart", ["reward.start.source=/other"])
    plan = build_plan(recipe, replace(_inputs(), backbones={"reward": other}))
    assert plan.nodes["reward"].inputs["policy"] == other
    assert plan.nodes["gold_reward"].inputs["policy"] == _plan().nodes["gold_reward"].inputs["policy"] != other
    assert plan.nodes["reward"].key != _plan().nodes["reward"].key
