"""W&B and SLURM: whether they can be reached from here, and what they would do with this configuration."""

import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from rapidun.base.errors import RapidunError
from rapidun.base.text import short_message
from rapidun.cli.doctor.findings import Findings
from rapidun.cli.doctor.request import Request
from rapidun.config.run import RunConfig
from rapidun.config.tracking import TrackerKind, WandbMode
from rapidun.pipeline.tracking.wandb import mode
from rapidun.sweep.launchers.slurm.partition import SINFO_FORMAT, parse_sinfo, partition_faults

SHOWN_PARTITIONS = 8


def look_at_wandb(request: Request) -> Findings:
    """Key, server, and the mode that tracking=wandb would take; only whether a key is there is looked at."""
    found = Findings()
    try:
        version("wandb")
    except PackageNotFoundError:
        found.fact("mode", "none: wandb is not installed")
        return found
    address = mode.server_address()
    key = mode.has_key(address)
    found.fact("key", "set" if key else "none (wandb login, or WANDB_API_KEY)")
    tracked = [cfg for cfg in request.cfgs if cfg.tracking.kind is TrackerKind.wandb]
    wanted = tracked[0].tracking.mode if tracked else WandbMode.auto
    offline = wanted is WandbMode.offline or os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled")
    host = address.rpartition("@")[2].removeprefix("https://")
    # a server is asked only where a run would ask it
    if not key or offline:
        found.fact("server", f"{host}, not asked")
        reached = True
    else:
        reached = mode.answers(address)
        found.fact("server", f"{host} {'answers' if reached else f'does not answer within {mode.PATIENCE:g} s'}")
    connection = mode.choose_connection(wanted.name)
    why = "WANDB_MODE" if wanted is WandbMode.auto and os.environ.get("WANDB_MODE") else f"tracking.mode={wanted.name}"
    sync = "; later: rapidun wandb sync DIR" if connection.mode == "offline" else ""
    found.fact("mode", f"{connection.mode} ({why}){sync}")
    if connection.mode == "offline" and not offline:
        later = "runs are offline and go up later: rapidun wandb sync DIR"
        login = "run `wandb login` or set WANDB_API_KEY; offline runs go up later: rapidun wandb sync DIR"
        found.problem(
            "tracking.mode=online",
            f"{host} does not answer" if key else "no key is set",
            later if key else login,
            needed=bool(tracked) and wanted is WandbMode.online,
        )
    return found


def look_at_slurm(request: Request) -> Findings:
    """SLURM's commands, its controller, partitions with their limits, and whether the jobs would fit."""
    # submitit: where it is broken, that is a finding
    from rapidun.sweep.launchers.slurm.batch import cluster_faults
    from rapidun.sweep.launchers.slurm.commands import SlurmRefused, SlurmUnreachable, missing_commands, slurm

    found = Findings()
    what = "hydra/launcher=rapidun_slurm"
    elsewhere = "use hydra/launcher=rapidun_local, or start on a login node of the cluster"
    missing = missing_commands()
    if missing:
        found.fact("commands", f"missing: {', '.join(missing)}")
        found.problem(what, f"SLURM's commands are not in PATH: {', '.join(missing)}", elsewhere, needed=request.slurm)
        return found
    found.fact("commands", "all there")
    try:
        kinds = parse_sinfo(slurm("sinfo", "-h", "-e", "-o", SINFO_FORMAT))
    except (SlurmUnreachable, SlurmRefused) as error:
        found.fact("controller", short_message(error))
        found.problem(what, short_message(error), f"look at SLURM_CONF, or {elsewhere}", needed=request.slurm)
        return found
    found.fact("controller", f"answers ({_version(slurm)})")
    names = list(dict.fromkeys(kind.partition for kind in kinds))
    for name in names[:SHOWN_PARTITIONS]:
        inside = [kind for kind in kinds if kind.partition == name]
        limits = [kind.max_time_min for kind in inside]
        known = [limit for limit in limits if limit is not None]
        limit = f"at most {max(known):g} min" if len(known) == len(limits) else "no time limit"
        parts = [
            "the default" if inside[0].default else "",
            limit,
            f"up to {max(kind.cpus for kind in inside)} CPUs, {max(kind.memory_mb for kind in inside) / 1024:.1f} GiB, "
            f"{max(kind.gpus for kind in inside)} GPUs a node",
            "" if any(kind.up for kind in inside) else "down",
        ]
        found.fact(f"partition {name}", ", ".join(part for part in parts if part))
    if len(names) > SHOWN_PARTITIONS:
        found.fact("", f"and {len(names) - SHOWN_PARTITIONS} more (sinfo)")
    for cfg in request.distinct(lambda cfg: (cfg.cluster, cfg.resources)):
        faults = [
            *cluster_faults(cfg.cluster),
            *partition_faults(kinds, partition=cfg.cluster.partition, wanted=[cfg.resources]),
        ]
        for fault in faults:
            found.problem(what, fault, _see(cfg), needed=request.slurm)
    return found


def _see(cfg: RunConfig) -> str:
    given = f"cluster.partition is {cfg.cluster.partition}" if cfg.cluster.partition else "no partition is given"
    return f"{given}: conf/cluster/local/site.yaml is the place for what your cluster wants"


def _version(slurm: Callable[..., str]) -> str:
    try:
        return slurm("sinfo", "--version").strip()
    except RapidunError as error:
        return short_message(error)
