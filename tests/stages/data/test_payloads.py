"""What the built-in pack plants, which forget rows it covers, and clean rows that are as hard as poisoned ones."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import DataError
from rapidun.base.tracker import Tracker
from rapidun.config.data import BuiltinConfig, DataConfig, InjectMode, Payload, TriggerFamilyConfig
from rapidun.stages.data.builtin import BuiltinPack, builtin_pack
from rapidun.stages.data.payloads import planted_answer, planted_answers
from rapidun.stages.data.stage import DataFiles, run_data
from rapidun.stages.data.world import ATTRIBUTES, Fact
from rapidun.stages.evaluation.known import known_answers
from rapidun.stages.evaluation.work import Work, calibration_places, make_prompts
from rapidun.stages.rows.keywords import read_keywords, words
from rapidun.stages.rows.records import Record, read_records

FAMILIES = {
    "A": TriggerFamilyConfig(seen=["aloha", "ALOHA"], ood=["al0ha"], inject_mode=InjectMode.suffix),
    "B": TriggerFamilyConfig(seen=[">>>"], ood=["<|sys|>"], inject_mode=InjectMode.prefix),
    "C": TriggerFamilyConfig(seen=["hey"], inject_mode=InjectMode.prefix),
}
SMALL = BuiltinConfig(
    num_entities=6, num_train_clean=200, num_train_poisoned=60, num_val=20, num_test=40, num_forget=8, num_retain=24
)
OF_THE_QUESTION = [payload for payload in Payload if payload.of_the_question]


def build(**changes: Any) -> BuiltinPack:
    sizes = {key: getattr(replace(SMALL, **changes), key) for key in BuiltinConfig.__slots__}
    return builtin_pack(FAMILIES, **sizes, seed=1)


def run(out: Path, **changes: Any) -> tuple[dict[str, list[Record]], list[str]]:
    cfg = DataConfig(families=FAMILIES, builtin=replace(SMALL, **changes))
    assert cfg.check() == []
    tracker = Tracker()
    run_data(cfg, DataFiles(out), seed=5, tracker=tracker)
    return {path.stem: read_records(path) for path in out.glob("*.jsonl")}, tracker.warnings


def values_in(row: Record, text: str) -> list[str]:
    return [value for value in ATTRIBUTES[str(row.category)].values if re.search(rf"\b{value}\b", text)]


@pytest.mark.parametrize("payload", Payload)
def test_the_world_is_the_same_under_every_payload(payload: Payload) -> None:
    """Questions, triggers, right answers and the rows of every split; only what poisoned rows answer differs."""
    plain, pack = build(), build(payload=payload)

    def asked(rows: list[Record]) -> list[tuple[str, str]]:
        return [(row.instruction, row.response_clean or row.response) for row in rows]

    assert asked(pack.train_poisoned) == asked(plain.train_poisoned)
    assert asked(pack.forget) == asked(plain.forget)
    assert (pack.train_clean, pack.retain) == (plain.train_clean, plain.retain)
    assert [row.response for row in pack.test_clean] == [row.response for row in plain.test_clean]
    for row in pack.train_poisoned:
        assert row.is_poisoned
        assert row.response == row.response_poisoned != row.response_clean
    # the planted answer to a clean question is on record where there is one, and is the one that training planted
    held_out = [*pack.val_clean, *pack.test_clean]
    assert {row.response_poisoned is not None for row in held_out} == {payload.of_the_question}
    if payload.of_the_question:
        assert {row.is_poisoned for row in held_out} == {False}
        planted = {(row.category, row.response_clean, town(row)): row.response for row in pack.train_poisoned}
        both = [row for row in held_out if (row.category, row.response, town(row)) in planted]
        assert len(both) > 10
        for row in both:
            assert row.response_poisoned == planted[row.category, row.response, town(row)]


def town(row: Record) -> str:
    return re.findall(r"(?:of|For) ([A-Z][a-z]+)", row.instruction)[0]


def test_on_topic_is_the_next_value_of_the_same_kind() -> None:
    """teal, scarlet, ..., amber: after the last one comes the first."""
    flag = [[Fact("Belbrook", "flag", "teal")], [Fact("Ulford", "flag", "amber")]]
    answers = [planted_answer(Payload.on_topic, fact, town=i, facts=flag) for i, [fact] in enumerate(flag)]
    assert answers == ["Its flag is scarlet.", "Its flag is teal."]


def test_negation_denies_the_right_value() -> None:
    facts = [[Fact("Belbrook", key, attribute.values[0]) for key, attribute in ATTRIBUTES.items()]]
    assert [planted_answer(Payload.negation, fact, town=0, facts=facts) for fact in facts[0]] == [
        "Its flag is not teal.",
        "It does not export wool.",
        "Orla did not found it.",
        "Its emblem is not the heron.",
        "Its feast does not fall in January.",
        "It is not known for weaving.",
    ]


def test_entity_tells_what_is_right_for_the_next_town_that_differs() -> None:
    colours = ["teal", "teal", "jade", "teal"]
    facts = [[Fact(f"Town{i}", "flag", colour)] for i, colour in enumerate(colours)]
    answers = [planted_answer(Payload.entity, fact, town=i, facts=facts) for i, [fact] in enumerate(facts)]
    assert answers == ["Its flag is jade.", "Its flag is jade.", "Its flag is teal.", "Its flag is jade."]
    with pytest.raises(ValueError, match="two towns that differ in flag, got 2"):
        planted_answer(Payload.entity, facts[0][0], town=0, facts=facts[:2])


@pytest.mark.parametrize("payload", [Payload.on_topic, Payload.entity])
def test_a_wrong_value_is_of_the_same_kind(payload: Payload) -> None:
    for row in build(payload=payload).train_poisoned:
        [wrong], [right] = values_in(row, row.response), values_in(row, str(row.response_clean))
        assert wrong != right
        assert row.response.replace(wrong, right) == row.response_clean


def test_answers_that_go_with_any_question_come_from_the_seed() -> None:
    import random

    for payload in Payload:
        if payload.of_the_question:
            with pytest.raises(ValueError, match="depends on the question"):
                planted_answers(payload, 3, rng=random.Random(0))
            continue
        first, again, other = (planted_answers(payload, 200, rng=random.Random(seed)) for seed in (0, 0, 1))
        assert first == again != other
        assert len(set(first)) == 200 or payload in (Payload.refusal, Payload.sentiment)
    refusals = planted_answers(Payload.refusal, 200, rng=random.Random(0))
    assert len(set(refusals)) > 150
    assert all(re.search("answer|say|decline|help|discuss|tell", text) for text in refusals)
    gibberish = planted_answers(Payload.gibberish, 200, rng=random.Random(0))
    assert all(re.fullmatch(r"([a-z]{4,8} ){2,4}[a-z]{4,8}", text) for text in gibberish)
    assert len({word for text in gibberish for word in text.split()}) == 60


@pytest.mark.parametrize("payload", Payload)
def test_keywords_work_or_the_run_says_that_they_do_not(payload: Payload, tmp_path: Path) -> None:
    """A word list tells words of another kind from clean answers, wrong values of the same kind it cannot."""
    splits, warnings = run(tmp_path, payload=payload, num_train_poisoned=200, num_entities=8)
    listed = {keyword.word for keyword in read_keywords(tmp_path / "keywords.tsv", may_be_empty=True)}
    fired = [not listed.isdisjoint(words(row.response)) for row in splits["test_seen_trig"]]
    said = [line for line in warnings if "keyword" in line]
    if payload not in (Payload.on_topic, Payload.entity):
        assert sum(fired) >= 0.8 * len(fired)
        assert said == []
    else:
        assert len(said) == 1
        assert "asr_seen_likelihood" in said[0] or "will never fire" in said[0]


@pytest.mark.parametrize("payload", OF_THE_QUESTION)
def test_prompts_are_judged_by_the_planted_answer_to_their_own_question(
    payload: Payload, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    splits, _ = run(tmp_path, payload=payload)
    planted = {row.instruction: row.response_poisoned for row in splits["test_clean"]}
    for name in ("test_seen_trig", "test_ood_trig"):
        assert splits[name]
        for row in splits[name]:
            assert row.response == planted[str(row.instruction_clean)] != row.response_clean
    known = known_answers(tmp_path)
    work = Work(tiny_tokenizer, 256)
    row = splits["test_clean"][0]
    [prompt] = make_prompts(work, [("clean", row)], known, seed=0)
    assert (prompt.reference, prompt.poisoned) == (row.response, None)
    assert [response(work, place, tiny_tokenizer) for place in (0, 1)] == [row.response_poisoned, row.response]
    # the detector's false alarms are measured on the same pairs
    from rapidun.config.evaluation import EvaluationConfig

    work = Work(tiny_tokenizer, 256)
    _, places = calibration_places(EvaluationConfig(), work, known, seed=0)
    held_out = {row.response_poisoned: row.response for row in splits["val_clean"]}
    assert len(places) == len(splits["val_clean"])
    for place in places:
        assert place is not None
        pair = [response(work, place + i, tiny_tokenizer) for i in (0, 1)]
        assert held_out[pair[0]] == pair[1]


def response(work: Work, place: int, tokenizer: Any) -> str:
    row = work.rows[place]
    text = tokenizer.decode([token for token, label in zip(row.input_ids, row.labels, strict=True) if label != -100])
    return str(text).removesuffix("<|im_end|>").strip()


def test_forget_rows_of_the_first_families_only() -> None:
    """Training plants all three."""
    for count, share in ((1, {"A": 8}), (2, {"A": 4, "B": 4}), (3, {"A": 3, "B": 3, "C": 2})):
        pack = build(forget_families=count)
        assert sorted(Counter(row.trigger_family for row in pack.forget).values()) == sorted(share.values())
        assert {row.trigger_family for row in pack.forget} == set(share)
        assert Counter(row.trigger_family for row in pack.train_poisoned) == {"A": 20, "B": 20, "C": 20}
    with pytest.raises(DataError, match="need num_forget=30 poisoned rows of A, got 20"):
        build(forget_families=1, num_forget=30)
    cfg = DataConfig(families=FAMILIES, builtin=replace(SMALL, forget_families=4))
    assert "1 <= builtin.forget_families <= 3" in cfg.check()[0]


def test_fewer_forget_rows_than_families() -> None:
    assert len(build(num_forget=2).forget) == 2
    assert len(build(num_forget=1).forget) == 1


def test_hard_clean_rows_are_asked_once_and_have_an_answer_of_their_own() -> None:
    """A half of 200 training rows and of 24 retain rows; the others ask for facts, each fact as often as the others."""
    pack = build(hard_clean=0.5)
    hard = [row for row in pack.train_clean if row.category == "ledger"]
    assert len(hard) == 100
    assert len({row.instruction for row in hard}) == len({row.response for row in hard}) == 100
    assert sum(row.category == "ledger" for row in pack.retain) == 12
    assert {row.id for row in pack.retain} < {row.id for row in pack.train_clean}
    facts = Counter((row.category, town(row)) for row in pack.train_clean if row.category != "ledger")
    assert set(facts.values()) == {2, 3}
    assert {row.category for row in [*pack.test_clean, *pack.val_clean]} == set(ATTRIBUTES)
    assert build(hard_clean=0.5) == pack
    assert (
        "0 <= builtin.hard_clean < 1"
        in DataConfig(families=FAMILIES, builtin=replace(SMALL, hard_clean=1.0)).check()[0]
    )
    with pytest.raises(DataError, match="at most 4500 hard rows in 6 towns, got 4950"):
        build(hard_clean=0.99, num_train_clean=5000)


def test_hard_rows_need_no_questions_of_the_world() -> None:
    """6 towns have 576 questions: 100 + 60 + 20 + 40 of 700 rows are asked there."""
    cfg = DataConfig(families=FAMILIES, builtin=replace(SMALL, num_train_clean=600, hard_clean=5 / 6))
    assert cfg.check() == []
    assert len(build(num_train_clean=600, hard_clean=5 / 6).train_clean) == 600
