"""Which forget and retain rows a micro-batch holds: the exact proportion, by (seed, epoch).

Rows are drawn without replacement, each as often as any other; or by their weights, with replacement.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import islice, repeat

import torch

from rapidun.models.rng import mix, permutation
from rapidun.models.training.samplers import EpochSampler

FORGET, RETAIN = 1, 2
# streams of draws by weight; 3 is that of the validation rows
WEIGHTED = {FORGET: 4, RETAIN: 5}


def draws(num_rows: int, size: int, *, seed: int, stream: int) -> Iterator[list[int]]:
    """Endless draws of `size` distinct rows from a chain of seeded permutations.

    Each permutation is used up before the next one begins; where a draw reaches into the next one, rows that it
    already holds wait for the draw after.
    Raises: ValueError unless 0 < size <= num_rows.
    """
    if not 0 < size <= num_rows:
        raise ValueError(f"need 0 < size <= num_rows, got size={size}, num_rows={num_rows}")
    waiting: list[int] = []
    part = 0
    while True:
        draw, waiting = waiting[:size], waiting[size:]
        if len(draw) < size:
            fresh = permutation(num_rows, seed=seed, stream=stream, part=part)
            part += 1
            held = set(draw)
            added = [row for row in fresh if row not in held][: size - len(draw)]
            draw += added
            taken = set(added)
            waiting = [row for row in fresh if row not in taken]
        yield draw


def weighted_draws(weights: Sequence[float], number: int, *, seed: int, stream: int, epoch: int) -> list[int]:
    """`number` rows, each draw row i with probability w_i / sum w, independent of the others (with replacement).

    By the inverse of the cumulative sum, in float64; a row of weight 0 is never drawn.

    Args:
        weights: [num_rows] >= 0, finite. seed, stream, epoch: fix the draws, whatever was drawn before.
    Raises: ValueError where no weight is above 0.
    """
    sums = torch.tensor(weights, dtype=torch.float64).cumsum(0)
    if not len(sums) or not 0 < float(sums[-1]) < math.inf:
        raise ValueError(f"need weights of at least 0, not all 0, got {list(weights)[:5]}")
    generator = torch.Generator().manual_seed(mix(seed, stream, epoch))
    points = torch.rand(number, generator=generator, dtype=torch.float64) * sums[-1]
    # the first row whose cumulative sum lies above the point; a row of weight 0 adds nothing, so it is never the first
    drawn = torch.searchsorted(sums, points, right=True)
    last = max(row for row, weight in enumerate(weights) if weight > 0)
    return drawn.clamp(max=last).tolist()


def is_distinct(num_rows: int, per_epoch: int) -> bool:
    """Whether an epoch that draws so many rows of a group can do without drawing one twice."""
    return per_epoch <= num_rows


class MixSampler(EpochSampler):
    """Indices whose consecutive groups of `micro_batch_size` are micro-batches: forget rows, then retain rows.

    An epoch is one pass over the forget rows: ceil(num_forget / forget_per_step) micro-batches. The retain rows go
    through permutations of their own, which run on from epoch to epoch; where an epoch reaches into the next one, rows
    that it already had wait, so none is drawn twice in an epoch that needs no more than there are. Rows are numbered
    forget first, so retain row j is num_forget + j. Several processes share the rows of an optimiser step out
    (samplers.py), forget rows and retain rows each as evenly as they go.

    With `weights` (of the forget rows, of the retain rows) a row is drawn by its weight within its group, with
    replacement: as many draws an epoch, each epoch's a function of (seed, epoch) alone. Equal weights are then still
    draws with replacement, not the permutations that rows without weights go through.

    Without `forget_per_step` (0) there are no forget rows: a micro-batch has `retain_per_step` retain rows, and an
    epoch is one pass over them.

    Raises: ValueError if a micro-batch wants more rows of a group than there are, or where no weight of a group that
        is drawn from is above 0.
    """

    def __init__(
        self,
        *,
        num_forget: int,
        num_retain: int,
        forget_per_step: int,
        mix_ratio: int,
        seed: int,
        weights: tuple[Sequence[float], Sequence[float]] | None = None,
        retain_per_step: int = 0,
    ) -> None:
        self.num_forget = num_forget
        self.num_retain = num_retain
        self.forget_per_step = forget_per_step
        self.retain_per_step = retain_per_step or forget_per_step * mix_ratio
        self.seed = seed
        self.weights = weights
        enough = 0 < forget_per_step <= num_forget or (forget_per_step == num_forget == 0 < self.retain_per_step)
        if not enough or self.retain_per_step > num_retain:
            raise ValueError(
                f"need micro-batches of at most {num_forget} forget and {num_retain} retain rows, "
                f"got {forget_per_step} and {self.retain_per_step}"
            )

    @property
    def micro_batch_size(self) -> int:
        return self.forget_per_step + self.retain_per_step

    @property
    def num_micro_batches(self) -> int:
        if self.forget_per_step == 0:
            return -(-self.num_retain // self.retain_per_step)
        return -(-self.num_forget // self.forget_per_step)

    def group(self, row: int) -> int:
        return FORGET if row < self.num_forget else RETAIN

    def __len__(self) -> int:
        return self.num_micro_batches * self.micro_batch_size

    def __iter__(self) -> Iterator[int]:
        if self.weights is not None:
            yield from self._by_weight(*self.weights)
            return
        forget = self._of_group(self.num_forget, self.forget_per_step, stream=FORGET)
        retain = self._of_group(self.num_retain, self.retain_per_step, stream=RETAIN)
        for rows, kept in zip(forget, retain, strict=True):
            yield from rows
            yield from (self.num_forget + row for row in kept)

    def _of_group(self, num_rows: int, size: int, *, stream: int) -> Iterator[list[int]]:
        """Rows of a group for each micro-batch of this epoch; earlier epochs are drawn again: no state to save."""
        number = self.num_micro_batches
        if size == 0:
            yield from repeat([], number)
        elif is_distinct(num_rows, number * size):
            (rows,) = islice(draws(num_rows, number * size, seed=self.seed, stream=stream), self.epoch, self.epoch + 1)
            yield from (rows[start : start + size] for start in range(0, number * size, size))
        else:
            start = self.epoch * number
            yield from islice(draws(num_rows, size, seed=self.seed, stream=stream), start, start + number)

    def _by_weight(self, forget: Sequence[float], retain: Sequence[float]) -> Iterator[int]:
        groups = ((FORGET, forget, self.forget_per_step, 0), (RETAIN, retain, self.retain_per_step, self.num_forget))
        drawn = []
        for group, weights, size, offset in groups:
            number = self.num_micro_batches * size
            rows = [] if not number else weighted_draws(
                weights, number, seed=self.seed, stream=WEIGHTED[group], epoch=self.epoch
            )  # fmt: skip
            drawn.append([offset + row for row in rows])
        for batch in range(self.num_micro_batches):
            for rows, (_, _, size, _) in zip(drawn, groups, strict=True):
                yield from rows[batch * size : (batch + 1) * size]
