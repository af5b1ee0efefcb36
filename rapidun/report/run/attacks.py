"""What a run's page shows of its attacks: the table of all attempts, and the curves as pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rapidun.report.attacks import AttackRow, attack_lines, attack_notes, attack_rows, read_attacks, shown_pair
from rapidun.report.metrics import DETECTORS, ROLES
from rapidun.report.run import plots


def attack_curves(found: Mapping[str, Any], *, chosen: str = "") -> list[tuple[str, str]]:
    """(caption, plot) of each. Args: chosen: the run's detector; empty = keyword."""
    return [
        (one.title, plots.curves(one.lines, title=one.title, shares=True, across=one.across))
        for one in attack_lines(found, chosen=chosen)
    ]


def attack_section(run_dir: Path, *, chosen: str = "") -> dict[str, Any] | None:
    """What the page shows of the attacks; None where there were none. Args: chosen: the run's detector."""
    found = read_attacks(run_dir)
    rows = attack_rows(found, chosen=chosen)
    if not rows:
        return None
    roles = [role for role in ROLES if role in found]
    groups: dict[str, list[AttackRow]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return {
        "roles": roles,
        "groups": list(groups.items()),
        "curves": attack_curves(found, chosen=chosen),
        "notes": attack_notes(found, shown_pair(chosen)[0]),
        "judged_by": [DETECTORS[detector] for detector in shown_pair(chosen)],
    }
