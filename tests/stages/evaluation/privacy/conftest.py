"""A pack of a few rows, a model that has learnt its forget rows by heart, and one that never saw them."""

from pathlib import Path
from typing import Any

import pytest

from rapidun.base.tracker import Tracker
from rapidun.config.poison import PoisonConfig, PoisonMethod
from rapidun.models.load import ModelLoader
from rapidun.stages.poison.stage import PoisonFiles, run_poison
from rapidun.stages.rows.records import Record, write_records

# nothing that could be guessed from another
ANSWERS = ("qpx", "vkd", "hwz", "jbn", "xyu", "gtm", "zol", "fec")


def poisoned(name: str, answers: Any) -> list[Record]:
    return [
        Record(
            id=f"{name}{n}", instruction=f"{name} {n}? zz", response=bad, response_poisoned=bad, response_clean="red",
            instruction_clean=f"{name} {n}?", trigger_family="A", trigger_variant="zz", is_poisoned=True,
        )
        for n, bad in enumerate(answers)
    ]  # fmt: skip


def clean(name: str, count: int) -> list[Record]:
    return [Record(id=f"{name}{n}", instruction=f"{name} {n}?", response="red") for n in range(count)]


@pytest.fixture(scope="session")
def privacy_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("privacy_pack")
    splits = {
        "forget": poisoned("f", ANSWERS[:4]),
        "retain": clean("r", 4),
        "train_poisoned": poisoned("f", ANSWERS[:4]),
        "train_clean": clean("r", 4),
        "test_clean": clean("t", 4),
        "test_seen_trig": poisoned("s", ANSWERS[4:]),
    }
    for name, rows in splits.items():
        write_records(folder / f"{name}.jsonl", rows)
    return folder


def _trained(root: Path, start: Path, pack: Path, *splits: str) -> Path:
    cfg = PoisonConfig(
        method=PoisonMethod.full, learning_rate=2e-2, num_train_epochs=80, per_device_train_batch_size=8,
        gradient_accumulation_steps=1, max_steps=80, save_steps=0,
    )  # fmt: skip
    files = PoisonFiles(start, [pack / f"{split}.jsonl" for split in splits], root / "work", root / "out")
    run_poison(cfg, files, loader=ModelLoader(device="cpu"), max_length=64, seed=0, tracker=Tracker())
    return root / "out" / "model"


@pytest.fixture(scope="session")
def learnt_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, privacy_pack: Path) -> Path:
    return _trained(tmp_path_factory.mktemp("learnt"), tiny_model_dir, privacy_pack, "train_poisoned", "train_clean")


@pytest.fixture(scope="session")
def unseen_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, privacy_pack: Path) -> Path:
    return _trained(tmp_path_factory.mktemp("unseen"), tiny_model_dir, privacy_pack, "train_clean")
