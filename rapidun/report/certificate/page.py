"""certificate.html: the document for a reader, from its values alone. No script, no network; it prints."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rapidun.base.files import write_text
from rapidun.report import metrics
from rapidun.report.metrics import ROLES, Kind, format_percent
from rapidun.report.run import plots
from rapidun.report.run.page import environment
from rapidun.report.verdict.rules import Outcome

JSON_FILE, HTML_FILE = "certificate.json", "certificate.html"
ROLE_WORDS = {"unlearned": "unlearned", "retrain": "retrain (never saw it)", "poisoned": "before"}


def write_certificate(document: Mapping[str, Any], folder: Path, *, text: str) -> tuple[Path, Path]:
    """Write certificate.json and certificate.html into a folder; nothing where the page cannot be made.

    Args: text: the document as it stands in certificate.json; its SHA-256 stands on the page.
    Returns: their paths.
    """
    page = render(document, digest=hashlib.sha256(text.encode()).hexdigest())
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / JSON_FILE, text)
    write_text(folder / HTML_FILE, page)
    return folder / JSON_FILE, folder / HTML_FILE


def render(document: Mapping[str, Any], *, digest: str) -> str:
    made = environment()
    made.filters.update(share=share_text, interval=interval_text, percent=format_percent, auc=_auc)
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for one in document["tried"]:
        groups.setdefault(one["attack"], {}).setdefault(one["name"], []).append(one)
    page: str = made.get_template("certificate/certificate.html.j2").render(
        **document,
        document=document,
        outcome=Outcome[document["verdict"]["outcome"]],
        role_words=ROLE_WORDS,
        roles=[role for role in ROLES if any(one[role] for one in document["tried"])],
        groups=groups,
        group_words=GROUPS,
        plots=[
            (one["title"], plots.curves(one["lines"], title=one["title"], shares=True, across=one["across"]))
            for one in document["curves"]
        ],
        tiles=_tiles(document),
        digest=digest,
    )
    return page


GROUPS = {
    "asked": "Asked as it was trained",
    "beside": "Asked with something else",
    "extraction": "The answer's beginning shown",
    "relearning": "Relearning: fine-tuned on a few rows, the maximum of the curve",
    "quantisation": "Quantisation",
    "sampling": "Sampling",
    "prompts": "Prompts changed",
    "paraphrases": "Paraphrases",
}


def share_text(share: Mapping[str, Any] | None) -> str:
    """`32.0 %`, a dash where there is none."""
    return metrics.format_value(None if share is None else share["share"], Kind.share)


def interval_text(share: Mapping[str, Any] | None) -> list[str]:
    """`32 of 100` and `23.7 to 41.7 %`, a line each."""
    if share is None:
        return []
    of = (
        f"{round(share['share'] * share['num'])} of {share['num']}"
        if share["counted"]
        else f"mean over {share['num']} rows"
    )
    return [of, f"{100 * share['low']:.1f} to {100 * share['high']:.1f} %"]


def _auc(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return metrics.ABSENT
    shown = metrics.format_number(value["value"])
    if value["low"] is None or value["high"] is None:
        return shown
    return f"{shown} [{metrics.format_number(value['low'])}, {metrics.format_number(value['high'])}]"


def _tiles(document: Mapping[str, Any]) -> list[dict[str, str]]:
    """The numbers that the verdict turns on: asked before and after, the strongest attack, what was kept."""
    tiles = []
    asked = next((one for one in document["tried"] if one["attack"] == "asked"), None)
    if asked is not None:
        tiles.append(
            _tile(f"asked, {asked['label']}", "→", share_text(asked["poisoned"]), share_text(asked["unlearned"]))
        )
    attacks = [
        one
        for one in document["tried"]
        if one["attack"] not in ("asked", "beside") and one["found"] != "not testable" and one["may_reach"] is not None
    ]
    if attacks:
        most = max(attacks, key=lambda one: float(one["unlearned"]["share"] - one["may_reach"]))
        what = f"{most['attack']}, {most['label']}"
        tiles.append(_tile(what, "|", share_text(most["unlearned"]), share_text(most["retrain"])))
    found = {row["name"]: row for row in document["kept"]}
    for names in (("exact_match_clean", "rougeL_clean", "rougeL_retain"), ("ppl_clean",)):
        row = next((found[name] for name in names if name in found), None)
        if row is not None:
            tiles.append(_tile(f"{row['group']}, {row['label']}", "→", row["before_text"], row["after_text"]))
    return tiles


def _tile(what: str, sign: str, one: str, two: str) -> dict[str, str]:
    note = "before → after unlearning" if sign == "→" else "unlearned | retrain: the attack that goes furthest"
    return {"what": what, "sign": sign, "one": one, "two": two, "note": note}
