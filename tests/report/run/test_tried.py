"""What was tried, in a line a kind: the most of each model, and what was left untried."""

import json
from pathlib import Path
from typing import Any

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


AFTER = {"asr_seen": 0.0, "num_prompts_seen": 4}


def write(folder: Path, name: str, value: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def test_the_page_lists_what_was_not_tried(tmp_path: Path) -> None:
    write(tmp_path / "evaluation", "after.json", AFTER)
    write(tmp_path / "evaluation", "attacks.json", FOUND)
    page = write_run_report(tmp_path).read_text()
    assert "What was tried against it" in page
    assert "relearning from clean rows" in page and "quantisation to int8" in page
    assert "Nothing but greedy answers" not in page


def test_a_run_without_attacks_says_that_nothing_was_tried(tmp_path: Path) -> None:
    write(tmp_path / "evaluation", "after.json", AFTER)
    page = write_run_report(tmp_path).read_text()
    assert "What was tried against it" in page and "Nothing but greedy answers" in page
    assert "relearning" in page and "evaluation=attacks poison.retrain=true" in page


def test_attacks_that_say_nothing_are_not_taken_for_none(tmp_path: Path) -> None:
    """The poisoned model falls for no variant."""
    write(tmp_path / "evaluation", "after.json", AFTER)
    variants = {"doubled": {"num_prompts": 4, "note": "", "asr_prompts": 0.0}}
    found = {"attack": "prompts", "min_asr": 0.1, "variants": variants}
    none = {"unlearned": {"prompts": found}, "poisoned": {"prompts": found}, "testable": {"": [], "_likelihood": []}}
    write(tmp_path / "evaluation", "attacks.json", none)
    page = write_run_report(tmp_path).read_text()
    assert "No attack that was run says something" in page and "Nothing but greedy answers" not in page


def test_a_run_that_was_not_evaluated_has_nothing_to_try(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    assert "What was tried against it" not in write_run_report(tmp_path).read_text()
