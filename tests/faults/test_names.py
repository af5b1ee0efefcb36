"""Folders and runs of any name: blanks, quotes, brackets, line ends, other scripts, 255 bytes."""

import json
import os
import shutil
from pathlib import Path

import pytest

from rapidun.config.quoting import quoted
from tests.faults.machine import RUN, Machine, Whole, results

ODD = {
    "marks": "x[/b]y [red] :smile: 100% {0} $HOME 'q\" -a\\",
    "lines": "n\nl \u2028 \x0b \x85 \u05d0\u05d1 \U0001f600\ttab",
    "long": "." + "é" * 127,
}


@pytest.mark.parametrize("name", ["marks", "lines", pytest.param("long", marks=pytest.mark.slow)])
def test_a_run_of_an_odd_name(machine: Machine, whole: Whole, tmp_path: Path, name: str) -> None:
    """From a store and into a folder of that name, reported, and not pruned away."""
    odd = ODD[name]
    assert len(os.fsencode(odd)) <= 255
    place = tmp_path / odd
    shutil.copytree(machine.root / "whole" / "store", place / "store", symlinks=True)
    shutil.rmtree(place / "store" / "runs")
    # the name of a run is part of its text, not of its results
    argv = [*RUN, f"store_dir={quoted(str(place / 'store'))}", f"run_dir={quoted(str(place / 'run'))}"]
    called = odd.replace("/", "").replace("\\", "")  # a name has none
    done = machine.run([*argv, f"name={quoted(called)}"], below=place)
    assert done.status == 0, done.err
    assert "Traceback" not in done.err
    found = results(place)
    assert found["run/result.json"] == {**whole[0]["run/result.json"], "name": called}
    assert json.loads((place / "run" / "status.json").read_text())["state"] == "done"
    assert (place / "run" / "report.html").is_file()
    for command in (["report", str(place / "run")], ["store", "verify", "--store", str(place / "store")]):
        done = machine.run(command, below=place)
        assert done.status == 0, (command, done.err)
    prune = ["store", "prune", "--store", str(place / "store"), "--outputs", str(tmp_path / "none")]
    done = machine.run(prune, below=place)
    # a run that found its poisoned model has not asked for the model before it
    assert done.status == 0 and done.out.rstrip().split("\n")[-1] == "1 folders", (done.out, done.err)
    kept = {name: one for name, one in found.items() if not name.startswith("store/model/")}
    assert results(place) == kept != found


def test_too_long_a_name_is_said(machine: Machine, tmp_path: Path) -> None:
    """256 bytes: no file system takes it, in whichever setting it stands."""
    for key, other in (("run_dir", "store_dir"), ("store_dir", "run_dir")):
        argv = [*RUN, f"{key}={tmp_path / ('x' * 256)}", f"{other}={tmp_path / other}"]
        done = machine.run(argv, below=tmp_path)
        assert done.status == 2, done.err
        assert f"{key}: need names of at most 255 bytes" in done.err and "Traceback" not in done.err
