"""RapidIn's compression: a permutation with signs, unbiased, and what few shuffles leave unmixed."""

import numpy as np
import pytest
import torch

from rapidun.config.influence import ParameterSet
from rapidun.stages.influence.gradients.params import TrackedParameter, select_parameters
from rapidun.stages.influence.gram import estimated_gram
from rapidun.stages.influence.sketches import rapidgrad
from rapidun.stages.influence.sketches.rapidgrad import RapidGrad, plan_shuffles, prime_factors

NAMES = [f"row {i}" for i in range(7)]


def _weight(numel):
    return [TrackedParameter("w", (1, numel), (), 0)]


def _places(numel, *, num_shuffles, seed):
    """Where each entry goes, one shuffle after the other, index by index: [numel]."""
    vector = list(range(numel))
    for shuffle in plan_shuffles(numel, num_shuffles=num_shuffles, seed=seed):
        height, width = shuffle.shape
        assert height * width == numel
        order = shuffle.order.tolist()
        if shuffle.is_of_rows:
            vector = [vector[order[r] * width + c] for r in range(height) for c in range(width)]
        else:
            vector = [vector[r * width + order[c]] for r in range(height) for c in range(width)]
    places = [0] * numel
    for place, entry in enumerate(vector):
        places[entry] = place
    return np.array(places)


@pytest.mark.parametrize(("numel", "k", "multiple"), [(48, 8, 16), (40, 16, 48), (96, 96, 96), (64, 1, 1)])
def test_equals_the_definition(numel, k, multiple):
    """Pad, permute entry by entry, sign, sum D/k neighbours."""
    x = torch.randn(3, numel, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sketch = RapidGrad(_weight(numel), k=k, pad_multiple=multiple, num_shuffles=3, seed=5)
    padded = -(-numel // multiple) * multiple
    assert sketch.padded == padded
    signs = rapidgrad.random_signs(5, "rapidgrad", "sign", 0, padded).double()
    places = _places(padded, num_shuffles=3, seed=5)
    truth = torch.zeros(3, k, dtype=torch.float64)
    for entry in range(numel):
        place = int(places[entry])
        truth[:, place // (padded // k)] += signs[place] * x[:, entry]
    buffer = sketch.new_buffer(3, dtype=torch.float64, device=torch.device("cpu"))
    buffer[:, :numel] = x
    torch.testing.assert_close(sketch.finish(buffer), truth)


def test_gram_equals_compressed_autograd_gradients(make_model, rows, batches_of, autograd_gradients):
    """The whole gradient in the order of the parameters; a tied head adds to its embedding's place."""
    model = make_model(tied=True)
    parameters = select_parameters(model, ParameterSet.regex, regex=".*")
    gradients = autograd_gradients(model, parameters, rows)
    sketch = RapidGrad(parameters, k=64, pad_multiple=256, num_shuffles=2, seed=1)
    buffer = sketch.new_buffer(7, dtype=torch.float64, device=torch.device("cpu"))
    buffer[:, : gradients.shape[1]] = gradients
    truth = sketch.finish(buffer)
    for groups in ([[i] for i in range(7)], [[1, 6, 3], [0, 4], [5, 2]]):
        gram = estimated_gram(model, parameters, batches_of(rows, groups, extra=2), sketch, row_names=NAMES).gram
        torch.testing.assert_close(gram, truth @ truth.T, rtol=1e-9, atol=1e-11 * gram.diagonal().max().item())


def _errors(x, y, *, k, num_shuffles, num_seeds=300):
    sketches = []
    for seed in range(num_seeds):
        sketch = RapidGrad(_weight(len(x)), k=k, pad_multiple=k, num_shuffles=num_shuffles, seed=seed)
        z = sketch.finish(torch.stack([x, y]))
        sketches.append((z[0] @ z[1] - x @ y).item())
    return np.array(sketches)


def test_unbiased_with_a_count_sketchs_variance_on_plain_vectors():
    """D = 1,024 = 2^10, k = 64: |mean error| < 4 sd / sqrt(S); variance about (1 + c^2)/k."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 1024, dtype=torch.float64, generator=generator)
    x, y = x / x.norm(), y / y.norm()
    errors = _errors(x, y, k=64, num_shuffles=20)
    assert abs(errors.mean()) < 4 * errors.std() / len(errors) ** 0.5
    assert 0.7 / 64 < errors.var() < 1.35 * (1 + (x @ y).item() ** 2) / 64


def test_few_shuffles_do_not_mix_high_and_low_bits():
    """D = 2^10, k = 64, one hot block of 16 neighbours, x and y orthogonal within it: alike in all high bits.

    One pair of shuffles often leaves the block, or large pieces of it, in one bin: unbiased, but some 30 times noisier
    than 1/k. Twenty pairs, each over a split of its own, mix what one does not.
    """
    x, y = torch.zeros(2, 1024, dtype=torch.float64)
    x[512:528] = 0.25
    y[512:528:2], y[513:528:2] = 0.25, -0.25
    few, many = (_errors(x, y, k=64, num_shuffles=n) for n in (1, 20))
    for errors in (few, many):
        assert abs(errors.mean()) < 4 * errors.std() / len(errors) ** 0.5
    assert few.var() > 5 / 64
    assert many.var() < 2.5 / 64


def test_shuffles_are_permutations_by_turns():
    shuffles = plan_shuffles(2**4 * 3, num_shuffles=4, seed=0)
    assert [s.is_of_rows for s in shuffles] == [True, False] * 4
    assert len({s.shape for s in shuffles}) > 2
    for shuffle in shuffles:
        assert sorted(shuffle.order.tolist()) == list(range(shuffle.shape[0 if shuffle.is_of_rows else 1]))
    assert sorted(_places(48, num_shuffles=4, seed=0)) == list(range(48))


@pytest.mark.parametrize(("number", "factors"), [(1, []), (2, [2]), (360, [2, 2, 2, 3, 3, 5]), (97, [97])])
def test_prime_factors(number, factors):
    assert prime_factors(number) == factors


def test_k_must_divide():
    with pytest.raises(ValueError, match="k=3, pad_multiple=16"):
        RapidGrad(_weight(4), k=3, pad_multiple=16, num_shuffles=1, seed=0)
