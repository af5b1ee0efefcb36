"""Trackio: a local database of runs with a dashboard of its own (`trackio show`), without account or network."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidun.base.redact import hide
from rapidun.config.plain import plain
from rapidun.pipeline.tracking import media
from rapidun.pipeline.tracking.sink import CurveSink, Ending
from rapidun.pipeline.tracking.swept import swept_settings, title_of

if TYPE_CHECKING:
    from rapidun.config.run import RunConfig

# these would send the numbers elsewhere; Trackio is the local tracker here
ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DATASET_ID", "TRACKIO_BUCKET_ID")


class TrackioSink(CurveSink):
    """One Trackio run for each run or cell, grouped by sweep; a restart makes a new one, `-r<n>`, with all of it."""

    name = "Trackio"

    def __init__(self, cfg: RunConfig, run_dir: Path, *, restarts: int = 0) -> None:
        import trackio

        super().__init__()
        self._project, self._database = cfg.tracking.project, cfg.tracking.dir
        # run folders differ, titles need not
        name = f"{hide(title_of(cfg, run_dir))[:80]} {run_dir.name}" + (f"-r{restarts}" if restarts else "")
        with _quiet(), _here():
            self._run = trackio.init(
                project=cfg.tracking.project,
                name=name,
                group=cfg.sweep.name or cfg.name,
                config=hide({**plain(cfg), "swept": swept_settings(cfg, run_dir)}),
                resume="never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self._catch_up(run_dir)

    def finish(self, ending: Ending, run_dir: Path) -> str | None:
        import trackio

        self._catch_up(run_dir)
        with _quiet():
            shown: dict[str, Any] = {
                f"mapping/weights_{group}": trackio.Histogram(values)
                for group, values in media.weights(run_dir / "mapping").items()
            }
            table = media.generations(run_dir / "evaluation" / "generations.jsonl")
            if table is not None:
                shown["evaluation/generations"] = trackio.Table(columns=table.columns, data=table.rows)
            # there is no summary: the final numbers are the last line
            final = {name: value for name, value in ending.metrics.items() if isinstance(value, int | float)}
            self._run.log({**final, **shown, "state": ending.state})
            trackio.finish()
        return shown_by(self._project, self._database)

    def abandon(self) -> None:
        with contextlib.suppress(Exception), _quiet():
            # the fault that led here has been said
            self._run.finish()

    def _write(self, stage: str, metrics: dict[str, float], step: int | None) -> None:
        row: dict[str, Any] = {f"{stage}/{name}": value for name, value in metrics.items()}
        if step is not None:
            row[f"{stage}/step"] = step
        if metrics:
            self._run.log(row)


def shown_by(project: str, folder: str | None) -> str:
    """How to look at a project. Args: folder: of the database (tracking.dir); None = Trackio's own."""
    where = "" if folder is None else f"TRACKIO_DIR={shlex.quote(str(Path(folder).expanduser().resolve()))} "
    return f"Trackio: {where}trackio show --project {shlex.quote(project)}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Trackio prints how to open its dashboard with every run."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _here() -> Iterator[None]:
    held = {name: os.environ.pop(name) for name in ELSEWHERE if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)
