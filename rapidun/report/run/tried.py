"""What was tried against a run, in a line each: the most that it brought back, beside the retrained model's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapidun.report.attacks import FORMATS, AttackRow, attack_rows, read_attacks, shown_pair
from rapidun.report.metrics import ABSENT, DETECTORS, ROLES, Kind, format_value
from rapidun.report.privacy import read_privacy
from rapidun.report.read import RunRecord
from rapidun.report.untried import NEVER, not_tried

# the beginning of an attack's names -> what somebody does
KINDS = {
    "relearning.poisoned": "fine-tuned on poisoned rows that unlearning did not see",
    "relearning.clean": "fine-tuned on clean rows",
    **{name: f"quantised to {words}" for name, words in FORMATS.items() if name != "unquantised"},
    "asr@": "sampled, the best of some answers",
    "": "asked in other words",
}
# measured to compare with, no attack
CONTROLS = ("plain", "unquantised")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """The largest share of each model in attacks of a kind, by the run's detector."""

    kind: str
    shares: dict[str, float]
    # the attempt that brought most out of the unlearned model
    row: AttackRow

    def text(self, role: str) -> str:
        return format_value(self.shares.get(role), Kind.share)


def most_of_each(found: Mapping[str, Any], *, chosen: str = "") -> list[Tried]:
    """A line for each kind of attack that was run and says something, in the order of KINDS."""
    rows: dict[str, list[AttackRow]] = {}
    for row in attack_rows(found, chosen=chosen):
        counts = row.testable[0] and row.name.partition(".")[0] not in CONTROLS
        if counts and _share(row, "unlearned") is not None:
            rows.setdefault(next(words for begin, words in KINDS.items() if row.name.startswith(begin)), []).append(row)
    return [_most(kind, rows[kind]) for kind in KINDS.values() if kind in rows]


def _most(kind: str, rows: list[AttackRow]) -> Tried:
    shares = {role: [share for row in rows if (share := _share(row, role)) is not None] for role in ROLES}
    most = max(rows, key=lambda row: _share(row, "unlearned") or 0.0)
    return Tried(kind=kind, shares={role: max(found) for role, found in shares.items() if found}, row=most)


def _share(row: AttackRow, role: str) -> float | None:
    return row.shares.get(role, (None, None))[0]


def tried_sentence(lines: list[Tried]) -> str:
    """What brought most back."""
    most = max(lines, key=lambda line: line.shares["unlearned"])
    beside = most.text("retrain")
    yardstick = "no retrained model to compare with" if beside == ABSENT else f"retrained model {beside}"
    share = most.text("unlearned")
    return f"Of what was tried, this brings most back: {most.kind} ({most.row.label}): {share}, {yardstick}."


def tried_section(run_dir: Path, run: RunRecord, *, chosen: str = "") -> dict[str, Any] | None:
    """What the page shows first of the attacks; None where nothing was evaluated after unlearning.

    Without attacks there are no lines, and no sentence: the page says that greedy answers are all there is.

    Args: chosen: the run's detector.
    """
    if not run.after:
        return None
    found = read_attacks(run_dir)
    lines = most_of_each(found, chosen=chosen)
    untried = not_tried(run, found, read_privacy(run_dir), of_facts=False)
    return {
        "attacked": bool(found),
        "roles": [role for role in ROLES if role in found],
        "lines": lines,
        "sentence": tried_sentence(lines) if lines else "",
        "detector": DETECTORS[shown_pair(chosen)[0]],
        "not_tried": [one for one in untried if one["how"]],
        "never": list(NEVER),
    }
