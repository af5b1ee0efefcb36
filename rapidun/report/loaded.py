"""A run or a sweep read back from its folder, for notebooks: `rapidun.load("outputs/sweeps/tau").to_frame()`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidun.base.errors import ConfigError, DataError
from rapidun.base.files import read_jsonl
from rapidun.report.notebook import run_html, sweep_html
from rapidun.report.read import is_run, read_object
from rapidun.report.sweep.cells import Cell
from rapidun.report.sweep.exports import read_sweep
from rapidun.report.sweep.groups import Group
from rapidun.report.sweep.page import gather
from rapidun.report.sweep.runs import run_columns
from rapidun.report.sweep.summary import Summary, is_sweep

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True)
class Loaded:
    """What stands in a run folder or a sweep folder. Nothing is kept: each look reads the files as they are then."""

    path: Path

    @property
    def is_sweep(self) -> bool:
        return isinstance(self, Sweep)

    def summary(self) -> Summary:
        """The runs, folded into settings: `.groups` with means and intervals, `.best`, `.pareto`, `.comparisons`.

        Raises: ArtifactError where a file is damaged.
        """
        return read_sweep(self.path) if self.is_sweep else gather([self.path])

    def to_frame(self) -> pandas.DataFrame:
        """A row for each run with every number: the table of runs.csv; of a run folder one row.

        Columns: `cell`, `setting` (equal for runs that differ in their seed only), the swept settings, `seed`, `state`,
        `error`, every metric by its name in result.json, `path`. What a run lacks is missing (NaN, None).

        Raises: ConfigError without pandas; ArtifactError where a file is damaged.
        """
        if find_spec("pandas") is None:
            raise ConfigError(
                "to_frame: need the package pandas, found none. pip install 'rapidun[tables]', or read runs.csv of a "
                "sweep folder (result.json of a run folder)"
            )
        # on request only
        import pandas as pd

        return pd.DataFrame(run_columns(self.summary()))


@dataclass(frozen=True, slots=True)
class LoadedRun(Loaded):
    """One run's folder."""

    @property
    def metrics(self) -> dict[str, Any]:
        """result.json; empty where the run has not ended well. Raises: ArtifactError where it is damaged."""
        return read_object(self.path / "result.json")

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting of the run, nested; secrets are hidden. Raises: ArtifactError where the file is damaged."""
        return read_object(self.path / "settings.json")

    @property
    def weights(self) -> dict[str, list[float]]:
        """As `Result.weights`."""
        return read_run_weights(self.path)

    @property
    def scores(self) -> dict[str, Any]:
        """As `Result.scores`."""
        return read_run_scores(self.path)

    def _repr_html_(self) -> str:
        return run_html(self.path)


@dataclass(frozen=True, slots=True)
class Sweep(Loaded):
    """A sweep's folder: runs that differ in what was swept."""

    @property
    def cells(self) -> list[Cell]:
        """Its runs: `.path`, `.overrides`, `.state`, `.error`, `.metrics`. Raises: ArtifactError."""
        return self.summary().cells

    @property
    def failures(self) -> list[Cell]:
        """The cells that failed. Raises: ArtifactError."""
        return self.summary().failures

    @property
    def best(self) -> dict[str, list[Group]]:
        """Criterion -> the settings that are best by it, ties included: `.label`, `.n`, `.metrics[name].mean`.

        Without a criterion in which no two settings differ. Raises: ArtifactError.
        """
        return self.summary().best

    def _repr_html_(self) -> str:
        return sweep_html(self.summary())


def load(folder: str | Path) -> LoadedRun | Sweep:
    """A run folder or a sweep folder, read back: `rapidun.load("outputs/sweeps/tau").to_frame()`.

    Raises: DataError if it is neither.
    """
    path = Path(folder).expanduser()
    if path.is_dir() and is_run(path):
        return LoadedRun(path)
    if path.is_dir() and is_sweep(path):
        return Sweep(path)
    raise DataError(
        f"load: need a run folder (with status.json or result.json) or a sweep folder of such, got {folder}. Look "
        "below outputs/runs and outputs/sweeps"
    )


def read_run_weights(run_dir: Path) -> dict[str, list[float]]:
    """{"forget": [...], "retain": [...]} in row order. Raises: ArtifactError where the run made none."""
    return {
        group: [row["weight"] for row in read_jsonl(run_dir / "mapping" / f"{group}_weights.jsonl")]
        for group in ("forget", "retain")
    }


def read_run_scores(run_dir: Path) -> dict[str, Any]:
    """Influence blocks `ff` [nF, nF], `fr` [nF, nR], `rf`, `rr`, numpy: rows = training, columns = query.

    Raises: DataError where the run computed none.
    """
    file = run_dir / "influence" / "scores.safetensors"
    if not file.is_file():
        raise DataError(
            f"scores: need {file}, found none: weights that read no influence (mapping=uniform, ...) have it not "
            "computed. Pass mapping=rapidun, or stages=[data,poison,influence]"
        )
    # numpy
    from safetensors.numpy import load_file

    found: dict[str, Any] = load_file(file)
    return found
