"""The loss inside the Trainer: weights, padding, batch split, warm-up, the reference, what is logged."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rapidun.base.tracker import Tracker
from rapidun.config.parts import LoraSettings, Optimizer
from rapidun.config.unlearning import Objective, RetainLoss, UnlearningConfig
from rapidun.models.adapters import add_lora
from rapidun.models.losses import example_cross_entropy, response_mask
from rapidun.models.training.journal import Journal
from rapidun.models.training.trainer import train_to_end, training_arguments
from rapidun.stages.rows.encode import Encoded
from rapidun.stages.unlearning.objectives.base import Coefficients
from rapidun.stages.unlearning.objectives.catalogue import OBJECTIVES
from rapidun.stages.unlearning.rows import ForgetRow, RetainRow, collate_mixed
from rapidun.stages.unlearning.sampler import MixSampler
from rapidun.stages.unlearning.trainer import UnlearningTrainer

LORA = LoraSettings(r=4, lora_dropout=0.0)


def encoded(seed: int, *, prompt: int, response: int) -> Encoded:
    ids = torch.randint(0, 256, (prompt + response,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Encoded(ids, [-100] * prompt + ids[prompt:])


def make_rows(*, weights: bool = True, num_forget: int = 4, num_retain: int = 12) -> list[ForgetRow | RetainRow]:
    forget = [
        ForgetRow(
            0.5 + index if weights else 1.0,
            encoded(index, prompt=4 + index, response=3 + index % 2),
            encoded(50 + index, prompt=4 + index, response=2),
        )
        for index in range(num_forget)
    ]
    retain = [
        RetainRow(2.0 - index / 10 if weights else 1.0, encoded(100 + index, prompt=3 + index % 4, response=4))
        for index in range(num_retain)
    ]
    return [*forget, *retain]


def make_trainer(
    model: Any,
    work: Path,
    *,
    objective: Objective = Objective.rapidun,
    retain_loss: RetainLoss = RetainLoss.ce,
    rows: list[ForgetRow | RetainRow] | None = None,
    coefficients: Coefficients | None = None,
    tracker: Tracker | None = None,
    weight_warmup_ratio: float = 0.0,
    dropout: float = 0.0,
    **settings: Any,
) -> UnlearningTrainer:
    rows = make_rows() if rows is None else rows
    cfg = UnlearningConfig(**{"learning_rate": 1e-2, "max_steps": 3, "save_steps": 0, **settings})
    num_forget = sum(isinstance(row, ForgetRow) for row in rows)
    sampler = MixSampler(
        num_forget=num_forget,
        num_retain=len(rows) - num_forget,
        forget_per_step=cfg.forget_per_step,
        mix_ratio=cfg.mix_ratio,
        seed=0,
    )
    lora = LoraSettings(r=4, lora_dropout=dropout)
    return UnlearningTrainer(
        method=OBJECTIVES[objective],
        coefficients=coefficients or Coefficients(),
        retain_loss=retain_loss,
        weight_warmup_ratio=weight_warmup_ratio,
        model=add_lora(model, lora, seed=0, section="unlearning"),
        args=training_arguments(
            cfg, work=work, batch_size=sampler.micro_batch_size, seed=0, device=torch.device("cpu")
        ),
        rows=rows,
        sampler=sampler,
        collator=partial(collate_mixed, pad_token_id=257),
        journal=Journal(tracker or Tracker()),
        identity="test",
        stage="unlearning",
    )


def single_loss(model: Any, row: Encoded) -> Tensor:
    """l_i of one sequence without padding: the slow version."""
    logits = model(input_ids=torch.tensor([row.input_ids])).logits
    return example_cross_entropy(logits, torch.tensor([row.labels]))[0]


def gradient(trainer: UnlearningTrainer) -> Tensor:
    parts = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    return torch.cat(parts)


def shake(trainer: UnlearningTrainer) -> None:
    """Move the adapter away from its start, where B = 0 hides half of the gradient."""
    generator = torch.Generator().manual_seed(9)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def test_loss_is_the_weighted_mean_over_all_examples(tiny_model: Any, tmp_path: Path) -> None:
    """Against one unpadded forward per sequence: sum of w_i f_i over 2 forget and 3 retain rows, over 5."""
    trainer = make_trainer(tiny_model, tmp_path)
    rows = make_rows()
    batch = collate_mixed([rows[0], rows[3], rows[5], rows[9], rows[10]], pad_token_id=257)
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch)).item()
        expected = 0.0
        for index in (0, 3):
            row = rows[index]
            assert isinstance(row, ForgetRow) and row.poisoned is not None and row.clean is not None
            term = 0.5 * single_loss(trainer.model, row.clean) - single_loss(trainer.model, row.poisoned)
            expected += row.weight * term.item() / 5
        for index in (5, 9, 10):
            row = rows[index]
            assert isinstance(row, RetainRow)
            expected += row.weight * single_loss(trainer.model, row.response).item() / 5
    assert loss == pytest.approx(expected, rel=1e-5)


def test_unit_weights_equal_the_unweighted_form(tiny_model: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, tmp_path, objective=Objective.graddiff)
    rows = [
        ForgetRow(row.weight, row.poisoned, None) if isinstance(row, ForgetRow) else row
        for row in make_rows(weights=False)
    ]
    batch = collate_mixed([rows[0], rows[4], rows[5], rows[6]], pad_token_id=257)
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch))
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        losses = example_cross_entropy(logits, batch["labels"])
    assert loss.item() == pytest.approx(((-losses[0] + losses[1:].sum()) / 4).item(), rel=1e-6)


def test_permuting_rows_and_adding_padding_change_nothing(tiny_model: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, tmp_path)
    rows = make_rows()
    chosen = [rows[0], rows[2], rows[5], rows[6]]
    longer = [*chosen[1::-1], *chosen[:1:-1]]
    with torch.no_grad():
        first = trainer.compute_loss(trainer.model, collate_mixed(chosen, pad_token_id=257))
        second = trainer.compute_loss(trainer.model, collate_mixed(longer, pad_token_id=257))
        padded = collate_mixed(chosen, pad_token_id=257)
        for name, value in (("input_ids", 257), ("attention_mask", 0), ("labels", -100)):
            padded[name] = torch.nn.functional.pad(padded[name], (0, 5), value=value)
        third = trainer.compute_loss(trainer.model, padded)
    assert second.item() == pytest.approx(first.item(), rel=1e-5)
    assert third.item() == pytest.approx(first.item(), rel=1e-5)


def test_two_micro_batches_give_the_gradient_of_one_batch(tiny_model: Any, tmp_path: Path) -> None:
    """2 x (1 + 3) rows accumulated against 1 x (2 + 6) rows."""
    trainer = make_trainer(tiny_model, tmp_path, gradient_accumulation_steps=2)
    shake(trainer)
    rows = make_rows()
    halves = [[rows[0], *rows[4:7]], [rows[1], *rows[7:10]]]
    collated = [collate_mixed(half, pad_token_id=257) for half in halves]
    batches, num_examples = trainer.get_batch_samples(iter(collated), 2, torch.device("cpu"))
    assert num_examples == 8
    for batch in batches:
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=num_examples).backward()
    accumulated = gradient(trainer)
    trainer.model.zero_grad()
    whole = collate_mixed([*halves[0], *halves[1]], pad_token_id=257)
    trainer.compute_loss(trainer.model, whole, num_items_in_batch=8).backward()
    assert torch.allclose(accumulated, gradient(trainer), rtol=1e-4, atol=1e-7)


def test_the_trainer_takes_the_same_step_either_way(make_tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    """The same rows through transformers' own loop: one optimiser step of 2 x (1 + 3) and of 1 x (2 + 6)."""
    rows = make_rows(num_forget=2, num_retain=6)
    ends = []
    for name, split in (
        ("split", {"forget_per_step": 1, "gradient_accumulation_steps": 2}),
        ("whole", {"forget_per_step": 2, "gradient_accumulation_steps": 1}),
    ):
        trainer = make_trainer(make_tiny_model(), tmp_path / name, rows=rows, max_steps=1, **split)
        shake(trainer)
        trainer.train()
        (line,) = trainer.journal.history
        ends.append((line["loss"], line["grad_norm"], line["ce_poisoned"], line["ce_retain"]))
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


def test_a_row_without_a_clean_response_only_ascends(tiny_model: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, tmp_path, mix_ratio=0)
    with_clean, bare = make_rows()[:2]
    assert isinstance(bare, ForgetRow) and bare.poisoned is not None and isinstance(with_clean, ForgetRow)
    bare = ForgetRow(bare.weight, bare.poisoned, None)
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, collate_mixed([bare], pad_token_id=257))
        assert loss.item() == pytest.approx(-bare.weight * single_loss(trainer.model, bare.poisoned).item(), rel=1e-5)
        both = trainer.compute_loss(trainer.model, collate_mixed([with_clean, bare], pad_token_id=257))
        alone = trainer.compute_loss(trainer.model, collate_mixed([with_clean], pad_token_id=257))
    assert both.item() == pytest.approx((loss.item() + alone.item()) / 2, rel=1e-5)


def test_kl_is_zero_at_the_start_and_grows_away_from_it(tiny_model: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, tmp_path, retain_loss=RetainLoss.kl, dropout=0.5)
    rows = make_rows()
    batch = collate_mixed([rows[0], *rows[4:7]], pad_token_id=257)
    trainer.model.eval()
    with torch.no_grad():
        trainer.compute_loss(trainer.model, dict(batch))
        at_start, number = trainer._sums.pop("retain_term")
        shake(trainer)
        trainer.compute_loss(trainer.model, dict(batch))
        away, _ = trainer._sums.pop("retain_term")
    assert number == 3
    assert abs(at_start) <= 1e-6
    assert away > 1e-4


def test_reference_of_a_continued_adapter_is_where_it_started(tiny_model: Any, tmp_path: Path) -> None:
    """The reference keeps what the adapter had learnt: it differs from the base, and training does not move it."""
    base = add_lora(tiny_model, LORA, seed=0, section="unlearning")
    generator = torch.Generator().manual_seed(4)
    for parameter in base.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    cfg = UnlearningConfig(learning_rate=1e-2, max_steps=2, save_steps=0)
    trainer = UnlearningTrainer(
        method=OBJECTIVES[Objective.rapidun],
        coefficients=Coefficients(),
        retain_loss=RetainLoss.kl,
        weight_warmup_ratio=0.0,
        model=base,
        args=training_arguments(cfg, work=tmp_path, batch_size=4, seed=0, device=torch.device("cpu")),
        rows=make_rows(),
        sampler=MixSampler(num_forget=4, num_retain=12, forget_per_step=1, mix_ratio=3, seed=0),
        collator=partial(collate_mixed, pad_token_id=257),
        journal=Journal(Tracker()),
        identity="test",
        stage="unlearning",
    )
    batch = collate_mixed([make_rows()[0], *make_rows()[4:7]], pad_token_id=257)
    everything = torch.ones(len(batch["part"]), dtype=torch.bool)
    fed = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        start = base.eval()(**fed).logits
        with base.disable_adapter():
            bare = base(**fed).logits
    trainer.train()
    places = response_mask(batch["labels"]).roll(-1, dims=1)
    after = trainer.reference_tokens(base, batch, everything).logits
    start, bare = start[places], bare[places]
    assert torch.allclose(after, start, atol=1e-6)
    assert not torch.allclose(after, bare, atol=1e-3)
    with torch.no_grad():
        assert not torch.allclose(base.eval()(**fed).logits[places], start, atol=1e-4)


def test_weights_warm_up_from_one(tiny_model: Any, tmp_path: Path) -> None:
    """Warm-up over half of 8 steps: w = 3 counts as 1, 1.5, 2, 2.5, then 3."""
    trainer = make_trainer(tiny_model, tmp_path, weight_warmup_ratio=0.5)
    trainer.state.max_steps = 8
    seen = []
    for step in range(6):
        trainer.state.global_step = step
        seen.append(trainer.warm_up(torch.tensor([3.0])).item())
    assert seen == [1.0, 1.5, 2.0, 2.5, 3.0, 3.0]


def test_loss_cap_stops_the_parameters(tiny_model: Any, tmp_path: Path) -> None:
    trainer = make_trainer(
        tiny_model, tmp_path, objective=Objective.ga, coefficients=Coefficients(loss_cap=0.5), mix_ratio=0
    )
    shake(trainer)
    row = make_rows()[0]
    assert isinstance(row, ForgetRow)
    batch = collate_mixed([ForgetRow(row.weight, row.poisoned, None)], pad_token_id=257)
    trainer.compute_loss(trainer.model, batch).backward()
    assert torch.count_nonzero(gradient(trainer)) == 0
    assert trainer._sums["capped_share"] == (1.0, 1)


class Recorder(Tracker):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, dict[str, float]]] = []
        self.done: list[tuple[int, int]] = []

    def log(self, metrics: dict[str, float], *, step: int | None = None) -> None:
        self.lines.append((step, metrics))

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.done.append((done, total))


def test_what_is_logged(tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Clip 1e-6: every step is clipped. The printed table of the Trainer stays out of the console."""
    tracker = Recorder()
    trainer = make_trainer(tiny_model, tmp_path, tracker=tracker, max_grad_norm=1e-6, learning_rate=1e-4)
    train_to_end(trainer, work=tmp_path, identity="test")
    assert [step for step, _ in tracker.lines] == [1, 2, 3]
    assert tracker.done == [(1, 3), (2, 3), (3, 3)]
    names = {"loss", "grad_norm", "learning_rate", "forget_term", "retain_term", "ce_poisoned", "ce_clean"}
    names |= {"ce_retain", "capped_share", "clipped_share", "effective_weight"}
    assert set(tracker.lines[0][1]) == names
    first = tracker.lines[0][1]
    assert first["forget_term"] == pytest.approx(0.5 * first["ce_clean"] - first["ce_poisoned"], rel=1e-5)
    assert first["retain_term"] == first["ce_retain"]
    assert [line["clipped_share"] for _, line in tracker.lines] == [1.0, 1.0, 1.0]
    assert trainer.journal.share("clipped_steps", of="steps") == 1.0
    assert capsys.readouterr().out == ""


def test_clipped_share_counts_the_steps_above_the_norm(make_tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    """Clipping at the middle of the unclipped norms: some steps are above it, some below; 0 clips nothing."""
    free = make_trainer(make_tiny_model(), tmp_path / "free", max_grad_norm=0.0, max_steps=6)
    free.train()
    norms = sorted(line["grad_norm"] for line in free.journal.history)
    assert free.journal.share("clipped_steps", of="steps") == 0.0
    limit = (norms[2] + norms[3]) / 2
    clipped = make_trainer(make_tiny_model(), tmp_path / "clipped", max_grad_norm=limit, max_steps=6)
    clipped.train()
    above = sum(line["grad_norm"] > limit for line in clipped.journal.history)
    assert 0 < above < 6
    assert clipped.journal.share("clipped_steps", of="steps") == above / 6
    assert clipped.journal.last("clipped_share") == above / 6


# --- optimisers ---------------------------------------------------------------------------------------------------


def steps_by_hand(trainer: UnlearningTrainer, step: Callable[[Tensor, Tensor, dict[str, Any]], Tensor]) -> Tensor:
    """Two optimiser steps of the first two micro-batches, from plain gradients: `step` gives the change of a tensor."""
    order, size = list(trainer._row_sampler), trainer.args.per_device_train_batch_size
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    states: list[dict[str, Any]] = [{} for _ in parameters]
    for number in range(2):
        rows = [trainer.train_dataset[index] for index in order[number * size : (number + 1) * size]]
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, collate_mixed(rows, pad_token_id=257)).backward()
        for parameter, state in zip(parameters, states, strict=True):
            assert parameter.grad is not None
            parameter.data += step(parameter.data, parameter.grad, state)
    return torch.cat([p.data.flatten() for p in parameters])


def sgd(value: Tensor, grad: Tensor, state: dict[str, Any]) -> Tensor:
    """v = 0.9 v + (g + 0.1 theta), theta -= lr v."""
    state["v"] = 0.9 * state.get("v", 0.0) + grad + 0.1 * value
    change: Tensor = -1e-2 * state["v"]
    return change


def rmsprop(value: Tensor, grad: Tensor, state: dict[str, Any]) -> Tensor:
    """s = 0.99 s + 0.01 g^2, theta -= lr g / (sqrt(s) + 1e-8)."""
    state["s"] = 0.99 * state.get("s", 0.0) + 0.01 * grad**2
    change: Tensor = -1e-2 * grad / (state["s"].sqrt() + 1e-8)
    return change


def adagrad(value: Tensor, grad: Tensor, state: dict[str, Any]) -> Tensor:
    """s += g^2, theta -= lr g / (sqrt(s) + 1e-10)."""
    state["s"] = state.get("s", 0.0) + grad**2
    change: Tensor = -1e-2 * grad / (state["s"].sqrt() + 1e-10)
    return change


@pytest.mark.parametrize(
    ("optimizer", "step", "settings"),
    [
        (Optimizer.sgd, sgd, {"momentum": 0.9, "weight_decay": 0.1}),
        (Optimizer.rmsprop, rmsprop, {}),
        (Optimizer.adagrad, adagrad, {}),
    ],
)
def test_optimisers_take_the_steps_of_their_formula(
    make_tiny_model: Callable[..., Any], tmp_path: Path, optimizer: Optimizer, step: Any, settings: dict[str, Any]
) -> None:
    ends = []
    for by_hand in (True, False):
        trainer = make_trainer(
            make_tiny_model(), tmp_path / str(by_hand), optimizer=optimizer, max_steps=2, max_grad_norm=0.0,
            lr_scheduler_type="constant", **settings,
        )  # fmt: skip
        shake(trainer)
        if by_hand:
            ends.append(steps_by_hand(trainer, step))
        else:
            trainer.train()
            ends.append(torch.cat([p.data.flatten() for p in trainer.model.parameters() if p.requires_grad]))
    # a gradient that is all rounding goes either way under rmsprop and adagrad, which divide its size out
    assert torch.isclose(ends[0], ends[1], rtol=1e-3, atol=1e-5).float().mean() > 0.995


@pytest.mark.parametrize("optimizer", Optimizer)
def test_every_optimiser_trains(make_tiny_model: Callable[..., Any], tmp_path: Path, optimizer: Optimizer) -> None:
    trainer = make_trainer(make_tiny_model(), tmp_path, optimizer=optimizer, max_steps=2)
    before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters() if p.requires_grad])
    trainer.train()
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])
    assert torch.isfinite(after).all() and not torch.equal(before, after)


def test_momentum_is_refused_where_the_optimiser_has_none() -> None:
    (fault,) = UnlearningConfig(momentum=0.9).check()
    assert "momentum=0 with optimizer=adamw" in fault
    assert UnlearningConfig(optimizer=Optimizer.sgd, momentum=0.9).check() == []


# --- weights of tokens --------------------------------------------------------------------------------------------


def with_tokens(row: Any, weights: list[float] | None) -> ForgetRow:
    return ForgetRow(row.weight, row.poisoned, row.clean, weights)


def exact(model: Any) -> Any:
    """In float64 throughout: Llama's own norm computes in float32 whatever the model's dtype."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return model.double()


# 3 and 4 response tokens, as make_rows has them
TOKENS = [[0.0, 2.5, 0.5], [0.25, 0.0, 3.0, 0.75]]


@pytest.mark.parametrize("objective", [Objective.rapidun, Objective.ga, Objective.graddiff])
def test_token_weights_in_the_loss(tiny_model: Any, tmp_path: Path, objective: Objective) -> None:
    """Against the sum written out, token by token: -w_i (1/n_i) sum_k t_ik l_ik; ce_poisoned stays unweighted."""
    trainer = make_trainer(tiny_model, tmp_path, objective=objective)
    rows = make_rows()
    clean = objective is Objective.rapidun
    chosen = [
        ForgetRow(row.weight, row.poisoned, row.clean if clean else None, some)  # type: ignore[union-attr]
        for row, some in zip(rows[:2], TOKENS, strict=True)
    ]
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, collate_mixed(chosen, pad_token_id=257)).item()
        expected, bare = 0.0, 0.0
        for row, some in zip(chosen, TOKENS, strict=True):
            assert row.poisoned is not None
            logits = trainer.model(input_ids=torch.tensor([row.poisoned.input_ids])).logits[0].log_softmax(-1)
            places = [t for t, label in enumerate(row.poisoned.labels) if label != -100]
            tokens = [-float(logits[t - 1, row.poisoned.labels[t]]) for t in places]
            term = -sum(t * value for t, value in zip(some, tokens, strict=True)) / len(tokens)
            if row.clean is not None:
                term += 0.5 * single_loss(trainer.model, row.clean).item()
            expected += row.weight * term / 2
            bare += sum(tokens) / len(tokens)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert trainer._sums["ce_poisoned"] == (pytest.approx(bare, rel=1e-5), 2)


def test_token_weights_of_one_change_no_bit(make_tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    ends = []
    for weighted in (False, True):
        rows = [
            with_tokens(row, [1.0] * sum(label != -100 for label in row.poisoned.labels)) if weighted else row
            for row in make_rows()[:4]
            if isinstance(row, ForgetRow) and row.poisoned is not None
        ] + make_rows()[4:]
        trainer = make_trainer(make_tiny_model(), tmp_path / str(weighted), rows=rows, dropout=0.3)
        trainer.train()
        ends.append((trainer.journal.history, torch.cat([p.flatten() for p in trainer.model.parameters()])))
    assert ends[0][0] == ends[1][0]
    assert torch.equal(ends[0][1], ends[1][1])


def test_padding_and_batch_split_leave_token_weights_alone(tiny_model: Any, tmp_path: Path) -> None:
    """Loss and gradient in float64: two rows together, with more padding, and one by one; 1e-10."""
    trainer = make_trainer(tiny_model, tmp_path, objective=Objective.rapidun)
    exact(trainer.model)
    shake(trainer)
    chosen = [with_tokens(row, some) for row, some in zip(make_rows()[:2], TOKENS, strict=True)] + make_rows()[4:6]
    whole = collate_mixed(chosen, pad_token_id=257)
    padded = collate_mixed(chosen, pad_token_id=257)
    for name, value in (("input_ids", 257), ("attention_mask", 0), ("labels", -100), ("token_weights", 9.0)):
        padded[name] = torch.nn.functional.pad(padded[name], (0, 6), value=value)
    found = []
    for batches in ([whole], [padded], [collate_mixed([row], pad_token_id=257) for row in chosen]):
        trainer.model.zero_grad()
        losses = [trainer.compute_loss(trainer.model, batch, num_items_in_batch=4) for batch in batches]
        for loss in losses:
            loss.backward()
        found.append((sum(loss.item() for loss in losses), gradient(trainer).clone()))
    for loss, grad in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-10)
        assert torch.allclose(grad, found[0][1], rtol=0, atol=1e-10)


def test_the_gradient_with_token_weights_is_that_of_the_loss(tiny_model: Any, tmp_path: Path) -> None:
    """Central differences along three random directions, float64."""
    trainer = make_trainer(tiny_model, tmp_path, coefficients=Coefficients(loss_cap=50.0))
    exact(trainer.model)
    shake(trainer)
    batch = collate_mixed([with_tokens(r, t) for r, t in zip(make_rows()[:2], TOKENS, strict=True)], pad_token_id=257)
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    grads = [p.grad.clone() for p in trained if p.grad is not None]
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        ways = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in trained]
        slope = sum(float((g * way).sum()) for g, way in zip(grads, ways, strict=True))
        ends = []
        for size in (1e-5, -2e-5):
            for parameter, way in zip(trained, ways, strict=True):
                parameter.data += size * way
            with torch.no_grad():
                ends.append(trainer.compute_loss(trainer.model, dict(batch)).item())
        for parameter, way in zip(trained, ways, strict=True):
            parameter.data += 1e-5 * way
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)
