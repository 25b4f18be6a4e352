"""A judge that is retired, misspelt or behind a wrong key is found out before a run trains anything."""

import pytest

from core.errors import JudgeError
from evals.judges import reachable
from evals.judges.reachable import require_served
from harness.preflight import check_judges_served
from harness.recipe_file import load_recipe
from tests.scripted_judge import Scripted, ScriptedJudgeServer, fails, says


def _models(*names: str, owner: str = "vllm") -> Scripted:
    rows = [{"id": name, "object": "model", "created": 0, "owned_by": owner} for name in names]
    return Scripted(body={"object": "list", "data": rows})


def _asked(models: Scripted | None, model: str = "judge-7b") -> list[str]:
    with ScriptedJudgeServer(lambda request, number: says("never asked"), models) as server:
        try:
            return require_served({"model": model, "base_url": server.url, "api_key_env": ""}, "evaluate.judge")
        finally:
            assert server.requests == [], "nothing that costs anything"


def test_a_served_model_and_an_endpoint_that_says_nothing_pass() -> None:
    assert _asked(_models("judge-7b")) == []
    assert _asked(None) == []
    assert _asked(Scripted(body="<html>welcome</html>")) == []
    assert _asked(fails(500)) == []
    assert _asked(_models("other", owner="a gateway")) == []  # gateways route to what they do not list


def test_a_model_that_vllm_does_not_serve_is_named_with_what_it_serves() -> None:
    with pytest.raises(JudgeError, match="judge-8b is not served.*evaluate.judge.model=MODEL.*It serves judge-7b"):
        _asked(_models("judge-7b"), "judge-8b")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key(status: int) -> None:
    with pytest.raises(JudgeError, match=f"refuses the key .{status}."):
        _asked(fails(status))


def test_a_retired_model_of_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one host whose list is complete: the real one is out of reach, so the scripted one takes its name."""
    with ScriptedJudgeServer(lambda request, number: says("never asked"), fails(404, code="model_not_found")) as server:
        monkeypatch.setattr(reachable, "OPENAI_URL", server.url)
        with pytest.raises(JudgeError, match="gpt-4-1106-preview is not served.*retired"):
            require_served({"model": "gpt-4-1106-preview", "base_url": server.url, "api_key_env": ""}, "evaluate.judge")


def test_an_endpoint_that_is_down_is_a_note_and_no_error() -> None:
    settings = {"model": "m", "base_url": "http://127.0.0.1:9/v1", "api_key_env": ""}
    assert require_served(settings, "evaluate.judge") == [
        "The judge m will be needed, and http://127.0.0.1:9/v1 cannot be reached now."
    ]


def test_both_judges_of_a_run_are_asked_and_local_ones_are_not() -> None:
    judge = "{kind: openai, model: m, base_url: 'http://127.0.0.1:9/v1', api_key_env: ''}"
    recipe = load_recipe("quickstart", [f"evaluate.judge={judge}"])
    assert len(check_judges_served(recipe.evaluate)) == 1
    assert check_judges_served(load_recipe("quickstart").evaluate) == []
    annotation = "{model: n, base_url: 'http://127.0.0.1:9/v1', api_key_env: ''}"
    other = load_recipe(
        "quickstart",
        [
            "reward=null",
            "gold_reward=null",
            f"annotate={{scorer: judge, judge: {annotation}}}",
            f"evaluate.judge={judge}",
            "evaluate.held_out_reward=false",
            "hooks=[]",
        ],
    )
    assert len(check_judges_served(other.evaluate, other.annotate.judge)) == 2
