"""MT-Bench's pairwise mode: prompts as they were sent, both orders, ties, failures."""

from types import SimpleNamespace

import pytest
from sqlalchemy import select

from core.errors import MissingInput
from core.stage import Spec, Stage
from db.models import Evaluation, Score
from evals import judged
from evals.benchmark import Question, get_benchmark, read_jsonl
from evals.chat.mt_bench_pairwise import LOSS, TIE, WIN, MTBenchPairwise, find_winner, game_points, turn_result
from evals.judges.judge import Reply, Task
from evals.verdict import Verdict
from tests.scripted_judge import ScriptedJudgeServer, says
from tests.test_judged import answer_all

OPENAI = SimpleNamespace(kind="openai", name="gpt-4")
REWARD = SimpleNamespace(kind="reward_model", name="reward-model:0")


@pytest.fixture
def files(starter):
    folder = starter / "mt_bench"
    return {
        "questions": folder / "question.jsonl",
        "references": folder / "reference_answer.jsonl",
        "baseline": folder / "reference_answer.jsonl",
    }


@pytest.fixture
def questions(files):
    return MTBenchPairwise().load(files)


def answers_to(questions):
    row = SimpleNamespace(text="x", finish_reason="stop", output_tokens=5)
    return {(q.id, turn, 0): row for q in questions for turn in (1, 2)}


def scored(questions, verdicts, judge=OPENAI):
    rows = MTBenchPairwise().scores(questions, answers_to(questions), {v.key: v for v in verdicts}, judge, {})
    return {row.metric: row for row in rows}


def test_it_is_a_benchmark_of_its_own(questions):
    assert get_benchmark("mt_bench_pairwise").headline == "win_rate_adjusted"
    assert len(questions) == 8 and all(len(q.data["baseline"]) == 2 for q in questions)


def test_stored_prompts_are_rebuilt_from_the_templates(data):
    """What was sent to GPT-4 in both orders, from the stored pairwise judgments of two public models."""
    folder = data / "mt_bench"
    prompts = {"judge_prompts": folder / "judge_prompts.jsonl"}
    references = {r["question_id"]: r["choices"][0]["turns"] for r in read_jsonl(folder / "reference_answer_gpt-4.jsonl")}
    questions = {r["question_id"]: r for r in read_jsonl(folder / "question.jsonl")}
    benchmark, compared, names = MTBenchPairwise(), 0, set()
    heads = [(f"[The Start of Assistant {x}'s Answer]\n", f"\n[The End of Assistant {x}'s Answer]") for x in "AB"]
    for row in read_jsonl(folder / "judgments_gpt-4_pair_phi3_vs_phi3dpo.jsonl.gz"):
        question = questions[row["question_id"]]
        first, second = (row["g1_user_prompt"].split(start, 1)[1].split(end, 1)[0] for start, end in heads)
        question = Question(
            str(question["question_id"]),
            question["category"],
            tuple(question["turns"]),
            {"reference": references.get(row["question_id"]), "baseline": [second, "-"]},
        )
        for game, prompt in ((1, row["g1_user_prompt"]), (2, row["g2_user_prompt"])):
            made = benchmark.prompt(Task(question, (first,), game=game), prompts)
            assert made.messages[1]["content"] == prompt, (row["question_id"], game)
            compared += 1
        names.add(row["judge"][1])
    assert compared == 150 and names == {"pair-v2", "pair-math-v1"}


def test_stored_verdicts_are_read_as_they_were(data):
    compared = 0
    for row in read_jsonl(data / "mt_bench" / "judgments_gpt-4_pair_phi3_vs_phi3dpo.jsonl.gz"):
        for game, ours in ((1, "model_1"), (2, "model_1")):
            winner, _ = find_winner(row[f"g{game}_judgment"])
            stored = row[f"g{game}_winner"]
            points = None if winner is None else game_points(winner, game)
            assert points == {"tie": TIE, "error": None}.get(stored, WIN if stored == ours else LOSS)
            compared += 1
    assert compared == 150


def test_multi_turn_prompts_hold_both_conversations(data, files):
    prompts = files | {"judge_prompts": data / "mt_bench" / "judge_prompts.jsonl"}
    benchmark = MTBenchPairwise()
    for question in benchmark.load(prompts):
        said = ("{answer_b_1} one", "two [[A]]")
        first = benchmark.prompt(Task(question, said, game=1), prompts).messages[1]["content"]
        second = benchmark.prompt(Task(question, said, game=2), prompts).messages[1]["content"]
        for text, order in ((first, 1), (second, -1)):
            baseline = question.data["baseline"]
            places = [text.rindex(said[1]), text.rindex(baseline[1])][::order]
            assert places[0] < places[1]
            assert text.count("{answer_b_1} one") == 1
        assert ("Reference" in first) == (question.category in ("math", "reasoning", "coding"))
    config = benchmark.judge_config(prompts)
    assert len(config["prompt_sha256"]) == 64 and config["parameters"] == {"temperature": 0, "max_tokens": 2048}


def test_verdicts_of_a_reply(questions):
    benchmark, task = MTBenchPairwise(), Task(questions[0], ("x",), game=2)
    assert benchmark.read(task, [Reply("So [[A]].")], None).value == LOSS
    assert benchmark.read(task, [Reply("So [[B]].")], None).value == WIN
    assert benchmark.read(task, [Reply("A tie: [[C]]")], None).value == TIE
    both = benchmark.read(task, [Reply("not [[A]] but [[B]]")], None)
    assert (both.value, both.detail["flag"]) == (LOSS, "several labels")
    assert benchmark.read(task, [Reply("A is better")], None).value is None
    assert benchmark.policy_first(task, Verdict(questions[0].id, 1.0)) is False


def test_both_orders_must_agree():
    assert turn_result(WIN, WIN) == WIN and turn_result(LOSS, LOSS) == LOSS
    assert turn_result(WIN, LOSS) == turn_result(TIE, WIN) == turn_result(TIE, TIE) == TIE


def test_rates_count_turns_and_failures(questions):
    # 16 turns: 6 won, 4 lost, 5 tied by disagreement, 1 with a failed game.
    pairs = [(WIN, WIN)] * 6 + [(LOSS, LOSS)] * 4 + [(WIN, LOSS)] * 5 + [(WIN, None)]
    places = [(q.id, turn) for q in questions for turn in (1, 2)]
    verdicts = [
        Verdict(question, value, turn=turn, game=game)
        for (question, turn), pair in zip(places, pairs, strict=True)
        for game, value in enumerate(pair, 1)
    ]
    rows = scored(questions, verdicts)
    assert rows["win_rate"].value == pytest.approx(100 * 6 / 15)
    assert rows["loss_rate"].value == pytest.approx(100 * 4 / 15)
    assert rows["tie_rate"].value == pytest.approx(100 * 5 / 15)
    headline = rows["win_rate_adjusted"]
    assert headline.headline and headline.value == pytest.approx(100 * 8.5 / 15)
    assert (headline.n, headline.n_failed) == (15, 1)
    assert (headline.worst, headline.best) == pytest.approx((100 * 8.5 / 16, 100 * 9.5 / 16))
    assert headline.withheld.value is None and headline.low < headline.value < headline.high
    assert {row.metric for row in rows.values()} >= {"turn1", "turn2", "category:math", "category:writing"}
    assert scored(questions, [])["win_rate_adjusted"].n_failed == 16


def test_a_reward_model_plays_one_game(questions):
    verdicts = [Verdict(q.id, 0.75, turn=turn) for q in questions for turn in (1, 2)]
    rows = scored(questions, verdicts, REWARD)
    assert rows["win_rate_adjusted"].value == 75 and "win_rate" not in rows
    ours, theirs = MTBenchPairwise().compared(Task(questions[0], ("a", "b")))
    assert [m["content"] for m in ours][1::2] == ["a", "b"]
    assert [m["content"] for m in theirs][1::2] == questions[0].data["baseline"]


def test_a_baseline_with_gaps_is_refused(files, tmp_path):
    part = tmp_path / "baseline.jsonl"
    part.write_text("\n".join(files["baseline"].read_text().split("\n")[:3]))
    with pytest.raises(MissingInput, match="does not answer every turn"):
        MTBenchPairwise().load(files | {"baseline": part})
    with pytest.raises(MissingInput, match="asset `baseline`"):
        MTBenchPairwise().load({name: path for name, path in files.items() if name != "baseline"})


def test_a_judge_that_always_prefers_the_first_answer_decides_nothing(data, files, make_spec, registry, tmp_path, monkeypatch):
    """The whole judge stage against a local endpoint: both orders of every turn are asked, every turn is a tie."""
    monkeypatch.setenv("TEST_JUDGE_KEY", "k")
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "config.json").write_text("{}")
    (policy / "model.safetensors").write_bytes(b"weights")
    entry = {"name": "mt_bench_pairwise", "variant": "starter", "version": "starter@test", "limit": None, "sample_seed": 0}
    settings = {"seed": 1, "engine": "transformers", "max_model_len": 1024, "dtype": "auto", "system_prompt": None}
    paths = files | {"judge_prompts": data / "mt_bench" / "judge_prompts.jsonl"}
    inputs = {"policy": policy} | {f"data/mt_bench_pairwise/{name}": path for name, path in paths.items()}
    with ScriptedJudgeServer(lambda request, number: says("Both are fine. [[A]]")) as server:
        judge = {"kind": "openai", "model": "scripted", "base_url": server.url, "api_key_env": "TEST_JUDGE_KEY", "concurrency": 4}
        settings |= {"benchmarks": [entry | {"decoding": {}}], "judge": judge | {"price": {"input": 1.0, "output": 1.0}}}
        stage = Stage(Spec.load(make_spec("judged", settings, inputs, registry=registry.url)))
        stage.work.mkdir(parents=True, exist_ok=True)
        answer_all(registry, stage)
        metrics = judged.run(stage)
    assert (metrics["judgments"], metrics["failed"]) == (32, 0)
    # 8 questions, 2 turns, 2 orders, each prompt its own (the judge may be asked something short before the first).
    asked = {request["messages"][-1]["content"] for request in server.requests}
    assert sum("Assistant B" in text for text in asked) == 32
    with registry.read() as session:
        scores = {score.metric: score for score in session.scalars(select(Score))}
        evaluation = session.scalars(select(Evaluation)).one()
    assert scores["win_rate_adjusted"].value == 50 and scores["win_rate_adjusted"].headline
    assert (scores["tie_rate"].value, scores["win_rate"].value, scores["win_rate"].n) == (100, 0, 16)
    assert evaluation.statistics["flagged"] == {"several labels": 0}
