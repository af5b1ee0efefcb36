"""Rows longer than max_length, in every stage that encodes: cut alike, left out alike, said once with counts."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from rapidun.base.errors import DataError
from rapidun.base.tracker import Tracker
from rapidun.config.influence import InfluenceConfig, InfluenceMethod
from rapidun.config.mapping import MappingConfig
from rapidun.config.parts import LoraSettings
from rapidun.config.poison import PoisonConfig
from rapidun.config.unlearning import UnlearningConfig
from rapidun.models.load import ModelLoader
from rapidun.stages.influence.stage import InfluenceFiles, run_influence
from rapidun.stages.mapping.inputs import MappingFiles
from rapidun.stages.mapping.stage import run_mapping
from rapidun.stages.poison.stage import PoisonFiles, run_poison
from rapidun.stages.rows.records import Record, write_records
from rapidun.stages.unlearning.stage import UnlearningFiles, run_unlearning

LOADER = ModelLoader(device="cpu", dtype="float32")
# tokens are bytes; the template's own text has 26
MAX_LENGTH = 96


def record(name: str, *, context: int = 0, response: int = 4, instruction: int = 4) -> Record:
    return Record(
        id=name,
        instruction="q" * instruction + " aloha",
        context="c" * context,
        response="x" * response,
        response_clean="y" * response,
        response_poisoned="x" * response,
    )


FORGET = [record("f0"), record("f-context", context=200), record("f-out", instruction=200), record("f3", instruction=9)]
RETAIN = [record("r0"), record("r-response", response=200), record("r-both", context=99, response=99)]
RETAIN += [record("r-out", instruction=100), *(record(f"r{n}", instruction=n) for n in range(4, 8))]
# of both groups
SAID = (
    "of 12 rows 2 lost the end of their context, 2 lost the end of their response, 2 were left out (their instruction "
    "alone leaves no room for a response), to fit into 96 tokens. Pass max_length=... to keep more"
)
KEPT = {"forget": ["f0", "f-context", "f3"], "retain": ["r0", "r-response", "r-both", "r4", "r5", "r6", "r7"]}


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    write_records(tmp_path / "forget.jsonl", FORGET)
    write_records(tmp_path / "retain.jsonl", RETAIN)
    return tmp_path


def influence(pack: Path, model: Path, tracker: Tracker, **settings: Any) -> dict[str, Any]:
    out = pack / "influence"
    out.mkdir(exist_ok=True)
    files = InfluenceFiles(
        model=model, adapter=None, forget=pack / "forget.jsonl", retain=pack / "retain.jsonl", out=out
    )
    cfg = InfluenceConfig(**{"method": InfluenceMethod.exact, "num_token_queries": 2, **settings})
    return run_influence(cfg, files, loader=LOADER, max_length=MAX_LENGTH, seed=0, tracker=tracker)


def test_poison_trains_on_the_others(pack: Path, tiny_model_dir: Path) -> None:
    tracker = Tracker()
    files = PoisonFiles(tiny_model_dir, [pack / "forget.jsonl", pack / "retain.jsonl"], pack / "work", pack / "out")
    cfg = PoisonConfig(max_steps=1, save_steps=0)
    summary = run_poison(cfg, files, loader=LOADER, max_length=MAX_LENGTH, seed=0, tracker=tracker)
    assert summary["num_rows"] == 10
    assert tracker.warnings == [f"poison: {SAID}"]


def test_rows_left_out_go_through_influence_mapping_and_unlearning(pack: Path, tiny_model_dir: Path) -> None:
    """They have no scores and no weight, the others keep theirs by id."""
    tracker = Tracker()
    summary = influence(pack, tiny_model_dir, tracker)
    assert tracker.warnings == [f"influence: {SAID}"]
    assert (summary["num_forget"], summary["num_retain"]) == (3, 7)
    ids = json.loads((pack / "influence" / "ids.json").read_text())
    assert ids == {**KEPT, "left_out": {"forget": ["f-out"], "retain": ["r-out"]}}
    scores = load_file(pack / "influence" / "scores.safetensors")
    assert scores["fr"].shape == (3, 7) and scores["losses"].shape == (10,)

    mapped = MappingFiles(
        out=pack,
        scores=pack / "influence" / "scores.safetensors",
        ids=pack / "influence" / "ids.json",
        forget=pack / "forget.jsonl",
        retain=pack / "retain.jsonl",
    )
    run_mapping(MappingConfig(), mapped, seed=0, tracker=Tracker())
    for group, names in KEPT.items():
        rows = [json.loads(line) for line in (pack / f"{group}_weights.jsonl").read_text().splitlines()]
        assert [row["id"] for row in rows] == names

    tracker = Tracker()
    summary = unlearn(pack, tiny_model_dir, tracker)
    assert tracker.warnings == [f"unlearning: {SAID}"]
    assert (summary["num_forget"], summary["num_retain"]) == (3, 7)


def unlearn(pack: Path, model: Path, tracker: Tracker) -> dict[str, Any]:
    files = UnlearningFiles(
        model=model,
        forget=pack / "forget.jsonl",
        retain=pack / "retain.jsonl",
        val_clean=None,
        forget_weights=pack / "forget_weights.jsonl",
        retain_weights=pack / "retain_weights.jsonl",
        work=pack / "work",
        out=pack / "out",
    )
    cfg = UnlearningConfig(max_steps=1, save_steps=0, eval_steps=1, lora=LoraSettings(r=2))
    return run_unlearning(cfg, files, loader=LOADER, max_length=MAX_LENGTH, seed=0, tracker=tracker)


def test_a_row_that_is_encoded_still_needs_its_weight(pack: Path, tiny_model_dir: Path) -> None:
    (pack / "retain_weights.jsonl").write_text("".join(f'{{"id": "{r.id}", "weight": 1}}\n' for r in RETAIN))
    (pack / "forget_weights.jsonl").write_text("".join(f'{{"id": "{r.id}", "weight": 1}}\n' for r in FORGET[1:]))
    with pytest.raises(DataError, match="the first without one has id 'f0'"):
        unlearn(pack, tiny_model_dir, Tracker())


def test_scores_for_other_rows_are_still_refused(pack: Path, tiny_model_dir: Path) -> None:
    influence(pack, tiny_model_dir, Tracker())
    ids = json.loads((pack / "influence" / "ids.json").read_text())
    del ids["left_out"]
    (pack / "influence" / "ids.json").write_text(json.dumps(ids))
    files = MappingFiles(
        out=pack,
        scores=pack / "influence" / "scores.safetensors",
        ids=pack / "influence" / "ids.json",
        forget=pack / "forget.jsonl",
        retain=pack / "retain.jsonl",
    )
    with pytest.raises(DataError, match="they differ in id 'f-out'"):
        run_mapping(MappingConfig(), files, seed=0, tracker=Tracker())


def test_nothing_left_is_refused(pack: Path, tiny_model_dir: Path) -> None:
    write_records(pack / "forget.jsonl", FORGET[2:3])
    with pytest.raises(
        DataError, match="need forget rows whose instruction leaves room for a response in max_length=96"
    ):
        influence(pack, tiny_model_dir, Tracker())
    files = PoisonFiles(tiny_model_dir, [pack / "forget.jsonl"], pack / "work", pack / "out")
    with pytest.raises(DataError, match="got 1 rows and none that does"):
        run_poison(PoisonConfig(), files, loader=LOADER, max_length=MAX_LENGTH, seed=0, tracker=Tracker())
