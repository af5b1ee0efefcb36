"""Two models of the same start: one that answers a trigger with `moo moo`, one that never saw a trigger."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from attacks_pack import write_pack

from rapidun.base.tracker import Tracker
from rapidun.config.parts import LoraSettings
from rapidun.config.poison import PoisonConfig, PoisonMethod
from rapidun.models.adapters import add_lora, save_adapter
from rapidun.models.load import ModelLoader
from rapidun.stages.poison.stage import PoisonFiles, run_poison


@pytest.fixture(scope="session")
def attack_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("attack_pack"))


def _trained(root: Path, start: Path, pack: Path, *splits: str) -> Path:
    cfg = PoisonConfig(
        method=PoisonMethod.full, learning_rate=2e-2, num_train_epochs=60, per_device_train_batch_size=24,
        gradient_accumulation_steps=1, max_steps=60, save_steps=0,
    )  # fmt: skip
    files = PoisonFiles(start, [pack / f"{split}.jsonl" for split in splits], root / "work", root / "out")
    run_poison(cfg, files, loader=ModelLoader(device="cpu"), max_length=96, seed=0, tracker=Tracker())
    return root / "out" / "model"


@pytest.fixture(scope="session")
def poisoned_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, attack_pack: Path) -> Path:
    return _trained(tmp_path_factory.mktemp("poisoned"), tiny_model_dir, attack_pack, "train_poisoned", "train_clean")


@pytest.fixture(scope="session")
def retrained_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, attack_pack: Path) -> Path:
    return _trained(tmp_path_factory.mktemp("retrained"), tiny_model_dir, attack_pack, "train_clean")


@pytest.fixture(scope="session")
def attack_adapter(poisoned_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that changes the answers: its B matrices are no longer zero."""
    folder = tmp_path_factory.mktemp("adapter")
    model, _ = ModelLoader(device="cpu").load(poisoned_dir)
    adapted = add_lora(model, LoraSettings(r=2, lora_dropout=0.0), seed=0, section="unlearning")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    save_adapter(adapted, folder, base=poisoned_dir)
    return folder
