"""Jobs that were cancelled and have not ended yet: a new launch waits for them, and takes up what they leave."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from rapidun.sweep.folder import SweepFolder
from rapidun.sweep.jobs import live_jobs
from rapidun.sweep.launcher import Launcher

LOOK_SECONDS = 0.5


def wait_for_cancelled(
    folder: SweepFolder,
    jobs: Mapping[str, Mapping[str, Any]],
    launcher_of: Callable[[str], Launcher],
    *,
    say: Callable[[str], object],
) -> None:
    """Until every job that was cancelled, by Ctrl-C or `rapidun sweep cancel`, is over.

    A scheduler gives a job time to save itself, half a minute on many clusters. What it still writes must be there
    before anything is planned, and it must not be taken for a job that goes on.

    Args: jobs: entries of jobs.json by id. say: told once, if there is something to wait for.
    """
    told = folder.told_to_end()
    cancelled = {id: job for id, job in jobs.items() if job.get("cancelled") or job.get("handle") in told}
    said = False
    while live := live_jobs(cancelled, launcher_of):
        if not said:
            said = True
            say(f"waiting for {len(live)} cancelled {'job' if len(live) == 1 else 'jobs'} to end")
        time.sleep(LOOK_SECONDS)
