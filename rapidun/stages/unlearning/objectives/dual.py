"""PDU: the logits on the forget rows are flattened, under a bound on the retain loss that dual ascent keeps."""

import torch

from rapidun.config.objectives import Pdu
from rapidun.config.unlearning import Objective
from rapidun.stages.unlearning.objectives.base import ForgetOutputs, Method, Terms, uncapped


def pdu(outputs: ForgetOutputs, hyper: Pdu) -> Terms:
    """Primal-dual unlearning: the margin of the highest logit over the mean one is driven to 0 (a uniform answer).

    f_i = mean_t (max_v z_t(v) - mean_v z_t(v))^2; beside it stands lambda (retain loss - pdu.retain_loss_eps), lambda
    by `ascend`. The response's own tokens have no part in f_i, only the positions that predict them.
    Tokens: the mean over the positions that predict a response token. A row without any: 0. The mean over v is that of
    the tokens that may come at all: banned ones (logit -inf) have no part.
    Source: PDU (arXiv 2506.05314), the logit-margin flattening loss and its primal-dual algorithm; TOFU: lambda from
    100, eps 0.3, step 5, warm-up 5 epochs; MUSE: lambda from 50, eps 1.5 (News) and 0.1 (Books), step 1, warm-up 3. The
    authors set eps a little above the retain loss of the model before unlearning. The public implementation averages
    over every position of the batch, prompt and padding included, unshifted.
    """
    assert outputs.poisoned is not None and outputs.poisoned.tokens is not None
    tokens = outputs.poisoned.tokens
    logits = tokens.logits.to(torch.promote_types(tokens.logits.dtype, torch.float32))
    banned = logits == -torch.inf
    mean = logits.masked_fill(banned, 0.0).sum(dim=1) / (~banned).sum(dim=1)
    return uncapped(tokens.means((logits.amax(dim=1) - mean).square()))


def ascend(multiplier: float, retain_loss: float, hyper: Pdu) -> float:
    """lambda <- max(0, lambda + dual_step_size * (retain loss - retain_loss_eps)).

    Once an optimiser step, with the step's mean retain loss over all its micro-batches and processes;
    the step itself uses the lambda it began with.

    Source: PDU (arXiv 2506.05314), the dual update. The public implementation renews lambda at every micro-batch, and
    each process by its own rows, so that gradient accumulation and the number of processes change the method.
    """
    return max(0.0, multiplier + hyper.dual_step_size * (retain_loss - hyper.retain_loss_eps))


DUAL: dict[Objective, Method] = {
    Objective.pdu: Method(pdu, poisoned=True, clean=False, dual=True),
}
