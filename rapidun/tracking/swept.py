"""What was asked for on the command line: the settings in which the cells of a sweep differ."""

from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidun.files import read_json
from rapidun.schema import plain

if TYPE_CHECKING:
    from rapidun.config import RunConfig


def overrides_of(run_dir: Path) -> dict[str, str]:
    """key -> value as typed, of a sweep's cell; empty for a run outside a sweep."""
    path = run_dir / "overrides.json"
    task = read_json(path).get("task", []) if path.is_file() else []
    pairs = (str(text).partition("=") for text in task)
    return {key.lstrip("+"): value for key, _, value in pairs if not key.startswith("~")}


def swept_settings(cfg: "RunConfig", run_dir: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Split the overrides into choices of groups (mapping=uniform) and settings (mapping.tau_f=0.3).

    Returns: {group: choice}, {dotted key: value as the configuration has it}.
    """
    choices: dict[str, str] = {}
    settings: dict[str, Any] = {}
    values = plain(cfg)
    for key, text in overrides_of(run_dir).items():
        if is_dataclass(getattr(cfg, key, None)) or not _has(values, key):
            choices[key] = text
        else:
            settings[key] = _at(values, key)
    return choices, settings


def _has(values: dict[str, Any], key: str) -> bool:
    here: Any = values
    for part in key.split("."):
        if not isinstance(here, dict) or part not in here:
            return False
        here = here[part]
    return True


def _at(values: dict[str, Any], key: str) -> Any:
    here: Any = values
    for part in key.split("."):
        here = here[part]
    return here
