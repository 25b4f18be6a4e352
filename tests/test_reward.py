"""Reward models: figures by closed forms, and a training that prefers what it was taught to."""

import json
import math

import pytest
from scipy import stats

from core.errors import RecipeError
from tests.training import RESOURCES, training_settings, words, write_jsonl
from train.chat import load_tokenizer
from train.reward import require_apart, set_distinct_padding, tokenise
from train.reward_losses import reward_loss
from train.reward_metrics import chance_warning, heldout_metrics, length_bias
from train.scorers import BradleyTerryScorer
from train.statistics import spearman, wilson_interval


def preference(k: int, source: str = "a", answers: tuple[str, str] = ("yes", "no")) -> dict:
    question = {"role": "user", "content": f"Question {k}"}
    chosen, rejected = ([question, {"role": "assistant", "content": text}] for text in answers)
    return {"id": str(k), "source": source, "chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize(("wins", "n"), [(0, 10), (7, 10), (10, 10), (333, 1000)])
def test_the_wilson_interval_is_scipys(wins, n):
    expected = stats.binomtest(wins, n).proportion_ci(method="wilson")
    assert wilson_interval(wins, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_spearman_is_scipys_with_ties():
    a, b = [1.0, 2.0, 2.0, 5.0, 0.0, 7.0], [3.0, 1.0, 4.0, 4.0, 4.0, 9.0]
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)


def test_heldout_accuracy_counts_ties_half_and_is_kept_by_source():
    rows = [preference(0, "a"), preference(1, "a"), preference(2, "b"), preference(3, "b")]
    metrics = heldout_metrics(rows, [1.0, 1.0, 0.0, 2.0], [0.0, 1.0, 3.0, 1.0], [4, 4, 4, 4, 1, 1, 1, 1])
    assert metrics["heldout_accuracy"] == 2.5 / 4 and metrics["heldout_ties"] == 1
    assert (metrics["heldout_low"], metrics["heldout_high"]) == wilson_interval(2.5, 4)
    of_a = metrics["heldout_by_source"]["a"]
    assert (of_a["accuracy"], of_a["n"], of_a["low"], of_a["high"]) == (0.75, 2, *wilson_interval(1.5, 2))
    assert metrics["heldout_by_source"]["b"]["accuracy"] == 0.5
    # Confidences: sigmoid(1) twice (right), 0.5 (a tie: half right), sigmoid(3) (wrong).
    one, three = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3))
    assert metrics["heldout_ece"] == pytest.approx((2 * (1 - one) + three) / 4)
    losses = [math.log(1 + math.exp(-d)) for d in (1, 0, -3, 1)]
    assert metrics["heldout_log_loss"] == pytest.approx(sum(losses) / 4)


def test_an_accuracy_that_a_coin_could_have_is_said_to_be_one():
    rows, tokens = [preference(k) for k in range(20)], [3] * 40
    lucky = heldout_metrics(rows, [1.0] * 12 + [0.0] * 8, [0.0] * 12 + [1.0] * 8, tokens)
    assert "60.0 % (95 %: 38.7 to 78.1, n 20) cannot be told from a coin's" in chance_warning(lucky)
    assert chance_warning(heldout_metrics(rows, [1.0] * 16 + [0.0] * 4, [0.0] * 16 + [1.0] * 4, tokens)) is None


def test_length_bias_does_not_depend_on_which_side_is_called_first():
    differences, gaps = [1.0, 2.0, -1.0, 0.5, 0.0], [3, 10, -2, 0, 4]
    told = length_bias(differences, gaps)
    assert told == pytest.approx(length_bias([-1.0, *differences[1:]], [-3, *gaps[1:]]) | {"longer_chosen": 0.75})
    # Longer wins in the first three, the fourth has no longer one, the fifth is a tie.
    assert told["longer_preferred"] == 3.5 / 4 and told["longer_chosen"] == 3 / 4
    both = [*differences, *(-d for d in differences)], [*gaps, *(-g for g in gaps)]
    assert told["length_correlation_within"] == pytest.approx(stats.spearmanr(*both).statistic)
    assert length_bias([1.0], [0])["longer_preferred"] is None


def test_the_loss_is_bradley_terrys_with_margin_smoothing_and_centring():
    import torch
    from torch.nn.functional import logsigmoid

    chosen, rejected = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0])
    assert reward_loss(chosen, rejected).item() == pytest.approx((math.log1p(math.exp(-1.5)) + math.log1p(math.exp(2))) / 2)
    margin = torch.tensor([1.0, 0.0])
    expected = (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(2))) / 2
    assert reward_loss(chosen, rejected, margin=margin).item() == pytest.approx(expected)
    centred = reward_loss(chosen, rejected) + 0.01 * (2.5**2 + 0.0) / 2
    assert reward_loss(chosen, rejected, center_rewards_coefficient=0.01).item() == pytest.approx(centred.item())
    d = chosen - rejected
    smoothed = (-0.9 * logsigmoid(d) - 0.1 * logsigmoid(-d)).mean()
    assert reward_loss(chosen, rejected, label_smoothing=0.1).item() == pytest.approx(smoothed.item())


def test_label_smoothing_has_its_optimum_at_the_smoothed_odds():
    """d/dd of (1 - e) log s(d) + e log s(-d) vanishes where s(d) = 1 - e."""
    import torch

    difference = torch.tensor([math.log(0.9 / 0.1)], requires_grad=True)
    reward_loss(difference, torch.zeros(1), label_smoothing=0.1).backward()
    assert difference.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_padding_never_is_a_token_that_ends_a_turn(tiny_llama):
    tokenizer = load_tokenizer(tiny_llama)
    set_distinct_padding(tokenizer)
    assert tokenizer.pad_token == "<|pad|>"  # distinct already: kept
    tokenizer.pad_token = tokenizer.eos_token
    set_distinct_padding(tokenizer)
    assert tokenizer.pad_token not in (tokenizer.eos_token, tokenizer.bos_token)


def test_long_pairs_are_dropped_and_counted_and_a_missing_margin_is_named(tiny_llama):
    tokenizer = load_tokenizer(tiny_llama)
    rows = [preference(0), preference(1, answers=("word " * 100, "no"))]
    examples, counts = tokenise(rows, tokenizer, 64, margin=False)
    assert len(examples) == 1 and counts == {"dropped": 1, "cut": 0}
    with pytest.raises(RecipeError, match="set the reward model's margin to false"):
        tokenise(rows, tokenizer, 64, margin=True)
    assert tokenise([rows[0] | {"margin": 2}], tokenizer, 64, margin=True)[0][0]["margin"] == 2.0


def test_cutting_at_the_left_keeps_both_answers_whole(tiny_llama):
    tokenizer = load_tokenizer(tiny_llama)
    asked = [{"role": "user", "content": "word " * 100}]
    sides = {side: [*asked, {"role": "assistant", "content": text}] for side, text in (("chosen", "yes, so"), ("rejected", "no"))}
    long_answer = preference(1, answers=("word " * 100, "no"))
    examples, counts = tokenise([{"id": "0"} | sides, long_answer], tokenizer, 64, margin=False, too_long="cut_left")
    assert counts == {"dropped": 1, "cut": 1} and len(examples) == 1
    for side, text in (("chosen_ids", "yes, so"), ("rejected_ids", "no")):
        assert len(examples[0][side]) == 64 and tokenizer.decode(examples[0][side]).endswith(f"assistant\n{text}<|im_end|>\n")


def test_a_sequence_that_ends_with_the_padding_token_is_refused(tiny_llama):
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    with pytest.raises(RecipeError, match="ends with the padding token"):
        tokenise([preference(0)], tokenizer, 64, margin=False)
    set_distinct_padding(tokenizer)
    assert len(tokenise([preference(0)], tokenizer, 64, margin=False)[0]) == 1


def test_held_out_prompts_must_not_be_trained_on():
    require_apart([preference(0)], [preference(1)])
    with pytest.raises(RecipeError, match=r"1 of 2 held-out pairs \(first: 0\)"):
        require_apart([preference(0, answers=("other", "answers"))], [preference(0), preference(1)])


def test_a_reward_model_learns_a_plain_preference_and_scores_alike_alone_and_padded(tiny_llama, run_stage, tmp_path):
    import random

    generator = random.Random(0)
    data = tmp_path / "data"
    data.mkdir()
    pairs = [preference(k, "ab"[k % 2], (words(generator, 3) + " good", words(generator, 3) + " bad")) for k in range(80)]
    write_jsonl(data / "reward_train.jsonl", pairs[:64])
    write_jsonl(data / "pairs_heldout.jsonl", pairs[64:])
    settings = training_settings(
        epochs=2, batch_size=8, file="reward_train.jsonl", center_rewards_coefficient=0.01, margin=False, label_smoothing=0.05
    )
    artifact = run_stage("train.reward", "reward", settings, {"policy": tiny_llama, "data": data}, resources=RESOURCES)
    metrics = artifact.metrics
    assert metrics["heldout_n"] == 16 and metrics["heldout_accuracy"] > 0.9 and metrics["heldout_low"] > 0.6
    assert metrics["train_loss"] < math.log(2)
    assert set(metrics["heldout_by_source"]) == {"a", "b"} and -1 <= metrics["length_correlation"] <= 1
    assert metrics["parity"] < 1e-3 and 0 <= metrics["heldout_ece"] <= 1
    scored = [json.loads(line) for line in artifact.file("heldout.jsonl").read_text().splitlines()]
    assert sum(row["chosen_reward"] > row["rejected_reward"] for row in scored) / 16 == metrics["heldout_accuracy"]
    assert sum(row["n"] for row in json.loads(artifact.file("reliability.json").read_text())) == 16
    scorer = BradleyTerryScorer(artifact.file("checkpoint"))
    conversations = [pair["chosen"] for pair in pairs[:5]]
    alone = [scorer.score([conversation])[0] for conversation in conversations]
    assert scorer.score(conversations) == pytest.approx(alone, abs=1e-4)


def test_warm_up_steps_take_the_place_of_the_ratio():
    from tests.test_plan import _plan
    from train.optimisation import warmup

    plan = _plan("reward.warmup_steps=40", "dpo.warmup_steps=100")
    assert [warmup(plan.nodes[name].settings) for name in ("reward", "dpo[1]", "sft")] == [40, 100, 0.03]


def test_options_left_at_their_defaults_do_not_change_a_models_key():
    from tests.test_plan import _plan

    plain, smoothed = _plan().nodes["reward"], _plan("reward.label_smoothing=0.1", "reward.too_long=cut_left").nodes["reward"]
    assert not {"label_smoothing", "too_long"} & set(plain.settings) and plain.key != smoothed.key
    assert (smoothed.settings["label_smoothing"], smoothed.settings["too_long"]) == (0.1, "cut_left")
    assert _plan("reward.label_smoothing=0.0").nodes["reward"].key == plain.key
    # The same name is a key of DPO's, where it has always been said.
    assert "label_smoothing" in _plan().nodes["dpo[1]"].settings
