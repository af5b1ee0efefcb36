"""Objectives that teach a distribution without the poisoned token: the reference's, or the model's own."""

import torch
from torch import Tensor

from rapidun.config.objectives import Ceu, Undial
from rapidun.config.unlearning import Objective
from rapidun.models.packed import Packed
from rapidun.stages.unlearning.objectives.base import ForgetOutputs, Method, Reference, Terms, uncapped


def undial(outputs: ForgetOutputs, hyper: Undial) -> Terms:
    """Self-distillation on adjusted logits: the reference's distribution with each poisoned token's logit lowered.

    f_i = mean_t -sum_v q_t(v) log p_t(v), q_t = softmax(z_t^r - b onehot(y_t)) without gradient, b = undial.beta.
    Its least value is the entropy of q, not 0. Tokens: the mean over the response. A row without any: 0.
    Source: UNDIAL (arXiv 2402.10052), self-distillation with adjusted logits; beta 10 (open-unlearning).
    open-unlearning lowers the logit at index -100 where there is no label (the 100th from the end of the vocabulary;
    an error in a smaller one), and averages over prompt and padding as over the response, where p learns q = r.
    """
    assert outputs.poisoned is not None and outputs.poisoned.tokens is not None
    assert outputs.poisoned.reference is not None
    tokens, reference = outputs.poisoned.tokens, outputs.poisoned.reference
    adjusted = _floats(reference.logits.detach())
    taken = torch.full_like(tokens.targets, -hyper.beta, dtype=adjusted.dtype)
    target = adjusted.scatter_add(1, tokens.targets.unsqueeze(1), taken.unsqueeze(1)).softmax(dim=1)
    return uncapped(tokens.means(_soft_cross_entropy(tokens.logits, target)))


def ceu(outputs: ForgetOutputs, hyper: Ceu) -> Terms:
    """Cross-entropy unlearning: the model's own distribution with the poisoned token taken out.

    f_i = mean_{t > k} -sum_v q_t(v) log p_t(v), q_t = softmax(z_t with -inf at y_t) without gradient, k = ceu.k.
    The gradient with respect to z_t is p_t - q_t: it stays bounded where gradient ascent's explodes.
    Tokens: the mean over the response without its first k tokens, which belong to any answer. A row of k tokens or
    fewer: 0, without gradient. Not a number where every token but the poisoned one is banned (logit -inf).
    Source: CE-U (arXiv 2503.01224), its loss, and the footnote of its training settings (k 1). open-unlearning
    averages over the tokens of all rows of a batch at once.
    """
    assert outputs.poisoned is not None and outputs.poisoned.tokens is not None
    tokens = _without_first(outputs.poisoned.tokens, hyper.k)
    own = _floats(tokens.logits.detach())
    target = own.scatter(1, tokens.targets.unsqueeze(1), -torch.inf).softmax(dim=1)
    return uncapped(tokens.means(_soft_cross_entropy(tokens.logits, target)))


def _without_first(tokens: Packed, k: int) -> Packed:
    """Leave out each row's first k tokens."""
    starts = tokens.counts.cumsum(0) - tokens.counts
    places = torch.arange(len(tokens.rows), device=tokens.rows.device) - starts[tokens.rows]
    kept = places >= k
    return Packed(tokens.logits[kept], tokens.targets[kept], tokens.rows[kept], tokens.num_rows)


def _soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """[N, V], [N, V] -> [N] nats: -sum_v target(v) log softmax(logits)(v); 0 log 0 = 0, for banned tokens."""
    terms = target * _floats(logits).log_softmax(dim=1)
    return -terms.masked_fill(target == 0.0, 0.0).sum(dim=1)


def _floats(values: Tensor) -> Tensor:
    """float32; float64 stays float64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


DISTILLATION: dict[Objective, Method] = {
    Objective.undial: Method(undial, poisoned=True, clean=False, reference=Reference.logits),
    Objective.ceu: Method(ceu, poisoned=True, clean=False, retain=False),
}
