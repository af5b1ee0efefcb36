"""A sign of life beside status.json: when the run was last alive, and how far its stage is.

Read from any node by files alone. A run that says "running" and has not been heard of for STALE_SECONDS was killed.
"""

import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rapidun.base.clock import age
from rapidun.base.files import UNREADABLE
from rapidun.base.parts import part_of

INTERVAL_SECONDS = 5.0
STALE_SECONDS = 90.0


class Heartbeat:
    """Writes `path` every few seconds from a thread of its own, so that a long computation keeps it up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._now: dict[str, Any] = {"stage": None, "done": 0, "total": 0}
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(self._stop,), name="heartbeat", daemon=True)
        self._thread.start()

    def progress(self, stage: str, done: int, total: int) -> None:
        self._now = {"stage": stage, "done": done, "total": total}

    def stop(self) -> None:
        """End the thread and remove the file: status.json says how the run ended."""
        if self._stop is None or self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._stop = self._thread = None
        with suppress(OSError):  # a disk that became read-only keeps it
            self.path.unlink(missing_ok=True)

    def _beat(self, stop: threading.Event) -> None:
        while True:
            part = part_of(self.path)
            try:
                part.write_text(json.dumps({"time": round(time.time(), 1), **self._now}), encoding="utf-8")
                os.replace(part, self.path)
            except OSError:
                # a full or vanished disk ends the run where it writes results; a missing sign of life must not
                with suppress(OSError):
                    part.unlink(missing_ok=True)
            if stop.wait(INTERVAL_SECONDS):
                return


def seconds_since(path: Path) -> float | None:
    """Seconds since the last sign of life, by the file system's own clock; None where there is none."""
    try:
        return age(path)
    except OSError:
        return None


def read(path: Path) -> dict[str, Any]:
    """The newest sign of life; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *UNREADABLE):
        return {}
    return found if isinstance(found, dict) else {}
