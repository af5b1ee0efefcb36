"""Which rows are looked at: subsets that depend on the seed and on the rows' ids, not on their order."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from rapidun.stages.rows.records import Record


def stratified_subset(records: Sequence[Record], *, num: int | None, seed: int, name: str) -> list[Record]:
    """At most `num` records, each trigger family in its share (largest remainders), in the order they came.

    Within a family the records with the least hash(seed, name, id) are drawn, whatever their place in the file.

    Args:
        num: null = all. name: says what the subset is for; other names draw independently.
    """
    if num is None or num >= len(records):
        return list(records)
    families: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        families[record.trigger_family or ""].append(index)
    shares = {family: num * len(indices) / len(records) for family, indices in families.items()}
    counts = {family: int(share) for family, share in shares.items()}
    by_remainder = sorted(shares, key=lambda family: (counts[family] - shares[family], family))
    for family in by_remainder[: num - sum(counts.values())]:
        counts[family] += 1
    chosen: list[int] = []
    for family, indices in families.items():
        chosen += sorted(indices, key=lambda i: (draw(seed, name, records[i].id), i))[: counts[family]]
    return [records[index] for index in sorted(chosen)]


def paired_responses(records: Sequence[Record], pool: Sequence[str], *, seed: int, name: str) -> list[str]:
    """For each record one text of the pool, by hash(seed, name, id)."""
    texts = sorted(set(pool))
    return [texts[int(draw(seed, name, record.id), 16) % len(texts)] for record in records]


def draw(seed: int, name: str, record_id: str) -> str:
    """A hex number that is as good as random, the same on every machine."""
    return hashlib.sha256(f"{seed}\0{name}\0{record_id}".encode()).hexdigest()
