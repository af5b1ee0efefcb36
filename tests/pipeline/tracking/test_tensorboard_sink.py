import json
from pathlib import Path
from typing import Any

import pytest

from rapidun.pipeline.tracking.media import Table
from rapidun.pipeline.tracking.tensorboard import as_markdown

pytest.importorskip("tensorboard", reason="needs the extra `tensorboard`")


def read(run_dir: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"tensors": 0})
    found.Reload()
    return found


def scalars(found: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, round(event.value, 4)) for event in found.Scalars(tag)]


def test_a_run_and_its_restart(tools: Any, tmp_path: Path) -> None:
    cfg = tools.make_config(tmp_path, "tensorboard")
    run_dir = tools.make_cell(tmp_path, "aaaa", "mapping=uniform", "mapping.tau_f=0.7")
    killed, _ = tools.open_quietly(cfg, run_dir)
    tools.run_stage(killed, tmp_path, "poison", steps=[1, 2, 3], fault=RuntimeError("killed"))
    killed._sinks[0].abandon()  # in one process its thread would go on writing
    tracker, notes = tools.open_quietly(cfg, run_dir, restarts=1)
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "forget_weights.jsonl").write_text('{"weight": 1.0}\n{"weight": 2.0}\n')
    (run_dir / "mapping").symlink_to(folder)
    tools.run_stage(tracker, tmp_path, "poison", steps=[3, 4])
    tracker.begin("evaluation")
    tracker.log({"asr_seen": 0.5})
    tracker.finish({"asr_seen": 0.5, "name": "run"}, failed=False, run_dir=run_dir)
    assert tracker.warnings == []
    assert notes == [f"TensorBoard: tensorboard --logdir {run_dir / 'tensorboard'}"]
    found = read(run_dir)
    assert scalars(found, "poison/loss") == [(1, 1.0), (2, 0.5), (3, 0.3333), (4, 0.25)]
    assert scalars(found, "evaluation/asr_seen") == [(0, 0.5)]
    assert found.Histograms("mapping/weights_forget")[0].histogram_value.num == 2
    tags = found.Tags()
    assert "asr_seen" in tags["scalars"]
    hparams = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"mapping.tau_f" in hparams and b"uniform" in hparams
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 3, 4, None]


def test_tables_show_text() -> None:
    table = Table(["a", "b"], [["x|y\nz", None], [True, "<b>"]])
    assert as_markdown(table) == "| a | b |\n|---|---|\n| x\\|y z |  |\n| True | <b> |"
