"""Synthetic rows: vectors that follow from the row's number alone, in place of a model's gradients."""

from pathlib import Path

import numpy as np

from rapidun.config.index import IndexDtype
from rapidun.stages.influence.index.manifest import Manifest, claim_folder, new_recipe
from rapidun.stages.influence.index.writer import Vectors, build_shards


def row_vectors(first: int, stop: int, *, k: int) -> np.ndarray:
    """[stop - first, k] float32."""
    return np.stack([np.random.default_rng(row).standard_normal(k) for row in range(first, stop)]).astype(np.float32)


def make_rows(first: int, stop: int, *, k: int) -> Vectors:
    vectors = row_vectors(first, stop, k=k)
    return Vectors([f"row{row}" for row in range(first, stop)], vectors, np.arange(first, stop) / 10)


def synthetic(
    folder: Path, *, num_rows: int, k: int, shard_rows: int, dtype: str = "int8", **source: object
) -> Manifest:
    recipe = new_recipe(
        num_rows=num_rows,
        k=k,
        dtype=IndexDtype[dtype],
        shard_rows=shard_rows,
        source={"synthetic": "row_vectors", **source},
    )
    return claim_folder(folder, recipe)


def build_synthetic(folder: Path, *, num_rows: int, k: int, shard_rows: int, dtype: str = "int8") -> Manifest:
    manifest = synthetic(folder, num_rows=num_rows, k=k, shard_rows=shard_rows, dtype=dtype)
    build_shards(manifest, lambda first, stop: make_rows(first, stop, k=k))
    return manifest
