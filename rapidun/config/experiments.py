"""Experiment files given by path: `+experiment=DIR/experiment/NAME.yaml`, from any directory.

Hydra finds files by group and name below the folders of its search path: DIR joins that path, NAME is chosen from it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rapidun.config.paths import config_dir
from rapidun.config.quoting import quoted

GROUP = "experiment"


class Placed(NamedTuple):
    """An experiment file as Hydra finds it: `name` in the group `experiment` of the config folder `root`."""

    root: Path
    name: str


def is_path(value: object) -> bool:
    """Whether a choice of the group is the path of a file."""
    return isinstance(value, str) and value.endswith(".yaml")


def placed(value: str) -> Placed:
    """Where the file of a path lies."""
    file = Path(value).expanduser().absolute()
    return Placed(file.parents[1] if len(file.parents) > 1 else file.parent, file.stem)


def path_fault(value: str) -> str:
    """What keeps a path from being chosen; empty where nothing does."""
    file = Path(value).expanduser().absolute()
    if not file.is_file():
        return f"{GROUP}: need an experiment file, got {value}, which is not there. Pass +{GROUP}=NAME or a path"
    if file.parent.name != GROUP:
        return f"{GROUP}: need a file in a folder named {GROUP}, got {value}. Move it to {file.parent / GROUP}/"
    own = config_dir() / GROUP / file.name
    if own.is_file() and not own.samefile(file):
        return f"{GROUP}: need a name that conf/{GROUP}/ does not have, got {value}. Rename the file"
    return ""


def search_path(folders: Sequence[Path]) -> list[str]:
    """The override that has Hydra look into these config folders as well; none where there are none."""
    names = ",".join(quoted(f"file://{folder.resolve()}") for folder in dict.fromkeys(folders))
    return [f"hydra.searchpath=[{names}]"] if folders else []
