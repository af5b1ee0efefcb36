"""Block-offset count-sketch: an unbiased, contiguous compression of per-sample gradients to K numbers.

A gradient matrix is cut into blocks of as many whole rows as fit into K numbers. Entry l of block R (row r, column c)
goes to place (h_R + l) mod K of the sketch with sign s_r t_{R,c}: h_R is uniform on [0, K), s and t are +-1, all
independent. Within a block nothing collides; between two blocks a given pair of entries collides with
probability 1/K. Hence for two gradients x, y with sketches S x, S y

    E <Sx, Sy> = <x, y>,   Var <Sx, Sy> <= (|x|^2 |y|^2 + <x, y>^2) / K.

The column signs differ from block to block: with one set of them, two blocks that land row on row would add up
coherently for gradients of rank one. The row signs go onto a factor of the gradient before it is multiplied out,
the column signs into the addition, so that folding is one contiguous pass per block.

Source: count-sketch (Charikar, Chen, Farach-Colton 2002), with one hash per block in place of one per entry.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rapidun.models.rng import random_signs, random_uint64
from rapidun.stages.influence.gradients.capture import Contribution
from rapidun.stages.influence.gradients.params import accumulation_dtype

# part of what an artifact depends on: raise it with every change of the numbers
SKETCH_VERSION = 1


class Block(NamedTuple):
    """Some rows (and, where a row is longer than K, some columns) of a gradient, and where they go."""

    rows: slice
    columns: slice
    offset: int
    row_signs: Tensor  # [num_rows] float32 +-1
    column_signs: Tensor  # [num_columns] float32 +-1


def plan_blocks(name: str, shape: tuple[int, int], *, k: int, seed: int) -> Iterator[Block]:
    """Cut a gradient of `shape` [rows, columns] into blocks of at most k numbers and draw their randomness."""
    num_rows, num_columns = shape
    width = min(num_columns, k)
    height = max(1, k // width)
    row_signs = random_signs(seed, name, "row", 0, num_rows)
    corners = [(top, left) for left in range(0, num_columns, width) for top in range(0, num_rows, height)]
    # the modulus favours some places by less than k / 2^64
    offsets = random_uint64(seed, name, "offset", np.arange(len(corners), dtype=np.uint64)) % np.uint64(k)
    for index, (top, left) in enumerate(corners):
        rows = slice(top, min(top + height, num_rows))
        columns = slice(left, min(left + width, num_columns))
        # a block's signs follow those of the block before it
        column_signs = random_signs(seed, name, "column", index * width, index * width + columns.stop - left)
        yield Block(rows, columns, int(offsets[index]), row_signs[rows], column_signs)


class CountSketch:
    """Adds per-sample gradients of many parameters to sketches of k numbers a sample; keeps the plan of each."""

    def __init__(self, *, k: int, seed: int) -> None:
        self.k = k
        self.num_numbers = k
        self.seed = seed
        self._plans: dict[tuple[str, torch.device], list[Block]] = {}

    def new_buffer(self, num_rows: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """[num_rows, 2 k] zeros: a block that runs past k needs no second addition; `finish` folds it back."""
        return torch.zeros(num_rows, 2 * self.k, dtype=accumulation_dtype(dtype), device=device)

    def add(self, buffer: Tensor, name: str, shape: tuple[int, int], gradient: Contribution) -> None:
        """Add the sketch of one contribution [B, *shape] to `buffer` [B, 2 k].

        The products of a bfloat16 model are taken in bfloat16 (summed over tokens in float32, then rounded: a
        relative 2^-9 of single entries, far below the sketch's own noise) and added up in float32.
        """
        dtype = gradient.g.dtype
        if dtype not in (torch.float64, torch.bfloat16):
            dtype = torch.float32
        for block in self._plan(name, shape, buffer.device):
            product = gradient.product(block.rows, block.columns, dtype=dtype, row_signs=block.row_signs)
            place = buffer[:, block.offset : block.offset + product[0].numel()].view(product.shape)
            torch.addcmul(place, product, block.column_signs.to(product.dtype), out=place)

    def finish(self, buffer: Tensor) -> Tensor:
        """[B, 2 k] -> [B, k]: what ran past the end goes on at the beginning."""
        return buffer[:, : self.k] + buffer[:, self.k :]

    def _plan(self, name: str, shape: tuple[int, int], device: torch.device) -> list[Block]:
        key = (name, device)
        if key not in self._plans:
            self._plans[key] = [
                block._replace(row_signs=block.row_signs.to(device), column_signs=block.column_signs.to(device))
                for block in plan_blocks(name, shape, k=self.k, seed=self.seed)
            ]
        return self._plans[key]
