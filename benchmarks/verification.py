"""What it costs to compare stored bytes with their hashes before they are used; one JSON line.

python benchmarks/verification.py [--pairs 2] [--reused 10] [--overrides debug=fast ...]

A main job and a run that reuses all of it, each beside the same one with the comparison patched away (in this benchmark
alone: no setting does that): hashes of artifacts that are found, what is remembered of them, hashes of checkpoints when
they are written and read, the lease on the run folder. Paired rounds, in turn; processor seconds of the whole process,
which other processes on the machine disturb less than seconds. `inside` is the processor time that the checks take
themselves, measured around them in the runs that have them: a small part of a difference that is mostly noise.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
# module and name of what is done for the comparison, and what stands for it in a run without
CHECKS: dict[str, Callable[..., Any]] = {
    "rapidun.base.hashes.Hashes.faults": lambda self, artifact, **more: [],
    "rapidun.base.hashes.Hashes.remember": lambda self, artifact, **more: None,
    "rapidun.models.training.checkpoints.seal_of": lambda folder, *names: {},
    "rapidun.models.training.checkpoints.broken": lambda folder, seal: [],
    "rapidun.pipeline.folder.take_folder": lambda folder, **more: None,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=2, help="of main jobs")
    parser.add_argument("--reused", type=int, default=10, help="pairs of runs that reuse all")
    parser.add_argument("--overrides", nargs="*", default=[], help="of the run")
    parser.add_argument("--child", choices=["with", "without"], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        run_child(args.child, args.overrides)
        return
    with tempfile.TemporaryDirectory(prefix="rapidun-") as place:
        root = Path(place)
        main_jobs = rounds(args.pairs, lambda number, how: run(how, root / f"{how}{number}", "run", args.overrides))
        for how in ("with", "without"):
            # files younger than two seconds are not remembered
            run(how, root / f"{how}0", "again", args.overrides)
        reused = rounds(args.reused, lambda number, how: run(how, root / f"{how}0", "again", args.overrides))
    found = {
        "overrides": args.overrides,
        "main_job": {**main_jobs, "share_inside": max(main_jobs["inside"]) / median(main_jobs["with"])},
        "reused_run": {**reused, "ms_inside": 1000 * median(reused["inside"])},
    }
    print(json.dumps(found))


def rounds(number: int, measure: Callable[[int, str], dict[str, float]]) -> dict[str, Any]:
    """Pairs of runs, the first of each in turn; processor seconds."""
    found: dict[str, list[float]] = {"with": [], "without": [], "inside": []}
    for pair in range(number):
        for how in ("with", "without") if pair % 2 == 0 else ("without", "with"):
            one = measure(pair, how)
            found[how].append(round(one["cpu"], 3))
            if how == "with":
                found["inside"].append(round(one["inside"], 5))
    differences = [a - b for a, b in zip(found["with"], found["without"], strict=True)]
    return {
        **found,
        "median_difference_s": round(median(differences), 3),
        "median_ratio": round(median(a / b for a, b in zip(found["with"], found["without"], strict=True)), 4),
    }


def run(how: str, root: Path, name: str, overrides: Sequence[str]) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), "--child", how, "--overrides", *overrides]
    command += [f"store_dir={root / 'store'}", f"run_dir={root / name}", "resources.num_threads=1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    found: dict[str, float] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return found


def run_child(how: str, overrides: Sequence[str]) -> None:
    """One run in this process; prints its processor seconds and those within the checks."""
    sys.path.insert(0, str(REPOSITORY))
    from importlib import import_module

    from rapidun.cli.main import main as rapidun

    inside = [0.0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def within(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                inside[0] += time.thread_time() - began

        return within

    for path, stand_in in CHECKS.items():
        owner, name = found_at(path, import_module)
        setattr(owner, name, stand_in if how == "without" else timed(getattr(owner, name)))
    status = rapidun(list(overrides))
    if status:
        raise SystemExit(status)
    print(json.dumps({"cpu": time.process_time(), "inside": inside[0]}))


def found_at(path: str, load: Callable[[str], Any]) -> tuple[Any, str]:
    """The module or class that a dotted name stands in, and its last part."""
    place, _, name = path.rpartition(".")
    module, _, kind = place.rpartition(".")
    return (getattr(load(module), kind) if kind[0].isupper() else load(place)), name


if __name__ == "__main__":
    main()
