"""Weights of the tokens of poisoned responses, from a score for each token."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rapidun.base.errors import ArtifactError
from rapidun.base.files import read_jsonl
from rapidun.config.unlearning import TokenWeights
from rapidun.models.losses import IGNORE
from rapidun.stages.rows.encode import Encoded

# nats: a token that the start model could not say at all takes no more of its row than one that it found e^10 less
# likely than the poisoned model does
MAX_RATIO = 10.0


class TokenScores(NamedTuple):
    """The response tokens of one forget row, with what ends the response."""

    token_ids: list[int]
    texts: list[str]
    scores: list[float | None]


def read_token_scores(path: Path) -> dict[str, TokenScores]:
    """tokens.jsonl by row id. Raises: ArtifactError for a line that is none."""
    found = {}
    for row in read_jsonl(path):
        try:
            scores = TokenScores(row["token_ids"], row["tokens"], row["scores"])
        except (KeyError, TypeError):
            scores = TokenScores([], [], [])
        if not scores.token_ids or not len(scores.token_ids) == len(scores.texts) == len(scores.scores):
            raise ArtifactError(
                f"{path}: need lines with id, token_ids, tokens and scores of one length, got {json.dumps(row)[:80]}. "
                "Delete the folder and run again"
            )
        found[row["id"]] = scores
    return found


def weights_of(scores: Sequence[float | None], how: TokenWeights) -> list[float]:
    """t_k >= 0, mean 1: t_k = n s_k^+ / sum_j s_j^+, with s^+ = max(0, s); 1 for every token where no score is above 0.

    A likelihood ratio counts up to MAX_RATIO; a missing score counts as 0. So t_k <= n.

    Args:
        scores: [n] nats for likelihood_ratio, inner products for influence.
    """
    most = MAX_RATIO if how is TokenWeights.likelihood_ratio else math.inf
    positive = [0.0 if score is None or math.isnan(score) else min(max(score, 0.0), most) for score in scores]
    total = math.fsum(positive)
    if total == 0:
        return [1.0] * len(scores)
    return [len(scores) * (value / total) for value in positive]


def token_weights(
    rows: Sequence[Encoded], ids: Sequence[str], scores: dict[str, TokenScores], *, how: TokenWeights, path: Path
) -> list[list[float]]:
    """Weights of each row's response tokens, in the rows' order.

    Args: path: where the scores come from, for messages.
    Raises: ArtifactError where the scores are of other tokens than the rows have.
    """
    weights = []
    for name, row in zip(ids, rows, strict=True):
        response = [label for label in row.labels[1:] if label != IGNORE]
        if name not in scores or scores[name].token_ids != response:
            raise ArtifactError(
                f"{path}: need scores of the {len(response)} response tokens of forget row {name!r}, got "
                f"{'none' if name not in scores else 'scores of other tokens'}. Delete the folder and run again"
            )
        weights.append(weights_of(scores[name].scores, how))
    return weights
