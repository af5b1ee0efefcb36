import math

import pytest
import torch

from rapidun.models import losses
from rapidun.models.losses import example_cross_entropy, response_mask, token_log_probs


def test_label_shift_by_hand() -> None:
    """Position t - 1 predicts label t. V = 2, logits at position 0 = (0, ln 3): p(1) = 3/4; at 1 = (0, 0): p = 1/2."""
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0], [9.0, -9.0]]])
    labels = torch.tensor([[-100, 1, 0]])
    expected = torch.tensor([[0.0, math.log(0.75), math.log(0.5)]])
    assert torch.allclose(token_log_probs(logits, labels), expected, atol=1e-6)
    assert math.isclose(
        float(example_cross_entropy(logits, labels)), -(math.log(0.75) + math.log(0.5)) / 2, rel_tol=1e-6
    )


def test_first_label_cannot_be_predicted() -> None:
    labels = torch.tensor([[1, 1, -100]])
    assert response_mask(labels).tolist() == [[False, True, False]]
    assert labels.tolist() == [[1, 1, -100]]


def test_padding_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[-100, 3, 4, -100, -100], [-100, -100, 1, 2, 6]])
    padded = torch.cat([logits, torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)], dim=1)
    padded_labels = torch.cat([labels, torch.full((2, 3), -100)], dim=1)
    assert torch.equal(example_cross_entropy(logits, labels), example_cross_entropy(padded, padded_labels))


def test_agrees_with_the_slow_version_in_float64() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 6, 11, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 11, (3, 6), generator=generator)
    labels[0, :3] = labels[1, :1] = labels[2, :5] = -100
    for b in range(3):
        terms = []
        for t in range(1, 6):
            if labels[b, t] != -100:
                scores = [float(x) for x in logits[b, t - 1]]
                norm = math.log(sum(math.exp(x) for x in scores))
                terms.append(norm - scores[int(labels[b, t])])
        assert math.isclose(float(example_cross_entropy(logits, labels)[b]), sum(terms) / len(terms), rel_tol=1e-12)


def test_gradient_reaches_labelled_positions_only() -> None:
    logits = torch.zeros(1, 4, 3, requires_grad=True)
    example_cross_entropy(logits, torch.tensor([[-100, -100, 2, -100]])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum(dim=-1).ne(0).tolist() == [[False, True, False, False]]


def test_no_response_token_gives_zero_not_nan() -> None:
    assert example_cross_entropy(torch.zeros(1, 3, 2), torch.full((1, 3), -100)).tolist() == [0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_packed_cross_entropy_is_torchs(monkeypatch, dtype, chunk):
    """Values and gradients of F.cross_entropy in the same precision, however few rows are taken at once."""
    monkeypatch.setattr(losses, "CPU_CHUNK", chunk)
    torch.manual_seed(0)
    logits = (torch.randn(5, 3) * 20).to(dtype).requires_grad_()
    targets = torch.tensor([0, 2, 1, 1, 0])
    weight = torch.tensor([1.0, 0.0, -2.0, 0.5, 1.0])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    values = losses.PackedCrossEntropy.apply(logits, targets)
    truth = torch.nn.functional.cross_entropy(logits.to(wide), targets, reduction="none")
    assert values.dtype == wide
    torch.testing.assert_close(values, truth)
    found, wanted = (torch.autograd.grad((x * weight).sum(), logits)[0] for x in (values, truth))
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted)


def test_packed_cross_entropy_leaves_its_logits_as_they_are():
    """In their own type the logits are not copied: backward must not write into them."""
    torch.manual_seed(0)
    logits = torch.randn(4, 3, requires_grad=True)
    picked = logits * 1.0
    before = picked.detach().clone()
    values = losses.PackedCrossEntropy.apply(picked, torch.tensor([0, 2, 1, 1]))
    first, second = (torch.autograd.grad(values.sum(), logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and torch.equal(picked, before)


def test_packed_cross_entropy_of_nothing():
    logits = torch.zeros(0, 3, requires_grad=True)
    values = losses.PackedCrossEntropy.apply(logits, torch.zeros(0, dtype=torch.int64))
    values.sum().backward()
    assert values.shape == (0,) and logits.grad.shape == (0, 3)
