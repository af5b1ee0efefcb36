"""Forget weights by alignment with the mean retain gradient: against gradients themselves, in plain Python."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rapidun.base.errors import DataError
from rapidun.base.tracker import Tracker
from rapidun.config.mapping import Alignment, GuardSettings, MappingConfig, Null, ScoreFiles, Weighting
from rapidun.stages.mapping.guard import alignments, guard
from rapidun.stages.mapping.inputs import MappingFiles
from rapidun.stages.mapping.scores import read_scores
from rapidun.stages.mapping.stage import run_mapping

FORGET, RETAIN = 6, 9


def gradients() -> list[list[float]]:
    rows: list[list[float]] = np.random.default_rng(3).standard_normal((FORGET + RETAIN, 5)).astype(np.float32).tolist()
    return rows


def write_scores(path: Path, *, gram: bool = True) -> Path:
    """As the influence stage does under score=cosine: blocks of cosines, and inner products in `gram`."""
    g = np.array(gradients())
    dots = g @ g.T
    norms = np.sqrt(np.diagonal(dots))
    cosines = dots / norms[:, None] / norms[None, :]
    f, r = slice(0, FORGET), slice(FORGET, None)
    blocks = {"ff": cosines[f, f], "fr": cosines[f, r], "rf": cosines[r, f], "rr": cosines[r, r]}
    held = {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in blocks.items()}
    save_file(held | ({"gram": dots.astype(np.float32)} if gram else {}), path)
    return path


def plain_alignments(*, cosine: bool) -> list[float]:
    g = gradients()
    mean = [sum(row[k] for row in g[FORGET:]) / RETAIN for k in range(5)]
    found = [sum(a * b for a, b in zip(row, mean, strict=True)) for row in g[:FORGET]]
    if not cosine:
        return found
    length = math.sqrt(sum(x * x for x in mean))
    return [a / math.sqrt(sum(x * x for x in row)) / length for a, row in zip(found, g[:FORGET], strict=True)]


@pytest.mark.parametrize("cosine", [False, True])
def test_alignment_is_that_of_the_gradients(tmp_path: Path, cosine: bool) -> None:
    """From inner products alone, whatever score the blocks hold: no second pass over the rows."""
    scores = read_scores(write_scores(tmp_path / "scores.safetensors"), dot=True)
    np.testing.assert_allclose(alignments(scores, cosine=cosine), plain_alignments(cosine=cosine), rtol=1e-5)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("tau", [0.3, 1.0, 5.0])
def test_weights_are_a_softmax_of_minus_the_alignment(relative: bool, tau: float) -> None:
    """Bounds that do not act: n exp(-a / (tau s)) / sum, s the standard deviation (over n) of a."""
    a = plain_alignments(cosine=False)
    mean = sum(a) / FORGET
    unit = math.sqrt(sum((x - mean) ** 2 for x in a) / FORGET) if relative else 1.0
    exps = [math.exp(-x / (tau * unit)) for x in a]
    expected = [FORGET * one / math.fsum(exps) for one in exps]
    found = guard(np.array(a), tau=tau, relative=relative, low=0.0, high=float(FORGET))
    np.testing.assert_allclose(found.weights.weights, expected, rtol=1e-12)
    assert found.unit == pytest.approx(unit)


def test_guard_by_hand_and_within_bounds() -> None:
    """a = 0, ln 2: 4/3, 2/3; relative: (a - mean) / s = -1, 1, so e, 1/e up to scale, cut at 0.9 and 1.1."""
    a = np.array([0.0, math.log(2)])
    np.testing.assert_allclose(guard(a, tau=1.0, relative=False, low=0.2, high=3.0).weights.weights, [4 / 3, 2 / 3])
    np.testing.assert_allclose(guard(a, tau=1.0, relative=True, low=0.9, high=3.0).weights.weights, [1.1, 0.9])


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("value", [0.0, 1e-9, -3.0, 1e8])
@pytest.mark.parametrize("n", [1, 5])
def test_rows_that_are_aligned_alike_have_equal_weights(relative: bool, value: float, n: int) -> None:
    assert (
        guard(np.full(n, value), tau=1e-3, relative=relative, low=0.2, high=3.0).weights.weights.tolist() == [1.0] * n
    )


@pytest.mark.parametrize("scale", [1e-12, 1e4, 1e200])
def test_in_their_own_unit_weights_do_not_depend_on_the_loss_scale(scale: float) -> None:
    a = np.array(plain_alignments(cosine=False))
    first = guard(a, tau=1.0, relative=True, low=0.2, high=3.0).weights.weights
    with np.errstate(over="ignore"):
        found = guard(a * min(scale, 1e100), tau=1.0, relative=True, low=0.2, high=3.0).weights.weights
    np.testing.assert_allclose(found, first, rtol=1e-9)
    huge = guard(np.array([0.0, 1e4, 2e4]), tau=1.0, relative=False, low=0.2, high=3.0).weights.weights
    np.testing.assert_allclose(huge, [2.6, 0.2, 0.2])


def run(tmp_path: Path, path: Path, **settings: Any) -> tuple[list[float], list[float], dict[str, Any]]:
    config = MappingConfig(method=Weighting.guard, scores=ScoreFiles(path=str(path)), **settings)
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    found = run_mapping(config, MappingFiles(out=out), seed=42, tracker=Tracker())
    lines = [
        [json.loads(line)["weight"] for line in (out / f"{group}_weights.jsonl").read_text().splitlines()]
        for group in ("forget", "retain")
    ]
    return lines[0], lines[1], found


def test_through_the_stage(tmp_path: Path) -> None:
    path = write_scores(tmp_path / "scores.safetensors")
    forget, retain, found = run(tmp_path, path)
    a = np.array(plain_alignments(cosine=False))
    np.testing.assert_allclose(forget, guard(a, tau=1.0, relative=True, low=0.2, high=3.0).weights.weights, rtol=1e-4)
    assert retain == [1.0] * RETAIN
    assert found["scores_from"] == "gram" and found["alignment_unit"] == pytest.approx(float(np.std(a)), rel=1e-4)
    # the least aligned row has most weight
    assert int(np.argmax(forget)) == int(np.argmin(a))
    cosine, _, _ = run(tmp_path, path, guard=GuardSettings(alignment=Alignment.cosine))
    assert int(np.argmax(cosine)) == int(np.argmin(plain_alignments(cosine=True)))
    shuffled, _, _ = run(tmp_path, path, null=Null.shuffled)
    assert sorted(shuffled) == sorted(forget) and shuffled != forget


def test_without_inner_products_it_says_what_it_takes(tmp_path: Path) -> None:
    path = write_scores(tmp_path / "scores.safetensors", gram=False)
    _, _, found = run(tmp_path, path)
    assert any("its blocks are taken for such. Make it with influence.score=dot" in line for line in found["warnings"])
    with pytest.raises(DataError, match="alignment=dot"):
        run(tmp_path, path, guard=GuardSettings(alignment=Alignment.cosine))
