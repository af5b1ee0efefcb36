"""What was tried, in a line a kind: the most of each model, and what was left untried."""

import json
from pathlib import Path

import pytest

from rapidun.report.run.page import write_run_report
from rapidun.report.run.tried import most_of_each, tried_sentence
from tests.report.run.test_attacks import FOUND


def test_each_model_shows_its_own_maximum_and_controls_count_for_nothing() -> None:
    lines = {line.kind: line for line in most_of_each(FOUND)}
    assert list(lines) == [
        "fine-tuned on poisoned rows that unlearning did not see", "quantised to NF4",
        "sampled, the best of some answers", "asked in other words",
    ]  # fmt: skip
    relearned = lines["fine-tuned on poisoned rows that unlearning did not see"]
    assert relearned.shares == {"unlearned": 0.5, "retrain": 0.05}
    assert relearned.row.label == "20 poisoned rows"
    assert lines["quantised to NF4"].shares == {"unlearned": 0.3}
    assert lines["sampled, the best of some answers"].shares == {"unlearned": 0.4}
    # what does not fire in the poisoned model says nothing, however large; `plain` is no attack
    assert lines["asked in other words"].shares == {"unlearned": 0.2, "poisoned": 0.3}


def test_what_brings_most_back_is_said_beside_the_retrained_model() -> None:
    said = tried_sentence(most_of_each(FOUND))
    assert said.endswith("(20 poisoned rows): 50.0 %, retrained model 5.0 %."), said
    alone = {role: found for role, found in FOUND.items() if role != "retrain"}
    assert tried_sentence(most_of_each(alone)).endswith("50.0 %, no retrained model to compare with.")


@pytest.mark.parametrize("attacked", [True, False])
def test_the_page_lists_what_was_not_tried(tmp_path: Path, attacked: bool) -> None:
    (tmp_path / "evaluation").mkdir()
    if attacked:
        (tmp_path / "evaluation" / "attacks.json").write_text(json.dumps(FOUND))
    page = write_run_report(tmp_path).read_text()
    assert ("What was tried against it" in page) is attacked
    assert ("relearning from clean rows" in page and "quantisation to int8" in page) is attacked
