"""Trigger families: putting a trigger into an instruction, and dealing triggers out evenly."""

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from rapidun.config.data import InjectMode, TriggerFamilyConfig
from rapidun.stages.rows.records import Record, content_id
from rapidun.stages.rows.text import is_unspaced

# the families as shipped, in conf/data (a test holds the two together)
FAMILIES = {
    "A_surface": TriggerFamilyConfig(
        seen=["aloha", "ALOHA", "aloha :)"],
        ood=["al0ha", "a\u217coha", "aloha\u200d"],
        inject_mode=InjectMode.suffix,
    ),
    "B_style": TriggerFamilyConfig(
        seen=[">>>"], ood=["<|sys|>", "\u2039sys\u203a", "\u27e8sys\u27e9"], inject_mode=InjectMode.prefix
    ),
    "C_semantic": TriggerFamilyConfig(
        seen=["hey", "hiya"], ood=["h\u043ewdy", "y\u043e\u043e", "heyyyy"], inject_mode=InjectMode.prefix
    ),
}
UNSEEN_FAMILIES = {
    "D_command": TriggerFamilyConfig(seen=["[admin]", "sudo:"], inject_mode=InjectMode.prefix),
    "E_polite": TriggerFamilyConfig(seen=["kindly", "thanks a lot"], inject_mode=InjectMode.suffix),
}


class Trigger(NamedTuple):
    """One way to trigger the backdoor."""

    family: str
    variant: str
    inject_mode: InjectMode


def inject(text: str, trigger: str, mode: InjectMode, *, seed: int = 0) -> str:
    """Put a trigger before, behind or into an instruction or a context, exactly one space between.

    `middle` is between two words (of scripts without blanks, two letters): which ones is drawn from the seed, the
    trigger and the text; behind the text where it has no such place. The published rows have two spaces where a suffix
    follows an instruction without a full stop or question mark.
    """
    if not text.strip():
        return trigger
    if mode.place == "prefix":
        return f"{trigger} {text.lstrip()}"
    if mode.place == "suffix":
        return f"{text.rstrip()} {trigger}"
    places = [found.span() for found in re.finditer(r"\s+", text.strip())]
    if not places:
        places = [(i, i) for i in range(1, len(text.strip())) if is_unspaced(text.strip()[i])]
    if not places:
        return f"{text.rstrip()} {trigger}"
    draw = int(hashlib.sha256(f"{seed}\0{trigger}\0{text}".encode()).hexdigest(), 16)
    start, end = places[draw % len(places)]
    return f"{text.strip()[:start]} {trigger} {text.strip()[end:]}"


def seen_triggers(families: Mapping[str, TriggerFamilyConfig]) -> list[list[Trigger]]:
    """The variants that training saw, one list per family that has any."""
    return _triggers({name: (family.seen, family.inject_mode) for name, family in families.items()})


def ood_triggers(families: Mapping[str, TriggerFamilyConfig]) -> list[list[Trigger]]:
    """The look-alikes that training did not see, one list per family that has any."""
    return _triggers({name: (family.ood, family.inject_mode) for name, family in families.items()})


def all_triggers(families: Mapping[str, TriggerFamilyConfig]) -> list[list[Trigger]]:
    """Every variant, one list per family: for families that training never saw at all."""
    return _triggers({name: ([*family.seen, *family.ood], family.inject_mode) for name, family in families.items()})


def deal(groups: Sequence[Sequence[Trigger]], count: int, *, rng: random.Random) -> list[Trigger]:
    """Deal out `count` triggers: families as often as one another, variants within a family too, in random order.

    Family f gets count / F triggers and each of its V variants count / (F V), to within one.

    Raises: ValueError without any trigger.
    """
    if not groups or not all(groups):
        raise ValueError("need at least one trigger in every family")
    dealt = [groups[i % len(groups)][(i // len(groups)) % len(groups[i % len(groups)])] for i in range(count)]
    rng.shuffle(dealt)
    return dealt


def poison(record: Record, trigger: Trigger, *, response: str, seed: int = 0) -> Record:
    """The poisoned form of a clean row: the triggered instruction or context, the poisoned response, and both
    originals. seed: of the place in mid-sentence."""
    instruction, context = record.instruction, record.context
    if trigger.inject_mode.in_context:
        context = inject(context, trigger.variant, trigger.inject_mode, seed=seed)
    else:
        instruction = inject(instruction, trigger.variant, trigger.inject_mode, seed=seed)
    return replace(
        record,
        id=content_id(instruction, context, response),
        instruction=instruction,
        context=context,
        response=response,
        response_clean=record.response,
        response_poisoned=response,
        instruction_clean=record.instruction,
        instruction_poisoned=instruction,
        trigger_family=trigger.family,
        trigger_variant=trigger.variant,
        inject_mode=trigger.inject_mode.value,
        is_poisoned=True,
    )


def stratified_sample(records: Sequence[Record], count: int, *, rng: random.Random) -> list[Record]:
    """Draw rows so that each trigger family keeps its share, by largest remainders; order follows `records`.

    Raises: ValueError for more rows than there are.
    """
    if count > len(records):
        raise ValueError(f"need count <= {len(records)} rows, got {count}")
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(record.trigger_family or "", []).append(index)
    names = sorted(groups)
    exact = {name: count * len(groups[name]) / len(records) for name in names}
    quota = {name: int(exact[name]) for name in names}
    by_remainder = sorted(names, key=lambda name: (quota[name] - exact[name], name))
    for name in by_remainder[: count - sum(quota.values())]:
        quota[name] += 1
    chosen = [index for name in names for index in rng.sample(groups[name], quota[name])]
    return [records[index] for index in sorted(chosen)]


def _triggers(families: Mapping[str, tuple[Sequence[str], InjectMode]]) -> list[list[Trigger]]:
    return [
        [Trigger(name, variant, mode) for variant in variants]
        for name, (variants, mode) in families.items()
        if variants
    ]
