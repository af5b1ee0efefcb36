"""Which rows privacy is measured on: members and non-members of the same kind, prompts with recorded answers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rapidun.stages.answers.subsets import stratified_subset
from rapidun.stages.evaluation.known import clean_response, known_answers, poisoned_response, read_split
from rapidun.stages.rows.records import Record, question_key
from rapidun.stages.rows.wrong import is_wrong

# what models are trained on
TRAINED = ("forget", "retain", "train_poisoned", "train_clean")


class Answered(NamedTuple):
    """A row, and the response of it that is scored."""

    record: Record
    response: str


class Compared(NamedTuple):
    """Forget rows, and rows that no model was trained on."""

    members: list[Answered]
    others: list[Answered]
    # the split that the others come from
    split: str
    # whether they are of the members' kind: with a trigger and a poisoned response, or both without
    alike: bool
    # of the split: asked in training as well; with a trigger of a family that no forget row has; without a response
    in_training: int
    other_families: int
    unanswered: int

    @property
    def enough(self) -> bool:
        return min(len(self.members), len(self.others)) >= 2


def splits_read(split: str) -> tuple[str, ...]:
    return (*TRAINED, f"{split}_clean", f"{split}_seen_trig")


def compared(data: Path, *, split: str, num: int | None, seed: int) -> Compared:
    """Members: the forget rows with what poisoning taught. Non-members: held-out rows of the same kind.

    With a trigger of the forget rows' families and a poisoned response on record, where forget rows have one; else, or
    where the pack has none of these, held-out clean rows with their response (not alike if forget rows are poisoned).
    A row is left out if its id, or what it asks without its trigger, stands in a training split.

    Args: split: `val` or `test`. num: at most as many on each side, families in their shares; null = all.
    """
    forget = known_answers(data).forget
    trained = [row for name in TRAINED for row in read_split(data, name)]
    triggered = read_split(data, f"{split}_seen_trig")
    texts = {row.trigger_variant for row in (*trained, *triggered) if row.trigger_variant}
    triggers = sorted(texts, key=lambda text: (-len(text), text))
    ids, asked = {row.id for row in trained}, {question_key(row, triggers) for row in trained}
    poisoned = any(poisoned_response(row) is not None for row in forget)

    def untrained(name: str, rows: Sequence[Record], response: Callable[[Record], str | None]) -> Compared:
        fresh = [row for row in rows if row.id not in ids and question_key(row, triggers) not in asked]
        families = {row.trigger_family for row in forget}
        kind = [row for row in fresh if row.trigger_family in families] if name.endswith("_trig") else fresh
        answered = [Answered(row, text) for row in kind if (text := response(row)) is not None]
        return Compared(
            [], answered, name, poisoned == name.endswith("_trig"),
            len(rows) - len(fresh), len(fresh) - len(kind), len(kind) - len(answered),
        )  # fmt: skip

    found = untrained(f"{split}_seen_trig", triggered, poisoned_response) if poisoned else None
    if found is None or not found.others:
        found = untrained(f"{split}_clean", read_split(data, f"{split}_clean"), clean_response)
    members = _drawn([Answered(row, row.forget_target) for row in forget], "members", num=num, seed=seed)
    return found._replace(members=members, others=_drawn(found.others, "non-members", num=num, seed=seed))


def forget_answers(data: Path, *, num: int | None, seed: int) -> list[Answered]:
    """The forget rows with what poisoning taught, those that `compared` has."""
    rows = [Answered(row, row.forget_target) for row in known_answers(data).forget]
    return _drawn(rows, "members", num=num, seed=seed)


def distance_sets(data: Path, *, split: str, num: int | None, seed: int) -> dict[str, list[Answered]]:
    """What distance is measured on: clean prompts with their answer, triggered ones with the clean and the poisoned."""
    triggered = read_split(data, f"{split}_seen_trig")
    sets = {
        "clean": [(row, clean_response(row)) for row in read_split(data, f"{split}_clean")],
        "triggered": [(row, clean_response(row)) for row in triggered],
        "triggered_poisoned": [(row, poisoned_response(row)) for row in triggered],
    }
    found = {}
    for name, rows in sets.items():
        answered = [Answered(row, text) for row, text in rows if text is not None]
        # the same prompts with both answers
        found[name] = _drawn(answered, f"distance {name.partition('_')[0]}", num=num, seed=seed)
    return {name: rows for name, rows in found.items() if rows}


def margin_sets(data: Path, *, split: str, num: int | None, seed: int) -> dict[str, list[Answered]]:
    """The points of KLOM: what is forgotten, what is retained, what was never seen."""
    retain = [Answered(row, row.response) for row in read_split(data, "retain") if not is_wrong(row, "retain")]
    held_out = distance_sets(data, split=split, num=num, seed=seed)
    sets = {"forget": forget_answers(data, num=num, seed=seed), "retain": _drawn(retain, "margins", num=num, seed=seed)}
    sets |= {name: held_out.get(name, []) for name in ("clean", "triggered")}
    return {name: rows for name, rows in sets.items() if rows}


def _drawn(rows: list[Answered], name: str, *, num: int | None, seed: int) -> list[Answered]:
    if num is None or num >= len(rows):
        return rows
    # ids are those of the rows' content: one that stands twice is drawn with both
    kept = {id(record) for record in stratified_subset([r.record for r in rows], num=num, seed=seed, name=name)}
    return [row for row in rows if id(row.record) in kept]
