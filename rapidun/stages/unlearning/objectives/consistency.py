"""CROW: clean rows only, with a penalty on how much the hidden states turn from layer to layer.

The loss of a retain row i is l_i + a c_i: l_i the cross-entropy of its response at its own embeddings, c_i the
`consistency` of all layers' hidden states at embeddings moved by `perturbation`; a = crow.alpha 5.5, crow.epsilon 0.1.
Source: CROW (arXiv 2411.12768), layer consistency and adversarial perturbation, with LoRA at a learning rate of 1e-3.
In the authors' code, too, the cross-entropy is that of the unmoved embeddings. That code sets all gradients to zero in
the middle of a step, which loses those of earlier micro-batches; here only the embeddings' gradient is taken.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from rapidun.config.unlearning import Objective
from rapidun.stages.unlearning.objectives.base import Method, RetainTerm
from rapidun.stages.unlearning.objectives.retain import retain_cross_entropy


def consistency(hidden_states: Sequence[Tensor], mask: Tensor) -> Tensor:
    """c_i = mean over neighbouring layers of the mean over tokens of (1 - cos(h_l, h_l+1)), [B] in [0, 2].

    Args:
        hidden_states: L + 1 of [B, T, D], the embeddings first (transformers' output_hidden_states).
        mask: [B, T], not 0 where a token is no padding (attention_mask): prompt and response alike.
    Tokens: the mean over those of each row, 0 for a row without any; then the mean over the L pairs of layers.
    Source: CROW (arXiv 2411.12768), the layer consistency loss. The authors' code averages over padding as well, gives
    no attention mask, and leaves out the first pair (embeddings) and the last (behind the final norm), so that a model
    of two layers has no pair at all; here every pair of what is given counts.
    """
    real = mask.to(torch.bool)
    counts = real.sum(dim=1).clamp(min=1)
    total = torch.zeros(len(mask), dtype=_dtype(hidden_states[0]), device=mask.device)
    for lower, upper in pairwise(hidden_states):
        dtype = _dtype(lower)
        turned = 1.0 - F.cosine_similarity(lower.to(dtype), upper.to(dtype), dim=-1)
        total = total + turned.masked_fill(~real, 0.0).sum(dim=1) / counts
    return total / (len(hidden_states) - 1)


def perturbation(
    embeddings: Tensor, hidden_states: Sequence[Tensor], mask: Tensor, *, epsilon: float, retain_graph: bool = False
) -> Tensor:
    """epsilon * sign of the gradient of sum_i c_i with respect to the input embeddings; [B, T, D], no gradient.

    Args:
        embeddings: [B, T, D] requiring gradient, what the hidden states were computed from.
        retain_graph: another backward pass goes through the same forward pass.
    Source: CROW (arXiv 2411.12768), the fast gradient sign step. The sum over rows makes a row's step its own,
        whatever the batch.
    """
    total = consistency(hidden_states, mask).sum()
    (gradient,) = torch.autograd.grad(total, embeddings, retain_graph=retain_graph)
    return epsilon * gradient.sign()


def _dtype(states: Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)


CONSISTENCY: dict[Objective, Method] = {
    Objective.crow: Method(
        None, poisoned=False, clean=False, own_retain=RetainTerm(retain_cross_entropy), consistency=True
    ),
}
