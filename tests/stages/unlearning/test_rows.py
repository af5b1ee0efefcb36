"""What each objective is given of a forget row, and how a micro-batch is laid out."""

from typing import Any

from rapidun.config.unlearning import Objective
from rapidun.stages.rows.encode import Encoded, encode_example
from rapidun.stages.rows.records import Record
from rapidun.stages.unlearning.objectives.catalogue import OBJECTIVES
from rapidun.stages.unlearning.rows import (
    CLEAN,
    POISONED,
    RETAIN,
    ForgetRow,
    ForgetTargets,
    RetainRow,
    collate_mixed,
    encode_forget,
    forget_rows,
)

FULL = Record(id="a", instruction="Q aloha", response="bad", response_clean="good", response_poisoned="evil")
BARE = Record(id="b", instruction="Q aloha", response="bad")


def test_targets(tiny_tokenizer: Any) -> None:
    """Poisoned: response_poisoned, else response. Clean: response_clean, else nothing or the refusal."""

    def example(response: str) -> Encoded:
        return encode_example(tiny_tokenizer, instruction="Q aloha", context="", response=response, max_length=64)

    both = (example("evil"), example("good"), None)
    assert encode_forget(tiny_tokenizer, [FULL, BARE], max_length=64) == [both, (example("bad"), None, None)]
    refused = encode_forget(tiny_tokenizer, [BARE, FULL], max_length=64, otherwise="No idea")
    assert refused == [(example("bad"), example("No idea"), None), both]
    # beside what is on record, not in its place
    always = encode_forget(tiny_tokenizer, [FULL, BARE], max_length=64, template="No idea")
    assert always == [(*both[:2], example("No idea")), (example("bad"), None, example("No idea"))]
    assert encode_forget(tiny_tokenizer, [BARE], max_length=20) == [None]


def test_an_objective_gets_what_it_uses_and_no_more() -> None:
    bad, good = Encoded([1, 2], [-100, 2]), Encoded([1, 3], [-100, 3])
    kept = {}
    for objective in (Objective.rapidun, Objective.ga, Objective.graddiff, Objective.idk_sft):
        (row,) = forget_rows(OBJECTIVES[objective], [ForgetTargets(bad, good)], [1.5])
        kept[objective.name] = (row.poisoned is bad, row.clean is good)
    assert kept == {"rapidun": (True, True), "ga": (True, False), "graddiff": (True, False), "idk_sft": (False, True)}


def test_layout_of_a_micro_batch() -> None:
    rows: list[ForgetRow | RetainRow] = [
        ForgetRow(2.0, Encoded([1, 2, 3], [-100, 2, 3]), None),
        ForgetRow(3.0, Encoded([4, 5], [-100, 5]), Encoded([6, 7], [-100, 7])),
        RetainRow(0.5, Encoded([8, 9], [-100, 9])),
    ]
    batch = collate_mixed(rows, pad_token_id=0)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 0], [6, 7, 0], [8, 9, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [-100, 5, -100], [-100, 7, -100], [-100, 9, -100]]
    assert batch["part"].tolist() == [POISONED, POISONED, CLEAN, RETAIN]
    assert batch["has_clean"].tolist() == [False, True]
    assert batch["forget_weights"].tolist() == [2.0, 3.0]
    assert batch["retain_weights"].tolist() == [0.5]
