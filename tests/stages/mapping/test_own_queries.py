"""Blocks whose columns are other rows than their training rows."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from rapidun.base.errors import DataError
from rapidun.config.mapping import Aggregate, MappingConfig, ValueMode
from rapidun.stages.mapping.aggregate import aggregate_block
from rapidun.stages.mapping.inputs import MappingFiles, scores_in_use
from rapidun.stages.mapping.scores import read_scores

SHAPES = {"ff": (3, 4), "fr": (3, 2), "rf": (5, 4), "rr": (5, 2)}
IDS = {"forget": ["a", "b", "c"], "retain": ["r", "s", "t", "u", "v"]}
QUERIES = {"forget": ["x", "c", "y", "a"], "retain": ["t", "z"]}


def _write(folder, *, queries=QUERIES, shapes=SHAPES):
    generator = np.random.default_rng(0)
    blocks = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(blocks, str(folder / "scores.safetensors"))
    ids = IDS if queries is None else {**IDS, "queries": queries}
    (folder / "ids.json").write_text(json.dumps(ids), encoding="utf-8")
    return MappingFiles(out=folder, scores=folder / "scores.safetensors", ids=folder / "ids.json")


def test_pairs_of_equal_ids_are_a_row_and_itself(tmp_path):
    scores, _ = scores_in_use(MappingConfig(), _write(tmp_path))
    assert (scores.num_forget, scores.num_retain) == (3, 5)
    found = {name: np.argwhere(block.same).tolist() for name, block in scores.blocks.items()}
    assert found == {"ff": [[0, 3], [2, 1]], "fr": [], "rf": [], "rr": [[2, 0]]}
    assert scores.warnings == []


def test_without_ids_of_the_columns_nothing_is_left_out_and_that_is_said(tmp_path):
    scores, _ = scores_in_use(MappingConfig(), _write(tmp_path, queries=None))
    assert not any(block.same.any() for block in scores.blocks.values())
    assert "no pair is left out" in scores.warnings[0]


def test_shapes_must_agree(tmp_path):
    _write(tmp_path, shapes=SHAPES | {"rf": (5, 3)})
    with pytest.raises(DataError, match=r"need rf of shape \[5, 4\]"):
        read_scores(tmp_path / "scores.safetensors")
    files = _write(tmp_path, queries=QUERIES | {"retain": ["t"]})
    with pytest.raises(DataError, match=r"and 1 in ids\.json"):
        scores_in_use(MappingConfig(), files)


@pytest.mark.parametrize("mode", [mode.name for mode in ValueMode])
@pytest.mark.parametrize("aggregate", [one.name for one in Aggregate])
@pytest.mark.parametrize("top_k", [None, 3])
def test_a_mask_on_the_diagonal_is_the_dropped_diagonal(mode, aggregate, top_k):
    values = np.random.default_rng(1).normal(size=(6, 6))
    settings = {"mode": mode, "aggregate": aggregate, "top_k": top_k, "drop_diagonal": True}
    before = aggregate_block(values, **settings)
    masked = aggregate_block(values, same=np.eye(6, dtype=bool), **settings)
    np.testing.assert_allclose(masked.scores, before.scores, rtol=1e-12)
    assert masked.zero_share == before.zero_share
    # columns may stand in any order as long as the mask does
    order = np.random.default_rng(2).permutation(6)
    moved = aggregate_block(values[:, order], same=np.eye(6, dtype=bool)[:, order], **settings)
    np.testing.assert_allclose(moved.scores, before.scores, rtol=1e-12)


def test_rectangular_by_hand():
    """Row 0 over columns 1, 2; row 1 over 0, 2; a row whose every query is itself gets 0."""
    values = np.array([[9.0, 1.0, 2.0], [3.0, 9.0, 5.0]])
    same = np.array([[True, False, False], [False, True, False]])
    assert aggregate_block(values, aggregate="mean", drop_diagonal=True, same=same).scores.tolist() == [1.5, 4.0]
    assert aggregate_block(values, aggregate="mean", same=same).scores.tolist() == pytest.approx([4, 17 / 3])
    alone = aggregate_block(values[:, :1], drop_diagonal=True, same=same[:, :1])
    assert alone.scores.tolist() == [0.0, 3.0]
