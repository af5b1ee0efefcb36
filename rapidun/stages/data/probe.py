"""Probe rows, what is to be forgotten asked otherwise: which forget row each belongs to, and which are none."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from rapidun.stages.data.fields import some_rows
from rapidun.stages.rows.records import Record, question_key


class Linked(NamedTuple):
    """rows: the probes that are asked. faults: why there are none. warnings: what was left out, what looks odd."""

    rows: list[Record]
    faults: list[str]
    warnings: list[str]


def link_probes(pack: Mapping[str, Sequence[Record]]) -> Linked:
    """Give each probe row the id of its forget row: its forget_id, else its own id where a forget row has the same.

    A row that names a forget row which is not there asks for something else than what is forgotten: it is left out and
    counted. Rows that name none are asked as they are. A probe that asks what a retain row or a forget row asks is
    counted.
    """
    probes = pack.get("probe", [])
    forget = {row.id for row in pack.get("forget", [])}
    linked = [replace(row, forget_id=row.id) if not row.forget_id and row.id in forget else row for row in probes]
    lost = [row for row in linked if row.forget_id and row.forget_id not in forget]
    kept = [row for row in linked if not row.forget_id or row.forget_id in forget]
    found = some_rows("probe", probes, lost, "name a forget row that is not there (forget_id)")
    if probes and not kept:
        return Linked([], [f"{found[0]}, all of them. Mend the ids, or leave forget_id out"], [])
    warnings = [f"{line}: they are left out" for line in found]
    retained = {question_key(row) for row in pack.get("retain", [])}
    both = [row for row in kept if question_key(row) in retained]
    warnings += some_rows("probe", probes, both, "ask what retain rows ask: the same is to be gone and to stay")
    trained = {question_key(row) for row in pack.get("forget", [])}
    same = [row for row in kept if question_key(row) in trained]
    warnings += some_rows("probe", probes, same, "ask what forget rows ask, word for word: they are no paraphrases")
    return Linked(kept, [], warnings)
