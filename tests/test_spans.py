"""What is learned of a conversation, on the template structures of Llama-3, Qwen, Gemma and SmolLM2."""

import pytest

from core.errors import RecipeError
from tests.chat_templates import FAMILIES, make_tokenizer
from train.chat import render, turn_end_ids
from train.spans import IGNORED, labelled

PLAIN = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First answer."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Second."},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *PLAIN]

CLOSING = "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request):
    found = FAMILIES[request.param]
    return found, make_tokenizer(found)


@pytest.fixture
def qwen():
    return make_tokenizer(FAMILIES["qwen"])


def learned(tokenizer, messages, loss_on="assistant"):
    ids, labels = labelled(tokenizer, messages, loss_on)
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True)) and len(ids) == len(labels)
    return tokenizer.decode([token for token, label in zip(ids, labels, strict=True) if label != IGNORED])


@pytest.mark.parametrize("messages", [PLAIN, SYSTEM], ids=["plain", "system"])
def test_every_family_learns_the_answers_and_their_turn_ends_and_nothing_else(family, messages):
    shape, tokenizer = family
    assert learned(tokenizer, messages) == f"First answer.{shape.turn_end}Second.{shape.turn_end}"
    assert learned(tokenizer, messages, "last") == f"Second.{shape.turn_end}"


def test_the_ids_are_those_of_generation_and_scoring_with_exactly_one_bos(family):
    shape, tokenizer = family
    ids, labels = labelled(tokenizer, SYSTEM, "assistant")
    assert ids == render(tokenizer, SYSTEM, add_generation_prompt=False)[1]
    starts = [token == tokenizer.bos_token_id for token in ids[:2]]
    assert starts == [shape.bos is not None, False] and labels[0] == IGNORED
    if shape.bos and shape.bos != "<|im_start|>":  # where BOS is no turn marker it comes once in all
        assert ids.count(tokenizer.bos_token_id) == 1


def test_the_learned_turn_end_is_one_that_stops_generation(family):
    shape, tokenizer = family
    ids, labels = labelled(tokenizer, PLAIN, "assistant")
    last = [label for label in labels if label != IGNORED][-1]
    assert tokenizer.convert_ids_to_tokens(last) == shape.turn_end and last in turn_end_ids(tokenizer)


def test_padding_that_equals_the_turn_end_does_not_hide_it_from_the_loss():
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    tokenizer = make_tokenizer(FAMILIES["smollm2"])
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = [dict(zip(("input_ids", "labels"), labelled(tokenizer, m, "assistant"), strict=True)) for m in (PLAIN, PLAIN[:2])]
    batch = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)(rows)
    assert [(row == tokenizer.eos_token_id).sum().item() for row in batch["labels"]] == [2, 1]


def test_a_system_text_goes_into_the_user_turn_where_the_template_has_no_system_role():
    tokenizer = make_tokenizer(FAMILIES["gemma"])
    text, _ = render(tokenizer, SYSTEM, add_generation_prompt=False)
    assert "<start_of_turn>user\nBe brief.\n\nOne?<end_of_turn>" in text
    with pytest.raises(RecipeError, match="refuses a conversation of roles user, system"):
        render(tokenizer, [PLAIN[0], SYSTEM[0]])


@pytest.mark.parametrize("answer", ["\nyes", "\n\n\nyes", " yes", "  \n yes", "né 漢字 🙂"])
def test_an_answer_that_melts_into_the_prompts_newline_is_learned_from_its_first_own_token(qwen, answer):
    text = learned(qwen, [PLAIN[0], {"role": "assistant", "content": answer}])
    assert text.strip() == answer.strip() + "<|im_end|>" and "assistant" not in text


def test_generation_marks_are_used_and_the_turn_end_added_to_them(qwen):
    qwen.chat_template = MARKED
    assert learned(qwen, SYSTEM) == "First answer.<|im_end|>Second.<|im_end|>"
    qwen.chat_template = MARKED.replace("<|im_end|>", "")
    with pytest.raises(RecipeError, match="cannot learn to stop"):
        labelled(qwen, PLAIN, "assistant")


def test_a_token_that_closes_the_whole_conversation_is_no_rewriting(qwen):
    qwen.chat_template += CLOSING
    assert learned(qwen, PLAIN).startswith("First answer.<|im_end|>Second.<|im_end|>")


def test_templates_that_rewrite_earlier_turns_learn_the_last_one_only(qwen):
    qwen.chat_template = REWRITES
    with pytest.raises(RecipeError, match="turn 1 differently once the conversation goes on.*set loss_on to last"):
        labelled(qwen, PLAIN, "assistant")
    assert learned(qwen, PLAIN, "last") == "<think>\n\n</think>\n\nSecond.<|im_end|>"


def test_two_bos_are_refused():
    tokenizer = make_tokenizer(FAMILIES["llama-3"])
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    with pytest.raises(RecipeError, match="begins with two BOS"):
        labelled(tokenizer, PLAIN, "assistant")
