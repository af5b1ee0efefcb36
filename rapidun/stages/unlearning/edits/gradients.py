"""Gradients of the rows' losses with respect to whole weights, by plain autograd, taken over as they become known."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from rapidun.base.errors import ModelError
from rapidun.models.packed import cross_entropy
from rapidun.models.training.forward import forward_packed
from rapidun.stages.unlearning.edits.rows import EditRows, RowBatch, WeightedRow

# float16 gradients below 6e-8 would vanish; the factor is divided out again
FLOAT16_LOSS_SCALE = 1024.0
Take = Callable[[str, Tensor], None]
Report = Callable[[int, int], None]


def wide(dtype: torch.dtype) -> torch.dtype:
    """What is summed in: float64 for float64, float32 for every narrower type."""
    return torch.promote_types(dtype, torch.float32)


@contextmanager
def handing_on(model: nn.Module, parameters: Mapping[str, nn.Parameter], take: Take) -> Iterator[None]:
    """Within, a backward pass gives each of these parameters' gradients to `take` once it is whole, and keeps none.

    A weight that several modules share has one gradient. The model is in eval mode; flags are as before afterwards.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    handles = []
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for name, parameter in parameters.items():
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(partial(_hand_on, take, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def _hand_on(take: Take, name: str, parameter: Tensor) -> None:
    gradient, parameter.grad = parameter.grad, None
    assert gradient is not None
    with torch.no_grad():
        scale = FLOAT16_LOSS_SCALE if parameter.dtype is torch.float16 else 1.0
        take(name, gradient.to(wide(gradient.dtype)) / scale)


def backward(model: nn.Module, batch: RowBatch, *, weights: Tensor) -> None:
    """sum_i weights_i l_i, differentiated; l_i = mean over the response tokens of -log p.

    Raises: ModelError naming a row whose loss is no number.
    """
    with torch.enable_grad():
        tokens = forward_packed(model, batch.tensors)
        losses = cross_entropy(tokens)
        check_losses(losses, batch.ids)
        scale = FLOAT16_LOSS_SCALE if tokens.logits.dtype is torch.float16 else 1.0
        ((losses * weights).sum() * scale).backward()


def check_losses(losses: Tensor, ids: Sequence[str]) -> None:
    """Raises: ModelError naming the first row whose loss is no number."""
    bad = (~torch.isfinite(losses.detach())).nonzero().flatten().tolist()
    if bad:
        raise ModelError(
            f"unlearning: need a finite loss for every row, got {losses[bad[0]].item()} for row {ids[bad[0]]}. Pass "
            "model.dtype=float32, or mend the rows or the model"
        )


def summed_gradients(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    rows: EditRows,
    group: Sequence[WeightedRow],
    *,
    report: Report | None = None,
) -> dict[str, Tensor]:
    """sum_i w_i grad l_i for each parameter, float32 at least, zeros where no row has a gradient."""
    sums = {name: torch.zeros_like(p, dtype=wide(p.dtype)) for name, p in parameters.items()}

    def take(name: str, gradient: Tensor) -> None:
        sums[name] += gradient

    done = 0
    with handing_on(model, parameters, take):
        for batch in rows.batches(group, model):
            backward(model, batch, weights=batch.weights)
            done += len(batch.ids)
            if report is not None:
                report(done, len(group))
    check_finite(sums)
    return sums


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises: ModelError naming the first weight whose gradients are no numbers."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"unlearning: need finite gradients, got NaN or infinite ones of {name}. Pass model.dtype=float32, or "
                "mend the rows or the model"
            )


@torch.no_grad()
def mean_losses(model: nn.Module, rows: EditRows, group: Sequence[WeightedRow]) -> float:
    """The plain mean of l_i over the rows; the caller has put the model in eval mode."""
    total = 0.0
    for batch in rows.batches(group, model):
        total += float(cross_entropy(forward_packed(model, batch.tensors)).double().sum())
    return total / len(group)
