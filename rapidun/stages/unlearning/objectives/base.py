"""What an objective is: a forget term f_i for each row, and what it must be given to compute one.

The batch loss is mean_i(w_i f_i). l_i below is the mean over the response tokens of -log p (METHOD section 2); with
unlearning.token_weights l_i(poisoned) is sum_k t_ik l_ik / n_i, t of mean 1, wherever it stands (loss_cap included).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rapidun.models.packed import Packed


class Responses(NamedTuple):
    """One response to each of B prompts, under the model."""

    cross_entropy: Tensor  # [B] l_i, with gradient
    tokens: Packed | None = None
    # under the reference model: its logits, or the sums S_i^r [B] of its log-probabilities, as the objective asks
    reference: Packed | None = None
    reference_sums: Tensor | None = None


class ForgetOutputs(NamedTuple):
    """The forget rows of a micro-batch: F rows, of which C have a clean (or refusing) response."""

    poisoned: Responses | None  # B = F
    clean: Responses | None  # B = C, in the rows' order
    has_clean: Tensor  # [F] bool


class Coefficients(NamedTuple):
    ascent_alpha: float = 1.0
    descent_beta: float = 0.5
    loss_cap: float | None = None


class Terms(NamedTuple):
    values: Tensor  # [F] f_i
    capped: Tensor  # [F] bool, where loss_cap stopped the ascent


class Reference(Enum):
    """What a term reads of the reference model."""

    none = "none"
    sums = "sums"  # S_i^r of the responses: one number a row, computed once
    logits = "logits"  # [N, V]: a forward pass each time


def spread(values: Tensor, where: Tensor) -> Tensor:
    """[C] -> [F]: values at the rows that have them, 0 elsewhere."""
    return torch.zeros(where.shape, dtype=values.dtype, device=values.device).masked_scatter(where, values)


def weighted_mean(terms: Tensor, weights: Tensor, *, num_examples: int) -> Tensor:
    """sum_i(w_i f_i) / num_examples; with unit weights the plain mean."""
    return (weights * terms).sum() / num_examples


@dataclass(frozen=True)
class Method:
    """An objective: its forget term, and what that term needs to be given."""

    forget: Callable[[ForgetOutputs, Any], Terms]
    poisoned: bool  # responses that the model should lose
    clean: bool  # responses that it should give instead
    idk: bool = False  # rows without a clean response get unlearning.idk_response
    reference: Reference = Reference.none  # on the forget rows
    hidden: bool = False  # hidden states of one layer
    retain: bool = True  # a retain term stands beside it
