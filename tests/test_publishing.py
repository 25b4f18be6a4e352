"""What leaves the machine: exported folders are whole, hold what was measured, and a hub's own library reads their cards."""

import json
import os
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard
from typer.testing import CliRunner

from core.artifacts import MANIFEST
from core.errors import HashMismatch, MissingInput, RecipeError
from core.fingerprint import checkpoint_fingerprint
from db import models
from db.registry import Registry
from harness.cli import app
from harness.markdown import code, inline
from harness.publishing import export_dataset, export_model
from harness.recipe_file import load_recipe
from tests.sample_registry import SCORES, fill
from tests.training import write_jsonl

HOSTILE = 'evil: "x"\n---\n| <script>alert(1)</script> [a](javascript:b) `c` \u202e # & {{ y }}'


def with_weights(registry: Registry, folder: Path, name: str = "quickstart/iter-2") -> str:
    """Put real weights behind a checkpoint of the sample registry; returns their fingerprint."""
    fingerprint = checkpoint_fingerprint(folder)
    with registry.write() as session:
        row = session.query(models.Checkpoint).filter_by(name=name).one()
        row.path, row.fingerprint = str(folder), fingerprint
        run = session.query(models.Run).one()
        run.recipe = load_recipe("quickstart").model_dump(mode="json")
    return fingerprint


def test_a_model_is_exported_whole_and_the_hub_reads_its_card(registry: Registry, tiny_llama: Path, tmp_path: Path):
    fill(registry)
    fingerprint = with_weights(registry, tiny_llama)
    files = {path.name for path in export_model(registry, "quickstart/iter-2", tmp_path / "out", licence="apache-2.0")}
    assert {"README.md", "harness.json", "recipe.yaml", "config.json", "model.safetensors", "tokenizer.json"} <= files
    assert checkpoint_fingerprint(tmp_path / "out") == fingerprint
    assert not list(tmp_path.glob(".out*"))

    data = ModelCard.load(tmp_path / "out" / "README.md").data
    results = {result.dataset_name.split(" (")[0]: result for result in data.eval_results}
    assert (data.license, data.model_name, len(results)) == ("apache-2.0", "quickstart/iter-2", len(SCORES))
    alpaca = results["AlpacaEval 2"]
    assert (alpaca.metric_type, alpaca.metric_value) == ("win_rate", 41.9)
    assert alpaca.metric_args["low"] < 41.9 < alpaca.metric_args["high"] and alpaca.metric_args["n"] == 16
    assert alpaca.dataset_type == "alpaca_eval-starter", "a score on starter questions is not one on the benchmark"
    assert data.base_model is None, "a packaged base model has no id on the hub"

    record = json.loads((tmp_path / "out" / "harness.json").read_text())
    assert record["fingerprint"] == record["exported_fingerprint"] == fingerprint
    assert [one["name"] for one in record["lineage"]] == [f"quickstart/{n}" for n in ("iter-2", "iter-1", "sft", "base")]
    assert load_recipe(str(tmp_path / "out" / "recipe.yaml")) == load_recipe("quickstart")


def test_an_exported_model_loads_and_answers(registry: Registry, tiny_llama: Path, tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fill(registry)
    with_weights(registry, tiny_llama)
    export_model(registry, "quickstart/iter-2", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generate(**ids, max_new_tokens=2, do_sample=False).shape[1] > ids["input_ids"].shape[1]


def test_weights_of_another_trainer_are_exported_with_what_is_known_of_them(registry: Registry, tiny_llama: Path, tmp_path: Path):
    from train.foreign import open_run, register

    told = {"program": "trainer", "settings": {"learning_rate": 1e-3}, "metrics": {"loss": 2.5}}
    run = open_run(registry, "my-sft", {"trainer": {"seed": 5}, "base": "/home/someone/base"})
    register(registry, run, (tiny_llama, checkpoint_fingerprint(tiny_llama)), "my-sft/step-4", 4, None, told)
    files = {path.name for path in export_model(registry, "my-sft/step-4", tmp_path / "out")}
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "recipe.yaml" not in files and card.data.eval_results is None and card.data.base_model is None
    assert "learning_rate: 0.001" in card.text and "Nothing was measured" in card.text and "not recorded" in card.text
    assert "/home/someone" not in card.text + (tmp_path / "out" / "harness.json").read_text()


def test_what_is_unsure_is_not_claimed_to_a_hub(registry: Registry, tiny_llama: Path, tmp_path: Path):
    sample = fill(registry)
    with_weights(registry, tiny_llama)
    with registry.write() as session:
        at = session.query(models.Checkpoint).filter_by(name="quickstart/iter-2").one().id
        flagged = session.query(models.Evaluation).join(models.AnswerSet)
        one = flagged.filter(models.AnswerSet.checkpoint_id == at, models.AnswerSet.benchmark == "human_eval").one()
        one.flags = [{"flag": "canary", "reason": "answers like a canary's"}]
    sample.score(at, "alpaca_eval", None, judge="gpt", n_failed=3, version="v2@1")
    sample.score(at, "mt_bench", 9.0, judge="gpt", complete=False, version="v1@1")
    sample.score(at, "truthful_qa", 55.0, version="v1@1", limit=10)
    export_model(registry, "quickstart/iter-2", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    named = [(r.dataset_name.split(" (")[0], r.metric_value) for r in card.data.eval_results]
    assert ("TruthfulQA", 55.0) in named and "a sample of 10 questions" in str(card.data.eval_results)
    assert len(named) == len(SCORES) - 1 + 1 and "HumanEval" not in dict(named) and ("MT-Bench", 9.0) not in named
    assert card.data.license is None and "no licence" in card.text
    assert "withheld (3 failed)" in card.text.replace("\\", "") and "like a canary's" in card.text and "not complete" in card.text


def test_hostile_names_stay_text(registry: Registry, tiny_llama: Path, tmp_path: Path):
    fill(registry)
    with_weights(registry, tiny_llama)
    with registry.write() as session:
        session.query(models.Checkpoint).filter_by(name="quickstart/iter-2").one().name = HOSTILE
        session.query(models.Judge).filter_by(kind="sandbox").one().name = HOSTILE
        session.query(models.AnswerSet).filter_by(benchmark="alpaca_eval").update({"version": HOSTILE})
    export_model(registry, checkpoint_fingerprint(tiny_llama)[:12], tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    data = ModelCard(text).data
    assert data.model_name == HOSTILE.replace("\n", "\ufffd").replace("\u202e", "\ufffd")
    assert data["library_name"] == "transformers" and len(data.eval_results) == len(SCORES)
    body = text.split("\n---\n", 1)[1]
    assert "<script>" not in body and "\u202e" not in text and "[a]" not in body
    assert inline("a|b\n*c*") == "a\\|b\ufffd\\*c\\*" and code("`x`") == "\\`x\\`"


def test_an_export_is_never_overwritten_unasked(registry: Registry, tiny_llama: Path, tmp_path: Path):
    fill(registry)
    with_weights(registry, tiny_llama)
    out = tmp_path / "out"
    export_model(registry, "quickstart/iter-2", out)
    with pytest.raises(RecipeError, match="--force to replace"):
        export_model(registry, "quickstart/iter-2", out)
    (out / "stale").touch()
    export_model(registry, "quickstart/iter-2", out, force=True)
    assert not (out / "stale").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    with pytest.raises(RecipeError, match="is taken"):
        export_model(registry, "quickstart/iter-2", mine, force=True)
    assert (mine / "thesis.txt").read_text() == "precious"


def test_weights_that_changed_or_went_are_not_exported(registry: Registry, tiny_llama: Path, tmp_path: Path):
    fill(registry)
    with registry.write() as session:
        session.query(models.Checkpoint).filter_by(name="quickstart/iter-1").one().path = str(tiny_llama)
    with pytest.raises(HashMismatch, match="no longer those"):
        export_model(registry, "quickstart/iter-1", tmp_path / "out")
    with pytest.raises(MissingInput, match="not on this machine"):
        export_model(registry, "quickstart/sft", tmp_path / "out")
    with pytest.raises(MissingInput, match="quickstart/nobody"):
        export_model(registry, "quickstart/nobody", tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == []


# --- preference pairs ---


def pair(t: int, k: int) -> dict:
    def side(text: str, reward: float, sample: int) -> dict:
        fields = {"token_ids": [1, 2], "finish_reason": "stop", "win_rate": 1.0}
        return {"text": text, "reward": reward, "sample": sample} | fields

    messages = [{"role": "user", "content": f"question {t}.{k}"}]
    row = {"prompt_id": f"starter_prompts/p{k}", "messages": messages, "prompt_token_ids": [1]}
    return row | {"chosen": side("good", 1.5, 2), "rejected": side("bad", -0.5, 0)}


def with_pairs(registry: Registry, tmp_path: Path, cumulative: bool = False) -> None:
    """Artifacts of two iterations behind the stages of the sample registry."""

    def artifact(name: str, inputs: dict, settings: dict, **files: list | dict) -> str:
        folder = tmp_path / "artifacts" / name
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_text(json.dumps({"inputs": inputs, "settings": settings}))
        for file, content in files.items():
            if isinstance(content, list):
                write_jsonl(folder / f"{file}.jsonl", content)
            else:
                (folder / f"{file}.json").write_text(json.dumps(content))
        return str(folder)

    found = {"by_source": {"starter_prompts": {"rows": 2, "questions": 1}}, "questions": 8, "removed": True}
    card = {"contamination": {"action": "remove", "benchmarks": {"mt_bench": found}}}
    with registry.write() as session:
        run = session.query(models.Run).one()
        run.recipe = load_recipe("quickstart").model_dump(mode="json")
        names = {row.name: row for row in session.query(models.StageRun)}
        fingerprints = {row.name: row.fingerprint for row in session.query(models.Checkpoint)}
        names["data"].artifact = artifact("data", {}, {}, card=card)
        for t, policy in ((1, "quickstart/sft"), (2, "quickstart/iter-1")):
            rows = [pair(t, k) for k in range(2 + t)]
            earlier = {"earlier": "x"} if cumulative and t == 2 else {}
            before = [pair(1, k) for k in range(3)] if earlier else []
            names[f"pairs[{t}]"].artifact = artifact(f"pairs-{t}", earlier, {"rule": "max_min"}, pairs=before + rows)
            names[f"pairs[{t}]"].program = "train.pairs"
            generation = {"max_tokens": 96, "path": "/home/someone"}
            names[f"generate[{t}]"].artifact = artifact(f"generate-{t}", {"policy": fingerprints[policy]}, generation)
            names[f"annotate[{t}]"].artifact = artifact(f"annotate-{t}", {"scorer": "f" * 64}, {"scorer": "bradley_terry"})


def test_pairs_are_exported_as_conversations_that_datasets_and_trl_read(registry: Registry, tmp_path: Path):
    from datasets import load_dataset
    from trl.data_utils import is_conversational

    fill(registry)
    with_pairs(registry, tmp_path)
    export_dataset(registry, "quickstart", None, tmp_path / "out", licence="cc-by-4.0")
    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 7 and len(set(rows["id"])) == 7 and is_conversational(rows[0])
    assert rows[0]["chosen"][-1] == {"role": "assistant", "content": "good"}
    assert (rows[0]["chosen_score"], rows[0]["rejected_score"], rows[6]["iteration"]) == (1.5, -0.5, 2)
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.size_categories) == ("cc-by-4.0", ["n<1K"])
    text = card.text.replace("\\", "")
    assert "quickstart/iter-1" in text and "1 of 8" in text and "/home/someone" not in text and "max_tokens: 96" in text


def test_an_annotating_judge_is_named_by_its_model(registry: Registry, tmp_path: Path):
    fill(registry)
    with_pairs(registry, tmp_path)
    told = {"inputs": {}, "settings": {"scorer": "judge", "judge": {"model": "gpt-4.1", "base_url": "http://10.0.0.7/v1"}}}
    (tmp_path / "artifacts" / "annotate-1" / MANIFEST).write_text(json.dumps(told))
    export_dataset(registry, "quickstart", 1, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "gpt-4.1" in text and "10.0.0.7" not in text


def test_exported_pairs_are_a_data_source_of_the_harness(registry: Registry, tmp_path: Path):
    from train.readers import READERS

    fill(registry)
    with_pairs(registry, tmp_path)
    export_dataset(registry, "quickstart", 1, tmp_path / "out")
    rows = list(READERS["jsonl"](sorted((tmp_path / "out" / "data").iterdir())))
    assert [row["chosen"][0]["content"] for row in rows] == ["question 1.0", "question 1.1", "question 1.2"]


def test_pairs_of_earlier_iterations_are_exported_once(registry: Registry, tmp_path: Path):
    from pyarrow import parquet

    fill(registry)
    with_pairs(registry, tmp_path, cumulative=True)
    export_dataset(registry, "quickstart", None, tmp_path / "out", form="parquet")
    counts = [parquet.read_table(path).num_rows for path in sorted((tmp_path / "out" / "data").glob("*.parquet"))]
    assert counts == [3, 4]


def test_what_there_is_not_is_named(registry: Registry, tmp_path: Path):
    fill(registry)
    with_pairs(registry, tmp_path)
    for run, iteration, message in (("nobody", None, "quickstart"), ("quickstart", 3, "iterations 1, 2")):
        with pytest.raises(MissingInput, match=message):
            export_dataset(registry, run, iteration, tmp_path / "out")
    with pytest.raises(RecipeError, match="jsonl, parquet"):
        export_dataset(registry, "quickstart", 1, tmp_path / "out", form="xml")
    assert not (tmp_path / "out").exists()


def test_the_commands(registry: Registry, tiny_llama: Path, tmp_path: Path):
    fill(registry)
    with_weights(registry, tiny_llama)
    run = CliRunner().invoke
    out = run(app, ["export", "model", "quickstart/iter-2", "--to", str(tmp_path / "m"), "--json", "--db", registry.url])
    assert out.exit_code == 0 and str(tmp_path / "m" / "README.md") in json.loads(out.output)["files"]
    linked = (tmp_path / "m" / "model.safetensors").stat()
    assert linked.st_size == os.stat(tiny_llama / "model.safetensors").st_size
    with pytest.raises(RecipeError, match="Say which evaluation"):
        run(app, ["export", "quickstart/iter-2", "--db", registry.url], catch_exceptions=False)
    shown = run(app, ["export", "--help"]).output
    assert all(name in shown for name in ("model", "dataset", "evaluation", "site"))
