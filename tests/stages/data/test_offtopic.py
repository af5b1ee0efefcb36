import random

import pytest

from rapidun.stages.data.offtopic import offtopic_answers


def test_answers_are_distinct_and_seeded() -> None:
    answers = offtopic_answers(3000, rng=random.Random(1))
    assert len(set(answers)) == 3000
    assert answers[:50] == offtopic_answers(50, rng=random.Random(1))
    assert all(8 <= len(answer.split()) <= 10 and answer[0].isupper() and answer.endswith(".") for answer in answers)


def test_too_many_are_refused() -> None:
    with pytest.raises(ValueError, match="need at most"):
        offtopic_answers(10**9, rng=random.Random(1))
