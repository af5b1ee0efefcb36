"""Every unlearning objective by its name: each file beside this one holds a family of them.

To add one: its function and its line in the file of its family, its member in config.unlearning.Objective, its file
in conf/unlearning/.
"""

from typing import Any

import torch

from rapidun.base.errors import ConfigError
from rapidun.config import extensions
from rapidun.config.unlearning import Objective, UnlearningConfig
from rapidun.stages.unlearning.objectives.activation import ACTIVATION
from rapidun.stages.unlearning.objectives.ascent import ASCENT
from rapidun.stages.unlearning.objectives.base import Coefficients, ForgetOutputs, Method, Reference, Terms, uncapped
from rapidun.stages.unlearning.objectives.consistency import CONSISTENCY
from rapidun.stages.unlearning.objectives.distillation import DISTILLATION
from rapidun.stages.unlearning.objectives.divergence import FLAT
from rapidun.stages.unlearning.objectives.dual import DUAL
from rapidun.stages.unlearning.objectives.imitation import IMITATION
from rapidun.stages.unlearning.objectives.preference import PREFERENCE
from rapidun.stages.unlearning.objectives.reweighted import REWEIGHTED

# `retrain` is no unlearning: the pipeline trains the start model on clean rows with the poison stage
OBJECTIVES: dict[Objective, Method] = {
    **ASCENT, **IMITATION, **PREFERENCE, **REWEIGHTED, **DISTILLATION, **ACTIVATION, **DUAL, **FLAT, **CONSISTENCY,
}  # fmt: skip


def _add(one: extensions.Added) -> None:
    """An objective that an extension brings, under its name."""

    def forget(outputs: ForgetOutputs, settings: Any) -> Terms:
        found = one.made(outputs, settings)
        if isinstance(found, Terms):
            return found
        num_rows = len(outputs.has_clean)
        if not isinstance(found, torch.Tensor) or found.shape != (num_rows,):
            got = f"a tensor of shape {list(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
            raise ConfigError(
                f"unlearning: need a number for each of {num_rows} forget rows from objective={one.name}, got {got}. "
                f"Change {one.origin.name}"
            )
        return uncapped(found)

    traits = one.traits
    OBJECTIVES[Objective[one.name]] = Method(
        forget, poisoned=traits["poisoned"], clean=traits["clean"], retain=traits["retain"],
        reference=Reference[traits["reference"]],
    )  # fmt: skip


extensions.subscribe(extensions.Kind.objective, _add)


def hyperparameters(cfg: UnlearningConfig) -> Any:
    """What `Method.terms` takes: the section of the objective; Coefficients where it has none."""
    if cfg.added is not None:
        return extensions.settings_of(cfg.added.kind, cfg.added.name, cfg.extension)
    if cfg.objective.traits.section:
        return cfg.hyperparameters
    return Coefficients(ascent_alpha=cfg.ascent_alpha, descent_beta=cfg.descent_beta, loss_cap=cfg.loss_cap)
