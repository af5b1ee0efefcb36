"""What was saved, read back: it must give the losses that it was trained to.

A few rows, one at a time, before saving and after: a tensor that went astray on the way (tied weights merged twice, a
name that nobody reads) shows here, and not as a number in a table.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rapidun.base.errors import ModelError
from rapidun.models.losses import example_cross_entropy

# input_ids and labels, as the one encoding gives them
Row = tuple[list[int], list[int]]
NUM_ROWS = 4
# of max(1, loss): rounding of the arithmetic; for the others that of the weights which a merge writes
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
TOLERANCE_OF_HALVES = 0.1


def a_few(rows: Sequence[Any]) -> list[Row]:
    """At most four rows, evenly spread."""
    step = max(1, len(rows) // NUM_ROWS)
    return [(list(row[0]), list(row[1])) for row in rows[::step][:NUM_ROWS]]


def mean_loss(model: Any, rows: Sequence[Row]) -> float:
    """The mean cross-entropy of the rows, each alone, without dropout; the model stays in the mode it was in."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total = 0.0
    with torch.no_grad():
        for ids, labels in rows:
            logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits
            total += float(example_cross_entropy(logits, torch.tensor([labels], device=device))[0])
    model.train(training)
    return total / max(1, len(rows))


def agrees(before: float, after: float, dtype: torch.dtype) -> bool:
    """Whether two losses are one loss, up to the rounding of weights of this type."""
    if not (math.isfinite(before) and math.isfinite(after)):
        return str(before) == str(after)
    return abs(before - after) <= TOLERANCE.get(dtype, TOLERANCE_OF_HALVES) * max(1.0, abs(before))


def confirm(
    read: Callable[[], Any],
    rows: Sequence[Row],
    *,
    before: float,
    dtype: torch.dtype,
    folder: Path,
    section: str,
    say: Callable[[str], None],
) -> None:
    """Read a model back and see that its loss is the one it had.

    Args:
        read: loads what was saved. before: its loss on `rows` as it stood in memory. dtype: of its weights. say: told
            when there was no memory for a second copy.
    Raises: ModelError naming both losses.
    """
    try:
        after = mean_loss(read(), rows)
    except torch.OutOfMemoryError:
        say(f"{section}: no memory to read {folder.name} back beside the trained model; it is as saved, unchecked")
        return
    if not agrees(before, after, dtype):
        raise ModelError(
            f"{section}: need a saved model that gives what was trained, a loss of {before:.4f} on {len(rows)} rows, "
            f"got {after:.4f} from {folder} read back. Its weights are not those that were trained: change what is "
            f"adapted ({section}.lora.target_modules=...), or model.dtype=float32"
        )
