"""Edits from files to files: what is written, read back, reported and refused; the task vector against its formula."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rapidun.base.errors import DataError, ModelError
from rapidun.base.files import write_tensors
from rapidun.base.tracker import Tracker
from rapidun.config.edits import Fisher, InfluenceStep, Repselect, TaskVector
from rapidun.config.parts import LoraSettings
from rapidun.config.training import Target
from rapidun.config.unlearning import Objective, UnlearningConfig
from rapidun.models.curvature import Curvature, curvature_tensors
from rapidun.models.load import ModelLoader
from rapidun.stages.rows.records import write_records
from rapidun.stages.unlearning.edits import stage
from rapidun.stages.unlearning.edits.catalogue import EDITS
from rapidun.stages.unlearning.edits.rows import EditFiles
from rapidun.stages.unlearning.edits.stage import run_edit
from rapidun.stages.unlearning.edits.task_model import collate_weighted, run_task_model
from rapidun.stages.weights_file import write_weights

LOADER = ModelLoader(device="cpu")
SETTINGS: dict[Objective, dict[str, Any]] = {
    Objective.fisher: {"fisher": Fisher(alpha=2.0)},
    Objective.task_vector: {
        "task_vector": TaskVector(scale=0.5), "lora": LoraSettings(r=4), "max_steps": 3, "learning_rate": 1e-2,
        "save_steps": 0,
    },
    Objective.influence_step: {"influence_step": InfluenceStep(budget=1e-6)},
    Objective.repselect: {"repselect": Repselect(budget=1e-6)},
}  # fmt: skip


def test_every_edit_is_there() -> None:
    assert set(EDITS) == {objective for objective in Objective if objective.traits.edits}
    assert all(objective.traits.section for objective in EDITS)


def write_rows(folder: Path, records: Any, *, forget: list[float] | None = None) -> None:
    for name, rows in zip(("forget", "retain"), records, strict=True):
        write_records(folder / f"{name}.jsonl", rows)
        weights = forget if name == "forget" and forget else [0.5 + index % 3 for index in range(len(rows))]
        write_weights(folder / f"{name}_weights.jsonl", weights, ids=[row.id for row in rows])


@pytest.fixture
def files(tmp_path: Path, tiny_model_dir: Path, tiny_records: Any) -> EditFiles:
    write_rows(tmp_path, tiny_records)
    names = ("forget", "retain")
    paths = {name: tmp_path / f"{name}.jsonl" for name in names}
    paths |= {f"{name}_weights": tmp_path / f"{name}_weights.jsonl" for name in names}
    return EditFiles(model=tiny_model_dir, **paths, out=tmp_path / "out", work=tmp_path / "work")


def with_needs(files: EditFiles, objective: Objective, **settings: Any) -> EditFiles:
    """What the recipe would have had made before the edit."""
    folder = files.out.with_name("needs")
    if objective is Objective.influence_step:
        name = "model.layers.1.mlp.up_proj.weight"
        (folder / "curvature").mkdir(parents=True, exist_ok=True)
        found = Curvature(torch.eye(32), torch.eye(16), torch.ones(32, 16))
        write_tensors(folder / "curvature" / "curvature.safetensors", curvature_tensors({name: found}))
        return replace(files, curvature=folder / "curvature")
    if objective is Objective.task_vector:
        out = folder / "task"
        out.mkdir(parents=True, exist_ok=True)
        cfg = UnlearningConfig(objective=objective, **{**SETTINGS[objective], **settings})
        result = run_task_model(
            cfg, replace(files, out=out), loader=LOADER, max_length=96, seed=3, tracker=Tracker()
        )  # fmt: skip
        assert result["task_steps"] == 3 and result["task_final_loss"] > 0
        return replace(files, task_model=out)
    return files


def edit(files: EditFiles, objective: Objective, *, loader: ModelLoader = LOADER, **settings: Any) -> dict[str, Any]:
    cfg = UnlearningConfig(objective=objective, **{**SETTINGS[objective], **settings})
    assert cfg.check() == []
    files.out.mkdir(parents=True, exist_ok=True)
    return run_edit(cfg, files, loader=loader, max_length=96, seed=3, tracker=Tracker())


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(next(iter(sorted(folder.glob("*.safetensors")))))


@pytest.mark.parametrize("objective", EDITS, ids=lambda one: one.name)
def test_what_is_written_can_be_loaded_and_is_the_same_again(files: EditFiles, objective: Objective) -> None:
    files = with_needs(files, objective)
    result = edit(files, objective)
    kind = "adapter" if objective is Objective.task_vector else "model"
    start = LOADER.load(files.model).model
    if kind == "adapter":
        loaded = LOADER.load(files.model, adapter=files.out / "adapter").model
    else:
        loaded = LOADER.load(files.out / "model").model
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
        after, before = ({n: p.detach() for n, p in m.named_parameters()} for m in (loaded, start))
        changed = {name: int((after[name] != before[name]).sum()) for name in before}
        total = sum(p.numel() for p in before.values())
        assert result["changed_share"] == pytest.approx(sum(changed.values()) / total)
        norm = sum(float((after[name] - before[name]).double().square().sum()) for name in before) ** 0.5
        assert result["change_norm"] == pytest.approx(norm, rel=1e-6)
    ids = torch.tensor([[65, 66, 67]])
    assert not torch.equal(loaded(input_ids=ids).logits, start(input_ids=ids).logits)
    report = json.loads((files.out / "edits.json").read_text())
    assert report["objective"] == result["objective"] == objective.name
    assert (report["num_forget"], report["num_retain"]) == (6, 18)
    assert report["changed_share"] == result["changed_share"] > 0
    layers = report["by_layer"]
    assert set(layers) <= {"model.layers.0", "model.layers.1", "model.embed_tokens", "model.norm"}
    assert sum(layer["norm"] ** 2 for layer in layers.values()) ** 0.5 == pytest.approx(result["change_norm"])
    assert result["forget_loss_after"] != result["forget_loss_before"]
    again = replace(files, out=files.out.with_name("again"))
    assert edit(again, objective) == result
    for name, value in weights_of(files.out / kind).items():
        assert torch.equal(value, weights_of(again.out / kind)[name])


def test_the_negated_adapter_is_exact(files: EditFiles) -> None:
    """theta - s (theta_F - theta), theta_F = theta + (alpha / r) B A."""
    files = with_needs(files, Objective.task_vector)
    result = edit(files, Objective.task_vector)
    assert files.task_model is not None
    tuned, negative = (weights_of(folder / "adapter") for folder in (files.task_model, files.out))
    squares = 0.0
    for name, value in tuned.items():
        if "lora_B" in name:
            assert torch.equal(negative[name], -0.5 * value)
            delta = 0.5 * (16 / 4) * value.double() @ tuned[name.replace("lora_B", "lora_A")].double()
            squares += float(delta.square().sum())
        else:
            assert torch.equal(negative[name], value)
    assert squares > 0
    assert result["change_norm"] == pytest.approx(squares**0.5, rel=1e-5)
    # the other direction: fine-tuning made the poisoned responses likelier
    assert result["forget_loss_after"] > result["forget_loss_before"]


def test_all_weights(files: EditFiles) -> None:
    files = with_needs(files, Objective.task_vector, target=Target.full)
    edit(files, Objective.task_vector, target=Target.full)
    assert files.task_model is not None
    start, tuned, after = (weights_of(path) for path in (files.model, files.task_model / "model", files.out / "model"))
    for name, value in start.items():
        wanted = value - 0.5 * (tuned[name] - value)
        torch.testing.assert_close(after[name], wanted, rtol=0, atol=1e-6)
    assert any(not torch.equal(start[name], after[name]) for name in start)


def test_the_task_model_weighs_its_rows(files: EditFiles, tiny_records: Any, make_rows: Callable[..., Any]) -> None:
    """A row of weight 0 is as if it were not in the pack."""
    batch = collate_weighted(make_rows(forget=(1.0, 0.25)).forget, pad_token_id=257)
    assert batch["weights"].tolist() == [1.0, 0.25] and batch["labels"].shape == batch["input_ids"].shape
    found = []
    for number, (records, weights) in enumerate(
        [(tiny_records, [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]), ((tiny_records[0][:2], tiny_records[1]), [1.0, 1.0])]
    ):
        write_rows(files.out.parent, records, forget=weights)
        place = replace(files, out=files.out.with_name(f"run{number}"), work=files.out.with_name(f"work{number}"))
        found.append(weights_of(with_needs(place, Objective.task_vector).task_model / "adapter"))  # type: ignore[operator]
        found[-1] = copy.deepcopy(found[-1])
        for path in sorted(files.out.with_name("needs").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_what_is_refused(files: EditFiles, tiny_records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(files.out.parent, tiny_records, forget=[0.0] * 6)
    with pytest.raises(DataError, match="need a weight above 0 for one of the 6 forget rows"):
        edit(files, Objective.fisher)
    write_rows(files.out.parent, tiny_records)
    monkeypatch.setattr(stage, "is_quantised", lambda model: True)
    with pytest.raises(
        ModelError, match="need unquantised weights to change, got 8-bit or 4-bit ones for objective=fis"
    ):
        edit(files, Objective.fisher)


def test_what_was_saved_is_read_back(files: EditFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that comes back as another one is no result."""
    saved = stage.save_model

    def astray(model: Any, tokenizer: Any, out: Path) -> None:
        with torch.no_grad():
            model.model.norm.weight.mul_(3.0)
        saved(model, tokenizer, out)

    monkeypatch.setattr(stage, "save_model", astray)
    with pytest.raises(ModelError, match="need a saved model that gives what was trained"):
        edit(files, Objective.fisher)
