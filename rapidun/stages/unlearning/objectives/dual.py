"""Dual ascent of PDU: the multiplier of the retain loss."""

from rapidun.config.objectives import Pdu


def ascend(multiplier: float, retain_loss: float, hyper: Pdu) -> float:
    """lambda <- max(0, lambda + dual_step_size * (retain loss - retain_loss_eps)).

    Once an optimiser step, with the mean retain loss (unweighted) over all its micro-batches and processes, before or
    after the step; the step itself uses the lambda it began with.

    Source: PDU (arXiv 2506.05314), the dual update. The public implementation renews lambda at every micro-batch, and
    each process by its own rows, so that gradient accumulation and the number of processes change the method.
    """
    return max(0.0, multiplier + hyper.dual_step_size * (retain_loss - hyper.retain_loss_eps))
