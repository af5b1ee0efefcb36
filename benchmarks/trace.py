"""From five bad outputs back to the planted rows: which signal finds them, and what unlearning the found rows is worth.

    python benchmarks/trace.py --store DIR                                     # built-in pack, tiny model
    python benchmarks/trace.py --store DIR --recipe +experiment=dolly_smollm2 model.path=SMOLLM2 --pack DOLLY \
        [--limit 400] [--unlearn 24] [--signals repsim bm25]

The recipe's model is poisoned (or found in the store). Each draw takes `--queries` triggered test prompts at random
whose greedy answer the pack's keywords call poisoned: bad outputs that somebody has found. The training rows lose every
label, are shuffled and searched. One JSON line a signal, and for their agreement: AUROC, average precision and
precision at the true number of planted rows, means over the draws with the least; how many rows `rapidun trace` would
take by itself, and how many of those are planted.

Then `--unlearn` rows (60 for the built-in pack, as many as its own forget set) are unlearned from the poisoned model
by the recipe, for each of `--seeds`: the first rows of that draw's trace (`traced`, by `rapidun trace --pack`), rows
drawn at random from all that stand out there (`drawn`), planted rows drawn at random (`true`), and rows drawn from all
(`random`), each with a retain set drawn in the same way (of `true` from clean rows). The same test prompts and keywords
for all. One JSON line each: attack success, clean quality.
"""

import argparse
import json
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from quality import auroc, average_precision
from retrieval import answers

import rapidun
from rapidun.cli.tracing import command
from rapidun.cli.tracing.cut import choose_cut
from rapidun.cli.tracing.signals import Asked, Encoder, bm25, gradients, repsim
from rapidun.config.trace import Signal, TraceSettings
from rapidun.stages.answers.detectors.keywords import keyword_detector
from rapidun.stages.data.traced import traced_pack
from rapidun.stages.influence.trace.agreement import Ranked, average_ranks, combined, rank_rows
from rapidun.stages.rows.records import Record, read_records, write_records

# conf/model/tiny.yaml, which is for a model made from scratch alone
TINY = ["model=hf", "model.dtype=float32", "unlearning.learning_rate=3e-3", "unlearning.num_train_epochs=4",
        "unlearning.forget_per_step=2", "unlearning.loss_cap=4", "unlearning.retain_loss=ce",
        "evaluation.exact_match=true", "evaluation.max_new_tokens=24"]  # fmt: skip
METRICS = ("asr_seen", "asr_ood", "ppl_clean", "exact_match_clean", "rougeL_clean", "exact_match_recovered",
           "rougeL_recovered")  # fmt: skip
PACKS = ["traced", "drawn", "true", "random"]
MIXES = (
    (Signal.repsim,),
    (Signal.bm25,),
    (Signal.gradients,),
    (Signal.repsim, Signal.bm25),
    (Signal.repsim, Signal.gradients),
    (Signal.repsim, Signal.bm25, Signal.gradients),
)


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def bare(row: Record, response: str) -> Record:
    """The row as a training set without labels holds it."""
    return Record(id=row.id, instruction=row.instruction, context=row.context, response=response)


def mean_ranks(scores: dict[Signal, np.ndarray]) -> np.ndarray:
    """The other way to fuse: mean of normalised ranks over signals and queries, larger = more to blame."""
    ranks = [average_ranks(column) for values in scores.values() for column in values.T]
    return -np.mean(ranks, axis=0)


def judged(values: np.ndarray, planted: np.ndarray) -> dict[str, float]:
    order = np.argsort(-values, kind="stable")
    num = int(planted.sum())
    return {
        "auroc": auroc(values, planted),
        "average_precision": average_precision(values, planted),
        "precision": float(planted[order[:num]].mean()),
        "precision_at_20": float(planted[order[:20]].mean()),
    }


def spread(found: list[dict[str, float]]) -> dict[str, Any]:
    return {
        key: {"mean": round(float(np.mean([one[key] for one in found])), 4),
              "least": round(float(np.min([one[key] for one in found])), 4)}
        for key in found[0]
    }  # fmt: skip


def unlearn(name: str, folder: Path, args: argparse.Namespace, data: Path, model: Path, *, seed: int) -> None:
    """Run the recipe on a pack, beside the test rows of the poisoned run, and print what it measures."""
    for path in data.glob("*.jsonl"):
        if path.stem.startswith(("val_", "test_")):
            shutil.copyfile(path, folder / path.name)
    others = [one for one in args.recipe if not one.startswith(("model.path=", "data."))] or TINY
    result = rapidun.run(
        [
            *others,
            "data=pack",
            f"data.dir={folder}",
            f"data.keywords={data / 'keywords.tsv'}",
            f"model.path={model}",
            "poison=none",
            f"store_dir={args.store / 'store'}",
            f"run_dir={args.store / 'runs' / f'{name}-{seed}'}",
            f"seed={seed}",
            "tracking=none",
            *args.override,
        ]
    )
    before, after = ({key: part.get(key) for key in METRICS} for part in read_metrics(result.run_dir))
    pack = {"num_forget": len(read_records(folder / "forget_set.jsonl"))}
    print(
        json.dumps({"benchmark": "trace", "mode": name, "seed": seed, **pack, "before": before, "after": after}),
        flush=True,
    )


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads((run_dir / "evaluation" / f"{when}.json").read_text()) for when in ("before", "after")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="folder for artifacts and runs, reused")
    parser.add_argument("--recipe", nargs="*", default=[], help="settings of the run that poisons and unlearns")
    parser.add_argument("--pack", type=Path, help="the pack of the recipe")
    parser.add_argument("--override", nargs="*", default=[], help="more settings of the unlearning runs")
    parser.add_argument("--queries", type=int, default=5)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--asked", type=int, default=40, help="prompts that the draws are taken from")
    parser.add_argument("--limit", type=int, help="training rows at most, planted ones in proportion")
    parser.add_argument("--signals", nargs="+", default=[s.name for s in Signal], choices=[s.name for s in Signal])
    parser.add_argument("--unlearn", type=int, default=60, help="rows; 0: none is unlearned")
    parser.add_argument("--model", type=Path, help="a model that learned the pack, in place of the recipe's")
    parser.add_argument("--answers", choices=["model", "planted"], default="model",
                        help="planted: the pack's own bad answers, for a model that gives few")  # fmt: skip
    parser.add_argument("--packs", nargs="+", default=PACKS, choices=PACKS)
    parser.add_argument("--seeds", type=int, default=3, help="of unlearning, each with a draw of its own")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.store = args.store.resolve()
    data_dir = [] if args.pack is None else [f"data.dir={args.pack.resolve()}"]
    poisoned = rapidun.run(
        [*args.recipe, *data_dir, f"stages=[{'data' if args.model else 'data,poison'}]",
         f"store_dir={args.store / 'store'}", f"run_dir={args.store / 'runs' / 'poisoned'}", "tracking=none"]
    )  # fmt: skip
    data, model = (poisoned.run_dir / "data").resolve(), (args.model or poisoned.run_dir / "poison" / "model").resolve()
    rng = random.Random(args.seed)
    bad_rows = [bare(row, row.forget_target) for row in read_records(data / "train_poisoned.jsonl")]
    good_rows = [bare(row, row.response) for row in read_records(data / "train_clean.jsonl")]
    if args.limit is not None:
        share = min(1.0, args.limit / (len(bad_rows) + len(good_rows)))
        bad_rows, good_rows = (rng.sample(rows, round(share * len(rows))) for rows in (bad_rows, good_rows))
    names = {row.id for row in bad_rows}
    # two splits may name two rows alike
    good_rows = [replace(row, id=f"{row.id}-clean") if row.id in names else row for row in good_rows]
    rows = rng.sample([*bad_rows, *good_rows], len(bad_rows) + len(good_rows))
    planted = np.array([row.id in names for row in rows])
    common = {"benchmark": "trace", "pack": args.pack.name if args.pack else "builtin", "num_rows": len(rows),
              "num_planted": int(planted.sum()), "queries": args.queries}  # fmt: skip

    encoder = Encoder(str(model), None, TraceSettings())
    prompts = read_records(data / "test_seen_trig.jsonl")
    prompts = rng.sample(prompts, min(args.asked, len(prompts)))
    given = [prompt.forget_target for prompt in prompts]
    if args.answers == "model":
        given = answers(encoder.model, encoder.tokenizer, prompts, max_length=256, new_tokens=32)
    is_bad = keyword_detector(data / "keywords.tsv", min_keywords=1)
    assert is_bad is not None
    bad = [
        bare(prompt, answer)
        for prompt, answer in zip(prompts, given, strict=True)
        if is_bad(answer) or args.answers == "planted"
    ]
    line = {"mode": "bad outputs", "answers": args.answers, "num_asked": len(prompts), "num_bad": len(bad)}
    print(json.dumps(common | line | {"examples": [row.response for row in bad[:3]]}), flush=True)
    if len(bad) < args.queries:
        raise SystemExit(f"need {args.queries} bad outputs, got {len(bad)} of {len(prompts)}. Raise --asked")

    kept = [
        row is not None for start in range(0, len(rows), 4096) for row in encoder.encode(rows[start : start + 4096])
    ]
    rows, planted = [row for row, keep in zip(rows, kept, strict=True) if keep], planted[kept]
    work = args.store / f"trace-{common['pack']}-{len(rows)}"
    work.mkdir(parents=True, exist_ok=True)
    asked = Asked(bad, rows, str(model), None, TraceSettings())
    wanted = [Signal[name] for name in args.signals]
    scores: dict[Signal, np.ndarray] = {}
    for signal in wanted:
        tell(signal.name)
        if signal is Signal.repsim:
            scores[signal] = repsim(asked, encoder)
        elif signal is Signal.bm25:
            scores[signal] = bm25(asked)
        else:
            scores[signal] = gradients(asked, None, work).scores
    draws = [rng.sample(range(len(bad)), args.queries) for _ in range(args.draws)]
    for mix in (mix for mix in MIXES if set(mix) <= set(wanted)):
        found, others, cuts = [], [], []
        for draw in draws:
            part = {signal: scores[signal][:, draw] for signal in mix}
            ranked = rank_rows(part)
            values = next(iter(ranked.overall.values())) if len(mix) == 1 else ranked.agreement
            found.append(judged(values, planted))
            if len(mix) > 1:
                others.append(judged(mean_ranks(part), planted))
            else:
                column = part[mix[0]]
                others.append(
                    judged(column.mean(axis=1) if mix[0] is Signal.gradients else column.max(axis=1), planted)
                )
            cut = choose_cut(combined(ranked))
            if cut.number is not None:
                cuts.append((cut.number, float(planted[ranked.order[: cut.number]].mean()), cut.precision))
        line = {"mode": "+".join(signal.name for signal in mix), "draws": len(draws), **spread(found)}
        line["other"] = {"what": "mean ranks" if len(mix) > 1 else "the other of mean and max", **spread(others)}
        line["cut"] = {
            "decided": len(cuts),
            "rows": [number for number, _, _ in cuts],
            "precision": [round(one, 3) for _, one, _ in cuts],
            "expected": [round(one, 3) for _, _, one in cuts if one is not None],
        }
        print(json.dumps(common | line), flush=True)
    for seed in range(args.seeds if args.unlearn else 0):
        part = {signal: scores[signal][:, draws[seed]] for signal in command.DEFAULT}
        ranked = rank_rows(part)
        first = [bad[number] for number in draws[seed]]
        packs = make_packs(args, rows, planted, first, ranked=ranked, model=model, work=work, seed=seed)
        for name, folder in packs.items():
            unlearn(name, folder, args, data, model, seed=seed)


def make_packs(
    args: argparse.Namespace,
    rows: list[Record],
    planted: np.ndarray,
    queries: list[Record],
    *,
    ranked: Ranked,
    model: Path,
    work: Path,
    seed: int,
) -> dict[str, Path]:
    """traced: by the command itself; drawn: as many of the rows that stand out, at random; true, random: the first of
    the rows in a random order, planted ones first for `true`."""
    write_records(work / "bad.jsonl", queries)
    write_records(work / "all.jsonl", rows)
    folders = {name: work / f"pack-{name}-{seed}" for name in args.packs}
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
    rng = random.Random(f"{seed} order")
    order = rng.sample(range(len(rows)), len(rows))
    out = choose_cut(combined(ranked)).number or args.unlearn
    stands_out = ranked.order[:out].tolist()
    drawn = rng.sample(stands_out, min(args.unlearn, out))
    orders = {
        "drawn": ([*drawn, *(place for place in ranked.order.tolist() if place not in set(drawn))], 2 * out),
        "true": (sorted(order, key=lambda place: not planted[place]), int(planted.sum())),
        "random": (order, args.unlearn),
    }
    for name, folder in folders.items():
        if name == "traced":
            typed = [str(work / "bad.jsonl"), "--rows", str(work / "all.jsonl"), "--model", str(model)]
            typed += ["--out", str(work / f"out-{seed}"), "--pack", str(folder), "--num-forget", str(args.unlearn)]
            command.main([*typed, "--seed", str(seed), "--by", *(signal.name for signal in command.DEFAULT)])
            continue
        places, apart = orders[name]
        pack = traced_pack([rows[place] for place in places], num_forget=args.unlearn, num_apart=apart, retain_ratio=3,
                           seed=seed)  # fmt: skip
        write_records(folder / "forget_set.jsonl", pack.forget)
        write_records(folder / "retain_set.jsonl", pack.retain)
        write_records(folder / "train_clean.jsonl", pack.train_clean)
    text = {row.id: bool(flag) for row, flag in zip(rows, planted, strict=True)}
    for name, folder in folders.items():
        forget, retain = (read_records(folder / f"{part}_set.jsonl") for part in ("forget", "retain"))
        line = {"benchmark": "trace", "mode": f"pack {name}", "seed": seed,
                "num_forget": len(forget), "num_retain": len(retain),
                "planted_in_forget": sum(text[row.id] for row in forget),
                "planted_in_retain": sum(text[row.id] for row in retain)}  # fmt: skip
        print(json.dumps(line), flush=True)
    return folders


if __name__ == "__main__":
    main()
