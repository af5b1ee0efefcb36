import os
import subprocess
import sys
import time

import pytest

from rapidun.base.machine import Measured


def test_seconds_are_wall_time() -> None:
    with Measured() as measured:
        time.sleep(0.05)
    assert 0.05 <= measured.seconds < 5


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is reset through /proc")
def test_peak_is_that_of_the_block_alone() -> None:
    with Measured() as large:
        held = bytearray(200 * 2**20)
        held[:: 2**12] = b"x" * len(held[:: 2**12])
        del held
    with Measured() as small:
        pass
    assert large.peak_memory_gb - small.peak_memory_gb > 0.15


def test_numbers_are_there_when_the_block_fails() -> None:
    measured = Measured()
    with pytest.raises(RuntimeError), measured:
        raise RuntimeError
    assert measured.peak_memory_gb > 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "30000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_the_command_line_lets_threads_spin_less_unless_told_otherwise(given: dict[str, str], expected: str) -> None:
    program = (
        "from rapidun.cli.main import main; main(['--version']); import os; print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == expected
