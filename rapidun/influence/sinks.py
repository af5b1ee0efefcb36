"""Where captured gradients go: into sketches, or kept until every inner product is taken."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rapidun.influence.capture import Contribution
from rapidun.influence.params import TrackedParameter, accumulation_dtype
from rapidun.influence.sketch import CountSketch

# numbers of one slice of all rows' gradients while inner products are taken (256 MB in float32)
SLICE_NUMEL = 1 << 26
# longest sum that is taken in float32
SPAN = 4096


class GradientSink(Protocol):
    """What a capture hands its gradients to, batch after batch."""

    def start(self, rows: Tensor) -> None:
        """The examples of the next batch: [B] int64, their row numbers."""

    def __call__(self, parameter: TrackedParameter, gradient: Contribution) -> None:
        """One contribution [B, *parameter.shape] to the gradients of the batch; contributions add up."""


class SketchSink:
    """Keeps k numbers a row: the sketch of the whole gradient."""

    def __init__(self, num_rows: int, *, k: int, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self._sketch = CountSketch(k=k, seed=seed)
        self._rows: Tensor | None = None
        self._buffer: Tensor | None = None
        self._dtype = dtype
        # [num_rows, k]
        self._sketches = torch.zeros(num_rows, k, dtype=accumulation_dtype(dtype), device=device)

    def start(self, rows: Tensor) -> None:
        self._flush()
        self._rows = rows
        self._buffer = self._sketch.new_buffer(len(rows), dtype=self._dtype, device=self._sketches.device)

    def __call__(self, parameter: TrackedParameter, gradient: Contribution) -> None:
        if self._buffer is None:
            raise RuntimeError("start() comes before the first gradient")
        self._sketch.add(self._buffer, parameter.name, parameter.shape, gradient)

    def sketches(self) -> Tensor:
        """[num_rows, k] float32 (float64 for a float64 model)."""
        self._flush()
        return self._sketches

    def _flush(self) -> None:
        if self._rows is not None and self._buffer is not None:
            self._sketches[self._rows] = self._sketch.finish(self._buffer)
        self._rows = self._buffer = None


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

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._rows = torch.zeros(0, dtype=torch.int64)
        self._kept: dict[str, list[tuple[Tensor, Contribution | _Dense]]] = {}

    def start(self, rows: Tensor) -> None:
        self._rows = rows

    def __call__(self, parameter: TrackedParameter, gradient: Contribution) -> None:
        dtype = accumulation_dtype(gradient.g.dtype)
        piece: Contribution | _Dense = gradient
        if len(gradient.g) * parameter.numel * dtype.itemsize < gradient.nbytes:
            whole = (slice(0, parameter.shape[0]), slice(0, parameter.shape[1]))
            piece = _Dense(gradient.product(*whole, dtype=dtype))
        self._kept.setdefault(parameter.name, []).append((self._rows, piece))

    def nbytes(self) -> int:
        """Bytes held; an input that several layers share counts once."""
        tensors = [t for pieces in self._kept.values() for _, piece in pieces for t in piece]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    def add_gram(self, gram: Tensor, parameter: TrackedParameter) -> None:
        """Add <g_i, g_j> over one parameter to gram [num_rows, num_rows] float64, and let go of its gradients.

        The gradients are multiplied out in float32 (float64 for a float64 model), slice by slice.
        """
        pieces = self._kept.pop(parameter.name, [])
        if not pieces:
            return
        num_rows, num_columns = parameter.shape
        dtype = accumulation_dtype(_dtype(pieces[0][1]))
        height = max(1, SLICE_NUMEL // (self._num_rows * num_columns))
        columns = slice(0, num_columns)
        for top in range(0, num_rows, height):
            rows = slice(top, min(top + height, num_rows))
            # [num_rows, rows of the slice * columns]
            flat = torch.zeros(self._num_rows, (rows.stop - top) * num_columns, dtype=dtype, device=gram.device)
            for examples, piece in pieces:
                flat.index_add_(0, examples, piece.product(rows, columns, dtype=dtype).flatten(1))
            gram += inner_products(flat)


def inner_products(flat: Tensor) -> Tensor:
    """[N, D] -> [N, N] float64: float32 products over spans of 4,096 numbers, spans summed in float64.

    One float32 product over all of D sums in an order that the library picks by shape: for two rows of 884,736
    numbers it loses 8e-5 of every norm, in one direction.
    """
    whole = flat.shape[1] // SPAN * SPAN
    rest = flat[:, whole:].double()
    # [spans, N, SPAN]
    spans = flat[:, :whole].unflatten(1, (-1, SPAN)).transpose(0, 1)
    return torch.bmm(spans, spans.transpose(1, 2)).sum(dim=0, dtype=torch.float64) + rest @ rest.T


def _dtype(piece: Contribution | _Dense) -> torch.dtype:
    return piece.gradient.dtype if isinstance(piece, _Dense) else piece.g.dtype


def kept_nbytes(parameter: TrackedParameter, lengths: Sequence[int], dtype: torch.dtype) -> int:
    """Upper estimate of what KeepSink holds for one parameter, from the rows' padded lengths in tokens."""
    dense = parameter.numel * accumulation_dtype(dtype).itemsize
    return sum(min(dense, length * sum(parameter.shape) * dtype.itemsize) for length in lengths)
