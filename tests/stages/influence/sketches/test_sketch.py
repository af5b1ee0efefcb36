"""The count-sketch as a random projection: unbiased, no noisier than promised on the worst vectors, reproducible."""

import numpy as np
import pytest
import torch

from rapidun.models.rng import random_signs, random_uint64
from rapidun.stages.influence.gradients.capture import Factors, Lookup
from rapidun.stages.influence.sketches.sketch import CountSketch, plan_blocks

ROWS, COLUMNS = 24, 10  # D = 240


def _sketch(matrices, *, k, seed, name="w"):
    """Sketch whole matrices [B, rows, columns]: as factors, with the identity for inputs."""
    identity = torch.eye(matrices.shape[2], dtype=matrices.dtype).expand(len(matrices), -1, -1)
    sketch = CountSketch(k=k, seed=seed)
    buffer = sketch.new_buffer(len(matrices), dtype=matrices.dtype, device=matrices.device)
    # G = g^T a with a = I: g = G^T
    sketch.add(buffer, name, tuple(matrices.shape[1:]), Factors(identity, matrices.transpose(1, 2)))
    return sketch.finish(buffer)


def _matrix(numel, k, seed=0):
    """The sketch as a matrix [k, numel]: the sketches of all unit vectors."""
    units = torch.eye(numel, dtype=torch.float64).view(numel, ROWS, COLUMNS)
    return _sketch(units, k=k, seed=seed).T


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=_generator(seed))


def _adversarial():
    """Pairs of gradients on which careless sketches are noisier than 1/sqrt(K): {name: (x, y)}."""
    padded = _random(2, ROWS, COLUMNS)
    padded[:, 5:] = 0
    block = torch.zeros(2, ROWS, COLUMNS, dtype=torch.float64)
    block[:, 8:11] = _random(2, 3, COLUMNS, seed=1)
    outlier = 0.01 * _random(2, ROWS, COLUMNS, seed=2)
    outlier[:, :, 3] = _random(2, ROWS, seed=3)
    # orthogonal left factors, one right factor: the true product is 0, rows that meet would add up
    left = torch.linalg.qr(_random(ROWS, 2, seed=4)).Q.T
    right = _random(COLUMNS, seed=5)
    aligned = left.unsqueeze(2) * right
    ones = torch.ones(1, ROWS, COLUMNS, dtype=torch.float64).repeat(2, 1, 1)
    ones[1, ::2] *= -1
    # one sign for the upper rows, one for the lower: rows of a block that meet rows of another would all agree
    column = torch.zeros(2, ROWS, COLUMNS, dtype=torch.float64)
    column[:, :, 3] = 1
    column[1, ROWS // 2 :] *= -1
    return {
        "zero-padded": padded,
        "hot block": block,
        "constant column": column,
        "outlier column": outlier,
        "rank one": aligned,
        "constant": ones,
    }


@pytest.mark.parametrize("k", [7, 64])
def test_unbiased_and_variance_bounded_on_adversarial_vectors(k):
    """Over S = 400 seeds: |mean error| < 4 sd / sqrt(S), and variance <= (1 + c^2)/K with 40 % for chance.

    K = 7 is narrower than a row (10): rows are cut in two, and the halves meet with probability 1/K.
    """
    pairs = _adversarial()
    x, y = (torch.stack([pair[i] / pair[i].norm() for pair in pairs.values()]) for i in (0, 1))
    true = (x * y).sum(dim=(1, 2))
    num_seeds = 400
    errors = []
    for seed in range(num_seeds):
        z = _sketch(torch.cat([x, y]), k=k, seed=seed)
        errors.append((z[: len(x)] * z[len(x) :]).sum(dim=1) - true)
    mean, spread = torch.stack(errors).mean(dim=0), torch.stack(errors).std(dim=0)
    for i, name in enumerate(pairs):
        assert abs(mean[i]) <= 4 * spread[i] / num_seeds**0.5 + 1e-12, name
        assert spread[i] ** 2 <= 1.4 * (1 + true[i] ** 2) / k, name


def test_norms_are_unbiased():
    x = _random(1, ROWS, COLUMNS, seed=7)
    errors = [(_sketch(x, k=32, seed=seed).square().sum() / x.square().sum() - 1).item() for seed in range(400)]
    assert abs(np.mean(errors)) < 4 * np.std(errors) / 400**0.5
    assert np.var(errors) <= 1.3 * 2 / 32


@pytest.mark.parametrize("k", [3, 7, 64, 100, 240, 1000])
def test_every_entry_goes_to_one_place_with_a_sign(k):
    """Each column of the sketch's matrix has a single +-1; within a block no two share a place."""
    matrix = _matrix(ROWS * COLUMNS, k)
    assert (matrix.abs().sum(dim=0) == 1).all()
    assert set(matrix.unique().tolist()) == {-1.0, 0.0, 1.0}
    cover = torch.zeros(ROWS, COLUMNS)
    places = matrix.abs().argmax(dim=0).view(ROWS, COLUMNS)
    for block in plan_blocks("w", (ROWS, COLUMNS), k=k, seed=0):
        cover[block.rows, block.columns] += 1
        inside = places[block.rows, block.columns].flatten()
        assert len(inside.unique()) == len(inside) <= k
        assert inside[0] == block.offset
    assert (cover == 1).all()


def test_a_sketch_wider_than_the_gradient_is_exact():
    """K >= D: one block, nothing meets, inner products are exact."""
    x = _random(5, ROWS, COLUMNS)
    z = _sketch(x, k=240, seed=3)
    torch.testing.assert_close(z @ z.T, x.flatten(1) @ x.flatten(1).T)


def test_sketch_is_linear():
    """Contributions add up: the sketch of a sum is the sum of sketches."""
    x, y = _random(2, 1, ROWS, COLUMNS)
    torch.testing.assert_close(_sketch(x, k=50, seed=1) + _sketch(y, k=50, seed=1), _sketch(x + y, k=50, seed=1))


def test_randomness_depends_on_seed_and_name_only():
    x = _random(3, ROWS, COLUMNS)
    whole = _sketch(x, k=50, seed=1)
    torch.testing.assert_close(whole, torch.cat([_sketch(x[:1], k=50, seed=1), _sketch(x[1:], k=50, seed=1)]))
    torch.manual_seed(999)
    np.random.seed(5)
    assert torch.equal(_sketch(x, k=50, seed=1), whole)
    assert not torch.allclose(_sketch(x, k=50, seed=2), whole)
    assert not torch.allclose(_sketch(x, k=50, seed=1, name="v"), whole)


def test_random_numbers_are_pinned():
    """SplitMix64 of key + (counter + 1) * golden, worked out with Python integers; a change breaks old sketches."""
    import hashlib

    key = int.from_bytes(hashlib.sha256(b"7\0layer.weight\0row").digest()[:8], "little")
    mask = (1 << 64) - 1
    expected = []
    for counter in range(3):
        x = (key + (counter + 1) * 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        expected.append(x ^ (x >> 31))
    assert random_uint64(7, "layer.weight", "row", np.arange(3, dtype=np.uint64)).tolist() == expected
    signs = random_signs(7, "layer.weight", "row", 0, 3).tolist()
    assert signs == [-1.0 if value >> 63 else 1.0 for value in expected]


def test_signs_are_fair_and_offsets_uniform():
    signs = random_signs(0, "w", "row", 0, 10_000)
    assert abs(signs.mean().item()) < 4 / 100
    # lag-one products of fair independent signs have mean 0 as well
    assert abs((signs[1:] * signs[:-1]).mean().item()) < 4 / 100
    offsets = [next(iter(plan_blocks("w", (4, 4), k=8, seed=seed))).offset for seed in range(4000)]
    counts = np.bincount(offsets, minlength=8)
    assert ((counts - 500) ** 2 / 500).sum() < 26  # chi-square, 7 degrees of freedom, p = 0.0005


def test_lookup_equals_its_one_hot_factors():
    """The embedding's contribution is g^T a with one-hot rows; -1 contributes nothing; repeated ids add up."""
    ids = torch.tensor([[3, 3, 0], [23, -1, 3]])
    g = _random(2, 3, COLUMNS)
    one_hot = torch.zeros(2, 3, ROWS, dtype=torch.float64)
    for b in range(2):
        for t in range(3):
            if ids[b, t] >= 0:
                one_hot[b, t, ids[b, t]] = 1
    lookup, factors = Lookup(ids, g), Factors(g, one_hot)
    signs = random_signs(0, "w", "row", 0, ROWS)
    for rows in (slice(0, ROWS), slice(2, 4), slice(20, 24)):
        for row_signs in (None, signs[rows]):
            torch.testing.assert_close(
                lookup.product(rows, slice(1, 9), dtype=torch.float64, row_signs=row_signs),
                factors.product(rows, slice(1, 9), dtype=torch.float64, row_signs=row_signs),
            )


def test_all_zero_gradient_has_a_zero_sketch():
    assert not _sketch(torch.zeros(2, ROWS, COLUMNS), k=16, seed=0).any()


def test_bfloat16_products_are_added_in_float32():
    """1 + 2^-9 is not a bfloat16: two blocks that meet keep it in a float32 sketch."""
    assert (
        CountSketch(k=4, seed=0).new_buffer(1, dtype=torch.bfloat16, device=torch.device("cpu")).dtype == torch.float32
    )
    # columns of ones in K = 1: every entry lands in one place, signs decide
    many = torch.full((1, 16, 16), 1.0, dtype=torch.bfloat16)
    many[0, 0, 0] = 2**-9
    z = _sketch(many, k=1, seed=0)
    assert z.item() % 1 in (2**-9, 1 - 2**-9)
