"""Pictures and tables of a run, from the files of its folder, as plain arrays and rows that any service takes."""

from pathlib import Path
from typing import Any, NamedTuple

from rapidun.base.files import read_jsonl
from rapidun.report.run.tiles import SLICE_NUMBERS, tile_means

# cells of the heat map a side; more are averaged
MAX_CELLS = 256
MAX_ROWS = 1000
PAIRED = (
    "set", "family", "variant", "prompt", "reference", "before", "after",
    "keyword_before", "keyword_after", "likelihood_before", "likelihood_after",
)  # fmt: skip
SINGLE = ("set", "family", "variant", "prompt", "reference", "generation", "keyword", "likelihood")


class Table(NamedTuple):
    columns: list[str]
    rows: list[list[Any]]


def weights(folder: Path) -> dict[str, list[float]]:
    """{"forget": [...], "retain": [...]}, the groups that a mapping artifact has."""
    found = {}
    for group in ("forget", "retain"):
        path = folder / f"{group}_weights.jsonl"
        values = [float(row["weight"]) for row in read_jsonl(path)] if path.is_file() else []
        if values:
            found[group] = values
    return found


def generations(path: Path) -> Table | None:
    """Prompt, reference, what was generated, what the detectors say; None where there are none.

    The run folder's file has the answers before and after, an evaluation artifact's has one answer each. Every set
    keeps its share of the at most MAX_ROWS rows.
    """
    rows = read_jsonl(path) if path.is_file() else []
    if not rows:
        return None
    columns = list(PAIRED if "after" in rows[0] or "before" in rows[0] else SINGLE)
    kept = [rows[index * len(rows) // MAX_ROWS] for index in range(MAX_ROWS)] if len(rows) > MAX_ROWS else rows
    return Table(columns, [[row.get(column) for column in columns] for row in kept])


def influence_picture(folder: Path) -> Any | None:
    """Heat map of all four blocks: [height, width, 3] uint8; None where there are no scores.

    Rows are training rows, columns queries, forget before retain; colours run over the 98th percentile of |score|.
    """
    path = folder / "scores.safetensors"
    if not path.is_file():
        return None
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as tensors:
        block = {name: tensors.get_tensor(name) for name in ("ff", "fr", "rf", "rr")}
    num_forget, num_asked = block["ff"].shape
    total, num_queries = num_forget + len(block["rr"]), num_asked + block["rr"].shape[1]
    if total * num_queries == 0:
        return None
    # of many scores every so many-th row tells as much
    step = max(1, total * num_queries // SLICE_NUMBERS)
    sample = np.concatenate([np.abs(one[::step].astype(np.float64)).ravel() for one in block.values()])
    limit = float(np.quantile(sample[np.isfinite(sample)], 0.98)) or 1.0
    figure = Figure(figsize=(7, 6), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(
        tile_means(block, max_cells=MAX_CELLS),
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        extent=(0, num_queries, total, 0),
        aspect="equal" if num_queries == total else "auto",
        interpolation="nearest",
    )
    if 0 < num_forget < total:
        axes.axhline(num_forget, color="black", linewidth=0.8)
        axes.axvline(num_asked, color="black", linewidth=0.8)
    axes.set(xlabel="query row (forget, then retain)", ylabel="training row (forget, then retain)", title="influence")
    figure.colorbar(image, ax=axes)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
