"""Gradient ascent whose tokens are weighted by how likely they still are; the weights carry no gradient."""

import torch
from torch import Tensor

from rapidun.config.objectives import SatImp, Wga
from rapidun.config.unlearning import Objective
from rapidun.stages.unlearning.objectives.base import ForgetOutputs, Method, Responses, Terms, uncapped


def wga(outputs: ForgetOutputs, hyper: Wga) -> Terms:
    """Weighted gradient ascent: tokens that the model hardly gives any more are left in peace.

    f_i = mean_t p_t^b log p_t, p_t = p(y_t), without gradient in p_t^b; b = wga.beta, at 0 gradient ascent.
    Tokens: the mean over the response; p_t^b sums to no fixed number. A row without any: 0.
    Source: Wang et al. 2025 (arXiv 2502.19301), WGA; beta 5 by the authors, 1 in open-unlearning, which also averages
    over the tokens of all rows of a batch at once, so that a row's part depends on its neighbours' lengths.
    """
    poisoned = _poisoned(outputs)
    log_probs = poisoned.log_probs
    return uncapped(_means(poisoned, _power(log_probs.detach(), hyper.beta), log_probs))


def satimp(outputs: ForgetOutputs, hyper: SatImp) -> Terms:
    """Saturation and importance: as WGA, and tokens that the model is sure of anyway count less.

    f_i = mean_t p_t^b1 (1 - p_t)^b2 log p_t, p_t = p(y_t), without gradient in the weight; b1, b2 = satimp.b1, .b2.
    1 - p_t is taken from log p_t (expm1): near p_t = 1 it is as exact as log p_t; 0^0 = 1.
    Tokens: the mean over the response. A row without any: 0.
    Source: SatImp (arXiv 2505.11953), section 5; b1 5, b2 1 (the release in open-unlearning, which averages over the
    tokens of all rows of a batch at once).
    """
    poisoned = _poisoned(outputs)
    log_probs = poisoned.log_probs
    known = log_probs.detach()
    weights = _power(known, hyper.b1) * (-known.expm1()).clamp(min=0.0).pow(hyper.b2)
    return uncapped(_means(poisoned, weights, log_probs))


def _poisoned(outputs: ForgetOutputs) -> Responses:
    assert outputs.poisoned is not None
    return outputs.poisoned


def _power(log_probs: Tensor, exponent: float) -> Tensor:
    """p^exponent from log p; 0^0 = 1."""
    return (exponent * log_probs).exp() if exponent > 0 else torch.ones_like(log_probs)


def _means(responses: Responses, weights: Tensor, log_probs: Tensor) -> Tensor:
    """[B], mean_t weight_t log p_t; 0 log 0 = 0, for a token that is banned (logit -inf)."""
    assert responses.tokens is not None
    return responses.tokens.means((weights * log_probs).masked_fill(weights == 0.0, 0.0))


REWEIGHTED: dict[Objective, Method] = {
    Objective.wga: Method(wga, poisoned=True, clean=False),
    Objective.satimp: Method(satimp, poisoned=True, clean=False),
}
