"""How many rows are to blame: the upper of two clusters of their scores, where there are two."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rapidun.config.mapping import SplitSettings
from rapidun.stages.mapping.split import FEWEST_ROWS, two_clusters

# more than that is no handful of bad rows among good ones
LARGEST_SHARE = 0.5
FEWEST = 3
# of the rows of both clusters that share one score: no spread can be fitted to more
MOST_TIED = 0.9


class Cut(NamedTuple):
    """number: rows to blame, None where the scores do not say. words: by which rule, and how sure. precision: the share
    of the rows above the cut that belong to the upper cluster, as the fit itself expects (no independent check)."""

    number: int | None
    words: str
    precision: float | None = None


def choose_cut(values: NDArray[np.float64]) -> Cut:
    """Two normal clusters with a spread in common, fitted by maximum likelihood: the rows of the upper one.

    The rule, the evidence that is asked for and the separation are those by which `mapping=recommended` tells wrong
    rows (docs/method.md).

    Args: values: [N], larger = more to blame.
    """
    if len(values) < FEWEST_ROWS:
        return Cut(None, f"{len(values)} rows are too few to tell two clusters of scores ({FEWEST_ROWS} needed)")
    # the smaller cluster is looked for among the low ones
    found = two_clusters(-values)
    number = int(found.low.sum())
    limits = SplitSettings()
    why = ""
    if not number:
        why = "the scores do not fall into two clusters"
    elif _tied(values, found.low) > MOST_TIED:
        why = "the scores are tied, at one of two values: a word that a row holds or not tells no bad rows from others"
    elif found.evidence < limits.min_evidence:
        why = f"the evidence for two clusters of scores is {found.evidence:.1f} ({limits.min_evidence:g} needed)"
    elif found.separation < limits.min_separation:
        why = (
            f"two clusters of scores are {found.separation:.1f} standard deviations apart "
            f"({limits.min_separation:g} needed)"
        )
    elif number < FEWEST:
        why = f"the upper cluster of scores has {number} rows ({FEWEST} needed)"
    elif number > LARGEST_SHARE * len(values):
        why = f"the upper cluster of scores has {number} of {len(values)} rows (at most half allowed)"
    if why:
        return Cut(None, why)
    precision = float(np.mean(_chance(-values[found.low], found.means, found.spread, number / len(values))))
    return Cut(
        number,
        f"two clusters of scores, {found.separation:.1f} standard deviations apart (evidence {found.evidence:.0f}, "
        f"{limits.min_evidence:g} needed); the fit expects {precision:.0%} of the upper one to belong there",
        precision,
    )


def _tied(values: NDArray[np.float64], upper: NDArray[np.bool_]) -> float:
    """The share of a cluster's rows that have its commonest score; of the two clusters the smaller one."""
    return min(float(np.unique(values[side], return_counts=True)[1].max() / side.sum()) for side in (upper, ~upper))


def _chance(x: NDArray[np.float64], means: tuple[float, float], spread: float, share: float) -> NDArray[np.float64]:
    """Chance that a score belongs to the lower cluster of two."""
    low, high = (-((x - mean) ** 2) / (2 * spread**2) for mean in means)
    return 1 / (1 + np.exp(np.clip(high - low + math.log((1 - share) / share), -700, 700)))
