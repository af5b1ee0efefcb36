"""A run or a sweep read back from its folder, for notebooks: `rapidun.load("outputs/sweeps/tau").to_frame()`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rapidun.base.errors import ConfigError, DataError
from rapidun.report.read import is_run
from rapidun.report.sweep.exports import read_sweep
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
        return not is_run(self.path)

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


def load(folder: str | Path) -> Loaded:
    """A run folder or a sweep folder, read back: `rapidun.load("outputs/sweeps/tau").to_frame()`.

    Raises: DataError if it is neither.
    """
    path = Path(folder).expanduser()
    if not path.is_dir() or not (is_run(path) or is_sweep(path)):
        raise DataError(
            f"load: need a run folder (with status.json or result.json) or a sweep folder of such, got {folder}. Look "
            "below outputs/runs and outputs/sweeps"
        )
    return Loaded(path)
