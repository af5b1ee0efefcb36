"""What a change must leave alone: fingerprints, files, losses, texts and messages of a tree, to be compared.

python benchmarks/golden.py record FILE.json [--tree DIR]      about ten minutes on two cores
python benchmarks/golden.py compare BEFORE.json AFTER.json     each difference, then one JSON line; status 1

Each run starts in an empty folder with one thread. Times, memory, paths and dates are left out.
"""

import argparse
import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
FAST = ["debug=fast", "resources.num_threads=1", "tracking=none"]
SHOWN = [
    "--help", "--version", "--cfg job", "--cfg job mapping=shuffled unlearning=graddiff", "--info defaults",
    "report --help", "doctor --help", "pack build --help", "pack check --help", "model fetch --help", "store --help",
    "index build --help", "index fit --help", "index score --help", "index top --help", "influence check --help",
    "sweep --help", "dashboard --help", "wandb sync --help", "completion bash", "completion zsh", "completion fish",
]  # fmt: skip
REFUSED = [
    "mapping.tauf=1", "unlearning.lora.rank=8", "+typo=1", "mapping=rapidunn", "+experiment=dolly",
    "mapping.tau_f=warm", "model.device=gpu", "~mapping", "mapping.tau_f", "seed=1,2", "mapping.tau_f=0",
    "mapping.bounded=false mapping.forget.w_min=5", "mapping.top_k=0", "seed=-1", "max_length=4",
    "stages=[mapping,influence]", "stages=[influence,unlearning]", "stages=[mappin]", "stages=mapping", "poison=none",
    "data=dolly_triggers", "mapping=file mapping.forget=fw.jsonl", "mapping.tauf=1 mapping.tau_r=0 seed=-1",
    "data=jsonl data.forget=no.jsonl data.retain=no.jsonl", "-m hydra/launcher=slurm seed=1,2",
    "-m seed=interval(1,2)", "-m sweep.where=seed>>1 seed=1,2", "sweep.name=x", "-m run_dir=x seed=1,2",
    "report nowhere", "store prune --stor x", "sweep status nowhere", "index build", "index frobnicate",
    "influence check mapping.tau_f=1", "stages=[evaluation]", "influence.params=regex influence.regex=(",
    "completion tcsh", "doctor --jso", "pack check nowhere", "model fetch nowhere", "wandb sync nowhere",
]  # fmt: skip
PAIR = ["stages=[influence,mapping]"]
GIVEN = [f"mapping.{group}=runs/fast/mapping/{group}_weights.jsonl" for group in ("forget", "retain")]
RUNS: dict[str, list[str]] = {
    "main": [*FAST[1:], "seed=1", "unlearning.max_steps=40"],
    "fast": FAST,
    "shuffled": [*FAST, "mapping=shuffled", "unlearning=graddiff", "influence=exact"],
    "random": [*FAST, "mapping=random", "unlearning=idk_sft", "influence=tensorsketch", "influence.precondition=kfac"],
    "retrain": [*FAST, "unlearning=retrain"],
    "ga": [*FAST, "unlearning=ga", "mapping=rapidun", "influence=repsim"],
    "release": [*FAST, *PAIR, "mapping=rapidun_release", "influence=factored"],
    "rapidgrad": [*FAST, *PAIR, "influence=rapidgrad", "mapping.top_k=5"],
    "bm25": [*FAST, *PAIR, "influence=bm25"],
    "file": [*FAST, "mapping=file", *GIVEN],
    "retrained": [*FAST, "poison.retrain=true", "stages=[data,poison]"],
}
GRID = [
    *FAST,
    "sweep.name=grid",
    "hydra/launcher=rapidun_local",
    "mapping=rapidun",
    "mapping.tau_f=0.3,0.7",
    "unlearning=rapidun,graddiff",
]
# keys whose values are another one each time
UNSTEADY = re.compile("second|memory|time|made|job|per_s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    made = verbs.add_parser("record")
    made.add_argument("file", type=Path)
    made.add_argument("--tree", type=Path, default=REPOSITORY, help="a checkout of this project")
    compared = verbs.add_parser("compare")
    compared.add_argument("before", type=Path)
    compared.add_argument("after", type=Path)
    args = parser.parse_args()
    if args.verb == "record":
        with tempfile.TemporaryDirectory(prefix="golden-") as folder:
            found = record(args.tree.resolve(), Path(folder))
        args.file.write_text(json.dumps(found, indent=1, sort_keys=True))
        print(json.dumps({"benchmark": "golden", "artifacts": len(found["store"]), "runs": len(found["runs"])}))
        return 0
    before, after = (json.loads(file.read_text()) for file in (args.before, args.after))
    found = list(differences(before, after))
    print("".join(f"{text}\n" for text in found), end="")
    print(json.dumps({"benchmark": "golden", "artifacts": len(after["store"]), "differences": len(found)}))
    return 1 if found else 0


def record(tree: Path, folder: Path) -> dict[str, Any]:
    """Everything that the project shows and makes, in a form that two trees can be compared in."""

    def run(args: list[str]) -> list[Any]:
        environment = os.environ | {
            "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120", "NO_COLOR": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, str(tree / "sweep.py"), *args], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return [done.returncode, steady_text(done.stdout, tree, folder), steady_text(done.stderr, tree, folder)]

    found: dict[str, Any] = {"shown": {text: run(text.split()) for text in SHOWN}}
    found["refused"] = {text: run(text.split()) for text in REFUSED}
    found["runs"] = {name: [run([*args, f"run_dir=runs/{name}"])[0]] for name, args in RUNS.items()}
    found["runs"]["grid"] = [run(["-m", *GRID])[0]]
    for result in folder.glob("**/result.json"):
        name = str(result.parent.relative_to(folder))
        found["runs"][name] = {
            "result": steady(json.loads(result.read_text())),
            "files": sorted(str(path.relative_to(result.parent)) for path in result.parent.rglob("*")),
            "metrics": [
                steady(json.loads(line)) for line in (result.parent / "metrics.jsonl").read_text().split("\n") if line
            ],
        }
    found["store"] = {}
    for file in folder.glob("outputs/store/*/*/manifest.json"):
        manifest = json.loads(file.read_text())
        found["store"][str(file.parent.relative_to(folder / "outputs/store"))] = {
            "inputs": manifest["inputs"],
            "result": steady(manifest["result"]),
            # logged lines carry times
            "files": {name: it["sha256"] for name, it in manifest["files"].items() if name != "metrics.jsonl"},
        }
    return found


def steady_text(text: str, tree: Path, folder: Path) -> str:
    """The text without places, times, and the lines that come only on a slow machine."""
    text = text.replace(str(folder), "HERE").replace(str(tree), "TREE")
    text = re.sub(r"\d+(\.\d+)? (s|min|GiB|MiB)\b", "N", text)
    text = re.sub(r"\d{4}-\d\d-\d\d[_T ]\d\d[-:]?\d\d[-:]?\d\d(\+\d+)?", "TIME", text)
    text = re.sub(r"^\d\d:\d\d:\d\d ", "TIME ", text, flags=re.MULTILINE)
    return re.sub(r"^(checking|planning): .*\n", "", text, flags=re.MULTILINE)


def steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: steady(inner) for key, inner in value.items() if not UNSTEADY.search(key)}
    return [steady(inner) for inner in value] if isinstance(value, list) else value


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            if key in before and key in after:
                yield from differences(before[key], after[key], f"{where}/{key}")
            else:
                yield f"{where}/{key}: only {'before' if key in before else 'after'}"
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from differences(old, new, f"{where}[{number}]")
    elif before != after:
        lines = [str(value).split("\n") for value in (before, after)]
        yield "\n".join([f"{where}:", *list(difflib.unified_diff(*lines, lineterm="", n=0))[2:12]])


if __name__ == "__main__":
    sys.exit(main())
