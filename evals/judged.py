"""Stage program `judge`: verdicts and scores of stored answers, by an endpoint or by reward models.

Guarantee: a verdict is committed when it is made and a successful one never asked for again; failed ones are asked for
again by every later run. Where more than 1 % of a benchmark's judgments got no reply, the scores are stored (headline
withheld) and the stage ends with JudgeError, so that running the same command again completes them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.artifacts import write_durably
from core.errors import JudgeError, MissingInput, RecipeError
from core.stage import Stage, main
from db.models import Judgment
from db.registry import Registry
from evals import records
from evals.benchmark import MAX_FAILED, files_of, get_benchmark
from evals.judges import canaries
from evals.judges.bias import judge_bias
from evals.judges.cache import Ledger, spent_by_run
from evals.judges.judge import Judge, Key, Task, VerdictBenchmark
from evals.judges.openai_judge import OpenAIJudge, ServedJudge
from evals.judges.reward_judge import HeldOutRewardJudge, RewardModelJudge
from evals.verdict import Verdict


def run(stage: Stage) -> dict[str, Any]:
    """Returns {"judgments", "reused", "failed", "calls", "tokens", "micro_dollars", "evaluations": [keys]}."""
    entries = [e for e in stage.settings["benchmarks"] if get_benchmark(e["name"]).verdict in ("judge", "reward")]
    # Both before anything is spent: a judge without a key, or a benchmark without its files, is known at once.
    judges = {
        verdict: _make_judge(stage, verdict) for verdict in dict.fromkeys(get_benchmark(e["name"]).verdict for e in entries)
    }
    registry = records.open_registry(stage.spec)
    try:
        works = [_Work(stage, registry, entry, judges[get_benchmark(entry["name"]).verdict]) for entry in entries]
        total, done = sum(len(work.tasks) for work in works), sum(work.reused for work in works)
        stage.progress(done, total, "judgments")
        summaries = []
        # A judge that cannot go on ends its own benchmarks; what another judge says is still worth having.
        failed = _probe(stage, registry, works)
        for work in works:
            if work.judge not in failed:
                try:
                    work.judge_missing(lambda: _advance(stage, works, total))
                except JudgeError as error:
                    failed[work.judge] = error
            summaries.append(work.score())
    finally:
        for judge in judges.values():
            if isinstance(judge, OpenAIJudge):
                judge.close()
        registry.close()
    for error in failed.values():
        raise error
    write_durably(stage.work / "summary.json", json.dumps({"benchmarks": summaries}, indent=1, ensure_ascii=False))
    _require_replies(works)
    (stage.work / "judge-server.log").unlink(missing_ok=True)
    return {
        "judgments": total,
        "reused": done,
        "failed": sum(s["failed"] for s in summaries),
        "calls": sum(work.calls for work in works),
        "tokens": sum(s["tokens"] for s in summaries),
        "micro_dollars": sum(s["micro_dollars"] for s in summaries),
        "evaluations": [s["evaluation"] for s in summaries],
    }


class _Work:
    """One benchmark's judgments: what is stored, what is missing."""

    def __init__(self, stage: Stage, registry: Registry, entry: Mapping[str, Any], judge: Judge):
        benchmark = get_benchmark(entry["name"])
        assert isinstance(benchmark, VerdictBenchmark)
        self.registry, self.benchmark, self.judge, self.calls = registry, benchmark, judge, 0
        inputs = {name: Path(value["path"]) for name, value in stage.spec.inputs.items()}
        self.files = files_of(benchmark, entry["variant"], inputs)
        self.questions = benchmark.load(self.files, entry.get("limit"), entry.get("sample_seed", 0))
        config = judge.config(benchmark, self.files)
        fingerprint = stage.spec.inputs["policy"]["fingerprint"]
        with registry.write() as session:
            found, self.answers = records.complete_answers(session, fingerprint, benchmark, entry, stage.settings, self.questions)
            self.canary = found.checkpoint.provenance.get("canary")
            row = records.get_judge(session, judge.name, judge.kind, config, judge.fingerprint)
            evaluation = records.get_evaluation(session, found, row)
            self.evaluation_id, self.evaluation_key = evaluation.id, evaluation.key
            stored = records.stored_judgments(session, evaluation.id)
            if isinstance(judge, RewardModelJudge):
                judge.remember(records.latest_raws(session, row.id, found.version))
        self.tasks = benchmark.tasks(self.questions, self.answers, judge.kind)
        self.verdicts: dict[Key, Verdict] = {key: _verdict(row) for key, row in stored.items()}
        self.missing = [task for task in self.tasks if not self._succeeded(task)]
        self.run = stage.spec.run
        self.reused = len(self.tasks) - len(self.missing)
        self.attempted = 0

    def _succeeded(self, task: Task) -> bool:
        stored = self.verdicts.get(task.key)
        return stored is not None and stored.value is not None

    def judge_missing(self, report: Callable[[], None]) -> None:
        """Ask for every verdict that is not stored; each is committed as it comes, then `report` is called."""

        def store(verdicts: Sequence[Verdict]) -> None:
            with self.registry.write() as session:
                records.store_verdicts(session, self.evaluation_id, verdicts)
            self.verdicts |= {verdict.key: verdict for verdict in verdicts}
            self.attempted += len(verdicts)
            report()

        if self.missing and isinstance(self.judge, OpenAIJudge):
            self.calls += self.judge.judge(self.benchmark, self.files, self.missing, store, self.ledger())
        elif self.missing:
            self.calls = self.judge.judge(self.benchmark, self.files, self.missing, store)

    def ledger(self) -> Ledger:
        """Where an endpoint's replies to this evaluation are kept and charged."""
        return Ledger(self.registry, self.evaluation_id, self.judge.name, self.judge.endpoint, self.run)

    def first_to_ask(self) -> Task | None:
        """The first judgment that an endpoint must be asked for."""
        open_ones = (t for t in self.missing if t.unanswered is None and self.benchmark.decided(t) is None)
        return next(open_ones, None)

    @property
    def unreplied(self) -> int:
        """Judgments that failed for want of any reply: those that another run may well get."""
        found = [self.verdicts.get(task.key) for task in self.tasks]
        return sum(v is None or (v.value is None and not v.raw) for v in found)

    def score(self) -> dict[str, Any]:
        """Store the scores of what is judged; returns the benchmark's part of the summary."""
        judged = (self.questions, self.answers, self.verdicts, self.judge, self.files)
        rows = self.benchmark.scores(*judged)
        statistics = self.benchmark.statistics(*judged)
        bias = judge_bias(self.benchmark, self.tasks, self.verdicts, self.judge.kind)
        statistics |= {"bias": bias} if bias else {}
        flags = canaries.flags(canaries.texts_of(self.questions, self.answers), self.canary)
        complete = self.unreplied <= MAX_FAILED * len(self.tasks)
        with self.registry.write() as session:
            records.store_scores(session, self.evaluation_id, rows, complete, statistics, flags)
            spent = records.stored_judgments(session, self.evaluation_id).values()
        return {
            "benchmark": self.benchmark.name,
            "judge": self.judge.name,
            "evaluation": self.evaluation_key,
            "judgments": len(self.tasks),
            "reused": self.reused,
            "failed": sum(not self._succeeded(task) for task in self.tasks),
            "calls": self.calls,
            "tokens": sum(j.tokens_in + j.tokens_out for j in spent),
            "micro_dollars": sum(j.micro_dollars for j in spent),
            "scores": [row.withheld.fields() for row in rows],
        }


def _make_judge(stage: Stage, verdict: str) -> Judge:
    """The judge of the settings for judged benchmarks, the run's reward models for held-out rewards."""
    inputs, resources = stage.spec.inputs, {k: v for k, v in stage.spec.resources.items() if k != "judge"}
    settings = stage.settings["judge"] | stage.spec.resources.get("judge", {})

    def given(name: str) -> tuple[Path, str] | None:
        return (Path(inputs[name]["path"]), inputs[name]["fingerprint"]) if name in inputs else None

    judge = given("judge")
    if verdict == "reward":
        gold = judge if settings["kind"] == "reward_model" and settings.get("role") == "gold_reward" else given("gold_reward")
        proxy = given("reward")
        if proxy is None and gold is None:
            raise MissingInput("Held-out rewards need a reward model; give the stage the input `reward` or `gold_reward`.")
        return HeldOutRewardJudge(proxy, gold, settings, resources)
    if settings["kind"] == "openai":
        made = OpenAIJudge(settings, stage.work, stage.message)
        if made.price is None:
            stage.message(
                f"No price is known for the judge {made.name} at {made.base_url}: its cost is recorded as 0. Set "
                "evaluate.judge.price, or add a line to HARNESS_HOME/prices.yaml."
            )
        else:
            stage.message(
                f"{made.name}: {made.price.input:g} / {made.price.output:g} dollars per million tokens ({made.price.source})"
            )
        return made
    if settings["kind"] not in ("reward_model", "serve"):
        raise RecipeError(f"A judge of kind {settings['kind']!r} is not known; use openai, serve or reward_model.")
    if judge is None:
        raise MissingInput(f"A judge of kind {settings['kind']} needs a checkpoint; give the stage the input `judge`.")
    if settings["kind"] == "serve":
        return ServedJudge(*judge, settings, resources, stage.work, stage.message)
    return RewardModelJudge(*judge, settings, resources)


def _probe(stage: Stage, registry: Registry, works: Sequence[_Work]) -> dict[Judge, JudgeError]:
    """Ask an endpoint judge one small thing before it is asked anything dear; returns the judge that failed with its error."""
    asked = [work for work in works if isinstance(work.judge, OpenAIJudge) and work.first_to_ask() is not None]
    if not asked:
        return {}
    first, judge = asked[0], asked[0].judge
    judge.budget.spent = spent_by_run(registry, stage.spec.run)
    try:
        first.calls += judge.probe([(work.benchmark, work.files) for work in asked], first.first_to_ask().key, first.ledger())
    except JudgeError as error:
        return {judge: error}
    return {}


def _advance(stage: Stage, works: Sequence[_Work], total: int) -> None:
    stage.progress(sum(work.reused + work.attempted for work in works), total, "judgments")


def _require_replies(works: Sequence[_Work]) -> None:
    for work in works:
        if work.unreplied > MAX_FAILED * len(work.tasks):
            errors = [v.error for v in work.verdicts.values() if v.value is None and not v.raw]
            raise JudgeError(
                f"{work.unreplied} of {len(work.tasks)} judgments of {work.benchmark.name} got no reply (last: {errors[-1]}); "
                "run the same command again: the others are kept and not asked for again."
            )


def _verdict(row: Judgment) -> Verdict:
    return Verdict(
        row.question_id,
        row.value,
        row.turn,
        row.sample,
        row.game,
        row.error,
        row.raw,
        row.tokens_in,
        row.tokens_out,
        row.micro_dollars,
    )


if __name__ == "__main__":
    main(run)
