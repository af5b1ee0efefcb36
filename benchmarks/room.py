"""What the scores of all rows for all rows take of memory at the fullest moment, in influence and in mapping, by rows.

    python benchmarks/room.py --rows 4000 10000

Invented sketches of 256 numbers a row go through products, scores and files as the influence stage makes them, with no
model; the mapping reads such a file. Each stage and size is a process of its own. Prints a JSON line for each: GB above
the process as it was before, bytes a pair of rows, and what rapidun/stages/room.py reckons.
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
K = 256


def memory(name: str) -> int:
    """Bytes of `VmRSS`, or of `VmHWM`, its peak."""
    lines = Path("/proc/self/status").read_text().split("\n")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def from_here() -> int:
    """Forget the peak so far; what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def influence(num_rows: int, folder: Path) -> int:
    import torch

    from rapidun.config.influence import InfluenceConfig
    from rapidun.stages.influence.gram import GramResult, gram_of_rows
    from rapidun.stages.influence.stage import _write
    from rapidun.stages.rows.records import Record

    sketches = torch.randn(num_rows, K, generator=torch.Generator().manual_seed(0))
    rows = [Record(id=str(row), instruction="a", response="b") for row in range(num_rows)]
    cut = num_rows // FORGET_SHARE
    before = from_here()
    result = GramResult(gram_of_rows(sketches), torch.zeros(num_rows, dtype=torch.float64), 1)
    _write(folder, result, cfg=InfluenceConfig(), forget=rows[:cut], retain=rows[cut:], num_token_queries=8)
    return memory("VmHWM") - before


def mapping(num_rows: int, folder: Path) -> int:
    import numpy as np
    from safetensors.numpy import save_file

    from rapidun.config.mapping import MappingConfig, ScoreKind
    from rapidun.stages.mapping.row_scores import score_rows
    from rapidun.stages.mapping.scores import read_scores

    scores = np.random.default_rng(0).standard_normal((num_rows, num_rows), dtype=np.float32)
    f, r = slice(0, num_rows // FORGET_SHARE), slice(num_rows // FORGET_SHARE, None)
    blocks = {"ff": scores[f, f], "fr": scores[f, r], "rf": scores[r, f], "rr": scores[r, r]}
    save_file({name: np.ascontiguousarray(block) for name, block in blocks.items()}, folder / "scores.safetensors")
    del scores, blocks
    cfg = MappingConfig(top_k=20)
    cfg.scores.kind = ScoreKind.strength
    before = from_here()
    score_rows(cfg, read_scores(folder / "scores.safetensors"))
    return memory("VmHWM") - before


STAGES = {"influence": influence, "mapping": mapping}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[4000])
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stage:
        with tempfile.TemporaryDirectory() as folder:
            print(STAGES[asked.stage](asked.rows[0], Path(folder)))
        return 0
    from rapidun.config.influence import InfluenceConfig
    from rapidun.stages.room import bytes_needed, mapping_bytes_needed

    for num_rows in asked.rows:
        reckoned = {
            "influence": bytes_needed(InfluenceConfig(k=K), num_rows),
            "mapping": mapping_bytes_needed(num_rows),
        }
        for stage, most in reckoned.items():
            command = [sys.executable, str(HERE), "--stage", stage, "--rows", str(num_rows)]
            found = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            line: dict[str, Any] = {"stage": stage, "rows": num_rows, "gb": round(found / 1e9, 2)}
            line |= {"bytes_a_pair": round(found / num_rows**2, 1), "reckoned_gb": round(most / 1e9, 2)}
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
