"""Launchers by the names that hydra/launcher=... and jobs.json use."""

from collections.abc import Callable
from importlib import import_module
from typing import cast

from rapidun.base.errors import ConfigError
from rapidun.sweep.launcher import Launcher, LauncherContext

# name -> (module, class); imported when used: submitit and joblib take time
LAUNCHERS = {
    "basic": ("rapidun.sweep.launchers.inprocess", "InProcessLauncher"),
    "joblib": ("rapidun.sweep.launchers.parallel", "ParallelLauncher"),
    "rapidun_local": ("rapidun.sweep.launchers.local", "LocalLauncher"),
    "rapidun_slurm": ("rapidun.sweep.launchers.slurm.launcher", "SlurmLauncher"),
}


def make_launcher(name: str, context: LauncherContext) -> Launcher:
    """Raises: ConfigError for a name that is none of LAUNCHERS."""
    if name not in LAUNCHERS:
        raise ConfigError(f"hydra/launcher: need one of {', '.join(LAUNCHERS)}, got {name}. Pass hydra/launcher=...")
    module, kind = LAUNCHERS[name]
    make = cast(Callable[[LauncherContext], Launcher], getattr(import_module(module), kind))
    return make(context)
