"""Influence files in the release's format, made by a seeded generator, and packs to go with them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Blocks = dict[str, NDArray[np.float64]]


def release_entries(values: NDArray[np.float64], *, listed: int | None = None) -> dict[str, Any]:
    """values: [num_train, num_query]. listed: length of both lists of an entry; None = every training row.

    Among equal values both lists have the higher index first: the other way round than an order by index.
    """
    num_train, num_query = values.shape
    entries: dict[str, Any] = {}
    for query in range(num_query):
        column = [float(value) for value in values[:, query]]
        descending = sorted(range(num_train), key=lambda row: (-column[row], -row))[:listed]
        ascending = sorted(range(num_train), key=lambda row: (column[row], -row))[:listed]
        entries[str(query)] = {
            "helpful": descending,
            "helpful_infl": [column[row] for row in descending],
            "harmful": ascending,
            "harmful_infl": [column[row] for row in ascending],
            "test_data": {"instruction": f"question {query}", "output": "answer"},
        }
    return entries


@pytest.fixture
def make_blocks() -> Callable[..., Blocks]:
    """Random dot scores of a pack: ff [F, F], fr [F, R], rf [R, F], rr [R, R]."""

    def make(num_forget: int, num_retain: int, *, seed: int = 0, decimals: int | None = None) -> Blocks:
        generator = np.random.default_rng(seed)
        n = num_forget + num_retain
        z = generator.standard_normal((n, 6))
        gram = z @ z.T + 0.3 * generator.standard_normal((n, n))
        if decimals is not None:
            gram = np.round(gram, decimals)  # many ties
        f, r = slice(0, num_forget), slice(num_forget, n)
        return {"ff": gram[f, f], "fr": gram[f, r], "rf": gram[r, f], "rr": gram[r, r]}

    return make


@pytest.fixture
def write_release(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """Write the four blocks as the release does, JSON or JSON Lines; give the paths by block."""

    def write(blocks: Blocks, *, listed: int | None = None, lines: bool = False, name: str = "") -> dict[str, Path]:
        paths = {}
        for block, values in blocks.items():
            entries = release_entries(values, listed=listed)
            path = tmp_path / f"{name}{block}.{'jsonl' if lines else 'json'}"
            if lines:
                text = "".join(json.dumps(entry) + "\n" for entry in entries.values())
            else:
                text = json.dumps({"config": "influence: {}", **entries, "finished_cnt": len(entries)})
            path.write_text(text, encoding="utf-8")
            paths[block] = path
        return paths

    return write


@pytest.fixture
def write_pack(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """Write a forget and a retain split whose ids are f0, f1, ... and r0, r1, ..."""

    def write(num_forget: int, num_retain: int) -> dict[str, Path]:
        paths = {}
        for group, count in (("forget", num_forget), ("retain", num_retain)):
            rows = [
                {"id": f"{group[0]}{row}", "instruction": f"question {group} {row}", "response": f"answer {row}"}
                for row in range(count)
            ]
            paths[group] = tmp_path / f"{group}.jsonl"
            paths[group].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return paths

    return write
