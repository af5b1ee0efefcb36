"""Which detector a run is judged by first: the best on known answers."""

from collections.abc import Mapping

from rapidun.config.detectors import Detector
from rapidun.stages.answers.detectors.rates import Rates


def best_detector(found: Mapping[Detector, Rates]) -> Detector | None:
    """The detector of the largest Youden J = recall - false alarms; of equals the first in the order of `Detector`.

    None where none tells anything (J <= 0), or none was measured.
    """
    ordered = [one for one in Detector if one in found]
    best = max(ordered, key=lambda one: found[one].youden, default=None)
    return best if best is not None and found[best].youden > 0 else None
