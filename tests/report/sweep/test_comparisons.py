"""Methods against uniform and shuffled weights: pairs, verdicts and sentences from numbers worked by hand."""

from pathlib import Path

import pytest
from scipy import stats

from rapidun.report.sweep.cells import Cell
from rapidun.report.sweep.comparisons import Verdict, compare_methods, method_sentences


def cell(asr: float, *overrides: str, method: str = "") -> Cell:
    return Cell(
        path=Path("x"), overrides=list(overrides), state="done", error="", metrics={"asr_seen": asr}, method=method
    )


def runs(method: str, values: list[float], *more: str) -> list[Cell]:
    return [cell(value, f"mapping={method}", f"seed={seed}", *more) for seed, value in enumerate(values)]


def test_paired_by_seed() -> None:
    """Differences of seeds 0..4: the paired t test of scipy on the same numbers; one test, so Holm changes nothing."""
    ours, base = [0.02, 0.03, 0.01, 0.02, 0.04], [0.10, 0.13, 0.09, 0.11, 0.12]
    (one,) = compare_methods(runs("rapidun", ours) + runs("uniform", base), metrics=["asr_seen"])
    theirs = stats.ttest_rel(ours, base)
    assert (one.n, one.num_pairs, one.verdict) == (5, 5, Verdict.better)
    assert (one.p, one.p_adjusted) == pytest.approx((theirs.pvalue, theirs.pvalue))
    assert one.difference == pytest.approx(-0.086)
    assert (one.low, one.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert one.sentence == (
        "mapping=rapidun against uniform, Poisoned answers (ASR), seen triggers, keywords: better (5 seeds); "
        "−8.6 points, 95 % interval −9.7 to −7.5, p < 0.001 after Holm's correction for 1 comparison."
    )


def test_worse_and_cannot_tell() -> None:
    base = [0.10, 0.13, 0.09, 0.11, 0.12]
    worse, noise = [value + 0.1 + 0.001 * i for i, value in enumerate(base)], [0.0, 0.3, 0.05, 0.2, 0.02]
    cells = runs("a", worse) + runs("b", noise) + runs("uniform", base)
    found = {one.method: one for one in compare_methods(cells, metrics=["asr_seen"])}
    assert {method: one.verdict for method, one in found.items()} == {
        "mapping=a": Verdict.worse,
        "mapping=b": Verdict.unclear,
    }
    assert method_sentences(list(found.values()))[0] == (
        "mapping=a against uniform (5 seeds): worse on ASR seen (+10.2 points)."
    )


def test_one_seed_never_decides() -> None:
    (one,) = compare_methods(runs("a", [0.0]) + runs("uniform", [1.0]), metrics=["asr_seen"])
    assert (one.verdict, one.p, one.low, one.n) == (Verdict.unclear, None, None, 1)
    assert one.sentence.endswith("cannot tell (1 seed); −100.0 points, and one seed shows no spread.")


def test_equal_differences_of_three_seeds_do_not_decide() -> None:
    """No spread: t would be infinite. Sign flips give 2/8."""
    (one,) = compare_methods(runs("a", [0.0, 0.1, 0.2]) + runs("uniform", [0.5, 0.6, 0.7]), metrics=["asr_seen"])
    assert (one.p, one.verdict) == (0.25, Verdict.unclear)


def test_shared_settings_are_averaged_within_a_seed() -> None:
    """Two objectives of two seeds are four pairs, but two independent repetitions."""
    cells = []
    for objective, shift in (("npo", 0.0), ("ga", 0.2)):
        more = f"unlearning={objective}"
        cells += runs("a", [0.1 + shift, 0.2 + shift], more) + runs("uniform", [0.3 + 2 * shift, 0.5 + shift], more)
    (one,) = compare_methods(cells, metrics=["asr_seen"])
    assert (one.n, one.num_pairs) == (2, 4)
    # seed 0: -0.2 and -0.4, mean -0.3; seed 1: -0.3 and -0.3
    assert one.difference == pytest.approx(-0.3)


def test_pairs_need_the_same_seed_and_settings() -> None:
    cells = [*runs("a", [0.1, 0.2], "unlearning=npo"), *runs("uniform", [0.3, 0.4], "unlearning=ga")]
    assert compare_methods(cells, metrics=["asr_seen"]) == []


def test_a_baseline_of_the_same_temperature_is_preferred() -> None:
    shuffled = runs("shuffled", [0.5, 0.6], "mapping.tau_f=0.3") + runs("shuffled", [0.9, 0.9], "mapping.tau_f=0.7")
    cells = runs("rapidun", [0.1, 0.2], "mapping.tau_f=0.3") + shuffled
    (one,) = compare_methods(cells, metrics=["asr_seen"])
    assert one.difference == pytest.approx(-0.4)
    # without an equal one, the mean of all: 0.7 and 0.75
    others = runs("rapidun", [0.1, 0.2], "mapping.tau_f=9")
    (one,) = compare_methods(others + shuffled, metrics=["asr_seen"])
    assert one.difference == pytest.approx((0.1 - 0.7 + 0.2 - 0.75) / 2)


def test_the_method_that_no_override_names_is_the_recorded_one() -> None:
    plain = [cell(value, f"seed={seed}", method="rapidun") for seed, value in enumerate((0.1, 0.2))]
    (one,) = compare_methods([*plain, *runs("uniform", [0.3, 0.5])], metrics=["asr_seen"])
    assert (one.method, one.baseline) == ("mapping=rapidun", "uniform")


def test_holm_covers_all_comparisons() -> None:
    base = [0.10, 0.13, 0.09, 0.11, 0.12]
    cells = runs("uniform", base)
    for number in range(8):
        cells += runs(f"m{number}", [value - 0.01 * (1 + (i + number) % 3) for i, value in enumerate(base)])
    found = compare_methods(cells, metrics=["asr_seen"])
    smallest = min(found, key=lambda one: one.p or 1)
    assert len(found) == 8
    assert smallest.p is not None and smallest.p_adjusted == pytest.approx(8 * smallest.p)
    assert all(one.num_comparisons == 8 for one in found)


def test_a_weighting_is_compared_with_its_own_null() -> None:
    """mapping=a,b x mapping.null=none,shuffled: each against its own; `mapping=shuffled` is the null of the others."""
    cells = [
        *runs("a", [0.1, 0.2, 0.3], "mapping.null=none"),
        *runs("a", [0.5, 0.5, 0.9], "mapping.null=shuffled"),
        *runs("b", [0.2, 0.2, 0.2], "mapping.null=none"),
        *runs("b", [0.3, 0.3, 0.6], "mapping.null=shuffled"),
        *runs("c", [0.4, 0.4, 0.4]),
        *runs("shuffled", [0.5, 0.6, 0.7]),
        *runs("uniform", [0.2, 0.3, 0.4]),
    ]
    found = {(one.method, one.baseline): one.difference for one in compare_methods(cells, metrics=["asr_seen"])}
    against_null = {method: difference for (method, baseline), difference in found.items() if baseline == "shuffled"}
    assert against_null["mapping=a"] == pytest.approx((-0.4 - 0.3 - 0.6) / 3)
    assert against_null["mapping=b"] == pytest.approx((-0.1 - 0.1 - 0.4) / 3)
    assert against_null["mapping=c"] == pytest.approx((-0.1 - 0.2 - 0.3) / 3)
    # a null is no method to compare with nulls, but has uniform weights above it
    assert "mapping=a mapping.null=shuffled" not in against_null
    assert found["mapping=a mapping.null=shuffled", "uniform"] == pytest.approx((0.3 + 0.2 + 0.5) / 3)
