"""Attention written out: what the stock kernels compute, and only where it is the same thing."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from rapidun.models import attention
from rapidun.models.attention import faster_attention, is_causal, short_attention, written_out
from rapidun.models.packing import _shared_heads

SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


class Layer(torch.nn.Module):
    is_causal = True
    num_key_value_groups = 3


def tensors(*, length: int = 9, dtype: torch.dtype = torch.float64, keys: int | None = None):
    torch.manual_seed(0)
    shapes = [(2, 6, length, 8), (2, 2, keys or length, 8), (2, 2, keys or length, 8)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def test_output_and_gradients_are_those_of_the_formula():
    """Each query head h with key head h // 3, softmax over the past, in float64."""
    query, key, value = tensors()
    out, none = short_attention(Layer(), query, key, value, None, scaling=0.3)
    assert none is None and out.shape == (2, 9, 6, 8)
    keys, values = (x.repeat_interleave(3, dim=1) for x in (key, value))
    logits = 0.3 * query @ keys.transpose(2, 3)
    logits = logits.masked_fill(torch.ones(9, 9).triu(1).bool(), float("-inf"))
    truth = (logits.softmax(-1) @ values).transpose(1, 2)
    torch.testing.assert_close(out, truth)
    weight = torch.randn_like(truth)
    found = torch.autograd.grad((out * weight).sum(), (query, key, value))
    wanted = torch.autograd.grad((truth * weight).sum(), (query, key, value))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_last_positions_alone():
    """3 queries that stand behind 6 keys more: the last 3 rows of the whole."""
    query, key, value = tensors()
    whole = written_out(query, key, value)
    torch.testing.assert_close(written_out(query[:, :, 6:], key, value), whole[:, 6:])


@pytest.mark.parametrize("case", ["mask", "long", "not causal", "cache", "unknown"])
def test_everything_else_is_the_stock_kernel(monkeypatch, case):
    monkeypatch.setattr(attention, "LONGEST", 9)
    query, key, value = tensors(length=12 if case == "long" else 9, keys=11 if case == "cache" else None)
    mask = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril() if case == "mask" else None
    extra = {"not causal": {"is_causal": False}, "unknown": {"something": 1}}.get(case, {})
    called = []

    def stock(module, query, key, value, attention_mask, dropout, scaling, **kwargs):
        called.append(kwargs)
        return query.transpose(1, 2), None

    monkeypatch.setattr("transformers.integrations.sdpa_attention.sdpa_attention_forward", stock)
    short_attention(Layer(), query, key, value, mask, **extra)
    assert called == [extra]


def test_bfloat16_gradients_are_as_near_to_the_truth_as_the_stock_kernels():
    """Relative errors against float64 of the same numbers: at most 1.5 times those of the stock kernel."""
    errors = {}
    for name in ("ours", "stock"):
        query, key, value = tensors(length=64, dtype=torch.bfloat16)
        wide = [x.detach().double().requires_grad_() for x in (query, key, value)]
        truth, _ = short_attention(Layer(), *wide, None)
        if name == "ours":
            out, _ = short_attention(Layer(), query, key, value, None)
        else:
            from transformers.integrations.sdpa_attention import sdpa_attention_forward

            out, _ = sdpa_attention_forward(Layer(), query, key, value, None)
        weight = torch.randn(truth.shape, dtype=torch.float64)
        found = [out, *torch.autograd.grad((out * weight.bfloat16()).sum(), (query, key, value))]
        wanted = [truth, *torch.autograd.grad((truth * weight).sum(), wide)]
        errors[name] = max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True))
    assert errors["ours"] < 1.5 * errors["stock"]
    assert errors["stock"] < 0.02


def make(dtype: torch.dtype, *, kind: str = "llama"):
    torch.manual_seed(0)
    if kind == "sliding":
        model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    return model.to(dtype).eval()


@pytest.mark.parametrize(("dtype", "switched"), [(torch.bfloat16, True), (torch.float32, False)])
def test_a_model_is_switched_where_it_gains_and_switched_back(dtype, switched):
    model = make(dtype)
    names = []
    with pytest.raises(KeyError), faster_attention(model):
        names.append(model.config._attn_implementation)
        raise KeyError("inside")
    assert names == ["rapidun_short" if switched else "sdpa"]
    assert model.config._attn_implementation == "sdpa"


def test_a_users_choice_of_attention_stays():
    model = make(torch.bfloat16)
    model.set_attn_implementation("eager")
    with faster_attention(model):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "eager"


def test_what_is_causal():
    model = make(torch.float32)
    assert is_causal(model)
    model.model.layers[1].self_attn.is_causal = False
    assert not is_causal(model)
    assert not is_causal(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("length", "seen", "rows"), [(1, 75, 5), (20, 60, 1), (33, 33, 2)])
def test_shared_heads_give_what_copied_ones_do_and_their_bits_in_bfloat16(
    dtype: torch.dtype, length: int, seen: int, rows: int
) -> None:
    """A step of several rows, a response behind its prompt, a whole row: nine heads over three of keys."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(rows, heads, tokens, 16, generator=generator).to(dtype)
        for heads, tokens in ((9, length), (3, seen), (3, seen))
    )
    mask = torch.ones(rows, 1, length, seen, dtype=torch.bool).tril(seen - length)
    mask[-1, :, :, :7] = False
    mask[-1, :, :7, 0] = True  # no position without anything to see
    expected = sdpa_attention_forward(Layer(), query, key, value, mask, 0.0, 0.3)[0]
    found = _shared_heads(query, key, value, mask, 0.3)
    if dtype is torch.bfloat16:
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected)
