"""One run in W&B: started without a prompt, logged with steps of its own, closed with what became of it."""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rapidun.pipeline.tracking.lines import History
from rapidun.pipeline.tracking.sink import Ending

# seconds that a server may take before a run goes on offline, and to take the last data at the end
INIT_TIMEOUT = 8.0
FINISH_TIMEOUT = 60.0
MAX_ID = 120

# runs of this process that are under way
_open: set[str] = set()


class LoggedRun:
    """A W&B run that hears nothing twice.

    W&B's own step is left alone: `<stage>/step` is the x axis of `<stage>/*`, so that stages may interleave and a
    requeued run goes on where the curve ended.
    """

    def __init__(self, run: Any) -> None:
        self.run = run
        self.folder = Path(run.dir).parent
        self._history = History()
        self._defined: set[str] = set()
        if run.resumed:
            told = dict(run.summary)
            steps = {key.removesuffix("/step"): int(value) for key, value in told.items() if key.endswith("/step")}
            self._history.presume(told, steps)

    def log(self, stage: str, metrics: dict[str, float], step: int | None) -> None:
        self._send(stage, self._history.live(stage, metrics, step), step)

    def catch_up(self, lines: Iterable[dict[str, Any]]) -> None:
        """Log what is new of lines of metrics.jsonl."""
        for point in self._history.again(lines):
            self._send(point.stage, point.metrics, point.step)

    def show(self, stage: str, media: dict[str, Any]) -> None:
        """Log histograms, pictures, tables under a stage."""
        self._send(stage, media, None)

    def close(self, ending: Ending, summary: dict[str, Any]) -> None:
        """Summary, state and exit code: W&B shows a run that ended with 1 as failed, or as preempted if it said so.

        Raises: TimeoutError if not everything could be uploaded.
        """
        self.run.summary.update({**summary, "state": ending.state, **({"error": ending.error} if ending.error else {})})
        if ending.state == "preempted":
            self.run.mark_preempting()
        self.end(0 if ending.ok else 1)

    def end(self, exit_code: int) -> None:
        _open.discard(str(self.folder))
        with quiet():
            self.run.finish(exit_code=exit_code)

    def _send(self, stage: str, values: dict[str, Any], step: int | None) -> None:
        if not values:
            return
        if stage not in self._defined:
            self._defined.add(stage)
            self.run.define_metric(f"{stage}/step", hidden=True)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        row = {f"{stage}/{name}": value for name, value in values.items()}
        if step is not None:
            row[f"{stage}/step"] = step
        self.run.log(row)


def start_run(
    *,
    mode: str,
    base_url: str,
    folder: Path,
    id: str,
    attempt: int = 0,
    git_commit: str | None,
    **options: Any,
) -> LoggedRun:
    """Start a run beside any others of this process.

    Args:
        mode: online (goes on under the same id after a restart), offline (cannot go on: a new id) or disabled.
        folder: W&B makes `wandb/` in it. attempt: how often this run was started before, as far as is known.
        options: entity, project, group, job_type, name, tags, config of wandb.init.
    Raises: whatever W&B raises; OSError if the folder cannot be written.
    """
    import wandb

    # W&B would fall back to the system's temporary folder without a word
    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    probe = folder / "wandb" / ".rapidun"
    probe.touch()
    probe.unlink()
    settings = wandb.Settings(
        silent=True,
        console="off",
        base_url=base_url,
        init_timeout=INIT_TIMEOUT,
        finish_timeout=FINISH_TIMEOUT,
        finish_timeout_raises=True,
        # its own look at git uploads a patch and the remote's address, which may hold a token
        disable_git=True,
        git_commit=git_commit,
    )
    base = clean_id(id)
    chosen = offline_id(base, folder / "wandb", attempt) if mode == "offline" else base

    def start() -> Any:
        return wandb.init(
            mode=mode,  # type: ignore[arg-type]
            dir=str(folder),
            id=chosen,
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=settings,
            **options,
        )

    with quiet(), _without_arguments():
        try:
            run = LoggedRun(start())
        except (ConnectionError, wandb_service_lost()):
            # the service of this process died with an earlier run; a new one starts once the old one is forgotten
            forget_service()
            run = LoggedRun(start())
    _open.add(str(run.folder))
    return run


def id_is_free_again() -> bool:
    """After a failed start W&B's service takes the id for one in use; without other runs it can be started anew."""
    if _open:
        return False
    forget_service()
    return True


def clean_id(text: str) -> str:
    """W&B takes letters, digits and a few marks."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:MAX_ID]


def offline_id(base: str, folder: Path, attempt: int) -> str:
    """`base`, or `base-r<n>` with the first n from `attempt` on that no earlier offline run in `folder` has."""
    while True:
        name = f"{base}-r{attempt}" if attempt else base
        if not any(folder.glob(f"offline-run-*-{name}")):
            return name
        attempt += 1


def forget_service() -> None:
    """Let go of W&B's service process; one that is dead says so with an error that tells nothing new."""
    import wandb

    _open.clear()
    with contextlib.suppress(Exception), quiet():
        wandb.teardown()


def wandb_service_lost() -> type[Exception]:
    """What wandb.init raises where its service has died."""
    from wandb.sdk.mailbox import MailboxClosedError

    return MailboxClosedError


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """W&B says a few things on stderr whatever its settings."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _without_arguments() -> Iterator[None]:
    """W&B notes the command line, which may hold a secret; command.txt in the run folder has it."""
    held = sys.argv
    sys.argv = held[:1]
    try:
        yield
    finally:
        sys.argv = held


def each(calls: Iterable[Callable[[], object]]) -> list[Exception]:
    """Make every call, whatever the others do; return what they raised."""
    faults = []
    for call in calls:
        try:
            call()
        except Exception as error:
            faults.append(error)
    return faults
