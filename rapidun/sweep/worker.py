"""What a job of a sweep runs: its cells, or the artifacts that other jobs wait for, one after the other in one process.

The job file says all of it as JSON; nothing is composed again and nothing in it is executed, but for the files of code
that the launching command named by --extend, as they were then. What became of a cell is
in its run folder, whatever happens to this process.
"""

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rapidun.base import preemption, processes
from rapidun.base.errors import RapidunError
from rapidun.base.files import read_json, write_json
from rapidun.base.machine import quiet_libraries
from rapidun.base.redact import hide, keep_secret
from rapidun.base.text import first_line
from rapidun.config import extend
from rapidun.config.plain import config_yaml, from_plain
from rapidun.pipeline.folder import FolderTaken
from rapidun.pipeline.run import InSweep, run_pipeline
from rapidun.stages.context import Memo
from rapidun.sweep.folder import SweepFolder, read_state
from rapidun.sweep.pruning import TrialObserver

HEAVY_MODULES = ("torch", "transformers", "peft")

_memo = Memo()
_had_a_job = False


def forget_inputs() -> None:
    """Look at input files anew: a process that launches a second sweep may find them changed."""
    _memo.known.clear()


class JobFailed(RuntimeError):
    """Some of the job's cells failed; which, and why, is in their run folders."""


def run_job(file: str) -> None:
    """Run every unit of a job file that is not done yet.

    Raises: JobFailed at the end if any failed; Preempted if asked to stop, after the running cell has saved itself.
        Where several processes run the job and one broke their connection, RuntimeError before the next unit: the
        driver starts what is left in a new job.
    """
    global _had_a_job
    began = time.time() if _had_a_job else _process_start()
    _had_a_job = True
    path = Path(file)
    job = read_json(path)
    sweep = SweepFolder(path.resolve().parent.parent)
    extend.load_installed()
    for one in job.get("extend", []):
        extend.load_file(one["path"], sha256=one["sha256"])
    failed = 0
    missing = _missing(job, sweep) if processes.is_main() else None
    missing = processes.share(missing)
    if missing is None:
        quiet_libraries()
        for name in HEAVY_MODULES if job["heavy"] else ():
            __import__(name)
        if not job["shared_process"]:
            # what was imported stays: the collections that accelerate asks for need not walk it each time
            gc.freeze()
    for unit in job["units"]:
        preemption.raise_if_requested()
        skip = None
        if processes.is_main():
            # the job was queued again, or others have failed so often that the sweep ends
            done = read_state(sweep.folder(unit["folder"])).state in ("done", "pruned")
            skip = "done before" if done else sweep.stopped()
        skip = processes.share(skip)
        if skip:
            print(f"{unit['folder']}: not run: {skip}", flush=True)
            continue
        fault = _run_unit(unit, job, sweep, missing, start_seconds=time.time() - began)
        if fault is not None:
            failed += 1
            if unit["only"] and missing is None:
                # what follows in this job is made from it
                missing = f"needs {unit['only']}, which is not there (failed: {fault})"
        began = time.time()
    if failed:
        raise JobFailed(f"{failed} of {len(job['units'])} failed; see {sweep.path}")


def _run_unit(
    unit: dict[str, Any], job: dict[str, Any], sweep: SweepFolder, missing: str | None, *, start_seconds: float
) -> str | None:
    """Run one cell or make one artifact; return why it failed, or None.

    Raises: Preempted if this process, or another that runs the same cell, was asked to stop.
    """
    folder = sweep.folder(unit["folder"])
    print(f"\n{unit['folder']}: {' '.join(hide({'overrides': unit['overrides']})['overrides'])}", flush=True)
    try:
        if missing is not None:
            raise UpstreamFailed(missing)
        cfg = from_plain(unit["config"])
        # before anything of it can fail: the values are in this process's environment
        keep_secret(cfg.cluster.environment)
        cfg.run_dir = os.path.relpath(folder)
        if processes.is_main():
            write_json(folder / "overrides.json", hide({"task": unit["overrides"], "axes": unit["axes"]}))
        in_sweep = InSweep(
            job={"job": job["id"], "start_seconds": round(start_seconds, 3)},
            only=unit["only"],
            warm=len(job["units"]) > 1 or job["shared_process"],
            memo=_memo,
            observers=_observers(unit, folder),
            show=False,
        )
        with processes.failing_together():
            run_pipeline(cfg, overrides=unit["command"], config_yaml=config_yaml(cfg), in_sweep=in_sweep)
        return None
    except preemption.Pruned as pruned:
        print(f"{unit['folder']}: pruned at {pruned}", flush=True)
        return None
    except Exception as error:
        if isinstance(error, processes.PeerFailed):
            if error.kind == "Preempted":
                raise preemption.Preempted(str(error)) from error
            if error.kind == "Pruned":
                return None
        if not isinstance(error, UpstreamFailed | RapidunError):
            print(hide(traceback.format_exc()), file=sys.stderr)
        said = hide(first_line(error))
        print(f"{unit['folder']}: failed: {said}", file=sys.stderr, flush=True)
        if processes.is_main() and not isinstance(error, FolderTaken):
            if read_state(folder).state not in ("failed", "interrupted"):
                # it did not get as far as writing its own status
                sweep.mark(unit["folder"], said)
            if job["max_failures"] and sweep.count_failure(unit["folder"]) >= job["max_failures"]:
                sweep.stop(f"{job['max_failures']} failed, as many as sweep.max_failures or fail_fast allow")
        return str(said)


class UpstreamFailed(RuntimeError):
    """What this cell needs was not made by the job that was to make it."""


def _missing(job: dict[str, Any], sweep: SweepFolder) -> str | None:
    """Why something that another job was to make is not there; None when all is."""
    for need in job["requires"]:
        if (Path(need["path"]) / "manifest.json").is_file():
            continue
        state = read_state(sweep.folder(need["folder"]))
        if state.error:
            why = f"{state.state}: {state.error}"
        elif state.state in ("running", "lost"):
            # killed: it could not say so
            why = f"its job ended amid {state.stage or 'its start'}"
        else:
            why = "its job ended without making it"
        return f"needs {need['artifact']}, which is not there ({why})"
    return None


def _observers(unit: dict[str, Any], folder: Path) -> list[Callable[[str, dict[str, float], int | None], None]]:
    if not unit.get("trial"):
        return []
    return [TrialObserver(unit["trial"])]


def _process_start() -> float:
    """When this process was started, seconds since the epoch (Linux; elsewhere: now)."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return time.time()
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")
