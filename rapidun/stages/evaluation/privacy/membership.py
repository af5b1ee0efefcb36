"""Membership inference: whether rows that were trained on can be told from others by how likely they are."""

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rapidun.stages.evaluation.privacy.tokens import TokenStats

Scores = NDArray[np.float64]
# of each a larger score says that a row was trained on
NAMES = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_pp")
# of the intervals
TAIL = 0.025


def membership_scores(stats: TokenStats, text: str, *, min_k: float) -> dict[str, float]:
    """The four scores of one response; the larger, the more a row looks as if it had been trained on.

    mia_loss       mean log p, nats a token (Yeom et al. 2018, arXiv 1709.01604)
    mia_zlib       the same over the bytes of the zlib-compressed text (Carlini et al. 2021, arXiv 2012.07805)
    mia_min_k      mean of the lowest k % of log p (Shi et al. 2023, arXiv 2310.16789)
    mia_min_k_pp   the same of (log p - mu) / sigma (Zhang et al. 2024, arXiv 2404.02936)

    Args: stats: of at least one token. text: the response that was scored. min_k: k, a share in (0, 1].
    Raises: ValueError without a token.
    """
    if not len(stats.log_probs):
        raise ValueError("membership scores need at least one response token")
    mean = float(stats.log_probs.mean())
    return {
        "mia_loss": mean,
        "mia_zlib": mean / len(zlib.compress(text.encode("utf-8", "surrogatepass"))),
        "mia_min_k": lowest_mean(stats.log_probs, min_k),
        "mia_min_k_pp": lowest_mean(normalised(stats), min_k),
    }


def normalised(stats: TokenStats) -> Tensor:
    """[n], (log p - mu) / sigma; where sigma is 0, a token is as likely as any that can come (0) or cannot (-inf)."""
    flat = stats.log_probs.masked_fill(stats.log_probs > -torch.inf, 0.0)
    # what is no number stays none
    return torch.where(stats.stds == 0, flat, (stats.log_probs - stats.means) / stats.stds)


def lowest_mean(values: Tensor, share: float) -> float:
    """Mean of the lowest floor(n * share) of n values, of one where that is none."""
    count = max(1, math.floor(len(values) * share + 1e-9))
    return float(values.sort().values[:count].mean())


def auc(members: Scores, others: Scores) -> float:
    """P(a member's score > a non-member's) + half of P(they are equal): 1 = members always look more trained on.

    Args: [m], [n] without NaN, neither empty. Source: Mann and Whitney 1947; what roc_auc_score gives.
    """
    return float(_wins(members, others).mean())


def auc_interval(members: Scores, others: Scores, *, num_resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the AUC; members and non-members are drawn anew, each among their own.

    Not of the training: another model of the same rows has another AUC.
    """
    wins = _wins(members, others)
    rng = np.random.default_rng(seed)
    one, two = (rng.multinomial(size, np.full(size, 1 / size), size=num_resamples) for size in wins.shape)
    values = ((one @ wins) * two).sum(axis=1) / wins.size  # [R, m] @ [m, n] -> [R]
    low, high = np.quantile(values, [TAIL, 1 - TAIL])
    return float(low), float(high)


def _wins(members: Scores, others: Scores) -> Scores:
    """[m, n]: 1 where the member's score is larger, 1/2 where they are equal."""
    if not len(members) or not len(others) or np.isnan(members).any() or np.isnan(others).any():
        raise ValueError("AUC needs scores of members and of others, and none that is no number")
    one, two = members[:, None], others[None, :]
    return (one > two) + 0.5 * (one == two)


def membership_metrics(
    members: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]], *, num_resamples: int, seed: int
) -> tuple[dict[str, float], dict[str, int]]:
    """`<name>`, `<name>.low`, `<name>.high` of each score, and how many rows have none that is a number.

    A score may be -inf (a token that cannot come): such a row is the least likely one. With fewer than two rows on a
    side there is no metric.
    """
    found: dict[str, float] = {}
    odd: dict[str, int] = {}
    for name in NAMES:
        sides = [np.array([row[name] for row in rows], dtype=np.float64) for rows in (members, others)]
        kept = [side[~np.isnan(side)] for side in sides]
        if num_odd := sum(len(side) for side in sides) - sum(len(side) for side in kept):
            odd[name] = num_odd
        if min(map(len, kept)) < 2:
            continue
        found[name] = auc(*kept)
        low, high = auc_interval(*kept, num_resamples=num_resamples, seed=seed)
        found |= {f"{name}.low": low, f"{name}.high": high}
    return found, odd
