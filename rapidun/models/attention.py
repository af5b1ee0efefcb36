"""Attention of short sequences on the CPU, faster than the stock kernels: what a capture switches a model to, and what
training uses for each row (packing.py).

softmax(Q K^T / sqrt(d) + causal) V, written out. Query heads that share a key head are stacked, so that no key is
repeated. The products of a bfloat16 model are bfloat16 matrix products, which this hardware does several times faster
than torch's fused kernel does the same work; what is written out, [heads, T, T], stays small for short sequences.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

NAME = "rapidun_short"
# longer sequences go to the stock kernel: T^2 numbers a head are written out
LONGEST = 1024
# what may come along without changing the result
HARMLESS = frozenset({"use_cache", "position_ids", "output_attentions", "is_causal", "position_bias", "sliding_window"})

_registering = threading.Lock()


def short_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [B, H, T, D], key and value [B, H_kv, T, D] -> [B, T, H, D].

    Plain causal attention of at most LONGEST tokens is written out; everything else is the stock `sdpa`.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    length = query.shape[2]
    if attention_mask is None and key.shape[2] == length and is_plain(module, length, dropout, kwargs):
        return written_out(query, key, value, scaling=scaling), None
    out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    return out, None


def is_plain(module: nn.Module, length: int, dropout: float, kwargs: dict[str, Any]) -> bool:
    """Whether an attention layer asks for causal attention and nothing else, of sequences that are short enough."""
    is_causal = kwargs.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    special = any(given is not None and name not in HARMLESS for name, given in kwargs.items())
    biased = kwargs.get("position_bias") is not None
    return is_causal and not (dropout or special or biased) and length <= LONGEST


def written_out(query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None = None) -> Tensor:
    """softmax(Q K^T scaling + causal) V for the last T of T' positions; scaling is 1/sqrt(D) where None.

    query [B, H, T, D], key and value [B, H_kv, T', D] -> [B, T, H, D].
    """
    batch, heads, length, width = query.shape
    scale = width**-0.5 if scaling is None else scaling
    groups, seen = key.shape[1], key.shape[2]
    shared = heads // groups
    # [B * H_kv, H / H_kv * T, D]
    stacked = (query * scale).reshape(batch * groups, shared * length, width)
    keys, values = (x.reshape(batch * groups, seen, x.shape[-1]) for x in (key, value))
    later = torch.full((length, seen), float("-inf"), dtype=query.dtype, device=query.device).triu_(1 + seen - length)
    later = later.expand(shared, length, seen).reshape(1, shared * length, seen)
    weights = torch.softmax(torch.baddbmm(later, stacked, keys.transpose(1, 2)), dim=-1)
    out = torch.bmm(weights, values).view(batch, heads, length, -1)
    return out.transpose(1, 2).contiguous()


def is_causal(model: nn.Module) -> bool:
    """Whether no position sees a later one: padding on the right then changes nothing before it."""
    flags = [m.is_causal for m in model.modules() if isinstance(getattr(m, "is_causal", None), bool)]
    return bool(flags) and all(flags)


@contextmanager
def faster_attention(model: nn.Module) -> Iterator[None]:
    """Switch a bfloat16 model on the CPU from `sdpa` to `short_attention`; as before afterwards."""
    configs = sdpa_configs(model) if _gains(model) else []
    if configs:
        _register()
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        for config in configs:
            config._attn_implementation = "sdpa"


def _gains(model: nn.Module) -> bool:
    # float32: the stock kernel is as fast
    first = next((p for p in model.parameters() if p.dtype.is_floating_point), None)
    return first is not None and first.device.type == "cpu" and first.dtype == torch.bfloat16 and is_causal(model)


def sdpa_configs(model: nn.Module, *also: str) -> list[Any]:
    """The configurations that the model's attention layers look their kernel up in: those with `sdpa`, or `also`."""
    found = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    return [c for c in found.values() if getattr(c, "_attn_implementation", None) in ("sdpa", *also)]


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    with _registering:
        if NAME not in AttentionInterface():
            AttentionInterface.register(NAME, short_attention)
            # no mask at all where attention is plainly causal
            AttentionMaskInterface.register(NAME, sdpa_mask)
