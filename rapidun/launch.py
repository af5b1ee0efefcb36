"""Starts runs and sweep cells, and says what their end means: one message, one exit status."""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rapidun.composition import Cell, cell_hash, config_yaml, to_run_config
from rapidun.config import RunConfig
from rapidun.errors import ArtifactError, ConfigError, RapidunError
from rapidun.files import read_json, write_json
from rapidun.runfolder import new_run_dir

SWEEPS = Path("outputs/sweeps")


def run_once(cfg: RunConfig, overrides: Sequence[str]) -> int:
    """Run one configuration and return the exit status."""
    # fixed here, so that a failure can say where its traceback is
    cfg.run_dir = cfg.run_dir or str(new_run_dir(cfg.name))
    return _run(cfg, overrides, cfg.run_dir)


def run_cell(composed: DictConfig) -> int:
    """Hydra's task function in a sweep: one cell in a folder of its own; its failure never stops the others."""
    task = [text for text in HydraConfig.get().overrides.task if not text.startswith("sweep.name=")]
    number = HydraConfig.get().job.num + 1
    print(f"\ncell {number}: {' '.join(task) or 'no overrides'}", flush=True)
    try:
        cfg = to_run_config(composed)
        folder = cell_folder(cfg)
        cfg.run_dir = str(folder)
        write_json(folder / "overrides.json", {"task": task})
    except RapidunError as error:
        return complain(error, where=f"cell {number}")
    except OSError as error:
        return complain(_not_writable(error), where=f"cell {number}")
    return _run(cfg, [*task, f"run_dir={folder}"], f"cell {number}")


def cell_folder(cfg: RunConfig) -> Path:
    """The run folder of a sweep cell, named by a hash of its settings."""
    return SWEEPS / str(cfg.sweep.name) / cell_hash(cfg)


def finish_sweep(name: str, cells: Sequence[Cell]) -> int:
    """Write and show the summary of this sweep; return 1 if any of its cells failed."""
    from rich.console import Console

    from rapidun.report.html import write_sweep_index
    from rapidun.report.summary import write_sweep_summary

    states = []
    for cell in cells:
        cell.cfg.sweep.name = name
        states.append(_state(cell_folder(cell.cfg)))
    failed = sum(state != "done" for state in states)
    if (SWEEPS / name).is_dir():
        summary = write_sweep_summary(SWEEPS / name)
        index = write_sweep_index(SWEEPS / name, summary)
        Console().print(summary.table())
        print(f"report: {index}")
    print(f"sweep: {len(states) - failed} of {len(states)} cells done, {failed} failed")
    return 1 if failed else 0


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
    from rapidun.pipeline import run_pipeline

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


def _state(folder: Path) -> str:
    return str(_read(folder / "status.json").get("state", "missing"))


def _read(status: Path) -> dict[str, object]:
    try:
        found = read_json(status) if status.is_file() else {}
    except ArtifactError:
        return {}
    return found if isinstance(found, dict) else {}


def _not_writable(error: OSError) -> ConfigError:
    return ConfigError(f"sweep.name: need a folder that can be written, got {error.filename} ({error.strerror})")


def _full_error(error: BaseException) -> None:
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
