"""Which weights each named set holds."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from rapidun.base.errors import ConfigError
from rapidun.config.influence import ParameterSet
from rapidun.config.parts import LoraSettings
from rapidun.models.adapters import add_lora
from rapidun.models.load import peft_renaming
from rapidun.stages.influence.gradients.params import (
    SELECTORS,
    accumulation_dtype,
    num_numbers,
    output_head,
    select_parameters,
    untracked_of_adapter,
)


def _names(model, params, regex=None):
    return [p.name for p in select_parameters(model, params, regex=regex)]


def test_every_set_has_a_selector():
    assert set(SELECTORS) == set(ParameterSet) - {ParameterSet.regex}


def test_sizes_of_the_tiny_llama(make_model):
    """16 wide, 24 inside, 2 kv heads of 4: q, o 256; k, v 128; gate, up, down 384 each. Two layers; 40 tokens."""
    model = make_model()
    sizes = {params: num_numbers(select_parameters(model, params)) for params in SELECTORS if params.name != "lora"}
    assert sizes == {
        ParameterSet.all_linear: 2 * (768 + 1152),
        ParameterSet.attention: 2 * 768,
        ParameterSet.mlp: 2 * 1152,
        ParameterSet.lm_head: 640,
        ParameterSet.embeddings: 640,
    }
    shapes = {p.name: p.shape for p in select_parameters(model, ParameterSet.all_linear)}
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (8, 16)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (16, 24)
    assert not any("lm_head" in name or "embed" in name for name in shapes)


def test_a_tied_head_is_one_parameter_with_both_modules(make_model):
    model = make_model(tied=True)
    (head,) = select_parameters(model, ParameterSet.lm_head)
    (embedding,) = select_parameters(model, ParameterSet.embeddings)
    assert head.name == "lm_head.weight" and embedding.name == "model.embed_tokens.weight"
    assert set(head.modules) == set(embedding.modules) == {model.lm_head, model.model.embed_tokens}
    assert head.depth == 0
    assert len(_names(model, ParameterSet.regex, ".*")) == 15
    assert len(select_parameters(make_model(), ParameterSet.lm_head)[0].modules) == 1


def test_an_adapter_changes_no_set_but_lora(make_model):
    plain = {params: len(_names(make_model(), params)) for params in SELECTORS if params.name != "lora"}
    settings = LoraSettings(r=2, target_modules=["q_proj", "up_proj"])
    model = add_lora(make_model(), settings, seed=0, section="influence")
    assert {params: len(_names(model, params)) for params in plain} == plain
    factors = _names(model, ParameterSet.lora)
    assert len(factors) == 2 * 2 * 2
    assert all(".lora_A." in name or ".lora_B." in name for name in factors)
    assert any(name.endswith("q_proj.base_layer.weight") for name in _names(model, ParameterSet.attention))


def test_an_adapted_head_is_still_the_head(make_model):
    model = add_lora(make_model(), LoraSettings(r=2, target_modules=["lm_head"]), seed=0, section="influence")
    assert _names(model, ParameterSet.lm_head) == ["base_model.model.lm_head.base_layer.weight"]
    assert len(_names(model, ParameterSet.all_linear)) == 14


def test_what_of_an_adapter_no_gradient_is_taken_of(make_model):
    """A head that is trained as a whole [40, 16], and DoRA's magnitudes of two layers of 16 and 8 rows, in 2 blocks."""
    with peft_renaming():
        plain = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"]))
        whole = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
        dora = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj", "k_proj"], use_dora=True))
    assert untracked_of_adapter(plain) == {}
    (head,) = untracked_of_adapter(whole).items()
    assert head == (
        "base_model.model.lm_head.modules_to_save.default.weight",
        whole.get_output_embeddings().weight.numel(),
    )
    assert sum(untracked_of_adapter(dora).values()) == 2 * (16 + 8)


def test_regex_is_a_full_match_on_module_names(make_model):
    assert _names(make_model(), ParameterSet.regex, r".*\.1\..*k_proj") == ["model.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(ConfigError, match="matches none"):
        _names(make_model(), ParameterSet.regex, r"k_proj")


def test_an_empty_set_lists_the_names(make_model):
    with pytest.raises(ConfigError) as info:
        select_parameters(make_model(), ParameterSet.lora)
    message = str(info.value)
    assert "params=lora" in message and "model.layers.*.self_attn.q_proj" in message and "influence.params" in message
    with pytest.raises(ConfigError, match=r"no nn\.Linear and no nn\.Embedding"):
        select_parameters(nn.Sequential(nn.Tanh()), ParameterSet.all_linear)


def test_a_rescaled_embedding_is_refused(make_model):
    class Scaled(nn.Embedding):
        def forward(self, ids):
            return 3 * super().forward(ids)

    model = make_model()
    model.model.embed_tokens = Scaled(40, 16)
    with pytest.raises(ConfigError, match="embed_tokens, a Scaled"):
        select_parameters(model, ParameterSet.embeddings)
    assert len(_names(model, ParameterSet.all_linear)) == 14


def test_output_head(make_model):
    model = make_model()
    assert output_head(model) is model.lm_head
    assert output_head(nn.Linear(2, 2)) is None


def test_accumulation_dtype():
    wide = [accumulation_dtype(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)]
    assert wide == [torch.float32, torch.float32, torch.float32, torch.float64]
