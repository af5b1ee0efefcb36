"""Fitting the curvature: passes over the training rows with labels drawn from the model's own predictions."""

from collections.abc import Sequence

from torch import nn

from rapidun.config.influence import Precondition
from rapidun.models.curvature import Curvature
from rapidun.stages.influence.batches import RowBatch
from rapidun.stages.influence.gradients.params import TrackedParameter
from rapidun.stages.influence.gram import OnBatch, run_batches
from rapidun.stages.influence.precondition import (
    CovarianceSink,
    EigenvalueSink,
    num_fitting_passes,
    sample_labels,
)


def fit_curvature(
    model: nn.Module,
    parameters: Sequence[TrackedParameter],
    batches: Sequence[RowBatch],
    *,
    kind: Precondition,
    row_names: Sequence[str],
    seed: int,
    on_batch: OnBatch | None = None,
) -> dict[str, Curvature]:
    """K-FAC or EK-FAC of the rows' summed log-likelihood; by name of the weight.

    Args:
        row_names: [N], for messages. seed: of the labels drawn.
        on_batch: told (batches done, batches in all, note).
    Raises: ConfigError for weights that are no nn.Linear's own, ArithmeticError if a loss is not finite.
    """
    drawn = [
        RowBatch(b.rows, {**b.tensors, "labels": sample_labels(model, b.tensors, b.rows, seed=seed)}) for b in batches
    ]
    total = num_fitting_passes(kind) * len(batches)

    def report(done: int) -> None:
        if on_batch is not None:
            on_batch(done, total, f"fitting {kind.name}")

    covariances = CovarianceSink()
    run_batches(model, parameters, drawn, covariances, row_names=row_names, reduction="sum", report=report)
    curvatures = {p.name: covariances.curvature(p, num_rows=len(row_names)) for p in parameters}
    if kind is Precondition.kfac:
        return curvatures
    squares = EigenvalueSink(curvatures)
    run_batches(
        model,
        parameters,
        drawn,
        squares,
        row_names=row_names,
        reduction="sum",
        report=lambda done: report(len(batches) + done),
    )
    return {
        name: curvature._replace(eigenvalues=squares.sums[name] / len(row_names))
        for name, curvature in curvatures.items()
    }
