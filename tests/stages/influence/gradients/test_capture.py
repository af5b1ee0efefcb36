"""What the capture leaves behind: nothing, also after an error."""

import copy

import pytest
import torch
from torch import nn

from rapidun.base.errors import ModelError
from rapidun.config.influence import ParameterSet
from rapidun.models.losses import example_cross_entropy
from rapidun.stages.influence.gradients.capture import Factors, GradientCapture, frozen
from rapidun.stages.influence.gradients.params import TrackedParameter, select_parameters


def _state(model):
    return (
        {name: p.requires_grad for name, p in model.named_parameters()},
        {name: p.grad for name, p in model.named_parameters()},
        {name: m.training for name, m in model.named_modules()},
        {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()},
        {name: id(m) for name, m in model.named_modules()},
    )


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_before(make_model, rows, batches_of, fails):
    """Mixed modes, frozen and trainable parameters, a hook of the user's own: all survive."""
    model = make_model(tied=True).train()
    model.model.layers[1].eval()
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    calls = []
    model.model.norm.register_forward_hook(lambda *args: calls.append(1))
    before, weights = _state(model), copy.deepcopy(model.state_dict())
    batch = batches_of(rows, [[0, 1, 2]])[0].tensors

    def sink(parameter, piece):
        if fails:
            raise KeyError("stop")

    if fails:
        with (
            pytest.raises(KeyError),
            GradientCapture(model, select_parameters(model, ParameterSet.all_linear), sink) as capture,
        ):
            capture.run(batch)
    else:
        with GradientCapture(model, select_parameters(model, ParameterSet.all_linear), sink) as capture:
            capture.run(batch)
    assert _state(model) == before
    assert calls == [1]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name])


def test_frozen_restores_after_an_error(make_model):
    model = make_model().train()
    before = _state(model)
    with pytest.raises(KeyError), frozen(model):
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        raise KeyError("stop")
    assert _state(model) == before


def test_capture_works_under_no_grad(make_model, rows, batches_of):
    model = make_model()
    pieces = []
    with (
        torch.no_grad(),
        GradientCapture(
            model, select_parameters(model, ParameterSet.mlp), lambda parameter, piece: pieces.append(piece)
        ) as capture,
    ):
        capture.run(batches_of(rows, [[0, 1]])[0].tensors)
    assert len(pieces) == 6


def test_losses_are_the_shared_cross_entropy(make_model, rows, batches_of):
    """The head at labelled positions only gives the same losses as the whole logits."""
    model = make_model()
    batch = batches_of(rows, [[0, 1, 2, 3, 4, 5, 6]])[0].tensors
    with GradientCapture(model, select_parameters(model, ParameterSet.mlp), lambda p, g: None) as capture:
        losses = capture.run(batch)
        sums = capture.run(batch, reduction="sum")
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.detach()
    torch.testing.assert_close(losses, example_cross_entropy(logits, batch["labels"]))
    counts = (batch["labels"] != -100).sum(dim=1)
    torch.testing.assert_close(sums, losses * counts)


def test_without_a_known_head_all_positions_are_used(make_model, rows, batches_of, monkeypatch):
    model = make_model()
    parameters = select_parameters(model, ParameterSet.regex, regex="lm_head|.*up_proj")
    batch = batches_of(rows, [[0, 1, 2]])[0].tensors

    def gradients():
        found = {}
        with GradientCapture(model, parameters, lambda parameter, piece: found.update({parameter.name: piece})) as c:
            losses = c.run(batch)
        whole = {p.name: (slice(0, p.shape[0]), slice(0, p.shape[1])) for p in parameters}
        return losses, {n: piece.product(*whole[n], dtype=torch.float64) for n, piece in found.items()}

    packed_losses, packed = gradients()
    monkeypatch.setattr(type(model), "get_output_embeddings", lambda self: None)
    losses, full = gradients()
    torch.testing.assert_close(losses, packed_losses)
    for name, gradient in full.items():
        torch.testing.assert_close(gradient, packed[name])


class _Flat(nn.Module):
    """A language model that runs one layer on [B * T, H], and one on a mixture of the rows."""

    def __init__(self, *, mixes: bool) -> None:
        super().__init__()
        self.embed, self.inner, self.out = nn.Embedding(40, 8), nn.Linear(8, 8), nn.Linear(8, 40)
        self.mixes = mixes

    def forward(self, input_ids, attention_mask, use_cache):
        x = self.embed(input_ids)
        flat = x.flatten(0, 1)
        flat = torch.cat([self.inner(flat[:3]), flat[3:]]) if self.mixes else self.inner(flat)
        return type("Output", (), {"logits": self.out(flat.unflatten(0, x.shape[:2]))})


def test_flattened_tokens_are_told_apart(rows, batches_of):
    torch.manual_seed(0)
    model = _Flat(mixes=False).double()
    parameters = select_parameters(model, ParameterSet.regex, regex="inner")
    batch = batches_of(rows, [[0, 1, 2]])[0].tensors
    pieces = []
    with GradientCapture(model, parameters, lambda parameter, piece: pieces.append(piece)) as capture:
        capture.run(batch)
    assert pieces[0].a.shape == (3, 13, 8)
    output = model(batch["input_ids"], batch["attention_mask"], use_cache=False)
    loss = example_cross_entropy(output.logits, batch["labels"])[1]
    (expected,) = torch.autograd.grad(loss, [model.inner.weight])
    gradient = pieces[0].product(slice(0, 8), slice(0, 8), dtype=torch.float64)[1]
    torch.testing.assert_close(gradient, expected)


def test_rows_that_cannot_be_told_apart_are_refused(rows, batches_of):
    model = _Flat(mixes=True).double()
    parameters = select_parameters(model, ParameterSet.regex, regex="inner")
    with (
        pytest.raises(ModelError, match=r"\[examples, tokens, features\], got \[3, 8\] at inner\.weight"),
        GradientCapture(model, parameters, lambda parameter, piece: None) as capture,
    ):
        capture.run(batches_of(rows, [[0, 1, 2]])[0].tensors)


def test_a_layer_that_runs_twice_adds_up(rows, batches_of):
    class Twice(_Flat):
        def forward(self, input_ids, attention_mask, use_cache):
            x = torch.tanh(self.inner(self.embed(input_ids)))
            return type("Output", (), {"logits": self.out(self.inner(x))})

    torch.manual_seed(0)
    model = Twice(mixes=False).double()
    batch = batches_of(rows, [[0, 1, 2]])[0].tensors
    total = torch.zeros(3, 8, 8, dtype=torch.float64)

    def sink(parameter: TrackedParameter, piece: Factors) -> None:
        total.add_(piece.product(slice(0, 8), slice(0, 8), dtype=torch.float64))

    with GradientCapture(model, select_parameters(model, ParameterSet.regex, regex="inner"), sink) as capture:
        capture.run(batch)
    losses = example_cross_entropy(model(batch["input_ids"], None, False).logits, batch["labels"])
    for b in range(3):
        (expected,) = torch.autograd.grad(losses[b], [model.inner.weight], retain_graph=True)
        torch.testing.assert_close(total[b], expected)


def test_float16_gradients_are_scaled_back(make_model, rows, batches_of):
    narrow = make_model(dtype=torch.float16)
    wide = copy.deepcopy(narrow).double()
    found = []
    for model in (narrow, wide):
        pieces = []
        parameters = select_parameters(model, ParameterSet.regex, regex=r".*layers\.1\.mlp\.down_proj")
        with GradientCapture(model, parameters, lambda parameter, piece, pieces=pieces: pieces.append(piece)) as c:
            c.run(batches_of(rows, [[0, 1, 2]])[0].tensors)
        found.append(pieces[0].g.double())
    assert (found[0] - found[1]).norm() / found[1].norm() < 0.01
