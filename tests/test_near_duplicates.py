"""Near-duplicate prompts: what is alike is one group, and nothing like a held-out prompt is trained on."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.filters import words
from train.near_duplicates import BANDS, FIRST, NEIGHBOURS, SHINGLE, PromptIndex, near_any

LETTER = "Write a short polite letter to the landlord of a small flat asking him to mend the heating before winter, please."
VOCABULARY = [f"w{i}" for i in range(5000)]


def jaccard(one: str, other: str) -> float:
    """Brute force, on the shingles themselves."""

    def shingles(text: str) -> set[tuple[str, ...]]:
        tokens = words(text) or [text.strip()]
        return {tuple(tokens[i : i + SHINGLE]) for i in range(max(1, len(tokens) - SHINGLE + 1))}

    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def group_of(index: PromptIndex, text: str) -> int:
    return index.group(index.add(text))


def test_copies_and_near_copies_are_one_group():
    index = PromptIndex()
    assert index.add(LETTER) == index.add(f"  {LETTER.upper().replace(', please.', ': please')} ") == 0
    assert index.add(f"{LETTER} Today!") == 1 and group_of(index, f"{LETTER} Today!") == 0
    assert group_of(index, "Write a short polite letter to the tax office.") == 2
    assert index.add("") == index.add(" ") == 3
    assert group_of(index, "Add 2 and 3") != group_of(index, "Add 2 and 4")
    assert index.groups == 5


def test_a_row_of_small_changes_is_one_group():
    """The first and the last are below the threshold: only what lies between them joins them, whichever comes last."""
    tokens = [f"t{i}" for i in range(60)]
    texts = [" ".join([*tokens[:60], *(f"more{i}" for i in range(k))]) for k in (0, 12, 24)]
    assert jaccard(texts[0], texts[2]) < 0.8 <= min(jaccard(texts[0], texts[1]), jaccard(texts[1], texts[2]))
    for order in ((0, 1, 2), (0, 2, 1), (2, 1, 0)):
        index = PromptIndex()
        numbers = [index.add(texts[i]) for i in order]
        assert {index.group(number) for number in numbers} == {0}


def test_a_shared_system_prompt_makes_nothing_alike():
    index, system = PromptIndex(), "system: " + " ".join(VOCABULARY[:300])
    one, other = index.add("user: What is a lighthouse for?", system), index.add("user: Who mends the roof?", system)
    assert index.group(one) != index.group(other)
    plain = index.add("user: What is a lighthouse for?")
    assert plain not in (one, other), "another system prompt is another prompt"
    assert index.group(plain) == one, "but its question is the same"


def test_near_duplicates_are_found_almost_always():
    """200 random texts of 60 words with one word changed: Jaccard of 5-grams is 51/61 = 0.84, above the threshold."""
    generator = random.Random(0)
    index, missed = PromptIndex(), 0
    for _ in range(200):
        original = generator.choices(VOCABULARY, k=60)
        changed = [*original]
        changed[30] = "changed"
        missed += group_of(index, " ".join(original)) != group_of(index, " ".join(changed))
    assert missed <= 2


def test_without_a_threshold_only_equal_prompts_are_one():
    index = PromptIndex(None)
    assert index.add(LETTER) == index.add(LETTER.lower()) == 0
    assert group_of(index, f"{LETTER} Today!") == 1 and index.groups == 2


@given(st.lists(st.text(min_size=0, max_size=40), max_size=12))
def test_numbers_are_stable(texts):
    index = PromptIndex()
    first = [index.add(text) for text in texts]
    assert first == [index.add(text) for text in texts]
    assert all(index.group(number) <= number for number in first)


TEXTS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=14).map(" ".join)


@settings(max_examples=200)
@given(st.lists(TEXTS, max_size=4), st.lists(TEXTS, max_size=6), st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_near_any_is_exact(held_out, texts, threshold):
    expected = [any(jaccard(text, other) >= threshold for other in held_out) for text in texts]
    assert near_any(held_out, texts, threshold) == expected


def test_thousands_of_texts_from_one_template_take_no_quadratic_time():
    """Comparisons are bounded: 3,000 variants of one text that are not alike compare with few others in each band."""
    index, compared = PromptIndex(), 0
    import train.near_duplicates as module

    original = module._similarity

    def counted(one, other):
        nonlocal compared
        compared += 1
        return original(one, other)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_similarity", counted)
        for i in range(3000):
            index.add(f"{LETTER} Take {i} and then {i + 1} or {i + 2} or {i + 3} at most {i + 4}.")
        assert index.groups == 3000
    # At most FIRST + NEIGHBOURS in each band; all pairs would be 4.5 million, and grow with the square.
    assert 0 < compared <= (FIRST + NEIGHBOURS) * BANDS * 3000 / 8
