"""Forward passes without a gradient: the same logits but for rounding, whatever is left as it is."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache, GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from rapidun.models import fused as fused_module
from rapidun.models import fused_attention, products
from rapidun.models.fused import fused
from rapidun.models.packing import is_forward_only

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
IDS = torch.arange(1, 25).view(2, 12)


def make(*, kind: str = "llama", dtype: torch.dtype = torch.bfloat16) -> Any:
    torch.manual_seed(0)
    model = GemmaForCausalLM(GemmaConfig(**SIZES)) if kind == "gemma" else LlamaForCausalLM(LlamaConfig(**SIZES))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval()


def switched_in(model: Any) -> list[str]:
    return [name for name, part in model.named_modules() if "forward" in vars(part)]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits.double()


def away(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_as_near_to_float64_as_the_models_own_code() -> None:
    """Relative error of the logits: at most 1.2 times that of the model's own code, which rounds a gate three times."""
    model = make()
    truth, own = logits(copy.deepcopy(model).double()), logits(model)
    with fused(model):
        found = logits(model)
    assert 0 < away(found, truth) < 1.2 * away(own, truth) < 0.05
    assert not torch.equal(found, own)


@pytest.mark.parametrize(
    "settings", [{}, {"attention_bias": True}, {"num_key_value_heads": 4}, {"head_dim": 16}], ids=str
)
@torch.no_grad()
def test_attention_is_as_near_to_float64_as_the_models_own(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole rows, padded ones, a step behind what a cache holds; tokens at a time change no bit."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**SIZES | settings)).bfloat16().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    padded = torch.ones_like(IDS)
    padded[0, :5] = 0

    def attended(model: Any) -> list[torch.Tensor]:
        heard: list[torch.Tensor] = []
        layer = model.model.layers[0].self_attn
        hook = layer.register_forward_hook(lambda module, args, found: heard.append(found[0].double()))
        model(IDS, use_cache=False)
        model(IDS, attention_mask=padded, use_cache=False)
        cache = DynamicCache(config=model.config)
        model(IDS[:, :8], cache=cache, use_cache=True)
        model(IDS[:, 8:9], cache=cache, use_cache=True)
        hook.remove()
        return heard

    truth, plain = attended(copy.deepcopy(model).double()), attended(model)
    with fused(model):
        assert "model.layers.0.self_attn" in switched_in(model)
        found = attended(model)
        monkeypatch.setattr(fused_attention, "TOGETHER", 5)
        monkeypatch.setattr(fused_module, "TOGETHER", 5)
        assert all(torch.equal(one, other) for one, other in zip(found, attended(model), strict=True))
    assert len(truth) == len(plain) == len(found) == 4
    for right, own, ours in zip(truth, plain, found, strict=True):
        assert 0 < away(ours, right) < 1.2 * away(own, right) < 0.05


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@torch.no_grad()
def test_adapters_within_attention_are_called() -> None:
    """Of queries and values, as ever, or of what comes last: what they change is there, and gone where they are off."""
    for targets in (["q_proj", "v_proj"], ["o_proj"]):
        model = get_peft_model(make(), LoraConfig(r=2, target_modules=targets, init_lora_weights=False)).bfloat16()
        model.eval()
        layer = model.base_model.model.model.layers[0].self_attn
        x = torch.randn(1, 6, SIZES["hidden_size"]).bfloat16()
        angles = torch.rand(1, 6, SIZES["head_dim"] // 2).repeat(1, 1, 2)
        asked = {"hidden_states": x, "position_embeddings": (angles.cos().bfloat16(), angles.sin().bfloat16())}
        truth = layer(**asked)[0]
        with fused(model):
            assert "forward" in vars(layer)
            found = layer(**asked)[0]
            with model.disable_adapter():
                without = layer(**asked)[0]
        assert away(found.double(), truth.double()) < 0.02 < away(without.double(), truth.double())
        with model.disable_adapter():
            assert away(without.double(), layer(**asked)[0].double()) < 0.02


def test_attention_of_another_class_stays() -> None:
    """One that scales, limits or gates may have layers of the same names."""

    class Scaled(LlamaAttention):
        pass

    model = make()
    model.model.layers[0].self_attn.__class__ = Scaled
    with fused(model):
        names = switched_in(model)
    assert "model.layers.0.self_attn" not in names and "model.layers.0.self_attn.q_proj" in names
    assert "model.layers.1.self_attn" in names


def test_what_is_switched_and_switched_back() -> None:
    model = make()
    with pytest.raises(KeyError), fused(model):
        names = switched_in(model)
        assert {"model.norm", "model.layers.1.mlp", "model.layers.0.self_attn", "lm_head"} <= set(names)
        # what the layer around them does is not laid out twice
        assert not [name for name in names if name.endswith("_proj")]
        assert is_forward_only() and model.config._attn_implementation == "rapidun_packed"
        with fused(model):  # once is enough
            assert switched_in(model) == names
        assert switched_in(model) == names
        raise KeyError("inside")
    assert switched_in(model) == [] and not is_forward_only() and model.config._attn_implementation == "sdpa"


def test_weights_are_not_kept_twice_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers to the bit: products lay weights out for themselves."""
    model = make()
    with fused(model):
        packed = logits(model)
    monkeypatch.setattr(products, "PACKED", sum(p.numel() for p in model.parameters() if p.dim() > 1) - 40 * 32 - 1)
    with fused(model):
        assert "lm_head" not in switched_in(model) and "model.layers.0.mlp" in switched_in(model)
        assert torch.equal(logits(model), packed)


def test_with_a_gradient_all_is_the_models_own() -> None:
    model, found = make(), []
    for switch in (nullcontext(), fused(model)):
        with switch:
            model.zero_grad()
            model(input_ids=IDS, labels=IDS).loss.backward()
        found.append([p.grad.double() for p in model.parameters()])
    assert all(away(ours, theirs) < 0.02 for theirs, ours in zip(*found, strict=True))


def test_another_gate_another_norm_and_what_is_hooked_stay_as_they_are() -> None:
    """Gemma gates by gelu and scales by 1 + w; a layer that somebody listens to is called."""
    gemma = make(kind="gemma")
    with fused(gemma):
        assert not [name for name in switched_in(gemma) if name.endswith(("mlp", "norm"))]
    model, heard = make(), []
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *args: heard.append(1))
    with fused(model):
        assert "model.layers.0.mlp" not in switched_in(model) and "model.layers.1.mlp" in switched_in(model)
        logits(model)
    assert heard == [1]


def test_float32_stays_as_it_is() -> None:
    model = make(dtype=torch.float32)
    with fused(model):
        assert switched_in(model) == [] and not is_forward_only()
