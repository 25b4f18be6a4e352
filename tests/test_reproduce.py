"""The command on a checkpoint's card asks for the same evaluation: typed again, it gives the settings that it was made from."""

from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from dashboard.reproduce import evaluation_options, variant
from db.card import Measured
from evals.benchmark import BENCHMARKS
from harness import workflow
from harness.cli import app
from harness.plan import build_evaluation

OPENAI = ["--judge", "openai:gpt-4.1"]


@pytest.fixture
def asked(tiny_llama, tmp_path, monkeypatch):
    """What `harness eval` makes of options: {benchmark: (version, answer settings, conditions)}, and the judge's section."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    seen: list[Any] = []

    def kept(settings, seed, policy, inputs, registry, reporter) -> str:
        seen.append((settings, build_evaluation(settings, seed, policy, inputs)))
        raise KeyboardInterrupt

    monkeypatch.setattr(workflow, "evaluate_checkpoint", kept)
    for check in ("check_evaluation", "check_judges_served"):  # neither vLLM nor a judge is needed to plan
        monkeypatch.setattr(f"harness.preflight.{check}", lambda settings: [])

    def ask(options: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        given = ["eval", str(tiny_llama), *options, "--db", f"sqlite:///{tmp_path}/registry.db"]
        result = CliRunner().invoke(app, given)
        assert seen, result.output
        section, plan = seen.pop()
        found = {}
        for node in plan.nodes.values():
            for entry in node.settings.get("benchmarks", []):
                made = BENCHMARKS[entry["name"]]
                answers = made.answer_settings(entry, node.settings), made.answer_conditions(entry, node.settings)
                found[entry["name"]] = (entry["version"], *answers)
        return found, section.judge.model_dump()

    return ask


def measured(name: str, version: str, settings: dict, judge: tuple[str, str, dict]) -> Measured:
    cell = SimpleNamespace(benchmark=name, version=version, judge=judge[0], judge_kind=judge[1])
    return Measured(1, settings, judge[2], {}, [cell])


@pytest.mark.parametrize(
    "options",
    [
        ["--benchmarks", "alpaca_eval", "--variant", "starter", *OPENAI],
        ["--benchmarks", "alpaca_eval", "--variant", "starter", "--max-tokens", "96", "--max-model-len", "2048", *OPENAI],
        ["--benchmarks", "alpaca_eval", "--variant", "starter", "--limit", "5", "--seed", "7", "--temperature", "0.3", *OPENAI],
        ["--benchmarks", "mt_bench", "--variant", "starter", "--seed", "7", "--dtype", "bfloat16", *OPENAI],
        ["--benchmarks", "mt_bench", "--variant", "starter", "--temperature", "0", "--system-prompt", "Be 'brief'.", *OPENAI],
        ["--benchmarks", "human_eval", "--variant", "starter", "--engine", "transformers"],
        ["--benchmarks", "human_eval", "--samples", "10", "--temperature", "0.8", "--seed", "3"],
        ["--benchmarks", "truthful_qa", "--variant", "starter", "--limit", "4"],
        ["--benchmarks", "truthful_qa", "--chat-template", "--system-prompt", "S", "--dtype", "float32"],
        ["--benchmarks", "truthful_qa", "--likelihood-engine", "vllm", "--max-model-len", "4096"],
        ["--benchmarks", "truthful_qa_generation", "--chat-template", "--max-tokens", "64"],
        ["--benchmarks", "gsm8k", "--shots", "3", "--limit", "20", "--seed", "9", "--max-tokens", "128"],
        ["--benchmarks", "arc_challenge", "--engine", "transformers", "--chat-template"],
    ],
)
def test_the_command_typed_again_gives_the_same_answers_settings(options, asked, data):
    ((name, (version, settings, conditions)),) = asked(options)[0].items()
    judge = ("gpt-4.1", "openai", {"endpoint": "https://api.openai.com/v1"}) if "--judge" in options else ("", "none", {})
    seed = int(options[options.index("--seed") + 1]) if "--seed" in options else 42
    again = evaluation_options(measured(name, version, settings, judge), seed)
    assert asked(["--benchmarks", name, *again])[0] == {name: (version, settings, conditions)}, again


@pytest.mark.parametrize(
    "judging",
    [
        OPENAI,
        ["--judge", "openai:local", "--base-url", "http://judge:8000/v1", "--judge-option", "temperature=omit"],
        [*OPENAI, "--judge-option", "temperature=0.5", "--judge-option", "max_tokens=64"],
    ],
)
def test_the_command_names_the_same_endpoint_judge(judging, asked):
    given = ["--benchmarks", "mt_bench", "--variant", "starter"]
    found, section = asked([*given, *judging])
    config = {"endpoint": section["base_url"] or "https://api.openai.com/v1"}
    config |= {key: section[key] for key in ("temperature", "max_tokens") if section[key] is not None}
    one = measured("mt_bench", *found["mt_bench"][:2], (section["model"], "openai", config))
    assert asked(["--benchmarks", "mt_bench", *evaluation_options(one)])[1] == section
    assert "http://judge:8000/v1" not in evaluation_options(one, addresses=False)


def test_judges_with_weights_are_named_by_them():
    def judge(name: str, kind: str, config: dict, checkpoint: str | None = None) -> list[str]:
        one = measured("mt_bench", "official@1", {}, (name, kind, config))
        return evaluation_options(Measured(1, {}, config, {}, one.cells, checkpoint))

    reward = {"max_length": 2048, "dtype": "bfloat16"}
    expected = ["--judge", "run/gold_reward", "--judge-option", "max_length=2048", "--judge-option", "dtype=bfloat16"]
    assert judge("reward-model:f7ac7ef3", "reward_model", reward, "run/gold_reward") == expected
    assert judge("reward-model:f7ac7ef3", "reward_model", {"max_length": 4096, "dtype": "auto"}) == ["--judge", "f7ac7ef3"]
    served = {"dtype": "auto", "max_model_len": 8192, "endpoint": "vllm"}
    assert judge("serve:my-judge-0a1b2c3d", "serve", served) == [
        "--judge",
        "serve:my-judge",
        "--judge-option",
        "max_model_len=8192",
    ]
    assert judge("sandbox:unsafe_exec", "sandbox", {"mode": "unsafe_exec"}) == ["--unsafe-exec"]
    assert judge("sandbox:bubblewrap", "sandbox", {"mode": "bubblewrap"}) == []


@pytest.mark.parametrize(
    ("version", "name"),
    [("official@a", "official"), ("official+stand-in@a", "official"), ("v2@x", "v2"), ("starter@1", "starter")],
)
def test_the_variant_of_a_version(version, name):
    assert variant(version) == name
