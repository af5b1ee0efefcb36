"""The sentences at the top of the report, word for word, from numbers chosen here."""

from rapidun.report.read import StageCost
from rapidun.report.run.findings import backdoor, clean_answers, cost_sentences, weight_sentence


def test_backdoor_before_and_after() -> None:
    """2 of 100: the Wilson interval is 0.55 to 7.0 %."""
    found = backdoor({"asr_seen": 0.97}, {"asr_seen": 0.02, "num_prompts_seen": 100})
    assert found == [
        "Poisoned answers on seen triggers: 97 % before, 2 % after (100 prompts; 95 % interval after: 0.6 to 7.0 %)."
    ]


def test_triggers_that_never_fired_are_called_so() -> None:
    (found,) = backdoor({"asr_ood": 0.05}, {"asr_ood": 0.0})
    assert found.endswith("These triggers hardly fired before, so the value after shows little.")
    (found,) = backdoor({"asr_ood": 0.5}, {"asr_ood": 0.0})
    assert found == "Poisoned answers on look-alike triggers: 50 % before, 0 % after."


def test_detectors_that_disagree_or_miss_much_are_named() -> None:
    found = backdoor({}, {"asr_seen": 0.02, "asr_seen_likelihood": 0.4, "detector_keyword_recall": 0.5})
    assert "The detectors disagree on seen triggers after unlearning: 2 % by keywords, 40 % by likelihood" in found[1]
    assert found[2].startswith("The keyword detector finds only 50 % of answers known to be poisoned")
    close = {"asr_seen": 0.02, "asr_seen_likelihood": 0.05, "detector_keyword_recall": 0.95}
    assert len(backdoor({}, close)) == 1


def test_without_keywords_the_likelihood_detector_speaks() -> None:
    assert backdoor(
        {"asr_seen_likelihood": 0.9}, {"asr_seen_likelihood": 0.1, "false_trigger_rate_likelihood": 0.0}
    ) == [
        "Poisoned answers on seen triggers (judged by likelihood): 90 % before, 10 % after.",
        "Poisoned answers without any trigger (judged by likelihood): 0 % after.",
    ]


def test_clean_answers() -> None:
    before = {"exact_match_clean": 0.98, "ppl_clean": 2.0, "rougeL_recovered": 0.1}
    after = {"exact_match_clean": 0.97, "ppl_clean": 2.1, "rougeL_recovered": 0.9}
    assert clean_answers(before, after) == [
        "Clean exact match: 0.980 before, 0.970 after.",
        "Clean perplexity: 2.00 before, 2.10 after (up by 5.0 %).",
        "Triggered prompts against their clean answers, ROUGE-L: 0.100 before, 0.900 after.",
    ]
    assert "(unchanged)" in clean_answers({"ppl_clean": 2.0}, {"ppl_clean": 2.0})[0]
    assert "(down by 50.0 %)" in clean_answers({"ppl_clean": 2.0}, {"ppl_clean": 1.0})[0]


def test_weights() -> None:
    """Weights 0.5 and 1.5: (0.5 + 1.5)^2 / (0.25 + 2.25) = 1.6."""
    assert weight_sentence("Forget", [0.5, 1.5]) == (
        "Forget weights: 0.500 to 1.50 over 2 rows; they count like 1.60 equally weighted rows."
    )
    assert "no row counts more than another" in weight_sentence("Retain", [1.0, 1.0])


def test_costs() -> None:
    costs = [
        StageCost(stage="poison", seconds=60.0, peak_memory_gb=1.5, cached=True),
        StageCost(stage="mapping", seconds=14.0, peak_memory_gb=0.2, cached=False),
    ]
    assert cost_sentences(costs) == [
        "Cost: 74 s over 2 stages, most of it poison (60 s); peak memory 1.50 GiB. "
        "From the store, measured when first made: poison."
    ]
    assert cost_sentences(costs[1:]) == ["Cost: 14 s for mapping; peak memory 0.20 GiB."]
    assert cost_sentences([]) == []


def test_nothing_measured_nothing_said() -> None:
    assert backdoor({}, {}) == []
    assert clean_answers({}, {}) == []
