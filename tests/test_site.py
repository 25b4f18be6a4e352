"""The exported site: one file, every ranking and number, nothing that acts or reaches out."""

import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dashboard import format as f
from dashboard.site import figure, site
from db import views
from db.registry import Registry
from harness.cli import app
from tests.browser import open_page
from tests.sample_registry import SCORES, fill
from tests.test_dashboard import HOSTILE
from tests.test_screens_leaderboard import beside


def made(registry: Registry) -> str:
    with registry.read() as session:
        return site(session)


def test_every_checkpoint_score_and_curve_is_in_the_file(registry: Registry):
    fill(registry)
    html = made(registry)
    text = unescape(re.sub(r"<[^>]*>", " ", html))
    with registry.read() as session:
        for row in views.leaderboard(session):
            assert row.name in text
            assert all(f.number(name, cell.value) in text for name, cell in row.cells.items())
    assert html.count("<svg") == len(SCORES) and html.count("Ranked by") == len(SCORES)
    assert "quickstart/iter-2 against quickstart/iter-1" in text and "no verdicts per question are stored" in text
    assert "<script" not in html and not re.search(r"(href|src)=", html)


def test_second_figures_and_baselines_are_in_it_and_a_withheld_first_policy_is_no_line(registry: Registry):
    fill(registry)
    beside(registry, 5, "mc1", 33.3)
    html = made(registry)
    assert "MC1, %" in html and "33.3" in html
    titles = re.findall(r"Ranked by ([^<]*)<", html)
    assert "TruthfulQA" in titles and "TruthfulQA, MC1" in titles and len(set(titles)) == len(titles)
    with registry.read() as session:
        (one,) = [one for one in views.iteration_curves(session, "quickstart") if one.benchmark == "alpaca_eval"]
    assert one.first.role == "sft" and figure(one).count("<line") == 1
    baseline = replace(one.points[-1], role="offline_dpo", cell=replace(one.points[-1].cell, value=95.0, low=94.0, high=96.0))
    one.baselines.append(baseline)
    drawn = figure(one)
    assert drawn.count("<line") == 2 and 'stroke-dasharray="8 3"' in drawn and ">95.0<" in drawn, "and on the scale"
    one.first = replace(one.first, cell=replace(one.first.cell, value=None))
    assert figure(one).count("<line") == 1 and 'stroke-dasharray="3 3"' not in figure(one)


def test_an_empty_registry_makes_a_page_too(registry: Registry):
    assert "0 checkpoints" in made(registry)


def test_the_command_writes_one_file(registry: Registry, tmp_path: Path):
    fill(registry)
    result = CliRunner().invoke(app, ["export", "site", "--to", str(tmp_path / "public"), "--db", registry.url])
    assert result.exit_code == 0 and (tmp_path / "public" / "index.html").read_text().startswith("<!doctype html>")
    assert [path.name for path in (tmp_path / "public").iterdir()] == ["index.html"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed: pages cannot be seen in a browser")
def test_in_a_browser_nothing_acts_and_nothing_is_fetched(registry: Registry, tmp_path: Path):
    sample = fill(registry)
    for index, payload in enumerate(HOSTILE):
        sample.score(sample.checkpoint(f"{payload} {index}", "third_party"), "alpaca_eval", 30.0 + index, version=payload)
    (tmp_path / "site.html").write_text(made(registry))
    with open_page(tmp_path, "file://", viewport={"width": 390, "height": 800}) as (page, faults):
        page.goto(f"file://{tmp_path}/site.html")
        assert page.locator("svg").count() == len(SCORES)
        assert page.evaluate("window.pwned") is None
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert [url for url in faults.foreign if not url.startswith("file:")] == [] and faults.errors == []
