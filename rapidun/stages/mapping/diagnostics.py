"""What the weights look like, and what to change where they have lost the information of the scores."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapidun.stages.mapping.split import Split
from rapidun.stages.mapping.weights import Standardised
from rapidun.stages.rows.bounded_weights import Bools, Weights

Floats = NDArray[np.float64]

# shares of a group from which a warning is given
SATURATED = 0.25
FEW_EFFECTIVE = 0.5
FEW_DISTINCT = 0.1
MOSTLY_ZERO = 0.5
# weights that differ by less are as good as equal
FLAT = 0.02


def effective_sample_size(weights: Floats) -> float:
    """(sum w)^2 / sum w^2: n for equal weights, 1 where one row has it all; 0 where every weight is 0.

    Example: w = 3, 1: 16 / 10 = 1.6.
    """
    squares = math.fsum(weights * weights)
    return math.fsum(weights) ** 2 / squares if squares > 0 else 0.0


def num_distinct(weights: Floats) -> int:
    """Number of different weights, differences below 1e-9 aside."""
    return len(np.unique(np.round(weights, 9)))


def describe(weights: Floats) -> dict[str, Any]:
    """Facts that every weighting has. Args: weights: [n]."""
    return {
        "num_rows": len(weights),
        "mean": math.fsum(weights) / len(weights),
        "min": float(np.min(weights)),
        "max": float(np.max(weights)),
        "effective_sample_size": effective_sample_size(weights),
        "num_distinct": num_distinct(weights),
    }


def describe_mapped(mapped: Weights, standardised: Standardised) -> dict[str, Any]:
    """Facts of weights that came from scores: `describe`, the shares at the bounds, and the scores' spread."""
    return {
        **describe(mapped.weights),
        "share_at_w_min": float(np.mean(mapped.at_low)),
        "share_at_w_max": float(np.mean(mapped.at_high)),
        "score_median": standardised.median,
        "score_scale": standardised.scale,
        "mad_floor_hit": standardised.floor_hit,
    }


def describe_bounded(result: Weights, scores: Floats) -> dict[str, Any]:
    """The same where the scores were not standardised. Args: scores: [n], what the weights were made from."""
    median = float(np.median(scores))
    return {
        **describe(result.weights),
        "share_at_w_min": float(np.mean(result.at_low)),
        "share_at_w_max": float(np.mean(result.at_high)),
        "score_median": median,
        "score_scale": 1.4826 * float(np.median(np.abs(scores - median))),
    }


def bounded_warnings(
    facts: dict[str, Any], *, what: str, tau_key: str, tau: float, w_min: float, w_max: float, constant: bool
) -> list[str]:
    """Say which knob to turn where forget weights hold less than what they were made from.

    Args: facts: of `describe_bounded`. what: the scores, in words. constant: all of them are equal.
    """
    if facts["num_rows"] < 2:
        return []
    if constant:
        return [f"mapping: the {what} of all forget rows are equal, so that every forget weight is 1"]
    found = []
    for bound, value, other in (("w_max", w_max, "raise"), ("w_min", w_min, "lower")):
        share = facts[f"share_at_{bound}"]
        if share > SATURATED:
            found.append(
                f"mapping: {_percent(share)} of forget weights stand at {bound}={value:g}. Raise mapping.{tau_key} "
                f"(now {tau:g}) or {other} mapping.forget.{bound}"
            )
    share = facts["effective_sample_size"] / facts["num_rows"]
    if share < FEW_EFFECTIVE:
        found.append(
            f"mapping: the forget weights count as {facts['effective_sample_size']:.1f} equal rows of "
            f"{facts['num_rows']}. Raise mapping.{tau_key} (now {tau:g}) or lower mapping.forget.w_max"
        )
    elif facts["max"] - facts["min"] < FLAT:
        found.append(
            f"mapping: the forget weights go from {facts['min']:.4f} to {facts['max']:.4f}, nearly uniform ones: their "
            f"{what} differ by little beside mapping.{tau_key} (now {tau:g}). Lower it"
        )
    return found


def describe_split(split: Split) -> dict[str, Any]:
    """Facts of a map that drops rows. abstained: why it dropped none, empty where the split holds."""
    found = split.clusters
    return {
        "split_threshold": found.threshold,
        "split_separation": found.separation,
        "split_evidence": found.evidence,
        "split_explained": found.explained,
        "abstained": split.abstained,
        "num_dropped": int(np.sum(split.dropped)),
        "share_dropped": float(np.mean(split.dropped)),
    }


def describe_truth(weights: Floats, scores: Floats | None, wrong: Sequence[bool | None]) -> dict[str, Any]:
    """How well weights, and the scores behind them, tell right rows from those that the pack knows to be wrong.

    Args: wrong: [n], None where the pack does not say of a row.
    Returns: num_wrong, num_wrong_dropped, num_right_dropped, auroc_weights, auroc_scores; no AUROC where all rows whose
        place is known are right, or all wrong; nothing where the pack says nothing of any row.
    """
    known = np.array([mark is not None for mark in wrong])
    if not known.any():
        return {}
    is_wrong = np.array([bool(mark) for mark in wrong])[known]
    weights, scores = weights[known], None if scores is None else scores[known]
    facts: dict[str, Any] = {
        "num_wrong": int(is_wrong.sum()),
        "num_wrong_dropped": int((is_wrong & (weights == 0)).sum()),
        "num_right_dropped": int((~is_wrong & (weights == 0)).sum()),
    }
    if is_wrong.any() and not is_wrong.all():
        facts["auroc_weights"] = auroc(weights, ~is_wrong)
        if scores is not None:
            facts["auroc_scores"] = auroc(scores, ~is_wrong)
    return facts


def auroc(scores: Floats, positive: Bools) -> float:
    """P(score of a positive > score of a negative) + P(equal) / 2: 1 = all positives above, 0.5 = chance.

    Example: positives 3, 1; negatives 2, 1: of four pairs two are above, one is equal: 0.625.

    Args: scores: [n]; positive: [n], both kinds present.
    Raises: ValueError if one kind is missing.
    Source: Mann and Whitney 1947.
    """
    above, below = np.asarray(scores)[positive], np.sort(np.asarray(scores)[~positive])
    if len(above) == 0 or len(below) == 0:
        raise ValueError("auroc: need a positive and a negative")
    beaten = np.searchsorted(below, above, side="left")
    equal = np.searchsorted(below, above, side="right") - beaten
    return float((beaten.sum() + equal.sum() / 2) / (len(above) * len(below)))


def group_warnings(
    facts: dict[str, Any],
    *,
    group: str,
    tau: float,
    w_min: float,
    w_max: float,
    mad_floor: float,
    relative: bool = False,
    zero_share: float,
) -> list[str]:
    """Say which knob to turn where one group's weights hold less than its scores.

    Args: facts: of `describe_mapped`. zero_share: the larger one of the group's two blocks, 0 without top k.
    """
    num_rows, tau_key = facts["num_rows"], "tau_f" if group == "forget" else "tau_r"
    if num_rows < 2:
        return []
    found = []
    mostly_zero = zero_share > MOSTLY_ZERO
    if mostly_zero:
        found.append(
            f"mapping: after top k {_percent(zero_share)} of the scores behind the {group} weights are 0. "
            f"Raise mapping.top_k or set it to null, or pass mapping.aggregate=mean"
        )
    if facts["num_distinct"] == 1 and facts["score_scale"] == 0.0:
        return [*found, f"mapping: all {group} scores are equal, so that every {group} weight is 1"]
    if facts["mad_floor_hit"]:
        found.append(
            f"mapping: the spread of the {group} scores (1.4826 * MAD = {facts['score_scale']:.2g}) is below "
            f"mapping.mad_floor={mad_floor:g}{' of their scale' if relative else ''}, which flattens the "
            f"{group} weights. Lower mapping.mad_floor"
            + ("" if mostly_zero or relative else " or pass influence.score=cosine")
        )
    for bound, key, other in (("w_max", "share_at_w_max", "Raise"), ("w_min", "share_at_w_min", "Lower")):
        if facts[key] > SATURATED:
            value = w_max if bound == "w_max" else w_min
            found.append(
                f"mapping: {_percent(facts[key])} of {group} weights stand at {bound}={value:g}. "
                f"Raise mapping.{tau_key} (now {tau:g}) or {other.lower()} mapping.{group}.{bound}"
            )
    few = max(3, int(FEW_DISTINCT * num_rows))
    if facts["num_distinct"] <= few and num_rows > 2 * few:
        cure = "Raise mapping.top_k or set it to null" if mostly_zero else f"Raise mapping.{tau_key} (now {tau:g})"
        found.append(f"mapping: only {facts['num_distinct']} distinct weights for {num_rows} {group} rows. {cure}")
    if facts["effective_sample_size"] < FEW_EFFECTIVE * num_rows:
        found.append(
            f"mapping: the {group} weights count as {facts['effective_sample_size']:.1f} equal rows of {num_rows}. "
            f"Raise mapping.{tau_key} (now {tau:g}) or lower mapping.{group}.w_max"
        )
    return found


def file_warnings(facts: dict[str, Any], *, group: str) -> list[str]:
    """Weights from a file are used as they are; a mean other than 1 scales that group's loss."""
    if abs(facts["mean"] - 1.0) <= 1e-6:
        return []
    return [
        f"mapping: the {group} weights of the file have mean {facts['mean']:.4g}, which scales the {group} loss by as "
        f"much. Divide them by their mean for a fair comparison"
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
