"""Readers: every source format gives the same rows."""

import json

import pytest

from core.artifacts import write_rows
from core.errors import MissingInput
from train.filters import structural_fault
from train.readers import READERS, hh_messages, read_objects


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]


def test_hh_dialogues_become_messages():
    text = "\n\nHuman: One?\nTwo?\n\nAssistant: Yes.\n\nThree. \n\nHuman: Ok\n\nAssistant: Good"
    assert hh_messages(text) == turns("One?\nTwo?", "Yes.\n\nThree.", "Ok", "Good")


def test_line_separators_inside_json_strings_do_not_split_rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a\u2028b"}\n{"text": "c"}\n')
    assert len(read_objects(tmp_path / "rows.jsonl")) == 2


READ = [  # reader, files, rows that are sound, counts of the rest: by independent counting of the public files
    ("hh_rlhf", ["preferences/hh_rlhf_harmless_test.jsonl.gz"], 2312),
    ("tulu_human_pairs", ["preferences/eval_annotations_tulu_1.jsonl.gz"], 1150),
    ("oasst_tree", ["preferences/oasst_en_100_tree.jsonl.gz"], None),
    ("dpo_en_demo", ["preferences/dpo_en_demo.json.gz"], 300),
    ("alpaca", ["prompts/alpaca_en_demo.json.gz"], 999),
    ("code_alpaca", ["prompts/codealpaca_2k.json.gz", "prompts/codealpaca_new_codealpaca.json.gz"], 6552),
    ("self_instruct_seed", ["prompts/self_instruct_seed_tasks.jsonl.gz"], 175),
    ("self_instruct_user", ["prompts/self_instruct_user_oriented_instructions.jsonl.gz"], 252),
]


@pytest.mark.parametrize(("reader", "files", "total"), READ, ids=[row[0] for row in READ])
def test_readers_on_the_public_files(data, reader, files, total):
    rows = list(READERS[reader]([data / file for file in files]))
    faults = [structural_fault(row, 20_000) for row in rows if "dropped" not in row]
    assert total is None or len(rows) == total
    assert faults.count(None) / len(faults) > 0.95, {fault: faults.count(fault) for fault in set(faults)}
    assert len({row["id"] for row in rows if "id" in row}) == len(faults)


def test_known_rows_of_public_files(data):
    tulu = list(READERS["tulu_human_pairs"]([data / "preferences/eval_annotations_tulu_1.jsonl.gz"]))
    assert sum(row == {"dropped": "tie"} for row in tulu) == 376
    assert tulu[0]["chosen"][1]["content"].startswith("If you'd told me a year ago")
    for row in READERS["oasst_tree"]([data / "preferences/oasst_en_100_tree.jsonl.gz"]):
        assert "dropped" in row or row["chosen"][:-1] == row["rejected"][:-1]


def test_parquet_tables_of_the_hub(tmp_path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    said = [{"role": "user", "content": "Hi", "extra": 1}, {"role": "assistant", "content": "Hello.", "extra": 2}]
    other = [said[0], {"role": "assistant", "content": "No.", "extra": 3}]
    parquet.write_table(arrow.table({"chosen": [said, said], "rejected": [other, other]}), tmp_path / "pairs.parquet")
    rows = list(READERS["preference_parquet"]([tmp_path / "pairs.parquet"]))
    assert [row["id"] for row in rows] == ["0", "1"]
    assert rows[0]["chosen"] == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    parquet.write_table(arrow.table({"context_messages": [said[:1]]}), tmp_path / "prompts.parquet")
    assert list(READERS["prompt_parquet"]([tmp_path / "prompts.parquet"])) == [{"id": "0", "messages": [rows[0]["chosen"][0]]}]
    with pytest.raises(MissingInput, match="no column chosen, rejected"):
        list(READERS["preference_parquet"]([tmp_path / "prompts.parquet"]))
    with pytest.raises(MissingInput, match="no column messages or conversations"):
        list(READERS["messages_parquet"]([tmp_path / "prompts.parquet"]))


def test_demonstrations_in_both_parquet_forms(tmp_path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    expected = [{"id": "0", "messages": turns("Hi", "Hello.")}]
    parquet.write_table(arrow.table({"messages": [turns("Hi", "Hello.")]}), tmp_path / "a.parquet")
    shared = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    parquet.write_table(arrow.table({"conversations": [shared]}), tmp_path / "b.parquet")
    for name in ("a", "b"):
        assert list(READERS["messages_parquet"]([tmp_path / f"{name}.parquet"])) == expected


def test_demonstrations_under_the_columns_of_the_hub(tmp_path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    shared = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    rows = [
        {"source": "x", "instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Add.", "input": "", "response": "3"},
        {"conversations": shared, "id": "z"},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "bard", "value": "Hello."}]},
        {"instruction": "Nothing to answer.", "output": ""},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(arrow.table({"question": ["2 + 2?"], "answer": ["4"]}), tmp_path / "b.parquet")
    read = list(READERS["demonstrations"]([tmp_path / "a.jsonl", tmp_path / "b.parquet"]))
    assert [row.get("messages", row.get("dropped")) for row in read] == [
        turns("Add.\n\n1 and 2", "3"),
        turns("Add.", "3"),
        [{"role": "system", "content": "Be brief."}, *turns("Hi", "Hello.")],
        "other_speaker",
        "empty",
        turns("2 + 2?", "4"),
    ]
    assert [row["id"] for row in read if "id" in row] == ["0", "1", "2", "5"]
    (tmp_path / "c.json").write_text('[{"text": "?"}]')
    with pytest.raises(MissingInput, match="Row 0 of .*c.json has columns text; demonstrations have messages or conversations"):
        list(READERS["demonstrations"]([tmp_path / "c.json"]))


def test_scores_of_parquet_pairs_are_kept(tmp_path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    columns = {"chosen": [turns("Hi", "a")], "rejected": [turns("Hi", "b")], "chosen_score": [4.0], "rejected_score": [1.5]}
    parquet.write_table(arrow.table(columns), tmp_path / "pairs.parquet")
    (row,) = READERS["preference_parquet"]([tmp_path / "pairs.parquet"])
    assert (row["chosen_score"], row["rejected_score"]) == (4.0, 1.5)


def rated(*ratings: str) -> dict:
    return {"annotations": {f"aspect{i}": {"Rating": rating} for i, rating in enumerate(ratings)}}


def test_ultrafeedback_ranks_by_the_mean_of_the_aspects(tmp_path):
    """overall_score says the opposite of the aspects, as it did in the published file; a completion with N/A is out."""
    completions = [
        rated("5", "4") | {"response": "good", "overall_score": 1.0},
        rated("1", "2") | {"response": "bad", "overall_score": 10.0},
        rated("2", "1") | {"response": "equal to bad"},
        rated("5", "N/A") | {"response": "unrated"},
    ]
    write_rows(
        tmp_path / "uf.jsonl", [{"instruction": "Do it", "completions": completions}, {"instruction": "x", "completions": []}]
    )
    rows = list(READERS["ultrafeedback"]([tmp_path / "uf.jsonl"]))
    pairs = [(r["chosen"][1]["content"], r["rejected"][1]["content"], r["chosen_score"]) for r in rows if "chosen" in r]
    assert pairs == [("good", "bad", 4.5), ("good", "equal to bad", 4.5)]
    assert [r["dropped"] for r in rows if "dropped" in r] == ["tie", "fewer_than_two_rated_replies"]


def test_helpsteer_pairs_the_responses_of_a_prompt(tmp_path):
    scored = [("p", "a", 4, 4), ("p", "b", 1, 2), ("q", "c", 3, 3), ("p", "d", 3, 5)]
    rows = [{"prompt": p, "response": r, "helpfulness": h, "correctness": c} for p, r, h, c in scored]
    write_rows(tmp_path / "hs.jsonl", rows)
    made = list(READERS["helpsteer"]([tmp_path / "hs.jsonl"]))
    assert [(r["chosen"][1]["content"], r["rejected"][1]["content"]) for r in made if "chosen" in r] == [("a", "b"), ("d", "b")]
    assert sum("dropped" in r for r in made) == 2  # a and d are equal; q has one response


def test_shp_takes_the_comment_that_people_preferred(tmp_path):
    row = {"post_id": "x", "history": "Why?", "human_ref_A": "a", "human_ref_B": "b", "score_A": 3, "score_B": 9, "labels": 0}
    write_rows(tmp_path / "shp.jsonl", [row])
    (made,) = READERS["shp"]([tmp_path / "shp.jsonl"])
    assert made["chosen"] == turns("Why?", "b") and (made["chosen_score"], made["rejected_score"]) == (9, 3)


def test_an_answer_travels_with_its_prompt(tmp_path):
    write_rows(tmp_path / "p.jsonl", [{"messages": turns("2+2?"), "answer": "4", "other": 1}])
    assert list(READERS["jsonl"]([tmp_path / "p.jsonl"])) == [{"id": "0", "messages": turns("2+2?"), "answer": "4"}]


def test_gold_pairs_and_labelled_answers_of_public_files(data):
    llmbar = list(READERS["llmbar"]([data / "preferences/llmbar.jsonl.gz"]))
    first = read_objects(data / "preferences/llmbar.jsonl.gz")[0]
    assert len(llmbar) == 419 and llmbar[0]["chosen"][1]["content"] == first[f"output_{first['label']}"]
    labelled = read_objects(data / "preferences/truthfulqa_finetune_truth.jsonl.gz")
    made = list(READERS["truthfulqa_truth"]([data / "preferences/truthfulqa_finetune_truth.jsonl.gz"]))
    pairs, unpaired = [r for r in made if "chosen" in r], sum("dropped" in r for r in made)
    assert 2 * len(pairs) + unpaired == len(labelled) == 22434
    true = {row["prompt"] for row in labelled if row["completion"].strip() == "yes"}
    question, answer = (message["content"] for message in pairs[0]["chosen"])
    assert f"Q: {question}\nA: {answer}\nTrue:" in true
