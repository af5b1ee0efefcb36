"""Influence-guided unlearning of backdoors in language models; `run`, `compose` and `load` are for notebooks.

`forget_terms` and `retain_terms` are the objectives as pure functions of logits and labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from rapidun.config.run import RunConfig
    from rapidun.pipeline.run import Result
    from rapidun.report.loaded import Loaded

__all__ = ["compose", "forget_terms", "load", "retain_terms", "run"]


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


def load(folder: str | Path) -> Loaded:
    """A run folder or a sweep folder, read back: `rapidun.load("outputs/sweeps/tau").to_frame()`.

    Raises: DataError if it is neither.
    """
    # late, so that importing rapidun takes no time
    from rapidun.report import loaded

    return loaded.load(folder)


def forget_terms(
    name: str,
    logits: Tensor,
    labels: Tensor,
    *,
    ref_logits: Tensor | None = None,
    clean_logits: Tensor | None = None,
    clean_labels: Tensor | None = None,
    clean_ref_logits: Tensor | None = None,
    hidden: Tensor | None = None,
    ref_hidden: Tensor | None = None,
    **hyperparameters: Any,
) -> Tensor:
    """The forget term of every row under an objective, [B]: `rapidun.forget_terms("simnpo", logits, labels, beta=2.5)`.

    Args, Raises: see rapidun.stages.unlearning.objectives.terms.
    """
    # late: brings torch
    from rapidun.stages.unlearning.objectives import terms

    return terms.forget_terms(
        name,
        logits,
        labels,
        ref_logits=ref_logits,
        clean_logits=clean_logits,
        clean_labels=clean_labels,
        clean_ref_logits=clean_ref_logits,
        hidden=hidden,
        ref_hidden=ref_hidden,
        **hyperparameters,
    )


def retain_terms(
    kind: str,
    logits: Tensor,
    labels: Tensor,
    *,
    ref_logits: Tensor | None = None,
    hidden: Tensor | None = None,
    ref_hidden: Tensor | None = None,
) -> Tensor:
    """The retain term of every row, [B]: `rapidun.retain_terms("kl", logits, labels, ref_logits=...)`.

    Args, Raises: see rapidun.stages.unlearning.objectives.terms.
    """
    # late: brings torch
    from rapidun.stages.unlearning.objectives import terms

    return terms.retain_terms(kind, logits, labels, ref_logits=ref_logits, hidden=hidden, ref_hidden=ref_hidden)
