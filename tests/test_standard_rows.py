"""Local files: the standard form and trl's, as JSON Lines and as Parquet."""

import json
from pathlib import Path

import pytest

from core.artifacts import write_rows
from core.errors import MissingInput
from harness.data import is_local_rows, local_source
from train.readers import READERS
from train.standard_rows import standard_row


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]


PAIR = {"chosen": said("Hi", "Hello."), "rejected": said("Hi", "No.")}


@pytest.mark.parametrize(
    ("row", "made"),
    [
        (PAIR, PAIR),
        ({"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}, PAIR),
        ({"prompt": said("Hi"), "chosen": said("x", "Hello.")[1:], "rejected": said("x", "No.")[1:]}, PAIR),
        ({"prompt": "Hi"} | PAIR, PAIR),  # the context once more in front of the replies, as in UltraFeedback binarized
        ({"messages": said("Hi")}, {"messages": said("Hi")}),
        ({"prompt": "Hi", "completion": "Hello."}, {"messages": said("Hi", "Hello.")}),
        ({"prompt": said("Hi", "Hello.", "More?")}, {"messages": said("Hi", "Hello.", "More?")}),
        ({"prompt": "2+2?", "answer": "4"}, {"messages": said("2+2?"), "answer": "4"}),
        ({"prompt": "2+2?", "answer": 4}, {"messages": said("2+2?"), "answer": "4"}),
        ({"prompt": "1/2?", "answer": 0.5}, {"messages": said("1/2?"), "answer": "0.5"}),
        ({"prompt": "Hi", "answer": None}, {"messages": said("Hi")}),
        (PAIR | {"score_chosen": 8.0, "score_rejected": 3}, PAIR | {"chosen_score": 8.0, "rejected_score": 3}),
        ({"prompt": "Hi", "chosen": None, "rejected": None}, {"messages": said("Hi")}),
    ],
)
def test_forms_of_a_row(row: dict, made: dict) -> None:
    assert standard_row(row, 6, "f") == {"id": "6"} | made
    assert standard_row(row | {"id": 0}, 6, "f")["id"] == "0"


def test_trl_extracts_the_same_prompt() -> None:
    """trl's own function takes the implicit prompt out of a pair; put back in, it is the same pair."""
    from trl import extract_prompt

    assert standard_row(extract_prompt(PAIR), 0, "f") == {"id": "0"} | PAIR


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"text": "x"}, "neither messages, prompt nor chosen"),
        ({"chosen": "Hi Hello.", "rejected": "Hi No."}, "text without a prompt"),
        ({"messages": [{"from": "human", "value": "x"}]}, "no 'role'"),
        ({"messages": ["x"]}, "write messages as"),
        ({"prompt": "2+2?", "answer": [4]}, r"answer is \[4\]; write it as text or a number"),
        ({"prompt": "Is it?", "answer": True}, "answer is True; write it as text"),
        ("x", "write messages as"),
    ],
)
def test_a_row_that_is_none_is_named_by_file_and_number(tmp_path: Path, row: object, fault: str) -> None:
    write_rows(tmp_path / "mine.jsonl", [PAIR, row])
    with pytest.raises(MissingInput, match=f"mine.jsonl, row 2.*{fault}"):
        list(READERS["jsonl"]([tmp_path / "mine.jsonl"]))


def test_one_set_in_every_file_format_is_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": f"Question {i}?", "chosen": "Yes.", "rejected": "No.", "chosen_score": 1.0, "other": i} for i in range(3)]
    write_rows(tmp_path / "mine.jsonl", rows)
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "mine.parquet")
    read = {}
    for file in ("mine.jsonl", "mine.json", "mine.parquet"):
        name, reader = local_source(str(tmp_path / file))
        assert is_local_rows(file) and name == "mine"
        read[file] = list(READERS[reader]([tmp_path / file]))
    assert read["mine.jsonl"] == read["mine.json"] == read["mine.parquet"]
    assert read["mine.jsonl"][2]["chosen"] == said("Question 2?", "Yes.")
    assert not is_local_rows("hh_rlhf_harmless_test")
