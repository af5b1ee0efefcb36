"""Attention written out inside a capture: the same gradients, and no mask where none is needed."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from rapidun.config.influence import ParameterSet
from rapidun.stages.influence.gradients.capture import GradientCapture
from rapidun.stages.influence.gradients.params import select_parameters

SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def make(dtype: torch.dtype, *, kind: str = "llama"):
    torch.manual_seed(0)
    if kind == "sliding":
        model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    return model.to(dtype).eval()


@pytest.mark.parametrize("kind", ["llama", "sliding"])
def test_gradients_of_a_bfloat16_model_are_those_of_the_stock_kernels(kind, monkeypatch):
    """Rows longer than the sliding window, with padding: cosine of the two gradients above 0.999."""
    model = make(torch.bfloat16, kind=kind)
    ids = torch.randint(1, 30, (3, 14), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    batch = {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.where(mask == 1, ids, -100)}
    parameters = select_parameters(model, ParameterSet.all_linear)
    found = []
    for stock in (False, True):
        if stock:
            monkeypatch.setattr("rapidun.models.attention._gains", lambda model: False)
        kept = {}

        def keep(parameter, gradient, kept=kept):
            kept[parameter.name] = torch.einsum("bto,bti->boi", gradient.g.double(), gradient.a.double())

        with GradientCapture(model, parameters, keep) as capture:
            capture.run(batch)
        found.append(torch.cat([kept[p.name].flatten(1) for p in parameters], dim=1))
    assert (torch.cosine_similarity(*found, dim=1) > 0.999).all()


@pytest.mark.parametrize("causal", [True, False])
def test_the_mask_is_left_out_of_causal_models_only(make_model, rows, batches_of, causal):
    """Padding on the right changes nothing before it where no position sees a later one, and only there."""
    model = make_model()
    for layer in model.model.layers:
        layer.self_attn.is_causal = causal
    batch = batches_of(rows, [[0, 1, 2]])[0].tensors
    assert not batch["attention_mask"].all()
    given = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["attention_mask"]), with_kwargs=True
    )
    parameters = select_parameters(model, ParameterSet.all_linear)
    with GradientCapture(model, parameters, lambda parameter, gradient: None) as capture:
        capture.run(batch)
    assert torch.equal(given[0], torch.ones_like(batch["attention_mask"]) if causal else batch["attention_mask"])
