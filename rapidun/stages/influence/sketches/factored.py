"""Two-sided projection of each layer's gradient, for comparison: z = P G Q^T, p x q numbers a layer.

P [p, rows] and Q [q, columns] hold +-1/sqrt(p) and +-1/sqrt(q); a side no longer than its projection is kept as it is.
With G = sum_t g_t a_t^T it is z = sum_t (P g_t)(Q a_t)^T: cheap, unbiased, but for matrices X, Y

    Var = 2 |X Y^T|^2 / p + 2 |X^T Y|^2 / q + O(|X|^2 |Y|^2 / (p q))  at the most,

which is far above 1/(p q) for gradients of low rank whose activations, or output gradients, share directions.

Source: the projection of LoGra (Choe et al. 2024, arXiv 2405.13954) with random signs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rapidun.models.rng import random_signs
from rapidun.stages.influence.gradients.capture import Contribution, Lookup
from rapidun.stages.influence.gradients.params import TrackedParameter, accumulation_dtype


class FactoredProjection:
    """Adds per-sample gradients to rows that hold min(p, rows) x min(q, columns) numbers of each parameter."""

    def __init__(self, parameters: Sequence[TrackedParameter], *, p: int, q: int, seed: int) -> None:
        self.p = p
        self.q = q
        self.seed = seed
        self._places: dict[str, slice] = {}
        self._sides: dict[tuple[str, str, torch.device], Tensor | None] = {}
        stop = 0
        for parameter in parameters:
            rows, columns = parameter.shape
            start, stop = stop, stop + min(p, rows) * min(q, columns)
            self._places[parameter.name] = slice(start, stop)
        self.num_numbers = stop

    def new_buffer(self, num_rows: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.zeros(num_rows, self.num_numbers, dtype=accumulation_dtype(dtype), device=device)

    def add(self, buffer: Tensor, name: str, shape: tuple[int, int], gradient: Contribution) -> None:
        """Add the projection of one contribution [B, *shape] to `buffer` [B, num_numbers]."""
        rows, columns = (
            self._side(name, purpose, length, size, buffer.device)
            for purpose, length, size in zip(("row", "column"), (self.p, self.q), shape, strict=True)
        )
        if isinstance(gradient, Lookup):
            # the row side of a token is one column of P; -1 has none
            known = (gradient.ids >= 0).unsqueeze(2)
            table = torch.eye(shape[0], device=buffer.device) if rows is None else rows.T
            left = torch.where(known, table[gradient.ids.clamp(min=0)], 0)
            right = gradient.g
        else:
            left = gradient.g if rows is None else _project(gradient.g, rows)
            right = gradient.a
        right = right if columns is None else _project(right, columns)
        product = torch.bmm(left.to(buffer.dtype).transpose(1, 2), right.to(buffer.dtype))
        buffer[:, self._places[name]] += product.flatten(1)

    def finish(self, buffer: Tensor) -> Tensor:
        return buffer

    def _side(self, name: str, purpose: str, length: int, size: int, device: torch.device) -> Tensor | None:
        """[length, size] random signs / sqrt(length), or None where the side is kept."""
        if size <= length:
            return None
        key = (name, purpose, device)
        if key not in self._sides:
            signs = random_signs(self.seed, name, f"factored {purpose}", 0, length * size)
            self._sides[key] = (signs / length**0.5).view(length, size).to(device)
        return self._sides[key]


def _project(x: Tensor, side: Tensor) -> Tensor:
    """[B, T, D] -> [B, T, length], in the type of x: bfloat16 products are summed in float32, then rounded."""
    return x @ side.T.to(x.dtype)
