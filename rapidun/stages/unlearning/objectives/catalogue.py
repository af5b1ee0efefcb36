"""Every unlearning objective by its name: each file beside this one holds a family of them.

To add one: its function and its line in the file of its family, its member in config.unlearning.Objective, its file
in conf/unlearning/.
"""

from typing import Any

from rapidun.config.unlearning import Objective, UnlearningConfig
from rapidun.stages.unlearning.objectives.activation import ACTIVATION
from rapidun.stages.unlearning.objectives.ascent import ASCENT
from rapidun.stages.unlearning.objectives.base import Coefficients, Method
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


def hyperparameters(cfg: UnlearningConfig) -> Any:
    """What `Method.terms` takes: the section of the objective; Coefficients where it has none."""
    if cfg.objective.traits.section:
        return cfg.hyperparameters
    return Coefficients(ascent_alpha=cfg.ascent_alpha, descent_beta=cfg.descent_beta, loss_cap=cfg.loss_cap)
