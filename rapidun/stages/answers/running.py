"""Rows that are decoded together: keys and values lie in buffers that a step writes into; rows join and leave.

Rows end in one column, what lies before their beginning is masked: the layout of prompts padded on their left.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rapidun.models.packing import Group, grouped, is_forward_only
from rapidun.stages.answers.reading import Ask

Pair = tuple[Tensor, Tensor]
# rows attend together down to this part of the longest one's tokens
ALIKE = 0.7


class Room(DynamicLayer):
    """Keys and values of a layer, [B, H, T, D] each; with room for more, a step copies nothing of what is there."""

    def __init__(self, pair: Pair | None = None, *, room: int = 0) -> None:
        super().__init__()
        self._buffers: Pair | None = None
        if pair is not None:
            self._buffers = pair
            self._show(pair[0].shape[2] - room)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Pair:
        if self._buffers is None:
            self._buffers = (key_states, value_states)
            self._show(key_states.shape[2])
        else:
            end = self.keys.shape[2] + key_states.shape[2]
            self._show(end)
            self.keys[:, :, end - key_states.shape[2] :] = key_states
            self.values[:, :, end - key_states.shape[2] :] = value_states
        return self.keys, self.values

    def _show(self, end: int) -> None:
        assert self._buffers is not None and end <= self._buffers[0].shape[2]
        self.keys, self.values = (x[:, :, :end] for x in self._buffers)
        self.device, self.is_initialized = self.keys.device, True


@dataclass
class Block:
    """B rows as far as they have been read."""

    numbers: list[int]  # [B] which prompts they continue
    lengths: Tensor  # [B] int64, tokens read
    # of each layer [B, H, T, D], T = the most tokens, ending together; None where a layer keeps nothing
    layers: list[Pair | None]

    def __len__(self) -> int:
        return len(self.numbers)


def empty_cache(model: Any) -> DynamicCache:
    """One that keeps what a first pass reads as it is."""
    cache = DynamicCache(config=base_of(model).config)
    cache.layers = [Room() for _ in cache.layers]
    return cache


def block_of(cache: DynamicCache, places: Sequence[tuple[int, int]], asks: Sequence[Ask], numbers: list[int]) -> Block:
    """What was read of some prompts, out of a cache that other tokens lie in as well.

    Args: places: of each prompt in the cache, see Reading.
    """
    lengths = [len(ask.prompt) for ask in asks]
    width = max(lengths)

    def taken(whole: Tensor) -> Tensor:
        out = whole.new_empty(len(asks), whole.shape[1], width, whole.shape[3])
        for row, ((source, begin), length) in enumerate(zip(places, lengths, strict=True)):
            out[row, :, : width - length] = 0
            out[row, :, width - length :] = whole[source, :, begin : begin + length]
        return out

    layers: list[Pair | None] = []
    for layer in cache.layers:
        layers.append((taken(layer.keys), taken(layer.values)) if layer.is_initialized else None)
        layer.reset()
    device = next((pair[0].device for pair in layers if pair), torch.device("cpu"))
    return Block(numbers, torch.tensor(lengths, device=device), layers)


def bytes_a_token(block: Block) -> int:
    """What one token of one row takes in all layers."""
    return sum(x.shape[1] * x.shape[3] * x.element_size() for pair in block.layers if pair for x in pair)


class Running:
    """Rows that are being decoded."""

    def __init__(self, model: Any, blocks: Sequence[Block], *, room: int) -> None:
        """Lay blocks side by side, with room for so many steps; the blocks are taken apart on the way."""
        self._model = model
        self._takes_positions = "position_ids" in inspect.signature(base_of(model).forward).parameters
        lengths = torch.cat([block.lengths for block in blocks])
        # where each row lay, the longest first: rows of similar lengths lie together
        self.order = torch.argsort(lengths, descending=True, stable=True)
        numbers = [number for block in blocks for number in block.numbers]
        self.numbers = [numbers[place] for place in self.order.tolist()]
        self.lengths = lengths[self.order]
        self.width = int(self.lengths.max())
        self._groups = groups_of(self.lengths.tolist()) if is_forward_only() else []
        self._cache = empty_cache(model)
        # one layer after the other, so that no more than one is there twice
        for place in range(len(self._cache.layers)):
            pairs = [pair for block in blocks if (pair := block.layers[place]) is not None]
            for block in blocks:
                block.layers[place] = None
            if pairs:
                keys, values = (self._joined(tensors, room) for tensors in zip(*pairs, strict=True))
                self._cache.layers[place] = Room((keys, values), room=room)

    def __len__(self) -> int:
        return len(self.numbers)

    def _joined(self, tensors: Sequence[Tensor], room: int) -> Tensor:
        first = tensors[0]
        # the room is written before it is read; what is masked is multiplied by 0 all the same
        out = first.new_empty(len(self), first.shape[1], self.width + room, first.shape[3])
        places, top = torch.argsort(self.order), 0
        for tensor in tensors:
            seen = min(self.width, tensor.shape[2])
            rows = places[top : top + len(tensor)]
            if seen < self.width:
                out[rows, :, : self.width - seen] = 0
            out[rows, :, self.width - seen : self.width] = tensor[:, :, tensor.shape[2] - seen :]
            top += len(tensor)
        return out

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token of each row, [B]; returns the logits of the next one, [B, V]."""
        self.lengths = self.lengths + 1
        self.width += 1
        columns = torch.arange(self.width, device=tokens.device)
        mask = (columns >= self.width - self.lengths[:, None]).long()
        positions = {"position_ids": self.lengths[:, None] - 1} if self._takes_positions else {}
        with grouped(self._groups):
            found: Tensor = self._model(
                input_ids=tokens[:, None], attention_mask=mask, cache=self._cache, use_cache=True, **positions
            ).logits[:, -1]
        return found

    def only(self, places: Sequence[int]) -> Block:
        """Some of the rows, as a block."""
        layers: list[Pair | None] = []
        index = torch.tensor(places, device=self.lengths.device)
        for layer in self._cache.layers:
            some = places if len(places) < len(self) else None
            pair = (layer.keys, layer.values) if layer.is_initialized else None
            layers.append((pair[0][index], pair[1][index]) if pair and some is not None else pair)
        return Block([self.numbers[place] for place in places], self.lengths[index], layers)


def groups_of(lengths: Sequence[int]) -> list[Group]:
    """Rows side by side that see alike, from the lengths of rows that end together, the longest first.

    A group is done once a row is shorter than ALIKE of its longest; columns are counted from where that one begins.
    """
    found: list[Group] = []
    for row, length in enumerate(lengths):
        if found and length >= ALIKE * lengths[found[-1].first]:
            found[-1] = found[-1]._replace(end=row + 1)
        else:
            found.append(Group(row, row + 1, lengths[0] - length))
    return found


def base_of(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
