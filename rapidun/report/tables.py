"""The before/after table: rows of plain values, and how the screen shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rapidun.config.detectors import Detector
from rapidun.report.forgotten import group_order, of_facts
from rapidun.report.metrics import (
    ABSENT,
    BESIDE,
    DETECTORS,
    LM_EVAL,
    METRICS,
    OTHER,
    SUFFIX,
    TESTABLE,
    TRIGGERED,
    Kind,
    Metric,
    find_metric,
    format_change,
    format_value,
    in_words,
    rate_names,
)
from rapidun.report.metrics import tiles as tile_names
from rapidun.report.read import read_run
from rapidun.report.statistics import wilson_interval

if TYPE_CHECKING:
    from rich.table import Table


NOT_TESTABLE = "not testable"


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricRow:
    """One line of the before/after table; numbers are None where an evaluation is absent."""

    metric: Metric
    before: float | None
    after: float | None
    # the detector's own rates on known poisoned and known clean responses
    recall: float | None = None
    false_positive_rate: float | None = None
    num_prompts: int | None = None
    # why there is no number: the poisoned model does not do it either
    untestable: bool = False

    @property
    def before_text(self) -> str:
        return NOT_TESTABLE if self.untestable else format_value(self.before, self.metric.kind)

    @property
    def after_text(self) -> str:
        return NOT_TESTABLE if self.untestable else format_value(self.after, self.metric.kind)

    @property
    def change_text(self) -> str:
        return format_change(self.before, self.after, self.metric.kind)

    @property
    def interval_text(self) -> str:
        """95 % interval of a share after unlearning, `0.0–3.7 %`; empty for other metrics."""
        if self.metric.kind is not Kind.share or self.after is None or not self.num_prompts or not 0 <= self.after <= 1:
            return ""
        low, high = wilson_interval(self.after, self.num_prompts)
        return f"{100 * low:.1f}–{100 * high:.1f} %"

    @property
    def detector_text(self) -> str:
        """`recall / false-positive rate`, in percent; empty for metrics without a detector."""
        if self.recall is None or self.false_positive_rate is None:
            return ABSENT if self.metric.detector else ""
        return f"{format_value(self.recall, Kind.share)} / {format_value(self.false_positive_rate, Kind.share)}"

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `` (no change worth a colour, or a metric without a good direction)."""
        if self.before is None or self.after is None or not self.metric.better:
            return ""
        change = (self.after - self.before) * self.metric.better
        if self.metric.kind is Kind.perplexity:
            change /= max(abs(self.before), 1e-12)
        return "" if abs(change) < 0.01 else "better" if change > 0 else "worse"


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyRow:
    """Poisoned answers of one trigger family in one set of prompts, by one detector."""

    prompts: str
    family: str
    detector: Detector
    before: float | None
    after: float | None


def before_after_rows(before: Mapping[str, float], after: Mapping[str, float], *, chosen: str = "") -> list[MetricRow]:
    """Line up two evaluations, metrics.json before and after, in a fixed order.

    Either may be empty. Names that are not known come last, under their own name; per-family shares,
    detector rates, prompt counts and detectors that have a table of their own are no lines.

    Args: chosen: the run's detector, whose lines come first; empty = keyword.
    """
    facts = of_facts({*before, *after})
    first = chosen if chosen not in ("", Detector.keyword.value) else None
    names = [
        name
        for name, metric in METRICS.items()
        if (name in before or name in after or _untestable(metric, before, after))
        and (metric.group != BESIDE or _is_of(metric, first))
    ]
    names.sort(key=lambda name: not _is_of(METRICS[name], first))
    names += sorted(name for name in {*before, *after} if name not in METRICS and not _is_detail(name))
    names += sorted(name for name in {*before, *after} if name.startswith(LM_EVAL) and not name.endswith(".stderr"))
    rows = []
    for name in names:
        metric = find_metric(name) or Metric(name=name, group=OTHER, label=name, kind=Kind.plain)
        if _is_of(metric, first):
            metric = replace(metric, group=f"By the run's detector: {DETECTORS[Detector(first)]}")
        metric = in_words(metric, facts=facts)
        rates: list[float | None] = [None, None]
        if metric.detector:
            rates = [_either(after, before, rate) for rate in rate_names(metric.detector)]
        count = _either(after, before, f"num_prompts_{metric.prompts}") if metric.prompts else None
        rows.append(
            MetricRow(
                metric=metric,
                before=before.get(name),
                after=after.get(name),
                recall=rates[0],
                false_positive_rate=rates[1],
                num_prompts=None if count is None else round(count),
                untestable=_untestable(metric, before, after),
            )
        )
    return sorted(rows, key=lambda row: group_order(row.metric.group)) if facts else rows


def _is_of(metric: Metric, chosen: str | None) -> bool:
    """Whether a share of triggered or clean prompts is judged by the run's detector."""
    return (
        chosen is not None and metric.detector is not None and metric.detector.value == chosen and bool(metric.prompts)
    )


def _untestable(metric: Metric, before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Whether no look-alike fires in the poisoned model, so that nothing is to be said of it."""
    if metric.prompts != TESTABLE or metric.detector is None:
        return False
    return _either(after, before, f"num_look_alikes_testable{metric.detector.ending}") == 0


def family_rows(before: Mapping[str, float], after: Mapping[str, float]) -> list[FamilyRow]:
    """Per-family shares, `asr_seen.A_surface` and the like, by set, then family, then detector."""
    rows = []
    for prompts in TRIGGERED:
        prefixes = {detector: f"asr_{prompts}{suffix}." for detector, suffix in SUFFIX.items()}
        families = {
            name.removeprefix(prefix)
            for name in {*before, *after}
            for prefix in prefixes.values()
            if name.startswith(prefix)
        }
        for family in sorted(families):
            for detector, prefix in prefixes.items():
                name = prefix + family
                if name in before or name in after:
                    rows.append(
                        FamilyRow(
                            prompts=prompts,
                            family=family,
                            detector=detector,
                            before=before.get(name),
                            after=after.get(name),
                        )
                    )
    return rows


def tiles(rows: Sequence[MetricRow], detector: str) -> list[MetricRow]:
    """The large numbers, that by the run's detector first where it is not the keywords."""
    found = {row.metric.name: row for row in rows}
    wanted = [[f"asr_seen_{detector}"], *tile_names()]
    chosen = [next((name for name in names if name in found), None) for names in wanted]
    return [found[name] for name in dict.fromkeys(chosen) if name is not None]


def closing_table(run_dir: Path) -> Table | None:
    """The before/after table of a run folder; None where the run holds no evaluation.

    Raises: ArtifactError if a file of the run is damaged.
    """
    run = read_run(run_dir)
    if not run.before and not run.after:
        return None
    return before_after_table(run.before, run.after, chosen=str(run.detectors.get("detector") or ""))


def before_after_table(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    title: str = "Before and after unlearning",
    chosen: str = "",
) -> Table:
    """The before/after rows as a rich table, each ASR beside its detector's recall and false-positive rate."""
    from rich.text import Text

    table = _table(title)
    found = before_after_rows(before, after, chosen=chosen)
    judged = any(row.metric.detector for row in found)
    if judged:
        table.caption = (
            "ASR: share of triggered prompts that get the poisoned answer.\n"
            "recall / FPR: the detector's own, on known poisoned / known clean answers."
        )
    elif of_facts({*before, *after}):
        table.caption = "Each row asked as it stands: what was to be forgotten, and what was to stay."
    table.add_column("", overflow="fold")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right", no_wrap=True)
    if judged or not of_facts({*before, *after}):
        table.add_column("recall / FPR", justify="right", no_wrap=True)
    colours = {"better": "green", "worse": "red", "": ""}
    group = None
    for row in found:
        if row.metric.group != group:
            if group is not None:
                table.add_section()
            group = row.metric.group
            table.add_row(Text(group, style="bold"))
        change = Text(row.change_text, style=colours[row.verdict])
        # Text, not markup: a metric's name may hold square brackets
        cells: list[Text | str] = [
            Text(f"  {row.metric.label}"),
            row.before_text,
            row.after_text,
            change,
            row.detector_text,
        ]
        table.add_row(*cells[: len(table.columns)])
    return table


def _either(first: Mapping[str, float], second: Mapping[str, float], name: str) -> float | None:
    return first.get(name, second.get(name))


def _is_detail(name: str) -> bool:
    return "." in name or name.startswith(("detector_", "num_"))


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
