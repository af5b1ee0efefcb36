"""Browsers for the report tests, and the synthetic runs and sweeps of tests/report."""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# headless, and silent: no first-run pages, no updates, no sync
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
Browse = Callable[..., str]
# the perplexity of the synthetic runs is 1.2 before, and 1.2 + 0.05 / (ASR + 0.1) after
BUDGET = "ppl_clean <= 1.2 * before.ppl_clean"


def _of_report_tests(name: str) -> ModuleType:
    file = Path(__file__).parents[1] / "report" / name
    spec = importlib.util.spec_from_file_location(f"report_{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_fixtures = _of_report_tests("conftest.py")
synthetic = _of_report_tests("sweep/synthetic_sweep.py")
finished_run = _fixtures.finished_run
mapping_run = _fixtures.mapping_run
sweep_dir = _fixtures.sweep_dir
new_cell = _fixtures.new_cell
made_cell = _of_report_tests("sweep/conftest.py").made_cell


def _chromium() -> str:
    found = os.environ.get("RAPIDUN_CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if found is None:
        pytest.skip("no chromium on PATH (or in RAPIDUN_CHROMIUM)")
    return found


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Run Chromium once with the given arguments; returns what it printed on stdout."""
    found = _chromium()

    def run(*arguments: str) -> str:
        profile = tmp_path / "profile"
        shutil.rmtree(profile, ignore_errors=True)
        command = [found, *FLAGS, f"--user-data-dir={profile}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout

    return run


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One Chromium, driven by Playwright, for all tests."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=_chromium(), args=list(FLAGS[1:]))
        yield browser
        browser.close()


def _compared(root: Path, axes: dict[str, tuple[str, ...]], *, budget: str | None = None) -> Path:
    from rapidun.report.sweep.exports import write_sweep_summary

    sweep: Path = synthetic.make_sweep(root, axes)
    from rapidun.report.sweep.page import write_sweep_index

    write_sweep_index(sweep, write_sweep_summary(sweep, budget=budget))
    return sweep / "report.html"


@pytest.fixture(scope="session")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison page of 60 runs."""
    return _compared(tmp_path_factory.mktemp("sixty"), synthetic.AXES_60)


@pytest.fixture(scope="session")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison page of the same 60 runs under a budget that some of them exceed."""
    return _compared(tmp_path_factory.mktemp("bounded"), synthetic.AXES_60, budget=BUDGET)


@pytest.fixture(scope="session")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison page of 1,000 runs."""
    return _compared(tmp_path_factory.mktemp("thousand"), synthetic.AXES_1000)
