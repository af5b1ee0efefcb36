"""Rows of a batch laid end to end, [1, N]: each attends to itself alone, and no padding is computed.

What a training pass switches a model on the CPU to, for as long as it lasts. transformers' masks know such batches by
positions that start again, but as a mask of [N, N]; here the rows' lengths stand where the mask would, and attention
takes one row after the other. GPUs have kernels of their own for padded rows and keep them.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rapidun.models.attention import is_causal, sdpa_configs, short_attention

NAME = "rapidun_packed"

_registering = threading.Lock()


class NotPacked(ValueError):
    """A model's code wants something of its masks that rows laid end to end do not have."""


class Rows(NamedTuple):
    """The rows of the pass that is running."""

    lengths: Tensor  # [B] int64
    # sizes of the sliding windows and chunks that layers attend in: no row may be longer
    windows: set[int]


_running: ContextVar[Rows | None] = ContextVar("rapidun_packed", default=None)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, H, N, D], key and value [1, H_kv, N, D] -> [1, N, H, D].

    Args: attention_mask: the rows' lengths, [B] int64; with any other, rows lie side by side as ever.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    halves = query.dtype == torch.bfloat16 or torch.is_autocast_enabled(query.device.type)
    attend = short_attention if halves else sdpa_attention_forward
    if attention_mask is None or attention_mask.dim() != 1:
        if _running.get() is not None:
            raise NotPacked("an attention layer has a mask of its own")
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    lengths = attention_mask.tolist()
    parts = [
        attend(module, q, k, v, None, dropout, scaling, **kwargs)[0]
        for q, k, v in zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, dim=1), None


def _lengths_for_mask(**asked: Any) -> Tensor | None:
    """transformers' mask interface: the rows' lengths while a packed pass runs, else what `sdpa` gets."""
    from transformers.masking_utils import sdpa_mask

    rows = _running.get()
    if rows is None:
        return sdpa_mask(**asked)
    if asked.get("attention_mask") is not None or asked.get("use_vmap"):
        raise NotPacked("the model adds to its masks")
    if asked.get("local_size") is not None:
        rows.windows.add(int(asked["local_size"]))
    return rows.lengths


def can_switch(model: nn.Module) -> bool:
    """Whether a model's attention may be switched at all: on the CPU, causal, `sdpa`, and nothing else mixes tokens."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    mixes = any(isinstance(module, nn.modules.conv._ConvNd | nn.RNNBase) for module in model.modules())
    return on_cpu and not mixes and is_causal(model) and bool(sdpa_configs(model, NAME))


@contextmanager
def switched(model: nn.Module) -> Iterator[None]:
    """Let rows be laid end to end in here, backward passes included; batches that are not are done as by `sdpa`."""
    configs = sdpa_configs(model) if can_switch(model) else []
    if configs:
        _register()
    for config in configs:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        for config in configs:
            config._attn_implementation = "sdpa"


@contextmanager
def laid_out(lengths: Tensor, windows: set[int]) -> Iterator[None]:
    """While this lasts the switched model is given rows of these lengths, [B] int64, end to end; see Rows."""
    token = _running.set(Rows(lengths, windows))
    try:
        yield
    finally:
        _running.reset(token)


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    with _registering:
        if NAME not in AttentionInterface():
            AttentionInterface.register(NAME, packed_attention)
            AttentionMaskInterface.register(NAME, _lengths_for_mask)
