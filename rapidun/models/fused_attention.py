"""Llama's attention in a bfloat16 forward pass on the CPU: queries, keys, values by one product, turned where they lie.

The model's own rotation takes twice as long as the products before it, for it makes five tensors of each.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rapidun.models.products import Weights, product

# of transformers, with what it is called with: another class may compute anything with layers of the same names
CLASS = "LlamaAttention"
MODULE = "transformers.models.llama.modeling_llama"
TAKES = {"self", "hidden_states", "position_embeddings", "attention_mask", "cache", "kwargs"}
PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")
# tokens that a layer is tried with; that are turned at a time
TRIED, TOGETHER = 5, 256


def attention(module: Any, weights: Weights) -> Callable[..., tuple[Tensor, Any]] | None:
    """Its forward pass; None where the layer is another one.

    Adapters on some of the four layers are called as ever.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = type(module).__module__ == MODULE and type(module).__name__ == CLASS
    if not known or set(inspect.signature(type(module).forward).parameters) != TAKES:
        return None
    own, width, scaling = type(module).forward, module.head_dim, module.scaling
    q, k, v, o = parts = [getattr(module, name) for name in PARTS]
    sizes = [part.out_features // width for part in parts[:3]]
    whole = weights.of(q, k, v) if weights.laid_out and all(part in weights for part in (q, k, v)) else None
    biases = [part.bias for part in (q, k, v)]
    bias = None if whole is None or biases[0] is None else torch.cat([one.detach() for one in biases])
    last = weights.of(o) if o in weights else None

    def heads(x: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
        """Queries and keys, turned, and values, [B, T, heads, D] each."""
        if whole is not None:
            made = product(x, whole, bias).unflatten(-1, (-1, width))
            turn(made[:, :, : sizes[0] + sizes[1]], cos, sin)
            return list(made.split(sizes, dim=2))
        # an adapter that is switched off gives what its base layer gave
        made = [part(x).unflatten(-1, (-1, width)) for part in parts[:3]]
        turned = [one if part in weights else one.clone() for one, part in zip(made[:2], parts, strict=False)]
        for one in turned:
            turn(one, cos, sin)
        return [*turned, made[2]]

    def forward(
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        if torch.is_grad_enabled() or hidden_states.dtype != torch.bfloat16 or module.training:
            found: tuple[Tensor, Any] = own(
                module, hidden_states, position_embeddings, attention_mask=attention_mask, cache=cache, **kwargs
            )
            return found
        query, key, value = (x.transpose(1, 2) for x in heads(hidden_states, *position_embeddings))
        if cache is not None:
            # a part of the product would keep all of it
            key, value = key.contiguous(), value.contiguous()
            key, value = cache.update(key, value, module.layer_idx, kwargs=kwargs)
        attend = ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]
        out, seen = attend(module, query, key, value, attention_mask, dropout=0.0, scaling=scaling, **kwargs)
        out = out.flatten(2)
        return (o(out) if last is None else product(out, last, o.bias)), seen

    return forward


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotary position embedding in place: x [B, T, heads, D], cos and sin [B, T, D]; rounds once less than theirs.

    Some tokens at a time, so that what lies between stays in the cache.
    """
    half = x.shape[-1] // 2
    # (a, b) becomes (a cos - b sin, b cos + a sin)
    signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
    for top in range(0, x.shape[1], TOGETHER):
        part = x[:, top : top + TOGETHER]
        near, far = (one[:, top : top + TOGETHER, None] for one in (cos, signed))
        swapped = torch.cat((part[..., half:], part[..., :half]), dim=-1)
        part.mul_(near).addcmul_(swapped, far)


@torch.no_grad()
def is_the_same(module: Any, forward: Callable[..., tuple[Tensor, Any]], *, tolerance: float) -> bool:
    """Whether some tokens come out of it as of the layer itself."""
    weight = module.q_proj.weight
    x = torch.linspace(-3, 3, TRIED * module.config.hidden_size).cos().view(1, TRIED, -1).to(weight.dtype)
    angles = torch.linspace(0, 6, TRIED * module.head_dim // 2).view(1, TRIED, -1).repeat(1, 1, 2)
    turned = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    try:
        truth, found = (
            run(hidden_states=x, position_embeddings=turned, attention_mask=None)[0] for run in (module, forward)
        )
    except Exception:  # whatever the layer's own code raises
        return False
    same = truth.shape == found.shape and truth.dtype == found.dtype
    return same and float((found.float() - truth.float()).norm()) <= tolerance * float(truth.float().norm())
