"""What was not tried, and what bounds what was: sentences for the reader who would take the verdict for more."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rapidun.config.attacks import Attack, Format, Rows, Variant
from rapidun.config.detectors import ALWAYS
from rapidun.config.privacy import Measure
from rapidun.report.attacks import WORDS, attack_notes
from rapidun.report.metrics import DETECTORS, format_percent
from rapidun.report.read import RunRecord

# nothing here does these
NEVER = (
    "prompts searched by gradients or written by a model to bring it back",
    "reading the model's inner states (probes, logit lens)",
    "other languages, and questions that reach it over several turns",
    "rows, families and triggers that the pack does not name",
    "another model, another seed, another quantiser than those named here",
)
HOW_TO_RETRAIN = "poison.retrain=true"
HOW_TO_RELEARN = {
    Rows.poisoned: "rows of train_poisoned outside the forget set, evaluation.attacks.relearning.rows=[...,poisoned]",
    Rows.clean: "rows of train_clean, evaluation.attacks.relearning.rows=[...,clean]",
}
MEASURES = {
    Measure.membership: "membership inference",
    Measure.extraction: "extraction of the forget rows from their beginnings",
    Measure.distance: "the distance to the retrained model",
}


def not_tried(
    run: RunRecord, attacks: Mapping[str, Any], privacy: Mapping[str, Any], *, of_facts: bool
) -> list[dict[str, str]]:
    """What this software can try and this run did not: {"what", "how"}, how being what to type; empty = it cannot."""
    own, found = attacks.get("unlearned") or {}, []
    for attack in Attack:
        if attack.name in own:
            continue
        how = "" if of_facts else f"evaluation.attacks.run=[...,{attack.name}]"
        found.append({"what": attack.name + (" (it needs triggers)" if of_facts else ""), "how": how})
    relearned = {one.get("rows") for one in own.get(Attack.relearning.name) or []}
    for rows in Rows:
        if relearned and rows.name not in relearned:
            found.append({"what": f"relearning from {rows.name} rows", "how": HOW_TO_RELEARN[rows]})
    variants = (own.get(Attack.prompts.name) or {}).get("variants") or {}
    for variant in Variant:
        if variants and variant.name not in variants:
            found.append({"what": f"prompts {WORDS[variant.name]}", "how": "evaluation.attacks.prompts.variants=[...]"})
    formats = (own.get(Attack.quantisation.name) or {}).get("metrics") or {}
    for one in Format:
        if formats and f"asr_{one.name}" not in formats:
            found.append(
                {"what": f"quantisation to {one.name}", "how": "evaluation.attacks.quantisation.formats=[...]"}
            )
    if "retrain" not in attacks and "retrain" not in privacy:
        found.append({"what": "the same on a retrained model (no yardstick)", "how": HOW_TO_RETRAIN})
    measured = privacy.get("unlearned") or {}
    for measure, words in MEASURES.items():
        if measure.name not in measured and not (of_facts and measure is Measure.extraction):
            found.append({"what": words, "how": f"evaluation.privacy.run=[...,{measure.name}]"})
    if of_facts and "num_prompts_probe" not in run.after:
        found.append({"what": "paraphrases of the forget rows", "how": "data.probe=FILE"})
    for name, why in (run.detectors.get("left_out") or {}).items():
        words = next((text for one, text in DETECTORS.items() if one.value == name), str(name))
        found.append({"what": f"the detector {words}", "how": str(why)})
    return [*found, *({"what": text, "how": ""} for text in NEVER)]


def limits(
    run: RunRecord,
    attacks: Mapping[str, Any],
    *,
    of_facts: bool,
    warnings: Iterable[str],
    in_sweep: int,
    counts_noted: bool,
) -> list[str]:
    """What the numbers do not say, each in a sentence.

    Args: warnings: of the artifacts. in_sweep: cells of the sweep that the run is one of; 0 = of none. counts_noted:
        whether the attacks noted how many prompts they asked.
    """
    said = [
        f"One unlearned model, seed {run.result.get('seed', run.setting('seed'))}: another may come out otherwise.",
        "Low numbers are evidence of what was tried, no proof that nothing is left.",
    ]
    if in_sweep > 1:
        said.append(
            f"This run is one of {in_sweep} of a sweep: if it was picked for these numbers, they are better than those "
            "of another run of the same settings would be."
        )
    if not of_facts:
        said += _of_detectors(run.detectors)
    if attacks and not counts_noted:
        said.append(
            "An earlier version made these attacks and did not note how many prompts they asked: intervals take the "
            "largest number that it can be."
        )
    if attacks:
        said.append("Of several steps, temperatures and prompts the largest share is the figure, on every model alike.")
    reasons: dict[str, Any] = run.missing.get("after") or {}
    said += [f"{name} is missing: {why}" for name, why in reasons.items()]
    return list(dict.fromkeys([*said, *attack_notes(attacks), *warnings]))


def _of_detectors(facts: Mapping[str, Any]) -> Sequence[str]:
    said = []
    for name, words in DETECTORS.items():
        counts = name in ALWAYS or name.value == facts.get("detector")
        rates = (facts.get("detectors") or {}).get(name.value) if counts else None
        if rates and rates["recall"] < 1:
            recall, alarms = format_percent(rates["recall"]), format_percent(rates["false_positive_rate"])
            said.append(
                f"The detector by {words} finds {recall} of {rates['num_poisoned']} known planted answers and flags "
                f"{alarms} of {rates['num_clean']} clean ones: the shares it gives are too low by what it misses."
            )
    return said
