"""Forget weights that training renews: the rule against plain Python, inside the loss, split, shuffled, written."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rapidun.base.errors import DataError
from rapidun.base.files import read_jsonl, write_json
from rapidun.base.tracker import Tracker
from rapidun.config.parts import LoraSettings
from rapidun.config.unlearning import Objective, UnlearningConfig
from rapidun.models.load import ModelLoader
from rapidun.models.training.journal import Journal
from rapidun.stages.rows.records import write_records
from rapidun.stages.unlearning.dynamic import LOSSES, DynamicRule, DynamicWeights, read_rule
from rapidun.stages.unlearning.rows import ForgetRow, collate_mixed
from rapidun.stages.unlearning.stage import UnlearningFiles, run_unlearning
from rapidun.stages.weights_file import read_weights, write_weights
from tests.stages.unlearning.test_trainer import gradient, make_rows, make_trainer, shake, single_loss

IDS = ["a", "b", "c", "d"]
START = {"a": 0.5, "b": 1.0, "c": 2.0, "d": 0.1}
CPU = torch.device("cpu")


def softmax_weights(losses: list[float], tau: float) -> list[float]:
    """n exp(-l / tau) / sum: the rule where no bound acts."""
    exps = [math.exp(-loss / tau) for loss in losses]
    return [len(losses) * one / math.fsum(exps) for one in exps]


def make(
    rows: list[Any] | None = None, *, takes: dict[str, str] | None = None, journal: Journal | None = None
) -> DynamicWeights:
    rule = DynamicRule(tau=0.8, w_min=0.0, w_max=4.0, losses=START, takes=takes)
    targets = [row.poisoned for row in rows or [] if isinstance(row, ForgetRow)]
    return DynamicWeights(rule, IDS, targets, journal=journal or Journal(Tracker()), pad_token_id=257)


def test_a_visited_rows_weight_is_that_of_its_own_loss_beside_the_others_last_known_ones() -> None:
    """Losses 3 of b and 0.2 of d: each against the table as it was when the step began, without the other."""
    dynamic = make()
    found = dynamic.weights(torch.tensor([1, 3]), torch.tensor([3.0, 0.2], dtype=torch.float64))
    b = softmax_weights([0.5, 3.0, 2.0, 0.1], 0.8)[1]
    d = softmax_weights([0.5, 1.0, 2.0, 0.2], 0.8)[3]
    assert found.tolist() == pytest.approx([b, d], rel=1e-6) and found.dtype == torch.float32
    assert dynamic.losses == [0.5, 1.0, 2.0, 0.1]
    path = dynamic.end_step(CPU)
    assert dynamic.losses == [0.5, 3.0, 2.0, 0.2]
    after = softmax_weights([0.5, 3.0, 2.0, 0.2], 0.8)
    assert dynamic.table_weights().tolist() == pytest.approx(after, rel=1e-12)
    ess = sum(after) ** 2 / sum(one * one for one in after)
    assert list(path.values()) == pytest.approx([min(after), max(after), ess], rel=1e-12)


def test_the_first_loss_of_a_step_counts() -> None:
    """A sharpness-aware step goes over its rows twice, the second time at moved parameters."""
    dynamic = make()
    first = dynamic.weights(torch.tensor([0]), torch.tensor([0.7]))
    assert torch.equal(dynamic.weights(torch.tensor([0]), torch.tensor([5.0])), first)
    dynamic.end_step(CPU)
    assert dynamic.losses[0] == pytest.approx(0.7)
    assert not torch.equal(dynamic.weights(torch.tensor([0]), torch.tensor([5.0])), first)


def test_a_loss_that_is_no_number_changes_nothing() -> None:
    """The step is said to have diverged elsewhere, with its rows."""
    dynamic = make()
    found = dynamic.weights(torch.tensor([2]), torch.tensor([math.nan]))
    assert found.tolist() == pytest.approx([softmax_weights(list(START.values()), 0.8)[2]], rel=1e-6)
    dynamic.end_step(CPU)
    assert dynamic.losses == list(START.values())


def test_shuffled_rows_have_the_weight_of_the_row_that_they_take() -> None:
    """a takes c's, b keeps its own, c takes d's, d a's; b's new loss moves all of them after its step."""
    dynamic = make(takes={"a": "c", "b": "b", "c": "d", "d": "a"})
    before = softmax_weights([0.5, 1.0, 2.0, 0.1], 0.8)
    found = dynamic.weights(torch.tensor([0, 1]), torch.tensor([9.0, 6.0]))
    assert found.tolist() == pytest.approx([before[2], before[1]], rel=1e-6)
    dynamic.end_step(CPU)
    after = softmax_weights([9.0, 6.0, 2.0, 0.1], 0.8)
    expected = [after[2], after[1], after[3], after[0]]
    assert dynamic.table_weights().tolist() == pytest.approx(expected, rel=1e-6)


def test_the_table_is_what_the_journal_carries() -> None:
    journal = Journal(Tracker())
    dynamic = make(journal=journal)
    dynamic.weights(torch.tensor([1]), torch.tensor([3.3]))
    dynamic.end_step(CPU)
    state = json.loads(json.dumps(journal.state()))
    other = Journal(Tracker())
    resumed = make(journal=other)
    other.restore(state)
    assert resumed.losses == dynamic.losses == state["kept"][LOSSES]


def test_every_row_needs_a_loss_to_begin_with() -> None:
    rule = DynamicRule(tau=1.0, w_min=0.2, w_max=3.0, losses={"a": 1.0}, takes=None)
    with pytest.raises(DataError, match="got none for 'b'"):
        DynamicWeights(rule, ["a", "b"], [], journal=Journal(Tracker()), pad_token_id=0)


def test_the_loss_has_the_weights_of_the_current_model(tiny_model: Any, tmp_path: Path) -> None:
    """Rows 0 and 3 of F: each term times the weight of the row's own loss under the model as it is now."""
    trainer = make_trainer(tiny_model, tmp_path, objective=Objective.graddiff)
    shake(trainer)
    rows = make_rows()
    trainer.dynamic = make(rows, journal=trainer.journal)
    numbered = list(trainer.train_dataset.rows)
    batch = collate_mixed([numbered[0], numbered[3], numbered[5]], pad_token_id=257)
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch)).item()
        expected = single_loss(trainer.model, rows[5].response).item() * rows[5].weight  # type: ignore[union-attr]
        for place in (0, 3):
            own = single_loss(trainer.model, rows[place].poisoned).item()  # type: ignore[union-attr]
            table = list(START.values())
            table[place] = own
            expected -= softmax_weights(table, 0.8)[place] * own
    assert loss == pytest.approx(expected / 3, rel=1e-5)


def test_neither_micro_batches_nor_their_order_change_a_weight(tiny_model: Any, tmp_path: Path) -> None:
    """2 x (1 + 3) rows accumulated against 1 x (2 + 6) rows: the gradients are those of one step."""
    trainer = make_trainer(tiny_model, tmp_path, gradient_accumulation_steps=2)
    shake(trainer)
    rows = list(trainer.train_dataset.rows)
    halves = [[rows[0], *rows[4:7]], [rows[1], *rows[7:10]]]
    found = []
    for batches in (halves, halves[::-1], [[*halves[0][:1], *halves[1][:1], *halves[0][1:], *halves[1][1:]]]):
        trainer.dynamic = make(make_rows(), journal=Journal(Tracker()))
        trainer.model.zero_grad()
        for batch in batches:
            inputs = collate_mixed(batch, pad_token_id=257)
            trainer.compute_loss(trainer.model, inputs, num_items_in_batch=8).backward()
        found.append((gradient(trainer), trainer.dynamic.end_step(CPU)))
    for other, path in found[1:]:
        assert torch.allclose(other, found[0][0], rtol=1e-4, atol=1e-7)
        assert path == pytest.approx(found[0][1], rel=1e-5)


def test_an_objective_without_that_pass_gets_one_that_disturbs_nothing(tiny_model: Any, tmp_path: Path) -> None:
    """idk_sft reads the clean response only; dropout is on in training, off where the loss is measured."""
    rows = make_rows()
    kept = [ForgetRow(row.weight, None, row.clean) if isinstance(row, ForgetRow) else row for row in rows]
    trainer = make_trainer(tiny_model, tmp_path, objective=Objective.idk_sft, rows=kept, dropout=0.5)
    shake(trainer)
    trainer.dynamic = make(rows, journal=trainer.journal)
    trainer.model.train()
    numbered = list(trainer.train_dataset.rows)
    state = torch.get_rng_state()
    found = trainer.dynamic.measured(trainer.model, torch.tensor([2, 0]))
    assert torch.equal(torch.get_rng_state(), state) and trainer.model.training
    trainer.compute_loss(trainer.model, collate_mixed([numbered[2], numbered[6]], pad_token_id=257))
    trainer.model.eval()
    with torch.no_grad():
        own = [single_loss(trainer.model, rows[place].poisoned).item() for place in (2, 0)]  # type: ignore[union-attr]
    assert found.tolist() == pytest.approx(own, rel=1e-5)
    trainer.dynamic.end_step(CPU)
    assert trainer.dynamic.losses[2] == pytest.approx(own[0], rel=1e-5)
    assert trainer.dynamic.losses[0] == START["a"]


@pytest.fixture
def files(tmp_path: Path, tiny_model_dir: Path, tiny_records: Any) -> Callable[..., UnlearningFiles]:
    def make_files(name: str, *, dynamic: bool = True) -> UnlearningFiles:
        for group, rows in zip(("forget", "retain"), tiny_records, strict=True):
            write_records(tmp_path / f"{group}.jsonl", rows)
            write_weights(tmp_path / f"{group}_weights.jsonl", [1.0] * len(rows), ids=[row.id for row in rows])
        losses = {row.id: 5.0 + place / 10 for place, row in enumerate(tiny_records[0])}
        write_json(tmp_path / "dynamic.json", {"tau": 0.3, "w_min": 0.2, "w_max": 3.0, "losses": losses})
        return UnlearningFiles(
            model=tiny_model_dir,
            forget=tmp_path / "forget.jsonl",
            retain=tmp_path / "retain.jsonl",
            val_clean=None,
            forget_weights=tmp_path / "forget_weights.jsonl",
            retain_weights=tmp_path / "retain_weights.jsonl",
            work=tmp_path / name / "work",
            out=tmp_path / name / "out",
            dynamic=tmp_path / "dynamic.json" if dynamic else None,
        )

    return make_files


def unlearn(made: UnlearningFiles, **settings: Any) -> dict[str, Any]:
    base = {"learning_rate": 1e-2, "num_train_epochs": 2, "save_steps": 0, "eval_steps": 0, "mix_ratio": 1}
    cfg = UnlearningConfig(**{**base, "lora": LoraSettings(r=4, lora_dropout=0.1), **settings})
    made.work.mkdir(parents=True)
    return run_unlearning(
        cfg, made, loader=ModelLoader(device="cpu"), max_length=96, seed=7, tracker=Tracker()
    )  # fmt: skip


def test_a_run_reports_the_path_and_the_end(files: Callable[..., UnlearningFiles]) -> None:
    made = files("run")
    found = unlearn(made)
    path = list(read_jsonl(made.out / "weights_path.jsonl"))
    assert [one["step"] for one in path] == list(range(1, 13))
    assert all(0.2 <= one["forget_weight_min"] <= 1.0 <= one["forget_weight_max"] <= 3.0 for one in path)
    assert len({one["forget_weight_ess"] for one in path}) > 6
    ids = list(read_rule(made.dynamic).losses)  # type: ignore[arg-type]
    weights = read_weights(made.out / "forget_weights.jsonl", ids)
    assert sum(weights) == pytest.approx(6.0) and max(weights) == path[-1]["forget_weight_max"]
    assert found["final_forget_weight_ess"] == path[-1]["forget_weight_ess"]
    history = json.loads((made.out / "history.json").read_text())
    assert [line["forget_weight_max"] for line in history] == [one["forget_weight_max"] for one in path]


def test_weights_that_stay_are_not_renewed(files: Callable[..., UnlearningFiles]) -> None:
    made = files("still", dynamic=False)
    assert "final_forget_weight_ess" not in unlearn(made, max_steps=1)
    assert not (made.out / "weights_path.jsonl").exists()
