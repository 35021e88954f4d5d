"""The report's page, in a real headless browser: no error, no request to outside, on light and on dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.results.report import sections
from search.results.report.page import html
from search.results.report.study_data import StudyData
from tests.browser.test_dashboard import CHROMIUM, FLAGS
from tests.support.known_engine import studied

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the system, such as Debian's package chromium")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_shows_every_figure_and_requests_nothing(tmp_path: Path, scheme: str) -> None:
    from playwright.sync_api import sync_playwright

    parts = sections(StudyData(studied(f"sqlite:///{tmp_path / 'study.db'}", 25, limit_ms=2.0), tmp_path))
    page_file = tmp_path / "report.html"
    page_file.write_text(html("Study shown", parts), encoding="utf-8")
    complaints: list[str] = []
    requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1100, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(page_file.as_uri())
        figures = page.locator("figure svg")
        assert figures.count() == sum(len(section.figures) for section in parts) > 5
        for index in range(figures.count()):
            box = figures.nth(index).bounding_box()
            assert box is not None
            assert 200 < box["width"] <= 1100
            assert box["height"] > 80
        ink, paper = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
        page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
        browser.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    brightness = [sum(map(int, color[4:-1].split(","))) for color in (ink, paper)]
    assert (brightness[0] > brightness[1]) == (scheme == "dark")
