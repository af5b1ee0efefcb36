"""The Fisher matrix of one weight by its eigenvectors and eigenvalues, and its damped inverse.

    F = (Q_g (x) Q_a) diag(l) (Q_g (x) Q_a)^T
    F^-1 G ~ Q_g [ (Q_g^T G Q_a) / (l + damping_factor * mean(l)) ] Q_a^T

Sources: Martens and Grosse 2015 (arXiv 1503.05671); Grosse et al. 2023 (2308.03296), whose damping this is.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Curvature(NamedTuple):
    """The Fisher matrix of one weight: eigenvectors of its two factors, and its eigenvalues."""

    rows: Tensor  # [rows, rows] Q_g, eigenvectors in columns
    columns: Tensor  # [columns, columns] Q_a
    eigenvalues: Tensor  # [rows, columns] l

    def inverse(self, damping_factor: float) -> Tensor:
        """[rows, columns] 1 / (l + damping_factor * mean(l)); 0 where no row had a gradient."""
        damping = damping_factor * self.eigenvalues.mean()
        damped = self.eigenvalues + damping
        return torch.where(damped > 0, 1 / damped, torch.zeros_like(damped))

    def solve(self, gradient: Tensor, inverse: Tensor) -> Tensor:
        """F^-1 G, [rows, columns]. Args: inverse: what `inverse()` gave."""
        rotated = self.rows.T @ gradient.to(self.rows.dtype) @ self.columns
        return self.rows @ (rotated * inverse) @ self.columns.T


def curvature_tensors(curvatures: Mapping[str, Curvature]) -> dict[str, Tensor]:
    """{weight.rows, weight.columns, weight.eigenvalues: tensor}, to be written to one file."""
    return {
        f"{name}.{field}": tensor.float().contiguous().cpu()
        for name, curvature in curvatures.items()
        for field, tensor in curvature._asdict().items()
    }


def read_curvatures(tensors: Mapping[str, Tensor]) -> dict[str, Curvature]:
    """The inverse of `curvature_tensors`."""
    names = [name.removesuffix(".rows") for name in tensors if name.endswith(".rows")]
    return {name: Curvature(*(tensors[f"{name}.{field}"] for field in Curvature._fields)) for name in names}
