"""Which rows a step takes: functions of (seed, epoch), shared out among the processes of a run.

A step sees the same rows however many processes there are, so results do not depend on the number but for rounding
(and dropout, which each process draws for itself).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, Sampler

from rapidun.models.rng import permutation

# stands in a batch of a process that has no row of a step left, so that all take part in each exchange
IDLE = -1


class RowDataset(Dataset[Any]):
    """Rows kept in a list; the collator turns indices' rows into tensors. None stands for no row."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return None if index == IDLE else self.rows[index]


def num_batches(num_rows: int, *, world_size: int, batch_size: int) -> int:
    """Micro-batches of at most `batch_size` rows that each process needs for its share of a step of `num_rows`."""
    return math.ceil(math.ceil(num_rows / world_size) / batch_size)


class EpochSampler(Sampler[int]):
    """Row numbers of one pass, fixed by the epoch; `group` says which rows are alike, for dealing them out evenly."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def group(self, row: int) -> int:
        return 0


class ShuffledSampler(EpochSampler):
    """Every row once per epoch, in an order that (seed, epoch) fixes."""

    def __init__(self, num_rows: int, *, seed: int) -> None:
        self.num_rows = num_rows
        self.seed = seed

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Any:
        return iter(permutation(self.num_rows, seed=self.seed, stream=0, part=self.epoch))


class StepShards(Sampler[list[int]]):
    """The micro-batches of one process: its share of each optimiser step of a sampler's rows.

    A step is `step_size` consecutive rows of the sampler (fewer at the end of an epoch). Its rows are ordered by
    its `group` and dealt out in turn, so that each process gets about as many of each group; a share is split as evenly
    into micro-batches. All processes get the same number of them, [IDLE] where there is no row.
    """

    def __init__(
        self,
        sampler: EpochSampler,
        *,
        step_size: int,
        batch_size: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.sampler = sampler
        self.step_size = step_size
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def _num_batches(self, num_rows: int) -> int:
        return num_batches(num_rows, world_size=self.world_size, batch_size=self.batch_size)

    def __len__(self) -> int:
        num_full, rest = divmod(len(self.sampler), self.step_size)  # type: ignore[arg-type]
        return num_full * self._num_batches(self.step_size) + self._num_batches(rest)

    def __iter__(self) -> Iterator[list[int]]:
        rows = list(self.sampler)
        for start in range(0, len(rows), self.step_size):
            step = sorted(rows[start : start + self.step_size], key=self.sampler.group)
            share = step[self.rank :: self.world_size]
            number = self._num_batches(len(step))
            for index in range(number):
                yield share[index::number] or [IDLE]
