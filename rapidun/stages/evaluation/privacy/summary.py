"""What the measures' artifacts say together: flat metrics for result.json, privacy.json for the report, the margins."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rapidun.base.files import read_json
from rapidun.config.privacy import Measure
from rapidun.report.metrics import ROLES

LINK = "evaluation/.privacy.{role}.{measure}"


def collected(artifacts: Mapping[str, Path]) -> dict[str, Any]:
    """{role: {measure: its privacy.json}} of a run, from its artifacts' folders by their links; empty without any."""
    found: dict[str, Any] = {}
    for link, folder in artifacts.items():
        match = re.fullmatch(r"evaluation/\.privacy\.(\w+)\.(\w+)", link)
        if match is not None:
            found.setdefault(match[1], {})[match[2]] = read_json(folder / "privacy.json")
    return found


def flat(found: Mapping[str, Any]) -> dict[str, float]:
    """The figures of every measure by their names in result.json."""
    return {
        f"{prefix}{name}": value
        for role, prefix in ROLES.items()
        for measure in Measure
        for name, value in found.get(role, {}).get(measure.name, {}).get("metrics", {}).items()
    }


def for_report(found: Mapping[str, Any]) -> dict[str, Any]:
    """The same without what is kept of single rows, and without the margins, which are nothing else."""
    return {
        role: {
            name: {key: value for key, value in values.items() if key != "rows"}
            for name, values in each.items()
            if name != Measure.margins.name
        }
        for role, each in found.items()
    }


def margins(found: Mapping[str, Any]) -> dict[str, Any]:
    """{role: {"model": identity, "points": {set: [{"id", "tokens", "margin"}]}}}: what KLOM is computed from."""
    return {
        role: {key: values[key] for key in ("model", "points")}
        for role, each in found.items()
        if (values := each.get(Measure.margins.name)) is not None
    }
