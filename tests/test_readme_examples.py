"""The examples of the README's "Extending it" run as they stand and do what the text says."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def example() -> Callable[[str], Any]:
    """`example(name)`: what the blocks define under that name."""
    section = (ROOT / "README.md").read_text().split("## Extending it")[1].split("\n## ")[0]
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", section, re.S):
        exec(compile(block, "README.md", "exec"), names)
    return names.__getitem__


def test_the_benchmark_reads_measures_and_scores(example, tmp_path: Path) -> None:
    path = tmp_path / "haiku.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "prompt": f"On {i}."}) + "\n" for i in range(40)))
    haiku = example("Haiku")()
    questions = haiku.load({"questions": path})
    answers = {q.id: "a\nb\nc" if i % 4 else "one line" for i, q in enumerate(questions)} | {questions[0].id: None}
    values = {q.id: None if answers[q.id] is None else haiku.measure(q, answers[q.id]) for q in questions}
    (score,) = haiku.scores(questions, values)
    assert score.metric == haiku.headline and score.headline and (score.n, score.n_failed) == (39, 1)
    assert score.value == pytest.approx(100 * 30 / 39) and 50 < score.low < score.value < score.high < 100


def test_the_scorer_prefers_the_shorter_answer(example) -> None:
    short, long = ([{"role": "user", "content": "?"}, {"role": "assistant", "content": text}] for text in ("a", "aaa"))
    first, second = example("Brevity")().score([short, long])
    assert first > second


def test_the_loss_takes_its_own_key(example) -> None:
    import torch

    from train.preference_losses import PairBatch

    policy, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -2.0])
    lengths = torch.tensor([3.0, 3.0])
    batch = PairBatch(policy, reference - 1, reference, reference, lengths, lengths)
    assert batch.margin.tolist() == [2.0, 1.0]
    loss = example("WIDE_HINGE")
    assert loss.options == {"width": 1.0} and not loss.needs
    assert torch.equal(loss.function(batch, beta=0.25, width=2.0), torch.tensor([1.5, 1.75]))


def test_the_hook_stops_above_its_limit(example) -> None:
    hook = example("StopAfterDollars")(3.0)
    cheap, dear = (SimpleNamespace(records=[SimpleNamespace(dollars=d), SimpleNamespace(dollars=d)]) for d in (1.0, 2.0))
    assert hook.after_iteration(cheap).action == "continue" and hook.after_iteration(dear).action == "stop"


def test_the_catalogue_entry_is_one(example) -> None:
    from harness.catalogue import Entry

    section = (ROOT / "README.md").read_text().split("## Extending it")[1]
    (block,) = re.findall(r"```yaml\n(.*?)```", section.split("\n## ")[0], re.S)
    ((name, fields),) = yaml.safe_load(block.replace("sha256: ...", f"sha256: '{'0' * 64}'")).items()
    entry = Entry(name=name, **fields)
    assert (entry.benchmark, entry.variant) == ("alpaca_eval", "against-mine")
