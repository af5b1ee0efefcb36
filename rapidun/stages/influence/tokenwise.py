"""Which tokens make the influence of one row on another: scores of tokens, on both sides, that sum to the rows' score.

The gradient of a weight is a sum over positions, G = sum_t u_t v_t^T (nn.Linear: u the gradient of the output, v the
input; nn.Embedding: u the unit vector of the looked-up row, v the gradient of the output). So the inner product of two
rows' gradients is a sum over pairs of positions, exactly,

    <G, G'> = sum_t sum_s M[t, s],   M[t, s] = sum over weights (u_t . u'_s)(v_t . v'_s),

and the sums of M along either side are scores of that side's tokens. `by position` takes those: what the model did at
the place of each input token. `by loss` splits the other way round: l = sum_j l_j / n over response tokens j, so that
token j has the score <grad l_j / n, G'>: which words of the response pull; it takes one backward pass a response token.

Source: METHOD section 3 (docs/method.md); RapidIn (Lin et al. 2024, arXiv 2405.11724) for the token-wise view.
"""

from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rapidun.base.files import write_json
from rapidun.config.influence import Score
from rapidun.models.losses import IGNORE, response_mask
from rapidun.stages.influence.gradients.capture import Contribution, Factors, GradientCapture, Lookup
from rapidun.stages.influence.gradients.params import TrackedParameter
from rapidun.stages.rows.encode import Encoded, collate

# copies of a row, one response token each, that go through the model at once
COPIES = 16


class By(Enum):
    """What a token's score is the share of."""

    position = "position"  # the gradient's sum over input positions
    loss = "loss"  # the loss's sum over response tokens


class TokenScores(NamedTuple):
    """Influence between one query and some training rows, token by token: inner products, not divided by norms."""

    dots: Tensor  # [m] <g_query, g_train>
    query: list[Tensor]  # m of [T_query]: sums to dots[i]
    train: list[Tensor]  # m of [T_train_i]: sums to dots[i]
    query_norm: float  # |g_query|
    train_norms: Tensor  # [m]


class _PairSink:
    """Adds up M[t, s] between the first `num_left` rows of a batch and the others, and each row's own norm.

    Contributions of weights that several modules share are held until all have come: their cross terms count.
    """

    def __init__(self, num_left: int, labels: Tensor) -> None:
        self.num_left = num_left
        size, length = labels.shape
        # [left, right, T, T]; float64: thousands of small terms of either sign
        self.pairs = torch.zeros(num_left, size - num_left, length, length, dtype=torch.float64, device=labels.device)
        self.squares = torch.zeros(size, dtype=torch.float64, device=labels.device)
        self._length = length
        self._labelled = response_mask(labels)
        self._held: dict[str, list[Contribution]] = {}

    def __call__(self, parameter: TrackedParameter, gradient: Contribution) -> None:
        if len(parameter.modules) == 1:
            self._add([gradient])
        else:
            self._held.setdefault(parameter.name, []).append(gradient)

    def finish(self) -> None:
        for contributions in self._held.values():
            self._add(contributions)
        self._held.clear()

    def _add(self, contributions: Sequence[Contribution]) -> None:
        spread = [self._spread(contribution) for contribution in contributions]
        for one in spread:
            for other in spread:
                for i in range(len(self.squares)):
                    self.squares[i] += _position_products(one, other, i, i).sum()
                for i in range(self.num_left):
                    for j in range(self.num_left, len(self.squares)):
                        self.pairs[i, j - self.num_left] += _position_products(one, other, i, j)

    def _spread(self, gradient: Contribution) -> Contribution:
        """Put what the output head got, which is labelled positions only, back to the positions they stand at."""
        if isinstance(gradient, Lookup):
            return gradient._replace(g=gradient.g.double())
        a, g = gradient.a.double(), gradient.g.double()
        if a.shape[1] == self._length:
            return Factors(a, g)
        if a.shape[1] == 0:
            # a gradient that is zero whatever the data (lora_A while B = 0)
            return Factors(*(part.new_zeros(len(part), self._length, part.shape[2]) for part in (a, g)))
        rows, places = self._labelled.nonzero(as_tuple=True)
        counts = self._labelled.sum(dim=1)
        local = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        whole = []
        for part in (a, g):
            out = part.new_zeros(len(part), self._length, part.shape[2])
            # the logits that predict a token are those of the place before it
            out[rows, places - 1] = part[rows, local]
            whole.append(out)
        return Factors(*whole)


def _position_products(one: Contribution, other: Contribution, i: int, j: int) -> Tensor:
    """(u_t . u'_s)(v_t . v'_s) between row i of one contribution and row j of another: [T, T]."""
    if isinstance(one, Lookup) and isinstance(other, Lookup):
        same = (one.ids[i].unsqueeze(1) == other.ids[j].unsqueeze(0)) & (one.ids[i] >= 0).unsqueeze(1)
        return (one.g[i] @ other.g[j].T).masked_fill(~same, 0.0)
    if isinstance(one, Factors) and isinstance(other, Factors):
        return (one.g[i] @ other.g[j].T) * (one.a[i] @ other.a[j].T)
    if isinstance(one, Factors):
        return _position_products(other, one, j, i).T
    assert isinstance(one, Lookup) and isinstance(other, Factors)
    # u is a unit vector: u_t . u'_s picks a number of u'_s
    picked = other.g[j][:, one.ids[i].clamp(min=0)].T
    return (picked * (one.g[i] @ other.a[j].T)).masked_fill((one.ids[i] < 0).unsqueeze(1), 0.0)


def token_scores(
    model: nn.Module,
    parameters: Sequence[TrackedParameter],
    query: Encoded,
    train: Sequence[Encoded],
    *,
    pad_token_id: int,
    reduction: str = "mean",
    by: By = By.position,
) -> TokenScores:
    """Split the influence of some training rows on one query over the tokens of both.

    Args:
        train: the rows of one batch: a query's few best, not a training set.
        reduction: `mean` or `sum` over a row's response tokens.
    Returns: by position, every token of a row has a score; by loss, those of the response (others are 0).
    """
    sink, lengths = _run_pairs(model, parameters, [query], train, pad_token_id=pad_token_id, reduction=reduction)
    pairs = sink.pairs[0]
    dots = pairs.sum(dim=(1, 2))
    if by is By.position:
        query_scores = [pair.sum(dim=1)[: lengths[0]] for pair in pairs]
        train_scores = [pair.sum(dim=0)[:length] for pair, length in zip(pairs, lengths[1:], strict=True)]
    else:
        shared: dict[str, Any] = {"pad_token_id": pad_token_id, "reduction": reduction}
        query_scores = list(_loss_scores(model, parameters, query, train, **shared).T)
        train_scores = [_loss_scores(model, parameters, row, [query], **shared)[:, 0] for row in train]
    norms = sink.squares.clamp(min=0).sqrt().cpu()
    return TokenScores(
        dots.cpu(), [s.cpu() for s in query_scores], [s.cpu() for s in train_scores], float(norms[0]), norms[1:]
    )


def _loss_scores(
    model: nn.Module,
    parameters: Sequence[TrackedParameter],
    row: Encoded,
    others: Sequence[Encoded],
    *,
    pad_token_id: int,
    reduction: str,
) -> Tensor:
    """<gradient of each response token's share of the loss, gradient of the others>: [T, num others]."""
    places = [t for t, label in enumerate(row.labels) if t > 0 and label != IGNORE]
    share = 1.0 / len(places) if reduction == "mean" else 1.0
    out = torch.zeros(len(row.labels), len(others), dtype=torch.float64)
    for start in range(0, len(places), COPIES):
        some = places[start : start + COPIES]
        # nothing behind the token matters to its loss
        copies = [Encoded(row.input_ids[: t + 1], [IGNORE] * t + [row.labels[t]]) for t in some]
        sink, _ = _run_pairs(model, parameters, copies, others, pad_token_id=pad_token_id, reduction=reduction)
        out[some] = sink.pairs.sum(dim=(2, 3)).cpu() * share
    return out


def _run_pairs(
    model: nn.Module,
    parameters: Sequence[TrackedParameter],
    left: Sequence[Encoded],
    right: Sequence[Encoded],
    *,
    pad_token_id: int,
    reduction: str,
) -> tuple[_PairSink, list[int]]:
    device = next(model.parameters()).device
    rows = [*left, *right]
    batch = {key: value.to(device) for key, value in collate(rows, pad_token_id=pad_token_id).items()}
    sink = _PairSink(len(left), batch["labels"])
    with GradientCapture(model, parameters, sink) as capture:
        capture.run(batch, reduction=reduction)
    sink.finish()
    return sink, [len(row.input_ids) for row in rows]


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """A text for each token such that all of them in a row are the decoded text.

    A token that ends inside a character has no text; the token that completes the character has it.
    """
    texts = []
    shown = ""
    for stop in range(1, len(ids) + 1):
        whole = tokenizer.decode(ids[:stop], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # the replacement character stands for bytes that are no character yet
        if (whole.endswith("\ufffd") and stop < len(ids)) or not whole.startswith(shown):
            texts.append("")
            continue
        texts.append(whole[len(shown) :])
        shown = whole
    return texts


def write_tokens(
    path: Path,
    model: nn.Module,
    parameters: Sequence[TrackedParameter],
    tokenizer: Any,
    pairs: Sequence[tuple[str, Encoded, Sequence[str], Sequence[Encoded]]],
    *,
    score: Score,
    reduction: str = "mean",
    by: str = "position",
) -> None:
    """Write tokens.json: [{"query", "train", "score", "query_tokens": [[text, score], ...], "train_tokens": ...}, ...].

    The scores of either side sum to the pair's. For cosine all are divided by the norms of both gradients.

    Args:
        pairs: (query's id, query, ids of its training rows, those rows).
    """
    write_json(
        path, list(_token_entries(model, parameters, tokenizer, pairs, score=score, reduction=reduction, by=By[by]))
    )


def _token_entries(
    model: nn.Module,
    parameters: Sequence[TrackedParameter],
    tokenizer: Any,
    pairs: Sequence[tuple[str, Encoded, Sequence[str], Sequence[Encoded]]],
    *,
    score: Score,
    reduction: str,
    by: By,
) -> Iterator[dict[str, object]]:
    for query_id, query, train_ids, train in pairs:
        found = token_scores(
            model, parameters, query, train, pad_token_id=tokenizer.pad_token_id, reduction=reduction, by=by
        )
        query_texts = token_texts(tokenizer, query.input_ids)
        for i, (train_id, row) in enumerate(zip(train_ids, train, strict=True)):
            norm = 1.0
            if score is Score.cosine:
                norm = found.query_norm * float(found.train_norms[i])
            factor = 1.0 / norm if norm > 0 else 0.0
            yield {
                "query": query_id,
                "train": train_id,
                "by": by.name,
                "score": float(found.dots[i]) * factor,
                "query_tokens": _with_texts(query_texts, found.query[i] * factor),
                "train_tokens": _with_texts(token_texts(tokenizer, row.input_ids), found.train[i] * factor),
            }


def _with_texts(texts: Sequence[str], scores: Tensor) -> list[list[object]]:
    return [[text, value] for text, value in zip(texts, scores.tolist(), strict=True)]
