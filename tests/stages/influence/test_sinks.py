"""Kept gradients and their inner products."""

import pytest
import torch

from rapidun.stages.influence.sinks import inner_products


@pytest.mark.parametrize(("num_rows", "numel"), [(2, 884_736), (3, 10_001), (2, 5), (1, 4096)])
def test_long_float32_sums_keep_their_digits(num_rows, numel):
    """884,736 numbers are one down_proj of SmolLM2-135M: a single float32 product is off by 8e-5 there."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(num_rows, numel, generator=generator) * torch.randn(num_rows, numel, generator=generator).exp()
    truth = flat.double() @ flat.double().T
    scale = truth.diagonal().sqrt()
    assert ((inner_products(flat) - truth).abs() / torch.outer(scale, scale)).max() < 1e-6


def test_bfloat16_sums_lose_what_rounding_their_spans_loses():
    """Of 884,736 numbers, 216 spans of 4,096: rounded to 32 at most, 32 / sqrt(12) / 4096 / sqrt(216) = 1.5e-4."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(4, 884_736, generator=generator).bfloat16()
    flat[1] += flat[0]
    truth = flat.double() @ flat.double().T
    scale = truth.diagonal().sqrt()
    error = (inner_products(flat) - truth) / torch.outer(scale, scale)
    assert error.abs().max() < 6e-4
    off_diagonal = error[~torch.eye(4, dtype=torch.bool)]
    assert off_diagonal.abs().max() < 2e-4
    torch.testing.assert_close(inner_products(flat, flat[:2]), inner_products(flat)[:, :2])


def test_float64_stays_float64():
    flat = torch.randn(3, 9000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(inner_products(flat), flat @ flat.T, rtol=1e-13, atol=1e-11)
