"""How an artifact is made and from what, known before it is made.

A recipe's fingerprint follows from the settings and from the fingerprints of what it needs, so that a sweep can be
planned, and a finished artifact found, without running a stage. Nothing here runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rapidun.base.store import Key

if TYPE_CHECKING:
    from rapidun.models.start_adapter import StartAdapter

T = TypeVar("T")
Build = Callable[[Path, Path], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Recipe:
    """How one artifact is made. `build(out, work)` may rely on everything in `needs` being there."""

    # whose result it is (a retrained model is unlearning's, kept under the kind poison)
    stage: str
    key: Key
    # its name in the run folder
    link: str
    build: Build
    needs: tuple[Recipe, ...] = ()
    # made when something needs it, whatever `stages` says
    implicit: bool = False
    # every process of a data-parallel run takes part
    together: bool = False

    @property
    def kind(self) -> str:
        return self.key.kind

    @property
    def inputs(self) -> dict[str, Any]:
        return self.key.inputs

    @property
    def fingerprint(self) -> str:
        return self.key.fingerprint

    @property
    def id(self) -> str:
        """`poison/0123456789abcdef`: its folder below the store."""
        return self.key.id


@dataclass(frozen=True)
class Model:
    """Something with weights: made by a recipe, or a folder of the user's."""

    identity: str
    folder: Path
    recipe: Recipe | None = None

    @property
    def needs(self) -> tuple[Recipe, ...]:
        return (self.recipe,) if self.recipe else ()


@dataclass(frozen=True)
class Evaluated:
    """What is evaluated after unlearning: a model, with an adapter over it or not."""

    model: Model
    adapter: Model | None


@dataclass(frozen=True, kw_only=True)
class StartFacts:
    """What is known of the start model before it is loaded; None where it is not."""

    # tokens that it can read at once
    window: int | None = None
    num_layers: int | None = None
    # why it cannot be used at all
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Product(Generic[T]):
    """A name under which one stage provides something and others ask for it."""

    name: str


DATA: Product[Recipe] = Product("the pack's splits")
START: Product[Model] = Product("the model before poisoning")
START_ADAPTER: Product[StartAdapter | None] = Product("the adapter that is part of the model before poisoning")
START_FACTS: Product[StartFacts] = Product("what is known of the model before poisoning")
POISONED: Product[Model] = Product("the model that is to be unlearned")
RETRAINED: Product[Recipe] = Product("the yardstick: the start model trained on clean rows only")
ADAPTER: Product[Model | None] = Product("the adapter to continue")
ADAPTER_FAULTS: Product[list[str]] = Product("what is wrong with the adapter to continue")
SCORES: Product[Recipe] = Product("influence of every row on every row")
TOKEN_SCORES: Product[Recipe] = Product("scores of the response tokens of every forget row")
ROW_LOSSES: Product[Recipe] = Product("the loss of every forget row under the model that is to be unlearned")
CURVATURE: Product[Recipe] = Product("the Fisher matrix of the retain rows, weight by weight")
WEIGHTS: Product[Recipe] = Product("a weight for each row")
UNLEARNED: Product[Evaluated] = Product("the model after unlearning")


def without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    """Settings but for those that change only speed, memory or logging: they never cause work to be done again."""
    return {key: value for key, value in settings.items() if key not in names}
