"""SFT: which tokens are learned, and a training that learns them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import RecipeError
from tests.training import RESOURCES, load_weights, read_events, training_settings, write_jsonl
from train.chat import load_tokenizer
from train.order import length_grouped_order
from train.sft import tokenise
from train.spans import IGNORED, labelled

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First answer."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Second."},
]


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return load_tokenizer(tiny_llama)


def learned_text(tokenizer, ids, labels):
    return tokenizer.decode([i for i, label in zip(ids, labels, strict=True) if label != IGNORED])


def test_the_assistants_words_and_turn_ends_are_learned_and_nothing_else(tokenizer):
    ids, labels = labelled(tokenizer, CONVERSATION, "assistant")
    assert learned_text(tokenizer, ids, labels) == "First answer.<|im_end|>Second.<|im_end|>"
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))


def test_loss_on_all_learns_every_token_but_the_first(tokenizer):
    ids, labels = labelled(tokenizer, CONVERSATION, "all")
    assert labels == [IGNORED, *ids[1:]]  # nothing predicts the first


def test_a_template_that_rewrites_earlier_turns_is_refused(tiny_llama):
    tokenizer = load_tokenizer(tiny_llama)
    # As some reasoning models do: an earlier answer loses part of its text once the conversation goes on.
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}(cut)"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(RecipeError, match="renders assistant turn 2 differently"):
        labelled(tokenizer, CONVERSATION, "assistant")


def test_a_template_without_a_turn_end_token_is_refused(tiny_llama):
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(RecipeError, match="cannot learn to stop"):
        labelled(tokenizer, CONVERSATION, "assistant")


def test_conversations_are_cut_and_those_with_nothing_left_to_learn_are_dropped_and_counted(tokenizer):
    long_question = [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "Yes."}]
    long_answer = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "word " * 200}]
    rows = [{"messages": m} for m in (CONVERSATION, long_question, long_answer)]
    examples, counts = tokenise(rows, tokenizer, "assistant", 128)
    assert counts == {"truncated": 2, "dropped": 1}
    assert len(examples) == 2 and max(row["length"] for row in examples) == 128


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 500), max_size=300), batch=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_example_comes_once_an_epoch(lengths, batch, seed):
    assert sorted(length_grouped_order(lengths, batch, seed, epoch=1)) == list(range(len(lengths)))


def test_batches_hold_similar_lengths_and_epochs_differ():
    lengths = [(37 * k) % 101 for k in range(160)]
    order = length_grouped_order(lengths, 8, seed=0, epoch=0)
    spans = [max(part) - min(part) for part in ([lengths[i] for i in order[k : k + 8]] for k in range(0, 160, 8))]
    assert max(spans) <= 8
    assert order == length_grouped_order(lengths, 8, seed=0, epoch=0) != length_grouped_order(lengths, 8, seed=0, epoch=1)


def test_sft_learns_to_answer_and_keeps_what_it_was_given(tiny_llama, run_stage, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    rows = [
        {"id": str(k), "messages": [{"role": "user", "content": f"Say {k}"}, {"role": "assistant", "content": "blue"}]}
        for k in range(32)
    ]
    write_jsonl(data / "sft.jsonl", rows)
    events = tmp_path / "events.ndjson"
    chosen = training_settings(epochs=2, packing=False, loss_on="assistant")
    inputs = {"policy": tiny_llama, "data": data}
    artifact = run_stage("train.sft", "sft", chosen, inputs, resources=RESOURCES, events=str(events))
    losses = [event["values"]["loss"] for event in read_events(events, "metric")]
    assert len(losses) == 16 and losses[-1] < 0.5 * losses[0]
    assert artifact.metrics["examples"] == 32 and artifact.metrics["train_loss"] == pytest.approx(sum(losses) / 16)
    assert read_events(events, "progress")[-1]["done"] == 16
    before, after = load_weights(tiny_llama), load_weights(artifact.file("checkpoint"))
    assert {name: (w.shape, w.dtype) for name, w in before.items()} == {name: (w.shape, w.dtype) for name, w in after.items()}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert artifact.file(f"checkpoint/{name}").read_bytes() == (tiny_llama / name).read_bytes()
    assert not artifact.file("rolling").exists()
