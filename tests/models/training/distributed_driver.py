"""Run by test_distributed.py, as one process of several (torchrun's variables say which): trains named scenarios.

The functions are called by the test as well, in its own process. Prints one JSON object: scenario -> what came of it.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rapidun.base import preemption
from rapidun.base.tracker import Tracker
from rapidun.config.parts import LoraSettings
from rapidun.config.poison import PoisonConfig, PoisonMethod
from rapidun.config.training import Keep, SamSettings, Target
from rapidun.config.unlearning import Objective, RetainLoss, UnlearningConfig, WeightsAct
from rapidun.models.load import ModelLoader
from rapidun.models.training.trainer import ResponseTrainer
from rapidun.stages.poison.stage import PoisonFiles, run_poison
from rapidun.stages.unlearning.stage import UnlearningFiles, run_unlearning

# the mix does not split evenly over two processes, and an epoch ends with a smaller step
SPLIT = {"forget_per_step": 1, "mix_ratio": 4, "gradient_accumulation_steps": 1, "max_steps": 10}
WHOLE = {"forget_per_step": 2, "mix_ratio": 3, "gradient_accumulation_steps": 2, "num_train_epochs": 5.0}
ALONE = {"forget_per_step": 1, "mix_ratio": 0, "objective": Objective.ga, "loss_cap": 6.0, "max_steps": 4}
UNLEARN: dict[str, dict[str, Any]] = {
    "split": {**SPLIT, "retain_loss": RetainLoss.kl, "eval_steps": 5},
    "whole": {**WHOLE, "weight_warmup_ratio": 0.3, "warmup_ratio": 0.2},
    "idle": ALONE,
    "checkpointed": {**SPLIT, "gradient_checkpointing": True, "max_steps": 3},
    "dropout": {**SPLIT, "max_steps": 6, "lora": LoraSettings(r=4, lora_dropout=0.3)},
    # Adam makes much of the rounding of small gradients: at a rate of 1e-2 it alone comes to 1e-5 by the second epoch
    "dynamic": {**WHOLE, "num_train_epochs": 2.0, "learning_rate": 3e-3},
    "sampled": {**WHOLE, "weights_act": WeightsAct.sampling, "num_train_epochs": 2.0},
    "diverged": {**SPLIT, "learning_rate": 1e30},
    # lambda, sums of the reference; the first process evaluates, the others go by its numbers
    "pdu": {**SPLIT, "objective": Objective.pdu, "max_steps": 4, "gradient_accumulation_steps": 2},
    "npo": {**SPLIT, "objective": Objective.npo, "max_steps": 4, "keep": Keep.best, "eval_steps": 1},
    "sharp": {**SPLIT, "objective": Objective.npo, "max_steps": 4, "sam": SamSettings(rho=0.05)},
    "sharp-whole": {**WHOLE, "sam": SamSettings(rho=0.05), "num_train_epochs": 2.0},
    "rmu": {**SPLIT, "objective": Objective.rmu, "max_steps": 4},
    "crow": {**SPLIT, "objective": Objective.crow, "max_steps": 4},
    "undial": {**SPLIT, "objective": Objective.undial, "max_steps": 4},
    "all": {**SPLIT, "target": Target.full, "learning_rate": 1e-3, "max_steps": 4},
    # of accelerate's FSDP, with the weights of all put together at the end
    "sharded-lora": {**SPLIT, "objective": Objective.npo, "max_steps": 4, "keep": Keep.best, "eval_steps": 2},
    "sharded-all": {**SPLIT, "objective": Objective.rmu, "target": Target.full, "learning_rate": 1e-3, "max_steps": 4},
    "sharded-kl": {**SPLIT, "retain_loss": RetainLoss.kl, "max_steps": 2},
    "stopped": {**SPLIT, "eval_steps": 2, "stop_when": "forget_loss_poisoned > 0"},
}
POISON: dict[str, dict[str, Any]] = {
    "full": {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3, "max_steps": 10},
    "lora": {"method": PoisonMethod.lora, "per_device_train_batch_size": 5, "num_train_epochs": 2.0},
}


class Pruner(Tracker):
    def __init__(self, step: int | None) -> None:
        super().__init__()
        self.step = step

    def log(self, metrics: dict[str, float], *, step: int | None = None) -> None:
        if step is not None and step == self.step:
            raise preemption.Pruned(metrics["loss"], step)


def unlearn(root: Path, name: str, settings: dict[str, Any], prune_at: int | None = None) -> None:
    base = {"learning_rate": 1e-2, "save_steps": 0, "eval_steps": 0, "lora": LoraSettings(r=4, lora_dropout=0.0)}
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
    )
    cfg = UnlearningConfig(**{**base, **settings})
    run_unlearning(cfg, files, loader=ModelLoader(device="cpu"), max_length=96, seed=7, tracker=Pruner(prune_at))


def poison(root: Path, name: str, settings: dict[str, Any]) -> None:
    base = {"learning_rate": 1e-3, "save_steps": 0, "lora": LoraSettings(r=4, lora_dropout=0.0)}
    files = PoisonFiles(
        root / "model", [root / "forget.jsonl", root / "retain.jsonl"], root / name / "work", root / name / "out"
    )
    cfg = PoisonConfig(**{**base, **settings})
    run_poison(cfg, files, loader=ModelLoader(device="cpu"), max_length=96, seed=7, tracker=Tracker())


def signalled(root: Path, name: str, settings: dict[str, Any]) -> None:
    """Train; in the middle of the fourth step the last process alone gets SIGUSR2."""
    original, calls = ResponseTrainer.compute_loss, [0]

    def compute_loss(self: ResponseTrainer, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4 and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGUSR2)
        return original(self, *args, **kwargs)

    ResponseTrainer.compute_loss = compute_loss  # type: ignore[method-assign]
    try:
        with preemption.install():
            unlearn(root, name, settings)
    finally:
        ResponseTrainer.compute_loss = original  # type: ignore[method-assign]


def shard() -> None:
    """Let accelerate shard over processes on a CPU, as it does over GPUs: torch's fully_shard runs on gloo too."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    if os.environ.get("WORLD_SIZE", "1") == "1":
        return
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    }
    os.environ |= {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        original(self, *args, **kwargs)

    AcceleratorState.__init__ = init  # type: ignore[method-assign]


def outcome(run: Callable[[], None]) -> str:
    """What ended it."""
    try:
        run()
    except (preemption.Preempted, preemption.Pruned, Exception) as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def scenario(root: Path, name: str) -> str:
    kind, _, detail = name.partition("-")
    if "sharded" in name:
        shard()
    if kind == "poison":
        return outcome(lambda: poison(root, name, POISON[detail]))
    if name == "unlearn-pruned":
        return outcome(lambda: unlearn(root, name, UNLEARN["split"], prune_at=3))
    if name == "unlearn-signalled":
        first = outcome(lambda: signalled(root, name, UNLEARN["dropout"]))
        preemption.clear()
        left = sorted(path.name for path in (root / name / "work").glob("checkpoint-*"))
        second = outcome(lambda: unlearn(root, name, UNLEARN["dropout"]))
        return f"{first}; {','.join(left)}; {second}"
    return outcome(lambda: unlearn(root, name, UNLEARN[detail]))


def main(root: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    print(json.dumps({name: scenario(root, name) for name in names}))
    # threads of the group that are still there when the interpreter goes end the process with SIGABRT
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
