"""K-FAC and EK-FAC: an approximate inverse Fisher matrix for each layer, applied to the queries' gradients.

The Fisher matrix of a row is E_y[g g^T], g = gradient of -log p(y | x) with y drawn from the model itself. For one
layer with G = sum_t g_t a_t^T, and means over the training rows,

    kfac:   F ~ (tokens a row) * E[g_t g_t^T] (x) E[a_t a_t^T] = (Q_g (x) Q_a) diag(l) (Q_g (x) Q_a)^T
    ekfac:  the same eigenvectors, with l = E[(Q_g^T G Q_a)^2], the diagonal of the true F in that basis.

    F^-1 G ~ Q_g [ (Q_g^T G Q_a) / (l + damping_factor * mean(l)) ] Q_a^T

Layers are independent of each other. One label is drawn for each response token of each row, so that F is estimated
from as many rows as there are. `kfac` is fitted in one pass; `ekfac` takes a second, since l needs the eigenvectors.

Sources: Martens and Grosse 2015 (arXiv 1503.05671); George et al. 2018 (1806.03884); Grosse et al. 2023 (2308.03296),
whose damping this is.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from rapidun.base.errors import ConfigError
from rapidun.config.influence import Precondition
from rapidun.models.curvature import Curvature
from rapidun.models.losses import IGNORE, response_mask
from rapidun.models.rng import random_uint64
from rapidun.stages.influence.gradients.capture import Contribution, Factors, frozen
from rapidun.stages.influence.gradients.params import TrackedParameter, accumulation_dtype


def rotate(curvature: Curvature, piece: Factors) -> Factors:
    """The factors of Q_g^T G Q_a."""
    dtype = curvature.rows.dtype
    return Factors(piece.a.to(dtype) @ curvature.columns, piece.g.to(dtype) @ curvature.rows)


def solve(curvature: Curvature, piece: Factors, inverse: Tensor) -> Factors:
    """F^-1 G, again as factors: one `token` for each column of the rotated matrix.

    Args:
        piece: factors of G. inverse: what `Curvature.inverse` gave.
    """
    rotated = rotate(curvature, piece)
    # [B, rows, columns]
    matrix = torch.bmm(rotated.g.transpose(1, 2), rotated.a) * inverse
    # Q_g M Q_a^T = sum over the columns c of (Q_g M)[:, c] Q_a[:, c]^T
    g = (curvature.rows @ matrix).transpose(1, 2)
    return Factors(curvature.columns.T.expand(len(g), -1, -1), g)


class CovarianceSink:
    """Sums g g^T and a a^T over the tokens that have a gradient."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._num_tokens: dict[str, int] = {}

    def start(self, rows: Tensor) -> None: ...

    def __call__(self, parameter: TrackedParameter, gradient: Contribution) -> None:
        factors = linear(parameter, gradient)
        dtype = accumulation_dtype(factors.g.dtype)
        g = factors.g.flatten(0, 1)
        active = torch.linalg.vector_norm(g, dim=1) != 0
        g = g[active].to(dtype)
        a = factors.a.flatten(0, 1)[active].to(dtype)
        old = self._sums.get(parameter.name)
        new = (g.T @ g, a.T @ a)
        self._sums[parameter.name] = new if old is None else (old[0] + new[0], old[1] + new[1])
        self._num_tokens[parameter.name] = self._num_tokens.get(parameter.name, 0) + len(g)

    def curvature(self, parameter: TrackedParameter, *, num_rows: int) -> Curvature:
        """The K-FAC estimate over `num_rows` rows; lets go of the sums."""
        sums = self._sums.pop(parameter.name)
        num_tokens = max(1, self._num_tokens[parameter.name])
        (row_values, rows), (column_values, columns) = (torch.linalg.eigh(s / num_tokens) for s in sums)
        # rounding can leave the smallest just below 0
        values = torch.outer(row_values.clamp(min=0), column_values.clamp(min=0))
        return Curvature(rows, columns, values * (num_tokens / num_rows))


class EigenvalueSink:
    """Sums the squares of the rows' gradients in the eigenvectors' basis."""

    def __init__(self, curvatures: Mapping[str, Curvature]) -> None:
        self._curvatures = curvatures
        self.sums = {name: torch.zeros_like(c.eigenvalues) for name, c in curvatures.items()}

    def start(self, rows: Tensor) -> None: ...

    def __call__(self, parameter: TrackedParameter, gradient: Contribution) -> None:
        rotated = rotate(self._curvatures[parameter.name], linear(parameter, gradient))
        # one row after the other: a batch of whole gradients may not fit
        for a, g in zip(rotated.a, rotated.g, strict=True):
            self.sums[parameter.name] += (g.T @ a).square_()


def linear(parameter: TrackedParameter, gradient: Contribution) -> Factors:
    """Raises: ConfigError for an nn.Embedding, and for a weight that several modules share."""
    if not isinstance(gradient, Factors) or len(parameter.modules) > 1:
        raise ConfigError(
            f"influence: need nn.Linear weights for influence.precondition, got {parameter.name}, "
            f"{'which several modules share' if len(parameter.modules) > 1 else 'an embedding'}. "
            "Change influence.params or pass influence.precondition=none"
        )
    return gradient


def num_fitting_passes(kind: Precondition) -> int:
    return {Precondition.none: 0, Precondition.kfac: 1, Precondition.ekfac: 2}[kind]


@torch.no_grad()
def sample_labels(model: nn.Module, batch: Mapping[str, Tensor], rows: Sequence[int], *, seed: int) -> Tensor:
    """Draw a label for each response position from the model's own prediction there.

    Args:
        batch: input_ids, attention_mask, labels, [B, T] each; the inputs stay those of the data.
        rows: [B] row numbers: a row's draws depend on (seed, its number, the position) only.
    Returns: [B, T] int64, -100 outside the response.
    """
    labels = batch["labels"]
    mask = response_mask(labels)
    with frozen(model):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    b, t = mask.nonzero(as_tuple=True)
    # [num labelled, V]
    cumulative = torch.softmax(logits[b, t - 1].double(), dim=1).cumsum(dim=1)
    uniform = np.empty(mask.shape)
    for place, row in enumerate(rows):
        bits = random_uint64(seed, "fisher", f"row {row}", np.arange(mask.shape[1], dtype=np.uint64))
        uniform[place] = (bits >> np.uint64(11)).astype(np.float64) / 2.0**53
    drawn = torch.from_numpy(uniform).to(labels.device)[b, t].unsqueeze(1) * cumulative[:, -1:]
    out = torch.full_like(labels, IGNORE)
    out[b, t] = torch.searchsorted(cumulative, drawn, right=True).squeeze(1).clamp(max=logits.shape[2] - 1)
    return out


class Preconditioner:
    """Applies F^-1 to gradients of the parameters that it was fitted for."""

    def __init__(self, curvatures: Mapping[str, Curvature], *, damping_factor: float) -> None:
        self.curvatures = dict(curvatures)
        self._inverses = {name: curvature.inverse(damping_factor) for name, curvature in curvatures.items()}

    def rotate(self, parameter: TrackedParameter, gradient: Contribution) -> Factors:
        """The gradient in the eigenvectors' basis, where F^-1 multiplies entry by entry with `inverse`."""
        return rotate(self.curvatures[parameter.name], linear(parameter, gradient))

    def inverse(self, parameter: TrackedParameter) -> Tensor:
        """[rows, columns]"""
        return self._inverses[parameter.name]

    def solve(self, parameter: TrackedParameter, gradient: Contribution) -> Factors:
        """F^-1 G."""
        return solve(self.curvatures[parameter.name], linear(parameter, gradient), self._inverses[parameter.name])

    def solve_half(self, parameter: TrackedParameter, gradient: Contribution) -> Factors:
        """F^-1/2 G, the symmetric root: <F^-1/2 G, F^-1/2 G'> = <G, F^-1 G'>."""
        inverse = self._inverses[parameter.name].sqrt()
        return solve(self.curvatures[parameter.name], linear(parameter, gradient), inverse)
