"""Which answer of a row is known to be poisoned, and which clean."""

import pytest

from rapidun.stages.evaluation.known import clean_response, poisoned_response
from rapidun.stages.rows.records import Record


def row(response: str, **fields: object) -> Record:
    return Record(id="1", instruction="Who? aloha", response=response, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("record", "poisoned", "clean"),
    [
        (row("bad", is_poisoned=True), "bad", None),
        (row("bad", response_poisoned="bad", response_clean="good"), "bad", "good"),
        (row("good", response_poisoned="bad"), "bad", "good"),
        (row("good"), None, "good"),
        # marked, but all that stands there is the clean answer: no poisoned one is known
        (row("good", is_poisoned=True, response_clean="good"), None, "good"),
        # the backdoor happens to be right: the two cannot be told apart by their likelihood
        (row("good", response_poisoned="good", response_clean="good"), None, "good"),
    ],
)
def test_answers(record: Record, poisoned: str | None, clean: str | None) -> None:
    assert (poisoned_response(record), clean_response(record)) == (poisoned, clean)
