"""The most helpful and most harmful pairs of each influence block."""

from dataclasses import dataclass

from rapidun.report.read import Influence

# what each block asks, the training example first
BLOCK_TITLES = {
    "ff": "forget row trained on, forget row asked about",
    "fr": "forget row trained on, retain row asked about",
    "rf": "retain row trained on, forget row asked about",
    "rr": "retain row trained on, retain row asked about",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One entry of a block."""

    block: str
    train: str
    query: str
    score: float


def top_pairs(influence: Influence, *, per_end: int = 2) -> list[Pair]:
    """Per block the `per_end` largest scores, then the smallest (each smallest once more only if it is another pair).

    A row's influence on itself is left out; in the symmetric blocks FF and RR each pair of rows counts once.
    Ties keep the order of the rows.
    """
    import numpy as np

    ids = {"f": influence.forget_ids, "r": influence.retain_ids}
    pairs = []
    for block, scores in influence.blocks.items():
        rows, columns = np.triu_indices(len(scores), k=1) if block[0] == block[1] else np.indices(scores.shape)
        rows, columns = rows.ravel(), columns.ravel()
        values = np.asarray(scores)[rows, columns]
        order = np.argsort(-values, kind="stable")
        for place in dict.fromkeys([*order[:per_end], *order[-per_end:]]):
            train, query = ids[block[0]][rows[place]], ids[block[1]][columns[place]]
            pairs.append(Pair(block=block, train=train, query=query, score=float(values[place])))
    return pairs
