"""The library that lets a disk fail, and a process that runs commands on such a disk."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.machine import HERE, Machine, Whole, command, leftovers, results


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """disk.c, compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("faults of the disk need Linux and a C compiler")
    made = tmp_path_factory.mktemp("library") / "disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made, HERE / "disk.c", "-ldl"], check=True)
    return made


@pytest.fixture(scope="session")
def machine(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(library, tmp_path_factory.mktemp("faults"))
    yield made
    made.stop()


@pytest.fixture(scope="session")
def whole(machine: Machine) -> Whole:
    """A run that nothing disturbs, in root/whole."""
    place = machine.root / "whole"
    done = machine.run(command(place), below=place)
    assert done.status == 0, done.err
    assert done.count
    assert leftovers(place) == []
    return results(place), done.count
