"""Do weights help the unlearning? Recovered answers, ASR and clean answers of each weighting against uniform.

    python benchmarks/weights_training.py --store DIR                      # dirty, its null, and clean: 120 cells
    python benchmarks/weights_training.py --store DIR --sweeps dirty --worlds 5 --seeds 10 11

The product's own sweeps (`-m`, printed before they run): the built-in pack and the tiny model, a quarter of the forget
and of the retain rows wrong (dirty), or none (clean); worlds are data.seed = poison.seed, each seed draws its own wrong
rows. A world is poisoned once. Finished cells are found again. Differences are paired by world and seed; brackets hold
95 % of 10,000 bootstrap means over the pairs.

Prints a markdown table and one JSON line for each sweep.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
NOISE = ["data.noise.forget=0.25", "data.noise.retain=0.25"]
# sweep -> (its settings, its weightings)
SWEEPS: dict[str, tuple[list[str], str]] = {
    "dirty": (NOISE, "recommended,uniform,rapidun,oracle,shuffled,strength"),
    "dirty_null": ([*NOISE, "mapping.null=shuffled"], "recommended"),
    "clean": ([], "recommended,uniform,rapidun,shuffled,strength"),
}
METRICS = ("exact_match_recovered", "asr_seen", "exact_match_clean", "ppl_clean")
Key = tuple[int, int]


def command(name: str, args: argparse.Namespace) -> list[str]:
    """The sweep as it is typed."""
    settings, mappings = SWEEPS[name]
    worlds, seeds = (",".join(map(str, numbers)) for numbers in (args.worlds, args.seeds))
    noisy = [f"data.noise.seed={seeds}"] if settings else []
    # a single value is no axis
    pairs = ["[data.seed,poison.seed]"] if len(args.worlds) > 1 else []
    pairs += ["[seed,data.noise.seed]"] if settings and len(args.seeds) > 1 else []
    return [
        sys.executable, str(ROOT / "sweep.py"), "-m", f"sweep.name={name}", "hydra/launcher=basic",
        f"store_dir={args.store.resolve() / 'store'}", "resources.num_threads=1", "tracking=none",
        f"mapping={mappings}", f"data.seed={worlds}", f"poison.seed={worlds}", f"seed={seeds}", *settings, *noisy,
        f"sweep.zip=[{','.join(pairs)}]", *args.override,
    ]  # fmt: skip


def read_cells(folder: Path) -> dict[str, dict[Key, dict[str, Any]]]:
    """Weighting (with its null) -> (world, seed) -> the cell's result."""
    found: dict[str, dict[Key, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/result.json")):
        settings = json.loads((path.parent / "settings.json").read_text())
        mapping = settings["mapping"]
        name = mapping["method"] + ("" if mapping["null"] == "none" else f", {mapping['null']}")
        found.setdefault(name, {})[settings["data"]["seed"], settings["seed"]] = json.loads(path.read_text())
    return found


def differences(cells: dict[Key, dict[str, Any]], base: dict[Key, dict[str, Any]], metric: str) -> dict[str, Any]:
    """Mean and bootstrap interval of the paired differences."""
    keys = sorted(set(cells) & set(base))
    values = np.array([cells[key][metric] - base[key][metric] for key in keys])
    draws = np.random.default_rng(0).choice(values, (10_000, len(values))).mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return {"n": len(keys), "mean": float(values.mean()), "low": float(low), "high": float(high)}


def tell(name: str, cells: dict[str, dict[Key, dict[str, Any]]], base: dict[Key, dict[str, Any]]) -> None:
    print(
        f"| {name} | n | "
        + " | ".join(METRICS)
        + " | recovered, less uniform | ASR, less uniform | clean, less uniform |"
    )
    print("|---" * (len(METRICS) + 5) + "|")
    line: dict[str, Any] = {"benchmark": "weights_training", "sweep": name, "weightings": {}}
    for weighting, results in cells.items():
        means = {metric: float(np.mean([result[metric] for result in results.values()])) for metric in METRICS}
        line["weightings"][weighting] = {"n": len(results), **means}
        shown = [f"{means[metric]:.3f}" for metric in METRICS]
        if results is not base and base:
            told = {metric: differences(results, base, metric) for metric in METRICS[:3]}
            line["weightings"][weighting]["less_uniform"] = told
            shown += [f"{one['mean']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]" for one in told.values()]
        print(f"| {weighting} | {len(results)} | " + " | ".join(shown) + " |")
    print("\n" + json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="folder for artifacts and sweeps, reused")
    parser.add_argument("--sweeps", nargs="+", choices=list(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--worlds", type=int, nargs="+", default=[5, 6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--override", action="append", default=[], help="further settings, key=value")
    args = parser.parse_args()
    args.store.mkdir(parents=True, exist_ok=True)
    uniform: dict[Key, dict[str, Any]] = {}
    for name in args.sweeps:
        typed = command(name, args)
        print("$ " + " ".join(typed[1:]), file=sys.stderr)
        subprocess.run(typed, cwd=args.store, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=sys.stderr, check=True)
        cells = read_cells(args.store / "outputs" / "sweeps" / name)
        # the null of a dirty pack has no uniform cells of its own
        uniform = cells.get("uniform", uniform if "dirty" in name else {})
        tell(name, cells, uniform)


if __name__ == "__main__":
    main()
