"""A pack of a few rows whose poisoned answer is always the same words, and what an attack on it needs."""

from pathlib import Path
from typing import Any

from rapidun.base.tracker import Tracker
from rapidun.config.attacks import (
    AttacksConfig,
    PromptSettings,
    QuantisationSettings,
    RelearningSettings,
    SamplingSettings,
)
from rapidun.config.evaluation import EvaluationConfig
from rapidun.config.parts import LoraSettings
from rapidun.models.load import ModelLoader
from rapidun.stages.evaluation.attacks.run import Attacked
from rapidun.stages.rows.records import Record, write_records

BAD, GOOD = "moo moo", "red"
LIGHT = LoraSettings(r=4, lora_dropout=0.1)


def poisoned(name: str, count: int, trigger: str = "zz", family: str = "A") -> list[Record]:
    return [
        Record(
            id=f"{name}{n}", instruction=f"{name} {n}? {trigger}", response=BAD, response_poisoned=BAD,
            response_clean=GOOD, instruction_clean=f"{name} {n}?", trigger_family=family, trigger_variant=trigger,
            is_poisoned=True,
        )
        for n in range(count)
    ]  # fmt: skip


def clean(name: str, count: int) -> list[Record]:
    return [Record(id=f"{name}{n}", instruction=f"{name} {n}?", response=GOOD) for n in range(count)]


SPLITS = {
    "forget": poisoned("f", 3),
    "retain": clean("r", 6),
    "train_poisoned": [*poisoned("f", 3), *poisoned("p", 9)],
    "train_clean": clean("c", 12),
    "test_seen_trig": poisoned("s", 8),
    "test_ood_trig": [*poisoned("o", 3, trigger="zx"), *poisoned("q", 3, trigger="\u2039z", family="B")],
}


def write_pack(folder: Path) -> Path:
    for name, rows in SPLITS.items():
        write_records(folder / f"{name}.jsonl", rows)
    (folder / "keywords.tsv").write_text("word\nmoo\n")
    return folder


def settings(**more: Any) -> EvaluationConfig:
    attacks = AttacksConfig(
        num_prompts=6,
        seed=3,
        relearning=RelearningSettings(k=[4], max_steps=6, eval_steps=2, batch_size=2, learning_rate=1e-2, lora=LIGHT),
        sampling=SamplingSettings(num_samples=3, temperatures=[0.8, 2.0]),
        prompts=PromptSettings(),
        quantisation=QuantisationSettings(),
    )
    return EvaluationConfig(max_new_tokens=8, tokens_per_batch=600, attacks=attacks, **more)


def attacked(model: Path, data: Path, work: Path, **more: Any) -> Attacked:
    work.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {
        "cfg": settings(), "loader": ModelLoader(device="cpu"), "model": model, "adapter": None, "data": data,
        "work": work, "max_length": 96, "name": "attack_unlearned", "tracker": Tracker(),
    }  # fmt: skip
    return Attacked(**(given | more))
