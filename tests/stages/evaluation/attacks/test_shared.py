"""What an attack finds does not depend on what else its process did: cells of a job share models kept in memory."""

from pathlib import Path
from typing import Any

from attacks_pack import attacked

from rapidun.base.files import read_json
from rapidun.config.attacks import Attack
from rapidun.models import warm
from rapidun.models.load import ModelLoader
from rapidun.stages.evaluation.attacks.run import run_attack

RUNS: dict[Attack, dict[str, Any]] = {
    Attack.sampling: {},
    Attack.relearning: {"rows": "clean", "k": 3},
    Attack.quantisation: {},
    Attack.prompts: {},
}


def test_order_and_kept_models_change_nothing(poisoned_dir: Path, attack_pack: Path, tmp_path: Path) -> None:
    found: dict[str, dict[Attack, Any]] = {}
    for name, keep, order in (("fresh", False, list(RUNS)), ("kept", True, list(RUNS)[::-1])):
        for attack in order:
            out = tmp_path / name / attack.name
            given = attacked(poisoned_dir, attack_pack, out, loader=ModelLoader(device="cpu", keep=keep))
            run_attack(attack, given, RUNS[attack], out=out)
            found.setdefault(name, {})[attack] = read_json(out / "attack.json")
    warm.drop()
    assert found["fresh"] == found["kept"]
