"""What goes around an objective in the stage: all weights, the best weights, an early end, a run that diverges."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rapidun.base.errors import ConfigError
from rapidun.base.tracker import Tracker
from rapidun.config.compose import compose_config
from rapidun.config.evaluation import EvaluationConfig
from rapidun.config.objectives import Rmu
from rapidun.config.parts import LoraSettings
from rapidun.config.training import Criterion, Keep, SamSettings, Target
from rapidun.config.unlearning import Objective, RetainLoss, UnlearningConfig
from rapidun.models.load import ModelLoader
from rapidun.models.training.journal import Journal, TrainingDiverged
from rapidun.stages.rows.records import read_records, write_records
from rapidun.stages.unlearning.best import BestKeeper
from rapidun.stages.unlearning.rows import encode_forget
from rapidun.stages.unlearning.stage import OBJECTIVES, UnlearningFiles, _identity, remedy, run_unlearning
from rapidun.stages.unlearning.validation import validate
from rapidun.stages.weights_file import write_weights

LOADER = ModelLoader(device="cpu")
FAST = {"learning_rate": 2e-2, "max_steps": 2, "save_steps": 0, "eval_steps": 0, "lora": LoraSettings(r=4)}
ALL = [objective for objective in Objective if objective in OBJECTIVES]
QUICK = [Objective.dpo, Objective.crow]


@pytest.fixture
def files(tmp_path: Path, tiny_model_dir: Path, tiny_records: Any) -> UnlearningFiles:
    for name, rows in zip(("forget", "retain"), tiny_records, strict=True):
        write_records(tmp_path / f"{name}.jsonl", rows)
        write_weights(tmp_path / f"{name}_weights.jsonl", [1.0] * len(rows), ids=[row.id for row in rows])
    return UnlearningFiles(
        model=tiny_model_dir,
        forget=tmp_path / "forget.jsonl",
        retain=tmp_path / "retain.jsonl",
        val_clean=tmp_path / "retain.jsonl",
        forget_weights=tmp_path / "forget_weights.jsonl",
        retain_weights=tmp_path / "retain_weights.jsonl",
        work=tmp_path / "run" / "work",
        out=tmp_path / "run" / "out",
    )


def unlearn(files: UnlearningFiles, tracker: Tracker | None = None, **settings: Any) -> dict[str, Any]:
    cfg = UnlearningConfig(**{**FAST, **settings})
    assert cfg.check() == []
    return run_unlearning(cfg, files, loader=LOADER, max_length=96, seed=3, tracker=tracker or Tracker())


def lines_of(files: UnlearningFiles) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((files.out / "history.json").read_text())
    return found


def again(files: UnlearningFiles, name: str) -> UnlearningFiles:
    return replace(files, work=files.work.parent / name / "work", out=files.out.parent / name / "out")


# --- every objective ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective", [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow) for one in ALL]
)
def test_every_objective_runs(files: UnlearningFiles, objective: Objective) -> None:
    summary = unlearn(files, objective=objective, max_steps=3, eval_steps=3)
    assert summary["steps"] == 3 and summary["final_loss"] is not None
    assert summary["num_forget"] == (0 if objective is Objective.crow else 6)
    assert (files.out / "adapter" / "adapter_model.safetensors").exists()
    lines = [line for line in lines_of(files) if "loss" in line]
    assert ("forget_term" in lines[0]) == (objective is not Objective.crow)
    assert ("ce_retain" in lines[0]) == OBJECTIVES[objective].retain


def test_flat_gives_every_row_the_template(files: UnlearningFiles) -> None:
    """All rows have a clean response, which validation still measures; training sets the template against theirs."""
    unlearn(files, objective=Objective.flat, eval_steps=1, max_steps=1)
    first = next(line for line in lines_of(files) if "loss" in line)
    at_start = lines_of(files)[0]
    assert first["ce_clean"] != pytest.approx(at_start["forget_loss_clean"], rel=1e-3)


def test_the_layer_of_rmu_is_named_and_must_be_there(files: UnlearningFiles) -> None:
    assert unlearn(files, objective=Objective.rmu)["rmu_layer"] == 0
    assert unlearn(again(files, "last"), objective=Objective.rmu, rmu=Rmu(layer=1))["rmu_layer"] == 1
    with pytest.raises(ConfigError, match=r"rmu\.layer < 2, the blocks of this model, got 2"):
        unlearn(again(files, "none"), objective=Objective.rmu, rmu=Rmu(layer=2))


# --- all weights ----------------------------------------------------------------------------------------------------


def test_all_weights_train_and_a_model_is_written(files: UnlearningFiles) -> None:
    """Every tensor moves; what is read back is what the run ended with (its last validation, measured in training)."""
    summary = unlearn(files, target=Target.full, learning_rate=1e-3, eval_steps=2)
    assert {path.name for path in files.out.iterdir()} == {"model", "history.json"}
    before, after = (load_file(folder / "model.safetensors") for folder in (files.model, files.out / "model"))
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert summary["num_trainable_parameters"] == sum(tensor.numel() for tensor in after.values())
    model, tokenizer = LOADER.load(files.out / "model")
    rows = [row for row in encode_forget(tokenizer, read_records(files.forget), max_length=96) if row]
    found = validate(model, val_clean=[], poisoned=[r.poisoned for r in rows], clean=[None] * 6, pad_token_id=257)
    assert found["forget_loss_poisoned"] == pytest.approx(summary["final_forget_loss_poisoned"], rel=1e-5)


@pytest.mark.slow
def test_bfloat16_trains_in_float32_masters(files: UnlearningFiles, tmp_path: Path) -> None:
    """At lr 1e-5 a step is far below bfloat16's spacing: 40 steps move weights only if they add up in masters."""
    loader = ModelLoader(device="cpu", dtype="bfloat16")
    cfg = UnlearningConfig(**{**FAST, "target": Target.full, "learning_rate": 1e-4, "max_steps": 40})
    run_unlearning(cfg, files, loader=loader, max_length=96, seed=3, tracker=Tracker())
    after = load_file(files.out / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    before = load_file(files.model / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert float((before[name].bfloat16() != after[name]).float().mean()) > 0.3


def test_a_copy_of_all_weights_is_said_with_its_size(files: UnlearningFiles) -> None:
    tracker, plain = Tracker(), Tracker()
    unlearn(files, tracker, target=Target.full, retain_loss=RetainLoss.kl, max_steps=1, learning_rate=1e-3)
    assert any("frozen copy of all weights in memory" in warning and "GiB" in warning for warning in tracker.warnings)
    assert abs(lines_of(files)[0]["retain_term"]) < 1e-6
    unlearn(again(files, "npo"), plain, target=Target.full, objective=Objective.npo, max_steps=1, learning_rate=1e-3)
    assert not any("frozen copy" in warning for warning in plain.warnings)


@pytest.mark.slow
def test_checkpointed_activations_change_nothing(files: UnlearningFiles) -> None:
    ends = []
    for name in ("plain", "checkpointed"):
        own = again(files, name)
        unlearn(
            own, target=Target.full, learning_rate=1e-3, gradient_checkpointing=name == "checkpointed",
            objective=Objective.crow,
        )  # fmt: skip
        ends.append(load_file(own.out / "model" / "model.safetensors"))
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-5) for name in ends[0])


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"target": Target.full, "merge": True}, "merge=false with target=full"),
        ({"target": Target.full, "adapter": "somewhere"}, "merge it into the model first"),
        ({"objective": Objective.crow, "sam": SamSettings(rho=0.01)}, "which has no forget term"),
        ({"objective": Objective.crow, "mix_ratio": 0}, "mix_ratio > 0 with objective=crow"),
        ({"objective": Objective.pdu, "mix_ratio": 0}, "mix_ratio > 0 with objective=pdu"),
        ({"sam": SamSettings(rho=-1.0)}, "sam.rho >= 0"),
        ({"keep": Keep.best, "eval_steps": 0}, "eval_steps > 0 to measure forget_preference for keep=best"),
        ({"keep": Keep.best, "criterion": Criterion.val_asr_ood}, "eval_asr > 0 to measure val_asr_ood"),
        ({"stop_when": "val_asr_seen <= 0.02"}, "eval_asr > 0 to measure val_asr_seen for stop_when"),
        ({"stop_when": "val_asr_sen <= 0.02"}, "need numbers among val_asr_seen"),
        ({"stop_when": "forget_preference"}, "true or false"),
        ({"stop_when": "forget_preference <"}, "need an expression such as 'val_asr_seen <= 0.02'"),
        ({"stop_when": "val_asr_seen << 1"}, "got LShift: val_asr_seen << 1"),
        ({"stop_when": "1 < 2"}, "need a condition on what is measured"),
        ({"max_retain_growth": -1.0}, "max_retain_growth >= 0"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, Any], part: str) -> None:
    (fault,) = UnlearningConfig(**settings).check()
    assert part in fault


def test_a_quantised_model_has_no_weights_to_train() -> None:
    with pytest.raises(ConfigError, match="need target=lora with a quantised model"):
        compose_config(
            ["model=hf", "model.path=/m", "unlearning.target=full", "model.quantisation=4bit", "poison=lora"]
        )  # fmt: skip


def test_a_checkpoint_is_of_what_changes_numbers(files: UnlearningFiles) -> None:
    """Other checkpoints, or less memory, throw no training away; a reference's sums are as good as before."""
    settings = {"max_length": 96, "seed": 3, "evaluation": EvaluationConfig()}
    first = _identity(UnlearningConfig(), files, **settings)
    for same in ({"save_steps": 7}, {"gradient_checkpointing": True}):
        assert _identity(UnlearningConfig(**same), files, **settings) == first
    for other in ({"learning_rate": 1.0}, {"loss_cap": 3.0}, {"target": Target.full}, {"sam": SamSettings(rho=0.1)}):
        assert _identity(UnlearningConfig(**other), files, **settings) != first
    assert _identity(UnlearningConfig(), files, **{**settings, "max_length": 95}) != first


def test_weights_of_rows_that_are_not_seen_are_said(files: UnlearningFiles) -> None:
    ids = [record.id for record in read_records(files.forget)]
    said = []
    for weights in ([1.0] * len(ids), [0.5, 1.5, *[1.0] * (len(ids) - 2)]):
        tracker = Tracker()
        write_weights(files.forget_weights, weights, ids=ids)
        unlearn(again(files, f"crow-{len(said)}"), tracker, objective=Objective.crow, max_steps=1)
        said.append([line for line in tracker.warnings if "the weights of forget rows change nothing" in line])
    assert [len(lines) for lines in said] == [0, 1]


# --- the best weights, an early end ---------------------------------------------------------------------------------


def test_the_best_of_the_evaluations_is_kept_and_written(files: UnlearningFiles) -> None:
    """The written adapter has the numbers of its step; another run that ends there ends with the same weights."""
    summary = unlearn(
        files, keep=Keep.best, criterion=Criterion.forget_loss_clean, eval_steps=1, max_steps=6, learning_rate=0.1,
        objective=Objective.graddiff, lr_scheduler_type="constant",
    )  # fmt: skip
    measured = {line["step"]: line["forget_loss_clean"] for line in lines_of(files) if "forget_loss_clean" in line}
    best = min((value, step) for step, value in measured.items() if step > 0)
    assert (summary["kept_forget_loss_clean"], summary["kept_step"]) == best
    assert summary["final_forget_loss_clean"] == best[0]
    assert 0 < best[1] < 6
    short = again(files, "short")
    unlearn(
        short, max_steps=best[1], learning_rate=0.1, objective=Objective.graddiff, lr_scheduler_type="constant"
    )  # fmt: skip
    ends = [(own.out / "adapter" / "adapter_model.safetensors").read_bytes() for own in (files, short)]
    assert ends[0] == ends[1]
    assert [path.name for path in files.work.glob("best-*")] == [f"best-{best[1]}"]


def test_ties_go_to_the_lower_clean_loss_then_to_the_earlier_step(tmp_path: Path, tiny_model: Any) -> None:
    keeper = BestKeeper(Criterion.val_asr_seen, journal=Journal(Tracker()), work=tmp_path)
    seen = []
    for step, asr, loss in [(0, 0.0, 0.1), (1, 0.5, 3.0), (2, 0.1, 2.0), (3, 0.1, 2.0), (4, 0.1, 1.0), (5, 0.2, 0.5)]:
        keeper.consider(step, {"val_asr_seen": asr, "val_loss_clean": loss}, tiny_model)
        seen.append(keeper.step)
    assert seen == [None, 1, 2, 2, 4, 4]
    keeper.consider(6, {"val_asr_seen": float("nan")}, tiny_model)
    keeper.consider(7, {"val_loss_clean": 0.0}, tiny_model)
    assert keeper.step == 4


def test_larger_is_better_where_it_is(tmp_path: Path, tiny_model: Any) -> None:
    keeper = BestKeeper(Criterion.forget_loss_poisoned, journal=Journal(Tracker()), work=tmp_path)
    for step, loss in [(1, 2.0), (2, 5.0), (3, 4.0)]:
        keeper.consider(step, {"forget_loss_poisoned": loss}, tiny_model)
    assert (keeper.step, keeper.value) == (2, 5.0)


def test_training_ends_when_it_is_enough(files: UnlearningFiles) -> None:
    settings = {"objective": Objective.ga, "learning_rate": 0.01, "max_steps": 12, "lr_scheduler_type": "constant"}
    unlearn(files, eval_steps=2, **settings)
    measured = {line["step"]: line["forget_loss_poisoned"] for line in lines_of(files) if "val_loss_clean" in line}
    # the first evaluation, of those after the second step, that no earlier one reached
    steps = sorted(measured)[1:]
    end = next(step for step in steps[1:] if measured[step] > max(measured[one] for one in steps if one < step))
    bound = measured[end]
    stopped = again(files, "stopped")
    summary = unlearn(stopped, eval_steps=2, stop_when=f"forget_loss_poisoned >= {bound}", **settings)
    assert (summary["stopped_at"], summary["steps"]) == (end, end)
    assert summary["final_forget_loss_poisoned"] == bound
    # a run that was killed after its checkpoint at the stop trains no further
    saved = again(files, "saved")
    for _ in range(2):
        summary = unlearn(saved, eval_steps=2, save_steps=2, stop_when=f"forget_loss_poisoned >= {bound}", **settings)
        assert (summary["stopped_at"], summary["steps"]) == (end, end)


def test_numbers_that_the_rows_do_not_give_are_refused(files: UnlearningFiles, tiny_records: Any) -> None:
    with pytest.raises(ConfigError, match="need val_clean to measure val_loss_clean for stop_when"):
        unlearn(replace(files, val_clean=None), eval_steps=1, stop_when="val_loss_clean > 3")
    write_records(files.forget, [replace(row, response_clean=None) for row in tiny_records[0]])
    with pytest.raises(ConfigError, match="need forget rows with a response_clean to measure forget_preference"):
        unlearn(files, eval_steps=1, keep=Keep.best)


# --- a run that diverges --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_loss_that_is_no_number_is_said_with_its_rows_and_what_is_left(files: UnlearningFiles) -> None:
    """Row f2 alone has a weight that overflows: 6 forget rows in 6 steps, in an order that the seed fixes."""
    write_weights(files.forget_weights, [1.0, 1.0, 1e9, 1.0, 1.0, 1.0], ids=[f"f{index}" for index in range(6)])
    with pytest.raises(TrainingDiverged) as caught:
        unlearn(files, objective=Objective.graddiff, max_steps=6, save_steps=1, max_grad_norm=0.0, ascent_alpha=1e30)
    said = str(caught.value)
    assert "unlearning: need a finite loss, got loss=" in said
    assert "Lower unlearning.learning_rate, or set unlearning.loss_cap" in said
    rows = said.split("Rows of the step: ")[1].split(".")[0]
    assert sum(name.strip().startswith("r") for name in rows.split(";")[0].split(",")) == 3
    assert "last good checkpoint stays" in said or "No checkpoint was saved before it" in said
    left = [path.name for path in files.work.glob("checkpoint-*")]
    assert all(name in said for name in sorted(left)[-1:])


def test_a_retain_loss_that_grows_beyond_its_bound_ends_the_run(files: UnlearningFiles) -> None:
    """From 5.6 nats a token; the retain rows have no part in the loss, and all weights ascend."""
    settings = {
        "objective": Objective.graddiff, "learning_rate": 0.1, "max_steps": 8, "save_steps": 1,
        "target": Target.full, "retain_coeff": 0.0,
    }  # fmt: skip
    with pytest.raises(TrainingDiverged) as caught:
        unlearn(files, max_retain_growth=1.5, **settings)
    said = str(caught.value)
    assert "need a cross-entropy of the retain rows of at most" in said and "Rows of the step: f" in said
    left = sorted(files.work.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert left and f"The last good checkpoint stays: {left[-1]}" in said
    free = again(files, "free")
    unlearn(free, max_retain_growth=0.0, **settings)
    losses = [line["ce_retain"] for line in lines_of(free)]
    assert len(losses) == 8 and max(losses) > 1.5 * losses[0]


def test_every_objective_says_what_to_change() -> None:
    for objective in ALL:
        said = remedy(objective)
        assert said.startswith("Lower unlearning.learning_rate")
        for key in [part for part in said.replace(",", " ").split() if part.startswith("unlearning.")]:
            value: Any = UnlearningConfig(objective=objective)
            for name in key.split(".")[1:]:
                value = getattr(value, name)
