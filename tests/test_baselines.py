"""Offline baselines: what they share with the online run, what they change, and the training on best answers."""

import pytest

from core.errors import RecipeError
from core.stage import Spec, Stage
from harness.baselines import derive
from harness.plan import Plan, build_plan
from harness.plan.baseline import add_best_of_n
from harness.recipe import BASELINES
from harness.recipe_file import load_recipe
from tests.test_plan import _inputs
from tests.training import RESOURCES, load_weights, make_pairs, training_settings
from train.best_of_n import chosen_rows, run
from train.spans import IGNORED


def plan(baseline: str | None = None, *overrides: str) -> Plan:
    recipe = load_recipe("quickstart", list(overrides))
    return build_plan(derive(recipe, baseline) if baseline else recipe, _inputs())


def shared(baseline: str, *overrides: str) -> set[str]:
    """Stages that are the same artifacts as the online run's."""
    online = {node.key for node in plan(None, *overrides).nodes.values()}
    return {name for name, node in plan(baseline, *overrides).nodes.items() if node.key in online}


def test_a_baseline_runs_only_what_it_changes():
    before = {"data", "sft", "heldout", "reward", "gold_reward"}
    before |= {f"{stage}[{label}]" for label in ("base", "sft") for stage in ("answer", "likelihood", "execute", "judge")}
    first = {"generate[1]", "annotate[1]", "pairs[1]"}
    trained = {"reference[1]", "heldout_reference[1]", "heldout_reference[2]", "dpo[1]"}
    trained |= {f"{stage}[iter-1]" for stage in ("answer", "likelihood", "execute", "judge")}
    assert shared("offline_dpo") == before | first | trained
    assert shared("raft") == shared("best_of_n_sft") == before | first


def test_the_answers_of_an_offline_baseline_are_all_the_first_policys():
    for baseline, policies in (
        ("offline_dpo", {"sft"}),
        ("best_of_n_sft", {"sft"}),
        ("raft", {"sft", "best_of_n[1]", "best_of_n[2]"}),
    ):
        made = plan(baseline, "iterations=3")
        assert {made.nodes[f"generate[{t}]"].inputs["policy"].stage for t in (1, 2, 3)} == policies
    online, offline = plan(), plan("offline_dpo")
    for t in (1, 2):  # the same prompts and seeds, the same amount of training, from the last iterate
        for stage in ("generate", "pairs", "dpo"):
            assert offline.nodes[f"{stage}[{t}]"].settings == online.nodes[f"{stage}[{t}]"].settings
    assert offline.nodes["dpo[2]"].inputs["policy"].stage == "dpo[1]"


def test_arms_of_an_offline_baseline_name_the_first_policy_too():
    arms = "generate.arms=[{n: 2}, {n: 2, policy: previous}]"
    node = plan("offline_dpo", "iterations=3", arms).nodes["generate[3]"]
    assert {ref.stage for name, ref in node.inputs.items() if name != "data"} == {"sft"}


def test_training_on_best_answers_is_as_long_as_the_dpo_it_stands_for():
    online, raft = plan(), plan("raft")
    dpo, best = online.nodes["dpo[2]"], raft.nodes["best_of_n[2]"]
    for key in ("epochs", "max_steps", "batch_size", "max_length", "seed"):
        assert best.settings[key] == dpo.settings[key]
    assert best.resources == dpo.resources
    assert best.settings["learning_rate"] == online.nodes["sft"].settings["learning_rate"]
    assert {name: ref.stage for name, ref in best.inputs.items()} == {"policy": "best_of_n[1]", "pairs": "pairs[2]"}
    assert raft.policies["iter-2"].stage == "best_of_n[2]"


def test_a_baseline_has_a_name_and_a_mark_of_its_own():
    recipe = load_recipe("quickstart")
    for name in BASELINES:
        assert (derive(recipe, name).name, derive(recipe, name).baseline) == (f"quickstart-{name}", name)
        assert load_recipe("quickstart", [f"baseline={name}"]).baseline == name
    with pytest.raises(RecipeError, match="did you mean offline_dpo"):
        derive(recipe, "offline-dpo")
    with pytest.raises(RecipeError, match="already"):
        derive(derive(recipe, "raft"), "offline_dpo")
    on_policy = load_recipe("quickstart", ["dpo.loss=rebel", "reference.policy=previous"])
    with pytest.raises(RecipeError, match="the current policy's answers"):
        derive(on_policy, "offline_dpo")
    assert derive(on_policy, "raft").baseline == "raft"


# --- SFT on the chosen answers ---


def pair(prompt: list[int], answer: list[int], name: str = "p", sample: int = 0) -> dict:
    return {"prompt_id": name, "prompt_token_ids": prompt, "chosen": {"token_ids": answer, "sample": sample}}


def test_only_the_answers_tokens_are_learned_each_answer_once():
    rows = [pair([1, 2], [3, 4, 5]), pair([1, 2], [3, 4, 5]), pair([1, 2], [6], sample=1), pair([1, 2, 3, 4], [5], "long")]
    examples, counts = chosen_rows(rows, 4)
    assert examples[0] == {"input_ids": [1, 2, 3, 4], "labels": [IGNORED, IGNORED, 3, 4], "length": 4}
    assert examples[1] == {"input_ids": [1, 2, 6], "labels": [IGNORED, IGNORED, 6], "length": 3}
    assert counts == {"truncated": 1, "dropped": 1, "repeated": 1} and len(examples) == 2


def test_the_stage_makes_chosen_answers_likelier(tiny_llama, make_spec, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    from core.artifacts import read_rows

    pairs = make_pairs(tiny_llama, tmp_path / "pairs", 8)
    settings = training_settings(packing=False, epochs=3)
    fields = {"iteration": 1, "resources": RESOURCES, "events": str(tmp_path / "events.ndjson")}
    stage = Stage(Spec.load(make_spec("best_of_n", settings, {"policy": tiny_llama, "pairs": pairs}, **fields)))
    stage.work.mkdir(parents=True)
    metrics = run(stage)
    rows = read_rows(pairs / "pairs.jsonl")
    assert metrics["examples"] == 8 and metrics["steps"] == 6
    assert metrics["learned_tokens"] == sum(len(row["chosen"]["token_ids"]) for row in rows)
    assert load_weights(stage.work / "checkpoint").keys() == load_weights(tiny_llama).keys()
    examples, _ = chosen_rows(rows, 128)

    def loss(folder) -> float:
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            losses = [model(torch.tensor([e["input_ids"]]), labels=torch.tensor([e["labels"]])).loss.item() for e in examples]
        return sum(losses) / len(losses)

    assert loss(stage.work / "checkpoint") < loss(tiny_llama) - 0.1


@pytest.mark.slow
def test_a_finished_baseline_is_an_iteration_and_a_line_beside_the_online_run(tiny_llama, registry, tmp_path, monkeypatch):
    from core.fingerprint import checkpoint_fingerprint
    from db.lineage import baselines
    from db.models import Checkpoint
    from harness import record
    from harness.console import Reporter
    from harness.plan import Ref
    from harness.runner import Runner
    from tests.conftest import fingerprint_of

    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    recipe = derive(
        load_recipe("quickstart", ["iterations=1", "sft.precision=fp32", "sft.enabled=false", "dpo.epochs=3"]), "raft"
    )
    pairs = make_pairs(tiny_llama, tmp_path / "pairs", 8)
    first = Ref(path=str(tiny_llama), fingerprint=checkpoint_fingerprint(tiny_llama))
    made = Plan(recipe.name, recipe.evaluate, recipe.seed, _inputs())
    made.policies |= {"base": first, "iter-0": first}
    add_best_of_n(made, recipe, 1, first, Ref(path=str(pairs), fingerprint=fingerprint_of(pairs)))
    for name, marked in (("online", None), (recipe.name, recipe.model_dump(mode="json"))):
        run_id = record.start_run(registry, name, name, marked or {"name": name})
        runner = Runner(name, run_id, registry, Reporter(), recipe.seed, recipe.hash)
        runner.register_given(made)
    reporter = runner.reporter
    reporter.plan(made)
    node = made.nodes["best_of_n[1]"]
    artifact = runner.ensure(made, node)
    assert artifact.metrics["examples"] == 8 and runner.ensure(made, node).path == artifact.path
    with registry.read() as session:
        (line,) = baselines(session, "online")
        row = session.get_one(Checkpoint, line.checkpoint_id)
        assert (line.label, line.run) == ("raft", "quickstart-raft")
        assert (row.name, row.kind, row.parent.fingerprint) == ("quickstart-raft/iter-1", "iteration", first.fingerprint)
