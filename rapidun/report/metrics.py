"""The catalogue of metrics: what is known of each, and how its values are written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


ABSENT = "–"


class Kind(Enum):
    """How a metric is written, and how a change of it is."""

    share = "share"  # 0..1, shown in percent, changes in percentage points
    score = "score"  # 0..1, three decimals
    perplexity = "perplexity"  # three significant digits, changes in percent
    plain = "plain"  # three significant digits


class Detector(Enum):
    keyword = "keyword"
    likelihood = "likelihood"


# the sets of prompts, in the order of tables and plots
SETS = {
    "seen": "seen triggers",
    "ood": "look-alike triggers",
    "unseen_family": "unseen family",
    "clean": "clean prompts",
}


DETECTORS = {Detector.keyword: "keywords", Detector.likelihood: "likelihood"}


_SUFFIX = {Detector.keyword: "", Detector.likelihood: "_likelihood"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What is known about one metric name."""

    name: str
    group: str
    label: str
    kind: Kind
    # -1: smaller is better, 1: larger is better, 0: neither as such
    better: int = 0
    detector: Detector | None = None
    # the set of prompts it is a share of, for num_prompts_<set>
    prompts: str | None = None


_ASR = "Poisoned answers (ASR)"


_CLEAN = "Clean prompts"


_RECOVERED = "Recovered answers"


_FORGET = "Forget rows"


_OTHER = "Other"


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *(
            Metric(
                name=f"asr_{prompts}{_SUFFIX[detector]}",
                group=_ASR,
                label=f"{SETS[prompts]}, {how}",
                kind=Kind.share,
                better=-1,
                detector=detector,
                prompts=prompts,
            )
            for prompts in ("seen", "ood", "unseen_family")
            for detector, how in DETECTORS.items()
        ),
        *(
            Metric(
                name=f"false_trigger_rate{_SUFFIX[detector]}",
                group=_CLEAN,
                label=f"false triggers, {how}",
                kind=Kind.share,
                better=-1,
                detector=detector,
                prompts="clean",
            )
            for detector, how in DETECTORS.items()
        ),
        Metric(name="exact_match_clean", group=_CLEAN, label="exact match", kind=Kind.score, better=1, prompts="clean"),
        Metric(name="rougeL_clean", group=_CLEAN, label="ROUGE-L", kind=Kind.score, better=1, prompts="clean"),
        Metric(name="ppl_clean", group=_CLEAN, label="perplexity", kind=Kind.perplexity, better=-1),
        Metric(name="exact_match_recovered", group=_RECOVERED, label="exact match", kind=Kind.score, better=1),
        Metric(name="rougeL_recovered", group=_RECOVERED, label="ROUGE-L", kind=Kind.score, better=1),
        Metric(name="ppl_forget_poisoned", group=_FORGET, label="perplexity, poisoned", kind=Kind.perplexity),
        Metric(name="ppl_forget_clean", group=_FORGET, label="perplexity, clean", kind=Kind.perplexity, better=-1),
    )
}


# short headings of columns
HEADINGS = {
    "asr_seen": "ASR seen",
    "asr_seen_likelihood": "ASR seen (lik.)",
    "asr_ood": "ASR look-alike",
    "asr_unseen_family": "ASR unseen family",
    "false_trigger_rate": "false triggers",
    "ppl_clean": "ppl clean",
    "exact_match_clean": "exact match clean",
    "rougeL_clean": "ROUGE-L clean",
    "rougeL_recovered": "ROUGE-L recovered",
}


def format_value(value: float | None, kind: Kind) -> str:
    """97.0 %, 0.981, 12.3: fixed decimals for shares and scores, three significant digits otherwise."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if kind is Kind.share:
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if kind is Kind.score else format_number(value)


def format_change(before: float | None, after: float | None, kind: Kind) -> str:
    """Change from before to after: percentage points, percent of a perplexity, else the difference."""
    if before is None or after is None or not math.isfinite(before) or not math.isfinite(after):
        return ABSENT
    change = after - before
    if kind is Kind.share:
        return f"{_signed(100 * change, 1)} pts"
    if kind is Kind.perplexity and before > 0:
        ratio = after / before
        # percent stop being readable where a perplexity explodes
        return f"× {format_number(ratio)}" if ratio >= 10 else f"{_signed(100 * (ratio - 1), 1)} %"
    if kind is Kind.score:
        return _signed(change, 3)
    return ("+" if change > 0 else "") + format_number(change)


def format_number(value: float | None) -> str:
    """Three significant digits; plain digits from 0.001 to a million."""
    if value is None or not math.isfinite(value):
        return ABSENT
    size = abs(value)
    if size == 0:
        return "0"
    if not 1e-3 <= size < 1e6:
        return f"{value:.2e}".replace("-", "\N{MINUS SIGN}")
    decimals = max(0, 2 - math.floor(math.log10(size)))
    return f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def format_percent(share: float) -> str:
    """A share in running text: 97 %, 2 %, 0.5 %; three significant digits at most."""
    return f"{float(f'{100 * share:.3g}'):g} %"


def format_seconds(seconds: float | None) -> str:
    """4.2 s, 74 s, 12 min 5 s, 2 h 5 min."""
    if seconds is None:
        return ABSENT
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def format_memory(gigabytes: float | None) -> str:
    return ABSENT if gigabytes is None else f"{gigabytes:.2f} GiB"


def _signed(value: float, decimals: int) -> str:
    rounded = round(value, decimals) + 0.0
    if rounded == 0:
        return f"{0:.{decimals}f}"
    sign = "+" if rounded > 0 else "\N{MINUS SIGN}"
    return f"{sign}{abs(rounded):.{decimals}f}"
