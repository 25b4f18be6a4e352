"""Calibrations: agreement against other implementations and published figures, and a whole run against a scripted judge."""

import json
import math
import random

import numpy as np
import pytest
from sqlalchemy import select

from core.errors import JudgeError, StageFailed
from dashboard import ranking
from db.judges import judge_cards
from db.leaderboard import leaderboard
from db.models import Calibration, Evaluation, JudgeResponse
from db.registry import Registry
from evals.benchmark import read_jsonl
from evals.judges.agreement import Item, agreement, choice, kappa, kendall, rank_agreement, spearman
from evals.judges.human_agreement import LLMBar, PandaLM, spread
from evals.verdict import Verdict
from harness import calibration, commands_judge, report
from tests.scripted_judge import ScriptedJudgeServer, fails, says


def item(identity, people, *verdicts, category=""):
    return Item(str(identity), category, tuple(people), verdicts)


# Arithmetic


def test_agreement_of_hand_made_items():
    items = [
        item(1, (2, 2, 1), 0.9, 0.8),  # right in both orders
        item(2, (1, 1, 1), 0.2, 0.7),  # right in the first, flips
        item(3, (1, 1, 0), 0.9, 1.0),  # wrong
        item(4, (0, 0, 2), 0.5, 0.1),  # a tie, called one once
        item(5, (2, 2, 2), None, 0.9),  # one verdict missing
        item(6, (0, 1, 2), 0.5, 0.5),  # people have no majority
    ]
    found = {name: (round(s["value"], 4), s["n"]) for name, s in agreement(items).items()}
    assert found["agreement"] == (0.5, 3)  # 2 + 1 + 0 of 6 games
    assert found["agreement_both_orders"] == (0.3333, 3)
    assert found["agreement_with_ties"] == (0.5, 4)  # 3 + 1 of 8 games
    assert found["flip_rate"] == (0.5, 4)
    assert found["failed"] == (0.2, 5)
    # Share of whoever is shown first: answer 1 in the first order, answer 2 in the other.
    shares = [0.1, 0.8, 0.8, 0.7, 0.1, 1.0, 0.5, 0.1]
    assert found["first_preference"] == (round(sum(shares) / 8, 4), 4)
    # Two annotators of three: (1 + 3 + 1 + 1 + 3 + 0) of 18.
    assert found["people_pairwise"] == (0.5, 6)
    # One against two who agree on an answer: item 1 wrong, item 2 right thrice, item 3 wrong, item 5 right thrice.
    assert found["people_ceiling"] == (0.75, 4)


def test_one_order_and_gold_labels_give_what_they_can():
    found = agreement([item(i, (1 + i % 2,), float(i % 2)) for i in range(10)])
    assert found.keys() == {"agreement", "kappa"}
    assert found["agreement"]["value"] == 1 and found["agreement"]["low"] > 0.7
    assert found["kappa"] == {"value": 1.0, "low": None, "high": None, "n": 10}
    assert agreement([item(i, (1,), None) for i in range(3)]).keys() == {"failed"}
    assert [choice(v) for v in (0.0, 0.5, 0.51)] == [1, 0, 2]


def test_kappa_and_rank_correlations_are_those_of_sklearn_and_scipy():
    from scipy import stats
    from sklearn.metrics import cohen_kappa_score

    drawn = random.Random(1)
    a = [drawn.choice([0, 1, 2, 2]) for _ in range(300)]
    b = [x if drawn.random() < 0.6 else drawn.choice([0, 1, 2]) for x in a]
    found = kappa([(str(i), x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))])
    assert found["value"] == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)
    assert found["low"] < found["value"] < found["high"]
    assert kappa([(str(i), 1, 1) for i in range(5)]) is None, "where all say the same chance explains it"
    x, y = np.round(np.random.default_rng(0).normal(size=(2, 40)), 1)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
    assert math.isnan(spearman([1, 1], [1, 2])) and math.isnan(kendall([1, 1], [1, 2]))


def test_the_interval_of_a_ranking_resamples_questions():
    generator = np.random.default_rng(2)
    published = np.linspace(10, 60, 8)
    values = (generator.random((8, 200)) < published[:, None] / 100).astype(float)
    values[3, 5] = np.nan
    found = rank_agreement(values, published)
    assert found["spearman"]["low"] < found["spearman"]["value"] <= found["spearman"]["high"] <= 1
    assert found["kendall"]["value"] > 0.7 and found["kendall"]["n"] == 8
    assert rank_agreement(np.full((3, 4), np.nan), [1, 2, 3]) == {}
    assert spread(list("abcdefghij"), 4) == ["a", "d", "g", "j"]


# Saved verdicts against published figures


def test_llmbars_published_statistics_of_gpt4(data):
    """Every subset under three prompts: agreement, in both orders, equal in both, and Cohen's kappa between the orders.

    The prompt `Swap` is left out: its published figures combine two replies. LLMBar counts a failed verdict as wrong; ours
    leaves the item out and counts it as failed.
    """
    published = json.loads((data / "judge_agreement/llmbar_gpt4_published_statistics.json").read_text())
    benchmark, path = LLMBar(), data / "judge_agreement/llmbar_and_processed_pairs_gpt4_evaluators.jsonl.gz"
    questions, saved = benchmark.load({"pairs": path}), benchmark.saved(read_jsonl(path))
    checked = 0
    for prompt in ("Vanilla_NoRules", "Vanilla", "CoT"):
        verdicts = saved[f"GPT-4/{prompt}"]
        for subset in dict.fromkeys(q.category for q in questions):
            asked = [q for q in questions if q.category == subset and q.id in verdicts]
            expected = published.get(f"{subset}|GPT-4|{prompt}")
            if not asked or expected is None:
                continue
            items = [item(q.id, q.data["people"], *verdicts[q.id]) for q in asked]
            found, share = agreement(items), (len(asked) - sum(None in i.verdicts for i in items)) / len(asked)
            assert 100 * share * found["agreement_both_orders"]["value"] == pytest.approx(
                float(expected["correct_both"].split("= ")[1].rstrip("%"))
            )
            if share == 1:
                assert 100 * found["agreement"]["value"] == pytest.approx(float(expected["correct_average"].rstrip("%")))
                assert 100 * (1 - found["flip_rate"]["value"]) == pytest.approx(
                    float(expected["equal"].split("= ")[1].rstrip("%"))
                )
                assert found["kappa_orders"]["value"] == pytest.approx(expected["kappa_agreement"], abs=1e-9)
                checked += 1
    assert checked == 17


def test_saved_judges_are_kept_with_the_ceiling_of_people(data, registry, monkeypatch):
    monkeypatch.setenv("HARNESS_DATA", str(data))
    rows = calibration.calibrate_saved(registry, "saved:gpt", None, 0)
    assert {row["dataset"] for row in rows} == {"pandalm", "llmbar", "board"}
    with registry.read() as session:
        cards = judge_cards(session, "saved:gpt-3.5-turbo")
        board = session.scalars(select(Calibration).where(Calibration.dataset == "board")).one()
    found = cards[0].calibrations[0]
    assert (found["dataset"], found["n"], found["n_failed"]) == ("pandalm", 974, 25)
    statistics = found["statistics"]
    assert statistics["agreement"]["high"] < statistics["people_ceiling"]["low"], "people agree with each other more"
    assert board.n == 36 and board.statistics["spearman"]["value"] > 0.9
    with pytest.raises(JudgeError, match=r"no saved verdicts of 'saved:claude'.*GPT-4/Vanilla"):
        calibration.calibrate_saved(registry, "saved:claude", None, 0)
    again = calibration.calibrate_saved(registry, "saved:gpt-3.5-turbo", 50, 0)
    assert not again[0]["kept"], "fewer items never replace more"


def test_a_people_majority_is_the_label(data):
    questions = PandaLM().load({"pairs": data / "judge_agreement/pandalm_testset_v1_human_and_judges.jsonl.gz"})
    assert len(questions) == 999
    verdicts = {(q.id, 1, 0, game): Verdict(q.id, 1.0, game=game) for q in questions for game in (1, 2)}
    items = PandaLM().items(questions, verdicts, 2)
    seconds = sum(sorted(q.data["people"])[1] == 2 for q in questions)
    decided = sum(sorted(q.data["people"])[1] != 0 for q in questions)
    assert agreement(items)["agreement"]["value"] == pytest.approx(seconds / decided)


# A whole run


@pytest.fixture
def home(tmp_path, data, monkeypatch):
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HARNESS_DATA", str(data))
    monkeypatch.setenv("TEST_JUDGE_KEY", "k")
    monkeypatch.delenv("HARNESS_DB", raising=False)
    return f"sqlite:///{tmp_path / 'home' / 'registry.db'}"


OPTIONS = ["api_key_env=TEST_JUDGE_KEY", "concurrency=4"]


def prefers_longer(request):
    """A judge of a fixed opinion: the longer output wins, 0.8 to 0.2."""
    text = request["messages"][-1]["content"]
    first = len(text.partition('"model_identifier": "m",')[2].rpartition('"model_identifier": "M",')[0])
    second = len(text.rpartition('"model_identifier": "M",')[2].partition("## Task")[0])
    p = 0.8 if first > second else 0.2
    return says("m", {"m": math.log(p), "M": math.log(1 - p)})


def test_a_stopped_calibration_goes_on_and_asks_nothing_twice(home, capsys):
    whole, bought = [], []

    def script(request, number):
        if number >= 25 and not whole:
            return fails(401)
        bought.append(json.dumps(request["messages"]))
        return prefers_longer(request)

    def calibrate(server, board=0, as_json=False):
        commands_judge.run_calibration("openai:scripted", server.url, OPTIONS, 10, board, None, 7, False, as_json, home)

    with ScriptedJudgeServer(script) as server:
        with pytest.raises(StageFailed, match="refuses every request"):
            calibrate(server)
        with Registry.open(home).read() as session:
            before = len(session.scalars(select(JudgeResponse)).all())
            assert not session.scalars(select(Calibration)).all()
        assert 0 < before <= 25
        whole.append(True)
        calibrate(server)
        # 10 pairs twice in two sets, and one probe.
        assert len(bought) == len(set(bought)) == 2 * 2 * 10 + 1
        capsys.readouterr()
        # 12 models on one instruction come on top; of the pairs nothing is asked again.
        calibrate(server, board=1, as_json=True)
        assert len(bought) == len(set(bought)) == 2 * 2 * 10 + 1 + 12
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["rows"]
    assert [(row["dataset"], row["n"], row["n_failed"]) for row in rows] == [
        ("pandalm", 10, 0),
        ("llmbar", 10, 0),
        ("board", 12, 0),
    ]
    # Its opinion does not depend on the order (equal lengths apart).
    assert rows[1]["statistics"]["flip_rate"]["value"] <= 0.1
    assert "people_ceiling" in rows[0]["statistics"] and "spearman" in rows[2]["statistics"]
    with Registry.open(home).read() as session:
        kept = session.scalars(select(Calibration)).all()
        assert {row.dataset for row in kept} == {"pandalm", "llmbar", "board"}
        assert leaderboard(session) == [], "a calibration is no row of the board"


def test_canaries_stand_on_the_board_flagged_unranked_beside_what_is_known_of_the_judge(home, capsys):
    with ScriptedJudgeServer(lambda request, number: prefers_longer(request)) as server:
        chosen = [{"name": "alpaca_eval", "variant": "starter", "limit": None, "max_tokens": None}]
        commands_judge.run_canaries("openai:scripted", server.url, OPTIONS, chosen, "vllm", None, 1, False, False, home)
    assert "padded" in capsys.readouterr().out
    registry = Registry.open(home)
    with registry.write() as session:
        flags = [[flag["flag"] for flag in e.flags] for e in session.scalars(select(Evaluation).order_by(Evaluation.id))]
        judge = session.scalars(select(Evaluation)).first().judge
        row = {"judge_key": calibration.identity(judge.kind, judge.name, judge.config), "judge_name": judge.name}
        statistics = {"agreement": {"value": 0.7, "low": 0.6, "high": 0.8, "n": 100}}
        session.add(
            Calibration(**row, judge_kind="openai", dataset="pandalm", version="v", n=100, n_failed=0, statistics=statistics)
        )
    assert [found[0] for found in flags] == ["canary"] * 3
    assert "near_constant" in flags[0] and "to_the_judge" in flags[1] and "padded_baseline" in flags[2]
    with registry.read() as session:
        rows = leaderboard(session)
        assert judge_cards(session)[0].bias == {}, "canaries say nothing of how a judge meets real answers"
    padded = next(row for row in rows if row.name == "canary: padded").cells["alpaca_eval"]
    assert padded.value > 70, "a judge that prefers the longer answer is seen to be fooled"
    text = report.to_markdown(ranking.board(rows))
    assert "agrees with people on 70 % \\[60, 80\\] of 100" in text
    assert text.count("†") == 6 and "is flagged and not ranked with others" in text
    assert "near_constant: 16 of 16" in report.to_csv(ranking.board(rows))
    assert report.to_json(ranking.board(rows))[0]["scores"]["alpaca_eval"]["flags"][0]["flag"] == "canary"


def test_flagged_cells_are_never_ranked(registry):
    from dashboard import markup
    from dashboard.ranking import board
    from tests.sample_registry import fill

    sample = fill(registry)
    fake = sample.checkpoint("too good", "third_party", source="imported")
    sample.score(fake, "alpaca_eval", 99.0)
    with registry.write() as session:
        evaluation = session.scalars(select(Evaluation).order_by(Evaluation.id.desc())).first()
        evaluation.flags = [{"flag": "near_constant", "reason": "16 of 16 answers <b>begin</b> or end alike"}]
        evaluation.statistics = {"bias": {"first_preference": {"value": 0.61, "low": 0.55, "high": 0.67, "n": 16}}}
    with registry.read() as session:
        rows = leaderboard(session)
    shown = board(rows, "alpaca_eval")
    assert [section.flagged for section in shown.sections] == [False, True]
    assert [line.row.name for line in shown.sections[1].lines] == ["too good"]
    assert shown.sections[1].lines[0].rank is None
    assert shown.sections[0].lines[0].rank[0] == 1, "the best of the others leads"
    page = markup.leaderboard(shown, "alpaca_eval")
    assert "Not ranked:</b> flagged" in page and "&lt;b&gt;begin" in page and "<b>begin" not in page
    assert "gives the answer shown first 61 % [55, 67]" in page


@pytest.mark.slow
def test_a_reward_model_is_calibrated_as_it_judges(home, tmp_path, tiny_llama, capsys):
    """A real (untrained) reward model: one game a pair, so nothing of orders; its rewards decide."""
    import torch
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    from core.fingerprint import checkpoint_fingerprint
    from db.models import Checkpoint

    torch.manual_seed(0)
    folder = tmp_path / "reward"
    LlamaForSequenceClassification.from_pretrained(tiny_llama, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    with Registry.open(home).write() as session:
        row = {"name": "tiny/reward", "kind": "reward", "source": "trained", "path": str(folder)}
        session.add(Checkpoint(fingerprint=checkpoint_fingerprint(folder), **row))
    commands_judge.run_calibration("tiny/reward", None, ["max_length=512"], 12, 0, None, 7, False, True, home)
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["rows"]
    assert [(row["dataset"], row["n"], row["n_failed"]) for row in rows] == [("pandalm", 12, 0), ("llmbar", 12, 0)]
    assert {"agreement", "kappa"} <= rows[0]["statistics"].keys()
    assert not {"flip_rate", "first_preference"} & rows[0]["statistics"].keys()
