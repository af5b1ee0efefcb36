"""From overrides to a checked RunConfig: Hydra composes the files of conf/, OmegaConf ends here."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rapidun import keys, paths
from rapidun.config import RunConfig
from rapidun.errors import ConfigError
from rapidun.files import sha256_json
from rapidun.preflight import check_overrides

CONFIG_NAME = "config"
VERSION_BASE = "1.3"
# settings that change where things go or who watches, never the numbers
BOOKKEEPING = ("name", "run_dir", "store_dir", "sweep", "tracking", "resources", "cluster")


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a sweep: its overrides as Hydra takes them and its checked configuration."""

    overrides: list[str]
    cfg: RunConfig


def compose_config(overrides: Sequence[str] = (), *, extra_dir: Path | None = None) -> RunConfig:
    """Compose and check one run.

    Args: overrides: as on the command line. extra_dir: a folder with more config groups.
    Raises: ConfigError with every fault that was found.
    """
    checked = check_overrides(overrides, groups=paths.config_groups(extra_dir), multirun=False)
    with _hydra(extra_dir) as extra:
        [cell], faults = _compose_all([checked.overrides], extra, check=checked.certain)
    _refuse([*checked.faults, *faults])
    return cell.cfg


def compose_cells(overrides: Sequence[str], *, extra_dir: Path | None = None) -> list[Cell]:
    """Compose and check every cell of a sweep: the product of all swept overrides, in the order in which Hydra runs it.

    Raises: ConfigError with every fault that was found in any cell.
    """
    groups = paths.config_groups(extra_dir)
    checked = check_overrides(overrides, groups=groups, multirun=True)
    if any(text.startswith("run_dir=") for text in checked.overrides):
        checked.faults.append("run_dir: each cell of a sweep has a folder of its own. Pass sweep.name=... instead")
    if any(_is_swept(text, "sweep.name") for text in checked.overrides):
        checked.faults.append("sweep.name: need one name for all cells, got several. Pass sweep.name=...")
    with _hydra(extra_dir) as extra:
        grid = [*_sweeper_params(checked.overrides, extra, groups, checked.faults), *checked.overrides]
        parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(grid)
        rows = BasicSweeper.split_arguments(parsed, None)[0]
        cells, faults = _compose_all(rows, extra, check=checked.certain)
    names = {cell.cfg.sweep.name for cell in cells} - {None}
    faults += [f"sweep.name: need a name without slashes, got {name!r}" for name in names if not _is_plain(str(name))]
    _refuse([*checked.faults, *faults])
    return cells


def spell(overrides: Sequence[str], *, extra_dir: Path | None = None) -> list[str]:
    """Overrides that were checked before, as Hydra takes them."""
    return check_overrides(overrides, groups=paths.config_groups(extra_dir), multirun=True).overrides


def to_run_config(cfg: DictConfig) -> RunConfig:
    """Turn what Hydra composed into the plain dataclass, and check it.

    Raises: ConfigError with every fault.
    """
    run, faults = _to_run_config(cfg)
    _refuse(faults)
    return run


def config_yaml(cfg: RunConfig) -> str:
    """The resolved configuration as YAML, the run folder's config.yaml."""
    return OmegaConf.to_yaml(OmegaConf.structured(cfg), resolve=True)


def cell_hash(cfg: RunConfig) -> str:
    """Name a sweep cell by the settings that its numbers depend on: 10 hex digits."""
    plain = OmegaConf.to_container(OmegaConf.structured(cfg), resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    return sha256_json({key: value for key, value in plain.items() if key not in BOOKKEEPING})[:10]


def register_schema() -> None:
    """Make `- schema` in conf/config.yaml mean RunConfig."""
    ConfigStore.instance().store(name="schema", node=RunConfig, provider="rapidun")


@contextmanager
def _hydra(extra_dir: Path | None) -> Iterator[list[str]]:
    """Initialise Hydra, also where somebody has done so already; yield the overrides that `extra_dir` needs."""
    register_schema()
    held = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(paths.config_dir()), job_name="rapidun", version_base=VERSION_BASE):
            yield [f"hydra.searchpath=[file://{extra_dir.resolve()}]"] if extra_dir else []
    finally:
        GlobalHydra.instance().hydra = held


def _compose_all(rows: Sequence[Sequence[str]], extra: list[str], *, check: bool) -> tuple[list[Cell], list[str]]:
    """Compose each row of overrides; faults that several rows share are named once."""
    cells: list[Cell] = []
    faults: dict[str, None] = {}
    for row in rows:
        cfg = RunConfig()
        try:
            cfg, found = _to_run_config(compose(CONFIG_NAME, [*row, *extra]))
            if check:
                faults.update(dict.fromkeys(found))
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError) as error:
            faults[composition_fault(error)] = None
        cells.append(Cell(list(row), cfg))
    return cells, list(faults)


def _to_run_config(cfg: DictConfig) -> tuple[RunConfig, list[str]]:
    try:
        run: Any = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        return RunConfig(), [composition_fault(error)]
    return run, run.check()


def _sweeper_params(
    overrides: Sequence[str], extra: list[str], groups: dict[str, list[str]], faults: list[str]
) -> list[str]:
    """The grid that an experiment file carries under hydra.sweeper.params."""
    steady = [text for text in overrides if not _is_swept(text)]
    try:
        params = compose(CONFIG_NAME, [*steady, *extra], return_hydra_config=True).hydra.sweeper.get("params") or {}
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError):
        return []  # reported when the cells are composed
    checked = check_overrides([f"{key}={value}" for key, value in params.items()], groups=groups, multirun=True)
    faults += [f"hydra.sweeper.params: {fault}" for fault in checked.faults]
    return checked.overrides


def _is_swept(text: str, key: str | None = None) -> bool:
    override = OverridesParser.create().parse_override(text)
    return override.is_sweep_override() and key in (None, override.key_or_group)


def _is_plain(name: str) -> bool:
    return bool(name.strip(" .")) and not any(c in name for c in "/\\\0")


def composition_fault(error: BaseException) -> str:
    """One line for what is wrong in a file of conf/ (a wrong key, a wrong value, broken YAML)."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}:{mark.line + 1}: not YAML: {error.problem or error.context}"
    if isinstance(error, UnicodeDecodeError):
        return f"a file of conf/ is not UTF-8 ({error.reason} at byte {error.start})"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        known = f"; known: {', '.join(error.options)}" if error.options else ""
        return f"{error.missing_cfg_file}: no such config file{known}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # Hydra begins with: In 'mapping/mine': ValidationError raised while composing config:
    place = f"{lines[0].split(chr(39))[1]}.yaml: " if lines[0].startswith("In '") else ""
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    if isinstance(cause, OmegaConfBaseException):
        key = str(cause.full_key or cause.key or "")
        if key and keys.find(key) is None:
            return place + keys.unknown_key(key)
        if key:
            return f"{place}{key}: need {keys.describe(keys.find(key))}: {str(cause).splitlines()[0]}"
    return place + " ".join(lines[:2])


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))
