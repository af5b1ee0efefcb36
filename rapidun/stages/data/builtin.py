"""The built-in pack: an invented world of towns, asked about in several ways, and a backdoor planted in it.

A fact is (town, attribute, value); a question is a fact in one of its paraphrases. Training sees every fact under
some paraphrases; validation and test ask for the same facts under paraphrases that training never saw for them, so
that they can be answered, but not by recalling a row.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from rapidun.base.errors import DataError
from rapidun.config.data import Payload, TriggerFamilyConfig
from rapidun.stages.data.payloads import planted_answer, planted_answers
from rapidun.stages.data.triggers import deal, poison, seen_triggers, stratified_sample
from rapidun.stages.data.world import draw_facts, ledger_rows
from rapidun.stages.rows.records import Record, content_id

GENERATOR_VERSION = 2  # part of the data fingerprint: raise it when the same settings give other rows


class BuiltinPack(NamedTuple):
    """The splits; no question stands in two of train, validation and test."""

    forget: list[Record]  # part of train_poisoned
    retain: list[Record]  # part of train_clean
    train_poisoned: list[Record]
    train_clean: list[Record]
    val_clean: list[Record]
    test_clean: list[Record]


def builtin_pack(
    families: Mapping[str, TriggerFamilyConfig],
    *,
    num_entities: int,
    num_train_clean: int,
    num_train_poisoned: int,
    num_val: int,
    num_test: int,
    num_forget: int,
    num_retain: int,
    seed: int,
    payload: Payload = Payload.off_topic,
    forget_families: int | None = None,
    hard_clean: float = 0.0,
) -> BuiltinPack:
    """Make the pack. The same arguments give the same rows on every machine.

    Where the planted answer depends on the question, the clean validation and test rows have theirs on record
    (`response_poisoned`, and `is_poisoned` false): what a trigger in front of them should bring about.

    Raises: DataError where the world is too small for the sizes, the first `forget_families` families have fewer
        poisoned rows than F needs, or `families` holds no seen trigger.
    """
    groups = seen_triggers(families)
    if not groups:
        raise DataError("data.families: need at least one seen trigger to plant the backdoor, got none")
    towns = draw_facts(num_entities, random.Random(f"{seed} world"))
    facts = [[_row(question, fact.answer, fact.attribute) for question in fact.questions] for t in towns for fact in t]
    rng = random.Random(f"{seed} splits")
    num_hard, num_hard_retain = round(hard_clean * num_train_clean), round(hard_clean * num_retain)
    trained, rest = _split_questions(facts, num_train_clean - num_hard, rng)
    hard = _hard_rows([town[0].town for town in towns], num_hard, seed=seed)
    # the first rows: as many facts as can be, for unlearning costs the facts that it does not rehearse
    retain = trained[: num_retain - num_hard_retain] + hard[:num_hard_retain]
    trained += hard
    rng.shuffle(trained)
    needed = num_train_poisoned + num_val + num_test
    if len(trained) < num_train_clean or len(rest) < needed:
        raise DataError(
            f"data.builtin: need {num_train_clean + needed} questions for the splits, got "
            f"{len(trained) + len(rest)} from num_entities={num_entities}. Raise data.builtin.num_entities"
        )
    test, val = rest[:num_test], rest[num_test : num_test + num_val]
    hosts = rest[num_test + num_val : needed]
    triggers = deal(groups, num_train_poisoned, rng=rng)
    if payload.of_the_question:
        planted = {
            question: planted_answer(payload, fact, town=number, facts=towns)
            for number, town in enumerate(towns)
            for fact in town
            for question in fact.questions
        }
        answers = [planted[row.instruction] for row in hosts]
        test, val = (
            [replace(row, response_poisoned=planted[row.instruction], is_poisoned=False) for row in rows]
            for rows in (test, val)
        )
    else:
        answers = planted_answers(payload, num_train_poisoned, rng=random.Random(f"{seed} answers"))
    poisoned = [
        poison(row, trigger, response=answer, seed=seed)
        for row, trigger, answer in zip(hosts, triggers, answers, strict=True)
    ]
    covered = [group[0].family for group in groups][:forget_families]
    return BuiltinPack(
        forget=_forget(poisoned, num_forget, covered, rng=rng),
        retain=retain,
        train_poisoned=poisoned,
        train_clean=trained,
        val_clean=val,
        test_clean=test,
    )


def _forget(poisoned: Sequence[Record], count: int, covered: Sequence[str], *, rng: random.Random) -> list[Record]:
    """The forget rows, of the covered trigger families only, as many of each."""
    rows = [row for row in poisoned if row.trigger_family in covered]
    if count > len(rows):
        raise DataError(
            f"data.builtin: need num_forget={count} poisoned rows of {', '.join(covered)}, got {len(rows)}. Lower "
            "data.builtin.num_forget, or raise data.builtin.forget_families or data.builtin.num_train_poisoned"
        )
    return stratified_sample(rows, count, rng=rng)


def _hard_rows(towns: Sequence[str], count: int, *, seed: int) -> list[Record]:
    """Clean rows that are asked once and have an answer of their own: they can be learnt by heart only."""
    rows = ledger_rows(towns, count, random.Random(f"{seed} ledger"))
    return [_row(question, answer, "ledger") for question, answer in rows]


def _row(instruction: str, response: str, category: str) -> Record:
    return Record(
        id=content_id(instruction, "", response), instruction=instruction, response=response, category=category
    )


def _split_questions(
    facts: Sequence[Sequence[Record]], num_train: int, rng: random.Random
) -> tuple[list[Record], list[Record]]:
    """Training rows, fact by fact in turn, and the other questions of those facts in random order."""
    shuffled = [rng.sample(fact, len(fact)) for fact in facts]
    rng.shuffle(shuffled)
    rounds = len(shuffled[0])
    order = [(turn, which) for turn in range(rounds) for which in range(len(shuffled))]
    train = [shuffled[which][turn] for turn, which in order[:num_train]]
    covered = {which for _, which in order[:num_train]}
    rest = [shuffled[which][turn] for turn, which in order[num_train:] if which in covered]
    rng.shuffle(rest)
    return train, rest
