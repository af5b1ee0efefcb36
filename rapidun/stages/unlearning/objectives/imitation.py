"""Objectives that teach another response in place of the poisoned one."""

import torch

from rapidun.config.unlearning import Objective
from rapidun.stages.unlearning.objectives.base import Coefficients, ForgetOutputs, Method, Terms


def idk_sft(outputs: ForgetOutputs, coefficients: Coefficients) -> Terms:
    """Fine-tune on the clean response, or on "I don't know" where a row has none; no ascent.

    f_i = l_i(clean). Tokens: the mean over the response. Source: TOFU (arXiv 2401.06121), IdkOpt.
    """
    assert outputs.clean is not None
    values = outputs.clean.cross_entropy
    return Terms(values, torch.zeros_like(values, dtype=torch.bool))


IMITATION: dict[Objective, Method] = {
    Objective.idk_sft: Method(idk_sft, poisoned=False, clean=True, idk=True),
}
