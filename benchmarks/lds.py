"""The linear datamodelling score: does the sum of a subset's influences foretell what training on it does?

    python benchmarks/lds.py --subsets 60 --seeds 2 --out lds.json

A tiny model learns part of the built-in world, then `--rows` rows more (a quarter of them poisoned). Random halves of
these are learned instead, from the same start, each with `--seeds` orders of the rows; what a half does to a query is
the mean of its seeds' losses. Per query: Spearman's correlation, over the halves, of -loss with the sum of the
influences of the half's rows on the query, measured at the model that learned all rows. One JSON line a method: the
mean over queries with a 95 % bootstrap interval (queries and halves redrawn together). `split_half`: the same
correlation between the losses of half of the seeds and those of the others, r; `ceiling`: sqrt(2 r / (1 + r)), what a
perfect forecast would reach beside the noise of training (Spearman 1910, Brown 1910).

Finished trainings are kept in --out, and are not done again. Source: Park et al., "TRAK", 2023.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

sys.path.insert(0, str(Path(__file__).parent))
from quality import ALL_METHODS, Task, all_scores, losses_of, train

from rapidun.base.files import sha256_json, write_json
from rapidun.base.tracker import Tracker
from rapidun.config.compose import compose_config
from rapidun.models.load import ModelLoader
from rapidun.models.scratch import make_scratch
from rapidun.stages.data.stage import DataFiles, run_data
from rapidun.stages.rows.encode import encode_rows
from rapidun.stages.rows.records import read_records

RECIPE = {"epochs": 6, "batch_size": 32, "lr": 1e-3}
START = {"epochs": 8, "batch_size": 64, "lr": 3e-3, "seed": 0}


def setup(options: argparse.Namespace, folder: Path) -> tuple[Any, Any, list[Any], list[Any]]:
    """The start model, its tokenizer, the rows to learn and the queries."""
    cfg = compose_config([])
    run_data(cfg.data, DataFiles(folder / "data"), seed=options.seed, tracker=Tracker())
    split = {path.stem: read_records(path) for path in (folder / "data").glob("*.jsonl")}
    num_poisoned = options.rows // 4
    clean, poisoned = split["train_clean"], split["train_poisoned"]
    half = len(clean) // 2
    rows = poisoned[:num_poisoned] + clean[half : half + options.rows - num_poisoned]
    queries = poisoned[-(options.queries // 2) :] + split["val_clean"][: options.queries - options.queries // 2]
    make_scratch(
        folder / "model",
        [row.texts for row in clean + poisoned],
        hidden_size=64 if options.small else 128,
        intermediate_size=192 if options.small else 384,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=1024,
        max_length=64,
        seed=options.seed,
    )
    model, tokenizer = ModelLoader(dtype="float32").load(folder / "model")
    first = encode_rows(tokenizer, [r.texts for r in clean[: 64 if options.small else half]], max_length=64)
    model = train(model, first, pad_token_id=tokenizer.pad_token_id, **START)
    return model, tokenizer, [r.texts for r in rows], [r.texts for r in queries]


def spearman_columns(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[S, M], [S, M] -> [M]; 0 where one side is constant."""
    x, y = (rankdata(v, axis=0) for v in (x, y))
    x, y = (v - v.mean(axis=0) for v in (x, y))
    norm = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    return np.divide((x * y).sum(axis=0), norm, out=np.zeros(x.shape[1]), where=norm > 0)


@dataclass(frozen=True, kw_only=True)
class Bank:
    """A model that learned all rows, and what learning halves of them does to the queries."""

    start: Any  # the model before
    whole: Any  # the model that learned all rows
    tokenizer: Any
    rows: list[Any]
    queries: list[Any]
    halves: np.ndarray  # [subsets, rows] bool
    losses: np.ndarray  # [subsets, seeds, queries]
    seconds: float  # of the trainings that were not there yet

    @property
    def measured(self) -> np.ndarray:
        """[subsets, queries] -loss, the mean over the orders of the rows."""
        return -self.losses.mean(axis=1)

    @property
    def reliability(self) -> tuple[float, float] | tuple[None, None]:
        """`split_half` and `ceiling`."""
        if self.losses.shape[1] < 2:
            return None, None
        parts = self.losses[:, ::2].mean(axis=1), self.losses[:, 1::2].mean(axis=1)
        half = round(float(spearman_columns(*parts).mean()), 4)
        # Spearman and Brown: of the mean over all seeds; its root is the most a forecast can correlate with that mean
        return half, round((2 * half / (1 + half)) ** 0.5, 4) if half > 0 else 0.0


def add_bank_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--subsets", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--queries", type=int, default=60, help="half of them poisoned")
    parser.add_argument("--bootstrap", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file of finished trainings")
    parser.add_argument("--small", action="store_true", help="a smaller model: to try the script")


def make_bank(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Bank:
    """Learn every half that --out does not have yet."""
    if options.subsets < 3 or options.seeds < 1 or options.rows < 8 or options.queries < 2:
        parser.error("need --subsets >= 3, --seeds >= 1, --rows >= 8 and --queries >= 2")
    settings = {key: getattr(options, key) for key in ("rows", "queries", "seed", "small")} | RECIPE
    key = sha256_json(settings)
    done: dict[str, list[float]] = {}
    if options.out and options.out.is_file():
        kept = json.loads(options.out.read_text())
        if kept["key"] != key:
            parser.error(f"need an --out of the same settings ({settings}), got another's: choose another file")
        done = kept["losses"]
    with TemporaryDirectory() as folder:
        model, tokenizer, rows, queries = setup(options, Path(folder))
    pad = tokenizer.pad_token_id
    encoded, asked = (encode_rows(tokenizer, texts, max_length=64) for texts in (rows, queries))
    draw = np.random.default_rng(options.seed)
    halves = np.stack([draw.permutation(len(rows)) < len(rows) // 2 for _ in range(options.subsets)])
    start = time.perf_counter()
    for s, half in enumerate(halves):
        for seed in range(options.seeds):
            name = f"{s}/{seed}"
            if name not in done:
                learned = train(
                    model, [encoded[i] for i in np.flatnonzero(half)], pad_token_id=pad, seed=seed, **RECIPE
                )
                done[name] = losses_of(learned, asked, pad_token_id=pad).tolist()
                if options.out:
                    write_json(options.out, {"key": key, "settings": settings, "losses": done})
    seconds = time.perf_counter() - start
    losses = np.array([[done[f"{s}/{seed}"] for seed in range(options.seeds)] for s in range(options.subsets)])
    whole = train(model, encoded, pad_token_id=pad, seed=0, **RECIPE)
    return Bank(
        start=model, whole=whole, tokenizer=tokenizer, rows=rows, queries=queries, halves=halves, losses=losses,
        seconds=seconds,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_bank_options(parser)
    parser.add_argument("--methods", nargs="+", choices=ALL_METHODS, default=list(ALL_METHODS))
    options = parser.parse_args()
    bank = make_bank(options, parser)
    model, rows, queries, pad = bank.start, bank.rows, bank.queries, bank.tokenizer.pad_token_id
    asked = encode_rows(bank.tokenizer, queries, max_length=64)
    task = Task(
        model=bank.whole, tokenizer=bank.tokenizer, train=rows, queries=queries, max_length=64, seed=options.seed
    )  # fmt: skip
    scores = all_scores(task, options.methods)
    before, after = (losses_of(m, asked, pad_token_id=pad) for m in (model, bank.whole))
    common = {
        "benchmark": "lds",
        "model": f"tiny ({sum(p.numel() for p in model.parameters()):,} numbers)",
        "num_rows": len(rows),
        "num_queries": len(queries),
        "subsets": options.subsets,
        "seeds": options.seeds,
        "threads": torch.get_num_threads(),
    }
    poisoned = np.arange(len(queries)) < options.queries // 2
    split_half, ceiling = bank.reliability
    print(
        json.dumps(
            common
            | {
                "mode": "training",
                "seconds": round(bank.seconds, 1),
                "split_half": split_half,
                "ceiling": ceiling,
                "loss_before": round(float(before.mean()), 4),
                "loss_after": round(float(after.mean()), 4),
                "loss_poisoned_before": round(float(before[poisoned].mean()), 4),
                "loss_poisoned_after": round(float(after[poisoned].mean()), 4),
            }
        ),
        flush=True,
    )
    measured = bank.measured
    for name, score in scores.items():
        foretold = bank.halves.astype(float) @ score.numpy()
        per_query = spearman_columns(foretold, measured)
        generator = np.random.default_rng(options.seed)
        draws = []
        for _ in range(options.bootstrap):
            s = generator.integers(0, options.subsets, options.subsets)
            q = generator.integers(0, len(queries), len(queries))
            draws.append(spearman_columns(foretold[np.ix_(s, q)], measured[np.ix_(s, q)]).mean())
        print(
            json.dumps(
                common
                | {
                    "mode": name,
                    "lds": round(float(per_query.mean()), 4),
                    "interval": [round(float(x), 4) for x in np.percentile(draws, (2.5, 97.5))],
                    "lds_poisoned": round(float(per_query[poisoned].mean()), 4),
                    "lds_clean": round(float(per_query[~poisoned].mean()), 4),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
