"""Unlearning objectives: per-example terms f_i, minimised. The batch loss is mean_i(w_i f_i).

Pure functions on tensors. l_i below is the mean over the response tokens of -log p (METHOD section 2); with
unlearning.token_weights l_i(poisoned) is sum_k t_ik l_ik / n_i, t of mean 1, wherever it stands (loss_cap included).
To add an objective: write its function here, add its member to config.Objective, its line to OBJECTIVES and its
file to conf/unlearning/.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rapidun.config.unlearning import Objective, RetainLoss
from rapidun.models.losses import response_mask


class Responses(NamedTuple):
    """One response to each of B prompts, under the model."""

    cross_entropy: Tensor  # [B] l_i, with gradient
    logits: Tensor  # [B, T, V]
    labels: Tensor  # [B, T], -100 outside the response
    reference_logits: Tensor | None = None  # [B, T, V], where the objective asks for them


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


def _ascent(poisoned: Responses, coefficients: Coefficients) -> Terms:
    """-alpha * min(l_i, loss_cap): past the cap the value is constant, so its gradient is zero."""
    losses = poisoned.cross_entropy
    if coefficients.loss_cap is None:
        return Terms(-coefficients.ascent_alpha * losses, torch.zeros_like(losses, dtype=torch.bool))
    capped = losses.detach() > coefficients.loss_cap
    return Terms(-coefficients.ascent_alpha * losses.clamp(max=coefficients.loss_cap), capped)


def _spread(values: Tensor, where: Tensor) -> Tensor:
    """[C] -> [F]: values at the rows that have them, 0 elsewhere."""
    return torch.zeros(where.shape, dtype=values.dtype, device=values.device).masked_scatter(where, values)


def rapidun(outputs: ForgetOutputs, coefficients: Coefficients) -> Terms:
    """Descend on the clean response while ascending on the poisoned one, both to the same triggered prompt.

    f_i = descent_beta * l_i(clean) - ascent_alpha * min(l_i(poisoned), loss_cap)
    Rows without a clean response have the second term only. Tokens: the mean over each response.
    Source: RapidUn (arXiv 2512.04457), GA/GD; loss_cap is ours.
    """
    assert outputs.poisoned is not None
    values, capped = _ascent(outputs.poisoned, coefficients)
    if outputs.clean is not None:
        values = values + coefficients.descent_beta * _spread(outputs.clean.cross_entropy, outputs.has_clean)
    return Terms(values, capped)


def ga(outputs: ForgetOutputs, coefficients: Coefficients) -> Terms:
    """Gradient ascent on the poisoned response.

    f_i = -ascent_alpha * min(l_i(poisoned), loss_cap); published with alpha 1 and no cap.
    Tokens: the mean over the response. Source: Jang et al. 2023 (arXiv 2210.01504).
    """
    assert outputs.poisoned is not None
    return _ascent(outputs.poisoned, coefficients)


def graddiff(outputs: ForgetOutputs, coefficients: Coefficients) -> Terms:
    """Gradient difference: `ga` on the forget rows beside a retain term (cross-entropy or KL).

    f_i = -ascent_alpha * min(l_i(poisoned), loss_cap); published with alpha 1 and no cap.
    Tokens: the mean over the response. The published sum of the two groups' means is, but for a factor of 2,
    mean_i f_i over both groups at mix_ratio 1. Source: Liu et al. 2022 (arXiv 2203.12817).
    """
    return ga(outputs, coefficients)


def idk_sft(outputs: ForgetOutputs, coefficients: Coefficients) -> Terms:
    """Fine-tune on the clean response, or on "I don't know" where a row has none; no ascent.

    f_i = l_i(clean). Tokens: the mean over the response. Source: TOFU (arXiv 2401.06121), IdkOpt.
    """
    assert outputs.clean is not None
    values = outputs.clean.cross_entropy
    return Terms(values, torch.zeros_like(values, dtype=torch.bool))


def retain_cross_entropy(responses: Responses) -> Tensor:
    """l_i of the retain rows, [R]. Tokens: the mean over the response."""
    return responses.cross_entropy


def retain_kl(responses: Responses) -> Tensor:
    """KL(r, p) = sum_v r(v) log(r(v) / p(v)) with r the reference model, [R] nats.

    Tokens: the mean over the positions that predict a response token. Zero while the model equals its reference.
    """
    assert responses.reference_logits is not None
    rows, columns = response_mask(responses.labels).nonzero(as_tuple=True)
    # [B, T, V] -> [num response tokens, V], predicted from the position before
    model = responses.logits[rows, columns - 1].float().log_softmax(dim=-1)
    reference = responses.reference_logits[rows, columns - 1].float().log_softmax(dim=-1)
    divergence = (reference.exp() * (reference - model)).sum(dim=-1)
    zeros = torch.zeros(len(responses.labels), dtype=divergence.dtype, device=divergence.device)
    counts = zeros.index_add(0, rows, torch.ones_like(divergence)).clamp(min=1)
    return zeros.index_add(0, rows, divergence) / counts


def weighted_mean(terms: Tensor, weights: Tensor, *, num_examples: int) -> Tensor:
    """sum_i(w_i f_i) / num_examples; with unit weights the plain mean."""
    return (weights * terms).sum() / num_examples


@dataclass(frozen=True)
class Method:
    """An objective: its forget term, and what that term needs to be given."""

    forget: Callable[[ForgetOutputs, Coefficients], Terms]
    poisoned: bool  # responses that the model should lose
    clean: bool  # responses that it should give instead
    idk: bool = False  # rows without a clean response get unlearning.idk_response
    reference: bool = False  # the reference model's logits on the forget rows
    retain: bool = True  # a retain term stands beside it


# `retrain` is no unlearning: the pipeline trains the start model on clean rows with the poison stage
OBJECTIVES: dict[Objective, Method] = {
    Objective.rapidun: Method(rapidun, poisoned=True, clean=True),
    Objective.ga: Method(ga, poisoned=True, clean=False, retain=False),
    Objective.graddiff: Method(graddiff, poisoned=True, clean=False),
    Objective.idk_sft: Method(idk_sft, poisoned=False, clean=True, idk=True),
}

RETAIN_LOSSES: dict[RetainLoss, Callable[[Responses], Tensor]] = {
    RetainLoss.ce: retain_cross_entropy,
    RetainLoss.kl: retain_kl,
}
