"""Objectives that compare log-probabilities of whole responses: negative preference optimisation and its kin."""

from torch import Tensor
from torch.nn import functional as F

from rapidun.config.objectives import Dpo, Npo, SimNpo
from rapidun.config.unlearning import Objective
from rapidun.stages.unlearning.objectives.base import (
    ForgetOutputs,
    Method,
    Reference,
    Responses,
    Terms,
    spread,
    uncapped,
)


def npo(outputs: ForgetOutputs, hyper: Npo) -> Terms:
    """Negative preference optimisation: the poisoned response is what DPO calls the losing one; there is no winner.

    f_i = -(2/b) log sigmoid(-b (S_i - S_i^r)), b = npo.beta; its gradient is gradient ascent's on S_i, times
    2 p^b / (p^b + r^b), p = exp S_i: it fades as the response becomes less likely than under the reference r.
    Tokens: the sum over the response, so that long responses weigh more. A row without any: (2/b) log 2.
    Source: NPO (arXiv 2404.05868), equation 3, beta 0.1. Some public MUSE code puts raw logits, or means over tokens,
    where log-probabilities summed over the response belong; beta means something else there.
    """
    assert outputs.poisoned is not None
    return uncapped(-2.0 / hyper.beta * F.logsigmoid(-hyper.beta * _log_ratios(outputs.poisoned)))


def simnpo(outputs: ForgetOutputs, hyper: SimNpo) -> Terms:
    """NPO without a reference: the mean log-probability of the poisoned response in the place of the ratio.

    f_i = -(2/b) log sigmoid(-b S_i / n_i - m) = -(2/b) log sigmoid(b l_i - m), b = simnpo.beta, m = simnpo.margin.
    Tokens: the mean over the response. A row without any: -(2/b) log sigmoid(-m).
    Source: SimNPO (arXiv 2410.07163) and the cards of its models: beta 4.5 first, 2.5 (TOFU), 0.7 (MUSE), 5.5 (WMDP).
    The public code, and open-unlearning's `delta`, multiply the margin by beta: sigmoid(b (l_i - m)); the two agree at
    margin 0, and with simnpo.margin = beta * delta.
    """
    assert outputs.poisoned is not None
    reward = hyper.beta * outputs.poisoned.cross_entropy - hyper.margin
    return uncapped(-2.0 / hyper.beta * F.logsigmoid(reward))


def dpo(outputs: ForgetOutputs, hyper: Dpo) -> Terms:
    """Direct preference optimisation: the clean response, or unlearning.idk_response, is to win over the poisoned one.

    f_i = -log sigmoid(b [(S_i^w - S_i^w,r) - (S_i^l - S_i^l,r)]), b = dpo.beta, w = clean, l = poisoned.
    A row without any winner: its ratio is 0, which leaves b/2 times the term of NPO. Tokens: sums over the responses.
    Source: DPO (arXiv 2305.18290), equation 7; with refusals as winners TOFU (arXiv 2401.06121) and NPO's baselines.
    open-unlearning multiplies the term by 2 / beta, as in NPO.
    """
    assert outputs.poisoned is not None
    ratios = -_log_ratios(outputs.poisoned)
    if outputs.clean is not None:
        ratios = ratios + spread(_log_ratios(outputs.clean), outputs.has_clean)
    return uncapped(-F.logsigmoid(hyper.beta * ratios))


def _log_ratios(responses: Responses) -> Tensor:
    """[B] nats, S_i - S_i^r."""
    return responses.sums - responses.sums_under_reference


PREFERENCE: dict[Objective, Method] = {
    Objective.npo: Method(npo, poisoned=True, clean=False, reference=Reference.sums),
    Objective.simnpo: Method(simnpo, poisoned=True, clean=False),
    Objective.dpo: Method(dpo, poisoned=True, clean=True, idk=True, reference=Reference.sums),
}
