"""The two-sided projection: its definition, unbiased, and noisier than its size where factors share directions."""

import numpy as np
import pytest
import torch

from rapidun.config.influence import ParameterSet
from rapidun.models.rng import random_signs
from rapidun.stages.influence.gradients.capture import Factors, Lookup
from rapidun.stages.influence.gradients.params import TrackedParameter, select_parameters
from rapidun.stages.influence.gram import estimated_gram
from rapidun.stages.influence.sketches.factored import FactoredProjection

ROWS, COLUMNS = 12, 10
NAMES = [f"row {i}" for i in range(7)]
GROUPS = [[1, 6, 3], [0, 4], [5, 2]]


def _random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _side(name, purpose, length, size, *, seed):
    if size <= length:
        return torch.eye(size, dtype=torch.float64)
    signs = random_signs(seed, name, f"factored {purpose}", 0, length * size).double()
    return signs.view(length, size) / length**0.5


def _project(matrices, *, p, q, seed, name="w"):
    shape = tuple(matrices.shape[1:])
    projection = FactoredProjection([TrackedParameter(name, shape, (), 0)], p=p, q=q, seed=seed)
    identity = torch.eye(shape[1], dtype=matrices.dtype).expand(len(matrices), -1, -1)
    buffer = projection.new_buffer(len(matrices), dtype=matrices.dtype, device=torch.device("cpu"))
    projection.add(buffer, name, shape, Factors(identity, matrices.transpose(1, 2)))
    return projection.finish(buffer)


@pytest.mark.parametrize("params", [ParameterSet.all_linear, ParameterSet.embeddings, ParameterSet.lm_head])
@pytest.mark.parametrize("tied", [False, True])
def test_gram_equals_projected_autograd_gradients(make_model, rows, batches_of, autograd_gradients, tied, params):
    """P G Q^T of each weight, side by side. p = 20 keeps the rows of q, k, v and down_proj (16) as they are."""
    model = make_model(tied=tied)
    parameters = select_parameters(model, params)
    gradients = autograd_gradients(model, parameters, rows).split([w.numel for w in parameters], dim=1)
    pieces = []
    for w, gradient in zip(parameters, gradients, strict=True):
        left = _side(w.name, "row", 20, w.shape[0], seed=3)
        right = _side(w.name, "column", 5, w.shape[1], seed=3)
        pieces.append((left @ gradient.view(7, *w.shape) @ right.T).flatten(1))
    truth = torch.cat(pieces, dim=1)
    projection = FactoredProjection(parameters, p=20, q=5, seed=3)
    assert projection.num_numbers == truth.shape[1]
    gram = estimated_gram(model, parameters, batches_of(rows, GROUPS), projection, row_names=NAMES).gram
    torch.testing.assert_close(gram, truth @ truth.T, rtol=1e-6, atol=1e-7 * gram.diagonal().max().item())


def test_ids_without_a_gradient_count_for_nothing():
    projection = FactoredProjection([TrackedParameter("w", (ROWS, COLUMNS), (), 0)], p=4, q=4, seed=0)
    g = _random(1, 2, COLUMNS)
    out = []
    for ids in ([[3, -1]], [[3, 5]]):
        buffer = projection.new_buffer(1, dtype=torch.float64, device=torch.device("cpu"))
        projection.add(buffer, "w", (ROWS, COLUMNS), Lookup(torch.tensor(ids), g))
        out.append(buffer)
    buffer = projection.new_buffer(1, dtype=torch.float64, device=torch.device("cpu"))
    projection.add(buffer, "w", (ROWS, COLUMNS), Lookup(torch.tensor([[3]]), g[:, :1]))
    torch.testing.assert_close(out[0], buffer)
    assert not torch.allclose(out[1], buffer)


def test_sides_longer_than_the_weight_are_exact():
    x = _random(3, ROWS, COLUMNS)
    z = _project(x, p=12, q=99, seed=0)
    torch.testing.assert_close(z @ z.T, x.flatten(1) @ x.flatten(1).T)


def test_unbiased_and_noisier_than_its_size_on_shared_directions():
    """x = u v^T, y = w v^T, u and w orthogonal: the columns agree, so the rows' projection alone decides: about 1/p.

    p = q = 4: 16 numbers promise a variance of 1/16; it is 1/4 here. |mean error| < 4 sd / sqrt(S) all the same.
    """
    left = torch.linalg.qr(_random(ROWS, 2, seed=4)).Q.T
    right = torch.nn.functional.normalize(_random(COLUMNS, seed=5), dim=0)
    x = left.unsqueeze(2) * right
    errors = []
    for seed in range(500):
        z = _project(x, p=4, q=4, seed=seed)
        errors.append((z[0] @ z[1]).item())
    assert abs(np.mean(errors)) < 4 * np.std(errors) / 500**0.5
    assert np.var(errors) > 2.5 / 16


def test_batches_padding_and_order_do_not_matter(make_model, rows, batches_of):
    model = make_model()
    parameters = select_parameters(model, ParameterSet.all_linear)

    def gram(groups, extra=0):
        projection = FactoredProjection(parameters, p=4, q=4, seed=1)
        return estimated_gram(
            model, parameters, batches_of(rows, groups, extra=extra), projection, row_names=NAMES
        ).gram

    alone = gram([[i] for i in range(7)])
    for other in (gram(GROUPS), gram([[2, 0, 1, 6, 5, 4, 3]], extra=5)):
        torch.testing.assert_close(other, alone, rtol=1e-9, atol=1e-12 * alone.abs().max().item())
