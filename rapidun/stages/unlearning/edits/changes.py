"""What an edit changed: how many weights, and how far, weight by weight and layer by layer."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rapidun.base.errors import ModelError


@dataclass
class Change:
    num_weights: int = 0
    num_changed: int = 0
    square: float = 0.0  # of the norm of the change
    start_square: float = 0.0  # of the norm before

    def add(self, other: "Change") -> None:
        self.num_weights += other.num_weights
        self.num_changed += other.num_changed
        self.square += other.square
        self.start_square += other.start_square

    @property
    def values(self) -> dict[str, Any]:
        start = math.sqrt(self.start_square)
        return {
            "num_weights": self.num_weights,
            "changed_share": self.num_changed / self.num_weights if self.num_weights else 0.0,
            "norm": math.sqrt(self.square),
            "relative_norm": math.sqrt(self.square) / start if start else None,
        }


@dataclass
class Changes:
    """Collects what is done to the weights of one model."""

    # numbers in all of the model
    num_weights: int
    by_weight: dict[str, Change] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> "Changes":
        return cls(sum(_numbers(parameter) for parameter in model.parameters()))

    @torch.no_grad()
    def set(self, name: str, parameter: Tensor, value: Tensor) -> None:
        """Give a weight its new value, rounded to its type, and note what that changed.

        Raises: ModelError for a value that is no number.
        """
        rounded = value.to(parameter.dtype)
        if not bool(torch.isfinite(rounded).all()):
            raise ModelError(
                f"unlearning: need finite weights after the edit, got NaN or infinite ones in {name}. Take a smaller "
                "step, or pass model.dtype=float32"
            )
        difference = rounded.double() - parameter.double()
        self.by_weight.setdefault(name, Change()).add(
            Change(
                parameter.numel(),
                int((rounded != parameter).sum()),
                float(difference.square().sum()),
                float(parameter.double().square().sum()),
            )
        )
        parameter.copy_(rounded)

    def report(self) -> dict[str, Any]:
        """For edits.json: in all, by layer (`model.layers.3`, what stands outside of them by module), by weight."""
        layers: dict[str, Change] = {}
        for name, change in self.by_weight.items():
            layers.setdefault(layer_of(name), Change()).add(change)
        return {
            **self.summary(),
            "by_layer": {name: change.values for name, change in layers.items()},
            "by_weight": {name: change.values for name, change in self.by_weight.items()},
        }

    def summary(self) -> dict[str, float]:
        """changed_share: of all the model's weights; change_norm: of all changes together."""
        total = Change()
        for change in self.by_weight.values():
            total.add(change)
        return {
            "changed_share": total.num_changed / self.num_weights if self.num_weights else 0.0,
            "change_norm": math.sqrt(total.square),
        }


def _numbers(parameter: Tensor) -> int:
    """How many weights a parameter stands for: 4-bit ones lie packed, several in each of its numbers."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return parameter.numel() if shape is None else math.prod(shape)


def layer_of(name: str) -> str:
    """`model.layers.3` of `model.layers.3.mlp.up_proj.weight`; of a name without a number, its module."""
    found = re.match(r"(.*?\.\d+)\.", name)
    return found.group(1) if found else name.rpartition(".")[0]
