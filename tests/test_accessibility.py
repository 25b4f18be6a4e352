"""What a visitor who cannot see the page, or uses no mouse, meets: names, contrast, order, keyboard; both themes and widths."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from dashboard.demo import unpack
from tests.browser import open_page, serving
from tests.test_dashboard import PAGES

PLACES = ["", *PAGES[1:]]


def serious(page: Any) -> list[str]:
    """What axe-core (WCAG 2 A and AA, and its best practices) calls serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['help']}: {node['html'][:160]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed: pages cannot be seen in a browser")
@pytest.mark.parametrize("theme, width", [("light", 1440), ("dark", 390)])
def test_nothing_serious_on_any_page(tmp_path: Path, theme: str, width: int) -> None:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = {}
    with serving(unpack()) as origin:
        options = {"viewport": {"width": width, "height": 1000}, "color_scheme": theme}
        with open_page(tmp_path, origin, **options) as (page, faults):
            for place in PLACES:
                page.goto(f"{origin}/{place}")
                page.wait_for_selector(".h-root")
                page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
                page.wait_for_timeout(300)
                if findings := serious(page):
                    found[place] = findings
                for chart in page.query_selector_all("[data-testid=stVegaLiteChart]"):
                    assert len(chart.get_attribute("aria-label") or "") > 20 or chart.query_selector("[aria-label]"), place
                assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{place} scrolls sideways"
            page.goto(f"{origin}/")
            page.wait_for_selector(".h-root a")
            reached = set()
            for _ in range(60):
                page.keyboard.press("Tab")
                reached.add(page.evaluate("document.activeElement.closest('[data-testid]')?.dataset.testid"))
            assert {"stSelectbox", "stHtml"} & reached, "the keyboard reaches the controls and the table's links"
    assert faults.errors == [] and faults.foreign == []
    assert found == {}
