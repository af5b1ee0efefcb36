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
    unnoted: dict[str, list[str]] = {}
    for id, job in jobs.items():
        if job["handle"] is None and not job["over"]:
            unnoted.setdefault(job["launcher"], []).append(id)
    for name, ids in unnoted.items():
        for id, handle in launcher_of(name).unnoted_handles(ids, drop_broken=driving).items():
            jobs[id] = {**jobs[id], "handle": handle}
    return jobs
