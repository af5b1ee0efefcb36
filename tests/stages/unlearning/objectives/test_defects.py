"""Known defects of public implementations: the defective formula gives another number, ours is the paper's."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import rapidun
from rapidun.stages.unlearning.objectives.activation import direction
from tests.stages.unlearning.objectives import slow
from tests.stages.unlearning.objectives.conftest import Batch, make_batch


@pytest.fixture
def full() -> Batch:
    """Without the row that has no response, which makes some of the defective formulas divide by zero."""
    return Batch(*(values[[0, 1, 2, 4]] for values in make_batch(4)))


def ours(name: str, batch: Batch, **hyper: object) -> Tensor:
    return rapidun.forget_terms(name, batch.logits, batch.labels, **batch.inputs, **hyper)


def test_rmu_divides_each_row_by_its_own_length(full: Batch) -> None:
    """open-unlearning: (s [B] / n [B, 1]).mean() = mean over i, j of s_i / n_j."""
    u = direction(4, seed=0)
    squares = (full.hidden - 20.0 * u).square().mean(dim=2)
    mask = torch.zeros(full.labels.shape, dtype=torch.float64)
    mask[:, :-1] = (full.labels[:, 1:] != -100).double()
    sums, counts = (squares * mask).sum(dim=1), mask.sum(dim=1, keepdim=True)
    defective = (sums / counts).mean()
    right = (sums / counts.squeeze(1)).mean()
    found = ours("rmu", full, direction=u).mean()
    assert found.item() == pytest.approx(right.item(), rel=1e-12)
    assert abs(defective.item() / right.item() - 1) > 0.01


def test_rmu_steers_the_positions_that_predict(full: Batch) -> None:
    """open-unlearning's mask is that of the labels: it steers the states one position too late."""
    hidden = full.hidden.clone().requires_grad_()
    ours("rmu", full._replace(hidden=hidden)).sum().backward()
    assert hidden.grad is not None
    touched = hidden.grad.abs().sum(dim=2) > 0
    predicting = torch.zeros_like(touched)
    predicting[:, :-1] = full.labels[:, 1:] != -100
    assert torch.equal(touched, predicting)
    assert not torch.equal(touched, full.labels != -100)


def test_pdu_looks_at_positions_that_predict_a_response_token(full: Batch) -> None:
    """open-unlearning: the mean over every position, prompt and padding included."""
    margins = (full.logits.amax(dim=2) - full.logits.mean(dim=2)).square()
    everywhere = margins.mean(dim=1)
    unshifted = torch.stack([row[kept].mean() for row, kept in zip(margins, full.labels != -100, strict=True)])
    found = ours("pdu", full)
    assert (found - everywhere).abs().min() > 1e-2
    assert (found - unshifted).abs().min() > 1e-2
    logits = full.logits.clone().requires_grad_()
    ours("pdu", full._replace(logits=logits)).sum().backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(dim=2) > 0
    assert torch.equal(touched[:, :-1], full.labels[:, 1:] != -100)
    assert not touched[:, -1].any()


def test_undial_lowers_no_logit_where_there_is_no_label(full: Batch) -> None:
    """open-unlearning indexes the vocabulary by -100: an error below 100 words, the 100th from the end above."""
    shifted = full.labels[:, 1:]
    mask = torch.zeros(len(shifted), shifted.shape[1], 11)
    rows, columns = torch.arange(len(shifted))[:, None, None], torch.arange(shifted.shape[1])[None, :, None]
    with pytest.raises(IndexError):
        mask[rows, columns, shifted.unsqueeze(-1)] = 1.0
    wide = torch.zeros(len(shifted), shifted.shape[1], 128)
    wide[rows, columns, shifted.unsqueeze(-1)] = 1.0
    # row 1 has one response token; its other positions have their 28th logit lowered
    assert int(wide[1, :, 28].sum()) == 5
    assert ours("undial", full).tolist() == pytest.approx([slow.undial(row, row) for row in rows_of_four(full)])


def test_undial_averages_over_the_response_alone(full: Batch) -> None:
    """open-unlearning takes the mean over all shifted positions of the batch."""
    labels = full.labels[:, 1:]
    onehot = F.one_hot(labels.clamp(min=0), 11) * (labels != -100).unsqueeze(-1)
    target = (full.ref_logits[:, :-1] - 10.0 * onehot).softmax(dim=-1)
    each = -(target * full.logits[:, :-1].log_softmax(dim=-1)).sum(dim=-1)
    mask = labels != -100
    right = torch.stack([row[kept].mean() for row, kept in zip(each, mask, strict=True)])
    assert torch.allclose(ours("undial", full), right, rtol=1e-12)
    assert abs(each.mean() - right.mean()) > 1e-2


@pytest.mark.parametrize("name", ["wga", "satimp", "ceu"])
def test_rows_are_averaged_one_by_one(name: str, full: Batch) -> None:
    """open-unlearning pools the tokens of the batch: a row's part depends on its neighbours' lengths."""
    found = ours(name, full)
    counts = (full.labels != -100).sum(dim=1) - (1 if name == "ceu" else 0)
    pooled = (found * counts).sum() / counts.sum()
    assert found.mean().item() == pytest.approx(
        sum(slow.FORGET[name](row, row) for row in rows_of_four(full)) / 4, rel=1e-12
    )
    assert abs(pooled / found.mean() - 1) > 1e-2


def test_retain_kl_leaves_prompt_and_padding_out(full: Batch) -> None:
    """open-unlearning: kl_div with batchmean over every position of the batch."""
    p, r = full.logits.log_softmax(dim=-1), full.ref_logits.log_softmax(dim=-1)
    defective = F.kl_div(p.view(-1, 11), r.view(-1, 11), reduction="batchmean", log_target=True)
    found = rapidun.retain_terms("kl", full.logits, full.labels, ref_logits=full.ref_logits)
    assert found.tolist() == pytest.approx([slow.kl(row) for row in rows_of_four(full)], rel=1e-12)
    assert abs(defective - found.mean()) > 1e-2


def test_npo_takes_log_probabilities(full: Batch) -> None:
    """Some public MUSE code sums raw logits of the labels; it moves with a constant that changes no probability."""

    def raw(batch: Batch) -> Tensor:
        labels = batch.labels[:, 1:]
        chosen = labels.clamp(min=0).unsqueeze(-1)
        mask = labels != -100
        own = (batch.logits[:, :-1].gather(2, chosen).squeeze(2) * mask).sum(dim=1)
        known = (batch.ref_logits[:, :-1].gather(2, chosen).squeeze(2) * mask).sum(dim=1)
        return -20.0 * F.logsigmoid(-0.1 * (own - known))

    moved = full._replace(logits=full.logits + 3.0)
    assert (raw(moved) - raw(full)).abs().min() > 0.1
    assert torch.allclose(ours("npo", moved), ours("npo", full), rtol=1e-12)
    assert (raw(full) - ours("npo", full)).abs().max() > 0.1


def test_dpo_has_no_factor_of_two_over_beta(full: Batch) -> None:
    right = [slow.dpo(row, row) for row in rows_of_four(full)]
    assert ours("dpo", full).tolist() == pytest.approx(right, rel=1e-12)
    assert ours("dpo", full)[0].item() * 20 != pytest.approx(right[0])


def test_simnpo_does_not_multiply_its_margin_by_beta(full: Batch) -> None:
    """The public code: sigmoid(b (l - m)); the paper: sigmoid(b l - m). They meet at m = b * delta."""
    ce = rapidun.retain_terms("ce", full.logits, full.labels)
    public = -2.0 / 0.7 * F.logsigmoid(0.7 * (ce - 3.0))
    assert (ours("simnpo", full, beta=0.7, margin=3.0) - public).abs().min() > 1e-2
    assert torch.allclose(ours("simnpo", full, beta=0.7, margin=2.1), public, rtol=1e-12)


def test_flat_averages_probabilities_over_the_response(full: Batch) -> None:
    """The authors' code counts every other position as probability 0, and takes tanh of the batch's mean."""

    def everywhere(logits: Tensor, labels: Tensor) -> Tensor:
        chosen = labels[:, 1:].clamp(min=0).unsqueeze(-1)
        p = logits[:, :-1].softmax(dim=-1).gather(2, chosen).squeeze(2) * (labels[:, 1:] != -100)
        return p.mean()

    forget, template = everywhere(full.logits, full.labels), everywhere(full.clean_logits, full.clean_labels)
    defective = (forget.tanh() - template.tanh()) / 2
    found = ours("flat", full)
    assert found.tolist() == pytest.approx([slow.flat(row, row) for row in rows_of_four(full)], rel=1e-12)
    assert abs(defective / found.mean() - 1) > 0.05


def rows_of_four(batch: Batch) -> list[slow.Row]:
    return [slow.Row(**{name: values[i].tolist() for name, values in batch._asdict().items()}) for i in range(4)]
