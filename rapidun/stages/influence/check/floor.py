"""F0, the floor that influence is measured against: what every gradient of a loss must cost.

A plain forward pass with all logits, and the gradient of the loss with respect to the embedded inputs alone: no hooks,
no weight gradients, the model's own attention. About 4 (P + H) floating-point operations a token, P the parameters of
the body and H those of the head.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch

from rapidun.models.losses import example_cross_entropy
from rapidun.stages.influence.batches import RowBatch
from rapidun.stages.influence.gradients.capture import frozen


def floor_pass(model: Any, batches: Sequence[RowBatch]) -> None:
    """One pass over the batches at the cost F0."""
    with frozen(model):
        for batch in batches:
            t = batch.tensors
            inputs = model.get_input_embeddings()(t["input_ids"]).detach().requires_grad_()
            output = model(inputs_embeds=inputs, attention_mask=t["attention_mask"], use_cache=False)
            torch.autograd.grad(example_cross_entropy(output.logits, t["labels"]).sum(), inputs)


class Cost(NamedTuple):
    """Medians over the rounds."""

    seconds: float
    floor_seconds: float
    ratio: float  # of the ratios of neighbours, not of the medians: machines drift


def measure_cost(
    work: Callable[[], object],
    model: Any,
    batches: Sequence[RowBatch],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Cost:
    """Run F0 and `work` by turns, after one round that does not count."""
    seconds, floors = [], []
    for _ in range(rounds + 1):
        start = clock()
        floor_pass(model, batches)
        middle = clock()
        work()
        floors.append(middle - start)
        seconds.append(clock() - middle)
    del seconds[0], floors[0]
    return Cost(median(seconds), median(floors), median(a / b for a, b in zip(seconds, floors, strict=True)))
