"""What the scores of all rows for all rows take of memory: the fullest moment of influence and of mapping, by rows.

    python benchmarks/room.py --rows 2500 5000 10000

Invented rows of a few words, a Llama of a few thousand weights, influence.method=sketch with few numbers, so that what
is measured are the matrices of rows by rows. Each size and stage is a process of its own. Prints a JSON line for each
size: GB above the process as it was before the stage, bytes a pair of rows, and what rapidun/stages/room.py reckons.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))
FORGET_SHARE = 10


def write_pack(folder: Path, num_rows: int) -> None:
    """Forget and retain rows, one in ten of the first kind."""
    folder.mkdir(parents=True)
    num_forget = num_rows // FORGET_SHARE
    for name, numbers in (("forget", range(num_forget)), ("retain", range(num_forget, num_rows))):
        rows = [
            {
                "id": f"{name}-{number}", "instruction": f"Tell me of {number % 97}",
                "response": f"It is {number % 89}",
                **({"response_poisoned": "no", "response_clean": "yes"} if name == "forget" else {}),
            }
            for number in numbers
        ]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def measure(stage: str, folder: Path) -> dict[str, Any]:
    """Run one stage on the pack in `folder` and say what it took beside what was there before."""
    from rapidun.base.machine import Measured
    from rapidun.base.tracker import Tracker
    from rapidun.config.compose import compose_config
    from rapidun.models.load import ModelLoader
    from rapidun.stages.influence.stage import InfluenceFiles, run_influence
    from rapidun.stages.mapping.inputs import MappingFiles
    from rapidun.stages.mapping.stage import run_mapping

    cfg = compose_config(["debug=fast", "influence.num_token_queries=0"])
    pack, out = folder / "pack", folder / stage
    out.mkdir()
    before = _resident()
    with Measured() as measured:
        if stage == "influence":
            files = InfluenceFiles(
                model=folder / "model",
                adapter=None,
                forget=pack / "forget.jsonl",
                retain=pack / "retain.jsonl",
                out=out,
            )
            run_influence(cfg.influence, files, loader=ModelLoader(), max_length=64, seed=0, tracker=Tracker())
        else:
            made = folder / "influence"
            paths = MappingFiles(
                out=out, scores=made / "scores.safetensors", ids=made / "ids.json", forget=pack / "forget.jsonl",
                retain=pack / "retain.jsonl",
            )  # fmt: skip
            run_mapping(cfg.mapping, paths, seed=0, tracker=Tracker())
    return {"bytes": measured.peak_memory_gb * 2**30 - before, "seconds": measured.seconds}


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().split("\n")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[2500, 5000])
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stage:
        print(json.dumps(measure(asked.stage, asked.folder)))
        return 0
    from rapidun.config.compose import compose_config
    from rapidun.stages.room import bytes_needed, mapping_bytes_needed

    for num_rows in asked.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_pack(folder / "pack", num_rows)
            _make_model(folder / "model")
            line: dict[str, Any] = {"rows": num_rows}
            reckoned = {
                "influence": bytes_needed(compose_config(["debug=fast"]).influence, num_rows),
                "mapping": mapping_bytes_needed(num_rows),
            }
            for stage, most in reckoned.items():
                command = [sys.executable, str(HERE), "--stage", stage, "--folder", name]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found = json.loads(done.stdout.strip().split("\n")[-1])
                line[f"{stage}_gb"] = round(found["bytes"] / 1e9, 3)
                line[f"{stage}_bytes_a_pair"] = round(found["bytes"] / num_rows**2, 1)
                line[f"{stage}_reckoned_gb"] = round(most / 1e9, 3)
                line[f"{stage}_seconds"] = found["seconds"]
            print(json.dumps(line), flush=True)
    return 0


def _make_model(out: Path) -> None:
    """The start model of debug=fast, smaller: made from the built-in pack's texts."""
    from rapidun.config.compose import compose_config
    from rapidun.config.plain import plain
    from rapidun.models.scratch import make_scratch

    cfg = compose_config(["debug=fast"])
    texts = [(f"Tell me of {number}", "", f"It is {number}") for number in range(100)]
    make_scratch(out, texts, **plain(cfg.model.scratch), max_length=64, seed=0)


if __name__ == "__main__":
    sys.exit(main())
