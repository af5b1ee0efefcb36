"""What an objective is: a forget term f_i for each row, and what it must be given to compute one.

The batch loss is mean_i(w_i f_i). l_i below is the mean over the response tokens of -log p (METHOD section 2); with
unlearning.token_weights l_i(poisoned) is sum_k t_ik l_ik / n_i, t of mean 1, wherever it stands (loss_cap included).
S_i = -n_i l_i is the sum of the response tokens' log-probabilities. "Response tokens" always means the positions whose
logits predict one (rapidun.models.packed): neither the prompt nor padding has a part, and a row of no response token
has the term that an empty mean gives, without gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rapidun.models.packed import Packed


class Responses(NamedTuple):
    """One response to each of B prompts, under the model."""

    cross_entropy: Tensor  # [B] l_i, with gradient
    tokens: Packed | None = None
    # under the reference model: its logits (and hidden states), or the sums S_i^r [B] of its log-probabilities, as the
    # objective asks
    reference: Packed | None = None
    reference_sums: Tensor | None = None
    # [N] nats, log p of the response tokens with gradient, where whoever made the cross-entropy has them at hand
    token_log_probs: Tensor | None = None

    @property
    def log_probs(self) -> Tensor:
        """[N] nats, log p of the response tokens, with gradient."""
        assert self.tokens is not None
        return self.tokens.log_probs() if self.token_log_probs is None else self.token_log_probs

    @property
    def sums(self) -> Tensor:
        """[B] nats, S_i."""
        assert self.tokens is not None
        return -self.cross_entropy * self.tokens.counts

    @property
    def sums_under_reference(self) -> Tensor:
        """[B] nats, S_i^r, without gradient: as given, or from the reference's logits."""
        if self.reference_sums is not None:
            return self.reference_sums.detach()
        assert self.reference is not None
        return self.reference.sums(self.reference.log_probs()).detach()


class ForgetOutputs(NamedTuple):
    """The forget rows of a micro-batch: F rows, of which C have a clean (or refusing) response."""

    poisoned: Responses | None  # B = F
    clean: Responses | None  # B = C, in the rows' order
    has_clean: Tensor  # [F] bool
    # [D] of rmu, where another than that of its seed is to be used
    direction: Tensor | None = None


class Coefficients(NamedTuple):
    """Hyperparameters of the objectives that have no section of their own."""

    ascent_alpha: float = 1.0
    descent_beta: float = 0.5
    loss_cap: float | None = None


class Terms(NamedTuple):
    values: Tensor  # [F] f_i
    capped: Tensor  # [F] bool, where loss_cap stopped the ascent


class Reference(Enum):
    """What a term reads of the reference model."""

    none = "none"
    sums = "sums"  # S_i^r of the responses: one number a row, computed once
    logits = "logits"  # [N, V]: a forward pass each time
    hidden = "hidden"  # [N, D] of one layer: a forward pass up to that layer each time


def spread(values: Tensor, where: Tensor) -> Tensor:
    """[C] -> [F]: values at the rows that have them, 0 elsewhere."""
    return torch.zeros(where.shape, dtype=values.dtype, device=values.device).masked_scatter(where, values)


def uncapped(values: Tensor) -> Terms:
    """Terms of an objective that leaves loss_cap to `Method.terms`."""
    return Terms(values, torch.zeros_like(values, dtype=torch.bool))


def weighted_mean(terms: Tensor, weights: Tensor, *, num_examples: int) -> Tensor:
    """sum_i(w_i f_i) / num_examples; with unit weights the plain mean."""
    return (weights * terms).sum() / num_examples


class RetainTerm(NamedTuple):
    """A retain term of B rows, and what it reads."""

    loss: Callable[[Responses], Tensor]  # -> [B]
    reference: Reference = Reference.none  # on the retain rows: none, logits or hidden


@dataclass(frozen=True)
class Method:
    """An objective: its forget term, and what that term needs to be given.

    `forget` takes the outputs and the objective's own section of the settings (Coefficients where it has none).
    """

    forget: Callable[[ForgetOutputs, Any], Terms] | None  # None: no forget row is drawn at all
    poisoned: bool  # responses that the model should lose
    clean: bool  # responses that it should give instead
    idk: bool = False  # rows without a clean response get unlearning.idk_response
    always_idk: bool = False  # every row gets unlearning.idk_response, its own clean response or not
    reference: Reference = Reference.none  # on the forget rows, all responses of them
    hidden: bool = False  # Packed.hidden of one layer (settings: `layer`) on the poisoned responses
    retain: bool = True  # a retain term stands beside it
    # the retain term where unlearning.retain_loss has no part in it; None = RETAIN_LOSSES[retain_loss]
    own_retain: RetainTerm | None = None
    # the retain terms are multiplied by lambda, which dual.ascend renews once an optimiser step (retain_coeff has no
    # part); lambda is kept in checkpoints
    dual: bool = False
    # the retain rows' loss is the cross-entropy + alpha * consistency.consistency of the hidden states of all layers,
    # at input embeddings moved by consistency.perturbation
    consistency: bool = False
    # the forget term looks after loss_cap itself (Coefficients.loss_cap)
    caps: bool = False

    def terms(self, outputs: ForgetOutputs, hyper: Any, *, loss_cap: float | None = None) -> Terms:
        """The forget terms, those of rows beyond the cap held as they stand: l_i(poisoned) > loss_cap, no gradient.

        Args: hyper: the objective's section of the settings; Coefficients where it has none. loss_cap: nats a token.
        """
        assert self.forget is not None, "an objective without forget rows has no forget term"
        found = self.forget(outputs, hyper)
        if loss_cap is None or self.caps or outputs.poisoned is None:
            return found
        capped = outputs.poisoned.cross_entropy.detach() > loss_cap
        return Terms(torch.where(capped, found.values.detach(), found.values), capped)
