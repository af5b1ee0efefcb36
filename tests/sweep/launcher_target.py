"""What the launchers' tests run instead of the worker: a job file `{"do": ..., "out": path}` says what to do."""

import json
import os
import signal
import time
from pathlib import Path

SHOWN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "RAPIDUN_NUM_THREADS", "OMP_NUM_THREADS", "COLOUR")


def run(file: str) -> int:
    """Do what the job file says; a line of JSON in `out` tells what this process saw."""
    job = json.loads(Path(file).read_text())
    seen = {name: os.environ.get(name) for name in SHOWN} | {"pid": os.getpid(), "start": time.time()}
    seen["restarts"] = int(os.environ.get("SLURM_RESTART_COUNT") or os.environ.get("RAPIDUN_RESTARTS") or 0)
    print("doing", job["do"], flush=True)
    DOINGS[job["do"]](job, seen)
    note(job, seen)
    return 0


def note(job: dict, seen: dict) -> None:
    with Path(job["out"]).open("a") as file:
        file.write(json.dumps(seen | {"end": time.time()}) + "\n")


def fail(job: dict, seen: dict) -> None:
    raise ValueError("this cell is broken")


def kill(job: dict, seen: dict) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def eat(job: dict, seen: dict) -> None:
    eaten = bytearray(600 * 1024 * 1024)
    eaten[::4096] = b"x" * len(eaten[::4096])
    time.sleep(30)


def sleep(job: dict, seen: dict) -> None:
    time.sleep(job.get("seconds", 300))


def stubborn(job: dict, seen: dict) -> None:
    """Deaf to every request to stop."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(job, seen)
    time.sleep(300)


def wait_for_signal(job: dict, seen: dict) -> None:
    """Sleep until a signal; after the restarts that were asked for, return."""
    if seen["restarts"] >= job.get("restarts", 1):
        return
    note(job, seen)
    time.sleep(300)


def failing_rank(job: dict, seen: dict) -> None:
    """Rank 1 fails; rank 0 would wait for ever."""
    if seen["RANK"] == "1":
        raise ValueError("rank 1 is broken")
    time.sleep(300)


def gloo(job: dict, seen: dict) -> None:
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    total = torch.tensor([1.0 + distributed.get_rank()])
    distributed.all_reduce(total)
    distributed.destroy_process_group()
    seen["total"] = total.item()


DOINGS = {
    "note": lambda job, seen: None,
    "fail": fail,
    "kill": kill,
    "eat": eat,
    "sleep": sleep,
    "stubborn": stubborn,
    "wait_for_signal": wait_for_signal,
    "failing_rank": failing_rank,
    "gloo": gloo,
}
