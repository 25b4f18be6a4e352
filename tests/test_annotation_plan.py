"""Arms, ensembles, rules and judges in a recipe: what the plan makes of them, what makes a key, and what is refused."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from core.artifacts import read_rows, write_rows
from core.errors import JudgeError, RecipeError
from core.stage import Spec, Stage
from harness.plan import Plan, Ref, build_plan
from harness.preflight import check_recipe
from harness.recipe_file import load_recipe
from harness.resolve import resolve
from tests.test_plan import _inputs
from train.data import Source, sound
from train.readers import READERS

SFT, REWARD = Ref(stage="sft", part="checkpoint"), Ref(stage="reward", part="checkpoint")
TWO = "annotate.ensemble={scorers: [bradley_terry, {scorer: length_bounds, options: {most: 900}}]}"
JUDGE = (
    "reward=null",
    "annotate.scorer=judge",
    "annotate.judge={model: some-model, endpoints: [{base_url: 'http://127.0.0.1:1/v1'}], api_key_env: '', max_usd: null}",
)


def plan_of(*overrides: str) -> Plan:
    return build_plan(load_recipe("quickstart", list(overrides)), _inputs())


def keys(plan: Plan) -> dict[str, str]:
    return {name: node.key for name, node in plan.nodes.items()}


def test_arms_name_the_policies_that_become_inputs():
    arms = "[{n: 2}, {n: 1, policy: previous}, {n: 1, policy: initial, temperature: 0.7}]"
    plan = plan_of("iterations=3", f"generate.arms={arms}")
    first, third = plan.nodes["generate[1]"], plan.nodes["generate[3]"]
    assert first.inputs["policy"] == first.inputs["previous"] == first.inputs["initial"] == SFT
    assert third.inputs["policy"] == Ref(stage="dpo[2]", part="checkpoint")
    assert third.inputs["previous"] == Ref(stage="dpo[1]", part="checkpoint") and third.inputs["initial"] == SFT
    assert [arm.get("policy") for arm in third.settings["arms"]] == [None, "previous", "initial"]
    plain = plan_of("generate.arms=[{n: 4}]")
    assert keys(plain) == keys(plan_of("generate.arms=[{n: 4, policy: current}]")), "saying the default changes no key"
    assert set(plain.nodes["generate[1]"].inputs) == {"policy", "data"}


def test_processes_and_gpus_change_no_key():
    wide = plan_of("generate.processes=4", "generate.tensor_parallel=2", "annotate.processes=8", "annotate.batch_tokens=4096")
    assert keys(wide) == keys(plan_of())
    assert wide.nodes["generate[1]"].resources.items() >= {"processes": 4, "tensor_parallel": 2}.items()
    assert wide.nodes["annotate[1]"].resources == {"processes": 8, "batch_tokens": 4096}


def test_a_member_with_a_checkpoint_of_its_own_is_resolved_and_part_of_the_key(tiny_llama):
    theirs = f"{{scorer: bradley_terry, name: theirs, checkpoint: {{source: {tiny_llama}}}}}"
    recipe = load_recipe("quickstart", [f"annotate.ensemble={{scorers: [bradley_terry, {theirs}]}}"])
    (scorer,) = resolve(recipe).scorers.values()
    plan = build_plan(recipe, replace(_inputs(), scorers={"theirs": scorer}))
    annotate = plan.nodes["annotate[1]"]
    assert annotate.inputs["scorer/0"] == REWARD and annotate.inputs["scorer/1"] == scorer and scorer.path == str(tiny_llama)
    other = replace(scorer, fingerprint="0" * 64)
    assert build_plan(recipe, replace(_inputs(), scorers={"theirs": other})).nodes["annotate[1]"].key != annotate.key


def test_an_ensemble_names_its_members_and_their_inputs():
    plan = plan_of(TWO.replace("]}", "], combine: worst, max_disagreement: 0}"))
    annotate = plan.nodes["annotate[1]"]
    assert annotate.settings["combine"] == "worst" and annotate.inputs["scorer/0"] == REWARD
    model, rule = annotate.settings["members"]
    assert (model["name"], model["input"], rule["name"], rule["options"]) == (
        "bradley_terry",
        "scorer/0",
        "length_bounds",
        {"most": 900},
    )
    assert "input" not in rule and plan.nodes["pairs[1]"].settings["max_disagreement"] == 0
    assert "max_disagreement" not in plan_of(TWO).nodes["pairs[1]"].settings
    assert plan_of(TWO).nodes["annotate[1]"].key != plan.nodes["annotate[1]"].key != plan_of().nodes["annotate[1]"].key


def test_what_is_planned_runs_through_to_the_pairs(make_spec, store, tiny_llama, tmp_path):
    """The settings of the plan, as they are, in the stages' own programs: two policies, a model and a rule, a tuned penalty."""
    from tests.test_annotate import make_reward_model
    from train import annotate, generate, pairs

    plan = plan_of(
        "generate={engine: transformers, prompts_per_iteration: 8, arms: [{n: 2}, {n: 2, policy: initial}], max_tokens: 24, "
        "max_model_len: 256, threads: 1, shard_size: 3}",
        "annotate.ensemble={scorers: [bradley_terry, {scorer: length_bounds, name: short, options: {most: 60}}], combine: worst}",
        "pairs.length_penalty=auto",
    )
    texts = [f"Say something about the number {i}." for i in range(8)]
    prompts = [{"id": f"p{i}", "messages": [{"role": "user", "content": text}]} for i, text in enumerate(texts)]
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "prompts_pool.jsonl", prompts)
    paths = {"data": tmp_path / "data", "sft": tiny_llama, "reward": make_reward_model(tiny_llama, tmp_path / "reward")}
    for program, name in ((generate, "generate[1]"), (annotate, "annotate[1]"), (pairs, "pairs[1]")):
        node = plan.nodes[name]
        inputs = {key: paths[ref.stage] for key, ref in node.inputs.items()}
        stage = Stage(Spec.load(make_spec(name, node.settings, inputs, resources=node.resources)))
        stage.work = paths[name] = store / program.__name__
        stage.work.mkdir()
        metrics = program.run(stage)
    assert metrics["n_pairs"] + sum(metrics["dropped"].values()) == 8 and metrics["n_pairs"] > 0
    rows = read_rows(stage.work / "pairs.jsonl")
    assert all(set(row[side]["members"]) == {"bradley_terry", "short"} for row in rows for side in ("chosen", "rejected"))
    assert {row[side].get("policy") for row in rows for side in ("chosen", "rejected")} <= {None, "initial"}
    told = metrics["statistics"]
    assert told["chosen_from_current"] + told["chosen_from_initial"] == 1 and told["length_penalty"] >= 0


def test_the_right_answer_of_a_prompt_reaches_the_rules(tmp_path):
    messages = [{"role": "user", "content": "How many?"}]
    write_rows(tmp_path / "prompts.jsonl", [{"id": 1, "messages": messages, "answer": "#### 4"}])
    (raw,) = READERS["jsonl"]([tmp_path / "prompts.jsonl"])
    row = sound(
        {"id": 1, "messages": messages, "answer": "#### 4"}, Source("s", "prompts", "jsonl"), SimpleNamespace(settings={})
    )
    assert (row["id"], row["messages"], row["answer"]) == ("s/1", messages, "#### 4")


def test_an_annotation_judge_without_key_or_price_is_refused_beforehand(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    recipe = load_recipe("quickstart", [*JUDGE, "annotate.judge.api_key_env=SOME_KEY"])
    with pytest.raises(JudgeError, match="export SOME_KEY=.*annotate.judge.api_key_env"):
        check_recipe(recipe, _inputs())
    recipe = load_recipe("quickstart", [*JUDGE, "annotate.judge.max_usd=5"])
    with pytest.raises(JudgeError, match="needs a price"):
        check_recipe(recipe, _inputs())


def test_a_rule_needs_no_reward_model():
    plan = plan_of("reward=null", "annotate.scorer=format", "annotate.options={pattern: 'x$'}")
    assert "reward" not in plan.nodes and set(plan.nodes["annotate[1]"].inputs) == {"generations"}
    assert plan.nodes["annotate[1]"].settings["options"] == {"pattern": "x$"}


def test_a_judges_transport_is_no_part_of_what_it_says():
    plan = plan_of(*JUDGE)
    settings, resources = plan.nodes["annotate[1]"].settings, plan.nodes["annotate[1]"].resources["judge"]
    assert settings["judge"]["model"] == "some-model" and settings["judge"]["base_url"] == "http://127.0.0.1:1/v1"
    assert resources["endpoints"] and resources["concurrency"] == 16 and "concurrency" not in settings["judge"]
    assert keys(plan_of(*JUDGE, "annotate.judge.concurrency=2")) == keys(plan)
    other = keys(plan_of(*JUDGE, "annotate.judge.criteria=brevity"))
    assert other["annotate[1]"] != keys(plan)["annotate[1]"] and other["generate[1]"] == keys(plan)["generate[1]"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["annotate.scorer=judge"], "annotate.judge"),
        (["annotate.judge={model: m}"], "annotate.judge"),
        (["annotate.scorer=format"], "pattern"),
        (["annotate.options={most: 3}"], "takes no options"),
        ([TWO, "annotate.scorer=bradley_terry"], "leave scorer and options"),
        (["annotate.ensemble={scorers: [bradley_terry]}"], "at least 2"),
        (["annotate.ensemble={scorers: [{scorer: format, name: a, options: {pattern: a}}, {scorer: x, name: a}]}"], "one name"),
        (["annotate.scorer=shortness"], "numeric_answer"),
        (["reward=null"], "needs a reward section"),
        (["generate.arms=[{n: 1}]"], "a pair needs two"),
        (["generate.arms=[{n: 4, policy: last}]"], "previous"),
        (["generate.engine=transformers", "generate.tensor_parallel=2"], "tensor_parallel"),
    ],
)
def test_what_cannot_be_is_refused(overrides, said):
    with pytest.raises(RecipeError, match=said):
        plan_of(*overrides)
