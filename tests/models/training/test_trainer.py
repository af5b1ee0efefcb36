"""Shared training pieces: permutations, the journal, which checkpoints are continued."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rapidun.base.files import sha256_file, write_json
from rapidun.base.tracker import Tracker
from rapidun.config.parts import OptimiserSettings
from rapidun.models.adapters import base_name
from rapidun.models.rng import permutation
from rapidun.models.training.checkpoints import MARKER, newest_checkpoint, remove_checkpoint, seal_checkpoint
from rapidun.models.training.journal import Journal
from rapidun.models.training.samplers import ShuffledSampler
from rapidun.models.training.trainer import training_arguments


def test_permutation_depends_on_each_argument() -> None:
    base = permutation(50, seed=1, stream=2, part=3)
    assert sorted(base) == list(range(50))
    assert base == permutation(50, seed=1, stream=2, part=3)
    others = [(2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2), (2, 1, 3)]
    assert all(base != permutation(50, seed=s, stream=t, part=p) for s, t, p in others)


def test_permutations_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    permutation(10, seed=0, stream=0, part=0)
    assert torch.equal(state, torch.get_rng_state())


def test_shuffled_sampler_is_a_function_of_the_epoch() -> None:
    sampler = ShuffledSampler(9, seed=4)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert first != second
    assert sorted(first) == sorted(second) == list(range(9))


def test_a_number_that_no_file_holds_is_kept_as_none_and_said() -> None:
    """A validation loss after an ascent without bounds; the newest value is that none, not an older number."""
    tracker = Tracker()
    journal = Journal(tracker)
    journal.record(1, {"forget_loss_poisoned": 2.0})
    for step, value in ((2, float("inf")), (3, float("nan"))):
        journal.record(step, {"forget_loss_poisoned": value, "val_loss_clean": 1.0})
    assert journal.history[1:] == [{"step": s, "forget_loss_poisoned": None, "val_loss_clean": 1.0} for s in (2, 3)]
    assert journal.last("forget_loss_poisoned") is None
    assert "forget_loss_poisoned is left out where it is not a finite number, first at step 2" in tracker.warnings[0]
    json.dumps(journal.state(), allow_nan=False)


def test_journal_shares_and_restores() -> None:
    """1 clipped of 4 steps = 0.25; nothing counted gives 0."""
    journal = Journal(Tracker())
    journal.record(1, {"loss": 2.0})
    journal.record(2, {"loss": 1.0, "grad_norm": 0.5})
    journal.count("steps", 4)
    journal.count("clipped_steps", 1)
    assert journal.share("clipped_steps", of="steps") == 0.25
    assert journal.share("capped_examples", of="forget_examples") == 0.0
    assert journal.last("loss") == 1.0
    assert journal.last("absent") is None
    again = Journal(Tracker())
    again.restore(json.loads(json.dumps(journal.state())))
    assert again.history == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "grad_norm": 0.5}]
    assert again.counts == journal.counts


def checkpoint(work: Path, step: int, marker: Any) -> Path:
    folder = work / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x")
    if marker is not None:
        write_json(folder / MARKER, marker)
    return folder


def test_only_a_complete_checkpoint_of_the_same_settings_is_continued(tmp_path: Path) -> None:
    """Numbers order the folders (9 before 10); what cannot be continued is deleted."""
    good = [checkpoint(tmp_path, step, {"identity": "a"}) for step in (9, 10)]
    unmarked = checkpoint(tmp_path, 12, None)
    foreign = checkpoint(tmp_path, 11, {"identity": "b"})
    damaged = checkpoint(tmp_path, 13, None)
    (damaged / MARKER).write_text('{"identity": "a"')
    other = tmp_path / "checkpoint-best"
    other.mkdir()
    assert newest_checkpoint(tmp_path, identity="a") == good[1]
    assert good[0].exists() and other.exists()
    assert not unmarked.exists() and not foreign.exists() and not damaged.exists()
    assert newest_checkpoint(tmp_path / "absent", identity="a") is None


def test_a_deletion_that_is_cut_short_leaves_no_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path, 1, {"identity": "a"})
    monkeypatch.setattr("rapidun.models.training.checkpoints.shutil.rmtree", lambda *args, **kwargs: None)
    remove_checkpoint(folder)
    assert folder.exists()
    assert newest_checkpoint(tmp_path, identity="a") is None


def test_base_name_gives_no_path_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert base_name(tmp_path / "model") == "model"
    assert base_name("owner/name") == "owner/name"


def test_training_arguments_take_our_settings(tmp_path: Path) -> None:
    """10 % of 50 steps warm up: 5."""
    settings = OptimiserSettings(learning_rate=3e-4, warmup_ratio=0.1, max_grad_norm=0.7, lr_scheduler_type="linear")
    args = training_arguments(settings, work=tmp_path, batch_size=3, seed=11, device=torch.device("cpu"))
    assert (args.learning_rate, args.max_grad_norm, args.seed) == (3e-4, 0.7, 11)
    assert args.get_warmup_steps(50) == 5
    assert args.train_batch_size == 3
    assert args.device.type == "cpu"
    assert args.report_to == []
    assert not args.bf16 and not args.fp16


def finished_checkpoint(work: Path, step: int) -> Path:
    """As the journal ends one, with weights beside it that it refers to."""
    folder = work / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in CHECKPOINT_FILES:
        (folder / name).write_bytes(f"{name} of step {step}".encode())
    best = work / f"best-{step}" / "trained.safetensors"
    best.parent.mkdir()
    best.write_bytes(b"best of %d" % step)
    journal = Journal(Tracker())
    journal.beside = {str(best.relative_to(work)): sha256_file(best)}
    seal_checkpoint(folder, {"identity": "a", "step": step, "finished": False, "journal": journal.state()})
    return folder


CHECKPOINT_FILES = (
    "model.safetensors", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth",
    "trainer_state.json",
)  # fmt: skip


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flip": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "delete": Path.unlink,
    # with the same file of the checkpoint before
    "swap": lambda path: path.write_bytes(Path(str(path).replace("-2/", "-1/")).read_bytes()),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*CHECKPOINT_FILES, MARKER, "../best-2/trained.safetensors"])
def test_a_damaged_checkpoint_gives_way_to_the_older_one_and_is_named(tmp_path: Path, name: str, damage: str) -> None:
    older, newer = (finished_checkpoint(tmp_path, step) for step in (1, 2))
    assert newest_checkpoint(tmp_path, identity="a") == newer
    if (name, damage) == (MARKER, "delete"):
        pytest.skip("without its marker it was being written: a kill, no damage")
    DAMAGES[damage]((newer / name).resolve())
    said: list[str] = []
    assert newest_checkpoint(tmp_path, identity="a", tell=said.append) == older
    assert not newer.exists()
    assert len(said) == 1 and Path(name).name in said[0] and "goes on from checkpoint-1" in said[0]
    if name != MARKER:
        return
    DAMAGES["flip"](older / name)
    assert newest_checkpoint(tmp_path, identity="a", tell=said.append) is None
    assert "begins anew" in said[-1]
