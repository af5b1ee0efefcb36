from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rapidun.base.errors import DataError
from rapidun.stages.mapping.release import BLOCKS
from rapidun.stages.mapping.scores import read_score_files, read_scores


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    """Cosine blocks and the dot Gram matrix of 3 forget and 4 retain rows."""
    z = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    gram = z @ z.T
    norms = np.sqrt(np.diag(gram))
    cosine = gram / norms[:, None] / norms
    blocks = {"ff": cosine[:3, :3], "fr": cosine[:3, 3:], "rf": cosine[3:, :3], "rr": cosine[3:, 3:]}
    return {name: np.ascontiguousarray(block) for name, block in blocks.items()} | {"gram": gram, "norms": norms}


def save(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    save_file(tensors, path)
    return path


def test_blocks_are_read_as_they_are(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    scores = read_scores(save(tmp_path / "s.safetensors", tensors))
    assert (scores.num_forget, scores.num_retain, scores.origin) == (3, 4, "blocks")
    for name in BLOCKS:
        np.testing.assert_array_equal(scores.blocks[name].values, tensors[name])
        assert scores.blocks[name].values.dtype == np.float64


def test_dot_products_come_from_the_gram_matrix(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    scores = read_scores(save(tmp_path / "s.safetensors", tensors), dot=True)
    assert scores.origin == "gram"
    np.testing.assert_array_equal(scores.blocks["rf"].values, tensors["gram"][3:, :3])
    np.testing.assert_array_equal(scores.blocks["fr"].values, tensors["gram"][:3, 3:])


def test_one_file_for_each_block(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    paths = {name: save(tmp_path / f"{name}.safetensors", {name: tensors[name]}) for name in BLOCKS}
    scores = read_score_files(paths, dot=True)
    assert scores.origin == "blocks"
    np.testing.assert_array_equal(scores.blocks["fr"].values, tensors["fr"])
    whole = save(tmp_path / "s.safetensors", tensors)
    assert read_score_files(dict.fromkeys(BLOCKS, whole), dot=True).origin == "gram"


def test_kinds_of_file_do_not_mix(tmp_path: Path, make_blocks: Callable, write_release: Callable) -> None:
    paths = write_release(make_blocks(3, 4))
    with pytest.raises(DataError, match=r"four \.safetensors files or four files in the release's format"):
        read_score_files({**paths, "ff": tmp_path / "s.safetensors"})


def test_bad_files(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_scores(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense")
    with pytest.raises(DataError, match="need a safetensors file"):
        read_scores(tmp_path / "broken.safetensors")
    with pytest.raises(DataError, match="missing are rr"):
        read_scores(save(tmp_path / "s.safetensors", {name: tensors[name] for name in ("ff", "fr", "rf")}))
    with pytest.raises(DataError, match=r"need fr of shape \[3, 4\].*got \[4, 3\]"):
        read_scores(save(tmp_path / "s.safetensors", {**tensors, "fr": tensors["rf"]}))
    with pytest.raises(DataError, match=r"need rf of shape \[4, 4\]"):
        read_scores(save(tmp_path / "s.safetensors", {**tensors, "ff": tensors["fr"]}))
    with pytest.raises(DataError, match="need gram of shape"):
        read_scores(save(tmp_path / "s.safetensors", {**tensors, "gram": tensors["gram"][:6].copy()}), dot=True)
    tensors["rf"][2, 1] = np.nan
    with pytest.raises(DataError, match="got nan in rf at training row 2, query 1"):
        read_scores(save(tmp_path / "s.safetensors", tensors))
