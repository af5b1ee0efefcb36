"""GUARD: less weight for forget rows whose gradient is aligned with what is to be retained."""

from typing import NamedTuple

import numpy as np

from rapidun.base.errors import DataError
from rapidun.stages.mapping.scores import Scores
from rapidun.stages.rows.bounded_weights import Floats, Weights, exp_bounded


class Guarded(NamedTuple):
    """unit: what the alignments were divided by beside tau."""

    weights: Weights
    unit: float


def alignments(scores: Scores, *, cosine: bool = False) -> Floats:
    """a_i = <g_i, mean over the retain rows of g_j>, the proxy retention attribution of forget row i: [n_forget].

    The mean of inner products is the inner product with the mean, so no gradient is taken again. With `cosine` divided
    by |g_i| |mean g_j|, from the Gram matrix: |mean g_j|^2 is the mean of its block RR.

    Args: scores: inner products of gradients (read with dot=True).
    Raises: DataError for a cosine without a Gram matrix.
    Source: GUARD (arXiv 2506.10946), the attribution by the inner product with the average retain gradient; the cosine
        is ours.
    """
    mean = np.asarray(np.mean(scores.blocks["fr"].values, axis=1), dtype=np.float64)
    if not cosine:
        return mean
    if scores.origin != "gram":
        raise DataError(
            "mapping.guard.alignment: need the tensor `gram` in the scores file for alignment=cosine, got a file "
            "without (queries of their own, or made elsewhere). Pass mapping.guard.alignment=dot"
        )
    norms = np.sqrt(np.clip(np.diagonal(scores.blocks["ff"].values), 0.0, None))
    length = np.sqrt(max(0.0, float(np.mean(scores.blocks["rr"].values))))
    # one factor after the other: the product of two small norms can underflow; a gradient of 0 is aligned with nothing
    found = np.divide(mean, norms, out=np.zeros_like(mean), where=norms > 0)
    return np.clip(found / length, -1.0, 1.0) if length > 0 else np.zeros_like(mean)


def guard(alignment: Floats, *, tau: float, relative: bool, low: float, high: float) -> Guarded:
    """Unlearning power moved away from rows that retention depends on.

    w_i = clip(c * exp(-a_i / (tau s)), low, high), c > 0 such that mean(w) = 1; s = the standard deviation of a with
    `relative`, else 1. Where no row stands at a bound these are n * softmax(-a / (tau s)). Inner products of gradients
    have a unit that changes with model and loss: with s = 1 tau is to be chosen anew for each.

    Example: a = 0, ln 2, tau 1, relative=false: w = 4/3, 2/3 within [0.2, 3].

    Args: alignment: [n]. tau: > 0, larger is flatter. low, high: bounds on w, 0 <= low <= 1 <= high.
    Raises: ValueError if alignments are empty or not finite.
    Source: GUARD (arXiv 2506.10946): weights inversely related to the attribution, a temperature says how strongly.
        That they are exponential in it, the bounds and s are ours: its equations could not be read.
    """
    unit = float(np.std(alignment)) if relative and len(alignment) else 1.0
    # rows that are all aligned alike: equal weights
    flat = unit == 0.0 or unit <= 1e-12 * float(np.max(np.abs(alignment)))
    z = np.zeros_like(alignment) if relative and flat else -(alignment - np.mean(alignment)) / unit
    return Guarded(exp_bounded(z, tau=tau, low=low, high=high), unit)
