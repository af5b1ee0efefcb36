"""Starts what overrides ask for: one run, a sweep, or a look at the configuration that Hydra composes."""

import argparse
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra

from rapidun.base import preemption, processes
from rapidun.base.errors import ArtifactError, ConfigError, RapidunError
from rapidun.base.files import read_json
from rapidun.base.redact import hide
from rapidun.config.compose import (
    CONFIG_NAME,
    VERSION_BASE,
    check_steady,
    compose_config,
    compose_run,
    register_schema,
    spell,
)
from rapidun.config.overrides import TUNER
from rapidun.config.paths import config_dir
from rapidun.config.plain import config_yaml
from rapidun.config.run import RunConfig


def start(options: argparse.Namespace, overrides: list[str]) -> int:
    """Check everything that was asked for, then do it; return the exit status.

    Args: options: of `run_parser`.
    Raises: RapidunError.
    """
    extra: Path | None = options.config_dir
    if options.multirun:
        return _sweep(overrides, extra)
    shown = [f"--cfg={options.cfg}"] if options.cfg else [f"--info={options.info}"] if options.info else []
    if shown:
        compose_config(overrides, extra_dir=extra)
        shown += ["--resolve"] if options.resolve else []
        shown += [f"--package={options.package}"] if options.package else []
        return call_hydra([*shown, *_config_dir(extra), *spell(overrides, extra_dir=extra)])
    alone = [text for text in overrides if text.lstrip("+").startswith(("sweep.", "hydra/launcher", "hydra/sweeper"))]
    if alone:
        raise ConfigError(f"{alone[0]}: sweeps need -m; this is one run. Pass -m, or leave it out")
    asked = compose_run(overrides, extra_dir=extra)
    return _run(asked.cfg, overrides, asked.warnings)


def _run(cfg: RunConfig, overrides: list[str], warnings: Sequence[str]) -> int:
    wanted, there = cfg.resources.num_processes, processes.world_size()
    if wanted > 1 and there == 1:
        raise ConfigError(
            f"resources.num_processes: need {wanted} processes, got one. Start torchrun --nproc-per-node {wanted} "
            "sweep.py ..., or a sweep: -m hydra/launcher=rapidun_local or rapidun_slurm"
        )
    # faults of the configuration need not wait for them
    from rapidun.pipeline.check import run_faults
    from rapidun.pipeline.folder import new_run_dir
    from rapidun.pipeline.run import run_pipeline

    faults = run_faults(cfg)
    if faults:
        raise ConfigError(faults)
    # fixed here, so that a failure can say where its traceback is
    cfg.run_dir = cfg.run_dir or str(new_run_dir(cfg.name))
    try:
        with preemption.ending_well():
            run_pipeline(cfg, overrides=overrides, config_yaml=config_yaml(cfg), warnings=warnings, checked=True)
    except preemption.Preempted as stop:
        print(
            f"rapidun: stopped ({stop}): {cfg.run_dir} keeps what is finished, the store the newest checkpoint; the "
            "same command goes on from there",
            file=sys.stderr,
        )
        return stop.status
    except RapidunError:
        raise
    except Exception as error:  # a failed stage: its traceback is kept in status.json
        status = Path(cfg.run_dir) / "status.json"
        stage = _read(status).get("stage") or "run"
        first = str(error).strip().split("\n")[0]
        print(
            f"rapidun: {stage} failed: {type(error).__name__}: {hide(first)} (traceback in {status})", file=sys.stderr
        )
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            print(hide("".join(traceback.format_exception(error))), file=sys.stderr)
        return 1
    return 0


def _read(status: Path) -> dict[str, object]:
    try:
        found = read_json(status) if status.is_file() else {}
    except ArtifactError:
        return {}
    return found if isinstance(found, dict) else {}


def _sweep(overrides: list[str], extra: Path | None) -> int:
    """Check every cell, then let Hydra call the sweeper."""
    # a run and its faults need not wait for them
    from rapidun.config.cells import compose_sweep
    from rapidun.sweep.entry import begin, handover

    begin(overrides, extra_dir=extra)
    tuned = any(text.lstrip("+") == TUNER for text in overrides)
    if tuned:
        # Hydra makes objects of its own settings before the sweeper is asked
        check_steady(overrides, extra_dir=extra)
    else:
        handover.composed = compose_sweep(overrides, extra_dir=extra, on_progress=_progress("checking"))
    status = call_hydra(["--multirun", *_config_dir(extra), *spell(overrides, extra_dir=extra)])
    if handover.error is not None:
        raise handover.error
    if handover.status is None:
        # Hydra itself refused something and has said so
        return 2 if status else 0
    return handover.status


def sweep_here(overrides: list[str]) -> Path:
    """Run a sweep from Python, as `-m` does; its folder.

    Raises: RapidunError; KeyboardInterrupt where it was interrupted.
    """
    # a run and its faults need not wait for it
    from rapidun.sweep.entry import handover

    status = _sweep(overrides, None)
    if status == 130:
        raise KeyboardInterrupt
    folder = handover.folder
    if folder is None or not folder.is_dir():
        raise ConfigError(
            f"rapidun.sweep: need a sweep that leaves a folder, got {' '.join(overrides)}, which left none. Pass "
            "sweep.dry_run=false"
        )
    return folder


def _progress(word: str) -> Callable[[int, int], None]:
    """A line now and then, where cells take more than a moment."""
    said = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > 1.0:
            said = time.monotonic()
            print(f"{word}: {done} of {total} cells", flush=True)

    return on_progress


def _config_dir(extra: Path | None) -> list[str]:
    return [f"--config-dir={extra.resolve()}"] if extra else []


def call_hydra(argv: Sequence[str]) -> int:
    """Hand over to Hydra, which reads sys.argv; what is to run, its sweepers know."""
    register_schema()
    held = sys.argv
    # --info sends the root logger to stdout for good
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sys.argv = [held[0], *argv]
    try:
        hydra.main(version_base=VERSION_BASE, config_path=str(config_dir()), config_name=CONFIG_NAME)(_nothing)()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    finally:
        sys.argv = held
        root.handlers[:] = handlers
        root.setLevel(level)
    return 0


def _nothing(cfg: Any) -> None:
    """The task of commands that only show something."""
