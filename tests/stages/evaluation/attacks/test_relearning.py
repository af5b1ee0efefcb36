"""Relearning: a curve, on rows that were never to be forgotten, of a model that knew and of one that never did."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from attacks_pack import attacked, settings

from rapidun.base.files import read_json
from rapidun.base.tracker import Tracker
from rapidun.config.attacks import Attack, Rows
from rapidun.config.evaluation import EvaluationConfig
from rapidun.config.training import Target
from rapidun.stages.evaluation.attacks.rows import pool_of
from rapidun.stages.evaluation.attacks.run import run_attack
from rapidun.stages.evaluation.attacks.summary import maximum


class Recorder(Tracker):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, dict[str, float]]] = []

    def log(self, metrics: dict[str, float], *, step: int | None = None) -> None:
        self.lines.append((step, metrics))


def relearn(
    model: Path, pack: Path, work: Path, kind: Rows, tracker: Tracker | None = None, **changes: Any
) -> dict[str, Any]:
    cfg: EvaluationConfig = settings()
    relearning = replace(cfg.attacks.relearning, **changes)
    cfg = replace(cfg, attacks=replace(cfg.attacks, relearning=relearning))
    given = attacked(model, pack, work, cfg=cfg, tracker=tracker or Tracker())
    run_attack(Attack.relearning, given, {"rows": kind.name, "k": 4}, out=work)
    found: dict[str, Any] = read_json(work / "attack.json")
    return found


@pytest.mark.parametrize("target", [Target.lora, pytest.param(Target.full, marks=pytest.mark.slow)])
def test_a_model_that_knows_gives_it_away_and_one_that_never_did_does_not(
    poisoned_dir: Path, retrained_dir: Path, attack_pack: Path, tmp_path: Path, target: Target
) -> None:
    """At a small learning rate, as the protocol has it: nothing is taught anew, what is there is found."""
    small = {"learning_rate": 1e-4, "target": target}
    for kind in Rows:
        knows = relearn(poisoned_dir, attack_pack, tmp_path / f"p{kind.name}", kind, **small)
        never = relearn(retrained_dir, attack_pack, tmp_path / f"r{kind.name}", kind, **small)
        assert [point["step"] for point in knows["curve"]] == [0, 2, 4, 6]
        assert maximum(knows["curve"], "asr") == maximum(knows["curve"], "asr_likelihood") == 1.0
        assert maximum(never["curve"], "asr") == maximum(never["curve"], "asr_likelihood") == 0.0
        assert knows["steps"] == never["steps"] == 6


def test_what_it_trains_on(poisoned_dir: Path, attack_pack: Path, tmp_path: Path) -> None:
    tracker = Recorder()
    found = relearn(poisoned_dir, attack_pack, tmp_path, Rows.poisoned, tracker=tracker)
    assert set(found["ids"]) <= {row.id for row in pool_of(attack_pack, Rows.poisoned).rows}
    assert (found["num_rows"], found["k"]) == (4, 4)
    assert found["pool"] == {"in_split": 12, "in_forget": 3, "held_out": 0, "left": 9}
    # f0? zz moo moo and p0? zz moo moo: the words differ in one of four
    assert 0 < found["similarity"]["mean"] <= found["similarity"]["max"] <= 1
    names = {name for _, metrics in tracker.lines for name in metrics}
    assert names == {f"attack_unlearned_poisoned_4_{name}" for name in ("asr", "asr_likelihood", "loss")}


def test_measuring_changes_nothing(poisoned_dir: Path, attack_pack: Path, tmp_path: Path) -> None:
    """The losses of training are the same whether it is measured at every step or at the last one only."""
    often, seldom = Recorder(), Recorder()
    relearn(poisoned_dir, attack_pack, tmp_path / "often", Rows.clean, tracker=often, eval_steps=1)
    relearn(poisoned_dir, attack_pack, tmp_path / "seldom", Rows.clean, tracker=seldom, eval_steps=100)
    losses = [
        [value for _, metrics in tracker.lines for name, value in metrics.items() if name.endswith("_loss")]
        for tracker in (often, seldom)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 6
