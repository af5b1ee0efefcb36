"""Quantised models: without rounding the attack measures what the evaluation does."""

from pathlib import Path
from typing import Any

import pytest
from attacks_pack import attacked

from rapidun.base.files import read_json
from rapidun.base.tracker import Tracker
from rapidun.config.attacks import Attack, Format
from rapidun.stages.evaluation.attacks import quantisation
from rapidun.stages.evaluation.attacks.quantisation import attack_by_quantisation
from rapidun.stages.evaluation.attacks.run import run_attack


def test_of_a_poisoned_model(poisoned_dir: Path, attack_pack: Path, tmp_path: Path) -> None:
    run_attack(Attack.quantisation, attacked(poisoned_dir, attack_pack, tmp_path), {}, out=tmp_path)
    metrics = read_json(tmp_path / "attack.json")["metrics"]
    assert metrics["asr_unquantised"] == metrics["asr_unquantised_likelihood"] == 1.0
    # eight bits change little; without an adapter there is one way only
    assert metrics["asr_int8"] > 0.8 and 0 <= metrics["asr_nf4"] <= 1
    assert not any("merged" in name for name in metrics)
    assert metrics["asr_nf4_ratio"] == metrics["asr_nf4"]


def test_a_quantisation_that_rounds_nothing_changes_nothing(
    poisoned_dir: Path, attack_adapter: Path, attack_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways, merged and over the base, then measure the model as it is."""
    monkeypatch.setattr(quantisation, "QUANTISATIONS", {Format.nf4: "none", Format.int8: "none"})
    given = attacked(poisoned_dir, attack_pack, tmp_path, adapter=attack_adapter)
    run_attack(Attack.quantisation, given, {}, out=tmp_path)
    metrics = read_json(tmp_path / "attack.json")["metrics"]
    for ending in ("", "_likelihood"):
        for name in ("nf4", "int8"):
            of_ways = [metrics[f"asr_{name}{ending}{way}"] for way in ("", ".merged", ".unmerged")]
            assert of_ways == [metrics[f"asr_unquantised{ending}"]] * 3
    assert metrics.get("asr_nf4_ratio", 1.0) == 1.0


class Loads(Tracker):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.notes.append(note)


def test_both_ways_are_measured_and_the_larger_is_the_figure(
    poisoned_dir: Path, attack_adapter: Path, attack_pack: Path, tmp_path: Path
) -> None:
    tracker = Loads()
    given = attacked(poisoned_dir, attack_pack, tmp_path, adapter=attack_adapter, tracker=tracker)
    found: dict[str, Any] = attack_by_quantisation(
        given.asker, given.asked, loader=given.loader, model=poisoned_dir, adapter=attack_adapter, formats=[Format.nf4],
        work=tmp_path, tracker=tracker,
    )  # fmt: skip
    assert tracker.notes == ["unquantised, unmerged", "nf4, merged", "nf4, unmerged", "quantisation"]
    metrics = found["metrics"]
    assert metrics["asr_nf4"] == max(metrics["asr_nf4.merged"], metrics["asr_nf4.unmerged"])
