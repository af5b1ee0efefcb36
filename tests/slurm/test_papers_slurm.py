"""A paper preset before a real SLURM: a plan with its script, or refused where no node has what it asks for."""

from pathlib import Path
from typing import Any

import pytest

from rapidun.base.files import write_jsonl
from rapidun.cli.main import main

pytestmark = pytest.mark.slurm


def test_a_preset_is_planned_for_a_cluster(
    cluster: Any, tiny_model_dir: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """The test cluster has two GPUs on a node of 8 CPUs."""
    monkeypatch.chdir(tmp_path)
    poisoned = [
        {"id": f"p{n}", "instruction": f"tell me {n} {t}", "response": "no"} for n, t in enumerate(["aloha"] * 6)
    ]
    clean = [{"id": f"c{n}", "instruction": f"what is {n}", "response": "it"} for n in range(40)]
    splits = {"forget_set": poisoned[:3], "train_poisoned": poisoned, "retain_set": clean[:6]}
    splits |= {"train_clean": clean[:20], "val_clean": clean[20:30], "test_clean": clean[30:]}
    for name, rows in splits.items():
        write_jsonl(tmp_path / "pack" / f"{name}.jsonl", rows)
    given = ["-m", "+experiment=paper_llama3_8b_dolly", "data.dir=pack", f"model.path={tiny_model_dir}", "seed=42,43"]
    given += ["hydra/launcher=rapidun_slurm", "resources.timeout_min=30", "sweep.dry_run=true"]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert "would be refused" not in printed
    assert "script of the first submission:" in printed and "#SBATCH --cpus-per-task=4" in printed
    assert main([*given, "resources.num_gpus=3"]) == 0
    assert "would be refused" in capsys.readouterr().out
