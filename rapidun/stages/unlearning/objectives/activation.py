"""Representation misdirection: the hidden states of one layer are steered to a random vector."""

import torch
from torch import Tensor

from rapidun.config.objectives import Rmu
from rapidun.config.unlearning import Objective
from rapidun.stages.unlearning.objectives.base import (
    ForgetOutputs,
    Method,
    Reference,
    RetainTerm,
    Terms,
    uncapped,
)
from rapidun.stages.unlearning.objectives.retain import retain_activations


def rmu(outputs: ForgetOutputs, hyper: Rmu) -> Terms:
    """Representation misdirection for unlearning: towards c u, u one random unit direction for the whole run.

    f_i = mean_t mean_d (h_td - c u_d)^2, h_t = output of decoder block `rmu.layer` at the position that predicts the
    response token t, c = rmu.steering_coeff, u = `direction`.
    Tokens: the mean over the response of each row, then (outside) the mean over rows. A row without any: 0.
    Its retain term is the same to the reference's activations (`retain_activations`), times unlearning.retain_coeff.
    Source: WMDP (arXiv 2403.03218), section 4; c 20, alpha 100 (the authors' code), c 6.5, alpha 1200 (Zephyr-7B).
    The authors train three layers' down projections and average over all tokens of plain text; here the adapter is
    trained, and prompts are left out. open-unlearning divides every row's sum by every row's number of tokens (a [B, 1]
    against a [B]: f = mean_ij s_i / n_j), and its mask is that of the labels, unshifted: it steers the states at the
    response tokens, so that of the token after the last one, and none at the last prompt position, which predicts the
    first response token.
    """
    assert outputs.poisoned is not None and outputs.poisoned.tokens is not None
    tokens = outputs.poisoned.tokens
    assert tokens.hidden is not None
    states = tokens.hidden.to(torch.promote_types(tokens.hidden.dtype, torch.float32))
    given = outputs.direction
    unit = direction(states.shape[1], seed=hyper.seed) if given is None else given / given.norm()
    target = hyper.steering_coeff * unit.to(states.device, states.dtype)
    return uncapped(tokens.means((states - target).square().mean(dim=1)))


def direction(num_dims: int, *, seed: int) -> Tensor:
    """[D] float64 of length 1: entries uniform in [0, 1) before it is normalised, as WMDP draws them (not isotropic).

    torch's generator on the CPU, float32 draws: the same for a seed on every device.
    """
    drawn = torch.rand(num_dims, generator=torch.Generator().manual_seed(seed)).double()
    return drawn / drawn.norm()


ACTIVATION: dict[Objective, Method] = {
    Objective.rmu: Method(
        rmu,
        poisoned=True,
        clean=False,
        hidden=True,
        own_retain=RetainTerm(retain_activations, reference=Reference.hidden),
    ),
}
