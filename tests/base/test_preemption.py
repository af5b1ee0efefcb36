"""Asked to stop: what a signal does where, and that training stopped by one ends bit-identical when started again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rapidun.base import preemption
from rapidun.base.preemption import Preempted, Pruned, checkpointing, clear, install, request_stop, stop_requested
from rapidun.stages.rows.records import write_records
from rapidun.stages.weights_file import write_weights

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("preemption_driver.py")
SCENARIOS = ["before", "middle", "last", "saving", "twice", "no-saves", "after", "poison"]


@pytest.fixture(autouse=True)
def fresh() -> Any:
    clear()
    yield
    clear()


def poke() -> None:
    os.kill(os.getpid(), signal.SIGUSR2)


def test_outside_a_signal_raises_at_once_and_only_once() -> None:
    with install():
        with pytest.raises(Preempted, match="signal SIGUSR2") as caught:
            poke()
        assert caught.value.reason == stop_requested() == "signal SIGUSR2"
        poke()  # what the first one set going is left alone


def test_within_checkpointing_a_signal_only_leaves_its_request() -> None:
    with install(), checkpointing(), checkpointing():
        poke()
        assert stop_requested() == "signal SIGUSR2"
    with pytest.raises(Preempted):
        preemption.raise_if_requested()
    clear()
    preemption.raise_if_requested()
    assert stop_requested() is None


def test_the_first_reason_stays() -> None:
    request_stop("no time left")
    request_stop("another")
    assert stop_requested() == "no time left"


def test_faults_handlers_do_not_swallow_it() -> None:
    for error in (Preempted("x"), Pruned(0.5, 3)):
        assert not isinstance(error, Exception)
    assert str(Pruned(0.5, 3)) == "0.5 at step 3"


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGUSR1)]
    with install((signal.SIGUSR2, signal.SIGUSR1)) as installed:
        assert list(installed.previous) == [signal.SIGUSR2, signal.SIGUSR1]
        assert signal.getsignal(signal.SIGUSR1) is signal.getsignal(signal.SIGUSR2) is preemption._on_signal
    assert [signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGUSR1)] == before


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_records: Any) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("preempted")
    (root / "model").symlink_to(tiny_model_dir)
    for name, rows in zip(("forget", "retain"), tiny_records, strict=True):
        write_records(root / f"{name}.jsonl", rows)
        write_weights(root / f"{name}_weights.jsonl", [1.0] * len(rows), ids=[row.id for row in rows])
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(root), *SCENARIOS],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


# scenario -> step of the checkpoint that the stop left (None: none)
LEFT = {"before": None, "middle": 3, "last": 6, "saving": 2, "twice": 3, "no-saves": 4, "after": 6, "poison": 3}


@pytest.mark.parametrize("name", SCENARIOS)
def test_stopped_by_a_signal_and_started_again_is_bit_identical(driven: dict[str, Any], name: str) -> None:
    """6 steps with dropout, a checkpoint every 2; no-saves and after have save_steps=0."""
    found = driven[name]
    assert found["first"] == "Preempted: signal SIGUSR2"
    assert found["newest"] == LEFT[name]
    assert found["unmarked"] == 0
    assert found["published"] is False
    alone = "poison-alone" if name == "poison" else "alone"
    assert found["hash"] == driven[alone]["hash"]
    # steps taken by the second start
    assert found["steps"] == 6 - (LEFT[name] or 0)
