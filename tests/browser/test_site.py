"""The site of docs/, opened from disk in a browser without a network: nothing is asked for, search finds a key."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="make docs installs it")
    out = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "docs/site/build.py", "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "index.html" in done.stdout and done.stderr == ""
    return out


@pytest.mark.parametrize("width", [390, 1280])
def test_pages_stand_alone(chromium: Any, site: Path, width: int) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 900}, offline=True)
    page = context.new_page()
    asked: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: faults.append(request.url))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    for name in ("index", "sweeps", "guides/cluster", "reference/settings/mapping", "reference/commands"):
        page.goto((site / f"{name}.html").as_uri())
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    # data: and blob: are the page's own
    assert [url for url in asked if url.startswith(("http:", "https:", "ws"))] == [] and faults == []
    context.close()


def test_search_finds_a_key_from_disk(chromium: Any, site: Path) -> None:
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    page.goto((site / "quickstart.html").as_uri())
    page.keyboard.press("f")
    page.wait_for_selector("input.md-search__input:focus")
    page.keyboard.type("min_separation")
    page.wait_for_selector(".md-search-result__item")
    assert "Settings: mapping" in page.locator(".md-search-result__list").inner_text()
    context.close()
