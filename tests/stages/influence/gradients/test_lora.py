"""LoRA layers run by their formula: the gradients are those of peft's own forward pass."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rapidun.config.influence import ParameterSet
from rapidun.models.load import peft_renaming
from rapidun.stages.influence.gradients.capture import GradientCapture
from rapidun.stages.influence.gradients.lora import plain_branches
from rapidun.stages.influence.gradients.params import select_parameters
from rapidun.stages.influence.gram import exact_gram


def adapted(model, *, zero: bool = False, adapters: int = 1, **settings):
    torch.manual_seed(5)
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "up_proj", "down_proj"], **settings)
    with peft_renaming():
        model = get_peft_model(model, config)
    for number in range(1, adapters):
        with peft_renaming():
            model.add_adapter(f"other{number}", config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and not zero:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(torch.float64).eval()


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("params", [ParameterSet.lora, ParameterSet.all_linear])
def test_gradients_are_those_of_autograd(make_model, rows, batches_of, autograd_gradients, params, zero):
    """Batched, padded, through the formula; one row at a time through peft's own layers and autograd."""
    model = adapted(make_model(), zero=zero)
    parameters = select_parameters(model, params)
    assert len(plain_branches(model)) == 6
    truth = autograd_gradients(model, parameters, rows)
    found = exact_gram(
        model,
        parameters,
        batches_of(rows, [[0, 1, 2], [3, 4], [5, 6]], extra=3),
        row_names=[str(i) for i in range(len(rows))],
        memory_bytes=1e9,
    ).gram
    torch.testing.assert_close(found, truth @ truth.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("only", ["lora_A", "lora_B"])
def test_one_factor_alone(make_model, rows, batches_of, autograd_gradients, only):
    model = adapted(make_model())
    settings = {"params": ParameterSet.regex, "regex": rf".*\.{only}\..*"}
    truth = autograd_gradients(model, select_parameters(model, **settings), rows)
    found = exact_gram(
        model,
        select_parameters(model, **settings),
        batches_of(rows, [list(range(7))]),
        row_names=[str(i) for i in range(7)],
        memory_bytes=1e9,
    ).gram
    torch.testing.assert_close(found, truth @ truth.T, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize("kind", ["two adapters", "dora", "bias", "merged", "disabled"])
def test_what_the_formula_does_not_cover_runs_as_peft_has_it(make_model, rows, batches_of, kind):
    model = adapted(
        make_model(), adapters=2 if kind == "two adapters" else 1, use_dora=kind == "dora", lora_bias=kind == "bias"
    )
    if kind == "two adapters":
        model.base_model.set_adapter(["default", "other1"])
    if kind == "merged":
        model.merge_adapter()
    if kind == "disabled":
        model.base_model.disable_adapter_layers()
    assert plain_branches(model) == []
    batch = batches_of(rows, [[0, 1]])[0]
    with torch.no_grad():
        before = model(**{name: batch.tensors[name] for name in ("input_ids", "attention_mask")}).logits
    seen = []
    parameters = select_parameters(model, ParameterSet.all_linear)
    with GradientCapture(model, parameters, lambda parameter, _: seen.append(parameter.name)) as capture:
        capture.run(batch.tensors)
    assert sorted(seen) == sorted(parameter.name for parameter in parameters)
    with torch.no_grad():
        after = model(**{name: batch.tensors[name] for name in ("input_ids", "attention_mask")}).logits
    assert torch.equal(before, after)


def test_the_layers_are_as_before(make_model, rows, batches_of):
    model = adapted(make_model())
    batch = batches_of(rows, [[0, 1]])[0].tensors
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        before = model(**given).logits

    def fail(*_):
        raise KeyError("sink")

    parameters = select_parameters(model, ParameterSet.lora)
    with pytest.raises(KeyError, match="sink"), GradientCapture(model, parameters, fail) as capture:
        capture.run(batch)
    assert not any(branch.layer.disable_adapters for branch in plain_branches(model))
    assert len(plain_branches(model)) == 6
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(**given).logits, before)


def test_dropout_is_off(make_model, rows, batches_of):
    """A capture holds the model in eval mode: an adapter with dropout has the gradients of one without."""
    grams = []
    for dropout in (0.0, 0.5):
        model = adapted(make_model(), lora_dropout=dropout).train()
        parameters = select_parameters(model, ParameterSet.lora)
        found = exact_gram(
            model, parameters, batches_of(rows, [[0, 1, 2]]), row_names=["a", "b", "c"], memory_bytes=1e9
        )
        grams.append(found.gram)
    assert torch.equal(grams[0], grams[1])
