"""A model without chat template gets one from the recipe, and everything that is trained from it keeps it."""

import json
import shutil
from pathlib import Path

import pytest

from core.errors import MissingInput, RecipeError, UnsafeCheckpoint
from core.fingerprint import chat_template, checkpoint_fingerprint, eos_token_ids
from harness.chat_template import template_text, with_template
from harness.plan import build_plan
from harness.recipe_file import load_recipe
from harness.resolve import resolve
from tests.chat_templates import FAMILIES, make_tokenizer
from tests.training import RESOURCES, training_settings, write_jsonl
from train.chat import load_tokenizer, render, turn_end_ids
from train.spans import labelled

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " What is a lighthouse for?\n"},
    {"role": "assistant", "content": "It warns ships. "},
]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))


@pytest.fixture
def bare(tiny_llama: Path, tmp_path: Path) -> Path:
    """The tiny Llama without its chat template."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "bare"))
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture
def llama_3(bare: Path) -> Path:
    """The same as a Llama-3 base: its special tokens, EOS is the end of the text, no template."""
    tokenizer = make_tokenizer(FAMILIES["llama-3"])
    tokenizer.chat_template = None
    tokenizer.save_pretrained(bare)
    config = json.loads((bare / "config.json").read_text())
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    (bare / "config.json").write_text(json.dumps(config | ids))
    (bare / "generation_config.json").write_text(json.dumps(ids))
    return bare


def base(folder: Path, template: str | None = None, *more: str):
    """The quickstart's resolved inputs with another base."""
    given = [f"base.chat_template={template}"] if template else []
    return resolve(load_recipe("quickstart", [f"base.source={folder}", *given, *more]))


@pytest.mark.parametrize(
    ("name", "family", "text"),
    [
        (
            "llama-3",
            "llama-3",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWhat is a lighthouse for?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nIt warns ships.<|eot_id|>",
        ),
        (
            "chatml",
            "qwen",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n What is a lighthouse for?\n<|im_end|>\n"
            "<|im_start|>assistant\nIt warns ships. <|im_end|>\n",
        ),
    ],
)
def test_the_shipped_templates_are_the_published_forms(name: str, family: str, text: str) -> None:
    tokenizer = make_tokenizer(FAMILIES[family])
    of_family = render(tokenizer, TALK, add_generation_prompt=False)
    tokenizer.chat_template = template_text(name)
    assert render(tokenizer, TALK, add_generation_prompt=False) == of_family and of_family[0] == text
    asked, _ = render(tokenizer, TALK[:2])
    assert text.startswith(asked) and asked.endswith(("assistant<|end_header_id|>\n\n", "assistant\n"))


def test_a_base_without_template_is_refused_before_anything_runs(bare: Path) -> None:
    with pytest.raises(MissingInput, match=r"bare has no chat template.*set base\.chat_template"):
        base(bare)
    with pytest.raises(MissingInput, match=r"set reward\.start\.chat_template"):
        resolve(load_recipe("quickstart", [f"reward.start.source={bare}"]))
    with pytest.raises(MissingInput, match=r"set gold_reward\.checkpoint\.chat_template"):
        resolve(load_recipe("quickstart", [f"gold_reward.checkpoint.source={bare}"]))


def test_the_template_is_part_of_the_checkpoint_that_the_plan_is_built_on(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(template_text("chatml").replace("assistant", "model"))
    refs = [base(bare, name).base for name in ("chatml", "chatml", str(tmp_path / "own.jinja"))]
    assert refs[0] == refs[1] and len({ref.fingerprint for ref in refs}) == 2
    made = Path(refs[0].path)
    assert made.is_relative_to(tmp_path / "home") and checkpoint_fingerprint(made) == refs[0].fingerprint
    assert load_tokenizer(made).chat_template == template_text("chatml") and chat_template(bare) is None
    assert (made / "model.safetensors").samefile(bare / "model.safetensors"), "weights are linked, not copied"
    assert [path.name for path in made.parent.iterdir() if "." in path.name.rpartition("-")[2]] == [], "nothing half-made stays"
    recipe = load_recipe("quickstart")
    plans = [build_plan(recipe, base(bare, name)) for name in ("chatml", str(tmp_path / "own.jinja"))]
    assert plans[0].nodes["sft"].key != plans[1].nodes["sft"].key


def test_a_template_of_the_recipe_replaces_the_models_own(tiny_llama: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    own = (copy / "chat_template.jinja").rename(tmp_path / "own.jinja").read_text()
    config = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": own}))
    assert chat_template(copy) and base(copy).base.path == str(copy)
    made = with_template(copy, "chatml")
    assert load_tokenizer(made).chat_template == template_text("chatml")
    assert "chat_template" not in json.loads((made / "tokenizer_config.json").read_text())
    assert json.loads((copy / "tokenizer_config.json").read_text())["chat_template"] == own


def test_of_several_templates_the_default_one_counts(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer_config.json"
    for told, found in (
        ([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}], "D"),
        ([{"name": "tool_use", "template": "T"}], "T"),
        ("", None),
        ([], None),
        (["D"], None),
        (7, None),
    ):
        file.write_text(json.dumps({"chat_template": told}))
        assert chat_template(tmp_path) == found
    file.write_text("[")
    with pytest.raises(MissingInput, match="not a JSON object"):
        chat_template(tmp_path)


def test_weights_that_changed_under_the_same_name_are_another_checkpoint(bare: Path) -> None:
    before = base(bare, "chatml").base
    (bare / "config.json").write_text((bare / "config.json").read_text() + "\n")
    after = base(bare, "chatml").base
    assert before.fingerprint != after.fingerprint and before.path != after.path


def test_what_cannot_be_a_template_is_refused(llama_3: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"no chat template 'llama3' \(did you mean llama-3\?\)"):
        base(llama_3, "llama3")
    with pytest.raises(RecipeError, match="chatml ends a turn with no special token of this model's tokenizer"):
        base(llama_3, "chatml")
    (tmp_path / "evil.jinja").write_text("{{ messages.__class__ }}")
    with pytest.raises(UnsafeCheckpoint, match="evil.jinja uses __class__"):
        base(llama_3, str(tmp_path / "evil.jinja"))
    with pytest.raises(RecipeError, match="comes with its chat template"):
        resolve(load_recipe("quickstart", ["base.chat_template=chatml"]))
    assert [path for path in (tmp_path / "home" / "models").iterdir()] == []


def test_a_llama_3_base_learns_its_turn_end_stops_at_it_and_hands_both_on(llama_3: Path, run_stage, tmp_path: Path) -> None:
    """EOS of the base is <|end_of_text|>, at which no turn ends."""
    from train.transformers_engine import TransformersEngine

    policy = Path(base(llama_3, "llama-3").base.path)
    tokenizer = load_tokenizer(policy)
    turn, text = (tokenizer.convert_tokens_to_ids(token) for token in ("<|eot_id|>", "<|end_of_text|>"))
    assert tokenizer.eos_token_id == text != turn
    ids, labels = labelled(tokenizer, TALK, "assistant")
    assert [label for label in labels if label != -100][-1] == turn and ids.count(tokenizer.bos_token_id) == 1
    assert turn_end_ids(tokenizer, policy) == eos_token_ids(policy / "generation_config.json") == sorted([turn, text])
    data = tmp_path / "data"
    data.mkdir()
    write_jsonl(data / "sft.jsonl", [{"id": str(k), "messages": TALK[1:]} for k in range(8)])
    chosen = training_settings(packing=False, loss_on="assistant")
    trained = run_stage("train.sft", "sft", chosen, {"policy": policy, "data": data}, resources=RESOURCES).file("checkpoint")
    assert load_tokenizer(trained).chat_template == template_text("llama-3")
    assert turn in eos_token_ids(trained / "generation_config.json"), "other engines read their stop tokens there"
    assert TransformersEngine(trained, 128, "float32", {"threads": 1}).stop_ids == sorted([turn, text])
