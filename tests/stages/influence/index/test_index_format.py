"""Rounding to int8 and float16, and the file that holds the result."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from rapidun.config.index import IndexDtype
from rapidun.stages.influence.index.format import PAGE, Layout, quantise, read_small, row_sums, small_bytes


def _vectors(n: int, k: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    # rows of very different sizes, as gradients are
    return (rng.standard_normal((n, k)) * 10.0 ** rng.uniform(-6, 3, (n, 1))).astype(np.float32)


def test_int8_by_hand():
    """max |z| = 2.54, so s = 2.54 / 127 = 0.02: 1.0 -> 50, -2.54 -> -127, 0.031 -> round(1.55) = 2, 0 -> 0."""
    found = quantise(np.array([[1.0, -2.54, 0.031, 0.0]], np.float32), np.array([1.5]), dtype=IndexDtype.int8)
    assert found.rows.tolist() == [[50, -127, 2, 0]]
    assert found.scales[0] == pytest.approx(0.02)
    # sqrt(1 + 6.4516 + 0.000961), of the numbers before rounding
    assert found.norms[0] == pytest.approx(2.7299, abs=1e-4)
    assert found.losses.tolist() == [1.5]
    # no eight bytes: they are added one by one, -127 being 129
    assert found.sums.tolist() == [50 + 129 + 2 + 0]


def test_float16_scale_is_a_power_of_two():
    """max |z| = 3 lies in [2, 4): s = 4, so 3 -> 0.75 and 1 -> 0.25 exactly."""
    found = quantise(np.array([[3.0, 1.0]], np.float32), np.zeros(1), dtype=IndexDtype.fp16)
    assert found.rows.tolist() == [[0.75, 0.25]]
    assert found.scales.tolist() == [4.0]


@pytest.mark.parametrize(("dtype", "bound"), [(IndexDtype.int8, 0.5 / 127), (IndexDtype.fp16, 2.0**-11)])
def test_rounding_errors_stay_below_half_a_step(dtype, bound):
    vectors = _vectors(20, 256)
    found = quantise(vectors, np.zeros(20), dtype=dtype)
    error = np.abs(found.rows * found.scales[:, None] - vectors).max(axis=1)
    assert (error <= 1.001 * bound * np.abs(vectors).max(axis=1)).all()
    assert error.max() > 0


def test_int8_costs_about_a_ten_thousandth_of_the_squared_norm():
    """Gaussian rows: s = max / 127 with max about 4 sd at K = 4,096, so s^2 / 12 = 8e-5 of the variance."""
    vectors = np.random.default_rng(0).standard_normal((8, 4096)).astype(np.float32)
    found = quantise(vectors, np.zeros(8), dtype=IndexDtype.int8)
    share = np.square(found.rows * found.scales[:, None] - vectors).sum() / np.square(vectors).sum()
    assert 4e-5 < share < 1.5e-4


@pytest.mark.parametrize("dtype", IndexDtype)
def test_zero_rows_stay_zero(dtype):
    found = quantise(np.array([[0.0, 0.0], [1e-44, 0.0]], np.float32), np.zeros(2), dtype=dtype)
    assert found.rows[0].tolist() == [0, 0]
    assert found.scales[0] == 0
    assert found.norms[0] == 0
    # below the smallest normal number: rounded away or kept, never NaN
    assert np.isfinite(found.rows * found.scales[:, None]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    with pytest.raises(ArithmeticError, match="row 1"):
        quantise(np.array([[1.0, 2.0], [bad, 0.0]], np.float32), np.zeros(2), dtype=IndexDtype.int8)


@pytest.mark.parametrize("dtype", IndexDtype)
@pytest.mark.parametrize("k", [8, 13])
def test_a_shard_is_a_safetensors_file(tmp_path, dtype, k):
    stored = quantise(_vectors(5, k), np.arange(5), dtype=dtype)
    layout = Layout(num_rows=5, k=k, dtype=dtype)
    data = layout.header() + stored.rows.tobytes() + small_bytes(stored)
    assert len(data) == layout.nbytes
    assert data[PAGE : PAGE + 2] == stored.rows.tobytes()[:2]
    (tmp_path / "x.safetensors").write_bytes(data)
    found = load_file(tmp_path / "x.safetensors")
    assert set(found) == set(stored._fields)
    for name, value in stored._asdict().items():
        np.testing.assert_array_equal(found[name], value)
    small = read_small(data[layout.small_offset("sums") :], layout)
    for name, value in small.items():
        np.testing.assert_array_equal(value, getattr(stored, name))


@pytest.mark.parametrize("k", [16, 13])
def test_every_flipped_bit_changes_the_sum_of_its_row(k):
    rows = quantise(_vectors(3, k), np.zeros(3), dtype=IndexDtype.int8).rows
    before = row_sums(rows)
    for place in range(k):
        for bit in range(8):
            changed = rows.copy()
            changed.view(np.uint8)[1, place] ^= 1 << bit
            after = row_sums(changed)
            assert after[1] != before[1]
            assert (after[[0, 2]] == before[[0, 2]]).all()
