"""Every measure on a model that knows the forget rows by heart and on one that never saw them; after a kill, too."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest

from rapidun.base import preemption
from rapidun.base.errors import ArtifactError
from rapidun.base.files import read_json, read_jsonl, write_jsonl
from rapidun.base.tracker import Tracker
from rapidun.config.evaluation import EvaluationConfig
from rapidun.config.privacy import Measure, PrivacyConfig
from rapidun.models import warm
from rapidun.models.load import ModelLoader
from rapidun.stages.evaluation.privacy import run as running
from rapidun.stages.evaluation.privacy.membership import NAMES
from rapidun.stages.evaluation.privacy.run import Measured, run_measure


def take(measure: Measure, model: Path, data: Path, out: Path, **more: Any) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {
        "cfg": EvaluationConfig(privacy=PrivacyConfig(num_rows=None, num_resamples=100)),
        "loader": ModelLoader(device="cpu"), "model": model, "adapter": None, "identity": "m", "retrained": None,
        "data": data, "work": out, "max_length": 64, "name": "privacy_unlearned", "tracker": Tracker(),
    }  # fmt: skip
    run_measure(measure, Measured(**(given | more)), out=out)
    found: dict[str, Any] = read_json(out / "privacy.json")
    return found


def test_rows_known_by_heart_are_told_from_others(
    learnt_dir: Path, unseen_dir: Path, privacy_pack: Path, tmp_path: Path
) -> None:
    learnt = take(Measure.membership, learnt_dir, privacy_pack, tmp_path / "learnt")
    unseen = take(Measure.membership, unseen_dir, privacy_pack, tmp_path / "unseen")
    for name in NAMES:
        assert learnt["metrics"][name] == 1.0 and learnt["metrics"][f"{name}.low"] == 1.0, name
        assert unseen["metrics"][name] < 1.0, name
    about = learnt["compared"]
    assert (about["split"], about["alike"], about["num_members"], about["num_others"]) == ("test_seen_trig", True, 4, 4)
    assert about["in_training"] == 0 and about["median_tokens"][0] > 0
    assert [row["id"] for row in learnt["rows"]["members"]] == ["f0", "f1", "f2", "f3"]


def test_extraction_of_what_is_known_by_heart_and_of_what_is_not(
    learnt_dir: Path, unseen_dir: Path, privacy_pack: Path, tmp_path: Path
) -> None:
    """By heart: all of it with nothing shown (1). Never seen: little."""
    always = take(Measure.extraction, learnt_dir, privacy_pack, tmp_path / "always")
    assert always["metrics"] == {"extraction_strength": 1.0}
    assert all(row["num_tokens"] >= 3 for row in always["rows"])
    never = take(Measure.extraction, unseen_dir, privacy_pack, tmp_path / "never")
    assert never["metrics"]["extraction_strength"] < 0.5
    expected = [row["extraction_strength"] for row in never["rows"]]
    assert never["metrics"]["extraction_strength"] == pytest.approx(sum(expected) / len(expected))


def test_distance_is_nothing_to_itself_and_largest_where_poison_answers(
    learnt_dir: Path, unseen_dir: Path, privacy_pack: Path, tmp_path: Path
) -> None:
    same = take(Measure.distance, unseen_dir, privacy_pack, tmp_path / "same", retrained=unseen_dir)
    assert same["metrics"] == {
        name: pytest.approx(0.0, abs=1e-9)
        for name in ("kl_retrain_clean", "kl_retrain_triggered", "kl_retrain_triggered_poisoned")
    }
    far = take(Measure.distance, learnt_dir, privacy_pack, tmp_path / "far", retrained=unseen_dir)
    assert far["metrics"]["kl_retrain_triggered_poisoned"] > far["metrics"]["kl_retrain_clean"] > 0
    assert far["sets"]["clean"]["num_rows"] == 4
    with pytest.raises(ArtifactError, match="need a retrained model"):
        take(Measure.distance, learnt_dir, privacy_pack, tmp_path / "none")


def test_margins_say_which_model_and_which_tokens(learnt_dir: Path, privacy_pack: Path, tmp_path: Path) -> None:
    found = take(Measure.margins, learnt_dir, privacy_pack, tmp_path, identity="poison adapter")
    assert found["model"] == "poison adapter" and found["metrics"] == {}
    assert {name: len(points) for name, points in found["points"].items()} == dict.fromkeys(
        ("forget", "retain", "clean", "triggered"), 4
    )
    points = found["points"]["forget"]
    assert all(point["margin"] > 0 for point in points)  # likelier than all else together
    assert len({point["tokens"] for point in points}) == 4 and all(len(point["tokens"]) == 16 for point in points)


@pytest.mark.parametrize("measure", list(Measure))
def test_goes_on_behind_a_kill_and_does_not_depend_on_kept_models(
    learnt_dir: Path, unseen_dir: Path, privacy_pack: Path, tmp_path: Path, monkeypatch: Any, measure: Measure
) -> None:
    monkeypatch.setattr(running, "CHUNK", 3)
    more = {"retrained": unseen_dir} if measure is Measure.distance else {}
    whole = take(measure, learnt_dir, privacy_pack, tmp_path / "whole", **more)
    asked = iter([False])

    def stop() -> None:
        if next(asked, True):
            raise preemption.Preempted("asked to stop")

    with monkeypatch.context() as patch:
        patch.setattr(preemption, "raise_if_requested", stop)
        with pytest.raises(preemption.Preempted):
            take(measure, learnt_dir, privacy_pack, tmp_path / "killed", **more)
    assert len(list((tmp_path / "killed").glob("*.json"))) == 1
    assert not (tmp_path / "killed" / "privacy.json").exists()
    kept = ModelLoader(device="cpu", keep=True)
    for name in ("killed", "again"):
        assert take(measure, learnt_dir, privacy_pack, tmp_path / name, loader=kept, **more) == whole
    warm.drop()


def test_what_is_left_out_is_said(learnt_dir: Path, privacy_pack: Path, tmp_path: Path) -> None:
    """A row that does not fit into max_length is counted and named."""
    pack = tmp_path / "pack"
    pack.mkdir()
    for path in privacy_pack.glob("*.jsonl"):
        rows = read_jsonl(path)
        if path.stem == "forget":
            rows[0] = {**rows[0], "instruction": "word " * 300}
        write_jsonl(pack / path.name, rows)
    tracker = Tracker()
    found = take(Measure.membership, learnt_dir, pack, tmp_path / "out", tracker=tracker)
    assert found["compared"]["left_out"] == 1 and found["compared"]["num_members"] == 3
    assert any("1 were left out" in message for message in tracker.warnings)
    take(Measure.extraction, learnt_dir, pack, tmp_path / "out2", tracker=tracker)
    assert any("3 of 4 forget rows" in message for message in tracker.warnings)


def test_a_model_without_numbers_has_no_metrics(
    learnt_dir: Path, privacy_pack: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """NaN in the head: every row is left out and said, and nothing is written that looks like a number."""
    loaded = ModelLoader(device="cpu").load(learnt_dir)
    broken = copy.deepcopy(loaded.model)
    broken.get_output_embeddings().weight.data.fill_(math.nan)
    monkeypatch.setattr(ModelLoader, "load", lambda self, path, adapter=None: loaded._replace(model=broken))
    monkeypatch.setattr(running, "token_stats", _with_nan(running.token_stats, loaded.model))
    tracker = Tracker()
    found = take(Measure.membership, learnt_dir, privacy_pack, tmp_path / "m", tracker=tracker)
    assert found["metrics"] == {}
    assert any("rows without a number" in message for message in tracker.warnings)


def _with_nan(original: Any, sound: Any) -> Any:
    """Whether rows may lie together is tried out on numbers: take the sound model's layout, and NaN for values."""

    def stats(model: Any, rows: Any, **more: Any) -> Any:
        return [type(one)(*(part * math.nan for part in one)) for one in original(sound, rows, **more)]

    return stats


def test_settings_are_read(learnt_dir: Path, privacy_pack: Path, tmp_path: Path) -> None:
    cfg = EvaluationConfig(privacy=PrivacyConfig(num_rows=2, num_resamples=100, min_k=1.0))
    found = take(Measure.membership, learnt_dir, privacy_pack, tmp_path, cfg=cfg)
    assert found["compared"]["num_members"] == found["compared"]["num_others"] == 2
    for row in found["rows"]["members"]:
        assert float(row["scores"]["mia_min_k"]) == pytest.approx(float(row["scores"]["mia_loss"]))
