"""Rows of a batch laid end to end, [1, N]: each attends to itself alone, no padding is computed, a prompt only once.

What a training pass switches a model on the CPU to, for as long as it lasts. transformers' masks know such batches by
positions that start again, but as a mask of [N, N]; here a list of segments stands where the mask would, and attention
takes one after the other. Two responses to one prompt are two segments: the second sees the prompt and itself. GPUs
have kernels of their own for padded rows and keep them.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rapidun.models.attention import is_causal, is_plain, sdpa_configs, written_out

NAME = "rapidun_packed"

_registering = threading.Lock()


class NotPacked(ValueError):
    """A model's code wants something of its masks that rows laid end to end do not have."""


class Segment(NamedTuple):
    """Tokens of the laid out sequence that attend to themselves and to the prompt that another segment begins with."""

    length: int
    # which segment that is, and how long the prompt is; 0 where it is part of this one
    other: int
    prompt: int


class Group(NamedTuple):
    """Rows of a batch, padded on the left, that see nothing before a column."""

    first: int
    end: int
    column: int


class Running(NamedTuple):
    """The pass that is running."""

    segments: Tensor  # [S * 3] int64
    # sizes of the sliding windows and chunks that layers attend in: no row may be longer
    windows: set[int]
    # what a segment sees behind a prompt, by its length and the prompt's: all layers need the same
    masks: dict[tuple[int, int, torch.dtype], Tensor]


_running: ContextVar[Running | None] = ContextVar("rapidun_packed", default=None)
_forward_only: ContextVar[bool] = ContextVar("rapidun_forward_only", default=False)
_groups: ContextVar[Sequence["Group"]] = ContextVar("rapidun_groups", default=())


class LaidOut(NamedTuple):
    """A padded batch as one sequence of N tokens; rows with the same prompt share it."""

    input_ids: Tensor  # [1, N]
    position_ids: Tensor  # [1, N]
    places: Tensor  # [R] int64: what predicts each response token
    segments: list[Segment]


def lay_out(ids: Tensor, mask: Tensor, rows: Tensor, columns: Tensor) -> LaidOut:
    """Lay rows end to end.

    Args:
        ids: [B, T], padded on the right. mask: [B, T], not 0 at real tokens.
        rows, columns: [R], the response tokens, row by row.
    """
    lengths = mask.sum(dim=1).tolist()
    firsts = list(lengths)
    for row, column in zip(reversed(rows.tolist()), reversed(columns.tolist()), strict=True):
        firsts[row] = column
    # prompt -> the first row that has it
    prompts: dict[tuple[int, ...], int] = {}
    kept, segments = [], []
    # where a row's first token lies, or would lie had it not been laid already; where its prompt does
    shifts: list[int] = []
    begins: list[int] = []
    end = 0
    for row, (length, first) in enumerate(zip(lengths, firsts, strict=True)):
        other = prompts.setdefault(tuple(ids[row, :first].tolist()), row)
        skipped = 0 if other == row else first
        kept.append(torch.arange(skipped, length))
        segments.append(Segment(length - skipped, other, skipped))
        shifts.append(end - skipped)
        begins.append(shifts[other])
        end += length - skipped
    positions = torch.cat(kept)
    order = torch.repeat_interleave(torch.arange(len(kept)), torch.tensor([len(one) for one in kept]))
    before = columns - 1
    inside = before >= torch.tensor(firsts)[rows]
    places = torch.where(inside, torch.tensor(shifts)[rows], torch.tensor(begins)[rows]) + before
    return LaidOut(ids[order, positions][None], positions[None], places, segments)


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

    Args: attention_mask: the segments, [S * 3] int64; with any other, rows lie side by side as ever.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is None or attention_mask.dim() != 1:
        if _running.get() is not None:
            raise NotPacked("an attention layer has a mask of its own")
        # [B, 1, 1, T] and nothing else that columns belong to
        groups = _groups.get() if kwargs.get("position_bias") is None else ()
        if groups and attention_mask is not None and attention_mask.shape[-1] == key.shape[2]:
            return _by_group(module, query, key, value, attention_mask, groups, dropout, scaling, **kwargs), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    halves = query.dtype == torch.bfloat16 or torch.is_autocast_enabled(query.device.type)
    # forwards alone the stock kernel is the faster one
    halves = halves and not _forward_only.get()
    segments = [Segment(*numbers) for numbers in attention_mask.view(-1, 3).tolist()]
    lengths = [segment.length for segment in segments]
    queries, keys, values = (x.split(lengths, dim=2) for x in (query, key, value))
    parts = []
    for number, (length, other, prompt) in enumerate(segments):
        q, k, v = queries[number], keys[number], values[number]
        if prompt:
            k, v = (torch.cat([x[other][:, :, :prompt], x[number]], dim=2) for x in (keys, values))
        if halves and is_plain(module, length + prompt, dropout, kwargs):
            parts.append(written_out(q, k, v, scaling=scaling))
            continue
        if _forward_only.get() and is_plain(module, length + prompt, dropout, kwargs):
            parts.append(_shared_heads(q, k, v, _behind(length, prompt, q) if prompt else None, scaling))
            continue
        seen = torch.ones(1, 1, length, length + prompt, dtype=torch.bool).tril_(prompt) if prompt else None
        parts.append(sdpa_attention_forward(module, q, k, v, seen, dropout, scaling, **kwargs)[0])
    return torch.cat(parts, dim=1), None


def _behind(length: int, prompt: int, query: Tensor) -> Tensor:
    """[1, 1, length, length + prompt], to be added: a prompt, then tokens that see it and those before them."""
    now = _running.get()
    masks = {} if now is None else now.masks
    key = length, prompt, query.dtype
    if key not in masks:
        whole = torch.full((1, 1, length, length + prompt), float("-inf"), dtype=query.dtype, device=query.device)
        masks[key] = whole.triu_(prompt + 1)
    return masks[key]


def _shared_heads(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """As transformers calls torch's attention (its bits in bfloat16), without a copy of each key for every head.

    Causal without a mask.
    """
    out = nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None and query.shape[2] > 1,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous()


def _by_group(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    groups: Sequence[Group],
    dropout: float,
    scaling: float | None,
    **kwargs: Any,
) -> Tensor:
    """Attention over what some row of a group sees: keys [B, H_kv, T, D], the mask [B, 1, 1, T] as they are."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    plain = is_plain(module, key.shape[2], dropout, kwargs)
    parts = []
    for first, end, column in groups:
        q, k, v, mask = (x[first:end] for x in (query, key, value, attention_mask))
        k, v, mask = k[:, :, column:], v[:, :, column:], mask[..., column:]
        if plain:
            parts.append(_shared_heads(q, k, v, mask, scaling))
            continue
        parts.append(sdpa_attention_forward(module, q, k, v, mask, dropout, scaling, **kwargs)[0])
    return torch.cat(parts)


def _segments_for_mask(**asked: Any) -> Tensor | None:
    """transformers' mask interface: the segments while a packed pass runs, else what `sdpa` gets."""
    from transformers.masking_utils import sdpa_mask

    now = _running.get()
    if now is None:
        return sdpa_mask(**asked)
    if asked.get("attention_mask") is not None or asked.get("use_vmap"):
        raise NotPacked("the model adds to its masks")
    if asked.get("local_size") is not None:
        now.windows.add(int(asked["local_size"]))
    return now.segments


def can_switch(model: nn.Module) -> bool:
    """Whether a model's attention may be switched at all: on the CPU, causal, `sdpa`, and nothing else mixes tokens."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    mixes = any(isinstance(module, nn.modules.conv._ConvNd | nn.RNNBase) for module in model.modules())
    return on_cpu and not mixes and is_causal(model) and bool(sdpa_configs(model, NAME))


def is_switched(model: nn.Module) -> bool:
    return not sdpa_configs(model)


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
def running(segments: list[Segment], windows: set[int]) -> Iterator[None]:
    """While this lasts the switched model is given tokens of these segments; see Running."""
    token = _running.set(Running(torch.tensor(segments).flatten(), windows, {}))
    try:
        yield
    finally:
        _running.reset(token)


def is_forward_only() -> bool:
    return _forward_only.get()


@contextmanager
def grouped(groups: Sequence[Group]) -> Iterator[None]:
    """While this lasts a switched model attends group by group; all rows of its batch are in one."""
    token = _groups.set(groups)
    try:
        yield
    finally:
        _groups.reset(token)


@contextmanager
def forward_only() -> Iterator[None]:
    """In here attention takes what is fastest where no backward pass follows."""
    token = _forward_only.set(True)
    try:
        yield
    finally:
        _forward_only.reset(token)


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    with _registering:
        if NAME not in AttentionInterface():
            AttentionInterface.register(NAME, packed_attention)
            AttentionMaskInterface.register(NAME, _segments_for_mask)
