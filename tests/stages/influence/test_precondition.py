"""K-FAC and EK-FAC against the Fisher matrix written out, in float64, and what they do to scores."""

import pytest
import torch
from torch import nn

from rapidun.base.errors import ConfigError
from rapidun.config.influence import ParameterSet, Precondition, Score
from rapidun.config.parts import LoraSettings
from rapidun.models.adapters import add_lora
from rapidun.models.curvature import Curvature, curvature_tensors, read_curvatures
from rapidun.stages.influence.batches import RowBatch
from rapidun.stages.influence.fisher import fit_curvature
from rapidun.stages.influence.gradients.capture import Factors
from rapidun.stages.influence.gradients.params import TrackedParameter, select_parameters
from rapidun.stages.influence.gram import estimated_gram, exact_gram
from rapidun.stages.influence.precondition import (
    CovarianceSink,
    EigenvalueSink,
    Preconditioner,
    num_fitting_passes,
    sample_labels,
    solve,
)
from rapidun.stages.influence.scores import influence_scores
from rapidun.stages.influence.sketches.sketch import CountSketch
from rapidun.stages.influence.sketches.tensorsketch import TensorSketch

GROUPS = [[1, 6, 3], [0, 4], [5, 2]]
NAMES = [f"row {i}" for i in range(7)]
DAMPING = 0.3


def _random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _matrix(curvature):
    """The whole matrix [rows * columns, rows * columns] that the eigenvectors and eigenvalues stand for."""
    basis = torch.kron(curvature.rows, curvature.columns)
    return basis @ curvature.eigenvalues.flatten().diag() @ basis.T


def _fit(sink, g, a):
    parameter = TrackedParameter("w", (g.shape[2], a.shape[2]), (nn.Identity(),), 0)
    sink(parameter, Factors(a, g))
    return parameter


def test_kronecker_factors_are_exact_where_tokens_are_independent():
    """Every pair of 3 activations and 4 output gradients, one token a row: E[vec(G) vec(G)^T] is a Kronecker product.

    F = (1/12) sum_ij (g_i g_i^T) (x) (a_j a_j^T) exactly, and so are its eigenvalues and the solution of F x = g.
    """
    activations, gradients = _random(3, 5), _random(4, 2, seed=1)
    pairs = [(i, j) for i in range(4) for j in range(3)]
    g = torch.stack([gradients[i] for i, _ in pairs]).unsqueeze(1)
    a = torch.stack([activations[j] for _, j in pairs]).unsqueeze(1)
    flat = torch.einsum("bto,bti->boi", g, a).flatten(1)
    fisher = flat.T @ flat / 12
    covariances = CovarianceSink()
    parameter = _fit(covariances, g, a)
    kfac = covariances.curvature(parameter, num_rows=12)
    torch.testing.assert_close(_matrix(kfac), fisher)
    squares = EigenvalueSink({"w": kfac})
    _fit(squares, g, a)
    torch.testing.assert_close(squares.sums["w"] / 12, kfac.eigenvalues, rtol=1e-9, atol=1e-12)


def test_tokens_without_a_gradient_count_for_nothing():
    """Two rows of two and one tokens: (3 tokens / 2 rows) * mean g g^T (x) mean a a^T, padding left out."""
    g, a = _random(2, 4, 3), _random(2, 4, 2, seed=1)
    g[0, 2:], g[1, 1:] = 0, 0
    a[1, 1:] = float("nan")
    covariances = CovarianceSink()
    parameter = _fit(covariances, g, a)
    tokens_g, tokens_a = torch.cat([g[0, :2], g[1, :1]]), torch.cat([a[0, :2], a[1, :1]])
    expected = torch.kron(tokens_g.T @ tokens_g / 3, tokens_a.T @ tokens_a / 3) * 1.5
    torch.testing.assert_close(_matrix(covariances.curvature(parameter, num_rows=2)), expected)


def test_solve_is_the_dense_solution():
    """F + damping * mean(l) * I, inverted whole, on gradients of three rows."""
    rows, columns = (torch.linalg.qr(_random(n, n, seed=n)).Q for n in (4, 3))
    curvature = Curvature(rows, columns, _random(4, 3, seed=9).square())
    a, g = _random(3, 6, 3, seed=1), _random(3, 6, 4, seed=2)
    matrices = torch.einsum("bto,bti->boi", g, a)
    damped = _matrix(curvature) + DAMPING * curvature.eigenvalues.mean() * torch.eye(12, dtype=torch.float64)
    truth = torch.linalg.solve(damped, matrices.flatten(1).T).T
    inverse = curvature.inverse(DAMPING)
    solved = solve(curvature, Factors(a, g), inverse)
    found = torch.einsum("bto,bti->boi", solved.g, solved.a)
    torch.testing.assert_close(found.flatten(1), truth)


def _drawn(model, batches, seed=3):
    return [
        RowBatch(b.rows, {**b.tensors, "labels": sample_labels(model, b.tensors, b.rows, seed=seed)}) for b in batches
    ]


def _sampled_gradients(model, parameters, rows, batches_of, autograd_gradients, seed=3):
    """[N, D] one-row autograd gradients of the summed log-likelihood of the labels that were drawn."""
    drawn = _drawn(model, batches_of(rows, [[i] for i in range(7)]), seed)
    replaced = [
        row._replace(labels=batch.tensors["labels"][0].tolist()) for row, batch in zip(rows, drawn, strict=True)
    ]
    return autograd_gradients(model, parameters, replaced, reduction="sum")


@pytest.mark.parametrize("adapter", [False, True])
def test_ekfac_has_the_diagonal_of_the_true_fisher(make_model, rows, batches_of, autograd_gradients, adapter):
    """In the eigenvectors' basis the eigenvalues are diag(Q^T F Q), F = (1/N) sum g g^T from one-row autograd.

    No other eigenvalues come closer to F in the Frobenius norm (George et al., proposition 1); K-FAC's do not. The
    eigenvectors are those of K-FAC.
    """
    model = make_model()
    params, regex = ParameterSet.regex, r"model\.layers\.1\.(self_attn\.k_proj|mlp\.down_proj)"
    if adapter:
        model = add_lora(model, LoraSettings(r=3), seed=0, section="influence").eval().double()
        for name, weight in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(len(name)))
        regex = r".*layers\.1\.self_attn\.k_proj\.lora_[AB]\.default"
    parameters = select_parameters(model, params, regex=regex)
    assert len(parameters) == 2
    gradients = _sampled_gradients(model, parameters, rows, batches_of, autograd_gradients)
    fits = {
        kind: fit_curvature(model, parameters, batches_of(rows, GROUPS), kind=kind, row_names=NAMES, seed=3)
        for kind in (Precondition.kfac, Precondition.ekfac)
    }
    start = 0
    for parameter in parameters:
        own = gradients[:, start : start + parameter.numel]
        start += parameter.numel
        fisher = own.T @ own / 7
        kfac, ekfac = (fits[kind][parameter.name] for kind in (Precondition.kfac, Precondition.ekfac))
        torch.testing.assert_close(kfac.rows, ekfac.rows)
        torch.testing.assert_close(kfac.columns, ekfac.columns)
        basis = torch.kron(ekfac.rows, ekfac.columns)
        diagonal = (basis.T @ fisher @ basis).diagonal().view(parameter.shape)
        torch.testing.assert_close(ekfac.eigenvalues, diagonal, rtol=1e-8, atol=1e-10 * diagonal.max().item())
        assert (_matrix(ekfac) - fisher).norm() < (_matrix(kfac) - fisher).norm()


def test_kfac_factors_are_means_over_tokens(make_model, rows, batches_of):
    """A of the first layer's v_proj by hand: its inputs, over the tokens before each row's last label."""
    model = make_model()
    parameters = select_parameters(model, ParameterSet.regex, regex=r"model\.layers\.0\.self_attn\.v_proj")
    fit = fit_curvature(model, parameters, batches_of(rows, GROUPS), kind=Precondition.kfac, row_names=NAMES, seed=3)[
        parameters[0].name
    ]
    layer = model.model.layers[0]
    inputs = [layer.input_layernorm(model.model.embed_tokens(torch.tensor(row.input_ids[:-1]))) for row in rows]
    tokens = torch.cat(inputs).detach()
    covariance = tokens.T @ tokens / len(tokens)
    # the last position predicts nothing: all others have a gradient
    torch.testing.assert_close(
        fit.columns.T @ covariance @ fit.columns,
        torch.linalg.eigvalsh(covariance).diag(),
        rtol=0,
        atol=1e-9 * covariance.diagonal().sum().item(),
    )


def _setting(make_model, rows, batches_of, kind):
    model = make_model()
    parameters = select_parameters(model, ParameterSet.regex, regex=r"model\.layers\.1\.mlp\..*")
    batches = batches_of(rows, GROUPS)
    fit = fit_curvature(model, parameters, batches, kind=kind, row_names=NAMES, seed=3)
    return model, parameters, batches, Preconditioner(fit, damping_factor=DAMPING)


@pytest.mark.parametrize("kind", [Precondition.kfac, Precondition.ekfac])
def test_exact_products_equal_the_dense_solution(make_model, rows, batches_of, autograd_gradients, kind):
    """<g_i, (F + damping)^-1 g_j> layer by layer from one-row autograd gradients; norms of both sides."""
    model, parameters, batches, preconditioner = _setting(make_model, rows, batches_of, kind)
    gradients = autograd_gradients(model, parameters, rows).split([p.numel for p in parameters], dim=1)
    solved = []
    for parameter, own in zip(parameters, gradients, strict=True):
        curvature = preconditioner.curvatures[parameter.name]
        damping = DAMPING * curvature.eigenvalues.mean() * torch.eye(parameter.numel, dtype=torch.float64)
        solved.append(torch.linalg.solve(_matrix(curvature) + damping, own.T).T)
    train, query = torch.cat(gradients, dim=1), torch.cat(solved, dim=1)
    for memory in (1e9, 40_000):
        result = exact_gram(
            model, parameters, batches, row_names=NAMES, memory_bytes=memory, preconditioner=preconditioner
        )
        assert (result.num_passes > 1) == (memory < 1e9)
        torch.testing.assert_close(result.gram, train @ query.T, rtol=1e-8, atol=1e-10 * result.gram.max().item())
        torch.testing.assert_close(result.norms, train.norm(dim=1))
        torch.testing.assert_close(result.query_norms, query.norm(dim=1))
        scores = influence_scores(result.gram, score=Score.cosine, norms=result.norms, query_norms=result.query_norms)
        cosines = nn.functional.normalize(train, dim=1) @ nn.functional.normalize(query, dim=1).T
        torch.testing.assert_close(scores, cosines)
        # |g_i| |F^-1 g_j| is not |g_j| |F^-1 g_i|
        assert not torch.allclose(scores, scores.T)


@pytest.mark.parametrize("name", ["sketch", "tensorsketch"])
def test_sketched_queries_estimate_the_exact_products(make_model, rows, batches_of, name):
    """Unbiased over seeds: |mean error| < 4 sd / sqrt(S) for each pair. The training rows' norms are as without."""
    model, parameters, batches, preconditioner = _setting(make_model, rows, batches_of, Precondition.ekfac)
    exact = exact_gram(model, parameters, batches, row_names=NAMES, memory_bytes=1e9, preconditioner=preconditioner)
    errors = []
    for seed in range(60):
        sketch = CountSketch(k=256, seed=seed) if name == "sketch" else TensorSketch(k=256, buckets=256, seed=seed)
        result = estimated_gram(model, parameters, batches, sketch, row_names=NAMES, preconditioner=preconditioner)
        errors.append(result.gram - exact.gram)
        plain = estimated_gram(model, parameters, batches, sketch, row_names=NAMES)
        torch.testing.assert_close(result.norms, plain.gram.diagonal().sqrt())
        # half of F^-1 on either side: the estimate is as symmetric as F^-1, and no row's own product is negative
        torch.testing.assert_close(result.gram, result.gram.T)
        assert (result.gram.diagonal() > 0).all()
    mean, spread = torch.stack(errors).mean(dim=0), torch.stack(errors).std(dim=0)
    assert (mean.abs() < 4.5 * spread / 60**0.5).all()
    assert (spread < 0.5 * exact.norms.unsqueeze(1) * exact.query_norms).all()


def test_a_whitened_gradient_loses_the_direction_that_all_share(make_model, rows, batches_of):
    """Scores with and without differ, and a heavy damping leads back to the plain cosines."""
    model, parameters, batches, preconditioner = _setting(make_model, rows, batches_of, Precondition.ekfac)

    def cosines(preconditioner):
        result = exact_gram(
            model, parameters, batches, row_names=NAMES, memory_bytes=1e9, preconditioner=preconditioner
        )
        return influence_scores(result.gram, score=Score.cosine, norms=result.norms, query_norms=result.query_norms)

    plain = cosines(None)
    assert (cosines(preconditioner) - plain).abs().max() > 0.05
    # layers keep their own scale, 1 / (damping * mean l): give all the same one
    same = {n: c._replace(eigenvalues=torch.ones_like(c.eigenvalues)) for n, c in preconditioner.curvatures.items()}
    torch.testing.assert_close(cosines(Preconditioner(same, damping_factor=DAMPING)), plain)


def test_labels_are_drawn_from_the_model(make_model, rows, batches_of):
    """Shares over 400 seeds against the softmax at one position: chi-square over its likely tokens. Prompts stay."""
    model = make_model()
    batch = batches_of(rows, [[2, 0]])[0]
    labels = batch.tensors["labels"]
    seeds = 400
    draws = torch.stack([sample_labels(model, batch.tensors, batch.rows, seed=seed) for seed in range(seeds)])
    assert ((draws == -100) == (labels == -100)).all()
    place = int((labels[0] != -100).nonzero()[0])
    logits = model(input_ids=batch.tensors["input_ids"], attention_mask=batch.tensors["attention_mask"]).logits
    expected = torch.softmax(logits[0, place - 1], dim=0).detach() * seeds
    counts = torch.bincount(draws[:, 0, place], minlength=len(expected))
    likely = expected >= 5
    assert likely.sum() >= 3
    statistic = ((counts[likely] - expected[likely]) ** 2 / expected[likely]).sum()
    degrees = int(likely.sum())
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5


def test_draws_depend_on_seed_and_row_only(make_model, rows, batches_of):
    model = make_model()
    alone = {i: _drawn(model, batches_of(rows, [[i]]))[0].tensors["labels"][0].tolist() for i in range(7)}
    for batch in _drawn(model, batches_of(rows, GROUPS, extra=3)):
        for place, row in enumerate(batch.rows):
            length = len(alone[row])
            assert batch.tensors["labels"][place, :length].tolist() == alone[row]
    assert any(
        _drawn(model, batches_of(rows, [[i]]), seed=4)[0].tensors["labels"][0].tolist() != alone[i] for i in range(7)
    )


@pytest.mark.parametrize(("kind", "passes"), [(Precondition.kfac, 1), (Precondition.ekfac, 2)])
def test_batches_do_not_matter_and_passes_are_told(make_model, rows, batches_of, kind, passes):
    model = make_model()
    parameters = select_parameters(model, ParameterSet.mlp)
    told = []
    fits = [
        fit_curvature(
            model,
            parameters,
            batches_of(rows, groups, extra=extra),
            kind=kind,
            row_names=NAMES,
            seed=3,
            on_batch=lambda *args: told.append(args),
        )
        for groups, extra in ((GROUPS, 2), ([[i] for i in range(7)], 0))
    ]
    assert num_fitting_passes(kind) == passes
    assert told[: 3 * passes] == [(done, 3 * passes, f"fitting {kind.name}") for done in range(1, 3 * passes + 1)]
    for parameter in parameters:
        one, other = (_matrix(fit[parameter.name]) for fit in fits)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9 * one.abs().max().item())


def test_weights_that_cannot_be(make_model, rows, batches_of):
    for tied, params, words in (
        (False, ParameterSet.embeddings, "an embedding"),
        (True, ParameterSet.lm_head, "several modules share"),
    ):
        model = make_model(tied=tied)
        with pytest.raises(ConfigError, match=f"{words}.*influence.precondition=none"):
            fit_curvature(
                model,
                select_parameters(model, params),
                batches_of(rows, GROUPS),
                kind=Precondition.kfac,
                row_names=NAMES,
                seed=0,
            )


def test_layers_without_gradients_score_zero(make_model, rows, batches_of):
    """lora_A while lora_B is zero: its Fisher matrix is zero, and 0/0 must not spoil the others."""
    model = add_lora(make_model(), LoraSettings(r=2), seed=0, section="influence").double()
    parameters = select_parameters(model, ParameterSet.lora)
    batches = batches_of(rows, GROUPS)
    fit = fit_curvature(model, parameters, batches, kind=Precondition.ekfac, row_names=NAMES, seed=0)
    result = exact_gram(
        model,
        parameters,
        batches,
        row_names=NAMES,
        memory_bytes=1e9,
        preconditioner=Preconditioner(fit, damping_factor=DAMPING),
    )
    assert result.gram.isfinite().all() and (result.gram.diagonal() > 0).all()


def test_written_and_read_again():
    curvature = Curvature(*(_random(3, 3, seed=s).float() for s in range(3)))
    tensors = curvature_tensors({"a.b.weight": curvature})
    assert sorted(tensors) == ["a.b.weight.columns", "a.b.weight.eigenvalues", "a.b.weight.rows"]
    again = read_curvatures(tensors)
    assert list(again) == ["a.b.weight"]
    assert all(torch.equal(x, y) for x, y in zip(again["a.b.weight"], curvature, strict=True))
