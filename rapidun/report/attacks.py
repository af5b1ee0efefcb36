"""The attacks of a run, from its evaluation/attacks.json: lines of unlearned, retrained and poisoned, and curves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidun.config.detectors import OF_TEXTS, Detector
from rapidun.report.metrics import ABSENT, DETECTORS, METRICS, ROLES, Kind, Metric, format_value
from rapidun.report.read import number, read_object, read_run

if TYPE_CHECKING:
    from rich.table import Table

# the two detectors of a cell: the run's and keywords, or keywords and likelihood
Pair = tuple[Detector, Detector]
RELEARNING, QUANTISATION = "Relearning, maximum of the curve", "Quantisation"
SAMPLING, PROMPTS = "Sampling", "Prompts"
NOT_TESTABLE = "not testable"
FORMATS = {"unquantised": "as it is", "nf4": "NF4", "int8": "int8"}
WORDS = {
    "plain": "as it is",
    "doubled": "trigger doubled",
    "middle": "trigger in mid-sentence",
    "other_case": "trigger in other case",
    "system": "behind a system prompt",
    "few_shot": "behind two poisoned examples",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackRow:
    """One line: of each role the shares by the two detectors of the table, None where one was not measured."""

    group: str
    label: str
    note: str
    shares: dict[str, tuple[float | None, float | None]]
    # what it is called apart from words: relearning.poisoned.5, nf4.merged, asr@16.t0.8, doubled
    name: str
    # of each role the prompts that were asked, and those that likelihood could judge; None where that was not noted
    counts: dict[str, tuple[int | None, int | None]]
    # by each detector, whether the poisoned model falls for it: else its shares say nothing
    testable: tuple[bool, bool] = (True, True)

    def text(self, role: str) -> str:
        """`97.0 % / 92.0 %`, by the two detectors; what cannot be tested is named, except in the poisoned model."""
        parts = []
        for value, counts in zip(self.shares.get(role, (None, None)), self.testable, strict=True):
            shown = format_value(value, Kind.share)
            parts.append(NOT_TESTABLE if not counts and role != "poisoned" and value is not None else shown)
        if parts == [ABSENT, ABSENT]:
            return ABSENT
        return NOT_TESTABLE if set(parts) == {NOT_TESTABLE} else " / ".join(parts)


def read_attacks(run_dir: Path) -> dict[str, Any]:
    """evaluation/attacks.json of a run folder, empty where no attack was run.

    Raises: ArtifactError if it is damaged.
    """
    return read_object(run_dir / "evaluation" / "attacks.json")


def shown_pair(chosen: str) -> Pair:
    """The detectors that tables of attacks show: the run's first where it is not keywords. attacks.json has all."""
    by_name = {detector.value: detector for detector in Detector}
    detector = by_name.get(chosen, Detector.keyword)
    other = Detector.likelihood if detector is Detector.keyword else Detector.keyword
    return detector, other


def attack_rows(found: Mapping[str, Any], *, chosen: str = "") -> list[AttackRow]:
    """The table's lines, attack by attack. Args: chosen: the run's detector; empty = keyword."""
    pair = shown_pair(chosen)
    return [*_relearned(found, pair), *_quantised(found, pair), *_sampled(found, pair), *_prompted(found, pair)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """Lines of one plot: by its label the points, shares over steps or over sampled answers."""

    title: str
    across: str
    lines: dict[str, list[tuple[float, float]]]


def attack_lines(found: Mapping[str, Any], *, chosen: str = "") -> list[Curves]:
    """Attack success over the steps of relearning, by rows and detector, and over the number of sampled answers."""
    curves, pair = [], shown_pair(chosen)
    for rows in ("poisoned", "clean"):
        for detector in pair:
            lines = {}
            for role in ROLES:
                for run in _runs(found, role, rows):
                    name = f"asr{detector.ending}"
                    points = [(p["step"], p[name]) for p in run["curve"] if number(p.get(name)) is not None]
                    if points:
                        lines[f"{role}, {run['k']} rows"] = points
            title = f"Relearning from {rows} rows, ASR judged by {DETECTORS[detector]}"
            curves.append(Curves(title=title, across="optimiser step", lines=lines))
    for detector in pair:
        lines = {
            f"{role}, T = {name.removeprefix('t')}": [(k, share) for k, share in points]
            for role in ROLES
            for name, points in _sampling_curves(_of(found, role, "sampling"), detector).items()
        }
        title = f"Sampling: ASR@k, judged by {DETECTORS[detector]}"
        curves.append(Curves(title=title, across="sampled answer", lines=lines))
    return [one for one in curves if one.lines]


def _sampling_curves(values: Mapping[str, Any], detector: Detector) -> dict[str, Any]:
    by = values.get("curves", {}) if detector is Detector.keyword else values.get("curves_by", {}).get(detector.ending)
    return by or {}


def role_table(run_dir: Path, group: str) -> Table | None:
    """The figures of one group in result.json for the screen, a column a model; None where there are none.

    Raises: ArtifactError if a file of the run is damaged.
    """
    run = read_run(run_dir)
    result, pair = run.result, shown_pair(str(run.detectors.get("detector") or ""))
    metrics = [one for one in METRICS.values() if one.group == group and (one.detector is None or one.detector in pair)]
    # a figure by the run's detector, then the same by the other
    places = {_figure(one): n for n, one in enumerate(metrics)}
    metrics.sort(key=lambda one: (places[_figure(one)], one.detector not in (None, pair[0])))
    named = {metric: {role: number(result.get(f"{prefix}{metric.name}")) for role, prefix in ROLES.items()}
             for metric in metrics}  # fmt: skip
    named = {metric: values for metric, values in named.items() if set(values.values()) != {None}}
    roles = [role for role in ROLES if any(values[role] is not None for values in named.values())]
    if not roles:
        return None
    from rich import box
    from rich.table import Table

    table = Table(title=group, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", overflow="fold")
    for role in roles:
        table.add_column(role, justify="right", no_wrap=True)
    for metric, values in named.items():
        table.add_row(metric.label, *(format_value(values[role], metric.kind) for role in roles))
    return table


def _figure(metric: Metric) -> str:
    return metric.name.removesuffix(metric.detector.ending if metric.detector else "")


def _relearned(found: Mapping[str, Any], pair: Pair) -> list[AttackRow]:
    lines = []
    for rows in ("poisoned", "clean"):
        of_role = {role: {run["k"]: run for run in _runs(found, role, rows)} for role in ROLES}
        for k in sorted({k for runs in of_role.values() for k in runs}):
            runs = {role: runs[k] for role, runs in of_role.items() if k in runs}
            shares = {role: (_maximum(run, pair[0]), _maximum(run, pair[1])) for role, run in runs.items()}
            first = next(iter(runs.values()))
            near = first.get("similarity", {})
            note = f"similarity to F {near['mean']:.2f}, at most {near['max']:.2f}" if near else ""
            label = f"{k} {rows} rows"
            counts = {role: _counts(run) for role, run in runs.items()}
            name = f"relearning.{rows}.{k}"
            lines.append(AttackRow(group=RELEARNING, label=label, note=note, shares=shares, name=name, counts=counts))
    return lines


def _quantised(found: Mapping[str, Any], pair: Pair) -> list[AttackRow]:
    metrics = {role: _of(found, role, "quantisation").get("metrics", {}) for role in ROLES}
    counts = {role: _counts(_of(found, role, "quantisation")) for role in ROLES}
    lines = []
    for name, words in FORMATS.items():
        for way in ("", ".merged", ".unmerged"):
            shares = {
                role: _both(values, [f"asr_{name}{detector.ending}{way}" for detector in pair])
                for role, values in metrics.items()
            }
            if any(value is not None for both in shares.values() for value in both):
                ratio = number(metrics["unlearned"].get(f"asr_{name}{pair[0].ending}_ratio")) if not way else None
                note = "" if ratio is None else f"{ratio:.2f} times the unquantised"
                label = words + (f", adapter {way[1:]}" if way else "")
                lines.append(
                    AttackRow(group=QUANTISATION, label=label, note=note, shares=shares, name=name + way, counts=counts)
                )
    return lines


def _sampled(found: Mapping[str, Any], pair: Pair) -> list[AttackRow]:
    metrics = {role: _of(found, role, "sampling").get("metrics", {}) for role in ROLES}
    counts = {role: _counts(_of(found, role, "sampling")) for role in ROLES}
    points = {
        (match[2], int(match[1]))
        for values in metrics.values()
        for name in values
        for detector in pair
        if (match := re.fullmatch(rf"asr@(\d+){detector.ending}\.t(.+)", name))
    }
    lines = []
    for temperature, k in sorted(points):
        # likelihood judges a prompt, whatever is sampled
        names = [
            f"asr@{k}{one.ending}.t{temperature}" if one in OF_TEXTS else f"asr_sampling{one.ending}" for one in pair
        ]
        shares = {role: _both(values, names) for role, values in metrics.items()}
        label = f"{k} {'answer' if k == 1 else 'answers'} at temperature {temperature}"
        name = f"asr@{k}.t{temperature}"
        lines.append(AttackRow(group=SAMPLING, label=label, note="", shares=shares, name=name, counts=counts))
    return lines


def _both(values: Mapping[str, Any], names: Sequence[str]) -> tuple[float | None, float | None]:
    return number(values.get(names[0])), number(values.get(names[1]))


def _prompted(found: Mapping[str, Any], pair: Pair) -> list[AttackRow]:
    variants = {role: _of(found, role, "prompts").get("variants", {}) for role in ROLES}
    by_detector = found.get("testable", {})
    lines = []
    for name in dict.fromkeys(name for of_role in variants.values() for name in of_role):
        shares = {
            role: _both(values, [f"asr_prompts{detector.ending}" for detector in pair])
            for role, of_role in variants.items()
            if (values := of_role.get(name)) is not None
        }
        notes = [of_role[name].get("note") for of_role in variants.values() if name in of_role]
        fires = (name in by_detector.get(pair[0].ending, []), name in by_detector.get(pair[1].ending, []))
        counts = {role: _counts(of_role[name]) for role, of_role in variants.items() if name in of_role}
        label = WORDS.get(name, name)
        note = next(filter(None, notes), "")
        lines.append(
            AttackRow(group=PROMPTS, label=label, note=note, shares=shares, name=name, counts=counts, testable=fires)
        )
    return lines


def _counts(values: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The prompts that were asked, and those of them that likelihood could judge; None where that was not noted."""
    asked, pairs = (number(values.get(name)) for name in ("num_prompts", "num_pairs"))
    return (None if asked is None else round(asked), None if pairs is None else round(pairs))


def attack_notes(found: Mapping[str, Any], detector: Detector = Detector.keyword) -> list[str]:
    """What rows there were to relearn from, and which runs ended early."""
    notes: dict[str, None] = {}
    for role in ROLES:
        for run in _of_list(found, role):
            pool = run.get("pool", {})
            if pool:
                notes[
                    f"Of {pool['in_split']} {run['rows']} training rows {pool['left']} can be relearned from: "
                    f"{pool['in_forget']} are in the forget set, {pool['held_out']} asked in validation or test."
                ] = None
            if _rises(run, detector):
                notes[
                    f"{role}, {run['k']} {run['rows']} rows: largest at the last step, so that more steps "
                    "(evaluation.attacks.relearning.max_steps) may find more."
                ] = None
            if run.get("stopped"):
                notes[f"{role}, {run['k']} {run['rows']} rows: {run['stopped']}"] = None
    return list(notes)


def _rises(run: Mapping[str, Any], detector: Detector) -> bool:
    """Whether the largest share by this detector was reached at the last step, and not before."""
    name = f"asr{detector.ending}"
    shares = [value for point in run["curve"] if (value := number(point.get(name))) is not None]
    return len(shares) > 1 and shares[-1] > max(shares[:-1])


def _maximum(run: Mapping[str, Any], detector: Detector) -> float | None:
    name = f"asr{detector.ending}"
    values = [p[name] for p in run["curve"] if p["step"] > 0 and number(p.get(name)) is not None]
    return max(values, default=None)


def _of(found: Mapping[str, Any], role: str, attack: str) -> dict[str, Any]:
    value = found.get(role, {}).get(attack, {})
    return value if isinstance(value, dict) else {}


def _of_list(found: Mapping[str, Any], role: str) -> list[dict[str, Any]]:
    value = found.get(role, {}).get("relearning", [])
    return value if isinstance(value, list) else []


def attack_runs(found: Mapping[str, Any], role: str) -> dict[str, dict[str, Any]]:
    """The relearning runs of one model by the names that attack_rows gives them."""
    return {f"relearning.{run['rows']}.{run['k']}": run for run in _of_list(found, role)}


def _runs(found: Mapping[str, Any], role: str, rows: str) -> Sequence[dict[str, Any]]:
    return sorted((run for run in _of_list(found, role) if run.get("rows") == rows), key=lambda run: int(run["k"]))
