"""How true estimated scores are: held against the exact ones of the same rows."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Fidelity(NamedTuple):
    """Of estimated against exact scores [N, N]; pairs are i < j, so that no row is compared with itself."""

    effective_k: float | None  # 1 / variance of the error of the cosines; None where these are no cosines
    spearman: float  # over all pairs
    spearman_query: float  # mean over the queries (columns) of that with the N - 1 other rows
    top_overlap: float  # mean over the queries: share of the exact `top` rows among the estimated ones
    top: int


def fidelity(scores: FloatArray, truth: FloatArray, *, top: int, is_cosine: bool) -> Fidelity:
    """Compare [N, N] scores with [N, N] exact ones, N >= 3.

    Args: top: rows of a query, at most N - 1 count. is_cosine: both are cosines (the error's variance means something).
    """
    num = len(truth)
    i, j = np.triu_indices(num, 1)
    top = min(top, num - 1)
    correlations, overlaps = [], []
    for query in range(num):
        others = np.arange(num) != query
        estimated, exact = scores[others, query], truth[others, query]
        correlations.append(spearman(estimated, exact))
        best = set(np.argsort(-exact, kind="stable")[:top].tolist())
        overlaps.append(len(best & set(np.argsort(-estimated, kind="stable")[:top].tolist())) / top)
    return Fidelity(
        effective_k=effective_k(scores[i, j] - truth[i, j]) if is_cosine else None,
        spearman=spearman(scores[i, j], truth[i, j]),
        spearman_query=float(np.mean(correlations)),
        top_overlap=float(np.mean(overlaps)),
        top=top,
    )


def effective_k(errors: FloatArray) -> float:
    """1 / variance of the errors of cosines: an ideal sketch of K numbers has K."""
    return float(1 / max(errors.var(ddof=1), 1e-30)) if len(errors) > 1 else math.nan


def effective_k_interval(
    scores: FloatArray, truth: FloatArray, *, draws: int = 500, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval over the rows; a pair of one row drawn twice does not count."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        rows = generator.integers(0, len(truth), len(truth))
        i, j = np.triu_indices(len(rows), 1)
        left, right = rows[i], rows[j]
        apart = left != right
        found.append(effective_k(scores[left[apart], right[apart]] - truth[left[apart], right[apart]]))
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def spearman(x: FloatArray, y: FloatArray) -> float:
    """Correlation of ranks, ties sharing their mean rank; 0 where one side is constant."""
    ranks = [mean_ranks(v) for v in (x, y)]
    if any(r.std() == 0 for r in ranks):
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def mean_ranks(values: FloatArray) -> FloatArray:
    """[n] -> [n], from 1."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: FloatArray = (last - (counts - 1) / 2)[place]
    return ranks


class Share(NamedTuple):
    """What one group of weights contributes."""

    name: str
    numbers: int
    of_norm: float  # mean over the rows of |its part of the gradient|^2 / |gradient|^2
    of_score: float  # covariance of its part of the cosine with the cosine, over the cosine's variance, over pairs


def shares(parts: dict[str, FloatArray], sizes: dict[str, int]) -> list[Share]:
    """How groups of weights share in the exact scores; both sum to 1 over the groups (0 without gradients).

    Args: parts: group -> [N, N] inner products over its weights. sizes: group -> numbers of one gradient.
    """
    whole = sum(parts.values())
    assert isinstance(whole, np.ndarray)
    squares = whole.diagonal()
    kept = squares > 0
    if kept.sum() < 2:
        return [Share(name, sizes[name], 0.0, 0.0) for name in parts]
    whole = whole[np.ix_(kept, kept)]
    scale = np.sqrt(np.outer(squares[kept], squares[kept]))
    i, j = np.triu_indices(len(whole), 1)
    cosines = (whole / scale)[i, j]
    variance = cosines.var()
    found = []
    for name, gram in parts.items():
        part = gram[np.ix_(kept, kept)]
        own = (part / scale)[i, j]
        of_score = float(np.mean((own - own.mean()) * (cosines - cosines.mean())) / variance) if variance > 0 else 0.0
        found.append(Share(name, sizes[name], float(np.mean(part.diagonal() / squares[kept])), of_score))
    return found
