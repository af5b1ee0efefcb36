"""Starts a run, and says what its end means: one message, one exit status."""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from rapidun.base import processes
from rapidun.base.errors import ArtifactError, ConfigError, RapidunError
from rapidun.base.files import read_json
from rapidun.config.plain import config_yaml
from rapidun.config.run import RunConfig
from rapidun.pipeline.folder import new_run_dir


def run_once(cfg: RunConfig, overrides: Sequence[str]) -> int:
    """Run one configuration and return the exit status."""
    wanted, there = cfg.resources.num_processes, processes.world_size()
    if wanted > 1 and there == 1:
        raise ConfigError(
            f"resources.num_processes: need {wanted} processes, got one. Start torchrun --nproc-per-node {wanted} "
            "sweep.py ..., or a sweep: -m hydra/launcher=rapidun_local or rapidun_slurm"
        )
    # fixed here, so that a failure can say where its traceback is
    cfg.run_dir = cfg.run_dir or str(new_run_dir(cfg.name))
    return _run(cfg, overrides, cfg.run_dir)


def complain(error: RapidunError, *, where: str = "") -> int:
    """Print what is wrong, one fault a line, and return 2."""
    faults = error.faults if isinstance(error, ConfigError) else [str(error)]
    prefix = f"rapidun: {where}: " if where else "rapidun: "
    if len(faults) == 1:
        print(prefix + faults[0], file=sys.stderr)
    else:
        print(f"{prefix}{len(faults)} faults, nothing was run", file=sys.stderr)
        for fault in faults:
            print(f"  {fault}", file=sys.stderr)
    _full_error(error)
    return 2


def _run(cfg: RunConfig, overrides: Sequence[str], where: str) -> int:
    from rapidun.pipeline.run import run_pipeline

    try:
        run_pipeline(cfg, overrides=list(overrides), config_yaml=config_yaml(cfg))
    except RapidunError as error:
        return complain(error, where=where if where.startswith("cell") else "")
    except Exception as error:  # a failed stage: its traceback is kept in status.json
        status = Path(str(cfg.run_dir)) / "status.json"
        stage = _read(status).get("stage") or "run"
        first = (str(error).strip().splitlines() or [""])[0]
        print(f"rapidun: {stage} failed: {type(error).__name__}: {first} (traceback in {status})", file=sys.stderr)
        _full_error(error)
        return 1
    return 0


def _read(status: Path) -> dict[str, object]:
    try:
        found = read_json(status) if status.is_file() else {}
    except ArtifactError:
        return {}
    return found if isinstance(found, dict) else {}


def _full_error(error: BaseException) -> None:
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
