"""What of this machine the process may use."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from rapidun.base.late_compiler import compile_late


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Devices that this process may use, as CUDA_VISIBLE_DEVICES has them; without importing torch."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return [device.strip() for device in shown.split(",") if device.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return []
    lines = [line for line in listed.stdout.split("\n") if line.startswith("GPU ")]
    return [str(index) for index in range(len(lines))]


def available_memory() -> int | None:
    """Bytes that this process may still take: of the machine, of its cgroup, of `ulimit -v`; None = unknown."""
    found = []
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().split("\n") if meminfo.is_file() else []:
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    # inside a container its own cgroup is the root
    limit, used, parts = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current", "stat"))
    if limit.is_file() and limit.read_text().strip().isdecimal():
        # files that were read count as used until somebody needs the room
        cached = [int(line.split()[1]) for line in parts.read_text().split("\n") if line.startswith("inactive_file ")]
        found.append(max(0, int(limit.read_text()) - int(used.read_text()) + sum(cached)))
    import resource

    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    sizes = Path("/proc/self/statm")
    if space != resource.RLIM_INFINITY and sizes.is_file():
        found.append(max(0, space - int(sizes.read_text().split()[0]) * resource.getpagesize()))
    return min(found, default=None)


def set_threads(num_threads: int) -> None:
    """The number of threads is part of what makes CPU results repeat bit for bit."""
    import torch

    torch.set_num_threads(num_threads or _shared_out() or available_cores())


def _shared_out() -> int:
    """What a launcher of several jobs at once, or the user's shell, says; 0 where nobody does."""
    named = (os.environ.get(name, "") for name in ("RAPIDUN_NUM_THREADS", "OMP_NUM_THREADS"))
    return next((int(text) for text in named if text.isdecimal() and int(text) > 0), 0)


def spin_less() -> None:
    """Let OpenMP's threads fall asleep a tenth of a millisecond into waiting for each other, in place of a whole one.

    That costs nothing on cores of one's own, and much less on cores that others use as well (docs/LOG.md). What the
    user's shell says stands. Of use only before torch is imported, with the OpenMP of GNU.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")


def quiet_libraries() -> None:
    """Progress is ours to show; the libraries keep to errors. Imports none of them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # said at import on every CPU: an optional kernel of theirs is not installed
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    compile_late()


class Measured:
    """Context manager: `seconds` of wall time and `peak_memory_gb` (GiB resident, or allocated on the GPU)."""

    def __enter__(self) -> "Measured":
        _reset_peak()
        self.seconds = 0.0
        self.peak_memory_gb = 0.0
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = round(time.perf_counter() - self._start, 3)
        self.peak_memory_gb = round(_peak_bytes() / 2**30, 3)


def _reset_peak() -> None:
    try:
        # 5 resets VmHWM, the peak of resident memory (man 5 proc)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # not Linux, or not allowed: the peak since the process started is reported
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_bytes() -> int:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")  # Linux
    for line in status.read_text().split("\n") if status.is_file() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
