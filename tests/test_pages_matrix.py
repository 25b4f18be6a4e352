"""Every page over every size of registry: nothing yet, one row, failures, a thousand rows. No exception on any."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from db.registry import Registry
from scripts.synthetic_registry import fill as fill_many
from tests.sample_registry import Sample
from tests.test_dashboard import PAGES, app, shown, words  # noqa: F401  (app is a fixture)

STATES = ("nothing", "one_row", "failures", "a_thousand_rows")


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Registry]]:
    folder: Path = tmp_path_factory.mktemp("matrix")
    made = {state: Registry.open(f"sqlite:///{folder}/{state}.db") for state in STATES}
    one = Sample(made["one_row"])
    one.score(one.checkpoint("only", "third_party"), "human_eval", 50.0)
    failed = Sample(made["failures"])
    run = failed.run("broken", "failed")
    failed.stage(run, "sft", "failed", error="CUDA out of memory", log="logs/sft.log")
    failed.stage(run, "dpo[1]", "waiting", iteration=1)
    base = failed.checkpoint("broken/base", "base", run)
    failed.score(base, "alpaca_eval", None, n_failed=3, worst=10.0, best=60.0)
    failed.score(base, "mt_bench", None, n_failed=8, complete=False)
    failed.checkpoint("broken/sft", "sft", run, parent_id=base)
    fill_many(made["a_thousand_rows"], 1000, samples=9000)
    yield made
    for registry in made.values():
        registry.close()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("page", PAGES)
def test_every_page_of_every_registry(app, registries: dict[str, Registry], page: str, state: str) -> None:  # noqa: F811
    test = app(page, registries[state])
    said = words(shown(test)) + " ".join(block.value for block in test.code)
    assert not test.error
    assert len(test.title) == 1, "every page says what it is"
    if state == "nothing":
        assert any(block.value.startswith("harness ") for block in test.code), "an empty page prints the command that fills it"
    if state == "a_thousand_rows" and page in ("leaderboard", "iterations", "checkpoint", "samples", "runs"):
        assert "synthetic" in said
    if state == "failures" and page == "runs":
        assert "CUDA out of memory" in said and "waiting" in said
    if state == "failures" and page == "leaderboard":
        assert "withheld" in said and "3 failed" in said
