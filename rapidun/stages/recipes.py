"""The stages in order, and the recipes of one configuration."""

from collections.abc import Callable
from typing import Any

from rapidun.base.errors import ConfigError, RapidunError
from rapidun.config.run import STAGES as NAMES
from rapidun.stages.context import Context, Stage
from rapidun.stages.data.recipe import STAGE as DATA
from rapidun.stages.evaluation.recipe import STAGE as EVALUATION
from rapidun.stages.influence.recipe import STAGE as INFLUENCE
from rapidun.stages.mapping.recipe import STAGE as MAPPING
from rapidun.stages.poison.recipe import STAGE as POISON
from rapidun.stages.recipe import Product, Recipe
from rapidun.stages.unlearning.recipe import STAGE as UNLEARNING

STAGES: dict[str, Stage] = {
    stage.name: stage for stage in (DATA, POISON, INFLUENCE, MAPPING, UNLEARNING, EVALUATION)
}  # fmt: skip
# kinds of artifacts, in the order in which they are made
KINDS = tuple(kind for stage in STAGES.values() for kind in stage.versions)
# kinds that no job is made for
LIGHT = tuple(kind for stage in STAGES.values() if stage.light for kind in stage.versions)
PROVIDED: dict[Product[Any], Callable[[Context], Any]] = {
    product: how for stage in STAGES.values() for product, how in stage.provides.items()
}

assert tuple(STAGES) == NAMES, "rapidun/config/run.py has a section for each stage, in this order"


class Recipes(Context):
    """The recipes of one configuration, each worked out when it is first looked at."""

    provided = PROVIDED

    def of_stage(self, stage: str) -> list[Recipe]:
        """What one stage makes, in order."""
        return self.once(stage, lambda: STAGES[stage].makes(self))

    def faults(self) -> list[str]:
        """What is wrong with what the run is asked to do and with the files that it names; nothing is made for it."""
        checks = [check for stage in self.cfg.involved if (check := STAGES[stage].check) is not None]
        return list(dict.fromkeys(fault for check in checks for fault in check(self)))

    def faults_of_rows(self) -> list[str]:
        """What is wrong now that the pack's splits are known, before any other stage runs."""
        found: list[str] = []
        for stage in self.cfg.stages:
            try:
                self.of_stage(stage)
                check = None if stage in self.cfg.idle else STAGES[stage].check_rows
                found += check(self) if check is not None else []
            except ConfigError as error:
                found += error.faults
            except RapidunError as error:
                found.append(str(error))
        return list(dict.fromkeys(found))

    def all(self) -> list[Recipe]:
        """What the stages of this configuration make, in order."""
        return [recipe for stage in self.cfg.stages for recipe in self.of_stage(stage)]
