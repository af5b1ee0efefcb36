"""Privacy and distance of a run, from its evaluation/privacy.json: a line a measure, a column a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapidun.report.metrics import ABSENT, METRICS, PRIVACY, ROLES, Metric, format_value
from rapidun.report.read import number, read_object


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyRow:
    """One line: of each role the value and its interval, None where there is none."""

    metric: Metric
    values: dict[str, tuple[float | None, float | None, float | None]]

    @property
    def label(self) -> str:
        return self.metric.label

    def text(self, role: str) -> str:
        """`0.912 [0.850, 0.960]`."""
        value, low, high = self.values.get(role, (None, None, None))
        if value is None:
            return ABSENT
        shown = format_value(value, self.metric.kind)
        if low is None or high is None:
            return shown
        return f"{shown} [{format_value(low, self.metric.kind)}, {format_value(high, self.metric.kind)}]"


def read_privacy(run_dir: Path) -> dict[str, Any]:
    """evaluation/privacy.json of a run folder, empty where nothing was measured. Raises: ArtifactError if damaged."""
    return read_object(run_dir / "evaluation" / "privacy.json")


def privacy_rows(found: Mapping[str, Any]) -> list[PrivacyRow]:
    """The lines, in the order of the catalogue."""
    flat = {
        role: {name: value for one in found.get(role, {}).values() for name, value in one.get("metrics", {}).items()}
        for role in ROLES
    }
    rows = []
    for metric in METRICS.values():
        if metric.group != PRIVACY:
            continue
        values = {
            role: (
                number(of.get(metric.name)),
                number(of.get(f"{metric.name}.low")),
                number(of.get(f"{metric.name}.high")),
            )
            for role, of in flat.items()
        }
        if any(value is not None for value, _, _ in values.values()):
            rows.append(PrivacyRow(metric=metric, values=values))
    return rows


def privacy_section(run_dir: Path) -> dict[str, Any] | None:
    """What the page shows; None where nothing was measured."""
    found = read_privacy(run_dir)
    rows = privacy_rows(found)
    if not rows:
        return None
    return {"roles": [role for role in ROLES if role in found], "rows": rows, "notes": _notes(found)}


def _notes(found: Mapping[str, Any]) -> list[str]:
    """Who was compared with whom, and by what else they differ."""
    notes = []
    about = next((each["membership"]["compared"] for each in found.values() if "membership" in each), None)
    if about is not None:
        kind = "of the same kind" if about["alike"] else "of another kind: an AUC says how different the kinds are, too"
        text = (
            f"Membership: {about['num_members']} forget rows against {about['num_others']} rows of {about['split']} "
            f"that are in no training split ({kind}; {about['in_training']} others are asked in training, "
            f"{about['left_out']} left out)."
        )
        if about["auc_of_length"] is not None:
            one, two = about["median_tokens"]
            text += (
                f" The number of tokens alone has an AUC of {about['auc_of_length']:.2f} (medians {one:g} and {two:g})."
            )
        notes.append(text)
    sets: dict[str, dict[str, int]] = next(
        (each["distance"]["sets"] for each in found.values() if "distance" in each), {}
    )
    if sets:
        counted = ", ".join(f"{name.replace('_', ' ')} {s['num_tokens']} tokens of {s['num_rows']} rows"
                            for name, s in sets.items())  # fmt: skip
        notes.append(f"Distance: {counted}.")
    return notes
