"""TensorSketch: the count-sketch under its combined hash, unbiased, with the variance that its docstring states."""

import copy
import hashlib

import numpy as np
import pytest
import torch

from rapidun.config.influence import ParameterSet
from rapidun.stages.influence.gradients.capture import Factors, Lookup
from rapidun.stages.influence.gradients.params import select_parameters
from rapidun.stages.influence.gram import estimated_gram, exact_gram
from rapidun.stages.influence.sketches import tensorsketch
from rapidun.stages.influence.sketches.tensorsketch import TensorSketch, plan_side

ROWS, COLUMNS = 12, 10
NAMES = [f"row {i}" for i in range(7)]
GROUPS = [[1, 6, 3], [0, 4], [5, 2]]


def _random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _sketch(pieces, *, k, buckets, seed, name="w", shape=(ROWS, COLUMNS)):
    sketch = TensorSketch(k=k, buckets=buckets, seed=seed)
    buffer = sketch.new_buffer(len(pieces[0].g), dtype=pieces[0].g.dtype, device=torch.device("cpu"))
    for piece in pieces:
        sketch.add(buffer, name, shape, piece)
    return sketch.finish(buffer)


def _whole(matrices, **options):
    """Sketch matrices [B, rows, columns]: as factors, with the identity for inputs."""
    identity = torch.eye(matrices.shape[2], dtype=matrices.dtype).expand(len(matrices), -1, -1)
    return _sketch([Factors(identity, matrices.transpose(1, 2))], shape=tuple(matrices.shape[1:]), **options)


def _slow(matrices, *, k, buckets, seed, name="w"):
    """Entry by entry: bucket (h(r) + h'(c)) mod b, signs of row, column and place, b numbers from the offset on."""
    num_rows, num_columns = matrices.shape[1:]
    rows = plan_side(name, "row", num_rows, buckets=buckets, seed=seed)
    columns = plan_side("", "column", num_columns, buckets=buckets, seed=seed)  # shared by all layers
    fold = tensorsketch.random_signs(seed, name, "tensor fold", 0, buckets)
    offset = int(tensorsketch.random_uint64(seed, name, "tensor offset", np.zeros(1, dtype=np.uint64))[0]) % k
    out = torch.zeros(len(matrices), k, dtype=torch.float64)
    for r in range(num_rows):
        for c in range(num_columns):
            bucket = int(rows.buckets[r] + columns.buckets[c]) % buckets
            sign = rows.signs[r] * columns.signs[c] * fold[bucket]
            out[:, (offset + bucket) % k] += sign.double() * matrices[:, r, c]
    return out


@pytest.mark.parametrize(
    ("k", "buckets"), [(64, 64), (50, 32), (17, 16), (9, 2), (5, 1), (1000, 256), (10, 32), (3, 8)]
)
def test_equals_the_definition(k, buckets):
    """k = buckets wraps around for any offset but 0, k < buckets several times; 2 buckets hold 12 rows."""
    a, g = _random(3, 5, COLUMNS), _random(3, 5, ROWS, seed=1)
    g[1, 2:] = 0
    matrices = torch.einsum("btr,btc->brc", g, a)
    for seed in (0, 1):
        torch.testing.assert_close(
            _sketch([Factors(a, g)], k=k, buckets=buckets, seed=seed),
            _slow(matrices, k=k, buckets=buckets, seed=seed),
            rtol=1e-12,
            atol=1e-12,
        )


def test_lookup_equals_its_one_hot_factors():
    """An embedding's tokens are unit vectors; -1 contributes nothing; repeated ids add up."""
    ids = torch.tensor([[3, 3, 0], [11, -1, 3]])
    g = _random(2, 3, COLUMNS)
    one_hot = torch.zeros(2, 3, ROWS, dtype=torch.float64)
    for b in range(2):
        for t in range(3):
            if ids[b, t] >= 0:
                one_hot[b, t, ids[b, t]] = 1
    options = {"k": 50, "buckets": 16, "seed": 2}
    torch.testing.assert_close(_sketch([Lookup(ids, g)], **options), _sketch([Factors(g, one_hot)], **options))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("params", [ParameterSet.all_linear, ParameterSet.embeddings, ParameterSet.lm_head])
def test_gram_equals_sketched_autograd_gradients(make_model, rows, batches_of, autograd_gradients, tied, params):
    """float64: batched, padded, head packed, against the definition applied to one-row autograd gradients."""
    model = make_model(tied=tied)
    parameters = select_parameters(model, params)
    gradients = autograd_gradients(model, parameters, rows).split([p.numel for p in parameters], dim=1)
    sketches = torch.zeros(7, 100, dtype=torch.float64)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        sketches += _slow(gradient.view(7, *parameter.shape), k=100, buckets=32, seed=4, name=parameter.name)
    result = estimated_gram(
        model, parameters, batches_of(rows, GROUPS), TensorSketch(k=100, buckets=32, seed=4), row_names=NAMES
    )
    truth = sketches @ sketches.T
    torch.testing.assert_close(result.gram, truth, rtol=0, atol=1e-11 * truth.abs().max().item())


def _pairs(num_rows, num_columns):
    """Gradients that share directions, are of rank one, hold one hot block, or nothing special: {name: (x, y)}."""
    block = torch.zeros(2, num_rows, num_columns, dtype=torch.float64)
    block[:, 4:7] = _random(2, 3, num_columns, seed=1)
    outlier = 0.01 * _random(2, num_rows, num_columns, seed=2)
    outlier[:, :, 3] = _random(2, num_rows, seed=3)
    # orthogonal left factors, one right factor: the true product is 0
    aligned = torch.linalg.qr(_random(num_rows, 2, seed=4)).Q.T.unsqueeze(2) * _random(num_columns, seed=5)
    same = (_random(num_rows, 1, seed=6) * _random(1, num_columns, seed=7)).expand(2, -1, -1)
    plain = _random(2, num_rows, num_columns)
    pairs = {"plain": plain, "hot block": block, "outlier column": outlier, "rank one": aligned}
    return pairs | {"itself": same}


def _predicted_variance(x, y, buckets):
    """The variance up to O(1/b^2): pairs of entries, by what they have in common.

    Different rows and columns meet with probability 1/(b - 1) where each pair is of one group (two differences, neither
    of them 0, agree), else 1/b: x_rc^2 y_r'c'^2 + x_rc y_rc x_r'c' y_r'c'. Same column: never in one group, else 1/b;
    sum_c x_rc y_r'c =: M_rr' comes with one sign for each pair of rows, so M_rr'^2 + M_rr' M_r'r. Same row likewise.
    """
    both = torch.outer(x.flatten() ** 2, y.flatten() ** 2)
    product = (x * y).flatten()
    both += torch.outer(product, product)
    row, column = (torch.arange(x.numel()) // x.shape[1], torch.arange(x.numel()) % x.shape[1])
    apart = (row.unsqueeze(0) != row.unsqueeze(1)) & (column.unsqueeze(0) != column.unsqueeze(1))
    near = _same_group(row, buckets) & _same_group(column, buckets)
    total = (both * apart * torch.where(near, 1 / (buckets - 1), 1 / buckets)).sum()
    for m in (x @ y.T, x.T @ y):
        m = m * ~_same_group(torch.arange(len(m)), buckets)
        total += ((m * m).sum() + (m * m.T).sum()) / buckets
    return total.item()


def _same_group(index, buckets):
    return index.unsqueeze(0) // buckets == index.unsqueeze(1) // buckets


def _bound(x, y, buckets):
    """The formula of the module's docstring."""
    total = (x.square().sum() * y.square().sum() + (x * y).sum() ** 2) / (buckets - 1)
    for m in (x @ y.T, x.T @ y):
        if len(m) > buckets:
            total += ((m * m).sum() + (m * m.T).sum()) / buckets
    return total.item()


@pytest.mark.parametrize(("shape", "buckets"), [((ROWS, COLUMNS), 64), ((40, 36), 32), ((24, 40), 32)])
def test_unbiased_with_the_stated_variance(shape, buckets):
    """600 seeds, one layer: |mean error| < 4 sd / sqrt(S); the variance as computed, within the bound."""
    pairs = _pairs(*shape)
    x, y = (torch.stack([pair[i] / pair[i].norm() for pair in pairs.values()]) for i in (0, 1))
    true = (x * y).sum(dim=(1, 2))
    num_seeds = 600
    errors = []
    for seed in range(num_seeds):
        z = _whole(torch.cat([x, y]), k=1024, buckets=buckets, seed=seed)
        errors.append((z[: len(x)] * z[len(x) :]).sum(dim=1) - true)
    mean, spread = torch.stack(errors).mean(dim=0), torch.stack(errors).std(dim=0)
    for i, name in enumerate(pairs):
        assert abs(mean[i]) <= 4 * spread[i] / num_seeds**0.5, name
        predicted = _predicted_variance(x[i], y[i], buckets)
        assert 0.75 * predicted < spread[i].item() ** 2 < 1.35 * predicted, (name, spread[i].item() ** 2 / predicted)
        assert predicted < _bound(x[i], y[i], buckets)
        if max(shape) <= buckets:
            assert predicted < 2.0001 / (buckets - 1), name


@pytest.mark.parametrize("one_input", [False, True])
def test_folding_many_layers_costs_their_share(one_input):
    """6 layers of b = 64 in k = 128: unbiased, and layers that overlap add at most |x|^2 |y|^2 / k and a little.

    As well where all layers read one input of one direction, hashed alike in all of them.
    """
    x, y = (_random(6, ROWS, COLUMNS, seed=seed) for seed in (1, 2))
    if one_input:
        x, y = (_random(6, ROWS, 1, seed=seed) * _random(1, COLUMNS, seed=3) for seed in (1, 2))
    x, y = x / x.norm(), y / y.norm()
    true = (x * y).sum().item()
    errors = []
    for seed in range(300):
        totals = torch.zeros(2, 128, dtype=torch.float64)
        for layer in range(6):
            totals += _whole(torch.stack([x[layer], y[layer]]), k=128, buckets=64, seed=seed, name=f"layer {layer}")
        errors.append((totals[0] @ totals[1]).item() - true)
    assert abs(np.mean(errors)) < 4 * np.std(errors) / 300**0.5
    own = sum(_predicted_variance(a, b, 64) for a, b in zip(x, y, strict=True))
    across = (1 + true**2) / 128
    assert 0.7 * (own + 0.7 * across) < np.var(errors) < 1.3 * (own + across)


def test_indices_alike_in_high_or_low_bits_meet_no_more_often():
    """2^9 indices, 64 buckets: those 64 or 256 apart meet with probability 1/64, those of a group never."""
    rates = {64: [], 256: []}
    for seed in range(40):
        buckets = plan_side("w", "row", 512, buckets=64, seed=seed).buckets
        assert (buckets.view(8, 64).sort(dim=1).values == torch.arange(64)).all()
        for apart, found in rates.items():
            found.append((buckets[:-apart] == buckets[apart:]).double().mean().item())
    for apart, found in rates.items():
        assert abs(np.mean(found) - 1 / 64) < 4 * (1 / 64 / (40 * 256)) ** 0.5, apart


def test_batches_padding_and_order_do_not_matter(make_model, rows, batches_of):
    model = make_model(tied=True)
    parameters = select_parameters(model, ParameterSet.regex, regex=".*")

    def gram(groups, extra=0):
        sketch = TensorSketch(k=60, buckets=16, seed=1)
        batches = batches_of(rows, groups, extra=extra)
        return estimated_gram(model, parameters, batches, sketch, row_names=NAMES).gram

    alone = gram([[i] for i in range(7)])
    for other in (gram(GROUPS), gram([[2, 0, 1, 6, 5, 4, 3]]), gram([[6, 5], [4, 3, 2, 1, 0]], extra=5)):
        torch.testing.assert_close(other, alone, rtol=1e-9, atol=1e-12 * alone.abs().max().item())


def test_what_stands_at_padding_is_never_read():
    """A place without a gradient may hold anything, not even a number."""
    a, g = _random(2, 4, COLUMNS), _random(2, 4, ROWS, seed=1)
    g[1, 2:] = 0
    clean = _sketch([Factors(a, g)], k=50, buckets=16, seed=0)
    a[1, 2:] = float("nan")
    assert torch.equal(_sketch([Factors(a, g)], k=50, buckets=16, seed=0), clean)


def test_an_input_that_layers_share_is_transformed_once(monkeypatch):
    """Three layers on one input; the third after that input was changed in place, on the same tokens."""
    a, g = _random(2, 4, COLUMNS), [_random(2, 4, ROWS, seed=seed) for seed in (1, 2, 3)]
    sketch = TensorSketch(k=100, buckets=32, seed=0)
    buffer = sketch.new_buffer(2, dtype=torch.float64, device=torch.device("cpu"))
    calls = []
    rfft = torch.fft.rfft
    monkeypatch.setattr(torch.fft, "rfft", lambda x: calls.append(1) or rfft(x))
    sketch.add(buffer, "one", (ROWS, COLUMNS), Factors(a, g[0]))
    sketch.add(buffer, "two", (ROWS, COLUMNS), Factors(a.detach(), g[1]))
    assert len(calls) == 3
    wanted = _sketch([Factors(a, g[0])], k=100, buckets=32, seed=0, name="one")
    wanted += _sketch([Factors(a, g[1])], k=100, buckets=32, seed=0, name="two")
    a.mul_(2)
    calls.clear()
    sketch.add(buffer, "three", (ROWS, COLUMNS), Factors(a, g[2]))
    assert len(calls) == 2
    wanted += _sketch([Factors(a, g[2])], k=100, buckets=32, seed=0, name="three")
    calls.clear()
    fewer = g[0].clone()
    fewer[1, 2:] = 0
    sketch.add(buffer, "four", (ROWS, COLUMNS), Factors(a, fewer))
    assert len(calls) == 2
    wanted += _sketch([Factors(a, fewer)], k=100, buckets=32, seed=0, name="four")
    torch.testing.assert_close(sketch.finish(buffer), wanted, rtol=1e-12, atol=1e-12)


def test_chunks_do_not_matter(monkeypatch):
    """Up to rounding: a transform's last bit depends on how many are taken at once."""
    piece = Factors(_random(4, 7, COLUMNS), _random(4, 7, ROWS, seed=1))
    whole = _sketch([piece], k=50, buckets=16, seed=0)
    for numbers in (1, 48):
        monkeypatch.setattr(tensorsketch, "CPU_CHUNK", numbers)
        torch.testing.assert_close(_sketch([piece], k=50, buckets=16, seed=0), whole, rtol=1e-13, atol=1e-13)


def test_contributions_add_up_and_seeds_and_names_differ():
    x, y = (Factors(_random(2, 3, COLUMNS, seed=s), _random(2, 3, ROWS, seed=s + 9)) for s in (0, 1))
    options = {"k": 50, "buckets": 16}
    both = _sketch([x, y], seed=1, **options)
    torch.testing.assert_close(both, _sketch([x], seed=1, **options) + _sketch([y], seed=1, **options))
    torch.manual_seed(999)
    assert torch.equal(_sketch([x, y], seed=1, **options), both)
    assert not torch.allclose(_sketch([x, y], seed=2, **options), both)
    assert not torch.allclose(_sketch([x, y], seed=1, name="v", **options), both)


def test_hashes_are_pinned():
    """SplitMix64 of the key's counters, sorted, worked out with Python integers; a change breaks old sketches."""
    key = int.from_bytes(hashlib.sha256(b"7\0layer.weight\0tensor row bucket").digest()[:8], "little")
    mask = (1 << 64) - 1
    drawn = []
    for counter in range(16):
        x = (key + (counter + 1) * 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        drawn.append(x ^ (x >> 31))
    # two groups of 8 buckets, the second with 3 indices
    expected = sorted(range(8), key=lambda b: drawn[b]) + sorted(range(8), key=lambda b: drawn[8 + b])[:3]
    assert plan_side("layer.weight", "row", 11, buckets=8, seed=7).buckets.tolist() == expected


def test_small_gradients_keep_their_digits_in_float32():
    """Activations of 100 beside gradients of 1e-9: relative error of the sketch's norm below 1e-5."""
    a, g = 100 * _random(2, 6, COLUMNS), 1e-9 * _random(2, 6, ROWS, seed=1)
    narrow = _sketch([Factors(a.float(), g.float())], k=64, buckets=32, seed=0)
    wide = _sketch([Factors(a, g)], k=64, buckets=32, seed=0)
    assert narrow.dtype == torch.float32
    assert (narrow.double() - wide).norm() < 1e-5 * wide.norm()


def test_bfloat16_model_is_sketched_in_float32(make_model, rows, batches_of):
    """The factors are bfloat16 numbers, nothing is rounded after them: the sketch agrees with exact to its noise."""
    model = make_model(dtype=torch.bfloat16)
    parameters = select_parameters(model, ParameterSet.all_linear)
    batches = batches_of(rows, GROUPS)
    exact = exact_gram(model, parameters, batches, row_names=NAMES, memory_bytes=1e9).gram
    sketch = TensorSketch(k=1 << 18, buckets=1 << 14, seed=0)
    gram = estimated_gram(model, parameters, batches, sketch, row_names=NAMES).gram
    assert sketch.new_buffer(1, dtype=torch.bfloat16, device=torch.device("cpu")).dtype == torch.float32
    assert ((gram - exact).abs() / exact.diagonal().max()).max() < 0.06


def test_ranking_agrees_with_exact_the_more_the_larger(make_model, rows, batches_of):
    model = make_model()
    parameters = select_parameters(model, ParameterSet.all_linear)
    batches = batches_of(rows, GROUPS)
    exact = exact_gram(model, parameters, batches, row_names=NAMES, memory_bytes=1e9).gram
    scale = exact.diagonal().max()
    worst = []
    for k, buckets in ((64, 16), (1024, 256), (16384, 4096)):
        errors = []
        for seed in range(6):
            sketch = TensorSketch(k=k, buckets=buckets, seed=seed)
            gram = estimated_gram(model, parameters, batches, sketch, row_names=NAMES).gram
            errors.append(((gram - exact) / scale).square().mean().sqrt().item())
        worst.append(np.mean(errors))
    assert worst[0] > 2 * worst[1] > 4 * worst[2]


def test_a_zero_gradient_has_a_zero_sketch():
    assert not _whole(torch.zeros(2, ROWS, COLUMNS), k=16, buckets=8, seed=0).any()


@pytest.mark.parametrize(("k", "buckets"), [(0, 16), (64, 48), (64, 0)])
def test_sizes_that_cannot_be(k, buckets):
    with pytest.raises(ValueError, match="power of two"):
        TensorSketch(k=k, buckets=buckets, seed=0)


def test_float32_model_agrees_with_float64(make_model, rows, batches_of):
    model = make_model(dtype=torch.float32)
    grams = []
    for variant in (model, copy.deepcopy(model).double()):
        parameters = select_parameters(variant, ParameterSet.all_linear)
        sketch = TensorSketch(k=60, buckets=16, seed=1)
        grams.append(estimated_gram(variant, parameters, batches_of(rows, GROUPS), sketch, row_names=NAMES).gram)
    assert ((grams[0] - grams[1]).abs() / grams[1].diagonal().max()).max() < 1e-5
