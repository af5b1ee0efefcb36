"""Objectives on numbers worked by hand, and the laws that their weights and caps obey."""

import math

import pytest
import torch
from torch import Tensor

from rapidun.config.unlearning import Objective, RetainLoss
from rapidun.models.losses import example_cross_entropy
from rapidun.models.packed import pack
from rapidun.stages.unlearning.objectives.ascent import ga, graddiff, rapidun
from rapidun.stages.unlearning.objectives.base import Coefficients, ForgetOutputs, Responses, weighted_mean
from rapidun.stages.unlearning.objectives.catalogue import OBJECTIVES
from rapidun.stages.unlearning.objectives.imitation import idk_sft
from rapidun.stages.unlearning.objectives.retain import RETAIN_LOSSES, retain_cross_entropy, retain_kl


def responses(losses: list[float] | Tensor) -> Responses:
    """Responses of which only the cross-entropy matters."""
    return Responses(torch.as_tensor(losses))


def judged(logits: Tensor, labels: Tensor, reference: Tensor) -> Responses:
    """Responses under a model and its reference, [B, T, V] each."""
    return Responses(torch.zeros(len(labels)), pack(logits, labels), pack(reference, labels))


def outputs(poisoned: Tensor | list[float], clean: Tensor | list[float] | None, has_clean: list[bool]) -> ForgetOutputs:
    given = None if clean is None else responses(clean)
    return ForgetOutputs(responses(poisoned), given, torch.tensor(has_clean))


def test_every_objective_and_retain_loss_is_there() -> None:
    # retrain is a training run of the poison stage, an edit has no loop: no losses
    trained = {one for one in Objective if not (one.traits.retrains or one.traits.edits)}
    assert set(OBJECTIVES) == trained
    assert set(RETAIN_LOSSES) == set(RetainLoss)


def test_rapidun_by_hand() -> None:
    """alpha 1, beta 1/2: row 1 has -2 + 0.5 * 1 = -1.5, row 2 has no clean response: -3, row 3: -4 + 0.5 * 6 = -1."""
    terms = rapidun(outputs([2.0, 3.0, 4.0], [1.0, 6.0], [True, False, True]), Coefficients())
    assert terms.values.tolist() == [-1.5, -3.0, -1.0]
    assert terms.capped.tolist() == [False, False, False]


def test_rapidun_without_any_clean_response_is_ascent_alone() -> None:
    given = outputs([2.0, 3.0], None, [False, False])
    assert torch.equal(rapidun(given, Coefficients()).values, ga(given, Coefficients()).values)


def test_ga_and_graddiff_by_hand() -> None:
    """-alpha * l: 2 * 1.5 = 3."""
    given = outputs([1.5, 0.0], None, [False, False])
    for objective in (ga, graddiff):
        assert objective(given, Coefficients()).values.tolist() == [-1.5, 0.0]
        assert objective(given, Coefficients(ascent_alpha=2.0)).values.tolist() == [-3.0, 0.0]


def test_idk_sft_is_cross_entropy_whatever_the_coefficients() -> None:
    given = ForgetOutputs(None, responses([0.5, 2.0]), torch.tensor([True, True]))
    assert idk_sft(given, Coefficients(ascent_alpha=3.0, descent_beta=9.0, loss_cap=0.1)).values.tolist() == [0.5, 2.0]


def test_loss_cap_stops_the_gradient_of_the_rows_beyond_it_only() -> None:
    """Cap 2: rows 1 and 3 (1 and exactly 2) ascend with slope -1, row 2 (5) is held at -2 with slope 0."""
    losses = torch.tensor([1.0, 5.0, 2.0], requires_grad=True)
    terms = ga(outputs(losses, None, [False] * 3), Coefficients(loss_cap=2.0))
    assert terms.values.tolist() == [-1.0, -2.0, -2.0]
    assert terms.capped.tolist() == [False, True, False]
    terms.values.sum().backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [-1.0, 0.0, -1.0]


def test_loss_cap_leaves_the_descent_alone() -> None:
    clean = torch.tensor([7.0], requires_grad=True)
    terms = rapidun(outputs([9.0], clean, [True]), Coefficients(loss_cap=2.0))
    terms.values.sum().backward()
    assert clean.grad is not None
    assert clean.grad.tolist() == [0.5]


def test_weighted_mean_by_hand() -> None:
    """(0.5 * 2 + 1.5 * 4) / 4 = 1.75, with 4 examples of which two are here."""
    assert weighted_mean(torch.tensor([2.0, 4.0]), torch.tensor([0.5, 1.5]), num_examples=4).item() == 1.75


def test_unit_weights_give_the_unweighted_form() -> None:
    terms = torch.rand(5, generator=torch.Generator().manual_seed(0))
    assert weighted_mean(terms, torch.ones(5), num_examples=5).item() == pytest.approx(terms.mean().item(), rel=1e-7)


def test_permuting_rows_with_their_weights_changes_nothing() -> None:
    order = torch.tensor([2, 0, 1])
    losses, weights = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.25, 0.5, 2.25])
    has_clean = torch.tensor([True, False, True])
    clean = torch.tensor([0.5, 4.0])
    first = rapidun(outputs(losses, clean, has_clean.tolist()), Coefficients())
    # in the new order row 2 (clean 4.0) stands before row 0 (clean 0.5)
    second = rapidun(outputs(losses[order], clean.flip(0), has_clean[order].tolist()), Coefficients())
    a = weighted_mean(first.values, weights, num_examples=3)
    b = weighted_mean(second.values, weights[order], num_examples=3)
    assert torch.equal(second.values, first.values[order])
    assert a.item() == pytest.approx(b.item(), rel=1e-6)


def test_retain_kl_by_hand() -> None:
    """r = (3/4, 1/4), p = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2); p = r at the second: the mean halves it."""
    logits = torch.tensor([[[0.0, 0.0], [3.0, 1.0], [5.0, -5.0]]])
    reference = torch.tensor([[[math.log(3.0), 0.0], [3.0, 1.0], [-5.0, 5.0]]])
    labels = torch.tensor([[-100, 1, 0]])
    value = retain_kl(judged(logits, labels, reference))
    assert value.tolist() == pytest.approx([(0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2], rel=1e-6)


def test_retain_kl_agrees_with_a_slow_float64_version_and_ignores_padding() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, reference = torch.randn(2, 3, 6, 7, generator=generator)
    labels = torch.tensor([[-100, -100, 3, 4, 5, 6], [-100, 1, 2, -100, -100, -100], [0, 1, 2, 3, -100, -100]])
    slow = []
    for row in range(3):
        positions = [t for t in range(1, 6) if labels[row, t] != -100]
        total = 0.0
        for t in positions:
            p = torch.softmax(logits[row, t - 1].double(), dim=0)
            r = torch.softmax(reference[row, t - 1].double(), dim=0)
            total += sum((r[v] * (r[v] / p[v]).log()).item() for v in range(7))
        slow.append(total / len(positions))
    fast = retain_kl(judged(logits, labels, reference))
    assert fast.tolist() == pytest.approx(slow, rel=1e-5)
    padded = [torch.nn.functional.pad(x, (0, 0, 0, 4), value=9.0) for x in (logits, reference)]
    longer = torch.nn.functional.pad(labels, (0, 4), value=-100)
    assert torch.allclose(retain_kl(judged(padded[0], longer, padded[1])), fast, rtol=1e-6)


def test_retain_kl_is_zero_with_zero_gradient_at_the_reference() -> None:
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(2)).requires_grad_()
    labels = torch.tensor([[-100, 1, 2, 3], [-100, -100, 0, -100]])
    value = retain_kl(judged(logits, labels, logits.detach()))
    assert value.abs().max().item() <= 1e-7
    value.sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max().item() <= 1e-7


def test_retain_cross_entropy_is_the_shared_loss() -> None:
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([[-100, 1, 2, 3], [-100, -100, 0, -100]])
    losses = example_cross_entropy(logits, labels)
    assert torch.equal(retain_cross_entropy(Responses(losses)), losses)
