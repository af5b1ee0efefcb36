"""Whether jobs fit the cluster: SLURM leaves a job that asks for too much pending for ever, without a word."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from rapidun.base.text import lines_of
from rapidun.config.sweep import ResourcesConfig

SINFO_FORMAT = "%P|%a|%l|%c|%m|%G"
UNITS_MIN = (24 * 60.0, 60.0, 1.0, 1 / 60)


class Nodes(NamedTuple):
    """Nodes of one kind in a partition, one line of sinfo."""

    partition: str
    default: bool
    up: bool
    # None = no limit
    max_time_min: float | None
    cpus: int
    memory_mb: int
    gpus: int


def parse_sinfo(text: str) -> list[Nodes]:
    """Read `sinfo -h -e -o "%P|%a|%l|%c|%m|%G"`."""
    kinds = []
    for line in lines_of(text):
        name, up, limit, cpus, memory, gres = line.strip().split("|")
        kinds.append(
            Nodes(
                partition=name.rstrip("*"),
                default=name.endswith("*"),
                up=up == "up",
                max_time_min=parse_minutes(limit),
                cpus=int(cpus.rstrip("+")),
                memory_mb=int(memory.rstrip("+")),
                gpus=count_gpus(gres),
            )
        )
    return kinds


def parse_minutes(text: str) -> float | None:
    """`1-12:00:00` -> 2160.0, `30:00` -> 30.0; `infinite` -> None."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        return None
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        # days-hours[:minutes[:seconds]]
        values = [int(days), *parts]
    else:
        # hours:minutes:seconds, minutes:seconds, or minutes
        values = [0, *([0] * (3 - len(parts) - (len(parts) == 1))), *parts]
    return sum(value * unit for value, unit in zip(values, UNITS_MIN, strict=False))


def count_gpus(gres: str) -> int:
    """`gpu:a100:4(S:0-1),gpu:t4:2` -> 6; `(null)` -> 0."""
    found = re.findall(r"(?:^|,)gpu(?::[A-Za-z][\w.-]*)?:(\d+)", gres)
    return sum(int(count) for count in found)


def partition_faults(kinds: list[Nodes], *, partition: str | None, wanted: Iterable[ResourcesConfig]) -> list[str]:
    """What of the wanted resources no node of the partition can give: one line a fault, with what is allowed.

    Args:
        kinds: what the cluster has. partition: the name asked for, or several with commas; None = the default one.
    """
    known = sorted({kind.partition for kind in kinds})
    names = [name.strip() for name in partition.split(",")] if partition else [k.partition for k in kinds if k.default]
    if not names:
        return [f"cluster.partition: need one of {', '.join(known)}: this cluster has no default. Pass it"]
    faults = []
    for name in dict.fromkeys(names):
        if name not in known:
            faults.append(f"cluster.partition: need one of {', '.join(known)}, got {name}. Change cluster.partition")
        elif not any(kind.up for kind in kinds if kind.partition == name):
            faults.append(f"cluster.partition: {name} is down. Change cluster.partition")
    if faults:
        return faults
    inside = [kind for kind in kinds if kind.partition in names]
    where = f"partition {','.join(dict.fromkeys(names))}"
    for resources in wanted:
        faults += resource_faults(inside, resources, where=where)
    return list(dict.fromkeys(faults))


def resource_faults(kinds: list[Nodes], resources: ResourcesConfig, *, where: str) -> list[str]:
    """What one job asks for and cannot get."""
    cpus = resources.num_processes * max(1, resources.num_threads)
    gpus = resources.num_processes * resources.num_gpus
    memory_mb = 1024 * (resources.mem_gb or 0)
    faults = []
    limits = [kind.max_time_min for kind in kinds]
    most = max((limit for limit in limits if limit is not None), default=None)
    if None not in limits and most is not None and resources.timeout_min > most:
        faults.append(
            f"resources.timeout_min: {where} allows at most {most:g}, got {resources.timeout_min}. "
            "Lower resources.timeout_min (a job that reaches it saves a checkpoint and is queued again) "
            "or change cluster.partition"
        )
    if cpus > max(kind.cpus for kind in kinds):
        faults.append(
            f"resources.num_threads: a node of {where} has at most {max(kind.cpus for kind in kinds)} CPUs, got "
            f"num_processes={resources.num_processes} x num_threads={resources.num_threads}. Lower one of them"
        )
    if memory_mb > max(kind.memory_mb for kind in kinds):
        faults.append(
            f"resources.mem_gb: a node of {where} has at most {max(k.memory_mb for k in kinds) / 1024:.4g}, "
            f"got {resources.mem_gb:g}. Lower resources.mem_gb"
        )
    if gpus > max(kind.gpus for kind in kinds):
        faults.append(
            f"resources.num_gpus: a node of {where} has at most {max(kind.gpus for kind in kinds)} GPUs, got "
            f"num_processes={resources.num_processes} x num_gpus={resources.num_gpus}. "
            "Lower one of them or change cluster.partition"
        )
    if not faults and not any(k.cpus >= cpus and k.memory_mb >= memory_mb and k.gpus >= gpus for k in kinds):
        faults.append(
            f"resources: no single node of {where} has {cpus} CPUs, {memory_mb / 1024:g} GB and {gpus} GPUs together. "
            "Lower resources.num_threads, resources.mem_gb or resources.num_gpus"
        )
    return faults
