"""A browser for the report tests, and the synthetic runs of tests/report."""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

# headless, and silent: no first-run pages, no updates, no sync
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
Browse = Callable[..., str]


def _report_fixtures() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "report_fixtures", Path(__file__).parents[1] / "report" / "conftest.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_fixtures = _report_fixtures()
finished_run = _fixtures.finished_run
mapping_run = _fixtures.mapping_run
sweep_dir = _fixtures.sweep_dir


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Run Chromium once with the given arguments; returns what it printed on stdout."""
    found = os.environ.get("RAPIDUN_CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if found is None:
        pytest.skip("no chromium on PATH (or in RAPIDUN_CHROMIUM)")

    def run(*arguments: str) -> str:
        profile = tmp_path / "profile"
        shutil.rmtree(profile, ignore_errors=True)
        command = [found, *FLAGS, f"--user-data-dir={profile}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return run
