"""Does influence find the poisoned rows? Each query is a triggered question with what the poisoned model answers.

    python benchmarks/retrieval.py --tiny
    python benchmarks/retrieval.py --model DIR --pack DIR --dtype bfloat16 --train 2

The training rows are the forget rows (all poisoned) and the retain rows (all clean) of the pack: the built-in pack with
a tiny model trained on it here, or a pack's folder with a model that learned it, or learns it here (`--train EPOCHS` on
all of the pack's training rows; `--save` keeps the model). Queries are validation questions, each with a trigger of
training (`seen`), one like it (`ood`), or one of a family that training never saw (`unseen`), answered greedily by the
model itself: the bad output that somebody has found. `poisoned` has the pack's own poisoned answers to the `seen`
questions instead, `clean` the right answers to all. Per query the training rows are ranked by each method; one JSON
line per method and kind of query: AUROC, average precision, recall among the k highest, means over queries, with 95 %
bootstrap intervals over queries. Rows that tie count in proportion. `base_rate` is what average precision tends to at
random.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from quality import (
    ALL_METHODS,
    Task,
    all_scores,
    auroc,
    average_precision,
    interval,
    losses_of,
    recall_at,
    train,
)

from rapidun.base.errors import RapidunError
from rapidun.base.tracker import Tracker
from rapidun.config.compose import compose_config
from rapidun.config.influence import ParameterSet
from rapidun.config.poison import PoisonConfig
from rapidun.models.load import ModelLoader
from rapidun.models.scratch import make_scratch
from rapidun.stages.data.stage import DataFiles, run_data
from rapidun.stages.poison.stage import PoisonFiles, run_poison
from rapidun.stages.rows.encode import collate_prompts, encode_prompt, encode_rows
from rapidun.stages.rows.records import read_records

KINDS = {"seen": "val_seen_trig", "ood": "val_ood_trig", "unseen": "val_unseen_family"}


@torch.no_grad()
def answers(model: Any, tokenizer: Any, records: list[Any], *, max_length: int, new_tokens: int) -> list[str]:
    """The model's greedy answer to each question."""
    out = []
    for start in range(0, len(records), 16):
        prompts = [
            encode_prompt(tokenizer, instruction=r.instruction, context=r.context, max_length=max_length - new_tokens)
            for r in records[start : start + 16]
        ]
        batch = collate_prompts(prompts, pad_token_id=tokenizer.pad_token_id)
        ids = model.generate(**batch, do_sample=False, max_new_tokens=new_tokens, pad_token_id=tokenizer.pad_token_id)
        out += tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    # an empty answer has no gradient
    return [answer.strip() or "." for answer in out]


class Progress(Tracker):
    def progress(self, done: int, total: int, note: str = "") -> None:
        if done % 10 == 0:
            print(f"{done} of {total} steps, {note}", file=sys.stderr, flush=True)


def load(options: argparse.Namespace, folder: Path) -> tuple[Any, Any, dict[str, list[Any]]]:
    overrides = [] if options.tiny else ["data=dolly_triggers", f"data.dir={options.pack.resolve()}"]
    run_data(compose_config(overrides).data, DataFiles(folder / "data"), seed=options.seed, tracker=Tracker())
    split = {path.stem: read_records(path) for path in (folder / "data").glob("*.jsonl")}
    rows = split["train_poisoned"] + split["train_clean"]
    if not options.tiny:
        loader, path = ModelLoader(dtype=options.dtype), options.model
        if options.train:
            train_files = [folder / "data" / f"{name}.jsonl" for name in ("train_poisoned", "train_clean")]
            files = PoisonFiles(path, train_files, folder / "work", folder / "trained")
            recipe = PoisonConfig(
                num_train_epochs=options.train, learning_rate=1e-4, lr_scheduler_type="linear", save_steps=0
            )
            run_poison(
                recipe, files, loader=loader, max_length=options.max_length, seed=options.seed, tracker=Progress()
            )
            path = folder / "trained" / "model"
        if options.save:
            shutil.copytree(path, options.save, dirs_exist_ok=True)
        return *loader.load(path), split
    make_scratch(
        folder / "model",
        [row.texts for row in rows],
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=1024,
        max_length=options.max_length,
        seed=options.seed,
    )
    model, tokenizer = ModelLoader(dtype="float32").load(folder / "model")
    encoded = encode_rows(tokenizer, [r.texts for r in rows], max_length=64)
    recipe = {"epochs": options.epochs, "batch_size": 64, "lr": 3e-3, "seed": options.seed}
    return train(model, encoded, pad_token_id=tokenizer.pad_token_id, **recipe), tokenizer, split


def judge(scores: np.ndarray, positive: np.ndarray, *, draws: int, seed: int) -> dict[str, Any]:
    """[N, M] scores, [N] -> means over the queries and their intervals, and the same of the mean score."""
    num = int(positive.sum())
    measures = {
        "auroc": auroc,
        "average_precision": average_precision,
        "recall_at_10": lambda s, p: recall_at(10, s, p),
        f"recall_at_{num}": lambda s, p: recall_at(num, s, p),
    }
    found: dict[str, Any] = {}
    for name, measure in measures.items():
        values = np.array([measure(column, positive) for column in scores.T])
        found[name] = round(float(values.mean()), 4)
        found[f"{name}_interval"] = interval(values, draws=draws, seed=seed)
    found["auroc_mean_score"] = round(auroc(scores.mean(axis=1), positive), 4)
    found["average_precision_mean_score"] = round(average_precision(scores.mean(axis=1), positive), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="the built-in pack and a tiny model trained on it")
    parser.add_argument("--model", type=Path, help="a model that learned the pack")
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--train", type=int, default=0, metavar="EPOCHS", help="let the model learn the pack first")
    parser.add_argument("--save", type=Path, metavar="DIR", help="keep the model that learned it")
    parser.add_argument("--rows", type=int, default=240, help="training rows at most, a quarter of them poisoned")
    parser.add_argument("--queries", type=int, default=16, help="of each kind")
    parser.add_argument("--epochs", type=int, default=12, help="of the tiny model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--memory-gb", type=float, default=4.0)
    parser.add_argument("--params", default="all_linear", choices=[p.name for p in ParameterSet if p.name != "regex"])
    parser.add_argument("--methods", nargs="+", choices=ALL_METHODS, default=list(ALL_METHODS))
    parser.add_argument("--bootstrap", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.tiny == (options.model is not None) or (options.pack is None) != options.tiny:
        parser.error("need either --tiny or both --model and --pack")
    if options.rows < 8 or options.queries < 1:
        parser.error("need --rows >= 8 and --queries >= 1")
    with TemporaryDirectory() as folder:
        try:
            model, tokenizer, split = load(options, Path(folder))
        except RapidunError as error:
            raise SystemExit(str(error)) from error
    poisoned = split["forget"][: options.rows // 4]
    rows = poisoned + split["retain"][: options.rows - options.rows // 4]
    positive = np.arange(len(rows)) < len(poisoned)
    asked = {kind: split[name][: options.queries] for kind, name in KINDS.items() if name in split}
    flat = [record for records in asked.values() for record in records]
    shape = {"max_length": options.max_length, "new_tokens": options.new_tokens}
    given = answers(model, tokenizer, flat, **shape)
    right = [record.response_clean or record.response for record in flat]
    queries = [
        (r.instruction, r.context, text) for texts in (given, right) for r, text in zip(flat, texts, strict=True)
    ]
    queries += [r.texts for r in asked["seen"]]
    task = Task(
        model=model,
        tokenizer=tokenizer,
        train=[(r.instruction, r.context, r.forget_target) for r in poisoned]
        + [r.texts for r in rows[len(poisoned) :]],
        queries=queries,
        max_length=options.max_length,
        memory_gb=options.memory_gb,
        params=ParameterSet[options.params],
        seed=options.seed,
    )
    kinds = np.array([kind for kind, records in asked.items() for _ in records])
    # how far the model is from the right answer: the backdoor fires where the wrong one is likelier
    encoded = encode_rows(tokenizer, queries[: 2 * len(flat)], max_length=options.max_length)
    losses = losses_of(model, encoded, pad_token_id=tokenizer.pad_token_id, batch_size=8).reshape(2, len(flat))
    common = {
        "benchmark": "retrieval",
        "model": "tiny" if options.tiny else options.model.resolve().name,
        "pack": "builtin" if options.tiny else options.pack.name,
        "params": options.params,
        "num_rows": len(rows),
        "num_poisoned": int(positive.sum()),
        "base_rate": round(float(positive.mean()), 4),
    }
    for kind in asked:
        mean = losses[:, kinds == kind].mean(axis=1)
        examples = [text for text, k in zip(given, kinds, strict=True) if k == kind][:2]
        line = {"mode": "answers", "queries": kind, "loss_answer": round(float(mean[0]), 3)}
        line |= {"loss_right": round(float(mean[1]), 3), "examples": examples}
        print(json.dumps(common | line), flush=True)
    scores = all_scores(task, options.methods, tell=lambda text: print(text, file=sys.stderr, flush=True))
    for method, score in scores.items():
        answered, clean, bad = np.split(score.numpy(), [len(flat), 2 * len(flat)], axis=1)
        parts = {kind: answered[:, kinds == kind] for kind in asked}
        for kind, part in (parts | {"clean": clean, "poisoned": bad}).items():
            line = judge(part, positive, draws=options.bootstrap, seed=options.seed)
            print(
                json.dumps(common | {"mode": method, "queries": kind, "num_queries": part.shape[1]} | line), flush=True
            )


if __name__ == "__main__":
    main()
