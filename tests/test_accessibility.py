"""What a visitor who cannot see the page, or uses no mouse, meets: names, contrast, order, keyboard; both themes and widths."""

import shutil
import time
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
def test_nothing_serious_on_any_page(tmp_path: Path) -> None:
    """Every page is opened once and looked at twice: at a desk in the light, then with a phone in the dark."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = {}
    with serving(unpack()) as origin, open_page(tmp_path, origin) as (page, faults):
        for place in PLACES:
            look(page, "light", 1440)
            page.goto(f"{origin}/{place}")
            page.wait_for_selector(".h-root")
            for theme, width in (("light", 1440), ("dark", 390)):
                look(page, theme, width)
                if findings := serious(page):
                    found[place, theme] = findings
                assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{place} scrolls sideways"
            for chart in page.query_selector_all("[data-testid=stVegaLiteChart]"):
                assert len(chart.get_attribute("aria-label") or "") > 20 or chart.query_selector("[aria-label]"), place
        for width in (1440, 390):
            look(page, "light", width)
            page.goto(f"{origin}/")
            page.wait_for_selector(".h-root a")
            reached = set()
            for _ in range(60):
                page.keyboard.press("Tab")
                reached.add(page.evaluate("document.activeElement.closest('[data-testid]')?.dataset.testid"))
            assert {"stSelectbox", "stHtml"} & reached, "the keyboard reaches the controls and the table's links"
    assert faults.errors == [] and faults.foreign == []
    assert found == {}


def look(page: Any, theme: str, width: int) -> None:
    """Give the page this look, and wait until it has it."""
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 1000})
    if page.url == "about:blank":
        return
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
    dark = "getComputedStyle(document.querySelector('[data-testid=stApp]')).colorScheme == 'dark'"
    # Asked from outside: a function that waits inside the page would need an eval, which its policy forbids.
    deadline = time.monotonic() + 5
    while page.evaluate(dark) != (theme == "dark"):
        assert time.monotonic() < deadline, f"the page did not turn {theme}"
        page.wait_for_timeout(50)
    page.wait_for_timeout(300)
