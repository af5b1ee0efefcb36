"""Run by test_resume.py in a process of its own: trains, is killed by SIGKILL at chosen moments, trains again.

Torch is imported once; every attempt is a forked child, killed for real. Prints one JSON object: for each scenario
the hash of the weights that it ended with and how many children were killed.
"""

import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)

import peft  # noqa: E402, F401
from transformers import Trainer  # noqa: E402

from rapidun.base.tracker import Tracker  # noqa: E402
from rapidun.config.parts import LoraSettings, Optimizer  # noqa: E402
from rapidun.config.poison import PoisonConfig, PoisonMethod  # noqa: E402
from rapidun.config.training import Criterion, Keep, SamSettings  # noqa: E402
from rapidun.config.unlearning import Objective, RetainLoss, UnlearningConfig, WeightsAct  # noqa: E402
from rapidun.models.load import ModelLoader  # noqa: E402
from rapidun.models.training.journal import JournalCallback  # noqa: E402
from rapidun.stages.poison.stage import PoisonFiles, run_poison  # noqa: E402
from rapidun.stages.unlearning.stage import UnlearningFiles, run_unlearning  # noqa: E402

LORA = LoraSettings(r=4, lora_dropout=0.3)
# SIGKILL leaves the page cache alone, so flushing to disk would only cost the test its time
os.fsync = lambda handle: None


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillAt(Tracker):
    """Kills its own process when the training line of a step arrives."""

    def __init__(self, step: int | None) -> None:
        super().__init__()
        self.step = step

    def log(self, metrics: dict[str, float], *, step: int | None = None) -> None:
        if self.step is not None and step == self.step and "loss" in metrics:
            die()


def kill_within_save(*, call: int) -> None:
    """Die in the middle of writing a file of the `call`-th checkpoint part that torch saves."""
    write, calls = torch.save, [0]

    def save(value: object, path: str, *args: object, **kwargs: object) -> None:
        calls[0] += 1
        write(value, path, *args, **kwargs)
        if calls[0] == call:
            with open(path, "r+b") as file:
                file.truncate(os.path.getsize(path) // 2)
            die()

    torch.save = save


def kill_before_marker(*, call: int) -> None:
    original, calls = JournalCallback.on_save, [0]

    def on_save(self: JournalCallback, *args: Any, **kwargs: Any) -> None:
        calls[0] += 1
        if calls[0] == call:
            die()
        original(self, *args, **kwargs)

    JournalCallback.on_save = on_save  # type: ignore[method-assign]


def kill_after_training() -> None:
    original = Trainer.train

    def train(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        die()

    Trainer.train = train


def poison(root: Path, name: str, tracker: Tracker) -> str:
    cfg = PoisonConfig(
        method=PoisonMethod.lora if name.startswith("lora") else PoisonMethod.full,
        lora=LORA,
        learning_rate=1e-2,
        num_train_epochs=2,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        save_steps=2,
    )
    train = [root / "forget.jsonl", root / "retain.jsonl"]
    files = PoisonFiles(root / "model", train, root / name / "work", root / name / "out")
    run_poison(cfg, files, loader=ModelLoader(device="cpu"), max_length=96, seed=7, tracker=tracker)
    return weights_hash(files.out / "model" / "model.safetensors")


def unlearn(root: Path, name: str, tracker: Tracker) -> str:
    cfg = UnlearningConfig(
        lora=LORA,
        learning_rate=1e-2,
        num_train_epochs=3,
        gradient_accumulation_steps=2,
        forget_per_step=1,
        mix_ratio=3,
        save_steps=2,
        eval_steps=3,
        loss_cap=6.0,
        weight_warmup_ratio=0.5,
        warmup_ratio=0.2,
        retain_loss=RetainLoss.kl,
    )
    if "early" in name:
        cfg = dataclasses.replace(cfg, max_steps=5)
    attacked: dict[str, Any] = {}
    if "sampled" in name:
        acts = {"weights_act": WeightsAct.sampling, "weight_warmup_ratio": 0.0}
        cfg = dataclasses.replace(cfg, **acts, optimizer=Optimizer.sgd, momentum=0.9, eval_asr=2, num_eval_prompts=3)
        attacked = {"triggered": {"seen": root / "forget.jsonl"}, "keywords": root / "keywords.tsv"}
    if "pdu" in name:
        # dropout, lambda, sharpness-aware steps, the best weights
        around = {"keep": Keep.best, "criterion": Criterion.val_loss_clean, "eval_steps": 1, "loss_cap": None}
        sharp = SamSettings(rho=0.05)
        cfg = dataclasses.replace(cfg, objective=Objective.pdu, retain_loss=RetainLoss.ce, sam=sharp, **around)
    if "npo" in name:
        cfg = dataclasses.replace(cfg, objective=Objective.npo, eval_steps=2, stop_when="forget_loss_poisoned > 0")
    files = UnlearningFiles(
        model=root / "model",
        forget=root / "forget.jsonl",
        retain=root / "retain.jsonl",
        val_clean=root / "retain.jsonl",
        forget_weights=root / "forget_weights.jsonl",
        retain_weights=root / "retain_weights.jsonl",
        work=root / name / "work",
        out=root / name / "out",
        dynamic=root / "dynamic.json" if "dynamic" in name else None,
        **attacked,
    )
    summary = run_unlearning(cfg, files, loader=ModelLoader(device="cpu"), max_length=96, seed=7, tracker=tracker)
    history = hashlib.sha256((files.out / "history.json").read_bytes()).hexdigest()
    said = json.dumps(summary, sort_keys=True)
    return weights_hash(files.out / "adapter" / "adapter_model.safetensors") + history + said


def weights_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def attempt(
    run: Callable[[Path, str, Tracker], str],
    root: Path,
    name: str,
    *,
    prepare: Callable[[], None] | None = None,
    step: int | None = None,
    after: float | None = None,
) -> bool:
    """Run in a child; True if it was killed. Its result is written beside its files."""
    child = os.fork()
    if child == 0:
        if prepare is not None:
            prepare()
        try:
            result = run(root, name, KillAt(step))
            (root / name / "result").write_text(result)
        except BaseException as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == signal.SIGKILL
    if os.WEXITSTATUS(status) != 0:
        raise SystemExit(1)
    return False


def scenario(run: Callable[[Path, str, Tracker], str], root: Path, name: str, kills: list[dict[str, Any]]) -> Any:
    shutil.rmtree(root / name, ignore_errors=True)
    (root / name).mkdir()
    killed = 0
    for kill in kills:
        killed += attempt(run, root, name, **kill)
        shutil.rmtree(root / name / "out", ignore_errors=True)
    attempt(run, root, name)
    return {"hash": (root / name / "result").read_text(), "killed": killed}


AT_STEPS = [{"step": 1}, {"step": 3}, {"step": 6}]
AT_EPOCH_END = [{"step": 5}, {"step": 7}]
IN_SAVE = [{"prepare": partial(kill_within_save, call=call)} for call in (1, 5)]
BEFORE_MARKER = [{"prepare": partial(kill_before_marker, call=call)} for call in (2, 1)]
TRAINED = [{"prepare": kill_after_training}]
RANDOM = [{"after": random.Random(1).uniform(0.1, 1.5)} for _ in range(4)]
KILLS: dict[str, list[dict[str, Any]]] = {
    "alone": [],
    "steps": AT_STEPS,
    "epoch-end": AT_EPOCH_END,
    "in-save": IN_SAVE,
    "before-marker": BEFORE_MARKER,
    "trained": TRAINED,
    "random": RANDOM,
}
STAGES = {"full": poison, "lora": poison, "unlearn": unlearn, "early": unlearn, "sampled": unlearn}
STAGES |= {"pdu": unlearn, "npo": unlearn, "dynamic": unlearn}


def main(root: Path, names: list[str]) -> None:
    results = {}
    for name in names:
        stage, _, kind = name.partition("-")
        results[name] = scenario(STAGES[stage], root, name, KILLS[kind])
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
