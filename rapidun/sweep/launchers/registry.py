"""Launchers by the names that hydra/launcher=... and jobs.json use; the list stands in rapidun/config/sweep.py."""

from importlib import import_module

from rapidun.base.errors import ConfigError
from rapidun.config.sweep import LAUNCHERS
from rapidun.sweep.launcher import Launcher, LauncherContext


def launcher_class(name: str) -> type[Launcher]:
    """The launcher of this name, whose class says what it can do.

    Raises: ConfigError for a name that is none of LAUNCHERS.
    """
    if name not in LAUNCHERS:
        raise ConfigError(f"hydra/launcher: need one of {', '.join(LAUNCHERS)}, got {name}. Pass hydra/launcher=...")
    module, _, kind = LAUNCHERS[name].rpartition(".")
    found: type[Launcher] = getattr(import_module(module), kind)
    return found


def make_launcher(name: str, context: LauncherContext) -> Launcher:
    """Raises: ConfigError for a name that is none of LAUNCHERS."""
    return launcher_class(name)(context)
