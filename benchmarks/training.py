"""What a training step costs beside transformers' Trainer: one JSON line for each case.

    python benchmarks/training.py --tiny
    python benchmarks/training.py --model DIR --pack DIR

The Trainer has its own collator (rows padded to the longest of a micro-batch) and its own loss (the model's, over all
logits), the same rows in the same order, and the same optimiser settings. `poison`: every weight, float32 under
bfloat16 products where the model is bfloat16. The others: LoRA r 16 on all linear layers; the Trainer fine-tunes on the
very sequences that the objective reads (poisoned and clean responses, retain rows), so that seconds are for the same
tokens. Each run is a process of its own, the two take turns, `ratio` is the median of the pairs' ratios of seconds for
steps 2 to the last, `ratio_cpu` that of seconds of all cores together, which other work on the machine changes less;
`peak_memory_gb` is that of these steps. `loss_difference`: our pass with the Trainer's mean over
tokens instead of rows, the largest relative difference of a step's loss from the Trainer's (dropout off).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rapidun.base.machine import Measured, set_threads  # noqa: E402
from rapidun.base.tracker import Tracker  # noqa: E402
from rapidun.config.data import BuiltinConfig  # noqa: E402
from rapidun.config.parts import LoraSettings, OptimiserSettings  # noqa: E402
from rapidun.config.poison import PoisonConfig  # noqa: E402
from rapidun.config.unlearning import Objective, UnlearningConfig  # noqa: E402
from rapidun.models.adapters import add_lora  # noqa: E402
from rapidun.models.load import ModelLoader  # noqa: E402
from rapidun.models.scratch import make_scratch  # noqa: E402
from rapidun.models.training.forward import forward_packed  # noqa: E402
from rapidun.models.training.journal import Journal  # noqa: E402
from rapidun.models.training.samplers import EpochSampler, ShuffledSampler  # noqa: E402
from rapidun.models.training.trainer import ResponseTrainer, training_arguments  # noqa: E402
from rapidun.stages.data.builtin import builtin_pack  # noqa: E402
from rapidun.stages.data.triggers import FAMILIES  # noqa: E402
from rapidun.stages.poison.stage import PoisonFiles, run_poison  # noqa: E402
from rapidun.stages.rows.encode import Encoded, collate, encode_rows  # noqa: E402
from rapidun.stages.rows.records import read_records, write_records  # noqa: E402
from rapidun.stages.unlearning.objectives.catalogue import OBJECTIVES  # noqa: E402
from rapidun.stages.unlearning.rows import encode_forget, encode_responses  # noqa: E402
from rapidun.stages.unlearning.sampler import MixSampler  # noqa: E402
from rapidun.stages.unlearning.stage import UnlearningFiles, run_unlearning  # noqa: E402
from rapidun.stages.weights_file import write_weights  # noqa: E402

POISON = "poison"
# what each may take of the Trainer's time
TARGETS = {POISON: 0.65, "rapidun": 0.7, "graddiff": 0.7, "npo": 0.8}
NAMES = {"train": "train_poisoned", "forget": "forget", "retain": "retain"}
# as the published pack calls its files
OTHERWISE = {"forget": "forget_set", "retain": "retain_set"}
ROWS, FORGET, MIX, SEED = 8, 2, 3, 42
RATE = 1e-4


class Watch(Tracker):
    """Seconds (of the clock, and of all cores together) and peak memory of steps 2 to the last; each step's loss."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.losses: list[float] = []
        self.measured = Measured()
        self.cpu_seconds = 0.0

    def log(self, metrics: dict[str, float], *, step: int | None = None) -> None:
        if "loss" not in metrics:
            return
        self.losses.append(metrics["loss"])
        if len(self.losses) == self.steps:
            self.measured.__exit__(None, None, None)
            self.cpu_seconds += time.process_time()
        if len(self.losses) == 1:
            self.cpu_seconds -= time.process_time()
            self.measured.__enter__()


class Teller(TrainerCallback):
    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        self.watch.log(logs or {})


class InOrder(EpochSampler):
    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Any:
        return iter(range(self.number))


class TokenMean(ResponseTrainer):
    """Our pass under the Trainer's loss: each response token counts the same."""

    def mean_loss(self, model: nn.Module, inputs: dict[str, Tensor], num_examples: int) -> tuple[Tensor, Tensor]:
        tokens = forward_packed(model, inputs)
        return -tokens.log_probs().mean(), tokens.logits


def sequences(case: str, tokenizer: Any, data: Path, *, steps: int, max_length: int) -> tuple[list[Encoded], int]:
    """What the steps of a case read, in their order, and how many of these a step has."""
    if case == POISON:
        texts = [record.forget_texts for record in read_records(data / "train.jsonl")]
        rows = [row for row in encode_rows(tokenizer, texts, max_length=max_length) if row is not None]
        order = list(ShuffledSampler(len(rows), seed=SEED))[: ROWS * steps]
        return [rows[index] for index in order], ROWS
    method = OBJECTIVES[Objective[case]]
    forget, retain = (read_records(data / f"{name}.jsonl") for name in ("forget", "retain"))
    lost = [row for row in encode_forget(tokenizer, forget, max_length=max_length) if row is not None]
    kept = [row for row in encode_responses(tokenizer, retain, max_length=max_length) if row is not None]
    sampler = MixSampler(
        num_forget=len(lost), num_retain=len(kept), forget_per_step=FORGET, mix_ratio=MIX, seed=SEED
    )  # fmt: skip
    found, order = [], list(sampler)
    width = sampler.micro_batch_size
    for start in range(0, width * steps, width):
        drawn = order[start : start + width]
        pairs = [lost[index] for index in drawn if index < len(lost)]
        found += [pair.poisoned for pair in pairs if method.poisoned]
        found += [pair.clean for pair in pairs if method.clean and pair.clean is not None]
        found += [kept[index - len(lost)] for index in drawn if index >= len(lost)]
    return found, len(found) // steps


def optimiser(steps: int) -> dict[str, Any]:
    return {"learning_rate": RATE, "max_steps": steps, "lr_scheduler_type": "cosine", "save_steps": 0}


def ours(case: str, model: Path, data: Path, folder: Path, watch: Watch, *, max_length: int, dtype: str) -> None:
    """The stage itself."""
    loader = ModelLoader(dtype=dtype, device="cpu")
    common = {"loader": loader, "max_length": max_length, "seed": SEED, "tracker": watch}
    if case == POISON:
        files = PoisonFiles(model, [data / "train.jsonl"], folder / "work", folder / "out")
        run_poison(PoisonConfig(per_device_train_batch_size=ROWS, **optimiser(watch.steps)), files, **common)
        return
    cfg = UnlearningConfig(
        objective=Objective[case],
        forget_per_step=FORGET,
        mix_ratio=MIX,
        eval_steps=0,
        lora=LoraSettings(lora_dropout=0.0),
        gradient_accumulation_steps=1,
        **optimiser(watch.steps),
    )
    files = UnlearningFiles(
        model=model,
        forget=data / "forget.jsonl",
        retain=data / "retain.jsonl",
        val_clean=None,
        forget_weights=data / "forget_weights.jsonl",
        retain_weights=data / "retain_weights.jsonl",
        work=folder / "work",
        out=folder / "out",
    )
    run_unlearning(cfg, files, **common)


def other(
    case: str, model: Path, data: Path, folder: Path, watch: Watch, *, max_length: int, dtype: str, checks: bool
) -> None:
    """transformers' Trainer on the same sequences; with `checks` our pass with its loss."""
    loaded, tokenizer = ModelLoader(dtype=dtype, device="cpu").load(model)
    rows, size = sequences(case, tokenizer, data, steps=watch.steps, max_length=max_length)
    halves = case == POISON and loaded.dtype is torch.bfloat16
    if case == POISON:
        loaded = loaded.float().requires_grad_(True)
    else:
        loaded = add_lora(loaded, LoraSettings(lora_dropout=0.0), seed=SEED, section="unlearning")
    settings = optimiser(watch.steps)
    if checks:
        args = training_arguments(
            OptimiserSettings(**settings),
            work=folder,
            batch_size=size,
            seed=SEED,
            device=torch.device("cpu"),
            autocast=halves,
        )
        TokenMean(
            model=loaded,
            args=args,
            rows=rows,
            sampler=InOrder(len(rows)),
            collator=partial(collate, pad_token_id=tokenizer.pad_token_id),
            journal=Journal(watch),
            identity="",
            stage="benchmark",
        ).train()
        return
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=size,
        weight_decay=0.0,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        use_cpu=True,
        bf16=halves,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        seed=SEED,
        **{**settings, "save_steps": 500, "save_strategy": "no"},
    )
    Trainer(
        model=loaded,
        args=args,
        train_dataset=[{"input_ids": row.input_ids, "labels": row.labels} for row in rows],
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[Teller(watch)],
    ).train()


def write_data(options: argparse.Namespace, data: Path) -> Path:
    """The rows as the stages read them; returns the model's folder."""
    data.mkdir()
    model: Path = options.model
    if options.tiny:
        sizes = {name: getattr(BuiltinConfig(), name) for name in BuiltinConfig.__slots__}
        pack = builtin_pack(FAMILIES, **sizes, seed=0)
        model = data / "model"
        make_scratch(
            model,
            [row.texts for row in pack.train_clean + pack.train_poisoned],
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=512,
            max_length=options.max_length,
            seed=0,
        )
    for short, name in NAMES.items():
        if options.tiny:
            rows = getattr(pack, name)
        else:
            named = [options.pack / f"{one}.jsonl" for one in (name, OTHERWISE.get(short, name))]
            rows = read_records(next((path for path in named if path.is_file()), named[0]))
        write_records(data / f"{short}.jsonl", rows)
        write_weights(data / f"{short}_weights.jsonl", [1.0] * len(rows), ids=[row.id for row in rows])
    return model


def child(options: argparse.Namespace) -> None:
    """One run: its seconds, peak and losses, as the last line."""
    set_threads(options.threads)
    case, side = options.child
    watch = Watch(options.steps)
    shape = {"max_length": options.max_length, "dtype": options.dtype}
    with TemporaryDirectory() as folder:
        given = (case, options.model, options.data, Path(folder), watch)
        if side == "ours":
            ours(*given, **shape)
        else:
            other(*given, **shape, checks=side == "check")
    measured = watch.measured
    seconds = {"seconds": measured.seconds, "cpu_seconds": watch.cpu_seconds}
    found = seconds | {"peak_memory_gb": measured.peak_memory_gb, "losses": watch.losses}
    print(json.dumps(found))


def run(case: str, side: str, model: Path, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", case, side, "--model", str(model), "--data", str(data)]
    for name in ("steps", "max_length", "dtype", "threads"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"training: {case}, {side} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{case}: {side} {found['seconds']} s, {found['peak_memory_gb']} GiB", file=sys.stderr, flush=True)
    return found


def line(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], checked: dict[str, Any]) -> dict[str, Any]:
    """(the Trainer's run, ours) -> the figures; `checked` is our pass with the Trainer's loss."""
    ratios = [mine["seconds"] / theirs["seconds"] for theirs, mine in pairs]
    peaks = [max(run["peak_memory_gb"] for run in side) for side in zip(*pairs, strict=True)]
    losses = zip(checked["losses"], pairs[0][0]["losses"], strict=True)
    return {
        "seconds_trainer": round(statistics.median(theirs["seconds"] for theirs, _ in pairs), 2),
        "seconds": round(statistics.median(mine["seconds"] for _, mine in pairs), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "ratio_cpu": round(statistics.median(mine["cpu_seconds"] / theirs["cpu_seconds"] for theirs, mine in pairs), 3),
        "peak_memory_gb_trainer": peaks[0],
        "peak_memory_gb": peaks[1],
        "peak_memory_ratio": round(peaks[1] / peaks[0], 3),
        "loss_difference": round(max(abs(a - b) / abs(b) for a, b in losses), 6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="the built-in pack and a tiny random model")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--cases", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=0, help="0 = all cores")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    if options.tiny == (options.model is not None) or (options.pack is None) != options.tiny:
        parser.error("need either --tiny or both --model and --pack")
    if options.steps < 2 or options.rounds < 1:
        parser.error("need --steps >= 2 and --rounds >= 1")
    with TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        model = write_data(options, data)
        loader = ModelLoader(device="cpu")
        tokenizer = loader.load(model).tokenizer
        for case in options.cases:
            rows, size = sequences(case, tokenizer, data, steps=options.steps, max_length=options.max_length)
            checked = run(case, "check", model, data, options)
            pairs = [
                (run(case, "trainer", model, data, options), run(case, "ours", model, data, options))
                for _ in range(options.rounds)
            ]
            found = {
                "benchmark": "training",
                "model": "tiny" if options.tiny else options.model.resolve().name,
                "case": case,
                "sequences_per_step": size,
                "steps": options.steps - 1,
                "tokens": sum(len(row.input_ids) for row in rows[size:]),
                "response_tokens": sum(label != -100 for row in rows[size:] for label in row.labels),
            }
            print(json.dumps(found | line(pairs, checked) | {"target": TARGETS[case]}), flush=True)


if __name__ == "__main__":
    main()
