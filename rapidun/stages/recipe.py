"""What a stage is to the rest: what it makes and from what, known before anything is made.

A recipe's fingerprint follows from the settings and from the fingerprints of what it needs, so that a sweep can be
planned, and a finished artifact found, without running a stage. Nothing here runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rapidun.base.store import Key

if TYPE_CHECKING:
    from rapidun.stages.context import Context

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


@dataclass(frozen=True)
class Product(Generic[T]):
    """A name under which one stage provides something and others ask for it."""

    name: str


DATA: Product[Recipe] = Product("the pack's splits")
START: Product[Model] = Product("the model before poisoning")
POISONED: Product[Model] = Product("the model that is to be unlearned")
RETRAINED: Product[Recipe] = Product("the yardstick: the start model trained on clean rows only")
ADAPTER: Product[Model | None] = Product("the adapter to continue")
SCORES: Product[Recipe] = Product("influence of every row on every row")
WEIGHTS: Product[Recipe] = Product("a weight for each row")
UNLEARNED: Product[Evaluated] = Product("the model after unlearning")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: everything that the pipeline, sweeps and reports must know of it."""

    name: str
    # kind of artifact -> version, raised when its results change though its settings do not
    versions: Mapping[str, int]
    # what the stage makes, in order
    makes: Callable[[Context], list[Recipe]]
    # what others may ask for
    provides: Mapping[Product[Any], Callable[[Context], Any]] = field(default_factory=dict)
    # takes a moment and needs no torch: made while a sweep is planned, never a job of its own
    light: bool = False
    # its numbers stand in result.json as `<name>.<number>`
    numbers: bool = False
    # what a run folder holds of it beside links: given the stage's folder and its artifacts' folders by their link
    publish: Callable[[Path, Mapping[str, Path]], None] | None = None
    # what result.json has of it, given its artifacts' folders by their link
    metrics: Callable[[Mapping[str, Path]], dict[str, Any]] | None = None

    def key(self, kind: str, inputs: dict[str, Any]) -> Key:
        return Key(kind, self.versions[kind], inputs)


def without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    """Settings but for those that change only speed, memory or logging: they never cause work to be done again."""
    return {key: value for key, value in settings.items() if key not in names}
