"""hydra/sweeper=rapidun and rapidun_optuna: hand the command line over to rapidun.sweep."""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class _HandsOver(Sweeper):
    """What Hydra composed of its own settings goes to rapidun.sweep.entry, with the overrides as typed."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.launcher_name = str(OmegaConf.select(config, "hydra.runtime.choices")["hydra/launcher"])
        settings: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
        self.settings: dict[str, Any] = {key: settings[key] for key in settings if key not in ("params", "_target_")}


class RapidunSweeper(_HandsOver):
    """Every cell of the grid, stage by stage; goes on where an earlier launch stopped."""

    def __init__(self, params: Any = None) -> None:
        """Hydra hands in the settings below; `params` are read with the overrides."""

    def sweep(self, arguments: list[str]) -> int:
        from rapidun.sweep.entry import sweep_grid

        return sweep_grid(arguments, launcher_name=self.launcher_name)


class RapidunOptunaSweeper(_HandsOver):
    """Trials that optuna picks, in batches through the same launchers."""

    def __init__(self, **settings: Any) -> None:
        """Hydra hands in the settings below; setup() reads them."""

    def sweep(self, arguments: list[str]) -> int:
        from rapidun.sweep.entry import tune

        return tune(arguments, launcher_name=self.launcher_name, settings=self.settings)


@dataclass
class RapidunSweeperConf:
    _target_: str = "hydra_plugins.rapidun_plugins.sweepers.RapidunSweeper"
    # axes of an experiment file: {mapping.tau_f: "0.3,0.7"}
    params: dict[str, str] | None = None


@dataclass
class RapidunOptunaSweeperConf:
    _target_: str = "hydra_plugins.rapidun_plugins.sweepers.RapidunOptunaSweeper"
    params: dict[str, str] | None = None
    # trials in all, those of an earlier launch included
    n_trials: int = 20
    # trials that run at the same time, asked for together
    batch_size: int = 1
    # {METRIC of result.json: minimize | maximize, ...}, several make a Pareto set; null = asr_seen, ppl_clean smaller
    # Not a dict[str, str]: Hydra would add to such a default instead of replacing it
    directions: Any = None
    # tpe | random | nsgaii | gp | qmc
    sampler: str = "tpe"
    seed: int = 0
    # none | median | hyperband | successive_halving; needs one direction and `prune_metric`
    pruner: str = "none"
    # a number that training logs, e.g. val_loss, in the sense of the only direction
    prune_metric: str | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="rapidun", node=RapidunSweeperConf, provider="rapidun")
ConfigStore.instance().store(
    group="hydra/sweeper", name="rapidun_optuna", node=RapidunOptunaSweeperConf, provider="rapidun"
)
