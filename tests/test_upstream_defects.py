"""Defects of the published RLHFlow code that no other test catches; docs/upstream-defects.md has them all, with their tests."""

import ast
import json
import math
import re
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from core.artifacts import read_rows, write_rows
from core.errors import RecipeError
from core.stage import Spec, Stage
from harness.recipe_file import load_recipe
from tests.chat_templates import FAMILIES, make_tokenizer
from tests.conftest import ROOT
from tests.test_annotate import make_reward_model
from tests.training import training_settings
from train.annotate import run as annotate
from train.chat import load_tokenizer, render
from train.filters import structural_fault
from train.optimisation import training_arguments
from train.preference_model import PairwisePreferenceModel
from train.preference_prompt import encode
from train.reward import tokenise
from train.reward_losses import reward_loss
from train.spans import labelled

TABLE = ROOT / "docs" / "upstream-defects.md"

USER, REPLY = {"role": "user", "content": "One?"}, {"role": "assistant", "content": "First."}
OTHER = {"role": "assistant", "content": "Second."}


def test_the_table_names_tests_that_exist():
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", TABLE.read_text(encoding="utf-8"))
    assert len(named) > 40
    defined: dict[str, set[str]] = {}
    for file in {file for file, _ in named}:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        defined[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert [f"{file}::{name}" for file, name in named if name not in defined[file]] == []


def test_a_system_message_costs_no_training_row():
    """process_pair_data.py wants a user's turn first, which silently drops every conversation with a system prompt."""
    system = {"role": "system", "content": "Be brief."}
    assert structural_fault({"chosen": [system, USER, REPLY], "rejected": [system, USER, OTHER]}, 100) is None
    assert structural_fault({"messages": [system, USER]}, 100) is None


def test_there_is_one_bos_although_the_tokenizer_adds_one_of_its_own():
    """gen_hf.py sends the rendered string, BOS included, to an engine whose tokenizer puts another in front."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(FAMILIES["llama-3"])
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    text, prompt = render(tokenizer, [USER])
    assert tokenizer(text)["input_ids"].count(bos[1]) == 2, "the trap is set"
    rewarded, _ = tokenise([{"id": "0", "chosen": [USER, REPLY], "rejected": [USER, OTHER]}], tokenizer, 512, margin=False)
    compared = encode(tokenizer, [USER], "First.", "Second.", 512)
    learned, _ = labelled(tokenizer, [USER, REPLY], "assistant")
    for ids in (prompt, learned, compared.ids, rewarded[0]["chosen_ids"], rewarded[0]["rejected_ids"]):
        assert ids[0] == bos[1] and ids.count(bos[1]) == 1


@pytest.mark.parametrize("program", ["reward", "preference"])
def test_no_model_is_measured_on_a_prompt_that_it_was_trained_on(program, tiny_llama, make_spec, tmp_path):
    """llama3_8B_rm.py evaluates on the first 500 rows of its own training set."""
    rows = [{"id": str(k), "source": "s", "chosen": [USER, REPLY], "rejected": [USER, OTHER]} for k in range(8)]
    write_rows(tmp_path / "reward_train.jsonl", rows[:6])
    write_rows(tmp_path / "pairs_heldout.jsonl", rows[6:])
    settings = training_settings(file="reward_train.jsonl", margin=False, center_rewards_coefficient=None, orders="random")
    stage = Stage(Spec.load(make_spec(program, settings, {"policy": tiny_llama, "data": tmp_path})))
    stage.work.mkdir(parents=True)
    with pytest.raises(RecipeError, match="have a prompt that is trained on"):
        import_module(f"train.{program}").run(stage)


def test_the_reward_loss_neither_saturates_nor_overflows():
    """scalar_orm_train.py takes log(sigmoid(d) + 1e-10), which stops learning where a pair is most wrong."""
    import torch

    chosen = torch.tensor([-500.0], requires_grad=True)
    loss = reward_loss(chosen, torch.tensor([500.0]))
    loss.backward()
    assert loss.item() == 1000.0 and chosen.grad.item() == -1.0
    assert reward_loss(torch.tensor([500.0]), torch.tensor([-500.0])).item() == 0.0


def test_labels_with_logits_in_the_hundreds_still_have_a_probability(tiny_llama):
    """Upstream divides exp(l_A) by exp(l_A) + exp(l_B): from a logit of 89 on not a number in float32."""
    import torch

    model = PairwisePreferenceModel(tiny_llama, resources={"self_test": False})
    rows = [encode(model.tokenizer, [USER], first, second, 500).ids for first, second in (("yes", "no"), ("a b c", "d"))]
    head = model.model.get_output_embeddings()
    with torch.no_grad():
        head.weight[model.labels[0]] *= 20_000
        head.weight[model.labels[1]] = head.weight[model.labels[0]] * 0.999
        logits = [model.model(torch.tensor([ids])).logits[0, -1].double()[list(model.labels)].tolist() for ids in rows]
    assert max(abs(one) for pair in logits for one in pair) > 89
    expected = [1 / (1 + math.exp(b - a)) for a, b in logits]
    assert model.first_label_probabilities(rows) == pytest.approx(expected, abs=1e-3)
    assert any(0.01 < p < 0.99 for p in expected)


def test_a_reward_model_reads_answers_in_its_own_template(tiny_llama, make_spec, tmp_path):
    """get_rewards.py first scored the policy's rendered prompt, as if both models shared a template."""
    import torch
    from transformers import AutoModelForSequenceClassification

    checkpoint = make_reward_model(tiny_llama, tmp_path / "reward")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    (checkpoint / "chat_template.jinja").write_text(template)
    text, ids = render(load_tokenizer(tiny_llama), [USER])
    generations = tmp_path / "generations"
    generations.mkdir()
    samples = [{"text": one["content"], "token_ids": [5], "finish_reason": "stop"} for one in (REPLY, OTHER)]
    row = {"prompt_id": "p", "messages": [USER], "prompt_text": text, "prompt_token_ids": ids, "samples": samples}
    write_rows(generations / "shard-00000.jsonl", [row])
    settings = {"scorer": "bradley_terry", "max_length": 128, "dtype": "float32"}
    stage = Stage(Spec.load(make_spec("annotate", settings, {"generations": generations, "scorer": checkpoint})))
    stage.work.mkdir(parents=True)
    annotate(stage)
    rewards = read_rows(stage.work / "shard-00000.jsonl")[0]["rewards"]

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval(), load_tokenizer(checkpoint)
    own = [f"user: One?<|im_end|>assistant: {one['content']}<|im_end|>" for one in (REPLY, OTHER)]
    policys = [text + one["content"] + "<|im_end|>" for one in (REPLY, OTHER)]
    with torch.no_grad():
        read = [
            [model(torch.tensor([tokenizer(t, add_special_tokens=False)["input_ids"]])).logits.item() for t in texts]
            for texts in (own, policys)
        ]
    assert rewards == pytest.approx(read[0], abs=1e-5)
    assert rewards != pytest.approx(read[1], abs=1e-4), "the other template gives other rewards: the test can tell them apart"


def test_an_answer_cannot_be_as_long_as_the_context():
    """gen_hf2.py once passed max_new_tokens as max_model_len (pull request 10): no room was left for a prompt."""
    with pytest.raises(RecipeError, match="max_tokens leaves no room for the prompt"):
        load_recipe("quickstart", ["generate.max_model_len=512", "generate.max_tokens=512"])


def test_padding_adds_no_token_to_a_reward_model(tiny_llama, tmp_path):
    """llama3_8B_rm.py adds [PAD] and resizes the embeddings, so its checkpoint no longer fits the tokenizer it began with."""
    from train.reward import set_distinct_padding

    copy = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    tokenizer = load_tokenizer(copy)
    tokenizer.pad_token = tokenizer.eos_token
    before = len(tokenizer)
    set_distinct_padding(tokenizer)
    assert len(tokenizer) == before == json.loads((copy / "config.json").read_text())["vocab_size"]
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, None)


def test_a_limit_of_steps_reaches_the_trainer(tiny_llama, make_spec):
    """The first dpo_iteration script took --max_steps and trained to the end of the epoch."""
    from trl import DPOConfig

    settings = training_settings(max_steps=7, epochs=50)
    stage = Stage(Spec.load(make_spec("dpo", settings, {"policy": tiny_llama}, resources={"micro_batch_size": 4})))
    assert training_arguments(DPOConfig, stage, 1000).max_steps == 7
