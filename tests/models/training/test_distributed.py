"""Training in two processes over gloo: the same steps as in one, one that writes, all that stop together."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rapidun.base.files import read_jsonl, write_json
from rapidun.models.training.distributed import largest, total
from rapidun.models.training.samplers import IDLE, ShuffledSampler, StepShards, num_batches
from rapidun.stages.rows.records import write_records
from rapidun.stages.unlearning.sampler import MixSampler
from rapidun.stages.weights_file import write_weights

ROOT = Path(__file__).resolve().parents[3]
DRIVER = Path(__file__).with_name("distributed_driver.py")
QUICK = ["unlearn-split", "unlearn-sampled", "unlearn-dropout", "unlearn-signalled", "unlearn-pruned", "unlearn-pdu"]
QUICK += ["unlearn-npo", "unlearn-dynamic"]
OTHERS = ["unlearn-sharp", "unlearn-sharp-whole", "unlearn-rmu", "unlearn-crow", "unlearn-undial"]
MORE = ["unlearn-diverged", "unlearn-whole", "unlearn-idle", "unlearn-checkpointed", "poison-full", "poison-lora"]
MORE += [*OTHERS, "unlearn-all", "unlearn-stopped"]
SHARDED = ["unlearn-sharded-lora", "unlearn-sharded-all", "unlearn-sharded-kl"]


def load_driver() -> ModuleType:
    spec = importlib.util.spec_from_file_location("distributed_driver", DRIVER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepare(root: Path, model: Path, records: tuple[list[Any], list[Any]]) -> Path:
    root.mkdir()
    (root / "model").symlink_to(model)
    for name, rows in zip(("forget", "retain"), records, strict=True):
        write_records(root / f"{name}.jsonl", rows)
        weights = [0.5 + index % 3 for index in range(len(rows))]
        write_weights(root / f"{name}_weights.jsonl", weights, ids=[row.id for row in rows])
    losses = {row.id: 5.0 + place / 10 for place, row in enumerate(records[0])}
    write_json(root / "dynamic.json", {"tau": 0.3, "w_min": 0.2, "w_max": 3.0, "losses": losses})
    return root


def run_in_two(root: Path, names: list[str]) -> list[dict[str, str]]:
    """What each of two processes says of the scenarios."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(DRIVER), str(root), *names],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ends = [process.communicate(timeout=300) for process in processes]
    for process, (_, problems) in zip(processes, ends, strict=True):
        assert process.returncode == 0, problems[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in ends]


class Both:
    """The scenarios in one process and in two, each in a folder of its own."""

    def __init__(self, folder: Path, model: Path, records: Any, names: list[str]) -> None:
        self.one = prepare(folder / "one", model, records)
        self.two = prepare(folder / "two", model, records)
        driver = load_driver()
        self.said_alone = {name: driver.scenario(self.one, name) for name in names}
        self.said = run_in_two(self.two, names)

    def outs(self, name: str) -> tuple[Path, Path]:
        return self.one / name / "out", self.two / name / "out"


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_records: Any) -> Both:
    return Both(tmp_path_factory.mktemp("two"), tiny_model_dir, tiny_records, QUICK)


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_records: Any) -> Both:
    return Both(tmp_path_factory.mktemp("two"), tiny_model_dir, tiny_records, MORE)


def check_weights(first: Path, second: Path, start: Path | None = None) -> None:
    """Relative to the size of each tensor's values; and training did move them."""
    ours, theirs = load_file(first), load_file(second)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert float((tensor - theirs[name]).norm()) <= 1e-5 * float(tensor.norm()), name
    if start is not None:
        before = load_file(start)
        assert max(float((tensor - before[name]).abs().max()) for name, tensor in ours.items()) > 1e-3


def check_unlearning(both: Both, name: str) -> list[dict[str, float]]:
    assert both.said_alone[name] == both.said[0][name] == both.said[1][name] == "done"
    one, two = both.outs(name)
    check_weights(one / "adapter" / "adapter_model.safetensors", two / "adapter" / "adapter_model.safetensors")
    histories = [json.loads((out / "history.json").read_text()) for out in (one, two)]
    assert len(histories[0]) == len(histories[1]) > 0
    for ours, theirs in zip(*histories, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    return histories[0]


def test_two_processes_take_the_steps_of_one(quick: Both) -> None:
    """10 steps of 1 forget and 4 retain rows, KL to the start model: 3 rows on the first process, 2 on the second."""
    history = check_unlearning(quick, "unlearn-split")
    assert [line["step"] for line in history if "loss" in line] == list(range(1, 11))
    assert [line["step"] for line in history if "val_loss_clean" in line] == [0, 5, 10]
    assert {"ce_poisoned", "ce_clean", "ce_retain", "retain_term"} <= history[-1].keys() | history[-2].keys()


def test_two_processes_draw_by_weight_as_one_does(quick: Both) -> None:
    """One stream of draws dealt out: no process draws for itself."""
    assert len(check_unlearning(quick, "unlearn-sampled")) == 4


def test_two_processes_renew_the_weights_as_one_does(quick: Both) -> None:
    """What each found of its rows goes into the same table, after the step."""
    history = check_unlearning(quick, "unlearn-dynamic")
    path = [line["forget_weight_ess"] for line in history]
    assert len(set(path)) == len(path) > 3
    one, two = (out / "forget_weights.jsonl" for out in quick.outs("unlearn-dynamic"))
    ends = [[row["weight"] for row in read_jsonl(file)] for file in (one, two)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)


def test_lambda_goes_by_the_retain_rows_of_all_processes(quick: Both) -> None:
    history = check_unlearning(quick, "unlearn-pdu")
    moves = [line["lambda"] for line in history]
    assert moves[0] == 100.0 and len(set(moves)) == 4


def test_sums_of_the_reference_and_the_best_weights_are_those_of_one_process(quick: Both) -> None:
    check_unlearning(quick, "unlearn-npo")
    one, two = (root / "unlearn-npo" / "work" for root in (quick.one, quick.two))
    assert (one / "reference.safetensors").read_bytes() == (two / "reference.safetensors").read_bytes()
    assert [path.name for path in one.glob("best-*")] == [path.name for path in two.glob("best-*")]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_objectives_and_sharpness_aware_steps(more: Both, name: str) -> None:
    """Steps whose rows do not split evenly, micro-batches dealt out entire; blocks above the one that rmu reads."""
    check_unlearning(more, name)


@pytest.mark.slow
def test_all_weights_in_two_processes(more: Both) -> None:
    name = "unlearn-all"
    assert more.said_alone[name] == more.said[0][name] == more.said[1][name] == "done"
    one, two = more.outs(name)
    start = more.one / "model" / "model.safetensors"
    check_weights(one / "model" / "model.safetensors", two / "model" / "model.safetensors", start)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_records: Any) -> Both:
    return Both(tmp_path_factory.mktemp("two"), tiny_model_dir, tiny_records, SHARDED)


@pytest.mark.slow
def test_weights_that_are_sharded_end_as_whole_ones_do(sharded: Both) -> None:
    """torch's fully_shard on gloo, through accelerate and the Trainer: an adapter, the best of it, and all weights."""
    check_unlearning(sharded, "unlearn-sharded-lora")
    name = "unlearn-sharded-all"
    assert sharded.said_alone[name] == sharded.said[0][name] == sharded.said[1][name] == "done"
    one, two = sharded.outs(name)
    start = sharded.one / "model" / "model.safetensors"
    check_weights(one / "model" / "model.safetensors", two / "model" / "model.safetensors", start)


@pytest.mark.slow
def test_what_needs_whole_weights_at_each_step_is_refused_where_they_are_sharded(sharded: Both) -> None:
    for said in sharded.said:
        assert "ConfigError: unlearning: need retain_loss=ce" in said["unlearn-sharded-kl"]


@pytest.mark.slow
def test_all_end_at_the_step_at_which_it_is_enough(more: Both) -> None:
    assert [line["step"] for line in check_unlearning(more, "unlearn-stopped") if "loss" in line] == [1, 2]


def test_a_signal_to_one_stops_both_and_the_next_start_ends_bit_identical(quick: Both) -> None:
    """The second process is asked in its 4th step; dropout is on."""
    assert quick.said[1]["unlearn-signalled"] == "Preempted: signal SIGUSR2; checkpoint-4; done"
    assert quick.said[0]["unlearn-signalled"] == ("Preempted: another process was asked to stop; checkpoint-4; done")
    ends = [
        (quick.two / name / "out" / "adapter" / "adapter_model.safetensors").read_bytes()
        for name in ("unlearn-dropout", "unlearn-signalled")
    ]
    assert ends[0] == ends[1]


def test_given_up_by_the_tracker_of_the_first_both_end_and_nothing_is_written(quick: Both) -> None:
    for said in (quick.said_alone, *quick.said):
        assert said["unlearn-pruned"].startswith("Pruned: ")
        assert said["unlearn-pruned"].endswith(" at step 3")
    assert not any(out.exists() for out in quick.outs("unlearn-pruned"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unlearn-whole", "unlearn-idle", "unlearn-checkpointed"])
def test_other_shapes_of_steps(more: Both, name: str) -> None:
    """whole: micro-batches dealt out entire, 2 + 1 an epoch; idle: one row a step, so the second has none."""
    check_unlearning(more, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["poison-full", "poison-lora"])
def test_poison_in_two_processes(more: Both, name: str) -> None:
    assert more.said_alone[name] == more.said[0][name] == more.said[1][name] == "done"
    one, two = more.outs(name)
    start = more.one / "model" / "model.safetensors"
    check_weights(one / "model" / "model.safetensors", two / "model" / "model.safetensors", start)


@pytest.mark.slow
def test_all_notice_that_training_diverged_and_go_on_with_the_next(more: Both) -> None:
    """It is the first scenario of the processes that then run the others."""
    assert all("TrainingDiverged: " in said["unlearn-diverged"] for said in (more.said_alone, *more.said))
    assert more.said[0]["unlearn-whole"] == "done"


def shards(sampler: Any, *, step_size: int, batch_size: int, world_size: int) -> list[list[list[int]]]:
    made = []
    for rank in range(world_size):
        shard = StepShards(sampler, step_size=step_size, batch_size=batch_size, rank=rank, world_size=world_size)
        made.append(list(shard))
        assert len(shard) == len(made[-1])
    return made


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize(("step_size", "batch_size"), [(1, 1), (4, 4), (6, 2), (12, 3), (9, 3)])
def test_each_step_is_dealt_out_whole(world_size: int, step_size: int, batch_size: int) -> None:
    """22 rows: each process has as many micro-batches, none too large, and together they hold a step's rows once."""
    sampler = ShuffledSampler(22, seed=3)
    sampler.set_epoch(2)
    rows = list(sampler)
    dealt = shards(sampler, step_size=step_size, batch_size=batch_size, world_size=world_size)
    assert len({len(shard) for shard in dealt}) == 1
    per_step = num_batches(step_size, world_size=world_size, batch_size=batch_size)
    for number, start in enumerate(range(0, 22, step_size)):
        held = [batch for shard in dealt for batch in shard[number * per_step : (number + 1) * per_step]]
        assert all(0 < len(batch) <= batch_size for batch in held)
        assert sorted(row for batch in held for row in batch if row != IDLE) == sorted(rows[start : start + step_size])


def test_forget_rows_are_spread() -> None:
    """Two micro-batches of 1 + 3 rows over two processes: 1 forget and 3 retain rows on each."""
    sampler = MixSampler(num_forget=8, num_retain=24, forget_per_step=1, mix_ratio=3, seed=5)
    for shard in shards(sampler, step_size=8, batch_size=4, world_size=2):
        assert [sum(row < 8 for row in batch) for batch in shard] == [1, 1, 1, 1]


def test_a_process_without_a_row_gets_the_mark_of_none() -> None:
    """1 row a step over 2 processes, 3 rows."""
    first, second = shards(ShuffledSampler(3, seed=0), step_size=1, batch_size=1, world_size=2)
    assert sorted(row for batch in first for row in batch) == [0, 1, 2]
    assert second == [[IDLE]] * 3


def test_alone_a_sum_is_the_number_itself() -> None:
    device = torch.device("cpu")
    assert total([0.1, 2.0], device) == [0.1, 2.0]
    assert largest([-1.5], device) == [-1.5]
