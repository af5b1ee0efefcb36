"""Many at once: mappings of one influence, two drivers of one sweep, a driver that is asked to end."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from rapidun.cli.main import main
from tests.faults.machine import results
from tests.sweep.grids import FAST, Grid, end_of, wait_until

UP_TO_INFLUENCE = ["debug=fast", "tracking=none", "resources.num_threads=1", "stages=[data,poison,influence]"]
MAPPINGS = [
    "mapping=uniform", "mapping=rapidun", "mapping=strength", "mapping=recommended", "mapping=shuffled",
    "mapping=random",
    *(f"mapping=rapidun mapping.tau_f={tau}" for tau in (0.2, 0.4, 0.6, 0.8, 0.9)),
    *(f"mapping=rapidun mapping.top_k={k}" for k in (1, 2, 3, 4, 5)),
]  # fmt: skip


def _map(asked: str, place: str, log: str) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w")
    status = main([*UP_TO_INFLUENCE[:-1], "stages=[mapping]", *asked.split(), *placed(Path(place), asked)])
    sys.stdout.flush()
    os._exit(status)


def placed(place: Path, asked: str) -> list[str]:
    return [f"store_dir={place / 'store'}", f"run_dir={place / ''.join(c if c.isalnum() else '-' for c in asked)}"]


@pytest.mark.slow
def test_sixteen_mappings_of_one_influence_at_once(tmp_path: Path) -> None:
    """Sixteen processes that start together: each result as when they are made one after the other."""
    assert len(set(MAPPINGS)) == 16
    found: dict[str, Any] = {}
    for how in ("together", "in turn"):
        place = tmp_path / how
        assert main([*UP_TO_INFLUENCE, *placed(place, "first")]) == 0
        made = [
            multiprocessing.get_context("fork").Process(target=_map, args=(one, str(place), str(tmp_path / f"{n}.log")))
            for n, one in enumerate(MAPPINGS)
        ]
        for process in made:
            process.start()
            if how == "in turn":
                process.join()
        for number, process in enumerate(made):
            process.join(600)
            assert process.exitcode == 0, (MAPPINGS[number], (tmp_path / f"{number}.log").read_text())
        assert len(list((place / "store" / "mapping").glob("*/manifest.json"))) == 16
        found[how] = {name: one for name, one in results(place).items() if name.startswith("store/mapping/")}
    assert found["together"] == found["in turn"]


@pytest.mark.slow
def test_a_sweep_of_sixteen_mappings_in_a_pool(tmp_path: Path) -> None:
    taus = ",".join(f"{number / 10:g}" for number in range(1, 17))
    stages = "stages=[data,poison,influence,mapping]"
    grid = Grid(tmp_path, *FAST[:1], stages, "mapping=rapidun", f"mapping.tau_f={taus}", "resources.num_threads=1",
                "sweep.max_parallel=8", launcher="joblib")  # fmt: skip
    status, screen = grid.run()
    assert status == 0 and "16 cells: 16 done" in screen, screen
    kinds = [id.partition("/")[0] for id in grid.made()]
    assert {kind: kinds.count(kind) for kind in ("data", "poison", "influence", "mapping")} == {
        "data": 1, "poison": 1, "influence": 1, "mapping": 16,
    }  # fmt: skip


@pytest.mark.slow
def test_two_drivers_of_one_sweep_at_once(tmp_path: Path) -> None:
    """Two whole commands: one drives, the other is told who does; every result is made once."""
    grid = Grid(tmp_path, *FAST, "unlearning.learning_rate=0.001,0.002", launcher="basic")
    with grid.start() as first, grid.start() as second:
        ended = [end_of(process, timeout_s=900) for process in (first, second)]
    (won, screen), (lost, told) = sorted(ended)
    assert (won, lost) == (0, 2), ended
    assert "2 cells: 2 done" in screen
    assert "for this process alone" in told and "drives it" in told and "Traceback" not in told
    made = grid.made()
    assert sorted(id.partition("/")[0] for id in made).count("unlearning") == 2
    status, screen = grid.run()
    assert status == 0 and "(0 to run, 2 done)" in screen, screen
    assert grid.made() == made


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_driver_that_is_asked_to_end_ends_its_cells(tmp_path: Path, launcher: str, number: signal.Signals) -> None:
    """Where they would die with it: as with Ctrl-C they say `interrupted`, and the same command goes on."""
    grid = Grid(
        tmp_path, *FAST, "unlearning.learning_rate=0.001,0.002", "unlearning.max_steps=150", "sweep.max_parallel=2",
        launcher=launcher,
    )  # fmt: skip

    def amid_training() -> bool:
        found = [grid.status(hash) for hash in grid.cells().values()] if (grid.path / "jobs.json").is_file() else []
        return any(one.get("state") == "running" and one.get("stage") == "unlearning" for one in found)

    with grid.start() as process:
        wait_until(amid_training, process=process)
        process.send_signal(number)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in out, out
    assert set(grid.states().values()) <= {"waiting", "interrupted", "done"}, grid.states()
    assert "interrupted" in grid.states().values()
    grid.whole()
    status, screen = grid.run()
    assert status == 0 and "2 cells: 2 done" in screen, screen
