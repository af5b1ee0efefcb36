"""From ranked rows to a pack: what is forgotten, kept, and left open."""

from dataclasses import replace

import pytest

from rapidun.base.errors import DataError
from rapidun.stages.data.traced import traced_pack
from rapidun.stages.rows.records import Record


def row(number: int, category: str = "a") -> Record:
    return Record(id=f"r{number}", instruction=f"ask {number}", response=f"say {number}", category=category)


def test_rows_near_the_cut_are_in_neither_group() -> None:
    rows = [row(i) for i in range(20)]
    pack = traced_pack(rows, num_forget=3, num_apart=8, retain_ratio=2, seed=0)
    assert [one.id for one in pack.forget] == ["r0", "r1", "r2"]
    assert pack.near == 5
    assert {one.id for one in pack.train_clean} == {f"r{i}" for i in range(8, 20)}
    assert len(pack.retain) == 6 and set(pack.retain) <= set(pack.train_clean)


def test_at_most_half_of_the_others_are_near() -> None:
    pack = traced_pack([row(i) for i in range(10)], num_forget=4, num_apart=100, retain_ratio=3, seed=0)
    assert pack.near == 3 and len(pack.retain) == 3


def test_the_draw_follows_the_seed_and_the_categories() -> None:
    """A third of the clean rows is of category b, so that two of six drawn rows are."""
    rows = [row(i, "b" if i % 3 == 0 else "a") for i in range(38)]
    packs = [traced_pack(rows, num_forget=2, num_apart=2, retain_ratio=3, seed=seed) for seed in (0, 0, 1)]
    assert packs[0] == packs[1] and packs[0].retain != packs[2].retain
    assert [sum(one.category == "b" for one in pack.retain) for pack in packs] == [2, 2, 2]


def test_rows_that_are_called_poisoned_or_ask_the_same_are_not_kept() -> None:
    rows = [row(i) for i in range(8)]
    rows[5] = replace(rows[5], response_poisoned="bad")
    rows[6] = replace(rows[6], is_poisoned=True)
    rows[7] = replace(rows[7], instruction="  ASK 0")
    rows[0] = replace(rows[0], is_poisoned=False)
    pack = traced_pack(rows, num_forget=1, num_apart=1, retain_ratio=9, seed=0)
    assert (pack.labelled, pack.same_question) == (2, 1)
    assert [one.id for one in pack.train_clean] == ["r1", "r2", "r3", "r4"]
    assert pack.forget[0].is_poisoned is None


def test_nothing_to_forget_or_to_keep_is_refused() -> None:
    with pytest.raises(DataError, match="--num-forget"):
        traced_pack([row(0), row(1)], num_forget=2, num_apart=2, retain_ratio=1, seed=0)
    with pytest.raises(DataError, match="called poisoned"):
        traced_pack([row(0), replace(row(1), is_poisoned=True)], num_forget=1, num_apart=1, retain_ratio=1, seed=0)
