"""What `rapidun trace` does, in order."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rapidun.base.errors import DataError, ModelError
from rapidun.base.files import write_json
from rapidun.cli.tracing import output
from rapidun.cli.tracing.cut import Cut, choose_cut
from rapidun.cli.tracing.explain import Explained, as_json, explain
from rapidun.cli.tracing.inputs import TrainingRows, read_queries, read_rows, say_verbatim, spelling_of
from rapidun.cli.tracing.signals import Asked, Encoder, Indexed, Scores, bm25, gradients, repsim, with_room
from rapidun.config.trace import Signal, TraceSettings
from rapidun.report.trace.page import Page, Query, Row, write_trace_page
from rapidun.stages.data.traced import traced_pack
from rapidun.stages.influence.index.manifest import open_manifest
from rapidun.stages.influence.trace.agreement import Ranked, combined, rank_rows

# rows of the page's table
SHOWN = 50
FILES = ["trace.jsonl", "trace.csv", "trace.html", "tokens.json"]
# of gradients
MORE_FILES = ["queries.jsonl", "rows.jsonl", "index", "gradients"]


def run_trace(args: argparse.Namespace, settings: TraceSettings) -> int:
    """Returns 0. Raises: RapidunError for what cannot be traced; nothing is written then but what an index has made."""
    warnings: list[str] = []

    def say(line: str) -> None:
        warnings.append(line)
        print(f"rapidun: trace: {line.removeprefix('trace: ')}", file=sys.stderr)

    by: list[Signal] = args.by
    for folder, flag in ((args.out, "--out"), (args.pack, "--pack")):
        if folder is not None:
            output.check_out(folder, flag)
    if args.pack is not None:
        output.check_apart(args.out, args.pack)
    if args.index is not None:
        open_manifest(args.index)
    queries = read_queries(args.queries, spelling_of(args.query_field, args.multi_turn), say=say)
    found = read_rows(args.rows, spelling_of(args.field, args.multi_turn), response=args.response, say=say)
    say_verbatim(queries, found.records, say=say)
    encoder = None
    if found.records and by != [Signal.bm25]:
        encoder = Encoder(args.model, args.adapter, settings)
        kept = with_room(encoder, found.records, queries, say=say)
        found = _only(found, kept)
        if Signal.repsim not in by:
            # the index loads it again
            encoder = None
    asked = Asked(queries, found.records, args.model, args.adapter, settings)
    _check_number(args, len(asked.rows))
    _say_sizes(asked, by)
    files = FILES + (MORE_FILES if Signal.gradients in by else [])
    if Signal.gradients in by:
        output.claim_out(args.out, files)
    scores, indexed = _scores(asked, by, encoder, index=args.index, out=args.out)
    ids = [row.id for row in asked.rows] if asked.rows or indexed is None else indexed.ids
    names = found.files or [str(args.index)] * len(ids)
    try:
        ranked = rank_rows(scores)
    except ArithmeticError as error:
        raise ModelError(f"trace: {error}. Pass --model-dtype float32, or mend the row or the model") from error
    output.check_told(ranked.overall, say=say)
    cut = choose_cut(combined(ranked))
    number = cut.number if args.num_forget == "auto" else int(args.num_forget)
    top = max(args.top, number or 0)
    rows = list(output.blamed(ranked, ids=ids, files=names, query_ids=[q.id for q in queries], top=top))
    pairs = [(row.row, int(ranked.best_query[row.row])) for row in rows[: args.explain]] if asked.rows else []
    whys = list(explain(asked, pairs, by=by, encoder=encoder, index=indexed.folder if indexed else None))
    said = _cut_words(args, cut, number, len(ids)) + output.tie_words(ranked, number)
    # all is known: from here on files appear
    output.claim_out(args.out, files)
    pack_lines = _pack(args, asked, found, ranked, number, cut) if args.pack is not None else []
    output.write_tables(args.out, rows, by=by)
    write_json(args.out / "tokens.json", [as_json(one, asked) for one in whys])
    write_trace_page(args.out / "trace.html", _page(asked, args, rows, whys, said, warnings, number or 0, len(ids)))
    texts = {row.row: asked.rows[row.row].instruction for row in rows[: output.SHOWN]} if asked.rows else {}
    output.show(rows, texts, by=by, num_rows=len(ids))
    for line in [said, *pack_lines, f"{args.out}: trace.html, trace.jsonl, trace.csv ({len(rows)} rows)"]:
        print(line)
    return 0


def _only(found: TrainingRows, kept: np.ndarray) -> TrainingRows:
    places = np.flatnonzero(kept).tolist()
    return TrainingRows([found.records[i] for i in places], [found.files[i] for i in places], found.packs)


def _check_number(args: argparse.Namespace, num_rows: int) -> None:
    """Raises: DataError for more rows to forget than there are."""
    if args.num_forget != "auto" and num_rows and args.num_forget >= num_rows:
        raise DataError(
            f"trace: need --num-forget below the number of rows, {num_rows}, got {args.num_forget}. Change --num-forget"
        )


def _say_sizes(asked: Asked, by: Sequence[Signal]) -> None:
    size = 4e-6 * len(asked.rows) * len(asked.queries) * len(by)
    names = ", ".join(signal.name for signal in by)
    rows = f"{len(asked.rows)} rows" if asked.rows else "the rows of an index"
    print(f"trace: {len(asked.queries)} queries, {rows}, by {names}: {size:,.1f} MB of scores", file=sys.stderr)


def _scores(
    asked: Asked, by: Sequence[Signal], encoder: Encoder | None, *, index: Path | None, out: Path
) -> tuple[dict[Signal, Scores], Indexed | None]:
    scores: dict[Signal, Scores] = {}
    indexed = None
    for signal in by:
        if signal is Signal.repsim:
            assert encoder is not None  # _check asks for a model
            scores[signal] = repsim(asked, encoder)
        elif signal is Signal.bm25:
            scores[signal] = bm25(asked)
        else:
            indexed = gradients(asked, index, out)
            scores[signal] = indexed.scores
    return scores, indexed


def _cut_words(args: argparse.Namespace, cut: Cut, number: int | None, num_rows: int) -> str:
    auto = f"{cut.number} of {num_rows} rows stand out: {cut.words}" if cut.number else f"No clear cut: {cut.words}"
    return auto if args.num_forget == "auto" else f"The first {number} rows, as asked. {auto}"


def _pack(
    args: argparse.Namespace, asked: Asked, found: TrainingRows, ranked: Ranked, number: int | None, cut: Cut
) -> list[str]:
    """Write the pack. Raises: DataError where nobody says how many rows to forget."""
    if number is None:
        raise DataError(
            f"trace: need a number of rows to forget for --pack, got none from the scores: {cut.words}. Look at the "
            "table without --pack, then pass --num-forget N"
        )
    ordered = [asked.rows[row] for row in ranked.order.tolist()]
    pack = traced_pack(
        ordered,
        num_forget=number,
        # what is left is kept, and must be clean: clear of twice as many as stand out, or of the upper half
        num_apart=2 * max(number, cut.number) if cut.number is not None else max(2 * number, len(ordered) // 2),
        retain_ratio=args.retain_ratio,
        seed=args.seed,
    )
    facts = {
        "by": [signal.name for signal in args.by],
        "num_forget": number,
        "cut": cut.words if args.num_forget == "auto" else "as asked",
        "seed": args.seed,
        "near": pack.near,
        "labelled": pack.labelled,
        "same_question": pack.same_question,
    }
    lines = output.write_pack(args.pack, pack, packs=found.packs, facts=facts)
    if cut.number is None:
        lines.append(f"no clear cut ({cut.words}): the rows to keep are from the lower half of the ranks")
    return [*lines, f"then: {output.run_command(args.pack, pack, model=args.model, adapter=args.adapter)}"]


def _page(
    asked: Asked,
    args: argparse.Namespace,
    rows: Sequence[output.Blamed],
    whys: Sequence[Explained],
    cut: str,
    warnings: Sequence[str],
    num_forget: int,
    num_rows: int,
) -> Page:
    by_row: dict[int, list[Any]] = {}
    for one in whys:
        by_row.setdefault(one.row, []).append(one.why())
    names = [signal.name for signal in args.by]
    facts = [("queries", str(len(asked.queries))), ("rows", f"{num_rows:,}"), ("by", ", ".join(names))]
    facts += [("model", str(args.model))] if args.model else []
    facts += [("adapter", str(args.adapter))] if args.adapter else []
    shown = []
    for row in rows[:SHOWN]:
        record = asked.rows[row.row] if asked.rows else None
        shown.append(
            Row(
                rank=row.rank,
                id=row.id,
                file=row.file,
                agreement=row.agreement if len(names) > 1 else None,
                scores=[(name, row.scores[name], row.ranks[name]) for name in names],
                query=row.query,
                texts=None if record is None else record.texts,
                forget=row.rank <= num_forget,
                whys=by_row.get(row.row, []),
            )
        )
    queries = [Query(id=q.id, instruction=q.instruction, context=q.context, response=q.response) for q in asked.queries]
    agreement = f"the agreement of {' and '.join(names)}" if len(names) > 1 else names[0]
    return Page(
        facts=facts,
        warnings=list(warnings),
        by=agreement,
        cut=cut,
        queries=queries,
        rows=shown,
        num_rows=num_rows,
    )
