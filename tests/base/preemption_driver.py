"""Run by test_preemption.py in a process of its own: trains, sends itself SIGUSR2 at chosen moments, trains again.

Prints one JSON object: for each scenario what ended the first start, what it left, and the hash of the end.
"""

import dataclasses
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from rapidun.base import preemption
from rapidun.base.tracker import Tracker
from rapidun.config.parts import LoraSettings
from rapidun.config.poison import PoisonConfig
from rapidun.config.unlearning import RetainLoss, UnlearningConfig
from rapidun.models.load import ModelLoader
from rapidun.models.training.checkpoints import MARKER, all_checkpoints, checkpoint_step
from rapidun.stages.poison.stage import PoisonFiles, run_poison
from rapidun.stages.unlearning.stage import UnlearningFiles, run_unlearning

CONFIG = UnlearningConfig(
    lora=LoraSettings(r=4, lora_dropout=0.3),
    learning_rate=1e-2,
    max_steps=6,
    gradient_accumulation_steps=2,
    save_steps=2,
    eval_steps=3,
    retain_loss=RetainLoss.kl,
)


def poke() -> None:
    os.kill(os.getpid(), signal.SIGUSR2)


@contextmanager
def poked(cls: Any, name: str, *, call: int, before: bool = True, times: int = 1) -> Iterator[None]:
    """SIGUSR2 at the `call`-th call of a method."""
    original, calls = getattr(cls, name), [0]

    def method(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        now = calls[0] == call
        if now and before:
            for _ in range(times):
                poke()
        result = original(*args, **kwargs)
        if now and not before:
            poke()
        return result

    setattr(cls, name, method)
    try:
        yield
    finally:
        setattr(cls, name, original)


@contextmanager
def poked_twice() -> Iterator[None]:
    """In the third step, and again while the checkpoint that this asks for is being saved (the second save)."""
    with poked(Trainer, "training_step", call=5), poked(Trainer, "_save_optimizer_and_scheduler", call=2, times=3):
        yield


MOMENTS: dict[str, Callable[[], Any]] = {
    "before": lambda: poked(Trainer, "__init__", call=1),
    "middle": lambda: poked(Trainer, "training_step", call=6),
    "last": lambda: poked(Trainer, "training_step", call=12),
    "saving": lambda: poked(Trainer, "_save_optimizer_and_scheduler", call=1),
    "twice": poked_twice,
    "no-saves": lambda: poked(Trainer, "training_step", call=8),
    "after": lambda: poked(Trainer, "_finalize_training", call=1, before=False),
    "poison": lambda: poked(Trainer, "training_step", call=3),
}


class Steps(Tracker):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def log(self, metrics: dict[str, float], *, step: int | None = None) -> None:
        self.number += "loss" in metrics


def train(root: Path, name: str, tracker: Tracker) -> None:
    work, out = root / name / "work", root / name / "out"
    loader = ModelLoader(device="cpu")
    if name.startswith("poison"):
        cfg = PoisonConfig(learning_rate=1e-2, max_steps=6, per_device_train_batch_size=3, save_steps=2)
        given = PoisonFiles(root / "model", [root / "forget.jsonl", root / "retain.jsonl"], work, out)
        run_poison(cfg, given, loader=loader, max_length=96, seed=7, tracker=tracker)
        return
    files = UnlearningFiles(
        model=root / "model",
        forget=root / "forget.jsonl",
        retain=root / "retain.jsonl",
        val_clean=root / "retain.jsonl",
        forget_weights=root / "forget_weights.jsonl",
        retain_weights=root / "retain_weights.jsonl",
        work=work,
        out=out,
    )
    settings = dataclasses.replace(CONFIG, save_steps=0) if name in ("no-saves", "after") else CONFIG
    run_unlearning(settings, files, loader=loader, max_length=96, seed=7, tracker=tracker)


def result(out: Path) -> str:
    """Of the weights and, for unlearning, the history."""
    found = [*out.glob("*/*model.safetensors"), *out.glob("history.json")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in found)).hexdigest()


def scenario(root: Path, name: str) -> dict[str, Any]:
    first = "done"
    try:
        with preemption.install(), MOMENTS[name]():
            train(root, name, Tracker())
    except preemption.Preempted as error:
        first = f"Preempted: {error}"
    preemption.clear()
    left = all_checkpoints(root / name / "work")
    state = {
        "first": first,
        "newest": checkpoint_step(left[-1]) if left else None,
        "unmarked": sum(not (folder / MARKER).is_file() for folder in left),
        "published": (root / name / "out").exists(),
    }
    steps = Steps()
    train(root, name, steps)
    return {**state, "hash": result(root / name / "out"), "steps": steps.number}


def main(root: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in ("alone", "poison-alone"):
        train(root, name, Tracker())
        results[name] = {"hash": result(root / name / "out")}
    results |= {name: scenario(root, name) for name in names}
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
