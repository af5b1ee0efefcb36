"""4-bit and 8-bit layers: the gradient with respect to the full weight, which is never formed nor trained."""

import copy

import pytest
import torch
from torch import nn

from rapidun.config.influence import ParameterSet
from rapidun.stages.influence.gradients.params import num_numbers, select_parameters
from rapidun.stages.influence.gram import exact_gram

bnb = pytest.importorskip("bitsandbytes")


@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes")
def test_four_bit_layers_equal_their_dequantised_weights(make_model, rows, batches_of, autograd_gradients):
    """NF4 layers of the MLP against autograd on a plain model that holds the dequantised weights."""
    model = make_model(dtype=torch.float32, hidden_size=64, intermediate_size=64)
    plain = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and ".mlp." in name:
            layer = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
            layer.weight = bnb.nn.Params4bit(module.weight.data.clone(), requires_grad=False, quant_type="nf4")
            model.set_submodule(name, layer.to("cpu"))
            weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            assert layer.weight.shape != weight.shape
            plain.get_submodule(name).weight.data.copy_(weight)
    parameters = select_parameters(model, ParameterSet.all_linear)
    assert num_numbers(parameters) == num_numbers(select_parameters(plain, ParameterSet.all_linear))
    batches = batches_of(rows, [[0, 1, 2], [3, 4, 5, 6]])
    gram = exact_gram(model, parameters, batches, row_names=[f"row {i}" for i in range(7)], memory_bytes=1e9).gram
    plain.double()
    truth = autograd_gradients(plain, select_parameters(plain, ParameterSet.all_linear), rows)
    norms = truth.norm(dim=1)
    assert ((gram - truth @ truth.T).abs() / torch.outer(norms, norms)).max() < 1e-4
