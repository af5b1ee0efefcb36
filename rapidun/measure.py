"""Seconds and peak memory of a piece of work, measured."""

import sys
import time
from pathlib import Path
from types import TracebackType


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
    for line in status.read_text().splitlines() if status.is_file() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
