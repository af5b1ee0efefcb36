"""The catalogue: complete, in step with the documents, and the one place where a new metric is entered."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from rapidun.config.detectors import Detector
from rapidun.pipeline.tracking.wandb.workspace_spec import dashboard_spec
from rapidun.report import metrics
from rapidun.report.forgotten import FACTS
from rapidun.report.metrics import METRICS, Kind, Metric
from rapidun.report.read import read_run
from rapidun.report.run.findings import key_findings
from rapidun.report.sweep.console import settings_table
from rapidun.report.sweep.data import page_index
from rapidun.report.sweep.exports import write_sweep_summary
from rapidun.report.tables import before_after_rows, before_after_table
from rapidun.sweep.tuning.search import Tuning

ROOT = Path(__file__).parents[2]
TOY = Metric(name="toy", group="Toys", label="shine", kind=Kind.score, better=1, meaning="How it shines.",
             heading="toy shine", finding="Shine", column=10, criterion=5, pareto=4, tile=5, tuned=True)  # fmt: skip


def test_every_metric_is_explained() -> None:
    for metric in METRICS.values():
        assert metric.meaning.endswith("."), metric.name
        # what is judged has a direction, and a heading of its own where it has a column
        assert metric.better or not (metric.criterion or metric.pareto or metric.tuned), metric.name
        assert metric.heading or not metric.column, metric.name


def test_the_document_names_every_metric() -> None:
    documents = ("method.md", "forgetting.md", "privacy.md")
    text = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in documents)
    for metric in METRICS.values():
        name = metric.name.removesuffix(metric.detector.ending if metric.detector else "")
        if metric.prompts in FACTS:  # one line for the measure of all sets
            name = f"{name.removesuffix(metric.prompts)}<set>"
        assert f"`{name}`" in text, metric.name
    for detector in Detector:
        assert f"`{detector.ending}`" in text or not detector.ending, detector


def test_orders() -> None:
    # a run has those of backdoors, or of facts: extraction_..., and what ends in the name of a set of rows
    assert list(metrics.criteria().items()) == [
        ("asr_seen", -1), ("extraction_strength_forget", -1), ("ppl_clean", -1), ("exact_match_clean", 1),
        ("rougeL_retain", 1), ("rougeL_clean", 1),
    ]  # fmt: skip
    assert metrics.pareto_axes() == [
        ["asr_seen", "asr_seen_likelihood", "extraction_strength_forget"], ["ppl_clean"],
        ["exact_match_clean", "rougeL_clean", "rougeL_retain"],
    ]  # fmt: skip
    assert metrics.columns([name for name in METRICS if METRICS[name].prompts not in FACTS]) == [
        "asr_seen", "asr_seen_likelihood", "asr_ood_testable", "asr_ood", "asr_unseen_family", "false_trigger_rate",
        "ppl_clean", "exact_match_clean", "rougeL_clean", "rougeL_recovered", "forget_quality", "model_utility",
        "asr_relearn_max", "asr_relearn_clean_max", "asr_nf4", "asr_int8", "asr@16", "asr_prompts_max",
        "mia_min_k_pp", "extraction_strength", "kl_retrain_clean", "kl_retrain_triggered",
    ]  # fmt: skip
    assert metrics.columns([name for name in METRICS if METRICS[name].prompts in FACTS] + ["ppl_clean"]) == [
        "extraction_strength_forget", "rougeL_forget", "probability_forget", "rougeL_probe", "choice_accuracy_probe",
        "rougeL_retain", "rougeL_test", "ppl_clean",
    ]  # fmt: skip
    assert "asr_seen_likelihood" not in metrics.columns(METRICS, dashboard=True)
    # figures of attacks by the runs' detectors before those by keywords, both named
    found = ["asr_seen", "asr_seen_classifier", "asr_nf4", "asr_nf4_classifier", "asr_nf4_refusal", "asr@16_classifier"]
    assert metrics.columns(found, chosen={"classifier", ""}) == [
        "asr_seen", "asr_nf4_classifier", "asr_nf4", "asr@16_classifier",
    ]  # fmt: skip
    assert metrics.columns(found, chosen={"keyword"}) == ["asr_seen", "asr_nf4"]
    assert metrics.heading_of("asr@16_classifier") == "ASR@16 (classifier)" != metrics.heading_of("asr@16")
    assert Tuning().directions == {"asr_seen": "minimize", "ppl_clean": "minimize"}


def test_names_that_belong_to_a_metric() -> None:
    assert metrics.kind_of("before.asr_seen.A_surface") is Kind.share
    assert metrics.kind_of("retrain.asr@16.t0.8") is metrics.kind_of("asr_relearn_max.80") is Kind.share
    assert not metrics.is_result("retrain.asr_nf4") and metrics.is_result("asr_nf4")
    assert metrics.heading_of("asr_seen.A_surface") == "asr_seen.A_surface"
    assert (metrics.better_of("seconds.poison"), metrics.better_of("unknown")) == (-1, 0)
    assert metrics.main_columns({"b", "a", "before.a", "seconds.x"}) == ["a", "b"]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "toy", TOY)


def test_one_entry_shows_a_new_metric_everywhere(tmp_path: Path, new_cell: Callable[..., Path], toy: None) -> None:
    sweep = tmp_path / "toys"
    for number, shine in enumerate((0.25, 0.75)):
        result = {"name": "run", "seed": 0, "asr_seen": 0.1, "ppl_clean": 2.0, "rougeL_clean": 0.5, "toy": shine}
        new_cell(sweep / f"c{number}", [f"mapping.tau_f={number}", "seed=0"], result)
    # before and after
    (row,) = [row for row in before_after_rows({"toy": 0.25}, {"toy": 0.75}) if row.metric is TOY]
    assert (row.before_text, row.change_text, row.verdict) == ("0.250", "+0.500", "better")
    screen = io.StringIO()
    Console(file=screen, width=80).print(before_after_table({"toy": 0.25}, {"toy": 0.75}))
    assert "Toys" in screen.getvalue()
    assert "shine" in screen.getvalue()
    # leaderboard, criteria, Pareto set, comparison page
    summary = write_sweep_summary(sweep)
    assert summary.main_metrics()[-1] == "toy"
    assert summary.best["toy"][0].label == "mapping.tau_f=1"
    assert summary.pareto_metrics["toy"] == 1
    assert [group.label for group in summary.pareto] == ["mapping.tau_f=1"]
    Console(file=screen, width=120).print(settings_table(summary))
    assert "toy shine" in screen.getvalue()
    assert "- toy shine: 0.750, n = 1: `mapping.tau_f=1`" in (sweep / "summary.md").read_text()
    index = page_index(summary, base=sweep)
    place = next(place for place, metric in enumerate(index["metrics"]) if metric["name"] == "toy")
    assert index["metrics"][place] == {"name": "toy", "label": "toy shine", "kind": "score", "better": 1}
    assert place in index["shown"]
    assert place in index["criteria"]
    # dashboard
    spec = dashboard_spec(sweep)
    assert spec["leaderboard"]["columns"][-1] == "summary:toy"
    scatters = [panel["y"] for panel in spec["sections"][0]["panels"] if panel["kind"] == "scatter"]
    assert "summary:toy" in scatters
    # tuner
    assert Tuning().directions["toy"] == "maximize"


def test_one_entry_shows_a_new_metric_on_a_runs_page(run_dir: Path, toy: None) -> None:
    import json

    from rapidun.report.run.page import write_run_report

    for when, value in (("before", 0.25), ("after", 0.75)):
        file = run_dir / "evaluation" / f"{when}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"toy": value}))
    assert "Shine: 0.250 before, 0.750 after." in key_findings(read_run(run_dir))
    page = write_run_report(run_dir).read_text(encoding="utf-8")
    assert "Toys, shine" in page
    assert 'class="n better"' in page
