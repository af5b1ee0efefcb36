"""Every unlearning objective by its name: each file beside this one holds a family of them.

To add one: its function and its line in the file of its family, its member in config.unlearning.Objective, its file
in conf/unlearning/.
"""

from rapidun.config.unlearning import Objective
from rapidun.stages.unlearning.objectives.ascent import ASCENT
from rapidun.stages.unlearning.objectives.base import Method
from rapidun.stages.unlearning.objectives.imitation import IMITATION

# `retrain` is no unlearning: the pipeline trains the start model on clean rows with the poison stage
OBJECTIVES: dict[Objective, Method] = {**ASCENT, **IMITATION}
