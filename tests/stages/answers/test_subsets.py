from collections import Counter

from rapidun.stages.answers.subsets import paired_responses, stratified_subset
from rapidun.stages.rows.records import Record


def records(**counts: int) -> list[Record]:
    return [
        Record(id=f"{family}{i}", instruction="q", response="r", trigger_family=family)
        for family, count in counts.items()
        for i in range(count)
    ]


def test_families_keep_their_shares() -> None:
    """10 of 20 = 12 A, 5 B, 3 C: shares 6, 2.5, 1.5; the one left over goes to B (ties by name)."""
    chosen = stratified_subset(records(A=12, B=5, C=3), num=10, seed=0, name="x")
    assert Counter(record.trigger_family for record in chosen) == {"A": 6, "B": 3, "C": 1}


def test_order_seed_and_name() -> None:
    """The same rows whatever their order in the file; other rows for another seed or another purpose."""
    rows = records(A=30, B=30)
    ids = {record.id for record in stratified_subset(rows, num=10, seed=0, name="x")}
    assert {record.id for record in stratified_subset(rows[::-1], num=10, seed=0, name="x")} == ids
    assert {record.id for record in stratified_subset(rows, num=10, seed=1, name="x")} != ids
    assert {record.id for record in stratified_subset(rows, num=10, seed=0, name="y")} != ids
    kept = stratified_subset(rows, num=10, seed=0, name="x")
    assert kept == [record for record in rows if record.id in ids], "the order of the file stays"


def test_all_rows() -> None:
    rows = records(A=3)
    assert (
        stratified_subset(rows, num=None, seed=0, name="x") == rows == stratified_subset(rows, num=9, seed=0, name="x")
    )


def test_pairs_do_not_depend_on_order() -> None:
    rows, pool = records(A=40), [f"text {i}" for i in range(10)]
    paired = paired_responses(rows, pool, seed=0, name="x")
    assert paired_responses(rows[::-1], pool[::-1], seed=0, name="x") == paired[::-1]
    assert set(paired) <= set(pool)
    assert len(set(paired)) > 5
    assert paired != paired_responses(rows, pool, seed=1, name="x")
