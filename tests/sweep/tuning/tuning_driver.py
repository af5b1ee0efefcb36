"""A search whose cells are computed by a formula in no time; run as a program, it can kill itself on the way.

python tuning_driver.py '{"kill_at": 9, "when": "running"}' OVERRIDE...
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rapidun.base.files import write_json
from rapidun.cli.main import main
from rapidun.sweep.folder import SWEEPS, SweepFolder, read_state
from rapidun.sweep.tuning import loop as tuning

# one line for each start of a cell
LOG = Path("runs.log")
SEARCH = ["-m", "hydra/sweeper=rapidun_optuna", "sweep.name=s"]


def result(cfg: Any) -> dict[str, Any]:
    """Two numbers that pull in different directions, on a coarse grid so that there are ties."""
    x, y = cfg.mapping.tau_f, cfg.mapping.tau_r
    return {"asr_seen": round((x - 0.7) ** 2 + 0.1 * y, 1), "ppl_clean": round(1 / x + (y - 1) ** 2, 1), "name": "x"}


def prepare(cells: Any, *, name: str, batch: Any, **rest: Any) -> Any:
    return SimpleNamespace(folder=SweepFolder(SWEEPS / name), cells=cells, launcher=None, notes=[], batch=batch)


def make_launch(compute: Any = result, *, kill_at: int = 0, when: str = "running") -> Any:
    """What stands for rapidun.sweep.run.launch.

    Args: compute: RunConfig -> contents of result.json, or the `state` and `error` of a cell that ends otherwise.
        kill_at: the start, counted over all processes, at which this one is killed: while the cell is `running`, or
        when it is `done` and the study has not heard of it.
    """

    def launch(sweep: Any, **rest: Any) -> int:
        for cell in sweep.cells:
            folder = sweep.folder.folder(cell.hash)
            if read_state(folder).state in ("done", "pruned"):
                continue
            with LOG.open("a") as file:
                file.write(f"{cell.hash}\n")
            started = len(LOG.read_text().splitlines())
            write_json(folder / "overrides.json", {"task": cell.overrides, "axes": cell.axes})
            write_json(folder / "status.json", {"state": "running", "stages": {}})
            if started == kill_at and when == "running":
                os.kill(os.getpid(), signal.SIGKILL)
            found = compute(cell.cfg)
            state, error = found.pop("state", "done"), found.pop("error", None)
            write_json(folder / "result.json", found)
            write_json(
                folder / "status.json",
                {"state": state, "stages": {}, "error": {"message": error, "traceback": ""} if error else None},
            )
            if started == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return 0

    return launch


if __name__ == "__main__":
    tuning.prepare = prepare  # type: ignore[assignment]
    tuning.launch = make_launch(**json.loads(sys.argv[1]))
    sys.exit(main([*SEARCH, *sys.argv[2:]]))
