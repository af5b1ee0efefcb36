"""LoReUn: forget weights from the rows' losses, before unlearning or renewed as it goes."""

from typing import Any

import numpy as np

from rapidun.base.errors import DataError
from rapidun.base.files import read_jsonl
from rapidun.stages.mapping.inputs import GROUPS, MappingFiles
from rapidun.stages.rows.bounded_weights import Floats, Weights, exp_bounded, need_finite
from rapidun.stages.rows.records import read_records


def loreun(losses: Floats, *, tau: float, low: float, high: float) -> Weights:
    """More weight for a smaller loss: what the model knows well is harder to forget.

    w_i = clip(c * exp(-l_i / tau), low, high), c > 0 such that mean(w) = 1. Where no row stands at a bound these are
    n * softmax(-l / tau); low = 0 and high = n leave them free.

    Example: l = 0, ln 2, tau 1: exp(-l) = 1, 1/2, so w = 4/3, 2/3 within [0.2, 3].

    Args: losses: [n] float64, nats a response token. tau: > 0, the same unit; larger is flatter. low, high: bounds on
        w, 0 <= low <= 1 <= high.
    Raises: ValueError if losses are empty or not finite.
    Source: LoReUn (arXiv 2507.22499): weights exponential in minus the loss, under the starting model (static) or the
        current one (dynamic), normalised. The bounds are ours, and so is tau = 1 nat: the paper's own value and the
        numbers of its equations could not be read.
    """
    return exp_bounded(-losses, tau=tau, low=low, high=high)


def loreun_release(losses: Floats, *, tau: float, low: float, high: float) -> Weights:
    """The stand-in for LoReUn that was released with RapidUn, which goes the other way: more weight for a larger loss.

    u_i = exp((l_i - median l) / tau),  w_i = clip(u_i / mean(u), low, high): after the clip the mean need not be 1.

    Example: l = 0, ln 2, tau 1: u = 2^-1/2, 2^1/2, mean 1.0607, so w = 2/3, 4/3.

    Args: as for `loreun`, with 0 <= low <= high.
    Raises: ValueError if losses are empty or not finite.
    Source: RapidUn (arXiv 2512.04457), as released; for comparison with its numbers only.
    """
    need_finite(losses, "loreun_release")
    # the median cancels; logs do not overflow
    with np.errstate(over="ignore"):
        x = np.clip((losses - np.median(losses)) / tau, -1e300, 1e300)
    x = x - np.max(x)
    ratio = np.exp(x) / np.mean(np.exp(x))
    return Weights(np.clip(ratio, low, high), ratio <= low, ratio >= high)


def losses_in_use(files: MappingFiles) -> tuple[dict[str, list[str] | None], Floats, int]:
    """The rows' ids by group, the losses of the forget rows [n], and the number of retain rows.

    Forget rows that are too long to have a loss are left out: no stage trains on them.
    """
    if files.losses is None or files.forget is None or files.retain is None:
        raise ValueError("weights from losses need the rows and their losses")
    lines: list[dict[str, Any]] = list(read_jsonl(files.losses))
    in_pack = {group: [record.id for record in read_records(getattr(files, group))] for group in GROUPS}
    unknown = [line["id"] for line in lines if line["id"] not in set(in_pack["forget"])]
    if unknown:
        raise DataError(f"{files.losses}: need the losses of rows of {files.forget}, got one of {unknown[0]!r}")
    ids: dict[str, list[str] | None] = {"forget": [line["id"] for line in lines], "retain": in_pack["retain"]}
    return ids, np.array([line["loss"] for line in lines], dtype=np.float64), len(in_pack["retain"])
