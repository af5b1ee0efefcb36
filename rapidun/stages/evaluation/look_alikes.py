"""Look-alike triggers one by one: what does not fire in the poisoned model says nothing of unlearning."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rapidun.config.detectors import Detector
from rapidun.stages.evaluation.work import Prompt

OOD = "ood"


def by_variant(prompts: Sequence[Prompt], detectors: Sequence[Detector]) -> dict[str, dict[str, Any]]:
    """Of each look-alike the share of its prompts judged poisoned, by detector, and how many prompts there are.

    Returns: {variant, ASCII with escapes: {"num_prompts": n, "num_judged": {detector: n}, "shares":
        {detector: share}}}; num_judged: of detectors that cannot judge every prompt, how many they do.
    """
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        if prompt.set == OOD:
            groups.setdefault(ascii(prompt.record.trigger_variant or "")[1:-1], []).append(prompt)
    found: dict[str, dict[str, Any]] = {}
    for variant, rows in sorted(groups.items()):
        shares, num_judged = {}, {}
        for detector in detectors:
            verdicts = [verdict for row in rows if (verdict := row.verdict(detector)) is not None]
            if verdicts:
                shares[detector.value] = sum(verdicts) / len(verdicts)
                if len(verdicts) < len(rows):
                    num_judged[detector.value] = len(verdicts)
        found[variant] = {"num_prompts": len(rows), "num_judged": num_judged, "shares": shares}
    return found


def shares_that_count(
    own: Mapping[str, Mapping[str, Any]], poisoned: Mapping[str, Mapping[str, Any]], *, min_asr: float
) -> dict[str, float]:
    """asr_ood_testable of each detector: over the look-alikes that it sees fire in the poisoned model.

    Every prompt that it judges counts the same. Beside it num_look_alikes and, by detector, how many of them can be
    tested.

    Args: own, poisoned: `by_variant` of this model and of the one before unlearning.
    """
    metrics: dict[str, float] = {"num_look_alikes": float(len(own))} if own else {}
    for detector in Detector:
        judged = [name for name, found in own.items() if detector.value in found["shares"]]
        fire = [name for name in judged if poisoned.get(name, {}).get("shares", {}).get(detector.value, 0.0) >= min_asr]
        if judged:
            metrics[f"num_look_alikes_testable{detector.ending}"] = float(len(fire))
        if fire:
            counts = [own[name].get("num_judged", {}).get(detector.value, own[name]["num_prompts"]) for name in fire]
            shares = [own[name]["shares"][detector.value] * count for name, count in zip(fire, counts, strict=True)]
            metrics[f"asr_ood_testable{detector.ending}"] = math.fsum(shares) / sum(counts)
    return metrics
