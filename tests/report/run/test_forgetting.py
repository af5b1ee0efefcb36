"""Words of runs where facts are to be forgotten, and what a sweep of them is judged by."""

import io

import pytest
from rich.console import Console

from rapidun.report import metrics
from rapidun.report.forgotten import FACTS
from rapidun.report.metrics import METRICS
from rapidun.report.run.findings import clean_answers
from rapidun.report.run.forgetting import forgetting
from rapidun.report.run.samples import choose_samples
from rapidun.report.tables import before_after_rows, before_after_table
from rapidun.sweep.tuning.outcomes import _no_metric

BEFORE = {
    "rougeL_forget": 0.98, "probability_forget": 0.9, "extraction_strength_forget": 0.95, "num_prompts_forget": 40.0,
    "rougeL_probe": 0.9, "rougeL_retain": 0.97, "ppl_clean": 2.0, "ppl_forget_poisoned": 1.1,
}  # fmt: skip
AFTER = {
    "rougeL_forget": 0.2, "probability_forget": 0.1, "extraction_strength_forget": 0.05, "num_prompts_forget": 40.0,
    "rougeL_probe": 0.55, "rougeL_retain": 0.7, "ppl_clean": 2.1, "ppl_forget_poisoned": 90.0,
}  # fmt: skip


def test_sentences() -> None:
    assert forgetting(BEFORE, AFTER) == [
        "Forget rows (to be gone, 40 rows): ROUGE-L 0.980 before, 0.200 after; probability 0.900 before, 0.100 after; "
        "extraction strength 0.950 before, 0.050 after.",
        "Paraphrases of forget rows (to be gone): ROUGE-L 0.900 before, 0.550 after.",
        "Retain rows (to stay): ROUGE-L 0.970 before, 0.700 after.",
        "Asked otherwise the model gives away more than asked as in the forget rows: ROUGE-L 0.550 against 0.200 after "
        "unlearning.",
        "What was to stay suffered: ROUGE-L of retain rows fell by 0.270.",
    ]
    assert clean_answers(BEFORE, AFTER) == ["Perplexity of held-out answers: 2.00 before, 2.10 after (up by 5.0 %)."]
    assert forgetting({"asr_seen": 1.0}, {"asr_seen": 0.0}) == []


def test_what_was_hardly_known_and_chance() -> None:
    weak = {"rougeL_forget": 0.2, "extraction_strength_forget": 0.02}
    [sentence] = forgetting(weak, {"rougeL_forget": 0.1, "extraction_strength_forget": 0.0})
    assert "hardly gave these answers before" in sentence
    found = {"choice_accuracy_probe": 0.26, "choice_chance_probe": 0.25, "forget_quality": 0.01}
    first, second = forgetting({}, found)
    assert first.endswith("Guessing would score 0.250.") and "can be told apart" in second


def test_the_table_has_no_column_of_detectors() -> None:
    groups = list(dict.fromkeys(row.metric.group for row in before_after_rows(BEFORE, AFTER)))
    assert groups == [
        "Forget rows (to be gone)", "Paraphrases of forget rows (to be gone)", "Retain rows (to stay)",
        "Held-out rows (to stay)",
    ]  # fmt: skip
    screen = io.StringIO()
    Console(file=screen, width=80).print(before_after_table(BEFORE, AFTER))
    assert "recall" not in screen.getvalue() and "ASR" not in screen.getvalue()
    old = io.StringIO()
    Console(file=old, width=80).print(before_after_table({"asr_seen": 1.0}, {"asr_seen": 0.0}))
    assert "recall / FPR" in old.getvalue() and "ASR: share" in old.getvalue()


def test_cards_and_criteria() -> None:
    cards = [next((name for name in names if name in AFTER), None) for names in metrics.tiles()]
    assert [name for name in cards if name] == [
        "rougeL_forget", "probability_forget", "extraction_strength_forget", "rougeL_probe", "rougeL_retain",
        "ppl_clean",
    ]  # fmt: skip
    judged = [name for name in metrics.criteria() if name in AFTER]
    assert judged == ["extraction_strength_forget", "ppl_clean", "rougeL_retain"]
    for metric in METRICS.values():
        if metric.prompts in FACTS and metric.name.startswith(("rougeL", "exact", "probability", "extr", "choice_acc")):
            assert metric.better == (-1 if metric.name.endswith(("_forget", "_probe")) else 1), metric.name
    setting = "hydra.sweeper.directions"
    assert "extraction_strength_forget: minimize" in _no_metric(["asr_seen"], list(AFTER), setting)
    assert "{METRIC: minimize}" in _no_metric(["asr_seen"], ["ppl_clean"], setting)


@pytest.mark.parametrize(("name", "state"), [("forget", "bad"), ("probe", "bad"), ("retain", "fine"), ("test", "fine")])
def test_word_for_word(name: str, state: str) -> None:
    rows = [
        {"set": name, "id": str(i), "prompt": "q", "before": "a", "after": "b", "measures_before": {"rougeL": 1.0,
         "exact_match": 1.0}, "measures_after": {"rougeL": 0.25, "exact_match": float(i == 7)}}
        for i in range(8)
    ]  # fmt: skip
    [found] = choose_samples(rows, per_set=2)
    assert found.title in ("forget rows", "paraphrases of forget rows", "retain rows", "held-out rows")
    before, after = found.samples[0].before, found.samples[0].after
    assert (before.text, before.state) == ("word for word, ROUGE-L 1.00", state)
    assert (after.text, after.state) == ("ROUGE-L 0.25", "")
    # a leak is a failure, and shown
    assert (found.samples[-1].after.state == "bad") is (name in ("forget", "probe"))
