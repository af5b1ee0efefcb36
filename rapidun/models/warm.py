"""A base model kept in memory between the stages and cells of one process, for as long as nobody has changed it.

At most one is kept. Who loads it has it to himself until it is handed back; then adapters, hooks and gradients are
taken off again, and it is kept only if every weight is what it was. So a kept model computes what a fresh one would.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

# what a model folder, and the way to load it, come down to
Key = tuple[object, ...]


@dataclass
class _Module:
    """A module as it was loaded: its class, its attributes, and the contents of those that are dictionaries."""

    module: nn.Module
    kind: type
    attributes: dict[str, Any]
    contents: dict[str, OrderedDict[str, Any] | dict[str, Any]]


@dataclass
class _Tensor:
    """A parameter or buffer as it was loaded."""

    tensor: Tensor
    version: int
    pointer: int
    form: tuple[object, ...]
    requires_grad: bool
    # bitsandbytes keeps the state of a quantised weight as attributes of the parameter
    attributes: dict[str, Any]


@dataclass
class Snapshot:
    """What a model and its tokenizer were right after loading; the weights themselves are not copied."""

    model: nn.Module
    tokenizer: Any
    modules: list[_Module] = field(init=False)
    tensors: list[_Tensor] = field(init=False)
    checksum: int = field(init=False)
    settings: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.modules = [_note_module(module) for module in self.model.modules()]
        self.tensors = [_note_tensor(tensor) for tensor in _tensors(self.model)]
        self.checksum = checksum(self.model)
        self.settings = self._settings()

    def restore(self) -> bool:
        """Undo what can be undone; return whether the model is as it was loaded."""
        for noted in self.modules:
            if type(noted.module) is not noted.kind:
                return False
            # modules that were wrapped or replaced (adapters) stand in their places again
            noted.module.__dict__.clear()
            noted.module.__dict__.update(noted.attributes)
            for name, content in noted.contents.items():
                found = noted.attributes[name]
                found.clear()
                found.update(content)
        for kept in self.tensors:
            kept.tensor.grad = None
            kept.tensor.requires_grad_(kept.requires_grad)
        return (
            [id(tensor) for tensor in _tensors(self.model)] == [id(kept.tensor) for kept in self.tensors]
            and all(_unchanged(kept) for kept in self.tensors)
            and self._settings() == self.settings
            # what writes through `.data`, as merging an adapter does, leaves no other trace
            and checksum(self.model) == self.checksum
        )

    def _settings(self) -> list[Any]:
        model, tokenizer = self.model, self.tokenizer
        configs = [getattr(model, name, None) for name in ("config", "generation_config")]
        return [
            *(None if config is None else config.to_dict() for config in configs),
            tokenizer.padding_side,
            tokenizer.truncation_side,
            tokenizer.chat_template,
            tokenizer.model_max_length,
            dict(tokenizer.special_tokens_map),
            len(tokenizer),
        ]


@dataclass
class _Shelf:
    key: Key | None = None
    snapshot: Snapshot | None = None
    lent: bool = False


_shelf = _Shelf()


def take(key: Key) -> Snapshot | None:
    """The kept model of this key, now lent; else None, and an empty shelf: another model, or one still lent, goes."""
    if _shelf.snapshot is not None and (_shelf.key != key or _shelf.lent):
        drop()
        # it may hang in reference cycles of its trainer, and two models at a time would double the memory
        gc.collect()
    _shelf.lent = _shelf.snapshot is not None
    return _shelf.snapshot


def keep(key: Key, snapshot: Snapshot) -> None:
    """Put a model on the shelf that its loader is about to use."""
    _shelf.key, _shelf.snapshot, _shelf.lent = key, snapshot, True


def hand_back() -> None:
    """The lent model is not used any more: keep it if it can be made what it was, else drop it."""
    if not _shelf.lent or _shelf.snapshot is None:
        return
    if _shelf.snapshot.restore():
        _shelf.lent = False
    else:
        drop()


def drop() -> None:
    """Keep no model; one that is lent lives on with those who use it."""
    _shelf.key = _shelf.snapshot = None
    _shelf.lent = False


def checksum(model: nn.Module) -> int:
    """The sum of the bytes of all weights and buffers, eight (or one) at a time, modulo 2^64."""
    import torch

    sums = []
    for tensor in _tensors(model):
        flat = tensor.detach().contiguous().flatten()
        if flat.numel():
            wide = flat.view(torch.uint8)
            sums.append((wide.view(torch.int64) if _whole_words(wide) else wide).sum(dtype=torch.int64))
    return int(torch.stack([value.cpu() for value in sums]).sum()) if sums else 0


def _whole_words(flat: Tensor) -> bool:
    return flat.numel() % 8 == 0 and flat.storage_offset() % 8 == 0 and flat.data_ptr() % 8 == 0


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _note_module(module: nn.Module) -> _Module:
    attributes = dict(module.__dict__)
    # parameters, buffers, submodules, hooks
    contents = {name: value.copy() for name, value in attributes.items() if isinstance(value, dict)}
    return _Module(module, type(module), attributes, contents)


def _note_tensor(tensor: Tensor) -> _Tensor:
    return _Tensor(
        tensor, tensor._version, tensor.data_ptr(), _form(tensor), tensor.requires_grad, dict(tensor.__dict__)
    )


def _form(tensor: Tensor) -> tuple[object, ...]:
    return (tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride())


def _unchanged(kept: _Tensor) -> bool:
    tensor = kept.tensor
    hooks = tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None)
    same = tensor.__dict__.keys() == kept.attributes.keys() and all(
        tensor.__dict__[name] is value for name, value in kept.attributes.items()
    )
    return (
        same
        and not any(hooks)
        and (tensor._version, tensor.data_ptr(), _form(tensor)) == (kept.version, kept.pointer, kept.form)
    )
