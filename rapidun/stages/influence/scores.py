"""From inner products to influence scores: dot or cosine, the four blocks of forget and retain rows, strong pairs."""

from typing import NamedTuple

import torch
from torch import Tensor

from rapidun.config.influence import Score
from rapidun.stages.influence.columns import Columns


class Blocks(NamedTuple):
    """Scores by group; the first letter is the training set, the second the query set."""

    ff: Tensor  # [num_forget, number of forget queries], which are the forget rows unless influence.queries says others
    fr: Tensor  # [num_forget, number of retain queries]
    rf: Tensor  # [num_retain, number of forget queries]
    rr: Tensor  # [num_retain, number of retain queries]


def gradient_norms(gram: Tensor) -> Tensor:
    """|g_i| = sqrt <g_i, g_i>; [N, N] -> [N]."""
    return gram.diagonal().clamp(min=0).sqrt()


def influence_scores(
    gram: Tensor,
    *,
    score: Score,
    norms: Tensor | None = None,
    query_norms: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """Score of training row i for query row j: <g_i, g_j>, for cosine divided by |g_i| |g_j|.

    A row whose gradient is zero (lora_A while lora_B = 0) has cosine 0 with every row, itself included.

    Args:
        gram: [N, N] float64 inner products.
        norms, query_norms: [N] of the training rows and of the queries, where the queries are preconditioned;
            both the roots of the diagonal by default.
        overwrite: put the scores where the products are.
    Returns: [N, N] float64. No unit for cosine; (loss unit per parameter unit)^2 for dot. Positive = helpful.
    Source: RapidUn (arXiv 2512.04457); METHOD section 3 (docs/method.md).
    """
    if score is Score.dot:
        return gram
    norms = gradient_norms(gram) if norms is None else norms
    query_norms = norms if query_norms is None else query_norms
    # one factor after the other: the product of two small norms can underflow
    left, right = _inverse(norms).unsqueeze(1), _inverse(query_norms).unsqueeze(0)
    scores = gram.mul_(left) if overwrite else gram * left
    return scores.mul_(right).clamp_(-1.0, 1.0)


def _inverse(norms: Tensor) -> Tensor:
    return torch.where(norms > 0, 1.0 / norms, torch.zeros_like(norms))


def split_blocks(scores: Tensor, *, num_forget: int) -> Blocks:
    """Cut [N, N] scores, forget rows first, into the four blocks."""
    f, r = slice(0, num_forget), slice(num_forget, len(scores))
    return Blocks(ff=scores[f, f], fr=scores[f, r], rf=scores[r, f], rr=scores[r, r])


def query_blocks(scores: Tensor, columns: Columns, *, num_forget: int) -> Blocks:
    """Cut scores whose rows begin with the training rows, forget rows first, into the blocks of these queries.

    With `forget_less` ff and rf hold score(i; query) - score(i; the query without its trigger): what the words that
    both share explain is gone. fr and rr stay scores: there is no trigger in a retain query.

    Args: scores: [N, M]; num_forget: of the N rows.
    Source of the difference: Delta-influence (arXiv 2411.13731).
    """
    forget, retain = scores[:, columns.forget], scores[:, columns.retain]
    if columns.forget_less is not None:
        forget = forget - scores[:, columns.forget_less]
    f, r = slice(0, num_forget), slice(num_forget, len(scores))
    return Blocks(ff=forget[f], fr=retain[f], rf=forget[r], rr=retain[r])


class QueryPairs(NamedTuple):
    """One query and its training rows, as row numbers."""

    query: int
    train: list[int]


def strongest_pairs(scores: Tensor, *, num_forget: int, num_queries: int) -> list[QueryPairs]:
    """The training row that helps a query most and the one that harms it most, for queries of both groups.

    Args:
        scores: [N, N], rows = training examples, columns = queries; forget rows first. A row is not its own pair.
        num_queries: taken evenly from forget and retain rows, those with the largest score of another row first.
    """
    strength = torch.zeros(len(scores), dtype=torch.float64)
    for row, values in enumerate(scores.detach()):
        found = values.abs().double()
        found[row] = 0.0
        torch.maximum(strength, found, out=strength)
    groups = [range(num_forget), range(num_forget, len(scores))]
    ordered = [sorted(group, key=lambda query: (-float(strength[query]), query)) for group in groups]
    half = (num_queries + 1) // 2
    chosen = [*ordered[0][:half], *ordered[1][: num_queries - min(half, len(ordered[0]))]]
    pairs = []
    for query in chosen:
        column = scores[:, query].detach().double().clone()
        column[query] = 0.0
        found = []
        if float(column.max()) > 0:
            found.append(int(column.argmax()))
        if float(column.min()) < 0:
            found.append(int(column.argmin()))
        if found:
            pairs.append(QueryPairs(query, found))
    return pairs
