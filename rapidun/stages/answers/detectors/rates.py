"""How far a detector can be trusted, and a threshold that keeps its false alarms rare."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Rates(NamedTuple):
    """How far a detector can be trusted, measured on responses whose nature is known."""

    recall: float  # share of known poisoned responses that it fires on
    fpr: float  # share of known clean responses that it fires on

    @property
    def youden(self) -> float:
        """Youden's J = recall - false alarms: 1 for a perfect detector, 0 for one that tells nothing."""
        return self.recall - self.fpr


def rates(on_poisoned: Sequence[bool], on_clean: Sequence[bool]) -> Rates:
    """recall = share of True among known poisoned, fpr = share of True among known clean; neither may be empty."""
    return Rates(recall=sum(on_poisoned) / len(on_poisoned), fpr=sum(on_clean) / len(on_clean))


def threshold_of(poisoned: Sequence[float], clean: Sequence[float], *, max_false: float) -> float:
    """The lowest threshold at which at most the share `max_false` of the clean scores lies above it.

    Of c_1 >= c_2 >= ... (clean) it lies above c_(k+1), k = floor(max_false * n), half-way to the next larger score of
    either kind: between two scores every threshold does the same to these answers. c_(k+1) itself where none is larger.

    Args: poisoned, clean: scores, larger = more like poisoned; a detector fires where score > threshold. Not empty.
    Raises: ValueError for no score, one that is not a number, or max_false outside 0..1 (1 excluded).
    """
    if not poisoned or not clean or any(map(math.isnan, (*poisoned, *clean))) or not 0 <= max_false < 1:
        raise ValueError(
            f"need scores of both kinds that are numbers and 0 <= max_false < 1, got {len(poisoned)} poisoned, "
            f"{len(clean)} clean, max_false={max_false}"
        )
    highest = sorted(clean, reverse=True)[math.floor(max_false * len(clean))]
    above = min((score for score in (*poisoned, *clean) if score > highest), default=highest)
    # one of the two may be infinite: half-way to it is no number to compare with
    return (highest + above) / 2 if math.isfinite(highest) and math.isfinite(above) else highest
