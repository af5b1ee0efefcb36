"""Where captured gradients go: into sketches, or kept until every inner product is taken."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rapidun.stages.influence.gradients.capture import Contribution, Factors
from rapidun.stages.influence.gradients.params import TrackedParameter, accumulation_dtype
from rapidun.stages.influence.precondition import Preconditioner

# numbers of one slice of all rows' gradients while inner products are taken (256 MB in float32)
SLICE_NUMEL = 1 << 26
# longest sum that is taken in float32
SPAN = 4096
# most numbers that inner products have at once before they are summed (512 MB); more rows go in blocks
PRODUCT_NUMEL = 1 << 27
# fewest numbers whose products are taken in bfloat16: the rounding of many spans averages out
FEWEST_BFLOAT16 = 1 << 16


class GradientSink(Protocol):
    """What a capture hands its gradients to, batch after batch."""

    def start(self, rows: Tensor) -> None:
        """The examples of the next batch: [B] int64, their row numbers."""

    def __call__(self, parameter: TrackedParameter, gradient: Contribution) -> None:
        """One contribution [B, *parameter.shape] to the gradients of the batch; contributions add up."""


class Sketch(Protocol):
    """A linear map of whole gradients to `num_numbers` numbers whose inner products estimate those of the gradients."""

    num_numbers: int

    def new_buffer(self, num_rows: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Zeros to add to, for `num_rows` rows of a model that computes in `dtype`."""

    def add(self, buffer: Tensor, name: str, shape: tuple[int, int], gradient: Contribution) -> None:
        """Add one contribution [B, *shape] to the gradient of parameter `name`."""

    def finish(self, buffer: Tensor) -> Tensor:
        """[B, num_numbers], once every contribution is there."""


class RowSink:
    """Keeps the numbers of each row that a sketch makes of its gradient."""

    def __init__(self, num_rows: int, sketch: Sketch, *, dtype: torch.dtype, device: torch.device) -> None:
        self._sketch = sketch
        self._rows: Tensor | None = None
        self._buffer: Tensor | None = None
        self._spare: Tensor | None = None
        self._dtype = dtype
        self._sketches = torch.zeros(num_rows, sketch.num_numbers, dtype=accumulation_dtype(dtype), device=device)

    def start(self, rows: Tensor) -> None:
        self._flush()
        self._rows = rows
        if self._spare is not None and len(self._spare) >= len(rows):
            # the memory of the batch before is at hand already
            self._buffer = self._spare[: len(rows)].zero_()
        else:
            self._buffer = self._sketch.new_buffer(len(rows), dtype=self._dtype, device=self._sketches.device)
            self._spare = self._buffer

    def __call__(self, parameter: TrackedParameter, gradient: Contribution) -> None:
        if self._buffer is None:
            raise RuntimeError("start() comes before the first gradient")
        self._sketch.add(self._buffer, parameter.name, parameter.shape, gradient)

    def sketches(self) -> Tensor:
        """[num_rows, num_numbers] float32 (float64 for a float64 model)."""
        self._flush()
        return self._sketches

    def _flush(self) -> None:
        if self._rows is not None and self._buffer is not None:
            self._sketches[self._rows] = self._sketch.finish(self._buffer)
        self._rows = self._buffer = None


class SolvedSink:
    """Hands on F^-1 times each gradient."""

    def __init__(self, sink: RowSink, preconditioner: Preconditioner) -> None:
        self._sink = sink
        self._preconditioner = preconditioner

    def start(self, rows: Tensor) -> None:
        self._sink.start(rows)

    def __call__(self, parameter: TrackedParameter, gradient: Contribution) -> None:
        self._sink(parameter, self._preconditioner.solve(parameter, gradient))


class HalvedSink(SolvedSink):
    """Hands on F^-1/2 times each gradient."""

    def __call__(self, parameter: TrackedParameter, gradient: Contribution) -> None:
        self._sink(parameter, self._preconditioner.solve_half(parameter, gradient))


class PreconditionedSink:
    """Keeps three sketches of each row: of F^-1/2 times its gradient, whose products estimate <g, F^-1 g'>; and, for
    the norms of the two sides, of its gradient and of F^-1 times it."""

    def __init__(self, train: RowSink, query: RowSink, half: RowSink, preconditioner: Preconditioner) -> None:
        self._sinks = (train, SolvedSink(query, preconditioner), HalvedSink(half, preconditioner))

    def start(self, rows: Tensor) -> None:
        for sink in self._sinks:
            sink.start(rows)

    def __call__(self, parameter: TrackedParameter, gradient: Contribution) -> None:
        for sink in self._sinks:
            sink(parameter, gradient)


class GramSums(NamedTuple):
    """Added up parameter by parameter, float64."""

    gram: Tensor  # [N, M] <g_i, g_j>, or <g_i, F^-1 g_j>
    squares: Tensor  # [N] |g_i|^2; untouched where every row is a query and there is no preconditioner
    query_squares: Tensor  # [M] |F^-1 g_j|^2; likewise
    queries: Tensor | None = None  # [M] int64, the rows that are queries, where not all are


class _Dense(NamedTuple):
    """A gradient multiplied out, where that takes less room than its factors (the factors of LoRA)."""

    gradient: Tensor  # [B, rows, columns]

    @property
    def nbytes(self) -> int:
        return self.gradient.nbytes

    def product(self, rows: slice, columns: slice, *, dtype: torch.dtype) -> Tensor:
        return self.gradient[:, rows, columns].to(dtype)


class KeepSink:
    """Keeps the gradients of one group of parameters, as factors or multiplied out, whichever is smaller."""

    def __init__(self, preconditioner: Preconditioner | None = None) -> None:
        self._preconditioner = preconditioner
        # examples are kept in the order in which they came, a batch a span
        self._order: list[Tensor] = []
        self._span = slice(0, 0)
        self._kept: dict[str, list[tuple[slice, Contribution | _Dense]]] = {}
        # used again and again: fresh memory costs as much as what is put into it
        self._buffer: Tensor | None = None

    def start(self, rows: Tensor) -> None:
        self._order.append(rows)
        self._span = slice(self._span.stop, self._span.stop + len(rows))

    def __call__(self, parameter: TrackedParameter, gradient: Contribution) -> None:
        dtype = accumulation_dtype(gradient.g.dtype)
        piece: Contribution | _Dense = gradient
        if len(gradient.g) * parameter.numel * dtype.itemsize < gradient.nbytes:
            whole = (slice(0, parameter.shape[0]), slice(0, parameter.shape[1]))
            piece = _Dense(self._rotated(parameter, gradient).product(*whole, dtype=dtype))
        self._kept.setdefault(parameter.name, []).append((self._span, piece))

    def nbytes(self) -> int:
        """Bytes held; an input that several layers share counts once."""
        tensors = [t for pieces in self._kept.values() for _, piece in pieces for t in piece]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    def add_gram(self, sums: GramSums, parameter: TrackedParameter) -> None:
        """Add the inner products over one parameter, and let go of its gradients.

        The gradients are multiplied out slice by slice: in bfloat16 those of a large weight of a bfloat16 model (as
        its own weight gradients would be), in float32 (float64 for a float64 model) all others. With a
        preconditioner they are in its basis, where F^-1 multiplies entry by entry.
        """
        order = torch.cat(self._order) if self._order else torch.zeros(0, dtype=torch.int64)
        places: Tensor | slice = slice(None)
        columns = order
        if sums.queries is not None:
            places, columns = torch.argsort(order)[sums.queries], torch.arange(len(sums.queries), device=order.device)
        for rows, flat in self._slices(parameter, sums.gram.device):
            query = flat[places]
            if self._preconditioner is not None:
                query = query * self._preconditioner.inverse(parameter)[rows].flatten()
            for block in row_blocks(len(order), len(columns)):
                sums.gram[order[block].unsqueeze(1), columns] += inner_products(flat[block], query)
            if self._preconditioner is None and sums.queries is None:
                continue
            sums.squares[order] += _squared_norms(flat)
            sums.query_squares[columns] += _squared_norms(query)

    def _slices(self, parameter: TrackedParameter, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
        """Some rows of the weight, and every kept example's gradient of them, [examples, rows of the slice * columns].

        The numbers of one slice are gone with the next.
        """
        pieces = self._kept.pop(parameter.name, [])
        if not pieces:
            return
        # only now: factors in the model's type, some of them shared, take a fraction of the room
        pieces = [(span, p if isinstance(p, _Dense) else self._rotated(parameter, p)) for span, p in pieces]
        num_examples = self._span.stop
        num_rows, num_columns = parameter.shape
        dtype = self._slice_dtype(parameter, [piece for _, piece in pieces])
        height = min(num_rows, max(1, SLICE_NUMEL // (num_examples * num_columns)))
        for top in range(0, num_rows, height):
            rows = slice(top, min(top + height, num_rows))
            flat = self._memory((num_examples, rows.stop - top, num_columns), dtype, device)
            filled: set[int] = set()
            for span, piece in pieces:
                _put(piece, rows, flat[span], is_first=span.start not in filled)
                filled.add(span.start)
            for span in self._spans():
                if span.start not in filled:
                    flat[span] = 0
            yield rows, flat.flatten(1)

    def _spans(self) -> Iterator[slice]:
        start = 0
        for rows in self._order:
            yield slice(start, start + len(rows))
            start += len(rows)

    def _memory(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
        numel = shape[0] * shape[1] * shape[2]
        buffer = self._buffer
        if buffer is None or buffer.dtype != dtype or buffer.numel() < numel:
            buffer = self._buffer = torch.empty(numel, dtype=dtype, device=device)
        return buffer[:numel].view(shape)

    def _rotated(self, parameter: TrackedParameter, gradient: Contribution) -> Contribution:
        return gradient if self._preconditioner is None else self._preconditioner.rotate(parameter, gradient)

    def _slice_dtype(self, parameter: TrackedParameter, pieces: Sequence[Contribution | _Dense]) -> torch.dtype:
        dtypes = {piece.g.dtype if isinstance(piece, Factors) else None for piece in pieces}
        is_large = parameter.numel >= FEWEST_BFLOAT16 and self._preconditioner is None
        if dtypes == {torch.bfloat16} and is_large:
            return torch.bfloat16
        return accumulation_dtype(_dtype(pieces[0]))


def _put(piece: Contribution | _Dense, rows: slice, place: Tensor, *, is_first: bool) -> None:
    """Write, or after the first contribution add, some rows of gradients to `place` [B, num rows, num columns]."""
    if isinstance(piece, Factors) and piece.g.dtype == place.dtype and piece.g.shape[1]:
        g = piece.g[:, :, rows].transpose(1, 2)
        torch.baddbmm(place, g, piece.a, beta=0 if is_first else 1, out=place)
        return
    product = piece.product(rows, slice(0, place.shape[2]), dtype=place.dtype)
    if is_first:
        place.copy_(product)
    else:
        place.add_(product)


def _squared_norms(flat: Tensor) -> Tensor:
    """[N, D] -> [N] float64."""
    return torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64).square()


def inner_products(flat: Tensor, query: Tensor | None = None) -> Tensor:
    """[N, D], [M, D] -> [N, M] float64: products over spans of 4,096 numbers, spans summed in float64.

    A span is summed in float32, and where the numbers are bfloat16 then rounded to it: 2^-9 of each span, which
    averages out over many. One float32 product over all of D sums in an order that the library picks by shape: for
    two rows of 884,736 numbers it loses 8e-5 of every norm, in one direction.

    Args:
        query: the same rows again by default.
    """
    whole = flat.shape[1] // SPAN * SPAN
    query = flat if query is None else query
    blocks = row_blocks(len(flat), max(1, whole // SPAN) * len(query))
    if len(blocks) > 1:
        out = torch.empty(len(flat), len(query), dtype=torch.float64, device=flat.device)
        for rows in blocks:
            out[rows] = inner_products(flat[rows], query)
        return out
    if flat.dtype == torch.bfloat16:
        total = torch.zeros(len(flat), len(query), dtype=torch.float64, device=flat.device)
        # not one batched product: that would copy all numbers
        for start in range(0, flat.shape[1], SPAN):
            span = slice(start, start + SPAN)
            total += flat[:, span] @ query[:, span].T
        return total
    rest = (flat[:, whole:] @ query[:, whole:].T).double()
    if whole == 0:
        return rest
    # [spans, N, SPAN]
    left, right = (x[:, :whole].unflatten(1, (-1, SPAN)).transpose(0, 1) for x in (flat, query))
    return torch.bmm(left, right.transpose(1, 2)).sum(dim=0, dtype=torch.float64) + rest


def row_blocks(num_rows: int, numbers_a_row: int) -> list[slice]:
    """Cut rows into blocks of at most PRODUCT_NUMEL numbers; one block where all of them fit."""
    height = max(1, PRODUCT_NUMEL // max(1, numbers_a_row))
    return [slice(top, min(top + height, num_rows)) for top in range(0, num_rows, height)]


def _dtype(piece: Contribution | _Dense) -> torch.dtype:
    return piece.gradient.dtype if isinstance(piece, _Dense) else piece.g.dtype


def kept_nbytes(
    parameter: TrackedParameter, lengths: Sequence[int], dtype: torch.dtype, *, input_is_kept: bool = False
) -> int:
    """Upper estimate of what KeepSink holds for one parameter, from the rows' padded lengths in tokens.

    Args:
        input_is_kept: for another parameter, whose layer is called with the same tensor.
    """
    dense = parameter.numel * accumulation_dtype(dtype).itemsize
    shared = parameter.shape[1] if input_is_kept else 0
    return sum(
        dense if dense < length * sum(parameter.shape) * dtype.itemsize
        else length * (sum(parameter.shape) - shared) * dtype.itemsize
        for length in lengths
    )  # fmt: skip


def keeps_input(parameter: TrackedParameter, lengths: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether KeepSink holds the factors of every row, and so what the layer was called with."""
    dense = parameter.numel * accumulation_dtype(dtype).itemsize
    return max(lengths, default=0) * sum(parameter.shape) * dtype.itemsize <= dense
