"""Does a preference model still read what it was trained on? Asked each time one is loaded, before it judges anything.

A preference model under another chat template or tokenizer gives probabilities all the same, and bad ones: the published
model scores 64 instead of 98 on RewardBench's chat section without its assistant header (github.com/RLHFlow/
RLHF-Reward-Modeling, issue 21). A checkpoint of ours carries `self_test.json`: held-out pairs with the tokens (hashed)
and the probability that were measured when it was trained. Of others, a handful of plain pairs must be right.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.artifacts import write_durably
from core.errors import HarnessError
from core.fingerprint import digest
from train.preference_prompt import Encoded, encode

if TYPE_CHECKING:
    from train.preference_model import Comparison, PairwisePreferenceModel, Question

FILE = "self_test.json"

_KEPT = 24
_ASKED = 8
# What a probability may move between machines and kernels, by dtype: a label's logit differs by up to about 0.01 in
# float32 (TF32 included) and 0.2 in 16 bits, and a probability by at most a quarter of that.
_TOLERANCE = {"float32": 0.01, "bfloat16": 0.06, "float16": 0.06}
_NEEDED = 6
_OVERRIDE = "or, if you know better, set preference.self_test: false"

KNOWN: list[tuple[str, str, str]] = [
    ("What is 7 + 5?", "7 + 5 = 12.", "7 + 5 = 47."),
    ("Which planet do we live on?", "We live on Earth.", "We live on Jupiter, the largest planet."),
    ("Give me three colours.", "Three colours are red, green and blue.", "No."),
    ("Translate 'good morning' into French.", "'Good morning' in French is 'bonjour'.", "asdf qwer zxcv asdf qwer"),
    (
        "How do I boil an egg?",
        "Put it into boiling water for seven to ten minutes, then cool it under cold water and peel it.",
        "Eggs. Eggs eggs eggs eggs eggs eggs eggs eggs eggs eggs eggs eggs eggs eggs eggs.",
    ),
    ("Write one sentence about the sea.", "The sea was calm that evening, and silver under the moon.", "I like cars and bread."),
    ("What is the opposite of hot?", "The opposite of hot is cold.", "The opposite of hot is hot."),
    (
        "My neighbour is ill. What could I do for her?",
        "You could bring her a warm meal, offer to do her shopping, and ask whether she needs a doctor.",
        "Who cares? Leave me alone with your neighbour.",
    ),
]
"""(question, better answer, worse answer): any model that prefers helpful answers agrees. None is from a benchmark."""


def turn_sha256(tokenizer: Any, turn: Encoded) -> str:
    """Hash of the tokens from the turn's first word to where the label is read; what stands before may hold today's date."""
    text = turn.text[max(turn.text.find("[CONTEXT]"), 0) :]
    return digest(tokenizer(text, add_special_tokens=False)["input_ids"])


def write_self_test(
    model: "PairwisePreferenceModel", folder: Path, questions: "list[Question]", compared: "list[Comparison]"
) -> None:
    """Record pairs whose first response was found better with `compared`: the shorter half of them, spread evenly."""
    order = sorted(range(len(questions)), key=lambda q: (sum(map(len, questions[q][1:])) + len(str(questions[q][0])), q))
    short = order[: max(_ASKED, len(order) // 2)]
    chosen = short[:: max(1, len(short) // _KEPT)][:_KEPT]
    pairs = []
    for q in chosen:
        turn = encode(model.tokenizer, *questions[q], model.max_length)
        if turn is not None and not turn.context_cut:
            messages, first, second = questions[q]
            content = {"messages": messages, "first": first, "second": second}
            pairs.append(content | {"turn_sha256": turn_sha256(model.tokenizer, turn), "probability": compared[q].probability})
    right = sum(c.probability > 0.5 for c in compared)
    content = {"accuracy": right / len(compared), "n": len(compared), "max_length": model.max_length, "pairs": pairs}
    write_durably(folder / FILE, json.dumps(content, indent=1, ensure_ascii=False))


def require_known_pairs(model: "PairwisePreferenceModel", checkpoint: Path, dtype: str) -> None:
    """Raise HarnessError when the model does not read or judge known pairs as it should."""
    file = checkpoint / FILE
    if file.is_file():
        _require_same(model, checkpoint, json.loads(file.read_text(encoding="utf-8"))["pairs"], _TOLERANCE[dtype])
    else:
        _require_sensible(model, checkpoint)


def _require_same(model: "PairwisePreferenceModel", checkpoint: Path, pairs: list[dict[str, Any]], tolerance: float) -> None:
    questions = [(pair["messages"], pair["first"], pair["second"]) for pair in pairs]
    # A shorter max_length than that of training must not look like a fault of the template.
    fitting = [
        (question, turn, pair)
        for question, pair in zip(questions, pairs, strict=True)
        if (turn := encode(model.tokenizer, *question, model.max_length)) is not None and not turn.context_cut
    ][:_ASKED]
    compared = model.compare_responses([question for question, _, _ in fitting])
    moved = max(
        (abs(c.probability - pair["probability"]) for c, (_, _, pair) in zip(compared, fitting, strict=True)), default=0.0
    )
    other = sum(turn_sha256(model.tokenizer, turn) != pair["turn_sha256"] for _, turn, pair in fitting)
    if not other and moved <= tolerance:
        return
    cause = (
        f"it reads {other} of them as other tokens, so its chat template or tokenizer was changed: restore chat_template.jinja, "
        "tokenizer.json and tokenizer_config.json from its training"
        if other
        else "it reads the same tokens, so its weights, or the library that runs them, were changed: copy the checkpoint again"
    )
    raise HarnessError(
        f"The preference model {checkpoint} failed its self-test: it gives {len(fitting)} known pairs probabilities up to "
        f"{moved:.2g} away from those measured when it was trained ({tolerance:g} is allowed), and {cause}, {_OVERRIDE}."
    )


def _require_sensible(model: "PairwisePreferenceModel", checkpoint: Path) -> None:
    compared = model.compare_responses([([{"role": "user", "content": q}], better, worse) for q, better, worse in KNOWN])
    right = sum(c.probability > 0.5 for c in compared)
    if right < _NEEDED:
        raise HarnessError(
            f"The preference model {checkpoint} is right about {right} of {len(KNOWN)} obvious pairs ({_NEEDED} are needed): its "
            "chat template is probably not the one it was trained with; put that template beside its tokenizer, give a "
            f"checkpoint that was trained to answer A or B, {_OVERRIDE}."
        )
