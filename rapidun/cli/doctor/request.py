"""What is to be checked: the configurations that the overrides compose to, and who starts them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from rapidun.base.errors import ConfigError
from rapidun.config.run import RunConfig
from rapidun.sweep.launcher import Launcher
from rapidun.sweep.launchers.registry import launcher_class

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Request:
    """`cfgs` are the cells of a sweep, or the one run; the defaults where the overrides are wrong (`faults`)."""

    cfgs: list[RunConfig]
    overrides: tuple[str, ...] = ()
    faults: list[str] = field(default_factory=list)
    launcher: str = "basic"
    tuned: bool = False

    @property
    def slurm(self) -> bool:
        """Jobs run on other machines: what this one lacks does not matter."""
        kind = self.launcher_class
        return kind is not None and kind.runs_elsewhere

    @property
    def launcher_class(self) -> type[Launcher] | None:
        """What the launcher can do; None for a name that there is not, or whose packages are missing."""
        try:
            return launcher_class(self.launcher)
        except (ConfigError, ImportError):
            return None

    def distinct(self, key: Callable[[RunConfig], Key]) -> Iterator[RunConfig]:
        """One configuration for each value of `key`."""
        seen: list[Key] = []
        for cfg in self.cfgs:
            if key(cfg) not in seen:
                seen.append(key(cfg))
                yield cfg

    def any(self, fits: Callable[[RunConfig], bool]) -> bool:
        """Whether any of the configurations is like that."""
        return any(fits(cfg) for cfg in self.cfgs)


def read_request(overrides: Sequence[str], *, multirun: bool) -> Request:
    """Compose the overrides of a run, or with -m of a sweep; whoever is wrong is noted, nothing is raised."""
    # Hydra
    from rapidun.config.cells import compose_cells, search_space
    from rapidun.config.compose import compose_config, compose_run
    from rapidun.config.overrides import TUNER

    chosen = dict(text.lstrip("+").partition("=")[::2] for text in overrides)
    tuned = any(text.lstrip("+") == TUNER for text in overrides)
    launcher = chosen.get("hydra/launcher", "basic")
    try:
        if tuned:
            fixed = [text for text in search_space(overrides).fixed if not text.lstrip("+").startswith("hydra")]
            cfgs = [compose_config(fixed)]
        elif multirun:
            cfgs = [cell.cfg for cell in compose_cells(overrides)]
        else:
            cfgs = [compose_run(overrides).cfg]
    except ConfigError as error:
        return Request([compose_config()], tuple(overrides), error.faults, launcher, tuned)
    return Request(cfgs, tuple(overrides), [], launcher, tuned)
