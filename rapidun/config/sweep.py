"""Settings of a sweep, of what one job may use, and of the cluster that it runs on."""

from dataclasses import dataclass, field
from enum import Enum

from rapidun.base.errors import ConfigError
from rapidun.config import extensions
from rapidun.config.budget import Budget
from rapidun.config.parts import Faults

# hydra/launcher=NAME -> the class behind it, as Hydra's `_target_` names one: imported when used, submitit takes time
LAUNCHERS = {
    "basic": "rapidun.sweep.launchers.inprocess.InProcessLauncher",
    "joblib": "rapidun.sweep.launchers.parallel.ParallelLauncher",
    "rapidun_slurm": "rapidun.sweep.launchers.slurm.launcher.SlurmLauncher",
    "rapidun_local": "rapidun.sweep.launchers.local.LocalLauncher",
}
SWEEPERS = ("rapidun", "rapidun_optuna")


def _add_launcher(one: extensions.Added) -> None:
    LAUNCHERS[one.name] = f"{one.made.__module__}.{one.made.__qualname__}"


extensions.subscribe(extensions.Kind.launcher, _add_launcher, ours=LAUNCHERS)


class OnInterrupt(Enum):
    cancel = "cancel"  # Ctrl-C cancels every job of this sweep
    keep = "keep"  # Ctrl-C leaves submitted jobs running; `rapidun sweep status DIR` watches them


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    # folder of a -m sweep under outputs/sweeps; null = made from the overrides, so that the same command resumes
    name: str | None = None
    # keep only the cells for which this holds: 'mapping.tau_f <= mapping.tau_r and unlearning.objective != "ga"'
    where: str | None = None
    # damage that a cell may do to count as a success: 'ppl_clean <= 1.02 * before.ppl_clean', over metrics (budget.py)
    budget: str | None = None
    # groups of axes that advance together instead of being multiplied: [[mapping.tau_f,mapping.tau_r]]
    zip: list[list[str]] = field(default_factory=list)
    # show cells, cached stages, waves, resources and the script; run nothing
    dry_run: bool = False
    # submit everything and return; `rapidun sweep status|logs|collect|cancel|resume|retry DIR` do the rest
    detach: bool = False
    # run the cells again that failed before
    retry_failed: bool = True
    # the first failure ends the sweep
    fail_fast: bool = False
    # so many failures end the sweep; null = never
    max_failures: int | None = None
    on_interrupt: OnInterrupt = OnInterrupt.cancel
    # jobs that run at the same time; 0 = as many as the launcher allows
    max_parallel: int = 0

    def check(self) -> list[str]:
        faults = Faults("sweep")
        if self.budget is not None:
            try:
                Budget(self.budget)
            except ConfigError as error:
                faults.extend(error.faults)
        faults.need(
            self.max_failures is None or self.max_failures >= 1, "max_failures >= 1", max_failures=self.max_failures
        )
        faults.need(self.max_parallel >= 0, "max_parallel >= 0 (0 = no limit)", max_parallel=self.max_parallel)
        return faults


@dataclass(kw_only=True, slots=True)
class ResourcesConfig:
    """How much one run, or one job of a sweep, may use; `cluster` says where."""

    # threads of the CPU math libraries and CPUs of each process; 0 = all cores (SLURM: the site's default)
    num_threads: int = 0
    # GPUs of each process
    num_gpus: int = 0
    # processes that train together (data parallel); SLURM tasks of a job
    num_processes: int = 1
    # memory of a job; null = the site's default
    mem_gb: float | None = None
    # wall time of a job; a job that comes near it saves a checkpoint and is queued again
    timeout_min: int = 240
    # how often a job may run into its time limit and go on afterwards
    max_timeouts: int = 3
    # cells that run one after the other in one job, sharing model and pack in memory
    cells_per_job: int = 1

    def check(self) -> list[str]:
        faults = Faults("resources")
        for key in ("num_threads", "num_gpus", "max_timeouts"):
            faults.need(getattr(self, key) >= 0, f"{key} >= 0", **{key: getattr(self, key)})
        for key in ("num_processes", "timeout_min", "cells_per_job"):
            faults.need(getattr(self, key) >= 1, f"{key} >= 1", **{key: getattr(self, key)})
        faults.need(self.mem_gb is None or self.mem_gb > 0, "mem_gb > 0", mem_gb=self.mem_gb)
        return faults


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Where SLURM jobs go. Values are quoted: nothing written here is run as a command."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    # `module load` these before the job starts
    modules: list[str] = field(default_factory=list)
    # environment variables of the job
    environment: dict[str, str] = field(default_factory=dict)
    # further sbatch options: {reservation: night, nice: 100}
    sbatch: dict[str, str] = field(default_factory=dict)
    # seconds between the signal and the end of a job that is preempted or out of time
    signal_delay_s: int = 90
    # array tasks in one submission; null = what the cluster allows (MaxArraySize)
    max_array_size: int | None = None

    def check(self) -> list[str]:
        faults = Faults("cluster")
        faults.need(self.signal_delay_s >= 1, "signal_delay_s >= 1", signal_delay_s=self.signal_delay_s)
        faults.need(
            self.max_array_size is None or self.max_array_size >= 1,
            "max_array_size >= 1",
            max_array_size=self.max_array_size,
        )
        return faults
