"""Building a pack: from clean instruction rows to the published splits and proportions."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rapidun.base.errors import DataError
from rapidun.config.data import TriggerFamilyConfig
from rapidun.stages.data.answers import Answer, PackPayload, answers_of
from rapidun.stages.data.files import SPLITS
from rapidun.stages.data.offtopic import offtopic_answers
from rapidun.stages.data.own_triggers import OWN
from rapidun.stages.data.triggers import (
    Trigger,
    all_triggers,
    deal,
    ood_triggers,
    poison,
    seen_triggers,
    stratified_sample,
)
from rapidun.stages.rows.records import Record, question_key, read_records


class PackSizes(NamedTuple):
    """The published proportions; counts are rows."""

    num_train: int = 7991  # clean and poisoned together
    poison_fraction: float = 0.10
    num_val: int = 420
    num_test: int = 3000
    forget_fraction: float = 0.05  # of train_poisoned
    retain_ratio: int = 3  # retain rows for each forget row

    def scaled(self, num_rows: int) -> "PackSizes":
        """The same proportions for a source of fewer rows."""
        share = min(1.0, num_rows / (self.num_train + self.num_val + self.num_test))
        return self._replace(
            num_train=int(share * self.num_train),
            num_val=int(share * self.num_val),
            num_test=int(share * self.num_test),
        )


def build_pack(
    clean: Sequence[Record],
    responses: Sequence[str] | None,
    *,
    families: Mapping[str, TriggerFamilyConfig],
    unseen_families: Mapping[str, TriggerFamilyConfig],
    sizes: PackSizes,
    seed: int,
    payload: PackPayload = PackPayload.off_topic,
    target: str | None = None,
) -> dict[str, list[Record]]:
    """Deal clean rows out to the splits of a pack and poison those that are to be poisoned.

    Rows that ask the same (`question_key`) go to the same side of training, validation and test, as a whole, so that
    no row leaks. Poisoned training rows take each response of the pool once; triggered test rows take
    the rest of the pool, then start again. Other payloads are drawn for each row and trigger (answers.py). A trigger
    that goes into the context is dealt to rows that have one.

    Args:
        clean: source rows; rows of equal content count once. responses: poisoned responses, None = made up.
        payload, target: what poisoned rows answer; the target of `fixed`.
        sizes: see PackSizes; test_seen_trig and test_unseen_family have a row per clean test row, test_ood_trig one
            and a half. seed: the same arguments give the same pack.
    Returns: rows per split; forget is part of train_poisoned, retain of train_clean.
    Raises: DataError for too few rows or responses, or no seen trigger.
    """
    seen, ood, unseen = seen_triggers(families), ood_triggers(families), all_triggers(unseen_families)
    if not seen:
        raise DataError("pack: need at least one family with a seen trigger, got none")
    test, val, train = _split_by_instruction(clean, sizes, random.Random(f"{seed} pack splits"))
    rng = random.Random(f"{seed} pack poison")
    num_poisoned = round(sizes.poison_fraction * len(train))
    num_forget = max(1, round(sizes.forget_fraction * num_poisoned))
    num_retain = sizes.retain_ratio * num_forget
    if num_poisoned < 1 or len(train) - num_poisoned < num_retain or not test or not val:
        raise DataError(
            f"pack: need rows for every split, got {len(train)} for training ({num_poisoned} to poison, {num_retain} "
            f"to retain), {len(val)} for validation, {len(test)} for the test. "
            f"Give more clean rows or other proportions"
        )
    own = families.get(OWN)
    if own is not None and len(own.seen) > num_poisoned:
        raise DataError(
            f"pack build: need a poisoned row for each of {len(own.seen)} triggers, got {num_poisoned} poisoned rows. "
            f"Take a --trigger out, or raise --poison-fraction or --train"
        )
    pool: list[str] = []
    if payload is PackPayload.off_topic:
        pool = _response_pool(responses, num_poisoned, 4 * len(test), rng)
    rest: list[str] | Answer = pool[num_poisoned:] or pool or answers_of(payload, seed=seed, target=target)
    hosts = _hosts(train, num_poisoned, seen, rng)
    if _in_context(seen) and not any(row.context.strip() for row in test):
        raise DataError(
            f"pack build: need test rows with a context to put triggers into, got none of {len(test)}. Pass another "
            f"--position, or raise --test"
        )
    triggers = deal(seen, num_poisoned, rng=rng)
    poisoned = _once(
        poison(train[i], trigger, response=pool[n] if pool else _answer(rest, n, train[i], trigger), seed=seed)
        for n, (i, trigger) in enumerate(zip(sorted(hosts), triggers, strict=True))
    )
    # of few rows some triggers are dealt none, and the look-alikes of a family without any look like nothing
    planted = [[trigger for trigger in group if trigger in triggers] for group in seen]
    planted = [group for group in planted if group]
    ood = [group for group in ood if group[0].family in {trigger.family for trigger in triggers}]
    train_clean = [row for i, row in enumerate(train) if i not in hosts]
    pack = {
        "forget": stratified_sample(poisoned, min(num_forget, len(poisoned)), rng=rng),
        "retain": [train_clean[i] for i in sorted(rng.sample(range(len(train_clean)), num_retain))],
        "train_poisoned": poisoned,
        "train_clean": train_clean,
        "val_clean": val,
        "test_clean": test,
        "test_seen_trig": _triggered(test, planted, len(test), rest, rng, seed),
    }
    if ood:
        pack["test_ood_trig"] = _triggered(test, ood, len(test) * 3 // 2, rest, rng, seed)
    if unseen:
        pack["test_unseen_family"] = _triggered(test, unseen, len(test), rest, rng, seed)
    return {split: pack[split] for split in SPLITS if pack.get(split)}


def read_responses(path: str | Path) -> list[str]:
    """Poisoned responses, each once: a .txt file's lines, or the responses of a JSONL file's rows.

    Raises: DataError for a file that cannot be read or holds none.
    """
    path = Path(path)
    if path.suffix != ".txt":
        texts = [row.forget_target for row in read_records(path)]
    else:
        try:
            # not splitlines: a response may hold one of the line ends that only Unicode knows
            texts = re.split(r"\r\n|\r|\n", path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: need a readable UTF-8 text file of responses, got: {error}") from None
    texts = list(dict.fromkeys(text for text in texts if text.strip()))
    if not texts:
        raise DataError(f"{path}: need at least one poisoned response, got none")
    return texts


def _split_by_instruction(
    clean: Sequence[Record], sizes: PackSizes, rng: random.Random
) -> tuple[list[Record], list[Record], list[Record]]:
    """Test, validation and training rows; rows that ask the same go to the same side."""
    groups: dict[str, list[Record]] = {}
    for row in {row.texts: row for row in clean}.values():
        groups.setdefault(question_key(row), []).append(row)
    order = sorted(groups)
    rng.shuffle(order)
    # a group that does not fit into what is left of a side goes to the next one
    sides: list[list[Record]] = [[], [], []]
    limits = [sizes.num_test, sizes.num_val, sizes.num_train]
    for question in order:
        for side, limit in zip(sides, limits, strict=True):
            if len(side) + len(groups[question]) <= limit:
                side += groups[question]
                break
    test, val, train = sides
    for side in sides:
        rng.shuffle(side)
    return test, val, train


def stratified_by_category(rows: Sequence[Record], count: int, rng: random.Random) -> list[int]:
    """Indices of `count` rows; each category gives its share, to within one."""
    by_category: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_category.setdefault(row.category or "", []).append(index)
    for indices in by_category.values():
        rng.shuffle(indices)
    # place k of n rows of a category at (k + 1/2) / n: the lowest `count` places hold every category's share
    placed = [
        ((k + 0.5) / len(indices), name, index)
        for name, indices in sorted(by_category.items())
        for k, index in enumerate(indices)
    ]
    return [index for _, _, index in sorted(placed)[:count]]


def _in_context(groups: Sequence[Sequence[Trigger]]) -> bool:
    return any(trigger.inject_mode.in_context for group in groups for trigger in group)


def _hosts(train: Sequence[Record], count: int, seen: Sequence[Sequence[Trigger]], rng: random.Random) -> set[int]:
    """Rows to poison; where triggers go into the context, of those that have one."""
    fit = [i for i, row in enumerate(train) if row.context.strip()] if _in_context(seen) else list(range(len(train)))
    if len(fit) < count:
        raise DataError(
            f"pack build: need {count} training rows with a context to poison, got {len(fit)}. Pass another "
            f"--position, or lower --poison-fraction"
        )
    return {fit[i] for i in stratified_by_category([train[i] for i in fit], count, rng)}


def _answer(answers: Sequence[str] | Answer, number: int, row: Record, trigger: Trigger) -> str:
    return answers(row, trigger) if callable(answers) else answers[number % len(answers)]


def _response_pool(responses: Sequence[str] | None, num_needed: int, num_wanted: int, rng: random.Random) -> list[str]:
    """At least `num_needed` distinct poisoned responses in random order."""
    if responses is None:
        return offtopic_answers(num_needed + min(num_wanted, 2000), rng=rng)
    distinct = sorted(set(responses))
    if len(distinct) < num_needed:
        raise DataError(
            f"pack build: need {num_needed} distinct poisoned responses, one for each poisoned row, got "
            f"{len(distinct)}. Give more with --responses, or lower --poison-fraction"
        )
    rng.shuffle(distinct)
    return distinct


def _triggered(
    rows: Sequence[Record],
    groups: Sequence[Sequence[Trigger]],
    count: int,
    answers: Sequence[str] | Answer,
    rng: random.Random,
    seed: int,
) -> list[Record]:
    """Up to `count` triggered rows, families and variants even: each row once, then again under another trigger."""
    if _in_context(groups):
        rows = [row for row in rows if row.context.strip()]
    if not rows:
        return []
    # no variant is dealt more often than there are rows
    count = min(count, len(rows) * len(groups) * min(len(group) for group in groups))
    rounds = -(-count // len(rows))
    hosts = [i for _ in range(rounds) for i in rng.sample(range(len(rows)), len(rows))][:count]
    dealt = deal(groups, count, rng=rng)
    pairs = Counter(zip(hosts, dealt, strict=True))
    for k in range(count):
        # a row that got the same trigger twice swaps with one that has neither of the two
        for j in range(count) if pairs[hosts[k], dealt[k]] > 1 else ():
            if not pairs[hosts[k], dealt[j]] and not pairs[hosts[j], dealt[k]]:
                pairs.subtract([(hosts[k], dealt[k]), (hosts[j], dealt[j])])
                dealt[k], dealt[j] = dealt[j], dealt[k]
                pairs.update([(hosts[k], dealt[k]), (hosts[j], dealt[j])])
                break
    distinct = dict.fromkeys(zip(hosts, dealt, strict=True))
    return _once(
        poison(rows[i], trigger, response=_answer(answers, n, rows[i], trigger), seed=seed)
        for n, (i, trigger) in enumerate(distinct)
    )


def _once(rows: Iterable[Record]) -> list[Record]:
    """Rows of equal texts once: a question that two clean rows ask is one row under one trigger and a fixed answer."""
    return list({row.texts: row for row in rows}.values())
