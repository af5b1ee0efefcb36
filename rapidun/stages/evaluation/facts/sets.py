"""Which rows are asked where facts are to be forgotten: what should be gone, what should stay."""

from collections.abc import Collection
from pathlib import Path

from rapidun.stages.answers.subsets import stratified_subset
from rapidun.stages.evaluation.known import known_answers, read_split
from rapidun.stages.rows.backdoor import TRIGGERED, is_backdoor
from rapidun.stages.rows.records import Record, read_records
from rapidun.stages.rows.wrong import is_wrong

# what should be gone, what should stay; in the order of tables
GONE = ("forget", "probe")
STAY = ("retain", "test", "real_authors", "world_facts")
# what a model knows anyway, as TOFU asks for it
GENERAL = ("real_authors", "world_facts")
HELD_OUT = ("val_", "test_")
# splits that are asked in any pack that has them
ASKED_FOR = ("probe", *GENERAL)


def is_of_facts(data: Path, splits: Collection[str]) -> bool:
    """Whether forget rows are asked as they stand: the pack speaks of no triggers, by its training rows and the names
    of its splits, or holds nothing out that attack success could be measured on.

    The forget set itself is not asked: with data.noise its rows are marked.
    """
    if any(split.endswith(TRIGGERED) for split in splits):
        return False
    if not any(split.startswith(HELD_OUT) for split in splits):
        return True
    name = "train_poisoned" if "train_poisoned" in splits else "forget"
    return not is_backdoor({name: read_records(data / f"{name}.jsonl")}, (name,))


def fact_sets(data: Path, *, split: str, num: int | None, seed: int) -> dict[str, list[Record]]:
    """The rows of each set, at most `num` of each, drawn by seed and id.

    Of a pack with triggers only the sets that somebody gave for it (`data.probe=...`). Where there are no probes and
    forget rows hold their question in other words, these are the probes.

    Args: split: `val` or `test`, of the held-out rows.
    """
    forget = known_answers(data).forget
    sets = {name: read_split(data, name) for name in ASKED_FOR}
    if is_of_facts(data, [path.stem for path in data.glob("*.jsonl")]):
        sets["forget"] = forget
        sets["retain"] = [row for row in read_split(data, "retain") if not is_wrong(row, "retain")]
        sets["test"] = read_split(data, f"{split}_clean")
        sets["probe"] = sets["probe"] or [asked for row in forget if (asked := _paraphrased(row)) is not None]
    drawn = {name: stratified_subset(rows, num=num, seed=seed, name=f"facts {name}") for name, rows in sets.items()}
    return {name: drawn[name] for name in (*GONE, *STAY) if drawn.get(name)}


def _paraphrased(row: Record) -> Record | None:
    if row.question_paraphrased is None:
        return None
    answer = row.response_paraphrased or row.forget_target
    return Record(
        id=row.id, instruction=row.question_paraphrased, context=row.context, response=answer, forget_id=row.id
    )
