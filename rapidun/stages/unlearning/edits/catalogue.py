"""Every edit by its name.

To add one: its file beside this one and its line here, its member (edits=True) in config.unlearning.Objective, its
settings in config/edits.py, its file in conf/unlearning/.
"""

from rapidun.config.unlearning import Objective
from rapidun.stages.unlearning.edits.base import Edit
from rapidun.stages.unlearning.edits.fisher import fisher
from rapidun.stages.unlearning.edits.influence_step import influence_step
from rapidun.stages.unlearning.edits.repselect import repselect
from rapidun.stages.unlearning.edits.task_vector import task_vector

EDITS: dict[Objective, Edit] = {
    Objective.fisher: fisher,
    Objective.task_vector: task_vector,
    Objective.influence_step: influence_step,
    Objective.repselect: repselect,
}
