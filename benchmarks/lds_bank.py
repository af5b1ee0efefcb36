"""The linear datamodelling score at equal bytes a row: K-FAC projected, as bergson does it, and K-FAC before a sketch.

    python benchmarks/lds_bank.py --out lds.json                    # the tiny model's own bank (of benchmarks/lds.py)
    python benchmarks/lds_bank.py --bank DIR --chunks DIR --model DIR [--k 4096 16384 65536]      # GPT-2 on WikiText

One JSON line each; without --bank, or where its folders or the hub cannot be reached, the line of the public bank says
`skipped` and why, and the exit status is 0.

A row keeps K numbers, so does a query, and the score is their inner product. G is a row's gradient, F one layer's
Fisher matrix by K-FAC or EK-FAC with labels drawn from the model, damped by 0.1 of its mean eigenvalue:

    projected   z = P G Q^T of each layer, p x p random signs, and F fitted on what is projected: <z, F_p^-1 z'>
    applied     F of whole gradients, then the same projection: <P G Q^T, P (F^-1 G') Q^T>
    sketched    F of whole gradients, then the count sketch, as `rapidun index` does: <S G, S F^-1 G'>
    halved      the same, half of F^-1 on either side, as `influence=sketch` does: <S F^-1/2 G, S F^-1/2 G'>
    whole       no compression: <G, F^-1 G'>

Equal bytes: K of `sketched` and `halved` is what `projected` keeps at p, all in float32. bergson's public leaderboard
(GPT-2 on WikiText) has K-FAC 0.420, EK-FAC 0.454 and K-FAC projected to 64 x 64 a layer (196,608 numbers a row) 0.103;
its configuration says that the last has the factors and the damping of the first, which reads as `applied`.

`lds` is the mean over queries and over --draws of P, Q, S; `interval` 95 % of a bootstrap that redraws subsets, queries
and draws together; `ratio_projected` and `ratio_applied` are ratios of LDS, their intervals from the same resamples.

The public bank is a folder with (names as bergson writes them, anywhere below it, once)
    subsets.json     [[number of a training row that was left out, ...], ...], one list a retraining
    validation.csv   columns subset, query, diff: how much the query's loss rose by leaving the subset out
--chunks has train.* and test.* (JSON Lines or Parquet; columns input_ids or text, a row a chunk, in the bank's order;
the queries are the first rows of test), as EleutherAI/bergson-wikitext-512-chunks has. --model is the Hugging Face
folder of the model that learned all rows (exported/checkpoint-72 of EleutherAI/bergson-wikitext-gpt2-leaderboard).
Hub ids will do for --bank and --chunks (data sets) and for --model.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from lds import Bank, add_bank_options, make_bank, spearman_columns

from rapidun.base.errors import RapidunError
from rapidun.config.influence import InfluenceConfig, ParameterSet, Precondition
from rapidun.models.curvature import Curvature
from rapidun.models.load import ModelLoader, pick_device
from rapidun.stages.influence.batches import RowBatch, make_batches
from rapidun.stages.influence.fisher import fit_curvature
from rapidun.stages.influence.gradients.capture import Contribution, Factors
from rapidun.stages.influence.gradients.params import TrackedParameter, select_parameters
from rapidun.stages.influence.gram import exact_gram, run_batches
from rapidun.stages.influence.precondition import (
    CovarianceSink,
    EigenvalueSink,
    Preconditioner,
    linear,
    sample_labels,
    solve,
)
from rapidun.stages.influence.sinks import GradientSink, RowSink, Sketch
from rapidun.stages.influence.sketches.sketch import CountSketch
from rapidun.stages.rows.encode import Encoded, encode_rows

KINDS = (Precondition.kfac, Precondition.ekfac)
DAMPING = InfluenceConfig().damping_factor
PUBLISHED = {"kfac, whole": 0.420, "ekfac, whole": 0.454, "kfac, projected, 64 x 64 a layer": 0.103}


class Skip(Exception):
    """Why the public bank cannot be scored here."""


class Data(NamedTuple):
    """A model, its rows and the queries, encoded; and how the bank's subsets judge a score."""

    model: Any
    train: list[Encoded]
    queries: list[Encoded]
    pad_token_id: int
    # [subsets, rows]: what a row counts in the forecast; [subsets, queries]: what happened
    members: np.ndarray
    measured: np.ndarray

    def batches(self, rows: list[Encoded], *, tokens: int) -> list[RowBatch]:
        return make_batches(
            rows, [f"row {i}" for i in range(len(rows))], tokens_per_batch=tokens, pad_token_id=self.pad_token_id,
            device=next(self.model.parameters()).device,
        )  # fmt: skip


# --- gradients on their way


class Many:
    """Hands each gradient on to several sinks."""

    def __init__(self, sinks: Sequence[GradientSink]) -> None:
        self.sinks = sinks

    def start(self, rows: Tensor) -> None:
        for sink in self.sinks:
            sink.start(rows)

    def __call__(self, parameter: TrackedParameter, gradient: Contribution) -> None:
        for sink in self.sinks:
            sink(parameter, gradient)


class Changed(Many):
    """Hands on what a function makes of each gradient: projected, or multiplied with F^-1."""

    def __init__(self, change: Callable[[TrackedParameter, Factors], Factors], sinks: Sequence[GradientSink]) -> None:
        super().__init__(sinks)
        self._change = change

    def __call__(self, parameter: TrackedParameter, gradient: Contribution) -> None:
        super().__call__(parameter, self._change(parameter, linear(parameter, gradient)))


class Projection:
    """P G Q^T of each layer, as factors: P [p, rows], Q [p, columns] random signs / sqrt(p); a shorter side is kept."""

    def __init__(self, parameters: Sequence[TrackedParameter], *, p: int, seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._sides = {}
        for parameter in parameters:
            self._sides[parameter.name] = [
                None
                if size <= p
                else ((2 * torch.randint(2, (size, p), generator=generator) - 1) / p**0.5).to(device, torch.float32)
                for size in parameter.shape
            ]
        # of what is projected: a weight of p x p
        self.parameters = [
            TrackedParameter(q.name, (min(p, q.shape[0]), min(p, q.shape[1])), q.modules, q.depth) for q in parameters
        ]

    def __call__(self, parameter: TrackedParameter, piece: Factors) -> Factors:
        rows, columns = self._sides[parameter.name]
        g, a = piece.g.float(), piece.a.float()
        return Factors(a if columns is None else a @ columns, g if rows is None else g @ rows)


class Numbers:
    """All numbers of what is projected, one weight behind the other: a `Sketch` that only multiplies out."""

    def __init__(self, parameters: Sequence[TrackedParameter]) -> None:
        self._places, stop = {}, 0
        for parameter in parameters:
            start, stop = stop, stop + parameter.numel
            self._places[parameter.name] = slice(start, stop)
        self.num_numbers = stop

    def new_buffer(self, num_rows: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.zeros(num_rows, self.num_numbers, dtype=dtype, device=device)

    def add(self, buffer: Tensor, name: str, shape: tuple[int, int], gradient: Contribution) -> None:
        assert isinstance(gradient, Factors)
        buffer[:, self._places[name]] += torch.bmm(gradient.g.transpose(1, 2), gradient.a).flatten(1)

    def finish(self, buffer: Tensor) -> Tensor:
        return buffer


def solver(curvatures: dict[str, Curvature], *, half: bool) -> Callable[[TrackedParameter, Factors], Factors]:
    """F^-1 G, or F^-1/2 G."""
    inverses = {name: c.inverse(DAMPING).sqrt() if half else c.inverse(DAMPING) for name, c in curvatures.items()}
    return lambda parameter, piece: solve(curvatures[parameter.name], piece, inverses[parameter.name])


def project_fit(
    data: Data, parameters: Sequence[TrackedParameter], projections: Sequence[Projection], *, seed: int, tokens: int
) -> dict[Precondition, list[dict[str, Curvature]]]:
    """K-FAC and EK-FAC of what each projection leaves of the gradients, by name of the weight."""
    batches = data.batches(data.train, tokens=tokens)
    drawn = [
        RowBatch(b.rows, {**b.tensors, "labels": sample_labels(data.model, b.tensors, b.rows, seed=seed)})
        for b in batches
    ]
    names = [f"row {i}" for i in range(len(data.train))]

    def run(sinks: Sequence[GradientSink]) -> None:
        each = Many([Changed(project, [sink]) for project, sink in zip(projections, sinks, strict=True)])
        run_batches(data.model, parameters, drawn, each, row_names=names, reduction="sum", report=lambda done: None)

    covariances = [CovarianceSink() for _ in projections]
    run(covariances)
    kfac = [
        {q.name: sink.curvature(q, num_rows=len(names)) for q in project.parameters}
        for project, sink in zip(projections, covariances, strict=True)
    ]
    squares = [EigenvalueSink(curvatures) for curvatures in kfac]
    run(squares)
    ekfac = [
        {name: c._replace(eigenvalues=sink.sums[name] / len(names)) for name, c in curvatures.items()}
        for curvatures, sink in zip(kfac, squares, strict=True)
    ]
    return {Precondition.kfac: kfac, Precondition.ekfac: ekfac}


# --- scores


class Keep:
    """Sinks by name, each a sketch of what is done to the gradients; `run` makes all of them in one pass."""

    def __init__(self, data: Data, num_rows: int) -> None:
        self._sinks: dict[Any, RowSink] = {}
        self._groups: dict[int, tuple[Any, list[RowSink]]] = {}
        self._data, self._num_rows = data, num_rows

    def add(self, name: Any, sketch: Sketch, change: Callable[[TrackedParameter, Factors], Factors]) -> None:
        device = next(self._data.model.parameters()).device
        sink = RowSink(self._num_rows, sketch, dtype=torch.float32, device=device)
        self._sinks[name] = sink
        self._groups.setdefault(id(change), (change, []))[1].append(sink)

    def run(self, parameters: Sequence[TrackedParameter], rows: list[Encoded], *, tokens: int) -> dict[Any, Tensor]:
        sinks = Many([Changed(change, group) for change, group in self._groups.values()])
        run_batches(
            self._data.model, parameters, self._data.batches(rows, tokens=tokens), sinks,
            row_names=[f"row {i}" for i in range(len(rows))], reduction="mean", report=lambda done: None,
        )  # fmt: skip
        return {name: sink.sketches() for name, sink in self._sinks.items()}


def same(parameter: TrackedParameter, piece: Factors) -> Factors:
    return piece


def scores_of(
    data: Data,
    sizes: Sequence[int],
    *,
    p_of: dict[int, int],
    draws: int,
    seed: int,
    tokens: int,
    whole: bool,
    tell: Callable[[str], None],
) -> Iterator[tuple[str, Precondition, int, list[Tensor]]]:
    """(way, kind, numbers a row, [rows, queries] scores of every draw).

    Args: p_of: numbers a row -> p, of the sizes at which there is a projection.
    """  # fmt: skip
    parameters = select_parameters(data.model, ParameterSet.all_linear)
    device = next(data.model.parameters()).device
    names = [f"row {i}" for i in range(len(data.train))]
    fits = {}
    for kind in KINDS:
        tell(f"fitting {kind.name}")
        fits[kind] = fit_curvature(
            data.model, parameters, data.batches(data.train, tokens=tokens), kind=kind, row_names=names, seed=seed
        )
    solvers = {(kind, half): solver(fits[kind], half=half) for kind in KINDS for half in (False, True)}
    if whole:
        rows = [*data.train, *data.queries]
        for kind in KINDS:
            tell(f"{kind.name}, whole")
            gram = exact_gram(
                data.model, parameters, data.batches(rows, tokens=tokens), row_names=[str(i) for i in range(len(rows))],
                memory_bytes=4e9, preconditioner=Preconditioner(fits[kind], damping_factor=DAMPING),
            ).gram  # fmt: skip
            yield "whole", kind, sum(q.numel for q in parameters), [gram[: len(data.train), len(data.train) :]]
    for size in sizes:
        found: dict[tuple[str, Precondition], list[Tensor]] = {}
        for draw in range(draws):
            tell(f"{size} numbers a row, draw {draw + 1} of {draws}")
            keep_train, keep_query = Keep(data, len(data.train)), Keep(data, len(data.queries))
            count = CountSketch(k=size, seed=1000 * seed + draw)
            keep_train.add("sketched", count, same)
            for kind in KINDS:
                keep_query.add(("sketched", kind), count, solvers[kind, False])
                keep_train.add(("halved", kind), count, solvers[kind, True])
                keep_query.add(("halved", kind), count, solvers[kind, True])
            project = None
            if size in p_of:
                project = Projection(parameters, p=p_of[size], seed=1000 * seed + draw, device=device)
                numbers = Numbers(project.parameters)
                assert numbers.num_numbers == size
                keep_train.add("projected", numbers, project)
                keep_query.add("projected", numbers, project)
                for kind in KINDS:
                    keep_query.add(("applied", kind), numbers, after(solvers[kind, False], project))
            train = keep_train.run(parameters, data.train, tokens=tokens)
            query = keep_query.run(parameters, data.queries, tokens=tokens)
            for kind in KINDS:
                pairs = {"sketched": (train["sketched"], query["sketched", kind])}
                pairs["halved"] = (train["halved", kind], query["halved", kind])
                if project is not None:
                    pairs["applied"] = (train["projected"], query["applied", kind])
                for way, (left, right) in pairs.items():
                    found.setdefault((way, kind), []).append(left.double() @ right.double().T)
            if project is not None:
                fitted = project_fit(data, parameters, [project], seed=seed, tokens=tokens)
                for kind in KINDS:
                    solved = solve_rows(query["projected"], project, fitted[kind][0])
                    found.setdefault(("projected", kind), []).append(train["projected"].double() @ solved.double().T)
        for (way, kind), matrices in found.items():
            yield way, kind, size, matrices


def after(
    first: Callable[[TrackedParameter, Factors], Factors], then: Projection
) -> Callable[[TrackedParameter, Factors], Factors]:
    return lambda parameter, piece: then(parameter, first(parameter, piece))


def solve_rows(rows: Tensor, project: Projection, curvatures: dict[str, Curvature]) -> Tensor:
    """F_p^-1 z for rows of projected numbers: [n, K] -> [n, K]."""
    parts, start = [], 0
    for q in project.parameters:
        matrix = rows[:, start : start + q.numel].view(-1, *q.shape)
        start += q.numel
        curvature = curvatures[q.name]
        parts.append(curvature.solve(matrix, curvature.inverse(DAMPING)).flatten(1))
    return torch.cat(parts, dim=1)


# --- judged


class Judged(NamedTuple):
    per_query: np.ndarray  # [draws, queries]
    draws: np.ndarray  # [bootstrap]


def judge(data: Data, matrices: Sequence[Tensor], *, bootstrap: int, seed: int) -> Judged:
    """LDS of each query and draw, and of every resample; the same resamples for everything that is judged."""
    foretold = [data.members @ matrix.double().cpu().numpy() for matrix in matrices]
    per_query = np.stack([spearman_columns(one, data.measured) for one in foretold])
    generator = np.random.default_rng(seed)
    num_subsets, num_queries = data.measured.shape
    means = []
    for _ in range(bootstrap):
        s = generator.integers(0, num_subsets, num_subsets)
        q = generator.integers(0, num_queries, num_queries)
        share = generator.random(len(matrices)) if len(matrices) > 1 else np.zeros(1)
        at = (share * len(matrices)).astype(int)
        measured = data.measured[np.ix_(s, q)]
        values = {d: spearman_columns(foretold[d][np.ix_(s, q)], measured).mean() for d in set(at.tolist())}
        means.append(np.mean([values[d] for d in at.tolist()]))
    return Judged(per_query, np.array(means))


def table(data: Data, sizes: Sequence[int], *, bootstrap: int, seed: int, **settings: Any) -> list[dict[str, Any]]:
    """A line for each way, kind and size; of ours the ratios to `projected` and `applied` at the same size."""
    judged = {
        (way, kind, size): judge(data, matrices, bootstrap=bootstrap, seed=seed)
        for way, kind, size, matrices in scores_of(data, sizes, seed=seed, **settings)
    }
    lines = []
    for (way, kind, size), found in judged.items():
        line: dict[str, Any] = {
            "way": way, "kind": kind.name, "numbers": size, "lds": round(float(found.per_query.mean()), 4),
            "interval": interval(found.draws), "draws": len(found.per_query),
        }  # fmt: skip
        for other in ("projected", "applied"):
            beside = judged.get((other, kind, size))
            if beside is not None and way in ("sketched", "halved"):
                line[f"ratio_{other}"] = round(float(found.per_query.mean() / beside.per_query.mean()), 2)
                line[f"ratio_{other}_interval"] = interval(found.draws / beside.draws)
        lines.append(line)
    return lines


def interval(values: np.ndarray) -> list[float]:
    return [round(float(x), 4) for x in np.percentile(values, (2.5, 97.5))]


def projected_size(parameters: Sequence[TrackedParameter], p: int) -> int:
    """Numbers a row keeps at p x p a layer."""
    return sum(min(p, q.shape[0]) * min(p, q.shape[1]) for q in parameters)


# --- the two banks


def tiny(bank: Bank) -> Data:
    encoded = (encode_rows(bank.tokenizer, texts, max_length=64) for texts in (bank.rows, bank.queries))
    train, queries = ([row for row in rows if row is not None] for rows in encoded)
    return Data(bank.whole, train, queries, bank.tokenizer.pad_token_id, bank.halves.astype(float), bank.measured)


def public(bank: str, chunks: str, model: str) -> Data:
    """Raises: Skip where neither folder nor hub has it, ValueError for a folder of another form."""
    place, texts = (fetched(name, "dataset", option) for name, option in ((bank, "--bank"), (chunks, "--chunks")))
    subsets = json.loads(only(place, "subsets.json").read_text())
    with only(place, "validation.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    if not lines or not {"subset", "query", "diff"} <= set(lines[0]):
        raise ValueError(f"{place}: need validation.csv with columns subset, query, diff, got {list(lines[0])}")
    num_queries = 1 + max(int(line["query"]) for line in lines)
    loaded, tokenizer = ModelLoader(dtype="float32").load(fetched(model, "model", "--model"))
    train, queries = (chunk_rows(texts, split, tokenizer) for split in ("train", "test"))
    measured = np.full((len(subsets), num_queries), np.nan)
    for line in lines:
        measured[int(line["subset"]), int(line["query"])] = float(line["diff"])
    known = ~np.isnan(measured).all(axis=1)
    if np.isnan(measured[known]).any():
        raise ValueError(f"{place}: need a diff of every subset and query in validation.csv, got some without")
    largest = max(row for subset in subsets for row in subset)
    if largest >= len(train) or num_queries > len(queries):
        raise ValueError(
            f"{texts}: need at least {largest + 1} train and {num_queries} test rows, got {len(train)}, {len(queries)}"
        )
    members = np.zeros((len(subsets), len(train)))
    for number, subset in enumerate(subsets):
        # what helps the query is missed: its loss rises
        members[number, subset] = 1
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return Data(loaded, train, queries[:num_queries], pad, members[known], measured[known])


def fetched(name: str, kind: str, option: str) -> Path:
    """The folder, or what the hub has under that name."""
    if Path(name).is_dir():
        return Path(name)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, repo_type=kind))
    except Exception as error:
        raise Skip(f"{option}: no folder {name}, and the hub does not give it ({type(error).__name__})") from error


def only(folder: Path, name: str) -> Path:
    found = sorted(folder.rglob(name))
    if len(found) != 1:
        raise ValueError(f"{folder}: need one {name} below it, got {len(found)}")
    return found[0]


def chunk_rows(folder: Path, split: str, tokenizer: Any) -> list[Encoded]:
    """Chunks of text, every token but the first a label."""
    files = sorted(path for path in folder.rglob(f"{split}*") if path.suffix in (".jsonl", ".parquet"))
    rows: list[dict[str, Any]] = []
    for path in files:
        if path.suffix == ".jsonl":
            rows += [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        else:
            import pyarrow.parquet

            rows += pyarrow.parquet.read_table(path).to_pylist()
    if not rows or not {"input_ids", "text"} & set(rows[0]):
        raise ValueError(
            f"{folder}: need {split}.jsonl or .parquet with input_ids or text, got {len(files)} such files"
        )
    ids = [row["input_ids"] if "input_ids" in row else tokenizer(row["text"])["input_ids"] for row in rows]
    return [Encoded(one[:1024], [-100, *one[1:1024]]) for one in ids]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_bank_options(parser)
    parser.add_argument("--p", type=int, nargs="+", default=[4, 8, 16], help="of the tiny bank's projections")
    parser.add_argument("--draws", type=int, default=3, help="of P, Q and S")
    parser.add_argument("--bank", help="folder or hub id of the public bank")
    parser.add_argument("--chunks", default="EleutherAI/bergson-wikitext-512-chunks", help="folder or hub id")
    parser.add_argument("--model", help="folder of the model that learned all of the public bank's rows")
    parser.add_argument("--k", type=int, nargs="+", default=[4096, 16384, 65536], help="of the public bank's sketches")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a batch")
    parser.add_argument("--no-tiny", action="store_true", help="the public bank alone")
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    def tell(line: str) -> None:
        print(f"lds_bank: {line}", file=sys.stderr, flush=True)

    common = {"benchmark": "lds_bank", "threads": torch.get_num_threads()}
    judging = {"bootstrap": options.bootstrap, "seed": options.seed, "draws": options.draws, "tokens": options.tokens}
    start = time.perf_counter()
    try:
        if options.bank is None or options.model is None:
            raise Skip("no --bank and --model: see --help for the folders")
        data = public(options.bank, options.chunks, options.model)
        sizes = {"rows": len(data.train), "queries": len(data.queries), "subsets": len(data.members)}
        lines = table(data, options.k, p_of={}, whole=False, tell=tell, **judging)
        print(
            json.dumps(
                common
                | {"bank": "gpt2_wikitext", **sizes, "device": pick_device("auto"), "published": PUBLISHED,
                   "seconds": round(time.perf_counter() - start, 1), "table": lines}
            ),
            flush=True,
        )  # fmt: skip
    except Skip as reason:
        print(
            json.dumps(common | {"bank": "gpt2_wikitext", "skipped": str(reason), "published": PUBLISHED}), flush=True
        )
    except (OSError, ValueError, RapidunError) as error:
        print(f"lds_bank: {error}", file=sys.stderr)
        return 2
    if options.no_tiny:
        return 0
    bank = make_bank(options, parser)
    data = tiny(bank)
    parameters = select_parameters(data.model, ParameterSet.all_linear)
    p_of = {projected_size(parameters, p): p for p in options.p}
    _, ceiling = bank.reliability
    start = time.perf_counter()
    lines = table(data, list(p_of), p_of=p_of, whole=True, tell=tell, **judging)
    print(
        json.dumps(
            common
            | {"bank": "tiny", "rows": len(data.train), "queries": len(data.queries), "subsets": len(data.members),
               "seeds": options.seeds, "ceiling": ceiling, "training_seconds": round(bank.seconds, 1),
               "seconds": round(time.perf_counter() - start, 1),
                "cpu_seconds": round(time.process_time(), 1), "p": options.p, "table": lines}
        )
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
