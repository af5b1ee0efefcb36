"""Around the closed forms: caps, rows without a clean response, the reference's sums, errors, the catalogue."""

import subprocess
import sys
from dataclasses import fields
from typing import Any

import numpy
import pytest
import torch

import rapidun
from rapidun.config.objectives import Crow, Divergence, Pdu
from rapidun.config.unlearning import Objective, UnlearningConfig
from rapidun.models.packed import cross_entropy, pack
from rapidun.stages.unlearning.objectives.activation import direction
from rapidun.stages.unlearning.objectives.base import Coefficients, ForgetOutputs, Reference, Responses
from rapidun.stages.unlearning.objectives.catalogue import OBJECTIVES, hyperparameters
from rapidun.stages.unlearning.objectives.consistency import consistency, perturbation
from rapidun.stages.unlearning.objectives.dual import ascend
from rapidun.stages.unlearning.objectives.terms import hyperparameters_of, needs
from tests.stages.unlearning.objectives import slow
from tests.stages.unlearning.objectives.conftest import Batch, make_batch

WITH_TERMS = [one.name for one in OBJECTIVES if OBJECTIVES[one].forget is not None]
PUSHING = [name for name in WITH_TERMS if name != "idk_sft"]


def responses(batch: Batch, *, clean: bool = False, sums: bool = False) -> Responses:
    """What the trainer hands to an objective."""
    prefix = "clean_" if clean else ""
    labels = getattr(batch, f"{prefix}labels")
    logits, reference = (getattr(batch, f"{prefix}{name}") for name in ("logits", "ref_logits"))
    tokens = pack(logits, labels, None if clean else batch.hidden)
    known = pack(reference, labels)
    found = Responses(cross_entropy(tokens), tokens)
    return found._replace(**({"reference_sums": known.sums(known.log_probs())} if sums else {"reference": known}))


def test_importing_the_package_and_its_functions_brings_no_torch() -> None:
    code = "import sys, rapidun; rapidun.forget_terms, rapidun.retain_terms; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_objective_has_its_section_and_its_hyperparameters() -> None:
    cfg = UnlearningConfig()
    sections = {one.name for one in OBJECTIVES if one.traits.section}
    assert sections == {"npo", "simnpo", "dpo", "rmu", "undial", "wga", "satimp", "ceu", "pdu", "flat", "crow"}
    for one in OBJECTIVES:
        cfg.objective = one
        assert hyperparameters(cfg) == (getattr(cfg, one.name) if one.name in sections else Coefficients())
    assert set(hyperparameters_of(Objective.rmu)) == {"steering_coeff", "seed", "loss_cap", "direction"}
    assert set(hyperparameters_of(Objective.satimp)) == {"b1", "b2", "loss_cap"}
    assert set(hyperparameters_of(Objective.ga)) == {"ascent_alpha", "loss_cap"}
    assert hyperparameters_of(Objective.idk_sft) == {}


def test_what_each_objective_must_be_given() -> None:
    methods = {one.name: method for one, method in OBJECTIVES.items()}
    assert {name for name, method in methods.items() if method.reference is Reference.sums} == {"npo", "dpo"}
    assert {name for name, method in methods.items() if method.reference is Reference.logits} == {"undial"}
    assert {name for name, method in methods.items() if not method.retain} == {"ga", "ceu", "flat"}
    assert {name for name, method in methods.items() if method.hidden} == {"rmu"}
    assert {name for name, method in methods.items() if method.dual} == {"pdu"}
    assert {name for name, method in methods.items() if method.own_retain} == {"rmu", "crow"}
    assert {name for name, method in methods.items() if method.idk} == {"idk_sft", "dpo", "flat"}
    crow = methods["crow"]
    assert crow.forget is None and crow.consistency and not (crow.poisoned or crow.clean)
    # the traits and the methods say the same
    for one, method in OBJECTIVES.items():
        assert ("mix_ratio" in one.traits.unread) == (not method.retain)
        assert ("retain_loss" in one.traits.unread) == (not method.retain or method.own_retain is not None)
        assert ("idk_response" in one.traits.unread) == (not method.idk)
        assert ("loss_cap" in one.traits.unread) == (not method.poisoned)
        assert ("retain_coeff" in one.traits.unread) == (not method.retain or method.dual)
    assert needs(Objective.dpo) == ["ref_logits", "clean_logits", "clean_labels", "clean_ref_logits"]
    assert needs(Objective.rapidun) == needs(Objective.simnpo) == []


@pytest.mark.parametrize("name", PUSHING)
def test_a_row_past_the_cap_has_no_gradient_and_the_others_are_untouched(name: str, batch: Batch) -> None:
    logits = batch.logits.clone().requires_grad_()
    clean = batch.clean_logits.clone().requires_grad_()
    given = batch._replace(logits=logits, clean_logits=clean)
    losses = rapidun.retain_terms("ce", logits, batch.labels).detach()
    cap = float(losses[losses > 0].median())
    hidden = batch.hidden.clone().requires_grad_()
    inputs = given._replace(hidden=hidden).inputs
    rapidun.forget_terms(name, logits, batch.labels, **inputs, loss_cap=cap).sum().backward()
    leaves = [leaf.grad for leaf in (logits, hidden) if leaf.grad is not None]
    capped = losses > cap
    assert capped.any() and not capped.all()
    assert all(not gradient[capped].any() for gradient in leaves)
    # rapidun goes on learning the clean response; the others stop altogether
    if clean.grad is not None:
        assert clean.grad[capped].any() == (name == "rapidun")
    free = [values[~capped].clone().requires_grad_() for values in (batch.logits, batch.hidden)]
    rest = Batch(*(values[~capped] for values in batch))._replace(logits=free[0], hidden=free[1])
    rapidun.forget_terms(name, free[0], rest.labels, **rest.inputs).sum().backward()
    alone = [leaf.grad for leaf in free if leaf.grad is not None]
    for gradient, wanted in zip(leaves, alone, strict=True):
        assert torch.allclose(gradient[~capped], wanted, rtol=1e-12)


def test_terms_say_which_rows_are_capped(batch: Batch) -> None:
    losses = rapidun.retain_terms("ce", batch.logits, batch.labels)
    outputs = ForgetOutputs(responses(batch), responses(batch, clean=True), torch.ones(5, dtype=torch.bool))
    for one, method in OBJECTIVES.items():
        if method.forget is None or not method.poisoned:
            continue
        hyper = (
            Coefficients(loss_cap=2.5) if not one.traits.section else hyperparameters(UnlearningConfig(objective=one))
        )
        found = method.terms(outputs, hyper, loss_cap=2.5)
        assert torch.equal(found.capped, losses > 2.5), one
        free = method.terms(outputs, hyperparameters(UnlearningConfig(objective=one)))
        assert not free.capped.any()


@pytest.mark.parametrize("name", ["rapidun", "dpo", "flat"])
def test_rows_without_a_clean_response_are_those_of_an_empty_one(name: str, batch: Batch) -> None:
    """C = 3 of F = 5 rows, in the rows' order, against labels that are all -100."""
    has = torch.tensor([True, False, True, False, True])
    some = Batch(*(values[has] for values in batch))
    one = Objective[name]
    outputs = ForgetOutputs(responses(batch), responses(some, clean=True), has)
    found = OBJECTIVES[one].terms(outputs, hyperparameters(UnlearningConfig(objective=one))).values
    labels = batch.clean_labels.masked_fill(~has[:, None], -100)
    inputs = batch._replace(clean_labels=labels).inputs
    wanted = rapidun.forget_terms(name, batch.logits, batch.labels, **inputs)
    assert torch.allclose(found, wanted, rtol=1e-12)
    without = OBJECTIVES[one].terms(outputs._replace(clean=None, has_clean=torch.zeros(5, dtype=torch.bool)),
                                    hyperparameters(UnlearningConfig(objective=one))).values  # fmt: skip
    assert torch.allclose(without[~has], found[~has], rtol=1e-12)


@pytest.mark.parametrize("name", ["npo", "dpo"])
def test_sums_under_the_reference_are_as_good_as_its_logits(name: str, batch: Batch) -> None:
    one = Objective[name]
    hyper, has = hyperparameters(UnlearningConfig(objective=one)), torch.ones(5, dtype=torch.bool)
    a, b = (
        OBJECTIVES[one]
        .terms(ForgetOutputs(responses(batch, sums=sums), responses(batch, clean=True, sums=sums), has), hyper)
        .values
        for sums in (False, True)
    )
    assert torch.allclose(a, b, rtol=1e-12)


def test_dpo_without_a_winner_is_half_beta_times_npo(batch: Batch) -> None:
    """-log sigmoid(-b (S - S^r)) = (b/2) * -(2/b) log sigmoid(-b (S - S^r))."""
    labels = torch.full_like(batch.clean_labels, -100)
    inputs = batch._replace(clean_labels=labels).inputs
    a = rapidun.forget_terms("dpo", batch.logits, batch.labels, **inputs, beta=0.6)
    b = rapidun.forget_terms("npo", batch.logits, batch.labels, ref_logits=batch.ref_logits, beta=0.6)
    assert torch.allclose(a, 0.3 * b, rtol=1e-12)


def test_npo_starts_at_two_log_two_over_beta_with_half_the_gradient_of_ascent() -> None:
    """At the reference S = S^r: the term is (2/b) log 2, its gradient that of S_i = -n_i l_i."""
    batch = make_batch(0)
    logits = batch.logits.clone().requires_grad_()
    found = rapidun.forget_terms("npo", logits, batch.labels, ref_logits=batch.logits)
    assert found.tolist() == pytest.approx([20 * 0.6931471805599453] * 5, rel=1e-12)
    found.sum().backward()
    ascent = batch.logits.clone().requires_grad_()
    counts = (batch.labels != -100).sum(dim=1)
    (-counts * rapidun.retain_terms("ce", ascent, batch.labels)).sum().backward()
    assert logits.grad is not None and ascent.grad is not None
    assert torch.allclose(logits.grad, ascent.grad, rtol=1e-10, atol=1e-14)


def test_weights_of_tokens_at_power_zero_are_gradient_ascent(batch: Batch) -> None:
    ascent = rapidun.forget_terms("ga", batch.logits, batch.labels)
    assert torch.allclose(rapidun.forget_terms("wga", batch.logits, batch.labels, beta=0.0), ascent, rtol=1e-12)
    assert torch.allclose(
        rapidun.forget_terms("satimp", batch.logits, batch.labels, b1=0.0, b2=0.0), ascent, rtol=1e-12
    )


def test_rmu_direction_is_one_for_a_seed_whatever_else_draws() -> None:
    first = direction(64, seed=7)
    torch.rand(5)
    assert torch.equal(direction(64, seed=7), first)
    assert not torch.equal(direction(64, seed=8), first)
    assert first.norm().item() == pytest.approx(1.0, rel=1e-12)
    assert (first >= 0).all()
    batch = make_batch(0)
    for seed in (0, 9):
        found = rapidun.forget_terms("rmu", batch.logits, batch.labels, hidden=batch.hidden, seed=seed)
        named = rapidun.forget_terms(
            "rmu", batch.logits, batch.labels, hidden=batch.hidden, direction=3.0 * direction(4, seed=seed)
        )
        assert torch.allclose(found, named, rtol=1e-12)


def test_consistency_is_that_of_the_closed_form_and_ignores_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(3, 5, 4, generator=generator, dtype=torch.float64) for _ in range(4)]
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    found = consistency(layers, mask)
    wanted = [slow.consistency([one[row].tolist() for one in layers], mask[row].tolist()) for row in range(3)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-12)
    odd = [one.masked_fill(mask[:, :, None] == 0, 1e6) for one in layers]
    assert torch.equal(consistency(odd, mask), found)
    # the same direction in every layer: nothing turns
    assert consistency([layers[0], 2 * layers[0], 0.5 * layers[0]], mask).abs().max() <= 1e-12
    # the mean over padding too, as in the public code, is another number
    everywhere = slow.consistency([one[0].tolist() for one in layers], [1] * 5)
    assert abs(everywhere - wanted[0]) > 1e-3


def test_perturbation_moves_each_entry_by_epsilon_against_consistency() -> None:
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    turn = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])

    def layers(given: torch.Tensor) -> list[torch.Tensor]:
        return [given, given @ turn, (given @ turn).tanh()]

    moved = perturbation(embeddings, layers(embeddings), mask, epsilon=0.1)
    assert not moved.requires_grad
    assert torch.equal(moved.abs(), 0.1 * mask[:, :, None].double().expand_as(moved))
    # every entry by itself raises the loss
    for place in mask.nonzero().tolist():
        for d in range(4):
            step = torch.zeros_like(moved)
            step[place[0], place[1], d] = moved[place[0], place[1], d] * 1e-4
            here = consistency(layers(embeddings.detach()), mask).sum()
            assert consistency(layers(embeddings.detach() + step), mask).sum() > here
    # a row's step is its own, whatever the batch
    alone = embeddings[:1].detach().requires_grad_()
    assert torch.equal(perturbation(alone, layers(alone), mask[:1], epsilon=0.1), moved[:1])


def test_dual_ascent_by_hand() -> None:
    """100 + 5 (0.5 - 0.3) = 101; 1 + 5 (0 - 0.3) < 0 is held at 0."""
    assert ascend(100.0, 0.5, Pdu()) == pytest.approx(101.0)
    assert ascend(1.0, 0.0, Pdu()) == 0.0
    assert ascend(2.0, 0.3, Pdu(dual_step_size=7.0)) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("nope", {}, ["npo", "simnpo", "'nope'"]),
        ("crow", {}, ["need an objective among", "no forget term"]),
        ("npo", {"k": 1}, ["takes no k", "beta=0.1", "ref_logits"]),
        ("idk_sft", {"loss_cap": 1.0}, ["takes no loss_cap"]),
        ("npo", {"ref_logits": None}, ["need ref_logits", "npo takes the inputs logits, labels, ref_logits"]),
        ("rmu", {"hidden": None}, ["need hidden"]),
        ("dpo", {"clean_ref_logits": None}, ["need clean_ref_logits"]),
        ("rapidun", {"clean_labels": None}, ["clean_logits and clean_labels"]),
        ("simnpo", {"beta": 0.0}, ["simnpo.beta > 0"]),
        ("ga", {"direction": torch.ones(4)}, ["takes no direction"]),
        ("npo", {"ref_logits": torch.zeros(5, 7, 10)}, ["ref_logits"]),
        ("flat", {"clean_logits": torch.zeros(2, 5, 11), "clean_labels": torch.zeros(2, 5).long()}, ["5 rows"]),
        (
            "flat",
            {"clean_labels": torch.full((5, 5), 11)},
            ["clean_labels of 0 to 10", "got 11 in row 0 at position 1"],
        ),
        ("flat", {"clean_labels": torch.zeros(5, 5)}, ["clean_labels of a whole type", "float32"]),
        ("rapidun", {"clean_logits": [0.0]}, ["clean_logits as a torch.Tensor, got list"]),
        ("npo", {"ref_logits": torch.full((5, 7, 11), torch.inf)}, ["ref_logits below +inf", "rows [0, 1, 2, 4]"]),
        ("npo", {"beta": "0.1"}, ["beta as a number"]),
        ("npo", {"beta": torch.ones(2)}, ["beta as a number"]),
        ("ceu", {"k": 1.5}, ["k as a whole number"]),
        ("rapidun", {"ascent_alpha": float("inf")}, ["ascent_alpha=inf"]),
        ("ga", {"loss_cap": -1.0}, ["loss_cap > 0"]),
        ("rmu", {"direction": torch.zeros(4)}, ["not all 0"]),
        ("rmu", {"direction": torch.ones(1)}, ["D = 4"]),
    ],
    ids=str,
)
def test_errors_say_what_the_objective_takes(name: str, given: dict[str, Any], words: list[str], batch: Batch) -> None:
    with pytest.raises(ValueError) as caught:
        rapidun.forget_terms(name, batch.logits, batch.labels, **batch.inputs | given)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("label", [11, -1])
def test_labels_outside_the_vocabulary_are_named(label: int, batch: Batch) -> None:
    labels = batch.labels.clone()
    labels[2, 4] = label
    for call in (lambda: rapidun.forget_terms("ga", batch.logits, labels),
                 lambda: rapidun.retain_terms("ce", batch.logits, labels)):  # fmt: skip
        with pytest.raises(ValueError, match=rf"0 to 10 .* got {label} in row 2 at position 4"):
            call()
    # nothing predicts the first position
    labels = batch.labels.clone()
    labels[:, 0] = label
    assert torch.equal(rapidun.forget_terms("ga", batch.logits, labels), terms_of_ga(batch))


def terms_of_ga(batch: Batch) -> torch.Tensor:
    return rapidun.forget_terms("ga", batch.logits, batch.labels)


def test_what_an_objective_does_not_read_is_not_looked_at(batch: Batch) -> None:
    odd = {"ref_logits": torch.ones(1), "clean_labels": torch.ones(3, 2), "hidden": torch.ones(2, 5, 7, 4)}
    assert torch.equal(rapidun.forget_terms("ga", batch.logits, batch.labels, **odd), terms_of_ga(batch))
    own = rapidun.retain_terms("ce", batch.logits, batch.labels, ref_logits=odd["ref_logits"], hidden=odd["hidden"])
    assert torch.equal(own, -terms_of_ga(batch))
    imitated = rapidun.forget_terms("idk_sft", batch.logits * torch.nan, batch.labels, **batch.inputs)
    assert torch.isfinite(imitated).all()


def test_hyperparameters_may_be_numbers_of_any_library(batch: Batch) -> None:
    wanted = rapidun.forget_terms("ceu", batch.logits, batch.labels, k=2)
    for k in (2.0, torch.tensor(2), numpy.int64(2)):
        assert torch.equal(rapidun.forget_terms("ceu", batch.logits, batch.labels, k=k), wanted)
    one = rapidun.forget_terms("simnpo", batch.logits, batch.labels, beta=numpy.float64(0.7))
    assert torch.equal(one, rapidun.forget_terms("simnpo", batch.logits, batch.labels, beta=0.7))


def test_retain_terms_say_what_they_take(batch: Batch) -> None:
    with pytest.raises(ValueError, match="ce, kl, activations"):
        rapidun.retain_terms("l2", batch.logits, batch.labels)
    with pytest.raises(ValueError, match="need ref_logits for kind=kl"):
        rapidun.retain_terms("kl", batch.logits, batch.labels)


def test_divergences_may_be_named(batch: Batch) -> None:
    by_name = rapidun.forget_terms("flat", batch.logits, batch.labels, **batch.inputs, divergence="js")
    given = rapidun.forget_terms("flat", batch.logits, batch.labels, **batch.inputs, divergence=Divergence.js)
    assert torch.equal(by_name, given)
    with pytest.raises(ValueError, match="tv, kl, js, pearson"):
        rapidun.forget_terms("flat", batch.logits, batch.labels, **batch.inputs, divergence="hellinger")


def test_crow_has_the_authors_settings() -> None:
    assert {one.name: one.default for one in fields(Crow)} == {"alpha": 5.5, "epsilon": 0.1}
