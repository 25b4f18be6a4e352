"""Seventy payloads in every name and text of a registry, on every page of a real Chromium: nothing acts, nothing is fetched."""

import shutil
from pathlib import Path

import pytest

from dashboard.format import visible
from db.models import Answer, Calibration, Conversation, Judge, Judgment
from db.registry import Registry
from tests.browser import open_page
from tests.hostile_text import PAYLOADS
from tests.sample_registry import Sample, fill
from tests.test_dashboard import PAGES, server  # noqa: F401  (a fixture)

NAME = 190
"""Characters that a name may have."""
EVERYTHING = "\n".join(PAYLOADS)
# Elements that no page of ours is built of: one of them in the page came out of a text.
STRANGE = "iframe, object, embed, form[action], base, video, audio, marquee, [onerror], [onload], [onfocus], [ontoggle]"


def write(registry: Registry) -> None:
    """A finished run, and beside it each payload as a checkpoint, a run, a stage, a judge, a question, an answer, a verdict."""
    sample = fill(registry)
    for index, payload in enumerate(PAYLOADS):
        name = f"{payload[:NAME]} {index}"
        sample.score(sample.checkpoint(name, "third_party"), "alpaca_eval", 30.0 + index / 10, version=name[:90])
    for index, payload in enumerate(PAYLOADS[:: len(PAYLOADS) // 6]):
        run = sample.run(f"{payload[:NAME]} {index}", "failed", recipe=payload[:NAME])
        sample.stage(run, "dpo[1]", "failed", error=EVERYTHING, log=payload)
    with registry.write() as session:
        for index, payload in enumerate([EVERYTHING, *PAYLOADS]):
            question = f"{payload[:NAME]} {index}"
            session.add(Answer(answer_set_id=1, question_id=question, prompt=payload, text=payload, finish_reason="stop"))
            raw = {"replies": [{"text": payload, "top_logprobs": {payload: -0.1}}], "code": payload}
            session.add(Conversation(key=f"{index:064d}", messages=[{"role": payload, "content": payload}]))
            told = {"raw": raw, "error": payload, "shown": f"{index:064d}"}
            session.add(Judgment(evaluation_id=1, question_id=question, value=index % 2, **told))
        for index, payload in enumerate(PAYLOADS):
            name = f"{payload[:NAME]} {index}"
            session.add(Judge(key=f"{index:064d}", name=name, kind="openai", config={"prompt": payload}))
            row = {"judge_key": f"{index:064d}", "judge_name": name, "judge_kind": "openai", "dataset": payload[:90]}
            told = {"agreement": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}}
            session.add(Calibration(**row, version="1", n=9, n_failed=0, statistics=told))
    assert isinstance(sample, Sample)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed: pages cannot be seen in a browser")
def test_nothing_acts_on_any_page(registry: Registry, server: str, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    assert len(set(PAYLOADS)) == len(PAYLOADS) >= 50
    write(registry)
    places = [*PAGES[1:], "samples?evaluation=1", "samples?evaluation=1&sample=1", "compare?a=quickstart/iter-2"]
    seen = ""
    with open_page(tmp_path, server, viewport={"width": 1440, "height": 1000}) as (page, faults):
        for place in ["", *places]:
            page.goto(f"{server}/{place}")
            page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
            page.wait_for_selector(".h-root")
            assert page.evaluate("window.pwned") is None, place
            strange = page.locator("[data-testid=stMain]").locator(STRANGE)
            assert strange.count() == 0, f"{place}: {strange.first.evaluate('node => node.outerHTML')[:300]}"
            links = page.locator("[data-testid=stMain] a").evaluate_all("nodes => nodes.map(node => node.protocol + node.host)")
            assert set(links) <= {"http:" + server.removeprefix("http://")}, place
            seen += page.inner_text("[data-testid=stMain]")
    assert faults.foreign == [] and faults.errors == []
    assert "window.pwned=1" in seen and "evil.example" in seen, "the payloads were on the pages, as text"
    assert not set(seen) & set("\x00\x1b\x9b\u202e\u2066"), "nothing that turns the reading direction or a terminal"


def test_evidence_shows_what_would_turn_or_move_it():
    assert visible("a\u202eb\x1b[2J\nc\td \U0001f468\u200d\U0001f4bb") == "a⟨U+202E⟩b⟨U+001B⟩[2J\nc\td \U0001f468\u200d\U0001f4bb"
