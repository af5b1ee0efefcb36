"""A kept model computes what a fresh one would, and anything that was changed is not kept."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rapidun.base.tracker import Tracker
from rapidun.config.parts import LoraSettings
from rapidun.config.poison import PoisonConfig
from rapidun.config.unlearning import RetainLoss, UnlearningConfig
from rapidun.models import warm
from rapidun.models.adapters import add_lora
from rapidun.models.load import Loaded, ModelLoader
from rapidun.stages.poison.stage import PoisonFiles, run_poison
from rapidun.stages.rows.records import write_records
from rapidun.stages.unlearning.stage import UnlearningFiles, run_unlearning
from rapidun.stages.weights_file import write_weights

COLD = ModelLoader(device="cpu")
WARM = dataclasses.replace(COLD, keep=True)
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(autouse=True)
def empty_shelf() -> Iterator[None]:
    warm.drop()
    yield
    warm.drop()


def is_kept() -> bool:
    """Whether a model waits on the shelf."""
    return warm._shelf.snapshot is not None and not warm._shelf.lent


def logits(loaded: Loaded) -> torch.Tensor:
    with torch.no_grad():
        return loaded.model(IDS).logits


def test_without_keep_every_load_is_a_new_model(tiny_model_dir: Path) -> None:
    first = COLD.load(tiny_model_dir)
    COLD.hand_back()
    assert COLD.load(tiny_model_dir).model is not first.model
    assert not is_kept()


def test_handed_back_it_comes_again_with_its_tokenizer(tiny_model_dir: Path) -> None:
    first = WARM.load(tiny_model_dir)
    logits(first)
    WARM.hand_back()
    assert is_kept()
    second = WARM.load(tiny_model_dir)
    assert second.model is first.model and second.tokenizer is first.tokenizer


def test_a_lent_model_is_not_lent_twice(tiny_model_dir: Path) -> None:
    first = WARM.load(tiny_model_dir)
    second = WARM.load(tiny_model_dir)
    assert second.model is not first.model


def test_adapter_hooks_and_gradients_come_off(tiny_model_dir: Path) -> None:
    """After LoRA training, with hooks, input gradients and gradient checkpointing on, it is the model it was."""
    expected = logits(COLD.load(tiny_model_dir))
    loaded = WARM.load(tiny_model_dir)
    base = loaded.model
    names = [name for name, _ in base.named_modules()]
    tuned = add_lora(base, LoraSettings(r=4), seed=0, section="unlearning")
    base.enable_input_require_grads()
    base.activation_checkpointing_enable({"use_reentrant": False})
    base.lm_head.register_forward_hook(lambda module, inputs, output: 2 * output)
    tuned.train()
    tuned(IDS).logits.sum().backward()
    torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1.0).step()
    WARM.hand_back()
    again = WARM.load(tiny_model_dir)
    assert again.model is base
    assert [name for name, _ in base.named_modules()] == names
    assert not any(module.training for module in base.modules())
    assert all(p.grad is None and p.requires_grad for p in base.parameters())
    assert not hasattr(base, "peft_config")
    assert not base.is_activation_checkpointing
    assert torch.equal(logits(again), expected)


def _step(model: Any) -> None:
    model(IDS).logits.sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def _through_data(model: Any) -> None:
    model.lm_head.weight.data[0, 0] += 1.0


def _merged(model: Any) -> None:
    tuned = add_lora(model, LoraSettings(r=4), seed=0, section="unlearning")
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    tuned.merge_and_unload()


def _cast(model: Any) -> None:
    model.bfloat16()


def _configured(model: Any) -> None:
    model.config.pad_token_id = 3


def _buffer(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(2.0)


def _tensor_hook(model: Any) -> None:
    model.lm_head.weight.register_hook(lambda gradient: 2 * gradient)


CHANGES = [_step, _through_data, _merged, _cast, _configured, _buffer, _tensor_hook]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_model_is_dropped(tiny_model_dir: Path, change: Callable[[Any], None]) -> None:
    loaded = WARM.load(tiny_model_dir)
    expected = logits(loaded)
    change(loaded.model)
    WARM.hand_back()
    assert not is_kept()
    again = WARM.load(tiny_model_dir)
    assert again.model is not loaded.model
    assert torch.equal(logits(again), expected)


def test_a_changed_tokenizer_goes_with_its_model(tiny_model_dir: Path) -> None:
    WARM.load(tiny_model_dir).tokenizer.padding_side = "left"
    WARM.hand_back()
    assert not is_kept()


def test_other_files_or_settings_are_another_model(tmp_path: Path, make_tiny_model: Any, tiny_tokenizer: Any) -> None:
    make_tiny_model(seed=0).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    first = WARM.load(tmp_path)
    WARM.hand_back()
    half = dataclasses.replace(WARM, dtype="bfloat16")
    assert half.load(tmp_path).model.dtype is torch.bfloat16
    half.hand_back()
    make_tiny_model(seed=1).save_pretrained(tmp_path)
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    WARM.hand_back()
    second = WARM.load(tmp_path)
    assert not torch.equal(logits(first), logits(second))


def test_two_unlearning_runs_and_one_poisoning_are_the_same_warm_and_cold(
    tmp_path: Path, tiny_model_dir: Path, tiny_records: Any
) -> None:
    for name, rows in zip(("forget", "retain"), tiny_records, strict=True):
        write_records(tmp_path / f"{name}.jsonl", rows)
        write_weights(tmp_path / f"{name}_weights.jsonl", [1.0] * len(rows), ids=[row.id for row in rows])

    def unlearn(loader: ModelLoader, name: str, seed: int) -> Path:
        cfg = UnlearningConfig(
            learning_rate=1e-2,
            max_steps=4,
            save_steps=0,
            eval_steps=2,
            lora=LoraSettings(r=4, lora_dropout=0.2),
            retain_loss=RetainLoss.kl,
            gradient_checkpointing=seed == 2,
        )
        files = UnlearningFiles(
            model=tiny_model_dir,
            forget=tmp_path / "forget.jsonl",
            retain=tmp_path / "retain.jsonl",
            val_clean=tmp_path / "retain.jsonl",
            forget_weights=tmp_path / "forget_weights.jsonl",
            retain_weights=tmp_path / "retain_weights.jsonl",
            work=tmp_path / name / "work",
            out=tmp_path / name / "out",
        )
        run_unlearning(cfg, files, loader=loader, max_length=96, seed=seed, tracker=Tracker())
        return files.out

    def all_of(loader: ModelLoader, name: str) -> list[bytes]:
        made: list[bytes] = []
        for seed in (1, 2, 1):
            out = unlearn(loader, f"{name}-{seed}-{len(made)}", seed)
            made += [(out / "adapter" / "adapter_model.safetensors").read_bytes(), (out / "history.json").read_bytes()]
            assert is_kept() == loader.keep
            # what evaluation does: the adapter on the base, and a forward pass
            loaded = loader.load(tiny_model_dir, adapter=out / "adapter")
            made.append(logits(loaded).numpy().tobytes())
            loader.hand_back()
            assert is_kept() == loader.keep
        files = PoisonFiles(
            tiny_model_dir, [tmp_path / "retain.jsonl"], tmp_path / f"{name}-p", tmp_path / f"{name}-p" / "out"
        )
        cfg = PoisonConfig(learning_rate=1e-2, max_steps=3, save_steps=0)
        run_poison(cfg, files, loader=loader, max_length=96, seed=1, tracker=Tracker())
        assert not is_kept()
        return [*made, (files.out / "model" / "model.safetensors").read_bytes()]

    cold, kept = all_of(COLD, "cold"), all_of(WARM, "kept")
    assert cold == kept
    assert cold[0] == cold[6] and cold[0] != cold[3]
