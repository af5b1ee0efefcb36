"""The first line of a sweep's page, on made-up cells: which setting, at what price, how sure; ties are said."""

from pathlib import Path
from typing import Any

import pytest

from rapidun.report.sweep.answer import answer_of, title_of
from rapidun.report.sweep.budget import make_budget
from rapidun.report.sweep.cells import Cell
from rapidun.report.sweep.summary import Summary, summarise
from rapidun.report.verdict.answer import Answer, Mark

BEFORE = {"before.asr_seen": 0.97, "before.ppl_clean": 2.0, "before.exact_match_clean": 0.98}


def cell(weights: str, seed: int, asr: float, *, ppl: float = 2.0, state: str = "done", **more: float) -> Cell:
    values = {**BEFORE, "asr_seen": asr, "ppl_clean": ppl, "exact_match_clean": 0.98, "num_prompts_seen": 100.0, **more}
    return Cell(
        path=Path(f"/sweeps/tau/{weights}{seed}"), overrides=[f"mapping={weights}", f"seed={seed}"], state=state,
        error="" if state == "done" else "boom", metrics=values if state == "done" else {}, method=weights,
    )  # fmt: skip


def found(*cells: Cell, budget: str | None = None) -> Answer:
    return answer_of(summary(*cells, budget=budget))


def summary(*cells: Cell, budget: str | None = None) -> Summary:
    return summarise(list(cells), Path("/sweeps/tau"), budget=None if budget is None else make_budget(budget))


def note(answer: Answer, what: str) -> str:
    return next((text for name, text in answer.notes if name == what), "")


def seeds(weights: str, *shares: float, **more: Any) -> list[Cell]:
    return [cell(weights, seed, share, **more) for seed, share in enumerate(shares)]


def test_the_best_setting_its_price_and_how_sure() -> None:
    """Means .01 and .203; t intervals of three seeds: .01 -+ 4.30 x .01 / sqrt(3), cut at 0; .203 -+ .038."""
    answer = found(*seeds("oracle", 0.0, 0.01, 0.02), *seeds("uniform", 0.19, 0.20, 0.22))
    assert answer.headline == (
        "mapping=oracle leaves least: 1 % of triggered prompts are answered as planted (before unlearning 97 %), at no "
        "measured price above 2 %."
    )
    assert note(answer, "How sure") == (
        "3 seeds, mean and 95 % interval over them 1.0 % [0.0, 3.5]; 100 prompts a seed leave up to 5.4 % open; no "
        "interval of the 1 other setting meets it; greedy answers only, nothing harder was tried; no budget of damage "
        "is set."
    )
    assert note(answer, "Beside").startswith("mapping=uniform 20.3 % [16.5, 24.1]; against uniform weights: better (")


def test_ties_are_said() -> None:
    answer = found(*seeds("oracle", 0.0, 0.0), *seeds("strength", 0.0, 0.0), *seeds("uniform", 0.1, 0.2))
    assert answer.headline.startswith("mapping=oracle and mapping=strength tie: 0 % of triggered prompts")
    assert "its interval meets that of mapping=uniform, so their order is not shown" in note(answer, "How sure")


def test_equal_success_is_decided_by_the_next_criterion_and_said() -> None:
    answer = found(*seeds("oracle", 0.0, 0.0, ppl=2.01), *seeds("uniform", 0.0, 0.0, ppl=2.03))
    assert answer.headline.startswith(
        "Both settings come to the same ASR seen: 0 % of triggered prompts are answered as planted (before unlearning "
        "97 %); by ppl clean mapping=oracle is best (2.01"
    )


def test_nothing_differs() -> None:
    answer = found(*seeds("oracle", 0.0, 0.0), *seeds("uniform", 0.0, 0.0))
    assert answer.headline.startswith("No two of 2 settings differ in what they are judged by: 0 % of")


def test_one_setting_is_no_choice() -> None:
    answer = found(*seeds("uniform", 0.1, 0.2))
    assert answer.headline.startswith("One setting was run, so there is nothing to choose: mapping=uniform")
    assert "15 % of triggered prompts" in answer.headline


def test_one_seed_shows_no_spread() -> None:
    answer = found(cell("oracle", 0, 0.0), cell("uniform", 0, 0.2))
    assert note(answer, "How sure").startswith("one seed, which shows no spread: the order may be luck; 100 prompts")
    assert "cannot tell" in note(answer, "Beside")


def test_a_broken_model_is_not_chosen() -> None:
    answer = found(*seeds("ga", 0.0, 0.0, ppl=90.0), *seeds("npo", 0.1, 0.1))
    assert answer.headline.startswith("mapping=npo is the only one of 2 settings that left the model whole: 10 %")
    assert (
        "Not chosen, since the model is broken: mapping=ga (Broken: perplexity of held-out answers 2.00 before, 90"
        in (answer.headline)
    )
    both = found(*seeds("ga", 0.0, 0.0, ppl=90.0), *seeds("npo", 0.1, 0.1, ppl=80.0))
    assert both.headline.startswith("Both settings broke the model, so nothing can be chosen: ")
    assert both.mark is Mark.bad


def test_the_price_is_that_of_the_best() -> None:
    answer = found(*seeds("oracle", 0.0, 0.0, ppl=2.2), *seeds("uniform", 0.2, 0.2))
    assert answer.headline.endswith("at the price of perplexity of held-out answers 2.00 before, 2.20 after, +10.0 %.")


def test_over_budget() -> None:
    budget = "ppl_clean <= 1.02 * before.ppl_clean"
    cells = (*seeds("oracle", 0.0, 0.0, ppl=2.2), *seeds("uniform", 0.2, 0.2))
    assert found(*cells, budget=budget).headline.startswith("mapping=uniform is the only setting within the budget: 20")
    none = found(*seeds("oracle", 0.0, 0.0, ppl=2.2), budget=budget)
    assert none.headline.startswith(f"No setting is within the budget ({budget}): mapping=oracle is nearest and misses")
    assert none.mark is Mark.bad


def test_no_attack_success_before() -> None:
    cells = [*seeds("oracle", 0.0, 0.0), *seeds("uniform", 0.01, 0.02)]
    for one in cells:
        one.metrics["before.asr_seen"] = 0.04
    assert found(*cells).headline.startswith("Cannot be told, it hardly showed before: mapping=oracle leaves least")


def test_what_attacks_bring_back_beside_the_retrained_model() -> None:
    more = {"asr_relearn_max": 0.32, "asr_nf4": 0.01, "retrain.asr_relearn_max": 0.02, "retrain.asr_seen": 0.0}
    answer = found(*seeds("oracle", 0.0, 0.0, **more), *seeds("uniform", 0.1, 0.2, **more))
    assert "the most that an attack brings back is 32 % (relearning from poisoned rows, retrained model 2 %)" in note(
        answer, "How sure"
    )
    assert note(answer, "Beside").endswith("retrained model 0 %.")


def test_private_facts() -> None:
    def of(weights: str, strength: float) -> Cell:
        one = cell(weights, 0, 0.0)
        values = {
            "extraction_strength_forget": strength,
            "before.extraction_strength_forget": 0.9,
            "rougeL_retain": 0.8,
        }
        return Cell(path=one.path, overrides=one.overrides, state="done", error="", metrics=values, method=weights)

    answer = found(of("oracle", 0.1), of("uniform", 0.4))
    assert answer.headline.startswith("mapping=oracle leaves least: extraction 0.100 (before unlearning 0.900)")
    assert "trigger" not in answer.headline


@pytest.mark.parametrize("state", ["failed", "running"])
def test_nothing_finished(state: str) -> None:
    answer = found(cell("oracle", 0, 0.0, state=state))
    assert (
        answer.headline == f"No cell has finished, so nothing can be said{'; 1 failed' if state == 'failed' else ''}."
    )


def test_the_title_says_what_was_swept() -> None:
    cells = [*seeds("oracle", 0.0, 0.0), *seeds("uniform", 0.1, 0.2)]
    assert title_of(summary(*cells)) == "tau: mapping × seed, 4 cells"
    assert title_of(summary(cells[0])) == "tau: 1 cell"
