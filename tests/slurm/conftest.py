"""One small SLURM for all tests of this folder: `pytest -m slurm tests/slurm`, as root, after `.ci/slurm-packages`."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "sweep")]

from cluster import Cluster  # noqa: E402


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running cluster whose commands this process finds: 8 CPUs, so that tiny jobs need not wait; 2 fake GPUs."""
    if reason := Cluster.missing():
        pytest.skip(f"no SLURM here: {reason}")
    with Cluster(tmp_path_factory.mktemp("slurm"), cpus=8, gpus=2) as running, use(running):
        yield running


class use:
    """Make a cluster the one that this process, and what it starts, talks to."""

    def __init__(self, cluster: Cluster) -> None:
        self.patch = pytest.MonkeyPatch()
        self.variables = cluster.environment | {
            # jobs find the package of this checkout and the tests' stand-in for the worker
            "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent / "sweep")]),
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self) -> None:
        for name, value in self.variables.items():
            self.patch.setenv(name, value)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()
