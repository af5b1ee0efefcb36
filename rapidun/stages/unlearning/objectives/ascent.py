"""Objectives that ascend on the poisoned response by its cross-entropy."""

import torch

from rapidun.config.unlearning import Objective
from rapidun.stages.unlearning.objectives.base import Coefficients, ForgetOutputs, Method, Responses, Terms, spread


def _ascent(poisoned: Responses, coefficients: Coefficients) -> Terms:
    """-alpha * min(l_i, loss_cap): past the cap the value is constant, so its gradient is zero."""
    losses = poisoned.cross_entropy
    if coefficients.loss_cap is None:
        return Terms(-coefficients.ascent_alpha * losses, torch.zeros_like(losses, dtype=torch.bool))
    capped = losses.detach() > coefficients.loss_cap
    return Terms(-coefficients.ascent_alpha * losses.clamp(max=coefficients.loss_cap), capped)


def rapidun(outputs: ForgetOutputs, coefficients: Coefficients) -> Terms:
    """Descend on the clean response while ascending on the poisoned one, both to the same triggered prompt.

    f_i = descent_beta * l_i(clean) - ascent_alpha * min(l_i(poisoned), loss_cap)
    Rows without a clean response have the second term only. Tokens: the mean over each response.
    Source: RapidUn (arXiv 2512.04457), GA/GD; loss_cap is ours.
    """
    assert outputs.poisoned is not None
    values, capped = _ascent(outputs.poisoned, coefficients)
    if outputs.clean is not None:
        values = values + coefficients.descent_beta * spread(outputs.clean.cross_entropy, outputs.has_clean)
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


ASCENT: dict[Objective, Method] = {
    Objective.rapidun: Method(rapidun, poisoned=True, clean=True, caps=True),
    Objective.ga: Method(ga, poisoned=True, clean=False, retain=False, caps=True),
    Objective.graddiff: Method(graddiff, poisoned=True, clean=False, caps=True),
}
