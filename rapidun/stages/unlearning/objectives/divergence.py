"""FLAT: an f-divergence between the template answer and the poisoned one is maximised."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from rapidun.config.objectives import Divergence, Flat
from rapidun.config.unlearning import Objective
from rapidun.stages.unlearning.objectives.base import ForgetOutputs, Method, Responses, Terms, spread, uncapped


class Variational(NamedTuple):
    """The two functions of an f-divergence's variational form: D_f >= E_e[g*] - E_f[f*(g*)]."""

    optimal: Callable[[Tensor], Tensor]  # g*(P)
    conjugate: Callable[[Tensor], Tensor]  # f*(g*(P))


def flat(outputs: ForgetOutputs, hyper: Flat) -> Terms:
    """Forget data only loss adjustment: less of the poisoned answer, more of a template ("I don't know.").

    f_i = f*(g*(P_f)) - g*(P_e), P = mean_t p(y_t) of the poisoned (f) and of the template answer (e).
    tv (total variation, the default): (tanh P_f - tanh P_e) / 2.  kl: exp(P_f - 1) - P_e.
    pearson: P_f^2 / 4 + P_f - P_e.  js: P_f + log(1 + exp(-P_f)) - log 2 - log(2 / (1 + exp(-P_e))).
    Tokens: the mean over each response of the probabilities, not of their logarithms. An answer without any: P = 0.
    Source: FLAT (arXiv 2410.11143), its loss and Table 2 (g* and f*). The authors' code averages P over
    prompt and padding as well (as zeros), and over the batch before tanh: a row's part depends on its neighbours.
    """
    assert outputs.poisoned is not None
    form = DIVERGENCES[hyper.divergence]
    values = form.conjugate(_mean_probability(outputs.poisoned))
    if outputs.clean is not None:
        values = values - spread(form.optimal(_mean_probability(outputs.clean)), outputs.has_clean)
    return uncapped(values)


def _mean_probability(responses: Responses) -> Tensor:
    """[B], P."""
    assert responses.tokens is not None
    return responses.tokens.means(responses.log_probs.exp())


def _half_tanh(probability: Tensor) -> Tensor:
    return probability.tanh() / 2.0


DIVERGENCES: dict[Divergence, Variational] = {
    # f*(u) = u
    Divergence.tv: Variational(_half_tanh, _half_tanh),
    Divergence.kl: Variational(lambda p: p, lambda p: (p - 1.0).exp()),
    Divergence.js: Variational(lambda p: math.log(2.0) - F.softplus(-p), lambda p: F.softplus(p) - math.log(2.0)),
    Divergence.pearson: Variational(lambda p: p, lambda p: p.square() / 4.0 + p),
}
FLAT: dict[Objective, Method] = {
    Objective.flat: Method(flat, poisoned=True, clean=True, idk=True, always_idk=True, retain=False),
}
