"""Every objective inside the trainer: against one row at a time, however a step is split; what is computed once."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rapidun.base.tracker import Tracker
from rapidun.config.parts import LoraSettings, Optimizer
from rapidun.config.unlearning import Objective, RetainLoss, UnlearningConfig
from rapidun.models.adapters import add_lora
from rapidun.models.packing import is_switched
from rapidun.models.training.journal import Journal
from rapidun.models.training.trainer import training_arguments
from rapidun.stages.rows.encode import Encoded
from rapidun.stages.unlearning import reference
from rapidun.stages.unlearning.objectives.activation import direction
from rapidun.stages.unlearning.objectives.catalogue import OBJECTIVES, hyperparameters
from rapidun.stages.unlearning.reference import read_or_compute
from rapidun.stages.unlearning.rows import ForgetRow, RetainRow, collate_mixed
from rapidun.stages.unlearning.sampler import MixSampler
from rapidun.stages.unlearning.trainer import Around, UnlearningTrainer, retain_term_of

# edits and the yardstick are no losses
ALL = list(OBJECTIVES)
LAYER = 0


def encoded(seed: int, *, prompt: int, response: int) -> Encoded:
    ids = torch.randint(0, 256, (prompt + response,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Encoded(ids, [-100] * prompt + ids[prompt:])


def make_rows(objective: Objective, *, num_forget: int = 4, num_retain: int = 12) -> list[ForgetRow | RetainRow]:
    """Responses of 1 to 4 tokens, weights that float32 holds; no forget rows for crow, responses as they are read."""
    method = OBJECTIVES[objective]
    forget: list[ForgetRow | RetainRow] = [
        ForgetRow(
            0.5 + index,
            encoded(index, prompt=4 + index, response=1 + index) if method.poisoned else None,
            encoded(50 + index, prompt=4 + index, response=2 + index % 2) if method.clean else None,
        )
        for index in range(num_forget if method.forget else 0)
    ]
    retain = [
        RetainRow(2.0 - index / 8, encoded(100 + index, prompt=3 + index % 4, response=1 + index % 3))
        for index in range(num_retain)
    ]
    return [*forget, *retain]


def exact(model: Any) -> Any:
    """In float64 throughout: Llama's own norm computes in float32 whatever the model's dtype."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return model.double()


def shake(model: nn.Module, seed: int = 9) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def make_trainer(
    model: Any,
    work: Path,
    objective: Objective,
    *,
    rows: list[ForgetRow | RetainRow] | None = None,
    dropout: float = 0.0,
    tracker: Tracker | None = None,
    **settings: Any,
) -> UnlearningTrainer:
    """In float64, its adapter moved away from its start before the reference is taken."""
    rows = make_rows(objective) if rows is None else rows
    cfg = UnlearningConfig(
        **{"objective": objective, "learning_rate": 1e-2, "max_steps": 3, "save_steps": 0, **settings}
    )
    assert cfg.check() == []
    method = OBJECTIVES[objective]
    num_forget = sum(isinstance(row, ForgetRow) for row in rows)
    mix_ratio = cfg.mix_ratio if method.retain else 0
    sampler = MixSampler(
        num_forget=num_forget,
        num_retain=len(rows) - num_forget,
        forget_per_step=cfg.forget_per_step if num_forget else 0,
        mix_ratio=mix_ratio,
        retain_per_step=cfg.forget_per_step * mix_ratio,
        seed=0,
    )
    adapted = exact(add_lora(model, LoraSettings(r=4, lora_dropout=dropout), seed=0, section="unlearning"))
    shake(adapted, seed=3)
    layer = LAYER if method.hidden else None
    trainer = UnlearningTrainer(
        method=method,
        hyper=hyperparameters(cfg),
        retain_loss=cfg.retain_loss,
        weight_warmup_ratio=0.0,
        around=Around(cfg.forget_coeff, cfg.retain_coeff, cfg.loss_cap, layer, cfg.sam.rho, 0.0),
        names=[f"row-{index}" for index in range(len(rows))],
        model=adapted,
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
    trainer.known = look_up(trainer, work)
    return trainer


def look_up(trainer: UnlearningTrainer, work: Path, identity: str = "test") -> Any:
    return read_or_compute(
        trainer.model,
        trainer.train_dataset.rows,
        method=trainer.method,
        retain=trainer.retain_term,
        pad_token_id=257,
        layer=trainer.around.layer,
        work=work,
        identity=identity,
    )


def batch_of(trainer: UnlearningTrainer, numbers: list[int]) -> dict[str, Tensor]:
    return collate_mixed([trainer.train_dataset[number] for number in numbers], pad_token_id=257)


class Alone(dict[str, Any]):
    """One row by itself, unpadded: logits and log-probabilities at its response, hidden states."""

    def __init__(self, model: Any, row: Encoded) -> None:
        found = model(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True)
        places = [t for t, label in enumerate(row.labels) if label != -100]
        self.logits = found.logits[0, [t - 1 for t in places]]
        self.targets = torch.tensor([row.labels[t] for t in places])
        self.log_p = self.logits.log_softmax(-1)[torch.arange(len(places)), self.targets]
        self.hidden = found.hidden_states[LAYER + 1][0, [t - 1 for t in places]]


def forget_term(objective: Objective, bad: Alone | None, good: Alone | None, bad_r: Any, good_r: Any) -> Tensor:
    """The table of METHOD section 5, token by token, at the default hyperparameters."""
    if objective is Objective.idk_sft:
        assert good is not None
        return -good.log_p.mean()
    assert bad is not None
    p = bad.log_p.exp().detach()
    log_sigmoid = torch.nn.functional.logsigmoid
    if objective is Objective.rapidun:
        assert good is not None
        return -0.5 * good.log_p.mean() + bad.log_p.mean()
    if objective in (Objective.ga, Objective.graddiff):
        return bad.log_p.mean()
    if objective is Objective.npo:
        return -(2 / 0.1) * log_sigmoid(-0.1 * (bad.log_p.sum() - bad_r.log_p.sum()))
    if objective is Objective.simnpo:
        return -(2 / 4.5) * log_sigmoid(-4.5 * bad.log_p.mean())
    if objective is Objective.dpo:
        assert good is not None
        return -log_sigmoid(0.1 * ((good.log_p.sum() - good_r.log_p.sum()) - (bad.log_p.sum() - bad_r.log_p.sum())))
    if objective is Objective.rmu:
        return ((bad.hidden - 20.0 * direction(16, seed=0)) ** 2).mean()
    if objective is Objective.undial:
        teacher = bad_r.logits.detach().clone()
        teacher[torch.arange(len(bad.targets)), bad.targets] -= 10.0
        return -(teacher.softmax(-1) * bad.logits.log_softmax(-1)).sum(-1).mean()
    if objective is Objective.wga:
        return (p**5 * bad.log_p).mean()
    if objective is Objective.satimp:
        return (p**5 * (1 - p) * bad.log_p).mean()
    if objective is Objective.ceu:
        teacher = bad.logits.detach().clone()
        teacher[torch.arange(len(bad.targets)), bad.targets] = -torch.inf
        kept = -(teacher.softmax(-1) * bad.logits.log_softmax(-1)).sum(-1)[1:]
        return kept.mean() if len(kept) else 0.0 * bad.logits.sum()
    if objective is Objective.pdu:
        return ((bad.logits.amax(-1) - bad.logits.mean(-1)) ** 2).mean()
    assert objective is Objective.flat and good is not None
    return (bad.log_p.exp().mean().tanh() - good.log_p.exp().mean().tanh()) / 2


def consistent(model: Any, row: Encoded) -> Tensor:
    """Of one row: 1 - cos of neighbouring layers, mean over tokens and layers, at embeddings moved by 0.1 sign."""
    start = model.get_input_embeddings()(torch.tensor([row.input_ids])).detach().requires_grad_(True)

    def turned(embeddings: Tensor) -> Tensor:
        states = model(inputs_embeds=embeddings, output_hidden_states=True).hidden_states
        pairs = pairwise(states)
        return torch.stack([1 - torch.cosine_similarity(a, b, dim=-1).mean() for a, b in pairs]).mean()

    (gradient,) = torch.autograd.grad(turned(start), start)
    return turned(start.detach() + 0.1 * gradient.sign())


def by_hand(trainer: UnlearningTrainer, model_r: Any, numbers: list[int], objective: Objective) -> Tensor:
    """sum_i w_i f_i + sum_j w_j r_j over the rows' number, each row by itself."""
    total = torch.zeros((), dtype=torch.float64)
    kl = trainer.retain_term is not None and trainer.retain_term.reference is reference.Reference.logits
    for number in numbers:
        row = trainer.train_dataset[number]
        if isinstance(row, ForgetRow):
            pairs = [
                None if one is None else (Alone(trainer.model, one), Alone(model_r, one))
                for one in (row.poisoned, row.clean)
            ]
            (bad, bad_r), (good, good_r) = ((None, None) if pair is None else pair for pair in pairs)
            total = total + row.weight * forget_term(objective, bad, good, bad_r, good_r)
            continue
        own, known = Alone(trainer.model, row.response), Alone(model_r, row.response)
        term = -own.log_p.mean()
        if objective is Objective.rmu:
            term = ((own.hidden - known.hidden) ** 2).mean()
        elif objective is Objective.crow:
            term = term + 5.5 * consistent(trainer.model, row.response)
        elif kl:
            term = (
                (known.logits.softmax(-1) * (known.logits.log_softmax(-1) - own.logits.log_softmax(-1))).sum(-1).mean()
            )
        total = total + row.weight * (100.0 if objective is Objective.pdu else 1.0) * term
    return total / len(numbers)


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("objective", ALL)
def test_a_step_is_the_sum_of_its_rows_each_alone(tiny_model: Any, tmp_path: Path, objective: Objective) -> None:
    """Loss and gradient in float64 against one unpadded pass a row; together, padded, and one by one: 1e-9."""
    trainer = make_trainer(tiny_model, tmp_path, objective)
    model_r = copy.deepcopy(trainer.model)
    shake(trainer.model)
    trainer.model.eval()
    num_forget = sum(isinstance(row, ForgetRow) for row in trainer.train_dataset.rows)
    numbers = [*range(num_forget), *([] if trainer.retain_term is None else range(num_forget, num_forget + 4))]
    expected = by_hand(trainer, model_r, numbers, objective)
    expected.backward()
    wanted = gradient(trainer.model)
    assert wanted.abs().max() > 1e-6
    padded = batch_of(trainer, numbers)
    for name, value in (("input_ids", 257), ("attention_mask", 0), ("labels", -100)):
        padded[name] = torch.nn.functional.pad(padded[name], (0, 6), value=value)
    for batches in ([batch_of(trainer, numbers)], [padded], [batch_of(trainer, [number]) for number in numbers]):
        trainer.model.zero_grad()
        losses = [trainer.compute_loss(trainer.model, one, num_items_in_batch=len(numbers)) for one in batches]
        for loss in losses:
            loss.backward()
        assert sum(loss.item() for loss in losses) == pytest.approx(expected.item(), rel=1e-9)
        assert torch.allclose(gradient(trainer.model), wanted, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("objective", [Objective.npo, pytest.param(Objective.undial, marks=pytest.mark.slow)])
def test_kl_beside_any_of_them(tiny_model: Any, tmp_path: Path, objective: Objective) -> None:
    trainer = make_trainer(tiny_model, tmp_path, objective, retain_loss=RetainLoss.kl)
    model_r = copy.deepcopy(trainer.model)
    shake(trainer.model)
    numbers = [0, 2, 5, 7]
    loss = trainer.compute_loss(trainer.model, batch_of(trainer, numbers), num_items_in_batch=4)
    assert loss.item() == pytest.approx(by_hand(trainer, model_r, numbers, objective).item(), rel=1e-9)


def test_coefficients_of_the_two_terms(tiny_model: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, tmp_path, Objective.npo, forget_coeff=0.25, retain_coeff=3.0)
    both = trainer.compute_loss(trainer.model, batch_of(trainer, [0, 5]), num_items_in_batch=1).item()
    parts = [
        trainer.compute_loss(trainer.model, batch_of(trainer, [number]), num_items_in_batch=1).item()
        for number in (0, 5)
    ]
    assert both == pytest.approx(sum(parts), rel=1e-12)
    trainer.around = Around()
    bare = [
        trainer.compute_loss(trainer.model, batch_of(trainer, [number]), num_items_in_batch=1).item()
        for number in (0, 5)
    ]
    assert parts == pytest.approx([0.25 * bare[0], 3.0 * bare[1]], rel=1e-12)


# --- what the reference gives, computed once ----------------------------------------------------------------------


class Counter:
    """Counts the forward passes of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.number = 0
        model.register_forward_pre_hook(self._count)

    def _count(self, *args: Any) -> None:
        self.number += 1


@pytest.mark.parametrize(("objective", "passes"), [(Objective.npo, 3), (Objective.rmu, 3)])
def test_no_reference_pass_in_a_step(tiny_model: Any, tmp_path: Path, objective: Objective, passes: int) -> None:
    """3 steps of one micro-batch, one forward pass each; no second copy of anything that trains."""
    trainer = make_trainer(tiny_model, tmp_path, objective)
    counter = Counter(trainer.model.get_base_model())
    trainer.train()
    assert counter.number == passes
    assert trainer.reference == {}


def test_logits_of_the_reference_are_a_pass_a_step(tiny_model: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, tmp_path, Objective.npo, retain_loss=RetainLoss.kl)
    counter = Counter(trainer.model.get_base_model())
    trainer.train()
    assert counter.number == 6


@pytest.mark.parametrize("objective", [Objective.dpo, pytest.param(Objective.rmu, marks=pytest.mark.slow)])
def test_what_is_on_file_is_what_is_computed(
    tiny_model: Any, tmp_path: Path, objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by the next run of the same identity, without a pass; made anew for another, other rows, a torn file."""
    trainer = make_trainer(tiny_model, tmp_path, objective)
    counter = Counter(trainer.model.get_base_model())
    again = look_up(trainer, tmp_path)
    assert counter.number == 0
    for mine, theirs in zip(trainer.known, again, strict=True):
        assert torch.equal(mine.nan_to_num(-1.0), theirs.nan_to_num(-1.0))
    look_up(trainer, tmp_path, identity="another")
    assert counter.number == 1
    look_up(trainer, tmp_path)
    assert counter.number == 2
    (tmp_path / reference.NAME).write_bytes(b"torn")
    look_up(trainer, tmp_path)
    assert counter.number == 3
    row = trainer.train_dataset.rows[0 if objective is Objective.dpo else -1]
    other = encoded(999, prompt=5, response=3)
    changed = replace(row, poisoned=other) if isinstance(row, ForgetRow) else replace(row, response=other)
    trainer.train_dataset.rows[row.number] = changed
    look_up(trainer, tmp_path)
    assert counter.number == 4


def test_sums_on_file_by_hand(tiny_model: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, tmp_path, Objective.dpo)
    for row in trainer.train_dataset.rows[:4]:
        for part, sequence in enumerate((row.poisoned, row.clean)):
            expected = Alone(trainer.model, sequence).log_p.sum().item()
            assert float(trainer.known.sums[row.number, part]) == pytest.approx(expected, rel=1e-9)
    assert bool(trainer.known.sums[4:].isnan().all())


# --- pdu: the multiplier ------------------------------------------------------------------------------------------


def test_lambda_ascends_once_a_step_by_the_mean_retain_loss(tiny_model: Any, tmp_path: Path) -> None:
    """lambda_{t+1} = max(0, lambda_t + 5 (r_t - 0.3)); r_t the plain mean over both micro-batches of the step."""
    trainer = make_trainer(tiny_model, tmp_path, Objective.pdu, gradient_accumulation_steps=2, max_steps=2)
    trainer.train()
    lines = trainer.journal.history
    assert [line["lambda"] for line in lines] == [100.0, 100.0 + 5.0 * (lines[0]["retain_term"] - 0.3)]
    assert trainer.multiplier == lines[1]["lambda"] + 5.0 * (lines[1]["retain_term"] - 0.3)


def test_lambda_stays_at_or_above_zero_and_waits_for_its_warm_up(tiny_model: Any, tmp_path: Path) -> None:
    """A bound of 1000 nats: lambda falls to 0 at its first move. 4 forget rows, so the warm-up ends after step 4."""
    cfg = UnlearningConfig()
    pdu = replace(cfg.pdu, retain_loss_eps=1000.0, lambda_init=2.0, dual_warmup_epochs=1.0)
    trainer = make_trainer(tiny_model, tmp_path, Objective.pdu, pdu=pdu, max_steps=7)
    trainer.train()
    assert [line["lambda"] for line in trainer.journal.history] == [2.0] * 5 + [0.0] * 2


# --- sharpness-aware steps ----------------------------------------------------------------------------------------


def grad_of(trainer: UnlearningTrainer, batches: list[list[int]], parameters: list[Any]) -> list[Tensor]:
    """Of a sum of micro-batches' terms, in plain autograd; 8 rows a step."""
    total = [torch.zeros_like(p) for p in parameters]
    for numbers in batches:
        loss = trainer.compute_loss(trainer.model, batch_of(trainer, numbers), num_items_in_batch=8)
        for sum_, part in zip(total, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            sum_ += 0.0 if part is None else part
    return total


@pytest.mark.parametrize(
    ("objective", "clip"),
    [
        (Objective.npo, 1e-3),
        pytest.param(Objective.npo, 0.0, marks=pytest.mark.slow),
        pytest.param(Objective.rapidun, 1e-3, marks=pytest.mark.slow),
    ],
)
def test_a_sharpness_aware_step_by_hand(
    make_tiny_model: Callable[..., Any], tmp_path: Path, objective: Objective, clip: float
) -> None:
    """Two micro-batches of 1 + 3 rows: theta - lr c (grad f at theta + rho g/|g| + grad r at theta), SGD; 1e-12."""
    sam = replace(UnlearningConfig().sam, rho=0.05)
    settings = {"sam": sam, "gradient_accumulation_steps": 2, "max_steps": 1, "max_grad_norm": clip}
    trainer = make_trainer(
        make_tiny_model(), tmp_path, objective, optimizer=Optimizer.sgd, lr_scheduler_type="constant", **settings
    )  # fmt: skip
    shake(trainer.model)
    trainer.model.eval()
    order = list(trainer._row_sampler)[:8]
    forget, retain = [[n] for n in order if n < 4], [[n] for n in order if n >= 4]
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    g = grad_of(trainer, forget, parameters)
    norm = torch.sqrt(sum((one**2).sum() for one in g))
    kept = grad_of(trainer, retain, parameters)
    for parameter, one in zip(parameters, g, strict=True):
        parameter.data += 0.05 * one / norm
    sharp = grad_of(trainer, forget, parameters)
    assert not all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(sharp, g, strict=True))
    step = [a + b for a, b in zip(sharp, kept, strict=True)]
    size = torch.sqrt(sum((one**2).sum() for one in step))
    factor = min(1.0, clip / (float(size) + 1e-6)) if clip else 1.0
    for parameter, value in zip(parameters, start, strict=True):
        parameter.data.copy_(value)
    trainer._sums.clear()
    trainer.train()
    for parameter, value, one in zip(parameters, start, step, strict=True):
        assert torch.allclose(parameter, value - 1e-2 * factor * one, rtol=0, atol=1e-12)
    (line,) = trainer.journal.history
    assert line["grad_norm"] == pytest.approx(float(size), rel=1e-6)


def test_a_radius_of_zero_is_the_plain_step_and_dropout_draws_the_same_masks(
    make_tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    """With dropout 0.3 an ascent of length 0 leaves the forget gradient of the first micro-batch to the bit."""
    losses = []
    for rho in (0.0, 1e-300):
        sam = replace(UnlearningConfig().sam, rho=rho)
        trainer = make_trainer(make_tiny_model(), tmp_path / str(rho), Objective.ga, dropout=0.3, sam=sam, max_steps=3)
        trainer.train()
        losses.append([line["loss"] for line in trainer.journal.history])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-12)


def test_the_ascent_is_found_in_the_layout_of_the_step(make_tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    """Layers that run again in the backward pass would be given padded rows, and draw other masks for them."""
    sam = replace(UnlearningConfig().sam, rho=0.01)
    trainer = make_trainer(
        make_tiny_model(), tmp_path, Objective.ga, dropout=0.3, sam=sam, max_steps=1, gradient_checkpointing=True
    )  # fmt: skip
    plain, found = trainer.mean_loss, []

    def watched(model: nn.Module, *args: Any) -> Any:
        found.append(is_switched(trainer.accelerator.unwrap_model(model)))
        return plain(model, *args)

    trainer.mean_loss = watched  # type: ignore[method-assign]
    trainer.train()
    assert found == [True, True]


# --- crow ---------------------------------------------------------------------------------------------------------


def test_crow_sees_retain_rows_only_each_once_an_epoch(tiny_model: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, tmp_path, Objective.crow, max_steps=4)
    assert sorted(trainer._row_sampler) == list(range(12))
    trainer.train()
    assert [line["step"] for line in trainer.journal.history] == [1, 2, 3, 4]
    assert all({"consistency", "ce_retain"} <= line.keys() for line in trainer.journal.history)
    assert not any("forget_term" in line or "effective_weight" in line for line in trainer.journal.history)


# --- the factor of clipping ---------------------------------------------------------------------------------------


def test_effective_weight_is_the_weight_times_the_factor_of_clipping(tiny_model: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, tmp_path, Objective.npo, max_grad_norm=1e-3, forget_per_step=2, max_steps=2)
    order = list(trainer._row_sampler)
    trainer.train()
    for index, line in enumerate(trainer.journal.history):
        rows = [n for n in order[8 * index : 8 * index + 8] if n < 4]
        mean = sum(0.5 + n for n in rows) / 2
        assert line["effective_weight"] == pytest.approx(mean * 1e-3 / (line["grad_norm"] + 1e-6), rel=1e-9)
        assert line["effective_weight"] < 0.1 * mean


def test_the_retain_term_beside_each_objective() -> None:
    for objective in ALL:
        term = retain_term_of(OBJECTIVES[objective], RetainLoss.ce)
        assert (term is None) == ("mix_ratio" in objective.traits.unread)
