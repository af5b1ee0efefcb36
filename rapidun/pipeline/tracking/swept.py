"""What was asked for on the command line: the settings in which the cells of a sweep differ."""

from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidun.base.files import read_json
from rapidun.base.nested import at
from rapidun.config.plain import plain

if TYPE_CHECKING:
    from rapidun.config.run import RunConfig


def axes_of(run_dir: Path) -> dict[str, str]:
    """key -> value as typed, of what was swept; all overrides where the axes are not known, nothing outside a sweep."""
    found = _overrides(run_dir)
    axes = found.get("axes") or {}
    return {str(key): str(value) for key, value in axes.items()} or _task(found)


def group_choices(cfg: "RunConfig", run_dir: Path) -> dict[str, str]:
    """{group: choice} of the overrides that pick a file of a config group: mapping=uniform, +experiment=NAME."""
    values = plain(cfg)
    # a dotted key is a setting, never a group: a whole dict of settings (cluster.environment={...}) may hold secrets
    pairs = [(key, text) for key, text in _task(_overrides(run_dir)).items() if "." not in key]
    return {key: text for key, text in pairs if is_dataclass(getattr(cfg, key, None)) or not _is_setting(values, key)}


def swept_settings(cfg: "RunConfig", run_dir: Path) -> dict[str, Any]:
    """The axes with the values that the configuration has: {"mapping": "uniform", "mapping.tau_f": 0.3}."""
    values, choices = plain(cfg), group_choices(cfg, run_dir)
    axes = axes_of(run_dir).items()
    return {key: text if key in choices or not _is_setting(values, key) else at(values, key) for key, text in axes}


def title_of(cfg: "RunConfig", run_dir: Path) -> str:
    """`mapping=uniform seed=1`, or the run's name outside a sweep."""
    return " ".join(f"{key}={value}" for key, value in axes_of(run_dir).items()) or cfg.name


def _overrides(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "overrides.json"
    return read_json(path) if path.is_file() else {}


def _task(found: dict[str, Any]) -> dict[str, str]:
    pairs = (str(text).partition("=") for text in found.get("task", []))
    return {key.lstrip("+"): value for key, _, value in pairs if not key.startswith("~")}


def _is_setting(values: dict[str, Any], key: str) -> bool:
    return not isinstance(at(values, key, {}), dict)
