"""The scores of every training row for every query, by each signal that was asked for."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rapidun.base.errors import ArtifactError, DataError
from rapidun.cli import index
from rapidun.cli.progress import Progress
from rapidun.config.trace import TraceSettings
from rapidun.models.batching import batching
from rapidun.models.load import ModelLoader
from rapidun.models.losses import IGNORE
from rapidun.stages.influence.bm25 import bm25_scores
from rapidun.stages.influence.index.gradients import ROWS_AT_ONCE, GradientRows, settings_of
from rapidun.stages.influence.index.reader import Index
from rapidun.stages.influence.trace.hidden import Reader, hidden_scores
from rapidun.stages.rows.cuts import Cuts, cut_warning
from rapidun.stages.rows.encode import Encoded, encode_rows
from rapidun.stages.rows.fit import check_rows
from rapidun.stages.rows.records import Record, write_records

# rows of a given index whose gradients are made again, and how far their norms may lie from those there (rounding of
# 16-bit models, other batches)
NUM_CHECKED, NORMS_ALIKE = 8, 0.05
Scores = NDArray[np.float32]
Say = Callable[[str], None]


class Asked(NamedTuple):
    """What all signals are given. rows: those that can be encoded, where a model is asked."""

    queries: list[Record]
    rows: list[Record]
    model: str | None
    adapter: Path | None
    settings: TraceSettings


class Encoder:
    """A loaded model and its tokens of rows and queries."""

    def __init__(self, model: str, adapter: Path | None, settings: TraceSettings) -> None:
        loader = ModelLoader(
            dtype=settings.model_dtype, quantisation=settings.quantisation, attention="auto", device=settings.device
        )
        self.model, self.tokenizer = loader.load(model, adapter=adapter)
        self.settings = settings

    def encode(self, rows: Sequence[Record]) -> list[Encoded | None]:
        """None for a row whose instruction leaves no room for a response.

        Raises: DataError for a row without a response token to predict; as `check_rows`.
        """
        settings = self.settings
        encoded = encode_rows(self.tokenizer, [row.texts for row in rows], max_length=settings.max_length)
        for row, one in zip(rows, encoded, strict=True):
            if one is not None and all(label == IGNORE for label in one.labels[1:]):
                raise DataError(f"trace: need a response token behind another token, got none in row {row.id}")
        ids = [one.input_ids for one in encoded if one is not None]
        check_rows("trace", self.model, self.tokenizer, ids, max_length=settings.max_length)
        return encoded

    def known(self, rows: Sequence[Record]) -> list[Encoded]:
        """The same of rows that are known to have room."""
        return [one for one in self.encode(rows) if one is not None]

    def reader(self) -> Reader:
        padded = batching(self.model, pad_token_id=self.tokenizer.pad_token_id).right
        settings = self.settings
        return Reader(
            self.model,
            self.tokenizer.pad_token_id,
            settings.layer,
            settings.pooling,
            settings.tokens_per_batch,
            None if padded else 1,
        )


def with_room(encoder: Encoder, rows: Sequence[Record], queries: Sequence[Record], *, say: Say) -> NDArray[np.bool_]:
    """Which rows can be encoded; what is cut or left out is counted and said.

    Raises: DataError for queries that cannot, and where no row can.
    """
    max_length, mend = encoder.settings.max_length, "Pass --max-length to keep more"
    asked = encoder.encode(queries)
    lost = [query.id for query, row in zip(queries, asked, strict=True) if row is None]
    if lost:
        raise DataError(
            f"trace: need queries whose instruction leaves room for an answer in {max_length} tokens, got {len(lost)} "
            f"of {len(queries)} that do not: {', '.join(lost[:5])}{', ...' if len(lost) > 5 else ''}. Shorten them, or "
            "pass --max-length"
        )
    if message := cut_warning("queries", Cuts.of(asked), max_length=max_length, mend=mend):
        say(message)
    kept, cuts = np.zeros(len(rows), dtype=bool), Cuts()
    for start in range(0, len(rows), ROWS_AT_ONCE):
        encoded = encoder.encode(rows[start : start + ROWS_AT_ONCE])
        cuts += Cuts.of(encoded)
        kept[start : start + len(encoded)] = [row is not None for row in encoded]
    if message := cut_warning("trace", cuts, max_length=max_length, mend=mend):
        say(message)
    if not kept.any():
        raise DataError(
            f"trace: need rows whose instruction leaves room for a response in {max_length} tokens, got {len(rows)} "
            "rows and none that does. Pass --max-length"
        )
    return kept


def repsim(asked: Asked, encoder: Encoder) -> Scores:
    """Cosines of hidden states."""
    line = Progress("trace: hidden states", "rows")
    line.start()
    scores = hidden_scores(
        encoder.reader(),
        encoder.known(asked.queries),
        [f"query {query.id}" for query in asked.queries],
        lambda start, stop: encoder.known(asked.rows[start:stop]),
        [f"row {row.id}" for row in asked.rows],
        rows_at_once=ROWS_AT_ONCE,
        on_rows=line,
    )
    line.end()
    return scores


def bm25(asked: Asked) -> Scores:
    """BM25 of the rows as documents: instruction, context and response."""
    found = bm25_scores(["\n".join(row.texts) for row in asked.rows], ["\n".join(q.texts) for q in asked.queries])
    return found.numpy().astype(np.float32)


class Indexed(NamedTuple):
    """Scores by an index, [N, Q], its folder, and the ids of all its rows."""

    scores: Scores
    folder: Path
    ids: list[str]


def gradients(asked: Asked, folder: Path | None, out: Path) -> Indexed:
    """Scores by the gradients of an index, built in out/index where none is given.

    Raises: ArtifactError for an index of other rows, model, tokenizer or adapter.
    """
    settings, model = asked.settings, [f"--model={asked.model}"]
    model += [f"--adapter={asked.adapter}"] if asked.adapter else []
    model += [f"--device={settings.device}", "--response=response"]
    write_records(out / "queries.jsonl", [Record(id=q.id, **_texts(q)) for q in asked.queries])
    given = folder is not None
    if folder is None:
        folder = out / "index"
        write_records(out / "rows.jsonl", (Record(id=row.id, **_texts(row)) for row in asked.rows))
        made = [f"--rows={out / 'rows.jsonl'}", f"--out={folder}", *model, f"--max-length={settings.max_length}"]
        made += [f"--model-dtype={settings.model_dtype}", f"--quantisation={settings.quantisation}"]
        index.main(["build", *made, f"--tokens-per-batch={settings.tokens_per_batch}"])
    at = out / "gradients"
    how = [f"--queries={out / 'queries.jsonl'}", f"--out={at}", *model, f"--score={settings.score.name}"]
    index.main(["score", str(folder), *how])
    whole = np.load(at / "scores.npy", mmap_mode="r", allow_pickle=False)
    # line by line as they were written: an id may hold other line ends
    ids = [json.loads(line) for line in (at / "train_ids.jsonl").read_bytes().split(b"\n")[:-1]]
    if not asked.rows:
        return Indexed(np.array(whole), folder, ids)
    places = {name: place for place, name in enumerate(ids)}
    missing = [row.id for row in asked.rows if row.id not in places]
    if missing:
        raise ArtifactError(
            f"{folder}: need an index of these rows, got one without {len(missing)} of {len(asked.rows)} "
            f"({missing[0]!r}, ...). Pass the --rows it was made of, or leave --index out"
        )
    if given:
        _check_texts(asked, folder, places)
    return Indexed(np.array(whole[[places[row.id] for row in asked.rows]]), folder, ids)


def _check_texts(asked: Asked, folder: Path, places: Mapping[str, int]) -> None:
    """Whether the rows of these ids are those of the index: the gradients of a few have the norms that it keeps.

    An index holds ids, no texts; a row that is changed alone may go unseen.

    Args: places: id -> row of the index, of all rows that are asked.
    Raises: ArtifactError for rows of other texts.
    """
    found = Index(folder)
    some = asked.rows[:: max(1, len(asked.rows) // NUM_CHECKED)][:NUM_CHECKED]
    norms = found.norms_of({places[row.id] for row in some})
    settings = settings_of(found.manifest.recipe["source"], k=found.k, device=asked.settings.device)
    records = [Record(id=row.id, **_texts(row)) for row in some]
    rows = GradientRows(settings, model=str(asked.model), adapter=asked.adapter, records=records)
    mine = np.linalg.norm(rows.vectors(0, len(records)).vectors, axis=1)
    kept = np.array([norms[places[row.id]] for row in some])
    other = [row.id for row, bad in zip(some, np.abs(mine - kept) > NORMS_ALIKE * kept, strict=True) if bad]
    if other:
        raise ArtifactError(
            f"{folder}: need an index of these rows, got one of other texts under the same ids: {len(other)} of "
            f"{len(some)} rows looked at ({other[0]!r}, ...) have another gradient there. Pass the --rows (and "
            "--response) it was made of, or leave --index out"
        )


def _texts(row: Record) -> dict[str, Any]:
    return {"instruction": row.instruction, "context": row.context, "response": row.response}
