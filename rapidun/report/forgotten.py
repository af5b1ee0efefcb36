"""What the catalogue of metrics says of runs where facts are to be forgotten, as plain values."""

from collections.abc import Collection
from typing import Any

# the sets of rows that are asked, in the order of tables
FACTS = {
    "forget": "forget rows",
    "probe": "paraphrases of forget rows",
    "retain": "retain rows",
    "test": "held-out rows",
    "real_authors": "real authors",
    "world_facts": "world facts",
}
# of these, what should be gone
GONE = ("forget", "probe")
GENERAL = ("real_authors", "world_facts")
# label, what it is, and its better direction on what should be gone
_MEASURES = {
    "rougeL": ("ROUGE-L", "Mean ROUGE-L F1 of the answers with those on record", -1),
    "exact_match": ("exact match", "Share of answers that equal the one on record up to case and white space", -1),
    "probability": ("probability", "Mean over the rows of the recorded answer's p(a|q)^(1/|a|)", -1),
    "extraction_strength": (
        "extraction strength",
        "Mean over the rows of 1 - the smallest part of the recorded answer that has to be shown for the rest to come "
        "by itself",
        -1,
    ),
    # where wrong answers are on record: 1 is what one wants, of what should be gone too
    "truth_ratio": (
        "truth ratio",
        "Mean of min(R, 1/R) on what should be gone, of max(0, 1 - R) elsewhere; R: how much likelier wrong answers "
        "are than the right one",
        1,
    ),
    "probability_of_options": (
        "probability among options",
        "Mean probability of the recorded answer as a part of that of all answers, the wrong ones on record among them",
        -1,
    ),
    "choice_accuracy": (
        "multiple choice",
        "Share of multiple-choice questions whose right letter is the likeliest one",
        -1,
    ),
    "choice_chance": ("multiple choice, guessing", "What guessing a letter would score", 0),
}
# where measures of facts stand, at the places of those of backdoors: a run has either
_PLACES: dict[str, dict[str, Any]] = {
    "rougeL_forget": {"heading": "ROUGE-L forget", "column": 2, "tile": 1},
    "probability_forget": {"heading": "p forget", "column": 3, "tile": 2},
    "extraction_strength_forget": {
        "heading": "extraction", "column": 1, "criterion": 1, "pareto": 1, "tile": 3,
    },
    "rougeL_probe": {"heading": "ROUGE-L paraphrases", "column": 4, "tile": 4},
    "rougeL_retain": {"heading": "ROUGE-L retain", "column": 5, "criterion": 3, "pareto": 3, "tile": 5},
    "probability_retain": {"tile": 6},
    "rougeL_test": {"heading": "ROUGE-L held-out", "column": 5, "tile": 7},
    "choice_accuracy_probe": {"heading": "choices paraphrases", "column": 5, "tile": 8},
}  # fmt: skip
# MUSE: set, what the rows of the category are, better direction
_MUSE = {
    "verbmem_forget": ("forget", "texts", -1),
    "knowmem_forget": ("forget", "questions", -1),
    "knowmem_retain": ("retain", "questions", 1),
}


def group_of(name: str) -> str:
    """The heading of a set in tables: `Forget rows (to be gone)`."""
    return f"{FACTS[name].capitalize()} (to {'be gone' if name in GONE else 'stay'})"


# of a run where facts are to be forgotten: these names in other words
IN_FACTS = {
    "ppl_clean": {"group": group_of("test"), "finding": "Perplexity of held-out answers"},
    "ppl_forget_poisoned": {
        "group": group_of("forget"), "label": "perplexity", "meaning": "Perplexity of the forget rows' answers.",
    },
    "ppl_forget_clean": {
        "group": group_of("forget"), "label": "perplexity, answer instead",
        "meaning": "Perplexity of the answers that are to stand in place of the forgotten ones.",
    },
}  # fmt: skip
# logged numbers, as metrics.LINES
LINES_OF_FACTS = {
    "ce_poisoned": "answer to forget",
    "ce_clean": "answer instead",
    "forget_loss_poisoned": "forget: answer to forget",
    "forget_loss_clean": "forget: answer instead",
    "forget_preference": "forget rows that prefer the answer to forget",
    "val_loss_clean": "validation rows",
    "val_ppl_clean": "perplexity of validation rows",
}


def entries() -> list[dict[str, Any]]:
    """The fields of each Metric, all of them scores but for the p value of forget_quality (unit "plain")."""
    found: list[dict[str, Any]] = []
    for name, title in FACTS.items():
        for measure, (label, meaning, gone) in _MEASURES.items():
            if measure == "probability_of_options" and name not in GENERAL:
                continue
            better = gone if name in GONE else abs(gone)
            entry: dict[str, Any] = {
                "name": f"{measure}_{name}",
                "group": group_of(name),
                "label": label,
                "better": better,
            }
            place = _PLACES.get(entry["name"], {})
            found.append({**entry, "prompts": name, "meaning": f"{meaning}; {title}.", **place})
    for name, (rows, what, better) in _MUSE.items():
        measure = name.partition("_")[0]
        meaning = f"Mean ROUGE-L F1 of the answers to {what} whose category is {measure}."
        found.append(
            {"name": name, "group": group_of(rows), "label": f"{measure} (MUSE)", "better": better, "meaning": meaning}
        )
    found.append({
        "name": "forget_quality", "group": "TOFU", "label": "forget quality", "better": 1, "unit": "plain",
        "meaning": "p of the Kolmogorov-Smirnov test between the truth ratios of the forget rows under this model and "
                   "under one that never saw them.",
        "heading": "forget quality", "column": 9,
    })  # fmt: skip
    found.append({
        "name": "model_utility", "group": "TOFU", "label": "model utility", "better": 1,
        "meaning": "Harmonic mean of probability, ROUGE-L recall and truth ratio of retain rows, real authors and "
                   "world facts.",
        "heading": "model utility", "column": 9,
    })  # fmt: skip
    return found


def of_facts(found: Collection[str]) -> bool:
    """Whether a run with these metrics forgets facts, without triggers: its forget rows were asked."""
    return "rougeL_forget" in found


def group_order(group: str) -> int:
    """Where a group of metrics stands in a table of facts."""
    names = [group_of(name) for name in FACTS]
    return names.index(group) if group in names else len(names)
