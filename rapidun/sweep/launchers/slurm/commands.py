"""Running SLURM's own commands so that none of them can hold us up."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from submitit.helpers import clean_env

from rapidun.base.errors import RapidunError
from rapidun.base.text import lines_of

COMMANDS = ("sbatch", "srun", "scontrol", "scancel", "sinfo")
# SLURM's commands retry for 10 to 20 seconds when the controller is away.
TIMEOUT_S = 5.0
# Where the cluster is configured: submission from inside a job keeps only this of SLURM's variables.
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")


class SlurmUnreachable(RapidunError):
    """The controller does not answer, or SLURM is not here at all: nothing is known about any job."""


class SlurmRefused(RapidunError):
    """The controller answered that it will not: unknown job, bad option, no permission."""


def missing_commands() -> list[str]:
    """SLURM's commands that are not in PATH."""
    return [name for name in COMMANDS if shutil.which(name) is None]


def is_away(line: str) -> bool:
    """Whether what a SLURM command said means that it found no controller."""
    return any(
        sign in line for sign in ("Unable to contact", "timed out", "Zero Bytes", "fetch config", "configuration")
    )


def slurm(*command: str, timeout_s: float = TIMEOUT_S) -> str:
    """Run a SLURM command and return what it prints.

    Raises: SlurmUnreachable if the command is missing, times out or finds no controller; SlurmRefused for other errors.
    """
    # whole lists of array tasks, which SLURM cuts at 64 characters
    environment = os.environ | {"SLURM_BITSTR_LEN": "0"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env=environment, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise SlurmUnreachable(f"{command[0]} is not in PATH") from None
    except subprocess.TimeoutExpired:
        raise SlurmUnreachable(f"SLURM does not answer ({command[0]} took longer than {timeout_s:g} s)") from None
    if done.returncode == 0:
        return done.stdout
    said = lines_of(done.stderr.strip() or done.stdout.strip())
    line = said[-1] if said else f"status {done.returncode}"
    if is_away(line):
        raise SlurmUnreachable(f"SLURM does not answer ({line})")
    raise SlurmRefused(f"{command[0]}: {line}")


def site_settings() -> dict[str, str]:
    """`scontrol show config` as a dict: MaxArraySize, AccountingStorageType, ..."""
    lines = (line.partition("=") for line in slurm("scontrol", "show", "config").split("\n"))
    return {key.strip(): value.strip() for key, equals, value in lines if equals}


@contextmanager
def submission_environment() -> Iterator[None]:
    """The environment to submit from: without what a surrounding job left, but with where the cluster is."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    with clean_env():
        os.environ.update(kept)
        try:
            yield
        finally:
            for name in kept:
                os.environ.pop(name, None)
