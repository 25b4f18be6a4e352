"""Mixtures: the files, the draws, `harness data build`, and that a recipe and a mixture are one thing."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from core.artifacts import read_rows, write_rows
from core.errors import MissingInput, RecipeError, RunInUse
from core.stage import Spec, Stage
from harness.catalogue import load_catalogue
from harness.cli import app
from harness.console import Reporter
from harness.data_build import build_data, plan_data
from harness.lock import run_lock
from harness.mixture_file import load_mixture, shipped_mixtures
from harness.plan import build_plan
from harness.recipe import Data
from harness.recipe_file import load_recipe
from harness.resolve import resolve, resolve_questions, resolve_sources, resolve_tokenizer
from train.data import run
from train.mixing import at_most_per_prompt, in_seeded_order, repeated, weighted


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HARNESS_HOME and no mirror."""
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    return tmp_path / "home"


def mixture(path: Path, **fields) -> str:
    path.write_text(yaml.safe_dump(fields))
    return str(path)


def row(name: str, source: str, prompt: str) -> dict:
    said = [{"role": "user", "content": prompt}]
    return {"id": name, "source": source} | {
        side: [*said, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")
    }


def test_shipped_mixtures_use_sets_that_exist_as_what_they_are() -> None:
    from harness.resolve import _USABLE

    known = load_catalogue()
    assert {"starter", "public", "rlhflow-mix1", "rlhflow-mix2", "published-scores"} <= set(shipped_mixtures())
    for name in shipped_mixtures():
        loaded = load_mixture(name)
        assert loaded.description and loaded.benchmarks == "all"
        for source in loaded.sources:
            assert source.use in _USABLE[known[source.name].kind], (name, source.name)


def test_the_ten_sets_of_table_5_are_there_by_their_hub_ids() -> None:
    known = load_catalogue()
    ids = [known[s.name].hub.id for s in load_mixture("rlhflow-mix2").sources if s.use == "preferences"]
    assert len(set(ids)) == 10 and all(identity.startswith("RLHFlow/") and identity.endswith("-standard") for identity in ids)


def test_a_recipe_that_names_a_mixture_is_the_recipe_that_lists_its_sources(home: Path) -> None:
    plain = load_recipe("quickstart", ["data={mixture: starter, benchmarks: []}"])
    listed = load_recipe("quickstart")
    assert plain.data.model_copy(update={"mixture": None}) == listed.data
    inputs = resolve(listed)
    assert build_plan(plain, inputs).nodes["data"].key == build_plan(listed, inputs).nodes["data"].key
    changed = load_recipe("quickstart", ["data={mixture: starter, heldout_pairs: 9}"])
    assert changed.data.heldout_pairs == 9 and changed.data.gold_fraction == 0.5, "a key that is given stands"


def test_the_data_of_a_recipe_are_built_under_the_key_that_its_run_looks_for(home: Path) -> None:
    recipe = load_recipe("quickstart", ["data.heldout_pairs=12"])
    run = build_plan(recipe, resolve(recipe)).nodes["data"]
    assert plan_data("quickstart", ["data.heldout_pairs=12"]).node.key == run.key
    assert plan_data("quickstart").node.key != run.key


def test_keys_at_their_defaults_are_no_part_of_the_identity(home: Path) -> None:
    node = plan_data("quickstart").node
    assert set(node.settings) == {"sources", "splits", "seed", "decontaminate"}
    assert all(set(source) == {"name", "reader", "use", "limit", "files"} for source in node.settings["sources"])
    given = "data.sources.0={name: starter_preferences, use: preferences, weight: 2, repeat: 3, filters: {min_characters: 5}}"
    changed = plan_data("quickstart", [given, "data.near_duplicates=0.9", "data.seed=1"]).node
    assert (
        changed.settings["sources"][0] | {"weight": 2, "repeat": 3, "filters": {"min_characters": 5}}
        == changed.settings["sources"][0]
    )
    assert changed.settings["near_duplicates"] == 0.9 and changed.settings["seed"] == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "data needs sources"),
        ({"sources": [{"name": "a.jsonl", "use": "prompts", "repeat": 2}]}, "prompts are not repeated"),
        ({"sources": [{"name": "a.jsonl", "use": "sft", "filters": {"min_margin": 1}}]}, "min_margin is for preferences"),
        (
            {"sources": [{"name": "a.jsonl", "use": "sft", "weight": 1}, {"name": "b.jsonl", "use": "sft"}]},
            "b.jsonl has no weight",
        ),
        (
            {"sources": [{"name": "a.jsonl", "use": "prompts"}], "heldout_prompts": 0},
            "heldout_prompts: .*greater than or equal to 1",
        ),
        ({"sources": [{"name": "a.jsonl", "use": "prompts", "filter": {}}]}, r"sources.0.filter: Extra inputs"),
    ],
)
def test_faults_of_a_mixture_are_named(home: Path, tmp_path: Path, fields: dict, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_mixture(mixture(tmp_path / "mine.yaml", **fields))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.sources.1.use=sft"], "starter_prompts|no source of prompts"),
        (["data.sources.0.use=prompts"], "no preferences to train a reward model on"),
        (["data.sources.0.use=sft"], "no preferences to train a reward model on"),
        (["data.sources.0.weight=-1"], "data.sources.0.weight"),
        (
            ["data.sources.0.filters={min_chars: 1}"],
            "unknown key 'data.sources.0.filters.min_chars'; did you mean 'min_characters'",
        ),
        (["data={mixture: starters}"], "No mixture 'starters' .did you mean starter"),
    ],
)
def test_data_that_do_not_fit_the_run_are_refused_with_the_recipe(home: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("quickstart", overrides)


def test_what_is_no_mixture_is_said_in_a_sentence(home: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean public"):
        plan_data("publik")
    with pytest.raises(RecipeError, match="did you mean quickstart"):
        plan_data("quikstart")
    with pytest.raises(RecipeError, match="did you mean public"):
        load_mixture("publik")
    with pytest.raises(RecipeError, match="not a mixture"):
        load_mixture(str(_text(tmp_path / "list.yaml", "- a\n")))
    with pytest.raises(RecipeError, match="not valid YAML"):
        plan_data(str(_text(tmp_path / "bad.yaml", "a: [")))
    with pytest.raises(RecipeError, match="--set is for recipes"):
        plan_data("starter", ["seed=1"])


def _text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_sets_that_are_not_here_are_named_at_once(home: Path) -> None:
    with pytest.raises(
        MissingInput, match="12 data sets .*harness data fetch hh_rlhf_helpful_standard shp_standard .*sft_openhermes"
    ):
        plan_data("rlhflow-mix2")


@pytest.mark.parametrize(("name", "use"), [("starter_prompts", "preferences"), ("starter_prompts", "sft"), ("gsm8k", "prompts")])
def test_a_set_is_not_used_as_what_it_is_not(home: Path, name: str, use: str) -> None:
    with pytest.raises(RecipeError, match=f"cannot be used as {use}"):
        resolve_sources(Data(sources=[{"name": name, "use": use}]).sources)


def test_a_split_takes_the_files_of_that_name(home: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [])
    source = {"name": str(tmp_path / "train.jsonl"), "use": "prompts"}
    assert len(resolve_sources(Data(sources=[source | {"split": "train"}]).sources)[0][1]) == 1
    with pytest.raises(RecipeError, match="begins with 'test'"):
        resolve_sources(Data(sources=[source | {"split": "test"}]).sources)


def test_all_benchmarks_on_this_machine_are_compared_with(data: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [{"name": "starter_prompts", "use": "prompts"}]
    assert resolve_questions(Data(sources=sources, benchmarks="all")) == {}, "none is here"
    monkeypatch.setenv("HARNESS_DATA", str(data))
    found = resolve_questions(Data(sources=sources, benchmarks="all"))
    assert {
        "alpaca_eval",
        "arena_hard",
        "mt_bench",
        "human_eval",
        "mbpp",
        "truthful_qa",
        "gsm8k",
        "mmlu",
        "arc_challenge",
    } <= set(found)
    assert len({ref.fingerprint for ref in found.values()}) == len(found), "a file that two benchmarks share counts once"
    assert set(resolve_questions(Data(sources=sources, benchmarks=["gsm8k"]))) == {"gsm8k"}
    assert resolve_questions(Data(sources=sources, benchmarks="all", decontaminate=False)) == {}
    with pytest.raises(RecipeError, match="nonsense"):
        resolve_questions(Data(sources=sources, benchmarks=["nonsense"]))


def test_tokens_are_counted_by_the_tokenizer_that_is_named(home: Path, tmp_path: Path, tiny_llama: Path) -> None:
    """ "lighthouse" is many tokens of a tiny vocabulary but ten characters: the filter drops it by tokens only."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    texts = ["lighthouse " * 30 + str(i) for i in range(3)] + [f"Why {i}?" for i in range(40)]
    counts = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    write_rows(tmp_path / "mine.jsonl", [{"messages": [{"role": "user", "content": text}]} for text in texts])
    most = min(counts[:3]) - 1
    assert most > len(texts[0]) / 4, "characters / 4 would have kept it"
    source = {"name": str(tmp_path / "mine.jsonl"), "use": "prompts", "filters": {"max_tokens": most}}
    name = mixture(tmp_path / "mine.yaml", sources=[source], tokenizer=str(tiny_llama), benchmarks=[])
    planned = plan_data(name)
    inputs = {name: {"path": ref.path, "fingerprint": ref.fingerprint} for name, ref in planned.node.inputs.items()}
    stage = Stage(Spec("data", 2, "by-tokens", planned.node.settings, inputs, str(tmp_path / "store")))
    stage.work.mkdir(parents=True)
    run(stage)  # in this process: transformers is imported here already
    card = json.loads((stage.work / "card.json").read_text())
    assert card["sources"]["mine"]["dropped"] == {"too_many_tokens": 3}
    assert planned.node.inputs["tokenizer"].fingerprint[:12] in card["statistics_in"]
    with pytest.raises(MissingInput, match="no tokenizer"):
        resolve_tokenizer(str(tmp_path))
    with pytest.raises(RecipeError, match="no base model"):
        plan_data(mixture(tmp_path / "base.yaml", sources=[source], tokenizer="base"))


def test_data_are_built_once_and_copied_for_others(home: Path, tmp_path: Path) -> None:
    first = CliRunner().invoke(app, ["data", "build", "starter", "--json"])
    built = [json.loads(line) for line in first.stdout.splitlines()][-1]
    assert first.exit_code == 0 and built["event"] == "built" and not built["reused"]
    again = CliRunner().invoke(app, ["data", "build", "starter", "--to", str(tmp_path / "copy")])
    assert again.exit_code == 0 and "kept" in again.stdout and built["artifact"] in again.stdout.replace("\n", "")
    page = (tmp_path / "copy" / "README.md").read_text()
    head = yaml.safe_load(page.split("---")[1])
    assert {config["config_name"] for config in head["configs"]} == {Path(name).stem for name in built["card"]["files"]}
    for name, told in built["card"]["files"].items():
        assert len(read_rows(tmp_path / "copy" / name)) == told["rows"]
    assert "The data that ship with the harness" in page and "starter\\_prompts" in page
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("Mine.")
    refused = CliRunner().invoke(app, ["data", "build", "starter", "--to", str(tmp_path / "full")])
    assert isinstance(refused.exception, RecipeError) and "holds no data of ours" in str(refused.exception)
    listed = CliRunner().invoke(app, ["data", "mixtures", "--json"])
    assert "starter" in [one["name"] for one in json.loads(listed.stdout)]
    planned = plan_data("starter")
    with run_lock(home / "data_builds" / planned.node.key, "starter"), pytest.raises(RunInUse, match="building starter"):
        build_data(planned, Reporter())


def test_a_dry_run_builds_nothing(home: Path) -> None:
    said = CliRunner().invoke(app, ["data", "build", "quickstart", "--dry-run", "--json"])
    assert json.loads(said.stdout)["state"] == "to do" and not (home / "artifacts").exists()


def test_a_mixture_of_ones_own_is_found_by_name(home: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "mine.jsonl", [{"messages": [{"role": "user", "content": f"What is {i}?"}]} for i in range(30)])
    (home / "mixtures").mkdir(parents=True)
    sources = [{"name": str(tmp_path / "mine.jsonl"), "use": "prompts"}]
    mixture(home / "mixtures" / "mine.yaml", sources=sources, heldout_prompts=5, description="Mine.")
    artifact, _ = build_data(plan_data("mine"), Reporter())
    assert artifact.metrics["prompts_pool"] == 25 and artifact.metrics["prompts_heldout"] == 5


def test_a_draw_depends_on_seed_and_ids_alone() -> None:
    rows = [row(f"s/{i}", "s", f"p{i}") for i in range(50)]
    ids = [one["id"] for one in in_seeded_order(rows, 1, "x")]
    assert (
        ids == [one["id"] for one in in_seeded_order(rows[::-1], 1, "x")] != [one["id"] for one in in_seeded_order(rows, 2, "x")]
    )
    fewer = [one["id"] for one in in_seeded_order(rows[:25], 1, "x")]
    assert fewer == [i for i in ids if i in set(fewer)], "the order of two rows does not depend on the rest"


def test_pairs_of_one_prompt_are_capped_whatever_its_spelling() -> None:
    rows = [row(f"s/{i}", "s", ("Why, then?", "why then")[i % 2]) for i in range(8)] + [row("s/x", "s", "Who?")]
    kept = at_most_per_prompt(rows, 3, 0)
    assert len(kept) == 4 and kept[-1]["id"] == "s/x"


@pytest.mark.parametrize(
    ("weights", "repeats", "expected"),
    [
        ({"a": 1, "b": 1}, {}, (10, 10)),
        ({"a": 1, "b": 3}, {}, (10, 30)),
        ({"a": 1, "b": 4}, {"a": 2}, (5, 40)),
        ({"a": 0.5, "b": 0.1}, {}, (10, 2)),
    ],
)
def test_shares_are_those_of_the_weights(weights: dict, repeats: dict, expected: tuple[int, int]) -> None:
    rows = [row(f"a/{i}", "a", f"a{i}") for i in range(10)] + [row(f"b/{i}", "b", f"b{i}") for i in range(40)]
    drawn = weighted(rows, weights, repeats, 0)
    assert tuple(sum(one["source"] == name for one in drawn) for name in "ab") == expected
    written = repeated(drawn, repeats, 0)
    counts = [sum(one["source"] == name for one in written) for name in "ab"]
    assert counts[1] / counts[0] == pytest.approx(weights["b"] / weights["a"], rel=0.01)
    with pytest.raises(RecipeError, match="'a' has a weight but no rows"):
        weighted(rows[10:], weights, repeats, 0)
