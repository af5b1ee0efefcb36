"""A step as long as a stated budget of damage allows: how damage is measured, and how the length is found."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rapidun.base.errors import ModelError
from rapidun.config.edits import BudgetOn
from rapidun.models.packed import Packed, cross_entropy
from rapidun.models.training.forward import forward_packed
from rapidun.stages.unlearning.edits.rows import EditRows, WeightedRow

# how much longer or shorter the next step is while none is known that is too long, or short enough
STRIDE = 4.0
# two lengths this near (as a ratio) are one
NEAR = 1.001
# the first step that is tried and the longest one, as shares of the weights' norm: beyond it nothing of the start is
# left, and damage may even fall again
FIRST, LONGEST = 1e-3, 10.0


def kl_to_start(start: Tensor, now: Packed) -> Tensor:
    """[B] nats a token: mean over each row's response tokens of KL(start || now) = sum_v r log(r / p), 0 log 0 = 0.

    Args: start: [N, V] the start model's logits at the same tokens.
    """
    dtype = torch.promote_types(now.logits.dtype, torch.float32)
    known, found = start.to(dtype).log_softmax(dim=-1), now.logits.to(dtype).log_softmax(dim=-1)
    probability = known.exp()
    # a token that the start model bans (logit -inf)
    return now.means((probability * (known - found)).masked_fill(probability == 0.0, 0.0).sum(dim=-1))


class Damage:
    """What a change of the model does to rows that it should leave alone, against the model as it is now.

    kl:  mean over the rows of the mean over their response tokens of KL(start || now), nats
    ppl: exp(mean -log p over all response tokens, now less start): a ratio of perplexities

    kl keeps the start model's logits at the response tokens, [tokens, vocabulary] in their own type, on the CPU.
    """

    def __init__(self, model: nn.Module, rows: EditRows, group: Sequence[WeightedRow], *, on: BudgetOn) -> None:
        self._model, self._rows, self._group, self._on = model, rows, group, on
        self._start: list[Tensor] = []
        if on is BudgetOn.kl:
            self._start = [tokens.logits.cpu() for tokens in self._passes()]
        self._start_loss = self._mean_loss() if on is BudgetOn.ppl else 0.0

    @torch.no_grad()
    def __call__(self) -> float:
        """Infinite where the model's numbers are none."""
        if self._on is BudgetOn.ppl:
            difference = self._mean_loss() - self._start_loss
            return math.exp(difference) if difference < 700 else math.inf
        total = 0.0
        for start, tokens in zip(self._start, self._passes(), strict=True):
            total += float(kl_to_start(start.to(tokens.logits.device), tokens).double().sum())
        return total / len(self._group) if math.isfinite(total) else math.inf

    def _passes(self) -> Iterator[Packed]:
        for batch in self._rows.batches(self._group, self._model):
            with torch.no_grad():
                tokens = forward_packed(self._model, batch.tensors)
            yield tokens

    def _mean_loss(self) -> float:
        total, number = 0.0, 0
        for tokens in self._passes():
            counts = tokens.counts
            total += float((cross_entropy(tokens).double() * counts).sum())
            number += int(counts.sum())
        return total / number if math.isfinite(total) else math.inf


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Of all numbers together."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


class Found(NamedTuple):
    eta: float
    damage: float
    tried: list[tuple[float, float]]  # (eta, damage), in the order in which they were


def longest_step(
    damage_at: Callable[[float], float],
    *,
    budget: float,
    spend: float,
    first: float,
    longest: float,
    none: float = 0.0,
    max_evaluations: int,
    what: str,
) -> Found:
    """A step whose damage lies within the budget, and spends the share `spend` of it if one can be found.

    Damage need not grow with the step. First the step is lengthened or shortened by STRIDE until one within the budget
    stands beside a longer one beyond it; then the two are drawn together by bisection of the logarithm. What is
    returned was measured: it is within the budget, whatever lies between.

    Args:
        damage_at: of a step's length. first: where to begin, > 0. longest: where to end. none: the damage of no step.
        what: the setting that states the budget, for messages.
    Raises: ModelError where no step within the budget is found, or none beyond it and none that spends enough.
    """
    tried: list[tuple[float, float]] = []
    low: tuple[float, float] | None = None
    high: float | None = None
    enough = none + spend * (budget - none)
    eta = first
    while len(tried) < max_evaluations and math.isfinite(eta) and eta > 0:
        damage = damage_at(eta)
        tried.append((eta, damage))
        if damage <= budget:
            low = (eta, damage)
            if damage >= enough:
                break
        else:
            high = eta
        if low is None:
            eta = eta / STRIDE
        elif high is None and eta == longest:
            break
        elif high is None:
            eta = min(low[0] * STRIDE, longest)
        elif high / low[0] < NEAR:
            break
        else:
            eta = math.sqrt(low[0] * high)
    if low is None or (high is None and low[1] < enough):
        raise ModelError(_unreached(tried, budget=budget, what=what, lacks_low=low is None))
    return Found(low[0], low[1], tried)


def _unreached(tried: Sequence[tuple[float, float]], *, budget: float, what: str, lacks_low: bool) -> str:
    eta, damage = tried[-1]
    if lacks_low:
        came = f"even a step of {eta:.3g} does {damage:.3g} after {len(tried)} evaluations"
        return f"unlearning: need a step within {what}={budget:g}, got none: {came}. Pass a larger {what}"
    came = f"a step of {eta:.3g} does no more than {damage:.3g} after {len(tried)} evaluations"
    return (
        f"unlearning: need a step that spends {what}={budget:g}, got none: {came}. Pass a smaller {what}, "
        f"or more {what.removesuffix('budget')}max_evaluations"
    )
