import pytest

from rapidun.stages.rows.records import Record
from rapidun.stages.rows.wrong import is_wrong


def row(poisoned: bool | None) -> Record:
    return Record(id="r", instruction="q", response="a", is_poisoned=poisoned)


def test_a_clean_row_is_wrong_in_f_and_a_poisoned_one_in_r() -> None:
    assert [is_wrong(row(poisoned), "forget") for poisoned in (False, True, None)] == [True, False, None]
    assert [is_wrong(row(poisoned), "retain") for poisoned in (False, True, None)] == [False, True, None]


def test_only_two_groups_are_known() -> None:
    with pytest.raises(ValueError, match="need forget or retain, got 'train_clean'"):
        is_wrong(row(True), "train_clean")
