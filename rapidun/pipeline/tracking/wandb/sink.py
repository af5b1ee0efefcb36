"""W&B: one run for each stage that is computed and one for the whole (the cell of a sweep), grouped by sweep."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidun.base.files import read_json
from rapidun.base.nested import numbers
from rapidun.base.redact import hide
from rapidun.base.text import first_line
from rapidun.config.plain import plain
from rapidun.pipeline.tracking import media
from rapidun.pipeline.tracking.lines import read_lines, without_repeats
from rapidun.pipeline.tracking.sink import Ending, Execution
from rapidun.pipeline.tracking.swept import group_choices, title_of
from rapidun.pipeline.tracking.wandb.ids import id_of
from rapidun.pipeline.tracking.wandb.lineage import make_artifact, note_use
from rapidun.pipeline.tracking.wandb.mode import choose_connection
from rapidun.pipeline.tracking.wandb.run import LoggedRun, each, forget_service, id_is_free_again, start_run

if TYPE_CHECKING:
    from rapidun.config.run import RunConfig


class WandbSink:
    """Hands a run on to W&B.

    Ids are stable: `<stage>-<fingerprint>` and `cell-<cell hash>-<hash of the sweep's name>`, so that a requeued run
    goes on as the same run. Offline runs cannot: theirs get `-r<n>` and begin with what the earlier attempts logged.
    """

    name = "W&B"

    def __init__(
        self, cfg: RunConfig, run_dir: Path, *, warn: Callable[[str], None], restarts: int, cell: bool
    ) -> None:
        self._cfg = cfg
        self._warn = warn
        self._folder = Path(cfg.tracking.dir).expanduser() if cfg.tracking.dir else run_dir
        self._connection = choose_connection(cfg.tracking.mode.name)
        if self._connection.warning:
            warn(self._connection.warning)
        # an agent of W&B's own sweeps started this process: it waits for one run, of the id that it chose
        self._agents_id = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        self._open: list[tuple[Execution, LoggedRun]] = []
        self._offline: list[Path] = []
        status = read_json(run_dir / "status.json") if (run_dir / "status.json").is_file() else {}
        self._commit: str | None = status.get("git_commit")
        self._settings = hide({**plain(cfg), "choices": group_choices(cfg, run_dir), "git": self._git()})
        self._title = str(hide(title_of(cfg, run_dir)))[:120]
        self._cell: LoggedRun | None = None
        if cell:
            self._cell = self._start(
                id=self._agents_id or cell_id(cfg, run_dir),
                job_type="cell",
                name=self._title,
                config={},
                attempt=restarts,
            )
            self._cell.catch_up(without_repeats(read_lines(run_dir / "metrics.jsonl")))

    def start_stage(self, execution: Execution) -> None:
        if self._agents_id:
            return
        config = {
            "execution": {
                "stage": execution.stage,
                "kind": execution.kind,
                "fingerprint": execution.fingerprint,
                "inputs": execution.inputs,
                "needs": list(execution.needs),
            }
        }
        title = f"{execution.kind} {execution.fingerprint[:8]}"
        run = self._start(id=execution.id, job_type=execution.stage, name=title, config=config)
        self._open.append((execution, run))
        if self._cfg.tracking.log_artifacts:
            for need in execution.needs:
                self._note_use(run, Path(self._cfg.store_dir) / need)

    def catch_up_stage(self, execution: Execution, lines: Sequence[dict[str, Any]]) -> None:
        run = self._run_of(execution)
        if run is not None:
            run.catch_up(lines)

    def log(self, stage: str, metrics: dict[str, float], step: int | None) -> None:
        if self._open:
            self._open[-1][1].log(stage, metrics, step)
        if self._cell is not None:
            self._cell.log(stage, metrics, step)

    def finish_stage(self, execution: Execution, artifact: Path, manifest: dict[str, Any]) -> None:
        run = self._run_of(execution)
        if run is None:
            return
        self._show(run, execution.stage, lambda: stage_media(execution.stage, artifact))
        if self._cfg.tracking.log_artifacts:
            self._attempt("artifacts", lambda: run.run.log_artifact(make_artifact(artifact, manifest)))
        summary = numbers(manifest.get("result", {}))
        summary |= {name: manifest[name] for name in ("seconds", "peak_memory_gb") if name in manifest}
        self._close(execution, Ending(state="done"), summary)

    def fail_stage(self, execution: Execution, ending: Ending) -> None:
        self._close(execution, ending, {})

    def finish(self, ending: Ending, run_dir: Path) -> str | None:
        if self._cell is not None:
            cell, self._cell = self._cell, None
            # the curves of stages that came from the store
            cell.catch_up(without_repeats(read_lines(run_dir / "metrics.jsonl")))
            for stage, link in (("mapping", "mapping"), ("influence", "influence"), ("evaluation", "evaluation")):
                self._show(cell, stage, lambda stage=stage, link=link: stage_media(stage, run_dir / link))  # type: ignore[misc]
            if self._cfg.tracking.log_artifacts:
                for need in used_artifacts(run_dir):
                    self._note_use(cell, Path(self._cfg.store_dir) / need)
            self._upload(cell, lambda: cell.close(ending, ending.metrics))
        if not self._offline:
            return None
        pattern = shlex.quote(str(self._folder / "wandb")) + "/offline-run-*"
        number = f"{len(self._offline)} offline run{'s' if len(self._offline) > 1 else ''}"
        return f"W&B: {number}; to upload later: wandb sync {pattern} (rapidun wandb sync DIR: all below DIR)"

    def abandon(self) -> None:
        runs = [run for _, run in self._open] + ([self._cell] if self._cell else [])
        self._open, self._cell = [], None
        if each([lambda run=run: run.end(1) for run in runs]):  # type: ignore[misc]
            forget_service()

    def _start(self, *, id: str, job_type: str, name: str, config: dict[str, Any], attempt: int = 0) -> LoggedRun:
        tracking = self._cfg.tracking
        options: dict[str, Any] = {
            "entity": tracking.entity,
            "project": tracking.project,
            "group": (self._cfg.sweep.name or self._cfg.name)[:128],
            "job_type": job_type,
            "name": name,
            "tags": list(tracking.tags),
            "config": {**self._settings, **config},
        }
        options = hide(options)
        commit = (self._commit or "").removesuffix("-dirty") or None
        where: dict[str, Any] = {"folder": self._folder, "id": id, "attempt": attempt, "git_commit": commit}
        if self._connection.mode == "online":
            try:
                return start_run(mode="online", base_url=self._connection.base_url, **where, **options)
            except Exception as error:
                self._connection = self._connection._replace(mode="offline")
                self._warn(f"tracking: W&B could not go online ({hide(first_line(error))}): offline")
                if not id_is_free_again():
                    where["attempt"] += 1
        run = start_run(mode=self._connection.mode, base_url=self._connection.base_url, **where, **options)
        if self._connection.mode == "offline":
            self._offline.append(run.folder)
        return run

    def _run_of(self, execution: Execution) -> LoggedRun | None:
        return next((run for held, run in reversed(self._open) if held is execution), None)

    def _close(self, execution: Execution, ending: Ending, summary: dict[str, Any]) -> None:
        run = self._run_of(execution)
        if run is None:
            return
        self._open = [(held, other) for held, other in self._open if held is not execution]
        self._upload(run, lambda: run.close(ending, summary))

    def _upload(self, run: LoggedRun, close: Callable[[], object]) -> None:
        try:
            close()
        except TimeoutError:
            self._warn(f"tracking: W&B did not take everything in time; later: wandb sync {run.folder}")

    def _note_use(self, run: LoggedRun, folder: Path) -> None:
        if (folder / "manifest.json").is_file():
            manifest = read_json(folder / "manifest.json")
            self._attempt("artifacts", lambda: note_use(run.run, make_artifact(folder, manifest)))

    def _show(self, run: LoggedRun, stage: str, make: Callable[[], dict[str, Any]]) -> None:
        self._attempt("pictures", lambda: run.show(stage, make()))

    def _attempt(self, what: str, call: Callable[[], object]) -> None:
        """Extras: a fault costs them, not the numbers. A lost service is another matter."""
        try:
            call()
        except ConnectionError:
            raise
        except Exception as error:
            self._warn(f"tracking: W&B goes without {what} ({hide(first_line(error))})")

    def _git(self) -> dict[str, Any]:
        if self._commit is None:
            return {}
        return {"commit": self._commit.removesuffix("-dirty"), "dirty": self._commit.endswith("-dirty")}


def cell_id(cfg: RunConfig, run_dir: Path) -> str:
    return id_of(plain(cfg), run_dir)


def stage_media(stage: str, folder: Path) -> dict[str, Any]:
    """What a stage's folder has to show, as W&B's objects."""
    import wandb

    if stage == "mapping":
        return {f"weights_{group}": wandb.Histogram(values) for group, values in media.weights(folder).items()}
    if stage == "influence":
        picture = media.influence_picture(folder)
        return {} if picture is None else {"heat_map": wandb.Image(picture)}
    if stage == "evaluation":
        table = media.generations(folder / "generations.jsonl")
        # a detector that was not run says null beside true and false
        return {} if table is None else {"generations": wandb.Table(table.columns, table.rows, allow_mixed_types=True)}
    return {}


def used_artifacts(run_dir: Path) -> list[str]:
    """`kind/fingerprint` of every artifact that the run folder links to."""
    status = read_json(run_dir / "status.json") if (run_dir / "status.json").is_file() else {}
    stages = status.get("stages", {}).values()
    return list(dict.fromkeys(name for stage in stages for name in stage.get("artifacts", {}).values()))
