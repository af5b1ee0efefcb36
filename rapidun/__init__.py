"""Influence-guided unlearning of backdoors in language models; `run` and `compose` are for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rapidun.config.run import RunConfig
    from rapidun.pipeline.run import Result

__all__ = ["compose", "run"]


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """Compose and check a configuration: `rapidun.compose(["mapping=uniform", "seed=1"])`.

    Raises: ConfigError with every fault.
    """
    # late, so that importing rapidun takes no time
    from rapidun.config.compose import compose_config

    return compose_config(overrides)


def run(overrides: Sequence[str] = ()) -> Result:
    """Run the pipeline: `rapidun.run(["mapping=uniform", "seed=1"]).metrics`.

    Raises: RapidunError for what the caller can mend; any other error is a failed stage.
    """
    # late, so that importing rapidun takes no time
    from rapidun.config.compose import compose_run
    from rapidun.config.plain import config_yaml
    from rapidun.pipeline.run import run_pipeline

    cfg, warnings = compose_run(overrides)
    return run_pipeline(cfg, overrides=list(overrides), config_yaml=config_yaml(cfg), warnings=warnings)
