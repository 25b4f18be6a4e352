"""What the tests of the judge stage share: a policy whose answers are stored and never generated, specs, the ledger's sums."""

from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from core.stage import Spec, Stage
from db import complete_answer_set
from db.models import Cost, Evaluation, JudgeResponse, Judgment, Score
from db.registry import Registry
from evals import records
from evals.benchmark import BENCHMARKS
from tests.scripted_judge import says

CERTAIN = says("m", {"m": -0.1, "M": -2.4})
COMMON = {"seed": 1, "engine": "transformers", "max_model_len": 1024, "dtype": "auto", "system_prompt": None}
FILES = {
    "alpaca_eval": {"questions": "alpaca_eval.jsonl"},
    "arena_hard": {"questions": "arena_hard/question.jsonl", "baseline": "arena_hard/model_answer.jsonl"},
    "mt_bench": {"questions": "mt_bench/question.jsonl", "references": "mt_bench/reference_answer.jsonl"},
}


def entry(name: str, variant: str = "starter", **values: Any) -> dict[str, Any]:
    """An element of the stage's `benchmarks`."""
    return {"name": name, "variant": variant, "version": "starter@test", "limit": None, "sample_seed": 1, "decoding": {}} | values


def judge_settings(*servers: Any, **changes: Any) -> dict[str, Any]:
    """Settings of an endpoint judge at these servers, patient for milliseconds only."""
    settings = {
        "kind": "openai",
        "model": "scripted",
        "base_url": servers[0].url,
        "api_key_env": "",
        "concurrency": 4,
        "price": {"input": 10.0, "output": 30.0},
        "attempts": 2,
        "first_wait": 0.01,
    }
    if len(servers) > 1:
        settings["endpoints"] = [{"base_url": server.url} for server in servers]
    return settings | changes


class JudgeStage:
    """Makes judge stages over the starter set in one registry."""

    def __init__(self, registry: Registry, make_spec: Any, starter: Path, folder: Path):
        self.registry, self.make_spec, self.starter = registry, make_spec, starter
        self.policy = folder / "policy"
        self.set_weights(b"weights")

    def set_weights(self, weights: bytes) -> None:
        """The policy's folder is never loaded: judging reads answers, not weights."""
        self.policy.mkdir(exist_ok=True)
        (self.policy / "config.json").write_text("{}")
        (self.policy / "model.safetensors").write_bytes(weights)

    def spec(self, judge: dict[str, Any], *entries: dict[str, Any], inputs: dict[str, Path] | None = None, **fields: Any) -> Path:
        """A spec file; AlpacaEval's starter set unless `entries` say otherwise."""
        entries = entries or (entry("alpaca_eval"),)
        settings = COMMON | {"benchmarks": list(entries), "judge": judge}
        given = {"policy": self.policy} | (inputs or {})
        for chosen in entries:
            given |= {f"data/{chosen['name']}/{a}": self.starter / path for a, path in FILES[chosen["name"]].items()} | given
        return self.make_spec("judged", settings, given, registry=self.registry.url, **fields)

    def stage(self, *arguments: Any, **fields: Any) -> Stage:
        """The same, as the program sees it, its answers stored."""
        stage = Stage(Spec.load(self.spec(*arguments, **fields)))
        stage.work.mkdir(parents=True, exist_ok=True)
        self.answer(stage)
        return stage

    def answer(self, stage: Stage, suffix: str = "") -> None:
        """Store an answer to every question of the stage's benchmarks."""
        for chosen in stage.settings["benchmarks"]:
            benchmark = BENCHMARKS[chosen["name"]]
            prefix = f"data/{benchmark.name}/"
            files = {n.removeprefix(prefix): stage.input(n) for n in stage.spec.inputs if n.startswith(prefix)}
            questions = benchmark.load(files, chosen["limit"], chosen["sample_seed"])
            common = {"sample": 0, "prompt": "p", "output_tokens": 7, "finish_reason": "stop"}
            rows = [
                common | {"question_id": q.id, "turn": turn, "text": f"Answer {turn} to {q.id}.{suffix}"}
                for q in questions
                for turn in range(1, len(q.turns) + 1)
            ]
            with self.registry.write() as session:
                policy = stage.spec.inputs["policy"]
                checkpoint = records.get_checkpoint(session, policy["fingerprint"], policy["path"])
                found = records.get_answer_set(session, checkpoint, benchmark, chosen, stage.settings, len(questions))
                records.store_answers(session, found.id, rows)
                complete_answer_set(session, found.id)

    def charged(self) -> dict[str, tuple[int, int]]:
        """(tokens, micro-dollars) as each part of the ledger has them."""
        with self.registry.read() as session:
            judgments = session.execute(
                select(func.sum(Judgment.tokens_in + Judgment.tokens_out), func.sum(Judgment.micro_dollars))
            ).one()
            kept = session.execute(
                select(func.sum(JudgeResponse.tokens_in + JudgeResponse.tokens_out), func.sum(JudgeResponse.micro_dollars))
            ).one()
            costs = {
                scope: session.execute(
                    select(func.sum(Cost.amount), func.sum(Cost.micro_dollars)).where(Cost.scope == scope)
                ).one()
                for scope in ("evaluation", "run")
            }
        return {name: (int(a or 0), int(b or 0)) for name, (a, b) in ({"judgments": judgments, "kept": kept} | costs).items()}

    def verdicts(self) -> dict[tuple[str, int, int], float | None]:
        """(question id, turn, game) -> value, over all evaluations."""
        with self.registry.read() as session:
            return {(j.question_id, j.turn, j.game): j.value for j in session.scalars(select(Judgment))}

    def scores(self) -> dict[str, tuple[float | None, float | None, float | None]]:
        with self.registry.read() as session:
            return {s.metric: (s.value, s.low, s.high) for s in session.scalars(select(Score))}

    def statuses(self) -> list[str]:
        with self.registry.read() as session:
            return list(session.scalars(select(Evaluation.status)))
