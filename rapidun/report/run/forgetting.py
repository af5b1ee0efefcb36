"""What a run showed where facts were to be forgotten: what is gone, what stays, in plain sentences."""

from collections.abc import Collection, Mapping

from rapidun.report.forgotten import FACTS, GONE
from rapidun.report.metrics import METRICS, format_number, format_value

# in the order in which they are told
TOLD = ("rougeL", "exact_match", "probability", "extraction_strength", "choice_accuracy", "truth_ratio")
# below these, before unlearning, the model hardly gave the answers
HARDLY_ROUGE, HARDLY_STRENGTH = 0.3, 0.1
# of ROUGE-L, a difference that is worth a sentence
WORTH = 0.1
# of forget_quality: below it the two models can be told apart
LEVEL = 0.05


def forgetting(before: Mapping[str, float], after: Mapping[str, float], *, told: Collection[str] = ()) -> list[str]:
    """Sentences on each set of rows that was asked; empty for a run without such measures.

    Args: told: metrics that need no word here.
    """
    sentences = []
    for name, title in FACTS.items():
        names = [f"{measure}_{name}" for measure in TOLD if f"{measure}_{name}" not in told]
        changes = [text for one in names if (text := _change(one, before, after))]
        if not changes:
            continue
        count = round(after.get(f"num_prompts_{name}", before.get(f"num_prompts_{name}", 0)))
        aim = "to be gone" if name in GONE else "to stay"
        sentence = f"{title.capitalize()} ({aim}{f', {count} rows' if count else ''}): {'; '.join(changes)}."
        if name in GONE and _hardly_known(name, before):
            sentence += " The model hardly gave these answers before, so the values after show little."
        chance = after.get(f"choice_chance_{name}")
        if chance is not None:
            sentence += f" Guessing would score {format_number(chance)}."
        sentences.append(sentence)
    sentences += _asked_otherwise(after)
    sentences += [line for name in ("retain", "test") for line in _lost(name, before, after)]
    quality = after.get("forget_quality")
    if quality is not None:
        told_apart = "can be told apart" if quality < LEVEL else "cannot be told apart"
        sentences.append(
            f"Forget quality {format_number(quality)}: by the truth ratios of the forget rows this model and one that "
            f"never saw them {told_apart} (Kolmogorov-Smirnov, 5 %)."
        )
    return sentences


def _change(name: str, before: Mapping[str, float], after: Mapping[str, float]) -> str:
    metric = METRICS[name]
    parts = [
        f"{format_value(values[name], metric.kind)} {when}"
        for values, when in ((before, "before"), (after, "after"))
        if name in values
    ]
    return f"{metric.label} {', '.join(parts)}" if parts else ""


def _hardly_known(name: str, before: Mapping[str, float]) -> bool:
    rouge, strength = before.get(f"rougeL_{name}"), before.get(f"extraction_strength_{name}")
    return rouge is not None and strength is not None and rouge < HARDLY_ROUGE and strength < HARDLY_STRENGTH


def _asked_otherwise(after: Mapping[str, float]) -> list[str]:
    forget, probe = after.get("rougeL_forget"), after.get("rougeL_probe")
    if forget is None or probe is None or probe - forget <= WORTH:
        return []
    return [
        f"Asked otherwise the model gives away more than asked as in the forget rows: ROUGE-L {probe:.3f} against "
        f"{forget:.3f} after unlearning."
    ]


def _lost(name: str, before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    start, end = before.get(f"rougeL_{name}"), after.get(f"rougeL_{name}")
    if start is None or end is None or start - end <= WORTH:
        return []
    return [f"What was to stay suffered: ROUGE-L of {FACTS[name]} fell by {start - end:.3f}."]
