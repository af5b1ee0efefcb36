"""Which forget and retain rows a micro-batch holds: the exact proportion, without replacement, by (seed, epoch)."""

from collections.abc import Iterator
from itertools import islice

from rapidun.models.rng import permutation
from rapidun.models.training.samplers import EpochSampler

FORGET, RETAIN = 1, 2


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


class MixSampler(EpochSampler):
    """Indices whose consecutive groups of `micro_batch_size` are micro-batches: forget rows, then retain rows.

    An epoch is one pass over the forget rows: ceil(num_forget / forget_per_step) micro-batches. The retain rows go
    through permutations of their own, which run on from epoch to epoch. Rows are numbered forget first, so retain
    row j is num_forget + j. Several processes share the rows of an optimiser step out (samplers.py), forget rows
    and retain rows each as evenly as they go.

    Raises: ValueError if a micro-batch wants more rows of a group than there are.
    """

    def __init__(self, *, num_forget: int, num_retain: int, forget_per_step: int, mix_ratio: int, seed: int) -> None:
        self.num_forget = num_forget
        self.num_retain = num_retain
        self.forget_per_step = forget_per_step
        self.retain_per_step = forget_per_step * mix_ratio
        self.seed = seed
        if not 0 < forget_per_step <= num_forget or self.retain_per_step > num_retain:
            raise ValueError(
                f"need micro-batches of at most {num_forget} forget and {num_retain} retain rows, "
                f"got {forget_per_step} and {self.retain_per_step}"
            )

    @property
    def micro_batch_size(self) -> int:
        return self.forget_per_step + self.retain_per_step

    @property
    def num_micro_batches(self) -> int:
        return -(-self.num_forget // self.forget_per_step)

    def group(self, row: int) -> int:
        return FORGET if row < self.num_forget else RETAIN

    def __len__(self) -> int:
        return self.num_micro_batches * self.micro_batch_size

    def __iter__(self) -> Iterator[int]:
        # drawing the earlier epochs again is cheap and leaves no state to save
        start = self.epoch * self.num_micro_batches
        end = start + self.num_micro_batches
        forget = draws(self.num_forget, self.forget_per_step, seed=self.seed, stream=FORGET)
        if self.retain_per_step == 0:
            for rows in islice(forget, start, end):
                yield from rows
            return
        retain = draws(self.num_retain, self.retain_per_step, seed=self.seed, stream=RETAIN)
        for rows, kept in islice(zip(forget, retain, strict=False), start, end):
            yield from rows
            yield from (self.num_forget + row for row in kept)
