"""Which parameters the gradients are taken of: named sets of weights, found in any causal LM."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rapidun.base.errors import ConfigError
from rapidun.config.influence import ParameterSet
from rapidun.models.layers import is_linear_layer, uncalled_layers

ATTENTION_NAMES = ("attn", "attention")
MLP_NAMES = ("mlp", "feed_forward", "ffn")


class Candidate(NamedTuple):
    """One nn.Linear or nn.Embedding of a model, and what it is there for."""

    name: str
    module: nn.Module
    is_linear: bool
    is_head: bool
    is_input_embedding: bool
    is_adapter: bool  # a LoRA factor
    is_called: bool  # the model's code calls the layer, and does not use its weight alone

    @property
    def is_body(self) -> bool:
        return self.is_linear and self.is_called and not self.is_head and not self.is_adapter

    def within(self, words: tuple[str, ...]) -> bool:
        return any(word in part for part in self.name.split(".") for word in words)


@dataclass(frozen=True, eq=False, slots=True)
class TrackedParameter:
    """One weight matrix, and every module that uses it (two where the output head is tied to the embedding)."""

    name: str
    # [rows, columns] of the gradient: an nn.Linear's [out, in] (GPT-2's Conv1D stores its transpose), an nn.Embedding's
    # [num_embeddings, dim]
    shape: tuple[int, int]
    modules: tuple[nn.Module, ...]
    # place of its first module in the model, 0 = the earliest: how deep a gradient must go
    depth: int

    @property
    def numel(self) -> int:
        return self.shape[0] * self.shape[1]


SELECTORS: dict[ParameterSet, Callable[[Candidate], bool]] = {
    ParameterSet.all_linear: lambda c: c.is_body,
    ParameterSet.attention: lambda c: c.is_body and c.within(ATTENTION_NAMES),
    ParameterSet.mlp: lambda c: c.is_body and c.within(MLP_NAMES),
    ParameterSet.lora: lambda c: c.is_adapter,
    ParameterSet.lm_head: lambda c: c.is_head,
    ParameterSet.embeddings: lambda c: c.is_input_embedding,
}


def select_parameters(model: nn.Module, params: ParameterSet, *, regex: str | None = None) -> list[TrackedParameter]:
    """Find the weights of one parameter set, in the order of the model's modules.

    The output head is `model.get_output_embeddings()`. A weight that several modules share (a tied head) is one
    parameter whose gradient has the contributions of all of them. Biases and norms belong to no set; the
    factors of LoRA only to `lora` and `regex`. The weight of a quantised layer counts with its full shape.

    Args:
        regex: full match on module names (not `.weight` names), for `params=regex`.
    Raises: ConfigError if nothing is selected (lists the names there are), or if an embedding that rescales its
        output is.
    """
    candidates = _candidates(model)
    if params is ParameterSet.regex:
        pattern = re.compile(regex or "")
        chosen = [c for c in candidates if pattern.fullmatch(c.name)]
    else:
        chosen = [c for c in candidates if SELECTORS[params](c)]
    if not chosen:
        names = sorted({re.sub(r"\b\d+\b", "*", c.name) for c in candidates})
        wanted = f"params=regex, regex={regex!r}" if params is ParameterSet.regex else f"params={params.name}"
        raise ConfigError(
            f"influence: need parameters that the model has, got {wanted}, which matches none of its modules: "
            f"{', '.join(names[:40]) or 'no nn.Linear and no nn.Embedding'}. Change influence.params or influence.regex"
        )
    places = {c.name: place for place, c in enumerate(candidates)}
    tracked = []
    done: set[int] = set()
    for first in chosen:
        weight = first.module.weight
        if id(weight) in done:
            continue
        done.add(id(weight))
        sharing = [c for c in candidates if c.module.weight is weight]
        for candidate in sharing:
            _check_embedding(candidate)
        tracked.append(
            TrackedParameter(
                name=f"{first.name}.weight",
                shape=_shape(first.module),
                modules=tuple(c.module for c in sharing),
                depth=min(places[c.name] for c in sharing),
            )
        )
    return tracked


def other_weights(model: nn.Module) -> dict[str, int]:
    """Matrices of the model that no parameter set can hold, since they are no layer's weight: name -> numbers.

    The experts of most mixtures of experts are such, one tensor for all of a block; a router that gives several things;
    a layer that the code never calls.
    """
    candidates = _candidates(model)
    known = {
        id(c.module.weight) for c in candidates if c.is_called and (c.is_linear or isinstance(c.module, nn.Embedding))
    }
    return {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and id(parameter) not in known
    }


def untracked_of_adapter(model: nn.Module) -> dict[str, int]:
    """Weights of an adapter that are no LoRA factor of a layer: name -> numbers.

    A module that is trained as a whole (modules_to_save), the factors of an embedding, DoRA's magnitudes.
    """
    known = {id(candidate.module.weight) for candidate in _candidates(model) if candidate.is_adapter}
    words = ("modules_to_save", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "trainable_tokens")
    return {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if id(parameter) not in known and any(word in name.split(".") for word in words)
    }


def output_head(model: nn.Module) -> nn.Module | None:
    """The module that turns hidden states into logits, or None where the model does not say."""
    try:
        return model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None


def _candidates(model: nn.Module) -> list[Candidate]:
    head = output_head(model)
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        embedding = None
    # an adapter may have wrapped them: the layer itself is then one of the wrapper's modules
    head_ids = {id(m) for m in head.modules()} if head is not None else set()
    embedding_ids = {id(m) for m in embedding.modules()} if embedding is not None else set()
    candidates = []
    uncalled = uncalled_layers(model)
    for name, module in model.named_modules():
        # a LoRA layer of peft holds the layer it wraps as base_layer; it has no weight of its own
        if not isinstance(module, nn.Linear | nn.Embedding | Conv1D) or not isinstance(
            module._parameters.get("weight"), nn.Parameter
        ):
            continue
        parts = name.split(".")
        if "original_module" in parts:  # peft's unused copy under modules_to_save
            continue
        is_adapter = any(part.startswith("lora_") for part in parts)
        candidates.append(
            Candidate(
                name=name,
                module=module,
                is_linear=is_linear_layer(module),
                is_head=id(module) in head_ids and not is_adapter,
                is_input_embedding=id(module) in embedding_ids and isinstance(module, nn.Embedding),
                is_adapter=is_adapter,
                is_called=name.removesuffix(".base_layer") not in uncalled,
            )
        )
    return candidates


def _shape(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        # not weight.shape: 4-bit weights are packed
        return module.out_features, module.in_features
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    raise TypeError(type(module).__name__)


def _check_embedding(candidate: Candidate) -> None:
    module = candidate.module
    if not isinstance(module, nn.Embedding):
        return
    # a subclass that rescales: the output's gradient is not the looked-up row's
    if type(module).forward is not nn.Embedding.forward or module.max_norm is not None:
        raise ConfigError(
            f"influence: need a plain nn.Embedding, got {candidate.name}, a {type(module).__name__} that changes the "
            "rows it looks up. Choose another influence.params"
        )


def num_numbers(parameters: list[TrackedParameter]) -> int:
    """Numbers in one gradient over all of `parameters`."""
    return sum(parameter.numel for parameter in parameters)


class ParameterGroup(NamedTuple):
    """Weights of one shape whose names differ in numbers only: the same layer of every block."""

    name: str  # numbers replaced by *
    shape: tuple[int, int]
    num_weights: int

    @property
    def numel(self) -> int:
        return self.num_weights * self.shape[0] * self.shape[1]


def parameter_groups(parameters: list[TrackedParameter]) -> list[ParameterGroup]:
    """What is tracked, in few lines: in the order of each group's first weight."""
    counts: dict[tuple[str, tuple[int, int]], int] = {}
    for parameter in parameters:
        key = (re.sub(r"\b\d+\b", "*", parameter.name), parameter.shape)
        counts[key] = counts.get(key, 0) + 1
    return [ParameterGroup(name, shape, num) for (name, shape), num in counts.items()]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for every narrower type."""
    return torch.float64 if dtype == torch.float64 else torch.float32
