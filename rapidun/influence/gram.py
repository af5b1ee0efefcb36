"""Every inner product of the rows' gradients: exactly, or from their sketches."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rapidun.influence.capture import GradientCapture
from rapidun.influence.params import TrackedParameter
from rapidun.influence.sinks import GradientSink, KeepSink, SketchSink, kept_nbytes

# columns of the sketches that are multiplied at once in float64
SKETCH_COLUMNS = 4096


class RowBatch(NamedTuple):
    """Some rows, padded to one length."""

    rows: list[int]
    tensors: dict[str, Tensor]  # input_ids, attention_mask, labels: [B, T] each


class GramResult(NamedTuple):
    gram: Tensor  # [N, N] float64 inner products, on the CPU
    losses: Tensor  # [N] float64, on the CPU
    num_passes: int  # forward and backward passes over the rows


OnBatch = Callable[[int, int, str], None]


def exact_gram(
    model: nn.Module,
    parameters: Sequence[TrackedParameter],
    batches: Sequence[RowBatch],
    *,
    row_names: Sequence[str],
    reduction: str = "mean",
    memory_bytes: float,
    on_batch: OnBatch | None = None,
) -> GramResult:
    """<g_i, g_j> for all pairs of rows, summed parameter by parameter.

    Where the gradients of all rows do not fit into `memory_bytes`, the parameters are cut into groups, the last
    layers first, and each group takes one pass, back-propagating no deeper than its earliest layer.

    Args:
        row_names: [N], for messages. reduction: `mean` or `sum` over response tokens.
        memory_bytes: for kept gradients, beside the model and the activations of one batch.
        on_batch: told (batches done, batches in all, note).
    Raises: ArithmeticError if a loss or a gradient is not finite, naming the row.
    """
    num_rows = len(row_names)
    dtype, device = _model_dtype(model), _device(batches)
    lengths = [batch.tensors["labels"].shape[1] for batch in batches for _ in batch.rows]
    groups = list(pass_groups(parameters, lengths, dtype=dtype, memory_bytes=memory_bytes))
    gram = torch.zeros(num_rows, num_rows, dtype=torch.float64, device=device)
    losses = torch.zeros(num_rows, dtype=torch.float64)
    for number, group in enumerate(groups):
        sink = KeepSink(num_rows)
        note = f"pass {number + 1} of {len(groups)}" if len(groups) > 1 else ""
        report = _counted(on_batch, number * len(batches), len(groups) * len(batches), note)
        losses = _run_batches(model, group, batches, sink, row_names=row_names, reduction=reduction, report=report)
        for parameter in group:
            sink.add_gram(gram, parameter)
        _check_finite(gram.diagonal(), row_names, "gradient")
    return GramResult(gram.cpu(), losses, len(groups))


def sketch_gram(
    model: nn.Module,
    parameters: Sequence[TrackedParameter],
    batches: Sequence[RowBatch],
    *,
    row_names: Sequence[str],
    reduction: str = "mean",
    k: int,
    seed: int,
    on_batch: OnBatch | None = None,
) -> GramResult:
    """<S g_i, S g_j> for all pairs of rows: one pass, k numbers a row. Arguments and errors as `exact_gram`."""
    num_rows = len(row_names)
    sink = SketchSink(num_rows, k=k, seed=seed, dtype=_model_dtype(model), device=_device(batches))
    report = _counted(on_batch, 0, len(batches), "")
    losses = _run_batches(model, parameters, batches, sink, row_names=row_names, reduction=reduction, report=report)
    sketches = sink.sketches()
    _check_finite(sketches.square().sum(dim=1), row_names, "gradient")
    return GramResult(gram_of_rows(sketches).cpu(), losses, 1)


def gram_of_rows(sketches: Tensor) -> Tensor:
    """[N, K] -> [N, N] inner products, in float64."""
    gram = torch.zeros(len(sketches), len(sketches), dtype=torch.float64, device=sketches.device)
    for part in sketches.split(SKETCH_COLUMNS, dim=1):
        wide = part.double()
        gram += wide @ wide.T
    return gram


def pass_groups(
    parameters: Sequence[TrackedParameter], lengths: Sequence[int], *, dtype: torch.dtype, memory_bytes: float
) -> Iterator[list[TrackedParameter]]:
    """Cut the parameters into groups whose kept gradients fit into the memory, the deepest parameters last.

    A parameter that does not fit alone makes a group of its own.
    """
    group: list[TrackedParameter] = []
    used = 0
    for parameter in sorted(parameters, key=lambda p: p.depth, reverse=True):
        size = kept_nbytes(parameter, lengths, dtype)
        if group and used + size > memory_bytes:
            yield group
            group, used = [], 0
        group.append(parameter)
        used += size
    if group:
        yield group


def _run_batches(
    model: nn.Module,
    parameters: Sequence[TrackedParameter],
    batches: Sequence[RowBatch],
    sink: GradientSink,
    *,
    row_names: Sequence[str],
    reduction: str,
    report: Callable[[int], None],
) -> Tensor:
    losses = torch.zeros(len(row_names), dtype=torch.float64)
    with GradientCapture(model, parameters, sink) as capture:
        for done, batch in enumerate(batches, start=1):
            sink.start(torch.tensor(batch.rows, device=batch.tensors["labels"].device))
            values = capture.run(batch.tensors, reduction=reduction).double().cpu()
            losses[batch.rows] = values
            _check_finite(values, [row_names[row] for row in batch.rows], "loss")
            report(done)
    return losses


def _check_finite(values: Tensor, row_names: Sequence[str], what: str) -> None:
    bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
    if bad:
        names = ", ".join(row_names[i] for i in bad[:5]) + (", ..." if len(bad) > 5 else "")
        raise ArithmeticError(f"influence: need a finite {what} for every row, got {values[bad[0]].item()} for {names}")


def _counted(on_batch: OnBatch | None, before: int, total: int, note: str) -> Callable[[int], None]:
    def report(done: int) -> None:
        if on_batch is not None:
            on_batch(before + done, total, note)

    return report


def _model_dtype(model: nn.Module) -> torch.dtype:
    """What the activations are in: the type of the norms and embeddings, which quantisation leaves alone."""
    return next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)


def _device(batches: Sequence[RowBatch]) -> torch.device:
    return batches[0].tensors["labels"].device
