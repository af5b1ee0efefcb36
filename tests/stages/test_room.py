"""Scores of every row for every row: what they take is known, said and refused before a model is loaded."""

from pathlib import Path

import numpy as np
import pytest

import rapidun
from rapidun.base.errors import ConfigError, MachineError
from rapidun.base.machine import available_memory
from rapidun.config.compose import compose_config
from rapidun.config.influence import InfluenceConfig, InfluenceMethod, Precondition
from rapidun.stages.influence import recipe
from rapidun.stages.mapping import aggregate, scores
from rapidun.stages.mapping.aggregate import aggregate_block
from rapidun.stages.room import bytes_needed, mapping_bytes_needed, most_rows, no_room, worth_saying

GB = 1_000_000_000


def test_a_hundred_thousand_rows_are_refused_with_what_fits_and_what_to_do() -> None:
    """16 bytes a pair: 10^10 pairs take 160 GB; 64 GB hold those of sqrt(63.5e9 / 16) = 62,979 rows."""

    def needed(rows: int) -> int:
        return bytes_needed(InfluenceConfig(k=256), rows)

    told = no_room(100_000, needed, 64 * GB, stage="influence")
    assert "need 160.5 GB of memory for the scores of 100,000 rows for each other, got 64.0 GB" in told
    assert "about 62,979 rows fit" in told and "rapidun index build (docs/index_on_disk.md)" in told
    assert needed(62_979) <= 64 * GB < needed(62_980)
    assert no_room(62_979, needed, 64 * GB, stage="influence") == ""
    assert no_room(100_000, needed, None, stage="influence") == ""


def test_ten_thousand_rows_are_said() -> None:
    """8 + 4 + 4 bytes a pair, 1.6 GB, and the blocks that are worked on."""
    wanted = bytes_needed(InfluenceConfig(k=256), 10_000)
    said = worth_saying(10_000, wanted, 8 * GB)
    assert "scores of 10,000 rows for each other take 2.1 GB of memory, 8.0 GB are available" in said
    assert worth_saying(1_000, bytes_needed(InfluenceConfig(k=256), 1_000), 8 * GB) == ""


def test_what_a_sketch_keeps_counts() -> None:
    """K float32 a row, twice where the queries are preconditioned: 10^4 * 65,536 * 4 = 2.6 GB, and the products."""
    base = bytes_needed(InfluenceConfig(k=256), 10_000)
    wide = bytes_needed(InfluenceConfig(k=65_536), 10_000)
    assert wide - base == 4 * 65_536 * 10_000 + 8 * 10**8 - 16 * 10**8
    assert bytes_needed(InfluenceConfig(k=65_536, precondition=Precondition.kfac), 10_000) - wide == 4 * 65_536 * 10_000
    assert bytes_needed(InfluenceConfig(k=65_536, method=InfluenceMethod.bm25), 10_000) == base


def test_queries_of_their_own_are_the_columns() -> None:
    few = bytes_needed(InfluenceConfig(k=256), 10_000, 100)
    assert few < bytes_needed(InfluenceConfig(k=256), 10_100)


@pytest.mark.parametrize("available", [0, 1, 10**9, 10**12])
def test_the_number_that_fits_is_the_largest(available: int) -> None:
    fits = most_rows(available, mapping_bytes_needed)
    assert fits == 0 or mapping_bytes_needed(fits) <= available
    assert mapping_bytes_needed(fits + 1) > available


def test_this_machine_says_what_it_has() -> None:
    there = available_memory()
    assert there is None or there > 0


def test_a_run_is_refused_after_its_data_and_before_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "FEW_ROWS", 1)
    monkeypatch.setattr(recipe, "available_memory", lambda: 10_000_000)
    chosen = ["debug=fast", f"store_dir={tmp_path / 'store'}", f"run_dir={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match=r"influence: need .* scores of 24 rows .* rapidun index build"):
        rapidun.run(chosen)
    assert sorted(path.name for path in (tmp_path / "store").iterdir() if any(path.glob("*/manifest.json"))) == ["data"]


def test_mapping_refuses_before_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.numpy import save_file

    blocks = {"ff": (2, 2), "fr": (2, 3), "rf": (3, 2), "rr": (3, 3)}
    save_file({name: np.zeros(shape, np.float32) for name, shape in blocks.items()}, tmp_path / "scores.safetensors")
    assert scores.read_scores(tmp_path / "scores.safetensors").num_retain == 3
    monkeypatch.setattr(scores, "FEW_ROWS", 1)
    monkeypatch.setattr(scores, "available_memory", lambda: 1000)
    with pytest.raises(MachineError, match=r"mapping: need .* scores of 5 rows"):
        scores.read_scores(tmp_path / "scores.safetensors")


def test_the_settings_that_the_run_has_are_asked() -> None:
    assert bytes_needed(compose_config(["debug=fast"]).influence, 24) > 0


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("mode", ["value", "rank", "robust"])
@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("numel", [1, 20, 57])
def test_blocks_of_queries_change_nothing(
    monkeypatch: pytest.MonkeyPatch, drop: bool, mode: str, top_k: int | None, numel: int
) -> None:
    values = np.random.default_rng(0).normal(size=(19, 19)).round(1)  # with ties
    place = np.random.default_rng(1).permuted(np.tile(np.arange(19)[:, None], (1, 19)), axis=0)
    for how in ("median", "mean", "top"):
        asked = {"mode": mode, "aggregate": how, "top_k": top_k, "drop_diagonal": drop, "place": place}
        whole = aggregate_block(values, **asked)
        with monkeypatch.context() as patch:
            patch.setattr(aggregate, "BLOCK_NUMEL", numel)
            found = aggregate_block(values, **asked)
        np.testing.assert_array_equal(found.scores, whole.scores)
        assert found.zero_share == whole.zero_share
