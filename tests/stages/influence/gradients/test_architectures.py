"""Models other than Llama: what their layers do differently is captured, or refused by name, never lost."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from rapidun.base.errors import ModelError
from rapidun.config.influence import ParameterSet
from rapidun.models.load import peft_renaming
from rapidun.stages.influence.gradients.capture import GradientCapture
from rapidun.stages.influence.gradients.params import other_weights, select_parameters
from rapidun.stages.influence.gram import exact_gram

COMMON = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "attn_pdrop": 0.0},
    "opt": {
        "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 16,
        "max_position_embeddings": 64,
    },
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "parallel_attn": True},
    "gpt_neox": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
    "deepseek_v2": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": None, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4,
        "v_head_dim": 4, "first_k_dense_replace": 1, "max_position_embeddings": 64,
    },
    "mixtral": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_local_experts": 3, "max_position_embeddings": 64,
    },
    "phimoe": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_local_experts": 2, "max_position_embeddings": 64,
    },
}  # fmt: skip
NAMES = [f"row {i}" for i in range(7)]
GROUPS = [[0, 1, 2], [3, 4], [5, 6]]


def build(kind: str) -> nn.Module:
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES[kind], **COMMON))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def adapted(model: nn.Module, *targets: str, zero: bool) -> nn.Module:
    with peft_renaming():
        config = LoraConfig(r=3, lora_alpha=6, target_modules=list(targets), fan_in_fan_out="c_attn" in targets)
        model = get_peft_model(model, config)
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and not zero:
            nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def gram(model, parameters, batches):
    return exact_gram(model, parameters, batches, row_names=NAMES, memory_bytes=1e9).gram


def assert_is_autograds(model, params, rows, batches_of, autograd_gradients, *, num=None):
    parameters = select_parameters(model, params)
    if num is not None:
        assert len(parameters) == num
    truth = autograd_gradients(model, parameters, rows)
    # norms in the model's own float32 (falcon, deepseek) leave no more digits
    torch.testing.assert_close(
        gram(model, parameters, batches_of(rows, GROUPS, extra=2)), truth @ truth.T, rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize("params", [ParameterSet.all_linear, ParameterSet.lm_head, ParameterSet.embeddings])
@pytest.mark.parametrize("kind", ["gpt2", "opt", "falcon", "gpt_neox", "deepseek_v2"])
def test_gradients_are_those_of_autograd(kind, params, rows, batches_of, autograd_gradients):
    assert_is_autograds(build(kind), params, rows, batches_of, autograd_gradients)


def test_the_conv1d_layers_of_gpt2_are_linear(rows, batches_of):
    parameters = {p.name: p for p in select_parameters(build("gpt2"), ParameterSet.all_linear)}
    assert len(parameters) == 8
    # [out, in]: the weight itself is [16, 48]
    assert parameters["transformer.h.0.attn.c_attn.weight"].shape == (48, 16)
    assert {p.name.split(".")[3] for p in select_parameters(build("gpt2"), ParameterSet.mlp)} == {"mlp"}


def test_experts_that_are_no_layers_are_named():
    """Of each block 3 experts of [48, 16] and [16, 24], and the router [3, 16]."""
    found = other_weights(build("mixtral"))
    assert sum(found.values()) == 2 * (3 * (48 * 16 + 16 * 24) + 3 * 16)
    assert all(".mlp." in name or ".block_sparse_moe." in name for name in found)
    assert other_weights(build("gpt2")) == other_weights(build("deepseek_v2")) == {}


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("opt", ["fc1", "fc2", "q_proj"]),  # inputs of [B * T, H]
        ("falcon", ["dense_4h_to_h", "dense_h_to_4h"]),  # what they return is added to in place
        ("gpt2", ["c_attn", "c_proj"]),
        ("gpt_neox", ["query_key_value", "embed_out"]),  # the head, which sees labelled positions only
    ],
)
def test_adapters(kind, targets, zero, rows, batches_of, autograd_gradients):
    model = adapted(build(kind), *targets, zero=zero)
    assert_is_autograds(model, ParameterSet.lora, rows, batches_of, autograd_gradients)


def test_a_layer_that_returns_several_things_is_refused_by_name(rows, batches_of):
    model = build("phimoe")
    assert not any("router" in p.name for p in select_parameters(model, ParameterSet.all_linear))
    assert any("router" in name for name in other_weights(model))
    parameters = select_parameters(model, ParameterSet.regex, regex=".*router")
    with pytest.raises(ModelError, match=r"one tensor, got a tuple from model\.layers\.0\.mlp\.router\.weight"):
        gram(model, parameters, batches_of(rows, GROUPS))


class Reader(nn.Module):
    """Multiplies with a layer's weight without calling the layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.layer.weight)


def test_a_weight_that_is_used_without_its_layer_is_refused_by_name(make_model, rows, batches_of):
    model = make_model()
    model.model.layers[1].mlp.down_proj = Reader(model.model.layers[1].mlp.down_proj)
    assert not any("down_proj.layer" in p.name for p in select_parameters(model, ParameterSet.all_linear))
    assert "model.layers.1.mlp.down_proj.layer.weight" in other_weights(model)
    parameters = select_parameters(model, ParameterSet.regex, regex=r".*(_proj|layer)")
    with pytest.raises(ModelError, match=r"captured: model\.layers\.1\.mlp\.down_proj\.layer\.weight\. Leave them out"):
        gram(model, parameters, batches_of(rows, GROUPS))
    assert all(p.requires_grad for p in model.parameters())
    assert not model.model.layers[0].mlp.up_proj._forward_hooks
    left = select_parameters(model, ParameterSet.regex, regex=r".*(q|up)_proj")
    assert gram(model, left, batches_of(rows, GROUPS)).diagonal().min() > 0


def test_a_layer_that_nothing_reaches_has_no_gradient(make_model, rows, batches_of, autograd_gradients):
    """As an expert that no token was sent to."""
    model = make_model()
    model.model.layers[0].mlp.spare = nn.Linear(16, 16, bias=False, dtype=torch.float64)
    assert_is_autograds(model, ParameterSet.all_linear, rows, batches_of, autograd_gradients, num=15)


@pytest.mark.parametrize("how", ["merged", "off"])
def test_an_adapter_that_takes_no_part_is_refused(make_model, rows, batches_of, how):
    model = adapted(make_model(), "q_proj", "up_proj", zero=False)
    if how == "merged":
        model.merge_adapter()
    else:
        model.base_model.disable_adapter_layers()
    parameters = select_parameters(model, ParameterSet.lora)
    with (
        pytest.raises(ModelError, match="depends on none of them: is their adapter merged or switched off"),
        GradientCapture(model, parameters, lambda parameter, gradient: None) as capture,
    ):
        capture.run(batches_of(rows, GROUPS)[0].tensors)
