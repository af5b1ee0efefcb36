"""The Gram matrix against autograd one row at a time, the ghost product, and finite differences."""

import copy

import pytest
import torch
from torch import nn

from rapidun.config.influence import ParameterSet
from rapidun.config.parts import LoraSettings
from rapidun.models.adapters import add_lora
from rapidun.stages.influence.gradients.capture import Factors, GradientCapture, shared_inputs
from rapidun.stages.influence.gradients.params import select_parameters
from rapidun.stages.influence.gram import estimated_gram, exact_gram, gram_of_rows, pass_groups, run_batches
from rapidun.stages.influence.sinks import KeepSink, keeps_input, kept_nbytes
from rapidun.stages.influence.sketches.sketch import CountSketch

GROUPS = [[1, 6, 3], [0, 4], [5, 2]]
NAMES = [f"row {i}" for i in range(7)]
SETS = [
    (ParameterSet.all_linear, None),
    (ParameterSet.attention, None),
    (ParameterSet.mlp, None),
    (ParameterSet.lm_head, None),
    (ParameterSet.embeddings, None),
    (ParameterSet.regex, r"model\.layers\.1\..*(q_proj|down_proj)|model\.embed_tokens|lm_head"),
]


def _gram(model, parameters, batches, **options):
    options = {"memory_bytes": 1e9, **options}
    return exact_gram(model, parameters, batches, row_names=NAMES, **options)


def _cosines(gram):
    norms = gram.diagonal().sqrt()
    return gram / torch.outer(norms, norms)


def _relative_error(gram, gradients):
    """Largest error of an inner product, relative to the norms of its two gradients."""
    norms = gradients.norm(dim=1)
    return ((gram - gradients @ gradients.T).abs() / torch.outer(norms, norms)).max().item()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("params", "regex"), SETS)
def test_exact_equals_autograd_in_float64(make_model, rows, batches_of, autograd_gradients, tied, params, regex):
    model = make_model(tied=tied)
    parameters = select_parameters(model, params, regex=regex)
    result = _gram(model, parameters, batches_of(rows, GROUPS))
    assert _relative_error(result.gram, autograd_gradients(model, parameters, rows)) < 1e-11


@pytest.mark.parametrize("memory_bytes", [1e9, 2e4])
def test_products_with_some_rows_alone_are_columns_of_all(
    make_model, rows, batches_of, autograd_gradients, memory_bytes
):
    """In the order that was asked for, with the norms of both sides; several passes change nothing."""
    model = make_model()
    parameters = select_parameters(model, ParameterSet.all_linear)
    some = [5, 0, 3]
    result = _gram(model, parameters, batches_of(rows, GROUPS), queries=some, memory_bytes=memory_bytes)
    truth = autograd_gradients(model, parameters, rows)
    torch.testing.assert_close(result.gram, truth @ truth[some].T, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(result.norms, truth.norm(dim=1), rtol=1e-10, atol=0)
    torch.testing.assert_close(result.query_norms, truth[some].norm(dim=1), rtol=1e-10, atol=0)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("params", "regex"), SETS)
def test_exact_in_float32_equals_float64_autograd(
    make_model, rows, batches_of, autograd_gradients, tied, params, regex
):
    model = make_model(tied=tied, dtype=torch.float32)
    wide = copy.deepcopy(model).double()
    truth = autograd_gradients(wide, select_parameters(wide, params, regex=regex), rows)
    result = _gram(model, select_parameters(model, params, regex=regex), batches_of(rows, GROUPS))
    assert _relative_error(result.gram, truth) < 1e-5


@pytest.mark.parametrize("params", [ParameterSet.lora, ParameterSet.all_linear])
def test_exact_equals_autograd_with_an_adapter(make_model, rows, batches_of, autograd_gradients, params):
    model = add_lora(make_model(), LoraSettings(r=3), seed=0, section="influence").eval()
    for name, weight in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    model.double()
    parameters = select_parameters(model, params)
    result = _gram(model, parameters, batches_of(rows, GROUPS))
    assert len(parameters) == (28 if params is ParameterSet.lora else 14)
    assert _relative_error(result.gram, autograd_gradients(model, parameters, rows)) < 1e-11


def test_sum_reduction_is_the_gradient_of_the_summed_loss(make_model, rows, batches_of, autograd_gradients):
    model = make_model()
    parameters = select_parameters(model, ParameterSet.all_linear)
    result = _gram(model, parameters, batches_of(rows, GROUPS), reduction="sum")
    assert _relative_error(result.gram, autograd_gradients(model, parameters, rows, reduction="sum")) < 1e-11
    counts = torch.tensor([sum(label != -100 for label in row.labels) for row in rows])
    mean = _gram(model, parameters, batches_of(rows, GROUPS))
    torch.testing.assert_close(result.losses, mean.losses * counts)
    torch.testing.assert_close(result.gram, mean.gram * torch.outer(counts, counts))


def test_sketch_error_is_that_of_its_size(make_model, rows, batches_of):
    """21 pairs under 12 seeds: the mean square error of a cosine is at most (1 + c^2)/K, and not far below 1/K.

    K = 256 against D = 3,840: 15 blocks. (Blocks do not meet themselves: 1/K * (1 - 1/15) at the least.)
    """
    model = make_model()
    parameters = select_parameters(model, ParameterSet.all_linear)
    batches = batches_of(rows, GROUPS)
    exact = _cosines(_gram(model, parameters, batches).gram)
    i, j = torch.triu_indices(7, 7, 1)
    # norms of the exact gradients: the error of the inner product itself
    norms = _gram(model, parameters, batches).gram.diagonal().sqrt()
    k, errors = 256, []
    for seed in range(12):
        gram = estimated_gram(model, parameters, batches, CountSketch(k=k, seed=seed), row_names=NAMES).gram
        errors.append((gram / torch.outer(norms, norms))[i, j] - exact[i, j])
    mean_square = torch.stack(errors).square().mean().item()
    assert 0.5 / k < mean_square < 1.3 * (1 + exact[i, j].square().mean().item()) / k


@pytest.mark.parametrize("params", [ParameterSet.all_linear, ParameterSet.embeddings, ParameterSet.lm_head])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", ["exact", "sketch"])
def test_batches_padding_and_order_do_not_matter(make_model, rows, batches_of, tied, method, params):
    model = make_model(tied=tied)
    parameters = select_parameters(model, params)

    def gram(groups, extra=0):
        batches = batches_of(rows, groups, extra=extra)
        if method == "exact":
            return _gram(model, parameters, batches).gram
        return estimated_gram(model, parameters, batches, CountSketch(k=50, seed=4), row_names=NAMES).gram

    alone = gram([[i] for i in range(7)])
    for other in (gram(GROUPS), gram([[2, 0, 1, 6, 5, 4, 3]]), gram([[6, 5], [4, 3, 2, 1, 0]], extra=5)):
        torch.testing.assert_close(other, alone, rtol=1e-9, atol=1e-12 * alone.abs().max().item())


def test_little_memory_means_more_passes_and_the_same_gram(make_model, rows, batches_of):
    model = make_model(tied=True)
    parameters = select_parameters(model, ParameterSet.regex, regex=".*")
    batches = batches_of(rows, GROUPS)
    one = _gram(model, parameters, batches)
    many = _gram(model, parameters, batches, memory_bytes=30_000)
    assert one.num_passes == 1
    assert 3 <= many.num_passes <= len(parameters)
    torch.testing.assert_close(many.gram, one.gram, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(many.losses, one.losses)


def test_groups_cover_every_parameter_once_from_the_top(make_model):
    parameters = select_parameters(make_model(), ParameterSet.all_linear)
    groups = list(pass_groups(parameters, [10] * 7, dtype=torch.float64, memory_bytes=50_000))
    flat = [p for group in groups for p in group]
    assert [p.name for p in flat] == [p.name for p in reversed(parameters)]
    assert len(groups) > 1
    assert list(pass_groups(parameters, [10] * 7, dtype=torch.float64, memory_bytes=1)) == [[p] for p in flat]


def test_inputs_that_layers_share_are_found_and_counted_once(make_model, rows, batches_of):
    """Of each block, q, k and v are called with one tensor, gate and up with another."""
    model = make_model(dtype=torch.float32)
    parameters = select_parameters(model, ParameterSet.all_linear)
    inputs = shared_inputs(model, parameters, batches_of(rows, GROUPS)[0].tensors)
    assert set(inputs) == {p.name for p in parameters}
    together: dict[int, set[str]] = {}
    for name, number in inputs.items():
        together.setdefault(number, set()).add(name.removeprefix("model.").removesuffix("_proj.weight"))
    expected = [
        {f"layers.{i}.{name}" for name in names}
        for i in range(2)
        for names in (
            ("self_attn.q", "self_attn.k", "self_attn.v"),
            ("self_attn.o",),
            ("mlp.gate", "mlp.up"),
            ("mlp.down",),
        )
    ]
    assert sorted(together.values(), key=sorted) == sorted(expected, key=sorted)
    # long enough that factors are larger than gradients nowhere
    lengths, size = [1] * 5, 0
    for block in range(2):
        for layer in ("self_attn.q", "mlp.gate", "self_attn.o", "mlp.down"):
            (first,) = (p for p in parameters if f"layers.{block}.{layer}_" in p.name)
            size += first.shape[1]
    size = 5 * 4 * (size + sum(p.shape[0] for p in parameters))
    plan = {"dtype": torch.float32, "inputs": inputs}
    assert len(list(pass_groups(parameters, lengths, memory_bytes=size, **plan))) == 1
    assert len(list(pass_groups(parameters, lengths, memory_bytes=size - 1, **plan))) == 2


def test_memory_that_does_with_shared_inputs_takes_one_pass(make_model, rows, batches_of):
    model = make_model(hidden_size=64)
    parameters = select_parameters(model, ParameterSet.all_linear)
    batches = batches_of(rows, GROUPS)
    lengths = [b.tensors["labels"].shape[1] for b in batches for _ in b.rows]
    each = sum(kept_nbytes(p, lengths, torch.float64) for p in parameters)
    one = _gram(model, parameters, batches, memory_bytes=each)
    found = _gram(model, parameters, batches, memory_bytes=each - 1)
    assert one.num_passes == found.num_passes == 1
    many = _gram(model, parameters, batches, memory_bytes=each / 3)
    assert many.num_passes > 1
    torch.testing.assert_close(many.gram, one.gram, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("hidden_size", [16, 64])
def test_what_is_kept_is_no_more_than_was_planned(make_model, rows, batches_of, hidden_size):
    model = make_model(hidden_size=hidden_size)
    parameters = select_parameters(model, ParameterSet.all_linear)
    batches = batches_of(rows, GROUPS)
    lengths = [b.tensors["labels"].shape[1] for b in batches for _ in b.rows]
    inputs = shared_inputs(model, parameters, batches[0].tensors)
    planned, seen = 0, set()
    for parameter in sorted(parameters, key=lambda p: p.depth, reverse=True):
        planned += kept_nbytes(parameter, lengths, torch.float64, input_is_kept=inputs[parameter.name] in seen)
        if keeps_input(parameter, lengths, torch.float64):
            seen.add(inputs[parameter.name])
    sink = KeepSink()
    run_batches(model, parameters, batches, sink, row_names=NAMES, reduction="mean", report=lambda done: None)
    assert sink.nbytes() <= planned
    assert sink.nbytes() > 0.5 * planned


def test_the_graph_goes_no_deeper_than_the_group(make_model, rows, batches_of):
    """With only layer 1's down_proj tracked, nothing that layer 0 puts out needs a gradient."""
    model = make_model()
    parameters = select_parameters(model, ParameterSet.regex, regex=r".*layers\.1\.mlp\.down_proj")
    seen = []
    handle = model.model.layers[1].register_forward_pre_hook(lambda module, args: seen.append(args[0].requires_grad))
    _gram(model, parameters, batches_of(rows, GROUPS))
    handle.remove()
    assert seen == [False, False, False]


def test_ghost_gram(make_model, rows, batches_of):
    """sum_ts (a_t . a'_s)(g_t . g'_s), which never forms a gradient, agrees with forming them."""
    model = make_model()
    parameters = select_parameters(model, ParameterSet.all_linear)
    batches = batches_of(rows, [[0, 1, 2, 3, 4, 5, 6]])
    captured = []
    with GradientCapture(model, parameters, lambda parameter, piece: captured.append(piece)) as capture:
        capture.run(batches[0].tensors)
    ghost = torch.zeros(7, 7, dtype=torch.float64)
    for piece in captured:
        assert isinstance(piece, Factors)
        inputs = torch.einsum("ita,jsa->ijts", piece.a, piece.a)
        ghost += (inputs * torch.einsum("itg,jsg->ijts", piece.g, piece.g)).sum(dim=(2, 3))
    assert len(captured) == len(parameters)
    torch.testing.assert_close(_gram(model, parameters, batches).gram, ghost, rtol=1e-10, atol=1e-12)


def test_central_difference(make_model, rows, batches_of):
    """Stepping along g_j changes l_i by <g_i, g_j> per unit of step."""
    model = make_model()
    parameters = select_parameters(model, ParameterSet.mlp)
    batches = batches_of(rows, [[0, 1, 2, 3, 4, 5, 6]])
    gram = _gram(model, parameters, batches).gram
    direction = {}
    with GradientCapture(model, parameters, lambda p, piece: direction.setdefault(p.name, piece)) as capture:
        capture.run(batches[0].tensors)
    step = 1e-5
    j = 2
    losses = []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        for parameter in parameters:
            piece = direction[parameter.name]
            moved.get_parameter(parameter.name).data += sign * step * (piece.g[j].T @ piece.a[j])
        losses.append(_gram(moved, select_parameters(moved, ParameterSet.mlp), batches).losses)
    torch.testing.assert_close((losses[0] - losses[1]) / (2 * step), gram[:, j], rtol=1e-5, atol=1e-8)


def test_labels_are_shifted(make_model, batches_of, rows):
    """Changing the last token changes no input that the loss sees, only the target of the position before it."""
    model = make_model()
    parameters = select_parameters(model, ParameterSet.lm_head)
    row = rows[0]
    pieces = []
    only = type(row)(row.input_ids, [-100] * (len(row.labels) - 1) + row.labels[-1:])
    with GradientCapture(model, parameters, lambda parameter, piece: pieces.append(piece)) as capture:
        loss = capture.run(batches_of([only], [[0]])[0].tensors)
    logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, -2]
    probabilities = torch.softmax(logits, dim=0)
    torch.testing.assert_close(loss[0], -probabilities[row.input_ids[-1]].log())
    # one position reaches the head, and its gradient is p - onehot(last token)
    expected = probabilities.clone()
    expected[row.input_ids[-1]] -= 1
    assert pieces[0].g.shape == (1, 1, len(expected))
    torch.testing.assert_close(pieces[0].g[0, 0], expected)


def test_a_row_that_is_not_finite_is_named(make_model, rows, batches_of):
    model = make_model(dtype=torch.float32)
    with torch.no_grad():
        model.model.embed_tokens.weight[rows[2].input_ids[0]] = float("inf")
    hit = [i for i, row in enumerate(rows) if rows[2].input_ids[0] in row.input_ids]
    parameters = select_parameters(model, ParameterSet.mlp)
    batches = batches_of(rows, [[2, 0, 1, 3, 4, 5, 6]])
    for call in (
        lambda: _gram(model, parameters, batches),
        lambda: estimated_gram(model, parameters, batches, CountSketch(k=50, seed=0), row_names=NAMES),
    ):
        with pytest.raises(ArithmeticError, match=rf"finite loss for every row, got nan for row {hit[0]}|row 2"):
            call()


def test_fresh_lora_gradients_of_a_are_zero_and_scores_are_finite(make_model, rows, batches_of):
    model = add_lora(make_model(dtype=torch.float32), LoraSettings(r=3), seed=0, section="influence")
    a_only = select_parameters(model, ParameterSet.regex, regex=r".*lora_A\.default")
    assert not _gram(model, a_only, batches_of(rows, GROUPS)).gram.any()
    both = select_parameters(model, ParameterSet.lora)
    assert (_gram(model, both, batches_of(rows, GROUPS)).gram.diagonal() > 0).all()


def test_small_gradients_are_kept_multiplied_out(make_model, rows, batches_of):
    """r = 1: 16 numbers a row and factor, fewer than its tokens times (16 + 1)."""
    model = add_lora(make_model(), LoraSettings(r=1), seed=0, section="influence")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    parameters = select_parameters(model, ParameterSet.lora)
    batch = batches_of(rows, [[0, 1, 2, 3, 4, 5, 6]])[0]
    sink = KeepSink()
    with GradientCapture(model, parameters, sink) as capture:
        sink.start(torch.arange(7))
        capture.run(batch.tensors)
    assert sink.nbytes() == 7 * 8 * sum(p.numel for p in parameters if "lora_" in p.name)


def test_bfloat16_model(make_model, rows, batches_of):
    """bf16 activations carry 8 bits: cosines agree with float64 to a few per cent, and the sketch with exact."""
    narrow = make_model(dtype=torch.bfloat16)
    wide = copy.deepcopy(narrow).double()
    batches = batches_of(rows, GROUPS)
    cosines = []
    for model in (narrow, wide):
        cosines.append(_cosines(_gram(model, select_parameters(model, ParameterSet.all_linear), batches).gram))
    assert (cosines[0] - cosines[1]).abs().max() < 0.1
    parameters = select_parameters(narrow, ParameterSet.all_linear)
    exact = _gram(narrow, parameters, batches).gram
    # K above D for each block order: only the rounding of products and rare meetings remain
    sketched = estimated_gram(narrow, parameters, batches, CountSketch(k=1 << 18, seed=0), row_names=NAMES).gram
    assert ((sketched - exact).abs() / exact.diagonal().max()).max() < 0.01


def test_gram_of_rows_is_the_product():
    rows = torch.randn(3, 9000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gram_of_rows(rows), rows @ rows.T)
