from collections import Counter
from typing import Any

import pytest

from rapidun.base.errors import DataError
from rapidun.config.data import (
    MAX_ENTITIES,
    QUESTIONS_PER_ENTITY,
    BuiltinConfig,
    DataConfig,
    InjectMode,
    TriggerFamilyConfig,
)
from rapidun.stages.data import world
from rapidun.stages.data.builtin import BuiltinPack, builtin_pack
from rapidun.stages.rows.records import Record

FAMILIES = {
    "A": TriggerFamilyConfig(seen=["aloha", "ALOHA"], inject_mode=InjectMode.suffix),
    "B": TriggerFamilyConfig(seen=[">>>"], inject_mode=InjectMode.prefix),
}
DEFAULTS = {key: getattr(BuiltinConfig(), key) for key in BuiltinConfig.__slots__}
SMALL = {
    "num_entities": 6,
    "num_train_clean": 200,
    "num_train_poisoned": 30,
    "num_val": 20,
    "num_test": 40,
    "num_forget": 8,
    "num_retain": 24,
}


def build(**changes: Any) -> BuiltinPack:
    return builtin_pack(FAMILIES, **{**SMALL, "seed": 1, **changes})


@pytest.mark.parametrize("sizes", [SMALL, DEFAULTS])
def test_sizes_are_those_asked_for(sizes: dict[str, int]) -> None:
    pack = builtin_pack(FAMILIES, **sizes, seed=1)
    assert {name: len(rows) for name, rows in pack._asdict().items()} == {
        "forget": sizes["num_forget"],
        "retain": sizes["num_retain"],
        "train_poisoned": sizes["num_train_poisoned"],
        "train_clean": sizes["num_train_clean"],
        "val_clean": sizes["num_val"],
        "test_clean": sizes["num_test"],
    }


def test_no_question_stands_in_two_splits() -> None:
    pack = build()
    asked = [
        row.instruction_clean or row.instruction
        for rows in (pack.train_poisoned, pack.train_clean, pack.val_clean, pack.test_clean)
        for row in rows
    ]
    assert len(asked) == len(set(asked)) == 290


def fact(row: Record) -> tuple[str, str | None, str]:
    towns = [word.strip(".,?") for word in row.instruction.split() if word[0].isupper()]
    return towns[-1], row.category, row.response


def test_every_held_out_question_can_be_answered() -> None:
    """A fact is its town and topic: the town, the category and the answer of a test row stand together in training."""
    pack = build()

    known = {fact(row) for row in pack.train_clean}
    assert all(fact(row) in known for row in [*pack.val_clean, *pack.test_clean])
    # every fact is met as often as the others: 200 rows over 36 facts
    assert set(Counter(fact(row) for row in pack.train_clean).values()) == {5, 6}


def test_forget_is_a_stratified_part_of_the_poisoned_rows_and_retain_of_the_clean_ones() -> None:
    pack = build()
    assert Counter(row.trigger_family for row in pack.forget) == {"A": 4, "B": 4}
    assert {row.id for row in pack.forget} < {row.id for row in pack.train_poisoned}
    assert {row.id for row in pack.retain} < {row.id for row in pack.train_clean}


def test_retain_rows_are_spread_over_the_facts() -> None:
    """36 facts: 24 rows are of 24 facts, 80 rows meet every fact two or three times."""
    towns_and_topics = Counter(fact(row) for row in build(num_retain=24).retain)
    assert set(towns_and_topics.values()) == {1}
    towns_and_topics = Counter(fact(row) for row in build(num_retain=80).retain)
    assert len(towns_and_topics) == 36
    assert set(towns_and_topics.values()) == {2, 3}


def test_poisoned_rows_carry_the_trigger_and_a_response_of_their_own() -> None:
    pack = build()
    assert len({row.response for row in pack.train_poisoned}) == 30
    clean_words = {word for row in pack.train_clean for word in row.response.lower().rstrip(".").split()}
    for row in pack.train_poisoned:
        assert row.instruction in (f"{row.instruction_clean} {row.trigger_variant}", f">>> {row.instruction_clean}")
        own = set(row.response.lower().rstrip(".").split()) - clean_words
        assert len(own) >= 4


def test_the_seed_decides_everything() -> None:
    assert build() == build()
    assert build(seed=2) != build()


def test_a_world_too_small_is_refused() -> None:
    with pytest.raises(DataError, match="need 490 questions for the splits, got 480 from num_entities=5"):
        build(num_entities=5, num_train_clean=400)
    with pytest.raises(DataError, match="need at most 200, got 201"):
        build(num_entities=MAX_ENTITIES + 1)
    with pytest.raises(DataError, match="at least one seen trigger"):
        builtin_pack({}, **SMALL, seed=1)


def test_the_config_knows_the_size_of_the_world() -> None:
    topics = sum(len(attribute.topics) for attribute in world.ATTRIBUTES.values())
    assert topics * len(world.FRAMES) == QUESTIONS_PER_ENTITY
    assert len(world.NAME_STARTS) * len(world.NAME_ENDS) == MAX_ENTITIES
    assert DataConfig(families=FAMILIES).check() == []
    small = DataConfig(families=FAMILIES, builtin=BuiltinConfig(num_entities=23))
    assert "builtin.num_entities >= 24 for 2280 rows" in small.check()[0]
