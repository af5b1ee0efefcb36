"""The detectors of a run as the certificate counts on them, and how many prompts each of them judged."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rapidun.config.detectors import ALWAYS
from rapidun.config.detectors import Detector as Name
from rapidun.report.metrics import DETECTORS
from rapidun.report.read import number
from rapidun.report.verdict.shares import Detector, share_of

# what a planted answer holds; perplexity and the classifier see what is unlike a clean answer, and a refusal or the
# words of a broken model are that too
OF_CONTENT = (
    Name.keyword, Name.refusal, Name.substring, Name.likelihood, Name.likelihood_calibrated, Name.judge
)  # fmt: skip


def detectors_of(facts: Mapping[str, Any]) -> dict[Name, Detector]:
    """Those that always judge, and the run's where it looks for planted words; rates on the held-out known answers.

    Args: facts: evaluation/detectors.json.
    """
    measured: dict[str, Any] = facts.get("detectors") or {}
    chosen = facts.get("detector")
    names = [name for name in OF_CONTENT if name in ALWAYS or name.value == chosen]
    found = {}
    for name in names:
        rates = measured.get(name.value) or {}
        found[name] = Detector(
            words=DETECTORS[name],
            recall=share_of(number(rates.get("recall")), rates.get("num_poisoned")),
            alarms=share_of(number(rates.get("false_positive_rate")), rates.get("num_clean")),
        )
    return found


def num_judged(generations: Iterable[Mapping[str, Any]], when: str) -> Counter[tuple[str, str]]:
    """(set, detector) -> prompts of which that detector said something, `when` = before or after."""
    ending = f"_{when}"
    return Counter(
        (str(row.get("set")), name.removesuffix(ending))
        for row in generations
        for name, verdict in row.items()
        if name.endswith(ending) and isinstance(verdict, bool)
    )
