"""The judge stage: stored answers in, verdicts and scores out, nothing paid for twice."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from sqlalchemy import func, select

from core.errors import JudgeError, MissingInput
from core.stage import Spec, Stage
from db import complete_answer_set
from db.models import AnswerSet, Conversation, Cost, Evaluation, Judge, Judgment, Score
from evals import judged, records
from evals.benchmark import BENCHMARKS
from evals.verdict import Verdict
from tests.conftest import ROOT
from tests.scripted_judge import Scripted, ScriptedJudgeServer, fails, says

CERTAIN = says("m", {"m": -0.1, "M": -2.4})
COMMON = {"seed": 1, "engine": "transformers", "max_model_len": 1024, "dtype": "auto", "system_prompt": None}


def entry(name, variant="starter", **values):
    return {"name": name, "variant": variant, "version": "starter@test", "limit": None, "sample_seed": 1, "decoding": {}} | values


def inputs_of(starter, *names):
    files = {
        "alpaca_eval": {"questions": "alpaca_eval.jsonl"},
        "arena_hard": {"questions": "arena_hard/question.jsonl", "baseline": "arena_hard/model_answer.jsonl"},
        "mt_bench": {"questions": "mt_bench/question.jsonl", "references": "mt_bench/reference_answer.jsonl"},
    }
    return {f"data/{name}/{asset}": starter / path for name in names for asset, path in files[name].items()}


@pytest.fixture
def policy(tmp_path):
    """A checkpoint folder that is never loaded: judging reads answers, not weights."""
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def open_stage(make_spec, registry):
    """`open_stage(settings, inputs, **fields) -> Stage`, as the program sees it."""

    def make(settings, inputs, **fields):
        stage = Stage(Spec.load(make_spec("judged", settings, inputs, registry=registry.url, **fields)))
        stage.work.mkdir(parents=True, exist_ok=True)
        return stage

    return make


def answer_all(registry, stage, skip=0):
    """Store an answer to every question of the stage's benchmarks, the last `skip` of each left out."""
    for chosen in stage.settings["benchmarks"]:
        benchmark = BENCHMARKS[chosen["name"]]
        prefix = f"data/{benchmark.name}/"
        files = {n.removeprefix(prefix): stage.input(n) for n in stage.spec.inputs if n.startswith(prefix)}
        questions = benchmark.load(files, chosen["limit"], chosen["sample_seed"])
        rows = [
            {
                "question_id": q.id,
                "turn": turn,
                "sample": 0,
                "prompt": "p",
                "text": f"Answer {turn} to {q.id}.",
                "output_tokens": 7,
            }
            | {"finish_reason": "stop"}
            for q in questions
            for turn in range(1, len(q.turns) + 1)
        ]
        with registry.write() as session:
            policy = stage.spec.inputs["policy"]
            checkpoint = records.get_checkpoint(session, policy["fingerprint"], policy["path"])
            found = records.get_answer_set(session, checkpoint, benchmark, chosen, stage.settings, len(questions))
            records.store_answers(session, found.id, rows[: len(rows) - skip])
            complete_answer_set(session, found.id)


@pytest.fixture
def endpoint(starter, policy, monkeypatch):
    """`endpoint(server) -> (settings, inputs)` of an AlpacaEval judged by that server."""
    monkeypatch.setenv("TEST_JUDGE_KEY", "k")

    def make(server, **judge):
        settings = COMMON | {
            "benchmarks": [entry("alpaca_eval")],
            "judge": {
                "kind": "openai",
                "model": "scripted",
                "base_url": server if isinstance(server, str) else server.url,
                "api_key_env": "TEST_JUDGE_KEY",
                "concurrency": 4,
                "price": {"input": 10.0, "output": 30.0},
                "attempts": 2,
                "first_wait": 0.01,
            }
            | judge,
        }
        return settings, {"policy": policy} | inputs_of(starter, "alpaca_eval")

    return make


def test_a_rerun_asks_nothing_and_gives_the_same_scores(registry, open_stage, endpoint):
    with ScriptedJudgeServer(lambda request, number: CERTAIN) as server:
        stage = open_stage(*endpoint(server))
        answer_all(registry, stage)
        first = judged.run(stage)
        summary = json.loads((stage.work / "summary.json").read_text())
        assert (first["judgments"], first["calls"], first["reused"], first["failed"]) == (16, 1 + 16, 0, 0)
        again = judged.run(open_stage(*endpoint(server, concurrency=1)))
        assert (again["calls"], again["reused"]) == (0, 16)
        assert again["evaluations"] == first["evaluations"]
        # A first small request, then one for each judgment.
        assert len(server.requests) == 1 + 16
    assert summary["benchmarks"][0]["scores"]
    with registry.read() as session:
        evaluation = session.scalars(select(Evaluation)).one()
        assert evaluation.status == "complete" and evaluation.key == first["evaluations"][0]
        score = session.scalars(select(Score).where(Score.headline)).one()
        assert (score.metric, score.n, score.n_failed) == ("win_rate", 16, 0)
        assert score.low < score.value < score.high
        cost = session.scalars(select(Cost).where(Cost.scope == "evaluation")).one()
        assert (cost.scope_key, cost.amount, cost.micro_dollars) == (evaluation.key, 17 * 110, 17 * 1300)


def test_failures_are_stored_counted_and_only_they_are_asked_again(registry, open_stage, endpoint):
    down = [True]

    def script(request, number):
        bad = "sticker residue" in request["messages"][-1]["content"] or "rowing boat" in request["messages"][-1]["content"]
        return fails(503) if bad and down[0] else CERTAIN

    with ScriptedJudgeServer(script) as server:
        stage = open_stage(*endpoint(server))
        answer_all(registry, stage)
        with pytest.raises(JudgeError, match="2 of 16 judgments of alpaca_eval got no reply"):
            judged.run(stage)
        with registry.read() as session:
            score = session.scalars(select(Score).where(Score.headline)).one()
            assert (score.value, score.n, score.n_failed) == (None, 14, 2)
            assert score.worst < score.best
            assert session.scalars(select(Evaluation.status)).one() == "partial"
            assert session.scalar(select(func.count()).where(Judgment.error.is_not(None))) == 2
        down[0] = False
        asked = len(server.requests)
        metrics = judged.run(open_stage(*endpoint(server)))
        assert len(server.requests) - asked == 2
    assert (metrics["reused"], metrics["failed"]) == (14, 0)
    with registry.read() as session:
        score = session.scalars(select(Score).where(Score.headline)).one()
        assert score.value is not None and score.n == 16
        assert session.scalars(select(Evaluation.status)).one() == "complete"


def test_what_an_unreadable_reply_cost_is_not_forgotten(registry, open_stage, endpoint):
    readable = [False]

    def script(request, number):
        return CERTAIN if readable[0] or "sticker residue" not in request["messages"][-1]["content"] else says("m")

    with ScriptedJudgeServer(script) as server:
        stage = open_stage(*endpoint(server))
        answer_all(registry, stage)
        metrics = judged.run(stage)
        assert (metrics["failed"], metrics["micro_dollars"]) == (1, (1 + 16) * 1300)
        readable[0] = True
        metrics = judged.run(open_stage(*endpoint(server)))
    assert (metrics["failed"], metrics["calls"], metrics["micro_dollars"]) == (0, 1, 18 * 1300)


def test_a_stored_success_is_never_replaced(registry, open_stage, endpoint):
    with ScriptedJudgeServer(lambda request, number: CERTAIN) as server:
        stage = open_stage(*endpoint(server))
        answer_all(registry, stage)
        judged.run(stage)
    with registry.write() as session:
        row = session.scalars(select(Judgment)).first()
        records.store_verdicts(session, row.evaluation_id, [Verdict(row.question_id, None, error="later failure")])
        before = row.id, row.value
    with registry.read() as session:
        kept = session.get_one(Judgment, before[0])
        assert (kept.value, kept.error) == (before[1], None)


def test_another_endpoint_is_another_judge(registry, open_stage, endpoint):
    with ScriptedJudgeServer(lambda r, n: CERTAIN) as one, ScriptedJudgeServer(lambda r, n: CERTAIN) as other:
        stage = open_stage(*endpoint(one))
        answer_all(registry, stage)
        first, second = judged.run(stage), judged.run(open_stage(*endpoint(other)))
    assert first["evaluations"] != second["evaluations"]
    assert second["calls"] == 1 + 16
    with registry.read() as session:
        assert session.scalar(select(func.count()).select_from(Judge)) == 2


def test_incomplete_answers_name_the_stage_to_run(registry, open_stage, endpoint):
    with ScriptedJudgeServer(lambda request, number: CERTAIN) as server:
        stage = open_stage(*endpoint(server))
        with pytest.raises(MissingInput, match="16 of 16 answers to alpaca_eval .* evals.answer"):
            judged.run(stage)
        answer_all(registry, stage, skip=3)
        with pytest.raises(MissingInput, match="3 of 16 answers"):
            judged.run(stage)
        assert server.requests == []


def test_a_judge_without_key_asks_and_stores_nothing(registry, open_stage, endpoint, monkeypatch):
    monkeypatch.delenv("TEST_JUDGE_KEY")
    stage = open_stage(*endpoint("http://127.0.0.1:9/v1"))
    answer_all(registry, stage)
    with pytest.raises(JudgeError, match="TEST_JUDGE_KEY"):
        judged.run(stage)
    with registry.read() as session:
        assert session.scalar(select(func.count()).select_from(Judge)) == 0


def test_a_killed_stage_buys_no_judgment_twice(registry, make_spec, open_stage, endpoint):
    slow = Scripted(body=CERTAIN.body, delay=0.15)
    with ScriptedJudgeServer(lambda request, number: slow) as server:
        settings, inputs = endpoint(server, concurrency=1)
        answer_all(registry, open_stage(settings, inputs))
        spec = make_spec("judged", settings, inputs, registry=registry.url)
        process = subprocess.Popen(
            [sys.executable, "-m", "evals.judged", str(spec)], cwd=ROOT, env=os.environ, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 60
        while len(server.requests) < 6 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with registry.read() as session:
            stored = session.scalar(select(func.count()).select_from(Judgment))
        asked = len(server.requests)
        # The first small request, and the one in flight.
        assert 0 < stored < 16 and asked - stored <= 2
        finished = subprocess.run([sys.executable, "-m", "evals.judged", str(spec)], cwd=ROOT, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
        assert len(server.requests) - asked == 16 - stored
    with registry.read() as session:
        assert session.scalars(select(Score.n).where(Score.headline)).one() == 16


@pytest.fixture
def reward_models(tiny_llama, tmp_path):
    """Two tiny reward models with different random heads."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1)
        torch.nn.init.normal_(model.score.weight)
        folder = tmp_path / f"reward-{seed}"
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
        folders.append(folder)
    return folders


def test_reward_models_judge_every_benchmark_and_the_held_out_prompts(
    registry, open_stage, run_stage, starter, policy, reward_models, tmp_path
):
    prompts = tmp_path / "prompts_heldout.jsonl"
    rows = [json.loads(line) for line in (starter / "prompts.jsonl").read_text().splitlines()[:6]]
    prompts.write_text("".join(json.dumps({"id": r["id"], "source": "starter", "messages": r["messages"]}) + "\n" for r in rows))
    names = ("alpaca_eval", "arena_hard", "mt_bench")
    settings = COMMON | {
        "benchmarks": [*map(entry, names), entry("held_out_reward", "run")],
        "judge": {"kind": "reward_model", "role": "gold_reward"},
    }
    inputs = {"policy": policy, "reward": reward_models[0], "judge": reward_models[1]} | inputs_of(starter, *names)
    inputs["data/held_out_reward/questions"] = prompts
    answer_all(registry, open_stage(settings, inputs))

    artifact = run_stage("evals.judged", "judged", settings, inputs, registry=registry.url)
    assert artifact.metrics["judgments"] == 16 + 12 + 16 + 6
    assert artifact.metrics["failed"] == artifact.metrics["micro_dollars"] == 0
    found = {b["benchmark"]: b for b in json.loads(artifact.file("summary.json").read_text())["benchmarks"]}
    headlines = {name: next(s for s in b["scores"] if s["headline"]) for name, b in found.items()}
    assert {name: score["metric"] for name, score in headlines.items()} == {
        "alpaca_eval": "win_rate",
        "arena_hard": "score",
        "mt_bench": "score",
        "held_out_reward": "reward",
    }
    for name in names:
        assert found[name]["judge"].startswith("reward-model:")
        assert "sigmoid of reward difference" in headlines[name]["method"]
        assert headlines[name]["low"] < headlines[name]["value"] < headlines[name]["high"]
    held_out = {s["metric"]: s for s in found["held_out_reward"]["scores"]}
    assert held_out["reward"]["value"] == held_out["gold_reward"]["value"] != held_out["proxy_reward"]["value"]
    assert held_out["reward"]["method"].startswith("mean gold reward")
    assert held_out["answer_tokens"]["value"] == 7
    assert held_out["reward"]["worst"] is None

    from train.scorers import make_scorer

    stored = rows[0]["messages"] + [{"role": "assistant", "content": f"Answer 1 to {rows[0]['id']}."}]
    with registry.read() as session:
        held = select(AnswerSet.id).where(AnswerSet.benchmark == "held_out_reward")
        judgment = session.scalars(
            select(Judgment)
            .join(Evaluation)
            .where(Evaluation.answer_set_id == held.scalar_subquery(), Judgment.question_id == rows[0]["id"])
        ).one()
        assert judgment.value == pytest.approx(make_scorer("bradley_terry", reward_models[1]).score([stored])[0], abs=1e-4)
        assert judgment.raw["proxy_reward"] == pytest.approx(
            make_scorer("bradley_terry", reward_models[0]).score([stored])[0], abs=1e-4
        )

    again = judged.run(open_stage(settings, inputs))
    assert (again["calls"], again["reused"]) == (0, 50)
    assert again["evaluations"] == artifact.metrics["evaluations"]

    def compared(session) -> set[str]:
        return set(session.scalars(select(Judgment.shown).where(Judgment.shown.is_not(None))))

    with registry.read() as session:
        kept = {row.key: row.messages for row in session.scalars(select(Conversation))}
        assert set(kept) == compared(session)
        one = session.scalars(select(Judgment).where(Judgment.shown.is_not(None))).first()
        assert one.shown == one.raw["other"] and [message["role"] for message in kept[one.shown]] == ["user", "assistant"]
        assert session.scalar(select(func.count(Judgment.id)).where(Judgment.shown.is_not(None))) == 16 + 12 + 16

    # Another policy meets the same baselines: only its own answers are scored, once, and by two models if held out.
    (policy / "model.safetensors").write_bytes(b"other weights")
    answer_all(registry, open_stage(settings, inputs))
    other = judged.run(open_stage(settings, inputs))
    assert (other["calls"], other["reused"]) == (16 + 12 + 16 + 2 * 6, 0)
    with registry.read() as session:
        assert compared(session) == set(kept), "what is compared with is kept once"


def test_a_reward_judge_without_its_checkpoint_says_which_input(open_stage, starter, policy):
    settings = COMMON | {"benchmarks": [entry("alpaca_eval")], "judge": {"kind": "reward_model", "role": "gold_reward"}}
    with pytest.raises(MissingInput, match="input `judge`"):
        judged.run(open_stage(settings, {"policy": policy} | inputs_of(starter, "alpaca_eval")))
