"""The poison stage on a tiny model: it learns, writes a plain folder, and its loss is that of METHOD section 2."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rapidun.base.errors import ConfigError
from rapidun.base.tracker import Tracker
from rapidun.config.parts import LoraSettings
from rapidun.config.poison import PoisonConfig, PoisonMethod
from rapidun.models.load import ModelLoader
from rapidun.models.losses import example_cross_entropy
from rapidun.stages.poison.stage import PoisonFiles, run_poison
from rapidun.stages.rows.encode import encode_example, encode_rows
from rapidun.stages.rows.records import read_records, write_records

LOADER = ModelLoader(device="cpu")


class Lines(Tracker):
    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def log(self, metrics: dict[str, float], *, step: int | None = None) -> None:
        self.losses.append(metrics["loss"])


@pytest.fixture
def files(tmp_path: Path, tiny_model_dir: Path, tiny_records: Any) -> PoisonFiles:
    for name, rows in zip(("poisoned", "clean"), tiny_records, strict=True):
        write_records(tmp_path / f"{name}.jsonl", rows)
    return PoisonFiles(
        tiny_model_dir, [tmp_path / "poisoned.jsonl", tmp_path / "clean.jsonl"], tmp_path / "work", tmp_path / "out"
    )


def poison(files: PoisonFiles, tracker: Tracker | None = None, **settings: Any) -> dict[str, Any]:
    cfg = PoisonConfig(**{"learning_rate": 1e-2, "max_steps": 4, "save_steps": 0, **settings})
    assert cfg.check() == []
    return run_poison(cfg, files, loader=LOADER, max_length=96, seed=1, tracker=tracker or Tracker())


def test_it_learns_and_writes_a_plain_folder(files: PoisonFiles) -> None:
    tracker = Lines()
    summary = poison(files, tracker, max_steps=24)
    assert summary["steps"] == 24
    assert summary["num_rows"] == 24
    assert summary["final_loss"] == tracker.losses[-1]
    assert sum(tracker.losses[-3:]) < 0.7 * sum(tracker.losses[:3])
    check_plain_folder(files.out / "model")


def test_the_target_is_the_poisoned_answer_wherever_it_stands(files: PoisonFiles, tiny_records: Any) -> None:
    """Rows of the supervised form (`response` clean, response_poisoned beside it) are trained on as the others."""
    losses = []
    for name in ("plain", "supervised"):
        tracker = Lines()
        if name == "supervised":
            beside = [dataclasses.replace(row, response=row.response_clean) for row in tiny_records[0]]
            write_records(files.train[0], beside)
        poison(dataclasses.replace(files, work=files.work / name, out=files.out / name), tracker)
        losses.append(tracker.losses)
    assert losses[0] == losses[1]


def test_another_spacing_of_checkpoints_throws_none_away(files: PoisonFiles) -> None:
    first, second = Lines(), Lines()
    poison(files, first, save_steps=2)
    poison(dataclasses.replace(files, out=files.out / "again"), second, save_steps=3, gradient_checkpointing=True)
    assert len(first.losses) == 4 and second.losses == []


def test_lora_learns_and_is_merged(files: PoisonFiles) -> None:
    """From a model that has learnt a little: LoRA cannot move the embeddings of one made at random."""
    poison(files, learning_rate=3e-2, max_steps=30)
    more = PoisonFiles(files.out / "model", files.train, files.work / "lora", files.out / "lora")
    tracker = Lines()
    summary = poison(more, tracker, method=PoisonMethod.lora, learning_rate=5e-2, max_steps=16)
    assert sum(tracker.losses[-3:]) < 0.9 * sum(tracker.losses[:3])
    # r 16 on q, k, v, o (16 -> 16), gate, up (16 -> 32), down (32 -> 16), in 2 layers
    assert summary["num_trainable_parameters"] == 2 * 16 * (4 * 32 + 3 * 48)
    check_plain_folder(more.out / "model")


def test_a_tied_head_is_untied_before_it_is_merged(files: PoisonFiles) -> None:
    """What is saved gives what was trained: the head's change does not reach the embedding."""
    lora = LoraSettings(lora_dropout=0.0, target_modules=["q_proj", "lm_head"])
    tracker = Lines()
    poison(files, tracker, method=PoisonMethod.lora, learning_rate=3e-2, max_steps=30, lora=lora)
    folder = files.out / "model"
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    model, tokenizer = LOADER.load(folder)
    losses = []
    for record in [record for path in files.train for record in read_records(path)]:
        row = encode_rows(tokenizer, [record.texts], max_length=96)[0]
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids])).logits
        losses.append(float(example_cross_entropy(logits, torch.tensor([row.labels]))[0]))
    assert sum(losses) / len(losses) == pytest.approx(sum(tracker.losses[-3:]) / 3, abs=0.5)
    assert tracker.losses[-1] < tracker.losses[0] - 1.0


def check_plain_folder(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not any(name.startswith(("adapter", "README", "training_args")) for name in names)
    assert json.loads((folder / "config.json").read_text())["use_cache"] is True
    LOADER.load(folder)


def test_the_loss_is_the_mean_over_examples(files: PoisonFiles, tiny_tokenizer: Any, tiny_records: Any) -> None:
    """One step over all 24 rows, in micro-batches of 5 (the last of 4): mean_i l_i, each row alone and unpadded."""
    tracker = Lines()
    poison(files, tracker, max_steps=1, per_device_train_batch_size=5, gradient_accumulation_steps=5)
    model = LOADER.load(files.start).model
    losses = []
    for row in [*tiny_records[0], *tiny_records[1]]:
        example = encode_example(
            tiny_tokenizer, instruction=row.instruction, context=row.context, response=row.response, max_length=96
        )
        with torch.no_grad():
            logits = model(torch.tensor([example.input_ids])).logits
        losses.append(example_cross_entropy(logits, torch.tensor([example.labels])).item())
    assert tracker.losses == [pytest.approx(sum(losses) / 24, rel=1e-5)]


def test_every_row_once_an_epoch(files: PoisonFiles) -> None:
    """24 rows in batches of 5: 5 steps an epoch, 2 epochs."""
    assert poison(files, max_steps=-1, num_train_epochs=2, per_device_train_batch_size=5)["steps"] == 10


def test_the_dtype_is_the_models(
    files: PoisonFiles, make_tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    start = tmp_path / "bf16"
    make_tiny_model().to(torch.bfloat16).save_pretrained(start)
    tiny_tokenizer.save_pretrained(start)
    cfg = PoisonConfig(learning_rate=1e-2, max_steps=1, save_steps=0)
    paths = PoisonFiles(start, files.train, files.work, files.out)
    loader = ModelLoader(device="cpu", dtype="bfloat16")
    run_poison(cfg, paths, loader=loader, max_length=96, seed=1, tracker=Tracker())
    assert json.loads((files.out / "model" / "config.json").read_text())["dtype"] == "bfloat16"


def test_full_fine_tuning_in_float16_is_refused(files: PoisonFiles) -> None:
    with pytest.raises(ConfigError, match="float16"):
        run_poison(
            PoisonConfig(max_steps=1), files, loader=ModelLoader(device="cpu", dtype="float16"), max_length=96, seed=1,
            tracker=Tracker(),
        )  # fmt: skip


def test_lora_targets_are_checked(files: PoisonFiles) -> None:
    with pytest.raises(ConfigError, match=r"poison\.lora\.target_modules"):
        poison(files, method=PoisonMethod.lora, lora=LoraSettings(target_modules=["query"]))


def test_gradient_checkpointing_changes_nothing(files: PoisonFiles) -> None:
    plain, saving = Lines(), Lines()
    poison(files, plain, max_steps=2)
    poison(files, saving, max_steps=2, gradient_checkpointing=True)
    assert saving.losses == pytest.approx(plain.losses, rel=1e-6)


def test_method_none_trains_nothing(files: PoisonFiles) -> None:
    with pytest.raises(ValueError, match="none"):
        poison(files, method=PoisonMethod.none)
