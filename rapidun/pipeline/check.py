"""What is checked before a run's first stage: everything that is known of all stages asked for, told together."""

import os
import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from rapidun.base.errors import RapidunError
from rapidun.base.files import existing
from rapidun.base.manifest import Artifact
from rapidun.base.store import Store
from rapidun.base.tracker import Tracker
from rapidun.config.model import Dtype
from rapidun.config.poison import PoisonMethod
from rapidun.config.run import RunConfig
from rapidun.config.tracking import TrackerKind
from rapidun.models.neutral import num_parameters
from rapidun.stages.context import Memo
from rapidun.stages.recipe import START, Recipe
from rapidun.stages.recipes import Recipes

GIB = 2**30
# the report of every run
PAGES = ("jinja2", "plotly", "matplotlib")
TRACKERS = {TrackerKind.wandb: "wandb", TrackerKind.tensorboard: "tensorboard", TrackerKind.trackio: "trackio"}
# Adam keeps two moments in float32, and a bfloat16 model is trained as float32
MOMENTS = 8


def run_faults(cfg: RunConfig, *, memo: Memo | None = None, here: bool = True, fetch: bool = True) -> list[str]:
    """Every fault of a checked configuration that shows before anything is run or written.

    Args: memo: what was looked at for other configurations of a sweep. here, fetch: as of Context.
    """
    recipes = Recipes(
        cfg, Store(Path(cfg.store_dir)), find_data=_no_data, tracker=Tracker(), memo=memo, here=here, fetch=fetch
    )
    places = {"store_dir": cfg.store_dir, **({"run_dir": cfg.run_dir} if cfg.run_dir else {})}
    # of a store that may only be read what is there can be used; what is not is refused when it is to be made
    store = Path(cfg.store_dir).expanduser()
    if os.path.isdir(store) and next(store.glob("*/*/manifest.json"), None) is not None:
        del places["store_dir"]
    faults = [fault for key, place in places.items() if (fault := _place_fault(key, place))]
    return [*faults, *(_package_faults(cfg, recipes) if here else []), *recipes.faults()]


def room_warning(recipes: Recipes, missing: Iterable[Recipe]) -> str:
    """What will not fit where the store is, by a rough count of what is to be made; empty where it does."""
    cfg, kinds = recipes.cfg, {recipe.kind for recipe in missing}
    if cfg.model.path is None or not kinds & {"poison", "model", "unlearning", "edit"}:
        return ""
    folder = recipes.get(START).folder
    try:
        place = folder if folder.is_dir() else Path(cfg.model.path).expanduser()
        number = num_parameters(place)
    except RapidunError:
        return ""
    each = 4 if cfg.model.dtype is Dtype.float32 else 2
    needed = number * each if "poison" in kinds else 0
    needed += number * 2 if "model" in kinds else 0
    needed += number * each if "unlearning" in kinds and cfg.unlearning.merge else 0
    needed += number * each if "edit" in kinds and not cfg.unlearning.adapts else 0
    if "poison" in kinds and cfg.poison.save_steps and cfg.poison.method is PoisonMethod.full:
        needed += number * (4 + MOMENTS)
    free = shutil.disk_usage(existing(recipes.store.root)).free
    if needed <= free:
        return ""
    return (
        f"store: about {needed / GIB:.1f} GiB are to be written below {recipes.store.root}, {free / GIB:.1f} GiB are "
        "free. Make room (rapidun store prune), pass store_dir=..., or poison.save_steps=0 for no checkpoints"
    )


def _no_data(recipe: Recipe) -> Artifact:
    raise AssertionError("no check before the first stage reads the pack")


def _place_fault(key: str, path: str) -> str:
    place = existing(Path(path).expanduser())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return ""
    why = "is no folder" if not place.is_dir() else "is not writable"
    return f"{key}: need a folder that can be written, got {path} ({place} {why}). Pass {key}=..."


def _package_faults(cfg: RunConfig, recipes: Recipes) -> list[str]:
    """Packages that the run needs beside its stages: those of the report and of the tracker."""

    def lacks(name: str) -> bool:
        there: bool = recipes.memo.get(("package", name), lambda: find_spec(name) is not None)
        return not there

    found = [
        f"report: need the package {name}, got none. Run: pip install {name}, or reinstall rapidun"
        for name in PAGES
        if lacks(name)
    ]
    tracker = TRACKERS.get(cfg.tracking.kind)
    if tracker and lacks(tracker):
        found.append(
            f"tracking: need the package {tracker} for tracking={tracker}, got none. pip install 'rapidun[{tracker}]', "
            "or pass tracking=none"
        )
    return found
