"""What a stage is to the rest, and what its recipes are worked out from: settings, the pack, what others provide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from rapidun.base.files import sha256_file, sha256_json
from rapidun.base.manifest import Artifact
from rapidun.base.store import Key, Store
from rapidun.base.tracker import Tracker
from rapidun.config.model import AdapterAs, Device, Dtype
from rapidun.config.run import RunConfig
from rapidun.models.load import ModelLoader, pick_device, pick_dtype
from rapidun.stages.recipe import DATA, START_ADAPTER, Product, Recipe

T = TypeVar("T")
# what the CUDA and ROCm drivers (and WSL) put there; without any of them torch need not be asked
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


class Memo:
    """Hashes of input files, remembered over the many configurations of a sweep."""

    def __init__(self) -> None:
        self.known: dict[Any, Any] = {}

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]


class Context:
    """One configuration as its recipes see it; whatever is asked for is worked out once.

    Args:
        find_data: gives the artifact of the data recipe, making it if need be: what later artifacts are called depends
            on the contents of its splits. tracker: what stages report to. warm: keep a model for the next run.
        here: it runs on this machine (what this one lacks, others may have). fetch: a model may come from the hub.
    """

    # how each product is worked out, by the stage that provides it
    provided: Mapping[Product[Any], Callable[[Context], Any]] = {}

    def __init__(
        self,
        cfg: RunConfig,
        store: Store,
        *,
        find_data: Callable[[Recipe], Artifact],
        tracker: Tracker,
        memo: Memo | None = None,
        warm: bool = False,
        here: bool = True,
        fetch: bool = True,
    ) -> None:
        self.cfg = cfg
        self.store = store
        self.tracker = tracker
        self.memo = memo or Memo()
        self.warm = warm
        self.here = here
        self.fetch = fetch
        self._find_data = find_data
        self._known: dict[Product[Any] | str, Any] = {}

    def get(self, product: Product[T]) -> T:
        """What the stage that provides `product` makes of this configuration."""
        return self.once(product, lambda: self.provided[product](self))

    def once(self, name: Product[Any] | str, make: Callable[[], T]) -> T:
        """What `make` gave the first time that it was asked for under this name."""
        if name not in self._known:
            self._known[name] = make()
        found: T = self._known[name]
        return found

    def asked(self, stage: str) -> bool:
        """Whether the stage is to run; what others are made from has only to be there."""
        return stage in self.cfg.stages

    def path(self, recipe: Recipe) -> Path:
        """Where the artifact is, or will be."""
        return self.store.root / recipe.kind / recipe.fingerprint

    @cached_property
    def data(self) -> Artifact:
        return self._find_data(self.get(DATA))

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each split that the pack has."""
        found: dict[str, int] = self.data.result["counts"]
        return found

    def split(self, name: str) -> str:
        """Fingerprint of one split."""
        found: str = self.data.result["fingerprints"][name]
        return found

    @cached_property
    def loader(self) -> ModelLoader:
        model = self.cfg.model
        apart = model.adapter is not None and model.adapter_as is AdapterAs.apart
        return ModelLoader(
            dtype=model.dtype.name,
            quantisation=model.quantisation.name,
            attention=model.attention.name,
            device=model.device.name,
            keep=self.warm,
            over=self.get(START_ADAPTER) if apart else None,
            say=self.tracker.warn,
        )

    def hand_back(self) -> None:
        """Let the next stage of this process have the model that this one loaded, if it is as it was."""
        if "loader" in self.__dict__:
            self.loader.hand_back()

    @cached_property
    def dtype(self) -> str:
        """The resolved dtype; `auto` depends on the machine."""
        return self.dtype_of(self.cfg.model.dtype)

    def dtype_of(self, dtype: Dtype) -> str:
        """The resolved dtype of a model on this machine's device."""
        model = self.cfg.model
        if dtype.name != "auto":
            return dtype.name
        if model.device is Device.cpu or not any(Path(device).exists() for device in GPU_DEVICES):
            return "float32"
        return str(pick_dtype("auto", pick_device(model.device.name))).removeprefix("torch.")

    @property
    def numerics(self) -> dict[str, Any]:
        """What every stage that runs the model depends on."""
        return {
            "max_length": self.cfg.max_length,
            "dtype": self.dtype,
            "quantisation": self.cfg.model.quantisation.name,
        }

    def file_hash(self, file: Path) -> str:
        found: str = self.memo.get(("file", file), lambda: sha256_file(file))
        return found

    def folder_identity(self, files: list[Path]) -> str:
        """Names a folder of the user's by the contents of these files; large ones are remembered by their times."""
        return sha256_json({file.name: self.store.file_hash(file) for file in files})[:16]


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
    # what is wrong, known before anything runs: no pack is read, no torch brought
    check: Callable[[Context], list[str]] | None = None
    # the same, known as soon as the pack's splits are there
    check_rows: Callable[[Context], list[str]] | None = None
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
