"""Jobs that a killed process submitted and could not note: SLURM keeps a token with each, a file explains it.

Between `sbatch` and the line in jobs.json lies a moment, on a busy cluster seconds. Whoever drives the sweep next
finds those jobs again instead of submitting them twice.
"""

import getpass
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from rapidun.base.files import read_json, write_json
from rapidun.sweep.launchers.slurm.commands import TIMEOUT_S, SlurmRefused, SlurmUnreachable, slurm

PREFIX = "rapidun:"


def new_comment(folder: Path, ids: list[str]) -> str:
    """Note in `folder` what the next submission holds, task by task; return the comment to submit it with."""
    token = secrets.token_hex(8)
    write_json(folder / f"{token}.json", ids)
    return PREFIX + token


def forget(folder: Path, comment: str) -> None:
    """SLURM has not taken what this comment stood for."""
    (folder / f"{comment.removeprefix(PREFIX)}.json").unlink(missing_ok=True)


def unnoted_handles(folder: Path, ids: Iterable[str]) -> dict[str, str]:
    """Handles of those of these jobs that wait or run; what has ended has left its traces in the run folders."""
    try:
        lines = _queue()
    except (SlurmUnreachable, SlurmRefused):
        return {}
    wanted = set(ids)
    found: dict[str, str] = {}
    for line in sorted(lines):
        base, _, comment = line.partition("|")
        note = folder / f"{comment.removeprefix(PREFIX)}.json"
        if comment.startswith(PREFIX) and note.is_file():
            members = read_json(note)
            handles = [base] if len(members) == 1 else [f"{base}_{task}" for task in range(len(members))]
            found |= {id: handle for id, handle in zip(members, handles, strict=True) if id in wanted}
    return found


def base_of(comment: str, *, timeout_s: float = TIMEOUT_S) -> str | None:
    """SLURM's number for the jobs that wait or run with this comment.

    Raises: SlurmUnreachable, SlurmRefused.
    """
    found = [base for base, bar, theirs in (line.partition("|") for line in _queue(timeout_s)) if theirs == comment]
    return found[0] if found else None


def _queue(timeout_s: float = TIMEOUT_S) -> set[str]:
    """`number|comment` of every job of this user; the tasks of an array share a number."""
    return set(slurm("squeue", "-h", "-u", getpass.getuser(), "-o", "%F|%k", timeout_s=timeout_s).split("\n"))


def without_call(folder: Path, handles: Mapping[str, str]) -> dict[str, str]:
    """Those of these jobs that would wait for what to call, then fail: their submission was cut off half-way."""
    return {id: handle for id, handle in handles.items() if not (folder / f"{handle}_submitted.pkl").is_file()}
