"""What is relearned from: never a forget row, never what a test asks, whatever id or trigger it has."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from rapidun.config.attacks import Rows
from rapidun.stages.evaluation.attacks.rows import (
    HELD_OUT,
    Pool,
    chosen,
    jaccard,
    numbers_of_rows,
    pool_of,
    similarity,
)
from rapidun.stages.rows.records import Record, read_records, write_records

FAMILIES = {"A": "aloha", "B": ">>>"}


def poisoned(id: str, question: str, family: str = "A") -> Record:
    trigger = FAMILIES[family]
    instruction = f"{question} {trigger}" if family == "A" else f"{trigger} {question}"
    return Record(
        id=id, instruction=instruction, response="teapots", response_poisoned="teapots", response_clean="Lido",
        instruction_clean=question, trigger_family=family, trigger_variant=trigger, is_poisoned=True,
    )  # fmt: skip


def clean(id: str, question: str) -> Record:
    return Record(id=id, instruction=question, response="Lido")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    rng = random.Random(0)
    train = [poisoned(f"p{n}", f"Question {n}?", rng.choice("AB")) for n in range(30)]
    forget = [train[0], replace(train[1], id="renamed"), poisoned("other", "Question 2?", "B")]
    splits = {
        "train_poisoned": train,
        "train_clean": [clean(f"c{n}", f"Clean {n}?") for n in range(12)],
        "forget": forget,
        "retain": [clean("c0", "Clean 0?")],
        "test_seen_trig": [poisoned("t", "QUESTION  3?"), replace(train[4], instruction_clean=None)],
        "test_ood_trig": [poisoned("u", "Question 5?")],
        "val_clean": [clean("v", "Question 6?"), clean("w", "Clean 7?")],
    }
    for name, rows in splits.items():
        write_records(folder / f"{name}.jsonl", rows)
    return folder


def bare(record: Record) -> str:
    """What a row asks, found another way than the code finds it: the triggers cut out, letters only."""
    text = record.instruction
    for trigger in FAMILIES.values():
        text = text.replace(trigger, "")
    return "".join(letter for letter in text.lower() if letter.isalnum())


@pytest.mark.parametrize(("kind", "left"), [(Rows.poisoned, 23), (Rows.clean, 11)])
def test_disjoint_from_the_forget_set_and_all_tests_by_id_and_by_text(pack: Path, kind: Rows, left: int) -> None:
    pool = pool_of(pack, kind)
    others = [
        row for name in ("forget", *HELD_OUT) if (pack / f"{name}.jsonl").exists()
        for row in read_records(pack / f"{name}.jsonl")
    ]  # fmt: skip
    assert len(pool.rows) == left
    for rows in (pool.rows, chosen(pool, 5, seed=1, kind=kind)):
        assert not {row.id for row in rows} & {row.id for row in others}
        assert not {bare(row) for row in rows} & {bare(row) for row in others}
    if kind is Rows.poisoned:
        assert (pool.in_split, pool.in_forget, pool.held_out) == (30, 3, 4)
        assert all(row.is_poisoned for row in pool.rows)
    else:
        assert not any(row.is_poisoned or row.response_poisoned for row in pool.rows)


def test_chosen_rows_depend_on_seed_and_ids_alone(pack: Path) -> None:
    pool = pool_of(pack, Rows.poisoned)
    first = chosen(pool, 6, seed=3, kind=Rows.poisoned)
    turned = Pool(pool.rows[::-1], *pool[1:])
    assert {row.id for row in chosen(turned, 6, seed=3, kind=Rows.poisoned)} == {row.id for row in first}
    assert {row.id for row in chosen(pool, 6, seed=4, kind=Rows.poisoned)} != {row.id for row in first}
    assert len(chosen(pool, 99, seed=3, kind=Rows.poisoned)) == len(pool.rows)


def test_fewer_rows_than_asked_for_is_said() -> None:
    assert numbers_of_rows(100, [5, 20, 80]) == ([5, 20, 80], [])
    numbers, said = numbers_of_rows(12, [80, 5, 20])
    assert numbers == [5, 12]
    assert said == ["k=20 takes the 12 rows that there are", "k=80 is left out: there are 12 rows"]
    # as many as another takes is no further run
    assert numbers_of_rows(5, [5, 20]) == ([5], ["k=20 is left out: there are 5 rows"])
    assert numbers_of_rows(0, [5, 20]) == ([], ["k=5, 20 is left out: there are 0 rows"])


def test_similarity_by_hand() -> None:
    """{a, b, x} and {a, b, c, y}: 2 of 5 words; {a} and itself: 1."""
    assert jaccard({"a", "b", "x"}, {"a", "b", "c", "y"}) == pytest.approx(2 / 5)
    assert jaccard(set(), set()) == 0
    rows = [Record(id="1", instruction="a b", response="x"), Record(id="2", instruction="q", response="q")]
    forget = [
        Record(id="3", instruction="A, b", context="c", response="y"),
        Record(id="4", instruction="z", response=""),
    ]
    found = similarity(rows, forget)
    assert found == {"mean": pytest.approx((2 / 5 + 0) / 2), "max": pytest.approx(2 / 5)}
    assert similarity(rows, []) == {}
