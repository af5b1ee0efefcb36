"""A budget over the results of a sweep: who is within, who is chosen, and what makes the choice fair."""

import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rapidun.base.errors import ConfigError, DataError
from rapidun.cli.report import main
from rapidun.config.budget import Place
from rapidun.report.sweep.console import show
from rapidun.report.sweep.data import page_index
from rapidun.report.sweep.exports import read_sweep, write_sweep_summary
from rapidun.report.sweep.finals import final_commands
from rapidun.report.sweep.page import gather

MakeCell = Callable[..., Path]
BUDGET = "ppl_clean <= 1.1 * before.ppl_clean"
# method, learning rate, seed -> ASR, clean perplexity (None: not measured); before.ppl_clean is 10, the bound 11.
# npo: 1e-4 within (.30, .20: mean .25), 1e-3 outside though its ASR is 0 (12), 1e-2 unknown: seed 1 has no perplexity
# ga: 1e-4 within (.40), 1e-3: means 10.9 within, of its seeds one (11.2) is not
CELLS: list[tuple[str, str, int, float, float | None]] = [
    ("npo", "1e-4", 0, 0.3, 10.5), ("npo", "1e-4", 1, 0.2, 10.5),
    ("npo", "1e-3", 0, 0.0, 12.0), ("npo", "1e-3", 1, 0.0, 12.0),
    ("npo", "1e-2", 0, 0.0, 10.0), ("npo", "1e-2", 1, 0.0, None),
    ("ga", "1e-4", 0, 0.4, 10.2), ("ga", "1e-4", 1, 0.4, 10.2),
    ("ga", "1e-3", 0, 0.1, 10.6), ("ga", "1e-3", 1, 0.3, 11.2),
]  # fmt: skip


def settings_of(path: Path, split: str, objective: str = "npo") -> None:
    settings = {"seed": 0, "unlearning": {"objective": objective}, "evaluation": {"split": split}}
    (path / "settings.json").write_text(json.dumps(settings))


@pytest.fixture
def sweep(tmp_path: Path, new_cell: MakeCell) -> Path:
    """Ten cells on validation rows; a third trial of ga has failed, so that npo and ga have three each."""
    folder = tmp_path / "grid"
    for number, (method, rate, seed, asr, perplexity) in enumerate(CELLS):
        overrides = ["debug=fast", f"unlearning={method}", f"unlearning.learning_rate={rate}", f"seed={seed}"]
        result: dict[str, Any] = {"seed": seed, "asr_seen": asr, "before.ppl_clean": 10.0}
        result |= {} if perplexity is None else {"ppl_clean": perplexity}
        path = new_cell(folder / f"c{number}", [*overrides, "evaluation.split=val", "sweep.name=grid"], result)
        settings_of(path, "val")
    failed = ["debug=fast", "unlearning=ga", "unlearning.learning_rate=1e-2", "seed=0", "evaluation.split=val"]
    settings_of(new_cell(folder / "x", failed, None, "loss is nan"), "val", "ga")
    write_plan(folder, BUDGET)
    return folder


def write_plan(folder: Path, budget: str | None) -> None:
    (folder / "sweep.json").write_text(json.dumps({"cells": [], "sweep": {"budget": budget}}))


def test_within_outside_and_unknown(sweep: Path) -> None:
    """Of 10 finished cells 6 hold it, 3 do not (12, 12, 11.2), 1 is unknown; a setting is judged by its means."""
    summary = read_sweep(sweep)
    assert summary.places() == (
        {"within": 6, "outside": 3, "unknown": 1},
        {"within": 3, "outside": 1, "unknown": 1},
    )
    places = {group.label: (group.verdict.place, group.num_within) for group in summary.groups if group.verdict}
    assert places == {
        "unlearning.learning_rate=1e-4 unlearning=ga": (Place.within, 2),
        "unlearning.learning_rate=1e-3 unlearning=ga": (Place.within, 1),
        "unlearning.learning_rate=1e-4 unlearning=npo": (Place.within, 2),
        "unlearning.learning_rate=1e-3 unlearning=npo": (Place.outside, 0),
        "unlearning.learning_rate=1e-2 unlearning=npo": (Place.unknown, 1),
    }
    assert summary.budget_text == (
        "budget ppl_clean <= 1.1 * before.ppl_clean: 6 of 10 finished cells within, 3 outside, 1 unknown (without "
        "ppl_clean); 3 of 5 settings within, 1 outside, 1 unknown (without ppl_clean)"
    )


def test_choices_are_made_within_the_budget_only(sweep: Path) -> None:
    """Without it npo at 1e-3 and 1e-2 have the fewest poisoned answers (0); within it ga at 1e-3 (.2)."""
    summary = read_sweep(sweep)
    assert summary.best["asr_seen"][0].label == "unlearning.learning_rate=1e-3 unlearning=ga"
    # .2 at 10.9, .25 at 10.5, .4 at 10.2
    assert {group.label for group in summary.pareto} == {
        "unlearning.learning_rate=1e-4 unlearning=ga",
        "unlearning.learning_rate=1e-3 unlearning=ga",
        "unlearning.learning_rate=1e-4 unlearning=npo",
    }
    free = read_sweep(sweep, budget="none")
    assert free.budget is None and free.best["asr_seen"][0].label == "unlearning.learning_rate=1e-2 unlearning=npo"


def test_each_methods_best_and_its_trials(sweep: Path) -> None:
    ga, npo = read_sweep(sweep).methods
    assert (ga.name, ga.counts, ga.num_trials) == ("unlearning=ga", "2 within, 1 failed", 3)
    assert (npo.name, npo.counts) == ("unlearning=npo", "1 within, 1 outside, 1 unknown")
    assert ga.best and ga.best.label == "unlearning.learning_rate=1e-3 unlearning=ga"
    assert ga.best.metrics["asr_seen"].mean == pytest.approx(0.2) and ga.best.metrics["asr_seen"].low == 0
    assert npo.best and npo.best.label == "unlearning.learning_rate=1e-4 unlearning=npo"
    assert npo.nearest and npo.nearest.label == "unlearning.learning_rate=1e-3 unlearning=npo"
    # equal numbers: the best itself
    assert not read_sweep(sweep).unequal_trials
    assert (ga.expected, ga.none) == (pytest.approx(0.2), 0.0)


def test_unequal_numbers_of_trials_are_warned_of_and_made_fair(sweep: Path, new_cell: MakeCell) -> None:
    """ga has four trials now (.4, .2, a failed one, .3 within): of three of them, 3 of 4 choices hold .2, one
    (without .2) has .3: (3 * .2 + .3) / 4."""
    overrides = ["debug=fast", "unlearning=ga", "unlearning.learning_rate=5e-4", "seed=0", "evaluation.split=val"]
    new_cell(sweep / "y", overrides, {"seed": 0, "asr_seen": 0.3, "before.ppl_clean": 10.0, "ppl_clean": 10.3})
    summary = read_sweep(sweep)
    ga, npo = summary.methods
    assert (ga.num_trials, npo.num_trials) == (4, 3)
    assert ga.expected == pytest.approx(0.225) and ga.none == 0
    assert ga.best and ga.best.metrics["asr_seen"].mean == pytest.approx(0.2)
    assert any("unequal numbers of trials (unlearning=ga 4, unlearning=npo 3)" in text for text in summary.warnings)
    shown = screen(summary)
    assert "expected best of 3" in shown and "22.5 %" in shown


def test_a_method_with_nothing_within_says_how_near_it_came(sweep: Path) -> None:
    """Bound 10.3: npo's nearest is 10.5 on average, (10.5 - 10.3) / 10.3; of ga 10.2 is left."""
    summary = read_sweep(sweep, budget="ppl_clean <= 10.3")
    ga, npo = summary.methods
    assert (npo.best, npo.expected, npo.none, npo.expected_text) == (None, None, 1.0, "none within")
    assert npo.nearest and npo.nearest.label == "unlearning.learning_rate=1e-4 unlearning=npo"
    assert ga.best and ga.best.label == "unlearning.learning_rate=1e-4 unlearning=ga"
    assert "misses it by 1.94 % of the bound" in screen(summary)
    nobody = read_sweep(sweep, budget="ppl_clean <= 10")
    assert (nobody.best, nobody.pareto, nobody.candidates) == ({}, [], [])
    assert any("no setting is within the budget" in text and "misses it by 2 %" in text for text in nobody.warnings)


def test_where_all_share_one_objective_the_weighting_is_the_method(tmp_path: Path, new_cell: MakeCell) -> None:
    for number, mapping in enumerate(("rapidun", "rapidun", "uniform")):
        path = new_cell(tmp_path / str(number), [f"mapping={mapping}", f"mapping.tau_f={number}"], {"asr_seen": 0.1})
        settings_of(path, "val")
    assert [(one.name, one.num_trials) for one in read_sweep(tmp_path).methods] == [
        ("mapping=rapidun", 2),
        ("mapping=uniform", 1),
    ]


def screen(summary: Any, width: int = 200) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        show(console, summary)
    return " ".join(capture.get().split())


def test_console_marks_what_is_outside(sweep: Path) -> None:
    shown = screen(read_sweep(sweep))
    assert "x unlearning.learning_rate=1e-3" in shown and "? unlearning.learning_rate=1e-2" in shown
    assert "Best of each method within the budget" in shown
    assert "3: 2 within," in shown  # its failed trial stands on the next line
    assert "6 of 10 finished cells within" in shown
    assert "Best of each method (no sweep.budget is set)" in screen(read_sweep(sweep, budget="none"))


def test_files_hold_the_verdicts(sweep: Path) -> None:
    write_sweep_summary(sweep)
    with (sweep / "summary.csv").open(newline="") as file:
        rows = {(row["unlearning"], row["unlearning.learning_rate"]): row for row in csv.DictReader(file)}
    assert rows["npo", "1e-2"]["budget"] == "unknown"
    assert (rows["ga", "1e-3"]["budget"], rows["ga", "1e-3"]["budget.seeds_within"]) == ("within", "1")
    found = json.loads((sweep / "summary.json").read_text())
    assert found["budget"] == {
        "expression": BUDGET,
        "cells": {"within": 6, "outside": 3, "unknown": 1},
        "settings": {"within": 3, "outside": 1, "unknown": 1},
    }
    runs = {run["cell"]: run["budget"] for run in found["runs"]}
    assert runs["c2"]["place"] == "outside" and runs["c2"]["excesses"] == [pytest.approx(1 / 11)]
    assert runs["c5"] == {"place": "unknown", "excesses": [], "why": "without ppl_clean"}
    assert runs["x"] is None
    assert [(one["method"], one["trials"]["all"]) for one in found["methods"]] == [
        ("unlearning=ga", 3), ("unlearning=npo", 3),
    ]  # fmt: skip
    text = (sweep / "summary.md").read_text()
    assert "## Best of each method within the budget" in text and "| outside |" in text


def test_without_a_budget_files_have_no_column_for_it(sweep: Path) -> None:
    write_plan(sweep, None)
    write_sweep_summary(sweep)
    assert "budget" not in (sweep / "summary.csv").read_text().splitlines()[0]
    assert json.loads((sweep / "summary.json").read_text())["budget"] is None


def test_the_page_holds_the_verdicts(sweep: Path) -> None:
    index = page_index(read_sweep(sweep), base=sweep)
    assert index["budget"] == BUDGET
    assert [run["budget"] for run in index["runs"]].count("within") == 6
    assert {group["budget"] for group in index["groups"]} == {"within", "outside", "unknown", ""}
    assert all(not group["best"] and not group["pareto"] for group in index["groups"] if group["budget"] != "within")


def test_a_budget_afterwards(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep), "--budget", "ppl_clean <= 1.3 * before.ppl_clean"]) == 0
    assert "9 of 10 finished cells within, 0 outside, 1 unknown" in " ".join(capsys.readouterr().out.split())
    page = (sweep / "report.html").read_text()
    assert "ppl_clean &lt;= 1.3 * before.ppl_clean" in page and "Best of each method" in page
    assert "9 of 10 finished cells within" in (sweep / "sweep.html").read_text()
    before = (sweep / "summary.json").read_text()
    with pytest.raises(ConfigError, match=r"--budget: ppl_claen: no such metric; did you mean ppl_clean"):
        main([str(sweep), "--budget", "ppl_claen < 3"])
    with pytest.raises(DataError, match="got one run"):
        main([str(sweep / "c0"), "--budget", BUDGET])
    assert (sweep / "summary.json").read_text() == before and not (sweep / "c0" / "report.html").exists()


def test_sweeps_of_different_budgets_share_none(sweep: Path, new_cell: MakeCell, tmp_path: Path) -> None:
    other = tmp_path / "other"
    new_cell(other / "a", ["unlearning=rmu"], {"asr_seen": 0.1, "ppl_clean": 3.0})
    write_plan(other, None)
    summary = gather([sweep, other])
    assert summary.budget is None and "the sweeps have different budgets" in summary.warnings[0]
    write_plan(other, BUDGET)
    summary = gather([sweep, other])
    assert summary.budget is not None and summary.places()[0]["unknown"] == 2


# Choose on val, report on test


def test_choosing_on_the_rows_that_are_reported_is_warned_of(sweep: Path) -> None:
    assert any(
        "evaluation.split=val): their numbers here are not for reporting" in w for w in read_sweep(sweep).warnings
    )
    for path in sweep.glob("c*"):
        settings_of(path, "test")
    (warning,) = read_sweep(sweep).warnings
    assert "chosen on the rows that are reported (evaluation.split=test)" in warning
    assert "evaluation.split=val" in warning and "--best-overrides" in warning
    settings_of(sweep / "c0", "val")
    assert any("val and test" in text or "test and val" in text for text in read_sweep(sweep).warnings)


def test_one_trial_of_each_method_is_no_choice(tmp_path: Path, new_cell: MakeCell) -> None:
    for number, (name, seed) in enumerate((name, seed) for name in ("npo", "ga") for seed in (0, 1)):
        path = new_cell(tmp_path / str(number), [f"unlearning={name}", f"seed={seed}"], {"seed": seed, "asr_seen": 0.1})
        settings_of(path, "test")
    assert read_sweep(tmp_path).warnings == []


def test_other_seeds_are_no_settings_to_choose_by(tmp_path: Path, new_cell: MakeCell) -> None:
    for seed in (0, 1):
        settings_of(new_cell(tmp_path / str(seed), [f"data.seed={seed}"], {"asr_seen": 0.1 * seed}), "val")
    assert any("data.seed is swept" in text for text in read_sweep(tmp_path).warnings)


def test_commands_for_the_numbers_that_are_reported(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in sweep.iterdir())
    assert main([str(sweep), "--best-overrides"]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert commands == [
        ["rapidun", "-m", "debug=fast", f"unlearning={name}", f"unlearning.learning_rate={rate}", "seed=0,1",
         "evaluation.split=test", "sweep.name=grid-test", f"sweep.budget={BUDGET}"]
        for name, rate in (("ga", "1e-3"), ("npo", "1e-4"))
    ]  # fmt: skip
    assert lines[-1] == "# then: rapidun report outputs/sweeps/grid-test"
    assert sorted(path.name for path in sweep.iterdir()) == before


def test_a_method_without_a_choice_has_no_command(sweep: Path) -> None:
    lines = final_commands(read_sweep(sweep, budget="ppl_clean <= 10.3"))
    assert sum(line.startswith("rapidun -m") for line in lines) == 1
    assert "# unlearning=npo: none of 3 trials may be chosen; the nearest misses it by 1.94 % of the bound" in lines
    with pytest.raises(DataError, match=r"need a finished setting within the budget 'ppl_clean <= 1'"):
        final_commands(read_sweep(sweep, budget="ppl_clean <= 1"))


def test_what_was_chosen_on_test_has_no_commands(sweep: Path) -> None:
    for path in sweep.glob("c*"):
        settings_of(path, "test")
    with pytest.raises(DataError, match=r"got evaluation.split=test: .* again with evaluation.split=val"):
        main([str(sweep), "--best-overrides"])
    with pytest.raises(DataError, match="need one sweep folder"):
        main([str(sweep), str(sweep), "--best-overrides"])
