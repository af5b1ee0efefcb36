"""The processes of one run (torchrun, accelerate launch, SLURM tasks): who is first, and what all agree on.

One process: everything here is trivial, and torch is not imported. Several: they talk through the key-value store of
torch.distributed, not through collectives. Waiting there costs no GPU, lasts as long as a stage does, and ends at
once when another process reports a failure. The process group that this needs is the default one, made such that
accelerate, and with it transformers' Trainer, finds it and trains over it.
"""

import atexit
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

# a collective: one step, or the others' wait while rank 0 writes a checkpoint
GROUP_TIMEOUT = timedelta(hours=2)
# a process that still hangs in a collective so long after another has failed is ended
GRACE_SECONDS = 30.0
LONGEST_PAUSE = 0.5


class PeerFailed(RuntimeError):
    """Another process of this run failed; `kind` is the name of its exception's class."""

    def __init__(self, message: str, *, rank: int, kind: str) -> None:
        super().__init__(message)
        self.rank = rank
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return _peer_failed, (str(self), self.rank, self.kind)


def _peer_failed(message: str, rank: int, kind: str) -> PeerFailed:
    return PeerFailed(message, rank=rank, kind=kind)


def rank() -> int:
    """This process's number in the run, from 0."""
    return _from_environment("RANK", 0) if world_size() > 1 else 0


def world_size() -> int:
    """How many processes the run has."""
    return _from_environment("WORLD_SIZE", 1)


def local_rank() -> int:
    """This process's number on its host, from 0."""
    return _from_environment("LOCAL_RANK", 0)


def is_main() -> bool:
    """Whether this is the process that writes the store and the run folder."""
    return rank() == 0


def _from_environment(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


class _Talk:
    """What this process has said so far: messages are numbered, and after a failure all begin a new round."""

    def __init__(self) -> None:
        self.round = 0
        self.number = 0
        self.reported: BaseException | None = None
        # a failure amid a training left the process group unusable
        self.broken: str | None = None
        self.store: Any = None


_talk = _Talk()


def start() -> None:
    """Make the process group if there is none: gloo for CPU tensors, nccl beside it where there are GPUs."""
    if world_size() == 1 or _talk.store is not None:
        return
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            # SLURM may show each task its own GPU only
            torch.cuda.set_device(local_rank() % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=GROUP_TIMEOUT)
    _talk.store = dist.PrefixStore("rapidun", dist.distributed_c10d._get_default_store())
    # threads of the group that are still there when the interpreter goes end the process with SIGABRT
    atexit.register(_leave)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def share(value: Any) -> Any:
    """Rank 0's value, a JSON value, on every process; the others' argument does not matter.

    Raises: PeerFailed if a process failed before it came here.
    """
    if world_size() == 1:
        return value
    return _exchange("share", value, wanted=[0])[0]


def gather(value: Any) -> list[Any]:
    """Every process's JSON value, by rank, on every process.

    Raises: PeerFailed if a process failed before it came here.
    """
    if world_size() == 1:
        return [value]
    return _exchange("gather", value, wanted=list(range(world_size())))


def barrier(name: str) -> None:
    """Wait until every process is here.

    Raises: PeerFailed if a process failed before it came here; RuntimeError if one is at another barrier.
    """
    names = gather(name)
    if len(set(names)) > 1:
        where = ", ".join(f"rank {number} at {found!r}" for number, found in enumerate(names))
        raise RuntimeError(f"processes: need all {len(names)} at one barrier, got {where}")


def _exchange(kind: str, value: Any, *, wanted: list[int]) -> list[Any]:
    """Put this process's message, then wait for those of `wanted`."""
    start()
    if _talk.broken is not None:
        raise RuntimeError(f"processes: need a new start, since a failure broke the process group ({_talk.broken})")
    prefix = f"{_talk.round}/{_talk.number}/{kind}"
    _talk.number += 1
    if rank() in wanted:
        _talk.store.set(f"{prefix}/{rank()}", json.dumps(value))
    keys = [f"{prefix}/{number}" for number in wanted]
    pause = 0.001
    while not _talk.store.check(keys):
        _raise_failure()
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE)
    return [json.loads(text) for text in _talk.store.multi_get(keys)]


def _failure() -> dict[str, Any] | None:
    """What the first process to fail in this round said of it."""
    key = f"failed/{_talk.round}"
    return json.loads(_talk.store.get(key)) if _talk.store.check([key]) else None


def _raise_failure() -> None:
    failure = _failure()
    if failure is not None:
        error = PeerFailed(
            f"rank {failure['rank']} on {failure['host']} failed: {failure['kind']}: {failure['message']}",
            rank=failure["rank"],
            kind=failure["kind"],
        )
        _next_round(error)
        raise error


def _next_round(error: BaseException) -> None:
    _talk.reported = error
    _talk.round += 1
    _talk.number = 0


@contextmanager
def failing_together() -> Iterator[None]:
    """What is raised inside on one process makes the others raise PeerFailed where they next wait for each other.

    Nests: an exception is reported once. Afterwards all can go on with the next piece of work.
    """
    try:
        yield
    except BaseException as error:
        if world_size() > 1 and _talk.reported is not error and _talk.broken is None:
            report_failure(error)
        raise


def report_failure(error: BaseException) -> None:
    """Tell the other processes that this one failed."""
    import socket

    start()
    said = {"rank": rank(), "host": socket.gethostname(), "kind": type(error).__name__, "message": str(error)}
    # the first one counts: the others' failures are often its consequence
    _talk.store.compare_set(f"failed/{_talk.round}", "", json.dumps(said))
    _next_round(error)


@contextmanager
def collective() -> Iterator[None]:
    """Around work in which the processes wait for each other in collectives (a training).

    A process that leaves it with an exception tears the group down, which ends the others' collectives on gloo; one
    that hangs on nevertheless is ended after GRACE_SECONDS, as torch's own watchdog does. Either way every process
    raises the first cause, and a new start is needed afterwards.
    """
    if world_size() == 1:
        yield
        return
    start()
    done = threading.Event()
    watcher = threading.Thread(target=_end_if_peer_failed, args=(done, _talk.round), daemon=True, name="rapidun-peers")
    watcher.start()
    try:
        yield
    except PeerFailed as error:
        _break(str(error))
        raise
    except BaseException as error:
        try:
            cause = _failure()
            if cause is None:
                report_failure(error)
        except RuntimeError as lost:
            _break(f"rank 0 is gone: {lost}")
            raise error from lost
        _break(f"{type(error).__name__}: {error}")
        if cause is not None and isinstance(error, Exception):
            # our own exception says only that a connection was lost
            _raise_failure()
        raise
    finally:
        done.set()
        watcher.join()


def _break(cause: str) -> None:
    import torch.distributed as dist

    _talk.broken = cause
    if dist.is_initialized():
        dist.destroy_process_group()


def _end_if_peer_failed(done: threading.Event, round_: int) -> None:
    key = f"failed/{round_}"
    while not done.wait(1.0):
        try:
            failed = _talk.store.check([key])
        except RuntimeError as error:
            # rank 0, which serves the store, is gone
            failed, said = True, f"lost rank 0 ({error})"
        else:
            said = _talk.store.get(key).decode() if failed else ""
        if failed:
            if not done.wait(GRACE_SECONDS):
                print(f"rank {rank()}: ended, since it waits for a process that failed: {said}", file=sys.stderr)
                sys.stderr.flush()
                os._exit(70)
            return
