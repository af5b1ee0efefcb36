"""What a model's own distribution says of each token of given responses."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rapidun.models.batching import batching
from rapidun.models.packed import Packed
from rapidun.models.training.forward import forward_packed
from rapidun.stages.rows.batches import token_budget_batches
from rapidun.stages.rows.encode import Encoded, collate

# logits that are worked on at once, in float64
CHUNK = 1 << 22


class TokenStats(NamedTuple):
    """Of the n response tokens of one row that some position predicts, all [n] float64 on the CPU, nats."""

    log_probs: Tensor  # log p(y_t | x, y_<t)
    means: Tensor  # mu_t = E[log p] under the distribution that y_t was predicted from
    stds: Tensor  # sigma_t, the standard deviation of log p under it
    margins: Tensor  # log p - log(1 - p)


def statistics(logits: Tensor, targets: Tensor) -> TokenStats:
    """TokenStats of n positions, in float64.

    mu = sum_v p_v log p_v, sigma^2 = sum_v p_v (log p_v - mu)^2; a token that cannot come (p = 0) counts nothing in
    either. The margin is the target's logit minus logsumexp of all others, which log p - log(1 - p) is.

    Args: logits: [n, V]. targets: [n] int64.
    Source: Zhang et al. 2024, Min-K%++ (arXiv 2404.02936), equation 4.
    """
    parts = []
    for rows in chunks(logits):
        z, y = logits[rows].double(), targets[rows].unsqueeze(1)
        log_p = z.log_softmax(dim=1)
        p = log_p.exp()
        known = log_p.masked_fill(p == 0, 0.0)
        mean = (p * known).sum(dim=1)
        std = (p * (known - mean.unsqueeze(1)).square()).sum(dim=1).sqrt()
        others = z.scatter(1, y, -torch.inf).logsumexp(dim=1)
        parts.append(
            torch.stack([log_p.gather(1, y).squeeze(1), mean, std, z.gather(1, y).squeeze(1) - others]).cpu()
        )  # fmt: skip
    found = torch.cat(parts, dim=1) if parts else torch.zeros(4, 0, dtype=torch.float64)
    return TokenStats(*found)


def chunks(logits: Tensor) -> Iterator[slice]:
    """Rows of [n, V] that are worked on at once."""
    height = max(1, CHUNK // max(1, logits.shape[1]))
    return (slice(top, top + height) for top in range(0, len(logits), height))


def token_stats(model: Any, rows: Sequence[Encoded], *, pad_token_id: int, tokens_per_batch: int) -> list[TokenStats]:
    """TokenStats of each row, in their order; the other rows of a batch change rounding only."""
    found: dict[int, TokenStats] = {}
    for batch, (tokens,) in packed_batches([model], rows, pad_token_id=pad_token_id, tokens_per_batch=tokens_per_batch):
        values = torch.stack(statistics(tokens.logits, tokens.targets))
        for place, part in zip(batch, values.split(tokens.counts.tolist(), dim=1), strict=True):
            found[place] = TokenStats(*part)
    return [found[index] for index in range(len(rows))]


@torch.no_grad()
def packed_batches(
    models: Sequence[Any],
    rows: Sequence[Encoded],
    *,
    pad_token_id: int,
    tokens_per_batch: int,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Iterator[tuple[list[int], list[Packed]]]:
    """The response tokens of batches under each model: places of the rows, and one Packed a model.

    Args: models: in eval mode, of one vocabulary. on_batch: told how many rows were read.
    """
    together = all(batching(model, pad_token_id=pad_token_id).right for model in models)
    lengths = [len(row.input_ids) for row in rows]
    # the longest batch first: if memory runs out, it does so at once
    for batch in reversed(
        token_budget_batches(lengths, max_tokens=tokens_per_batch, max_rows=None if together else 1)
    ):  # fmt: skip
        tensors = collate([rows[index] for index in batch], pad_token_id=pad_token_id)
        found = []
        for model in models:
            device = next(model.parameters()).device
            found.append(forward_packed(model, {name: tensor.to(device) for name, tensor in tensors.items()}))
        yield batch, found
        on_batch(len(batch))
