"""What a sweep of many real cells leaves and takes: files, bytes, memory, page; one JSON line.

python benchmarks/large_sweep.py [--cells 200] [--launcher basic]

Each cell unlearns and is evaluated for real, on the tiny model, in the fewest steps: `debug=fast`, seeds x w_max.
Memory is the peak of the process that drives the sweep (with `basic` it runs the cells too) as the kernel counted it.
The page's opening is timed in a headless Chromium, from its start to the DOM after the scripts, less the same for an
empty page.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CELLS = [
    "debug=fast", "mapping=rapidun", "unlearning.max_steps=1", "unlearning.eval_steps=0", "unlearning.save_steps=0",
    "evaluation.num_prompts=1", "evaluation.max_new_tokens=2", "evaluation.num_ppl=2", "evaluation.num_calibration=2",
    "influence.num_token_queries=0", "resources.num_threads=1", "sweep.name=large",
]  # fmt: skip
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=200, help="a multiple of 10")
    parser.add_argument("--launcher", default="basic")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rapidun-") as root:
        folder = Path(root)
        wide = ",".join(f"{2 + number / 10:g}" for number in range(10))
        axes = [f"seed=range({args.cells // 10})", f"mapping.forget.w_max={wide}"]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, str(REPOSITORY / "sweep.py"), "-m", *CELLS, *axes, f"hydra/launcher={args.launcher}"],
            cwd=folder, env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True,
        )  # fmt: skip
        wall = time.monotonic() - began
        if done.returncode:
            raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        grid = folder / "outputs" / "sweeps" / "large"
        files = [path for path in (folder / "outputs").rglob("*") if path.is_file() and not path.is_symlink()]
        page = grid / "report.html"
        began = time.monotonic()
        subprocess.run(
            [sys.executable, str(REPOSITORY / "sweep.py"), "report", str(grid)],
            cwd=folder, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, check=True, capture_output=True,
        )  # fmt: skip
        report_s = time.monotonic() - began
        measured = {
            "cells": args.cells,
            "launcher": args.launcher,
            "wall_s": round(wall, 1),
            "cpu_s": round(used.ru_utime + used.ru_stime, 1),
            "cpu_s_per_cell": round((used.ru_utime + used.ru_stime) / args.cells, 2),
            "peak_memory_mb": round(used.ru_maxrss / 1024),
            "files": len(files),
            "files_per_cell": round(len(files) / args.cells, 1),
            "mb": round(sum(path.stat().st_size for path in files) / 1e6, 1),
            "sweep_mb": round(sum(path.stat().st_size for path in files if grid in path.parents) / 1e6, 1),
            "page_mb": round(page.stat().st_size / 1e6, 2),
            "report_again_s": round(report_s, 1),
            "page_opens_s": opening(page, folder),
        }
        print(json.dumps(measured))


def opening(page: Path, folder: Path) -> float | None:
    """Seconds until a headless Chromium has the page's DOM, more than for an empty page; None without one."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        return None
    empty = folder / "empty.html"
    empty.write_text("<!doctype html><title>empty</title>")

    def seconds(path: Path) -> float:
        began = time.monotonic()
        subprocess.run(
            [found, *FLAGS, f"--user-data-dir={folder / 'profile'}", path.resolve().as_uri()],
            capture_output=True, check=True, timeout=300,
        )  # fmt: skip
        return time.monotonic() - began

    # the first start makes the profile
    seconds(empty)
    return round(min(seconds(page) for _ in range(3)) - min(seconds(empty) for _ in range(3)), 2)


if __name__ == "__main__":
    main()
