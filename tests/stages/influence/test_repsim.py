"""Hidden-state similarity against the model run one row at a time, and its poolings by hand."""

import pytest
import torch
from torch.nn import functional as F

from rapidun.base.errors import ConfigError
from rapidun.config.influence import ParameterSet, Pooling
from rapidun.stages.influence.gradients.params import select_parameters
from rapidun.stages.influence.gram import exact_gram
from rapidun.stages.influence.repsim import POOLINGS, repsim_gram

NAMES = [f"row {i}" for i in range(7)]
GROUPS = [[1, 6, 3], [0, 4], [5, 2]]


def _gram(model, batches, *, layer=-1, pooling=Pooling.response, **options):
    return repsim_gram(model, batches, row_names=NAMES, layer=layer, pooling=pooling, **options)


def test_every_pooling_is_there():
    assert set(POOLINGS) == set(Pooling)


def test_poolings_by_hand():
    """Hidden states 0 1 2 3 (padding: 9); the response is positions 1 and 2, resp. 3 and, being first, not 0.

    response: (1 + 2) / 2 = 1.5, and 3; all: (0 + 1 + 2) / 3 = 1, and (0 + 1 + 2 + 3) / 4 = 1.5; last: 2 and 3.
    """
    hidden = torch.tensor([[0.0, 1, 2, float("nan")], [0, 1, 2, 3]]).unsqueeze(2)
    labels = torch.tensor([[-100, 5, 6, -100], [4, -100, -100, 6]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    found = {p.name: POOLINGS[p](hidden, labels=labels, attention_mask=mask).flatten().tolist() for p in Pooling}
    assert found == {"response": [1.5, 3.0], "all": [1.0, 1.5], "last": [2.0, 3.0]}


@pytest.mark.parametrize("layer", [-1, 0, 1, 2])
@pytest.mark.parametrize("pooling", list(Pooling))
def test_equals_rows_run_alone(make_model, rows, batches_of, layer, pooling):
    """The hidden states of each row without padding, pooled in a loop, in float64."""
    model = make_model()
    vectors = []
    for row in rows:
        states = model(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states[layer][0]
        chosen = {
            Pooling.response: [t for t, label in enumerate(row.labels) if label != -100],
            Pooling.all: list(range(len(row.input_ids))),
            Pooling.last: [len(row.input_ids) - 1],
        }[pooling]
        vectors.append(sum(states[t] for t in chosen) / len(chosen))
    truth = torch.stack(vectors) @ torch.stack(vectors).T
    result = _gram(model, batches_of(rows, GROUPS, extra=3), layer=layer, pooling=pooling)
    torch.testing.assert_close(result.gram, truth.detach(), rtol=1e-10, atol=1e-12)
    assert result.num_passes == 1


def test_the_last_layer_stands_behind_the_final_norm(make_model, rows, batches_of):
    model = make_model()
    seen = []
    handle = model.model.norm.register_forward_hook(lambda module, args, output: seen.append(output))
    result = _gram(model, batches_of(rows, [list(range(7))]), pooling=Pooling.last)
    handle.remove()
    last = torch.stack([seen[0][i, len(row.input_ids) - 1] for i, row in enumerate(rows)])
    torch.testing.assert_close(result.gram, last @ last.T)


def test_losses_are_those_of_the_gradients(make_model, rows, batches_of):
    model = make_model()
    parameters = select_parameters(model, ParameterSet.lm_head)
    batches = batches_of(rows, GROUPS)
    for reduction in ("mean", "sum"):
        exact = exact_gram(model, parameters, batches, row_names=NAMES, memory_bytes=1e9, reduction=reduction)
        torch.testing.assert_close(_gram(model, batches, reduction=reduction).losses, exact.losses)


def test_similar_rows_are_similar(make_model, rows, batches_of):
    """A row beside its own copy: cosine 1."""
    batches = batches_of([rows[0], rows[0], *rows[2:]], GROUPS)
    vectors = _gram(make_model(), batches).gram
    cosines = vectors / torch.outer(vectors.diagonal().sqrt(), vectors.diagonal().sqrt())
    assert cosines[0, 1] == pytest.approx(1, abs=1e-9)
    assert cosines[0, 2:].max() < 0.999


def test_a_layer_that_is_not_there(make_model, rows, batches_of):
    for layer in (3, -4):
        with pytest.raises(ConfigError, match=rf"-3 <= layer < 3 for this model, got layer={layer}.*influence\.layer"):
            _gram(make_model(), batches_of(rows, GROUPS), layer=layer)


def test_the_model_is_left_as_it_was(make_model, rows, batches_of):
    model = make_model().train()
    flags = [p.requires_grad for p in model.parameters()]
    _gram(model, batches_of(rows, GROUPS))
    assert model.training and [p.requires_grad for p in model.parameters()] == flags


def test_what_is_not_finite_is_named(make_model, rows, batches_of):
    model = make_model(dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ArithmeticError, match="finite loss for every row, got nan for row 0"):
        _gram(model, batches_of(rows, GROUPS))


def test_bfloat16_is_pooled_in_float32(make_model, rows, batches_of):
    model = make_model(dtype=torch.bfloat16)
    states = model(
        **{key: value for key, value in batches_of(rows, [[2]])[0].tensors.items() if key != "labels"},
        output_hidden_states=True,
    ).hidden_states[-1][0]
    response = [t for t, label in enumerate(rows[2].labels) if label != -100]
    mean = states[response].float().mean(dim=0)
    gram = _gram(model, batches_of(rows, [[i] for i in range(7)])).gram
    assert F.mse_loss(gram[2, 2].float(), (mean @ mean).detach()) < 1e-8 * gram[2, 2] ** 2
