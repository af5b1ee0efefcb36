"""Seconds to compose and check the cells of a sweep, against Hydra's own composition of each cell; one JSON line.

python benchmarks/composition.py
"""

import json
import time

from hydra import compose

from rapidun.config.cells import compose_cells
from rapidun.config.compose import CONFIG_NAME, hydra_ready

SAMPLE = 20
GRIDS = {
    50: ["seed=range(5)", "mapping=rapidun", "mapping.tau_f=range(0.1,1.05,0.1)"],
    500: ["seed=range(50)", "mapping=rapidun", "mapping.tau_f=range(0.1,1.05,0.1)"],
    2000: ["seed=range(50)", "mapping=rapidun", "mapping.tau_f=range(0.1,1.05,0.1)", "unlearning.lora.r=2,4,8,16"],
}


def main() -> None:
    """Measure each grid once, after one composition that fills Hydra's caches for both sides."""
    first = compose_cells(GRIDS[50])
    with hydra_ready(None) as extra:
        start = time.perf_counter()
        for cell in first[:SAMPLE]:
            compose(CONFIG_NAME, [*cell.overrides, *extra])
        hydra_ms = (time.perf_counter() - start) / SAMPLE * 1e3
    found: dict[str, float] = {"hydra_ms_per_cell": round(hydra_ms, 2)}
    for num_cells, overrides in GRIDS.items():
        start = time.perf_counter()
        cells = compose_cells(overrides)
        seconds = time.perf_counter() - start
        if len(cells) != num_cells:
            raise RuntimeError(f"need {num_cells} cells, got {len(cells)}")
        found[f"seconds_{num_cells}"] = round(seconds, 3)
        found[f"ms_per_cell_{num_cells}"] = round(seconds / num_cells * 1e3, 3)
        found[f"times_faster_{num_cells}"] = round(hydra_ms * num_cells / 1e3 / seconds, 1)
    print(json.dumps({"benchmark": "composition", **found}))


if __name__ == "__main__":
    main()
