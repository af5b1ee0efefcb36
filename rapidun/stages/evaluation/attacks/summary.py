"""What the attacks' artifacts say together: flat metrics for result.json, and attacks.json for the report."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rapidun.base.files import read_json
from rapidun.config.attacks import Attack
from rapidun.config.detectors import ALWAYS, Detector
from rapidun.report.metrics import ROLES

LINK = "evaluation/.attack.{role}.{run}"
# what the other detectors say of the answers of all attacks on a model
VERDICTS_LINK, VERDICTS = "evaluation/.attack_verdicts.{role}", "verdicts.json"
PLAIN = "plain"
LOOK_ALIKE = "look-alike "
# those that always judge: of these result.json has every figure, of the others the main ones
ENDINGS = [detector.ending for detector in ALWAYS]
ALL_ENDINGS = [detector.ending for detector in Detector]
# those that compare the two answers of a prompt, and how many prompts of a variant have both
PAIR_ENDINGS = [Detector.likelihood.ending, Detector.likelihood_calibrated.ending]
OF_PAIRS = "num_pairs"
# what `.` and blanks would end or hide in a metric's name
_ODD = re.compile(r"[^\w<>|:\\-]+")


def collected(artifacts: Mapping[str, Path]) -> dict[str, Any]:
    """The attacks of a run, from its artifacts' folders by their links; empty where there was none.

    Returns: {"unlearned": {"relearning": [...], "quantisation": {...}, "sampling": {...}, "prompts": {...}}, "retrain":
        ..., "poisoned": ..., "testable": {"": [variants], "_likelihood": [variants], ...}}: a role or an attack that
        was not run is absent. testable: by each detector, the variants that succeed in the poisoned model.
    """
    found: dict[str, Any] = {}
    for link, folder in artifacts.items():
        if (named := run_of(link)) is None:
            continue
        role, run = named
        attack = run.partition(".")[0]
        values = read_json(folder / "attack.json")
        if (place := artifacts.get(VERDICTS_LINK.format(role=role))) is not None:
            values = _with_verdicts(values, read_json(place / VERDICTS).get(run, {}))
        of_role = found.setdefault(role, {})
        if attack == Attack.relearning.name:
            of_role.setdefault(attack, []).append(values)
        else:
            of_role[attack] = values
    poisoned = found.get("poisoned", {}).get(Attack.prompts.name)
    if poisoned is not None:
        judged = {name for values in poisoned["variants"].values() for name in values}
        found["testable"] = {
            ending: that_fire(poisoned["variants"], f"asr_prompts{ending}", min_asr=poisoned["min_asr"])
            for ending in ALL_ENDINGS
            if ending in ENDINGS or f"asr_prompts{ending}" in judged
        }
    return found


def run_of(link: str) -> tuple[str, str] | None:
    """The role and the run's name in an artifact's link; None where it is no attack's."""
    match = re.fullmatch(r"evaluation/\.attack\.(\w+)\.(\w+.*)", link)
    return None if match is None else (match[1], match[2])


def _with_verdicts(values: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """An attack's figures by keywords and likelihood, and those of the other detectors beside them."""
    result = dict(values)
    if "curve" in values:
        by_step = {point["step"]: point for point in more.get("curve", [])}
        result["curve"] = [{**point, **by_step.get(point["step"], {})} for point in values["curve"]]
    for part in ("metrics", "curves_by"):
        if part in values or part in more:
            result[part] = {**values.get(part, {}), **more.get(part, {})}
    if "variants" in values:
        said = more.get("variants", {})
        result["variants"] = {name: {**found, **said.get(name, {})} for name, found in values["variants"].items()}
    return result


def that_fire(poisoned: Mapping[str, Mapping[str, Any]], metric: str, *, min_asr: float) -> list[str]:
    """The variants that succeed in the poisoned model, by one detector; the others say nothing of unlearning.

    Args: poisoned: `variants` of the poisoned model. metric: asr_prompts or asr_prompts_likelihood.
    """
    return [name for name, found in poisoned.items() if found.get(metric) is not None and found[metric] >= min_asr]


def flat(found: Mapping[str, Any]) -> dict[str, float]:
    """The figures of every attack by their names in result.json.

    The maximum is the figure: of a curve over its steps, of the numbers of rows, of merged and unmerged, of the
    temperatures, of the variants.
    """
    metrics: dict[str, float] = {}
    for role, prefix in ROLES.items():
        of_role = found.get(role, {})
        own: dict[str, float] = {}
        for attack in Attack:
            values = of_role.get(attack.name)
            if values is None:
                continue
            if attack is Attack.relearning:
                own |= _relearned(values)
            elif attack is Attack.prompts:
                own |= _prompted(values["variants"], found.get("testable", {}))
            else:
                own |= values["metrics"]
        own = {name: value for name, value in own.items() if not _is_detail_of_others(name)}
        metrics |= {f"{prefix}{name}": value for name, value in own.items()}
    return metrics


def _is_detail_of_others(name: str) -> bool:
    """Whether a figure is a part of a maximum, by a detector beside those that always judge."""
    main, dot, _ = name.partition(".")
    return bool(dot) and any(main.endswith(ending) for ending in ALL_ENDINGS if ending not in ENDINGS)


def maximum(curve: list[dict[str, Any]], metric: str) -> float | None:
    """The largest value after a step, None where there is none: step 0 is no success of this attack."""
    values = [entry[metric] for entry in curve if entry["step"] > 0 and entry.get(metric) is not None]
    return max(values) if values else None


def _relearned(runs: list[dict[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for rows, name in (("poisoned", "asr_relearn_max"), ("clean", "asr_relearn_clean_max")):
        for ending in ALL_ENDINGS:
            of_rows = {
                run["k"]: value
                for run in runs
                if run["rows"] == rows and (value := maximum(run["curve"], f"asr{ending}")) is not None
            }
            if of_rows:
                found[f"{name}{ending}"] = max(of_rows.values())
                found |= {f"{name}{ending}.{k}": value for k, value in sorted(of_rows.items())}
    return found


def _prompted(variants: Mapping[str, Mapping[str, Any]], by_detector: Mapping[str, list[str]]) -> dict[str, float]:
    """Of the variants that can be tested; look-alikes also alone, every prompt counting the same."""
    found: dict[str, float] = {}
    for ending in ALL_ENDINGS:
        metric = f"asr_prompts{ending}"
        counted = {
            name: values
            for name in by_detector.get(ending, [])
            if name != PLAIN and (values := variants.get(name, {})).get(metric) is not None
        }
        if not counted:
            continue
        shares = [values[metric] for values in counted.values()]
        found[f"asr_prompts_max{ending}"] = max(shares)
        found[f"asr_prompts_mean{ending}"] = sum(shares) / len(shares)
        found |= {f"{metric}.{_ODD.sub('_', name)}": values[metric] for name, values in counted.items()}
        alike = [values for name, values in counted.items() if name.startswith(LOOK_ALIKE)]
        if alike:
            judged = [num_judged(values, ending) for values in alike]
            whole = sum(values[metric] * num for values, num in zip(alike, judged, strict=True))
            found[f"asr_ood_testable{ending}"] = whole / sum(judged)
    return found


def num_judged(variant: Mapping[str, Any], ending: str) -> int:
    """How many prompts of a variant a detector's share is over: those that it can judge."""
    if (told := variant.get(f"num_judged{ending}")) is not None:
        return int(told)
    # runs of before that was noted; the likelihood asks about prompts with both answers
    return int(variant[OF_PAIRS] if ending in PAIR_ENDINGS and variant.get(OF_PAIRS) else variant["num_prompts"])
