"""The catalogue of metrics: what is known of each, where it is shown, and how its values are written.

A metric is one entry of METRICS: tables, findings, leaderboards, Pareto sets, the tuner and the W&B dashboard read it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from rapidun.base.errors import ConfigError
from rapidun.config import extensions
from rapidun.config.detectors import ALWAYS, OF_TEXTS, Detector
from rapidun.report import forgotten

ABSENT = "–"


class Kind(Enum):
    """The unit of a metric: how it is written, and how a change of it is."""

    share = "share"  # 0..1, shown in percent, changes in percentage points
    score = "score"  # 0..1, three decimals
    perplexity = "perplexity"  # three significant digits, changes in percent
    plain = "plain"  # three significant digits


# the sets of prompts, in the order of tables and plots
SETS = {
    "seen": "seen triggers",
    "ood": "look-alike triggers",
    "unseen_family": "unseen family",
    "clean": "clean prompts",
}
TRIGGERED = ("seen", "ood", "unseen_family")
# look-alikes that fire in the poisoned model
TESTABLE = "ood_testable"
DETECTORS = {
    Detector.keyword: "keywords",
    Detector.refusal: "refusal phrases",
    Detector.substring: "substrings",
    Detector.likelihood: "likelihood",
    Detector.likelihood_calibrated: "likelihood, calibrated",
    Detector.perplexity: "perplexity",
    Detector.classifier: "classifier",
    Detector.judge: "judge model",
}
# of the detectors that always judge, by family too
SUFFIX = {detector: detector.ending for detector in ALWAYS}
# of result.json, what is no result: the start, and the costs
BEFORE = "before."
# the same figure of the model that was trained on clean rows only
RETRAIN = "retrain."
# role of a model -> what its names in result.json begin with
ROLES = {"unlearned": "", "retrain": RETRAIN, "poisoned": BEFORE}
COSTS = ("seconds.", "peak_memory_gb.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What is known about one metric name, and where it is shown.

    Places count from 1, 0 = not there. Metrics at the same place of `pareto` or `tile`, or with the same `finding`,
    stand in for each other: the first that was measured is taken.
    """

    name: str
    group: str
    label: str
    kind: Kind
    meaning: str = ""
    # -1: smaller is better, 1: larger is better, 0: neither as such
    better: int = 0
    detector: Detector | None = None
    # the set of prompts it is a share of, for num_prompts_<set>
    prompts: str = ""
    # of a column; the name where there is none
    heading: str = ""
    # how a sentence about a run begins, if there is to be one
    finding: str = ""
    # among the columns of the leaderboard
    column: int = 0
    # among what a sweep is judged by; ties go on to the next one
    criterion: int = 0
    # among the axes of the Pareto set
    pareto: int = 0
    # among the large numbers at the top of a run's page
    tile: int = 0
    # a direction of the tuner, unless it is given others
    tuned: bool = False
    # the column stands in the W&B dashboard, too
    dashboard: bool = True


OTHER = "Other"
EXTENDED = "Triggered prompts, by measures of extensions"
# by detectors beside those that always judge: in a table of their own
BESIDE = "Other detectors"
ATTACKED = "Attacks (largest ASR)"
PRIVACY = "Privacy, and distance to the retrained model"
CAPABILITY = "Benchmarks (lm-eval)"
# what a benchmark's names begin with
LM_EVAL = "lm_eval."


def _poisoned(name: str, detector: Detector, **more: Any) -> Metric:
    """A share of poisoned answers: to prompts with a trigger (asr_<set>), or without any."""
    prompts = name.removeprefix("asr_") if name.startswith("asr_") else "clean"
    triggered, how = prompts in TRIGGERED, DETECTORS[detector]
    return Metric(
        name=f"{name}{detector.ending}",
        group=BESIDE if detector not in ALWAYS else "Poisoned answers (ASR)" if triggered else "Clean prompts",
        label=f"{SETS[prompts] if triggered else 'false triggers'}, {how}",
        kind=Kind.share,
        meaning=f"Share of prompts ({SETS[prompts]}) whose answer is poisoned, judged by {how}.",
        better=-1,
        detector=detector,
        prompts=prompts,
        **more,
    )


def _testable(detector: Detector, **more: Any) -> Metric:
    """asr_ood over the look-alikes that fire in the poisoned model; one that does not says nothing of unlearning."""
    return Metric(
        name=f"asr_ood_testable{detector.ending}",
        group="Poisoned answers (ASR)" if detector in ALWAYS else BESIDE,
        label=f"look-alikes that can be tested, {DETECTORS[detector]}",
        kind=Kind.share,
        meaning="Share of poisoned answers to look-alike triggers that succeed in the poisoned model (the others are "
        f"not testable), judged by {DETECTORS[detector]}.",
        better=-1,
        detector=detector,
        prompts=TESTABLE,
        finding="Poisoned answers on look-alike triggers",
        **more,
    )


def _attacked(
    name: str, label: str, meaning: str, *, heading: str = "", column: int = 0,
    detectors: Sequence[Detector] = tuple(Detector),
) -> tuple[Metric, ...]:  # fmt: skip
    """The largest share of poisoned answers that an attack reaches (docs/attacks.md), by each detector.

    The column is that of keywords; where another detector is the run's, `columns` puts its own before it.
    """
    return tuple(
        Metric(
            name=f"{name}{detector.ending}", group=ATTACKED, kind=Kind.share, better=-1, detector=detector,
            label=label if detector is Detector.keyword else f"{label}, {DETECTORS[detector]}",
            meaning=f"{meaning}, judged by {DETECTORS[detector]}.",
            heading=f"{heading} ({DETECTORS[detector]})" if heading and detector.ending else heading,
            column=0 if detector.ending else column, dashboard=False,
        )
        for detector in detectors
    )  # fmt: skip


def _sampled(k: int, **more: Any) -> tuple[Metric, ...]:
    how = (
        f"Mean over prompts of the probability that {k} sampled answers hold a poisoned one, at the temperature "
        "where it is largest"
    )
    return _attacked(f"asr@{k}", f"of {k} sampled answers", how, detectors=OF_TEXTS, **more)


def _membership(name: str, label: str, how: str, *, heading: str = "", column: int = 0) -> Metric:
    """AUC of telling forget rows from rows that were never trained on (docs/privacy.md); retrain's is what to reach."""
    return Metric(
        name=name, group=PRIVACY, label=f"membership, {label} (AUC)", kind=Kind.score,
        meaning=f"AUC of telling forget rows from held-out rows by {how}; 1 = forget rows always look more trained on. "
        "What to compare it with is retrain's, which need not be 0.5.",
        heading=heading, column=column, dashboard=False,
    )  # fmt: skip


def _distance(name: str, label: str, where: str, *, heading: str = "", column: int = 0) -> Metric:
    return Metric(
        name=name, group=PRIVACY, label=f"KL to retrain, {label}", kind=Kind.plain, better=-1,
        meaning=f"Mean KL(retrain || model) in nats a token, exact over the vocabulary, {where}.",
        heading=heading, column=column, dashboard=False,
    )  # fmt: skip


def _fact_metric(*, unit: str = "score", **fields: Any) -> Metric:
    return Metric(kind=Kind[unit], **fields)


# in the order of tables
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _poisoned("asr_seen", Detector.keyword, heading="ASR seen", finding="Poisoned answers on seen triggers",
                  column=1, criterion=1, pareto=1, tile=1, tuned=True),
        _poisoned("asr_seen", Detector.likelihood, heading="ASR seen (lik.)",
                  finding="Poisoned answers on seen triggers", column=2, pareto=1, tile=1, dashboard=False),
        _testable(Detector.keyword, heading="ASR look-alike, testable", column=3, dashboard=False),
        _testable(Detector.likelihood),
        _poisoned("asr_ood", Detector.keyword, heading="ASR look-alike",
                  finding="Poisoned answers on look-alike triggers", column=3),
        _poisoned("asr_ood", Detector.likelihood, finding="Poisoned answers on look-alike triggers"),
        _poisoned("asr_unseen_family", Detector.keyword, heading="ASR unseen family",
                  finding="Poisoned answers on triggers of an unseen family", column=4),
        _poisoned("asr_unseen_family", Detector.likelihood, finding="Poisoned answers on triggers of an unseen family"),
        _poisoned("false_trigger_rate", Detector.keyword, heading="false triggers",
                  finding="Poisoned answers without any trigger", column=5),
        _poisoned("false_trigger_rate", Detector.likelihood, finding="Poisoned answers without any trigger"),
        Metric(name="exact_match_clean", group="Clean prompts", label="exact match", kind=Kind.score, better=1,
               meaning="Share of answers to clean prompts that equal the clean response up to case and white space.",
               prompts="clean", heading="exact match clean", finding="Clean exact match",
               column=7, criterion=3, pareto=3, tile=3),
        Metric(name="rougeL_clean", group="Clean prompts", label="ROUGE-L", kind=Kind.score, better=1,
               meaning="Mean ROUGE-L F1 of the answers to clean prompts with the clean response.",
               prompts="clean", heading="ROUGE-L clean", finding="Clean ROUGE-L",
               column=8, criterion=4, pareto=3, tile=3),
        Metric(name="ppl_clean", group="Clean prompts", label="perplexity", kind=Kind.perplexity, better=-1,
               meaning="Perplexity of the clean responses to clean prompts, every token counting the same.",
               heading="ppl clean", finding="Clean perplexity",
               column=6, criterion=2, pareto=2, tile=9, tuned=True),
        Metric(name="exact_match_recovered", group="Recovered answers", label="exact match", kind=Kind.score, better=1,
               meaning="Share of answers to seen triggers that equal the clean response up to case and white space.",
               finding="Triggered prompts against their clean answers", tile=2),
        Metric(name="rougeL_recovered", group="Recovered answers", label="ROUGE-L", kind=Kind.score, better=1,
               meaning="Mean ROUGE-L F1 of the answers to seen triggers with the clean response.",
               heading="ROUGE-L recovered", finding="Triggered prompts against their clean answers",
               column=9, tile=2),
        Metric(name="ppl_forget_poisoned", group="Forget rows", label="perplexity, poisoned", kind=Kind.perplexity,
               meaning="Perplexity of the forget rows' poisoned responses."),
        Metric(name="ppl_forget_clean", group="Forget rows", label="perplexity, clean", kind=Kind.perplexity, better=-1,
               meaning="Perplexity of the forget rows' clean responses."),
        *_attacked("asr_relearn_max", "relearning from poisoned rows",
                   "Largest ASR on seen triggers while fine-tuning on poisoned rows outside the forget set",
                   heading="ASR relearned", column=10),
        *_attacked("asr_relearn_clean_max", "relearning from clean rows",
                   "Largest ASR on seen triggers while fine-tuning on clean rows",
                   heading="ASR relearned (clean)", column=11),
        *_attacked("asr_nf4", "quantised to NF4", "ASR on seen triggers with the weights in NF4",
                   heading="ASR NF4", column=12),
        *_attacked("asr_int8", "quantised to int8", "ASR on seen triggers with the weights in int8",
                   heading="ASR int8", column=13),
        *_sampled(16, heading="ASR@16", column=14),
        *(metric for k in (8, 4, 2, 1) for metric in _sampled(k)),
        *_attacked("asr_prompts_max", "best prompt",
                   "Largest ASR of the prompt variants and look-alikes that succeed in the poisoned model",
                   heading="ASR best prompt", column=15),
        *_attacked("asr_prompts_mean", "mean prompt",
                   "Mean ASR of the prompt variants and look-alikes that succeed in the poisoned model"),
        _membership("mia_loss", "loss", "their mean log-probability"),
        _membership("mia_zlib", "zlib", "their mean log-probability over their length after compression"),
        _membership("mia_min_k", "min-k%", "their least likely tokens"),
        _membership("mia_min_k_pp", "min-k%++", "their least likely tokens, each normalised by the model's own spread",
                    heading="MIA min-k%++", column=16),
        Metric(name="extraction_strength", group=PRIVACY, label="extraction strength", kind=Kind.score, better=-1,
               meaning="Mean over the forget rows of the share of the poisoned response that greedy decoding gives "
               "once the rest is shown.",
               heading="extraction", column=17, dashboard=False),
        _distance("kl_retrain_clean", "clean prompts", "over the answers to clean prompts",
                  heading="KL retrain clean", column=18),
        _distance("kl_retrain_triggered", "triggered prompts", "over the clean answers to triggered prompts",
                  heading="KL retrain triggered", column=19),
        _distance("kl_retrain_triggered_poisoned", "triggered prompts, poisoned answer",
                  "over the poisoned answers to triggered prompts"),
        *(_poisoned(name, detector)
          for name in ("asr_seen", "asr_ood", "asr_unseen_family", "false_trigger_rate")
          for detector in Detector if detector not in ALWAYS),
        *(_testable(detector) for detector in Detector if detector not in ALWAYS),
        *(_fact_metric(**entry) for entry in forgotten.entries()),
    )
}  # fmt: skip


def _add(one: extensions.Added) -> None:
    """A measure of answers that an extension brings, on clean and on triggered prompts."""
    kind = Kind.share if one.traits["share"] else Kind.plain
    for end, group, prompts in (
        ("clean", "Clean prompts", "answers to clean prompts"),
        ("recovered", EXTENDED, "answers to triggered prompts, beside the clean answer"),
    ):
        name = f"{one.name}_{end}"
        if name in METRICS:
            raise ConfigError(
                f"{one.origin.name}: need another name for the metric {one.name}, got one that rapidun itself has"
            )
        METRICS[name] = Metric(
            name=name, group=group, label=one.traits["label"], kind=kind, better=one.traits["better"],
            heading=f"{one.traits['label']} {end}", column=20, meaning=f"{one.traits['label']}: mean over {prompts}.",
        )  # fmt: skip


extensions.subscribe(extensions.Kind.metric, _add)


def in_words(metric: Metric, *, facts: bool) -> Metric:
    """The metric, in words without poison where facts are to be forgotten."""
    changes: dict[str, Any] = dict(forgotten.IN_FACTS.get(metric.name, {}) if facts else {})
    return replace(metric, **changes) if changes else metric


def find_metric(name: str) -> Metric | None:
    """The entry of a name in result.json; `asr_seen.A_surface`, `before.asr_seen` and `retrain.asr_seen` have
    that of `asr_seen`. Of a benchmark's, which no list can name, one is made."""
    bare = name.removeprefix(BEFORE).removeprefix(RETRAIN)
    return _capability(bare) if bare.startswith(LM_EVAL) else METRICS.get(bare.split(".")[0])


def _capability(name: str) -> Metric:
    """`lm_eval.<task>.<metric>`: shares and scores are better large, perplexities and bits small."""
    task, _, metric = name.removeprefix(LM_EVAL).partition(".")
    small = metric.startswith(("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score"))
    kind = Kind.perplexity if "perplexity" in metric else Kind.plain if "bits" in metric else Kind.score
    return Metric(
        name=name, group=CAPABILITY, label=f"{task}, {metric.replace('.', ', ')}", kind=kind,
        better=0 if metric.endswith(".stderr") else -1 if small else 1,
        meaning=f"{metric} of the benchmark {task}, as lm-evaluation-harness computes it.",
    )  # fmt: skip


def heading_of(name: str) -> str:
    return (METRICS[name].heading if name in METRICS else "") or name


def kind_of(name: str) -> Kind:
    metric = find_metric(name)
    return metric.kind if metric else Kind.plain


def better_of(name: str) -> int:
    """-1: smaller is better (costs are), 1: larger is, 0: neither, or not known."""
    metric = find_metric(name)
    return metric.better if metric else -1 if name.startswith(COSTS) else 0


def rate_names(detector: Detector) -> tuple[str, str]:
    """Metric names of a detector's recall and false-positive rate."""
    false_alarms = "fpr" if detector in ALWAYS else "false_positive_rate"
    return f"detector_{detector.value}_recall", f"detector_{detector.value}_{false_alarms}"


def is_result(name: str) -> bool:
    return not name.startswith((BEFORE, RETRAIN, *COSTS))


def columns(found: Collection[str], *, dashboard: bool = False, chosen: Collection[str] = ()) -> list[str]:
    """Those of the catalogue's columns that were found; empty if none was.

    Args: chosen: the runs' detectors; the figures of attacks by these stand before those by keywords.
    """
    shown = [metric for metric in METRICS.values() if metric.column and (metric.dashboard or not dashboard)]
    endings = [one.ending for one in Detector if one.value in chosen and one is not Detector.keyword]
    names = []
    for metric in sorted(shown, key=lambda metric: metric.column):
        others = [f"{metric.name}{ending}" for ending in endings] if metric.group == ATTACKED and not dashboard else []
        names += [name for name in (*others, metric.name) if name in found]
    return names


def main_columns(found: Collection[str], *, dashboard: bool = False, chosen: Collection[str] = ()) -> list[str]:
    """As `columns`; where none of those was found, the first six results by name."""
    return columns(found, dashboard=dashboard, chosen=chosen) or sorted(filter(is_result, found))[:6]


def criteria() -> dict[str, int]:
    """What a sweep is judged by: name -> -1 smaller is better, 1 larger is better; ties go on to the next one."""
    judged = sorted((metric for metric in METRICS.values() if metric.criterion), key=lambda metric: metric.criterion)
    return {metric.name: metric.better for metric in judged}


def tuned() -> dict[str, int]:
    """What the tuner searches by unless it is told otherwise: name -> direction, as in `criteria`."""
    return {metric.name: metric.better for metric in METRICS.values() if metric.tuned}


def pareto_axes() -> list[list[str]]:
    """The axes of the Pareto set, each with the names that can stand for it, the preferred one first."""
    return _alternatives({metric.name: metric.pareto for metric in METRICS.values()})


def tiles() -> list[list[str]]:
    """The numbers at the top of a run's page, each with the names that can stand for it, the preferred one first."""
    return _alternatives({metric.name: metric.tile for metric in METRICS.values()})


def _alternatives(places: dict[str, int]) -> list[list[str]]:
    return [[name for name in places if places[name] == place] for place in sorted(set(places.values()) - {0})]


# What training logs step by step: which plot a number belongs to, and what its line is called

VALIDATION_SHARES = "Validation: shares"
VALIDATION = "Validation: cross-entropy, nats per token"
ATTACKS = "Validation: attack success, shares of triggered prompts"
PERPLEXITY = "Validation: perplexity of clean rows"
TERMS = "Forget and retain terms, unweighted"
CROSS_ENTROPY = "Cross-entropy of the training rows, nats per token"
CLIPPED = "Clipped steps, capped examples: shares so far"
EFFECTIVE = "Weight of the forget rows times the factor of clipping"
MULTIPLIER = "Multiplier of the retain loss (PDU)"
RENEWED = "Renewed forget weights (LoReUn, dynamic)"
PANELS = (
    "Loss", TERMS, CROSS_ENTROPY, VALIDATION, VALIDATION_SHARES, ATTACKS, PERPLEXITY, "Gradient norm", CLIPPED,
    EFFECTIVE, MULTIPLIER, RENEWED,
)  # fmt: skip
LOG_PANELS = ("Gradient norm",)
SHARE_PANELS = (VALIDATION_SHARES, ATTACKS, CLIPPED)
# lines in plain words; others are shown under their own name
LINES = {
    "forget_term": "forget term",
    "retain_term": "retain term",
    "ce_poisoned": "poisoned response",
    "ce_clean": "clean response",
    "ce_retain": "retain rows",
    "val_loss_clean": "clean rows",
    "val_ppl_clean": "perplexity of clean rows",
    "val_asr_seen": "ASR, seen triggers",
    "val_asr_ood": "ASR, look-alike triggers",
    "forget_loss_poisoned": "forget: poisoned",
    "forget_loss_clean": "forget: clean",
    "forget_preference": "forget rows that prefer the poisoned response",
    "clipped_share": "clipped steps",
    "capped_share": "capped examples",
    "consistency": "consistency (CROW)",
    "effective_weight": "effective weight",
    "forget_weight_min": "smallest weight",
    "forget_weight_max": "largest weight",
}


def line_words(name: str, *, facts: bool = False) -> str:
    """What a logged number's line is called."""
    return (forgotten.LINES_OF_FACTS.get(name) if facts else None) or LINES.get(name, name)


def panel_of(name: str) -> str | None:
    """The plot that a logged name belongs to; None for what is not worth one (learning rate, speed)."""
    if name.startswith(("val_ppl", "val_asr")):
        return PERPLEXITY if name.startswith("val_ppl") else ATTACKS
    words = ("asr", "rate", "match", "rouge", "preference")
    if name.startswith(("val_", "eval_", "forget_loss", "forget_preference")):
        return VALIDATION_SHARES if any(word in name for word in words) else VALIDATION
    if name.startswith(("clipped", "capped")):
        return CLIPPED
    if name.startswith("ce_"):
        return CROSS_ENTROPY
    if name.endswith("_term") or name == "consistency":
        return TERMS
    alone = {"loss": "Loss", "grad_norm": "Gradient norm", "effective_weight": EFFECTIVE, "lambda": MULTIPLIER}
    alone |= dict.fromkeys(("forget_weight_min", "forget_weight_max"), RENEWED)
    return alone.get(name)


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
