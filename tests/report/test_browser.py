"""The page in headless Chromium: the charts are drawn, nothing is loaded, it fits a phone and a desk. Needs playwright and chromium."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qn_deploy.report.facts import gather
from qn_deploy.report.page import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRAWN = 1_000  # ms


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(model: Any, build: Any, tmp_path: Path, width: int, scheme: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; Debian's package is called chromium")
    path = tmp_path / "report.html"
    path.write_text(page(replace(gather(build.folder, model.program, None), losses={"stem.weight": 31.5, "head.weight": 12.0})))
    with playwright.sync_playwright() as running, running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser:
        shown = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        said: list[str] = []
        asked: list[str] = []
        shown.on("console", lambda message: said.append(message.text))
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto(path.as_uri())
        assert said == [] and asked == [path.as_uri()]
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        sizes = shown.evaluate(
            "[...document.querySelectorAll('svg')].map(s => [s.clientWidth, s.clientHeight, s.querySelectorAll('path').length])"
        )
        assert len(sizes) == 4 and all(wide > 250 and high > 50 and paths > 5 for wide, high, paths in sizes)
        assert shown.evaluate("performance.getEntriesByType('navigation')[0].domComplete") <= DRAWN
        back, text = shown.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg text')).fill]"
        )
        lightness = [sum(map(int, colour[colour.index("(") + 1 : -1].split(",")[:3])) / 3 for colour in (back, text)]
        assert abs(lightness[0] - lightness[1]) > 150 and (lightness[0] < 60) == (scheme == "dark")
