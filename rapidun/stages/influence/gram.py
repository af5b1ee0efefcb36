"""Every inner product of the rows' gradients: exactly, or from their sketches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rapidun.stages.influence.batches import RowBatch
from rapidun.stages.influence.gradients.capture import GradientCapture, shared_inputs
from rapidun.stages.influence.gradients.params import TrackedParameter
from rapidun.stages.influence.precondition import Preconditioner
from rapidun.stages.influence.sinks import (
    GradientSink,
    GramSums,
    KeepSink,
    PreconditionedSink,
    RowSink,
    Sketch,
    inner_products,
    keeps_input,
    kept_nbytes,
)


class GramResult(NamedTuple):
    gram: Tensor  # [N, M] float64 inner products, on the CPU; rows = training rows, columns = queries, all N by default
    losses: Tensor | None  # [N] float64, on the CPU; None where there is no model
    num_passes: int  # forward and backward passes over the rows
    # of preconditioned queries, whose product with itself is no square, and where queries are some of the rows: float64
    # [N] |g_i| and [M] |F^-1 g_j|
    norms: Tensor | None = None
    query_norms: Tensor | None = None


OnBatch = Callable[[int, int, str], None]


def exact_gram(
    model: nn.Module,
    parameters: Sequence[TrackedParameter],
    batches: Sequence[RowBatch],
    *,
    row_names: Sequence[str],
    reduction: str = "mean",
    memory_bytes: float,
    preconditioner: Preconditioner | None = None,
    queries: Sequence[int] | None = None,
    on_batch: OnBatch | None = None,
    on_parameter: Callable[[TrackedParameter, Tensor], None] | None = None,
) -> GramResult:
    """<g_i, g_j> for all pairs of rows, summed parameter by parameter.

    Where the gradients of all rows do not fit into `memory_bytes`, the parameters are cut into groups, the last
    layers first, and each group takes one pass, back-propagating no deeper than its earliest layer.

    Args:
        row_names: [N], for messages. reduction: `mean` or `sum` over response tokens.
        memory_bytes: for kept gradients, beside the model and the activations of one batch.
        preconditioner: makes the products <g_i, F^-1 g_j>.
        queries: the rows j; all by default.
        on_batch: told (batches done, batches in all, note).
        on_parameter: given each parameter's own part of the products, [N, M] float64.
    Raises: ArithmeticError if a loss or a gradient is not finite, naming the row.
    """
    num_rows = len(row_names)
    dtype, device = _model_dtype(model), _device(batches)
    lengths = [batch.tensors["labels"].shape[1] for batch in batches for _ in batch.rows]
    groups = list(pass_groups(parameters, lengths, dtype=dtype, memory_bytes=memory_bytes))
    if len(groups) > 1:
        inputs = shared_inputs(model, parameters, batches[0].tensors)
        groups = list(pass_groups(parameters, lengths, dtype=dtype, memory_bytes=memory_bytes, inputs=inputs))
    asked = None if queries is None else torch.tensor(queries, dtype=torch.int64, device=device)
    num_queries = num_rows if queries is None else len(queries)
    gram = torch.zeros(num_rows, num_queries, dtype=torch.float64, device=device)
    sums = GramSums(gram, gram.new_zeros(num_rows), gram.new_zeros(num_queries), asked)
    losses = torch.zeros(num_rows, dtype=torch.float64)
    for number, group in enumerate(groups):
        sink = KeepSink(preconditioner)
        note = f"pass {number + 1} of {len(groups)}" if len(groups) > 1 else ""
        report = _counted(on_batch, number * len(batches), len(groups) * len(batches), note)
        losses = run_batches(model, group, batches, sink, row_names=row_names, reduction=reduction, report=report)
        for parameter in group:
            before = sums.gram.clone() if on_parameter is not None else None
            sink.add_gram(sums, parameter)
            if on_parameter is not None and before is not None:
                on_parameter(parameter, sums.gram - before)
        check_finite(sums.gram.diagonal() if queries is None else sums.squares, row_names, "gradient")
    norms: tuple[Tensor | None, Tensor | None] = (None, None)
    if preconditioner is not None or queries is not None:
        norms = (sums.squares.sqrt().cpu(), sums.query_squares.sqrt().cpu())
    return GramResult(sums.gram.cpu(), losses, len(groups), *norms)


def estimated_gram(
    model: nn.Module,
    parameters: Sequence[TrackedParameter],
    batches: Sequence[RowBatch],
    sketch: Sketch,
    *,
    row_names: Sequence[str],
    reduction: str = "mean",
    preconditioner: Preconditioner | None = None,
    on_batch: OnBatch | None = None,
) -> GramResult:
    """<S g_i, S g_j> for all pairs of rows, S any sketch: one pass. Arguments and errors as `exact_gram`.

    With a preconditioner <S F^-1/2 g_i, S F^-1/2 g_j>, half of F^-1 on either side: what large eigenvalues make of both
    is taken away before a sketch's noise grows with it (benchmarks/lds_bank.py: twice to three times the LDS of
    <S g_i, S F^-1 g_j> at a few hundred numbers a row). The norms are those of S g and S F^-1 g.
    """
    num_rows, dtype, device = len(row_names), _model_dtype(model), _device(batches)
    train, query, half = (RowSink(num_rows, sketch, dtype=dtype, device=device) for _ in range(3))
    sink: GradientSink = train if preconditioner is None else PreconditionedSink(train, query, half, preconditioner)
    report = _counted(on_batch, 0, len(batches), "")
    losses = run_batches(model, parameters, batches, sink, row_names=row_names, reduction=reduction, report=report)
    sketches = train.sketches()
    check_finite(torch.linalg.vector_norm(sketches, dim=1), row_names, "gradient")
    if preconditioner is None:
        return GramResult(gram_of_rows(sketches).cpu(), losses, 1)
    norms = (x.double().norm(dim=1).cpu() for x in (sketches, query.sketches()))
    return GramResult(gram_of_rows(half.sketches()).cpu(), losses, 1, *norms)


def gram_of_rows(sketches: Tensor, queries: Tensor | None = None) -> Tensor:
    """[N, K], [M, K] -> [N, M] inner products, summed in float64; of the rows with each other by default."""
    return inner_products(sketches, queries)


def pass_groups(
    parameters: Sequence[TrackedParameter],
    lengths: Sequence[int],
    *,
    dtype: torch.dtype,
    memory_bytes: float,
    inputs: Mapping[str, int] | None = None,
) -> Iterator[list[TrackedParameter]]:
    """Cut the parameters into groups whose kept gradients fit into the memory, the deepest parameters last.

    A parameter that does not fit alone makes a group of its own.

    Args:
        inputs: as `shared_inputs` found them; by default each layer has an input of its own.
    """
    inputs = inputs or {}
    group: list[TrackedParameter] = []
    used, kept = 0, set[int]()
    for parameter in sorted(parameters, key=lambda p: p.depth, reverse=True):
        given = inputs.get(parameter.name)
        size = kept_nbytes(parameter, lengths, dtype, input_is_kept=given in kept)
        if group and used + size > memory_bytes:
            yield group
            group, used, kept = [], 0, set()
            size = kept_nbytes(parameter, lengths, dtype)
        group.append(parameter)
        used += size
        if given is not None and keeps_input(parameter, lengths, dtype):
            kept.add(given)
    if group:
        yield group


def run_batches(
    model: nn.Module,
    parameters: Sequence[TrackedParameter],
    batches: Sequence[RowBatch],
    sink: GradientSink,
    *,
    row_names: Sequence[str],
    reduction: str,
    report: Callable[[int], None],
) -> Tensor:
    """Give every row's gradient to a sink; returns [N] float64 losses. Errors as `exact_gram`."""
    losses = torch.zeros(len(row_names), dtype=torch.float64)
    with GradientCapture(model, parameters, sink) as capture:
        for done, batch in enumerate(batches, start=1):
            sink.start(torch.tensor(batch.rows, device=batch.tensors["labels"].device))
            values = capture.run(batch.tensors, reduction=reduction).double().cpu()
            losses[batch.rows] = values
            check_finite(values, [row_names[row] for row in batch.rows], "loss")
            report(done)
    return losses


def check_finite(values: Tensor, row_names: Sequence[str], what: str) -> None:
    """Raises: ArithmeticError naming the rows (at most five) whose value is not finite."""
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
