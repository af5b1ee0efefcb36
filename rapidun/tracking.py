"""Where numbers go: metrics.jsonl always, W&B when asked. A tracker's fault never ends a run."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Tracker:
    """Takes what a stage has to say. This base class keeps warnings and drops the rest."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def log(self, metrics: dict[str, float], *, step: int | None = None) -> None:
        """Record numbers; names carry no stage prefix, the tracker adds it."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Say how far the running stage is."""

    def warn(self, message: str) -> None:
        """Say once what the user may want to change."""
        if message not in self.warnings:
            self.warnings.append(message)


class RunTracker(Tracker):
    """Appends every number to metrics.jsonl and hands it on to a console and to W&B."""

    def __init__(
        self,
        path: Path,
        *,
        on_progress: Callable[[int, int, str], None] | None = None,
        on_warning: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__()
        self.stage = ""
        self._path = path
        self._artifact_path: Path | None = None
        self._on_progress = on_progress
        self._on_warning = on_warning
        self._wandb: Any = None

    def begin(self, stage: str, artifact_path: Path | None = None) -> tuple[str, Path | None]:
        """Name the stage that speaks from now on; `artifact_path` gets its numbers as well, to go with its artifact.

        Returns: what held before, to be given back afterwards.
        """
        before = (self.stage, self._artifact_path)
        self.stage, self._artifact_path = stage, artifact_path
        return before

    def start_wandb(
        self,
        *,
        project: str,
        entity: str | None,
        mode: str,
        tags: list[str],
        run_dir: Path,
        group: str | None,
        name: str,
        config: dict[str, Any],
    ) -> None:
        """Open a W&B run; offline where no key is set. A fault becomes one warning."""
        chosen: Any = mode
        if mode == "auto":
            has_key = bool(os.environ.get("WANDB_API_KEY")) or (Path.home() / ".netrc").exists()
            chosen = os.environ.get("WANDB_MODE") or ("online" if has_key else "offline")
        try:
            import wandb

            self._wandb = wandb.init(
                project=project,
                entity=entity,
                mode=chosen,
                tags=tags,
                dir=str(run_dir),
                group=group,
                name=name,
                config=config,
                settings=wandb.Settings(silent=True, console="off"),
            )
        except Exception as error:
            self.warn(f"tracking: W&B did not start ({_first_line(error)}); metrics.jsonl has every number")

    def log(self, metrics: dict[str, float], *, step: int | None = None) -> None:
        row: dict[str, Any] = {"time": round(time.time(), 3), "stage": self.stage, "step": step, **metrics}
        text = json.dumps(_finite(row)) + "\n"
        for path in (self._path, self._artifact_path):
            if path is not None:
                with path.open("a", encoding="utf-8") as file:
                    # one write call a line, so that a kill leaves whole lines
                    file.write(text)
        if self._wandb is not None:
            named = {f"{self.stage}/{key}": value for key, value in metrics.items()}
            if step is not None:
                named[f"{self.stage}/step"] = step
            self._guard(lambda: self._wandb.log(named))

    def progress(self, done: int, total: int, note: str = "") -> None:
        if self._on_progress is not None:
            self._on_progress(done, total, note)

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
            if self._on_warning is not None:
                self._on_warning(message)

    def finish(self, summary: dict[str, Any], *, failed: bool) -> None:
        """Close the W&B run, marked failed or not, with the final metrics in its summary."""
        if self._wandb is None:
            return
        run, self._wandb = self._wandb, None
        try:
            run.summary.update(summary)
            run.finish(exit_code=1 if failed else 0)
        except Exception as error:
            self.warn(f"tracking: W&B did not close ({_first_line(error)}); metrics.jsonl has every number")

    def _guard(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            self._wandb = None
            self.warn(f"tracking: W&B stopped ({_first_line(error)}); metrics.jsonl has every number")


def without_repeats(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop what a restarted stage logged twice: of lines with the same step and names the last one stays."""
    last = {(line["step"], *sorted(line)): i for i, line in enumerate(lines) if line["step"] is not None}
    return [line for i, line in enumerate(lines) if line["step"] is None or last[(line["step"], *sorted(line))] == i]


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: such a number is written as null."""
    return {key: None if isinstance(v, float) and v - v != 0 else v for key, v in row.items()}
