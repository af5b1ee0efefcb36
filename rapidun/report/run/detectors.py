"""All detectors of a run side by side: what each says, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidun.config.detectors import Detector
from rapidun.report.metrics import ABSENT, DETECTORS, Kind, format_number, format_value
from rapidun.report.read import number, read_run

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorRow:
    """One detector; texts are ready to be shown."""

    label: str
    # recall, false alarms, their difference: on known answers that nothing was fitted on
    recall: str
    false_alarms: str
    youden: str
    # poisoned answers on seen triggers, false triggers: before -> after
    seen: str
    clean: str
    note: str
    is_chosen: bool = False


def detector_rows(
    before: Mapping[str, float], after: Mapping[str, float], facts: Mapping[str, Any]
) -> list[DetectorRow]:
    """The run's detector first, then the others in their order; those that were left out say why.

    Args: facts: evaluation/detectors.json.
    """
    measured, left_out = facts.get("detectors") or {}, facts.get("left_out") or {}
    chosen = facts.get("detector")
    rows = []
    for detector in sorted(Detector, key=lambda one: one.value != chosen):
        found = measured.get(detector.value)
        names = (f"asr_seen{detector.ending}", f"false_trigger_rate{detector.ending}")
        if found is None and detector.value not in left_out:
            continue
        found = found or {}
        threshold = number(found.get("threshold"))
        notes = ["the run's detector"] if detector.value == chosen else []
        unit = "nats" if detector is Detector.judge else "nats a token"
        notes += [f"threshold {format_number(threshold)} {unit}"] if threshold is not None else []
        notes += [f"left out: {left_out[detector.value]}"] if detector.value in left_out else []
        rows.append(
            DetectorRow(
                label=DETECTORS[detector],
                recall=format_value(number(found.get("recall")), Kind.share),
                false_alarms=format_value(number(found.get("false_positive_rate")), Kind.share),
                youden=format_value(number(found.get("youden")), Kind.score),
                seen=_change(before.get(names[0]), after.get(names[0])),
                clean=_change(before.get(names[1]), after.get(names[1])),
                note="; ".join(notes),
                is_chosen=detector.value == chosen,
            )
        )
    return rows


def detector_table(run_dir: Path) -> Table | None:
    """The detectors for the screen; None where a run measured none.

    Raises: ArtifactError if a file of the run is damaged.
    """
    run = read_run(run_dir)
    rows = detector_rows(run.before, run.after, run.detectors)
    if not rows:
        return None
    from rich import box
    from rich.table import Table
    from rich.text import Text

    chosen = next((row.label for row in rows if row.is_chosen), "none is better than chance")
    left_out = [f"{row.label}: {row.note}" for row in rows if row.recall == ABSENT]
    where = "known answers that nothing was fitted on" if run.detectors.get("held_out") else "known answers"
    table = Table(
        title=f"Detectors (the run's: {chosen})",
        title_justify="left",
        title_style="bold",
        caption="\n".join([f"recall, false alarms, J = their difference: on {where}", *left_out]),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", overflow="fold")
    for column in ("ASR seen", "false triggers", "recall", "false alarms", "J"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        style = "bold" if row.is_chosen else ""
        if row.recall == ABSENT:
            continue
        table.add_row(Text(row.label, style=style), row.seen, row.clean, row.recall, row.false_alarms, row.youden)
    return table


def _change(before: float | None, after: float | None) -> str:
    if before is None and after is None:
        return ABSENT
    return f"{format_value(before, Kind.share)} \u2192 {format_value(after, Kind.share)}"
