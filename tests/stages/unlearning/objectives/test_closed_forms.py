"""Every objective against the slow closed form: values, gradients by finite differences, padding and batch split."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import rapidun
from rapidun.stages.unlearning.objectives.activation import direction
from rapidun.stages.unlearning.objectives.base import weighted_mean
from tests.stages.unlearning.objectives import slow
from tests.stages.unlearning.objectives.conftest import Batch, make_batch

U = direction(4, seed=3)
CASES: list[tuple[str, dict[str, Any]]] = [
    ("rapidun", {}),
    ("rapidun", {"ascent_alpha": 0.3, "descent_beta": 2.0}),
    ("ga", {}),
    ("ga", {"ascent_alpha": 2.0}),
    ("graddiff", {}),
    ("idk_sft", {}),
    ("npo", {}),
    ("npo", {"beta": 1.5}),
    ("simnpo", {}),
    ("simnpo", {"beta": 0.7, "margin": 2.1}),
    ("dpo", {}),
    ("dpo", {"beta": 2.0}),
    ("undial", {}),
    ("undial", {"beta": 0.0}),
    ("wga", {}),
    ("wga", {"beta": 1.0}),
    ("satimp", {}),
    ("satimp", {"b1": 0.5, "b2": 0.25}),
    ("ceu", {}),
    ("ceu", {"k": 0}),
    ("ceu", {"k": 2}),
    ("pdu", {}),
    ("rmu", {"direction": U}),
    ("rmu", {"direction": U, "steering_coeff": 0.0}),
    ("flat", {}),
    ("flat", {"divergence": "kl"}),
    ("flat", {"divergence": "js"}),
    ("flat", {"divergence": "pearson"}),
]
IDS = [name + "".join(f" {key}={value}" for key, value in hyper.items() if key != "direction") for name, hyper in CASES]
each = pytest.mark.parametrize(("name", "hyper"), CASES, ids=IDS)


def terms(name: str, batch: Batch, hyper: dict[str, Any]) -> Tensor:
    return rapidun.forget_terms(name, batch.logits, batch.labels, **batch.inputs, **hyper)


def rows_of(batch: Batch) -> list[slow.Row]:
    return [slow.Row(**{name: values[i].tolist() for name, values in batch._asdict().items()}) for i in range(5)]


def plainly(name: str, batch: Batch, frozen: Batch, hyper: dict[str, Any]) -> list[float]:
    given = hyper | ({"direction": U.tolist()} if name == "rmu" else {})
    pairs = zip(rows_of(batch), rows_of(frozen), strict=True)
    return [slow.FORGET[name](row, held, **given) for row, held in pairs]


def differences(batch: Batch, key: str, value: Callable[[Batch], float], step: float = 1e-5) -> Tensor:
    """Central differences of a number of the batch with respect to one of its tensors."""
    tensor = getattr(batch, key)
    found = torch.zeros_like(tensor).flatten()
    for place in range(len(found)):
        ends = []
        for sign in (1.0, -1.0):
            moved = tensor.clone()
            moved.flatten()[place] += sign * step
            ends.append(value(batch._replace(**{key: moved})))
        found[place] = (ends[0] - ends[1]) / (2 * step)
    return found.view_as(tensor)


@each
def test_values_are_those_of_the_closed_form(name: str, hyper: dict[str, Any], batch: Batch) -> None:
    found = terms(name, batch, hyper)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(plainly(name, batch, batch, hyper), rel=1e-12, abs=1e-12)


@each
def test_gradients_are_the_closed_form_s_finite_differences(name: str, hyper: dict[str, Any]) -> None:
    """Rows weighted unevenly; what the papers hold fixed (the weights of wga and satimp, the target of ceu) is held."""
    full = make_batch(2)
    # one long row and the one-token row are enough: differences are slow
    batch = Batch(*(values[[0, 1]] for values in full))
    weights = [0.5, 1.75]
    keys = ("logits", "clean_logits", "hidden", "ref_logits", "clean_ref_logits")
    leaves = {key: getattr(batch, key).clone().requires_grad_() for key in keys}
    total = (terms(name, batch._replace(**leaves), hyper) * torch.tensor(weights, dtype=torch.float64)).sum()
    total.backward()
    given = hyper | ({"direction": U.tolist()} if name == "rmu" else {})
    frozen = [slow.Row(**{key: values[i].tolist() for key, values in batch._asdict().items()}) for i in (0, 1)]

    def value(moved: Batch) -> float:
        rows = [slow.Row(**{key: values[i].tolist() for key, values in moved._asdict().items()}) for i in (0, 1)]
        return sum(
            w * slow.FORGET[name](row, held, **given) for w, row, held in zip(weights, rows, frozen, strict=True)
        )

    for key in ("logits", "clean_logits", "hidden"):
        gradient = leaves[key].grad
        found = torch.zeros_like(leaves[key]) if gradient is None else gradient
        assert torch.allclose(found, differences(batch, key, value), rtol=1e-6, atol=1e-8), key
    # nothing flows into the reference
    assert leaves["ref_logits"].grad is None and leaves["clean_ref_logits"].grad is None


@each
def test_padding_and_batch_split_change_nothing(name: str, hyper: dict[str, Any], batch: Batch) -> None:
    whole = terms(name, batch, hyper)
    padded = {}
    for key, values in batch._asdict().items():
        is_labels = key.endswith("labels")
        width = (0, 3) if is_labels else (0, 0, 0, 3)
        padded[key] = torch.nn.functional.pad(values, width, value=-100 if is_labels else 1e3)
    assert (terms(name, Batch(**padded), hyper) - whole).abs().max() <= 1e-10
    # what stands at positions that predict no response token has no part, not a number or not
    odd = batch.logits.clone()
    idle = torch.ones(batch.labels.shape, dtype=torch.bool)
    idle[:, :-1] = batch.labels[:, 1:] == -100
    odd[idle] = float("nan")
    assert torch.equal(terms(name, batch._replace(logits=odd), hyper), whole)
    alone = [terms(name, Batch(*(values[i : i + 1] for values in batch)), hyper) for i in range(5)]
    assert (torch.cat(alone) - whole).abs().max() <= 1e-10
    order = torch.tensor([4, 2, 0, 1, 3])
    assert (terms(name, Batch(*(values[order] for values in batch)), hyper) - whole[order]).abs().max() <= 1e-10


@each
def test_unit_weights_give_the_unweighted_form(name: str, hyper: dict[str, Any], batch: Batch) -> None:
    found = terms(name, batch, hyper)
    weighted = weighted_mean(found, torch.ones(5, dtype=torch.float64), num_examples=5)
    expected = sum(plainly(name, batch, batch, hyper)) / 5
    assert weighted.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_extreme_logits_give_finite_numbers(name: str, hyper: dict[str, Any], dtype: torch.dtype) -> None:
    """Probabilities of 0 and of 1: logits of 10,000 on another token, or on the label."""
    batch = make_batch(0)
    for on_label in (False, True):
        logits, clean = (torch.zeros_like(values) for values in (batch.logits, batch.clean_logits))
        for values, labels in ((logits, batch.labels), (clean, batch.clean_labels)):
            for row, column in (labels != -100).nonzero().tolist():
                values[row, column - 1, (int(labels[row, column]) + (not on_label)) % 11] = 1e4
        logits, clean = logits.to(dtype).requires_grad_(), clean.to(dtype).requires_grad_()
        held = {key: getattr(batch, key).to(dtype) for key in ("ref_logits", "clean_ref_logits", "hidden")}
        found = terms(name, batch._replace(logits=logits, clean_logits=clean, **held), hyper)
        assert torch.isfinite(found).all()
        if found.requires_grad:
            found.sum().backward()
        for leaf in (logits, clean):
            assert leaf.grad is None or torch.isfinite(leaf.grad).all()


@each
def test_bfloat16_is_computed_in_float32(name: str, hyper: dict[str, Any], batch: Batch) -> None:
    rounded = {key: values.bfloat16() for key, values in batch._asdict().items() if values.is_floating_point()}
    low = terms(name, batch._replace(**rounded), hyper)
    assert low.dtype == torch.float32
    exact = terms(name, batch._replace(**{key: values.double() for key, values in rounded.items()}), hyper)
    assert low.double().tolist() == pytest.approx(exact.tolist(), rel=2e-5, abs=2e-5)


def leaves_of(batch: Batch) -> Batch:
    """The model's own tensors as leaves that take a gradient."""
    own = {name: getattr(batch, name).clone().requires_grad_() for name in ("logits", "clean_logits", "hidden")}
    return batch._replace(**own)


@each
def test_a_banned_token_is_as_if_it_were_not_there(name: str, hyper: dict[str, Any], batch: Batch) -> None:
    """A twelfth token of logit -inf, at first under the model and its reference, then under the reference alone."""
    few = leaves_of(batch)
    wanted = terms(name, few, hyper)
    wide = {
        key: torch.nn.functional.pad(getattr(batch, key), (0, 1), value=-torch.inf)
        for key in ("logits", "ref_logits", "clean_logits", "clean_ref_logits")
    }
    many = leaves_of(batch._replace(**wide))
    found = terms(name, many, hyper)
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)
    for values in (wanted, found):
        if values.requires_grad:
            values.sum().backward()
    for key in ("logits", "clean_logits"):
        gradient, less = getattr(many, key).grad, getattr(few, key).grad
        assert (gradient is None) == (less is None)
        if gradient is not None:
            assert torch.allclose(gradient[..., :11], less, rtol=1e-10, atol=1e-14) and not gradient[..., 11].any()
    # the model may still give what its reference bans
    spoken = many._replace(logits=torch.nn.functional.pad(batch.logits, (0, 1)).requires_grad_())
    values = terms(name, spoken, hyper)
    assert torch.isfinite(values).all()
    if values.requires_grad:
        values.sum().backward()
    assert spoken.logits.grad is None or torch.isfinite(spoken.logits.grad).all()


def test_kl_of_banned_tokens(batch: Batch) -> None:
    """Banned by both: as if it were not there. By the reference alone: 0 log 0 = 0. By the model alone: infinite."""
    few, kept = batch.logits.clone().requires_grad_(), batch.ref_logits

    def banned(values: Tensor, value: float = -torch.inf) -> Tensor:
        return torch.nn.functional.pad(values, (0, 1), value=value)

    wanted = rapidun.retain_terms("kl", few, batch.labels, ref_logits=kept)
    wanted.sum().backward()
    many = banned(batch.logits).requires_grad_()
    found = rapidun.retain_terms("kl", many, batch.labels, ref_logits=banned(kept))
    found.sum().backward()
    assert torch.allclose(found, wanted, rtol=1e-12) and many.grad is not None and few.grad is not None
    assert torch.allclose(many.grad[..., :11], few.grad, rtol=1e-10, atol=1e-14) and not many.grad[..., 11].any()
    spoken = banned(batch.logits, 0.0)
    nearly = rapidun.retain_terms("kl", spoken, batch.labels, ref_logits=banned(kept, -600.0))
    assert torch.allclose(rapidun.retain_terms("kl", spoken, batch.labels, ref_logits=banned(kept)), nearly, rtol=1e-12)
    mute = rapidun.retain_terms("kl", banned(batch.logits), batch.labels, ref_logits=banned(kept, 0.0))
    assert mute.tolist() == [torch.inf, torch.inf, torch.inf, 0.0, torch.inf]


def test_a_banned_response_token_is_the_limit_of_a_rare_one(batch: Batch) -> None:
    """p -> 0: ascent has no floor, what is weighted by p^b with b > 0 and what compares by a sigmoid goes to 0."""
    logits = batch.logits.clone()
    logits[1, 2, 7] = -torch.inf
    limits = {"ga": -torch.inf, "npo": 0.0, "simnpo": 0.0, "dpo": 0.0, "wga": 0.0, "satimp": 0.0, "undial": torch.inf}
    for name, limit in limits.items():
        leaf = logits.clone().requires_grad_()
        found = terms(name, batch._replace(logits=leaf), {})
        assert found[1].item() == limit, name
        found.sum().backward()
        assert leaf.grad is not None and torch.isfinite(leaf.grad).all(), name
    assert terms("wga", batch._replace(logits=logits), {"beta": 0.0})[1].item() == -torch.inf


@each
def test_gradients_may_be_taken_row_by_row_and_twice(name: str, hyper: dict[str, Any], batch: Batch) -> None:
    """Nothing that backward needs is written over: retain_graph gives the rows' gradients one after the other."""
    leaf = leaves_of(batch)
    found = terms(name, leaf, hyper)
    inputs = [leaf.logits, leaf.clean_logits, leaf.hidden]

    def gradients(value: Tensor) -> list[Tensor]:
        taken = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(one) if got is None else got for one, got in zip(inputs, taken, strict=True)]

    whole = gradients(found.sum())
    rows = [gradients(one) for one in found]
    for place, wanted in enumerate(whole):
        assert torch.allclose(sum((row[place] for row in rows), torch.zeros_like(wanted)), wanted, rtol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(gradients(found.sum()), whole, strict=True))


@each
def test_what_stands_where_nothing_is_predicted_moves_no_gradient(
    name: str, hyper: dict[str, Any], batch: Batch
) -> None:
    """NaN at idle positions, on the left, between and on the right; strides of any kind, labels of 32 bits."""
    leaf, odd = leaves_of(batch), {}
    for key, values in batch._asdict().items():
        if key.endswith("labels"):
            odd[key] = values.int().t().contiguous().t()
            continue
        labels = batch.clean_labels if key.startswith("clean_") else batch.labels
        idle = torch.ones(labels.shape, dtype=torch.bool)
        idle[:, :-1] = labels[:, 1:] == -100
        strided = values.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        odd[key] = strided.masked_fill(idle[:, :, None], torch.nan)
    torn = Batch(**odd)
    torn = torn._replace(**{key: getattr(torn, key).requires_grad_() for key in ("logits", "clean_logits", "hidden")})
    wanted, found = terms(name, leaf, hyper), terms(name, torn, hyper)
    assert torch.equal(found, wanted)
    for values in (wanted, found):
        values.sum().backward()
    for key in ("logits", "clean_logits", "hidden"):
        one, other = getattr(torn, key).grad, getattr(leaf, key).grad
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other)), key


@each
def test_softmax_objectives_do_not_move_with_the_logits_level(name: str, hyper: dict[str, Any], batch: Batch) -> None:
    """A constant added at each position is no change of the model; npo on raw logits would move."""
    moved = {key: getattr(batch, key) + 5.0 for key in ("logits", "ref_logits", "clean_logits", "clean_ref_logits")}
    moved["logits"] = moved["logits"] + torch.arange(7, dtype=torch.float64)[None, :, None]
    assert torch.allclose(terms(name, batch._replace(**moved), hyper), terms(name, batch, hyper), rtol=1e-10)


@pytest.mark.parametrize("kind", slow.RETAIN)
def test_retain_terms_are_those_of_the_closed_form(kind: str, batch: Batch) -> None:
    def retained(given: Batch) -> Tensor:
        extra = {"ref_logits": given.ref_logits, "hidden": given.hidden, "ref_hidden": given.ref_hidden}
        return rapidun.retain_terms(kind, given.logits, given.labels, **extra)

    found = retained(batch)
    assert found.tolist() == pytest.approx([slow.RETAIN[kind](row) for row in rows_of(batch)], rel=1e-12, abs=1e-12)
    if kind == "ce":
        return
    own, known = ("logits", "ref_logits") if kind == "kl" else ("hidden", "ref_hidden")
    leaf = getattr(batch, own).clone().requires_grad_()
    held = getattr(batch, known).clone().requires_grad_()
    retained(batch._replace(**{own: leaf, known: held})).sum().backward()
    assert leaf.grad is not None and held.grad is None
    wanted = differences(batch, own, lambda moved: sum(slow.RETAIN[kind](row) for row in rows_of(moved)))
    assert torch.allclose(leaf.grad, wanted, rtol=1e-6, atol=1e-8)
    at_reference = retained(batch._replace(**{own: getattr(batch, known)}))
    assert at_reference.abs().max() <= 1e-12
