"""Hydra composes the files of conf/ here, once for each combination of them.

What the cells of a sweep change besides is plain values, set on a copy; wherever that could differ from what Hydra
would compose, Hydra composes the cell.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from rapidun.base.errors import ConfigError
from rapidun.config import extensions, keys, paths
from rapidun.config.asked import Asked
from rapidun.config.experiments import GROUP, is_path, placed, search_path
from rapidun.config.hydra_settings import section_faults
from rapidun.config.overrides import check_overrides, convert, is_leaf, is_special, parse, values
from rapidun.config.quoting import quoted
from rapidun.config.run import RunConfig
from rapidun.config.yaml_files import use_plain_files

CONFIG_NAME = "config"
VERSION_BASE = "1.3"


def register_schema() -> None:
    """Make `- schema` in conf/config.yaml mean RunConfig."""
    store = ConfigStore.instance()
    store.store(name="schema", node=RunConfig, provider="rapidun")
    for group, (_, key) in extensions.GROUPS.items():
        for name in extensions.names_of(group):
            store.store(group=group, name=name, node={key: name}, provider="rapidun")
    use_plain_files()


@contextmanager
def hydra_ready(extra_dir: Path | None) -> Iterator[list[Path]]:
    """Initialise Hydra, also where somebody has done so already; yield the config folders beside our own."""
    register_schema()
    held = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(paths.config_dir()), job_name="rapidun", version_base=VERSION_BASE):
            yield [extra_dir] if extra_dir else []
    finally:
        GlobalHydra.instance().hydra = held


class ComposedRow(NamedTuple):
    """A composed configuration and the file chosen from each config group."""

    cfg: RunConfig
    choices: Mapping[str, str | None]
    # hydra.sweeper.params: the grid that an experiment file carries
    params: Mapping[str, Any]
    # no value refers to another one, so that setting a plain value changes nothing else
    plain: bool


def compose_row(overrides: Sequence[str], extra: Sequence[Path]) -> tuple[ComposedRow | None, str]:
    """Let Hydra compose one row of overrides; return a fault where it cannot.

    Args: extra: config folders beside our own.
    """
    found = by_name(overrides)
    try:
        composed = compose(
            CONFIG_NAME, [*found.overrides, *search_path([*extra, *found.folders])], return_hydra_config=True
        )
        forbidden = section_faults(composed.hydra)
        if forbidden:
            return None, "\n".join(forbidden)
        choices: dict[str, str | None] = dict(composed.hydra.runtime.choices)
        sweeper = composed.hydra.sweeper
        params: Any = OmegaConf.to_container(sweeper.params, resolve=True) if sweeper.get("params") else {}
        with open_dict(composed):
            del composed["hydra"]
        refers = is_special(OmegaConf.to_container(composed, resolve=False))
        run: Any = OmegaConf.to_object(composed)
    except RecursionError:
        return None, "config files: need defaults and values that end, got a file that leads back to itself"
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError) as error:
        return None, composition_fault(error)
    return ComposedRow(run, choices, params, not refers), ""


class Composer:
    """Composes rows of overrides, with Hydra once for all rows that differ in plain values only."""

    def __init__(self, extra: Sequence[Path], groups: Mapping[str, Sequence[str]]) -> None:
        self._extra = extra
        self._groups = groups
        self._bases: dict[tuple[object, ...], tuple[ComposedRow | None, str]] = {}
        self._plain: dict[str, tuple[str, Any] | None] = {}

    def cell(self, row: Sequence[str]) -> tuple[ComposedRow | None, str]:
        """The row's own configuration, or a fault."""
        seen = [text for text in row if self._plain_value(text) is None]
        settings = [value for text in row if (value := self._plain_value(text)) is not None]
        # files come first wherever they stand, values in the order given: what stands above or below a plain value
        # (mapping.forget={...} and mapping.forget.w_min=1) keeps its place
        above = [key for text in seen if (key := parse(text).key_or_group) not in self._groups]
        if any(_overlap(key, other) for key, _ in settings for other in above):
            return compose_row(row, self._extra)
        same = (tuple(seen), tuple(key for key, _ in settings))
        if same not in self._bases:
            self._bases[same] = compose_row(row, self._extra)
        base, fault = self._bases[same]
        if base is None:
            return None, fault
        if not base.plain:
            return compose_row(row, self._extra)
        cfg = copy.deepcopy(base.cfg)
        for key, value in settings:
            section, _, name = key.rpartition(".")
            target: Any = cfg
            for part in section.split(".") if section else []:
                target = getattr(target, part)
            setattr(target, name, copy.deepcopy(value))
        return base._replace(cfg=cfg), ""

    def _plain_value(self, text: str) -> tuple[str, Any] | None:
        """The key and the converted value of `key=value`; None where only Hydra knows what the override does."""
        if text not in self._plain:
            self._plain[text] = self._convert(parse(text))
        return self._plain[text]

    def _convert(self, override: Override) -> tuple[str, Any] | None:
        key, value = override.key_or_group, override.value()
        if (
            override.type is not OverrideType.CHANGE
            or override.package is not None
            or override.is_hydra_override()
            or override.is_sweep_override()
            or key in self._groups
            or not is_leaf(key, value)
        ):
            return None
        return key, convert(key, value)


def _overlap(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")


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
    lines = [line.strip() for line in str(error).split("\n") if line.strip()] or [type(error).__name__]
    # Hydra begins with: In 'mapping/mine': ValidationError raised while composing config:
    place = f"{lines[0].split(chr(39))[1]}.yaml: " if lines[0].startswith("In '") else ""
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    if isinstance(cause, OmegaConfBaseException):
        key = str(cause.full_key or cause.key or "")
        if key and keys.find(key) is None:
            return place + keys.unknown_key(key)
        if key:
            said = str(cause).split("\n")[0]
            return f"{place}{key}: need {keys.describe(keys.find(key))}: {said}"
    return place + " ".join(lines[:2])


def compose_config(overrides: Sequence[str] = (), *, extra_dir: Path | None = None) -> RunConfig:
    """Compose and check one run.

    Args: overrides: as on the command line. extra_dir: a folder with more config groups.
    Raises: ConfigError with every fault that was found.
    """
    checked = check_overrides(overrides, groups=paths.config_groups(extra_dir), multirun=False)
    with hydra_ready(extra_dir) as extra:
        composed, fault = compose_row(checked.overrides, extra)
    faults = [fault] if composed is None else composed.cfg.check() if checked.certain else []
    refuse([*checked.faults, *faults])
    assert composed is not None
    return composed.cfg


class Run(NamedTuple):
    """One run that was asked for, and what of it nothing reads (see asked.py)."""

    cfg: RunConfig
    warnings: list[str]


def compose_run(overrides: Sequence[str] = (), *, extra_dir: Path | None = None) -> Run:
    """Compose and check one run that is to be started.

    Args, Raises: as `compose_config`; what was typed and would be ignored for something else is a fault as well.
    """
    checked = check_overrides(overrides, groups=paths.config_groups(extra_dir), multirun=False)
    with hydra_ready(extra_dir) as extra:
        composed, fault = compose_row(checked.overrides, extra)
    faults = [fault] if composed is None else []
    asked = Asked()
    if composed is not None and checked.certain:
        asked.look(checked.overrides, composed.cfg, composed.choices)
        faults = [*asked.faults, *composed.cfg.check()]
    refuse([*checked.faults, *faults])
    assert composed is not None
    return Run(composed.cfg, asked.warnings)


def check_steady(overrides: Sequence[str], *, extra_dir: Path | None = None) -> None:
    """Check what Hydra itself composes for a sweep whose cells are not known yet: all but the swept values.

    Raises: ConfigError.
    """
    checked = check_overrides(overrides, groups=paths.config_groups(extra_dir), multirun=True)
    steady = [text for text in checked.overrides if not parse(text).is_sweep_override()]
    with hydra_ready(extra_dir) as extra:
        composed, fault = compose_row(steady, extra)
    refuse([*checked.faults, *([fault] if composed is None else [])])


def spell(overrides: Sequence[str], *, extra_dir: Path | None = None) -> list[str]:
    """Overrides that were checked before, as Hydra takes them on its own command line."""
    found = by_name(check_overrides(overrides, groups=paths.config_groups(extra_dir), multirun=True).overrides)
    return [*found.overrides, *search_path(found.folders)]


class Named(NamedTuple):
    """Overrides in which every experiment has a name, and the config folders in which Hydra finds them."""

    overrides: list[str]
    folders: list[Path]


def by_name(overrides: Sequence[str]) -> Named:
    """Put the name in place of the path where an experiment is given by path (see experiments.py)."""
    found = Named([], [])
    for text in overrides:
        override = parse(text)
        chosen = values(override) if override.key_or_group == GROUP else []
        if any(is_path(value) for value in chosen) and all(isinstance(value, str) for value in chosen):
            files = [placed(value) if is_path(value) else None for value in chosen]
            found.folders.extend(file.root for file in files if file is not None)
            names = (file.name if file is not None else value for file, value in zip(files, chosen, strict=True))
            text = f"{GROUP}={','.join(map(quoted, names))}"
        found.overrides.append(text)
    return found


def refuse(faults: Sequence[str]) -> None:
    """Raises: ConfigError with each fault once, if there are any."""
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))
