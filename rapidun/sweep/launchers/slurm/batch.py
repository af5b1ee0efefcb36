"""From resources and cluster settings to submitit's parameters for sbatch; every value is quoted, none is a command."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from rapidun.config.sweep import ClusterConfig, ResourcesConfig
from rapidun.sweep.launchers.submission import NUM_THREADS, SIGNAL_DELAY

# Options that come from resources.*, cluster.* or the sweep itself: a second source for one would be a riddle.
OURS = {
    "account": "cluster.account",
    "constraint": "cluster.constraint",
    "exclude": "cluster.exclude",
    "partition": "cluster.partition",
    "qos": "cluster.qos",
    "signal": "cluster.signal_delay_s",
    "cpus-per-task": "resources.num_threads",
    "gpus-per-task": "resources.num_gpus",
    "gpus": "resources.num_gpus",
    "gpus-per-node": "resources.num_gpus",
    "gres": "resources.num_gpus",
    "mem": "resources.mem_gb",
    "mem-per-cpu": "resources.mem_gb",
    "mem-per-gpu": "resources.mem_gb",
    "ntasks": "resources.num_processes",
    "ntasks-per-node": "resources.num_processes",
    "nodes": "resources.num_processes",
    "time": "resources.timeout_min",
    "array": "sweep.max_parallel",
    "job-name": "sweep.name",
    "dependency": "nothing: rapidun sets it",
    "kill-on-invalid-dep": "nothing: rapidun sets it",
    "output": "nothing: rapidun sets it",
    "error": "nothing: rapidun sets it",
    "open-mode": "nothing: rapidun sets it",
    "requeue": "nothing: rapidun sets it",
    "no-requeue": "nothing: rapidun needs requeueing",
    "export": "cluster.environment",
    "wrap": "nothing: rapidun sets it",
    "wait": "sweep.detach",
    "comment": "nothing: rapidun sets it",
}
ELSEWHERE = "Pass another sweep.name=..., or start the sweep in another folder"
PRINTABLE = re.compile(r"[^\x00-\x1f\x7f]*")


def cluster_faults(cluster: ClusterConfig) -> list[str]:
    """Values that could not be written into a script as they stand."""
    faults = []
    for key, value in cluster.sbatch.items():
        option = key.replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", option):
            faults.append(f"cluster.sbatch: need the name of an sbatch option such as `reservation`, got {key!r}")
        elif option in OURS:
            faults.append(f"cluster.sbatch.{key}: this option comes from {OURS[option]}. Change it there")
        elif not PRINTABLE.fullmatch(str(value)):
            faults.append(f"cluster.sbatch.{key}: need one line of text, got {value!r}. Change cluster.sbatch.{key}")
    for key, value in cluster.environment.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            faults.append(f"cluster.environment: need the name of a variable, got {key!r}")
        elif key.startswith(("SLURM_", "SUBMITIT_")):
            faults.append(f"cluster.environment.{key}: SLURM and submitit set this themselves. Take it out")
        elif "\x00" in str(value):
            faults.append(f"cluster.environment.{key}: need text without null characters")
    for name in ("partition", "account", "qos", "constraint", "exclude"):
        value = getattr(cluster, name)
        if value is not None and not PRINTABLE.fullmatch(value):
            faults.append(f"cluster.{name}: need one line of text, got {value!r}. Change cluster.{name}")
    return faults


def folder_faults(folder: Path) -> list[str]:
    """What SLURM and submitit would read in the paths of logs and jobs that lie below this folder.

    SLURM takes every % in --output for a pattern (%j, %x, %5A, ...) and a backslash for the order to take none;
    submitit puts a job's number in the place of %j, %t, %A and %a, in the folder's own name too.
    """
    text = str(folder)
    if not PRINTABLE.fullmatch(text):
        return [f"sweep.name: need a sweep's folder of one line of text for a SLURM script, got {text!r}. {ELSEWHERE}"]
    if "%" in text or "\\" in text:
        return [
            f"sweep.name: need a sweep's folder without % and \\, which SLURM reads as patterns in the paths of logs, "
            f"got {text}. {ELSEWHERE}"
        ]
    return []


def setup_lines(cluster: ClusterConfig, resources: ResourcesConfig) -> list[str]:
    """Shell lines that run in the job before the worker."""
    lines = [f"export {SIGNAL_DELAY}={cluster.signal_delay_s}"]
    if resources.num_threads > 0:
        lines += [f"export {name}={resources.num_threads}" for name in (NUM_THREADS, "OMP_NUM_THREADS")]
    lines += [f"module load {shlex.quote(module)} || exit 1" for module in cluster.modules]
    lines += [f"export {name}={shlex.quote(str(value))}" for name, value in cluster.environment.items()]
    return lines


def sbatch_parameters(
    cluster: ClusterConfig, resources: ResourcesConfig, *, name: str, array_parallelism: int, dependency: str
) -> dict[str, object]:
    """The parameters of one submission, as submitit's SlurmExecutor takes them."""
    parameters: dict[str, object] = {
        "job_name": name,
        "time": resources.timeout_min,
        "nodes": 1,
        "ntasks_per_node": resources.num_processes,
        "array_parallelism": array_parallelism,
        "signal_delay_s": cluster.signal_delay_s,
        # one file a process: what it printed, its traceback and what SLURM says about it, in the order it happened
        "stderr_to_stdout": True,
        "setup": setup_lines(cluster, resources),
        # submitit's own name for the site's billing, which sites with wckeys refuse
        "wckey": None,
        # a process that fails ends the others of its job, which would wait for it in a collective operation
        "srun_args": ["--kill-on-bad-exit=1"],
        "additional_parameters": {"requeue": True, **extra_options(cluster.sbatch)},
    }
    for key in ("partition", "account", "qos", "constraint", "exclude"):
        if (value := getattr(cluster, key)) is not None:
            parameters[key] = value
    if resources.num_threads > 0:
        parameters["cpus_per_task"] = resources.num_threads
    if resources.num_gpus > 0:
        # SLURM then shows each process its own devices and no others
        parameters["gpus_per_task"] = resources.num_gpus
    if resources.mem_gb is not None:
        parameters["mem"] = f"{max(1, int(resources.mem_gb * 1024))}M"
    if dependency:
        parameters["dependency"] = dependency
    return parameters


def extra_options(sbatch: dict[str, str]) -> dict[str, object]:
    """cluster.sbatch for submitit: `true` is a bare flag, `false` leaves the option out."""
    options: dict[str, object] = {}
    for key, value in sbatch.items():
        if str(value).lower() == "false":
            continue
        options[key.replace("_", "-")] = True if str(value).lower() == "true" else value
    return options


def dependency_text(needed: Sequence[str], *, known: Sequence[str]) -> str:
    """`afterany:` and the jobs needed; an array whose known tasks are all needed is named as a whole."""
    tasks: dict[str, set[str]] = {}
    for handle in known:
        tasks.setdefault(handle.partition("_")[0], set()).add(handle)
    wanted: dict[str, set[str]] = {}
    for handle in needed:
        wanted.setdefault(handle.partition("_")[0], set()).add(handle)
    names: list[str] = []
    for base, handles in wanted.items():
        whole = len(handles) > 1 and handles >= tasks.get(base, set())
        names += [base] if whole else sorted(handles, key=task_number)
    return "afterany:" + ":".join(names) if names else ""


def task_number(handle: str) -> int:
    """4 for `123_4`, 0 for `123`."""
    return int(handle.partition("_")[2] or 0)
