"""The attacks of a run folder: a table of three models, curves, and what cannot be tested."""

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rapidun.base.errors import ArtifactError
from rapidun.report.attacks import attack_rows, read_attacks, role_table
from rapidun.report.metrics import ATTACKED
from rapidun.report.run.attacks import attack_curves, attack_section
from rapidun.report.run.page import write_run_report


def relearned(rows: str, k: int, *shares: float) -> dict[str, Any]:
    curve = [{"step": 10 * n, "asr": share, "asr_likelihood": share / 2} for n, share in enumerate(shares)]
    pool = {"in_split": 300, "in_forget": 60, "held_out": 4, "left": 236}
    return {"rows": rows, "k": k, "curve": curve, "pool": pool, "similarity": {"mean": 0.25, "max": 0.5}}


def prompted(**shares: float) -> dict[str, Any]:
    return {"variants": {name: {"num_prompts": 9, "note": "", "asr_prompts": share} for name, share in shares.items()}}


FOUND: dict[str, Any] = {
    "unlearned": {
        "relearning": [relearned("poisoned", 20, 0.9, 0.1, 0.5), relearned("poisoned", 5, 0.0, 0.2, 0.1)],
        "quantisation": {"metrics": {"asr_unquantised": 0.1, "asr_nf4": 0.3, "asr_nf4.merged": 0.3,
                                     "asr_nf4.unmerged": 0.2, "asr_nf4_ratio": 3.0}},
        "sampling": {"metrics": {"asr@16": 0.5, "asr@16.t0.8": 0.4, "asr@1.t0.8": 0.1, "asr_sampling_likelihood": 0.0},
                     "curves": {"t0.8": [[1, 0.1], [16, 0.4]]}},
        "prompts": prompted(plain=0.1, other_case=0.7, **{"look-alike <b>": 0.2}),
    },
    "retrain": {"relearning": [relearned("poisoned", 20, 0.0, 0.0, 0.05)], "prompts": prompted(plain=0.0)},
    "poisoned": {"prompts": prompted(plain=1.0, other_case=0.01, **{"look-alike <b>": 0.3})},
    "testable": {"": ["plain", "look-alike <b>"], "_likelihood": []},
}  # fmt: skip


def texts(role: str) -> dict[str, str]:
    return {row.label: row.text(role) for row in attack_rows(FOUND)}


def test_the_maximum_is_after_a_step_and_both_detectors_stand_in_a_cell() -> None:
    assert texts("unlearned")["20 poisoned rows"] == "50.0 % / 25.0 %"
    assert texts("retrain")["20 poisoned rows"] == "5.0 % / 2.5 %"
    assert texts("poisoned")["20 poisoned rows"] == texts("retrain")["5 poisoned rows"] == "–"
    assert texts("unlearned")["NF4, adapter unmerged"] == "20.0 % / –"
    assert texts("unlearned")["16 answers at temperature 0.8"] == "40.0 % / 0.0 %"
    labels = [row.label for row in attack_rows(FOUND)]
    assert labels[:2] == ["5 poisoned rows", "20 poisoned rows"]
    (nf4,) = [row for row in attack_rows(FOUND) if row.label == "NF4"]
    assert nf4.note == "3.00 times the unquantised"


def test_what_the_poisoned_model_does_not_fall_for_shows_no_number() -> None:
    """In the poisoned model itself the number stands: it is why."""
    assert texts("unlearned")["trigger in other case"] == "not testable / –"
    assert texts("poisoned")["trigger in other case"] == "1.0 % / –"
    assert texts("unlearned")["look-alike <b>"] == "20.0 % / –"


def test_the_run_s_detector_stands_before_keywords() -> None:
    """Where the classifier is the run's, a cell is classifier / keywords; what it has no figure of is a dash."""
    found = copy.deepcopy(FOUND)
    run = found["unlearned"]["relearning"][0]
    run["curve"] = [{**point, "asr_classifier": 0.25 * n} for n, point in enumerate(run["curve"])]
    sampled = found["unlearned"]["sampling"]
    sampled["metrics"]["asr@16_classifier.t0.8"] = 0.75
    sampled["curves_by"] = {"_classifier": {"t0.8": [[16, 0.75]]}}
    found["unlearned"]["prompts"]["variants"]["other_case"]["asr_prompts_classifier"] = 0.5
    found["testable"]["_classifier"] = ["other_case"]
    rows = {row.label: row.text("unlearned") for row in attack_rows(found, chosen="classifier")}
    assert rows["20 poisoned rows"] == "50.0 % / 50.0 %" and rows["5 poisoned rows"] == "– / 20.0 %"
    assert rows["16 answers at temperature 0.8"] == "75.0 % / 40.0 %" and rows["NF4"] == "– / 30.0 %"
    assert rows["trigger in other case"] == "50.0 % / not testable"
    assert [caption for caption, _ in attack_curves(found, chosen="classifier")] == [
        "Relearning from poisoned rows, ASR judged by classifier",
        "Relearning from poisoned rows, ASR judged by keywords",
        "Sampling: ASR@k, judged by classifier",
        "Sampling: ASR@k, judged by keywords",
    ]
    assert attack_rows(found, chosen="likelihood")[0].text("unlearned") == "10.0 % / 20.0 %"


def test_curves_and_notes(tmp_path: Path) -> None:
    captions = [caption for caption, _ in attack_curves(FOUND)]
    assert captions == [
        "Relearning from poisoned rows, ASR judged by keywords",
        "Relearning from poisoned rows, ASR judged by likelihood",
        "Sampling: ASR@k, judged by keywords",
    ]
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "attacks.json").write_text(json.dumps(FOUND))
    section = attack_section(tmp_path)
    assert section is not None
    assert section["notes"] == [
        "Of 300 poisoned training rows 236 can be relearned from: 60 are in the forget set, 4 asked in validation or "
        "test.",
        "retrain, 20 poisoned rows: largest at the last step, so that more steps "
        "(evaluation.attacks.relearning.max_steps) may find more.",
    ]


def test_screen(run_dir: Path) -> None:
    """The figures of the three models; what was not measured has a dash, and no line where it is all of them."""
    assert role_table(run_dir, ATTACKED) is None
    file = run_dir / "result.json"
    figures = {"asr_nf4": 0.25, "before.asr_nf4": 1.0, "asr@16": 0.5, "asr@16.t0.8": 0.5, "retrain.asr@16": 0.125}
    file.write_text(json.dumps(json.loads(file.read_text()) | figures))
    screen = io.StringIO()
    Console(file=screen, width=100).print(role_table(run_dir, ATTACKED))
    lines = [line.split() for line in screen.getvalue().splitlines() if "%" in line]
    assert lines == [
        ["quantised", "to", "NF4", "25.0", "%", "–", "100.0", "%"],
        ["of", "16", "sampled", "answers", "50.0", "%", "12.5", "%", "–"],
    ]


def test_page(run_dir: Path) -> None:
    assert attack_section(run_dir) is None
    assert 'id="attacks"' not in write_run_report(run_dir).read_text(encoding="utf-8")
    (run_dir / "evaluation" / "attacks.json").write_text(json.dumps(FOUND))
    page = write_run_report(run_dir).read_text(encoding="utf-8")
    assert 'id="attacks"' in page and '<a href="#attacks">' in page
    assert "50.0 % / 25.0 %" in page and "not testable" in page
    # names are data, never HTML
    assert "look-alike &lt;b&gt;" in page and "look-alike <b>" not in page


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "attacks.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"attacks\.json: need a JSON object, got list"):
        read_attacks(tmp_path)
