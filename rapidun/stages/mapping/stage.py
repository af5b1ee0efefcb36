"""The mapping stage: influence scores (or none) to a weight for each forget row and each retain row."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rapidun.base.files import write_json, write_jsonl
from rapidun.config.mapping import MappingConfig, Null
from rapidun.stages.mapping import baselines
from rapidun.stages.mapping.diagnostics import describe_truth
from rapidun.stages.mapping.inputs import GROUPS, MappingFiles, wrong_rows
from rapidun.stages.mapping.weightings import WEIGHTINGS, Mapped, nulled
from rapidun.stages.weights_file import DYNAMIC, write_weights

if TYPE_CHECKING:
    from rapidun.base.tracker import Tracker


def run_mapping(cfg: MappingConfig, files: MappingFiles, *, seed: int, tracker: "Tracker") -> dict[str, Any]:
    """Write both weights files, row_scores.jsonl and diagnostics.json; give the diagnostics.

    The rows' ids come from ids.json of the scores in use (files.ids, or beside cfg.scores.path), else from the pack's
    splits; where both are there they must name the same rows. With neither, every id is null and `index` says which
    row is meant: an invented id would pretend to be an identity.

    Raises: ConfigError if the weighting needs scores and there are none; DataError for a bad input file.
    """
    base = WEIGHTINGS[cfg.method](cfg, files, seed)
    mapped = nulled(base, cfg.null, seed=seed)
    wrong = wrong_rows(files, mapped.ids)
    for group in GROUPS:
        weights, facts, scores = mapped.groups[group]
        if group in wrong:
            facts |= describe_truth(weights, scores, wrong[group])
        write_weights(files.out / f"{group}_weights.jsonl", weights.tolist(), ids=mapped.ids[group])
    write_jsonl(files.out / "row_scores.jsonl", _row_scores(mapped, wrong))
    if cfg.renewed:
        write_json(files.out / DYNAMIC, _dynamic(cfg, base, seed))
    summary: dict[str, Any] = {
        "method": cfg.method.name,
        "null": cfg.null.name,
        **{group: mapped.groups[group].facts for group in GROUPS},
        **mapped.extra,
        "warnings": mapped.warnings,
        "notes": _said(cfg, base),
    }
    write_json(files.out / "diagnostics.json", summary)
    for message in mapped.warnings:
        tracker.warn(message)
    tracker.log(
        {
            f"{group}_{key}": float(value)
            for group in GROUPS
            for key, value in mapped.groups[group].facts.items()
            if isinstance(value, int | float)
        }
    )
    for line in summary["notes"]:
        tracker.note(line)
    tracker.progress(1, 1)
    return summary


def _dynamic(cfg: MappingConfig, base: Mapped, seed: int) -> dict[str, Any]:
    """What unlearning renews the forget weights by; see rapidun/stages/unlearning/dynamic.py.

    losses: by row, under the starting model. takes: by row, the row whose weight it has (of null=shuffled).
    """
    names = base.ids["forget"]
    scores = base.groups["forget"].scores
    assert names is not None and scores is not None
    found: dict[str, Any] = {
        "method": cfg.method.name,
        "tau": cfg.loreun.tau,
        "w_min": cfg.forget.w_min,
        "w_max": cfg.forget.w_max,
        "losses": {name: -score for name, score in zip(names, scores.tolist(), strict=True)},
    }
    if cfg.null is Null.shuffled:
        order = baselines.group_generator(seed, cfg.null.name, "forget").permutation(len(names))
        found["takes"] = {name: names[other] for name, other in zip(names, order.tolist(), strict=True)}
    return found


def _row_scores(mapped: Mapped, wrong: dict[str, list[bool | None]]) -> Iterator[dict[str, Any]]:
    """A line for each row that has a score: what the weight was made from, and what the pack knows of the row."""
    for group in GROUPS:
        weights, _, scores = mapped.groups[group]
        names: Sequence[str | None] = mapped.ids[group] or [None] * len(weights)
        marks = wrong.get(group) or [None] * len(weights)
        if scores is not None:
            for index, (name, score, weight, mark) in enumerate(zip(names, scores, weights, marks, strict=True)):
                line = {"group": group, "index": index, "id": name, "score": float(score), "weight": float(weight)}
                yield line if mark is None else {**line, "is_wrong": mark}


def _said(cfg: MappingConfig, mapped: Mapped) -> list[str]:
    """What a split did to each group, one line each: dropping rows, or not, is never silent."""
    lines = []
    if cfg.renewed:
        lines.append(
            "mapping: these forget weights are the first ones; training renews them from the rows' losses (an edit "
            "takes them as they are)"
        )
    null = cfg.null.name if cfg.null is not Null.none else cfg.method.name
    redrawn = cfg.null is not Null.none or "rapidun" in mapped.extra
    before = f", before they were exchanged for null={null}" if redrawn else ""
    for group in GROUPS:
        facts = mapped.extra.get("rapidun", {}).get(group) or mapped.groups[group].facts
        if facts.get("abstained"):
            lines.append(f"mapping: uniform {group} weights{before}, since {facts['abstained']}")
        elif "num_dropped" in facts:
            lines.append(
                f"mapping: {facts['num_dropped']} of {facts['num_rows']} {group} rows get weight 0{before}: their "
                f"scores fall into two clusters, {facts['split_separation']:.1f} standard deviations apart "
                "(row_scores.jsonl)"
            )
    return lines
