"""The pages: content through Streamlit's own test runner, security and links in a real browser."""

import asyncio
import json
import re
import shutil
import socket
import sys
import urllib.request
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from sqlalchemy import select, text

from core.errors import HarnessError
from dashboard import export, markup, serve
from dashboard import format as f
from dashboard.charts import Trace, iterations, iterations_in_words, training, training_in_words
from dashboard.ranking import board
from db import views
from db.models import Answer, AnswerSet, Evaluation
from db.registry import VERSION_TABLE, Registry
from tests.browser import open_page, serving
from tests.sample_registry import SCORES, Sample, fill

ROOT = Path(__file__).resolve().parent.parent
APP = str(ROOT / "dashboard" / "app.py")
PAGES = ["leaderboard", "iterations", "compare", "checkpoint", "samples", "judges", "runs", "costs", "health"]

# All that the pages are built of.
TAGS = {
    "a",
    "div",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "small",
    "span",
    "sup",
    "ul",
    "li",
    "h3",
    "dl",
    "dt",
    "dd",
    "i",
    "b",
}

CHART = "[data-testid=stVegaLiteChart] :is(canvas, svg.marks)"

HOSTILE = [
    "<script>window.pwned=1</script>",
    "<img src=http://evil.example/a.png onerror=window.pwned=1>",
    "![beacon](http://evil.example/b.png)",
    "[click](javascript:window.pwned=1)",
    '"><svg onload=window.pwned=1>',
    "<style>*{background:url(http://evil.example/c.png)}</style>",
    "</style><iframe src=http://evil.example></iframe>",
    ":red[x] :material/home: $\\href{javascript:window.pwned=1}{x}$",
    "\x1b]8;;http://evil.example\x07link\x1b]8;;\x07 \u202egnp.exe",
    "{{constructor.constructor('window.pwned=1')()}}",
]


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`app(page, registry=None, **query)`: a page as a visitor sees it, and no exception on it."""
    testing = pytest.importorskip("streamlit.testing.v1", reason="streamlit is not installed")

    # What a test writes must be on the next page, not two seconds later.
    monkeypatch.setattr("dashboard.source.STALE_SECONDS", 0.0)
    # AppTest puts the page's script there and leaves it: processes that other tests spawn would run it.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])

    def visit(page: str, registry: Registry | None = None, **query: str):
        monkeypatch.setenv("HARNESS_DB", registry.url if registry else f"sqlite:///{tmp_path / 'none.db'}")
        test = testing.AppTest.from_file(APP, default_timeout=60)
        for name, value in query.items():
            test.query_params[name] = value
        test.run()
        if page != "leaderboard":
            test.switch_page(f"screens/{page}.py").run()
        assert not test.exception, test.exception
        return test

    return visit


def shown(test) -> str:
    """All HTML blocks of a page, without the style sheet."""
    return "\n".join(block.proto.body for block in test.get("html") if not block.proto.body.startswith("<style>"))


def words(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", " ", html))


def drawn_rows(specification: dict, name: str) -> list[dict]:
    """The first data set of a chart whose rows have the field `name`."""
    layers = [specification, *specification["layer"]]
    found = [layer["data"]["values"] for layer in layers if name in layer.get("data", {}).get("values", [{}])[0]]
    return found[0]


@pytest.mark.parametrize("page", PAGES)
def test_a_registry_that_is_not_there_names_the_command_that_makes_one(app, page: str) -> None:
    test = app(page)
    assert "There is no registry at" in words(shown(test))
    assert "harness train-and-eval quickstart" in [code.value for code in test.code]


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_registry_prints_the_command_that_fills_it(app, registry: Registry, page: str) -> None:
    assert "harness train-and-eval quickstart" in [code.value for code in app(page, registry).code]


@pytest.mark.parametrize("page", PAGES)
def test_a_registry_of_another_version_is_refused_with_the_way_out(app, registry: Registry, page: str) -> None:
    with registry.write() as session:
        session.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    assert "made by a newer version" in words(shown(app(page, registry)))


def test_the_leaderboard_shows_every_checkpoint_with_value_interval_judge_and_n(app, registry: Registry) -> None:
    fill(registry)
    test = app("leaderboard", registry)
    seen = words(shown(test))
    with registry.read() as session:
        rows = views.leaderboard(session)
    for row in rows:
        assert row.name in seen
        for cell in row.cells.values():
            assert f.interval(cell) in seen and f.number(cell.benchmark, cell.value) in seen
    for _, judge, n, *_ in SCORES.values():
        assert f"{n} questions; judge: " in seen, judge
    assert seen.count(f.STARTER) >= len(SCORES)
    assert [button.label for button in test.get("download_button")] == ["CSV", "Markdown", "LaTeX", "JSON"]
    assert len(test.get("vega_lite_chart")) + len(test.get("arrow_vega_lite_chart")) == len(SCORES)


def test_the_first_line_is_the_best_of_the_chosen_benchmark(app, registry: Registry) -> None:
    fill(registry)
    for benchmark, label, best in (("alpaca_eval", "AlpacaEval 2", "iter-2"), ("truthful_qa", "TruthfulQA", "iter-1")):
        test = app("leaderboard", registry, by=label)
        assert test.selectbox(key="by").value == benchmark
        assert re.search(r'scope="row" class="name"[^>]*><a[^>]*>quickstart/([\w-]+)', shown(test))[1] == best


def test_the_filters_keep_what_the_url_asks_for(app, registry: Registry) -> None:
    sample = fill(registry)
    sample.score(sample.checkpoint("other/model", "third_party"), "alpaca_eval", 50.0)
    assert "other/model" in shown(app("leaderboard", registry))
    assert "other/model" not in shown(app("leaderboard", registry, run="quickstart"))
    only = shown(app("leaderboard", registry, kind="third-party"))
    assert "other/model" in only and "quickstart/sft" not in only


def test_groups_that_cannot_be_compared_stand_apart_and_can_be_chosen(app, registry: Registry) -> None:
    sample = fill(registry)
    sample.score(sample.checkpoint("other/model", "third_party"), "alpaca_eval", 50.0, judge="gpt")
    test = app("leaderboard", registry)
    assert shown(test).count("Ranked together:") == 2
    select = test.selectbox(key="group-alpaca_eval")
    assert len(select.options) == 2
    test.selectbox(key="group-alpaca_eval").set_value(select.options[1]).run()
    assert shown(test).index("other/model") < shown(test).index("quickstart/iter-2")


def test_a_withheld_score_shows_how_many_failed_and_its_bounds(app, registry: Registry) -> None:
    sample = Sample(registry)
    sample.score(sample.checkpoint("broken", "base"), "alpaca_eval", None, n_failed=3, worst=40.0, best=58.0)
    html = shown(app("leaderboard", registry))
    assert "withheld" in words(html) and "3 failed" in words(html)
    assert "it lies within 40.0 to 58.0" in html


def test_a_checkpoint_without_scores_is_listed_and_the_page_says_how_to_go_on(app, registry: Registry) -> None:
    Sample(registry).checkpoint("fresh", "base")
    test = app("leaderboard", registry)
    typed = [code.value for code in test.code]
    assert "fresh" in shown(test) and "harness eval CHECKPOINT --benchmarks human_eval,truthful_qa" in typed


def test_a_long_leaderboard_is_sent_in_parts(app, registry: Registry) -> None:
    sample = Sample(registry)
    for index in range(80):
        sample.score(sample.checkpoint(f"model-{index:03}", "third_party"), "alpaca_eval", index / 2)
    first = app("leaderboard", registry)
    second = app("leaderboard", registry, lines="41 to 80")
    names = [re.findall(r">(model-\d+)<", shown(test)) for test in (first, second)]
    assert [len(part) for part in names] == [40, 40]
    assert names[0] + names[1] == [f"model-{index:03}" for index in reversed(range(80))]


def test_the_iterations_page_tells_the_whole_run(app, registry: Registry) -> None:
    fill(registry)
    test = app("iterations", registry)
    seen = words(shown(test))
    assert "quickstart/iter-2" in seen and "rule: highest held_out_reward" in seen
    assert "iteration 2 leads" in seen and "keep_best" in seen
    assert "3 tie" in seen, "why prompts gave no pair"
    for title in ("DPO loss", "Reward margin", "Implicit reward", "KL, nats a response"):
        assert title in seen
    for _, _, _, _, values in SCORES.values():
        assert f"{values[-1]:.2f}".rstrip("0").replace("-", "\u2212") in seen


def test_the_runs_page_shows_what_runs_what_waits_and_what_failed(app, registry: Registry) -> None:
    sample = fill(registry)
    run = sample.run("second", "running")
    sample.stage(run, "generate[1]", "running", 1, done=32, total=48, unit="prompts")
    sample.stage(run, "annotate[1]", "failed", 1, attempts=3, error="CUDA out of memory", log="logs/annotate.log")
    sample.stage(run, "pairs[1]", "waiting", 1)
    test = app("runs", registry)
    seen = words(shown(test))
    assert "32 / 48 prompts" in seen and "waiting" in seen and "logs/annotate.log" in seen
    assert "CUDA out of memory" in [code.value for code in test.code]
    assert "dpo[2]" in words(shown(test.selectbox(key="run").set_value("quickstart").run()))


def test_a_chart_says_in_words_what_it_draws(registry: Registry) -> None:
    fill(registry)
    with registry.read() as session:
        series = views.iteration_curves(session, "quickstart")
    for one in series:
        said = iterations_in_words(one)
        assert said.count(";") == 3 and "iteration 2 " + f.score(one.points[-1].cell) in said
        drawn = drawn_rows(iterations(one), "policy")
        assert [row["value"] for row in drawn] == list(SCORES[one.benchmark][-1])


def test_a_training_chart_puts_iterations_one_after_the_other() -> None:
    traces = [Trace("loss", [("dpo[1]", [(1, 0.7), (5, 0.6)]), ("dpo[2]", [(1, 0.5), (5, None)])])]
    rows = drawn_rows(training(traces), "trace")
    assert [(row["step"], row["value"]) for row in rows] == [(1, 0.7), (5, 0.6), (6, 0.5), (10, None)]
    assert training_in_words(traces) == "loss: from 0.7 to 0.5 over 4 points."


@pytest.mark.parametrize("payload", HOSTILE)
def test_hostile_text_stays_text_in_the_html(registry: Registry, payload: str) -> None:
    sample = Sample(registry)
    sample.score(sample.checkpoint(payload, "third_party"), "human_eval", 12.5, version=payload)
    with registry.read() as session:
        rows = views.leaderboard(session)
    html = markup.leaderboard(board(rows, "human_eval"), "human_eval")
    table = markup.plain_table(payload, [markup.Column(payload)] * 2, [[payload, payload]])
    for made in (html, table, markup.heading(payload, payload), markup.facts([(payload, payload, payload)])):
        tags = set(re.findall(r"</?([a-z0-9]+)", made))
        assert tags <= TAGS
        assert f.plain(payload) in unescape(made)
        assert not re.search(r"[\x00-\x1f\u202a-\u202e]", made)


def test_every_response_carries_the_policy() -> None:
    async def respond(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
        await send({"type": "http.response.body", "body": b""})

    sent: list[dict] = []

    async def keep(message) -> None:
        sent.append(message)

    asyncio.run(serve.SecurityHeaders(respond, "default-src 'none'")({"type": "http"}, None, keep))
    headers = dict(sent[0]["headers"])
    assert headers[b"x-own"] == b"1" and headers[b"content-security-policy"] == b"default-src 'none'"
    assert headers[b"x-content-type-options"] == b"nosniff"


def test_a_taken_port_ends_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(HarnessError, match="--port"):
            serve.main("sqlite:///unused.db", taken.getsockname()[1])


def test_every_option_is_known_to_streamlit() -> None:
    config = pytest.importorskip("streamlit.config", reason="streamlit is not installed")
    chosen = serve.options("127.0.0.1", 8501)
    assert set(chosen) <= set(config._config_options_template)
    assert chosen["browser.gatherUsageStats"] is False and chosen["server.address"] == "127.0.0.1"


@pytest.fixture
def server(registry: Registry) -> Iterator[str]:
    """The dashboard of `registry` as its own process; gives its origin."""
    with serving(registry.url) as origin:
        yield origin


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed: pages cannot be seen in a browser")
def test_in_a_real_browser(registry: Registry, server: str, tmp_path: Path) -> None:
    expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
    sample = fill(registry)
    for index, payload in enumerate(HOSTILE):
        sample.score(sample.checkpoint(f"{payload} {index}", "third_party"), "alpaca_eval", 30.0 + index, version=payload)
        run = sample.run(f"{payload} {index}", "failed", recipe=payload)
        sample.stage(run, payload, "failed", error=payload, log=payload)
    with registry.read() as session:
        rows = views.leaderboard(session)
    with urllib.request.urlopen(server) as answer:
        policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy

    with open_page(tmp_path, server, viewport={"width": 1440, "height": 1000}, accept_downloads=True) as (page, faults):
        # A deep link is the very first thing that this server is asked for.
        page.goto(f"{server}/runs")
        page.wait_for_selector(".h-root table")
        assert page.locator("[data-testid=stTopNavLink]").count() == len(PAGES)
        page.goto(f"{server}/?by=MT-Bench")
        page.wait_for_selector("th.sorted")
        assert page.locator("th.sorted").inner_text().startswith("MT-Bench")
        assert page.locator("tbody th.name").first.inner_text().startswith("quickstart/iter-2")

        page.get_by_role("combobox", name="Run").click()
        page.get_by_role("option", name="quickstart", exact=True).click()
        page.wait_for_url("**run=quickstart**")
        names = page.get_by_role("table", name="Leaderboard").locator("tbody th.name")
        expect(names).to_have_count(4)
        shared = page.url
        with page.expect_download() as download:
            page.get_by_role("button", name="CSV").click()
        shown_rows = [row for row in rows if row.run == "quickstart"]
        assert Path(download.value.path()).read_text() == export.to_csv(board(shown_rows, "mt_bench"))
        expect(page.locator(CHART)).to_have_count(len(SCORES))
        page.goto("about:blank")
        page.goto(shared)
        expect(names).to_have_count(4)
        assert page.locator("th.sorted").inner_text().startswith("MT-Bench")

        page.goto(f"{server}/checkpoint?fingerprint={rows[-1].fingerprint}")
        with page.expect_download() as download:
            page.get_by_role("button", name="This card, JSON").click()
        assert json.loads(Path(download.value.path()).read_text())["fingerprint"] == rows[-1].fingerprint
        with registry.write() as session:
            found = select(Evaluation).join(AnswerSet).where(Evaluation.id == rows[-1].cells["alpaca_eval"].evaluation_id)
            session.add(Answer(answer_set_id=session.scalars(found).one().answer_set_id, question_id="q", prompt="p", text="<b>"))
        page.get_by_text("AlpacaEval 2: every metric").click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Answers and verdicts, JSONL").first.click()
        assert json.loads(Path(download.value.path()).read_text())["text"] == "<b>"

        page.goto(f"{server}/iterations?run=quickstart")
        expect(page.get_by_text("iteration 2 leads")).to_be_visible()
        expect(page.locator(CHART)).to_have_count(len(SCORES) + 5)
        page.goto(f"{server}/compare")
        expect(page.get_by_text("is not compared").first).to_be_visible()
        page.goto(f"{server}/samples?evaluation=1")
        expect(page.get_by_text("No answer matches")).to_be_visible()
        page.goto(f"{server}/runs?run=nope")
        expect(page.get_by_text("There is no run nope in this registry")).to_be_visible()
        page.goto(f"{server}/runs")
        expect(page.get_by_role("table", name="All runs")).to_be_visible()
        page.get_by_role("combobox", name="Run").click()
        expect(page.get_by_role("option")).to_have_count(1 + len(HOSTILE))
        assert page.evaluate("window.pwned") is None
        page.set_viewport_size({"width": 390, "height": 800})
        page.goto(server)
        page.wait_for_selector("th.sorted")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "only the table itself scrolls sideways"
        assert page.evaluate("window.pwned") is None
    assert faults.foreign == [] and faults.errors == []
