"""RapidIn's compression of a gradient, as its authors describe it: for comparison only.

The whole gradient of a row is one vector, padded with zeros to D, a multiple of `pad_multiple`. It is shuffled
2 * num_shuffles times, by turns through a permutation of the rows and one of the columns of the vector seen as a
matrix, whose shape is a random split of D into two factors each time. Then signs, and sums of D/k contiguous entries.

The inner product of two such vectors is unbiased. Its variance is that of a count-sketch, (1 + c^2)/k, only so far as
any two entries meet with probability 1/k. A permutation of rows leaves the low part of an index alone and one of
columns the high part, so few shuffles leave neighbouring entries together; that costs noise, never bias.

Every row of a batch takes D numbers, and each shuffle moves all of them: give it batches of one row.

Source: Lin et al., "Token-wise influential training data retrieval for large language models" (RapidIn, arXiv
2405.11724); from the description, not the code. Each split is a random half of D's prime factors.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rapidun.models.rng import random_signs, random_uint64
from rapidun.stages.influence.gradients.capture import Contribution
from rapidun.stages.influence.gradients.params import TrackedParameter, accumulation_dtype

NAME = "rapidgrad"


class Shuffle(NamedTuple):
    """A permutation of the rows (or columns) of the vector seen as a matrix."""

    shape: tuple[int, int]
    is_of_rows: bool
    order: Tensor  # [rows] or [columns] int64


class RapidGrad:
    """Shuffles and sums whole gradients to k numbers."""

    def __init__(
        self, parameters: Sequence[TrackedParameter], *, k: int, pad_multiple: int, num_shuffles: int, seed: int
    ) -> None:
        if pad_multiple % k:
            raise ValueError(f"need k to divide pad_multiple, got k={k}, pad_multiple={pad_multiple}")
        self.num_numbers = k
        self.seed = seed
        self._starts: dict[str, int] = {}
        stop = 0
        for parameter in parameters:
            self._starts[parameter.name] = stop
            stop += parameter.numel
        self.padded = -(-stop // pad_multiple) * pad_multiple
        self._shuffles = plan_shuffles(self.padded, num_shuffles=num_shuffles, seed=seed)
        self._signs = random_signs(seed, NAME, "sign", 0, self.padded).to(torch.int8)

    def new_buffer(self, num_rows: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """[num_rows, D]: whole gradients."""
        return torch.zeros(num_rows, self.padded, dtype=accumulation_dtype(dtype), device=device)

    def add(self, buffer: Tensor, name: str, shape: tuple[int, int], gradient: Contribution) -> None:
        start, numel = self._starts[name], shape[0] * shape[1]
        product = gradient.product(slice(0, shape[0]), slice(0, shape[1]), dtype=buffer.dtype)
        buffer[:, start : start + numel] += product.flatten(1)

    def finish(self, buffer: Tensor) -> Tensor:
        """[B, D] -> [B, k]"""
        for rows, columns in zip(self._shuffles[::2], self._shuffles[1::2], strict=True):
            for shuffle in (rows, columns):
                dim = 1 if shuffle.is_of_rows else 2
                matrix = buffer.view(len(buffer), *shuffle.shape)
                buffer = matrix.index_select(dim, shuffle.order.to(buffer.device)).view(len(buffer), -1)
        buffer = buffer * self._signs.to(buffer.device)
        return buffer.view(len(buffer), self.num_numbers, -1).sum(dim=2)


def plan_shuffles(numel: int, *, num_shuffles: int, seed: int) -> list[Shuffle]:
    """2 * num_shuffles permutations of `numel` numbers, of rows and of columns by turns."""
    factors = prime_factors(numel)
    shuffles = []
    for number in range(2 * num_shuffles):
        is_of_rows = number % 2 == 0
        drawn = random_uint64(seed, NAME, f"split {number}", np.arange(len(factors), dtype=np.uint64)) >> np.uint64(63)
        height = int(np.prod([f for f, bit in zip(factors, drawn, strict=True) if bit], dtype=np.int64))
        shape = (height, numel // height)
        length = shape[0] if is_of_rows else shape[1]
        keys = random_uint64(seed, NAME, f"permutation {number}", np.arange(length, dtype=np.uint64))
        shuffles.append(Shuffle(shape, is_of_rows, torch.from_numpy(np.argsort(keys, kind="stable"))))
    return shuffles


def prime_factors(number: int) -> list[int]:
    """In rising order, with repetitions; empty for 1."""
    factors = []
    divisor = 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return [*factors, number] if number > 1 else factors
