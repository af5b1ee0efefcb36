"""Bounds on damage: what an expression over metrics may say, and where a cell stands."""

import math

import pytest

from rapidun.base.errors import ConfigError
from rapidun.config.budget import Budget, Place
from rapidun.config.cells import compose_cells, sweep_name
from rapidun.config.sweep import SweepConfig
from rapidun.report.sweep.budget import make_budget

CLEAN = "ppl_clean <= 1.02 * before.ppl_clean"


@pytest.mark.parametrize(
    ("expression", "excesses"),
    [
        # 12 against 1.02 * 10 = 10.2: (12 - 10.2) / 10.2
        (CLEAN, [1.8 / 10.2]),
        ("ppl_clean <= 12", [0.0]),
        ("ppl_clean < 12", [1e-12]),
        # there is room: half the bound
        ("ppl_clean <= 24", [-0.5]),
        ("15 <= ppl_clean", [0.25]),
        ("ppl_clean >= 15", [0.2]),
        ("ppl_clean - before.ppl_clean <= 0", [2.0]),
        # a number for each part of the outermost `and`
        ("ppl_clean <= 10 and asr_seen <= 0.1", [0.2, 1.0]),
        ("ppl_clean <= 10 and asr_seen <= 0.4", [0.2, -0.5]),
        # one of both is enough: the one that is nearer
        ("ppl_clean <= 10 or asr_seen <= 0.1", [0.2]),
        ("not ppl_clean > 10", [0.2]),
        ("not (ppl_clean <= 10 and asr_seen <= 0.1)", [-1.0]),
        ("not (ppl_clean > 10 or asr_seen > 0.1)", [1.0]),
        ("10 <= ppl_clean <= 11", [1 / 11]),
        ("ppl_clean == 12", [-1.0]),
        ("ppl_clean != 12", [1.0]),
        ("asr_seen.A_surface <= 0.05", [1.0]),
        # as Python does: what comes after a part that fails is not asked
        ("asr_ood > 0 and 1 / asr_ood < 3", [1e-12, 1.0]),
        ("ppl_clean <= 20 if asr_seen < 0.5 else ppl_clean <= 5", [-1.0]),
    ],
)
def test_by_how_much_a_bound_is_missed(expression: str, excesses: list[float]) -> None:
    metrics = {"ppl_clean": 12.0, "before.ppl_clean": 10.0, "asr_seen": 0.2, "asr_ood": 0.0, "asr_seen.A_surface": 0.1}
    found = Budget(expression).judge(metrics)
    assert found.excesses == pytest.approx(tuple(excesses), abs=1e-13)
    assert found.place is (Place.within if all(one <= 0 for one in excesses) else Place.outside)
    assert found.excess == pytest.approx(sum(one for one in excesses if one > 0), abs=1e-13)


def test_what_was_not_measured_is_neither_in_nor_out() -> None:
    found = Budget(f"{CLEAN} and asr_seen < 1").judge({"asr_seen": 0.0, "ppl_clean": 3.0})
    assert (found.place, found.why, found.excess) == (Place.unknown, "without before.ppl_clean", math.inf)
    # nor where a part that was measured already fails
    assert Budget("asr_seen < 0.1 and ppl_clean < 3").judge({"asr_seen": 1.0}).place is Place.unknown
    found = Budget("ppl_clean / asr_seen < 3").judge({"asr_seen": 0.0, "ppl_clean": 3.0})
    assert found.place is Place.unknown and "division by zero" in found.why


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("ppl_claen <= 3", ["ppl_claen: no such metric", "did you mean ppl_clean?"]),
        ("ppl_clean <= 1.02 * before.ppl_claen", ["did you mean before.ppl_clean?"]),
        ("asr_sen.A_surface < 1", ["asr_sen.A_surface: no such metric"]),
        ("ppl_clean.A_surface < 1", ["ppl_clean.A_surface: no such metric", "did you mean ppl_clean?"]),
        ("seconds.unlerning < 60", ["did you mean seconds.unlearning?"]),
        ("mapping.tau_f <= 1", ["mapping.tau_f, which is a setting", "sweep.where"]),
        ("ppl_clean <= mapping.tau_f", ["mapping.tau_f, which is a setting"]),
        ("seed < 3", ["seed, which is a setting"]),
        ("1 < 2", ["need a bound on metrics", "the same for every cell"]),
        ("true", ["the same for every cell"]),
        ("ppl_clean", ["Compare it with something"]),
        ("1.02 * ppl_clean", ["Compare it with something"]),
        ("ppl_clean and asr_seen < 1", ["Compare it with something"]),
        ("ppl_clean = 3", ["Equal is written =="]),
        ("ppl_clean <= 'a'", ["cannot be worked out"]),
        ("ppl_clean.__class__ <= 3", ["no such metric"]),
        ("open(asr_seen) < 3", ["need one of the functions"]),
        ("[x for x in asr_seen] == 3", ["got ListComp"]),
    ],
)
def test_what_is_no_budget_is_refused_with_words(expression: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        make_budget(expression)
    for word in ("sweep.budget", *words):
        assert word in str(error.value)


@pytest.mark.parametrize(
    "expression",
    [CLEAN, "asr_ood_likelihood.B_style < 1", "retrain.ppl_clean < 2", "peak_memory_gb.unlearning < 20",
     "before.detector_keyword_recall > 0.5", "num_prompts_seen >= 50", "exact_match_clean >= before.exact_match_clean"],
)  # fmt: skip
def test_names_of_results_are_known(expression: str) -> None:
    make_budget(expression)


def test_names_that_finished_cells_have_are_known_too() -> None:
    make_budget("mia_loss_auc < 0.6", measured=["mia_loss_auc"])
    with pytest.raises(ConfigError, match=r"--budget: .*did you mean mia_loss_auc"):
        make_budget("mia_los_auc < 0.6", measured=["mia_loss_auc"], setting="--budget")


def test_syntax_is_checked_with_all_other_settings() -> None:
    assert SweepConfig(budget=CLEAN).check() == []
    (fault,) = SweepConfig(budget="ppl_clean <=").check()
    assert fault.startswith("sweep.budget: need an expression such as 'ppl_clean <= 1.02 * before.ppl_clean'")


def test_a_budget_names_neither_cell_nor_sweep() -> None:
    """It is typed without inner quotes, as sweep.where is."""
    plain = compose_cells(["debug=fast", "seed=0,1"])
    bound = compose_cells(["debug=fast", "seed=0,1", f"sweep.budget={CLEAN}"])
    assert [cell.hash for cell in bound] == [cell.hash for cell in plain]
    assert {cell.cfg.sweep.budget for cell in bound} == {CLEAN}
    assert sweep_name(["seed=0,1", f"sweep.budget={CLEAN}"]) == sweep_name(["seed=0,1"])


@pytest.mark.parametrize(
    "text",
    [
        "round(5, -1000000000) < asr_seen", "round(asr_seen * 5, 1000000000) < 1", "9**9**9 < asr_seen",
        "'x' * 10000000000 < 'y' and asr_seen < 1", "len([1] * 10000000000) > asr_seen",
        "len(('x' * 90000) * 90000) > asr_seen", f"{'9' * 900}*{'9' * 900} < asr_seen", "1" * 1500 + " < asr_seen",
        "(" * 300 + "asr_seen" + ")" * 300 + " < 1", "not " * 400 + "asr_seen < 1",
    ],
)  # fmt: skip
def test_it_ends_at_once(text: str) -> None:
    """Numbers, texts and lists of a bounded size: refused, or worked out (the suite would wait for any other)."""
    try:
        verdict = Budget(text).judge({"asr_seen": 0.5})
    except ConfigError as error:
        assert "sweep.budget" in str(error)
    else:
        assert isinstance(verdict.excess, int | float)
