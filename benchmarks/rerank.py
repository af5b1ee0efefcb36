"""`rapidun index top --rerank N`: how many of the exactly best rows are found, before and after, and the seconds.

    python benchmarks/rerank.py [--k 256 1024 4096] [--n 20 50 100]

The built-in world and the tiny model that learned it (`stages=[data,poison]`, in --store where that is given). An index
of its training rows for each --k; the queries are validation rows with a trigger and without; the truth is the exact
influence of every row on every query, all gradients at once (`influence=exact`). `recall` is the share of the exactly
best 10 among the first 10 of a query, with a 95 % bootstrap interval over queries. `seconds` is the processor
time of the whole command, which other programs cannot stretch, `extra` what --rerank adds; `brute_force` that of exact
scores of every row for every query.
One JSON line for each k.
"""

import argparse
import json
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from quality import interval

import rapidun
from rapidun.cli.main import main as command
from rapidun.config.influence import ParameterSet, Score
from rapidun.models.load import ModelLoader
from rapidun.stages.influence.batches import make_batches
from rapidun.stages.influence.gradients.params import select_parameters
from rapidun.stages.influence.gram import exact_gram
from rapidun.stages.influence.scores import influence_scores
from rapidun.stages.rows.encode import encode_rows
from rapidun.stages.rows.records import Record, read_records, write_records

BEST = 10


def brute_force(model_folder: Path, rows: list[Record], queries: list[Record]) -> tuple[np.ndarray, float]:
    """[rows, queries] exact cosines, and the seconds of processor time."""
    start = time.process_time()
    model, tokenizer = ModelLoader(dtype="float32", device="cpu").load(model_folder)
    records = [*rows, *queries]
    encoded = encode_rows(tokenizer, [(r.instruction, r.context, r.response) for r in records], max_length=256)
    names = [record.id for record in records]
    batches = make_batches(
        [row for row in encoded if row is not None], names, tokens_per_batch=2048,
        pad_token_id=tokenizer.pad_token_id, device=torch.device("cpu"),
    )  # fmt: skip
    parameters = select_parameters(model, ParameterSet.all_linear)
    asked = range(len(rows), len(records))
    result = exact_gram(model, parameters, batches, row_names=names, memory_bytes=4e9, queries=asked)
    scores = influence_scores(result.gram, score=Score.cosine, norms=result.norms, query_norms=result.query_norms)
    scores = scores[: len(rows)]
    return scores.numpy(), time.process_time() - start


def recall(lines: list[dict[str, object]], truth: np.ndarray) -> dict[str, object]:
    best = np.argsort(-truth, axis=0, kind="stable")[:BEST]
    shares = np.array([len(set(best[:, q]) & set(line["rows"][:BEST])) / BEST for q, line in enumerate(lines)])  # type: ignore[index]
    return {"recall": round(float(shares.mean()), 3), "interval": interval(shares, draws=2000, seed=0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[256, 1024, 4096], help="numbers of a row")
    parser.add_argument("--n", type=int, nargs="+", default=[20, 50, 100], help="rows of a query that are scored again")
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--store", type=Path, help="a store, which may have the poisoned model already")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        store = args.store or root / "store"
        with redirect_stdout(sys.stderr):
            run = rapidun.run(["stages=[data,poison]", f"store_dir={store}", f"run_dir={root / 'run'}"]).run_dir
        data, model = run / "data", run / "poison" / "model"
        rows = [row for name in ("train_poisoned", "train_clean") for row in read_records(data / f"{name}.jsonl")]
        asked = [read_records(data / f"{name}.jsonl") for name in ("val_seen_trig", "val_clean")]
        queries = [row for split in asked for row in split[: args.queries // 2]]
        write_records(root / "rows.jsonl", rows)
        write_records(root / "queries.jsonl", queries)
        truth, seconds = brute_force(model, rows, queries)

        def index(verb: str, *words: object) -> float:
            start = time.process_time()
            with redirect_stdout(sys.stderr):
                status = command(["index", verb, *map(str, words), "--model", str(model), "--device", "cpu"])
            if status:
                raise SystemExit(status)
            return time.process_time() - start

        for k in args.k:
            place = root / f"index{k}"
            built = index("build", "--rows", root / "rows.jsonl", "--out", place, "--k", k, "--response", "response")
            ask = [place, "--queries", root / "queries.jsonl", "--response", "response", "--k", 100]
            found: dict[str, object] = {}
            plain = index("top", *ask, "--out", root / "plain")
            lines = [json.loads(line) for line in (root / "plain" / "top.jsonl").open()]
            found["sketch"] = {**recall(lines, truth), "seconds": round(plain, 2)}
            for n in args.n:
                out = root / f"again{k}_{n}"
                took = index("top", *ask, "--out", out, "--rerank", n, "--rows", root / "rows.jsonl")
                lines = [json.loads(line) for line in (out / "top.jsonl").open()]
                for query, line in enumerate(lines):
                    exact = truth[line["rows"][:n], query]
                    if not np.allclose(line["scores"][:n], exact, rtol=1e-3, atol=1e-5):
                        raise SystemExit(f"query {query}: scores of --rerank are not the exact ones")
                found[f"rerank_{n}"] = {
                    **recall(lines, truth), "seconds": round(took, 2), "extra": round(took - plain, 2)
                }  # fmt: skip
            print(
                json.dumps(
                    {"benchmark": "rerank", "k": k, "rows": len(rows), "queries": len(queries), "best": BEST,
                     "threads": 1, "build": round(built, 1), "brute_force": round(seconds, 1), **found}
                ),
                flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
