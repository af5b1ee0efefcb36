"""What a sweep costs beside its stages, on a SLURM of its own; one JSON line. Needs root and `.ci/slurm-packages`.

python benchmarks/sweep_overhead.py [--cpus 2] [--cells-per-job 6] [--steps 200]

24 cells (tau x clip x objective) of the tiny model. The stages' own time is the sum of `seconds` over the manifests of
the store: each result counts once. The sweep's time is `cpus` times the wall time of the whole command, composition,
planning and summary included. So

    overhead = cpus * wall / sum(seconds) - 1

takes in the start of processes, SLURM's scheduling, planning, and CPUs that idle while the poisoned model is made.
`over_bound` is the wall time over what no schedule goes below: the longest chain of results that need each other (those
of one cell), or all work by the number of CPUs, whichever is longer.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "slurm"))

from cluster import Cluster  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cpus", type=int, default=2, help="CPUs of the node; each job has one")
    parser.add_argument("--cells-per-job", type=int, default=6)
    parser.add_argument("--steps", type=int, default=200, help="of unlearning: how long a cell takes")
    args = parser.parse_args()
    if reason := Cluster.missing():
        raise SystemExit(f"no SLURM here: {reason}")
    with tempfile.TemporaryDirectory(prefix="rapidun-") as root:
        folder = Path(root)
        with Cluster(folder / "slurm", cpus=args.cpus, gpus=0) as cluster:
            wall = run_sweep(folder, cluster, args)
        print(json.dumps(measure(folder, wall, args)))


def run_sweep(folder: Path, cluster: Cluster, args: argparse.Namespace) -> float:
    """Wall seconds of the command."""
    overrides = [
        "debug=fast", "hydra/launcher=rapidun_slurm", "resources.num_threads=1", "resources.timeout_min=55",
        "sweep.name=grid", f"resources.cells_per_job={args.cells_per_job}",
        f"unlearning.max_steps={args.steps}", f"unlearning.eval_steps={max(2, args.steps // 2)}",
        "mapping=rapidun", "mapping.tau_f=0.3,0.5,0.7,0.9", "mapping.forget.w_max=2,3",
        "unlearning=rapidun,graddiff,idk_sft",
    ]  # fmt: skip
    environment = os.environ | cluster.environment | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "sweep.py"), "-m", *overrides],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    wall = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"the sweep failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return wall


def measure(folder: Path, wall: float, args: argparse.Namespace) -> dict[str, object]:
    """The figures, from the files that the sweep left."""
    manifests = [json.loads(path.read_text()) for path in folder.glob("outputs/store/*/*/manifest.json")]
    own = sum(manifest["seconds"] for manifest in manifests)
    grid = folder / "outputs" / "sweeps" / "grid"
    cells = [json.loads((grid / cell["hash"] / "status.json").read_text()) for cell in plan(grid)]
    starts = [cell["start_seconds"] for cell in cells]
    # the first cell of a job comes with a new process, the others find it warm
    cold = [max(c["start_seconds"] for c in cells if c["job"] == job) for job in {c["job"] for c in cells}]
    chain = max(sum(seconds_of(grid / str(cell["hash"]))) for cell in plan(grid))
    return {
        "benchmark": "sweep_overhead",
        "cells": len(cells),
        "cpus": args.cpus,
        "cells_per_job": args.cells_per_job,
        "unlearning_steps": args.steps,
        "wall_s": round(wall, 1),
        "stages_s": round(own, 1),
        "stages_per_cell_s": round(sum(m["seconds"] for m in manifests if m["stage"] != "data") / len(cells), 2),
        "overhead": round(args.cpus * wall / own - 1, 3),
        "longest_chain_s": round(chain, 1),
        "over_bound": round(wall / max(chain, own / args.cpus), 3),
        "start_per_cell_mean_s": round(sum(starts) / len(starts), 2),
        "start_of_a_process_median_s": round(median(cold), 2),
        "start_of_a_process_max_s": round(max(cold), 2),
        "executions": len(manifests),
        "load_average": round(os.getloadavg()[0], 1),
    }


def seconds_of(run: Path) -> list[float]:
    """What each result took that a cell rests on."""
    # a link to an artifact, or a folder with a link to its manifest
    manifests = {(path / "manifest.json").resolve() for path in (*run.iterdir(), *run.glob("*/*"))}
    return [json.loads(manifest.read_text())["seconds"] for manifest in manifests if manifest.is_file()]


def plan(grid: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((grid / "sweep.json").read_text())["cells"]
    return found


if __name__ == "__main__":
    main()
