"""Aggregated blocks to one score for each forget row and each retain row."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def fuse(
    aggregated: Mapping[str, Floats],
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    delta: float = 1.0,
    harmful: Mapping[str, Floats] | None = None,
    alpha_harm: float = 1.0,
    beta_harm: float = 1.0,
    gamma_harm: float = 1.0,
    delta_harm: float = 1.0,
) -> tuple[Floats, Floats]:
    """Weigh what a row does to its own group against what it does to the other group.

    S_f = alpha * agg(FF) - beta * agg(FR),    S_r = gamma * agg(RR) - delta * agg(RF);  with `harmful`:
    S_f -= alpha_harm * agg(FF_harm) + beta_harm * agg(FR_harm),
    S_r -= gamma_harm * agg(RR_harm) + delta_harm * agg(RF_harm).

    Args:
        aggregated, harmful: by block name: ff, fr [num_forget]; rr, rf [num_retain].
    Returns: S_f [num_forget], S_r [num_retain].
    Source: RapidUn (arXiv 2512.04457).
    """
    forget = alpha * aggregated["ff"] - beta * aggregated["fr"]
    retain = gamma * aggregated["rr"] - delta * aggregated["rf"]
    if harmful is not None:
        forget = forget - (alpha_harm * harmful["ff"] + beta_harm * harmful["fr"])
        retain = retain - (gamma_harm * harmful["rr"] + delta_harm * harmful["rf"])
    return forget, retain
