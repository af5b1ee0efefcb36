"""What `rapidun index build|fit|score|top` do."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rapidun.base.errors import ArtifactError, DataError
from rapidun.base.files import sha256_file, sha256_json
from rapidun.base.slow import Slow
from rapidun.cli.progress import Progress
from rapidun.config.index import IndexSettings
from rapidun.config.influence import InfluenceConfig, Precondition, Score
from rapidun.models.load import pick_device
from rapidun.stages.influence.index.curvature import (
    TENSORS,
    check_fits,
    factors_fingerprint,
    fit_factors,
    fit_recipe,
    is_fitted,
    read_factors,
    write_factors,
)
from rapidun.stages.influence.index.gradients import GradientRows, count_cuts, describe_model, settings_of
from rapidun.stages.influence.index.manifest import (
    MANIFEST,
    Manifest,
    check_claim,
    check_room_for,
    check_same,
    claim_folder,
    new_recipe,
    open_manifest,
)
from rapidun.stages.influence.index.output import Ranked, Rerank, write_ranked, write_scores, write_top
from rapidun.stages.influence.index.reader import Index
from rapidun.stages.influence.index.rerank import rerank
from rapidun.stages.influence.index.score import TopRows, stream_scores
from rapidun.stages.influence.index.verify import drop_damaged
from rapidun.stages.influence.index.workers import run_workers
from rapidun.stages.influence.index.writer import Vectors, build_shards
from rapidun.stages.influence.precondition import Preconditioner
from rapidun.stages.influence.tokenwise import write_tokens
from rapidun.stages.rows.cuts import Cuts, cut_warning
from rapidun.stages.rows.records import Record, read_records

RERANKED = "reranked.jsonl"
MEND = "Build the index with another --max-length to keep more"


def _build(args: argparse.Namespace) -> int:
    settings: IndexSettings = args.settings
    check_room_for(args.out)
    records = read_records(args.rows)
    args.response = _response(args, records)
    source = {
        **describe_model(settings, model=args.model, adapter=args.adapter),
        "data": sha256_file(args.rows),
        "response": args.response,
        # what may change a last digit
        "tokens_per_batch": settings.tokens_per_batch,
        "threads": settings.threads,
    }
    recipe = new_recipe(
        num_rows=len(records), k=settings.k, dtype=settings.dtype, shard_rows=settings.shard_rows, source=source
    )
    manifest = Manifest(args.out, recipe)
    if (args.out / MANIFEST).is_file():
        check_claim(manifest)
        drop_damaged(manifest, tell=lambda line: print(line, file=sys.stderr))
    report = Progress(args.out, "shards")
    missing = [shard for shard in range(manifest.num_shards) if not manifest.is_done(shard)]
    if missing and args.workers > 1:
        cuts = count_cuts(settings, model=args.model, records=records, response=args.response)
        del records
        _build_with_workers(args, report, manifest)
    elif missing:
        with _threads(settings.threads):
            rows = GradientRows(
                settings, model=args.model, adapter=args.adapter, records=records, response=args.response
            )
            rows.check_room()
            # only now: what could not be loaded claims no folder
            claim_folder(args.out, recipe)
            report.start(manifest.num_shards - len(missing))
            rows.on_rows = _rows_made(args.out, manifest, missing)
            build_shards(manifest, rows.vectors, on_shard=report, tell=lambda line: print(line, file=sys.stderr))
            cuts = rows.cuts
    report.end()
    if missing:
        _say_cuts(cuts, settings, mend="Pass --max-length to keep more")
    size = sum(manifest.layout(shard).nbytes for shard in range(manifest.num_shards))
    print(
        f"{args.out}: {manifest.num_rows} rows of {manifest.k} numbers ({manifest.dtype.name}), "
        f"{manifest.num_shards} shards ({manifest.num_shards - len(missing)} were there), {size / 1e6:.1f} MB"
    )
    return 0


def _rows_made(out: Path, manifest: Manifest, missing: Sequence[int]) -> Callable[[int], None]:
    """Lines between those of whole shards, of which one may take long."""
    total, made = sum(manifest.layout(shard).num_rows for shard in missing), 0
    slow = Slow(str(out), unit="rows")

    def say(number: int) -> None:
        nonlocal made
        made += number
        slow(made, total)

    return say


def _say_cuts(cuts: Cuts, settings: IndexSettings, *, mend: str) -> None:
    if message := cut_warning("index", cuts, max_length=settings.max_length, mend=mend):
        print(f"rapidun: {message}", file=sys.stderr)


def _build_with_workers(args: argparse.Namespace, report: Progress, manifest: Manifest) -> None:
    """Raises: ArtifactError if the index is not finished when all workers have ended (says why)."""
    num_gpus = torch.cuda.device_count() if pick_device(args.device) == "cuda" else 0

    def done() -> int:
        return sum(map(manifest.is_done, range(manifest.num_shards)))

    report.start(done())
    # the last of two equal options counts
    messages = run_workers(
        ["index", *args.argv, "--workers", "1"],
        count=min(args.workers, manifest.num_shards),
        num_gpus=num_gpus,
        on_poll=lambda: report(done(), manifest.num_shards),
    )
    if done() < manifest.num_shards:
        # each has met a fault of its own, or all the same one: it is mended one at a time
        raise ArtifactError(messages[0])
    for message in messages:
        print(f"rapidun: {message} (the others made what it left)", file=sys.stderr)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit(args: argparse.Namespace) -> int:
    check_room_for(args.out)
    manifest = open_manifest(args.index)
    settings, described = _described(args, manifest)
    # fits into memory where the index was made
    settings = dataclasses.replace(settings, tokens_per_batch=manifest.recipe["source"]["tokens_per_batch"])
    kind = Precondition[args.kind]
    records = read_records(args.rows)
    args.response = _response(args, records)
    recipe = fit_recipe(
        described, kind=kind, rows=args.rows, num_rows=len(records), response=args.response, seed=args.seed
    )
    was_there = is_fitted(args.out, recipe)
    if not was_there:
        rows = GradientRows(settings, model=args.model, adapter=args.adapter, records=records, response=args.response)
        report = Progress(args.out, "batches")
        report.start()
        curvatures = fit_factors(rows, kind=kind, seed=args.seed, on_batch=lambda done, total, _: report(done, total))
        report.end()
        _say_cuts(rows.cuts, settings, mend=MEND)
        write_factors(args.out, recipe, curvatures)
    size = (args.out / TENSORS).stat().st_size
    print(
        f"{args.out}: {kind.name}, fitted on {len(records)} rows, {size / 1e6:.1f} MB"
        f"{' (was there and is kept)' if was_there else ''}"
    )
    return 0


def _score(args: argparse.Namespace) -> int:
    check_room_for(args.out)
    records = _indexed_records(args) if args.rerank else []
    index, query, rows = _query(args)
    blocks = _stream(args, index, query.vectors)
    best = TopRows(len(query.ids), min(args.rerank or 1, index.num_rows))
    # of an earlier run: these scores are not its own
    (args.out / RERANKED).unlink(missing_ok=True)
    write_scores(best.watch(blocks) if args.rerank else blocks, index, query.ids, args.out)
    print(f"{args.out / 'scores.npy'}: {index.num_rows} rows, {len(query.ids)} queries, {_kind(args)}")
    if args.rerank:
        ranked = _rerank(args, index, rows, records)(best.results())
        write_ranked(ranked, index, query.ids, args.out / RERANKED)
        print(f"{args.out / RERANKED}: {_reranked(args, index)}")
    return 0


def _top(args: argparse.Namespace) -> int:
    check_room_for(args.out)
    records = _indexed_records(args) if args.tokens or args.rerank else []
    index, query, rows = _query(args)
    again = {"rerank": _rerank(args, index, rows, records), "num_reranked": args.rerank} if args.rerank else {}
    best = write_top(
        _stream(args, index, query.vectors), index, query.ids, args.out, k=args.k, per_row=args.per_row, **again
    )
    shown = f"the best {min(args.k, index.num_rows)} of {index.num_rows} rows, {_kind(args)}"
    print(f"{args.out / 'top.jsonl'}: {shown}{f'; {_reranked(args, index)}' if args.rerank else ''}")
    if args.tokens:
        encoded = rows.encode(rows.records)
        target = index.manifest.recipe["source"]["response"]
        pairs = []
        for number in range(len(query.ids)):
            query_row = encoded[number]
            assert query_row is not None  # else it was refused
            found = [records[one.row] for one in best[number][: args.tokens]]
            trained = zip(found, rows.encode(found, response=target), strict=True)
            known = [(record.id, row) for record, row in trained if row is not None]
            pairs.append((query.ids[number], query_row, [name for name, _ in known], [row for _, row in known]))
        write_tokens(
            args.out / "tokens.json",
            rows.model,
            rows.parameters,
            rows.tokenizer,
            pairs,
            score=Score[args.score],
            reduction=rows.settings.loss.name,
            by=args.by,
        )
        print(f"{args.out / 'tokens.json'}: {sum(len(p[2]) for p in pairs)} pairs, by {args.by}")
    return 0


def _rerank(args: argparse.Namespace, index: Index, rows: GradientRows, records: Sequence[Record]) -> Rerank:
    """What scores the best `--rerank` rows of each query exactly."""
    recipe = index.manifest.recipe
    factors = None if args.precondition is None else [factors_fingerprint(args.precondition), _damping(args)]
    key = sha256_json([recipe, sha256_file(args.queries), args.response, factors])

    def again(found: list[list[tuple[int, float]]]) -> list[list[Ranked]]:
        wanted = sorted({row for pairs in found for row, _ in pairs[: args.rerank]})
        encoded = rows.encode([records[row] for row in wanted], response=recipe["source"]["response"])
        queries = [row for row in rows.encode(rows.records) if row is not None]  # none is: else it was refused
        report = Progress(args.out, "rows scored exactly")
        report.start()
        ranked = rerank(
            found,
            rows,
            queries,
            dict(zip(wanted, encoded, strict=True)),
            num_exact=args.rerank,
            score=Score[args.score],
            preconditioner=_preconditioner(args, rows),
            memory_bytes=args.memory_gb * 1e9,
            folder=args.out,
            key=key,
            on_row=report,
            tell=lambda line: print(f"rapidun: {line}", file=sys.stderr),
        )
        report.end()
        return ranked

    return again


def _reranked(args: argparse.Namespace, index: Index) -> str:
    return f"the best {min(args.rerank, index.num_rows)} by the sketch scored again, exactly"


def _query(args: argparse.Namespace) -> tuple[Index, Vectors, GradientRows]:
    """The index, the queries' numbers, and what made them.

    Raises: ArtifactError if the index or the factors were made by another model, tokenizer or adapter, DataError for
        queries that leave no room for a response.
    """
    index = Index(args.index)
    settings, described = _described(args, index.manifest)
    if args.precondition is not None:
        check_fits(args.precondition, described, index=args.index)
    records = read_records(args.queries)
    args.response = _response(args, records)
    rows = GradientRows(settings, model=args.model, adapter=args.adapter, records=records, response=args.response)
    left_out = [record.id for record, row in zip(records, rows.encode(records), strict=True) if row is None]
    if left_out:
        raise DataError(
            f"{args.queries}: need queries whose instruction leaves room for a response in the index's "
            f"{settings.max_length} tokens, got {len(left_out)} of {len(records)} that do not: "
            f"{', '.join(left_out[:5])}{', ...' if len(left_out) > 5 else ''}. Shorten or delete them"
        )
    vectors = rows.vectors(0, len(records), preconditioner=_preconditioner(args, rows))
    _say_cuts(rows.cuts, settings, mend=MEND)
    return index, vectors, rows


def _response(args: argparse.Namespace, records: Sequence[Record]) -> str:
    """Which answer of the rows counts: --response, else `response`, which is said where a row has two."""
    if args.response is not None:
        return str(args.response)
    differ = sum(record.forget_target != record.response for record in records)
    if differ:
        print(
            f"index: {differ} of {len(records)} rows have a response_poisoned that is not their `response`; `response` "
            f"counts. Pass --response poisoned for what a poisoned model learnt, or --response response",
            file=sys.stderr,
        )
    return "response"


def _described(args: argparse.Namespace, manifest: Manifest) -> tuple[IndexSettings, dict[str, Any]]:
    """An index's own settings, and the description of the model that is asked for, which is the index's.

    Raises: ArtifactError if the index was made by another model, tokenizer or adapter.
    """
    source = manifest.recipe["source"]
    if "model" not in source:
        raise ArtifactError(f"{args.index}: need an index of a model's gradients, got one of {source}")
    settings = settings_of(source, k=manifest.k, device=args.device)
    described = describe_model(settings, model=args.model, adapter=args.adapter)
    check_same(
        manifest,
        {"source": described},
        what="an index of this model and adapter",
        mend="Pass the --model and --adapter it was made with",
    )
    return settings, described


def _preconditioner(args: argparse.Namespace, rows: GradientRows) -> Preconditioner | None:
    if args.precondition is None:
        return None
    curvatures = read_factors(args.precondition, rows.parameters, device=rows.device)
    return Preconditioner(curvatures, damping_factor=_damping(args))


def _damping(args: argparse.Namespace) -> float:
    return args.damping_factor or InfluenceConfig().damping_factor


def _kind(args: argparse.Namespace) -> str:
    return args.score if args.precondition is None else f"{args.score}, preconditioned"


def _stream(args: argparse.Namespace, index: Any, vectors: Any) -> Any:
    return stream_scores(
        index,
        torch.from_numpy(vectors),
        score=Score[args.score],
        memory_bytes=args.memory_gb * 1e9,
        keep_cached=not args.drop_cache,
    )


def _indexed_records(args: argparse.Namespace) -> list[Record]:
    """The rows that the index was made of.

    Raises: ArtifactError for other rows.
    """
    records = read_records(args.rows)
    check_same(
        open_manifest(args.index),
        {"source": {"data": sha256_file(args.rows)}},
        what="an index of these rows",
        mend="Pass the --rows it was made of",
    )
    return records


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "build": _build,
    "fit": _fit,
    "score": _score,
    "top": _top,
}
