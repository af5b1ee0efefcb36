"""jobs.json as it would read had no process been killed between a submission and the line that notes it."""

from collections.abc import Callable
from typing import Any

from rapidun.sweep.folder import SweepFolder
from rapidun.sweep.launcher import Launcher


def known_jobs(
    folder: SweepFolder, launcher_of: Callable[[str], Launcher], *, driving: bool = False
) -> dict[str, dict[str, Any]]:
    """Every job of the sweep, with the handles that a killed process could not note.

    Args: driving: this process holds the driver's lease, and so may cancel what was submitted half-way.
    """
    jobs = folder.jobs()
    lost: dict[str, list[str]] = {}
    for id, job in jobs.items():
        if job["handle"] is None and not job["over"]:
            lost.setdefault(job["launcher"], []).append(id)
    for name, ids in lost.items():
        find = getattr(launcher_of(name), "find_lost", None)
        for id, handle in (find(ids, drop_broken=driving) if find else {}).items():
            jobs[id] = {**jobs[id], "handle": handle}
    return jobs
