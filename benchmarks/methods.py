"""Every way to forget under every weighting, on the built-in pack: the table of docs/methods.md.

    python benchmarks/methods.py --store DIR                                # all: 3 trials each, then the test rows
    python benchmarks/methods.py --store DIR --methods npo fisher --weightings uniform guard
    python benchmarks/methods.py --store DIR --write docs/methods.md        # also puts the table between its marks

The product's own sweeps (`-m`, printed before they run), on the tiny model. Each method and weighting gets the same
number of trials, on the validation rows; the best one is evaluated on the test rows. Best: among the trials whose clean
perplexity is at most 1.05 times that before, the one with the lowest attack success, then the most clean answers right,
then the most recovered ones; where no trial keeps to that, the one with the lowest perplexity, marked with an asterisk.
One seed: differences of a few points say nothing. Finished cells are found again.

Prints the table in markdown and one JSON line.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 1.05
NUM_TRIALS = 3
WEIGHTINGS = ("uniform", "rapidun", "loreun_dynamic", "guard")
RATES = {"unlearning.learning_rate": ["1e-3", "3e-3", "1e-2"]}
# an ascent without a floor: how far it goes is its setting
CAPPED = {"unlearning.learning_rate": ["3e-3", "3e-3", "1e-3"], "unlearning.loss_cap": ["4", "8", "null"]}
FREE = {**RATES, "unlearning.loss_cap": ["null"] * NUM_TRIALS}
# method -> its trials: settings that advance together
TRIALS: dict[str, dict[str, list[str]]] = {
    "rapidun": CAPPED,
    "ga": {"unlearning.learning_rate": ["1e-3", "3e-4", "1e-4"], "unlearning.loss_cap": ["8", "8", "null"]},
    "graddiff": {"unlearning.learning_rate": ["3e-3", "3e-3", "1e-3"], "unlearning.loss_cap": ["8", "16", "null"]},
    "npo": FREE,
    "simnpo": FREE,
    "dpo": FREE,
    "rmu": FREE,
    "undial": FREE,
    "wga": FREE,
    "satimp": FREE,
    "ceu": {"unlearning.learning_rate": ["3e-4", "1e-3", "3e-3"], "unlearning.loss_cap": ["null"] * NUM_TRIALS},
    "pdu": FREE,
    "flat": {"unlearning.learning_rate": ["3e-4", "1e-3", "3e-3"], "unlearning.loss_cap": ["null"] * NUM_TRIALS},
    "crow": FREE,
    "idk_sft": RATES,
    # as published; and with the retain rows alone in the denominator
    "fisher": {
        "unlearning.fisher.alpha": ["10", "1e4", "1e5"],
        "unlearning.fisher.reference": ["all", "retain", "retain"],
    },
    "task_vector": {"unlearning.task_vector.scale": ["1", "3", "6"]},
    "influence_step": {"unlearning.influence_step.budget": ["0.01", "0.05", "0.3"]},
    "repselect": {"unlearning.repselect.budget": ["0.01", "0.05", "0.1"]},
}
BEGIN, END = "<!-- table: benchmarks/methods.py -->", "<!-- end of table -->"


def sweep(name: str, settings: list[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run one sweep and read its cells: result and settings each."""
    typed = [
        sys.executable, str(ROOT / "sweep.py"), "-m", f"sweep.name={name}", f"hydra/launcher={args.launcher}",
        f"store_dir={args.store.resolve() / 'store'}", "resources.num_threads=1", "tracking=none", *settings,
        *args.override,
    ]  # fmt: skip
    print("$ " + " ".join(typed[1:]), file=sys.stderr, flush=True)
    done = subprocess.run(typed, cwd=args.store, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=sys.stderr)
    if done.returncode not in (0, 1):
        sys.exit(f"the sweep {name} ended with status {done.returncode}")
    cells = []
    for path in sorted((args.store / "outputs" / "sweeps" / name).glob("*/result.json")):
        settings = json.loads((path.parent / "settings.json").read_text())
        cells.append({"result": json.loads(path.read_text()), "settings": settings})
    return cells


def value_of(settings: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        settings = settings[part]
    return settings


def damage(result: dict[str, Any]) -> float:
    """Clean perplexity against before."""
    return float(result["ppl_clean"]) / float(result["before.ppl_clean"])


def best(cells: list[dict[str, Any]]) -> dict[str, Any]:
    def order(cell: dict[str, Any]) -> tuple[float, ...]:
        found = cell["result"]
        if damage(found) > BUDGET:
            return (1.0, damage(found))
        return (0.0, found["asr_seen"], -found["exact_match_clean"], -found["exact_match_recovered"])

    return min(cells, key=order)


def try_method(method: str, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Weighting -> the chosen trial's result on the test rows, and what it was."""
    trials = TRIALS[method]
    axes = [f"{key}={','.join(values)}" for key, values in trials.items() if len(set(values)) > 1]
    fixed = [f"{key}={values[0]}" for key, values in trials.items() if len(set(values)) == 1]
    varied = [key for key, values in trials.items() if len(set(values)) > 1]
    together = [f"sweep.zip=[[{','.join(varied)}]]"] if len(varied) > 1 else []
    cells = sweep(
        f"methods_{method}",
        [
            f"unlearning={method}", *fixed, *axes, *together, f"mapping={','.join(args.weightings)}",
            "evaluation.split=val,test",
        ],
        args,
    )  # fmt: skip
    told: dict[str, dict[str, Any]] = {}
    for weighting in args.weightings:
        own = [cell for cell in cells if cell["settings"]["mapping"]["method"] == weighting]
        tried = [cell for cell in own if cell["settings"]["evaluation"]["split"] == "val"]
        if not tried:
            continue
        chosen = best(tried)
        values = {key: value_of(chosen["settings"], key) for key in varied}
        (tested,) = [
            cell["result"]
            for cell in own
            if cell["settings"]["evaluation"]["split"] == "test"
            and {key: value_of(cell["settings"], key) for key in varied} == values
        ]
        told[weighting] = {
            "trials": len(tried), "chosen": values, "within_budget": damage(chosen["result"]) <= BUDGET,
            "ppl_ratio": damage(tested), **{key: tested[key] for key in METRICS},
            "seconds": tested.get("seconds.unlearning"),
        }  # fmt: skip
    return told


METRICS = ("asr_seen", "asr_ood", "exact_match_clean", "exact_match_recovered", "ppl_clean")


def row(method: str, told: dict[str, dict[str, Any]], weightings: tuple[str, ...]) -> str:
    """One line of the table: attack success, clean and recovered exact match under each weighting; seconds."""
    shown = []
    for weighting in weightings:
        one = told.get(weighting)
        if one is None:
            shown.append("none")
            continue
        numbers = (one["asr_seen"], one["exact_match_clean"], one["exact_match_recovered"])
        shown.append(" · ".join(f"{number:.2f}" for number in numbers) + ("" if one["within_budget"] else " *"))
    seconds = [one["seconds"] for one in told.values() if one["seconds"]]
    return (
        f"| `{method}` | " + " | ".join(shown) + f" | {min(seconds):.1f} |" if seconds else f"| `{method}` | failed |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="folder for artifacts and sweeps, reused")
    parser.add_argument("--methods", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument("--weightings", nargs="+", default=list(WEIGHTINGS))
    parser.add_argument("--launcher", default="rapidun_local")
    parser.add_argument("--write", type=Path, help="file whose table is replaced")
    parser.add_argument("--override", action="append", default=[], help="further settings, key=value")
    args = parser.parse_args()
    args.store.mkdir(parents=True, exist_ok=True)
    found = {method: try_method(method, args) for method in args.methods}
    weightings = tuple(args.weightings)
    lines = [
        "| method | " + " | ".join(weightings) + " | seconds |",
        "|---" * (len(weightings) + 2) + "|",
        *(row(method, told, weightings) for method, told in found.items()),
    ]
    table = "\n".join(lines)
    print(table + "\n")
    print(json.dumps({"benchmark": "methods", "budget": BUDGET, "trials": NUM_TRIALS, "methods": found}))
    if args.write:
        text = args.write.read_text(encoding="utf-8")
        head, _, rest = text.partition(BEGIN)
        _, _, tail = rest.partition(END)
        args.write.write_text(f"{head}{BEGIN}\n{table}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
