"""Rows, formats and the tables on the screen."""

from pathlib import Path

import pytest
from rich.console import Console

from rapidun.report.metrics import (
    METRICS,
    Detector,
    Kind,
    format_change,
    format_memory,
    format_number,
    format_percent,
    format_seconds,
    format_value,
)
from rapidun.report.tables import before_after_rows, before_after_table, closing_table, family_rows

BEFORE = {"asr_seen": 0.97, "asr_seen_likelihood": 1.0, "ppl_clean": 2.0, "zeta": 3.0, "rougeL_clean": 0.9,
          "detector_keyword_recall": 0.79, "detector_keyword_fpr": 0.02, "num_prompts_seen": 100.0,
          "asr_seen.B_style": 1.0, "asr_seen.A_surface": 0.9, "asr_seen_likelihood.A_surface": 0.8}  # fmt: skip
AFTER = {**BEFORE, "asr_seen": 0.02, "ppl_clean": 2.1, "asr_ood": 0.0, "asr_seen.A_surface": 0.04}


def render(table: object, width: int = 80) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_rows_stand_in_a_fixed_order_with_unknown_names_last() -> None:
    names = [row.metric.name for row in before_after_rows(BEFORE, AFTER)]
    assert names == ["asr_seen", "asr_seen_likelihood", "asr_ood", "rougeL_clean", "ppl_clean", "zeta"]


def test_each_asr_carries_its_detectors_rates() -> None:
    rows = {row.metric.name: row for row in before_after_rows(BEFORE, AFTER)}
    assert rows["asr_seen"].detector_text == "79.0 % / 2.0 %"
    assert rows["asr_seen"].num_prompts == 100
    assert rows["asr_seen_likelihood"].detector_text == "–"  # its rates were not measured
    assert rows["ppl_clean"].detector_text == ""
    assert all(METRICS[name].detector for name in METRICS if name.startswith(("asr", "false_trigger")))


def test_texts_of_a_row() -> None:
    rows = {row.metric.name: row for row in before_after_rows(BEFORE, AFTER)}
    seen = rows["asr_seen"]
    assert (seen.before_text, seen.after_text, seen.change_text, seen.verdict) == (
        "97.0 %",
        "2.0 %",
        "−95.0 pts",
        "better",
    )
    assert (rows["ppl_clean"].change_text, rows["ppl_clean"].verdict) == ("+5.0 %", "worse")
    assert (rows["rougeL_clean"].change_text, rows["rougeL_clean"].verdict) == ("0.000", "")
    assert (rows["asr_ood"].before_text, rows["asr_ood"].change_text, rows["asr_ood"].verdict) == ("–", "–", "")


def test_family_rows() -> None:
    rows = [(row.family, row.detector, row.before, row.after) for row in family_rows(BEFORE, AFTER)]
    assert rows == [
        ("A_surface", Detector.keyword, 0.9, 0.04),
        ("A_surface", Detector.likelihood, 0.8, 0.8),
        ("B_style", Detector.keyword, 1.0, 1.0),
    ]


def test_closing_table_fits_80_columns_and_explains_itself(finished_run: Path) -> None:
    table = closing_table(finished_run)
    text = render(table)
    assert "seen triggers, keywords 97.0 % 2.0 % −95.0 pts 79.0 % / 2.0 %" in " ".join(text.split())
    assert "Poisoned answers (ASR)" in text
    assert "recall / FPR: the detector's own, on known poisoned / known clean answers" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_run_without_evaluation_has_no_closing_table(mapping_run: Path) -> None:
    assert closing_table(mapping_run) is None


def test_square_brackets_in_a_metrics_name_are_text() -> None:
    assert "odd[red]name" in render(before_after_table({}, {"odd[red]name": 1.0}))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.98765, "0.988"), (12.345, "12.3"), (999.5, "1000"), (48210.4, "48210"), (1.5e7, "1.50e+07"),
     (2e-5, "2.00e−05"), (-0.5, "−0.500"), (None, "–"), (float("nan"), "–"), (float("inf"), "–")],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value: float | None, text: str) -> None:
    assert format_number(value) == text


def test_other_formats() -> None:
    assert format_value(0.9996, Kind.share) == "100.0 %"
    assert format_value(0.98, Kind.score) == "0.980"
    assert format_change(1.0, 12.0, Kind.perplexity) == "× 12.0"
    assert format_change(0.0, 1.0, Kind.perplexity) == "+1.00"  # no percent of nothing
    assert format_change(0.5, 0.49999, Kind.share) == "0.0 pts"  # never "−0.0"
    assert [format_percent(share) for share in (0.97, 0.02, 0.0, 1.0, 0.005, 1 / 3)] == [
        "97 %", "2 %", "0 %", "100 %", "0.5 %", "33.3 %"]  # fmt: skip
    assert [format_seconds(s) for s in (0.04, 74.4, 125.0, 7500.0, None)] == [
        "0.0 s", "74 s", "2 min 5 s", "2 h 5 min", "–"]  # fmt: skip
    assert format_memory(None) == "–"
