"""kill -9 at ten random moments while four workers build one index of a tiny model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rapidun.stages.influence.index.verify import verify_index
from rapidun.stages.rows.records import write_records

DRIVER = Path(__file__).parent / "index_driver.py"


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_index_is_finished_whole_and_the_same_as_one_workers(tmp_path, tiny_model_dir, make_records, seed):
    forget, retain = make_records(num_forget=20, num_retain=380)
    write_records(tmp_path / "rows.jsonl", forget + retain)
    # a worker killed between making its lease and filling it in leaves one that only its age betrays
    environment = os.environ | {"RAPIDUN_LEASE_SECONDS": "2"}
    outputs = {}
    for name, number in (("one", "none"), ("killed", seed)):
        command = [sys.executable, str(DRIVER), str(tiny_model_dir), str(tmp_path / "rows.jsonl")]
        done = subprocess.run(
            [*command, str(tmp_path / name), number],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        outputs[name] = done.stdout
    one, killed = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "killed"))
    assert killed == one
    assert verify_index(tmp_path / "killed") == (400, 200, 0, [])
    # workers were killed while there was something left to do
    counts = outputs["killed"].partition("[")[2].partition("]")[0].split(", ")
    assert int(counts[-1]) < 200, outputs
