"""What `rapidun.run`, `compose`, `sweep` and `extend` do; rapidun/__init__.py says it."""

import os
from collections.abc import Mapping
from typing import Any

from rapidun.base.errors import ConfigError
from rapidun.cli.run import sweep_here
from rapidun.config import extend as extending
from rapidun.config.compose import compose_config, compose_run
from rapidun.config.keywords import overrides_of, overrides_of_config
from rapidun.config.plain import config_yaml
from rapidun.config.run import RunConfig
from rapidun.pipeline.run import Result, run_pipeline
from rapidun.report.loaded import Sweep


def extend(file: str | os.PathLike[str]) -> None:
    extending.load_installed()
    extending.load_file(file)


def compose(overrides: object, settings: Mapping[str, Any]) -> RunConfig:
    extending.load_installed()
    return compose_config(overrides_of("compose", overrides, settings))


def run(overrides: object, settings: Mapping[str, Any]) -> Result:
    extending.load_installed()
    if isinstance(overrides, RunConfig):
        if settings:
            raise ConfigError(
                f"rapidun.run: need a configuration or settings, got both ({', '.join(settings)}). Set them in the "
                "configuration, or pass them to rapidun.compose"
            )
        cfg, typed = overrides_of_config(overrides, defaults=compose_config())
        return run_pipeline(cfg, overrides=typed, config_yaml=config_yaml(cfg))
    typed = overrides_of("run", overrides, settings)
    asked, warnings = compose_run(typed)
    return run_pipeline(asked, overrides=typed, config_yaml=config_yaml(asked), warnings=warnings)


def sweep(overrides: object, settings: Mapping[str, Any]) -> Sweep:
    extending.load_installed()
    return Sweep(sweep_here(overrides_of("sweep", overrides, settings, swept=True)))
