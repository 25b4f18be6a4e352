"""What a preference model is shown: the published form, cut where it must be, with the generation prompt at the end."""

import pytest

from core.errors import RecipeError
from train.chat import load_tokenizer
from train.preference_prompt import context_text, encode, label_ids, user_turn

MESSAGES = [
    {"role": "user", "content": "First?"},
    {"role": "assistant", "content": "One."},
    {"role": "user", "content": "Second?"},
]


def test_the_context_is_what_transformers_makes_of_a_template_of_the_published_kind():
    from transformers.utils.chat_template_utils import render_jinja_template

    turn = "\n\n<turn> {{ message['role'] }}\n {{ message['content'] }}"
    template = "\n{% for message in messages %}{% if true %}" + turn + "{% endif %}{% endfor %}\n\n\n"
    for messages in (MESSAGES[:1], MESSAGES, [{"role": "user", "content": "ends with a line\n"}]):
        assert [context_text(messages)] == render_jinja_template([messages], chat_template=template)[0]


def test_a_turn_holds_both_responses_in_the_order_given_and_ends_with_the_generation_prompt(tiny_llama):
    tokenizer = load_tokenizer(tiny_llama)
    turn = encode(tokenizer, MESSAGES, "yes", "no", 1000)
    text = tokenizer.decode(turn.ids)
    assert text == f"<|im_start|>user\n{user_turn(context_text(MESSAGES), 'yes', 'no')}<|im_end|>\n<|im_start|>assistant\n"
    assert "[RESPONSE A] yes [RESPONSE B] no \n" in text and text.index("First?") < text.index("Second?")
    assert not turn.context_cut and not turn.responses_cut


def test_what_is_too_long_loses_the_start_of_its_context_and_only_then_the_ends_of_its_responses(tiny_llama):
    tokenizer = load_tokenizer(tiny_llama)
    long = [{"role": "user", "content": "begin " + "middle " * 200 + "the end?"}]
    turn = encode(tokenizer, long, "yes yes", "no no", 120)
    text = tokenizer.decode(turn.ids)
    assert turn.context_cut and not turn.responses_cut and 110 < len(turn.ids) <= 120
    assert "the end?" in text and "begin" not in text and "[RESPONSE A] yes yes [RESPONSE B] no no" in text
    turn = encode(tokenizer, MESSAGES, "start " + "word " * 300, "short", 120)
    text = tokenizer.decode(turn.ids)
    assert turn.context_cut and turn.responses_cut and 110 < len(turn.ids) <= 120
    assert "[RESPONSE A] start word" in text and "[RESPONSE B] short" in text and "Second?" not in text
    assert encode(tokenizer, MESSAGES, "a", "b", 10) is None


def test_labels_are_single_tokens_or_the_checkpoint_is_refused(tiny_llama):
    tokenizer = load_tokenizer(tiny_llama)
    first, second = label_ids(tokenizer)
    assert tokenizer.convert_ids_to_tokens([first, second]) == ["A", "B"]

    class Characters:
        """A tokenizer that begins every text with a mark of its own, as a SentencePiece model without "_A" does."""

        unk_token_id = 0

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [1, ord(text)]}

    with pytest.raises(RecipeError, match="one token each"):
        label_ids(Characters())
