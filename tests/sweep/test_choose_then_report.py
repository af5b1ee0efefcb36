"""Choose on validation rows under a budget, report on test rows: real cells, only their evaluation is repeated."""

import json
import shlex
from pathlib import Path

import pytest

from rapidun.cli.main import main

pytestmark = pytest.mark.slow


def test_choose_on_val_then_report_on_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    grid = ["-m", "debug=fast", "tracking=none", "resources.num_threads=1", "unlearning=ga,npo",
            "unlearning.max_steps=2,4", "evaluation.split=val", "sweep.name=grid"]  # fmt: skip
    assert main([*grid, "sweep.budget=ppl_claen < 3"]) == 2
    assert "did you mean ppl_clean?" in " ".join(capsys.readouterr().err.split())
    assert not Path("outputs").exists()
    assert main([*grid, "sweep.budget=ppl_clean <= 2 * before.ppl_clean"]) == 0
    found = json.loads(Path("outputs/sweeps/grid/summary.json").read_text())
    assert found["budget"]["cells"]["unknown"] == 0 and sum(found["budget"]["cells"].values()) == 4
    assert [one["trials"]["all"] for one in found["methods"]] == [2, 2]
    capsys.readouterr()
    assert main(["report", "outputs/sweeps/grid", "--best-overrides"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert len(lines) == 2
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "rapidun" and main(arguments) == 0
    final = json.loads(Path("outputs/sweeps/grid-test/summary.json").read_text())
    assert (final["done"], [one["trials"]["all"] for one in final["methods"]]) == (2, [1, 1])
    assert final["warnings"] == []
    best = {tuple(text for text in one["best"] if text.startswith("unlearning")) for one in found["methods"]}
    assert best == {tuple(t for t in one["settings"] if t.startswith("unlearning")) for one in final["groups"]}
    for path in Path("outputs/sweeps/grid-test").glob("*/status.json"):
        stages = json.loads(path.read_text())["stages"]
        assert {name for name, stage in stages.items() if not stage["cached"]} == {"evaluation"}
