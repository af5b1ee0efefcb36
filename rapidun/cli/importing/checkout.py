"""A RapidUn checkout: which configuration, and where the files are that it names.

The layout of the release: data/{unlearn_packs,dolly_triggers_out,RapidIn_output}/, src/configs/*.yaml.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from rapidun.base.errors import ConfigError
from rapidun.cli.importing.settings_file import Setting, read_settings

# the two parts of the pipeline's configuration: influence and mapping, then unlearning
SECTIONS = ("rapidin", "rapidun")
CONFIG_FOLDERS = ("src/configs", "configs", ".")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class Checkout(NamedTuple):
    """root: the checkout's folder. config: the configuration's file. others: files beside it that are none."""

    root: Path
    config: Path
    settings: list[Setting]
    others: list[Path]

    def find(self, written: str) -> Path | None:
        """The file or folder that a path of the configuration means, absolute; None where there is none.

        An absolute path that is there; a relative one below the checkout, its src/ or the configuration's folder; else
        the longest end of it that is there below the checkout: the authors' /their/disk/data/packs is data/packs here.
        """
        path = Path(written).expanduser()
        parts = [part for part in path.parts if part not in ("/", ".", "..")]
        near = [] if path.is_absolute() else [self.root, self.root / "src", self.config.parent]
        places = [folder / path for folder in near] or [path]
        places += [self.root.joinpath(*parts[start:]) for start in range(len(parts))]
        # links are left as they are: packs are known by the names of their folders
        return next((Path(os.path.abspath(place)) for place in places if os.path.exists(place)), None)

    def expected(self, written: str) -> Path:
        """Where a path that means nothing here should be."""
        return Path(written).expanduser() if Path(written).is_absolute() else self.root / written


def open_checkout(named: Path) -> Checkout:
    """Args: named: a checkout's folder, or one configuration of it.

    Raises: ConfigError where there is no such thing, or several configurations to choose from.
    """
    named = named.expanduser().absolute()
    if named.is_file():
        settings = read_settings(named)
        if not _is_release(settings):
            raise ConfigError(f"{named}: need the sections {' and '.join(SECTIONS)}, got {_sections(settings)}")
        return Checkout(_root_of(named), named, settings, [])
    if not named.is_dir():
        raise ConfigError(f"import: need a RapidUn checkout or a YAML file of it, got {named}, which is not there")
    files = [file for place in CONFIG_FOLDERS for file in sorted((named / place).glob("*.y*ml"))]
    if not files:
        raise ConfigError(
            f"import: need a RapidUn checkout, with src/configs/*.yaml, got {named}, which has none. Name the YAML file"
        )
    read = {file: read_settings(file) for file in files}
    found = [file for file in files if _is_release(read[file])]
    if len(found) != 1:
        what = (
            f"got {len(found)}: {', '.join(map(str, found))}" if found else f"got none in {', '.join(map(str, files))}"
        )
        raise ConfigError(
            f"import: need one configuration with the sections {' and '.join(SECTIONS)}, {what}. Name the file"
        )
    return Checkout(named, found[0], read[found[0]], [file for file in files if file != found[0]])


def _is_release(settings: list[Setting]) -> bool:
    return any(setting.key.startswith(f"{section}.") for setting in settings for section in SECTIONS)


def _sections(settings: list[Setting]) -> str:
    names = list(dict.fromkeys(setting.key.partition(".")[0] for setting in settings))
    return ", ".join(names[:8]) or "nothing"


def _root_of(config: Path) -> Path:
    """The checkout that a configuration belongs to: above src/configs, or above configs, or its own folder."""
    folder = config.parent
    if folder.name == "configs":
        return folder.parents[1] if folder.parent.name == "src" else folder.parent
    return folder
