"""What a trace writes and shows: trace.jsonl, trace.csv, trace.html, the pack, the table on the screen."""

import csv
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rapidun.base.errors import ArtifactError, DataError
from rapidun.base.files import read_json, write_atomic, write_json, write_jsonl
from rapidun.base.screen import screen
from rapidun.base.text import one_line
from rapidun.config.quoting import typed
from rapidun.config.trace import Signal
from rapidun.stages.data.files import SPLITS, splits_in
from rapidun.stages.data.traced import TracedPack
from rapidun.stages.influence.trace.agreement import Ranked
from rapidun.stages.rows.records import write_records

NOTE = "traced.json"
SHOWN = 15


class Blamed(NamedTuple):
    """A row of the table; `row` is its number among those that were ranked."""

    rank: int
    row: int
    id: str
    file: str
    agreement: float
    scores: dict[str, float]
    ranks: dict[str, float]
    query: str

    def as_json(self) -> dict[str, Any]:
        return {
            "rank": self.rank,
            "id": self.id,
            "file": self.file,
            "agreement": self.agreement,
            "scores": self.scores,
            "ranks": self.ranks,
            "query": self.query,
        }


def blamed(
    ranked: Ranked, *, ids: Sequence[str], files: Sequence[str], query_ids: Sequence[str], top: int
) -> Iterator[Blamed]:
    """The first `top` rows."""
    for rank, row in enumerate(ranked.order[:top].tolist(), start=1):
        yield Blamed(
            rank,
            row,
            ids[row],
            files[row],
            float(ranked.agreement[row]),
            {signal.name: float(values[row]) for signal, values in ranked.overall.items()},
            {signal.name: float(values[row]) for signal, values in ranked.ranks.items()},
            query_ids[int(ranked.best_query[row])],
        )


def check_told(overall: Mapping[Signal, NDArray[np.float64]], *, say: Callable[[str], None]) -> None:
    """Whether each signal tells one row from another; those that do not are said.

    Raises: DataError where none does: the order would be that of the files.
    """
    blind = [signal.name for signal, values in overall.items() if len(values) > 1 and np.ptp(values) == 0]
    if not blind:
        return
    why = f"the same score of every row by {' and '.join(blind)} (bm25: no row shares a word with a query)"
    if len(blind) == len(overall):
        raise DataError(f"trace: need scores that tell rows apart, got {why}. Change the queries, or --by")
    say(f"{why}: the others alone rank")


def tie_words(ranked: Ranked, number: int | None) -> str:
    """Of how many rows the order of the files decides whether they are among the first `number`; empty for none."""
    by = next(iter(ranked.overall.values())) if len(ranked.overall) == 1 else ranked.agreement
    ordered = by[ranked.order]
    if number is None or not 0 < number < len(ordered) or ordered[number - 1] != ordered[number]:
        return ""
    return (
        f". {int((ordered == ordered[number]).sum())} rows share the score at this cut: which of them are before it "
        "follows the order of the files"
    )


def write_tables(out: Path, rows: Sequence[Blamed], *, by: Sequence[Signal]) -> None:
    """Write trace.jsonl and trace.csv."""
    write_jsonl(out / "trace.jsonl", (row.as_json() for row in rows))
    names = [signal.name for signal in by]

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            header = ["rank", "id", "file", "agreement"]
            table.writerow([*header, *(f"{n}_{what}" for n in names for what in ("score", "rank")), "query"])
            for row in rows:
                cells = [value for n in names for value in (row.scores[n], row.ranks[n])]
                table.writerow([row.rank, row.id, row.file, row.agreement, *cells, row.query])

    write_atomic(out / "trace.csv", write)


def show(rows: Sequence[Blamed], texts: Mapping[int, str], *, by: Sequence[Signal], num_rows: int) -> None:
    """The first rows as a table on the screen."""
    from rich.table import Table

    names = [*(signal.name for signal in by), *(["agreement"] if len(by) > 1 else [])]
    one_file = len({row.file for row in rows}) == 1
    table = Table(title=f"the first {min(SHOWN, len(rows))} of {num_rows} rows")
    for name in ("rank", *names):
        table.add_column(name, justify="right", no_wrap=True, min_width=max(6, len(name)))
    for name in ("id", *([] if one_file else ["file"]), "row"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for row in rows[:SHOWN]:
        numbers = [f"{row.agreement if name == 'agreement' else row.scores[name]:.3g}" for name in names]
        words = [row.id, *([] if one_file else [row.file]), " ".join(texts.get(row.row, "").split())]
        # a row's control characters must not reach the terminal
        table.add_row(str(row.rank), *numbers, *map(one_line, words))
    screen().print(table)


def check_out(out: Path, flag: str = "--out") -> None:
    """Whether a folder may be written to: new, empty, or an earlier trace's own.

    Raises: ArtifactError for one that holds something else.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ArtifactError(f"{out}: need a folder, got a file. Change {flag}")
    held = {path.name for path in out.iterdir()}
    if not held:
        return
    note = read_json(out / NOTE) if NOTE in held else {}
    ours = set(note.get("files", ())) if isinstance(note, dict) else set()
    foreign = sorted(held - ours - {NOTE})
    if not ours or foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise ArtifactError(
            f"{out}: need a new or empty folder, or one that rapidun trace wrote, got one that holds {shown or NOTE}. "
            f"Change {flag}"
        )


def check_apart(out: Path, pack: Path) -> None:
    """Raises: ArtifactError where one folder is the other or lies in it: each removes what it does not know."""
    one, other = out.resolve(), pack.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise ArtifactError(f"trace: need a --pack folder outside of --out {out}, got {pack}. Change --pack")


def claim_out(out: Path, files: Sequence[str]) -> None:
    """Say whose folder it is, before anything is written, and remove what an earlier trace left beside it."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / NOTE).is_file():
        for name in set(read_json(out / NOTE).get("files", ())) - set(files):
            (out / name).unlink(missing_ok=True) if not (out / name).is_dir() else shutil.rmtree(out / name)
    write_json(out / NOTE, {"files": list(files)})


def write_pack(folder: Path, pack: TracedPack, *, packs: Sequence[Path], facts: Mapping[str, Any]) -> list[str]:
    """Write the pack's folder; validation and test splits are those of the first pack that has them.

    Returns: lines to be said: what is in it, what to look at, and how to go on.
    """
    beside: dict[str, Path] = {}
    for source in packs:
        found = splits_in(source)
        beside = {s: found[s] for s in SPLITS if s in found and s.startswith(("val_", "test_"))} | beside
    copies = {split: f"{split}{''.join(path.suffixes)}" for split, path in beside.items() if path.is_file()}
    own = {"forget_set.jsonl": pack.forget, "retain_set.jsonl": pack.retain, "train_clean.jsonl": pack.train_clean}
    claim_out(folder, [*own, *copies.values()])
    for name, rows in own.items():
        write_records(folder / name, rows)
    for split, name in copies.items():
        write_atomic(folder / name, lambda part, split=split: shutil.copyfile(beside[split], part))  # type: ignore[misc]
    write_json(folder / NOTE, {"files": [*own, *copies.values()], **facts})
    lines = [
        f"{folder}: {len(pack.forget)} rows to forget, {len(pack.retain)} to keep, drawn from {len(pack.train_clean)}; "
        f"left open: {pack.near} near the cut"
        + (f", {pack.labelled} that their own file calls poisoned" if pack.labelled else "")
        + (f", {pack.same_question} that ask what a row to forget asks" if pack.same_question else "")
    ]
    if copies:
        lines.append(f"beside them, as they were: {', '.join(copies.values())}")
    else:
        lines.append(
            "no validation or test rows: what is forgotten is measured on the forget rows. data.val_clean=FILE and "
            "data.test_clean=FILE add clean ones"
        )
    lines.append(f"look at the rows first; their triggers, if there are any: rapidun pack check {folder}")
    return lines


def run_command(folder: Path, pack: TracedPack, *, model: str | None, adapter: Path | None) -> str:
    """How the pack is unlearned from the model that was traced.

    Where no clean answer is known a refusal is taught: pushing bad answers away alone leads to others of their kind as
    often as not (docs/trace.md).
    """
    path = typed("model.path", model) if model else "model.path=DIR"
    how = "" if any(row.response_clean for row in pack.forget) else " unlearning=idk_sft"
    path += f" {typed('model.adapter', str(adapter))}" if adapter else ""
    return f"python sweep.py data=pack {typed('data.dir', str(folder))} model=hf {path} poison=none{how}"
