"""The data stage: filters, duplicates, weights, contamination, splits, card."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.artifacts import read_rows, write_rows
from core.errors import RecipeError
from core.fingerprint import file_sha256
from core.stage import Spec, Stage
from train.contamination import QuestionIndex, question_texts
from train.data import run
from train.filters import structural_fault
from train.readers import READERS, read_objects
from train.splits import remove_like_held_out, split, verify

SPLITS = {"gold_fraction": 0.3, "heldout_pairs": 40, "heldout_prompts": 20, "sft_from": "chosen"}
FILES = ["sft", "reward_train", "gold_train", "pairs_heldout", "prompts_pool", "prompts_heldout"]


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]


def starter_settings(**changes) -> dict:
    sources = [
        {"name": "pairs", "reader": "starter_preferences", "use": "preferences", "files": ["preferences"], "limit": None},
        {"name": "prompts", "reader": "starter_prompts", "use": "prompts", "files": ["prompts"], "limit": None},
    ]
    return {"sources": sources, "splits": SPLITS, "seed": 7} | changes


@pytest.fixture
def starter_data(run_stage, starter):
    inputs = {"preferences": starter / "preferences.jsonl", "prompts": starter / "prompts.jsonl"}
    inputs["questions/alpaca_eval"] = starter / "alpaca_eval.jsonl"
    return run_stage("train.data", "data", starter_settings(), inputs)


def test_starter_splits_share_no_prompt_and_lose_no_row(starter_data):
    rows = {name: read_rows(starter_data.file(f"{name}.jsonl")) for name in FILES}
    card = json.loads(starter_data.file("card.json").read_text())
    prompts = {}
    for name in FILES[1:]:
        prompts[name] = {json.dumps(row["messages"] if "messages" in row else row["chosen"][:-1]) for row in rows[name]}
    for i, one in enumerate(FILES[1:]):
        for other in FILES[i + 2 :]:
            assert not prompts[one] & prompts[other], (one, other)
    for name, uses in (("pairs", FILES[1:4]), ("prompts", FILES[4:])):
        source = card["sources"][name]
        assert source["read"] == source["kept"] + sum(source["dropped"].values())
        assert source["kept"] == sum(len(rows[use]) for use in uses)
    assert len(rows["pairs_heldout"]) >= 40 and len(rows["prompts_heldout"]) == 20
    assert [row["messages"] for row in rows["sft"]] == [row["chosen"] for row in rows["reward_train"]]
    assert not any("group" in row for name in FILES for row in rows[name])
    assert all(card["files"][f"{name}.jsonl"]["sha256"] == file_sha256(starter_data.file(f"{name}.jsonl")) for name in FILES)
    assert starter_data.metrics["prompts_pool"] == len(rows["prompts_pool"])


def test_same_seed_same_bytes_other_seed_other_order(make_spec, starter):
    inputs = {"preferences": starter / "preferences.jsonl", "prompts": starter / "prompts.jsonl"}
    pools = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        stage = Stage(Spec.load(make_spec(f"data-{name}", starter_settings(seed=seed), inputs)))
        stage.work.mkdir()
        run(stage)
        pools.append([row["id"] for row in read_rows(stage.work / "prompts_pool.jsonl")])
    assert pools[0] == pools[1] != pools[2]
    in_file = [f"prompts/{row['id']}" for row in read_rows(starter / "prompts.jsonl")]
    assert [i for i in in_file if i in set(pools[0])] != pools[0], "a slice of the pool must not be a slice of the file"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": turns("Hi")}, None),
        ({"messages": [{"role": "system", "content": "Be brief."}, *turns("Hi")]}, None),
        ({"messages": []}, "no_messages"),
        ({"messages": turns("  ")}, "empty_content"),
        ({"messages": turns("Hi", "Hello")}, "roles_not_alternating"),
        ({"messages": [*turns("Hi"), *turns("Again")]}, "roles_not_alternating"),
        ({"messages": [{"role": "system", "content": "Alone."}]}, "roles_not_alternating"),
        ({"messages": turns("x" * 101)}, "too_long"),
        ({"chosen": turns("Hi", "a"), "rejected": turns("Hi", "b")}, None),
        ({"chosen": turns("Hi", "a b"), "rejected": turns("Hi", "a  b\n")}, "chosen_equals_rejected"),
        ({"chosen": turns("Hi", "a"), "rejected": turns("Ho", "b")}, "different_context"),
        ({"chosen": turns("Hi"), "rejected": turns("Hi")}, "roles_not_alternating"),
    ],
)
def test_structural_rules(row, fault):
    assert structural_fault(row, 100) == fault


QUESTION = "Name the three largest islands of the Mediterranean Sea and say for each of them which country it belongs to today"


def test_contaminated_rows_are_removed_and_named(make_spec, tmp_path):
    write_rows(tmp_path / "questions.jsonl", [{"instruction": QUESTION}])
    pairs = [
        {"id": i, "chosen": turns(f"Question number {i}?", "yes"), "rejected": turns(f"Question number {i}?", "no")}
        for i in range(8)
    ]
    prompts = [{"id": i, "messages": turns(f"Tell me about topic {i}")} for i in range(6)] + [
        {"id": "x", "messages": turns(QUESTION)}
    ]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    write_rows(tmp_path / "prompts.jsonl", prompts)
    inputs = {
        "pairs": tmp_path / "pairs.jsonl",
        "prompts": tmp_path / "prompts.jsonl",
        "questions/alpaca_eval": tmp_path / "questions.jsonl",
    }
    sources = [
        {"name": n, "reader": "jsonl", "use": u, "files": [n], "limit": None}
        for n, u in (("pairs", "preferences"), ("prompts", "prompts"))
    ]
    splits = {"gold_fraction": 0.5, "heldout_pairs": 2, "heldout_prompts": 2, "sft_from": "chosen"}
    for remove in (True, "report"):
        settings = {"sources": sources, "splits": splits, "seed": 0, "decontaminate": remove}
        stage = Stage(Spec.load(make_spec(f"data-{remove}", settings, inputs)))
        stage.work.mkdir()
        metrics = run(stage)
        card = json.loads((stage.work / "card.json").read_text())
        told = card["contamination"]["benchmarks"]["alpaca_eval"]
        assert [hit["id"] for hit in told["hits"]] == ["prompts/x"] and told["by_source"]["prompts"]["flagged"]
        assert told["by_source"]["pairs"] == {"rows": 0, "questions": 0, "share": 0.0, "flagged": False}
        assert metrics["dropped"] == ({"contaminated": 1} if remove is True else {})
        assert metrics["prompts_pool"] + metrics["prompts_heldout"] == 7 - (remove is True)
        assert ("removed" if remove is True else "**kept**") in (stage.work / "README.md").read_text()


def test_training_on_alpaca_eval_pairs_is_caught(data):
    """Each of AlpacaEval's prompts is found by the 8-gram rule, the short ones by equality."""
    index = QuestionIndex(question_texts(data / "alpaca_eval/eval_set_and_baseline_outputs.jsonl.gz"))
    prompts = read_objects(data / "preferences/alpaca_eval/prompts.jsonl.gz")
    caught = sum(bool(index.hits(turns(row["instruction"]))) for row in prompts)
    assert caught == len(prompts) == 805
    seeds = READERS["self_instruct_seed"]([data / "prompts/self_instruct_seed_tasks.jsonl.gz"])
    assert sum(bool(index.hits(row["messages"])) for row in seeds) < 5


def preference(name: str, group: int, source: str = "s") -> dict:
    return {"id": name, "source": source, "chosen": turns(name, "a"), "rejected": turns(name, "b"), "group": group}


@given(st.lists(st.integers(0, 12), min_size=12, max_size=40), st.integers(0, 99), st.sampled_from([0.0, 0.3, 0.5]))
def test_a_prompt_is_never_in_two_splits(groups, seed, gold):
    rows = [preference(f"r{i}", group) for i, group in enumerate(groups)]
    prompts = [{"id": f"p{i}", "source": "s", "messages": turns(str(i)), "group": 100 + i} for i in range(5)]
    try:
        files = split(rows, prompts, {"gold_fraction": gold, "heldout_pairs": 3, "heldout_prompts": 2}, seed)
    except RecipeError:
        assert len(set(groups)) <= 6
        return
    group_of = {row["id"]: row["group"] for row in rows}
    names = ["reward_train.jsonl", "gold_train.jsonl", "pairs_heldout.jsonl"]
    inside = [{group_of[row["id"]] for row in files[name]} for name in names]
    assert not (inside[0] & inside[1] or inside[0] & inside[2] or inside[1] & inside[2])
    assert sum(len(files[name]) for name in names) == len(rows)


def test_too_little_data_says_what_to_lower():
    rows = [preference(f"r{i}", i) for i in range(4)]
    prompts = [{"id": "p", "source": "s", "messages": turns("x"), "group": 9}]
    with pytest.raises(RecipeError, match="heldout_pairs 4"):
        split(rows, prompts, {"gold_fraction": 0.0, "heldout_pairs": 4, "heldout_prompts": 0}, 0)
    with pytest.raises(RecipeError, match="heldout_prompts 1"):
        split(rows, prompts, {"gold_fraction": 0.0, "heldout_pairs": 1, "heldout_prompts": 1}, 0)
    with pytest.raises(RecipeError, match="sft_from"):
        split(rows, prompts, {"gold_fraction": 0.0, "heldout_pairs": 1, "heldout_prompts": 0, "sft_from": "rejected"}, 0)


@pytest.mark.slow
def test_a_mixture_of_all_public_sources(data, run_stage):
    """Every source at once, AlpacaEval's own pairs among them: those are removed, and the card says so."""
    files = {
        "hh": "preferences/hh_rlhf_harmless_test.jsonl.gz",
        "tulu": "preferences/eval_annotations_tulu_1.jsonl.gz",
        "oasst": "preferences/oasst_en_100_tree.jsonl.gz",
        "demo": "preferences/dpo_en_demo.json.gz",
        "ae-prompts": "preferences/alpaca_eval/prompts.jsonl.gz",
        "ae-outputs": "preferences/alpaca_eval/outputs.jsonl.gz",
        "ae-annotations": "preferences/alpaca_eval/annotations.jsonl.gz",
        "alpaca": "prompts/alpaca_en_demo.json.gz",
        "code": "prompts/codealpaca_2k.json.gz",
        "user": "prompts/self_instruct_user_oriented_instructions.jsonl.gz",
        "questions/alpaca_eval": "alpaca_eval/eval_set_and_baseline_outputs.jsonl.gz",
        "questions/mt_bench": "mt_bench/question.jsonl",
    }
    readers = {"hh": "hh_rlhf", "tulu": "tulu_human_pairs", "oasst": "oasst_tree", "demo": "dpo_en_demo"}
    sources = [{"name": n, "reader": r, "use": "preferences", "files": [n], "limit": None} for n, r in readers.items()]
    ours = {"name": "ae", "reader": "alpaca_eval_pairs", "use": "preferences", "limit": 300}
    sources.append(ours | {"files": ["ae-prompts", "ae-outputs", "ae-annotations"]})
    prompts = {"alpaca": "alpaca", "code": "code_alpaca", "user": "self_instruct_user"}
    sources += [{"name": n, "reader": r, "use": "prompts", "files": [n], "limit": None} for n, r in prompts.items()]
    settings = {"sources": sources, "splits": SPLITS | {"heldout_pairs": 200, "heldout_prompts": 100}, "seed": 1}
    artifact = run_stage("train.data", "data", settings, {name: data / path for name, path in files.items()})
    card = json.loads(artifact.file("card.json").read_text())
    assert all(s["read"] == s["kept"] + sum(s["dropped"].values()) for s in card["sources"].values())
    assert card["sources"]["ae"]["contaminates"] == "alpaca_eval"
    assert card["sources"]["ae"]["kept"] == 0 and card["sources"]["ae"]["dropped"]["contaminated"] == 300
    assert card["contamination"]["benchmarks"]["alpaca_eval"]["by_source"]["ae"]["flagged"]
    # AlpacaEval took over the 252 user-oriented self-instruct tasks, on which Tulu 1's human pairs were made too.
    assert card["sources"]["user"]["dropped"]["contaminated"] > 240
    assert card["sources"]["tulu"]["dropped"]["contaminated"] > 500
    assert card["contamination"]["benchmarks"]["alpaca_eval"]["by_source"]["alpaca"]["questions"] < 10


def build(make_spec, tmp_path, rows: dict[str, tuple[str, list[dict]]], name: str = "made", **changes):
    """The finished stage of sources given as {name: (use, rows)}; `sources` in `changes` adds keys to them by name."""
    extra = changes.pop("sources", {})
    sources, inputs = [], {}
    for source, (use, content) in rows.items():
        write_rows(tmp_path / f"{source}.jsonl", content)
        inputs[source] = tmp_path / f"{source}.jsonl"
        sources.append({"name": source, "reader": "jsonl", "use": use, "files": [source], "limit": None} | extra.get(source, {}))
    splits = {"gold_fraction": 0.0, "heldout_pairs": 2, "heldout_prompts": 2, "sft_from": "chosen"}
    inputs |= changes.pop("inputs", {})
    settings = {"sources": sources, "splits": splits | changes.pop("splits", {}), "seed": 0} | changes
    stage = Stage(Spec.load(make_spec(f"data-{name}", settings, inputs)))
    stage.work.mkdir()
    stage.metrics = run(stage)
    stage.card = json.loads((stage.work / "card.json").read_text())
    return stage


def rows_of(stage, name: str) -> list[dict]:
    return read_rows(stage.work / f"{name}.jsonl")


def pairs(count: int, prefix: str = "q", **fields) -> list[dict]:
    return [
        {"id": f"{prefix}{i}", "chosen": turns(f"{prefix} number {i}?", "yes"), "rejected": turns(f"{prefix} number {i}?", "no")}
        | {key: value(i) for key, value in fields.items()}
        for i in range(count)
    ]


def test_thresholds_drop_and_count(make_spec, tmp_path):
    made = pairs(8, chosen_score=lambda i: float(i), rejected_score=lambda i: 1.0) + pairs(1, "unscored")
    long = "word " * 50
    made += [{"id": "long", "chosen": turns("Say much", long), "rejected": turns("Say much", "no")}]
    made[7]["chosen"] = [{"role": "system", "content": "Be brief."}, *made[7]["chosen"]]
    made[7]["rejected"] = [made[7]["chosen"][0], *made[7]["rejected"]]
    filters = {"min_margin": 1.0, "max_tokens": 40, "system_prompts": "drop"}
    made[9] |= {"chosen_score": 9.0, "rejected_score": 0.0}
    stage = build(make_spec, tmp_path, {"s": ("preferences", made)}, sources={"s": {"filters": filters}})
    dropped = stage.card["sources"]["s"]["dropped"]
    assert dropped == {"has_system_prompt": 1, "no_score": 1, "too_many_tokens": 1, "score_margin": 2}
    kept = {row["id"] for name in ("reward_train", "pairs_heldout") for row in rows_of(stage, name)}
    assert kept == {f"s/q{i}" for i in (2, 3, 4, 5, 6)}
    assert stage.card["sources"]["s"]["filters"] == filters


def test_ratio_and_pairs_per_prompt_as_in_the_paper(make_spec, tmp_path):
    """SHP: vote ratio above 2, at most 5 pairs of a prompt."""
    made = [
        {"id": f"p{p}-{i}", "chosen": turns(f"Post {p}?", f"a{i}"), "rejected": turns(f"Post {p}?", f"b{i}")}
        | {"chosen_score": 5 if i else 4, "rejected_score": 2}
        for p in range(6)
        for i in range(9)
    ]
    filters = {"min_ratio": 2.0, "max_pairs_per_prompt": 5}
    stage = build(make_spec, tmp_path, {"s": ("preferences", made)}, sources={"s": {"filters": filters}})
    assert stage.card["sources"]["s"]["dropped"] == {"score_ratio": 6, "pairs_per_prompt": 18}
    assert stage.card["sources"]["s"]["kept"] == 30 and stage.card["files"]["pairs_heldout.jsonl"]["prompts"] == 1


def test_weights_give_shares_and_repeats_upsample(make_spec, tmp_path):
    given = {"a": ("preferences", pairs(30, "a")), "b": ("preferences", pairs(30, "b"))}
    extra = {"a": {"weight": 1.0}, "b": {"weight": 3.0}}
    stage = build(make_spec, tmp_path, given, sources=extra)
    assert {name: source["kept"] for name, source in stage.card["sources"].items()} == {"a": 10, "b": 30}
    assert stage.card["sources"]["a"]["dropped"] == {"over_weight": 20}
    extra["b"]["repeat"] = 2
    stage = build(make_spec, tmp_path, given, "repeated", sources=extra)
    assert {name: source["kept"] for name, source in stage.card["sources"].items()} == {"a": 20, "b": 30}
    trained, heldout = rows_of(stage, "reward_train"), rows_of(stage, "pairs_heldout")
    own = sum(row["source"] == "b" for row in heldout)
    assert sum(row["source"] == "b" for row in trained) == 2 * (30 - own)
    assert len({row["id"] for row in trained}) == len(trained)


def test_demonstrations_of_their_own_replace_the_chosen_replies(make_spec, tmp_path):
    shown = [{"id": str(i), "messages": turns(f"Tell me of topic {i}", f"Topic {i} is this.")} for i in range(20)]
    shown.append({"id": "copy", "messages": shown[0]["messages"]})
    asked = [{"id": str(i), "messages": turns(f"Tell me of topic {i}")} for i in range(5)]
    made = {"pairs": ("preferences", pairs(6)), "asked": ("prompts", asked), "shown": ("sft", shown)}
    stage = build(make_spec, tmp_path, made)
    heldout = {json.dumps(row["messages"]) for row in rows_of(stage, "prompts_heldout")}
    learned = rows_of(stage, "sft")
    assert {row["source"] for row in learned} == {"shown"} and len(learned) == 18
    assert not heldout & {json.dumps(row["messages"][:-1]) for row in learned}
    assert stage.card["sources"]["shown"]["dropped"] == {"duplicate_conversation": 1, "heldout_prompt": 2}
    assert learned[0]["messages"][-1]["role"] == "assistant"


def test_prompts_alone_are_a_mixture(make_spec, tmp_path):
    """Of pairs and demonstrations as prompts the reply is left out; an answer stays with its prompt."""
    asked = [{"id": str(i), "messages": turns(f"What is {i} times {i + 2}?"), "answer": str(i * (i + 2))} for i in range(6)]
    shown = [{"id": "d", "messages": turns("Tell me a story", "Once.")}]
    made = {"asked": ("prompts", asked), "shown": ("prompts", shown), "pairs": ("prompts", pairs(3))}
    stage = build(make_spec, tmp_path, made)
    pool = rows_of(stage, "prompts_pool") + rows_of(stage, "prompts_heldout")
    assert len(pool) == 10 and all(row["messages"][-1]["role"] == "user" for row in pool)
    answers = {row["id"]: row.get("answer") for row in pool}
    assert answers["asked/3"] == "15" and answers["shown/d"] is None
    assert rows_of(stage, "reward_train") == rows_of(stage, "sft") == []


def test_a_source_used_as_what_it_is_not_is_refused(make_spec, tmp_path):
    asked = [{"id": str(i), "messages": turns(f"Topic {i}?")} for i in range(5)]
    with pytest.raises(RecipeError, match=r"none left of 5 rows as sft \(roles_not_alternating 5\)"):
        build(make_spec, tmp_path, {"asked": ("sft", asked)})


LONG = "Describe in a few plain sentences how the people of a small harbour town mend their nets before the winter storms come"


def test_near_duplicates_stay_on_one_side_and_once_in_the_pool(make_spec, tmp_path):
    """Twelve topics, each as six variants that differ in the last word: a chain of near-duplicates per topic."""
    words = ["one", "two", "three", "four", "five", "six"]
    topics = [f"{LONG.replace('harbour', f'town{i} harbour{i}').replace('nets', f'nets{i} boats{i}')}" for i in range(12)]
    made = [
        {"id": f"{t}-{w}", "chosen": turns(f"{topic} {w}", "yes"), "rejected": turns(f"{topic} {w}", "no")}
        for t, topic in enumerate(topics)
        for w in words
    ]
    asked = [{"id": f"{i}-{w}", "messages": turns(f"{LONG} and sing{i} songs{i} dance{i} {w}")} for i in range(8) for w in words]
    asked += [{"id": "seen", "messages": turns(f"{topics[0]} seven")}]
    given_rows = {"pairs": ("preferences", made), "asked": ("prompts", asked)}
    stage = build(make_spec, tmp_path, given_rows, splits={"gold_fraction": 0.5})
    sides = {}
    for name in ("reward_train", "gold_train", "pairs_heldout"):
        for row in rows_of(stage, name):
            sides.setdefault(row["id"].split("/")[1].split("-")[0], set()).add(name)
    assert len(sides) == 12 and all(len(side) == 1 for side in sides.values())
    pool = rows_of(stage, "prompts_pool") + rows_of(stage, "prompts_heldout")
    assert sorted(row["id"].split("/")[1].split("-")[0] for row in pool) == sorted(map(str, range(8)))
    told = stage.card["near_duplicates"]
    assert told["groups"] == 20 and told["like_held_out"] == 0
    assert stage.card["sources"]["asked"]["dropped"] == {"duplicate_prompt": 41}
    told = build(make_spec, tmp_path, {"pairs": ("preferences", made)}, "exact", near_duplicates=None).card["near_duplicates"]
    assert told["groups"] == told["prompts"] == 72 and told["rows"] == 0


def test_what_sampling_missed_is_dropped_by_the_exact_comparison():
    """Two near-duplicates that ended up in different groups, as MinHash leaves one in 2,000."""
    like = {"chosen": turns(f"{LONG} today", "a"), "rejected": turns(f"{LONG} today", "b")}
    files = {
        "sft.jsonl": [],
        "reward_train.jsonl": [preference("r", 1) | like, preference("other", 2)],
        "gold_train.jsonl": [],
        "pairs_heldout.jsonl": [],
        "prompts_pool.jsonl": [{"id": "p", "messages": turns("What is rain?"), "group": 3}],
        "prompts_heldout.jsonl": [{"id": "h", "messages": turns(LONG), "group": 4}],
    }
    kept, dropped = remove_like_held_out(files, 0.8)
    assert dropped == {"r"} and [row["id"] for row in kept["reward_train.jsonl"]] == ["other"]
    assert remove_like_held_out(files, None) == (files, set())
    only = files | {"reward_train.jsonl": files["reward_train.jsonl"][:1]}
    with pytest.raises(RecipeError, match="reward_train"):
        remove_like_held_out(only, 0.8)


def test_the_check_of_the_splits_can_fail():
    files = {f"{name}.jsonl": [] for name in FILES}
    verify(files | {"reward_train.jsonl": [preference("a", 1)], "gold_train.jsonl": [preference("b", 2)]})
    with pytest.raises(AssertionError, match="1 groups"):
        verify(files | {"reward_train.jsonl": [preference("a", 1)], "gold_train.jsonl": [preference("b", 1)]})
    with pytest.raises(AssertionError, match="1 prompts"):
        verify(files | {"reward_train.jsonl": [preference("a", 1)], "pairs_heldout.jsonl": [preference("a", 2)]})


def test_a_large_group_is_never_held_out():
    rows = [preference(f"big{i}", 0) for i in range(40)] + [preference(f"r{i}", i + 1) for i in range(9)]
    for seed in range(20):
        files = split(rows, [], {"gold_fraction": 0.0, "heldout_pairs": 3, "heldout_prompts": 1}, seed)
        assert [row["group"] for row in files["pairs_heldout.jsonl"]].count(0) == 0 and len(files["pairs_heldout.jsonl"]) == 3


def test_the_page_tells_what_the_card_holds(starter_data):
    page, card = starter_data.file("README.md").read_text(), json.loads(starter_data.file("card.json").read_text())
    for name, source in card["sources"].items():
        assert f"| {name} | {source['use']} | {source['read']} | {source['kept']} |" in page
        for rule, count in source["dropped"].items():
            assert f"| {name} | {rule} | {count} |" in page
    for name, told in card["files"].items():
        assert f"| `{name}` | {told['rows']} | {told['prompts']} | `{told['sha256']}` |" in page
    assert f"{card['near_duplicates']['groups']} groups" in page and "alpaca_eval (" in page


def test_the_card_of_published_pairs_tells_of_hits_alone():
    """Sources in which nothing was found are not listed: a card of 12 sources and 13 benchmarks would be 156 empty rows."""
    from harness.dataset_card import contamination

    counts = {"rows": 2, "questions": 1, "share": 0.1, "flagged": True}
    by_source = {"a": counts, "b": counts | {"rows": 0, "questions": 0}}
    told = {"removed": True, "benchmarks": {"gsm8k": {"questions": 10, "by_source": by_source, "removed": True}}}
    page = contamination(told)
    assert "| gsm8k | a | 2 | 1 of 10 | removed |" in page and "| b |" not in page
    told["benchmarks"]["gsm8k"]["by_source"] = {"b": by_source["b"]}
    assert "gsm8k" in contamination(told) and "None held one" in contamination(told)
    assert "were there to check" in contamination({"benchmarks": {}})
    assert "false" in contamination({"action": "off", "benchmarks": {}})
