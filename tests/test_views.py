"""What the leaderboard and the run pages are told, from a registry on each database."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, select

from core.errors import RegistryError
from core.fingerprint import digest
from db import Registry, insert_ignore, models, upsert
from db.views import (
    Cell,
    groups,
    iteration_curves,
    leaderboard,
    preference_statistics,
    rank_ranges,
    run_status,
    runs,
    scores_of,
    training_curves,
)

pytest_plugins = ["tests.postgres"]

NOON = datetime(2024, 5, 13, 12, tzinfo=UTC)


class Writer:
    """Fills a registry row by row, each method one row and what it stands on."""

    def __init__(self, registry: Registry):
        self.registry = registry

    def row(self, model: type[models.Base], key: dict[str, Any], /, **values: Any) -> int:
        with self.registry.write() as session:
            return upsert(session, model, key, values).id

    def run(self, name: str = "night", **values: Any) -> int:
        common = {"recipe_name": "quickstart", "recipe": {"seed": 1}, "recipe_hash": "r" * 64, "status": "running"}
        return self.row(models.Run, {"name": name}, **common | values)

    def checkpoint(self, name: str, kind: str = "iteration", **values: Any) -> int:
        return self.row(
            models.Checkpoint, {"fingerprint": digest(name)}, **{"name": name, "kind": kind, "source": "trained"} | values
        )

    def part(self, run: int, checkpoint: int, role: str, iteration: int = 0) -> None:
        self.row(models.RunCheckpoint, {"run_id": run, "role": role, "iteration": iteration}, checkpoint_id=checkpoint)

    def score(
        self,
        checkpoint: int,
        value: float | None,
        benchmark: str = "arena_hard",
        judge: str = "judge-a",
        minutes: int = 0,
        settings: dict[str, Any] | None = None,
        questions: int = 500,
        status: str = "complete",
        metric: str = "score",
        headline: bool = True,
        tokens: float | None = None,
    ) -> int:
        """A score with an interval of +-2; returns the id of its evaluation."""
        settings = settings or {"limit": None}
        judge_id = self.row(models.Judge, {"key": digest(judge)}, name=judge, kind="openai")
        key = digest([checkpoint, benchmark, settings])
        answers = {"checkpoint_id": checkpoint, "benchmark": benchmark, "version": "v0.1", "settings": settings}
        answers |= {"settings_hash": digest(settings), "status": "complete", "n_questions": questions, "mean_tokens": tokens}
        answer_set = self.row(models.AnswerSet, {"key": key}, **answers)
        values = {
            "answer_set_id": answer_set,
            "judge_id": judge_id,
            "status": status,
            "finished_at": NOON + timedelta(minutes=minutes),
        }
        evaluation = self.row(models.Evaluation, {"key": digest([key, judge])}, **values)
        interval = {"low": None, "high": None} if value is None else {"low": value - 2, "high": value + 2}
        counts = {"n": questions, "n_failed": 0, "method": "bootstrap over prompts", "headline": headline}
        self.row(models.Score, {"evaluation_id": evaluation, "metric": metric}, value=value, **interval, **counts)
        return evaluation

    def stage(self, run: int, name: str, program: str, **values: Any) -> int:
        return self.row(
            models.StageRun, {"run_id": run, "name": name}, **{"program": program, "key": digest(name), "status": "done"} | values
        )


@pytest.fixture
def opened(database_url: str):
    registry = Registry.open(database_url)
    yield registry
    registry.close()


@pytest.fixture
def writer(opened: Registry) -> Writer:
    return Writer(opened)


def board(opened: Registry, **options: Any):
    with opened.read() as session:
        return leaderboard(session, **options)


# The leaderboard


def test_a_row_says_what_the_checkpoint_is_and_what_was_measured(opened: Registry, writer: Writer):
    run = writer.run()
    sft = writer.checkpoint("sft", "sft", run_id=run, stage_key=digest("sft"))
    first = writer.checkpoint("iteration 1", run_id=run, iteration=1, parent_id=sft)
    evaluation = writer.score(first, 41.0, minutes=5)
    row = board(opened)[1]
    assert (row.checkpoint_id, row.name, row.kind, row.source, row.iteration) == (first, "iteration 1", "iteration", "trained", 1)
    assert (row.run, row.parent, row.fingerprint) == ("night", "sft", digest("iteration 1"))
    cell = row.cells["arena_hard"]
    assert (cell.value, cell.low, cell.high, cell.n, cell.n_failed) == (41.0, 39.0, 43.0, 500, 0)
    assert (cell.metric, cell.method, cell.judge, cell.judge_kind) == ("score", "bootstrap over prompts", "judge-a", "openai")
    assert (cell.version, cell.settings_hash, cell.evaluation_id) == ("v0.1", digest({"limit": None}), evaluation)
    assert cell.finished_at == NOON + timedelta(minutes=5) and cell.complete and cell.headline and cell.higher_is_better is True


def test_a_checkpoint_without_evaluation_has_an_empty_row_and_a_reward_model_none(opened: Registry, writer: Writer):
    writer.checkpoint("base", "base")
    writer.checkpoint("reward", "reward")
    writer.checkpoint("gold", "gold_reward")
    rows = board(opened)
    assert [row.name for row in rows] == ["base"]
    assert (rows[0].cells, rows[0].seconds, rows[0].answer_tokens, rows[0].held_out_reward) == ({}, None, None, None)


def test_the_default_cell_is_the_newest_of_the_complete_ones_with_most_questions(opened: Registry, writer: Writer):
    policy = writer.checkpoint("policy")
    writer.score(policy, 1.0, judge="old", minutes=1)
    writer.score(policy, 2.0, judge="new", minutes=2)
    writer.score(policy, 3.0, judge="unfinished", minutes=3, status="partial")
    writer.score(policy, 4.0, judge="new", minutes=4, settings={"limit": 20}, questions=20)
    row = board(opened)[0]
    assert row.cells["arena_hard"].value == 2.0
    assert [cell.value for cell in row.evaluations["arena_hard"]] == [2.0, 1.0, 4.0, 3.0]
    limited = row.evaluations["arena_hard"][2]
    assert row.cell("arena_hard", limited.group) is limited
    assert row.cell("arena_hard", "another group") is None and row.cell("mt_bench") is None


def test_only_the_headline_metric_is_a_cell_and_all_metrics_are_scores(opened: Registry, writer: Writer):
    policy = writer.checkpoint("policy")
    writer.score(policy, 30.0)
    writer.score(policy, 35.0, metric="win_rate", headline=False)
    writer.score(policy, 6.5, benchmark="mt_bench")
    assert {name: cell.metric for name, cell in board(opened)[0].cells.items()} == {"arena_hard": "score", "mt_bench": "score"}
    with opened.read() as session:
        scores = scores_of(session, policy)
    assert [(score.benchmark, score.metric, score.value) for score in scores] == [
        ("arena_hard", "score", 30.0),
        ("arena_hard", "win_rate", 35.0),
        ("mt_bench", "score", 6.5),
    ]


def test_a_withheld_headline_is_a_cell_without_value(opened: Registry, writer: Writer):
    writer.score(writer.checkpoint("policy"), None)
    assert board(opened)[0].cells["arena_hard"].value is None


def test_cells_that_differ_in_judge_or_settings_are_of_different_groups(opened: Registry, writer: Writer):
    first, second = writer.checkpoint("first"), writer.checkpoint("second")
    writer.score(first, 1.0)
    writer.score(second, 2.0)
    writer.score(second, 3.0, judge="judge-b", minutes=9)
    writer.score(second, 4.0, settings={"limit": 20}, questions=20)
    found = groups(board(opened))["arena_hard"]
    assert [group.checkpoints for group in found] == [2, 1, 1]
    assert found[0].judge == "judge-a" and found[0].settings_hash == digest({"limit": None})
    rows = board(opened)
    with pytest.raises(ValueError, match="2 comparability groups"):
        rank_ranges({row.name: row.cells["arena_hard"] for row in rows})
    assert rank_ranges({row.name: row.cell("arena_hard", found[0].key) for row in rows}) == {"first": (1, 2), "second": (1, 2)}


def test_a_run_keeps_its_own_and_the_shared_checkpoints(opened: Registry, writer: Writer):
    night, day = writer.run("night"), writer.run("day")
    base = writer.checkpoint("base", "base", run_id=day)
    mine = writer.checkpoint("mine", run_id=night)
    other = writer.checkpoint("other", run_id=day)
    writer.part(night, base, "base")
    for policy in (base, mine, other):
        writer.score(policy, 10.0)
        writer.score(policy, 5.0, benchmark="mt_bench")
    assert [row.name for row in board(opened, run="night")] == ["base", "mine"]
    assert [set(row.cells) for row in board(opened, run="night", benchmarks=["mt_bench"])] == [{"mt_bench"}] * 2
    with pytest.raises(RegistryError, match="no run named 'dusk'; the newest are day, night"):
        board(opened, run="dusk")


def test_seconds_of_an_iteration_are_those_of_its_training_stages(opened: Registry, writer: Writer):
    run = writer.run()
    writer.checkpoint("sft", "sft", run_id=run, stage_key=digest("sft"))
    writer.checkpoint("iteration 1", run_id=run, iteration=1)
    writer.stage(run, "sft", "train.sft", seconds=7.0)
    for name, seconds in (("generate", 10.0), ("annotate", 20.0), ("dpo", 30.0)):
        writer.stage(run, f"{name}[1]", f"train.{name}", iteration=1, seconds=seconds)
    writer.stage(run, "answer[1]", "evals.answer", iteration=1, seconds=1000.0)
    writer.stage(run, "dpo[2]", "train.dpo", iteration=2, seconds=500.0)
    assert [row.seconds for row in board(opened)] == [7.0, 60.0]


def test_reward_and_answer_length_stand_in_the_row(opened: Registry, writer: Writer):
    policy = writer.checkpoint("policy")
    writer.score(policy, 1.25, benchmark="held_out_reward", questions=100, tokens=300.0)
    writer.score(policy, 40.0, questions=300, tokens=500.0)
    writer.score(policy, 50.0, benchmark="truthful_qa", questions=817)
    row = board(opened)[0]
    assert (row.held_out_reward, row.answer_tokens) == (1.25, 450.0)


def test_the_length_of_answers_is_the_same_whichever_metrics_are_shown(opened: Registry, writer: Writer):
    policy = writer.checkpoint("policy")
    for metric in ("length_controlled_winrate", "win_rate"):
        writer.score(
            policy, 40.0, benchmark="alpaca_eval", questions=300, tokens=500.0, metric=metric, headline=metric != "win_rate"
        )
    writer.score(policy, 8.0, benchmark="mt_bench", questions=100, tokens=100.0)
    (row,) = board(opened, metrics=["alpaca_eval/win_rate"])
    assert "alpaca_eval/win_rate" in row.cells and row.answer_tokens == board(opened)[0].answer_tokens == 400.0


def test_the_number_of_queries_does_not_grow_with_the_registry(registry: Registry):
    writer, statements = Writer(registry), []
    event.listen(registry._reader, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    counts = []
    for size in (2, 20):
        for i in range(size):
            writer.score(writer.checkpoint(f"policy {i}"), float(i))
        statements.clear()
        assert len(board(registry)) == size
        counts.append(len(statements))
    assert counts[0] == counts[1] <= 10


# Ranks


def cell(value: float | None, low: float | None = None, high: float | None = None, **changes: Any) -> Cell:
    fields: dict[str, Any] = dict.fromkeys(Cell.__dataclass_fields__)
    fields |= {"value": value, "low": low, "high": high, "group": "g", "metric": "score", "higher_is_better": True}
    return Cell(**fields | changes)


def test_overlapping_intervals_share_ranks():
    cells = {"a": cell(90, 85, 95), "b": cell(80, 75, 86), "c": cell(70, 65, 74), "d": cell(None), "e": None}
    assert rank_ranges(cells) == {"a": (1, 2), "b": (1, 2), "c": (3, 3)}


def test_where_lower_is_better_the_order_turns():
    cells = {"a": cell(90, 85, 95, higher_is_better=False), "b": cell(10, 5, 15, higher_is_better=False)}
    assert rank_ranges(cells) == {"a": (2, 2), "b": (1, 1)}


def test_no_cells_have_no_ranks_and_a_metric_without_direction_none():
    assert rank_ranges({}) == {}
    with pytest.raises(ValueError, match="no better direction"):
        rank_ranges({"a": cell(1.0, higher_is_better=None)})


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5), st.integers(0, 5)), max_size=20))
def test_rank_ranges_are_their_definition(points: list[tuple[int, int, int]]):
    cells = {i: cell(value, value - below, value + above) for i, (value, below, above) in enumerate(points)}
    expected = {
        i: (
            1 + sum(other.low > mine.high for other in cells.values()),
            sum(other.high >= mine.low for other in cells.values()),
        )
        for i, mine in cells.items()
    }
    found = rank_ranges(cells)
    assert found == expected
    assert all(1 <= best <= worst <= len(points) for best, worst in found.values())


# Runs


def test_runs_are_listed_newest_first_with_their_progress(opened: Registry, writer: Writer):
    writer.run("first", status="done", finished_at=NOON)
    night = writer.run("night", heartbeat_at=NOON)
    best = writer.checkpoint("iteration 1", run_id=night)
    writer.run("night", best_checkpoint_id=best, heartbeat_at=NOON)
    for name, status, seconds in (("sft", "reused", 5.0), ("dpo[1]", "done", 10.0), ("dpo[2]", "waiting", None)):
        writer.stage(night, name, "train.dpo", status=status, seconds=seconds)
    for index in (0, 1, 2):
        writer.row(models.Iteration, {"run_id": night, "index": index}, decisions=[])
    with opened.read() as session:
        newest, oldest = runs(session, at=NOON + timedelta(seconds=30))
    assert (newest.name, newest.stages, newest.stages_done, newest.seconds, newest.iterations) == ("night", 3, 2, 15.0, 2)
    assert (newest.best_checkpoint, newest.heartbeat_age) == ("iteration 1", 30.0)
    assert (oldest.name, oldest.status, oldest.stages, oldest.seconds, oldest.iterations) == ("first", "done", 0, 0.0, 0)
    assert (oldest.best_checkpoint, oldest.heartbeat_age, oldest.finished_at) == (None, None, NOON)


def test_a_running_stage_tells_its_rate_and_when_it_will_end(opened: Registry, writer: Writer):
    run = writer.run()
    writer.stage(run, "sft", "train.sft", attempts=2, seconds=7.0, done=10, total=10)
    progress = {"status": "running", "attempts": 1, "done": 50, "total": 200, "unit": "answers"}
    writer.stage(run, "answer[1]", "evals.answer", started_at=NOON, heartbeat_at=NOON + timedelta(seconds=95), **progress)
    writer.stage(run, "dpo[1]", "train.dpo", status="failed", error="out of memory", attempts=1)
    writer.row(models.Iteration, {"run_id": run, "index": 1}, decisions=[{"hook": "keep_best", "action": "continue"}])
    with opened.read() as session:
        status = run_status(session, "night", at=NOON + timedelta(seconds=100))
    sft, answer, dpo = status.stages
    assert (answer.rate, answer.eta_seconds, answer.heartbeat_age, answer.seconds) == (0.5, 300.0, 5.0, 100.0)
    assert (sft.attempts, sft.seconds, sft.rate, sft.eta_seconds, sft.heartbeat_age) == (2, 7.0, None, None, None)
    assert (dpo.status, dpo.error) == ("failed", "out of memory")
    assert status.decisions == {1: [{"hook": "keep_best", "action": "continue"}]}
    assert (status.summary.name, status.recipe) == ("night", {"seed": 1})


def test_a_stage_that_has_just_begun_promises_nothing(opened: Registry, writer: Writer):
    writer.stage(writer.run(), "dpo[1]", "train.dpo", status="running", started_at=NOON, done=0, total=10)
    with opened.read() as session:
        stage = run_status(session, "night", at=NOON).stages[0]
    assert (stage.rate, stage.eta_seconds, stage.seconds) == (None, None, 0.0)


@pytest.mark.parametrize("view", [run_status, iteration_curves, preference_statistics, training_curves])
def test_a_run_that_is_not_there_is_one_sentence(registry: Registry, view):
    with pytest.raises(RegistryError, match="no run named 'dusk'; there is none yet; start one with"), registry.read() as session:
        view(session, "dusk")


def test_iteration_curves_follow_the_policies_in_order_within_one_group(opened: Registry, writer: Writer):
    run = writer.run()
    roles = (("iteration", 2), ("iteration", 1), ("sft", 0), ("base", 0))
    for value, (role, iteration) in zip((40.0, 30.0, 20.0, 10.0), roles, strict=True):
        policy = writer.checkpoint(f"{role} {iteration}")
        writer.part(run, policy, role, iteration)
        writer.score(policy, value)
        if iteration == 2:
            writer.score(policy, 99.0, judge="judge-b")
    writer.part(run, writer.checkpoint("reward", "reward"), "reward")
    writer.score(writer.checkpoint("of another run"), 50.0)
    with opened.read() as session:
        most, other = iteration_curves(session, "night")
    assert [(point.role, point.iteration, point.cell.value) for point in most.points] == [
        ("base", 0, 10.0),
        ("sft", 0, 20.0),
        ("iteration", 1, 30.0),
        ("iteration", 2, 40.0),
    ]
    assert (most.benchmark, most.judge, other.judge, [point.cell.value for point in other.points]) == (
        "arena_hard",
        "judge-a",
        "judge-b",
        [99.0],
    )


def test_a_checkpoint_stands_on_a_curve_once_and_the_first_policy_is_the_loops(opened: Registry, writer: Writer):
    run = writer.run()
    policies = {}
    for value, (role, iteration) in zip((10.0, None, 30.0), (("base", 0), ("sft", 0), ("iteration", 1)), strict=True):
        policies[role] = writer.checkpoint(f"{role} {iteration}")
        writer.part(run, policies[role], role, iteration)
        writer.score(policies[role], value)
    with opened.read() as session:
        (one,) = iteration_curves(session, "night")
    assert [point.cell.value for point in one.points] == [10.0, None, 30.0]
    assert one.first.role == "sft" and one.first.cell.value is None, "withheld: no line, and not the base model's"
    with opened.write() as session:  # the same group under another seed: another answer set, another evaluation
        known = session.scalars(select(models.AnswerSet).where(models.AnswerSet.checkpoint_id == policies["iteration"])).one()
        again = models.AnswerSet(
            **{c: getattr(known, c) for c in ("checkpoint_id", "benchmark", "version", "settings", "settings_hash", "status")},
            key="another seed",
            n_questions=known.n_questions,
        )
        session.add(again)
        session.flush()
        first = session.scalars(select(models.Evaluation).where(models.Evaluation.answer_set_id == known.id)).one()
        evaluation = models.Evaluation(key="k", answer_set_id=again.id, judge_id=first.judge_id, status="partial")
        session.add(evaluation)
        session.flush()
        score = session.scalars(select(models.Score).where(models.Score.evaluation_id == first.id)).first()
        values = {c.key: getattr(score, c.key) for c in models.Score.__table__.columns if c.key not in ("id", "evaluation_id")}
        session.add(models.Score(**values | {"evaluation_id": evaluation.id, "value": 99.0}))
    with opened.read() as session:
        (one,) = iteration_curves(session, "night")
    assert [point.cell.value for point in one.points] == [10.0, None, 30.0], "the complete one stands for it"


def test_preference_statistics_and_training_curves_are_in_order(opened: Registry, writer: Writer):
    run = writer.run()
    for iteration in (2, 1):
        writer.row(models.PreferenceSet, {"run_id": run, "iteration": iteration}, n_prompts=10, n_pairs=iteration)
    stage = writer.stage(run, "dpo[1]", "train.dpo")
    points = [
        {"stage_id": stage, "metric": metric, "step": step, "value": step / 2} for metric in ("loss", "kl") for step in (2, 1)
    ]
    with opened.write() as session:
        insert_ignore(session, models.Curve, points, ["stage_id", "metric", "step"])
    with opened.read() as session:
        assert [(one.iteration, one.n_pairs) for one in preference_statistics(session, "night")] == [(1, 1), (2, 2)]
        assert training_curves(session, "night") == {"dpo[1]": {"kl": [(1, 0.5), (2, 1.0)], "loss": [(1, 0.5), (2, 1.0)]}}
