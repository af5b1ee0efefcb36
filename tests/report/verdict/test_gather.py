"""What a verdict is decided by, read from a folder."""

import json
from pathlib import Path
from typing import Any

from rapidun.report.read import read_run
from rapidun.report.verdict.gather import judge

MEASURED = {"rougeL_forget": 0.2, "exact_match_forget": 0.0, "num_prompts_forget": 20}


def write(folder: Path, name: str, value: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def test_a_retrained_model_that_was_asked_for_facts_is_not_missed(tmp_path: Path) -> None:
    """Without triggers no attack and no measure of privacy says that it was there."""
    write(tmp_path / "evaluation", "after.json", MEASURED)
    alone = judge(read_run(tmp_path))
    assert alone.facts and "poison.retrain=true" in [one["how"] for one in alone.lacking]
    assert not alone.around.has_retrain
    write(tmp_path / "evaluation", "retrain.json", MEASURED)
    beside = judge(read_run(tmp_path))
    assert "poison.retrain=true" not in [one["how"] for one in beside.lacking]
    assert beside.around.has_retrain
    assert "the same on a retrained model (no yardstick)" not in beside.around.not_tried
