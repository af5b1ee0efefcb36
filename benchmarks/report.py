"""How long the comparison page takes to write, how large it is, how soon it can be used: one JSON line.

    python benchmarks/report.py [60 1000]

The sweeps are synthetic (tests/report/sweep/synthetic_sweep.py). `seconds_to_interactive` (the leaderboard answers),
`seconds_to_plots` (all four plots drawn) and `seconds_to_run` (a run's page is open) need Playwright
and a Chromium on PATH or in RAPIDUN_CHROMIUM, and are null without.
"""

import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
PLOTS = ("pareto", "parallel", "heat", "curves")


def synthetic() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "synthetic_sweep", ROOT / "tests" / "report" / "sweep" / "synthetic_sweep.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(num_runs: int, folder: Path) -> dict[str, object]:
    from rapidun.report.sweep.exports import write_sweep_summary
    from rapidun.report.sweep.page import write_comparison

    made = synthetic()
    sweep = made.make_sweep(folder, {60: made.AXES_60, 1000: made.AXES_1000}[num_runs])
    start = time.perf_counter()
    summary = write_sweep_summary(sweep)
    summarised = time.perf_counter()
    write_comparison(summary, sweep / "report.html", title="grid")
    written = time.perf_counter()
    return {
        "num_runs": num_runs,
        "seconds_to_summarise": round(summarised - start, 3),
        "seconds_to_write": round(written - summarised, 3),
        "bytes": (sweep / "report.html").stat().st_size,
        **browse(sweep / "report.html"),
    }


def browse(page: Path) -> dict[str, float | None]:
    names = ("seconds_to_interactive", "seconds_to_plots", "seconds_to_run")
    found = os.environ.get("RAPIDUN_CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if found is None or importlib.util.find_spec("playwright") is None:
        return dict.fromkeys(names)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1400, "height": 1000})
        start = time.perf_counter()
        # it counts as loaded only with its plots
        tab.goto(page.as_uri(), wait_until="domcontentloaded")
        tab.wait_for_selector("html[data-ready]")
        interactive = time.perf_counter()
        for plot in PLOTS:
            tab.wait_for_selector(f"#{plot}[data-drawn]", state="attached")
        drawn = time.perf_counter()
        tab.locator("a.open").first.click()
        tab.wait_for_selector("#run #settings")
        opened = time.perf_counter()
        browser.close()
    return {
        name: round(seconds, 3)
        for name, seconds in zip(names, (interactive - start, drawn - interactive, opened - drawn), strict=True)
    }


def main() -> None:
    sizes = [int(text) for text in sys.argv[1:]] or [60, 1000]
    with tempfile.TemporaryDirectory() as folder:
        print(
            json.dumps({"benchmark": "report", "sweeps": [measure(size, Path(folder) / str(size)) for size in sizes]})
        )


if __name__ == "__main__":
    main()
