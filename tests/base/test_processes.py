"""Several processes of one run: what they agree on, and that a failure of one ends the others' wait.

The drivers run in real processes with torchrun's variables and gloo, each scenario in its own pair.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rapidun.base import processes

ROOT = Path(__file__).parents[2]

TALK = """
import json, os, sys
from pathlib import Path
from rapidun.base import processes
from rapidun.base.store import Key, Store

me = processes.rank()
root = Path(sys.argv[1])
store = Store(root / "store")
assert processes.share({"rank": me}) == {"rank": 0}
assert processes.gather(me) == [0, 1]
processes.barrier("here")
try:
    processes.barrier(f"place {me}")
    mismatch = ""
except RuntimeError as error:
    mismatch = str(error)

def build(out, work):
    import torch, torch.distributed as dist
    total = torch.tensor([me + 1.0])
    dist.all_reduce(total)
    (work / f"rank{me}").write_text("x")
    if me == 0:
        (out / "value").write_text(str(total.item()))
    return {"total": total.item(), "rank": me}

def alone(out, work):
    (root / f"alone{me}").write_text("x")
    (out / "value").write_text("1")
    return {}

def fail(out, work):
    raise ValueError("no such row")

trained, found = store.make(Key("poison", 1, {}), build, together=True)
again, found_again = store.make(Key("poison", 1, {}), fail, together=True)
single, _ = store.make(Key("data", 1, {}), alone)
failures = []
for attempt in range(2):
    try:
        store.make(Key("influence", 1, {}), fail)
    except Exception as error:
        failures.append([type(error).__name__, str(error)])
# after failures of rank 0 alone all go on
later, _ = store.make(Key("mapping", 1, {}), alone)

from transformers import TrainingArguments
args = TrainingArguments(output_dir=str(root / "args"), use_cpu=True, report_to="none")
seen = [args.world_size, args.process_index, args.parallel_mode.name]
print(json.dumps({"result": trained.result, "path": trained.path.name, "found": [found, found_again],
    "single": single.fingerprint, "later": later.fingerprint, "failures": failures, "trainer": seen,
    "mismatch": mismatch}))
processes.barrier("end")
"""

FAIL_AMID = """
import json, sys, time
from pathlib import Path
from rapidun.base import processes
from rapidun.base.store import Key, Store

me = processes.rank()
failing = int(sys.argv[2])

def build(out, work):
    import torch, torch.distributed as dist
    for step in range(5):
        if step == 2 and me == failing:
            raise FloatingPointError("loss is nan")
        dist.all_reduce(torch.ones(1))
    return {}

start = time.monotonic()
try:
    Store(Path(sys.argv[1]) / "store").make(Key("poison", 1, {}), build, together=True)
    said = ["none", ""]
except Exception as error:
    said = [type(error).__name__, str(error)]
try:
    processes.barrier("again")
    after = ""
except RuntimeError as error:
    after = str(error)
print(json.dumps({"said": said, "after": after, "seconds": time.monotonic() - start}))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_pair(code: str, *arguments: object) -> list[dict[str, Any]]:
    """Run the code as rank 0 and rank 1; what each printed."""
    shared = {
        **{key: value for key, value in os.environ.items() if not key.startswith("SLURM")},
        **{"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())},
    }
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120) for process in pair]
    finally:
        for process in pair:
            process.kill()
            process.wait()
    for process, (_, errors) in zip(pair, said, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def test_one_process_needs_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; from rapidun.base import processes as p; p.barrier('x')\n"
        "with p.failing_together(), p.collective(): assert p.share([1]) == [1] and p.gather(2) == [2]\n"
        "assert p.is_main() and p.world_size() == 1 and 'torch' not in sys.modules"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    # a rank without a world is a stray variable
    for extra in ({}, {"RANK": "3"}, {"RANK": "0", "WORLD_SIZE": "1"}):
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**environment, **extra})
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert (processes.rank(), processes.world_size(), processes.is_main()) == (3, 4, False)


def test_two_processes_make_artifacts_together(tmp_path: Path) -> None:
    """The sum over ranks of rank + 1 is 1 + 2 = 3; rank 0's result is the one that counts."""
    zero, one = run_pair(TALK, tmp_path)
    assert zero["result"] == one["result"] == {"total": 3.0, "rank": 0}
    assert zero["path"] == one["path"]
    assert zero["found"] == one["found"] == [False, True]
    assert zero["single"] == one["single"]
    assert zero["later"] == one["later"]
    assert [path.name for path in tmp_path.glob("alone*")] == ["alone0"]
    assert zero["failures"] == [["ValueError", "no such row"]] * 2
    assert [kind for kind, _ in one["failures"]] == ["PeerFailed"] * 2
    assert all("rank 0 on" in message and "ValueError: no such row" in message for _, message in one["failures"])
    assert zero["trainer"] == [2, 0, "DISTRIBUTED"]
    assert one["trainer"] == [2, 1, "DISTRIBUTED"]
    assert "rank 0 at 'place 0', rank 1 at 'place 1'" in zero["mismatch"]
    assert zero["mismatch"] == one["mismatch"]
    assert not list((tmp_path / "store").rglob("*.part"))
    assert not list((tmp_path / "store").rglob("*.work"))


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_amid_collectives_reaches_the_other_at_once(tmp_path: Path, failing: int) -> None:
    start = time.monotonic()
    said = run_pair(FAIL_AMID, tmp_path, failing)
    assert said[failing]["said"] == ["FloatingPointError", "loss is nan"]
    kind, message = said[1 - failing]["said"]
    assert kind == "PeerFailed"
    assert message.startswith(f"rank {failing} on ")
    assert message.endswith("failed: FloatingPointError: loss is nan")
    assert all("need a new start" in each["after"] for each in said)
    assert max(each["seconds"] for each in said) < processes.GRACE_SECONDS
    assert time.monotonic() - start < 100
    assert not list((tmp_path / "store").rglob("manifest.json"))
