"""Retain terms: what keeps the model on the retain rows as it was."""

from collections.abc import Callable

import torch
from torch import Tensor

from rapidun.config.unlearning import RetainLoss
from rapidun.stages.unlearning.objectives.base import Responses


def retain_cross_entropy(responses: Responses) -> Tensor:
    """l_i of the retain rows, [R]. Tokens: the mean over the response."""
    return responses.cross_entropy


def retain_kl(responses: Responses) -> Tensor:
    """KL(r, p) = sum_v r(v) log(r(v) / p(v)) with r the reference model, [R] nats.

    Tokens: the mean over the positions that predict a response token. Zero while the model equals its reference.
    open-unlearning sums over prompt and padding as well, and divides by rows times positions.
    """
    tokens, reference = responses.tokens, responses.reference
    assert tokens is not None and reference is not None
    dtype = torch.promote_types(tokens.logits.dtype, torch.float32)
    model = tokens.logits.to(dtype).log_softmax(dim=-1)
    known = reference.logits.detach().to(dtype).log_softmax(dim=-1)
    probability = known.exp()
    # 0 log 0 = 0: a token that the reference bans (logit -inf)
    return tokens.means((probability * (known - model)).masked_fill(probability == 0.0, 0.0).sum(dim=-1))


def retain_activations(responses: Responses) -> Tensor:
    """mean_t mean_d (h_td - h^r_td)^2, the retain term of RMU, [R]; h^r the reference model's hidden states.

    Tokens: the mean over the positions that predict a response token. Zero while the model equals its reference.
    """
    tokens, reference = responses.tokens, responses.reference
    assert tokens is not None and reference is not None
    assert tokens.hidden is not None and reference.hidden is not None
    dtype = torch.promote_types(tokens.hidden.dtype, torch.float32)
    moved = tokens.hidden.to(dtype) - reference.hidden.detach().to(dtype)
    return tokens.means(moved.square().mean(dim=-1))


RETAIN_LOSSES: dict[RetainLoss, Callable[[Responses], Tensor]] = {
    RetainLoss.ce: retain_cross_entropy,
    RetainLoss.kl: retain_kl,
}
